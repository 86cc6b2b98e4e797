//! The outbox of one session: ranges of a shared log, and bytes for this session only.

use std::collections::VecDeque;

use crate::{
    egress_log::{Cut, EgressLog, FrameInfo, Range},
    ids::Sequence,
    limits::{OUTBOX_RANGES_MAX, REPLY_BYTES_MAX, SEND_BYTES_MAX, SEND_DIRECT_BYTES},
    session::{membership::Gap, shared_messages::SharedMessages},
};
use tickcast_proto::WireFormat;

/// One entry of an outbox. 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Shared frames, in the egress log of the session's wire format.
    Shared(Range),
    /// The next bytes of `private`, this many: replies, whole when queued.
    Reply(u32),
    /// The next `len` private bytes: one frame of a topic, an announcement or a recovered tick.
    Private { sequence: u64, topic: u32, len: u32 },
    /// The next `len` private bytes: a notice that the ticks `[from, to)` of a topic were skipped.
    Notice { from: u64, to: u64, topic: u32, len: u16 },
}

/// Identity of a waiting frame, sufficient to announce a loss if it is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A tick or an announcement.
    Frame(FrameInfo),
    /// A notice of skipped ticks.
    Notice {
        /// The topic's id.
        topic: u32,
        /// The skipped ticks.
        skipped: Gap,
    },
}

impl From<FrameInfo> for Content {
    fn from(info: FrameInfo) -> Content {
        Content::Frame(info)
    }
}

impl Content {
    /// The topic's id.
    pub fn topic(self) -> u32 {
        match self {
            Content::Frame(FrameInfo { topic, .. }) | Content::Notice { topic, .. } => topic,
        }
    }

    /// Whether it announces a topic.
    pub fn is_announcement(self) -> bool {
        matches!(self, Content::Frame(FrameInfo { sequence: 0, .. }))
    }

    /// Whether it is a tick.
    pub fn is_tick(self) -> bool {
        matches!(self, Content::Frame(FrameInfo { sequence: 1.., .. }))
    }

    /// The ticks that it accounts for; empty for an announcement.
    pub fn ticks(self) -> Gap {
        match self {
            Content::Notice { skipped, .. } => skipped,
            Content::Frame(FrameInfo { sequence: 0, .. }) => Gap::NONE,
            Content::Frame(FrameInfo { sequence, .. }) => {
                Gap { from: Sequence(sequence), to: Sequence(sequence + 1) }
            }
        }
    }
}

impl Segment {
    /// Its identity; `None` for replies, and for shared frames, which the log identifies.
    pub(super) fn content(&self) -> Option<Content> {
        match *self {
            Segment::Shared(_) | Segment::Reply(_) => None,
            Segment::Private { sequence, topic, .. } => Some(FrameInfo { topic, sequence }.into()),
            Segment::Notice { from, to, topic, .. } => {
                Some(Content::Notice { topic, skipped: Gap { from: Sequence(from), to: Sequence(to) } })
            }
        }
    }

    pub(super) fn len(&self) -> u32 {
        match *self {
            Segment::Shared(range) => range.len,
            Segment::Reply(len) | Segment::Private { len, .. } => len,
            Segment::Notice { len, .. } => len.into(),
        }
    }
}

const _: () = assert!(size_of::<Segment>() == 24, "limits.rs says what a full outbox holds");
const _: () = assert!(size_of::<Outbox>() == 40, "the docs of Outbox say how large it is");

/// Segments whose memory an empty outbox keeps. A larger queue is freed.
const SEGMENTS_KEPT: usize = 8;

/// The outbox's contents before the newest shared frames.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// At most [`OUTBOX_RANGES_MAX`]; beyond that, the session is a slow consumer.
    pub(super) segments: VecDeque<Segment>,
    /// The bytes of all segments except [`Segment::Shared`], in order.
    pub(super) private: Vec<u8>,
    /// Bytes at the front of `private` that have already been taken.
    pub(super) private_start: usize,
}

