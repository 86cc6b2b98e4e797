//! The egress log: one shard's messages in one wire format, encoded once and shared by all its sessions of that format.

use std::collections::VecDeque;

/// A circular buffer of whole frames and their index, addressed by positions that only grow.
///
/// ```text
///              oldest readable                head
///  positions      |------- capacity ----------|
///  memory      position % capacity; a frame never wraps: bytes left over before the end are skipped
///  frames         [start, len, topic, sequence] of each readable frame
/// ```
/// A session with a range before the oldest readable position was too slow: its frames have been overwritten, and the loss must
/// be announced to it.
///
/// Memory: `capacity` bytes, touched as they are first used, and 24 bytes per readable frame, of which there are at most
/// `capacity / FRAME_BYTES_EXPECTED`. While all sessions keep up, the log keeps restarting at the beginning of the buffer, so the
/// shard works in a few warm pages.
///
/// Invariant: `frames` is sorted, does not overlap, and contains exactly the readable frames.
#[derive(Debug)]
pub struct EgressLog {
    buffer: Box<[u8]>,
    head: u64,
    /// Position of the last frame at the beginning of the buffer.
    lap_start: u64,
    frames: VecDeque<Frame>,
    frames_max: usize,
    /// The head at the last sweep over waiting sessions.
    swept: u64,
    /// Frames appended since the last sweep.
    swept_frames: usize,
    /// Positions of the head over the last seconds, about one per [`TIMES_INTERVAL_NS`].
    times: VecDeque<HeadAt>,
}

/// Consecutive whole frames in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Position of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u32,
}

impl Range {
    /// Position after the last byte.
    #[inline]
    pub fn end(self) -> u64 {
        self.start + u64::from(self.len)
    }
}

/// Identity of a frame, sufficient to announce a loss if the frame is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// The topic's id.
    pub topic: u32,
    /// A tick's sequence; 0 for a topic announcement.
    pub sequence: u64,
}

/// The position of a log's head at a time.
#[derive(Clone, Copy, Debug)]
struct HeadAt {
    time_ns: u64,
    head: u64,
}

/// Where to cut a range that is too long for one SEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes before the cut.
    pub len: u32,
    /// Bytes after the cut that belong to a frame begun before it; 0: the cut is between two frames.
    pub frame_rest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    start: u64,
    sequence: u64,
    len: u32,
    topic: u32,
}

/// Flag of a frame in `len` that must not be compressed together with others: see [`EgressLog::keep_last_plain`].
const PLAIN: u32 = 1 << 31;
/// Log bytes per index entry. Shorter frames fill the index first, and are overwritten earlier.
const FRAME_BYTES_EXPECTED: usize = 64;
/// Resolution of the known age of frames.
const TIMES_INTERVAL_NS: u64 = 20_000_000;
/// Entries kept in `times`: about ten seconds.
const TIMES_MAX: usize = 512;
/// A sweep over waiting sessions is due each time this fraction of the log has been appended.
const SWEEP_PARTS: u64 = 8;

impl EgressLog {
    /// Creates a log of `capacity` bytes, at least the longest frame. One allocation; the index grows with use.
    pub fn new(capacity: usize) -> EgressLog {
        debug_assert!(capacity < PLAIN as usize, "a length and a flag share a word");
        EgressLog {
            buffer: vec![0; capacity].into_boxed_slice(),
            head: 0,
            lap_start: 0,
            frames: VecDeque::new(),
            frames_max: (capacity / FRAME_BYTES_EXPECTED).max(16),
            swept: 0,
            swept_frames: 0,
            times: VecDeque::new(),
        }
    }

    /// Records the current position of the head, for [`EgressLog::head_at`].
    pub fn note_time(&mut self, now_ns: u64) {
        if self.times.back().is_some_and(|last| now_ns < last.time_ns + TIMES_INTERVAL_NS) {
            return;
        }
        if self.times.len() >= TIMES_MAX {
            self.times.pop_front();
        }
        self.times.push_back(HeadAt { time_ns: now_ns, head: self.head });
    }

    /// A position such that all bytes before it were appended before `time_ns`; 0 if that is too long ago.
    pub fn head_at(&self, time_ns: u64) -> u64 {
        let after = self.times.partition_point(|noted| noted.time_ns <= time_ns);
        after.checked_sub(1).map_or(0, |at| self.times[at].head)
    }

    /// Whether the frame at a position was appended at least `ns` before the last recorded time.
    pub fn has_waited(&self, position: u64, ns: u64) -> bool {
        self.times.back().is_some_and(|last| position < self.head_at(last.time_ns.saturating_sub(ns)))
    }

