//! Timers: deadlines of handshakes, frames, full sockets and ending sessions, paced ticks, and heartbeats.
//!
//! One [`crate::timer_wheel::Wheel`] per shard holds them all. Timers are never cancelled. When one expires, the shard checks
//! its session, if that still exists, and ends it, sets the next timer, or does nothing.
//!
//! A heartbeat checks twice, half the timeout apart, before it ends a session. So a server that was itself stopped (SIGSTOP,
//! a suspended machine, a starved core), however long, reads the answers that arrived meanwhile before it declares their
//! senders dead. It need not measure its own pauses.

use super::Shard;
use crate::{
    ids::{SessionId, SlotId},
    limits::{PING_LOOKS_PER_INTERVAL, TIMER_GRANULE_NS, TIMERS_GONE_MAX, TURN_TIMERS},
    metrics::counters::Counter,
    now::Now,
    session::{CloseReason, Protocol, Pulse, SendState, Session, membership::Taking},
};
use tickcast_proto::{ids::TopicId, proxy::ProxyError};

/// The purpose of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerKind {
    /// Deadline of the handshake. Once that is complete, the session's first heartbeat: see [`Session::handshake_timer_pending`].
    Handshake,
    /// Deadline of a frame, message or HTTP request whose first bytes have arrived.
    Frame,
    /// Check whether an HTTP connection between two requests is idle for too long.
    HttpIdle,
    /// Check whether the peer is alive.
    Heartbeat,
    /// Check whether a full socket has taken anything.
    Stall,
    /// A tick of this topic held back by the session's rate limit may be sent.
    Pace(TopicId),
    /// Deadline of a hello with the credentials that the request for a WebSocket lacked, or of entering the namespace of Socket.IO.
    Credentials,
    /// Deadline of the verdict on credentials.
    Verdict,
    /// Check whether the session's token expires.
    Expiry,
    /// End of the time for which a session is not read from, because too many of its requests were refused.
    Throttle,
    /// Deadline of a session whose peer has sent FIN, for the answers to its requests.
    HalfClosed,
    /// Deadline of an ending session.
    Linger,
}

/// A timer of a session. 16 bytes. Bound: one of each kind per session, one per rate-limited topic of a session, and stale
/// ones: at most as many again plus [`TIMERS_GONE_MAX`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    kind: TimerKind,
    slot: SlotId,
    /// Upper half of the session's id, because another session may be in the slot by then.
    generation: u32,
}

const _: () = assert!(size_of::<Timer>() == 16, "the docs of Timer say how large it is");

impl Timer {
    /// Creates a timer of the session with this id.
    pub(super) fn new(kind: TimerKind, id: SessionId) -> Timer {
        Timer { kind, slot: id.slot(), generation: id.generation() }
    }

    fn id(self) -> SessionId {
        SessionId::new(self.generation, self.slot)
    }
}

impl Shard {
    /// Sets a timer of a session. Amortized O(1).
    ///
    /// Beyond `timers_max`, stale timers are dropped. Otherwise clients that connect and disconnect fast enough would
    /// exhaust memory with timers that are not yet due.
    pub(super) fn set_timer(&mut self, when_ns: u64, kind: TimerKind, id: SessionId) {
        if self.timers.len() >= self.timers_max {
            let (sessions, authentication) = (&self.sessions, &self.authentication);
            self.timers.retain(|granule, timer| {
                let Some(session) = sessions.get(timer.slot).filter(|session| session.id == timer.id())
                else {
                    return false;
                };
                // There may be several of these timers: keep the one that the session waits for.
                let due_ns = match timer.kind {
                    TimerKind::Pace(topic) => session
                        .memberships
                        .get(topic)
                        .filter(|membership| membership.taking == Taking::Paced)
                        .map(|membership| membership.due_ns),
                    TimerKind::Expiry => authentication.expiry_due_ns(timer.slot),
                    TimerKind::Verdict => authentication.verdict_due_ns(timer.id()),
                    _ => return true,
                };
                due_ns.is_some_and(|due_ns| due_ns.div_ceil(TIMER_GRANULE_NS) == granule)
            });
            self.timers_max = TIMERS_GONE_MAX + 2 * self.timers.len();
        }
        self.timers.insert(when_ns, Timer::new(kind, id));
    }

