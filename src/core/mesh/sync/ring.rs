//! A stand-in for rtrb in loom builds, because loom sees only its own atomics.
//!
//! It has rtrb's two positions with rtrb's memory orderings, and caches them as rtrb does: an end loads the other's position
//! only where rtrb would, and may see an old one. The bytes are not modelled: rtrb itself guarantees that they are there
//! when the position says so.

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
    /// Creates a ring of `capacity` bytes.
    #[expect(clippy::new_ret_no_self, reason = "as rtrb has it")]
    pub fn new(capacity: usize) -> (Producer<u8>, Consumer<u8>) {
        let shared = Arc::new(Shared {
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            bytes: Mutex::new(vec![0; capacity]),
            capacity,
        });
        (
            Producer { shared: shared.clone(), head: 0, tail: 0 },
            Consumer { shared, head: 0, tail: Cell::new(0) },
        )
    }
}

/// Positions count from 0 and do not wrap: a model run is far too short for that.
#[derive(Debug)]
struct Shared<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    /// A std mutex: locking it is not a step of the model.
    bytes: Mutex<Vec<T>>,
    capacity: usize,
}

impl<T> Shared<T> {
    fn bytes(&self) -> MutexGuard<'_, Vec<T>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The producer end.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// The consumer's position when last loaded.
    head: usize,
    tail: usize,
}

impl Producer<u8> {
    /// Writes as much as fits. Returns the written part and the rest.
    pub fn push_partial_slice<'a>(&mut self, slice: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let room = |producer: &Producer<u8>| producer.shared.capacity - (producer.tail - producer.head);
        if room(self) < slice.len() {
            self.head = self.shared.head.load(Acquire);
        }
        let (pushed, left) = slice.split_at(slice.len().min(room(self)));
        let mut bytes = self.shared.bytes();
        for (at, &byte) in (self.tail..).zip(pushed) {
            bytes[at % self.shared.capacity] = byte;
        }
        drop(bytes);
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

/// Fewer bytes are available than requested.
#[derive(Debug)]
pub struct ChunkError;

impl Consumer<u8> {
    /// Loads the producer's position and returns the number of bytes available.
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
        let bytes = self.shared.bytes();
        let (first, second) = (bytes[start..start + first_len].to_vec(), bytes[..n - first_len].to_vec());
        drop(bytes);
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
    /// Returns the bytes up to the end of the ring, and those that wrapped to its start.
    pub fn as_slices(&self) -> (&[u8], &[u8]) {
        (&self.first, &self.second)
    }

    /// Frees the first `n` bytes for the producer.
    pub fn commit(self, n: usize) {
        self.consumer.head += n;
        self.consumer.shared.head.store(self.consumer.head, Release);
    }
}
