//! Slow, paced and reconnecting subscribers on simulated sockets and time: what they receive, and what they cost the server.

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
};

use tickcast_core::{
    config::Limits,
    ids::SlotId,
    limits::{
        LINGER_DEADLINE_MS, OVERLOAD_QUIET_MS, OVERLOAD_WAIT_MS, TURN_CONTROL_UNITS, TURN_INTEREST_UNITS,
    },
    metrics::counters::Counter,
    session::{Session, membership::Membership},
    shard::{Action, ListenerKind},
    testing::{Driver, EPOCH, frame, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, FLAG_SNAPSHOT, Kind},
    records::{
        Closing as ClosingRecord, Publish, Recovered as RecoveredRecord, Resume, SkippedRange, Subscribe,
        Token, WireRecord,
    },
    subscription::Policy,
};

const MS: u64 = 1_000_000;
const PUBLISHER: u32 = 0;
const READER: u32 = 1;

/// What a subscriber receives, abbreviated.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Tick(String, u64),
    Snapshot(String, u64),
    Conflated(u64, u64),
    Gap(u64, u64),
    Recovered(bool),
    Closing(u16),
}
use Said::*;

/// One shard, a publisher, and readers whose sockets are open or full.
struct Bench {
    driver: Driver,
    names: HashMap<u32, String>,
}

impl Deref for Bench {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl DerefMut for Bench {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }
}

impl Bench {
    fn new(limits: Limits) -> Bench {
        let mut bench = Bench { driver: Driver::new(limits), names: HashMap::new() };
        bench.connect(PUBLISHER);
        bench
    }

    fn connect(&mut self, slot: u32) {
        self.accept(slot, ListenerKind::Native, &hello());
    }

    fn send<R: WireRecord>(&mut self, slot: u32, kind: Kind, record: &R, payload: &[u8]) {
        self.receive(slot, &frame(kind, record, payload));
        self.turn();
    }

    fn subscribe(&mut self, slot: u32, pattern: &str, record: Subscribe) {
        self.send(slot, Kind::Subscribe, &record, pattern.as_bytes());
        self.turn();
    }

    fn publish(&mut self, topic: &str, key: u64, payload: &[u8]) {
        let mut bytes = Vec::new();
        let record = Publish { key, ..Publish::default() };
        frame::encode_publish(&mut bytes, 0, 0, 0, record, topic, payload);
        self.receive(PUBLISHER, &bytes);
        self.turn();
    }

    /// Advances the time, then runs one turn.
    fn after(&mut self, ms: u64) {
        self.jump(ms * MS);
        self.turn();
    }

    /// Takes everything sent to the reader so far.
    fn said(&mut self) -> Vec<Said> {
        let actions = std::mem::take(&mut self.actions);
        let ends = |action: &Action| matches!(action, Action::Close(_) | Action::HandOver(_));
        assert!(!actions.iter().any(ends), "{actions:?}");
        let bytes = self.take_sent(READER);
        let (mut said, mut rest) = (Vec::new(), &bytes[..]);
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            let sequence = frame.header.sequence;
            let skipped =
                || frame.record::<SkippedRange>().map(|SkippedRange { from, to }| (from, to)).unwrap();
            let name = || self.names[&frame.header.topic_id].clone();
            match frame.kind {
                Kind::Subscribed if frame.header.topic_id != 0 => {
                    self.names.insert(frame.header.topic_id, frame.text().unwrap().into());
                }
                Kind::Tick if frame.header.flags & FLAG_SNAPSHOT != 0 => {
                    said.push(Snapshot(name(), sequence))
                }
                Kind::Tick => said.push(Tick(name(), sequence)),
                Kind::Conflated => said.push(Conflated(skipped().0, skipped().1)),
                Kind::Gap => said.push(Gap(skipped().0, skipped().1)),
                Kind::Recovered => {
                    said.push(Recovered(frame.record::<RecoveredRecord>().unwrap().recovered == 1));
                }
                Kind::Closing => {
                    said.push(Closing(frame.record::<ClosingRecord>().unwrap().code));
                }
                _ => {}
            }
        }
        assert!(rest.is_empty());
        said
    }
}

