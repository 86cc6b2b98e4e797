use super::*;
use crate::{
    config::Limits,
    metrics::counters::Counter,
    session::ListenerKind,
    testing::{Driver, hello, masked, messages},
};
use tickcast_proto::{frame, records::Publish};

const PUBLISHER: u32 = 0;
const CLIENT: u32 = 1;
const OTHER: u32 = 2;
const SECOND_NS: u64 = 1_000_000_000;

fn driver_with(limits: Limits) -> Driver {
    let mut driver = Driver::new(limits);
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver
}

fn driver() -> Driver {
    driver_with(Limits::default())
}

fn publish(driver: &mut Driver, topic: &str, payload: &[u8]) {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, payload);
    driver.receive(PUBLISHER, &bytes);
}

/// Opens a session and returns its first packet.
fn open(driver: &mut Driver, slot: u32) -> String {
    let request = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    driver.accept(slot, ListenerKind::Http, request.as_bytes());
    driver.turn();
    let sent = driver.take_sent(slot);
    let head = sent.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(sent.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&sent));
    let [(1, packet)] = &messages(&sent[head..])[..] else { panic!("one text message") };
    String::from_utf8(packet.clone()).unwrap()
}

fn connected(driver: &mut Driver, slot: u32) {
    open(driver, slot);
    assert!(matches!(&ask(driver, slot, "40")[..], [packet] if packet.starts_with("40{\"sid\":\"0-")));
}

fn send(driver: &mut Driver, slot: u32, packet: &str) {
    driver.receive(slot, &masked(0x81, packet.as_bytes()));
}

/// What has been sent: text as it is, binary as bytes in brackets, a close frame as its code.
fn read(driver: &mut Driver, slot: u32) -> Vec<String> {
    driver.turn();
    let sent = driver.take_sent(slot);
    let shown = |(opcode, bytes): (u8, Vec<u8>)| match opcode {
        1 => String::from_utf8(bytes).unwrap(),
        2 => format!("{bytes:?}"),
        8 => format!("close {}", u16::from_be_bytes([bytes[0], bytes[1]])),
        other => panic!("opcode {other}"),
    };
    messages(&sent).into_iter().map(shown).collect()
}

fn ask(driver: &mut Driver, slot: u32, packet: &str) -> Vec<String> {
    send(driver, slot, packet);
    read(driver, slot)
}

#[test]
fn a_session_opens_with_its_name_and_the_times_of_its_pings() {
    let mut driver = driver();
    let first = open(&mut driver, CLIENT);
    let open: serde_json::Value = serde_json::from_str(first.strip_prefix('0').unwrap()).unwrap();
    assert_eq!((open["pingInterval"].as_u64(), open["pingTimeout"].as_u64()), (Some(25_000), Some(20_000)));
    assert_eq!(open["upgrades"], serde_json::json!([]));
    assert!(open["maxPayload"].as_u64().is_some_and(|bytes| bytes > 256 << 10));
    let sid = open["sid"].as_str().unwrap();
    let connected = ask(&mut driver, CLIENT, "40").remove(0);
    assert!(connected.starts_with("40{\"sid\":\"0-"), "{connected}");
    assert!(!connected.contains(sid), "only the client may know the name of its session");
}

