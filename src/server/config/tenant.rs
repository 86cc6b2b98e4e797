//! `[[tenant]]` of the configuration file: namespaces of topics, and what each exports.
//!
//! ```text
//!  [[tenant]]
//!  name = "exchange"
//!  hosts = ["exchange.example"]                             optional
//!  exports = [{ topics = "prices.>", to = ["acme", "*"] }]  optional
//!  quota = { connections = 1000, egress_rate = "10MiB" }    optional
//! ```

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::auth::AuthSection;
use crate::cli::values::Size;
use tickcast_core::{
    ids::TenantId,
    tenants::{Export, ExportError, Exports, Importers, Quota, TenantConfig, Tenants, TenantsError},
};
use tickcast_proto::{identity, pattern};

/// Name of the list of tables.
pub const TENANT: &str = "tenant";
/// In `to`: every other tenant.
const EVERYONE: &str = "*";

/// A `[[tenant]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantTable {
    /// Name, as in the claim of its clients' tokens.
    pub name: String,
    /// Host names of its clients' requests and TLS connections.
    pub hosts: Vec<String>,
    /// Topics that other tenants may subscribe to.
    pub exports: Vec<ExportTable>,
    /// What it may use.
    pub quota: QuotaTable,
}

/// A tenant's `quota`, on the whole server. 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaTable {
    /// Connections.
    pub connections: u32,
    /// Subscriptions of all its sessions.
    pub subscriptions: u32,
    /// Topics.
    pub topics: u32,
    /// Ticks published by its sessions, per second.
    pub publish_rate: u32,
    /// Bytes sent to its sessions, per second.
    pub egress_rate: Size,
    /// Bytes of the histories of its topics.
    pub history: Size,
}

impl QuotaTable {
    fn quota(self) -> Quota {
        Quota {
            connections: self.connections.into(),
            subscriptions: self.subscriptions.into(),
            topics: self.topics.into(),
            publish_rate: self.publish_rate.into(),
            egress_rate: self.egress_rate.bytes as u64,
            history_bytes: self.history.bytes as u64,
        }
    }
}

/// One of a tenant's `exports`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportTable {
    /// Pattern of the topics.
    pub topics: String,
    /// Names of tenants, or `*` for all others.
    pub to: Vec<String>,
}

/// Makes the table of tenants for so many shards. Every problem has its path.
///
/// # Errors
/// Everything that is wrong.
pub fn build(tables: &[TenantTable], shards: u16) -> Result<Tenants, Vec<(String, String)>> {
    if tables.is_empty() {
        return Ok(Tenants::default());
    }
    let mut problems = Vec::new();
    let mut refuse =
        |at: usize, key: &str, text: String| problems.push((format!("{TENANT}[{at}].{key}"), text));
    for (at, table) in tables.iter().enumerate() {
        if let Err(error) = identity::check(table.name.as_bytes()) {
            refuse(at, "name", format!("{:?}: {error}", table.name));
        }
        if let Some(host) = table.hosts.iter().find(|host| !is_host(host)) {
            refuse(
                at,
                "hosts",
                format!("{host:?}: must be a host name without a port, such as \"acme.example\""),
            );
        }
    }
    let config = |table: &TenantTable| TenantConfig {
        name: table.name.as_str().into(),
        hosts: table.hosts.iter().map(|host| host.to_ascii_lowercase().into()).collect(),
        quota: table.quota.quota(),
    };
    let configs: Vec<TenantConfig> = tables.iter().map(config).collect();
    let named = match Tenants::new(configs.clone(), Exports::default(), shards) {
        Ok(named) => named,
        Err(error) => {
            let is_second = |found: &mut dyn FnMut(&TenantTable) -> bool| {
                tables.iter().enumerate().filter(|(_, table)| found(table)).last().map_or(0, |(at, _)| at)
            };
            let (at, key) = match &error {
                TenantsError::TooMany => (tables.len() - 1, "name"),
                TenantsError::Name(name) => (is_second(&mut |table| *table.name == **name), "name"),
                TenantsError::Host(host) => (
                    is_second(&mut |table| table.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))),
                    "hosts",
                ),
            };
            refuse(at, key, error.to_string());
            return Err(problems);
        }
    };
    let mut exports = Vec::new();
    // The tenant of each export.
    let mut owners = Vec::new();
    for (at, table) in tables.iter().enumerate() {
        for export in &table.exports {
            match export_of(export, TenantId(at as u16 + 1), &named) {
                Ok(export) => {
                    exports.push(export);
                    owners.push(at);
                }
                Err(text) => refuse(at, "exports", text),
            }
        }
    }
    let exports = Exports::new(exports.clone()).map_err(|error| {
        let name = |export: usize| {
            format!("{:?} of tenant {:?}", exports[export].topics, tables[owners[export]].name)
        };
        match error {
            ExportError::Ambiguous(one, other) => refuse(
                owners[other],
                "exports",
                format!("{} and {} have topics in common and go to the same tenant", name(one), name(other)),
            ),
            ExportError::Imported(own, other) => refuse(
                owners[own],
                "exports",
                format!("{} has topics in common with {}, which this tenant imports", name(own), name(other)),
            ),
        }
    });
    match (problems.is_empty(), exports) {
        (true, Ok(exports)) => Tenants::new(configs, exports, shards)
            .map_err(|error| vec![(TENANT.to_owned(), error.to_string())]),
        _ => Err(problems),
    }
}

