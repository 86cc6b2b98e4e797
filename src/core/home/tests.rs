//! Tests of the home side of topics.

use super::*;
use crate::{limits::INTEREST_CHANGE_UNITS, now::Now};
use tickcast_proto::frame::FLAG_SNAPSHOT;

const A: ShardId = ShardId(0);
const B: ShardId = ShardId(1);

pub(super) fn text(event: InterestEvent<'_>) -> String {
    match event {
        InterestEvent::Open(shard, topic) => format!("open {} {}", shard.0, topic.name()),
        InterestEvent::Close(shard, topic) => format!("close {} {}", shard.0, topic.name()),
        InterestEvent::Forget(shard, topic) => format!("forget {} {}", shard.0, topic.name()),
        InterestEvent::Mark(shard, topic) => {
            format!("mark {} {} {}", shard.0, topic.name(), topic.mark.is_stale)
        }
        InterestEvent::Ready(shard, request) => format!("ready {} {request}", shard.0),
    }
}

fn walk_events(home: &mut Home) -> Vec<String> {
    let mut events = Vec::new();
    while home.is_walking() {
        assert!(home.advance_walk(1, &mut |event| push(&mut events, event)) > 0, "a walk with work goes on");
    }
    events
}

fn push(events: &mut Vec<String>, event: InterestEvent<'_>) -> bool {
    events.push(text(event));
    true
}

fn add(home: &mut Home, pattern: &str, request: u32) -> Vec<String> {
    let mut events = Vec::new();
    home.add_interest(B, pattern, request, &mut |event| push(&mut events, event));
    events
}

fn remove(home: &mut Home, pattern: &str) -> Vec<String> {
    let mut events = Vec::new();
    home.remove_interest(B, pattern, &mut |event| push(&mut events, event));
    events
}

#[test]
fn interest_opens_existing_topics_then_says_ready() {
    let mut home = home(2, 10);
    for name in ["a.x", "b.x", "a.y"] {
        find_or_create(&mut home, name, 0).unwrap();
    }
    assert!(add(&mut home, "a.*", 7).is_empty());
    assert_eq!(walk_events(&mut home), ["open 1 a.x", "open 1 a.y", "ready 1 7"]);
    let TopicLookup { index, is_new } = find_or_create(&mut home, "a.z", 0).unwrap();
    assert!(is_new && home.topic(index).interested.contains(B) && !home.topic(index).interested.contains(A));
}

#[test]
fn interest_in_one_topic_does_not_wait_for_the_walk() {
    let mut home = home(2, 10);
    find_or_create(&mut home, "a.x", 0).unwrap();
    add(&mut home, ">", 1);
    assert_eq!(add(&mut home, "a.x", 2), ["open 1 a.x", "ready 1 2"]);
    assert_eq!(walk_events(&mut home), ["ready 1 1"], "the topic is already open");
    assert!(remove(&mut home, "a.x").is_empty(), "the other pattern still matches it");
}

#[test]
fn overlapping_interest_outlives_the_other_pattern() {
    let mut home = home(2, 10);
    find_or_create(&mut home, "a.x", 0).unwrap();
    find_or_create(&mut home, "a.y", 0).unwrap();
    add(&mut home, ">", 1);
    add(&mut home, "a.x", 2);
    walk_events(&mut home);
    remove(&mut home, ">");
    assert_eq!(walk_events(&mut home), ["close 1 a.y"]);
    assert_eq!(remove(&mut home, "a.x"), ["close 1 a.x"]);
}

#[test]
fn interest_that_returns_before_the_walk_keeps_its_topics() {
    let mut home = home(2, 10);
    find_or_create(&mut home, "a.x", 0).unwrap();
    add(&mut home, "a.*", 1);
    walk_events(&mut home);
    remove(&mut home, "a.*");
    add(&mut home, "a.*", 2);
    assert_eq!(walk_events(&mut home), ["ready 1 2"]);
}

