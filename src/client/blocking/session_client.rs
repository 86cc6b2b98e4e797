//! A blocking client on a session.

use std::{
    fmt,
    io::{self, ErrorKind, Read},
    mem,
    net::Shutdown,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustls::ClientConfig;

use super::{CLOSE_TIMEOUT, READ_BYTES, TLS_TIMEOUT, connect_host, is_timeout, stream::Stream};
use crate::{
    Action, Address, ClientError, ClientEvent, ClientOptions, ClientState, ClientToken, ConnectOptions,
    OUTPUT_BYTES_MAX, Positions, PublishError, PublishId, PublishRequest, PublishedAt, Random, RequestError,
    Session, SubscribeOptions, SubscriptionState, TokenPurpose, addresses,
    clock::{self, Deadline},
    link::{CLOSE_CUT, Link, LinkEvent},
    tls,
};
use tickcast_proto::subscription::Delivery;

/// Gives tokens: see [`SessionClientOptions::get_token`](ClientOptions::get_token).
pub type GetTokenBlocking = Box<dyn FnMut(TokenPurpose) -> Result<ClientToken, String> + Send>;
/// Saves positions: see [`SessionClientOptions::save_positions`](ClientOptions::save_positions). Called only once
/// [`SessionClient::next_event`] has returned all events.
pub type SavePositionsBlocking = Box<dyn FnMut(&Positions) + Send>;

/// Options of a [`SessionClient`].
pub type SessionClientOptions = ClientOptions<GetTokenBlocking, SavePositionsBlocking>;

/// Tokens from a file.
fn read_token(file: PathBuf) -> GetTokenBlocking {
    Box::new(move |_| {
        ClientToken::read(&file).map_err(|text| format!("token file {}: {text}", file.display()))
    })
}

/// A connected socket, and what it carries.
struct Wire {
    stream: Stream,
    link: Link,
    /// A write has failed. What the server had sent before is still read.
    has_failed: bool,
}

/// A [`Session`] with a socket and a clock, for a thread that may block: it connects, reconnects and resumes by itself.
///
/// All work is done in [`SessionClient::next_event`], so call it at least every few seconds, even if you expect no events. Only one
/// thread at a time may use the client. Compared with [`ReconnectingClient`](crate::ReconnectingClient), it has acknowledged publishes
/// with time-outs and a queue, tokens, states of subscriptions, and an event for each subscription that matches a tick; its events own
/// their parts.
pub struct SessionClient {
    session: Session,
    address: Address,
    options: ConnectOptions,
    tls: Option<Arc<ClientConfig>>,
    get_token: Option<GetTokenBlocking>,
    save_positions: Option<SavePositionsBlocking>,
    is_save_due: bool,
    wire: Option<Wire>,
    buffer: Box<[u8]>,
}

impl fmt::Debug for SessionClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionClient").field("session", &self.session).finish_non_exhaustive()
    }
}

impl SessionClient {
    /// A client of a server, in the forms of [`Address::parse`]. It connects in [`SessionClient::next_event`].
    ///
    /// # Errors
    /// As [`SessionClient::start`].
    pub fn connect(server: &str) -> Result<SessionClient, ClientError> {
        SessionClient::start(SessionClientOptions::new(server)?)
    }

    /// [`SessionClient::connect`] with all options.
    ///
    /// # Errors
    /// [`ClientError::Address`] for encodings other than JSON and native frames; [`ClientError::TlsSettings`] if a file of the TLS options
    /// cannot be used.
    pub fn start(mut options: SessionClientOptions) -> Result<SessionClient, ClientError> {
        let session = options.take_session(read_token)?;
        let SessionClientOptions { address, connect: options, get_token, save_positions, .. } = options;
        let tls = address.read_tls(&options)?;
        let mut session = Session::new(session, Random::from_system());
        session.connect(clock::monotonic_ns());
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        let (wire, is_save_due) = (None, false);
        Ok(SessionClient {
            session,
            address,
            options,
            tls,
            get_token,
            save_positions,
            is_save_due,
            wire,
            buffer,
        })
    }

    /// The client's state.
    pub fn state(&self) -> ClientState {
        self.session.state()
    }

    /// The state of a pattern's subscription.
    pub fn subscription_state(&self, pattern: &str) -> SubscriptionState {
        self.session.subscription_state(pattern)
    }

    /// The positions of all topics, exactly as of the events returned once [`SessionClient::next_event`] has returned `None`.
    pub fn positions(&self) -> &Positions {
        self.session.positions()
    }

    /// This machine's clock minus the server's, in nanoseconds; `None` if it is not known. Half of a round trip is its error.
    pub fn clock_offset_ns(&self) -> Option<i64> {
        self.session.clock_offset_ns()
    }

