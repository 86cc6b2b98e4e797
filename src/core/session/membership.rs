//! What a session takes of one topic, and what it is behind with.

use std::collections::{HashMap, VecDeque};

use crate::home::Backfill;
use tickcast_proto::{
    ids::TopicId,
    subscription::{Policy, Position},
};

/// What a session gets of a topic just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Taking {
    /// Every tick as it comes.
    Live,
    /// Nothing until the socket has room: then the newest since `from`.
    Held,
    /// Nothing until its pace allows: then the newest since `from`.
    Paced,
    /// What it missed, from `from` on, in pieces from the topic's home.
    Recovering,
}

/// A topic this session takes: a slot in the session's map, and 4 bytes in the topic's list of members.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// Unless live: the first sequence that the session has not been given or told of.
    pub from: u64,
    /// With a pace: when the next tick may come, CLOCK_MONOTONIC nanoseconds.
    pub due_ns: u64,
    /// Dropped and not yet told: the first sequence, and the one after the last; equal when there are none.
    pub gap: (u64, u64),
    /// Where the session stands in the topic's list of members.
    pub position: u32,
    /// How many of the session's patterns match it: a tick comes once, whatever their number.
    pub references: u32,
    /// Ticks come at least this far apart; 0: as they come.
    pub interval_us: u32,
    /// What becomes of its ticks while the session is behind.
    pub policy: Policy,
    /// What it gets now.
    pub taking: Taking,
    /// While recovering: from where.
    pub wanted: Backfill,
    /// The session knows the topic's name.
    pub announced: bool,
}

impl Membership {
    /// Whether it stands in [`Lag::untold`].
    pub fn is_untold(&self) -> bool {
        !self.announced || self.gap.0 < self.gap.1
    }

    /// Ticks are lost to the session. Returns whether it is to be put into [`Lag::untold`] now.
    #[must_use]
    pub fn lose(&mut self, from: u64, to: u64) -> bool {
        let lists = !self.is_untold();
        self.gap = if self.gap.0 < self.gap.1 { (self.gap.0, to) } else { (from, to) };
        lists
    }

    /// Its announcement was taken out before it was sent. Returns whether it is to be put into [`Lag::untold`] now.
    #[must_use]
    pub fn forget_announcement(&mut self) -> bool {
        let lists = !self.is_untold();
        self.announced = false;
        lists
    }

    /// Whether only the newest tick survives when there is no room.
    pub fn conflates(&self) -> bool {
        self.policy == Policy::Conflate || self.interval_us > 0
    }

    /// Whether ticks may be taken out of the outbox again.
    pub fn yields(&self) -> bool {
        self.policy != Policy::Disconnect || self.interval_us > 0
    }
}

/// Takes a topic's number as it is: the server gives them out, so nobody can make them collide.
pub type TopicMap<V> = HashMap<TopicId, V, rustc_hash::FxBuildHasher>;

/// What only a session has that is behind, paced or coming back. Bound: its memberships, and
/// [`crate::limits::RESUME_POSITIONS_MAX`] places.
#[derive(Debug, Default)]
pub struct Lag {
    /// Topics held back, the longest first.
    pub held: VecDeque<TopicId>,
    /// Topics whose announcement or gap is to be told before any frame that waits.
    pub untold: Vec<TopicId>,
    /// Topics whose next piece of history is to be asked for.
    pub recovering: VecDeque<TopicId>,
    /// Pieces asked for.
    pub pieces_in_flight: u32,
    /// It stands in the shard's queue of sessions that ask for pieces.
    pub pull_queued: bool,
    /// Places that the client has named, by topic.
    pub places: HashMap<Box<str>, Position>,
    /// Bytes of their names.
    pub places_bytes: usize,
}

impl Lag {
    /// Whether there is nothing to keep it for.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
            && self.untold.is_empty()
            && self.recovering.is_empty()
            && self.places.is_empty()
            && self.pieces_in_flight == 0
            && !self.pull_queued
    }

    /// Notes a place.
    pub fn put_place(&mut self, topic: &str, position: Position) {
        if self.places.insert(topic.into(), position).is_none() {
            self.places_bytes += topic.len();
        }
    }

    /// Takes a place out.
    pub fn take_place(&mut self, topic: &str) -> Option<Position> {
        let place = self.places.remove(topic)?;
        self.places_bytes -= topic.len();
        Some(place)
    }

    /// Forgets topics that the session has left, once there are more of them than of others. A few steps a call in the
    /// long run.
    pub fn forget_strangers(&mut self, memberships: &TopicMap<Membership>) {
        let max = 2 * memberships.len() + 64;
        if self.held.len() > max {
            self.held.retain(|id| memberships.contains_key(id));
        }
        if self.untold.len() > max {
            self.untold.retain(|id| memberships.contains_key(id));
        }
        if self.recovering.len() > max {
            self.recovering.retain(|id| memberships.contains_key(id));
        }
    }

    /// Bytes it holds.
    pub fn memory_bytes(&self) -> usize {
        let topics = self.held.capacity() + self.untold.capacity() + self.recovering.capacity();
        let places: usize = self.places.keys().map(|name| name.len() + 48).sum();
        size_of::<Lag>() + topics * size_of::<TopicId>() + places
    }
}

const _: () = assert!(size_of::<Membership>() == 48, "PROTOCOL.md and README say what a subscription costs");
