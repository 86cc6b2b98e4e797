//! Topics that open in pieces, so that a topic with many members does not make a turn long.
//!
//! Before anybody learns of a topic's next life, the members of its last life must leave; before its first tick, the sessions
//! whose subscriptions need a membership must join. If these are few, a topic opens at once. Otherwise it continues in
//! [`Fanout::advance_openings`], and what its home sends meanwhile waits here.
//!
//! ```text
//!  Waiting ------> Leaving ------> Losing ------> Joining ------> Delivering ------> open, or forgotten
//!  for the last    members of      their frames   members         ticks and history
//!  life to open    the last life   that wait                      that waited
//! ```
//!
//! If its home forgets a topic that is still opening, the topic opens as if nothing had happened, and its life ends after that:
//! its members are owed what it had. Its next life waits for it.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    EgressLogs, Fanout, Subscription,
    topic::{Backlog, Life},
    topic_mut, topic_ref,
    wildcard::{self, Matching},
};
use crate::{
    ids::{SessionId, SlotId},
    limits::{
        DELIVERIES_PER_OPENING_UNIT, FRAMES_PER_UNIT, NEW_TOPIC_UNITS, OPENING_BYTES_MAX, TURN_OPENING_UNITS,
    },
    session::table::Sessions,
};
use tickcast_proto::{
    Step,
    frame::{self, Frame, Kind},
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
/// Bound: `topics_max`, and [`OPENING_BYTES_MAX`] of waiting frames plus one frame: the shard takes nothing in beyond that.
/// Invariant: `order` lists each topic of `by_topic` once, and a life before the next one of its topic.
#[derive(Debug, Default)]
pub(super) struct Openings {
    /// The one that continues next comes first.
    order: VecDeque<TopicId>,
    by_topic: HashMap<TopicId, Opening, rustc_hash::FxBuildHasher>,
    /// Bytes that wait for all of them.
    waiting_bytes: usize,
    units: OpeningUnits,
    /// Units left of this turn.
    left: usize,
    /// Time of the last turn, CLOCK_MONOTONIC nanoseconds.
    now_ns: u64,
}

/// A topic that is opening.
#[derive(Debug)]
struct Opening {
    stage: Stage,
    /// What sessions recover before they go live.
    backlogs: HashMap<SessionId, Backlog>,
    /// Encoded ticks and pieces of history.
    waiting: Vec<u8>,
    /// How much of `waiting` has been delivered.
    delivered: usize,
    /// Its last sequence, if its home has forgotten it meanwhile.
    forgotten: Option<u64>,
}

#[derive(Debug)]
enum Stage {
    /// The topic's last life is still opening itself.
    Waiting { last: TopicId },
    /// The members of the topic's last life leave.
    Leaving { last: TopicId },
    /// What sessions still wait for of the last life is lost; `next` is the next slot.
    Losing { last: TopicId, next: u32 },
    /// Sessions join.
    Joining(std::vec::IntoIter<SlotId>),
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

    /// Keeps a frame of a topic that is opening. Returns `false` if the topic is open.
    pub(super) fn keep(&mut self, frame: &Frame<'_>) -> bool {
        let Some(opening) = self.by_topic.get_mut(&TopicId(frame.header.topic_id)) else { return false };
        if opening.delivered > opening.waiting.len() / 2 {
            opening.waiting.drain(..std::mem::take(&mut opening.delivered));
        }
        opening.waiting.extend_from_slice(frame.bytes);
        self.waiting_bytes += frame.bytes.len();
        true
    }

    /// Notes that the home has forgotten a topic. Returns `false` if the topic is open.
    pub(super) fn end_when_open(&mut self, id: TopicId, last: u64) -> bool {
        let opening = self.by_topic.get_mut(&id);
        opening.map(|opening| opening.forgotten = Some(last)).is_some()
    }

    /// Whether a topic is opening whose home has forgotten it.
    pub(super) fn is_forgotten(&self, id: TopicId) -> bool {
        self.by_topic.get(&id).is_some_and(|opening| opening.forgotten.is_some())
    }

    /// Keeps what a session recovers in a topic that waits for its last life to open: the session joins it in its turn, because
    /// it may yet get ticks of that life. Returns `false` if the topic does not wait.
    pub(super) fn keep_member(&mut self, id: TopicId, session: SessionId, backlog: Option<Backlog>) -> bool {
        let opening = self.by_topic.get_mut(&id);
        let Some(opening) = opening.filter(|opening| matches!(opening.stage, Stage::Waiting { .. })) else {
            return false;
        };
        if let Some(backlog) = backlog {
            opening.backlogs.entry(session).or_insert(backlog);
        }
        true
    }

    /// The last life of a topic that waits for it to open.
    fn waits_for(&self, id: TopicId) -> Option<TopicId> {
        match self.by_topic.get(&id)?.stage {
            Stage::Waiting { last } => Some(last).filter(|&last| self.contains(last)),
            _ => None,
        }
    }

    /// Units that a topic may use when its home opens it. While others wait, they go first.
    fn units_at_once(&self) -> usize {
        if self.is_empty() { self.left.max(self.units.at_once) } else { self.units.at_once }
    }

    fn remove(&mut self, id: TopicId) -> Option<Opening> {
        let opening = self.by_topic.remove(&id)?;
        self.waiting_bytes -= opening.waiting.len() - opening.delivered;
        Some(opening)
    }

    fn insert(&mut self, id: TopicId, opening: Opening) {
        self.waiting_bytes += opening.waiting.len() - opening.delivered;
        self.by_topic.insert(id, opening);
    }
}

impl Fanout {
    /// Whether topics are opening: [`Fanout::advance_openings`] has work.
    pub fn opens_topics(&self) -> bool {
        !self.openings.is_empty()
    }

    /// Whether so much waits for topics to open that the shard must take in no more ticks.
    pub fn waits_for_openings(&self) -> bool {
        self.openings.waiting_bytes >= OPENING_BYTES_MAX
    }

    /// Bytes of the frames that wait for topics to open.
    pub fn openings_bytes(&self) -> usize {
        self.openings.waiting_bytes
    }

    /// Replaces the budgets, so that few members make an opening continue in later turns.
    #[cfg(any(test, feature = "testing"))]
    pub fn set_opening_units(&mut self, units: OpeningUnits) {
        (self.openings.units, self.openings.left) = (units, units.per_turn);
    }

    /// Begins to open a topic that is in the tables. `last`: its last life, if this shard has not dropped it yet.
    /// `backlogs`: what sessions recover in it, besides those that await it.
    pub(super) fn begin_opening(
        &mut self,
        id: TopicId,
        last: Option<TopicId>,
        backlogs: HashMap<SessionId, Backlog>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let (waiting, delivered, forgotten) = (Vec::new(), 0, None);
        let mut opening = Opening { stage: Stage::Delivering, backlogs, waiting, delivered, forgotten };
        opening.stage = match last {
            None => self.begin_joining(id, &mut opening.backlogs, sessions),
            Some(last) => Stage::Waiting { last },
        };
        let units = self.openings.units_at_once();
        let (used, is_done) = self.advance_opening(id, &mut opening, units, sessions, logs, 0);
        self.openings.left = self.openings.left.saturating_sub(used);
        self.tally.units += used;
        if !is_done {
            self.openings.insert(id, opening);
            self.openings.order.push_back(id);
        }
    }

    /// Continues to open topics, one after the other, within the budget of a turn. Returns whether there were any.
    pub fn advance_openings(&mut self, sessions: &mut Sessions, logs: &mut EgressLogs, now_ns: u64) -> bool {
        let Openings { units, left, .. } = self.openings;
        (self.openings.left, self.openings.now_ns) = (units.per_turn, now_ns);
        if self.openings.is_empty() {
            return false;
        }
        let mut left = left.max(units.at_once).max(1);
        while left > 0
            && let Some(&id) = self.openings.order.front()
        {
            let Some(mut opening) = self.openings.remove(id) else {
                debug_assert!(false, "each topic of the order is opening");
                self.openings.order.pop_front();
                continue;
            };
            let (used, is_done) = self.advance_opening(id, &mut opening, left, sessions, logs, now_ns);
            left = left.saturating_sub(used);
            match (is_done, opening.forgotten) {
                (false, _) => self.openings.insert(id, opening),
                (true, forgotten) => {
                    self.openings.order.pop_front();
                    forgotten.into_iter().for_each(|last| self.end_life(id, last));
                }
            }
        }
        true
    }

    /// Finishes a topic's opening at once, because this shard no longer needs the topic, and its home may open it again. Does
    /// nothing if the topic is open.
    pub(super) fn finish_opening(&mut self, id: TopicId, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let mut lives = vec![id];
        while let Some(last) = lives.last().and_then(|&id| self.openings.waits_for(id)) {
            lives.push(last);
        }
        for id in lives.into_iter().rev() {
            let Some(mut opening) = self.openings.remove(id) else { return };
            self.openings.order.retain(|&other| other != id);
            let now_ns = self.openings.now_ns;
            self.advance_opening(id, &mut opening, usize::MAX, sessions, logs, now_ns);
            opening.forgotten.into_iter().for_each(|last| self.end_life(id, last));
        }
    }

    /// Finishes all openings at once, because the server stops.
    pub fn finish_openings(&mut self, sessions: &mut Sessions, logs: &mut EgressLogs) {
        while let Some(&id) = self.openings.order.front() {
            self.finish_opening(id, sessions, logs);
        }
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
        let mut used = 0;
        let is_done = loop {
            match &mut opening.stage {
                Stage::Waiting { last } if self.openings.contains(*last) => break false,
                Stage::Waiting { last } => {
                    let last = *last;
                    if let Some(topic) = topic_mut(&mut self.topics, last, self.shards) {
                        topic.life = Life::Ended;
                    }
                    opening.stage = Stage::Leaving { last };
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
                Stage::Joining(slots) => match slots.as_slice().first() {
                    Some(_) if used >= units => break false,
                    Some(&slot) => {
                        slots.next();
                        used += 1;
                        self.join_opening(id, slot, &mut opening.backlogs, sessions, logs);
                    }
                    None => opening.stage = Stage::Delivering,
                },
                Stage::Delivering => {
                    let rest = &opening.waiting[opening.delivered..];
                    let Ok(Step::Complete(len, frame)) = frame::decode(rest, usize::MAX) else {
                        debug_assert!(rest.is_empty(), "whole frames wait");
                        break true;
                    };
                    if used >= units {
                        break false;
                    }
                    let before = self.tally.work();
                    match frame.kind {
                        Kind::History => self.handle_history(&frame, sessions, logs),
                        _ => self.deliver(&frame, sessions, logs, now_ns),
                    }
                    opening.delivered += len;
                    used += 1 + (self.tally.work() - before) / DELIVERIES_PER_OPENING_UNIT;
                }
            }
        };
        self.evict_overflowing(sessions, logs);
        (used, is_done)
    }

    /// Lists the sessions that join a topic, and takes out the positions that await it.
    fn begin_joining(
        &mut self,
        id: TopicId,
        backlogs: &mut HashMap<SessionId, Backlog>,
        sessions: &Sessions,
    ) -> Stage {
        let mut slots: Vec<SlotId> = backlogs.keys().map(|session| session.slot()).collect();
        for (slot, backlog) in self.take_awaited(id) {
            if let Some(session) = sessions.get(slot) {
                slots.push(slot);
                backlogs.insert(session.id, backlog);
            }
        }
        let Some(topic) = topic_ref(&self.topics, id, self.shards) else {
            debug_assert!(false, "a topic stays while it opens");
            return Stage::Delivering;
        };
        let entries = &self.entries;
        let mut add = |index: u32| {
            let Some(entry) = entries[index as usize].as_ref() else {
                return debug_assert!(false, "a pattern in the trie has an entry");
            };
            slots.extend_from_slice(&entry.members);
        };
        // Check all patterns only if a wildcard has members: a home may open thousands of topics in one turn.
        match self.wildcards.has_members() {
            false => self.patterns.get(topic.key()).into_iter().for_each(|&index| add(index)),
            true => {
                let Matching { patterns, tenant_highest, exports } = self.matching();
                exports.for_each_match(patterns, tenant_highest, topic.key(), |&index| add(index));
            }
        }
        // Several patterns of a session may match.
        slots.sort_unstable();
        slots.dedup();
        Stage::Joining(slots.into_iter())
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
            |held: &&Subscription| !joining.iter().any(|walk| walk.walks_to(id, slot, held.entry));
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
