//! Tests of topics that their homes forget or close while they are still opening to their members.

use std::collections::HashMap;

use super::opening_tests::{
    FEW, Reader, accept_members, driver, finish, paced, pass_until_forgotten, publish, publish_as, read,
    subscribe,
};
use crate::{
    fanout::OpeningUnits,
    limits::{NEW_TOPIC_UNITS, OPENING_BYTES_MAX, TURN_OPENING_UNITS},
    metrics::counters::Counter,
    shard::ListenerKind,
    testing::{Driver, frame, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, Kind},
    records::{Request, Subscribe},
    subscription::Policy,
};

/// A shard with members of `pattern` in the slots from 1 on, which keep every tick at a pace.
fn driver_of(members: u32, pattern: &str) -> Driver {
    let mut driver = driver();
    for slot in 1..=members {
        driver.accept(slot, ListenerKind::Native, &hello());
        subscribe(&mut driver, slot, pattern, paced(Policy::Keep));
    }
    finish(&mut driver);
    driver.sent.clear();
    driver
}

fn opening_units(driver: &Driver) -> u64 {
    driver.shard.counters().value(Counter::OpeningUnits)
}

#[test]
fn no_turn_is_long_because_a_topic_that_opens_is_forgotten_or_begins_its_next_life() {
    const MEMBERS: u32 = 6_000;
    let mut driver = driver_of(MEMBERS, "t.*");
    let mut readers = HashMap::<u32, Reader>::new();
    driver.shard.set_opening_units(FEW);
    publish(&mut driver, "t.0", b"first");
    pass_until_forgotten(&mut driver);
    publish(&mut driver, "t.0", b"second");
    driver.shard.set_opening_units(OpeningUnits::default());
    let (mut turns, mut longest) = (0, 0);
    while driver.shard.fanout.opens_topics() {
        let before = opening_units(&driver);
        driver.turn();
        longest = longest.max(opening_units(&driver) - before);
        read(&mut driver, &mut readers);
        turns += 1;
    }
    let bound = (TURN_OPENING_UNITS + NEW_TOPIC_UNITS) as u64;
    // What waited goes out to all members once they have joined, as for any tick.
    let deliveries = u64::from(MEMBERS) / 8;
    assert!(longest <= bound + deliveries, "{longest} units in one turn");
    assert!(
        turns >= 3 * MEMBERS as usize / TURN_OPENING_UNITS,
        "{turns} turns: each joins, leaves, and joins"
    );
    driver.pass(1_000_000);
    finish(&mut driver);
    read(&mut driver, &mut readers);
    assert!((1..=MEMBERS).all(|slot| readers[&slot].last["t.0"] == (2, 1)));
    assert!((1..=MEMBERS).all(|slot| readers[&slot].ticks as u64 + readers[&slot].lost == 2));
}

#[test]
fn lives_that_end_before_they_have_opened_open_one_after_the_other() {
    const MEMBERS: u32 = 60;
    let mut driver = driver_of(MEMBERS, "t.*");
    driver.shard.set_opening_units(FEW);
    let mut readers = HashMap::new();
    for life in 1..=4 {
        publish(&mut driver, "t.0", b"tick");
        if life < 4 {
            pass_until_forgotten(&mut driver);
        }
        assert!(driver.shard.fanout.opens_topics(), "life {life}");
        assert_eq!(driver.shard.fanout.topics_len(), 1, "the shard knows the first life only");
    }
    read(&mut driver, &mut readers);
    let mut turns = 0;
    while driver.shard.fanout.opens_topics() {
        driver.turn();
        turns += 1;
    }
    assert!(turns > 3 * MEMBERS, "{turns} turns: all join each life");
    driver.pass(1_000_000_000);
    finish(&mut driver);
    read(&mut driver, &mut readers);
    for slot in 1..=MEMBERS {
        let reader = &readers[&slot];
        assert_eq!((reader.ticks as u64 + reader.lost, reader.last["t.0"].0), (4, 4), "slot {slot}");
    }
    assert_eq!(driver.shard.fanout.topics_len(), 0, "the last life has been idle for long");
}

