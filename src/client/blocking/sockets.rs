//! Sockets to a server.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::CONNECT_TIMEOUT;

/// Connects to the first address of a host that accepts the connection.
pub(super) fn connect_tcp(host: &str) -> io::Result<TcpStream> {
    let mut failure = ErrorKind::NotFound.into();
    let connect = |at: SocketAddr| {
        TcpStream::connect_timeout(&at, CONNECT_TIMEOUT).map_err(|error| failure = error).ok()
    };
    let stream = host.to_socket_addrs()?.find_map(connect).ok_or(failure)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Waits this long for room in the listener's queue.
#[cfg(unix)]
pub(super) fn connect_unix(path: &str, timeout: Duration) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // connect(2) of a Unix socket waits for as long as a write.
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&socket2::SockAddr::unix(path)?).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    })?;
    socket.set_write_timeout(None)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

#[cfg(not(unix))]
pub(super) fn connect_unix(_: &str, _: Duration) -> io::Result<TcpStream> {
    Err(ErrorKind::Unsupported.into())
}
