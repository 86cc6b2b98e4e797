use std::{io::Write, time::Duration};

use rustls::{
    AlertDescription, ClientConnection, Error, client::Tls12Resumption, pki_types::UnixTime,
    time_provider::TimeProvider,
};

use super::*;
use crate::{
    certificates::{
        ALPN_NATIVE, ClientCertificates, ClientSettings, Identity, ServerTrust,
        client_config as own_client_config, root_store,
    },
    record::Outcome,
    testing::{Authority, Signed},
    tests::{NOW_S, Pair, SUITES, client_config, connect, server_config, take_from},
    tickets::TICKET_LIFETIME_S,
};

#[test]
fn what_follows_finished_at_once_is_opened_by_the_record_layer_however_it_is_cut() {
    let authority = Authority::new("authority");
    let server = server_config(&[authority.identity(&["a.test"])], None, 1);
    for suite in [SUITES[0], SUITES[3]] {
        for step in [1, 2, 7, 100, 1 << 20] {
            let client = Arc::new(client_config(&authority, suite, None));
            let mut pair = connect(&server, &client, "a.test", b"hello at once", step).unwrap();
            let (early, outcome) = pair.open();
            assert_eq!(outcome, Outcome::Open);
            // In TLS 1.2 the client waits for the server's Finished.
            assert_eq!(early, if suite == SUITES[0] { &b"hello at once"[..] } else { b"" }, "{step}");
            assert_eq!(pair.server.server_name.as_deref(), Some("a.test"));
            assert_eq!(pair.client.alpn_protocol(), Some(ALPN_NATIVE));
            pair.send_to_client(b"and back");
        }
    }
}

#[test]
fn a_ticket_resumes_a_session_on_another_thread_with_other_certificates_if_the_keys_are_the_same() {
    let authority = Authority::new("authority");
    let first = server_config(&[authority.identity(&["a.test"])], None, 1);
    for suite in [SUITES[0], SUITES[1], SUITES[3]] {
        let client = Arc::new(client_config(&authority, suite, None));
        assert!(!connect(&first, &client, "a.test", b"", 1 << 20).unwrap().server.is_resumed);
        for (seed, is_resumed) in [(1, true), (2, false)] {
            let next = server_config(&[authority.identity(&["a.test"])], None, seed);
            let client = client.clone();
            let pair = std::thread::spawn(move || connect(&next, &client, "a.test", b"", 1 << 20).unwrap());
            let mut pair = pair.join().unwrap();
            assert_eq!(pair.server.is_resumed, is_resumed);
            pair.send_to_client(b"on we go");
        }
    }
}

#[test]
fn a_client_without_tickets_is_not_resumed_by_its_session_id() {
    let authority = Authority::new("authority");
    let server = server_config(&[authority.identity(&["a.test"])], None, 1);
    for (resumption, is_resumed) in
        [(Tls12Resumption::SessionIdOrTickets, true), (Tls12Resumption::SessionIdOnly, false)]
    {
        let mut client = client_config(&authority, SUITES[3], None);
        client.resumption = client.resumption.tls12_resumption(resumption);
        let client = Arc::new(client);
        connect(&server, &client, "a.test", b"", 1 << 20).unwrap();
        let pair = connect(&server, &client, "a.test", b"", 1 << 20).unwrap();
        assert_eq!(pair.server.is_resumed, is_resumed, "{resumption:?}");
    }
}

#[test]
fn an_old_ticket_leads_to_a_full_handshake_although_its_key_is_in_use_after_a_restart() {
    let authority = Authority::new("authority");
    let identities = [authority.identity(&["a.test"])];
    for suite in [SUITES[0], SUITES[3]] {
        let start_s = NOW_S.get();
        let client = || Arc::new(client_config(&authority, suite, None));
        for (age_s, is_resumed) in
            [(u64::from(TICKET_LIFETIME_S), true), (u64::from(TICKET_LIFETIME_S) + 1, false)]
        {
            NOW_S.set(start_s);
            let client = client();
            connect(&server_config(&identities, None, 1), &client, "a.test", b"", 1 << 20).unwrap();
            NOW_S.set(start_s + age_s);
            // Another configuration with keys from the same file.
            let restarted = server_config(&identities, None, 1);
            let mut pair = connect(&restarted, &client, "a.test", b"", 1 << 20).unwrap();
            assert_eq!(pair.server.is_resumed, is_resumed, "{suite:?} {age_s}");
            pair.send_to_client(b"on we go");
        }
        NOW_S.set(start_s);
    }
}

