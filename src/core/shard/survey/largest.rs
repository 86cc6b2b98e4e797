//! The largest few of many items, found in one pass without keeping the rest.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Keeps the offered items with the highest ranks, up to a limit. Among equal ranks, the smaller item stays.
///
/// Memory: O(limit), however many are offered. Most offers cost one comparison, the others O(log limit).
#[derive(Clone, Debug)]
pub struct Largest<T> {
    items_max: usize,
    /// The smallest kept item is at the top.
    kept: BinaryHeap<Reverse<(u64, Reverse<T>)>>,
}

impl<T: Ord> Largest<T> {
    /// Creates an empty selection of at most `items_max` items.
    pub fn new(items_max: usize) -> Largest<T> {
        Largest { items_max, kept: BinaryHeap::new() }
    }

    /// Keeps the item if its rank is high enough.
    pub fn offer(&mut self, rank: u64, item: T) {
        let entry = (rank, Reverse(item));
        if self.kept.len() < self.items_max {
            self.kept.push(Reverse(entry));
        } else if let Some(mut least) = self.kept.peek_mut()
            && entry > least.0
        {
            *least = Reverse(entry);
        }
    }

    /// Returns the kept items, highest rank first.
    pub fn into_sorted(self) -> impl Iterator<Item = (u64, T)> {
        self.kept.into_sorted_vec().into_iter().map(|Reverse((rank, Reverse(item)))| (rank, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_ranks_are_kept_and_sorted_in_any_order_of_arrival() {
        let mut offered: Vec<(u64, u32)> = (0..1_000u32).map(|n| (u64::from(n % 250), n)).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut offered);
        let mut largest = Largest::new(6);
        offered.iter().for_each(|&(rank, item)| largest.offer(rank, item));
        let kept: Vec<_> = largest.into_sorted().collect();
        assert_eq!(kept, [(249, 249), (249, 499), (249, 749), (249, 999), (248, 248), (248, 498)]);
    }

    #[test]
    fn fewer_items_than_the_limit_are_all_kept() {
        let mut largest = Largest::new(10);
        [(1, 'a'), (3, 'b')].into_iter().for_each(|(rank, item)| largest.offer(rank, item));
        assert_eq!(largest.into_sorted().collect::<Vec<_>>(), [(3, 'b'), (1, 'a')]);
        let mut none = Largest::new(0);
        none.offer(1, 'a');
        assert_eq!(none.into_sorted().count(), 0);
    }
}
