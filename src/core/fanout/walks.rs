//! Walks over topics in pieces: a session joins the topics of a pattern, leaves them, changes their delivery, or departs.
//!
//! A walk belongs to one session. Each piece does a given number of units of work and no more than one topic beyond it,
//! so that the shard can serve other sessions in between. A unit is one topic or membership visited; joining
//! or leaving a topic takes [`CHANGE_UNITS`] more.

use std::collections::HashSet;

use super::{EgressLogs, Fanout, StartFrom, Subscription, topic_mut, topic_ref};
use crate::{
    ids::{SessionId, SlotId},
    limits::JOINS_ACTIVE_MAX,
    session::table::Sessions,
};
use tickcast_proto::{ids::TopicId, pattern, subscription::Delivery};

/// Units of joining or leaving one topic: some 700 ns, against 15 ns for a visit (bench/micro/control.rs).
const CHANGE_UNITS: usize = 32;
/// Memberships that a walk lists for one unit.
const LISTED_PER_UNIT: usize = 16;

/// A subscription to a wildcard whose session joins the existing topics, one after the other.
///
/// Its acknowledgement has been sent, so every tick from now on must arrive: a topic that has a tick before its turn is
/// joined early.
#[derive(Debug)]
pub(super) struct Joining {
    slot: SlotId,
    entry: u32,
    /// The next topic: the index of its home, and its index there.
    next: (usize, usize),
    /// Topics joined before their turn. Bound: the topics opened or published to during the walk.
    early: HashSet<TopicId, rustc_hash::FxBuildHasher>,
}

/// What a session does to the memberships that a pattern matches.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Leaves them, unless another of its patterns matches. `is_uniform`: all its subscriptions are delivered alike, so
    /// that what stays does not change.
    Leave { is_uniform: bool },
    /// Sets how the pattern's subscription is delivered.
    Deliver(Delivery),
}

/// A walk over the memberships of a session that an unsubscribe or update began.
#[derive(Debug)]
pub struct MembershipWalk {
    pattern: Box<str>,
    change: Change,
    topics: std::vec::IntoIter<TopicId>,
}

impl MembershipWalk {
    /// The pattern.
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
    topics: std::vec::IntoIter<TopicId>,
    /// The entry of a subscription that the session was leaving.
    leaving: Option<u32>,
}

impl Departure {
    /// The session, which stays in its slot until the departure is done.
    pub fn session(&self) -> SessionId {
        self.session
    }
}

impl Fanout {
    /// Whether another subscription can go live now. If not, one that does will finish in a later turn.
    pub fn may_join(&self, entry: u32) -> bool {
        self.joining.len() < JOINS_ACTIVE_MAX || pattern::is_exact(self.pattern(entry))
    }

    /// Makes a subscription live; its acknowledgement must have been queued. The session joins an exactly named topic at
    /// once, those of a wildcard in [`Fanout::advance_join`]. Returns whether there are more to join.
    pub fn begin_join(
        &mut self,
        index: u32,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> bool {
        let Some(entry) = self.entries[index as usize].as_mut() else {
            debug_assert!(false, "an entry stays while a session holds its pattern");
            return false;
        };
        let Some(session) = sessions.open_mut(slot) else { return false };
        let Some(held) = session.subscription_mut(index) else {
            debug_assert!(false, "a session makes only its own subscriptions live");
            return false;
        };
        held.position = Some(entry.members.len() as u32);
        let Subscription { delivery, start_from, .. } = *held;
        entry.members.push(slot);
        if !pattern::is_exact(&entry.pattern) {
            self.joining.push(Joining { slot, entry: index, next: (0, 0), early: HashSet::default() });
            return true;
        }
        if let Some(&id) = self.by_name.get(&entry.pattern) {
            self.join(id, slot, delivery, start_from, sessions, logs);
        }
        self.end_join(index, slot, start_from, sessions, logs);
        false
    }

    /// Joins more topics of a session's wildcard. Returns the units used, and whether there are more to join.
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
        let mut joining = self.joining.swap_remove(position);
        let Some(Subscription { delivery, start_from, .. }) = joining.subscription(sessions) else {
            debug_assert!(false, "a session that joins has the subscription");
            return (1, false);
        };
        let pattern: Box<str> = self.pattern(joining.entry).into();
        let mut used = 0;
        while used < units {
            let (home, local) = joining.next;
            let Some(of_home) = self.topics.get(home) else {
                self.end_join(joining.entry, slot, start_from, sessions, logs);
                return (used + 1, false);
            };
            used += 1;
            joining.next = if local + 1 < of_home.len() { (home, local + 1) } else { (home + 1, 0) };
            let topic = of_home.get(local).and_then(Option::as_ref);
            let Some(topic) = topic.filter(|topic| pattern::matches(&pattern, &topic.info.name)) else {
                continue;
            };
            let id = topic.info.id;
            if !joining.early.remove(&id) {
                used += CHANGE_UNITS;
                self.join(id, slot, delivery, start_from, sessions, logs);
                self.evict_overflowing(sessions, logs);
            }
        }
        self.joining.push(joining);
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
        let pattern: Box<str> = self.pattern(entry).into();
        self.answer_unknown_positions(&pattern, start_from, slot, sessions);
        self.queue_pull(slot, sessions);
        self.evict_overflowing(sessions, logs);
        self.invariants(Some(entry));
    }

