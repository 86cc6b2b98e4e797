//! Subscriptions to patterns: registration with the homes, and the sessions that hold them.

use std::borrow::Cow;

use super::{
    Fanout,
    possible_policies::PossiblePolicies,
    wildcard::{Matching, WildcardEntry},
};
use crate::{
    ids::{SlotId, SourceId, TenantId},
    limits::{LONG_WILDCARD_BYTES, LONG_WILDCARDS_BYTES},
    pattern_trie::ALLOCATION_BYTES,
    topic_key,
};
use tickcast_proto::{
    pattern,
    subscription::{Delivery, Position},
};

/// A pattern that at least one session of this shard subscribes to.
#[derive(Debug)]
pub(super) struct PatternEntry {
    /// Its node in the trie, which has the pattern's text.
    pub(super) node: u32,
    /// Identifies this entry in messages to the homes, until each has answered READY; then 0. Always 0 if it is covered.
    request: u32,
    /// Number of sessions that hold the pattern, plus the patterns that it covers. The entry is removed with the last one.
    holders: u32,
    /// Source of the session that subscribed first. The entry's memory counts against it until the entry is removed.
    source: SourceId,
    pub(super) is_exact: bool,
    /// The homes do not know this pattern, because its tenant's `>` is registered instead.
    is_covered: bool,
    /// Sessions that join each topic: those of an exact name, and those with a pace. Their subscription is live or going live.
    pub(super) members: Vec<SlotId>,
    /// Wildcard state; `None` for an exact name, of which a client may hold a thousand.
    pub(super) wildcard: Option<Box<WildcardEntry>>,
}

const _: () = assert!(size_of::<Option<PatternEntry>>() <= 56, "docs/LIMITS.md says what a pattern takes");

/// A pattern whose homes have not all answered READY yet.
#[derive(Debug)]
pub(super) struct PendingEntry {
    entry: u32,
    homes: u16,
    /// Sessions to wake once they have. Some may have ended since.
    waiting: Vec<SlotId>,
}

/// Bytes of a pattern in the trie, besides its text.
const TRIE_BYTES: usize = 72;

/// Requests for which the table keeps room while none is pending.
const PENDING_KEPT: usize = 64;

/// The key of the pattern that covers all others of the same tenant.
pub fn cover_of(pattern: &str) -> Cow<'static, str> {
    match topic_key::split(pattern) {
        (TenantId::DEFAULT, _) => Cow::Borrowed(">"),
        (tenant, _) => Cow::Owned(topic_key::of(tenant, ">").into_owned()),
    }
}

impl PatternEntry {
    /// Whether no request of its own waits for a home's answer.
    pub(super) fn is_registered(&self) -> bool {
        self.request == 0
    }

    /// Whether its pattern matches a topic.
    pub(super) fn matches(&self, matching: Matching<'_>, topic: &str) -> bool {
        let Matching { patterns, exports, .. } = matching;
        patterns.with_pattern(self.node, |pattern| exports.matches(pattern, topic))
    }
}

/// Where a subscription starts once it is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// At the next tick.
    #[default]
    Live,
    /// At the last values, then live.
    Latest,
    /// Just after a position.
    After(Position),
    /// Just after the position that the session saved for each topic. Topics without one start at the first tick since a time.
    SavedPositions {
        /// CLOCK_MONOTONIC nanoseconds; 0: at the oldest tick kept.
        since_ns: u64,
    },
}

/// A session's subscription to one pattern. 48 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// Policy and pace.
    pub delivery: Delivery,
    /// Where it starts.
    pub start_from: StartFrom,
    /// The pattern's entry.
    pub entry: u32,
    /// Index of the session in the entry's members, or in its group; `None` until it goes live.
    pub position: Option<u32>,
    /// In a group: generation of the default policies when it went live.
    pub generation: u16,
    /// In a group: the policies that its topics may have.
    pub possible: PossiblePolicies,
    /// The session may receive only those of the topics that its permissions name.
    pub is_partial: bool,
}

impl Subscription {
    /// Creates a subscription that is not live yet, to a wholly allowed pattern.
    pub fn new(entry: u32, delivery: Delivery, start_from: StartFrom) -> Subscription {
        let possible = PossiblePolicies::default();
        Subscription {
            delivery,
            start_from,
            entry,
            position: None,
            generation: 0,
            possible,
            is_partial: false,
        }
    }
}

const _: () = assert!(size_of::<Subscription>() <= 48, "the docs of Subscription say how large it is");

/// A new pattern to register with the homes.
#[derive(Debug, PartialEq, Eq)]
pub struct Interest {
    /// Identifies the pattern in the homes' answers.
    pub request: u32,
    /// The pattern has no wildcard, so only that topic's home needs it.
    pub exact: bool,
    /// The pattern is [`cover_of`] the one subscribed to.
    pub covers: bool,
}

/// A subscription registered by [`Fanout::subscribe`].
#[derive(Debug, PartialEq, Eq)]
pub struct Registration {
    /// The pattern's entry.
    pub entry: u32,
    /// What to register with the homes if this is the shard's first subscription to the pattern.
    pub interest: Option<Interest>,
}

