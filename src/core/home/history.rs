//! Recent ticks of one topic, kept at its home for clients that recover missed ticks.

use crate::{
    egress_log::{EgressLog, FrameInfo},
    limits::{HISTORY_AGE_MS_DEFAULT, HISTORY_BYTES_DEFAULT, HISTORY_TICKS_DEFAULT},
};
use std::collections::VecDeque;

/// Bounds of a topic's history; the tightest applies. With 0 ticks or 0 bytes, nothing is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryBounds {
    /// Number of ticks.
    pub ticks: usize,
    /// Bytes of frames.
    pub bytes: usize,
    /// Age, nanoseconds; 0: unlimited.
    pub age_ns: u64,
}

impl Default for HistoryBounds {
    fn default() -> Self {
        HistoryBounds {
            ticks: HISTORY_TICKS_DEFAULT,
            bytes: HISTORY_BYTES_DEFAULT,
            age_ns: HISTORY_AGE_MS_DEFAULT * 1_000_000,
        }
    }
}

/// Frames of consecutive ticks in a circular buffer that grows on demand up to its bound.
///
/// Memory: at most twice `bytes` plus 32 bytes per tick; the sum over all topics of a home is bounded by the budget passed to
/// [`History::push`].
///
/// Invariant: `times` has an entry for each frame in `log`. No tick of the topic is missing between two of them.
#[derive(Debug, Default)]
pub struct History {
    log: Option<EgressLog>,
    times: VecDeque<u64>,
    /// Time of the latest tick that is not kept, CLOCK_MONOTONIC nanoseconds; 0: all are kept.
    dropped_ns: u64,
}

/// The first tick since a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstSince {
    /// It has this sequence.
    Tick(u64),
    /// There is none.
    None,
}

/// Size of a topic's first buffer.
const FIRST_BYTES: usize = 4 << 10;

impl History {
    /// Creates the empty history of a topic whose ticks before a time are not known.
    pub fn after(now_ns: u64) -> History {
        History { dropped_ns: now_ns, ..History::default() }
    }

    /// Appends the next tick's frame and drops ticks beyond the bounds. `budget_bytes`: how much all histories together may
    /// still grow; once it is used up, the topic's own oldest ticks make room. Copies the frame once, and all kept frames when
    /// the buffer is resized. Returns whether the budget was too small for the buffer to grow.
    pub fn push(
        &mut self,
        sequence: u64,
        frame: &[u8],
        bounds: HistoryBounds,
        now_ns: u64,
        budget_bytes: &mut isize,
    ) -> bool {
        self.shrink_to_bounds(bounds, budget_bytes);
        if bounds.ticks == 0 || frame.len() > bounds.bytes {
            // No tick may be missing between two frames, so older ones cannot remain beside newer ones.
            self.clear();
            self.dropped_ns = now_ns;
            return false;
        }
        self.expire(bounds, now_ns);
        while self.times.len() >= bounds.ticks {
            self.forget_first();
        }
        let is_short = self.make_room(frame.len(), bounds, budget_bytes);
        let Some(log) = &mut self.log else {
            self.dropped_ns = now_ns;
            return is_short;
        };
        self.times.push_back(now_ns);
        if log.append(FrameInfo { topic: 0, sequence }, frame).is_none() {
            log.rewind();
        }
        self.drop_times();
        is_short
    }

    /// Doubles the buffer while the frame would overwrite another and the bounds allow it. Returns whether the budget prevented
    /// it.
    fn make_room(&mut self, len: usize, bounds: HistoryBounds, budget_bytes: &mut isize) -> bool {
        loop {
            let capacity = self.capacity();
            let fits = self.log.as_ref().is_some_and(|log| len <= capacity && !log.would_overwrite(len));
            // The buffer may be slightly longer than its bound, because a frame never wraps.
            let wanted = (2 * capacity).clamp(FIRST_BYTES.min(bounds.bytes), bounds.bytes.max(len));
            if fits || capacity >= wanted {
                return false;
            }
            if (wanted - capacity) as isize > *budget_bytes {
                return true;
            }
            self.resize(wanted, budget_bytes);
        }
    }

    /// Drops ticks beyond the bounds without a new tick. With a negative `budget_bytes` (after the bound was
    /// lowered), also returns half of the buffer. Returns the number of bytes copied.
    pub fn trim(&mut self, bounds: HistoryBounds, now_ns: u64, budget_bytes: &mut isize) -> usize {
        self.expire(bounds, now_ns);
        while self.times.len() > bounds.ticks {
            self.forget_first();
        }
        if self.is_empty() {
            self.resize(0, budget_bytes);
            return 0;
        }
        let before = self.capacity();
        self.shrink_to_bounds(bounds, budget_bytes);
        if *budget_bytes < 0 {
            // A buffer smaller than a first one is not worth keeping.
            let half = self.capacity() / 2;
            self.resize(if half < FIRST_BYTES { 0 } else { half }, budget_bytes);
        }
        if self.capacity() < before { self.capacity() } else { 0 }
    }

