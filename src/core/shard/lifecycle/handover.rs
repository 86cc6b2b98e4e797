//! Handover of a connection to the shard that serves its client's identity, so that a client's connections all meet there.
//! A connection without an identity stays on the shard that accepted it.
//!
//! ```text
//!  accepting shard                                     shard of the identity
//!  bytes of HELLO or of the request head -> route_identity()
//!  Action::HandOver(slot)       the transport stops I/O; bytes received until then are kept
//!  handle_detached(slot)  ---- socket, all bytes so far ---->  handle_attached(slot, bytes)
//! ```
//!
//! The accepting shard answers nothing before the handover. The other shard decodes the same bytes from the beginning,
//! finds the same identity, and so keeps the connection: nothing is handed over twice.

use std::sync::Arc;

use crate::{
    ids::{SlotId, TenantId},
    metrics::counters::Counter,
    now::Now,
    placement,
    principal::{ClientCertificate, Principal},
    session::{CloseReason, Proof, Protocol, Session},
    shard::{Action, ClientAddress, ListenerKind, Shard},
    topic_key,
};
use tickcast_proto::ids::ShardId;

/// A connection for another shard to serve, without its socket.
#[derive(Debug, PartialEq, Eq)]
pub struct DetachedSession {
    /// The shard that will serve it.
    pub to: ShardId,
    /// The kind of listener that accepted it.
    pub listener: ListenerKind,
    /// Whether that listener is read-only: it accepts no ticks.
    pub is_read_only: bool,
    /// Whether its client is still to be admitted, by the address in `X-Forwarded-For`.
    pub is_forwarded: bool,
    /// How a proxy has told its client's address.
    pub client_address: ClientAddress,
    /// Whether it is over TLS or a Unix socket, where no DNS rebinding attack can have made it.
    pub is_safe_from_rebinding: bool,
    /// Its tenant, as far as it is known.
    pub tenant: TenantId,
    /// Its principal, if its credentials have been verified.
    pub principal: Option<Arc<Principal>>,
    /// The client's certificate, unless it is known to prove nothing.
    pub certificate: Option<ClientCertificate>,
    /// All bytes received. Bound: the longest frame or request head, and what arrived until I/O stopped.
    pub bytes: Vec<u8>,
}

impl Shard {
    /// Removes the session of [`Action::HandOver`] once the transport has stopped I/O on its socket. Returns `None` if the
    /// session has begun to end since: then it ends on this shard.
    pub fn handle_detached(&mut self, slot: SlotId) -> Option<DetachedSession> {
        let Protocol::Leaving { to, is_forwarded } = self.sessions.open_mut(slot)?.protocol else {
            return None;
        };
        // `/v1` requests may have counted it as a connection of its tenant.
        self.leave_tenant(slot);
        let session = self.sessions.open_mut(slot)?;
        let Session { listener, client_address, is_safe_from_rebinding, is_read_only, tenant, .. } = *session;
        let bytes = session.take_input();
        let principal = session.principal.take();
        let certificate = self.authentication.take_certificate(slot);
        self.authentication.forget(slot, principal.as_deref());
        let is_proven = session.proof == Proof::Credentials;
        self.sessions.remove(slot);
        self.counters.subtract(Counter::SessionsOpen, 1);
        self.counters.add(Counter::SessionsHandedOver, 1);
        // An anonymous client is anonymous there too.
        let principal = principal.filter(|_| is_proven);
        Some(DetachedSession {
            to,
            listener,
            is_read_only,
            is_forwarded,
            client_address,
            is_safe_from_rebinding,
            tenant,
            principal,
            certificate,
            bytes,
        })
    }

