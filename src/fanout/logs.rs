//! The egress logs of a shard, one for each encoding in use.

use super::topic::EgressTopic;
use crate::{
    log::{EgressLog, Mark, Range},
    tick::TickTimes,
    wire::{
        Encoding,
        frame::{Frame, TickParts},
        json,
        reply::Reply,
        websocket::{self, DataType},
    },
};

/// One egress log for each encoding in use; made at the first frame in it.
#[derive(Debug)]
pub struct Logs {
    logs: [Option<EgressLog>; Encoding::COUNT],
    log_bytes: usize,
    header: Vec<u8>,
    body: Vec<u8>,
}

impl Logs {
    /// No log yet; each will hold `log_bytes`.
    pub fn new(log_bytes: usize) -> Logs {
        Logs { logs: Default::default(), log_bytes, header: Vec::new(), body: Vec::new() }
    }

    /// The log of an encoding, if it was ever used.
    pub fn of(&self, encoding: Encoding) -> Option<&EgressLog> {
        self.logs[encoding as usize].as_ref()
    }

    /// Every session has taken everything: the logs start over in their warm pages.
    pub fn rewind(&mut self) {
        self.logs.iter_mut().flatten().for_each(EgressLog::rewind);
    }

    /// Bytes held by the logs in use.
    pub fn bytes(&self) -> usize {
        self.logs.iter().flatten().map(EgressLog::memory_bytes).sum()
    }

    /// Encodes a tick once for all its takers in this encoding. Copies only, but for a payload that needs base64.
    pub(super) fn append_tick(
        &mut self,
        encoding: Encoding,
        tick: &Frame<'_>,
        json_prefix: &[u8],
    ) -> Option<(&EgressLog, Range)> {
        let mark = Mark { topic: tick.header.topic_id, sequence: tick.header.sequence, skipped: 0 };
        match encoding {
            Encoding::Native => return self.append(encoding, mark, None, tick.bytes),
            Encoding::WebSocketRkyv => {
                return self.append(encoding, mark, Some(DataType::Binary), tick.bytes);
            }
            Encoding::WebSocketRaw => {
                return self.append(encoding, mark, Some(DataType::Binary), tick.payload());
            }
            Encoding::WebSocketJson => {}
        }
        let times = tick.record::<TickTimes>().ok()?;
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        json::encode_tick(
            &mut body,
            json_prefix,
            tick.header.sequence,
            &TickParts {
                flags: tick.header.flags,
                schema: 0,
                times,
                key: tick.key(),
                payload: tick.payload(),
            },
        );
        let (data_type, mark) = (Some(DataType::Text), mark);
        let appended = self.append_range(encoding, mark, data_type, &body);
        self.body = body;
        self.found(encoding, appended)
    }

    /// Appends a topic's announcement; the raw encoding has none.
    pub(super) fn append_topic(
        &mut self,
        encoding: Encoding,
        topic: &EgressTopic,
    ) -> Option<(&EgressLog, Range)> {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        let data_type = topic.encode_announcement(encoding, &mut body);
        let mark = Mark { topic: topic.id.0, sequence: 0, skipped: 0 };
        let appended = match body.is_empty() {
            true => None,
            false => self.append_range(encoding, mark, data_type, &body),
        };
        self.body = body;
        self.found(encoding, appended)
    }

    /// Encodes a notice that ticks do not come, CONFLATED or GAP; the raw encoding says nothing.
    pub(super) fn append_skipped(
        &mut self,
        encoding: Encoding,
        notice: &Reply<'_>,
    ) -> Option<(&EgressLog, Range)> {
        let (Reply::Conflated { topic, from, to, .. } | Reply::Gap { topic, from, to, .. }) = *notice else {
            return None;
        };
        let mut bytes = std::mem::take(&mut self.body);
        bytes.clear();
        notice.encode(encoding, &mut bytes);
        // So many at once that 32 bits do not hold them would take a century to publish.
        let mark =
            Mark { topic: topic.0, sequence: to, skipped: (to - from).min(u64::from(u32::MAX)) as u32 };
        let appended = match bytes.is_empty() {
            true => None,
            false => self.append_range(encoding, mark, None, &bytes),
        };
        self.body = bytes;
        self.found(encoding, appended)
    }

    fn append(
        &mut self,
        encoding: Encoding,
        mark: Mark,
        data_type: Option<DataType>,
        body: &[u8],
    ) -> Option<(&EgressLog, Range)> {
        let range = self.append_range(encoding, mark, data_type, body);
        self.found(encoding, range)
    }

    fn append_range(
        &mut self,
        encoding: Encoding,
        mark: Mark,
        data_type: Option<DataType>,
        body: &[u8],
    ) -> Option<Range> {
        let mut header = std::mem::take(&mut self.header);
        header.clear();
        if let Some(data_type) = data_type {
            websocket::encode_header(&mut header, data_type, body.len());
        }
        let range = self.log_mut(encoding).append_parts(mark, &header, body);
        self.header = header;
        range
    }

    /// The log of an encoding, made if this is its first use.
    pub(super) fn log_mut(&mut self, encoding: Encoding) -> &mut EgressLog {
        let log_bytes = self.log_bytes;
        self.logs[encoding as usize].get_or_insert_with(|| EgressLog::new(log_bytes))
    }

    /// The encodings whose waiting sessions are to be looked over: see [`EgressLog::take_sweep`].
    pub(super) fn take_sweeps(&mut self) -> [bool; Encoding::COUNT] {
        std::array::from_fn(|encoding| self.logs[encoding].as_mut().is_some_and(EgressLog::take_sweep))
    }

    /// Notes the time, so that it is known what was appended before.
    pub fn note_time(&mut self, now_ns: u64) {
        self.logs.iter_mut().flatten().for_each(|log| log.note_time(now_ns));
    }

    fn found(&self, encoding: Encoding, range: Option<Range>) -> Option<(&EgressLog, Range)> {
        Some((self.of(encoding)?, range?))
    }
}
