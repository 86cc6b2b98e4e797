//! The only module that reads the clocks. All others take [`Now`] as an argument.

pub use tickcast_client::clock::{monotonic_ns, sleep_ns};
use tickcast_core::now::Now;

use std::time::{SystemTime, UNIX_EPOCH};

/// Reads both clocks. Cost: two vDSO calls, about 40 ns.
pub fn now() -> Now {
    Now { monotonic_ns: monotonic_ns(), realtime_ns: realtime_ns() }
}

/// Nanoseconds since 1970 (CLOCK_REALTIME); 0 if the clock is set earlier.
pub fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Makes sleeps of this thread, and of threads it starts, end on time rather than up to 50 us late.
///
/// Sets the timer slack (PR_SET_TIMERSLACK, prctl(2)); if the kernel refuses, its default stays.
pub fn sleep_precisely() {
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        ::log::debug!("cannot set the timer slack: {error}");
    }
}
