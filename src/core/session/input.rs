//! Input that a session has received but not processed.

use super::Session;
use crate::limits::INPUT_SPARE_BYTES;
use tickcast_proto::framing::websocket::Fragments;

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
    /// Frames of a WebSocket message that wait for pending changes.
    message_rest: Vec<u8>,
    /// When the first of `bytes` arrived, CLOCK_MONOTONIC nanoseconds.
    began_ns: u64,
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

    /// Whether frames of a WebSocket message wait for pending changes.
    pub fn has_message_rest(&self) -> bool {
        self.input.as_deref().is_some_and(|input| !input.message_rest.is_empty())
    }

    /// Takes the waiting frames of a WebSocket message.
    pub fn take_message_rest(&mut self) -> Vec<u8> {
        self.input.as_deref_mut().map(|input| std::mem::take(&mut input.message_rest)).unwrap_or_default()
    }

    /// Keeps the frames of a WebSocket message that wait for pending changes. Returns `false` if there is no memory for them.
    pub fn keep_message_rest(&mut self, frames: &[u8]) -> bool {
        let rest = &mut self.input.get_or_insert_default().message_rest;
        let has_room = rest.try_reserve_exact(frames.len()).is_ok();
        if has_room {
            rest.extend_from_slice(frames);
        }
        has_room
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
            Some(input) if !input.bytes.is_empty() || !input.message_rest.is_empty() => {
                input.began_ns = began_ns;
            }
            Some(_) => self.input = None,
            None => {}
        }
    }

    /// Bytes held for a frame or message that the peer has not completed, or that awaits the verdict on its credentials, because
    /// clients control how much of both accumulates. Input that waits for room does not count: the shard itself makes it wait.
    pub fn held_unfinished_bytes(&self) -> usize {
        let fragments = self.protocol.fragments().map_or(0, Fragments::heap_bytes);
        let input = self.input.as_deref().map_or(0, |input| match self.awaits_verdict() {
            true => input.bytes.capacity() + input.message_rest.capacity(),
            false => input.bytes.capacity(),
        });
        fragments + if self.is_paused() && !self.awaits_verdict() { 0 } else { input }
    }

    /// When the first byte of the unfinished frame or message, or of the input that awaits a verdict, arrived, CLOCK_MONOTONIC
    /// nanoseconds.
    pub fn unfinished_since_ns(&self) -> Option<u64> {
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
            size_of::<WaitingInput>() + input.bytes.capacity() + input.message_rest.capacity()
        })
    }
}
