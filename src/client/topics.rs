//! The topics of a connection, and the sequence accounting of each.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::{CONNECTION_TOPICS_MAX, ProtocolError};
use tickcast_proto::{logged::is_log_epoch, pattern, subscription::Position};

/// Statistics of one topic on a connection.
///
/// Without interruptions and snapshots, `ticks + missed + conflated + gap` is the number of ticks from the first one received or
/// announced to the last. Snapshot ticks break the sum: the ticks they stand for are not counted. If a log feeds the topic, the
/// last three count what the server knows of, and at least one for each range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// The topic's name.
    pub name: Box<str>,
    /// Epoch of the topic's sequences.
    pub epoch: u64,
    /// Sequence of the first tick received; 0: none yet.
    pub first_sequence: u64,
    /// Sequence of the last tick received; 0: none yet.
    pub last_sequence: u64,
    /// Ticks received.
    pub ticks: u64,
    /// Ticks that were neither delivered nor announced as skipped; 0 unless the server has a bug.
    pub missed: u64,
    /// Ticks announced as conflated.
    pub conflated: u64,
    /// Ticks announced as lost.
    pub gap: u64,
}

/// Why a range of ticks is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SkipReason {
    /// A newer tick stands for them.
    Conflated,
    /// They are lost.
    Gap,
}

/// Whether the server or the connection reports that a resume position was recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announcer {
    /// The server: the position was sent to it, and it answers with RECOVERED.
    Server,
    /// The connection itself: the position was not sent. The ticks between it and the snapshot are skipped for this
    /// reason.
    Client(SkipReason),
    /// The connection itself: the server refused the subscription that had brought the position, and another one receives the topic
    /// from where it happens to start.
    Left,
}

/// A skipped range without an end yet: it ends before the next tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenRange {
    pub(super) reason: SkipReason,
    /// First sequence of the range.
    pub(super) from: u64,
}

/// The ticks missing before a tick in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advance {
    /// Ticks that were neither delivered nor announced.
    pub(super) missed: u64,
    /// A skipped range that ends before the tick and must be announced first.
    pub(super) skipped: Option<OpenRange>,
}

/// A topic's statistics, and what must come next in it.
///
/// Invariant: `open_range` starts at 1 or later. It exists only until the first tick that is not a snapshot.
#[derive(Debug, Default)]
struct Topic {
    stats: TopicStats,
    /// The next sequence, unless another one is announced; 0: any.
    next_sequence: u64,
    /// The position was not recovered, or the topic started over: the ticks between here and the snapshot are skipped.
    open_range: Option<OpenRange>,
    /// Ticks missed before an announcement; reported with the next tick.
    missed_pending: u64,
    /// The topic was not subscribed all the time: the next sequence may even be lower than the last.
    interrupted: bool,
    /// The server repeats ticks up to this sequence, which the client has had: see [`Announcer::Left`].
    repeated_to: u64,
}

impl Topic {
    fn new(name: &str, epoch: u64) -> Topic {
        Topic { stats: TopicStats { name: name.into(), epoch, ..TopicStats::default() }, ..Topic::default() }
    }

    /// Ticks in a range of sequences that is not empty: all of them, or at least one if a log feeds the topic.
    fn ticks_in(&self, from: u64, to: u64) -> u64 {
        if is_log_epoch(self.stats.epoch) { 1 } else { to.saturating_sub(from) }
    }

    /// Counts the next tick, before which the topic had none after `previous`; `None` when its sequence does not increase.
    #[inline]
    fn advance(&mut self, sequence: u64, previous: u64, snapshot: bool, is_lenient: bool) -> Option<Advance> {
        let lowest = match (self.next_sequence, self.open_range) {
            (0, Some(range)) if !snapshot => range.from,
            (0, None) if !snapshot && !self.interrupted => self.stats.last_sequence + 1,
            (0, _) => 1,
            (next, _) => next,
        };
        let lowest = if is_lenient { 1 } else { lowest };
        if sequence < lowest || sequence == u64::MAX {
            return None;
        }
        let mut missed = std::mem::take(&mut self.missed_pending);
        if self.next_sequence != 0 && !snapshot && previous >= self.next_sequence {
            missed += self.ticks_in(self.next_sequence, sequence);
        }
        let mut skipped = None;
        if let Some(range) = self.open_range {
            if (snapshot || self.next_sequence == 0) && sequence > range.from {
                skipped = Some(range);
                self.count_skipped(range.reason, self.ticks_in(range.from, sequence));
            }
            self.open_range = snapshot.then_some(OpenRange { from: range.from.max(sequence + 1), ..range });
        }
        if self.stats.first_sequence == 0 {
            self.stats.first_sequence = sequence;
        }
        self.interrupted = false;
        self.next_sequence = sequence + 1;
        self.stats.last_sequence = sequence;
        self.stats.ticks += 1;
        self.stats.missed = self.stats.missed.saturating_add(missed);
        self.invariants();
        Some(Advance { missed, skipped })
    }

