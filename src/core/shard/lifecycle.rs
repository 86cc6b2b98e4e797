//! How sessions begin and end.

mod ending;
mod handover;

use self::ending::log_end;
use super::{Action, ListenerKind, Shard, timers::TimerKind};
use crate::{
    ids::{SessionId, SlotId},
    metrics::counters::Counter,
    now::Now,
    session::{CloseReason, Ending, Session},
};

pub use self::{ending::LOG_TARGET_SESSION, handover::Departure};

impl Shard {
    /// A connection came in; its slot is vacant.
    pub fn handle_accept(&mut self, slot: SlotId, listener: ListenerKind, now: Now) {
        self.counters.add(Counter::SessionsAccepted, 1);
        self.open(slot, listener, now);
    }

    /// A connection that another shard accepted and handed over, with all that was received from it; the slot is vacant.
    /// The bytes hold a whole HELLO or request head, so the handshake is done when this returns: its deadline needs no
    /// time that was used up elsewhere.
    pub fn handle_placed(&mut self, slot: SlotId, listener: ListenerKind, bytes: &[u8], now: Now) {
        self.open(slot, listener, now);
        // What the server has received is counted where it was received. Once the server stops, nothing is taken up.
        if !self.input_stopped {
            self.take_up(slot, bytes, now);
        }
        self.settle(now);
    }

    /// The peer has shut its side: whatever it had to say came before. Of a session whose input waits, not all of that
    /// has been taken up: the transport tells again when it receives again.
    pub fn handle_eof(&mut self, slot: SlotId, now: Now) {
        if self.sessions.open_mut(slot).is_some_and(|session| session.paused) {
            return;
        }
        self.gone(slot, CloseReason::Peer);
        self.settle(now);
    }

    /// The socket has failed.
    pub fn handle_error(&mut self, slot: SlotId, errno: i32, now: Now) {
        self.gone(slot, CloseReason::Transport(errno));
        self.settle(now);
    }

    /// Makes the session of a connection, whichever shard accepted it.
    fn open(&mut self, slot: SlotId, listener: ListenerKind, now: Now) {
        self.generation = self.generation.wrapping_add(1);
        let id = SessionId::new(self.generation, slot);
        self.sessions.insert(slot, Session::new(id, listener));
        self.counters.add(Counter::SessionsOpen, 1);
        self.publishers.enter(slot);
        let deadline = now.monotonic_ns.saturating_add(self.limits.handshake_deadline_ns);
        self.watch(deadline, TimerKind::Handshake, id);
        if self.draining.is_some() {
            self.end(slot, crate::session::CloseReason::Shutdown, now);
        }
    }

    /// The connection is no more.
    fn gone(&mut self, slot: SlotId, reason: CloseReason) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        if session.ending.is_none() {
            log_end(session.id, &reason);
            session.ending = Some(Ending { reason, half_closed: true });
            self.detach(slot);
        }
        self.remove(slot);
    }

    fn detach(&mut self, slot: SlotId) {
        self.holders.leave(slot);
        for pattern in self.fanout.detach(slot, &mut self.sessions) {
            self.tell_homes_gone(&pattern);
        }
    }

    pub(super) fn remove(&mut self, slot: SlotId) {
        let Some(session) = self.sessions.remove(slot) else { return };
        debug_assert!(session.memberships.is_empty(), "a session leaves every topic before it ends");
        self.identities.remove(&slot);
        if let Some(ending) = &session.ending {
            self.counters.add(ending.reason.counter(), 1);
        }
        self.counters.subtract(Counter::SessionsSubscribed, u64::from(session.subscribed));
        self.counters.subtract(Counter::SessionsOpen, 1);
        self.actions.push_back(Action::Close(slot));
    }
}
