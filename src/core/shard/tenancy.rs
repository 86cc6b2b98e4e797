//! Which tenant a session belongs to.
//!
//! A listener, a host name and a token may each name one, and all that do must agree: a client cannot leave its listener's
//! tenant with a Host header, or take a token to another tenant's host. So none takes precedence; if none names a tenant, it is
//! the default one. The host name is the `Host` of an upgrade, or the server name in a TLS handshake.

use super::{Shard, ingress::quoted};
use crate::{
    ids::{SlotId, TenantId},
    now::Now,
    principal::AuthRefusal,
    session::CloseReason,
};

/// What names a session's tenant.
#[derive(Clone, Copy, Debug)]
enum NamedBy<'a> {
    Host(&'a str),
    Token,
}

impl Shard {
    /// Notes the tenant of a session's listener. Call it before the first bytes from the client.
    pub fn set_tenant(&mut self, slot: SlotId, tenant: TenantId) {
        if let Some(session) = self.sessions.open_mut(slot) {
            session.tenant = tenant;
        }
    }

    /// Notes the server name in a client's TLS handshake: ends its session if the listener is another tenant's. Call it before the
    /// first bytes from the client.
    pub fn set_server_name(&mut self, slot: SlotId, name: &str, now: Now) {
        if let Err(refusal) = self.enter_tenant_of_host(slot, name) {
            self.end(slot, CloseReason::Unauthorized(refusal), now);
        }
    }

    /// Settles a session's tenant by the host of its request.
    pub(super) fn enter_tenant_of_host(&mut self, slot: SlotId, host: &str) -> Result<(), AuthRefusal> {
        match self.limits.tenants.by_host(host) {
            Some(tenant) => self.enter_tenant(slot, tenant, NamedBy::Host(host)),
            None => Ok(()),
        }
    }

    /// Returns the tenant that a token claims; `None`: it claims none, or no tenant is configured.
    ///
    /// # Errors
    /// There is no such tenant, or the session belongs to another.
    pub(super) fn claimed_tenant(&self, slot: SlotId, claim: &str) -> Result<Option<TenantId>, AuthRefusal> {
        let tenants = &self.limits.tenants;
        if claim.is_empty() || !tenants.is_configured() {
            return Ok(None);
        }
        let Some(tenant) = tenants.by_name(claim) else {
            let text = format!("this server has no tenant {}", quoted(claim.as_bytes()));
            return Err(AuthRefusal::Tenant(text.into()));
        };
        self.check_tenant(slot, tenant, NamedBy::Token)?;
        Ok(Some(tenant))
    }

    fn enter_tenant(
        &mut self,
        slot: SlotId,
        tenant: TenantId,
        named_by: NamedBy<'_>,
    ) -> Result<(), AuthRefusal> {
        self.check_tenant(slot, tenant, named_by)?;
        self.set_tenant(slot, tenant);
        Ok(())
    }

    /// Checks whether a session may belong to a tenant: it does already, or belongs to none and has no subscriptions yet.
    fn check_tenant(&self, slot: SlotId, tenant: TenantId, named_by: NamedBy<'_>) -> Result<(), AuthRefusal> {
        let Some(session) = self.sessions.get(slot) else { return Ok(()) };
        let has_acted = || !session.subscriptions.is_empty() || session.changes_pending > 0;
        if session.tenant == tenant || session.tenant == TenantId::DEFAULT && !has_acted() {
            return Ok(());
        }
        let what = match named_by {
            NamedBy::Host(host) => format!("the host {}", quoted(host.as_bytes())),
            NamedBy::Token => "the token".into(),
        };
        Err(AuthRefusal::Tenant(format!("{what} is of another tenant than the connection").into()))
    }

    /// Checks whether a session's tenant, of its listener or its host, is still configured.
    pub(super) fn check_tenant_is_open(&self, slot: SlotId) -> Result<(), AuthRefusal> {
        let tenant = self.sessions.get(slot).map_or(TenantId::DEFAULT, |session| session.tenant);
        match self.limits.tenants.is_open(tenant) {
            true => Ok(()),
            false => Err(no_longer_there()),
        }
    }

    /// Ends the sessions of tenants that are no longer configured.
    pub(super) fn end_removed_tenants(&mut self, now: Now) {
        let tenants = self.limits.tenants.clone();
        if tenants.iter().all(|(_, tenant)| !tenant.is_removed) {
            return;
        }
        for slot in self.sessions.slots() {
            let tenant = self.sessions.open_mut(slot).map(|session| session.tenant);
            if tenant.is_some_and(|tenant| !tenants.is_open(tenant)) {
                self.end(slot, CloseReason::Unauthorized(no_longer_there()), now);
            }
        }
    }
}

fn no_longer_there() -> AuthRefusal {
    AuthRefusal::Tenant("this server no longer has it".into())
}

#[cfg(test)]
mod tests;
