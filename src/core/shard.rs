//! One shard: the topics it is home of, the sessions it serves, and what goes between them. A plain state machine.
//!
//! ```text
//!                    handle_request                       handle_bytes, handle_eof
//!  peers, ingest  ------------------>  +-----------+  <------------------------------  sockets
//!                    handle_delivery   |   Shard   |
//!                 <------------------  +-----------+  ------------------------------>
//!                    stages                              poll_send, poll_action
//! ```
//!
//! The driver's order in a turn: `handle_*` for what came in, [`Shard::turn`], then batches of SENDs until there are none
//! ([`Shard::prepare_sends`], [`Shard::poll_send`], each SEND's outcome through [`Shard::handle_sent`]),
//! [`Shard::poll_action`] until `None`, the stages into their rings, and [`Shard::end_turn`].

mod ending;
mod homes;
mod input;
mod lag;
mod placing;
mod reload;
mod stages;
mod subscribe;
pub mod survey;
mod timers;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use self::{
    stages::Stages,
    subscribe::Walk,
    timers::{Timer, TimerKind},
};
use crate::{
    admission::Publishers,
    config::Limits,
    fanout::{self, EgressLogs, Fanout, LogIndex},
    home::{Home, Keeping, last_value::KeysBudget},
    ids::{SessionId, SlotId},
    limits::{GATHER_BYTES, SCANS_MAX, SEND_BYTES_MAX, SENDS_PER_SUBMIT, TIMERS_GONE_MAX, TURN_SCAN_TOPICS},
    metrics::{
        counters::{Counter, Counters},
        latency::Latency,
    },
    now::Now,
    session::{NextSend, SendSource, Session, holders::Holders, membership::Membership, table::Sessions},
    timer_wheel::Wheel,
};
use tickcast_proto::{
    codec::json,
    frame::FLAG_PAYLOAD_JSON,
    framing::SharedDecoders,
    http::{NoFiles, StaticFiles},
    ids::{ShardId, TopicId},
    records::Publish,
    reply::Reply,
};

pub use self::{ending::LOG_TARGET_SESSION, placing::Departure, stages::PeerStages};
pub use crate::session::ListenerKind;

/// The origin of ticks that no session published: nobody is told when they are refused, but it is counted.
pub const ORIGIN_INGEST: u64 = u64::MAX;

/// What the transport is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop receiving from this slot; what already came is still handed over.
    PauseReceive(SlotId),
    /// Receive again.
    ResumeReceive(SlotId),
    /// Shut the write side: everything has been sent.
    ShutdownWrite(SlotId),
    /// The handshake is done here: the socket stays.
    Settled(SlotId),
    /// Quiet the socket, then ask [`Shard::handle_detached`]: another shard is to serve it.
    HandOver(SlotId),
    /// Close the socket. The shard has forgotten the session: no event of it may follow.
    Close(SlotId),
}

/// One SEND to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Send {
    /// Whose.
    pub slot: SlotId,
    log: LogIndex,
    source: SendSource,
}

/// A tick that its home has not counted yet: the parts of a PUBLISH.
#[derive(Clone, Copy, Debug)]
struct Unsequenced<'a> {
    /// The session that is told of a refusal, or [`ORIGIN_INGEST`].
    origin: u64,
    flags: u8,
    schema: u32,
    record: Publish,
    /// Checked.
    topic: &'a str,
    payload: &'a [u8],
}

