//! Sockets that the service manager listens on and passes (sd_listen_fds(3)): they outlive a restart of the server, and
//! connections that come meanwhile wait in them.
//!
//! Each has a name, FileDescriptorName= of its socket unit: `tcp` is the first native listener, `http` the first HTTP
//! listener, `admin` the operator's. systemd/ has a unit for each of the first two.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use socket2::{SockRef, Type};

use crate::{config::listener::Kind, error::StartupError};

/// The sockets that were passed, by what they serve.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: Vec<(Kind, OwnedFd)>,
}

impl Passed {
    /// Takes the sockets that were passed to this process, if any. A second call finds none.
    ///
    /// # Safety
    /// Nothing in this process owns the descriptors that LISTEN_FDS names: call it before anything else opens one, and leave
    /// these variables as the service manager set them.
    ///
    /// # Errors
    /// [`StartupError::Passed`]: a name that is unknown or comes twice, or not a listening stream socket.
    pub unsafe fn take() -> Result<Passed, StartupError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let mut passed = Passed::default();
        if TAKEN.swap(true, SeqCst) {
            return Ok(passed);
        }
        let refuse = |error: io::Error| StartupError::Passed(format!("{error} (LISTEN_FDS, LISTEN_FDNAMES)"));
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !is_set("LISTEN_PID") || !is_set("LISTEN_FDS") {
            return Ok(passed);
        }
        // Asked first: names that are another process's are no error.
        if sd_notify::listen_fds().map_err(refuse)?.len() == 0 {
            return Ok(passed);
        }
        let named = sd_notify::listen_fds_with_names().map_err(refuse)?;
        for (fd, name) in named {
            // SAFETY: it is open, as `listen_fds` has just checked (F_GETFD). By this function's contract the service manager
            // opened it for this process and nothing else owns it; the flag above lets it be taken only once.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            passed.add(&name, socket)?;
        }
        Ok(passed)
    }

    /// Takes the socket for the first listener of a kind.
    pub fn take_for(&mut self, kind: Kind) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(has, _)| *has == kind)?;
        Some(self.sockets.swap_remove(at).1)
    }

    /// What the first socket is for that no listener has taken.
    pub fn first_left(&self) -> Option<Kind> {
        self.sockets.first().map(|(kind, _)| *kind)
    }

    fn add(&mut self, name: &str, socket: OwnedFd) -> Result<(), StartupError> {
        let refuse = |why: &str| Err(StartupError::Passed(format!("{name:?}: {why}")));
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.option() == name) else {
            let names = Kind::ALL.map(Kind::option).join(", ");
            return refuse(&format!("FileDescriptorName= of its unit must be one of: {names}"));
        };
        let asked = SockRef::from(&socket);
        let is_stream = asked.r#type().is_ok_and(|kind| kind == Type::STREAM)
            && asked
                .local_addr()
                .is_ok_and(|address| address.as_socket().is_some() || address.as_pathname().is_some());
        if !is_stream {
            return refuse(
                "not a TCP socket or Unix stream socket; ListenStream= of its unit must be a port, an address and a port, \
                 or a path",
            );
        }
        if !asked.is_listener().is_ok_and(|listens| listens) {
            return refuse("it does not listen; its unit must say Accept=no");
        }
        if self.sockets.iter().any(|(has, _)| *has == kind) {
            return refuse("passed twice; its unit may have one ListenStream= only");
        }
        self.sockets.push((kind, socket));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::net::{UnixDatagram, UnixListener},
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
    fn what_cannot_be_served_is_refused_with_what_the_unit_must_say() {
        let mut passed = Passed::default();
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(refusal(&mut passed, "tickcast.socket", listener()).contains("one of: tcp, http, admin"));
        assert!(
            refusal(&mut passed, "tcp", UdpSocket::bind("127.0.0.1:0").unwrap()).contains("ListenStream=")
        );
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(refusal(&mut passed, "tcp", file).contains("not a TCP socket"));
        let datagrams = UnixDatagram::unbound().unwrap();
        assert!(refusal(&mut passed, "http", datagrams).contains("not a TCP socket"));
        let to = listener();
        let connected = TcpStream::connect(to.local_addr().unwrap()).unwrap();
        assert!(refusal(&mut passed, "tcp", connected).contains("Accept=no"));
        passed.add("tcp", listener().into()).unwrap();
        assert!(refusal(&mut passed, "tcp", listener()).contains("one ListenStream="));
    }
}
