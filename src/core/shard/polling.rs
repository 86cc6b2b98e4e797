//! Long-polling of Engine.IO, and the upgrade to a WebSocket. A session that begins by polling has no socket of its own: it has a
//! slot beyond those of the transport, and what it sends and receives passes through other connections.
//!
//! ```text
//!  GET                open_session: a slot, and 0{"sid":...}, which names the shard. Requests of the session that arrive on
//!                     another shard are handed over, with their connections.
//!  GET ?sid           the session's SEND is the answer. Between two GETs, its socket counts as full: so it falls behind, and its
//!                     policies apply, as if the client did not read.
//!  POST ?sid          its packets are the session's input. The answer, ok, waits until they have been handled.
//!  WebSocket ?sid     2probe -> 3probe; the waiting GET is answered with 6; 5 -> the session's SENDs go to this socket, and its
//!                     input comes from there
//! ```
//! The log has the same bytes for all Socket.IO sessions; a SEND for a GET is converted. Two GETs or two POSTs at once end a session.

mod slots;

pub(super) use self::slots::PollingSlots;

use std::net::IpAddr;

use super::{Action, Shard, authentication::Entry, timers::TimerKind};
use crate::{
    admission::Sources,
    ids::{SessionId, SlotId, SourceId},
    metrics::counters::Counter,
    now::Now,
    session::{
        CloseReason, InputState, ListenerKind, PendingCall, Proof, Protocol, SendSource, SendState, Session,
        Work,
        socket_io::{Carried, Carrier},
    },
};
use tickcast_proto::{
    DecodeError, ErrorCode, Step, WireFormat,
    codec::Message,
    command::Token,
    framing::{
        Decoder,
        engine_io::{self, Packet, SEPARATOR, Sid},
        event_stream::KeptPlaces,
    },
    http::{
        self,
        api::{Exchange, error_json},
        socket_io::{Poll, bad_request, unknown_session},
    },
    ids::ShardId,
    limits::HTTP_BODY_BYTES_MAX,
};

/// Tells a client to poll no more.
const NOOP: &[u8] = b"6";

impl Shard {
    /// Sets the first slot that the transport never uses. Call it before the first connection.
    pub fn set_slots_end(&mut self, slots: u32) {
        self.polling.set_from(slots);
    }

    /// Sets how the sources of addresses are found that proxies report for sessions that poll. Without it, these have no source.
    pub fn set_sources(&mut self, sources: Sources) {
        self.polling.set_sources(sources);
    }

    /// Whether a session has no socket of its own.
    pub fn is_polling(&self, slot: SlotId) -> bool {
        self.polling.contain(slot)
    }

    /// Serves a request of long-polling. [`Step::Partial`] if it waits for a verdict, or is handed over.
    pub(super) fn poll(
        &mut self,
        slot: SlotId,
        poll: Poll,
        exchange: Exchange,
        (host, forwarded_for): (&str, &[IpAddr]),
        token: Option<&Token<'_>>,
        now: Now,
    ) -> Step<()> {
        if !matches!(poll, Poll::Open { .. }) {
            self.forget_caller(slot);
        }
        match poll {
            Poll::Open { client } => {
                let forwarded = self.forwarded_client(slot, forwarded_for);
                return self.poll_open(slot, &exchange, (host, forwarded, &client), token, now);
            }
            Poll::Receive(sid) | Poll::Send(sid, _) if self.leaves_for(slot, sid) => return Step::Partial,
            Poll::Receive(sid) => self.poll_receive(slot, sid, exchange, now),
            Poll::Send(sid, body) => self.poll_send_packets(slot, sid, body, exchange, now),
        }
        Step::Complete(0, ())
    }

    fn poll_open(
        &mut self,
        slot: SlotId,
        exchange: &Exchange,
        (host, forwarded, client): (&str, Option<IpAddr>, &str),
        token: Option<&Token<'_>>,
        now: Now,
    ) -> Step<()> {
        match self.enter_caller(slot, host, token, true, now) {
            Entry::Waits => return Step::Partial,
            Entry::Refused(refusal) => self.refuse_call(slot, exchange, &refusal, now),
            Entry::Admitted if self.leaves_with_identity(slot, client) => return Step::Partial,
            Entry::Admitted => match self.open_polling(slot, forwarded, client, now) {
                Some(packet) => self.answer_poll(slot, exchange, 200, packet.into_bytes(), now),
                None => {
                    let error = error_json(ErrorCode::RateLimited, "too many sessions poll");
                    let response = exchange.refuse(503, &error, now.realtime_ns);
                    self.respond_poll(slot, exchange, 503, &response, now);
                }
            },
        }
        Step::Complete(0, ())
    }