#[test]
fn what_waits_for_the_next_life_is_bounded_and_lost_by_gap() {
    const MEMBERS: u32 = 40;
    const TICKS: u64 = 1_500;
    let mut driver = driver_of(MEMBERS, "t.*");
    driver.shard.set_opening_units(FEW);
    publish(&mut driver, "t.0", b"first");
    pass_until_forgotten(&mut driver);
    (0..TICKS).for_each(|_| publish(&mut driver, "t.0", &[b'x'; 400]));
    let mut readers = HashMap::<u32, Reader>::new();
    let mut most = 0;
    while driver.shard.is_busy() || driver.shard.fanout.opens_topics() {
        driver.turn();
        driver.jump(10_000);
        most = most.max(driver.shard.fanout.openings_bytes());
        read(&mut driver, &mut readers);
    }
    assert!((OPENING_BYTES_MAX - 1_000..=OPENING_BYTES_MAX).contains(&most), "{most} bytes");
    assert!(driver.shard.counters().value(Counter::OpeningTicksLost) > 0);
    driver.pass(1_000_000_000);
    finish(&mut driver);
    read(&mut driver, &mut readers);
    for slot in 1..=MEMBERS {
        let reader = &readers[&slot];
        assert_eq!(reader.ticks as u64 + reader.lost + reader.conflated, 1 + TICKS, "slot {slot}");
    }
}

/// The frames sent to a slot.
fn kinds(driver: &Driver, slot: u32) -> Vec<Kind> {
    let bytes = driver.sent.iter().filter(|(to, _)| *to == slot).flat_map(|(_, bytes)| bytes);
    let (bytes, mut kinds) = (bytes.copied().collect::<Vec<_>>(), Vec::new());
    let mut rest = &bytes[..];
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        kinds.push(frame.kind);
        rest = &rest[used..];
    }
    kinds
}

fn count(kinds: &[Kind], wanted: Kind) -> usize {
    kinds.iter().filter(|&&kind| kind == wanted).count()
}

#[test]
fn sessions_come_and_go_while_a_forgotten_life_opens_and_the_next_one_waits() {
    const MEMBERS: u32 = 40;
    let (leaves, asks) = (MEMBERS + 1, MEMBERS + 2);
    let mut driver = driver_of(MEMBERS, "t.*");
    (leaves..=asks).for_each(|slot| driver.accept(slot, ListenerKind::Native, &hello()));
    driver.shard.set_opening_units(FEW);
    publish(&mut driver, "t.0", b"first");
    pass_until_forgotten(&mut driver);
    subscribe(&mut driver, leaves, "t.*", paced(Policy::Keep));
    driver.turn();
    publish(&mut driver, "t.0", b"second");
    driver.sent.clear();
    driver.receive(leaves, &frame(Kind::Unsubscribe, &Request::default(), b"t.*"));
    subscribe(&mut driver, asks, "t.*", Subscribe { from: 1, ..paced(Policy::Keep) });
    assert!(driver.shard.fanout.opens_topics());
    driver.turn();
    finish(&mut driver);
    driver.pass(1_000_000);
    finish(&mut driver);
    assert_eq!(kinds(&driver, leaves), [Kind::Unsubscribed], "no tick of the life that it has left");
    // It subscribed while the first life was opening, so both lives follow, in this order and without a gap.
    let kinds = kinds(&driver, asks);
    assert_eq!((count(&kinds, Kind::Tick), count(&kinds, Kind::Gap)), (2, 0), "{kinds:?}");
}

