//! A session on a blocking socket: for tools, tests and programs with a thread to spare.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{ClientError, Event, PublishRequest, Session, SessionOptions, SubscribeOptions, clock};
use tickcast_proto::{
    Encoding,
    subscription::{Delivery, Position},
};

/// Time for one address to accept a connection.
const CONNECT_DEADLINE_MS: u64 = 5_000;
/// Time for the server to welcome.
const WELCOME_DEADLINE_MS: u64 = 5_000;
/// Bytes read in one call.
const READ_BYTES: usize = 64 << 10;
/// Events' bytes taken in while a write waits. Past it a blocked write only waits.
const INPUT_BYTES_MAX: usize = 4 << 20;

/// Where a server is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `HOST:PORT`.
    pub host: String,
    /// The path and query of a WebSocket; empty for native.
    pub path: String,
    /// Native, or a WebSocket's encoding.
    pub encoding: Encoding,
}

impl Address {
    /// Reads `HOST:PORT` and `tcp://HOST:PORT` as native, `ws://HOST:PORT[/PATH]` as a WebSocket with the rkyv
    /// encoding; without a path, `/ws`.
    ///
    /// # Errors
    /// [`ClientError::Address`] for every other form.
    pub fn parse(text: &str) -> Result<Address, ClientError> {
        let (encoding, rest) = match text.split_once("://") {
            None => (Encoding::Native, text),
            Some(("tcp", rest)) => (Encoding::Native, rest),
            Some(("ws", rest)) => (Encoding::WebSocketRkyv, rest),
            Some((scheme, _)) => {
                return Err(ClientError::Address(format!(
                    "unknown scheme {scheme:?} in {text:?}: HOST:PORT, or ws://HOST:PORT/ws"
                )));
            }
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port =
            host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
        let is_clean = !text.contains(|c: char| c.is_whitespace() || c.is_control());
        if !has_port || !is_clean || (encoding == Encoding::Native && !path.is_empty()) {
            return Err(ClientError::Address(format!(
                "{text:?} is no server address: HOST:PORT, or ws://HOST:PORT/ws"
            )));
        }
        let path = match (encoding, path) {
            (Encoding::Native, _) => "",
            (_, "" | "/") => "/ws",
            (_, path) => path,
        };
        Ok(Address { host: host.into(), path: path.into(), encoding })
    }

    /// The options of a session with this address.
    pub fn session_options(&self) -> SessionOptions {
        SessionOptions {
            host: self.host.clone(),
            path: self.path.clone(),
            ..SessionOptions::new(self.encoding)
        }
    }
}

/// A connection to a server. One thread at a time; every call blocks at most as long as it says.
///
/// The server pings who is silent for long, and closes who does not answer. [`Client::next_event`] answers: call it now
/// and then, even where nothing is awaited.
///
/// Dropping it closes the connection; [`Client::close`] does so politely.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    session: Session,
    buffer: Box<[u8]>,
}

impl Client {
    /// Connects to an [`Address`] and waits for the server's welcome: up to 5 s for the connection, 5 s for that.
    ///
    /// # Errors
    /// [`ClientError`]: the address, the connection, or an answer that is not a tickcast server's.
    pub fn connect(server: &str) -> Result<Client, ClientError> {
        Client::connect_to(&Address::parse(server)?)
    }

