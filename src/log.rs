//! The egress log: one shard's frames in one encoding, each encoded once, shared by every session that takes it.

use std::collections::VecDeque;

use crate::limits::SEND_BYTES_MAX;

/// A circular buffer of whole frames, addressed by ever-growing positions.
///
/// ```text
///              oldest readable                head
///  positions      |------- capacity ----------|
///  memory      position % capacity; a frame never wraps, the rest before the end is skipped
/// ```
///
/// A session behind `head - capacity` has been lapped: what it had waiting is gone, and it must be told.
///
/// Memory: `capacity` bytes, touched as they are first used; while all sessions keep up the log starts over at its
/// beginning, so a shard that is not behind works in a few warm pages.
///
/// Invariant: `boundaries` is sorted, within the readable positions, and each is the start of a frame.
#[derive(Debug)]
pub struct EgressLog {
    buffer: Box<[u8]>,
    head: u64,
    /// Starts of frames, about every [`BOUNDARY_BYTES`]: where a long range may be cut.
    boundaries: VecDeque<u64>,
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

/// Half of the longest SEND, so that a cut at a boundary leaves at least half of it.
const BOUNDARY_BYTES: u64 = SEND_BYTES_MAX as u64 / 2;

impl EgressLog {
    /// A log of `capacity` bytes, at least the longest frame. The one allocation.
    pub fn new(capacity: usize) -> EgressLog {
        EgressLog { buffer: vec![0; capacity].into_boxed_slice(), head: 0, boundaries: VecDeque::new() }
    }

    /// Appends one frame. `None` when it is longer than the log.
    pub fn append(&mut self, frame: &[u8]) -> Option<Range> {
        self.append_parts(frame, &[])
    }

    /// Appends one frame given in two parts, a header and what follows it.
    pub fn append_parts(&mut self, header: &[u8], body: &[u8]) -> Option<Range> {
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
        if self.boundaries.back().is_none_or(|&last| range.start >= last + BOUNDARY_BYTES) {
            self.boundaries.push_back(range.start);
            while self.boundaries.front().is_some_and(|&first| self.is_lapped(first)) {
                self.boundaries.pop_front();
            }
        }
        Some(range)
    }

    /// Whether what stood at `position` has been overwritten.
    pub fn is_lapped(&self, position: u64) -> bool {
        position + (self.buffer.len() as u64) < self.head
    }

    /// Whether what stands at `position` may be queued to another session: the newer half, so that it is not
    /// overwritten while it waits its turn.
    pub fn is_fresh(&self, position: u64) -> bool {
        self.head - position <= self.buffer.len() as u64 / 2
    }

    /// Whether `next` follows `range` in memory too, so that both can leave as one.
    pub fn continues(&self, range: Range, next: Range) -> bool {
        range.end() == next.start && !next.start.is_multiple_of(self.buffer.len() as u64)
    }

    /// The bytes of a range that is not lapped.
    pub fn bytes(&self, range: Range) -> &[u8] {
        debug_assert!(!self.is_lapped(range.start), "a lapped range is never sent");
        let offset = (range.start % self.buffer.len() as u64) as usize;
        &self.buffer[offset..offset + range.len as usize]
    }

    /// Where to cut a range that is too long for one SEND of `bytes_max`, and whether that is between two frames.
    pub fn cut(&self, range: Range, bytes_max: usize) -> (u32, bool) {
        let limit = range.start + bytes_max as u64;
        let after = self.boundaries.partition_point(|&boundary| boundary <= limit);
        match after.checked_sub(1).and_then(|at| self.boundaries.get(at)) {
            Some(&boundary) if boundary > range.start => ((boundary - range.start) as u32, true),
            _ => (bytes_max as u32, false),
        }
    }

    /// Starts over at the beginning of the buffer, when nothing in it is waited for.
    pub fn rewind(&mut self) {
        let capacity = self.buffer.len() as u64;
        self.head = self.head.next_multiple_of(capacity);
        self.boundaries.clear();
    }

    /// Bytes it holds, used or not.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_back_until_they_are_lapped() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut log = EgressLog::new(1000);
        let mut model: VecDeque<(Range, Vec<u8>)> = VecDeque::new();
        for round in 0..20_000u32 {
            let frame = vec![round as u8; random.usize(1..120)];
            let range = log.append(&frame).unwrap();
            if let Some((last, _)) = model.back() {
                assert!(range.start >= last.end());
            }
            model.push_back((range, frame));
            if random.u32(..500) == 0 {
                log.rewind();
            }
            while model.front().is_some_and(|(range, _)| log.is_lapped(range.start)) {
                model.pop_front();
            }
            assert!(model.back().is_some(), "the newest frame is never lapped");
            for (range, frame) in &model {
                assert_eq!(log.bytes(*range), frame);
            }
        }
    }

    #[test]
    fn a_frame_longer_than_the_log_is_not_taken() {
        assert_eq!(EgressLog::new(10).append(&[0; 11]), None);
    }

    #[test]
    fn ranges_do_not_continue_over_the_end_of_the_buffer() {
        let mut log = EgressLog::new(64);
        let first = log.append(&[1; 64]).unwrap();
        let second = log.append(&[2; 10]).unwrap();
        let third = log.append(&[3; 10]).unwrap();
        assert!(!log.continues(first, second) && log.continues(second, third));
    }

    #[test]
    fn long_ranges_are_cut_between_frames() {
        let mut log = EgressLog::new(1 << 20);
        let mut whole = log.append(&[0; 1000]).unwrap();
        let mut starts = vec![whole.start];
        for _ in 0..200 {
            let next = log.append(&[0; 1000]).unwrap();
            starts.push(next.start);
            whole.len += next.len;
        }
        let mut sent = 0;
        while whole.len as usize > SEND_BYTES_MAX {
            let (cut, between_frames) = log.cut(whole, SEND_BYTES_MAX);
            assert!(between_frames && cut as usize <= SEND_BYTES_MAX && cut as usize >= SEND_BYTES_MAX / 3);
            whole = Range { start: whole.start + u64::from(cut), len: whole.len - cut };
            assert!(starts.contains(&whole.start));
            sent += 1;
        }
        assert!(sent >= 3);
        let mut log = EgressLog::new(1 << 20);
        let huge = log.append(&[0; 200_000]).unwrap();
        assert_eq!(log.cut(huge, SEND_BYTES_MAX), (SEND_BYTES_MAX as u32, false));
    }
}
