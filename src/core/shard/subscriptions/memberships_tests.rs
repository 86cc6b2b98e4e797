//! Tests of the bound on the memberships that wildcards need.

use super::wildcard_tests::{
    PUBLISHER, READER, conflate, finish, publish, subscribe, ticks, unsubscribe, update,
};
use crate::{
    config::Limits,
    ids::SlotId,
    limits::{MEMBERSHIP_BYTES, MEMBERSHIPS_OWN_MIN},
    metrics::counters::Counter,
    shard::ListenerKind,
    testing::{Driver, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, Kind},
    records::{ErrorRecord, Subscribe},
};

fn paced() -> Subscribe {
    Subscribe { max_rate_millihertz: 1_000_000, ..Subscribe::default() }
}

/// The code of the error that a request was answered with; 0: none.
fn error_of(driver: &mut Driver, slot: u32) -> u16 {
    let bytes = driver.take_sent(slot);
    let (mut rest, mut code) = (&bytes[..], 0);
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        if frame.kind == Kind::Error {
            code = frame.record::<ErrorRecord>().unwrap().code;
        }
    }
    code
}

#[test]
fn memberships_of_wildcards_have_a_bound_and_exact_names_need_no_room() {
    const TOPICS: usize = 100;
    let (first, second, third) = (READER, READER + 1, READER + 2);
    let paced = paced();
    // One needs no room, because it is that of the subscription. A session may have half of the room.
    let memberships_bytes_max = 2 * (TOPICS - 1) * MEMBERSHIP_BYTES;
    let mut driver = Driver::new(Limits { memberships_bytes_max, ..Limits::default() });
    for slot in [PUBLISHER, first, second, third] {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    (0..TOPICS).for_each(|topic| publish(&mut driver, &format!("a.{topic}")));
    subscribe(&mut driver, first, "a.*", paced);
    assert_eq!((error_of(&mut driver, first), driver.shard.sessions.memberships_len()), (0, TOPICS));
    for (pattern, record) in [("a.*", paced), (">", Subscribe { from: 1, ..Subscribe::default() })] {
        subscribe(&mut driver, second, pattern, record);
        assert_eq!(error_of(&mut driver, second), 103, "{pattern}");
    }
    subscribe(&mut driver, second, "a.*", Subscribe::default());
    assert_eq!(error_of(&mut driver, second), 0, "it needs no memberships");
    update(&mut driver, second, "a.*", paced);
    assert_eq!(error_of(&mut driver, second), 103, "it would need some now");
    subscribe(&mut driver, third, "a.1", paced);
    assert_eq!((error_of(&mut driver, third), driver.shard.sessions.memberships_len()), (0, TOPICS + 1));
    assert_eq!(driver.shard.counters().value(Counter::SubscriptionsRefusedMemory), 3);
    // One more topic, and no room for its member.
    publish(&mut driver, "a.more");
    assert!(driver.shard.sessions.open_mut(SlotId(first)).is_none(), "it cannot be told of each loss");
    assert_eq!(driver.shard.counters().value(Counter::MembershipsRefused), 1);
    publish(&mut driver, "a.1");
    assert_eq!(ticks(&mut driver, second).len(), 2, "others go on");
    driver.pass(3_000_000_000);
    assert_eq!(driver.shard.sessions.memberships_len(), 1, "that of the exact name");
    subscribe(&mut driver, third, "*.more", paced);
    assert_eq!((error_of(&mut driver, third), driver.shard.sessions.memberships_len()), (0, 2));
}

#[test]
fn a_session_that_is_behind_holds_no_more_topics_than_there_is_memory() {
    const ROOM: usize = 30;
    let mut driver = Driver::new(Limits {
        behind_bytes: 1_000,
        memberships_bytes_max: ROOM * MEMBERSHIP_BYTES,
        ..Limits::default()
    });
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver.accept(READER, ListenerKind::Native, &hello());
    subscribe(&mut driver, READER, ">", conflate());
    driver.full.insert(READER);
    let mut most = 0;
    for topic in 0..10 * ROOM {
        publish(&mut driver, &format!("t.{topic}"));
        most = most.max(driver.shard.sessions.memberships_len());
    }
    assert!((ROOM / 2..=ROOM + 1).contains(&most), "{most} memberships");
    assert!(driver.shard.sessions.open_mut(SlotId(READER)).is_none());
}

#[test]
fn a_greedy_session_takes_no_memberships_from_modest_ones() {
    const ROOM: usize = 2_000;
    const MODEST: u32 = 50;
    const OWN: usize = 10;
    let greedy = READER + MODEST;
    let mut driver =
        Driver::new(Limits { memberships_bytes_max: ROOM * MEMBERSHIP_BYTES, ..Limits::default() });
    for slot in PUBLISHER..=greedy {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    for group in 0..30 {
        (0..100).for_each(|topic| publish(&mut driver, &format!("g.{group}.{topic}")));
    }
    let topic = |slot: u32, at: usize| format!("m.{slot}.{at}");
    for slot in READER..greedy {
        (0..OWN).for_each(|at| publish(&mut driver, &topic(slot, at)));
    }
    // More than there is room for is refused, and so is one piece after the other beyond a share.
    subscribe(&mut driver, greedy, "g.>", paced());
    assert_eq!((error_of(&mut driver, greedy), driver.shard.sessions.memberships_len()), (103, 0));
    let mut refused = 0;
    for group in 0..30 {
        subscribe(&mut driver, greedy, &format!("g.{group}.*"), paced());
        refused += usize::from(error_of(&mut driver, greedy) == 103);
    }
    let greedy_len = driver.shard.sessions.memberships_len();
    assert!((ROOM / 2 - 100..=ROOM / 2 + 10).contains(&greedy_len), "{greedy_len} memberships");
    assert_eq!(refused, 30 - greedy_len / 100);
    for slot in READER..greedy {
        subscribe(&mut driver, slot, &format!("m.{slot}.*"), paced());
        assert_eq!(error_of(&mut driver, slot), 0);
    }
    // New topics: the modest ones go on, and the greedy one is the first that has no room.
    for at in OWN..2 * OWN {
        (READER..greedy).for_each(|slot| publish(&mut driver, &topic(slot, at)));
        (0..10).for_each(|more| publish(&mut driver, &format!("g.0.{at}-{more}")));
    }
    assert_eq!(driver.shard.counters().value(Counter::MembershipsRefused), 1);
    assert!(driver.shard.sessions.open_mut(SlotId(greedy)).is_none());
    for slot in READER..greedy {
        let session = driver.shard.sessions.open_mut(SlotId(slot)).unwrap();
        assert_eq!(session.memberships.len(), 2 * OWN);
    }
}

#[test]
fn a_modest_session_has_its_minimum_however_many_greedy_ones_there_are() {
    const ROOM: usize = 100;
    const GREEDY: u32 = 200;
    let modest = READER + GREEDY;
    let mut driver =
        Driver::new(Limits { memberships_bytes_max: ROOM * MEMBERSHIP_BYTES, ..Limits::default() });
    for slot in PUBLISHER..=modest {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    for group in 0..20 {
        (0..4).for_each(|topic| publish(&mut driver, &format!("g.{group}.{topic}")));
    }
    // One membership is that of the subscription.
    (0..=MEMBERSHIPS_OWN_MIN).for_each(|topic| publish(&mut driver, &format!("m.{topic}")));
    for slot in READER..modest {
        for group in 0..20 {
            subscribe(&mut driver, slot, &format!("g.{group}.*"), paced());
        }
        assert_eq!(error_of(&mut driver, slot), 103, "it takes what there is");
    }
    let greedy_len = driver.shard.sessions.memberships_len();
    assert_eq!(driver.shard.sessions.memberships_in_pool(SlotId(modest)), MEMBERSHIPS_OWN_MIN);
    subscribe(&mut driver, modest, "m.*", paced());
    assert_eq!(error_of(&mut driver, modest), 0);
    assert_eq!(driver.shard.sessions.memberships_len(), greedy_len + MEMBERSHIPS_OWN_MIN + 1);
    subscribe(&mut driver, modest, "g.0.*", paced());
    assert_eq!(error_of(&mut driver, modest), 103, "no more than its minimum");
    driver.shard.sessions.check_memberships();
}

#[test]
fn exact_names_and_memberships_left_give_their_room_back() {
    const ROOM: usize = 20;
    let (exact, wild) = (READER, READER + 1);
    let mut driver =
        Driver::new(Limits { memberships_bytes_max: ROOM * MEMBERSHIP_BYTES, ..Limits::default() });
    for slot in [PUBLISHER, exact, wild] {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    for at in 0..3 * ROOM {
        publish(&mut driver, &format!("e.{at}"));
        subscribe(&mut driver, exact, &format!("e.{at}"), paced());
    }
    (0..ROOM / 2).for_each(|at| publish(&mut driver, &format!("w.{at}")));
    for _ in 0..10 {
        subscribe(&mut driver, wild, "w.*", paced());
        assert_eq!(error_of(&mut driver, wild), 0, "exact names take no room from it");
        assert_eq!(driver.shard.sessions.memberships_len(), 3 * ROOM + ROOM / 2);
        unsubscribe(&mut driver, wild, "w.*");
    }
    for at in 0..3 * ROOM {
        unsubscribe(&mut driver, exact, &format!("e.{at}"));
    }
    finish(&mut driver);
    driver.shard.sessions.check_memberships();
    assert_eq!(driver.shard.sessions.memberships_len(), 0);
}
