//! The time, which the core takes as an argument.

/// One reading of both clocks, taken once per turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC, nanoseconds from an arbitrary origin. Used for every deadline.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME, nanoseconds since 1970. Used for the times in ticks.
    pub realtime_ns: u64,
}
