//! Declares the options of `tickcast serve`, except those of sources, which [`crate::sources`] declares by kind.
//!
//! Each field is an option. Its attributes give the flag, old spellings (`alias`), environment variable, default and help;
//! its name is the key in the file. The group of its struct is the table in the file, such as `[limits]`.
//! [`crate::config`] interprets the values.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::values::{Budget, Size, Time};
use crate::{config::listener::Address, limits, logging, sources::kind::SourceFlags};
use tickcast_core::networks::Networks;

/// Keys of the options that a reload changes without a restart.
pub const LIVE: [&str; 41] = [
    "log",
    "policy",
    "behind_size",
    "behind_time",
    "stall_deadline",
    "outbox_max",
    "keys_per_topic_max",
    "history",
    "history_memory",
    "topic_idle",
    "http_head_max",
    "handshake_deadline",
    "frame_deadline",
    "ping_interval",
    "ping_timeout",
    "subscriptions_per_session_max",
    "publish_rate",
    "publish_rate_per_source",
    "publish_bandwidth",
    "publish_bandwidth_per_source",
    "subscribe_rate",
    "subscribe_rate_per_source",
    "history_rate",
    "history_rate_per_source",
    "last_values_rate",
    "last_values_rate_per_source",
    "pattern_wildcards_max",
    "patterns_per_session_size",
    "patterns_per_source_memory",
    "topics_per_session_max",
    "topics_per_source_max",
    "new_topics_rate",
    "unfinished_memory",
    "patterns_memory",
    "positions_memory",
    "memberships_memory",
    "allow_origin",
    "allow_host",
    "http_health",
    "http_idle",
    "node_address",
];

/// Options of `tickcast serve`.
#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(after_help = "\
Times take a unit: 250ms, 5s, 100us. So do sizes: 64KiB, 8MiB; a bare number is bytes.
In a file, each heading is a table and each option a key in it, with _ for -. --print-config prints such a file.
Precedence: command line, environment, file, defaults.")]
pub struct ServeArgs {
    /// Read options from a TOML file
    #[arg(long, env = "TICKCAST_CONFIG", value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Check options and configuration file, report every error, and exit
    #[arg(long, help_heading = "Configuration")]
    pub check_config: bool,
    /// Print the effective configuration as a file, with the origin of each value, and exit
    #[arg(long, conflicts_with = "check_config", help_heading = "Configuration")]
    pub print_config: bool,

    /// Addresses of the first listener of each kind.
    #[command(flatten)]
    pub listeners: ListenerFlags,
    /// Options in tables of the file.
    #[command(flatten)]
    pub tables: Tables,
    /// Options of the first source of each kind.
    #[command(flatten)]
    pub sources: SourceFlags,
}

/// The options in tables of the file, one field per table.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[group(skip)]
pub struct Tables {
    /// `[server]`.
    #[command(flatten)]
    pub server: ServerOptions,
    /// `[limits]`.
    #[command(flatten)]
    pub limits: LimitOptions,
    /// `[delivery]`.
    #[command(flatten)]
    pub delivery: DeliveryOptions,
    /// `[timeouts]`.
    #[command(flatten)]
    pub timeouts: TimeoutOptions,
    /// `[web]`.
    #[command(flatten)]
    pub web: WebOptions,
    /// `[debug]`.
    #[command(flatten)]
    pub debug: DebugOptions,
}

/// Addresses of the first listener of each kind. A file has `[[listener]]` instead.
#[derive(Args, Clone, Debug)]
#[group(id = "listener")]
#[command(next_help_heading = "Listeners")]
pub struct ListenerFlags {
    /// Address for native clients: IP:PORT, localhost:PORT or unix:/path; port 0 is any free port
    #[arg(long, env = "TICKCAST_TCP", value_name = "ADDRESS", default_value = "127.0.0.1:9400")]
    pub tcp: Address,
    /// Address for HTTP and WebSocket clients
    #[arg(long, env = "TICKCAST_HTTP", value_name = "ADDRESS", default_value = "127.0.0.1:9480")]
    pub http: Address,
    /// Address for operators (metrics, health, sessions); open to everyone on loopback without [[auth.operator]]
    #[arg(long, env = "TICKCAST_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:9490")]
    pub admin: Address,
    /// Do not open the admin listener
    #[arg(long)]
    pub no_admin: bool,
}

