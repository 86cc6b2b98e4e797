//! What connects executors: a bounded SPSC ring of native frames, and the doorbell that wakes a parked shard.
//!
//! A ring holds bytes, not messages: its bound is memory, a frame is copied once into it and read in place, and one
//! push moves a whole batch. Whole frames are put together again at the reading end.

use std::sync::Arc;

use crate::{
    limits::FRAME_ALIGN,
    mesh::sync::{
        atomic::{AtomicBool, Ordering::SeqCst, fence},
        rtrb,
    },
};
use tickcast_proto::{
    Step,
    frame::{self, Frame},
};

/// Makes a ring of `bytes` (rounded up to a multiple of 16), which must hold the longest frame.
pub fn frame_ring(bytes: usize) -> (FrameProducer, FrameConsumer) {
    let (producer, consumer) = rtrb::RingBuffer::new(bytes.next_multiple_of(FRAME_ALIGN));
    let starved = Arc::new(AtomicBool::new(false));
    (
        FrameProducer { ring: producer, starved: starved.clone() },
        FrameConsumer { ring: consumer, starved, straddling: Vec::new() },
    )
}

/// The writing end; one thread.
#[derive(Debug)]
pub struct FrameProducer {
    ring: rtrb::Producer<u8>,
    /// Something did not fit: the reader is to ring when it has made room.
    starved: Arc<AtomicBool>,
}

impl FrameProducer {
    /// Moves as much of `stage` as fits. Returns whether anything moved: then the doorbell is due, once.
    pub fn push(&mut self, stage: &mut Stage) -> bool {
        let moved = self.push_some(stage);
        if stage.waiting().is_empty() {
            return moved;
        }
        // Say so first, then try again: the reader makes room first, then looks. One of the two sees the other.
        // A swap for the reason given in `Doorbell::sleep`.
        self.starved.swap(true, SeqCst);
        fence(SeqCst);
        self.push_some(stage) || moved
    }

    fn push_some(&mut self, stage: &mut Stage) -> bool {
        let (pushed, _) = self.ring.push_partial_slice(stage.waiting());
        let pushed = pushed.len();
        stage.consume(pushed);
        pushed > 0
    }
}

/// The reading end; one thread.
#[derive(Debug)]
pub struct FrameConsumer {
    ring: rtrb::Consumer<u8>,
    starved: Arc<AtomicBool>,
    /// A frame that wraps around the ring's end, put together. Bound: the longest frame.
    straddling: Vec<u8>,
}

impl FrameConsumer {
    /// Bytes in it that were not read.
    pub fn waiting_bytes(&self) -> usize {
        self.ring.slots()
    }

    /// Whether there is no whole frame to be read. (The producer rings again when it brings the rest of one.)
    pub fn is_empty(&mut self) -> bool {
        let slots = self.ring.slots();
        let Ok(chunk) = self.ring.read_chunk(slots) else { return true };
        // A length never wraps: frames start at multiples of 16 in a ring of a multiple of 16.
        let len = chunk.as_slices().0.first_chunk::<4>().map(|len| u32::from_le_bytes(*len) as usize);
        len.is_none_or(|len| len > slots)
    }

    /// After a drain: whether the producer waits for room, and so its doorbell is due.
    pub fn producer_waits(&self) -> bool {
        fence(SeqCst);
        self.starved.load(SeqCst) && self.starved.swap(false, SeqCst)
    }

    /// Hands whole frames to `take`, in order, until `bytes_max` are read, the ring is empty, or `take` returns
    /// `false`: that frame then stays. Returns the bytes read. No allocation but for frames that wrap.
    pub fn drain(&mut self, bytes_max: usize, mut take: impl FnMut(&Frame<'_>) -> bool) -> usize {
        let Ok(chunk) = self.ring.read_chunk(self.ring.slots()) else { return 0 };
        let (first, second) = chunk.as_slices();
        let total = first.len() + second.len();
        let mut at = 0;
        while at < bytes_max && at < total {
            // Frames start at multiples of 16 in a ring of a multiple of 16, so a length never wraps.
            let head = if at < first.len() { &first[at..] } else { &second[at - first.len()..] };
            let Some(len) = head.first_chunk::<4>().map(|len| u32::from_le_bytes(*len) as usize) else {
                break;
            };
            if at + len > total {
                break;
            }
            let bytes = match head.get(..len) {
                Some(bytes) => bytes,
                None => {
                    self.straddling.clear();
                    self.straddling.extend_from_slice(head);
                    self.straddling.extend_from_slice(&second[..len - head.len()]);
                    &self.straddling
                }
            };
            let Ok(Step::Complete(_, frame)) = frame::decode(bytes, usize::MAX) else {
                unreachable!("only frames this process encoded go into a ring");
            };
            if !take(&frame) {
                break;
            }
            at += len;
        }
        chunk.commit(at);
        at
    }
}

/// Frames waiting for room in a ring, in order.
///
/// Bound: [`crate::limits::MESH_STAGE_BYTES`], and what one more request, one turn's walk over topics, or the sessions
/// that end add; whoever fills it with the first two asks [`Stage::has_room`] before.
#[derive(Debug, Default)]
pub struct Stage {
    bytes: Vec<u8>,
    start: usize,
}

impl Stage {
    /// Where frames are appended, whole.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What waits, in order.
    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Whether another request may add to it.
    pub fn has_room(&self) -> bool {
        self.bytes.len() - self.start < crate::limits::MESH_STAGE_BYTES
    }

