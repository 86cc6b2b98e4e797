//! Tests of wildcard groups.

use crate::{
    budgets::PatternLimits,
    config::Limits,
    ids::SlotId,
    limits::{LONG_WILDCARDS_BYTES, TURN_CONTROL_UNITS},
    metrics::counters::Counter,
    pattern_trie::PatternTrie,
    session::Session,
    shard::ListenerKind,
    testing::{Driver, frame, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, Kind},
    records::{Publish, Request, Subscribe},
    subscription::Policy,
};

pub(super) const PUBLISHER: u32 = 0;
pub(super) const READER: u32 = 1;

/// A shard with a publisher and a reader.
fn driver() -> Driver {
    let mut driver = Driver::new(Limits { behind_bytes: 1_000, ..Limits::default() });
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver.accept(READER, ListenerKind::Native, &hello());
    driver
}

/// Like [`driver`], with topics that have a tick.
fn driver_with(topics: &[&str]) -> Driver {
    let mut driver = driver();
    topics.iter().for_each(|topic| publish(&mut driver, topic));
    driver
}

pub(super) fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
}

pub(super) fn subscribe(driver: &mut Driver, slot: u32, pattern: &str, record: Subscribe) {
    driver.receive(slot, &frame(Kind::Subscribe, &record, pattern.as_bytes()));
    finish(driver);
}

pub(super) fn update(driver: &mut Driver, slot: u32, pattern: &str, record: Subscribe) {
    driver.receive(slot, &frame(Kind::Update, &record, pattern.as_bytes()));
    finish(driver);
}

pub(super) fn unsubscribe(driver: &mut Driver, slot: u32, pattern: &str) {
    driver.receive(slot, &frame(Kind::Unsubscribe, &Request::default(), pattern.as_bytes()));
    finish(driver);
}

pub(super) fn publish(driver: &mut Driver, topic: &str) {
    publish_now(driver, topic);
    finish(driver);
}

/// Publishes without waiting until the shard is idle.
fn publish_now(driver: &mut Driver, topic: &str) {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, &[0; 40]);
    driver.receive(PUBLISHER, &bytes);
}

fn session(driver: &Driver, slot: u32) -> &Session {
    driver.shard.sessions.get(SlotId(slot)).unwrap()
}

/// Kinds of the frames that a reader received, with the sequences of ticks.
fn received(driver: &mut Driver, slot: u32) -> Vec<(Kind, u64)> {
    let bytes = driver.take_sent(slot);
    let (mut received, mut rest) = (Vec::new(), &bytes[..]);
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        received.push((frame.kind, frame.header.sequence));
    }
    received
}

pub(super) fn ticks(driver: &mut Driver, slot: u32) -> Vec<u64> {
    let received = received(driver, slot);
    received.into_iter().filter(|(kind, _)| *kind == Kind::Tick).map(|(_, sequence)| sequence).collect()
}

fn topics(driver: &Driver, slot: u32) -> usize {
    driver.shard.fanout.topics_of(session(driver, slot))
}

pub(super) fn conflate() -> Subscribe {
    Subscribe { policy: Policy::Conflate as u8, ..Subscribe::default() }
}

#[test]
fn a_wildcard_takes_no_memory_per_topic() {
    let mut driver = driver();
    publish(&mut driver, "t.before");
    subscribe(&mut driver, READER, ">", conflate());
    for topic in 0..500 {
        publish(&mut driver, &format!("t.{topic}"));
    }
    publish(&mut driver, "t.before");
    assert_eq!(ticks(&mut driver, READER).len(), 501);
    assert!(session(&driver, READER).memberships.is_empty());
    assert_eq!(topics(&driver, READER), 501);
}