    /// Shrinks the buffer after its bound was lowered.
    fn shrink_to_bounds(&mut self, bounds: HistoryBounds, budget_bytes: &mut isize) {
        let bytes_max = if bounds.ticks == 0 { 0 } else { bounds.bytes };
        if self.capacity() > bytes_max {
            self.resize(bytes_max, budget_bytes);
        }
    }

    /// Moves the newest frames that fit into a buffer of another size.
    fn resize(&mut self, capacity: usize, budget_bytes: &mut isize) {
        *budget_bytes += self.capacity() as isize - capacity as isize;
        let before = self.log.take();
        if capacity > 0 {
            let mut log = EgressLog::new(capacity);
            if let Some(before) = before {
                for (range, info) in (0..before.len()).filter_map(|at| before.nth(at)) {
                    // Overwrites older frames if the new buffer cannot hold all of them.
                    if log.append(info, before.bytes(range)).is_none() {
                        log.rewind();
                    }
                }
            }
            self.log = Some(log);
        }
        self.drop_times();
        self.times.shrink_to(2 * self.times.len());
    }

    /// Drops the times of ticks that the log no longer has.
    fn drop_times(&mut self) {
        let len = self.log.as_ref().map_or(0, EgressLog::len);
        while self.times.len() > len {
            self.dropped_ns = self.times.pop_front().unwrap_or(self.dropped_ns);
        }
    }

    /// Buffer size in bytes: this history's share of the budget.
    pub fn capacity(&self) -> usize {
        self.log.as_ref().map_or(0, EgressLog::capacity)
    }

    fn expire(&mut self, bounds: HistoryBounds, now_ns: u64) {
        let old = |&at_ns: &u64| bounds.age_ns != 0 && at_ns.saturating_add(bounds.age_ns) < now_ns;
        while self.times.front().is_some_and(old) {
            self.forget_first();
        }
    }

    /// Drops all ticks, and keeps the buffer.
    pub fn clear(&mut self) {
        while self.log.as_ref().is_some_and(|log| !log.is_empty()) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        self.dropped_ns = self.times.pop_front().unwrap_or(self.dropped_ns);
        if let Some(log) = &mut self.log {
            log.forget_first();
        }
    }

    /// The frame of the oldest tick still kept, after dropping expired ones.
    pub fn oldest(&mut self, bounds: HistoryBounds, now_ns: u64) -> Option<&[u8]> {
        self.expire(bounds, now_ns);
        let log = self.log.as_ref()?;
        log.first().map(|(range, _)| log.bytes(range))
    }

    /// The first tick since a time; `None` if it may be one that is not kept. O(log ticks).
    pub fn since_time(&self, since_ns: u64) -> Option<FirstSince> {
        if self.dropped_ns >= since_ns {
            return None;
        }
        let at = self.times.partition_point(|&time_ns| time_ns < since_ns);
        let first = self.log.as_ref().and_then(|log| log.nth(at));
        Some(first.map_or(FirstSince::None, |(_, info)| FirstSince::Tick(info.sequence)))
    }

    /// Frames from `sequence` on that are still kept, in order. O(log ticks) for the first.
    pub fn since(&self, sequence: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let log = self.log.as_ref();
        let len = log.map_or(0, EgressLog::len);
        let skip = log.map_or(0, |log| log.first_of_sequence(sequence));
        (skip..len).filter_map(move |index| {
            let log = log?;
            log.nth(index).map(|(range, info)| (info.sequence, log.bytes(range)))
        })
    }

    /// Number of ticks, including those expired since the last tick.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether no tick is kept.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Heap memory in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.log.as_ref().map_or(0, EgressLog::memory_bytes) + self.times.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: HistoryBounds = HistoryBounds { ticks: 100, bytes: 64 << 10, age_ns: 0 };

    fn filled(bounds: HistoryBounds, ticks: u64, len: usize) -> (History, isize) {
        let (mut history, mut budget) = (History::default(), 1 << 20);
        for sequence in 1..=ticks {
            history.push(sequence, &vec![sequence as u8; len], bounds, sequence, &mut budget);
        }
        (history, budget)
    }

    /// The oldest sequence kept.
    fn oldest(history: &mut History, bounds: HistoryBounds, now_ns: u64) -> Option<u64> {
        history.oldest(bounds, now_ns)?;
        history.since(0).next().map(|(sequence, _)| sequence)
    }

    fn sequences(history: &History, from: u64) -> Vec<u64> {
        let check = |(sequence, frame): (u64, &[u8])| {
            assert!(frame.iter().all(|&byte| byte == sequence as u8));
            sequence
        };
        history.since(from).map(check).collect()
    }

    #[test]
    fn tick_count_bounds_the_history() {
        let (mut history, _) = filled(BOUNDS, 250, 100);
        assert_eq!(oldest(&mut history, BOUNDS, 250), Some(151));
        assert_eq!(sequences(&history, 151), (151..=250).collect::<Vec<_>>());
        assert_eq!(sequences(&history, 249), [249, 250]);
        assert!(sequences(&history, 251).is_empty() && sequences(&history, 0).len() == 100);
    }

