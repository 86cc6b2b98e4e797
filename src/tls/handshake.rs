//! Runs rustls handshakes over our own buffers until a [`RecordLayer`] can take over.
//! rustls decrypts in place every record that it is given, even those after Finished, and keeps state for a partial record. So it
//! receives one record at a time, and the records after Finished are still encrypted when the record layer takes over.

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
    certificates,
    keys::Keys,
    record::{Alert, Cipher, HEADER_BYTES, PLAINTEXT_BYTES_MAX, RecordLayer, Role, Version},
    secrets::{self, Revealed, Secret, TrafficSecrets},
};

/// Maximum length of a client's first record, its ClientHello. Browsers send up to 2 KiB, with post-quantum keys.
pub const HELLO_BYTES_MAX: usize = 8 << 10;
/// Maximum bytes of records that a peer may send during the handshake; enough for a certificate chain.
pub const HANDSHAKE_BYTES_MAX: usize = 48 << 10;
/// Maximum length of a handshake record, with the largest expansion that any version allows.
const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAINTEXT_BYTES_MAX + 2_048;
/// Content type of handshake records, their first byte.
const CONTENT_TYPE_HANDSHAKE: u8 = 22;
/// The alert for a resumed session whose certificate has expired.
const CERTIFICATE_EXPIRED: Alert = Alert(45);
/// The alert for a record that is too long. It is not encrypted: rustls may have keys by then, but it does not encrypt for us.
const RECORD_OVERFLOW_RECORD: [u8; 7] = [21, 3, 3, 0, 2, 2, Alert::RECORD_OVERFLOW.0];
/// The alert for a peer that does not speak TLS, in case it recognizes one.
const NOT_TLS_RECORD: [u8; 7] = [21, 3, 3, 0, 2, 2, Alert::UNEXPECTED_MESSAGE.0];

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq)]
pub enum HandshakeError {
    /// The first bytes look like an HTTP request. Nothing has been sent in reply.
    PlainHttp,
    /// The first bytes are neither a TLS handshake nor an HTTP request. Nothing has been sent in reply.
    NotTls,
    /// The peer sent more bytes than a handshake may have.
    TooLong,
    /// The client resumed a session that it began with a certificate which has expired since. A ticket outlives it otherwise,
    /// because each resumption gives a new one.
    CertificateExpired,
    /// rustls rejected the peer's bytes, or the peer sent a fatal alert.
    Refused(rustls::Error),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::PlainHttp => write!(f, "plain HTTP on a port for TLS"),
            HandshakeError::NotTls => write!(f, "the first byte begins no TLS handshake"),
            HandshakeError::TooLong => write!(f, "the handshake is too long"),
            HandshakeError::CertificateExpired => {
                write!(f, "the certificate of the resumed session has expired")
            }
            HandshakeError::Refused(error) => write!(f, "{error}"),
        }
    }
}

/// A connection whose handshake is complete.
#[derive(Debug)]
pub struct Established {
    /// Encrypts and decrypts everything that follows.
    pub records: RecordLayer,
    /// Bytes that the peer sent after its Finished, still encrypted.
    pub unopened: Vec<u8>,
    /// On a server: the name that the client asked for (SNI).
    pub server_name: Option<Box<str>>,
    /// The peer's verified certificate; `None` if it presented none.
    pub peer: Option<PeerCertificate>,
    /// Whether the connection resumed a session, which skips most of the handshake.
    pub is_resumed: bool,
}

/// What is known of a peer's verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its first DNS name, or its first URI if there is none. `None` if it has neither.
    pub name: Option<Box<str>>,
    /// The last second at which it is valid, since 1970.
    pub ends_s: u64,
}

/// The outcome of a handshake step.
#[derive(Debug)]
pub enum Progress {
    /// The peer must send more.
    Waiting,
    /// The handshake is complete.
    Done(Box<Established>),
}

/// Records from the peer that the handshake has not consumed.
#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that rustls has been given.
    shown: usize,
    /// Bytes that rustls has been given in total.
    total: usize,
}

