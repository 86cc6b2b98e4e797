//! Walks over topics in pieces: a session joins the topics of a pattern, leaves them, changes their delivery, or departs.
//!
//! A walk belongs to one session. Each piece does a given number of units of work, and exceeds it by at most one topic, so that
//! the shard can serve other sessions in between. A unit is one topic or membership visited; joining or leaving a topic takes
//! [`CHANGE_UNITS`] more, plus one for each of the session's subscriptions.
//!
//! Only a subscription that needs state per topic walks: one with a pace, or one that starts in the past. The others enter a
//! [wildcard group](super::wildcard) at once. If it matches few topics, the session [joins them at once](super::search).

use std::collections::HashSet;

use super::{
    EgressLogs, Fanout, StartFrom, Subscription,
    topic::{EgressTopic, Life},
    topic_mut, topic_ref,
    wildcard::{self, Matching},
};
use crate::{
    ids::{SessionId, SlotId},
    limits::JOINS_MAX,
    session::table::Sessions,
};
use tickcast_proto::{ids::TopicId, pattern, subscription::Delivery};

/// Units for joining or leaving one topic: some 700 ns, against 15 ns for a visit (bench/micro/control.rs).
pub(super) const CHANGE_UNITS: usize = 32;
/// Walks that a tick checks for one unit of delivery.
const WALKS_PER_UNIT: usize = 4;
/// Units for leaving a pattern that other sessions still hold.
const LEAVE_UNITS: usize = 4;
/// Memberships that a walk lists per unit.
const LISTED_PER_UNIT: usize = 16;
/// Memberships that a departure lists at once.
const DEPARTURE_LISTED_MAX: usize = 256;

/// A subscription to a wildcard that walks over the existing topics, one by one.
///
/// Its acknowledgement has been sent, so every tick from now on must arrive: a topic that has a tick before its turn is joined
/// early.
#[derive(Debug)]
pub(super) struct Joining {
    /// Its number, in the order in which walks began, from 1.
    number: u64,
    /// Topics that this shard had opened before it began. Later ones need no joining: their members join them as they open, and
    /// groups receive them from their first ticks.
    opened: u64,
    /// It began from saved positions.
    from_saved: bool,
    slot: SlotId,
    entry: u32,
    /// The next topic: the index of its home, and its index there.
    next: (u16, u32),
    /// Topics joined before their turn, kept to the end of the walk: one that is still opening when the walk passes over it asks
    /// later. Bound: the topics published to during the walk.
    early: HashSet<TopicId, rustc_hash::FxBuildHasher>,
}

/// What a session does to the memberships that a pattern matches.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Leaves them, unless another of its patterns matches.
    Leave,
    /// Merges its subscriptions again.
    Merge,
}

/// How a subscription that goes live or changes continues.
#[derive(Debug)]
pub enum Begun {
    /// It is done already; the units used.
    Done(usize),
    /// With a walk over the session's memberships, and the units used.
    Walk(MembershipWalk, usize),
    /// With a walk over all topics: [`Fanout::advance_join`].
    Join,
}

/// A walk over the memberships of a session that an unsubscribe or update began.
#[derive(Debug)]
pub struct MembershipWalk {
    pattern: Box<str>,
    change: Change,
    topics: std::vec::IntoIter<TopicId>,
}

impl MembershipWalk {
    /// The pattern's key.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Whether every membership has been visited.
    pub fn is_done(&self) -> bool {
        self.topics.as_slice().is_empty()
    }
}

/// A session that has ended and leaves its topics and patterns.
#[derive(Debug)]
pub struct Departure {
    session: SessionId,
    /// Some of its topics. Bound: [`DEPARTURE_LISTED_MAX`].
    topics: std::vec::IntoIter<TopicId>,
    /// Entry of the subscription that the session was leaving, if any.
    leaving: Option<u32>,
}

impl Departure {
    /// Bytes of heap memory.
    pub fn heap_bytes(&self) -> usize {
        self.topics.len() * size_of::<TopicId>()
    }

    /// The session, which stays in its slot until the departure is done.
    pub fn session(&self) -> SessionId {
        self.session
    }
}

impl Fanout {
    /// Number of sessions that join the topics of a wildcard now. The caller keeps it within [`JOINS_MAX`].
    pub fn joins_len(&self) -> usize {
        self.joining.len()
    }