#[test]
fn events_are_answered_and_ticks_arrive_as_events() {
    let mut driver = driver();
    connected(&mut driver, CLIENT);
    let subscribed = "430[{\"op\":\"subscribed\",\"id\":0,\"pattern\":\"a.*\",\"topics\":[]}]";
    assert_eq!(ask(&mut driver, CLIENT, "420[\"subscribe\",\"a.*\"]"), [subscribed]);
    publish(&mut driver, "a.b", b"{\"p\":1.10}");
    publish(&mut driver, "a.b", b"\x00\x1e\xff");
    let got = read(&mut driver, CLIENT);
    assert!(
        got[0].starts_with("42[\"subscribed\",{\"op\":\"subscribed\",\"topics\":[{\"topic\":\"a.b\""),
        "{got:?}"
    );
    assert!(got[1].starts_with("42[\"tick\",{\"topic\":\"a.b\",\"seq\":1,\"ts\":"), "{got:?}");
    assert!(got[1].ends_with(",\"data\":{\"p\":1.10}}]"), "{got:?}");
    assert!(got[2].starts_with("451-[\"tick\",{\"topic\":\"a.b\",\"seq\":2,"), "{got:?}");
    assert!(got[2].ends_with(",\"data\":{\"_placeholder\":true,\"num\":0}}]"), "{got:?}");
    assert_eq!(got[3..], ["[0, 30, 255]"]);

    let published = ask(&mut driver, CLIENT, "421[\"publish\",\"a.c\",7]").concat();
    assert!(
        published.contains("431[{\"op\":\"published\",\"id\":1,\"topic\":\"a.c\",\"epoch\":"),
        "{published}"
    );
    assert!(published.contains("\"seq\":1,") && published.contains("\"data\":7}]"), "{published}");
    let refused = ask(&mut driver, CLIENT, "422[\"unsubscribe\",\"x\"]");
    assert!(refused[0].starts_with("432[{\"op\":\"error\",\"id\":2,\"code\":105,"), "{refused:?}");
    let refused = ask(&mut driver, CLIENT, "42[\"unsubscribe\",\"x\"]");
    assert!(refused[0].starts_with("42[\"failed\",{\"op\":\"error\",\"id\":0,\"code\":105,"), "{refused:?}");
    let unsubscribed = "433[{\"op\":\"unsubscribed\",\"id\":3,\"pattern\":\"a.*\"}]";
    assert_eq!(ask(&mut driver, CLIENT, "423[\"unsubscribe\",\"a.*\"]"), [unsubscribed]);
    publish(&mut driver, "a.b", b"1");
    assert_eq!(read(&mut driver, CLIENT), [""; 0]);
}

#[test]
fn a_binary_payload_is_published_and_delivered_byte_for_byte() {
    let mut driver = driver();
    connected(&mut driver, CLIENT);
    ask(&mut driver, CLIENT, "420[\"subscribe\",\"b\"]");
    send(&mut driver, CLIENT, "451-1[\"publish\",\"b\",{\"_placeholder\":true,\"num\":0}]");
    // Answers to pings may come in between.
    send(&mut driver, CLIENT, "3");
    assert_eq!(read(&mut driver, CLIENT), [""; 0]);
    driver.receive(CLIENT, &masked(0x82, &[0, 30, 255]));
    let got = read(&mut driver, CLIENT);
    assert!(got.iter().any(|packet| packet.starts_with("431[{\"op\":\"published\",\"id\":1,")), "{got:?}");
    assert!(got.contains(&"[0, 30, 255]".to_owned()), "{got:?}");
}

#[test]
fn the_bytes_of_a_tick_are_shared_by_all_sessions() {
    let mut driver = driver();
    for slot in [CLIENT, OTHER] {
        connected(&mut driver, slot);
        ask(&mut driver, slot, "420[\"subscribe\",\"a\"]");
    }
    publish(&mut driver, "a", b"1");
    let before = driver.shard.appended_bytes();
    publish(&mut driver, "a", &[0xff; 1_000]);
    let appended = driver.shard.appended_bytes() - before;
    driver.turn();
    let of = |slot: u32| {
        driver.sent.iter().filter(|(to, _)| *to == slot).map(|(_, bytes)| bytes.len()).sum::<usize>()
    };
    assert_eq!(of(CLIENT), of(OTHER));
    assert!((1_000..1_200).contains(&appended), "once: {appended}");
}