/// `[server]`: cores, pace, identity and access.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[group(id = "server")]
#[command(next_help_heading = "Server")]
pub struct ServerOptions {
    /// Cores to pin shards to, such as 0,2-3; auto: all cores of the process [env: TICKCAST_CORES] [default: auto]
    #[arg(long, env = "TICKCAST_CORES", hide_env = true, value_name = "LIST")]
    pub cores: Option<String>,
    /// Number of shards [default: one per core; with --cores auto at most one per core of the CPU quota]
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// Hold ticks this long under load to send more of them in one SEND; twice if they cross shards; 0: never;
    /// auto or auto:MAX: as long as needed to keep the shard less than 45% busy, at most MAX (1ms)
    #[arg(long, alias = "latency-budget-us", value_name = "TIME", default_value_t = Budget::default())]
    pub latency_budget: Budget,
    /// Busy-poll this long before sleeping: uses a whole core, saves about 20us of latency; 0: never
    #[arg(long, alias = "spin-us", value_name = "TIME", default_value_t = Time::default())]
    pub spin: Time,
    /// If a client (client=ID) connects twice: allow (serve both) or replace (close the first)
    #[arg(long, value_enum, value_name = "ACTION", hide_possible_values = true, default_value_t = IdentityConflict::Allow)]
    pub identity_conflict: IdentityConflict,
    /// Serve other machines without authentication: anyone may use every topic and the admin listener
    #[arg(long)]
    pub allow_anonymous: bool,
    /// Name of this server among several that serve the same topics; shown to clients, in the log and in metrics [env: TICKCAST_NODE]
    #[arg(long, env = "TICKCAST_NODE", hide_env = true, value_name = "NAME")]
    pub node: Option<String>,
    /// Addresses of all these servers, as clients connect to them; a client that loses this one tries the others;
    /// repeatable, such as b:9400 or wss://b.example/ws
    #[arg(long, value_name = "ADDRESS")]
    pub node_address: Vec<String>,
    /// Networks of proxies that may name the client: for listeners with proxy_protocol or forwarded_for
    #[arg(long, value_name = "NETWORK,...", default_value = "none")]
    #[serde(with = "super::values::text")]
    pub trusted_proxies: Networks,
    /// Log level: error, warn, info, debug, trace or off; also by part: info,tickcast::peer=warn
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info", value_parser = logging::checked)]
    #[serde(deserialize_with = "log_filter")]
    pub log: String,
}

