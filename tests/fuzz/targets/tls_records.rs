//! The record layer after a handshake: good records between any bytes, in pieces.

#![no_main]

use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tickcast_tls::{
    certificates::{
        ClientSettings, Identity, ServerSettings, ServerTrust, client_config, root_store, server_config,
    },
    handshake::{ClientHandshake, Established, Progress, ServerHandshake},
    record::Outcome,
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
        protocols: &[],
        tickets: TicketKeys::random().unwrap().for_context(b""),
        hands_over: true,
    });
    let client = client_config(ClientSettings {
        trust: ServerTrust::Authorities(root_store(cert.as_bytes()).unwrap()),
        identity: None,
        protocols: &[],
        hands_over: true,
    });
    (server.unwrap(), client.unwrap())
});

/// Both ends of a connection.
fn connect() -> (Box<Established>, Box<Established>) {
    let (server, client) = &*CONFIGS;
    let (mut hello, mut flight, mut finished) = (Vec::new(), Vec::new(), Vec::new());
    let name = ServerName::try_from("a.test").unwrap();
    let mut client = ClientHandshake::new(client.clone(), name, &mut hello).unwrap();
    let mut handshake = ServerHandshake::default();
    handshake.push(&hello);
    assert!(matches!(handshake.advance(server, &mut flight), Ok(Progress::Waiting)));
    let Ok(Progress::Done(client)) = client.advance(&flight, &mut finished) else { panic!() };
    handshake.push(&finished);
    let Ok(Progress::Done(server)) = handshake.advance(server, &mut Vec::new()) else { panic!() };
    (server, client)
}

libfuzzer_sys::fuzz_target!(|input: (u8, Vec<(bool, &[u8])>)| {
    let (cut, parts) = input;
    let (mut server, mut client) = connect();
    let (mut sent, mut expected, mut is_good) = (Vec::new(), Vec::new(), true);
    for (is_sealed, bytes) in parts {
        if is_sealed {
            client.records.seal(bytes, &mut sent);
            if is_good {
                expected.extend_from_slice(bytes);
            }
        } else if !bytes.is_empty() {
            sent.extend_from_slice(bytes);
            is_good = false;
        }
    }
    let (mut waiting, mut opened) = (Vec::new(), Vec::new());
    for piece in sent.chunks(usize::from(cut).max(1)) {
        waiting.extend_from_slice(piece);
        let done = server.records.open(&mut waiting);
        assert!(done.plaintext <= done.used && done.used <= waiting.len());
        opened.extend_from_slice(&waiting[..done.plaintext]);
        if done.outcome != Outcome::Open {
            assert!(!is_good);
            break;
        }
        waiting.drain(..done.used);
    }
    assert_eq!(opened, expected, "what was sealed, and nothing that was not");
});
