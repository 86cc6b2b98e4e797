//! Tenants: namespaces of topics, each with its own quotas, and what they export to each other.
//!
//! The table is configuration: the same on every shard, and replaced as a whole by a reload. While the server runs, an id always
//! means the same tenant, so a tenant that is removed and added again finds its topics.

mod account;
mod exports;

pub use self::{
    account::{Account, Figure, Figures, Flow, FlowLease, Lease, Quota, Resource},
    exports::{Export, ExportError, Exports, Importers},
};

use std::{collections::HashMap, sync::Arc};

use crate::{ids::TenantId, limits::TENANTS_MAX};

/// A tenant's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantConfig {
    /// Name, as it appears in its clients' tokens. Not empty.
    pub name: Box<str>,
    /// Host names that its clients use in requests and TLS connections, in lower case, without a port.
    pub hosts: Vec<Box<str>>,
    /// Its quota.
    pub quota: Quota,
}

/// One tenant. Two are equal if their configurations are.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its configuration. The name of the default tenant is empty.
    pub config: TenantConfig,
    /// Whether it is no longer configured. It then accepts no sessions.
    pub is_removed: bool,
    /// What it uses.
    pub account: Arc<Account>,
}

impl PartialEq for Tenant {
    fn eq(&self, other: &Tenant) -> bool {
        (&self.config, self.is_removed) == (&other.config, other.is_removed)
    }
}

impl Eq for Tenant {}

/// All tenants of the server. The first is the default tenant, of sessions and sources that belong to no other.
///
/// Bound: [`TENANTS_MAX`], including tenants removed while the server runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenants {
    /// Configured tenants, including removed ones, from id 1 on.
    named: Vec<Tenant>,
    exports: Exports,
    shards: u16,
}

/// Why a table cannot be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantsError {
    /// There are more than [`TENANTS_MAX`], including the default tenant and those removed since the start.
    TooMany,
    /// Two tenants have the same name.
    Name(Box<str>),
    /// Two tenants have the same host name.
    Host(Box<str>),
}

impl std::fmt::Display for TenantsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TenantsError::TooMany => write!(
                f,
                "more than {} tenants, those removed since the server started included",
                TENANTS_MAX - 1
            ),
            TenantsError::Name(name) => write!(f, "two tenants are named {name:?}"),
            TenantsError::Host(host) => write!(f, "two tenants have the host {host:?}"),
        }
    }
}

impl std::error::Error for TenantsError {}

impl Tenants {
    /// Creates a table of these tenants for this many shards. Exports refer to tenants by the ids that [`Tenants::by_name`]
    /// returns in a table without exports.
    ///
    /// # Errors
    /// Two tenants cannot be told apart, or there are too many.
    pub fn new(configs: Vec<TenantConfig>, exports: Exports, shards: u16) -> Result<Tenants, TenantsError> {
        Tenants { shards, ..Tenants::default() }.with(configs, exports)
    }

    /// Replaces the tenants of this table. Those with the same name keep their ids; missing ones are marked as removed. The
    /// exports stay.
    ///
    /// # Errors
    /// See [`Tenants::new`].
    pub fn reloaded(&self, new: &Tenants) -> Result<Tenants, TenantsError> {
        let configured = new.named.iter().filter(|tenant| !tenant.is_removed);
        self.with(configured.map(|tenant| tenant.config.clone()).collect(), self.exports.clone())
    }

    fn with(&self, configs: Vec<TenantConfig>, exports: Exports) -> Result<Tenants, TenantsError> {
        let (mut names, mut hosts) = (HashMap::new(), HashMap::new());
        for config in &configs {
            if names.insert(&config.name, ()).is_some() {
                return Err(TenantsError::Name(config.name.clone()));
            }
            if let Some(host) = config.hosts.iter().find(|host| hosts.insert(*host, ()).is_some()) {
                return Err(TenantsError::Host(host.clone()));
            }
        }
        let mut named = self.named.clone();
        named.iter_mut().for_each(|tenant| {
            tenant.is_removed = true;
            tenant.config.hosts.clear();
        });
        for config in configs {
            match named.iter_mut().find(|tenant| tenant.config.name == config.name) {
                Some(known) => {
                    *known = Tenant { config, is_removed: false, account: known.account.clone() };
                }
                None => {
                    let account = Account::new(self.shards);
                    named.push(Tenant { config, is_removed: false, account });
                }
            }
        }
        if named.len() >= TENANTS_MAX {
            return Err(TenantsError::TooMany);
        }
        Ok(Tenants { named, exports, shards: self.shards })
    }

    /// Whether tenants are or were configured. If not, every session belongs to the default tenant, whatever its token claims.
    pub fn is_configured(&self) -> bool {
        !self.named.is_empty()
    }

