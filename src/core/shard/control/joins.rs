//! Which sessions may join the topics of a wildcard, and when.
//!
//! Each session first searches for the topics, in turn with the others. If they are few, it joins them at once. If they are many,
//! it waits for one of the places for walks, behind those that have waited longer. A walk that has had its place for long gives it
//! up to one that waits, and continues where it was when its turn comes again. Its subscription has been acknowledged, so a tick
//! looks at it as at those that have places.

use super::{Control, Flow, Operation, Served, Shard};
use crate::{
    fanout::{Found, Search},
    ids::SlotId,
    limits::{JOIN_PLACE_UNITS, JOINS_ACTIVE_MAX, JOINS_MAX},
    now::Now,
};
use tickcast_proto::ids::TopicId;

/// Whether a session may begin to join topics one by one.
#[derive(Debug, Default)]
pub(super) enum JoinState {
    /// It has not asked.
    #[default]
    None,
    /// It searches for the topics. It has a number, in the order in which sessions began to search.
    Searches(Box<Search>, u64),
    /// It is on the list of those that wait.
    Waits,
    /// It may.
    Granted,
    /// It has given up the place of its walk, and is on the list of those that wait.
    Suspended,
}

impl JoinState {
    /// Bytes of heap memory.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            JoinState::Searches(search, _) => size_of::<Search>() + search.heap_bytes(),
            JoinState::None | JoinState::Waits | JoinState::Granted | JoinState::Suspended => 0,
        }
    }
}

/// How a session joins topics.
pub(super) enum Joins {
    /// At once.
    Few(Vec<TopicId>),
    /// By a walk.
    Many,
    /// Not at all: it may not have so many memberships.
    TooMany,
}

impl Control {
    /// Lets those that have waited longest begin to join topics, or continue. `walks`: sessions whose walk is under way, with those
    /// that have no place.
    pub(super) fn grant_joins(&mut self, walks: usize) {
        while walks + self.joins_granted < JOINS_ACTIVE_MAX + self.joins_suspended
            && let Some(&(_, session)) = self.join_waiters.front()
        {
            let flow = self.flows.get_mut(&session.slot()).filter(|flow| flow.session == session);
            match flow.map(|flow| &mut flow.join_state) {
                // It goes on once another walk is done.
                Some(JoinState::Waits) if walks + self.joins_granted >= JOINS_MAX => return,
                Some(state @ JoinState::Waits) => {
                    *state = JoinState::Granted;
                    self.joins_granted += 1;
                    self.queue.push(session.slot());
                }
                Some(state @ JoinState::Suspended) => {
                    *state = JoinState::None;
                    self.joins_suspended -= 1;
                    self.queue.push(session.slot());
                }
                _ => {}
            }
            self.join_waiters.pop_front();
        }
    }

    /// Whether a session need not wait; nobody overtakes those that do.
    fn has_place(&self, walks: usize) -> bool {
        self.join_waiters.is_empty() && walks + self.joins_granted < JOINS_ACTIVE_MAX + self.joins_suspended
    }

    /// Notes that a session begins what it waited for, or never will.
    pub(super) fn end_wait(&mut self, flow: &mut Flow) {
        let state = std::mem::take(&mut flow.join_state);
        self.joins_granted -= usize::from(matches!(state, JoinState::Granted));
        self.joins_suspended -= usize::from(matches!(state, JoinState::Suspended));
    }

    /// Notes that a walk has used these units and is not done. Returns whether it gives its place up, because it has had it for long
    /// and others wait. Memory for those without a place is bounded: [`JOINS_MAX`].
    pub(super) fn gives_place_up(&mut self, flow: &mut Flow, used: usize, walks: usize) -> bool {
        flow.walked += used;
        let are_too_many = walks + self.joins_granted >= JOINS_MAX;
        if flow.walked < JOIN_PLACE_UNITS || self.join_waiters.is_empty() || are_too_many {
            return false;
        }
        flow.walked = 0;
        flow.join_state = JoinState::Suspended;
        self.joins_suspended += 1;
        self.searches += 1;
        self.join_waiters.push_back((self.searches, flow.session));
        true
    }
}

impl Shard {
    /// Decides how a session joins the topics of an entry's pattern, for which it may have `left` more memberships. Returns the
    /// units used, and `Err` while it searches or waits.
    pub(super) fn find_joins(
        &mut self,
        flow: &mut Flow,
        slot: SlotId,
        entry: u32,
        units: usize,
        left: usize,
    ) -> (usize, Result<Joins, Served>) {
        let (mut search, number) = match std::mem::take(&mut flow.join_state) {
            JoinState::Searches(search, number) if search.entry() == entry => (search, number),
            JoinState::None | JoinState::Searches(..) => {
                self.control.searches += 1;
                (self.fanout.begin_search(entry).into(), self.control.searches)
            }
            JoinState::Suspended => {
                debug_assert!(false, "an operation begins after the walk of the one before it");
                flow.join_state = JoinState::Suspended;
                return (0, Err(Served::Waits));
            }
            JoinState::Granted => {
                flow.join_state = JoinState::Granted;
                return (0, Ok(if left > 0 { Joins::Many } else { Joins::TooMany }));
            }
            JoinState::Waits => {
                flow.join_state = JoinState::Waits;
                return (0, Err(Served::Waits));
            }
        };
        let (used, found) = self.fanout.advance_search(&mut search, slot, (units, left), &self.sessions);
        match found {
            Found::Few(topics) => (used, Ok(Joins::Few(topics))),
            Found::TooMany => (used, Ok(Joins::TooMany)),
            Found::More => {
                flow.join_state = JoinState::Searches(search, number);
                (used.max(1), Err(Served::More))
            }
            Found::Many if self.control.has_place(self.fanout.joins_len()) => (used, Ok(Joins::Many)),
            Found::Many => {
                flow.join_state = JoinState::Waits;
                let waiters = &mut self.control.join_waiters;
                let at = waiters.partition_point(|&(before, _)| before < number);
                waiters.insert(at, (number, flow.session));
                (used.max(1), Err(Served::Waits))
            }
        }
    }

    /// Refuses a session's next operation, which needs more memberships than it may have.
    pub(super) fn refuse_operation(&mut self, flow: &mut Flow, slot: SlotId, now: Now) -> Served {
        match flow.operations.pop_front() {
            Some(Operation::Join { entry, request }) => {
                let pattern = self.fanout.pattern(entry);
                if self.sessions.unsubscribe(slot, entry, &pattern).is_some() {
                    self.give_back_subscriptions(slot, 1);
                    if let Some(pattern) = self.fanout.release(entry) {
                        self.remove_interest(&pattern);
                    }
                }
                self.fail_memberships(slot, request, now);
                self.end_if_nothing_follows(slot, now);
            }
            Some(Operation::Update { request, .. }) => {
                self.end_change(flow, slot);
                self.fail_memberships(slot, request, now);
            }
            None | Some(Operation::Unsubscribe { .. } | Operation::Review { .. }) => {
                debug_assert!(false, "only operations that join topics need memberships");
            }
        }
        Served::More
    }
}
