//! Hops between threads, with both ends on one thread, so that no cache line has to move.
//!
//! - `ring/one`, `ring/of 64`: a frame of 160 bytes through a ring, alone or in a batch. An iteration is one frame.
//! - `doorbell`: ringing the doorbell of a shard that is awake. An iteration is one ring.

use std::hint::black_box;

use criterion::Criterion;
use tickcast::limits::MESH_RING_BYTES_DEFAULT;
use tickcast_core::mesh::ring::{Doorbell, Stage, frame_ring};
use tickcast_proto::{
    frame::{self, TickParts},
    ids::{Sequence, TopicId},
};

use crate::{
    load,
    measure::{per_unit, timed},
};

/// Hops per measurement.
const HOPS: u64 = 64;

pub fn bench(criterion: &mut Criterion) {
    let mut tick = Vec::new();
    let payload = load::payload();
    let parts = TickParts { payload: &payload, ..TickParts::default() };
    frame::encode_tick(&mut tick, TopicId(7), Sequence(1), &parts);
    let mut group = criterion.benchmark_group("ring");
    for (name, batch) in [("one", 1), ("of 64", 64)] {
        let (mut producer, mut consumer) = frame_ring(MESH_RING_BYTES_DEFAULT);
        let mut stage = Stage::default();
        group.bench_function(name, |bencher| {
            per_unit(bencher, batch * HOPS, || {
                let mut frames = 0;
                let ns = timed(|| {
                    for _ in 0..HOPS {
                        (0..batch).for_each(|_| stage.tail().extend_from_slice(&tick));
                        producer.push(&mut stage);
                        consumer.drain(usize::MAX, |frame| {
                            black_box(frame);
                            frames += 1;
                            true
                        });
                    }
                });
                assert_eq!(frames, batch * HOPS, "every frame arrived");
                ns
            });
        });
    }
    group.finish();
    let bell = Doorbell::new(|| {});
    criterion.bench_function("doorbell", |bencher| bencher.iter(|| black_box(&bell).ring()));
}
