//! The core's configuration.

use std::sync::Arc;

use crate::{
    budgets::{BudgetLimits, PatternLimits},
    demand::DemandConfig,
    home::{CreationLimits, history::HistoryBounds},
    ids::TenantId,
    limits,
    listed::Listed,
    log_reads::LogReaderConfig,
    networks::Networks,
    principal::Principal,
    routes::Routes,
    tenants::Tenants,
};
use tickcast_proto::{
    http::access::Access,
    subscription::{Policy, Rules},
};

/// The configured bounds and policies of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum length of a frame or message from a peer, in bytes.
    pub frame_bytes_max: usize,
    /// Maximum length of an HTTP request head, in bytes.
    pub http_head_bytes_max: usize,
    /// Networks of the proxies that may report their clients' addresses.
    pub trusted_proxies: Networks,
    /// Web pages and host names that may use the HTTP listeners.
    pub http_access: Access,
    /// Whether `/healthz` is served on the HTTP listeners.
    pub http_health: bool,
    /// Time that an HTTP connection may be idle between two requests, nanoseconds; 0: one request per connection.
    pub http_idle_ns: u64,
    /// Time from accept to the end of the handshake, and from an HTTP request's first byte to its last, nanoseconds.
    pub handshake_deadline_ns: u64,
    /// Time from a frame's first byte to its last, nanoseconds.
    pub frame_deadline_ns: u64,
    /// Idle time after which a peer is pinged, nanoseconds; `u64::MAX` disables pings.
    pub ping_interval_ns: u64,
    /// Time from a ping until a silent peer is closed, nanoseconds.
    pub ping_timeout_ns: u64,
    /// Window over which clients' reconnects are spread when the server stops, milliseconds.
    pub reconnect_spread_ms: u32,
    /// Maximum patterns per session.
    pub subscriptions_per_session_max: usize,
    /// Time without a tick after which a topic is forgotten unless a client names it exactly, by topic, nanoseconds; 0: never.
    pub topic_idle: Rules<u64>,
    /// Maximum topics on the whole server.
    pub topics_max: usize,
    /// Limits on the topics that clients may create.
    pub creation: CreationLimits,
    /// Size of one egress log in bytes. Each shard has one per wire format in use.
    pub egress_log_bytes: usize,
    /// Whether ticks may be compressed for WebSockets that accept it, by topic. If none may be, the server selects no extension.
    pub deflate: Rules<bool>,
    /// Smallest message that is compressed, in bytes.
    pub deflate_bytes_min: usize,
    /// Bytes that may wait for a session before it is closed as a slow consumer.
    pub outbox_bytes_max: usize,
    /// Bytes that may wait for a session before frames are evicted from its outbox.
    pub behind_bytes: usize,
    /// Time a socket may take for one SEND before frames are evicted, nanoseconds.
    pub behind_ns: u64,
    /// Time a socket may take for one SEND before a session whose policy is `disconnect` is closed, nanoseconds.
    pub stall_deadline_ns: u64,
    /// Default policy for slow subscribers, by topic.
    pub policies: Rules<Policy>,
    /// Bounds of the history, by topic.
    pub history: Rules<HistoryBounds>,
    /// Maximum bytes of all histories on the whole server.
    pub history_bytes_max: usize,
    /// Maximum keys per topic whose last value is kept.
    pub keys_per_topic_max: usize,
    /// Maximum bytes of last values on the whole server: at their homes, and the same again for copies on other shards with
    /// subscribers.
    pub last_values_bytes_max: usize,
    /// Time for which homes remember the message ids of publishes, nanoseconds; 0: the server grants no feature `message_ids`.
    pub message_id_window_ns: u64,
    /// Maximum bytes of message ids on the whole server, divided among the shards.
    pub message_ids_bytes_max: usize,
    /// What sessions and sources may request per second.
    pub budgets: BudgetLimits,
    /// Limits on the patterns that sessions hold.
    pub patterns: PatternLimits,
    /// Maximum bytes of unfinished frames and messages of all clients on the whole server.
    pub unfinished_bytes_max: usize,
    /// Maximum bytes of the patterns of all sessions of the server, divided among the shards.
    pub patterns_bytes_max: usize,
    /// Maximum bytes of the positions given by all sessions of the server, divided among the shards.
    pub positions_bytes_max: usize,
    /// Maximum bytes of the memberships that wildcards need, of all sessions of the server, divided among the shards.
    pub memberships_bytes_max: usize,
    /// Whether a second connection with the same identity replaces the first.
    pub identity_replaces: bool,
    /// Authentication of clients; `None`: clients need none and may do everything.
    pub auth: Option<AuthLimits>,
    /// Whether `/echo` is served.
    pub debug_echo: bool,
    /// Namespaces of topics.
    pub tenants: Arc<Tenants>,
    /// This server, and the others that serve the same topics.
    pub nodes: Nodes,
    /// Topics whose publishes are sent to other engines.
    pub routes: Arc<Routes>,
    /// Whether a source gives topics the positions of its log. If so, a subscription may wait for a position that this node has
    /// yet to read.
    pub is_fed_by_logs: bool,
    /// The feeds that mark their topics as stale, in the order of their [`FeedId`](crate::ids::FeedId)s.
    pub feeds: Arc<[Feed]>,
    /// The readers of the logs that feed topics: where a session's place is older than the history, the log is read.
    pub log_readers: Vec<LogReaderConfig>,
    /// The sources that subscribe at their engines to what clients ask for.
    pub on_demand: Vec<DemandConfig>,
}

