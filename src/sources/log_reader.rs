//! Reads the past of a log for clients whose positions are older than this server's history: one reader for each source with
//! `position = "log"`, on a thread and with a connection of its own, beside the source that reads what is new.
//!
//! ```text
//!  shards -- requests --> LogScan: which part is next --> LogAccess --> engine
//!         <-- chunks ---  ticks for all that wait     <-- mapping   <--
//! ```
//!
//! It connects when a request comes, and leaves the engine after 15 s without one. An engine that is away is tried again; the shards keep
//! the deadlines.

use std::{
    collections::VecDeque,
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    LOG_TARGET_SOURCE, SourceError, SourceStatus, StopFlag,
    engine::{EngineError, attempt, until_stopped},
    kind::OptionChecks,
    mapping::{Mapping, Message},
    runner::Running,
};
use tickcast_client::Backoff;
use tickcast_common::{clock, panics, values::Time};
use tickcast_core::{
    limits::{LOG_READ_RING, LOG_READ_TIMEOUT_NS_DEFAULT, LOG_READS_ACTIVE_MAX},
    log_reads::{LogChunk, LogRead, LogReaderLane, LogScan, LogTick, ScanStep},
    mesh::{
        SinkWake,
        item_ring::{ItemConsumer, ItemProducer, item_ring},
        ring::Doorbell,
    },
    metrics::counters::Counter,
};
use tickcast_proto::{
    codec::json,
    frame::{FLAG_PAYLOAD_JSON, TickParts},
    records::TickTimes,
};

/// How often a reader checks for the server's stop while it waits for requests.
const WATCH: Duration = Duration::from_millis(100);
/// Time without requests after which a reader leaves its engine and frees its window.
const IDLE_NS: u64 = 15_000_000_000;
/// First bound of the wait after an attempt to read the engine has failed, and the highest; the wait has full jitter.
const RETRY_MS: u64 = 200;
const RETRY_MS_MAX: u64 = 5_000;
/// How far a reader may be ahead of its rate, so that a few batches need not wait.
const BURST_NS: u64 = 100_000_000;
/// Bits of a ticket below the number of the shard.
const TICKET_BITS: u32 = 48;

/// Default of `read_back_rate`, messages per second: a core reads several times as many.
pub const RATE_DEFAULT: u32 = 100_000;
/// Bounds of `read_back_rate`.
const RATE_RANGE: (u32, u32) = (100, 10_000_000);
/// Bounds of `read_back_timeout`.
const TIMEOUT_RANGE: (Time, Time) = (Time::from_ms(100), Time::from_ms(60_000));

/// Default of `read_back_timeout`.
pub fn timeout_default() -> Time {
    Time { ns: LOG_READ_TIMEOUT_NS_DEFAULT }
}

/// Where a pass over a log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The log has everything from the position on.
    AtPosition,
    /// The log may not have everything below this position.
    Gone {
        /// The first position that a pass may begin at.
        first: u64,
    },
}

/// The answer for a life of the log that is over.
pub const LIFE_GONE: Opened = Opened::Gone { first: u64::MAX };

/// Access to the past of a log.
pub trait LogAccess: Send {
    /// Opens the log at a position of the life with this epoch. Connects if necessary.
    ///
    /// # Errors
    /// Why the engine cannot be read now.
    fn open(&mut self, epoch: u64, from: u64) -> impl Future<Output = Result<Opened, EngineError>>;

    /// Passes the next messages on, in order. Returns the position below which everything has been passed on, or `None` where
    /// something is missing: opening the log there tells what.
    ///
    /// # Errors
    /// Why the engine cannot be read now.
    fn read(&mut self, into: &mut ReadMessages<'_>)
    -> impl Future<Output = Result<Option<u64>, EngineError>>;

    /// Leaves the engine until the next [`LogAccess::open`].
    fn close(&mut self) -> impl Future<Output = ()>;
}

/// Takes the messages of a log, and maps them to ticks.
pub struct ReadMessages<'a> {
    scan: &'a mut LogScan,
    mapping: &'a mut Mapping,
    messages: u64,
}

impl ReadMessages<'_> {
    /// Takes the next message. One that does not map to a tick is passed over, as it was when it was new.
    pub fn take(&mut self, position: u64, message: Message<'_>) {
        self.messages += 1;
        let payload = message.payload;
        let Ok(mapped) = self.mapping.map(message) else { return };
        let now_ns = clock::realtime_ns();
        let producer_time_ns = mapped.producer_time_ns.unwrap_or(now_ns);
        let times = TickTimes { producer_time_ns, ingest_time_ns: now_ns };
        let flags = if json::is_json(payload) { FLAG_PAYLOAD_JSON } else { 0 };
        let parts = TickParts { flags, schema: 0, times, key: mapped.key, payload };
        self.scan.tick(&LogTick { position, topic: mapped.topic, parts });
    }

    /// Passes over a message that is not a tick of this source.
    pub fn skip(&mut self) {
        self.messages += 1;
    }
}