    /// Subscribes to a pattern on this and every later connection.
    ///
    /// # Errors
    /// As [`Session::subscribe`].
    pub fn subscribe(&mut self, pattern: &str, options: SubscribeOptions) -> Result<(), RequestError> {
        self.session.subscribe(pattern, options)
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// As [`Session::unsubscribe`].
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<(), RequestError> {
        self.session.unsubscribe(pattern)
    }

    /// Replaces policy and rate of a subscription.
    ///
    /// # Errors
    /// As [`Session::update`].
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<(), RequestError> {
        self.session.update(pattern, delivery)
    }

    /// Replaces the token: on the open connection, and for later ones.
    pub fn set_token(&mut self, token: ClientToken) {
        self.session.set_token(token);
    }

    /// Connects again after the server has ended the connection for good. Does nothing unless disconnected.
    pub fn reconnect(&mut self) {
        self.session.connect(clock::monotonic_ns());
    }

    /// Publishes a tick with the next [`SessionClient::next_event`]. Exactly one event with this id answers, at the latest after
    /// `timeout`.
    ///
    /// # Errors
    /// [`RequestError`] if the topic is invalid, or if too much waits for the socket.
    pub fn publish(
        &mut self,
        publish: PublishRequest<'_>,
        timeout: Duration,
    ) -> Result<PublishId, RequestError> {
        // What earlier calls have queued counts. Without a connection, the session has a bound of its own.
        if self.wire.is_some() {
            self.act();
        }
        let waiting = self.wire.as_ref().map_or(0, |wire| wire.link.poll_transmit().len());
        if waiting > OUTPUT_BYTES_MAX {
            return Err(RequestError::Backpressure);
        }
        self.session.publish(publish, timeout, clock::monotonic_ns())
    }

    /// Publishes a tick and waits for the answer. Other events go to `other`.
    ///
    /// # Errors
    /// [`PublishError`]: see [`PublishFailure`](crate::PublishFailure) for whether the tick was published.
    pub fn publish_acknowledged(
        &mut self,
        publish: PublishRequest<'_>,
        timeout: Duration,
        mut other: impl FnMut(ClientEvent),
    ) -> Result<PublishedAt, PublishError> {
        let sent = self.publish(publish, timeout).map_err(PublishError::Request)?;
        loop {
            match self.next_event(None) {
                Some(ClientEvent::Published { publish, published }) if publish == sent => {
                    return Ok(published);
                }
                Some(ClientEvent::PublishFailed { publish, failure }) if publish == sent => {
                    return Err(PublishError::Failed(failure));
                }
                Some(event) => other(event),
                // Its answer, at the latest its time-out, has been an event before.
                None => return Err(PublishError::Request(RequestError::Ended)),
            }
        }
    }

    /// The next event, waiting up to `timeout` for it (`None`: without limit); `None` if none arrived in time, or if the client is
    /// disconnected and has nothing more to say. The timeout does not cut a connection attempt short, which may take up to 10 s.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Option<ClientEvent> {
        let deadline = Deadline::after(timeout);
        loop {
            self.act();
            if let Some(event) = self.session.poll_event() {
                return Some(event);
            }
            self.save_if_due();
            // Before the timers: what has arrived shows that the server is alive.
            let has_arrived = self.transfer();
            if has_arrived {
                self.session.handle_paused();
            }
            let now_ns = clock::monotonic_ns();
            let timer_ns = self.session.poll_timeout();
            if timer_ns.is_some_and(|at_ns| at_ns <= now_ns) {
                self.session.handle_timeout(now_ns);
                continue;
            }
            if has_arrived {
                self.act();
                if let Some(event) = self.session.poll_event() {
                    return Some(event);
                }
            }
            let left = deadline.remaining();
            if has_arrived && left != Some(Duration::ZERO) {
                continue;
            }
            if left == Some(Duration::ZERO) || (timer_ns.is_none() && self.wire.is_none()) {
                return None;
            }
            let until_timer = timer_ns.map(|at_ns| Duration::from_nanos(at_ns - now_ns));
            let wait = match (left, until_timer) {
                (Some(left), Some(timer)) => Some(left.min(timer)),
                (left, timer) => left.or(timer),
            };
            self.wait(wait);
        }
    }

    /// Sends everything queued, for at most 2 s, and closes the connection. Publishes without an answer stay unanswered.
    pub fn close(mut self) {
        // Ticks that nobody has read would be missed at the next start.
        let has_unread = self.session.poll_event().is_some();
        self.session.disconnect(clock::monotonic_ns());
        self.act();
        if !has_unread {
            self.save_if_due();
        }
    }

    /// Saves the positions if the session has asked for it, once all events have been returned.
    fn save_if_due(&mut self) {
        if std::mem::take(&mut self.is_save_due)
            && let Some(save_positions) = &mut self.save_positions
        {
            save_positions(self.session.positions());
        }
    }