    /// Whether a connection is handed over to the shard of the identity of the client that opens a session.
    ///
    /// The connection leaves without what the request has proven, because it may carry the requests of others later. The other
    /// shard verifies the token again.
    fn leaves_with_identity(&mut self, slot: SlotId, client: &str) -> bool {
        let to = self.identity_of(slot, client).and_then(|identity| self.shard_of(&identity, client));
        if let Some(to) = to {
            self.forget_caller(slot);
            if let Some(session) = self.sessions.open_mut(slot) {
                session.protocol.leave(to);
                self.actions.push_back(Action::HandOver(slot));
            }
        }
        to.is_some()
    }

    /// Opens a session for the client of a connection, whose address a proxy may have `forwarded`. Returns its first packet; `None`
    /// if there is no room for it.
    fn open_polling(
        &mut self,
        slot: SlotId,
        forwarded: Option<IpAddr>,
        client: &str,
        now: Now,
    ) -> Option<String> {
        let Session { source, tenant, is_read_only, proof, ref principal, .. } =
            *self.sessions.open_mut(slot)?;
        let source = forwarded.map_or(source, |client| self.polling.source_of(client));
        let principal = principal.clone().filter(|_| proof == Proof::Credentials);
        let session = self.polling.take(source)?;
        self.open(session, ListenerKind::Http, now);
        self.set_source(session, source);
        self.set_tenant(session, tenant);
        if is_read_only {
            self.set_read_only(session);
        }
        match principal {
            Some(principal) => self.attach_principal(session, principal, now),
            // Sets that of anonymous clients.
            None => drop(self.enter(session, None, true, now)),
        }
        if !self.enter_quota(session, now) {
            return None;
        }
        let opened = self.sessions.open_mut(session)?;
        opened.format = WireFormat::SOCKET_IO;
        let packet = self.begin_engine_io(session, Decoder::Polling, Some(Box::default()), now)?;
        if let Some(identity) = self.identity_of(session, client) {
            self.claim_identity(session, &identity, now);
        }
        self.park(session, now);
        self.note_activity(session, now);
        Some(packet)
    }

    /// Whether a connection is handed over to the shard that serves a session.
    fn leaves_for(&mut self, slot: SlotId, sid: Sid) -> bool {
        let is_elsewhere = sid.shard != self.id.0 && sid.shard < self.shards;
        if is_elsewhere && let Some(session) = self.sessions.open_mut(slot) {
            session.protocol.leave(ShardId(sid.shard));
            self.actions.push_back(Action::HandOver(slot));
        }
        is_elsewhere
    }

    /// The session that a client has named, even if it is ending.
    fn named(&self, sid: Sid) -> Option<SessionId> {
        let kept = KeptPlaces { shard: sid.shard, key: sid.key, number: 0 };
        let id = self.kept_places.session_of(kept).filter(|_| sid.shard == self.id.0)?;
        self.sessions.get(id.slot()).is_some_and(|session| session.id == id).then_some(id)
    }

    fn carried_mut(&mut self, id: SessionId) -> Option<&mut Carried> {
        self.sessions.any_mut(id.slot()).filter(|session| session.id == id)?.protocol.carried_mut()
    }

    fn poll_receive(&mut self, slot: SlotId, sid: Sid, exchange: Exchange, now: Now) {
        let connection = self.sessions.get(slot).map(|session| session.id);
        let Some(id) = self.named(sid) else {
            return self.answer_poll(slot, &exchange, 400, unknown_session().into_bytes(), now);
        };
        match self.carried_mut(id) {
            Some(Carried { websocket: None, get: get @ None, probes: 0, .. }) => *get = connection,
            Some(Carried { websocket: None, get: None, .. }) => {
                self.note_activity(id.slot(), now);
                return self.answer_poll(slot, &exchange, 200, NOOP.to_vec(), now);
            }
            Some(Carried { websocket: None, .. }) => {
                self.answer_poll(slot, &exchange, 400, bad_request().into_bytes(), now);
                return self.end_overlapping(id, now);
            }
            _ => return self.answer_poll(slot, &exchange, 400, bad_request().into_bytes(), now),
        }
        self.await_answer(slot, id, exchange, now);
        self.note_activity(id.slot(), now);
        self.handle_writable(id.slot(), now);
    }

