//! The time, which the core takes as an argument.

/// One reading of both clocks, taken once per turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC, nanoseconds from an arbitrary origin. Used for every deadline.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME, nanoseconds since 1970. Used for the times in ticks.
    pub realtime_ns: u64,
}

impl Now {
    /// The low 32 bits of CLOCK_MONOTONIC in milliseconds: enough for the state of each session. Differences are right for up to
    /// 49 days.
    pub fn low_ms(self) -> u32 {
        (self.monotonic_ns / 1_000_000) as u32
    }
}

/// Tells moments of CLOCK_MONOTONIC in microseconds since 1970. Nobody sets this clock, so a moment means the same until the server
/// stops, on each of its shards: all of them get the same clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct LiveClock {
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC when the server started. Negative if the real time had not been set.
    offset_ns: i64,
}

impl LiveClock {
    /// Creates the clock of a server that starts now.
    pub fn starting(now: Now) -> LiveClock {
        LiveClock { offset_ns: now.realtime_ns.wrapping_sub(now.monotonic_ns).cast_signed() }
    }

    /// This moment, rounded down: a tick of this turn is not before it.
    pub fn since_us(&self, now: Now) -> u64 {
        now.monotonic_ns.saturating_add_signed(self.offset_ns) / 1_000
    }

    /// A moment that [`LiveClock::since_us`] has returned, as CLOCK_MONOTONIC.
    pub fn monotonic_ns(&self, since_us: u64) -> u64 {
        since_us.saturating_mul(1_000).saturating_add_signed(self.offset_ns.saturating_neg())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_of_the_start_of_the_server_and_rounded_down() {
        let at = |monotonic_ns, realtime_ns| Now { monotonic_ns, realtime_ns };
        // The second server started before its real time was set.
        for (start, moment_us) in [(at(5_000, 1_000_005_000), 1_000_007), (at(5_000, 1_000), 3)] {
            let clock = LiveClock::starting(start);
            let since_us = clock.since_us(at(7_999, 9_000_000_000));
            assert_eq!(since_us, moment_us, "whatever the real time is by now");
            assert_eq!(clock.monotonic_ns(since_us), 7_000);
        }
        assert_eq!(LiveClock::starting(at(5_000, 9_000)).monotonic_ns(1), 0, "before the boot");
    }
}
