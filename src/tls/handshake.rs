//! Handshakes by rustls over tickcast's own buffers, until a [`RecordLayer`] can take over.
//! rustls opens all records that it is given in place, even those after Finished, and would keep state of a partial record. So
//! it gets one record at a time, and the records after Finished are still sealed when the record layer takes over.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, CommonState, ConnectionTrafficSecrets, ExtractedSecrets, HandshakeKind, ProtocolVersion,
    ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};

use crate::{
    record::{Alert, Cipher, HEADER_BYTES, Keys, PLAINTEXT_BYTES_MAX, RecordLayer, Role, Version},
    secrets::{self, Revealed, Secret, TrafficSecrets},
};

/// Longest first record of a client, its ClientHello. Browsers send up to 2 KiB, with post-quantum keys.
pub const HELLO_BYTES_MAX: usize = 8 << 10;
/// Bytes of records that a peer may send before its handshake is over: a chain of certificates fits.
pub const HANDSHAKE_BYTES_MAX: usize = 48 << 10;
/// Longest record of a handshake, with what the oldest version may add to it.
const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAINTEXT_BYTES_MAX + 2_048;
/// The first byte of a handshake's records.
const CONTENT_TYPE_HANDSHAKE: u8 = 22;
/// The alert of a record that is too long, in the clear: rustls may have keys by then, but seals nothing for us.
const RECORD_OVERFLOW_RECORD: [u8; 7] = [21, 3, 3, 0, 2, 2, Alert::RECORD_OVERFLOW.0];
/// The alert to a peer that does not speak TLS: it may know one when it sees it.
const NOT_TLS_RECORD: [u8; 7] = [21, 3, 3, 0, 2, 2, Alert::UNEXPECTED_MESSAGE.0];

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq)]
pub enum HandshakeError {
    /// The first byte begins an HTTP request. Nothing has been answered.
    PlainHttp,
    /// The first byte begins neither a handshake nor an HTTP request. Nothing has been answered.
    NotTls,
    /// More bytes than a handshake may have.
    TooLong,
    /// rustls refused what the peer sent, or the peer refused with an alert.
    Refused(rustls::Error),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::PlainHttp => write!(f, "plain HTTP on a port for TLS"),
            HandshakeError::NotTls => write!(f, "the first byte begins no TLS handshake"),
            HandshakeError::TooLong => write!(f, "the handshake is too long"),
            HandshakeError::Refused(error) => write!(f, "{error}"),
        }
    }
}

/// A connection whose handshake is over.
#[derive(Debug)]
pub struct Established {
    /// Seals and opens what follows.
    pub records: RecordLayer,
    /// What the peer has sent behind its Finished, still sealed.
    pub unopened: Vec<u8>,
    /// A server's: the name that the client asked for (SNI).
    pub server_name: Option<Box<str>>,
    /// The name in the peer's verified certificate: its first DNS name, else its first URI. `None`: it has shown no certificate,
    /// or one without either.
    pub peer_name: Option<Box<str>>,
    /// Whether a session ticket replaced most of the handshake.
    pub is_resumed: bool,
}

/// How far a step of a handshake got.
#[derive(Debug)]
pub enum Progress {
    /// The peer has to send more.
    Waiting,
    /// The handshake is over.
    Done(Box<Established>),
}

/// The records of one peer that a handshake has not used up.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    /// How much of `bytes` rustls has been shown.
    shown: usize,
    /// Bytes that it has been shown in all.
    total: usize,
}

impl Input {
    /// Shows rustls one more record. Returns whether there is a whole one.
    fn show_next(&mut self, record_bytes_max: usize) -> Result<bool, HandshakeError> {
        let Some(&[_, _, _, high, low]) = self.bytes[self.shown..].first_chunk::<HEADER_BYTES>() else {
            return Ok(false);
        };
        let len = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
        if len > record_bytes_max || self.total + len > HANDSHAKE_BYTES_MAX {
            return Err(HandshakeError::TooLong);
        }
        if self.bytes.len() < self.shown + len {
            return Ok(false);
        }
        self.shown += len;
        self.total += len;
        Ok(true)
    }

    fn discard(&mut self, len: usize) {
        self.bytes.drain(..len);
        self.shown -= len;
    }
}

/// A server's handshake. Until the first record has arrived completely, it costs the bytes that came and no more.
#[derive(Default)]
pub struct ServerHandshake {
    connection: Option<Box<UnbufferedServerConnection>>,
    input: Input,
    revealed: Revealed,
}

impl fmt::Debug for ServerHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerHandshake({} bytes wait)", self.input.bytes.len())
    }
}

