//! How tests wait for what another thread does.

use std::{panic::resume_unwind, sync::mpsc::Receiver, thread, time::Duration};

use tickcast_common::clock;

/// Longest wait for anything before a test fails as hung.
const GUARD_NS: u64 = 60_000_000_000;
/// Polling interval.
const LOOK_AGAIN_NS: u64 = 1_000_000;
const _: () = assert!(LOOK_AGAIN_NS < GUARD_NS);

/// Polls until `is_so`, at most [`GUARD_NS`] long.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end_ns = clock::monotonic_ns() + GUARD_NS;
    while !is_so() {
        assert!(clock::monotonic_ns() < end_ns, "timed out waiting for: {what}");
        clock::sleep_ns(LOOK_AGAIN_NS);
    }
}

/// Waits until a thread has ended, at most [`GUARD_NS`] long, and passes on its panic.
#[track_caller]
pub(crate) fn joined<T>(what: &str, thread: thread::JoinHandle<T>) -> T {
    eventually(&format!("the end of {what}"), || thread.is_finished());
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// The next value of a channel, which must come within [`GUARD_NS`].
#[track_caller]
pub(crate) fn received<T>(what: &str, channel: &Receiver<T>) -> T {
    channel.recv_timeout(Duration::from_nanos(GUARD_NS)).unwrap_or_else(|error| panic!("{what}: {error}"))
}