    /// Number of ids, including those of the default tenant and of removed tenants.
    pub fn len(&self) -> usize {
        self.named.len() + 1
    }

    /// Whether there is only the default tenant.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// All tenants except the default, with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (TenantId, &Tenant)> {
        self.named.iter().enumerate().map(|(at, tenant)| (TenantId(at as u16 + 1), tenant))
    }

    /// What tenants export.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// A tenant; `None` for the default, and for unused ids.
    pub fn get(&self, id: TenantId) -> Option<&Tenant> {
        self.named.get(id.index().checked_sub(1)?)
    }

    /// Name of a tenant; empty for the default.
    pub fn name(&self, id: TenantId) -> &str {
        self.get(id).map_or("", |tenant| &tenant.config.name)
    }

    /// Whether a tenant accepts sessions.
    pub fn is_open(&self, id: TenantId) -> bool {
        id == TenantId::DEFAULT || self.get(id).is_some_and(|tenant| !tenant.is_removed)
    }

    /// The configured tenant with this name. Compares with each.
    pub fn by_name(&self, name: &str) -> Option<TenantId> {
        self.iter().find(|(_, tenant)| !tenant.is_removed && &*tenant.config.name == name).map(|(id, _)| id)
    }

    /// The tenant with this host name, with or without a port, in any case. Compares with each.
    pub fn by_host(&self, host: &str) -> Option<TenantId> {
        let host = without_port(host);
        let has = |tenant: &Tenant| tenant.config.hosts.iter().any(|own| own.eq_ignore_ascii_case(host));
        self.iter().find(|(_, tenant)| has(tenant)).map(|(id, _)| id)
    }
}

/// A host without its port, and without the trailing dot of a fully qualified name.
fn without_port(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, hosts: &[&str]) -> TenantConfig {
        let hosts = hosts.iter().map(|host| (*host).into()).collect();
        TenantConfig { name: name.into(), hosts, quota: Quota::default() }
    }

    fn tenants(names: &[&str]) -> Tenants {
        Tenants::new(names.iter().map(|name| config(name, &[])).collect(), Exports::default(), 1).unwrap()
    }

    #[test]
    fn a_tenant_keeps_its_id_whatever_a_reload_adds_or_removes() {
        let first = tenants(&["a", "b", "c"]);
        let second = first.reloaded(&tenants(&["c", "d"])).unwrap();
        for (name, id) in [("c", Some(3)), ("d", Some(4)), ("a", None), ("b", None)] {
            assert_eq!(second.by_name(name), id.map(TenantId), "{name}");
        }
        assert!(!second.is_open(TenantId(1)) && second.is_open(TenantId(4)) && second.is_open(TenantId(0)));
        let third = second.reloaded(&tenants(&["a"])).unwrap();
        assert_eq!((third.by_name("a"), third.by_name("d"), third.len()), (Some(TenantId(1)), None, 5));
        assert_eq!(third.name(TenantId(4)), "d", "what is left of it still has its name");
    }

    #[test]
    fn hosts_name_tenants_with_any_port_and_case() {
        let configs = vec![config("a", &["a.example", "other.example"]), config("b", &["::1", "b.example"])];
        let tenants = Tenants::new(configs, Exports::default(), 1).unwrap();
        for (host, id) in [
            ("a.example", Some(1)),
            ("A.Example:8080", Some(1)),
            ("other.example.", Some(1)),
            ("b.example", Some(2)),
            ("c.a.example", None),
            ("", None),
        ] {
            assert_eq!(tenants.by_host(host), id.map(TenantId), "{host}");
        }
        let removed = tenants.reloaded(&Tenants::default()).unwrap();
        assert!(removed.by_host("a.example").is_none() && removed.is_configured());
    }

    #[test]
    fn tenants_that_cannot_be_told_apart_and_too_many_are_rejected() {
        let new = |configs| Tenants::new(configs, Exports::default(), 1);
        assert_eq!(new(vec![config("a", &[]), config("a", &[])]), Err(TenantsError::Name("a".into())));
        let hosts = vec![config("a", &["x"]), config("b", &["x"])];
        assert_eq!(new(hosts), Err(TenantsError::Host("x".into())));
        let many = |count: usize| (0..count).map(|n| config(&n.to_string(), &[])).collect();
        assert!(new(many(TENANTS_MAX - 1)).is_ok());
        assert_eq!(new(many(TENANTS_MAX)), Err(TenantsError::TooMany));
        let full = new(many(TENANTS_MAX - 1)).unwrap();
        assert_eq!(full.reloaded(&tenants(&["another"])), Err(TenantsError::TooMany));
    }
}
