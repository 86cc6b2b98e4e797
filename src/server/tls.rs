//! Reads the listeners' certificates, and reports when they expire.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::ServerConfig;
use tickcast_tls::{
    certificates::{self, ALPN_HTTP, ALPN_NATIVE, ClientCertificates, Identity, ServerSettings},
    tickets::{TICKET_KEY_BYTES, TICKET_KEYS_MAX, TICKET_LIFETIME_S, TicketKey, TicketKeys},
};

use crate::{
    clock,
    config::listener::{ClientCert, Kind, Listener, MinVersion, TlsTable},
    limits::{CERTIFICATE_WARNING_DAYS, TLS_FILE_BYTES_MAX},
};

const DAY_S: u64 = 86_400;
/// Rotation interval of random ticket keys.
pub const TICKET_ROTATION_NS: u64 = TICKET_LIFETIME_S as u64 * 1_000_000_000;
/// Interval between warnings about certificates that expire soon.
pub const WARNING_INTERVAL_NS: u64 = DAY_S * 1_000_000_000;

/// When a listener's certificate expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    /// The listener: its kind and index in the configuration, such as `http 1`.
    pub listener: String,
    /// The certificate's first name, or its file.
    pub name: String,
    /// When it expires, in seconds since 1970.
    pub ends_s: u64,
}

/// The certificates of all listeners in use. Cheap to clone; any thread may read it.
#[derive(Clone, Debug, Default)]
pub struct CertificateStatuses(Arc<Mutex<Vec<CertificateStatus>>>);

impl CertificateStatuses {
    /// A copy of the current values.
    pub fn get(&self) -> Vec<CertificateStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, statuses: Vec<CertificateStatus>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = statuses;
    }
}

/// The TLS configuration of each listener, in the order of the configuration; `None`: no TLS.
pub type TlsConfigs = Vec<Option<Arc<ServerConfig>>>;

/// The certificates of the listeners, read again on SIGHUP.
pub struct Certificates {
    listeners: Vec<Listener>,
    /// Ticket keys by listener.
    tickets: Vec<TicketKeys>,
    statuses: CertificateStatuses,
    rotated_ns: u64,
    warned_ns: u64,
}

impl Certificates {
    /// Reads the certificates of all listeners that have TLS.
    ///
    /// # Errors
    /// One message for each file that cannot be used.
    pub fn load(listeners: &[Listener], now: (u64, u64)) -> Result<(Certificates, TlsConfigs), Vec<String>> {
        let shared = TicketKeys::random(clock::realtime_s)
            .map_err(|_| vec!["the system has no random numbers".to_owned()])?;
        let tickets = listeners.iter().map(|listener| match &listener.tls {
            Some(TlsTable { ticket_keys: Some(_), .. }) => TicketKeys::new(&[], clock::realtime_s),
            _ => shared.clone(),
        });
        let (monotonic_ns, now_s) = now;
        let mut certificates = Certificates {
            listeners: listeners.to_vec(),
            tickets: tickets.collect(),
            statuses: CertificateStatuses::default(),
            rotated_ns: monotonic_ns,
            warned_ns: monotonic_ns,
        };
        let configs = certificates.read()?;
        log_all(certificates.expiring(now_s));
        Ok((certificates, configs))
    }

    /// Shared expiry times of the certificates in use.
    pub fn statuses(&self) -> CertificateStatuses {
        self.statuses.clone()
    }

    /// Splits a list by listener into the admin listener's part and those of the clients' listeners.
    pub fn by_use(&self, configs: TlsConfigs) -> (Option<Arc<ServerConfig>>, TlsConfigs) {
        let (mut admin, mut clients) = (None, Vec::new());
        for (listener, config) in self.listeners.iter().zip(configs) {
            match listener.kind {
                Kind::Admin => admin = config,
                Kind::Native | Kind::Http => clients.push(config),
            }
        }
        (admin, clients)
    }

    /// Whether no listener has TLS.
    pub fn is_empty(&self) -> bool {
        self.listeners.iter().all(|listener| listener.tls.is_none())
    }

    /// Reads all files again. Nothing changes if one of them cannot be used.
    ///
    /// # Errors
    /// See [`Certificates::load`].
    pub fn reload(&mut self, now_s: u64) -> Result<TlsConfigs, Vec<String>> {
        let configs = self.read()?;
        log_all(self.expiring(now_s));
        Ok(configs)
    }

    /// Rotates ticket keys and repeats warnings when they are due. Call it regularly.
    pub fn turn(&mut self, now: (u64, u64)) {
        log_all(self.advance(now));
    }

