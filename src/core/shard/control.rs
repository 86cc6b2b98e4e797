//! Control work of sessions: subscriptions that go live, change or end, and sessions that depart. Each piece of work belongs
//! to one session, and the sessions take turns.

mod joins;

use std::collections::{HashMap, VecDeque};

use self::joins::{JoinState, Joins};
use super::{Shard, authentication::Allowed};
use crate::{
    fair_queue::FairQueue,
    fanout::{Begun, Departure, MembershipWalk},
    ids::{SessionId, SlotId},
    limits::{CONTROL_QUANTUM_UNITS, REVIEW_UNITS, TURN_CONTROL_UNITS, TURN_DEPARTURE_UNITS},
    metrics::counters::Counter,
    now::Now,
    topic_key,
};
use tickcast_proto::{ids::TopicId, reply::Reply, subscription::Delivery};

/// Units to begin or refuse an operation: an acknowledgement, and one topic joined.
const OPERATION_UNITS: usize = 32;

/// The control work of all sessions of a shard.
///
/// Open sessions take turns; departures share one queue with a budget of its own, so that a thousand departing clients delay no
/// client that subscribes.
#[derive(Debug)]
pub(super) struct Control {
    /// Sessions whose work can continue.
    queue: FairQueue,
    /// All sessions with work, including those that wait for a home. Bound: one entry per session.
    flows: HashMap<SlotId, Flow, rustc_hash::FxBuildHasher>,
    /// Sessions that wait for a place to walk over topics, with the numbers of their searches, or of giving it up: the one that has
    /// waited longest first. Bound: one entry per session, and those of ended sessions until their turn.
    join_waiters: VecDeque<(u64, SessionId)>,
    /// Searches begun so far.
    searches: u64,
    /// Sessions that may begin to walk and have not begun yet.
    joins_granted: usize,
    /// Sessions whose walk has given up its place. Bound: [`JOINS_MAX`](crate::limits::JOINS_MAX).
    joins_suspended: usize,
    /// Units that the rest of the turn may use.
    units_left: usize,
    /// Ended sessions that are leaving their topics. Bound: one entry per session.
    departures: VecDeque<Departure>,
    departure_units_left: usize,
}

/// One session's control work, in the order of its requests. Patterns are [keys](crate::topic_key).
#[derive(Debug)]
struct Flow {
    session: SessionId,
    /// Bound: `subscriptions_per_session_max` subscriptions that go live, and the patterns of one request that changes or
    /// ends them: later requests wait for that one.
    operations: VecDeque<Operation>,
    progress: Progress,
    join_state: JoinState,
    /// Units of its walk since it got its place.
    walked: usize,
}

#[derive(Debug)]
enum Operation {
    /// A subscription goes live, once its homes are ready.
    Join { entry: u32, request: u32 },
    /// A subscription changes.
    Update { request: u32, pattern: Box<str>, delivery: Delivery },
    /// A subscription ends.
    Unsubscribe { request: u32, pattern: Box<str> },
    /// The subscriptions from this entry on are compared with the session's new permissions.
    Review { from: u32 },
}

/// The operation under way.
#[derive(Debug)]
enum Progress {
    Idle,
    /// A subscription joins topics. `update`: the request that gave it a pace.
    Joining {
        update: Option<(u32, Box<str>)>,
    },
    /// The session's memberships change. `update`: the request that asked for it; `None`: a subscription that went live.
    Updating {
        walk: MembershipWalk,
        update: Option<u32>,
    },
    /// A subscription has ended. `request`: the one that asked for it; `None`: it is no longer allowed.
    Leaving {
        walk: MembershipWalk,
        request: Option<u32>,
        entry: u32,
    },
}

impl Control {
    pub(super) fn new() -> Control {
        Control {
            queue: FairQueue::new(CONTROL_QUANTUM_UNITS),
            flows: HashMap::default(),
            join_waiters: VecDeque::new(),
            searches: 0,
            joins_granted: 0,
            joins_suspended: 0,
            units_left: TURN_CONTROL_UNITS,
            departures: VecDeque::new(),
            departure_units_left: TURN_DEPARTURE_UNITS,
        }
    }

