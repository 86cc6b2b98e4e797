//! The protocol of a client that reconnects, without a socket, a clock or a random source.

mod actions;
mod answers;
mod clock_estimate;
mod delivery;
mod event;
mod exchange;
mod jitter;
mod json;
mod lost;
mod message;
mod native;
mod publishes;
mod subscriptions;
mod timers;
mod tokens;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    actions::{Action, Message, TokenPurpose},
    event::{
        Change, ClientEvent, ClientState, PublishFailure, PublishId, PublishOutcome, PublishedAt,
        RecoveryFailure, SharedTick, SkippedTicks, SourceState, SubscriptionEvent, SubscriptionState,
    },
    jitter::Random,
};

use self::{
    actions::Outbox,
    exchange::Exchange,
    jitter::Jitter,
    publishes::Publishes,
    subscriptions::{Subscriptions, TopicPositions},
    timers::{Timer, Timers},
    tokens::Tokens,
};
use crate::{
    CLIENT_NAME_BYTES_MAX, ClientToken, OFFLINE_QUEUE_MAX, Positions, PublishRequest, RequestError,
    SubscribeOptions, addresses::Addresses,
};
use tickcast_proto::{
    WireFormat,
    codec::Codec,
    features::Features,
    limits::{MESSAGE_ID_BYTES_MAX, TOPIC_BYTES_MAX},
    subscription::{Delivery, StartPosition},
};

/// Time from the start of an attempt to the welcome, in nanoseconds.
const WELCOME_TIMEOUT_NS: u64 = 10_000_000_000;
/// Time between two pings of the client. A connection on which nothing arrived since the last one is dead.
const PING_INTERVAL_NS: u64 = 10_000_000_000;
/// A timer later than this means that the machine was asleep: messages may still wait to be read.
const ASLEEP_NS: u64 = 5_000_000_000;
/// Time from a change of a position to saving it.
const SAVE_DELAY_NS: u64 = 1_000_000_000;

/// What a session can do that not every SDK does.
const EXTENSIONS: Features = Features::NODES.union(Features::PREVIOUS);

/// Close codes that the session gives or handles itself.
mod close_code {
    pub(super) const NORMAL: u16 = 1000;
    pub(super) const PROTOCOL: u16 = 1002;
    /// Nobody sent a code: the connection was cut, or could not be made.
    pub(super) const CUT: u16 = 1006;
    /// The client needs another token.
    pub(super) const TOKEN_EXPIRED: u16 = 3005;
    /// To the server, after bytes that violate the protocol.
    pub(super) const MALFORMED: u16 = 4002;
    /// To the server, after a handshake without a welcome in time.
    pub(super) const NO_WELCOME: u16 = 4008;
    /// To the server, after a ping without any answer.
    pub(super) const SILENT: u16 = 4011;
}

/// Options of a [`Session`].
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where to connect: what [`Action::Dial`] repeats. If it has a form of [`Address::parse`](crate::Address::parse), the session rotates
    /// through this URL and the nodes that the server names, keeping this URL's path. Nodes of another transport are ignored.
    pub url: Arc<str>,
    /// What to ask a server for beyond what every SDK does, of [`Features::NODES`] and [`Features::PREVIOUS`]: both by default.
    pub extensions: Features,
    /// The encoding: JSON, or native frames over a WebSocket or TCP. Raw WebSockets have no session: they count as JSON.
    pub encoding: WireFormat,
    /// Name of the client software, in the server's log and admin pages. Not sent if longer than [`CLIENT_NAME_BYTES_MAX`].
    pub name: Box<str>,
    /// The client's identity over native TCP; empty: none. Over a WebSocket the driver gives it in the handshake.
    pub client: Box<str>,
    /// A token that does not change by itself.
    pub token: Option<ClientToken>,
    /// Whether the application gives tokens when asked.
    pub asks_token: bool,
    /// Positions that an earlier client saved: subscriptions that match their topics resume there.
    pub positions: Positions,
    /// Whether positions are saved.
    pub saves_positions: bool,
    /// Publishes that wait for a connection or for answers to others, and have not been sent, with 256 KiB of payloads at most.
    pub offline_queue_max: usize,
}