#[test]
fn a_live_wildcard_visits_the_topics_that_the_session_has_and_no_others() {
    let mut driver = driver();
    for topic in 0..2_000 {
        publish(&mut driver, &format!("t.{topic}"));
    }
    subscribe(&mut driver, READER, "t.1", Subscribe { policy: Policy::Drop as u8, ..Subscribe::default() });
    let units = |driver: &Driver| driver.shard.counters().value(Counter::ControlUnits);
    let before = units(&driver);
    for pattern in [">", "t.*", "u.*"] {
        subscribe(&mut driver, READER, pattern, conflate());
    }
    assert!(units(&driver) - before < 200, "{} units", units(&driver) - before);
    assert_eq!(topics(&driver, READER), 1 + 2 * 2_000, "each of its patterns counts, once the round is over");
    unsubscribe(&mut driver, READER, ">");
    assert_eq!(topics(&driver, READER), 1 + 2_000);
}

#[test]
fn topics_that_come_and_go_while_a_round_counts_are_counted_once() {
    let mut driver = driver();
    for topic in 0..2_000 {
        publish(&mut driver, &format!("t.{topic}"));
    }
    // The shard has the topics only while someone wants them.
    driver.accept(2, ListenerKind::Native, &hello());
    subscribe(&mut driver, 2, ">", conflate());
    driver.receive(READER, &frame(Kind::Subscribe, &conflate(), b"t.*"));
    let mut turns = 0;
    while driver.shard.is_busy() {
        if turns % 2 == 0 {
            publish_now(&mut driver, &format!("t.new{turns}"));
        }
        driver.turn();
        turns += 1;
    }
    assert!(turns > 2, "a round takes several turns");
    assert_eq!(topics(&driver, READER), driver.shard.fanout.topics_len());
}

#[test]
fn a_topic_that_several_patterns_match_is_delivered_once() {
    let mut driver = driver();
    for pattern in [">", "a.*", "*.b", "a.b"] {
        subscribe(&mut driver, READER, pattern, Subscribe::default());
        publish(&mut driver, "a.b");
    }
    assert_eq!(ticks(&mut driver, READER), [1, 2, 3, 4]);
    for (pattern, is_member) in [(">", true), ("a.b", false), ("a.*", false)] {
        assert!(session(&driver, READER).memberships.len() == 1, "an exact name has a membership");
        unsubscribe(&mut driver, READER, pattern);
        publish(&mut driver, "a.b");
        assert_eq!(session(&driver, READER).memberships.len() == 1, is_member, "{pattern}");
        if pattern == "a.b" {
            break;
        }
    }
    unsubscribe(&mut driver, READER, "a.*");
    publish(&mut driver, "a.b");
    assert_eq!(ticks(&mut driver, READER), [5, 6, 7]);
    unsubscribe(&mut driver, READER, "*.b");
    publish(&mut driver, "a.b");
    assert!(ticks(&mut driver, READER).is_empty());
}

#[test]
fn a_session_learns_a_topics_name_before_its_first_tick_and_others_are_not_told_again() {
    let mut driver = driver();
    subscribe(&mut driver, READER, "a.>", Subscribe::default());
    publish(&mut driver, "a.b");
    assert_eq!(
        received(&mut driver, READER)[3..],
        [(Kind::Tick, 1)],
        "after WELCOME, the acknowledgement and the name"
    );
    driver.accept(2, ListenerKind::Native, &hello());
    subscribe(&mut driver, 2, "a.*", Subscribe::default());
    driver.sent.clear();
    publish(&mut driver, "a.b");
    let sent = driver.sent.clone();
    assert_eq!(received(&mut driver, READER), [(Kind::Tick, 2)]);
    driver.sent = sent;
    assert_eq!(received(&mut driver, 2), [(Kind::Subscribed, 0), (Kind::Tick, 2)]);
}

#[test]
fn a_held_topic_has_a_membership_until_it_is_live_again() {
    let mut driver = driver();
    subscribe(&mut driver, READER, ">", conflate());
    driver.full.insert(READER);
    for _ in 0..100 {
        publish(&mut driver, "a");
        publish(&mut driver, "b");
    }
    assert_eq!(session(&driver, READER).memberships.len(), 2);
    assert_eq!(topics(&driver, READER), 2, "held topics are not counted twice");
    driver.sent.clear();
    driver.open();
    finish(&mut driver);
    assert_eq!(ticks(&mut driver, READER), [100, 100]);
    assert!(session(&driver, READER).memberships.is_empty());
    publish(&mut driver, "a");
    assert_eq!(ticks(&mut driver, READER), [101]);
}

