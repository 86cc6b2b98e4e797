//! The native frame: header, one fixed-layout record, payload, zero padding to 16 bytes.
//!
//! ```text
//!  0  u32 frame_len (padding included)       16  u64 sequence
//!  4  u16 magic     6  u8  version  7 flags  24  u32 topic_id
//!  8  u16 kind     10  u16 record_stride     28  u32 schema
//! 12  u32 payload_len                        32  record, payload, padding
//! ```
//!
//! Little-endian. Clients and the mesh between shards use the same frame, so a tick is encoded once, by its home shard,
//! and only copied afterwards.

use crate::{
    DecodeError, Step,
    features::Features,
    identity,
    ids::{Sequence, TopicId},
    limits::{FRAME_ALIGN, FRAME_HEADER_BYTES},
    records::{
        FrameHeader, Hello, KeyedTickTimes, Publish, RECORD_BYTES_MAX, Subscribed, TickTimes, WireRecord,
    },
};

/// The magic number: "tc" on the wire.
pub const MAGIC: u16 = 0x6374;
/// The version of the frame layout.
pub const VERSION: u8 = 1;
/// Flag: the payload is one JSON value. Only the server sets it, after validating or producing the payload.
pub const FLAG_PAYLOAD_JSON: u8 = 1;
/// Flag: the tick belongs to a snapshot. Sequences between it and the next tick are not missing.
pub const FLAG_SNAPSHOT: u8 = 2;
/// Flag between shards, in PUBLISH and in the ERROR that answers it: the publishing session keeps room for the answer. Clients'
/// flags are ignored.
pub const FLAG_ANSWERED: u8 = 1 << 7;

/// Kind of a frame.
///
/// Clients send kinds below 64, the server kinds from 64 (PING and PONG go both ways), shards to each other also those
/// from 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "PROTOCOL.md and the records describe each")]
pub enum Kind {
    Hello = 1,
    Subscribe = 2,
    Unsubscribe = 3,
    Publish = 4,
    Ping = 5,
    Update = 6,
    Resume = 7,
    Refresh = 8,
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
    Published = 74,
    Expires = 75,
    Source = 76,
    Stale = 77,
    Nodes = 78,
    Recover = 128,
    History = 129,
    Forget = 130,
    Acknowledge = 131,
    Lookup = 132,
    Found = 133,
    Append = 134,
    Routed = 135,
    Settled = 136,
}

/// Length of the PUBLISH record before it had a key, in bytes.
const PUBLISH_STRIDE_MIN: usize = 24;
/// Length of the HELLO record before it had features, in bytes.
const HELLO_STRIDE_MIN: usize = 8;

/// The contents of a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloParts<'a> {
    /// Request id, repeated in the answer.
    pub request: u32,
    /// The client's identity; empty: none.
    pub client: &'a str,
    /// The client's name.
    pub name: &'a str,
    /// Features that the client asks for.
    pub features: Features,
}

impl Kind {
    /// Converts a kind from the wire; `None` if it is unknown.
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
            8 => Refresh,
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
            74 => Published,
            75 => Expires,
            76 => Source,
            77 => Stale,
            78 => Nodes,
            128 => Recover,
            129 => History,
            130 => Forget,
            131 => Acknowledge,
            132 => Lookup,
            133 => Found,
            134 => Append,
            135 => Routed,
            136 => Settled,
            _ => return None,
        })
    }
}

