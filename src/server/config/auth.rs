//! `[auth]` in the configuration file: who may use the server, and for what.
//!
//! ```text
//!  [auth]                  what applies to all credentials
//!  [[auth.key]]            keys that JSON Web Tokens are signed with: a file, or a JWKS
//!  [[auth.token]]          tokens of machines, as hashes
//!  [[auth.certificate]]    names in client certificates
//!  [auth.anonymous]        clients without credentials; without it there are none
//!  [[auth.operator]]       who may use the admin listener
//! ```

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    auth::{Policy, key::Algorithm, operators::Role, permissions::PermissionsTable, policy::Builder},
    cli::values::Time,
    limits,
};
use tickcast_core::config::AuthLimits;

/// Name of the table.
pub const AUTH: &str = "auth";
/// Lists of tables below it.
pub const LISTS: [&str; 4] = ["key", "token", "certificate", "operator"];
/// The only single table below it.
pub const ANONYMOUS: &str = "anonymous";
/// Keys whose values are never shown: anyone with the hash of a weak token can guess the token.
const HIDDEN: [&str; 1] = ["sha256"];

/// Keys of `[auth]` itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthTable {
    /// Claim that holds a token's permissions.
    pub claim: String,
    /// By how much the issuer's clock may differ from this server's, for `exp`, `nbf` and `iat`.
    pub leeway: Time,
    /// Time from a token's expiry until its session is closed, in which the client may refresh it.
    pub grace: Time,
    /// How long before expiry the server warns the client.
    pub warning: Time,
    /// Longest time from now until a token expires: others are refused; 0: no limit.
    pub ttl_max: Time,
    /// What happens to a subscription to a pattern that is only partly allowed.
    pub partial_patterns: PartialPatterns,
    /// Whether `?token=` is accepted in the URL of a WebSocket, which proxies and browsers log.
    pub query_token: bool,
}

/// What happens to a subscription to a pattern that is only partly allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartialPatterns {
    /// It is refused.
    #[default]
    Refuse,
    /// It stands, and only the topics that are allowed exist for it.
    Filter,
}

impl Default for AuthTable {
    fn default() -> AuthTable {
        AuthTable {
            claim: "tickcast".into(),
            leeway: Time::from_ms(limits::TOKEN_LEEWAY_MS_DEFAULT),
            grace: Time::from_ms(limits::TOKEN_GRACE_MS_DEFAULT),
            warning: Time::from_ms(limits::TOKEN_WARNING_MS_DEFAULT),
            ttl_max: Time::default(),
            partial_patterns: PartialPatterns::default(),
            query_token: false,
        }
    }
}

/// An `[[auth.key]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyTable {
    /// The only algorithm for which the key is used.
    pub algorithm: Option<Algorithm>,
    /// File of the key: a public key in PEM, or the secret of HS256.
    pub file: Option<PathBuf>,
    /// URL of a JSON Web Key Set, instead of a file.
    pub jwks: Option<String>,
    /// Key id; `None`: for tokens with any id or none.
    pub kid: Option<String>,
    /// Required `iss`; `None`: any.
    pub issuer: Option<String>,
    /// Required in `aud`; `None`: tokens must have no `aud`.
    pub audience: Option<String>,
    /// File of the authorities that sign the certificate of the set's server, PEM; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Interval at which the set is fetched.
    pub refresh: Time,
    /// Permissions of tokens without the claim.
    pub permissions: PermissionsTable,
}

impl Default for KeyTable {
    fn default() -> KeyTable {
        KeyTable {
            algorithm: None,
            file: None,
            jwks: None,
            kid: None,
            issuer: None,
            audience: None,
            ca: None,
            refresh: Time::from_ms(limits::JWKS_REFRESH_MS_DEFAULT),
            permissions: PermissionsTable::default(),
        }
    }
}

/// An `[[auth.token]]`: a token that does not expire, for a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenTable {
    /// Name of the machine: the subject.
    pub name: String,
    /// SHA-256 of the token, 64 hexadecimal digits.
    pub sha256: String,
    /// Its tenant; empty: none.
    pub tenant: String,
    /// What it may do.
    pub permissions: PermissionsTable,
}

/// An `[[auth.certificate]]`: a client with a verified certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateTable {
    /// DNS or URI name in the certificate: the subject.
    pub name: String,
    /// Its tenant; empty: none.
    pub tenant: String,
    /// What it may do.
    pub permissions: PermissionsTable,
}

/// `[auth.anonymous]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnonymousTable {
    /// What clients without credentials may do.
    pub permissions: PermissionsTable,
}

/// An `[[auth.operator]]`: who may use the admin listener. Its token or its certificate is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperatorTable {
    /// Name, for the log.
    pub name: String,
    /// SHA-256 of its token, 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// DNS or URI name in its certificate.
    pub certificate: Option<String>,
    /// What it may do.
    pub role: Option<Role>,
}

