//! Decoding of WebSocket messages: whole data frames in place, everything else through the WebSocket decoder.

use crate::{
    ProtocolError,
    connection::{Connection, JsonState, Phase, Progress},
    reply::{self, Buffer, JsonTarget, Span, StoredEvent},
    request::Outgoing,
};
use tickcast_proto::{
    DecodeError, ErrorCode, Step, WireFormat,
    codec::MessageType,
    features::Features,
    frame::HelloParts,
    framing::websocket::{self, Incoming},
};

/// Number of the hello, a connection's first request.
const HELLO_REQUEST: u32 = 1;

impl Connection {
    pub(super) fn step_websocket(&mut self) -> Result<Progress, ProtocolError> {
        if self.message_left > 0 {
            return match self.encoding {
                WireFormat::WEBSOCKET_JSON => self.step_json(),
                _ => self.step_message_frame(),
            };
        }
        let bytes = &self.input[self.consumed..];
        let Some(header) = DataHeader::decode(bytes).filter(|_| !self.fragmented) else {
            return self.step_other_frame();
        };
        if header.payload_len > self.message_bytes_max as u64 {
            let bytes_max = self.message_bytes_max;
            return Err(DecodeError::TooLarge { bytes: header.payload_len, bytes_max }.into());
        }
        let expected =
            if self.encoding == WireFormat::WEBSOCKET_JSON { MessageType::Text } else { MessageType::Binary };
        if header.data_type != expected {
            return Err(DecodeError::WrongMessageType(
                "the message is text where binary is expected, or binary where text is",
            )
            .into());
        }
        let whole_len = header.header_len + header.payload_len as usize;
        let whole_needed = self.encoding != WireFormat::WEBSOCKET_NATIVE;
        if whole_needed && bytes.len() < whole_len {
            return Ok(Progress::NeedMore);
        }
        if matches!(self.phase, Phase::ClosingReceived) {
            return Err(ProtocolError::AfterClosing);
        }
        let start = self.consumed + header.header_len;
        let len = header.payload_len as usize;
        match self.encoding {
            WireFormat::WEBSOCKET_RAW => {
                self.consumed += whole_len;
                let payload = Span { buffer: Buffer::Input, start, len };
                return Ok(Progress::Event(StoredEvent::Payload(payload)));
            }
            WireFormat::WEBSOCKET_JSON => {
                if len == 0 {
                    return Err(ProtocolError::Json("an empty message".into()));
                }
                simdutf8::basic::from_utf8(&self.input[start..start + len])
                    .map_err(|_| DecodeError::NotUtf8)?;
                self.json = JsonState::Start;
            }
            _ => {}
        }
        self.consumed = start;
        self.message_left = len;
        Ok(Progress::Consumed)
    }

    /// Decodes a native frame of the current WebSocket message. Frames are decoded as they arrive: the message need not be
    /// complete, but it must end where a frame ends.
    #[inline]
    fn step_message_frame(&mut self) -> Result<Progress, ProtocolError> {
        let available = self.message_left.min(self.input_waiting_bytes());
        let before = self.consumed;
        let progress = self.step_frame(before + available)?;
        if matches!(progress, Progress::NeedMore) && available == self.message_left {
            return Err(DecodeError::WebSocket("a frame extends beyond its message".into()).into());
        }
        self.message_left -= self.consumed - before;
        Ok(progress)
    }

    /// Decodes the next value of the current JSON message, which is complete.
    fn step_json(&mut self) -> Result<Progress, ProtocolError> {
        let end = self.consumed + self.message_left;
        let rest = &self.input[self.consumed..end];
        let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let (state, used) = match (self.json, rest.get(blank)) {
            (JsonState::End, None) => (JsonState::Start, blank),
            (JsonState::Start, Some(b'[')) => (JsonState::FirstOfArray, blank + 1),
            (JsonState::FirstOfArray | JsonState::RestOfArray, Some(b']')) => (JsonState::End, blank + 1),
            (JsonState::RestOfArray, Some(b',')) => return self.step_json_value(blank + 1, end),
            (JsonState::Start | JsonState::FirstOfArray, Some(_)) => return self.step_json_value(blank, end),
            _ => return Err(ProtocolError::Json("a message must be one JSON object or array".into())),
        };
        self.json = state;
        self.consume_json(used)?;
        Ok(Progress::Consumed)
    }