#[test]
fn a_client_certificate_gives_the_name_and_one_of_another_authority_is_refused() {
    let authority = Authority::new("authority");
    let (ours, theirs) = (Authority::new("clients"), Authority::new("other clients"));
    let identities = [authority.identity(&["a.test"])];
    let server = |authorities: &Authority, wanted| {
        server_config(&identities, Some((authorities.own.cert.as_bytes(), wanted)), 1)
    };
    let optional = server(&ours, ClientCertificates::Optional);
    let required = server(&ours, ClientCertificates::Required);
    let desk = ours.identity(&["desk1.example", "urn:desk1"]);
    let by_uri = ours.identity(&["urn:desk2"]);
    let stranger = theirs.identity(&["desk1.example"]);
    for suite in [SUITES[0], SUITES[3]] {
        let with = |identity| Arc::new(client_config(&authority, suite, identity));
        let name = |server: &Arc<ServerConfig>, client: &Arc<ClientConfig>| {
            let pair = connect(server, client, "a.test", b"early", 3).unwrap();
            pair.server.peer.and_then(|peer| peer.name).map(String::from)
        };
        assert_eq!(name(&required, &with(Some(&desk))).as_deref(), Some("desk1.example"));
        assert_eq!(name(&optional, &with(Some(&by_uri))).as_deref(), Some("urn:desk2"));
        assert_eq!(name(&optional, &with(None)), None);
        for (client, refused) in [
            (with(None), AlertDescription::CertificateRequired),
            (with(Some(&stranger)), AlertDescription::UnknownCA),
        ] {
            let (_, heard) = *connect(&required, &client, "a.test", b"", 1 << 20).err().unwrap();
            let alert = match (suite == SUITES[0], refused) {
                // TLS 1.2 has no specific alert for it (RFC 5246, section 7.4.6).
                (false, AlertDescription::CertificateRequired) => AlertDescription::HandshakeFailure,
                (_, refused) => refused,
            };
            let heard = heard.unwrap();
            assert!(
                heard == Error::AlertReceived(alert) || heard == Error::AlertReceived(refused),
                "{heard:?}"
            );
        }
        // A ticket vouches for the certificate: it is invalid where other authorities are accepted.
        let client = with(Some(&desk));
        connect(&required, &client, "a.test", b"", 1 << 20).unwrap();
        assert!(connect(&required, &client, "a.test", b"", 1 << 20).unwrap().server.is_resumed);
        let moved = server(&theirs, ClientCertificates::Required);
        assert!(connect(&moved, &client, "a.test", b"", 1 << 20).is_err());
    }
}

/// The clock of [`NOW_S`].
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(NOW_S.get())))
    }
}

#[test]
fn a_session_is_resumed_only_until_the_end_of_the_certificate_that_began_it() {
    let (authority, clients) = (Authority::new("authority"), Authority::new("clients"));
    let start_s = NOW_S.get();
    let Signed { cert, key } = clients.sign_until(&["desk1.example"], start_s + 100);
    let desk = Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap();
    let wanted = (clients.own.cert.as_bytes(), ClientCertificates::Required);
    let mut server = (*server_config(&[authority.identity(&["a.test"])], Some(wanted), 1)).clone();
    server.time_provider = Arc::new(Clock);
    let server = Arc::new(server);
    for suite in [SUITES[0], SUITES[3]] {
        let connect_at = |client: &Arc<ClientConfig>, at_s: u64| {
            NOW_S.set(start_s + at_s);
            let result = connect(&server, client, "a.test", b"", 1 << 20);
            NOW_S.set(start_s);
            result
        };
        let client = Arc::new(client_config(&authority, suite, Some(&desk)));
        assert!(!connect_at(&client, 0).unwrap().server.is_resumed);
        let last = connect_at(&client, 100).unwrap().server;
        assert!(last.is_resumed);
        let peer = PeerCertificate { name: Some("desk1.example".into()), ends_s: start_s + 100 };
        assert_eq!(last.peer, Some(peer));
        let (ours, heard) = *connect_at(&client, 101).err().unwrap();
        assert_eq!(ours, HandshakeError::CertificateExpired, "{suite:?}");
        assert_eq!(heard, Some(Error::AlertReceived(AlertDescription::CertificateExpired)), "{suite:?}");
        if suite == SUITES[0] {
            // It has no ticket left, and shows its certificate.
            let (ours, _) = *connect_at(&client, 101).err().unwrap();
            assert!(matches!(ours, HandshakeError::Refused(Error::InvalidCertificate(_))), "{ours:?}");
        }
    }
}

