//! Publishing while the connection may be lost.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    Client, ClientError, Connection, Event, PUBLISHES_UNACKNOWLEDGED_MAX, PublishRequest, RETRIED_AGE_MS_MAX,
    RETRIED_BYTES_MAX, ReconnectingClient, RequestError,
    clock::{self, Deadline},
    request::OwnedPublish,
};
use tickcast_proto::ErrorCode;

/// Bytes in the connection's output up to which publishes that wait are added to it. So a server that sends much itself, such as what
/// subscriptions missed, is read in between: it reads no more from a client that reads nothing.
const RESENT_BYTES: usize = 64 << 10;

/// Waits for an event, and returns whether there is one in time; `None`: there is room for publishes that wait for it, and no event.
pub(super) fn await_event_or_room(
    client: &mut Client,
    wants_room: bool,
    deadline: Deadline,
) -> Result<Option<bool>, ClientError> {
    let has_room = |connection: &Connection| wants_room && connection.poll_transmit().len() < RESENT_BYTES;
    let is_over = client.await_event_or(deadline, has_room)?;
    let is_room = is_over && wants_room && !client.connection_mut().has_event()?;
    Ok(Some(is_over).filter(|_| !is_room))
}

/// Publishes with message ids that the server has not answered: they are sent again on the next connection, a part at a time. Publishes
/// that the application makes meanwhile wait behind them.
///
/// Bound: [`PUBLISHES_UNACKNOWLEDGED_MAX`] of them, and [`RETRIED_BYTES_MAX`].
/// Invariant: each of `waiting` is kept.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// By the number that the caller knows.
    kept: BTreeMap<u32, Kept>,
    bytes: usize,
    /// Numbers of those that are still to be sent on this connection, oldest first.
    waiting: VecDeque<u32>,
    /// Numbers of those that cannot be sent any more, and whether they were sent before.
    failed: VecDeque<(u32, bool)>,
}

/// A publish that may be sent again, or has not been sent yet.
#[derive(Debug)]
struct Kept {
    publish: OwnedPublish,
    /// `None`: it has never been sent.
    sent: Option<Sent>,
}

/// When and where a publish was first sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Epoch of the server: only that server knows the message id.
    server_epoch: u64,
    /// Nanoseconds on a monotonic clock.
    at_ns: u64,
}

impl Kept {
    /// Whether the server of this epoch may get it: it has not been sent before, or that server still knows its id.
    fn may_go_to(&self, server_epoch: u64) -> bool {
        self.sent.is_none_or(|sent| {
            let age_ns = clock::monotonic_ns().saturating_sub(sent.at_ns);
            server_epoch == sent.server_epoch && age_ns <= RETRIED_AGE_MS_MAX * 1_000_000
        })
    }

    fn request(&self) -> PublishRequest<'_> {
        self.publish.request()
    }
}

impl Retries {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Bytes that a publish takes if it is kept.
    fn bytes_of(publish: &PublishRequest<'_>) -> usize {
        publish.topic.len() + publish.payload.len() + publish.message_id.len() + size_of::<Kept>()
    }

    fn check_room(&self, publish: &PublishRequest<'_>) -> Result<(), RequestError> {
        let has_room = self.bytes + Retries::bytes_of(publish) <= RETRIED_BYTES_MAX
            && self.kept.len() < PUBLISHES_UNACKNOWLEDGED_MAX;
        if has_room { Ok(()) } else { Err(RequestError::Unacknowledged) }
    }

    fn keep(&mut self, number: u32, publish: &PublishRequest<'_>, sent: Option<Sent>) {
        self.bytes += Retries::bytes_of(publish);
        self.kept.insert(number, Kept { publish: OwnedPublish::new(publish), sent });
    }

    /// Forgets a publish that the server has answered.
    pub(super) fn handle_answer(&mut self, number: u32) {
        if let Some(kept) = self.kept.remove(&number) {
            self.bytes -= Retries::bytes_of(&kept.request());
        }
    }