impl ServerHandshake {
    /// Adds what the client sent. [`ServerHandshake::advance`] uses it.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.bytes.extend_from_slice(bytes);
    }

    /// Bytes that wait. Bound it by not receiving while it is above [`HANDSHAKE_BYTES_MAX`].
    pub fn waiting_bytes(&self) -> usize {
        self.input.bytes.len()
    }

    /// Whether [`ServerHandshake::advance`] may have something to do: a whole record waits, or one that will be refused.
    pub fn can_advance(&self) -> bool {
        let unseen = &self.input.bytes[self.input.shown..];
        match (&self.connection, unseen) {
            (None, [first, ..]) if *first != CONTENT_TYPE_HANDSHAKE => true,
            (_, [_, _, _, high, low, rest @ ..]) => {
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                rest.len() >= len || len + HEADER_BYTES > self.record_bytes_max()
            }
            _ => false,
        }
    }

    fn record_bytes_max(&self) -> usize {
        match self.connection {
            None => HELLO_BYTES_MAX,
            Some(_) => RECORD_BYTES_MAX,
        }
    }

    /// Processes the records that wait. Appends what is to be sent to `out`, the alert of a failure included. Call it no more
    /// after [`Progress::Done`] or an error.
    ///
    /// Cost, P-256 certificate: about 90 us in all, 80 us of it for the ClientHello; 630 us with an RSA-2048 certificate.
    ///
    /// # Errors
    /// Why the connection is over.
    pub fn advance(
        &mut self,
        config: &Arc<ServerConfig>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, HandshakeError> {
        match self.input.bytes.first() {
            Some(first) if self.connection.is_none() && *first != CONTENT_TYPE_HANDSHAKE => {
                // A native frame begins with its length, whose first byte may be any letter and whose second one is none.
                if first.is_ascii_uppercase() && self.input.bytes.get(1).is_none_or(u8::is_ascii_uppercase) {
                    return Err(HandshakeError::PlainHttp);
                }
                out.extend_from_slice(&NOT_TLS_RECORD);
                return Err(HandshakeError::NotTls);
            }
            _ => {}
        }
        loop {
            match self.input.show_next(self.record_bytes_max()) {
                Ok(true) => {}
                Ok(false) => return Ok(Progress::Waiting),
                Err(error) => {
                    out.extend_from_slice(&RECORD_OVERFLOW_RECORD);
                    return Err(error);
                }
            }
            let connection = match &mut self.connection {
                Some(connection) => connection,
                None => {
                    let connection =
                        UnbufferedServerConnection::new(config.clone()).map_err(HandshakeError::Refused)?;
                    self.connection.insert(Box::new(connection))
                }
            };
            if process(&mut **connection, &mut self.input, &mut self.revealed, out)?
                && let Some(connection) = self.connection.take()
            {
                return self.finish(*connection).map(|established| Progress::Done(Box::new(established)));
            }
        }
    }

    fn finish(&mut self, connection: UnbufferedServerConnection) -> Result<Established, HandshakeError> {
        let agreed = Agreed::in_connection(&connection);
        let (extracted, _) =
            connection.dangerous_into_kernel_connection().map_err(HandshakeError::Refused)?;
        let (revealed, unopened) =
            (std::mem::take(&mut self.revealed), std::mem::take(&mut self.input.bytes));
        agreed.establish(Role::Server, extracted, revealed, unopened)
    }
}

/// A client's handshake.
pub struct ClientHandshake {
    connection: Option<Box<UnbufferedClientConnection>>,
    input: Input,
    revealed: Revealed,
}

impl fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientHandshake({} bytes wait)", self.input.bytes.len())
    }
}

impl ClientHandshake {
    /// Begins a handshake with a server of this name. Appends the ClientHello to `out`. The configuration must be one of
    /// [`client_config`](crate::certificates::client_config) that hands over.
    ///
    /// # Errors
    /// Why there is no connection.
    pub fn new(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        out: &mut Vec<u8>,
    ) -> Result<ClientHandshake, HandshakeError> {
        let connection = UnbufferedClientConnection::new(config, name).map_err(HandshakeError::Refused)?;
        let mut handshake = ClientHandshake {
            connection: Some(Box::new(connection)),
            input: Input::default(),
            revealed: Revealed::default(),
        };
        handshake.process(out)?;
        Ok(handshake)
    }

    /// Processes what the server sent. Appends what is to be sent to `out`. Call it no more after [`Progress::Done`] or an error.
    ///
    /// # Errors
    /// Why the connection is over.
    pub fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        self.input.bytes.extend_from_slice(bytes);
        while self.input.show_next(RECORD_BYTES_MAX)? {
            if self.process(out)?
                && let Some(connection) = self.connection.take()
            {
                return self.finish(*connection).map(|established| Progress::Done(Box::new(established)));
            }
        }
        Ok(Progress::Waiting)
    }

    fn process(&mut self, out: &mut Vec<u8>) -> Result<bool, HandshakeError> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        process(&mut **connection, &mut self.input, &mut self.revealed, out)
    }

    fn finish(&mut self, connection: UnbufferedClientConnection) -> Result<Established, HandshakeError> {
        let agreed = Agreed::in_connection(&connection);
        let (extracted, _) =
            connection.dangerous_into_kernel_connection().map_err(HandshakeError::Refused)?;
        let (revealed, unopened) =
            (std::mem::take(&mut self.revealed), std::mem::take(&mut self.input.bytes));
        agreed.establish(Role::Client, extracted, revealed, unopened)
    }
}