fn export_of(table: &ExportTable, owner: TenantId, named: &Tenants) -> Result<Export, String> {
    let ExportTable { topics, to } = table;
    pattern::check_pattern(topics.as_bytes()).map_err(|error| format!("topics {topics:?}: {error}"))?;
    let to = match to.iter().any(|name| name == EVERYONE) {
        true => Importers::All,
        false => {
            let tenant = |name: &String| {
                let found = named.by_name(name).filter(|tenant| *tenant != owner);
                found.ok_or_else(|| format!("to {name:?}: there is no other tenant of this name"))
            };
            Importers::Named(to.iter().map(tenant).collect::<Result<_, _>>()?)
        }
    };
    Ok(Export { owner, topics: topics.as_str().into(), to })
}

impl super::Checks<'_> {
    /// The tenant of a listener or a source, by name.
    pub(super) fn tenant(&mut self, path: &str, name: Option<&str>, tenants: &Tenants) -> TenantId {
        let Some(name) = name else { return TenantId::DEFAULT };
        let is_whole = !self.settings.broken.iter().any(|broken| broken == TENANT);
        tenants.by_name(name).unwrap_or_else(|| {
            if is_whole {
                self.refuse(
                    path,
                    format!("{name:?}: there is no such tenant; add a [[tenant]] of this name"),
                );
            }
            TenantId::DEFAULT
        })
    }
}

fn is_host(host: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    is_address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
        || !host.is_empty() && !host.ends_with('.') && host.bytes().all(is_allowed)
}

/// The tables of a file, as its section holds them.
pub fn tables_of(section: &AuthSection) -> Vec<Table> {
    let items = section.values.get(TENANT).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(Value::as_table).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(text: &str) -> Result<Tenants, Vec<(String, String)>> {
        #[derive(Deserialize)]
        struct File {
            tenant: Vec<TenantTable>,
        }
        build(&toml::from_str::<File>(text).unwrap().tenant, 1)
    }

    #[test]
    fn a_table_of_tenants_and_exports_is_built() {
        let tenants = tenants(
            r#"
            [[tenant]]
            name = "exchange"
            exports = [{ topics = "prices.>", to = ["acme"] }, { topics = "news.*", to = ["*"] }]
            [[tenant]]
            name = "acme"
            hosts = ["Acme.Example", "[::1]"]
            quota = { topics = 5, egress_rate = "1MiB" }
            "#,
        )
        .unwrap();
        let (exchange, acme) = (TenantId(1), TenantId(2));
        assert_eq!((tenants.by_name("acme"), tenants.by_host("acme.example:443")), (Some(acme), Some(acme)));
        let quota = Quota { topics: 5, egress_rate: 1 << 20, ..Quota::default() };
        assert_eq!(tenants.get(acme).unwrap().config.quota, quota);
        assert_eq!(tenants.exports().owner(acme, "prices.a"), exchange);
        assert_eq!(tenants.exports().owner(TenantId(9), "news.a"), exchange);
    }

    #[test]
    fn what_is_wrong_is_refused_at_its_place() {
        for (text, path, part) in [
            ("name = \"\"", "tenant[0].name", ""),
            ("name = \"a\"\nhosts = [\"a:80\"]", "tenant[0].hosts", "without a port"),
            ("name = \"a\"\n[[tenant]]\nname = \"a\"", "tenant[1].name", "two tenants"),
            (
                "name = \"a\"\nhosts = [\"x\"]\n[[tenant]]\nname = \"b\"\nhosts = [\"X\"]",
                "tenant[1].hosts",
                "two tenants",
            ),
            ("name = \"a\"\nexports = [{ topics = \"a..b\", to = [] }]", "tenant[0].exports", "empty token"),
            (
                "name = \"a\"\nexports = [{ topics = \"a\", to = [\"b\"] }]",
                "tenant[0].exports",
                "no other tenant",
            ),
            (
                "name = \"a\"\nexports = [{ topics = \"a\", to = [\"a\"] }]",
                "tenant[0].exports",
                "no other tenant",
            ),
            (
                "name = \"a\"\nexports = [{ topics = \"p.*\", to = [\"*\"] }]\n[[tenant]]\nname = \"b\"\n\
                 exports = [{ topics = \"p.>\", to = [\"*\"] }]",
                "tenant[0].exports",
                "imports",
            ),
        ] {
            let problems = tenants(&format!("[[tenant]]\n{text}")).unwrap_err();
            assert!(
                problems.iter().any(|(at, text)| at == path && text.contains(part)),
                "{text}: {problems:?}"
            );
        }
    }
}
