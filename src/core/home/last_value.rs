//! The last value of a topic, and of each key within it.

use std::collections::{BTreeMap, HashMap};

/// Bytes per key besides its frame: its entries in two tables.
const KEY_BYTES: usize = 100;

/// The frames for snapshots and conflating subscribers: a topic's last one and, if it has keys, the last of each key.
///
/// Memory: one frame; with keys one frame and 100 bytes for each of at most `keys_max` keys, within what is left of the
/// [`LastValuesBudget`] of all topics. Beyond either bound, the keys updated longest ago are evicted. If there is no room for
/// the last tick itself, none of the topic's values is kept.
///
/// Invariant: with keys, `by_key` and `frames` have the same sequences, and the highest is `sequence`.
#[derive(Debug, Default)]
pub struct LastValues {
    /// Empty before the first tick, and if it was evicted.
    last_frame: Vec<u8>,
    sequence: u64,
    /// Values of keys from ticks before this sequence may have been evicted.
    complete_from: u64,
    /// Whether a tick was stored since another topic last looked for room.
    is_recent: bool,
    keyed: Option<Box<Keyed>>,
}

/// The memory that the last values of many topics share.
#[derive(Clone, Copy, Debug)]
pub struct LastValuesBudget {
    /// Keys per topic.
    pub keys_max: usize,
    /// Bytes left for all topics.
    pub bytes_left: usize,
}

#[derive(Debug, Default)]
struct Keyed {
    by_key: HashMap<u64, u64>,
    /// By sequence.
    frames: BTreeMap<u64, KeyedFrame>,
    /// Bytes of the frames, and [`KEY_BYTES`] each.
    bytes: usize,
}

#[derive(Debug)]
struct KeyedFrame {
    key: u64,
    frame: Box<[u8]>,
}

impl LastValues {
    /// The sequence of the last tick; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The frame of the last tick; empty before the first, and if it was evicted.
    pub fn last_frame(&self) -> &[u8] {
        &self.last_frame
    }

    /// The first sequence from `from` on whose ticks are intact: earlier ones are neither kept nor replaced by a later one.
    pub fn intact_from(&self, from: u64) -> u64 {
        match self.last_frame.is_empty() {
            true => from.max(self.sequence + 1),
            false => from.max(self.complete_from),
        }
    }

    /// The maximum bytes that storing a tick with a frame of `len` bytes takes from the budget.
    #[inline]
    pub fn bytes_wanted(&self, key: u64, len: usize) -> usize {
        let keyed = if self.has_keys(key) { len + KEY_BYTES } else { 0 };
        len.saturating_sub(self.last_frame.capacity()) + keyed
    }

    #[inline]
    fn has_keys(&self, key: u64) -> bool {
        key != 0 || self.keyed.is_some()
    }

    /// Stores the next tick, whose frame of `len` bytes `write` appends to an empty buffer. Without keys, no allocation once
    /// the buffer has grown to the topic's largest tick. Returns `false`, with nothing written and all values evicted, if there
    /// is no room.
    #[must_use]
    pub fn store(
        &mut self,
        sequence: u64,
        key: u64,
        len: usize,
        budget: &mut LastValuesBudget,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let has_room = self.bytes_wanted(key, len) == 0 || self.make_room(key, len, budget);
        self.sequence = sequence;
        self.is_recent = true;
        if !has_room {
            self.evict(budget);
            return false;
        }
        self.last_frame.clear();
        write(&mut self.last_frame);
        debug_assert_eq!(self.last_frame.len(), len, "a tick's frame is as long as announced");
        if let Some(keyed) = &mut self.keyed {
            keyed.insert(sequence, key, &self.last_frame);
        }
        true
    }

