//! A socket's peer address and round-trip time, for operators. Both require a descriptor.
//! After the handshake a socket is only a registered file. Since Linux 6.8 the ring can return a descriptor of it
//! (IORING_OP_FIXED_FD_INSTALL). This module requests one, reads the values and closes it, so that a client costs no
//! descriptor. On older kernels these values are unknown after the handshake.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use io_uring::{opcode, types::Fixed};
use nix::{getsockopt_impl, sockopt_impl, sys::socket::getsockopt};
use socket2::SockRef;

use super::{DataRing, INSTALL, State};
use crate::transport::uring::shim::Shim;

/// The kernel's response to IORING_OP_FIXED_FD_INSTALL.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) slot: u32,
    pub(super) generation: u32,
    pub(super) socket: Option<OwnedFd>,
}

/// The state of a socket, read through its descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketView {
    /// The peer's address.
    pub address: Option<SocketAddr>,
    /// TCP's smoothed round-trip time, in microseconds.
    pub rtt_us: Option<u32>,
}

/// The beginning of `struct tcp_info` (linux/tcp.h), whose layout never changes. The kernel fills as much as there is room for.
/// An older kernel fills less than libc's whole struct, which nix would reject.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpInfoHead {
    states: [u8; 8],
    before_rtt: [u32; 15],
    /// Microseconds.
    rtt: u32,
}

const _: () = assert!(
    std::mem::offset_of!(TcpInfoHead, rtt) == std::mem::offset_of!(libc::tcp_info, tcpi_rtt)
        && size_of::<TcpInfoHead>() < size_of::<libc::tcp_info>()
);

sockopt_impl!(
    /// The beginning of TCP_INFO.
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    TcpInfoHead
);

impl SocketView {
    fn of(socket: BorrowedFd<'_>) -> SocketView {
        SocketView {
            address: SockRef::from(&socket).peer_addr().ok().and_then(|address| address.as_socket()),
            rtt_us: getsockopt(&socket, TcpInfo).ok().map(|info| info.rtt),
        }
    }
}

impl<S: Shim> DataRing<S> {
    /// Reads a socket's address and round-trip time: four system calls, or two during its handshake. The fields are `None` if the
    /// kernel returns no descriptor.
    ///
    /// # Errors
    /// Only when the ring has failed for good.
    pub fn look_at(&mut self, slot: u32) -> io::Result<SocketView> {
        let Some(entry) = self.slots.get(slot as usize).filter(|entry| entry.state == State::Open) else {
            return Ok(SocketView::default());
        };
        if let Some(plain) = &entry.plain {
            return Ok(SocketView::of(plain.as_fd()));
        }
        let generation = entry.generation;
        self.installed = None;
        self.in_flight += 1;
        let install = opcode::FixedFdInstall::new(Fixed(slot), 0).build();
        self.push(install.user_data(self.of_slot(INSTALL, slot)))?;
        // The operation never waits, so it is complete when this returns; a late one would be dropped by the next call.
        self.drive(&mut [])?;
        let of_slot = |installed: &Installed| (installed.slot, installed.generation) == (slot, generation);
        let socket = self.installed.take().filter(of_slot).and_then(|installed| installed.socket);
        Ok(socket.map_or_else(SocketView::default, |socket| SocketView::of(socket.as_fd())))
    }

    /// Whether [`DataRing::add`] would find a slot. A closed socket frees its slot only once its receive has ended.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.slots_max as usize
    }

    /// SENDs so far that found the socket full and sent nothing.
    pub fn sends_full(&self) -> u64 {
        self.sends_full
    }
}
