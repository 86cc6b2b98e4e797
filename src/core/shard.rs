//! One shard: its home topics, the sessions that it serves, and the rings that connect it to other shards. A plain state
//! machine.
//!
//! ```text
//!                    handle_request                       handle_bytes, handle_eof
//!  peers, sources ------------------>  +-----------+  <------------------------------  sockets
//!                    handle_delivery   |   Shard   |
//!                 <------------------  +-----------+  ------------------------------>
//!                    stages                              poll_send, poll_action
//! ```
//!
//! A driver calls it in turns, in this order:
//!
//! 1. Socket events as they arrive: [`Shard::handle_accept`], [`Shard::handle_bytes`], [`Shard::handle_eof`],
//!    [`Shard::handle_error`], [`Shard::handle_writable`] and [`Shard::handle_detached`], each followed by
//!    [`Shard::poll_action`] until `None`. A connection from a proxy is accepted with [`Shard::handle_accept_proxied`]. Verdicts
//!    of the verifiers are handled the same way: [`Shard::handle_verdict`].
//! 2. Connections that other shards hand over: [`Shard::handle_attached`].
//! 3. The rings from other shards and from sources: [`Shard::handle_delivery`], then [`Shard::handle_request`]. Those from sinks at
//!    any time: [`Shard::handle_settled`]. Those from readers of logs: [`Shard::handle_log_chunk`].
//! 4. [`Shard::turn`].
//! 5. Batches of SENDs until one is empty: [`Shard::prepare_sends`], [`Shard::poll_send`], [`Shard::send_bytes`], then
//!    [`Shard::handle_sent`] for each SEND of the batch.
//! 6. [`Shard::poll_action`] and [`Shard::poll_credentials`] until `None`.
//! 7. Staged frames into the rings: [`Shard::with_stages`], [`Shard::with_sink_stage`], [`Shard::with_log_reads`],
//!    [`Shard::with_demand_changes`]. Then [`Shard::end_turn`].

mod answers;
mod authentication;
mod budgets;
mod calls;
mod control;
mod delivery;
mod demand;
mod egress;
mod http;
mod ingress;
mod intake;
mod invariants;
mod lifecycle;
mod log_reads;
mod logged;
mod message_ids;
mod overload;
mod polling;
mod proxied;
mod quotas;
mod reload;
mod routing;
mod socket_io;
mod stages;
mod stale;
mod streams;
mod subscriptions;
pub mod survey;
mod tenancy;
mod timers;
mod unfinished;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use self::{
    authentication::Authentication, calls::CallQueues, control::Control, demand::Demands, intake::IntakeKind,
    log_reads::LogReads, polling::PollingSlots, quotas::Quotas, routing::Routing, stages::Stages,
    stale::FeedStates, timers::Timer, unfinished::Unfinished,
};
use crate::{
    budgets::Budgets,
    config::Limits,
    fair_queue::FairQueue,
    fanout::{self, AwaitedSettings, EgressLogs, Fanout, LogIndex},
    home::{Home, MessageIdBounds, Retention, last_value::LastValuesBudget},
    ids::{SessionId, SlotId, SourceId, UpstreamId},
    limits::{
        INPUT_QUANTUM_BYTES, SEND_BYTES_MAX, TIMERS_GONE_MAX, TURN_COUNT_UNITS, TURN_DELIVERY_UNITS,
        TURN_INTEREST_UNITS,
    },
    message_id::MessageId,
    metrics::{
        counters::{Counter, Counters},
        latency::Latency,
    },
    now::{LiveClock, Now},
    session::{
        KeptPlacesTable, SendSource, Session, holders::Holders, saved_positions::PositionsMemory,
        table::Sessions,
    },
    timer_wheel::Wheel,
};
use tickcast_proto::{
    framing::SharedDecoders,
    http::{NoFiles, StaticFiles},
    ids::ShardId,
    records::Publish,
};

pub use self::{
    lifecycle::{DetachedSession, LOG_TARGET_SESSION, LOG_TARGET_TOPIC},
    stages::PeerStages,
};
pub use crate::session::{ClientAddress, ListenerKind};

/// Origin of ticks from a source. Refused ticks are counted; there is no session to answer.
pub const ORIGIN_SOURCE: u64 = u64::MAX;

