//! Ticks of topics that a durable log of another engine feeds: the log gives the epoch and the sequences.
//!
//! ```text
//!  positions of the log   40  41  42  43  44  45  46
//!  ticks of the topic     40          43      45          a tick says which position its topic had before: `previous`
//!  previous                           40      43
//! ```
//!
//! Positions of one topic are not consecutive, because other topics share the log. `previous` is an upper bound: the reader of the
//! log may know only that it has read everything from some position on. A tick without `previous` follows `sequence - 1`.

use crate::{
    DecodeError,
    frame::{self, Frame, HeaderFields, Kind, TickParts},
    ids::{Sequence, TopicId},
    records::{
        FrameHeader, KeyedTickTimes, LinkedTickTimes, LogPlace, Publish, Subscribed, TickTimes, WireRecord,
    },
};

/// The bit that every epoch of a log has, and no epoch of a topic that this server counts itself: those are microseconds since
/// 1970, which reach it in the year 2112.
const LOG_EPOCH_BIT: u64 = 1 << 52;

/// The epoch of one life of a log, which every node computes alike. `kind` and `name` say which log it is, `life` what changes if
/// a log of the same name is made again, such as its time of creation. Below 2^53: 52 bits of a hash (FNV-1a), and the bit that
/// marks it.
pub fn log_epoch(kind: &str, name: &str, life: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET;
    for part in [kind.as_bytes(), name.as_bytes(), life] {
        let len = (part.len() as u64).to_le_bytes();
        for &byte in len.iter().chain(part) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
    ((hash ^ hash >> 52) & (LOG_EPOCH_BIT - 1)) | LOG_EPOCH_BIT
}

/// Whether an epoch names a log. Then the sequences of its topics are positions, and not consecutive. (The epochs of a server of
/// version 0.1, nanoseconds since 1970, are larger.)
pub fn is_log_epoch(epoch: u64) -> bool {
    epoch >> 52 == 1
}

impl Frame<'_> {
    /// Whether a TICK has an upper bound of the preceding sequence.
    #[inline]
    pub fn is_linked(&self) -> bool {
        usize::from(self.header.record_stride) >= LinkedTickTimes::STRIDE
    }

    /// An upper bound of the preceding sequence in the topic of a TICK.
    #[inline]
    pub fn previous(&self) -> u64 {
        match self.is_linked() {
            false => self.header.sequence.saturating_sub(1),
            true => {
                let record = self.record::<LinkedTickTimes>();
                debug_assert!(record.is_ok(), "a record of this length has the field");
                record.map_or(0, |record| record.previous)
            }
        }
    }
}

/// Length of a TICK with `previous`, including padding.
pub const fn linked_tick_len(payload_len: usize) -> usize {
    frame::encoded_len(LinkedTickTimes::STRIDE, payload_len)
}

/// Appends a TICK with `previous` and returns its header.
pub fn encode_linked_tick(
    out: &mut Vec<u8>,
    topic: TopicId,
    sequence: Sequence,
    previous: u64,
    tick: &TickParts<'_>,
) -> FrameHeader {
    let TickParts { flags, schema, times, key, payload } = *tick;
    let fields = HeaderFields { flags, sequence: sequence.0, topic_id: topic.0, schema };
    let TickTimes { producer_time_ns, ingest_time_ns } = times;
    let record = LinkedTickTimes { producer_time_ns, ingest_time_ns, key, previous };
    frame::encode(out, Kind::Tick, fields, &record, &[payload])
}

fn parts_of<'a>(tick: &Frame<'a>) -> TickParts<'a> {
    let FrameHeader { flags, schema, .. } = tick.header;
    let times = tick.record::<TickTimes>();
    debug_assert!(times.is_ok(), "a TICK frame has times");
    TickParts { flags, schema, times: times.unwrap_or_default(), key: tick.key(), payload: tick.payload() }
}

/// Appends a TICK that has `previous` as one without it.
pub(crate) fn encode_unlinked(out: &mut Vec<u8>, tick: &Frame<'_>) {
    let FrameHeader { sequence, topic_id, .. } = tick.header;
    let parts = parts_of(tick);
    frame::encode_tick(out, TopicId(topic_id), Sequence(sequence), &parts);
}

/// Appends a TICK with another bound of the preceding sequence.
pub fn encode_relinked(out: &mut Vec<u8>, tick: &Frame<'_>, previous: u64) -> FrameHeader {
    let FrameHeader { sequence, topic_id, .. } = tick.header;
    let parts = parts_of(tick);
    encode_linked_tick(out, TopicId(topic_id), Sequence(sequence), previous, &parts)
}

/// Where a tick is in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// The source that reads the log, by its number in the configuration.
    pub source: u32,
    /// [`log_epoch`] of the log.
    pub epoch: u64,
    /// Position of the tick, from 1, below 2^53.
    pub position: u64,
    /// The source has read everything from this position on, up to `position`.
    pub complete_from: u64,
}

/// Appends an APPEND: a tick of a log, from the source that reads it. `key` names the topic.
pub fn encode_append(
    out: &mut Vec<u8>,
    at: LogPosition,
    flags: u8,
    record: Publish,
    key: &str,
    payload: &[u8],
) {
    debug_assert!(is_log_epoch(at.epoch) && at.position > 0, "sources check what they read");
    let fields = HeaderFields { flags, sequence: at.position, topic_id: at.source, schema: 0 };
    let record = Publish { topic_len: key.len() as u16, ..record };
    let mut place = [0; LogPlace::STRIDE];
    place[..8].copy_from_slice(&at.epoch.to_le_bytes());
    place[8..].copy_from_slice(&at.complete_from.to_le_bytes());
    frame::encode(out, Kind::Append, fields, &record, &[&place, key.as_bytes(), payload]);
}

