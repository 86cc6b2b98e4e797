//! The status of a source, as operators, readiness and failover groups see it. Its own thread writes it; any thread may read
//! it.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use super::{
    common::Common,
    health::{Health, Waiting},
    standby::RecentIds,
};
use crate::limits::SOURCE_ERROR_CHARS_MAX;
use tickcast_common::clock;
use tickcast_core::metrics::counters::{Counter, Counters};

/// Shortest time that a rate covers.
const RATE_NS_LOWEST: u64 = 1_000_000_000;
/// Represents an unknown value.
const UNKNOWN: u64 = u64::MAX;

/// The status of a source. Clones share it.
#[derive(Clone, Debug)]
pub struct SourceStatus(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kind: &'static str,
    common: Common,
    counters: Counters,
    /// Locked for a moment whenever the state changes, never on a tick's path.
    health: Mutex<Health>,
    last_error: Mutex<Option<LastError>>,
    rate: Mutex<Rate>,
    lag_messages: AtomicU64,
    lag_ns: AtomicU64,
    /// When a message was last taken, CLOCK_MONOTONIC; 0: never.
    heard_ns: AtomicU64,
    /// When it last subscribed to nothing, because no client asked for anything, CLOCK_MONOTONIC; 0: never.
    idle_ns: AtomicU64,
    /// Whether another source of its group publishes.
    is_standby: AtomicBool,
    /// Since when its topics are marked as stale, nanoseconds since 1970; 0: they are not.
    stale_since_ns: AtomicU64,
    /// Whether it still reads back the beginning of its log.
    reads_back: AtomicBool,
    /// The ids that its group has published; empty without a group.
    group_ids: OnceLock<Arc<RecentIds>>,
}

/// The last error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// What happened, shortened.
    pub text: String,
    /// Nanoseconds since 1970.
    pub at_ns: u64,
}

/// Ticks per second since the last reading at least [`RATE_NS_LOWEST`] ago.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    from_ns: u64,
    from_ticks: u64,
    per_second: f64,
}

impl Rate {
    fn at(&mut self, now_ns: u64, ticks: u64) -> f64 {
        let elapsed_ns = now_ns.saturating_sub(self.from_ns);
        if self.from_ns == 0 {
            *self = Rate { from_ns: now_ns, from_ticks: ticks, per_second: 0.0 };
        } else if elapsed_ns >= RATE_NS_LOWEST {
            let per_second = ticks.saturating_sub(self.from_ticks) as f64 * 1e9 / elapsed_ns as f64;
            *self = Rate { from_ns: now_ns, from_ticks: ticks, per_second };
        }
        self.per_second
    }
}

impl SourceStatus {
    /// Creates the status of a source that has not been started.
    pub fn new(kind: &'static str, common: Common) -> SourceStatus {
        SourceStatus(Arc::new(Shared {
            kind,
            common,
            counters: Counters::default(),
            health: Mutex::new(Health::Waiting(Waiting::Shards)),
            last_error: Mutex::default(),
            rate: Mutex::default(),
            lag_messages: AtomicU64::new(UNKNOWN),
            lag_ns: AtomicU64::new(UNKNOWN),
            heard_ns: AtomicU64::new(0),
            idle_ns: AtomicU64::new(0),
            is_standby: AtomicBool::new(false),
            stale_since_ns: AtomicU64::new(0),
            reads_back: AtomicBool::new(false),
            group_ids: OnceLock::new(),
        }))
    }

