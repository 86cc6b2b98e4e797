//! The watchdog of a shard's turns: histograms of their length and CPU time, warnings about slow turns, and debug lines about
//! turns with much CPU time.

use std::fmt::Write;

use crate::{clock, logging::RateLimiter};
use tickcast_core::metrics::{
    counters::{Counter, Counters},
    turn_times::SLOW_NS,
};
use tickcast_proto::ids::ShardId;

/// Time worked between readings of the thread's CPU time, each of which takes a system call.
const CPU_READ_NS: u64 = 1_000_000;
/// CPU time above which a turn that was not slow is logged at debug level: far more than a turn's budgets allow.
const LONG_CPU_NS: u64 = 10_000_000;
/// Log lines per second and shard about slow turns, and as many about turns with much CPU time.
const LINES_PER_SECOND: u32 = 1;
/// Counters whose changes in a slow turn are logged. Each costs a load and a store per turn.
const REPORTED: [Counter; 14] = [
    Counter::RingEvents,
    Counter::BytesReceived,
    Counter::MeshBytes,
    Counter::TicksSequenced,
    Counter::TicksDelivered,
    Counter::TicksTakenOut,
    Counter::Sends,
    Counter::InterestUnits,
    Counter::ControlUnits,
    Counter::DepartureUnits,
    Counter::TimersExpired,
    Counter::ControlRequests,
    Counter::SessionsAccepted,
    Counter::SessionsOpen,
];

/// How long a turn took.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Length, without the time that the shard slept.
    busy_ns: u64,
    cpu_ns: u64,
}

/// Watches one shard's turns.
#[derive(Debug)]
pub(super) struct TurnWatch {
    /// The counters of [`REPORTED`] at the end of the last turn.
    before: [u64; REPORTED.len()],
    /// CPU time of the thread when it was last read.
    cpu_read_ns: u64,
    /// Time worked since.
    unread_ns: u64,
    limiter: RateLimiter<1>,
    debug_limiter: RateLimiter<1>,
}

impl Default for TurnWatch {
    fn default() -> TurnWatch {
        TurnWatch {
            before: [0; REPORTED.len()],
            cpu_read_ns: 0,
            unread_ns: 0,
            limiter: RateLimiter::new(LINES_PER_SECOND),
            debug_limiter: RateLimiter::new(LINES_PER_SECOND),
        }
    }
}

impl TurnWatch {
    /// Records a turn that was busy for `busy_ns` and ended at `now_ns` (CLOCK_MONOTONIC). A turn that only busy-polled is
    /// not counted.
    pub(super) fn end_turn(&mut self, shard: ShardId, busy_ns: u64, now_ns: u64, counters: &Counters) {
        if busy_ns == 0 {
            return;
        }
        let cpu_ns = self.cpu_ns(busy_ns, clock::thread_cpu_ns);
        counters.turn_times().record(busy_ns);
        counters.turn_cpu_times().record(cpu_ns);
        let is_slow = busy_ns > SLOW_NS;
        if is_slow {
            counters.add(Counter::TurnsSlow, 1);
        }
        let turn = Turn { busy_ns, cpu_ns };
        if let Some(line) = self.line(is_slow.then_some(turn), now_ns, counters) {
            ::log::warn!("shard {}: {line}", shard.0);
        }
        if cpu_ns > LONG_CPU_NS
            && ::log::log_enabled!(::log::Level::Debug)
            && let Some(line) = self.debug_line(turn, now_ns, counters)
        {
            ::log::debug!("shard {}: {line}", shard.0);
        }
        for (before, counter) in self.before.iter_mut().zip(REPORTED) {
            *before = counters.value(counter);
        }
    }

    /// The CPU time of a turn that was busy for `busy_ns`, which it cannot exceed. It is read only when [`CPU_READ_NS`] have
    /// been worked since the last reading, so up to that much of it may be the CPU time of earlier turns.
    fn cpu_ns(&mut self, busy_ns: u64, thread_cpu_ns: impl FnOnce() -> u64) -> u64 {
        self.unread_ns += busy_ns;
        if self.unread_ns < CPU_READ_NS {
            return busy_ns;
        }
        self.unread_ns = 0;
        let now_ns = thread_cpu_ns();
        let since_ns = now_ns.saturating_sub(std::mem::replace(&mut self.cpu_read_ns, now_ns));
        busy_ns.min(since_ns)
    }

    /// The line to log after a turn, at most one per second; `slow` is the turn if it was slow. The line also says how many
    /// slow turns were not logged.
    fn line(&mut self, slow: Option<Turn>, now_ns: u64, counters: &Counters) -> Option<String> {
        let suppressed = self.limiter.poll_suppressed(now_ns).map(|(_, lines)| lines);
        if slow.is_none() && suppressed.is_none() || !self.limiter.admit(0, now_ns) {
            return None;
        }
        let suppressed = suppressed.map(|lines| format!("{lines} more slow turns since the last such line"));
        let Some(turn) = slow else { return suppressed };
        let mut line = self.described(turn, counters);
        if let Some(suppressed) = suppressed {
            let _ = write!(line, "; {suppressed}");
        }
        Some(line)
    }

    /// The debug line to log after a turn, at most one per second: about a turn that took more than [`LONG_CPU_NS`] and was not slow.
    /// The histogram counts the others.
    fn debug_line(&mut self, turn: Turn, now_ns: u64, counters: &Counters) -> Option<String> {
        let is_long = turn.busy_ns <= SLOW_NS && turn.cpu_ns > LONG_CPU_NS;
        // Suppressed lines are not reported here: every second starts anew.
        let _ = self.debug_limiter.poll_suppressed(now_ns);
        (is_long && self.debug_limiter.admit(0, now_ns)).then(|| self.described(turn, counters))
    }

