//! The native frame: header, one fixed record, payload, zero padding to 16 bytes.
//!
//! ```text
//!  0  u32 frame_len (all of it)          16  u64 sequence
//!  4  u16 magic    6 u8 version 7 flags  24  u32 topic_id
//!  8  u16 kind    10 u16 record_stride   28  u32 schema
//! 12  u32 payload_len                    32  record, payload, padding
//! ```
//!
//! Little-endian. A shard speaks it to its clients, and shards speak it to each other over the mesh rings, so a
//! tick is encoded once by its home shard and copied from there on.

use crate::{
    DecodeError, Step, identity,
    ids::{Sequence, TopicId},
    limits::{FRAME_ALIGN, FRAME_HEADER_BYTES},
    records::{
        FrameHeader, Hello, KeyedTimes, Publish, RECORD_BYTES_MAX, Skipped, Subscribed, TickTimes, WireRecord,
    },
};

/// "tc" on the wire.
pub const MAGIC: u16 = 0x6374;
/// The version of the frame layout.
pub const VERSION: u8 = 1;
/// The payload is known to be one JSON value: the server checked it, or made it.
pub const FLAG_PAYLOAD_JSON: u8 = 1;
/// A tick of before the subscription, sent as the state to begin with: the ones between it and the next are not missing.
pub const FLAG_SNAPSHOT: u8 = 2;

/// What a frame is. Requests below 64, answers from 64; from 128 only between shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "PROTOCOL.md describes each; the records' docs repeat it")]
pub enum Kind {
    Hello = 1,
    Subscribe = 2,
    Unsubscribe = 3,
    Publish = 4,
    Ping = 5,
    Update = 6,
    Resume = 7,
    Welcome = 64,
    Subscribed = 65,
    Unsubscribed = 66,
    Tick = 67,
    Pong = 68,
    Error = 69,
    Closing = 70,
    Conflated = 71,
    Gap = 72,
    Recovered = 73,
    Recover = 128,
    History = 129,
}

/// Bytes of the first PUBLISH record, which had no key.
const PUBLISH_STRIDE_FIRST: usize = 24;

impl Kind {
    /// The kind of a number from the wire.
    pub fn from_wire(kind: u16) -> Option<Kind> {
        use Kind::*;
        Some(match kind {
            1 => Hello,
            2 => Subscribe,
            3 => Unsubscribe,
            4 => Publish,
            5 => Ping,
            6 => Update,
            7 => Resume,
            64 => Welcome,
            65 => Subscribed,
            66 => Unsubscribed,
            67 => Tick,
            68 => Pong,
            69 => Error,
            70 => Closing,
            71 => Conflated,
            72 => Gap,
            73 => Recovered,
            128 => Recover,
            129 => History,
            _ => return None,
        })
    }
}

