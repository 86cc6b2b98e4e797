//! Native peers that break the protocol or send impossible requests: each gets its answer, and nobody else is affected.

use crate::harness::{
    Server, beside_others,
    collector::{Collector, barrier, connect, publish},
    frames::{self, Raw},
    raw::Peer,
};
use tickcast_client::Client;
use tickcast_proto::WireFormat;

/// A well-behaved session beside misbehaving ones, and its publisher.
pub struct Bystander {
    publisher: Client,
    collector: Collector,
    published: usize,
}

impl Bystander {
    /// Subscribes and connects the publisher.
    pub fn watch(server: &Server) -> Bystander {
        let collector = Collector::start(server, WireFormat::TCP_NATIVE, &["bystander.>"]);
        Bystander { publisher: connect(server, WireFormat::WEBSOCKET_NATIVE), collector, published: 0 }
    }

    /// Asserts that one more tick arrives.
    pub fn assert_untouched(&mut self) {
        publish(&mut self.publisher, "bystander.tick", b"still here");
        barrier(&mut self.publisher);
        self.published += 1;
        self.collector.wait_for(self.published);
    }

    /// Asserts that every tick came, once and in order.
    pub fn finish(self) {
        let got = self.collector.finish();
        assert_eq!((got.count, &got.ended), (self.published, &None));
        got.assert_no_gap("bystander");
    }
}

fn well_formed() -> Raw {
    Raw::ping(1)
}

/// Protocol violations after HELLO: name, bytes, close code, part of the reason.
fn broken() -> Vec<(&'static str, Vec<u8>, u16, &'static str)> {
    let header = |change: fn(&mut Raw)| {
        let mut frame = well_formed();
        change(&mut frame);
        frame.bytes()
    };
    let short = |kind: u16, record: &[u8]| Raw::new(kind, record, b"").bytes();
    let mut long_topic = Raw::publish(1, b"topic", b"");
    long_topic.record[20..22].copy_from_slice(&900u16.to_le_bytes());
    vec![
        ("unknown version", header(|frame| frame.version = 2), 1002, "version 2"),
        ("version 0", header(|frame| frame.version = 0), 1002, "version 0"),
        ("unknown kind", header(|frame| frame.kind = 9), 1002, "kind 9"),
        ("kind 65535", header(|frame| frame.kind = 65_535), 1002, "kind 65535"),
        ("a server's kind", header(|frame| frame.kind = frames::TICK), 1002, "kind 67"),
        ("other magic", header(|frame| frame.magic = 0x7463), 1002, "magic"),
        ("length not of its parts", header(|frame| frame.frame_len = Some(64)), 1002, "length 64"),
        ("length not a multiple of 16", header(|frame| frame.frame_len = Some(41)), 1002, "length 41"),
        ("length 0", header(|frame| frame.frame_len = Some(0)), 1002, "length 0"),
        ("length shorter than the header", header(|frame| frame.frame_len = Some(16)), 1002, "length 16"),
        ("stride past the frame", header(|frame| frame.stride = Some(9_000)), 1002, "length"),
        ("payload past the frame", header(|frame| frame.payload_len = Some(9_000)), 1002, "length"),
        ("payload of 4 GiB", header(|frame| frame.payload_len = Some(u32::MAX)), 1002, "length"),
        ("frame of 4 GiB", header(|frame| frame.frame_len = Some(0xffff_fff0)), 1009, "announced"),
        (
            "frame one step too large",
            header(|frame| {
                frame.frame_len = Some((256 << 10) + 16);
                frame.payload_len = Some((256 << 10) + 16 - 32 - 8);
            }),
            1009,
            "262160 bytes announced, 262144 allowed",
        ),
        ("short HELLO", short(frames::HELLO, &[0; 4]), 1002, "record"),
        ("short SUBSCRIBE", short(frames::SUBSCRIBE, &[]), 1002, "record"),
        ("short UNSUBSCRIBE", short(frames::UNSUBSCRIBE, &[0; 7]), 1002, "record"),
        ("short PUBLISH", short(frames::PUBLISH, &[0; 16]), 1002, "record"),
        ("short PING", short(frames::PING, &[0; 4]), 1002, "record"),
        ("topic longer than its frame", long_topic.bytes(), 1002, "record"),
        ("pattern not UTF-8", Raw::request(frames::SUBSCRIBE, 1, b"a.\xff").bytes(), 1007, "UTF-8"),
        ("name not UTF-8", Raw::request(frames::HELLO, 1, b"\xc3\x28").bytes(), 1007, "UTF-8"),
        ("misaligned: one byte between frames", [&[0][..], &well_formed().bytes()].concat(), 1002, "magic"),
        ("misaligned: one byte is missing", well_formed().bytes()[1..].to_vec(), 1002, "magic"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 1002, "magic"),
    ]
}