    /// How long a turn took, and what it did.
    fn described(&self, Turn { busy_ns, cpu_ns }: Turn, counters: &Counters) -> String {
        let mut line =
            format!("a turn took {} ms, {} ms of CPU time", busy_ns / 1_000_000, cpu_ns / 1_000_000);
        let mut separator = ": ";
        for (before, counter) in self.before.iter().zip(REPORTED) {
            // A gauge may have fallen.
            let change = counters.value(counter).wrapping_sub(*before) as i64;
            if change != 0 {
                let sign = if counter.is_gauge() { "+" } else { "" };
                let sign = if change > 0 { sign } else { "" };
                let _ = write!(line, "{separator}{} {sign}{change}", counter.label());
                separator = ", ";
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_slow_turn_is_counted_and_a_turn_that_only_polled_is_not() {
        let (mut watch, counters) = (TurnWatch::default(), Counters::default());
        for busy_ns in [0, 1, SLOW_NS, SLOW_NS + 1] {
            watch.end_turn(ShardId(0), busy_ns, SECOND_NS, &counters);
        }
        assert_eq!(counters.value(Counter::TurnsSlow), 1);
        let (_, turns) = counters.turn_times().cumulative();
        assert_eq!(turns, 3);
    }

    #[test]
    fn the_cpu_time_of_a_long_turn_is_read_and_a_short_one_took_its_length_at_most() {
        let mut watch = TurnWatch::default();
        let unread = || unreachable!("reading the CPU time takes a system call");
        assert_eq!(watch.cpu_ns(600_000, unread), 600_000);
        assert_eq!(
            watch.cpu_ns(600_000, || 900_000),
            600_000,
            "of 900 us, an unknown part was the turn's before"
        );
        assert_eq!(watch.cpu_ns(50_000_000, || 3_900_000), 3_000_000, "most of the time, it did not run");
        assert_eq!(watch.cpu_ns(999_999, unread), 999_999);
    }

    #[test]
    fn a_line_says_what_the_turn_did_and_nothing_of_the_turns_before() {
        let (mut watch, counters) = (TurnWatch::default(), Counters::default());
        counters.add(Counter::Sends, 1_000);
        counters.add(Counter::SessionsOpen, 10);
        watch.end_turn(ShardId(0), 1, SECOND_NS, &counters);
        counters.add(Counter::Sends, 7);
        counters.add(Counter::ControlUnits, 65_536);
        counters.subtract(Counter::SessionsOpen, 4);
        let turn = Turn { busy_ns: 187_654_321, cpu_ns: 21_999_999 };
        let line = watch.line(Some(turn), SECOND_NS, &counters).unwrap();
        assert_eq!(
            line,
            "a turn took 187 ms, 21 ms of CPU time: sends 7, control_units 65536, sessions_open -4"
        );
    }

    #[test]
    fn a_turn_that_works_long_without_being_slow_has_a_debug_line_once_a_second() {
        let (mut watch, counters) = (TurnWatch::default(), Counters::default());
        counters.add(Counter::Sends, 7);
        let mut line = |busy_ns: u64, cpu_ns: u64, at_ms: u64| {
            let turn = Turn { busy_ns, cpu_ns };
            watch.debug_line(turn, SECOND_NS + at_ms * 1_000_000, &counters).unwrap_or_default()
        };
        assert_eq!(line(LONG_CPU_NS, LONG_CPU_NS, 0), "");
        assert_eq!(line(SLOW_NS, LONG_CPU_NS, 0), "", "it waited for its core");
        assert_eq!(line(SLOW_NS + 1, SLOW_NS, 0), "", "a slow turn has a warning");
        assert_eq!(line(31_000_000, 12_999_999, 0), "a turn took 31 ms, 12 ms of CPU time: sends 7");
        assert_eq!([200, 999].map(|at_ms| line(31_000_000, 12_999_999, at_ms)), [""; 2]);
        assert_eq!(line(15_000_000, 15_000_000, 1_000), "a turn took 15 ms, 15 ms of CPU time: sends 7");
    }

    #[test]
    fn one_line_a_second_is_written_and_says_how_many_were_not() {
        let (mut watch, counters) = (TurnWatch::default(), Counters::default());
        let mut line = |slow: Option<Turn>, at_ms: u64| {
            watch.line(slow, SECOND_NS + at_ms * 1_000_000, &counters).unwrap_or_default()
        };
        let slow = Some(Turn { busy_ns: 200_000_000, cpu_ns: 150_000_000 });
        assert_eq!(line(slow, 0), "a turn took 200 ms, 150 ms of CPU time");
        assert_eq!([200, 400, 600, 999].map(|at_ms| line(slow, at_ms)), [""; 4]);
        assert_eq!(
            line(slow, 1_000),
            "a turn took 200 ms, 150 ms of CPU time; 4 more slow turns since the last such line"
        );
        assert_eq!([line(slow, 1_500), line(None, 1_600)], [""; 2]);
        assert_eq!(line(None, 2_000), "1 more slow turns since the last such line");
        assert_eq!([line(slow, 2_100), line(None, 2_200)], [""; 2]);
        assert_eq!(
            line(slow, 9_000),
            "a turn took 200 ms, 150 ms of CPU time; 1 more slow turns since the last such line"
        );
        assert_eq!(line(None, 19_000), "");
    }
}
