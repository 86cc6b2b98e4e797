//! Listening sockets. A TCP listener has one socket per shard, and the kernel spreads connections over them by peer address.
//! All shards share a Unix socket, or a socket passed by the service manager: the first shard accepts from it and distributes
//! the connections round-robin.

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
use tickcast_core::{ids::TenantId, shard::ClientAddress};

/// Attempts to listen on an address in use, and the pause between them: half a second in total.
const LISTEN_ATTEMPTS_MAX: u32 = 10;
const LISTEN_RETRY_NS: u64 = 50_000_000;

/// One listener's sockets.
#[derive(Debug)]
pub struct Listening {
    /// The kind of the listener.
    pub kind: Kind,
    /// How a trusted proxy reports its client's address.
    pub client: ClientAddress,
    /// Whether its clients may only subscribe.
    pub is_read_only: bool,
    /// Tenant of its clients.
    pub tenant: TenantId,
    /// The address in use.
    pub address: Address,
    /// By shard. Shards without a socket get their connections from the one that has it.
    pub sockets: Vec<Option<OwnedFd>>,
    /// The file of a Unix socket; removed when this is dropped.
    file: Option<SocketFile>,
}

impl Listening {
    /// Whether one shard accepts for all shards.
    pub fn is_dealt(&self) -> bool {
        self.sockets.iter().any(Option::is_none)
    }

    /// The guard that removes the file of a Unix socket when dropped.
    pub fn take_file(&mut self) -> Option<SocketFile> {
        self.file.take()
    }
}

/// The file of a Unix socket that this process created. Dropping this removes the file, unless another has replaced it.
///
/// Drop it before the socket stops listening: until then, no other server can take the path, and the inode is not reused.
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

/// Opens a listener for `shards`: on the passed socket if there is one, otherwise on its address.
///
/// # Errors
/// [`StartupError::Listen`]; [`StartupError::Passed`] if an option cannot be set on a passed socket.
pub fn open(listener: &Listener, passed: Option<OwnedFd>, shards: u16) -> Result<Listening, StartupError> {
    let Listener { kind, client, is_read_only, tenant, .. } = *listener;
    let failed = |error| StartupError::Listen(listener.named.clone(), listener.address.clone(), error);
    if let Some(socket) = passed {
        let refused = |error| StartupError::Passed(format!("{:?}: {error}", kind.option()));
        let address = adopt(&socket, listener.socket).map_err(refused)?;
        ::log::info!("{}: {address}, a socket that the service manager passed", listener.named);
        return Ok(Listening {
            kind,
            client,
            is_read_only,
            tenant,
            address,
            sockets: for_first(socket, shards),
            file: None,
        });
    }
    match &listener.address {
        Address::Tcp(address) => {
            let (address, sockets) = listen(&listener.named, *address, shards, listener.socket)?;
            let sockets = sockets.into_iter().map(Some).collect();
            let address = address.into();
            Ok(Listening { kind, client, is_read_only, tenant, address, sockets, file: None })
        }
        Address::Unix(path) => {
            let (socket, file) = listen_unix(path, listener.mode).map_err(failed)?;
            let address = listener.address.clone();
            let sockets = for_first(socket, shards);
            Ok(Listening { kind, client, is_read_only, tenant, address, sockets, file: Some(file) })
        }
    }
}

/// Gives a shared socket to the first shard. If every shard accepted from it, the kernel would wake the first waiter for all
/// connections (EPOLLEXCLUSIVE wakes in the order of waiting), and no shard would know its share of the accept rate.
fn for_first(socket: OwnedFd, shards: u16) -> Vec<Option<OwnedFd>> {
    std::iter::once(Some(socket)).chain((1..shards).map(|_| None)).collect()
}

/// Sets the options of a passed socket, except its backlog, which its unit sets. Returns its address.
fn adopt(socket: &OwnedFd, bounds: SocketBounds) -> io::Result<Address> {
    let socket = SockRef::from(socket);
    // On a non-blocking socket, older kernels return EAGAIN instead of waiting.
    socket.set_nonblocking(false)?;
    let address = socket.local_addr()?;
    if let Some(address) = address.as_socket() {
        set_options(&socket, bounds)?;
        return Ok(address.into());
    }
    let path = address.as_pathname().map(|path| Address::Unix(path.to_owned()));
    path.ok_or_else(|| io::Error::other("neither a TCP port nor a Unix socket with a path"))
}

/// Creates `shards` sockets that listen on one address; the first resolves port 0. Returns the address in use.
///
/// TCP_NODELAY is set here, and accepted sockets inherit it: frames are batched before they are sent. They inherit the
/// socket bounds as well (Linux 6.18: SO_SNDBUF and TCP_NOTSENT_LOWAT are copied to the accepted socket).
///
/// # Errors
/// [`StartupError::Listen`], which names the listener `named`. Another program on the address is an error: a shared port would
/// silently take some of its connections, so the address is first bound without sharing.
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
        // The probe also listens: next to a listener that allows reuse, binding alone would succeed. For port 0 the kernel picks
        // an unused port.
        let mut attempts_left = LISTEN_ATTEMPTS_MAX;
        while let Err(error) = bind(address, false, bounds).and_then(|probe| probe.listen(1)) {
            attempts_left -= 1;
            if attempts_left == 0 || error.kind() != ErrorKind::AddrInUse {
                return Err(error);
            }
            // The previous server may have just ended: the kernel frees its io_uring, and the listeners in it, only after
            // the process is gone (about 10 ms after SIGKILL on Linux 6.18).
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

/// Creates a Unix socket that listens at a path. Replaces a socket file that nobody listens on.
fn listen_unix(path: &Path, mode: u32) -> io::Result<(OwnedFd, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    // Set the mode before listening; until then nobody can connect.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok((socket.into(), file))
}

/// Removes the socket file of a killed server.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "the path exists and is not a socket; remove it or choose another path",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Sets the options that accepted TCP sockets inherit.
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