#[test]
fn a_native_peer_that_breaks_the_protocol_receives_the_reason_and_only_it_is_closed() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut bystander = Bystander::watch(&server);
    let cases = broken();
    for (name, bytes, code, reason) in &cases {
        let mut peer = Peer::native(server.tcp);
        peer.send(bytes);
        let closing = peer.frame().unwrap_or_else(|| panic!("{name}: closed without a word"));
        assert_eq!(closing.kind, frames::CLOSING, "{name}: {closing:?}");
        assert_eq!(closing.code(), *code, "{name}: {}", closing.text());
        assert!(closing.text().contains(reason), "{name}: {}", closing.text());
        assert_eq!(peer.frame(), None, "{name}: CLOSING is the last message");
        bystander.assert_untouched();
    }
    bystander.finish();
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("closed_protocol"), cases.len() as u64);
}

#[test]
fn frames_before_hello_close_the_connection() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut bystander = Bystander::watch(&server);
    for (name, bytes, reason) in [
        ("PING", well_formed().bytes(), "HELLO"),
        ("SUBSCRIBE", Raw::request(frames::SUBSCRIBE, 1, b"a").bytes(), "HELLO"),
        ("PUBLISH", Raw::publish(1, b"bystander.tick", b"forged").bytes(), "HELLO"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "magic"),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), "magic"),
        ("HTTP", b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "magic"),
    ] {
        let mut peer = Peer::connect(server.tcp);
        peer.send(&bytes);
        let closing = peer.frame().unwrap_or_else(|| panic!("{name}: closed without a word"));
        assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 1002), "{name}: {closing:?}");
        assert!(closing.text().contains(reason), "{name}: {}", closing.text());
        assert_eq!(peer.frame(), None, "{name}");
        bystander.assert_untouched();
    }
    bystander.finish();
    server.stop_cleanly();
}