    /// Forgets the first `len` bytes.
    pub fn consume(&mut self, len: usize) {
        self.start += len;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start > crate::limits::MESH_STAGE_BYTES {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}

/// Wakes a parked shard. The shard announces that it will sleep, looks at every ring once more, and only then
/// sleeps; a producer pushes first and looks for a sleeper after. Of the two looks, one sees the other's write.
///
/// No syscall while the shard is awake.
pub struct Doorbell {
    asleep: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Doorbell {
    /// `wake` makes a shard return from its park: a write to its eventfd.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Doorbell {
        Doorbell { asleep: AtomicBool::new(false), wake: Box::new(wake) }
    }

    /// After a push, from any thread: one wake-up per batch, and only for a sleeper.
    pub fn ring(&self) {
        fence(SeqCst);
        if self.asleep.load(SeqCst) && self.asleep.swap(false, SeqCst) {
            (self.wake)();
        }
    }

    /// By the shard: announces sleep and calls `look_and_wait`, which looks once more at everything it could be woken
    /// for, and waits for `wake` only if there is nothing.
    ///
    /// # Errors
    /// What `look_and_wait` returns.
    pub fn sleep<E>(&self, look_and_wait: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        // A swap, as a store of a flag that others swap would be one on x86 too: it follows their swaps in an order that
        // loom sees. (To a store loom would prefer the value of an older swap, which the memory model rules out.)
        self.asleep.swap(true, SeqCst);
        fence(SeqCst);
        let waited = look_and_wait();
        self.asleep.store(false, SeqCst);
        waited
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorbell").field("asleep", &self.asleep).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::{command::encode_request, frame::Kind};

    #[test]
    fn frames_of_every_size_cross_a_small_ring_in_order() {
        let (mut producer, mut consumer) = frame_ring(256);
        let mut stage = Stage::default();
        let mut got = 0u32;
        for sent in 0..500u32 {
            encode_request(stage.tail(), Kind::Subscribe, sent, &"x".repeat(sent as usize % 150));
            producer.push(&mut stage);
            consumer.drain(usize::MAX, |frame| {
                assert_eq!(frame.record::<tickcast_proto::records::Request>().unwrap().request, got);
                assert_eq!(frame.payload().len(), got as usize % 150);
                got += 1;
                true
            });
        }
        while producer.push(&mut stage) {
            consumer.drain(usize::MAX, |_| {
                got += 1;
                true
            });
        }
        assert_eq!(got, 500);
    }

    #[test]
    fn a_frame_not_taken_stays() {
        let (mut producer, mut consumer) = frame_ring(1024);
        let mut stage = Stage::default();
        for request in 0..3 {
            encode_request(stage.tail(), Kind::Subscribe, request, "a");
        }
        assert!(producer.push(&mut stage));
        let mut taken = 0;
        consumer.drain(usize::MAX, |_| {
            taken += 1;
            taken < 2
        });
        let mut rest = 0;
        consumer.drain(usize::MAX, |_| {
            rest += 1;
            true
        });
        assert_eq!((taken, rest), (2, 2));
    }

    #[test]
    fn only_a_sleeper_is_woken_and_only_once() {
        let woken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = woken.clone();
        let bell = Doorbell::new(move || {
            count.fetch_add(1, SeqCst);
        });
        bell.ring();
        let slept = bell.sleep(|| {
            bell.ring();
            bell.ring();
            Ok::<(), ()>(())
        });
        bell.ring();
        assert_eq!(slept, Ok(()));
        assert_eq!(woken.load(SeqCst), 1);
    }
}
