//! Tokens that expire, are replaced or revoked.

use super::*;

const OPEN: [Transport; 3] = [Native, JsonHello, FramesHello];

fn closed(transport: Transport, code: u16) -> Vec<String> {
    let (closing, close) = (format!("closing {code}"), format!("close {code}"));
    if transport == Native { vec![closing] } else { vec![closing, close] }
}

#[test]
fn a_client_is_told_before_its_token_expires_and_closed_after_a_grace() {
    for transport in OPEN {
        let mut bench = Bench::new();
        assert_eq!(*bench.open(0, transport, Some("alice@100")).last().unwrap(), "expires 1 100");
        bench.pass(69_990);
        assert_eq!(bench.take(0), [] as [&str; 0], "{transport:?}");
        bench.pass(20);
        assert_eq!(bench.take(0), ["expires 0 30"]);
        bench.driver.receive(0, &transport.ping());
        bench.pass(34_900);
        assert!(!bench.take(0).iter().any(|event| event.starts_with("closing")));
        bench.pass(200);
        assert_eq!(bench.take(0), closed(transport, 3005));
        bench.driver.shard.handle_eof(SlotId(0), bench.driver.now);
        assert_eq!(bench.count(Counter::ClosedTokenExpired), 1);
        bench.end();
    }
}

#[test]
fn a_client_without_the_feature_is_closed_without_a_word_before() {
    let mut bench = Bench::new();
    bench.accept(0, Native, &hello(b"alice@10", Features::NONE));
    bench.verify();
    assert_eq!(bench.take(0), ["welcome"]);
    bench.pass(14_900);
    assert_eq!(bench.take(0), [] as [&str; 0]);
    bench.pass(200);
    assert_eq!(bench.take(0), ["closing 3005"]);
    bench.end();
}

