//! A hierarchical timer wheel: all timers of a shard in one structure, with O(1) insertion.
//!
//! ```text
//!  level 0   64 slots of one granule (4.2 ms)     due within 0.27 s
//!  level 1   64 slots of 64 granules              due within 17 s
//!  level 2   64 slots of 64^2 granules            due within 18 min
//!  level 3   64 slots of 64^3 granules            due within 19.5 h; later timers are relinked as the wheel turns
//! ```
//!
//! An entry is linked at the level of the highest base-64 digit in which its granule differs from the wheel's. When the
//! wheel reaches a slot, its entries move to lower levels: at most three times before they are due. Slots are linked
//! lists through one slab, and each level has a word whose bits say which slots are in use (Varghese and Lauck, "Hashed
//! and Hierarchical Timing Wheels", 1987, scheme 7).

use crate::limits::{TIMER_GRANULE_NS, TIMER_LEVELS, TIMER_MOVES_PER_POP};

/// Bits of a digit. A level has 64 slots, so one `u64` says which are in use.
const DIGIT_BITS: u32 = 6;
const SLOTS: usize = 1 << DIGIT_BITS;
/// Granules covered by all levels.
const HORIZON: u64 = 1 << (DIGIT_BITS * TIMER_LEVELS as u32);
/// The index of no node.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node<T> {
    /// The granule at whose start the entry is due.
    granule: u64,
    entry: T,
    /// The next node in its slot or in the free list.
    next: u32,
}

/// Entries with due times. Entries cannot be cancelled: the caller that pops one checks whether it still matters.
///
/// Entries are never early, and late by less than one granule plus the caller's own delay. Entries of one granule come in
/// arbitrary order.
///
/// Invariant: every node is in one slot, in `moving` or in the free list.
/// Invariant: an entry at level `l` shares the digits above `l` with `reached`, and its digit at `l` is higher; at the last
/// level the digit may have wrapped.
#[derive(Debug)]
pub struct Wheel<T> {
    /// The granule the wheel has reached: earlier slots are empty.
    reached: u64,
    /// The first node of each slot.
    slots: [[u32; SLOTS]; TIMER_LEVELS],
    /// Bit `n` of a level: slot `n` is not empty.
    used: [u64; TIMER_LEVELS],
    /// The entries of the slot just reached, which are due or must move to a lower level.
    moving: u32,
    /// The slab. Bound: the highest number of entries so far.
    nodes: Vec<Node<T>>,
    free: u32,
    len: usize,
}

impl<T: Copy> Default for Wheel<T> {
    fn default() -> Self {
        Wheel::new()
    }
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel. 1 KiB; the slab grows with the first entries.
    pub fn new() -> Wheel<T> {
        Wheel {
            reached: 0,
            slots: [[NONE; SLOTS]; TIMER_LEVELS],
            used: [0; TIMER_LEVELS],
            moving: NONE,
            nodes: Vec::new(),
            free: NONE,
            len: 0,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the entries for which `keep` returns `false`, and frees their memory. O(entries).
    ///
    /// `keep` gets an entry's granule (`when_ns` divided by [`TIMER_GRANULE_NS`], rounded up) and the entry.
    pub fn retain(&mut self, mut keep: impl FnMut(u64, &T) -> bool) {
        let Wheel { nodes, slots, moving, .. } =
            std::mem::replace(self, Wheel { reached: self.reached, ..Wheel::new() });
        for first in slots.into_iter().flatten().chain([moving]) {
            let mut index = first;
            while let Some(&Node { granule, entry, next }) = nodes.get(index as usize) {
                if keep(granule, &entry) {
                    self.nodes.push(Node { granule, entry, next: NONE });
                    self.len += 1;
                    self.link((self.nodes.len() - 1) as u32);
                }
                index = next;
            }
        }
    }

    /// Bytes allocated for the slab: 32 for each entry of 16 bytes. Only [`Wheel::retain`] shrinks it.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node<T>>()
    }

    /// Adds an entry that is due at `when_ns`, on the clock of [`Wheel::pop_due`]'s `now_ns`. About 10 ns; allocates only
    /// when the slab grows.
    pub fn insert(&mut self, when_ns: u64, entry: T) {
        let node = Node { granule: when_ns.div_ceil(TIMER_GRANULE_NS), entry, next: NONE };
        let index = match self.free {
            NONE => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
            index => {
                self.free = self.nodes[index as usize].next;
                self.nodes[index as usize] = node;
                index
            }
        };
        self.len += 1;
        self.link(index);
    }

    /// Pops an entry that is due, if any. The caller bounds how many it pops per turn.
    ///
    /// A call moves at most [`TIMER_MOVES_PER_POP`] entries to lower levels. It may therefore return `None` while more entries
    /// are due; [`Wheel::next_due_ns`] is then not after `now_ns`. Takes 2 ns if nothing is due; with a million entries, 200 ns
    /// per entry, including moves.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<T> {
        let now = now_ns / TIMER_GRANULE_NS;
        let mut moves_left = TIMER_MOVES_PER_POP;
        while moves_left > 0 {
            if self.moving == NONE && !self.advance(now) {
                return None;
            }
            let index = self.moving;
            let Node { granule, entry, next } = self.nodes[index as usize];
            self.moving = next;
            if granule <= self.reached {
                self.nodes[index as usize].next = self.free;
                self.free = index;
                self.len -= 1;
                return Some(entry);
            }
            self.link(index);
            moves_left -= 1;
        }
        None
    }

