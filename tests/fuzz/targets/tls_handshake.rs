//! A server's TLS handshake: the client's bytes in pieces, after a good ClientHello or from the beginning.

#![no_main]

use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tickcast_tls::{
    certificates::{
        ClientSettings, Identity, ServerSettings, ServerTrust, client_config, root_store, server_config,
    },
    handshake::{ClientHandshake, Progress, ServerHandshake},
    tickets::TicketKeys,
};

static CONFIGS: LazyLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identities = [Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap()];
    let server = server_config(&ServerSettings {
        identities: &identities,
        client_authorities: None,
        only_tls13: false,
        protocols: &[b"tickcast"],
        tickets: TicketKeys::random().unwrap().for_context(b""),
        hands_over: true,
    });
    let client = client_config(ClientSettings {
        trust: ServerTrust::Authorities(root_store(cert.as_bytes()).unwrap()),
        identity: None,
        protocols: &[b"tickcast"],
        hands_over: true,
    });
    (server.unwrap(), client.unwrap())
});

libfuzzer_sys::fuzz_target!(|input: (bool, u8, &[u8])| {
    let (has_hello, cut, bytes) = input;
    let (server, client) = &*CONFIGS;
    let mut sent = Vec::new();
    if has_hello {
        let name = ServerName::try_from("a.test").unwrap();
        ClientHandshake::new(client.clone(), name, &mut sent).unwrap();
    }
    sent.extend_from_slice(bytes);
    let (mut handshake, mut out) = (ServerHandshake::default(), Vec::new());
    for piece in sent.chunks(usize::from(cut).max(1)) {
        handshake.push(piece);
        match handshake.advance(server, &mut out) {
            Ok(Progress::Waiting) => assert!(!handshake.can_advance()),
            Ok(Progress::Done(_)) => panic!("nobody knows the secrets"),
            Err(_) => return,
        }
        assert!(out.len() < 1 << 16, "what is answered has a bound");
    }
});
