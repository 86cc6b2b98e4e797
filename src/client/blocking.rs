//! A blocking client, for tools, tests and programs with a thread to spare.

mod acknowledged;
mod renewal;
mod session_client;
mod sockets;
mod stream;

use std::{
    borrow::Cow,
    io::{self, ErrorKind, Read},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::Duration,
};

use rustls::ClientConfig;

pub use self::session_client::{
    GetTokenBlocking, SavePositionsBlocking, SessionClient, SessionClientOptions,
};

use self::{
    renewal::Renewal,
    sockets::{connect_tcp, connect_unix},
    stream::Stream,
};
use crate::{
    Address, ClientError, ClientToken, ConnectOptions, Connection, Event, ProtocolError, PublishRequest,
    SubscribeOptions,
    address::UNIX_PREFIX,
    clock::{self, Deadline},
    error::{ROOM_AWAITED, WELCOME_AWAITED},
    tls,
};
use tickcast_proto::{
    DecodeError,
    subscription::{Delivery, Position},
};

/// Time for one socket address to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the server to send its welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for [`Client::close`] to say goodbye over TLS, and for the server to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which a write is retried while the socket is full. The standard library cannot wait until a socket is
/// readable or writable, so the client waits for input and retries the write.
const WRITE_RETRY_INTERVAL: Duration = Duration::from_millis(1);
/// Bytes read in one call.
const READ_BYTES: usize = 64 << 10;
/// Bytes of input at which a blocked write stops reading further ones.
const INPUT_BYTES_MAX: usize = 4 << 20;

/// The options with the token that their file has now.
fn with_token(options: &ConnectOptions) -> Result<Cow<'_, ConnectOptions>, ClientError> {
    let Some(file) = &options.token_file else { return Ok(Cow::Borrowed(options)) };
    let fail = |text| ClientError::TokenFile(format!("token file {}: {text}", file.display()));
    let token = Some(ClientToken::read(file).map_err(fail)?);
    Ok(Cow::Owned(ConnectOptions { token, ..options.clone() }))
}

/// A connection to a server with calls that block.
///
/// One thread at a time may use it. The server pings idle clients and closes those that do not answer;
/// [`Client::next_event`] answers, so call it at least every few seconds, even if you expect no events.
///
/// Dropping the client closes the socket at once; [`Client::close`] sends everything first.
#[derive(Debug)]
pub struct Client {
    /// Non-blocking, except during [`Client::wait`]. Its calls are those of any stream socket: it may be a Unix socket.
    stream: Stream,
    write_timeout: Option<Duration>,
    /// Why writing has failed for good. Invariant: set only while something is waiting to be written.
    write_failure: Option<io::Error>,
    connection: Connection,
    renewal: Option<Renewal>,
    buffer: Box<[u8]>,
}

impl Client {
    /// Connects to an [`Address`], with a TLS handshake if it has TLS, and waits for the server's welcome, each for up to 5 s.
    ///
    /// # Errors
    /// [`ClientError`]: an invalid address, no connection, a refusal, or an answer that does not come from a tickcast server.
    pub fn connect(server: &str) -> Result<Client, ClientError> {
        Client::connect_to(&Address::parse(server)?)
    }