/// One executor's share of the server.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    shards: u16,
    epoch: u64,
    limits: Limits,
    home: Home,
    fanout: Fanout,
    logs: EgressLogs,
    sessions: Sessions,
    stages: Stages,
    actions: VecDeque<Action>,
    /// Slots whose input waits. Bound: one entry a session.
    paused: Vec<SlotId>,
    timers: Wheel<Timer>,
    /// So many timers before those of sessions that are gone are forgotten.
    timers_max: usize,
    generation: u32,
    /// Set once the server stops: nothing more is taken from clients.
    input_stopped: bool,
    /// Set once the server stops: the deadline of the sessions' last bytes.
    draining: Option<u64>,
    /// Who holds which identity; empty unless a second connection replaces the first.
    holders: Holders,
    /// Who a session's client says it is, by slot: for the operator.
    identities: HashMap<SlotId, Box<str>>,
    publishers: Publishers,
    counters: Arc<Counters>,
    latency: Latency,
    /// Changes of subscriptions that go over a session's topics. Bound: a request's patterns a session.
    walks: VecDeque<Walk>,
    /// Topics that such changes may still look at in this turn.
    walk_left: usize,
    /// What a drain may still append to the logs.
    drain_left_bytes: u64,
    scratch: Vec<u8>,
    /// What the sessions' decoders share.
    decoders: SharedDecoders,
    /// Frames of a piece of history while it is put together.
    pieces: Vec<u8>,
    /// Static files that HTTP requests may ask for.
    files: &'static dyn StaticFiles,
}

impl Shard {
    /// Shard `id` of `shards`. `epoch` names the server's life and is the same on all.
    pub fn new(id: ShardId, shards: u16, epoch: u64, limits: Limits, counters: Arc<Counters>) -> Shard {
        let keys = KeysBudget {
            keys_max: limits.keys_per_topic_max,
            bytes_left: (limits.keys_bytes_max / usize::from(shards)) as isize,
        };
        Shard {
            id,
            shards,
            epoch,
            home: Home::new(
                id,
                shards,
                limits.topics_max.div_ceil(usize::from(shards)),
                Keeping {
                    history: limits.history.clone(),
                    history_bytes_max: limits.history_bytes_max / usize::from(shards),
                    keys,
                },
            ),
            fanout: Fanout::new(
                shards,
                epoch,
                fanout::Settings {
                    policies: limits.policies.clone(),
                    keys,
                    behind_bytes: limits.behind_bytes,
                },
            ),
            logs: EgressLogs::new(limits.egress_log_bytes),
            sessions: Sessions::new(limits.outbox_bytes_max, limits.behind_bytes),
            stages: Stages::new(shards),
            actions: VecDeque::new(),
            paused: Vec::new(),
            timers: Wheel::new(),
            timers_max: TIMERS_GONE_MAX,
            generation: 0,
            input_stopped: false,
            draining: None,
            holders: Holders::default(),
            identities: HashMap::new(),
            publishers: Publishers::new(limits.publish_rate),
            counters,
            latency: Latency::default(),
            walks: VecDeque::new(),
            walk_left: TURN_SCAN_TOPICS,
            drain_left_bytes: (limits.egress_log_bytes / 4) as u64,
            scratch: Vec::new(),
            decoders: SharedDecoders::new(limits.frame_bytes_max, limits.message_bytes_max()),
            pieces: Vec::new(),
            files: &NoFiles,
            limits,
        }
    }

    /// Serves these files to HTTP requests from now on; none before.
    pub fn set_static_files(&mut self, files: &'static dyn StaticFiles) {
        self.files = files;
    }

    /// Its id.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Sessions it serves, those about to end included.
    pub fn sessions_len(&self) -> usize {
        self.sessions.len()
    }

    /// Live patterns and known topics, for tests and operators.
    pub fn subscriptions_len(&self) -> (usize, usize) {
        (self.fanout.patterns_len(), self.fanout.topics_len())
    }

    /// Its counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Its latencies; the driver tells them when a turn's SENDs are with the kernel.
    pub fn latency_mut(&mut self) -> &mut Latency {
        &mut self.latency
    }

    /// Sessions that stand ready for a SEND, those that are behind included.
    pub fn standing_len(&self) -> usize {
        self.sessions.standing_len()
    }

    /// A connection came in; its slot is vacant.
    pub fn handle_accept(&mut self, slot: SlotId, listener: ListenerKind, now: Now) {
        self.counters.add(Counter::SessionsAccepted, 1);
        self.open(slot, listener, now);
    }

