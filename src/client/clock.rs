//! The client's only reader of time.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Nanoseconds of CLOCK_MONOTONIC since this process first asked, plus a second: no reading is 0.
pub fn monotonic_ns() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    // With a head start of 1 s a deadline of 0 is always past, and none is confused with "unset".
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1_000_000_000
}

/// Blocks the calling thread.
pub fn sleep_ns(duration_ns: u64) {
    std::thread::sleep(Duration::from_nanos(duration_ns));
}
