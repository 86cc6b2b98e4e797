//! Tenants' quotas on what sessions use: connections, subscriptions, publishes and bytes sent. The homes apply those on topics
//! and histories.
//!
//! The default tenant has none: its sessions pass each check with one comparison. A tenant that has used up its egress quota
//! becomes slow: its sessions delay their next SENDs as if their sockets were full, and lose what their policies allow.

use super::Shard;
use crate::{
    admission::Refusal,
    ids::{SlotId, TenantId},
    metrics::counters::Counter,
    now::Now,
    session::CloseReason,
    tenants::{Figure, Flow, FlowLease, Lease, Resource, Tenant},
};

/// A shard's leases of its tenants' quotas.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    /// By tenant. Bound: the tenants.
    leases: Vec<Leases>,
    /// Tenants whose sessions wait. Bound: the tenants.
    throttled: Vec<Throttled>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Leases {
    connections: Lease,
    subscriptions: Lease,
    publishes: FlowLease,
    egress: FlowLease,
}

/// A tenant that has used up its egress quota.
#[derive(Debug)]
struct Throttled {
    tenant: TenantId,
    /// When its account is checked again, CLOCK_MONOTONIC nanoseconds.
    due_ns: u64,
    /// Its sessions that wait. Bound: one entry per session, plus one per session that is gone since.
    slots: Vec<SlotId>,
}

impl Quotas {
    /// When the account of a waiting tenant is checked again.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.throttled.iter().map(|throttled| throttled.due_ns).min()
    }
}

impl Shard {
    /// Calls `act` with a tenant and its leases; `None` for the default tenant.
    fn with_tenant<R>(&mut self, id: TenantId, act: impl FnOnce(&Tenant, &mut Leases) -> R) -> Option<R> {
        if id == TenantId::DEFAULT {
            return None;
        }
        let tenant = self.limits.tenants.get(id)?;
        let leases = &mut self.quotas.leases;
        if leases.len() <= id.index() {
            leases.resize(id.index() + 1, Leases::default());
        }
        Some(act(tenant, &mut leases[id.index()]))
    }

    fn note(&self, id: TenantId, figure: Figure, n: u64) {
        let tenant = self.limits.tenants.get(id);
        if let Some(figures) = tenant.and_then(|tenant| tenant.account.figures(self.id)) {
            figures.add(figure, n);
        }
    }

    pub(super) fn tenant_of(&self, slot: SlotId) -> TenantId {
        self.sessions.get(slot).map_or(TenantId::DEFAULT, |session| session.tenant)
    }

    /// Counts a session whose handshake continues here as a connection of its tenant. Returns whether the quota allows it; if
    /// not, the session ends.
    pub(super) fn enter_quota(&mut self, slot: SlotId, now: Now) -> bool {
        let Some(session) = self.sessions.open_mut(slot) else { return false };
        let id = session.tenant;
        if id == TenantId::DEFAULT || session.is_counted {
            return true;
        }
        let takes = self.with_tenant(id, |Tenant { config, account, .. }, leases| {
            leases.connections.take(1, Resource::Connections, &config.quota, account)
        });
        if takes == Some(false) {
            self.note(id, Figure::ConnectionsRefused, 1);
            self.end(slot, CloseReason::Refused(Refusal::Tenant), now);
            return false;
        }
        self.note(id, Figure::Connections, 1);
        if let Some(session) = self.sessions.open_mut(slot) {
            session.is_counted = true;
        }
        true
    }

    /// Moves a session to another tenant, which its token names. Returns whether that tenant's quota allows it; if not, the
    /// session ends.
    pub(super) fn change_tenant(&mut self, slot: SlotId, tenant: TenantId, now: Now) -> bool {
        if self.tenant_of(slot) == tenant {
            return true;
        }
        self.leave_tenant(slot);
        self.set_tenant(slot, tenant);
        // A session is counted where its handshake is completed.
        let is_open = self.sessions.open_mut(slot).is_some_and(|session| !session.protocol.is_handshake());
        !is_open || self.enter_quota(slot, now)
    }

    /// Notes that a session no longer counts as a connection of its tenant.
    pub(super) fn leave_tenant(&mut self, slot: SlotId) {
        let Some(session) = self.sessions.any_mut(slot) else { return };
        if !std::mem::take(&mut session.is_counted) {
            return;
        }
        let (id, shard) = (session.tenant, self.id);
        self.with_tenant(id, |Tenant { config, account, .. }, leases| {
            leases.connections.give_back(1, Resource::Connections, &config.quota, account);
            if let Some(figures) = account.figures(shard) {
                figures.subtract(Figure::Connections, 1);
            }
        });
    }

