//! Egress log and outbox of a session.
//!
//! - `append`: one frame of 160 bytes into the log, either in a few warm pages, as when all sessions keep up, or wrapping
//!   around 16 MiB, as when one is behind. An iteration is one frame.
//! - `gather`: [`tickcast_core::session::table::Sessions::take_send`] of one SEND: a short range or a long one, both straight from the
//!   log, or 200 scattered frames, which are copied together. An iteration is one SEND, for the last case one frame.

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use tickcast::limits::{
    BEHIND_BYTES_DEFAULT, EGRESS_LOG_BYTES_DEFAULT, GATHER_BYTES, OUTBOX_BYTES_MAX_DEFAULT, SEND_BYTES_MAX,
    SEND_DIRECT_BYTES,
};
use tickcast_core::{
    egress_log::{EgressLog, FrameInfo, Range},
    ids::{SessionId, SlotId},
    session::{ListenerKind, NextSend, SendState, Session, table::Sessions},
};

use crate::measure::{per_unit, timed};

const FRAME: [u8; 160] = [7; 160];
/// Frames appended per measurement.
const FRAMES: u64 = 64;
/// Frames in one SEND, each a range of its own.
const SCATTERED: u64 = 200;
const _: () = assert!(SCATTERED as usize * FRAME.len() <= SEND_BYTES_MAX, "all of them fit into one SEND");
/// Sessions with the same outbox; a round is one SEND for each.
const SESSIONS: u32 = 64;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    let mut log = EgressLog::new(EGRESS_LOG_BYTES_DEFAULT);
    group.bench_function("warm", |bencher| {
        per_unit(bencher, FRAMES, || {
            log.rewind();
            timed(|| append(&mut log, FRAMES))
        });
    });
    group.bench_function("wrap 16 MiB", |bencher| {
        per_unit(bencher, FRAMES, || timed(|| append(&mut log, FRAMES)));
    });
    group.finish();

    let mut group = criterion.benchmark_group("gather");
    let short = |log: &mut EgressLog| ranges(log, 1, FRAME.len());
    gather(&mut group, "one range of 160 B", 1, &short);
    gather(&mut group, "one range of 16 KiB", 1, &|log| ranges(log, 1, SEND_DIRECT_BYTES));
    gather(&mut group, "per range of 200, 160 B", SCATTERED, &|log| ranges(log, SCATTERED, FRAME.len()));
    group.finish();
}

fn append(log: &mut EgressLog, frames: u64) {
    for sequence in 0..frames {
        black_box(log.append(FrameInfo { topic: 1, sequence }, black_box(&FRAME)));
    }
}

/// Ranges with a frame of another topic after each.
fn ranges(log: &mut EgressLog, count: u64, bytes: usize) -> Vec<Range> {
    let frame = vec![7; bytes];
    let one = |sequence| {
        let range = log.append(FrameInfo { topic: 1, sequence }, &frame);
        log.append(FrameInfo { topic: 2, sequence }, &FRAME);
        range
    };
    (0..count).filter_map(one).collect()
}

fn gather(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    units: u64,
    ranges: &dyn Fn(&mut EgressLog) -> Vec<Range>,
) {
    let mut log = EgressLog::new(EGRESS_LOG_BYTES_DEFAULT);
    let mut sessions = Sessions::new(OUTBOX_BYTES_MAX_DEFAULT, BEHIND_BYTES_DEFAULT);
    for slot in 0..SESSIONS {
        sessions.insert(SlotId(slot), Session::new(SessionId::new(0, SlotId(slot)), ListenerKind::Native));
    }
    let mut gather = Vec::with_capacity(GATHER_BYTES);
    group.bench_function(name, |bencher| {
        per_unit(bencher, units * u64::from(SESSIONS), || {
            log.rewind();
            let ranges = ranges(&mut log);
            for slot in 0..SESSIONS {
                if let Some(session) = sessions.any_mut(SlotId(slot)) {
                    session.send_state = SendState::Idle;
                }
                ranges.iter().for_each(|&range| sessions.push_range(SlotId(slot), &log, range));
            }
            let mut taken = 0;
            let ns = timed(|| {
                while let Some((_, _, next)) =
                    black_box(sessions.take_send::<false>(|_| Some(&log), &mut gather))
                {
                    gather.clear();
                    taken += u32::from(matches!(next, NextSend::Send(_)));
                }
            });
            assert_eq!((taken, sessions.waiting()), (SESSIONS, 0), "one SEND took all");
            ns
        });
    });
}