/// A decoded frame, borrowed from the bytes it was received in. Its parts lie within `bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The header, checked.
    pub header: FrameHeader,
    /// The header's kind.
    pub kind: Kind,
    /// The whole frame as received, to be passed on.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The record, of the type its kind carries.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] when it is too short: the peer's record is older than this protocol's first.
    pub fn record<R: WireRecord>(&self) -> Result<R, DecodeError> {
        let end = FRAME_HEADER_BYTES + usize::from(self.header.record_stride);
        R::read(&self.bytes[FRAME_HEADER_BYTES..end]).ok_or(DecodeError::BadRecord(self.header.kind))
    }

    /// What follows the record: a pattern, a text, the producer's bytes.
    pub fn payload(&self) -> &'a [u8] {
        let start = FRAME_HEADER_BYTES + usize::from(self.header.record_stride);
        &self.bytes[start..start + self.header.payload_len as usize]
    }

    /// The payload as text.
    ///
    /// # Errors
    /// [`DecodeError::NotUtf8`].
    pub fn text(&self) -> Result<&'a str, DecodeError> {
        simdutf8::basic::from_utf8(self.payload()).map_err(|_| DecodeError::NotUtf8)
    }

    /// A record that has grown: what a shorter one of at least `stride_min` bytes lacks is 0.
    ///
    /// # Errors
    /// As [`Frame::record`].
    pub fn grown_record<R: WireRecord>(&self, stride_min: usize) -> Result<R, DecodeError> {
        let stride = usize::from(self.header.record_stride);
        if stride >= R::STRIDE || stride < stride_min {
            return self.record();
        }
        let mut bytes = [0; RECORD_BYTES_MAX];
        bytes[..stride].copy_from_slice(&self.bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + stride]);
        R::read(&bytes).ok_or(DecodeError::BadRecord(self.header.kind))
    }

    /// A TICK's conflation key; 0: none.
    pub fn key(&self) -> u64 {
        match usize::from(self.header.record_stride) {
            stride if stride < KeyedTimes::STRIDE => 0,
            _ => self.record::<KeyedTimes>().map_or(0, |record| record.key),
        }
    }

    /// A HELLO frame's request, identity (empty: none) and name.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] when the identity is longer than the payload, [`DecodeError::BadIdentity`],
    /// [`DecodeError::NotUtf8`].
    pub fn hello(&self) -> Result<(u32, &'a str, &'a str), DecodeError> {
        let record: Hello = self.record()?;
        let (client, name) = self
            .payload()
            .split_at_checked(usize::from(record.client_len))
            .ok_or(DecodeError::BadRecord(self.header.kind))?;
        let client = match client {
            [] => "",
            client => identity::check(client).map_err(DecodeError::BadIdentity)?,
        };
        Ok((record.request, client, simdutf8::basic::from_utf8(name).map_err(|_| DecodeError::NotUtf8)?))
    }

    /// A PUBLISH frame's record, topic bytes and tick payload.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] when the topic is longer than the payload.
    pub fn publish(&self) -> Result<(Publish, &'a [u8], &'a [u8]), DecodeError> {
        let record: Publish = self.grown_record(PUBLISH_STRIDE_FIRST)?;
        let (topic, payload) = self
            .payload()
            .split_at_checked(usize::from(record.topic_len))
            .ok_or(DecodeError::BadRecord(self.header.kind))?;
        Ok((record, topic, payload))
    }
}

/// Decodes the frame that `bytes` begin with. Checks everything the header says against the rest; no allocation.
///
/// # Errors
/// A [`DecodeError`] as soon as the header shows it: nothing is waited for that would be refused.
pub fn decode(bytes: &[u8], frame_bytes_max: usize) -> Result<Step<Frame<'_>>, DecodeError> {
    let Some(header) = FrameHeader::read(bytes) else {
        // A stream of another protocol may never send 32 bytes: its first ones already tell.
        return match bytes.get(4..6) {
            Some(magic) if magic != MAGIC.to_le_bytes() => {
                Err(DecodeError::BadMagic(u16::from_le_bytes([magic[0], magic[1]])))
            }
            _ => Ok(Step::Partial),
        };
    };
    if header.magic != MAGIC {
        return Err(DecodeError::BadMagic(header.magic));
    }
    if header.version != VERSION {
        return Err(DecodeError::UnknownVersion(header.version));
    }
    let Some(kind) = Kind::from_wire(header.kind) else {
        return Err(DecodeError::UnknownKind(header.kind));
    };
    let frame_len = header.frame_len as usize;
    if frame_len > frame_bytes_max {
        return Err(DecodeError::TooLarge { bytes: u64::from(header.frame_len), bytes_max: frame_bytes_max });
    }
    let parts = FRAME_HEADER_BYTES as u64 + u64::from(header.record_stride) + u64::from(header.payload_len);
    if u64::from(header.frame_len) != parts.next_multiple_of(FRAME_ALIGN as u64) {
        return Err(DecodeError::BadLength(header.frame_len));
    }
    match bytes.get(..frame_len) {
        Some(bytes) => Ok(Step::Complete(frame_len, Frame { header, kind, bytes })),
        None => Ok(Step::Partial),
    }
}

/// Bytes of a frame with a record of `stride` and a payload of `payload_len`.
pub const fn encoded_len(stride: usize, payload_len: usize) -> usize {
    (FRAME_HEADER_BYTES + stride + payload_len).next_multiple_of(FRAME_ALIGN)
}

