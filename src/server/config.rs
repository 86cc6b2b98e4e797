//! The validated configuration of a server. Every bound is derived and checked before anything starts.

pub mod auth;
mod budgets;
pub mod declared;
mod delivery;
pub mod file;
pub mod listener;
mod nodes;
pub mod reload;
pub mod secret_files;
pub mod settings;
pub mod sink;
mod sources;
pub mod tenant;

use std::{str::FromStr, sync::Arc};

pub use self::listener::SocketBounds;
use self::{
    auth::{AUTH, AuthConfig, AuthTables},
    listener::{Kind, Listener, ListenerTable, TlsTable, Transport, open_to_all},
    settings::Settings,
};
use crate::{
    auth::Operators,
    cli::{
        serve::IdentityConflict,
        values::{Mode, Size, Time},
    },
    error::{Problem, StartupError},
    limits,
    process::cores::Cores,
    sources::{feeds, kind::SourceConfig, sink::kind::SinkConfig},
};
use tickcast_core::{
    config::{Limits, message_bytes_max},
    flush_wait::LatencyBudget,
    home::CreationLimits,
    message_id::MESSAGE_ID_BYTES,
    networks::Networks,
    shard::ClientAddress,
    tenants::Tenants,
    topic_key::PREFIX_BYTES,
};
use tickcast_proto::{
    frame,
    http::access::Access,
    records::{History, Publish, WireRecord},
};

/// The value of `--cores` for all cores that the process may use, and as many shards as its CPU quota covers.
const CORES_AUTO: &str = "auto";

/// The validated configuration of one server.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Cores to pin shards to: shard `n` runs on `cores[n % len]`. Empty if neither the options nor the machine define them.
    pub cores: Vec<usize>,
    /// Number of shards.
    pub shards: u16,
    /// Listeners for clients and for the operator.
    pub listeners: Vec<Listener>,
    /// Who may use the server; `None`: everyone may do everything.
    pub auth: Option<AuthConfig>,
    /// Who may use the admin listener; `None`: no `[[auth.operator]]`.
    pub operators: Option<Arc<Operators>>,
    /// Whether other machines are accepted without [`Config::auth`] and [`Config::operators`].
    pub allow_anonymous: bool,
    /// Log filter, in the syntax of [`crate::logging::set_filter`].
    pub log: String,
    /// Maximum number of connections; `None`: as many as the descriptor limit allows.
    pub clients_max: Option<usize>,
    /// Maximum number of connections from one address; 0: no limit.
    pub clients_per_source_max: u32,
    /// Networks without a limit per address.
    pub unlimited_sources: Networks,
    /// New connections per second, all shards together; 0: no limit.
    pub accept_rate: u32,
    /// Whether a shard refuses new connections while it is overloaded.
    pub overload_refuses: bool,
    /// Whether the server is not ready while a shard is overloaded.
    pub overload_is_unready: bool,
    /// Bounds of the core.
    pub limits: Limits,
    /// Size of one mesh ring, bytes.
    pub mesh_ring_bytes: usize,
    /// Longest time to hold ticks under load, to send more of them in one SEND.
    pub latency_budget: LatencyBudget,
    /// Time that an idle shard polls before it sleeps, nanoseconds.
    pub spin_ns: u64,
    /// Longest time from SIGTERM to exit, nanoseconds.
    pub drain_deadline_ns: u64,
    /// Whether to print the latencies at exit.
    pub report: bool,
    /// Sources of ticks other than clients.
    pub sources: Vec<SourceConfig>,
    /// Engines that take what clients publish; by their index in [`Limits::routes`].
    pub sinks: Vec<SinkConfig>,
}

impl Config {
    /// Derives every bound and checks what can be checked without the kernel. `machine`: the cores that this process may use;
    /// `None` if they are unknown, or if the configuration is for another machine.
    ///
    /// # Errors
    /// [`StartupError::Configuration`] with every error found.
    pub fn new(settings: &Settings, machine: Option<&Cores>) -> Result<Config, StartupError> {
        Config::checked(settings, machine, true)
    }

