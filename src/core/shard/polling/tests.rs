use super::*;
use crate::{
    config::Limits,
    ids::SourceId,
    limits::POLLING_SESSIONS_PER_SOURCE_MAX,
    networks::Networks,
    shard::ClientAddress,
    testing::{Driver, hello, masked, messages},
};
use tickcast_proto::{frame, records::Publish};

const PUBLISHER: u32 = 0;
/// The connection of GETs, that of POSTs, and the WebSocket.
const GET: u32 = 1;
const POST: u32 = 2;
const SOCKET: u32 = 3;
const OTHER: u32 = 4;
const SECOND_SOCKET: u32 = 9;
/// So few that the invariants look at every session after each turn.
const SLOTS: u32 = 32;
const SECOND_NS: u64 = 1_000_000_000;

fn driver() -> Driver {
    driver_with(Limits::default())
}

fn driver_with(limits: Limits) -> Driver {
    let mut driver = Driver::new(limits);
    driver.shard.set_slots_end(SLOTS);
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    for slot in [GET, POST, OTHER] {
        driver.accept(slot, ListenerKind::Http, b"");
    }
    driver
}

fn publish(driver: &mut Driver, topic: &str, payload: &[u8]) {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, payload);
    driver.receive(PUBLISHER, &bytes);
    driver.turn();
}