#[test]
fn patterns_that_go_together_cost_one_round_of_the_topics() {
    const TOPICS: u32 = 100;
    let mut home = home(2, TOPICS as usize);
    for n in 0..TOPICS {
        find_or_create(&mut home, &format!("t.{n}.x"), 0).unwrap();
    }
    (0..TOPICS).for_each(|n| drop(add(&mut home, &format!("t.{n}.*"), n)));
    assert_eq!(walk_events(&mut home).len(), 2 * TOPICS as usize);
    (0..TOPICS).for_each(|n| drop(remove(&mut home, &format!("t.{n}.*"))));
    let (mut units, mut closed) = (0, 0);
    while home.is_walking() {
        units += home.advance_walk(1, &mut |_| {
            closed += 1;
            true
        });
    }
    assert_eq!(closed, TOPICS);
    assert!(
        units <= (4 + INTEREST_CHANGE_UNITS) * TOPICS as usize,
        "{units} units for {TOPICS} topics, one topic, its trie nodes and its end each"
    );
}

#[test]
fn a_walk_pauses_while_the_shards_take_no_more() {
    let mut home = home(2, 10);
    for name in ["a.x", "a.y"] {
        find_or_create(&mut home, name, 0).unwrap();
    }
    add(&mut home, "a.*", 1);
    let mut events = Vec::new();
    let mut once = |home: &mut Home| {
        home.advance_walk(100, &mut |event| {
            events.push(text(event));
            false
        });
    };
    (0..3).for_each(|_| once(&mut home));
    assert_eq!(events, ["open 1 a.x", "open 1 a.y", "ready 1 1"]);
    assert!(!home.is_walking());
}

#[test]
fn epochs_increase_even_if_the_clock_stands_still_or_goes_back() {
    let mut home = home(1, 10);
    let mut epoch = |name: &str, now_us| {
        let TopicLookup { index, .. } = find_or_create(&mut home, name, now_us).unwrap();
        home.topic(index).epoch
    };
    assert_eq!([epoch("a", 100), epoch("b", 100), epoch("c", 50), epoch("d", 200)], [100, 101, 102, 200]);
    assert_eq!(epoch("a", 300), 100);
    let first_of_all = home_epoch_of_a_stopped_clock();
    assert_eq!(first_of_all, EPOCH + 1, "a topic's epoch is above the server's");
}

fn home_epoch_of_a_stopped_clock() -> u64 {
    let mut home = home(1, 10);
    let TopicLookup { index, .. } = find_or_create(&mut home, "a", 0).unwrap();
    home.topic(index).epoch
}

fn idle_home(topics_max: usize, idle_ns: u64) -> Home {
    let mut home = home(2, topics_max);
    home.set_idle(Rules { rules: vec![("kept".into(), 0)], default: idle_ns });
    home
}

/// Publishes a tick to a topic, which may be new. Returns the topic's id.
fn publish(home: &mut Home, name: &str) -> TopicId {
    let TopicLookup { index, .. } = find_or_create(home, name, 0).unwrap();
    advance(home, index, 0, b"x")
}

/// A home of one shard that forgets topics after a second.
pub(super) fn limited_home(limits: CreationLimits, topics_max: usize) -> Home {
    let retention = Retention {
        history: Rules::all(BOUNDS),
        history_bytes_max: 1 << 20,
        last_values: LastValuesBudget { keys_max: 4, bytes_left: 1 << 20 },
        idle: Rules::all(1_000_000_000),
        message_ids: MessageIdBounds::default(),
    };
    Home::new(A, 1, EPOCH, topics_max, limits, retention, Arc::default())
}

fn idle_events(home: &mut Home, now_ns: u64) -> Vec<String> {
    let mut events = Vec::new();
    home.advance_idle_walk(1_000, now_ns, &mut |event| push(&mut events, event));
    events
}

