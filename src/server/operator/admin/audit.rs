//! The audit log: one line for each change that an operator makes.

use std::fmt::Display;

use super::access::{Peer, Who};
use crate::logging::AUDIT;

/// A change under way. Exactly one line is logged for it, even if its connection ends before there is a result.
pub(super) struct Change {
    /// Who, from where, and what.
    begin: String,
    is_logged: bool,
}

impl Change {
    /// Begins a change, before it takes effect. No part of the text may be secret.
    pub(super) fn begin(who: &Who, peer: &Peer, what: impl Display) -> Change {
        Change { begin: format!("{who} at {peer}: {what}"), is_logged: false }
    }

    /// Logs it with its result.
    pub(super) fn end(mut self, result: impl Display) {
        self.log(&result);
    }

    fn log(&mut self, result: &dyn Display) {
        self.is_logged = true;
        ::log::info!(target: AUDIT, "audit: {}: {result}", self.begin);
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !self.is_logged {
            self.log(&"the connection ended before the result was known");
        }
    }
}