/// Options of a source about its reader of the past.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadBack {
    /// Whether there is one.
    pub is_on: bool,
    /// Messages per second that it reads.
    pub rate: u32,
    /// Time from a request to its answer.
    pub timeout: Time,
}

impl ReadBack {
    /// Checks the values.
    pub fn check(&self, checks: &mut OptionChecks) {
        checks.within("read_back_rate", self.rate, RATE_RANGE.0, RATE_RANGE.1);
        checks.within("read_back_timeout", self.timeout, TIMEOUT_RANGE.0, TIMEOUT_RANGE.1);
    }
}

/// A configured reader, ready to run on a thread.
pub trait LogReader: Send {
    /// Answers requests until the server stops. Called once, on the reader's own thread.
    ///
    /// # Errors
    /// The runtime cannot be created.
    fn run(
        &mut self,
        lanes: LogReaderLanes,
        status: &SourceStatus,
        stop: &StopFlag,
    ) -> Result<(), SourceError>;
}

/// A reader of a log through `access`.
#[derive(Clone, Debug)]
pub struct Reader<A> {
    access: A,
    mapping: Mapping,
    rate: u32,
}

impl<A: LogAccess> Reader<A> {
    /// Maps messages as the source does, and reads at most `rate` of them per second.
    pub fn new(access: A, mapping: Mapping, rate: u32) -> Reader<A> {
        Reader { access, mapping, rate }
    }

    async fn answer(&mut self, mut lanes: LogReaderLanes, status: &SourceStatus) -> Infallible {
        let (mut scan, mut is_open, mut used_ns, mut paid_until_ns) = (LogScan::default(), false, 0, 0);
        let fresh = || Backoff::with_bounds(RandomState::new().hash_one(0), RETRY_MS, RETRY_MS_MAX);
        let mut backoff = fresh();
        loop {
            lanes.take(&mut scan);
            let now_ns = clock::monotonic_ns();
            let step = scan.step(now_ns);
            let failure = match step {
                ScanStep::Idle => None,
                ScanStep::Open { epoch, from } => match attempt(self.access.open(epoch, from)).await {
                    Ok(Opened::AtPosition) => {
                        scan.begin(epoch, from);
                        None
                    }
                    Ok(Opened::Gone { first }) => {
                        scan.refuse(epoch, first.max(from + 1));
                        None
                    }
                    Err(error) => Some(error),
                },
                ScanStep::Read => {
                    let mapping = &mut self.mapping;
                    let mut into = ReadMessages { scan: &mut scan, mapping, messages: 0 };
                    let read = attempt(self.access.read(&mut into)).await;
                    let messages = into.messages;
                    status.counters().add(Counter::SourceMessagesReadBack, messages);
                    let cost_ns = messages * 1_000_000_000 / u64::from(self.rate);
                    paid_until_ns = now_ns.max(paid_until_ns) + cost_ns;
                    match read {
                        Ok(Some(head)) => {
                            backoff = fresh();
                            scan.reached(head, messages);
                            None
                        }
                        Ok(None) => {
                            scan.end_pass();
                            None
                        }
                        Err(error) => {
                            scan.end_pass();
                            Some(error)
                        }
                    }
                }
            };
            lanes.answer(&mut scan);
            if step != ScanStep::Idle {
                (is_open, used_ns) = (true, now_ns);
            }
            if let Some(EngineError(failure)) = failure {
                let name = status.name();
                ::log::warn!(target: LOG_TARGET_SOURCE, "{name}: reading back: {failure}; trying again");
                status.set_last_error(&format!("reading back: {failure}"));
                self.access.close().await;
                let wait_ms = backoff.handle_disconnected(clock::monotonic_ns(), 0);
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            } else if step == ScanStep::Idle {
                if is_open && now_ns.saturating_sub(used_ns) >= IDLE_NS {
                    is_open = false;
                    scan.end_pass();
                    self.access.close().await;
                }
                lanes.ready().await;
            } else {
                let ahead_ns = paid_until_ns.saturating_sub(clock::monotonic_ns() + BURST_NS);
                match ahead_ns {
                    // Other tasks of the runtime belong to the engine's client.
                    0 => tokio::task::yield_now().await,
                    _ => tokio::time::sleep(Duration::from_nanos(ahead_ns)).await,
                }
            }
        }
    }
}