#[test]
fn a_new_pattern_is_ready_after_the_lives_that_were_forgotten_before_it() {
    const MEMBERS: u32 = 40;
    let comes = MEMBERS + 1;
    let mut driver = driver_of(MEMBERS, "t.*");
    driver.accept(comes, ListenerKind::Native, &hello());
    // The same publisher's topic opens first, for many turns.
    accept_members(&mut driver, comes + 1..=comes + 100, "n.0");
    finish(&mut driver);
    driver.shard.set_opening_units(FEW);
    publish(&mut driver, "n.0", b"first");
    publish(&mut driver, "t.0", b"first");
    pass_until_forgotten(&mut driver);
    driver.sent.clear();
    // The home does not open the next life to this shard, because no pattern matches it.
    for slot in 1..=MEMBERS {
        driver.receive(slot, &frame(Kind::Unsubscribe, &Request::default(), b"t.*"));
    }
    publish(&mut driver, "t.0", b"second");
    pass_until_forgotten(&mut driver);
    subscribe(&mut driver, comes, "t.0", Subscribe::default());
    driver.turn();
    assert!(driver.shard.fanout.opens_topics());
    publish(&mut driver, "t.0", b"third");
    finish(&mut driver);
    let kinds = kinds(&driver, comes);
    assert_eq!(count(&kinds, Kind::Tick), 1, "nothing of a life after which it would lack one: {kinds:?}");
    assert!(!driver.shard.fanout.opens_topics());
}

#[test]
fn a_new_pattern_waits_for_no_forgotten_topic_that_it_does_not_match() {
    const MEMBERS: u32 = 200;
    let (comes, other) = (MEMBERS + 1, MEMBERS + 2);
    let mut driver = driver_of(MEMBERS, "t.large.*");
    driver.accept(comes, ListenerKind::Native, &hello());
    driver.accept(other, ListenerKind::Native, &hello());
    for slot in other + 1..=other + 20 {
        driver.accept(slot, ListenerKind::Native, &hello());
        subscribe(&mut driver, slot, "t.small.*", paced(Policy::Keep));
    }
    finish(&mut driver);
    driver.shard.set_opening_units(FEW);
    // Its owner's topic opens for many turns, and is forgotten before the one of the other, which matches.
    publish(&mut driver, "t.large.x", b"1");
    pass_until_forgotten(&mut driver);
    publish_as(&mut driver, other, "t.small.x", b"1");
    pass_until_forgotten(&mut driver);
    driver.sent.clear();
    subscribe(&mut driver, comes, "*.small.x", Subscribe::default());
    driver.turn();
    assert_eq!(count(&kinds(&driver, comes), Kind::Subscribed), 0, "it waits for the one that it matches");
    while count(&kinds(&driver, comes), Kind::Subscribed) == 0 {
        driver.turn();
        assert!(driver.shard.fanout.opens_topics(), "it is acknowledged while strangers' topic opens");
    }
    finish(&mut driver);
}

#[test]
fn a_topic_closed_while_it_opens_or_waits_for_its_last_life_is_dropped_at_once() {
    for waits in [false, true] {
        const MEMBERS: u32 = 30;
        let mut driver = driver_of(MEMBERS, "t.*");
        driver.shard.set_opening_units(FEW);
        publish(&mut driver, "t.0", b"first");
        driver.turn();
        if waits {
            pass_until_forgotten(&mut driver);
            publish(&mut driver, "t.0", b"second");
            driver.turn();
        }
        assert!(driver.shard.fanout.opens_topics());
        for slot in 1..=MEMBERS {
            driver.receive(slot, &frame(Kind::Unsubscribe, &Request::default(), b"t.*"));
        }
        let before = opening_units(&driver);
        finish(&mut driver);
        assert!(!driver.shard.fanout.opens_topics(), "waits: {waits}");
        assert!(opening_units(&driver) - before < u64::from(MEMBERS), "nobody joins it any more");
        assert_eq!((driver.shard.fanout.topics_len(), driver.shard.fanout.openings_bytes()), (0, 0));
        driver.sent.clear();
        // Its home still has it, and opens it again.
        subscribe(&mut driver, 1, "t.*", Subscribe { from: 1, ..paced(Policy::Keep) });
        publish(&mut driver, "t.0", b"third");
        finish(&mut driver);
        driver.pass(1_000_000);
        let mut readers = HashMap::<u32, Reader>::new();
        read(&mut driver, &mut readers);
        assert!(readers[&1].ticks >= 1, "waits: {waits}");
    }
}