    /// [`Client::connect`] to a parsed address.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_to(address: &Address) -> Result<Client, ClientError> {
        Client::connect_with(address, &address.connect_options())
    }

    /// [`Client::connect`] with all options.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(address: &Address, options: &ConnectOptions) -> Result<Client, ClientError> {
        Client::connect_over(address, options, address.read_tls(options)?)
    }

    /// [`Client::connect_with`] with the result of [`Address::read_tls`].
    pub(super) fn connect_over(
        address: &Address,
        options: &ConnectOptions,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Client, ClientError> {
        let options = with_token(options)?;
        let fail = |error| ClientError::Connect { address: address.host.clone(), error };
        let mut stream = Stream::new(connect_host(&address.host).map_err(fail)?);
        if let Some(config) = tls {
            stream.start_tls(config, tls::server_name(&address.host)?, &address.host, TLS_TIMEOUT)?;
        }
        stream.socket.set_nonblocking(true)?;
        let (connection, buffer) = (Connection::new(&options), vec![0; READ_BYTES].into_boxed_slice());
        let (write_timeout, write_failure) = (None, None);
        let renewal = Renewal::new(&options);
        let mut client = Client { stream, write_timeout, write_failure, connection, renewal, buffer };
        match client.await_welcome() {
            Ok(()) => Ok(client),
            Err(ClientError::Protocol(ProtocolError::Decode(DecodeError::BadMagic(magic)))) => {
                Err(address.misused(magic))
            }
            Err(error) => Err(error),
        }
    }

    /// Limits how long a call waits while the server reads nothing: after `timeout` without a byte accepted, it fails with
    /// [`ClientError::TimedOut`]. Unsent bytes stay queued. `None`, the default: no limit.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    /// The protocol state: topics, their statistics, bytes waiting to be written.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Subscribes to a pattern, starting with the next tick; returns the request's number. [`Event::Subscribed`] with that
    /// number acknowledges it, except on a raw connection. Blocks while the server reads nothing.
    ///
    /// # Errors
    /// [`ClientError::Request`] if the request is invalid; otherwise the connection is lost.
    pub fn subscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        let request = self.connection.subscribe(pattern)?;
        self.flush().map(|()| request)
    }

    /// [`Client::subscribe`] with a policy, a rate and a start.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn subscribe_with(&mut self, pattern: &str, options: &SubscribeOptions) -> Result<u32, ClientError> {
        let request = self.connection.subscribe_with(pattern, options)?;
        self.flush().map(|()| request)
    }

    /// Adds a position for the next subscription with [`StartPosition::Resume`](tickcast_proto::subscription::StartPosition::Resume). Sends nothing.
    ///
    /// # Errors
    /// [`ClientError::Request`] beyond [`RESUME_POSITIONS_MAX`](tickcast_proto::limits::RESUME_POSITIONS_MAX) positions.
    pub fn resume(&mut self, topic: &str, position: Position) -> Result<(), ClientError> {
        Ok(self.connection.resume(topic, position)?)
    }

    /// Changes the delivery of an active subscription; returns the request's number.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<u32, ClientError> {
        let request = self.connection.update(pattern, delivery)?;
        self.flush().map(|()| request)
    }

    /// Ends a subscription, identified by its pattern; returns the request's number.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        let request = self.connection.unsubscribe(pattern)?;
        self.flush().map(|()| request)
    }

    /// Publishes one tick and flushes; returns the request's number. A failure is an [`Event::Error`] with that number, a success
    /// an [`Event::Published`] if the server acknowledges publishes: see [`Connection::publish`].
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<u32, ClientError> {
        let request = self.publish_buffered(publish)?;
        self.flush().map(|()| request)
    }

    /// Queues one tick, which the next [`Client::flush`] sends, or this call once 64 KiB are waiting. Use it for many ticks in a
    /// row, which then share one write.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn publish_buffered(&mut self, publish: PublishRequest<'_>) -> Result<u32, ClientError> {
        if self.connection.poll_transmit().len() >= READ_BYTES {
            self.flush()?;
        }
        Ok(self.connection.publish(publish)?)
    }

    /// Sends a ping; returns its token, which [`Event::Pong`] repeats. That event explains what the answer means.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub fn ping(&mut self) -> Result<u64, ClientError> {
        let token = self.connection.ping()?;
        self.flush().map(|()| token)
    }

    /// The next event, waiting up to `timeout` for it (`None`: without limit); `None` if none arrived in time.
    ///
    /// # Errors
    /// [`ClientError::Io`] if the connection broke or has ended, [`ClientError::Protocol`] if the server broke the
    /// protocol. Connect again.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<Event<'_>>, ClientError> {
        match self.await_event(timeout)? {
            true => Ok(self.connection.poll_event()?),
            false => Ok(None),
        }
    }

    /// Waits up to `timeout` for an event without taking it; returns whether there is one.
    pub(super) fn await_event(&mut self, timeout: Option<Duration>) -> Result<bool, ClientError> {
        self.await_event_or(Deadline::after(timeout), |_| false)
    }

    /// Waits for an event or for `is_done`; returns `false` if neither came before the deadline.
    pub(super) fn await_event_or(
        &mut self,
        deadline: Deadline,
        is_done: impl Fn(&Connection) -> bool,
    ) -> Result<bool, ClientError> {
        self.renew_token();
        while !self.connection.has_event()? && !is_done(&self.connection) {
            self.renew_token();
            let written = self.write_some();
            if self.read_some()? {
                continue;
            }
            written?;
            match deadline.remaining() {
                Some(Duration::ZERO) => return Ok(false),
                timeout => {
                    let soonest = timeout.into_iter().chain(self.wakes_after()).min();
                    self.wait(soonest, true)?;
                }
            }
        }
        Ok(true)
    }

    /// How long a caller that waits for the socket itself may wait before it calls [`Client::next_event`]; `None`: without limit.
    pub fn wakes_after(&self) -> Option<Duration> {
        self.renewal.as_ref().map(Renewal::remaining)
    }

    /// Queues a new token if its file has one.
    fn renew_token(&mut self) {
        if let Some(renewal) = self.renewal.as_mut().filter(|_| self.connection.is_open()) {
            renewal.look(&mut self.connection);
        }
    }

    /// The connection, for requests without a method here. The next [`Client::flush`] sends them.
    pub(super) fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Writes all queued requests. While the socket is full, the server's messages are read, so that neither side waits
    /// for the other; [`Client::next_event`] returns them later.
    ///
    /// # Errors
    /// [`ClientError::Io`] if the connection broke, or if the server has closed its side and the socket is full.
    /// [`Client::next_event`] still returns what the server sent before: answers, and perhaps why it closed.
    /// [`ClientError::TimedOut`]: see [`Client::set_write_timeout`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.flush_until(Deadline::after(None)).map(|_| ())
    }

    /// Like [`Client::flush`], but waits no longer than the deadline; returns whether everything is written.
    fn flush_until(&mut self, deadline: Deadline) -> Result<bool, ClientError> {
        let mut stalled = Deadline::after(self.write_timeout);
        loop {
            let sent_bytes = self.stream.sent_bytes;
            if self.write_some()? {
                return Ok(true);
            }
            if self.stream.sent_bytes > sent_bytes {
                stalled = Deadline::after(self.write_timeout);
            }
            // A server that has closed its side reads no more: the socket would stay full for ever.
            if self.connection.has_eof() {
                return Err(self.handle_write_failure(ErrorKind::BrokenPipe.into()).into());
            }
            let may_read = self.connection.input_waiting_bytes() < INPUT_BYTES_MAX;
            match if may_read { self.read_some() } else { Ok(false) } {
                Ok(true) => continue,
                Ok(false) => {}
                Err(ClientError::Io(error)) => return Err(self.handle_write_failure(error).into()),
                Err(error) => return Err(error),
            }
            let timeout = match (deadline.remaining(), stalled.remaining()) {
                (Some(Duration::ZERO), _) => return Ok(false),
                (_, Some(Duration::ZERO)) => {
                    let waited = self.write_timeout.unwrap_or_default();
                    return Err(ClientError::TimedOut { awaited: ROOM_AWAITED, waited });
                }
                (Some(left), Some(stall)) => Some(left.min(stall)),
                (left, stall) => left.or(stall),
            };
            if let Err(error) = self.wait(timeout, may_read) {
                return Err(self.handle_write_failure(error).into());
            }
        }
    }

    /// Whether writing has failed for good. Events may still be waiting.
    pub(super) fn has_write_failure(&self) -> bool {
        self.write_failure.is_some()
    }

    /// Sends everything queued and closes the connection. On a WebSocket, a close frame is sent first.
    ///
    /// It then says goodbye over TLS, and discards input until the server has closed its side too, for at most 2 s in all: a
    /// socket that is closed with unread input resets the connection, and the server could lose what it has not read yet
    /// (RFC 1122, section 4.2.2.13).
    ///
    /// # Errors
    /// [`ClientError::Io`] if the connection broke before.
    pub fn close(mut self) -> Result<(), ClientError> {
        self.connection.close();
        self.flush()?;
        let deadline = Deadline::after(Some(CLOSE_TIMEOUT));
        self.stream.say_goodbye();
        // Everything has been sent: without the goodbye of TLS, for which the socket of a server that reads nothing may have no
        // room, the server sees an end all the same.
        let _ = self.flush_until(deadline);
        let socket = &mut self.stream.socket;
        match socket.shutdown(Shutdown::Write) {
            // The server has closed the connection after close_notify.
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
            other => other?,
        }
        socket.set_nonblocking(false)?;
        while let Some(left) = deadline.remaining().filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            match socket.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
                // The server has received everything and reset the connection.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn await_welcome(&mut self) -> Result<(), ClientError> {
        let deadline = Deadline::after(Some(WELCOME_TIMEOUT));
        while !self.connection.is_open() {
            // A raw connection opens without an event.
            if !self.await_event_or(deadline, Connection::is_open)? {
                return Err(ClientError::TimedOut { awaited: WELCOME_AWAITED, waited: WELCOME_TIMEOUT });
            }
            match self.connection.poll_event()? {
                Some(Event::Closing { code, text, .. } | Event::Error { code, text, .. }) => {
                    return Err(closed(Some((code, text.to_owned()))));
                }
                Some(Event::Closed) => return Err(closed(None)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether bytes wait to be written.
    fn has_output(&self) -> bool {
        !self.connection.poll_transmit().is_empty() || self.stream.has_unsent()
    }

    /// Writes what the socket accepts without blocking; returns whether nothing is left.
    fn write_some(&mut self) -> io::Result<bool> {
        while self.has_output() {
            if let Some(failure) = &self.write_failure {
                return Err(copy(failure));
            }
            match self.stream.write(self.connection.poll_transmit()) {
                Ok(written) => self.connection.handle_transmitted(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.handle_write_failure(error)),
            }
        }
        Ok(true)
    }

    /// Records that writing has failed, and reads what the server had sent: answers, and perhaps the reason for closing.
    fn handle_write_failure(&mut self, failure: io::Error) -> io::Error {
        while !self.connection.has_eof()
            && self.connection.input_waiting_bytes() < INPUT_BYTES_MAX
            && matches!(self.read_some(), Ok(true))
        {}
        self.write_failure = Some(copy(&failure));
        failure
    }

    /// Reads once without blocking; returns whether it received bytes or the end of the stream.
    fn read_some(&mut self) -> Result<bool, ClientError> {
        loop {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => {
                    self.connection.handle_eof();
                    // The end is an event first, then an error for callers that continue.
                    return match self.connection.has_event()? {
                        true => Ok(true),
                        false => Err(ClientError::Io(ErrorKind::UnexpectedEof.into())),
                    };
                }
                Ok(read) => {
                    self.connection.handle_bytes(&self.buffer[..read]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.stream.failure(error)),
            }
        }
    }

    /// Waits until input arrives, if `may_read`, or up to `timeout`, or until a blocked write is worth another try. May
    /// return early.
    fn wait(&mut self, timeout: Option<Duration>, may_read: bool) -> io::Result<()> {
        let has_output = self.has_output();
        if !may_read {
            clock::sleep(stream::wait_at_most(timeout, has_output).unwrap_or(WRITE_RETRY_INTERVAL));
            return Ok(());
        }
        self.stream.wait(timeout, has_output)
    }
}

/// Connects to the host of an [`Address`], for at most [`CONNECT_TIMEOUT`] for each of its socket addresses.
fn connect_host(host: &str) -> io::Result<TcpStream> {
    match host.strip_prefix(UNIX_PREFIX) {
        Some(path) => connect_unix(path, CONNECT_TIMEOUT),
        None => connect_tcp(host),
    }
}

/// For waiting on the server together with other descriptors. The socket is non-blocking.
#[cfg(unix)]
impl std::os::fd::AsFd for Client {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.socket.as_fd()
    }
}

/// Whether a blocking call ended without a result: Unix reports a timeout as `WouldBlock`, Windows as `TimedOut`.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The same error once more.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Code and text of the server's CLOSING.
fn close_reason(event: &Event<'_>) -> Option<(u16, String)> {
    match *event {
        Event::Closing { code, text, .. } => Some((code, text.to_owned())),
        _ => None,
    }
}

fn closed(reason: Option<(u16, String)>) -> ClientError {
    let (code, text) = reason.unwrap_or_default();
    ClientError::Closed { code, text }
}

#[cfg(test)]
mod tests;