    /// When [`Wheel::pop_due`] next has work: an entry to pop, or entries to move to a lower level. Never after the first entry's
    /// due time, rounded up to a granule. `None` if the wheel is empty. About 2 ns.
    pub fn next_due_ns(&self) -> Option<u64> {
        let granule = match self.moving {
            NONE => self.next_slot()?.2,
            _ => self.reached,
        };
        Some(granule.saturating_mul(TIMER_GRANULE_NS))
    }

    /// Advances to the next slot in use, unless it begins after `now`. Returns whether it reached one.
    fn advance(&mut self, now: u64) -> bool {
        if now <= self.reached {
            return false;
        }
        let Some((level, slot, start)) = self.next_slot().filter(|(.., start)| *start <= now) else {
            // No slot in use begins before `now`, so none is skipped.
            self.reached = now;
            return false;
        };
        self.reached = start;
        self.used[level] &= !(1 << slot);
        self.moving = std::mem::replace(&mut self.slots[level][slot], NONE);
        true
    }

    /// The slot in use that begins first, as (level, slot, granule). Slots of lower levels begin before those of higher ones.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let level = (0..TIMER_LEVELS).find(|&level| self.used[level] != 0)?;
        let shift = DIGIT_BITS * level as u32;
        let digit = (self.reached >> shift) as u32 % SLOTS as u32;
        // 1 to 64 slots ahead: the wheel's own slot is a full turn away.
        let ahead = self.used[level].rotate_right(digit + 1).trailing_zeros() + 1;
        let start = ((self.reached >> shift) + u64::from(ahead)) << shift;
        Some((level, (digit + ahead) as usize % SLOTS, start))
    }

    /// Links a node into the slot it belongs to as seen from `reached`.
    fn link(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        if node.granule <= self.reached {
            node.next = self.moving;
            self.moving = index;
            return;
        }
        // An entry past the horizon is relinked when the wheel reaches the last slot before it.
        let granule = node.granule.min(self.reached + HORIZON - (HORIZON >> DIGIT_BITS));
        let highest_bit = 63 - (granule ^ self.reached).leading_zeros();
        let level = ((highest_bit / DIGIT_BITS) as usize).min(TIMER_LEVELS - 1);
        let slot = (granule >> (DIGIT_BITS * level as u32)) as usize % SLOTS;
        node.next = std::mem::replace(&mut self.slots[level][slot], index);
        self.used[level] |= 1 << slot;
    }
}

#[cfg(test)]
mod tests {
    use std::{cmp::Reverse, collections::BinaryHeap};

    use super::*;

    const G: u64 = TIMER_GRANULE_NS;