fn policy(policy: Policy) -> Subscribe {
    Subscribe { policy: policy as u8, ..Subscribe::default() }
}

fn tick(topic: &str, sequence: u64) -> Said {
    Tick(topic.into(), sequence)
}

/// A reader whose socket is full after the first tick; `behind_bytes` is ten ticks.
fn stalled(policy_of_reader: Policy) -> Bench {
    let mut bench = Bench::new(Limits { behind_bytes: 1_000, ..Limits::default() });
    bench.connect(READER);
    bench.subscribe(READER, ">", policy(policy_of_reader));
    bench.full.insert(READER);
    bench.publish("a", 0, &[0; 40]);
    assert_eq!(bench.said(), [tick("a", 1)]);
    bench
}

#[test]
fn a_conflating_subscriber_gets_the_last_tick_of_each_topic_and_the_range_it_replaces() {
    let mut bench = stalled(Policy::Conflate);
    for _ in 0..1_000 {
        bench.publish("a", 0, &[0; 40]);
        bench.publish("b", 0, &[0; 40]);
    }
    assert_eq!(bench.said(), []);
    bench.open();
    assert_eq!(bench.said(), [Conflated(2, 1001), tick("a", 1001), Conflated(1, 1000), tick("b", 1000)]);
    bench.publish("a", 0, &[0; 40]);
    assert_eq!(bench.said(), [tick("a", 1002)], "it has caught up");
}

#[test]
fn conflation_keeps_the_last_tick_of_each_key() {
    let mut bench = stalled(Policy::Conflate);
    for key in (1..=3).cycle().take(300) {
        bench.publish("a", key, &[0; 40]);
    }
    bench.open();
    assert_eq!(bench.said(), [Conflated(2, 299), tick("a", 299), tick("a", 300), tick("a", 301)]);
}

#[test]
fn a_dropping_subscriber_gets_a_gap_and_then_the_last_ticks() {
    let mut bench = stalled(Policy::Drop);
    (2..=1_000).for_each(|_| bench.publish("a", 0, &[0; 40]));
    bench.open();
    let said = bench.said();
    let Gap(2, to) = said[0] else { panic!("{said:?}") };
    let last: Vec<Said> = (to..=1_000).map(|sequence| tick("a", sequence)).collect();
    assert_eq!(said[1..], last);
    assert!((4..=20).contains(&last.len()), "{}: between half of behind_bytes and all of them", last.len());
    assert_eq!(bench.shard.counters().value(Counter::TicksDropped), to - 2);
}

#[test]
fn a_lossless_subscriber_is_closed_when_its_outbox_or_its_stall_exceeds_the_limit() {
    let limits = Limits { outbox_bytes_max: 10_000, behind_bytes: 1_000, ..Limits::default() };
    let mut bench = Bench::new(limits);
    bench.connect(READER);
    bench.subscribe(READER, "a", Subscribe::default());
    bench.full.insert(READER);
    (0..200).for_each(|_| bench.publish("a", 0, &[0; 40]));
    bench.open();
    assert_eq!(bench.said(), [tick("a", 1), Closing(3008)]);

    let mut bench = stalled(Policy::Disconnect);
    bench.publish("a", 0, &[0; 40]);
    (0..29).for_each(|_| bench.after(1_000));
    assert_eq!(bench.shard.counters().value(Counter::ClosedSlowConsumer), 0);
    bench.after(1_000);
    bench.after(1_000);
    bench.open();
    assert_eq!(bench.said(), [Closing(3008)]);
}

/// A reader whose socket takes everything at once, of a server that has time to send one tick and then none. Ten ticks are behind,
/// a hundred too many.
fn starved(policy_of_reader: Option<Policy>) -> Bench {
    let limits = Limits { outbox_bytes_max: 10_000, behind_bytes: 1_000, ..Limits::default() };
    let mut bench = Bench::new(limits);
    bench.connect(READER);
    bench.subscribe(READER, ">", policy_of_reader.map_or_else(Subscribe::default, policy));
    bench.publish("a", 0, &[0; 40]);
    assert_eq!(bench.said(), [tick("a", 1)]);
    bench.sends_max = 0;
    bench
}

