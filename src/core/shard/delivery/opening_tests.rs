//! Tests of topics that open in pieces, because they have more members than a turn can serve.

use std::collections::HashMap;

use crate::{
    config::Limits,
    fanout::OpeningUnits,
    home::history::HistoryBounds,
    limits::{NEW_TOPIC_UNITS, OPENING_BYTES_MAX, OPENINGS_BYTES_MAX, TURN_OPENING_UNITS},
    metrics::counters::Counter,
    shard::ListenerKind,
    testing::{Driver, frame, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, FLAG_SNAPSHOT, Kind},
    records::{Publish, Request, SkippedRange, Subscribe},
    subscription::{Policy, Rules},
};

pub(super) const PUBLISHER: u32 = 0;
const IDLE_NS: u64 = 10_000_000;
/// So few that a handful of members takes several turns.
pub(super) const FEW: OpeningUnits = OpeningUnits { per_turn: 1, at_once: 0 };

/// A shard with a publisher. Only topics `t.>` are ever forgotten.
pub(super) fn driver() -> Driver {
    driver_with(Limits::default().topics_max)
}

/// Like [`driver`], with a table of this many topics.
pub(super) fn driver_with(topics_max: usize) -> Driver {
    let mut driver = Driver::new(Limits {
        topics_max,
        behind_bytes: 4_000,
        topic_idle: Rules { rules: vec![("t.>".into(), IDLE_NS)], default: 0 },
        history: Rules::all(HistoryBounds { ticks: 100, bytes: 1 << 20, age_ns: 0 }),
        ..Limits::default()
    });
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver
}

pub(super) fn subscribe(driver: &mut Driver, slot: u32, pattern: &str, record: Subscribe) {
    driver.receive(slot, &frame(Kind::Subscribe, &record, pattern.as_bytes()));
}

pub(super) fn paced(policy: Policy) -> Subscribe {
    Subscribe { policy: policy as u8, max_rate_millihertz: 1_000_000, ..Subscribe::default() }
}

pub(super) fn publish(driver: &mut Driver, topic: &str, payload: &[u8]) {
    publish_as(driver, PUBLISHER, topic, payload);
}

pub(super) fn publish_as(driver: &mut Driver, slot: u32, topic: &str, payload: &[u8]) {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, payload);
    driver.receive(slot, &bytes);
}

pub(super) fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
}

/// Runs turns until the home has forgotten a topic, and no longer.
pub(super) fn pass_until_forgotten(driver: &mut Driver) {
    let forgotten = |driver: &Driver| driver.shard.counters().value(Counter::TopicsForgotten);
    let before = forgotten(driver);
    for _ in 0..100 {
        driver.jump(IDLE_NS / 8);
        driver.turn();
        if forgotten(driver) > before {
            return;
        }
    }
    panic!("an idle topic is forgotten");
}

/// What a reader has of one topic, checked frame by frame.
#[derive(Default)]
pub(super) struct Reader {
    input: Vec<u8>,
    /// By id, as announced: the topic's name, and the number of its life.
    pub(super) announced: HashMap<u32, (String, u32)>,
    /// The latest life of each topic, and its last sequence received or announced as skipped.
    pub(super) last: HashMap<String, (u32, u64)>,
    pub(super) ticks: usize,
    /// Ticks announced as lost.
    pub(super) lost: u64,
    /// Ticks announced as conflated.
    pub(super) conflated: u64,
}

