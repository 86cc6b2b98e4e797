//! SIGHUP: reads the configuration again, sends the new limits to the shards, and logs the changes.

use std::sync::Arc;

use crate::{
    auth::Authority,
    config::{Config, reload::Change},
    error::StartupError,
    logging,
    operator::{
        admin::{access::AdminAccess, listener::AdminTls},
        control::{ControlSender, Dispatch, ShardRequest},
        tenants::SharedTenants,
    },
    supervisor::times,
    tls::{Certificates, TlsConfigs},
};
use tickcast_core::config::Limits;
use tickcast_proto::ids::ShardId;

/// Reads the configuration again and lists the changes.
pub type Reload = Box<dyn FnMut() -> Result<(Config, Vec<Change>), StartupError>>;

/// Reloads the configuration. Holds the shards' limits, and the shards that have yet to receive them.
pub struct Reloader {
    /// `None`: there is no configuration file.
    read_config: Option<Reload>,
    limits: Arc<Limits>,
    /// Verifies credentials.
    authority: Option<Arc<Authority>>,
    /// The log's filter.
    log: String,
    /// Shards whose control ring was full: they receive the limits as soon as it has room.
    pending: Vec<ShardId>,
    /// A reload was requested, perhaps before the shards started.
    is_requested: bool,
    /// The certificates of the listeners, and the handle to replace those of the admin listener.
    tls: Option<(Certificates, AdminTls)>,
    /// Who may use the admin listener.
    access: Option<AdminAccess>,
    /// The tenants, for the admin listener.
    tenants: SharedTenants,
    /// New certificates for the clients' listeners, and the shards that have yet to receive them.
    pending_tls: (TlsConfigs, Vec<ShardId>),
}

impl Reloader {
    /// Creates a reloader for shards that run with these limits, for the credential verifiers, and for the log's filter.
    pub fn new(
        read_config: Option<Reload>,
        limits: Limits,
        authority: Option<Arc<Authority>>,
        log: String,
    ) -> Reloader {
        Reloader {
            read_config,
            limits: Arc::new(limits),
            authority,
            log,
            pending: Vec::new(),
            is_requested: false,
            tls: None,
            access: None,
            tenants: SharedTenants::default(),
            pending_tls: (Vec::new(), Vec::new()),
        }
    }

    /// Also reads certificates again.
    pub fn with_tls(self, certificates: Certificates, admin: AdminTls) -> Reloader {
        Reloader { tls: Some((certificates, admin)), ..self }
    }

    /// Also replaces the operators of the admin listener, if there is one.
    pub fn with_access(self, access: Option<AdminAccess>) -> Reloader {
        Reloader { access, ..self }
    }

    /// Also gives the admin listener the tenants.
    pub fn with_tenants(self, tenants: SharedTenants) -> Reloader {
        Reloader { tenants, ..self }
    }

    /// The limits that shards run with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The credential verifiers.
    pub fn authority(&self) -> Option<&Arc<Authority>> {
        self.authority.as_ref()
    }

    /// Whether there is a configuration file to read again.
    pub fn has_a_file(&self) -> bool {
        self.read_config.is_some()
    }

    /// Requests a reload. The next [`Reloader::turn`] performs it.
    pub fn request(&mut self) {
        self.is_requested = true;
    }

    /// Performs a requested reload, and sends the limits to shards that have yet to receive them. Call it regularly.
    pub fn turn(&mut self, control: &mut ControlSender) {
        if std::mem::take(&mut self.is_requested) {
            self.reload(control);
        }
        for shard in std::mem::take(&mut self.pending) {
            self.send_limits(Some(shard), control);
        }
        for shard in std::mem::take(&mut self.pending_tls.1) {
            self.send_certificates(Some(shard), control);
        }
        if let Some((certificates, _)) = &mut self.tls {
            certificates.turn(times());
        }
    }

