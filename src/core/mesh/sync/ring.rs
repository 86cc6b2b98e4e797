//! A stand-in for rtrb in builds for loom, which sees only its own atomics.
//!
//! It has rtrb's two positions, with rtrb's orderings, and keeps them at hand as rtrb does: an end looks at the other's
//! position only where rtrb would, and may see an old one. The bytes are not modelled: that they are there when the
//! position says so is rtrb's own promise.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Release},
};

/// Makes the two ends.
#[derive(Debug)]
pub struct RingBuffer;

impl RingBuffer {
    /// A ring of `capacity` bytes.
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

/// Positions count from the beginning and do not wrap: a model ends long before they would.
#[derive(Debug)]
struct Shared<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    /// Not loom's: taking it is no step of the model.
    bytes: Mutex<Vec<T>>,
    capacity: usize,
}

impl<T> Shared<T> {
    fn bytes(&self) -> MutexGuard<'_, Vec<T>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// The reader's position as last seen.
    head: usize,
    tail: usize,
}

impl Producer<u8> {
    /// Writes as much as fits. Returns what was written and what was not.
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

/// The reading end.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// The writer's position as last seen.
    tail: Cell<usize>,
}

/// Fewer bytes are there than were asked for.
#[derive(Debug)]
pub struct ChunkError;

impl Consumer<u8> {
    /// Bytes there are to be read, by a look at the writer's position.
    pub fn slots(&self) -> usize {
        self.tail.set(self.shared.tail.load(Acquire));
        self.tail.get() - self.head
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// When there are fewer.
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

/// Bytes that are being read.
#[derive(Debug)]
pub struct ReadChunk<'a> {
    consumer: &'a mut Consumer<u8>,
    first: Vec<u8>,
    second: Vec<u8>,
}

impl ReadChunk<'_> {
    /// Up to the ring's end, and from its beginning.
    pub fn as_slices(&self) -> (&[u8], &[u8]) {
        (&self.first, &self.second)
    }

    /// Gives the room of the first `n` back to the writer.
    pub fn commit(self, n: usize) {
        self.consumer.head += n;
        self.consumer.shared.head.store(self.consumer.head, Release);
    }
}