/// Sends a request; a body makes it a POST.
fn request(driver: &mut Driver, slot: u32, sid: &str, body: Option<&str>) {
    let sid = if sid.is_empty() { String::new() } else { format!("&sid={sid}") };
    let (method, body) = body.map_or(("GET", ""), |body| ("POST", body));
    let request = format!(
        "{method} /socket.io/?EIO=4&transport=polling{sid} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    driver.receive(slot, request.as_bytes());
    driver.turn();
    driver.turn();
}

/// The statuses and bodies of the answers on a connection.
fn answers(driver: &mut Driver, slot: u32) -> Vec<(u16, String)> {
    driver.turn();
    let mut sent = std::mem::take(&mut driver.sent);
    let mut bytes = Vec::new();
    sent.retain(|(to, part)| {
        *to != slot || {
            bytes.extend_from_slice(part);
            false
        }
    });
    driver.sent = sent;
    let mut text = String::from_utf8(bytes).unwrap();
    let mut answers = Vec::new();
    while let Some((head, rest)) = text.split_once("\r\n\r\n") {
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let (body, rest) = rest.split_at(length.parse().unwrap());
        answers.push((head[9..12].parse().unwrap(), body.to_owned()));
        text = rest.to_owned();
    }
    answers
}

fn answer(driver: &mut Driver, slot: u32) -> (u16, String) {
    let mut answers = answers(driver, slot);
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.remove(0)
}

fn ask(driver: &mut Driver, slot: u32, sid: &str, body: Option<&str>) -> (u16, String) {
    request(driver, slot, sid, body);
    answer(driver, slot)
}

/// Opens a session and enters the namespace. Returns its name.
fn connected(driver: &mut Driver) -> String {
    connected_as(driver, "")
}

/// The same, of a client with this identity.
fn connected_as(driver: &mut Driver, client: &str) -> String {
    let client = if client.is_empty() { String::new() } else { format!("&client={client}") };
    let open = format!("GET /socket.io/?EIO=4&transport=polling{client} HTTP/1.1\r\nHost: x\r\n\r\n");
    driver.receive(GET, open.as_bytes());
    driver.turn();
    let (status, packet) = answer(driver, GET);
    assert_eq!(status, 200, "{packet}");
    let open: serde_json::Value = serde_json::from_str(packet.strip_prefix('0').unwrap()).unwrap();
    assert_eq!(open["upgrades"], serde_json::json!(["websocket"]));
    assert_eq!(open["maxPayload"], HTTP_BODY_BYTES_MAX);
    let sid = open["sid"].as_str().unwrap().to_owned();
    assert_eq!(ask(driver, POST, &sid, Some("40")), (200, "ok".into()));
    let (_, packet) = ask(driver, GET, &sid, None);
    assert!(packet.starts_with("40{\"sid\":"), "{packet}");
    sid
}

fn try_websocket(driver: &mut Driver, slot: u32, sid: &str) {
    let request = format!(
        "GET /socket.io/?EIO=4&transport=websocket&sid={sid} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    driver.accept(slot, ListenerKind::Http, request.as_bytes());
    driver.turn();
}

/// The WebSocket messages on a connection, as text.
fn read(driver: &mut Driver, slot: u32) -> Vec<String> {
    driver.turn();
    driver.turn();
    let mut bytes = Vec::new();
    driver.sent.retain(|(to, part)| {
        *to != slot || {
            bytes.extend_from_slice(part);
            false
        }
    });
    let head = if bytes.starts_with(b"HTTP/") {
        bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4
    } else {
        0
    };
    let shown = |(opcode, bytes): (u8, Vec<u8>)| match opcode {
        1 => String::from_utf8(bytes).unwrap(),
        8 => format!("close {}", u16::from_be_bytes([bytes[0], bytes[1]])),
        _ => format!("{bytes:?}"),
    };
    messages(&bytes[head..]).into_iter().map(shown).collect()
}

fn send(driver: &mut Driver, slot: u32, packet: &str) {
    driver.receive(slot, &masked(0x81, packet.as_bytes()));
}

fn upgraded(driver: &mut Driver, sid: &str) {
    try_websocket(driver, SOCKET, sid);
    assert_eq!(read(driver, SOCKET), [""; 0]);
    send(driver, SOCKET, "2probe");
    assert_eq!(read(driver, SOCKET), ["3probe"]);
    send(driver, SOCKET, "5");
}

#[test]
fn a_client_that_polls_subscribes_publishes_and_gets_its_ticks() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    assert_eq!(ask(&mut driver, POST, &sid, Some("420[\"subscribe\",\"a\"]")), (200, "ok".into()));
    let packets =
        "421[\"publish\",\"a\",7]\u{1e}451-2[\"publish\",\"a\",{\"_placeholder\":true,\"num\":0}]\u{1e}bAB7/";
    assert_eq!(ask(&mut driver, POST, &sid, Some(packets)), (200, "ok".into()));
    let (_, got) = ask(&mut driver, GET, &sid, None);
    let got: Vec<&str> = got.split('\u{1e}').collect();
    assert!(got[0].starts_with("430[{\"op\":\"subscribed\""), "{got:?}");
    assert!(got.iter().any(|packet| packet.starts_with("431[{\"op\":\"published\"")), "{got:?}");
    assert!(
        got.iter().any(|packet| packet.starts_with("42[\"tick\",{\"topic\":\"a\",\"seq\":1,")),
        "{got:?}"
    );
    assert!(got.windows(2).any(|two| two[0].starts_with("451-[\"tick\"") && two[1] == "bAB7/"), "{got:?}");

    // A GET waits until there is something, and the next one too.
    for sequence in 3..6 {
        request(&mut driver, GET, &sid, None);
        assert_eq!(answers(&mut driver, GET), []);
        publish(&mut driver, "a", b"1");
        let (status, packet) = answer(&mut driver, GET);
        assert!(status == 200 && packet.contains(&format!("\"seq\":{sequence},")), "{packet}");
    }
}

#[test]
fn ticks_between_two_polls_wait_and_policies_apply_to_them() {
    let limits = Limits { behind_bytes: 4 << 10, ..Limits::default() };
    let mut driver = driver_with(limits);
    let sid = connected(&mut driver);
    ask(&mut driver, POST, &sid, Some("42[\"subscribe\",\"a\",{\"policy\":\"conflate\"}]"));
    for _ in 0..200 {
        publish(&mut driver, "a", &[b'7'; 100]);
    }
    let mut got = Vec::new();
    while !got.iter().any(|packet: &String| packet.contains("\"seq\":200,")) {
        let (_, packets) = ask(&mut driver, GET, &sid, None);
        got.extend(packets.split('\u{1e}').map(str::to_owned));
    }
    assert!(got.iter().any(|packet| packet.starts_with("42[\"conflated\"")), "{got:?}");
    assert!(got.len() < 150, "{}", got.len());
}

#[test]
fn a_message_longer_than_a_send_arrives_whole() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    ask(&mut driver, POST, &sid, Some("42[\"subscribe\",\"a\"]"));
    let long = format!("\"{}\"", "x".repeat(200_000));
    publish(&mut driver, "a", long.as_bytes());
    request(&mut driver, GET, &sid, None);
    for _ in 0..10 {
        driver.turn();
    }
    let mut whole = String::new();
    for _ in 0..5 {
        whole += &answers(&mut driver, GET).into_iter().map(|(_, body)| body).collect::<String>();
        if whole.contains(&long) {
            return;
        }
        request(&mut driver, GET, &sid, None);
    }
    panic!("{} bytes", whole.len());
}

