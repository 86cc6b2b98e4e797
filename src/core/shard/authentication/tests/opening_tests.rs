//! How sessions with and without credentials open, wait and are refused.

use super::*;

#[test]
fn a_valid_token_opens_a_session_on_every_transport() {
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        assert_eq!(bench.open(0, transport, Some("alice")), opened(transport), "{transport:?}");
        let session = bench.driver.shard.sessions.get(SlotId(0)).unwrap();
        assert_eq!(session.proof, Proof::Credentials);
        assert_eq!(&*session.principal.as_ref().unwrap().subject, "alice");
        assert_eq!(bench.count(Counter::CredentialsAccepted), 1);
        bench.end();
    }
}

#[test]
fn a_refused_token_closes_its_session_with_the_code_on_every_transport() {
    for transport in TRANSPORTS {
        for (token, code, counter) in [
            ("forged", 3500, Counter::ClosedUnauthorized),
            ("revoked", 3500, Counter::ClosedRevoked),
            ("old", 3005, Counter::ClosedTokenExpired),
            ("early", 3005, Counter::ClosedTokenExpired),
        ] {
            let mut bench = Bench::new();
            bench.accept(0, transport, &transport.opening(Some(token), ""));
            bench.driver.receive(0, &transport.subscribe("t.a"));
            bench.verify();
            assert_eq!(bench.take(0), refused(transport, code), "{transport:?} {token}");
            bench.driver.shard.handle_eof(SlotId(0), bench.driver.now);
            assert_eq!((bench.count(counter), bench.count(Counter::CredentialsRefused)), (1, 1));
            bench.end();
        }
    }
}

#[test]
fn nothing_is_answered_before_the_verdict_and_everything_in_order_after_it() {
    for transport in TRANSPORTS {
        for piece in [1, 7, usize::MAX] {
            let mut bench = Bench::new();
            let requests = [transport.subscribe("t.a"), transport.ping()].concat();
            let bytes = [transport.opening(Some("alice"), ""), requests].concat();
            bench.accept(0, transport, b"");
            bytes.chunks(piece.min(bytes.len())).for_each(|bytes| bench.driver.receive(0, bytes));
            bench.turns();
            let before = if transport.verifies_first() { vec![] } else { vec!["101".to_owned()] };
            assert_eq!(bench.take(0), before, "{transport:?} {piece}");
            assert!(bench.driver.actions.contains(&Action::PauseReceive(SlotId(0))));
            assert!(!bench.driver.shard.is_busy(), "a session that waits for its verdict costs no turns");
            assert_eq!(bench.verify(), 1, "verified once");
            let mut expected: Vec<&str> = opened(transport);
            if transport != Raw {
                expected.extend(["pong", "subscribed"]);
            }
            let mut events = [before, bench.take(0)].concat();
            let answered = events.len().min(opened(transport).len());
            // A subscription is acknowledged when its homes have confirmed it.
            events[answered..].sort_unstable();
            assert_eq!(events, expected, "{transport:?} {piece}");
            assert!(bench.driver.actions.contains(&Action::ResumeReceive(SlotId(0))));
            bench.end();
        }
    }
}

#[test]
fn a_client_without_a_token_is_anonymous_or_refused() {
    let read_only = Permissions { subscribe: rules(&["t.a"], &[]), publish: Rules::NONE };
    let anonymous = Arc::new(named("anonymous", read_only));
    for transport in TRANSPORTS {
        let mut bench =
            Bench::with(with(AuthLimits { anonymous: Some(anonymous.clone()), ..AuthLimits::default() }));
        let opened = bench.open(0, transport, None);
        assert_eq!(opened, [if transport == Native { "welcome" } else { "101" }], "{transport:?}");
        if transport != Raw {
            assert_eq!(bench.request(0, &transport.subscribe("t.a")), ["subscribed"]);
            assert_eq!(bench.request(0, &transport.subscribe("t.b")), ["error 108"]);
            assert_eq!(bench.request(0, &transport.publish("t.a")), ["error 108"]);
        }
        bench.end();

        let mut bench = Bench::new();
        let opened = bench.open(0, transport, None);
        if transport == Native {
            assert_eq!(opened, refused(transport, 3500));
        } else {
            assert_eq!(opened, ["101"], "its hello may bring one");
            assert_eq!(bench.request(0, &transport.subscribe("t.a")), refused(transport, 3500)[1..]);
        }
        assert_eq!(bench.count(Counter::CredentialsRefused), 1);
        bench.end();
    }
}

