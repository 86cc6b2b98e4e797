//! The fixed records that native frames carry.
//!
//! A record is a pointer-free rkyv struct, little-endian, widest field first, without padding: its archived bytes
//! are its wire bytes, so a browser or Python reads them by offset. `PROTOCOL.md` draws each layout;
//! the assertions here and the golden bytes in the tests hold this file to it.

use rkyv::{Archive, Portable, rancor::Failure};

use crate::limits::{FRAME_ALIGN, FRAME_HEADER_BYTES};

/// A fixed record of the native wire: converts to and from its archived, byte-exact form.
///
/// # Safety
/// `Archived` must have no padding: every byte of it is initialised and may be sent. `wire_record!` asserts it.
pub unsafe trait WireRecord: Copy + Sized {
    /// The rkyv form, whose memory is the wire layout.
    type Archived: Portable
        + Copy
        + for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, Failure>>;
    /// Bytes of the record: the `record_stride` of frames that carry it.
    const STRIDE: usize = size_of::<Self::Archived>();

    /// To the wire form.
    fn archive(&self) -> Self::Archived;
    /// From the wire form.
    fn unarchive(archived: &Self::Archived) -> Self;

    /// Appends the record's wire bytes. No allocation beyond the growth of `out`.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(bytes_of::<Self>(&self.archive()));
    }

    /// Reads a record from the first [`Self::STRIDE`] bytes of `bytes`, at any alignment: zero-copy when the bytes
    /// are aligned, through a copy on the stack otherwise. `None` when they are too short or not a valid record.
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

/// Longest record there is, the header included.
pub(crate) const RECORD_BYTES_MAX: usize = 32;

/// The one wire cast: an archived record as the bytes that are sent.
fn bytes_of<R: WireRecord>(archived: &R::Archived) -> &[u8] {
    // SAFETY: WireRecord promises that Archived has no padding, so each of its size_of bytes is initialised; u8
    // needs no alignment, and the borrow keeps the record alive and unchanged.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(archived).cast::<u8>(), size_of::<R::Archived>()) }
}

/// Declares a record, its rkyv form, and the assertions on its layout.
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
        const _: () = assert!(0 $(+ size_of::<$type>())+ == $bytes, "a record must not have padding");
        $(const _: () = assert!(std::mem::offset_of!($archived, $field) == $offset);)+

        // SAFETY: the assertions above: the fields' sizes add up to the struct's, so there is no padding.
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
    /// Bytes of the whole frame: header, record, payload and padding. A multiple of 16.
    frame_len: u32 = 0,
    /// [`crate::frame::MAGIC`].
    magic: u16 = 4,
    /// [`crate::frame::VERSION`].
    version: u8 = 6,
    /// Bits of [`crate::frame`]: `FLAG_*`.
    flags: u8 = 7,
    /// A [`crate::frame::Kind`].
    kind: u16 = 8,
    /// Bytes of the record that the body begins with.
    record_stride: u16 = 10,
    /// Bytes of the payload that follows the record.
    payload_len: u32 = 12,
    /// Position of the tick in its topic, from 1; 0 where it means nothing.
    sequence: u64 = 16,
    /// The topic; 0 where it means nothing.
    topic_id: u32 = 24,
    /// The producer's own mark of what the payload is; carried, never interpreted. 0: unmarked.
    schema: u32 = 28,
});
const _: () = assert!(FrameHeader::STRIDE == FRAME_HEADER_BYTES);

wire_record!(
    /// HELLO: what a native client opens with. The payload is the client's identity, if it has one, and its name, for
    /// the operator's eyes.
    Hello, ArchivedHello, 8, {
    /// Named by the answer.
    request: u32 = 0,
    /// Bytes of the identity that the payload begins with; 0: none.
    client_len: u16 = 4,
    /// 0.
    reserved: u16 = 6,
});

wire_record!(
    /// WELCOME: the answer to HELLO. The payload is the server's name and version.
    Welcome, ArchivedWelcome, 24, {
    /// The server's life: changes with every start. Nanoseconds since 1970 at start.
    epoch: u64 = 0,
    /// This connection, for the operator's eyes and logs.
    session: u64 = 8,
    /// Largest frame the server accepts, in bytes.
    frame_bytes_max: u32 = 16,
    /// Named by the HELLO.
    request: u32 = 20,
});

wire_record!(
    /// SUBSCRIBE and UPDATE. The payload is the pattern. A record of the first 8 bytes asks for the defaults.
    Subscribe, ArchivedSubscribe, 32, {
    /// Named by the answer.
    request: u32 = 0,
    /// 0: live, 1: latest, 2: after `epoch` and `sequence`, 3: after the positions of the RESUMEs before.
    from: u8 = 4,
    /// 0: the topic's default, 1: conflate, 2: drop, 3: disconnect.
    policy: u8 = 5,
    /// 0.
    reserved: u16 = 6,
    /// With `from` 2: the life of the sequencer that counted.
    epoch: u64 = 8,
    /// With `from` 2: the last sequence received, in every topic that matches.
    sequence: u64 = 16,
    /// Ticks of one topic at most, in thousandths a second; 0: no bound.
    max_rate_millihertz: u32 = 24,
    /// 0.
    reserved_end: u32 = 28,
});