    /// The kind of the source.
    pub fn kind(&self) -> &'static str {
        self.0.kind
    }

    /// Its name, unique on the server.
    pub fn name(&self) -> &str {
        &self.0.common.name
    }

    /// The settings that every source has, whatever its kind.
    pub fn common(&self) -> &Common {
        &self.0.common
    }

    /// Its counters. Each has one writer: the source's thread, the main thread for [`Counter::SourceActivations`], or the reader of its
    /// log for [`Counter::SourceMessagesReadBack`].
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Its current state.
    pub fn health(&self) -> Health {
        locked(&self.0.health).clone()
    }

    /// Sets its state. A failure becomes its last error.
    pub fn set_health(&self, health: Health) {
        if let Health::Failed(reason) = &health {
            self.set_last_error(reason);
        }
        *locked(&self.0.health) = health;
    }

    /// The last error; `None`: there was none.
    pub fn last_error(&self) -> Option<LastError> {
        locked(&self.0.last_error).clone()
    }

    /// Notes what went wrong.
    pub fn set_last_error(&self, text: &str) {
        let at_ns = clock::realtime_ns();
        let text = text.chars().take(SOURCE_ERROR_CHARS_MAX).collect();
        *locked(&self.0.last_error) = Some(LastError { text, at_ns });
    }

    /// Ticks published per second recently, over a second or more between two readings.
    pub fn ticks_per_second(&self, now_ns: u64) -> f64 {
        locked(&self.0.rate).at(now_ns, self.0.counters.value(Counter::SourceTicks))
    }

    /// Notes that messages were taken until `now_ns`, the last one `lag_ns` after its own time, if it has one.
    pub fn note_heard(&self, now_ns: u64, lag_ns: Option<u64>) {
        self.0.heard_ns.store(now_ns, Relaxed);
        if let Some(lag_ns) = lag_ns {
            self.0.lag_ns.store(lag_ns.min(UNKNOWN - 1), Relaxed);
        }
        self.ticks_per_second(now_ns);
    }

    /// Notes that it subscribes to nothing, because no client asks for anything: it is not silent then.
    pub(super) fn note_idle(&self, now_ns: u64) {
        self.0.idle_ns.store(now_ns, Relaxed);
    }

    /// When a message was last taken, CLOCK_MONOTONIC; `None`: never.
    pub fn heard_ns(&self) -> Option<u64> {
        Some(self.0.heard_ns.load(Relaxed)).filter(|&ns| ns > 0)
    }

    /// Time between the last message's own time and its arrival.
    pub fn lag_ns(&self) -> Option<u64> {
        Some(self.0.lag_ns.load(Relaxed)).filter(|&ns| ns != UNKNOWN)
    }

    /// Messages that the engine holds and the source has not taken, if the engine reports that.
    pub fn lag_messages(&self) -> Option<u64> {
        Some(self.0.lag_messages.load(Relaxed)).filter(|&messages| messages != UNKNOWN)
    }

    /// Sets [`SourceStatus::lag_messages`].
    pub fn set_lag(&self, messages: u64) {
        self.0.lag_messages.store(messages.min(UNKNOWN - 1), Relaxed);
    }

    /// Whether another source of its group publishes. One load, because every message checks it.
    pub fn is_standby(&self) -> bool {
        self.0.is_standby.load(Relaxed)
    }

    /// Lets the source publish, or another of its group.
    pub fn set_standby(&self, is_standby: bool) {
        self.0.is_standby.store(is_standby, Relaxed);
    }

    /// Since when its topics are marked as stale, nanoseconds since 1970; `None`: they are not.
    pub fn stale_since_ns(&self) -> Option<u64> {
        Some(self.0.stale_since_ns.load(Relaxed)).filter(|&ns| ns > 0)
    }

    /// Sets [`SourceStatus::stale_since_ns`].
    pub(super) fn set_stale_since(&self, since_ns: Option<u64>) {
        self.0.stale_since_ns.store(since_ns.unwrap_or(0), Relaxed);
    }

    /// Sets whether it still reads back the beginning of its log: the server is not ready until it has.
    pub fn set_reading_back(&self, reads_back: bool) {
        self.0.reads_back.store(reads_back, Relaxed);
    }

    /// Whether it still reads back the beginning of its log.
    pub fn is_reading_back(&self) -> bool {
        self.0.reads_back.load(Relaxed)
    }

    /// The ids that its group has published; `None` without a group.
    pub(super) fn group_ids(&self) -> Option<&Arc<RecentIds>> {
        self.0.group_ids.get()
    }

    /// Makes it a member of a group. Only the first call has an effect.
    pub(super) fn join_group(&self, ids: &Arc<RecentIds>) {
        self.0.group_ids.get_or_init(|| ids.clone());
    }

    /// Whether it has not finished its first attempt to reach its engine.
    pub(super) fn is_starting(&self) -> bool {
        matches!(*locked(&self.0.health), Health::Waiting(Waiting::Shards | Waiting::Connecting))
    }

    /// Why the source cannot be relied on; `None`: it is fit. `since_ns`: when watching it began, in case nothing has been
    /// received from it yet.
    pub fn unfit(&self, now_ns: u64, since_ns: u64) -> Option<Unfit> {
        match &*locked(&self.0.health) {
            Health::Waiting(Waiting::Shards | Waiting::Connecting | Waiting::Engine(_))
            | Health::Failed(_) => {
                return Some(Unfit::Down);
            }
            // A capture that was replayed to its end is no fault, unless somebody relies on the source.
            Health::Ended => {
                let is_needed = self.common().is_required || self.common().group.is_some();
                return is_needed.then_some(Unfit::Down);
            }
            // The server is slow, not the feed.
            Health::Waiting(Waiting::Room(_) | Waiting::Subscribers(_)) => return None,
            Health::Running | Health::Waiting(Waiting::Line) => {}
        }
        if self.is_silent_for_long(now_ns, since_ns) {
            return Some(Unfit::Silent);
        }
        let is_late = |max_ns| self.lag_ns().is_some_and(|lag_ns| lag_ns > max_ns);
        self.common().lag_max_ns.is_some_and(is_late).then_some(Unfit::Late)
    }

    /// Whether nothing comes from it: it has ended, or has been silent for its `stale_after`, connected or not. `since_ns`: as for
    /// [`SourceStatus::unfit`].
    pub fn is_silent(&self, now_ns: u64, since_ns: u64) -> bool {
        match &*locked(&self.0.health) {
            Health::Ended | Health::Failed(_) => true,
            // The server has not let it speak.
            Health::Waiting(Waiting::Shards | Waiting::Room(_) | Waiting::Subscribers(_)) => false,
            Health::Running | Health::Waiting(_) => self.is_silent_for_long(now_ns, since_ns),
        }
    }

    fn is_silent_for_long(&self, now_ns: u64, since_ns: u64) -> bool {
        let heard_ns = self.heard_ns().unwrap_or(since_ns).max(self.0.idle_ns.load(Relaxed)).max(since_ns);
        let silent_ns = now_ns.saturating_sub(heard_ns);
        self.common().stale_after_ns.is_some_and(|after_ns| silent_ns >= after_ns)
    }
}