#[test]
fn a_websocket_that_subscribes_in_its_target_needs_its_token_there() {
    for (token, expected) in
        [(None, refused(Header, 3500)), (Some("alice"), vec!["101".into(), "subscribed".into()])]
    {
        let mut bench = Bench::new();
        bench.accept(0, Header, &Header.opening(token, "topics=t.a"));
        bench.verify();
        assert_eq!(bench.take(0), expected);
        bench.end();
    }
}

#[test]
fn a_websocket_without_a_token_has_as_long_for_it_as_for_a_handshake() {
    for transport in [JsonHello, FramesHello] {
        let mut bench = Bench::new();
        bench.accept(0, transport, &transport.opening(None, ""));
        assert_eq!(bench.request(0, &transport.ping()), ["101", "pong"], "a ping needs no token");
        bench.pass(4_900);
        assert_eq!(bench.take(0), [] as [&str; 0]);
        bench.pass(200);
        assert_eq!(bench.take(0), ["closing 3009", "close 3009"]);
        bench.end();

        let mut bench = Bench::new();
        bench.accept(0, transport, &transport.opening(Some("alice"), ""));
        bench.verify();
        bench.pass(20_000);
        assert_eq!(bench.take(0), opened(transport), "a session with a token stays");
        bench.end();
    }
}

#[test]
fn credentials_whose_verdict_does_not_come_end_their_session() {
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        bench.accept(0, transport, &transport.opening(Some("alice"), ""));
        let (id, credentials) = bench.driver.shard.poll_credentials().unwrap();
        bench.take(0);
        bench.pass(5_100);
        let expected = match transport {
            Native => vec!["closing 3504"],
            JsonHello | FramesHello => vec!["closing 3504", "close 3504"],
            _ => vec!["503"],
        };
        assert_eq!(bench.take(0), expected, "{transport:?}");
        bench.driver.shard.handle_verdict(id, verdict(&credentials), bench.driver.now);
        bench.turns();
        assert_eq!(bench.take(0), [] as [&str; 0], "it comes too late");
        bench.driver.shard.handle_eof(SlotId(0), bench.driver.now);
        let counts = [Counter::ClosedAuthBusy, Counter::CredentialsRefused, Counter::ClosedHandshakeDeadline];
        assert_eq!(
            counts.map(|counter| bench.count(counter)),
            [1, 1, 0],
            "{transport:?}: the server's fault"
        );
        bench.end();
    }
}

#[test]
fn what_waits_for_a_verdict_counts_as_unfinished_and_the_oldest_goes_first() {
    let limits = Limits { frame_bytes_max: 1 << 10, unfinished_bytes_max: 1, ..with(AuthLimits::default()) };
    let bytes_max = UNFINISHED_MESSAGES_LOWEST * limits.message_bytes_max();
    for transport in TRANSPORTS {
        let mut bench = Bench::with(limits.clone());
        let mut bytes = transport.opening(Some(&"x".repeat(600)), "");
        // What follows a hello on an open session waits, the hello itself does not.
        (0..20).for_each(|_| bytes.extend(transport.ping()));
        let clients = 2 * (bytes_max / bytes.len()) as u32;
        for slot in 0..clients {
            bench.accept(slot, transport, &bytes[..bytes.len() / 2]);
            bench.driver.receive(slot, &bytes[bytes.len() / 2..]);
            let held = bench.driver.shard.sessions.unfinished_bytes();
            assert!(held <= bytes_max && held > 0, "{transport:?} {slot}: {held}");
        }
        let sessions = &mut bench.driver.shard.sessions;
        let open: Vec<u32> = (0..clients).filter(|slot| sessions.open_mut(SlotId(*slot)).is_some()).collect();
        assert!(open.is_sorted() && open[0] > 0 && *open.last().unwrap() == clients - 1, "{open:?}");
        assert_eq!(open.len() as u32, clients - open[0], "{transport:?}: the oldest have ended");
        bench.verify();
        assert_eq!(bench.driver.shard.sessions.unfinished_bytes(), 0);
        bench.driver.sent.clear();
        bench.end();
    }
}