/// A command to the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop receiving from this slot. Pass on what has already been received.
    PauseReceive(SlotId),
    /// Resume receiving.
    ResumeReceive(SlotId),
    /// Shut down the write side: everything has been sent.
    ShutdownWrite(SlotId),
    /// The handshake is complete: the socket stays with this shard.
    HandshakeDone(SlotId),
    /// Apply the limits of the client's address, given here, then call [`Shard::handle_admitted`] or [`Shard::handle_refused`].
    /// Port 0 means unknown.
    Admit(SlotId, SocketAddr),
    /// Stop all I/O on the socket, then call [`Shard::handle_detached`]: another shard will serve it.
    HandOver(SlotId),
    /// Close the socket. The session is gone, so no event for this slot may follow until the next accept.
    Close(SlotId),
}

impl Action {
    /// Returns the slot that it is about.
    pub(super) fn slot(self) -> SlotId {
        match self {
            Action::PauseReceive(slot)
            | Action::ResumeReceive(slot)
            | Action::ShutdownWrite(slot)
            | Action::HandshakeDone(slot)
            | Action::Admit(slot, _)
            | Action::HandOver(slot)
            | Action::Close(slot) => slot,
        }
    }
}

/// One SEND for the transport to submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// The session's slot.
    pub slot: SlotId,
    log: LogIndex,
    source: SendSource,
}

/// A tick without a sequence yet: the parts of a PUBLISH.
#[derive(Clone, Copy, Debug)]
struct Unsequenced<'a> {
    /// The publishing session, which receives the answer, or [`ORIGIN_SOURCE`].
    origin: u64,
    /// The source of that session.
    source: SourceId,
    /// The subscription from which a source has the tick.
    upstream: UpstreamId,
    /// `FLAG_*`: whether the payload is JSON, and whether success is answered too.
    flags: u8,
    schema: u32,
    record: Publish,
    /// The key of a valid topic; the receiver of the request has checked it.
    key: &'a str,
    payload: &'a [u8],
    /// By which its home recognises that it has the tick.
    message_id: Option<MessageId>,
}

/// One executor's share of the server.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    shards: u16,
    epoch: u64,
    live_clock: LiveClock,
    limits: Limits,
    home: Home,
    fanout: Fanout,
    logs: EgressLogs,
    sessions: Sessions,
    stages: Stages,
    /// Publishes sent to other engines.
    routing: Routing,
    /// Ticks requested from logs.
    log_reads: LogReads,
    /// What its sessions ask of sources that subscribe on demand.
    demands: Demands,
    actions: VecDeque<Action>,
    /// Slots whose input waits for the session itself: for room in its outbox, or for its changes. Entries of ended sessions stay
    /// until the next attempt to resume. At most one entry per pause since the last attempt.
    paused: Vec<SlotId>,
    /// Sessions whose paused input waits for room in the shard, in fair turns.
    input_queue: FairQueue,
    /// The kind of requests that may fill the delivery stages in this turn.
    preferred_intake: IntakeKind,
    /// Units of delivery that this turn may still spend on ticks from other shards, and on the requests that it handles.
    mesh_units_left: usize,
    intake_units_left: usize,
    timers: Wheel<Timer>,
    /// Sessions whose peer has sent FIN before its requests were answered. At most one entry per session, for
    /// [`limits::LINGER_DEADLINE_MS`](crate::limits::LINGER_DEADLINE_MS), plus one for each that has ended since the last turn.
    half_closed: VecDeque<SessionId>,
    /// The authentication state of its sessions.
    authentication: Authentication,
    /// Sessions with an unfinished message.
    unfinished: Unfinished,
    /// Number of timers above which stale ones are dropped.
    timers_max: usize,
    generation: u32,
    /// Set when the server stops: input from clients is no longer processed.
    input_stopped: bool,
    /// Set when the server drains: the deadline for sending the sessions' last bytes.
    draining: Option<u64>,
    /// The session that holds each identity; empty unless `identity_replaces` is set.
    holders: Holders,
    /// Identities that the sessions' clients have given, by slot. Shown to operators.
    identities: HashMap<SlotId, Box<str>>,
    budgets: Budgets,
    quotas: Quotas,
    /// The states of the sources that mark their topics.
    feed_states: FeedStates,
    positions_memory: PositionsMemory,
    /// Places of event streams that have ended.
    kept_places: KeptPlacesTable,
    /// `/v1` requests.
    calls: CallQueues,
    /// Slots of sessions that have no socket of their own.
    polling: PollingSlots,
    counters: Arc<Counters>,
    latency: Latency,
    control: Control,
    /// When the overload ends unless a session loses ticks before then, CLOCK_MONOTONIC nanoseconds; `None`: there is none.
    overloaded_until_ns: Option<u64>,
    /// Bytes that a drain may still append to the egress logs.
    drain_left_bytes: u64,
    scratch: Vec<u8>,
    /// Buffers that the sessions' decoders share.
    decoders: SharedDecoders,
    /// Scratch buffer for the frames of one chunk of history.
    chunk_frames: Vec<u8>,
    /// Static files served to HTTP requests.
    files: &'static dyn StaticFiles,
}

