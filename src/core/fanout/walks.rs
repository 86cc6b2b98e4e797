//! Walks over topics in pieces: a session joins the topics of a pattern, leaves them, changes their delivery, or departs.
//!
//! A walk belongs to one session. Each piece does a given number of units of work and no more than one topic beyond it,
//! so that the shard can serve other sessions in between. A unit is one topic or membership visited; joining or leaving a
//! topic takes [`CHANGE_UNITS`] more, and one for each of the session's subscriptions.
//!
//! Only a subscription that needs state per topic walks: one with a pace, or one that starts in the past. The others enter a
//! [wildcard group](super::wildcard) at once.

use std::collections::HashSet;

use super::{
    EgressLogs, Fanout, StartFrom, Subscription, subscriptions::MatchingTopics, topic_mut, topic_ref,
    wildcard,
};
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

/// A subscription to a wildcard that walks over the existing topics, one after the other.
///
/// Its acknowledgement has been sent, so every tick from now on must arrive: if it joins the topics, one that has a tick
/// before its turn is joined early.
#[derive(Debug)]
pub(super) struct Joining {
    slot: SlotId,
    entry: u32,
    /// The next topic: the index of its home, and its index there.
    next: (usize, usize),
    /// The session joins the topics. If not, it only merges the subscription into the memberships that it has.
    joins: bool,
    /// It counts the topics that the pattern matches.
    counts: bool,
    /// Topics joined before their turn. Bound: the topics opened or published to during the walk.
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

/// How an update of a subscription goes on.
#[derive(Debug)]
pub enum Update {
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
    /// Whether another subscription can go live, or change to this delivery, now. If not, one that does will finish in a later
    /// turn.
    pub fn may_join(&self, entry: u32) -> bool {
        self.joining.len() < JOINS_ACTIVE_MAX || pattern::is_exact(self.pattern(entry))
    }

