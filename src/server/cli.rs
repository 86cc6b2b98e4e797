//! What was typed. What it means is [`crate::config`]'s business.

pub mod pages;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    commands::{ProcessArgs, PubArgs, SubArgs},
    limits, logging,
    operator::{check::CheckArgs, top::TopArgs},
};

/// Fans live ticks out to tens of thousands of TCP and WebSocket clients, one pinned io_uring thread per core.
#[derive(Clone, Debug, Parser)]
#[command(name = "tickcast", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve: take ticks from the simulator, a capture or clients, and fan them out
    Serve(Box<ServeArgs>),
    /// Print the ticks of topics as they come
    Sub(SubArgs),
    /// Publish one tick, or every line of standard input
    Pub(PubArgs),
    /// Analyse a stream and publish what it says
    Process(ProcessArgs),
    /// Say whether tickcast can serve on this machine, and what of it is worth setting; changes nothing
    Check(CheckArgs),
    /// Watch a running server: shards, rates, latencies, topics and slow sessions
    Top(TopArgs),
    /// Print what makes a shell complete these commands, as in: tickcast completions bash >
    /// ~/.local/share/bash-completion/completions/tickcast
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the man pages into a folder, for packages
    #[command(hide = true)]
    Man {
        /// Where to
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

/// What becomes of a bad line in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BadLines {
    /// The server stops, with the line's number.
    Stop,
    /// The line is logged and skipped.
    Skip,
}

/// What a second connection of the same client does to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IdentityConflict {
    /// Both are served.
    Allow,
    /// The first is closed, with code 3502.
    Replace,
}

/// Options of `tickcast serve`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Exit status: 0 drained and ended, or what was asked for is printed; 1 it cannot serve here, or cannot go on; 2 an option or the \
configuration is wrong.")]
pub struct ServeArgs {
    /// Configuration: a TOML file of these options by their long names, with _ for -, as in behind_ms = 500. What is
    /// typed, or stands in the environment, goes before it
    #[arg(long, env = "TICKCAST_CONFIG", value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Check the options and the file, say what is wrong, and do not serve
    #[arg(long, help_heading = "Configuration")]
    pub check_config: bool,
    /// Print every option as it would be used, and where it comes from, as a file that --config takes; do not serve
    #[arg(long, conflicts_with = "check_config", help_heading = "Configuration")]
    pub print_config: bool,

    /// Cores to pin shards to, as in 0,2-3 [default: all this process may use]
    #[arg(long, env = "TICKCAST_CORES", value_name = "LIST")]
    pub cores: Option<String>,

    /// Shards [default: one for each core]; more than cores is for tests
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,

    /// Address for native clients; port 0: any free one
    #[arg(long, env = "TICKCAST_TCP", value_name = "ADDR", default_value = "127.0.0.1:9400")]
    pub tcp: SocketAddr,

    /// Address for HTTP and WebSocket clients (/ws); port 0: any free one
    #[arg(long, env = "TICKCAST_HTTP", value_name = "ADDR", default_value = "127.0.0.1:9480")]
    pub http: SocketAddr,

    /// Address for the operator: metrics, health, sessions (GET / has the list). It has no password: keep it on
    /// loopback; port 0: any free one
    #[arg(long, env = "TICKCAST_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:9490")]
    pub admin: SocketAddr,

    /// No listener for the operator
    #[arg(long)]
    pub no_admin: bool,

    /// What is logged: error, warn, info, debug, trace or off, also by part, as in info,tickcast::peer=warn (no lines
    /// about what clients do wrong)
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info", value_parser = logging::checked)]
    pub log: String,

    /// Most connections at once [default: 65536, or what the descriptor limit allows]
    #[arg(long = "max-clients", env = "TICKCAST_MAX_CLIENTS", value_name = "N")]
    pub clients_max: Option<usize>,
    /// Most connections from one IPv4 address or IPv6 /64 network; 0: any number. The page at / takes up to 13 to load,
    /// then one
    #[arg(long = "max-clients-per-source", value_name = "N", default_value_t = 0)]
    pub clients_per_source_max: u32,
    /// New connections a second, divided over the shards, and a second's worth at once; 0: any number. The page at /
    /// takes 13 to load
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub accept_rate: u32,
    /// What a second connection of the same client (client=ID) does to the first
    #[arg(long, value_enum, default_value_t = IdentityConflict::Allow)]
    pub identity_conflict: IdentityConflict,

