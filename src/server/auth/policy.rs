//! The `[auth]` configuration of clients, and the verification of credentials against it. Reads no clock and no socket.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use jsonwebtoken::{Validation, dangerous, decode, decode_header, errors::ErrorKind};
use ring::digest;
use serde_json::{Map, Value};

use super::{
    claims::{Claims, Common, Expectations},
    key::{Algorithm, VerifyingKey},
    key_set::{KeySet, Keys},
    permissions::{PermissionsTable, Templates},
    provider,
    revocations::Revocations,
};
use crate::{
    config::auth::{AUTH, AuthTables, KeyTable},
    limits::{
        AUTH_ENTRIES_MAX, JWKS_REFRESH_MS_HIGHEST, JWKS_REFRESH_MS_LOWEST, KEY_FILE_BYTES_MAX, KEYS_MAX,
        KEYS_TRIED_MAX, TOKEN_LEEWAY_MS_HIGHEST,
    },
};
use tickcast_core::{
    listed::{self, Listed, Listing},
    principal::{AuthRefusal, Credentials, Permissions, Principal},
};
use tickcast_proto::{identity, limits::TOKEN_BYTES_MAX};
use tickcast_tls::certificates;

const NS_PER_S: u64 = 1_000_000_000;
/// Subject of anonymous clients, shown to operators.
const ANONYMOUS: &str = "anonymous";

/// The version of the next policy.
static VERSIONS: AtomicU64 = AtomicU64::new(1);

/// A SHA-256 hash.
pub(super) type Hash = [u8; digest::SHA256_OUTPUT_LEN];

/// Who may use the server. Shared by all verifiers; a reload replaces it as a whole.
#[derive(Clone, Debug)]
pub struct Policy {
    keys: Vec<Entry>,
    tokens: HashMap<Hash, Arc<Principal>>,
    certificates: HashMap<Box<str>, Arc<Principal>>,
    anonymous: Option<Arc<Principal>>,
    common: Common,
    /// Later readings of the file have higher ones.
    version: u64,
}

/// An `[[auth.key]]` table.
#[derive(Clone, Debug)]
struct Entry {
    algorithm: Algorithm,
    source: KeySource,
    expected: Expectations,
}

/// Where an entry's keys come from.
#[derive(Clone, Debug)]
enum KeySource {
    /// A file: one key, and the only key id that it accepts.
    File(VerifyingKey, Option<Box<str>>),
    /// A JSON Web Key Set.
    Set(Arc<KeySet>),
}

/// The outcome of a verification.
#[derive(Debug)]
pub enum Outcome {
    /// The verification is complete.
    Verdict(Result<Arc<Principal>, AuthRefusal>),
    /// The token names a key that this set does not contain. Fetching the set again may help. Includes the keys that were tried.
    UnknownKey(Arc<KeySet>, Arc<Keys>),
}

/// Why a key does not verify a token.
enum NotVerified {
    Signature,
    Malformed,
}

fn invalid(text: &'static str) -> AuthRefusal {
    AuthRefusal::Invalid(text.into())
}

impl Policy {
    /// The principal of clients without credentials; `None`: they are not allowed.
    pub fn anonymous(&self) -> Option<&Arc<Principal>> {
        self.anonymous.as_ref()
    }

    /// The principals that the file lists.
    pub fn listed(&self) -> Listed {
        let listed = self.tokens.values().chain(self.certificates.values()).chain(&self.anonymous);
        Listed::new(self.version, listed.cloned())
    }

    /// The key sets to fetch.
    pub fn key_sets(&self) -> impl Iterator<Item = &Arc<KeySet>> {
        self.keys.iter().filter_map(|entry| match &entry.source {
            KeySource::Set(set) => Some(set),
            KeySource::File(..) => None,
        })
    }

    /// Takes over the keys that a previous policy has fetched, so that a reload does not depend on issuers. An unchanged key set
    /// is reused itself, which preserves a fetch under way and the tokens that wait for it.
    pub fn inheriting(mut self, previous: &Policy) -> Policy {
        for entry in &mut self.keys {
            let KeySource::Set(set) = &mut entry.source else { continue };
            if let Some(same) = previous.key_sets().find(|old| old.is_same(set)) {
                *set = same.clone();
            } else if let Some(old) = previous.key_sets().find(|old| old.is_same_source(set)) {
                set.inherit(old);
            }
        }
        self
    }