#[test]
fn a_hello_after_the_upgrade_is_told_when_the_token_of_the_upgrade_expires() {
    let mut bench = Bench::new();
    assert_eq!(bench.open(0, Header, Some("alice@100")), ["101"]);
    let hello = json(r#"{"op":"hello","id":4,"features":["tokens"]}"#);
    assert_eq!(bench.request(0, &hello), ["welcome", "expires 4 100"]);
    bench.end();
}

#[test]
fn a_refreshed_session_goes_on_and_its_subscribers_notice_nothing() {
    for transport in OPEN {
        let mut bench = Bench::new();
        bench.open(0, transport, Some("alice@5"));
        assert_eq!(bench.request(0, &transport.subscribe("t.*")), ["subscribed"]);
        for round in 1..20 {
            bench.pass(4_000);
            let token = format!("alice@{}", 5 + 4 * round);
            assert_eq!(bench.request(0, &transport.refresh(&token)), ["expires 9 5"], "{transport:?}");
            assert_eq!(bench.request(0, &transport.publish("t.a")), ["tick"]);
        }
        // The last one is the one that counts.
        bench.pass(9_800);
        let events = bench.take(0);
        assert!(!events.iter().any(|event| event.starts_with("closing")), "{events:?}");
        bench.pass(400);
        assert_eq!(bench.take(0), closed(transport, 3005));
        bench.end();
    }
}

#[test]
fn a_refresh_that_expires_earlier_counts() {
    let mut bench = Bench::new();
    bench.open(0, Native, Some("alice@1000"));
    assert_eq!(bench.request(0, &Native.refresh("alice@100")), ["expires 9 100"]);
    assert_eq!(bench.request(0, &Native.refresh("alice@10")), ["expires 9 10"]);
    bench.pass(15_100);
    assert_eq!(bench.take(0), ["closing 3005"]);
    bench.end();
}

#[test]
fn a_clock_that_is_set_forward_ends_sessions_within_an_hour() {
    let mut bench = Bench::new();
    bench.open(0, Native, Some("alice@36000"));
    bench.driver.now.realtime_ns += 50_000_000_000_000;
    bench.pass(3_600_100);
    assert_eq!(bench.take(0).last().unwrap(), "closing 3005");
    bench.end();
}

#[test]
fn a_token_that_expires_while_the_next_is_verified_ends_nothing() {
    let mut bench = Bench::new();
    bench.open(0, Native, Some("alice@5"));
    bench.pass(9_000);
    bench.driver.receive(0, &Native.refresh("alice@100"));
    bench.pass(3_000);
    assert_eq!(bench.take(0), [] as [&str; 0]);
    bench.verify();
    assert_eq!(bench.take(0), ["expires 9 88"]);
    bench.end();
}

#[test]
fn a_refresh_that_is_refused_ends_the_session() {
    for transport in OPEN {
        for (token, code) in [("forged", 3500), ("old", 3005), ("bob", 3500), ("revoked", 3500)] {
            let mut bench = Bench::new();
            bench.open(0, transport, Some("alice"));
            bench.request(0, &transport.subscribe("t.a"));
            let events = bench.request(0, &transport.refresh(token));
            assert_eq!(events, closed(transport, code), "{transport:?} {token}");
            bench.end();
        }
    }
}

#[test]
fn a_refresh_that_cannot_be_verified_now_leaves_the_session_its_token() {
    for transport in OPEN {
        let mut bench = Bench::new();
        bench.open(0, transport, Some("alice"));
        assert_eq!(bench.request(0, &transport.refresh("busy")), ["error 109"], "{transport:?}");
        assert_eq!(bench.request(0, &transport.subscribe("t.a")), ["subscribed"]);
        bench.end();
    }
}

#[test]
fn new_tokens_beyond_their_rate_are_refused_unverified_and_counted() {
    for transport in OPEN {
        let mut bench = Bench::new();
        bench.open(0, transport, Some("alice"));
        // A hello on an open session carries one too.
        let given = u32::from(transport != Native);
        for _ in given..NEW_TOKENS_BURST {
            assert_eq!(bench.request(0, &transport.refresh("alice")), ["expires 9 0"], "{transport:?}");
        }
        let accepted = bench.count(Counter::CredentialsAccepted);
        for _ in 0..10 {
            bench.driver.receive(0, &transport.refresh("forged"));
            bench.turns();
            assert_eq!(bench.take(0), ["error 109"]);
            assert_eq!(bench.driver.shard.poll_credentials(), None);
        }
        let hello = bench.request(0, &transport.hello("alice", "\"tokens\""));
        assert_eq!(hello, ["error 109"], "{transport:?}");
        assert_eq!(bench.count(Counter::CredentialsRefusedRate), 11);
        bench.pass(1_000);
        assert_eq!(bench.request(0, &transport.refresh("alice")), ["expires 9 0"], "{transport:?}");
        assert_eq!(bench.request(0, &transport.refresh("alice")), ["error 109"]);
        assert_eq!(bench.count(Counter::CredentialsAccepted), accepted + 1);
        // The limit is each session's own.
        bench.open(1, transport, Some("alice"));
        assert_eq!(bench.request(1, &transport.refresh("alice")), ["expires 9 0"]);
        bench.end();
    }
}

#[test]
fn an_anonymous_client_becomes_the_subject_of_its_token() {
    let permissions = Permissions { subscribe: rules(&["t.a", "news"], &[]), publish: Rules::NONE };
    let anonymous = Some(Arc::new(named("anonymous", permissions)));
    for transport in [JsonHello, FramesHello] {
        let mut bench =
            Bench::with(with(AuthLimits { anonymous: anonymous.clone(), ..AuthLimits::default() }));
        bench.open(0, transport, None);
        for pattern in ["t.a", "news"] {
            assert_eq!(bench.request(0, &transport.subscribe(pattern)), ["subscribed"]);
        }
        let hello = transport.hello("alice", "\"tokens\",\"reasons\"");
        let events = bench.request(0, &hello);
        let removed = if transport == JsonHello { "unsubscribed 108 news" } else { "error 108" };
        assert_eq!(events, ["welcome", "expires 1 0", removed], "{transport:?}");
        assert_eq!(bench.request(0, &transport.publish("t.a")), ["tick"]);
        assert_eq!(bench.request(0, &transport.refresh("bob")), closed(transport, 3500));
        bench.end();
    }
}

#[test]
fn subscriptions_that_a_new_token_does_not_allow_end_and_the_others_go_on() {
    for (features, removed) in [(Features::NONE, "error 108"), (Features::REASONS, "unsubscribed 108 ")] {
        let mut bench = Bench::new();
        bench.accept(0, Native, &hello(b"alice", features));
        bench.verify();
        bench.open(1, Native, Some("alice"));
        for pattern in ["t.c", "t.a", "t.*", "t.b", "t.a.>"] {
            bench.request(0, &Native.subscribe(pattern));
        }
        // What follows the refresh waits for the review.
        let requests = [Native.refresh("alice/narrow"), Native.subscribe("t.*"), Native.ping()].concat();
        let events = bench.request(0, &requests);
        let told = events.iter().filter(|event| event.starts_with(removed)).count();
        let (again, pong) = (&events[events.len() - 2], events.last().unwrap());
        assert_eq!((again.as_str(), pong.as_str()), ("error 108", "pong"), "{events:?}");
        assert_eq!((told, events.len()), (if features == Features::NONE { 4 } else { 3 }, 5), "{events:?}");
        assert_eq!(bench.count(Counter::SubscriptionsRemoved), 3);
        for topic in ["t.a", "t.b", "t.c"] {
            bench.request(1, &Native.publish(topic));
        }
        assert_eq!(bench.take(0), ["tick", "tick"], "of t.a and t.b");
        bench.end();
    }
}

#[test]
fn the_review_of_many_subscriptions_is_spread_over_turns() {
    let mut bench = Bench::new();
    bench.accept(0, Native, &hello(b"alice", Features::REASONS));
    bench.verify();
    for n in 0..1_000 {
        bench.driver.receive(0, &Native.subscribe(&format!("t.{n}")));
        bench.driver.turn();
    }
    bench.turns();
    bench.take(0);
    bench.driver.receive(0, &Native.refresh("alice/narrow"));
    let (id, credentials) = bench.driver.shard.poll_credentials().unwrap();
    bench.driver.shard.handle_verdict(id, verdict(&credentials), bench.driver.now);
    let mut turns = 0;
    let mut ended = 0;
    while ended < 1_000 {
        let events = bench.take(0).len();
        assert!(events <= 520, "8,192 units for a turn and the verdict before it: {events}");
        ended += events;
        bench.driver.turn();
        turns += 1;
        assert!(turns < 100, "{ended}");
    }
    assert!(turns > 3, "{turns}");
    bench.end();
}

#[test]
fn a_raw_session_that_loses_a_subscription_ends() {
    let mut bench = Bench::new();
    bench.open(0, Raw, Some("alice"));
    assert_eq!(bench.request(0, &Raw.subscribe("t.c")), [] as [&str; 0]);
    assert_eq!(bench.request(0, &Raw.refresh("alice/narrow")), ["close 3501"]);
    bench.end();
}

#[test]
fn a_revocation_closes_the_sessions_of_a_subject_or_a_token() {
    let subject = |subject: &str| Revocation::Subject { tenant: "".into(), subject: subject.into() };
    for (revocation, expected) in [
        (subject("alice"), [true, true, false]),
        (Revocation::TokenId("id of alice/narrow".into()), [false, true, false]),
        (subject("carol"), [false; 3]),
    ] {
        let mut bench = Bench::new();
        let tokens = ["alice", "alice/narrow", "bob"];
        for (slot, token) in (0..).zip(tokens) {
            bench.open(slot, Native, Some(token));
        }
        let closed = bench.driver.shard.revoke(&revocation, START_S, bench.driver.now);
        assert_eq!(closed, expected.iter().filter(|revoked| **revoked).count());
        bench.turns();
        for (slot, is_revoked) in (0..).zip(expected) {
            let events = bench.take(slot);
            assert_eq!(events, if is_revoked { vec!["closing 3500"] } else { vec![] }, "{revocation:?}");
        }
        bench.end();
    }
}

#[test]
fn a_verdict_from_before_a_revocation_opens_no_session() {
    let revocation = Revocation::Subject { tenant: "".into(), subject: "alice".into() };
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        bench.accept(0, transport, &transport.opening(Some("alice"), ""));
        assert_eq!(bench.driver.shard.revoke(&revocation, START_S, bench.driver.now), 0);
        bench.verify();
        assert_eq!(bench.take(0), refused(transport, 3500), "{transport:?}");
        // The verifier refuses later ones.
        bench.pass(10_100);
        assert_eq!(bench.open(1, transport, Some("alice")), opened(transport));
        bench.end();
    }
}

