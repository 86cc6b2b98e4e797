//! What was typed, made to mean something: every bound derived and checked before anything starts.

mod delivery;
mod ecg;
pub mod file;
pub mod listener;
pub mod reload;

use std::net::SocketAddr;

pub use self::listener::SocketBounds;
use self::listener::{Kind, Listener};
use crate::{
    cli::{BadLines, IdentityConflict, ServeArgs},
    error::StartupError,
    limits,
    sources::{self, replay, simulator},
};
use tickcast_core::config::{Limits, message_bytes_max};
use tickcast_proto::{
    frame,
    records::{History, Publish, TickTimes, WireRecord},
};

/// A server, ready to be started.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Cores to pin to, in order; shard `n` goes to the `n % len`-th.
    pub cores: Vec<usize>,
    /// Shards.
    pub shards: u16,
    /// Where clients and operators connect.
    pub listeners: Vec<Listener>,
    /// What is logged, as [`crate::logging::set_filter`] takes it.
    pub log: String,
    /// Most connections; `None`: what the descriptor limit allows.
    pub clients_max: Option<usize>,
    /// Most connections from one address; 0: any number.
    pub clients_per_source_max: u32,
    /// New connections a second, over all shards; 0: any number.
    pub accept_rate: u32,
    /// The core's bounds.
    pub limits: Limits,
    /// One ring of the mesh, bytes.
    pub mesh_ring_bytes: usize,
    /// What a tick may wait under load for others to leave with it, nanoseconds; 0: every turn sends.
    pub latency_budget_ns: u64,
    /// How long a shard with nothing to do looks for work before it sleeps, nanoseconds.
    pub spin_ns: u64,
    /// From the signal to the end, nanoseconds.
    pub drain_deadline_ns: u64,
    /// Print the latencies at exit.
    pub report: bool,
    /// Where ticks come from, besides clients.
    pub sources: Vec<Source>,
}

/// A source of ticks on a thread of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The built-in simulator.
    Simulator(simulator::Settings),
    /// A capture.
    Replay(replay::Settings),
    /// A heart.
    Ecg(sources::ecg::Settings),
}

impl Config {
    /// Derives and checks everything that can be checked without the kernel. `cores_allowed`: what this process may
    /// use.
    ///
    /// # Errors
    /// [`StartupError::Option`] or [`StartupError::Core`], for the first thing wrong.
    pub fn new(args: &ServeArgs, cores_allowed: &[usize]) -> Result<Config, StartupError> {
        // Bounds first: sources are held to them.
        let config = Config::bounds(args, cores_allowed)?;
        Ok(Config { sources: sources(args, true)?, ..config })
    }

    /// The same, but no record is read, which may be as long as a day, and there are no sources: for what changes while the
    /// server runs.
    ///
    /// # Errors
    /// The same, but for what is in a record.
    pub fn without_sources(args: &ServeArgs, cores_allowed: &[usize]) -> Result<Config, StartupError> {
        let config = Config::bounds(args, cores_allowed)?;
        sources(args, false)?;
        Ok(config)
    }