    /// Processes expired timers, a bounded number per turn. Returns whether there were any.
    pub(super) fn handle_timers(&mut self, now: Now) -> bool {
        self.budgets.drop_full(now.monotonic_ns);
        let mut handled = 0;
        while handled < TURN_TIMERS
            && let Some(timer) = self.timers.pop_due(now.monotonic_ns)
        {
            self.timer_expired(timer, now);
            handled += 1;
        }
        if handled > 0 {
            self.counters.add(Counter::TimersExpired, handled as u64);
        }
        handled > 0
    }

    fn timer_expired(&mut self, timer: Timer, now: Now) {
        let slot = timer.slot;
        let Some(session) = self.sessions.any_mut(slot).filter(|session| session.id == timer.id()) else {
            return;
        };
        match timer.kind {
            TimerKind::Handshake if session.protocol.is_new() => {
                let reason = match session.protocol {
                    Protocol::ProxyHeader => CloseReason::Proxy(ProxyError::Missing),
                    _ if session.awaits_verdict() => return self.end_without_verdict(slot, now),
                    _ => CloseReason::HandshakeDeadline,
                };
                self.end(slot, reason, now);
            }
            TimerKind::Handshake => {
                if std::mem::take(&mut session.handshake_timer_pending) && session.pulse != Pulse::Unwatched {
                    self.check_heartbeat(slot, now);
                }
            }
            TimerKind::Frame => self.check_frame(slot, now),
            TimerKind::HttpIdle => self.check_http_idle(slot, now),
            TimerKind::Heartbeat => self.check_heartbeat(slot, now),
            TimerKind::Stall => self.check_stall(slot, now),
            TimerKind::Pace(topic) => {
                self.fanout.handle_pace_due(
                    topic,
                    slot,
                    &self.home,
                    &mut self.sessions,
                    &mut self.logs,
                    now.monotonic_ns,
                );
            }
            TimerKind::Credentials if session.awaits_hello() => {
                self.end(slot, CloseReason::HandshakeDeadline, now);
            }
            TimerKind::Credentials => {}
            TimerKind::Verdict => self.check_verdict(slot, now),
            TimerKind::Expiry => self.check_expiry(slot, now),
            TimerKind::Throttle => session.is_throttled = false,
            TimerKind::HalfClosed => self.end(slot, CloseReason::Peer, now),
            TimerKind::Linger if self.polling.contain(slot) => self.end_polling(slot, now),
            TimerKind::Linger => self.remove(slot),
        }
    }

    /// Ends a session whose unfinished frame or message is older than the deadline. Sets the timer again for one that began
    /// later.
    /// Time in which an unfinished frame or request must be complete. In a body of lines, each line has the time that the
    /// connection may be idle.
    pub(super) fn input_deadline_ns(&self, slot: SlotId) -> u64 {
        match self.sessions.get(slot).map(|session| &session.protocol) {
            Some(protocol) if protocol.takes_lines() => self.http_idle_ns(slot),
            protocol => self.limits.input_deadline_ns(protocol.is_some_and(Protocol::is_handshake)),
        }
    }

    fn check_frame(&mut self, slot: SlotId, now: Now) {
        let deadline_ns = self.input_deadline_ns(slot);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.frame_timer_pending = false;
        // The verdict has a deadline of its own.
        let is_peers = !session.awaits_verdict();
        let Some(since_ns) = session.unfinished_since_ns().filter(|_| is_peers) else { return };
        let is_handshake = session.protocol.is_handshake();
        let mut when_ns = since_ns.saturating_add(deadline_ns);
        if when_ns <= now.monotonic_ns {
            // The peer cannot finish its message while the shard does not read it for lack of room.
            let waits_for_room = session.is_paused() && session.replies_have_room();
            if !waits_for_room {
                let reason = match is_handshake {
                    true => CloseReason::HandshakeDeadline,
                    false => CloseReason::FrameDeadline,
                };
                return self.end(slot, reason, now);
            }
            when_ns = now.monotonic_ns.saturating_add(deadline_ns);
        }
        session.frame_timer_pending = true;
        let id = session.id;
        self.set_timer(when_ns, TimerKind::Frame, id);
    }

