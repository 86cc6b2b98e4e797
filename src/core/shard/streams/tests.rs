use std::collections::{HashMap, HashSet};

use crate::{
    config::Limits,
    ids::{SlotId, TenantId},
    limits::{HISTORY_TICKS_DEFAULT, RESUME_WINDOW_MS},
    metrics::counters::Counter,
    session::ListenerKind,
    tenants::{Exports, TenantConfig, Tenants},
    testing::{Driver, hello},
};
use tickcast_proto::{frame, http::access::Access, limits::LAST_EVENT_ID_BYTES_MAX, records::Publish};

const PUBLISHER: u32 = 0;
const READER: u32 = 1;
const LATER: u32 = 2;

/// An event as a client reads it: its name, its data, and the id that it sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    data: String,
    id: Option<String>,
}

fn driver() -> Driver {
    driver_with(Limits::default())
}

fn driver_with(limits: Limits) -> Driver {
    let mut driver = Driver::new(limits);
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver
}

fn publish(driver: &mut Driver, topic: &str, payload: &str) {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, payload.as_bytes());
    driver.receive(PUBLISHER, &bytes);
}

fn open(driver: &mut Driver, slot: u32, query: &str, headers: &str) {
    let request = format!("GET /sse?{query} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    driver.accept(slot, ListenerKind::Http, request.as_bytes());
    driver.turn();
}

fn resume(driver: &mut Driver, slot: u32, query: &str, id: &str) {
    open(driver, slot, query, &format!("Last-Event-ID: {id}\r\n"));
}

fn text(driver: &mut Driver, slot: u32) -> String {
    driver.turn();
    String::from_utf8(driver.take_sent(slot)).unwrap()
}

/// The events in a stream's next bytes, after the response's head if that is among them.
fn events(driver: &mut Driver, slot: u32) -> Vec<Event> {
    let sent = text(driver, slot);
    let body = sent.split_once("\r\n\r\n").map_or(sent.as_str(), |(_, body)| body);
    parse(body)
}

fn parse(body: &str) -> Vec<Event> {
    assert!(body.is_empty() || body.ends_with("\n\n"), "whole events: {body:?}");
    let mut events = Vec::new();
    for block in body.split("\n\n").filter(|block| !block.is_empty()) {
        let mut event = Event::default();
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("data", data)) => event.data += data,
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("retry", _)) => {}
                _ => assert_eq!(line, ":", "{block:?}"),
            }
        }
        events.extend((event != Event::default()).then_some(event));
    }
    events
}

/// Topics and sequences of the ticks among events.
fn ticks(events: &[Event]) -> Vec<(String, u64)> {
    let ticks = events.iter().filter(|event| event.name == "tick");
    ticks
        .map(|event| {
            let tick: serde_json::Value = serde_json::from_str(&event.data).unwrap();
            (tick["topic"].as_str().unwrap().to_owned(), tick["seq"].as_u64().unwrap())
        })
        .collect()
}

