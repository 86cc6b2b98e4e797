//! The sessions of one shard, by slot, and the queues they wait in.

use crate::{
    egress_log::{EgressLog, Range},
    ids::SlotId,
    limits::REPLY_BYTES_MAX,
    now::Now,
    session::{
        Content, NextSend, SendState, Session, Settling, SharedMessages, Yielding,
        fullness::Fullness,
        memberships_count::MembershipsCount,
        queues::{QUEUE_SPARE, Queues},
    },
};
use tickcast_proto::{WireFormat, ids::TopicId};

/// The outcome of offering shared frames to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// The frames are queued.
    Queued,
    /// The session is behind, and nothing was queued. Its subscription determines what happens.
    Behind,
    /// The session has ended or is ending.
    Gone,
}

/// Slots whose sessions debug builds check each turn.
const SLOTS_CHECKED_MAX: usize = 64;

/// Counts of ticks that a session's notices have announced as skipped. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkippedTicks {
    /// Replaced by a newer tick.
    pub conflated: u64,
    /// Lost.
    pub dropped: u64,
}

/// All sessions of a shard.
/// Invariant, between turns: a session that has work is queued or sending, and is in the queue that its `send_state` names.
/// A queue may also hold slots whose session has gone.
/// Invariant, between turns: `open` counts the sessions, and `waiting` those whose outbox is not empty.
#[derive(Debug)]
pub struct Sessions {
    slots: Vec<Option<Box<Session>>>,
    open: usize,
    unfinished_bytes: usize,
    outbox_bytes_max: usize,
    behind_bytes: usize,
    pub(super) queues: Queues,
    /// Messages of the current batch of SENDs that several sessions send.
    pub messages: SharedMessages,
    /// Sessions found too far behind while others were served; closed afterwards.
    too_far_behind: Vec<SlotId>,
    /// By slot, up to the highest slot whose socket was ever full.
    fullness: Vec<Fullness>,
    /// Whether the shard's thread hardly sleeps.
    is_saturated: bool,
    /// When the turn began: the low 32 bits of CLOCK_MONOTONIC milliseconds.
    now_ms: u32,
    /// Sessions that lost something because the server is overloaded and have not been reported yet.
    overloads: u64,
    /// By slot, up to the highest slot that ever skipped a tick.
    skipped: Vec<SkippedTicks>,
    /// Memberships of all sessions, their bound, and times it was met.
    pub(super) memberships: MembershipsCount,
}

impl Sessions {
    /// Creates an empty table. A session may have `outbox_bytes_max` waiting; one that yields, `behind_bytes`.
    pub fn new(outbox_bytes_max: usize, behind_bytes: usize) -> Sessions {
        Sessions {
            slots: Vec::new(),
            open: 0,
            unfinished_bytes: 0,
            outbox_bytes_max,
            behind_bytes,
            queues: Queues::default(),
            messages: SharedMessages::default(),
            too_far_behind: Vec::new(),
            fullness: Vec::new(),
            is_saturated: false,
            now_ms: 0,
            overloads: 0,
            skipped: Vec::new(),
            memberships: MembershipsCount::default(),
        }
    }

    /// Changes the bounds of every session. O(sessions), unless nothing changes.
    pub fn set_bounds(&mut self, outbox_bytes_max: usize, behind_bytes: usize) {
        if (outbox_bytes_max, behind_bytes) == (self.outbox_bytes_max, self.behind_bytes) {
            return;
        }
        (self.outbox_bytes_max, self.behind_bytes) = (outbox_bytes_max, behind_bytes);
        for slot in self.slots() {
            self.set_yield_bytes(slot);
        }
    }

    /// Number of sessions, including ending ones.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether there are no sessions.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Number of sessions with bytes in their outbox.
    pub fn waiting(&self) -> usize {
        self.queues.waiting
    }

    /// One more than the highest slot used so far.
    pub fn slots_len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Counts of the ticks announced as skipped to the session in a slot.
    pub fn skipped(&self, slot: SlotId) -> SkippedTicks {
        self.skipped.get(slot.index()).copied().unwrap_or_default()
    }