impl Reader {
    pub(super) fn read(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            let (id, sequence) = (frame.header.topic_id, frame.header.sequence);
            if frame.kind == Kind::Subscribed && id != 0 {
                let name = String::from_utf8(frame.payload().to_vec()).unwrap();
                let lives = self.announced.values().filter(|(known, _)| *known == name).count() as u32;
                self.announced.entry(id).or_insert((name, lives + 1));
            }
            if let Kind::Gap | Kind::Conflated = frame.kind {
                let SkippedRange { from, to } = frame.record().unwrap();
                *(if frame.kind == Kind::Gap { &mut self.lost } else { &mut self.conflated }) += to - from;
            }
            if let Kind::Tick | Kind::Gap | Kind::Conflated = frame.kind {
                let (name, life) = self.announced.get(&id).expect("a topic is announced before its ticks");
                let last = self.last.entry(name.clone()).or_default();
                assert!(*life >= last.0, "{name}: life {life} after {last:?}");
                if frame.kind == Kind::Tick {
                    // Whoever subscribes again may ask for the last value again.
                    let is_snapshot = frame.header.flags & FLAG_SNAPSHOT != 0;
                    assert!(
                        is_snapshot || (*life, sequence) > *last,
                        "{name}: tick {sequence} of life {life} after {last:?}"
                    );
                    *last = (*life, sequence);
                    self.ticks += 1;
                } else {
                    *last = (*last).max((*life, 0));
                }
            }
        }
        self.input = rest.to_vec();
    }
}

#[test]
fn a_topic_with_thousands_of_members_opens_over_turns_in_which_others_get_their_ticks() {
    const MEMBERS: u32 = 6_000;
    const OTHER: u32 = MEMBERS + 1;
    let mut driver = driver();
    for slot in 1..=OTHER {
        driver.accept(slot, ListenerKind::Native, &hello());
        let (pattern, record) =
            if slot == OTHER { ("o.1", Subscribe::default()) } else { ("t.*", paced(Policy::Conflate)) };
        subscribe(&mut driver, slot, pattern, record);
    }
    publish(&mut driver, "o.1", b"0");
    finish(&mut driver);
    for life in 0..3 {
        driver.sent.clear();
        publish(&mut driver, "t.0", b"first");
        let mut turns = 0;
        let mut members = HashMap::<u32, Reader>::new();
        loop {
            publish(&mut driver, "o.1", b"1");
            driver.turn();
            let (mut served, mut others) = (0, 0);
            for (slot, bytes) in std::mem::take(&mut driver.sent) {
                match slot {
                    OTHER => others += 1,
                    slot => {
                        let reader = members.entry(slot).or_default();
                        let before = reader.announced.len();
                        reader.read(&bytes);
                        served += reader.announced.len() - before;
                    }
                }
            }
            assert_eq!(others, 1, "the other topic's tick does not wait");
            assert!(served <= TURN_OPENING_UNITS + NEW_TOPIC_UNITS, "{served} have joined in one turn");
            turns += 1;
            if !driver.shard.fanout.opens_topics() {
                break;
            }
        }
        // In later lives, the members of the last one must leave too.
        let least = MEMBERS as usize * if life > 0 { 2 } else { 1 } / (TURN_OPENING_UNITS + NEW_TOPIC_UNITS);
        assert!((least..=2 * least + 2).contains(&turns), "{turns} turns");
        finish(&mut driver);
        for (slot, bytes) in std::mem::take(&mut driver.sent) {
            members.entry(slot).or_default().read(&bytes);
        }
        assert!((1..=MEMBERS).all(|slot| members[&slot].ticks == 1), "each has the tick");
        pass_until_forgotten(&mut driver);
    }
}

/// Reads what was sent since the last call.
pub(super) fn read(driver: &mut Driver, readers: &mut HashMap<u32, Reader>) {
    for (slot, bytes) in std::mem::take(&mut driver.sent) {
        readers.entry(slot).or_default().read(&bytes);
    }
}

/// Accepts the sessions in these slots, which keep every tick of a topic.
pub(super) fn accept_members(driver: &mut Driver, slots: std::ops::RangeInclusive<u32>, topic: &str) {
    for slot in slots {
        driver.accept(slot, ListenerKind::Native, &hello());
        let keep = Subscribe { policy: Policy::Keep as u8, ..Subscribe::default() };
        subscribe(driver, slot, topic, keep);
    }
}

