//! Tests of reads of logs, with a reader that answers what the test says.

use crate::{
    budgets::{BudgetLimits, Rates},
    config::Limits,
    home::history::HistoryBounds,
    ids::SlotId,
    limits::SUBSCRIPTIONS_BURST,
    log_reads::{LogChunk, LogRead, LogReadOutcome, LogReaderConfig},
    metrics::counters::Counter,
    shard::logged::tests::{
        LINKED, after, append, append_all, driver_with, finish, log, received, subscribe,
    },
    testing::{Driver, frame},
};
use tickcast_proto::{
    frame::{Kind, TickParts},
    ids::Sequence,
    logged::encode_linked_tick,
    records::{Request, Resume, Subscribe},
    subscription::Rules,
};

const SOURCE: u32 = 1;
const TIMEOUT_NS: u64 = 1_000_000_000;

/// A shard that keeps so many ticks of each topic, and whose log has a reader.
fn driver_that_keeps(ticks: usize) -> Driver {
    driver_with(Limits {
        history: Rules::all(HistoryBounds { ticks, bytes: 64 << 10, age_ns: 0 }),
        log_readers: vec![LogReaderConfig { source: SOURCE, timeout_ns: TIMEOUT_NS }],
        ..Limits::default()
    })
}

/// The requests to the reader since the last call.
fn reads(driver: &mut Driver) -> Vec<LogRead> {
    finish(driver);
    driver.shard.with_log_reads(SOURCE, |queue| queue.drain(..).collect()).unwrap()
}

fn read(driver: &mut Driver) -> LogRead {
    let mut reads = reads(driver);
    assert_eq!(reads.len(), 1);
    reads.remove(0)
}

/// Answers a request with these ticks up to `end`.
fn answer(driver: &mut Driver, read: &LogRead, ticks: &[u64], end: u64) {
    let (mut frames, mut last) = (Vec::new(), read.from - 1);
    for &position in ticks {
        encode_linked_tick(&mut frames, read.topic, Sequence(position), last, &TickParts::default());
        last = position;
    }
    let outcome = LogReadOutcome::Read { end };
    let chunk = LogChunk { ticket: read.ticket, outcome, ticks: ticks.len() as u32, frames };
    driver.shard.handle_log_chunk(SOURCE, &chunk, driver.now);
    finish(driver);
}

fn refuse(driver: &mut Driver, read: &LogRead) {
    let chunk = LogChunk { ticket: read.ticket, outcome: LogReadOutcome::Gone, ticks: 0, frames: Vec::new() };
    driver.shard.handle_log_chunk(SOURCE, &chunk, driver.now);
    finish(driver);
}

fn counted(driver: &Driver, counter: Counter) -> u64 {
    driver.shard.counters().value(counter)
}