    /// [`Config::new`] without sources, for a reload: it reads no ECG record, which may hold a whole day.
    ///
    /// # Errors
    /// As [`Config::new`], except for errors in a record.
    pub fn without_sources(settings: &Settings, machine: Option<&Cores>) -> Result<Config, StartupError> {
        let config = Config::checked(settings, machine, false)?;
        Ok(Config { sources: Vec::new(), sinks: Vec::new(), ..config })
    }

    fn checked(
        settings: &Settings,
        machine: Option<&Cores>,
        reads_files: bool,
    ) -> Result<Config, StartupError> {
        let mut checks = Checks { settings, problems: Vec::new() };
        let config = checks.config(machine, reads_files);
        let problems = checks.all();
        if problems.is_empty() { Ok(config) } else { Err(StartupError::Configuration(problems)) }
    }
}

/// Collects all errors, so that one start reports all of them.
struct Checks<'a> {
    settings: &'a Settings,
    problems: Vec<Problem>,
}

impl Checks<'_> {
    fn refuse(&mut self, path: &str, text: String) {
        let problem = self.settings.problem(path, text);
        self.problems.push(problem);
    }

    /// Refuses a value outside the range.
    fn within<T: PartialOrd + std::fmt::Display>(&mut self, path: &str, value: T, lowest: T, highest: T) {
        if value < lowest || value > highest {
            self.refuse(path, format!("{value}: must be {lowest} to {highest}"));
        }
    }

    /// All errors, by line. Leaves out errors about options whose value could not be read, because their defaults were checked
    /// instead.
    fn all(self) -> Vec<Problem> {
        let broken: Vec<String> = self.settings.broken.iter().map(|flag| format!("--{flag}")).collect();
        let follows = |problem: &Problem| broken.iter().any(|flag| problem.text.contains(flag));
        let mut all = self.settings.problems.clone();
        all.extend(self.problems.into_iter().filter(|problem| !follows(problem)));
        all.sort_by_key(|problem| problem.line);
        all
    }

    fn config(&mut self, machine: Option<&Cores>, reads_files: bool) -> Config {
        let tables = &self.settings.tables;
        let (server, limits, timeouts) = (&tables.server, &tables.limits, &tables.timeouts);
        let (cores, shards_default) = self.cores(machine);
        let shards = server.shards.unwrap_or(shards_default.clamp(1, limits::SHARDS_MAX) as u16);
        if !(1..=limits::SHARDS_MAX as u16).contains(&shards) {
            self.refuse("server.shards", format!("{shards}: must be 1 to {} shards", limits::SHARDS_MAX));
        }
        let tenants = self.built(tenant::build(&self.settings.tenants, shards)).unwrap_or_default();
        let listeners = self.listeners(&tenants);
        let (auth, operators) = (self.auth(), self.operators());
        let bounds = self.source_bounds(reads_files);
        let sinks = self.sinks(bounds);
        let mut core_limits = Limits {
            auth: auth.as_ref().map(AuthConfig::limits),
            routes: self.routes(&sinks, &tenants).into(),
            tenants: tenants.into(),
            ..self.limits()
        };
        let (budget, spin) = (server.latency_budget, server.spin);
        let budget_highest = Time::from_ms(limits::LATENCY_BUDGET_MS_HIGHEST);
        let budget_max = Time { ns: budget.0.max_ns() };
        self.within("server.latency_budget", budget_max, Time::default(), budget_highest);
        self.within("server.spin", spin, Time::default(), Time::from_us(limits::SPIN_US_HIGHEST));
        if let Some(clients) = limits.max_clients
            && !(1..=limits::CLIENTS_MAX_HIGHEST).contains(&clients)
        {
            let text = format!("{clients}: must be at least 1, at most {}", limits::CLIENTS_MAX_HIGHEST);
            self.refuse("limits.max_clients", text);
        }
        self.check_rates();
        let sources = self.sources(bounds, &core_limits.tenants);
        core_limits.is_fed_by_logs = sources.iter().any(SourceConfig::reads_back);
        core_limits.feeds = feeds::list(&sources);
        core_limits.log_readers = sources::log_readers(&sources);
        core_limits.on_demand = sources::on_demand(&sources);
        Config {
            cores,
            shards,
            listeners,
            auth,
            operators,
            allow_anonymous: server.allow_anonymous,
            log: server.log.clone(),
            clients_max: limits.max_clients,
            clients_per_source_max: limits.max_clients_per_source,
            unlimited_sources: limits.unlimited_sources.clone(),
            accept_rate: limits.accept_rate,
            overload_refuses: limits.overload_refuse,
            overload_is_unready: limits.overload_unready,
            // Room for two of the longest mesh frames.
            mesh_ring_bytes: limits
                .mesh_ring
                .bytes
                .max(2 * mesh_frame_bytes_max(core_limits.frame_bytes_max)),
            limits: core_limits,
            latency_budget: budget.0,
            spin_ns: spin.ns,
            drain_deadline_ns: timeouts.drain_deadline.ns,
            report: tables.debug.report,
            sources,
            sinks,
        }
    }

    /// The cores to pin shards to, and the default number of shards.
    fn cores(&mut self, machine: Option<&Cores>) -> (Vec<usize>, usize) {
        let auto = machine.map_or((Vec::new(), 1), |cores| (cores.allowed.clone(), cores.shards_default()));
        let list = self.settings.tables.server.cores.as_deref();
        let Some(list) = list.filter(|list| *list != CORES_AUTO) else { return auto };
        let Some(cores) = parse_cores(list) else {
            let text = format!("{list}: must be {CORES_AUTO}, or numbers and ranges, such as 0,2-3");
            self.refuse("server.cores", text);
            return auto;
        };
        let allowed = machine.map_or(&cores, |machine| &machine.allowed);
        if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
            let text = format!(
                "this process may not use core {core}; allowed: {allowed:?} (see CPUAffinity= in the unit, and `taskset`)"
            );
            self.refuse("server.cores", text);
        }
        let shards_default = cores.len();
        (cores, shards_default)
    }

    fn auth(&mut self) -> Option<AuthConfig> {
        let settings = self.settings;
        let tables = settings.auth.as_ref().filter(|tables| tables.is_for_clients())?;
        let is_whole = !settings.broken.iter().any(|name| name == AUTH);
        self.built(AuthConfig::build(tables, is_whole))
    }

    fn operators(&mut self) -> Option<Arc<Operators>> {
        let settings = self.settings;
        let tables = &settings.auth.as_ref()?.operators;
        let is_whole = !settings.broken.iter().any(|name| name == AUTH);
        let admin = settings.listeners.iter().find(|listener| listener.kind == Kind::Admin);
        if admin.is_some_and(|admin| admin.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none())) {
            for at in (0..tables.len()).filter(|at| tables[*at].certificate.is_some()) {
                let text = "the admin listener asks for no certificates: add client_ca to its tls";
                self.refuse(&format!("auth.operator[{at}].certificate"), text.into());
            }
        }
        (!tables.is_empty()).then(|| self.built(Operators::build(tables, is_whole))).flatten().map(Arc::new)
    }

    /// The built value; `None` after reporting what is wrong.
    fn built<T>(&mut self, built: Result<T, Vec<(String, String)>>) -> Option<T> {
        built.map_err(|problems| problems.into_iter().for_each(|(path, text)| self.refuse(&path, text))).ok()
    }

    fn listeners(&mut self, tenants: &Tenants) -> Vec<Listener> {
        let settings = self.settings;
        let allow_anonymous = settings.tables.server.allow_anonymous;
        let mut listeners: Vec<Listener> = Vec::new();
        for (at, table) in settings.listeners.iter().enumerate() {
            let path = |key: &str| format!("listener[{at}].{key}");
            let is_taken = |other: &&Listener| {
                other.address == table.address
                    && table.address.tcp().is_none_or(|address| address.port() != 0)
            };
            if let Some(other) = listeners.iter().find(is_taken) {
                let text = format!("{} is already the address of {}", table.address, other.named);
                self.refuse(&path("address"), text);
            }
            if table.kind == Kind::Admin && listeners.iter().any(|other| other.kind == Kind::Admin) {
                self.refuse(
                    &path("kind"),
                    "there is an admin listener already, and a server has at most one".into(),
                );
            }
            if table.kind == Kind::Admin && table.publish.is_some() {
                let text = "a listener of kind \"admin\" has no such option; remove it";
                self.refuse(&path("publish"), text.into());
            }
            if table.kind == Kind::Admin && table.tenant.is_some() {
                let text = "a listener of kind \"admin\" has no such option; remove it";
                self.refuse(&path("tenant"), text.into());
            }
            let tenant = self.tenant(&path("tenant"), table.tenant.as_deref(), tenants);
            let is_guarded = allow_anonymous || has_guard(table, settings.auth.as_ref());
            if !is_guarded && !table.address.is_local() {
                self.refuse(&path("address"), open_to_all(table.kind, &table.address));
            }
            listeners.push(Listener {
                kind: table.kind,
                address: table.address.clone(),
                client: self.client_address(at, table),
                socket: self.socket_bounds(at, table),
                tls: self.tls(at, table),
                mode: table.mode.unwrap_or(Mode(limits::UNIX_MODE_DEFAULT)).0,
                is_read_only: table.publish == Some(false),
                tenant,
                is_guarded,
                named: settings.name_of_listener(at),
            });
        }
        if listeners.len() > limits::LISTENERS_MAX {
            let text = format!("{} listeners, the limit is {}", listeners.len(), limits::LISTENERS_MAX);
            self.refuse(&format!("listener[{}].kind", limits::LISTENERS_MAX), text);
        }
        let serves_clients = listeners.iter().any(|listener| listener.kind.of_clients().is_some());
        if !serves_clients && !settings.broken.iter().any(|name| name == declared::LISTENER) {
            let text = "no client could connect; add [[listener]] with kind = \"native\" or \"http\"";
            self.refuse("listener[0].kind", text.into());
        }
        listeners
    }

    /// How a trusted proxy gives the address of its client.
    fn client_address(&mut self, at: usize, table: &ListenerTable) -> ClientAddress {
        let path = |key: &str| format!("listener[{at}].{key}");
        let has_header = table.proxy_protocol == Some(true);
        let (key, client) = match (has_header, table.forwarded_for == Some(true)) {
            (false, false) => return ClientAddress::Peer,
            (true, true) => {
                let text = "a proxy gives the client's address either by proxy_protocol or by forwarded_for; remove one";
                self.refuse(&path("forwarded_for"), text.into());
                return ClientAddress::Peer;
            }
            (true, false) => ("proxy_protocol", ClientAddress::ProxyHeader),
            (false, true) => ("forwarded_for", ClientAddress::ForwardedFor),
        };
        let knows = if has_header { table.kind != Kind::Admin } else { table.kind == Kind::Http };
        if !knows {
            let text = format!("a listener of kind {:?} has no such option; remove it", table.kind.name());
            self.refuse(&path(key), text);
        } else if table.address.tcp().is_some()
            && self.settings.tables.server.trusted_proxies == Networks::default()
        {
            let text = "no proxy is trusted; list the proxies' networks in [server] trusted_proxies";
            self.refuse(&path(key), text.into());
        }
        client
    }

    /// The certificates of a TLS listener. Their files are read later, so that options can be checked on any machine.
    fn tls(&mut self, at: usize, table: &ListenerTable) -> Option<TlsTable> {
        let path = |key: &str| format!("listener[{at}].{key}");
        let tls = match (table.transport, &table.tls) {
            (None | Some(Transport::Plain), None) => return None,
            (Some(Transport::Plain), Some(_)) => {
                self.refuse(&path("transport"), "plain, but tls is set; remove one of them".into());
                return None;
            }
            (Some(Transport::Tls), None) => {
                let text = "certificates are missing: add tls = { cert = \"FILE\", key = \"FILE\" }";
                self.refuse(&path("transport"), text.into());
                return None;
            }
            (None | Some(Transport::Tls), Some(tls)) => tls,
        };
        let (certs, keys) = (tls.cert.files().len(), tls.key.files().len());
        if certs != keys || certs == 0 {
            let text = format!("{certs} files in cert and {keys} in key: each certificate needs its key");
            self.refuse(&path("tls"), text);
        }
        if certs > limits::TLS_CERTIFICATES_MAX {
            let text = format!("{certs} certificates, the limit is {}", limits::TLS_CERTIFICATES_MAX);
            self.refuse(&path("tls"), text);
        }
        if tls.client_cert.is_some() && tls.client_ca.is_none() {
            let text = "client_cert needs client_ca, the file of the authorities that are accepted";
            self.refuse(&path("tls"), text.into());
        }
        Some(tls.clone())
    }

    /// Bounds that accepted sockets inherit: the listener's own options, or else those of `[delivery]`.
    fn socket_bounds(&mut self, at: usize, table: &ListenerTable) -> SocketBounds {
        let path = |key: &str| format!("listener[{at}].{key}");
        let is_unix = table.address.tcp().is_none();
        if table.mode.is_some() && !is_unix {
            self.refuse(&path("mode"), "only a Unix socket has a mode; remove it".into());
        }
        let own = [("socket_send_buffer", table.socket_send_buffer), ("notsent_lowat", table.notsent_lowat)];
        for (key, size) in own.into_iter().filter_map(|(key, size)| size.map(|size| (key, size))) {
            match is_unix {
                // A socket accepted from a Unix listener does not inherit SO_SNDBUF (Linux 6.18).
                true => self.refuse(&path(key), "a Unix socket has no such option; remove it".into()),
                false => self.socket_option(&path(key), key, size),
            }
        }
        let delivery = &self.settings.tables.delivery;
        if is_unix || table.kind == Kind::Admin {
            return SocketBounds::default();
        }
        SocketBounds {
            send_bytes: table.socket_send_buffer.or(delivery.socket_send_buffer).map(|size| size.bytes),
            notsent_lowat_bytes: table.notsent_lowat.unwrap_or(delivery.notsent_lowat).bytes as u32,
        }
    }

    fn socket_option(&mut self, path: &str, key: &str, size: Size) {
        let lowest = Size::new(if key == "notsent_lowat" { 0 } else { limits::SOCKET_SEND_BYTES_LOWEST });
        self.within(path, size, lowest, Size::new(i32::MAX as usize));
    }

    fn limits(&mut self) -> Limits {
        let tables = &self.settings.tables;
        let (limits, delivery, timeouts) = (&tables.limits, &tables.delivery, &tables.timeouts);
        let (lowest, highest) =
            (Size::new(limits::FRAME_BYTES_MAX_LOWEST), Size::new(limits::FRAME_BYTES_MAX_HIGHEST));
        self.within("limits.frame_max", limits.frame_max, lowest, highest);
        // Clamped, so that one refused value does not cause errors about others.
        let frame_max = limits.frame_max.clamp(lowest, highest);
        let encoded_max = Size::new(message_bytes_max(frame_max.bytes));
        let log_lowest = Size::new((2 * encoded_max.bytes).max(limits::EGRESS_LOG_BYTES_LOWEST));
        self.within("limits.egress_log", limits.egress_log, log_lowest, Size::new(1 << 30));
        let outbox_lowest = encoded_max.max(Size::new(limits::HISTORY_CHUNK_OUTBOX_BYTES));
        if limits.outbox_max < outbox_lowest || limits.outbox_max > limits.egress_log {
            let text = format!(
                "{}: must be {outbox_lowest} (one frame, --frame-max, or one chunk of history) to {} (--egress-log)",
                limits.outbox_max, limits.egress_log
            );
            self.refuse("limits.outbox_max", text);
        }
        let behind_default = Size::new(limits::BEHIND_BYTES_DEFAULT).min(limits.outbox_max);
        let behind = delivery.behind_size.unwrap_or(behind_default);
        if delivery.behind_size.is_some() && (behind.bytes == 0 || behind > limits.outbox_max) {
            let text = format!("{behind}: must be 1B to {} (--outbox-max)", limits.outbox_max);
            self.refuse("delivery.behind_size", text);
        }
        if let Some(size) = delivery.socket_send_buffer {
            self.socket_option("delivery.socket_send_buffer", "socket_send_buffer", size);
        }
        self.socket_option("delivery.notsent_lowat", "notsent_lowat", delivery.notsent_lowat);
        if delivery.keys_per_topic_max == 0 {
            self.refuse("delivery.keys_per_topic_max", "0: must be at least 1".into());
        }
        // 0 turns message ids off.
        if delivery.message_id_window != Time::default() {
            let (lowest, highest) =
                (limits::MESSAGE_ID_WINDOW_NS_LOWEST, limits::MESSAGE_ID_WINDOW_NS_HIGHEST);
            let (lowest, highest) = (Time { ns: lowest }, Time { ns: highest });
            self.within("delivery.message_id_window", delivery.message_id_window, lowest, highest);
        }
        let ids_lowest = Size::new(limits::MESSAGE_IDS_BYTES_MAX_LOWEST);
        if delivery.message_ids_memory < ids_lowest {
            let text = format!("{}: must be at least {ids_lowest}", delivery.message_ids_memory);
            self.refuse("delivery.message_ids_memory", text);
        }
        let (ping_lowest, ping_highest) =
            (Time::from_ms(limits::PING_MS_LOWEST), Time::from_ms(limits::PING_MS_HIGHEST));
        if timeouts.ping_interval != Time::default() {
            self.within("timeouts.ping_interval", timeouts.ping_interval, ping_lowest, ping_highest);
        }
        self.within("timeouts.ping_timeout", timeouts.ping_timeout, ping_lowest, ping_highest);
        let spread_highest = Time::from_ms(u32::MAX.into());
        self.within("timeouts.reconnect_spread", timeouts.reconnect_spread, Time::default(), spread_highest);
        let policies = self.rules("delivery.policy", delivery::policies(&delivery.policy));
        let histories = delivery::histories(&delivery.history, limits.egress_log.bytes);
        let history = self.rules("delivery.history", histories);
        let topic_idle = self.rules("delivery.topic_idle", delivery::idle_times(&delivery.topic_idle));
        let deflate = self.rules("delivery.deflate", delivery::deflate(&delivery.deflate));
        let defaults = Limits::default();
        let tenant_hosts = self.settings.tenants.iter().flat_map(|tenant| &tenant.hosts);
        let http_access = Access {
            origins: self.parsed("web.allow_origin", &tables.web.allow_origin),
            hosts: self.parsed("web.allow_host", &tables.web.allow_host),
            tenant_hosts: tenant_hosts.filter_map(|host| host.parse().ok()).collect(),
            // Known once the listeners are open.
            is_local: false,
        };
        Limits {
            topic_idle: topic_idle.unwrap_or(defaults.topic_idle),
            frame_bytes_max: frame_max.bytes,
            trusted_proxies: tables.server.trusted_proxies.clone(),
            http_access,
            http_health: tables.web.http_health,
            http_idle_ns: tables.web.http_idle.ns,
            http_head_bytes_max: limits.http_head_max.bytes,
            handshake_deadline_ns: timeouts.handshake_deadline.ns,
            frame_deadline_ns: timeouts.frame_deadline.ns,
            ping_interval_ns: match timeouts.ping_interval.ns {
                0 => u64::MAX,
                interval_ns => interval_ns,
            },
            ping_timeout_ns: timeouts.ping_timeout.ns,
            reconnect_spread_ms: (timeouts.reconnect_spread.ns / 1_000_000) as u32,
            subscriptions_per_session_max: limits.subscriptions_per_session_max,
            topics_max: limits.topics_max,
            creation: CreationLimits {
                per_session: limits.topics_per_session_max,
                per_source: limits.topics_per_source_max,
                per_second: limits.new_topics_rate,
            },
            egress_log_bytes: limits.egress_log.bytes,
            deflate: deflate.unwrap_or(defaults.deflate),
            deflate_bytes_min: delivery.deflate_min.bytes.max(1),
            outbox_bytes_max: limits.outbox_max.bytes,
            behind_bytes: behind.bytes,
            behind_ns: delivery.behind_time.ns,
            stall_deadline_ns: delivery.stall_deadline.ns,
            policies: policies.unwrap_or(defaults.policies),
            history: history.unwrap_or(defaults.history),
            history_bytes_max: delivery.history_memory.bytes,
            keys_per_topic_max: delivery.keys_per_topic_max,
            last_values_bytes_max: delivery.last_values_memory.bytes,
            message_id_window_ns: delivery.message_id_window.ns,
            message_ids_bytes_max: delivery.message_ids_memory.bytes,
            budgets: budgets::rates(limits),
            patterns: budgets::patterns(limits),
            unfinished_bytes_max: limits.unfinished_memory.bytes,
            patterns_bytes_max: limits.patterns_memory.bytes,
            positions_bytes_max: limits.positions_memory.bytes,
            memberships_bytes_max: limits.memberships_memory.bytes,
            identity_replaces: tables.server.identity_conflict == IdentityConflict::Replace,
            auth: None,
            debug_echo: tables.debug.debug_echo,
            nodes: self.nodes(),
            tenants: Arc::default(),
            routes: Arc::default(),
            is_fed_by_logs: false,
            feeds: Arc::default(),
            log_readers: Vec::new(),
            on_demand: Vec::new(),
        }
    }

    /// The values of a repeatable option.
    fn parsed<T: FromStr<Err = String>>(&mut self, path: &str, values: &[String]) -> Vec<T> {
        let parsed = values.iter().map(|value| value.parse());
        parsed.filter_map(|value| value.map_err(|text| self.refuse(path, text)).ok()).collect()
    }

    fn rules<T>(&mut self, path: &str, rules: Result<T, Vec<String>>) -> Option<T> {
        match rules {
            Ok(rules) => Some(rules),
            Err(texts) => {
                texts.into_iter().for_each(|text| self.refuse(path, text));
                None
            }
        }
    }
}

