//! Tenants: namespaces of topics with quotas of their own, and what one exports to others.
//!
//! The table is configuration: the same on every shard, replaced as a whole by a reload. An id never changes its tenant while the
//! server runs, so a tenant that is removed and comes back finds its topics.

mod account;
mod exports;

pub use self::{
    account::{Account, Figure, Figures, Flow, FlowLease, Lease, Quota, Resource},
    exports::{Export, ExportError, Exports, Importers},
};

use std::{collections::HashMap, sync::Arc};

use crate::{ids::TenantId, limits::TENANTS_MAX};

/// A tenant as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantConfig {
    /// Name, as in the tokens of its clients. Not empty.
    pub name: Box<str>,
    /// Host names of its clients' requests and TLS connections, in lower case, without a port.
    pub hosts: Vec<Box<str>>,
    /// What it may use.
    pub quota: Quota,
}

/// One tenant. Equal to another with the same configuration.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its configuration. The name of the default tenant is empty.
    pub config: TenantConfig,
    /// It is no longer configured: it takes no sessions.
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

/// All tenants of the server. The first is the default tenant, of sessions and sources that have no other.
///
/// Bound: [`TENANTS_MAX`], those that were removed while the server runs included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenants {
    /// Those that have been configured, from id 1 on.
    named: Vec<Tenant>,
    exports: Exports,
    shards: u16,
}

/// Why there is no such table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantsError {
    /// More than [`TENANTS_MAX`], the default and those removed since the start included.
    TooMany,
    /// Two tenants have this name.
    Name(Box<str>),
    /// Two tenants have this host name.
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
    /// A table of these tenants, for so many shards. Exports name them by [`Tenants::by_name`] of a table without exports.
    ///
    /// # Errors
    /// Two of them cannot be told apart, or there are too many.
    pub fn new(configs: Vec<TenantConfig>, exports: Exports, shards: u16) -> Result<Tenants, TenantsError> {
        Tenants { shards, ..Tenants::default() }.with(configs, exports)
    }

    /// This table with other tenants: those of the same name keep their ids, those that are missing are removed. The exports stay.
    ///
    /// # Errors
    /// As [`Tenants::new`].
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

    /// Whether tenants are configured, or were. If not, every session belongs to the default tenant, whatever its token claims.
    pub fn is_configured(&self) -> bool {
        !self.named.is_empty()
    }

    /// Number of ids, the default tenant's and those of removed tenants included.
    pub fn len(&self) -> usize {
        self.named.len() + 1
    }

    /// Whether there is only the default tenant.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// All tenants but the default, with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (TenantId, &Tenant)> {
        self.named.iter().enumerate().map(|(at, tenant)| (TenantId(at as u16 + 1), tenant))
    }

    /// What tenants export.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    /// A tenant; `None` for the default, and for an id that is not in use.
    pub fn get(&self, id: TenantId) -> Option<&Tenant> {
        self.named.get(id.index().checked_sub(1)?)
    }

    /// Name of a tenant; empty for the default.
    pub fn name(&self, id: TenantId) -> &str {
        self.get(id).map_or("", |tenant| &tenant.config.name)
    }

    /// Whether a tenant takes sessions.
    pub fn is_open(&self, id: TenantId) -> bool {
        id == TenantId::DEFAULT || self.get(id).is_some_and(|tenant| !tenant.is_removed)
    }

    /// The tenant of a name that is configured. A look at each.
    pub fn by_name(&self, name: &str) -> Option<TenantId> {
        self.iter().find(|(_, tenant)| !tenant.is_removed && &*tenant.config.name == name).map(|(id, _)| id)
    }

    /// The tenant of a host name, with or without a port, in any case. A look at each.
    pub fn by_host(&self, host: &str) -> Option<TenantId> {
        let host = without_port(host);
        let has = |tenant: &Tenant| tenant.config.hosts.iter().any(|own| own.eq_ignore_ascii_case(host));
        self.iter().find(|(_, tenant)| has(tenant)).map(|(id, _)| id)
    }
}

/// A host without the port behind it, and without the dot that ends a full name.
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
