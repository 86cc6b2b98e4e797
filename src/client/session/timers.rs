//! Deadlines by what they are for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// What a deadline is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Timer {
    /// The next attempt to connect.
    Retry,
    /// The welcome.
    Welcome,
    /// The next ping.
    Ping,
    /// Another token.
    Token,
    /// The application's answer to the question for a token.
    TokenAnswer,
    /// Saving the positions.
    Save,
    /// The answer to a publish.
    Publish(u64),
    /// Subscribing to a pattern again.
    Subscribe(Arc<str>),
}

/// Deadlines, one for each purpose, in nanoseconds of a monotonic clock. Each operation costs O(log n).
///
/// Invariant: both maps have the same deadlines.
#[derive(Debug, Default)]
pub(super) struct Timers {
    at: HashMap<Timer, (u64, u64)>,
    /// By time, then in the order in which they were set.
    queue: BTreeMap<(u64, u64), Timer>,
    set: u64,
}

impl Timers {
    /// Sets or replaces a deadline.
    pub(super) fn set(&mut self, timer: Timer, at_ns: u64) {
        self.set += 1;
        let place = (at_ns, self.set);
        if let Some(before) = self.at.insert(timer.clone(), place) {
            self.queue.remove(&before);
        }
        self.queue.insert(place, timer);
        debug_assert_eq!(self.at.len(), self.queue.len(), "a deadline is in both maps");
    }

    /// Removes a deadline, if there is one.
    pub(super) fn cancel(&mut self, timer: &Timer) {
        if let Some(place) = self.at.remove(timer) {
            self.queue.remove(&place);
        }
    }

    /// The next deadline.
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at_ns, _), _)| *at_ns)
    }

    /// Removes the next deadline if it is due; returns it with its time.
    pub(super) fn pop(&mut self, now_ns: u64) -> Option<(Timer, u64)> {
        let due = self.queue.first_entry().filter(|entry| entry.key().0 <= now_ns)?;
        let ((at_ns, _), timer) = due.remove_entry();
        self.at.remove(&timer);
        Some((timer, at_ns))
    }
}
