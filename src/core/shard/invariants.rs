//! What holds between the turns of a shard.

use super::Shard;
use crate::{
    metrics::counters::Counter,
    session::{PendingCall, Protocol, Session, Work},
};

/// [`Shard::invariants`] visits every session up to this many slots, so that turns stay cheap in tests with thousands.
const INVARIANT_SESSIONS_MAX: u32 = 64;

impl Shard {
    /// Checks the invariants after every turn in debug builds. Checks that visit every session run only while there are few, as
    /// in the simulation.
    pub(super) fn invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.stages.invariants();
        self.sessions.invariants();
        assert_eq!(
            self.counters.value(Counter::SessionsOpen),
            self.sessions.len() as u64,
            "each session is counted once"
        );
        assert!(self.identities.len() <= self.sessions.len(), "an identity goes with its session");
        assert!(self.timers.len() <= self.timers_max, "timers without a session are dropped in time");
        if self.sessions.slots_len() > INVARIANT_SESSIONS_MAX {
            return;
        }
        self.sessions.check_memberships();
        let open = || self.sessions.iter().filter(|session| session.ending.is_none());
        assert!(
            self.draining.is_none() || open().all(|session| self.carries_goodbye(session)),
            "no session stays open once the server drains, but for the goodbye of one that it carries"
        );
        assert!(
            open().all(|session| {
                let slot = session.id.slot();
                let waits = session.awaits_verdict() && self.authentication.awaits_verdict(session.id);
                let is_listed = || self.paused.contains(&slot) || self.input_queue.contains(slot);
                !session.is_paused() || waits || is_listed()
            }),
            "every paused session is listed or waits for a verdict, or nothing would resume it"
        );
        for session in open() {
            self.control.check_waits(session.id, session.changes_pending);
        }
    }
    /// Whether a connection carries a session that is ending: it ends after that.
    fn carries_goodbye(&self, session: &Session) -> bool {
        let polled = match &session.protocol {
            Protocol::Http(http) => match http.calls.as_deref().and_then(|calls| calls.pending.as_ref()) {
                Some(PendingCall { work: Work::Poll(id), .. }) => Some(*id),
                _ => None,
            },
            _ => None,
        };
        let carried = session
            .protocol
            .carries()
            .or(polled)
            .and_then(|id| self.sessions.get(id.slot()).filter(|carried| carried.id == id));
        carried.is_some_and(|carried| carried.ending.is_some())
    }
}
