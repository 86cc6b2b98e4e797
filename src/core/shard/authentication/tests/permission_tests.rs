//! What sessions may subscribe to and publish.

use super::*;
use tickcast_proto::http::access::Access;

/// Every transport, what it asks for, and the answer.
#[test]
fn the_permission_matrix_holds_on_every_transport() {
    let subscriptions = [
        ("t.a", true),
        ("t.*", true),
        ("t.a.>", true),
        ("t.>", false),
        ("t.secret", true),
        ("t.secret.a", false),
        ("t.secret.*", false),
        ("t.*.a", false),
        ("*.a", false),
        (">", false),
        ("u.a", false),
        ("t", false),
    ];
    let publishes = [
        ("t.a", true),
        ("u.a", true),
        ("u.a.b", true),
        ("t.secret", false),
        ("t.a.b", false),
        ("t", false),
        ("v", false),
    ];
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        bench.open(0, transport, Some("alice"));
        let (mut refused_subscriptions, mut refused_publishes) = (0, 0);
        for (pattern, is_allowed) in subscriptions {
            let answer = bench.request(0, &transport.subscribe(pattern));
            let expected: &[&str] = match (transport, is_allowed) {
                (Raw, true) => &[],
                (Raw, false) => &["close 3501"],
                (_, true) => &["subscribed"],
                (_, false) => &["error 108"],
            };
            assert_eq!(answer, expected, "{transport:?} {pattern}");
            refused_subscriptions += u64::from(!is_allowed);
            if transport == Raw && !is_allowed {
                bench.driver.shard.handle_error(SlotId(0), 104, bench.driver.now);
                bench.open(0, transport, Some("alice"));
            }
        }
        // The same, as seen by other sessions.
        bench.open(1, Native, Some("alice"));
        for _ in 0..2 {
            for (topic, is_allowed) in publishes {
                let sequenced = bench.count(Counter::TicksSequenced);
                let answer = bench.request(0, &transport.publish(topic));
                let is_refused =
                    answer.contains(&"error 108".to_owned()) || answer.contains(&"close 3501".to_owned());
                assert_eq!(is_refused, !is_allowed, "{transport:?} {topic}");
                let ticks = bench.count(Counter::TicksSequenced) - sequenced;
                assert_eq!(ticks, u64::from(is_allowed), "{transport:?} {topic}");
                refused_publishes += u64::from(!is_allowed);
                if transport == Raw && !is_allowed {
                    bench.driver.shard.handle_error(SlotId(0), 104, bench.driver.now);
                    bench.open(0, transport, Some("alice"));
                }
            }
        }
        assert_eq!(bench.count(Counter::SubscriptionsRefused), refused_subscriptions);
        assert_eq!(bench.count(Counter::TicksRefusedNotAllowed), refused_publishes);
        bench.end();
    }
}

#[test]
fn a_refused_pattern_fails_alone_and_the_error_names_it() {
    let mut bench = Bench::new();
    bench.open(0, JsonHello, Some("alice"));
    bench.driver.receive(0, &json(r#"{"op":"subscribe","id":5,"topics":["t.a","secret.x","t.b"]}"#));
    bench.turns();
    let sent = String::from_utf8_lossy(&bench.driver.take_sent(0)).into_owned();
    let errors: Vec<_> = sent.matches(r#"{"op":"error","id":5,"code":108,"text":"#).collect();
    assert!(errors.len() == 1 && sent.contains(r#"pattern \"secret.x\""#), "{sent}");
    assert_eq!(sent.matches(r#""op":"subscribed","id":5"#).count(), 2);
    bench.end();
}

#[test]
fn subscribers_receive_only_what_their_principal_may() {
    let mut bench = Bench::new();
    bench.open(0, Native, Some("alice"));
    bench.open(1, Header, Some("bob/narrow"));
    assert_eq!(bench.request(0, &Native.subscribe("t.*")), ["subscribed"]);
    assert_eq!(bench.request(1, &Header.subscribe("t.*")), ["error 108"]);
    assert_eq!(bench.request(1, &Header.subscribe("t.a")), ["subscribed"]);
    bench.request(0, &Native.publish("t.a"));
    bench.request(0, &Native.publish("t.c"));
    assert_eq!(bench.take(1), ["tick"]);
    bench.end();
}

#[test]
fn a_read_only_listener_takes_no_ticks_from_anybody() {
    for auth in [None, Some(AuthLimits { query_token: true, ..AuthLimits::default() })] {
        for transport in TRANSPORTS {
            let mut bench = Bench::with(Limits { auth: auth.clone(), ..Limits::default() });
            if transport == Query && auth.is_none() {
                continue;
            }
            bench.accept(0, transport, b"");
            bench.driver.shard.set_read_only(SlotId(0));
            bench.request(0, &transport.opening(Some("alice"), ""));
            let answer = bench.request(0, &transport.publish("t.a"));
            assert_eq!(answer, [if transport == Raw { "close 3501" } else { "error 108" }], "{transport:?}");
            assert_eq!(bench.count(Counter::TicksSequenced), 0);
            bench.end();
        }
    }
}

#[test]
fn a_refused_stream_is_counted_and_a_page_of_another_origin_can_read_why() {
    let http_access = Access { origins: vec!["https://app.example".parse().unwrap()], ..Access::default() };
    let mut bench = Bench::with(Limits { http_access, ..with(AuthLimits::default()) });
    for (slot, topic, token, status) in [(0, "t.a", "forged", 401), (1, "secret.x", "alice", 403)] {
        let request = format!(
            "GET /sse?topics={topic} HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        );
        bench.accept(slot, Header, request.as_bytes());
        bench.verify();
        let sent = String::from_utf8(bench.driver.take_sent(slot)).unwrap();
        assert!(sent.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}");
        assert!(sent.contains("\r\nAccess-Control-Allow-Origin: https://app.example\r\n"), "{sent}");
    }
    assert_eq!((bench.count(Counter::HttpResponses), bench.count(Counter::SubscriptionsRefused)), (2, 1));
    bench.end();
}

#[test]
fn lines_that_wait_for_a_verdict_are_read_once_and_never_as_requests() {
    let line = "{\"topic\":\"t.a\",\"data\":1}\n";
    let smuggled = "POST /v1/publish/t.a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1";
    for (body, token, status, published) in [
        (line.to_owned(), "alice", 200, 1),
        (line.repeat(3_000), "alice", 200, 3_000),
        (line.repeat(1_024), "forged", 401, 0),
        (smuggled.to_owned(), "alice", 400, 0),
    ] {
        let mut bench = Bench::new();
        let head = format!(
            "POST /v1/publish?answer=summary HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n\
             Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        bench.accept(0, Header, format!("{head}{body}").as_bytes());
        bench.turns();
        bench.verify();
        (0..20).for_each(|_| bench.turns());
        let sent = String::from_utf8(bench.driver.take_sent(0)).unwrap();
        assert!(sent.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}");
        assert_eq!(sent.matches("HTTP/1.1 ").count(), 1, "one answer: {sent}");
        assert_eq!(bench.count(Counter::TicksSequenced), published, "{sent}");
        bench.end();
    }
}