fn last_id(events: &[Event]) -> String {
    events.iter().rev().find_map(|event| event.id.clone()).expect("an event has an id")
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

#[test]
fn a_stream_begins_with_its_headers_and_each_send_ends_with_the_place_of_its_client() {
    let mut driver = driver();
    open(&mut driver, READER, "topics=a.b,a.c", "Accept: text/event-stream\r\n");
    let sent = text(&mut driver, READER);
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    for line in [
        "HTTP/1.1 200 OK",
        "Content-Type: text/event-stream",
        "Cache-Control: no-store",
        "X-Accel-Buffering: no",
        "Connection: close",
    ] {
        assert!(head.lines().any(|found| found == line), "{line}: {head}");
    }
    assert!(body.starts_with("retry: 1000\n\n"), "{body}");
    assert_eq!(names(&parse(body)), ["subscribed", "subscribed", "place"]);
    for (topic, payload) in [("a.b", "1"), ("a.c", "{\n}"), ("a.b", "3")] {
        publish(&mut driver, topic, payload);
    }
    let found = events(&mut driver, READER);
    assert_eq!(names(&found), ["subscribed", "tick", "subscribed", "tick", "tick", "place"]);
    assert_eq!(ticks(&found), [("a.b".into(), 1), ("a.c".into(), 1), ("a.b".into(), 2)]);
    let id = last_id(&found);
    let sequences: Vec<&str> = id.split(';').skip(1).map(|place| place.rsplit('.').next().unwrap()).collect();
    assert_eq!(sequences, ["2", "1"], "{id}");
}

#[test]
fn a_client_that_sends_its_last_id_misses_nothing_and_gets_nothing_twice() {
    let mut driver = driver();
    open(&mut driver, READER, "topics=a.>", "");
    for payload in 1..=3 {
        publish(&mut driver, "a.b", &payload.to_string());
        publish(&mut driver, "a.c", &payload.to_string());
    }
    let id = last_id(&events(&mut driver, READER));
    // The connection is cut here: none of these arrive.
    for payload in 4..=6 {
        publish(&mut driver, "a.b", &payload.to_string());
    }
    publish(&mut driver, "a.new", "1");
    driver.shard.handle_error(SlotId(READER), 104, driver.now);
    driver.turn();
    resume(&mut driver, LATER, "topics=a.>", &id);
    let mut found = events(&mut driver, LATER);
    publish(&mut driver, "a.c", "4");
    found.extend(events(&mut driver, LATER));
    let mut got = ticks(&found);
    got.sort_unstable();
    let expected = [("a.b", 4), ("a.b", 5), ("a.b", 6), ("a.c", 4), ("a.new", 1)];
    assert_eq!(got, expected.map(|(topic, sequence)| (topic.to_owned(), sequence)));
    let recovered: Vec<&Event> = found.iter().filter(|event| event.name == "recovered").collect();
    assert_eq!(recovered.len(), 2);
    assert!(recovered.iter().all(|event| event.data.contains("\"recovered\":true")), "{recovered:?}");
    // The id contains the earlier topics and the new one.
    assert_eq!(last_id(&found).split(';').count(), 1 + 3);
}

#[test]
fn a_client_cut_off_before_its_first_tick_gets_what_it_has_missed_and_nothing_older() {
    for (patterns, later) in [("a.b,a.new", 0), ("a.>", 0), ("a.b,a.new", 3_600)] {
        let mut driver = driver();
        for payload in 1..=5 {
            publish(&mut driver, "a.b", &payload.to_string());
        }
        // More than the slack.
        driver.pass(3 * 1_000_000_000);
        open(&mut driver, READER, &format!("topics={patterns}"), "");
        let id = last_id(&events(&mut driver, READER));
        driver.pass(later * 1_000_000_000);
        driver.shard.handle_error(SlotId(READER), 104, driver.now);
        driver.turn();
        driver.accept(PUBLISHER + 3, ListenerKind::Native, &hello());
        let slot = PUBLISHER + 3;
        for (topic, payload) in [("a.b", "6"), ("a.new", "1"), ("a.new", "2"), ("a.b", "7")] {
            let mut bytes = Vec::new();
            frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, payload.as_bytes());
            driver.receive(slot, &bytes);
        }
        for next in [LATER, READER] {
            resume(&mut driver, next, &format!("topics={patterns}"), &id);
            let found: Vec<Event> = (0..5).flat_map(|_| events(&mut driver, next)).collect();
            let mut got = ticks(&found);
            got.sort_unstable();
            let expected = [("a.b", 6), ("a.b", 7), ("a.new", 1), ("a.new", 2)];
            assert_eq!(got, expected.map(|(topic, sequence)| (topic.to_owned(), sequence)), "{patterns}");
            assert!(!names(&found).contains(&"gap"), "{found:?}");
            driver.shard.handle_error(SlotId(next), 104, driver.now);
            driver.turn();
        }
    }
}

#[test]
fn what_a_client_may_have_missed_before_the_history_begins_is_announced() {
    let mut driver = driver();
    open(&mut driver, READER, "topics=a.b", "");
    let id = last_id(&events(&mut driver, READER));
    driver.shard.handle_error(SlotId(READER), 104, driver.now);
    driver.turn();
    for payload in 0..HISTORY_TICKS_DEFAULT + 10 {
        publish(&mut driver, "a.b", &payload.to_string());
    }
    resume(&mut driver, LATER, "topics=a.b", &id);
    let found: Vec<Event> = (0..40).flat_map(|_| events(&mut driver, LATER)).collect();
    let gaps: Vec<&Event> = found.iter().filter(|event| event.name == "gap").collect();
    assert_eq!(gaps.len(), 1, "{:?}", names(&found));
    assert!(gaps[0].data.contains("\"from\":1,"), "{gaps:?}");
    assert_eq!(ticks(&found).last(), Some(&("a.b".to_owned(), HISTORY_TICKS_DEFAULT as u64 + 10)));
}

