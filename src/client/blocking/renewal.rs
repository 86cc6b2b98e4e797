//! Gives the server the new token of a connection whose token file has changed.

use std::{path::PathBuf, time::Duration};

use crate::{ClientToken, ConnectOptions, Connection, clock::Deadline};

/// Interval at which the file is read: tokens are valid for seconds at least, and a server lets one expire some seconds late.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The token file of a connection, and the token that the server has.
#[derive(Debug)]
pub(super) struct Renewal {
    file: PathBuf,
    given: ClientToken,
    /// When the file is read again.
    next_look: Deadline,
}

impl Renewal {
    /// For a connection that has given the token of these options. `None` if it is not from a file.
    pub(super) fn new(options: &ConnectOptions) -> Option<Renewal> {
        let (file, given) = options.token_file.clone().zip(options.token.clone())?;
        Some(Renewal { file, given, next_look: Deadline::after(Some(LOOK_INTERVAL)) })
    }

    /// Time until the file is read again.
    pub(super) fn remaining(&self) -> Duration {
        self.next_look.remaining().unwrap_or(LOOK_INTERVAL)
    }

    /// Reads the file if it is time to, and queues a REFRESH if it has another token. If the file has none, because somebody is
    /// just writing it, or if the server has no time for the token, the next look tries again.
    pub(super) fn look(&mut self, connection: &mut Connection) {
        if !self.remaining().is_zero() {
            return;
        }
        self.next_look = Deadline::after(Some(LOOK_INTERVAL));
        let was_refused = connection.take_refresh_refusal();
        let Ok(token) = ClientToken::read(&self.file) else { return };
        if (token != self.given || was_refused) && connection.refresh(&token).is_ok() {
            self.given = token;
        }
    }
}