/// The header fields that are not lengths; the rest of a frame follows from its record and payload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// `FLAG_*`.
    pub flags: u8,
    /// Position in the topic.
    pub sequence: u64,
    /// The topic.
    pub topic_id: u32,
    /// The producer's mark.
    pub schema: u32,
}

/// Appends one frame; the payload is the concatenation of `parts`. No allocation beyond the growth of `out`. Returns the
/// frame's header, so that nobody has to decode what was just encoded.
///
/// The caller keeps the whole within `frame_bytes_max`, so the lengths fit their fields.
pub fn encode<R: WireRecord>(
    out: &mut Vec<u8>,
    kind: Kind,
    meta: Meta,
    record: &R,
    parts: &[&[u8]],
) -> FrameHeader {
    let payload_len: usize = parts.iter().map(|part| part.len()).sum();
    let frame_len = encoded_len(R::STRIDE, payload_len);
    let start = out.len();
    out.reserve(frame_len);
    let header = FrameHeader {
        frame_len: frame_len as u32,
        magic: MAGIC,
        version: VERSION,
        flags: meta.flags,
        kind: kind as u16,
        record_stride: R::STRIDE as u16,
        payload_len: payload_len as u32,
        sequence: meta.sequence,
        topic_id: meta.topic_id,
        schema: meta.schema,
    };
    header.write(out);
    record.write(out);
    for part in parts {
        out.extend_from_slice(part);
    }
    out.resize(start + frame_len, 0);
    header
}

/// What a tick is made of besides its place.
#[derive(Clone, Copy, Debug, Default)]
pub struct TickParts<'a> {
    /// `FLAG_*`.
    pub flags: u8,
    /// The producer's mark.
    pub schema: u32,
    /// When.
    pub times: TickTimes,
    /// The conflation key; 0: none.
    pub key: u64,
    /// The producer's bytes.
    pub payload: &'a [u8],
}

/// Appends a TICK and returns its header.
pub fn encode_tick(
    out: &mut Vec<u8>,
    topic: TopicId,
    sequence: Sequence,
    tick: &TickParts<'_>,
) -> FrameHeader {
    let TickParts { flags, schema, times, key, payload } = *tick;
    let meta = Meta { flags, sequence: sequence.0, topic_id: topic.0, schema };
    if key == 0 {
        return encode(out, Kind::Tick, meta, &times, &[payload]);
    }
    let TickTimes { producer_time_ns, ingest_time_ns } = times;
    encode(out, Kind::Tick, meta, &KeyedTimes { producer_time_ns, ingest_time_ns, key }, &[payload])
}

/// Appends a CONFLATED or GAP: the ticks from `from` to before `to` do not come.
pub fn encode_skipped(out: &mut Vec<u8>, kind: Kind, topic: TopicId, from: u64, to: u64) {
    let meta = Meta { topic_id: topic.0, ..Meta::default() };
    encode(out, kind, meta, &Skipped { from, to }, &[]);
}

/// Appends a topic's announcement: a SUBSCRIBED that names it.
pub fn encode_topic(out: &mut Vec<u8>, topic: TopicId, epoch: u64, name: &str) {
    let meta = Meta { topic_id: topic.0, ..Meta::default() };
    encode(out, Kind::Subscribed, meta, &Subscribed { epoch, ..Subscribed::default() }, &[name.as_bytes()]);
}

/// Appends a HELLO; `client` is an identity that [`identity::check`] has seen, or empty.
pub fn encode_hello(out: &mut Vec<u8>, request: u32, client: &str, name: &str) {
    debug_assert!(client.len() <= crate::limits::IDENTITY_BYTES_MAX, "checked where it came in");
    let record = Hello { request, client_len: client.len() as u16, reserved: 0 };
    encode(out, Kind::Hello, Meta::default(), &record, &[client.as_bytes(), name.as_bytes()]);
}