/// The server has time again.
fn recovers(bench: &mut Bench) -> Vec<Said> {
    bench.sends_max = usize::MAX;
    // Notices and what follows them take a turn each.
    (0..10).for_each(|_| bench.turn());
    assert!(!bench.shard.is_busy());
    bench.said()
}

fn count(bench: &Bench, counter: Counter) -> u64 {
    bench.shard.counters().value(counter)
}

#[test]
fn a_reader_of_an_overloaded_server_is_not_closed_for_being_slow_and_every_loss_is_announced() {
    for policy in [None, Some(Policy::Keep), Some(Policy::Drop), Some(Policy::Conflate)] {
        let mut bench = starved(policy);
        (2..=5).for_each(|_| bench.publish("a", 0, &[0; 40]));
        bench.after(OVERLOAD_WAIT_MS);
        bench.after(2 * OVERLOAD_WAIT_MS);
        (6..=1_000).for_each(|_| bench.publish("a", 0, &[0; 40]));
        let said = recovers(&mut bench);
        let to = match said[0] {
            Gap(2, to) if policy != Some(Policy::Conflate) => to,
            Conflated(2, to) if policy == Some(Policy::Conflate) => to,
            _ => panic!("{policy:?}: {said:?}"),
        };
        let rest: Vec<Said> = (to..=1_000).map(|sequence| tick("a", sequence)).collect();
        assert_eq!(said[1..], rest, "{policy:?}");
        if matches!(policy, None | Some(Policy::Keep)) {
            assert!((50..=100).contains(&rest.len()), "{}: as much as may wait, or half of it", rest.len());
        }
        assert_eq!(count(&bench, Counter::TicksDropped) + count(&bench, Counter::TicksConflated), to - 2);
        assert_eq!(count(&bench, Counter::ClosedSlowConsumer) + count(&bench, Counter::ClosedOverloaded), 0);
        assert_eq!((count(&bench, Counter::Overloaded), count(&bench, Counter::Overloads)), (1, 1));
        bench.publish("a", 0, &[0; 40]);
        assert_eq!(bench.said(), [tick("a", 1_001)], "it has caught up");
        bench.pass(OVERLOAD_QUIET_MS * MS);
        assert_eq!((count(&bench, Counter::Overloaded), count(&bench, Counter::Overloads)), (0, 1));
    }
}

#[test]
fn a_reader_that_asked_for_disconnect_is_closed_under_overload_with_a_reason_of_its_own_and_never_gapped() {
    let mut bench = starved(Some(Policy::Disconnect));
    (2..=1_000).for_each(|_| bench.publish("a", 0, &[0; 40]));
    assert_eq!(recovers(&mut bench), [Closing(3013)]);
    bench.pass(2 * LINGER_DEADLINE_MS * MS);
    assert_eq!(count(&bench, Counter::ClosedOverloaded), 1);
    assert_eq!(count(&bench, Counter::TicksDropped), 0);
}

#[test]
fn overload_costs_ticks_that_may_be_lost_before_it_costs_a_session_that_may_lose_others_not() {
    let mut bench = starved(None);
    bench.subscribe(READER, "d", policy(Policy::Disconnect));
    (0..20).for_each(|_| bench.publish("d", 0, &[0; 40]));
    (2..=1_000).for_each(|_| bench.publish("a", 0, &[0; 40]));
    let said = recovers(&mut bench);
    assert!(matches!(said[0], Gap(2, _)), "{said:?}");
    let all: Vec<Said> = (1..=20).map(|sequence| tick("d", sequence)).collect();
    assert!(said.windows(20).any(|part| part == all), "{said:?}");
    assert_eq!(count(&bench, Counter::ClosedOverloaded), 0);
}