#[test]
fn a_failed_request_is_answered_and_the_session_stays_open() {
    let _machine = beside_others();
    let server =
        Server::start(&["--topics-max", "2", "--shards", "1", "--subscriptions-per-session-max", "3"]);
    let mut peer = Peer::native(server.tcp);
    let subscribe = |pattern: &[u8]| Raw::request(frames::SUBSCRIBE, 77, pattern);
    let unsubscribe = |pattern: &[u8]| Raw::request(frames::UNSUBSCRIBE, 77, pattern);
    let publish = |topic: &[u8], payload: &[u8]| Raw::publish(77, topic, payload);
    for accepted in [subscribe(b"a"), subscribe(b"b.>")] {
        peer.send(&accepted.bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    }
    for topic in ["c", "d"] {
        peer.send(&publish(topic.as_bytes(), b"1").bytes());
    }
    let long = [b'x'; 256];
    let bad: Vec<(&str, Raw, u16)> = vec![
        ("empty topic", publish(b"", b"1"), 101),
        ("empty token", publish(b"a..b", b"1"), 101),
        ("leading dot", publish(b".a", b"1"), 101),
        ("trailing dot", publish(b"a.", b"1"), 101),
        ("blank", publish(b"a b", b"1"), 101),
        ("control character", publish(b"a\x07", b"1"), 101),
        ("newline", publish(b"a\n", b"1"), 101),
        ("star in a topic", publish(b"a.*", b"1"), 101),
        ("> in a topic", publish(b">", b"1"), 101),
        ("256 bytes of topic", publish(&long, b"1"), 101),
        ("topic not UTF-8", publish(b"\xff", b"1"), 101),
        ("empty pattern", subscribe(b""), 102),
        ("> in the middle", subscribe(b"a.>.b"), 102),
        ("empty token in a pattern", subscribe(b"a..>"), 102),
        ("blank in a pattern", subscribe(b"a b"), 102),
        ("256 bytes of pattern", subscribe(&long), 102),
        ("subscribed already", subscribe(b"b.>"), 106),
        ("not subscribed", unsubscribe(b"b.*"), 105),
        ("a third topic", publish(b"e", b"1"), 104),
    ];
    for (name, frame, code) in &bad {
        peer.send(&frame.bytes());
        let error = peer.frame().unwrap();
        assert_eq!((error.kind, error.request()), (frames::ERROR, 77), "{name}: {error:?}");
        assert_eq!(error.code(), *code, "{name}: {}", error.text());
        assert!(!error.text().is_empty(), "{name}");
    }
    peer.send(&subscribe(b"third").bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    peer.send(&subscribe(b"fourth").bytes());
    assert_eq!(peer.frame().unwrap().code(), 103);
    // A pattern of the maximum length is accepted.
    peer.send(&unsubscribe(b"third").bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::UNSUBSCRIBED);
    peer.send(&subscribe(&long[..255]).bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    peer.send(&Raw::ping(5).bytes());
    assert_eq!(peer.frame().unwrap().token(), 5);
    drop(peer);
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_sequenced"), 2);
    assert_eq!(stopped.total("closed_protocol"), 0);
}

#[test]
fn every_truncation_of_a_frame_ends_with_the_connection_and_nothing_else() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut bystander = Bystander::watch(&server);
    let frame = Raw::publish(1, b"bystander.tick", b"must not arrive").bytes();
    for len in 1..frame.len() {
        let mut peer = Peer::native(server.tcp);
        peer.send(&frame[..len]);
        peer.shut_write();
        assert_eq!(peer.frame(), None, "{len} bytes of a frame");
    }
    bystander.assert_untouched();
    bystander.finish();
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_sequenced"), 1);
}

#[test]
fn frames_arrive_whole_however_they_are_cut() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["cut"]);
    let mut peer = Peer::native(server.tcp);
    let payloads: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; usize::from(n) * 7]).collect();
    let bytes: Vec<u8> =
        payloads.iter().flat_map(|payload| Raw::publish(0, b"cut", payload).bytes()).collect();
    let mut random = fastrand::Rng::with_seed(5);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(random.usize(1..=rest.len().min(90)));
        peer.send(piece);
        rest = after;
    }
    collector.wait_for(payloads.len());
    let got = collector.finish();
    got.assert_no_gap("cut");
    assert!(got.ticks["cut"].iter().map(|(_, payload)| payload).eq(&payloads));
    drop(peer);
    server.stop_cleanly();
}

#[test]
fn a_native_handshake_past_its_deadline_is_closed_even_if_bytes_trickle_in() {
    let _machine = beside_others();
    let server = Server::start(&["--handshake-deadline", "4s"]);
    let mut bystander = Bystander::watch(&server);
    let mut silent = Peer::connect(server.tcp);
    let mut half = Peer::connect(server.tcp);
    half.send(&Raw::request(frames::HELLO, 1, b"half").bytes()[..20]);
    let mut trickling = Peer::connect(server.tcp);
    // One HELLO of 4,096 bytes, at a pace that passes the deadline long before its end.
    let hello = Raw::request(frames::HELLO, 1, &[b'x'; 4096]).bytes();
    for byte in hello.chunks(1) {
        trickling.send_as_far_as_it_goes(byte);
        std::thread::sleep(crate::harness::LOOK_AGAIN);
        if trickling.has_answer() {
            break;
        }
    }
    for peer in [&mut silent, &mut half, &mut trickling] {
        let closing = peer.frame().unwrap();
        assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3009), "{closing:?}");
        assert_eq!(peer.frame(), None);
    }
    bystander.assert_untouched();
    bystander.finish();
    assert_eq!(server.stop_cleanly().total("closed_handshake_deadline"), 3);
}