#[test]
fn an_id_of_another_server_is_a_lost_position_not_an_error_that_ends_the_event_source() {
    let long = format!("{}=1.2", "a".repeat(LAST_EVENT_ID_BYTES_MAX));
    for id in ["x", "42", "%ff=1.2", &long] {
        let mut driver = driver();
        publish(&mut driver, "a.b", "1");
        resume(&mut driver, READER, "topics=a.b", id);
        let found = events(&mut driver, READER);
        assert!(found.iter().any(|event| event.data.contains("\"recovered\":false")), "{id}: {found:?}");
        assert_eq!(ticks(&found), [("a.b".into(), 1)], "{id}");
    }
}

#[test]
fn places_that_no_id_can_hold_are_kept_and_any_send_of_them_can_be_resumed() {
    for is_noticed in [false, true] {
        let mut driver = driver();
        open(&mut driver, READER, "topics=t.>", "");
        let mut seen: HashSet<(String, u64)> = HashSet::new();
        let mut note = |found: &[Event]| {
            for tick in ticks(found) {
                assert!(seen.insert(tick.clone()), "{tick:?} came twice");
            }
            seen.len()
        };
        for n in 0..200 {
            publish(&mut driver, &topic(n), "1");
        }
        let found = events(&mut driver, READER);
        note(&found);
        assert!(last_id(&found).starts_with("@0."), "{}", last_id(&found));
        for n in 0..3 {
            publish(&mut driver, &topic(n), "2");
        }
        let found = events(&mut driver, READER);
        note(&found);
        let id = last_id(&found);
        // These SENDs do not arrive.
        for n in 0..5 {
            publish(&mut driver, &topic(n), "3");
            events(&mut driver, READER);
        }
        if is_noticed {
            driver.shard.handle_error(SlotId(READER), 104, driver.now);
            driver.turn();
        }
        resume(&mut driver, LATER, "topics=t.>", &id);
        let mut found = Vec::new();
        for _ in 0..20 {
            found.extend(events(&mut driver, LATER));
        }
        assert_eq!(note(&found), 200 + 3 + 5, "is_noticed: {is_noticed}");
        assert!(!found.iter().any(|event| event.data.contains("\"recovered\":false")));
    }
}

#[test]
fn a_client_whose_places_are_gone_is_told_so_for_each_topic() {
    let mut driver = driver();
    publish(&mut driver, "a.b", "1");
    publish(&mut driver, "a.b", "2");
    resume(&mut driver, READER, "topics=a.b", "@0.0123456789abcdef.7");
    let found = events(&mut driver, READER);
    let recovered: Vec<&Event> = found.iter().filter(|event| event.name == "recovered").collect();
    assert!(recovered.len() == 1 && recovered[0].data.contains("\"recovered\":false"), "{found:?}");
    assert_eq!(ticks(&found), [("a.b".into(), 1), ("a.b".into(), 2)]);
}

#[test]
fn ids_never_exceed_their_bound_however_many_topics_there_are() {
    let mut driver = driver();
    open(&mut driver, READER, "topics=>", "");
    for n in 0..400 {
        publish(&mut driver, &format!("x.{}.{n}", "\u{20ac}".repeat(10)), "1");
        for event in events(&mut driver, READER) {
            assert!(event.id.is_none_or(|id| id.len() <= LAST_EVENT_ID_BYTES_MAX && id.is_ascii()));
        }
    }
}

#[test]
fn lines_are_the_messages_alone() {
    let mut driver = driver();
    publish(&mut driver, "a.b", "1");
    open(&mut driver, READER, "topics=a.b&from=latest", "Accept: application/x-ndjson\r\n");
    publish(&mut driver, "a.b", "[\n2]");
    let sent = text(&mut driver, READER);
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("Content-Type: application/x-ndjson\r\n"), "{head}");
    let lines: Vec<serde_json::Value> =
        body.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let ticks: Vec<_> = lines.iter().filter(|line| line["op"].is_null()).map(|line| &line["data"]).collect();
    assert_eq!(ticks, [&serde_json::json!(1), &serde_json::json!([2])]);
}

#[test]
fn a_stream_that_is_behind_is_conflated_and_goes_on_from_what_it_got() {
    let mut driver = driver();
    open(&mut driver, READER, "topics=a.b&policy=conflate", "");
    publish(&mut driver, "a.b", "0");
    let mut found = events(&mut driver, READER);
    driver.full.insert(READER);
    let payload = format!("\"{}\"", "x".repeat(1_000));
    for _ in 0..2_000 {
        publish(&mut driver, "a.b", &payload);
        driver.turn();
    }
    driver.open();
    for _ in 0..10 {
        found.extend(parse(&text(&mut driver, READER)));
    }
    assert!(names(&found).contains(&"conflated"), "{:?}", names(&found).iter().collect::<HashSet<_>>());
    let got = ticks(&found);
    assert_eq!(got.last(), Some(&("a.b".to_owned(), 2_001)));
    assert!(got.windows(2).all(|pair| pair[0].1 < pair[1].1));
    assert!(last_id(&found).ends_with(".2001"), "{}", last_id(&found));
}

