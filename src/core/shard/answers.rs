//! Answers to publishes: a topic's home acknowledges a tick (PUBLISHED) or refuses it (ERROR).
//!
//! If the home is another shard, the answer crosses the mesh behind the tick, as a delivery. Three bounds hold:
//!
//! - A home takes a request only while every delivery stage has room, and a PUBLISH adds at most one answer to one stage.
//! - The session's shard keeps room for the answer from the moment that the tick leaves for its home. Room kept counts like
//!   replies that wait, so a session that does not read its answers publishes no further.
//! - Both shards charge the answer to the turn in which they handle it.

use super::{ORIGIN_SOURCE, Shard};
use crate::{
    ids::{SessionId, SlotId},
    limits::{ANSWER_UNITS, answer_bytes_max},
    metrics::counters::Counter,
    now::Now,
};
use tickcast_proto::{
    ErrorCode,
    features::Features,
    frame::{self, FLAG_ANSWERED, Frame, HeaderFields, Kind},
    ids::{ShardId, TopicId},
    records::{Acknowledge, ErrorRecord},
    reply::Reply,
};

impl Shard {
    /// Returns [`FLAG_ANSWERED`] if a session's publish is to be answered although it succeeds, else 0.
    pub(super) fn answer_flag(&mut self, slot: SlotId, request: u32) -> u8 {
        let is_answered = request != 0
            && self.sessions.get(slot).is_some_and(|session| {
                session.features.contains(Features::PUBLISHED) && session.format.codec.has_replies()
            });
        if is_answered { FLAG_ANSWERED } else { 0 }
    }

    /// Keeps room for the answer to a tick that leaves for its home.
    pub(super) fn keep_room_for_answer(&mut self, origin: u64, topic: &str) {
        if let Some(session) = self.sessions.open_mut(SessionId(origin).slot()) {
            session.answers_bytes += answer_bytes_max(topic.len()) as u32;
        }
    }

    /// Finds the session that an answer is for, and gives back the room kept for it. `None` if the session has ended: then the
    /// answer is dropped.
    fn take_answered(&mut self, origin: u64, room_bytes: usize) -> Option<SlotId> {
        let origin = SessionId(origin);
        let slot = origin.slot();
        let session = self.sessions.open_mut(slot).filter(|session| session.id == origin)?;
        debug_assert!(session.answers_bytes as usize >= room_bytes, "each answer has room");
        session.answers_bytes = session.answers_bytes.saturating_sub(room_bytes as u32);
        Some(slot)
    }

    /// Acknowledges the tick that was sequenced last in a topic of this home. `from`: the shard of the session.
    pub(super) fn acknowledge(&mut self, from: ShardId, origin: u64, request: u32, index: u32, name: &str) {
        let topic = self.home.topic(index);
        let (id, epoch, sequence) = (topic.id, topic.epoch, topic.sequence.0);
        self.charge(ANSWER_UNITS);
        if from == self.id {
            if let Some(slot) = self.take_answered(origin, 0) {
                self.reply_published(slot, request, id, epoch, sequence, name);
            }
            return;
        }
        let fields = HeaderFields { topic_id: id.0, sequence, ..HeaderFields::default() };
        let record = Acknowledge { session: origin, epoch, request, reserved: 0 };
        self.stages.push_delivery(from, |out| {
            frame::encode(out, Kind::Acknowledge, fields, &record, &[name.as_bytes()]);
        });
    }

    /// Passes a home's acknowledgement on to the session.
    pub(super) fn handle_acknowledge(&mut self, frame: &Frame<'_>) {
        let (Ok(record), Ok(name)) = (frame.record::<Acknowledge>(), frame.text()) else {
            return debug_assert!(false, "this process encoded the frame");
        };
        self.charge(ANSWER_UNITS);
        let Acknowledge { session, epoch, request, .. } = record;
        if let Some(slot) = self.take_answered(session, answer_bytes_max(name.len())) {
            let topic = TopicId(frame.header.topic_id);
            self.reply_published(slot, request, topic, epoch, frame.header.sequence, name);
        }
    }

    fn reply_published(
        &mut self,
        slot: SlotId,
        request: u32,
        topic: TopicId,
        epoch: u64,
        sequence: u64,
        name: &str,
    ) {
        self.reply(slot, &Reply::Published { request, topic, name, epoch, sequence, is_duplicate: false });
    }

    /// Refuses a tick because there is no room for another topic. `from` is `None` for a source.
    pub(super) fn refuse(
        &mut self,
        from: Option<ShardId>,
        origin: u64,
        flags: u8,
        request: u32,
        name: &str,
        now: Now,
    ) {
        self.counters.add(Counter::TicksRefused, 1);
        self.charge(ANSWER_UNITS);
        let record = ErrorRecord { request, code: ErrorCode::TooManyTopics as u16, reserved: 0 };
        match from {
            // No session published it, so there is none to answer.
            None => {}
            Some(_) if origin == ORIGIN_SOURCE => {}
            Some(from) if from == self.id => self.report_refusal(origin, 0, record, now),
            Some(from) => {
                let fields = HeaderFields {
                    sequence: origin,
                    flags: flags & FLAG_ANSWERED,
                    ..HeaderFields::default()
                };
                self.stages.push_delivery(from, |out| {
                    frame::encode(out, Kind::Error, fields, &record, &[name.as_bytes()]);
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
        self.report_refusal(frame.header.sequence, room_bytes, record, now);
    }

    fn report_refusal(&mut self, origin: u64, room_bytes: usize, record: ErrorRecord, now: Now) {
        if let Some(slot) = self.take_answered(origin, room_bytes) {
            let code = ErrorCode::from_wire(record.code).unwrap_or(ErrorCode::BadRequest);
            let text = "the server has reached its limit of topics (--topics-max)";
            self.fail(slot, record.request, code, text, now);
        }
    }
}

#[cfg(test)]
mod tests;