    /// Appends one frame. Returns `None` if it is longer than the log.
    pub fn append(&mut self, info: FrameInfo, frame: &[u8]) -> Option<Range> {
        self.append_parts(info, frame, &[])
    }

    /// Appends one frame from a header and a body. Returns `None` if it is longer than the log.
    pub fn append_parts(&mut self, info: FrameInfo, header: &[u8], body: &[u8]) -> Option<Range> {
        let capacity = self.buffer.len();
        let len = header.len() + body.len();
        if len > capacity {
            return None;
        }
        let mut offset = (self.head % capacity as u64) as usize;
        if offset + len > capacity {
            self.head += (capacity - offset) as u64;
            offset = 0;
        }
        if offset == 0 {
            self.lap_start = self.head;
        }
        self.buffer[offset..offset + header.len()].copy_from_slice(header);
        self.buffer[offset + header.len()..offset + len].copy_from_slice(body);
        let range = Range { start: self.head, len: len as u32 };
        self.head = range.end();
        let FrameInfo { topic, sequence, .. } = info;
        self.frames.push_back(Frame { start: range.start, sequence, len: range.len, topic });
        self.swept_frames += 1;
        let overwritten = self.head.saturating_sub(capacity as u64);
        while self.frames.len() > self.frames_max
            || self.frames.front().is_some_and(|first| first.start < overwritten)
        {
            self.frames.pop_front();
        }
        Some(range)
    }

    /// Marks the last frame as one that must not be compressed together with others.
    pub fn keep_last_plain(&mut self) {
        if let Some(last) = self.frames.back_mut() {
            last.len |= PLAIN;
        }
    }

    /// Whether no frame of a range must be kept plain. O(frames of the range).
    pub fn is_compressible(&self, range: Range) -> bool {
        let first = self.find(range.start).unwrap_or(0);
        let mut frames = self.frames.range(first..).take_while(|frame| frame.start < range.end());
        frames.all(|frame| frame.len & PLAIN == 0)
    }

    /// Position after the last frame.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Position of the oldest readable frame.
    fn oldest(&self) -> u64 {
        self.frames.front().map_or(self.head, |first| first.start)
    }

    /// Whether the frame at `position` has been overwritten.
    #[inline]
    pub fn is_overwritten(&self, position: u64) -> bool {
        position < self.oldest()
    }

    /// Whether `position` is in the newer half of the log, so that it cannot be overwritten before the next sweep.
    pub fn is_fresh(&self, position: u64) -> bool {
        self.is_newer(position, 2)
    }

    /// Whether the frame at `position` may be queued to another session. Only frames in the newest quarter may: otherwise an old
    /// frame could be queued after fresh ones, where a sweep, which checks only the first queued frame, would miss it.
    pub fn is_shareable(&self, position: u64) -> bool {
        self.is_newer(position, 4)
    }

    fn is_newer(&self, position: u64, part: usize) -> bool {
        let newer = self.frames.len().saturating_sub(self.frames_max / part);
        position <= self.head
            && self.head - position <= (self.buffer.len() / part) as u64
            && self.frames.get(newer).is_some_and(|frame| position >= frame.start)
    }

    /// Whether so much has been appended since this last returned `true` that waiting sessions may hold frames that are no longer
    /// fresh. If so, the caller must sweep these sessions before half the log's capacity is appended.
    pub fn take_sweep(&mut self) -> bool {
        let due = self.head - self.swept > self.buffer.len() as u64 / SWEEP_PARTS
            || self.swept_frames > self.frames_max / SWEEP_PARTS as usize;
        if due {
            (self.swept, self.swept_frames) = (self.head, 0);
        }
        due
    }

    /// Whether `next` also follows `range` in memory, so that one SEND can carry both. Readable frames span at most one capacity,
    /// so `lap_start` is the only readable position at the beginning of the buffer that may follow another frame.
    #[inline]
    pub fn continues(&self, range: Range, next: Range) -> bool {
        range.end() == next.start && next.start != self.lap_start
    }

    /// The bytes of a range, which must not have been overwritten.
    #[inline]
    pub fn bytes(&self, range: Range) -> &[u8] {
        debug_assert!(!self.is_overwritten(range.start), "an overwritten range is never sent");
        let offset = (range.start % self.buffer.len() as u64) as usize;
        &self.buffer[offset..offset + range.len as usize]
    }