    /// Does what [`Certificates::turn`] does, and returns the warnings.
    fn advance(&mut self, (monotonic_ns, now_s): (u64, u64)) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.is_empty() {
            return warnings;
        }
        if monotonic_ns.saturating_sub(self.rotated_ns) >= TICKET_ROTATION_NS {
            self.rotated_ns = monotonic_ns;
            let random = self
                .listeners
                .iter()
                .zip(&self.tickets)
                .find(|(listener, _)| listener.tls.as_ref().is_some_and(|tls| tls.ticket_keys.is_none()));
            if let Some((_, keys)) = random
                && keys.rotate().is_err()
            {
                warnings.push("the ticket keys stay: the system has no random numbers".to_owned());
            }
        }
        if monotonic_ns.saturating_sub(self.warned_ns) >= WARNING_INTERVAL_NS {
            self.warned_ns = monotonic_ns;
            warnings.extend(self.expiring(now_s));
        }
        warnings
    }

    fn read(&mut self) -> Result<TlsConfigs, Vec<String>> {
        let (mut configs, mut statuses, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        let mut new_keys = Vec::new();
        for (at, (listener, tickets)) in self.listeners.iter().zip(&self.tickets).enumerate() {
            let Some(tls) = &listener.tls else {
                configs.push(None);
                continue;
            };
            match read_listener(listener, tls, tickets) {
                Ok((config, ends, keys)) => {
                    configs.push(Some(config));
                    let listener = format!("{} {at}", listener.kind.name());
                    for (name, ends_s) in ends {
                        statuses.push(CertificateStatus { listener: listener.clone(), name, ends_s });
                    }
                    new_keys.extend(keys.map(|keys| (tickets.clone(), keys)));
                }
                Err(text) => problems.push(format!("{}: {text}", listener.named)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        for (tickets, keys) in new_keys {
            tickets.replace(&keys);
        }
        self.statuses.set(statuses);
        Ok(configs)
    }

    /// A warning for each certificate that has expired or soon will.
    fn expiring(&self, now_s: u64) -> Vec<String> {
        let warning = |CertificateStatus { listener, name, ends_s }| match ends_s.checked_sub(now_s) {
            None => Some(format!("the certificate {name} of {listener} has expired: clients refuse it")),
            Some(left_s) if left_s < CERTIFICATE_WARNING_DAYS * DAY_S => Some(format!(
                "the certificate {name} of {listener} expires in {} days; replace its files, then reload (SIGHUP)",
                left_s / DAY_S
            )),
            Some(_) => None,
        };
        self.statuses.get().into_iter().filter_map(warning).collect()
    }
}

fn log_all(warnings: Vec<String>) {
    for warning in warnings {
        ::log::warn!("TLS: {warning}");
    }
}

/// A listener's TLS configuration, the expiry of its certificates by name, and its ticket keys if a file has them.
type ListenerTls = (Arc<ServerConfig>, BTreeMap<String, u64>, Option<Vec<TicketKey>>);

/// Reads a listener's certificates and keys. Also returns when each certificate expires, by name, in seconds since 1970.
///
/// # Errors
/// Names the file that cannot be used, and why.
pub fn identities(tls: &TlsTable) -> Result<(Vec<Identity>, BTreeMap<String, u64>), String> {
    let (mut identities, mut ends) = (Vec::new(), BTreeMap::new());
    for (cert, key) in tls.cert.files().iter().zip(tls.key.files()) {
        let identity = Identity::from_pem(&read(cert)?, &read(key)?)
            .map_err(|error| format!("{} with {}: {error}", cert.display(), key.display()))?;
        let name = identity.names().first().cloned().unwrap_or_else(|| cert.display().to_string());
        let earliest = ends.entry(name).or_insert(identity.valid_s.1);
        *earliest = identity.valid_s.1.min(*earliest);
        identities.push(identity);
    }
    Ok((identities, ends))
}

fn read_listener(listener: &Listener, tls: &TlsTable, tickets: &TicketKeys) -> Result<ListenerTls, String> {
    let (identities, ends) = identities(tls)?;
    let authorities = tls.client_ca.as_deref().map(|file| read(file).map(|pem| (file, pem))).transpose()?;
    let wanted = match tls.client_cert {
        Some(ClientCert::Optional) => ClientCertificates::Optional,
        Some(ClientCert::Required) | None => ClientCertificates::Required,
    };
    let keys = tls.ticket_keys.as_deref().map(read_ticket_keys).transpose()?;
    let protocols: &[&[u8]] = match listener.kind {
        Kind::Native => &[ALPN_NATIVE],
        Kind::Http | Kind::Admin => &[ALPN_HTTP],
    };
    // A client may only resume a session that it may also begin.
    let context = [
        listener.kind.name().as_bytes(),
        &[u8::from(wanted == ClientCertificates::Required)],
        authorities.as_ref().map_or(&[][..], |(_, pem)| pem),
    ]
    .concat();
    let settings = ServerSettings {
        identities: &identities,
        client_authorities: authorities.as_ref().map(|(_, pem)| (&pem[..], wanted)),
        only_tls13: tls.min_version == Some(MinVersion::Tls13),
        protocols,
        // Operators show their certificates on each connection: their tickets would outlive them.
        tickets: (listener.kind != Kind::Admin || authorities.is_none())
            .then(|| tickets.for_context(&context)),
        hands_over: listener.kind != Kind::Admin,
    };
    let config = certificates::server_config(&settings).map_err(|error| match &authorities {
        Some((file, _)) => format!("client_ca {}: {error}", file.display()),
        None => error.to_string(),
    })?;
    Ok((config, ends, keys))
}

fn read_ticket_keys(path: &Path) -> Result<Vec<TicketKey>, String> {
    let bytes = read(path)?;
    TicketKeys::read(&bytes).ok_or_else(|| {
        format!(
            "{}: {} bytes; a file of ticket keys has 1 to {TICKET_KEYS_MAX} keys of {TICKET_KEY_BYTES} bytes: \
             `head -c {TICKET_KEY_BYTES} /dev/urandom` makes one",
            path.display(),
            bytes.len()
        )
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(TLS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > TLS_FILE_BYTES_MAX {
        true => Err(format!("{}: longer than {TLS_FILE_BYTES_MAX} bytes", path.display())),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests;
