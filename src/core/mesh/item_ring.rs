//! A bounded SPSC ring of owned items, such as connections on their way from one shard to another.
//!
//! It follows the protocol of [`super::ring`]: the producer pushes, then rings the consumer's [`Doorbell`]. A producer
//! that finds the ring full sets a flag, and the consumer rings the producer's doorbell once it has made room.
//!
//! [`Doorbell`]: super::ring::Doorbell

use std::collections::VecDeque;

use super::{ring::Starved, sync::rtrb};

/// Creates a ring for `capacity` items.
pub fn item_ring<T>(capacity: usize) -> (ItemProducer<T>, ItemConsumer<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let starved = Starved::default();
    (
        ItemProducer { ring: producer, capacity, starved: starved.clone() },
        ItemConsumer { ring: consumer, starved },
    )
}

/// The producer end. Single-threaded.
#[derive(Debug)]
pub struct ItemProducer<T> {
    ring: rtrb::Producer<T>,
    capacity: usize,
    starved: Starved,
}

impl<T> ItemProducer<T> {
    /// Items that the consumer has not taken yet.
    pub fn len(&self) -> usize {
        self.capacity - self.ring.slots()
    }

    /// Whether the consumer has taken every item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves items from the front of `waiting` while they fit. Returns whether any moved: the caller then rings the
    /// consumer's doorbell once. If some are left, the consumer rings the producer's once there is room.
    pub fn push(&mut self, waiting: &mut VecDeque<T>) -> bool {
        let moved = self.push_some(waiting);
        if waiting.is_empty() {
            return moved;
        }
        self.starved.announce();
        self.push_some(waiting) || moved
    }

    fn push_some(&mut self, waiting: &mut VecDeque<T>) -> bool {
        let mut moved = false;
        while let Some(next) = waiting.pop_front() {
            if let Err(rtrb::PushError::Full(back)) = self.ring.push(next) {
                waiting.push_front(back);
                break;
            }
            moved = true;
        }
        moved
    }
}

/// The consumer end. Single-threaded.
#[derive(Debug)]
pub struct ItemConsumer<T> {
    ring: rtrb::Consumer<T>,
    starved: Starved,
}

impl<T> ItemConsumer<T> {
    /// The next item.
    pub fn pop(&mut self) -> Option<T> {
        self.ring.pop().ok()
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Whether the producer waits for room. Call after a pop, then ring the producer's doorbell.
    pub fn producer_waits(&self) -> bool {
        self.starved.take()
    }
}
