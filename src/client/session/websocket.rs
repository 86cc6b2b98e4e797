//! How a session reads WebSocket messages: whole data frames in place, everything else through the decoder.

use crate::{
    client::{
        SessionError,
        reply::{self, Buffer, Item, JsonTarget, Span},
        session::{JsonPlace, Phase, Progress, Session},
    },
    wire::{
        DecodeError, Encoding, Step,
        websocket::{self, DataType, Incoming},
    },
};

impl Session {
    pub(super) fn step_websocket(&mut self) -> Result<Progress, SessionError> {
        if self.message_left > 0 {
            return match self.encoding {
                Encoding::WebSocketJson => self.step_json(),
                _ => self.step_message_frame(),
            };
        }
        let bytes = &self.input[self.taken..];
        let Some(header) = DataHeader::read(bytes).filter(|_| !self.fragmented) else {
            return self.step_control();
        };
        if header.payload_len > self.message_bytes_max as u64 {
            let bytes_max = self.message_bytes_max;
            return Err(DecodeError::TooLarge { bytes: header.payload_len, bytes_max }.into());
        }
        let expected =
            if self.encoding == Encoding::WebSocketJson { DataType::Text } else { DataType::Binary };
        if header.data_type != expected {
            return Err(DecodeError::WrongMessageType("text where binary belongs, or binary for text").into());
        }
        let whole_len = header.header_len + header.payload_len as usize;
        let whole_needed = self.encoding != Encoding::WebSocketRkyv;
        if whole_needed && bytes.len() < whole_len {
            return Ok(Progress::NeedMore);
        }
        if matches!(self.phase, Phase::Closing) {
            return Err(SessionError::AfterClosing);
        }
        let start = self.taken + header.header_len;
        let len = header.payload_len as usize;
        match self.encoding {
            Encoding::WebSocketRaw => {
                self.taken += whole_len;
                return Ok(Progress::Item(Item::Payload(Span { buffer: Buffer::Input, start, len })));
            }
            Encoding::WebSocketJson => {
                if len == 0 {
                    return Err(SessionError::Json("an empty message".into()));
                }
                simdutf8::basic::from_utf8(&self.input[start..start + len])
                    .map_err(|_| DecodeError::NotUtf8)?;
                self.json = JsonPlace::Start;
            }
            _ => {}
        }
        self.taken = start;
        self.message_left = len;
        Ok(Progress::Taken)
    }

    /// Reads a native frame of the current WebSocket message. Frames are taken as they arrive: the message need not
    /// be whole, but must end where a frame does.
    #[inline]
    fn step_message_frame(&mut self) -> Result<Progress, SessionError> {
        let available = self.message_left.min(self.input_waiting_bytes());
        let before = self.taken;
        let progress = self.step_frame(before + available)?;
        if matches!(progress, Progress::NeedMore) && available == self.message_left {
            return Err(DecodeError::WebSocket("a frame goes on past its message".into()).into());
        }
        self.message_left -= self.taken - before;
        Ok(progress)
    }

    /// Reads the next value of the current JSON message, which is whole.
    fn step_json(&mut self) -> Result<Progress, SessionError> {
        let end = self.taken + self.message_left;
        let rest = &self.input[self.taken..end];
        let blank = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let (place, used) = match (self.json, rest.get(blank)) {
            (JsonPlace::End, None) => (JsonPlace::Start, blank),
            (JsonPlace::Start, Some(b'[')) => (JsonPlace::FirstOfArray, blank + 1),
            (JsonPlace::FirstOfArray | JsonPlace::RestOfArray, Some(b']')) => (JsonPlace::End, blank + 1),
            (JsonPlace::RestOfArray, Some(b',')) => return self.step_json_value(blank + 1, end),
            (JsonPlace::Start | JsonPlace::FirstOfArray, Some(_)) => return self.step_json_value(blank, end),
            _ => return Err(SessionError::Json("not one JSON object or array in a message".into())),
        };
        self.json = place;
        self.take_json(used)?;
        Ok(Progress::Taken)
    }

