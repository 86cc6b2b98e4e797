use serde_json::{Value, json};

use crate::{
    admission::Sources,
    budgets::{BudgetLimits, Rates},
    config::Limits,
    ids::{SlotId, SourceId},
    limits::{CALL_PATTERNS_MAX, CALL_UNITS, MESH_STAGE_BYTES, TURN_SURVEYED},
    mesh::Mesh,
    metrics::counters::Counter,
    networks::Networks,
    now::Now,
    placement,
    principal::AuthRefusal,
    session::{CloseReason, ListenerKind},
    shard::{ClientAddress, Shard},
    testing::{Driver, START, TurnLoop, cluster},
};

use tickcast_proto::ids::ShardId;

pub(super) const CLIENT: u32 = 1;

pub(super) fn driver() -> Driver {
    driver_with(Limits::default())
}

fn driver_with(limits: Limits) -> Driver {
    let mut driver = Driver::new(limits);
    driver.accept(CLIENT, ListenerKind::Http, b"");
    driver
}

/// The status and the body of one answer, which must be whole.
pub(super) fn parse(bytes: &[u8]) -> (u16, String, String) {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    assert_eq!(length.unwrap().parse(), Ok(body.len()), "{text}");
    (status, head.to_owned(), body.to_owned())
}

fn request(driver: &mut Driver, request: &str) -> (u16, Value) {
    driver.receive(CLIENT, request.as_bytes());
    let mut bytes = Vec::new();
    for _ in 0..100 {
        driver.turn();
        bytes.extend(driver.take_sent(CLIENT));
    }
    let (status, _, body) = parse(&bytes);
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

pub(super) fn get(driver: &mut Driver, target: &str) -> (u16, Value) {
    request(driver, &format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

fn post(driver: &mut Driver, target: &str, media_type: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    request(
        driver,
        &format!(
            "POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

fn publish(driver: &mut Driver, topic: &str, body: &str) -> Value {
    let (status, answer) = post(driver, &format!("/v1/publish/{topic}"), "", body);
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn each_form_of_a_publish_is_answered_with_epoch_and_sequence() {
    let mut driver = driver();
    let first = publish(&mut driver, "a.b", "{\"x\":1}");
    assert_eq!((first["topic"].as_str(), first["sequence"].as_u64()), (Some("a.b"), Some(1)));
    let epoch = first["epoch"].as_u64().unwrap();
    let one = r#"{"topic":"a.b","data":[1.50],"key":"7"}"#;
    let (status, answer) = post(&mut driver, "/v1/publish", "application/json", one);
    assert_eq!((status, answer), (200, json!({"topic":"a.b","epoch":epoch,"sequence":2})));
    let many = r#"[{"topic":"a.b","data":3},{"topic":"a.b","data":"AAE=","encoding":"base64"},{"topic":"a..b","data":5}]"#;
    let (status, answer) = post(&mut driver, "/v1/publish", "application/json; charset=utf-8", many);
    assert_eq!((status, answer["failed"].as_u64()), (200, Some(1)));
    assert_eq!(answer["results"][0]["sequence"], 3);
    assert_eq!(answer["results"][1]["sequence"], 4);
    assert_eq!(answer["results"][2]["error"]["code"], 101);
    let lines = "{\"topic\":\"a.b\",\"data\":5}\n\n{\"topic\":\"a.c\",\"data\":6}\r\n";
    let (status, answer) = post(&mut driver, "/v1/publish", "application/x-ndjson", lines);
    assert_eq!((status, answer["failed"].as_u64()), (200, Some(0)));
    let (status, history) = get(&mut driver, "/v1/history?topic=a.b");
    assert_eq!(
        (status, history["epoch"].as_u64(), history["sequence"].as_u64()),
        (200, Some(epoch), Some(5))
    );
    let data: Vec<&Value> = history["ticks"].as_array().unwrap().iter().map(|tick| &tick["data"]).collect();
    assert_eq!(data, [&json!({"x":1}), &json!([1.5]), &json!(3), &json!("AAE="), &json!(5)]);
    assert_eq!(history["ticks"][1]["key"], 7);
}

#[test]
fn a_body_in_chunks_is_read_whole_and_the_next_request_waits_for_the_answer() {
    let mut driver = driver();
    let chunked = "POST /v1/publish/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\n\"ab\r\n2\r\nc\"\r\n0\r\n\r\n";
    let next = "GET /v1/latest?topics=a HTTP/1.1\r\nHost: x\r\n\r\n";
    driver.receive(CLIENT, [chunked, next].concat().as_bytes());
    let mut sent = Vec::new();
    for _ in 0..10 {
        driver.turn();
        sent.extend(driver.take_sent(CLIENT));
    }
    let text = String::from_utf8(sent).unwrap();
    let answers: Vec<&str> = text.split("HTTP/1.1 ").skip(1).collect();
    assert!(answers.len() == 2 && answers.iter().all(|answer| answer.starts_with("200 ")), "{text}");
    assert!(answers[0].contains("\"sequence\":1}") && answers[1].contains("\"data\":\"abc\""), "{text}");
}

#[test]
fn latest_has_the_last_value_of_each_key_page_by_page() {
    let mut driver = driver();
    for key in 1..=5 {
        for value in 0..2 {
            publish(&mut driver, &format!("book.x?key={key}"), &format!("{}", key * 10 + value));
        }
    }
    publish(&mut driver, "quotes.a", "1");
    publish(&mut driver, "quotes.b", "2");
    let (mut found, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let (status, page) =
            get(&mut driver, &format!("/v1/latest?topics=book.x,quotes.*,quotes.a&limit=2{after}"));
        assert_eq!(status, 200, "{page}");
        let ticks =
            page["topics"].as_array().unwrap().iter().flat_map(|topic| topic["ticks"].as_array().unwrap());
        found.extend(ticks.map(|tick| tick["data"].as_u64().unwrap()));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    found.sort_unstable();
    assert_eq!(found, [1, 2, 11, 21, 31, 41, 51]);
    assert!((4..=5).contains(&pages), "{pages}");
    let (status, none) = get(&mut driver, "/v1/latest?topics=nothing.here");
    assert_eq!((status, none), (200, json!({"topics":[],"next":null})));
}

#[test]
fn topics_are_listed_page_by_page_however_many_a_turn_can_visit() {
    let mut driver = driver_with(Limits { topics_max: 3 * TURN_SURVEYED, ..Limits::default() });
    let topics = TURN_SURVEYED + 500;
    for n in 0..topics.div_ceil(1_000) {
        let lines: Vec<String> = (n * 1_000..topics.min((n + 1) * 1_000))
            .map(|at| format!("{{\"topic\":\"t.{at}\",\"data\":1}}"))
            .collect();
        let (status, answer) = post(&mut driver, "/v1/publish", "application/x-ndjson", &lines.join("\n"));
        assert_eq!((status, answer["failed"].as_u64()), (200, Some(0)));
    }
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let (status, page) = get(&mut driver, &format!("/v1/topics?pattern=t.*&limit=1000{after}"));
        assert_eq!(status, 200, "{page}");
        let names = page["topics"].as_array().unwrap().iter();
        found.extend(names.map(|topic| topic["topic"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let listed = found.len();
    found.sort_unstable();
    found.dedup();
    assert_eq!((listed, found.len()), (topics, topics));
    // A pattern that matches none visits all of them.
    assert_eq!(get(&mut driver, "/v1/topics?pattern=u.*"), (200, json!({"topics":[],"next":null})));
}

#[test]
fn history_says_what_is_no_longer_kept_and_whose_epoch_has_passed() {
    let mut driver = driver();
    let mut epoch = 0;
    for n in 0..300 {
        epoch = publish(&mut driver, "a", &n.to_string())["epoch"].as_u64().unwrap();
    }
    let sequences = |history: &Value| -> Vec<u64> {
        history["ticks"].as_array().unwrap().iter().map(|tick| tick["seq"].as_u64().unwrap()).collect()
    };
    let (_, all) = get(&mut driver, "/v1/history?topic=a&limit=1000");
    assert_eq!(sequences(&all), (45..=300).collect::<Vec<_>>());
    assert_eq!((&all["gap"], &all["next"]), (&json!({"from":1,"to":45}), &Value::Null));
    let (_, page) = get(&mut driver, &format!("/v1/history?topic=a&epoch={epoch}&from=290&limit=4"));
    assert_eq!((sequences(&page), &page["next"]), (vec![290, 291, 292, 293], &json!(294)));
    assert_eq!((&page["gap"], &page["recovered"]), (&Value::Null, &json!(true)));
    let (_, past) = get(&mut driver, "/v1/history?topic=a&epoch=1&from=299");
    assert_eq!((sequences(&past)[0], &past["recovered"]), (45, &json!(false)));
    let (_, ahead) = get(&mut driver, "/v1/history?topic=a&from=500");
    assert_eq!((sequences(&ahead), &ahead["recovered"]), (vec![], &json!(false)));
    assert_eq!(get(&mut driver, "/v1/history?topic=b").0, 404);
}

#[test]
fn bad_requests_are_refused_and_the_connection_goes_on() {
    let long = format!("\"{}\"", "x".repeat(60_000));
    let many = format!("[{}]", vec![r#"{"topic":"a","data":1}"#; 1_025].join(","));
    let json = "application/json";
    for (target, media_type, body, status) in [
        ("/v1/publish", json, "", 400),
        ("/v1/publish", json, "[]", 400),
        ("/v1/publish", json, "7", 400),
        ("/v1/publish", json, "{\"topic\":\"a\"}", 400),
        ("/v1/publish", json, "{\"topic\":\"a\",\"data\":1,\"keys\":2}", 400),
        ("/v1/publish", json, "{\"topic\":\"a\",\"data\":\"?\",\"encoding\":\"base64\"}", 400),
        ("/v1/publish", json, "{\"topic\":\"a.*\",\"data\":1}", 400),
        ("/v1/publish", json, many.as_str(), 413),
        ("/v1/publish", "text/plain", "x", 415),
        ("/v1/publish", "application/x-ndjson", "\n\n", 400),
        ("/v1/publish/a..b", json, "1", 400),
        ("/v1/publish/a?key=x", json, "1", 400),
        ("/v1/publish/%FF", json, "1", 400),
        ("/v1/publish/", json, "1", 404),
        ("/v1/latest", json, "", 405),
    ] {
        let mut driver = driver();
        let (found, answer) = post(&mut driver, target, media_type, body);
        assert_eq!(found, status, "{target} {body:.60}: {answer}");
        if [413, 415, 405].contains(&found) {
            publish(&mut driver, "a", &long);
        }
    }
    for target in [
        "/v1/latest",
        "/v1/latest?topics=",
        "/v1/latest?topics=a..b",
        "/v1/latest?topics=a&limit=0",
        "/v1/latest?topics=a&limit=1001",
        "/v1/latest?topics=a&after=x",
        "/v1/latest?topics=a&after=9.0.0.0.0",
        "/v1/latest?topic=a",
        "/v1/history",
        "/v1/history?topic=a.*",
        "/v1/history?topic=a&from=-1",
        "/v1/history?topic=a&topic=b",
        "/v1/topics?pattern=a..b",
        "/v1/topics?token=x",
    ] {
        let (status, answer) = get(&mut driver(), target);
        assert_eq!(status, 400, "{target}: {answer}");
    }
}

/// A publish with an `Idempotency-Key`.
fn publish_keyed(driver: &mut Driver, target: &str, key: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let fields = format!("Host: x\r\nIdempotency-Key: {key}\r\nContent-Length: {length}\r\n\r\n");
    request(driver, &format!("POST {target} HTTP/1.1\r\n{fields}{body}"))
}

#[test]
fn a_request_sent_again_with_its_idempotency_key_publishes_what_is_not_published_yet() {
    let mut driver = driver();
    let (_, first) = publish_keyed(&mut driver, "/v1/publish/a", "\"k\"", "1");
    let again = json!({"topic": "a", "epoch": first["epoch"], "sequence": 1, "duplicate": true});
    assert_eq!(publish_keyed(&mut driver, "/v1/publish/a", "\"k\"", "1"), (200, again.clone()));
    assert_eq!(publish_keyed(&mut driver, "/v1/publish/a", "k", "1"), (200, again.clone()), "without quotes");
    let named = r#"{"topic":"a","data":1,"message_id":"k"}"#;
    assert_eq!(post(&mut driver, "/v1/publish", "", named), (200, again), "in the body");
    assert_eq!(publish_keyed(&mut driver, "/v1/publish/b", "k", "1").1["sequence"], 1, "another topic");
    let several = |topics: [&str; 3]| {
        let ticks: Vec<String> =
            topics.iter().map(|topic| format!("{{\"topic\":\"{topic}\",\"data\":1}}")).collect();
        format!("[{}]", ticks.join(","))
    };
    let (_, answer) = publish_keyed(&mut driver, "/v1/publish", "l", &several(["a", "a..b", "a"]));
    assert_eq!(
        (&answer["results"][0]["sequence"], &answer["results"][2]["sequence"]),
        (&json!(2), &json!(3))
    );
    let (_, answer) = publish_keyed(&mut driver, "/v1/publish", "l", &several(["a", "c", "a"]));
    let results: Vec<(u64, bool)> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| (result["sequence"].as_u64().unwrap(), result["duplicate"] == true))
        .collect();
    assert_eq!(results, [(2, true), (1, false), (3, true)]);
    let (_, answer) = post(&mut driver, "/v1/publish", "", r#"{"topic":"a","data":1,"message_id":"l:3"}"#);
    assert_eq!((&answer["sequence"], &answer["duplicate"]), (&json!(3), &json!(true)), "its id is KEY:PLACE");
}

#[test]
fn bad_idempotency_keys_and_message_ids_are_refused() {
    let long = "k".repeat(256);
    for key in ["", "\"\"", "\"k", "\"k\" x", &long, "k\r\nIdempotency-Key: l"] {
        let (status, answer) = publish_keyed(&mut driver(), "/v1/publish/a", key, "1");
        assert_eq!(status, 400, "{key}: {answer}");
    }
    let named = r#"{"topic":"a","data":1,"message_id":"m"}"#;
    assert_eq!(publish_keyed(&mut driver(), "/v1/publish", "k", named).0, 400, "which of the two?");
    let (none, long) = (named.replace("\"m\"", "\"\""), named.replace("\"m\"", &format!("\"{long}\"")));
    for body in [none, long] {
        let (status, answer) = post(&mut driver(), "/v1/publish", "", &body);
        assert_eq!(status, 400, "{body}: {answer}");
    }
    let mut without = driver_with(Limits { message_id_window_ns: 0, ..Limits::default() });
    assert_eq!(publish_keyed(&mut without, "/v1/publish/a", "k", "1").0, 501);
    let mut without = driver_with(Limits { message_id_window_ns: 0, ..Limits::default() });
    assert_eq!(post(&mut without, "/v1/publish", "", named).0, 501);
}

#[test]
fn a_cursor_that_no_server_has_given_finds_nothing_or_is_refused() {
    let mut driver = driver();
    publish(&mut driver, "a", "1");
    for (after, expected) in [
        ("0.0.4294967295.0.0", 200),
        ("0.0.0.18446744073709551615.1", 200),
        ("0.9.0.0.0", 400),
        ("0.65535.0.0.0", 400),
        ("1.65535.1.1.0", 400),
        ("4294967295.0.0.0.0", 400),
        ("0.65536.0.0.0", 400),
    ] {
        for topics in ["%3E", "a"] {
            let (status, answer) = get(&mut driver, &format!("/v1/latest?topics={topics}&after={after}"));
            assert_eq!(status, expected, "{topics} {after}: {answer}");
        }
    }
}

/// Requests the last values of 256 topics after patterns without topics. Returns the status, and what the turn's budget was
/// charged.
fn charged_for(patterns_before: usize) -> (u16, usize) {
    let mut driver = driver();
    let lines: Vec<String> = (0..256).map(|n| format!("{{\"topic\":\"t.{n}\",\"data\":1}}")).collect();
    post(&mut driver, "/v1/publish", "application/x-ndjson", &lines.join("\n"));
    let before: String = (0..patterns_before).map(|n| format!("u.{n}.*,")).collect();
    let request = format!("GET /v1/latest?topics={before}t.*&limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n");
    driver.receive(CLIENT, request.as_bytes());
    driver.shard.intake_units_left = usize::MAX;
    while driver.shard.advance_reads(driver.now) {}
    let charged = usize::MAX - driver.shard.intake_units_left;
    let mut sent = Vec::new();
    for _ in 0..10 {
        driver.turn();
        sent.extend(driver.take_sent(CLIENT));
    }
    (parse(&sent).0, charged)
}

#[test]
fn comparing_topics_with_many_patterns_is_charged_and_bounded() {
    let (few, many) = (charged_for(2), charged_for(62));
    assert_eq!((few.0, many.0), (200, 200));
    let each = CALL_UNITS + 256 * CALL_UNITS / TURN_SURVEYED;
    assert_eq!(many.1 - few.1, 60 * each, "a piece for each pattern, and its comparisons");
    assert_eq!(charged_for(CALL_PATTERNS_MAX).0, 413);
}

#[test]
fn a_budget_that_is_used_up_is_answered_with_429_and_a_time_to_wait() {
    let session = Rates { ticks: 1, history: 1, ..Rates::default() };
    let budgets = BudgetLimits { session, ..BudgetLimits::default() };
    let mut driver = driver_with(Limits { budgets, ..Limits::default() });
    publish(&mut driver, "a", "1");
    driver.receive(CLIENT, b"POST /v1/publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n2");
    for _ in 0..3 {
        driver.turn();
    }
    let (status, head, body) = parse(&driver.take_sent(CLIENT));
    assert!(
        status == 429 && head.contains("Retry-After: 1") && body.contains("\"code\":109"),
        "{head} {body}"
    );
}

#[test]
fn requests_through_a_proxy_have_the_limits_of_their_clients_addresses() {
    const PROXY: u32 = 5;
    let proxies: Networks = "10.0.0.0/8".parse().unwrap();
    let source = Rates { ticks: 1, history: 1, ..Rates::default() };
    let budgets = BudgetLimits { source, ..BudgetLimits::default() };
    let mut driver = driver_with(Limits { budgets, trusted_proxies: proxies.clone(), ..Limits::default() });
    let sources = Sources::new(Networks::default(), proxies);
    driver.shard.set_sources(sources.clone());
    let (slot, now) = (SlotId(PROXY), driver.now);
    driver.shard.handle_accept_proxied(slot, ListenerKind::Http, ClientAddress::ForwardedFor, now);
    // All on one connection, as proxies send them.
    let mut ask = |fields: &str| {
        let request = format!("POST /v1/publish/a HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: 1\r\n\r\n1");
        driver.receive(PROXY, request.as_bytes());
        let mut bytes = Vec::new();
        for _ in 0..10 {
            driver.turn();
            bytes.extend(driver.take_sent(PROXY));
        }
        (parse(&bytes).0, driver.shard.sessions.get(slot).unwrap().source)
    };
    let of = |address: &str| sources.find(address.parse().unwrap()).unwrap().1;
    let first = "X-Forwarded-For: 198.51.100.1, 203.0.113.7, 10.0.0.1\r\n";
    assert_eq!(ask(first), (200, of("203.0.113.7")));
    assert_eq!(ask(first).0, 429);
    assert_eq!(ask("X-Forwarded-For: 203.0.113.8\r\n"), (200, of("203.0.113.8")));
    for _ in 0..3 {
        assert_eq!(ask(""), (200, SourceId::default()), "the proxy's own requests have no limit");
    }
    assert_eq!(ask(first).0, 429);
}

#[test]
fn a_page_of_another_origin_may_ask_only_if_the_operator_allows_it() {
    let access = tickcast_proto::http::access::Access {
        origins: vec!["https://app.example.com".parse().unwrap()],
        ..Default::default()
    };
    let mut driver = driver_with(Limits { http_access: access, ..Limits::default() });
    let mut ask = |method: &str, origin: &str| {
        let request = format!("{method} /v1/topics HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n\r\n");
        driver.receive(CLIENT, request.as_bytes());
        (0..5).for_each(|_| driver.turn());
        String::from_utf8(driver.take_sent(CLIENT)).unwrap()
    };
    let allowed = "Access-Control-Allow-Origin: https://app.example.com\r\n";
    let answer = ask("GET", "https://app.example.com");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(allowed), "{answer}");
    let answer = ask("OPTIONS", "https://app.example.com");
    assert!(answer.starts_with("HTTP/1.1 204 ") && answer.contains(allowed), "{answer}");
    assert!(
        answer.contains("Access-Control-Allow-Methods: GET, HEAD\r\n") && !answer.contains("Content-Length")
    );
    assert!(ask("GET", "https://elsewhere.example.com").starts_with("HTTP/1.1 403 "));
    assert!(ask("OPTIONS", "https://elsewhere.example.com").starts_with("HTTP/1.1 403 "));
}

#[test]
fn a_request_finds_the_topics_of_every_shard() {
    let (mut shards, mut meshes, _bells) = cluster(3, &Limits::default(), 1 << 20);
    let mut loops: Vec<TurnLoop> = (0..3).map(|_| TurnLoop::default()).collect();
    let slot = SlotId(CLIENT);
    shards[1].handle_accept(slot, ListenerKind::Http, START);
    let mut ask = |request: String| {
        let mut sent = Vec::new();
        shards[1].handle_bytes(slot, request.as_bytes(), START);
        for _ in 0..30 {
            for (at, shard) in shards.iter_mut().enumerate() {
                loops[at].turn(shard, Some(&mut meshes[at]), START, usize::MAX, |_, bytes| {
                    sent.extend_from_slice(bytes);
                    false
                });
            }
        }
        let (status, _, body) = parse(&sent);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let lines: String = (0..50).map(|n| format!("{{\"topic\":\"t.{n}\",\"data\":{n}}}\n")).collect();
    let length = lines.len();
    let published = ask(format!(
        "POST /v1/publish HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {length}\r\n\r\n{lines}"
    ));
    assert_eq!((published["results"].as_array().unwrap().len(), &published["failed"]), (50, &json!(0)));
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let listed = ask(get("/v1/topics?limit=1000"));
    assert_eq!((listed["topics"].as_array().unwrap().len(), &listed["next"]), (50, &Value::Null));
    let latest = ask(get("/v1/latest?topics=t.%3E&limit=1000"));
    assert_eq!(latest["topics"].as_array().unwrap().len(), 50);
    for n in 0..50 {
        let history = ask(get(&format!("/v1/history?topic=t.{n}")));
        assert_eq!(history["ticks"][0]["data"], n);
    }
}

/// Runs turns of all shards, and returns what they have sent.
fn run(shards: &mut [Shard], meshes: &mut [Mesh], now: Now) -> Vec<u8> {
    let mut sent = Vec::new();
    for _ in 0..30 {
        for (shard, mesh) in shards.iter_mut().zip(&mut *meshes) {
            TurnLoop::default().turn(shard, Some(mesh), now, usize::MAX, |_, bytes| {
                sent.extend_from_slice(bytes);
                false
            });
        }
    }
    sent
}

#[test]
fn the_first_request_of_a_connection_waits_for_room_like_any_other() {
    let publish = b"POST /v1/publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1";
    let read = b"GET /v1/topics HTTP/1.1\r\nHost: x\r\n\r\n";
    for request in [&publish[..], &read[..]] {
        let (mut shards, mut meshes, _bells) = cluster(2, &Limits::default(), 1 << 20);
        let (slot, full) = (SlotId(CLIENT), ShardId(1));
        shards[0].handle_accept(slot, ListenerKind::Http, START);
        shards[0].stages.push_request(full, |out| out.resize(MESH_STAGE_BYTES, 0));
        shards[0].handle_bytes(slot, request, START);
        assert_eq!(shards[0].counters().value(Counter::InputPaused), 1);
        assert!(shards[0].sessions.get(slot).is_some_and(|session| !session.protocol.has_call()));
        shards[0].stages.with(full, |peer| peer.requests.consume(MESH_STAGE_BYTES));
        let (status, _, body) = parse(&run(&mut shards, &mut meshes, START));
        assert_eq!(status, 200, "{body}");
    }
}

#[test]
fn a_first_request_that_waits_for_room_is_answered_when_its_token_expires() {
    let (mut shards, mut meshes, _bells) = cluster(2, &Limits::default(), 1 << 20);
    let slot = SlotId(CLIENT);
    shards[0].handle_accept(slot, ListenerKind::Http, START);
    shards[0].stages.push_request(ShardId(1), |out| out.resize(MESH_STAGE_BYTES, 0));
    shards[0].handle_bytes(slot, b"GET /v1/topics HTTP/1.1\r\nHost: x\r\n\r\n", START);
    shards[0].end(slot, CloseReason::Unauthorized(AuthRefusal::Expired), START);
    shards[0].stages.with(ShardId(1), |peer| peer.requests.consume(MESH_STAGE_BYTES));
    let (status, _, body) = parse(&run(&mut shards, &mut meshes, START));
    assert_eq!(status, 401, "{body}");
}

#[test]
fn a_server_that_stops_begins_no_request() {
    let mut driver = driver();
    driver.shard.stop_input();
    driver.receive(CLIENT, b"POST /v1/publish/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1");
    driver.turn();
    let mut lives = 0;
    driver.shard.visit_lives(|_, _, _| lives += 1);
    assert_eq!((lives, driver.take_sent(CLIENT).len()), (0, 0));
}

#[test]
fn reads_of_connections_that_are_gone_are_forgotten() {
    let mut driver = Driver::new(Limits::default());
    for slot in 0..100 {
        driver.shard.handle_accept(SlotId(slot), ListenerKind::Http, driver.now);
        driver.receive(slot, b"GET /v1/topics HTTP/1.1\r\nHost: x\r\n\r\n");
        driver.shard.handle_error(SlotId(slot), 104, driver.now);
        while driver.shard.poll_action().is_some() {}
        assert!(driver.shard.calls.reads.len() <= 2 + 2 * driver.shard.sessions_len());
    }
}

/// A topic whose home is shard 1 of 2.
fn topic_of_shard_1() -> String {
    let mut names = (0..).map(|n| format!("t.{n}"));
    names.find(|topic| placement::home_shard(topic, 2) == ShardId(1)).unwrap()
}

#[test]
fn a_publish_that_its_home_has_not_answered_is_not_refused_by_a_drain() {
    let (mut shards, mut meshes, _bells) = cluster(2, &Limits::default(), 1 << 20);
    let slot = SlotId(CLIENT);
    shards[0].handle_accept(slot, ListenerKind::Http, START);
    let topic = topic_of_shard_1();
    let request = format!("POST /v1/publish/{topic} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1");
    shards[0].handle_bytes(slot, request.as_bytes(), START);
    assert!(shards[0].sessions.get(slot).is_some_and(|session| session.protocol.has_call()));
    shards[0].begin_drain(START.monotonic_ns + 1_000_000_000, START);
    let (status, head, body) = parse(&run(&mut shards, &mut meshes, START));
    assert_eq!(status, 504, "{body}");
    assert!(body.contains("\"code\":112") && !head.contains("Retry-After"), "{head} {body}");
}

#[test]
fn a_request_that_takes_longer_than_a_connection_may_be_idle_is_answered() {
    let idle_ns = 60_000_000_000;
    let limits = Limits { http_idle_ns: idle_ns, ..Limits::default() };
    let (mut shards, mut meshes, _bells) = cluster(2, &limits, 1 << 20);
    let (slot, topic) = (SlotId(CLIENT), topic_of_shard_1());
    let later =
        |idle_times: u64| Now { monotonic_ns: START.monotonic_ns + idle_times * idle_ns / 4, ..START };
    shards[0].handle_accept(slot, ListenerKind::Http, START);
    let request = format!("POST /v1/publish/{topic} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1");
    shards[0].handle_bytes(slot, request.as_bytes(), START);
    // Its home does not run yet.
    for quarter in 0..=7 {
        assert_eq!(run(&mut shards[..1], &mut meshes[..1], later(quarter)), b"", "{quarter}");
    }
    let (status, _, body) = parse(&run(&mut shards, &mut meshes, later(7)));
    assert_eq!(status, 200, "{body}");
    for (quarter, is_open) in [(10, true), (12, false)] {
        run(&mut shards, &mut meshes, later(quarter));
        let session = shards[0].sessions.get(slot);
        assert_eq!(session.is_some_and(|session| session.ending.is_none()), is_open, "{quarter}");
    }
}
