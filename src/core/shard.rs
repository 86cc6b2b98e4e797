//! One shard: the topics it is home of, the sessions it serves, and the rings that connect it to the other shards. A plain
//! state machine.
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
//! 1. What the sockets report: [`Shard::handle_accept`], [`Shard::handle_bytes`], [`Shard::handle_eof`],
//!    [`Shard::handle_error`], [`Shard::handle_writable`] and [`Shard::handle_detached`], as they come, each followed by
//!    [`Shard::poll_action`] until `None`.
//! 2. Connections that other shards hand over: [`Shard::handle_placed`].
//! 3. The rings from other shards and from sources: [`Shard::handle_delivery`], then [`Shard::handle_request`].
//! 4. [`Shard::turn`].
//! 5. Batches of SENDs until one is empty: [`Shard::prepare_sends`], [`Shard::poll_send`], [`Shard::send_bytes`], then
//!    [`Shard::handle_sent`] for each SEND of the batch.
//! 6. [`Shard::poll_action`] until `None`.
//! 7. The stages into the rings ([`Shard::with_stages`]), then [`Shard::end_turn`].

mod delivery;
mod egress;
mod ingress;
mod lifecycle;
mod reload;
mod stages;
mod subscriptions;
pub mod survey;
mod timers;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use self::{stages::Stages, subscriptions::Walk, timers::Timer};
use crate::{
    admission::Publishers,
    config::Limits,
    fanout::{self, EgressLogs, Fanout, LogIndex, Tally},
    home::{Home, Keeping, last_value::KeysBudget},
    ids::{SessionId, SlotId},
    limits::{SCANS_MAX, TIMERS_GONE_MAX, TURN_SCAN_TOPICS},
    metrics::{
        counters::{Counter, Counters},
        latency::Latency,
    },
    now::Now,
    session::{Session, Source, holders::Holders, membership::Membership, table::Sessions},
    timer_wheel::Wheel,
};
use tickcast_proto::{
    framing::SharedDecoders,
    http::{NoFiles, StaticFiles},
    ids::{ShardId, TopicId},
    records::Publish,
};

pub use self::{
    lifecycle::{Departure, LOG_TARGET_SESSION},
    stages::PeerStages,
};
pub use crate::session::ListenerKind;

/// The origin of ticks that no session published: nobody is told when they are refused, but it is counted.
pub const ORIGIN_INGEST: u64 = u64::MAX;

/// Most slots with which [`Shard::invariants`] looks at every session: a pass a turn stays cheap.
const INVARIANT_SESSIONS_MAX: u32 = 64;

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
    source: Source,
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
        self.invariants();
        worked
    }

    /// Asserts, in debug builds, what holds after every turn. What needs a pass over the sessions is checked only while
    /// they are few, as in the simulation.
    fn invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.stages.invariants();
        assert_eq!(
            self.counters.value(Counter::SessionsOpen),
            self.sessions.len() as u64,
            "each is counted once"
        );
        assert!(self.identities.len() <= self.sessions.len(), "an identity goes with its session");
        assert!(self.timers.len() <= self.timers_max, "timers without a session are dropped in time");
        assert!(self.walk_left <= TURN_SCAN_TOPICS, "a turn has one budget");
        if self.sessions.slots_len() > INVARIANT_SESSIONS_MAX {
            return;
        }
        let open = || self.sessions.iter().filter(|session| session.ending.is_none());
        assert!(
            self.draining.is_none() || open().next().is_none(),
            "no session stays open once the server drains"
        );
        assert!(
            open().all(|session| !session.paused || self.paused.contains(&session.id.slot())),
            "every paused session is listed, or nothing would resume it"
        );
        let is_open = |id: SessionId| {
            self.sessions.get(id.slot()).is_some_and(|session| session.id == id && session.ending.is_none())
        };
        let queued = self.walks.iter().filter(|walk| is_open(walk.session)).count();
        assert_eq!(
            open().map(|session| session.walks as usize).sum::<usize>(),
            queued,
            "a session waits for exactly the changes that are queued for it"
        );
    }

    /// Ends what was found out while others were being served.
    fn settle(&mut self, now: Now) {
        self.count_ticks();
        self.set_paces();
        while let Some((slot, reason)) = self.sessions.pop_doomed() {
            self.end(slot, reason, now);
        }
    }

    /// Takes over what the fan-out has counted.
    fn count_ticks(&mut self) {
        let tally = self.fanout.take_tally();
        if tally == Tally::default() {
            return;
        }
        self.counters.add(Counter::TicksDelivered, tally.queued);
        self.counters.add(Counter::TicksTakenOut, tally.taken_out);
        self.counters.add(Counter::TicksConflated, tally.conflated);
        self.counters.add(Counter::TicksDropped, tally.dropped);
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
            + self.sessions.left_out_bytes()
            + self.publishers.bytes()
    }
}