    /// Takes room for a tick from the budget. If necessary, evicts the topic's keys updated longest ago. Returns whether there
    /// is room.
    fn make_room(&mut self, key: u64, len: usize, budget: &mut LastValuesBudget) -> bool {
        let has_keys = self.has_keys(key);
        if has_keys && self.keyed.is_none() {
            let mut keyed = Box::<Keyed>::default();
            let bytes = self.last_frame.len() + KEY_BYTES;
            if self.last_frame.is_empty() || bytes > budget.bytes_left {
                self.complete_from = self.sequence + 1;
            } else {
                budget.bytes_left -= bytes;
                keyed.insert(self.sequence, 0, &self.last_frame);
            }
            self.keyed = Some(keyed);
        }
        if let Some(keyed) = &mut self.keyed {
            budget.bytes_left += keyed.remove(key);
            let wanted = len.saturating_sub(self.last_frame.capacity()) + len + KEY_BYTES;
            while (keyed.by_key.len() >= budget.keys_max.max(1) || budget.bytes_left < wanted)
                && let Some((sequence, bytes)) = keyed.remove_oldest()
            {
                budget.bytes_left += bytes;
                self.complete_from = sequence + 1;
            }
        }
        let capacity = self.last_frame.capacity();
        if budget.bytes_left < self.bytes_wanted(key, len) {
            return false;
        }
        self.last_frame.clear();
        if self.last_frame.try_reserve_exact(len).is_err() {
            return false;
        }
        let taken = self.last_frame.capacity() - capacity + if has_keys { len + KEY_BYTES } else { 0 };
        budget.bytes_left = budget.bytes_left.saturating_sub(taken);
        true
    }

    /// Evicts all values, to make room for others. Returns the bytes given back to the budget.
    pub fn evict(&mut self, budget: &mut LastValuesBudget) -> usize {
        let bytes = self.memory_bytes();
        self.release(budget);
        self.last_frame = Vec::new();
        if self.keyed.take().is_some() {
            self.complete_from = self.sequence + 1;
        }
        bytes
    }

    /// Notes that another topic looks for room. Returns whether a tick was stored since the last time.
    pub fn take_recent(&mut self) -> bool {
        std::mem::take(&mut self.is_recent)
    }

    /// The stored frames from `sequence` on, in order; the topic's last frame comes last.
    pub fn since(&self, sequence: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let keyed = self.keyed.iter().flat_map(move |keyed| keyed.frames.range(sequence..));
        let alone = self.keyed.is_none() && !self.last_frame.is_empty() && self.sequence >= sequence;
        keyed
            .map(|(&sequence, stored)| (sequence, &*stored.frame))
            .chain(alone.then_some((self.sequence, self.last_frame.as_slice())))
    }

    /// Number of keys stored; 0 for a topic without keys.
    pub fn keys_len(&self) -> usize {
        self.keyed.as_deref().map_or(0, |keyed| keyed.by_key.len())
    }

    /// Returns the memory to the budget. Call before dropping the value.
    pub fn release(&self, budget: &mut LastValuesBudget) {
        budget.bytes_left += self.memory_bytes();
    }

    /// Bytes taken from the budget.
    pub fn memory_bytes(&self) -> usize {
        self.last_frame.capacity() + self.keyed.as_deref().map_or(0, |keyed| keyed.bytes)
    }
}

impl Keyed {
    /// Adds a key's value. The key must have none.
    fn insert(&mut self, sequence: u64, key: u64, frame: &[u8]) {
        self.bytes += frame.len() + KEY_BYTES;
        self.by_key.insert(key, sequence);
        self.frames.insert(sequence, KeyedFrame { key, frame: frame.into() });
    }

    /// Removes a key's value. Returns its bytes.
    fn remove(&mut self, key: u64) -> usize {
        let sequence = self.by_key.remove(&key);
        let removed = sequence.and_then(|sequence| self.frames.remove(&sequence));
        self.forget(removed)
    }

    /// Removes the key updated longest ago. Returns its sequence and bytes; `None` if there is no key.
    fn remove_oldest(&mut self) -> Option<(u64, usize)> {
        let (sequence, oldest) = self.frames.pop_first()?;
        self.by_key.remove(&oldest.key);
        Some((sequence, self.forget(Some(oldest))))
    }

