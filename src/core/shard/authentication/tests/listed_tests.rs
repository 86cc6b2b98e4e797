//! Principals of the configuration file that a reload removes or changes.

use std::slice;

use super::*;
use crate::{
    limits::TURN_LISTED_REVIEWED,
    listed::{Entry, Listed, Listing},
};

fn rules_of(topics: &[&str]) -> Permissions {
    Permissions { subscribe: rules(topics, &[]), publish: rules(topics, &[]) }
}

/// A principal of a file of this version.
fn listed(entry: &Entry, version: u64, topics: &[&str]) -> Arc<Principal> {
    let subject = if *entry == Entry::Anonymous { "anonymous" } else { "machine" };
    let listing = Some(Listing { entry: entry.clone(), version });
    Arc::new(Principal { listing, ..named(subject, rules_of(topics)) })
}

fn limits(version: u64, principals: &[Arc<Principal>]) -> Limits {
    let is_anonymous = |principal: &&Arc<Principal>| {
        principal.listing.as_ref().is_some_and(|listing| listing.entry == Entry::Anonymous)
    };
    let anonymous = principals.iter().find(is_anonymous).cloned();
    let listed = Arc::new(Listed::new(version, principals.iter().cloned()));
    with(AuthLimits { anonymous, listed, ..AuthLimits::default() })
}

/// Opens a session whose verdict is this principal, or an anonymous one.
fn open(bench: &mut Bench, slot: u32, transport: Transport, principal: Option<&Arc<Principal>>) {
    bench.accept(slot, transport, &transport.opening(principal.map(|_| "token"), ""));
    while let Some((id, _)) = bench.driver.shard.poll_credentials() {
        bench.driver.shard.handle_verdict(id, Ok(principal.unwrap().clone()), bench.driver.now);
        bench.turns();
    }
    bench.turns();
    let events = bench.take(slot);
    assert!(events.iter().any(|event| event == "welcome" || event == "101"), "{events:?}");
}

fn reload(bench: &mut Bench, version: u64, principals: &[Arc<Principal>]) {
    bench.driver.shard.reload(&Arc::new(limits(version, principals)), bench.driver.now);
    bench.turns();
}

const TOKEN: Entry = Entry::Token([7; 32]);

#[test]
fn sessions_of_a_principal_that_is_no_longer_in_the_file_end() {
    for transport in [Native, Header, JsonHello, FramesHello] {
        for entry in [TOKEN, Entry::Certificate("machine".into())] {
            let (stays, goes) = (listed(&Entry::Token([1; 32]), 1, &["t.a"]), listed(&entry, 1, &["t.a"]));
            let mut bench = Bench::with(limits(1, &[stays.clone(), goes.clone()]));
            open(&mut bench, 0, transport, Some(&stays));
            open(&mut bench, 1, transport, Some(&goes));
            reload(&mut bench, 2, &[listed(&Entry::Token([1; 32]), 2, &["t.a"])]);
            assert_eq!(bench.take(0), [] as [&str; 0], "{transport:?} {entry:?}");
            assert_eq!(bench.take(1)[0], "closing 3500", "{transport:?} {entry:?}");
            // A verdict from before the reload opens no session.
            bench.accept(2, transport, &transport.opening(Some("token"), ""));
            let (id, _) = bench.driver.shard.poll_credentials().unwrap();
            bench.driver.shard.handle_verdict(id, Ok(goes.clone()), bench.driver.now);
            bench.turns();
            assert_eq!(bench.take(2), refused(transport, 3500), "{transport:?}");
            // One that is newer than the shard does.
            open(&mut bench, 3, transport, Some(&listed(&Entry::Token([9; 32]), 3, &["t.a"])));
            bench.end();
        }
    }
}

#[test]
fn sessions_whose_permissions_change_in_the_file_keep_what_is_allowed() {
    for transport in [Native, JsonHello, FramesHello] {
        for is_anonymous in [false, true] {
            if is_anonymous && transport == Native {
                continue;
            }
            let entry = if is_anonymous { Entry::Anonymous } else { TOKEN };
            let before = listed(&entry, 1, &["t.a", "t.b"]);
            let mut bench = Bench::with(limits(1, slice::from_ref(&before)));
            open(&mut bench, 0, transport, (!is_anonymous).then_some(&before));
            for pattern in ["t.a", "t.b"] {
                assert_eq!(bench.request(0, &transport.subscribe(pattern)), ["subscribed"]);
            }
            reload(&mut bench, 2, &[listed(&entry, 2, &["t.b", "t.c"])]);
            assert_eq!(bench.take(0).len(), 1, "{transport:?}: t.a has ended");
            assert_eq!(bench.request(0, &transport.publish("t.b")), ["tick"], "{transport:?}");
            assert_eq!(bench.request(0, &transport.publish("t.a")), ["error 108"]);
            assert_eq!(bench.request(0, &transport.subscribe("t.c")), ["subscribed"]);
            let proof = bench.driver.shard.sessions.get(SlotId(0)).unwrap().proof;
            assert_eq!(proof, if is_anonymous { Proof::Anonymous } else { Proof::Credentials });
            bench.end();
        }
    }
}

