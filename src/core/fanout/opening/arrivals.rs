//! The sessions that join a topic while it opens.

use super::{Fanout, Matching, topic_ref};
use crate::{ids::SlotId, limits::DELIVERIES_PER_OPENING_UNIT};
use tickcast_proto::ids::TopicId;

/// Matching entries that are listed at once.
const ENTRIES_LISTED_MAX: usize = 256;
/// Matching entries that a topic remembers until it continues; if there are more, they are listed again.
const ENTRIES_REMEMBERED_MAX: usize = 8;

/// The sessions that join a topic, found as they are needed: a list of them for each topic that opens would have no bound but the
/// product of topics and sessions.
///
/// Sessions that subscribe meanwhile join the topic themselves.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Sessions with a position in the topic. Bound: that of positions.
    positions: Vec<SlotId>,
    /// The entry whose members join, and how many of them have yet to: the first ones. A member that leaves is replaced by the last
    /// one, which has joined before it.
    current: Option<(u32, usize)>,
    /// Entries after it whose patterns match the topic, the next one last. Bound: [`ENTRIES_LISTED_MAX`], and
    /// [`ENTRIES_REMEMBERED_MAX`] from turn to turn.
    next: Vec<u32>,
    /// No entry follows those in `next`.
    is_complete: bool,
}

impl Arrivals {
    /// Sessions with these slots have a position in the topic.
    pub(super) fn new(positions: Vec<SlotId>) -> Arrivals {
        Arrivals { positions, ..Arrivals::default() }
    }

    /// Bytes of heap memory.
    pub(super) fn heap_bytes(&self) -> usize {
        (self.positions.capacity() + self.next.capacity()) * size_of::<u32>()
    }

    /// Gives back memory until the topic continues.
    pub(super) fn suspend(&mut self) {
        if self.next.len() > ENTRIES_REMEMBERED_MAX {
            (self.next, self.is_complete) = (Vec::new(), false);
        }
    }
}

impl Fanout {
    /// The next session that joins a topic, and the units used to find it. A session of which several patterns match comes
    /// once for each.
    pub(super) fn next_arrival(&self, id: TopicId, arrivals: &mut Arrivals) -> (usize, Option<SlotId>) {
        if let Some(slot) = arrivals.positions.pop() {
            return (0, Some(slot));
        }
        let mut units = 0;
        loop {
            if let Some((entry, left)) = &mut arrivals.current {
                let entry = self.entries.get(*entry as usize).and_then(Option::as_ref);
                let members = entry.map_or(&[][..], |entry| &entry.members);
                *left = (*left).min(members.len());
                if *left > 0 {
                    *left -= 1;
                    return (units, Some(members[*left]));
                }
            }
            match arrivals.next.pop() {
                Some(entry) => arrivals.current = Some((entry, usize::MAX)),
                None if arrivals.is_complete => return (units, None),
                None => units += self.list_entries(id, arrivals),
            }
        }
    }

    /// Lists the next entries with members whose patterns match a topic. Returns the units used.
    fn list_entries(&self, id: TopicId, arrivals: &mut Arrivals) -> usize {
        let Arrivals { current, next, is_complete, .. } = arrivals;
        *is_complete = true;
        let Some(topic) = topic_ref(&self.topics, id, self.shards) else {
            debug_assert!(false, "a topic stays while it opens");
            return 1;
        };
        let entries = &self.entries;
        let mut add = |index: u32| {
            let Some(entry) = entries[index as usize].as_ref() else {
                return debug_assert!(false, "a pattern in the trie has an entry");
            };
            if !entry.members.is_empty() && current.is_none_or(|(done, _)| index > done) {
                next.push(index);
            }
        };
        // Check all patterns only if a wildcard has members: a home may open thousands of topics in one turn.
        let visited = match self.wildcards.has_members() {
            false => {
                self.patterns.get(topic.key()).into_iter().for_each(|&index| add(index));
                1
            }
            true => {
                let Matching { patterns, tenant_highest, exports } = self.matching();
                exports.for_each_match(patterns, tenant_highest, topic.key(), |&index| add(index))
            }
        };
        let units = (visited + next.len()) / DELIVERIES_PER_OPENING_UNIT;
        next.sort_unstable();
        *is_complete = next.len() <= ENTRIES_LISTED_MAX;
        next.truncate(ENTRIES_LISTED_MAX);
        next.shrink_to(ENTRIES_LISTED_MAX);
        next.reverse();
        units
    }
}