    /// Whether there is work that needs no outside event.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.departures.is_empty() || !self.join_waiters.is_empty()
    }

    /// Whether requests of the session in a slot are under way.
    pub(super) fn is_serving(&self, slot: SlotId) -> bool {
        self.flows.contains_key(&slot)
    }

    /// Heap memory in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let of_flow =
            |flow: &Flow| flow.operations.capacity() * size_of::<Operation>() + flow.join_state.heap_bytes();
        let operations: usize = self.flows.values().map(of_flow).sum();
        let waiters = self.join_waiters.capacity() * size_of::<(u64, SessionId)>();
        let departures = self.departures.iter().map(Departure::heap_bytes).sum::<usize>()
            + self.departures.capacity() * size_of::<Departure>();
        self.queue.heap_bytes()
            + operations
            + waiters
            + departures
            + self.flows.capacity() * size_of::<(SlotId, Flow)>()
    }

    /// Asserts that a session waits for exactly the changes that its flow holds, in debug builds.
    pub(super) fn check_waits(&self, session: SessionId, changes_pending: u32) {
        let waits = self.flows.get(&session.slot()).map_or(0, |flow| {
            let changes = flow.operations.iter().filter(|operation| operation.is_change()).count();
            let is_change = match flow.progress {
                Progress::Idle
                | Progress::Joining { update: None }
                | Progress::Updating { update: None, .. } => false,
                Progress::Updating { .. } | Progress::Leaving { .. } | Progress::Joining { .. } => true,
            };
            changes + usize::from(is_change)
        });
        debug_assert_eq!(
            changes_pending as usize, waits,
            "a session waits for exactly the changes that are queued for it"
        );
    }

    fn push(&mut self, session: SessionId, operation: Operation) {
        let flow = self.flows.entry(session.slot()).or_insert_with(|| Flow {
            session,
            operations: VecDeque::new(),
            progress: Progress::Idle,
            join_state: JoinState::default(),
            walked: 0,
        });
        debug_assert_eq!(flow.session, session, "a flow goes with its session");
        flow.operations.push_back(operation);
        self.queue.push(session.slot());
    }
}

impl Operation {
    fn is_change(&self) -> bool {
        !matches!(self, Operation::Join { .. })
    }
}

/// The outcome of serving a session's flow.
enum Served {
    /// It can continue at once.
    More,
    /// It waits for an outside event, or until fewer others walk over topics.
    Waits,
}

impl Shard {
    /// Queues a subscription to go live once its homes are ready.
    pub(super) fn queue_join(&mut self, slot: SlotId, entry: u32, request: u32) {
        if let Some(session) = self.sessions.get(slot) {
            self.control.push(session.id, Operation::Join { entry, request });
        }
    }

    /// Queues changes of subscriptions, or their ends if `delivery` is `None`, and does as much of that as the turn's budget
    /// allows. The session's later requests wait for the rest.
    pub(super) fn queue_changes(
        &mut self,
        slot: SlotId,
        request: u32,
        patterns: Vec<Box<str>>,
        delivery: Option<Delivery>,
        now: Now,
    ) {
        let Some(session) = self.sessions.open_mut(slot) else {
            return debug_assert!(false, "only an open session changes its subscriptions");
        };
        session.changes_pending += patterns.len() as u32;
        let session = session.id;
        for pattern in patterns {
            self.control.push(
                session,
                match delivery {
                    Some(delivery) => Operation::Update { request, pattern, delivery },
                    None => Operation::Unsubscribe { request, pattern },
                },
            );
        }
        self.advance_control(now);
    }

    /// Queues a review of a session's subscriptions after its permissions have changed. The session's later requests wait for it.
    pub(super) fn queue_review(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if session.subscriptions.is_empty() {
            return;
        }
        session.changes_pending += 1;
        let session = session.id;
        self.control.push(session, Operation::Review { from: 0 });
        self.advance_control(now);
    }

    /// Resets the turn's budgets, then does control work within them. Returns whether there was any.
    pub(super) fn turn_control(&mut self, now: Now) -> bool {
        self.control.units_left = TURN_CONTROL_UNITS;
        self.control.departure_units_left = TURN_DEPARTURE_UNITS;
        let mut worked = self.advance_control(now);
        worked |= self.advance_departures();
        worked
    }

    /// Serves sessions with control work until the turn's budget is used up. Returns whether there were any.
    fn advance_control(&mut self, now: Now) -> bool {
        while let Some(slot) = self.fanout.pop_woken() {
            if self.control.flows.contains_key(&slot) {
                self.control.queue.push(slot);
            }
        }
        let mut worked = false;
        self.control.grant_joins(self.fanout.joins_len());
        while self.control.units_left > 0
            && let Some((slot, credit)) = self.control.queue.begin_turn()
        {
            worked = true;
            let (used, has_more) = self.serve_flow(slot, credit.min(self.control.units_left), now);
            self.counters.add(Counter::ControlUnits, used as u64);
            self.control.units_left = self.control.units_left.saturating_sub(used.max(1));
            self.control.queue.end_turn(slot, used, has_more);
            self.control.grant_joins(self.fanout.joins_len());
        }
        worked
    }

