//! Patterns of which a session may receive only a part, with the option that delivers that part.

use super::*;

/// Text that the session in slot 0 must never receive.
const HIDDEN: &[u8] = b"secret";

fn bench() -> Bench {
    Bench::with(with(AuthLimits { filters_patterns: true, ..AuthLimits::default() }))
}

/// Publishes from slot 9, which may do everything.
fn publish(bench: &mut Bench, topics: &[&str]) {
    if !bench.transports.contains_key(&9) {
        bench.open(9, Native, Some("root"));
    }
    for topic in topics {
        bench.driver.receive(9, &Native.publish(topic));
    }
    bench.turns();
}

/// Number of ticks sent to slot 0 since the last call. Checks that nothing sent to it names a hidden topic.
fn ticks(bench: &mut Bench) -> usize {
    for (slot, bytes) in &bench.driver.sent {
        let names_hidden = bytes.windows(HIDDEN.len()).any(|window| window == HIDDEN);
        assert!(*slot != 0 || !names_hidden, "{}", String::from_utf8_lossy(bytes));
    }
    let events = bench.take(0);
    assert!(events.iter().all(|event| event == "tick"), "{events:?}");
    events.len()
}

#[test]
fn only_the_allowed_part_of_a_pattern_is_delivered_on_every_transport() {
    for transport in TRANSPORTS {
        let mut bench = bench();
        publish(&mut bench, &["t.before", "t.secret.before", "u.before"]);
        bench.open(0, transport, Some("alice"));
        let answer = bench.request(0, &transport.subscribe(">"));
        assert_eq!(answer, if transport == Raw { vec![] } else { vec!["subscribed"] }, "{transport:?}");
        publish(&mut bench, &["t.a", "t.secret.a", "u.a", "t.before", "t.secret.before", "t.a"]);
        assert_eq!(ticks(&mut bench), 3, "{transport:?}");
        assert_eq!(bench.count(Counter::SubscriptionsFiltered), 1);
        // Another session with the same pattern, all of which it may receive.
        bench.open(1, Native, Some("root"));
        bench.request(1, &Native.subscribe(">"));
        publish(&mut bench, &["t.secret.a", "t.a"]);
        assert_eq!(ticks(&mut bench), 1, "{transport:?}");
        bench.end();
    }
}

#[test]
fn a_pattern_without_an_allowed_part_is_refused() {
    for transport in [Native, JsonHello] {
        let mut bench = bench();
        bench.open(0, transport, Some("alice"));
        for pattern in ["t.secret.>", "t.secret.a", "u.>", "u.a", "t"] {
            assert_eq!(bench.request(0, &transport.subscribe(pattern)), ["error 108"], "{pattern}");
        }
        for pattern in [">", "*.*", "t.>", "t.*", "t.a", "t.*.x"] {
            assert_eq!(bench.request(0, &transport.subscribe(pattern)), ["subscribed"], "{pattern}");
        }
        assert_eq!(bench.count(Counter::SubscriptionsFiltered), 4);
        bench.end();
    }
}