#[test]
fn a_log_that_wraps_before_the_server_has_time_costs_ticks_and_no_session() {
    let limits = Limits { egress_log_bytes: 64 << 10, outbox_bytes_max: 64 << 10, ..Limits::default() };
    let mut bench = Bench::new(limits);
    [READER, READER + 1].into_iter().for_each(|slot| bench.connect(slot));
    bench.subscribe(READER, "a", Subscribe::default());
    bench.subscribe(READER + 1, "b", policy(Policy::Drop));
    bench.publish("a", 0, &[0; 40]);
    bench.said();
    bench.sends_max = 0;
    (2..=10).for_each(|_| bench.publish("a", 0, &[0; 40]));
    (0..2_000).for_each(|_| bench.publish("b", 0, &[0; 40]));
    bench.publish("a", 0, &[0; 40]);
    assert_eq!(recovers(&mut bench), [Gap(2, 11), tick("a", 11)]);
    assert_eq!(count(&bench, Counter::ClosedSlowConsumer) + count(&bench, Counter::ClosedOverloaded), 0);
}

#[test]
fn a_socket_full_for_too_long_is_conflated_however_few_ticks_wait() {
    for policy in [Policy::Conflate, Policy::Drop] {
        let mut bench = stalled(policy);
        (0..3).for_each(|_| bench.publish("a", 0, &[0; 40]));
        (0..20).for_each(|_| bench.after(100));
        bench.publish("a", 0, &[0; 40]);
        bench.open();
        let announced = if policy == Policy::Conflate { Conflated(2, 5) } else { Gap(2, 5) };
        assert_eq!(bench.said(), [announced, tick("a", 5)]);
    }
}

#[test]
fn a_stalled_subscriber_costs_one_slot_per_topic_and_no_payload() {
    const TOPICS: u64 = 100;
    for policy_of_reader in [Policy::Conflate, Policy::Drop] {
        let limits = Limits { egress_log_bytes: 256 << 10, behind_bytes: 16 << 10, ..Limits::default() };
        let mut bench = Bench::new(limits);
        bench.connect(READER);
        bench.subscribe(READER, ">", policy(policy_of_reader));
        bench.full.insert(READER);
        let round =
            |bench: &mut Bench| (0..TOPICS).for_each(|n| bench.publish(&format!("t.{n}"), 0, &[0; 500]));
        // Until the egress log has wrapped around and the histories are full.
        (0..300).for_each(|_| round(&mut bench));
        let before = bench.shard.memory_bytes();
        (0..300).for_each(|_| round(&mut bench));
        assert!(
            bench.shard.memory_bytes() <= before + 4_096,
            "{policy_of_reader:?}: memory grows with what is published"
        );
        assert_eq!(bench.shard.counters().value(Counter::ClosedSlowConsumer), 0);
    }
}

#[test]
fn a_session_and_a_subscription_cost_what_the_docs_say() {
    // Documented bounds per session, and per session and topic.
    const SESSION_BYTES: usize = 544;
    const TOPIC_BYTES: usize = 128;
    const SESSIONS: u32 = 1_000;
    const TOPICS: usize = 64;
    assert!(size_of::<Session>() <= 384 && size_of::<Membership>() <= 48);
    let mut bench = Bench::new(Limits { ping_interval_ns: u64::MAX, ..Limits::default() });
    (0..TOPICS).for_each(|n| bench.publish(&format!("t.{n}"), 0, b"1"));
    let before = bench.shard.memory_bytes();
    (1..=SESSIONS).for_each(|slot| bench.connect(slot));
    let sessions = bench.shard.memory_bytes() - before;
    assert!(sessions <= SESSIONS as usize * SESSION_BYTES, "{} a session", sessions / SESSIONS as usize);
    // The first subscription creates the egress log.
    bench.subscribe(1, ">", policy(Policy::Conflate));
    let before = bench.shard.memory_bytes();
    (2..=SESSIONS).for_each(|slot| bench.subscribe(slot, ">", policy(Policy::Conflate)));
    let topics = bench.shard.memory_bytes() - before;
    let (sessions_each, topics_each) =
        (sessions / SESSIONS as usize, topics / ((SESSIONS as usize - 1) * TOPICS));
    println!("{sessions_each} bytes a session, {topics_each} bytes a session and topic");
    assert!(topics_each <= TOPIC_BYTES, "{topics_each} a topic");
}

