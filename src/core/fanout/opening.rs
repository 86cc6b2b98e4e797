//! Topics that open in pieces, so that a topic with many members does not make a turn long.
//!
//! Before anybody learns of a topic's next life, the members of its last life must leave; before its first tick, the sessions
//! whose subscriptions need a membership must join. If these are few, a topic opens at once. Otherwise it continues in
//! [`Fanout::advance_openings`], and what its home sends meanwhile waits here.
//!
//! ```text
//!  Waiting -------> Leaving ------> Losing ------> Joining ------> Delivering ------> open, or forgotten
//!  for the last     members of      their frames   members         ticks, then requests
//!  life to open     the last life   that wait                      for history
//! ```
//!
//! Each topic has an owner, who created it. The owners take turns, so that nobody's topics wait for all topics of another. What
//! waits for a topic is bounded: beyond that, its oldest ticks are lost, and its members learn of it by GAP. So a topic that
//! opens delays no other topic. Its publishers have to wait as if it were open: each tick that comes is charged, and in the last
//! stage the oldest one that waits is delivered for it. So what waits becomes less in each turn, however fast they are.
//!
//! If its home forgets a topic that is still opening, the opening goes on, because its members are owed what waits; the life ends
//! after that. Whatever its home sends of the topic's next life meanwhile [waits](waiting): this shard does not know that life yet,
//! as if the home's messages were late.

mod arrivals;
mod kept;
mod order;
mod waiting;

use std::collections::{HashMap, HashSet, VecDeque};

use self::{
    arrivals::Arrivals,
    order::Order,
    waiting::{Endings, Forgotten, Unopened},
};
use super::{
    EgressLogs, Fanout, Subscription,
    topic::{Backlog, Life},
    topic_mut, topic_ref,
    wildcard::{self, Matching},
};
use crate::{
    ids::{SessionId, SlotId},
    limits::{
        DELIVERIES_PER_OPENING_UNIT, FRAMES_PER_UNIT, NEW_TOPIC_UNITS, OPENING_QUANTUM_UNITS,
        TURN_ENDING_COMPARISONS, TURN_OPENING_UNITS,
    },
    session::table::Sessions,
};
use tickcast_proto::{
    Step,
    frame::{self, Frame},
    ids::TopicId,
};

/// How much of the work of opening topics a shard does at once. A unit is a member that leaves or joins.
#[derive(Clone, Copy, Debug)]
pub struct OpeningUnits {
    /// Units in one turn.
    pub per_turn: usize,
    /// Units for each topic when its home opens it, whatever the turn has used: they are part of the topic's cost.
    pub at_once: usize,
}

impl Default for OpeningUnits {
    fn default() -> Self {
        OpeningUnits { per_turn: TURN_OPENING_UNITS, at_once: NEW_TOPIC_UNITS }
    }
}

/// The topics that are opening.
///
/// Bound: `topics_max`, and [`OPENINGS_BYTES_MAX`](crate::limits::OPENINGS_BYTES_MAX) of waiting ticks.
/// Invariant: `order` lists each topic of `by_topic` once, at its owner, except those that wait for their last life. `waiting_bytes` is
/// the sum of `owner_bytes`.
#[derive(Debug, Default)]
pub(super) struct Openings {
    order: Order,
    by_topic: HashMap<TopicId, Opening, rustc_hash::FxBuildHasher>,
    /// Bytes that wait for all of them.
    waiting_bytes: usize,
    /// Bytes that wait for the topics of each owner that has any.
    owner_bytes: HashMap<u32, usize, rustc_hash::FxBuildHasher>,
    endings: Endings,
    /// Ticks lost since they were last taken.
    lost: u64,
    units: OpeningUnits,
    /// Units left of this turn.
    left: usize,
    /// Time of the last turn, CLOCK_MONOTONIC nanoseconds.
    now_ns: u64,
}

/// A topic that is opening.
#[derive(Debug)]
pub(super) struct Opening {
    owner: u32,
    stage: Stage,
    /// What sessions recover before they go live.
    backlogs: HashMap<SessionId, Backlog>,
    /// Encoded ticks. Bound: [`OPENING_BYTES_MAX`](crate::limits::OPENING_BYTES_MAX).
    waiting: Vec<u8>,
    /// How much of `waiting` has been delivered, or lost.
    delivered: usize,
    /// Ticks before those that wait which were lost, and have not been announced.
    lost: Option<(u64, u64)>,
    /// Sessions that request its history once it is open. Bound: its members, and those that have left it meanwhile.
    pulls: HashSet<SlotId, rustc_hash::FxBuildHasher>,
    /// Set if its home has forgotten it meanwhile.
    forgotten: Option<Forgotten>,
    /// The topic's next lives in order, which wait for this one to open. Bound: each has a place in the table of its home.
    next_lives: VecDeque<TopicId>,
}

