//! Publishes to routed topics: out to a sink's ring, and the answer back to the session.
//!
//! ```text
//!  session's publish -> room for the answer -> ticket -> stage -> ring -> sink's thread
//!                                               |
//!   PUBLISHED, ERROR 111 or 112  <--- first of: | the sink's answer | the deadline | the end of the drain
//! ```
//!
//! The shard keeps the deadline, because only the shard can, whatever happens to the sink's thread. The ticket makes the first
//! answer the only one: later answers find no ticket. Three bounds hold:
//!
//! - Each publish reserves room for its answer, with or without a request id, because a failure is always answered. A session
//!   has at most [`REPLY_BYTES_MAX`](crate::limits::REPLY_BYTES_MAX) of such room; when it is used up, the session is not read
//!   from.
//! - A sink has at most [`SINK_IN_FLIGHT_MAX`] publishes of this shard, and [`SINK_STAGE_BYTES_MAX`] staged. Beyond that, they
//!   are refused at once: an engine that is unavailable must not delay sessions that do not use it.
//! - Answers only add to outboxes, in reserved room. So the shard always takes them, and no sink waits for it.

use super::{Shard, Unsequenced};
use crate::{
    ids::{SessionId, SlotId},
    in_flight::{InFlight, Ticket, Waiting},
    limits::{ANSWER_UNITS, SINK_IN_FLIGHT_MAX, SINK_STAGE_BYTES_MAX, TURN_SINK_EXPIRED, answer_bytes_max},
    mesh::ring::Stage,
    message_id::DIGEST_BYTES,
    metrics::counters::Counter,
    now::Now,
    routes::{Outcome, RouteCache, SinkId},
    topic_key,
};
use tickcast_proto::{
    frame::{self, FLAG_ANSWERED, FLAG_PAYLOAD_JSON, Frame, HeaderFields, Kind},
    ids::TopicId,
    records::{Routed, Settled},
    reply::Reply,
};

/// A shard's publishes that wait for sinks.
#[derive(Debug, Default)]
pub(super) struct Routing {
    cache: RouteCache,
    /// By sink.
    sinks: Vec<SinkQueue>,
}

/// A shard's state for one sink.
#[derive(Debug, Default)]
struct SinkQueue {
    stage: Stage,
    in_flight: InFlight,
}

impl Routing {
    /// Creates queues for this many sinks.
    pub(super) fn new(sinks: usize) -> Routing {
        Routing { cache: RouteCache::default(), sinks: (0..sinks).map(|_| SinkQueue::default()).collect() }
    }

    /// Deadline of the next publish, when it is answered whatever the engines do.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.sinks.iter().filter_map(|queue| queue.in_flight.first_deadline_ns()).min()
    }

    /// Bytes of the queues.
    pub(super) fn heap_bytes(&self) -> usize {
        let queues = self.sinks.iter();
        let queues = queues.map(|queue| queue.stage.waiting().len() + queue.in_flight.heap_bytes());
        queues.sum::<usize>() + self.cache.heap_bytes()
    }
}

impl Shard {
    /// The sink of a topic; `None`: its home takes its ticks. One comparison without routes.
    pub(super) fn sink_of(&mut self, key: &str) -> Option<SinkId> {
        if self.limits.routes.routes.is_empty() {
            return None;
        }
        self.routing.cache.sink_of(&self.limits.routes, key)
    }

    /// Passes a session's tick to a sink, or answers that it has no room.
    pub(super) fn publish_to_sink(&mut self, sink: SinkId, slot: SlotId, tick: &Unsequenced<'_>, now: Now) {
        self.charge(ANSWER_UNITS);
        let Unsequenced { origin, flags, schema, record, key, payload, message_id, .. } = *tick;
        let (Some(queue), Some(config)) =
            (self.routing.sinks.get_mut(sink.index()), self.limits.routes.sinks.get(sink.index()))
        else {
            return debug_assert!(false, "a route names a sink");
        };
        if message_id.is_some() && !config.takes_message_ids {
            return self.tell_failure(slot, record.request, Outcome::NoMessageIds, now);
        }
        let has_room =
            queue.in_flight.len() < SINK_IN_FLIGHT_MAX && queue.stage.waiting().len() < SINK_STAGE_BYTES_MAX;
        if !has_room {
            return self.tell_failure(slot, record.request, Outcome::Full, now);
        }
        let deadline_ns = now.monotonic_ns.saturating_add(config.ack_timeout_ns);
        let Ticket(ticket) = queue.in_flight.insert(Waiting {
            session: SessionId(origin),
            deadline_ns,
            request: record.request,
            key_len: key.len() as u16,
            is_answered: flags & FLAG_ANSWERED != 0,
        });
        let fields = HeaderFields { flags: flags & FLAG_PAYLOAD_JSON, sequence: ticket, topic_id: 0, schema };
        let routed = Routed {
            producer_time_ns: record.producer_time_ns,
            deadline_ns,
            key: record.key,
            topic_len: key.len() as u16,
            message_id_len: message_id.map_or(0, |_| DIGEST_BYTES as u16),
            ..Routed::default()
        };
        let digest = message_id.as_ref().map_or(&[][..], |id| &id.digest[..]);
        frame::encode(queue.stage.tail(), Kind::Routed, fields, &routed, &[key.as_bytes(), digest, payload]);
        self.keep_room_for_answer(origin, key);
        self.counters.add(Counter::TicksRouted, 1);
    }

