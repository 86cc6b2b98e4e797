//! Tests of the budgets of turns: work that grows with sessions, waiting frames or history continues in later turns.

use crate::{
    config::Limits,
    home::history::HistoryBounds,
    ids::SlotId,
    limits::{
        CLOSE_NOTICES_BYTES, FRAMES_PER_UNIT, HISTORY_BYTES_PER_UNIT, HISTORY_CHUNK_BYTES, TURN_FORGET_UNITS,
        TURN_HISTORY_UNITS,
    },
    metrics::counters::Counter,
    shard::{Action, ListenerKind},
    testing::{Driver, EPOCH, frame, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, Kind},
    records::{Publish, Subscribe},
    subscription::{Policy, Rules},
};

const PUBLISHER: u32 = 0;
const IDLE_NS: u64 = 10_000_000;

/// A shard with a publisher. Only topics `t.>` are ever forgotten.
fn driver() -> Driver {
    let mut driver = Driver::new(Limits {
        topic_idle: Rules { rules: vec![("t.>".into(), IDLE_NS)], default: 0 },
        history: Rules::all(HistoryBounds { ticks: 1_000, bytes: 4 << 20, age_ns: 0 }),
        ..Limits::default()
    });
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver
}

fn subscribe(driver: &mut Driver, slot: u32, pattern: &str, record: Subscribe) {
    driver.receive(slot, &frame(Kind::Subscribe, &record, pattern.as_bytes()));
}

fn publish(driver: &mut Driver, topic: &str, payload: &[u8]) {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, payload);
    driver.receive(PUBLISHER, &bytes);
}

fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
}

fn value(driver: &Driver, counter: Counter) -> u64 {
    driver.shard.counters().value(counter)
}

/// How many frames of a kind a slot was sent.
fn count(driver: &Driver, slot: u32, kind: Kind) -> usize {
    let sent = driver.sent.iter().filter(|(to, _)| *to == slot);
    let bytes: Vec<u8> = sent.flat_map(|(_, bytes)| bytes).copied().collect();
    let (mut rest, mut count) = (&bytes[..], 0);
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        count += usize::from(frame.kind == kind);
        rest = &rest[used..];
    }
    count
}

#[test]
fn waiting_frames_of_forgotten_topics_are_visited_over_turns() {
    const SESSIONS: u32 = 20;
    const TICKS: usize = 1_000;
    let mut driver = driver();
    for slot in 1..=SESSIONS {
        driver.accept(slot, ListenerKind::Native, &hello());
        let keep = Subscribe { policy: Policy::Keep as u8, ..Subscribe::default() };
        subscribe(&mut driver, slot, "t.*", keep);
    }
    publish(&mut driver, "t.1", b"x");
    finish(&mut driver);
    driver.full.extend(1..=SESSIONS);
    publish(&mut driver, "t.1", b"x");
    finish(&mut driver);
    for _ in 0..TICKS {
        publish(&mut driver, "t.1", b"x");
        driver.turn();
    }
    driver.sent.clear();
    let (mut most, mut turns) = (0, 0);
    for _ in 0..200 {
        let before = value(&driver, Counter::ForgettingUnits);
        driver.jump(IDLE_NS / 8);
        driver.turn();
        let used = value(&driver, Counter::ForgettingUnits) - before;
        (most, turns) = (most.max(used), turns + u32::from(used > 0));
    }
    let step = TICKS / FRAMES_PER_UNIT + 2;
    assert!(most <= (TURN_FORGET_UNITS + step) as u64 && turns > 2, "{most} units in one of {turns} turns");
    assert_eq!(driver.shard.fanout.topics_len(), 0);
    driver.open();
    finish(&mut driver);
    for slot in 1..=SESSIONS {
        assert_eq!(
            (count(&driver, slot, Kind::Gap), count(&driver, slot, Kind::Tick)),
            (1, 0),
            "slot {slot}"
        );
    }
}

