//! Sources of ticks other than clients, and sinks of what clients publish. Each runs on its own thread, with rings to every shard.
//!
//! ```text
//!  supervisor -- start() --> RunningSource: stop, join, status (health, counters)
//!                                 |
//!                            own thread: Source::run(context)
//!                                 |   context: publish, flush  -> Ok | Backpressure { shard }
//!                                 |            health, counters, stop
//!                                 v
//!                            one ring per shard
//! ```
//!
//! A full ring is a value, [`Backpressure`], and each source has its own policy for it: the simulator and the ECG drop and
//! count, the replay waits. (A publishing client is a session: the shard stops reading from it.)

pub mod common;
#[cfg(any(feature = "nats", feature = "redis"))]
mod demand;
pub mod ecg;
pub mod engine;
pub mod failover;
pub mod feeds;
pub mod glob;
pub mod health;
#[cfg(feature = "nats")]
pub mod jetstream;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod kind;
pub mod limits;
pub mod log_reader;
pub mod mapping;
#[cfg(feature = "nats")]
pub mod nats;
pub mod on_demand;
pub mod payload;
pub mod position;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
pub mod redis_pubsub;
#[cfg(feature = "redis")]
pub mod redis_stream;
pub mod replay;
mod runner;
pub mod simulator;
pub mod sink;
mod standby;
pub mod status;
pub mod tls;
pub mod upstreams;
#[cfg(test)]
mod waits;
pub mod websocket;

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use self::{
    health::{Health, Waiting},
    kind::SourceKind,
    on_demand::DemandLanes,
};
pub use self::{
    runner::{Running, RunningSource, start},
    status::SourceStatus,
};
use tickcast_common::clock;
pub use tickcast_core::mesh::lanes::{Backpressure, Lanes};
use tickcast_core::{
    ids::UpstreamId,
    metrics::counters::{Counter, Counters},
};
use tickcast_proto::{
    codec::json, frame::FLAG_PAYLOAD_JSON, ids::ShardId, logged::LogPosition, records::Publish,
};

/// A source of ticks: a generator, a reader of files, or a client of another engine.
/// The supervisor knows sources only by this trait and by what [`start`] returns. A source may block its thread. A source
/// with an asynchronous client runs a current-thread runtime on it: the functions of [`SourceContext`] block only where
/// documented, and a task that checks [`SourceContext::is_stopping`] every [`NAP_NS`] stops in time.
///
/// [`kind::SourceOptions`] is the other half of a kind: its options, and how they make a source.
pub trait Source: Send {
    /// Publishes until it has no more ticks or the server stops. Called once, on the source's own thread.
    ///
    /// # Errors
    /// Why the source cannot continue, for the operator. The server then stops.
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError>;
}

/// Why a source cannot continue: what happened, to what, and what to do.
pub type SourceError = Box<dyn Error + Send + Sync>;

/// The kinds of sources, in the order of help, errors and metrics. Only this table names all of them.
pub static KINDS: &[SourceKind] = &[
    SourceKind::of::<simulator::Options>(),
    SourceKind::of::<replay::Options>(),
    SourceKind::of::<ecg::Options>(),
    #[cfg(feature = "nats")]
    SourceKind::of::<nats::Options>(),
    #[cfg(feature = "nats")]
    SourceKind::of::<jetstream::Options>(),
    #[cfg(feature = "kafka")]
    SourceKind::of::<kafka::Options>(),
    #[cfg(feature = "redis")]
    SourceKind::of::<redis_pubsub::Options>(),
    #[cfg(feature = "redis")]
    SourceKind::of::<redis_stream::Options>(),
    SourceKind::of::<websocket::Options>(),
];

/// Log target for lines of a replay file that are not ticks.
pub const LOG_TARGET_REPLAY: &str = "tickcast::peer::replay";
/// Log target for faults of the engines that sources read, and for messages of them that are skipped.
pub const LOG_TARGET_SOURCE: &str = "tickcast::peer::source";
/// Log target for the engines that sinks pass ticks to.
pub const LOG_TARGET_SINK: &str = "tickcast::peer::sink";
/// Longest sleep of a source between two checks for the server's stop.
pub const NAP_NS: u64 = 20_000_000;
/// Pause of a source that found a ring full.
const FULL_NAP_NS: u64 = 200_000;

/// Tells threads to stop.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Sets the flag; from any thread.
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }
    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A wait for room in a ring.
struct Wait {
    /// When it began, a time of [`clock::monotonic_ns`].
    since_ns: u64,
    /// The state to return to. The engine may be away while what was held back is published.
    before: Health,
}

/// The interface of a running source to the server. Its functions block only where documented.
#[derive(Debug)]
pub struct SourceContext {
    lanes: Lanes,
    status: SourceStatus,
    /// Counters of the shards, in order.
    shards: Vec<Arc<Counters>>,
    stop: StopFlag,
    #[cfg_attr(
        not(any(feature = "nats", feature = "redis")),
        expect(dead_code, reason = "no kind subscribes on demand")
    )]
    demand: Option<DemandLanes>,
}

impl SourceContext {
    /// Creates the context of a source that publishes through `lanes`, updates `status`, and stops when `stop` is set.
    pub fn new(
        lanes: Lanes,
        status: SourceStatus,
        shards: Vec<Arc<Counters>>,
        stop: StopFlag,
    ) -> SourceContext {
        SourceContext { lanes, status, shards, stop, demand: None }
    }

    /// The same for a source that subscribes on demand, which learns by these rings what clients ask for.
    pub fn with_demand(self, demand: Option<DemandLanes>) -> SourceContext {
        SourceContext { demand, ..self }
    }