/// Appends a PUBLISH. `origin` goes into the sequence field, which only the mesh reads: who to tell of a refusal.
pub fn encode_publish(
    out: &mut Vec<u8>,
    origin: u64,
    flags: u8,
    schema: u32,
    record: Publish,
    topic: &str,
    payload: &[u8],
) {
    debug_assert!(topic.len() <= crate::limits::TOPIC_BYTES_MAX, "names are checked where they come in");
    let record = Publish { topic_len: topic.len() as u16, ..record };
    let meta = Meta { flags, sequence: origin, topic_id: 0, schema };
    encode(out, Kind::Publish, meta, &record, &[topic.as_bytes(), payload]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Hello;

    fn tick() -> Vec<u8> {
        let mut out = Vec::new();
        let times = TickTimes { producer_time_ns: 1, ingest_time_ns: 2 };
        let tick = TickParts { times, payload: b"payload", ..TickParts::default() };
        encode_tick(&mut out, TopicId(9), Sequence(3), &tick);
        out
    }

    #[test]
    fn every_truncation_of_a_frame_is_partial() {
        let bytes = tick();
        for len in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..len], 1024), Ok(Step::Partial)), "{len}");
        }
        let Ok(Step::Complete(used, frame)) = decode(&bytes, 1024) else { panic!("complete") };
        assert_eq!((used, frame.payload()), (bytes.len(), &b"payload"[..]));
    }

    #[test]
    fn wrong_headers_are_refused_by_name() {
        let with = |offset: usize, value: &[u8]| {
            let mut bytes = tick();
            bytes[offset..offset + value.len()].copy_from_slice(value);
            decode(&bytes, 1024).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(4, &[0, 0]), DecodeError::BadMagic(0));
        assert_eq!(with(6, &[9]), DecodeError::UnknownVersion(9));
        assert_eq!(with(8, &[99, 0]), DecodeError::UnknownKind(99));
        for len in [0u32, 1, 16, 31, 47, 48, 65, 80] {
            assert_eq!(with(0, &len.to_le_bytes()), DecodeError::BadLength(len));
        }
        assert!(matches!(with(0, &u32::MAX.to_le_bytes()), DecodeError::TooLarge { .. }));
        assert_eq!(with(12, &u32::MAX.to_le_bytes()), DecodeError::BadLength(64));
        assert_eq!(with(10, &u16::MAX.to_le_bytes()), DecodeError::BadLength(64));
    }

    #[test]
    fn another_protocol_is_refused_from_its_first_six_bytes() {
        assert!(matches!(decode(b"GET / ", 1024), Err(DecodeError::BadMagic(_))));
        assert!(matches!(decode(b"GET /", 1024), Ok(Step::Partial)));
    }

    #[test]
    fn a_key_travels_in_a_longer_record_and_costs_nothing_without_one() {
        let parts = TickParts { key: 7, payload: b"payload", ..TickParts::default() };
        let mut keyed = Vec::new();
        encode_tick(&mut keyed, TopicId(9), Sequence(3), &parts);
        let mut plain = Vec::new();
        encode_tick(&mut plain, TopicId(9), Sequence(3), &TickParts { key: 0, ..parts });
        for (bytes, key) in [(keyed, 7), (plain, 0)] {
            let Ok(Step::Complete(_, frame)) = decode(&bytes, 1024) else { panic!("complete") };
            assert_eq!((frame.key(), frame.payload()), (key, &b"payload"[..]));
            assert!(frame.record::<TickTimes>().is_ok());
        }
    }

    #[test]
    fn a_record_of_an_older_client_is_taken_with_zeros_at_its_end() {
        let mut bytes = Vec::new();
        encode(
            &mut bytes,
            Kind::Subscribe,
            Meta::default(),
            &Hello { request: 5, ..Hello::default() },
            &[b"a"],
        );
        let Ok(Step::Complete(_, frame)) = decode(&bytes, 1024) else { panic!("complete") };
        let record: crate::records::Subscribe = frame.grown_record(8).unwrap();
        assert_eq!(record, crate::records::Subscribe { request: 5, ..Default::default() });
        assert!(frame.grown_record::<crate::records::Subscribe>(16).is_err());
    }

    #[test]
    fn a_short_record_is_refused() {
        let bytes = tick();
        let Ok(Step::Complete(_, frame)) = decode(&bytes, 1024) else { panic!("complete") };
        assert!(frame.record::<TickTimes>().is_ok());
        assert_eq!(frame.record::<Publish>(), Err(DecodeError::BadRecord(Kind::Tick as u16)));
    }
}
