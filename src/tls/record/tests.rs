use std::io::{Read, Write};

use rustls::{AlertDescription, Error};

use super::*;
use crate::tests::{Pair, SUITES, deliver, take_from};

const DATA: u8 = ContentType::APPLICATION_DATA.0;
const ALERT: u8 = ContentType::ALERT.0;
const HANDSHAKE: u8 = ContentType::HANDSHAKE.0;
const UPDATE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];

impl Keys {
    fn copy(&self) -> Keys {
        Keys { sequence: self.sequence, key: self.key, iv: self.iv, secret: self.secret }
    }
}

/// A record layer of the same connection, with copies of these keys.
fn with_keys(role: Role, of: &RecordLayer, tx: &Keys, rx: &Keys) -> RecordLayer {
    RecordLayer { tx: tx.copy(), rx: rx.copy(), ..RecordLayer::new(role, of.version, of.cipher) }
}

/// A server's record layer, and that of its peer, which can make records of any kind.
fn ends(suite: rustls::SupportedCipherSuite) -> (RecordLayer, RecordLayer) {
    let server = Pair::new(suite).server.records;
    let client = with_keys(Role::Client, &server, &server.rx, &server.tx);
    (server, client)
}

impl RecordLayer {
    /// Seals a record of any type, with zeros after the type.
    fn forge(&mut self, kind: u8, content: &[u8], padding: usize, out: &mut Vec<u8>) {
        let key = self.tx.expand(self.cipher);
        if padding == 0 {
            return self.seal_record(&key, ContentType(kind), content, out);
        }
        // The type that the layer appends takes the place of the last zero.
        let mut padded = [content, &[kind]].concat();
        padded.resize(content.len() + padding, 0);
        self.seal_record(&key, ContentType(0), &padded, out);
    }

    /// Decrypts these bytes, and returns the plaintext and the outcome.
    fn opened(&mut self, bytes: &mut [u8]) -> (Vec<u8>, Outcome) {
        let opened = self.open(bytes);
        (bytes[..opened.plaintext].to_vec(), opened.outcome)
    }
}

#[test]
fn every_suite_carries_both_ways_and_closes() {
    let log: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        for _ in 0..3 {
            pair.send_to_client(&log);
            let (plaintext, outcome) = pair.send_to_server(&log[..60_000]);
            assert!(plaintext == log[..60_000] && outcome == Outcome::Open);
        }
        for len in [1, PLAINTEXT_BYTES_MAX, PLAINTEXT_BYTES_MAX + 1, 32 << 10] {
            assert!(pair.send_to_client(&log[..len]) - len <= overhead_bytes_max(len), "{len}");
        }
        assert_eq!(pair.send_to_client(b""), 0, "nothing is no record");
        pair.client.send_close_notify();
        assert_eq!(pair.send_to_server(b""), (vec![], Outcome::Closed));
        let mut out = Vec::new();
        pair.server.records.close_notify(&mut out);
        deliver(&mut pair.client, &out).unwrap();
        assert_eq!(pair.client.reader().read(&mut [0]).unwrap(), 0, "a clean end, no truncation");
    }
}

#[test]
fn key_updates_of_both_sides_are_followed() {
    for suite in &SUITES[..3] {
        let mut pair = Pair::new(*suite);
        for _ in 0..3 {
            pair.client.refresh_traffic_keys().unwrap();
            assert_eq!(
                pair.send_to_server(b"under the new key"),
                (b"under the new key".to_vec(), Outcome::Open)
            );
            assert!(pair.server.records.owes_key_update);
            pair.send_to_client(b"our KeyUpdate goes first");
            assert!(!pair.server.records.owes_key_update && pair.server.records.tx.sequence == 1);
        }
        // Even if asked twice before it sends, it answers once.
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.refresh_traffic_keys().unwrap();
        assert_eq!(pair.send_to_server(b""), (vec![], Outcome::Open));
        pair.send_to_client(b"once");
        assert_eq!(pair.server.records.tx.sequence, 1);
        // The server updates by itself when a key has sealed its maximum, even within one call.
        pair.server.records.tx.sequence = RECORDS_PER_KEY_MAX - 1;
        let (mut client, mut out) = (ends(*suite).1, Vec::new());
        client.rx = pair.server.records.tx.copy();
        client.cipher = pair.server.records.cipher;
        pair.server.records.seal(&[9; 40_000], &mut out);
        assert_eq!(pair.server.records.tx.sequence, 2);
        assert_eq!(client.opened(&mut out), (vec![9; 40_000], Outcome::Open));
    }
}

#[test]
fn a_tls_1_2_connection_is_used_up_in_time_for_its_goodbye_and_then_seals_nothing() {
    let mut pair = Pair::new(SUITES[3]);
    let records = &mut pair.server.records;
    assert!(!records.is_used_up());
    records.tx.sequence = RECORDS_PER_KEY_MAX;
    assert!(records.is_used_up());
    let mut out = Vec::new();
    records.seal(b"goodbye", &mut out);
    assert!(!out.is_empty());
    records.tx.sequence = RECORDS_PER_KEY_END;
    out.clear();
    records.seal(b"never", &mut out);
    assert!(out.is_empty());
}