    /// Counts an announced range `[from, to)` of `count` ticks. Returns the open range before it, if there is one; `None` when the
    /// range is empty or includes ticks that were received or announced before.
    fn skip(
        &mut self,
        reason: SkipReason,
        from: u64,
        to: u64,
        count: u64,
        is_lenient: bool,
    ) -> Option<Option<OpenRange>> {
        let lowest = match (self.next_sequence, self.open_range) {
            (0, Some(range)) => range.from,
            (0, None) if !self.interrupted => self.stats.last_sequence + 1,
            (0, None) => 1,
            (next, _) => next,
        };
        let lowest = if is_lenient { 1 } else { lowest };
        if from < lowest || from >= to {
            return None;
        }
        let before = self.open_range.take().filter(|range| self.next_sequence == 0 && from > range.from);
        if let Some(range) = before {
            self.count_skipped(range.reason, self.ticks_in(range.from, from));
        }
        // The positions of a log before the range may be of other topics: the next tick says whether one is missing.
        if self.next_sequence != 0 && !is_log_epoch(self.stats.epoch) {
            self.missed_pending = self.missed_pending.saturating_add(from.saturating_sub(self.next_sequence));
        }
        self.count_skipped(reason, count);
        self.next_sequence = to;
        self.interrupted = false;
        self.invariants();
        Some(before)
    }

    fn count_skipped(&mut self, reason: SkipReason, ticks: u64) {
        match reason {
            SkipReason::Conflated => self.stats.conflated = self.stats.conflated.saturating_add(ticks),
            SkipReason::Gap => self.stats.gap = self.stats.gap.saturating_add(ticks),
        }
    }

    /// Applies the result of a recovery, unless another subscription already delivers the topic.
    fn apply(&mut self, recovery: Recovery) {
        if self.next_sequence != 0 {
            return;
        }
        let Recovery { requested, epoch, sequence, recovered } = recovery;
        match (recovered, requested.epoch == epoch) {
            // The server's epoch may stand in for a topic's.
            (true, _) => self.next_sequence = requested.sequence.saturating_add(1),
            // A position ahead of the topic: the sequences beyond the topic's last either belonged to other ticks or
            // never existed.
            (false, true) => self.open_gap(requested.sequence.min(sequence)),
            (false, false) => self.open_gap(0),
        }
        self.invariants();
    }

    /// Marks the ticks after `sequence`, up to the snapshot, as lost.
    fn open_gap(&mut self, sequence: u64) {
        self.open_range = Some(OpenRange { reason: SkipReason::Gap, from: sequence.saturating_add(1) });
    }

    fn invariants(&self) {
        debug_assert!(self.open_range.is_none_or(|range| range.from >= 1), "sequences start at 1: {self:?}");
    }
}

/// The server's answer to a resume position (RECOVERED).
#[derive(Clone, Copy, Debug)]
struct Recovery {
    /// The position that was sent.
    requested: Position,
    epoch: u64,
    /// The topic's last sequence when the server looked it up.
    sequence: u64,
    recovered: bool,
}