#[test]
fn an_idle_topic_that_nobody_names_is_forgotten_and_lives_again_with_a_new_id_and_epoch() {
    let mut home = idle_home(4, 1_000);
    add(&mut home, ">", 1);
    walk_events(&mut home);
    add(&mut home, "named", 2);
    let [first, ..] = ["a", "named", "kept"].map(|name| publish(&mut home, name));
    let (epoch, id) = (home.topic(0).epoch, home.topic(0).id);
    assert!(idle_events(&mut home, 5_000).is_empty(), "the walk sees its tick");
    assert!(idle_events(&mut home, 5_999).is_empty());
    assert_eq!(idle_events(&mut home, 6_125), ["forget 1 a"]);
    assert_eq!((home.len(), home.forgotten()), (2, 1));
    let again = publish(&mut home, "a");
    assert!(again != first && home.topic(3).epoch > epoch && home.topic(3).sequence == Sequence(1));
    assert!(!home.topic(3).is_first_life && home.topic(0).name() == "a", "its last values are kept");
    assert_eq!(
        find_or_create(&mut home, "full", 0),
        Err(TopicRefusal::Table),
        "until the shard has answered"
    );
    home.handle_forgotten(B, id, 7_000);
    let reused = publish(&mut home, "full");
    assert_eq!(reused.place(2, Places::new(4)), first.place(2, Places::new(4)));
    assert_ne!(reused, first);
}

#[test]
fn a_topic_with_ticks_is_not_forgotten_and_one_that_no_shard_knows_goes_at_once() {
    let mut home = idle_home(1, 1_000);
    let first = publish(&mut home, "a");
    for now_ns in (0..100_000).step_by(500) {
        publish(&mut home, "a");
        idle_events(&mut home, now_ns);
        assert_eq!(home.len(), 1);
    }
    idle_events(&mut home, 200_000);
    idle_events(&mut home, 300_000);
    assert_eq!((home.len(), home.memory_bytes()), (0, 0));
    assert_eq!(home.history_left_bytes, 1 << 20);
    assert_ne!(publish(&mut home, "b"), first);
}

#[test]
fn the_servers_epoch_stands_for_that_of_a_first_life_only() {
    let mut home = idle_home(2, 1_000);
    let first = publish(&mut home, "a");
    publish(&mut home, "a");
    let (_, flags, ticks) = chunk(&mut home, first, Backfill::ServerPosition, 2);
    assert_eq!((flags, ticks), (CHUNK_RECOVERED | CHUNK_LAST, vec![(2, false)]));
    idle_events(&mut home, 1_000);
    idle_events(&mut home, 10_000);
    let second = publish(&mut home, "a");
    let (_, flags, _) = chunk(&mut home, second, Backfill::ServerPosition, 2);
    assert_eq!(flags, CHUNK_NOT_RECOVERED | CHUNK_EPOCH_PASSED | CHUNK_LAST);
}

#[test]
fn topics_are_bounded() {
    let mut home = home(1, 1);
    assert!(find_or_create(&mut home, "a", 0).is_ok());
    assert_eq!(find_or_create(&mut home, "b", 0), Err(TopicRefusal::Table));
    assert_eq!(find_or_create(&mut home, "a", 0), Ok(TopicLookup { index: 0, is_new: false }));
}

const EPOCH: u64 = 5;
const BOUNDS: HistoryBounds = HistoryBounds { ticks: 10, bytes: 64 << 10, age_ns: 0 };

pub(super) fn find_or_create(home: &mut Home, name: &str, now_us: u64) -> Result<TopicLookup, TopicRefusal> {
    home.find_or_create(name, Creator::default(), Now { monotonic_ns: 0, realtime_ns: now_us * 1_000 })
}

pub(super) fn home(shards: u16, topics_max: usize) -> Home {
    let retention = Retention {
        history: Rules::all(BOUNDS),
        history_bytes_max: 1 << 20,
        last_values: LastValuesBudget { keys_max: 4, bytes_left: 1 << 20 },
        idle: Rules::all(0),
        message_ids: MessageIdBounds::default(),
    };
    Home::new(A, shards, EPOCH, topics_max, CreationLimits::default(), retention, Arc::default())
}

pub(super) fn advance(home: &mut Home, index: u32, key: u64, payload: &[u8]) -> TopicId {
    let sequenced = home.sequence(index, &TickParts { key, payload, ..TickParts::default() }, 0);
    TopicId(sequenced.tick.header.topic_id)
}