#[test]
fn an_upgraded_session_goes_on_over_its_websocket() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    ask(&mut driver, POST, &sid, Some("42[\"subscribe\",\"a\"]"));
    request(&mut driver, GET, &sid, None);
    driver.turn();
    answers(&mut driver, GET);
    request(&mut driver, GET, &sid, None);
    upgraded(&mut driver, &sid);
    assert_eq!(answer(&mut driver, GET), (200, "6".into()), "the waiting poll ends");
    assert_eq!(read(&mut driver, SOCKET), [""; 0]);
    publish(&mut driver, "a", b"\xff");
    let got = read(&mut driver, SOCKET);
    assert!(got[0].starts_with("42[\"subscribed\",{"), "{got:?}");
    assert!(got[1].starts_with("451-[\"tick\",{") && got[2] == "[255]", "{got:?}");
    send(&mut driver, SOCKET, "423[\"publish\",\"b\",1]");
    assert!(read(&mut driver, SOCKET)[0].starts_with("433[{\"op\":\"published\",\"id\":3,"));
    assert_eq!(ask(&mut driver, GET, &sid, None).0, 400, "no more polling");
    // It leaves: the session and its WebSocket end together.
    send(&mut driver, SOCKET, "41");
    assert_eq!(read(&mut driver, SOCKET), ["close 1000"]);
    driver.shard.handle_eof(SlotId(SOCKET), driver.now);
    driver.turn();
    assert_eq!(driver.shard.sessions_len(), 4);
}

#[test]
fn what_waits_at_the_upgrade_comes_over_the_websocket_and_a_poll_in_mid_upgrade_ends_at_once() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    ask(&mut driver, POST, &sid, Some("42[\"subscribe\",\"a\"]"));
    let (_, _) = ask(&mut driver, GET, &sid, None);
    try_websocket(&mut driver, SOCKET, &sid);
    send(&mut driver, SOCKET, "2probe");
    assert_eq!(read(&mut driver, SOCKET), ["3probe"]);
    assert_eq!(ask(&mut driver, GET, &sid, None), (200, "6".into()));
    publish(&mut driver, "a", b"1");
    assert_eq!(ask(&mut driver, GET, &sid, None), (200, "6".into()));
    assert_eq!(ask(&mut driver, POST, &sid, Some("421[\"unsubscribe\",\"x\"]")), (200, "ok".into()));
    send(&mut driver, SOCKET, "5");
    let got = read(&mut driver, SOCKET);
    assert!(got.iter().any(|packet| packet.starts_with("42[\"tick\"")), "{got:?}");
    assert!(got.iter().any(|packet| packet.starts_with("431[{\"op\":\"error\"")), "{got:?}");
}

#[test]
fn two_polls_at_once_end_their_session_and_no_other() {
    let mut driver = driver();
    let (sid, other) = (connected(&mut driver), connected(&mut driver));
    request(&mut driver, GET, &sid, None);
    assert_eq!(ask(&mut driver, OTHER, &sid, None), (400, bad_request()));
    let (_, first) = answer(&mut driver, GET);
    assert!(first.starts_with("42[\"closing\",{\"op\":\"closing\",\"code\":1002,"), "{first}");
    assert!(first.ends_with("\u{1e}41"), "the end comes after the client has read why: {first}");
    assert_eq!(driver.shard.counters().value(Counter::ClosedProtocol), 1);
    assert_eq!(ask(&mut driver, POST, &other, Some("420[\"subscribe\",\"a\"]")), (200, "ok".into()));
    assert_eq!(ask(&mut driver, GET, &sid, None), (400, unknown_session()));
}

