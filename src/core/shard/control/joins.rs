//! Which sessions may join the topics of a wildcard, and when.
//!
//! Each session first searches for the topics, in turn with the others. If they are few, it joins them at once. If they are many,
//! it waits for one of the places for walks, behind those that have waited longer.

use super::{Control, Flow, Operation, Served, Shard};
use crate::{
    fanout::{Found, Search},
    ids::SlotId,
    limits::JOINS_ACTIVE_MAX,
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
}

impl JoinState {
    /// Bytes of heap memory.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            JoinState::Searches(search, _) => size_of::<Search>() + search.heap_bytes(),
            JoinState::None | JoinState::Waits | JoinState::Granted => 0,
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
    /// Lets those that have waited longest begin to join topics. `active`: sessions that join now.
    pub(super) fn grant_joins(&mut self, active: usize) {
        while active + self.joins_granted < JOINS_ACTIVE_MAX
            && let Some((_, session)) = self.join_waiters.pop_front()
        {
            let flow = self.flows.get_mut(&session.slot()).filter(|flow| flow.session == session);
            if let Some(flow) = flow.filter(|flow| matches!(flow.join_state, JoinState::Waits)) {
                flow.join_state = JoinState::Granted;
                self.joins_granted += 1;
                self.queue.push(session.slot());
            }
        }
    }

    /// Whether a session need not wait; nobody overtakes those that do.
    fn has_place(&self, active: usize) -> bool {
        self.join_waiters.is_empty() && active + self.joins_granted < JOINS_ACTIVE_MAX
    }

    /// Notes that a session begins what it waited for, or never will.
    pub(super) fn end_wait(&mut self, flow: &mut Flow) {
        let state = std::mem::take(&mut flow.join_state);
        self.joins_granted -= usize::from(matches!(state, JoinState::Granted));
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
            JoinState::Granted => {
                flow.join_state = JoinState::Granted;
                return (0, Ok(if left > 0 { Joins::Many } else { Joins::TooMany }));
            }
            JoinState::Waits => {
                flow.join_state = JoinState::Waits;
                return (1, Err(Served::Waits));
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