impl Shard {
    /// Creates shard `id` of `shards`. `epoch` identifies this run of the server and is the same on all shards: microseconds
    /// since 1970 when it started.
    pub fn new(id: ShardId, shards: u16, epoch: u64, limits: Limits, counters: Arc<Counters>) -> Shard {
        let last_values = LastValuesBudget {
            keys_max: limits.keys_per_topic_max,
            bytes_left: limits.last_values_bytes_max / usize::from(shards),
        };
        let positions_memory = PositionsMemory::default();
        let awaited = AwaitedSettings {
            is_fed_by_logs: limits.is_fed_by_logs,
            memory: positions_memory.clone(),
            memory_bytes_max: limits.positions_bytes_max / usize::from(shards),
        };
        Shard {
            id,
            shards,
            epoch,
            live_clock: LiveClock::default(),
            home: Home::new(
                id,
                shards,
                epoch,
                limits.topics_max.div_ceil(usize::from(shards)),
                limits.creation,
                Retention {
                    history: limits.history.clone(),
                    history_bytes_max: limits.history_bytes_max / usize::from(shards),
                    last_values,
                    idle: limits.topic_idle.clone(),
                    message_ids: MessageIdBounds {
                        window_ns: limits.message_id_window_ns,
                        bytes_max: limits.message_ids_bytes_max / usize::from(shards),
                    },
                },
                limits.tenants.clone(),
            ),
            fanout: Fanout::new(
                id,
                shards,
                epoch,
                fanout::Settings {
                    policies: limits.policies.clone(),
                    last_values,
                    behind_bytes: limits.behind_bytes,
                    home_topics_max: limits.topics_max.div_ceil(usize::from(shards)),
                    exports: limits.tenants.exports().clone(),
                    deflate: limits.deflate.clone(),
                },
                awaited,
            ),
            logs: EgressLogs::new(limits.egress_log_bytes, limits.deflate_bytes_min),
            sessions: Sessions::new(limits.outbox_bytes_max, limits.behind_bytes)
                .with_deflate(limits.deflate_bytes_min)
                .with_memberships_max(limits.memberships_max(shards)),
            stages: Stages::new(shards),
            routing: Routing::new(limits.routes.sinks.len()),
            log_reads: LogReads::new(&limits),
            demands: Demands::new(&limits),
            actions: VecDeque::new(),
            paused: Vec::new(),
            input_queue: FairQueue::new(INPUT_QUANTUM_BYTES),
            preferred_intake: IntakeKind::Sessions,
            mesh_units_left: TURN_DELIVERY_UNITS,
            intake_units_left: TURN_DELIVERY_UNITS,
            timers: Wheel::new(),
            half_closed: VecDeque::new(),
            authentication: Authentication::default(),
            unfinished: Unfinished::default(),
            timers_max: TIMERS_GONE_MAX,
            generation: 0,
            input_stopped: false,
            draining: None,
            holders: Holders::default(),
            identities: HashMap::new(),
            budgets: Budgets::new(&limits),
            quotas: Quotas::default(),
            feed_states: FeedStates::default(),
            positions_memory,
            kept_places: KeptPlacesTable::default(),
            calls: CallQueues::default(),
            polling: PollingSlots::default(),
            counters,
            latency: Latency::default(),
            control: Control::new(),
            overloaded_until_ns: None,
            drain_left_bytes: (limits.egress_log_bytes / 4) as u64,
            scratch: Vec::new(),
            decoders: SharedDecoders::new(limits.frame_bytes_max, limits.message_bytes_max()),
            chunk_frames: Vec::new(),
            files: &NoFiles,
            limits,
        }
    }

    /// Sets the files served to HTTP requests; none until then.
    pub fn set_static_files(&mut self, files: &'static dyn StaticFiles) {
        self.files = files;
    }

