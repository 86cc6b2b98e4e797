//! A client that reconnects automatically and resumes its subscriptions.

mod progress;
mod publish;
mod subscription;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use rustls::ClientConfig;

use self::{
    progress::{PROGRESS_MAX, advance},
    publish::{Retries, await_event_or_room},
    subscription::Subscription,
};
use crate::{
    Address, Backoff, Client, ClientError, ConnectOptions, Connection, Event, Positions,
    REMEMBERED_SUBSCRIPTIONS_MAX, RequestError, SubscribeOptions, Tick,
    addresses::Addresses,
    backoff::delay_ms_min,
    clock::{self, Deadline},
    request::RequestNumbers,
    topics::{IdHasher, SkipReason},
};
use tickcast_proto::{
    limits::RESUME_POSITIONS_MAX,
    pattern,
    subscription::{Delivery, Position, StartPosition},
};

/// Whether and when to reconnect.
#[derive(Clone, Debug)]
pub struct ReconnectOptions {
    /// Whether to reconnect at all. If not, the first lost connection is an error.
    pub reconnect: bool,
    /// The delays between attempts.
    pub backoff: Backoff,
}

impl Default for ReconnectOptions {
    fn default() -> ReconnectOptions {
        // The standard library seeds its hashers with the system's randomness.
        ReconnectOptions {
            reconnect: true,
            backoff: Backoff::new(RandomState::new().build_hasher().finish()),
        }
    }
}

/// A message from the server, or a change of the connection. Borrows from the client until the next one is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent<'a> {
    /// A message from the server. Never [`Event::Closed`]: [`StreamEvent::Disconnected`] replaces it.
    Event(Event<'a>),
    /// The connection was lost, or an attempt to reconnect failed. The client keeps trying.
    Disconnected {
        /// The reason, for a person.
        reason: &'a str,
        /// The server's close code; 0: none.
        code: u16,
        /// Time until the next attempt, in milliseconds.
        retry_in_ms: u64,
        /// Publishes whose acknowledgement was lost with the connection: each may have been published or not. Those with a message id
        /// are not among them: the client sends them again.
        unacknowledged: usize,
    },
    /// The client is connected again, and all subscriptions were sent.
    Reconnected,
}

/// A [`Client`] that reconnects when the connection is lost, and resumes its subscriptions.
///
/// If the server has named other nodes ([`Event::Nodes`]), each attempt goes to the next one, in turn with the address that the
/// caller gave. Of the others, it takes those that it can reach in the same way: native or WebSocket, with or without TLS.
///
/// How a subscription resumes depends on its delivery:
/// - If it receives every tick (no rate, and the topic's own policy, `drop`, `keep` or `disconnect`), it sends its position in
///   each topic. The missed ticks follow, or an [`Event::Recovered`] says that they are lost. A topic without a position
///   starts with the first tick that the server retains, so that no tick is lost unannounced.
/// - If it conflates, by policy or by a rate, it starts with the last values, because it needs no history.
///   [`Event::Conflated`] reports the ticks that they replace. If its options start it at a position
///   ([`StartPosition::After`], [`StartPosition::AfterEach`], [`StartPosition::Resume`]), it resumes like the first kind.
/// - If it has more than [`RESUME_POSITIONS_MAX`] positions, or in JSON more than fit into a message, it also starts
///   with the last values. Each of its positions is reported as not recovered.
///
/// A subscription that was never acknowledged starts as its options say. Duplicate ticks are a protocol error; they are
/// not filtered. Patterns in the address's path are not resumed: the server subscribes them again.
///
/// Memory: the subscriptions, and one position a topic ([`Positions`]). One thread at a time may use it.
#[derive(Debug)]
pub struct ReconnectingClient {
    addresses: Addresses,
    connect_options: ConnectOptions,
    /// `None`: no TLS.
    tls: Option<Arc<ClientConfig>>,
    /// Applies to every connection: see [`Client::set_write_timeout`].
    write_timeout: Option<Duration>,
    reconnect: bool,
    backoff: Backoff,
    client: Option<Client>,
    /// When to connect again.
    retry_at: Deadline,
    /// Whether a final error has occurred.
    failed: bool,
    subscriptions: Vec<Subscription>,
    /// Unanswered requests of this connection: the connection's number, and the number that the caller knows.
    requests: HashMap<u32, u32>,
    numbers: RequestNumbers,
    retries: Retries,
    /// Positions, without the progress of this connection.
    positions: Positions,
    /// Progress of this connection, by topic number. Bound: [`PROGRESS_MAX`].
    progress: HashMap<u32, Position, BuildHasherDefault<IdHasher>>,
    /// The server's CLOSING.
    closing: Closing,
    /// A change of the connection that the next event reports.
    pending_change: Option<ConnectionChange>,
    disconnect_reason: String,
}

