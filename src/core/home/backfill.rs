//! Chunks of a topic's past, for sessions that recover what they missed or begin with the last values.

use super::{Home, HomeTopic, history::FirstSince};
use crate::limits::HISTORY_CHUNK_BYTES;
use tickcast_proto::{
    Step,
    frame::{self, FLAG_SNAPSHOT},
    ids::TopicId,
};

/// The part of a topic's past that a session requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Backfill {
    /// The last value of each key.
    LastValues = 0,
    /// Every tick still kept from a sequence on; earlier ones are announced as a gap.
    Retained = 1,
    /// Every tick from a sequence on, or the last values if some are gone; RECOVERED says which.
    Position = 2,
    /// Every tick still kept, with RECOVERED 0: the session's position belongs to another epoch, so all of this life is new to it.
    PositionLost = 3,
    /// The last value of each key from a sequence on: for a session that fell behind.
    Conflated = 4,
    /// Like `Position` if this is the topic's first life since the server started, otherwise like `PositionLost`. The position
    /// carries the server's epoch, the only one that clients of version 0.1 may know.
    ServerPosition = 5,
    /// Like `Position`, but ticks that are no longer kept are not read from the log: that was tried, or is not possible now.
    PositionKept = 6,
    /// Like `Retained`, but ticks that are no longer kept are read from the log that feeds the topic, if it has a reader.
    Logged = 7,
    /// Every tick from a time on, in place of a sequence: for a session that was connected then, and has no tick of the topic. If the
    /// home cannot tell which ticks those are, every tick still kept; earlier ones are announced as a gap.
    Since = 8,
}

impl Backfill {
    /// Converts from the number that the mesh carries.
    pub fn from_wire(number: u32) -> Option<Backfill> {
        use Backfill::*;
        [LastValues, Retained, Position, PositionLost, Conflated, ServerPosition, PositionKept, Logged, Since]
            .into_iter()
            .find(|known| *known as u32 == number)
    }

    /// Whether a position was given that has not been answered.
    pub fn is_position(self) -> bool {
        use Backfill::*;
        matches!(self, Position | PositionLost | ServerPosition | PositionKept)
    }

    /// What to request after a read of the log that has failed.
    pub fn without_log(self) -> Backfill {
        if self.is_position() { Backfill::PositionKept } else { Backfill::Retained }
    }
}

/// Flag: the last chunk; ticks after it are live.
pub const CHUNK_LAST: u32 = 1;
/// Flag: the position was found; everything after it follows.
pub const CHUNK_RECOVERED: u32 = 2;
/// Flag: the position was not found; the last values follow.
pub const CHUNK_NOT_RECOVERED: u32 = 4;
/// Flag: the last values would follow, but were evicted.
pub const CHUNK_VALUES_LOST: u32 = 8;
/// Flag: the position was not found because its epoch has passed; everything still kept follows.
pub const CHUNK_EPOCH_PASSED: u32 = 16;
/// Flag: the position is ahead of the topic, which a log feeds: this node has not read that far yet.
pub const CHUNK_AHEAD: u32 = 32;

/// Flag: nothing follows, because the first ticks wanted are no longer kept, but the log that feeds the topic may have them. The payload
/// is the number of its source, little-endian.
pub const CHUNK_IN_LOG: u32 = 64;

/// Ticks that a home no longer keeps, and that the log that feeds the topic may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InLog {
    /// Number of the source that reads the log.
    pub source: u32,
    /// The topic's last sequence.
    pub last: u64,
    /// The first sequence that the home keeps.
    pub until: u64,
}

/// In [`Backfill::Since`], a time that this server cannot tell: before its start, or by a clock that is ahead of its own.
pub const SINCE_UNKNOWN_NS: u64 = 1;

/// Describes one chunk of a topic's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryChunk {
    /// The topic's last sequence.
    pub last: u64,
    /// The first sequence still kept; earlier ones are lost.
    pub start: u64,
    /// `CHUNK_*`.
    pub flags: u32,
}

/// Offset of the flags in a frame header.
const FLAGS_OFFSET: usize = 7;

impl Home {
    /// The ticks from a sequence on that are no longer kept, if a log feeds the topic and this part of the past includes them. `None`
    /// for a session that has no tick yet, because it has lost nothing, and for topics without a history, because a session that
    /// has read the log could not go live.
    pub fn in_log(&mut self, id: TopicId, backfill: Backfill, from: u64, now_ns: u64) -> Option<InLog> {
        let includes_log = match backfill {
            Backfill::Position => from > 1,
            Backfill::Logged => true,
            _ => false,
        };
        let at = self.index_of(id).filter(|_| includes_log)?;
        let topic = self.topics.get_mut(at).filter(|topic| topic.id == id)?;
        let (source, last, bounds) = (topic.fed_by?, topic.sequence.0, topic.bounds);
        if from > last || bounds.ticks == 0 || bounds.bytes == 0 {
            return None;
        }
        let until = topic.kept_from(now_ns).0.unwrap_or(last + 1);
        (from < until).then_some(InLog { source, last, until })
    }

