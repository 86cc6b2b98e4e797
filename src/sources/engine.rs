//! Shared by all sources that read another engine: a runtime on the source's own thread, waits between attempts, and the path
//! of a message into a ring.
//!
//! ```text
//!  engine's client -> Message -> Mapping -> SourceContext -> rings
//!        ^                          |             |
//!        | not read                 v             v
//!        +--- while a ring is full  skipped,      waits, and blocks the thread
//!                                   counted
//! ```
//!
//! A full ring stops the thread, and with it the client of the engine: the engine keeps the backlog.

use std::{
    any::Any,
    convert::Infallible,
    fmt, fs,
    future::{Future, pending, poll_fn},
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    pin::pin,
    task::Poll,
    time::Duration,
};

use futures_util::future::{Either, select};

use super::{
    NAP_NS, SourceContext, SourceError, StopFlag,
    failover::FAILOVER_TURN_NS,
    health::{Health, Waiting},
    mapping::{Mapped, Mapping, Message},
    standby::{Admission, Standby},
    tls,
    upstreams::{SubscriptionId, Upstreams},
};
use crate::{LOG_TARGET_SOURCE, limits::SOURCE_SECRET_BYTES_MAX};
use tickcast_client::Backoff;
use tickcast_common::{clock, panics};
use tickcast_core::metrics::counters::Counter;
use tickcast_proto::logged::LogPosition;

/// Messages taken before the rings are pushed, if more are available: one wake-up per shard for this many, as in the simulator.
const BATCH_MESSAGES: u32 = 256;
/// How often a waiting reader checks whether it has taken over from another source.
const TICK: Duration = Duration::from_nanos(FAILOVER_TURN_NS);
/// Longest first wait before another attempt to reach an engine, milliseconds.
pub(crate) const RETRY_MS: u64 = 100;
/// Longest wait before another attempt: reading resumes within 5 s of the engine's return, including an attempt and a
/// heartbeat.
pub(crate) const RETRY_MS_MAX: u64 = 2_000;

/// Why an attempt to read an engine ended: what was tried, and the client's error. Another attempt follows.
#[derive(Debug)]
pub struct EngineError(pub String);

impl EngineError {
    /// What was tried, and the client's error.
    pub fn new(what: &str, error: impl fmt::Display) -> EngineError {
        EngineError(tls::with_advice(format!("{what}: {error}")))
    }
}