impl Opening {
    fn new(owner: u32, stage: Stage) -> Opening {
        Opening {
            owner,
            stage,
            backlogs: HashMap::new(),
            waiting: Vec::new(),
            delivered: 0,
            lost: None,
            pulls: HashSet::default(),
            forgotten: None,
            next_lives: VecDeque::new(),
        }
    }

    fn bytes(&self) -> usize {
        self.waiting.len() - self.delivered
    }

    /// Whether ticks, or the announcement of lost ones, wait for the topic.
    fn has_waiting(&self) -> bool {
        self.bytes() > 0 || self.lost.is_some()
    }

    /// Notes that a tick is lost; all before it have been delivered or lost.
    fn lose(&mut self, tick: &Frame<'_>) {
        let (from, to) = (tick.previous() + 1, tick.header.sequence + 1);
        self.lost = Some((self.lost.map_or(from, |(from, _)| from), to));
    }

    /// Loses the tick that has waited longest. Returns its bytes; `None` if no tick waits.
    fn lose_oldest(&mut self) -> Option<usize> {
        let waiting = std::mem::take(&mut self.waiting);
        let lost = match frame::decode(&waiting[self.delivered..], usize::MAX) {
            Ok(Step::Complete(len, tick)) => {
                self.lose(&tick);
                self.delivered += len;
                Some(len)
            }
            _ => None,
        };
        self.waiting = waiting;
        lost
    }
}

#[derive(Debug)]
enum Stage {
    /// The topic's last life is still opening.
    Waiting(Box<Unopened>),
    /// The members of the topic's last life leave.
    Leaving { last: TopicId },
    /// What sessions still wait for of the last life is lost; `next` is the next slot.
    Losing { last: TopicId, next: u32 },
    /// Sessions join.
    Joining(Arrivals),
    /// What has waited is delivered.
    Delivering,
}

impl Openings {
    pub(super) fn is_empty(&self) -> bool {
        self.by_topic.is_empty()
    }

    pub(super) fn contains(&self, id: TopicId) -> bool {
        self.by_topic.contains_key(&id)
    }

    /// Bytes of heap memory.
    fn heap_bytes(&self) -> usize {
        let of_topic = |opening: &Opening| {
            let of_stage = match &opening.stage {
                Stage::Waiting(unopened) => unopened.heap_bytes(),
                Stage::Joining(arrivals) => arrivals.heap_bytes(),
                Stage::Leaving { .. } | Stage::Losing { .. } | Stage::Delivering => 0,
            };
            of_stage
                + opening.next_lives.capacity() * size_of::<TopicId>()
                + opening.backlogs.capacity() * size_of::<(SessionId, Backlog)>()
                + opening.pulls.capacity() * size_of::<SlotId>()
                + opening.waiting.capacity()
        };
        let of_topics: usize = self.by_topic.values().map(of_topic).sum();
        of_topics
            + self.endings.heap_bytes()
            + self.order.heap_bytes()
            + self.by_topic.capacity() * size_of::<(TopicId, Opening)>()
    }

    /// Takes the count of lost ticks.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Makes a session's request for history wait until the topic is open. Returns `false` if it is.
    pub(super) fn defer_pull(&mut self, id: TopicId, slot: SlotId) -> bool {
        let opening = self.by_topic.get_mut(&id);
        opening.map(|opening| opening.pulls.insert(slot)).is_some()
    }

    /// Units that a topic may use when its home opens it. While others wait, they go first.
    fn units_at_once(&self) -> usize {
        if self.is_empty() { self.left.max(self.units.at_once) } else { self.units.at_once }
    }

    fn remove(&mut self, id: TopicId) -> Option<Opening> {
        let opening = self.by_topic.remove(&id)?;
        self.waiting_bytes -= opening.bytes();
        if let Some(bytes) = self.owner_bytes.get_mut(&opening.owner) {
            *bytes -= opening.bytes();
            if *bytes == 0 {
                self.owner_bytes.remove(&opening.owner);
            }
        }
        Some(opening)
    }

