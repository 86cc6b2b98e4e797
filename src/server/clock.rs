//! The only reader of time. Everything else takes [`Now`] as an argument.

use tickcast_core::now::Now;

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Reads both clocks. Two vDSO calls, about 40 ns.
pub fn now() -> Now {
    Now { monotonic_ns: monotonic_ns(), realtime_ns: realtime_ns() }
}

/// Nanoseconds since 1970 (CLOCK_REALTIME); 0 for a clock set before that.
pub fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Nanoseconds of CLOCK_MONOTONIC since the process first asked, plus one second: a deadline of 0 is always past, and no
/// reading is confused with "unset".
pub fn monotonic_ns() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1_000_000_000
}

/// Makes the sleeps of this thread, and of those it starts from now on, end on time rather than up to 50 us late, the
/// kernel's default (PR_SET_TIMERSLACK, prctl(2)). A kernel that refuses keeps its own.
pub fn sleep_precisely() {
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        ::log::debug!("prctl(PR_SET_TIMERSLACK): {error}");
    }
}

/// Sleeps the calling thread; for source threads, tools, and a shard that has a latency budget.
pub fn sleep_ns(duration_ns: u64) {
    std::thread::sleep(Duration::from_nanos(duration_ns));
}
