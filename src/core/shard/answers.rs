//! Answers to publishes: a topic's home acknowledges a tick (PUBLISHED) or refuses it (ERROR).
//!
//! If the home is another shard, the answer crosses the mesh behind the tick, as a delivery. Three bounds hold:
//!
//! - A home takes a request only while every delivery stage has room, and a PUBLISH adds at most one answer to one stage.
//! - The session's shard reserves room for the answer when the tick leaves for its home. Reserved room counts like waiting
//!   replies, so a session that does not read its answers cannot publish further.
//! - Both shards charge the answer to the turn in which they handle it.

use super::{LOG_TARGET_TOPIC, Shard, Unsequenced};
use crate::{
    home::{TickPosition, TopicRefusal},
    ids::{SessionId, SlotId},
    limits::{ANSWER_UNITS, answer_bytes_max},
    metrics::counters::Counter,
    now::Now,
    topic_key,
};
use tickcast_proto::{
    features::Features,
    frame::{self, FLAG_ANSWERED, Frame, HeaderFields, Kind},
    ids::{ShardId, TopicId},
    records::{Acknowledge, ErrorRecord, Publish},
    reply::Reply,
};

impl Shard {
    /// Returns [`FLAG_ANSWERED`] if a session's publish must be answered even if it succeeds, otherwise 0.
    pub(super) fn answer_flag(&mut self, slot: SlotId, request: u32) -> u8 {
        let is_answered = request != 0
            && self.sessions.get(slot).is_some_and(|session| {
                session.features.contains(Features::PUBLISHED) && session.format.codec.has_replies()
                    || session.protocol.has_call()
            });
        if is_answered { FLAG_ANSWERED } else { 0 }
    }

    /// Reserves room for the answer to a tick that leaves for its home.
    pub(super) fn keep_room_for_answer(&mut self, origin: u64, key: &str) {
        if let Some(session) = self.sessions.open_mut(SessionId(origin).slot()) {
            session.answers_bytes += answer_bytes_max(key.len()) as u32;
        }
    }

    /// Finds the session that an answer is for, and releases the room reserved for it. `None` if the session has ended: the
    /// answer is then dropped.
    pub(super) fn take_answered(&mut self, origin: u64, room_bytes: usize) -> Option<SlotId> {
        let origin = SessionId(origin);
        let slot = origin.slot();
        let session = self.sessions.open_mut(slot).filter(|session| session.id == origin)?;
        debug_assert!(session.answers_bytes as usize >= room_bytes, "each answer has room");
        session.answers_bytes = session.answers_bytes.saturating_sub(room_bytes as u32);
        Some(slot)
    }

    /// Acknowledges a tick that this home has sequenced at a position, now or before. `from`: the session's shard.
    pub(super) fn acknowledge(
        &mut self,
        from: ShardId,
        tick: &Unsequenced<'_>,
        position: TickPosition,
        is_duplicate: bool,
    ) {
        let Unsequenced { origin, record: Publish { request, .. }, key, .. } = *tick;
        self.charge(ANSWER_UNITS);
        if from == self.id {
            if let Some(slot) = self.take_answered(origin, 0) {
                self.reply_published(slot, request, position, is_duplicate, key);
            }
            return;
        }
        let TickPosition { topic, epoch, sequence } = position;
        let fields = HeaderFields { topic_id: topic.0, sequence, ..HeaderFields::default() };
        let record = Acknowledge { session: origin, epoch, request, is_duplicate: is_duplicate.into() };
        self.stages.push_delivery(from, |out| {
            frame::encode(out, Kind::Acknowledge, fields, &record, &[key.as_bytes()]);
        });
    }

    /// Passes a home's acknowledgement on to the session.
    pub(super) fn handle_acknowledge(&mut self, frame: &Frame<'_>) {
        let (Ok(record), Ok(key)) = (frame.record::<Acknowledge>(), frame.text()) else {
            return debug_assert!(false, "this process encoded the frame");
        };
        self.charge(ANSWER_UNITS);
        let Acknowledge { session, epoch, request, is_duplicate } = record;
        if let Some(slot) = self.take_answered(session, answer_bytes_max(key.len())) {
            let (topic, sequence) = (TopicId(frame.header.topic_id), frame.header.sequence);
            let position = TickPosition { topic, epoch, sequence };
            self.reply_published(slot, request, position, is_duplicate != 0, key);
        }
    }

    fn reply_published(
        &mut self,
        slot: SlotId,
        request: u32,
        position: TickPosition,
        is_duplicate: bool,
        key: &str,
    ) {
        let (TickPosition { topic, epoch, sequence }, name) = (position, topic_key::name(key));
        self.reply(slot, &Reply::Published { request, topic, name, epoch, sequence, is_duplicate });
    }

    /// Refuses a tick whose topic cannot be created, or accepts no publishes. `session` is `None` if a source published it.
    pub(super) fn refuse(
        &mut self,
        session: Option<(ShardId, SessionId)>,
        tick: &Unsequenced<'_>,
        refusal: TopicRefusal,
        now: Now,
    ) {
        self.counters.add(Counter::TicksRefused, 1);
        let counter = match refusal {
            TopicRefusal::FedByLog => Counter::TicksRefusedFedByLog,
            _ => Counter::TopicsRefused,
        };
        self.counters.add(counter, 1);
        self.charge(ANSWER_UNITS);
        let Unsequenced { flags, record: Publish { request, .. }, key, .. } = *tick;
        // In a message between shards, `reserved` says which limit it was.
        let record = ErrorRecord { request, code: refusal.code() as u16, reserved: refusal as u16 };
        match session {
            None => {}
            Some((from, origin)) if from == self.id => self.report_refusal(origin, 0, record, now),
            Some((from, origin)) => {
                let fields = HeaderFields {
                    sequence: origin.0,
                    flags: flags & FLAG_ANSWERED,
                    ..HeaderFields::default()
                };
                self.stages.push_delivery(from, |out| {
                    frame::encode(out, Kind::Error, fields, &record, &[key.as_bytes()]);
                });
            }
        }
    }

    /// Passes a home's refusal on to the session.
    pub(super) fn handle_refusal(&mut self, frame: &Frame<'_>, now: Now) {
        let Ok(record) = frame.record::<ErrorRecord>() else {
            return debug_assert!(false, "this process encoded the frame");
        };
        self.charge(ANSWER_UNITS);
        let room_bytes = match frame.header.flags & FLAG_ANSWERED {
            0 => 0,
            _ => answer_bytes_max(frame.payload().len()),
        };
        self.report_refusal(SessionId(frame.header.sequence), room_bytes, record, now);
    }

    fn report_refusal(&mut self, origin: SessionId, room_bytes: usize, record: ErrorRecord, now: Now) {
        let refusal = TopicRefusal::from_number(record.reserved);
        ::log::warn!(
            target: LOG_TARGET_TOPIC,
            "session {origin:x}: a tick was refused: {}",
            refusal.text()
        );
        if let Some(slot) = self.take_answered(origin.0, room_bytes) {
            self.fail(slot, record.request, refusal.code(), refusal.text(), now);
        }
    }
}

#[cfg(test)]
mod tests;
