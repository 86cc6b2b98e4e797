//! Sockets that the service manager opens and passes to the server (sd_listen_fds(3)). They outlive a restart of the server,
//! and connections that arrive meanwhile wait in them.
//!
//! Each has a name, FileDescriptorName= of its socket unit: `tcp` is the first native listener, `http` the first HTTP
//! listener, `admin` the operator's. systemd/ has a unit for each of the first two. Without FileDescriptorName= the name is that of
//! the unit: `tickcast-http.socket` is `http` too. Sockets without names (the manager sets no LISTEN_FDNAMES), or of a unit whose
//! name says nothing, get the names that are left, in this order, but two of them with the same port, such as those of IPv4 and IPv6, get the
//! same name. Further sockets of a name are further listeners with the options of the first.
//! LISTEN_PID names this process, or its parent: podman sets it to 1, which is the init of `podman run --init` or a shell. A
//! parent may have kept its sockets and passed on only the variables, so the server then ignores descriptors that are not
//! listening sockets.

use std::{
    env,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::parent_id,
    },
    process,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{SockRef, Type};

use crate::{config::listener::Kind, error::StartupError};

/// The first passed descriptor (SD_LISTEN_FDS_START).
const FIRST_PASSED: RawFd = 3;
/// The name of a socket without a name (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";
/// Passed sockets; more than listeners can take.
const PASSED_MAX: usize = 16;

/// The passed sockets, by the kind of listener.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: Vec<(Kind, OwnedFd)>,
}

impl Passed {
    /// Takes the sockets that were passed to this process, if any. A second call finds none. With its parent's LISTEN_PID, a
    /// descriptor that is not a listening socket is a warning, and stays open and untouched.
    ///
    /// # Safety
    /// Nothing in this process owns the descriptors that LISTEN_FDS names: call it before anything else opens one, and leave
    /// these variables as the service manager set them.
    ///
    /// # Errors
    /// [`StartupError::Passed`]: a name that is unknown, a second socket for the admin listener, or, with this process's
    /// LISTEN_PID, a descriptor that is not a listening stream socket.
    pub unsafe fn take() -> Result<Passed, StartupError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let mut passed = Passed::default();
        if TAKEN.swap(true, SeqCst) {
            return Ok(passed);
        }
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let (Some(pid), Some(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
            return Ok(passed);
        };
        let is_ours = pid.parse() == Ok(process::id());
        if !is_ours && pid.parse() != Ok(parent_id()) {
            ::log::warn!(
                "ignoring {count} passed sockets: they are for process {pid} (LISTEN_PID), not for this one"
            );
            return Ok(passed);
        }
        let given = variable("LISTEN_FDNAMES");
        let names = names(&count, given.as_deref()).map_err(StartupError::Passed)?;
        let mut sockets = Vec::new();
        for (fd, name) in (FIRST_PASSED..).zip(names) {
            // SAFETY: -1 is excluded. It is borrowed for the two calls below, which fail if it is not open; no other thread runs that
            // could close it between them.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            if !is_ours && let Err(found) = listener(borrowed) {
                ::log::warn!(
                    "ignoring descriptor {fd} ({name:?}), which LISTEN_FDS={count} of the parent process counts: it is {found}, not a \
                     listening socket"
                );
                continue;
            }
            fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|error| {
                StartupError::Passed(format!("descriptor {fd}: {error} (LISTEN_FDS={count})"))
            })?;
            // SAFETY: it is open, as the call above has checked. By this function's contract the service manager opened it for
            // this process and nothing else owns it; TAKEN lets it be taken only once.
            sockets.push((name, unsafe { OwnedFd::from_raw_fd(fd) }));
        }
        passed.add_all(sockets)?;
        Ok(passed)
    }

    /// Takes the first socket that is left for a listener of this kind.
    pub fn take_for(&mut self, kind: Kind) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(has, _)| *has == kind)?;
        Some(self.sockets.remove(at).1)
    }

    /// The kinds of sockets beyond the first of each kind.
    pub fn further(&self) -> impl Iterator<Item = Kind> {
        let kinds = self.sockets.iter().map(|(kind, _)| *kind).enumerate();
        kinds
            .filter(|(at, kind)| self.sockets[..*at].iter().any(|(has, _)| has == kind))
            .map(|(_, kind)| kind)
    }

    /// The name of the first socket that no listener has taken.
    pub fn first_left(&self) -> Option<Kind> {
        self.sockets.first().map(|(kind, _)| *kind)
    }

    /// Adds sockets: those with names first, so that the others get only what is left.
    fn add_all(&mut self, mut sockets: Vec<(&str, OwnedFd)>) -> Result<(), StartupError> {
        sockets.sort_by_key(|(name, _)| matches!(kind_of(name), Some(Named::Any)));
        sockets.into_iter().try_for_each(|(name, socket)| self.add(name, socket))
    }

    fn add(&mut self, name: &str, socket: OwnedFd) -> Result<(), StartupError> {
        let refuse = |why: &str| Err(StartupError::Passed(format!("{name:?}: {why}")));
        let is_free = |kind: &Kind| self.sockets.iter().all(|(has, _)| has != kind);
        let found = match kind_of(name) {
            Some(Named::Kind(kind)) => Some(kind),
            Some(Named::Any) => self.of_same_port(&socket).or_else(|| Kind::ALL.into_iter().find(is_free)),
            None => None,
        };
        let Some(kind) = found else {
            let names = Kind::ALL.map(Kind::option).join(", ");
            return refuse(&format!("FileDescriptorName= of its unit must be one of: {names}"));
        };
        match listener(socket.as_fd()) {
            Ok(()) => {}
            Err(SILENT) => return refuse("it does not listen; its unit must say Accept=no"),
            Err(found) => {
                return refuse(&format!(
                    "it is {found}; ListenStream= of its unit must be a port, an address and a port, or a path"
                ));
            }
        }
        if kind == Kind::Admin && self.sockets.iter().any(|(has, _)| *has == kind) {
            return refuse("the service manager passed it twice; give its unit a single ListenStream=");
        }
        self.sockets.push((kind, socket));
        Ok(())
    }

    /// The kind of a socket with the same port.
    fn of_same_port(&self, socket: &OwnedFd) -> Option<Kind> {
        let port = |socket: &OwnedFd| Some(SockRef::from(socket).local_addr().ok()?.as_socket()?.port());
        let own = port(socket)?;
        self.sockets.iter().find(|(_, other)| port(other) == Some(own)).map(|(kind, _)| *kind)
    }
}

