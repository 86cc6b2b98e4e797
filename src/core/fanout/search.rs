//! The search for the topics of a wildcard, before a session joins them one by one.
//!
//! A walk has been acknowledged, so each topic checks at its first tick which walks have not reached it, and there is a place for
//! some walks only. So a session first searches, while nobody checks anything for it: it can stop after each topic, and any number
//! of sessions search in turn. If it finds few topics, it joins all of them at once and needs no place. Only wildcards that match
//! many topics wait for one.

use std::{collections::VecDeque, ops::Bound};

use super::{Fanout, topic::Life, topic_ref, walks::CHANGE_UNITS};
use crate::{
    ids::{SlotId, TenantId},
    limits::{CONTROL_QUANTUM_UNITS, JOINED_AT_ONCE_MAX, RECENT_TOPICS_MAX},
    session::table::Sessions,
    topic_key,
};
use tickcast_proto::{ids::TopicId, pattern};

/// A search for the topics that a wildcard matches.
///
/// Bound: [`JOINED_AT_ONCE_MAX`] topics, and two names.
#[derive(Debug)]
pub struct Search {
    entry: u32,
    pattern: Box<str>,
    /// The key of the last topic visited; empty: none.
    last: Box<str>,
    found: Vec<TopicId>,
    /// Topics found of which the session is not a member.
    new_len: usize,
    /// Topics that this shard had opened before it began.
    opened: u64,
    /// There are so many that `found` is not kept. It goes on only because there may not be memory for all.
    finds_many: bool,
}

/// The outcome of a piece of a search.
#[derive(Debug)]
pub enum Found {
    /// Nothing yet: it goes on.
    More,
    /// All topics that match now. They can be joined at once.
    Few(Vec<TopicId>),
    /// So many topics that they are joined by a walk.
    Many,
    /// More topics than the session may have memberships.
    TooMany,
}

impl Search {
    /// The entry whose pattern it compares.
    pub fn entry(&self) -> u32 {
        self.entry
    }

    /// Bytes of heap memory.
    pub fn heap_bytes(&self) -> usize {
        self.pattern.len() + self.last.len() + self.found.capacity() * size_of::<TopicId>()
    }
}

/// The topics that a shard has opened last, for searches that have already passed their names.
///
/// Bound: [`RECENT_TOPICS_MAX`].
#[derive(Debug, Default)]
pub(super) struct RecentTopics {
    /// Topics opened so far.
    opened: u64,
    last: VecDeque<TopicId>,
}

impl RecentTopics {
    /// Topics opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    /// Notes a topic that has just opened.
    pub(super) fn push(&mut self, id: TopicId) {
        self.opened += 1;
        if self.last.len() == RECENT_TOPICS_MAX {
            self.last.pop_front();
        }
        self.last.push_back(id);
    }

    /// The topics opened since there were `opened`; `None` if they are too many.
    fn since(&self, opened: u64) -> Option<impl Iterator<Item = TopicId>> {
        let count = usize::try_from(self.opened - opened).unwrap_or(usize::MAX);
        let before = self.last.len().checked_sub(count)?;
        Some(self.last.iter().skip(before).copied())
    }
}

/// How many topics a session with so many subscriptions may join at once.
fn joined_at_once(subscriptions: usize) -> usize {
    (CONTROL_QUANTUM_UNITS as usize / (CHANGE_UNITS + subscriptions)).clamp(1, JOINED_AT_ONCE_MAX)
}

impl Fanout {
    /// Begins to search for the topics that an entry's pattern matches.
    pub fn begin_search(&self, entry: u32) -> Search {
        let (pattern, opened) = (self.pattern(entry), self.recent.opened);
        Search {
            entry,
            pattern,
            last: Box::default(),
            found: Vec::new(),
            new_len: 0,
            opened,
            finds_many: false,
        }
    }

    /// Compares more topics with the pattern, a unit for each. Visits only those whose names begin like the pattern. `left`: how
    /// many more memberships the session may have. Returns the units used.
    pub fn advance_search(
        &self,
        search: &mut Search,
        slot: SlotId,
        (units, left): (usize, usize),
        sessions: &Sessions,
    ) -> (usize, Found) {
        let Some(session) = sessions.get(slot) else { return (0, Found::Many) };
        let few = joined_at_once(session.subscriptions.len());
        let exports = &self.settings.exports;
        // What a tenant imports has keys of other tenants.
        let prefix = match exports.is_empty() {
            true => literal_prefix(&search.pattern),
            false => "",
        };
        let from = match &*search.last {
            "" => Bound::Included(prefix),
            last => Bound::Excluded(last),
        };
        let (mut used, mut last) = (0, None);
        for (key, &id) in self.by_key.range::<str, _>((from, Bound::Unbounded)) {
            if !key.starts_with(prefix) {
                break;
            }
            if used >= units.max(1) {
                search.last = last.unwrap_or_default();
                return (used, Found::More);
            }
            used += 1;
            if used >= units {
                last = Some(key.clone());
            }
            if !exports.matches(&search.pattern, key) {
                continue;
            }
            search.new_len += usize::from(!session.memberships.contains(id));
            if search.new_len > left {
                return (used, Found::TooMany);
            }
            match search.found.len() < few && !search.finds_many {
                true => search.found.push(id),
                false => (search.finds_many, search.found) = (true, Vec::new()),
            }
            if search.finds_many && self.by_key.len() <= left {
                return (used, Found::Many);
            }
        }
        let recent = self.recent.since(search.opened).filter(|_| !search.finds_many);
        let Some(recent) = recent else { return (used, Found::Many) };
        let mut found = std::mem::take(&mut search.found);
        for id in recent {
            used += 1;
            let topic = topic_ref(&self.topics, id, self.shards);
            if topic.is_some_and(|topic| exports.matches(&search.pattern, topic.key()))
                && !found.contains(&id)
            {
                found.push(id);
            }
        }
        let is_open = |id: &TopicId| {
            topic_ref(&self.topics, *id, self.shards).is_some_and(|topic| topic.life == Life::Current)
        };
        found.retain(is_open);
        (used, if found.len() > few { Found::Many } else { Found::Few(found) })
    }
}

/// What the keys of all topics of a pattern's tenant that match it begin with.
fn literal_prefix(key: &str) -> &str {
    let (tenant, name) = topic_key::split(key);
    let before = if tenant == TenantId::DEFAULT { 0 } else { topic_key::PREFIX_BYTES };
    key.get(..before + pattern::literal_prefix(name).len()).unwrap_or_default()
}