    /// Does a session's control work for about `units`. Returns the units used, and whether more can be done at once.
    fn serve_flow(&mut self, slot: SlotId, units: usize, now: Now) -> (usize, bool) {
        let mut used = 0;
        while used < units {
            // The flow is not in the table meanwhile. If the session ends, the flow is dropped here.
            let Some(mut flow) = self.control.flows.remove(&slot) else { return (used, false) };
            if self.sessions.get(slot).is_none_or(|session| session.id != flow.session) {
                debug_assert!(false, "a flow goes with its session");
                return (used, false);
            }
            let (units_used, served) = self.advance_flow(&mut flow, slot, units - used, now);
            used += units_used;
            let is_open = self.sessions.open_mut(slot).is_some();
            let is_over = matches!(flow.progress, Progress::Idle) && flow.operations.is_empty();
            if !is_open || is_over {
                self.control.end_wait(&mut flow);
                return (used, false);
            }
            self.control.flows.insert(slot, flow);
            match served {
                Served::More => {}
                Served::Waits => return (used, false),
            }
        }
        (used, true)
    }

    /// Begins a flow's next operation, or continues the one under way.
    fn advance_flow(&mut self, flow: &mut Flow, slot: SlotId, units: usize, now: Now) -> (usize, Served) {
        match &mut flow.progress {
            Progress::Idle => self.begin_operation(flow, slot, units, now),
            Progress::Joining { .. } if matches!(flow.join_state, JoinState::Suspended) => (0, Served::Waits),
            Progress::Joining { update } => {
                let (used, has_more) =
                    self.fanout.advance_join(slot, units, &mut self.sessions, &mut self.logs);
                if has_more {
                    let gives_up = self.control.gives_place_up(flow, used, self.fanout.joins_len());
                    return (used, if gives_up { Served::Waits } else { Served::More });
                }
                flow.walked = 0;
                match update.take() {
                    None => flow.progress = Progress::Idle,
                    Some((request, pattern)) => {
                        let epoch = self.epoch;
                        let pattern = topic_key::name(&pattern);
                        self.reply(slot, &Reply::Subscribed { request, pattern, epoch, since_us: None });
                        self.end_change(flow, slot);
                    }
                }
                (used, Served::More)
            }
            Progress::Updating { walk, update } => {
                let used = self.fanout.advance_walk(walk, slot, units, &mut self.sessions);
                match *update {
                    _ if !walk.is_done() => {}
                    None => flow.progress = Progress::Idle,
                    Some(request) => {
                        let epoch = self.epoch;
                        let pattern = topic_key::name(walk.pattern());
                        self.reply(slot, &Reply::Subscribed { request, pattern, epoch, since_us: None });
                        self.end_change(flow, slot);
                    }
                }
                (used, Served::More)
            }
            Progress::Leaving { walk, request, entry } => {
                let used = self.fanout.advance_walk(walk, slot, units, &mut self.sessions);
                if walk.is_done() {
                    if let Some(pattern) = self.fanout.release(*entry) {
                        self.remove_interest(&pattern);
                    }
                    match *request {
                        Some(request) => {
                            let pattern = topic_key::name(walk.pattern());
                            self.reply(slot, &Reply::Unsubscribed { request, pattern });
                        }
                        None => self.tell_removed(slot, topic_key::name(walk.pattern()), now),
                    }
                    self.cancel_left_log_reads(slot);
                    self.end_change(flow, slot);
                }
                (used, Served::More)
            }
        }
    }

    fn begin_operation(&mut self, flow: &mut Flow, slot: SlotId, units: usize, now: Now) -> (usize, Served) {
        let Some(operation) = flow.operations.front() else { return (0, Served::Waits) };
        let joins = match operation {
            Operation::Join { entry, .. } if !self.fanout.is_ready(*entry) => return (0, Served::Waits),
            Operation::Join { entry, .. } => {
                self.fanout.joins_topics(*entry, slot, &self.sessions).then_some(*entry)
            }
            Operation::Update { pattern, delivery, .. } => {
                let entry = self.fanout.entry_of(pattern);
                entry.filter(|&entry| self.fanout.gets_pace(entry, slot, *delivery, &self.sessions))
            }
            Operation::Review { from } => {
                let from = *from;
                return self.review(flow, slot, from, units);
            }
            Operation::Unsubscribe { .. } => None,
        };
        let left = self.sessions.memberships_left(slot);
        let (searched, joins) = match joins.map(|entry| self.find_joins(flow, slot, entry, units, left)) {
            None => (0, Joins::Many),
            Some((used, Ok(joins))) => (used, joins),
            Some((used, Err(served))) => return (used, served),
        };
        self.control.end_wait(flow);
        let (used, served) = match joins {
            Joins::Few(topics) => self.carry_out_operation(flow, slot, Some(topics), now),
            Joins::Many => self.carry_out_operation(flow, slot, None, now),
            Joins::TooMany => (OPERATION_UNITS, self.refuse_operation(flow, slot, now)),
        };
        (searched + used, served)
    }