    /// Calls `take` with the ticks staged for a sink, so that it can move them into the sink's ring. Nothing to do for an unknown sink.
    pub fn with_sink_stage<R>(&mut self, sink: SinkId, take: impl FnOnce(&mut Stage) -> R) -> Option<R> {
        self.routing.sinks.get_mut(sink.index()).map(|queue| take(&mut queue.stage))
    }

    /// Processes a sink's answer. An answer after the deadline is only counted: the session has had its answer.
    pub fn handle_settled(&mut self, sink: SinkId, frame: &Frame<'_>, now: Now) {
        let (Ok(record), Ok(key)) = (frame.record::<Settled>(), frame.text()) else {
            return debug_assert!(false, "this process encoded the frame");
        };
        self.charge(ANSWER_UNITS);
        let ticket = Ticket(frame.header.sequence);
        let waiting =
            self.routing.sinks.get_mut(sink.index()).and_then(|queue| queue.in_flight.remove(ticket));
        let Some(waiting) = waiting else {
            return self.counters.add(Counter::SinkAnswersLate, 1);
        };
        debug_assert_eq!(usize::from(waiting.key_len), key.len(), "the answer is about the same topic");
        match Outcome::from_number(record.outcome) {
            Outcome::Confirmed => self.tell_confirmed(&waiting, &record, key),
            failure => self.settle_failure(&waiting, failure, now),
        }
        self.apply_deferred(now);
    }

    fn tell_confirmed(&mut self, waiting: &Waiting, record: &Settled, key: &str) {
        self.counters.add(Counter::TicksRoutedConfirmed, 1);
        let room_bytes = answer_bytes_max(usize::from(waiting.key_len));
        let Some(slot) = self.take_answered(waiting.session.0, room_bytes).filter(|_| waiting.is_answered)
        else {
            return;
        };
        let Settled { epoch, sequence, is_duplicate, .. } = *record;
        let published = Reply::Published {
            request: waiting.request,
            // The tick has no topic here until it comes back through a source.
            topic: TopicId(0),
            name: topic_key::name(key),
            epoch,
            sequence,
            is_duplicate: is_duplicate != 0,
        };
        self.reply(slot, &published);
    }

    fn settle_failure(&mut self, waiting: &Waiting, failure: Outcome, now: Now) {
        let room_bytes = answer_bytes_max(usize::from(waiting.key_len));
        match self.take_answered(waiting.session.0, room_bytes) {
            Some(slot) => self.tell_failure(slot, waiting.request, failure, now),
            None => self.count_failure(failure),
        }
    }

    /// Counts a tick that, as far as known, the engine does not have, and sends its session an error.
    fn tell_failure(&mut self, slot: SlotId, request: u32, failure: Outcome, now: Now) {
        self.count_failure(failure);
        match failure.error() {
            Some((code, text)) => self.fail(slot, request, code, text, now),
            None => debug_assert!(false, "a success is told by PUBLISHED"),
        }
    }

    fn count_failure(&mut self, failure: Outcome) {
        let counter = match failure {
            Outcome::Unconfirmed => Counter::TicksUnconfirmed,
            _ => Counter::TicksRefusedSink,
        };
        self.counters.add(counter, 1);
    }

    /// Answers publishes whose deadline has passed, a bounded number per turn. Returns whether there were any.
    pub(super) fn expire_routed(&mut self, now: Now) -> bool {
        let mut expired = false;
        for sink in 0..self.routing.sinks.len() {
            for _ in 0..TURN_SINK_EXPIRED {
                let Some(waiting) = self.routing.sinks[sink].in_flight.pop_due(now.monotonic_ns) else {
                    break;
                };
                self.settle_failure(&waiting, Outcome::Unconfirmed, now);
                expired = true;
            }
        }
        expired
    }

    /// Answers every publish that still waits, because the server stops. Bound: [`SINK_IN_FLIGHT_MAX`] for each sink.
    pub(super) fn end_routed(&mut self, now: Now) {
        for sink in 0..self.routing.sinks.len() {
            while let Some(waiting) = self.routing.sinks[sink].in_flight.pop_due(u64::MAX) {
                self.settle_failure(&waiting, Outcome::Unconfirmed, now);
            }
        }
    }

    /// Returns whether no publish waits for a sink: every one that was taken has its answer. O(sinks).
    pub fn routed_are_settled(&self) -> bool {
        self.routing.sinks.iter().all(|queue| queue.in_flight.is_empty())
    }
}

#[cfg(test)]
mod tests;
