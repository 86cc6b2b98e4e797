//! Tests of sessions that search for the topics of a wildcard while others walk over all topics.

use super::JoinState;
use crate::{
    config::Limits,
    ids::SlotId,
    limits::{
        CONTROL_QUANTUM_UNITS, JOIN_PLACE_UNITS, JOINED_AT_ONCE_MAX, JOINS_ACTIVE_MAX, RECENT_TOPICS_MAX,
        TURN_CONTROL_UNITS, TURN_INTEREST_UNITS,
    },
    shard::ListenerKind,
    testing::{Driver, frame, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, Kind},
    records::{Publish, Request, Subscribe},
};

const PUBLISHER: u32 = 0;
const TOPICS: usize = 20_000;
const WALKERS: u32 = 2 * JOINS_ACTIVE_MAX as u32;
const NEWCOMER: u32 = WALKERS + 1;
const HOLDER: u32 = WALKERS + 2;

fn paced(from: u8) -> Subscribe {
    Subscribe { from, max_rate_millihertz: 1_000_000, ..Subscribe::default() }
}

fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
}

fn publish(driver: &mut Driver, topics: impl Iterator<Item = String>) {
    let mut bytes = Vec::new();
    for topic in topics {
        frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), &topic, b"x");
    }
    driver.receive(PUBLISHER, &bytes);
}

fn subscribe(driver: &mut Driver, slot: u32, pattern: &str, record: Subscribe) {
    driver.receive(slot, &frame(Kind::Subscribe, &record, pattern.as_bytes()));
}

/// A shard with a publisher, its topics, a session that has opened them all to the shard, and sessions without subscriptions.
fn driver(topics: usize) -> Driver {
    let mut driver = Driver::new(Limits { behind_bytes: 1 << 20, ..Limits::default() });
    for slot in 0..=HOLDER {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    subscribe(&mut driver, HOLDER, ">", Subscribe::default());
    for first in (0..topics).step_by(500) {
        publish(&mut driver, (first..topics.min(first + 500)).map(|topic| format!("n.{topic}")));
        finish(&mut driver);
    }
    publish(&mut driver, (0..3).map(|topic| format!("small.{topic}")));
    finish(&mut driver);
    driver.sent.clear();
    driver
}

/// Lets the walkers walk over all topics, and again as soon as they have been served. Each has begun, or waits.
fn begin_walks(driver: &mut Driver) {
    for slot in 1..=WALKERS {
        let bytes = [
            frame(Kind::Subscribe, &paced(0), b">"),
            frame(Kind::Unsubscribe, &Request::default(), b">"),
            frame(Kind::Subscribe, &paced(0), b">"),
        ];
        driver.receive(slot, &bytes.concat());
    }
    while driver.shard.control.join_waiters.len() < WALKERS as usize - JOINS_ACTIVE_MAX {
        driver.turn();
    }
}

/// Subscribes the newcomer to a pattern without a literal prefix, and runs turns until it searches.
fn begin_search(driver: &mut Driver) {
    subscribe(driver, NEWCOMER, "*.z", paced(0));
    let searches = |driver: &Driver| {
        let flow = driver.shard.control.flows.get(&SlotId(NEWCOMER));
        flow.is_some_and(|flow| matches!(flow.join_state, JoinState::Searches(..)))
    };
    let mut turns = 0;
    while !searches(driver) {
        driver.turn();
        turns += 1;
        assert!(turns < 100, "it searches");
    }
}

/// Runs turns until the newcomer has its acknowledgement and this many ticks. Returns the turns.
fn turns_until_served(driver: &mut Driver, ticks: usize) -> usize {
    let (mut turns, mut has, mut is_subscribed) = (0, 0, false);
    while !is_subscribed || has < ticks {
        driver.turn();
        turns += 1;
        assert!(turns < 1_000, "acknowledged: {is_subscribed}, {has} ticks");
        let bytes = driver.take_sent(NEWCOMER);
        let mut rest = &bytes[..];
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            is_subscribed |= frame.kind == Kind::Subscribed && frame.header.topic_id == 0;
            has += usize::from(frame.kind == Kind::Tick);
        }
    }
    turns
}

