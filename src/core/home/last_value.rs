//! The last value of a topic, and of each key within it.

use std::collections::{BTreeMap, HashMap};

/// The frames for snapshots and conflating subscribers: a topic's last one, and with keys the last of each key.
///
/// Memory: one frame; with keys one frame and about 100 bytes for each of at most `keys_max` keys, within what the
/// [`KeysBudget`] of all topics has left. Beyond either bound, the keys updated longest ago are evicted.
///
/// Invariant: with keys, `by_key` and `frames` have the same sequences, and the highest is `sequence`.
#[derive(Debug, Default)]
pub struct LastValues {
    last_frame: Vec<u8>,
    sequence: u64,
    keyed: Option<Box<Keyed>>,
}

/// The memory that the last values by key of many topics share.
#[derive(Clone, Copy, Debug)]
pub struct KeysBudget {
    /// Keys per topic.
    pub keys_max: usize,
    /// Bytes of frames left for all topics. Each topic keeps its last tick regardless, so this can fall below 0 by
    /// one frame per topic.
    pub bytes_left: isize,
}

#[derive(Debug, Default)]
struct Keyed {
    by_key: HashMap<u64, u64>,
    /// By sequence.
    frames: BTreeMap<u64, KeyedFrame>,
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

    /// The frame of the last tick; empty before the first.
    pub fn last_frame(&self) -> &[u8] {
        &self.last_frame
    }

    /// Stores the next tick, whose frame `write` appends to an empty buffer. Without keys, no allocation once the
    /// buffer has grown to the topic's largest tick.
    pub fn store(
        &mut self,
        sequence: u64,
        key: u64,
        budget: &mut KeysBudget,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        if key != 0 && self.keyed.is_none() {
            let mut keyed = Box::<Keyed>::default();
            if self.sequence != 0 {
                keyed.store(self.sequence, 0, budget, &self.last_frame);
            }
            self.keyed = Some(keyed);
        }
        self.last_frame.clear();
        write(&mut self.last_frame);
        self.sequence = sequence;
        if let Some(keyed) = &mut self.keyed {
            keyed.store(sequence, key, budget, &self.last_frame);
        }
    }

    /// The stored frames from `sequence` on, in order; the topic's last frame comes last.
    pub fn since(&self, sequence: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let keyed = self.keyed.iter().flat_map(move |keyed| keyed.frames.range(sequence..));
        let alone = self.keyed.is_none() && self.sequence != 0 && self.sequence >= sequence;
        keyed
            .map(|(&sequence, stored)| (sequence, &*stored.frame))
            .chain(alone.then_some((self.sequence, self.last_frame.as_slice())))
    }

    /// Number of keys stored; 0 for a topic without keys.
    pub fn keys_len(&self) -> usize {
        self.keyed.as_deref().map_or(0, |keyed| keyed.by_key.len())
    }

    /// Returns the keys' memory to the budget. Call before dropping the value.
    pub fn release(&self, budget: &mut KeysBudget) {
        let bytes =
            self.keyed.iter().flat_map(|keyed| keyed.frames.values()).map(|stored| stored.frame.len());
        budget.bytes_left += bytes.sum::<usize>() as isize;
    }

    /// Heap memory in bytes.
    pub fn memory_bytes(&self) -> usize {
        let of = |keyed: &Keyed| keyed.frames.values().map(|stored| stored.frame.len() + 100).sum::<usize>();
        self.last_frame.capacity() + self.keyed.as_deref().map_or(0, of)
    }
}

impl Keyed {
    fn store(&mut self, sequence: u64, key: u64, budget: &mut KeysBudget, frame: &[u8]) {
        if let Some(before) = self.by_key.insert(key, sequence)
            && let Some(replaced) = self.frames.remove(&before)
        {
            budget.bytes_left += replaced.frame.len() as isize;
        }
        while self.by_key.len() > budget.keys_max.max(1) || budget.bytes_left < frame.len() as isize {
            let Some((_, oldest)) = self.frames.pop_first() else { break };
            self.by_key.remove(&oldest.key);
            budget.bytes_left += oldest.frame.len() as isize;
        }
        budget.bytes_left -= frame.len() as isize;
        self.frames.insert(sequence, KeyedFrame { key, frame: frame.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(last_values: &mut LastValues, sequence: u64, key: u64) {
        let mut budget = KeysBudget { keys_max: 3, bytes_left: 1 << 20 };
        last_values.store(sequence, key, &mut budget, |out| out.push(sequence as u8));
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
        let mut budget = KeysBudget { keys_max: 1_000, bytes_left: 1_000 };
        let mut last_values = [LastValues::default(), LastValues::default()];
        for sequence in 1..=100 {
            for last_values in &mut last_values {
                last_values.store(sequence, sequence, &mut budget, |out| out.resize(90, sequence as u8));
            }
        }
        let kept: usize = last_values.iter().map(|last_values| last_values.since(1).count()).sum();
        assert!((2..=12).contains(&kept), "{kept}");
        assert!(
            last_values
                .iter()
                .all(|last_values| last_values.since(1).last().is_some_and(|(sequence, _)| sequence == 100))
        );
        last_values.iter().for_each(|last_values| last_values.release(&mut budget));
        assert_eq!(budget.bytes_left, 1_000, "every byte taken is returned, and no more");
    }
}
