//! Publishing while the connection may be lost.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    ClientError, Event, PublishRequest, RETRIED_AGE_MS_MAX, RETRIED_BYTES_MAX, ReconnectingClient,
    RequestError, clock,
};
use tickcast_proto::ErrorCode;

/// Publishes with message ids that the server has not answered: they are sent again on the next connection.
///
/// Bound: [`PUBLISHES_UNACKNOWLEDGED_MAX`](crate::PUBLISHES_UNACKNOWLEDGED_MAX) of them, and [`RETRIED_BYTES_MAX`].
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// By the number that the caller knows.
    kept: BTreeMap<u32, Kept>,
    bytes: usize,
    /// Numbers of those that cannot be sent again.
    unconfirmed: VecDeque<u32>,
}

/// A publish that may be sent again.
#[derive(Debug)]
struct Kept {
    topic: Box<str>,
    payload: Box<[u8]>,
    producer_time_ns: u64,
    schema: u32,
    key: u64,
    message_id: Box<str>,
    /// Epoch of the server that it was sent to: only that server knows the id.
    server_epoch: u64,
    /// When it was first sent, nanoseconds on a monotonic clock.
    sent_ns: u64,
}

impl Kept {
    /// Whether the server of this epoch still knows its id.
    fn is_known_to(&self, server_epoch: Option<u64>) -> bool {
        let age_ns = clock::monotonic_ns().saturating_sub(self.sent_ns);
        server_epoch == Some(self.server_epoch) && age_ns <= RETRIED_AGE_MS_MAX * 1_000_000
    }

    fn request(&self) -> PublishRequest<'_> {
        let Kept { topic, payload, producer_time_ns, schema, key, message_id, .. } = self;
        let (producer_time_ns, schema, key) = (*producer_time_ns, *schema, *key);
        PublishRequest { topic, payload, producer_time_ns, schema, key, message_id }
    }
}

impl Retries {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Bytes that a publish takes if it is kept.
    fn bytes_of(publish: &PublishRequest<'_>) -> usize {
        match publish.message_id {
            "" => 0,
            id => publish.topic.len() + publish.payload.len() + id.len() + size_of::<Kept>(),
        }
    }

    fn keep(&mut self, number: u32, publish: &PublishRequest<'_>, server_epoch: u64) {
        self.bytes += Retries::bytes_of(publish);
        let PublishRequest { topic, payload, producer_time_ns, schema, key, message_id } = *publish;
        let (topic, payload, message_id) = (topic.into(), payload.into(), message_id.into());
        let sent_ns = clock::monotonic_ns();
        let kept = Kept { topic, payload, producer_time_ns, schema, key, message_id, server_epoch, sent_ns };
        self.kept.insert(number, kept);
    }

    /// Forgets a publish that the server has answered.
    pub(super) fn handle_answer(&mut self, number: u32) {
        if let Some(kept) = self.kept.remove(&number) {
            self.bytes -= Retries::bytes_of(&kept.request());
        }
    }

    pub(super) fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// The next publish that was not answered and cannot be sent again, as an error.
    pub(super) fn pop_unconfirmed(&mut self) -> Option<Event<'static>> {
        let request = self.unconfirmed.pop_front()?;
        let text = "the server that had it does not know its message id any more: it may be published";
        Some(Event::Error { request, code: ErrorCode::Unconfirmed as u16, text })
    }
}

impl ReconnectingClient {
    /// Publishes one tick and flushes; returns the request's number. While disconnected, returns `None` and drops the tick: it
    /// is not kept for the next connection.
    ///
    /// If the server acknowledges publishes ([`ReconnectingClient::acknowledges`]), [`Event::Published`](crate::Event) or
    /// [`Event::Error`](crate::Event) with this number answers. [`StreamEvent::Disconnected`](crate::StreamEvent) counts the
    /// answers that are lost with a connection: those ticks may have been published or not. If the server does not acknowledge
    /// publishes, it answers only refusals, by an error with request 0.
    ///
    /// A publish with a message id is kept until it is answered, and sent again after a reconnect, so it is published once. If the
    /// server has restarted meanwhile, if another node has taken its place, or after [`RETRIED_AGE_MS_MAX`], the server may not know
    /// the id any more: then it is not sent again, and an error with this number and code 112 reports it.
    ///
    /// # Errors
    /// [`ClientError::Request`] if the request is invalid, or if too many publishes wait for their answer, or, with message ids, more
    /// than [`RETRIED_BYTES_MAX`]. A lost connection is no error. Otherwise as [`ReconnectingClient::next_event`].
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<Option<u32>, ClientError> {
        let Some(client) = &mut self.client else { return Ok(None) };
        if client.has_write_failure() {
            return Ok(None);
        }
        if self.retries.bytes + Retries::bytes_of(&publish) > RETRIED_BYTES_MAX {
            return Err(RequestError::Unacknowledged.into());
        }
        let request = match client.connection_mut().publish(publish) {
            Err(RequestError::Ended) => return Ok(None),
            sent => sent?,
        };
        if let Err(error) = client.flush() {
            // Its last byte was not sent, so it was certainly not published.
            client.connection_mut().unacknowledged.handle_answer(request);
            return self.retry_if_lost(Err(error)).map(|()| None);
        }
        let number = self.numbers.next();
        // Without acknowledgements, nothing would ever remove it.
        if client.connection().acknowledges() {
            self.requests.insert(request, number);
        }
        if let Some(epoch) = client.connection().server_epoch().filter(|_| !publish.message_id.is_empty()) {
            self.retries.keep(number, &publish, epoch);
        }
        Ok(Some(number))
    }

    /// Sends the publishes with message ids again that were not answered, oldest first.
    pub(super) fn publish_again(&mut self) -> Result<(), ClientError> {
        let ReconnectingClient { client: Some(client), retries, requests, .. } = self else { return Ok(()) };
        let epoch = client.connection().server_epoch();
        let Retries { kept, bytes, unconfirmed } = retries;
        let mut lost = Vec::new();
        for (&number, publish) in kept.iter() {
            if !publish.is_known_to(epoch) {
                lost.push(number);
                continue;
            }
            // Beyond its output bound the connection rejects requests.
            client.flush()?;
            match client.connection_mut().publish(publish.request()) {
                Ok(request) => {
                    requests.insert(request, number);
                }
                Err(RequestError::Ended) => break,
                Err(_) => lost.push(number),
            }
        }
        for number in lost {
            *bytes -= kept.remove(&number).map_or(0, |publish| Retries::bytes_of(&publish.request()));
            unconfirmed.push_back(number);
        }
        client.flush()
    }

    /// The number of publishes on this connection that will not be answered and not be sent again. Forgets all requests.
    pub(super) fn take_unacknowledged(&mut self) -> usize {
        let unacknowledged = self.client.as_ref().map_or(0, |client| client.connection().unacknowledged());
        let kept = &self.retries.kept;
        let retried = self.requests.drain().filter(|(_, number)| kept.contains_key(number)).count();
        unacknowledged.saturating_sub(retried)
    }

    /// Whether the connected server acknowledges publishes: see [`Connection::acknowledges`](crate::Connection).
    pub fn acknowledges(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.connection().acknowledges())
    }

    /// The number of publishes on this connection that the server has neither acknowledged nor refused yet; while disconnected, of those
    /// that will be sent again.
    pub fn unacknowledged(&self) -> usize {
        self.client.as_ref().map_or(self.retries.len(), |client| client.connection().unacknowledged())
    }
}
