//! What all sources share that read another engine: a runtime on the source's own thread, waits between attempts, and the way from a
//! message to a ring.
//!
//! ```text
//!  engine's client -> Message -> Mapping -> SourceContext -> rings
//!        ^                          |             |
//!        | not read                 v             v
//!        +--- while a ring is full  skipped,      waits, the thread with it
//!                                   counted
//! ```
//!
//! A ring that is full stops the thread, and with it the client of the engine: the engine keeps the backlog.

use std::{convert::Infallible, fmt, fs, future::Future, path::Path, pin::pin, time::Duration};

use futures_util::future::{Either, select};

use super::{
    NAP_NS, SourceContext, SourceError, StopFlag,
    health::{Health, Waiting},
    mapping::{Mapping, Message},
};
use crate::{clock, limits::SOURCE_SECRET_BYTES_MAX, logging};
use tickcast_core::metrics::counters::Counter;

/// Messages taken before the rings are pushed, if more are at hand: as many as a read from a socket of an engine holds.
const BATCH_MESSAGES: u32 = 256;
/// First wait before another attempt to reach an engine; each further one may be twice as long.
const RETRY_NS: u64 = 100_000_000;
/// Longest wait before another attempt: reading goes on within 5 s of the engine's return, an attempt and a heartbeat included.
const RETRY_NS_MAX: u64 = 2_000_000_000;

/// Why reading ended.
#[derive(Debug)]
pub enum EngineError {
    /// The engine cannot be reached, or has ended the connection. Another attempt follows.
    Retry(String),
    /// Another attempt would fail too: the server ends.
    Fatal(String),
}

impl EngineError {
    /// A failed attempt: what was tried and the client's error.
    pub fn retry(what: &str, error: impl fmt::Display) -> EngineError {
        EngineError::Retry(format!("{what}: {error}"))
    }
}

/// Waits between attempts: random between nothing and a limit that doubles ("full jitter"), so that the nodes of a
/// group do not come back to an engine at the same moment.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next wait, nanoseconds, at most 2 s. `random` is any number.
    pub fn next_ns(&mut self, random: u64) -> u64 {
        let limit_ns = RETRY_NS.saturating_mul(1 << self.attempts.min(16)).min(RETRY_NS_MAX);
        self.attempts = self.attempts.saturating_add(1);
        random % (limit_ns + 1)
    }

    /// Begins again with the shortest wait, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// Reads an engine.
