//! From the egress logs and outboxes to the sockets: SENDs, what becomes of them, and replies.

use super::{Send, Shard, timers::TimerKind};
use crate::{
    fanout::LogIndex,
    ids::SlotId,
    limits::{GATHER_BYTES, SEND_BYTES_MAX, SENDS_PER_SUBMIT},
    metrics::counters::Counter,
    now::Now,
    session::{Next, Session, Source},
};
use tickcast_proto::reply::Reply;

impl Shard {
    /// Before each batch of SENDs: gives sessions that are behind what their next SEND is to carry, at most
    /// [`SENDS_PER_SUBMIT`] of them. It appends to the logs, and what a SEND of the batch points to must stay: so not
    /// between two calls of [`Shard::poll_send`] of the same batch.
    pub fn prepare_sends(&mut self, now: Now) {
        // No more than the batch can carry: what is given too early is old by the time it leaves.
        let mut bytes = 0;
        while bytes < GATHER_BYTES
            && self.sessions.ready_len() < SENDS_PER_SUBMIT
            && let Some(slot) = self.sessions.pop_lagging()
        {
            bytes += SEND_BYTES_MAX;
            self.fanout.refill(slot, &mut self.sessions, &mut self.logs, now.monotonic_ns);
            self.fanout.relieve(&mut self.sessions, &mut self.logs);
        }
        self.settle(now);
    }

    /// The next SEND: its bytes are [`Shard::send_bytes`] until the next call that is not `poll_send`. The slot has
    /// no other until [`Shard::handle_sent`] says what became of it.
    pub fn poll_send(&mut self, gather: &mut Vec<u8>, now: Now) -> Option<Send> {
        while let Some(slot) = self.sessions.pop_ready() {
            let Some(session) = self.sessions.get(slot) else {
                debug_assert!(false, "only a slot with a session is ready");
                continue;
            };
            let log = LogIndex::of(session.format);
            match self.sessions.take_send(slot, self.logs.get(log), gather) {
                Next::Send(source) => return Some(Send { slot, log, source }),
                Next::Lapped => self.lapped(slot, now),
                Next::Idle if self.sessions.get(slot).is_some_and(Session::has_work) => {
                    self.sessions.make_ready(slot);
                }
                Next::Idle => {
                    self.fanout.caught_up(slot, &mut self.sessions);
                    self.fanout.queue_pull(slot, &mut self.sessions);
                    self.flushed(slot, now);
                }
            }
        }
        None
    }

    /// The bytes of a SEND that `poll_send` returned since the gather buffer was last cleared.
    #[inline]
    pub fn send_bytes<'a>(&'a self, send: &Send, gather: &'a [u8]) -> &'a [u8] {
        match send.source {
            Source::Log(range) => self.logs.get(send.log).map_or(&[], |log| log.bytes(range)),
            Source::Gathered(start, len) => &gather[start..start + len],
        }
    }

    /// The transport has taken a SEND's bytes over. `parked`: the socket did not take them all at once; the slot
    /// is busy until [`Shard::handle_writable`].
    pub fn handle_sent(&mut self, slot: SlotId, bytes: usize, parked: bool, now: Now) {
        self.counters.add(Counter::Sends, 1);
        self.counters.add(Counter::BytesSent, bytes as u64);
        self.counters.add(Counter::SendsParked, u64::from(parked));
        if !parked {
            return self.sent(slot, now);
        }
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.parked_since_ns = now.monotonic_ns.max(1);
        if !std::mem::replace(&mut session.stall_watched, true) {
            let id = session.id;
            self.watch(now.monotonic_ns.saturating_add(self.limits.behind_ns), TimerKind::Stall, id);
        }
    }

    /// A socket that was full has taken everything it was given: somebody reads at the other end.
    pub fn handle_writable(&mut self, slot: SlotId, now: Now) {
        if let Some(session) = self.sessions.any_mut(slot) {
            session.took_parked = true;
        }
        self.sent(slot, now);
    }

    fn sent(&mut self, slot: SlotId, now: Now) {
        let mut idle = false;
        self.sessions.with_outbox(slot, |session| {
            (session.sending, session.parked_since_ns) = (false, 0);
            idle = !session.has_work();
        });
        if idle {
            self.fanout.caught_up(slot, &mut self.sessions);
            self.fanout.queue_pull(slot, &mut self.sessions);
            self.flushed(slot, now);
        }
    }

    pub(super) fn reply(&mut self, slot: SlotId, reply: &Reply<'_>) {
        if let Reply::Error { .. } = reply {
            self.counters.add(Counter::RequestErrors, 1);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        if let Some(session) = self.sessions.any_mut(slot) {
            reply.encode(session.format, &mut scratch);
        }
        self.sessions.with_outbox(slot, |session| session.push_reply(|out| out.extend_from_slice(&scratch)));
        self.scratch = scratch;
    }

    pub(super) fn push_bytes(&mut self, slot: SlotId, bytes: &[u8]) {
        self.sessions.with_outbox(slot, |session| session.push_reply(|out| out.extend_from_slice(bytes)));
    }
}