    /// Makes the session of a connection, whichever shard accepted it.
    fn open(&mut self, slot: SlotId, listener: ListenerKind, now: Now) {
        self.generation = self.generation.wrapping_add(1);
        let id = SessionId::new(self.generation, slot);
        self.sessions.insert(slot, Session::new(id, listener));
        self.counters.add(Counter::SessionsOpen, 1);
        self.publishers.enter(slot);
        let deadline = now.monotonic_ns.saturating_add(self.limits.handshake_deadline_ns);
        self.watch(deadline, TimerKind::Handshake, id);
        if self.draining.is_some() {
            self.end(slot, crate::session::CloseReason::Shutdown, now);
        }
    }

    /// Whether requests may come in: every stage has room for what one more may add.
    ///
    /// Requests add deliveries and walks, never requests: so they may be taken in while the stages of requests are
    /// full, and no two shards wait for each other.
    pub fn takes_requests(&self) -> bool {
        self.home.scans_len() < SCANS_MAX && self.stages.deliveries_have_room()
    }

    /// Whether sessions' input may be taken up: it adds requests too.
    fn takes_input(&self) -> bool {
        !self.input_stopped && self.takes_requests() && self.stages.requests_have_room()
    }

    /// The server stops: what clients have sent and was not taken up is not taken up any more.
    pub fn stop_taking_input(&mut self) {
        self.input_stopped = true;
    }

    /// Does what is due: scans, input that waited for room, timers. Returns whether anything was done.
    pub fn turn(&mut self, now: Now) -> bool {
        let mut worked = false;
        if self.stages.deliveries_have_room() {
            worked |= self.with_home(|home, notify| home.scan(notify)) > 0;
        }
        worked |= self.home.trim(now.monotonic_ns) > 0;
        self.walk_left = TURN_SCAN_TOPICS;
        worked |= self.walk(now);
        worked |= self.go_live();
        worked |= self.pull(now);
        self.logs.note_time(now.monotonic_ns);
        if self.takes_input() {
            worked |= self.resume_paused(now);
        }
        worked |= self.handle_timers(now);
        self.settle(now);
        self.stages.invariants();
        self.sessions.invariants();
        worked
    }

    /// Before each batch of SENDs: gives sessions that are behind what their next SEND is to carry, at most
    /// [`SENDS_PER_SUBMIT`] of them. It appends to the logs, and what a SEND of the batch points to must stay: so not
    /// between two calls of [`Shard::poll_send`] of the same batch.
    pub fn prepare_sends(&mut self, now: Now) {
        // No more than the batch can carry: what is given too early is old by the time it leaves.
        let mut bytes = 0;
        while bytes < GATHER_BYTES
            && self.sessions.ready_len() < SENDS_PER_SUBMIT
            && let Some(slot) = self.sessions.pop_lagging()
        {
            bytes += SEND_BYTES_MAX;
            self.fanout.refill(slot, &mut self.sessions, &mut self.logs, now.monotonic_ns);
            self.fanout.relieve(&mut self.sessions, &mut self.logs);
        }
        self.settle(now);
    }

    /// The next SEND: its bytes are [`Shard::send_bytes`] until the next call that is not `poll_send`. The slot has
    /// no other until [`Shard::handle_sent`] says what became of it.
    pub fn poll_send(&mut self, gather: &mut Vec<u8>, now: Now) -> Option<Send> {
        while let Some(slot) = self.sessions.pop_ready() {
            let log = LogIndex::of(self.sessions.any_mut(slot)?.format);
            match self.sessions.take_send(slot, self.logs.get(log), gather) {
                NextSend::Send(source) => return Some(Send { slot, log, source }),
                NextSend::Overwritten => self.lapped(slot, now),
                NextSend::Idle if self.sessions.get(slot).is_some_and(Session::has_work) => {
                    self.sessions.make_ready(slot);
                }
                NextSend::Idle => {
                    self.fanout.caught_up(slot, &mut self.sessions);
                    self.fanout.queue_pull(slot, &mut self.sessions);
                    self.flushed(slot, now);
                }
            }
        }
        None
    }

    /// The bytes of a SEND that `poll_send` returned since the gather buffer was last cleared.
    #[inline]
    pub fn send_bytes<'a>(&'a self, send: &Send, gather: &'a [u8]) -> &'a [u8] {
        match send.source {
            SendSource::Log(range) => self.logs.get(send.log).map_or(&[], |log| log.bytes(range)),
            SendSource::Gathered { start, len } => &gather[start..start + len],
        }
    }