    fn insert(&mut self, id: TopicId, opening: Opening) {
        self.waiting_bytes += opening.bytes();
        if opening.bytes() > 0 {
            *self.owner_bytes.entry(opening.owner).or_default() += opening.bytes();
        }
        self.by_topic.insert(id, opening);
    }

    /// Checks the tables against each other while few topics open.
    fn invariants(&self) {
        if cfg!(debug_assertions) && self.by_topic.len() <= CHECKED_MAX {
            let is_listed =
                |(owner, id)| self.by_topic.get(&id).is_some_and(|opening| opening.owner == owner);
            let mut topics: Vec<TopicId> = self.order.iter().map(|(_, id)| id).collect();
            topics.sort_unstable();
            topics.dedup();
            assert!(self.order.iter().all(is_listed), "only topics that open are in the order");
            let waits = |opening: &&Opening| matches!(opening.stage, Stage::Waiting(_));
            let waiting = self.by_topic.values().filter(waits).count();
            assert_eq!(topics.len() + waiting, self.by_topic.len(), "each topic that opens is in the order");
            assert_eq!(topics.len(), self.order.iter().count(), "a topic is in the order once");
            assert!(self.order.owners_len() <= topics.len(), "an owner without topics has no turn");
            assert_eq!(
                self.waiting_bytes,
                self.owner_bytes.values().sum::<usize>(),
                "each byte has an owner"
            );
        }
    }
}

/// [`Openings::invariants`] compares the tables up to this many topics, so that turns stay cheap in tests with thousands.
const CHECKED_MAX: usize = 64;

impl Fanout {
    /// Whether topics are opening: [`Fanout::advance_openings`] has work.
    pub fn opens_topics(&self) -> bool {
        !self.openings.is_empty() || self.openings.endings.has_work()
    }

    /// Bytes of the frames that wait for topics to open.
    pub fn openings_bytes(&self) -> usize {
        self.openings.waiting_bytes
    }

    /// Bytes of the state of topics that open, with those frames. O(topics that open).
    pub fn openings_heap_bytes(&self) -> usize {
        self.openings.heap_bytes()
    }

    /// Replaces the budgets, so that few members make an opening continue in later turns.
    #[cfg(any(test, feature = "testing"))]
    pub fn set_opening_units(&mut self, units: OpeningUnits) {
        (self.openings.units, self.openings.left) = (units, units.per_turn);
    }

    /// Begins to open a topic that is in the tables. `last`: the topic's last life, if this shard has not dropped it yet.
    /// `backlogs`: what sessions recover in it, besides those that await it. `waiting`: whatever has waited for its last life to
    /// open; then it opens in its owner's turn.
    pub(super) fn begin_opening(
        &mut self,
        (id, owner): (TopicId, u32),
        last: Option<TopicId>,
        backlogs: HashMap<SessionId, Backlog>,
        waiting: Option<Opening>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let has_waited = waiting.is_some();
        let mut opening = waiting.unwrap_or_else(|| Opening::new(owner, Stage::Delivering));
        opening.backlogs = backlogs;
        opening.stage = match last {
            None => self.begin_joining(id, &mut opening.backlogs, sessions),
            Some(last) => {
                if let Some(topic) = topic_mut(&mut self.topics, last, self.shards) {
                    topic.life = Life::Ended;
                }
                Stage::Leaving { last }
            }
        };
        let is_done = !has_waited && {
            let units = self.openings.units_at_once();
            let (used, is_done) = self.advance_opening(id, &mut opening, units, sessions, logs, 0);
            self.openings.left = self.openings.left.saturating_sub(used);
            self.tally.units += used;
            self.tally.opening_units += used as u64;
            is_done
        };
        if !is_done {
            self.openings.insert(id, opening);
            self.openings.order.push_back(owner, id);
        }
        self.openings.invariants();
    }

    /// Continues to open topics within the budget of a turn. Their owners take turns, and each one's topics open one after the
    /// other. Returns whether there were any.
    pub fn advance_openings(&mut self, sessions: &mut Sessions, logs: &mut EgressLogs, now_ns: u64) -> bool {
        let Openings { units, left, .. } = self.openings;
        (self.openings.left, self.openings.now_ns) = (units.per_turn, now_ns);
        if !self.opens_topics() {
            return false;
        }
        let mut comparisons = TURN_ENDING_COMPARISONS;
        self.compare_endings(&mut comparisons);
        let mut left = left.max(units.at_once).max(1);
        while left > 0
            && let Some(&id) = self.openings.order.front()
        {
            let Some(mut opening) = self.openings.remove(id) else {
                debug_assert!(false, "each topic of the order is opening");
                self.openings.order.pop_front();
                continue;
            };
            let (owner, quantum) = (opening.owner, left.min(OPENING_QUANTUM_UNITS));
            let (mut used, is_done) = self.advance_opening(id, &mut opening, quantum, sessions, logs, now_ns);
            if is_done {
                self.openings.order.pop_front();
                used += self.end_opening(id, opening, sessions, logs);
                self.compare_endings(&mut comparisons);
            } else {
                self.openings.insert(id, opening);
            }
            left = left.saturating_sub(used.max(1));
            self.tally.opening_units += used as u64;
            self.openings.order.end_turn(owner);
        }
        self.openings.invariants();
        true
    }

