//! The events and results of a data ring, and its sizes.

use std::{io, os::fd::OwnedFd};

use crate::{
    limits::{RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS},
    transport::uring::buffer_ring::Hold,
};

/// A listener of the server, counted from 0 in the order of the configuration: the same number on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(pub u32);

/// An event of a ring or of one of its sockets.
#[derive(Debug)]
pub enum Event {
    /// A listener accepted a connection.
    Accepted(ListenerId, OwnedFd),
    /// Accepting failed with this errno. Call `DataRing::rearm_accept` after a pause.
    AcceptFailed(ListenerId, i32),
    /// A socket received bytes: `DataRing::bytes` reads them, then `DataRing::recycle` must be called.
    Received(Received),
    /// The peer has shut down its write side.
    Eof(u32),
    /// The socket has failed with this errno.
    Failed(u32, i32),
    /// The parked SEND is complete.
    Writable(u32),
    /// A detached socket has no operations in flight: `DataRing::take` removes it.
    Detached(u32),
    /// The timer has fired.
    Timer,
}

/// Received bytes, in a buffer that `DataRing::recycle` returns to the kernel.
#[derive(Debug)]
pub struct Received {
    /// The slot that received them.
    pub slot: u32,
    pub(super) hold: Hold,
    pub(super) start: u32,
    pub(super) len: u32,
}

/// The outcome of a SEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The socket took everything.
    Whole,
    /// The ring keeps the rest, and the slot is busy until [`Event::Writable`].
    Parked,
    /// The socket has failed; [`Event::Failed`] follows.
    Failed,
}

/// Sizes of a data ring; tests make small ones.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Maximum sockets at once; at most RLIMIT_NOFILE.
    pub slots: u32,
    /// Receive buffers; a power of two.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer; a multiple of 16.
    pub receive_buffer_bytes: usize,
}

impl Settings {
    /// The sizes for a server of `slots` sockets.
    pub fn for_slots(slots: u32) -> Settings {
        Settings { slots, receive_buffers: RECEIVE_BUFFERS, receive_buffer_bytes: RECEIVE_BUFFER_BYTES }
    }
}

/// Creates the eventfd of a data ring's doorbell.
///
/// # Errors
/// Those of eventfd(2).
pub fn eventfd() -> io::Result<OwnedFd> {
    let fd = nix::sys::eventfd::EventFd::from_value_and_flags(0, nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)?;
    Ok(OwnedFd::from(fd))
}
