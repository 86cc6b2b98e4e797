//! The only module that reads the clocks. All others take [`Now`] as an argument.

use tickcast_core::now::Now;

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Reads both clocks. Cost: two vDSO calls, about 40 ns.
pub fn now() -> Now {
    Now { monotonic_ns: monotonic_ns(), realtime_ns: realtime_ns() }
}

/// Nanoseconds since 1970 (CLOCK_REALTIME); 0 if the clock is set earlier.
pub fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Seconds since 1970 (CLOCK_REALTIME); 0 if the clock is set earlier.
pub fn realtime_s() -> u64 {
    realtime_ns() / 1_000_000_000
}

/// Nanoseconds of CLOCK_MONOTONIC since the first call in this process, plus one second.
///
/// The second keeps a deadline of 0 in the past, and every reading apart from 0 as "unset".
pub fn monotonic_ns() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1_000_000_000
}

/// CPU time that the calling thread has used (CLOCK_THREAD_CPUTIME_ID), nanoseconds; 0 if the kernel does not report it. Cost:
/// a system call.
pub fn thread_cpu_ns() -> u64 {
    nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID
        .now()
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Makes sleeps of this thread, and of threads it starts, end on time rather than up to 50 us late.
///
/// Sets the timer slack (PR_SET_TIMERSLACK, prctl(2)); if the kernel refuses, its default stays.
pub fn sleep_precisely() {
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        ::log::debug!("cannot set the timer slack: {error}");
    }
}

/// Puts the calling thread to sleep: a source, a tool, or a shard with a latency budget.
pub fn sleep_ns(duration_ns: u64) {
    std::thread::sleep(Duration::from_nanos(duration_ns));
}