impl<A: LogAccess> LogReader for Reader<A> {
    fn run(
        &mut self,
        lanes: LogReaderLanes,
        status: &SourceStatus,
        stop: &StopFlag,
    ) -> Result<(), SourceError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(until_stopped(stop, self.answer(lanes, status)));
        // Does not wait for a helper thread, which may be in a DNS lookup, for example.
        runtime.shutdown_background();
        Ok(())
    }
}

/// A reader's ends of the rings to one shard.
#[derive(Debug)]
struct Lane {
    reads: ItemConsumer<LogRead>,
    chunks: ItemProducer<LogChunk>,
    /// Chunks that wait for room in the ring. Bound: [`LOG_READS_ACTIVE_MAX`] for all lanes together.
    waiting: VecDeque<LogChunk>,
    bell: Arc<Doorbell>,
}

/// A reader's ends of the rings to all shards.
#[derive(Debug)]
pub struct LogReaderLanes {
    lanes: Vec<Lane>,
    wake: Arc<Notify>,
    /// The lane that is served first.
    first: usize,
}

impl LogReaderLanes {
    /// Creates the rings between the reader of a source's log and the shards that `bells` wake. Returns its ends, and each shard's in
    /// order.
    pub fn new(source: u32, bells: &[Arc<Doorbell>]) -> (LogReaderLanes, Vec<LogReaderLane>) {
        let wake = Arc::new(Notify::new());
        let (lanes, shards) = bells
            .iter()
            .map(|bell| {
                let ((reads_out, reads), (chunks, chunks_in)) =
                    (item_ring(LOG_READ_RING), item_ring(LOG_READ_RING));
                let notify = wake.clone();
                // While the thread is awake, this only stores a permit.
                let wake = SinkWake(Box::new(move || notify.notify_one()));
                let lane = Lane { reads, chunks, waiting: VecDeque::new(), bell: bell.clone() };
                (lane, LogReaderLane { source, reads_out, chunks_in, wake })
            })
            .unzip();
        (LogReaderLanes { lanes, wake, first: 0 }, shards)
    }

    /// Takes requests of all shards in fair turns, as far as the scan has room.
    fn take(&mut self, scan: &mut LogScan) {
        let mut waiting: usize = self.lanes.iter().map(|lane| lane.waiting.len()).sum();
        let (count, mut empty) = (self.lanes.len(), 0);
        while empty < count && scan.has_room() && waiting < LOG_READS_ACTIVE_MAX {
            let at = self.first;
            self.first = (at + 1) % count;
            let lane = &mut self.lanes[at];
            let Some(read) = lane.reads.pop() else {
                empty += 1;
                continue;
            };
            empty = 0;
            waiting += 1;
            if lane.reads.producer_waits() {
                lane.bell.ring();
            }
            debug_assert!(read.ticket >> TICKET_BITS == 0, "a shard makes fewer requests");
            scan.want(LogRead { ticket: (at as u64) << TICKET_BITS | read.ticket, ..read });
        }
    }

    /// Pushes the scan's answers into the rings. Never blocks: what does not fit is pushed when the shard has made room.
    fn answer(&mut self, scan: &mut LogScan) {
        while let Some(chunk) = scan.poll_answer() {
            let (at, ticket) = (chunk.ticket >> TICKET_BITS, chunk.ticket & ((1 << TICKET_BITS) - 1));
            if let Some(lane) = self.lanes.get_mut(at as usize) {
                lane.waiting.push_back(LogChunk { ticket, ..chunk });
            }
        }
        for lane in self.lanes.iter_mut().filter(|lane| !lane.waiting.is_empty()) {
            if lane.chunks.push(&mut lane.waiting) {
                lane.bell.ring();
            }
        }
    }

    /// Waits until a request may have come, or for [`WATCH`].
    async fn ready(&self) {
        let _ = tokio::time::timeout(WATCH, self.wake.notified()).await;
    }
}

/// A reader on its thread.
pub type RunningLogReader = Running<SourceStatus>;

/// Starts the reader of a source's log on its own thread. Calls `on_end` from that thread when it has failed or panicked.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    mut reader: Box<dyn LogReader>,
    lanes: LogReaderLanes,
    status: SourceStatus,
    on_end: impl FnOnce(Result<(), SourceError>) + Send + 'static,
) -> io::Result<RunningLogReader> {
    let (stop, shared) = (StopFlag::default(), status.clone());
    let of_thread = stop.clone();
    let run = move || {
        let name = shared.name().to_owned();
        let ended = catch_unwind(AssertUnwindSafe(|| reader.run(lanes, &shared, &of_thread)));
        on_end(ended.unwrap_or_else(|panic| {
            Err(format!("log reader of {name}: panicked: {}", panics::message(&*panic)).into())
        }));
    };
    Running::start(format!("log {}", status.name()), (status, stop), run)
}

#[cfg(test)]
mod panic_tests;
