//! The server's messages, and the subscriptions that they change.

use std::sync::Arc;

use super::{
    ClientEvent, ClientState, Message, Session, SubscriptionEvent, SubscriptionState, Timer, TopicPositions,
    close_code,
    exchange::{Closing, Pending},
    message::{self, ServerMessage},
    subscriptions::SubscriptionId,
};
use crate::{
    ProtocolError, RequestError,
    request::Start,
    topics::{Announcer, SkipReason},
};
use tickcast_proto::{
    ErrorCode,
    features::Features,
    subscription::{Moment, Position, StartPosition},
};

const MS_NS: u64 = 1_000_000;

impl Session {
    /// A message has arrived. A tick costs no allocation beyond its events' queue, except for the first of a topic.
    pub fn handle_message(&mut self, message: &Message, now_ns: u64, wall_ns: u64) {
        let Some(exchange) = &mut self.exchange else { return };
        exchange.is_silent = false;
        let mut pinged = None;
        let decoded = message::decode(self.options.codec(), message);
        let handled = decoded.and_then(|messages| {
            for message in messages {
                match message {
                    ServerMessage::Tick(tick) => self.handle_tick(tick, wall_ns)?,
                    ServerMessage::Ping { token } => pinged = Some(token),
                    message => self.handle_answer(message, now_ns)?,
                }
                if self.exchange.is_none() {
                    // An answer has ended it.
                    return Ok(());
                }
            }
            Ok(())
        });
        match (handled, &self.exchange, pinged) {
            (Err(error), _, _) => self.handle_malformed(&error.to_string(), now_ns),
            // One answer a message: a message has room for many more pings than a server needs.
            (Ok(()), Some(exchange), Some(token)) => exchange.pong(token, &mut self.outbox),
            _ => {}
        }
        self.save_later(now_ns);
    }

    fn handle_answer(&mut self, message: ServerMessage<'_>, now_ns: u64) -> Result<(), ProtocolError> {
        let Session { exchange: Some(exchange), publishes, timers, outbox, tokens, .. } = self else {
            return Ok(());
        };
        match message {
            ServerMessage::Published { request, topic, epoch, sequence, is_duplicate } => {
                let published = (topic.into(), Position { epoch, sequence }, is_duplicate);
                publishes.handle_published(request, published, timers, outbox);
                publishes.send_waiting(now_ns, exchange, timers, outbox);
            }
            ServerMessage::Pong { token } => exchange.handle_pong(token, now_ns, outbox),
            ServerMessage::Welcome { request, epoch, frame_bytes_max, features } => {
                exchange.pending.remove(&request);
                if exchange.welcomed_ns.is_none() {
                    exchange.handle_welcome(epoch, frame_bytes_max, features, now_ns);
                    self.handle_welcomed(epoch, now_ns);
                }
            }
            ServerMessage::Subscribed { request, since_us } => {
                let pending = exchange.pending.remove(&request);
                let moment = Moment { epoch: exchange.server_epoch, since_us };
                self.handle_acknowledged(pending, moment);
            }
            ServerMessage::Unsubscribed { request, pattern, code, text } => {
                exchange.topics.interrupt();
                if request != 0 {
                    exchange.pending.remove(&request);
                } else if let Ok(record) = self.subscriptions.named(&pattern)
                    && record.is_sent
                {
                    self.end_subscription(record.id, code, &text);
                }
            }
            ServerMessage::Error { request, code, text } => {
                if publishes.handle_refused(request, code, &text, timers, outbox) {
                    publishes.send_waiting(now_ns, exchange, timers, outbox);
                } else {
                    let pending = exchange.pending.remove(&request);
                    self.handle_refused(pending, code, &text, now_ns);
                }
            }
            ServerMessage::Closing { code, text, reconnect_after_ms } => {
                exchange.closing = Some(Closing { code, reason: text.into_owned(), reconnect_after_ms });
            }
            ServerMessage::Expires { request, expires_in_s } => {
                outbox.emit(ClientEvent::Expires { expires_in_s });
                exchange.pending.remove(&request);
                tokens.handle_expires(expires_in_s, now_ns, timers);
                if request == 0 {
                    tokens.refresh(now_ns, timers, outbox);
                }
            }
            ServerMessage::Source { source, state, since_ns } => {
                outbox.emit(ClientEvent::Source { source: source.into(), state, since_ns });
            }
            ServerMessage::Nodes { addresses } => self.handle_nodes(&addresses),
            // About topics.
            message => self.handle_topic_message(message)?,
        }
        Ok(())
    }

    fn handle_welcomed(&mut self, epoch: u64, now_ns: u64) {
        self.timers.cancel(&Timer::Welcome);
        self.set_state(ClientState::Connected, 0, &"".into(), None);
        self.ping(now_ns);
        if self.tokens.is_unused() {
            self.refresh_token();
        }
        if !self.grants(Features::SINCE) {
            // First, so that their positions go with others that match. Without the moment they would get older ticks.
            for id in self.subscriptions.to_start_at_moment() {
                let reason = RequestError::SinceNotGranted.to_string();
                self.end_subscription(id, ErrorCode::BadRequest as u16, &reason);
            }
        }
        for (id, positions) in self.subscriptions.to_resume(&self.positions) {
            self.send_subscription(id, &positions);
        }
        self.publishes.handle_welcome(epoch);
        self.send_waiting(now_ns);
    }

