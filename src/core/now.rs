//! The time as the core sees it: an argument.

/// One reading of both clocks, taken once per turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC, nanoseconds from an arbitrary origin: for every deadline.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME, nanoseconds since 1970: for the times that ticks carry.
    pub realtime_ns: u64,
}