#[test]
fn a_stream_has_heartbeats_and_ends_if_its_socket_stays_full() {
    let limits =
        Limits { ping_interval_ns: 10_000_000_000, ping_timeout_ns: 10_000_000_000, ..Limits::default() };
    let mut driver = driver_with(limits);
    open(&mut driver, READER, "topics=a.b&policy=conflate", "");
    text(&mut driver, READER);
    driver.pass(120_000_000_000);
    let beats = text(&mut driver, READER);
    assert!(beats.len() >= 3 * 10 && beats.replace(":\n\n", "").is_empty(), "{beats:?}");
    assert_eq!(
        driver.shard.sessions_len(),
        1,
        "the publisher, who does not answer pings, is gone; the stream is not"
    );
    driver.full.insert(READER);
    driver.pass(60_000_000_000);
    assert_eq!(driver.shard.sessions_len(), 0);
}

#[test]
fn a_client_that_sends_anything_after_its_request_is_told_why_its_stream_ends() {
    let mut driver = driver();
    open(&mut driver, READER, "topics=a.b", "");
    driver.receive(READER, b"\r\n");
    text(&mut driver, READER);
    driver.receive(READER, b"GET / HTTP/1.1\r\n\r\n");
    let found = events(&mut driver, READER);
    assert_eq!(names(&found), ["closing"]);
    assert!(found[0].data.contains("\"code\":1002"), "{found:?}");
}

#[test]
fn bad_requests_are_refused_before_the_stream_begins() {
    let cases: HashMap<(&str, &str), &str> = [
        (("", ""), "400"),
        (("topics=", ""), "400"),
        (("topics=a..b", ""), "400"),
        (("topics=a&from=x", ""), "400"),
        (("topics=a&policy=x", ""), "400"),
        (("topics=a&max_rate=0", ""), "400"),
        (("topics=a&unknown=1", ""), "400"),
        (("topics=a&token=x", ""), "400"),
        (("topics=a", "Content-Length: 1\r\n"), "400"),
        (("topics=a", "Origin: http://elsewhere\r\n"), "403"),
    ]
    .into();
    for ((query, headers), status) in cases {
        let mut driver = driver();
        open(&mut driver, READER, query, &format!("{headers}\r\nx"));
        let sent = text(&mut driver, READER);
        assert!(sent.starts_with(&format!("HTTP/1.1 {status} ")), "{query} {headers}: {sent}");
    }
}

/// Opens a stream of a tenant's client that has too many positions for an id, and returns its id.
fn id_of_kept_places(driver: &mut Driver, tenant: TenantId, patterns: &str) -> String {
    open_of(driver, READER, tenant, patterns, "");
    let lines: Vec<String> = (0..200).map(|n| format!("{{\"topic\":\"{}\",\"data\":1}}", topic(n))).collect();
    let body = lines.join("\n");
    let length = body.len();
    driver.shard.handle_accept(SlotId(PUBLISHER), ListenerKind::Http, driver.now);
    driver.shard.set_tenant(SlotId(PUBLISHER), tenant);
    let head = format!(
        "POST /v1/publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {length}\r\n\r\n"
    );
    driver.receive(PUBLISHER, [head, body].concat().as_bytes());
    let id = last_id(&events(driver, READER));
    assert!(id.starts_with("@0."), "{id}");
    driver.shard.handle_error(SlotId(READER), 104, driver.now);
    driver.turn();
    id
}

fn topic(n: u32) -> String {
    format!("t.topic-with-a-long-name.{n}")
}

fn open_of(driver: &mut Driver, slot: u32, tenant: TenantId, patterns: &str, id: &str) {
    driver.shard.handle_accept(SlotId(slot), ListenerKind::Http, driver.now);
    driver.shard.set_tenant(SlotId(slot), tenant);
    let header = if id.is_empty() { String::new() } else { format!("Last-Event-ID: {id}\r\n") };
    let request = format!("GET /sse?topics={patterns} HTTP/1.1\r\nHost: x\r\n{header}\r\n");
    driver.receive(slot, request.as_bytes());
    driver.turn();
}

fn driver_of_tenants() -> Driver {
    let config = |name: &str| TenantConfig { name: name.into(), ..TenantConfig::default() };
    let tenants = Tenants::new(["a", "b"].map(config).into(), Exports::default(), 1).unwrap().into();
    Driver::new(Limits { tenants, ..Limits::default() })
}