/// A decoded frame, borrowed from its input.
///
/// Invariant: record and payload lie within `bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The validated header.
    pub header: FrameHeader,
    /// The kind in the header.
    pub kind: Kind,
    /// The whole frame, for forwarding.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads the record as `R`. A longer record is fine: the extra bytes are ignored.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] if it is shorter than `R` or has an invalid field.
    pub fn record<R: WireRecord>(&self) -> Result<R, DecodeError> {
        let end = FRAME_HEADER_BYTES + usize::from(self.header.record_stride);
        R::read(&self.bytes[FRAME_HEADER_BYTES..end]).ok_or(DecodeError::BadRecord(self.header.kind))
    }

    /// The payload: a pattern, a text or the producer's bytes, depending on the kind.
    pub fn payload(&self) -> &'a [u8] {
        let start = FRAME_HEADER_BYTES + usize::from(self.header.record_stride);
        &self.bytes[start..start + self.header.payload_len as usize]
    }

    /// The payload as text.
    ///
    /// # Errors
    /// [`DecodeError::NotUtf8`] if it is not UTF-8.
    pub fn text(&self) -> Result<&'a str, DecodeError> {
        simdutf8::basic::from_utf8(self.payload()).map_err(|_| DecodeError::NotUtf8)
    }

    /// Reads the record as `R`, with zeros for fields that an older peer's shorter record lacks.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] if it is shorter than `stride_min` or has an invalid field.
    pub fn zero_extended_record<R: WireRecord>(&self, stride_min: usize) -> Result<R, DecodeError> {
        let stride = usize::from(self.header.record_stride);
        if stride >= R::STRIDE || stride < stride_min {
            return self.record();
        }
        let mut bytes = [0; RECORD_BYTES_MAX];
        bytes[..stride].copy_from_slice(&self.bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + stride]);
        R::read(&bytes).ok_or(DecodeError::BadRecord(self.header.kind))
    }

    /// The conflation key of a TICK; 0: none.
    pub fn key(&self) -> u64 {
        match usize::from(self.header.record_stride) {
            stride if stride < KeyedTickTimes::STRIDE => 0,
            _ => {
                let record = self.record::<KeyedTickTimes>();
                debug_assert!(record.is_ok(), "a record of this length has a key");
                record.map_or(0, |record| record.key)
            }
        }
    }

    /// The contents of a HELLO, without its token.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] if the identity and the token would be longer than the payload,
    /// [`DecodeError::BadIdentity`] if the identity is invalid, [`DecodeError::NotUtf8`] if the name is not UTF-8.
    pub fn hello(&self) -> Result<HelloParts<'a>, DecodeError> {
        let record: Hello = self.zero_extended_record(HELLO_STRIDE_MIN)?;
        let bad_record = DecodeError::BadRecord(self.header.kind);
        let payload = self.payload();
        let (client, rest) =
            payload.split_at_checked(usize::from(record.client_len)).ok_or(bad_record.clone())?;
        let name_len = rest.len().checked_sub(usize::from(record.token_len)).ok_or(bad_record)?;
        let name = &rest[..name_len];
        let client = match client {
            [] => "",
            client => identity::check(client).map_err(DecodeError::BadIdentity)?,
        };
        let name = simdutf8::basic::from_utf8(name).map_err(|_| DecodeError::NotUtf8)?;
        let features = Features::from_wire(record.features);
        Ok(HelloParts { request: record.request, client, name, features })
    }

    /// The token in a HELLO, unchecked; empty: none.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] if the token would be longer than the payload.
    pub fn hello_token(&self) -> Result<&'a [u8], DecodeError> {
        let record: Hello = self.zero_extended_record(HELLO_STRIDE_MIN)?;
        let payload = self.payload();
        let start = payload.len().checked_sub(usize::from(record.token_len));
        start.map(|start| &payload[start..]).ok_or(DecodeError::BadRecord(self.header.kind))
    }

    /// The contents of a PUBLISH.
    ///
    /// # Errors
    /// [`DecodeError::BadRecord`] if topic name and message id would be longer than the payload.
    pub fn publish(&self) -> Result<PublishParts<'a>, DecodeError> {
        let record: Publish = self.zero_extended_record(PUBLISH_STRIDE_MIN)?;
        let bad_record = DecodeError::BadRecord(self.header.kind);
        let payload = self.payload();
        let (topic, rest) =
            payload.split_at_checked(usize::from(record.topic_len)).ok_or(bad_record.clone())?;
        let (message_id, payload) =
            rest.split_at_checked(usize::from(record.message_id_len)).ok_or(bad_record)?;
        Ok(PublishParts { record, topic, message_id, payload })
    }
}

/// Decodes the frame at the start of `bytes` and validates its header. Does not allocate.
///
/// # Errors
/// A [`DecodeError`] as soon as the header is known to be invalid, without waiting for the rest of the frame.
pub fn decode(bytes: &[u8], frame_bytes_max: usize) -> Result<Step<Frame<'_>>, DecodeError> {
    match decode_received(bytes, frame_bytes_max)? {
        Step::Partial => {
            let kind = FrameHeader::read(bytes).map(|header| header.kind);
            match kind.filter(|&kind| Kind::from_wire(kind).is_none()) {
                Some(kind) => Err(DecodeError::UnknownKind(kind)),
                None => Ok(Step::Partial),
            }
        }
        Step::Complete(used, Received::Frame(frame)) => Ok(Step::Complete(used, frame)),
        Step::Complete(_, Received::Unknown(kind)) => Err(DecodeError::UnknownKind(kind)),
    }
}

/// A frame from a server that may be newer than the client.
#[derive(Clone, Copy, Debug)]
pub enum Received<'a> {
    /// A frame.
    Frame(Frame<'a>),
    /// A frame of a kind that this version does not know. Skip it.
    Unknown(u16),
}

