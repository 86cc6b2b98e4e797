//! HTTP requests of sessions that are not WebSockets yet. They are answered in order, and the connection may stay open between
//! them for a limited time.

use std::borrow::Cow;

use super::{Action, ClientAddress, Shard, authentication::Entry, timers::TimerKind};
use crate::{
    ids::SlotId,
    limits::ECHO_BYTES_MAX,
    metrics::counters::Counter,
    now::Now,
    principal::AuthRefusal,
    session::{
        CloseReason, Protocol, Stream,
        places::{Owner, Places},
    },
};
use tickcast_proto::{
    DecodeError, Step, WireFormat,
    command::Command,
    features::Features,
    framing::Decoder,
    http::{Answer, HttpConfig, Resumed, Target, access::Sender},
};

/// Features of streams, whose clients cannot request any: the fields that 0.1 lacked, all of which an event may contain.
const STREAM_FEATURES: Features = Features::COUNTS.union(Features::REASONS).union(Features::SOURCES);

impl Shard {
    /// Answers the request at the front of `bytes`. Consumes no byte of a request that waits for room in the shard.
    pub(super) fn http(&mut self, slot: SlotId, bytes: &[u8], now: Now) -> Result<Step<()>, DecodeError> {
        let session = self.sessions.get(slot);
        let sender = match session.map(|session| (session.is_safe_from_rebinding, session.client_address)) {
            Some((true, _) | (_, ClientAddress::ProxyHeader)) => Sender::Proxy,
            Some((_, ClientAddress::ForwardedFor)) => Sender::ForwardingProxy,
            Some((_, ClientAddress::Peer)) | None => Sender::Anyone,
        };
        let config = HttpConfig {
            head_bytes_max: self.limits.http_head_bytes_max,
            keeps_alive: self.limits.http_idle_ns > 0,
            health: self.limits.http_health,
            debug_echo: self.limits.debug_echo,
            message_ids: self.remembers_message_ids(),
            deflate: self.limits.deflates(),
            query_token: self.limits.auth.as_ref().is_some_and(|auth| auth.query_token),
            files: self.files,
            access: &self.limits.http_access,
            sender,
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
        if let Answer::Upgrade { target: Target::Stream { token, .. }, .. } = &answer {
            self.settle_last_caller(slot, token.as_ref());
        }
        // A call adds work to this shard and others, unlike anything else that a new connection may begin with.
        if matches!(answer, Answer::Call { .. } | Answer::Poll { .. }) && !self.takes_input() {
            if let Some(Protocol::Http(http)) =
                self.sessions.open_mut(slot).map(|session| &mut session.protocol)
            {
                http.is_kept = true;
                http.connection.unread_lines();
            }
            return Ok(Step::Complete(0, ()));
        }
        match &answer {
            Answer::Call { forwarded_for, .. } => self.enter_forwarded(slot, forwarded_for),
            // The session that it may open has a source of its own.
            Answer::Poll { .. } => self.enter_forwarded(slot, &[]),
            _ => {}
        }
        match answer {
            Answer::Interim(bytes) => {
                self.push_bytes(slot, bytes);
                if self.takes_lines(slot) {
                    self.keep_alive(slot, now);
                }
            }
            Answer::Respond { response, status, closes } => {
                self.counters.add(Counter::HttpResponses, 1);
                self.push_bytes(slot, &response);
                match closes {
                    true => self.end(slot, CloseReason::Http(status), now),
                    false => self.keep_alive(slot, now),
                }
            }
            Answer::Call { call, exchange, host, token, .. } => {
                if let Step::Partial = self.begin_call(slot, call, exchange, &host, token.as_ref(), now) {
                    if let Some(Protocol::Http(http)) =
                        self.sessions.open_mut(slot).map(|session| &mut session.protocol)
                    {
                        http.connection.unread_lines();
                    }
                    return Ok(Step::Partial);
                }
            }
            Answer::Upgrade { forwarded_for, .. } if self.awaits_admission(slot, &forwarded_for) => {
                return Ok(Step::Partial);
            }
            Answer::Poll { poll, exchange, host, forwarded_for, token } => {
                if let Step::Partial =
                    self.poll(slot, poll, exchange, (&host, &forwarded_for), token.as_ref(), now)
                {
                    return Ok(Step::Partial);
                }
            }
            Answer::Upgrade { response, target: Target::Carrier(sid), cors, .. } => {
                if let Step::Partial = self.begin_carrier(slot, sid, &response, &cors, now) {
                    return Ok(Step::Partial);
                }
            }
            Answer::Upgrade { response, target, host, cors, is_head, .. } => {
                match self.enter_stream(slot, &target, &host, is_head, now) {
                    Entry::Admitted if target.is_one_way() => {
                        self.begin_stream(slot, &response, target, (&cors, is_head), now)?
                    }
                    Entry::Admitted => self.upgrade(slot, &response, target, now)?,
                    Entry::Waits => return Ok(Step::Partial),
                    Entry::Refused(refusal) if target.is_one_way() => {
                        self.refuse_stream(slot, &response, &target, refusal, (&cors, is_head), now);
                    }
                    Entry::Refused(AuthRefusal::Busy) => {
                        self.end(slot, CloseReason::Unauthorized(AuthRefusal::Busy), now);
                    }
                    Entry::Refused(refusal) => {
                        self.begin_messages(slot, &response, &target, now);
                        self.end(slot, CloseReason::Unauthorized(refusal), now);
                    }
                }
            }
        }
        Ok(Step::Complete(used, ()))
    }

    /// Returns whether a request for a WebSocket or a stream may be answered here. If not, it waits for the verdict on its
    /// credentials, or has begun its handover. A client may give its credentials in a hello instead, unless it subscribes before
    /// that. A HEAD opens no session: it claims no identity, and does not count for its tenant.
    fn enter_stream(&mut self, slot: SlotId, target: &Target, host: &str, is_head: bool, now: Now) -> Entry {
        let Target::Stream { client, token, patterns, resumed, .. } = target else { return Entry::Admitted };
        if let Err(refusal) = self.enter_tenant_of_host(slot, host) {
            return Entry::Refused(refusal);
        }
        let entry = self.enter(slot, token.as_ref(), patterns.is_empty(), now);
        let Entry::Admitted = entry else { return entry };
        if is_head {
            return Entry::Admitted;
        }
        // Only the shard where it stays counts it.
        let is_elsewhere =
            matches!(resumed, Resumed::Kept(kept) if self.hand_over_stream(slot, client, *kept));
        let stays = !is_elsewhere && self.route_identity(slot, client, now) && self.enter_quota(slot, now);
        if stays { Entry::Admitted } else { Entry::Waits }
    }

    /// Makes a session a WebSocket, and subscribes to what its target asks for. A stream begins in [`Shard::begin_stream`].
    fn upgrade(
        &mut self,
        slot: SlotId,
        response: &[u8],
        target: Target,
        now: Now,
    ) -> Result<(), DecodeError> {
        self.begin_messages(slot, response, &target, now);
        let Target::Stream { patterns, delivery, from, .. } = target else { return Ok(()) };
        if let Some(session) = self.sessions.open_mut(slot)
            && self.limits.auth.is_some()
            && session.lacks_credentials()
        {
            // Its hello has the same deadline as any other handshake.
            let id = session.id;
            let deadline_ns = now.monotonic_ns.saturating_add(self.limits.handshake_deadline_ns);
            self.set_timer(deadline_ns, TimerKind::Credentials, id);
        }
        if patterns.is_empty() {
            return Ok(());
        }
        let patterns = patterns.into_iter().map(Cow::Owned).collect();
        self.execute(slot, Command::Subscribe { request: 0, patterns, delivery, from }, now)
    }

    /// Answers a request for a WebSocket or a stream with the response that its messages follow.
    pub(super) fn begin_messages(&mut self, slot: SlotId, response: &[u8], target: &Target, now: Now) {
        self.actions.push_back(Action::HandshakeDone(slot));
        self.push_bytes(slot, response);
        let Some(session) = self.sessions.open_mut(slot) else {
            return debug_assert!(false, "the response to an upgrade ends no session");
        };
        session.protocol = match *target {
            Target::Carrier(_) => return debug_assert!(false, "begin_carrier answers it"),
            Target::Echo { extension } => {
                let decoder = Decoder::for_long_messages(ECHO_BYTES_MAX);
                if extension.is_some_and(|extension| extension.compresses) {
                    session.format = session.format.deflated();
                }
                Protocol::Echo(if extension.is_some() { decoder.inflating() } else { decoder })
            }
            Target::Stream { format, .. } if format.framing.is_one_way() => {
                (session.format, session.features) = (format, STREAM_FEATURES);
                let since_us = now.realtime_ns / 1_000;
                let new_places = || Places::new(Owner::of(session), since_us, self.positions_memory.clone());
                let places = format.framing.has_places().then(new_places);
                session.protocol =
                    Protocol::Streaming(Box::new(Stream { decoder: Decoder::new(format.framing), places }));
                return self.tell_feeds_not_up(slot);
            }
            Target::Stream { format: WireFormat::SOCKET_IO, .. } => {
                session.format = WireFormat::SOCKET_IO;
                return self.begin_socket_io(slot, now);
            }
            Target::Stream { format, inflates, .. } => {
                session.format = format;
                let decoder = Decoder::new(format.framing);
                Protocol::Open(if inflates { decoder.inflating() } else { decoder })
            }
        };
    }

    /// Whether a session's request is a body of lines, more of which may come.
    fn takes_lines(&self, slot: SlotId) -> bool {
        let session = self.sessions.get(slot);
        session.is_some_and(|session| session.protocol.takes_lines())
    }

    /// How long a session's HTTP connection may be idle. A body of lines may pause even if connections do not stay open between
    /// requests.
    pub(super) fn http_idle_ns(&self, slot: SlotId) -> u64 {
        match self.takes_lines(slot) {
            true => self.limits.http_idle_ns.max(self.limits.handshake_deadline_ns),
            false => self.limits.http_idle_ns,
        }
    }

    /// Keeps a connection open for its next request, whose deadline starts now.
    pub(super) fn keep_alive(&mut self, slot: SlotId, now: Now) {
        let when_ns = now.monotonic_ns.saturating_add(self.http_idle_ns(slot));
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.pulse_ms = now.low_ms();
        let id = session.id;
        let Protocol::Http(http) = &mut session.protocol else { return };
        http.is_kept = true;
        if !std::mem::replace(&mut http.idle_timer_pending, true) {
            self.set_timer(when_ns, TimerKind::HttpIdle, id);
        }
    }

    /// Ends an HTTP connection that has been silent for too long, whether it owes a request or does not read its answer.
    pub(super) fn check_http_idle(&mut self, slot: SlotId, now: Now) {
        let idle_ns = self.http_idle_ns(slot);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let silent_ns = session.silent_ms(now) * 1_000_000;
        let (id, has_call) = (session.id, session.protocol.has_call());
        // A WebSocket has heartbeats instead.
        let Protocol::Http(http) = &mut session.protocol else { return };
        if has_call {
            // It waits for the server. `keep_alive` restarts the timer once the answer is known.
            http.idle_timer_pending = true;
            return self.set_timer(now.monotonic_ns.saturating_add(idle_ns), TimerKind::HttpIdle, id);
        }
        http.idle_timer_pending = silent_ns < idle_ns;
        if silent_ns >= idle_ns {
            // The end of a body that has begun is missing.
            let answer = self.take_unconfirmed(slot, &CloseReason::HttpIdle, now);
            let status = answer.as_ref().map(|(status, _)| *status);
            if let Some((_, answer)) = answer {
                self.push_bytes(slot, &answer);
            }
            return self.end(slot, status.map_or(CloseReason::HttpIdle, CloseReason::Http), now);
        }
        self.set_timer(now.monotonic_ns + (idle_ns - silent_ns), TimerKind::HttpIdle, id);
    }
}