#[test]
fn a_session_that_is_not_polled_ends_after_the_ping_and_its_slot_is_free_again() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    let sessions = driver.shard.sessions_len();
    driver.pass(40 * SECOND_NS);
    assert_eq!(driver.shard.counters().value(Counter::ClosedHeartbeatTimeout), 2, "it, and the publisher");
    assert!(driver.shard.sessions_len() < sessions);
    driver.accept(GET + 10, ListenerKind::Http, b"");
    let (status, _) = ask(&mut driver, GET + 10, &sid, None);
    assert_eq!(status, 400);
    assert_eq!(driver.shard.polling.free.len(), 1);
    assert!(driver.shard.polling.by_source.is_empty());
}

#[test]
fn a_client_that_answers_its_pings_goes_on() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    for _ in 0..4 {
        request(&mut driver, GET, &sid, None);
        driver.pass(26 * SECOND_NS);
        assert_eq!(answer(&mut driver, GET), (200, "2".into()));
        assert_eq!(ask(&mut driver, POST, &sid, Some("3")), (200, "ok".into()));
    }
}

#[test]
fn a_session_that_does_not_connect_in_time_ends() {
    let mut driver = driver();
    let (_, packet) = ask(&mut driver, GET, "", None);
    assert!(packet.starts_with('0'));
    driver.pass(7 * SECOND_NS);
    assert_eq!(
        driver.shard.counters().value(Counter::ClosedHandshakeDeadline),
        3,
        "it, and the idle connections"
    );
}

#[test]
fn names_that_no_server_has_given_are_unknown() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    let mut forged = sid.clone().into_bytes();
    let last = forged.len() - 1;
    forged[last] = if forged[last] == b'0' { b'1' } else { b'0' };
    for name in
        [String::from_utf8(forged).unwrap(), "0.00".into(), "9.00000000000000000000000000000000".into()]
    {
        driver.accept(20, ListenerKind::Http, b"");
        assert_eq!(ask(&mut driver, 20, &name, None), (400, unknown_session()), "{name}");
        driver.shard.handle_error(SlotId(20), 104, driver.now);
        driver.turn();
        try_websocket(&mut driver, 21, &name);
        let (status, body) = answer(&mut driver, 21);
        assert_eq!((status, body), (400, unknown_session()));
        driver.shard.handle_error(SlotId(21), 104, driver.now);
        driver.turn();
    }
}

#[test]
fn a_socket_that_breaks_the_upgrade_is_closed_and_polling_goes_on() {
    for packet in ["5", "40", "2other", "x"] {
        let mut driver = driver();
        let sid = connected(&mut driver);
        try_websocket(&mut driver, SOCKET, &sid);
        send(&mut driver, SOCKET, packet);
        assert!(read(&mut driver, SOCKET).contains(&"close 1002".to_owned()), "{packet}");
        assert_eq!(ask(&mut driver, POST, &sid, Some("420[\"subscribe\",\"a\"]")), (200, "ok".into()));
        assert!(ask(&mut driver, GET, &sid, None).1.starts_with("430["));
    }
    // One that is lost after the probe.
    let mut driver = driver();
    let sid = connected(&mut driver);
    try_websocket(&mut driver, SOCKET, &sid);
    send(&mut driver, SOCKET, "2probe");
    driver.turn();
    driver.shard.handle_error(SlotId(SOCKET), 104, driver.now);
    ask(&mut driver, POST, &sid, Some("420[\"subscribe\",\"a\"]"));
    assert!(ask(&mut driver, GET, &sid, None).1.starts_with("430["));
}

#[test]
fn the_end_of_one_probing_socket_takes_nothing_from_another() {
    for has_probed in [false, true] {
        let mut driver = driver();
        let sid = connected(&mut driver);
        try_websocket(&mut driver, SECOND_SOCKET, &sid);
        if has_probed {
            send(&mut driver, SECOND_SOCKET, "2probe");
        }
        try_websocket(&mut driver, SOCKET, &sid);
        send(&mut driver, SOCKET, "2probe");
        driver.shard.handle_error(SlotId(SECOND_SOCKET), 104, driver.now);
        driver.turn();
        send(&mut driver, SOCKET, "5");
        send(&mut driver, SOCKET, "420[\"subscribe\",\"a\"]");
        let got = read(&mut driver, SOCKET);
        assert!(got.iter().any(|packet| packet.starts_with("430[")), "{got:?}");
    }
}

