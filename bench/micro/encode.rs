//! Encoding of one tick with 100 bytes of JSON into a warm buffer. An iteration is one tick.

use std::hint::black_box;

use criterion::Criterion;
use tickcast_proto::{
    codec::{MessageType, json},
    frame::{self, FLAG_PAYLOAD_JSON, TickParts},
    framing::websocket,
    ids::{Sequence, TopicId},
    records::TickTimes,
};

use crate::load;

pub fn bench(criterion: &mut Criterion) {
    let payload = load::payload();
    let times = TickTimes { producer_time_ns: 1_793_322_000_130_000_000, ingest_time_ns: 1 << 60 };
    let tick = TickParts { flags: FLAG_PAYLOAD_JSON, times, payload: &payload, ..TickParts::default() };
    let mut group = criterion.benchmark_group("encode");
    let mut out = Vec::new();
    group.bench_function("native", |bencher| {
        bencher.iter(|| {
            out.clear();
            frame::encode_tick(&mut out, TopicId(7), black_box(Sequence(1 << 20)), black_box(&tick));
            black_box(out.as_slice());
        });
    });
    // Like a shard: the home's frame behind a WebSocket header.
    let mut native = Vec::new();
    frame::encode_tick(&mut native, TopicId(7), Sequence(1 << 20), &tick);
    group.bench_function("websocket rkyv", |bencher| {
        bencher.iter(|| {
            out.clear();
            websocket::encode(&mut out, MessageType::Binary, black_box(&native));
            black_box(out.as_slice());
        });
    });
    let prefix = json::tick_prefix("sim.producer.7");
    let mut body = Vec::new();
    group.bench_function("websocket json", |bencher| {
        bencher.iter(|| {
            out.clear();
            body.clear();
            json::encode_tick(&mut body, &prefix, black_box(1 << 20), black_box(&tick));
            websocket::encode(&mut out, MessageType::Text, &body);
            black_box(out.as_slice());
        });
    });
    group.finish();
}
