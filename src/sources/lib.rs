//! Sources of ticks other than clients. Each runs on its own thread, with one ring to every shard.
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
pub mod ecg;
pub mod engine;
pub mod failover;
pub mod health;
#[cfg(feature = "nats")]
pub mod jetstream;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod kind;
pub mod limits;
pub mod mapping;
#[cfg(feature = "nats")]
pub mod nats;
pub mod payload;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
pub mod redis_pubsub;
#[cfg(feature = "redis")]
pub mod redis_stream;
pub mod replay;
mod runner;
pub mod simulator;
mod standby;
pub mod status;
pub mod tls;
pub mod websocket;

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use self::{
    health::{Health, Waiting},
    kind::SourceKind,
};
pub use self::{
    runner::{RunningSource, start},
    status::SourceStatus,
};
use tickcast_common::clock;
use tickcast_core::{
    ids::TenantId,
    mesh::ring::{Doorbell, FrameProducer, Stage},
    metrics::counters::{Counter, Counters},
    placement,
    shard::ORIGIN_SOURCE,
    topic_key::KeyBuffer,
};
use tickcast_proto::{
    codec::json,
    frame::{self, FLAG_PAYLOAD_JSON},
    ids::ShardId,
    records::Publish,
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

/// A shard's ring is full: the tick was not staged, or some staged ticks were not pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backpressure {
    /// The shard.
    pub shard: ShardId,
}

impl fmt::Display for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the ring to shard {} is full", self.shard.0)
    }
}

/// Target of the log lines about lines of a replay file that are not ticks.
pub const LOG_TARGET_REPLAY: &str = "tickcast::peer::replay";
/// Target of the log lines about faults of other engines that sources read, and about messages of them that are skipped.
pub const LOG_TARGET_SOURCE: &str = "tickcast::peer::source";
/// Longest sleep of a source between two checks whether the server stops.
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

/// A source's ring to one shard.
#[derive(Debug)]
struct Lane {
    ring: FrameProducer,
    stage: Stage,
    bell: Arc<Doorbell>,
}

/// A source's rings to all shards.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    tenant: TenantId,
}

impl Lanes {
    /// Creates the lanes from one ring and doorbell per shard, in order.
    pub fn new(lanes: impl Iterator<Item = (FrameProducer, Arc<Doorbell>)>) -> Lanes {
        let lanes = lanes.map(|(ring, bell)| Lane { ring, stage: Stage::default(), bell }).collect();
        Lanes { lanes, tenant: TenantId::DEFAULT }
    }

    /// Makes the topics of later ticks a tenant's.
    pub fn set_tenant(&mut self, tenant: TenantId) {
        self.tenant = tenant;
    }

    /// Stages one JSON tick for its home shard. `topic` is a valid name. Never blocks.
    ///
    /// # Errors
    /// [`Backpressure`] if that shard's ring and stage are full. Nothing was staged.
    pub fn publish(
        &mut self,
        topic: &str,
        producer_time_ns: u64,
        ingest_time_ns: u64,
        payload: &[u8],
    ) -> Result<(), Backpressure> {
        let record = Publish { producer_time_ns, ingest_time_ns, ..Publish::default() };
        self.stage(FLAG_PAYLOAD_JSON, record, topic, payload)
    }

    /// [`Lanes::publish`] with a payload that is not JSON.
    ///
    /// # Errors
    /// As [`Lanes::publish`].
    pub fn publish_bytes(
        &mut self,
        topic: &str,
        producer_time_ns: u64,
        ingest_time_ns: u64,
        payload: &[u8],
    ) -> Result<(), Backpressure> {
        let record = Publish { producer_time_ns, ingest_time_ns, ..Publish::default() };
        self.stage(0, record, topic, payload)
    }

    fn stage(&mut self, flags: u8, record: Publish, topic: &str, payload: &[u8]) -> Result<(), Backpressure> {
        let mut buffer = KeyBuffer::default();
        let key = buffer.key(self.tenant, topic);
        let home = placement::home_shard(key, self.lanes.len() as u16);
        let lane = &mut self.lanes[usize::from(home.0)];
        if !lane.stage.has_room() {
            return Err(Backpressure { shard: home });
        }
        frame::encode_publish(lane.stage.tail(), ORIGIN_SOURCE, flags, 0, record, key, payload);
        Ok(())
    }

    /// Pushes staged ticks, with one wake-up per shard. Never blocks.
    ///
    /// # Errors
    /// [`Backpressure`] of the first shard whose ring did not accept everything. The rest stays staged.
    pub fn flush(&mut self) -> Result<(), Backpressure> {
        let mut full = None;
        for (shard, lane) in (0..).zip(&mut self.lanes) {
            if !lane.stage.waiting().is_empty() {
                let pushed = lane.ring.push(&mut lane.stage);
                if !lane.stage.waiting().is_empty() {
                    // A full ring also ends a wait for the latency budget.
                    lane.bell.ring();
                    full.get_or_insert(Backpressure { shard: ShardId(shard) });
                } else if pushed {
                    lane.bell.ring_for_ticks();
                }
            }
        }
        full.map_or(Ok(()), Err)
    }

    /// Flushes until everything is pushed or `stop` is set. Blocks.
    pub fn flush_all(&mut self, stop: &StopFlag) {
        while self.flush().is_err() && !stop.is_set() {
            clock::sleep_ns(FULL_NAP_NS);
        }
    }
}

/// The interface of a running source to the server. Its functions block only where documented.
#[derive(Debug)]
pub struct SourceContext {
    lanes: Lanes,
    status: SourceStatus,
    /// Counters of the shards, in order.
    shards: Vec<Arc<Counters>>,
    stop: StopFlag,
}

impl SourceContext {
    /// Creates the context of a source that publishes through `lanes`, updates `status`, and stops when `stop` is set.
    pub fn new(
        lanes: Lanes,
        status: SourceStatus,
        shards: Vec<Arc<Counters>>,
        stop: StopFlag,
    ) -> SourceContext {
        SourceContext { lanes, status, shards, stop }
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

    /// Notes that the source made or took ticks until now, for its rate and for whether it is silent. Once a batch, not once a tick.
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
        let mut waiting_since_ns = None;
        loop {
            let ingest_time_ns = clock::realtime_ns();
            let record = Publish { producer_time_ns, ingest_time_ns, key, ..Publish::default() };
            let published = self.lanes.stage(flags, record, topic, payload);
            if published.is_ok() || self.is_stopping() {
                if let Some(since_ns) = waiting_since_ns {
                    self.end_wait(since_ns);
                }
                self.count_ticks(u64::from(published.is_ok()));
                return published.is_ok();
            }
            if let Err(Backpressure { shard }) = self.lanes.flush() {
                if waiting_since_ns.is_none() {
                    waiting_since_ns = Some(self.begin_wait(shard));
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
            let since_ns = self.begin_wait(shard);
            self.lanes.flush_all(&self.stop);
            self.end_wait(since_ns);
        }
    }

    /// Counts and shows a wait. Returns when it began.
    fn begin_wait(&self, shard: ShardId) -> u64 {
        self.status.counters().add(Counter::SourceWaits, 1);
        self.set_health(Health::Waiting(Waiting::Room(shard)));
        clock::monotonic_ns()
    }

    fn end_wait(&self, since_ns: u64) {
        let waited_ns = clock::monotonic_ns().saturating_sub(since_ns);
        self.status.counters().add(Counter::SourceWaitNs, waited_ns);
        self.set_health(Health::Running);
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
