//! Waiting until the server has answered.

use std::time::Duration;

use super::{Client, close_reason, closed};
use crate::{ClientError, Event, PublishRequest, clock::Deadline};
use tickcast_proto::subscription::Position;

impl Client {
    /// Publishes one tick and waits until the server has acknowledged it; returns the position that it was given. Other events
    /// go to `other`.
    ///
    /// `None` if the server does not acknowledge publishes ([`Connection::acknowledges`](crate::Connection)): then it has
    /// answered a ping after the tick, but another shard of the server may still refuse it.
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
        let sent = self.publish(publish)?;
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
                self.wait_for("acknowledgement", timeout, deadline, |_, event| event.is_some_and(&mut take))?
            }
            false => self.barrier(timeout, |event| {
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
    pub fn barrier(
        &mut self,
        timeout: Duration,
        mut other: impl FnMut(Event<'_>),
    ) -> Result<(), ClientError> {
        let sent = self.ping()?;
        let mut has_pong = false;
        self.wait_for("answer to a ping", timeout, Deadline::after(Some(timeout)), |unacknowledged, event| {
            match event {
                Some(Event::Pong { token }) if token == sent => has_pong = true,
                Some(event) => other(event),
                None => {}
            }
            has_pong && unacknowledged == 0
        })
    }

    /// Passes events to `take`, with the number of publishes that wait for an answer, until it returns `true`. Before each wait,
    /// there is a call without an event.
    fn wait_for(
        &mut self,
        awaited: &'static str,
        timeout: Duration,
        deadline: Deadline,
        mut take: impl FnMut(usize, Option<Event<'_>>) -> bool,
    ) -> Result<(), ClientError> {
        let mut closing = None;
        loop {
            // The event borrows the connection, so what it changes is counted on the next round.
            if take(self.connection().unacknowledged(), None) {
                return Ok(());
            }
            let unacknowledged = self.connection().unacknowledged();
            match self.next_event(deadline.remaining())? {
                None => return Err(ClientError::TimedOut { awaited, waited: timeout }),
                Some(Event::Closed) => return Err(closed(closing)),
                Some(event) => {
                    closing = close_reason(&event).or(closing);
                    if take(unacknowledged, Some(event)) {
                        return Ok(());
                    }
                }
            }
        }
    }
}
