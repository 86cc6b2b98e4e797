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
