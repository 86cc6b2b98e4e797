//! What happens when time has passed: deadlines of handshakes, frames and goodbyes, and heartbeats.
//!
//! One [`crate::timer_wheel::Wheel`] a shard holds them all. Nothing is cancelled: a timer that is due looks at its session,
//! if that is still there, and ends it, waits on, or does nothing.
//!
//! A heartbeat looks twice before it ends a session, and half the time-out is between the looks. So a server that was
//! itself stopped (SIGSTOP, a suspended machine, a starved core) finds the answers that came meanwhile before it takes
//! their senders for dead, however long it was stopped: no reckoning with its own pauses is needed.

use super::Shard;
use crate::{
    ids::{SessionId, SlotId},
    limits::{PING_LOOKS_PER_INTERVAL, TIMER_GRANULE_NS, TIMERS_GONE_MAX, TURN_TIMERS},
    metrics::counters::Counter,
    now::Now,
    session::{CloseReason, InputState, Pulse, membership::Taking},
};
use tickcast_proto::ids::TopicId;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerKind {
    /// The handshake is to be done.
    Handshake,
    /// A frame that has begun is to be whole.
    Frame,
    /// The peer is to be heard.
    Heartbeat,
    /// A socket that was full is to have taken something.
    Stall,
    /// A tick of this topic that was held for its pace may come.
    Pace(TopicId),
    /// A session that ends is to be gone.
    Linger,
}

/// A timer of a session. 16 bytes. Bound: one of each kind a session, one for each topic it takes at a pace, and those that
/// have lost their meaning: at most as many again, and [`TIMERS_GONE_MAX`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    kind: TimerKind,
    slot: SlotId,
    /// The upper half of the session's id: the slot may be another's by then.
    generation: u32,
}

const _: () = assert!(size_of::<Timer>() == 16, "the docs of Timer say how large it is");

impl Timer {
    /// A timer of the session with this id.
    pub(super) fn new(kind: TimerKind, id: SessionId) -> Timer {
        Timer { kind, slot: id.slot(), generation: id.generation() }
    }

    fn id(self) -> SessionId {
        SessionId::new(self.generation, self.slot)
    }
}

impl Shard {
    /// Sets a timer of a session. Once there are too many, those of sessions that are gone are forgotten: they would be
    /// kept until they are due, and clients that come and go fast enough would take all memory. A few steps a call in the
    /// long run.
    pub(super) fn watch(&mut self, when_ns: u64, kind: TimerKind, id: SessionId) {
        if self.timers.len() >= self.timers_max {
            let sessions = &self.sessions;
            self.timers.retain(|granule, timer| {
                let Some(session) = sessions.get(timer.slot).filter(|session| session.id == timer.id())
                else {
                    return false;
                };
                // Of a topic's paces only the one that counts.
                let TimerKind::Pace(topic) = timer.kind else { return true };
                session.memberships.get(&topic).is_some_and(|membership| {
                    membership.taking == Taking::Paced
                        && membership.due_ns.div_ceil(TIMER_GRANULE_NS) == granule
                })
            });
            self.timers_max = TIMERS_GONE_MAX + 2 * self.timers.len();
        }
        self.timers.insert(when_ns, Timer::new(kind, id));
    }

    /// Does what is due, a bounded number of timers a turn. Returns whether anything was.
    pub(super) fn handle_timers(&mut self, now: Now) -> bool {
        for handled in 0..TURN_TIMERS {
            let Some(timer) = self.timers.pop_due(now.monotonic_ns) else { return handled > 0 };
            self.timer_is_due(timer, now);
        }
        true
    }

    fn timer_is_due(&mut self, timer: Timer, now: Now) {
        let slot = timer.slot;
        let Some(session) = self.sessions.any_mut(slot).filter(|session| session.id == timer.id()) else {
            return;
        };
        match timer.kind {
            TimerKind::Handshake if session.protocol.is_handshake() => {
                self.end(slot, CloseReason::HandshakeDeadline, now);
            }
            TimerKind::Handshake => {}
            TimerKind::Frame => self.frame_is_due(slot, now),
            TimerKind::Heartbeat => self.heartbeat_is_due(slot, now),
            TimerKind::Stall => self.stall_is_due(slot, now),
            TimerKind::Pace(topic) => {
                self.fanout.pace_is_due(topic, slot, &mut self.sessions, &mut self.logs, now.monotonic_ns);
            }
            TimerKind::Linger => self.remove(slot),
        }
    }

