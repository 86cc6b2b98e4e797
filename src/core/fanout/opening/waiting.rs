//! The next lives of topics that are still opening although their homes have forgotten them.
//!
//! Such a life is in no table: nobody can join it, and sessions know nothing of it. Its ticks wait like those of a topic that opens;
//! the end of it, its mark, or that this shard no longer needs it are noted here. Once its last life has opened and ended, the shard
//! opens it as if its home had just sent all that. A life waits for one only, the one before it, so none waits for itself.
//!
//! Whoever gets what waits for a forgotten life must get all of the next ones. Their home opens them to this shard if a pattern that
//! was there before them matches. A new pattern may have come too late for some, so it is ready only after the lives that it matches
//! and that were forgotten before it: just as the home's answer follows them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::{Fanout, Opening, Openings, Stage};
use crate::{
    fanout::{EgressLogs, topic_ref},
    home::StaleMark,
    limits::{DELIVERIES_PER_OPENING_UNIT, NEW_TOPIC_UNITS},
    session::table::Sessions,
};
use tickcast_proto::ids::TopicId;

/// Units of opening topics for a life that begins after it has waited.
const NEXT_LIFE_UNITS: usize = NEW_TOPIC_UNITS / DELIVERIES_PER_OPENING_UNIT;

/// What a home has said of a life that waits.
#[derive(Debug)]
pub(super) struct Unopened {
    key: Box<str>,
    epoch: u64,
    /// The sequence before its first tick.
    last: u64,
    mark: Option<StaleMark>,
}

impl Unopened {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Bytes of heap memory, its own included.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Unopened>() + self.key.len()
    }
}

/// The end of a life that is still opening.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forgotten {
    /// Its number, in the order in which homes have forgotten topics that were opening, from 1.
    number: u64,
    /// The last sequence.
    last: u64,
}

/// The topics that are opening and forgotten, and the patterns that are not ready yet because of them.
///
/// A request about a pattern is compared with them, the youngest first, until one matches. It waits for that one, and then is
/// compared with those that are older: so it waits for no topic that it does not match.
///
/// Bound: a number for each topic that opens, and a request for each pattern that came to this shard meanwhile, also if its last
/// subscriber has left since.
#[derive(Debug, Default)]
pub(super) struct Endings {
    count: u64,
    topics: BTreeMap<u64, TopicId>,
    numbers: HashMap<TopicId, u64>,
    /// Requests about patterns, each with the number of the topic that it waits for.
    delayed: BTreeSet<(u64, u32)>,
    /// Numbers of topics that have ended, of which requests may have waited.
    ended: VecDeque<u64>,
    /// Requests about patterns to compare with the topics before a number.
    unchecked: VecDeque<(u32, u64)>,
}

impl Endings {
    /// Bytes of heap memory, if nodes are half empty.
    pub(super) fn heap_bytes(&self) -> usize {
        let (topic, request) = (size_of::<(u64, TopicId)>(), size_of::<(u64, u32)>());
        2 * (self.topics.len() * topic + self.delayed.len() * request)
            + self.numbers.capacity() * topic
            + self.ended.capacity() * size_of::<u64>()
            + self.unchecked.capacity() * request
    }

    /// Whether requests are to be compared with topics.
    pub(super) fn has_work(&self) -> bool {
        !self.unchecked.is_empty() || !self.ended.is_empty()
    }

    /// Notes that a topic has ended.
    fn end(&mut self, id: TopicId, number: u64) {
        self.topics.remove(&number);
        self.numbers.remove(&id);
        if self.first_delayed(number).is_some() {
            self.ended.push_back(number);
        }
    }

    fn first_delayed(&self, number: u64) -> Option<(u64, u32)> {
        self.delayed.range((number, 0)..=(number, u32::MAX)).next().copied()
    }

    /// Takes out a request to compare with the topics before a number.
    fn pop_unchecked(&mut self) -> Option<(u32, u64)> {
        while let Some(&number) = self.ended.front() {
            if let Some(waited) = self.first_delayed(number) {
                self.delayed.remove(&waited);
                return Some((waited.1, number));
            }
            self.ended.pop_front();
        }
        self.unchecked.pop_front()
    }
}

impl Openings {
    /// Whether a topic is opening that its home has forgotten.
    pub(in crate::fanout) fn is_forgotten(&self, id: TopicId) -> bool {
        self.endings.numbers.contains_key(&id)
    }

    /// Notes that the home has forgotten a topic. Returns `false` if the topic is open.
    pub(in crate::fanout) fn end_when_open(&mut self, id: TopicId, last: u64) -> bool {
        let Some(opening) = self.by_topic.get_mut(&id) else { return false };
        debug_assert!(opening.forgotten.is_none(), "a home forgets a topic once");
        self.endings.count += 1;
        let number = self.endings.count;
        self.endings.topics.insert(number, id);
        self.endings.numbers.insert(id, number);
        opening.forgotten = Some(Forgotten { number, last });
        true
    }

