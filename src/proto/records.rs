//! The fixed-layout records of native frames.
//! A record is a little-endian rkyv struct without pointers or padding. Its archived bytes are its wire bytes, so a
//! browser or Python can read fields by offset. `PROTOCOL.md` lists each layout; the assertions here and the golden
//! test check this file against it.

use rkyv::{Archive, Portable, rancor::Failure};

use crate::limits::{FRAME_ALIGN, FRAME_HEADER_BYTES};

/// A fixed-layout record: converts to and from the archived form, whose memory is the wire format.
///
/// # Safety
/// `Archived` must have no padding, so that each of its bytes is initialised and may be sent. `wire_record!` asserts
/// this.
pub unsafe trait WireRecord: Copy + Sized {
    /// The rkyv form; its memory has the wire layout.
    type Archived: Portable
        + Copy
        + for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, Failure>>;
    /// Length of the record in bytes: the `record_stride` of its frames.
    const STRIDE: usize = size_of::<Self::Archived>();

    /// Converts to the wire form.
    fn archive(&self) -> Self::Archived;
    /// Converts from the wire form.
    fn unarchive(archived: &Self::Archived) -> Self;

    /// Appends the record's wire bytes. Allocates only to grow `out`.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(bytes_of::<Self>(&self.archive()));
    }

    /// Reads a record from the start of `bytes`. `None` if they are too short or not a valid record.
    ///
    /// Any alignment is fine: aligned bytes are read in place, others from a copy on the stack.
    fn read(bytes: &[u8]) -> Option<Self> {
        #[repr(align(16))]
        struct Aligned([u8; RECORD_BYTES_MAX]);
        let bytes = bytes.get(..Self::STRIDE)?;
        if bytes.as_ptr().cast::<Self::Archived>().is_aligned() {
            return rkyv::access::<Self::Archived, Failure>(bytes).ok().map(Self::unarchive);
        }
        let mut aligned = Aligned([0; RECORD_BYTES_MAX]);
        aligned.0[..Self::STRIDE].copy_from_slice(bytes);
        rkyv::access::<Self::Archived, Failure>(&aligned.0[..Self::STRIDE]).ok().map(Self::unarchive)
    }
}

/// Longest record, the frame header included, in bytes.
pub(crate) const RECORD_BYTES_MAX: usize = 32;

/// Casts an archived record to its wire bytes. The only such cast.
fn bytes_of<R: WireRecord>(archived: &R::Archived) -> &[u8] {
    // SAFETY: WireRecord guarantees that Archived has no padding, so all of its bytes are initialised. u8 has no
    // alignment requirement, and the borrow keeps the record alive and unmodified.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(archived).cast::<u8>(), size_of::<R::Archived>()) }
}

