//! Several ticks in one WebSocket message, and compressed messages, as stock clients read them.

use crate::{
    harness::{
        Server, beside_others,
        collector::assert_same,
        external::{External, Library, ticks},
        market_capture,
        raw::{CLOSE, Peer, TEXT, masked, upgrade_request},
    },
    replay::expected,
};

/// Starts a server that replays the market's capture at once when `clients` have subscribed.
fn serve(clients: usize, more: &[&str]) -> Server {
    let (capture, clients) = (market_capture(), clients.to_string());
    let options =
        ["--shards", "1", "--replay", capture.to_str().unwrap(), "--speed", "max", "--replay-wait", &clients];
    Server::start(&[&options, more].concat())
}

fn subscribe(library: Library, server: &Server, encoding: &str, count: usize, hello: &str) -> External {
    let url = format!("ws://{}/ws", server.http);
    External::run(library, "subscribe", &[&url, encoding, "market.>", &count.to_string(), hello])
}

/// A number that a client has printed at its end.
fn printed(text: &str, name: &str) -> usize {
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    value.trim().parse().unwrap()
}

const CLIENTS: [(Library, &str); 4] = [
    (Library::Ws, "json"),
    (Library::Ws, "rkyv"),
    (Library::Websockets, "json"),
    (Library::Websockets, "rkyv"),
];

#[test]
fn ticks_that_leave_together_are_one_message_for_clients_that_ask_and_byte_exact_for_all() {
    let _machine = beside_others();
    let (expected, count) = expected(&market_capture());
    let server = serve(2 * CLIENTS.len(), &[]);
    let start =
        |hello| CLIENTS.map(|(library, encoding)| subscribe(library, &server, encoding, count, hello));
    let (batched, plain) = (start("batches"), start("plain"));
    for external in batched {
        let (name, text) = (external.name.clone(), external.finish());
        assert_same(&name, &ticks(&text), &expected);
        assert!(printed(&text, "messages") < count / 4, "{name}: {} messages", printed(&text, "messages"));
        assert!(text.contains("\nextensions \n"), "{name}: no extension unless the server is configured");
    }
    for external in plain {
        let (name, text) = (external.name.clone(), external.finish());
        assert_same(&name, &ticks(&text), &expected);
        assert_eq!(printed(&text, "messages"), count, "{name}");
    }
    server.stop_cleanly();
}

#[test]
fn compressed_messages_are_byte_exact_and_compressed_once_for_all_clients() {
    let _machine = beside_others();
    let (expected, count) = expected(&market_capture());
    let server = serve(3 * CLIENTS.len(), &["--deflate", "on", "--egress-log", "64MiB"]);
    let start =
        |hello| CLIENTS.map(|(library, encoding)| subscribe(library, &server, encoding, count, hello));
    let (batched, plain, again) = (start("batches"), start("plain"), start("plain"));
    for external in batched.into_iter().chain(plain).chain(again) {
        let (name, text) = (external.name.clone(), external.finish());
        assert_same(&name, &ticks(&text), &expected);
        assert!(text.contains("\nextensions permessage-deflate\n"), "{name}");
    }
    let stopped = server.stop_cleanly();
    // The ticks of two formats, and fewer messages of batches, whatever the number of clients.
    let deflated = stopped.total("messages_deflated");
    assert!((1..=3 * count as u64).contains(&deflated), "{deflated} messages");
    assert!(stopped.total("deflated_to_bytes") < stopped.total("deflated_from_bytes") * 4 / 5);
}

#[test]
fn a_topic_that_is_switched_off_is_never_compressed() {
    let _machine = beside_others();
    let (expected, count) = expected(&market_capture());
    let server = serve(4, &["--deflate", "on", "--deflate", "market.>=off"]);
    let clients = ["batches", "plain"]
        .into_iter()
        .flat_map(|hello| {
            ["json", "rkyv"].map(|encoding| subscribe(Library::Ws, &server, encoding, count, hello))
        })
        .collect::<Vec<_>>();
    for external in clients {
        let (name, text) = (external.name.clone(), external.finish());
        assert_same(&name, &ticks(&text), &expected);
        assert!(text.contains("\nextensions permessage-deflate\n"), "{name}");
    }
    assert_eq!(server.stop_cleanly().total("messages_deflated"), 0);
}

/// A WebSocket that has offered compression, and the response.
fn offering(server: &Server, path: &str, offers: &str) -> (Peer, String) {
    let mut peer = Peer::connect(server.http);
    let request = upgrade_request(path, "");
    let offer = format!("Sec-WebSocket-Extensions: {offers}\r\n\r\n");
    peer.send(request.replacen("\r\n\r\n", &format!("\r\n{offer}"), 1).as_bytes());
    let head = peer.http_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    (peer, head.to_lowercase())
}

#[test]
fn requests_may_be_compressed_and_a_bomb_is_refused_with_1009() {
    let _machine = beside_others();
    let server = Server::start(&["--deflate", "on"]);
    let (mut peer, head) = offering(&server, "/ws", "permessage-deflate; client_max_window_bits");
    let response = "sec-websocket-extensions: permessage-deflate; server_no_context_takeover; \
                    client_no_context_takeover; server_max_window_bits=12\r\n";
    assert!(head.contains(response), "{head}");
    let deflated = |body: &[u8]| {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, body).unwrap();
        // A last block: an empty one of any kind follows (RFC 7692, section 7.2.3.4).
        [encoder.finish().unwrap(), vec![0]].concat()
    };
    peer.send(&masked(0xc0 | TEXT, &deflated(br#"{"op":"ping","token":7}"#)));
    assert_eq!(peer.text(), r#"{"op":"pong","token":7}"#);
    let bomb = deflated(&vec![b' '; 64 << 20]);
    assert!(bomb.len() < 100 << 10, "{}", bomb.len());
    let before = server.rss_bytes();
    peer.send_as_far_as_it_goes(&masked(0xc0 | TEXT, &bomb));
    peer.text();
    let close = peer.message().unwrap();
    assert_eq!((close.opcode, close.close_code()), (CLOSE, 1009));
    assert!(server.rss_bytes() < before + (8 << 20), "no more than the bound is allocated");
    // Nobody agreed on compression without the option.
    server.stop_cleanly();
    let server = Server::start(&[]);
    let (mut peer, head) = offering(&server, "/ws", "permessage-deflate");
    assert!(!head.contains("sec-websocket-extensions"), "{head}");
    peer.send(&masked(0xc0 | TEXT, &deflated(b"{}")));
    peer.text();
    assert_eq!(peer.message().unwrap().close_code(), 1002);
    server.stop_cleanly();
}
