//! Clients behind a proxy: their address comes with the connection's first bytes, and decides whether they are admitted.
//!
//! ```text
//!  PROXY header, or X-Forwarded-For of a request for a WebSocket
//!  Action::Admit(slot, address)    the transport applies the limits of that address; input is kept meanwhile
//!  handle_admitted(slot)           the handshake continues
//!  handle_refused(slot, refusal)   the client reads the reason, in its own protocol
//! ```
//!
//! Proxies reuse HTTP connections for the requests of many clients. A client is therefore admitted when it asks for a WebSocket,
//! which belongs to it alone. A session that polls and a request of `/v1` have no connection, so they are not admitted as one, but the
//! limits of the client's address apply to them too.

use std::net::{IpAddr, SocketAddr};

use super::{Action, ClientAddress, ListenerKind, Shard};
use crate::{
    admission::Refusal,
    ids::{SlotId, SourceId},
    now::Now,
    session::{CloseReason, Protocol, Session},
};
use tickcast_proto::{Step, proxy};

impl Shard {
    /// Opens the session of a connection from a trusted proxy, in a vacant slot. Like [`Shard::handle_accept`].
    pub fn handle_accept_proxied(
        &mut self,
        slot: SlotId,
        listener: ListenerKind,
        client: ClientAddress,
        now: Now,
    ) {
        self.handle_accept(slot, listener, now);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.client_address = client;
        match (client, &mut session.protocol) {
            (ClientAddress::ProxyHeader, protocol) => *protocol = Protocol::ProxyHeader,
            (ClientAddress::ForwardedFor, Protocol::Http(http)) => http.is_forwarded = true,
            (ClientAddress::ForwardedFor | ClientAddress::Peer, _) => {}
        }
    }

    /// Notes the source of a new session, for limits per source.
    pub fn set_source(&mut self, slot: SlotId, source: SourceId) {
        if let Some(session) = self.sessions.open_mut(slot) {
            session.source = source;
        }
    }

    /// Continues the handshake of a client that the transport has admitted after [`Action::Admit`]. `source`: that of the
    /// client's address.
    pub fn handle_admitted(&mut self, slot: SlotId, source: SourceId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.source = source;
        if matches!(session.protocol, Protocol::Admitting) {
            session.begin_handshake();
            if !session.is_paused() && !session.input().is_empty() {
                self.process_waiting(slot, now);
            }
            self.apply_deferred(now);
        }
    }

    /// Ends the session of a client that the transport has refused after [`Action::Admit`].
    pub fn handle_refused(&mut self, slot: SlotId, refusal: Refusal, now: Now) {
        self.end(slot, CloseReason::Refused(refusal), now);
        self.apply_deferred(now);
    }

    /// Decodes the PROXY protocol header at the front of `bytes`.
    pub(super) fn proxy_header(
        &mut self,
        slot: SlotId,
        bytes: &[u8],
        now: Now,
    ) -> Result<Step<()>, CloseReason> {
        let Step::Complete(used, client) = proxy::step(bytes).map_err(CloseReason::Proxy)? else {
            return Ok(Step::Partial);
        };
        let Some(session) = self.sessions.open_mut(slot) else { return Ok(Step::Partial) };
        match client {
            Some(address) => {
                session.protocol = Protocol::Admitting;
                self.actions.push_back(Action::Admit(slot, address));
            }
            // The proxy itself, which was admitted when it connected.
            None => session.begin_handshake(),
        }
        self.note_activity(slot, now);
        Ok(Step::Complete(used, ()))
    }

    /// Returns whether a request for a WebSocket waits until its client is admitted by the address that proxies have
    /// forwarded.
    pub(super) fn awaits_admission(&mut self, slot: SlotId, forwarded_for: &[IpAddr]) -> bool {
        let client = self.forwarded_client(slot, forwarded_for);
        if let (Some(client), Some(session)) = (client, self.sessions.open_mut(slot)) {
            session.protocol = Protocol::Admitting;
            self.actions.push_back(Action::Admit(slot, SocketAddr::new(client, 0)));
        }
        client.is_some()
    }

    /// Makes the address that proxies have forwarded the source of a request, for the limits of that address and its share of the
    /// memory for message ids. The connection stays that of the proxy, so the next request has a source of its own.
    pub(super) fn enter_forwarded(&mut self, slot: SlotId, forwarded_for: &[IpAddr]) {
        let is_forwarded =
            |session: &Session| matches!(&session.protocol, Protocol::Http(http) if http.is_forwarded);
        if !self.sessions.get(slot).is_some_and(is_forwarded) {
            return;
        }
        let client = self.forwarded_client(slot, forwarded_for);
        let source = client.map_or_else(SourceId::default, |client| self.polling.source_of(client));
        self.set_source(slot, source);
    }

    /// The address of the client of a request that a proxy has forwarded; `None` if the connection is not a proxy's, or is one
    /// client's already.
    pub(super) fn forwarded_client(&self, slot: SlotId, forwarded_for: &[IpAddr]) -> Option<IpAddr> {
        match &self.sessions.get(slot)?.protocol {
            Protocol::Http(http) if http.is_forwarded => {}
            _ => return None,
        }
        let proxies = &self.limits.trusted_proxies;
        // Addresses beyond the first that is not a proxy's were written by the client.
        let client = forwarded_for.iter().find(|address| !proxies.contain(**address));
        client.or(forwarded_for.last()).copied()
    }
}
