//! The topics a session knows, and what it has seen of each.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::{SESSION_TOPICS_MAX, SessionError};
use tickcast_proto::{pattern, subscription::Position};

/// What a session has seen of one topic.
///
/// Of a subscription without an interruption `ticks + missed + conflated + gap` is the number of sequences from the
/// first one seen or told of to the last, snapshots aside: those leave out what they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicStats {
    /// The topic's name.
    pub name: Box<str>,
    /// The life of the sequencer that counts it.
    pub epoch: u64,
    /// Sequence of the first tick seen; 0: none yet.
    pub first_sequence: u64,
    /// Sequence of the last tick seen; 0: none yet.
    pub last_sequence: u64,
    /// Ticks seen.
    pub ticks: u64,
    /// Ticks that neither came nor were announced as left out: with a server that keeps its word, none.
    pub missed: u64,
    /// Ticks that the server said a newer one stands for.
    pub conflated: u64,
    /// Ticks that are announced as lost.
    pub gap: u64,
}

/// Why ticks do not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    /// A newer one stands for them.
    Conflated,
    /// They are lost.
    Gap,
}

/// Who tells what became of a place that the client has from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Teller {
    /// The server was asked and answers with RECOVERED.
    Server,
    /// The server was not asked: ticks after the place, up to the snapshot, are left out for this reason.
    Client(Skip),
}

/// What a session says by itself when a topic is announced whose place the server was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unrecovered {
    pub(super) place: Position,
}

/// What the next tick of a topic brings besides itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advanced {
    pub(super) missed: u64,
    /// Told before it: the ticks from here to before it do not come.
    pub(super) left_out: Option<(Skip, u64)>,
}

/// A topic and what is expected of it.
///
/// Invariant: `hole` begins at 1 or later, and is only there until the first tick that is no snapshot.
#[derive(Debug, Default)]
struct Topic {
    stats: TopicStats,
    /// The next sequence, unless another is announced; 0: any.
    expected: u64,
    /// Not recovered, or begun anew: what lies between here and the ticks of the snapshot is left out.
    hole: Option<(Skip, u64)>,
    /// Ticks missed before an announcement, to be told with the next tick.
    missed_before: u64,
    /// The session was not subscribed throughout: the sequence may even go back.
    interrupted: bool,
}

impl Topic {
    fn new(name: &str, epoch: u64) -> Topic {
        Topic { stats: TopicStats { name: name.into(), epoch, ..TopicStats::default() }, ..Topic::default() }
    }

    /// Takes the next tick; `None` when the sequence does not increase.
    #[inline]
    fn advance(&mut self, sequence: u64, snapshot: bool) -> Option<Advanced> {
        let lowest = match (self.expected, self.hole) {
            (0, Some((_, from))) if !snapshot => from,
            (0, None) if !snapshot && !self.interrupted => self.stats.last_sequence + 1,
            (0, _) => 1,
            (expected, _) => expected,
        };
        if sequence < lowest || sequence == u64::MAX {
            return None;
        }
        let mut missed = std::mem::take(&mut self.missed_before);
        if self.expected != 0 && !snapshot {
            missed += sequence - self.expected;
        }
        let mut left_out = None;
        if let Some((skip, from)) = self.hole {
            if (snapshot || self.expected == 0) && sequence > from {
                left_out = Some((skip, from));
                self.count(skip, sequence - from);
            }
            self.hole = snapshot.then_some((skip, from.max(sequence + 1)));
        }
        if self.stats.first_sequence == 0 {
            self.stats.first_sequence = sequence;
        }
        self.interrupted = false;
        self.expected = sequence + 1;
        self.stats.last_sequence = sequence;
        self.stats.ticks += 1;
        self.stats.missed += missed;
        Some(Advanced { missed, left_out })
    }

    /// Takes an announcement that the ticks `[from, to)` do not come. Gives where a hole before it begins; `None`
    /// when it speaks of ticks that came, or of none.
    fn skip(&mut self, skip: Skip, from: u64, to: u64) -> Option<Option<(Skip, u64)>> {
        let lowest = match (self.expected, self.hole) {
            (0, Some((_, from))) => from,
            (0, None) if !self.interrupted => self.stats.last_sequence + 1,
            (0, None) => 1,
            (expected, _) => expected,
        };
        if from < lowest || from >= to {
            return None;
        }
        let hole = self.hole.take().filter(|(_, begin)| self.expected == 0 && from > *begin);
        if let Some((skip, begin)) = hole {
            self.count(skip, from - begin);
        }
        if self.expected != 0 {
            self.missed_before += from - self.expected;
        }
        self.count(skip, to - from);
        self.expected = to;
        self.interrupted = false;
        Some(hole)
    }

