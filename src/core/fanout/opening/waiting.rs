//! The next lives of topics that are still opening although their homes have forgotten them.
//!
//! Such a life is in no table: nobody can join it, and sessions know nothing of it. Its ticks wait like those of a topic that opens;
//! the end of it, its mark, or that this shard no longer needs it are noted here. Once its last life has opened and ended, the shard
//! opens it as if its home had just sent all that. A life waits for one only, the one before it, so none waits for itself.
//!
//! Whoever gets what waits for a forgotten life must get all of the next ones. Their home opens them to this shard if a pattern that
//! was there before them matches. A new pattern may have come too late for some, so it is ready only after the lives that it matches
//! and that were forgotten before it: just as the home's answer follows them.

use std::collections::BTreeSet;

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

/// The topics that are opening and forgotten, by number, and the patterns that are not ready yet because of them.
///
/// Bound: a number for each topic that opens, and a request for each pattern that is new to this shard.
#[derive(Debug, Default)]
pub(super) struct Endings {
    count: u64,
    numbers: BTreeSet<u64>,
    /// Requests about patterns, each with the number of the last topic that it waits for.
    delayed: BTreeSet<(u64, u32)>,
}

impl Endings {
    /// Bytes of heap memory, if nodes are half empty.
    pub(super) fn heap_bytes(&self) -> usize {
        2 * (self.numbers.len() * size_of::<u64>() + self.delayed.len() * size_of::<(u64, u32)>())
    }

    /// Takes out a request that waits no more. Earlier topics may end later, and are waited for too.
    fn pop_ready(&mut self) -> Option<u32> {
        let &(number, request) = self.delayed.first()?;
        if self.numbers.first().is_some_and(|&first| first <= number) {
            return None;
        }
        self.delayed.pop_first();
        Some(request)
    }
}

impl Openings {
    /// Whether a topic is opening that its home has forgotten.
    pub(in crate::fanout) fn is_forgotten(&self, id: TopicId) -> bool {
        self.by_topic.get(&id).is_some_and(|opening| opening.forgotten.is_some())
    }

    /// Notes that the home has forgotten a topic. Returns `false` if the topic is open.
    pub(in crate::fanout) fn end_when_open(&mut self, id: TopicId, last: u64) -> bool {
        let Some(opening) = self.by_topic.get_mut(&id) else { return false };
        debug_assert!(opening.forgotten.is_none(), "a home forgets a topic once");
        self.endings.count += 1;
        let number = self.endings.count;
        self.endings.numbers.insert(number);
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
        match self.by_topic.get_mut(&last_life) {
            Some(opening) => opening.next_lives.push_back(id),
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
        self.openings.endings.numbers.remove(&number);
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
        while let Some(request) = self.openings.endings.pop_ready() {
            self.end_pending(request);
        }
        units
    }

    /// Makes a request about a pattern wait for the forgotten topics that are opening and match it. Returns `false` if there are none.
    /// O(topics that open) while any of them is forgotten.
    pub(in crate::fanout) fn waits_for_endings(&mut self, request: u32, entry: u32) -> bool {
        if self.openings.endings.numbers.is_empty() {
            return false;
        }
        self.tally.units += self.openings.by_topic.len() / DELIVERIES_PER_OPENING_UNIT;
        let of_match = self.openings.by_topic.iter().filter_map(|(&id, opening)| {
            let Forgotten { number, .. } = opening.forgotten?;
            let is_match = match &opening.stage {
                Stage::Waiting(unopened) => self.entry_matches(entry, unopened.key()),
                _ => topic_ref(&self.topics, id, self.shards)
                    .is_some_and(|topic| self.entry_matches(entry, topic.key())),
            };
            is_match.then_some(number)
        });
        let last = of_match.max();
        last.is_some_and(|number| self.openings.endings.delayed.insert((number, request)))
    }
}
