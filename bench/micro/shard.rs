//! The path of a tick through a shard whose sessions all subscribe to it.
//!
//! - `fanout`: from a home's encoded tick to ranges in the outboxes, eight ticks in a row. The first makes the sessions
//!   ready, the others extend their ranges. An iteration is one delivery: one tick to one session.
//! - `path`: from a source's PUBLISH to the bytes of a SEND, with one or eight ticks per turn and 100 sessions. An iteration
//!   is one delivery.

use criterion::{BenchmarkId, Criterion};
use tickcast_proto::{
    Step, WireFormat,
    frame::{self, FLAG_PAYLOAD_JSON, TickParts},
    ids::{Sequence, ShardId, TopicId},
    records::TickTimes,
};

use crate::{
    load::{self, Load},
    measure::{per_unit, timed},
};

/// Ticks between two turns.
const TICKS: u64 = 8;
/// Sessions of `path`.
const SESSIONS: u32 = 100;
/// Topics of `path`.
const TOPICS: usize = 50;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fanout");
    for sessions in [1, 100, 10_000] {
        let mut load = Load::new(WireFormat::TCP_NATIVE, sessions, 1);
        // The topic's home has sequenced one tick.
        let mut sequence = 1;
        group.bench_function(BenchmarkId::from_parameter(sessions), |bencher| {
            per_unit(bencher, TICKS * u64::from(sessions), || {
                let ticks: Vec<_> = (1..=TICKS).map(|next| tick(sequence + next)).collect();
                sequence += TICKS;
                let ns = timed(|| ticks.iter().for_each(|tick| deliver(&mut load, tick)));
                let sent = load.turn();
                assert_eq!(sent.sends, u64::from(sessions), "every session got one SEND");
                ns
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("path");
    for (encoding, name) in [
        (WireFormat::TCP_NATIVE, "native"),
        (WireFormat::WEBSOCKET_NATIVE, "rkyv"),
        (WireFormat::WEBSOCKET_JSON, "json"),
    ] {
        let mut load = Load::new(encoding, SESSIONS, TOPICS);
        for ticks in [1, TICKS] {
            group.bench_function(BenchmarkId::new(name, format!("{ticks} per turn")), |bencher| {
                per_unit(bencher, ticks * u64::from(SESSIONS), || {
                    timed(|| {
                        (0..ticks).for_each(|_| load.publish());
                        load.turn();
                    })
                });
            });
        }
    }
    group.finish();
}

/// Delivers a tick that another home has sequenced and encoded: it is only appended and queued.
fn deliver(load: &mut Load, tick: &[u8]) {
    if let Ok(Step::Complete(_, frame)) = frame::decode(tick, usize::MAX) {
        load.shard.handle_delivery(&frame, load.now);
    }
}

/// An encoded tick of the only topic.
fn tick(sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let topic = TopicId::new(0, ShardId(0), 1).unwrap_or(TopicId(0));
    let (times, payload) = (TickTimes::default(), load::payload());
    let tick = TickParts { flags: FLAG_PAYLOAD_JSON, times, payload: &payload, ..TickParts::default() };
    frame::encode_tick(&mut bytes, topic, Sequence(sequence), &tick);
    bytes
}