    fn poll_send_packets(&mut self, slot: SlotId, sid: Sid, mut body: Vec<u8>, exchange: Exchange, now: Now) {
        let connection = self.sessions.get(slot).map(|session| session.id);
        let is_open =
            |id: &SessionId| self.sessions.get(id.slot()).is_some_and(|session| session.ending.is_none());
        let Some(id) = self.named(sid).filter(is_open) else {
            return self.answer_poll(slot, &exchange, 400, unknown_session().into_bytes(), now);
        };
        // What an earlier POST left, whose connection is gone, still waits.
        let has_waiting = self.sessions.get(id.slot()).is_some_and(|session| !session.input().is_empty());
        match self.carried_mut(id) {
            Some(Carried { websocket: None, post: None, .. }) if !has_waiting => {}
            Some(Carried { websocket: None, .. }) => {
                self.answer_poll(slot, &exchange, 400, bad_request().into_bytes(), now);
                return self.end_overlapping(id, now);
            }
            _ => return self.answer_poll(slot, &exchange, 400, bad_request().into_bytes(), now),
        }
        body.push(SEPARATOR);
        self.receive(id.slot(), &body, now);
        let waits = self.sessions.open_mut(id.slot()).is_some_and(|session| session.is_paused());
        match self.carried_mut(id).filter(|_| waits) {
            Some(carried) => {
                carried.post = connection;
                self.await_answer(slot, id, exchange, now);
            }
            None => self.answer_poll(slot, &exchange, 200, b"ok".to_vec(), now),
        }
    }

    fn end_overlapping(&mut self, id: SessionId, now: Now) {
        let error = DecodeError::SocketIo("two requests of one kind at once");
        self.end(id.slot(), CloseReason::Protocol(error), now);
    }

    /// Notes that a connection's request is answered later. Its next request waits until then.
    fn await_answer(&mut self, slot: SlotId, id: SessionId, exchange: Exchange, now: Now) {
        let closes = exchange.closes;
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let Protocol::Http(http) = &mut session.protocol else { return };
        http.is_kept = true;
        let pending = PendingCall { exchange, work: Work::Poll(id) };
        http.calls.get_or_insert_default().pending = Some(pending);
        if !closes {
            self.keep_alive(slot, now);
        }
    }

    /// Answers a request that [`Shard::await_answer`] has noted.
    fn answer_waiting(&mut self, connection: SessionId, body: Vec<u8>, now: Now) {
        let slot = connection.slot();
        let Some(session) = self.sessions.open_mut(slot).filter(|session| session.id == connection) else {
            return;
        };
        let Protocol::Http(http) = &mut session.protocol else { return };
        let calls = http.calls.as_deref_mut();
        let Some(PendingCall { mut exchange, .. }) = calls.and_then(|calls| calls.pending.take()) else {
            return;
        };
        exchange.closes |= self.draining.is_some();
        self.answer_poll(slot, &exchange, 200, body, now);
    }

    fn answer_poll(&mut self, slot: SlotId, exchange: &Exchange, status: u16, body: Vec<u8>, now: Now) {
        let response = exchange.answer_poll(status, body, now.realtime_ns);
        self.respond_poll(slot, exchange, status, &response, now);
    }

    fn respond_poll(&mut self, slot: SlotId, exchange: &Exchange, status: u16, response: &[u8], now: Now) {
        self.counters.add(Counter::HttpResponses, 1);
        self.push_bytes(slot, response);
        match exchange.closes {
            true => self.end(slot, CloseReason::Http(status), now),
            false => self.keep_alive(slot, now),
        }
    }

