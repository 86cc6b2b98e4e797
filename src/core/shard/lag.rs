//! Sessions that are behind or come back, on the clock and over the mesh: when a socket has been full for too long, when a
//! paced tick is due, and which pieces of history to ask the homes for.

use super::{Shard, timers::TimerKind};
use crate::{
    fanout::Tally,
    home::{Piece, Wanted},
    ids::SlotId,
    limits::TURN_PIECES,
    metrics::counters::Counter,
    now::Now,
    session::{CloseReason, SendState},
};
use tickcast_proto::{
    frame::{self, Frame, Kind, Meta},
    ids::{ShardId, TopicId},
    records::{History, Recover},
};

impl Shard {
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
        debug_assert!(session.is_sending(), "the transport parks only a SEND it was given");
        session.send_state = SendState::Parked { since_ns: now.monotonic_ns };
        if !std::mem::replace(&mut session.stall_timer_pending, true) {
            let id = session.id;
            self.watch(now.monotonic_ns.saturating_add(self.limits.behind_ns), TimerKind::Stall, id);
        }
    }

    /// A socket that was full has taken everything it was given: somebody reads at the other end.
    pub fn handle_writable(&mut self, slot: SlotId, now: Now) {
        if let Some(session) = self.sessions.any_mut(slot) {
            session.drained_since_heartbeat = true;
        }
        self.sent(slot, now);
    }

    fn sent(&mut self, slot: SlotId, now: Now) {
        let mut idle = false;
        self.sessions.with_outbox(slot, |session| {
            if session.is_sending() {
                session.send_state = SendState::Idle;
            }
            idle = !session.has_work();
        });
        if idle {
            self.fanout.caught_up(slot, &mut self.sessions);
            self.fanout.queue_pull(slot, &mut self.sessions);
            self.flushed(slot, now);
        }
    }

    /// Looks after a socket that was full: one that still is loses what yields, and in the end its session.
    pub(super) fn stall_is_due(&mut self, slot: SlotId, now: Now) {
        let (behind_ns, deadline_ns) = (self.limits.behind_ns, self.limits.stall_deadline_ns);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.stall_timer_pending = false;
        let SendState::Parked { since_ns } = session.send_state else { return };
        let id = session.id;
        let faithful = session.memberships.len() as u32 > session.yielding.memberships;
        let full_ns = now.monotonic_ns.saturating_sub(since_ns);
        if faithful && full_ns >= deadline_ns {
            return self.end(slot, CloseReason::SlowConsumer, now);
        }
        if full_ns >= behind_ns {
            let before_ns = now.monotonic_ns - behind_ns;
            self.fanout.stalled(slot, before_ns, &mut self.sessions, &self.logs);
        }
        let when = match full_ns < behind_ns {
            true => since_ns.saturating_add(behind_ns),
            false => now.monotonic_ns.saturating_add(behind_ns),
        };
        if let Some(session) = self.sessions.open_mut(slot) {
            session.stall_timer_pending = true;
            self.watch(when, TimerKind::Stall, id);
        }
    }

    /// Sets timers for paced ticks that are to come later.
    pub(super) fn set_paces(&mut self) {
        for pace in self.fanout.take_paces() {
            if let Some(session) = self.sessions.get(pace.slot) {
                let id = session.id;
                self.watch(pace.due_ns, TimerKind::Pace(pace.topic), id);
            }
        }
    }

    /// Whether a piece of history can be asked for.
    pub(super) fn may_pull(&self) -> bool {
        !self.input_stopped
            && self.fanout.has_pulls()
            && self.takes_requests()
            && self.stages.requests_have_room()
    }

    /// Asks the homes for the pieces of history that sessions have room for, at most [`TURN_PIECES`]. Returns whether
    /// there were any.
    pub(super) fn pull(&mut self, now: Now) -> bool {
        let mut asked = 0;
        while asked < TURN_PIECES && self.may_pull() {
            let Some((id, from, record)) = self.fanout.next_pull(&mut self.sessions) else { break };
            asked += 1;
            let home = id.home(self.shards);
            if home == self.id {
                self.recover(home, id, from, record, now);
            } else {
                let meta = Meta { topic_id: id.0, sequence: from, ..Meta::default() };
                self.stages.push_request(home, |out| {
                    frame::encode(out, Kind::Recover, meta, &record, &[]);
                });
            }
        }
        asked > 0
    }

    /// As the topic's home: answers with the next piece of its past.
    pub(super) fn recover(&mut self, shard: ShardId, id: TopicId, from: u64, record: Recover, now: Now) {
        let Some(wanted) = Wanted::from_wire(record.wanted) else { return };
        let mut frames = std::mem::take(&mut self.pieces);
        frames.clear();
        let Piece { last, start, flags } = self.home.piece(id, wanted, from, now.monotonic_ns, &mut frames);
        let meta = Meta { topic_id: id.0, sequence: last, ..Meta::default() };
        let record = History { session: record.session, from, start, flags, wanted: record.wanted };
        if shard != self.id {
            self.stages.push_delivery(shard, |out| {
                frame::encode(out, Kind::History, meta, &record, &[&frames]);
            });
        } else {
            let mut own = std::mem::take(&mut self.scratch);
            own.clear();
            let header = frame::encode(&mut own, Kind::History, meta, &record, &[&frames]);
            let piece = Frame { header, kind: Kind::History, bytes: &own };
            self.fanout.handle_history(&piece, &mut self.sessions, &mut self.logs);
            self.scratch = own;
        }
        self.pieces = frames;
    }

    /// Takes over what the fan-out has counted.
    pub(super) fn count_ticks(&mut self) {
        let tally = self.fanout.take_tally();
        if tally == Tally::default() {
            return;
        }
        self.counters.add(Counter::TicksDelivered, tally.queued);
        self.counters.add(Counter::TicksTakenOut, tally.taken_out);
        self.counters.add(Counter::TicksConflated, tally.conflated);
        self.counters.add(Counter::TicksDropped, tally.dropped);
    }
}
