//! How sessions end: a reason, a goodbye where one can still be said, a deadline, and the socket's close.

use super::{Action, Shard, timers::TimerKind};
use crate::{
    ids::{SessionId, SlotId},
    limits::LINGER_DEADLINE_MS,
    metrics::counters::Counter,
    now::Now,
    session::{CloseReason, Ending, InputState, Protocol},
};
use tickcast_proto::{http, reply::Reply};

/// Log target of sessions that end because of what their client did, or did not: limited and filtered by itself.
pub const LOG_TARGET_SESSION: &str = "tickcast::peer::session";

/// What a client did wrong is worth a line; that sessions come and go is not.
fn log_end(session: SessionId, reason: &CloseReason) {
    match reason {
        CloseReason::Protocol(_)
        | CloseReason::HandshakeDeadline
        | CloseReason::FrameDeadline
        | CloseReason::HeartbeatTimeout
        | CloseReason::SlowConsumer
        | CloseReason::BadRequest(_) => {
            ::log::info!(target: LOG_TARGET_SESSION, "session {session:x} ends: {reason}");
        }
        CloseReason::Peer
        | CloseReason::Shutdown
        | CloseReason::Transport(_)
        | CloseReason::Http(_)
        // Whoever asked for it is told, and so is the log.
        | CloseReason::Operator
        | CloseReason::Replaced => ::log::debug!("session {session:x} ends: {reason}"),
    }
}

