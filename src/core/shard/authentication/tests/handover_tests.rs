//! Sessions whose identity another shard serves.

use super::*;
use crate::testing::{EPOCH, TurnLoop};

const SHARDS: u16 = 4;

fn shard(id: ShardId, limits: Limits) -> Shard {
    Shard::new(id, SHARDS, EPOCH, limits, Arc::default())
}

/// A subject that this shard serves, or that another one serves.
fn subject(shard: ShardId, is_here: bool) -> String {
    let mut subjects = (0..).map(|n| format!("subject-{n}"));
    subjects.find(|subject| (placement::serving_shard(subject, SHARDS) == shard) == is_here).unwrap()
}

fn sent(shard: &mut Shard) -> Vec<u8> {
    let mut sent = Vec::new();
    TurnLoop::default().flush(shard, START, usize::MAX, |_, bytes| {
        sent.extend_from_slice(bytes);
        false
    });
    sent
}

fn verify(shard: &mut Shard) -> usize {
    let mut verified = 0;
    while let Some((id, credentials)) = shard.poll_credentials() {
        shard.handle_verdict(id, verdict(&credentials), START);
        verified += 1;
    }
    verified
}

fn actions(shard: &mut Shard) -> Vec<Action> {
    std::iter::from_fn(|| shard.poll_action()).collect()
}

fn opening(listener: ListenerKind, client: &str, token: &str) -> Vec<u8> {
    match listener {
        ListenerKind::Native => hello_as(client, token.as_bytes(), Features::TOKENS),
        ListenerKind::Http if client.is_empty() => Header.opening(Some(token), ""),
        ListenerKind::Http => Header.opening(Some(token), &format!("client={client}")),
    }
}

#[test]
fn a_session_moves_to_the_shard_of_its_subject_with_its_verdict() {
    let replaces = Limits { identity_replaces: true, ..with(AuthLimits::default()) };
    let token = subject(ShardId(0), false);
    let claimed = subject(ShardId(0), true);
    let to = placement::serving_shard(&token, SHARDS);
    for listener in [ListenerKind::Native, ListenerKind::Http] {
        for is_read_only in [false, true] {
            let mut from = shard(ShardId(0), replaces.clone());
            from.handle_accept(SlotId(3), listener, START);
            if is_read_only {
                from.set_read_only(SlotId(3));
            }
            let bytes = opening(listener, &claimed, &format!("{token}@1000"));
            from.handle_bytes(SlotId(3), &bytes, START);
            assert_eq!(actions(&mut from), [Action::PauseReceive(SlotId(3))]);
            assert_eq!(verify(&mut from), 1);
            assert_eq!(actions(&mut from), [Action::HandOver(SlotId(3))], "{listener:?}");
            assert_eq!(sent(&mut from), b"", "nothing is answered before the handover");
            let detached = from.handle_detached(SlotId(3)).unwrap();
            assert_eq!((detached.to, &detached.bytes), (to, &bytes));
            assert_eq!(detached.is_read_only, is_read_only);
            assert!(from.authentication.permissions.is_empty() && from.authentication.expiries.is_empty());

            let mut there = shard(to, replaces.clone());
            there.handle_attached(SlotId(8), SourceId::default(), &detached, START);
            assert_eq!(there.poll_credentials(), None, "verified once");
            assert_eq!(actions(&mut there), [Action::HandshakeDone(SlotId(8))]);
            assert!(!sent(&mut there).is_empty(), "welcome or 101");
            let session = there.sessions.get(SlotId(8)).unwrap();
            assert_eq!((session.proof, session.is_read_only), (Proof::Credentials, is_read_only));
            assert_eq!(*session.principal.as_ref().unwrap().subject, *token);
            assert!(there.authentication.expiries.contains_key(&SlotId(8)), "it expires there");
        }
    }
}

#[test]
fn a_session_whose_subject_was_revoked_on_its_way_ends_there() {
    let replaces = Limits { identity_replaces: true, ..with(AuthLimits::default()) };
    let token = subject(ShardId(0), false);
    let mut from = shard(ShardId(0), replaces.clone());
    from.handle_accept(SlotId(3), ListenerKind::Native, START);
    from.handle_bytes(SlotId(3), &opening(ListenerKind::Native, "", &token), START);
    verify(&mut from);
    let detached = from.handle_detached(SlotId(3)).unwrap();
    let mut there = shard(detached.to, replaces);
    there.revoke(&Revocation::Subject { tenant: "".into(), subject: token.into() }, START_S, START);
    there.handle_attached(SlotId(8), SourceId::default(), &detached, START);
    assert_eq!(events(&sent(&mut there)), ["closing 3500"]);
}

#[test]
fn a_subject_stays_where_it_was_accepted_unless_its_connections_must_meet() {
    let token = subject(ShardId(0), false);
    for (client, replaces, moves) in [("", false, false), ("x", false, true), ("", true, true)] {
        let mut shard =
            shard(ShardId(0), Limits { identity_replaces: replaces, ..with(AuthLimits::default()) });
        shard.handle_accept(SlotId(3), ListenerKind::Native, START);
        shard.handle_bytes(SlotId(3), &opening(ListenerKind::Native, client, &token), START);
        verify(&mut shard);
        assert_eq!(shard.handle_detached(SlotId(3)).is_some(), moves, "{client:?} {replaces}");
        if !moves {
            assert_eq!(shard.identities.get(&SlotId(3)).map(|identity| &**identity), Some(&*token));
        }
    }
}

