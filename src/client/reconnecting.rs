//! A client that comes back by itself and goes on where it was.

mod publish;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    time::Duration,
};

use crate::{
    Address, Backoff, Client, ClientError, Event, Positions, REMEMBERED_SUBSCRIPTIONS_MAX, RequestError,
    SessionOptions, SubscribeOptions, Tick,
    blocking::{deadline_ns, left_ms},
    clock,
    reconnect::{is_worth_another_try, pause_ms_min},
    topics::{IdHasher, Skip},
};
use tickcast_proto::{
    limits::RESUME_POSITIONS_MAX,
    pattern,
    subscription::{Delivery, From, Policy, Position},
};

/// Whether and when to connect again.
#[derive(Clone, Debug)]
pub struct ReconnectOptions {
    /// Connect again at all. Without it the first lost connection is the end.
    pub reconnect: bool,
    /// The pauses between attempts.
    pub backoff: Backoff,
}

impl Default for ReconnectOptions {
    fn default() -> ReconnectOptions {
        // The standard library keys every hasher with the system's randomness.
        ReconnectOptions {
            reconnect: true,
            backoff: Backoff::new(RandomState::new().build_hasher().finish()),
        }
    }
}

/// What happened. Borrows from the client until the next is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent<'a> {
    /// The server said something. Never [`Event::Closed`]: [`StreamEvent::Disconnected`] stands for it.
    Event(Event<'a>),
    /// There is no connection, or an attempt to make one failed. What comes after it is resumed.
    Disconnected {
        /// Why, for a person.
        reason: &'a str,
        /// The server's close code; 0: none.
        code: u16,
        /// Milliseconds until the next attempt.
        retry_in_ms: u64,
    },
    /// There is a connection again, and every subscription was asked for.
    Reconnected,
}

/// A [`Client`] that connects again when the connection is lost, subscribes anew and resumes.
///
/// How a subscription goes on depends on what it is:
///
/// - one that gets every tick (no rate, no policy but the topic's own, `drop` or `disconnect`) names the last tick it
///   has of each topic: what was missed follows, or an [`Event::Recovered`] says that it could not be had. A topic
///   of which it has no tick yet begins with the first one that the server keeps, so that none is lost in silence.
/// - one that conflates, by policy or by a rate, begins with the newest ticks: of those between it asked to have the
///   newest only, and the history would be carried over the wire to be left out at its end. What the newest stand
///   for is told as [`Event::Conflated`]. With a place in its options ([`From::Position`], [`From::Positions`],
///   [`From::Resume`]) it goes on as the ones that get every tick.
/// - one with more than [`RESUME_POSITIONS_MAX`] places, or in JSON with more than fit a message, begins with the
///   newest ticks too, and every place is told as not recovered.
///
/// A subscription that was never acknowledged begins as its options say. Ticks that come twice break the protocol and
/// are an error, not dropped. Patterns in the path of the address are the server's to repeat; they begin anew.
///
/// Memory: a place for each topic ([`Positions`]), and the subscriptions. One thread at a time.
#[derive(Debug)]
pub struct ReconnectingClient {
    address: Address,
    session_options: SessionOptions,
    reconnect: bool,
    backoff: Backoff,
    client: Option<Client>,
    /// When to connect again, by the monotonic clock.
    retry_at_ns: u64,
    /// An error was final.
    is_over: bool,
    subscriptions: Vec<Subscription>,
    /// This connection's requests that wait for an answer, by number: what the user knows them by.
    requests: HashMap<u32, u32>,
    request_last: u32,
    /// Places but those of this connection.
    positions: Positions,
    /// Places of this connection, by the topics' numbers.
    current: HashMap<u32, Position, BuildHasherDefault<IdHasher>>,
    /// The server's last words.
    closing: Words,
    told: Option<Told>,
    reason: String,
}

