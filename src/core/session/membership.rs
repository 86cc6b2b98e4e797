//! A session's membership in a topic, and its lag.

use std::collections::{HashMap, VecDeque};

use super::{Yielding, memberships::Memberships, saved_positions::SavedPositions};
use crate::home::Backfill;
use tickcast_proto::{
    ids::{Sequence, TopicId},
    records::History,
    subscription::{Policy, Position},
};

/// What a session currently receives from a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Taking {
    /// Every tick as it arrives.
    Live,
    /// Nothing until the socket has room; then the last tick since `from`.
    Held,
    /// Nothing until the rate limit allows it; then the last tick since `from`.
    Paced,
    /// The ticks it has missed since `from`, in chunks from the topic's home.
    Recovering,
    /// Nothing until the topic, which is fed by a log, reaches `from`: the session comes from a node that had read further in the
    /// log.
    Ahead,
}

/// Sequences of a topic from `from` up to but excluding `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first sequence.
    pub from: Sequence,
    /// The sequence after the last.
    pub to: Sequence,
}

impl Gap {
    /// The empty gap.
    pub const NONE: Gap = Gap { from: Sequence(0), to: Sequence(0) };

    /// Whether it contains no sequence.
    pub fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

/// A session's membership in a topic. 48 bytes and the topic's id in the session's [`Memberships`], and 4 bytes in the topic's
/// member list.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// Unless live: the first sequence that has neither been delivered nor announced as skipped.
    pub from: u64,
    /// If paced: when the next tick may be delivered, CLOCK_MONOTONIC nanoseconds.
    pub due_ns: u64,
    /// Ticks dropped but not yet announced.
    pub gap: Gap,
    /// The session's index in the topic's member list.
    pub position: u32,
    /// Minimum time between two ticks, in microseconds; 0: no limit.
    pub interval_us: u32,
    /// What happens to its ticks while the session is behind.
    pub policy: Policy,
    /// What it currently receives.
    pub taking: Taking,
    /// While recovering: the part of the past that it requests.
    pub wanted: Backfill,
    /// Whether the topic has been announced to the session.
    pub announced: bool,
    /// Whether wildcard groups serve all of the session's patterns that match the topic. Once live, it then needs no membership.
    pub is_shared: bool,
}

impl Membership {
    /// Whether its announcement or gap has yet to be sent. If so, it is listed in [`Lag::unannounced`].
    pub fn is_unannounced(&self) -> bool {
        !self.announced || !self.gap.is_empty()
    }

    /// Adds lost ticks to its gap. Returns whether the caller must list it in [`Lag::unannounced`].
    #[must_use]
    pub fn lose(&mut self, lost: Gap) -> bool {
        let must_list = !self.is_unannounced();
        let from = if self.gap.is_empty() { lost.from } else { self.gap.from };
        self.gap = Gap { from, to: lost.to };
        must_list
    }

    /// Records that its announcement was evicted. Returns whether the caller must list it in [`Lag::unannounced`].
    #[must_use]
    pub fn forget_announcement(&mut self) -> bool {
        let must_list = !self.is_unannounced();
        self.announced = false;
        must_list
    }

    /// Whether only the last tick is kept when there is no room.
    pub fn conflates(&self) -> bool {
        self.policy == Policy::Conflate || self.interval_us > 0
    }

    /// While recovering: whether it has requested this chunk of history. If not, the chunk was requested before the session left the
    /// topic and joined it again.
    pub fn requested(&self, chunk: &History) -> bool {
        self.taking == Taking::Recovering && (self.from, self.wanted as u32) == (chunk.from, chunk.wanted)
    }

    /// Its contribution to the session's counts.
    pub(super) fn yielding(&self) -> Yielding {
        Yielding {
            memberships: self.yields().into(),
            conflating: self.conflates().into(),
            keeping: (!self.yields()).into(),
        }
    }

    /// Whether its ticks may be evicted from the outbox.
    pub fn yields(&self) -> bool {
        matches!(self.policy, Policy::Conflate | Policy::Drop) || self.interval_us > 0
    }

    /// Whether its ticks may be evicted from the outbox if the server is overloaded.
    pub fn yields_to_overload(&self) -> bool {
        self.yields() || self.policy == Policy::Keep
    }
}

/// A map by topic. The hash may be weak, because the server assigns the ids: no client can make them collide.
pub type TopicMap<V> = HashMap<TopicId, V, rustc_hash::FxBuildHasher>;

/// State of a session that is behind, paced or recovering. Bound: its memberships, and
/// [`crate::limits::RESUME_POSITIONS_MAX`] positions.
#[derive(Debug, Default)]
pub struct Lag {
    /// Topics held back, the one held longest first.
    pub held: VecDeque<TopicId>,
    /// Topics whose announcement or gap must be sent before any queued frame.
    pub unannounced: Vec<TopicId>,
    /// Topics whose next chunk of history has yet to be requested.
    pub recovering: VecDeque<TopicId>,
    /// Chunks requested but not yet received.
    pub chunks_in_flight: u32,
    /// Whether the session is in the shard's queue of sessions that request chunks.
    pub pull_queued: bool,
    /// By topic that recovers from the log that feeds it: the last sequence that the client has, or knows to be lost. Entries of topics
    /// that the session has left do no harm.
    pub from_log: Vec<(TopicId, u64)>,
    /// Positions given by the client.
    pub saved_positions: Option<Box<SavedPositions>>,
}

impl Lag {
    /// Whether it holds nothing and can be dropped.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
            && self.unannounced.is_empty()
            && self.recovering.is_empty()
            && self.saved_positions.as_deref().is_none_or(SavedPositions::is_empty)
            && self.chunks_in_flight == 0
            && !self.pull_queued
    }

    /// Takes the saved position in a topic.
    pub fn take_position(&mut self, topic: &str) -> Option<Position> {
        self.saved_positions.as_deref_mut()?.take(topic)
    }

    /// In a topic that recovers from its log: the last sequence that the client has, or knows to be lost. O(such topics).
    pub fn last_from_log(&mut self, id: TopicId) -> Option<&mut u64> {
        self.from_log.iter_mut().find(|(topic, _)| *topic == id).map(|(_, last)| last)
    }

    /// Drops topics that the session has left, once they outnumber the others. Amortized O(1).
    pub fn forget_left_topics(&mut self, memberships: &Memberships) {
        let max = 2 * memberships.len() + 64;
        if self.held.len() > max {
            self.held.retain(|&id| memberships.contains(id));
        }
        if self.unannounced.len() > max {
            self.unannounced.retain(|&id| memberships.contains(id));
        }
        if self.recovering.len() > max {
            self.recovering.retain(|&id| memberships.contains(id));
        }
        if self.from_log.len() > max {
            self.from_log.retain(|&(id, _)| memberships.contains(id));
        }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let topics = self.held.capacity() + self.unannounced.capacity() + self.recovering.capacity();
        let saved_positions = self.saved_positions.as_deref().map_or(0, SavedPositions::memory_bytes);
        let from_log = self.from_log.capacity() * size_of::<(TopicId, u64)>();
        size_of::<Lag>() + topics * size_of::<TopicId>() + from_log + saved_positions
    }
}

const _: () = assert!(size_of::<Membership>() == 48, "PROTOCOL.md and README say what a subscription costs");