/// Reads an engine.
pub trait Reader {
    /// Connects and reads until an error. Called again after each error, and continues where it stopped if the engine has
    /// positions. What takes long, such as connecting, it awaits in [`Ingest::waiting`].
    fn read(&mut self, ingest: &mut Ingest<'_>) -> impl Future<Output = Result<Infallible, EngineError>>;
}

/// The server is stopping, so the reader returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// Reads an engine with blocking calls, without a runtime.
pub trait BlockingReader {
    /// Like [`Reader::read`]. Returns within a few seconds once [`Ingest::is_stopping`].
    ///
    /// # Errors
    /// Why the attempt ended. Another follows.
    fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Stopped, EngineError>;
}

/// Reads a secret from a file, without the white space around it.
///
/// # Errors
/// The file cannot be read, or has more than 64 KiB.
pub fn secret(file: &Path) -> Result<String, EngineError> {
    let failed = |error: &dyn fmt::Display| EngineError::new(&file.display().to_string(), error);
    let bytes = fs::metadata(file).map_err(|error| failed(&error))?.len();
    if bytes > SOURCE_SECRET_BYTES_MAX {
        return Err(failed(&format_args!("larger than {SOURCE_SECRET_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
    Ok(text.trim().to_owned())
}

/// Awaits an attempt to use an engine. A panic in it is an error like any other, after which the next attempt begins: one
/// message that a client cannot digest does not stop the server.
pub(crate) async fn attempt<T>(
    attempt: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    let mut attempt = pin!(attempt);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| attempt.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    })
    .await
}

fn panicked(panic: &(dyn Any + Send)) -> EngineError {
    EngineError(format!("panicked: {}", panics::message(panic)))
}

/// Runs a reader on the calling thread until the server stops.
///
/// # Errors
/// The runtime cannot be created.
pub fn run(
    context: &mut SourceContext,
    mapping: Mapping,
    reader: &mut impl Reader,
) -> Result<(), SourceError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = context.stop.clone();
    let mut backoff = Backoff::with_bounds(RandomState::new().hash_one(0), RETRY_MS, RETRY_MS_MAX);
    let mut ingest = Ingest::new(context, mapping);
    let attempts = async {
        loop {
            let Err(failure) = attempt(reader.read(&mut ingest)).await;
            let wait_ms = ingest.handle_failure(&failure, &mut backoff);
            ingest.waiting(tokio::time::sleep(Duration::from_millis(wait_ms))).await;
        }
    };
    runtime.block_on(until_stopped(&stop, attempts));
    // Push what was taken before the stop, as far as the rings have room.
    ingest.flush();
    // Does not wait for a helper thread, which may be in a DNS lookup, for example.
    runtime.shutdown_background();
    Ok(())
}

/// Runs a reader that blocks on the calling thread until the server stops.
pub fn run_blocking(context: &mut SourceContext, mapping: Mapping, reader: &mut impl BlockingReader) {
    let mut backoff = Backoff::with_bounds(RandomState::new().hash_one(0), RETRY_MS, RETRY_MS_MAX);
    let mut ingest = Ingest::new(context, mapping);
    let mut read = |ingest: &mut Ingest<'_>| {
        let read = catch_unwind(AssertUnwindSafe(|| reader.read(ingest)));
        read.unwrap_or_else(|panic| Err(panicked(&*panic)))
    };
    while let Err(failure) = read(&mut ingest) {
        let wait_ms = ingest.handle_failure(&failure, &mut backoff);
        if ingest.sleep_until(clock::monotonic_ns() + wait_ms * 1_000_000).is_err() {
            break;
        }
    }
    // Push what was taken before the stop, as far as the rings have room.
    ingest.flush();
}

/// Awaits a future that never ends until the server stops.
pub(crate) async fn until_stopped(stop: &StopFlag, future: impl Future<Output = Infallible>) {
    let stopped = async {
        while !stop.is_set() {
            tokio::time::sleep(Duration::from_nanos(NAP_NS)).await;
        }
    };
    select(pin!(future), pin!(stopped)).await;
}

/// The path of an engine's messages into the rings.
pub struct Ingest<'a> {
    context: &'a mut SourceContext,
    mapping: Mapping,
    is_connected: bool,
    /// When reading began, a time of [`clock::monotonic_ns`].
    connected_ns: u64,
    /// Messages taken since the rings were last pushed.
    taken: u32,
    /// Whether a message has been begun that is neither published nor skipped. After a panic, it is lost.
    is_taking: bool,
    /// The last message's own time, nanoseconds since 1970, and how long the source had waited for rings when it arrived.
    last_time_ns: Option<(u64, u64)>,
    standby: Standby,
}