    /// Index of the frame that begins at or contains `position`.
    fn find(&self, position: u64) -> Option<usize> {
        let after = self.frames.partition_point(|frame| frame.start <= position);
        after.checked_sub(1)
    }

    /// The frame that begins at or contains a position, which must not have been overwritten. O(log frames).
    pub fn frame_at(&self, position: u64) -> Option<FrameInfo> {
        self.find(position).and_then(|at| self.frames.get(at)).map(|frame| frame.info())
    }

    /// The frames of a range that begins at a frame boundary, each with its range and identity. O(log frames) for the first.
    pub fn frames(&self, range: Range) -> impl Iterator<Item = (Range, FrameInfo)> {
        let first = self.frames.partition_point(|frame| frame.start < range.start);
        self.frames
            .range(first..)
            .take_while(move |frame| frame.start < range.end())
            .map(|frame| (frame.range(), frame.info()))
    }

    /// Where to cut a range longer than `bytes_max`: between two frames if a boundary is within reach.
    pub fn cut(&self, range: Range, bytes_max: usize) -> Cut {
        let limit = range.start + bytes_max as u64;
        let len = bytes_max as u32;
        match self.find(limit).and_then(|at| self.frames.get(at)) {
            Some(frame) if frame.start > range.start => {
                Cut { len: (frame.start - range.start) as u32, frame_rest: 0 }
            }
            Some(frame) => Cut { len, frame_rest: (frame.range().end().min(range.end()) - limit) as u32 },
            None => {
                debug_assert!(false, "a range to cut has not been overwritten, so it is in the index");
                Cut { len, frame_rest: range.len - len }
            }
        }
    }

    /// The oldest readable frame.
    pub fn first(&self) -> Option<(Range, FrameInfo)> {
        self.nth(0)
    }

    /// The `index`-th readable frame, from the oldest.
    pub fn nth(&self, index: usize) -> Option<(Range, FrameInfo)> {
        self.frames.get(index).map(|frame| (frame.range(), frame.info()))
    }

    /// Index of the first readable frame whose sequence is at least `sequence`, in a log of one topic.
    pub fn first_of_sequence(&self, sequence: u64) -> usize {
        self.frames.partition_point(|frame| frame.sequence < sequence)
    }

    /// Number of readable frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are no readable frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Drops the oldest readable frame.
    pub fn forget_first(&mut self) {
        self.frames.pop_front();
    }

    /// Whether appending a frame of `len` bytes would overwrite the oldest.
    pub fn would_overwrite(&self, len: usize) -> bool {
        let capacity = self.buffer.len() as u64;
        let offset = self.head % capacity;
        let start = if offset + len as u64 > capacity { self.head + capacity - offset } else { self.head };
        self.frames.len() >= self.frames_max || self.oldest() < (start + len as u64).saturating_sub(capacity)
    }

    /// Restarts at the beginning of the buffer. Call it only while no session has a range queued.
    pub fn rewind(&mut self) {
        let capacity = self.buffer.len() as u64;
        self.head = self.head.next_multiple_of(capacity);
        self.frames.clear();
        (self.swept, self.swept_frames) = (self.head, 0);
    }

    /// Bytes allocated for frames.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes allocated for frames and their index.
    pub fn memory_bytes(&self) -> usize {
        self.buffer.len() + self.frames.capacity() * size_of::<Frame>()
    }
}

impl Frame {
    fn info(&self) -> FrameInfo {
        FrameInfo { topic: self.topic, sequence: self.sequence }
    }

    fn range(&self) -> Range {
        Range { start: self.start, len: self.len & !PLAIN }
    }
}