    /// No simulator: ticks come from clients (and --replay) only
    #[arg(long, help_heading = "Simulator")]
    pub no_sim: bool,
    /// Producers of the built-in simulator [default: 10, or one for each topic if those are more]
    #[arg(long, value_name = "N", help_heading = "Simulator")]
    pub sim_producers: Option<u32>,
    /// Ticks a second of each producer [default: 10]
    #[arg(long, value_name = "N", help_heading = "Simulator")]
    pub sim_rate: Option<u32>,
    /// Bytes of a simulated payload: JSON that carries its intended send time [default: 100]
    #[arg(long, value_name = "BYTES", help_heading = "Simulator")]
    pub sim_size: Option<usize>,
    /// Topics sim.0 to sim.N-1 [default: one for each producer]
    #[arg(long, value_name = "N", help_heading = "Simulator")]
    pub sim_topics: Option<u32>,

    /// Replay a capture instead of simulating: NDJSON of {"at_ns", "topic", "data"}
    #[arg(long, value_name = "FILE", help_heading = "Replay")]
    pub replay: Option<PathBuf>,
    /// Times the capture's own pace, or max
    #[arg(long, value_name = "FACTOR", default_value = "1.0", requires = "replay", help_heading = "Replay")]
    pub speed: String,
    /// Start again after the end
    #[arg(long = "loop", requires = "replay", help_heading = "Replay")]
    pub again: bool,
    /// Start once so many clients have subscribed
    #[arg(long, value_name = "N", default_value_t = 0, requires = "replay", help_heading = "Replay")]
    pub replay_wait: u64,
    /// What a bad line does
    #[arg(long, value_enum, default_value_t = BadLines::Stop, requires = "replay", help_heading = "Replay")]
    pub replay_bad_lines: BadLines,

    /// Stream an ECG on ecg.wave, beside the simulator or replay: a WFDB header (FILE.hea, its data in format 212 or 16
    /// beside it), again and again, or `synthetic`
    #[arg(long, value_name = "FILE.hea", help_heading = "ECG")]
    pub ecg: Option<String>,
    /// The record's signal, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "ecg", help_heading = "ECG")]
    pub ecg_signal: usize,
    /// Samples in a tick
    #[arg(long, value_name = "N", default_value_t = 10, requires = "ecg", help_heading = "ECG")]
    pub ecg_batch: usize,
    /// Heart rate of the synthetic ECG, beats a minute [default: 72]
    #[arg(long, value_name = "BPM", requires = "ecg", help_heading = "ECG")]
    pub ecg_bpm: Option<f64>,

    /// What becomes of a slow subscriber's ticks where it has not said: conflate, drop or disconnect [default:
    /// disconnect]; or of some topics', as in market.>=conflate, the first that matches. May be given several times
    #[arg(long, value_name = "[PATTERN=]POLICY", help_heading = "Slow consumers")]
    pub policy: Vec<String>,
    /// Bytes waiting for a session before ticks that may be are conflated or dropped [default: 262144, or
    /// --outbox-bytes-max if that is less]
    #[arg(long, value_name = "BYTES", help_heading = "Slow consumers")]
    pub behind_bytes: Option<usize>,
    /// Time a socket may take for one SEND (32 KiB at most) before ticks that may be are conflated or dropped
    #[arg(long, value_name = "MS", default_value_t = limits::BEHIND_MS_DEFAULT, help_heading = "Slow consumers")]
    pub behind_ms: u64,
    /// Time a socket may take for one SEND before a session with subscriptions that do not yield is closed
    #[arg(long, value_name = "MS", default_value_t = limits::STALL_DEADLINE_MS_DEFAULT, help_heading = "Slow consumers")]
    pub stall_deadline_ms: u64,
    /// Keys of one topic whose newest tick is kept; of more, those updated last
    #[arg(long, value_name = "N", default_value_t = limits::KEYS_PER_TOPIC_MAX_DEFAULT, help_heading = "Slow consumers")]
    pub keys_per_topic_max: usize,
    /// Bytes of the newest ticks by key, of all topics together: at their homes, and again where they are taken
    #[arg(long, value_name = "BYTES", default_value_t = limits::KEYS_BYTES_MAX_DEFAULT, help_heading = "Slow consumers")]
    pub keys_bytes_max: usize,
    /// Bytes that the kernel keeps for a socket to send; ticks beyond wait where they can be conflated [default: the
    /// kernel's]
    #[arg(long, value_name = "BYTES", help_heading = "Slow consumers")]
    pub socket_send_bytes: Option<usize>,
    /// Bytes not yet on the wire that a socket takes (TCP_NOTSENT_LOWAT); 0: the kernel's default
    #[arg(long, value_name = "BYTES", default_value_t = limits::NOTSENT_LOWAT_BYTES_DEFAULT, help_heading = "Slow consumers")]
    pub notsent_lowat_bytes: u32,