impl<'a> Ingest<'a> {
    fn new(context: &'a mut SourceContext, mapping: Mapping) -> Ingest<'a> {
        context.set_health(Health::Waiting(Waiting::Connecting));
        Ingest {
            context,
            mapping,
            is_connected: false,
            connected_ns: 0,
            taken: 0,
            is_taking: false,
            last_time_ns: None,
            standby: Standby::default(),
        }
    }

    /// Shows why an attempt ended. Returns the wait before the next one, in milliseconds.
    fn handle_failure(&mut self, EngineError(failure): &EngineError, backoff: &mut Backoff) -> u64 {
        if self.is_connected {
            backoff.handle_connected(self.connected_ns);
        }
        if std::mem::take(&mut self.is_taking) {
            self.count_hole(1, "one was in hand when the attempt ended");
        }
        self.flush();
        self.warn(&format!("{failure}; trying again"));
        self.set_waiting(failure);
        backoff.handle_disconnected(clock::monotonic_ns(), 0)
    }

    /// Whether the source must end.
    pub fn is_stopping(&self) -> bool {
        self.context.is_stopping()
    }

    /// Notes that the engine answers. The first time after a failure is counted and logged, and changes the source's state.
    pub fn connected(&mut self, to: &str) {
        if std::mem::replace(&mut self.is_connected, true) {
            return;
        }
        self.connected_ns = clock::monotonic_ns();
        ::log::info!("{}: reading {to}", self.name());
        self.context.status.counters().add(Counter::SourceConnections, 1);
        self.context.set_health(Health::Running);
    }

    /// Notes that everything that the log held when reading began has been read: the server may be ready.
    pub fn caught_up(&mut self) {
        if self.context.status.is_reading_back() {
            self.flush();
            ::log::info!("{}: has read back what the log has", self.name());
            self.context.status.set_reading_back(false);
        }
    }

    /// Stops reading for good, and shows why: clients keep their connections, and the server is ready unless it requires the
    /// source. Never returns.
    pub async fn stop<T>(&mut self, why: &str) -> T {
        self.flush();
        self.context.status.set_reading_back(false);
        ::log::error!("{}: stopped: {why}", self.name());
        self.context.set_health(Health::Failed(why.into()));
        pending().await
    }

    /// Shows that the source waits for its engine, and why.
    pub fn set_waiting(&mut self, why: &str) {
        self.is_connected = false;
        self.context.set_health(Health::Waiting(Waiting::Engine(why.into())));
    }

    /// Logs a warning about the engine, and shows it as the source's last error.
    pub fn warn(&self, text: &str) {
        ::log::warn!(target: LOG_TARGET_SOURCE, "{}: {text}", self.name());
        self.context.status.set_last_error(text);
    }

    fn name(&self) -> &str {
        self.context.status.name()
    }

    /// Counts a hole: messages that the engine has lost or withheld, at least one.
    pub fn count_hole(&self, messages: u64, why: &str) {
        ::log::warn!(target: LOG_TARGET_SOURCE, "{}: messages lost: {why}", self.name());
        self.context.status.counters().add(Counter::SourceMessagesLost, messages.max(1));
    }

    /// Publishes a message as a tick, or counts it as skipped. Pushes the rings after a batch; [`Ingest::flush`] pushes the
    /// rest. Blocks the thread while a ring is full. Never returns once the server stops.
    pub async fn take(&mut self, message: Message<'_>) {
        self.take_at(message, None).await;
    }

    /// Like [`Ingest::take`], for a message that has come by a subscription on demand.
    pub async fn take_from(&mut self, subscription: SubscriptionId, message: Message<'_>) {
        self.context.lanes.set_upstream(subscription.upstream());
        self.take(message).await;
    }

    /// Ends the lives of the topics of a subscription on demand, after all its messages. Blocks while a ring is full.
    pub fn lapse(&mut self, subscription: SubscriptionId) {
        self.context.lapse_waiting(subscription.upstream());
        self.context.flush_waiting();
    }

    /// Shows the subscriptions on demand.
    pub fn set_upstreams(&mut self, upstreams: &Upstreams) {
        let status = &self.context.status;
        let counters = status.counters();
        counters.set(Counter::SourceSubscriptions, upstreams.len() as u64);
        counters.set(Counter::SourcePrefixesWhole, upstreams.whole_len() as u64);
        let counted = counters.value(Counter::SourceSubscriptionChanges);
        counters.add(Counter::SourceSubscriptionChanges, upstreams.changes().saturating_sub(counted));
    }

    /// Notes that nothing is subscribed to, so that silence is no fault.
    pub fn note_idle(&self) {
        self.context.status.note_idle(clock::monotonic_ns());
    }

    /// Like [`Ingest::take`], with the message's position in the log that feeds its topic, if one does.
    pub async fn take_at(&mut self, message: Message<'_>, at: Option<LogPosition>) {
        if self.take_blocking_at(message, at).is_err() {
            pending().await
        }
    }

    /// [`Ingest::take`] for a reader without a runtime.
    ///
    /// # Errors
    /// [`Stopped`], if the server stops while a ring is full. The message was not published.
    pub fn take_blocking(&mut self, message: Message<'_>) -> Result<(), Stopped> {
        self.take_blocking_at(message, None)
    }

    /// [`Ingest::take_at`] for a reader without a runtime.
    ///
    /// # Errors
    /// As [`Ingest::take_blocking`].
    pub fn take_blocking_at(&mut self, message: Message<'_>, at: Option<LogPosition>) -> Result<(), Stopped> {
        // Before a flush, which may wait.
        let waited_ns = self.waited_ns();
        if self.taken >= BATCH_MESSAGES {
            self.flush();
        }
        // After it, so that the next flush pushes this message, too.
        self.taken += 1;
        self.is_taking = true;
        let taken = self.publish(message, at, waited_ns);
        self.is_taking = false;
        taken
    }

    /// How long the source has waited for rings.
    fn waited_ns(&self) -> u64 {
        self.context.status.counters().value(Counter::SourceWaitNs)
    }

    fn publish(
        &mut self,
        message: Message<'_>,
        at: Option<LogPosition>,
        waited_ns: u64,
    ) -> Result<(), Stopped> {
        let mapped = match self.mapping.map(message) {
            Ok(mapped) => mapped,
            Err(why) => {
                self.skip(message.subject, &why);
                return Ok(());
            }
        };
        self.last_time_ns = mapped.producer_time_ns.map(|time_ns| (time_ns, waited_ns)).or(self.last_time_ns);
        let time_ns = mapped.producer_time_ns.unwrap_or_else(clock::realtime_ns);
        match self.standby.admit(&mapped, time_ns, message.payload, self.context) {
            Admission::Publish => {}
            Admission::Pass => return Ok(()),
            Admission::Stopped => return Err(Stopped),
        }
        let Mapped { topic, key, .. } = mapped;
        match self.context.publish_any_waiting(topic, key, time_ns, message.payload, at) {
            true => Ok(()),
            false => Err(Stopped),
        }
    }

    /// Awaits a message, or anything else that may take long. If the source meanwhile takes over from another of its group, it
    /// announces that and publishes what it has held back.
    pub async fn waiting<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            if self.tick().is_err() {
                return pending().await;
            }
            match select(future, pin!(tokio::time::sleep(TICK))).await {
                Either::Left((done, _)) => return done,
                Either::Right((_, rest)) => future = rest,
            }
        }
    }

    /// Does what [`Ingest::waiting`] does periodically, for a reader without a runtime.
    ///
    /// # Errors
    /// [`Stopped`], if the server stops while a ring is full.
    pub fn tick(&mut self) -> Result<(), Stopped> {
        if self.standby.take_over(self.context).ok_or(Stopped)? {
            self.context.flush_waiting();
        }
        Ok(())
    }

    /// Sleeps until a time of [`clock::monotonic_ns`], and meanwhile does what [`Ingest::waiting`] does.
    fn sleep_until(&mut self, due_ns: u64) -> Result<(), Stopped> {
        loop {
            self.tick()?;
            let now_ns = clock::monotonic_ns();
            if now_ns >= due_ns {
                return Ok(());
            }
            if !self.context.sleep_until(due_ns.min(now_ns + FAILOVER_TURN_NS)) {
                return Err(Stopped);
            }
        }
    }

    /// Notes how many messages the engine holds that have not been taken yet, if it reports that.
    pub fn set_lag(&self, messages: u64) {
        self.context.status.set_lag(messages);
    }

    /// Counts a message that is not a tick, and logs it (at most ten lines per second).
    pub fn skip(&self, subject: &str, why: &dyn fmt::Display) {
        let subject: String = subject.chars().take(64).collect();
        ::log::warn!(target: LOG_TARGET_SOURCE, "{}: message of {subject:?} skipped: {why}", self.name());
        self.context.status.counters().add(Counter::SourceMessagesSkipped, 1);
    }

    /// Pushes what [`Ingest::take`] has staged, and notes that messages have arrived. Call it before waiting for more. Blocks
    /// while a ring is full.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.taken) > 0 {
            // A wait for a ring is no lag of the feed.
            let waited_ns = self.waited_ns();
            let lag_ns = self.last_time_ns.take().map(|(time_ns, before_ns)| {
                clock::realtime_ns()
                    .saturating_sub(time_ns)
                    .saturating_sub(waited_ns.saturating_sub(before_ns))
            });
            self.context.status.note_heard(clock::monotonic_ns(), lag_ns);
            self.context.flush_waiting();
        }
    }
}