    /// Begins the next operation, which need not wait. `few`: the topics that it joins at once.
    fn carry_out_operation(
        &mut self,
        flow: &mut Flow,
        slot: SlotId,
        few: Option<Vec<TopicId>>,
        now: Now,
    ) -> (usize, Served) {
        match flow.operations.pop_front() {
            None | Some(Operation::Review { .. }) => (0, Served::Waits),
            Some(Operation::Join { entry, request }) => {
                let used = self.go_live(flow, slot, (entry, request), few, now);
                (OPERATION_UNITS + used, Served::More)
            }
            Some(Operation::Update { request, pattern, delivery }) => {
                let entry = self.fanout.entry_of(&pattern);
                let (sessions, logs) = (&mut self.sessions, &mut self.logs);
                let begun = entry
                    .and_then(|entry| self.fanout.begin_update(entry, few, slot, delivery, sessions, logs));
                match begun {
                    None => {
                        self.end_change(flow, slot);
                        self.fail_not_subscribed(slot, request, topic_key::name(&pattern), now);
                        (OPERATION_UNITS, Served::More)
                    }
                    Some(Begun::Join) => {
                        flow.progress = Progress::Joining { update: Some((request, pattern)) };
                        (OPERATION_UNITS, Served::More)
                    }
                    Some(Begun::Walk(walk, used)) => {
                        flow.progress = Progress::Updating { walk, update: Some(request) };
                        (used + 1, Served::More)
                    }
                    Some(Begun::Done(used)) => {
                        let epoch = self.epoch;
                        let pattern = topic_key::name(&pattern);
                        self.reply(slot, &Reply::Subscribed { request, pattern, epoch, since_us: None });
                        self.end_change(flow, slot);
                        (OPERATION_UNITS + used, Served::More)
                    }
                }
            }
            Some(Operation::Unsubscribe { request, pattern }) => {
                let entry = self.fanout.entry_of(&pattern);
                let held = entry.and_then(|entry| self.sessions.unsubscribe(slot, entry, &pattern));
                let Some(held) = held else {
                    self.end_change(flow, slot);
                    self.fail_not_subscribed(slot, request, topic_key::name(&pattern), now);
                    return (OPERATION_UNITS, Served::More);
                };
                self.give_back_subscriptions(slot, 1);
                let (walk, used) = self.fanout.begin_leave(held, slot, &mut self.sessions);
                flow.progress = Progress::Leaving { walk, request: Some(request), entry: held.entry };
                (used + 1, Served::More)
            }
        }
    }

    /// Compares the first subscription from an entry on with the session's permissions. Ends it if they do not allow it, and
    /// filters it if they allow only a part. Returns the units used, and whether more can be done at once.
    fn review(&mut self, flow: &mut Flow, slot: SlotId, from: u32, units: usize) -> (usize, Served) {
        let next = self.sessions.open_mut(slot).and_then(|session| {
            let at = session.subscriptions.partition_point(|held| held.entry < from);
            session.subscriptions.get(at).map(|held| (held.entry, held.is_partial))
        });
        let Some((entry, was_partial)) = next else {
            self.control.end_wait(flow);
            flow.operations.pop_front();
            self.end_change(flow, slot);
            return (OPERATION_UNITS, Served::More);
        };
        let pattern = self.fanout.pattern(entry);
        let allowed = self.allowed(slot, topic_key::name(&pattern));
        let is_partial = allowed == Allowed::Part;
        let changes = allowed != Allowed::Nothing && (was_partial || is_partial);
        let (mut searched, mut few) = (0, None);
        if changes && self.fanout.rejoins(entry, slot, &self.sessions) {
            match self.find_joins(flow, slot, entry, units, usize::MAX) {
                (used, Ok(Joins::Few(topics))) => (searched, few) = (used, Some(topics)),
                (used, Ok(Joins::Many | Joins::TooMany)) => searched = used,
                (used, Err(served)) => return (REVIEW_UNITS + used, served),
            }
        }
        self.control.end_wait(flow);
        if let Some(Operation::Review { from }) = flow.operations.front_mut() {
            *from = entry + 1;
        }
        if changes {
            let (sessions, logs) = (&mut self.sessions, &mut self.logs);
            let used = match self.fanout.begin_refilter((entry, is_partial), few, slot, sessions, logs) {
                Some(Begun::Join) => {
                    flow.progress = Progress::Joining { update: None };
                    0
                }
                Some(Begun::Walk(walk, used)) => {
                    flow.progress = Progress::Updating { walk, update: None };
                    used
                }
                Some(Begun::Done(used)) => used,
                None => 0,
            };
            return (OPERATION_UNITS + searched + used, Served::More);
        }
        if allowed == Allowed::All {
            return (REVIEW_UNITS, Served::More);
        }
        let Some(held) = self.sessions.unsubscribe(slot, entry, &pattern) else {
            debug_assert!(false, "the session holds the subscription");
            return (REVIEW_UNITS, Served::More);
        };
        if let Some(session) = self.sessions.open_mut(slot) {
            session.changes_pending += 1;
        }
        self.give_back_subscriptions(slot, 1);
        let (walk, used) = self.fanout.begin_leave(held, slot, &mut self.sessions);
        flow.progress = Progress::Leaving { walk, request: None, entry };
        (REVIEW_UNITS + used, Served::More)
    }