    /// There is a new connection: everything kept waits for it.
    pub(super) fn handle_connected(&mut self) {
        self.waiting = self.kept.keys().copied().collect();
    }

    pub(super) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The next publish that cannot be sent any more, as an error.
    pub(super) fn pop_failed(&mut self) -> Option<Event<'static>> {
        let (request, was_sent) = self.failed.pop_front()?;
        let (code, text) = match was_sent {
            true => (
                ErrorCode::Unconfirmed,
                "the server that had it does not know its message id any more: it may be published",
            ),
            false => {
                (ErrorCode::BadRequest, "the server does not take it in this form: it was not published")
            }
        };
        Some(Event::Error { request, code: code as u16, text })
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
    /// Those that are sent again go out during [`ReconnectingClient::next_event`]. Until then, this call does not flush: its tick waits
    /// behind them.
    ///
    /// # Errors
    /// [`ClientError::Request`] if the request is invalid, or if too many publishes wait for their answer, or, with message ids or
    /// behind such, more than [`RETRIED_BYTES_MAX`]. A lost connection is no error. Otherwise as [`ReconnectingClient::next_event`].
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<Option<u32>, ClientError> {
        let Some(client) = &mut self.client else { return Ok(None) };
        if client.has_write_failure() {
            return Ok(None);
        }
        let is_kept = !publish.message_id.is_empty();
        if !self.retries.waiting.is_empty() {
            if is_kept && !client.connection().recognises_message_ids() {
                return Err(RequestError::MessageIdsNotGranted.into());
            }
            self.retries.check_room(&publish)?;
            let number = self.numbers.next();
            self.retries.keep(number, &publish, None);
            self.retries.waiting.push_back(number);
            return Ok(Some(number));
        }
        if is_kept {
            self.retries.check_room(&publish)?;
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
        if let Some(server_epoch) = client.connection().server_epoch().filter(|_| is_kept) {
            let sent = Sent { server_epoch, at_ns: clock::monotonic_ns() };
            self.retries.keep(number, &publish, Some(sent));
        }
        Ok(Some(number))
    }

    /// Queues some of the publishes that wait for the connection, oldest first. Returns whether others wait for room in the output.
    pub(super) fn publish_waiting(&mut self) -> bool {
        let ReconnectingClient { client: Some(client), retries, requests, .. } = self else { return false };
        let connection = client.connection_mut();
        let server_epoch = connection.server_epoch().unwrap_or_default();
        while let Some(&number) = retries.waiting.front() {
            if connection.poll_transmit().len() >= RESENT_BYTES {
                return true;
            }
            let Some(kept) = retries.kept.get_mut(&number) else {
                debug_assert!(false, "what waits is kept");
                retries.waiting.pop_front();
                continue;
            };
            let sent = kept.may_go_to(server_epoch).then(|| connection.publish(kept.request()));
            match sent {
                // The server answers others first, or the connection has ended.
                Some(Err(
                    RequestError::Unacknowledged | RequestError::Backpressure | RequestError::Ended,
                )) => {
                    return false;
                }
                Some(Ok(request)) => {
                    if connection.acknowledges() {
                        requests.insert(request, number);
                    }
                    kept.sent.get_or_insert(Sent { server_epoch, at_ns: clock::monotonic_ns() });
                    if kept.request().message_id.is_empty() {
                        // It cannot be sent again.
                        retries.handle_answer(number);
                    }
                }
                None | Some(Err(_)) => {
                    let was_sent = kept.sent.is_some();
                    retries.handle_answer(number);
                    retries.failed.push_back((number, was_sent));
                }
            }
            retries.waiting.pop_front();
        }
        false
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
        let waiting = self.retries.waiting.len();
        self.client
            .as_ref()
            .map_or(self.retries.len(), |client| client.connection().unacknowledged() + waiting)
    }
}