    /// Joins a topic that has a tick to the sessions whose walk has not reached it yet. O([`JOINS_ACTIVE_MAX`]).
    pub(super) fn join_early(&mut self, id: TopicId, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let Some(local) = id.local_index(self.shards) else { return };
        let at = (usize::from(id.home(self.shards).0), local as usize);
        for index in 0..self.joining.len() {
            let joining = &self.joining[index];
            let Some(topic) = topic_ref(&self.topics, id, self.shards) else { return };
            let waits = at >= joining.next
                && !joining.early.contains(&id)
                && pattern::matches(self.pattern(joining.entry), &topic.info.name);
            let (slot, held) = (joining.slot, joining.subscription(sessions));
            let Some(Subscription { delivery, start_from, .. }) = held.filter(|_| waits) else { continue };
            self.joining[index].early.insert(id);
            self.join(id, slot, delivery, start_from, sessions, logs);
            self.queue_pull(slot, sessions);
        }
        self.evict_overflowing(sessions, logs);
    }

    /// Notes that every member of the entries that match a new topic has joined it, sessions that walk included.
    pub(super) fn note_joined(&mut self, id: TopicId, name: &str) {
        for joining in &mut self.joining {
            let entry = self.entries[joining.entry as usize].as_ref();
            if entry.is_some_and(|entry| pattern::matches(&entry.pattern, name)) {
                joining.early.insert(id);
            }
        }
    }