#[derive(Debug, Default)]
struct Closing {
    code: u16,
    text: String,
    reconnect_after_ms: u32,
}

#[derive(Clone, Copy, Debug)]
enum ConnectionChange {
    Disconnected { code: u16, retry_in_ms: u64, unacknowledged: usize },
    Reconnected,
}

/// Resume positions by topic.
type TopicPositions = Vec<(Box<str>, Position)>;

impl ReconnectingClient {
    /// Connects to an [`Address`] like [`Client::connect`]. If this first attempt fails, it does not retry.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect(server: &str) -> Result<ReconnectingClient, ClientError> {
        let address = Address::parse(server)?;
        let options = address.connect_options();
        ReconnectingClient::connect_with(&address, &options, ReconnectOptions::default())
    }

    /// [`ReconnectingClient::connect`] with all options.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(
        address: &Address,
        connect_options: &ConnectOptions,
        options: ReconnectOptions,
    ) -> Result<ReconnectingClient, ClientError> {
        let tls = address.read_tls(connect_options)?;
        let client = Client::connect_over(address, connect_options, tls.clone())?;
        let ReconnectOptions { reconnect, mut backoff } = options;
        backoff.handle_connected(clock::monotonic_ns());
        Ok(ReconnectingClient {
            addresses: Addresses::new(address.clone()),
            connect_options: connect_options.clone(),
            tls,
            write_timeout: None,
            reconnect,
            backoff,
            client: Some(client),
            retry_at: Deadline::after(None),
            failed: false,
            subscriptions: Vec::new(),
            requests: HashMap::new(),
            numbers: RequestNumbers::default(),
            retries: Retries::default(),
            positions: Positions::new(),
            progress: HashMap::default(),
            closing: Closing::default(),
            pending_change: None,
            disconnect_reason: String::new(),
        })
    }

    /// Starts with positions saved by an earlier process: subscriptions that match their topics resume there. Call it
    /// before the first subscription.
    pub fn with_positions(mut self, positions: Positions) -> ReconnectingClient {
        self.positions = positions;
        self
    }

    /// Limits how long a call waits while the server reads nothing: after `timeout` without a byte accepted, the connection
    /// counts as lost. `None`, the default: no limit.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
        if let Some(client) = &mut self.client {
            client.set_write_timeout(timeout);
        }
    }

    /// The positions to resume from, exactly as of the events returned so far. Costs a look-up for each topic of the connection.
    pub fn positions(&mut self) -> &Positions {
        self.merge_progress();
        &self.positions
    }

    /// The epoch of the connected server; `None` while disconnected, and on a raw connection.
    pub fn server_epoch(&self) -> Option<u64> {
        self.client.as_ref()?.connection().server_epoch()
    }

    /// Subscribes to a pattern on this and every later connection; returns the request's number. [`Event::Subscribed`] with
    /// that number acknowledges it on each connection.
    ///
    /// # Errors
    /// [`ClientError::Request`] if the request is invalid, or if there are too many subscriptions. A lost connection is no
    /// error, because the subscription is kept. Otherwise as [`ReconnectingClient::next_event`].
    pub fn subscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        self.subscribe_with(pattern, SubscribeOptions::default())
    }

    /// [`ReconnectingClient::subscribe`] with a policy, a rate and a start. It resumes from the known positions of topics
    /// that no other subscription matches ([`ReconnectingClient::with_positions`]).
    ///
    /// # Errors
    /// As [`ReconnectingClient::subscribe`]. While disconnected, [`StartPosition::Since`] is not refused, but the first connection to a
    /// server that does not know it ends the client with [`RequestError::SinceNotGranted`].
    pub fn subscribe_with(&mut self, pattern: &str, options: SubscribeOptions) -> Result<u32, ClientError> {
        if self.subscriptions.iter().any(|subscription| *subscription.pattern == *pattern) {
            return Err(RequestError::AlreadySubscribed.into());
        }
        if self.subscriptions.len() >= REMEMBERED_SUBSCRIPTIONS_MAX {
            return Err(RequestError::TooManySubscriptions.into());
        }
        self.merge_progress();
        if let StartPosition::AfterEach(positions) | StartPosition::Since(positions, _) = &options.from {
            for (topic, &position) in positions {
                // A position this client reached itself is newer than the one in the options.
                if self.positions.position(topic).is_none() {
                    self.positions.advance(topic, position);
                }
            }
        }
        let is_delivered =
            |topic: &str| self.subscriptions.iter().any(|s| pattern::matches(&s.pattern, topic));
        let matching = self.positions.iter().filter(|(topic, _)| pattern::matches(pattern, topic));
        let positions: TopicPositions = matching
            .filter(|(topic, _)| !is_delivered(topic))
            .map(|(topic, position)| (topic.into(), position))
            .collect();
        let request = self.numbers.next();
        let (pattern, acknowledged) = (pattern.into(), false);
        self.subscriptions.push(Subscription { request, pattern, options, acknowledged });
        let index = self.subscriptions.len() - 1;
        let sent = self.send_subscription(index, &positions).and_then(|()| self.flush());
        if let Err(ClientError::Request(error)) = &sent
            && *error != RequestError::Ended
        {
            self.subscriptions.pop();
            return sent.map(|()| request);
        }
        self.retry_if_lost(sent).map(|()| request)
    }

    /// Changes the delivery of a subscription on this and every later connection; returns the request's number.
    ///
    /// # Errors
    /// As [`ReconnectingClient::subscribe`].
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<u32, ClientError> {
        let number = self.numbers.next();
        let sent = self.send(number, |client| client.update(pattern, delivery));
        if let Err(ClientError::Request(error)) = &sent
            && *error != RequestError::Ended
        {
            return sent.map(|()| number);
        }
        if let Some(found) = self.subscriptions.iter_mut().find(|s| *s.pattern == *pattern) {
            found.options.delivery = delivery;
        }
        self.retry_if_lost(sent).map(|()| number)
    }

    /// Ends a subscription; returns the request's number. Positions in topics that no other subscription matches are
    /// forgotten.
    ///
    /// # Errors
    /// As [`ReconnectingClient::subscribe`].
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        self.merge_progress();
        self.progress.clear();
        self.subscriptions.retain(|subscription| *subscription.pattern != *pattern);
        self.forget_unmatched();
        let number = self.numbers.next();
        let sent = self.send(number, |client| client.unsubscribe(pattern));
        self.retry_if_lost(sent).map(|()| number)
    }

    /// The next event, waiting up to `timeout` for it (`None`: without limit); `None` if none arrived in time. The timeout
    /// does not cut a connection attempt short, which may take up to 10 s.
    ///
    /// # Errors
    /// [`ClientError`] if the server rejects this client for good or broke the protocol, or if reconnecting is turned off.
    /// Every later call fails as well: make a new client once the cause is fixed.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<StreamEvent<'_>>, ClientError> {
        if !self.await_event(Deadline::after(timeout))? {
            return Ok(None);
        }
        if let Some(change) = self.pending_change.take() {
            return Ok(Some(match change {
                ConnectionChange::Disconnected { code, retry_in_ms, unacknowledged } => {
                    let reason = &self.disconnect_reason;
                    StreamEvent::Disconnected { reason, code, retry_in_ms, unacknowledged }
                }
                ConnectionChange::Reconnected => StreamEvent::Reconnected,
            }));
        }
        if let Some(event) = self.retries.pop_failed() {
            return Ok(Some(StreamEvent::Event(event)));
        }
        if self.progress.len() >= PROGRESS_MAX {
            self.merge_progress();
            self.progress.clear();
        }
        let ReconnectingClient {
            client,
            subscriptions,
            requests,
            retries,
            positions,
            progress,
            closing,
            addresses,
            ..
        } = self;
        let polled = match client {
            Some(client) => client.connection_mut().poll_event()?,
            None => None,
        };
        let Some(mut event) = polled else {
            debug_assert!(false, "await_event returned true, so there is a change or an event");
            return Ok(None);
        };
        let mut number_of = |request: u32| requests.remove(&request).unwrap_or(0);
        match &mut event {
            Event::Tick(Tick { topic_id, epoch, sequence, .. }) => {
                advance(progress, topic_id.0, Position { epoch: *epoch, sequence: sequence.0 });
            }
            // Announced as skipped: do not request it again.
            Event::Conflated { topic_id, epoch, to, .. } | Event::Gap { topic_id, epoch, to, .. } => {
                advance(progress, topic_id.0, Position { epoch: *epoch, sequence: *to - 1 });
            }
            Event::Recovered { topic, topic_id, epoch, sequence, recovered, .. } => {
                let now = Position { epoch: *epoch, sequence: *sequence };
                positions.handle_recovered(topic, topic_id.0 != 0, now, *recovered);
            }
            Event::Subscribed { request, .. } => {
                *request = number_of(*request);
                let found = subscriptions.iter_mut().find(|subscription| subscription.request == *request);
                if let Some(subscription) = found {
                    subscription.acknowledged = true;
                }
            }
            Event::Unsubscribed { request, .. } | Event::Published { request, .. } => {
                *request = number_of(*request);
                retries.handle_answer(*request);
            }
            Event::Error { request, .. } => {
                *request = number_of(*request);
                retries.handle_answer(*request);
                // The next connection would reject it again.
                subscriptions.retain(|subscription| subscription.request != *request);
            }
            Event::Nodes { addresses: named, .. } => addresses.set_others(named),
            Event::Closing { code, text, reconnect_after_ms } => {
                let (code, text, reconnect_after_ms) = (*code, (*text).to_owned(), *reconnect_after_ms);
                *closing = Closing { code, text, reconnect_after_ms };
            }
            _ => {}
        }
        Ok(Some(StreamEvent::Event(event)))
    }

    /// Sends everything queued and closes the connection, if there is one.
    ///
    /// # Errors
    /// [`ClientError::Io`] if the connection broke before.
    pub fn close(mut self) -> Result<(), ClientError> {
        while self.publish_waiting() {
            self.flush()?;
        }
        self.client.take().map_or(Ok(()), Client::close)
    }

    /// Waits for an event, connecting if necessary; returns whether there is one.
    fn await_event(&mut self, deadline: Deadline) -> Result<bool, ClientError> {
        loop {
            if self.pending_change.is_some() || self.retries.has_failed() {
                return Ok(true);
            }
            if self.failed {
                return Err(ClientError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let timeout = deadline.remaining();
            let wants_room = self.publish_waiting();
            if self.retries.has_failed() {
                continue;
            }
            let Some(client) = &mut self.client else {
                let delay = self.retry_at.remaining().unwrap_or_default();
                if delay.is_zero() {
                    self.connect_again()?;
                } else if timeout == Some(Duration::ZERO) {
                    return Ok(false);
                } else {
                    clock::sleep(timeout.map_or(delay, |timeout| timeout.min(delay)));
                }
                continue;
            };
            match await_event_or_room(client, wants_room, deadline) {
                Ok(None) => {}
                Ok(Some(true)) if !client.connection().is_at_end() => return Ok(true),
                Ok(Some(false)) => return Ok(false),
                Ok(Some(true)) => self.handle_lost(ClientError::Closed { code: 0, text: String::new() })?,
                Err(error) => self.handle_lost(error)?,
            }
        }
    }

    fn connect_again(&mut self) -> Result<(), ClientError> {
        match Client::connect_over(self.addresses.next(), &self.connect_options, self.tls.clone()) {
            Err(error) => {
                if matches!(error, ClientError::Tls { .. })
                    && let Ok(renewed) = self.addresses.first().read_tls(&self.connect_options)
                {
                    self.tls = renewed;
                }
                self.handle_lost(error)
            }
            Ok(mut client) => {
                client.set_write_timeout(self.write_timeout);
                self.backoff.handle_connected(clock::monotonic_ns());
                self.client = Some(client);
                self.retries.handle_connected();
                let sent = self.resubscribe();
                self.retry_if_lost(sent)?;
                if self.client.is_some() {
                    self.pending_change = Some(ConnectionChange::Reconnected);
                }
                Ok(())
            }
        }
    }

    /// Sends all subscriptions on a new connection. Those that receive every tick come first, so that a topic is resumed
    /// even if a conflating subscription matches it too.
    fn resubscribe(&mut self) -> Result<(), ClientError> {
        self.forget_unmatched();
        let mut order: Vec<usize> = (0..self.subscriptions.len()).collect();
        order.sort_by_key(|&index| self.subscriptions[index].conflates());
        let mut positions: Vec<TopicPositions> = vec![Vec::new(); order.len()];
        for (topic, position) in self.positions.iter() {
            let matches = |index: &&usize| pattern::matches(&self.subscriptions[**index].pattern, topic);
            if let Some(&index) = order.iter().find(matches) {
                positions[index].push((topic.into(), position));
            }
        }
        for index in order {
            self.send_subscription(index, &std::mem::take(&mut positions[index]))?;
        }
        self.flush()
    }

    /// Sends one subscription if there is a connection.
    fn send_subscription(
        &mut self,
        index: usize,
        positions: &[(Box<str>, Position)],
    ) -> Result<(), ClientError> {
        let Some(client) = &mut self.client else { return Ok(()) };
        let subscription = &self.subscriptions[index];
        // Beyond its output bound the connection rejects requests, so flush between subscriptions.
        client.flush()?;
        let Subscription { request: number, pattern, options, acknowledged } = subscription;
        let connection = client.connection_mut();
        let with = |from| SubscribeOptions { delivery: options.delivery, from };
        let expect_snapshots = |connection: &mut Connection, reason| {
            for (topic, position) in positions {
                connection.expect_snapshot(topic, *position, reason);
            }
        };
        let request =
            if positions.is_empty() && (!acknowledged || matches!(options.from, StartPosition::After(_))) {
                let from = subscription.first_start(connection.server_epoch());
                connection.subscribe_with(pattern, &with(from))?
            } else if subscription.conflates() || positions.len() > RESUME_POSITIONS_MAX {
                let conflates = subscription.conflates();
                let reason = if conflates { SkipReason::Conflated } else { SkipReason::Gap };
                expect_snapshots(connection, reason);
                connection.subscribe_with(pattern, &with(StartPosition::Latest))?
            } else {
                for (topic, position) in positions {
                    connection.resume(topic, *position)?;
                }
                let from = subscription.resumption(connection.grants_since());
                match connection.subscribe_with(pattern, &with(from)) {
                    Err(RequestError::TooLarge { .. }) => {
                        expect_snapshots(connection, SkipReason::Gap);
                        connection.subscribe_with(pattern, &with(StartPosition::Latest))?
                    }
                    sent => sent?,
                }
            };
        self.requests.insert(request, *number);
        Ok(())
    }

    /// Sends a request if there is a connection, under the number that the caller knows.
    fn send(
        &mut self,
        number: u32,
        request: impl FnOnce(&mut Client) -> Result<u32, ClientError>,
    ) -> Result<(), ClientError> {
        if let Some(client) = &mut self.client {
            self.requests.insert(request(client)?, number);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        self.client.as_mut().map_or(Ok(()), Client::flush)
    }

    /// Turns a lost connection into an event and schedules the next attempt. After a failed write, the events that the server
    /// had sent come first; the call that finds no more handles the loss.
    fn retry_if_lost(&mut self, result: Result<(), ClientError>) -> Result<(), ClientError> {
        match result {
            Err(ClientError::Io(_)) if self.client.as_ref().is_some_and(Client::has_write_failure) => Ok(()),
            Err(ClientError::Request(RequestError::Ended)) => Ok(()),
            Err(error) => self.handle_lost(error),
            Ok(()) => Ok(()),
        }
    }

    /// Handles the loss of the connection, or a failed attempt to make one.
    fn handle_lost(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.merge_progress();
        self.progress.clear();
        let unacknowledged = self.take_unacknowledged();
        self.client = None;
        let Closing { code, text, reconnect_after_ms } = std::mem::take(&mut self.closing);
        let error = if code == 0 { error } else { ClientError::Closed { code, text } };
        if !self.reconnect || !error.is_retryable() {
            self.failed = true;
            return Err(error);
        }
        let code = if let ClientError::Closed { code, .. } = error { code } else { 0 };
        let delay_ms_min = delay_ms_min(code, reconnect_after_ms);
        let retry_in_ms = self.backoff.handle_disconnected(clock::monotonic_ns(), delay_ms_min);
        self.retry_at = Deadline::after(Some(Duration::from_millis(retry_in_ms)));
        self.disconnect_reason = error.to_string();
        self.pending_change = Some(ConnectionChange::Disconnected { code, retry_in_ms, unacknowledged });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