/// A source, or a failover group of sources, that marks its topics as stale when it falls silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The name of the source or group, as clients see it.
    pub name: Box<str>,
    /// The tenant of its topics.
    pub tenant: TenantId,
}

/// This server and the others that serve the same topics, as NODES describes them to clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Id of this node: at most [`limits::NODE_BYTES_MAX`] bytes.
    pub id: Box<str>,
    /// Addresses that clients may connect to: at most [`limits::NODES_MAX`], each of at most [`limits::NODE_BYTES_MAX`] bytes and
    /// without spaces.
    pub addresses: Vec<Box<str>>,
}

impl Nodes {
    /// Whether this server is the only node. It then grants no feature `nodes`.
    pub fn is_alone(&self) -> bool {
        self.id.is_empty() && self.addresses.is_empty()
    }
}

/// The core's part of authentication. The verifiers have the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthLimits {
    /// What clients without credentials may do; `None`: they are refused.
    pub anonymous: Option<Arc<Principal>>,
    /// The principals of the configuration file. A reload that changes them reaches open sessions.
    pub listed: Arc<Listed>,
    /// Whether `?token=` is accepted in the target of `/ws`. Proxies and others may log targets.
    pub query_token: bool,
    /// Whether to accept a subscription to a pattern that is only partly allowed, limited to the allowed topics. If not, it is
    /// refused.
    pub filters_patterns: bool,
    /// Time before a token's expiry at which its client is warned, nanoseconds.
    pub warning_ns: u64,
    /// Time that a session stays open after its token has expired, nanoseconds.
    pub grace_ns: u64,
    /// Maximum credentials of one shard that await their verdicts.
    pub waiting_max: usize,
}

impl Default for AuthLimits {
    fn default() -> Self {
        AuthLimits {
            anonymous: None,
            listed: Arc::default(),
            query_token: false,
            filters_patterns: false,
            warning_ns: limits::TOKEN_WARNING_MS_DEFAULT * 1_000_000,
            grace_ns: limits::TOKEN_GRACE_MS_DEFAULT * 1_000_000,
            waiting_max: limits::CREDENTIALS_WAITING_MAX_DEFAULT,
        }
    }
}

impl Limits {
    /// Maximum length of a WebSocket message, in bytes: JSON carries the longest payload as base64, 4 bytes for 3.
    pub fn message_bytes_max(&self) -> usize {
        message_bytes_max(self.frame_bytes_max)
    }

