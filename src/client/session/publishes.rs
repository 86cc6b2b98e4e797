//! Publishes without an answer: those that wait for a connection, and those in flight.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
};

use super::{
    actions::Outbox,
    event::{ClientEvent, PublishFailure, PublishId, PublishOutcome, PublishedAt},
    exchange::Exchange,
    timers::{Timer, Timers},
};
use crate::{
    OFFLINE_QUEUE_BYTES_MAX, PUBLISHES_UNACKNOWLEDGED_MAX, PublishRequest, RETRIED_AGE_MS_MAX,
    RETRIED_BYTES_MAX, request::OwnedPublish,
};
use tickcast_proto::{ErrorCode, features::Features, subscription::Position};

/// A publish that waits for a connection, or may have to wait again.
#[derive(Debug)]
struct Waiting {
    publish: OwnedPublish,
    /// Until when the server that it was sent to knows its message id; 0: it has not been sent.
    known_until_ns: u64,
}

impl Waiting {
    fn new(publish: &PublishRequest<'_>, known_until_ns: u64) -> Waiting {
        Waiting { publish: OwnedPublish::new(publish), known_until_ns }
    }

    fn request(&self) -> PublishRequest<'_> {
        self.publish.request()
    }
}

/// Bytes of a publish that is kept while it is in flight; 0: it is not, because it has no message id.
fn kept_bytes(publish: &PublishRequest<'_>) -> usize {
    match publish.message_id {
        "" => 0,
        id => publish.topic.len() + publish.payload.len() + id.len() + size_of::<Waiting>(),
    }
}

/// What is known of a publish that is not in flight.
fn outcome(known_until_ns: u64) -> PublishOutcome {
    if known_until_ns == 0 { PublishOutcome::NotSent } else { PublishOutcome::Unknown }
}

/// [`Publishes::invariants`] visits every publish while there are at most this many.
const CHECKED_MAX: usize = 64;

/// Publishes by id. Each gets exactly one event. One with a message id whose answer was lost waits again: the server publishes it once.
///
/// Invariant: of those that have not been sent, at most `queued_max` wait, with [`OFFLINE_QUEUE_BYTES_MAX`] of payloads. At most
/// [`PUBLISHES_UNACKNOWLEDGED_MAX`] are in flight, or wait to be sent again. A publish waits or is in flight, and has a timer. `kept` has
/// those in flight with a message id, at most [`RETRIED_BYTES_MAX`], which `kept_bytes` counts.
#[derive(Debug)]
pub(super) struct Publishes {
    queued_max: usize,
    last: u64,
    /// Oldest first.
    waiting: BTreeMap<u64, Waiting>,
    /// Those of `waiting` that have not been sent.
    queued: usize,
    queued_bytes: usize,
    /// Those in flight by request number of this connection.
    in_flight: HashMap<u32, u64>,
    /// The same the other way round, oldest first.
    requests: BTreeMap<u64, u32>,
    kept: BTreeMap<u64, Waiting>,
    kept_bytes: usize,
    /// Epoch of the server of the last connection.
    epoch: u64,
    /// Whether it is that of the connection before, and may know the message ids that were sent there.
    is_same_server: bool,
}

impl Publishes {
    pub(super) fn new(queued_max: usize) -> Publishes {
        Publishes {
            queued_max,
            last: 0,
            waiting: BTreeMap::new(),
            queued: 0,
            queued_bytes: 0,
            in_flight: HashMap::new(),
            requests: BTreeMap::new(),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            epoch: 0,
            is_same_server: false,
        }
    }

