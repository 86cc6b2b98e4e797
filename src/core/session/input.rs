//! Input that a session has received but not processed.

use super::Session;
use crate::limits::INPUT_SPARE_BYTES;
use tickcast_proto::{codec::Bytes, framing::websocket::Fragments};

/// What a session's input waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InputState {
    /// Nothing: every byte received has been processed.
    #[default]
    Open,
    /// The rest of a frame or of a fragmented message.
    Partial,
    /// Room for the output of its requests: receiving is paused.
    Paused,
}

/// Waiting input. Stored separately from the session, because most sessions have none most of the time.
#[derive(Debug, Default)]
pub struct WaitingInput {
    /// Received but not decoded. At most the longest frame, plus what was in flight when receiving was paused.
    bytes: Vec<u8>,
    /// What is left of a WebSocket message whose other frames have been executed.
    message_rest: Option<MessageRest>,
    /// When the first of `bytes` arrived, CLOCK_MONOTONIC nanoseconds.
    began_ns: u64,
}

/// The frames of a WebSocket message that wait for room, or for earlier requests. They are copied once, however often the session
/// has to wait within the message.
#[derive(Debug)]
pub struct MessageRest {
    /// Whole frames, or what the peer sent in their place.
    pub frames: Bytes,
    /// Bytes of the copy, at most the longest message.
    held_bytes: usize,
    /// When the message was inflated, CLOCK_MONOTONIC nanoseconds; `None`: it was not compressed. The peer has sent far less than an
    /// inflated rest holds, so it counts as unfinished.
    inflated_ns: Option<u64>,
}

impl MessageRest {
    /// Copies the frames of a message. `None` if there is no memory for them.
    pub fn new(frames: &[u8], inflated_ns: Option<u64>) -> Option<MessageRest> {
        let mut copy = Vec::new();
        copy.try_reserve_exact(frames.len()).ok()?;
        copy.extend_from_slice(frames);
        Some(MessageRest { frames: copy.into(), held_bytes: frames.len(), inflated_ns })
    }

    /// The same, less the frames before `rest`, which must be a part of its frames.
    pub fn advance_to(self, rest: &[u8]) -> MessageRest {
        MessageRest { frames: self.frames.slice_ref(rest), ..self }
    }
}

impl Session {
    /// Received bytes that have not been decoded.
    pub fn input(&self) -> &[u8] {
        self.input.as_deref().map_or(&[], |input| &input.bytes)
    }

    /// Takes out the received bytes that have not been decoded.
    pub fn take_input(&mut self) -> Vec<u8> {
        self.input.as_deref_mut().map(|input| std::mem::take(&mut input.bytes)).unwrap_or_default()
    }

    /// Keeps received bytes that are not processed yet. Returns `false` if there is no memory for them.
    pub fn keep_input(&mut self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let input = &mut self.input.get_or_insert_default().bytes;
        let has_room = input.try_reserve(bytes.len()).is_ok();
        if has_room {
            input.extend_from_slice(bytes);
        }
        has_room
    }

    /// Keeps the rest of the bytes from [`Session::take_input`], of which `used` have been processed. Frees a buffer that is much
    /// larger than the rest.
    pub fn keep_rest(&mut self, mut bytes: Vec<u8>, used: usize) {
        if used >= bytes.len() {
            return;
        }
        bytes.drain(..used);
        if bytes.capacity() > INPUT_SPARE_BYTES && bytes.capacity() / 4 > bytes.len() {
            bytes.shrink_to_fit();
        }
        self.input.get_or_insert_default().bytes = bytes;
    }

    /// What is left of a WebSocket message, bytes.
    pub fn message_rest_len(&self) -> usize {
        self.message_rest().map_or(0, |rest| rest.frames.len())
    }

    fn message_rest(&self) -> Option<&MessageRest> {
        self.input.as_deref()?.message_rest.as_ref()
    }

    /// Takes out what is left of a WebSocket message.
    pub fn take_message_rest(&mut self) -> Option<MessageRest> {
        self.input.as_deref_mut()?.message_rest.take()
    }

    /// Keeps what is left of a WebSocket message.
    pub fn keep_message_rest(&mut self, rest: MessageRest) {
        self.input.get_or_insert_default().message_rest = Some(rest);
    }

    /// When the first byte of an incomplete frame or message arrived, CLOCK_MONOTONIC nanoseconds. The bytes may have become
    /// fragments since then.
    pub fn partial_since_ns(&self) -> Option<u64> {
        let since_ns = self.protocol.fragments().and_then(|fragments| fragments.since_ns);
        match self.input_state {
            InputState::Partial => since_ns.or_else(|| self.input.as_deref().map(|input| input.began_ns)),
            InputState::Open | InputState::Paused => None,
        }
    }

    /// Records when the remaining input began, after some has been processed. Frees its memory if none remains.
    pub fn note_began(&mut self, began_ns: u64) {
        match self.input.as_deref_mut() {
            Some(input) if !input.bytes.is_empty() || input.message_rest.is_some() => {
                input.began_ns = began_ns;
            }
            Some(_) => self.input = None,
            None => {}
        }
    }

    /// Bytes held for a frame or message that the peer has not completed, or that awaits the verdict on its credentials, because
    /// clients control how much of both accumulates. Other input that waits for room does not count, because the shard itself makes
    /// it wait, unless it has been inflated.
    pub fn held_unfinished_bytes(&self) -> usize {
        let awaits_verdict = self.awaits_verdict();
        let fragments = self.protocol.fragments().map_or(0, Fragments::heap_bytes);
        let input = self.input.as_deref().map_or(0, |input| input.bytes.capacity());
        let input = if self.is_paused() && !awaits_verdict { 0 } else { input };
        let rest = self.message_rest().filter(|rest| awaits_verdict || rest.inflated_ns.is_some());
        fragments + input + rest.map_or(0, |rest| rest.held_bytes)
    }

    /// When the first byte of the unfinished frame or message, or of the input that awaits a verdict, arrived, or the message that
    /// waits was inflated, CLOCK_MONOTONIC nanoseconds.
    pub fn unfinished_since_ns(&self) -> Option<u64> {
        if let Some(inflated_ns) = self.message_rest().and_then(|rest| rest.inflated_ns) {
            return Some(inflated_ns);
        }
        match (self.protocol.fragments(), self.input_state) {
            (Some(fragments), _) => fragments.since_ns,
            (None, InputState::Partial) => self.input.as_deref().map(|input| input.began_ns),
            (None, InputState::Paused) if self.awaits_verdict() => {
                self.input.as_deref().map(|input| input.began_ns)
            }
            (None, InputState::Open | InputState::Paused) => None,
        }
    }

    /// Drops the waiting input.
    pub fn discard_input(&mut self) {
        self.input = None;
    }

    /// Bytes of waiting input.
    pub(super) fn input_bytes(&self) -> usize {
        self.input.as_deref().map_or(0, |input| {
            let rest = input.message_rest.as_ref().map_or(0, |rest| rest.held_bytes);
            size_of::<WaitingInput>() + input.bytes.capacity() + rest
        })
    }
}