    #[test]
    fn sequences_need_not_be_consecutive() {
        let (mut history, mut budget) = (History::default(), 1 << 20);
        for sequence in [10, 13, 40] {
            history.push(sequence, &[sequence as u8; 9], BOUNDS, 0, &mut budget);
        }
        for (from, kept) in [(1, &[10, 13, 40][..]), (11, &[13, 40]), (13, &[13, 40]), (41, &[])] {
            assert_eq!(sequences(&history, from), kept, "{from}");
        }
        history.clear();
        assert!(history.is_empty() && history.capacity() > 0 && sequences(&history, 1).is_empty());
    }

    #[test]
    fn bytes_bound_the_history() {
        for len in [48, 100, 1_000, 5_000, 60_000] {
            let (mut history, _) = filled(BOUNDS, 250, len);
            let oldest = oldest(&mut history, BOUNDS, 250).unwrap();
            assert_eq!(sequences(&history, oldest), (oldest..=250).collect::<Vec<_>>());
            assert!((251 - oldest) as usize * len <= BOUNDS.bytes, "{len}");
            assert!(
                (251 - oldest) as usize * len
                    >= (BOUNDS.bytes / 2 - len.min(BOUNDS.bytes / 2)).min(100 * len)
            );
        }
    }

    #[test]
    fn age_bounds_the_history() {
        let bounds = HistoryBounds { age_ns: 10, ..BOUNDS };
        let (mut history, _) = filled(bounds, 50, 10);
        assert_eq!(oldest(&mut history, bounds, 50), Some(40));
        assert_eq!(oldest(&mut history, bounds, 58), Some(48));
        assert_eq!(oldest(&mut history, bounds, 100), None);
    }

    #[test]
    fn a_tick_that_does_not_fit_leaves_no_hole() {
        let (mut history, mut budget) = filled(BOUNDS, 10, 100);
        history.push(11, &[0; 70_000], BOUNDS, 0, &mut budget);
        assert_eq!(oldest(&mut history, BOUNDS, 0), None);
        history.push(12, &[12; 10], BOUNDS, 0, &mut budget);
        assert_eq!(sequences(&history, 12), [12]);
    }

    #[test]
    fn without_budget_the_oldest_ticks_make_room() {
        let (mut history, mut budget) = (History::default(), 8 << 10);
        for sequence in 1..=250 {
            history.push(sequence, &[sequence as u8; 200], BOUNDS, 0, &mut budget);
        }
        assert_eq!(budget, 0);
        let oldest = oldest(&mut history, BOUNDS, 0).unwrap();
        assert!((210..=225).contains(&oldest), "{oldest}");
        assert_eq!(sequences(&history, oldest).last(), Some(&250));
    }

    #[test]
    fn the_next_tick_returns_what_exceeds_lowered_bounds() {
        let (mut history, mut budget) = filled(BOUNDS, 100, 600);
        assert_eq!(budget, (1 << 20) - BOUNDS.bytes as isize);
        let smaller = HistoryBounds { bytes: 8 << 10, ..BOUNDS };
        history.push(101, &[101; 600], smaller, 0, &mut budget);
        assert_eq!((budget, history.capacity()), ((1 << 20) - (8 << 10), 8 << 10));
        let oldest = oldest(&mut history, smaller, 0).unwrap();
        assert!((89..=95).contains(&oldest), "{oldest}");
        assert_eq!(sequences(&history, oldest), (oldest..=101).collect::<Vec<_>>());
        let nothing = HistoryBounds { ticks: 0, ..BOUNDS };
        history.push(102, &[102; 600], nothing, 0, &mut budget);
        assert_eq!((budget, history.capacity(), history.len()), (1 << 20, 0, 0));
    }

    #[test]
    fn a_negative_budget_halves_the_buffer_until_it_is_met() {
        let (mut history, _) = filled(BOUNDS, 100, 600);
        let mut budget = -(40 << 10);
        for _ in 0..3 {
            history.trim(BOUNDS, 0, &mut budget);
            let oldest = oldest(&mut history, BOUNDS, 0).unwrap();
            assert_eq!(sequences(&history, oldest), (oldest..=100).collect::<Vec<_>>());
        }
        assert_eq!((budget, history.capacity()), (8 << 10, 16 << 10));
        // Even without budget, a tick does not shrink the buffer.
        budget = -1;
        history.push(101, &[101; 600], BOUNDS, 0, &mut budget);
        assert_eq!(
            (budget, history.capacity(), oldest(&mut history, BOUNDS, 0).is_some()),
            (-1, 16 << 10, true)
        );
    }

    #[test]
    fn expired_history_returns_its_whole_buffer() {
        let bounds = HistoryBounds { age_ns: 10, ..BOUNDS };
        let (mut history, mut budget) = filled(bounds, 100, 600);
        assert_eq!(history.trim(bounds, 200, &mut budget), 0);
        assert_eq!((budget, history.capacity(), history.len()), (1 << 20, 0, 0));
        history.push(101, &[101; 600], bounds, 200, &mut budget);
        assert_eq!(sequences(&history, 101), [101]);
    }
}
