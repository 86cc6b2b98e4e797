//! Publishing while the connection may be lost.

use crate::{ClientError, PublishRequest, ReconnectingClient};

impl ReconnectingClient {
    /// Publishes one tick and flushes; returns whether it was sent. While disconnected, ticks are neither sent nor kept for
    /// the next connection. If the server rejects the tick, an [`crate::Event::Error`] with request 0 follows.
    ///
    /// # Errors
    /// [`ClientError::Request`] if the request is invalid. A lost connection is no error. Otherwise as
    /// [`ReconnectingClient::next_event`].
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<bool, ClientError> {
        let Some(client) = &mut self.client else { return Ok(false) };
        match client.publish(publish) {
            Ok(_) => Ok(true),
            Err(error @ ClientError::Request(_)) => Err(error),
            Err(error) => self.handle_lost(error).map(|()| false),
        }
    }
}
