//! The sessions of one shard, by slot, and the queues they stand in.

use std::collections::VecDeque;

use crate::{
    egress_log::{EgressLog, Mark, Range},
    ids::SlotId,
    limits::OUTBOX_RANGES_MAX,
    session::{CloseReason, Next, Session},
};

/// What became of shared frames that were offered to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// They are queued.
    Queued,
    /// The session is behind: whether they are to be queued depends on the subscription.
    Behind,
    /// The session is about to end.
    Gone,
}

/// What a session was told that it does not get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Ticks that a newer one stands for.
    pub conflated: u64,
    /// Ticks that are lost to it.
    pub dropped: u64,
}

/// All sessions of a shard.
///
/// Invariant: a session with work and no SEND under way stands in `ready` or `lagging`, once.
/// Invariant: `waiting` counts the sessions whose outbox is not empty.
#[derive(Debug)]
pub struct Sessions {
    slots: Vec<Option<Box<Session>>>,
    open: usize,
    waiting: usize,
    outbox_bytes_max: usize,
    behind_bytes: usize,
    /// Sessions past what may wait for them. Bound: one entry a session.
    over: Vec<SlotId>,
    /// Bound: one entry a session.
    ready: VecDeque<SlotId>,
    /// Sessions that are ready but must first be given what they are behind with. Bound: one entry a session.
    lagging: VecDeque<SlotId>,
    /// Sessions found out while others were being served: ended when the round is over.
    doomed: Vec<(SlotId, CloseReason)>,
    /// By slot, as far as a session was ever told of any. 16 bytes each.
    left_out: Vec<LeftOut>,
}