    /// Counts ticks announced as conflated to the session in a slot.
    pub fn count_conflated(&mut self, slot: SlotId, ticks: u64) {
        self.skipped_mut(slot).conflated += ticks;
    }

    /// Counts ticks announced as lost to the session in a slot.
    pub fn count_dropped(&mut self, slot: SlotId, ticks: u64) {
        self.skipped_mut(slot).dropped += ticks;
    }

    fn skipped_mut(&mut self, slot: SlotId) -> &mut SkippedTicks {
        let index = slot.index();
        if self.skipped.len() <= index {
            self.skipped.resize(index + 1, SkippedTicks::default());
        }
        &mut self.skipped[index]
    }

    /// Bytes of the tables by slot of skipped ticks and full sockets.
    pub fn by_slot_bytes(&self) -> usize {
        self.skipped.capacity() * size_of::<SkippedTicks>() + self.fullness.capacity() * size_of::<Fullness>()
    }

    /// Slots in use, ascending.
    pub fn slots(&self) -> Vec<SlotId> {
        (0..self.slots.len() as u32).map(SlotId).filter(|&slot| self.slots[slot.index()].is_some()).collect()
    }

    /// All sessions, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slots.iter().flatten().map(|session| &**session)
    }

    /// Adds a session in a vacant slot.
    pub fn insert(&mut self, slot: SlotId, mut session: Session) {
        session.yield_bytes = self.outbox_bytes_max;
        if self.slots.len() <= slot.index() {
            self.slots.resize_with(slot.index() + 1, || None);
        }
        assert!(self.slots[slot.index()].is_none(), "the transport reuses a slot only after its close");
        self.slots[slot.index()] = Some(Box::new(session));
        if let Some(skipped) = self.skipped.get_mut(slot.index()) {
            *skipped = SkippedTicks::default();
        }
        if let Some(fullness) = self.fullness.get_mut(slot.index()) {
            *fullness = Fullness::default();
        }
        self.open += 1;
    }

    /// Removes a session.
    pub fn remove(&mut self, slot: SlotId) -> Option<Box<Session>> {
        let session = self.slots.get_mut(slot.index())?.take()?;
        self.open -= 1;
        self.unfinished_bytes -= session.unfinished_bytes as usize;
        self.queues.waiting -= usize::from(session.outbox_bytes() > 0);
        Some(session)
    }

    /// Updates the byte count of a session's unfinished message.
    pub fn count_unfinished(&mut self, slot: SlotId) {
        let Some(session) = in_slot(&mut self.slots, slot) else { return debug_assert!(false, "no session") };
        let held = u32::try_from(session.held_unfinished_bytes()).unwrap_or(u32::MAX);
        self.unfinished_bytes -= std::mem::replace(&mut session.unfinished_bytes, held) as usize;
        self.unfinished_bytes += held as usize;
    }

    /// Bytes of the sessions' unfinished messages.
    pub fn unfinished_bytes(&self) -> usize {
        self.unfinished_bytes
    }

    /// The session in a slot.
    pub fn get(&self, slot: SlotId) -> Option<&Session> {
        self.slots.get(slot.index())?.as_deref()
    }

    /// The session in a slot, even if it is ending.
    pub fn any_mut(&mut self, slot: SlotId) -> Option<&mut Session> {
        self.slots.get_mut(slot.index())?.as_deref_mut()
    }

    /// The session in a slot, unless it is ending.
    pub fn open_mut(&mut self, slot: SlotId) -> Option<&mut Session> {
        self.any_mut(slot).filter(|session| session.ending.is_none())
    }

    /// Offers shared frames to an open session that is not behind.
    #[inline]
    pub fn offer(&mut self, slot: SlotId, log: &EgressLog, range: Range) -> Offered {
        match in_slot(&mut self.slots, slot) {
            Some(session) if session.ending.is_none() => {
                if session.is_behind() {
                    return Offered::Behind;
                }
                self.queues.push_range(session, slot, log, range);
                Offered::Queued
            }
            _ => Offered::Gone,
        }
    }

    /// Whether an open session in a wildcard group has no membership of its own in a topic.
    pub fn is_served_by_groups(&self, slot: SlotId, topic: TopicId) -> bool {
        self.get(slot).is_some_and(|session| session.ending.is_none() && !session.memberships.contains(topic))
    }

    /// Like [`Sessions::offer`], for a session in a wildcard group. Treats it as gone if it has its own membership in the topic,
    /// or has already been offered the tick with this number.
    #[inline]
    pub fn offer_to_group(
        &mut self,
        slot: SlotId,
        topic: TopicId,
        number: Option<u32>,
        log: &EgressLog,
        range: Range,
    ) -> Offered {
        match in_slot(&mut self.slots, slot) {
            Some(session) if session.ending.is_none() && !session.memberships.contains(topic) => {
                if let Some(number) = number
                    && std::mem::replace(&mut session.tick_offered, number) == number
                {
                    return Offered::Gone;
                }
                if session.is_behind() {
                    return Offered::Behind;
                }
                self.queues.push_range(session, slot, log, range);
                Offered::Queued
            }
            _ => Offered::Gone,
        }
    }

    /// Forgets the numbers of ticks offered to sessions. O(sessions).
    pub fn forget_ticks(&mut self) {
        self.slots.iter_mut().flatten().for_each(|session| session.tick_offered = 0);
    }

    /// Adds and subtracts counts of a session's memberships and subscriptions that yield.
    pub fn count_yielding(&mut self, slot: SlotId, added: Yielding, removed: Yielding) {
        if self.any_mut(slot).is_some_and(|session| session.count_yielding(added, removed)) {
            self.set_yield_bytes(slot);
        }
    }

    /// Queues shared frames to an open session, behind or not. If the session then exceeds its bounds, [`Sessions::pop_over`]
    /// returns it.
    pub fn push_range(&mut self, slot: SlotId, log: &EgressLog, range: Range) {
        if let Some(session) = in_slot(&mut self.slots, slot)
            && session.ending.is_none()
        {
            self.queues.push_range(session, slot, log, range);
        }
    }

    /// Queues a frame of a topic for one session only; otherwise like [`Sessions::push_range`].
    pub fn push_private(
        &mut self,
        slot: SlotId,
        content: impl Into<Content>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut is_over = false;
        self.with_outbox(slot, |session| {
            is_over = session.ending.is_none() && !session.push_private(content.into(), write);
        });
        if is_over && let Some(session) = in_slot(&mut self.slots, slot) {
            self.queues.note_over(session, slot);
        }
    }

    /// The next session that exceeds its bounds.
    pub fn pop_over(&mut self) -> Option<SlotId> {
        let slot = self.queues.over.pop()?;
        if let Some(session) = self.any_mut(slot) {
            session.is_over_queued = false;
        }
        Some(slot)
    }

    /// Sets how much may wait before the session must yield. Called when [`Session::yields`] changes, and when the outbox is
    /// empty after [`Sessions::raise_yield_bytes`].
    pub fn set_yield_bytes(&mut self, slot: SlotId) {
        let (outbox_bytes_max, behind_bytes) = (self.outbox_bytes_max, self.behind_bytes);
        let Some(session) = self.any_mut(slot) else { return };
        session.yield_bytes = if session.yields() { behind_bytes } else { outbox_bytes_max };
    }

    /// Raises the bound to twice what remains after an eviction, so that the outbox is not searched again for every tick.
    pub fn raise_yield_bytes(&mut self, slot: SlotId) {
        self.set_yield_bytes(slot);
        let (outbox_bytes_max, behind_bytes) = (self.outbox_bytes_max, self.behind_bytes);
        let Some(session) = self.any_mut(slot) else { return };
        session.yield_bytes = session.yield_bytes.max(2 * session.frame_bytes()).min(outbox_bytes_max);
        if session.yields() && session.yield_bytes != behind_bytes {
            session.settle_once_empty();
        }
    }

    /// Whether a session's backlog exceeds the bound that applies to all sessions.
    pub fn has_too_much(&self, slot: SlotId) -> bool {
        self.get(slot).is_some_and(|session| {
            session.frame_bytes() > self.outbox_bytes_max || session.outbox.has_too_many_ranges()
        })
    }

    /// Maximum backlog of a session after an eviction due to overload: small enough that the next eviction is not due soon. 0 if
    /// the backlog has too many pieces rather than too many bytes.
    pub fn overload_target_bytes(&self, slot: SlotId) -> usize {
        let has_too_many_ranges = self.get(slot).is_some_and(|session| session.outbox.has_too_many_ranges());
        if has_too_many_ranges { 0 } else { self.outbox_bytes_max / 2 }
    }

    /// Sets the time of the turn, on which [`Sessions::is_slow`] depends.
    pub fn note_time(&mut self, now: Now) {
        self.now_ms = now.low_ms();
    }

    /// Sets whether the shard is busy most of the time. If so, a session counts as slow only after a longer time.
    pub fn set_saturated(&mut self, is_saturated: bool) {
        self.is_saturated = is_saturated;
    }

    /// Records that a session's socket has become full (`is_full`), or has taken everything again.
    pub fn note_fullness(&mut self, slot: SlotId, is_full: bool, now: Now) {
        let index = slot.index();
        if self.fullness.len() <= index {
            self.fullness.resize(index + 1, Fullness::default());
        }
        self.note_time(now);
        self.fullness[index].change(is_full, self.now_ms);
    }

    /// Time since a session's socket became full, in nanoseconds, rounded to milliseconds; 0 if it has room. Correct for up to 49
    /// days.
    pub fn full_ns(&self, slot: SlotId, now: Now) -> u64 {
        let fullness = self.fullness.get(slot.index());
        fullness.map_or(0, |fullness| u64::from(fullness.full_ms(now.low_ms())) * 1_000_000)
    }

    /// Whether a session is behind because its socket has no room, not because the server lacks CPU time: recently the socket was
    /// full most of the time or, while the shard is saturated, has taken nothing for long. A session whose socket has always
    /// taken everything at once is never slow.
    pub fn is_slow(&self, slot: SlotId) -> bool {
        self.fullness
            .get(slot.index())
            .is_some_and(|fullness| fullness.is_slow(self.now_ms, self.is_saturated))
    }

    /// Counts sessions that lose ticks, or their connection, because the server is overloaded.
    pub fn note_overload(&mut self, sessions: u64) {
        self.overloads += sessions;
    }

    /// Takes the count of [`Sessions::note_overload`].
    pub fn take_overloads(&mut self) -> u64 {
        std::mem::take(&mut self.overloads)
    }

    /// Queues an idle session that has work.
    pub fn make_ready(&mut self, slot: SlotId) {
        if let Some(session) = in_slot(&mut self.slots, slot) {
            self.queues.make_ready(session, slot);
        }
    }

    /// Changes a session's outbox, and keeps the queues and counts consistent.
    pub fn with_outbox(&mut self, slot: SlotId, change: impl FnOnce(&mut Session)) {
        let Some(session) = in_slot(&mut self.slots, slot) else { return debug_assert!(false, "no session") };
        self.queues.waiting -= usize::from(session.outbox_bytes() > 0);
        let had_replies = session.outbox.reply_bytes() > 0;
        change(session);
        self.queues.waiting += usize::from(session.outbox_bytes() > 0);
        match session.send_state {
            SendState::Idle => self.queues.make_ready(session, slot),
            SendState::Ready | SendState::Refilled | SendState::Lagging if !had_replies => {
                self.queues.note_urgent(session, slot);
            }
            _ => {}
        }
    }

    /// Holds ticks: until [`Sessions::release`], only sessions with a reply to send are served. O(sessions that wait for a SEND).
    pub fn hold(&mut self) {
        self.queues.is_holding = true;
        let queued = self.queues.ready.iter().chain(&self.queues.lagging).copied();
        let urgent = queued.filter(|&slot| {
            self.slots
                .get(slot.index())
                .and_then(Option::as_deref)
                .is_some_and(|session| session.outbox.reply_bytes() > 0 && !session.is_sending())
        });
        self.queues.urgent = urgent.collect();
    }

    /// Stops holding ticks: all sessions are served in turn.
    pub fn release(&mut self) {
        self.queues.is_holding = false;
        // Unsent replies go first.
        for slot in std::mem::take(&mut self.queues.urgent).into_iter().rev() {
            self.queues.ready.push_front(slot);
        }
        self.queues.urgent_lagging = 0;
    }

    /// Whether sessions served out of turn have left more entries in the queues than there are sessions. The wait must then end.
    pub fn is_crowded(&self) -> bool {
        self.ready_or_lagging_len() > 2 * self.open + QUEUE_SPARE
    }

    /// Records that the transport has completed a session's SEND. Returns whether the session is idle now and has state to settle:
    /// it is ending, lags, or had its bounds raised. Most sessions have none of these, so one check here replaces three.
    #[inline]
    pub fn end_send(&mut self, slot: SlotId) -> bool {
        let Some(session) = in_slot(&mut self.slots, slot) else { return false };
        if session.is_sending() {
            session.send_state = SendState::Idle;
        }
        if session.has_work() {
            self.queues.make_ready(session, slot);
            return false;
        }
        session.ending.is_some() || session.lag.is_some() || session.settling != Settling::None
    }

    /// Marks a session as too far behind. It is closed once the others have been served.
    pub fn mark_too_far_behind(&mut self, slot: SlotId) {
        self.too_far_behind.push(slot);
    }

    /// Marks a session as too far behind if its waiting announcements of lost ticks exceed their bound. (Replies pause its input
    /// at [`REPLY_BYTES_MAX`]; announcements may take as much as its frames.)
    pub fn mark_if_announcements_pile_up(&mut self, slot: SlotId) {
        let bytes_max = REPLY_BYTES_MAX.saturating_add(self.outbox_bytes_max);
        if self.get(slot).is_some_and(|session| session.outbox.reply_bytes() > bytes_max) {
            self.mark_too_far_behind(slot);
        }
    }

    /// The next session to close because it is too far behind.
    pub fn pop_too_far_behind(&mut self) -> Option<SlotId> {
        self.too_far_behind.pop()
    }

    /// Takes the next SEND of the session that has been ready longest: its slot, its wire format, and the SEND or why there is
    /// none. `URGENT`: only sessions with a reply to send, after [`Sessions::hold`].
    #[inline]
    pub fn take_send<'a, const URGENT: bool>(
        &mut self,
        log_of: impl Fn(WireFormat) -> Option<&'a EgressLog>,
        gather: &mut Vec<u8>,
    ) -> Option<(SlotId, WireFormat, NextSend)> {
        while let Some(slot) =
            if URGENT { self.queues.urgent.pop_front() } else { self.queues.ready.pop_front() }
        {
            let Some(session) = in_slot(&mut self.slots, slot) else { continue };
            match session.send_state {
                // It has fallen behind since it was queued.
                SendState::Ready if session.lag.is_some() && session.has_work() => {
                    session.send_state = SendState::Lagging;
                    match URGENT {
                        true => self.queues.refill_urgent(slot),
                        false => self.queues.lagging.push_back(slot),
                    }
                    continue;
                }
                SendState::Lagging if URGENT => {
                    self.queues.refill_urgent(slot);
                    continue;
                }
                SendState::Ready | SendState::Refilled if self.queues.throttles(session) => {
                    session.send_state = SendState::Throttled;
                    self.queues.newly_throttled.push(slot);
                    continue;
                }
                SendState::Ready | SendState::Refilled => session.send_state = SendState::Idle,
                // A stale entry: the slot has been vacated and filled again.
                SendState::Idle
                | SendState::Lagging
                | SendState::Sending
                | SendState::Parked
                | SendState::Throttled => continue,
            }
            let waited = session.outbox_bytes() > 0;
            let next = session.take_send(log_of(session.format), gather, &mut self.messages);
            self.queues.waiting -= usize::from(waited && session.outbox_bytes() == 0);
            return Some((slot, session.format, next));
        }
        None
    }

    /// The next session to refill. The caller must refill it before [`Sessions::take_send`] serves it.
    pub fn pop_lagging(&mut self) -> Option<SlotId> {
        while (!self.queues.is_holding || self.queues.urgent_lagging > 0)
            && let Some(slot) = self.queues.lagging.pop_front()
        {
            self.queues.urgent_lagging = self.queues.urgent_lagging.saturating_sub(1);
            if let Some(session) = self.any_mut(slot)
                && session.send_state == SendState::Lagging
            {
                session.send_state = SendState::Refilled;
                self.queues.ready.push_back(slot);
                if self.queues.is_holding {
                    self.queues.urgent.push_back(slot);
                }
                return Some(slot);
            }
        }
        None
    }

    /// Number of sessions waiting for a SEND.
    pub fn ready_or_lagging_len(&self) -> usize {
        self.queues.ready.len() + self.queues.lagging.len()
    }

    /// Number of sessions that may have a SEND now and need no refill before it.
    pub fn ready_len(&self) -> usize {
        if self.queues.is_holding { self.queues.urgent.len() } else { self.queues.ready.len() }
    }

    /// Whether any session may have a SEND now.
    pub fn has_ready(&self) -> bool {
        match self.queues.is_holding {
            true => !self.queues.urgent.is_empty() || self.queues.urgent_lagging > 0,
            false => !self.queues.ready.is_empty() || !self.queues.lagging.is_empty(),
        }
    }

    /// Checks the table and its sessions between turns in debug builds. Skips tables too large to check every session each turn.
    pub fn invariants(&self) {
        if !cfg!(debug_assertions) || self.slots.len() > SLOTS_CHECKED_MAX {
            return;
        }
        assert_eq!(self.open, self.iter().count(), "open counts the sessions");
        let unfinished = self.iter().map(|session| session.unfinished_bytes as usize).sum::<usize>();
        assert_eq!(self.unfinished_bytes, unfinished, "unfinished_bytes counts the sessions' bytes");
        let waiting = self.iter().filter(|session| session.outbox_bytes() > 0).count();
        assert_eq!(self.queues.waiting, waiting, "waiting counts the sessions whose outbox is not empty");
        for session in self.iter() {
            let slot = session.id.slot();
            match session.send_state {
                SendState::Idle => assert!(!session.has_work(), "a session with work is queued or sending"),
                SendState::Ready | SendState::Refilled => {
                    let queued = self.queues.ready.contains(&slot) || self.queues.urgent.contains(&slot);
                    assert!(queued, "ready is queued");
                }
                SendState::Lagging => assert!(self.queues.lagging.contains(&slot), "lagging is queued"),
                SendState::Sending | SendState::Parked | SendState::Throttled => {}
            }
            let is_queued =
                matches!(session.send_state, SendState::Ready | SendState::Refilled | SendState::Lagging);
            let mut urgent_lagging = self.queues.lagging.iter().take(self.queues.urgent_lagging);
            assert!(
                !self.queues.is_holding
                    || !is_queued
                    || session.outbox.reply_bytes() == 0
                    || self.queues.urgent.contains(&slot)
                    || urgent_lagging.any(|&first| first == slot),
                "no reply waits for the latency budget"
            );
            assert!(!session.is_over_queued || self.queues.over.contains(&slot), "is_over_queued is queued");
            session.invariants();
        }
    }
}

/// The session in a slot, while the table's other fields stay free to change.
#[inline]
fn in_slot(slots: &mut [Option<Box<Session>>], slot: SlotId) -> Option<&mut Session> {
    slots.get_mut(slot.index())?.as_deref_mut()
}