    /// [`Client::connect`] to an address with an encoding of choice.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to(address: &Address) -> Result<Client, ClientError> {
        Client::connect_with(address, &address.session_options())
    }

    /// [`Client::connect`] with all options of the session.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(address: &Address, options: &SessionOptions) -> Result<Client, ClientError> {
        let fail = |error| ClientError::Connect { address: address.host.clone(), error };
        let addresses: Vec<SocketAddr> = address.host.to_socket_addrs().map_err(fail)?.collect();
        let timeout = Duration::from_millis(CONNECT_DEADLINE_MS);
        let mut failure = ErrorKind::NotFound.into();
        let stream = addresses
            .iter()
            .find_map(|at| TcpStream::connect_timeout(at, timeout).map_err(|error| failure = error).ok());
        let stream = stream.ok_or_else(|| fail(failure))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        let mut client = Client { stream, session: Session::new(options), buffer };
        client.await_welcome()?;
        Ok(client)
    }

    /// The session: topics and what was seen of each.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Asks for a pattern's ticks. [`Event::Subscribed`] names the number returned; a raw session gets none.
    ///
    /// # Errors
    /// [`ClientError`]; blocks while the server takes nothing.
    pub fn subscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        let request = self.session.subscribe(pattern)?;
        self.flush().map(|()| request)
    }

    /// [`Client::subscribe`] with a policy, a rate and a place to begin.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn subscribe_with(&mut self, pattern: &str, options: &SubscribeOptions) -> Result<u32, ClientError> {
        let request = self.session.subscribe_with(pattern, options)?;
        self.flush().map(|()| request)
    }

    /// Names a place for the next subscription that resumes, as [`Session::resume`].
    ///
    /// # Errors
    /// [`ClientError::Request`] past the bound.
    pub fn resume(&mut self, topic: &str, position: Position) -> Result<(), ClientError> {
        Ok(self.session.resume(topic, position)?)
    }

    /// Changes how a live subscription is delivered.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<u32, ClientError> {
        let request = self.session.update(pattern, delivery)?;
        self.flush().map(|()| request)
    }

    /// Ends a subscription, named by its pattern.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        let request = self.session.unsubscribe(pattern)?;
        self.flush().map(|()| request)
    }

    /// Publishes one tick at once. A failure is an [`Event::Error`] that names the number returned.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<u32, ClientError> {
        let request = self.publish_later(publish)?;
        self.flush().map(|()| request)
    }

    /// Publishes one tick with the next [`Client::flush`], or as soon as 64 KiB wait: for many in a row.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn publish_later(&mut self, publish: PublishRequest<'_>) -> Result<u32, ClientError> {
        if self.session.output().len() >= READ_BYTES {
            self.flush()?;
        }
        Ok(self.session.publish(publish)?)
    }

    /// Sends a ping. [`Event::Pong`] with the token returned tells that the server took in all that came before.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn ping(&mut self) -> Result<u64, ClientError> {
        let token = self.session.ping()?;
        self.flush().map(|()| token)
    }

    /// Pings and waits until the server has taken in everything sent before. Other events go to `other`.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] after `timeout`, [`ClientError::Closed`] when the server ends the session first.
    pub fn barrier(
        &mut self,
        timeout: Duration,
        mut other: impl FnMut(Event<'_>),
    ) -> Result<(), ClientError> {
        let sent = self.ping()?;
        self.wait_until("answer to a ping", timeout, |event| {
            let arrived = matches!(event, Event::Pong { token } if token == sent);
            if !arrived {
                other(event);
            }
            arrived
        })
    }

    /// The next event, waiting up to `timeout` for it (`None`: for ever). `None` when none came in time.
    ///
    /// # Errors
    /// [`ClientError::Io`] when the connection broke, [`ClientError::Session`] when the server broke the protocol.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<Event<'_>>, ClientError> {
        match self.await_event(timeout)? {
            true => Ok(self.session.poll_event()?),
            false => Ok(None),
        }
    }

    /// Waits up to `timeout` for an event without taking it; whether there is one.
    pub(super) fn await_event(&mut self, timeout: Option<Duration>) -> Result<bool, ClientError> {
        let deadline_ns = timeout.map(deadline_ns);
        while !self.session.has_event()? {
            self.write_some()?;
            if self.read_some()? {
                continue;
            }
            let left_ms = deadline_ns.map(left_ms);
            if left_ms == Some(0) {
                return Ok(false);
            }
            self.wait(left_ms)?;
        }
        Ok(true)
    }

    /// The session, for what has no method here. What it queues leaves with the next [`Client::flush`].
    pub(super) fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Waits until the server sent something, without taking it. May return early.
    ///
    /// # Errors
    /// [`ClientError::Io`] when the wait fails.
    pub fn wait_readable(&self) -> Result<(), ClientError> {
        self.wait(None)
    }

    /// Waits until the server sent something or `other` is readable; whether `other` is, or has ended. May return early.
    ///
    /// # Errors
    /// [`ClientError::Io`] when the wait fails.
    pub fn wait_readable_or(&self, other: BorrowedFd<'_>) -> Result<bool, ClientError> {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !self.session.output().is_empty());
        let mut waited = [PollFd::new(self.stream.as_fd(), flags), PollFd::new(other, PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::NONE) {
            Ok(_) => Ok(waited[1].any().unwrap_or(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(std::io::Error::from(errno).into()),
        }
    }

    /// Writes all requests. While the server takes none, its answers are read, so that neither waits for the other;
    /// they come with the next [`Client::next_event`].
    ///
    /// # Errors
    /// [`ClientError::Io`] when the connection broke, or the server has ended its side and takes no more.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        while !self.write_some()? {
            // A server that has ended its side takes nothing more. If what it took before fills its socket, nothing
            // would ever come of waiting for room in ours.
            if self.session.has_ended() {
                return self.read_reason(ErrorKind::BrokenPipe.into()).map(drop);
            }
            let has_room = self.session.input_waiting_bytes() < INPUT_BYTES_MAX;
            if !has_room || !self.read_some()? {
                self.wait_for(has_room, None)?;
            }
        }
        Ok(())
    }

    /// Closes politely: what was sent arrives, and a WebSocket's server learns that it was meant.
    ///
    /// # Errors
    /// [`ClientError::Io`] when the connection broke before.
    pub fn close(mut self) -> Result<(), ClientError> {
        self.session.close();
        self.flush()?;
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    fn await_welcome(&mut self) -> Result<(), ClientError> {
        let deadline_ns = deadline_ns(Duration::from_millis(WELCOME_DEADLINE_MS));
        while !self.session.is_open() {
            let left = Duration::from_millis(left_ms(deadline_ns));
            let timed_out =
                ClientError::TimedOut { what: "welcome from the server", waited_ms: WELCOME_DEADLINE_MS };
            match self.next_event_or_open(left)? {
                Progress::Event(Some((code, text))) => return Err(ClientError::Closed { code, text }),
                Progress::Event(None) | Progress::Opened => {}
                Progress::TimedOut => return Err(timed_out),
            }
        }
        Ok(())
    }

    /// As [`Client::next_event`] for the opening alone: a raw session opens without an event.
    fn next_event_or_open(&mut self, timeout: Duration) -> Result<Progress, ClientError> {
        let deadline_ns = deadline_ns(timeout);
        loop {
            if self.session.has_event()? {
                let closed = match self.session.poll_event()? {
                    Some(Event::Closing { code, text, .. }) => Some((code, text.to_owned())),
                    Some(Event::Error { code, text, .. }) => Some((code, text.to_owned())),
                    Some(Event::Closed) => Some((0, String::new())),
                    _ => None,
                };
                return Ok(Progress::Event(closed));
            }
            if self.session.is_open() {
                return Ok(Progress::Opened);
            }
            self.write_some()?;
            if self.read_some()? {
                continue;
            }
            match left_ms(deadline_ns) {
                0 => return Ok(Progress::TimedOut),
                left_ms => self.wait(Some(left_ms))?,
            }
        }
    }

    fn wait_until(
        &mut self,
        what: &'static str,
        timeout: Duration,
        mut arrived: impl FnMut(Event<'_>) -> bool,
    ) -> Result<(), ClientError> {
        let deadline_ns = deadline_ns(timeout);
        let (mut code, mut text) = (0, String::new());
        loop {
            let left = Duration::from_millis(left_ms(deadline_ns));
            match self.next_event(Some(left))? {
                None => {
                    return Err(ClientError::TimedOut { what, waited_ms: timeout.as_millis() as u64 });
                }
                Some(Event::Closed) => return Err(ClientError::Closed { code, text }),
                Some(event) => {
                    if let Event::Closing { code: why, text: words, .. } = event {
                        (code, text) = (why, words.to_owned());
                    }
                    if arrived(event) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Writes what the socket takes; whether nothing is left.
    fn write_some(&mut self) -> Result<bool, ClientError> {
        while !self.session.output().is_empty() {
            match self.stream.write(self.session.output()) {
                Ok(written) => self.session.output_written(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The server may have closed with a reason that is still to be read.
                Err(error) => return self.read_reason(error),
            }
        }
        Ok(true)
    }

    /// After a failed write: the server's last words if they are there, else the failure.
    fn read_reason(&mut self, failure: std::io::Error) -> Result<bool, ClientError> {
        while !self.session.has_ended() && matches!(self.read_some(), Ok(true)) {
            if self.session.input_waiting_bytes() >= INPUT_BYTES_MAX {
                break;
            }
        }
        let (mut code, mut text) = (0, String::new());
        while let Ok(Some(event)) = self.session.poll_event() {
            if let Event::Closing { code: why, text: words, .. } = event {
                (code, text) = (why, words.to_owned());
            }
        }
        Err(if code == 0 { ClientError::Io(failure) } else { ClientError::Closed { code, text } })
    }

    /// Reads once; whether something came, the end included.
    fn read_some(&mut self) -> Result<bool, ClientError> {
        loop {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => {
                    self.session.handle_end();
                    // The end is an event the first time, and a broken connection for who goes on after it.
                    return match self.session.has_event()? {
                        true => Ok(true),
                        false => Err(ClientError::Io(ErrorKind::UnexpectedEof.into())),
                    };
                }
                Ok(read) => {
                    self.session.handle_bytes(&self.buffer[..read]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, timeout_ms: Option<u64>) -> Result<(), ClientError> {
        self.wait_for(true, timeout_ms)
    }

    fn wait_for(&self, readable: bool, timeout_ms: Option<u64>) -> Result<(), ClientError> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, readable);
        flags.set(PollFlags::POLLOUT, !self.session.output().is_empty());
        let timeout = timeout_ms
            .map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms.max(1)).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(self.stream.as_fd(), flags)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(std::io::Error::from(errno).into()),
        }
    }
}

/// How the opening came along.
enum Progress {
    /// An event; the server's refusal, if it was one.
    Event(Option<(u16, String)>),
    Opened,
    TimedOut,
}

pub(super) fn deadline_ns(timeout: Duration) -> u64 {
    clock::monotonic_ns().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
}

/// Milliseconds to the deadline, rounded up: 0 only when it has passed.
pub(super) fn left_ms(deadline_ns: u64) -> u64 {
    deadline_ns.saturating_sub(clock::monotonic_ns()).div_ceil(1_000_000)
}

#[cfg(test)]
mod tests;