    /// The next thing for the transport to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Lets `take` take what waits for another shard, as far as its rings have room.
    pub fn with_stages<R>(&mut self, shard: ShardId, take: impl FnOnce(&mut PeerStages) -> R) -> R {
        self.stages.with(shard, take)
    }

    /// After the turn's SENDs: nothing borrowed from the logs is in use any more.
    pub fn end_turn(&mut self) {
        if self.sessions.waiting() == 0 {
            self.logs.rewind();
        }
    }

    /// Whether there is work that needs no event from outside.
    pub fn is_busy(&self) -> bool {
        self.sessions.has_ready()
            || self.fanout.has_live()
            || self.may_pull()
            || !self.walks.is_empty()
            || (self.home.scans_len() > 0 && self.stages.deliveries_have_room())
            || self.home.is_trimming()
            || (self.takes_input() && self.paused_can_resume())
            || !self.actions.is_empty()
    }

    /// Whether every request to another home has left its stage.
    pub fn requests_have_left(&self) -> bool {
        self.stages.requests_have_left()
    }

    /// Whether every delivery to another shard has left its stage.
    pub fn deliveries_have_left(&self) -> bool {
        self.stages.deliveries_have_left()
    }

    /// When [`Shard::turn`] is due even if nothing happens, CLOCK_MONOTONIC nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.next_due_ns()
    }

    /// Bytes of the logs, the histories, the stages, the sessions, their subscriptions, buffers and timers: what
    /// promise 3 bounds.
    pub fn memory_bytes(&self) -> usize {
        let sessions: usize =
            self.sessions.iter().map(|session| session.buffer_bytes() + size_of::<Session>()).sum();
        let memberships: usize = self
            .sessions
            .iter()
            .map(|session| {
                session.memberships.capacity() * (size_of::<Membership>() + size_of::<TopicId>() + 1)
                    + session.subscriptions.capacity() * size_of::<fanout::Subscription>()
            })
            .sum();
        self.logs.bytes()
            + self.home.memory_bytes()
            + sessions
            + memberships
            + self.stages.waiting_bytes()
            + self.timers.heap_bytes()
            + self.holders.bytes()
            + self.identities.values().map(|identity| identity.len() + 32).sum::<usize>()
            + self.sessions.skipped_bytes()
            + self.publishers.bytes()
    }

    /// Acknowledges subscriptions whose homes are ready, then announces their topics: nothing of them comes before.
    /// A bounded number of topics a turn. Returns whether there were any.
    fn go_live(&mut self) -> bool {
        let mut looked = 0;
        while looked < TURN_SCAN_TOPICS
            && let Some(live) = self.fanout.next_live()
        {
            let pattern = self.fanout.pattern(live.entry).to_owned();
            let reply = Reply::Subscribed { request: live.request, pattern: &pattern, epoch: self.epoch };
            self.reply(live.slot, &reply);
            looked += 1 + self.fanout.attach(live, &mut self.sessions, &mut self.logs);
            if let Some(session) = self.sessions.open_mut(live.slot)
                && !std::mem::replace(&mut session.subscribed, true)
            {
                self.counters.add(Counter::SessionsSubscribed, 1);
            }
        }
        looked > 0
    }

    fn reply(&mut self, slot: SlotId, reply: &Reply<'_>) {
        if let Reply::Error { .. } = reply {
            self.counters.add(Counter::RequestErrors, 1);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        if let Some(session) = self.sessions.any_mut(slot) {
            reply.encode(session.format, &mut scratch);
        }
        self.sessions
            .with_outbox(slot, |session| session.outbox.push_reply(|out| out.extend_from_slice(&scratch)));
        self.scratch = scratch;
    }

    /// Checks a payload's claim to be JSON only where nothing has checked it yet.
    fn flags_of(payload: &[u8], known_json: bool) -> u8 {
        if known_json || json::is_json(payload) { FLAG_PAYLOAD_JSON } else { 0 }
    }
}
