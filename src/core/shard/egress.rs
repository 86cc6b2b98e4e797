//! From egress logs and outboxes to the sockets: SENDs, their outcomes, and replies.

#[cfg(test)]
mod deflate_tests;

use super::{Send, Shard, timers::TimerKind};
use crate::{
    fanout::LogIndex,
    ids::SlotId,
    limits::{GATHER_BYTES, SEND_BYTES_MAX, SENDS_PER_SUBMIT},
    metrics::counters::Counter,
    now::Now,
    session::{NextSend, SendSource, SendState, Session},
};
use tickcast_proto::reply::Reply;

impl Shard {
    /// Begins a turn of the logs, and counts what was compressed in the last one.
    pub(super) fn begin_turn_of_logs(&mut self, now: Now) {
        self.logs.begin_turn(now.monotonic_ns);
        self.sessions.messages.begin_turn();
        for counts in [self.logs.take_deflated(), self.sessions.messages.take_deflated()] {
            if counts.messages > 0 {
                self.counters.add(Counter::MessagesDeflated, counts.messages);
                self.counters.add(Counter::DeflatedFromBytes, counts.from_bytes);
                self.counters.add(Counter::DeflatedToBytes, counts.to_bytes);
            }
        }
    }

    /// Prepares a batch of SENDs: queues what the next SENDs of lagging sessions carry, for at most [`SENDS_PER_SUBMIT`] of
    /// them.
    ///
    /// Call before the first [`Shard::poll_send`] of a batch and never within one: it appends to the logs, and could
    /// overwrite what a SEND of the batch refers to.
    pub fn prepare_sends(&mut self, now: Now) {
        self.sessions.messages.begin();
        // No more than the batch carries: values queued too early are outdated when they leave.
        let mut bytes = 0;
        while bytes < GATHER_BYTES
            && self.sessions.ready_len() < SENDS_PER_SUBMIT
            && let Some(slot) = self.sessions.pop_lagging()
        {
            bytes += SEND_BYTES_MAX;
            self.fanout.refill(slot, &self.home, &mut self.sessions, &mut self.logs, now.monotonic_ns);
            self.fanout.evict_overflowing(&mut self.sessions, &mut self.logs);
        }
        self.apply_deferred(now);
    }

    /// Returns the next SEND. Its bytes are [`Shard::send_bytes`], valid until the next call other than these two. The
    /// slot has no other SEND until [`Shard::handle_sent`] reports the outcome.
    #[inline]
    pub fn poll_send(&mut self, gather: &mut Vec<u8>, now: Now) -> Option<Send> {
        self.next_send::<false>(gather, now)
    }

    /// Like [`Shard::poll_send`], after [`Shard::hold_ticks`]: the next SEND of a session that has a reply to send.
    pub fn poll_urgent_send(&mut self, gather: &mut Vec<u8>, now: Now) -> Option<Send> {
        self.next_send::<true>(gather, now)
    }

    fn next_send<const URGENT: bool>(&mut self, gather: &mut Vec<u8>, now: Now) -> Option<Send> {
        loop {
            let taken = self.sessions.take_send::<URGENT>(|format| self.logs.of(format), gather);
            while let Some(slot) = self.sessions.pop_newly_throttled() {
                self.note_throttled(slot, now);
            }
            let (slot, format, next) = taken?;
            match next {
                NextSend::Send(source) if self.polling.contain(slot) => self.carry(slot, source, gather, now),
                NextSend::Send(mut source) => {
                    if format.framing.has_places() {
                        self.append_place(slot, &mut source, gather);
                    }
                    return Some(Send { slot, log: LogIndex::of(format), source });
                }
                NextSend::Overwritten => self.end_lapped(slot, now),
                NextSend::Idle if self.sessions.get(slot).is_some_and(Session::has_work) => {
                    self.sessions.make_ready(slot);
                }
                NextSend::Idle => {
                    self.fanout.handle_drained(slot, &mut self.sessions);
                    self.fanout.queue_pull(slot, &mut self.sessions);
                    self.continue_ending(slot, now);
                }
            }
        }
    }

    /// Returns the bytes of a SEND that `poll_send` returned since the gather buffer was last cleared.
    #[inline]
    pub fn send_bytes<'a>(&'a self, send: &Send, gather: &'a [u8]) -> &'a [u8] {
        match send.source {
            SendSource::Log(range) => self.logs.get(send.log).map_or(&[], |log| log.bytes(range)),
            SendSource::Gathered { start, len } => &gather[start..start + len],
        }
    }

    /// Processes the outcome of a SEND: the transport has taken over its bytes. `parked`: the socket lacked room for all of
    /// them, and the slot is busy until [`Shard::handle_writable`].
    pub fn handle_sent(&mut self, slot: SlotId, bytes: usize, parked: bool, now: Now) {
        self.counters.add(Counter::Sends, 1);
        self.counters.add(Counter::BytesSent, bytes as u64);
        self.note_egress(slot, bytes, now);
        if !parked {
            return self.send_completed(slot, now);
        }
        self.counters.add(Counter::SendsParked, 1);
        self.sessions.note_fullness(slot, true, now);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        debug_assert!(session.is_sending(), "the transport parks only a SEND it was given");
        session.send_state = SendState::Parked;
        self.watch_stall(slot, now);
    }

    /// Begins to watch how long a socket stays full.
    pub(super) fn watch_stall(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if !std::mem::replace(&mut session.stall_timer_pending, true) {
            let id = session.id;
            self.set_timer(now.monotonic_ns.saturating_add(self.limits.behind_ns), TimerKind::Stall, id);
        }
    }

    /// Processes the end of a parked SEND: the socket has taken all of its bytes, so the peer reads.
    pub fn handle_writable(&mut self, slot: SlotId, now: Now) {
        if let Some(session) = self.sessions.any_mut(slot) {
            session.drained_since_heartbeat = true;
        }
        self.sessions.note_fullness(slot, false, now);
        self.send_completed(slot, now);
    }

    pub(super) fn send_completed(&mut self, slot: SlotId, now: Now) {
        if self.sessions.end_send(slot) {
            self.note_carrier_sent(slot, now);
            self.fanout.handle_drained(slot, &mut self.sessions);
            self.fanout.queue_pull(slot, &mut self.sessions);
            self.continue_ending(slot, now);
        }
    }

    pub(super) fn reply(&mut self, slot: SlotId, reply: &Reply<'_>) {
        if let Reply::Error { .. } = reply {
            self.counters.add(Counter::RequestErrors, 1);
        }
        if let Some(call) = self.sessions.any_mut(slot).and_then(|session| session.protocol.call_mut()) {
            if call.note(reply) {
                self.note_call_done(slot);
            }
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        if let Some(session) = self.sessions.any_mut(slot) {
            reply.encode(session.format, &mut scratch);
        }
        self.push_bytes(slot, &scratch);
        self.scratch = scratch;
    }

    /// Queues replies. If there is no memory for them, closes the session: it would wait for an answer that never comes.
    pub(super) fn push_bytes(&mut self, slot: SlotId, bytes: &[u8]) {
        let mut has_room = true;
        self.sessions.with_outbox(slot, |session| {
            has_room = session.outbox.try_reserve(bytes.len());
            if has_room {
                session.outbox.push_reply(|out| out.extend_from_slice(bytes));
            }
        });
        if !has_room {
            self.sessions.mark_too_far_behind(slot);
        }
    }
}
