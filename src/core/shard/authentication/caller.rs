//! Credentials of HTTP connections. A proxy may send the requests of many clients over one connection, so each request has the
//! permissions of its own token, and no others.

use super::Entry;
use crate::{
    ids::SlotId,
    now::Now,
    session::{Caller, Proof, Protocol},
    shard::Shard,
};
use tickcast_proto::command::Token;

impl Shard {
    /// Assigns a connection to the client of a request, in the tenant of its host. Returns the state of its credentials, as
    /// [`Shard::enter`] does.
    pub(in crate::shard) fn enter_caller(
        &mut self,
        slot: SlotId,
        host: &str,
        token: Option<&Token<'_>>,
        may_come_later: bool,
        now: Now,
    ) -> Entry {
        self.settle_caller(slot, token);
        match self.enter_tenant_of_host(slot, host) {
            Ok(()) => self.enter(slot, token, may_come_later, now),
            Err(refusal) => Entry::Refused(refusal),
        }
    }

    /// Assigns a connection to the client whose request carries this token: forgets what an earlier request has proven, unless
    /// that carried the same token.
    pub(in crate::shard) fn settle_caller(&mut self, slot: SlotId, token: Option<&Token<'_>>) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let (tenant, is_pending) = (session.tenant, session.awaits_verdict());
        let Protocol::Http(http) = &mut session.protocol else { return };
        let token = token.map(|token| &token.0[..]);
        let calls = http.calls.get_or_insert_default();
        match &mut calls.caller {
            None => calls.caller = Some(Caller { token: token.map(Into::into), tenant }),
            Some(caller) if caller.token.as_deref() == token || is_pending => {}
            Some(caller) => {
                let tenant = caller.tenant;
                caller.token = token.map(Into::into);
                self.forget_principal(slot);
                self.set_tenant(slot, tenant);
            }
        }
    }

    /// Like [`Shard::settle_caller`], for a request for a WebSocket or a stream, which ends the `/v1` requests of a connection,
    /// if it had any.
    pub(in crate::shard) fn settle_last_caller(&mut self, slot: SlotId, token: Option<&Token<'_>>) {
        let session = self.sessions.open_mut(slot);
        if session
            .is_some_and(|session| matches!(&session.protocol, Protocol::Http(http) if http.calls.is_some()))
        {
            self.settle_caller(slot, token);
        }
    }

    /// Forgets what earlier requests on a connection have proven: its next request may name a session of another client.
    pub(in crate::shard) fn forget_caller(&mut self, slot: SlotId) {
        let Some(session) = self.sessions.open_mut(slot).filter(|session| !session.awaits_verdict()) else {
            return;
        };
        let Protocol::Http(http) = &mut session.protocol else { return };
        let caller = http.calls.as_deref_mut().and_then(|calls| calls.caller.take());
        if let Some(Caller { tenant, .. }) = caller {
            self.forget_principal(slot);
            self.set_tenant(slot, tenant);
        }
    }

    fn forget_principal(&mut self, slot: SlotId) {
        self.leave_tenant(slot);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.proof = Proof::None;
        if let Some(principal) = session.principal.take() {
            self.authentication.permissions.release(&principal);
        }
        self.authentication.refused.remove(&slot);
        self.authentication.expiries.remove(&slot);
    }
}
