//! Waiting until the server has answered.

use std::time::Duration;

use super::{Client, READ_BYTES, close_reason, closed};
use crate::{ClientError, Event, PublishRequest, RequestError, clock::Deadline, error::ROOM_AWAITED};
use tickcast_proto::subscription::Position;

/// Whether the server has answered.
enum Answered {
    All,
    /// The awaited answer, for the error.
    Missing(&'static str),
}

impl Client {
    /// Publishes one tick, waits until the server has acknowledged it, and returns its position. Other events go to `other`.
    /// Returns `None` if the server does not acknowledge publishes ([`Connection::acknowledges`](crate::Connection)): then it has
    /// answered a ping sent after the tick, but another shard of the server may still refuse the tick.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the server refuses the tick; otherwise as [`Client::barrier`]. After an error other than a
    /// refusal or [`ClientError::Request`], it is not known whether the tick was published.
    pub fn publish_acknowledged(
        &mut self,
        publish: PublishRequest<'_>,
        timeout: Duration,
        mut other: impl FnMut(Event<'_>),
    ) -> Result<Option<Position>, ClientError> {
        let deadline = Deadline::after(Some(timeout));
        if self.connection.poll_transmit().len() >= READ_BYTES {
            self.send_until(deadline, timeout)?;
        }
        let sent = self.connection.publish(publish)?;
        self.send_until(deadline, timeout)?;
        let (mut position, mut refusal) = (None, None);
        let mut take = |event: Event<'_>| match event {
            Event::Published { request, epoch, sequence, .. } if request == sent => {
                position = Some(Position { epoch, sequence });
                true
            }
            Event::Error { request, code, text } if request == sent => {
                refusal = Some(ClientError::Refused { code, text: text.to_owned() });
                true
            }
            event => {
                other(event);
                false
            }
        };
        match self.connection().acknowledges() {
            true => {
                let is_answered = |_, event: Option<Event<'_>>| match event {
                    Some(event) if take(event) => Answered::All,
                    _ => Answered::Missing("acknowledgement"),
                };
                self.wait_for(timeout, deadline, is_answered)?
            }
            false => self.barrier_until(timeout, deadline, |event| {
                take(event);
            })?,
        }
        refusal.map_or(Ok(position), Err)
    }

    /// Waits until the server has processed everything sent before. Other events go to `other`.
    ///
    /// If the server acknowledges publishes ([`Connection::acknowledges`](crate::Connection)), this waits until each has been
    /// acknowledged or refused. Otherwise, the answer to a ping says only that one shard of the server has processed the
    /// publishes: another may still refuse some.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] after `timeout`; [`ClientError::Closed`] if the server closes the connection first.
    pub fn barrier(&mut self, timeout: Duration, other: impl FnMut(Event<'_>)) -> Result<(), ClientError> {
        self.barrier_until(timeout, Deadline::after(Some(timeout)), other)
    }

    fn barrier_until(
        &mut self,
        timeout: Duration,
        deadline: Deadline,
        mut other: impl FnMut(Event<'_>),
    ) -> Result<(), ClientError> {
        let sent = match self.connection.ping() {
            Ok(token) => Some(token),
            // Events received before the end come first.
            Err(RequestError::Ended) => None,
            Err(error) => return Err(error.into()),
        };
        self.send_until(deadline, timeout)?;
        let mut has_pong = false;
        self.wait_for(timeout, deadline, |unacknowledged, event| {
            match event {
                Some(Event::Pong { token }) if Some(token) == sent => has_pong = true,
                Some(event) => other(event),
                None => {}
            }
            match (has_pong, unacknowledged) {
                (false, _) => Answered::Missing("answer to a ping"),
                (true, 0) => Answered::All,
                (true, _) => Answered::Missing("acknowledgement of each publish"),
            }
        })
    }

    /// Writes everything queued. `Ok` even if the connection broke: the remaining events say why.
    fn send_until(&mut self, deadline: Deadline, timeout: Duration) -> Result<(), ClientError> {
        match self.flush_until(deadline) {
            Ok(true) | Err(ClientError::Io(_)) => Ok(()),
            Ok(false) => Err(ClientError::TimedOut { awaited: ROOM_AWAITED, waited: timeout }),
            Err(error) => Err(error),
        }
    }

    /// Passes events to `take`, with the number of unanswered publishes, until no answer is missing. Before each wait, it calls
    /// `take` without an event.
    fn wait_for(
        &mut self,
        timeout: Duration,
        deadline: Deadline,
        mut take: impl FnMut(usize, Option<Event<'_>>) -> Answered,
    ) -> Result<(), ClientError> {
        let mut closing = None;
        loop {
            // The event borrows the connection, so what it changes is counted on the next round.
            let Answered::Missing(awaited) = take(self.connection().unacknowledged(), None) else {
                return Ok(());
            };
            let unacknowledged = self.connection().unacknowledged();
            match self.next_event(deadline.remaining())? {
                None => return Err(ClientError::TimedOut { awaited, waited: timeout }),
                Some(Event::Closed) => return Err(closed(closing)),
                Some(event) => {
                    closing = close_reason(&event).or(closing);
                    if let Answered::All = take(unacknowledged, Some(event)) {
                        return Ok(());
                    }
                }
            }
        }
    }
}