    /// Takes the rings by which it learns what clients ask for.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn take_demand(&mut self) -> Option<DemandLanes> {
        self.demand.take()
    }

    /// The rings to the shards.
    pub fn lanes(&mut self) -> &mut Lanes {
        &mut self.lanes
    }

    /// Whether the source must end.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_set()
    }

    /// Counts ticks that were published.
    pub fn count_ticks(&self, ticks: u64) {
        self.status.counters().add(Counter::SourceTicks, ticks);
    }

    /// Notes that the source made or received ticks until now, for its rate and to detect silence. Call it once per batch, not
    /// per tick.
    pub fn note_heard(&self) {
        self.status.note_heard(clock::monotonic_ns(), None);
    }

    /// Counts ticks that were dropped because a ring was full, or because they were overdue.
    pub fn count_dropped(&self, ticks: u64) {
        self.status.counters().add(Counter::SourceTicksDropped, ticks);
    }

    /// Sets the state that operators see.
    pub fn set_health(&self, health: Health) {
        self.status.set_health(health);
    }

    /// Publishes a tick whose payload is valid JSON; beyond the bounds for JSON, it is sent as opaque bytes. `key` 0: none.
    /// While the shard's ring is full, waits for room, counts the wait once and shows it as the source's state. Blocks. Returns
    /// `false` if the server stops first; then the tick was not published.
    pub fn publish_waiting(&mut self, topic: &str, key: u64, producer_time_ns: u64, payload: &[u8]) -> bool {
        let flags = if json::is_within_bounds(payload) { FLAG_PAYLOAD_JSON } else { 0 };
        self.stage_waiting(|lanes, ingest_time_ns| {
            let record = Publish { producer_time_ns, ingest_time_ns, key, ..Publish::default() };
            lanes.stage(flags, record, topic, payload)
        })
    }

    /// Like [`SourceContext::publish_waiting`], with any payload, and at a log's position if a log feeds the topic.
    pub fn publish_any_waiting(
        &mut self,
        topic: &str,
        key: u64,
        producer_time_ns: u64,
        payload: &[u8],
        at: Option<LogPosition>,
    ) -> bool {
        let flags = if json::is_json(payload) { FLAG_PAYLOAD_JSON } else { 0 };
        self.stage_waiting(|lanes, ingest_time_ns| {
            let record = Publish { producer_time_ns, ingest_time_ns, key, ..Publish::default() };
            match at {
                None => lanes.stage(flags, record, topic, payload),
                Some(at) => lanes.append(at, flags, record, topic, payload),
            }
        })
    }

    /// Stages a tick with its time of arrival. Waits while the ring is full.
    fn stage_waiting(&mut self, mut stage: impl FnMut(&mut Lanes, u64) -> Result<(), Backpressure>) -> bool {
        let mut wait = None;
        loop {
            let published = stage(&mut self.lanes, clock::realtime_ns());
            if published.is_ok() || self.is_stopping() {
                if let Some(wait) = wait {
                    self.end_wait(wait);
                }
                self.count_ticks(u64::from(published.is_ok()));
                return published.is_ok();
            }
            if let Err(Backpressure { shard }) = self.lanes.flush() {
                if wait.is_none() {
                    wait = Some(self.begin_wait(shard));
                }
                clock::sleep_ns(FULL_NAP_NS);
            }
        }
    }

    /// Flushes until everything is pushed or the server stops. Counts a wait once and shows it as the source's state. Blocks.
    pub fn flush_waiting(&mut self) {
        if let Err(Backpressure { shard }) = self.lanes.flush()
            && !self.is_stopping()
        {
            let wait = self.begin_wait(shard);
            while self.lanes.flush().is_err() && !self.is_stopping() {
                clock::sleep_ns(FULL_NAP_NS);
            }
            self.end_wait(wait);
        }
    }

    /// Ends the lives of the topics whose ticks come from a subscription that is over. Waits while a ring is full. Blocks.
    pub(crate) fn lapse_waiting(&mut self, upstream: UpstreamId) {
        while self.lanes.lapse(upstream).is_err() && !self.is_stopping() {
            self.flush_waiting();
        }
    }

    /// Counts and shows a wait.
    fn begin_wait(&self, shard: ShardId) -> Wait {
        self.status.counters().add(Counter::SourceWaits, 1);
        let before = self.status.health();
        self.set_health(Health::Waiting(Waiting::Room(shard)));
        Wait { since_ns: clock::monotonic_ns(), before }
    }

    fn end_wait(&self, Wait { since_ns, before }: Wait) {
        let now_ns = clock::monotonic_ns();
        self.status.counters().add(Counter::SourceWaitNs, now_ns.saturating_sub(since_ns));
        // In this order: the feed was not silent, it was not read.
        self.status.note_heard(now_ns, None);
        self.set_health(before);
    }

    /// Sleeps until `due_ns`, a time of [`clock::monotonic_ns`]. Blocks. Returns `false` if the server stops.
    pub fn sleep_until(&self, due_ns: u64) -> bool {
        loop {
            if self.is_stopping() {
                return false;
            }
            match due_ns.saturating_sub(clock::monotonic_ns()) {
                0 => return true,
                left_ns => clock::sleep_ns(left_ns.min(NAP_NS)),
            }
        }
    }

    /// Waits until `sessions` sessions have a live subscription. Blocks. Returns `false` if the server stops.
    pub fn wait_for_subscribers(&self, sessions: u64) -> bool {
        let subscribed =
            || self.shards.iter().map(|shard| shard.value(Counter::SessionsSubscribed)).sum::<u64>();
        while subscribed() < sessions {
            if self.is_stopping() {
                return false;
            }
            self.set_health(Health::Waiting(Waiting::Subscribers(sessions)));
            clock::sleep_ns(1_000_000);
        }
        self.set_health(Health::Running);
        true
    }
}
