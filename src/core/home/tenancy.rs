//! The quotas of tenants at a home: topics, and bytes of their histories.

use std::sync::Arc;

use crate::{
    ids::{ShardId, TenantId},
    tenants::{Figure, Figures, Lease, Resource, Tenant, Tenants},
    topic_key,
};

/// A home's leases of its tenants' quotas. Topics of the default tenant need none.
#[derive(Debug)]
pub(super) struct Tenancy {
    shard: ShardId,
    tenants: Arc<Tenants>,
    /// By tenant. Bound: the tenants.
    leases: Vec<Leases>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Leases {
    topics: Lease,
    history_bytes: Lease,
}

impl Tenancy {
    pub(super) fn new(shard: ShardId, tenants: Arc<Tenants>) -> Tenancy {
        Tenancy { shard, tenants, leases: Vec::new() }
    }

    pub(super) fn set_tenants(&mut self, tenants: Arc<Tenants>) {
        self.tenants = tenants;
    }

    /// The tenant of a key, and its leases; `None` for the default tenant.
    #[cold]
    fn of(&mut self, key: &str) -> Option<(&Tenant, &mut Leases)> {
        let (id, _) = topic_key::split(key);
        debug_assert!(id != TenantId::DEFAULT, "the caller has looked");
        if self.leases.len() <= id.index() {
            self.leases.resize(self.tenants.len().max(id.index() + 1), Leases::default());
        }
        Some((self.tenants.get(id)?, &mut self.leases[id.index()]))
    }

    /// Whether another tenant exports topics of this name to the key's tenant.
    pub(super) fn is_imported(&self, key: &str) -> bool {
        let exports = self.tenants.exports();
        let (tenant, name) = topic_key::split(key);
        !exports.is_empty() && exports.owner(tenant, name) != tenant
    }

    /// Counts a new topic for its tenant. Returns whether the quota allows it.
    pub(super) fn take_topic(&mut self, key: &str) -> bool {
        if !topic_key::has_tenant(key) {
            return true;
        }
        let shard = self.shard;
        let Some((tenant, leases)) = self.of(key) else { return true };
        let takes = leases.topics.take(1, Resource::Topics, &tenant.config.quota, &tenant.account);
        if let Some(figures) = tenant.account.figures(shard) {
            figures.add(if takes { Figure::Topics } else { Figure::TopicsRefused }, 1);
        }
        takes
    }

    /// Returns a topic's share of the quota, because its place is free again.
    pub(super) fn give_back_topic(&mut self, key: &str) {
        if !topic_key::has_tenant(key) {
            return;
        }
        let shard = self.shard;
        let Some((tenant, leases)) = self.of(key) else { return };
        leases.topics.give_back(1, Resource::Topics, &tenant.config.quota, &tenant.account);
        if let Some(figures) = tenant.account.figures(shard) {
            figures.subtract(Figure::Topics, 1);
        }
    }

    /// Lets a history grow or shrink within the budget of all histories, `left_bytes`, and its tenant's quota. `change` receives
    /// the room in bytes, subtracts its growth from it, and returns whether the room was too small.
    pub(super) fn with_budget(
        &mut self,
        key: &str,
        left_bytes: &mut isize,
        change: impl FnOnce(&mut isize) -> bool,
    ) {
        if !topic_key::has_tenant(key) {
            change(left_bytes);
            return;
        }
        let shard = self.shard;
        let Some((tenant, leases)) = self.of(key) else {
            change(left_bytes);
            return;
        };
        let (quota, account, lease) = (&tenant.config.quota, &*tenant.account, &mut leases.history_bytes);
        let of_tenant = lease.room(Resource::HistoryBytes, quota, account);
        let is_tighter = (*left_bytes).try_into().is_ok_and(|left: u64| of_tenant < left);
        let mut may_grow = if is_tighter { of_tenant as isize } else { *left_bytes };
        let before = may_grow;
        let is_short = change(&mut may_grow);
        let grown = before - may_grow;
        *left_bytes -= grown;
        let note = |change: &dyn Fn(&Figures)| {
            if let Some(figures) = account.figures(shard) {
                change(figures);
            }
        };
        match u64::try_from(grown) {
            Ok(0) => {}
            Ok(grown) => {
                // Another shard may have taken the room first.
                lease.take_anyway(grown, Resource::HistoryBytes, quota, account);
                note(&|figures| figures.add(Figure::HistoryBytes, grown));
            }
            Err(_) => {
                let shrunk = grown.unsigned_abs() as u64;
                lease.give_back(shrunk, Resource::HistoryBytes, quota, account);
                note(&|figures| figures.subtract(Figure::HistoryBytes, shrunk));
            }
        }
        if is_short && is_tighter {
            note(&|figures| figures.add(Figure::HistoryFull, 1));
        }
    }
}