/// `[limits]`: resources of one client and of the server.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[group(id = "limits")]
#[command(next_help_heading = "Limits")]
pub struct LimitOptions {
    /// Maximum connections at a time [env: TICKCAST_MAX_CLIENTS] [default: 65536, or what the descriptor limit allows]
    #[arg(long, env = "TICKCAST_MAX_CLIENTS", hide_env = true, value_name = "N")]
    pub max_clients: Option<usize>,
    /// Maximum connections from one IPv4 address or IPv6 /64 network; 0: no limit; the page needs up to 20
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_clients_per_source: u32,
    /// Networks that limits per source do not apply to: put proxies here; none: they apply to all
    #[arg(long, value_name = "NETWORK,...", default_value = Networks::LOOPBACK)]
    #[serde(with = "super::values::text")]
    pub unlimited_sources: Networks,
    /// Maximum new connections per second, divided among the shards; 0: no limit; the page needs up to 20
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub accept_rate: u32,
    /// Refuse new connections to a shard while it is overloaded
    #[arg(long)]
    pub overload_refuse: bool,
    /// Answer GET /readyz with 503 while a shard is overloaded
    #[arg(long)]
    pub overload_unready: bool,
    /// Maximum ticks per second that one session may publish; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub publish_rate: u32,
    /// Ticks per second that the sessions of one IPv4 address or IPv6 /64 network may publish on each shard; 0: no limit;
    /// does not apply to --unlimited-sources
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub publish_rate_per_source: u32,
    /// Bytes per second (topics and payloads) that one session may publish; 0: no limit
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(0))]
    pub publish_bandwidth: Size,
    /// Bytes per second that the sessions of one address may publish on each shard; 0: no limit
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(0))]
    pub publish_bandwidth_per_source: Size,
    /// Patterns per second that one session may subscribe to or change, after a burst of four times
    /// --subscriptions-per-session-max; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::SUBSCRIBE_RATE_DEFAULT)]
    pub subscribe_rate: u32,
    /// The same for the sessions of one address on each shard, after a burst of ten seconds; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::SUBSCRIBE_RATE_PER_SOURCE_DEFAULT)]
    pub subscribe_rate_per_source: u32,
    /// Patterns per second that one session may ask for the history of, after the burst of --subscribe-rate; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::HISTORY_RATE_DEFAULT)]
    pub history_rate: u32,
    /// The same for the sessions of one address on each shard, after a burst of ten seconds; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::HISTORY_RATE_PER_SOURCE_DEFAULT)]
    pub history_rate_per_source: u32,
    /// Patterns per second that one session may ask for the last values of, after the burst of --subscribe-rate; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::HISTORY_RATE_DEFAULT)]
    pub last_values_rate: u32,
    /// The same for the sessions of one address on each shard, after a burst of ten seconds; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::HISTORY_RATE_PER_SOURCE_DEFAULT)]
    pub last_values_rate_per_source: u32,
    /// Subscriptions of one session
    #[arg(long, value_name = "N", default_value_t = limits::SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT)]
    pub subscriptions_per_session_max: usize,
    /// Tokens * in one pattern
    #[arg(long, value_name = "N", default_value_t = limits::PATTERN_WILDCARDS_MAX_DEFAULT)]
    pub pattern_wildcards_max: usize,
    /// Text of the patterns of one session [default: 128 bytes for each of --subscriptions-per-session-max]
    #[arg(long, value_name = "SIZE")]
    pub patterns_per_session_size: Option<Size>,
    /// Memory for the patterns that the sessions of one address have brought; 0: no limit [default: half of --patterns-memory]
    #[arg(long, value_name = "SIZE")]
    pub patterns_per_source_memory: Option<Size>,
    /// Topics of the server
    #[arg(long, value_name = "N", default_value_t = limits::TOPICS_MAX_DEFAULT)]
    pub topics_max: usize,
    /// Maximum existing topics that one session created; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::TOPICS_PER_SESSION_MAX_DEFAULT)]
    pub topics_per_session_max: u32,
    /// Maximum existing topics that one IPv4 address or IPv6 /64 network created; 0: no limit; does not apply to
    /// --unlimited-sources
    #[arg(long, value_name = "N", default_value_t = limits::TOPICS_PER_SOURCE_MAX_DEFAULT)]
    pub topics_per_source_max: u32,
    /// Maximum new topics per second of one session or address, after a burst of --topics-per-session-max or
    /// --topics-per-source-max; 0: no limit
    #[arg(long, value_name = "N", default_value_t = limits::NEW_TOPICS_RATE_DEFAULT)]
    pub new_topics_rate: u32,
    /// Largest frame or message from a client
    #[arg(long, alias = "frame-bytes-max", value_name = "SIZE", default_value_t = Size::new(limits::FRAME_BYTES_MAX_DEFAULT))]
    pub frame_max: Size,
    /// Memory for unfinished frames and messages, all clients together
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(limits::UNFINISHED_BYTES_MAX_DEFAULT))]
    pub unfinished_memory: Size,
    /// Memory for the patterns that clients subscribe to, all clients together
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(limits::PATTERNS_BYTES_MAX_DEFAULT))]
    pub patterns_memory: Size,
    /// Memory for positions from which clients are about to resume, all clients together
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(limits::POSITIONS_BYTES_MAX_DEFAULT))]
    pub positions_memory: Size,
    /// Memory for the state that wildcards need for each topic, all clients together: rate limits, history, clients behind
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(limits::MEMBERSHIPS_BYTES_MAX_DEFAULT))]
    pub memberships_memory: Size,
    /// Largest HTTP request head
    #[arg(long, alias = "http-head-bytes-max", value_name = "SIZE", default_value_t = Size::new(limits::HTTP_HEAD_BYTES_MAX_DEFAULT))]
    pub http_head_max: Size,
    /// Backlog at which a slow session is closed, unless its policies conflate or drop
    #[arg(long, alias = "outbox-bytes-max", value_name = "SIZE", default_value_t = Size::new(limits::OUTBOX_BYTES_MAX_DEFAULT))]
    pub outbox_max: Size,
    /// Size of each egress log (frames for lagging sessions); one per shard and encoding in use
    #[arg(long, alias = "egress-log-bytes", value_name = "SIZE", default_value_t = Size::new(limits::EGRESS_LOG_BYTES_DEFAULT))]
    pub egress_log: Size,
    /// Size of each ring between two shards; a pair has four
    #[arg(long, alias = "mesh-ring-bytes", value_name = "SIZE", default_value_t = Size::new(limits::MESH_RING_BYTES_DEFAULT))]
    pub mesh_ring: Size,
}