#[test]
fn a_paced_subscriber_gets_the_last_tick_at_its_rate_and_may_change_the_rate() {
    let mut bench = Bench::new(Limits::default());
    bench.connect(READER);
    bench.subscribe(READER, "a", Subscribe { max_rate_millihertz: 10_000, ..Subscribe::default() });
    let mut said = Vec::new();
    for _ in 0..100 {
        bench.publish("a", 0, b"1");
        bench.after(10);
        said.extend(bench.said());
    }
    bench.after(110);
    said.extend(bench.said());
    let ticks = said.iter().filter(|said| matches!(said, Tick(..))).count();
    assert!((10..=12).contains(&ticks), "{ticks} ticks in a second");
    assert_eq!(said.last(), Some(&tick("a", 100)));
    bench.send(READER, Kind::Update, &Subscribe::default(), b"a");
    for sequence in 101..=105 {
        bench.publish("a", 0, b"1");
        assert_eq!(bench.said(), [tick("a", sequence)]);
    }
    // Removing the rate limit releases a held tick at once.
    bench.send(READER, Kind::Update, &Subscribe { max_rate_millihertz: 1, ..Subscribe::default() }, b"a");
    (0..3).for_each(|_| bench.publish("a", 0, b"1"));
    assert_eq!(bench.said(), [tick("a", 106)]);
    bench.send(READER, Kind::Update, &Subscribe::default(), b"a");
    assert_eq!(bench.said(), [Conflated(107, 108), tick("a", 108)]);
}

#[test]
fn from_latest_sends_a_snapshot_before_the_first_live_tick() {
    let mut bench = Bench::new(Limits::default());
    for key in [1, 2, 1, 3] {
        bench.publish("book", key, b"1");
    }
    bench.publish("plain", 0, b"1");
    bench.connect(READER);
    bench.subscribe(READER, ">", Subscribe { from: 1, ..Subscribe::default() });
    bench.publish("book", 2, b"1");
    let book: Vec<Said> =
        bench.said().into_iter().filter(|said| format!("{said:?}").contains("book")).collect();
    let snapshot = |sequence| Snapshot("book".into(), sequence);
    assert_eq!(book, [snapshot(2), snapshot(3), snapshot(4), tick("book", 5)]);
}

#[test]
fn a_position_is_recovered_or_reported_lost() {
    let mut bench = Bench::new(Limits::default());
    (0..20).for_each(|_| bench.publish("a", 0, b"1"));
    let from = |epoch, sequence| Subscribe { from: 2, epoch, sequence, ..Subscribe::default() };
    let snapshot = || Snapshot("a".into(), 20);
    let cases = [
        (from(EPOCH, 17), vec![Recovered(true), tick("a", 18), tick("a", 19), tick("a", 20)]),
        (from(EPOCH, 20), vec![Recovered(true)]),
        (from(EPOCH, 21), vec![Recovered(false), snapshot()]),
        (from(EPOCH, u64::MAX), vec![Recovered(false), snapshot()]),
        // All of another life is new to the session.
        (
            from(EPOCH + 1, 17),
            std::iter::once(Recovered(false)).chain((1..=20).map(|sequence| tick("a", sequence))).collect(),
        ),
    ];
    for (record, mut expected) in cases {
        bench.connect(READER);
        bench.subscribe(READER, "a", record);
        bench.publish("a", 0, b"1");
        expected.push(tick("a", 21));
        assert_eq!(bench.said(), expected, "{record:?}");
        let now = bench.now;
        bench.shard.handle_error(SlotId(READER), 104, now);
        while bench.shard.poll_action().is_some() {}
        // Each case starts with the same twenty ticks.
        bench = Bench::new(Limits::default());
        (0..20).for_each(|_| bench.publish("a", 0, b"1"));
    }
    bench.connect(READER);
    bench.send(READER, Kind::Resume, &Resume { epoch: EPOCH, sequence: 5 }, b"never");
    bench.send(READER, Kind::Resume, &Resume { epoch: EPOCH, sequence: 19 }, b"a");
    bench.subscribe(READER, ">", Subscribe { from: 3, ..Subscribe::default() });
    assert_eq!(
        bench.said(),
        [Recovered(false), Recovered(true), tick("a", 20)],
        "a topic that never existed, and one that does"
    );
}