wire_record!(
    /// RESUME: the client's place in a topic, for the SUBSCRIBE that follows. The payload is the topic's name.
    Resume, ArchivedResume, 16, {
    /// The life of the sequencer that counted.
    epoch: u64 = 0,
    /// The last sequence received.
    sequence: u64 = 8,
});

wire_record!(
    /// RECOVERED: what became of a place that was named. The payload is the topic's name; the header's `topic_id` is 0
    /// for a topic that does not exist.
    Recovered, ArchivedRecovered, 24, {
    /// The life of the sequencer that counts now.
    epoch: u64 = 0,
    /// The topic's last sequence when it was looked up.
    sequence: u64 = 8,
    /// 1: every tick after the place follows. 0: the newest follow instead.
    recovered: u32 = 16,
    /// 0.
    reserved: u32 = 20,
});

wire_record!(
    /// CONFLATED and GAP: ticks of the header's topic that this session does not get.
    Skipped, ArchivedSkipped, 16, {
    /// The first of them.
    from: u64 = 0,
    /// The one after the last of them.
    to: u64 = 8,
});

wire_record!(
    /// UNSUBSCRIBE and UNSUBSCRIBED. The payload is the pattern.
    Request, ArchivedRequest, 8, {
    /// Named by the answer.
    request: u32 = 0,
    /// 0.
    reserved: u32 = 4,
});

wire_record!(
    /// SUBSCRIBED. With a header `topic_id` of 0 it acknowledges a SUBSCRIBE and the payload is the pattern; with
    /// another it names a topic that ticks may follow of, and the payload is the topic's name.
    Subscribed, ArchivedSubscribed, 16, {
    /// The life of the sequencer that counts the topic.
    epoch: u64 = 0,
    /// Named by the SUBSCRIBE; 0 in a topic's announcement.
    request: u32 = 8,
    /// 0.
    reserved: u32 = 12,
});

wire_record!(
    /// PUBLISH. The payload is the topic's name, then the tick's payload. A record of the first 24 bytes has no key.
    Publish, ArchivedPublish, 32, {
    /// Producer's time, nanoseconds since 1970; 0: the server's time of receipt.
    producer_time_ns: u64 = 0,
    /// Written by the server: its time of receipt. From a client: ignored.
    ingest_time_ns: u64 = 8,
    /// Named by the error, if there is one.
    request: u32 = 16,
    /// Bytes of the topic's name.
    topic_len: u16 = 20,
    /// 0.
    reserved: u16 = 22,
    /// What the tick is about within its topic, a price level say: of each key the newest survives conflation. 0: none.
    key: u64 = 24,
});

wire_record!(
    /// TICK. The payload is the producer's, unchanged.
    TickTimes, ArchivedTickTimes, 16, {
    /// Producer's time, nanoseconds since 1970.
    producer_time_ns: u64 = 0,
    /// The server's time of receipt, nanoseconds since 1970.
    ingest_time_ns: u64 = 8,
});

wire_record!(
    /// TICK with a key. A reader that knows no keys reads it as [`TickTimes`].
    KeyedTimes, ArchivedKeyedTimes, 24, {
    /// As in [`TickTimes`].
    producer_time_ns: u64 = 0,
    /// As in [`TickTimes`].
    ingest_time_ns: u64 = 8,
    /// As in [`Publish`]; never 0.
    key: u64 = 16,
});

wire_record!(
    /// Between shards, a request: the history of the header's topic after the header's `sequence`, for a session.
    Recover, ArchivedRecover, 24, {
    /// The session that waits for it.
    session: u64 = 0,
    /// The life of the sequencer that counted `sequence`.
    epoch: u64 = 8,
    /// A `Wanted` of the core.
    wanted: u32 = 16,
    /// 0.
    reserved: u32 = 20,
});

wire_record!(
    /// Between shards, the answer: a piece of it. The payload is whole TICK frames; the header's `sequence` is the
    /// topic's last.
    History, ArchivedHistory, 32, {
    /// The session that waits for it.
    session: u64 = 0,
    /// The first sequence asked for.
    from: u64 = 8,
    /// The first sequence that is still there, or `from`: what lies between is lost.
    start: u64 = 16,
    /// `PIECE_*` bits of the core.
    flags: u32 = 24,
    /// What was asked for: a `Wanted` of the core.
    wanted: u32 = 28,
});

wire_record!(
    /// PING and PONG.
    Token, ArchivedToken, 8, {
    /// Returned as it came.
    token: u64 = 0,
});

wire_record!(
    /// ERROR: a request that failed. The payload is text for a person.
    ErrorRecord, ArchivedErrorRecord, 8, {
    /// Named by the request; 0 where it named none.
    request: u32 = 0,
    /// An [`crate::ErrorCode`].
    code: u16 = 4,
    /// 0.
    reserved: u16 = 6,
});

wire_record!(
    /// CLOSING: the last frame the server sends. The payload is text for a person.
    Closing, ArchivedClosing, 8, {
    /// When to come back, milliseconds from now; 0: at the client's own pace.
    reconnect_after_ms: u32 = 0,
    /// The close code, as on a WebSocket.
    code: u16 = 4,
    /// 0.
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
