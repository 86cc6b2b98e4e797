//! Subscriptions to patterns: registration with the homes, and the sessions that hold them.

use super::{
    Fanout,
    match_counts::MatchCount,
    wildcard::{PossiblePolicies, WildcardGroup},
};
use crate::ids::SlotId;
use tickcast_proto::{
    pattern,
    subscription::{Delivery, Position},
};

/// A pattern that at least one session of this shard subscribes to.
#[derive(Debug)]
pub(super) struct PatternEntry {
    pub(super) pattern: Box<str>,
    pub(super) is_exact: bool,
    /// Sessions whose subscription is live, or going live, and that join each topic: those of an exact name, and those with
    /// a pace.
    pub(super) members: Vec<SlotId>,
    /// The other sessions of a wildcard. No group is empty.
    pub(super) groups: Vec<WildcardGroup>,
    /// The number of the last subscription that entered a group.
    pub(super) joined_last: u64,
    /// How many topics it matches.
    pub(super) matches: MatchCount,
    /// Sessions to wake once every home is ready. Some may have ended since.
    waiting: Vec<SlotId>,
    /// Number of sessions that hold the pattern. The entry is removed with the last one.
    holders: u32,
    /// Homes that have not answered READY yet.
    pub(super) homes_pending: u16,
    /// Identifies this entry in messages to the homes.
    pub(super) request: u32,
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
    /// Just after the position that the session saved for each topic; topics without one start at the oldest tick kept.
    SavedPositions,
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
    /// In a group: number of the default policies when it went live.
    pub generation: u16,
    /// In a group: the policies that its topics may have.
    pub possible: PossiblePolicies,
}

impl Subscription {
    /// A subscription that is not live yet.
    pub fn new(entry: u32, delivery: Delivery, start_from: StartFrom) -> Subscription {
        let possible = PossiblePolicies::default();
        Subscription { delivery, start_from, entry, position: None, generation: 0, possible }
    }
}

const _: () = assert!(size_of::<Subscription>() <= 48, "the docs of Subscription say how large it is");

/// A new pattern to register with the homes.
#[derive(Debug, PartialEq, Eq)]
pub struct Interest {
    /// Identifies the pattern in the homes' answers.
    pub request: u32,
    /// The pattern has no wildcard: only that topic's home needs to know.
    pub exact: bool,
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
    /// The entry of a pattern, if any session of this shard subscribes to it.
    pub fn entry_of(&mut self, pattern: &str) -> Option<u32> {
        self.patterns.get_mut(pattern).copied()
    }

    /// Registers a subscription; the session must not hold the pattern already. It can go live once [`Fanout::is_ready`].
    /// If that is not yet the case, [`Fanout::pop_woken`] returns the session later.
    pub fn subscribe(&mut self, slot: SlotId, pattern: &str) -> Registration {
        if let Some(index) = self.entry_of(pattern)
            && let Some(entry) = self.entries[index as usize].as_mut()
        {
            entry.holders += 1;
            if entry.homes_pending > 0 {
                entry.waiting.push(slot);
            }
            self.invariants(Some(index));
            return Registration { entry: index, interest: None };
        }
        let exact = pattern::is_exact(pattern);
        let interest = Interest { request: self.next_request, exact };
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let entry = PatternEntry {
            pattern: pattern.into(),
            is_exact: exact,
            members: Vec::new(),
            groups: Vec::new(),
            joined_last: 0,
            matches: self.match_counts.new_pattern(exact),
            waiting: vec![slot],
            holders: 1,
            homes_pending: if exact { 1 } else { self.shards },
            request: interest.request,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[index as usize] = Some(entry);
        self.patterns.get_or_insert_with(pattern, || index);
        self.pattern_text_bytes += pattern.len();
        self.by_request.insert(interest.request, index);
        self.invariants(Some(index));
        Registration { entry: index, interest: Some(interest) }
    }

    /// Notes that a home has opened every matching topic. Once all homes have, the sessions that wait are woken.
    pub fn handle_ready(&mut self, request: u32) {
        // The last subscriber may have left before the home answered.
        let Some(&index) = self.by_request.get(&request) else { return };
        let Some(entry) = self.entries[index as usize].as_mut() else {
            return debug_assert!(false, "a request names an entry in use");
        };
        entry.homes_pending -= 1;
        if entry.homes_pending == 0 {
            self.woken.extend(std::mem::take(&mut entry.waiting));
        }
        self.invariants(Some(index));
    }

    /// Whether every home has opened the topics of an entry that a session holds.
    pub fn is_ready(&self, entry: u32) -> bool {
        let entry = self.entries[entry as usize].as_ref();
        debug_assert!(entry.is_some(), "an entry stays while a session holds its pattern");
        entry.is_some_and(|entry| entry.homes_pending == 0)
    }

    /// The next session that waited for a pattern whose homes are ready now. It may have ended since.
    pub fn pop_woken(&mut self) -> Option<SlotId> {
        self.woken.pop_front()
    }

    /// Whether sessions have been woken.
    pub fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// The pattern of an entry.
    pub fn pattern(&self, entry: u32) -> &str {
        self.entries[entry as usize].as_ref().map_or("", |entry| &entry.pattern)
    }

    /// Releases a session's hold on an entry; the session must have left its members. Returns the pattern if no session
    /// holds it any more: the caller must then remove it from the homes.
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
        debug_assert!(entry.members.is_empty() && entry.groups.is_empty(), "a member holds the pattern");
        let entry = self.entries[index as usize].take()?;
        self.free.push(index);
        self.by_request.remove(&entry.request);
        self.patterns.remove(&entry.pattern);
        self.pattern_text_bytes -= entry.pattern.len();
        self.invariants(None);
        Some(entry.pattern)
    }
}