/// Start, flags, and the sequences and snapshot marks of a chunk.
pub(super) fn chunk(
    home: &mut Home,
    id: TopicId,
    backfill: Backfill,
    from: u64,
) -> (u64, u32, Vec<(u64, bool)>) {
    let mut out = Vec::new();
    let chunk = home.history_chunk(id, backfill, from, 0, &mut out);
    let (mut ticks, mut rest) = (Vec::new(), &out[..]);
    while let Ok(tickcast_proto::Step::Complete(used, tick)) = frame::decode(rest, usize::MAX) {
        ticks.push((tick.header.sequence, tick.header.flags & FLAG_SNAPSHOT != 0));
        rest = &rest[used..];
    }
    assert!(rest.is_empty());
    (chunk.start, chunk.flags, ticks)
}

/// A home whose last values may take this many bytes, and which keeps no history.
fn home_with(last_values_bytes: usize) -> Home {
    let bounds = HistoryBounds { ticks: 0, ..BOUNDS };
    let last_values = LastValuesBudget { keys_max: 4, bytes_left: last_values_bytes };
    let retention = Retention {
        history: Rules::all(bounds),
        history_bytes_max: 0,
        last_values,
        idle: Rules::all(0),
        message_ids: MessageIdBounds::default(),
    };
    Home::new(A, 1, EPOCH, 1_000, CreationLimits::default(), retention, Arc::default())
}

/// Whether topics have a last value.
fn have_value(home: &mut Home, ids: &[TopicId]) -> Vec<bool> {
    ids.iter().map(|&id| !chunk(home, id, Backfill::LastValues, 1).2.is_empty()).collect()
}

#[test]
fn the_last_values_of_topics_updated_longest_ago_make_room() {
    let mut home = home_with(10 << 10);
    let publish = |home: &mut Home, topic: usize, len: usize| {
        let TopicLookup { index, .. } = find_or_create(home, &format!("t.{topic}"), 0).unwrap();
        advance(home, index, 0, &vec![0; len])
    };
    let ids: Vec<TopicId> = (1..=9).map(|topic| publish(&mut home, topic, 1_000)).collect();
    assert_eq!(have_value(&mut home, &ids), [true; 9]);
    // Every other topic has more ticks, and one more topic needs room each time.
    for round in 0..4 {
        (1..=9).step_by(2).for_each(|topic| {
            publish(&mut home, topic, 1_000);
        });
        publish(&mut home, 10 + round, 1_000);
    }
    let have = have_value(&mut home, &ids);
    assert!(have.iter().step_by(2).all(|has| *has), "{have:?}: those with more ticks keep theirs");
    assert!(have.iter().filter(|has| **has).count() <= 6, "{have:?}: the others make room");
    assert!(home.take_last_values_evicted() >= 4);
}

#[test]
fn a_tick_longer_than_all_last_values_is_passed_on_and_announced_as_lost_later() {
    let mut home = home_with(10 << 10);
    let TopicLookup { index: other, .. } = find_or_create(&mut home, "other", 0).unwrap();
    let other = advance(&mut home, other, 0, b"x");
    let TopicLookup { index, .. } = find_or_create(&mut home, "a", 0).unwrap();
    let mut id = TopicId(0);
    for len in [100, 20 << 10, 30 << 10] {
        let sequenced =
            home.sequence(index, &TickParts { payload: &vec![7; len], ..TickParts::default() }, 0);
        assert_eq!(sequenced.tick.payload(), vec![7; len]);
        id = TopicId(sequenced.tick.header.topic_id);
    }
    assert_eq!(chunk(&mut home, id, Backfill::Conflated, 2), (4, CHUNK_LAST, vec![]));
    assert_eq!(chunk(&mut home, id, Backfill::Retained, 1), (4, CHUNK_LAST, vec![]));
    let (_, flags, ticks) = chunk(&mut home, id, Backfill::LastValues, 1);
    assert_eq!((flags, ticks), (CHUNK_LAST | CHUNK_VALUES_LOST, vec![]));
    advance(&mut home, index, 0, b"x");
    assert_eq!(chunk(&mut home, id, Backfill::Conflated, 2), (2, CHUNK_LAST, vec![(4, false)]));
    assert_eq!(have_value(&mut home, &[other]), [true], "a small value does not make room for a large one");
}