#[test]
fn credentials_that_wait_are_bounded_and_those_beyond_are_told_to_come_back() {
    for transport in TRANSPORTS {
        let mut bench = Bench::with(with(AuthLimits { waiting_max: 2, ..AuthLimits::default() }));
        for slot in 0..3 {
            bench.accept(slot, transport, &transport.opening(Some("alice"), ""));
        }
        let expected = match transport {
            Native => vec!["closing 3504"],
            JsonHello | FramesHello => vec!["101", "closing 3504", "close 3504"],
            _ => vec!["503"],
        };
        assert_eq!(bench.take(2), expected, "{transport:?}");
        // Credentials of a session that is gone are dropped, unless the driver has them.
        let first = bench.driver.shard.poll_credentials().unwrap();
        for slot in 0..2 {
            bench.driver.shard.handle_error(SlotId(slot), 104, bench.driver.now);
        }
        assert_eq!(bench.driver.shard.poll_credentials(), None);
        assert_eq!(bench.driver.shard.authentication.pending.len(), 1);
        bench.driver.shard.handle_verdict(first.0, verdict(&first.1), bench.driver.now);
        assert_eq!(bench.open(3, transport, Some("alice")), opened(transport));
        bench.end();
    }
}

#[test]
fn a_certificate_stands_for_a_token() {
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        bench.accept(0, transport, b"");
        bench.driver.shard.set_certificate(SlotId(0), &certificate("alice", 1_000));
        bench.driver.receive(0, &transport.opening(None, ""));
        bench.verify();
        let first = if transport == Native { "welcome" } else { "101" };
        assert_eq!(bench.take(0)[0], first, "{transport:?}");
        let session = bench.driver.shard.sessions.get(SlotId(0)).unwrap();
        assert_eq!(&*session.principal.as_ref().unwrap().subject, "alice");
        bench.end();
    }
}

#[test]
fn a_certificate_whose_name_is_not_listed_is_no_credentials() {
    let read_only = Permissions { subscribe: rules(&["t.a"], &[]), publish: Rules::NONE };
    let anonymous = Arc::new(named("anonymous", read_only));
    for transport in TRANSPORTS {
        for is_allowed in [true, false] {
            let anonymous = is_allowed.then(|| anonymous.clone());
            let mut bench = Bench::with(with(AuthLimits { anonymous, ..AuthLimits::default() }));
            bench.accept(0, transport, b"");
            bench.driver.shard.set_certificate(SlotId(0), &certificate("unlisted", 1_000));
            bench.driver.receive(0, &transport.opening(None, ""));
            assert_eq!(bench.verify(), 1, "asked about once");
            let events = bench.take(0);
            if transport == Native && !is_allowed {
                assert_eq!(events, refused(transport, 3500));
            } else {
                let first = if transport == Native { "welcome" } else { "101" };
                assert_eq!(events, [first], "{transport:?} {is_allowed}");
                let session = bench.driver.shard.sessions.get(SlotId(0)).unwrap();
                let proof = if is_allowed { Proof::Anonymous } else { Proof::None };
                assert_eq!(session.proof, proof, "a name that is not listed proves nothing");
            }
            if matches!(transport, JsonHello | FramesHello) {
                let events = bench.request(0, &transport.hello("alice", ""));
                assert_eq!(events[0], "welcome", "{transport:?} {is_allowed}: its hello brings a token");
            }
            bench.end();
        }
    }
}

