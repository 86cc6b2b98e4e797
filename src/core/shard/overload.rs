//! Overload: the shard lacks CPU time to send what its sessions' sockets would accept, or memory for what they need.

use super::Shard;
use crate::{limits::OVERLOAD_QUIET_MS, metrics::counters::Counter, now::Now};

impl Shard {
    /// Notes the sessions that have lost something because the shard is overloaded, if any.
    pub(super) fn note_overloads(&mut self, now: Now) {
        let overloads = self.sessions.take_overloads();
        if overloads > 0 {
            self.note_overload(overloads, now);
        }
    }

    /// Reports the sessions' memberships to the counters.
    pub(super) fn count_memberships(&mut self) {
        self.counters.set(Counter::Memberships, self.sessions.memberships_len() as u64);
        self.counters.add(Counter::MembershipsRefused, self.sessions.take_memberships_refused());
    }

    /// Notes that `sessions` sessions whose sockets have room lose ticks, or their connection. Logs the first of an episode, which
    /// ends [`OVERLOAD_QUIET_MS`] after the last.
    fn note_overload(&mut self, sessions: u64, now: Now) {
        self.counters.add(Counter::OverloadLosses, sessions);
        let until_ns = now.monotonic_ns.saturating_add(OVERLOAD_QUIET_MS * 1_000_000);
        if self.overloaded_until_ns.replace(until_ns).is_none() {
            self.counters.add(Counter::Overloads, 1);
            self.counters.set(Counter::Overloaded, 1);
            ::log::warn!(
                "shard {} is overloaded: it cannot send ticks as fast as they come, so sessions lose some (announced by GAP or \
                 CONFLATED) or are closed with 3013; add cores, or raise --latency-budget",
                self.id.0
            );
        }
    }

    /// Ends an overload episode that is over.
    pub(super) fn end_overload(&mut self, now: Now) {
        if self.overloaded_until_ns.is_some_and(|until_ns| until_ns <= now.monotonic_ns) {
            self.overloaded_until_ns = None;
            self.counters.set(Counter::Overloaded, 0);
            ::log::info!("shard {} is no longer overloaded", self.id.0);
        }
    }
}