#[test]
fn a_client_that_offers_only_other_protocols_is_refused() {
    let authority = Authority::new("authority");
    let server = server_config(&[authority.identity(&["a.test"])], None, 1);
    let mut client = client_config(&authority, SUITES[0], None);
    client.alpn_protocols = vec![b"h2".to_vec()];
    let (ours, theirs) = *connect(&server, &Arc::new(client), "a.test", b"", 1 << 20).err().unwrap();
    assert_eq!(ours, HandshakeError::Refused(Error::NoApplicationProtocol));
    assert_eq!(theirs, Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
}

#[test]
fn the_name_chooses_the_certificate_and_the_first_serves_everybody_else() {
    let authority = Authority::new("authority");
    let names: [&[&str]; 3] = [&["a.test", "127.0.0.1", "localhost"], &["*.b.test"], &["x.b.test"]];
    let identities = names.map(|names| authority.identity(names));
    let server = server_config(&identities, None, 1);
    for (name, at) in
        [("a.test", 0), ("127.0.0.1", 0), ("localhost", 0), ("y.b.test", 1), ("Y.B.TEST", 1), ("x.b.test", 2)]
    {
        let client = Arc::new(client_config(&authority, SUITES[0], None));
        let pair = connect(&server, &client, name, b"", 1 << 20).unwrap();
        let shown = &pair.client.peer_certificates().unwrap()[0];
        assert_eq!(*shown, identities[at].certified().cert[0], "{name}");
    }
    // A wildcard matches neither two labels nor none: the server presents its first certificate, which the client rejects.
    for name in ["z.y.b.test", "b.test"] {
        let client = Arc::new(client_config(&authority, SUITES[0], None));
        assert!(connect(&server, &client, name, b"", 1 << 20).is_err(), "{name}");
    }
}

#[test]
fn our_client_and_our_server_understand_each_other_and_tickets_are_skipped() {
    let authority = Authority::new("authority");
    let identity = authority.identity(&["a.test"]);
    let server = server_config(&[identity], None, 1);
    let config = own_client_config(ClientSettings {
        trust: ServerTrust::Authorities(root_store(authority.own.cert.as_bytes()).unwrap()),
        identity: None,
        protocols: &[ALPN_NATIVE],
        hands_over: true,
    })
    .unwrap();
    let name = ServerName::try_from("a.test").unwrap();
    let mut to_server = Vec::new();
    let mut client = ClientHandshake::new(config, name, &mut to_server).unwrap();
    let (mut handshake, mut to_client) = (ServerHandshake::default(), Vec::new());
    handshake.push(&to_server);
    assert!(matches!(handshake.advance(&server, &mut to_client), Ok(Progress::Waiting)));
    let mut finished = Vec::new();
    let Progress::Done(mut client) = client.advance(&to_client, &mut finished).unwrap() else {
        panic!("the server's flight is complete")
    };
    client.records.seal(b"hello", &mut finished);
    handshake.push(&finished);
    let mut to_client = Vec::new();
    let Progress::Done(mut server) = handshake.advance(&server, &mut to_client).unwrap() else {
        panic!("the client's flight is complete")
    };
    let mut early = server.unopened;
    let opened = server.records.open(&mut early);
    assert_eq!((&early[..opened.plaintext], opened.outcome), (&b"hello"[..], Outcome::Open));
    // The ticket is sent before the first tick.
    assert!(!to_client.is_empty());
    server.records.seal(b"tick", &mut to_client);
    let opened = client.records.open(&mut to_client);
    assert_eq!((&to_client[..opened.plaintext], opened.outcome), (&b"tick"[..], Outcome::Open));
}

#[test]
fn bad_beginnings_are_refused_for_what_they_are() {
    let server = server_config(&[Authority::new("authority").identity(&["a.test"])], None, 1);
    let feed = |bytes: &[u8], step: usize| {
        let (mut handshake, mut out) = (ServerHandshake::default(), Vec::new());
        for piece in bytes.chunks(step) {
            handshake.push(piece);
            match handshake.advance(&server, &mut out) {
                Ok(Progress::Waiting) => {}
                Ok(Progress::Done(_)) => panic!("no handshake"),
                Err(error) => return Err((error, out)),
            }
        }
        Ok(out)
    };
    assert_eq!(feed(b"GET / HTTP/1.1\r\n\r\n", 1), Err((HandshakeError::PlainHttp, vec![])));
    assert_eq!(
        feed(b"P\0\0\0tc", 6),
        Err((HandshakeError::NotTls, NOT_TLS_RECORD.to_vec())),
        "a native frame"
    );
    // An SSL 2 ClientHello.
    assert_eq!(feed(b"\x80\x2e\x01\x03\x01", 1), Err((HandshakeError::NotTls, NOT_TLS_RECORD.to_vec())));
    // A ClientHello of more than 8 KiB, refused by its header alone.
    let (error, out) = feed(&[22, 3, 1, 0x20, 0], 1).unwrap_err();
    assert_eq!((error, &out[..]), (HandshakeError::TooLong, &RECORD_OVERFLOW_RECORD[..]));
    // A ClientHello that never ends, record after record.
    let begins = [&[22, 3, 1, 0x1f, 0xf0, 1, 0, 0xff, 0xff][..], &[0; 0x1fec]].concat();
    let goes_on = [&[22, 3, 1, 0x1f, 0xf0][..], &[0; 0x1ff0]].concat().repeat(8);
    assert!(feed(&[begins, goes_on].concat(), 1_000).is_err());
    // Garbage instead of a ClientHello, and TLS 1.1.
    let nonsense = [22, 3, 1, 0, 6, 1, 0, 0, 2, 9, 9];
    let mut tls11 = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 2];
    tls11.extend_from_slice(&[5; 32]);
    tls11.extend_from_slice(&[0, 0, 2, 0xc0, 0x2b, 1, 0]);
    for bytes in [&nonsense[..], &tls11] {
        let (error, out) = feed(bytes, 1 << 20).unwrap_err();
        assert!(matches!(error, HandshakeError::Refused(_)));
        assert_eq!(out[..5], [21, 3, 3, 0, 2], "an alert");
    }
}