pub trait Reader {
    /// Connects and reads until an error. Called again after each [`EngineError::Retry`], from where reading stopped if the engine has
    /// positions.
    fn read(&mut self, ingest: &mut Ingest<'_>) -> impl Future<Output = Result<Infallible, EngineError>>;
}

/// Reads a secret from a file, without the white space around it.
///
/// # Errors
/// The file cannot be read, or has more than 64 KiB.
pub fn secret(file: &Path) -> Result<String, EngineError> {
    let failed = |error: &dyn fmt::Display| EngineError::Retry(format!("{}: {error}", file.display()));
    let bytes = fs::metadata(file).map_err(|error| failed(&error))?.len();
    if bytes > SOURCE_SECRET_BYTES_MAX {
        return Err(failed(&format_args!("larger than {SOURCE_SECRET_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
    Ok(text.trim().to_owned())
}

/// Runs a reader on the calling thread until the server stops.
///
/// # Errors
/// The runtime cannot be made, or [`EngineError::Fatal`].
pub fn run(
    kind: &'static str,
    context: &mut SourceContext,
    mapping: Mapping,
    reader: &mut impl Reader,
) -> Result<(), SourceError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, mut backoff) = (context.stop.clone(), Backoff::default());
    let mut ingest = Ingest::new(kind, context, mapping);
    runtime
        .block_on(until_stopped(&stop.clone(), async {
            loop {
                let failure = match reader.read(&mut ingest).await {
                    Ok(never) => match never {},
                    Err(EngineError::Fatal(text)) => {
                        return Err(SourceError::from(format!("{kind}: {text}")));
                    }
                    Err(EngineError::Retry(text)) => text,
                };
                if std::mem::take(&mut ingest.has_read) {
                    backoff.reset();
                }
                ingest.flush();
                ::log::warn!(target: logging::peer::SOURCE, "{kind}: {failure}; trying again");
                ingest.set_waiting(&failure);
                let wait_ns = backoff.next_ns(random());
                tokio::time::sleep(Duration::from_nanos(wait_ns)).await;
            }
        }))
        .unwrap_or(Ok(()))
}

/// Awaits a future until the server stops; `None` if that is first.
async fn until_stopped<T>(stop: &StopFlag, future: impl Future<Output = T>) -> Option<T> {
    let stopped = async {
        while !stop.is_set() {
            tokio::time::sleep(Duration::from_nanos(NAP_NS)).await;
        }
    };
    match select(pin!(future), pin!(stopped)).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// The way of an engine's messages into the rings.
pub struct Ingest<'a> {
    kind: &'static str,
    context: &'a mut SourceContext,
    mapping: Mapping,
    has_read: bool,
    is_connected: bool,
    staged: u32,
}

impl<'a> Ingest<'a> {
    fn new(kind: &'static str, context: &'a mut SourceContext, mapping: Mapping) -> Ingest<'a> {
        Ingest { kind, context, mapping, has_read: false, is_connected: false, staged: 0 }
    }

    /// Notes that the engine answers. The state of the source follows, and the first time after a failure is counted and logged.
    pub fn connected(&mut self, to: &str) {
        if !std::mem::replace(&mut self.is_connected, true) {
            ::log::info!("{}: reading {to}", self.kind);
            self.context.status.counters().add(Counter::SourceConnections, 1);
        }
        self.has_read = true;
        self.context.set_health(Health::Running);
    }

    /// Shows that the source waits for its engine, and why.
    pub fn set_waiting(&mut self, why: &str) {
        self.is_connected = false;
        self.context.set_health(Health::Waiting(Waiting::Engine(why.into())));
    }

    /// Logs a warning about the engine.
    pub fn warn(&self, text: &str) {
        ::log::warn!(target: logging::peer::SOURCE, "{}: {text}", self.kind);
    }

    /// Counts a hole: messages that the engine has lost or withheld, at least one.
    pub fn count_hole(&self, messages: u64, why: &str) {
        ::log::warn!(target: logging::peer::SOURCE, "{}: messages lost: {why}", self.kind);
        self.context.status.counters().add(Counter::SourceMessagesLost, messages.max(1));
    }

    /// Publishes a message as a tick, or counts it as skipped. Pushes the rings after a batch; [`Ingest::flush`] pushes the
    /// rest. Blocks while a ring is full. Returns `false` if the server stops: the message was not published.
    pub fn take(&mut self, message: Message<'_>) -> bool {
        let mapped = match self.mapping.map(message) {
            Ok(mapped) => mapped,
            Err(why) => {
                self.skip(message.subject, &why);
                return true;
            }
        };
        let time_ns = mapped.producer_time_ns.unwrap_or_else(clock::realtime_ns);
        if !self.context.publish_waiting(mapped.topic, mapped.key, time_ns, message.payload) {
            return false;
        }
        self.context.status.counters().add(Counter::SourceTicks, 1);
        self.staged += 1;
        if self.staged >= BATCH_MESSAGES {
            self.flush();
        }
        true
    }

    /// Counts a message that is not a tick, and logs it (at most ten lines a second are).
    pub fn skip(&self, subject: &str, why: &dyn fmt::Display) {
        let subject: String = subject.chars().take(64).collect();
        ::log::warn!(target: logging::peer::SOURCE, "{}: message of {subject:?} skipped: {why}", self.kind);
        self.context.status.counters().add(Counter::SourceMessagesSkipped, 1);
    }

    /// Pushes what [`Ingest::take`] has staged. Call it before waiting for more. Blocks while a ring is full.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.staged) > 0 {
            self.context.flush_waiting();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_random_and_their_limit_doubles_to_two_seconds() {
        let mut backoff = Backoff::default();
        let limits: Vec<u64> = (0..8).map(|_| backoff.next_ns(u64::MAX) / 1_000_000).collect();
        assert!(limits.iter().all(|limit| *limit <= 2_000), "{limits:?}");
        let mut backoff = Backoff::default();
        for limit_ms in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let limit_ns = limit_ms * 1_000_000;
            assert_eq!(backoff.next_ns(limit_ns), limit_ns, "the longest wait");
        }
        backoff.reset();
        assert_eq!(backoff.next_ns(RETRY_NS + 1), 0, "any wait up to the limit");
        (0..100).for_each(|_| assert!(backoff.next_ns(u64::MAX - 1) <= RETRY_NS_MAX));
    }
}