    /// Verifies credentials. `now_s`: seconds since 1970. Cost: at most [`KEYS_TRIED_MAX`] signature checks, no system call.
    pub fn verify(&self, credentials: &Credentials, now_s: u64, revocations: &Revocations) -> Outcome {
        let principal = match (&credentials.token, &credentials.certificate) {
            (Some(token), _) => match self.static_token(token) {
                Some(principal) => principal.clone(),
                None => match self.web_token(token, now_s) {
                    Ok(principal) => principal,
                    Err(outcome) => return outcome,
                },
            },
            (None, Some(certificate)) => match self.certificates.get(&certificate.name) {
                Some(_) if certificate.ends_s < now_s => {
                    return Outcome::Verdict(Err(AuthRefusal::CertificateExpired));
                }
                Some(principal) => Arc::new(Principal {
                    expires_at_s: Some(certificate.ends_s),
                    ..Principal::clone(principal)
                }),
                // The certificate proves nothing here: treat the client as one without credentials, and let the shard decide.
                None => return Outcome::Verdict(Err(AuthRefusal::Missing)),
            },
            (None, None) => return Outcome::Verdict(Err(AuthRefusal::Missing)),
        };
        Outcome::Verdict(match revocations.is_revoked(&principal, now_s) {
            true => Err(AuthRefusal::Revoked),
            false => Ok(principal),
        })
    }

    fn static_token(&self, token: &str) -> Option<&Arc<Principal>> {
        if self.tokens.is_empty() {
            return None;
        }
        // This comparison is not constant-time, but its timing depends on the hash and reveals nothing about the token.
        self.tokens.get(&sha256(token.as_bytes()))
    }

    fn web_token(&self, token: &str, now_s: u64) -> Result<Arc<Principal>, Outcome> {
        let refused = |text| Outcome::Verdict(Err(invalid(text)));
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused("it is longer than 8192 bytes"));
        }
        if token.split('.').count() != 3 {
            return Err(refused("it is neither a known token nor a JSON Web Token"));
        }
        provider::install();
        let header = decode_header(token)
            .map_err(|_| refused("its header is malformed, or names an unknown algorithm"))?;
        if header.crit.is_some() {
            return Err(refused("its header has critical extensions, of which none is known"));
        }
        let entries =
            self.keys.iter().filter(|entry| Some(entry.algorithm) == Algorithm::of_header(header.alg));
        let kid = header.kid.as_deref();
        let (mut refusal, mut tried) = (invalid("no key has its algorithm and key id"), 0);
        let mut unknown = Vec::new();
        for entry in entries {
            let keys = entry.keys(kid);
            if let (true, KeySource::Set(set), Some(set_keys)) = (keys.is_empty(), &entry.source, &keys.set) {
                unknown.push((entry, set.clone(), set_keys.clone()));
            }
            for key in keys.iter() {
                if tried == KEYS_TRIED_MAX {
                    break;
                }
                tried += 1;
                match verified(token, key) {
                    Ok(claims) if !claims.is_from(entry.expected.issuer.as_deref()) => {
                        refusal = invalid("its issuer (iss) is not the one of its key");
                    }
                    Ok(claims) => {
                        let identified = claims.identify(&entry.expected, &self.common, now_s);
                        return identified.map(Arc::new).map_err(|refusal| Outcome::Verdict(Err(refusal)));
                    }
                    Err(NotVerified::Signature) => refusal = invalid("its signature is wrong"),
                    Err(NotVerified::Malformed) => {
                        return Err(refused("it is not well-formed"));
                    }
                }
            }
        }
        // The claim is not verified. It only chooses which set may be fetched, at the set's own rate.
        let claimed = |entry: &Entry| {
            let claims = dangerous::insecure_decode::<Map<String, Value>>(token);
            claims.is_ok_and(|data| Claims(data.claims).is_from(entry.expected.issuer.as_deref()))
        };
        match unknown.into_iter().find(|(entry, ..)| claimed(entry)) {
            Some((_, set, keys)) => Err(Outcome::UnknownKey(set, keys)),
            None => Err(Outcome::Verdict(Err(refusal))),
        }
    }
}

/// The keys of an entry that may have signed a token.
struct Candidates<'a> {
    file: Option<&'a VerifyingKey>,
    set: Option<Arc<Keys>>,
    kid: Option<&'a str>,
}

