//! Publishing while the connection may be lost.

use crate::{ClientError, PublishRequest, ReconnectingClient, RequestError};

impl ReconnectingClient {
    /// Publishes one tick and flushes; returns the request's number. While disconnected, returns `None` and drops the tick: it
    /// is not kept for the next connection.
    ///
    /// If the server acknowledges publishes ([`ReconnectingClient::acknowledges`]), [`Event::Published`](crate::Event) or
    /// [`Event::Error`](crate::Event) with this number answers. [`StreamEvent::Disconnected`](crate::StreamEvent) counts the
    /// answers that are lost with a connection: those ticks may have been published or not. If the server does not acknowledge
    /// publishes, it answers only refusals, by an error with request 0.
    ///
    /// # Errors
    /// [`ClientError::Request`] if the request is invalid, or if too many publishes wait for their answer. A lost connection is
    /// no error. Otherwise as [`ReconnectingClient::next_event`].
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<Option<u32>, ClientError> {
        let Some(client) = &mut self.client else { return Ok(None) };
        if client.has_write_failure() {
            return Ok(None);
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
        Ok(Some(number))
    }

    /// Whether the connected server acknowledges publishes: see [`Connection::acknowledges`](crate::Connection).
    pub fn acknowledges(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.connection().acknowledges())
    }

    /// The number of publishes on this connection that the server has neither acknowledged nor refused yet.
    pub fn unacknowledged(&self) -> usize {
        self.client.as_ref().map_or(0, |client| client.connection().unacknowledged())
    }
}
