//! Tests of the scan of a log, with a log of one tick at each position.

use super::*;
use crate::log_reads::Cancellation;
use tickcast_proto::{Step, ids::TopicId};

const EPOCH: u64 = 1 << 52;
const NOW_NS: u64 = 1;

fn wants(ticket: u64, topic: &str, from: u64, until: u64) -> LogRead {
    LogRead {
        ticket,
        topic: TopicId(7),
        name: topic.into(),
        epoch: EPOCH,
        from,
        until,
        answer_by_ns: u64::MAX,
        deadline_ns: u64::MAX,
        cancellation: Cancellation::default(),
    }
}

/// Topic `a` has the even positions, `b` the odd ones.
fn topic_at(position: u64) -> &'static str {
    if position.is_multiple_of(2) { "a" } else { "b" }
}

/// Passes ticks of positions in a range, with a payload of `len` bytes.
fn pass(scan: &mut LogScan, positions: std::ops::Range<u64>, len: usize) {
    let (payload, messages) = (vec![b'x'; len], positions.end - positions.start);
    for position in positions.clone() {
        let parts = TickParts { payload: &payload, ..TickParts::default() };
        scan.tick(&LogTick { position, topic: topic_at(position), parts });
    }
    scan.reached(positions.end, messages);
}

/// Ticket, end and positions with what each follows; an end of 0: gone.
type Answer = (u64, u64, Vec<(u64, u64)>);

fn answers(scan: &mut LogScan) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(LogChunk { ticket, outcome, ticks, frames }) = scan.poll_answer() {
        let (mut rest, mut positions) = (&frames[..], Vec::new());
        while let Ok(Step::Complete(used, tick)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            positions.push((tick.header.sequence, tick.previous()));
        }
        assert_eq!(positions.len(), ticks as usize);
        let end = match outcome {
            LogReadOutcome::Read { end } => end,
            LogReadOutcome::Gone => 0,
        };
        answers.push((ticket, end, positions));
    }
    answers
}

fn open(from: u64) -> ScanStep {
    ScanStep::Open { epoch: EPOCH, from }
}

#[test]
fn one_pass_from_the_lowest_place_serves_all_that_wait() {
    let mut scan = LogScan::default();
    assert_eq!(scan.step(NOW_NS), ScanStep::Idle);
    for read in [wants(1, "a", 20, 24), wants(2, "b", 11, 14), wants(3, "a", 11, 23), wants(4, "c", 12, 22)] {
        scan.want(read);
    }
    assert_eq!(scan.step(NOW_NS), open(11));
    scan.begin(EPOCH, 11);
    assert_eq!(scan.step(NOW_NS), ScanStep::Read);
    pass(&mut scan, 11..18, 1);
    assert_eq!(answers(&mut scan), [(2, 14, vec![(11, 10), (13, 11)])]);
    pass(&mut scan, 18..30, 1);
    let mut rest = answers(&mut scan);
    rest.sort_unstable();
    let of_third = vec![(12, 10), (14, 12), (16, 14), (18, 16), (20, 18), (22, 20)];
    assert_eq!(rest, [(1, 24, vec![(20, 19), (22, 20)]), (3, 23, of_third), (4, 22, vec![])]);
    assert_eq!(scan.step(NOW_NS), ScanStep::Idle);
    // What was read serves requests that follow.
    scan.want(wants(5, "b", 15, 18));
    assert_eq!(answers(&mut scan), [(5, 18, vec![(15, 14), (17, 15)])]);
    scan.want(wants(6, "b", 29, 40));
    assert_eq!(scan.step(NOW_NS), ScanStep::Read, "it goes on where it is");
    scan.want(wants(7, "a", 10, 12));
    pass(&mut scan, 30..40, 1);
    assert_eq!(answers(&mut scan)[0].0, 6);
    assert_eq!(scan.step(NOW_NS), open(10));
}

#[test]
fn a_full_chunk_ends_before_the_tick_that_does_not_fit_and_the_next_one_begins_with_it() {
    let mut scan = LogScan::default();
    scan.want(wants(1, "a", 2, 1_000));
    scan.begin(EPOCH, 1);
    pass(&mut scan, 1..30, HISTORY_CHUNK_BYTES / 4);
    let [(1, end, first)] = &answers(&mut scan)[..] else { panic!("one answer") };
    assert_eq!((*end, &first[..]), (7, &[(2, 1), (4, 2), (6, 4)][..]));
    scan.want(wants(2, "a", *end, 1_000));
    let [(2, 13, next)] = &answers(&mut scan)[..] else { panic!("one answer, without the log") };
    assert_eq!(next[..], [(8, 6), (10, 8), (12, 10)]);
    // A tick longer than a chunk comes alone.
    scan.want(wants(3, "b", 31, 1_000));
    pass(&mut scan, 30..36, HISTORY_CHUNK_BYTES + 1);
    assert_eq!(answers(&mut scan), [(3, 32, vec![(31, 30)])]);
}