    fn step_json_value(&mut self, skip: usize, end: usize) -> Result<Progress, ProtocolError> {
        if matches!(self.phase, Phase::ClosingReceived) {
            return Err(ProtocolError::AfterClosing);
        }
        let text = &self.input[self.consumed + skip..end];
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<reply::Message<'_>>();
        let (stored, used) = match values.next() {
            Some(Ok(message)) => {
                let used = values.byte_offset();
                let target = JsonTarget {
                    scratch: &mut self.scratch,
                    topics: &mut self.topics,
                    queue: &mut self.queue,
                };
                (reply::from_json(message, target)?, used)
            }
            // The fields of an operation that this client does not know may have other types.
            Some(Err(error)) => match reply::unknown_operation(text) {
                Some(used) => (None, used),
                None => return Err(ProtocolError::Json(error.to_string())),
            },
            None => return Err(ProtocolError::Json("a value is missing in an array".into())),
        };
        let used = skip + used;
        self.json = if self.json == JsonState::Start { JsonState::End } else { JsonState::RestOfArray };
        self.consume_json(used)?;
        match stored {
            Some(StoredEvent::Error { request: HELLO_REQUEST, code, .. })
                if code == ErrorCode::BadRequest as u16
                    && let Some(name) = self.hello_name.take() =>
            {
                // A server of version 0.1 refuses the field `features`.
                let (request, features) = (HELLO_REQUEST, Features::NONE);
                let hello = HelloParts { request, client: "", name: &name, features };
                // Enqueuing fails only for long requests, and this one is short.
                let _ = self.enqueue(&Outgoing::Hello(hello, ""));
                Ok(Progress::Consumed)
            }
            Some(stored) => self.apply(&stored).map(|()| Progress::Event(stored)),
            None => Ok(Progress::Consumed),
        }
    }

    fn consume_json(&mut self, used: usize) -> Result<(), ProtocolError> {
        self.consumed += used;
        self.message_left -= used;
        if self.message_left == 0 && matches!(self.json, JsonState::FirstOfArray | JsonState::RestOfArray) {
            return Err(ProtocolError::Json("an array does not end".into()));
        }
        Ok(())
    }

    /// Decodes a frame that is not a whole data message: a control frame, a fragment, or an invalid one.
    fn step_other_frame(&mut self) -> Result<Progress, ProtocolError> {
        let Some(websocket) = &mut self.websocket else {
            debug_assert!(false, "native connections never decode WebSocket frames");
            return Ok(Progress::NeedMore);
        };
        let bytes = &self.input[self.consumed..];
        let (used, incoming) = match websocket.step(bytes, &mut self.output)? {
            Step::Partial => return Ok(Progress::NeedMore),
            Step::Complete(used, incoming) => (used, incoming),
        };
        let first = bytes[0];
        let start = self.consumed;
        let (data_type, payload) = match &incoming {
            Incoming::Text(text) => (MessageType::Text, text.as_bytes()),
            Incoming::Binary(bytes) => (MessageType::Binary, &bytes[..]),
            Incoming::Nothing => {
                let token = bytes[..used].last_chunk::<8>().filter(|_| used == 10 && first == 0x8a).copied();
                self.consumed += used;
                if first & 0x0f < 8 {
                    self.fragmented = true;
                }
                return Ok(match token {
                    Some(token) if self.encoding == WireFormat::WEBSOCKET_RAW => {
                        Progress::Event(StoredEvent::Pong { token: u64::from_le_bytes(token) })
                    }
                    _ => Progress::Consumed,
                });
            }
            Incoming::Close(code) => {
                self.consumed += used;
                // A close frame from a server has two bytes of header, two of code if there is one, then the reason.
                let text =
                    Span { buffer: Buffer::Input, start: start + used.min(4), len: used.saturating_sub(4) };
                let is_expected = matches!(self.phase, Phase::ClosingReceived | Phase::CloseSent);
                self.phase = Phase::Closed;
                return Ok(match is_expected {
                    true => Progress::Consumed,
                    false => {
                        Progress::Event(StoredEvent::Closing { code: *code, text, reconnect_after_ms: 0 })
                    }
                });
            }
        };
        // Put a reassembled message back into the input as one frame, so that one code path decodes all messages.
        let mut whole = Vec::with_capacity(payload.len() + 10);
        websocket::encode(&mut whole, data_type, payload);
        self.input.splice(start..start + used, whole);
        self.fragmented = false;
        Ok(Progress::Consumed)
    }
}

/// The header of an unmasked data frame that is a whole message (RFC 6455, section 5.2).
struct DataHeader {
    data_type: MessageType,
    header_len: usize,
    payload_len: u64,
}

impl DataHeader {
    /// `None` for every other frame and for an incomplete header; the WebSocket decoder tells them apart.
    #[inline]
    fn decode(bytes: &[u8]) -> Option<DataHeader> {
        let data_type = match bytes.first()? {
            0x81 => MessageType::Text,
            0x82 => MessageType::Binary,
            _ => return None,
        };
        let (header_len, payload_len) = match *bytes.get(1)? {
            short @ 0..=125 => (2, u64::from(short)),
            126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
            127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
            _ => return None,
        };
        Some(DataHeader { data_type, header_len, payload_len })
    }
}