    fn bounds(args: &ServeArgs, cores_allowed: &[usize]) -> Result<Config, StartupError> {
        let cores = match &args.cores {
            None => cores_allowed.to_vec(),
            Some(list) => parse_cores(list)?,
        };
        if cores.is_empty() {
            return Err(StartupError::NoCores);
        }
        if let Some(&core) = cores.iter().find(|core| !cores_allowed.contains(core)) {
            return Err(StartupError::Core(core, cores_allowed.to_vec()));
        }
        let shards = args.shards.unwrap_or(cores.len().min(limits::SHARDS_MAX) as u16);
        if !(1..=limits::SHARDS_MAX as u16).contains(&shards) {
            return Err(StartupError::Option(
                "--shards",
                format!("{shards}: 1 to {} shards", limits::SHARDS_MAX),
            ));
        }
        if args.tcp == args.http && args.tcp.port() != 0 {
            return Err(StartupError::Option(
                "--http",
                format!("{} is already the --tcp address", args.http),
            ));
        }
        let admin = (!args.no_admin).then_some(args.admin);
        for (option, address) in [("--tcp", args.tcp), ("--http", args.http)] {
            if admin == Some(address) && address.port() != 0 {
                let text = format!("{address} is already the {option} address");
                return Err(StartupError::Option("--admin", text));
            }
        }
        let frame_range = limits::FRAME_BYTES_MAX_LOWEST..=limits::FRAME_BYTES_MAX_HIGHEST;
        if !frame_range.contains(&args.frame_bytes_max) {
            let text =
                format!("{}: {} to {} bytes", args.frame_bytes_max, frame_range.start(), frame_range.end());
            return Err(StartupError::Option("--frame-bytes-max", text));
        }
        let encoded_bytes_max = message_bytes_max(args.frame_bytes_max);
        let log_bytes_lowest = (2 * encoded_bytes_max).max(limits::EGRESS_LOG_BYTES_LOWEST);
        if args.egress_log_bytes < log_bytes_lowest || args.egress_log_bytes > 1 << 30 {
            let text = format!("{}: {log_bytes_lowest} bytes to 1 GiB", args.egress_log_bytes);
            return Err(StartupError::Option("--egress-log-bytes", text));
        }
        if args.outbox_bytes_max < encoded_bytes_max || args.outbox_bytes_max > args.egress_log_bytes {
            let text = format!(
                "{}: {encoded_bytes_max} bytes (one frame) to {} (--egress-log-bytes)",
                args.outbox_bytes_max, args.egress_log_bytes
            );
            return Err(StartupError::Option("--outbox-bytes-max", text));
        }
        let behind_bytes =
            args.behind_bytes.unwrap_or(limits::BEHIND_BYTES_DEFAULT.min(args.outbox_bytes_max));
        if behind_bytes == 0 || behind_bytes > args.outbox_bytes_max {
            let text = format!("{behind_bytes}: 1 byte to {} (--outbox-bytes-max)", args.outbox_bytes_max);
            return Err(StartupError::Option("--behind-bytes", text));
        }
        if let Some(bytes) = args.socket_send_bytes
            && bytes < limits::SOCKET_SEND_BYTES_LOWEST
        {
            let text = format!("{bytes}: at least {} bytes", limits::SOCKET_SEND_BYTES_LOWEST);
            return Err(StartupError::Option("--socket-send-bytes", text));
        }
        if args.latency_budget_us > limits::LATENCY_BUDGET_US_HIGHEST {
            let text = format!("{}: at most {}", args.latency_budget_us, limits::LATENCY_BUDGET_US_HIGHEST);
            return Err(StartupError::Option("--latency-budget-us", text));
        }
        if args.spin_us > limits::SPIN_US_HIGHEST {
            let text = format!("{}: at most {}", args.spin_us, limits::SPIN_US_HIGHEST);
            return Err(StartupError::Option("--spin-us", text));
        }
        if args.keys_per_topic_max == 0 {
            return Err(StartupError::Option("--keys-per-topic-max", "0: at least 1".into()));
        }
        let ping_range = limits::PING_MS_LOWEST..=limits::PING_MS_HIGHEST;
        for (option, ping_ms, is_none) in [
            ("--ping-interval-ms", args.ping_interval_ms, args.ping_interval_ms == 0),
            ("--ping-timeout-ms", args.ping_timeout_ms, false),
        ] {
            if !is_none && !ping_range.contains(&ping_ms) {
                let text = format!("{ping_ms}: {} to {} ms", ping_range.start(), ping_range.end());
                return Err(StartupError::Option(option, text));
            }
        }
        if let Some(clients) = args.clients_max
            && !(1..=limits::CLIENTS_MAX_HIGHEST).contains(&clients)
        {
            let text = format!("{clients}: at least 1, at most {}", limits::CLIENTS_MAX_HIGHEST);
            return Err(StartupError::Option("--max-clients", text));
        }
        for (option, rate) in [("--accept-rate", args.accept_rate), ("--publish-rate", args.publish_rate)] {
            if rate > limits::RATE_HIGHEST {
                let text = format!("{rate}: at most {} a second, 0 for no limit", limits::RATE_HIGHEST);
                return Err(StartupError::Option(option, text));
            }
        }
        let socket = SocketBounds {
            send_bytes: args.socket_send_bytes,
            notsent_lowat_bytes: args.notsent_lowat_bytes,
        };
        let listener = |kind: Kind, address: SocketAddr, socket| Listener {
            kind,
            address: address.into(),
            socket,
            mode: limits::UNIX_MODE_DEFAULT,
            named: format!("--{}", kind.option()),
        };
        let mut listeners =
            vec![listener(Kind::Native, args.tcp, socket), listener(Kind::Http, args.http, socket)];
        listeners.extend(admin.map(|address| listener(Kind::Admin, address, SocketBounds::default())));
        Ok(Config {
            cores,
            shards,
            listeners,
            log: args.log.clone(),
            clients_max: args.clients_max,
            clients_per_source_max: args.clients_per_source_max,
            accept_rate: args.accept_rate,
            limits: Limits {
                frame_bytes_max: args.frame_bytes_max,
                http_head_bytes_max: args.http_head_bytes_max,
                handshake_deadline_ns: args.handshake_deadline_ms.saturating_mul(1_000_000),
                frame_deadline_ns: args.frame_deadline_ms.saturating_mul(1_000_000),
                ping_interval_ns: match args.ping_interval_ms {
                    0 => u64::MAX,
                    interval_ms => interval_ms * 1_000_000,
                },
                ping_timeout_ns: args.ping_timeout_ms * 1_000_000,
                reconnect_spread_ms: args.reconnect_spread_ms,
                subscriptions_per_session_max: args.subscriptions_per_session_max,
                topics_max: args.topics_max,
                egress_log_bytes: args.egress_log_bytes,
                outbox_bytes_max: args.outbox_bytes_max,
                behind_bytes,
                behind_ns: args.behind_ms.saturating_mul(1_000_000),
                stall_deadline_ns: args.stall_deadline_ms.saturating_mul(1_000_000),
                policies: delivery::policies(&args.policy)?,
                history: delivery::histories(&args.history, args.egress_log_bytes)?,
                history_bytes_max: args.history_bytes_max,
                keys_per_topic_max: args.keys_per_topic_max,
                keys_bytes_max: args.keys_bytes_max,
                publish_rate: args.publish_rate,
                identity_replaces: args.identity_conflict == IdentityConflict::Replace,
                debug_echo: args.debug_echo,
            },
            // The longest frame of the mesh must fit, and a second behind it.
            mesh_ring_bytes: args.mesh_ring_bytes.max(2 * mesh_frame_bytes_max(args.frame_bytes_max)),
            latency_budget_ns: args.latency_budget_us * 1_000,
            spin_ns: args.spin_us * 1_000,
            drain_deadline_ns: args.drain_deadline_ms.saturating_mul(1_000_000),
            report: args.report,
            sources: Vec::new(),
        })
    }
}