impl Sessions {
    /// No session; each may have `outbox_bytes_max` waiting, and `behind_bytes` before what yields is taken out.
    pub fn new(outbox_bytes_max: usize, behind_bytes: usize) -> Sessions {
        Sessions {
            slots: Vec::new(),
            open: 0,
            waiting: 0,
            outbox_bytes_max,
            behind_bytes,
            over: Vec::new(),
            ready: VecDeque::new(),
            lagging: VecDeque::new(),
            doomed: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Holds every session to other bounds from now on. A pass over the sessions, unless they are the same.
    pub fn set_bounds(&mut self, outbox_bytes_max: usize, behind_bytes: usize) {
        if (outbox_bytes_max, behind_bytes) == (self.outbox_bytes_max, self.behind_bytes) {
            return;
        }
        (self.outbox_bytes_max, self.behind_bytes) = (outbox_bytes_max, behind_bytes);
        for slot in self.slots() {
            self.set_yield_bytes(slot);
        }
    }

    /// Sessions there are, those about to end included.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Sessions with something to send.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Slots that were ever in use: all there are is below.
    pub fn slots_len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// What the session in a slot was told that it does not get.
    pub fn left_out(&self, slot: SlotId) -> LeftOut {
        self.left_out.get(slot.index()).copied().unwrap_or_default()
    }

    /// The session in a slot is told that it does not get so many ticks.
    pub fn leave_out(&mut self, slot: SlotId, conflated: u64, dropped: u64) {
        let at = slot.index();
        if self.left_out.len() <= at {
            self.left_out.resize(at + 1, LeftOut::default());
        }
        self.left_out[at].conflated += conflated;
        self.left_out[at].dropped += dropped;
    }

    /// Bytes of what was left out.
    pub fn left_out_bytes(&self) -> usize {
        self.left_out.capacity() * size_of::<LeftOut>()
    }

    /// Slots in use, ascending.
    pub fn slots(&self) -> Vec<SlotId> {
        (0..self.slots.len() as u32).map(SlotId).filter(|&slot| self.slots[slot.index()].is_some()).collect()
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slots.iter().flatten().map(|session| &**session)
    }

    /// Puts a session into a vacant slot.
    pub fn insert(&mut self, slot: SlotId, mut session: Session) {
        session.yield_bytes = self.outbox_bytes_max;
        if self.slots.len() <= slot.index() {
            self.slots.resize_with(slot.index() + 1, || None);
        }
        assert!(
            self.slots[slot.index()].is_none(),
            "the transport gives out a slot again only after its close"
        );
        self.slots[slot.index()] = Some(Box::new(session));
        if let Some(left_out) = self.left_out.get_mut(slot.index()) {
            *left_out = LeftOut::default();
        }
        self.open += 1;
    }

    /// Takes a session out.
    pub fn remove(&mut self, slot: SlotId) -> Option<Box<Session>> {
        let session = self.slots.get_mut(slot.index())?.take()?;
        self.open -= 1;
        self.waiting -= usize::from(session.outbox_bytes() > 0);
        Some(session)
    }

    /// The session in a slot, to look at.
    pub fn get(&self, slot: SlotId) -> Option<&Session> {
        self.slots.get(slot.index())?.as_deref()
    }

    /// The session in a slot, even if it is about to end.
    pub fn any_mut(&mut self, slot: SlotId) -> Option<&mut Session> {
        self.slots.get_mut(slot.index())?.as_deref_mut()
    }

    /// The session in a slot, unless it is about to end.
    pub fn open_mut(&mut self, slot: SlotId) -> Option<&mut Session> {
        self.any_mut(slot).filter(|session| session.ending.is_none())
    }

    /// Offers shared frames to an open session that is not behind.
    pub fn offer(&mut self, slot: SlotId, log: &EgressLog, range: Range) -> Offered {
        self.offer_to(slot, log, range, false)
    }

    /// Queues shared frames to an open session; one past its bounds is noted for [`Sessions::pop_over`].
    pub fn push_range(&mut self, slot: SlotId, log: &EgressLog, range: Range) {
        self.offer_to(slot, log, range, true);
    }

    fn offer_to(&mut self, slot: SlotId, log: &EgressLog, range: Range, whatever: bool) -> Offered {
        let Some(session) = self.slots.get_mut(slot.index()).and_then(Option::as_deref_mut) else {
            return Offered::Gone;
        };
        if session.ending.is_some() {
            return Offered::Gone;
        }
        if session.behind && !whatever {
            return Offered::Behind;
        }
        self.waiting += usize::from(session.outbox_bytes() == 0);
        if !session.push_range(log, range) && !session.over {
            session.over = true;
            self.over.push(slot);
        }
        if !session.queued && !session.sending {
            self.make_ready(slot);
        }
        Offered::Queued
    }

    /// Queues a frame of a topic that only this session gets; otherwise as [`Sessions::push_range`].
    pub fn push_own(&mut self, slot: SlotId, mark: Mark, write: impl FnOnce(&mut Vec<u8>)) {
        let mut over = false;
        self.with_outbox(slot, |session| {
            if session.ending.is_none() {
                over = !session.push_own(mark, write) && !std::mem::replace(&mut session.over, true);
            }
        });
        if over {
            self.over.push(slot);
        }
    }

    /// The next session that has more waiting than it should.
    pub fn pop_over(&mut self) -> Option<SlotId> {
        let slot = self.over.pop()?;
        if let Some(session) = self.any_mut(slot) {
            session.over = false;
        }
        Some(slot)
    }

    /// Sets how much may wait before something must yield, by what the session takes. To be called as that changes, and
    /// once nothing waits.
    pub fn set_yield_bytes(&mut self, slot: SlotId) {
        let (outbox_bytes_max, behind_bytes) = (self.outbox_bytes_max, self.behind_bytes);
        let Some(session) = self.any_mut(slot) else { return };
        session.yield_bytes = if session.yielding.0 > 0 { behind_bytes } else { outbox_bytes_max };
    }

    /// What has yielded was not enough: twice what still waits may, so that it is not gone over for every tick.
    pub fn raise_yield_bytes(&mut self, slot: SlotId) {
        self.set_yield_bytes(slot);
        let outbox_bytes_max = self.outbox_bytes_max;
        let Some(session) = self.any_mut(slot) else { return };
        session.yield_bytes = session.yield_bytes.max(2 * session.frame_bytes()).min(outbox_bytes_max);
    }

    /// Whether what waits for a session is more than it may have.
    pub fn is_too_slow(&self, slot: SlotId) -> bool {
        self.get(slot).is_some_and(|session| {
            session.frame_bytes() > self.outbox_bytes_max || session.outbox_segments() > OUTBOX_RANGES_MAX
        })
    }

    /// Puts a session that has work into the queue of those to send to.
    pub fn make_ready(&mut self, slot: SlotId) {
        let Some(session) = self.slots.get_mut(slot.index()).and_then(Option::as_deref_mut) else { return };
        if session.has_work() && !session.queued && !session.sending {
            session.queued = true;
            match session.lag {
                Some(_) => self.lagging.push_back(slot),
                None => self.ready.push_back(slot),
            }
        }
    }

    /// Changes a session's outbox by its own hand, and keeps the queues right.
    pub fn with_outbox(&mut self, slot: SlotId, change: impl FnOnce(&mut Session)) {
        let Some(session) = self.slots.get_mut(slot.index()).and_then(Option::as_deref_mut) else { return };
        self.waiting -= usize::from(session.outbox_bytes() > 0);
        change(session);
        self.waiting += usize::from(session.outbox_bytes() > 0);
        if session.has_work() && !session.queued && !session.sending {
            self.make_ready(slot);
        }
    }

    /// Marks a session as one that cannot keep up.
    pub fn doom_slow(&mut self, slot: SlotId) {
        self.doomed.push((slot, CloseReason::SlowConsumer));
    }

    /// The next doomed session.
    pub fn pop_doomed(&mut self) -> Option<(SlotId, CloseReason)> {
        self.doomed.pop()
    }

    /// The next session that has something to send and is not sending.
    pub fn pop_ready(&mut self) -> Option<SlotId> {
        while let Some(slot) = self.ready.pop_front() {
            // A slot may have been vacated, and even filled again, since it was queued.
            if let Some(session) = self.any_mut(slot)
                && session.queued
            {
                session.queued = false;
                if session.sending {
                    continue;
                }
                if session.lag.is_some() && !std::mem::take(&mut session.refilled) && session.has_work() {
                    self.make_ready(slot);
                    continue;
                }
                return Some(slot);
            }
        }
        None
    }

    /// The next session that is ready but must first be given what it is behind with. It then stands in the other queue.
    pub fn pop_lagging(&mut self) -> Option<SlotId> {
        while let Some(slot) = self.lagging.pop_front() {
            if let Some(session) = self.any_mut(slot)
                && session.queued
            {
                session.refilled = true;
                self.ready.push_back(slot);
                return Some(slot);
            }
        }
        None
    }

    /// Sessions that stand ready for a SEND.
    pub fn standing_len(&self) -> usize {
        self.ready.len() + self.lagging.len()
    }

    /// Sessions that wait for a SEND and are not behind.
    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Whether any session is ready.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.lagging.is_empty()
    }

    /// Takes a session's next SEND.
    pub fn take_send(&mut self, slot: SlotId, log: Option<&EgressLog>, gather: &mut Vec<u8>) -> Next {
        let Some(session) = self.slots.get_mut(slot.index()).and_then(Option::as_deref_mut) else {
            return Next::Idle;
        };
        let before = session.outbox_bytes() > 0;
        let next = session.take_send(log, gather);
        if before && session.outbox_bytes() == 0 {
            self.waiting -= 1;
        }
        next
    }
}
