//! Publishing over a connection that comes and goes.

use crate::{ClientError, PublishRequest, ReconnectingClient};

impl ReconnectingClient {
    /// Publishes one tick at once, and tells whether it was sent: without a connection it is not, and it is not kept for
    /// the next one. A refusal by the server is an [`crate::Event::Error`] of request 0.
    ///
    /// # Errors
    /// [`ClientError::Request`] for what no server could take; otherwise as [`ReconnectingClient::next_event`]. A
    /// connection that is lost is no error.
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<bool, ClientError> {
        let Some(client) = &mut self.client else { return Ok(false) };
        match client.publish(publish) {
            Ok(_) => Ok(true),
            Err(error @ ClientError::Request(_)) => Err(error),
            Err(error) => self.lose(error).map(|()| false),
        }
    }
}