#[test]
fn two_different_tokens_and_a_token_as_the_only_subprotocol_are_bad_requests() {
    let request = |lines: &str, query: &str| {
        let request = String::from_utf8(Header.opening(None, query)).unwrap();
        request.replace("Sec-WebSocket-Protocol: tickcast.v1.json\r\n", lines).into_bytes()
    };
    for (lines, query, expected) in [
        (
            "Sec-WebSocket-Protocol: tickcast.v1.json, bearer.alice\r\nAuthorization: bearer alice\r\n",
            "",
            "101",
        ),
        (
            "Sec-WebSocket-Protocol: tickcast.v1.json, bearer.alice\r\nAuthorization: Bearer bob\r\n",
            "",
            "400",
        ),
        ("Sec-WebSocket-Protocol: tickcast.v1.json, bearer.alice, bearer.bob\r\n", "", "400"),
        ("Authorization: Bearer alice\r\n", "token=bob", "400"),
        ("Authorization: Bearer alice\r\n", "token=%61lice", "101"),
        ("Authorization: Bearer alice\r\nAuthorization: Bearer alice\r\n", "", "400"),
        ("Sec-WebSocket-Protocol: bearer.alice\r\n", "", "400"),
        ("Authorization: Basic YTpi\r\n", "token=alice", "101"),
        ("", "token=alice&token=alice", "400"),
    ] {
        let mut bench = Bench::new();
        bench.accept(0, Header, &request(lines, query));
        bench.verify();
        assert_eq!(bench.take(0)[0], expected, "{lines} {query}");
        bench.end();
    }
    let mut bench = Bench::with(Limits { auth: Some(AuthLimits::default()), ..Limits::default() });
    bench.accept(0, Query, &request("", "token=alice"));
    assert_eq!(bench.take(0), ["400"], "a token in the target needs the operator's leave");
    bench.end();
}

#[test]
fn without_authentication_tokens_are_ignored_and_never_expire() {
    for transport in [Native, Header, Subprotocol, JsonHello, FramesHello] {
        let mut bench = Bench::with(Limits::default());
        assert_eq!(bench.open(0, transport, Some("forged")), opened(transport), "{transport:?}");
        if matches!(transport, Native | JsonHello | FramesHello) {
            assert_eq!(bench.request(0, &transport.refresh("old")), ["expires 9 0"]);
        }
        assert_eq!(bench.request(0, &transport.subscribe(">")), ["subscribed"]);
        assert_eq!(bench.driver.shard.poll_credentials(), None);
        bench.end();
    }
}

#[test]
fn tokens_beyond_their_bounds_are_refused_and_never_verified() {
    let longest = "x".repeat(TOKEN_BYTES_MAX);
    let too_long = "x".repeat(TOKEN_BYTES_MAX + 1);
    for transport in [Native, JsonHello, FramesHello] {
        let mut bench = Bench::new();
        assert_eq!(bench.open(0, transport, Some(&longest)), opened(transport), "{transport:?}");
        assert_eq!(bench.open(1, transport, Some(&too_long)), refused(transport, 3500));
        assert_eq!(bench.request(0, &transport.refresh(&too_long))[0], "closing 3500");
        assert_eq!(bench.count(Counter::CredentialsAccepted), 1);
        bench.end();
    }
    let mut bench = Bench::new();
    bench.accept(0, Native, &hello(b"\xff", Features::NONE));
    assert_eq!((bench.take(0), bench.verify()), (vec!["closing 3500".to_owned()], 0));
    assert_eq!(bench.open(1, JsonHello, None), ["101"]);
    assert_eq!(bench.request(1, &JsonHello.refresh("")), refused(JsonHello, 3500)[1..]);
    bench.end();
}