#[test]
fn what_waits_for_a_topic_to_open_is_bounded_and_comes_in_order() {
    const MEMBERS: u32 = 40;
    const TICKS: usize = 3_000;
    let mut driver = driver();
    accept_members(&mut driver, 1..=MEMBERS, "n.1");
    finish(&mut driver);
    driver.sent.clear();
    driver.shard.set_opening_units(FEW);
    let payload = [b'x'; 400];
    (0..TICKS).for_each(|_| publish(&mut driver, "n.1", &payload));
    let mut readers = HashMap::<u32, Reader>::new();
    let (mut most, mut turns) = (0, 0);
    while turns == 0 || driver.shard.is_busy() {
        driver.turn();
        most = most.max(driver.shard.fanout.openings_bytes());
        assert!(driver.shard.takes_requests() && driver.shard.takes_deliveries(), "others do not wait");
        read(&mut driver, &mut readers);
        turns += 1;
    }
    assert!((OPENING_BYTES_MAX - 1_000..=OPENING_BYTES_MAX).contains(&most), "{most} bytes");
    assert!(turns > MEMBERS, "one member a turn");
    let lost = driver.shard.counters().value(Counter::OpeningTicksLost);
    assert!(lost > 0);
    for slot in 1..=MEMBERS {
        let reader = &readers[&slot];
        assert_eq!((reader.ticks as u64, reader.lost), (TICKS as u64 - lost, lost), "slot {slot}");
        assert_eq!(reader.last["n.1"], (1, TICKS as u64), "the newest ticks are kept");
    }
}

#[test]
fn an_opening_topic_that_is_full_delays_no_other_topic() {
    const MEMBERS: u32 = 40;
    let (other, reader) = (MEMBERS + 1, MEMBERS + 2);
    let mut driver = driver();
    accept_members(&mut driver, 1..=MEMBERS, "n.1");
    driver.accept(other, ListenerKind::Native, &hello());
    accept_members(&mut driver, reader..=reader, "o.1");
    finish(&mut driver);
    publish_as(&mut driver, other, "o.1", b"0");
    finish(&mut driver);
    driver.shard.set_opening_units(FEW);
    let payload = [b'x'; 4_000];
    let mut readers = HashMap::<u32, Reader>::new();
    let (mut ticks, mut turns) = (1, 0);
    read(&mut driver, &mut readers);
    while turns == 0 || driver.shard.fanout.opens_topics() {
        (0..100).for_each(|_| publish(&mut driver, "n.1", &payload));
        publish_as(&mut driver, other, "o.1", b"1");
        driver.turn();
        read(&mut driver, &mut readers);
        (ticks, turns) = (ticks + 1, turns + 1);
        assert_eq!(readers[&reader].ticks, ticks, "turn {turns}: the other topic's tick is there");
        assert!(turns < 10 * MEMBERS, "it opens although its publisher never stops");
    }
    assert!(driver.shard.counters().value(Counter::OpeningTicksLost) > 0, "it was full");
}

#[test]
fn a_new_topic_does_not_wait_for_all_topics_of_another_publisher_to_open() {
    const MEMBERS: u32 = 20;
    let other = MEMBERS + 1;
    let mut driver = driver();
    for slot in 1..=MEMBERS {
        driver.accept(slot, ListenerKind::Native, &hello());
        subscribe(&mut driver, slot, ">", paced(Policy::Conflate));
    }
    driver.accept(other, ListenerKind::Native, &hello());
    finish(&mut driver);
    driver.shard.set_opening_units(OpeningUnits { per_turn: 10, at_once: 0 });
    let payload = [b'x'; 900];
    (0..2_000).for_each(|topic| publish(&mut driver, &format!("n.{topic}"), &payload));
    let bytes = driver.shard.fanout.openings_bytes();
    assert!((1..=OPENINGS_BYTES_MAX / 2).contains(&bytes), "{bytes} bytes: an owner leaves room for others");
    driver.sent.clear();
    publish_as(&mut driver, other, "o.1", b"1");
    let mut readers = HashMap::<u32, Reader>::new();
    let mut turns = 0;
    while (1..=MEMBERS).any(|slot| readers.get(&slot).is_none_or(|reader| !reader.last.contains_key("o.1"))) {
        driver.turn();
        read(&mut driver, &mut readers);
        turns += 1;
        assert!(turns < 20, "it waits for at most one topic of the other's for each quantum");
    }
    assert!(readers.values().all(|reader| reader.lost == 0), "no tick of the newcomer is lost");
}