/// Everything in `[auth]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthTables {
    /// `[auth]` itself.
    #[serde(flatten)]
    pub common: AuthTable,
    /// `[[auth.key]]`.
    #[serde(rename = "key")]
    pub keys: Vec<KeyTable>,
    /// `[[auth.token]]`.
    #[serde(rename = "token")]
    pub tokens: Vec<TokenTable>,
    /// `[[auth.certificate]]`.
    #[serde(rename = "certificate")]
    pub certificates: Vec<CertificateTable>,
    /// `[auth.anonymous]`.
    pub anonymous: Option<AnonymousTable>,
    /// `[[auth.operator]]`.
    #[serde(rename = "operator")]
    pub operators: Vec<OperatorTable>,
}

impl AuthTables {
    /// Whether clients are authenticated. `[[auth.operator]]` alone does not authenticate clients.
    pub fn is_for_clients(&self) -> bool {
        let has_any = !(self.keys.is_empty() && self.tokens.is_empty() && self.certificates.is_empty());
        has_any || self.anonymous.is_some() || self.operators.is_empty()
    }
}

/// The part of `[auth]` that concerns clients, with the keys from its files. Equal to another with the same configuration.
#[derive(Clone)]
pub struct AuthConfig {
    tables: AuthTables,
    /// The policy that verifies credentials.
    pub policy: Arc<Policy>,
}

impl PartialEq for AuthConfig {
    fn eq(&self, other: &AuthConfig) -> bool {
        self.tables == other.tables
    }
}

impl fmt::Debug for AuthConfig {
    /// Without hashes of tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig").finish_non_exhaustive()
    }
}

impl AuthConfig {
    /// Checks the tables and reads the key files. `is_whole`: as for [`Builder::build`].
    ///
    /// # Errors
    /// All errors, each with its path.
    pub fn build(tables: &AuthTables, is_whole: bool) -> Result<AuthConfig, Vec<(String, String)>> {
        let policy = Arc::new(Builder::build(tables, is_whole)?);
        Ok(AuthConfig { tables: tables.clone(), policy })
    }

    pub(super) fn limits(&self) -> AuthLimits {
        let common = &self.tables.common;
        AuthLimits {
            anonymous: self.policy.anonymous().cloned(),
            listed: Arc::new(self.policy.listed()),
            query_token: common.query_token,
            filters_patterns: common.partial_patterns == PartialPatterns::Filter,
            warning_ns: common.warning.ns,
            grace_ns: common.grace.ns,
            ..AuthLimits::default()
        }
    }
}

/// `[auth]` as read from a file: valid values, and the line and name of each by path, such as `auth.key[0].kid`. Tables have
/// their own path: `auth.key[0]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthSection {
    /// The values.
    pub values: Table,
    /// Line and name.
    pub places: BTreeMap<String, (usize, String)>,
}

/// The table without secret values.
pub fn shown(values: &Table) -> Table {
    let mut shown = Table::new();
    for (key, value) in values {
        let value = match value {
            Value::Table(table) => Value::Table(self::shown(table)),
            Value::Array(items) => {
                let item =
                    |item: &Value| item.as_table().map_or(item.clone(), |table| self::shown(table).into());
                Value::Array(items.iter().map(item).collect())
            }
            _ if HIDDEN.contains(&key.as_str()) => Value::String("hidden".into()),
            other => other.clone(),
        };
        shown.insert(key.clone(), value);
    }
    shown
}

/// Appends a list of tables as a file has it: `header` in the brackets, `path` of its first values.
pub fn write_tables<'a>(
    text: &mut String,
    header: &str,
    path: &str,
    tables: impl Iterator<Item = &'a Table>,
    section: &AuthSection,
) {
    for (at, item) in tables.enumerate() {
        write_table(text, format!("[[{header}]]"), &format!("{path}[{at}]"), item, section);
    }
}

fn write_table(text: &mut String, header: String, path: &str, table: &Table, section: &AuthSection) {
    let _ = writeln!(text, "\n{header}");
    for (key, value) in table {
        let from = section.places.get(&format!("{path}.{key}")).map(|(line, _)| format!(" # line {line}"));
        let _ = match HIDDEN.contains(&key.as_str()) {
            true => writeln!(text, "# {key} = # hidden"),
            false => writeln!(text, "{key} = {value}{}", from.unwrap_or_default()),
        };
    }
}

/// Appends `[auth]` in the format of a file, with the line of each value. Secret values become comments.
pub fn write_toml(text: &mut String, section: &AuthSection) {
    let table = |text: &mut String, header: String, path: &str, table: &Table| {
        write_table(text, header, path, table, section);
    };
    let (nested, plain): (Vec<_>, Vec<_>) =
        section.values.iter().partition(|(key, _)| LISTS.contains(&key.as_str()) || *key == ANONYMOUS);
    let plain = plain.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    table(text, format!("[{AUTH}]"), AUTH, &plain);
    for (name, value) in nested {
        match value {
            Value::Array(items) => {
                let path = format!("{AUTH}.{name}");
                write_tables(text, &path, &path, items.iter().filter_map(Value::as_table), section);
            }
            other => {
                let empty = Table::new();
                let item = other.as_table().unwrap_or(&empty);
                table(text, format!("[{AUTH}.{name}]"), &format!("{AUTH}.{name}"), item);
            }
        }
    }
}
