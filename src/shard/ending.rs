//! How sessions end: a reason, a goodbye where one can still be said, a deadline, and the socket's close.

use std::cmp::Reverse;

use super::{Action, Deadline, Shard};
use crate::{
    clock::Now,
    counters::Counter,
    limits::{DEADLINES_GONE_MAX, LINGER_DEADLINE_MS},
    session::{CloseReason, Ending, Protocol},
    wire::{Encoding, http, reply::Reply, websocket},
};

impl Shard {
    /// The peer has shut its side: whatever it had to say came before. Of a session whose input waits, not all of that
    /// has been taken up: the transport tells again when it receives again.
    pub fn handle_eof(&mut self, slot: u32, now: Now) {
        if self.sessions.open_mut(slot).is_some_and(|session| session.paused) {
            return;
        }
        self.gone(slot, CloseReason::Peer);
        self.settle(now);
    }

    /// The socket has failed.
    pub fn handle_error(&mut self, slot: u32, errno: i32, now: Now) {
        self.gone(slot, CloseReason::Transport(errno));
        self.settle(now);
    }

    /// The server stops: every session gets what waits for it, a goodbye, and until the deadline (CLOCK_MONOTONIC
    /// nanoseconds) to take it.
    pub fn begin_drain(&mut self, deadline_ns: u64, now: Now) {
        self.draining = Some(deadline_ns);
        for slot in self.sessions.slots() {
            self.end(slot, CloseReason::Shutdown, now);
        }
        self.settle(now);
    }

    /// Ends what was found out while others were being served.
    pub(super) fn settle(&mut self, now: Now) {
        while let Some((slot, reason)) = self.sessions.pop_doomed() {
            self.end(slot, reason, now);
        }
    }

    /// Notes a deadline of a session. Bound: six a session (a live one has three at most: handshake, frame, linger) and
    /// [`DEADLINES_GONE_MAX`]. Past it those of sessions that are gone are forgotten: they would be kept until they are
    /// due, and clients that come and go fast enough would take all memory. No more than a few steps a call in the long run.
    pub(super) fn watch(&mut self, when_ns: u64, deadline: Deadline, slot: u32, id: u64) {
        if self.deadlines.len() >= DEADLINES_GONE_MAX + 6 * self.sessions.len() {
            self.deadlines.retain(|&Reverse((_, _, slot, id))| {
                self.sessions.any_mut(slot).is_some_and(|session| session.id == id)
            });
        }
        self.deadlines.push(Reverse((when_ns, deadline, slot, id)));
    }

    /// Closes what did not come in time. Returns whether anything was due.
    pub(super) fn handle_deadlines(&mut self, now: Now) -> bool {
        let mut any = false;
        while let Some(&Reverse((when, deadline, slot, id))) = self.deadlines.peek()
            && when <= now.monotonic_ns
        {
            any = true;
            self.deadlines.pop();
            let Some(session) = self.sessions.any_mut(slot).filter(|session| session.id == id) else {
                continue;
            };
            let in_handshake = matches!(session.protocol, Protocol::NativeHello | Protocol::HttpHead);
            match deadline {
                Deadline::Handshake if in_handshake && session.ending.is_none() => {
                    self.end(slot, CloseReason::HandshakeDeadline, now);
                }
                Deadline::Handshake => {}
                Deadline::Frame => self.frame_is_due(slot, now),
                Deadline::Linger => self.remove(slot),
            }
        }
        any
    }

    /// Ends a session that has held part of a frame for too long; watches on while one has only begun since.
    fn frame_is_due(&mut self, slot: u32, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.partial_watched = false;
        let Some(since_ns) = session.partial_since_ns else { return };
        let when = since_ns.saturating_add(self.limits.frame_deadline_ns);
        if when <= now.monotonic_ns {
            return self.end(slot, CloseReason::FrameDeadline, now);
        }
        session.partial_watched = true;
        let id = session.id;
        self.watch(when, Deadline::Frame, slot, id);
    }

