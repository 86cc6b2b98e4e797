//! The beginning and the end of sessions.

mod ending;
mod handover;

use self::ending::log_end;
use super::{Action, ListenerKind, Shard, timers::TimerKind};
use crate::{
    ids::{SessionId, SlotId, SourceId},
    limits::{LINGER_DEADLINE_MS, TURN_HALF_CLOSED},
    metrics::counters::Counter,
    now::Now,
    session::{CloseReason, DepartureState, Ending, Protocol, Session},
};

pub use self::{
    ending::{LOG_TARGET_SESSION, LOG_TARGET_TOPIC},
    handover::DetachedSession,
};

impl Shard {
    /// Opens the session of an accepted connection, in a vacant slot.
    pub fn handle_accept(&mut self, slot: SlotId, listener: ListenerKind, now: Now) {
        self.counters.add(Counter::SessionsAccepted, 1);
        self.open(slot, listener, now);
    }

    /// Opens the session of a connection that another shard handed over, in a vacant slot, with all bytes received so far.
    /// They contain a whole HELLO or request head, and its credentials have been verified, so the handshake is complete when this
    /// returns, and its deadline need not account for the time spent on the other shard.
    pub fn handle_attached(&mut self, slot: SlotId, source: SourceId, session: &DetachedSession, now: Now) {
        let DetachedSession {
            listener,
            tenant,
            principal,
            is_read_only,
            is_forwarded,
            client_address,
            is_safe_from_rebinding,
            certificate,
            bytes,
            ..
        } = session;
        self.open(slot, *listener, now);
        self.set_source(slot, source);
        self.set_tenant(slot, *tenant);
        if *is_read_only {
            self.set_read_only(slot);
        }
        if let Some(certificate) = certificate {
            self.set_certificate(slot, certificate);
        }
        if let Some(session) = self.sessions.open_mut(slot) {
            session.client_address = *client_address;
            session.is_safe_from_rebinding = *is_safe_from_rebinding;
            if let Protocol::Http(http) = &mut session.protocol {
                http.is_forwarded = *is_forwarded;
            }
        }
        if let Some(principal) = principal {
            self.attach_principal(slot, principal.clone(), now);
        }
        // The other shard has counted the bytes. Once the server stops, input is no longer processed.
        if !self.input_stopped {
            self.receive(slot, bytes, now);
        }
        self.apply_deferred(now);
    }

    /// Notes that a peer has sent FIN after all of its input. It may still read: its requests are answered before the session
    /// ends.
    ///
    /// A paused session has input left to process, and one that moves to another shard is answered there. In both cases the
    /// transport reports the FIN again once it resumes receiving.
    pub fn handle_eof(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        if let Some(ending) = &mut session.ending {
            ending.peer_closed = true;
            if ending.half_closed {
                self.remove(slot);
            }
        } else if !session.is_paused() && !matches!(session.protocol, Protocol::Leaving { .. }) {
            let id = session.id;
            if !self.end_if_answered(id, now) {
                self.half_closed.push_back(id);
                let deadline = now.monotonic_ns.saturating_add(LINGER_DEADLINE_MS * 1_000_000);
                self.set_timer(deadline, TimerKind::HalfClosed, id);
            }
        }
        self.apply_deferred(now);
    }

    /// Ends sessions whose peers have sent FIN, as soon as their requests have been answered. Visits [`TURN_HALF_CLOSED`] of
    /// them.
    pub(super) fn end_answered(&mut self, now: Now) {
        for _ in 0..self.half_closed.len().min(TURN_HALF_CLOSED) {
            if let Some(id) = self.half_closed.pop_front()
                && !self.end_if_answered(id, now)
            {
                self.half_closed.push_back(id);
            }
        }
    }

    /// Ends a session whose peer has sent FIN if its requests have been answered: acknowledged, and the answers and the
    /// announcements of lost ticks sent.
    /// Unrequested output (ticks of a live subscription) does not keep a session open. Returns whether it has ended.
    fn end_if_answered(&mut self, id: SessionId, now: Now) -> bool {
        let slot = id.slot();
        let session = self.sessions.open_mut(slot).filter(|session| session.id == id);
        let waits = session.map(|session| {
            // Its SENDs take them along, as many as fit into each.
            let has_notices = session.lag.as_deref().is_some_and(|lag| !lag.unannounced.is_empty());
            has_notices || session.awaits_answers() || self.control.is_serving(slot)
        });
        if waits == Some(false) {
            self.end(slot, CloseReason::Peer, now);
        }
        waits != Some(true)
    }