    /// Treats a session as one whose socket is full: nothing carries what it has to send.
    fn park(&mut self, slot: SlotId, now: Now) {
        self.sessions.note_fullness(slot, true, now);
        if let Some(session) = self.sessions.any_mut(slot) {
            session.send_state = SendState::Parked;
        }
        self.watch_stall(slot, now);
    }

    /// Passes a SEND of a session without a socket on to what carries it: as the answer to a GET, or to its WebSocket. These take
    /// whole messages, because they may have something of their own to say in between.
    pub(super) fn carry(&mut self, slot: SlotId, source: SendSource, gather: &mut Vec<u8>, now: Now) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let (id, is_mid_frame) = (session.id, session.outbox.is_mid_frame());
        let Some(carried) = session.protocol.carried_mut() else {
            // It was refused before it began.
            return self.park(slot, now);
        };
        match source {
            SendSource::Log(range) => {
                let log = self.logs.of(WireFormat::SOCKET_IO);
                carried.partial.extend_from_slice(log.map_or(&[], |log| log.bytes(range)));
            }
            SendSource::Gathered { start, len } => {
                carried.partial.extend_from_slice(&gather[start..start + len]);
                gather.truncate(start);
            }
        }
        if is_mid_frame {
            return self.send_completed(slot, now);
        }
        let messages = std::mem::take(&mut carried.partial);
        let (websocket, get) = (carried.websocket, carried.get.take());
        self.park(slot, now);
        match (websocket, get) {
            (Some(websocket), _) => self.push_to_carrier(websocket, &messages),
            (None, Some(connection)) => {
                let mut packets = Vec::with_capacity(messages.len());
                engine_io::append_polled(&mut packets, &messages);
                // The connection's SENDs are charged to its own tenant.
                if self.tenant_of(connection.slot()) != self.tenant_of(slot) {
                    self.note_egress(slot, packets.len(), now);
                }
                self.answer_waiting(connection, packets, now);
            }
            (None, None) => {
                debug_assert!(false, "session {id:x}: a session that nothing carries is parked");
                if let Some(carried) = self.carried_mut(id) {
                    carried.partial = messages;
                }
            }
        }
        // That was the last it had to say.
        if self
            .sessions
            .get(slot)
            .is_some_and(|session| session.ending.is_some() && session.outbox_bytes() == 0)
        {
            self.end_polling(slot, now);
        }
    }

    fn push_to_carrier(&mut self, websocket: SessionId, messages: &[u8]) {
        let slot = websocket.slot();
        if let Some(carrier) = self.sessions.open_mut(slot).filter(|session| session.id == websocket) {
            // So that the end of its SEND is noticed.
            carrier.settle_once_empty();
            self.push_bytes(slot, messages);
        }
    }

    /// Notes that a connection has sent everything. The session that it carries, if any, may send more.
    pub(super) fn note_carrier_sent(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.get(slot) else { return };
        let (connection, carried) = (session.id, session.protocol.carries());
        // A WebSocket that is ending carries nothing more, whatever it still sends.
        if let Some(id) = carried
            && self.carried_mut(id).is_some_and(|carried| carried.websocket == Some(connection))
        {
            self.handle_writable(id.slot(), now);
        }
    }

    /// Answers a POST once its packets have been handled.
    pub(super) fn finish_post(&mut self, slot: SlotId, now: Now) {
        let carried = self.sessions.any_mut(slot).and_then(|session| session.protocol.carried_mut());
        if let Some(connection) = carried.and_then(|carried| carried.post.take()) {
            self.answer_waiting(connection, b"ok".to_vec(), now);
        }
    }

    /// Opens the WebSocket to which a session is to be upgraded. [`Step::Partial`] if it is handed over.
    pub(super) fn begin_carrier(
        &mut self,
        slot: SlotId,
        sid: Sid,
        response: &[u8],
        cors: &str,
        now: Now,
    ) -> Step<()> {
        self.forget_caller(slot);
        if self.leaves_for(slot, sid) {
            return Step::Partial;
        }
        let id = self.named(sid);
        let may_upgrade = id.and_then(|id| self.carried_mut(id)).map(|carried| carried.websocket.is_none());
        let (Some(id), Some(true)) = (id, may_upgrade) else {
            self.counters.add(Counter::HttpResponses, 1);
            let response = http::socket_io::refuse(may_upgrade.is_some(), cors, now.realtime_ns);
            self.push_bytes(slot, &response);
            self.end(slot, CloseReason::Http(400), now);
            return Step::Complete(0, ());
        };
        self.actions.push_back(Action::HandshakeDone(slot));
        self.push_bytes(slot, response);
        // Its SENDs are the session's.
        let tenant = self.tenant_of(id.slot());
        self.set_tenant(slot, tenant);
        let Some(session) = self.sessions.open_mut(slot) else { return Step::Complete(0, ()) };
        session.format = WireFormat::SOCKET_IO;
        let decoder = Decoder::new(session.format.framing);
        let (has_probed, is_upgraded, is_over) = (false, false, false);
        session.protocol =
            Protocol::Carrier(Box::new(Carrier { decoder, session: id, has_probed, is_upgraded, is_over }));
        let connection = session.id;
        let deadline_ns = now.monotonic_ns.saturating_add(self.limits.handshake_deadline_ns);
        self.set_timer(deadline_ns, TimerKind::Credentials, connection);
        Step::Complete(0, ())
    }

    /// Handles a message on a WebSocket that carries a session, or tries to.
    pub(super) fn carrier_message(
        &mut self,
        slot: SlotId,
        message: &Message<'_>,
        now: Now,
    ) -> Result<(), DecodeError> {
        let Some(session) = self.sessions.open_mut(slot) else { return Ok(()) };
        let connection = session.id;
        let Protocol::Carrier(carrier) = &mut session.protocol else { return Ok(()) };
        let (id, has_probed) = (carrier.session, carrier.has_probed);
        if carrier.is_upgraded {
            if let Err(error) = self.socket_io(id.slot(), message, now) {
                self.end(id.slot(), error.into(), now);
            }
            return Ok(());
        }
        let packet = match message {
            Message::Text(text) => engine_io::decode(text)?,
            _ => return Err(DecodeError::SocketIo("an attachment of no event")),
        };
        match (packet, self.carried_mut(id)) {
            (_, None | Some(Carried { websocket: Some(_), .. })) => {
                Err(DecodeError::SocketIo("the session has ended, or has been upgraded"))
            }
            (Packet::Ping("probe"), Some(carried)) => {
                carried.probes += u32::from(!has_probed);
                let get = carried.get.take();
                if let Some(carrier) =
                    self.sessions.open_mut(slot).and_then(|session| session.protocol.carrier_mut())
                {
                    carrier.has_probed = true;
                }
                let mut pong = Vec::new();
                engine_io::encode_probed(&mut pong);
                self.push_bytes(slot, &pong);
                self.release_get(id, get, now);
                Ok(())
            }
            (Packet::Upgrade, Some(carried)) if has_probed => {
                carried.websocket = Some(connection);
                let get = carried.get.take();
                if let Some(carrier) =
                    self.sessions.open_mut(slot).and_then(|session| session.protocol.carrier_mut())
                {
                    carrier.is_upgraded = true;
                }
                self.release_get(id, get, now);
                self.note_activity(id.slot(), now);
                self.handle_writable(id.slot(), now);
                Ok(())
            }
            _ => Err(DecodeError::SocketIo("a WebSocket begins with a probe, then an upgrade")),
        }
    }

    /// Answers a waiting GET with nothing, after which nothing carries the session.
    fn release_get(&mut self, id: SessionId, get: Option<SessionId>, now: Now) {
        if let Some(connection) = get {
            self.park(id.slot(), now);
            self.answer_waiting(connection, NOOP.to_vec(), now);
        }
    }

    /// Notes that a connection begins to end: it carries nothing more. Returns whether the session that it carries ends in its
    /// place, and it after that.
    pub(super) fn note_connection_ends(&mut self, slot: SlotId, reason: &CloseReason, now: Now) -> bool {
        let Some(session) = self.sessions.any_mut(slot) else { return false };
        let connection = session.id;
        let is_gone = matches!(
            reason,
            CloseReason::Peer | CloseReason::Transport(_) | CloseReason::Tls(_) | CloseReason::Http(_)
        );
        if let Some(carrier) = session.protocol.carrier_mut() {
            let (id, is_upgraded) = (carrier.session, carrier.is_upgraded);
            let probes = u32::from(std::mem::take(&mut carrier.has_probed));
            let Some(carried) = self.carried_mut(id) else { return false };
            if !is_upgraded {
                carried.probes = carried.probes.saturating_sub(probes);
                return false;
            }
            if is_gone {
                carried.websocket = None;
                self.park(id.slot(), now);
            }
            let is_open = self.sessions.open_mut(id.slot()).is_some();
            self.end(id.slot(), reason.clone(), now);
            return is_open && !is_gone;
        }
        let Some(&mut PendingCall { work: Work::Poll(id), .. }) = session.protocol.call_mut() else {
            return false;
        };
        let Some(carried) = self.carried_mut(id) else { return false };
        if carried.post == Some(connection) {
            carried.post = None;
        }
        if carried.get != Some(connection) {
            return false;
        }
        if *reason == CloseReason::Shutdown {
            let is_open = self.sessions.open_mut(id.slot()).is_some();
            self.end(id.slot(), CloseReason::Shutdown, now);
            return is_open;
        }
        carried.get = None;
        self.park(id.slot(), now);
        false
    }

    /// Drops the input of the WebSocket that carries a session which begins to end, now and from now on: it only has to send the
    /// session's goodbye.
    pub(super) fn drop_carrier_input(&mut self, slot: SlotId) {
        let carried = self.sessions.any_mut(slot).and_then(|session| session.protocol.carried_mut());
        let Some(websocket) = carried.and_then(|carried| carried.websocket) else { return };
        let slot = websocket.slot();
        let session = self.sessions.open_mut(slot).filter(|session| session.id == websocket);
        let Some(session) = session else { return };
        let Some(carrier) = session.protocol.carrier_mut() else { return };
        carrier.is_over = true;
        carrier.decoder.discard_fragments();
        session.discard_input();
        if std::mem::take(&mut session.input_state) == InputState::Paused {
            self.actions.push_back(Action::ResumeReceive(slot));
        }
        self.sessions.count_unfinished(slot);
    }

    /// Ends what carries a session that has nothing more to say, and removes the session.
    pub(super) fn end_polling(&mut self, slot: SlotId, now: Now) {
        let carried = self.sessions.any_mut(slot).and_then(|session| session.protocol.carried_mut());
        if let Some(carried) = carried {
            let (websocket, get) = (carried.websocket.take(), carried.get.take());
            if let Some(websocket) = websocket
                && let Some(carrier) =
                    self.sessions.open_mut(websocket.slot()).filter(|found| found.id == websocket)
            {
                debug_assert!(matches!(carrier.protocol, Protocol::Carrier(_)), "it carries the session");
                self.end(websocket.slot(), CloseReason::Http(101), now);
            }
            if let Some(connection) = get {
                // The client polls no more.
                self.answer_waiting(connection, b"1".to_vec(), now);
            }
            self.finish_post(slot, now);
        }
        self.remove(slot);
    }

    /// Whether nothing will fetch what an ending session has to say.
    pub(super) fn is_abandoned(&mut self, slot: SlotId) -> bool {
        self.polling.contain(slot)
            && self
                .sessions
                .any_mut(slot)
                .and_then(|session| session.protocol.carried_mut())
                .is_none_or(|carried| carried.get.is_none() && carried.websocket.is_none())
    }

    /// Whether a session takes input, and the session that it carries.
    pub(super) fn takes_input_of(&self, slot: SlotId) -> bool {
        let Some(session) = self.sessions.get(slot) else { return false };
        let carried = session.protocol.carries().and_then(|id| {
            self.sessions.get(id.slot()).filter(|session| session.id == id && session.ending.is_none())
        });
        session.takes_input() && carried.is_none_or(Session::takes_input)
    }

    /// Gives back the slot of a session that is gone.
    pub(super) fn free_polling(&mut self, slot: SlotId, source: SourceId) {
        self.polling.give_back(slot, source);
    }
}

// The answer `ok` comes after the packets have been handled, so a client has one body on its way.
const _: () = assert!(HTTP_BODY_BYTES_MAX <= 64 << 10, "limits.rs says what a polling session may hold");

#[cfg(test)]
mod tests;