#[test]
fn history_of_a_topic_that_opens_is_requested_after_what_waits() {
    const MEMBERS: u32 = 30;
    let late = MEMBERS + 1;
    let mut driver = driver();
    accept_members(&mut driver, 1..=MEMBERS, "n.1");
    driver.accept(late, ListenerKind::Native, &hello());
    finish(&mut driver);
    driver.sent.clear();
    driver.shard.set_opening_units(FEW);
    (0..5).for_each(|_| publish(&mut driver, "n.1", b"x"));
    driver.turn();
    let latest = Subscribe { from: 1, policy: Policy::Keep as u8, ..Subscribe::default() };
    subscribe(&mut driver, late, "n.1", latest);
    driver.turn();
    assert!(driver.shard.fanout.opens_topics());
    let before = driver.shard.fanout.openings_bytes();
    (0..3).for_each(|_| driver.turn());
    assert_eq!(driver.shard.fanout.openings_bytes(), before, "no history waits with the ticks");
    finish(&mut driver);
    publish(&mut driver, "n.1", b"x");
    finish(&mut driver);
    let mut readers = HashMap::<u32, Reader>::new();
    read(&mut driver, &mut readers);
    assert!((1..=MEMBERS).all(|slot| readers[&slot].ticks == 6));
    let reader = &readers[&late];
    assert_eq!((reader.ticks, reader.last["n.1"]), (2, (1, 6)), "the last value, then live");
}

#[test]
fn topics_that_open_take_no_memory_for_each_member() {
    const MEMBERS: u32 = 2_000;
    const TOPICS: usize = 200;
    let mut driver = driver();
    for slot in 1..=MEMBERS {
        driver.accept(slot, ListenerKind::Native, &hello());
        // Of a second pattern, so that several match.
        subscribe(&mut driver, slot, ["n.*", ">"][slot as usize % 2], paced(Policy::Conflate));
    }
    finish(&mut driver);
    driver.shard.set_opening_units(FEW);
    (0..TOPICS).for_each(|topic| publish(&mut driver, &format!("n.{topic}"), b"x"));
    let bytes = driver.shard.fanout.openings_heap_bytes();
    assert!(bytes > 0 && bytes < TOPICS * 1_000, "{bytes} bytes");
}

#[test]
fn whoever_is_subscribed_when_a_topic_has_opened_gets_its_ticks_whatever_it_did_meanwhile() {
    const MEMBERS: u32 = 60;
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut driver = driver();
        let patterns = ["n.*", ">", "n.1", "*.1"];
        let mut held: HashMap<u32, &str> = HashMap::new();
        for slot in 1..=MEMBERS {
            driver.accept(slot, ListenerKind::Native, &hello());
            let pattern = patterns[rng.usize(..4)];
            subscribe(&mut driver, slot, pattern, paced(Policy::Conflate));
            held.insert(slot, pattern);
        }
        finish(&mut driver);
        driver.sent.clear();
        driver.shard.set_opening_units(FEW);
        publish(&mut driver, "n.1", b"x");
        while driver.shard.fanout.opens_topics() {
            let slot = rng.u32(1..=MEMBERS);
            match (rng.u8(..4), held.get(&slot).copied()) {
                (0, Some(pattern)) => {
                    let request = frame(Kind::Unsubscribe, &Request::default(), pattern.as_bytes());
                    driver.receive(slot, &request);
                    held.remove(&slot);
                }
                (1 | 2, Some(pattern)) => {
                    let record = Subscribe { max_rate_millihertz: 2_000_000, ..paced(Policy::Drop) };
                    driver.receive(slot, &frame(Kind::Update, &record, pattern.as_bytes()));
                }
                (3, None) => {
                    let pattern = patterns[rng.usize(..4)];
                    subscribe(&mut driver, slot, pattern, paced(Policy::Conflate));
                    held.insert(slot, pattern);
                }
                _ => {}
            }
            driver.turn();
        }
        finish(&mut driver);
        driver.pass(1_000_000_000);
        driver.sent.clear();
        publish(&mut driver, "n.1", b"last");
        finish(&mut driver);
        let got: std::collections::BTreeSet<u32> = driver.sent.iter().map(|(slot, _)| *slot).collect();
        let mut expected: Vec<u32> = held.keys().copied().collect();
        expected.sort_unstable();
        assert_eq!(got.into_iter().collect::<Vec<_>>(), expected, "seed {seed}");
    }
}