    /// Recent ticks that a topic keeps for clients that come back: ticks, bytes, milliseconds, each optional from the
    /// right [default: 256:65536:60000]; or some topics', as in market.>=10000:4194304:0, the first that matches.
    /// 0 ticks: none; 0 ms: whatever their age. May be given several times
    #[arg(long, value_name = "[PATTERN=]TICKS[:BYTES[:MS]]", help_heading = "History")]
    pub history: Vec<String>,
    /// Bytes of recent ticks that all topics keep together
    #[arg(long, value_name = "BYTES", default_value_t = limits::HISTORY_BYTES_MAX_DEFAULT, help_heading = "History")]
    pub history_bytes_max: usize,

    /// Largest frame or message from a client
    #[arg(long, value_name = "BYTES", default_value_t = limits::FRAME_BYTES_MAX_DEFAULT, help_heading = "Limits")]
    pub frame_bytes_max: usize,
    /// Largest HTTP request head
    #[arg(long, value_name = "BYTES", default_value_t = limits::HTTP_HEAD_BYTES_MAX_DEFAULT, help_heading = "Limits")]
    pub http_head_bytes_max: usize,
    /// Time from accept to the end of the handshake
    #[arg(long, value_name = "MS", default_value_t = limits::HANDSHAKE_DEADLINE_MS_DEFAULT, help_heading = "Limits")]
    pub handshake_deadline_ms: u64,
    /// Time a frame or message that has begun may take to arrive whole
    #[arg(long, value_name = "MS", default_value_t = limits::FRAME_DEADLINE_MS_DEFAULT, help_heading = "Limits")]
    pub frame_deadline_ms: u64,
    /// Silence after which a client is pinged; 0: never
    #[arg(long, value_name = "MS", default_value_t = limits::PING_INTERVAL_MS_DEFAULT, help_heading = "Limits")]
    pub ping_interval_ms: u64,
    /// Time a pinged client has to send anything before it is taken for dead
    #[arg(long, value_name = "MS", default_value_t = limits::PING_TIMEOUT_MS_DEFAULT, help_heading = "Limits")]
    pub ping_timeout_ms: u64,
    /// Subscriptions of one session
    #[arg(long, value_name = "N", default_value_t = limits::SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT, help_heading = "Limits")]
    pub subscriptions_per_session_max: usize,
    /// Ticks a second that one session may publish, and a second's worth at once; 0: any number
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Limits")]
    pub publish_rate: u32,
    /// Topics of the server
    #[arg(long, value_name = "N", default_value_t = limits::TOPICS_MAX_DEFAULT, help_heading = "Limits")]
    pub topics_max: usize,
    /// Frames kept for sessions that are behind: for each shard and encoding in use
    #[arg(long, value_name = "BYTES", default_value_t = limits::EGRESS_LOG_BYTES_DEFAULT, help_heading = "Limits")]
    pub egress_log_bytes: usize,
    /// How far a session whose subscriptions do not yield may be behind before it is closed as a slow consumer
    #[arg(long, value_name = "BYTES", default_value_t = limits::OUTBOX_BYTES_MAX_DEFAULT, help_heading = "Limits")]
    pub outbox_bytes_max: usize,
    /// One ring between two shards; four for each pair
    #[arg(long, value_name = "BYTES", default_value_t = limits::MESH_RING_BYTES_DEFAULT, help_heading = "Limits")]
    pub mesh_ring_bytes: usize,
    /// Time a tick may wait under load for others to leave with it in one SEND: less CPU for more latency; 0: none
    #[arg(long, value_name = "US", default_value_t = 0, help_heading = "Limits")]
    pub latency_budget_us: u64,
    /// Time a shard with nothing to do looks for work before it sleeps: a whole core for some 20 us less latency; 0: none
    #[arg(long, value_name = "US", default_value_t = 0, help_heading = "Limits")]
    pub spin_us: u64,
    /// Time from SIGTERM to exit, for clients to take what waits for them
    #[arg(long, value_name = "MS", default_value_t = limits::DRAIN_DEADLINE_MS_DEFAULT, help_heading = "Limits")]
    pub drain_deadline_ms: u64,
    /// When the server stops, each client is told to come back after a time of its own from 0 to this
    #[arg(long, value_name = "MS", default_value_t = limits::RECONNECT_SPREAD_MS_DEFAULT, help_heading = "Limits")]
    pub reconnect_spread_ms: u32,

    /// At exit, print what SIGUSR1 prints at any time: each shard's latencies and busy share, on standard error
    #[arg(long, help_heading = "Debugging")]
    pub report: bool,
    /// Open /echo, which returns every WebSocket message: for conformance suites, not for production
    #[arg(long, help_heading = "Debugging")]
    pub debug_echo: bool,
}

impl ServeArgs {
    /// Whether any option of the simulator was given.
    pub fn sim_is_asked_for(&self) -> bool {
        self.sim_producers.is_some()
            || self.sim_rate.is_some()
            || self.sim_size.is_some()
            || self.sim_topics.is_some()
    }
}