/// Why a source cannot be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It does not reach its engine, or has ended.
    Down,
    /// No message for longer than `stale_after`.
    Silent,
    /// Its messages are older than `lag_max` when they arrive.
    Late,
}

impl Unfit {
    /// The word for it in responses, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Unfit::Down => "down",
            Unfit::Silent => "stale",
            Unfit::Late => "late",
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves the old value or the new one, never a mixture.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn status(common: Common) -> SourceStatus {
        let status = SourceStatus::new("nats", common);
        status.set_health(Health::Running);
        status
    }

    #[test]
    fn a_rate_covers_a_second_or_more() {
        let mut rate = Rate::default();
        assert_eq!(rate.at(S, 10), 0.0);
        assert_eq!(rate.at(S + S / 2, 500), 0.0, "too early");
        assert_eq!(rate.at(3 * S, 1_010), 500.0);
        assert_eq!(rate.at(3 * S + 1, 9_999), 500.0);
        assert_eq!(rate.at(5 * S, 1_010), 0.0);
    }

    #[test]
    fn a_source_is_unfit_when_it_is_down_silent_or_late() {
        let common = Common { stale_after_ns: Some(2 * S), lag_max_ns: Some(S), ..Common::named("a") };
        let status = status(common);
        assert_eq!(status.unfit(2 * S, S), None, "watched for a second");
        assert_eq!(status.unfit(3 * S, S), Some(Unfit::Silent), "never heard");
        status.note_heard(4 * S, Some(S));
        assert_eq!(status.unfit(5 * S, S), None);
        assert_eq!(status.unfit(6 * S, S), Some(Unfit::Silent));
        status.note_heard(7 * S, Some(S + 1));
        assert_eq!(status.unfit(7 * S, S), Some(Unfit::Late));
        status.set_health(Health::Waiting(Waiting::Room(tickcast_proto::ids::ShardId(0))));
        assert_eq!(status.unfit(99 * S, S), None, "a full ring is the server's fault");
        status.set_health(Health::Waiting(Waiting::Engine("refused".into())));
        assert_eq!(status.unfit(7 * S, S), Some(Unfit::Down));
    }

    #[test]
    fn a_source_that_nobody_asks_for_anything_is_not_silent() {
        let status = status(Common { stale_after_ns: Some(2 * S), ..Common::named("a") });
        status.note_idle(9 * S);
        assert_eq!(status.unfit(10 * S, S), None);
        assert_eq!(status.unfit(11 * S, S), Some(Unfit::Silent), "it has been asked since");
    }

    #[test]
    fn a_source_without_bounds_is_unfit_only_when_it_is_down() {
        let status = status(Common::named("a"));
        status.note_heard(S, Some(99 * S));
        assert_eq!(status.unfit(1_000 * S, 0), None);
        status.set_health(Health::Ended);
        assert_eq!(status.unfit(1_000 * S, 0), None, "a capture may end");
        status.set_health(Health::Failed("no such file".into()));
        assert_eq!(status.unfit(S, 0), Some(Unfit::Down));
        assert_eq!(status.last_error().unwrap().text, "no such file");
    }
}