    /// Acknowledges a subscription whose homes are ready, and makes it live; `few`: the topics that it joins at once. Nothing about
    /// its topics is sent before that. Returns the units used.
    fn go_live(
        &mut self,
        flow: &mut Flow,
        slot: SlotId,
        (entry, request): (u32, u32),
        few: Option<Vec<TopicId>>,
        now: Now,
    ) -> usize {
        let pattern = self.fanout.pattern(entry);
        let pattern = topic_key::name(&pattern);
        let since_us = self.live_since(slot, now);
        self.reply(slot, &Reply::Subscribed { request, pattern, epoch: self.epoch, since_us });
        let used = match self.fanout.begin_join(entry, few, slot, &mut self.sessions, &mut self.logs) {
            Begun::Done(used) => used,
            Begun::Join => {
                flow.progress = Progress::Joining { update: None };
                0
            }
            Begun::Walk(walk, used) => {
                flow.progress = Progress::Updating { walk, update: None };
                used
            }
        };
        if let Some(session) = self.sessions.open_mut(slot)
            && !std::mem::replace(&mut session.has_subscribed, true)
        {
            self.counters.add(Counter::SessionsSubscribed, 1);
        }
        used
    }

    /// Notes that one of the changes that a session waits for is done.
    fn end_change(&mut self, flow: &mut Flow, slot: SlotId) {
        flow.progress = Progress::Idle;
        if let Some(session) = self.sessions.any_mut(slot) {
            session.changes_pending -= 1;
        }
    }

    /// Drops the subscriptions of an ended session, at once if the turn's budget allows it. Otherwise the session stays in
    /// its slot until later turns have dropped the rest.
    pub(super) fn depart(&mut self, session: SessionId) {
        let slot = session.slot();
        // A subscription whose end is under way is no longer on the session's list.
        let mut flow = self.control.flows.remove(&slot);
        flow.iter_mut().for_each(|flow| self.control.end_wait(flow));
        let leaving = match flow {
            Some(Flow { progress: Progress::Leaving { entry, .. }, .. }) => Some(entry),
            _ => None,
        };
        self.control.queue.forget(slot);
        let held = self.sessions.get(slot).map_or(0, |session| session.subscriptions.len());
        self.give_back_subscriptions(slot, held as u64);
        self.control.departures.push_back(self.fanout.begin_departure(session, leaving));
        // Its walk may have had a place.
        self.control.grant_joins(self.fanout.joins_len());
        self.advance_departures();
    }

    /// Continues departures until the turn's budget is used up. Returns whether there were any.
    fn advance_departures(&mut self) -> bool {
        let any = !self.control.departures.is_empty();
        let mut gone = Vec::new();
        while self.control.departure_units_left > 0
            && let Some(mut departure) = self.control.departures.pop_front()
        {
            let (used, has_more) = self.fanout.advance_departure(
                &mut departure,
                self.control.departure_units_left,
                &mut self.sessions,
                &mut gone,
            );
            self.counters.add(Counter::DepartureUnits, used as u64);
            self.control.departure_units_left = self.control.departure_units_left.saturating_sub(used);
            for pattern in gone.drain(..) {
                self.remove_interest(&pattern);
            }
            match has_more {
                true => self.control.departures.push_front(departure),
                false => self.departed(departure.session().slot()),
            }
        }
        any
    }
}

#[cfg(test)]
mod tests;