impl Backlog {
    /// Private bytes that have not been taken.
    fn private_bytes(&self) -> &[u8] {
        &self.private[self.private_start..]
    }

    /// Moves the next `len` private bytes to the end of `gather`.
    pub(super) fn take_private(&mut self, len: usize, gather: &mut Vec<u8>) {
        let end = self.private_start + len;
        gather.extend_from_slice(&self.private[self.private_start..end]);
        self.private_start = end;
    }

    /// Appends shared frames, to the last segment if they continue it.
    pub(super) fn append_range(&mut self, log: &EgressLog, range: Range) {
        match self.segments.back_mut() {
            Some(Segment::Shared(last)) if log.continues(*last, range) => last.len += range.len,
            _ => self.segments.push_back(Segment::Shared(range)),
        }
    }
}
/// Maximum length of an outbox, in segments, that debug builds check after each change.
const SEGMENTS_CHECKED_MAX: usize = 64;

/// Where the bytes of one SEND are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendSource {
    /// In the egress log.
    Log(Range),
    /// In the gather buffer.
    Gathered {
        /// Offset of the first byte.
        start: usize,
        /// Length in bytes.
        len: usize,
    },
}

/// The next SEND, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum NextSend {
    /// Send these bytes. The session is sending until the outcome is reported.
    Send(SendSource),
    /// Nothing is waiting.
    Idle,
    /// Waiting frames have been overwritten in the log: the session was too slow.
    Overwritten,
}

/// Bytes waiting to be sent to one session, in order: the segments of `backlog`, then `newest`. 40 bytes.
///
/// Invariant: `bytes` is the total length of `newest` and the segments, none of which is empty.
/// Invariant: the reply and private segments add up to the backlog's private bytes; `reply_bytes` of them belong to reply
/// segments.
/// Invariant: `cut_rest` is at most the length of the first segment.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Allocated when first needed, and freed with the last reply: most sessions need it only during their handshake.
    pub(super) backlog: Option<Box<Backlog>>,
    /// The shared frames after all segments; none if its length is 0. A session that keeps up has nothing else, and needs no
    /// allocation.
    pub(super) newest: Range,
    pub(super) bytes: usize,
    pub(super) reply_bytes: u32,
    /// Bytes at the front that end a partly sent frame.
    pub(super) cut_rest: u32,
}

