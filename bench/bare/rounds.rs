//! Bytes of the rounds, shared by all sockets.
//!
//! They are patched before each round, but never while a SEND still needs them.

use tickcast_proto::{
    codec::MessageType,
    frame::{self, TickParts},
    framing::websocket,
    ids::{Sequence, TopicId},
    records::TickTimes,
};

use crate::options::Options;

/// Most bytes of rounds to keep for parked SENDs.
const ROUNDS_BYTES_MAX: usize = 64 << 20;
/// Offsets of the patched fields in a TICK frame: PROTOCOL.md.
const SEQUENCE_AT: usize = 16;
const TOPIC_AT: usize = 24;
const PRODUCER_TIME_AT: usize = 32;
const INGEST_TIME_AT: usize = 40;

/// Number of the `index`-th topic, counted from 0.
pub fn topic_id(index: u32) -> TopicId {
    TopicId(index + 1)
}

/// Name of the `index`-th topic.
pub fn topic_name(index: u32) -> String {
    format!("bare.{index}")
}

/// Bytes of one round.
///
/// Invariant: `bytes` is written only while `pins` is 0.
struct Round {
    /// Never freed: the kernel may read them until the process ends.
    bytes: &'static mut [u8],
    /// Parked SENDs that point into `bytes`.
    pins: u32,
}

/// All rounds: one is being sent, older ones wait in parked SENDs.
pub struct Rounds {
    rounds: Vec<Round>,
    current: usize,
    /// Offset of each tick's frame in a round.
    frames: Vec<usize>,
    topics: u32,
    /// Ticks sent so far, over all rounds.
    ticks: u64,
}

impl Rounds {
    /// Allocates a round per socket that may be full and one for the others.
    ///
    /// They take at most [`ROUNDS_BYTES_MAX`], except that there are always two. The memory is kept for the life of the process.
    pub fn new(options: &Options, sockets: usize) -> Rounds {
        let payload = vec![b'x'; options.size_bytes as usize];
        let mut bytes = Vec::new();
        let mut frames = Vec::with_capacity(options.ticks_per_send);
        for _ in 0..options.ticks_per_send {
            let mut tick = Vec::new();
            let parts = TickParts { times: TickTimes::default(), payload: &payload, ..TickParts::default() };
            frame::encode_tick(&mut tick, topic_id(0), Sequence(0), &parts);
            if options.websocket {
                websocket::encode_header(&mut bytes, MessageType::Binary, tick.len());
            }
            frames.push(bytes.len());
            bytes.extend_from_slice(&tick);
        }
        let kept = (ROUNDS_BYTES_MAX / bytes.len()).clamp(2, sockets + 2);
        let round = |_| Round { bytes: Box::leak(bytes.clone().into_boxed_slice()), pins: 0 };
        let rounds = (0..kept).map(round).collect();
        Rounds { rounds, current: 0, frames, topics: options.topics, ticks: 0 }
    }

    /// Begins the next round with this producer time; `None` while parked SENDs need every round.
    pub fn begin(&mut self, producer_time_ns: u64) -> Option<u32> {
        let count = self.rounds.len();
        // Reuse the current round if it is free: its bytes are in the cache.
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

    /// Bytes of a round that has begun.
    pub fn bytes(&self, round: u32) -> &[u8] {
        self.rounds[round as usize].bytes
    }

    /// Records that a parked SEND points into the round.
    pub fn pin(&mut self, round: u32) {
        self.rounds[round as usize].pins += 1;
    }

    /// Records that a parked SEND has completed.
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
    fn sequences_of_each_topic_count_from_one_over_all_rounds() {
        let options = Options::parse_from(["bare", "--topics", "2", "--ticks-per-send", "3"]);
        let mut rounds = Rounds::new(&options, 4);
        let first = rounds.begin(7).unwrap();
        assert_eq!(ticks(rounds.bytes(first)), [(1, 1, 7), (2, 1, 7), (1, 2, 7)]);
        let second = rounds.begin(8).unwrap();
        assert_eq!(ticks(rounds.bytes(second)), [(2, 2, 8), (1, 3, 8), (2, 3, 8)]);
    }

    #[test]
    fn bytes_of_a_parked_send_are_not_overwritten() {
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