#[test]
fn a_session_is_not_behind_any_more_once_it_has_sent_all_whatever_it_has_left_meanwhile() {
    let mut driver = driver();
    subscribe(&mut driver, READER, ">", conflate());
    driver.full.insert(READER);
    for _ in 0..100 {
        publish(&mut driver, "a");
    }
    assert!(session(&driver, READER).is_behind());
    unsubscribe(&mut driver, READER, ">");
    driver.open();
    finish(&mut driver);
    assert!(!session(&driver, READER).is_behind());
}

#[test]
fn memberships_of_many_held_topics_give_their_memory_back() {
    let mut driver = driver();
    subscribe(&mut driver, READER, ">", conflate());
    driver.full.insert(READER);
    for topic in 0..1_000 {
        publish(&mut driver, &format!("t.{topic}"));
    }
    assert!(session(&driver, READER).memberships.len() > 900);
    driver.open();
    finish(&mut driver);
    assert_eq!(session(&driver, READER).memberships.heap_bytes(), 0);
    assert!(session(&driver, READER).buffer_bytes() < 1_000);
}

#[test]
fn a_gap_has_a_membership_until_it_is_announced() {
    let mut driver = driver();
    subscribe(&mut driver, READER, ">", Subscribe { policy: Policy::Drop as u8, ..Subscribe::default() });
    driver.full.insert(READER);
    for _ in 0..100 {
        publish(&mut driver, "a");
    }
    assert_eq!(session(&driver, READER).memberships.len(), 1);
    driver.sent.clear();
    driver.open();
    finish(&mut driver);
    let received = received(&mut driver, READER);
    assert_eq!(received[0].0, Kind::Gap, "{received:?}");
    assert_eq!(received.last(), Some(&(Kind::Tick, 100)));
    assert!(session(&driver, READER).memberships.is_empty());
}

