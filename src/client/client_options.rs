//! Options of the clients that drive a session.

use std::{fmt, path::PathBuf};

use crate::{
    Address, ClientError, ConnectOptions, OFFLINE_QUEUE_MAX, Positions, SessionOptions,
    error::UNSUITABLE_ENCODING,
};
use tickcast_proto::WireFormat;

/// Options of a client that drives a [`Session`](crate::Session): `AsyncOptions` of an `AsyncClient`, and
/// [`SessionClientOptions`](crate::SessionClientOptions) of a [`SessionClient`](crate::SessionClient). They differ in the functions that
/// they call.
pub struct ClientOptions<GetToken, SavePositions> {
    /// The server.
    pub address: Address,
    /// Encoding, identity, name, token, TLS and bounds. The token goes into the hello, also over a WebSocket. `acknowledgements` has
    /// no effect: each publish is acknowledged.
    pub connect: ConnectOptions,
    /// Asked for a token before the first connection, and whenever the one in force is about to expire. If there is none, or none
    /// within 30 s, the client asks again after a delay. `None`: [`ConnectOptions::token`], or `token_file`, which is read when a token is needed.
    pub get_token: Option<GetToken>,
    /// Positions that an earlier client saved: subscriptions that match their topics resume there.
    pub positions: Positions,
    /// Called with the positions a second after the first change, and when a connection is lost. They are those of the events that
    /// the application has finished: a process that is killed reads some again, and misses none.
    pub save_positions: Option<SavePositions>,
    /// Publishes that wait for a connection or for answers to others, with 256 KiB of payloads at most.
    pub offline_queue_max: usize,
}

impl<GetToken, SavePositions> ClientOptions<GetToken, SavePositions> {
    /// The default options for a server, in the forms of [`Address::parse`].
    ///
    /// # Errors
    /// [`ClientError::Address`] for any other form.
    pub fn new(server: &str) -> Result<Self, ClientError> {
        let address = Address::parse(server)?;
        let connect = address.connect_options();
        Ok(ClientOptions {
            address,
            connect,
            get_token: None,
            positions: Positions::new(),
            save_positions: None,
            offline_queue_max: OFFLINE_QUEUE_MAX,
        })
    }

    /// Takes out what the session needs. `read`: gives the token of a file, if the options have neither a token nor `get_token`.
    ///
    /// # Errors
    /// [`ClientError::Address`] for encodings other than JSON and native frames.
    pub(crate) fn take_session(
        &mut self,
        read: impl FnOnce(PathBuf) -> GetToken,
    ) -> Result<SessionOptions, ClientError> {
        let encoding = self.connect.encoding;
        if [WireFormat::WEBSOCKET_RAW, WireFormat::WEBSOCKET_PROTOBUF].contains(&encoding) {
            return Err(ClientError::Address(UNSUITABLE_ENCODING.into()));
        }
        let token = self.connect.token.take();
        if self.get_token.is_none() && token.is_none() {
            self.get_token = self.connect.token_file.clone().map(read);
        }
        Ok(SessionOptions {
            name: (*self.connect.name).into(),
            client: (*self.connect.client).into(),
            token,
            asks_token: self.get_token.is_some(),
            positions: std::mem::take(&mut self.positions),
            saves_positions: self.save_positions.is_some(),
            offline_queue_max: self.offline_queue_max,
            ..SessionOptions::new(&self.address.to_string(), encoding)
        })
    }
}

impl<GetToken, SavePositions> fmt::Debug for ClientOptions<GetToken, SavePositions> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions").field("connect", &self.connect).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClientToken;

    /// What stands for the function that reads a file.
    type Options = ClientOptions<PathBuf, ()>;

    #[test]
    fn the_token_of_a_file_is_read_only_if_nothing_else_gives_one() {
        let token = || ClientToken::new("t");
        let options = |get_token: Option<&str>, token: Option<ClientToken>| {
            let mut options = Options::new("ws://a:1/ws").unwrap();
            options.connect.token_file = Some("file".into());
            options.connect.token = token;
            options.get_token = get_token.map(PathBuf::from);
            let session = options.take_session(|file| file).unwrap();
            (options.get_token, session.token.is_some(), session.asks_token)
        };
        assert_eq!(options(None, None), (Some("file".into()), false, true));
        assert_eq!(options(None, token()), (None, true, false));
        assert_eq!(options(Some("own"), None), (Some("own".into()), false, true));
        assert_eq!(options(Some("own"), token()), (Some("own".into()), true, true));
    }

    #[test]
    fn the_raw_encoding_has_no_session() {
        let mut options = Options::new("ws://a:1/ws").unwrap();
        options.connect.encoding = WireFormat::WEBSOCKET_RAW;
        assert!(matches!(options.take_session(|file| file), Err(ClientError::Address(_))));
    }
}