    /// Finishes all openings at once, because the server stops.
    pub fn finish_openings(&mut self, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let now_ns = self.openings.now_ns;
        while let Some(&id) = self.openings.order.front() {
            self.openings.order.pop_front();
            let Some(mut opening) = self.openings.remove(id) else {
                debug_assert!(false, "each topic of the order is opening");
                continue;
            };
            self.advance_opening(id, &mut opening, usize::MAX, sessions, logs, now_ns);
            self.end_opening(id, opening, sessions, logs);
        }
        self.openings.invariants();
    }

    /// Stops opening a topic that its home closes, which it does only when no pattern of this shard matches it any more: it has no
    /// members, and nobody is owed its ticks. Returns whether this shard does not know the topic, because it waits for its last life.
    pub(super) fn abandon_opening(&mut self, id: TopicId, sessions: &mut Sessions) -> bool {
        let Some(opening) = self.openings.remove(id) else { return false };
        debug_assert!(opening.forgotten.is_none(), "a home closes no topic that it has forgotten");
        if !matches!(opening.stage, Stage::Waiting(_)) {
            self.openings.order.remove(opening.owner, id);
        }
        self.openings.invariants();
        opening.pulls.into_iter().for_each(|slot| self.queue_pull(slot, sessions));
        match opening.stage {
            Stage::Waiting(_) => return true,
            // The home may open the topic again before its last life has gone.
            Stage::Leaving { last } | Stage::Losing { last, .. } => {
                if let Some(topic) = topic_ref(&self.topics, last, self.shards) {
                    self.forgotten_keys.insert(topic.key().into(), last);
                }
            }
            Stage::Joining(_) | Stage::Delivering => {}
        }
        false
    }