impl Shard {
    /// The peer has shut its side: whatever it had to say came before. Of a session whose input waits, not all of that
    /// has been taken up: the transport tells again when it receives again.
    pub fn handle_eof(&mut self, slot: SlotId, now: Now) {
        if self.sessions.open_mut(slot).is_some_and(|session| session.is_paused()) {
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

    /// The server stops: every session gets what waits for it, a goodbye, and until the deadline (CLOCK_MONOTONIC
    /// nanoseconds) to take it.
    pub fn begin_drain(&mut self, deadline_ns: u64, now: Now) {
        self.draining = Some(deadline_ns);
        for slot in self.sessions.slots() {
            // One that is about to end anyway has no more time than the others.
            if let Some(session) = self.sessions.get(slot).filter(|session| session.ending.is_some()) {
                self.watch(deadline_ns, TimerKind::Linger, session.id);
            }
            self.end(slot, CloseReason::Shutdown, now);
        }
        self.settle(now);
    }

    /// The operator closes a session. Returns whether it was there, and open.
    pub fn close(&mut self, id: SessionId, now: Now) -> bool {
        let slot = id.slot();
        let is_open = self.sessions.open_mut(slot).is_some_and(|session| session.id == id);
        if is_open {
            self.end(slot, CloseReason::Operator, now);
            self.settle(now);
        }
        is_open
    }

    /// Ends what was found out while others were being served.
    pub(super) fn settle(&mut self, now: Now) {
        self.count_ticks();
        self.set_paces();
        while let Some(slot) = self.sessions.pop_slow() {
            self.end(slot, CloseReason::SlowConsumer, now);
        }
    }

    /// Starts a session's end. From here on it gets no tick and its input is discarded.
    pub(super) fn end(&mut self, slot: SlotId, reason: CloseReason, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        log_end(session.id, &reason);
        if session.lag.is_some() || session.yields() {
            self.tell_what_is_owed(slot, &reason, now);
        }
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.ending = Some(Ending { reason: reason.clone(), half_closed: false });
        session.input = Vec::new();
        session.message_rest = Vec::new();
        let id = session.id;
        // Its FIN is waited for, and unread input would turn the close into a reset.
        if std::mem::take(&mut session.input_state) == InputState::Paused {
            self.actions.push_back(Action::ResumeReceive(slot));
        }
        self.stay(slot);
        self.detach(slot);
        if let Some(session) = self.sessions.any_mut(slot) {
            // Nothing more is given to it, so nothing may be waited for.
            session.lag = None;
        }
        // A peer's WebSocket close has been answered: the answer is the last thing that waits.
        let keeps_outbox = reason.flushes() || reason == CloseReason::Peer;
        let mut goodbye = true;
        if !keeps_outbox {
            self.sessions.with_outbox(slot, |session| {
                goodbye = !session.outbox.is_mid_frame();
                session.clear_outbox();
            });
        }
        if goodbye && !matches!(reason, CloseReason::Peer | CloseReason::Http(_)) {
            self.say_goodbye(slot, &reason);
        }
        let deadline = match self.draining {
            Some(drain_ns) => drain_ns,
            None => now.monotonic_ns.saturating_add(self.linger_ns(&reason)),
        };
        self.watch(deadline, TimerKind::Linger, id);
        if self
            .sessions
            .any_mut(slot)
            .is_some_and(|session| !session.is_sending() && session.outbox_bytes() == 0)
        {
            self.flushed(slot, now);
        }
    }

    /// How long what a session is still to take may need. A file of the page is longer than a line of text: it has as much
    /// time as its request had, the wait for the peer's close included.
    fn linger_ns(&self, reason: &CloseReason) -> u64 {
        if is_long(reason) { LINGER_NS.max(self.limits.handshake_deadline_ns) } else { LINGER_NS }
    }

    /// What a session is not told any more it would take for delivered.
    fn tell_what_is_owed(&mut self, slot: SlotId, reason: &CloseReason, now: Now) {
        match reason {
            CloseReason::Shutdown => {
                let max = self.limits.outbox_bytes_max;
                let left = &mut self.drain_left_bytes;
                self.fanout.finish(slot, max, left, &mut self.sessions, &mut self.logs, now.monotonic_ns);
            }
            // What waits for it is still sent.
            CloseReason::Peer => {
                let lag = self.sessions.get(slot).and_then(|session| session.lag.as_deref());
                let untold = lag.map(|lag| lag.untold.clone()).unwrap_or_default();
                self.fanout.tell_of(&untold, slot, &mut self.sessions);
            }
            _ => {}
        }
    }

    /// What waited for a session has been overwritten.
    pub(super) fn lapped(&mut self, slot: SlotId, now: Now) {
        self.end(slot, CloseReason::SlowConsumer, now);
        let Some(reason) = self.sessions.any_mut(slot).and_then(|session| session.ending.clone()) else {
            return;
        };
        if reason.reason == CloseReason::SlowConsumer {
            return;
        }
        // It was about to end for another reason: what is left of it is the goodbye.
        let mut goodbye = true;
        self.sessions.with_outbox(slot, |session| {
            goodbye = !session.outbox.is_mid_frame();
            session.clear_outbox();
        });
        if goodbye {
            self.say_goodbye(slot, &reason.reason);
        } else {
            self.flushed(slot, now);
        }
    }

    fn say_goodbye(&mut self, slot: SlotId, reason: &CloseReason) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let mut bytes = Vec::new();
        let text = reason.to_string();
        let reconnect_after_ms = match reason {
            // Everybody is told at once: all would come back at once.
            CloseReason::Shutdown => {
                let life = self.epoch ^ u64::from(self.id.0);
                reconnect_after_ms(life, session.id, self.limits.reconnect_spread_ms)
            }
            _ => 0,
        };
        let framing = session.format.framing;
        match session.protocol {
            Protocol::HttpHead if *reason == CloseReason::HandshakeDeadline => bytes = http::timed_out(),
            // What is on its way to another shard has come to stay before it ends.
            Protocol::HttpHead | Protocol::Leaving(_) => {}
            Protocol::Echo(_) => framing.write_close(reason.close_frame_code(), &text, &mut bytes),
            Protocol::Hello(_) | Protocol::Open(_) => {
                Reply::Closing { code: reason.code(), reason: &text, reconnect_after_ms }
                    .encode(session.format, &mut bytes);
                framing.write_close(reason.close_frame_code(), &text, &mut bytes);
            }
        }
        self.push_bytes(slot, &bytes);
    }

    /// Everything a session had waiting has been taken. If it is to end, the next step of that is due.
    pub(super) fn flushed(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let sending = session.is_sending();
        let Some(ending) = &mut session.ending else { return };
        if ending.half_closed || sending {
            return;
        }
        match ending.reason {
            // The peer has said that it sends no more: nothing can be lost to a reset.
            CloseReason::Peer => self.remove(slot),
            // Unread input would turn a close into a reset, and the goodbye would be lost: FIN first, then wait.
            _ => {
                ending.half_closed = true;
                let (id, had_longer) = (session.id, is_long(&ending.reason));
                self.actions.push_back(Action::ShutdownWrite(slot));
                // The rest is the kernel's to deliver: to close its own side, no peer has longer. The deadline of before
                // stays, so who took the file at the last moment has only what is left of that.
                if had_longer && self.draining.is_none() {
                    self.watch(now.monotonic_ns + LINGER_NS, TimerKind::Linger, id);
                }
            }
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

const LINGER_NS: u64 = LINGER_DEADLINE_MS * 1_000_000;

/// Whether what is still to be taken may be a whole file.
fn is_long(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::Http(200))
}

/// When a session's client is to come back, from 0 to `spread_ms`: another time for each session, the same however often
/// it is asked for.
fn reconnect_after_ms(life: u64, session: SessionId, spread_ms: u32) -> u32 {
    let hash = mixed(mixed(life) ^ session.0);
    (((hash >> 32) * (u64::from(spread_ms) + 1)) >> 32) as u32
}

/// The output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_to_come_back_evenly_over_the_spread() {
        let mut seconds = [0; 5];
        for shard in 0..2 {
            for slot in 0..5_000u64 {
                let after_ms = reconnect_after_ms(7 ^ shard, SessionId(1 << 32 | slot), 4_999);
                seconds[after_ms as usize / 1_000] += 1;
            }
        }
        assert!(seconds.iter().all(|count| (1_800..2_200).contains(count)), "{seconds:?}");
        assert!((0..1_000).all(|id| reconnect_after_ms(7, SessionId(id), 0) == 0));
        assert!((0..1_000).any(|id| reconnect_after_ms(7, SessionId(id), u32::MAX) > 1 << 31));
    }
}