    /// Whether a subscription that goes live joins the topics of a wildcard one by one. Others are served by its group.
    pub fn joins_topics(&self, index: u32, slot: SlotId, sessions: &Sessions) -> bool {
        let held = sessions.get(slot).and_then(|session| session.subscriptions.to(index));
        self.entries[index as usize].as_ref().zip(held).is_some_and(|(entry, held)| {
            !entry.is_exact && (!entry.shares(held.delivery) || held.start_from != StartFrom::Live)
        })
    }

    /// Whether a subscription leaves its wildcard's group because of a new pace, and so joins the topics one by one.
    pub fn gets_pace(&self, index: u32, slot: SlotId, delivery: Delivery, sessions: &Sessions) -> bool {
        let held = sessions.get(slot).and_then(|session| session.subscriptions.to(index));
        self.entries[index as usize].as_ref().zip(held).is_some_and(|(entry, held)| {
            held.position.is_some() && entry.shares(held.delivery) && !entry.shares(delivery)
        })
    }

    /// Makes a subscription live; its acknowledgement must have been queued. The session joins an exactly named topic at
    /// once, and so the topics of a wildcard if they are few: see [`Fanout::advance_search`].
    pub fn begin_join(
        &mut self,
        index: u32,
        few: Option<Vec<TopicId>>,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> Begun {
        self.enter_members(index, slot, sessions);
        let Some(session) = sessions.open_mut(slot) else { return Begun::Done(0) };
        let has_memberships = !session.memberships.is_empty();
        let Some(&Subscription { start_from, .. }) = session.subscriptions.to(index) else {
            debug_assert!(false, "a session makes only its own subscriptions live");
            return Begun::Done(0);
        };
        self.note_stale_newcomer(index, slot, sessions);
        if self.joins_topics(index, slot, sessions) {
            return self.join_topics(index, few, slot, sessions, logs);
        }
        let is_exact = self.is_exact(index);
        if is_exact && let Some(&id) = self.by_key.get(&self.pattern(index)) {
            self.join(id, slot, index, start_from, sessions, logs);
        }
        self.end_join(index, slot, start_from, sessions, logs);
        if is_exact || !has_memberships {
            return Begun::Done(0);
        }
        // The subscription also delivers topics of which the session already has memberships.
        let (walk, used) = self.walk(index, slot, Change::Merge, sessions);
        Begun::Walk(walk, used)
    }

    /// Joins a session to the topics of a wildcard: at once if they are few, otherwise it begins to walk.
    pub(super) fn join_topics(
        &mut self,
        entry: u32,
        few: Option<Vec<TopicId>>,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> Begun {
        let session = sessions.get(slot);
        let held = session.and_then(|session| Some((*session.subscriptions.to(entry)?, session)));
        if let Some(topics) = few
            && let Some((Subscription { start_from, .. }, session)) = held
        {
            let units = topics.len() * (CHANGE_UNITS + session.subscriptions.len());
            for id in topics {
                self.join(id, slot, entry, start_from, sessions, logs);
                self.evict_overflowing(sessions, logs);
            }
            self.end_join(entry, slot, start_from, sessions, logs);
            return Begun::Done(units);
        }
        debug_assert!(self.joining.len() < JOINS_MAX, "the first tick of a topic checks all walks");
        self.walks_begun += 1;
        let from_saved =
            held.is_some_and(|(held, _)| matches!(held.start_from, StartFrom::SavedPositions { .. }));
        let (number, opened) = (self.walks_begun, self.recent.opened());
        let (next, early) = ((0, 0), HashSet::default());
        self.joining.push(Joining { number, opened, from_saved, slot, entry, next, early });
        Begun::Join
    }

    /// Continues the walk of a session's wildcard. Returns the units used, and whether there is more to do.
    pub fn advance_join(
        &mut self,
        slot: SlotId,
        units: usize,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> (usize, bool) {
        let position = self.joining.iter().position(|joining| joining.slot == slot);
        let Some(position) = position else {
            debug_assert!(false, "a session that joins is on the list");
            return (1, false);
        };
        // The others stay in the order of their numbers.
        let mut joining = self.joining.remove(position);
        let Some(Subscription { start_from, .. }) = joining.subscription(sessions) else {
            debug_assert!(false, "a session that joins has the subscription");
            return (1, false);
        };
        let subscriptions = sessions.get(slot).map_or(0, |session| session.subscriptions.len());
        let pattern = self.pattern(joining.entry);
        let mut used = 0;
        while used < units {
            let (home, local) = joining.next;
            let Some(of_home) = self.topics.homes.get(usize::from(home)) else {
                self.end_join(joining.entry, slot, start_from, sessions, logs);
                return (used + 1, false);
            };
            used += 1;
            joining.next = if local as usize + 1 < of_home.len() { (home, local + 1) } else { (home + 1, 0) };
            let topic = of_home.get(local as usize).and_then(Option::as_ref);
            let topic = topic.filter(|topic| self.settings.exports.matches(&pattern, topic.key()));
            let topic = topic.filter(|topic| topic.life == Life::Current && topic.opened <= joining.opened);
            if let Some(id) = topic.map(|topic| topic.info.id)
                && !joining.early.contains(&id)
            {
                used += CHANGE_UNITS + subscriptions;
                self.join(id, slot, joining.entry, start_from, sessions, logs);
                self.evict_overflowing(sessions, logs);
            }
        }
        self.joining.insert(position, joining);
        (used, true)
    }

    fn end_join(
        &mut self,
        entry: u32,
        slot: SlotId,
        start_from: StartFrom,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let pattern = self.pattern(entry);
        let filter = self.filter(entry, slot, sessions);
        self.answer_unknown_positions((entry, &pattern), start_from, filter.as_deref(), slot, sessions);
        self.queue_pull(slot, sessions);
        self.evict_overflowing(sessions, logs);
        self.invariants(Some(entry));
    }

    /// Joins a topic that has a tick to the sessions whose walk has not reached it yet. Each walk is compared with each topic once:
    /// O(walks begun since the topic's last tick), at most [`JOINS_MAX`].
    pub(super) fn join_early(&mut self, id: TopicId, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let Some(at) = self.topics.place(id, self.shards) else { return };
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        let opened = topic.opened;
        let seen = std::mem::replace(&mut topic.walks_seen, self.walks_begun);
        let first = self.joining.partition_point(|joining| joining.number <= seen);
        if first == self.joining.len() {
            return;
        }
        self.tally.units += (self.joining.len() - first) / WALKS_PER_UNIT;
        for index in first..self.joining.len() {
            let joining = &self.joining[index];
            let Some(topic) = topic_ref(&self.topics, id, self.shards) else { return };
            let waits = opened <= joining.opened
                && at >= joining.next
                && !joining.early.contains(&id)
                && self.entry_matches(joining.entry, topic.key());
            let (slot, entry, held) = (joining.slot, joining.entry, joining.subscription(sessions));
            let Some(Subscription { start_from, .. }) = held.filter(|_| waits) else { continue };
            self.joining[index].early.insert(id);
            self.join(id, slot, entry, start_from, sessions, logs);
            self.queue_pull(slot, sessions);
        }
        self.evict_overflowing(sessions, logs);
    }

    /// Sessions whose walk from saved positions is under way and whose pattern matches a topic, with the entry of the subscription.
    /// O([`JOINS_MAX`]).
    pub(super) fn joining_from_saved_positions(
        &self,
        topic: &str,
        sessions: &Sessions,
    ) -> Vec<(SlotId, u32)> {
        let is_from_saved = |joining: &&Joining| {
            let held = joining.from_saved.then(|| joining.subscription(sessions)).flatten();
            held.is_some_and(|held| matches!(held.start_from, StartFrom::SavedPositions { .. }))
                && self.entry_matches(joining.entry, topic)
        };
        self.joining.iter().filter(is_from_saved).map(|joining| (joining.slot, joining.entry)).collect()
    }

    /// Joins a session to a topic through a live subscription. Changes nothing if the session already receives the topic; a
    /// session that wildcard groups serve needs no membership.
    fn join(
        &mut self,
        id: TopicId,
        slot: SlotId,
        entry: u32,
        start_from: StartFrom,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        if !self.delivers(entry, id, slot, sessions) {
            // The session may have received it under its previous permissions.
            self.merge_deliveries(id, slot, sessions);
            return;
        }
        let backlog = self.backlog(id, slot, start_from, sessions);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "only open topics are joined");
        };
        let Some(session) = sessions.open_mut(slot) else { return };
        if session.memberships.contains(id) {
            self.merge_deliveries(id, slot, sessions);
            return;
        }
        let merged = wildcard::merged(
            Matching::new(&self.patterns, self.tenant_highest, &self.settings.exports),
            &self.entries,
            topic,
            session.subscriptions.iter(),
            session.principal.as_deref(),
        );
        let Some(merged) = merged else {
            return debug_assert!(false, "a session joins through a live subscription");
        };
        let held = session.subscriptions.to(entry).map(|held| held.delivery);
        let (shared, is_group) = (merged.shared, merged.is_shared);
        let entry = self.entries[entry as usize].as_ref();
        let is_shared = entry.zip(held).is_some_and(|(entry, delivery)| entry.shares(delivery));
        let backlog = backlog.filter(|_| merged.shared == u32::from(is_shared));
        let awaited = match self.openings.is_empty() {
            true => None,
            false => self.begin_early_member(id, slot, sessions, logs),
        };
        let backlog = backlog.or(awaited);
        if (backlog.is_some() || !merged.is_shared)
            && let Some(topic) = topic_mut(&mut self.topics, id, self.shards)
        {
            topic.join(slot, merged, backlog, sessions, logs);
            // If its wildcards alone serve it, they tell it.
            if !is_group {
                self.tell_joined(id, slot, shared, sessions);
            }
        }
    }

    /// Begins to leave a pattern's topics; the session no longer lists the subscription. The caller releases the entry when the
    /// walk is done. Returns the walk, and the units used.
    pub fn begin_leave(
        &mut self,
        held: Subscription,
        slot: SlotId,
        sessions: &mut Sessions,
    ) -> (MembershipWalk, usize) {
        self.leave_members(held, slot, sessions);
        let forgotten = self.forget_awaited(slot, held.entry);
        let (walk, listed) = self.walk(held.entry, slot, Change::Leave, sessions);
        let looked = if self.openings.is_empty() { 0 } else { self.forget_backlogs(slot, sessions) };
        (walk, 1 + listed + looked + CHANGE_UNITS * forgotten)
    }

    /// Begins to change how a pattern's subscription is delivered; `few`: see [`Fanout::begin_join`]. `None` if the session does
    /// not hold the pattern.
    pub fn begin_update(
        &mut self,
        index: u32,
        few: Option<Vec<TopicId>>,
        slot: SlotId,
        delivery: Delivery,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> Option<Begun> {
        let held = *sessions.open_mut(slot)?.subscriptions.to(index)?;
        let gets_pace = self.gets_pace(index, slot, delivery, sessions);
        let entry = self.entries[index as usize].as_ref()?;
        // A member that is on the same list keeps its position: a topic that is opening has yet to come to it.
        let stays = held.position.is_some() && !entry.shares(held.delivery) && !entry.shares(delivery);
        if !stays {
            self.leave_members(held, slot, sessions);
        }
        let session = sessions.open_mut(slot)?;
        let now = session.subscriptions.to_mut(index)?;
        // A live subscription has already joined from where it started.
        let start_from = if held.position.is_some() { StartFrom::Live } else { held.start_from };
        let (is_partial, position) = (held.is_partial, held.position.filter(|_| stays));
        *now = Subscription { is_partial, position, ..Subscription::new(index, delivery, start_from) };
        if held.position.is_some() && !stays {
            self.enter_members(index, slot, sessions);
        }
        Some(match gets_pace {
            true => self.join_topics(index, few, slot, sessions, logs),
            false => self.begin_merge(index, slot, sessions),
        })
    }

    /// Begins the walk that merges a session's memberships again after a subscription has changed.
    pub(super) fn begin_merge(&mut self, index: u32, slot: SlotId, sessions: &Sessions) -> Begun {
        let (walk, listed) = self.walk(index, slot, Change::Merge, sessions);
        Begun::Walk(walk, listed)
    }

    /// Lists the memberships that a walk visits: all of the session's for a wildcard, otherwise at most one.
    fn walk(&self, entry: u32, slot: SlotId, change: Change, sessions: &Sessions) -> (MembershipWalk, usize) {
        let pattern = self.pattern(entry);
        let memberships = sessions.get(slot).map(|session| &session.memberships);
        let topics: Vec<TopicId> = match memberships {
            None => Vec::new(),
            Some(memberships) if pattern::is_exact(&pattern) => {
                let topic = self.by_key.get(&pattern).filter(|&&id| memberships.contains(id));
                topic.into_iter().copied().collect()
            }
            Some(memberships) => memberships.topics().collect(),
        };
        let listed = topics.len() / LISTED_PER_UNIT;
        (MembershipWalk { pattern, change, topics: topics.into_iter() }, listed)
    }

    /// Visits more memberships of a walk. Returns the units used.
    pub fn advance_walk(
        &mut self,
        walk: &mut MembershipWalk,
        slot: SlotId,
        units: usize,
        sessions: &mut Sessions,
    ) -> usize {
        let mut used = 0;
        while used < units
            && let Some(id) = walk.topics.next()
        {
            used += 1;
            let topic = topic_ref(&self.topics, id, self.shards);
            let is_member = sessions.get(slot).is_some_and(|session| session.memberships.contains(id));
            if !is_member
                || topic.is_none_or(|topic| !self.settings.exports.matches(&walk.pattern, topic.key()))
            {
                continue;
            }
            used += CHANGE_UNITS;
            if let Change::Leave = walk.change {
                self.flush_notices_of(&[id], slot, sessions);
            }
            used += self.merge_deliveries(id, slot, sessions);
        }
        used
    }

    /// Recomputes a membership's delivery from the session's live subscriptions that match its topic; ends it if none does, or
    /// if wildcard groups can serve it. Returns the number of subscriptions visited.
    fn merge_deliveries(&mut self, id: TopicId, slot: SlotId, sessions: &mut Sessions) -> usize {
        let topic = topic_mut(&mut self.topics, id, self.shards);
        let (Some(topic), Some(session)) = (topic, sessions.get(slot)) else {
            debug_assert!(false, "a membership has a topic and a session");
            return 0;
        };
        if !session.memberships.contains(id) {
            return 0;
        }
        let visited = session.subscriptions.len();
        let merged = wildcard::merged(
            Matching::new(&self.patterns, self.tenant_highest, &self.settings.exports),
            &self.entries,
            topic,
            session.subscriptions.iter(),
            session.principal.as_deref(),
        );
        match merged {
            None => topic.leave(slot, sessions),
            Some(merged) => {
                topic.set_delivery(slot, merged, sessions);
                topic.release_paced(slot, sessions);
                self.share_again(id, slot, sessions);
            }
        }
        visited
    }

    /// Begins the departure of a session that has ended; `leaving` is the entry of a walk that [`Fanout::begin_leave`] began
    /// and that is not done. O([`JOINS_MAX`]).
    pub fn begin_departure(&mut self, session: SessionId, leaving: Option<u32>) -> Departure {
        self.joining.retain(|joining| joining.slot != session.slot());
        Departure { session, topics: Vec::new().into_iter(), leaving }
    }

    /// Leaves more topics and patterns of a departing session; `gone` gets the patterns that nobody on this shard holds any
    /// more. Returns the units used, and whether there is more to leave.
    pub fn advance_departure(
        &mut self,
        departure: &mut Departure,
        units: usize,
        sessions: &mut Sessions,
        gone: &mut Vec<Box<str>>,
    ) -> (usize, bool) {
        let slot = departure.session.slot();
        let mut used = 0;
        while used < units {
            if let Some(id) = departure.topics.next() {
                used += CHANGE_UNITS;
                let is_member = sessions.get(slot).is_some_and(|session| session.memberships.contains(id));
                // It may already have left a forgotten topic.
                if is_member && let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                    topic.leave(slot, sessions);
                }
                continue;
            }
            let memberships = sessions.get(slot).map(|session| &session.memberships);
            if let Some(memberships) = memberships.filter(|memberships| !memberships.is_empty()) {
                let listed: Vec<TopicId> = memberships.topics().take(DEPARTURE_LISTED_MAX).collect();
                used += 1 + listed.len() / LISTED_PER_UNIT;
                departure.topics = listed.into_iter();
                continue;
            }
            if self.forget_one_awaited(slot) {
                used += CHANGE_UNITS;
                continue;
            }
            // Only now, because a home closes topics once their patterns are gone, and by then they must have no members.
            if let Some(entry) = departure.leaving.take() {
                gone.extend(self.release(entry));
            }
            let held = sessions.any_mut(slot).and_then(|session| session.subscriptions.pop());
            let Some(held) = held else { return (used, false) };
            self.leave_members(held, slot, sessions);
            let last = self.release(held.entry);
            used += if last.is_some() { CHANGE_UNITS } else { LEAVE_UNITS };
            gone.extend(last);
        }
        (used, true)
    }
}

impl Joining {
    /// Whether it is the walk of a session's subscription, and is still to join the session to a topic, because it began after
    /// the topic was opened.
    pub(super) fn walks_to(&self, topic: &EgressTopic, slot: SlotId, entry: u32) -> bool {
        (self.slot, self.entry) == (slot, entry)
            && topic.opened <= self.opened
            && !self.early.contains(&topic.info.id)
    }

    /// The session's subscription.
    fn subscription(&self, sessions: &Sessions) -> Option<Subscription> {
        sessions.get(self.slot)?.subscriptions.to(self.entry).copied()
    }
}