#[test]
fn a_drain_flushes_held_ticks_and_announces_what_it_drops() {
    let drained = |bench: &mut Bench| {
        let now = bench.now;
        bench.shard.begin_drain(now.monotonic_ns + 5_000 * MS, now);
        bench.turn();
        assert!(
            !bench.shard.is_busy() || bench.full.is_empty(),
            "a full socket does not keep the shard busy"
        );
        bench.open();
        assert!(!bench.shard.is_busy(), "nothing to do until the peers close");
        bench.said()
    };
    let mut bench = stalled(Policy::Conflate);
    (2..=100).for_each(|_| bench.publish("a", 0, &[0; 40]));
    assert_eq!(drained(&mut bench), [Conflated(2, 100), tick("a", 100), Closing(3001)]);

    let mut bench = stalled(Policy::Drop);
    (2..=100).for_each(|_| bench.publish("a", 0, &[0; 40]));
    let said = drained(&mut bench);
    let Gap(2, to) = said[0] else { panic!("{said:?}") };
    let mut rest: Vec<Said> = (to..=100).map(|sequence| tick("a", sequence)).collect();
    rest.push(Closing(3001));
    assert_eq!(said[1..], rest);

    let mut bench = Bench::new(Limits::default());
    bench.connect(READER);
    bench.subscribe(READER, "a", Subscribe { max_rate_millihertz: 1, ..Subscribe::default() });
    (1..=3).for_each(|_| bench.publish("a", 0, b"1"));
    assert_eq!(drained(&mut bench), [tick("a", 1), Conflated(2, 3), tick("a", 3), Closing(3001)]);
}

#[test]
fn updates_of_many_topics_span_turns_and_later_requests_wait() {
    const TOPICS: usize = 5_000;
    // To open a topic to the shard, join it or change it takes fewer units than this.
    const TOPIC_UNITS: usize = 64;
    let mut bench = Bench::new(Limits::default());
    (0..TOPICS).for_each(|n| bench.publish(&format!("t.{n}"), 0, b"1"));
    bench.connect(READER);
    // A rate limit takes a membership per topic.
    let paced = Subscribe { max_rate_millihertz: 1_000_000, ..Subscribe::default() };
    bench.subscribe(READER, "t.*", paced);
    (0..TOPICS * TOPIC_UNITS / TURN_INTEREST_UNITS).for_each(|_| bench.turn());
    assert!(!bench.shard.is_busy(), "the session has joined every topic");
    bench.sent.clear();
    let mut bytes = Vec::new();
    for request in 1..=3 {
        let record = Subscribe { request, policy: Policy::Conflate as u8, ..paced };
        bytes.extend(frame(Kind::Update, &record, b"t.*"));
    }
    bytes.extend(frame(Kind::Ping, &Token { token: 7 }, b""));
    bench.receive(READER, &bytes);
    let answers = |got: &[u8]| {
        let (mut answers, mut rest) = (Vec::new(), got);
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            answers.push(frame.kind);
            rest = &rest[used..];
        }
        answers
    };
    assert!(bench.shard.is_busy(), "the updates take more than one turn");
    let (mut turns, mut got) = (0, Vec::new());
    while answers(&got).len() < 4 {
        turns += 1;
        assert!(turns < 3 * TOPICS * TOPIC_UNITS / TURN_CONTROL_UNITS, "{:?}", answers(&got));
        bench.turn();
        got.extend(bench.take_sent(READER));
    }
    assert_eq!(answers(&got), [Kind::Subscribed, Kind::Subscribed, Kind::Subscribed, Kind::Pong]);
    assert!(turns > 1 && !bench.shard.is_busy());
}
