//! Compression of messages within a budget.

use crate::limits::{DEFLATE_MESSAGE_BYTES, TURN_DEFLATE_BYTES};
use tickcast_proto::{codec::MessageType, framing::websocket::deflate::Deflater};

/// What was compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeflateCounts {
    /// Messages.
    pub messages: u64,
    /// Their bytes before.
    pub from_bytes: u64,
    /// Their bytes after.
    pub to_bytes: u64,
}

/// A compressor with a budget per turn: [`TURN_DEFLATE_BYTES`].
#[derive(Debug)]
pub struct DeflateTurn {
    bytes_min: usize,
    bytes_left: usize,
    counts: DeflateCounts,
    /// `None` until first needed: it is large.
    deflater: Option<Box<Deflater>>,
}

impl DeflateTurn {
    /// A compressor of messages of at least `bytes_min` bytes.
    pub fn new(bytes_min: usize) -> DeflateTurn {
        DeflateTurn {
            bytes_min,
            bytes_left: TURN_DEFLATE_BYTES,
            counts: DeflateCounts::default(),
            deflater: None,
        }
    }

    /// Renews the budget.
    #[inline]
    pub fn begin(&mut self) {
        self.bytes_left = TURN_DEFLATE_BYTES;
    }

    /// Whether a message of this length would be tried.
    pub fn admits(&self, len: usize) -> bool {
        len >= self.bytes_min && self.bytes_left > 0
    }

    /// Appends a compressed message. Returns `false`, having appended nothing, if the message is too short, does not shrink, or the
    /// budget is used up. One message may exceed the budget.
    pub fn encode(&mut self, out: &mut Vec<u8>, message_type: MessageType, body: &[u8]) -> bool {
        if !self.admits(body.len()) {
            return false;
        }
        self.bytes_left = self.bytes_left.saturating_sub(body.len() + DEFLATE_MESSAGE_BYTES);
        let start = out.len();
        if !self.deflater.get_or_insert_default().encode(out, message_type, body) {
            return false;
        }
        self.counts.messages += 1;
        self.counts.from_bytes += body.len() as u64;
        self.counts.to_bytes += (out.len() - start) as u64;
        true
    }

    /// Returns the counts since the last call.
    pub fn take_counts(&mut self) -> DeflateCounts {
        std::mem::take(&mut self.counts)
    }
}