#[test]
fn a_held_topic_whose_last_value_was_evicted_has_a_gap() {
    let limits = Limits { behind_bytes: 1_000, last_values_bytes_max: 10_000, ..Limits::default() };
    let mut driver = Driver::new(limits);
    for slot in [PUBLISHER, READER] {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    subscribe(&mut driver, READER, "a", conflate());
    driver.full.insert(READER);
    (0..100).for_each(|_| publish(&mut driver, "a"));
    (0..500).for_each(|topic| publish(&mut driver, &format!("t.{topic}")));
    driver.sent.clear();
    driver.open();
    finish(&mut driver);
    let got = received(&mut driver, READER);
    assert!(
        got.iter().any(|(kind, _)| *kind == Kind::Gap) && got.last() != Some(&(Kind::Tick, 100)),
        "{got:?}"
    );
    publish(&mut driver, "a");
    assert_eq!(ticks(&mut driver, READER), [101]);
    assert!(driver.shard.counters().value(Counter::TicksDropped) > 0);
}

#[test]
fn a_subscription_that_starts_in_the_past_shares_once_it_is_live() {
    let mut driver = driver_with(&["a", "b", "c"]);
    subscribe(&mut driver, READER, ">", Subscribe { from: 1, ..Subscribe::default() });
    assert_eq!(ticks(&mut driver, READER), [1, 1, 1]);
    assert!(session(&driver, READER).memberships.is_empty());
    assert_eq!(topics(&driver, READER), 3);
    publish(&mut driver, "b");
    assert_eq!(ticks(&mut driver, READER), [2]);
}

#[test]
fn a_rate_limit_takes_a_session_out_of_the_group_and_its_end_back() {
    let mut driver = driver();
    subscribe(&mut driver, READER, ">", Subscribe::default());
    publish(&mut driver, "a");
    publish(&mut driver, "b");
    let paced = Subscribe { max_rate_millihertz: 1_000, ..Subscribe::default() };
    update(&mut driver, READER, ">", paced);
    assert_eq!(session(&driver, READER).memberships.len(), 2);
    driver.sent.clear();
    for _ in 0..5 {
        publish(&mut driver, "a");
    }
    publish(&mut driver, "new");
    assert_eq!(ticks(&mut driver, READER), [2, 1], "one of each topic a second");
    assert_eq!(session(&driver, READER).memberships.len(), 3, "a new topic is paced too");
    update(&mut driver, READER, ">", Subscribe::default());
    publish(&mut driver, "a");
    assert_eq!(ticks(&mut driver, READER), [6, 7], "the tick held back, then each as it comes");
    assert!(session(&driver, READER).memberships.is_empty());
}

#[test]
fn the_topics_of_a_wildcard_are_counted_as_they_come_whoever_subscribes() {
    let mut driver = driver_with(&["a.1", "a.2", "b.1"]);
    subscribe(&mut driver, READER, "a.*", Subscribe::default());
    driver.accept(2, ListenerKind::Native, &hello());
    subscribe(&mut driver, 2, "a.*", Subscribe::default());
    publish(&mut driver, "a.3");
    publish(&mut driver, "b.2");
    assert_eq!((topics(&driver, READER), topics(&driver, 2)), (3, 3));
    // The home closes the topics, because nobody on this shard takes them any more, and opens them again.
    unsubscribe(&mut driver, READER, "a.*");
    unsubscribe(&mut driver, 2, "a.*");
    subscribe(&mut driver, 2, ">", Subscribe::default());
    assert_eq!(topics(&driver, 2), 5);
}

#[test]
fn patterns_have_a_bound_that_refuses_new_ones_and_no_others() {
    let mut driver = Driver::new(Limits { patterns_bytes_max: 1 << 20, ..Limits::default() });
    let refused = |driver: &mut Driver, slot: u32| {
        received(driver, slot).iter().filter(|(kind, _)| *kind == Kind::Error).count()
    };
    let mut all = 0;
    for slot in 0..20 {
        driver.accept(slot, ListenerKind::Native, &hello());
        for number in 0..200 {
            let pattern = format!("{slot}-{number}{}.*", ".a".repeat(100));
            driver.receive(slot, &frame(Kind::Subscribe, &Subscribe::default(), pattern.as_bytes()));
        }
        finish(&mut driver);
        all += refused(&mut driver, slot);
    }
    assert!(all > 1_000 && all < 3_900, "{all} of 4,000 are refused");
    assert!(driver.shard.fanout.patterns_bytes() < (1 << 20) + 1_000);
    // A pattern that is already held takes no more memory, and memory given back can be taken again.
    subscribe(&mut driver, 19, "0-0", Subscribe::default());
    assert_eq!(refused(&mut driver, 19), 1);
    let held = format!("0-0{}.*", ".a".repeat(100));
    subscribe(&mut driver, 19, &held, Subscribe::default());
    assert_eq!(refused(&mut driver, 19), 0);
    for slot in 0..19 {
        driver.shard.handle_error(SlotId(slot), 104, driver.now);
    }
    finish(&mut driver);
    subscribe(&mut driver, 19, "0-0", Subscribe::default());
    assert_eq!(refused(&mut driver, 19), 0);
}

#[test]
fn homes_know_many_long_wildcards_as_one_and_no_tick_is_lost() {
    let subscriptions_per_session_max = usize::MAX;
    let patterns = PatternLimits { session_bytes_max: usize::MAX, ..PatternLimits::default() };
    let mut driver = Driver::new(Limits { subscriptions_per_session_max, patterns, ..Limits::default() });
    for slot in [PUBLISHER, READER, 2] {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    let count = LONG_WILDCARDS_BYTES / 100 + 100;
    let (topic, pattern) = (|at| format!("{at:0>100}.a"), |at| format!("{at:0>100}.*"));
    publish(&mut driver, &topic(count - 1));
    for at in 0..count {
        subscribe(&mut driver, READER, &pattern(at), Subscribe::default());
    }
    subscribe(&mut driver, 2, &pattern(count - 1), Subscribe::default());
    received(&mut driver, READER);
    for at in [0, count - 1] {
        publish(&mut driver, &topic(at));
    }
    publish(&mut driver, "other");
    let sent = driver.sent.clone();
    assert_eq!(ticks(&mut driver, READER), [1, 2]);
    driver.sent = sent;
    assert_eq!(ticks(&mut driver, 2), [2]);
    assert_eq!(driver.shard.subscriptions_len(), (count + 1, 3), "the shard takes all topics");
    for at in (0..count).rev() {
        unsubscribe(&mut driver, READER, &pattern(at));
    }
    publish(&mut driver, &topic(count - 1));
    assert_eq!(ticks(&mut driver, 2), [3]);
    unsubscribe(&mut driver, 2, &pattern(count - 1));
    assert_eq!(driver.shard.subscriptions_len(), (0, 0));
    assert_eq!(driver.shard.fanout.patterns_bytes(), PatternTrie::<u32>::default().used_bytes());
}

#[test]
fn a_session_leaves_its_wildcards_at_a_cost_that_does_not_depend_on_the_topics() {
    let mut driver = driver();
    for topic in 0..1_000 {
        publish(&mut driver, &format!("t.{topic}"));
    }
    for slot in 2..52 {
        driver.accept(slot, ListenerKind::Native, &hello());
        subscribe(&mut driver, slot, ">", Subscribe::default());
    }
    publish(&mut driver, "t.1");
    for slot in 2..52 {
        driver.shard.handle_error(SlotId(slot), 104, driver.now);
    }
    finish(&mut driver);
    let units = driver.shard.counters().value(Counter::DepartureUnits);
    assert!(units <= 50 * 64, "{units}");
}

#[test]
fn a_wildcard_goes_live_after_those_that_have_waited_longer_and_before_all_others() {
    const WALKERS: u32 = 200;
    const TOPICS: usize = 600;
    let victim = WALKERS + READER;
    let mut driver = driver();
    (0..TOPICS).for_each(|topic| publish(&mut driver, &format!("t.{topic}")));
    let paced = Subscribe { max_rate_millihertz: 1_000, ..Subscribe::default() };
    for slot in READER + 1..=victim {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    finish(&mut driver);
    let subscribed = |driver: &mut Driver| {
        let mut subscribed = Vec::new();
        for (slot, bytes) in std::mem::take(&mut driver.sent) {
            let mut rest = &bytes[..];
            while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
                rest = &rest[used..];
                if frame.kind == Kind::Subscribed && frame.header.topic_id == 0 {
                    subscribed.push(slot);
                }
            }
        }
        subscribed
    };
    subscribed(&mut driver);
    let walkers: Vec<u32> = (READER..victim).collect();
    for &slot in &walkers {
        driver.receive(slot, &frame(Kind::Subscribe, &paced, b">"));
    }
    driver.turn();
    driver.receive(victim, &frame(Kind::Subscribe, &paced, b"t.>"));
    let (mut order, mut turns) = (Vec::new(), 0);
    while !order.contains(&victim) {
        driver.turn();
        for slot in subscribed(&mut driver) {
            order.push(slot);
            // It leaves and begins another walk as often as it can.
            driver.receive(slot, &frame(Kind::Unsubscribe, &Request::default(), b">"));
            driver.receive(slot, &frame(Kind::Subscribe, &paced, b">"));
        }
        turns += 1;
        assert!(turns < 2_000, "{} have been served", order.len());
    }
    // Each of those before it walks over all topics, 34 units each, and leaves them again.
    let least = WALKERS as usize * TOPICS * 34 / TURN_CONTROL_UNITS;
    assert!(turns <= 3 * least, "{turns} turns");
    let before = &order[..order.iter().position(|&slot| slot == victim).unwrap_or_default()];
    let distinct: std::collections::BTreeSet<u32> = before.iter().copied().collect();
    let expected = (WALKERS as usize, WALKERS as usize);
    assert_eq!((before.len(), distinct.len()), expected, "nobody is served twice before it");
}