    /// Returns the shard's id.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Returns the number of sessions, including ending ones.
    pub fn sessions_len(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the numbers of live patterns and of known topics.
    pub fn subscriptions_len(&self) -> (usize, usize) {
        (self.fanout.patterns_len(), self.fanout.topics_len())
    }

    /// Calls `visit` with the key, epoch and sequence of each open topic of this home.
    #[cfg(any(test, feature = "testing"))]
    pub fn visit_lives(&self, mut visit: impl FnMut(&str, u64, u64)) {
        for topic in (0..self.home.places() as u32).map(|index| self.home.topic(index)) {
            if topic.is_open() {
                visit(&topic.key, topic.epoch, topic.sequence.0);
            }
        }
    }

    /// Sets how much of the work of opening topics a turn does.
    #[cfg(any(test, feature = "testing"))]
    pub fn set_opening_units(&mut self, units: fanout::OpeningUnits) {
        self.fanout.set_opening_units(units);
    }

    /// Returns whether topics are opening in pieces.
    #[cfg(any(test, feature = "testing"))]
    pub fn opens_topics(&self) -> bool {
        self.fanout.opens_topics()
    }

    /// Returns the shard's counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Returns the shard's latencies. The driver records in them when a turn's SENDs were submitted.
    pub fn latency_mut(&mut self) -> &mut Latency {
        &mut self.latency
    }

    /// Sets whether the shard's thread was busy most of the time recently, so that sessions may be behind through no fault of
    /// their own.
    pub fn set_saturated(&mut self, is_saturated: bool) {
        self.sessions.set_saturated(is_saturated);
    }

    /// Holds ticks for the latency budget: until [`Shard::release_ticks`], only sessions with a reply to send get a SEND,
    /// including the ticks before the reply.
    pub fn hold_ticks(&mut self) {
        self.sessions.hold();
    }

    /// Stops holding ticks.
    pub fn release_ticks(&mut self) {
        self.sessions.release();
    }

    /// Returns whether so many sessions were served out of turn that ticks must no longer be held.
    pub fn must_release_ticks(&self) -> bool {
        self.sessions.is_crowded()
    }

    /// Returns the maximum bytes of frames that may be held: as many as one SEND carries, and fewer than make a session fall
    /// behind.
    pub fn held_bytes_max(&self) -> u64 {
        SEND_BYTES_MAX.min(self.limits.behind_bytes / 2) as u64
    }

    /// Returns the bytes of all frames appended to the egress logs so far, including those skipped at the ends of the logs.
    pub fn appended_bytes(&self) -> u64 {
        self.logs.appended_bytes()
    }

    /// Returns the number of sessions ready for a SEND, including lagging ones.
    pub fn ready_or_lagging_len(&self) -> usize {
        self.sessions.ready_or_lagging_len()
    }

    /// Returns whether the shard accepts requests: every delivery stage has room for what one more request may add.
    ///
    /// Requests add deliveries but never requests. So a shard accepts requests even while its own request stages are full, and no
    /// two shards wait for each other.
    pub fn takes_requests(&self) -> bool {
        self.stages.deliveries_have_room()
    }

    /// Returns whether this turn may handle more ticks from other shards. If not, the next one may: a turn with many subscribers
    /// must end before others have waited too long.
    pub fn takes_deliveries(&self) -> bool {
        self.mesh_units_left > 0
    }

    /// Returns whether this turn or a later one may process sessions' input, which also adds requests.
    fn has_input_room(&self) -> bool {
        !self.input_stopped && self.takes_requests() && self.stages.requests_have_room()
    }

    /// Does the work that is due: the interest walk, control work, paused input, timers. Returns whether there was any.
    pub fn turn(&mut self, now: Now) -> bool {
        let mut worked = false;
        if self.stages.deliveries_are_half_empty() {
            let units = self.with_home(|home, notify| home.advance_walk(TURN_INTEREST_UNITS, notify));
            self.counters.add(Counter::InterestUnits, units as u64);
            worked |= units > 0;
        }
        worked |= self.fanout.advance_openings(&mut self.sessions, &mut self.logs, now.monotonic_ns);
        self.take_counts(); // Not charged: openings have a budget of their own.
        worked |= self.forget_topics(now);
        worked |= self.advance_marks(now);
        worked |= self.advance_lapses(now);
        worked |= self.home.trim(now.monotonic_ns) > 0;
        self.counters.add(Counter::LastValuesEvicted, self.home.take_last_values_evicted());
        worked |= self.forget_message_ids(now);
        worked |= self.review_listed(now);
        worked |= self.turn_control(now);
        worked |= self.fanout.count_topics(TURN_COUNT_UNITS) > 0;
        worked |= self.request_history(now);
        worked |= self.advance_reads(now);
        self.begin_turn_of_logs(now);
        self.kept_places.expire(now.monotonic_ns);
        self.sessions.note_time(now);
        self.end_overload(now);
        self.count_memberships();
        self.release_throttled(now);
        worked |= self.resume_paused(now);
        self.preferred_intake = self.preferred_intake.next(self.shards > 1);
        worked |= self.handle_timers(now);
        worked |= self.expire_routed(now);
        worked |= self.expire_log_reads(now);
        self.end_answered(now);
        self.apply_deferred(now);
        self.invariants();
        worked
    }

    /// Applies what was deferred while sessions were served: counters, pace timers and the ends of sessions.
    fn apply_deferred(&mut self, now: Now) {
        self.count_ticks();
        self.set_pace_timers();
        self.request_log_reads(now);
        self.answer_calls(now);
        while let Some(slot) = self.sessions.pop_too_far_behind() {
            let why = self.why_too_far_behind(slot);
            self.end(slot, why, now);
        }
        self.note_overloads(now);
    }

    /// Returns the next command to the transport.
    pub fn poll_action(&mut self) -> Option<Action> {
        // Sessions that poll have no socket to command.
        std::iter::from_fn(|| self.actions.pop_front()).find(|action| !self.polling.contain(action.slot()))
    }

    /// Calls `take` with the frames staged for another shard, so that it can move them into that shard's rings.
    pub fn with_stages<R>(&mut self, shard: ShardId, take: impl FnOnce(&mut PeerStages) -> R) -> R {
        self.stages.with(shard, take)
    }

    /// Ends the turn: no SEND refers to bytes of the egress logs any longer.
    pub fn end_turn(&mut self) {
        (self.mesh_units_left, self.intake_units_left) = (TURN_DELIVERY_UNITS, TURN_DELIVERY_UNITS);
        if self.sessions.waiting() == 0 {
            self.logs.rewind();
        }
    }

    /// Returns whether there is work that needs no outside event.
    pub fn is_busy(&self) -> bool {
        self.sessions.has_ready()
            || self.fanout.has_woken()
            || self.fanout.counts_topics()
            || self.fanout.opens_topics()
            || self.has_marks_to_make()
            || self.has_lapses_to_make()
            || self.control.has_work()
            || self.authentication.is_reviewing_listed()
            || self.may_request_history()
            || self.may_read()
            || (self.home.is_walking() && self.stages.deliveries_are_half_empty())
            || self.home.is_trimming()
            || self.idle_walk_due_ns() == Some(0)
            || (self.fanout.has_forgotten() && self.stages.requests_have_room())
            || (self.has_input_room() && self.paused_can_resume())
            || !self.actions.is_empty()
    }

    /// Returns whether all requests to other homes have left their stages.
    pub fn requests_flushed(&self) -> bool {
        self.stages.requests_flushed()
    }

    /// Returns whether all deliveries to other shards have left their stages.
    pub fn deliveries_flushed(&self) -> bool {
        self.stages.deliveries_flushed()
    }

    /// Returns when [`Shard::turn`] is next due without an event, CLOCK_MONOTONIC nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers
            .next_due_ns()
            .into_iter()
            .chain(self.idle_walk_due_ns())
            .chain(self.overloaded_until_ns)
            .chain(self.quotas.due_ns())
            .chain(self.routing.next_deadline_ns())
            .chain(self.log_reads.next_deadline_ns())
            .min()
    }