impl Input {
    /// Gives rustls one more record. Returns false if no complete record has arrived.
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

/// A server's handshake. Until the first record is complete, it only stores the bytes received.
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
    /// Adds bytes from the client. [`ServerHandshake::advance`] processes them.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.bytes.extend_from_slice(bytes);
    }

    /// Unprocessed bytes. To bound them, do not receive while there are more than [`HANDSHAKE_BYTES_MAX`].
    pub fn waiting_bytes(&self) -> usize {
        self.input.bytes.len()
    }

    /// Whether [`ServerHandshake::advance`] can make progress: a complete record has arrived, or one that will be refused.
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

    /// Processes the records that have arrived. Appends the bytes to send to `out`, including the alert if the handshake fails.
    /// Do not call it again after [`Progress::Done`] or an error.
    ///
    /// Cost with a P-256 certificate: about 90 us per handshake, of which the ClientHello takes 80 us; 630 us with RSA-2048.
    ///
    /// # Errors
    /// A [`HandshakeError`]; the connection must be closed.
    pub fn advance(
        &mut self,
        config: &Arc<ServerConfig>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, HandshakeError> {
        match self.input.bytes.first() {
            Some(first) if self.connection.is_none() && *first != CONTENT_TYPE_HANDSHAKE => {
                // A native frame begins with its length: the first byte may be any letter, but the second never is one.
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
            let sent = out.len();
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
                let mut established = self.finish(*connection)?;
                if established.is_resumed && has_expired(established.peer.as_ref(), config) {
                    // Without the new ticket: the client has used the old one up, and shows its certificate the next time.
                    out.truncate(sent);
                    established.records.withdraw_tickets();
                    established.records.fatal_alert(CERTIFICATE_EXPIRED, out);
                    return Err(HandshakeError::CertificateExpired);
                }
                return Ok(Progress::Done(established));
            }
        }
    }

    fn finish(&mut self, connection: UnbufferedServerConnection) -> Result<Box<Established>, HandshakeError> {
        let agreed = Agreed::in_connection(&connection);
        let (extracted, _) =
            connection.dangerous_into_kernel_connection().map_err(HandshakeError::Refused)?;
        let (revealed, unopened) =
            (std::mem::take(&mut self.revealed), std::mem::take(&mut self.input.bytes));
        agreed.establish(Role::Server, extracted, revealed, unopened)
    }
}

/// Whether a client's certificate is no longer valid, by the clock that has verified it. Without a clock, it is not.
fn has_expired(peer: Option<&PeerCertificate>, config: &ServerConfig) -> bool {
    let now = config.time_provider.current_time();
    peer.is_some_and(|peer| now.is_none_or(|now| now.as_secs() > peer.ends_s))
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
    /// Begins a handshake with the server of this name. Appends the ClientHello to `out`. The configuration must come from
    /// [`client_config`](crate::certificates::client_config) with `hands_over`.
    ///
    /// # Errors
    /// A [`HandshakeError`] if the handshake cannot begin.
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

    /// Processes bytes from the server. Appends the bytes to send to `out`. Do not call it again after [`Progress::Done`] or an
    /// error.
    ///
    /// # Errors
    /// A [`HandshakeError`]; the connection must be closed.
    pub fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        self.input.bytes.extend_from_slice(bytes);
        while self.input.show_next(RECORD_BYTES_MAX)? {
            if self.process(out)?
                && let Some(connection) = self.connection.take()
            {
                return self.finish(*connection).map(Progress::Done);
            }
        }
        Ok(Progress::Waiting)
    }

    fn process(&mut self, out: &mut Vec<u8>) -> Result<bool, HandshakeError> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        process(&mut **connection, &mut self.input, &mut self.revealed, out)
    }

    fn finish(&mut self, connection: UnbufferedClientConnection) -> Result<Box<Established>, HandshakeError> {
        let agreed = Agreed::in_connection(&connection);
        let (extracted, _) =
            connection.dangerous_into_kernel_connection().map_err(HandshakeError::Refused)?;
        let (revealed, unopened) =
            (std::mem::take(&mut self.revealed), std::mem::take(&mut self.input.bytes));
        agreed.establish(Role::Client, extracted, revealed, unopened)
    }
}

