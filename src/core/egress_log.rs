//! The egress log: one shard's messages in one wire format, each encoded once, shared by every session that takes it.

use std::collections::VecDeque;

/// A circular buffer of whole frames, addressed by ever-growing positions, with an index of what they are.
///
/// ```text
///              oldest readable                head
///  positions      |------- capacity ----------|
///  memory      position % capacity; a frame never wraps, the rest before the end is skipped
///  frames         [start, len, topic, sequence] of each readable frame
/// ```
///
/// A session whose ranges begin before the oldest readable position has been lapped: what it had waiting is gone, and
/// it must be told.
///
/// Memory: `capacity` bytes, touched as they are first used, and 24 bytes for each readable frame, of which there are
/// at most `capacity / FRAME_BYTES_EXPECTED`; while all sessions keep up the log starts over at its beginning, so a
/// shard that is not behind works in a few warm pages.
///
/// Invariant: `frames` is sorted, without overlap, and holds exactly the readable frames.
#[derive(Debug)]
pub struct EgressLog {
    buffer: Box<[u8]>,
    head: u64,
    frames: VecDeque<Frame>,
    frames_max: usize,
    /// Where the head was when the sessions that wait were last looked over.
    swept: u64,
    /// Frames appended since.
    swept_frames: usize,
    /// When the head was where, about every [`TIMES_INTERVAL_NS`].
    times: VecDeque<(u64, u64)>,
}

/// Consecutive whole frames in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Position of the first byte.
    pub start: u64,
    /// Bytes.
    pub len: u32,
}

impl Range {
    /// Position after the last byte.
    pub fn end(self) -> u64 {
        self.start + u64::from(self.len)
    }
}

/// What a frame that waits is: enough to tell a session which ticks it does not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The topic's number.
    pub topic: u32,
    /// The tick's sequence; of a notice that ticks do not come, the one after the last of them; 0 for an announcement.
    pub sequence: u64,
    /// Of such a notice, how many; else 0, as in a log: what is not for all is not in it.
    pub skipped: u32,
}

impl Mark {
    /// The first sequence it accounts for.
    pub fn from(self) -> u64 {
        self.sequence.saturating_sub(self.skipped.into())
    }

    /// The one after the last.
    pub fn to(self) -> u64 {
        self.sequence + u64::from(self.skipped == 0)
    }
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    start: u64,
    sequence: u64,
    len: u32,
    topic: u32,
}

/// The index holds a frame for so many bytes of the log: shorter frames have it full first, and lap it earlier.
const FRAME_BYTES_EXPECTED: usize = 64;
/// How finely the age of frames is known.
const TIMES_INTERVAL_NS: u64 = 20_000_000;
/// Notes kept: about ten seconds.
const TIMES_MAX: usize = 512;
/// Appended since the last look over the sessions that wait before another is due, as a part of the log.
const SWEEP_PARTS: u64 = 8;

impl EgressLog {
    /// A log of `capacity` bytes, at least the longest frame. One allocation, and the index as it grows.
    pub fn new(capacity: usize) -> EgressLog {
        EgressLog {
            buffer: vec![0; capacity].into_boxed_slice(),
            head: 0,
            frames: VecDeque::new(),
            frames_max: (capacity / FRAME_BYTES_EXPECTED).max(16),
            swept: 0,
            swept_frames: 0,
            times: VecDeque::new(),
        }
    }

    /// Notes where the head is now. The last `TIMES_MAX` notes are kept.
    pub fn note_time(&mut self, now_ns: u64) {
        if self.times.back().is_some_and(|&(noted_ns, _)| now_ns < noted_ns + TIMES_INTERVAL_NS) {
            return;
        }
        if self.times.len() >= TIMES_MAX {
            self.times.pop_front();
        }
        self.times.push_back((now_ns, self.head));
    }

    /// Everything before this position was appended before `time_ns`, as far as it was noted.
    pub fn head_at(&self, time_ns: u64) -> u64 {
        let after = self.times.partition_point(|&(noted_ns, _)| noted_ns <= time_ns);
        after.checked_sub(1).map_or(0, |at| self.times[at].1)
    }

    /// Appends one frame. `None` when it is longer than the log.
    pub fn append(&mut self, mark: Mark, frame: &[u8]) -> Option<Range> {
        self.append_parts(mark, frame, &[])
    }