impl Outbox {
    /// Bytes waiting.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of topics' frames waiting, shared or private. Replies have their own bound.
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        self.bytes - self.reply_bytes as usize
    }

    /// Bytes of replies waiting.
    pub fn reply_bytes(&self) -> usize {
        self.reply_bytes as usize
    }

    /// Segments waiting.
    #[inline]
    pub fn segments_len(&self) -> usize {
        self.segments().map_or(0, VecDeque::len) + usize::from(self.newest.len > 0)
    }

    /// Whether so many segments are waiting that the session must yield.
    #[inline]
    pub fn has_too_many_ranges(&self) -> bool {
        self.segments().is_some_and(|segments| segments.len() >= OUTBOX_RANGES_MAX)
    }

    #[inline]
    pub(super) fn segments(&self) -> Option<&VecDeque<Segment>> {
        self.backlog.as_deref().map(|backlog| &backlog.segments)
    }

    /// The first segment.
    #[inline]
    pub(super) fn front(&self) -> Option<Segment> {
        self.segments()?.front().copied()
    }

    /// The mutable contents before the newest shared frames.
    pub(super) fn backlog_mut(&mut self) -> &mut Backlog {
        self.backlog.get_or_insert_default()
    }

    /// Whether the next byte is in the middle of a frame, which must be completed before anything else is sent.
    pub fn is_mid_frame(&self) -> bool {
        self.cut_rest > 0
    }

    /// Whether the next byte begins a reply that starts with these bytes.
    pub fn next_is_reply(&self, start: &[u8]) -> bool {
        matches!(self.front(), Some(Segment::Reply(_)))
            && !self.is_mid_frame()
            && self.backlog.as_deref().is_some_and(|backlog| backlog.private_bytes().starts_with(start))
    }

    /// Bytes of heap memory.
    pub fn heap_bytes(&self) -> usize {
        self.backlog.as_deref().map_or(0, |backlog| {
            let segments = backlog.segments.capacity() * size_of::<Segment>();
            size_of::<Backlog>() + segments + backlog.private.capacity()
        })
    }

    /// Position in the log of the oldest waiting shared frame.
    pub fn oldest_shared(&self) -> Option<u64> {
        let first = self.segments().into_iter().flatten().find_map(|segment| match segment {
            Segment::Shared(range) => Some(range.start),
            Segment::Reply(_) | Segment::Private { .. } | Segment::Notice { .. } => None,
        });
        first.or((self.newest.len > 0).then_some(self.newest.start))
    }

    /// Queues shared frames. Takes at most 24 bytes, none if the range continues the last one.
    #[inline]
    pub fn push_range(&mut self, log: &EgressLog, range: Range) {
        self.bytes += range.len as usize;
        if self.newest.len == 0 {
            match self.backlog.as_deref_mut().and_then(|backlog| backlog.segments.back_mut()) {
                Some(Segment::Shared(last)) if log.continues(*last, range) => last.len += range.len,
                _ => self.newest = range,
            }
        } else if log.continues(self.newest, range) {
            self.newest.len += range.len;
        } else {
            let before = std::mem::replace(&mut self.newest, range);
            self.backlog_mut().segments.push_back(Segment::Shared(before));
        }
        self.invariants();
    }

    /// Turns the newest shared frames into a segment, so that the segments hold everything.
    pub(super) fn seal(&mut self) {
        let newest = std::mem::take(&mut self.newest);
        if newest.len > 0 {
            self.backlog_mut().segments.push_back(Segment::Shared(newest));
        }
    }

    /// Makes room for replies of this many bytes. Returns `false` if there is no memory.
    pub fn try_reserve(&mut self, bytes: usize) -> bool {
        let Backlog { segments, private, .. } = self.backlog_mut();
        private.try_reserve(bytes).is_ok() && segments.try_reserve(1).is_ok()
    }

    /// Queues replies, which are whole frames.
    pub fn push_reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let len = self.write_private(write);
        self.reply_bytes += len;
        let segments = &mut self.backlog_mut().segments;
        match segments.back_mut() {
            _ if len == 0 => {}
            Some(Segment::Reply(last)) => *last += len,
            _ => segments.push_back(Segment::Reply(len)),
        }
        self.invariants();
    }

    /// Queues one frame of a topic for this session only. Bounded by the history requested at once, and one SEND.
    pub fn push_private(&mut self, content: Content, write: impl FnOnce(&mut Vec<u8>)) {
        let len = self.write_private(write);
        if len > 0 {
            self.backlog_mut().segments.push_back(match content {
                Content::Frame(FrameInfo { topic, sequence }) => Segment::Private { sequence, topic, len },
                Content::Notice { topic, skipped: Gap { from, to } } => {
                    debug_assert!(
                        len <= u32::from(u16::MAX),
                        "a notice is little longer than a topic's name"
                    );
                    Segment::Notice { from: from.0, to: to.0, topic, len: len as u16 }
                }
            });
        }
        self.invariants();
    }

    fn write_private(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        self.seal();
        let private = &mut self.backlog_mut().private;
        let before = private.len();
        write(private);
        let len = private.len() - before;
        self.bytes += len;
        len as u32
    }

    /// Queues replies, which are whole frames, before the first waiting frame of a topic. Costs one step per reply before them,
    /// of which there are few, and a move of the private bytes.
    pub fn insert_before_frames(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.seal();
        let (cut_rest, mut before, mut at) = (self.cut_rest, 0, 0);
        let Backlog { segments, private, private_start } = self.backlog_mut();
        // A partly sent frame must be completed first.
        if cut_rest > 0 {
            match segments.front().copied() {
                Some(Segment::Shared(range)) => {
                    let rest = Range { start: range.start, len: cut_rest };
                    let after = Range { start: rest.end(), len: range.len - rest.len };
                    segments[0] = Segment::Shared(rest);
                    if after.len > 0 {
                        segments.insert(1, Segment::Shared(after));
                    }
                    at = 1;
                }
                Some(Segment::Reply(_)) => {}
                Some(private) => (before, at) = (private.len() as usize, 1),
                None => debug_assert!(false, "a frame that has been cut has a rest"),
            }
        }
        while let Some(&Segment::Reply(len)) = segments.get(at) {
            before += len as usize;
            at += 1;
        }
        match at.checked_sub(1).and_then(|last| segments.get_mut(last)) {
            Some(Segment::Reply(last)) => *last += bytes.len() as u32,
            _ => segments.insert(at, Segment::Reply(bytes.len() as u32)),
        }
        let start = *private_start + before;
        private.splice(start..start, bytes.iter().copied());
        self.bytes += bytes.len();
        self.reply_bytes += bytes.len() as u32;
        self.invariants();
    }

    /// Takes the next SEND: a long range directly from the log, otherwise as many segments as fit, copied to the end of `gather`,
    /// which must have room for [`SEND_BYTES_MAX`]. Cuts between frames if a boundary is within reach. `notices_pending`: notices
    /// must be queued before any frame that has not begun, so only what precedes them is sent.
    #[inline]
    pub fn take_send(
        &mut self,
        log: Option<&EgressLog>,
        format: WireFormat,
        notices_pending: bool,
        gather: &mut Vec<u8>,
        messages: &mut SharedMessages,
    ) -> NextSend {
        if format.framing.has_send_headers() {
            return self.take_batch(log, format, notices_pending, gather, messages);
        }
        // Most SENDs: the session keeps up, and its new frames since its last SEND are one range.
        let newest = self.newest;
        if self.segments().is_none_or(VecDeque::is_empty)
            && (1..=SEND_BYTES_MAX).contains(&(newest.len as usize))
            && !notices_pending
            && log.is_some_and(|log| !log.is_overwritten(newest.start))
        {
            self.newest.len = 0;
            self.bytes = 0;
            self.invariants();
            return NextSend::Send(SendSource::Log(newest));
        }
        self.take_segments(log, notices_pending, gather)
    }

    fn take_segments(
        &mut self,
        log: Option<&EgressLog>,
        notices_pending: bool,
        gather: &mut Vec<u8>,
    ) -> NextSend {
        self.seal();
        let start = gather.len();
        let mut left = SEND_BYTES_MAX;
        while left > 0
            && let Some(backlog) = self.backlog.as_deref_mut()
            && let Some(segment) = backlog.segments.front().copied()
        {
            match (segment, log) {
                (Segment::Shared(_) | Segment::Private { .. } | Segment::Notice { .. }, _)
                    if notices_pending && self.cut_rest == 0 =>
                {
                    break;
                }
                (Segment::Reply(_) | Segment::Private { .. } | Segment::Notice { .. }, _) => {
                    let len = segment.len();
                    let taken = (len as usize).min(left);
                    self.reply_bytes -= if let Segment::Reply(_) = segment { taken as u32 } else { 0 };
                    backlog.take_private(taken, gather);
                    // A reply segment does not say where its frames end, so it counts as one frame.
                    self.advance_front(Cut { len: taken as u32, frame_rest: len - taken as u32 });
                    left -= taken;
                }
                (Segment::Shared(_), None) => return NextSend::Overwritten,
                // Send the bytes gathered so far first: they may complete a partly sent frame.
                (Segment::Shared(range), Some(log)) if log.is_overwritten(range.start) => {
                    match gather.len() > start {
                        true => break,
                        false => return NextSend::Overwritten,
                    }
                }
                (Segment::Shared(range), Some(log)) => {
                    let alone = gather.len() == start
                        && (range.len as usize >= SEND_DIRECT_BYTES || backlog.segments.len() == 1);
                    let cut = match range.len as usize {
                        len if len <= left => Cut { len: range.len, frame_rest: 0 },
                        // Not worth a cut: send the gathered bytes first.
                        _ if gather.len() > start => break,
                        _ => log.cut(range, left),
                    };
                    let taken = Range { start: range.start, len: cut.len };
                    self.advance_front(cut);
                    if alone {
                        self.give_back();
                        self.invariants();
                        return NextSend::Send(SendSource::Log(taken));
                    }
                    gather.extend_from_slice(log.bytes(taken));
                    left -= taken.len as usize;
                }
            }
        }
        self.give_back();
        self.invariants();
        match gather.len() - start {
            0 => NextSend::Idle,
            len => NextSend::Send(SendSource::Gathered { start, len }),
        }
    }

    /// Removes bytes from the first segment.
    pub(super) fn advance_front(&mut self, cut: Cut) {
        let Cut { len, frame_rest } = cut;
        self.bytes -= len as usize;
        self.cut_rest = frame_rest;
        let segments = &mut self.backlog_mut().segments;
        let done = match segments.front_mut() {
            Some(Segment::Reply(left) | Segment::Private { len: left, .. }) => {
                *left -= len;
                *left == 0
            }
            Some(Segment::Notice { len: left, .. }) => {
                *left -= len as u16;
                *left == 0
            }
            Some(Segment::Shared(range)) => {
                *range = Range { start: range.start + u64::from(len), len: range.len - len };
                range.len == 0
            }
            None => {
                debug_assert!(false, "only a segment that is there is taken");
                false
            }
        };
        if done {
            segments.pop_front();
        }
    }

    /// Frees the memory of private bytes that have been taken, and of a queue that was long and is now empty.
    pub(super) fn give_back(&mut self) {
        let Some(backlog) = self.backlog.as_deref_mut() else { return };
        let had_private = backlog.private.capacity() > 0;
        // Otherwise, a peer that always leaves a few bytes unread would keep everything ever sent to it in memory.
        if backlog.private_start > REPLY_BYTES_MAX {
            backlog.private.drain(..backlog.private_start);
            backlog.private_start = 0;
        }
        if backlog.private_start == backlog.private.len() {
            backlog.private = Vec::new();
            backlog.private_start = 0;
        }
        // Most sessions get replies only during their handshake; 10,000 of them would keep 180 bytes each. A session whose topics
        // are not adjacent in the log has several segments per SEND, and keeps their memory.
        if backlog.segments.is_empty() && (had_private || backlog.segments.capacity() > SEGMENTS_KEPT) {
            self.backlog = None;
        }
    }

    /// Checks the outbox in debug builds, unless it is so long that tests would take too long.
    pub(super) fn invariants(&self) {
        if !cfg!(debug_assertions) || self.segments_len() >= SEGMENTS_CHECKED_MAX {
            return;
        }
        let (mut shared, mut replies, mut frames) = (self.newest.len as usize, 0, 0);
        for segment in self.segments().into_iter().flatten() {
            match segment {
                Segment::Shared(range) => shared += range.len as usize,
                Segment::Reply(len) => replies += *len as usize,
                Segment::Private { .. } | Segment::Notice { .. } => frames += segment.len() as usize,
            }
            assert!(segment.len() > 0, "a segment goes with its last byte");
        }
        assert_eq!(self.bytes, shared + replies + frames, "an outbox is the sum of its segments");
        let private = self.backlog.as_deref().map_or(0, |backlog| backlog.private_bytes().len());
        assert_eq!(private, replies + frames, "each private byte is in a segment");
        assert_eq!(self.reply_bytes(), replies, "reply_bytes counts the reply segments");
        let first = self.front().as_ref().map_or(0, Segment::len);
        assert!(self.cut_rest <= first, "a frame that was cut ends in the first segment");
    }
}