    /// Returns the memory bounded by the configuration: egress logs, histories, stages, timers, state of topics fed by logs, and
    /// the sessions with their subscriptions and buffers.
    pub fn memory_bytes(&self) -> usize {
        let sessions: usize =
            self.sessions.iter().map(|session| session.buffer_bytes() + size_of::<Session>()).sum();
        let memberships: usize = self
            .sessions
            .iter()
            .map(|session| session.memberships.heap_bytes() + session.subscriptions.heap_bytes())
            .sum();
        self.logs.bytes()
            + self.home.memory_bytes()
            + sessions
            + memberships
            + self.fanout.groups_bytes()
            + self.fanout.logged_bytes()
            + self.fanout.openings_heap_bytes()
            + self.fanout.stale_bytes()
            + self.stages.waiting_bytes()
            + self.routing.heap_bytes()
            + self.log_reads.heap_bytes()
            + self.demands.heap_bytes()
            + self.timers.heap_bytes()
            + self.control.heap_bytes()
            + self.authentication.heap_bytes()
            + self.unfinished.heap_bytes()
            + self.holders.bytes()
            + self.identities.values().map(|identity| identity.len() + 32).sum::<usize>()
            + self.sessions.by_slot_bytes()
            + self.budgets.memory_bytes()
            + self.kept_places.memory_bytes()
    }
}
