//! A stand-in for rtrb in loom builds, because loom sees only its own atomics.
//!
//! It has rtrb's two positions with rtrb's orderings, and caches them as rtrb does: each end loads the other's position only
//! where rtrb would, and may use a stale one. The items are not modelled: rtrb guarantees that they are visible once the
//! position is.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Release},
};

/// Creates the two ends.
#[derive(Debug)]
pub struct RingBuffer;

impl RingBuffer {
    /// Creates a ring of `capacity` items.
    #[expect(clippy::new_ret_no_self, reason = "rtrb's signature")]
    pub fn new<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
        let shared = Arc::new(Shared {
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            items: Mutex::new((0..capacity).map(|_| None).collect()),
            capacity,
        });
        (
            Producer { shared: shared.clone(), head: Cell::new(0), tail: 0 },
            Consumer { shared, head: 0, tail: Cell::new(0) },
        )
    }
}

/// Positions count from 0 and do not wrap: a model run is far too short for that.
#[derive(Debug)]
struct Shared<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    /// A std mutex, so that locking is not a step of the model. `None`: an empty slot.
    items: Mutex<Vec<Option<T>>>,
    capacity: usize,
}

impl<T> Shared<T> {
    fn items(&self) -> MutexGuard<'_, Vec<Option<T>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The producer end.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// The consumer's position when last loaded.
    head: Cell<usize>,
    tail: usize,
}

/// The ring is full; returns the item.
#[derive(Debug)]
pub enum PushError<T> {
    /// The same name as in rtrb.
    Full(T),
}

impl<T> Producer<T> {
    /// Writes one item.
    ///
    /// # Errors
    /// The item, if the ring is full.
    pub fn push(&mut self, item: T) -> Result<(), PushError<T>> {
        let capacity = self.shared.capacity;
        if self.tail - self.head.get() == capacity && self.slots() == 0 {
            return Err(PushError::Full(item));
        }
        self.shared.items()[self.tail % capacity] = Some(item);
        self.tail += 1;
        self.shared.tail.store(self.tail, Release);
        Ok(())
    }

    /// Free slots, from the consumer's position as it is now.
    pub fn slots(&self) -> usize {
        self.head.set(self.shared.head.load(Acquire));
        self.room()
    }

    /// Free slots, from the consumer's position as last loaded.
    fn room(&self) -> usize {
        self.shared.capacity - (self.tail - self.head.get())
    }
}

impl Producer<u8> {
    /// Writes as much as fits. Returns the written part and the rest.
    pub fn push_partial_slice<'a>(&mut self, slice: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let room = if self.room() < slice.len() { self.slots() } else { self.room() };
        let (pushed, left) = slice.split_at(slice.len().min(room));
        let mut items = self.shared.items();
        for (at, &byte) in (self.tail..).zip(pushed) {
            items[at % self.shared.capacity] = Some(byte);
        }
        drop(items);
        self.tail += pushed.len();
        self.shared.tail.store(self.tail, Release);
        (pushed, left)
    }
}

/// The consumer end.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// The producer's position when last loaded.
    tail: Cell<usize>,
}

/// The ring is empty.
#[derive(Debug)]
pub struct PopError;

/// The ring holds fewer bytes than requested.
#[derive(Debug)]
pub struct ChunkError;

impl<T> Consumer<T> {
    /// Removes one item.
    ///
    /// # Errors
    /// If there is none.
    pub fn pop(&mut self) -> Result<T, PopError> {
        if self.is_empty() {
            return Err(PopError);
        }
        let item = self.shared.items()[self.head % self.shared.capacity].take();
        self.head += 1;
        self.shared.head.store(self.head, Release);
        item.ok_or(PopError)
    }

    /// Whether there is no item. Loads the producer's position only if the cached one shows none.
    pub fn is_empty(&self) -> bool {
        if self.tail.get() == self.head {
            self.tail.set(self.shared.tail.load(Acquire));
        }
        self.tail.get() == self.head
    }
}

impl Consumer<u8> {
    /// Bytes in the ring, from the producer's position as it is now.
    pub fn slots(&self) -> usize {
        self.tail.set(self.shared.tail.load(Acquire));
        self.tail.get() - self.head
    }

    /// Returns the next `n` bytes.
    ///
    /// # Errors
    /// If fewer are available.
    pub fn read_chunk(&mut self, n: usize) -> Result<ReadChunk<'_>, ChunkError> {
        if self.tail.get() - self.head < n && self.slots() < n {
            return Err(ChunkError);
        }
        let start = self.head % self.shared.capacity;
        let first_len = n.min(self.shared.capacity - start);
        let items = self.shared.items();
        let copy = |slots: &[Option<u8>]| slots.iter().flatten().copied().collect::<Vec<u8>>();
        let (first, second) = (copy(&items[start..start + first_len]), copy(&items[..n - first_len]));
        drop(items);
        Ok(ReadChunk { consumer: self, first, second })
    }
}

/// Bytes being read.
#[derive(Debug)]
pub struct ReadChunk<'a> {
    consumer: &'a mut Consumer<u8>,
    first: Vec<u8>,
    second: Vec<u8>,
}

impl ReadChunk<'_> {
    /// The bytes up to the ring's end, and those from its beginning.
    pub fn as_slices(&self) -> (&[u8], &[u8]) {
        (&self.first, &self.second)
    }

    /// Frees the room of the first `n` bytes for the producer.
    pub fn commit(self, n: usize) {
        self.consumer.head += n;
        self.consumer.shared.head.store(self.consumer.head, Release);
    }
}
