//! The egress logs of a shard, one for each encoding in use.

use super::topic::EgressTopic;
use crate::egress_log::{EgressLog, Mark, Range};
use tickcast_proto::{
    Encoding,
    codec::json,
    frame::{Frame, TickParts},
    framing::websocket::{self, DataType},
    records::TickTimes,
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

    /// How much was ever appended in an encoding.
    pub(super) fn head(&self, encoding: Encoding) -> u64 {
        self.of(encoding).map_or(0, EgressLog::head)
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
        let mut body = std::mem::take(&mut self.body);
        let encoded = encode_json(&mut body, tick, json_prefix);
        let appended = match encoded {
            true => self.append_range(encoding, mark, Some(DataType::Text), &body),
            false => None,
        };
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

    /// Appends a tick as the encoding has it, to bytes that are one session's own.
    pub(super) fn encode_tick(
        &mut self,
        encoding: Encoding,
        tick: &Frame<'_>,
        json_prefix: &[u8],
        out: &mut Vec<u8>,
    ) {
        match encoding {
            Encoding::Native => out.extend_from_slice(tick.bytes),
            Encoding::WebSocketRkyv => websocket::encode(out, DataType::Binary, tick.bytes),
            Encoding::WebSocketRaw => websocket::encode(out, DataType::Binary, tick.payload()),
            Encoding::WebSocketJson => {
                if encode_json(&mut self.body, tick, json_prefix) {
                    websocket::encode(out, DataType::Text, &self.body);
                }
            }
        }
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

/// A tick's JSON, in a buffer of its own. Returns `false` for a frame that is none, which no home makes.
fn encode_json(body: &mut Vec<u8>, tick: &Frame<'_>, json_prefix: &[u8]) -> bool {
    let Ok(times) = tick.record::<TickTimes>() else { return false };
    let parts =
        TickParts { flags: tick.header.flags, schema: 0, times, key: tick.key(), payload: tick.payload() };
    body.clear();
    json::encode_tick(body, json_prefix, tick.header.sequence, &parts);
    true
}