    /// Makes a subscription live; its acknowledgement must have been queued. The session joins an exactly named topic at
    /// once. Returns whether there is more to do, in [`Fanout::advance_join`].
    pub fn begin_join(
        &mut self,
        index: u32,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> bool {
        self.enter_members(index, slot, sessions);
        let Some(session) = sessions.open_mut(slot) else { return false };
        let Some(&Subscription { start_from, .. }) = session.subscription(index) else {
            debug_assert!(false, "a session makes only its own subscriptions live");
            return false;
        };
        if !pattern::is_exact(self.pattern(index)) {
            if self.begin_walk(index, slot, sessions) {
                return true;
            }
        } else if let Some(&id) = self.by_name.get(self.pattern(index)) {
            self.join(id, slot, index, start_from, sessions, logs);
        }
        self.end_join(index, slot, start_from, sessions, logs);
        false
    }

    /// Begins the walk of a wildcard's subscription over all topics, if it needs one: to join them, to count them, or to merge
    /// the subscription into memberships that the session already has. Returns whether it does.
    fn begin_walk(&mut self, index: u32, slot: SlotId, sessions: &Sessions) -> bool {
        let (Some(entry), Some(session)) = (self.entries[index as usize].as_mut(), sessions.get(slot)) else {
            return false;
        };
        let Some(held) = session.subscription(index) else { return false };
        let joins = !entry.shares(held.delivery) || held.start_from != StartFrom::Live;
        let is_counted = |joining: &Joining| joining.entry == index && joining.counts;
        let counts = entry.topics.next.is_some() && !self.joining.iter().any(is_counted);
        if counts {
            entry.topics = MatchingTopics { counted: 0, next: Some((0, 0)) };
        }
        let walks = joins || counts || !session.memberships.is_empty();
        if walks {
            let early = HashSet::default();
            self.joining.push(Joining { slot, entry: index, next: (0, 0), joins, counts, early });
        }
        walks
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
        let mut joining = self.joining.swap_remove(position);
        let Some(Subscription { start_from, .. }) = joining.subscription(sessions) else {
            debug_assert!(false, "a session that joins has the subscription");
            return (1, false);
        };
        let subscriptions = sessions.get(slot).map_or(0, |session| session.subscriptions.len());
        let pattern: Box<str> = self.pattern(joining.entry).into();
        let mut used = 0;
        while used < units {
            let (home, local) = joining.next;
            let Some(of_home) = self.topics.homes.get(home) else {
                self.note_counted(&joining, None);
                self.end_join(joining.entry, slot, start_from, sessions, logs);
                return (used + 1, false);
            };
            used += 1;
            joining.next = if local + 1 < of_home.len() { (home, local + 1) } else { (home + 1, 0) };
            let topic = of_home.get(local).and_then(Option::as_ref);
            let topic = topic.filter(|topic| pattern::matches(&pattern, &topic.info.name));
            let id = topic.filter(|topic| !topic.is_forgotten).map(|topic| topic.info.id);
            let is_counted = topic.is_some_and(|topic| topic.is_counted);
            self.note_counted(&joining, Some(is_counted));
            let Some(id) = id else { continue };
            let is_member = sessions.get(slot).is_some_and(|session| session.memberships.contains_key(&id));
            if !joining.early.remove(&id) && (joining.joins || is_member) {
                used += CHANGE_UNITS + subscriptions;
                self.join(id, slot, joining.entry, start_from, sessions, logs);
                self.evict_overflowing(sessions, logs);
            }
        }
        self.joining.push(joining);
        (used, true)
    }

    /// Notes how far a walk that counts has come: whether the topic before its next one matches and is no longer new, or, with
    /// `None`, that it is done.
    fn note_counted(&mut self, joining: &Joining, matches: Option<bool>) {
        if joining.counts
            && let Some(entry) = self.entries[joining.entry as usize].as_mut()
        {
            entry.topics.next = matches.map(|_| joining.next);
            entry.topics.counted += u32::from(matches == Some(true));
        }
    }

    /// Whether there are new topics to count.
    pub fn has_uncounted_topics(&self) -> bool {
        !self.uncounted.is_empty()
    }

    /// Counts new topics for the wildcards that match them, for about `units`. Returns the units used.
    pub fn count_new_topics(&mut self, units: usize) -> usize {
        let mut used = 0;
        while used < units
            && let Some(id) = self.uncounted.pop_front()
        {
            used += 1;
            let topic = topic_mut(&mut self.topics, id, self.shards);
            // It may have been closed since, and opened again.
            let Some(topic) = topic.filter(|topic| !topic.is_counted) else { continue };
            topic.is_counted = true;
            let name = topic.info.name.clone();
            used += self.count_topic(id, &name, true);
        }
        used
    }

    /// Counts a topic that has come or gone, for the wildcards that match it. Returns the units used.
    pub(super) fn count_topic(&mut self, id: TopicId, name: &str, comes: bool) -> usize {
        let at = self.topics.place(id, self.shards).unwrap_or_default();
        let entries = &mut self.entries;
        self.patterns.for_each_match(name, |&index| {
            let entry = entries[index as usize].as_mut();
            if let Some(entry) = entry.filter(|entry| !entry.is_exact && entry.topics.include(at)) {
                match comes {
                    true => entry.topics.counted += 1,
                    false => entry.topics.counted -= 1,
                }
            }
        })
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
        let Some(at) = self.topics.place(id, self.shards) else { return };
        for index in 0..self.joining.len() {
            let joining = &self.joining[index];
            let Some(topic) = topic_ref(&self.topics, id, self.shards) else { return };
            let waits = joining.joins
                && at >= joining.next
                && !joining.early.contains(&id)
                && pattern::matches(self.pattern(joining.entry), &topic.info.name);
            let (slot, entry, held) = (joining.slot, joining.entry, joining.subscription(sessions));
            let Some(Subscription { start_from, .. }) = held.filter(|_| waits) else { continue };
            self.joining[index].early.insert(id);
            self.join(id, slot, entry, start_from, sessions, logs);
            self.queue_pull(slot, sessions);
        }
        self.evict_overflowing(sessions, logs);
    }

    /// Notes that a new topic needs no joining: its members have joined it, and groups receive it from its first tick.
    pub(super) fn note_joined(&mut self, id: TopicId, name: &str) {
        for joining in self.joining.iter_mut().filter(|joining| joining.joins) {
            let entry = self.entries[joining.entry as usize].as_ref();
            if entry.is_some_and(|entry| pattern::matches(&entry.pattern, name)) {
                joining.early.insert(id);
            }
        }
    }

    /// Joins a topic through a subscription, which must be live. A session that receives the topic already goes on as it is;
    /// one that wildcard groups serve needs no membership.
    fn join(
        &mut self,
        id: TopicId,
        slot: SlotId,
        entry: u32,
        start_from: StartFrom,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let backlog = self.backlog(id, slot, start_from, sessions);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "only open topics are joined");
        };
        let Some(session) = sessions.open_mut(slot) else { return };
        if session.memberships.contains_key(&id) {
            self.merge_deliveries(id, slot, sessions);
            return;
        }
        let merged = wildcard::merged(&self.entries, topic, &session.subscriptions, session.format);
        let Some(merged) = merged else {
            return debug_assert!(false, "a session joins through a live subscription");
        };
        let held = session.subscription(entry).map(|held| held.delivery);
        let entry = self.entries[entry as usize].as_ref();
        let is_shared = entry.zip(held).is_some_and(|(entry, delivery)| entry.shares(delivery));
        let backlog = backlog.filter(|_| merged.shared == u32::from(is_shared));
        if backlog.is_some() || !merged.is_shared {
            topic.join(slot, merged, backlog, sessions, logs);
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
        let (walk, listed) = self.walk(held.entry, slot, Change::Leave, sessions);
        (walk, 1 + listed)
    }

    /// Begins to change how a pattern's subscription is delivered. `None` if the session does not hold the pattern.
    pub fn begin_update(
        &mut self,
        index: u32,
        slot: SlotId,
        delivery: Delivery,
        sessions: &mut Sessions,
    ) -> Option<Update> {
        let held = *sessions.open_mut(slot)?.subscription(index)?;
        self.leave_members(held, slot, sessions);
        let session = sessions.open_mut(slot)?;
        let now = session.subscription_mut(index)?;
        // What it started with has been joined.
        let start_from = if held.position.is_some() { StartFrom::Live } else { held.start_from };
        *now = Subscription::new(index, delivery, start_from);
        let entry = self.entries[index as usize].as_ref()?;
        let gets_pace = entry.shares(held.delivery) && !entry.shares(delivery);
        if held.position.is_some() {
            self.enter_members(index, slot, sessions);
            if gets_pace && self.begin_walk(index, slot, sessions) {
                return Some(Update::Join);
            }
        }
        let (walk, listed) = self.walk(index, slot, Change::Merge, sessions);
        Some(Update::Walk(walk, listed))
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
        if !session.memberships.contains_key(&id) {
            return 0;
        }
        let visited = session.subscriptions.len();
        let merged = wildcard::merged(&self.entries, topic, &session.subscriptions, session.format);
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
                let is_member =
                    sessions.get(slot).is_some_and(|session| session.memberships.contains_key(&id));
                // It may have left a forgotten topic before.
                if is_member && let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
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
