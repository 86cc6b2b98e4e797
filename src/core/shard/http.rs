//! HTTP requests of sessions that are not WebSockets yet: they are answered in order, and the connection stays open between
//! them for a time.

use std::borrow::Cow;

use super::{Action, Shard, timers::TimerKind};
use crate::{
    ids::SlotId,
    limits::ECHO_BYTES_MAX,
    metrics::counters::Counter,
    now::Now,
    session::{CloseReason, Protocol},
};
use tickcast_proto::{
    DecodeError, Step,
    command::Command,
    framing::Decoder,
    http::{Answer, HttpConfig, Target},
};

impl Shard {
    /// Answers the request at the front of `bytes`.
    pub(super) fn http(&mut self, slot: SlotId, bytes: &[u8], now: Now) -> Result<Step<()>, DecodeError> {
        let config = HttpConfig {
            head_bytes_max: self.limits.http_head_bytes_max,
            keeps_alive: self.limits.http_idle_ns > 0,
            health: self.limits.http_health,
            debug_echo: self.limits.debug_echo,
            files: self.files,
            access: &self.limits.http_access,
            realtime_ns: now.realtime_ns,
        };
        let Some(Protocol::Http(http)) = self.sessions.open_mut(slot).map(|session| &mut session.protocol)
        else {
            debug_assert!(false, "only an HTTP session's input is HTTP");
            return Ok(Step::Partial);
        };
        let Step::Complete(used, answer) = http.connection.step(bytes, &config) else {
            return Ok(Step::Partial);
        };
        match answer {
            Answer::Interim(bytes) => self.push_bytes(slot, bytes),
            Answer::Respond { response, status, closes } => {
                self.counters.add(Counter::HttpResponses, 1);
                self.push_bytes(slot, &response);
                match closes {
                    true => self.end(slot, CloseReason::Http(status), now),
                    false => self.keep_alive(slot, now),
                }
            }
            Answer::Upgrade { forwarded_for, .. } if self.awaits_admission(slot, &forwarded_for) => {
                return Ok(Step::Partial);
            }
            Answer::Upgrade { target: Target::Stream { client, .. }, .. }
                if !self.route_identity(slot, &client, now) =>
            {
                return Ok(Step::Partial);
            }
            Answer::Upgrade { response, target, .. } => self.upgrade(slot, &response, target, now)?,
        }
        Ok(Step::Complete(used, ()))
    }

    /// Makes a session a WebSocket.
    fn upgrade(
        &mut self,
        slot: SlotId,
        response: &[u8],
        target: Target,
        now: Now,
    ) -> Result<(), DecodeError> {
        self.actions.push_back(Action::HandshakeDone(slot));
        self.push_bytes(slot, response);
        let Some(session) = self.sessions.open_mut(slot) else {
            debug_assert!(false, "the response to an upgrade ends no session");
            return Ok(());
        };
        match target {
            Target::Echo => {
                session.protocol = Protocol::Echo(Decoder::for_long_messages(ECHO_BYTES_MAX));
                Ok(())
            }
            Target::Stream { format, patterns, delivery, from, .. } => {
                session.format = format;
                session.protocol = Protocol::Open(Decoder::new(format.framing));
                let patterns = patterns.into_iter().map(Cow::Owned).collect();
                self.execute(slot, Command::Subscribe { request: 0, patterns, delivery, from }, now)
            }
        }
    }

    /// Keeps a connection open for its next request.
    fn keep_alive(&mut self, slot: SlotId, now: Now) {
        let when_ns = now.monotonic_ns.saturating_add(self.limits.http_idle_ns);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let id = session.id;
        let Protocol::Http(http) = &mut session.protocol else { return };
        http.is_kept = true;
        if !std::mem::replace(&mut http.idle_timer_pending, true) {
            self.set_timer(when_ns, TimerKind::HttpIdle, id);
        }
    }

    /// Ends an HTTP connection that has been silent for too long, whether it owes a request or does not read its answer.
    pub(super) fn check_http_idle(&mut self, slot: SlotId, now: Now) {
        let idle_ns = self.limits.http_idle_ns;
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let silent_ns = session.silent_ms(now) * 1_000_000;
        let id = session.id;
        // A WebSocket has heartbeats instead.
        let Protocol::Http(http) = &mut session.protocol else { return };
        if silent_ns >= idle_ns {
            return self.end(slot, CloseReason::HttpIdle, now);
        }
        http.idle_timer_pending = true;
        self.set_timer(now.monotonic_ns + (idle_ns - silent_ns), TimerKind::HttpIdle, id);
    }
}