/// What a socket's name says.
enum Named {
    Kind(Kind),
    /// Any kind that is free.
    Any,
}

/// The meaning of a name: that of a kind, or of a socket unit. `None` for any other.
fn kind_of(name: &str) -> Option<Named> {
    let known = |name: &str| Kind::ALL.into_iter().find(|kind| kind.option() == name || kind.name() == name);
    match (name.strip_suffix(".socket"), known(name)) {
        (_, Some(kind)) => Some(Named::Kind(kind)),
        (Some(unit), None) => {
            let last = unit.rsplit('-').next().unwrap_or_default();
            Some(known(last).map_or(Named::Any, Named::Kind))
        }
        (None, None) => (name == UNNAMED).then_some(Named::Any),
    }
}

/// A stream socket of a right family that does not listen.
const SILENT: &str = "a socket that does not listen";

/// Whether a descriptor is a listening socket that the server can use: TCP, or Unix with a path. The error describes it.
fn listener(descriptor: BorrowedFd<'_>) -> Result<(), &'static str> {
    let asked = SockRef::from(&descriptor);
    match asked.r#type() {
        Ok(Type::STREAM) => {}
        Ok(_) => return Err("a socket of another type"),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Err("not open"),
        Err(_) => return Err("not a socket"),
    }
    let address = asked.local_addr();
    if !address.is_ok_and(|address| address.as_socket().is_some() || address.as_pathname().is_some()) {
        return Err("a socket of another family, or without a path");
    }
    if asked.is_listener().is_ok_and(|listens| listens) { Ok(()) } else { Err(SILENT) }
}