/// Like [`decode`], for clients: a frame of an unknown kind is not an error.
///
/// # Errors
/// As [`decode`].
#[inline]
pub fn decode_received(bytes: &[u8], frame_bytes_max: usize) -> Result<Step<Received<'_>>, DecodeError> {
    let Some(header) = FrameHeader::read(bytes) else {
        // Another protocol may never send 32 bytes, but the magic number is known after 6.
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
    let frame_len = header.frame_len as usize;
    if frame_len > frame_bytes_max {
        return Err(DecodeError::TooLarge { bytes: u64::from(header.frame_len), bytes_max: frame_bytes_max });
    }
    let parts = FRAME_HEADER_BYTES as u64 + u64::from(header.record_stride) + u64::from(header.payload_len);
    if u64::from(header.frame_len) != parts.next_multiple_of(FRAME_ALIGN as u64) {
        return Err(DecodeError::BadLength(header.frame_len));
    }
    let Some(bytes) = bytes.get(..frame_len) else { return Ok(Step::Partial) };
    let received = match Kind::from_wire(header.kind) {
        Some(kind) => Received::Frame(Frame { header, kind, bytes }),
        None => Received::Unknown(header.kind),
    };
    Ok(Step::Complete(frame_len, received))
}

/// Length of a frame, including padding, with a record of `stride` and a payload of `payload_len` bytes.
pub const fn encoded_len(stride: usize, payload_len: usize) -> usize {
    (FRAME_HEADER_BYTES + stride + payload_len).next_multiple_of(FRAME_ALIGN)
}

/// Length of a TICK, including padding. A tick with a key has a longer record.
pub const fn tick_len(key: u64, payload_len: usize) -> usize {
    encoded_len(if key == 0 { TickTimes::STRIDE } else { KeyedTickTimes::STRIDE }, payload_len)
}

/// Header fields that the caller of [`encode`] chooses. [`encode`] derives the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeaderFields {
    /// `FLAG_*`.
    pub flags: u8,
    /// Sequence within the topic; 0: none.
    pub sequence: u64,
    /// Topic id; 0: none.
    pub topic_id: u32,
    /// Payload type chosen by the producer; 0: none.
    pub schema: u32,
}

/// Appends a frame whose payload is the concatenation of `parts`. Allocates only to grow `out`.
///
/// The caller must keep the frame within `frame_bytes_max`, so that the lengths fit their fields. Returns the header,
/// which saves the caller from decoding the frame.
pub fn encode<R: WireRecord>(
    out: &mut Vec<u8>,
    kind: Kind,
    fields: HeaderFields,
    record: &R,
    parts: &[&[u8]],
) -> FrameHeader {
    let payload_len: usize = parts.iter().map(|part| part.len()).sum();
    let frame_len = encoded_len(R::STRIDE, payload_len);
    let start = out.len();
    debug_assert!(u32::try_from(frame_len).is_ok(), "the caller keeps a frame within frame_bytes_max");
    out.reserve(frame_len);
    let header = FrameHeader {
        frame_len: frame_len as u32,
        magic: MAGIC,
        version: VERSION,
        flags: fields.flags,
        kind: kind as u16,
        record_stride: R::STRIDE as u16,
        payload_len: payload_len as u32,
        sequence: fields.sequence,
        topic_id: fields.topic_id,
        schema: fields.schema,
    };
    header.write(out);
    record.write(out);
    for part in parts {
        out.extend_from_slice(part);
    }
    out.resize(start + frame_len, 0);
    header
}

/// Contents of a tick, without its topic and sequence.
#[derive(Clone, Copy, Debug, Default)]
pub struct TickParts<'a> {
    /// `FLAG_*`.
    pub flags: u8,
    /// Payload type chosen by the producer; 0: none.
    pub schema: u32,
    /// Producer and ingest time.
    pub times: TickTimes,
    /// The conflation key; 0: none.
    pub key: u64,
    /// Payload, as published.
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
    let fields = HeaderFields { flags, sequence: sequence.0, topic_id: topic.0, schema };
    if key == 0 {
        return encode(out, Kind::Tick, fields, &times, &[payload]);
    }
    let TickTimes { producer_time_ns, ingest_time_ns } = times;
    encode(out, Kind::Tick, fields, &KeyedTickTimes { producer_time_ns, ingest_time_ns, key }, &[payload])
}

/// Appends a topic's announcement, a SUBSCRIBED with the topic's id and name.
pub fn encode_topic(out: &mut Vec<u8>, topic: TopicId, epoch: u64, name: &str) {
    let fields = HeaderFields { topic_id: topic.0, ..HeaderFields::default() };
    encode(out, Kind::Subscribed, fields, &Subscribed { epoch, ..Subscribed::default() }, &[name.as_bytes()]);
}

/// Appends a HELLO without a token. Its identity is empty or accepted by [`identity::check`].
pub fn encode_hello(out: &mut Vec<u8>, hello: &HelloParts<'_>) {
    encode_hello_with_token(out, hello, b"");
}