/// The PUBLISH of the longest tick on the topic of the longest name, or a piece of history of one such tick.
fn mesh_frame_bytes_max(frame_bytes_max: usize) -> usize {
    let publish = frame_bytes_max + Publish::STRIDE + limits::TOPIC_BYTES_MAX;
    let piece = frame::encoded_len(History::STRIDE, frame_bytes_max.max(limits::HISTORY_PIECE_BYTES));
    publish.max(piece).next_multiple_of(limits::FRAME_ALIGN)
}

/// Checked; records are read if `reads`.
fn sources(args: &ServeArgs, reads: bool) -> Result<Vec<Source>, StartupError> {
    let mut sources = Vec::new();
    let payload_bytes_max =
        args.frame_bytes_max - frame::encoded_len(TickTimes::STRIDE, 0) - limits::FRAME_ALIGN;
    if let Some(file) = &args.replay {
        if !file.is_file() {
            return Err(StartupError::Option("--replay", format!("{}: no such file", file.display())));
        }
        let speed = match args.speed.as_str() {
            "max" => None,
            text => match text.parse::<f64>() {
                Ok(speed) if speed.is_finite() && speed > 0.0 => Some(speed),
                _ => {
                    return Err(StartupError::Option("--speed", format!("{text}: a number above 0, or max")));
                }
            },
        };
        sources.push(Source::Replay(replay::Settings {
            file: file.clone(),
            speed,
            again: args.again,
            wait_clients: args.replay_wait,
            skip_bad_lines: args.replay_bad_lines == BadLines::Skip,
            payload_bytes_max,
        }));
    }
    if !args.no_sim && (args.replay.is_none() || args.sim_is_asked_for()) {
        let settings = simulator::Settings {
            // A topic without a producer would stay empty.
            producers: args.sim_producers.unwrap_or(args.sim_topics.unwrap_or_default().max(10)),
            rate: args.sim_rate.unwrap_or(10),
            size_bytes: args.sim_size.unwrap_or(100),
            topics: args.sim_topics.or(args.sim_producers).unwrap_or(10),
        };
        if !(limits::SIM_SIZE_LOWEST..=payload_bytes_max).contains(&settings.size_bytes) {
            let text =
                format!("{}: {} to {payload_bytes_max} bytes", settings.size_bytes, limits::SIM_SIZE_LOWEST);
            return Err(StartupError::Option("--sim-size", text));
        }
        if settings.topics as usize > args.topics_max {
            let text = format!("{}: at most {} (--topics-max)", settings.topics, args.topics_max);
            return Err(StartupError::Option("--sim-topics", text));
        }
        if settings.topics > settings.producers {
            let text =
                format!("{}: at most one for each of {} producers", settings.topics, settings.producers);
            return Err(StartupError::Option("--sim-topics", text));
        }
        if settings.producers == 0 || settings.rate == 0 || settings.topics == 0 {
            return Err(StartupError::Option(
                "--sim-producers",
                "producers, rate and topics: at least 1".into(),
            ));
        }
        sources.push(Source::Simulator(settings));
    }
    sources.extend(ecg::source(args, payload_bytes_max, reads)?.map(Source::Ecg));
    Ok(sources)
}

