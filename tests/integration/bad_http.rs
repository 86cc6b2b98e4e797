//! Requests to the HTTP port that are not valid WebSocket handshakes: each gets its status code.

use crate::{
    bad_native::Bystander,
    harness::{
        Server, beside_others,
        raw::{Peer, upgrade_request},
    },
};

/// A well-formed handshake with one part replaced.
fn with(from: &str, to: &str) -> Vec<u8> {
    let request = upgrade_request("/ws?topics=a", "");
    assert!(request.contains(from), "{from}");
    request.replacen(from, to, 1).into_bytes()
}

fn refused() -> Vec<(&'static str, Vec<u8>, u16)> {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let host = "Host: localhost\r\n";
    let header_of_64_kib = format!("{host}X-Long: {}\r\n", "x".repeat(64 << 10));
    let many_headers: String = (0..65).map(|n| format!("X-{n}: 1\r\n")).collect();
    vec![
        ("no host", with(host, ""), 400),
        ("two hosts", with(host, "Host: a\r\nHost: b\r\n"), 400),
        ("two keys", with(key, &key.repeat(2)), 400),
        ("no key", with(key, ""), 400),
        ("a short key", with("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400),
        ("a folded header", with(host, "Host: localhost\r\n folded\r\n"), 400),
        ("a header without a colon", with(host, "Host test\r\n"), 400),
        ("a blank before the colon", with("Host:", "Host :"), 400),
        ("a control character in a header", with("Host: localhost", "Host: te\x01st"), 400),
        ("NUL in a header", with("Host: localhost", "Host: te\0st"), 400),
        ("a body", with(host, "Host: localhost\r\nContent-Length: 5\r\n"), 400),
        ("a chunked body", with(host, "Host: localhost\r\nTransfer-Encoding: chunked\r\n"), 400),
        ("a fragment in the target", with("topics=a", "topics=a#b"), 400),
        (
            "a length and chunks",
            with(host, "Host: localhost\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
            400,
        ),
        ("another coding", with(host, "Host: localhost\r\nTransfer-Encoding: gzip, chunked\r\n"), 501),
        ("too long a body", with(host, "Host: localhost\r\nContent-Length: 65537\r\n"), 413),
        ("another expectation", with(host, "Host: localhost\r\nExpect: 200-ok\r\n"), 417),
        ("a foreign page", with(host, "Host: localhost\r\nOrigin: https://evil.example\r\n"), 403),
        ("a page without an origin", with(host, "Host: localhost\r\nOrigin: null\r\n"), 403),
        ("a page at another port", with(host, "Host: localhost\r\nOrigin: http://localhost:81\r\n"), 403),
        (
            "a name made to point here",
            with(host, "Host: evil.example\r\nOrigin: http://evil.example\r\n"),
            403,
        ),
        ("two lengths", with(host, "Host: localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n"), 400),
        ("an unknown subprotocol", with(host, "Host: localhost\r\nSec-WebSocket-Protocol: soap\r\n"), 400),
        ("an unknown parameter", with("topics=", "topic="), 400),
        ("topics not UTF-8", with("topics=a", "topics=%ff"), 400),
        ("no such path", with("/ws?", "/nothing?"), 404),
        ("/echo without --debug-echo", with("/ws?topics=a", "/echo"), 404),
        ("POST", with("GET", "POST"), 405),
        ("no upgrade", with("Upgrade: websocket\r\n", ""), 426),
        ("WebSocket of another version", with("Version: 13", "Version: 8"), 426),
        ("HTTP/1.0", with("HTTP/1.1", "HTTP/1.0"), 426),
        ("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 400),
        ("HTTP/0.9", b"GET /ws\r\n\r\n".to_vec(), 400),
        ("HTTP/3.7", with("HTTP/1.1", "HTTP/3.7"), 400),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), 400),
        ("a native HELLO", crate::harness::frames::Raw::request(1, 1, b"lost").bytes(), 400),
        ("a header of 64 KiB", with(host, &header_of_64_kib), 431),
        ("65 headers", with(host, &format!("{host}{many_headers}")), 431),
        ("a path of 64 KiB", with("/ws", &format!("/{}", "p".repeat(64 << 10))), 431),
    ]
}

#[test]
fn a_request_that_is_no_handshake_gets_its_status_and_only_it_is_closed() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut bystander = Bystander::watch(&server);
    let cases = refused();
    for (name, request, status) in &cases {
        let mut peer = Peer::connect(server.http);
        peer.send_as_far_as_it_goes(request);
        let head = peer.http_head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {head}");
        // Framing that is in doubt ends the connection; after other answers the client may go on, or end it as here.
        peer.shut_write();
        let connection = match status {
            403..=405 => None,
            426 if *name == "HTTP/1.0" => Some("upgrade, close"),
            426 => Some("upgrade"),
            _ => Some("close"),
        };
        let found = head.lines().find_map(|line| line.strip_prefix("Connection: "));
        assert_eq!(found, connection, "{name}: {head}");
        assert!(head.contains("\r\nDate: ") && head.contains(" GMT\r\n"), "{name}: {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let text = String::from_utf8(peer.read_to_end()).unwrap();
        assert_eq!(text.len(), length.parse::<usize>().unwrap(), "{name}: {text:?}");
        assert_eq!(text.lines().count(), 1, "{name}: one line says what is wrong: {text:?}");
        bystander.assert_untouched();
    }
    bystander.finish();
    assert_eq!(server.stop_cleanly().total("http_responses"), cases.len() as u64);
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_one_request() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let mut peer = Peer::connect(server.http);
    for byte in upgrade_request("/ws?topics=a.b,c.%3E,d..e", "").as_bytes().chunks(1) {
        peer.send(byte);
    }
    assert!(peer.http_head().starts_with("HTTP/1.1 101 "));
    let mut answers = [peer.text(), peer.text(), peer.text()];
    answers.sort_unstable();
    assert!(answers[0].starts_with(r#"{"op":"error","id":0,"code":102,"#), "{answers:?}");
    assert_eq!(answers[1], r#"{"op":"subscribed","id":0,"pattern":"a.b","topics":[]}"#);
    assert_eq!(answers[2], r#"{"op":"subscribed","id":0,"pattern":"c.>","topics":[]}"#);
    drop(peer);
    server.stop_cleanly();
}

#[test]
fn an_http_handshake_past_its_deadline_gets_408_even_if_bytes_trickle_in() {
    let _machine = beside_others();
    let server = Server::start(&["--handshake-deadline", "4s"]);
    let mut bystander = Bystander::watch(&server);
    let mut silent = Peer::connect(server.http);
    let mut half = Peer::connect(server.http);
    let request = upgrade_request("/ws", "");
    half.send(&request.as_bytes()[..request.len() - 2]);
    let mut trickling = Peer::connect(server.http);
    // Fewer bytes than a request head may have, at a pace that passes the deadline long before the end.
    for _ in 0..8_000 {
        trickling.send_as_far_as_it_goes(b"G");
        std::thread::sleep(crate::harness::LOOK_AGAIN);
        if trickling.has_answer() {
            break;
        }
    }
    for peer in [&mut silent, &mut half, &mut trickling] {
        let head = peer.http_head();
        assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
        peer.read_to_end();
    }
    bystander.assert_untouched();
    bystander.finish();
    assert_eq!(server.stop_cleanly().total("closed_handshake_deadline"), 3);
}