    /// Whether WebSockets may have compressed messages.
    pub fn deflates(&self) -> bool {
        self.deflate.default || self.deflate.rules.iter().any(|(_, deflates)| *deflates)
    }

    /// Maximum memberships of one shard's sessions beyond one for each subscription.
    pub fn memberships_max(&self, shards: u16) -> usize {
        self.memberships_bytes_max / limits::MEMBERSHIP_BYTES / usize::from(shards)
    }

    /// Time from the first byte of a message to its last, nanoseconds; shorter for an HTTP request or a HELLO.
    pub fn input_deadline_ns(&self, is_handshake: bool) -> u64 {
        if is_handshake { self.handshake_deadline_ns } else { self.frame_deadline_ns }
    }
}

/// Maximum length of a WebSocket message for a given `frame_bytes_max`: see [`Limits::message_bytes_max`].
pub fn message_bytes_max(frame_bytes_max: usize) -> usize {
    frame_bytes_max / 3 * 4 + limits::JSON_ENVELOPE_BYTES
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_bytes_max: limits::FRAME_BYTES_MAX_DEFAULT,
            http_head_bytes_max: limits::HTTP_HEAD_BYTES_MAX_DEFAULT,
            trusted_proxies: Networks::default(),
            http_access: Access::default(),
            http_health: false,
            http_idle_ns: limits::HTTP_IDLE_MS_DEFAULT * 1_000_000,
            handshake_deadline_ns: limits::HANDSHAKE_DEADLINE_MS_DEFAULT * 1_000_000,
            frame_deadline_ns: limits::FRAME_DEADLINE_MS_DEFAULT * 1_000_000,
            ping_interval_ns: limits::PING_INTERVAL_MS_DEFAULT * 1_000_000,
            ping_timeout_ns: limits::PING_TIMEOUT_MS_DEFAULT * 1_000_000,
            reconnect_spread_ms: limits::RECONNECT_SPREAD_MS_DEFAULT,
            subscriptions_per_session_max: limits::SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT,
            topic_idle: Rules::all(limits::TOPIC_IDLE_NS_DEFAULT),
            topics_max: limits::TOPICS_MAX_DEFAULT,
            creation: CreationLimits {
                per_session: limits::TOPICS_PER_SESSION_MAX_DEFAULT,
                per_source: limits::TOPICS_PER_SOURCE_MAX_DEFAULT,
                per_second: limits::NEW_TOPICS_RATE_DEFAULT,
            },
            egress_log_bytes: limits::EGRESS_LOG_BYTES_DEFAULT,
            deflate: Rules::all(false),
            deflate_bytes_min: limits::DEFLATE_BYTES_MIN_DEFAULT,
            outbox_bytes_max: limits::OUTBOX_BYTES_MAX_DEFAULT,
            behind_bytes: limits::BEHIND_BYTES_DEFAULT,
            behind_ns: limits::BEHIND_MS_DEFAULT * 1_000_000,
            stall_deadline_ns: limits::STALL_DEADLINE_MS_DEFAULT * 1_000_000,
            policies: Rules::all(Policy::default()),
            history: Rules::all(HistoryBounds::default()),
            history_bytes_max: limits::HISTORY_BYTES_MAX_DEFAULT,
            keys_per_topic_max: limits::KEYS_PER_TOPIC_MAX_DEFAULT,
            last_values_bytes_max: limits::LAST_VALUES_BYTES_MAX_DEFAULT,
            message_id_window_ns: limits::MESSAGE_ID_WINDOW_NS_DEFAULT,
            message_ids_bytes_max: limits::MESSAGE_IDS_BYTES_MAX_DEFAULT,
            budgets: BudgetLimits::default(),
            patterns: PatternLimits::default(),
            unfinished_bytes_max: limits::UNFINISHED_BYTES_MAX_DEFAULT,
            patterns_bytes_max: limits::PATTERNS_BYTES_MAX_DEFAULT,
            positions_bytes_max: limits::POSITIONS_BYTES_MAX_DEFAULT,
            memberships_bytes_max: limits::MEMBERSHIPS_BYTES_MAX_DEFAULT,
            identity_replaces: false,
            auth: None,
            debug_echo: false,
            tenants: Arc::default(),
            nodes: Nodes::default(),
            routes: Arc::default(),
            is_fed_by_logs: false,
            feeds: Arc::default(),
            log_readers: Vec::new(),
            on_demand: Vec::new(),
        }
    }
}