/// Hashes topic numbers by one multiplication, which suffices for small, unique numbers. SipHash took most of a tick's time.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }
    fn write_u32(&mut self, id: u32) {
        // 2^64 divided by the golden ratio (Knuth, volume 3, section 6.4): consecutive ids differ in their high bits.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// All topics of one connection, by number and by name.
#[derive(Debug)]
pub(super) struct Topics {
    /// Whether sequences may go back: [`Session`](crate::Session) leaves their order to the server, like the other SDKs.
    is_lenient: bool,
    /// Index of each topic in `all`.
    index_by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    all: Vec<(u32, Topic)>,
    id_by_name: HashMap<Box<str>, u32>,
    /// Resume positions without an answer yet, by topic. Bound: [`CONNECTION_TOPICS_MAX`].
    positions: HashMap<Box<str>, (Position, Announcer)>,
    /// Resume positions for all topics of a pattern. Bound:
    /// [`RESUME_POSITIONS_MAX`](tickcast_proto::limits::RESUME_POSITIONS_MAX).
    pattern_positions: Vec<(Box<str>, Position)>,
    /// Answers about topics that are not announced yet. Bound: [`CONNECTION_TOPICS_MAX`].
    recoveries: HashMap<Box<str>, Recovery>,
}

impl Topics {
    pub(super) fn new() -> Topics {
        Topics {
            is_lenient: false,
            index_by_id: HashMap::default(),
            all: Vec::new(),
            id_by_name: HashMap::new(),
            positions: HashMap::new(),
            pattern_positions: Vec::new(),
            recoveries: HashMap::new(),
        }
    }

    /// The same, whose sequences may go back.
    pub(super) fn lenient() -> Topics {
        Topics { is_lenient: true, ..Topics::new() }
    }

    /// Adds the resume position of a topic. Positions beyond the bound are dropped: their topics count as new.
    pub(super) fn add_position(&mut self, name: &str, position: Position, announcer: Announcer) {
        if self.positions.len() < CONNECTION_TOPICS_MAX {
            self.positions.insert(name.into(), (position, announcer));
        }
    }

    /// Adds one resume position for all topics of a pattern.
    pub(super) fn add_pattern_position(&mut self, pattern: &str, position: Position) {
        self.pattern_positions.push((pattern.into(), position));
    }

    /// Number of patterns with a position.
    pub(super) fn pattern_positions(&self) -> usize {
        self.pattern_positions.len()
    }

    /// Handles a topic's announcement. A topic may be announced again; with a new epoch, and then most often a new number, it
    /// starts over. Returns the topic's resume position if the connection itself must report it as not recovered.
    pub(super) fn announce(
        &mut self,
        id: u32,
        name: &str,
        epoch: u64,
    ) -> Result<Option<Position>, ProtocolError> {
        let is_full = self.index_by_id.len() >= CONNECTION_TOPICS_MAX;
        match self.get_mut(id) {
            Some(topic) if *topic.stats.name != *name => {
                let (from, to) = (topic.stats.name.to_string(), name.to_owned());
                return Err(ProtocolError::TopicRenamed { topic_id: id, from, to });
            }
            Some(topic) if topic.stats.epoch == epoch => return Ok(None),
            Some(topic) => *topic = Topic::new(name, epoch),
            None => {
                let before = self.id_by_name.get(name).and_then(|known| self.index_by_id.remove(known));
                match before {
                    None if is_full => return Err(ProtocolError::TooManyTopics),
                    None => {
                        self.index_by_id.insert(id, self.all.len() as u32);
                        self.all.push((id, Topic::new(name, epoch)));
                    }
                    Some(index) => {
                        self.index_by_id.insert(id, index);
                        self.all[index as usize] = (id, Topic::new(name, epoch));
                    }
                }
                self.id_by_name.insert(name.into(), id);
            }
        }
        if self.positions.is_empty() && self.recoveries.is_empty() {
            return Ok(None);
        }
        let recovery = self.recoveries.remove(name);
        let position = match self.positions.get(name) {
            Some(&(position, announcer @ (Announcer::Client(_) | Announcer::Left))) => {
                self.positions.remove(name).map(|_| (position, announcer))
            }
            _ => None,
        };
        let Some(topic) = self.get_mut(id) else {
            debug_assert!(false, "topic {id} was found or inserted above");
            return Ok(None);
        };
        if let Some(recovery) = recovery {
            topic.apply(recovery);
        }
        let Some((position, announcer)) = position else { return Ok(None) };
        if position.epoch != epoch {
            return Ok(Some(position));
        }
        let reason = match announcer {
            Announcer::Client(reason) => reason,
            Announcer::Left | Announcer::Server => SkipReason::Gap,
        };
        topic.open_range = Some(OpenRange { reason, from: position.sequence.saturating_add(1) });
        if announcer == Announcer::Left {
            topic.repeated_to = position.sequence;
        }
        Ok((announcer == Announcer::Client(SkipReason::Gap)).then_some(position))
    }

    /// The sequence up to which the server repeats what the client has had; 0: it repeats nothing.
    pub(super) fn repeated_to(&self, id: u32) -> u64 {
        let topic = self.index_of(id).and_then(|index| self.all.get(index as usize));
        topic.map_or(0, |(_, topic)| topic.repeated_to)
    }

    /// Handles the server's answer to a resume position; returns the topic's number and that position. `id` is 0 for
    /// a topic that does not exist, `None` where the message carries no number (JSON).
    pub(super) fn recover(
        &mut self,
        id: Option<u32>,
        name: &str,
        epoch: u64,
        sequence: u64,
        recovered: bool,
    ) -> Result<(u32, Position), ProtocolError> {
        let requested = self.positions.remove(name).map(|(position, _)| position).or_else(|| {
            let mut positions = self.pattern_positions.iter();
            positions.find(|(pattern, _)| pattern::matches(pattern, name)).map(|&(_, position)| position)
        });
        let requested = requested.unwrap_or_default();
        let recovery = Recovery { requested, epoch, sequence, recovered };
        let known = id.or_else(|| self.id(name)).unwrap_or(0);
        if let Some(topic) = self.get_mut(known) {
            topic.apply(recovery);
        } else if id != Some(0) {
            if self.recoveries.len() >= CONNECTION_TOPICS_MAX {
                return Err(ProtocolError::TooManyTopics);
            }
            self.recoveries.insert(name.into(), recovery);
        }
        Ok((known, requested))
    }

    /// Fast path: counts a tick that is the next of its topic with nothing to announce before it, and returns the
    /// topic's index. `None`: call [`Topics::advance`] instead; nothing was counted.
    #[inline]
    pub(super) fn advance_in_order(&mut self, id: u32, sequence: u64, previous: u64) -> Option<u32> {
        let index = self.index_of(id)?;
        let (_, topic) = self.all.get_mut(index as usize)?;
        // 0 is not a sequence, and as `next_sequence` it stands for any. Sequences may leave numbers out, but no tick.
        let is_in_order = previous < topic.next_sequence
            && topic.next_sequence <= sequence
            && topic.stats.first_sequence != 0
            && topic.open_range.is_none()
            && topic.missed_pending == 0
            && sequence != u64::MAX;
        if !is_in_order {
            return None;
        }
        topic.interrupted = false;
        topic.next_sequence = sequence + 1;
        topic.stats.last_sequence = sequence;
        topic.stats.ticks += 1;
        Some(index)
    }

    /// Counts a tick, before which the topic had none after `preceding`; returns what precedes it.
    #[inline]
    pub(super) fn advance(
        &mut self,
        id: u32,
        sequence: u64,
        preceding: u64,
        snapshot: bool,
    ) -> Result<Advance, ProtocolError> {
        let is_lenient = self.is_lenient;
        let Some(topic) = self.get_mut(id) else {
            return Err(ProtocolError::UnknownTopic(id.to_string()));
        };
        let previous = topic.stats.last_sequence.max(topic.next_sequence.saturating_sub(1));
        topic.advance(sequence, preceding, snapshot, is_lenient).ok_or_else(|| ProtocolError::OutOfOrder {
            topic: topic.stats.name.to_string(),
            previous,
            sequence,
        })
    }

    /// Number of ticks in a range that the server has not announced itself.
    pub(super) fn ticks_in(&self, id: u32, from: u64, to: u64) -> u64 {
        let topic = self.index_of(id).and_then(|index| self.all.get(index as usize));
        topic.map_or(to.saturating_sub(from), |(_, topic)| topic.ticks_in(from, to))
    }

    /// Counts an announced range `[from, to)` of `count` ticks; returns the open range that must be announced before it.
    pub(super) fn skip(
        &mut self,
        id: u32,
        reason: SkipReason,
        from: u64,
        to: u64,
        count: u64,
    ) -> Result<Option<OpenRange>, ProtocolError> {
        let is_lenient = self.is_lenient;
        let Some(topic) = self.get_mut(id) else {
            return Err(ProtocolError::UnknownTopic(id.to_string()));
        };
        topic.skip(reason, from, to, count, is_lenient).ok_or_else(|| ProtocolError::BadRange {
            topic: topic.stats.name.to_string(),
            from,
            to,
        })
    }

    /// Marks every topic as interrupted: after an unsubscribe any of them may have paused, and only the server knows
    /// which.
    pub(super) fn interrupt(&mut self) {
        for (_, topic) in &mut self.all {
            (topic.next_sequence, topic.open_range, topic.missed_pending) = (0, None, 0);
            (topic.interrupted, topic.repeated_to) = (true, 0);
        }
    }

    /// Forgets a pattern's resume position.
    pub(super) fn remove_pattern_position(&mut self, pattern: &str) {
        self.pattern_positions.retain(|(known, _)| **known != *pattern);
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.id_by_name.get(name).copied()
    }

    #[inline]
    fn index_of(&self, id: u32) -> Option<u32> {
        self.index_by_id.get(&id).copied()
    }

    /// The topic at an index that [`Topics::advance_in_order`] returned.
    #[inline]
    pub(super) fn at(&self, index: u32) -> Option<&TopicStats> {
        self.all.get(index as usize).map(|(_, topic)| &topic.stats)
    }

    #[inline]
    fn get_mut(&mut self, id: u32) -> Option<&mut Topic> {
        let index = self.index_of(id)?;
        self.all.get_mut(index as usize).map(|(_, topic)| topic)
    }

    #[inline]
    pub(super) fn topic(&self, id: u32) -> Option<&TopicStats> {
        self.at(self.index_of(id)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &TopicStats)> {
        self.all.iter().map(|(id, topic)| (*id, &topic.stats))
    }
}

#[cfg(test)]
mod tests;
