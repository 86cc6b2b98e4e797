//! Messages that clients begin and do not finish: each has one deadline, and all together have a bound.

use crate::harness::{
    Server, beside_others,
    raw::{CLOSE, Peer, masked},
    say,
};

/// Fragments that [`empty_fragments_do_not_renew_the_frame_deadline`] sends at most.
const FRAGMENTS_MAX: usize = 10_000;

fn websocket(server: &Server) -> Peer {
    Peer::websocket(server.http, "/ws", "tickcast.v1.json")
}

/// The code of the close frame, after CLOSING.
fn close_code(peer: &mut Peer) -> u16 {
    assert!(peer.text().starts_with(r#"{"op":"closing","#));
    peer.message().unwrap().close_code()
}

#[test]
fn empty_fragments_do_not_renew_the_frame_deadline() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1", "--frame-deadline", "500ms"]);
    let mut peer = websocket(&server);
    peer.send(&masked(0x01, b"{"));
    let mut sent = 0;
    while !peer.has_answer() {
        sent += 1;
        assert!(sent < FRAGMENTS_MAX, "still open");
        peer.send_as_far_as_it_goes(&masked(0x00, b""));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    say(&format!("{sent} empty fragments until 3010"));
    assert_eq!(close_code(&mut peer), 3010);
    drop(peer);
    assert_eq!(server.stop_cleanly().total("closed_frame_deadline"), 1);
}

#[test]
fn unfinished_messages_have_a_bound_and_the_oldest_goes() {
    const PEERS: usize = 40;
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1", "--frame-max", "1KiB", "--unfinished-memory", "64KiB"]);
    let fragment = masked(0x01, &[b' '; 4_000]);
    // One after the other, so that the first is the oldest.
    let mut peers: Vec<Peer> = (0..PEERS)
        .map(|_| {
            let mut peer = websocket(&server);
            peer.send(&fragment);
            peer.send(&masked(0x89, b""));
            assert_eq!(peer.message().unwrap().opcode, 10, "the server has the fragment");
            peer
        })
        .collect();
    assert_eq!(close_code(&mut peers[0]), 3012);
    let open = peers.iter().filter(|peer| !peer.has_answer()).count();
    assert!((10..=16).contains(&open), "{open}: 64 KiB of fragments");
    let newest = peers.last_mut().unwrap();
    newest.send(&masked(0x80, br#"{"op":"ping","token":1}"#));
    assert_eq!(newest.text(), r#"{"op":"pong","token":1}"#, "and it is as if the others were not there");
    drop(peers);
    assert_eq!(server.stop_cleanly().total("closed_unfinished_memory"), (PEERS - open) as u64);
}

#[test]
fn replies_arrive_before_the_close_that_a_broken_frame_causes() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let mut early = Peer::connect(server.http);
    let request = crate::harness::raw::upgrade_request("/ws", "tickcast.v1.json");
    early.send(&[request.as_bytes(), &masked(0x82, b"early")].concat());
    assert!(early.http_head().starts_with("HTTP/1.1 101 "));
    assert_eq!(close_code(&mut early), 1003);

    let mut peer = websocket(&server);
    peer.send_text(r#"{"op":"subscribe","id":1,"topics":["a"]}"#);
    assert!(peer.text().starts_with(r#"{"op":"subscribed","id":1"#));
    let frames = [
        masked(0x81, br#"{"op":"ping","token":9}"#),
        masked(0x89, b"p"),
        masked(0x81, br#"{"op":"fly","id":2}"#),
        masked(0x83, b"x"),
    ];
    peer.send(&frames.concat());
    assert_eq!(peer.text(), r#"{"op":"pong","token":9}"#);
    assert_eq!(peer.message().unwrap().opcode, 10);
    assert!(peer.text().starts_with(r#"{"op":"error","id":2"#));
    assert!(peer.text().starts_with(r#"{"op":"closing","code":1002"#));
    assert_eq!(peer.message().unwrap().opcode, CLOSE);
    assert_eq!(peer.message(), None);
    server.stop_cleanly();
}