impl Limits {
    /// These limits with the reloadable ones from `other`, clamped to fit those that need a restart.
    pub fn with_reloadable_from(&self, other: &Limits) -> Limits {
        let outbox_bytes_max = other.outbox_bytes_max.clamp(self.message_bytes_max(), self.egress_log_bytes);
        let mut history = other.history.clone();
        let bounds = history.rules.iter_mut().map(|(_, bounds)| bounds).chain([&mut history.default]);
        bounds.for_each(|bounds| bounds.bytes = bounds.bytes.min(self.egress_log_bytes));
        Limits {
            policies: other.policies.clone(),
            topic_idle: other.topic_idle.clone(),
            creation: other.creation,
            behind_bytes: other.behind_bytes.min(outbox_bytes_max),
            behind_ns: other.behind_ns,
            stall_deadline_ns: other.stall_deadline_ns,
            outbox_bytes_max,
            keys_per_topic_max: other.keys_per_topic_max,
            history,
            history_bytes_max: other.history_bytes_max,
            http_head_bytes_max: other.http_head_bytes_max,
            // The listeners do not change.
            http_access: Access { is_local: self.http_access.is_local, ..other.http_access.clone() },
            http_health: other.http_health,
            http_idle_ns: other.http_idle_ns,
            handshake_deadline_ns: other.handshake_deadline_ns,
            frame_deadline_ns: other.frame_deadline_ns,
            ping_interval_ns: other.ping_interval_ns,
            ping_timeout_ns: other.ping_timeout_ns,
            subscriptions_per_session_max: other.subscriptions_per_session_max,
            budgets: other.budgets,
            patterns: other.patterns,
            unfinished_bytes_max: other.unfinished_bytes_max,
            patterns_bytes_max: other.patterns_bytes_max,
            positions_bytes_max: other.positions_bytes_max,
            memberships_bytes_max: other.memberships_bytes_max,
            tenants: self.reloaded_tenants(other),
            nodes: Nodes { id: self.nodes.id.clone(), addresses: other.nodes.addresses.clone() },
            // Without it, existing sessions have no principal.
            auth: match (&self.auth, &other.auth) {
                (Some(_), Some(auth)) => Some(auth.clone()),
                (auth, _) => auth.clone(),
            },
            ..self.clone()
        }
    }

    /// The tenants of `other`, with the ids and exports of these. If there were no tenants, adding the first needs a restart: the
    /// claims of existing sessions have not been checked.
    fn reloaded_tenants(&self, other: &Limits) -> Arc<Tenants> {
        let now = &self.tenants;
        match now.is_configured().then(|| now.reloaded(&other.tenants)) {
            Some(Ok(tenants)) if tenants != **now => Arc::new(tenants),
            _ => now.clone(),
        }
    }