#[test]
fn a_kept_http_connection_becomes_a_websocket_when_its_token_is_verified() {
    for (token, expected) in [("alice", vec!["101".to_owned()]), ("forged", refused(Header, 3500))] {
        let mut bench = Bench::new();
        let get = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n";
        bench.accept(0, Header, &[get, &get[..]].concat());
        bench.turns();
        assert_eq!(bench.take(0), ["404"], "static resources need no token");
        bench.driver.receive(0, &Header.opening(Some(token), ""));
        bench.turns();
        assert_eq!(bench.take(0), [] as [&str; 0]);
        bench.verify();
        assert_eq!(bench.take(0), expected, "{token}");
        bench.end();
    }
}

/// Neither a truncated nor a changed opening panics, hangs or opens a session without a verdict.
#[test]
fn truncated_and_mutated_openings_end_or_wait() {
    let mut random = fastrand::Rng::with_seed(7);
    for transport in TRANSPORTS {
        let whole = [transport.opening(Some("alice"), ""), transport.subscribe("t.a")].concat();
        for round in 0..whole.len() + 600 {
            let mut bytes = whole.clone();
            match round.checked_sub(whole.len()) {
                None => bytes.truncate(round),
                Some(_) => {
                    for _ in 0..random.usize(1..4) {
                        let at = random.usize(..bytes.len());
                        bytes[at] = random.u8(..);
                    }
                }
            }
            let mut bench = Bench::new();
            bench.accept(0, transport, b"");
            for bytes in bytes.chunks(random.usize(1..bytes.len().max(2))) {
                bench.driver.receive(0, bytes);
                bench.driver.turn();
            }
            while let Some((id, credentials)) = bench.driver.shard.poll_credentials() {
                let token = credentials.token.as_deref().unwrap();
                let verdict = match token {
                    "alice" => verdict(&credentials),
                    _ => Err(AuthRefusal::Invalid("unknown".into())),
                };
                bench.driver.shard.handle_verdict(id, verdict, bench.driver.now);
                bench.turns();
            }
            if let Some(session) = bench.driver.shard.sessions.get(SlotId(0)) {
                let subject = session.principal.as_ref().map(|principal| &*principal.subject);
                assert!(matches!(subject, None | Some("alice")));
                assert!(subject.is_some() || session.subscriptions.is_empty());
            }
            // Whatever it waits for has a deadline.
            bench.pass(40_000);
            bench.driver.sent.clear();
            bench.end();
        }
    }
}

#[test]
fn a_token_in_a_later_hello_names_the_identity_and_replaces_its_session() {
    let anonymous = Some(Arc::new(named("anonymous", wide())));
    for transport in [JsonHello, FramesHello] {
        for anonymous in [None, anonymous.clone()] {
            let auth = with(AuthLimits { anonymous, ..AuthLimits::default() });
            let mut bench = Bench::with(Limits { identity_replaces: true, ..auth });
            let identity = |bench: &Bench, slot| {
                bench.driver.shard.identities.get(&SlotId(slot)).map(|identity| identity.to_string())
            };
            bench.accept(0, transport, &transport.opening(Some("alice"), "client=claimed"));
            bench.verify();
            assert_eq!(bench.take(0), opened(transport));
            assert_eq!(
                identity(&bench, 0).as_deref(),
                Some("alice"),
                "{transport:?}: not what it has claimed"
            );
            bench.open(1, transport, Some("bob"));
            assert_eq!(bench.take(0), [] as [&str; 0]);
            bench.open(2, transport, Some("alice"));
            assert_eq!(bench.take(0)[0], "closing 3502", "{transport:?}");
            // A new token of the same client replaces nobody.
            bench.request(2, &transport.refresh("alice"));
            bench.request(2, &transport.hello("alice", ""));
            assert_eq!(bench.take(1), [] as [&str; 0]);
            bench.open(3, Native, Some("alice"));
            assert_eq!(bench.take(2)[0], "closing 3502", "{transport:?}");
            bench.end();
        }
    }
}