const _: () = assert!(size_of::<Frame>() == 24, "the docs of EgressLog say what the index takes");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SEND_BYTES_MAX;

    const INFO: FrameInfo = FrameInfo { topic: 5, sequence: 0 };

    #[test]
    fn ranges_read_back_until_they_are_overwritten() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut log = EgressLog::new(1000);
        let mut model: VecDeque<(Range, Vec<u8>)> = VecDeque::new();
        for round in 0..20_000u32 {
            let frame = vec![round as u8; random.usize(1..120)];
            let range = log.append(INFO, &frame).unwrap();
            if let Some((last, _)) = model.back() {
                assert!(range.start >= last.end());
            }
            model.push_back((range, frame));
            if random.u32(..500) == 0 {
                log.rewind();
                model.clear();
            }
            while model.front().is_some_and(|(range, _)| log.is_overwritten(range.start)) {
                model.pop_front();
            }
            assert!(log.is_empty() || model.back().is_some(), "the newest frame is never overwritten");
            for (range, frame) in &model {
                assert_eq!(log.bytes(*range), frame);
            }
        }
    }

    #[test]
    fn a_frame_longer_than_the_log_is_refused() {
        assert_eq!(EgressLog::new(10).append(INFO, &[0; 11]), None);
    }

    #[test]
    fn ranges_do_not_continue_over_the_end_of_the_buffer() {
        let mut log = EgressLog::new(64);
        let first = log.append(INFO, &[1; 64]).unwrap();
        let second = log.append(INFO, &[2; 10]).unwrap();
        let third = log.append(INFO, &[3; 10]).unwrap();
        assert!(!log.continues(first, second) && log.continues(second, third));
    }

    #[test]
    fn long_ranges_are_cut_between_frames() {
        let mut log = EgressLog::new(1 << 20);
        let mut whole = log.append(INFO, &[0; 1000]).unwrap();
        let mut starts = vec![whole.start];
        for _ in 0..200 {
            let next = log.append(INFO, &[0; 1000]).unwrap();
            starts.push(next.start);
            whole.len += next.len;
        }
        let mut sent = 0;
        while whole.len as usize > SEND_BYTES_MAX {
            let Cut { len: cut, frame_rest } = log.cut(whole, SEND_BYTES_MAX);
            assert!(
                frame_rest == 0 && cut as usize <= SEND_BYTES_MAX && cut as usize > SEND_BYTES_MAX - 1000
            );
            whole = Range { start: whole.start + u64::from(cut), len: whole.len - cut };
            assert!(starts.contains(&whole.start));
            sent += 1;
        }
        assert!(sent >= 3);
        let mut log = EgressLog::new(1 << 20);
        let huge = log.append(INFO, &[0; 200_000]).unwrap();
        log.append(INFO, &[0; 10]).unwrap();
        let both = Range { start: huge.start, len: huge.len + 10 };
        let len = SEND_BYTES_MAX as u32;
        assert_eq!(log.cut(both, SEND_BYTES_MAX), Cut { len, frame_rest: 200_000 - len });
        let rest = Range { start: SEND_BYTES_MAX as u64, len: both.len - len };
        assert_eq!(log.cut(rest, SEND_BYTES_MAX), Cut { len, frame_rest: 200_000 - 2 * len });
    }

    #[test]
    fn the_index_names_the_frames_of_a_range_and_stays_within_its_bound() {
        let mut log = EgressLog::new(1 << 12);
        let mut ranges = Vec::new();
        for sequence in 1..=500u64 {
            ranges.push(log.append(FrameInfo { topic: 7, sequence }, &[0; 5]).unwrap());
            assert!(log.len() <= (1 << 12) / FRAME_BYTES_EXPECTED);
        }
        assert!(log.is_overwritten(ranges[400].start) && !log.is_overwritten(ranges[499].start));
        assert!(log.is_fresh(ranges[499].start) && !log.is_fresh(ranges[460].start));
        let last = Range { start: ranges[490].start, len: 50 };
        let sequences: Vec<u64> = log.frames(last).map(|(_, info)| info.sequence).collect();
        assert_eq!(sequences, (491..=500).collect::<Vec<_>>());
        log.rewind();
        assert!(log.is_overwritten(ranges[499].start) && !log.is_fresh(ranges[499].start));
    }

    #[test]
    fn a_range_with_a_frame_that_is_kept_plain_is_not_compressible() {
        let mut log = EgressLog::new(1 << 12);
        let ranges = [false, true, false].map(|is_plain| {
            let range = log.append(INFO, &[0; 100]).unwrap();
            if is_plain {
                log.keep_last_plain();
            }
            range
        });
        let [first, second, third] = ranges;
        assert_eq!(ranges.map(|range| log.is_compressible(range)), [true, false, true]);
        assert!(!log.is_compressible(Range { start: first.start, len: 300 }));
        assert!(!log.is_compressible(Range { start: second.start, len: 200 }));
        let lengths: Vec<u32> =
            log.frames(Range { start: first.start, len: 300 }).map(|(range, _)| range.len).collect();
        assert_eq!((lengths, third.len), (vec![100; 3], 100));
    }

    #[test]
    fn what_an_append_would_overwrite_is_known_before() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut log = EgressLog::new(2000);
        for _ in 0..5_000 {
            let len = random.usize(1..300);
            let (would, first) = (log.would_overwrite(len), log.first());
            log.append(INFO, &vec![0; len]).unwrap();
            assert_eq!(would, first.is_some() && log.first() != first);
        }
    }
}