#[test]
fn last_values_history_and_positions_obey_the_filter() {
    for from in [r#""latest""#, r#"{"positions":{}}"#, r#"{"positions":{"t.a":{"epoch":1,"sequence":0}}}"#] {
        let mut bench = bench();
        publish(&mut bench, &["t.a", "t.secret.a", "t.secret.a", "u.a"]);
        bench.open(0, JsonHello, Some("alice"));
        let subscribe = json(&format!(r#"{{"op":"subscribe","id":2,"topics":[">"],"from":{from}}}"#));
        let events = bench.request(0, &subscribe);
        let of_a = events.iter().filter(|event| *event == "tick").count();
        assert_eq!(of_a, 1, "{from}: {events:?}");
        publish(&mut bench, &["t.secret.a", "t.a"]);
        assert_eq!(ticks(&mut bench), 1, "{from}");
        bench.end();
    }
    // A position in a hidden topic is answered like one in a topic that does not exist.
    let answer = |topic: &str| {
        let mut bench = bench();
        publish(&mut bench, &["t.a", "t.secret.a"]);
        bench.open(0, JsonHello, Some("alice"));
        bench.driver.sent.clear();
        let from = format!(r#"{{"positions":{{"{topic}":{{"epoch":1,"sequence":0}}}}}}"#);
        bench.driver.receive(0, &json(&format!(r#"{{"op":"subscribe","topics":[">"],"from":{from}}}"#)));
        bench.turns();
        let sent = String::from_utf8_lossy(&bench.driver.take_sent(0)).into_owned();
        let at = sent.find(r#"{"op":"recovered""#).unwrap_or_else(|| panic!("{sent}"));
        let end = at + sent[at..].find('}').unwrap();
        bench.end();
        sent[at..end].replace(topic, "TOPIC")
    };
    assert_eq!(answer("t.secret.a"), answer("t.secret.b"));
}

#[test]
fn a_client_that_is_behind_hears_of_no_hidden_loss() {
    for policy in ["conflate", "drop"] {
        for rate in ["", r#","max_rate":100"#] {
            let mut bench = bench();
            bench.open(0, JsonHello, Some("alice"));
            let subscribe = format!(r#"{{"op":"subscribe","topics":[">"],"policy":"{policy}"{rate}}}"#);
            assert_eq!(bench.request(0, &json(&subscribe)), ["subscribed"]);
            bench.driver.full.insert(0);
            for _ in 0..3_000 {
                publish(&mut bench, &["t.a", "t.secret.a", "u.a", "t.b"]);
                bench.driver.now.monotonic_ns += 1_000_000;
            }
            (0..2_000).for_each(|_| {
                bench.driver.open();
                bench.turns();
            });
            let names_hidden = |bytes: &[u8]| bytes.windows(HIDDEN.len()).any(|window| window == HIDDEN);
            assert!(!bench.driver.sent.iter().any(|(slot, bytes)| *slot == 0 && names_hidden(bytes)));
            let events = bench.take(0);
            let lossy = events.iter().filter(|event| ["conflated", "gap"].contains(&event.as_str())).count();
            assert!(lossy > 0 && events.contains(&"tick".to_owned()), "{policy} {rate}");
            publish(&mut bench, &["t.secret.a"]);
            bench.pass(1_000);
            assert_eq!(ticks(&mut bench), 0, "{policy} {rate}");
            bench.end();
        }
    }
}

#[test]
fn new_permissions_change_the_part_that_is_delivered() {
    let topics = ["t.a", "t.c", "t.secret.a", "u.a"];
    for rate in ["", r#","max_rate":1000"#] {
        let mut bench = bench();
        publish(&mut bench, &topics);
        bench.open(0, JsonHello, Some("alice"));
        let subscribe =
            |pattern: &str| json(&format!(r#"{{"op":"subscribe","topics":["{pattern}"]{rate}}}"#));
        assert_eq!(bench.request(0, &subscribe(">")), ["subscribed"]);
        publish(&mut bench, &topics);
        assert_eq!(ticks(&mut bench), 2, "{rate}");
        // The new token allows only t.a and t.b.
        assert_eq!(bench.request(0, &JsonHello.refresh("alice/narrow")), ["expires 9 0"]);
        bench.pass(10);
        publish(&mut bench, &topics);
        assert_eq!(ticks(&mut bench), 1, "{rate}");
        // The same token again changes nothing.
        assert_eq!(bench.request(0, &JsonHello.refresh("alice/narrow")), ["expires 9 0"]);
        bench.pass(10);
        publish(&mut bench, &topics);
        assert_eq!(ticks(&mut bench), 1, "{rate}");
        assert_eq!(bench.request(0, &JsonHello.refresh("alice")), ["expires 9 0"]);
        bench.pass(10);
        publish(&mut bench, &topics);
        assert_eq!(ticks(&mut bench), 2, "{rate}");
        assert_eq!(bench.count(Counter::SubscriptionsRemoved), 0);
        bench.end();
    }
}

#[test]
fn a_pattern_that_becomes_wholly_or_partly_allowed_goes_on() {
    let topics = ["t.a", "t.c", "t.secret.a", "u.a"];
    let anonymous = |allow: &[&str]| {
        let permissions = Permissions { subscribe: rules(allow, &[]), publish: Rules::NONE };
        Some(Arc::new(named("anonymous", permissions)))
    };
    for rate in ["", r#","max_rate":1000"#] {
        for (allow, token, before, after) in [
            (&[">"][..], "alice", 4, 2),
            (&["t.a"], "root", 1, 4),
            (&[">"], "root", 4, 4),
            (&["t.c", "u.>"], "alice/narrow", 2, 1),
        ] {
            let auth =
                AuthLimits { filters_patterns: true, anonymous: anonymous(allow), ..AuthLimits::default() };
            let mut bench = Bench::with(with(auth));
            publish(&mut bench, &topics);
            bench.open(0, JsonHello, None);
            let subscribe = json(&format!(r#"{{"op":"subscribe","topics":[">"]{rate}}}"#));
            assert_eq!(bench.request(0, &subscribe), ["subscribed"]);
            publish(&mut bench, &topics);
            assert_eq!(bench.take(0).len(), before, "{token} {rate}");
            bench.request(0, &JsonHello.hello(token, ""));
            bench.pass(10);
            publish(&mut bench, &topics);
            assert_eq!(bench.take(0).len(), after, "{token} {rate}");
            bench.end();
        }
    }
}

#[test]
fn members_with_and_without_a_filter_leave_in_any_order() {
    let mut random = fastrand::Rng::with_seed(14);
    let tokens = ["alice", "bob", "alice/narrow", "bob/narrow", "root", "root2"];
    let received = |token: &str| match token {
        "alice" | "bob" => 2,
        "alice/narrow" | "bob/narrow" => 1,
        _ => 3,
    };
    for _ in 0..40 {
        let mut bench = bench();
        let mut open: Vec<(u32, &str)> = Vec::new();
        for slot in 1..8 {
            let token = tokens[random.usize(..tokens.len())];
            bench.open(slot, Native, Some(token));
            assert_eq!(bench.request(slot, &Native.subscribe(">")), ["subscribed"]);
            open.push((slot, token));
        }
        while !open.is_empty() {
            let (slot, _) = open.swap_remove(random.usize(..open.len()));
            match random.bool() {
                true => bench.driver.shard.handle_error(SlotId(slot), 104, bench.driver.now),
                false => {
                    let mut bytes = Vec::new();
                    encode_request(&mut bytes, Kind::Unsubscribe, 3, ">");
                    assert_eq!(bench.request(slot, &bytes), ["unsubscribed"]);
                }
            }
            publish(&mut bench, &["t.a", "t.c", "t.secret.a"]);
            for (slot, token) in &open {
                assert_eq!(bench.take(*slot).len(), received(token), "{token}");
            }
        }
        bench.end();
    }
}