/// `[delivery]`: slow consumers and history.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[group(id = "delivery")]
#[command(next_help_heading = "Delivery")]
pub struct DeliveryOptions {
    /// Policy for sessions that fall behind: conflate, drop, keep or disconnect; by topic: market.>=conflate; repeatable [default: keep]
    #[arg(long, value_name = "[PATTERN=]POLICY")]
    pub policy: Vec<String>,
    /// Backlog at which ticks are conflated or dropped [default: 256KiB, or --outbox-max if smaller]
    #[arg(long, alias = "behind-bytes", value_name = "SIZE")]
    pub behind_size: Option<Size>,
    /// Time that a socket may block a SEND before ticks are conflated or dropped
    #[arg(long, alias = "behind-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::BEHIND_MS_DEFAULT))]
    pub behind_time: Time,
    /// Time that a socket may block a SEND before its session is closed, unless its policies conflate or drop
    #[arg(long, alias = "stall-deadline-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::STALL_DEADLINE_MS_DEFAULT))]
    pub stall_deadline: Time,
    /// Maximum keys per topic whose last value is kept; the most recently updated are kept
    #[arg(long, value_name = "N", default_value_t = limits::KEYS_PER_TOPIC_MAX_DEFAULT)]
    pub keys_per_topic_max: usize,
    /// Memory for last values, all topics together; the same again for copies at subscribing shards
    #[arg(long, aliases = ["keys-memory", "keys-bytes-max"], value_name = "SIZE", default_value_t = Size::new(limits::LAST_VALUES_BYTES_MAX_DEFAULT))]
    pub last_values_memory: Size,
    /// Recent ticks to keep per topic for clients that reconnect; by topic: market.>=10000:4MiB:0; repeatable [default: 256:64KiB:1m]
    #[arg(long, value_name = "[PATTERN=]TICKS[:SIZE[:TIME]]")]
    pub history: Vec<String>,
    /// Memory for recent ticks, all topics together
    #[arg(long, alias = "history-bytes-max", value_name = "SIZE", default_value_t = Size::new(limits::HISTORY_BYTES_MAX_DEFAULT))]
    pub history_memory: Size,
    /// Forget a topic after this time without a tick, unless a client names it exactly; 0: never; by topic: odds.>=10m; repeatable [default: 1h]
    #[arg(long, value_name = "[PATTERN=]TIME")]
    pub topic_idle: Vec<String>,
    /// Remember the message ids of publishes for this time, and drop ticks published again with the same id; at least 90s, or 0: refuse message ids
    #[arg(long, value_name = "TIME", default_value_t = Time::from_ms(limits::MESSAGE_ID_WINDOW_NS_DEFAULT / 1_000_000))]
    pub message_id_window: Time,
    /// Memory for message ids, all publishers together; beyond it, the publisher with the most ids loses its oldest
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(limits::MESSAGE_IDS_BYTES_MAX_DEFAULT))]
    pub message_ids_memory: Size,
    /// Compress messages for WebSocket clients that accept it: on or off; off for topics with secrets: account.>=off; repeatable [default: off]
    #[arg(long, value_name = "[PATTERN=]SWITCH")]
    pub deflate: Vec<String>,
    /// Smallest message to compress
    #[arg(long, value_name = "SIZE", default_value_t = Size::new(limits::DEFLATE_BYTES_MIN_DEFAULT))]
    pub deflate_min: Size,
    /// Send buffer of a client's socket (SO_SNDBUF) [default: the kernel's]
    #[arg(long, alias = "socket-send-bytes", value_name = "SIZE")]
    pub socket_send_buffer: Option<Size>,
    /// Unsent data that a TCP socket accepts (TCP_NOTSENT_LOWAT); 0: the kernel's
    #[arg(long, alias = "notsent-lowat-bytes", value_name = "SIZE", default_value_t = Size::new(limits::NOTSENT_LOWAT_BYTES_DEFAULT as usize))]
    pub notsent_lowat: Size,
}