#[test]
fn anonymous_sessions_end_with_the_table_that_allows_them() {
    let anonymous = listed(&Entry::Anonymous, 1, &["t.a"]);
    let token = listed(&TOKEN, 1, &["t.a"]);
    let mut bench = Bench::with(limits(1, &[anonymous, token.clone()]));
    open(&mut bench, 0, JsonHello, None);
    reload(&mut bench, 2, &[listed(&TOKEN, 2, &["t.a"])]);
    assert_eq!(bench.take(0), ["closing 3500", "close 3500"]);
    bench.end();
}

#[test]
fn an_anonymous_session_whose_token_is_being_verified_outlives_the_table_that_allows_it() {
    let anonymous = listed(&Entry::Anonymous, 1, &["t.a"]);
    let later = listed(&TOKEN, 2, &["t.a"]);
    let (forged, busy) = (AuthRefusal::Invalid("forged".into()), AuthRefusal::Busy);
    for (given, verdict, expected) in [
        (JsonHello.hello("token", ""), Ok(later.clone()), ["welcome"].as_slice()),
        (JsonHello.hello("token", ""), Err(forged), &["closing 3500", "close 3500"]),
        (JsonHello.refresh("token"), Err(busy), &["error 109", "closing 3500", "close 3500"]),
    ] {
        let mut bench = Bench::with(limits(1, &[anonymous.clone(), listed(&TOKEN, 1, &["t.a"])]));
        open(&mut bench, 0, JsonHello, None);
        bench.driver.receive(0, &given);
        bench.turns();
        let (id, _) = bench.driver.shard.poll_credentials().unwrap();
        reload(&mut bench, 2, slice::from_ref(&later));
        assert_eq!(bench.take(0), [] as [&str; 0], "{expected:?}");
        bench.driver.shard.handle_verdict(id, verdict, bench.driver.now);
        bench.turns();
        let events = bench.take(0);
        assert!(
            events.starts_with(&expected.iter().map(|event| event.to_string()).collect::<Vec<_>>()),
            "{events:?}"
        );
        bench.end();
    }
}

#[test]
fn sessions_of_json_web_tokens_are_left_alone_and_an_equal_file_changes_nothing() {
    let token = listed(&TOKEN, 1, &["t.a"]);
    let mut bench = Bench::with(limits(1, slice::from_ref(&token)));
    bench.open(0, Native, Some("alice"));
    open(&mut bench, 1, Native, Some(&token));
    bench.driver.shard.reload(&Arc::new(limits(2, &[listed(&TOKEN, 2, &["t.a"])])), bench.driver.now);
    assert!(!bench.driver.shard.authentication.is_reviewing_listed());
    reload(&mut bench, 3, &[]);
    assert_eq!((bench.take(0), bench.take(1)), (vec![], vec!["closing 3500".to_owned()]));
    bench.end();
}

#[test]
fn many_sessions_are_compared_over_several_turns() {
    let token = listed(&TOKEN, 1, &["t.a"]);
    let mut bench = Bench::with(limits(1, slice::from_ref(&token)));
    let sessions = 2 * TURN_LISTED_REVIEWED as u32 + 1;
    for slot in 0..sessions {
        bench.accept(slot, Native, &Native.opening(Some("token"), ""));
        let (id, _) = bench.driver.shard.poll_credentials().unwrap();
        bench.driver.shard.handle_verdict(id, Ok(token.clone()), bench.driver.now);
    }
    bench.driver.shard.reload(&Arc::new(limits(2, &[])), bench.driver.now);
    let open = |bench: &mut Bench| {
        (0..sessions).filter(|slot| bench.driver.shard.sessions.open_mut(SlotId(*slot)).is_some()).count()
    };
    for left in [sessions as usize - TURN_LISTED_REVIEWED, 1, 0] {
        assert!(bench.driver.shard.is_busy());
        bench.driver.shard.turn(bench.driver.now);
        assert_eq!(open(&mut bench), left);
    }
    assert!(!bench.driver.shard.authentication.is_reviewing_listed());
    bench.end();
}