#[test]
fn no_mutation_of_a_clients_bytes_panics_or_completes_a_handshake() {
    let (authority, clients) = (Authority::new("authority"), Authority::new("clients"));
    let wanted = (clients.own.cert.as_bytes(), ClientCertificates::Optional);
    let server = server_config(&[authority.identity(&["a.test"])], Some(wanted), 1);
    let mut config = client_config(&authority, SUITES[0], Some(&clients.identity(&["desk"])));
    config.max_fragment_size = Some(64);
    let config = Arc::new(config);
    let mut client = ClientConnection::new(config.clone(), ServerName::try_from("a.test").unwrap()).unwrap();
    let mut recorded = take_from(&mut client);
    recorded.extend_from_slice(&[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 40]);
    recorded.extend_from_slice(&[9; 100]);
    let mut random = fastrand::Rng::with_seed(7);
    let mut refused = 0;
    for _ in 0..4_000 {
        let mut bytes = recorded.clone();
        for _ in 0..random.usize(..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(..=bytes.len()));
        let (mut handshake, mut out) = (ServerHandshake::default(), Vec::new());
        for piece in bytes.chunks(1 + random.usize(..200)) {
            handshake.push(piece);
            match handshake.advance(&server, &mut out) {
                Ok(Progress::Waiting) => continue,
                Ok(Progress::Done(_)) => panic!("nobody has finished it"),
                Err(_) => refused += 1,
            }
            break;
        }
    }
    assert!(refused > 100);
    // Certificates and Finished in records of 64 bytes, followed by more bytes than a handshake may have.
    for step in [1, 50, 1 << 20] {
        let mut pair = connect(&server, &config, "a.test", &[5; 60_000], step).unwrap();
        let (early, outcome) = pair.open();
        assert!(pair.server.peer.is_some() && outcome == Outcome::Open && early == [5; 60_000]);
    }
}

#[test]
fn a_handshake_waits_for_a_whole_record_only() {
    let mut pair = Pair::new(SUITES[0]);
    pair.client.writer().write_all(b"x").unwrap();
    let hello = take_from(&mut pair.client);
    let mut handshake = ServerHandshake::default();
    // Application data cannot begin a handshake: it is refused at once.
    handshake.push(&hello[..1]);
    assert!(handshake.can_advance());
    let mut handshake = ServerHandshake::default();
    handshake.push(&[22, 3, 1, 0, 3, 1]);
    assert!(!handshake.can_advance());
    handshake.push(&[0, 0]);
    assert!(handshake.can_advance());
}
