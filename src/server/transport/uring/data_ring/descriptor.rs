//! What an operator is shown of a socket: its peer and its round trip, which only a descriptor tells.
//!
//! A served socket is a registered file and nothing else. From Linux 6.8 on the ring gives a descriptor of it back
//! (IORING_OP_FIXED_FD_INSTALL); it is asked for here, looked at and closed, so a client costs none. Before 6.8 nothing is
//! known of a socket once its handshake is done.

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

/// The kernel's answer to IORING_OP_FIXED_FD_INSTALL.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) slot: u32,
    pub(super) generation: u32,
    pub(super) socket: Option<OwnedFd>,
}

/// What a socket's descriptor tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketView {
    /// Its peer.
    pub address: Option<SocketAddr>,
    /// The round trip as TCP smooths it, microseconds.
    pub rtt_us: Option<u32>,
}

/// The beginning of `struct tcp_info` (linux/tcp.h), which never changes. The kernel writes as much as there is room for;
/// asked for the whole of libc's, an older kernel writes less than nix insists on.
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
    /// TCP_INFO, as far as it is wanted.
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
    /// Asks the kernel for what an operator is shown of a socket: four system calls, two while its handshake lasts.
    /// Nothing of it is known where the kernel has no descriptor for us.
    ///
    /// # Errors
    /// Only when the ring itself is beyond use.
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
        // It never waits, so it is over when this returns; one that were not is dropped with the next.
        self.drive(&mut [])?;
        let of_slot = |installed: &Installed| (installed.slot, installed.generation) == (slot, generation);
        let socket = self.installed.take().filter(of_slot).and_then(|installed| installed.socket);
        Ok(socket.map_or_else(SocketView::default, |socket| SocketView::of(socket.as_fd())))
    }

    /// Whether [`DataRing::add`] finds a slot. One that was closed is free only when its receive has come to its end.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// SENDs so far that found their socket full: it took nothing.
    pub fn sends_full(&self) -> u64 {
        self.sends_full
    }
}
