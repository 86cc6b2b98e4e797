//! The largest few of many, found in one pass without keeping the rest.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Keeps the items of the highest ranks that it was offered, at most so many. Of equal ranks the smaller item stays.
///
/// Memory: the bound, however many are offered. An offer is a comparison for most, and O(log bound) at most.
#[derive(Clone, Debug)]
pub struct Largest<T> {
    items_max: usize,
    /// The least of those that are kept is at the top.
    kept: BinaryHeap<Reverse<(u64, Reverse<T>)>>,
}

impl<T: Ord> Largest<T> {
    /// Keeps `items_max`.
    pub fn new(items_max: usize) -> Largest<T> {
        Largest { items_max, kept: BinaryHeap::new() }
    }

    /// One more.
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

    /// What was kept, the highest rank first.
    pub fn into_sorted(self) -> impl Iterator<Item = (u64, T)> {
        self.kept.into_sorted_vec().into_iter().map(|Reverse((rank, Reverse(item)))| (rank, item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_ranks_stay_in_order_whatever_order_they_came_in() {
        let mut offered: Vec<(u64, u32)> = (0..1_000u32).map(|n| (u64::from(n % 250), n)).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut offered);
        let mut largest = Largest::new(6);
        offered.iter().for_each(|&(rank, item)| largest.offer(rank, item));
        let kept: Vec<_> = largest.into_sorted().collect();
        assert_eq!(kept, [(249, 249), (249, 499), (249, 749), (249, 999), (248, 248), (248, 498)]);
    }

    #[test]
    fn fewer_than_it_keeps_are_all_there_and_none_is_nothing() {
        let mut largest = Largest::new(10);
        [(1, 'a'), (3, 'b')].into_iter().for_each(|(rank, item)| largest.offer(rank, item));
        assert_eq!(largest.into_sorted().collect::<Vec<_>>(), [(3, 'b'), (1, 'a')]);
        let mut none = Largest::new(0);
        none.offer(1, 'a');
        assert_eq!(none.into_sorted().count(), 0);
    }
}