    fn count(&mut self, skip: Skip, ticks: u64) {
        match skip {
            Skip::Conflated => self.stats.conflated += ticks,
            Skip::Gap => self.stats.gap += ticks,
        }
    }

    /// Takes what became of a place in it. A topic that goes on by another subscription is left as it is.
    fn begin(&mut self, outcome: Outcome) {
        if self.expected != 0 {
            return;
        }
        let Outcome { place, epoch, sequence, recovered } = outcome;
        match (recovered, place.epoch == epoch) {
            (true, true) => self.expected = place.sequence.saturating_add(1),
            (true, false) => {}
            // Ahead of the topic: what is counted again came before under other numbers, or never was.
            (false, true) => {
                self.hole = Some((Skip::Gap, place.sequence.min(sequence).saturating_add(1)));
            }
            (false, false) => self.hole = Some((Skip::Gap, 1)),
        }
    }
}

/// The server's RECOVERED.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    place: Position,
    epoch: u64,
    sequence: u64,
    recovered: bool,
}

/// A topic's number is small and unique: spreading it by a multiplication is all the hashing it needs. SipHash took
/// most of the time of a tick.
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
        // 2^64 divided by the golden ratio (Knuth, volume 3, section 6.4): high bits vary for ids in a row.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// All topics of one session, by number; by name as well where ticks come by name.
#[derive(Debug)]
pub(super) struct Topics {
    /// Where each stands in `all`.
    by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    all: Vec<(u32, Topic)>,
    id_by_name: Option<HashMap<Box<str>, u32>>,
    /// Places from before, until they are answered. Bound: [`SESSION_TOPICS_MAX`].
    places: HashMap<Box<str>, (Position, Teller)>,
    /// One place for all that a pattern takes. Bound: [`RESUME_POSITIONS_MAX`](tickcast_proto::limits::RESUME_POSITIONS_MAX).
    pattern_places: Vec<(Box<str>, Position)>,
    /// Answers about topics that are not announced yet. Bound: [`SESSION_TOPICS_MAX`].
    outcomes: HashMap<Box<str>, Outcome>,
}

impl Topics {
    pub(super) fn new(by_name: bool) -> Topics {
        Topics {
            by_id: HashMap::default(),
            all: Vec::new(),
            id_by_name: by_name.then(HashMap::new),
            places: HashMap::new(),
            pattern_places: Vec::new(),
            outcomes: HashMap::new(),
        }
    }

    /// Notes the place that the client has in a topic. What is beyond the bound is not noted: its ticks then count
    /// as those of a topic that is new.
    pub(super) fn place(&mut self, name: &str, position: Position, teller: Teller) {
        if self.places.len() < SESSION_TOPICS_MAX {
            self.places.insert(name.into(), (position, teller));
        }
    }

    /// Notes one place for all topics of a pattern.
    pub(super) fn place_pattern(&mut self, pattern: &str, position: Position) {
        self.pattern_places.push((pattern.into(), position));
    }

    /// Patterns with a place.
    pub(super) fn pattern_places(&self) -> usize {
        self.pattern_places.len()
    }

    /// Takes an announcement. The same topic may be announced again; under a new epoch it counts from the start.
    /// Gives what the session is to say itself of a place that the server was not asked for.
    pub(super) fn announce(
        &mut self,
        id: u32,
        name: &str,
        epoch: u64,
    ) -> Result<Option<Unrecovered>, SessionError> {
        let is_full = self.by_id.len() >= SESSION_TOPICS_MAX;
        match self.get_mut(id) {
            Some(topic) if *topic.stats.name != *name => {
                let (from, to) = (topic.stats.name.to_string(), name.to_owned());
                return Err(SessionError::TopicRenamed { topic_id: id, from, to });
            }
            Some(topic) if topic.stats.epoch == epoch => return Ok(None),
            Some(topic) => *topic = Topic::new(name, epoch),
            None if is_full => return Err(SessionError::TooManyTopics),
            None => {
                if let Some(ids) = &mut self.id_by_name {
                    ids.insert(name.into(), id);
                }
                self.by_id.insert(id, self.all.len() as u32);
                self.all.push((id, Topic::new(name, epoch)));
            }
        }
        if self.places.is_empty() && self.outcomes.is_empty() {
            return Ok(None);
        }
        let outcome = self.outcomes.remove(name);
        let place = match self.places.get(name) {
            Some(&(place, Teller::Client(skip))) => self.places.remove(name).map(|_| (place, skip)),
            _ => None,
        };
        let Some(topic) = self.get_mut(id) else { return Ok(None) };
        if let Some(outcome) = outcome {
            topic.begin(outcome);
        }
        let Some((place, skip)) = place else { return Ok(None) };
        if place.epoch == epoch {
            topic.hole = Some((skip, place.sequence.saturating_add(1)));
        }
        Ok((place.epoch != epoch || skip == Skip::Gap).then_some(Unrecovered { place }))
    }

