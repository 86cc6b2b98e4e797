//! The end of a session: a reason, CLOSING if the client can still read it, FIN, a deadline, and the close of the socket.

use crate::{
    fanout::CloseBudget,
    ids::{SessionId, SlotId},
    limits::{CLOSE_NOTICES_BYTES, LINGER_DEADLINE_MS, REFUSED_RETRY_AFTER_S},
    now::Now,
    principal::AuthRefusal,
    session::{CloseReason, Ending, InputState, KeptOutbox, Protocol},
    shard::{Action, ListenerKind, Shard, socket_io, timers::TimerKind},
};
use tickcast_proto::{framing::event_stream, http, reply::Reply};

/// Log target for sessions ended by what their client did or failed to do. It has its own rate limit and filter.
pub const LOG_TARGET_SESSION: &str = "tickcast::peer::session";
/// Target of log lines about topics that sessions may not create; the logger may limit their rate.
pub const LOG_TARGET_TOPIC: &str = "tickcast::peer::topic";

/// Logs the end of a session: a client's fault at level info, the rest at debug.
pub(super) fn log_end(session: SessionId, reason: &CloseReason) {
    match reason {
        CloseReason::Protocol(_)
        | CloseReason::HandshakeDeadline
        | CloseReason::FrameDeadline
        | CloseReason::HeartbeatTimeout
        | CloseReason::SlowConsumer
        | CloseReason::UnfinishedMemory
        | CloseReason::Refused(_)
        | CloseReason::Unauthorized(_)
        | CloseReason::Proxy(_)
        | CloseReason::Tls(_)
        | CloseReason::BadRequest(_) => {
            ::log::info!(target: LOG_TARGET_SESSION, "session {session:x} ends: {reason}");
        }
        CloseReason::Peer
        | CloseReason::Shutdown
        | CloseReason::Transport(_)
        | CloseReason::Http(_)
        | CloseReason::HttpIdle
        // Not the client's fault; the shard logs that it is overloaded.
        | CloseReason::Overloaded
        // Logged where it was requested.
        | CloseReason::Operator
        | CloseReason::TlsKeysUsedUp
        | CloseReason::Replaced => ::log::debug!("session {session:x} ends: {reason}"),
    }
}

impl Shard {
    /// Stops processing clients' input, including what has been received but not processed yet.
    pub fn stop_input(&mut self) {
        self.input_stopped = true;
    }

    /// Drains the shard: every session gets its outbox and CLOSING, and has until the deadline (CLOCK_MONOTONIC
    /// nanoseconds) to read them.
    pub fn begin_drain(&mut self, deadline_ns: u64, now: Now) {
        self.fanout.finish_openings(&mut self.sessions, &mut self.logs);
        // Sessions that the answers end have as long as the others to read them.
        self.draining = Some(deadline_ns);
        self.end_routed(now);
        self.answer_calls(now);
        for slot in self.sessions.slots() {
            // A session that is already ending gets no more time than the others.
            if let Some(session) = self.sessions.get(slot).filter(|session| session.ending.is_some()) {
                self.set_timer(deadline_ns, TimerKind::Linger, session.id);
            }
            self.end(slot, CloseReason::Shutdown, now);
        }
        self.apply_deferred(now);
    }

    /// Closes a session for the operator. Returns whether it existed and was open.
    pub fn close(&mut self, id: SessionId, now: Now) -> bool {
        let slot = id.slot();
        let is_open = self.sessions.open_mut(slot).is_some_and(|session| session.id == id);
        if is_open {
            self.end(slot, CloseReason::Operator, now);
            self.apply_deferred(now);
        }
        is_open
    }

    /// Begins a session's end: it gets no more ticks, and its input is discarded.
    pub(in crate::shard) fn end(&mut self, slot: SlotId, reason: CloseReason, now: Now) {
        if self.sessions.open_mut(slot).is_none() || self.note_connection_ends(slot, &reason, now) {
            return;
        }
        let Some(session) = self.sessions.open_mut(slot) else { return };
        log_end(session.id, &reason);
        if session.lag.is_some() || session.yields() {
            self.flush_held(slot, &reason, now);
        }
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.ending = Some(Box::new(Ending::new(reason.clone())));
        let had_input = !session.input().is_empty();
        session.discard_input();
        if let Some(decoder) = session.protocol.decoder_mut() {
            decoder.discard_fragments();
        }
        let (id, is_polling) = (session.id, session.protocol.carried_mut().is_some());
        // The shard waits for the peer's FIN, and unread input would turn the close into a reset.
        if std::mem::take(&mut session.input_state) == InputState::Paused {
            self.actions.push_back(Action::ResumeReceive(slot));
        }
        self.cancel_handover(slot);
        if is_polling {
            self.drop_carrier_input(slot);
        }
        // Its goodbye does not wait for its tenant's quota.
        self.sessions.release_throttled(slot, now);
        self.drop_subscriptions(slot);
        self.cancel_log_reads(slot);
        if let Some(session) = self.sessions.any_mut(slot) {
            // Nothing more is queued to it, so it no longer lags.
            session.lag = None;
        }
        self.sessions.count_unfinished(slot);
        if self.cut_outbox(slot, reason.kept_outbox()) && reason.has_goodbye() {
            self.push_closing(slot, &reason, had_input, now);
        }
        let deadline = match self.draining {
            Some(drain_ns) => drain_ns,
            None => now.monotonic_ns.saturating_add(self.linger_ns(&reason)),
        };
        self.set_timer(deadline, TimerKind::Linger, id);
        if self
            .sessions
            .any_mut(slot)
            .is_some_and(|session| !session.is_sending() && session.outbox_bytes() == 0)
        {
            self.continue_ending(slot, now);
        }
        // A server that stops waits for no poll.
        if self.draining.is_some() && self.is_abandoned(slot) {
            self.end_polling(slot, now);
        }
        self.finish_post(slot, now);
    }