    fn forget(&mut self, removed: Option<KeyedFrame>) -> usize {
        let bytes = removed.map_or(0, |removed| removed.frame.len() + KEY_BYTES);
        self.bytes -= bytes;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(last_values: &mut LastValues, sequence: u64, key: u64) {
        let mut budget = LastValuesBudget { keys_max: 3, bytes_left: 1 << 20 };
        assert!(last_values.store(sequence, key, 1, &mut budget, |out| out.push(sequence as u8)));
    }

    fn since(last_values: &LastValues, sequence: u64) -> Vec<u64> {
        let found: Vec<(u64, &[u8])> = last_values.since(sequence).collect();
        assert!(found.iter().all(|(sequence, frame)| frame[..] == [*sequence as u8]));
        found.into_iter().map(|(sequence, _)| sequence).collect()
    }

    #[test]
    fn without_keys_only_the_last_tick_is_kept() {
        let mut last_values = LastValues::default();
        assert!(since(&last_values, 0).is_empty());
        (1..=3).for_each(|sequence| store(&mut last_values, sequence, 0));
        assert_eq!((since(&last_values, 1), since(&last_values, 3)), (vec![3], vec![3]));
        assert!(since(&last_values, 4).is_empty());
    }

    #[test]
    fn the_last_value_of_each_key_is_kept_in_sequence_order() {
        let mut last_values = LastValues::default();
        for (sequence, key) in [(1, 0), (2, 7), (3, 8), (4, 7)] {
            store(&mut last_values, sequence, key);
        }
        assert_eq!(since(&last_values, 1), [1, 3, 4]);
        assert_eq!(since(&last_values, 2), [3, 4]);
    }

    #[test]
    fn beyond_keys_max_the_keys_updated_longest_ago_are_evicted() {
        let mut last_values = LastValues::default();
        (1..=10).for_each(|sequence| store(&mut last_values, sequence, sequence));
        assert_eq!(since(&last_values, 1), [8, 9, 10]);
    }

    #[test]
    fn without_budget_the_oldest_keys_make_room() {
        let mut budget = LastValuesBudget { keys_max: 1_000, bytes_left: 2_000 };
        let mut last_values = [LastValues::default(), LastValues::default()];
        for sequence in 1..=100 {
            for last_values in &mut last_values {
                let write = |out: &mut Vec<u8>| out.resize(90, sequence as u8);
                assert!(last_values.store(sequence, sequence, 90, &mut budget, write));
            }
        }
        let kept: usize = last_values.iter().map(|last_values| last_values.since(1).count()).sum();
        assert!((2..=10).contains(&kept), "{kept}");
        for last_values in &mut last_values {
            assert_eq!(last_values.since(1).last().map(|(sequence, _)| sequence), Some(100));
            last_values.evict(&mut budget);
        }
        assert_eq!(budget.bytes_left, 2_000, "every byte taken is returned, and no more");
    }

    #[test]
    fn the_values_of_evicted_keys_are_lost_even_if_no_tick_has_a_key_again() {
        let mut budget = LastValuesBudget { keys_max: 4, bytes_left: 1_000 };
        let mut last_values = LastValues::default();
        for (sequence, key) in [(1, 7), (2, 8)] {
            assert!(last_values.store(sequence, key, 10, &mut budget, |out| out.resize(10, 0)));
        }
        last_values.evict(&mut budget);
        for (sequence, key) in [(3, 0), (4, 0), (5, 9)] {
            assert!(last_values.store(sequence, key, 10, &mut budget, |out| out.resize(10, 0)));
            assert_eq!(last_values.intact_from(1), 3, "after tick {sequence}");
        }
        assert_eq!(last_values.since(1).map(|(sequence, _)| sequence).collect::<Vec<_>>(), [4, 5]);
    }

    #[test]
    fn a_tick_without_room_leaves_no_value_and_later_ones_are_kept_again() {
        let mut budget = LastValuesBudget { keys_max: 4, bytes_left: 1_000 };
        let mut last_values = LastValues::default();
        let mut store = |last_values: &mut LastValues, sequence, key, len| {
            last_values.store(sequence, key, len, &mut budget, |out| out.resize(len, 0))
        };
        assert!(store(&mut last_values, 1, 0, 100));
        assert!(!store(&mut last_values, 2, 0, 2_000));
        assert_eq!((last_values.since(0).count(), last_values.sequence()), (0, 2));
        assert_eq!(last_values.intact_from(1), 3);
        assert!(store(&mut last_values, 3, 0, 100));
        assert_eq!(last_values.intact_from(1), 1, "without keys, the last tick replaces all others");
        assert!(store(&mut last_values, 4, 7, 100));
        assert!(!store(&mut last_values, 5, 8, 2_000));
        assert!(store(&mut last_values, 6, 7, 100));
        assert_eq!(last_values.intact_from(1), 6, "the value of the other key is lost");
        last_values.release(&mut budget);
        assert_eq!(budget.bytes_left, 1_000);
    }
}