    /// Log lines about limits in `new` that take full effect only after a restart.
    pub fn changes_needing_restart(&self, new: &Limits) -> Vec<String> {
        let mut lines = Vec::new();
        let mut report = |key: &str, current: usize, wanted: usize| {
            if current != wanted {
                lines.push(format!(
                    "{key}: {current} until a restart, because frame and log sizes are fixed at startup"
                ));
            }
        };
        report("limits.outbox_max", self.outbox_bytes_max, new.outbox_bytes_max);
        report("delivery.behind_size", self.behind_bytes, new.behind_bytes);
        let bytes = |limits: &Limits| -> Vec<usize> {
            let rules = limits.history.rules.iter().map(|(_, bounds)| bounds);
            rules.chain([&limits.history.default]).map(|bounds| bounds.bytes).collect()
        };
        for (current, wanted) in bytes(self).into_iter().zip(bytes(new)) {
            report("delivery.history", current, wanted);
        }
        if self.auth.is_some() != new.auth.is_some() {
            let current = if self.auth.is_some() { "on" } else { "off" };
            lines.push(format!(
                "auth: {current} until a restart, because open sessions would have no principal"
            ));
        }
        match (self.tenants.is_configured(), self.tenants.reloaded(&new.tenants)) {
            (false, _) if new.tenants.is_configured() => lines.push(
                "tenant: none until a restart, because nobody has checked what open sessions claim".into(),
            ),
            (true, Err(error)) => {
                lines.push(format!("tenant: all stay as they are until a restart: {error}"))
            }
            _ => {}
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        budgets::Rates,
        ids::TenantId,
        tenants::{Exports, TenantConfig},
    };

    #[test]
    fn only_reloadable_limits_change() {
        let now = Limits::default();
        let rates = Rates { ticks: 9, ..Rates::default() };
        let other = Limits {
            behind_ns: 7,
            frame_bytes_max: 1 << 20,
            budgets: BudgetLimits { session: rates, source: rates },
            patterns: PatternLimits { wildcards_max: 1, session_bytes_max: 2, source_bytes_max: 3 },
            topics_max: 1,
            ..Limits::default()
        };
        let live = now.with_reloadable_from(&other);
        assert_eq!((live.behind_ns, live.budgets, live.patterns), (7, other.budgets, other.patterns));
        assert_eq!((live.frame_bytes_max, live.topics_max), (now.frame_bytes_max, now.topics_max));
    }

    #[test]
    fn authentication_changes_while_the_server_runs_but_is_not_switched_on_or_off() {
        let off = Limits::default();
        let on = |grace_ns| Limits {
            auth: Some(AuthLimits { grace_ns, ..AuthLimits::default() }),
            ..Limits::default()
        };
        assert_eq!(on(1).with_reloadable_from(&on(2)).auth, on(2).auth);
        for (now, new) in [(&off, &on(1)), (&on(1), &off)] {
            let live = now.with_reloadable_from(new);
            assert_eq!(live.auth, now.auth);
            assert!(live.changes_needing_restart(new)[0].starts_with("auth: "));
        }
    }

    #[test]
    fn tenants_change_while_the_server_runs_but_the_first_needs_a_restart() {
        let with = |names: &[&str]| {
            let config = |name: &&str| TenantConfig { name: (*name).into(), ..TenantConfig::default() };
            let tenants = Tenants::new(names.iter().map(config).collect(), Exports::default(), 1).unwrap();
            Limits { tenants: tenants.into(), ..Limits::default() }
        };
        let (none, one, two) = (Limits::default(), with(&["a"]), with(&["b", "a"]));
        let live = one.with_reloadable_from(&two);
        assert_eq!(
            (live.tenants.by_name("a"), live.tenants.by_name("b")),
            (Some(TenantId(1)), Some(TenantId(2)))
        );
        assert!(live.changes_needing_restart(&two).is_empty());
        assert!(Arc::ptr_eq(&one.with_reloadable_from(&one.clone()).tenants, &one.tenants));
        let live = none.with_reloadable_from(&one);
        assert!(!live.tenants.is_configured());
        assert!(live.changes_needing_restart(&one)[0].starts_with("tenant: none until a restart"));
        assert!(one.with_reloadable_from(&none).tenants.by_name("a").is_none(), "it is removed");
    }

    #[test]
    fn limits_that_need_a_restart_are_reported() {
        let now = Limits::default();
        let other = Limits {
            egress_log_bytes: 4 * now.egress_log_bytes,
            outbox_bytes_max: 2 * now.egress_log_bytes,
            behind_ns: 7,
            ..Limits::default()
        };
        let live = now.with_reloadable_from(&other);
        assert_eq!(live.outbox_bytes_max, now.egress_log_bytes);
        let lines = live.changes_needing_restart(&other);
        assert!(lines.len() == 1 && lines[0].starts_with("limits.outbox_max: 16777216 until"), "{lines:?}");
        assert!(now.changes_needing_restart(&now).is_empty());
    }
}
