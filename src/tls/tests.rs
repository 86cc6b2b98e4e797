//! Shared by the tests: certificates, and a rustls client that connects to our handshake.

use std::{
    cell::Cell,
    io::{Read, Write},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, ServerConfig, SupportedCipherSuite, client::Resumption,
    crypto::ring::cipher_suite, pki_types::ServerName, sign::SingleCertAndKey,
};

use crate::{
    certificates::{self, ALPN_NATIVE, ClientCertificates, Identity, ServerSettings, provider, root_store},
    handshake::{Established, HandshakeError, Progress, ServerHandshake},
    testing::Authority,
    tickets::{TICKET_KEY_BYTES, TicketKeys},
};

/// Every cipher, in both versions.
pub const SUITES: [SupportedCipherSuite; 6] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

thread_local! {
    /// Current time of the servers on this thread, in seconds since 1970.
    pub static NOW_S: Cell<u64> = const { Cell::new(1_900_000_000) };
}

fn now_s() -> u64 {
    NOW_S.get()
}

/// A server configuration with ticket keys made from `seed`.
pub fn server_config(
    identities: &[Identity],
    client_authorities: Option<(&[u8], ClientCertificates)>,
    seed: u8,
) -> Arc<ServerConfig> {
    let keys = TicketKeys::read(&[seed; TICKET_KEY_BYTES]).unwrap();
    let context = client_authorities.map_or(&b""[..], |(pem, _)| pem);
    certificates::server_config(&ServerSettings {
        identities,
        client_authorities,
        only_tls13: false,
        protocols: &[ALPN_NATIVE],
        tickets: Some(TicketKeys::new(&keys, now_s).for_context(context)),
        hands_over: true,
    })
    .unwrap()
}

/// The configuration of a rustls client that offers one suite.
pub fn client_config(
    authority: &Authority,
    suite: SupportedCipherSuite,
    identity: Option<&Identity>,
) -> ClientConfig {
    let mut provider = provider();
    provider.cipher_suites = vec![suite];
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(root_store(authority.own.cert.as_bytes()).unwrap());
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified().clone())))
        }
    };
    config.alpn_protocols = vec![ALPN_NATIVE.to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    config
}

/// A rustls client, and our end of its connection.
pub struct Pair {
    pub client: ClientConnection,
    pub server: Established,
    /// Bytes from the client, still encrypted.
    pub sealed: Vec<u8>,
}

/// Performs a handshake, `step` bytes at a time, with a client that writes `early` first, so that it arrives directly after its
/// Finished. Returns both ends' errors if it fails.
pub fn connect(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    name: &str,
    early: &[u8],
    step: usize,
) -> Result<Pair, Box<(HandshakeError, Option<rustls::Error>)>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    client.writer().write_all(early).unwrap();
    let mut handshake = ServerHandshake::default();
    loop {
        let (sent, mut out) = (take_from(&mut client), Vec::new());
        assert!(!sent.is_empty(), "the handshake goes on");
        let mut pieces = sent.chunks(step);
        while let Some(piece) = pieces.next() {
            handshake.push(piece);
            match handshake.advance(server, &mut out) {
                Ok(Progress::Waiting) => assert!(!handshake.can_advance()),
                Ok(Progress::Done(established)) => {
                    deliver(&mut client, &out).unwrap();
                    let mut sealed = established.unopened.clone();
                    pieces.for_each(|piece| sealed.extend_from_slice(piece));
                    return Ok(Pair { client, server: *established, sealed });
                }
                Err(error) => return Err(Box::new((error, deliver(&mut client, &out).err()))),
            }
        }
        if let Err(error) = deliver(&mut client, &out) {
            return Err(Box::new((HandshakeError::NotTls, Some(error))));
        }
    }
}

/// Takes the bytes that a rustls client wants to send.
pub fn take_from(client: &mut ClientConnection) -> Vec<u8> {
    let mut sent = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sent).unwrap();
    }
    sent
}

/// Delivers bytes to a rustls client.
pub fn deliver(client: &mut ClientConnection, mut bytes: &[u8]) -> Result<(), rustls::Error> {
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

impl Pair {
    pub fn new(suite: SupportedCipherSuite) -> Pair {
        let authority = Authority::new("authority");
        let server = server_config(&[authority.identity(&["a.test"])], None, 1);
        connect(&server, &Arc::new(client_config(&authority, suite, None)), "a.test", b"", 1 << 20).unwrap()
    }

    /// Encrypts bytes for the client, checks that it reads them, and returns the length of the records.
    pub fn send_to_client(&mut self, plaintext: &[u8]) -> usize {
        let mut out = Vec::new();
        self.server.records.seal(plaintext, &mut out);
        let (mut read, mut buffer) = (Vec::new(), vec![0; 1 << 14]);
        for bytes in out.chunks(1 << 14) {
            deliver(&mut self.client, bytes).unwrap();
            while let Ok(len) = self.client.reader().read(&mut buffer) {
                read.extend_from_slice(&buffer[..len]);
            }
        }
        assert!(read == plaintext, "all of it, in order");
        out.len()
    }

    /// Delivers what the client wants to send, and returns the plaintext and the outcome.
    pub fn send_to_server(&mut self, plaintext: &[u8]) -> (Vec<u8>, crate::record::Outcome) {
        self.client.writer().write_all(plaintext).unwrap();
        self.sealed.extend(take_from(&mut self.client));
        self.open()
    }

    pub fn open(&mut self) -> (Vec<u8>, crate::record::Outcome) {
        let opened = self.server.records.open(&mut self.sealed);
        let plaintext = self.sealed[..opened.plaintext].to_vec();
        self.sealed.drain(..opened.used);
        (plaintext, opened.outcome)
    }
}
