//! One connection of a session: what was sent on it, and what the server has said of it.

use std::collections::HashMap;

use super::{
    actions::{Action, Message, Outbox},
    clock_estimate::ClockEstimate,
    event::ClientEvent,
    message::{encode, encode_subscribe, message_bytes_max},
    subscriptions::{Record, SubscriptionId},
};
use crate::{
    ClientToken, PublishRequest, REQUESTS_UNANSWERED_MAX, RESUME_NAMES_BYTES_MAX, RequestError,
    request::{Outgoing, RequestNumbers, Start},
    topics::Topics,
};
use tickcast_proto::{
    codec::Codec,
    features::Features,
    frame::HelloParts,
    limits::{FRAME_BYTES_MAX_DEFAULT, RESUME_POSITIONS_MAX},
    subscription::Delivery,
};

/// A request that the server has not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pending {
    Hello,
    Unsubscribe,
    Refresh,
    Subscribe(SubscriptionId),
    Update(SubscriptionId, Delivery),
}

/// The server's last message.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) reconnect_after_ms: u32,
}

/// The requests and topics of one connection, from the dial on. Publishes are kept apart.
#[derive(Debug)]
pub(super) struct Exchange {
    codec: Codec,
    numbers: RequestNumbers,
    /// By request number. Bound: [`REQUESTS_UNANSWERED_MAX`].
    pub(super) pending: HashMap<u32, Pending>,
    pub(super) closing: Option<Closing>,
    /// When the server welcomed the client; `None`: it has not.
    pub(super) welcomed_ns: Option<u64>,
    /// Epoch of the server; 0: it has not welcomed the client.
    pub(super) server_epoch: u64,
    features: Features,
    frame_bytes_max: usize,
    pub(super) clock: ClockEstimate,
    pings: u64,
    /// When the last ping was sent, until its answer. An older pong comes before it, or the connection is dead.
    pinged_ns: Option<u64>,
    /// Whether nothing has arrived since the last ping.
    pub(super) is_silent: bool,
    pub(super) topics: Topics,
}

impl Exchange {
    pub(super) fn new(codec: Codec) -> Exchange {
        Exchange {
            codec,
            numbers: RequestNumbers::default(),
            pending: HashMap::new(),
            closing: None,
            welcomed_ns: None,
            server_epoch: 0,
            features: Features::NONE,
            frame_bytes_max: FRAME_BYTES_MAX_DEFAULT,
            clock: ClockEstimate::default(),
            pings: 0,
            pinged_ns: None,
            is_silent: false,
            topics: Topics::lenient(),
        }
    }

    /// The longest message that the server accepts, in bytes.
    pub(super) fn message_bytes_max(&self) -> usize {
        message_bytes_max(self.codec, self.frame_bytes_max)
    }

    fn next(&mut self, pending: Pending) -> u32 {
        let request = self.numbers.next();
        self.pending.insert(request, pending);
        request
    }

    /// Whether another request of the application may wait for its answer.
    pub(super) fn check_room(&self) -> Result<(), RequestError> {
        match self.pending.len() < REQUESTS_UNANSWERED_MAX {
            true => Ok(()),
            false => Err(RequestError::Unanswered),
        }
    }

    fn send(&self, request: &Outgoing<'_>, outbox: &mut Outbox) {
        outbox.send(encode(self.codec, request));
    }

    /// Opens the session. `client`: the identity, over native TCP.
    pub(super) fn hello(
        &mut self,
        name: &str,
        client: &str,
        features: Features,
        token: Option<&ClientToken>,
        outbox: &mut Outbox,
    ) {
        let request = self.next(Pending::Hello);
        let hello = HelloParts { request, client, name, features };
        self.send(&Outgoing::Hello(hello, token.map_or("", ClientToken::as_str)), outbox);
    }

    /// The server has accepted the session.
    pub(super) fn handle_welcome(
        &mut self,
        epoch: u64,
        frame_bytes_max: u32,
        features: Features,
        now_ns: u64,
    ) {
        self.welcomed_ns = Some(now_ns);
        self.server_epoch = epoch;
        self.features = features;
        self.frame_bytes_max = frame_bytes_max as usize;
    }