    /// Appends one frame given in two parts, a header and what follows it.
    pub fn append_parts(&mut self, mark: Mark, header: &[u8], body: &[u8]) -> Option<Range> {
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
        self.buffer[offset..offset + header.len()].copy_from_slice(header);
        self.buffer[offset + header.len()..offset + len].copy_from_slice(body);
        let range = Range { start: self.head, len: len as u32 };
        self.head = range.end();
        let Mark { topic, sequence, .. } = mark;
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

    /// Where the next frame will begin, or the end of the buffer before it.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Where the oldest readable frame begins.
    fn oldest(&self) -> u64 {
        self.frames.front().map_or(self.head, |first| first.start)
    }

    /// Whether what stood at `position` has been overwritten.
    pub fn is_lapped(&self, position: u64) -> bool {
        position < self.oldest()
    }

    /// Whether what stands at `position` is in the newer half: it may wait until the next look over the sessions.
    pub fn is_fresh(&self, position: u64) -> bool {
        self.is_newer(position, 2)
    }

    /// Whether what stands at `position` may be queued to another session: the newest quarter, so that behind frames
    /// that are fresh none waits that is about to be overwritten.
    pub fn is_shareable(&self, position: u64) -> bool {
        self.is_newer(position, 4)
    }

    fn is_newer(&self, position: u64, part: usize) -> bool {
        let newer = self.frames.len().saturating_sub(self.frames_max / part);
        position <= self.head
            && self.head - position <= (self.buffer.len() / part) as u64
            && self.frames.get(newer).is_some_and(|frame| position >= frame.start)
    }

    /// Whether so much was appended since this last said yes that sessions that wait may hold what is no longer fresh.
    /// They are then to be looked over before more than half the log follows.
    pub fn take_sweep(&mut self) -> bool {
        let due = self.head - self.swept > self.buffer.len() as u64 / SWEEP_PARTS
            || self.swept_frames > self.frames_max / SWEEP_PARTS as usize;
        if due {
            (self.swept, self.swept_frames) = (self.head, 0);
        }
        due
    }

    /// Whether `next` follows `range` in memory too, so that both can leave as one.
    pub fn continues(&self, range: Range, next: Range) -> bool {
        range.end() == next.start && !next.start.is_multiple_of(self.buffer.len() as u64)
    }

    /// The bytes of a range that is not lapped.
    #[inline]
    pub fn bytes(&self, range: Range) -> &[u8] {
        debug_assert!(!self.is_lapped(range.start), "a lapped range is never sent");
        let offset = (range.start % self.buffer.len() as u64) as usize;
        &self.buffer[offset..offset + range.len as usize]
    }

    /// Where the frame that begins at or covers `position` stands in the index.
    fn find(&self, position: u64) -> Option<usize> {
        let after = self.frames.partition_point(|frame| frame.start <= position);
        after.checked_sub(1)
    }

    /// The frames of a range that begins with one: what each is and where. O(log frames) for the first.
    pub fn frames(&self, range: Range) -> impl Iterator<Item = (Range, Mark)> {
        let first = self.frames.partition_point(|frame| frame.start < range.start);
        self.frames
            .range(first..)
            .take_while(move |frame| frame.start < range.end())
            .map(|frame| (frame.range(), frame.mark()))
    }

    /// Where to cut a range that is too long for one SEND of `bytes_max`, and how many bytes of a frame that was begun
    /// are then left: 0 for a cut between two.
    pub fn cut(&self, range: Range, bytes_max: usize) -> (u32, u32) {
        let limit = range.start + bytes_max as u64;
        match self.find(limit).and_then(|at| self.frames.get(at)) {
            Some(frame) if frame.start > range.start => ((frame.start - range.start) as u32, 0),
            Some(frame) => (bytes_max as u32, (frame.range().end().min(range.end()) - limit) as u32),
            None => (bytes_max as u32, range.len - bytes_max as u32),
        }
    }

    /// The oldest readable frame.
    pub fn first(&self) -> Option<(Range, Mark)> {
        self.nth(0)
    }

    /// The readable frame of this place, from the oldest.
    pub fn nth(&self, index: usize) -> Option<(Range, Mark)> {
        self.frames.get(index).map(|frame| (frame.range(), frame.mark()))
    }

    /// Readable frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing is readable.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Forgets the oldest readable frame.
    pub fn forget_first(&mut self) {
        self.frames.pop_front();
    }

    /// Whether another frame of `len` bytes would lap the oldest.
    pub fn would_lap(&self, len: usize) -> bool {
        let capacity = self.buffer.len() as u64;
        let offset = self.head % capacity;
        let start = if offset + len as u64 > capacity { self.head + capacity - offset } else { self.head };
        self.frames.len() >= self.frames_max || self.oldest() < (start + len as u64).saturating_sub(capacity)
    }

    /// Starts over at the beginning of the buffer, when nothing in it is waited for.
    pub fn rewind(&mut self) {
        let capacity = self.buffer.len() as u64;
        self.head = self.head.next_multiple_of(capacity);
        self.frames.clear();
        (self.swept, self.swept_frames) = (self.head, 0);
    }

    /// Bytes it holds for frames, used or not.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes it holds in all.
    pub fn memory_bytes(&self) -> usize {
        self.buffer.len() + self.frames.capacity() * size_of::<Frame>()
    }
}

impl Frame {
    fn mark(&self) -> Mark {
        Mark { topic: self.topic, sequence: self.sequence, skipped: 0 }
    }

