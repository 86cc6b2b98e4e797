//! What a data ring tells, and the sizes it is made with.

use std::{io, os::fd::OwnedFd};

use crate::limits::{RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS};

/// A listener of the server, counted from 0 in the order of the configuration: the same number on every shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(pub u32);

/// What happened, in order.
#[derive(Debug)]
pub enum Event {
    /// A listener accepted a connection.
    Accepted(ListenerId, OwnedFd),
    /// Accepting failed with this errno; it is to be armed again after a pause.
    AcceptFailed(ListenerId, i32),
    /// Bytes came: `DataRing::bytes` of them, then `DataRing::recycle`.
    Received(Received),
    /// The peer has shut its side.
    Eof(u32),
    /// The socket has failed with this errno.
    Failed(u32, i32),
    /// A parked SEND is through.
    Writable(u32),
    /// A socket that is to be taken out has nothing under way any more: `DataRing::take`.
    Detached(u32),
    /// The timer that was armed is due.
    Timer,
}

/// Received bytes, in a buffer that is to be recycled.
#[derive(Debug)]
pub struct Received {
    /// Whose.
    pub slot: u32,
    pub(super) buffer: u16,
    pub(super) start: u32,
    pub(super) len: u32,
    /// Of several pieces of one buffer only the last gives it back.
    pub(super) last: bool,
}

/// What became of a SEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The socket took it all.
    Whole,
    /// The ring keeps the rest, and the slot is busy until [`Event::Writable`].
    Parked,
    /// The socket has failed; [`Event::Failed`] follows.
    Failed,
}

/// Sizes of a data ring; tests make small ones.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Sockets at once. At most RLIMIT_NOFILE.
    pub slots: u32,
    /// Buffers for receiving; a power of two.
    pub receive_buffers: u16,
    /// Bytes of one; a multiple of 16.
    pub receive_buffer_bytes: usize,
}

impl Settings {
    /// For a server of so many sockets.
    pub fn for_slots(slots: u32) -> Settings {
        Settings { slots, receive_buffers: RECEIVE_BUFFERS, receive_buffer_bytes: RECEIVE_BUFFER_BYTES }
    }
}

/// A doorbell for a data ring: an eventfd, readable once rung.
///
/// # Errors
/// eventfd(2)'s.
pub fn eventfd() -> io::Result<OwnedFd> {
    let fd = nix::sys::eventfd::EventFd::from_value_and_flags(0, nix::sys::eventfd::EfdFlags::EFD_CLOEXEC)?;
    Ok(OwnedFd::from(fd))
}