/// Whether the configuration defines who may use a listener.
fn has_guard(table: &ListenerTable, auth: Option<&AuthTables>) -> bool {
    match table.kind {
        Kind::Admin => {
            auth.is_some_and(|auth| !auth.operators.is_empty())
                || table.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
        }
        Kind::Native | Kind::Http => auth.is_some_and(AuthTables::is_for_clients),
    }
}

/// Bytes of the longest mesh frame: a PUBLISH with the longest topic name and payload and a message id, or a chunk of history with one
/// tick of that length.
fn mesh_frame_bytes_max(frame_bytes_max: usize) -> usize {
    let publish =
        frame_bytes_max + Publish::STRIDE + PREFIX_BYTES + limits::TOPIC_BYTES_MAX + MESSAGE_ID_BYTES;
    let chunk = frame::encoded_len(History::STRIDE, frame_bytes_max.max(limits::HISTORY_CHUNK_BYTES));
    publish.max(chunk).next_multiple_of(limits::FRAME_ALIGN)
}

/// Parses a list of cores such as `0,2-3`, without duplicates; `None` if the text is not such a list.
fn parse_cores(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > limits::CORE_HIGHEST {
            return None;
        }
        cores.extend((first..=last).filter(|core| !cores.contains(core)).collect::<Vec<_>>());
    }
    Some(cores)
}

#[cfg(test)]
mod tests;
