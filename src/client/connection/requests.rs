//! Checks, encodes and queues a connection's requests.

use tungstenite::Message as WebSocketMessage;

use crate::{
    ClientToken, OUTPUT_BYTES_MAX, PublishRequest, RequestError,
    connection::{Connection, Phase},
    request::{Outgoing, REFRESH_REQUEST},
};
use tickcast_proto::{WireFormat, features::Features};

/// Bytes of one request's frames in one WebSocket message. A subscription with many resume positions is split into
/// messages that every server accepts.
const MESSAGE_FRAMES_BYTES: usize = 32 << 10;

impl Connection {
    /// Queues one tick to publish; returns the request's number. Numbers increase by one with each request, including
    /// rejected ones.
    ///
    /// A failure is an [`Event::Error`](crate::Event) with the request's number. If the server acknowledges publishes
    /// ([`Connection::acknowledges`]), a success is an [`Event::Published`](crate::Event) with it: each number is answered once,
    /// unless the connection ends before. Costs one copy of the payload, and in JSON an allocation.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued. [`RequestError::Unacknowledged`] if [`crate::PUBLISHES_UNACKNOWLEDGED_MAX`]
    /// publishes wait for their answer: poll events first.
    pub fn publish(&mut self, publish: PublishRequest<'_>) -> Result<u32, RequestError> {
        let request = self.requests.next();
        if self.unacknowledged.is_full() {
            return Err(RequestError::Unacknowledged);
        }
        // A server of version 0.1 would take the id for a part of the payload.
        if !publish.message_id.is_empty() && !self.recognises_message_ids() {
            return Err(RequestError::MessageIdsNotGranted);
        }
        self.request(&Outgoing::Publish { request, publish })?;
        self.unacknowledged.handle_publish(request);
        Ok(request)
    }

    /// Queues a ping; the answer is an [`Event::Pong`](crate::Event) with the returned token. A raw connection, which has no replies,
    /// sends a WebSocket ping instead; its pong keeps the order as well.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn ping(&mut self) -> Result<u64, RequestError> {
        self.last_token += 1;
        let token = self.last_token;
        self.request(&Outgoing::Ping { token }).map(|()| token)
    }

    /// Queues a new token for the session. The server closes the connection if it is not valid, or for another subject.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued, because too much is waiting, or because the server does not take tokens.
    pub(crate) fn refresh(&mut self, token: &ClientToken) -> Result<(), RequestError> {
        if !self.features.contains(Features::TOKENS) {
            return Err(RequestError::Ended);
        }
        self.request(&Outgoing::Refresh { request: REFRESH_REQUEST, token: token.as_str() })
    }

    /// Whether the server has had no time for the last token. Resets it.
    pub(crate) fn take_refresh_refusal(&mut self) -> bool {
        std::mem::take(&mut self.refresh_refused)
    }

    /// Queues a request, unless it is invalid or too much is waiting.
    pub(super) fn request(&mut self, outgoing: &Outgoing<'_>) -> Result<(), RequestError> {
        if !matches!(self.phase, Phase::Open | Phase::Handshake(_)) || self.eof {
            return Err(RequestError::Ended);
        }
        if self.output.len() + self.deferred.len() - self.written > OUTPUT_BYTES_MAX {
            return Err(RequestError::Backpressure);
        }
        outgoing.check(self.server_frame_bytes_max)?;
        self.enqueue(outgoing)
    }

    /// Encodes a request. Checks only the message size, which depends on the encoding.
    pub(super) fn enqueue(&mut self, outgoing: &Outgoing<'_>) -> Result<(), RequestError> {
        let out =
            if matches!(self.phase, Phase::Handshake(_)) { &mut self.deferred } else { &mut self.output };
        let Some(websocket) = &mut self.websocket else {
            outgoing.encode_frame(out);
            return Ok(());
        };
        let message = match (self.encoding, outgoing) {
            (WireFormat::WEBSOCKET_RAW, Outgoing::Ping { token }) => {
                WebSocketMessage::Ping(token.to_le_bytes().to_vec().into())
            }
            (WireFormat::WEBSOCKET_JSON, _) => {
                let text = outgoing.to_json();
                if text.len() > self.server_frame_bytes_max {
                    let (bytes, bytes_max) = (text.len(), self.server_frame_bytes_max);
                    return Err(RequestError::TooLarge { bytes, bytes_max });
                }
                WebSocketMessage::text(text)
            }
            _ => {
                let mut bytes = Vec::new();
                outgoing.encode_frame(&mut bytes);
                while let Some(end) = end_of_frames(&bytes, MESSAGE_FRAMES_BYTES) {
                    let rest = bytes.split_off(end);
                    websocket
                        .write_masked(out, WebSocketMessage::binary(std::mem::replace(&mut bytes, rest)));
                }
                WebSocketMessage::binary(bytes)
            }
        };
        websocket.write_masked(out, message);
        Ok(())
    }
}

/// End of the last frame that fits into `bytes_max`; `None` if all of them fit, or if the first does not.
fn end_of_frames(bytes: &[u8], bytes_max: usize) -> Option<usize> {
    let mut end = 0;
    while let Some(&len) = bytes.get(end..).and_then(|rest| rest.first_chunk::<4>()) {
        let len = u32::from_le_bytes(len) as usize;
        if end + len > bytes_max {
            return Some(end).filter(|&end| end > 0);
        }
        end += len;
    }
    None
}