/// The names of the passed sockets, from LISTEN_FDS and LISTEN_FDNAMES.
fn names<'a>(count: &str, names: Option<&'a str>) -> Result<Vec<&'a str>, String> {
    let count: usize = count
        .parse()
        .ok()
        .filter(|count| *count <= PASSED_MAX)
        .ok_or_else(|| format!("LISTEN_FDS={count}: must be a number up to {PASSED_MAX}"))?;
    let Some(names) = names else { return Ok(vec![UNNAMED; count]) };
    let names: Vec<&str> =
        names.split(':').map(|name| if name.is_empty() { UNNAMED } else { name }).collect();
    match names.len() == count {
        true => Ok(names),
        false => Err(format!("LISTEN_FDNAMES has {} names for {count} sockets (LISTEN_FDS)", names.len())),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::{
            linux::net::SocketAddrExt,
            unix::net::{UnixDatagram, UnixListener},
        },
    };

    use super::*;

    fn refusal(passed: &mut Passed, name: &str, socket: impl Into<OwnedFd>) -> String {
        passed.add(name, socket.into()).unwrap_err().to_string()
    }

    #[test]
    fn listening_sockets_are_taken_by_their_names() {
        let mut passed = Passed::default();
        for name in ["tcp", "http"] {
            passed.add(name, TcpListener::bind("127.0.0.1:0").unwrap().into()).unwrap();
        }
        let path = std::env::temp_dir().join(format!("tickcast-{}.sock", std::process::id()));
        passed.add("admin", UnixListener::bind(&path).unwrap().into()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(passed.take_for(Kind::Http).is_some() && passed.take_for(Kind::Http).is_none());
        assert!(passed.take_for(Kind::Native).is_some() && passed.take_for(Kind::Admin).is_some());
    }

    #[test]
    fn sockets_without_names_are_taken_in_order() {
        let mut passed = Passed::default();
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap().into();
        passed.add("native", listener()).unwrap();
        for taken in [Kind::Http, Kind::Admin] {
            passed.add(UNNAMED, listener()).unwrap();
            assert_eq!(passed.sockets.last().unwrap().0, taken);
        }
        assert!(refusal(&mut passed, UNNAMED, TcpListener::bind("127.0.0.1:0").unwrap()).contains("one of"));
    }

    #[test]
    fn the_name_of_a_unit_says_which_listener_its_sockets_are() {
        let taken = |names: &[&str]| {
            let mut passed = Passed::default();
            let socket = || TcpListener::bind("127.0.0.1:0").unwrap().into();
            passed.add_all(names.iter().map(|name| (*name, socket())).collect()).unwrap();
            passed.sockets.iter().map(|(kind, _)| *kind).collect::<Vec<_>>()
        };
        use Kind::{Admin, Http, Native};
        assert_eq!(taken(&["tickcast.socket", "tickcast-http.socket"]), [Http, Native]);
        assert_eq!(taken(&["tickcast.socket", "tcp"]), [Native, Http], "the named one first");
        assert_eq!(taken(&["tickcast-admin.socket", "http.socket", "my-tcp.socket"]), [Admin, Http, Native]);
        assert_eq!(taken(&["tickcast.socket", "tickcast.socket", "tickcast.socket"]), [Native, Http, Admin]);
    }

    #[test]
    fn further_sockets_of_a_name_or_port_are_further_listeners_of_that_kind() {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        let mut passed = Passed::default();
        for name in ["http", "tcp", "http"] {
            passed.add(name, listener().into()).unwrap();
        }
        assert_eq!(passed.further().collect::<Vec<_>>(), [Kind::Http]);
        let mut passed = Passed::default();
        let first = listener();
        let port = first.local_addr().unwrap().port();
        // As ListenStream=0.0.0.0:9400 and ListenStream=[::]:9400 of one unit.
        let second = TcpListener::bind(("127.0.0.2", port)).unwrap();
        for socket in [first, second, listener()] {
            passed.add("tickcast.socket", socket.into()).unwrap();
        }
        let kinds: Vec<Kind> = passed.sockets.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [Kind::Native, Kind::Native, Kind::Http]);
    }

    #[test]
    fn each_passed_socket_has_a_name_or_none_has() {
        assert_eq!(names("2", Some("tcp:http")).unwrap(), ["tcp", "http"]);
        assert_eq!(names("2", Some("tcp:")).unwrap(), ["tcp", UNNAMED]);
        assert_eq!(names("2", None).unwrap(), [UNNAMED, UNNAMED]);
        assert!(names("0", None).unwrap().is_empty());
        for (count, wrong) in
            [("2", "tcp"), ("1", "tcp:http"), ("x", "tcp"), ("-1", "tcp"), ("4000000000", "")]
        {
            assert!(names(count, Some(wrong)).unwrap_err().contains("LISTEN_FDS"), "{count} {wrong}");
        }
    }

    #[test]
    fn what_is_not_a_listening_socket_is_named() {
        let to = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listener(to.as_fd()), Ok(()));
        let connected = TcpStream::connect(to.local_addr().unwrap()).unwrap();
        assert_eq!(listener(connected.as_fd()), Err(SILENT));
        assert_eq!(
            listener(UdpSocket::bind("127.0.0.1:0").unwrap().as_fd()),
            Err("a socket of another type")
        );
        assert_eq!(listener(std::fs::File::open("/dev/null").unwrap().as_fd()), Err("not a socket"));
        let name = format!("tickcast-listener-{}", process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let without_path = UnixListener::bind_addr(&address).unwrap();
        assert_eq!(listener(without_path.as_fd()), Err("a socket of another family, or without a path"));
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_what_the_unit_must_say() {
        let mut passed = Passed::default();
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(refusal(&mut passed, "ticks", listener()).contains("one of: tcp, http, admin"));
        assert!(
            refusal(&mut passed, "tcp", UdpSocket::bind("127.0.0.1:0").unwrap()).contains("ListenStream=")
        );
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(refusal(&mut passed, "tcp", file).contains("it is not a socket; ListenStream="));
        let datagrams = UnixDatagram::unbound().unwrap();
        assert!(refusal(&mut passed, "http", datagrams).contains("it is a socket of another type"));
        let to = listener();
        let connected = TcpStream::connect(to.local_addr().unwrap()).unwrap();
        assert!(refusal(&mut passed, "tcp", connected).contains("Accept=no"));
        passed.add("admin", listener().into()).unwrap();
        assert!(refusal(&mut passed, "admin", listener()).contains("single ListenStream="));
    }
}
