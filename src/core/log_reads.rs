//! Reads of the logs that feed topics, for sessions whose places are older than the topics' histories.
//!
//! ```text
//!  shards -- LogRead ---> ring --> the log's reader: LogScan, one pass for all places that wait --> engine
//!         <- LogChunk --- ring <--    on a thread of its own                                    <--
//! ```
//!
//! Each source with positions has one reader, beside the thread that reads what is new. A shard has at most
//! [`LOG_READS_MAX`](crate::limits::LOG_READS_MAX) reads of a log under way, each until its deadline, which the shard keeps. The reader
//! takes at most [`LOG_READS_ACTIVE_MAX`](crate::limits::LOG_READS_ACTIVE_MAX) at once; the others wait in the rings and in the shards.

mod scan;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

pub use self::scan::{LogScan, LogTick, ScanStep};
use crate::mesh::{
    SinkWake,
    item_ring::{ItemConsumer, ItemProducer},
};
use tickcast_proto::ids::TopicId;

/// What shards know about the reader of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogReaderConfig {
    /// Number of the source that feeds topics from the log.
    pub source: u32,
    /// Maximum time from a request to its answer, nanoseconds.
    pub timeout_ns: u64,
}

/// Marks a request that nobody waits for any more. Clones share the mark.
#[derive(Clone, Debug, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// Sets the mark.
    pub fn cancel(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether it is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A request to the reader of a log: the ticks of one topic in `[from, until)`, as many as fit into a chunk.
#[derive(Clone, Debug)]
pub struct LogRead {
    /// Identifies the request to the shard that made it.
    pub ticket: u64,
    /// The topic's id, for the frames.
    pub topic: TopicId,
    /// The topic's name, without its tenant: all topics of a source belong to one.
    pub name: Box<str>,
    /// Epoch of the log's life.
    pub epoch: u64,
    /// The first position wanted.
    pub from: u64,
    /// The position after the last one wanted. The log had a message at `until - 1`, or a later one.
    pub until: u64,
    /// When the reader answers with what it has read so far, CLOCK_MONOTONIC nanoseconds: a quiet topic of a long log takes many answers.
    pub answer_by_ns: u64,
    /// When nobody waits for it any more.
    pub deadline_ns: u64,
    /// Set when nobody waits for it any more.
    pub cancellation: Cancellation,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogReadOutcome {
    /// Every tick of the topic from the first position wanted up to but excluding `end` is in the chunk.
    Read {
        /// At most `until`, and above `from`.
        end: u64,
    },
    /// The log may no longer have every message from the first position wanted on.
    Gone,
}

/// The answer of a log's reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// That of the request.
    pub ticket: u64,
    /// Whether ticks were read.
    pub outcome: LogReadOutcome,
    /// Number of ticks.
    pub ticks: u32,
    /// Whole TICK frames, about [`HISTORY_CHUNK_BYTES`](crate::limits::HISTORY_CHUNK_BYTES), more for a single longer tick.
    pub frames: Vec<u8>,
}

/// A shard's ends of the rings to and from the reader of a log.
#[derive(Debug)]
pub struct LogReaderLane {
    /// Number of the source.
    pub source: u32,
    /// Requests.
    pub reads_out: ItemProducer<LogRead>,
    /// Answers.
    pub chunks_in: ItemConsumer<LogChunk>,
    /// Wakes the reader's thread.
    pub wake: SinkWake,
}
