//! What a panic of an engine's client does to the reader of a log.

use std::thread;

use super::*;
use crate::{
    common::Common,
    kind::{OptionChecks, SourceBounds},
    mapping::MapOptions,
    waits::{eventually, joined},
};
use tickcast_core::log_reads::{Cancellation, LogReadOutcome};
use tickcast_proto::ids::TopicId;

/// A log that has nothing any more, of which the first look panics.
#[derive(Clone, Default)]
struct Panics {
    has_panicked: bool,
}

impl LogAccess for Panics {
    async fn open(&mut self, _: u64, _: u64) -> Result<Opened, EngineError> {
        assert!(std::mem::replace(&mut self.has_panicked, true), "an answer that cannot be");
        Ok(LIFE_GONE)
    }

    async fn read(&mut self, _: &mut ReadMessages<'_>) -> Result<Option<u64>, EngineError> {
        Ok(None)
    }

    async fn close(&mut self) {}
}

#[test]
fn a_panic_of_a_client_is_a_failed_attempt() {
    let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
    let mapping = Mapping::new(&MapOptions::default(), &mut OptionChecks::new(bounds)).unwrap();
    let (lanes, mut shards) = LogReaderLanes::new(1, &[Arc::new(Doorbell::new(|| {}))]);
    let (status, stop) = (SourceStatus::new("jetstream", Common::named("a")), StopFlag::default());
    let of_thread = stop.clone();
    let mut reader = Reader::new(Panics::default(), mapping, RATE_DEFAULT);
    let reader = thread::spawn(move || reader.run(lanes, &status, &of_thread).unwrap());
    let read = LogRead {
        ticket: 3,
        topic: TopicId(7),
        name: "t".into(),
        epoch: 1 << 52,
        from: 5,
        until: 9,
        answer_by_ns: u64::MAX,
        deadline_ns: u64::MAX,
        cancellation: Cancellation::default(),
    };
    let shard = &mut shards[0];
    shard.reads_out.push(&mut VecDeque::from([read]));
    (shard.wake.0)();
    let mut chunk = None;
    eventually("the answer of the next attempt", || {
        chunk = shard.chunks_in.pop();
        chunk.is_some()
    });
    let chunk = chunk.unwrap();
    assert_eq!((chunk.ticket, chunk.outcome), (3, LogReadOutcome::Gone));
    stop.set();
    joined("the reader", reader);
}
