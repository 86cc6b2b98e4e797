//! Decoding of 64 KiB of 100-byte ticks, the amount that one read of a busy socket returns.
//!
//! `frames` is the frame decoder alone, `session` a client session with every event polled. An iteration is one tick.

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use tickcast_client::{ConnectOptions, Connection, Event};
use tickcast_proto::{
    Step, WireFormat,
    frame::{self, FLAG_PAYLOAD_JSON, TickParts},
    ids::{Sequence, TopicId},
    reply::Reply,
};

use crate::{
    load,
    measure::{per_unit, timed},
};

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Longest frame accepted.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Offset of the sequence in a TICK frame: PROTOCOL.md.
const SEQUENCE_AT: usize = 16;
const TOPIC: TopicId = TopicId(1);

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let (bytes, frame_bytes) = read();
    let ticks = bytes.len() / frame_bytes;
    group.bench_function("frames", |bencher| {
        per_unit(bencher, ticks as u64, || {
            let mut decoded = 0;
            let ns = timed(|| {
                let mut rest = &bytes[..];
                while let Ok(Step::Complete(used, frame)) = frame::decode(rest, FRAME_BYTES_MAX) {
                    black_box(&frame);
                    decoded += 1;
                    rest = &rest[used..];
                }
            });
            assert_eq!(decoded, ticks, "every frame was decoded");
            ns
        });
    });
    session(&mut group, bytes, frame_bytes);
    group.finish();
}

/// The complete ticks of one read, and the length of each.
fn read() -> (Vec<u8>, usize) {
    let payload = load::payload();
    let parts = TickParts { flags: FLAG_PAYLOAD_JSON, payload: &payload, ..TickParts::default() };
    let mut one = Vec::new();
    frame::encode_tick(&mut one, TOPIC, Sequence(1), &parts);
    (one.repeat(READ_BYTES / one.len()), one.len())
}

fn session(group: &mut BenchmarkGroup<'_, WallTime>, mut bytes: Vec<u8>, frame_bytes: usize) {
    let mut session = Connection::new(&ConnectOptions::new(WireFormat::TCP_NATIVE));
    let mut greeting = Vec::new();
    let (frame_bytes_max, features) = (FRAME_BYTES_MAX, None);
    let welcome = Reply::Welcome { request: 1, epoch: 1, session: 1, frame_bytes_max, features };
    welcome.encode(WireFormat::TCP_NATIVE, &mut greeting);
    frame::encode_topic(&mut greeting, TOPIC, 1, "sim.1");
    session.handle_bytes(&greeting);
    let mut sequence = 0u64;
    group.bench_function("session", |bencher| {
        per_unit(bencher, (bytes.len() / frame_bytes) as u64, || {
            for frame in bytes.chunks_exact_mut(frame_bytes) {
                sequence += 1;
                frame[SEQUENCE_AT..SEQUENCE_AT + 8].copy_from_slice(&sequence.to_le_bytes());
            }
            let mut last = 0;
            let ns = timed(|| {
                session.handle_bytes(&bytes);
                while let Ok(Some(event)) = session.poll_event() {
                    if let Event::Tick(tick) = black_box(event) {
                        last = tick.sequence.0;
                    }
                }
            });
            assert_eq!(last, sequence, "every tick arrived");
            ns
        });
    });
}