#[test]
fn ticks_older_than_the_history_come_from_the_log_and_join_it_exactly_once() {
    let mut driver = driver_that_keeps(2);
    append_all(&mut driver, &[(50, 41), (60, 41), (75, 41), (80, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(20));
    let first = read(&mut driver);
    assert_eq!((&*first.name, first.epoch, first.from, first.until), ("t.0", log(1, 1).epoch, 21, 61));
    assert_eq!(counted(&driver, Counter::LogReadsWaiting), 1);
    assert_eq!(received(&mut driver, LINKED), ["topic"], "it waits, and nothing overtakes what it waits for");
    append_all(&mut driver, &[(85, 41)]);
    finish(&mut driver);
    assert!(received(&mut driver, LINKED).is_empty());
    answer(&mut driver, &first, &[30, 50], 55);
    assert_eq!(received(&mut driver, LINKED), ["recovered 1 at 80", "30 after 20", "50 after 30"]);
    // The history has moved on meanwhile.
    let second = read(&mut driver);
    assert_eq!((second.from, second.until), (55, 76));
    answer(&mut driver, &second, &[60, 75], 76);
    append_all(&mut driver, &[(90, 41)]);
    finish(&mut driver);
    assert_eq!(
        received(&mut driver, LINKED),
        ["60 after 50", "75 after 60", "80 after 75", "85 after 80", "90 after 85"]
    );
    assert_eq!([Counter::LogReads, Counter::LogTicksRead].map(|counter| counted(&driver, counter)), [2, 4]);
    assert_eq!(counted(&driver, Counter::LogReadsWaiting), 0);
}

#[test]
fn the_first_tick_of_the_window_follows_the_last_one_that_the_client_has() {
    for (ticks, follows) in [(&[30][..], "50 after 30"), (&[][..], "50 after 20")] {
        let mut driver = driver_that_keeps(100);
        append_all(&mut driver, &[(50, 41), (60, 41)]);
        subscribe(&mut driver, LINKED, "t.0", after(20));
        let wanted = read(&mut driver);
        assert_eq!((wanted.from, wanted.until), (21, 41));
        // In two pieces, the first of which has no tick.
        answer(&mut driver, &wanted, &[], 25);
        let wanted = read(&mut driver);
        assert_eq!((wanted.from, wanted.until), (25, 41));
        answer(&mut driver, &wanted, ticks, 41);
        let texts = received(&mut driver, LINKED);
        assert_eq!(texts[..2], ["topic", "recovered 1 at 60"]);
        assert_eq!(texts[texts.len() - 2..], [follows, "60 after 50"], "{texts:?}");
    }
}

#[test]
fn a_place_that_the_log_no_longer_has_is_not_recovered() {
    let mut driver = driver_that_keeps(2);
    append_all(&mut driver, &[(50, 41), (60, 41), (75, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(20));
    let wanted = read(&mut driver);
    refuse(&mut driver, &wanted);
    assert_eq!(received(&mut driver, LINKED), ["topic", "recovered 0 at 75", "75 after 60"]);
    assert_eq!(counted(&driver, Counter::LogReadsTooOld), 1);
    assert!(reads(&mut driver).is_empty(), "it is not asked again");
    append_all(&mut driver, &[(80, 41)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, LINKED), ["80 after 75"]);
}

#[test]
fn what_the_log_loses_while_it_is_read_is_announced() {
    let mut driver = driver_that_keeps(2);
    append_all(&mut driver, &[(50, 41), (60, 41), (75, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(20));
    let wanted = read(&mut driver);
    answer(&mut driver, &wanted, &[30], 31);
    let wanted = read(&mut driver);
    refuse(&mut driver, &wanted);
    assert_eq!(
        received(&mut driver, LINKED),
        ["topic", "recovered 1 at 75", "30 after 20", "gap 31 51: 1", "60 after 50", "75 after 60"]
    );
}

#[test]
fn a_reader_that_does_not_answer_holds_nobody_beyond_the_deadline() {
    let mut driver = driver_that_keeps(2);
    append_all(&mut driver, &[(50, 41), (60, 41), (75, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(20));
    let wanted = read(&mut driver);
    driver.pass(TIMEOUT_NS - 1);
    assert_eq!(received(&mut driver, LINKED), ["topic"]);
    driver.pass(1);
    finish(&mut driver);
    assert_eq!(received(&mut driver, LINKED), ["recovered 0 at 75", "75 after 60"]);
    assert!(wanted.cancellation.is_cancelled());
    answer(&mut driver, &wanted, &[30], 31);
    assert!(received(&mut driver, LINKED).is_empty(), "it is too late");
    let counters = [Counter::LogReadsExpired, Counter::LogReadsLate, Counter::LogReadsWaiting];
    assert_eq!(counters.map(|counter| counted(&driver, counter)), [1, 1, 0]);
}

#[test]
fn the_first_read_of_each_topic_is_paid_from_the_budget_of_the_session() {
    let rates = Rates { history: 1, ..Rates::default() };
    let mut driver = driver_with(Limits {
        history: Rules::all(HistoryBounds { ticks: 2, bytes: 64 << 10, age_ns: 0 }),
        log_readers: vec![LogReaderConfig { source: SOURCE, timeout_ns: TIMEOUT_NS }],
        budgets: BudgetLimits { session: rates, source: Rates::default() },
        subscriptions_per_session_max: 1,
        ..Limits::default()
    });
    let topics = SUBSCRIPTIONS_BURST + 3;
    for topic in (0..topics).map(|number| format!("t.{number}")) {
        [50, 60, 75].into_iter().for_each(|position| append(&mut driver, &topic, log(position, 41)));
        let resume = Resume { epoch: log(1, 1).epoch, sequence: 20 };
        driver.receive(LINKED, &frame(Kind::Resume, &resume, topic.as_bytes()));
    }
    subscribe(&mut driver, LINKED, "t.*", Subscribe { from: 3, ..Subscribe::default() });
    loop {
        let reads = reads(&mut driver);
        if reads.is_empty() {
            break;
        }
        reads.iter().for_each(|read| refuse(&mut driver, read));
    }
    // The subscription has cost as much as one of them.
    let counters = [Counter::LogReads, Counter::LogReadsRefused, Counter::HistoryRefusedRate];
    assert_eq!(counters.map(|counter| counted(&driver, counter)), [SUBSCRIPTIONS_BURST - 1, 4, 4]);
    let texts = received(&mut driver, LINKED);
    let answered = texts.iter().filter(|text| *text == "recovered 0 at 75").count();
    assert_eq!(answered as u64, topics, "every place is answered: {texts:?}");
}

#[test]
fn a_session_that_ends_waits_for_nothing() {
    let mut driver = driver_that_keeps(2);
    append_all(&mut driver, &[(50, 41), (60, 41), (75, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(20));
    let wanted = read(&mut driver);
    driver.shard.handle_error(SlotId(LINKED), 104, driver.now);
    finish(&mut driver);
    assert!(wanted.cancellation.is_cancelled());
    assert_eq!(counted(&driver, Counter::LogReadsWaiting), 0);
}

#[test]
fn reads_of_topics_that_a_session_has_left_do_not_keep_its_other_topics_waiting() {
    let mut driver = driver_that_keeps(2);
    for topic in ["t.0", "t.1"] {
        [50, 60, 75].into_iter().for_each(|position| append(&mut driver, topic, log(position, 41)));
        subscribe(&mut driver, LINKED, topic, after(20));
    }
    // There is room for one chunk.
    let left = read(&mut driver);
    driver.receive(LINKED, &frame(Kind::Unsubscribe, &Request::default(), left.name.as_bytes()));
    let next = read(&mut driver);
    assert!(left.cancellation.is_cancelled() && left.name != next.name);
    assert_eq!(counted(&driver, Counter::LogReadsWaiting), 1);
    received(&mut driver, LINKED);
    answer(&mut driver, &left, &[30], 31);
    assert!(received(&mut driver, LINKED).is_empty(), "nobody waits for it");
    answer(&mut driver, &next, &[30, 50], 51);
    assert!(received(&mut driver, LINKED).contains(&"30 after 20".to_owned()));
}

#[test]
fn a_server_that_stops_reads_no_log_and_announces_what_is_missing() {
    let mut driver = driver_that_keeps(2);
    append_all(&mut driver, &[(50, 41), (60, 41), (75, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(20));
    let wanted = read(&mut driver);
    append_all(&mut driver, &[(80, 41)]);
    driver.shard.stop_input();
    driver.shard.begin_drain(driver.now.monotonic_ns + TIMEOUT_NS, driver.now);
    finish(&mut driver);
    assert!(wanted.cancellation.is_cancelled());
    assert_eq!(received(&mut driver, LINKED), ["topic", "gap 21 81: 1"]);
}

#[test]
fn a_session_without_any_tick_and_one_that_only_wants_what_is_kept_read_no_log() {
    let mut driver = driver_that_keeps(2);
    append_all(&mut driver, &[(50, 41), (60, 41), (75, 41)]);
    for (slot, record) in [(LINKED, after(0)), (1, Subscribe { from: 1, ..Subscribe::default() })] {
        subscribe(&mut driver, slot, "t.0", record);
        assert!(reads(&mut driver).is_empty());
    }
    assert_eq!(counted(&driver, Counter::LogReads), 0);
}

#[test]
fn a_log_without_a_reader_and_a_topic_without_a_history_are_as_before() {
    let without_reader = driver_with(Limits {
        history: Rules::all(HistoryBounds { ticks: 2, bytes: 64 << 10, age_ns: 0 }),
        ..Limits::default()
    });
    for mut driver in [without_reader, driver_that_keeps(0)] {
        append_all(&mut driver, &[(50, 41), (60, 41), (75, 41)]);
        subscribe(&mut driver, LINKED, "t.0", after(20));
        finish(&mut driver);
        assert_eq!(received(&mut driver, LINKED), ["topic", "recovered 0 at 75", "75 after 60"]);
    }
}