impl Candidates<'_> {
    fn iter(&self) -> impl Iterator<Item = &VerifyingKey> {
        let of_set = self.set.iter().flat_map(|keys| keys.with_id(self.kid));
        self.file.into_iter().chain(of_set)
    }

    fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl Entry {
    fn keys<'a>(&'a self, kid: Option<&'a str>) -> Candidates<'a> {
        match &self.source {
            KeySource::File(key, own) => {
                let fits = own.as_deref().is_none_or(|own| kid.is_none_or(|kid| kid == own));
                Candidates { file: fits.then_some(key), set: None, kid }
            }
            KeySource::Set(set) => Candidates { file: None, set: Some(set.keys()), kid },
        }
    }
}

/// Returns the token's claims if this key has signed it.
fn verified(token: &str, key: &VerifyingKey) -> Result<Claims, NotVerified> {
    let mut validation = Validation::new(key.algorithm().in_header());
    // [`Claims`] checks every claim against the given time, and refuses claims of the wrong type.
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    match decode::<Map<String, Value>>(token, key.decoding(), &validation) {
        Ok(data) => Ok(Claims(data.claims)),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => Err(NotVerified::Signature),
        Err(_) => Err(NotVerified::Malformed),
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Hash {
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Hash of a static token as it appears in the file: 64 hexadecimal digits.
pub fn token_hash(token: &str) -> String {
    sha256(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn parsed_hash(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    if digits.len() != 2 * hash.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

/// Checks `[auth]` and reads its key files.
pub struct Builder<'a> {
    tables: &'a AuthTables,
    version: u64,
    /// Each problem's path in the file, and what is wrong.
    problems: Vec<(String, String)>,
}

impl<'a> Builder<'a> {
    /// Builds a policy. `is_whole`: whether every value could be read. If not, nothing is reported as missing.
    ///
    /// # Errors
    /// All problems, each with its path, such as `auth.key[0].file`.
    pub fn build(tables: &'a AuthTables, is_whole: bool) -> Result<Policy, Vec<(String, String)>> {
        let version = VERSIONS.fetch_add(1, Relaxed);
        let mut builder = Builder { tables, version, problems: Vec::new() };
        let policy = builder.policy();
        let mut problems = builder.problems;
        problems.retain(|(_, text)| is_whole || !text.contains("is missing"));
        if problems.is_empty() { Ok(policy) } else { Err(problems) }
    }

    fn refuse(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.problems.push((path.into(), text.into()));
    }

    fn policy(&mut self) -> Policy {
        let tables = self.tables;
        let leeway_highest = TOKEN_LEEWAY_MS_HIGHEST * 1_000_000;
        if tables.common.leeway.ns > leeway_highest || !tables.common.leeway.ns.is_multiple_of(NS_PER_S) {
            let text = format!("{}: must be whole seconds, 0s to 5m", tables.common.leeway);
            self.refuse("auth.leeway", text);
        }
        if !tables.common.ttl_max.ns.is_multiple_of(NS_PER_S) {
            let text = format!("{}: must be whole seconds, or 0s for no limit", tables.common.ttl_max);
            self.refuse("auth.ttl_max", text);
        }
        if tables.common.claim.is_empty() {
            self.refuse("auth.claim", "must be the name of a claim, such as \"tickcast\"");
        }
        let common = Common {
            claim: tables.common.claim.as_str().into(),
            leeway_s: tables.common.leeway.ns / NS_PER_S,
            ttl_max_s: Some(tables.common.ttl_max.ns / NS_PER_S).filter(|seconds| *seconds > 0),
        };
        let has_any = !(tables.keys.is_empty() && tables.tokens.is_empty() && tables.certificates.is_empty());
        if !has_any && tables.anonymous.is_none() {
            let text = "a key is missing: no client could connect; add [[auth.key]], [[auth.token]], [[auth.certificate]] or \
                        [auth.anonymous]";
            self.refuse(AUTH, text);
        }
        for (name, len, len_max) in [
            ("key", tables.keys.len(), KEYS_MAX),
            ("token", tables.tokens.len(), AUTH_ENTRIES_MAX),
            ("certificate", tables.certificates.len(), AUTH_ENTRIES_MAX),
        ] {
            if len > len_max {
                self.refuse(
                    format!("auth.{name}[{len_max}]"),
                    format!("{len} tables, the limit is {len_max}"),
                );
            }
        }
        let keys = tables.keys.iter().enumerate().filter_map(|(at, table)| self.key(at, table)).collect();
        let mut tokens = HashMap::new();
        for (at, table) in tables.tokens.iter().enumerate() {
            let path = format!("auth.token[{at}]");
            let principal = self.principal(&path, &table.name, &table.tenant, &table.permissions);
            if table.sha256.is_empty() {
                self.refuse(path, "sha256 is missing: `tickcast token --hash` prints it");
                continue;
            }
            let Some(hash) = parsed_hash(&table.sha256) else {
                let text = "must be 64 hexadecimal digits, the hash and not the token: `tickcast token --hash` prints it";
                self.refuse(format!("{path}.sha256"), text);
                continue;
            };
            let principal = principal.map(|principal| self.listed(listed::Entry::Token(hash), principal));
            if principal.is_some_and(|principal| tokens.insert(hash, principal).is_some()) {
                self.refuse(
                    format!("{path}.sha256"),
                    "another [[auth.token]] has the same; each machine needs its own",
                );
            }
        }
        let mut certificates = HashMap::new();
        for (at, table) in tables.certificates.iter().enumerate() {
            let path = format!("auth.certificate[{at}]");
            let principal = self.principal(&path, &table.name, &table.tenant, &table.permissions);
            let name: Box<str> = table.name.as_str().into();
            let principal =
                principal.map(|principal| self.listed(listed::Entry::Certificate(name.clone()), principal));
            if principal.is_some_and(|principal| certificates.insert(name, principal).is_some()) {
                self.refuse(format!("{path}.name"), "another [[auth.certificate]] has the same name");
            }
        }
        let anonymous = tables.anonymous.as_ref().and_then(|table| {
            match table.permissions.expand(Templates::default()) {
                Ok(permissions) => {
                    Some(self.listed(listed::Entry::Anonymous, principal(ANONYMOUS, "", permissions)))
                }
                Err(error) => {
                    let text = format!("{} (anonymous clients have no name and no tenant)", error.text());
                    self.refuse("auth.anonymous.permissions", text);
                    None
                }
            }
        });
        Policy { keys, tokens, certificates, anonymous, common, version: self.version }
    }

    /// Notes where the file lists a principal.
    fn listed(&self, entry: listed::Entry, principal: Principal) -> Arc<Principal> {
        let listing = Some(Listing { entry, version: self.version });
        Arc::new(Principal { listing, ..principal })
    }

    /// The principal of a static token or a certificate.
    fn principal(
        &mut self,
        path: &str,
        name: &str,
        tenant: &str,
        permissions: &PermissionsTable,
    ) -> Option<Principal> {
        if name.is_empty() {
            self.refuse(path, "name is missing");
            return None;
        }
        for (key, text) in [("name", name), ("tenant", tenant)] {
            if !text.is_empty() && identity::check(text.as_bytes()).is_err() {
                self.refuse(format!("{path}.{key}"), "must be 1 to 255 bytes without control characters");
                return None;
            }
        }
        if let Err(text) = permissions.check() {
            self.refuse(format!("{path}.permissions"), text);
            return None;
        }
        match permissions.expand(Templates { sub: name, tenant }) {
            Ok(permissions) => Some(principal(name, tenant, permissions)),
            Err(error) => {
                self.refuse(format!("{path}.permissions"), error.text());
                None
            }
        }
    }

    fn key(&mut self, at: usize, table: &KeyTable) -> Option<Entry> {
        let path = |key: &str| format!("auth.key[{at}].{key}");
        if let Err(text) = table.permissions.check() {
            self.refuse(path("permissions"), text);
        }
        let Some(algorithm) = table.algorithm else {
            let text = "algorithm is missing: one of HS256, RS256, ES256, EdDSA";
            self.refuse(format!("auth.key[{at}]"), text);
            return None;
        };
        if table.ca.is_some() && table.jwks.is_none() {
            self.refuse(path("ca"), "is for the server of a JWKS; remove it");
        }
        let source = match (&table.file, &table.jwks) {
            (Some(file), None) => self.file_key(&path("file"), algorithm, file, table.kid.as_deref()),
            (None, Some(url)) => self.set(at, algorithm, url, table),
            (Some(_), Some(_)) => {
                self.refuse(path("jwks"), "a key comes from a file or from a JWKS; remove one");
                None
            }
            (None, None) => {
                self.refuse(
                    format!("auth.key[{at}]"),
                    "file is missing (or jwks, the URL of a JSON Web Key Set)",
                );
                None
            }
        };
        let expected = Expectations {
            issuer: table.issuer.as_deref().map(Into::into),
            audience: table.audience.as_deref().map(Into::into),
            permissions: table.permissions.clone(),
        };
        source.map(|source| Entry { algorithm, source, expected })
    }

    fn file_key(
        &mut self,
        path: &str,
        algorithm: Algorithm,
        file: &Path,
        kid: Option<&str>,
    ) -> Option<KeySource> {
        let read = read_bounded(file).and_then(|content| VerifyingKey::from_file(algorithm, &content));
        match read {
            Ok(key) => Some(KeySource::File(key, kid.map(Into::into))),
            Err(text) => {
                self.refuse(path, format!("{}: {text}", file.display()));
                None
            }
        }
    }

    fn set(&mut self, at: usize, algorithm: Algorithm, url: &str, table: &KeyTable) -> Option<KeySource> {
        let path = |key: &str| format!("auth.key[{at}].{key}");
        let problems = self.problems.len();
        if algorithm == Algorithm::Hs256 {
            self.refuse(path("algorithm"), "HS256 has a secret, which no JWKS may publish; use file");
        }
        if table.kid.is_some() {
            self.refuse(path("kid"), "the keys of a JWKS have their own ids; remove it");
        }
        if table.issuer.as_deref().unwrap_or_default().is_empty() {
            self.refuse(path("jwks"), "issuer is missing: a JWKS has the keys of one issuer");
        }
        if let Err(text) = check_url(url) {
            self.refuse(path("jwks"), format!("{url}: {text}"));
        }
        let authorities = match table.ca.as_deref().map(|file| (file, authorities(file))) {
            None => Vec::new(),
            Some(_) if !url.starts_with("https:") => {
                self.refuse(path("ca"), "is for https:// only; remove it");
                Vec::new()
            }
            Some((_, Ok(authorities))) => authorities,
            Some((file, Err(text))) => {
                self.refuse(path("ca"), format!("{}: {text}", file.display()));
                Vec::new()
            }
        };
        let range = JWKS_REFRESH_MS_LOWEST * 1_000_000..=JWKS_REFRESH_MS_HIGHEST * 1_000_000;
        if !range.contains(&table.refresh.ns) {
            self.refuse(path("refresh"), format!("{}: must be 10s to 1d", table.refresh));
        }
        let set = KeySet::new(url, table.issuer.as_deref().unwrap_or_default(), algorithm, table.refresh.ns)
            .with_authorities(authorities);
        (self.problems.len() == problems).then(|| KeySource::Set(Arc::new(set)))
    }
}

fn principal(name: &str, tenant: &str, permissions: Permissions) -> Principal {
    Principal {
        subject: name.into(),
        tenant: tenant.into(),
        permissions: Arc::new(permissions),
        ..Principal::default()
    }
}

/// Reads the certificates of authorities, DER.
///
/// # Errors
/// Says what is wrong with the file.
fn authorities(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let pem = read_bounded(file)?;
    // Each must be usable as an authority.
    certificates::root_store(&pem).map_err(|error| error.to_string())?;
    let found = certificates::certificates(&pem).map_err(|error| error.to_string())?;
    Ok(found.iter().map(|certificate| certificate.to_vec()).collect())
}

/// Reads a file of a key or of certificates, at most [`KEY_FILE_BYTES_MAX`] bytes.
///
/// # Errors
/// Says why it cannot be read.
pub fn read_bounded(file: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let open = fs::File::open(file).map_err(|error| error.to_string())?;
    let bytes_max = KEY_FILE_BYTES_MAX as u64;
    open.take(bytes_max + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() > KEY_FILE_BYTES_MAX {
        return Err(format!("is longer than {bytes_max} bytes"));
    }
    Ok(content)
}

/// Refuses a URL from which keys cannot be trusted.
fn check_url(url: &str) -> Result<(), String> {
    let parsed: http::Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
    let host = parsed.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let is_local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    match parsed.scheme_str() {
        _ if host.is_empty() => Err("not a URL with a host".into()),
        Some("https") => Ok(()),
        Some("http") if is_local => Ok(()),
        Some("http") => Err(
            "must be https: anyone on the network path could replace the keys (http only to this machine)"
                .into(),
        ),
        _ => Err("must begin with https://".into()),
    }
}

#[cfg(test)]
mod tests;