#[test]
fn a_websocket_that_is_lost_ends_its_session() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    upgraded(&mut driver, &sid);
    driver.turn();
    driver.shard.handle_error(SlotId(SOCKET), 104, driver.now);
    driver.pass(2 * SECOND_NS);
    assert_eq!(driver.shard.sessions_len(), 4, "publisher and three idle connections");
    assert_eq!(driver.shard.polling.free.len(), 1);
}

#[test]
fn a_websocket_that_closes_while_ticks_wait_ends_its_session() {
    for leaves in [false, true] {
        let mut driver = driver();
        let sid = connected(&mut driver);
        ask(&mut driver, POST, &sid, Some("42[\"subscribe\",\"a\"]"));
        upgraded(&mut driver, &sid);
        driver.turn();
        driver.full.insert(SOCKET);
        for _ in 0..10 {
            publish(&mut driver, "a", &[b'7'; 10_000]);
        }
        match leaves {
            true => send(&mut driver, SOCKET, "41"),
            false => driver.receive(SOCKET, &masked(0x88, &1000_u16.to_be_bytes())),
        }
        driver.turn();
        driver.open();
        for _ in 0..10 {
            driver.turn();
        }
        driver.shard.handle_eof(SlotId(SOCKET), driver.now);
        driver.pass(2 * SECOND_NS);
        assert_eq!(driver.shard.sessions_len(), 4);
        assert_eq!(driver.shard.polling.free.len(), 1);
    }
}

#[test]
fn a_poll_whose_connection_is_lost_leaves_the_session_to_the_next_one() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    ask(&mut driver, POST, &sid, Some("420[\"subscribe\",\"a\"]"));
    ask(&mut driver, GET, &sid, None);
    request(&mut driver, GET, &sid, None);
    driver.shard.handle_error(SlotId(GET), 104, driver.now);
    publish(&mut driver, "a", b"1");
    let (_, got) = ask(&mut driver, OTHER, &sid, None);
    assert!(got.contains("42[\"tick\""), "{got}");
}

#[test]
fn posts_whose_connections_are_lost_do_not_pile_up_in_a_session_that_is_not_polled() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    // So many errors that its input waits until somebody fetches them.
    let flood = vec!["420[\"shout\"]"; 4_000].join("\u{1e}");
    request(&mut driver, POST, &sid, Some(&flood));
    assert_eq!(answers(&mut driver, POST), [], "it waits");
    driver.shard.handle_error(SlotId(POST), 104, driver.now);
    driver.turn();
    assert_eq!(ask(&mut driver, OTHER, &sid, Some(&flood)), (400, bad_request()));
    let (status, got) = ask(&mut driver, GET, &sid, None);
    assert!(status == 200 && got.contains("42[\"closing\""), "{status} {got}");
}

#[test]
fn a_stopping_server_tells_pollers_and_waits_for_no_others() {
    let mut driver = driver();
    let (polled, _idle, upgraded_sid) =
        (connected(&mut driver), connected(&mut driver), connected(&mut driver));
    upgraded(&mut driver, &upgraded_sid);
    driver.turn();
    request(&mut driver, GET, &polled, None);
    driver.shard.begin_drain(driver.now.monotonic_ns + 60 * SECOND_NS, driver.now);
    let got = read(&mut driver, SOCKET);
    assert!(got[0].starts_with("42[\"closing\",{\"op\":\"closing\",\"code\":3001,"), "{got:?}");
    assert_eq!(got[1..], ["close 1001"]);
    let (_, got) = answer(&mut driver, GET);
    assert!(got.starts_with("42[\"closing\",{\"op\":\"closing\",\"code\":3001,"), "{got}");
    for slot in [PUBLISHER, GET, POST, OTHER, SOCKET] {
        driver.turn();
        driver.shard.handle_eof(SlotId(slot), driver.now);
    }
    driver.turn();
    assert_eq!(driver.shard.sessions_len(), 0);
}