impl SessionOptions {
    /// The default options for a URL and an encoding.
    pub fn new(url: &str, encoding: WireFormat) -> SessionOptions {
        SessionOptions {
            url: url.into(),
            extensions: EXTENSIONS,
            encoding,
            name: concat!("tickcast-client/", env!("CARGO_PKG_VERSION")).into(),
            client: "".into(),
            token: None,
            asks_token: false,
            positions: Positions::new(),
            saves_positions: false,
            offline_queue_max: OFFLINE_QUEUE_MAX,
        }
    }

    fn codec(&self) -> Codec {
        match self.encoding.codec {
            Codec::Native | Codec::NativeLinked => Codec::Native,
            _ => Codec::Json,
        }
    }
}

/// A client that reconnects and resumes, as a sans-IO state machine: requests, messages and the time in, actions and events out.
///
/// ```text
///   connect, subscribe, publish, ...             events
///                 |                                 ^
///                 v                                 |
///           +-------------------------------------------+
///           |                  Session                  |
///           +-------------------------------------------+
///                 |                                 ^
///                 v                                 |
///   poll_action() -> Dial, Send, ...     handle_open, handle_message, handle_closed,
///   poll_timeout() -> deadline           handle_token, handle_timeout
/// ```
///
/// After each call, the driver takes all actions and events, and arms one timer. `now_ns` is of a monotonic clock, `wall_ns` since
/// 1970, both in nanoseconds. What it does is fixed by `tests/transcripts`, which the tests of all SDKs run.
///
/// Memory: the subscriptions, some 300 bytes for each topic of the connection, 90 for each position, and what one message causes.
pub struct Session {
    options: SessionOptions,
    random: Random,
    outbox: Outbox,
    timers: Timers,
    jitter: Jitter,
    tokens: Tokens,
    state: ClientState,
    /// The connection, from the dial on.
    exchange: Option<Exchange>,
    /// The addresses to dial in turn, from the first dial on; `None`: only the URL is known.
    addresses: Option<Addresses>,
    subscriptions: Subscriptions,
    positions: Positions,
    publishes: Publishes,
    /// Whether an attempt waits for the application's token.
    is_waiting_for_token: bool,
    /// Whether a position has changed since [`Timer::Save`] was set or run.
    has_moved: bool,
    /// Whether positions have changed since they were saved. There is a timer then.
    is_unsaved: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its query may have a token.
        let url = self.options.url.split('?').next();
        f.debug_struct("Session").field("url", &url).field("state", &self.state).finish()
    }
}

impl Session {
    /// A disconnected session. `random` is for the delays.
    pub fn new(mut options: SessionOptions, random: Random) -> Session {
        if options.name.len() > CLIENT_NAME_BYTES_MAX {
            options.name = "".into();
        }
        Session {
            random,
            outbox: Outbox::default(),
            timers: Timers::default(),
            jitter: Jitter::default(),
            tokens: Tokens::new(options.token.clone(), options.asks_token),
            state: ClientState::Disconnected,
            exchange: None,
            addresses: None,
            subscriptions: Subscriptions::default(),
            positions: std::mem::take(&mut options.positions),
            publishes: Publishes::new(options.offline_queue_max),
            is_waiting_for_token: false,
            has_moved: false,
            is_unsaved: false,
            options,
        }
    }

    /// The client's state.
    pub fn state(&self) -> ClientState {
        self.state
    }

    /// The state of a pattern's subscription.
    pub fn subscription_state(&self, pattern: &str) -> SubscriptionState {
        self.subscriptions.named(pattern).map_or(SubscriptionState::Unsubscribed, |record| record.state)
    }

    /// The position of each topic, as of the events so far.
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// The shortest of the last round trips on this connection, in nanoseconds; `None` before the first.
    pub fn round_trip_ns(&self) -> Option<u64> {
        self.exchange.as_ref()?.clock.round_trip_ns()
    }