    /// Whether the server has granted a feature.
    pub(super) fn grants(&self, feature: Features) -> bool {
        self.features.contains(feature)
    }

    pub(super) fn ping(&mut self, now_ns: u64, outbox: &mut Outbox) {
        self.pings += 1;
        self.pinged_ns = Some(now_ns);
        self.is_silent = true;
        self.clock.handle_ping();
        self.send(&Outgoing::Ping { token: self.pings }, outbox);
    }

    /// Answers a ping of the server.
    pub(super) fn pong(&self, token: u64, outbox: &mut Outbox) {
        let message = encode(self.codec, &Outgoing::Pong { token });
        outbox.act(Action::Send { message, is_optional: true });
    }

    /// The server has answered a ping.
    pub(super) fn handle_pong(&mut self, token: u64, now_ns: u64, outbox: &mut Outbox) {
        if token != self.pings {
            return;
        }
        if let Some(pinged_ns) = self.pinged_ns.take() {
            let round_trip_ns = now_ns.saturating_sub(pinged_ns);
            self.clock.handle_pong(round_trip_ns);
            let offset_ns = self.clock.offset_ns();
            outbox.emit(ClientEvent::Latency { round_trip_ns, offset_ns });
        }
    }

    /// Sends a subscription; returns the request's number, or `None`, and sends nothing, if it has more positions than the server accepts.
    pub(super) fn subscribe(
        &mut self,
        record: &Record,
        start: Start<'_>,
        outbox: &mut Outbox,
    ) -> Option<u32> {
        let positions = match start {
            Start::Positions(positions) | Start::Since(positions, _) => positions,
            _ => &[],
        };
        let names_bytes: usize = positions.iter().map(|(topic, _)| topic.len()).sum();
        if positions.len() > RESUME_POSITIONS_MAX || names_bytes > RESUME_NAMES_BYTES_MAX {
            return None;
        }
        let (request_number, delivery) = (self.numbers.peek(), record.delivery);
        let request =
            Outgoing::Subscribe { request: request_number, pattern: &record.pattern, delivery, start };
        let messages = encode_subscribe(self.codec, &request);
        let is_too_long = |message: &Message| message.len() > self.message_bytes_max();
        if !positions.is_empty() && messages.first().is_some_and(is_too_long) {
            return None;
        }
        self.next(Pending::Subscribe(record.id));
        messages.into_iter().for_each(|message| outbox.send(message));
        Some(request_number)
    }

    /// Sends another delivery of a subscription.
    pub(super) fn update(&mut self, record: &Record, delivery: Delivery, outbox: &mut Outbox) {
        let request = self.next(Pending::Update(record.id, delivery));
        self.send(&Outgoing::Update { request, pattern: &record.pattern, delivery }, outbox);
    }

    pub(super) fn unsubscribe(&mut self, pattern: &str, outbox: &mut Outbox) {
        let request = self.next(Pending::Unsubscribe);
        self.send(&Outgoing::Unsubscribe { request, pattern }, outbox);
    }

    /// Replaces the token. Only a server with the feature `tokens` answers.
    pub(super) fn refresh(&mut self, token: &ClientToken, outbox: &mut Outbox) {
        let request = match self.features.contains(Features::TOKENS) {
            true => self.next(Pending::Refresh),
            false => self.numbers.next(),
        };
        self.send(&Outgoing::Refresh { request, token: token.as_str() }, outbox);
    }

    /// Sends a publish; returns its request number, or `None` if it is longer than the server accepts.
    pub(super) fn publish(&mut self, publish: PublishRequest<'_>, outbox: &mut Outbox) -> Option<u32> {
        let request = self.numbers.peek();
        let message = encode(self.codec, &Outgoing::Publish { request, publish });
        if message.len() > self.message_bytes_max() {
            return None;
        }
        outbox.send(message);
        Some(self.numbers.next())
    }
}