#[derive(Debug)]
struct Subscription {
    request: u32,
    pattern: Box<str>,
    options: SubscribeOptions,
    /// It was acknowledged once.
    begun: bool,
}

impl Subscription {
    /// It wants the newest rather than everything, and did not ask for a place.
    fn conflates(&self) -> bool {
        let Delivery { policy, interval_us } = self.options.delivery;
        (policy == Some(Policy::Conflate) || interval_us != 0)
            && !matches!(self.options.from, From::Position(_) | From::Positions(..) | From::Resume)
    }
}

#[derive(Debug, Default)]
struct Words {
    code: u16,
    text: String,
    reconnect_after_ms: u32,
}

#[derive(Clone, Copy, Debug)]
enum Told {
    Disconnected { code: u16, retry_in_ms: u64 },
    Reconnected,
}

type Places = Vec<(Box<str>, Position)>;

impl ReconnectingClient {
    /// Connects to an [`Address`], as [`Client::connect`]: this first time an error is an error.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect(server: &str) -> Result<ReconnectingClient, ClientError> {
        let address = Address::parse(server)?;
        let options = address.session_options();
        ReconnectingClient::connect_with(&address, &options, ReconnectOptions::default())
    }

    /// [`ReconnectingClient::connect`] with all options.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_with(
        address: &Address,
        session_options: &SessionOptions,
        options: ReconnectOptions,
    ) -> Result<ReconnectingClient, ClientError> {
        let client = Client::connect_with(address, session_options)?;
        let ReconnectOptions { reconnect, mut backoff } = options;
        backoff.handle_connected(clock::monotonic_ns());
        Ok(ReconnectingClient {
            address: address.clone(),
            session_options: session_options.clone(),
            reconnect,
            backoff,
            client: Some(client),
            retry_at_ns: 0,
            is_over: false,
            subscriptions: Vec::new(),
            requests: HashMap::new(),
            request_last: 0,
            positions: Positions::new(),
            current: HashMap::default(),
            closing: Words::default(),
            told: None,
            reason: String::new(),
        })
    }

    /// With the places of an earlier life: subscriptions that take their topics resume after them. To be called
    /// before the first subscription.
    pub fn with_positions(mut self, positions: Positions) -> ReconnectingClient {
        self.positions = positions;
        self
    }

    /// The places to resume after: of all events that were given out, and of no other. Costs a look-up for each
    /// topic of the connection.
    pub fn positions(&mut self) -> &Positions {
        self.merge();
        &self.positions
    }

    /// The life of the server connected to; `None` without a connection, and for a raw session.
    pub fn server_epoch(&self) -> Option<u64> {
        self.client.as_ref()?.session().server_epoch()
    }

    /// Asks for a pattern's ticks, now and on every connection to come. [`Event::Subscribed`] names the number
    /// returned, each time anew.
    ///
    /// # Errors
    /// [`ClientError::Request`] for what no server could take, or when there are too many. A connection that is lost
    /// is no error: the subscription is remembered.
    pub fn subscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        self.subscribe_with(pattern, SubscribeOptions::default())
    }

    /// [`ReconnectingClient::subscribe`] with a policy, a rate and a place to begin. Where positions are known of
    /// topics that no other subscription takes ([`ReconnectingClient::with_positions`]), it resumes after them.
    ///
    /// # Errors
    /// As [`ReconnectingClient::subscribe`].
    pub fn subscribe_with(&mut self, pattern: &str, options: SubscribeOptions) -> Result<u32, ClientError> {
        if self.subscriptions.iter().any(|subscription| *subscription.pattern == *pattern) {
            return Err(RequestError::AlreadySubscribed.into());
        }
        if self.subscriptions.len() >= REMEMBERED_SUBSCRIPTIONS_MAX {
            return Err(RequestError::TooManySubscriptions.into());
        }
        self.merge();
        if let From::Positions(epoch, sequences) = &options.from {
            for (topic, &sequence) in sequences {
                // What it has received since is newer than what its user once had.
                if self.positions.position(topic).is_none() {
                    self.positions.advance(topic, Position { epoch: *epoch, sequence });
                }
            }
        }
        let is_taken = |topic: &str| self.subscriptions.iter().any(|s| pattern::matches(&s.pattern, topic));
        let matching = self.positions.iter().filter(|(topic, _)| pattern::matches(pattern, topic));
        let places: Places = matching
            .filter(|(topic, _)| !is_taken(topic))
            .map(|(topic, position)| (topic.into(), position))
            .collect();
        let request = self.next_request();
        self.subscriptions.push(Subscription { request, pattern: pattern.into(), options, begun: false });
        let index = self.subscriptions.len() - 1;
        let sent = self.ask(index, &places).and_then(|()| self.flush());
        if let Err(error @ ClientError::Request(_)) = sent {
            self.subscriptions.pop();
            return Err(error);
        }
        self.unless_lost(sent).map(|()| request)
    }

    /// Changes how a subscription is delivered, now and on every connection to come.
    ///
    /// # Errors
    /// As [`ReconnectingClient::subscribe`].
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<u32, ClientError> {
        let own = self.next_request();
        let sent = match &mut self.client {
            None => Ok(()),
            Some(client) => client.update(pattern, delivery).map(|request| {
                self.requests.insert(request, own);
            }),
        };
        if let Err(ClientError::Request(_)) = sent {
            return sent.map(|()| own);
        }
        if let Some(found) = self.subscriptions.iter_mut().find(|s| *s.pattern == *pattern) {
            found.options.delivery = delivery;
        }
        self.unless_lost(sent).map(|()| own)
    }

    /// Ends a subscription. The places in topics that no other takes are forgotten.
    ///
    /// # Errors
    /// As [`ReconnectingClient::subscribe`].
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<u32, ClientError> {
        self.merge();
        self.current.clear();
        self.subscriptions.retain(|subscription| *subscription.pattern != *pattern);
        self.forget_others();
        let own = self.next_request();
        let sent = match &mut self.client {
            None => Ok(()),
            Some(client) => client.unsubscribe(pattern).map(|request| {
                self.requests.insert(request, own);
            }),
        };
        self.unless_lost(sent).map(|()| own)
    }

    /// The next event, waiting up to `timeout` for it (`None`: for ever). `None` when none came in time. An attempt
    /// to connect is not cut short by it: that may take up to 10 s.
    ///
    /// # Errors
    /// [`ClientError`] when the server does not want this client back, or broke the protocol, or reconnecting is
    /// turned off: from then on always.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<StreamEvent<'_>>, ClientError> {
        if !self.await_event(timeout.map(deadline_ns))? {
            return Ok(None);
        }
        if let Some(told) = self.told.take() {
            return Ok(Some(match told {
                Told::Disconnected { code, retry_in_ms } => {
                    StreamEvent::Disconnected { reason: &self.reason, code, retry_in_ms }
                }
                Told::Reconnected => StreamEvent::Reconnected,
            }));
        }
        let ReconnectingClient { client, subscriptions, requests, positions, current, closing, .. } = self;
        let Some(client) = client else { return Ok(None) };
        let Some(mut event) = client.session_mut().poll_event()? else { return Ok(None) };
        let mut own = |request: u32| requests.remove(&request).unwrap_or(0);
        match &mut event {
            Event::Tick(Tick { topic_id, epoch, sequence, .. }) => {
                advance(current, topic_id.0, Position { epoch: *epoch, sequence: sequence.0 });
            }
            // Told as left out: not to be asked for again.
            Event::Conflated { topic_id, epoch, to, .. } | Event::Gap { topic_id, epoch, to, .. } => {
                advance(current, topic_id.0, Position { epoch: *epoch, sequence: *to - 1 });
            }
            Event::Recovered { topic, topic_id, epoch, sequence, recovered, .. } => {
                let now = Position { epoch: *epoch, sequence: *sequence };
                positions.recovered(topic, topic_id.0 != 0, now, *recovered);
            }
            Event::Subscribed { request, .. } => {
                *request = own(*request);
                let found = subscriptions.iter_mut().find(|subscription| subscription.request == *request);
                if let Some(subscription) = found {
                    subscription.begun = true;
                }
            }
            Event::Unsubscribed { request, .. } => *request = own(*request),
            Event::Error { request, .. } => {
                *request = own(*request);
                // Refused: to ask again on the next connection would be refused again.
                subscriptions.retain(|subscription| subscription.request != *request);
            }
            Event::Closing { code, text, reconnect_after_ms } => {
                let (code, text, reconnect_after_ms) = (*code, (*text).to_owned(), *reconnect_after_ms);
                *closing = Words { code, text, reconnect_after_ms };
            }
            _ => {}
        }
        Ok(Some(StreamEvent::Event(event)))
    }

    /// Closes politely where there is a connection.
    ///
    /// # Errors
    /// [`ClientError::Io`] when the connection broke before.
    pub fn close(mut self) -> Result<(), ClientError> {
        self.client.take().map_or(Ok(()), Client::close)
    }

    /// Waits for an event, connecting where need be; whether there is one.
    fn await_event(&mut self, deadline_ns: Option<u64>) -> Result<bool, ClientError> {
        loop {
            if self.told.is_some() {
                return Ok(true);
            }
            if self.is_over {
                return Err(ClientError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let timeout = deadline_ns.map(|deadline_ns| Duration::from_millis(left_ms(deadline_ns)));
            let Some(client) = &mut self.client else {
                let now_ns = clock::monotonic_ns();
                if now_ns >= self.retry_at_ns {
                    self.connect_again()?;
                    continue;
                }
                if deadline_ns.is_some_and(|deadline_ns| now_ns >= deadline_ns) {
                    return Ok(false);
                }
                clock::sleep_ns(self.retry_at_ns.min(deadline_ns.unwrap_or(u64::MAX)) - now_ns);
                continue;
            };
            match client.await_event(timeout) {
                Ok(true) if !client.session().is_at_end() => return Ok(true),
                Ok(false) => return Ok(false),
                Ok(true) => self.lose(ClientError::Closed { code: 0, text: String::new() })?,
                Err(error) => self.lose(error)?,
            }
        }
    }

    fn connect_again(&mut self) -> Result<(), ClientError> {
        match Client::connect_with(&self.address, &self.session_options) {
            Err(error) => self.lose(error),
            Ok(client) => {
                self.backoff.handle_connected(clock::monotonic_ns());
                self.client = Some(client);
                let asked = self.ask_all();
                let is_asked = asked.is_ok();
                self.unless_lost(asked)?;
                if is_asked {
                    self.told = Some(Told::Reconnected);
                }
                Ok(())
            }
        }
    }

    /// Subscribes to everything anew: those that get every tick first, so that a topic which a conflating one takes
    /// as well is resumed.
    fn ask_all(&mut self) -> Result<(), ClientError> {
        self.forget_others();
        let mut order: Vec<usize> = (0..self.subscriptions.len()).collect();
        order.sort_by_key(|&index| self.subscriptions[index].conflates());
        let mut places: Vec<Places> = vec![Vec::new(); order.len()];
        for (topic, position) in self.positions.iter() {
            let takes = |index: &&usize| pattern::matches(&self.subscriptions[**index].pattern, topic);
            if let Some(&index) = order.iter().find(takes) {
                places[index].push((topic.into(), position));
            }
        }
        for index in order {
            self.ask(index, &std::mem::take(&mut places[index]))?;
        }
        self.flush()
    }

    /// Queues one subscription on the connection there is.
    fn ask(&mut self, index: usize, places: &[(Box<str>, Position)]) -> Result<(), ClientError> {
        let (Some(client), Some(subscription)) = (&mut self.client, self.subscriptions.get(index)) else {
            return Ok(());
        };
        // A request that waits would be refused past the bound: many subscriptions go out in parts.
        client.flush()?;
        let Subscription { request: own, pattern, options, begun } = subscription;
        let session = client.session_mut();
        let with = |from| SubscribeOptions { delivery: options.delivery, from };
        let request = if places.is_empty() && (!begun || matches!(options.from, From::Position(_))) {
            let from = match (&options.from, session.server_epoch()) {
                // Everything kept, whichever life it is of.
                (From::Position(Position { sequence: 0, .. }), Some(epoch)) => {
                    From::Position(Position { epoch, sequence: 0 })
                }
                (from, _) => from.clone(),
            };
            session.subscribe_with(pattern, &with(from))?
        } else if subscription.conflates() || places.len() > RESUME_POSITIONS_MAX {
            let skip = if subscription.conflates() { Skip::Conflated } else { Skip::Gap };
            places.iter().for_each(|(topic, position)| session.expect_snapshot(topic, *position, skip));
            session.subscribe_with(pattern, &with(From::Latest))?
        } else {
            for (topic, position) in places {
                session.resume(topic, *position)?;
            }
            match session.subscribe_with(pattern, &with(From::Resume)) {
                Err(RequestError::TooLarge { .. }) => {
                    let mut expect = |(topic, position): &(Box<str>, Position)| {
                        session.expect_snapshot(topic, *position, Skip::Gap);
                    };
                    places.iter().for_each(&mut expect);
                    session.subscribe_with(pattern, &with(From::Latest))?
                }
                sent => sent?,
            }
        };
        self.requests.insert(request, *own);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        self.client.as_mut().map_or(Ok(()), Client::flush)
    }

    /// A lost connection is an event, and no error.
    fn unless_lost(&mut self, result: Result<(), ClientError>) -> Result<(), ClientError> {
        match result {
            Err(error) => self.lose(error),
            Ok(()) => Ok(()),
        }
    }

    /// Takes note that the connection is gone, or that there is none.
    fn lose(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.merge();
        self.current.clear();
        self.requests.clear();
        self.client = None;
        let Words { code, text, reconnect_after_ms } = std::mem::take(&mut self.closing);
        let error = if code == 0 { error } else { ClientError::Closed { code, text } };
        if !self.reconnect || !is_worth_another_try(&error) {
            self.is_over = true;
            return Err(error);
        }
        let code = if let ClientError::Closed { code, .. } = error { code } else { 0 };
        let now_ns = clock::monotonic_ns();
        let retry_in_ms = self.backoff.handle_lost(now_ns, pause_ms_min(code, reconnect_after_ms));
        self.retry_at_ns = now_ns + retry_in_ms * 1_000_000;
        self.reason = error.to_string();
        self.told = Some(Told::Disconnected { code, retry_in_ms });
        Ok(())
    }

    /// Takes this connection's places to the others.
    fn merge(&mut self) {
        let Some(client) = &self.client else { return };
        for (id, topic) in client.session().topics() {
            if let Some(&position) = self.current.get(&id.0) {
                self.positions.advance(&topic.name, position);
            }
        }
    }

    /// Only what a subscription takes is worth its memory.
    fn forget_others(&mut self) {
        let subscriptions = &self.subscriptions;
        self.positions.retain(|topic| subscriptions.iter().any(|s| pattern::matches(&s.pattern, topic)));
    }

    fn next_request(&mut self) -> u32 {
        self.request_last = self.request_last.checked_add(1).unwrap_or(1);
        self.request_last
    }
}

#[inline]
fn advance(current: &mut HashMap<u32, Position, BuildHasherDefault<IdHasher>>, topic_id: u32, to: Position) {
    let place = current.entry(topic_id).or_insert(to);
    if place.epoch != to.epoch || place.sequence < to.sequence {
        *place = to;
    }
}

#[cfg(test)]
mod tests;
