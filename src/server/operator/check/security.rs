//! How safe a configuration is: who reaches its listeners, what protects them, and which secrets others can read.

use std::{ffi::OsString, path::Path};

use super::item::{CheckItem, ItemState};
use crate::{
    auth::{
        key::{Algorithm, VerifyingKey},
        policy,
    },
    config::{
        Config,
        auth::{AuthTables, KeyTable},
        listener::{Kind, ListenerTable, MinVersion, TlsTable, open_to_all},
        secret_files::{SecretFile, secret_files},
        settings::Settings,
    },
    limits::{CERTIFICATE_WARNING_DAYS, SECRET_BYTES_LOWEST, UNIX_MODE_DEFAULT},
    tls,
};

const DAY_S: u64 = 86_400;
/// Longest lifetime of tokens that is not advised against, nanoseconds: a token that leaks is of use until it expires.
const TTL_ADVISED_NS: u64 = DAY_S * 1_000_000_000;

/// Grades the configuration that `tickcast serve --config FILE` would have in this environment. `now_s`: seconds since 1970. Reads
/// its files and changes nothing.
///
/// # Errors
/// The environment has an option that is not valid.
pub fn check(file: &Path, now_s: u64) -> Result<Vec<CheckItem>, String> {
    let words = ["tickcast".into(), "serve".into(), "--config".into(), OsString::from(file)];
    let settings = Settings::read(&words).map_err(|error| error.to_string())?;
    let mut items = vec![configuration(&settings, file)];
    let auth = settings.auth.as_ref();
    let allow_anonymous = settings.tables.server.allow_anonymous;
    for listener in &settings.listeners {
        let name = format!("{} {}", listener.kind.name(), listener.address);
        items.push(match listener.kind {
            Kind::Admin => admin(&name, listener, auth, allow_anonymous),
            Kind::Native | Kind::Http => clients(&name, listener, auth, allow_anonymous),
        });
        if let Some(tls) = &listener.tls {
            items.push(version(&name, tls));
            items.extend(certificates(&name, tls, now_s));
        } else if !listener.address.is_local() {
            items.push(plain(&name));
        }
    }
    if let Some(auth) = auth {
        items.extend(auth.keys.iter().enumerate().filter_map(|(at, table)| key(at, table)));
        if !auth.keys.is_empty() {
            items.push(lifetime(auth));
        }
        if auth.common.query_token {
            items.push(advice(
                "?token=",
                "accepted",
                "query_token = false",
                "Proxies and browsers log URLs.",
            ));
        }
    }
    items.extend(auth.and_then(|auth| tenants_by_host(&settings, auth)));
    items.extend(secret_files(&settings).iter().map(secret_file));
    Ok(items)
}

/// An item that is as it should be.
fn good(name: &str, now: &str, reason: &str) -> CheckItem {
    CheckItem {
        name: name.to_owned(),
        required: false,
        state: ItemState::Enabled,
        now: Some(now.to_owned()),
        wanted: now.to_owned(),
        reason: reason.to_owned(),
    }
}

/// An item that should be changed.
fn advice(name: &str, now: &str, wanted: &str, reason: &str) -> CheckItem {
    CheckItem { state: ItemState::Supported, wanted: wanted.to_owned(), ..good(name, now, reason) }
}

fn configuration(settings: &Settings, file: &Path) -> CheckItem {
    let (name, reason) = ("configuration", format!("What {} and the environment say.", file.display()));
    let item = match Config::new(settings, None) {
        Ok(_) => good(name, "valid", &reason),
        Err(error) => {
            let text = error.to_string();
            let errors = text.lines().count();
            let now = format!("{errors} error{}", if errors == 1 { "" } else { "s" });
            advice(name, &now, "valid", &text.replace('\n', "; "))
        }
    };
    CheckItem { required: true, ..item }
}

