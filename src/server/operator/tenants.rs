//! The tenants as operators see them: what each uses, what it may use, and how often it was refused more.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tickcast_core::tenants::{Figure, Quota, Tenants};

/// The table of tenants in use, which a reload replaces. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SharedTenants(Arc<Mutex<Arc<Tenants>>>);

impl SharedTenants {
    /// Holds a table.
    pub fn new(tenants: Arc<Tenants>) -> SharedTenants {
        SharedTenants(Arc::new(Mutex::new(tenants)))
    }

    /// The table in use.
    pub fn get(&self) -> Arc<Tenants> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the table.
    pub fn set(&self, tenants: Arc<Tenants>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = tenants;
    }
}

/// What a quota has in metrics and views: its name and the value; 0: no limit.
pub fn quotas(quota: &Quota) -> [(&'static str, u64); 6] {
    [
        ("connections", quota.connections),
        ("subscriptions", quota.subscriptions),
        ("topics", quota.topics),
        ("publish_rate", quota.publish_rate),
        ("egress_rate", quota.egress_rate),
        ("history_bytes", quota.history_bytes),
    ]
}

/// A tenant in `/v1/tenants`.
#[derive(Clone, Debug, Serialize)]
pub struct TenantView {
    /// Its name.
    pub tenant: String,
    /// `open`, or `removed` from the configuration since the server started.
    pub state: &'static str,
    /// Its host names.
    pub hosts: Vec<String>,
    /// What it may use; 0: no limit.
    pub quota: serde_json::Map<String, serde_json::Value>,
    /// What it uses, and how often it was refused more.
    pub figures: serde_json::Map<String, serde_json::Value>,
}

/// All tenants but the default.
pub fn views(tenants: &Tenants) -> Vec<TenantView> {
    let view = |(_, tenant): (_, &tickcast_core::tenants::Tenant)| TenantView {
        tenant: tenant.config.name.to_string(),
        state: if tenant.is_removed { "removed" } else { "open" },
        hosts: tenant.config.hosts.iter().map(ToString::to_string).collect(),
        quota: quotas(&tenant.config.quota)
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into_iter()
            .collect(),
        figures: Figure::ALL
            .map(|figure| (figure.label().to_owned(), tenant.account.total(figure).into()))
            .into_iter()
            .collect(),
    };
    tenants.iter().map(view).collect()
}