    /// Checks a socket that was full. If it still is, its conflating and dropping subscriptions lose ticks; a lossless
    /// session ends at the stall deadline.
    pub(super) fn check_stall(&mut self, slot: SlotId, now: Now) {
        let (behind_ns, deadline_ns) = (self.limits.behind_ns, self.limits.stall_deadline_ns);
        let full_ns = self.sessions.full_ns(slot, now);
        let is_unpolled = self.is_abandoned(slot);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.stall_timer_pending = false;
        // Without heartbeats, nothing else notices that its client is gone.
        if is_unpolled && self.limits.ping_interval_ns == u64::MAX && full_ns >= deadline_ns {
            return self.end(slot, CloseReason::HeartbeatTimeout, now);
        }
        if !matches!(session.send_state, SendState::Parked | SendState::Throttled) {
            return;
        }
        let id = session.id;
        let lossless = session.yielding.keeping > 0;
        if lossless && full_ns >= deadline_ns {
            return self.end(slot, CloseReason::SlowConsumer, now);
        }
        if full_ns >= behind_ns {
            let before_ns = now.monotonic_ns - behind_ns;
            self.fanout.handle_stall(slot, before_ns, &mut self.sessions, &self.logs);
        }
        let after_ns = if full_ns < behind_ns { behind_ns - full_ns } else { behind_ns };
        let when = now.monotonic_ns.saturating_add(after_ns);
        if let Some(session) = self.sessions.open_mut(slot) {
            session.stall_timer_pending = true;
            self.set_timer(when, TimerKind::Stall, id);
        }
    }

    /// Notes that the peer is alive. Starts its heartbeat once the handshake is complete.
    pub(super) fn note_activity(&mut self, slot: SlotId, now: Now) {
        let interval_ns = self.limits.ping_interval_ns;
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if let Protocol::Carrier(carrier) = &session.protocol {
            // Its session has the heartbeat.
            let carried = carrier.session.slot();
            if session.protocol.carries().is_some() {
                self.note_activity(carried, now);
            }
            return;
        }
        session.pulse_ms = now.low_ms();
        if session.protocol.is_handshake() || interval_ns == u64::MAX {
            return;
        }
        if std::mem::replace(&mut session.pulse, Pulse::Quiet) != Pulse::Unwatched {
            return;
        }
        // Most idle sessions then have a single timer, of 32 bytes.
        if session.handshake_timer_pending && self.limits.handshake_deadline_ns <= interval_ns {
            return;
        }
        session.handshake_timer_pending = false;
        let id = session.id;
        self.set_timer(next_check_ns(now.monotonic_ns + interval_ns, interval_ns), TimerKind::Heartbeat, id);
    }