#[test]
fn a_token_issued_after_the_revocation_of_its_subject_is_valid_at_once() {
    let revocation = Revocation::Subject { tenant: "".into(), subject: "alice".into() };
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        bench.open(0, transport, Some("alice^99"));
        bench.open(1, transport, Some("alice^101"));
        assert_eq!(bench.driver.shard.revoke(&revocation, START_S + 100, bench.driver.now), 1);
        bench.turns();
        assert_eq!(bench.take(1), [] as [&str; 0], "{transport:?}: its token is newer");
        for (slot, token) in (2..).zip(["alice", "alice^100"]) {
            assert_eq!(bench.open(slot, transport, Some(token)), refused(transport, 3500), "{token}");
        }
        assert_eq!(bench.open(4, transport, Some("alice^101")), opened(transport), "{transport:?}");
        bench.end();
    }
}

#[test]
fn a_session_by_certificate_ends_with_the_certificate_unless_it_gets_a_token() {
    for transport in OPEN {
        for has_token in [false, true] {
            let mut bench = Bench::new();
            bench.accept(0, transport, b"");
            bench.driver.shard.set_certificate(SlotId(0), &certificate("alice", 100));
            bench.driver.receive(0, &transport.opening(None, ""));
            bench.verify();
            bench.take(0);
            if has_token {
                let expires = bench.request(0, &transport.refresh("alice"));
                assert!(expires.iter().all(|event| event == "expires 9 0"), "{expires:?}");
            }
            bench.pass(104_900);
            bench.take(0);
            bench.pass(200);
            let events = bench.take(0);
            match has_token {
                true => assert_eq!(events, [] as [&str; 0], "{transport:?}"),
                false => assert_eq!(events, closed(transport, 3005), "{transport:?}"),
            }
            bench.end();
        }
    }
}
