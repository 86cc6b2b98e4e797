//! What the server says about topics, as events of the subscriptions that match them.

use std::sync::Arc;

use super::{
    RecoveryFailure, Session, SharedTick, SkippedTicks, SubscriptionEvent,
    message::{ServerMessage, TickMessage, TopicRef},
};
use crate::{
    ProtocolError,
    topics::{OpenRange, SkipReason, Topics},
};
use tickcast_proto::{features::Features, logged::is_log_epoch, subscription::Position};

/// Finds a topic's number.
fn topic_id(topics: &Topics, topic: &TopicRef<'_>) -> Result<u32, ProtocolError> {
    match topic {
        TopicRef::Id(id) => Ok(*id),
        TopicRef::Name(name) => {
            topics.id(name).ok_or_else(|| ProtocolError::UnknownTopic(name.clone().into_owned()))
        }
    }
}

/// Patterns that match a topic.
type Patterns = Arc<[Arc<str>]>;

impl Session {
    pub(super) fn handle_tick(&mut self, tick: TickMessage<'_>, wall_ns: u64) -> Result<(), ProtocolError> {
        let Some(exchange) = &mut self.exchange else { return Ok(()) };
        let links_ticks = exchange.grants(Features::PREVIOUS);
        let topics = &mut exchange.topics;
        let id = topic_id(topics, &tick.topic)?;
        let TickMessage { sequence, snapshot, .. } = tick;
        if sequence <= topics.repeated_to(id) && !snapshot {
            return Ok(());
        }
        // The sequences of a log leave numbers out. A server that does not say how many leaves holes unnoticed.
        let is_of_log = topics.topic(id).is_some_and(|topic| is_log_epoch(topic.epoch));
        let preceding = if is_of_log && !links_ticks { 0 } else { tick.previous };
        let advance = topics.advance(id, sequence, preceding, snapshot)?;
        if let Some(OpenRange { reason, from }) = advance.skipped {
            let count = topics.ticks_in(id, from, sequence);
            self.emit_skipped(id, reason, from, sequence, count);
        }
        let Some((topic, patterns, epoch)) = self.matching(id) else { return Ok(()) };
        self.advance_position(&topic, &patterns, Position { epoch, sequence });
        let shared = SharedTick {
            topic,
            topic_id: id,
            epoch,
            sequence,
            producer_time_ns: tick.producer_time_ns,
            ingest_time_ns: tick.ingest_time_ns,
            schema: tick.schema,
            key: tick.key,
            snapshot,
            payload_is_json: tick.payload_is_json,
            missed: advance.missed,
            payload: tick.payload,
        };
        if let (false, Some(exchange)) = (snapshot, &mut self.exchange) {
            let server_ns =
                if tick.ingest_time_ns == 0 { tick.producer_time_ns } else { tick.ingest_time_ns };
            exchange.clock.handle_tick(wall_ns.wrapping_sub(server_ns).cast_signed());
        }
        for on in patterns.iter() {
            self.outbox.emit_on(on, SubscriptionEvent::Tick(shared.clone()));
        }
        Ok(())
    }

    /// Handles what is about a topic and not a tick.
    pub(super) fn handle_topic_message(&mut self, message: ServerMessage<'_>) -> Result<(), ProtocolError> {
        let Some(exchange) = &mut self.exchange else { return Ok(()) };
        let topics = &mut exchange.topics;
        match message {
            ServerMessage::Topic { name, topic_id, epoch } => {
                if let Some(position) = topics.announce(topic_id, &name, epoch)? {
                    let is_same = position.epoch == epoch;
                    let failure = if is_same { RecoveryFailure::TooMany } else { RecoveryFailure::Epoch };
                    self.emit_recovered(&name, true, Position { epoch, sequence: 0 }, Some(failure));
                }
            }
            ServerMessage::Recovered { topic, topic_id, epoch, sequence, failure } => {
                let exists = topic_id != Some(0) && failure != Some(RecoveryFailure::UnknownTopic);
                let id = if exists { topic_id } else { Some(0) };
                topics.recover(id, &topic, epoch, sequence, failure.is_none())?;
                self.emit_recovered(&topic, exists, Position { epoch, sequence }, failure);
            }
            ServerMessage::Skipped { topic, reason, mut from, to, mut count } => {
                let id = topic_id(topics, &topic)?;
                let repeated_to = topics.repeated_to(id);
                if from <= repeated_to && to > repeated_to + 1 {
                    from = repeated_to + 1;
                    // In a log, sequences are sparse: the rest may span many more numbers than ticks.
                    count = count.min(to - from);
                } else if from <= repeated_to {
                    return Ok(());
                }
                if let Some(OpenRange { reason, from: start }) = topics.skip(id, reason, from, to, count)? {
                    let count = topics.ticks_in(id, start, from);
                    self.emit_skipped(id, reason, start, from, count);
                }
                self.emit_skipped(id, reason, from, to, count);
            }
            ServerMessage::Stale { topic, is_stale, since_ns } => {
                let id = topic_id(topics, &topic)?;
                let (topic, patterns, _) =
                    self.matching(id).ok_or_else(|| ProtocolError::UnknownTopic(id.to_string()))?;
                for on in patterns.iter() {
                    let topic = topic.clone();
                    self.outbox.emit_on(on, SubscriptionEvent::Stale { topic, is_stale, since_ns });
                }
            }
            // The caller has handled the others.
            _ => debug_assert!(false, "only messages about topics come here"),
        }
        Ok(())
    }

    fn emit_skipped(&mut self, id: u32, reason: SkipReason, from: u64, to: u64, count: u64) {
        let Some((topic, patterns, epoch)) = self.matching(id) else { return };
        self.advance_position(&topic, &patterns, Position { epoch, sequence: to - 1 });
        for on in patterns.iter() {
            let skipped = SkippedTicks { topic: topic.clone(), epoch, from, to, count };
            self.outbox.emit_on(
                on,
                match reason {
                    SkipReason::Conflated => SubscriptionEvent::Conflated(skipped),
                    SkipReason::Gap => SubscriptionEvent::Gap(skipped),
                },
            );
        }
    }

    fn emit_recovered(&mut self, topic: &str, exists: bool, now: Position, failure: Option<RecoveryFailure>) {
        self.positions.handle_recovered(topic, exists, now, failure.is_none());
        self.has_moved |= failure.is_some();
        let (topic, patterns) = self.subscriptions.matching(topic);
        let Position { epoch, sequence } = now;
        for on in patterns.iter() {
            let topic = topic.clone();
            self.outbox.emit_on(on, SubscriptionEvent::Recovered { topic, epoch, sequence, failure });
        }
    }

    /// A topic's name, the patterns that match it, and its epoch.
    fn matching(&mut self, id: u32) -> Option<(Arc<str>, Patterns, u64)> {
        let topic = self.exchange.as_ref()?.topics.topic(id)?;
        let (name, patterns) = self.subscriptions.matching(&topic.name);
        Some((name, patterns, topic.epoch))
    }

    fn advance_position(&mut self, topic: &str, patterns: &Patterns, to: Position) {
        if !patterns.is_empty() {
            self.positions.advance(topic, to);
            self.has_moved = true;
        }
    }
}