    /// Does what the session asks for.
    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Dial { url, .. } => self.dial(&url),
                Action::Send { message, is_optional } => {
                    if let Some(wire) = &mut self.wire
                        && !(is_optional && wire.link.poll_transmit().len() > OUTPUT_BYTES_MAX)
                    {
                        wire.link.send(message);
                    }
                }
                Action::HangUp { code } => {
                    if let Some(mut wire) = self.wire.take() {
                        wire.link.hang_up(code);
                        // The connection ends either way.
                        let _ = wire.finish();
                    }
                }
                Action::AskToken(purpose) => {
                    let token = self.get_token.as_mut().map(|get_token| get_token(purpose));
                    let now_ns = clock::monotonic_ns();
                    match token {
                        Some(Ok(token)) => self.session.handle_token(token, now_ns),
                        Some(Err(reason)) => self.session.handle_token_failed(&reason, now_ns),
                        None => debug_assert!(false, "the session asks only if there is a function"),
                    }
                }
                Action::Save(_) => self.is_save_due = true,
            }
        }
    }

    fn dial(&mut self, url: &str) {
        let address = addresses::dialed(url, &self.address);
        match self.open(&address.host) {
            Ok(stream) => {
                let link = Link::new(&addresses::options_for(&address, &self.address, &self.options));
                self.wire = Some(Wire { stream, link, has_failed: false });
                self.handle_link();
            }
            Err(error) => {
                if matches!(error, ClientError::Tls { .. })
                    && let Ok(renewed) = self.address.read_tls(&self.options)
                {
                    self.tls = renewed;
                }
                self.session.handle_closed(CLOSE_CUT, &error.to_string(), 0, clock::monotonic_ns());
            }
        }
    }

    fn open(&self, host: &str) -> Result<Stream, ClientError> {
        let socket =
            connect_host(host).map_err(|error| ClientError::Connect { address: host.into(), error })?;
        let mut stream = Stream::new(socket);
        if let Some(config) = self.tls.clone() {
            stream.start_tls(config, tls::server_name(host)?, host, TLS_TIMEOUT)?;
        }
        stream.socket.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Writes and reads what the socket takes and has, without blocking; returns whether bytes or the end arrived.
    fn transfer(&mut self) -> bool {
        let Some(wire) = &mut self.wire else { return false };
        if !wire.has_failed && wire.write_some().is_err() {
            wire.has_failed = true;
        }
        match wire.stream.read(&mut self.buffer) {
            Ok(0) => wire.link.handle_eof(),
            Ok(read) => wire.link.handle_bytes(&self.buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(_) => wire.link.handle_eof(),
        }
        self.handle_link();
        true
    }

    /// Gives the session what has arrived.
    fn handle_link(&mut self) {
        let now_ns = clock::monotonic_ns();
        while let Some(event) = self.wire.as_mut().and_then(|wire| wire.link.poll_event()) {
            match event {
                LinkEvent::Open(protocol) => self.session.handle_open(protocol, now_ns),
                LinkEvent::Message(message) => {
                    self.session.handle_message(&message, now_ns, clock::wall_ns());
                }
                LinkEvent::Closed { code, reason, reconnect_after_ms } => {
                    self.session.handle_closed(code, &reason, reconnect_after_ms, now_ns);
                    if let Some(mut wire) = mem::take(&mut self.wire) {
                        // The answer to a close frame, as far as the socket takes it at once.
                        let _ = wire.write_some();
                    }
                }
            }
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        match &mut self.wire {
            None => clock::sleep(timeout.unwrap_or_default()),
            Some(wire) => {
                let has_output = !wire.has_failed && wire.has_output();
                if wire.stream.wait(timeout, has_output).is_err() {
                    wire.link.handle_eof();
                    self.handle_link();
                }
            }
        }
    }
}

impl Wire {
    fn has_output(&self) -> bool {
        !self.link.poll_transmit().is_empty() || self.stream.has_unsent()
    }

    /// Writes what the socket accepts without blocking.
    fn write_some(&mut self) -> io::Result<()> {
        while self.has_output() {
            match self.stream.write(self.link.poll_transmit()) {
                Ok(written) => self.link.handle_transmitted(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what waits, says goodbye, and waits until the server has closed its side, for at most [`CLOSE_TIMEOUT`].
    fn finish(mut self) -> io::Result<()> {
        let deadline = Deadline::after(Some(CLOSE_TIMEOUT));
        let left = |deadline: Deadline| deadline.remaining().filter(|left| !left.is_zero());
        self.stream.say_goodbye();
        self.write_some()?;
        while let Some(left) = left(deadline).filter(|_| self.has_output()) {
            self.stream.wait(Some(left), true)?;
            let mut discarded = [0; 4_096];
            // The server may wait for this side to read.
            while matches!(self.stream.read(&mut discarded), Ok(read) if read > 0) {}
            self.write_some()?;
        }
        let socket = &mut self.stream.socket;
        socket.shutdown(Shutdown::Write)?;
        socket.set_nonblocking(false)?;
        while let Some(left) = left(deadline) {
            socket.set_read_timeout(Some(left))?;
            match socket.read(&mut [0; 4_096]) {
                Ok(0) => break,
                Err(error) if !is_timeout(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