/// What a connection of rustls tells before it is taken apart.
struct Agreed {
    version: Version,
    peer_name: Option<Box<str>>,
    is_resumed: bool,
}

impl Agreed {
    fn in_connection(connection: &CommonState) -> Agreed {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => Version::Tls13,
            _ => Version::Tls12,
        };
        let peer = connection.peer_certificates().and_then(|chain| chain.first());
        let is_resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        Agreed { version, peer_name: peer.and_then(name_in), is_resumed }
    }

    fn establish(
        self,
        role: Role,
        extracted: ExtractedSecrets,
        revealed: Revealed,
        unopened: Vec<u8>,
    ) -> Result<Established, HandshakeError> {
        let Agreed { version, peer_name, is_resumed } = self;
        let secrets = revealed.secrets.unwrap_or_default();
        let TrafficSecrets { client, server } = &*secrets;
        let (own, other) = match role {
            Role::Client => (client, server),
            Role::Server => (server, client),
        };
        let (cipher, tx) = keys(extracted.tx, own)?;
        let (_, rx) = keys(extracted.rx, other)?;
        let records = RecordLayer::new(role, version, cipher, tx, rx);
        Ok(Established { records, unopened, server_name: revealed.server_name, peer_name, is_resumed })
    }
}

/// A connection of rustls over buffers of the caller.
trait Unbuffered {
    type Data;

    fn next_state<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn next_state<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(shown)
    }
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn next_state<'c, 'i>(&'c mut self, shown: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(shown)
    }
}

/// Lets rustls process what it has been shown. Returns whether the handshake is over.
fn process(
    connection: &mut impl Unbuffered,
    input: &mut Input,
    revealed: &mut Revealed,
    out: &mut Vec<u8>,
) -> Result<bool, HandshakeError> {
    let mut failed = None;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.next_state(&mut input.bytes[..input.shown]);
        revealed.add(secrets::take());
        let ended = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut |space| data.encode(space), out);
                let last = failed.take_if(|error| is_of_a_record(error));
                last.map(|error| Err(HandshakeError::Refused(error)))
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            // The calls after the one that failed encode what was queued, the alert last. They need the same buffer less `discard`:
            // shown less, rustls panics.
            Err(error) if failed.is_none() => {
                failed = Some(error);
                None
            }
            _ if failed.is_some() => failed.take().map(|error| Err(HandshakeError::Refused(error))),
            Ok(ConnectionState::BlockedHandshake) => Some(Ok(false)),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(true)),
            // Early data or a close: neither belongs here, and neither is shown behind Finished.
            Ok(_) => Some(Err(HandshakeError::Refused(rustls::Error::HandshakeNotComplete))),
            Err(error) => Some(Err(HandshakeError::Refused(error))),
        };
        input.discard(discard);
        if let Some(result) = ended {
            return result;
        }
    }
}

/// Whether rustls fails on a record before it looks at its messages. Then the alert is all that it encodes: called once more, it would
/// refuse the record again, with a second alert, and debug builds of it assert that there is one.
fn is_of_a_record(error: &rustls::Error) -> bool {
    use rustls::{Error, PeerMisbehaved};
    matches!(
        error,
        Error::InvalidMessage(_)
            | Error::PeerSentOversizedRecord
            | Error::DecryptError
            | Error::PeerMisbehaved(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec)
    )
}

/// Appends what rustls has to send.
fn encode(encode: &mut dyn FnMut(&mut [u8]) -> Result<usize, EncodeError>, out: &mut Vec<u8>) {
    let start = out.len();
    if let Err(EncodeError::InsufficientSize(needed)) = encode(&mut []) {
        out.resize(start + needed.required_size, 0);
        let encoded = encode(&mut out[start..]);
        debug_assert!(encoded.is_ok(), "it has the room that it asked for");
        out.truncate(start + encoded.unwrap_or(0));
    }
}

/// The keys of one direction.
fn keys(
    (sequence, secrets): (u64, ConnectionTrafficSecrets),
    secret: &Secret,
) -> Result<(Cipher, Keys), HandshakeError> {
    let (cipher, key, iv) = match &secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::ChaCha20Poly1305, key, iv),
        _ => return Err(HandshakeError::Refused(rustls::Error::General("an unknown cipher suite".into()))),
    };
    let mut keys = Keys { sequence, key: [0; 32], iv: [0; 12], secret: secret.0 };
    let key = key.as_ref();
    keys.key[..key.len()].copy_from_slice(key);
    keys.iv.copy_from_slice(iv.as_ref());
    Ok((cipher, keys))
}

/// The name in a certificate: its first DNS name, else its first URI; `None` if it has neither. The caller has verified it.
pub fn name_in(certificate: &CertificateDer<'_>) -> Option<Box<str>> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let name = certificate.valid_dns_names().next().or_else(|| certificate.valid_uri_names().next());
    name.map(Into::into)
}

#[cfg(test)]
mod tests;
