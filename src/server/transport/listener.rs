//! Listening sockets: one a shard and port, the kernel spreads connections over them by peer address. A socket that the
//! service manager passes is one for all: its first shard accepts, and deals the connections out in turn.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{clock, config::SocketBounds, error::StartupError, limits::LISTEN_BACKLOG};

/// Attempts to listen on an address in use, and their pause: half a second in all.
const LISTEN_ATTEMPTS_MAX: u32 = 10;
const LISTEN_RETRY_NS: u64 = 50_000_000;

/// One port.
#[derive(Debug)]
pub struct Listeners {
    /// The address in use.
    pub address: SocketAddr,
    /// By shard: those without one are dealt connections by the one that has it.
    pub sockets: Vec<Option<OwnedFd>>,
}

impl Listeners {
    /// Whether who accepts deals out.
    pub fn are_dealt(&self) -> bool {
        self.sockets.iter().any(Option::is_none)
    }
}

/// Listens for `shards` on the socket that the service manager passed, which goes before the address, or else on the
/// address.
///
/// # Errors
/// [`StartupError::Listen`]; [`StartupError::Passed`] where a bound cannot be set on a passed socket.
pub fn listeners(
    flag: &'static str,
    passed: Option<OwnedFd>,
    address: SocketAddr,
    shards: u16,
    bounds: SocketBounds,
) -> Result<Listeners, StartupError> {
    let Some(socket) = passed else {
        let (address, sockets) = listen(flag, address, shards, bounds)?;
        return Ok(Listeners { address, sockets: sockets.into_iter().map(Some).collect() });
    };
    let address =
        adopt(&socket, bounds).map_err(|error| StartupError::Passed(format!("for {flag}: {error}")))?;
    ::log::info!("{flag}: {address}, a socket that the service manager passed");
    // Were each shard to accept from it, the first that waits would be woken for all connections (EPOLLEXCLUSIVE, in the
    // order of waiting), and no shard's share of the accept rate would be known.
    let sockets = std::iter::once(Some(socket)).chain((1..shards).map(|_| None)).collect();
    Ok(Listeners { address, sockets })
}

/// Makes a passed socket like one of our own, but for its backlog, which its unit says. Returns its address.
fn adopt(socket: &OwnedFd, bounds: SocketBounds) -> io::Result<SocketAddr> {
    let socket = SockRef::from(socket);
    // Older kernels answer EAGAIN rather than wait.
    socket.set_nonblocking(false)?;
    bound(&socket, bounds)?;
    local_address(&socket)
}

/// Makes `shards` sockets that listen on one address; port 0 is resolved by the first. Returns the address in use.
///
/// TCP_NODELAY is set here, and accepted sockets inherit it: frames are batched before they are sent. So are the bounds of
/// what the kernel holds for a socket (Linux 6.18: SO_SNDBUF and TCP_NOTSENT_LOWAT are copied to the accepted one).
///
/// # Errors
/// [`StartupError::Listen`], also when another program listens there: a shared port would silently take a part of its
/// connections, so the address is first bound without sharing.
pub fn listen(
    flag: &'static str,
    address: SocketAddr,
    shards: u16,
    bounds: SocketBounds,
) -> Result<(SocketAddr, Vec<OwnedFd>), StartupError> {
    let failed = |error| StartupError::Listen(flag, address, error);
    if address.port() != 0 {
        // Listening fails where binding alone would succeed, beside a listener that allows reuse. For port 0 the
        // kernel picks a port that nobody shares.
        let mut attempts_left = LISTEN_ATTEMPTS_MAX;
        while let Err(error) = bind(address, false, bounds).and_then(|probe| probe.listen(1)) {
            attempts_left -= 1;
            if attempts_left == 0 || error.kind() != io::ErrorKind::AddrInUse {
                return Err(failed(error));
            }
            // A server that has just ended: the kernel takes its io_uring apart, and with it its listeners, only after the
            // process is gone (seen on Linux 6.18 after SIGKILL, for some 10 ms).
            clock::sleep_ns(LISTEN_RETRY_NS);
        }
    }
    let first = bind(address, true, bounds).map_err(failed)?;
    let bound = local_address(&first).map_err(failed)?;
    let rest = (1..shards).map(|_| bind(bound, true, bounds));
    let sockets: io::Result<Vec<OwnedFd>> = std::iter::once(Ok(first))
        .chain(rest)
        .map(|socket| {
            let socket = socket?;
            socket.listen(LISTEN_BACKLOG)?;
            Ok(OwnedFd::from(socket))
        })
        .collect();
    Ok((bound, sockets.map_err(failed)?))
}

fn bind(address: SocketAddr, shared: bool, bounds: SocketBounds) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    bound(&socket, bounds)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// What accepted sockets inherit.
fn bound(socket: &Socket, bounds: SocketBounds) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = bounds.send_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if bounds.notsent_lowat_bytes > 0 {
        socket.set_tcp_notsent_lowat(bounds.notsent_lowat_bytes)?;
    }
    Ok(())
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an internet address"))
}
