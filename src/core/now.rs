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

/// Tells moments of CLOCK_MONOTONIC in microseconds since 1970. Nobody sets this clock, so that a moment means the same until the server
/// stops, on each of its shards: they start together.
#[derive(Clone, Copy, Debug, Default)]
pub struct LiveClock {
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC at the shard's first turn.
    offset_ns: Option<u64>,
}

impl LiveClock {
    /// Begins with the shard's first turn; means nothing in later ones.
    pub fn start(&mut self, now: Now) {
        self.offset(now);
    }

    /// This moment, rounded up: a tick before it is not after it.
    pub fn since_us(&mut self, now: Now) -> u64 {
        now.monotonic_ns.wrapping_add(self.offset(now)).div_ceil(1_000)
    }

    /// A moment that [`LiveClock::since_us`] has returned, as CLOCK_MONOTONIC.
    pub fn monotonic_ns(&mut self, since_us: u64, now: Now) -> u64 {
        since_us.saturating_mul(1_000).saturating_sub(self.offset(now))
    }

    fn offset(&mut self, now: Now) -> u64 {
        *self.offset_ns.get_or_insert(now.realtime_ns.wrapping_sub(now.monotonic_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_a_clock_that_is_set() {
        let at = |monotonic_ns, realtime_ns| Now { monotonic_ns, realtime_ns };
        let mut clock = LiveClock::default();
        clock.start(at(5_000, 1_000_005_000));
        let since_us = clock.since_us(at(7_001, 9_000_000_000));
        assert_eq!(since_us, 1_000_008, "rounded up");
        assert_eq!(clock.monotonic_ns(since_us, at(9_000, 3)), 8_000);
    }
}
