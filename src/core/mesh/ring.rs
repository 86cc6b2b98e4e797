//! A bounded SPSC ring of native frames, and the doorbell that wakes a parked shard.
//!
//! The ring holds bytes, not messages: its bound is memory, a frame is copied into it once and read in place, and one
//! push moves a whole batch. The consumer reassembles frames that wrap.

use std::sync::Arc;

use crate::{
    limits::FRAME_ALIGN,
    mesh::sync::{
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst, fence},
        rtrb,
    },
};
use tickcast_proto::{
    Step,
    frame::{self, Frame},
};

/// Creates a ring of `bytes`, rounded up to a multiple of 16. It must hold the longest frame.
pub fn frame_ring(bytes: usize) -> (FrameProducer, FrameConsumer) {
    let capacity = bytes.next_multiple_of(FRAME_ALIGN);
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    let starved = Starved::default();
    (
        FrameProducer { ring: producer, capacity, waiting_max: capacity, starved: starved.clone() },
        FrameConsumer { ring: consumer, starved, straddling: Vec::new() },
    )
}

/// A flag that a producer sets when its ring is full: the consumer must ring the producer's doorbell once there is room.
///
/// The producer sets it first, then tries to push again; the consumer makes room first, then checks it. One of the two
/// sees the other's write.
#[derive(Clone, Debug)]
pub(super) struct Starved(Arc<AtomicBool>);

impl Default for Starved {
    fn default() -> Starved {
        Starved(Arc::new(AtomicBool::new(false)))
    }
}

impl Starved {
    /// Sets the flag. Called by the producer, between two attempts to push.
    pub(super) fn announce(&self) {
        // A swap for the reason given in `Doorbell::sleep`.
        self.0.swap(true, SeqCst);
        fence(SeqCst);
    }

    /// Clears the flag, and returns whether it was set. Called by the consumer, after it has made room.
    pub(super) fn take(&self) -> bool {
        fence(SeqCst);
        self.0.load(SeqCst) && self.0.swap(false, SeqCst)
    }
}

/// The producer end. Single-threaded.
#[derive(Debug)]
pub struct FrameProducer {
    ring: rtrb::Producer<u8>,
    capacity: usize,
    /// Bytes that may wait in the ring for the consumer before more are added. A frame that is longer is added whole.
    waiting_max: usize,
    starved: Starved,
}

impl FrameProducer {
    /// Leaves frames staged once `bytes` wait in the ring, because nothing can overtake frames in the ring.
    pub fn limit_waiting(&mut self, bytes: usize) {
        self.waiting_max = bytes.min(self.capacity);
    }

    /// Moves as many whole frames of `stage` as there is room for. Returns whether anything moved: the caller then rings the doorbell once.
    pub fn push(&mut self, stage: &mut Stage) -> bool {
        let moved = self.push_some(stage);
        if stage.waiting().is_empty() {
            return moved;
        }
        self.starved.announce();
        self.push_some(stage) || moved
    }

    fn push_some(&mut self, stage: &mut Stage) -> bool {
        debug_assert!(stage.first_len() <= self.capacity, "the ring holds the longest frame");
        let unread = self.capacity - self.ring.slots();
        let room = match unread {
            // Whatever its length.
            0 => self.waiting_max.max(stage.first_len()),
            _ => self.waiting_max.saturating_sub(unread),
        };
        let (pushed, _) = self.ring.push_partial_slice(stage.whole_frames(room));
        let pushed = pushed.len();
        stage.consume(pushed);
        pushed > 0
    }
}

/// The consumer end. Single-threaded.
#[derive(Debug)]
pub struct FrameConsumer {
    ring: rtrb::Consumer<u8>,
    starved: Starved,
    /// A frame that wraps around the end of the ring, reassembled. Bound: the longest frame.
    straddling: Vec<u8>,
}