#[test]
fn the_id_of_kept_places_leads_only_their_own_client_to_them() {
    for (tenant, knows_places) in [(TenantId(1), true), (TenantId(2), false)] {
        let mut driver = driver_of_tenants();
        let id = id_of_kept_places(&mut driver, TenantId(1), "t.>");
        open_of(&mut driver, LATER, tenant, "t.>", &id);
        let found: Vec<Event> = (0..20).flat_map(|_| events(&mut driver, LATER)).collect();
        let recovered = |event: &&Event| event.data.contains("\"recovered\":true");
        assert_eq!(found.iter().filter(recovered).count(), if knows_places { 200 } else { 0 }, "{tenant:?}");
        assert_eq!(
            found.iter().any(|event| event.id.as_ref().is_some_and(|id| id.starts_with('@'))),
            knows_places
        );
    }
}

#[test]
fn a_stream_that_goes_on_keeps_only_the_places_in_its_own_topics() {
    let mut driver = driver_of_tenants();
    let id = id_of_kept_places(&mut driver, TenantId(1), "t.>");
    open_of(&mut driver, LATER, TenantId(1), &topic(7), &id);
    let found: Vec<Event> = (0..5).flat_map(|_| events(&mut driver, LATER)).collect();
    assert!(found.iter().any(|event| event.data.contains("\"recovered\":true")), "{found:?}");
    let places = driver.shard.sessions.any_mut(SlotId(LATER)).unwrap().protocol.places_mut().unwrap();
    assert_eq!(places.topics_len(), 1);
}

#[test]
fn a_resumed_stream_that_stays_quiet_can_be_resumed_once_its_first_places_are_forgotten() {
    let mut driver = driver_of_tenants();
    let mut id = id_of_kept_places(&mut driver, TenantId(1), "t.>");
    for slot in [LATER, READER] {
        open_of(&mut driver, slot, TenantId(1), "t.>", &id);
        let found: Vec<Event> = (0..20).flat_map(|_| events(&mut driver, slot)).collect();
        let recovered = |event: &&Event| event.data.contains("\"recovered\":true");
        assert_eq!(found.iter().filter(recovered).count(), 200);
        id = found.iter().rev().find_map(|event| event.id.clone()).unwrap_or(id);
        driver.pass((RESUME_WINDOW_MS + 1_000) * 1_000_000);
        driver.shard.handle_error(SlotId(slot), 104, driver.now);
        driver.turn();
        driver.take_sent(slot);
    }
}

#[test]
fn head_of_a_stream_has_its_headers_subscribes_to_nothing_and_ends() {
    let mut driver = driver();
    let head = |driver: &mut Driver, target: &str| {
        driver.accept(
            LATER,
            ListenerKind::Http,
            format!("HEAD {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
        );
        let head = text(driver, LATER);
        publish(driver, "a", "1");
        assert_eq!(text(driver, LATER), "", "it has no content");
        head
    };
    let answer = head(&mut driver, "/sse?topics=a");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Type: text/event-stream\r\n"), "{answer}");
}

#[test]
fn a_local_server_answers_requests_over_tls_and_unix_sockets_under_every_name() {
    let http_access = Access { is_local: true, ..Access::default() };
    let limits = Limits { http_access, ..Limits::default() };
    for (is_safe, status) in [(false, "403"), (true, "200")] {
        let mut driver = driver_with(limits.clone());
        driver.accept(READER, ListenerKind::Http, b"");
        if is_safe {
            driver.shard.set_safe_from_rebinding(SlotId(READER));
        }
        driver.receive(READER, b"GET /sse?topics=a HTTP/1.1\r\nHost: ticks.example.com\r\n\r\n");
        let answer = text(&mut driver, READER);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}

#[test]
fn a_head_of_a_stream_ends_no_session_of_its_identity() {
    let mut driver = driver_with(Limits { identity_replaces: true, ..Limits::default() });
    open(&mut driver, READER, "topics=a&client=desk-7", "");
    assert_eq!(names(&events(&mut driver, READER)), ["subscribed", "place"]);
    let head = b"HEAD /sse?topics=a&client=desk-7 HTTP/1.1\r\nHost: x\r\n\r\n";
    driver.accept(LATER, ListenerKind::Http, head);
    let answer = text(&mut driver, LATER);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    publish(&mut driver, "a", "1");
    assert_eq!(ticks(&events(&mut driver, READER)), [("a".to_owned(), 1)]);
    assert_eq!(driver.shard.counters().value(Counter::ClosedReplaced), 0);
}