    fn reload(&mut self, control: &mut ControlSender) {
        let Some(read_config) = &mut self.read_config else {
            return ::log::info!("SIGHUP: nothing to reload: the server was started without --config");
        };
        let (config, changes) = match read_config() {
            Ok(read) => read,
            // The server keeps the configuration it has.
            Err(error) => {
                return error.to_string().lines().for_each(|line| {
                    ::log::error!("SIGHUP: nothing changed: {line}");
                });
            }
        };
        let limits = self.limits.with_reloadable_from(&config.limits);
        let log_all = || {
            log_changes(&changes);
            for line in limits.changes_needing_restart(&config.limits) {
                ::log::warn!("SIGHUP: {line}");
            }
        };
        logging::set_filter(&config.log);
        if ::log::log_enabled!(::log::Level::Info) {
            log_all();
        } else {
            // Log before the new filter applies: it may hide this line.
            logging::set_filter(&self.log);
            log_all();
            logging::set_filter(&config.log);
        }
        self.log.clone_from(&config.log);
        self.reload_certificates(control);
        match (&self.authority, &config.auth) {
            // Its key files may have changed even if the text has not.
            (Some(authority), Some(auth)) => authority.replace(&auth.policy),
            (None, None) => {}
            (Some(_), None) => {
                ::log::warn!("SIGHUP: [auth] is kept: removing it takes effect at the next start")
            }
            (None, Some(_)) => ::log::warn!("SIGHUP: [auth] takes effect at the next start"),
        }
        if let Some(Err(text)) = self.access.as_ref().map(|access| access.reload(config.operators.clone())) {
            ::log::warn!("SIGHUP: {text}");
        }
        if limits != *self.limits {
            self.limits = Arc::new(limits);
            self.tenants.set(self.limits.tenants.clone());
            self.pending.clear();
            self.send_limits(None, control);
        }
    }

    /// Reads the certificates again. Open connections keep theirs.
    fn reload_certificates(&mut self, control: &mut ControlSender) {
        let Some((certificates, admin)) =
            self.tls.as_mut().filter(|(certificates, _)| !certificates.is_empty())
        else {
            return;
        };
        match certificates.reload(times().1) {
            Ok(configs) => {
                let (admin_config, clients) = certificates.by_use(configs);
                admin.set(admin_config);
                self.pending_tls = (clients, Vec::new());
                self.send_certificates(None, control);
                ::log::info!("SIGHUP: the certificates have been read again");
            }
            Err(problems) => problems.iter().for_each(|problem| {
                ::log::error!("SIGHUP: every listener keeps its certificates: {problem}");
            }),
        }
    }

    fn send_certificates(&mut self, to: Option<ShardId>, control: &mut ControlSender) {
        let configs = self.pending_tls.0.clone();
        let request = Box::new(move |_| ShardRequest::Certificates(configs.clone()));
        self.pending_tls.1.extend(control.send(Dispatch { to, request }));
    }

    fn send_limits(&mut self, to: Option<ShardId>, control: &mut ControlSender) {
        let limits = self.limits.clone();
        let request = Box::new(move |_| ShardRequest::Reload(limits.clone()));
        self.pending.extend(control.send(Dispatch { to, request }));
    }
}

fn log_changes(changes: &[Change]) {
    changes.iter().for_each(|change| ::log::info!("SIGHUP: {change}"));
    if changes.is_empty() {
        ::log::info!("SIGHUP: nothing has changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::settings::Settings,
        limits::CONTROL_REQUESTS_PER_SHARD,
        operator::control::{ReplySender, control_channels},
    };
    use tickcast_core::mesh::ring::Doorbell;

    #[test]
    fn a_shard_whose_ring_is_full_receives_only_the_newest_limits_later() {
        let bell = Arc::new(Doorbell::new(|| {}));
        let (mut control, mut receivers) = control_channels(&[bell]);
        let close = || ShardRequest::Close(1, ReplySender::always_open(|_| ()));
        for _ in 0..CONTROL_REQUESTS_PER_SHARD {
            control.send(Dispatch { to: None, request: Box::new(move |_| close()) });
        }
        let settings = Settings::read(&["tickcast", "serve"].map(Into::into)).unwrap();
        let config = Config::new(&settings, None).unwrap();
        let mut other = config.clone();
        let read_config = move || {
            other.limits.budgets.session.ticks += 1;
            Ok((other.clone(), Vec::new()))
        };
        let mut reloader =
            Reloader::new(Some(Box::new(read_config)), config.limits.clone(), None, config.log.clone());
        for _ in 0..2 {
            reloader.request();
            reloader.turn(&mut control);
        }
        let mut received = Vec::new();
        let mut take_all = |received: &mut Vec<u32>| {
            while let Some(request) = receivers[0].try_recv() {
                if let ShardRequest::Reload(limits) = request {
                    received.push(limits.budgets.session.ticks);
                }
            }
        };
        take_all(&mut received);
        assert!(received.is_empty());
        reloader.turn(&mut control);
        reloader.turn(&mut control);
        take_all(&mut received);
        assert_eq!(received, [2]);
    }
}