    /// Makes a topic wait for its last life, which is opening and forgotten.
    pub(in crate::fanout) fn wait_for(
        &mut self,
        last_life: TopicId,
        (id, owner): (TopicId, u32),
        (epoch, last): (u64, u64),
        key: &str,
    ) {
        let unopened = Unopened { key: key.into(), epoch, last, mark: None };
        let waits = |id: &TopicId| {
            self.by_topic.get(id).is_some_and(|opening| matches!(opening.stage, Stage::Waiting(_)))
        };
        // Its home may have closed the last one, and may do so many times.
        let lives = self.by_topic.get(&last_life).map(|opening| &opening.next_lives);
        let closed = lives.is_some_and(|lives| lives.back().is_some_and(|last| !waits(last)));
        match self.by_topic.get_mut(&last_life) {
            Some(opening) => {
                if closed {
                    opening.next_lives.pop_back();
                }
                opening.next_lives.push_back(id);
            }
            None => debug_assert!(false, "the last life is opening"),
        }
        self.insert(id, Opening::new(owner, Stage::Waiting(unopened.into())));
        self.invariants();
    }

    /// Notes a mark of a life that waits. Returns `false` if the topic does not wait for its last life.
    pub(in crate::fanout) fn keep_mark(&mut self, id: TopicId, mark: StaleMark) -> bool {
        match self.by_topic.get_mut(&id).map(|opening| &mut opening.stage) {
            Some(Stage::Waiting(unopened)) => {
                unopened.mark = Some(mark);
                true
            }
            _ => false,
        }
    }

    /// Takes out the first of these lives that still waits: its home may have closed some.
    fn take_next(&mut self, opening: &mut Opening) -> Option<(TopicId, Opening, Box<Unopened>)> {
        while let Some(id) = opening.next_lives.pop_front() {
            if !matches!(self.by_topic.get(&id).map(|opening| &opening.stage), Some(Stage::Waiting(_))) {
                continue;
            }
            let mut next = self.remove(id)?;
            debug_assert!(next.next_lives.is_empty(), "every life waits for the one that opens");
            next.next_lives = std::mem::take(&mut opening.next_lives);
            if let Stage::Waiting(unopened) = std::mem::replace(&mut next.stage, Stage::Delivering) {
                return Some((id, next, unopened));
            }
        }
        None
    }
}

impl Fanout {
    /// Ends the life of a topic that has just opened, if its home has forgotten it, and begins its next one. Returns the units used.
    pub(super) fn end_opening(
        &mut self,
        id: TopicId,
        mut opening: Opening,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> usize {
        let Some(Forgotten { number, last }) = opening.forgotten else { return 0 };
        self.openings.endings.end(id, number);
        self.end_life(id, last);
        let next = self.openings.take_next(&mut opening);
        let units = if next.is_some() { NEXT_LIFE_UNITS } else { 0 };
        if let Some((id, next, unopened)) = next {
            let Unopened { key, epoch, last, mark } = *unopened;
            self.open((id, next.owner), (epoch, last), &key, Some(next), sessions, logs);
            if let Some(mark) = mark {
                self.handle_mark(id, mark);
            }
        }
        units
    }

    /// Makes a request about a pattern wait for the forgotten topics that are opening and match it: [`Fanout::compare_endings`] finds
    /// them. Returns `false` if no topic is forgotten.
    pub(in crate::fanout) fn waits_for_endings(&mut self, request: u32) -> bool {
        let endings = &mut self.openings.endings;
        if endings.topics.is_empty() {
            return false;
        }
        // Those that are forgotten later are no concern of it.
        endings.unchecked.push_back((request, endings.count + 1));
        true
    }

    /// Compares requests about patterns with forgotten topics, `left` times at most. Those that need not wait are answered.
    pub(super) fn compare_endings(&mut self, left: &mut usize) {
        while *left > 0
            && let Some((request, mut before)) = self.openings.endings.pop_unchecked()
        {
            *left -= 1;
            let Some(entry) = self.entry_pending(request) else { continue };
            let found = loop {
                let Some((&number, &id)) = self.openings.endings.topics.range(..before).next_back() else {
                    break None;
                };
                if *left == 0 {
                    return self.openings.endings.unchecked.push_front((request, before));
                }
                (*left, before) = (*left - 1, number);
                if self.forgotten_matches(id, entry) {
                    break Some(number);
                }
            };
            match found {
                Some(number) => _ = self.openings.endings.delayed.insert((number, request)),
                None => self.end_pending(request),
            }
        }
    }

    fn forgotten_matches(&self, id: TopicId, entry: u32) -> bool {
        match self.openings.by_topic.get(&id).map(|opening| &opening.stage) {
            Some(Stage::Waiting(unopened)) => self.entry_matches(entry, unopened.key()),
            _ => topic_ref(&self.topics, id, self.shards)
                .is_some_and(|topic| self.entry_matches(entry, topic.key())),
        }
    }
}
