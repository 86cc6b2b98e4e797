//! The unfinished message of a connection.

use std::str;

use tungstenite::{Bytes, Utf8Bytes};

use super::Incoming;
use crate::DecodeError;

/// The joined fragments of a message whose last fragment has not arrived.
///
/// Invariant: `valid_to` is at most the length of `bytes`.
#[derive(Debug)]
pub struct Fragments {
    /// When the message's first byte arrived, by the caller's clock. `None` until the caller sets it.
    pub since_ns: Option<u64>,
    is_text: bool,
    is_compressed: bool,
    bytes: Vec<u8>,
    /// Length of the text that is valid UTF-8 so far, in bytes.
    valid_to: usize,
}

impl Fragments {
    pub(super) fn new(is_text: bool, is_compressed: bool) -> Fragments {
        Fragments { since_ns: None, is_text, is_compressed, bytes: Vec::new(), valid_to: 0 }
    }

    /// Memory that it holds, in bytes. At most twice the bytes received.
    pub fn heap_bytes(&self) -> usize {
        size_of::<Fragments>() + self.bytes.capacity()
    }

    /// Appends one fragment. Invalid text is rejected with the fragment that contains it.
    pub(super) fn push(&mut self, bytes: &[u8], message_bytes_max: usize) -> Result<(), DecodeError> {
        let len = self.bytes.len() + bytes.len();
        if len > message_bytes_max {
            return Err(DecodeError::TooLarge { bytes: len as u64, bytes_max: message_bytes_max });
        }
        self.bytes.try_reserve(bytes.len()).map_err(|_| DecodeError::OutOfMemory)?;
        self.bytes.extend_from_slice(bytes);
        if self.is_text && !self.is_compressed {
            match str::from_utf8(&self.bytes[self.valid_to..]) {
                Ok(text) => self.valid_to += text.len(),
                // A character that the next fragment completes.
                Err(error) if error.error_len().is_none() => self.valid_to += error.valid_up_to(),
                Err(_) => return Err(DecodeError::NotUtf8),
            }
        }
        Ok(())
    }

    /// The whole message, after its last fragment.
    pub(super) fn complete(
        self,
        inflate: impl FnOnce(&[u8]) -> Result<Vec<u8>, DecodeError>,
    ) -> Result<Incoming, DecodeError> {
        let is_text = self.is_text;
        let bytes = Bytes::from(if self.is_compressed { inflate(&self.bytes)? } else { self.bytes });
        if !is_text {
            return Ok(Incoming::Binary(bytes));
        }
        Utf8Bytes::try_from(bytes).map(Incoming::Text).map_err(|_| DecodeError::NotUtf8)
    }
}