/// Appends a HELLO with a token of at most 64 KiB; empty: none. Its identity is empty or accepted by [`identity::check`].
pub fn encode_hello_with_token(out: &mut Vec<u8>, hello: &HelloParts<'_>, token: &[u8]) {
    let HelloParts { request, client, name, features } = *hello;
    debug_assert!(client.len() <= crate::limits::IDENTITY_BYTES_MAX, "identities are validated on input");
    debug_assert!(token.len() <= usize::from(u16::MAX), "the caller bounds its token");
    let (client_len, token_len) = (client.len() as u16, token.len() as u16);
    let record = Hello { request, client_len, token_len, features: features.to_wire() };
    let parts = [client.as_bytes(), name.as_bytes(), token];
    encode(out, Kind::Hello, HeaderFields::default(), &record, &parts);
}

/// Contents of a PUBLISH.
#[derive(Clone, Copy, Debug)]
pub struct PublishParts<'a> {
    /// The record.
    pub record: Publish,
    /// The topic's name, not validated.
    pub topic: &'a [u8],
    /// The message id, not validated; empty: none.
    pub message_id: &'a [u8],
    /// The tick's payload.
    pub payload: &'a [u8],
}

/// Appends a PUBLISH without a message id. `origin` fills the sequence field, which only shards read: the session to answer.
pub fn encode_publish(
    out: &mut Vec<u8>,
    origin: u64,
    flags: u8,
    schema: u32,
    record: Publish,
    topic: &str,
    payload: &[u8],
) {
    encode_publish_with(
        out,
        HeaderFields { flags, sequence: origin, topic_id: 0, schema },
        record,
        topic,
        &[],
        payload,
    );
}

/// Appends a PUBLISH with these header fields and a message id; empty: none. Between shards, the sequence field holds the publishing
/// session, the topic id its origin, and the message id is the home's.
pub fn encode_publish_with(
    out: &mut Vec<u8>,
    fields: HeaderFields,
    record: Publish,
    topic: &str,
    message_id: &[u8],
    payload: &[u8],
) {
    debug_assert!(message_id.len() <= crate::limits::MESSAGE_ID_BYTES_MAX, "ids are validated on input");
    let record = Publish { topic_len: topic.len() as u16, message_id_len: message_id.len() as u16, ..record };
    encode(out, Kind::Publish, fields, &record, &[topic.as_bytes(), message_id, payload]);
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn invalid_header_is_rejected_with_the_violated_rule() {
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
    fn another_protocol_is_rejected_after_six_bytes() {
        assert!(matches!(decode(b"GET / ", 1024), Err(DecodeError::BadMagic(_))));
        assert!(matches!(decode(b"GET /", 1024), Ok(Step::Partial)));
    }

    #[test]
    fn keyed_tick_has_a_longer_record_that_reads_as_a_plain_one() {
        let parts = TickParts { key: 7, payload: b"payload", ..TickParts::default() };
        let mut keyed = Vec::new();
        encode_tick(&mut keyed, TopicId(9), Sequence(3), &parts);
        let mut plain = Vec::new();
        encode_tick(&mut plain, TopicId(9), Sequence(3), &TickParts { key: 0, ..parts });
        for (bytes, key) in [(keyed, 7), (plain, 0)] {
            let Ok(Step::Complete(_, frame)) = decode(&bytes, 1024) else { panic!("complete") };
            assert_eq!((frame.key(), frame.payload()), (key, &b"payload"[..]));
            assert_eq!(bytes.len(), tick_len(key, frame.payload().len()));
            assert!(frame.record::<TickTimes>().is_ok());
        }
    }

    #[test]
    fn shorter_record_of_an_older_client_is_extended_with_zeros() {
        let mut bytes = Vec::new();
        encode(
            &mut bytes,
            Kind::Subscribe,
            HeaderFields::default(),
            &crate::records::Request { request: 5, ..Default::default() },
            &[b"a"],
        );
        let Ok(Step::Complete(_, frame)) = decode(&bytes, 1024) else { panic!("complete") };
        let record: crate::records::Subscribe = frame.zero_extended_record(8).unwrap();
        assert_eq!(record, crate::records::Subscribe { request: 5, ..Default::default() });
        assert!(frame.zero_extended_record::<crate::records::Subscribe>(16).is_err());
    }

    #[test]
    fn too_short_record_is_rejected() {
        let bytes = tick();
        let Ok(Step::Complete(_, frame)) = decode(&bytes, 1024) else { panic!("complete") };
        assert!(frame.record::<TickTimes>().is_ok());
        assert_eq!(frame.record::<Publish>(), Err(DecodeError::BadRecord(Kind::Tick as u16)));
    }
}