#[test]
fn a_position_within_the_history_is_recovered_exactly() {
    let mut home = home(1, 1);
    let TopicLookup { index, .. } = find_or_create(&mut home, "a", 0).unwrap();
    let mut id = TopicId(0);
    (0..25).for_each(|_| id = advance(&mut home, index, 0, b"x"));
    let (start, flags, ticks) = chunk(&mut home, id, Backfill::Position, 20);
    assert_eq!((start, flags), (20, CHUNK_RECOVERED | CHUNK_LAST));
    assert_eq!(ticks, (20..=25).map(|sequence| (sequence, false)).collect::<Vec<_>>());
    assert_eq!(chunk(&mut home, id, Backfill::Position, 26), (26, CHUNK_RECOVERED | CHUNK_LAST, vec![]));
}

#[test]
fn a_position_out_of_reach_yields_the_last_values_and_says_so() {
    let mut home = home(1, 1);
    let TopicLookup { index, .. } = find_or_create(&mut home, "a", 0).unwrap();
    let mut id = TopicId(0);
    (0..25).for_each(|_| id = advance(&mut home, index, 0, b"x"));
    let lost = CHUNK_NOT_RECOVERED | CHUNK_LAST;
    for (backfill, from) in
        [(Backfill::Position, 3), (Backfill::Position, 27), (Backfill::Position, u64::MAX)]
    {
        let (_, flags, ticks) = chunk(&mut home, id, backfill, from);
        assert_eq!((flags, ticks), (lost, vec![(25, true)]), "{from}");
    }
    let (start, flags, ticks) = chunk(&mut home, id, Backfill::PositionLost, 1);
    assert_eq!((start, flags), (16, lost | CHUNK_EPOCH_PASSED));
    assert_eq!(ticks, (16..=25).map(|sequence| (sequence, false)).collect::<Vec<_>>(), "all of it is news");
    let (start, flags, ticks) = chunk(&mut home, id, Backfill::Retained, 3);
    assert_eq!((start, flags, ticks.len()), (16, CHUNK_LAST, 10));
}

#[test]
fn a_client_without_ticks_gets_all_that_is_kept() {
    let mut home = home(1, 1);
    let TopicLookup { index, .. } = find_or_create(&mut home, "a", 0).unwrap();
    let mut id = TopicId(0);
    (0..5).for_each(|_| id = advance(&mut home, index, 0, b"x"));
    let (start, flags, ticks) = chunk(&mut home, id, Backfill::Position, 1);
    assert_eq!((start, flags, ticks.len()), (1, CHUNK_RECOVERED | CHUNK_LAST, 5));
    (0..20).for_each(|_| id = advance(&mut home, index, 0, b"x"));
    let (start, flags, ticks) = chunk(&mut home, id, Backfill::Position, 1);
    assert_eq!((start, flags), (16, CHUNK_RECOVERED | CHUNK_LAST));
    assert_eq!(ticks, (16..=25).map(|sequence| (sequence, false)).collect::<Vec<_>>());
}

#[test]
fn a_snapshot_has_the_last_value_of_every_key() {
    let mut home = home(1, 1);
    let TopicLookup { index, .. } = find_or_create(&mut home, "a", 0).unwrap();
    let mut id = TopicId(0);
    [1, 2, 1, 3].into_iter().for_each(|key| id = advance(&mut home, index, key, b"x"));
    let (_, flags, ticks) = chunk(&mut home, id, Backfill::LastValues, 1);
    assert_eq!((flags, ticks), (CHUNK_LAST, vec![(2, true), (3, true), (4, true)]));
}

#[test]
fn a_long_history_comes_in_chunks() {
    let mut home = home(1, 1);
    let TopicLookup { index, .. } = find_or_create(&mut home, "a", 0).unwrap();
    let mut id = TopicId(0);
    (0..8).for_each(|_| id = advance(&mut home, index, 0, &[0; 12 << 10]));
    let (mut from, mut chunks) = (4, 0);
    loop {
        let (_, flags, ticks) = chunk(&mut home, id, Backfill::Position, from);
        assert!(!ticks.is_empty() && ticks[0].0 == from);
        from = ticks.last().unwrap().0 + 1;
        chunks += 1;
        if flags & CHUNK_LAST != 0 {
            break;
        }
    }
    assert_eq!((from, chunks), (9, 3));
}
