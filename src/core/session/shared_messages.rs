//! Messages that several sessions send: written to the gather buffer once, for the frames that all of them have queued.

use super::outbox::SendSource;
use crate::egress_log::{EgressLog, Range};
use tickcast_proto::WireFormat;

/// The messages that a batch of SENDs shares.
#[derive(Debug, Default)]
pub struct SharedMessages {
    /// The last one in the gather buffer.
    last: Option<Written>,
}

/// A message in the gather buffer, and the frames in it.
#[derive(Clone, Copy, Debug)]
struct Written {
    format: WireFormat,
    range: Range,
    start: usize,
    len: usize,
}

impl SharedMessages {
    /// Begins a batch of SENDs. Call whenever the gather buffer has been cleared.
    pub fn begin(&mut self) {
        self.last = None;
    }

    /// One message of all frames of a range, which must not have been overwritten. Sessions that keep up have the same range
    /// queued and follow each other, so most find it in the gather buffer.
    #[inline]
    pub(super) fn message(
        &mut self,
        log: &EgressLog,
        format: WireFormat,
        range: Range,
        gather: &mut Vec<u8>,
    ) -> SendSource {
        if let Some(Written { start, len, .. }) = self.last.filter(|last| {
            (last.range, last.format) == (range, format) && last.start + last.len <= gather.len()
        }) {
            return SendSource::Gathered { start, len };
        }
        let start = gather.len();
        format.framing.write_send(format.codec.message_type(), range.len as usize, 0, gather, |out| {
            out.extend_from_slice(log.bytes(range));
        });
        let len = gather.len() - start;
        self.last = Some(Written { format, range, start, len });
        SendSource::Gathered { start, len }
    }
}