/// `[timeouts]`: handshake, heartbeat and shutdown.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[group(id = "timeouts")]
#[command(next_help_heading = "Timeouts")]
pub struct TimeoutOptions {
    /// Longest time for a handshake, from accept
    #[arg(long, alias = "handshake-deadline-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::HANDSHAKE_DEADLINE_MS_DEFAULT))]
    pub handshake_deadline: Time,
    /// Longest time for a frame, from its first byte to its last
    #[arg(long, alias = "frame-deadline-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::FRAME_DEADLINE_MS_DEFAULT))]
    pub frame_deadline: Time,
    /// Ping a client after this much silence; 0: never
    #[arg(long, alias = "ping-interval-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::PING_INTERVAL_MS_DEFAULT))]
    pub ping_interval: Time,
    /// Close a client that stays silent this long after a ping
    #[arg(long, alias = "ping-timeout-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::PING_TIMEOUT_MS_DEFAULT))]
    pub ping_timeout: Time,
    /// Longest time from SIGTERM to exit, for sending backlogs
    #[arg(long, alias = "drain-deadline-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::DRAIN_DEADLINE_MS_DEFAULT))]
    pub drain_deadline: Time,
    /// Spread the reconnects of clients over this time after a stop
    #[arg(long, alias = "reconnect-spread-ms", value_name = "TIME", default_value_t = Time::from_ms(limits::RECONNECT_SPREAD_MS_DEFAULT as u64))]
    pub reconnect_spread: Time,
}

/// `[web]`: web pages, host names and health checks on the HTTP listeners.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[group(id = "web")]
#[command(next_help_heading = "Web")]
pub struct WebOptions {
    /// Origins of other web pages that may connect.
    #[arg(
        long,
        value_name = "ORIGIN",
        help = "Origin of other web pages that may connect: https://app.example.com, \
                https://*.example.com, null or *; repeatable"
    )]
    pub allow_origin: Vec<String>,
    /// Host name of this server: ticks.example.com, *.example.com or *; others get 403; repeatable
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Serve GET /healthz on the HTTP listeners, for load balancers
    #[arg(long)]
    pub http_health: bool,
    /// Close an HTTP connection after this time without a request; 0: after each response
    #[arg(long, value_name = "TIME", default_value_t = Time::from_ms(limits::HTTP_IDLE_MS_DEFAULT))]
    pub http_idle: Time,
}

/// `[debug]`.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[group(id = "debug")]
#[command(next_help_heading = "Debug")]
pub struct DebugOptions {
    /// Print each shard's latencies and busy share to standard error at exit, like SIGUSR1
    #[arg(long)]
    pub report: bool,
    /// Open /echo, which returns every WebSocket message; only for conformance suites
    #[arg(long)]
    pub debug_echo: bool,
}

/// What happens when a client with the same identity connects again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityConflict {
    /// Both connections are served.
    Allow,
    /// The first connection is closed with code 3502.
    Replace,
}

fn log_filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    logging::checked(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}