    /// Prepares a session to join a topic before its turn: whatever it has of the last life ends first. Returns what the session
    /// recovers. Does nothing if the topic is open.
    pub(super) fn begin_early_member(
        &mut self,
        id: TopicId,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> Option<Backlog> {
        let opening = self.openings.by_topic.get_mut(&id)?;
        let backlog = opening.backlogs.remove(&sessions.get(slot)?.id);
        if let Stage::Leaving { last } | Stage::Losing { last, .. } = opening.stage {
            if sessions.get(slot).is_some_and(|session| session.memberships.contains(last)) {
                self.leave_topic(last, slot, None, sessions, logs, 0);
            }
            self.lose_waiting_of(slot, &[last.0].into_iter().collect(), sessions, logs);
        }
        backlog.or_else(|| self.take_awaited_of(id, slot))
    }

    /// Forgets what a session recovers in topics that are opening and that none of its subscriptions delivers any more. Returns the
    /// units used. O(topics that open).
    pub(super) fn forget_backlogs(&mut self, slot: SlotId, sessions: &Sessions) -> usize {
        let Some(session) = sessions.get(slot).map(|session| session.id) else { return 0 };
        let of_session = self.openings.by_topic.iter();
        let of_session = of_session.filter(|(_, opening)| opening.backlogs.contains_key(&session));
        let topics: Vec<TopicId> = of_session.map(|(&id, _)| id).collect();
        for &id in &topics {
            let topic = topic_ref(&self.topics, id, self.shards);
            if topic.is_none_or(|topic| self.deliveries_of(topic, slot, sessions).is_none())
                && let Some(opening) = self.openings.by_topic.get_mut(&id)
            {
                opening.backlogs.remove(&session);
            }
        }
        topics.len() + self.openings.by_topic.len() / DELIVERIES_PER_OPENING_UNIT
    }

    /// Does about `units` units of a topic's opening. Returns the units used, and whether the topic is open.
    fn advance_opening(
        &mut self,
        id: TopicId,
        opening: &mut Opening,
        units: usize,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) -> (usize, bool) {
        // Entries that are listed again for each piece must not keep a topic from getting on.
        let (mut used, mut listed) = (0, 0);
        let is_done = loop {
            let has_waiting = opening.has_waiting();
            match &mut opening.stage {
                Stage::Waiting(_) => {
                    debug_assert!(false, "a topic that waits for its last life is not in the order");
                    break false;
                }
                Stage::Leaving { last } => {
                    let last = *last;
                    let topic = topic_ref(&self.topics, last, self.shards);
                    match topic.and_then(|topic| topic.any_member()) {
                        Some(_) if used >= units => break false,
                        Some(slot) => {
                            self.leave_topic(last, slot, None, sessions, logs, now_ns);
                            used += 1;
                        }
                        // Raw sessions keep its frames. No eviction makes them members again, because the topic has ended:
                        // their held ticks would follow those of the next life.
                        None => opening.stage = Stage::Losing { last, next: 0 },
                    }
                }
                Stage::Losing { last, next } => {
                    let topics: HashSet<u32, rustc_hash::FxBuildHasher> = [last.0].into_iter().collect();
                    let (mut looks, end) = (0, if sessions.waiting() > 0 { sessions.slots_len() } else { 0 });
                    while *next < end && used + looks / FRAMES_PER_UNIT < units {
                        looks += 1 + self.lose_waiting_of(SlotId(*next), &topics, sessions, logs);
                        *next += 1;
                    }
                    used += looks / FRAMES_PER_UNIT;
                    if *next < end {
                        break false;
                    }
                    opening.stage = self.begin_joining(id, &mut opening.backlogs, sessions);
                }
                Stage::Joining(arrivals) if used >= units => {
                    arrivals.suspend();
                    break false;
                }
                Stage::Joining(arrivals) => {
                    let (units, slot) = self.next_arrival(id, arrivals);
                    listed += units;
                    match slot {
                        Some(slot) => {
                            used += 1;
                            self.join_opening(id, slot, &mut opening.backlogs, sessions, logs);
                        }
                        None => opening.stage = Stage::Delivering,
                    }
                }
                // What is done is open, so that a tick that comes meanwhile need not wait.
                Stage::Delivering if used >= units && has_waiting => break false,
                Stage::Delivering => {
                    let before = self.tally.work();
                    if !self.deliver_oldest(id, opening, sessions, logs, now_ns) {
                        used += opening.pulls.len() / DELIVERIES_PER_OPENING_UNIT;
                        for slot in std::mem::take(&mut opening.pulls) {
                            self.queue_pull(slot, sessions);
                        }
                        break true;
                    }
                    used += 1 + (self.tally.work() - before) / DELIVERIES_PER_OPENING_UNIT;
                }
            }
        };
        self.evict_overflowing(sessions, logs);
        (used + listed, is_done)
    }

    /// Prepares the sessions to join a topic, and takes out the positions that await it.
    fn begin_joining(
        &mut self,
        id: TopicId,
        backlogs: &mut HashMap<SessionId, Backlog>,
        sessions: &Sessions,
    ) -> Stage {
        for (slot, backlog) in self.take_awaited(id) {
            if let Some(session) = sessions.get(slot) {
                backlogs.insert(session.id, backlog);
            }
        }
        let positions = backlogs.keys().map(|session| session.slot()).collect();
        Stage::Joining(Arrivals::new(positions))
    }

    /// Joins a session to a topic that is opening, unless it has left the patterns since, or joined the topic early.
    fn join_opening(
        &mut self,
        id: TopicId,
        slot: SlotId,
        backlogs: &mut HashMap<SessionId, Backlog>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a topic stays while it opens");
        };
        let Some(session) = sessions.get(slot).filter(|session| !session.memberships.contains(id)) else {
            return;
        };
        // A walk under way joins it to the topic itself, with the positions of its own subscription.
        let joining = &self.joining;
        let has_joined =
            |held: &&Subscription| !joining.iter().any(|walk| walk.walks_to(topic, slot, held.entry));
        let merged = wildcard::merged(
            Matching::new(&self.patterns, self.tenant_highest, &self.settings.exports),
            &self.entries,
            topic,
            session.subscriptions.iter().filter(has_joined),
            session.principal.as_deref(),
        );
        let backlog = backlogs.remove(&session.id);
        let Some(merged) = merged.filter(|merged| backlog.is_some() || !merged.is_shared) else { return };
        topic.join(slot, merged, backlog, sessions, logs);
        if backlog.is_some() {
            self.queue_pull(slot, sessions);
        }
    }
}
