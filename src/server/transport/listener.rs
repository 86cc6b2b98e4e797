//! Listening sockets. A TCP listener has one socket for each shard, and the kernel spreads connections over them by peer
//! address. A Unix socket, or a socket that the service manager passes, is one for all shards: the first shard accepts from
//! it and deals the connections out in turn.

use std::{
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::{
    clock,
    config::listener::{Address, Kind, Listener, SocketBounds},
    error::StartupError,
    limits::LISTEN_BACKLOG,
};

/// Attempts to listen on an address in use, and their pause: half a second in all.
const LISTEN_ATTEMPTS_MAX: u32 = 10;
const LISTEN_RETRY_NS: u64 = 50_000_000;

/// One listener's sockets.
#[derive(Debug)]
pub struct Listening {
    /// What it serves.
    pub kind: Kind,
    /// The address in use.
    pub address: Address,
    /// By shard: those without one are dealt connections by the one that has it.
    pub sockets: Vec<Option<OwnedFd>>,
    /// Removed when this is dropped.
    file: Option<SocketFile>,
}

impl Listening {
    /// Whether one shard accepts and deals the connections out.
    pub fn is_dealt(&self) -> bool {
        self.sockets.iter().any(Option::is_none)
    }

    /// What removes the file of a Unix socket once dropped.
    pub fn take_file(&mut self) -> Option<SocketFile> {
        self.file.take()
    }
}

/// The file of a Unix socket that this process made. Dropped, it is removed, unless another file has taken its place.
///
/// Drop it before the socket stops listening: until then no other server takes the path, and the inode stays its own.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), device_and_inode: device_and_inode(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if device_and_inode(&self.path).is_ok_and(|found| found == self.device_and_inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Listens for `shards`: on the socket that the service manager passed, which takes precedence, or else on the address.
///
/// # Errors
/// [`StartupError::Listen`]; [`StartupError::Passed`] where an option cannot be set on a passed socket.
pub fn open(listener: &Listener, passed: Option<OwnedFd>, shards: u16) -> Result<Listening, StartupError> {
    let kind = listener.kind;
    let failed = |error| StartupError::Listen(listener.named.clone(), listener.address.clone(), error);
    if let Some(socket) = passed {
        let refused = |error| StartupError::Passed(format!("{:?}: {error}", kind.option()));
        let address = adopt(&socket, listener.socket).map_err(refused)?;
        ::log::info!("{}: {address}, a socket that the service manager passed", listener.named);
        return Ok(Listening { kind, address, sockets: for_first(socket, shards), file: None });
    }
    match &listener.address {
        Address::Tcp(address) => {
            let (address, sockets) = listen(&listener.named, *address, shards, listener.socket)?;
            let sockets = sockets.into_iter().map(Some).collect();
            Ok(Listening { kind, address: address.into(), sockets, file: None })
        }
        Address::Unix(path) => {
            let (socket, file) = listen_unix(path, listener.mode).map_err(failed)?;
            let address = listener.address.clone();
            Ok(Listening { kind, address, sockets: for_first(socket, shards), file: Some(file) })
        }
    }
}

/// Were each shard to accept from it, the first that waits would be woken for all connections (EPOLLEXCLUSIVE, in the order
/// of waiting), and no shard's share of the accept rate would be known.
fn for_first(socket: OwnedFd, shards: u16) -> Vec<Option<OwnedFd>> {
    std::iter::once(Some(socket)).chain((1..shards).map(|_| None)).collect()
}

/// Gives a passed socket the options of one of our own, but for its backlog, which its unit sets. Returns its address.
fn adopt(socket: &OwnedFd, bounds: SocketBounds) -> io::Result<Address> {
    let socket = SockRef::from(socket);
    // Older kernels answer EAGAIN rather than wait.
    socket.set_nonblocking(false)?;
    let address = socket.local_addr()?;
    if let Some(address) = address.as_socket() {
        set_options(&socket, bounds)?;
        return Ok(address.into());
    }
    let path = address.as_pathname().map(|path| Address::Unix(path.to_owned()));
    path.ok_or_else(|| io::Error::other("neither a TCP port nor a Unix socket with a path"))
}

/// Makes `shards` sockets that listen on one address; port 0 is resolved by the first. Returns the address in use.
///
/// TCP_NODELAY is set here, and accepted sockets inherit it: frames are batched before they are sent. They inherit the
/// socket bounds as well (Linux 6.18: SO_SNDBUF and TCP_NOTSENT_LOWAT are copied to the accepted socket).
///
/// # Errors
/// [`StartupError::Listen`], which calls the listener `named`; also when another program listens there: a shared port would
/// silently take a part of its connections, so the address is first bound without sharing.
pub fn listen(
    named: &str,
    address: SocketAddr,
    shards: u16,
    bounds: SocketBounds,
) -> Result<(SocketAddr, Vec<OwnedFd>), StartupError> {
    listen_tcp(address, shards, bounds)
        .map_err(|error| StartupError::Listen(named.to_owned(), address.into(), error))
}

fn listen_tcp(
    address: SocketAddr,
    shards: u16,
    bounds: SocketBounds,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    if address.port() != 0 {
        // Listening fails where binding alone would succeed, beside a listener that allows reuse. For port 0 the
        // kernel picks a port that nobody shares.
        let mut attempts_left = LISTEN_ATTEMPTS_MAX;
        while let Err(error) = bind(address, false, bounds).and_then(|probe| probe.listen(1)) {
            attempts_left -= 1;
            if attempts_left == 0 || error.kind() != ErrorKind::AddrInUse {
                return Err(error);
            }
            // A server that has just ended: the kernel takes its io_uring apart, and with it its listeners, only after the
            // process is gone (seen on Linux 6.18 after SIGKILL, for some 10 ms).
            clock::sleep_ns(LISTEN_RETRY_NS);
        }
    }
    let first = bind(address, true, bounds)?;
    let bound = first.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an internet address"))?;
    let rest = (1..shards).map(|_| bind(bound, true, bounds));
    let sockets: io::Result<Vec<OwnedFd>> = std::iter::once(Ok(first))
        .chain(rest)
        .map(|socket| {
            let socket = socket?;
            socket.listen(LISTEN_BACKLOG)?;
            Ok(OwnedFd::from(socket))
        })
        .collect();
    Ok((bound, sockets?))
}

fn bind(address: SocketAddr, shared: bool, bounds: SocketBounds) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    set_options(&socket, bounds)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Makes a Unix socket that listens at a path. A socket file that nobody listens on is replaced.
fn listen_unix(path: &Path, mode: u32) -> io::Result<(OwnedFd, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    // Before anyone can connect: until it listens, connecting is refused.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok((socket.into(), file))
}

/// Removes the socket file that a server which was killed has left.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "a file that is not a socket is in the way"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Sets what accepted TCP sockets inherit.
fn set_options(socket: &Socket, bounds: SocketBounds) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = bounds.send_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if bounds.notsent_lowat_bytes > 0 {
        socket.set_tcp_notsent_lowat(bounds.notsent_lowat_bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tickcast-{}-{name}.sock", std::process::id()))
    }

    #[test]
    fn a_socket_file_has_its_mode_and_is_removed_with_its_listener() {
        let path = path("mode");
        for mode in [0o600, 0o666] {
            let (socket, file) = listen_unix(&path, mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            UnixStream::connect(&path).unwrap();
            drop((file, socket));
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_path_is_refused_while_somebody_listens_and_taken_over_once_nobody_does() {
        let path = path("stale");
        let killed = UnixListener::bind(&path).unwrap();
        let listen = || listen_unix(&path, 0o600);
        assert_eq!(listen().unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(killed);
        let (_socket, _file) = listen().unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_took_the_place_of_a_socket_is_left_alone() {
        let path = path("replaced");
        let (_old_socket, old_file) = listen_unix(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let (_socket, _file) = listen_unix(&path, 0o600).unwrap();
        drop(old_file);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let path = path("file");
        fs::write(&path, "precious").unwrap();
        let error = listen_unix(&path, 0o600).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn passed_sockets_of_both_families_are_adopted() {
        let path = path("passed");
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let bounds = SocketBounds { send_bytes: Some(8192), notsent_lowat_bytes: 4096 };
        assert_eq!(adopt(&unix.into(), bounds).unwrap(), Address::Unix(path.clone()));
        assert_eq!(adopt(&tcp.into(), bounds).unwrap(), Address::Tcp(address));
        fs::remove_file(&path).unwrap();
    }
}