#[test]
fn a_client_that_polls_through_a_proxy_has_the_limits_of_its_own_address() {
    const PROXY: u32 = 5;
    let proxies: Networks = "10.0.0.0/8".parse().unwrap();
    let mut driver = driver_with(Limits { trusted_proxies: proxies.clone(), ..Limits::default() });
    let sources = Sources::new(Networks::default(), proxies);
    driver.shard.set_sources(sources.clone());
    driver.shard.handle_accept_proxied(
        SlotId(PROXY),
        ListenerKind::Http,
        ClientAddress::ForwardedFor,
        driver.now,
    );
    let mut open = |address: &str| {
        let request = format!(
            "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n"
        );
        driver.receive(PROXY, request.as_bytes());
        driver.turn();
        let (status, _) = answer(&mut driver, PROXY);
        (status, driver.shard.polling.by_source.clone())
    };
    let of = |address: &str| sources.find(address.parse().unwrap()).unwrap().1;
    let (first, second) = (of("203.0.113.7"), of("203.0.113.8"));
    for _ in 0..POLLING_SESSIONS_PER_SOURCE_MAX {
        assert_eq!(open("203.0.113.7, 10.0.0.1").0, 200);
    }
    let (status, by_source) = open("198.51.100.1, 203.0.113.7");
    assert_eq!(
        (status, by_source[&first]),
        (503, POLLING_SESSIONS_PER_SOURCE_MAX),
        "the last address counts"
    );
    let (status, by_source) = open("203.0.113.8");
    assert_eq!((status, by_source[&second], by_source.len()), (200, 1, 2));
    assert_eq!(driver.shard.sessions.get(SlotId(PROXY)).unwrap().source, SourceId::default());
}

#[test]
fn a_second_session_of_an_identity_replaces_the_first_if_configured_and_the_first_learns_why() {
    for identity_replaces in [false, true] {
        let mut driver = driver_with(Limits { identity_replaces, ..Limits::default() });
        let first = connected_as(&mut driver, "desk-7");
        let second = connected_as(&mut driver, "desk-7");
        assert_eq!(ask(&mut driver, POST, &second, Some("420[\"subscribe\",\"a\"]")), (200, "ok".into()));
        request(&mut driver, GET, &first, None);
        let got = answers(&mut driver, GET);
        match identity_replaces {
            false => assert_eq!(got, []),
            true => {
                assert!(got[0].1.starts_with("42[\"closing\",{\"op\":\"closing\",\"code\":3502,"), "{got:?}")
            }
        }
        let replaced = driver.shard.counters().value(Counter::ClosedReplaced);
        assert_eq!(replaced, u64::from(identity_replaces));
    }
}

#[test]
fn what_a_websocket_sends_while_its_session_ends_is_dropped_and_the_goodbye_is_sent() {
    let mut driver = driver();
    let sid = connected(&mut driver);
    ask(&mut driver, POST, &sid, Some("42[\"subscribe\",\"a\"]"));
    upgraded(&mut driver, &sid);
    read(&mut driver, SOCKET);
    driver.full.insert(SOCKET);
    publish(&mut driver, "a", &[b'7'; 10_000]);
    publish(&mut driver, "a", &[b'7'; 10_000]);
    // The beginning of a message, then the frame that ends the session, which is not masked.
    driver.receive(SOCKET, &masked(0x01, &[b'x'; 5_000]));
    driver.turn();
    assert!(driver.shard.sessions.unfinished_bytes() > 0);
    driver.receive(SOCKET, b"\x80\x01x");
    driver.turn();
    // And more of it: another broken frame, and the beginning of a long one.
    driver.receive(SOCKET, b"\x80\x01x");
    driver.turn();
    driver.receive(SOCKET, &masked(0x81, &[b'x'; 50_000])[..40_000]);
    driver.turn();
    let socket = driver.shard.sessions.open_mut(SlotId(SOCKET)).expect("it carries the goodbye");
    assert_eq!(socket.input(), b"");
    assert_eq!(driver.shard.sessions.unfinished_bytes(), 0);
    driver.open();
    let got = read(&mut driver, SOCKET);
    let closing =
        got.iter().position(|packet| packet.starts_with("42[\"closing\",{\"op\":\"closing\",\"code\":1002,"));
    assert!(closing.is_some() && got.last().unwrap() == "close 1002", "{got:?}");
}