    fn range(&self) -> Range {
        Range { start: self.start, len: self.len }
    }
}

const _: () = assert!(size_of::<Frame>() == 24, "the docs of EgressLog say what the index takes");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SEND_BYTES_MAX;

    const MARK: Mark = Mark { topic: 5, sequence: 0, skipped: 0 };

    #[test]
    fn ranges_read_back_until_they_are_lapped() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut log = EgressLog::new(1000);
        let mut model: VecDeque<(Range, Vec<u8>)> = VecDeque::new();
        for round in 0..20_000u32 {
            let frame = vec![round as u8; random.usize(1..120)];
            let range = log.append(MARK, &frame).unwrap();
            if let Some((last, _)) = model.back() {
                assert!(range.start >= last.end());
            }
            model.push_back((range, frame));
            if random.u32(..500) == 0 {
                log.rewind();
                model.clear();
            }
            while model.front().is_some_and(|(range, _)| log.is_lapped(range.start)) {
                model.pop_front();
            }
            assert!(log.is_empty() || model.back().is_some(), "the newest frame is never lapped");
            for (range, frame) in &model {
                assert_eq!(log.bytes(*range), frame);
            }
        }
    }

    #[test]
    fn a_frame_longer_than_the_log_is_not_taken() {
        assert_eq!(EgressLog::new(10).append(MARK, &[0; 11]), None);
    }

    #[test]
    fn ranges_do_not_continue_over_the_end_of_the_buffer() {
        let mut log = EgressLog::new(64);
        let first = log.append(MARK, &[1; 64]).unwrap();
        let second = log.append(MARK, &[2; 10]).unwrap();
        let third = log.append(MARK, &[3; 10]).unwrap();
        assert!(!log.continues(first, second) && log.continues(second, third));
    }

    #[test]
    fn long_ranges_are_cut_between_frames() {
        let mut log = EgressLog::new(1 << 20);
        let mut whole = log.append(MARK, &[0; 1000]).unwrap();
        let mut starts = vec![whole.start];
        for _ in 0..200 {
            let next = log.append(MARK, &[0; 1000]).unwrap();
            starts.push(next.start);
            whole.len += next.len;
        }
        let mut sent = 0;
        while whole.len as usize > SEND_BYTES_MAX {
            let (cut, rest) = log.cut(whole, SEND_BYTES_MAX);
            assert!(rest == 0 && cut as usize <= SEND_BYTES_MAX && cut as usize > SEND_BYTES_MAX - 1000);
            whole = Range { start: whole.start + u64::from(cut), len: whole.len - cut };
            assert!(starts.contains(&whole.start));
            sent += 1;
        }
        assert!(sent >= 3);
        let mut log = EgressLog::new(1 << 20);
        let huge = log.append(MARK, &[0; 200_000]).unwrap();
        log.append(MARK, &[0; 10]).unwrap();
        let both = Range { start: huge.start, len: huge.len + 10 };
        assert_eq!(log.cut(both, SEND_BYTES_MAX), (SEND_BYTES_MAX as u32, 200_000 - SEND_BYTES_MAX as u32));
        let rest = Range { start: SEND_BYTES_MAX as u64, len: both.len - SEND_BYTES_MAX as u32 };
        assert_eq!(
            log.cut(rest, SEND_BYTES_MAX),
            (SEND_BYTES_MAX as u32, 200_000 - 2 * SEND_BYTES_MAX as u32)
        );
    }

    #[test]
    fn the_index_tells_what_stands_in_a_range_and_stays_within_its_bound() {
        let mut log = EgressLog::new(1 << 12);
        let mut ranges = Vec::new();
        for sequence in 1..=500u64 {
            ranges.push(log.append(Mark { topic: 7, sequence, skipped: 0 }, &[0; 5]).unwrap());
            assert!(log.len() <= (1 << 12) / FRAME_BYTES_EXPECTED);
        }
        assert!(log.is_lapped(ranges[400].start) && !log.is_lapped(ranges[499].start));
        assert!(log.is_fresh(ranges[499].start) && !log.is_fresh(ranges[460].start));
        let last = Range { start: ranges[490].start, len: 50 };
        let marks: Vec<u64> = log.frames(last).map(|(_, mark)| mark.sequence).collect();
        assert_eq!(marks, (491..=500).collect::<Vec<_>>());
        log.rewind();
        assert!(log.is_lapped(ranges[499].start) && !log.is_fresh(ranges[499].start));
    }

    #[test]
    fn what_would_lap_is_known_before() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut log = EgressLog::new(2000);
        for _ in 0..5_000 {
            let len = random.usize(1..300);
            let (would, first) = (log.would_lap(len), log.first());
            log.append(MARK, &vec![0; len]).unwrap();
            assert_eq!(would, first.is_some() && log.first() != first);
        }
    }
}
