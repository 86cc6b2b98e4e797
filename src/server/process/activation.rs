//! Sockets that the service manager listens on and passes (sd_listen_fds(3)): they outlive a restart of the server, and
//! connections that come meanwhile wait in them.
//!
//! Each has a name, FileDescriptorName= of its socket unit: `tcp` stands for `--tcp`, `http` for `--http`, `admin`
//! for `--admin`. systemd/ has a unit for each of the first two.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use socket2::{SockRef, Type};

use crate::error::StartupError;

/// Names that a passed socket may have.
const NAMES: [&str; 3] = ["tcp", "http", "admin"];

/// What was passed.
#[derive(Debug, Default)]
pub struct Passed {
    sockets: BTreeMap<&'static str, OwnedFd>,
}

impl Passed {
    /// Takes what was passed to this process, if anything was. To be called before anything else opens a file; a second call
    /// finds nothing.
    ///
    /// # Errors
    /// [`StartupError::Passed`]: a name that is not known or comes twice, or what is no listening TCP socket.
    pub fn take() -> Result<Passed, StartupError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let mut passed = Passed::default();
        if TAKEN.swap(true, SeqCst) {
            return Ok(passed);
        }
        let refuse = |error: io::Error| StartupError::Passed(format!("{error} (LISTEN_FDS, LISTEN_FDNAMES)"));
        // Asked first: names that are another process's are no error.
        if sd_notify::listen_fds().map_err(refuse)?.len() == 0 {
            return Ok(passed);
        }
        let named = sd_notify::listen_fds_with_names().map_err(refuse)?;
        for (fd, name) in named {
            // SAFETY: the service manager opened it for this process, which has opened nothing yet: it is open, as was just
            // asked (F_GETFD), and nobody else in this process owns it, as all this is done once.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            passed.add(&name, socket)?;
        }
        Ok(passed)
    }

    /// The socket of a name.
    pub fn remove(&mut self, name: &str) -> Option<OwnedFd> {
        self.sockets.remove(name)
    }

    fn add(&mut self, name: &str, socket: OwnedFd) -> Result<(), StartupError> {
        let refuse = |why: &str| Err(StartupError::Passed(format!("{name:?}: {why}")));
        let Some(known) = NAMES.into_iter().find(|known| *known == name) else {
            return refuse(&format!("FileDescriptorName= of its unit must be one of: {}", NAMES.join(", ")));
        };
        let asked = SockRef::from(&socket);
        let is_tcp = asked.r#type().is_ok_and(|kind| kind == Type::STREAM)
            && asked.local_addr().is_ok_and(|address| address.as_socket().is_some());
        if !is_tcp {
            return refuse(
                "not a TCP socket; ListenStream= of its unit must be a port or an address and a port",
            );
        }
        if !asked.is_listener().is_ok_and(|listens| listens) {
            return refuse("it does not listen; its unit must say Accept=no");
        }
        match self.sockets.insert(known, socket) {
            None => Ok(()),
            Some(_) => refuse("passed twice; its unit may have one ListenStream= only"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::net::UnixListener,
    };

    use super::*;

    fn refusal(passed: &mut Passed, name: &str, socket: impl Into<OwnedFd>) -> String {
        passed.add(name, socket.into()).unwrap_err().to_string()
    }

    #[test]
    fn listening_tcp_sockets_are_taken_by_their_names() {
        let mut passed = Passed::default();
        for name in NAMES {
            passed.add(name, TcpListener::bind("127.0.0.1:0").unwrap().into()).unwrap();
        }
        assert!(passed.remove("http").is_some() && passed.remove("http").is_none());
        assert!(passed.remove("tcp").is_some());
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
        let path = std::env::temp_dir().join(format!("tickcast-{}.sock", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(refusal(&mut passed, "http", unix).contains("not a TCP socket"));
        let to = listener();
        let connected = TcpStream::connect(to.local_addr().unwrap()).unwrap();
        assert!(refusal(&mut passed, "tcp", connected).contains("Accept=no"));
        passed.add("tcp", listener().into()).unwrap();
        assert!(refusal(&mut passed, "tcp", listener()).contains("one ListenStream="));
    }
}
