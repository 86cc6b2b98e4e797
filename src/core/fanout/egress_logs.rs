//! The egress logs of a shard: one per wire format in use.

use crate::{
    deflate::{DeflateCounts, DeflateTurn},
    egress_log::{EgressLog, FrameInfo, Range},
};
use tickcast_proto::{
    WireFormat,
    codec::{MessageType, TopicInfo},
    frame::Frame,
    framing::Framing,
};

/// Index of a wire format's log among a shard's logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIndex(u8);

impl LogIndex {
    /// The index of a wire format's log.
    #[inline]
    pub fn of(format: WireFormat) -> LogIndex {
        LogIndex(format.index() as u8)
    }
}

/// The egress logs of a shard; each is created when its wire format is first used.
#[derive(Debug)]
pub struct EgressLogs {
    /// By [`WireFormat::index`].
    logs: [Option<EgressLog>; WireFormat::PAIRS],
    log_bytes: usize,
    header: Vec<u8>,
    body: Vec<u8>,
    deflate: DeflateTurn,
}

impl EgressLogs {
    /// Creates no log yet; each will have `log_bytes` bytes. Ticks are compressed from `deflate_bytes_min` bytes.
    pub fn new(log_bytes: usize, deflate_bytes_min: usize) -> EgressLogs {
        EgressLogs {
            logs: std::array::from_fn(|_| None),
            log_bytes,
            header: Vec::new(),
            body: Vec::new(),
            deflate: DeflateTurn::new(deflate_bytes_min),
        }
    }

    /// The log of a wire format, if it has been used.
    #[inline]
    pub fn of(&self, format: WireFormat) -> Option<&EgressLog> {
        self.get(LogIndex::of(format))
    }

    /// The log at an index, if it has been used.
    #[inline]
    pub fn get(&self, index: LogIndex) -> Option<&EgressLog> {
        self.logs[usize::from(index.0)].as_ref()
    }

    /// Rewinds the logs, so that they reuse pages still in the cache. Call it only while nothing waits for any session.
    pub fn rewind(&mut self) {
        self.logs.iter_mut().flatten().for_each(EgressLog::rewind);
    }

    /// Bytes ever appended in a wire format, including those skipped at the end of the buffer.
    pub(super) fn head(&self, format: WireFormat) -> u64 {
        self.of(format).map_or(0, EgressLog::head)
    }

    /// Memory of the logs in use, bytes.
    pub fn bytes(&self) -> usize {
        self.logs.iter().flatten().map(EgressLog::memory_bytes).sum()
    }

    /// Encodes a tick once for all members with a wire format, and compresses it if the format has that. `None` if it is longer
    /// than the log. No allocation once the buffers have grown.
    pub(super) fn append_tick(
        &mut self,
        format: WireFormat,
        tick: &Frame<'_>,
        topic: &TopicInfo,
    ) -> Option<(&EgressLog, Range)> {
        let mark = FrameInfo { topic: tick.header.topic_id, sequence: tick.header.sequence };
        let WireFormat { codec, framing } = format;
        let body = codec.encode_tick(tick, topic, &mut self.body);
        if framing == Framing::WebSocketDeflate && topic.compresses {
            self.header.clear();
            if self.deflate.encode(&mut self.header, codec.message_type(), body) {
                let (log, range) = append(&mut self.logs, self.log_bytes, format, mark, &self.header, &[])?;
                return Some((log, range));
            }
        }
        let (header, body) = framing.delimit(codec.message_type(), body, &mut self.header);
        let (log, range) = append(&mut self.logs, self.log_bytes, format, mark, header, body)?;
        if framing == Framing::WebSocketBatchDeflate && !topic.compresses {
            log.keep_last_plain();
        }
        Some((log, range))
    }

    /// Appends a topic's announcement. `None` if the codec has none.
    pub(super) fn append_topic(
        &mut self,
        format: WireFormat,
        topic: &TopicInfo,
    ) -> Option<(&EgressLog, Range)> {
        let mark = FrameInfo { topic: topic.id.0, sequence: 0 };
        let WireFormat { codec, framing } = format;
        self.body.clear();
        codec.encode_topic(topic, &mut self.body);
        if self.body.is_empty() {
            return None;
        }
        let (header, body) = framing.delimit(codec.message_type(), &self.body, &mut self.header);
        let (log, range) = append(&mut self.logs, self.log_bytes, format, mark, header, body)?;
        Some((log, range))
    }

    /// Appends a tick to `out`, where it waits for one session alone.
    pub(super) fn encode_tick(
        &mut self,
        format: WireFormat,
        tick: &Frame<'_>,
        topic: &TopicInfo,
        out: &mut Vec<u8>,
    ) {
        let body = format.codec.encode_tick(tick, topic, &mut self.body);
        delimit_into(format, body, &mut self.header, out);
    }

    /// Appends a topic's announcement to `out`, where it waits for one session alone. Appends nothing if the codec has none.
    pub(super) fn encode_topic(&mut self, format: WireFormat, topic: &TopicInfo, out: &mut Vec<u8>) {
        self.body.clear();
        format.codec.encode_topic(topic, &mut self.body);
        if !self.body.is_empty() {
            delimit_into(format, &self.body, &mut self.header, out);
        }
    }

    /// Wire formats whose waiting sessions are due for a sweep, by [`WireFormat::index`]: see
    /// [`EgressLog::take_sweep`].
    pub(super) fn take_sweeps(&mut self) -> [bool; WireFormat::PAIRS] {
        std::array::from_fn(|index| self.logs[index].as_mut().is_some_and(EgressLog::take_sweep))
    }

    /// Bytes of all frames appended so far.
    pub fn appended_bytes(&self) -> u64 {
        self.logs.iter().flatten().map(EgressLog::head).sum()
    }

    /// Begins a turn: records the time, so that [`EgressLog::head_at`] can tell what was appended before it, and renews the budget
    /// for compression.
    pub fn begin_turn(&mut self, now_ns: u64) {
        self.logs.iter_mut().flatten().for_each(|log| log.note_time(now_ns));
        self.deflate.begin();
    }

    /// Appends the compressed answer of `/echo`, which is for one client. Returns `false`, having appended nothing, if it is to be
    /// sent plain.
    pub fn deflate_echo(&mut self, out: &mut Vec<u8>, message_type: MessageType, body: &[u8]) -> bool {
        self.deflate.encode(out, message_type, body)
    }

    /// Returns what was compressed since the last call.
    pub fn take_deflated(&mut self) -> DeflateCounts {
        self.deflate.take_counts()
    }
}

/// Appends a message to `out`, delimited by its framing.
fn delimit_into(format: WireFormat, body: &[u8], header: &mut Vec<u8>, out: &mut Vec<u8>) {
    let WireFormat { codec, framing } = format;
    let (header, body) = framing.delimit(codec.message_type(), body, header);
    out.extend_from_slice(header);
    out.extend_from_slice(body);
}

/// Appends a message in two parts to its wire format's log, which is created on first use.
fn append<'a>(
    logs: &'a mut [Option<EgressLog>; WireFormat::PAIRS],
    log_bytes: usize,
    format: WireFormat,
    mark: FrameInfo,
    header: &[u8],
    body: &[u8],
) -> Option<(&'a mut EgressLog, Range)> {
    let log = logs[format.index()].get_or_insert_with(|| EgressLog::new(log_bytes));
    let range = log.append_parts(mark, header, body)?;
    Some((log, range))
}