    /// This machine's clock minus the server's, in nanoseconds; `None` if it is not known. Half of a round trip is its error.
    pub fn clock_offset_ns(&self) -> Option<i64> {
        self.exchange.as_ref()?.clock.offset_ns()
    }

    /// The number of publishes without an answer.
    pub fn publishes_unanswered(&self) -> usize {
        self.publishes.len()
    }

    /// Starts to connect, and keeps trying. Does nothing unless disconnected.
    pub fn connect(&mut self, now_ns: u64) {
        if self.state == ClientState::Disconnected {
            self.jitter.reset();
            self.set_state(ClientState::Connecting, 0, &"".into(), None);
            self.dial(now_ns);
        }
    }

    /// Closes the connection and makes no further attempts.
    pub fn disconnect(&mut self, now_ns: u64) {
        if self.state != ClientState::Disconnected {
            if self.exchange.is_some() {
                self.outbox.act(Action::HangUp { code: close_code::NORMAL });
            }
            self.handle_lost(close_code::NORMAL, "disconnected by the application", true, now_ns);
        }
    }

    /// Subscribes to a pattern on this and every later connection. It resumes from the known positions of topics that no other
    /// subscription delivers, also those in its options.
    ///
    /// # Errors
    /// [`RequestError`] if the pattern is too long or has a subscription already, if there are too many, or if it starts at a moment
    /// and the server does not know those. If that is found out later, the subscription ends with code 100.
    pub fn subscribe(&mut self, pattern: &str, options: SubscribeOptions) -> Result<(), RequestError> {
        check_name(pattern)?;
        self.check_room()?;
        if matches!(options.from, StartPosition::Since(..))
            && self.state == ClientState::Connected
            && !self.grants(Features::SINCE)
        {
            return Err(RequestError::SinceNotGranted);
        }
        if let StartPosition::AfterEach(positions) | StartPosition::Since(positions, _) = &options.from
            && self.subscriptions.id(pattern).is_none()
        {
            for (topic, &position) in positions {
                // A position that this client has reached itself is newer.
                if self.positions.position(topic).is_none() {
                    self.positions.advance(topic, position);
                }
            }
        }
        let id = self.subscriptions.add(pattern, options)?;
        self.set_subscription(id, SubscriptionState::Subscribing, 0, &"".into(), None);
        if self.state == ClientState::Connected {
            let positions = self.subscriptions.positions_of(pattern, &self.positions);
            self.send_subscription(id, &positions);
        }
        Ok(())
    }

    /// Ends a subscription. Positions in topics that no other subscription matches are forgotten.
    ///
    /// # Errors
    /// [`RequestError`] if the pattern has none.
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<(), RequestError> {
        let record = self.subscriptions.named(pattern)?;
        let (id, is_sent, pattern) = (record.id, record.is_sent, record.pattern.clone());
        self.check_room()?;
        self.timers.cancel(&Timer::Subscribe(pattern.clone()));
        if let Some(exchange) = self.exchange.as_mut().filter(|_| is_sent) {
            exchange.unsubscribe(&pattern, &mut self.outbox);
        }
        self.end_subscription(id, 0, "");
        Ok(())
    }

    /// Replaces policy and rate of a subscription, on the open connection too. If the server refuses them, an event says so, and
    /// those before apply again.
    ///
    /// # Errors
    /// [`RequestError`] if the pattern has none.
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<(), RequestError> {
        let record = self.subscriptions.named(pattern)?;
        self.check_room()?;
        if let Some(exchange) = self.exchange.as_mut().filter(|_| record.is_sent) {
            exchange.update(record, delivery, &mut self.outbox);
        }
        let id = record.id;
        if let Some(record) = self.subscriptions.get_mut(id) {
            record.delivery = delivery;
        }
        Ok(())
    }