#[cfg(test)]
mod attempt_tests;
#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;
    use crate::{
        Lanes, SourceStatus,
        common::CommonOptions,
        failover::Failover,
        kind::{OptionChecks, SourceBounds},
        mapping::MapOptions,
        waits::{eventually, joined},
    };
    use tickcast_core::mesh::ring::{Doorbell, FrameConsumer, frame_ring};

    /// Reads one message as a standby, and loses its engine just when it takes over. Then it never reaches the engine again.
    struct Broken {
        status: SourceStatus,
        was_read: bool,
    }

    impl Broken {
        /// Whether it has read its message now.
        fn reads(&mut self) -> bool {
            !std::mem::replace(&mut self.was_read, true)
        }

        fn message() -> Message<'static> {
            Message { subject: "t", key: Some("1"), headers: &(), payload: b"1", time_ns: None }
        }

        fn failure(&self) -> EngineError {
            self.status.set_standby(false);
            EngineError("the connection has ended".into())
        }
    }

    impl Reader for Broken {
        async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
            if !self.reads() {
                // Never connects: only the wait before this attempt could publish.
                return pending().await;
            }
            ingest.take(Broken::message()).await;
            Err(self.failure())
        }
    }

    impl BlockingReader for Broken {
        fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Stopped, EngineError> {
            if !self.reads() {
                while !ingest.is_stopping() {
                    clock::sleep_ns(NAP_NS);
                }
                return Ok(Stopped);
            }
            let _ = ingest.take_blocking(Broken::message());
            Err(self.failure())
        }
    }

    fn mapping() -> Mapping {
        let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
        let options = MapOptions { id: "{key}".into(), ..MapOptions::default() };
        Mapping::new(&options, &mut OptionChecks::new(bounds)).unwrap()
    }

    /// Runs `run` with a standby on a thread until it has published a tick.
    fn publishes(run: impl FnOnce(&mut SourceContext, Mapping, &mut Broken) + Send + 'static) {
        let (producer, mut consumer): (_, FrameConsumer) = frame_ring(1 << 16);
        let lanes = Lanes::new([(producer, Arc::new(Doorbell::new(|| {})))].into_iter());
        let options = CommonOptions { group: Some("g".into()), ..CommonOptions::default() };
        let statuses = ["a", "b"].map(|name| SourceStatus::new("nats", options.resolved(name)));
        statuses.iter().for_each(|status| status.set_health(Health::Running));
        let _failover = Failover::new(&statuses);
        let [_, b] = statuses;
        let stop = StopFlag::default();
        let mut context = SourceContext::new(lanes, b.clone(), Vec::new(), stop.clone());
        let source =
            thread::spawn(move || run(&mut context, mapping(), &mut Broken { status: b, was_read: false }));
        let mut taken = 0;
        eventually("a tick", || {
            consumer.drain(1 << 16, |_| {
                taken += 1;
                true
            });
            taken > 0
        });
        stop.set();
        joined("the source", source);
        assert_eq!(taken, 1);
    }

    #[test]
    fn a_source_that_takes_over_while_it_waits_for_its_engine_publishes_what_it_holds() {
        publishes(|context, mapping, reader| run(context, mapping, reader).unwrap());
        publishes(run_blocking);
    }
}