#[test]
fn with_authentication_only_a_proven_identity_replaces_a_session() {
    let anonymous = Some(Arc::new(named("anonymous", wide())));
    let limits =
        Limits { identity_replaces: true, ..with(AuthLimits { anonymous, ..AuthLimits::default() }) };
    let name = subject(ShardId(0), true);
    let mut shard = shard(ShardId(0), limits);
    let mut open = |slot: u32, bytes: &[u8]| {
        shard.handle_accept(SlotId(slot), ListenerKind::Native, START);
        shard.handle_bytes(SlotId(slot), bytes, START);
        verify(&mut shard);
        sent(&mut shard);
        (0..=slot).filter(|&slot| shard.sessions.open_mut(SlotId(slot)).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(open(0, &opening(ListenerKind::Native, "", &name)), [0]);
    assert_eq!(open(1, &hello_as(&name, b"", Features::NONE)), [0, 1], "a claim replaces nobody");
    assert_eq!(open(2, &hello_as(&name, b"", Features::NONE)), [0, 1, 2], "and is replaced by nobody");
    assert_eq!(open(3, &opening(ListenerKind::Native, "x", &name)), [1, 2, 3]);
}

#[test]
fn a_session_that_ends_while_it_waits_or_leaves_learns_why() {
    let replaces = Limits { identity_replaces: true, ..with(AuthLimits::default()) };
    let token = subject(ShardId(0), false);
    for verifies in [false, true] {
        let mut from = shard(ShardId(0), replaces.clone());
        from.handle_accept(SlotId(3), ListenerKind::Native, START);
        from.handle_bytes(SlotId(3), &opening(ListenerKind::Native, "", &token), START);
        if verifies {
            verify(&mut from);
        }
        from.stop_input();
        if verifies {
            from.turn(START);
        }
        from.begin_drain(u64::MAX, START);
        assert_eq!(events(&sent(&mut from)), ["closing 3001"]);
        assert_eq!(from.handle_detached(SlotId(3)), None);
        verify(&mut from);
        assert_eq!(sent(&mut from), b"");
    }
}

#[test]
fn a_verdict_opens_no_session_of_a_server_that_stops() {
    for listener in [ListenerKind::Native, ListenerKind::Http] {
        let mut shard = shard(ShardId(0), with(AuthLimits::default()));
        shard.handle_accept(SlotId(3), listener, START);
        shard.handle_bytes(SlotId(3), &opening(listener, "", "alice"), START);
        shard.stop_input();
        assert_eq!(verify(&mut shard), 1);
        shard.turn(START);
        assert_eq!(sent(&mut shard), b"");
        shard.begin_drain(u64::MAX, START);
        shard.turn(START);
    }
}

/// The parts that the transport moves belong to no shard.
#[test]
fn an_anonymous_session_is_anonymous_where_it_goes() {
    let anonymous = Some(Arc::new(named("anonymous", wide())));
    let limits = with(AuthLimits { anonymous, ..AuthLimits::default() });
    let client = subject(ShardId(0), false);
    let mut from = shard(ShardId(0), limits.clone());
    from.handle_accept(SlotId(3), ListenerKind::Native, START);
    from.handle_bytes(SlotId(3), &hello_as(&client, b"", Features::NONE), START);
    let detached: DetachedSession = from.handle_detached(SlotId(3)).unwrap();
    assert_eq!(detached.principal, None);
    assert!(from.authentication.permissions.is_empty());
    let mut there = shard(detached.to, limits);
    there.handle_attached(SlotId(8), SourceId::default(), &detached, START);
    let session = there.sessions.get(SlotId(8)).unwrap();
    assert_eq!(session.proof, Proof::Anonymous);
}

#[test]
fn a_connection_that_polls_takes_nobodys_token_to_the_shard_of_a_session() {
    let mut from = shard(ShardId(0), with(AuthLimits::default()));
    from.handle_accept(SlotId(3), ListenerKind::Http, START);
    let call = "GET /v1/topics?pattern=a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice@1000\r\n\r\n";
    from.handle_bytes(SlotId(3), call.as_bytes(), START);
    assert_eq!(verify(&mut from), 1);
    while from.turn(START) {}
    sent(&mut from);
    actions(&mut from);
    assert!(from.sessions.get(SlotId(3)).is_some_and(|session| session.principal.is_some()));
    let poll =
        format!("GET /socket.io/?EIO=4&transport=polling&sid=1.{:032x} HTTP/1.1\r\nHost: x\r\n\r\n", 7);
    from.handle_bytes(SlotId(3), poll.as_bytes(), START);
    assert!(actions(&mut from).contains(&Action::HandOver(SlotId(3))));
    let detached = from.handle_detached(SlotId(3)).unwrap();
    assert_eq!((detached.to, detached.principal), (ShardId(1), None));
}