fn clients(
    name: &str,
    listener: &ListenerTable,
    auth: Option<&AuthTables>,
    allow_anonymous: bool,
) -> CheckItem {
    let auth = auth.filter(|auth| auth.is_for_clients());
    let publishes = listener.publish != Some(false);
    match auth {
        Some(auth) => match &auth.anonymous {
            None => good(name, "[auth]", "Nobody enters without a valid token or certificate."),
            Some(anonymous) if publishes && !anonymous.permissions.publish.allow.is_empty() => advice(
                name,
                "anonymous clients publish",
                "tokens to publish",
                "[auth.anonymous] lets clients without credentials publish: give those that publish a token, or set publish = false.",
            ),
            Some(_) => good(
                name,
                "[auth]",
                "Clients without credentials only subscribe to what [auth.anonymous] allows.",
            ),
        },
        None if listener.address.is_local() => good(
            name,
            "this machine only",
            "Without [auth], any user of this machine may read and write every topic.",
        ),
        None => {
            let open = format!("{}.", open_to_all(listener.kind, &listener.address));
            let reason = if allow_anonymous {
                "Because of --allow-anonymous anyone who reaches it may read and write every topic: configure [auth]."
            } else {
                &open
            };
            advice(name, "open to anyone", "[auth]", reason)
        }
    }
}

fn admin(
    name: &str,
    listener: &ListenerTable,
    auth: Option<&AuthTables>,
    allow_anonymous: bool,
) -> CheckItem {
    let has_operators = auth.is_some_and(|auth| !auth.operators.is_empty());
    let has_authorities = listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let mode = listener.mode.map_or(UNIX_MODE_DEFAULT, |mode| mode.0);
    if has_operators {
        return good(name, "[[auth.operator]]", "Each operator has a token or a certificate, and a role.");
    }
    if !listener.address.is_local() {
        return match has_authorities {
            true => advice(
                name,
                "any certificate of client_ca",
                "[[auth.operator]]",
                "Each certificate of these authorities may close sessions and revoke tokens: name the operators and their roles.",
            ),
            false if allow_anonymous => advice(
                name,
                "open to anyone",
                "[[auth.operator]]",
                "Because of --allow-anonymous anyone who reaches it may list and close sessions: configure [[auth.operator]].",
            ),
            false => {
                let reason = format!("{}.", open_to_all(Kind::Admin, &listener.address));
                advice(name, "open to anyone", "[[auth.operator]]", &reason)
            }
        };
    }
    match listener.address.tcp() {
        None if mode & 0o006 == 0 => {
            good(name, &format!("mode {mode:04o}"), "Its owner and group may use it.")
        }
        _ => advice(
            name,
            "every user of this machine",
            "[[auth.operator]], or a Unix socket with mode",
            "Whoever runs a program on this machine may close sessions and revoke tokens.",
        ),
    }
}

fn plain(name: &str) -> CheckItem {
    advice(
        &format!("{name}: TLS"),
        "none",
        "tls = { cert, key }",
        "Anyone on the network path can read and change tokens and ticks, unless a proxy in front of it has TLS.",
    )
}

fn version(name: &str, tls: &TlsTable) -> CheckItem {
    let (name, reason) = (format!("{name}: TLS version"), "Clients of the last years speak 1.3");
    match tls.min_version {
        Some(MinVersion::Tls13) => good(&name, "1.3", &format!("{reason}.")),
        Some(MinVersion::Tls12) | None => advice(
            &name,
            "1.2",
            "min_version = \"1.3\"",
            &format!("{reason}; keep 1.2, with forward secrecy and AEAD only, for older ones."),
        ),
    }
}

/// One item for each certificate of a listener, or one for why they cannot be read.
fn certificates(name: &str, tls: &TlsTable, now_s: u64) -> Vec<CheckItem> {
    let wanted = format!("at least {CERTIFICATE_WARNING_DAYS} days");
    let ends = match tls::identities(tls) {
        Ok((_, ends)) => ends,
        Err(text) => {
            let item =
                advice(&format!("{name}: certificates"), "not readable", "readable", &format!("{text}."));
            return vec![CheckItem { required: true, ..item }];
        }
    };
    let item = |(certificate, ends_s): (&String, &u64)| {
        let name = format!("{name}: {certificate}");
        let left = ends_s.checked_sub(now_s).map(|left_s| left_s / DAY_S);
        let reason = "Replace its files, then reload (SIGHUP).";
        match left {
            None => advice(&name, "expired", &wanted, &format!("Clients refuse it. {reason}")),
            Some(days) if days < CERTIFICATE_WARNING_DAYS => {
                advice(&name, &format!("{days} days"), &wanted, &format!("It expires soon. {reason}"))
            }
            Some(days) => CheckItem {
                wanted: wanted.clone(),
                ..good(&name, &format!("{days} days"), "Time until the certificate expires.")
            },
        }
    };
    ends.iter().map(item).collect()
}