/// `0,2-3` as cores, each once.
fn parse_cores(list: &str) -> Result<Vec<usize>, StartupError> {
    let bad = || StartupError::Option("--cores", format!("{list}: numbers and ranges, as in 0,2-3"));
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) =
            (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?);
        if first > last || last > 4096 {
            return Err(bad());
        }
        cores.extend((first..=last).filter(|core| !cores.contains(core)).collect::<Vec<_>>());
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn config(options: &str) -> Result<Config, StartupError> {
        let words = ["tickcast", "serve"].into_iter().chain(options.split_whitespace());
        let Command::Serve(args) = Cli::parse_from(words).command else { panic!("serve") };
        Config::new(&args, &[0, 1, 2, 3])
    }

    #[test]
    fn defaults_serve_the_simulator_on_every_core() {
        let config = config("").unwrap();
        assert_eq!((config.shards, config.cores.as_slice()), (4, &[0, 1, 2, 3][..]));
        assert!(matches!(config.sources[..], [Source::Simulator(_)]));
        assert!(config.mesh_ring_bytes >= 2 * config.limits.frame_bytes_max);
    }

    #[test]
    fn what_changes_while_it_runs_is_checked_like_the_rest_but_no_record_is_read() {
        let words =
            |options: &'static str| ["tickcast", "serve"].into_iter().chain(options.split_whitespace());
        let reload = |options| {
            let Command::Serve(args) = Cli::parse_from(words(options)).command else { panic!("serve") };
            Config::without_sources(&args, &[0, 1, 2, 3])
        };
        for bad in
            ["--sim-size 1", "--replay /missing", "--ecg /missing.hea", "--ecg synthetic --ecg-batch 0"]
        {
            assert!(matches!(reload(bad), Err(StartupError::Option(..))), "{bad}");
        }
        // No header of a record: the next start would say so.
        assert!(
            reload("--ecg Cargo.toml").unwrap().sources.is_empty() && config("--ecg Cargo.toml").is_err()
        );
    }

    #[test]
    fn cores_are_lists_and_ranges_of_allowed_ones() {
        assert_eq!(config("--cores 3,0-1").unwrap().cores, [3, 0, 1]);
        assert_eq!(config("--cores 0-2,1").unwrap().cores, [0, 1, 2]);
        for bad in ["x", "2-1", "", "0,,1", "0-99999999"] {
            assert!(matches!(config(&format!("--cores={bad}")), Err(StartupError::Option(..))), "{bad}");
        }
        assert!(matches!(config("--cores 7"), Err(StartupError::Core(7, _))));
    }

    #[test]
    fn a_ping_interval_of_0_is_none() {
        assert_eq!(config("--ping-interval-ms 0").unwrap().limits.ping_interval_ns, u64::MAX);
        assert_eq!(config("--ping-interval-ms 100").unwrap().limits.ping_interval_ns, 100_000_000);
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        for (options, name) in [
            ("--shards 0", "--shards"),
            ("--shards 500", "--shards"),
            ("--frame-bytes-max 10", "--frame-bytes-max"),
            ("--outbox-bytes-max 100", "--outbox-bytes-max"),
            ("--egress-log-bytes 100", "--egress-log-bytes"),
            ("--ping-interval-ms 99", "--ping-interval-ms"),
            ("--ping-interval-ms 86400001", "--ping-interval-ms"),
            ("--ping-timeout-ms 0", "--ping-timeout-ms"),
            ("--sim-size 10", "--sim-size"),
            ("--sim-rate 0", "--sim-producers"),
            ("--replay /nonexistent", "--replay"),
            ("--replay /dev/null", "--replay"),
            ("--ecg /nonexistent.hea", "--ecg"),
            ("--ecg /dev/zero", "--ecg"),
            ("--ecg synthetic --ecg-batch 0", "--ecg-batch"),
            ("--ecg synthetic --ecg-batch 300 --frame-bytes-max 1024", "--ecg-batch"),
            ("--ecg synthetic --ecg-bpm 19", "--ecg-bpm"),
            ("--ecg synthetic --ecg-bpm NaN", "--ecg-bpm"),
            ("--ecg /nonexistent.hea --ecg-bpm 60", "--ecg-bpm"),
            ("--ecg synthetic --ecg-signal 1", "--ecg-signal"),
            ("--max-clients 0", "--max-clients"),
            ("--behind-bytes 0", "--behind-bytes"),
            ("--behind-bytes 99999999", "--behind-bytes"),
            ("--policy never", "--policy"),
            ("--latency-budget-us 100001", "--latency-budget-us"),
            ("--spin-us 1000001", "--spin-us"),
            ("--history 1:2:3:4", "--history"),
            ("--keys-per-topic-max 0", "--keys-per-topic-max"),
            ("--socket-send-bytes 1", "--socket-send-bytes"),
            ("--accept-rate 10000001", "--accept-rate"),
            ("--publish-rate 4000000000", "--publish-rate"),
            ("--sim-topics 3 --sim-producers 2", "--sim-topics"),
            ("--tcp 127.0.0.1:9480", "--http"),
            ("--admin 127.0.0.1:9480", "--admin"),
            ("--tcp 127.0.0.1:9490", "--admin"),
        ] {
            match config(options) {
                Err(StartupError::Option(option, _)) => assert_eq!(option, name, "{options}"),
                other => panic!("{options}: {other:?}"),
            }
        }
    }
}