    /// Drops the part of the outbox that an ending session no longer receives. Returns whether more may be sent: `false` if the
    /// rest of a partly sent frame is gone.
    ///
    /// The kept replies have the same bound as in an open session: [`crate::limits::REPLY_BYTES_MAX`], and the replies to
    /// the message that exceeded it.
    fn cut_outbox(&mut self, slot: SlotId, kept: KeptOutbox) -> bool {
        let (logs, mut is_whole) = (&self.logs, true);
        self.sessions.with_outbox(slot, |session| match kept {
            KeptOutbox::Everything => {}
            KeptOutbox::Replies => is_whole = session.outbox.keep_replies(logs.of(session.format)),
            // No frame, CLOSING included, may precede the response that makes the connection a WebSocket.
            KeptOutbox::Nothing if session.outbox.next_is_reply(b"HTTP/") => {
                is_whole = session.outbox.keep_replies(logs.of(session.format));
            }
            KeptOutbox::Nothing => {
                is_whole = !session.outbox.is_mid_frame();
                session.clear_outbox();
            }
        });
        is_whole
    }

    /// Returns how long an ending session may take to read its outbox. A file of the page takes longer than a line of text,
    /// so it gets as much time as the handshake, including the wait for the peer's FIN.
    fn linger_ns(&self, reason: &CloseReason) -> u64 {
        if is_file(reason) { LINGER_NS.max(self.limits.handshake_deadline_ns) } else { LINGER_NS }
    }

    /// Queues held ticks and pending announcements, so that the client does not mistake lost ticks for delivered ones.
    fn flush_held(&mut self, slot: SlotId, reason: &CloseReason, now: Now) {
        match reason {
            CloseReason::Shutdown => {
                let budget = CloseBudget {
                    outbox_bytes_max: self.limits.outbox_bytes_max,
                    log_bytes_left: &mut self.drain_left_bytes,
                };
                self.fanout.flush_for_close(
                    slot,
                    budget,
                    &self.home,
                    &mut self.sessions,
                    &mut self.logs,
                    now.monotonic_ns,
                );
            }
            // Its outbox is still sent.
            CloseReason::Peer => {
                // Usually none are left. A peer that has not read the others for a second gets no more than these.
                self.fanout.flush_notices(slot, CLOSE_NOTICES_BYTES, &mut self.sessions);
            }
            _ => {}
        }
    }

    /// Ends a session whose queued frames have been overwritten in the egress log.
    pub(in crate::shard) fn end_lapped(&mut self, slot: SlotId, now: Now) {
        if self.sessions.open_mut(slot).is_some() {
            let why = self.why_too_far_behind(slot);
            return self.end(slot, why, now);
        }
        let Some(ending) = self.sessions.any_mut(slot).and_then(|session| session.ending.clone()) else {
            return debug_assert!(false, "a lapped session is ending");
        };
        // It was already ending for another reason: only replies and CLOSING remain to be sent.
        if self.cut_outbox(slot, KeptOutbox::Replies) && ending.reason.has_goodbye() {
            self.push_closing(slot, &ending.reason, false, now);
        }
        if self.sessions.get(slot).is_some_and(|session| session.outbox_bytes() == 0) {
            self.continue_ending(slot, now);
        }
    }

    /// Why a session that is too far behind ends: its client is slow, or the server is overloaded.
    pub(in crate::shard) fn why_too_far_behind(&mut self, slot: SlotId) -> CloseReason {
        if self.sessions.is_slow(slot) {
            return CloseReason::SlowConsumer;
        }
        self.sessions.note_overload(1);
        CloseReason::Overloaded
    }