/// How strong a key in a file is; `None` for one whose keys come from elsewhere.
fn key(at: usize, table: &KeyTable) -> Option<CheckItem> {
    let (algorithm, file) = (table.algorithm?, table.file.as_deref()?);
    let name = format!("auth.key[{at}] {algorithm}");
    let wanted = match algorithm {
        Algorithm::Hs256 => format!("at least {SECRET_BYTES_LOWEST} bytes"),
        Algorithm::Rs256 => "at least 2048 bits".to_owned(),
        Algorithm::Es256 => "P-256".to_owned(),
        Algorithm::EdDsa => "Ed25519".to_owned(),
    };
    let read = policy::read_bounded(file).and_then(|content| VerifyingKey::from_file(algorithm, &content));
    Some(match read {
        Err(text) => {
            let item = advice(&name, "refused", &wanted, &format!("{}: {text}.", file.display()));
            CheckItem { required: true, ..item }
        }
        Ok(_) if table.issuer.is_none() => advice(
            &name,
            "tokens of any issuer",
            "issuer = \"...\"",
            "With an issuer, a token that the same key has signed for another purpose is refused.",
        ),
        Ok(_) => CheckItem {
            wanted,
            ..good(&name, "strong", "Whoever has the private key or secret makes tokens.")
        },
    })
}

fn lifetime(auth: &AuthTables) -> CheckItem {
    let ttl_max = auth.common.ttl_max;
    let (name, wanted) = ("lifetime of tokens", "ttl_max of at most 1d");
    let reason = "A token that leaks is of use until it expires or is revoked: let tokens live for minutes, and refresh them.";
    match ttl_max.ns {
        0 => advice(name, "no limit", wanted, reason),
        ns if ns > TTL_ADVISED_NS => advice(name, &ttl_max.to_string(), wanted, reason),
        _ => CheckItem { wanted: wanted.to_owned(), ..good(name, &ttl_max.to_string(), reason) },
    }
}

/// Who chooses a tenant by the host name that it asks for; `None`: no tenant has one, or every principal of the file has a tenant.
fn tenants_by_host(settings: &Settings, auth: &AuthTables) -> Option<CheckItem> {
    settings.tenants.iter().find(|tenant| !tenant.hosts.is_empty())?;
    let tokens = auth.tokens.iter().filter(|table| table.tenant.is_empty()).map(|table| &*table.name);
    let certificates =
        auth.certificates.iter().filter(|table| table.tenant.is_empty()).map(|table| &*table.name);
    let mut names: Vec<&str> = tokens.chain(certificates).collect();
    if auth.anonymous.is_some() {
        names.push("anonymous clients");
    }
    let now = format!("chosen by {}", names.join(", "));
    (!names.is_empty()).then(|| {
        advice(
            "tenants by host",
            &now,
            "tenant = \"...\"",
            "A token, a certificate or an anonymous client without a tenant becomes that of the host which it asks for (Host, SNI): \
             it may enter every tenant that has hosts. Give each entry its tenant, and anonymous clients a listener of their own.",
        )
    })
}

fn secret_file(file: &SecretFile) -> CheckItem {
    let name = file.path.display().to_string();
    let wanted = "closed to others";
    match file.mode() {
        None => advice(&name, "not readable", wanted, &format!("It should have {}.", file.what)),
        Some(mode) if file.is_open() => {
            advice(&name, &format!("mode {mode:04o}"), wanted, &format!("{}.", file.remedy()))
        }
        Some(mode) => CheckItem {
            wanted: wanted.to_owned(),
            ..good(&name, &format!("mode {mode:04o}"), &format!("It has {}.", file.what))
        },
    }
}

#[cfg(test)]
mod tests;