    /// A subscription or an update of one is live.
    fn handle_acknowledged(&mut self, pending: Option<Pending>, moment: Moment) {
        match pending {
            Some(Pending::Subscribe(id)) => {
                if let Some(record) = self.subscriptions.get_mut(id) {
                    record.is_acknowledged = true;
                    if record.starts_live && moment.since_us != 0 {
                        record.live_since = Some(moment);
                    }
                    record.jitter.reset();
                    self.set_subscription(id, SubscriptionState::Subscribed, 0, &"".into(), None);
                }
            }
            Some(Pending::Update(id, delivery)) => {
                if let Some(record) = self.subscriptions.get_mut(id) {
                    record.confirmed = delivery;
                }
            }
            _ => {}
        }
    }

    fn handle_refused(&mut self, pending: Option<Pending>, code: u16, text: &str, now_ns: u64) {
        match pending {
            Some(Pending::Subscribe(id)) => {
                let Some(record) = self.subscriptions.get_mut(id) else { return };
                record.is_sent = false;
                self.leave_positions(id);
                if code != ErrorCode::RateLimited as u16 {
                    self.end_subscription(id, code, text);
                    return;
                }
                let Some(record) = self.subscriptions.get_mut(id) else { return };
                let retry_in_ms = record.jitter.next_ms(&mut self.random);
                let timer = Timer::Subscribe(record.pattern.clone());
                self.timers.set(timer, now_ns + retry_in_ms * MS_NS);
                let state = SubscriptionState::Subscribing;
                self.set_subscription(id, state, code, &text.into(), Some(retry_in_ms));
            }
            Some(Pending::Update(id, delivery)) => {
                // If its subscription was refused before, for its rate, the next attempt carries the change.
                let Some(record) = self.subscriptions.get_mut(id).filter(|record| record.is_sent) else {
                    return;
                };
                if record.delivery == delivery {
                    record.delivery = record.confirmed;
                }
                let reason = text.into();
                self.outbox.emit_on(&record.pattern, SubscriptionEvent::Error { code, reason });
            }
            Some(Pending::Refresh) => self.handle_no_token(text, code, now_ns),
            Some(Pending::Hello) => self.hang_up(close_code::MALFORMED, code, text, now_ns),
            Some(Pending::Unsubscribe) | None => {
                self.outbox.emit(ClientEvent::Error { code, reason: text.into() });
            }
        }
    }

    /// Sends a subscription that resumes from these positions.
    pub(super) fn send_subscription(&mut self, id: SubscriptionId, positions: &TopicPositions) {
        let (Some(exchange), Some(record)) = (&mut self.exchange, self.subscriptions.get_mut(id)) else {
            return;
        };
        let start = if positions.is_empty() && !record.is_acknowledged {
            match record.from {
                StartPosition::Live => Start::Live,
                StartPosition::Latest => Start::Latest,
                StartPosition::After(position) => Start::After(position),
                StartPosition::Since(_, moment) => Start::Since(&[], moment),
                StartPosition::AfterEach(_) | StartPosition::Resume => Start::Positions(&[]),
            }
        } else if record.conflates() {
            Start::Latest
        } else {
            match record.live_since.filter(|_| exchange.grants(Features::SINCE)) {
                None => Start::Positions(positions),
                Some(moment) => Start::Since(positions, moment),
            }
        };
        let starts_live = matches!(start, Start::Live);
        let mut is_latest = matches!(start, Start::Latest);
        let request = exchange.subscribe(record, start, &mut self.outbox).or_else(|| {
            is_latest = true;
            exchange.subscribe(record, Start::Latest, &mut self.outbox)
        });
        let announcer = match (is_latest, record.conflates()) {
            (false, _) => Announcer::Server,
            (true, true) => Announcer::Client(SkipReason::Conflated),
            (true, false) => Announcer::Client(SkipReason::Gap),
        };
        for (topic, position) in positions {
            exchange.topics.add_position(topic, *position, announcer);
        }
        record.is_sent = true;
        record.starts_live = starts_live;
        record.request = request.unwrap_or_default();
        record.confirmed = record.delivery;
    }

    /// Overlapping subscriptions were sent without the positions of one that was refused: they start elsewhere.
    fn leave_positions(&mut self, refused: SubscriptionId) {
        let (Some(exchange), Some(record)) = (&mut self.exchange, self.subscriptions.get(refused)) else {
            return;
        };
        for (topic, position) in self.subscriptions.left_by(record, &self.positions) {
            // One that is announced has been received by another subscription before.
            if exchange.topics.id(&topic).is_none() {
                exchange.topics.add_position(&topic, position, Announcer::Left);
            }
        }
    }

    pub(super) fn subscribe_again(&mut self, pattern: &str) {
        if let Some(id) = self.subscriptions.id(pattern)
            && self.state == ClientState::Connected
        {
            let positions = self.subscriptions.positions_of(pattern, &self.positions);
            self.send_subscription(id, &positions);
        }
    }

    pub(super) fn end_subscription(&mut self, id: SubscriptionId, code: u16, reason: &str) {
        if let Some(record) = self.subscriptions.remove(id, &mut self.positions) {
            let state = SubscriptionState::Unsubscribed;
            self.outbox.emit_subscription(&record.pattern, state, code, &reason.into(), None);
        }
    }

    pub(super) fn set_subscription(
        &mut self,
        id: SubscriptionId,
        state: SubscriptionState,
        code: u16,
        reason: &Arc<str>,
        retry_in_ms: Option<u64>,
    ) {
        if let Some(record) = self.subscriptions.get_mut(id) {
            record.state = state;
            self.outbox.emit_subscription(&record.pattern, state, code, reason, retry_in_ms);
        }
    }
}
