//! The bytes of the rounds: the same for every socket, patched before each round, never while a SEND still needs them.

use crate::options::Options;
use tickcast_proto::{
    frame::{self, TickParts},
    framing::websocket::{self, DataType},
    ids::{Sequence, TopicId},
    records::TickTimes,
};

/// Bytes of all rounds that are kept: what their parked SENDs point to.
const ROUNDS_BYTES_MAX: usize = 64 << 20;
/// Where a TICK frame has what changes: wire/PROTOCOL.md.
const SEQUENCE_AT: usize = 16;
const TOPIC_AT: usize = 24;
const PRODUCER_TIME_AT: usize = 32;
const INGEST_TIME_AT: usize = 40;

/// The number of the `index`-th topic, from 0.
pub fn topic_id(index: u32) -> TopicId {
    TopicId(index + 1)
}

/// The name of the `index`-th topic.
pub fn topic_name(index: u32) -> String {
    format!("bare.{index}")
}

/// One round's bytes.
///
/// Invariant: `bytes` is written only while `pins` is 0.
struct Round {
    /// Never freed: what the kernel may still read when this process ends is a page of it.
    bytes: &'static mut [u8],
    /// Parked SENDs that point into it.
    pins: u32,
}

/// The rounds, one of which is being sent while older ones wait in parked SENDs.
pub struct Rounds {
    rounds: Vec<Round>,
    current: usize,
    /// Where each tick's frame begins in a round.
    frames: Vec<usize>,
    topics: u32,
    /// Ticks of all rounds so far.
    ticks: u64,
}

impl Rounds {
    /// Rounds for so many sockets: one for each that may be full, one for the others, within [`ROUNDS_BYTES_MAX`]. That
    /// memory is kept for the life of the process.
    pub fn new(options: &Options, sockets: usize) -> Rounds {
        let payload = vec![b'x'; options.size];
        let mut bytes = Vec::new();
        let mut frames = Vec::with_capacity(options.ticks_per_send);
        for _ in 0..options.ticks_per_send {
            let mut tick = Vec::new();
            let parts = TickParts { times: TickTimes::default(), payload: &payload, ..TickParts::default() };
            frame::encode_tick(&mut tick, topic_id(0), Sequence(0), &parts);
            if options.websocket {
                websocket::encode_header(&mut bytes, DataType::Binary, tick.len());
            }
            frames.push(bytes.len());
            bytes.extend_from_slice(&tick);
        }
        let kept = (ROUNDS_BYTES_MAX / bytes.len()).clamp(2, sockets + 2);
        let round = |_| Round { bytes: Box::leak(bytes.clone().into_boxed_slice()), pins: 0 };
        let rounds = (0..kept).map(round).collect();
        Rounds { rounds, current: 0, frames, topics: options.topics, ticks: 0 }
    }

    /// Begins the next round, with this time on its ticks. `None` while parked SENDs need all there are.
    pub fn begin(&mut self, producer_time_ns: u64) -> Option<u32> {
        let count = self.rounds.len();
        // The same one again where nobody needs it: its bytes are in the cache.
        let free =
            (0..count).map(|step| (self.current + step) % count).find(|&at| self.rounds[at].pins == 0)?;
        self.current = free;
        let bytes = &mut *self.rounds[free].bytes;
        for &start in &self.frames {
            let topic = (self.ticks % u64::from(self.topics)) as u32;
            let sequence = self.ticks / u64::from(self.topics) + 1;
            let mut patch = |at: usize, value: &[u8]| {
                bytes[start + at..start + at + value.len()].copy_from_slice(value);
            };
            patch(SEQUENCE_AT, &sequence.to_le_bytes());
            patch(TOPIC_AT, &topic_id(topic).0.to_le_bytes());
            patch(PRODUCER_TIME_AT, &producer_time_ns.to_le_bytes());
            patch(INGEST_TIME_AT, &producer_time_ns.to_le_bytes());
            self.ticks += 1;
        }
        Some(free as u32)
    }

    /// The bytes of a round that has begun.
    pub fn bytes(&self, round: u32) -> &[u8] {
        self.rounds[round as usize].bytes
    }

    /// A SEND that points into the round goes on after this.
    pub fn pin(&mut self, round: u32) {
        self.rounds[round as usize].pins += 1;
    }

    /// It is over.
    pub fn unpin(&mut self, round: u32) {
        self.rounds[round as usize].pins -= 1;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tickcast_proto::Step;

    use super::*;

    /// Topic, sequence and time of each tick.
    fn ticks(mut bytes: &[u8]) -> Vec<(u32, u64, u64)> {
        let mut ticks = Vec::new();
        while let Step::Complete(used, frame) = frame::decode(bytes, 1 << 20).unwrap() {
            let times: TickTimes = frame.record().unwrap();
            ticks.push((frame.header.topic_id, frame.header.sequence, times.producer_time_ns));
            bytes = &bytes[used..];
        }
        assert!(bytes.is_empty());
        ticks
    }

    #[test]
    fn each_topic_is_counted_from_one_over_all_rounds() {
        let options = Options::parse_from(["bare", "--topics", "2", "--ticks-per-send", "3"]);
        let mut rounds = Rounds::new(&options, 4);
        let first = rounds.begin(7).unwrap();
        assert_eq!(ticks(rounds.bytes(first)), [(1, 1, 7), (2, 1, 7), (1, 2, 7)]);
        let second = rounds.begin(8).unwrap();
        assert_eq!(ticks(rounds.bytes(second)), [(2, 2, 8), (1, 3, 8), (2, 3, 8)]);
    }

    #[test]
    fn what_a_parked_send_needs_is_not_written() {
        let options = Options::parse_from(["bare"]);
        let mut rounds = Rounds::new(&options, 1);
        let mut pinned = Vec::new();
        while let Some(round) = rounds.begin(1) {
            rounds.pin(round);
            pinned.push(round);
        }
        assert_eq!(pinned, [0, 1, 2]);
        rounds.unpin(1);
        assert_eq!(rounds.begin(1), Some(1));
    }
}