    /// Routes a session by the identity in its handshake: the subject of its credentials, otherwise the identity that it
    /// claims. Returns whether this shard serves it; if not, the handover has begun.
    ///
    /// The thousand connections of a service may share one subject. They stay on the shards that accepted them unless they must
    /// meet, because the client has named an identity, or the server closes all but the newest.
    pub(in crate::shard) fn route_identity(&mut self, slot: SlotId, client: &str, now: Now) -> bool {
        let Some(session) = self.sessions.open_mut(slot) else {
            debug_assert!(false, "only an open session's handshake is processed");
            return true;
        };
        if !session.protocol.is_handshake() {
            return true;
        }
        let Some(identity) = self.identity_of(slot, client) else { return true };
        if let Some(to) = self.shard_of(&identity, client) {
            if let Some(session) = self.sessions.open_mut(slot) {
                session.protocol.leave(to);
            }
            self.actions.push_back(Action::HandOver(slot));
            return false;
        }
        self.claim_identity(slot, &identity, now);
        true
    }

    /// The identity of a session: the subject of its credentials, otherwise the one that it claims. `None`: it has none.
    pub(in crate::shard) fn identity_of(&self, slot: SlotId, client: &str) -> Option<Box<str>> {
        let session = self.sessions.get(slot)?;
        match &session.principal {
            Some(principal) if session.proof == Proof::Credentials => Some((*principal.identity()).into()),
            _ => Some(client.into()).filter(|_| !client.is_empty()),
        }
    }

    /// The shard to which the connection of an identity goes; `None` if it stays.
    pub(in crate::shard) fn shard_of(&self, identity: &str, client: &str) -> Option<ShardId> {
        let to = placement::serving_shard(identity, self.shards);
        Some(to).filter(|&to| to != self.id && (!client.is_empty() || self.limits.identity_replaces))
    }

    /// Notes the identity of a session that stays on this shard. It may end another session with this identity.
    pub(in crate::shard) fn claim_identity(&mut self, slot: SlotId, identity: &str, now: Now) {
        let Some(session) = self.sessions.get(slot) else { return };
        // With authentication, a mere claim ends nobody's session.
        let is_proven = session.proof == Proof::Credentials || self.limits.auth.is_none();
        // The same claim in two tenants means two clients.
        let tenant = session.tenant;
        self.identities.insert(slot, identity.into());
        if self.limits.identity_replaces
            && is_proven
            && let Some(before) = self.holders.enter(slot, &topic_key::of(tenant, identity))
        {
            self.end(before, CloseReason::Replaced, now);
        }
    }