#[test]
fn other_namespaces_are_refused_and_the_session_goes_on() {
    let mut driver = driver();
    open(&mut driver, CLIENT);
    assert_eq!(
        ask(&mut driver, CLIENT, "40/chat,{\"x\":1}"),
        ["44/chat,{\"message\":\"Invalid namespace\"}"]
    );
    assert!(ask(&mut driver, CLIENT, "40")[0].starts_with("40{"));
    assert_eq!(ask(&mut driver, CLIENT, "40/chat"), ["44/chat,{\"message\":\"Invalid namespace\"}"]);
}

#[test]
fn what_breaks_the_protocol_ends_that_session_alone() {
    let long = format!("451-0[\"publish\",\"{}\"]", "a".repeat(SOCKET_IO_BINARY_EVENT_BYTES_MAX));
    for (packets, close) in [
        (&["x"][..], "close 1002"),
        (&["0{}"], "close 1002"),
        (&["2probe"], "close 1002"),
        (&["5"], "close 1002"),
        (&["40"], "close 1002"),
        (&["4"], "close 1002"),
        (&["49"], "close 1002"),
        (&["430[]"], "close 1002"),
        (&["42/chat,[\"a\"]"], "close 1002"),
        (&["452-0[\"publish\",\"a\"]"], "close 1002"),
        (&["451-0[\"publish\",\"a\"]", "42[\"publish\",\"a\",1]"], "close 1002"),
        (&[&long], "close 1009"),
    ] {
        let mut driver = driver();
        connected(&mut driver, CLIENT);
        connected(&mut driver, OTHER);
        for packet in packets {
            send(&mut driver, CLIENT, packet);
        }
        let got = read(&mut driver, CLIENT);
        let [closing, disconnect, last] = &got[..] else { panic!("{packets:?}: {got:?}") };
        assert!(closing.starts_with("42[\"closing\",{\"op\":\"closing\",\"code\":10"), "{got:?}");
        assert_eq!((&**disconnect, &**last), ("41", close), "{packets:?}");
        assert!(
            ask(&mut driver, OTHER, "420[\"subscribe\",\"a\"]")[0].starts_with("430[{\"op\":\"subscribed\"")
        );
    }
    let mut driver = driver();
    connected(&mut driver, CLIENT);
    driver.receive(CLIENT, &masked(0x82, b"of no event"));
    assert!(read(&mut driver, CLIENT).contains(&"close 1002".to_owned()));
}

#[test]
fn a_client_may_do_nothing_before_it_has_connected_and_must_connect_in_time() {
    for packet in ["42[\"subscribe\",\"a\"]", "41", "451-[\"publish\",\"a\"]"] {
        let mut driver = driver();
        open(&mut driver, CLIENT);
        let got = ask(&mut driver, CLIENT, packet);
        assert!(got[0].starts_with("44{\"message\":\"Socket.IO: the client is not connected"), "{got:?}");
        assert_eq!(got[1..], ["close 1002"]);
    }
    let mut driver = driver();
    open(&mut driver, CLIENT);
    connected(&mut driver, OTHER);
    driver.pass(6 * SECOND_NS);
    let got: Vec<String> = read(&mut driver, CLIENT);
    assert_eq!(got, ["close 3009"], "a client reconnects after that");
    driver.shard.handle_eof(SlotId(CLIENT), driver.now);
    driver.turn();
    assert_eq!(driver.shard.counters().value(Counter::ClosedHandshakeDeadline), 1);
    assert_eq!(driver.shard.sessions_len(), 2);
}

#[test]
fn a_client_is_pinged_at_its_interval_however_active_it_is() {
    let mut driver = driver();
    connected(&mut driver, CLIENT);
    let mut pings = 0;
    for second in 0..100 {
        driver.pass(SECOND_NS);
        let got = ask(&mut driver, CLIENT, &format!("42{second}[\"unsubscribe\",\"x\"]"));
        if got.contains(&"2".to_owned()) {
            pings += 1;
            send(&mut driver, CLIENT, "3");
        }
    }
    assert_eq!(pings, 3, "at 25, 50 and 75 seconds, each a little later");
}