/// Negotiated values, read before the rustls connection is taken apart.
struct Agreed {
    version: Version,
    peer: Option<PeerCertificate>,
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
        Agreed { version, peer: peer.map(PeerCertificate::of), is_resumed }
    }

    fn establish(
        self,
        role: Role,
        extracted: ExtractedSecrets,
        revealed: Revealed,
        unopened: Vec<u8>,
    ) -> Result<Box<Established>, HandshakeError> {
        let Agreed { version, peer, is_resumed } = self;
        let secrets = revealed.secrets.unwrap_or_default();
        let TrafficSecrets { client, server } = &*secrets;
        let (own, other) = match role {
            Role::Client => (client, server),
            Role::Server => (server, client),
        };
        let cipher = cipher(&extracted.tx.1)?;
        // The keys are written where they stay: a move would leave a copy behind.
        let records = RecordLayer::new(role, version, cipher);
        let server_name = revealed.server_name;
        let mut established = Box::new(Established { records, unopened, server_name, peer, is_resumed });
        let (tx, rx) = established.records.keys_mut();
        fill(tx, &extracted.tx, own);
        fill(rx, &extracted.rx, other);
        Ok(established)
    }
}

/// A rustls connection over the caller's buffers.
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

/// Runs rustls on the records that it has been given. Returns whether the handshake is complete.
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
            // The calls after a failed one encode what was queued, the alert last. Pass them the same buffer less `discard`: with
            // a shorter one, rustls panics.
            Err(error) if failed.is_none() => {
                failed = Some(error);
                None
            }
            _ if failed.is_some() => failed.take().map(|error| Err(HandshakeError::Refused(error))),
            Ok(ConnectionState::BlockedHandshake) => Some(Ok(false)),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Ok(true)),
            // Early data or a close. Neither is valid here, and rustls is given nothing after Finished.
            Ok(_) => Some(Err(HandshakeError::Refused(rustls::Error::HandshakeNotComplete))),
            Err(error) => Some(Err(HandshakeError::Refused(error))),
        };
        input.discard(discard);
        if let Some(result) = ended {
            return result;
        }
    }
}

/// Whether rustls rejected a record before looking at its messages. Then the alert is all that it encodes. One more call would
/// reject the record again with a second alert, and debug builds of rustls assert that there is only one.
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

/// Appends the bytes that rustls wants to send.
fn encode(encode: &mut dyn FnMut(&mut [u8]) -> Result<usize, EncodeError>, out: &mut Vec<u8>) {
    let start = out.len();
    if let Err(EncodeError::InsufficientSize(needed)) = encode(&mut []) {
        out.resize(start + needed.required_size, 0);
        let encoded = encode(&mut out[start..]);
        debug_assert!(encoded.is_ok(), "it has the room that it asked for");
        out.truncate(start + encoded.unwrap_or(0));
    }
}

/// The cipher of a connection.
fn cipher(secrets: &ConnectionTrafficSecrets) -> Result<Cipher, HandshakeError> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { .. } => Ok(Cipher::Aes128Gcm),
        ConnectionTrafficSecrets::Aes256Gcm { .. } => Ok(Cipher::Aes256Gcm),
        ConnectionTrafficSecrets::Chacha20Poly1305 { .. } => Ok(Cipher::ChaCha20Poly1305),
        _ => Err(HandshakeError::Refused(rustls::Error::General("an unknown cipher suite".into()))),
    }
}

/// Sets the keys of one direction, whose cipher [`cipher`] knows.
fn fill(keys: &mut Keys, (sequence, secrets): &(u64, ConnectionTrafficSecrets), secret: &Secret) {
    if let ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } = secrets
    {
        let key = key.as_ref();
        keys.key[..key.len()].copy_from_slice(key);
        keys.iv.copy_from_slice(iv.as_ref());
    }
    keys.sequence = *sequence;
    keys.secret.copy_from_slice(&secret.0);
}

impl PeerCertificate {
    /// The certificate must have been verified. One whose end cannot be read has ended.
    fn of(certificate: &CertificateDer<'_>) -> PeerCertificate {
        let ends_s = certificates::validity_s(certificate).map_or(0, |(_, ends_s)| ends_s);
        PeerCertificate { name: name_in(certificate), ends_s }
    }
}

/// The name in a certificate: its first DNS name, or its first URI; `None` if it has neither. The caller must have verified it.
pub fn name_in(certificate: &CertificateDer<'_>) -> Option<Box<str>> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let name = certificate.valid_dns_names().next().or_else(|| certificate.valid_uri_names().next());
    name.map(Into::into)
}

#[cfg(test)]
mod tests;
