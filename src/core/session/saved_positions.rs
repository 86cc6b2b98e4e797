//! Positions that clients have given, kept until the session joins their topics.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::limits::{RESUME_BYTES_MAX, RESUME_POSITIONS_MAX};
use tickcast_proto::subscription::Position;

/// Bytes of a position in addition to its topic's name: an entry in a table that may be half empty, and two allocations.
const POSITION_BYTES: usize = 96;

/// The positions of one session, by the [key](crate::topic_key) of the topic. Their memory counts towards the shard's.
#[derive(Debug, Default)]
pub struct SavedPositions {
    by_topic: HashMap<Box<str>, Position>,
    /// Since when the client has received all ticks of other topics, CLOCK_MONOTONIC nanoseconds; 0: unknown. The next subscription
    /// takes it.
    pub since_ns: u64,
    names_bytes: usize,
    memory: PositionsMemory,
}

/// The memory used by the positions of all sessions of a shard.
#[derive(Clone, Debug, Default)]
pub struct PositionsMemory(Arc<AtomicUsize>);

impl PositionsMemory {
    /// Whether this many positions, with this many bytes of names, fit within a bound.
    pub fn has_room(&self, count: usize, names_bytes: usize, bytes_max: usize) -> bool {
        self.0.load(Relaxed) + bytes(count, names_bytes) <= bytes_max
    }

    /// Takes bytes, unless that would exceed a bound.
    pub(crate) fn take(&self, bytes: usize, bytes_max: usize) -> bool {
        let has_room = self.0.load(Relaxed) + bytes <= bytes_max;
        self.0.fetch_add(if has_room { bytes } else { 0 }, Relaxed);
        has_room
    }

    /// Gives bytes back.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

fn bytes(count: usize, names_bytes: usize) -> usize {
    names_bytes + count * POSITION_BYTES
}

impl SavedPositions {
    /// Creates an empty set, whose positions count towards this memory.
    pub fn new(memory: PositionsMemory) -> SavedPositions {
        SavedPositions { by_topic: HashMap::new(), since_ns: 0, names_bytes: 0, memory }
    }

    /// Whether this many more positions, with this many bytes of names, are within a session's bounds.
    pub fn has_room(&self, count: usize, names_bytes: usize) -> bool {
        self.by_topic.len() + count <= RESUME_POSITIONS_MAX
            && self.names_bytes + names_bytes <= RESUME_BYTES_MAX
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.by_topic.is_empty()
    }

    /// Makes room in the table for this many more positions. Returns `false` if there is no memory.
    pub fn try_reserve(&mut self, count: usize) -> bool {
        self.by_topic.try_reserve(count).is_ok()
    }

    /// Saves the position in a topic.
    pub fn insert(&mut self, topic: &str, position: Position) {
        if self.by_topic.insert(topic.into(), position).is_none() {
            self.names_bytes += topic.len();
            self.memory.0.fetch_add(bytes(1, topic.len()), Relaxed);
        }
    }

    /// Takes the position in a topic.
    pub fn take(&mut self, topic: &str) -> Option<Position> {
        let position = self.by_topic.remove(topic)?;
        self.give_back(topic);
        Some(position)
    }

    /// Takes the positions in the topics that `takes` selects.
    pub fn take_if(&mut self, mut takes: impl FnMut(&str) -> bool) -> Vec<(Box<str>, Position)> {
        let taken: Vec<_> = self.by_topic.extract_if(|topic, _| takes(topic)).collect();
        taken.iter().for_each(|(topic, _)| self.give_back(topic));
        taken
    }

    fn give_back(&mut self, topic: &str) {
        self.names_bytes -= topic.len();
        self.memory.0.fetch_sub(bytes(1, topic.len()), Relaxed);
        if self.by_topic.is_empty() {
            self.by_topic = HashMap::new();
        }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        bytes(self.by_topic.len(), self.names_bytes)
    }
}

impl Drop for SavedPositions {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.memory_bytes(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_give_their_memory_back_however_they_go() {
        let memory = PositionsMemory::default();
        let used = || memory.0.load(Relaxed);
        let mut saved = SavedPositions::new(memory.clone());
        let position = Position { epoch: 1, sequence: 2 };
        for topic in ["a", "b", "c.d", "a"] {
            saved.insert(topic, position);
        }
        assert_eq!(used(), bytes(3, 5));
        assert_eq!((saved.take("a"), saved.take("a")), (Some(position), None));
        assert_eq!(saved.take_if(|topic| topic == "c.d"), [("c.d".into(), position)]);
        assert_eq!(used(), bytes(1, 1));
        drop(saved);
        assert_eq!(used(), 0);
    }

    #[test]
    fn a_session_has_bounds_of_its_own() {
        let mut saved = SavedPositions::default();
        assert!(saved.has_room(RESUME_POSITIONS_MAX, RESUME_BYTES_MAX));
        saved.insert("a", Position { epoch: 1, sequence: 2 });
        assert!(!saved.has_room(RESUME_POSITIONS_MAX, 1) && !saved.has_room(1, RESUME_BYTES_MAX));
    }
}