    /// Appends one chunk of a topic's past, about [`HISTORY_CHUNK_BYTES`] of whole frames from a sequence on, and
    /// describes it. O(chunk).
    pub fn history_chunk(
        &mut self,
        id: TopicId,
        backfill: Backfill,
        from: u64,
        now_ns: u64,
        out: &mut Vec<u8>,
    ) -> HistoryChunk {
        let at = self.index_of(id).unwrap_or(usize::MAX);
        let Some(topic) = self.topics.get_mut(at).filter(|topic| topic.id == id) else {
            return HistoryChunk { last: 0, start: from, flags: CHUNK_LAST };
        };
        let last = topic.sequence.0;
        let (oldest, kept_from) = topic.kept_from(now_ns);
        let reaches_back = from > last || oldest.is_some_and(|oldest| oldest <= from);
        let has_lapsed = self.lapses.has(topic.upstream);
        let snapshot = backfill != Backfill::Conflated;
        let (mut start, mut flags, mut snapshot_from) = (from, 0, None);
        let backfill = match backfill {
            Backfill::ServerPosition if topic.is_first_life => Backfill::Position,
            Backfill::ServerPosition => Backfill::PositionLost,
            Backfill::PositionKept => Backfill::Position,
            // The topic's life is about to end.
            Backfill::Since if has_lapsed => Backfill::PositionLost,
            Backfill::Logged => Backfill::Retained,
            other => other,
        };
        match backfill {
            Backfill::ServerPosition | Backfill::PositionKept | Backfill::Logged => {
                debug_assert!(false, "resolved above");
            }
            Backfill::LastValues => snapshot_from = Some(from),
            // Evicted values are lost, not replaced by later ones.
            Backfill::Conflated => (start, snapshot_from) = (topic.last_values.intact_from(from), Some(from)),
            Backfill::PositionLost => {
                (flags, start) = (CHUNK_NOT_RECOVERED | CHUNK_EPOCH_PASSED, kept_from.max(1));
            }
            // The topic's life is about to end.
            Backfill::Position if has_lapsed => (flags, snapshot_from) = (CHUNK_NOT_RECOVERED, Some(from)),
            // Another node reading the same log was ahead of this one.
            Backfill::Position if from > last + 1 && topic.is_logged() => {
                flags = CHUNK_RECOVERED | CHUNK_AHEAD;
            }
            Backfill::Position if from > last + 1 => (flags, snapshot_from) = (CHUNK_NOT_RECOVERED, Some(1)),
            // A client without any tick has no position to lose: a gap announces what is no longer kept.
            Backfill::Position if !reaches_back && from == 1 => {
                (flags, start) = (CHUNK_RECOVERED, kept_from);
            }
            Backfill::Position if !reaches_back => (flags, snapshot_from) = (CHUNK_NOT_RECOVERED, Some(from)),
            Backfill::Position => flags = CHUNK_RECOVERED,
            Backfill::Since => match topic.history.since_time(from).filter(|_| from != SINCE_UNKNOWN_NS) {
                Some(FirstSince::Tick(sequence)) => start = sequence,
                Some(FirstSince::None) => start = last + 1,
                // A gap says so, or if there is no sequence before those kept, that this is another life.
                None => {
                    let lost = if kept_from <= 1 { CHUNK_NOT_RECOVERED } else { 0 };
                    (flags, start) = (CHUNK_EPOCH_PASSED | lost, kept_from.max(1));
                }
            },
            Backfill::Retained if !reaches_back => start = kept_from,
            Backfill::Retained => {}
        }
        let mut done = true;
        let mut take = |frame: &[u8], snapshot: bool| {
            done = out.is_empty() || out.len() + frame.len() <= HISTORY_CHUNK_BYTES;
            if done {
                let at = out.len() + FLAGS_OFFSET;
                out.extend_from_slice(frame);
                out[at] |= if snapshot { FLAG_SNAPSHOT } else { 0 };
            }
            done
        };
        if snapshot && snapshot_from.is_some() && last > 0 && topic.last_values.last_frame().is_empty() {
            flags |= CHUNK_VALUES_LOST;
        } else if let Some(from) = snapshot_from {
            let _ = topic.last_values.since(from).all(|(_, frame)| take(frame, snapshot));
        } else if oldest.is_some() {
            let _ = topic.history.since(start).all(|(_, frame)| take(frame, false));
        } else if start <= last && topic.last_values.last_frame().is_empty() {
            start = last + 1;
        } else if start <= last {
            take(topic.last_values.last_frame(), false);
        }
        flags |= if done { CHUNK_LAST } else { 0 };
        HistoryChunk { last, start, flags }
    }
}

impl HomeTopic {
    /// The first sequence that the history covers, if it has a tick, and the first that anything kept covers: without a
    /// history, only the last tick is kept.
    pub(super) fn kept_from(&mut self, now_ns: u64) -> (Option<u64>, u64) {
        let oldest = self.history.oldest(self.bounds, now_ns).map(first_covered);
        let of_last_tick = || match self.last_values.last_frame() {
            [] => self.sequence.0 + 1,
            tick => first_covered(tick),
        };
        (oldest, oldest.unwrap_or_else(of_last_tick))
    }
}

/// The first sequence covered by a kept tick and those after it: the next one after the preceding tick.
fn first_covered(tick: &[u8]) -> u64 {
    match frame::decode(tick, usize::MAX) {
        Ok(Step::Complete(_, tick)) => tick.previous() + 1,
        _ => {
            debug_assert!(false, "a home keeps whole frames");
            0
        }
    }
}