    /// Cancels the handover of a session that ends, so that it ends here, with the CLOSING of its listener's protocol.
    pub(super) fn cancel_handover(&mut self, slot: SlotId) {
        let Some(session) = self.sessions.any_mut(slot) else {
            return debug_assert!(false, "a session stays while it ends");
        };
        if let Protocol::Leaving { .. } = session.protocol {
            session.begin_handshake();
            // The shard waits for the peer's FIN.
            self.actions.push_back(Action::ResumeReceive(slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Limits,
        ids::SourceId,
        metrics::counters::Counters,
        testing::{TurnLoop, hello_as},
    };
    use tickcast_proto::{Step, command::encode_request, frame};

    const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1 << 60 };
    const SHARDS: u16 = 4;

    fn shard(id: ShardId, limits: Limits) -> Shard {
        Shard::new(id, SHARDS, 1, limits, Arc::new(Counters::default()))
    }

    fn upgrade(client: &str) -> Vec<u8> {
        format!(
            "GET /ws?client={client} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .into_bytes()
    }

    fn detached(to: ShardId, listener: ListenerKind, bytes: Vec<u8>) -> DetachedSession {
        let tenant = TenantId::DEFAULT;
        DetachedSession {
            to,
            listener,
            is_read_only: false,
            is_forwarded: false,
            client_address: ClientAddress::Peer,
            is_safe_from_rebinding: false,
            tenant,
            principal: None,
            certificate: None,
            bytes,
        }
    }

    /// Returns an identity that another shard serves, and that shard.
    fn identity_elsewhere(shard: ShardId) -> (String, ShardId) {
        let named =
            (0..).map(|n| format!("client-{n}")).map(|name| (placement::serving_shard(&name, SHARDS), name));
        named.filter(|(at, _)| *at != shard).map(|(at, name)| (name, at)).next().unwrap()
    }

    fn sent(shard: &mut Shard) -> Vec<u8> {
        let mut sent = Vec::new();
        TurnLoop::default().flush(shard, NOW, usize::MAX, |_, bytes| {
            sent.extend_from_slice(bytes);
            false
        });
        sent
    }

    fn kinds(mut bytes: &[u8]) -> Vec<frame::Kind> {
        let mut kinds = Vec::new();
        while let Ok(Step::Complete(used, frame)) = frame::decode(bytes, 1 << 20) {
            kinds.push(frame.kind);
            bytes = &bytes[used..];
        }
        kinds
    }

    #[test]
    fn a_client_of_another_shard_is_handed_over_unanswered_with_every_byte() {
        let (name, home) = identity_elsewhere(ShardId(0));
        let mut ping = Vec::new();
        encode_request(&mut ping, frame::Kind::Subscribe, 2, "a");
        for (listener, opening) in
            [(ListenerKind::Native, hello_as(&name)), (ListenerKind::Http, upgrade(&name))]
        {
            let bytes = [opening.clone(), ping.clone()].concat();
            for piece in [1, 7, bytes.len()] {
                let mut from = shard(ShardId(0), Limits::default());
                from.handle_accept(SlotId(3), listener, NOW);
                from.set_safe_from_rebinding(SlotId(3));
                bytes.chunks(piece).for_each(|piece| from.handle_bytes(SlotId(3), piece, NOW));
                assert_eq!(from.poll_action(), Some(Action::HandOver(SlotId(3))), "once, and nothing else");
                assert_eq!(from.poll_action(), None);
                assert_eq!(sent(&mut from), b"", "nothing is answered before the handover");
                let detached = from.handle_detached(SlotId(3)).unwrap();
                let expected = super::tests::detached(home, listener, bytes.clone());
                assert_eq!(detached, DetachedSession { is_safe_from_rebinding: true, ..expected });
                assert_eq!((from.sessions_len(), from.handle_detached(SlotId(3))), (0, None));

                let mut to = shard(home, Limits::default());
                to.handle_attached(SlotId(8), SourceId::default(), &detached, NOW);
                assert!(to.sessions.get(SlotId(8)).unwrap().is_safe_from_rebinding);
                assert_eq!(to.poll_action(), Some(Action::HandshakeDone(SlotId(8))));
                assert!(!sent(&mut to).is_empty(), "welcome or 101");
                let open = |shard: &Shard| shard.counters().value(Counter::SessionsOpen);
                assert_eq!((open(&from), open(&to)), (0, 1));
                let accepted = |shard: &Shard| shard.counters().value(Counter::SessionsAccepted);
                assert_eq!((accepted(&from), accepted(&to)), (1, 0));
            }
        }
    }

    #[test]
    fn a_connection_that_has_been_answered_leaves_when_the_answer_is_sent_and_is_not_received_from_again() {
        let (name, _) = identity_elsewhere(ShardId(0));
        let get = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
        let mut from = shard(ShardId(0), Limits::default());
        from.handle_accept(SlotId(3), ListenerKind::Http, NOW);
        from.handle_bytes(SlotId(3), &[get.clone(), get, upgrade(&name)].concat(), NOW);
        let (mut turns, mut actions, mut answers) = (TurnLoop::default(), Vec::new(), Vec::new());
        for _ in 0..6 {
            actions.extend(turns.turn(&mut from, None, NOW, usize::MAX, |_, bytes| {
                answers.extend_from_slice(bytes);
                false
            }));
        }
        assert_eq!(String::from_utf8(answers).unwrap().matches("HTTP/1.1 404 ").count(), 2);
        assert_eq!(actions, [Action::PauseReceive(SlotId(3)), Action::HandOver(SlotId(3))]);
        assert_eq!(from.handle_detached(SlotId(3)).unwrap().bytes, upgrade(&name));
    }

    #[test]
    fn a_client_that_polls_is_served_by_the_shard_of_its_identity_and_its_session_has_the_identity() {
        let (name, home) = identity_elsewhere(ShardId(0));
        let open =
            format!("GET /socket.io/?EIO=4&transport=polling&client={name} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut from = shard(ShardId(0), Limits::default());
        from.handle_accept(SlotId(3), ListenerKind::Http, NOW);
        from.handle_bytes(SlotId(3), open.as_bytes(), NOW);
        assert_eq!(from.poll_action(), Some(Action::HandOver(SlotId(3))));
        assert_eq!(sent(&mut from), b"", "nothing is answered before the handover");
        let detached = from.handle_detached(SlotId(3)).unwrap();
        assert_eq!((detached.to, &detached.bytes[..]), (home, open.as_bytes()));
        let mut to = shard(home, Limits::default());
        to.set_slots_end(10);
        to.handle_attached(SlotId(8), SourceId::default(), &detached, NOW);
        let answer = String::from_utf8(sent(&mut to)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&format!("\"sid\":\"{}.", home.0)));
        assert_eq!(to.identities.get(&SlotId(10)).map(|identity| &**identity), Some(&*name));
        assert!(!to.identities.contains_key(&SlotId(8)), "the connection may carry others' requests too");
    }

    #[test]
    fn a_session_that_ends_during_its_handover_stays_and_learns_why() {
        let (name, _) = identity_elsewhere(ShardId(0));
        let mut from = shard(ShardId(0), Limits::default());
        from.handle_accept(SlotId(3), ListenerKind::Native, NOW);
        from.handle_bytes(SlotId(3), &hello_as(&name), NOW);
        from.begin_drain(u64::MAX, NOW);
        let actions: Vec<Action> = std::iter::from_fn(|| from.poll_action()).collect();
        assert_eq!(actions, [Action::HandOver(SlotId(3)), Action::ResumeReceive(SlotId(3))]);
        assert_eq!(from.handle_detached(SlotId(3)), None);
        assert_eq!(kinds(&sent(&mut from)), [frame::Kind::Closing]);
        from.handle_eof(SlotId(3), NOW);
        assert_eq!(from.sessions_len(), 0);
    }

    #[test]
    fn a_stopping_server_sends_a_handed_over_client_only_closing() {
        let (name, home) = identity_elsewhere(ShardId(0));
        let mut to = shard(home, Limits::default());
        to.stop_input();
        let session = detached(home, ListenerKind::Native, hello_as(&name));
        to.handle_attached(SlotId(1), SourceId::default(), &session, NOW);
        to.begin_drain(u64::MAX, NOW);
        to.handle_attached(SlotId(2), SourceId::default(), &session, NOW);
        assert_eq!(kinds(&sent(&mut to)), [frame::Kind::Closing, frame::Kind::Closing]);
    }

    #[test]
    fn a_second_connection_of_an_identity_replaces_the_first_only_if_configured() {
        let (name, home) = identity_elsewhere(ShardId(0));
        for replaces in [false, true] {
            let mut shard = shard(home, Limits { identity_replaces: replaces, ..Limits::default() });
            let native = detached(home, ListenerKind::Native, hello_as(&name));
            shard.handle_attached(SlotId(1), SourceId::default(), &native, NOW);
            let websocket = detached(home, ListenerKind::Http, upgrade(&name));
            shard.handle_attached(SlotId(2), SourceId::default(), &websocket, NOW);
            sent(&mut shard);
            assert_eq!(shard.sessions.open_mut(SlotId(1)).is_none(), replaces);
            assert!(shard.sessions.open_mut(SlotId(2)).is_some());
            shard.handle_error(SlotId(1), 104, NOW);
            shard.handle_error(SlotId(2), 104, NOW);
            assert_eq!(shard.counters().value(Counter::ClosedReplaced), u64::from(replaces));
            assert!(shard.holders.is_empty());
        }
    }
}