    /// Counts a subscription of a session for its tenant. Returns whether the quota allows it.
    pub(super) fn take_subscription(&mut self, slot: SlotId) -> bool {
        let id = self.tenant_of(slot);
        let takes = self.with_tenant(id, |Tenant { config, account, .. }, leases| {
            leases.subscriptions.take(1, Resource::Subscriptions, &config.quota, account)
        });
        match takes {
            None => {}
            Some(true) => self.note(id, Figure::Subscriptions, 1),
            Some(false) => self.note(id, Figure::SubscriptionsRefused, 1),
        }
        takes != Some(false)
    }

    /// Gives back subscriptions that a session no longer holds.
    pub(super) fn give_back_subscriptions(&mut self, slot: SlotId, count: u64) {
        let (id, shard) = (self.tenant_of(slot), self.id);
        self.with_tenant(id, |Tenant { config, account, .. }, leases| {
            leases.subscriptions.give_back(count, Resource::Subscriptions, &config.quota, account);
            if let Some(figures) = account.figures(shard) {
                figures.subtract(Figure::Subscriptions, count);
            }
        });
    }

    /// Counts a tick that a session publishes. Returns whether its tenant's quota allows it.
    pub(super) fn take_publish(&mut self, slot: SlotId, now: Now) -> bool {
        let id = self.tenant_of(slot);
        let takes = self.with_tenant(id, |Tenant { config, account, .. }, leases| {
            let has = leases.publishes.has(1, Flow::Publishes, &config.quota, account, now.monotonic_ns);
            if has {
                leases.publishes.spend(1, Flow::Publishes, &config.quota);
            }
            has
        });
        match takes {
            None => {}
            Some(true) => self.note(id, Figure::Published, 1),
            Some(false) => self.note(id, Figure::PublishesRefused, 1),
        }
        takes != Some(false)
    }

    /// Counts bytes sent to a session. If its tenant has used up its quota, that tenant's sessions delay their next SENDs.
    pub(super) fn note_egress(&mut self, slot: SlotId, bytes: usize, now: Now) {
        let id = self.tenant_of(slot);
        let (now_ns, shard) = (now.monotonic_ns, self.id);
        let due_ns = self.with_tenant(id, |Tenant { config, account, .. }, leases| {
            if let Some(figures) = account.figures(shard) {
                figures.add(Figure::EgressBytes, bytes as u64);
            }
            leases.egress.spend(bytes as u64, Flow::EgressBytes, &config.quota);
            let has = leases.egress.has(1, Flow::EgressBytes, &config.quota, account, now_ns);
            (!has).then(|| leases.egress.due_ns(Flow::EgressBytes, account, now_ns))
        });
        let Some(Some(due_ns)) = due_ns else { return };
        if self.quotas.throttled.iter().all(|throttled| throttled.tenant != id) {
            self.quotas.throttled.push(Throttled { tenant: id, due_ns, slots: Vec::new() });
            self.sessions.throttle(id, true);
        }
    }

    /// Notes that a session delays its SEND, as if its socket were full.
    pub(super) fn note_throttled(&mut self, slot: SlotId, now: Now) {
        let id = self.tenant_of(slot);
        self.counters.add(Counter::SendsThrottled, 1);
        self.note(id, Figure::EgressWaits, 1);
        self.sessions.note_fullness(slot, true, now);
        self.watch_stall(slot, now);
        match self.quotas.throttled.iter_mut().find(|throttled| throttled.tenant == id) {
            Some(throttled) => throttled.slots.push(slot),
            None => debug_assert!(false, "only a tenant on the list is throttled"),
        }
    }

    /// Resumes the sessions of tenants whose egress quotas allow it again.
    pub(super) fn release_throttled(&mut self, now: Now) {
        let now_ns = now.monotonic_ns;
        for mut throttled in std::mem::take(&mut self.quotas.throttled) {
            let id = throttled.tenant;
            let due_ns = match throttled.due_ns <= now_ns {
                false => Some(throttled.due_ns),
                true => self
                    .with_tenant(id, |Tenant { config, account, .. }, leases| {
                        let has = leases.egress.has(1, Flow::EgressBytes, &config.quota, account, now_ns);
                        (!has).then(|| leases.egress.due_ns(Flow::EgressBytes, account, now_ns))
                    })
                    .flatten(),
            };
            match due_ns {
                Some(due_ns) => {
                    throttled.due_ns = due_ns;
                    self.quotas.throttled.push(throttled);
                }
                None => {
                    self.sessions.throttle(id, false);
                    for slot in throttled.slots {
                        if self.sessions.release_throttled(slot, now) {
                            self.send_completed(slot, now);
                        }
                    }
                }
            }
        }
    }

    /// Whether another tenant exports a topic of this name to a session's tenant.
    pub(super) fn is_imported(&self, slot: SlotId, topic: &str) -> bool {
        let exports = self.limits.tenants.exports();
        if exports.is_empty() {
            return false;
        }
        let tenant = self.tenant_of(slot);
        exports.owner(tenant, topic) != tenant
    }
}

#[cfg(test)]
mod tests;