#[test]
fn a_session_with_few_topics_is_served_while_others_walk_over_all() {
    /// Turns for a home's walk, which compares each topic with the patterns that match it.
    const INTEREST_TURNS: usize = TOPICS * 4 / TURN_INTEREST_UNITS + 1;
    /// Turns to request history and to receive it.
    const HISTORY_TURNS: usize = 2;
    let mut driver = driver(TOPICS);
    begin_walks(&mut driver);
    subscribe(&mut driver, NEWCOMER, "small.*", paced(1));
    let turns = turns_until_served(&mut driver, 3);
    println!("{turns} turns with a prefix");
    assert!(turns <= INTEREST_TURNS + 1 + HISTORY_TURNS, "{turns} turns");
    // No name begins like this pattern, so it is compared with all topics: a quantum in each round.
    let rounds = TOPICS / CONTROL_QUANTUM_UNITS as usize + 1;
    let round = (JOINS_ACTIVE_MAX + 1) * CONTROL_QUANTUM_UNITS as usize / TURN_CONTROL_UNITS + 1;
    subscribe(&mut driver, NEWCOMER, "*.1", paced(1));
    // It is a member of small.1 already.
    let turns = turns_until_served(&mut driver, 1);
    println!("{turns} turns without");
    assert!(turns <= INTEREST_TURNS + rounds * round + HISTORY_TURNS, "{turns} turns");
    let (walks, control) = (driver.shard.fanout.joins_len(), &driver.shard.control);
    let with_place = walks + control.joins_granted - control.joins_suspended;
    assert_eq!(with_place, JOINS_ACTIVE_MAX, "the others still walk");
}

#[test]
fn walks_that_have_had_their_places_for_long_take_turns_with_those_that_wait() {
    let mut driver = driver(TOPICS);
    publish(&mut driver, (0..2 * JOINED_AT_ONCE_MAX).map(|topic| format!("mid.{topic}")));
    finish(&mut driver);
    begin_walks(&mut driver);
    subscribe(&mut driver, NEWCOMER, "mid.*", paced(0));
    let turns = turns_until_served(&mut driver, 0);
    println!("{turns} turns");
    // Each of the others has its place once: a walk over all topics takes many times as long.
    let round = WALKERS as usize * JOIN_PLACE_UNITS / TURN_CONTROL_UNITS;
    assert!(turns <= 3 * round / 2, "{turns} turns");
    // Those without a place get every tick too: their subscriptions have been acknowledged.
    let (walks, suspended) = (driver.shard.fanout.joins_len(), driver.shard.control.joins_suspended);
    assert!(suspended >= JOINS_ACTIVE_MAX && walks <= WALKERS as usize + 1, "{suspended} of {walks} wait");
    driver.sent.clear();
    publish(&mut driver, [format!("n.{}", TOPICS - 1)].into_iter());
    driver.turn();
    let has_tick = |bytes: &[u8]| {
        let mut rest = bytes;
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            if frame.kind == Kind::Tick {
                return true;
            }
        }
        false
    };
    let mut served: Vec<u32> =
        driver.sent.iter().filter(|(_, bytes)| has_tick(bytes)).map(|(slot, _)| *slot).collect();
    served.retain(|slot| (1..=WALKERS).contains(slot));
    served.sort_unstable();
    served.dedup();
    assert_eq!(served.len(), WALKERS as usize, "each has begun its walk");
}

#[test]
fn a_session_that_searches_joins_the_topics_that_open_meanwhile() {
    for opened in [1, RECENT_TOPICS_MAX, RECENT_TOPICS_MAX + 1] {
        let mut driver = driver(2 * TURN_CONTROL_UNITS);
        begin_search(&mut driver);
        // It has passed all names that begin with `a`.
        publish(&mut driver, (0..opened).map(|at| if at == 0 { "a.z".into() } else { format!("a.{at}") }));
        turns_until_served(&mut driver, 0);
        finish(&mut driver);
        driver.pass(1_000_000_000);
        driver.sent.clear();
        publish(&mut driver, ["a.z".into()].into_iter());
        finish(&mut driver);
        let bytes = driver.take_sent(NEWCOMER);
        let Ok(Step::Complete(_, frame)) = frame::decode(&bytes, usize::MAX) else {
            panic!("{opened} topics: a tick arrives")
        };
        assert_eq!((frame.kind, frame.header.sequence), (Kind::Tick, 2));
    }
}

#[test]
fn sessions_that_end_while_they_search_or_wait_leave_nothing_behind() {
    let mut driver = driver(TURN_CONTROL_UNITS / 2);
    begin_walks(&mut driver);
    begin_search(&mut driver);
    for slot in (1..=WALKERS).chain([NEWCOMER]) {
        driver.shard.handle_error(SlotId(slot), 104, driver.now);
    }
    finish(&mut driver);
    let control = &driver.shard.control;
    assert_eq!((control.flows.len(), control.joins_granted, control.join_waiters.len()), (0, 0, 0));
    assert_eq!(control.joins_suspended, 0);
    assert_eq!(driver.shard.sessions.memberships_len(), 0);
}