#[test]
fn a_client_that_does_not_answer_a_ping_is_closed_and_one_that_does_is_not() {
    let mut driver = driver();
    connected(&mut driver, CLIENT);
    connected(&mut driver, OTHER);
    let (mut closed, mut answered) = (Vec::new(), 0);
    for _ in 0..40 {
        driver.pass(SECOND_NS);
        driver.turn();
        let sent = std::mem::take(&mut driver.sent);
        for (slot, bytes) in sent.into_iter().filter(|(slot, _)| *slot != PUBLISHER) {
            match (slot, &messages(&bytes)[..]) {
                (CLIENT, packets) => closed.extend(packets.iter().cloned()),
                (OTHER, [(1, ping)]) if ping == b"2" => {
                    answered += 1;
                    send(&mut driver, OTHER, "3");
                }
                _ => {}
            }
        }
    }
    let texts: Vec<String> =
        closed.iter().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect();
    assert_eq!(texts[0], "2");
    assert!(texts[1].contains("\"code\":3011"), "{texts:?}");
    assert_eq!(
        (closed.len(), closed[2].0),
        (3, 8),
        "no disconnect packet, so the client comes back: {texts:?}"
    );
    assert_eq!(answered, 1);
}

#[test]
fn a_client_that_leaves_gets_a_close_frame_and_no_more() {
    for packet in ["41", "1"] {
        let mut driver = driver();
        connected(&mut driver, CLIENT);
        ask(&mut driver, CLIENT, "420[\"subscribe\",\"a\"]");
        send(&mut driver, CLIENT, packet);
        publish(&mut driver, "a", b"1");
        assert_eq!(read(&mut driver, CLIENT), ["close 1000"]);
        assert_eq!(driver.shard.counters().value(Counter::ClosedByPeer), 1);
        assert_eq!(driver.shard.sessions_len(), 1);
    }
}

#[test]
fn a_stopping_server_says_so_and_its_clients_come_back() {
    let mut driver = driver();
    connected(&mut driver, CLIENT);
    driver.shard.begin_drain(driver.now.monotonic_ns + SECOND_NS, driver.now);
    let got = read(&mut driver, CLIENT);
    assert!(got[0].starts_with("42[\"closing\",{\"op\":\"closing\",\"code\":3001,"), "{got:?}");
    assert_eq!(got[1..], ["close 1001"]);
}

#[test]
fn a_session_that_is_behind_gets_its_announcements_as_events() {
    let limits = Limits { behind_bytes: 4 << 10, ..Limits::default() };
    let mut driver = driver_with(limits);
    connected(&mut driver, CLIENT);
    ask(&mut driver, CLIENT, "420[\"subscribe\",\"a\",{\"policy\":\"conflate\"}]");
    driver.full.insert(CLIENT);
    for _ in 0..200 {
        publish(&mut driver, "a", &[b'7'; 100]);
        driver.turn();
    }
    driver.open();
    let got = read(&mut driver, CLIENT);
    let conflated = got
        .iter()
        .position(|packet| packet.starts_with("42[\"conflated\",{\"op\":\"conflated\",\"topic\":\"a\","));
    let last = &got[conflated.expect("an announcement") + 1];
    assert!(last.starts_with("42[\"tick\",{\"topic\":\"a\",\"seq\":200,"), "{last}");
}

#[test]
fn a_flood_of_refused_events_pauses_that_session_and_no_other() {
    let mut driver = driver();
    connected(&mut driver, CLIENT);
    connected(&mut driver, OTHER);
    driver.full.insert(CLIENT);
    let flood = masked(0x81, b"420[\"shout\"]").repeat(2_000);
    driver.receive(CLIENT, &flood);
    driver.turn();
    assert_eq!(driver.shard.counters().value(Counter::InputPaused), 1);
    assert!(ask(&mut driver, OTHER, "420[\"subscribe\",\"a\"]")[0].starts_with("430["));
    assert!(driver.shard.memory_bytes() < 64 << 20);
}