#[test]
fn each_kind_of_record_has_its_outcome() {
    use Outcome::{Broken, Closed, Failed, Open};
    type Records<'a> = &'a [(u8, &'a [u8], usize)]; // type, content, padding
    const EMPTY: (u8, &[u8], usize) = (DATA, b"", 0);
    let long = vec![1; PLAINTEXT_BYTES_MAX + 1];
    let cases: &[(Records<'_>, &[u8], Outcome)] = &[
        (&[(DATA, b"", 0), (DATA, b"a", 300), (DATA, b"", 5), (DATA, b"b", 0)], b"ab", Open),
        (&[(DATA, &long[1..], 0)], &long[1..], Open),
        (&[(DATA, &long, 0)], b"", Broken(Alert::RECORD_OVERFLOW)),
        // The maximum is 2^14 + 1 + 239 + 16 bytes; one more is refused by the header.
        (&[(DATA, &long[1..], 239)], &long[1..], Open),
        (&[(DATA, &long[1..], 240)], b"", Broken(Alert::RECORD_OVERFLOW)),
        (&[(0, b"", 40)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        (&[(DATA, b"last", 0), (ALERT, &[1, 0], 0)], b"last", Closed),
        (&[(ALERT, &[2, 0], 7)], b"", Closed),
        (&[(ALERT, &[1, 90], 0), (ALERT, &[1, 0], 0)], b"", Closed),
        (&[(ALERT, &[2, 42], 0)], b"", Failed(Alert(42))),
        (&[(ALERT, &[1], 0)], b"", Broken(Alert::DECODE_ERROR)),
        (&[(ALERT, &[1, 0, 1, 0], 0)], b"", Broken(Alert::DECODE_ERROR)),
        (&[(HANDSHAKE, b"", 0)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        // A ClientHello, and a ticket, which only servers may send.
        (&[(HANDSHAKE, &[1, 0, 0, 0], 0)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        (&[(HANDSHAKE, &[4, 0, 0, 0], 0)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        (&[(HANDSHAKE, &[24, 0, 0, 1, 2], 0)], b"", Broken(Alert::ILLEGAL_PARAMETER)),
        (&[(HANDSHAKE, &[24, 0, 0, 2, 0], 0)], b"", Broken(Alert::DECODE_ERROR)),
        (&[(HANDSHAKE, &[UPDATE, UPDATE].concat(), 0)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        (&[(HANDSHAKE, &[24, 0], 0), (DATA, b"x", 0)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        (&[(HANDSHAKE, &[24, 0], 0), (HANDSHAKE, &[0, 1, 0], 0)], b"", Open),
        (&[(HANDSHAKE, &UPDATE, 0), (DATA, b"old key", 0)], b"", Broken(Alert::BAD_RECORD_MAC)),
        (&[(20, &[1], 0)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        (&[(99, &[1], 0)], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
        (&[EMPTY; 32], b"", Open),
        (&[EMPTY; 33], b"", Broken(Alert::UNEXPECTED_MESSAGE)),
    ];
    for suite in &SUITES[..3] {
        for (number, (records, plaintext, outcome)) in cases.iter().enumerate() {
            let ((mut server, mut client), mut bytes) = (ends(*suite), Vec::new());
            for (kind, content, padding) in *records {
                client.forge(*kind, content, *padding, &mut bytes);
            }
            assert_eq!(server.opened(&mut bytes), (plaintext.to_vec(), *outcome), "case {number}");
        }
    }
}

#[test]
fn what_is_not_protected_is_refused() {
    for suite in &SUITES[..3] {
        for (bytes, alert) in [
            // Unencrypted close_notify and change_cipher_spec, a ClientHello, HTTP.
            (&[21, 3, 3, 0, 2, 1, 0][..], Alert::UNEXPECTED_MESSAGE),
            (&[20, 3, 3, 0, 1, 1], Alert::UNEXPECTED_MESSAGE),
            (&[22, 3, 1, 0, 200, 1], Alert::UNEXPECTED_MESSAGE),
            (b"GET / HTTP/1.1\r\n", Alert::UNEXPECTED_MESSAGE),
            // 2^14 + 257, refused before it has arrived.
            (&[23, 3, 3, 0x41, 1], Alert::RECORD_OVERFLOW),
            (&[23, 3, 3, 0, 0], Alert::BAD_RECORD_MAC),
        ] {
            let mut bytes = bytes.to_vec();
            assert_eq!(ends(*suite).0.opened(&mut bytes), (vec![], Outcome::Broken(alert)), "{bytes:?}");
        }
    }
}

#[test]
fn a_flipped_bit_is_refused_with_an_alert_that_the_client_understands() {
    for suite in SUITES {
        let mut pair = Pair::new(suite);
        pair.client.writer().write_all(b"ticks").unwrap();
        pair.sealed = take_from(&mut pair.client);
        *pair.sealed.last_mut().unwrap() ^= 1;
        let (plaintext, outcome) = pair.open();
        assert_eq!((plaintext, outcome), (vec![], Outcome::Broken(Alert::BAD_RECORD_MAC)));
        let mut out = Vec::new();
        pair.server.records.fatal_alert(Alert::BAD_RECORD_MAC, &mut out);
        let heard = deliver(&mut pair.client, &out).unwrap_err();
        assert_eq!(heard, Error::AlertReceived(AlertDescription::BadRecordMac));
    }
}

#[test]
fn a_flood_of_key_updates_ends_the_connection_even_with_data_between_them() {
    let (mut server, mut client) = ends(SUITES[0]);
    for round in 0.. {
        let mut bytes = Vec::new();
        let key = client.tx.expand(client.cipher);
        client.update_tx(&key, &mut bytes);
        client.seal(b"x", &mut bytes);
        match server.opened(&mut bytes) {
            (plaintext, Outcome::Open) => assert_eq!(plaintext, b"x"),
            (_, outcome) => {
                assert_eq!((outcome, round), (Outcome::Broken(Alert::UNEXPECTED_MESSAGE), KEY_UPDATES_BURST));
                return;
            }
        }
    }
}

#[test]
fn who_sends_much_may_update_keys_as_often_as_it_needs() {
    let (mut server, mut client) = ends(SUITES[0]);
    for _ in 0..4 * KEY_UPDATES_BURST {
        let mut bytes = Vec::new();
        let key = client.tx.expand(client.cipher);
        client.update_tx(&key, &mut bytes);
        client.seal(&[0; BYTES_PER_KEY_UPDATE as usize], &mut bytes);
        assert_eq!(server.opened(&mut bytes).1, Outcome::Open);
    }
}

#[test]
fn a_client_skips_tickets_whole_or_in_pieces() {
    let (mut server, mut client) = ends(SUITES[0]);
    let ticket = [&[NEW_SESSION_TICKET, 0, 0, 200][..], &[7; 200]].concat();
    let mut bytes = Vec::new();
    server.forge(HANDSHAKE, &[&ticket[..], &ticket].concat(), 0, &mut bytes);
    for piece in ticket.chunks(3) {
        server.forge(HANDSHAKE, piece, 0, &mut bytes);
    }
    // More than 32 fragments in a row without application data.
    assert_eq!(client.opened(&mut bytes).1, Outcome::Broken(Alert::UNEXPECTED_MESSAGE));
    let ((mut server, mut client), mut bytes) = (ends(SUITES[0]), Vec::new());
    for piece in ticket.chunks(50) {
        server.forge(HANDSHAKE, piece, 0, &mut bytes);
    }
    server.seal(b"tick", &mut bytes);
    assert_eq!(client.opened(&mut bytes), (b"tick".to_vec(), Outcome::Open));
}

#[test]
fn a_connection_that_moves_leaves_no_keys_behind() {
    let (mut before, mut client) = ends(SUITES[0]);
    let mut after = RecordLayer::VACANT;
    before.take_into(&mut after);
    for keys in [&before.tx, &before.rx] {
        assert_eq!((keys.key, keys.iv, keys.secret), ([0; 32], [0; 12], [0; 48]));
    }
    let mut bytes = Vec::new();
    after.seal(b"tick", &mut bytes);
    assert_eq!(client.opened(&mut bytes), (b"tick".to_vec(), Outcome::Open));
}

#[test]
fn no_mutation_of_records_panics_wherever_it_is_cut() {
    let mut random = fastrand::Rng::with_seed(3);
    for suite in [SUITES[0], SUITES[3]] {
        let records = ends(suite).0;
        for _ in 0..3_000 {
            let mut server = with_keys(Role::Server, &records, &records.tx, &records.rx);
            let mut client = with_keys(Role::Client, &records, &records.rx, &records.tx);
            let mut sealed = Vec::new();
            client.seal(&[1; 100], &mut sealed);
            client.forge(HANDSHAKE, &[24, 0], 0, &mut sealed);
            client.forge(HANDSHAKE, &[0, 1, 1], 0, &mut sealed);
            for _ in 0..random.usize(..3) {
                let at = random.usize(..sealed.len());
                sealed[at] = random.u8(..);
            }
            let mut waiting = Vec::new();
            for piece in sealed.chunks(1 + random.usize(..60)) {
                waiting.extend_from_slice(piece);
                let opened = server.open(&mut waiting);
                assert!(opened.plaintext <= opened.used && opened.used <= waiting.len());
                if opened.outcome != Outcome::Open {
                    break;
                }
                waiting.drain(..opened.used);
            }
        }
    }
}
