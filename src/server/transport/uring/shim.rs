//! Where tests come between the data ring and the kernel.
//!
//! Ring operations are invisible to strace and seccomp, so faults are injected here: before an operation is
//! submitted, so that what the ring is told always agrees with what the kernel did.

/// Operations a shim may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A SEND of this many bytes that completes at once.
    Send(usize),
    /// The parked SEND of a slow socket, of this many bytes.
    SendParked(usize),
    /// Arming a multishot receive.
    Receive,
    /// Handing this many received bytes on.
    Received(usize),
    /// Arming an accept.
    Accept,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As asked.
    Pass,
    /// Only so many of its bytes, at least 1: the operation completes short.
    Truncate(usize),
    /// It is not submitted, and completes with this errno.
    Fail(i32),
}

/// Decides about every operation. The server's own is [`Direct`], which costs nothing.
pub trait Shim {
    /// Called once before each operation.
    fn decide(&mut self, operation: Operation) -> Verdict;
}

/// Lets everything pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Shim for Direct {
    #[inline]
    fn decide(&mut self, _: Operation) -> Verdict {
        Verdict::Pass
    }
}