#[test]
fn a_long_pass_ends_if_others_wait_elsewhere_and_the_next_begins_with_the_oldest() {
    let mut scan = LogScan::default();
    scan.want(wants(1, "c", 1, 1_000_000));
    scan.begin(EPOCH, 1);
    scan.reached(1 + LOG_READ_PASS_MESSAGES, LOG_READ_PASS_MESSAGES);
    assert_eq!(scan.step(NOW_NS), ScanStep::Read, "nobody else waits");
    scan.want(wants(2, "c", 5_000_000, 5_000_010));
    scan.want(wants(3, "c", 500_000, 500_010));
    assert_eq!(scan.step(NOW_NS), open(5_000_000));
    assert_eq!(answers(&mut scan), [(1, 1 + LOG_READ_PASS_MESSAGES, vec![])], "it gets what there is");
    scan.begin(EPOCH, 5_000_000);
    scan.want(wants(4, "c", 1 + LOG_READ_PASS_MESSAGES, 1_000_000));
    scan.reached(5_000_010, 10);
    assert_eq!(answers(&mut scan), [(2, 5_000_010, vec![])]);
    assert_eq!(scan.step(NOW_NS), open(1 + LOG_READ_PASS_MESSAGES), "the lowest place again");
}

#[test]
fn places_that_the_log_no_longer_has_are_refused_and_what_was_read_before_a_hole_is_not() {
    let mut scan = LogScan::default();
    scan.want(wants(1, "a", 2, 40));
    scan.want(wants(2, "a", 20, 40));
    scan.want(LogRead { epoch: EPOCH + 1, ..wants(3, "a", 2, 40) });
    scan.refuse(EPOCH, 10);
    assert_eq!(answers(&mut scan), [(1, 0, vec![])]);
    assert_eq!(scan.step(NOW_NS), open(20));
    scan.begin(EPOCH, 20);
    pass(&mut scan, 20..24, 1);
    scan.end_pass();
    assert_eq!(answers(&mut scan), [(2, 24, vec![(20, 19), (22, 20)])]);
    assert_eq!(scan.step(NOW_NS), ScanStep::Open { epoch: EPOCH + 1, from: 2 });
}

#[test]
fn a_request_for_a_quiet_topic_is_answered_in_time_with_what_there_is() {
    let mut scan = LogScan::default();
    scan.want(LogRead { answer_by_ns: 5, ..wants(1, "c", 2, 1_000) });
    scan.begin(EPOCH, 2);
    assert_eq!(scan.step(5), ScanStep::Read, "nothing has been read yet");
    pass(&mut scan, 2..40, 1);
    assert_eq!((scan.step(4), answers(&mut scan)), (ScanStep::Read, vec![]));
    assert_eq!((scan.step(5), answers(&mut scan)), (ScanStep::Idle, vec![(1, 40, vec![])]));
    scan.want(LogRead { answer_by_ns: 9, ..wants(2, "c", 40, 1_000) });
    assert_eq!(scan.step(6), ScanStep::Read, "the pass goes on");
}

#[test]
fn what_nobody_waits_for_any_more_is_not_read() {
    let mut scan = LogScan::default();
    let (late, cancelled) = (LogRead { deadline_ns: 5, ..wants(1, "a", 2, 40) }, wants(2, "a", 3, 40));
    let cancellation = cancelled.cancellation.clone();
    scan.want(late);
    scan.want(cancelled);
    assert_eq!(scan.step(4), open(2));
    assert_eq!(scan.step(5), open(3));
    cancellation.cancel();
    assert_eq!((scan.step(5), answers(&mut scan)), (ScanStep::Idle, vec![]));
}

#[test]
fn memory_is_bounded_however_much_is_read_and_wanted() {
    let mut scan = LogScan::default();
    let mut ticket = 0;
    while scan.has_room() {
        ticket += 1;
        scan.want(wants(ticket, "a", 2, 1_000_000));
    }
    assert_eq!(ticket as usize, LOG_READS_ACTIVE_MAX);
    scan.begin(EPOCH, 1);
    let len = 64 << 10;
    for position in 1..400 {
        pass(&mut scan, position..position + 1, len);
        let chunks = scan.wants.values().flatten().map(|want| want.frames.len());
        assert!(chunks.max().unwrap_or(0) < len + 64 && scan.window_bytes <= LOG_READ_WINDOW_BYTES);
        answers(&mut scan);
    }
    assert!(scan.window.len() <= LOG_READ_WINDOW_BYTES / len && scan.wants.is_empty());
    // What the window has dropped is read again.
    scan.want(wants(0, "a", 2, 50));
    assert_eq!(scan.step(NOW_NS), open(2));
}