    fn join(
        &mut self,
        id: TopicId,
        slot: SlotId,
        delivery: Delivery,
        start_from: StartFrom,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let backlog = self.backlog(id, slot, start_from, sessions);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "only open topics are joined");
        };
        if !topic.join(slot, delivery, backlog, sessions, logs) {
            topic.release_paced(slot, sessions);
        }
    }

    /// Begins to leave a pattern's topics; the session's list no longer has the subscription. The caller releases the entry
    /// when the walk is done. Returns the walk, and the units used.
    pub fn begin_leave(
        &mut self,
        held: Subscription,
        slot: SlotId,
        sessions: &mut Sessions,
    ) -> (MembershipWalk, usize) {
        self.leave_members(held, slot, sessions);
        let rest = sessions.get(slot).map_or(&[][..], |session| &session.subscriptions);
        let is_uniform = rest.iter().all(|other| other.delivery == held.delivery);
        let used = 1 + rest.len() / LISTED_PER_UNIT;
        let (walk, listed) = self.walk(held.entry, slot, Change::Leave { is_uniform }, sessions);
        (walk, used + listed)
    }

    /// Begins to change how a pattern's subscription is delivered. Returns the walk, and the units used; `None` if the
    /// session does not hold the pattern.
    pub fn begin_update(
        &mut self,
        entry: u32,
        slot: SlotId,
        delivery: Delivery,
        sessions: &mut Sessions,
    ) -> Option<(MembershipWalk, usize)> {
        let session = sessions.open_mut(slot)?;
        session.subscription_mut(entry)?.delivery = delivery;
        Some(self.walk(entry, slot, Change::Deliver(delivery), sessions))
    }

    /// Lists the memberships that a walk visits: for a wildcard all of the session's, else one at most.
    fn walk(&self, entry: u32, slot: SlotId, change: Change, sessions: &Sessions) -> (MembershipWalk, usize) {
        let pattern: Box<str> = self.pattern(entry).into();
        let memberships = sessions.get(slot).map(|session| &session.memberships);
        let topics: Vec<TopicId> = match memberships {
            None => Vec::new(),
            Some(memberships) if pattern::is_exact(&pattern) => {
                let topic = self.by_name.get(&pattern).filter(|id| memberships.contains_key(id));
                topic.into_iter().copied().collect()
            }
            Some(memberships) => memberships.keys().copied().collect(),
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
            let is_member = sessions.get(slot).is_some_and(|session| session.memberships.contains_key(&id));
            if !is_member || topic.is_none_or(|topic| !pattern::matches(&walk.pattern, &topic.info.name)) {
                continue;
            }
            used += CHANGE_UNITS;
            match walk.change {
                Change::Deliver(delivery) => {
                    used += self.merge_deliveries(id, slot, Some(delivery), sessions);
                }
                Change::Leave { is_uniform } => {
                    self.flush_notices_of(&[id], slot, sessions);
                    let topic = topic_mut(&mut self.topics, id, self.shards);
                    let stays = topic.is_some_and(|topic| topic.drop_reference(slot, sessions));
                    if stays && !is_uniform {
                        used += self.merge_deliveries(id, slot, None, sessions);
                    }
                }
            }
        }
        used
    }

    /// Recomputes a membership's delivery from the session's live subscriptions that match its topic. If only one does,
    /// `alone` is its delivery. Returns the number of subscriptions visited.
    fn merge_deliveries(
        &mut self,
        id: TopicId,
        slot: SlotId,
        alone: Option<Delivery>,
        sessions: &mut Sessions,
    ) -> usize {
        let topic = topic_mut(&mut self.topics, id, self.shards);
        let session = sessions.get(slot);
        let membership = session.and_then(|session| session.memberships.get(&id));
        let (Some(topic), Some(session), Some(membership)) = (topic, session, membership) else {
            debug_assert!(false, "a membership has a topic and a session");
            return 0;
        };
        let (merged, visited) = match alone {
            Some(delivery) if membership.references == 1 => (delivery, 1),
            _ => {
                let matching = session.subscriptions.iter().filter(|held| {
                    let entry = self.entries[held.entry as usize].as_ref();
                    held.position.is_some()
                        && entry.is_some_and(|entry| pattern::matches(&entry.pattern, &topic.info.name))
                });
                (topic.merge(matching.map(|held| held.delivery)), session.subscriptions.len())
            }
        };
        topic.set_delivery(slot, merged, sessions);
        topic.release_paced(slot, sessions);
        visited
    }

    /// Begins the departure of a session that has ended; `leaving` is the entry of a walk that [`Fanout::begin_leave`] began
    /// and that is not done. Returns the departure, and the units used.
    pub fn begin_departure(
        &mut self,
        session: SessionId,
        leaving: Option<u32>,
        sessions: &Sessions,
    ) -> (Departure, usize) {
        let slot = session.slot();
        self.joining.retain(|joining| joining.slot != slot);
        let memberships = sessions.get(slot).map(|session| &session.memberships);
        let topics: Vec<TopicId> =
            memberships.map_or_else(Vec::new, |memberships| memberships.keys().copied().collect());
        let listed = topics.len() / LISTED_PER_UNIT;
        (Departure { session, topics: topics.into_iter(), leaving }, listed)
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
                if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                    topic.leave(slot, sessions);
                }
                continue;
            }
            // Only now: a home closes topics once their patterns are gone, and they must be without members then.
            if let Some(entry) = departure.leaving.take() {
                gone.extend(self.release(entry));
            }
            let held = sessions.any_mut(slot).and_then(|session| session.subscriptions.pop());
            let Some(held) = held else { return (used, false) };
            used += CHANGE_UNITS;
            self.leave_members(held, slot, sessions);
            gone.extend(self.release(held.entry));
        }
        (used, true)
    }
}

impl Joining {
    /// The session's subscription.
    fn subscription(&self, sessions: &Sessions) -> Option<Subscription> {
        sessions.get(self.slot)?.subscription(self.entry).copied()
    }
}