    /// Starts a session's end. From here on it gets no tick and its input is discarded.
    pub(super) fn end(&mut self, slot: u32, reason: CloseReason, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        ::log::debug!("session {:x} ends: {reason}", session.id);
        session.ending = Some(Ending { reason: reason.clone(), half_closed: false });
        session.input = Vec::new();
        let id = session.id;
        // Its FIN is waited for, and unread input would turn the close into a reset.
        if std::mem::take(&mut session.paused) {
            self.actions.push_back(Action::ResumeReceive(slot));
        }
        self.detach(slot);
        // A peer's WebSocket close has been answered: the answer is the last thing that waits.
        let keeps_outbox = reason.flushes() || reason == CloseReason::Peer;
        let mut goodbye = true;
        if !keeps_outbox {
            self.sessions.with_outbox(slot, |session| {
                goodbye = !session.mid_frame;
                session.clear_outbox();
            });
        }
        if goodbye && !matches!(reason, CloseReason::Peer | CloseReason::Http(_)) {
            self.say_goodbye(slot, &reason);
        }
        let deadline = match self.draining {
            Some(drain_ns) => drain_ns,
            None => now.monotonic_ns + LINGER_DEADLINE_MS * 1_000_000,
        };
        self.watch(deadline, Deadline::Linger, slot, id);
        if self.sessions.any_mut(slot).is_some_and(|session| !session.sending && session.outbox_bytes() == 0)
        {
            self.flushed(slot);
        }
    }

    fn say_goodbye(&mut self, slot: u32, reason: &CloseReason) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let mut bytes = Vec::new();
        let text = reason.to_string();
        match session.protocol {
            Protocol::HttpHead if *reason == CloseReason::HandshakeDeadline => bytes = http::timed_out(),
            Protocol::HttpHead => {}
            Protocol::Echo(_) => websocket::encode_close(&mut bytes, reason.code(), &text),
            Protocol::NativeHello | Protocol::Native | Protocol::Stream(_) => {
                Reply::Closing { code: reason.code(), reason: &text }.encode(session.encoding, &mut bytes);
                if session.encoding != Encoding::Native {
                    websocket::encode_close(&mut bytes, reason.code(), &text);
                }
            }
        }
        self.push_bytes(slot, &bytes);
    }

    /// Everything a session had waiting has been taken. If it is to end, the next step of that is due.
    pub(super) fn flushed(&mut self, slot: u32) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let Some(ending) = &mut session.ending else { return };
        if session.sending || ending.half_closed {
            return;
        }
        match ending.reason {
            // The peer has said that it sends no more: nothing can be lost to a reset.
            CloseReason::Peer => self.remove(slot),
            // Unread input would turn a close into a reset, and the goodbye would be lost: FIN first, then wait.
            _ => {
                ending.half_closed = true;
                self.actions.push_back(Action::ShutdownWrite(slot));
            }
        }
    }

    /// The connection is no more.
    fn gone(&mut self, slot: u32, reason: CloseReason) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        if session.ending.is_none() {
            ::log::debug!("session {:x} ends: {reason}", session.id);
            session.ending = Some(Ending { reason, half_closed: true });
            self.detach(slot);
        }
        self.remove(slot);
    }

    fn detach(&mut self, slot: u32) {
        for pattern in self.fanout.detach(slot, &mut self.sessions) {
            self.tell_homes_gone(&pattern);
        }
    }

    fn remove(&mut self, slot: u32) {
        let Some(session) = self.sessions.remove(slot) else { return };
        debug_assert!(session.memberships.is_empty(), "a session leaves every topic before it ends");
        if let Some(ending) = &session.ending {
            self.counters.add(ending.reason.counter(), 1);
        }
        self.counters.subtract(Counter::SessionsSubscribed, u64::from(session.subscribed));
        self.counters.subtract(Counter::SessionsOpen, 1);
        self.actions.push_back(Action::Close(slot));
    }
}