    /// The number of publishes without an answer.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.requests.len()
    }

    /// Takes a publish until a deadline. The caller sends it, lets it wait, or fails it.
    pub(super) fn submit(&mut self, deadline_ns: u64, timers: &mut Timers) -> PublishId {
        self.last += 1;
        timers.set(Timer::Publish(self.last), deadline_ns);
        PublishId(self.last)
    }

    /// Keeps a publish that has not been sent until there is a connection with room for it, within the bounds.
    pub(super) fn wait(
        &mut self,
        id: PublishId,
        publish: PublishRequest<'_>,
        timers: &mut Timers,
        outbox: &mut Outbox,
    ) {
        let queued_bytes = self.queued_bytes + publish.payload.len();
        if self.queued >= self.queued_max || queued_bytes > OFFLINE_QUEUE_BYTES_MAX {
            let reason = "too many publishes wait to be sent".into();
            return fail(id, PublishOutcome::NotSent, 0, reason, timers, outbox);
        }
        self.queued += 1;
        self.queued_bytes = queued_bytes;
        self.waiting.insert(id.0, Waiting::new(&publish, 0));
        self.invariants();
    }

    /// Removes a publish from the queue, if it waits there.
    fn remove_waiting(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if waiting.known_until_ns == 0 {
            self.queued -= 1;
            self.queued_bytes -= waiting.request().payload.len();
        }
        Some(waiting)
    }

    /// Sends a new publish, if another one may be in flight and it fits into a message; else lets it wait. It does not overtake others.
    pub(super) fn send(
        &mut self,
        id: PublishId,
        publish: PublishRequest<'_>,
        now_ns: u64,
        exchange: &mut Exchange,
        timers: &mut Timers,
        outbox: &mut Outbox,
    ) {
        match self.waiting.is_empty() && self.has_room(&publish) {
            true => self.send_known(id, publish, (now_ns, 0), exchange, timers, outbox),
            false => self.wait(id, publish, timers, outbox),
        }
    }

    /// Whether another publish may be in flight.
    fn has_room(&self, publish: &PublishRequest<'_>) -> bool {
        self.in_flight.len() < PUBLISHES_UNACKNOWLEDGED_MAX
            && self.kept_bytes + kept_bytes(publish) <= RETRIED_BYTES_MAX
    }

    /// `known_until_ns`: until when the server knows the publish's message id; 0: it has not been sent yet.
    fn send_known(
        &mut self,
        id: PublishId,
        publish: PublishRequest<'_>,
        (now_ns, known_until_ns): (u64, u64),
        exchange: &mut Exchange,
        timers: &mut Timers,
        outbox: &mut Outbox,
    ) {
        let outcome = outcome(known_until_ns);
        if !self.has_room(&publish) {
            let reason = "too many publishes wait for their answers".into();
            fail(id, outcome, 0, reason, timers, outbox);
            return;
        }
        // A server of version 0.1 would take the id of a native frame for a part of the payload, and none of them would recognise it.
        if !publish.message_id.is_empty() && !exchange.grants(Features::MESSAGE_IDS) {
            let reason = "the server does not recognise message ids".into();
            return fail(id, outcome, ErrorCode::BadRequest as u16, reason, timers, outbox);
        }
        let Some(request) = exchange.publish(publish, outbox) else {
            let bytes_max = exchange.message_bytes_max();
            let reason = format!("it does not fit into a message; the server accepts {bytes_max} bytes");
            let code = ErrorCode::TooLarge as u16;
            fail(id, outcome, code, reason.into(), timers, outbox);
            return;
        };
        let kept_bytes = kept_bytes(&publish);
        if kept_bytes > 0 {
            let known_until_ns = match known_until_ns {
                0 => now_ns.saturating_add(RETRIED_AGE_MS_MAX * 1_000_000),
                known => known,
            };
            self.kept_bytes += kept_bytes;
            self.kept.insert(id.0, Waiting::new(&publish, known_until_ns));
        }
        self.in_flight.insert(request, id.0);
        self.requests.insert(id.0, request);
        self.invariants();
    }

    /// A server with this epoch has welcomed the client.
    pub(super) fn handle_welcome(&mut self, epoch: u64) {
        self.is_same_server = mem::replace(&mut self.epoch, epoch) == epoch;
    }

    /// Sends those that wait, in order, as far as more may be in flight. Fails those sent to another server, or too long ago.
    pub(super) fn send_waiting(
        &mut self,
        now_ns: u64,
        exchange: &mut Exchange,
        timers: &mut Timers,
        outbox: &mut Outbox,
    ) {
        while let Some((&id, publish)) = self.waiting.first_key_value() {
            let known_until_ns = publish.known_until_ns;
            let is_known = known_until_ns == 0 || (self.is_same_server && now_ns < known_until_ns);
            // With none in flight no answer would make room.
            if is_known && !self.in_flight.is_empty() && !self.has_room(&publish.request()) {
                return;
            }
            let Some(publish) = self.remove_waiting(id) else { return };
            let id = PublishId(id);
            if is_known {
                let at = (now_ns, known_until_ns);
                self.send_known(id, publish.request(), at, exchange, timers, outbox);
            } else {
                let reason = "the server does not know its message id any more".into();
                fail(id, PublishOutcome::Unknown, 0, reason, timers, outbox);
            }
        }
    }

    /// The server has sequenced a tick. An answer that is not awaited any more means nothing.
    pub(super) fn handle_published(
        &mut self,
        request: u32,
        published: (Box<str>, Position, bool),
        timers: &mut Timers,
        outbox: &mut Outbox,
    ) {
        if let Some(publish) = self.answered(request) {
            timers.cancel(&Timer::Publish(publish.0));
            let (topic, position, is_duplicate) = published;
            let published = PublishedAt { topic, position, is_duplicate };
            outbox.emit(ClientEvent::Published { publish, published });
        }
    }

    /// The server has refused a request; returns whether it was a publish.
    pub(super) fn handle_refused(
        &mut self,
        request: u32,
        code: u16,
        text: &str,
        timers: &mut Timers,
        outbox: &mut Outbox,
    ) -> bool {
        let answered = self.answered(request);
        if let Some(id) = answered {
            fail(id, PublishOutcome::Refused, code, text.into(), timers, outbox);
        }
        answered.is_some()
    }

    /// A publish has waited for long enough.
    pub(super) fn handle_timeout(&mut self, id: u64, timers: &mut Timers, outbox: &mut Outbox) {
        let id = PublishId(id);
        if let Some(waiting) = self.remove_waiting(id.0) {
            let outcome = outcome(waiting.known_until_ns);
            fail(id, outcome, 0, "it could not be sent in time".into(), timers, outbox);
        } else if let Some(&request) = self.requests.get(&id.0) {
            self.answered(request);
            fail(id, PublishOutcome::Unknown, 0, "no answer in time".into(), timers, outbox);
        }
        self.invariants();
    }

    /// The connection is lost: nobody knows what became of those in flight. If it is final, the others are not sent either.
    pub(super) fn handle_lost(
        &mut self,
        code: u16,
        reason: &Arc<str>,
        is_final: bool,
        timers: &mut Timers,
        outbox: &mut Outbox,
    ) {
        self.in_flight.clear();
        self.kept_bytes = 0;
        let mut kept = mem::take(&mut self.kept);
        for id in mem::take(&mut self.requests).into_keys() {
            match kept.remove(&id) {
                // It was within the bounds of those in flight, so it will be again.
                Some(publish) => drop(self.waiting.insert(id, publish)),
                None => fail(PublishId(id), PublishOutcome::Unknown, code, reason.clone(), timers, outbox),
            }
        }
        if is_final {
            (self.queued, self.queued_bytes) = (0, 0);
            for (id, publish) in mem::take(&mut self.waiting) {
                let outcome = outcome(publish.known_until_ns);
                fail(PublishId(id), outcome, code, reason.clone(), timers, outbox);
            }
        }
        self.invariants();
    }

    /// Checks the tables and counts against each other, and the sums while few publishes are unanswered.
    fn invariants(&self) {
        if cfg!(debug_assertions) {
            assert!(self.queued <= self.queued_max, "those that have not been sent are bounded");
            assert!(self.queued_bytes <= OFFLINE_QUEUE_BYTES_MAX, "so are their payloads");
            let repeated = self.waiting.len() - self.queued;
            assert!(self.requests.len() + repeated <= PUBLISHES_UNACKNOWLEDGED_MAX, "so are the others");
            assert_eq!(self.in_flight.len(), self.requests.len(), "both maps have those in flight");
            assert!(self.kept_bytes <= RETRIED_BYTES_MAX && self.kept.len() <= self.requests.len());
            if self.len() <= CHECKED_MAX {
                let queued = self.waiting.values().filter(|waiting| waiting.known_until_ns == 0);
                assert_eq!(self.queued, queued.clone().count(), "those that have not been sent are counted");
                assert_eq!(
                    self.queued_bytes,
                    queued.map(|waiting| waiting.request().payload.len()).sum::<usize>()
                );
                assert!(
                    self.kept.keys().all(|id| self.requests.contains_key(id)),
                    "only those in flight are kept"
                );
                let kept = self.kept.values().map(|kept| kept_bytes(&kept.request()));
                assert_eq!(self.kept_bytes, kept.sum::<usize>(), "what is kept is counted");
                assert!(
                    self.waiting.keys().all(|id| !self.requests.contains_key(id)),
                    "one waits or is in flight"
                );
            }
        }
    }

    /// Removes a publish in flight.
    fn answered(&mut self, request: u32) -> Option<PublishId> {
        let id = self.in_flight.remove(&request)?;
        self.requests.remove(&id);
        if let Some(kept) = self.kept.remove(&id) {
            self.kept_bytes -= kept_bytes(&kept.request());
        }
        self.invariants();
        Some(PublishId(id))
    }
}

/// Reports that a publish has failed.
pub(super) fn fail(
    publish: PublishId,
    outcome: PublishOutcome,
    code: u16,
    reason: Arc<str>,
    timers: &mut Timers,
    outbox: &mut Outbox,
) {
    timers.cancel(&Timer::Publish(publish.0));
    let failure = PublishFailure { outcome, code, reason };
    outbox.emit(ClientEvent::PublishFailed { publish, failure });
}