    /// Pings a peer that was silent for the interval. Ends the session of one that was silent since its ping.
    fn check_heartbeat(&mut self, slot: SlotId, now: Now) {
        let (mut interval_ns, timeout_ns) = (self.limits.ping_interval_ns, self.limits.ping_timeout_ns);
        // Once input is no longer processed, silence means nothing, and the sessions end soon.
        let watches = !self.input_stopped;
        let Some(session) = self.sessions.open_mut(slot).filter(|_| watches) else { return };
        debug_assert!(session.pulse != Pulse::Unwatched, "an unwatched session has no heartbeat timer");
        let mut pinged_ms = None;
        if let Protocol::SocketIo(state) = &session.protocol {
            // Its client expects the interval in the open packet, whatever the configuration says now.
            interval_ns = interval_ns.min(state.ping_interval_ns());
            pinged_ms = Some(state.pinged_ms);
        }
        if interval_ns == u64::MAX {
            // Heartbeats were switched off since the timer was set.
            session.pulse = Pulse::Unwatched;
            return;
        }
        if session.protocol.is_streaming() {
            return self.check_stream(slot, now);
        }
        // A peer that reads its backlog is alive, even if its answer to a ping takes long. Nor is a peer silent while the
        // shard does not read from it because other sessions use up the room.
        let waits_for_others = session.is_paused() && session.replies_have_room();
        if std::mem::take(&mut session.drained_since_heartbeat) || waits_for_others {
            session.pulse_ms = now.low_ms();
            session.pulse = Pulse::Quiet;
        }
        let (interval_ms, half_ms) = (interval_ns / 1_000_000, timeout_ns.div_ceil(2_000_000));
        let timer = Timer::new(TimerKind::Heartbeat, session.id);
        // Clients of Engine.IO expect pings however active they are.
        let since_active_ms = since_ms(session.pulse_ms, now);
        let mut waited_ms = match pinged_ms {
            Some(pinged_ms) if session.pulse == Pulse::Quiet => since_ms(pinged_ms, now),
            _ => since_active_ms,
        };
        if session.pulse == Pulse::Quiet && waited_ms < interval_ms {
            let when_ns = now.monotonic_ns + (interval_ms - waited_ms) * 1_000_000;
            return self.timers.insert(next_check_ns(when_ns, interval_ns), timer);
        }
        let pulse = match session.pulse {
            Pulse::Quiet => Pulse::Pinged,
            Pulse::Pinged if waited_ms >= half_ms => Pulse::Late,
            Pulse::Late if waited_ms >= half_ms => return self.end(slot, CloseReason::HeartbeatTimeout, now),
            waiting => waiting,
        };
        if pulse != session.pulse {
            (session.pulse, session.pulse_ms, waited_ms) = (pulse, now.low_ms(), 0);
            if pulse == Pulse::Pinged {
                self.ping(slot, now);
            }
        }
        // Check again no later than the next ping may be due, because the peer may answer at any time.
        let next_ms = (half_ms - waited_ms).min(interval_ms);
        self.timers.insert(now.monotonic_ns + next_ms * 1_000_000, timer);
    }

    /// Sends a heartbeat to a client that only reads. It is alive if its socket accepts bytes: ends the session if the socket
    /// has been full since the last heartbeat, for longer than the timeout.
    fn check_stream(&mut self, slot: SlotId, now: Now) {
        let (interval_ns, timeout_ns) = (self.limits.ping_interval_ns, self.limits.ping_timeout_ns);
        let full_ns = self.sessions.full_ns(slot, now);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let has_drained = std::mem::take(&mut session.drained_since_heartbeat);
        let is_full = session.send_state == SendState::Parked;
        if is_full && !has_drained && full_ns >= timeout_ns {
            return self.end(slot, CloseReason::HeartbeatTimeout, now);
        }
        let timer = Timer::new(TimerKind::Heartbeat, session.id);
        if !is_full {
            self.ping(slot, now);
        }
        self.timers.insert(next_check_ns(now.monotonic_ns + interval_ns, interval_ns), timer);
    }

    fn ping(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else {
            return debug_assert!(false, "only an open session is pinged");
        };
        debug_assert!(!session.protocol.is_handshake(), "heartbeats start after the handshake");
        let mut bytes = Vec::new();
        session.format.framing.write_ping(now.monotonic_ns, &mut bytes);
        if let Protocol::SocketIo(state) = &mut session.protocol {
            state.pinged_ms = now.low_ms();
        }
        self.counters.add(Counter::Pings, 1);
        self.push_bytes(slot, &bytes);
    }

    /// Sets timers for ticks held back by rate limits.
    pub(super) fn set_pace_timers(&mut self) {
        for pace in self.fanout.take_pace_timers() {
            if let Some(session) = self.sessions.get(pace.slot) {
                let id = session.id;
                self.set_timer(pace.due_ns, TimerKind::Pace(pace.topic), id);
            }
        }
    }
}

impl Session {
    /// Milliseconds since its peer was last heard from; correct for up to 49 days.
    pub(super) fn silent_ms(&self, now: Now) -> u64 {
        since_ms(self.pulse_ms, now)
    }
}

/// Returns the milliseconds since a time from [`Now::low_ms`]; correct for up to 49 days.
fn since_ms(then_ms: u32, now: Now) -> u64 {
    u64::from(now.low_ms().wrapping_sub(then_ms))
}

/// Returns the next time at which heartbeats are checked: rounded up, so that many share one wake-up.
fn next_check_ns(when_ns: u64, interval_ns: u64) -> u64 {
    when_ns.next_multiple_of(interval_ns.div_ceil(PING_LOOKS_PER_INTERVAL))
}
