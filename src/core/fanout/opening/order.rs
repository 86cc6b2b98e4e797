//! The order in which topics open.

use std::collections::{HashMap, VecDeque};

use tickcast_proto::ids::TopicId;

/// The order in which topics open: their owners take turns, and each owner's topics open one after the other.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Owners with topics. The one whose turn is next comes first.
    owners: VecDeque<u32>,
    by_owner: HashMap<u32, VecDeque<TopicId>, rustc_hash::FxBuildHasher>,
}

impl Order {
    /// The topic that continues next.
    pub(super) fn front(&self) -> Option<&TopicId> {
        self.by_owner.get(self.owners.front()?)?.front()
    }

    /// Adds a topic behind the others of its owner.
    pub(super) fn push_back(&mut self, owner: u32, id: TopicId) {
        let topics = self.by_owner.entry(owner).or_default();
        if topics.is_empty() {
            self.owners.push_back(owner);
        }
        topics.push_back(id);
    }

    /// Removes the first topic.
    pub(super) fn pop_front(&mut self) {
        let Some(&owner) = self.owners.front() else { return debug_assert!(false, "there is a first topic") };
        let topics = self.by_owner.get_mut(&owner);
        if topics.is_none_or(|topics| topics.pop_front().is_none() || topics.is_empty()) {
            self.owners.pop_front();
            self.by_owner.remove(&owner);
        }
    }

    /// Ends the turn of the first owner.
    pub(super) fn end_turn(&mut self, owner: u32) {
        if self.owners.front() == Some(&owner) {
            self.owners.rotate_left(1);
        }
    }

    /// Removes a topic. O(topics of its owner); O(1) for the owner's first one, except that an owner without topics takes O(owners).
    pub(super) fn remove(&mut self, owner: u32, id: TopicId) {
        let Some(topics) = self.by_owner.get_mut(&owner) else {
            return debug_assert!(false, "a topic is listed at its owner");
        };
        let at = topics.iter().position(|&topic| topic == id);
        debug_assert!(at.is_some(), "a topic is listed at its owner");
        if let Some(at) = at {
            topics.remove(at);
        }
        if topics.is_empty() {
            self.by_owner.remove(&owner);
            if let Some(at) = self.owners.iter().position(|&other| other == owner) {
                self.owners.remove(at);
            }
        }
    }

    /// The topics with their owners, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, TopicId)> {
        self.by_owner.iter().flat_map(|(&owner, topics)| topics.iter().map(move |&id| (owner, id)))
    }

    /// Number of owners with topics.
    pub(super) fn owners_len(&self) -> usize {
        debug_assert_eq!(self.owners.len(), self.by_owner.len(), "each owner with topics has its turn");
        self.owners.len()
    }

    /// Bytes of heap memory.
    pub(super) fn heap_bytes(&self) -> usize {
        let topics: usize = self.by_owner.values().map(VecDeque::capacity).sum();
        self.owners.capacity() * size_of::<u32>()
            + self.by_owner.capacity() * size_of::<(u32, VecDeque<TopicId>)>()
            + topics * size_of::<TopicId>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_take_turns_and_each_ones_topics_come_in_order() {
        let mut order = Order::default();
        for (owner, topics) in [(7, 0..3), (8, 10..11), (9, 20..22)] {
            topics.for_each(|id| order.push_back(owner, TopicId(id)));
        }
        order.remove(9, TopicId(20));
        let mut served = Vec::new();
        while let Some(&id) = order.front() {
            let owner = [7, 8, 9][(id.0 / 10) as usize];
            served.push(id.0);
            order.pop_front();
            order.end_turn(owner);
        }
        assert_eq!(served, [0, 10, 21, 1, 2]);
        order.push_back(7, TopicId(1));
        order.push_back(8, TopicId(2));
        order.end_turn(7);
        assert_eq!(order.front(), Some(&TopicId(2)), "one that is not done waits for the others");
        assert!(order.heap_bytes() > 0);
        order.remove(7, TopicId(1));
        order.remove(8, TopicId(2));
        assert!(order.front().is_none() && order.owners.is_empty() && order.by_owner.is_empty());
    }
}