    /// Takes the server's word on a place; the place that was asked for. `id` is 0 for a topic that does not exist,
    /// `None` where the server names none.
    pub(super) fn recover(
        &mut self,
        id: Option<u32>,
        name: &str,
        epoch: u64,
        sequence: u64,
        recovered: bool,
    ) -> Result<(u32, Position), SessionError> {
        let place = self.places.remove(name).map(|(position, _)| position).or_else(|| {
            let mut places = self.pattern_places.iter();
            places.find(|(pattern, _)| pattern::matches(pattern, name)).map(|&(_, position)| position)
        });
        let place = place.unwrap_or_default();
        let outcome = Outcome { place, epoch, sequence, recovered };
        let known = id.or_else(|| self.id(name)).unwrap_or(0);
        if let Some(topic) = self.get_mut(known) {
            topic.begin(outcome);
        } else if id != Some(0) {
            if self.outcomes.len() >= SESSION_TOPICS_MAX {
                return Err(SessionError::TooManyTopics);
            }
            self.outcomes.insert(name.into(), outcome);
        }
        Ok((known, place))
    }

    /// Counts a tick that is the one expected, with nothing to be told before it; where its topic stands. `None`:
    /// [`Topics::advance`] has to look.
    #[inline]
    pub(super) fn step(&mut self, id: u32, sequence: u64) -> Option<u32> {
        let at = self.place_of(id)?;
        let (_, topic) = self.all.get_mut(at as usize)?;
        // 0 is no sequence, and as what is expected it stands for any.
        let is_plain = sequence != 0
            && topic.expected == sequence
            && topic.stats.first_sequence != 0
            && topic.hole.is_none()
            && topic.missed_before == 0
            && sequence != u64::MAX;
        if !is_plain {
            return None;
        }
        topic.interrupted = false;
        topic.expected = sequence + 1;
        topic.stats.last_sequence = sequence;
        topic.stats.ticks += 1;
        Some(at)
    }

    /// Counts a tick; what is missing or left out before it.
    #[inline]
    pub(super) fn advance(
        &mut self,
        id: u32,
        sequence: u64,
        snapshot: bool,
    ) -> Result<Advanced, SessionError> {
        let Some(topic) = self.get_mut(id) else {
            return Err(SessionError::UnknownTopic(id.to_string()));
        };
        let previous = topic.stats.last_sequence.max(topic.expected.saturating_sub(1));
        topic.advance(sequence, snapshot).ok_or_else(|| SessionError::OutOfOrder {
            topic: topic.stats.name.to_string(),
            previous,
            sequence,
        })
    }

    /// Counts ticks that do not come; where a hole before them begins that is to be told first.
    pub(super) fn skip(
        &mut self,
        id: u32,
        skip: Skip,
        from: u64,
        to: u64,
    ) -> Result<Option<(Skip, u64)>, SessionError> {
        let Some(topic) = self.get_mut(id) else {
            return Err(SessionError::UnknownTopic(id.to_string()));
        };
        topic.skip(skip, from, to).ok_or_else(|| SessionError::BadRange {
            topic: topic.stats.name.to_string(),
            from,
            to,
        })
    }

    /// After an unsubscribe any topic may have paused: which ones, only the server's matching says.
    pub(super) fn interrupt(&mut self) {
        for (_, topic) in &mut self.all {
            (topic.expected, topic.hole, topic.missed_before) = (0, None, 0);
            topic.interrupted = true;
        }
    }

    /// The pattern's place is no more.
    pub(super) fn forget_pattern(&mut self, pattern: &str) {
        self.pattern_places.retain(|(placed, _)| **placed != *pattern);
    }

    pub(super) fn id(&self, name: &str) -> Option<u32> {
        self.id_by_name.as_ref()?.get(name).copied()
    }

    /// Where a topic stands, for [`Topics::at`].
    #[inline]
    pub(super) fn place_of(&self, id: u32) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    #[inline]
    pub(super) fn at(&self, at: u32) -> Option<&TopicStats> {
        self.all.get(at as usize).map(|(_, topic)| &topic.stats)
    }

    #[inline]
    fn get_mut(&mut self, id: u32) -> Option<&mut Topic> {
        let at = self.place_of(id)?;
        self.all.get_mut(at as usize).map(|(_, topic)| topic)
    }

    #[inline]
    pub(super) fn topic(&self, id: u32) -> Option<&TopicStats> {
        self.at(self.place_of(id)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &TopicStats)> {
        self.all.iter().map(|(id, topic)| (*id, &topic.stats))
    }
}

#[cfg(test)]
mod tests;