impl FrameConsumer {
    /// Unread bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.ring.slots()
    }

    /// Whether there is no complete frame.
    pub fn is_empty(&mut self) -> bool {
        let slots = self.ring.slots();
        let Ok(chunk) = self.ring.read_chunk(slots) else {
            debug_assert!(false, "the only consumer finds the bytes it has just counted");
            return true;
        };
        // A length never wraps: frames start at multiples of 16 in a ring of a multiple of 16.
        let len = chunk.as_slices().0.first_chunk::<4>().map(|len| u32::from_le_bytes(*len) as usize);
        len.is_none_or(|len| len > slots)
    }

    /// Whether the producer waits for room. Call after a drain, then ring its doorbell.
    pub fn producer_waits(&self) -> bool {
        self.starved.take()
    }

    /// Passes whole frames to `take`, in order, until `bytes_max` are read, the ring is empty, or `take` returns `false`:
    /// that frame stays. Returns the bytes read. Allocates only for frames that wrap.
    pub fn drain(&mut self, bytes_max: usize, mut take: impl FnMut(&Frame<'_>) -> bool) -> usize {
        let Ok(chunk) = self.ring.read_chunk(self.ring.slots()) else {
            debug_assert!(false, "the only consumer finds the bytes it has just counted");
            return 0;
        };
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

/// Length of the frame at the front of `frames`, bytes; 0 if there is none.
fn frame_len(frames: &[u8]) -> usize {
    frames.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len) as usize)
}

/// Frames waiting for room in a ring, in order.
///
/// Bound: [`crate::limits::MESH_STAGE_BYTES`], plus what one request, one turn's scan of topics, or the end of sessions
/// adds. Before the first two, the caller checks [`Stage::has_room`].
///
/// Invariant: `start` is 0, or less than the length of `bytes` and at most [`crate::limits::MESH_STAGE_BYTES`].
#[derive(Debug, Default)]
pub struct Stage {
    bytes: Vec<u8>,
    start: usize,
}

impl Stage {
    /// The buffer to append whole frames to.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The waiting bytes, in order.
    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Length of the first frame, bytes; 0 without one.
    fn first_len(&self) -> usize {
        frame_len(self.waiting())
    }

    /// The first waiting frames, as many as take at most `bytes_max`. O(frames) if that is not all of them.
    fn whole_frames(&self, bytes_max: usize) -> &[u8] {
        let waiting = self.waiting();
        if waiting.len() <= bytes_max {
            return waiting;
        }
        let mut len = 0;
        loop {
            let next = len + frame_len(&waiting[len..]);
            if next == len || next > bytes_max {
                return &waiting[..len];
            }
            len = next;
        }
    }

    /// Whether another request may add frames.
    pub fn has_room(&self) -> bool {
        self.bytes.len() - self.start < crate::limits::MESH_STAGE_BYTES
    }

    /// Whether it is at most half full.
    pub fn is_half_empty(&self) -> bool {
        self.bytes.len() - self.start <= crate::limits::MESH_STAGE_BYTES / 2
    }

    /// Removes the first `len` bytes.
    pub fn consume(&mut self, len: usize) {
        debug_assert!(len <= self.waiting().len(), "only waiting bytes are consumed");
        self.start += len;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start > crate::limits::MESH_STAGE_BYTES {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.invariants();
    }

    /// Asserts the invariant, in debug builds after each change.
    fn invariants(&self) {
        debug_assert!(self.start <= crate::limits::MESH_STAGE_BYTES, "consumed bytes are dropped in time");
        debug_assert!(
            self.start == 0 || self.start < self.bytes.len(),
            "an empty stage keeps no consumed bytes"
        );
    }
}

/// How a shard sleeps, and so what wakes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Sleep {
    /// It is awake: nothing needs to wake it.
    Awake = 0,
    /// It waits for its latency budget: ticks do not wake it, everything else does.
    Within = 1,
    /// It is idle: everything wakes it.
    Idle = 2,
}

/// Wakes a parked shard. The shard announces that it will sleep, checks every ring once more, and only then sleeps; a
/// producer pushes first and checks for a sleeper after. One of the two checks sees the other side's write.
///
/// No system call while the shard is awake.
pub struct Doorbell {
    /// A [`Sleep`].
    sleep: AtomicU8,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Doorbell {
    /// Creates a doorbell; `wake` ends the shard's park, for example by a write to its eventfd.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Doorbell {
        Doorbell { sleep: AtomicU8::new(Sleep::Awake as u8), wake: Box::new(wake) }
    }