#[test]
fn sessions_that_depart_list_their_memberships_in_pieces() {
    const SESSIONS: u32 = 8;
    const TOPICS: usize = 2_000;
    let mut driver = driver();
    for slot in 1..=SESSIONS {
        driver.accept(slot, ListenerKind::Native, &hello());
        subscribe(&mut driver, slot, ">", Subscribe { max_rate_millihertz: 1_000, ..Subscribe::default() });
    }
    for topic in 0..TOPICS {
        publish(&mut driver, &format!("n.{topic}"), b"x");
    }
    finish(&mut driver);
    let memberships = |driver: &Driver| -> usize {
        driver.shard.sessions.iter().map(|session| session.memberships.len()).sum()
    };
    assert_eq!(memberships(&driver), SESSIONS as usize * TOPICS);
    let before = driver.shard.control.heap_bytes();
    (1..=SESSIONS).for_each(|slot| driver.shard.handle_error(SlotId(slot), 104, driver.now));
    let listed = driver.shard.control.heap_bytes() - before;
    assert!(listed < TOPICS * 4, "{listed} bytes for {SESSIONS} departures");
    finish(&mut driver);
    assert_eq!((memberships(&driver), driver.shard.sessions_len()), (0, 1));
}

#[test]
fn history_has_a_budget_of_its_own_in_a_turn() {
    const SESSIONS: u32 = 60;
    const TICKS: usize = 200;
    let mut driver = driver();
    for _ in 0..TICKS {
        publish(&mut driver, "h.1", &[b'x'; 1_000]);
    }
    (1..=SESSIONS).for_each(|slot| driver.accept(slot, ListenerKind::Native, &hello()));
    finish(&mut driver);
    driver.sent.clear();
    let all = Subscribe { from: 2, epoch: EPOCH, sequence: 0, ..Subscribe::default() };
    (1..=SESSIONS).for_each(|slot| subscribe(&mut driver, slot, "h.1", all));
    let bound = (TURN_HISTORY_UNITS * HISTORY_BYTES_PER_UNIT + HISTORY_CHUNK_BYTES) / 1_000;
    let mut turns = 0;
    while turns == 0 || driver.shard.is_busy() {
        let before = value(&driver, Counter::TicksDelivered);
        driver.turn();
        let delivered = value(&driver, Counter::TicksDelivered) - before;
        assert!(delivered <= bound as u64, "{delivered} ticks of history in one turn");
        turns += 1;
    }
    assert!(turns > SESSIONS as usize * TICKS / bound, "{turns} turns");
    assert!((1..=SESSIONS).all(|slot| count(&driver, slot, Kind::Tick) == TICKS));
}

#[test]
fn a_session_whose_peer_has_sent_fin_gets_its_gaps_in_pieces_before_the_fin() {
    const READER: u32 = 1;
    const TOPICS: usize = 3_000;
    let mut driver = driver();
    driver.accept(READER, ListenerKind::Native, &hello());
    let drops = Subscribe { policy: Policy::Drop as u8, ..Subscribe::default() };
    subscribe(&mut driver, READER, ">", drops);
    publish(&mut driver, "n.first", b"x");
    finish(&mut driver);
    driver.full.insert(READER);
    for topic in 0..TOPICS {
        publish(&mut driver, &format!("n.{topic}"), &[b'x'; 300]);
        driver.turn();
    }
    let session = driver.shard.sessions.get(SlotId(READER)).unwrap();
    let unannounced = session.lag.as_deref().map_or(0, |lag| lag.unannounced.len());
    assert!(unannounced > TOPICS / 2, "{unannounced} topics have lost their tick");
    driver.sent.clear();
    driver.actions.clear();
    driver.shard.handle_eof(SlotId(READER), driver.now);
    driver.sends_max = 1;
    driver.open();
    let has_fin = |driver: &Driver| driver.actions.contains(&Action::ShutdownWrite(SlotId(READER)));
    while !has_fin(&driver) && driver.shard.sessions.get(SlotId(READER)).is_some() {
        let session = driver.shard.sessions.get(SlotId(READER)).unwrap();
        let replies = session.outbox.reply_bytes();
        assert!(replies <= 2 * CLOSE_NOTICES_BYTES, "{replies} bytes of announcements at once");
        driver.turn();
    }
    assert_eq!(count(&driver, READER, Kind::Gap), unannounced, "each loss is announced");
}