    /// Policy and rate of a subscription.
    ///
    /// # Errors
    /// [`RequestError`] if the pattern has none.
    pub fn delivery(&self, pattern: &str) -> Result<Delivery, RequestError> {
        Ok(self.subscriptions.named(pattern)?.delivery)
    }

    /// Publishes a tick, at once or on the next connection. While [`PUBLISHES_UNACKNOWLEDGED_MAX`](crate::PUBLISHES_UNACKNOWLEDGED_MAX) have no answer, it waits like one
    /// without a connection, within the same bounds, and follows as answers arrive. Exactly one event follows, [`ClientEvent::Published`] or
    /// [`ClientEvent::PublishFailed`], at the latest after `timeout`, and at once if it cannot be sent. With a message id, a publish whose
    /// answer was lost is sent again on the next connection to the same server, within [`RETRIED_AGE_MS_MAX`](crate::RETRIED_AGE_MS_MAX): the server publishes it
    /// once. Of such publishes, [`RETRIED_BYTES_MAX`](crate::RETRIED_BYTES_MAX) are kept, besides those of `offline_queue_max`. If the server has
    /// not granted `message_ids`, the publish fails with code 100.
    ///
    /// # Errors
    /// [`RequestError::NameLength`] if the topic is empty or too long; [`RequestError::MessageIdLength`] if the message id is too long.
    pub fn publish(
        &mut self,
        publish: PublishRequest<'_>,
        timeout: Duration,
        now_ns: u64,
    ) -> Result<PublishId, RequestError> {
        check_name(publish.topic)?;
        if publish.message_id.len() > MESSAGE_ID_BYTES_MAX {
            return Err(RequestError::MessageIdLength(publish.message_id.len()));
        }
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let Session { publishes, timers, outbox, .. } = self;
        let id = publishes.submit(now_ns.saturating_add(timeout_ns), timers);
        match (self.state, &mut self.exchange) {
            (ClientState::Disconnected, _) => {
                let reason = "the client is disconnected".into();
                publishes::fail(id, PublishOutcome::NotSent, 0, reason, timers, outbox);
            }
            (ClientState::Connected, Some(exchange)) => {
                publishes.send(id, publish, now_ns, exchange, timers, outbox);
            }
            _ => publishes.wait(id, publish, timers, outbox),
        }
        Ok(id)
    }

    /// Replaces the token, on the open connection too.
    pub fn set_token(&mut self, token: ClientToken) {
        self.tokens.replace(token);
        self.refresh_token();
    }