    #[test]
    fn retain_drops_some_entries_and_the_rest_come_due_in_time() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut wheel = Wheel::new();
        let times: Vec<u64> = (0..2_000).map(|_| random.u64(1..1 << 40)).collect();
        times.iter().enumerate().for_each(|(n, &when_ns)| wheel.insert(when_ns, n));
        let mut now_ns = 1 << 38;
        let mut seen = Vec::new();
        while wheel.next_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            seen.extend(wheel.pop_due(now_ns));
        }
        wheel.retain(|_, n| n % 10 == 0);
        assert!(wheel.heap_bytes() <= 512 * size_of::<Node<usize>>());
        while let Some(due_ns) = wheel.next_due_ns() {
            now_ns = now_ns.max(due_ns);
            if let Some(n) = wheel.pop_due(now_ns) {
                assert!(n % 10 == 0 && times[n] <= now_ns && now_ns < times[n] + 2 * G);
                seen.push(n);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        let kept = (0..2_000).filter(|n| n % 10 == 0);
        assert!(kept.into_iter().all(|n| seen.contains(&n)) && wheel.is_empty());
    }

    /// All entries that are due.
    fn drain(wheel: &mut Wheel<u32>, now_ns: u64) -> Vec<u32> {
        let mut due = Vec::new();
        loop {
            match wheel.pop_due(now_ns) {
                Some(entry) => due.push(entry),
                None if wheel.next_due_ns().is_some_and(|next_ns| next_ns <= now_ns) => {}
                None => return due,
            }
        }
    }

    /// Tests deadlines at every distance, and time jumps of every length.
    #[test]
    fn the_wheel_agrees_with_a_heap_however_time_jumps() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut distance = move || {
                let bits = random.u32(0..58);
                random.u64(0..1 << bits)
            };
            let (mut wheel, mut heap) = (Wheel::new(), BinaryHeap::new());
            let mut now_ns = distance();
            let mut entries = 0;
            for _ in 0..300 {
                for _ in 0..distance() % 20 {
                    let when_ns = (now_ns + distance()).saturating_sub(distance() % G);
                    wheel.insert(when_ns, entries);
                    heap.push(Reverse((when_ns.div_ceil(G), entries)));
                    entries += 1;
                }
                now_ns += distance();
                let mut expected = Vec::new();
                while let Some(&Reverse((granule, entry))) = heap.peek()
                    && granule <= now_ns / G
                {
                    expected.push(entry);
                    heap.pop();
                }
                let mut due = drain(&mut wheel, now_ns);
                due.sort_unstable();
                expected.sort_unstable();
                assert_eq!(due, expected, "seed {seed}");
                assert_eq!(wheel.len(), heap.len(), "seed {seed}");
                let first_ns = heap.peek().map(|Reverse((granule, _))| granule * G);
                match (wheel.next_due_ns(), first_ns) {
                    (None, None) => {}
                    (Some(next_ns), Some(first_ns)) => {
                        assert!(now_ns < next_ns && next_ns <= first_ns, "seed {seed}: {next_ns} {first_ns}");
                    }
                    other => panic!("seed {seed}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_sleeper_wakes_a_few_times_at_most_for_a_distant_entry() {
        for when_ns in [G, 100 * G, 25_000_000_000, 3_600_000_000_000, HORIZON * G + 7] {
            let mut wheel = Wheel::new();
            let mut now_ns = 1 << 41;
            drain(&mut wheel, now_ns);
            wheel.insert(now_ns + when_ns, 1);
            let due_ns = now_ns + when_ns;
            let mut wakes = 0;
            while drain(&mut wheel, now_ns).is_empty() {
                now_ns = wheel.next_due_ns().unwrap();
                wakes += 1;
            }
            assert!(wakes <= TIMER_LEVELS as u32 + 2, "{wakes} wakes for {when_ns} ns");
            assert!((due_ns..due_ns + G).contains(&now_ns), "due at {due_ns}, popped at {now_ns}");
        }
    }

    #[test]
    fn a_deadline_that_never_comes_is_never_due() {
        let mut wheel = Wheel::new();
        wheel.insert(u64::MAX, 1);
        let mut now_ns = 0;
        for _ in 0..1_000 {
            assert!(drain(&mut wheel, now_ns).is_empty());
            now_ns += HORIZON * G / 3;
        }
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn a_full_slot_is_moved_a_bounded_number_of_entries_a_call() {
        let mut wheel = Wheel::new();
        let count = 3 * TIMER_MOVES_PER_POP as u32;
        (0..count).for_each(|entry| wheel.insert(100 * G, entry));
        // The wheel reaches the slot at level 1, in which nothing is due yet.
        assert_eq!(wheel.pop_due(64 * G), None);
        assert!(wheel.next_due_ns() <= Some(64 * G), "there is more to move");
        assert!(drain(&mut wheel, 64 * G).is_empty());
        assert_eq!(wheel.next_due_ns(), Some(100 * G));
        assert_eq!(drain(&mut wheel, 100 * G).len(), count as usize);
        assert!(wheel.is_empty() && wheel.next_due_ns().is_none());
    }

    #[test]
    fn new_entries_reuse_the_nodes_of_old_ones() {
        let mut wheel = Wheel::new();
        for round in 0..10_000 {
            (0..10).for_each(|entry| wheel.insert((round + 1) * G, entry));
            assert_eq!(drain(&mut wheel, (round + 1) * G).len(), 10);
        }
        assert!(wheel.heap_bytes() <= 16 * size_of::<Node<u32>>(), "{} bytes", wheel.heap_bytes());
    }
}