    /// Wakes the shard if it sleeps. Call after a push, once per batch; from any thread.
    pub fn ring(&self) {
        fence(SeqCst);
        if self.sleep.load(SeqCst) != Sleep::Awake as u8 {
            self.wake_once();
        }
    }

    /// Like [`Doorbell::ring`], after a push of ticks only, which need not wake a shard that waits for its latency budget.
    pub fn ring_for_ticks(&self) {
        fence(SeqCst);
        if self.sleep.load(SeqCst) == Sleep::Idle as u8 {
            self.wake_once();
        }
    }

    fn wake_once(&self) {
        if self.sleep.swap(Sleep::Awake as u8, SeqCst) != Sleep::Awake as u8 {
            (self.wake)();
        }
    }

    /// Announces sleep and calls `look_and_wait`, which checks once more for everything that could wake the shard, and waits
    /// for `wake` only if there is nothing. Called by the shard.
    ///
    /// # Errors
    /// What `look_and_wait` returns.
    pub fn sleep<E>(&self, look_and_wait: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        self.announce(Sleep::Idle, look_and_wait)
    }

    /// Like [`Doorbell::sleep`], for a wait with a timeout: ticks that arrive meanwhile do not wake the shard.
    ///
    /// # Errors
    /// What `look_and_wait` returns.
    pub fn sleep_within_budget<E>(&self, look_and_wait: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        self.announce(Sleep::Within, look_and_wait)
    }

    fn announce<E>(&self, sleep: Sleep, look_and_wait: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        // A swap, because loom orders it after the other side's swaps. (For a plain store loom would also try the value of
        // an older swap, which the memory model rules out. On x86 a sequentially consistent store is a swap anyway.)
        self.sleep.swap(sleep as u8, SeqCst);
        fence(SeqCst);
        let waited = look_and_wait();
        self.sleep.store(Sleep::Awake as u8, SeqCst);
        waited
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorbell").field("sleep", &self.sleep).finish_non_exhaustive()
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
    fn frames_beyond_the_limit_stay_staged_and_a_longer_one_crosses_alone() {
        let (mut producer, mut consumer) = frame_ring(1 << 10);
        producer.limit_waiting(128);
        let mut stage = Stage::default();
        for text_len in [0, 0, 0, 0, 300, 0] {
            encode_request(stage.tail(), Kind::Subscribe, 1, &"x".repeat(text_len));
        }
        let mut crossed = Vec::new();
        while !stage.waiting().is_empty() {
            assert!(producer.push(&mut stage), "an empty ring takes a frame");
            let mut lens = Vec::new();
            consumer.drain(usize::MAX, |frame| {
                lens.push(frame.payload().len());
                true
            });
            crossed.push(lens);
        }
        assert_eq!(crossed, [vec![0, 0], vec![0, 0], vec![300], vec![0]]);
        assert!(consumer.producer_waits());
    }

    #[test]
    fn a_frame_not_taken_stays_in_the_ring() {
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
    fn a_doorbell_wakes_only_a_sleeper_and_only_once() {
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

    #[test]
    fn ticks_wake_an_idle_shard_and_not_one_within_its_latency_budget() {
        let woken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = woken.clone();
        let bell = Doorbell::new(move || {
            count.fetch_add(1, SeqCst);
        });
        let wakes = |within: bool, ring: fn(&Doorbell)| {
            let look = || {
                ring(&bell);
                Ok::<(), ()>(())
            };
            let slept = if within { bell.sleep_within_budget(look) } else { bell.sleep(look) };
            assert_eq!(slept, Ok(()));
            woken.swap(0, SeqCst)
        };
        assert_eq!(wakes(false, Doorbell::ring_for_ticks), 1);
        assert_eq!(wakes(true, Doorbell::ring_for_ticks), 0);
        assert_eq!(wakes(true, Doorbell::ring), 1);
    }
}