    /// Queues what tells the client why its session ends. `had_input`: the client has sent something that was not processed.
    fn push_closing(&mut self, slot: SlotId, reason: &CloseReason, had_input: bool, now: Now) {
        if let Some((_, answer)) = self.take_unconfirmed(slot, reason, now) {
            return self.push_bytes(slot, &answer);
        }
        let Some(session) = self.sessions.any_mut(slot) else {
            return debug_assert!(false, "a session stays while it ends");
        };
        let mut bytes = Vec::new();
        let text = reason.to_string();
        let reconnect_after_ms = match reason {
            // All clients get CLOSING at the same time: without a spread, all would reconnect at the same time.
            CloseReason::Shutdown | CloseReason::Overloaded | CloseReason::TlsKeysUsedUp => {
                let seed = self.epoch ^ u64::from(self.id.0);
                reconnect_after_ms(seed, session.id, self.limits.reconnect_spread_ms)
            }
            CloseReason::Refused(_) | CloseReason::Unauthorized(AuthRefusal::Busy) => {
                REFUSED_RETRY_AFTER_S as u32 * 1_000
            }
            _ => 0,
        };
        let framing = session.format.framing;
        let speaks_http = match session.protocol {
            // A session that leaves for another shard has already cancelled its handover.
            Protocol::ProxyHeader | Protocol::Admitting | Protocol::Leaving { .. } => {
                session.listener == ListenerKind::Http
            }
            Protocol::Http(_) => true,
            Protocol::Hello(_)
            | Protocol::Open(_)
            | Protocol::Echo(_)
            | Protocol::Streaming(_)
            | Protocol::SocketIo(_)
            | Protocol::Carrier(_) => false,
        };
        match session.protocol {
            _ if speaks_http => {
                // A client that waits for an answer gets one. Between two requests, none does.
                let has_call = session.protocol.has_call();
                let status = match reason {
                    CloseReason::Unauthorized(
                        AuthRefusal::Expired | AuthRefusal::CertificateExpired | AuthRefusal::Revoked,
                    ) if session.protocol.is_kept_http() && !has_call && !had_input => None,
                    _ => reason.http_status().or(has_call.then_some(503)),
                };
                if let Some(status) = status {
                    bytes = http::refused(status, &text, now.realtime_ns);
                }
            }
            Protocol::Echo(_) | Protocol::Carrier(_) => {
                framing.write_close(reason.close_frame_code(), &text, &mut bytes)
            }
            Protocol::SocketIo(ref state) => {
                if state.is_connected {
                    Reply::Closing { code: reason.code(), reason: &text, reconnect_after_ms }
                        .encode(session.format, &mut bytes);
                }
                socket_io::encode_end(state, reason, &mut bytes);
                framing.write_close(reason.close_frame_code(), &text, &mut bytes);
            }
            _ => {
                if framing.has_places() && reconnect_after_ms > 0 {
                    event_stream::encode_retry(&mut bytes, reconnect_after_ms);
                }
                Reply::Closing { code: reason.code(), reason: &text, reconnect_after_ms }
                    .encode(session.format, &mut bytes);
                framing.write_close(reason.close_frame_code(), &text, &mut bytes);
            }
        }
        self.push_bytes(slot, &bytes);
    }

    /// Takes the next step of a session's end, if it is ending and its outbox is empty.
    pub(in crate::shard) fn continue_ending(&mut self, slot: SlotId, now: Now) {
        if self.polling.contain(slot) {
            let is_done = self
                .sessions
                .get(slot)
                .is_some_and(|session| session.ending.is_some() && !session.is_sending());
            return if is_done {
                self.end_polling(slot, now)
            };
        }
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let sending = session.is_sending();
        let Some(ending) = &mut session.ending else { return };
        if ending.half_closed || sending {
            return;
        }
        match ending.peer_closed {
            // No unread input can turn the close into a reset.
            true => self.remove(slot),
            // Unread input would turn a close into a reset, and CLOSING would be lost: send FIN, then wait for the peer's.
            false => {
                ending.half_closed = true;
                let (id, sent_file) = (session.id, is_file(&ending.reason));
                self.actions.push_back(Action::ShutdownWrite(slot));
                // The kernel delivers the rest, and the peer gets the usual time to close its side. The earlier deadline
                // stays: a peer that read the file at the last moment gets only what remains of it.
                if sent_file && self.draining.is_none() {
                    self.set_timer(now.monotonic_ns + LINGER_NS, TimerKind::Linger, id);
                }
            }
        }
    }
}

const LINGER_NS: u64 = LINGER_DEADLINE_MS * 1_000_000;

/// Returns whether the outbox may contain a whole file.
fn is_file(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::Http(200))
}

/// Returns the delay before a session's client should reconnect, 0 to `spread_ms`. A hash of the session: the same at every
/// call, and evenly spread.
fn reconnect_after_ms(seed: u64, session: SessionId, spread_ms: u32) -> u32 {
    let hash = splitmix64(splitmix64(seed) ^ session.0);
    (((hash >> 32) * (u64::from(spread_ms) + 1)) >> 32) as u32
}

/// The output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn splitmix64(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests;