/// Declares a record, its rkyv form and the assertions on its layout.
macro_rules! wire_record {
    ($(#[$doc:meta])* $name:ident, $archived:ident, $bytes:literal, {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $offset:literal),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Archive, Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[rkyv(derive(Clone, Copy))]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),+ }

        const _: () = assert!(size_of::<$archived>() == $bytes);
        const _: () = assert!($bytes <= RECORD_BYTES_MAX && $bytes % 8 == 0 && align_of::<$archived>() <= FRAME_ALIGN);
        const _: () = assert!(0 $(+ size_of::<$type>())+ == $bytes, "a record has no padding");
        $(const _: () = assert!(std::mem::offset_of!($archived, $field) == $offset);)+

        // SAFETY: the fields' sizes add up to the struct's size (asserted above), so there is no padding.
        unsafe impl WireRecord for $name {
            type Archived = $archived;
            fn archive(&self) -> $archived { $archived { $($field: self.$field.into()),+ } }
            fn unarchive(archived: &$archived) -> Self { Self { $($field: archived.$field.into()),+ } }
        }
    };
}

wire_record!(
    /// The header of every native frame.
    FrameHeader, ArchivedFrameHeader, 32, {
    /// Length of the frame in bytes: header, record, payload and padding. A multiple of 16.
    frame_len: u32 = 0,
    /// [`crate::frame::MAGIC`].
    magic: u16 = 4,
    /// [`crate::frame::VERSION`].
    version: u8 = 6,
    /// `FLAG_*` bits of [`crate::frame`].
    flags: u8 = 7,
    /// A [`crate::frame::Kind`].
    kind: u16 = 8,
    /// Length of the record in bytes.
    record_stride: u16 = 10,
    /// Length of the payload, which follows the record, in bytes.
    payload_len: u32 = 12,
    /// Number of the tick within its topic, from 1; 0: none.
    sequence: u64 = 16,
    /// Topic id; 0: none.
    topic_id: u32 = 24,
    /// Payload type chosen by the producer, never interpreted here; 0: none.
    schema: u32 = 28,
});
const _: () = assert!(FrameHeader::STRIDE == FRAME_HEADER_BYTES);

wire_record!(
    /// HELLO opens a native connection. The payload is the identity, if any, the client's name, which is logged, and the
    /// token, if any. The first 8 bytes are a valid record without features.
    Hello, ArchivedHello, 16, {
    /// Request id, repeated in the answer.
    request: u32 = 0,
    /// Length of the identity at the start of the payload, in bytes; 0: none.
    client_len: u16 = 4,
    /// Length of the token at the end of the payload, in bytes; 0: none.
    token_len: u16 = 6,
    /// [`crate::features::Features`] that the client asks for.
    features: u64 = 8,
});

wire_record!(
    /// WELCOME answers HELLO. The payload is the server's name and version.
    Welcome, ArchivedWelcome, 24, {
    /// Epoch of the server: its start in microseconds since 1970. Each topic's epoch is greater.
    epoch: u64 = 0,
    /// Session id, as the server logs it.
    session: u64 = 8,
    /// Largest frame the server accepts, in bytes.
    frame_bytes_max: u32 = 16,
    /// Request id of the HELLO.
    request: u32 = 20,
});

wire_record!(
    /// WELCOME to a client that has asked for features. Its beginning is a [`Welcome`].
    WelcomeWithFeatures, ArchivedWelcomeWithFeatures, 32, {
    /// As in [`Welcome`].
    epoch: u64 = 0,
    /// As in [`Welcome`].
    session: u64 = 8,
    /// As in [`Welcome`].
    frame_bytes_max: u32 = 16,
    /// As in [`Welcome`].
    request: u32 = 20,
    /// [`crate::features::Features`] that the server grants: some of those that the client asked for.
    features: u64 = 24,
});

wire_record!(
    /// SUBSCRIBE and UPDATE. The payload is the pattern. The first 8 bytes are a valid record with default options.
    Subscribe, ArchivedSubscribe, 32, {
    /// Request id, repeated in the answer.
    request: u32 = 0,
    /// Start. 0: live, 1: latest, 2: after `epoch` and `sequence`, 3: after the positions of preceding RESUMEs, in
    /// other topics since a moment, if one is given.
    from: u8 = 4,
    /// Policy. 0: the topic's default, 1: conflate, 2: drop, 3: disconnect, 4: keep.
    policy: u8 = 5,
    /// Reserved, 0.
    reserved: u16 = 6,
    /// With `from` 2: epoch of `sequence`. With `from` 3: as in the [`SubscribedSince`] that gave the moment.
    epoch: u64 = 8,
    /// With `from` 2: last sequence received, for every matching topic. With `from` 3: the moment; 0: none.
    sequence: u64 = 16,
    /// Rate limit per topic, in thousandths of a tick per second; 0: none.
    max_rate_millihertz: u32 = 24,
    /// Reserved, 0.
    reserved_end: u32 = 28,
});

wire_record!(
    /// RESUME gives the client's position in a topic to the SUBSCRIBE that follows. The payload is the topic name.
    Resume, ArchivedResume, 16, {
    /// Epoch of `sequence`.
    epoch: u64 = 0,
    /// Last sequence received.
    sequence: u64 = 8,
});

wire_record!(
    /// RECOVERED says whether ticks after a given position follow. The payload is the topic name; the header's
    /// `topic_id` is 0 if the topic does not exist.
    Recovered, ArchivedRecovered, 24, {
    /// Epoch of the topic, or of the server if there is no such topic.
    epoch: u64 = 0,
    /// Last sequence of the topic at the time of the lookup.
    sequence: u64 = 8,
    /// 1: every tick after the position follows. 0: a snapshot follows instead.
    recovered: u32 = 16,
    /// If not recovered, a [`crate::reply::NotRecovered`]; 0: the server does not say.
    reason: u16 = 20,
    /// Reserved, 0.
    reserved: u16 = 22,
});

wire_record!(
    /// CONFLATED and GAP: ticks of the header's topic that are not delivered to this session.
    SkippedRange, ArchivedSkippedRange, 16, {
    /// First sequence of the range.
    from: u64 = 0,
    /// First sequence after the range.
    to: u64 = 8,
});

wire_record!(
    /// CONFLATED and GAP with their number of ticks. Its beginning is a [`SkippedRange`].
    CountedRange, ArchivedCountedRange, 24, {
    /// As in [`SkippedRange`].
    from: u64 = 0,
    /// As in [`SkippedRange`].
    to: u64 = 8,
    /// Ticks in the range: fewer than its sequences if the topic does not use every number.
    count: u64 = 16,
});

wire_record!(
    /// UNSUBSCRIBE and REFRESH, and UNSUBSCRIBED as an answer. The payload is the pattern or the token.
    Request, ArchivedRequest, 8, {
    /// Request id, repeated in the answer.
    request: u32 = 0,
    /// Reserved, 0.
    reserved: u32 = 4,
});

wire_record!(
    /// UNSUBSCRIBED without a request: the server ends a subscription. The payload is the pattern.
    Removed, ArchivedRemoved, 8, {
    /// 0.
    request: u32 = 0,
    /// Why the subscription has ended: an [`crate::ErrorCode`].
    code: u16 = 4,
    /// Reserved, 0.
    reserved: u16 = 6,
});

wire_record!(
    /// PUBLISHED answers a PUBLISH. The header has the tick's topic and sequence; the payload is the topic's name.
    Published, ArchivedPublished, 16, {
    /// Epoch of the sequence.
    epoch: u64 = 0,
    /// Request id of the PUBLISH.
    request: u32 = 8,
    /// 1: the message id is a duplicate, and the sequence is that of the first tick with it.
    is_duplicate: u32 = 12,
});

wire_record!(
    /// EXPIRES announces when the client's token expires.
    Expires, ArchivedExpires, 8, {
    /// Request id of the HELLO or REFRESH that it answers; 0: the token is about to expire.
    request: u32 = 0,
    /// Time until then, seconds; 0: never.
    expires_in_s: u32 = 4,
});

wire_record!(
    /// SOURCE, the state of a source, and STALE, that of the header's topic. The payload of SOURCE is the source's name.
    Condition, ArchivedCondition, 16, {
    /// Start of the state, nanoseconds since 1970.
    since_ns: u64 = 0,
    /// SOURCE: a [`crate::reply::SourceState`]. STALE: 1 stale, 0 no longer.
    state: u32 = 8,
    /// Reserved, 0.
    reserved: u32 = 12,
});

wire_record!(
    /// NODES follows WELCOME. The payload is this node's id, then the addresses of nodes, separated by spaces.
    Nodes, ArchivedNodes, 8, {
    /// Length of the id, in bytes.
    node_len: u16 = 0,
    /// Reserved, 0.
    reserved: u16 = 2,
    /// Reserved, 0.
    reserved_end: u32 = 4,
});

wire_record!(
    /// SUBSCRIBED. With a header `topic_id` of 0, acknowledges a SUBSCRIBE or UPDATE; the payload is the pattern.
    /// Otherwise announces a topic; the payload is its name.
    Subscribed, ArchivedSubscribed, 16, {
    /// Epoch of the topic's sequences.
    epoch: u64 = 0,
    /// Request id of the SUBSCRIBE or UPDATE; 0 in an announcement.
    request: u32 = 8,
    /// Reserved, 0.
    reserved: u32 = 12,
});

wire_record!(
    /// SUBSCRIBED that acknowledges a SUBSCRIBE, with the feature `since`. Begins like [`Subscribed`].
    SubscribedSince, ArchivedSubscribedSince, 24, {
    /// Epoch of the server.
    epoch: u64 = 0,
    /// Request id of the SUBSCRIBE.
    request: u32 = 8,
    /// Reserved, 0.
    reserved: u32 = 12,
    /// When the subscription became live: [`Moment::since_us`](crate::subscription::Moment).
    since_us: u64 = 16,
});

wire_record!(
    /// PUBLISH. The payload is the topic name, then the tick's payload. The first 24 bytes are a valid record without a
    /// key.
    Publish, ArchivedPublish, 32, {
    /// Producer's timestamp, nanoseconds since 1970; 0: the server uses the time of receipt.
    producer_time_ns: u64 = 0,
    /// Time of receipt, set by the server. Ignored in a client's PUBLISH.
    ingest_time_ns: u64 = 8,
    /// Request id, repeated in the answer; 0: only an ERROR answers.
    request: u32 = 16,
    /// Length of the topic name, in bytes.
    topic_len: u16 = 20,
    /// Length of the message id after the topic name, in bytes; 0: none. Only if the server has granted `message_ids`.
    message_id_len: u16 = 22,
    /// Conflation key, for example a price level: the last tick of each key is kept. 0: none.
    key: u64 = 24,
});

wire_record!(
    /// TICK without a key. The payload is the producer's, unchanged.
    TickTimes, ArchivedTickTimes, 16, {
    /// Producer's timestamp, nanoseconds since 1970.
    producer_time_ns: u64 = 0,
    /// Time of receipt by the server, nanoseconds since 1970.
    ingest_time_ns: u64 = 8,
});

wire_record!(
    /// TICK with a key. Its beginning is a [`TickTimes`], for readers that ignore keys.
    KeyedTickTimes, ArchivedKeyedTickTimes, 24, {
    /// As in [`TickTimes`].
    producer_time_ns: u64 = 0,
    /// As in [`TickTimes`].
    ingest_time_ns: u64 = 8,
    /// As in [`Publish`]; 0 only if the record is longer.
    key: u64 = 16,
});

wire_record!(
    /// TICK with an upper bound of the preceding sequence. Its beginning is a [`KeyedTickTimes`].
    LinkedTickTimes, ArchivedLinkedTickTimes, 32, {
    /// As in [`TickTimes`].
    producer_time_ns: u64 = 0,
    /// As in [`TickTimes`].
    ingest_time_ns: u64 = 8,
    /// As in [`Publish`]; 0: none.
    key: u64 = 16,
    /// Ticks are missing if and only if this is greater than the last sequence that the client has.
    previous: u64 = 24,
});

wire_record!(
    /// RECOVER, between shards, requests a topic's history for a session.
    ///
    /// The header has the topic and the first sequence wanted.
    Recover, ArchivedRecover, 16, {
    /// Session that waits for the history.
    session: u64 = 0,
    /// `Wanted` of the core, as a number.
    wanted: u32 = 8,
    /// Reserved, 0.
    reserved: u32 = 12,
});

wire_record!(
    /// HISTORY, between shards, answers RECOVER with one piece of the history.
    ///
    /// The payload is whole TICK frames. The header has the topic and its last sequence.
    History, ArchivedHistory, 32, {
    /// Session that waits for the history.
    session: u64 = 0,
    /// First sequence requested.
    from: u64 = 8,
    /// First sequence that is still kept, at least `from`. Ticks `[from, start)` are lost.
    start: u64 = 16,
    /// `CHUNK_*` bits of the core.
    flags: u32 = 24,
    /// `Wanted` of the RECOVER.
    wanted: u32 = 28,
});

wire_record!(
    /// ACKNOWLEDGE, between shards: a home has sequenced a tick whose session wants an answer.
    ///
    /// The header has the topic and the sequence; the payload is the topic's name.
    Acknowledge, ArchivedAcknowledge, 24, {
    /// Session that published the tick.
    session: u64 = 0,
    /// Epoch of the sequence.
    epoch: u64 = 8,
    /// Request id of the PUBLISH.
    request: u32 = 16,
    /// As in [`Published`].
    is_duplicate: u32 = 20,
});

wire_record!(
    /// LOOKUP, between shards, reads topics of a home for an HTTP request. The payload is the key of a pattern or a topic.
    Lookup, ArchivedLookup, 32, {
    /// Session that waits for the answer.
    session: u64 = 0,
    /// Epoch of `sequence`, if `wants` says that it matters.
    epoch: u64 = 8,
    /// First sequence wanted.
    sequence: u64 = 16,
    /// Place of the first topic wanted.
    place: u32 = 24,
    /// Most items.
    limit: u16 = 28,
    /// `WANTS_*` of the core.
    wants: u16 = 30,
});

wire_record!(
    /// FOUND, between shards, answers LOOKUP with one piece.
    ///
    /// The payload is whole frames: for each topic PUBLISHED and its TICKs, or the TICKs of one topic. In the latter case the header
    /// has the topic and its last sequence.
    Found, ArchivedFound, 32, {
    /// Session that waits for the answer.
    session: u64 = 0,
    /// The topic's epoch.
    epoch: u64 = 8,
    /// Of topics: the sequence at which to go on. Of one topic: the first sequence that is still kept, of those wanted.
    sequence: u64 = 16,
    /// The place at which to go on.
    place: u32 = 24,
    /// `FOUND_*` bits of the core.
    flags: u32 = 28,
});

wire_record!(
    /// The beginning of the payload of APPEND, which brings a home a tick of a log. The topic's key and the tick's payload follow.
    /// The record is that of PUBLISH; the header has the source and the position.
    LogPlace, ArchivedLogPlace, 16, {
    /// [`crate::logged::log_epoch`] of the log.
    epoch: u64 = 0,
    /// The source has read everything from this position on.
    complete_from: u64 = 8,
});

wire_record!(
    /// ROUTED, from a shard to a sink: a tick for the sink's engine.
    ///
    /// The header's sequence names the publish in [`Settled`]. The payload is the topic's key, the message id, then the tick's payload.
    Routed, ArchivedRouted, 32, {
    /// Producer's timestamp, nanoseconds since 1970.
    producer_time_ns: u64 = 0,
    /// When the session gets error 112 unless the engine has confirmed the tick, CLOCK_MONOTONIC nanoseconds.
    deadline_ns: u64 = 8,
    /// As in [`Publish`].
    key: u64 = 16,
    /// Length of the topic's key, in bytes.
    topic_len: u16 = 24,
    /// Length of the message id after the topic's key, in bytes; 0: none.
    message_id_len: u16 = 26,
    /// Reserved, 0.
    reserved_end: u32 = 28,
});

wire_record!(
    /// SETTLED, from a sink to a shard, answers [`Routed`]. The header's sequence is that of the ROUTED; the payload is the topic's key.
    Settled, ArchivedSettled, 24, {
    /// Epoch of the engine's position; 0: it has none.
    epoch: u64 = 0,
    /// The engine's position; 0: it has none.
    sequence: u64 = 8,
    /// An outcome of the core's routes.
    outcome: u16 = 16,
    /// 1: the engine has recognised the message id, and the position is that of the first tick with it.
    is_duplicate: u16 = 18,
    /// Reserved, 0.
    reserved: u32 = 20,
});

wire_record!(
    /// PING and PONG.
    Token, ArchivedToken, 8, {
    /// Chosen by the sender of the PING, repeated in the PONG.
    token: u64 = 0,
});

wire_record!(
    /// ERROR: a request failed. The payload is a message for people.
    ErrorRecord, ArchivedErrorRecord, 8, {
    /// Request id of the failed request; 0 if it had none.
    request: u32 = 0,
    /// An [`crate::ErrorCode`].
    code: u16 = 4,
    /// Reserved, 0.
    reserved: u16 = 6,
});

wire_record!(
    /// CLOSING, the server's last frame. The payload is the reason, for people.
    Closing, ArchivedClosing, 8, {
    /// Delay before reconnecting, milliseconds; 0: the client decides.
    reconnect_after_ms: u32 = 0,
    /// Close code.
    code: u16 = 4,
    /// Reserved, 0.
    reserved: u16 = 6,
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_at_every_alignment() {
        let record = Welcome { epoch: 1 << 40, session: 7, frame_bytes_max: 9, request: 3 };
        for offset in 0..16 {
            let mut bytes = vec![0xaa; offset];
            record.write(&mut bytes);
            assert_eq!(Welcome::read(&bytes[offset..]), Some(record));
            assert_eq!(Welcome::read(&bytes[offset..bytes.len() - 1]), None);
        }
    }
}