impl Fanout {
    /// Borrows what decides whether a pattern matches a topic.
    pub(super) fn matching(&self) -> Matching<'_> {
        Matching::new(&self.patterns, self.tenant_highest, &self.settings.exports)
    }

    /// The entry of a pattern, if any session of this shard subscribes to it.
    pub fn entry_of(&mut self, pattern: &str) -> Option<u32> {
        self.patterns.get_mut(pattern).copied()
    }

    /// Registers a subscription; the session must not hold the pattern already. It can go live once [`Fanout::is_ready`]. If it
    /// is not ready yet, [`Fanout::pop_woken`] returns the session later. A new pattern counts for `source`.
    pub fn subscribe(&mut self, slot: SlotId, source: SourceId, pattern: &str) -> Registration {
        let (entry, interest) = match self.entry_of(pattern) {
            Some(known) => {
                self.hold(known);
                (known, None)
            }
            None if self.must_cover(pattern) => {
                let cover = cover_of(pattern);
                let interest = match self.entry_of(&cover) {
                    Some(cover) => {
                        self.hold(cover);
                        None
                    }
                    None => Some(self.insert_registered(&cover, SourceId::default())),
                };
                let interest = interest.map(|interest| Interest { covers: true, ..interest });
                (self.insert_entry(pattern, source, 0, true), interest)
            }
            None => {
                let interest = self.insert_registered(pattern, source);
                (self.pending.get(&interest.request).map_or(0, |pending| pending.entry), Some(interest))
            }
        };
        if let Some(pending) = self.request_of(entry).and_then(|request| self.pending.get_mut(&request)) {
            pending.waiting.push(slot);
        }
        self.invariants(Some(entry));
        Registration { entry, interest }
    }

    /// Whether a new pattern must be registered as [`cover_of`] it. Each home stores a wildcard's text, so the total of long
    /// wildcards is bounded. Ticks of other topics that then reach this shard cost less than that memory.
    fn must_cover(&self, pattern: &str) -> bool {
        is_long(pattern) && self.long_wildcards_bytes + pattern.len() > LONG_WILDCARDS_BYTES
    }

    fn hold(&mut self, entry: u32) {
        if let Some(entry) = self.entries[entry as usize].as_mut() {
            entry.holders += 1;
        }
    }

    /// Adds a pattern that the caller registers with the homes.
    fn insert_registered(&mut self, pattern: &str, source: SourceId) -> Interest {
        let exact = pattern::is_exact(pattern);
        let request = self.next_request;
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let entry = self.insert_entry(pattern, source, request, false);
        let homes = if exact { 1 } else { self.shards };
        self.pending.insert(request, PendingEntry { entry, homes, waiting: Vec::new() });
        Interest { request, exact, covers: false }
    }

    fn insert_entry(&mut self, pattern: &str, source: SourceId, request: u32, is_covered: bool) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.tenant_highest = self.tenant_highest.max(topic_key::split(pattern).0);
        self.patterns.get_or_insert_with(pattern, || index);
        let node = self.patterns.node(pattern);
        debug_assert!(node.is_some(), "the pattern has just been inserted");
        let is_exact = pattern::is_exact(pattern);
        let entry = PatternEntry {
            node: node.unwrap_or_default(),
            request,
            holders: 1,
            source,
            is_exact,
            is_covered,
            members: Vec::new(),
            wildcard: (!is_exact).then(|| Box::new(WildcardEntry::new(self.match_counts.new_wildcard()))),
        };
        self.count_bytes(pattern, &entry, true);
        self.entries[index as usize] = Some(entry);
        index
    }

    /// Counts the memory of a pattern that is added or removed, here and at the homes.
    fn count_bytes(&mut self, pattern: &str, entry: &PatternEntry, comes: bool) {
        let at_homes = match (entry.is_exact, entry.is_covered) {
            (true, _) => crate::home::NAME_BYTES,
            (false, true) => 0,
            (false, false) => usize::from(self.shards) * crate::home::wildcard_bytes(pattern.len()),
        };
        let boxed = entry.wildcard.as_ref().map_or(0, |_| size_of::<WildcardEntry>() + ALLOCATION_BYTES);
        let other = at_homes + boxed;
        let long = if is_long(pattern) && !entry.is_covered { pattern.len() } else { 0 };
        let (other_bytes, long_bytes) = (&mut self.patterns_other_bytes, &mut self.long_wildcards_bytes);
        match comes {
            true => (*other_bytes, *long_bytes) = (*other_bytes + other, *long_bytes + long),
            false => (*other_bytes, *long_bytes) = (*other_bytes - other, *long_bytes - long),
        }
        if entry.source.is_limited() {
            let bytes = size_of::<Option<PatternEntry>>() + TRIE_BYTES + pattern.len() + other;
            self.count_source_bytes(entry.source, bytes, comes);
        }
    }

    fn count_source_bytes(&mut self, source: SourceId, bytes: usize, comes: bool) {
        let held = self.source_bytes.entry(source).or_default();
        if comes {
            *held += bytes;
            return;
        }
        debug_assert!(*held >= bytes, "a pattern counts for its source");
        *held -= bytes;
        if *held == 0 {
            self.source_bytes.remove(&source);
        }
    }

    /// Bytes of the patterns subscribed to by a source's sessions, here and at the homes.
    pub fn source_bytes(&self, source: SourceId) -> usize {
        self.source_bytes.get(&source).copied().unwrap_or(0)
    }

    /// The request that an entry waits for: its own, or that of `>` if covered. `None` once the homes are ready.
    fn request_of(&mut self, entry: u32) -> Option<u32> {
        let own = self.entries[entry as usize].as_ref()?;
        let request = match own.is_covered {
            true => {
                let cover = self.entry_of(&cover_of(&self.pattern(entry)))?;
                self.entries[cover as usize].as_ref()?.request
            }
            false => own.request,
        };
        (request != 0).then_some(request)
    }

    /// Notes that a home has opened every matching topic. Once all homes have, the sessions that wait are woken.
    pub fn handle_ready(&mut self, request: u32) {
        // The last subscriber may have left before the home answered.
        let Some(pending) = self.pending.get_mut(&request) else { return };
        pending.homes -= 1;
        if pending.homes == 0 && !self.waits_for_endings(request) {
            self.end_pending(request);
        }
    }

    /// The entry of a request that has not ended; `None`: its last subscriber has left.
    pub(super) fn entry_pending(&self, request: u32) -> Option<u32> {
        self.pending.get(&request).map(|pending| pending.entry)
    }

    /// Wakes the sessions that wait for a pattern. Does nothing if the last one has left.
    pub(super) fn end_pending(&mut self, request: u32) {
        let Some(PendingEntry { entry: index, waiting, .. }) = self.pending.remove(&request) else { return };
        self.woken.extend(waiting);
        if self.pending.is_empty() {
            self.pending.shrink_to(PENDING_KEPT);
        }
        let Some(entry) = self.entries[index as usize].as_mut() else {
            return debug_assert!(false, "a request names an entry in use");
        };
        entry.request = 0;
        self.invariants(Some(index));
    }

    /// Whether every home has opened the topics of an entry that a session holds.
    pub fn is_ready(&mut self, entry: u32) -> bool {
        debug_assert!(
            self.entries[entry as usize].is_some(),
            "an entry stays while a session holds its pattern"
        );
        self.request_of(entry).is_none()
    }

    /// The next session that waited for a pattern whose homes are ready now. It may have ended since.
    pub fn pop_woken(&mut self) -> Option<SlotId> {
        self.woken.pop_front()
    }

    /// Whether sessions have been woken.
    pub fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// The pattern of an entry. Allocates.
    pub fn pattern(&self, entry: u32) -> Box<str> {
        let entry = self.entries[entry as usize].as_ref();
        entry.map_or_else(Box::default, |entry| self.patterns.with_pattern(entry.node, |text| text.into()))
    }

    /// Whether the pattern of an entry has no wildcard.
    pub(super) fn is_exact(&self, entry: u32) -> bool {
        self.entries[entry as usize].as_ref().is_some_and(|entry| entry.is_exact)
    }

    /// Whether the pattern of an entry matches a topic.
    pub(super) fn entry_matches(&self, entry: u32, topic: &str) -> bool {
        let entry = self.entries[entry as usize].as_ref();
        entry.is_some_and(|entry| entry.matches(self.matching(), topic))
    }

    /// Makes room in the tables for a pattern that is new to this shard. Returns `false` if there is no memory.
    pub fn try_reserve_pattern(&mut self) -> bool {
        self.patterns.try_reserve() && self.entries.try_reserve(1).is_ok()
    }

    /// Releases a session's hold on an entry; the session must have left its members. Returns the pattern if nothing needs it
    /// at the homes any more; the caller must then remove it there.
    pub fn release(&mut self, index: u32) -> Option<Box<str>> {
        let Some(entry) = self.entries[index as usize].as_mut() else {
            debug_assert!(false, "an entry stays while a session holds its pattern");
            return None;
        };
        entry.holders -= 1;
        if entry.holders > 0 {
            self.invariants(Some(index));
            return None;
        }
        debug_assert!(entry.members.is_empty() && entry.groups().is_empty(), "a member holds the pattern");
        let pattern = self.pattern(index);
        let entry = self.entries[index as usize].take()?;
        self.free.push(index);
        self.pending.remove(&entry.request);
        self.patterns.remove(&pattern);
        self.count_bytes(&pattern, &entry, false);
        self.invariants(None);
        match entry.is_covered {
            true => {
                let cover = self.entry_of(&cover_of(&pattern));
                debug_assert!(cover.is_some(), "`>` stays while it covers a pattern");
                self.release(cover?)
            }
            false => Some(pattern),
        }
    }
}

/// Whether a pattern is a wildcard whose text counts against [`LONG_WILDCARDS_BYTES`].
fn is_long(pattern: &str) -> bool {
    topic_key::name(pattern).len() > LONG_WILDCARD_BYTES && !pattern::is_exact(pattern)
}