/// The contents of an APPEND: where it is in its log, its record, the topic's key and the tick's payload.
///
/// # Errors
/// [`DecodeError::BadRecord`] if the payload is shorter than its parts, [`DecodeError::NotUtf8`] for the key.
pub fn append_parts<'a>(frame: &Frame<'a>) -> Result<(LogPosition, Publish, &'a str, &'a [u8]), DecodeError> {
    let bad_record = DecodeError::BadRecord(frame.header.kind);
    let record: Publish = frame.record()?;
    let LogPlace { epoch, complete_from } = LogPlace::read(frame.payload()).ok_or(bad_record.clone())?;
    let (key, payload) = frame.payload()[LogPlace::STRIDE..]
        .split_at_checked(usize::from(record.topic_len))
        .ok_or(bad_record)?;
    let key = simdutf8::basic::from_utf8(key).map_err(|_| DecodeError::NotUtf8)?;
    let FrameHeader { sequence: position, topic_id: source, .. } = frame.header;
    Ok((LogPosition { source, epoch, position, complete_from }, record, key, payload))
}

/// Appends a topic's announcement to another shard, with the last sequence that its home knows: see [`frame::encode_topic`].
/// `owner`, which the header has as its schema: a number for who created the topic.
pub fn encode_open(out: &mut Vec<u8>, (topic, owner): (TopicId, u32), epoch: u64, last: Sequence, key: &str) {
    let fields =
        HeaderFields { topic_id: topic.0, sequence: last.0, schema: owner, ..HeaderFields::default() };
    let record = Subscribed { epoch, ..Subscribed::default() };
    frame::encode(out, Kind::Subscribed, fields, &record, &[key.as_bytes()]);
}

const _: () = assert!(KeyedTickTimes::STRIDE < LinkedTickTimes::STRIDE, "the length says which record it is");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Step;

    fn decode(bytes: &[u8]) -> Frame<'_> {
        let Ok(Step::Complete(used, frame)) = frame::decode(bytes, 1 << 10) else { panic!("a whole frame") };
        assert_eq!(used, bytes.len());
        frame
    }

    #[test]
    fn the_epoch_of_a_log_is_the_same_on_every_node_and_marked() {
        // A node of another version must compute the same.
        assert_eq!(log_epoch("jetstream", "TICKS", &7_u64.to_le_bytes()), 0x001d_5d1b_89c4_e147);
        let epochs = [
            log_epoch("jetstream", "TICKS", b"1"),
            log_epoch("jetstream", "TICKS", b"2"),
            log_epoch("jetstream", "TICK", b"S1"),
            log_epoch("redis", "TICKS", b"1"),
        ];
        for (at, epoch) in epochs.iter().enumerate() {
            assert!(is_log_epoch(*epoch) && *epoch < 1 << 53);
            assert!(!epochs[..at].contains(epoch));
        }
        let (microseconds, nanoseconds) = (1_800_000_000_000_000, 1_800_000_000_000_000_000);
        assert!(!is_log_epoch(microseconds) && !is_log_epoch(nanoseconds));
    }

    #[test]
    fn a_tick_without_previous_follows_the_sequence_before_it() {
        let parts = TickParts { key: 7, payload: b"payload", ..TickParts::default() };
        let (mut linked, mut plain) = (Vec::new(), Vec::new());
        encode_linked_tick(&mut linked, TopicId(9), Sequence(8), 3, &parts);
        frame::encode_tick(&mut plain, TopicId(9), Sequence(8), &parts);
        for (bytes, previous) in [(&linked, 3), (&plain, 7)] {
            let frame = decode(bytes);
            assert_eq!((frame.previous(), frame.key(), frame.payload()), (previous, 7, &b"payload"[..]));
        }
        assert_eq!(linked.len(), linked_tick_len(7));
        let mut relinked = Vec::new();
        encode_relinked(&mut relinked, &decode(&linked), 5);
        let relinked = decode(&relinked);
        assert_eq!((relinked.previous(), relinked.key(), relinked.payload()), (5, 7, &b"payload"[..]));
        let mut unlinked = Vec::new();
        encode_unlinked(&mut unlinked, &decode(&linked));
        assert_eq!(unlinked, plain);
    }

    #[test]
    fn an_append_reads_back() {
        let at = LogPosition { source: 2, epoch: log_epoch("a", "b", b""), position: 99, complete_from: 50 };
        let mut bytes = Vec::new();
        encode_append(&mut bytes, at, 1, Publish { key: 5, ..Publish::default() }, "t.0", b"payload");
        let (read, record, key, payload) = append_parts(&decode(&bytes)).unwrap();
        assert_eq!((read, record.key, key, payload), (at, 5, "t.0", &b"payload"[..]));
        let mut short = Vec::new();
        let record = Publish { topic_len: 9, ..Publish::default() };
        frame::encode(&mut short, Kind::Append, HeaderFields::default(), &record, &[&[0; 20]]);
        assert!(append_parts(&decode(&short)).is_err());
    }
}