    /// Ends a session that has held part of a frame for too long; watches on while one has only begun since.
    fn frame_is_due(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.frame_timer_pending = false;
        let InputState::Partial { since_ns } = session.input_state else { return };
        let when_ns = since_ns.saturating_add(self.limits.frame_deadline_ns);
        if when_ns <= now.monotonic_ns {
            return self.end(slot, CloseReason::FrameDeadline, now);
        }
        session.frame_timer_pending = true;
        let id = session.id;
        self.watch(when_ns, TimerKind::Frame, id);
    }

    /// Something came from the peer: it lives. From the end of the handshake on it is watched.
    pub(super) fn heard(&mut self, slot: SlotId, now: Now) {
        let interval_ns = self.limits.ping_interval_ns;
        let Some(session) = self.sessions.open_mut(slot).filter(|_| interval_ns != u64::MAX) else { return };
        session.pulse_ms = low_ms(now);
        if session.protocol.is_handshake() {
            return;
        }
        if std::mem::replace(&mut session.pulse, Pulse::Quiet) != Pulse::Unwatched {
            return;
        }
        let id = session.id;
        self.watch(next_look_ns(now.monotonic_ns + interval_ns, interval_ns), TimerKind::Heartbeat, id);
    }

    /// Pings a peer that was silent for the interval, and ends one that was silent since its ping.
    fn heartbeat_is_due(&mut self, slot: SlotId, now: Now) {
        let (interval_ns, timeout_ns) = (self.limits.ping_interval_ns, self.limits.ping_timeout_ns);
        // Once nothing is taken from clients their silence says nothing, and their goodbye is near.
        let watches = !self.input_stopped;
        let Some(session) = self.sessions.open_mut(slot).filter(|_| watches) else { return };
        debug_assert!(session.pulse != Pulse::Unwatched, "an unwatched session has no heartbeat timer");
        if interval_ns == u64::MAX {
            // It was switched off since.
            session.pulse = Pulse::Unwatched;
            return;
        }
        // It is not read from for want of room that is not its own, or it works off what was sent to it: a ping may be
        // far behind, but somebody reads.
        let waits_for_others = session.is_paused() && session.takes_requests();
        if std::mem::take(&mut session.drained_since_heartbeat) || waits_for_others {
            session.pulse_ms = low_ms(now);
            session.pulse = Pulse::Quiet;
        }
        let (interval_ms, half_ms) = (interval_ns / 1_000_000, timeout_ns.div_ceil(2_000_000));
        let timer = Timer::new(TimerKind::Heartbeat, session.id);
        let mut waited_ms = since_ms(session.pulse_ms, now);
        if session.pulse == Pulse::Quiet && waited_ms < interval_ms {
            let when_ns = now.monotonic_ns + (interval_ms - waited_ms) * 1_000_000;
            return self.timers.insert(next_look_ns(when_ns, interval_ns), timer);
        }
        let pulse = match session.pulse {
            Pulse::Quiet => Pulse::Pinged,
            Pulse::Pinged if waited_ms >= half_ms => Pulse::Late,
            Pulse::Late if waited_ms >= half_ms => return self.end(slot, CloseReason::HeartbeatTimeout, now),
            waiting => waiting,
        };
        if pulse != session.pulse {
            (session.pulse, session.pulse_ms, waited_ms) = (pulse, low_ms(now), 0);
            if pulse == Pulse::Pinged {
                self.ping(slot, now);
            }
        }
        // Not later than the next ping may be due: it may answer at any time.
        let next_ms = (half_ms - waited_ms).min(interval_ms);
        self.timers.insert(now.monotonic_ns + next_ms * 1_000_000, timer);
    }

    fn ping(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        debug_assert!(!session.protocol.is_handshake(), "who is not yet there is not watched");
        let mut bytes = Vec::new();
        session.format.framing.write_ping(now.monotonic_ns, &mut bytes);
        self.counters.add(Counter::Pings, 1);
        self.push_bytes(slot, &bytes);
    }
}

fn low_ms(now: Now) -> u32 {
    (now.monotonic_ns / 1_000_000) as u32
}

/// Milliseconds from a time that [`low_ms`] gave: right for 49 days.
fn since_ms(then_ms: u32, now: Now) -> u64 {
    u64::from(low_ms(now).wrapping_sub(then_ms))
}

/// The next moment at which silent sessions are looked at.
fn next_look_ns(when_ns: u64, interval_ns: u64) -> u64 {
    when_ns.next_multiple_of(interval_ns.div_ceil(PING_LOOKS_PER_INTERVAL))
}