    /// The next action; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.outbox.actions.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.outbox.events.pop_front()
    }

    /// When to call [`Session::handle_timeout`], on the monotonic clock; `None`: not until something else happens.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.timers.next_ns()
    }

    /// The server has accepted the WebSocket, with this subprotocol; or the TCP connection is open, without one.
    pub fn handle_open(&mut self, protocol: Option<&str>, now_ns: u64) {
        let Some(exchange) = &mut self.exchange else { return };
        if protocol != self.options.encoding.subprotocol() {
            let protocol = protocol.unwrap_or("none");
            let reason =
                format!("the server chose the subprotocol {protocol}; check that it is a tickcast server");
            self.hang_up(close_code::MALFORMED, close_code::PROTOCOL, &reason, now_ns);
            return;
        }
        let features = Features::PUBLISHED
            .union(Features::REASONS)
            .union(Features::COUNTS)
            .union(Features::TOKENS)
            .union(Features::SOURCES)
            .union(Features::MESSAGE_IDS)
            .union(Features::BATCHES)
            .union(Features::SINCE)
            .union(self.options.extensions.intersection(EXTENSIONS));
        let features = match self.options.codec() {
            Codec::Native => features,
            _ => features.union(Features::STRING_KEYS).union(Features::POSITIONS),
        };
        let token = self.tokens.take_for_use();
        let SessionOptions { name, client, .. } = &self.options;
        exchange.hello(name, client, features, token.as_ref(), &mut self.outbox);
    }

    /// The connection was closed by the server or the network, or could not be opened: 1006, or the close code that the HTTP status of
    /// the refusal stands for: 3005 for 401, 3500 for 403, 1002 for 404, 3504 for 429 and 503. `reconnect_after_ms`: the delay that an
    /// HTTP answer asks for; 0: none.
    pub fn handle_closed(&mut self, code: u16, reason: &str, reconnect_after_ms: u32, now_ns: u64) {
        let Some(exchange) = &mut self.exchange else { return };
        if reconnect_after_ms != 0 && exchange.closing.is_none() {
            let reason = reason.to_owned();
            exchange.closing = Some(exchange::Closing { code, reason, reconnect_after_ms });
        }
        self.handle_lost(code, reason, false, now_ns);
    }

    /// The application has not let the driver read: silence says nothing about the server.
    pub fn handle_paused(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.is_silent = false;
        }
    }

    /// The application has a token.
    pub fn handle_token(&mut self, token: ClientToken, now_ns: u64) {
        self.tokens.handle_token(token, &mut self.timers);
        self.refresh_token();
        if self.is_waiting_for_token {
            self.dial(now_ns);
        }
    }

    /// The application has no token. Means nothing if it was not asked, or has not answered within 30 s.
    pub fn handle_token_failed(&mut self, reason: &str, now_ns: u64) {
        match self.state {
            _ if !self.tokens.is_asking() => {}
            ClientState::Disconnected => self.tokens.handle_unwanted(&mut self.timers),
            _ => self.handle_no_token(reason, 0, now_ns),
        }
    }

    /// Runs the timers that are due.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        while let Some((timer, at_ns)) = self.timers.pop(now_ns) {
            match timer {
                Timer::Retry => self.dial(now_ns),
                Timer::Welcome => {
                    let reason = "no welcome in time";
                    self.hang_up(close_code::NO_WELCOME, close_code::CUT, reason, now_ns);
                }
                Timer::Ping => self.handle_ping_due(at_ns, now_ns),
                Timer::Token => self.handle_token_due(now_ns),
                Timer::TokenAnswer => {
                    self.handle_token_failed("the application has not given a token in time", now_ns);
                }
                Timer::Save => self.save(),
                Timer::Publish(id) => {
                    self.publishes.handle_timeout(id, &mut self.timers, &mut self.outbox);
                    self.send_waiting(now_ns);
                }
                Timer::Subscribe(pattern) => self.subscribe_again(&pattern),
            }
        }
    }

    /// Whether the connection has a feature.
    fn grants(&self, feature: Features) -> bool {
        self.exchange.as_ref().is_some_and(|exchange| exchange.grants(feature))
    }

    /// Refuses a request of the application while too many wait for their answers.
    fn check_room(&self) -> Result<(), RequestError> {
        self.exchange.as_ref().map_or(Ok(()), Exchange::check_room)
    }

    /// Sends publishes that wait, as far as more may be in flight.
    fn send_waiting(&mut self, now_ns: u64) {
        if self.state == ClientState::Connected
            && let Some(exchange) = &mut self.exchange
        {
            self.publishes.send_waiting(now_ns, exchange, &mut self.timers, &mut self.outbox);
        }
    }

    /// Sends the token on the open connection, if there are both.
    fn refresh_token(&mut self) {
        if self.state == ClientState::Connected
            && let Some(exchange) = &mut self.exchange
            && let Some(token) = self.tokens.take_for_use()
        {
            exchange.refresh(&token, &mut self.outbox);
        }
    }

    fn set_state(&mut self, state: ClientState, code: u16, reason: &Arc<str>, retry_in_ms: Option<u64>) {
        self.state = state;
        let reason = reason.clone();
        self.outbox.emit(ClientEvent::State(Change { state, code, reason, retry_in_ms }));
    }
}

/// Rejects names that no server accepts, so that lengths fit their fields.
fn check_name(name: &str) -> Result<(), RequestError> {
    match name.len() {
        1..=TOPIC_BYTES_MAX => Ok(()),
        len => Err(RequestError::NameLength(len)),
    }
}

#[cfg(test)]
mod tests;