#[test]
fn a_stop_delivers_what_waits_for_a_topic_to_open() {
    let mut driver = driver();
    for slot in 1..=20 {
        driver.accept(slot, ListenerKind::Native, &hello());
        subscribe(&mut driver, slot, "n.1", Subscribe::default());
    }
    finish(&mut driver);
    driver.sent.clear();
    driver.shard.set_opening_units(FEW);
    publish(&mut driver, "n.1", b"first");
    driver.turn();
    assert!(driver.shard.fanout.opens_topics());
    driver.shard.stop_input();
    driver.shard.begin_drain(driver.now.monotonic_ns + 1_000_000_000, driver.now);
    driver.turn();
    let mut readers = HashMap::<u32, Reader>::new();
    for (slot, bytes) in std::mem::take(&mut driver.sent) {
        readers.entry(slot).or_default().read(&bytes);
    }
    assert!((1..=20).all(|slot| readers[&slot].ticks == 1));
}

/// Sessions subscribe, change, fall behind, leave and come back at random while the topics' lives end and begin.
#[test]
fn nobody_gets_anything_of_a_last_life_after_the_next_whatever_sessions_do_meanwhile() {
    for seed in 0..150 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut driver = driver();
        let units = OpeningUnits { per_turn: rng.usize(1..5), at_once: rng.usize(0..3) };
        driver.shard.set_opening_units(units);
        let slots = 1..10;
        let mut readers: HashMap<u32, Reader> = HashMap::new();
        for slot in slots.clone() {
            driver.accept(slot, ListenerKind::Native, &hello());
        }
        for _ in 0..400 {
            let slot = rng.u32(slots.clone());
            let pattern = ["t.*", "t.0", "t.1", ">"][rng.usize(..4)];
            match rng.u8(..16) {
                0..3 => {
                    let policy = [Policy::Conflate, Policy::Drop, Policy::Keep][rng.usize(..3)];
                    let paced = Subscribe { from: rng.u8(..2), ..paced(policy) };
                    let record = Subscribe {
                        max_rate_millihertz: if rng.bool() { paced.max_rate_millihertz } else { 0 },
                        ..paced
                    };
                    let kind = if rng.u8(..4) == 0 { Kind::Update } else { Kind::Subscribe };
                    driver.receive(slot, &frame(kind, &record, pattern.as_bytes()));
                }
                3 => driver.receive(slot, &frame(Kind::Unsubscribe, &Request::default(), pattern.as_bytes())),
                4..8 => {
                    let topic = ["t.0", "t.1"][rng.usize(..2)];
                    publish(&mut driver, topic, &[b'x'; 300][..rng.usize(1..300)]);
                }
                8 => driver.jump(IDLE_NS / 3),
                9 => drop(driver.full.insert(slot)),
                10 => driver.open(),
                11 if rng.u8(..4) == 0 => {
                    driver.shard.handle_error(crate::ids::SlotId(slot), 104, driver.now);
                    driver.turn();
                    while driver.shard.sessions.get(crate::ids::SlotId(slot)).is_some() {
                        driver.pass(1_000_000);
                    }
                    driver.sent.retain(|(to, _)| *to != slot);
                    readers.remove(&slot);
                    driver.accept(slot, ListenerKind::Native, &hello());
                }
                _ => driver.turn(),
            }
            for (slot, bytes) in std::mem::take(&mut driver.sent) {
                readers.entry(slot).or_default().read(&bytes);
            }
        }
        driver.open();
        driver.pass(1_000_000_000);
        finish(&mut driver);
        assert!(!driver.shard.fanout.opens_topics(), "seed {seed}");
        for (slot, bytes) in std::mem::take(&mut driver.sent) {
            readers.entry(slot).or_default().read(&bytes);
        }
    }
}