    fn step_json_value(&mut self, skip: usize, end: usize) -> Result<Progress, SessionError> {
        if matches!(self.phase, Phase::Closing) {
            return Err(SessionError::AfterClosing);
        }
        let text = &self.input[self.taken + skip..end];
        let mut values = serde_json::Deserializer::from_slice(text).into_iter::<reply::Message<'_>>();
        let message = match values.next() {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(SessionError::Json(error.to_string())),
            None => return Err(SessionError::Json("a value is missing".into())),
        };
        let used = skip + values.byte_offset();
        let target =
            JsonTarget { scratch: &mut self.scratch, topics: &mut self.topics, later: &mut self.later };
        let item = reply::from_json(message, target)?;
        self.json = if self.json == JsonPlace::Start { JsonPlace::End } else { JsonPlace::RestOfArray };
        self.take_json(used)?;
        match item {
            Some(item) => self.note(&item).map(|()| Progress::Item(item)),
            None => Ok(Progress::Taken),
        }
    }

    fn take_json(&mut self, used: usize) -> Result<(), SessionError> {
        self.taken += used;
        self.message_left -= used;
        if self.message_left == 0 && matches!(self.json, JsonPlace::FirstOfArray | JsonPlace::RestOfArray) {
            return Err(SessionError::Json("an array that does not end".into()));
        }
        Ok(())
    }

    /// Reads one frame that is not a whole data message: control frames, fragments, and what is wrong.
    fn step_control(&mut self) -> Result<Progress, SessionError> {
        let Some(websocket) = &mut self.websocket else { return Ok(Progress::NeedMore) };
        let bytes = &self.input[self.taken..];
        let (used, incoming) = match websocket.step(bytes, &mut self.output)? {
            Step::Partial => return Ok(Progress::NeedMore),
            Step::Complete(used, incoming) => (used, incoming),
        };
        let first = bytes[0];
        let start = self.taken;
        let (data_type, payload) = match &incoming {
            Incoming::Text(text) => (DataType::Text, text.as_bytes()),
            Incoming::Binary(bytes) => (DataType::Binary, &bytes[..]),
            Incoming::Nothing => {
                let token = bytes[..used].last_chunk::<8>().filter(|_| used == 10 && first == 0x8a).copied();
                self.taken += used;
                if first & 0x0f < 8 {
                    self.fragmented = true;
                }
                return Ok(match token {
                    Some(token) if self.encoding == Encoding::WebSocketRaw => {
                        Progress::Item(Item::Pong { token: u64::from_le_bytes(token) })
                    }
                    _ => Progress::Taken,
                });
            }
            Incoming::Close(code) => {
                self.taken += used;
                // A close frame from a server has two bytes of header, two of code if there is one, then the reason.
                let text =
                    Span { buffer: Buffer::Input, start: start + used.min(4), len: used.saturating_sub(4) };
                let told = matches!(self.phase, Phase::Closing | Phase::Leaving);
                self.phase = Phase::Closed;
                return Ok(match told {
                    true => Progress::Taken,
                    false => Progress::Item(Item::Closing { code: *code, text, reconnect_after_ms: 0 }),
                });
            }
        };
        // A message that came in fragments goes back as one frame, so that there is one way to read it.
        let mut whole = Vec::with_capacity(payload.len() + 10);
        websocket::encode(&mut whole, data_type, payload);
        self.input.splice(start..start + used, whole);
        self.fragmented = false;
        Ok(Progress::Taken)
    }
}

/// The header of an unmasked data frame that is a whole message (RFC 6455, section 5.2).
struct DataHeader {
    data_type: DataType,
    header_len: usize,
    payload_len: u64,
}

impl DataHeader {
    /// `None` for every other frame, and for a header that is not yet whole: the decoder for those tells which.
    #[inline]
    fn read(bytes: &[u8]) -> Option<DataHeader> {
        let data_type = match bytes.first()? {
            0x81 => DataType::Text,
            0x82 => DataType::Binary,
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