    /// Ends the session of a socket that has failed.
    pub fn handle_error(&mut self, slot: SlotId, errno: i32, now: Now) {
        self.note_connection_ends(slot, &CloseReason::Transport(errno), now);
        self.disconnected(slot, CloseReason::Transport(errno));
        self.apply_deferred(now);
    }

    /// Ends a session whose TLS has failed: nothing that it has to send would be read. `why` is for the log.
    pub fn handle_tls_failure(&mut self, slot: SlotId, why: String, now: Now) {
        self.end(slot, CloseReason::Tls(why), now);
        self.apply_deferred(now);
    }

    /// Ends a session whose TLS keys have reached their limit. Its goodbye still fits.
    pub fn handle_tls_used_up(&mut self, slot: SlotId, now: Now) {
        self.end(slot, CloseReason::TlsKeysUsedUp, now);
        self.apply_deferred(now);
    }

    /// Opens a session, whichever shard accepted its connection.
    pub(super) fn open(&mut self, slot: SlotId, listener: ListenerKind, now: Now) {
        self.generation = self.generation.wrapping_add(1);
        let id = SessionId::new(self.generation, slot);
        self.sessions.insert(slot, Session::new(id, listener));
        self.counters.add(Counter::SessionsOpen, 1);
        let deadline = now.monotonic_ns.saturating_add(self.limits.handshake_deadline_ns);
        self.set_timer(deadline, TimerKind::Handshake, id);
        if self.draining.is_some() {
            self.end(slot, crate::session::CloseReason::Shutdown, now);
        }
    }

    /// Removes a session whose connection is gone.
    fn disconnected(&mut self, slot: SlotId, reason: CloseReason) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        if session.ending.is_none() {
            log_end(session.id, &reason);
            session.ending = Some(Box::new(Ending { half_closed: true, ..Ending::new(reason) }));
            self.drop_subscriptions(slot);
        }
        self.remove(slot);
    }

    /// Leaves the topics and patterns of a session that has begun to end.
    fn drop_subscriptions(&mut self, slot: SlotId) {
        self.holders.leave(slot);
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let Some(ending) = &mut session.ending else {
            return debug_assert!(false, "only an ending session drops its subscriptions");
        };
        ending.departure = DepartureState::Pending;
        let id = session.id;
        self.depart(id);
    }

    /// Notes that an ending session has left all its topics and patterns.
    pub(super) fn departed(&mut self, slot: SlotId) {
        let Some(ending) = self.sessions.any_mut(slot).and_then(|session| session.ending.as_mut()) else {
            return debug_assert!(false, "a session stays until it has departed");
        };
        if std::mem::replace(&mut ending.departure, DepartureState::Done) == DepartureState::RemovedWhenDone {
            self.remove(slot);
        }
    }

    /// Removes a session, at once or when it has left all its topics and patterns.
    pub(super) fn remove(&mut self, slot: SlotId) {
        if let Some(ending) = self.sessions.any_mut(slot).and_then(|session| session.ending.as_mut())
            && ending.departure != DepartureState::Done
        {
            ending.departure = DepartureState::RemovedWhenDone;
            return self.sessions.with_outbox(slot, Session::clear_outbox);
        }
        self.leave_tenant(slot);
        let Some(mut session) = self.sessions.remove(slot) else { return };
        debug_assert!(session.memberships.is_empty(), "a session leaves every topic before it ends");
        self.identities.remove(&slot);
        self.budgets.forget(session.id);
        self.cancel_log_reads(slot);
        self.authentication.forget(slot, session.principal.as_deref());
        if let Some(ending) = &session.ending {
            self.counters.add(ending.reason.counter(), 1);
        }
        self.keep_places(&mut session);
        self.counters.subtract(Counter::SessionsSubscribed, u64::from(session.has_subscribed));
        self.counters.subtract(Counter::SessionsOpen, 1);
        match self.polling.contain(slot) {
            true => self.free_polling(slot, session.source),
            false => self.actions.push_back(Action::Close(slot)),
        }
    }
}
