//! Fault injection between the data ring and the kernel, for tests.
//!
//! Ring operations are invisible to strace and seccomp. Faults are injected before an operation is submitted, so that the
//! result the ring sees always agrees with what the kernel did.

/// Operations a shim may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A SEND of this many bytes that completes at once.
    Send(usize),
    /// The parked SEND of a slow socket, of this many bytes.
    SendParked(usize),
    /// Arming a multishot receive.
    Receive,
    /// Passing on this many received bytes.
    Received(usize),
    /// Arming an accept.
    Accept,
}

/// The fate of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Submit it unchanged.
    Pass,
    /// Submit it with at most this many bytes, at least 1, so that it completes short.
    Truncate(usize),
    /// Do not submit it; complete it with this errno.
    Fail(i32),
}

/// Decides the fate of every operation. The server uses [`Direct`], which costs nothing.
pub trait Shim {
    /// Decides about one operation before it is submitted.
    fn decide(&mut self, operation: Operation) -> Verdict;
}

/// Passes everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Shim for Direct {
    #[inline]
    fn decide(&mut self, _: Operation) -> Verdict {
        Verdict::Pass
    }
}
