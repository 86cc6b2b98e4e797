//! Command line of the feeder, and the checked plan made from it.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, ValueEnum};
use tickcast::limits::SIM_SIZE_LOWEST;
use tickcast_client::{ClientToken, TlsOptions};
use tickcast_proto::units::{NS_PER_S, NS_PER_US, parse_duration_ns, parse_seconds_ns, parse_size_bytes};
use tickcast_tls::certificates::ALPN_NATIVE;

use crate::common::{
    checks::{check_path, duration_within, resolve_server, size_within, within},
    tls::TlsPlan,
};

/// Most ticks per second of all producers: more than one thread can write.
const TICKS_PER_S_MAX: u64 = 10_000_000;
/// Most producers.
const PRODUCERS_MAX: u64 = 1_000_000;
/// Most topics; each takes some 30 bytes.
const TOPICS_MAX: u64 = 1 << 20;
/// Most connections: each takes a descriptor and a buffer.
const CONNECTIONS_MAX: u64 = 1_024;
/// Largest payload, in bytes.
const SIZE_HIGHEST: u64 = 1 << 20;
/// Longest feed.
const DURATION_NS_MAX: u64 = 1_000_000 * NS_PER_S;

/// Publishes ticks at a constant rate to tickcast or a peer, however slow the server is
#[derive(Debug, Parser)]
#[command(name = "tickcast-feed", version, max_term_width = tickcast::cli::HELP_WIDTH)]
#[command(after_help = "\
Prints one JSON object when --duration has passed, or at SIGINT or SIGTERM.
Exit status: 0 every tick offered was sent; 1 some were not; 2 the feed could not run.")]
pub struct Options {
    /// Protocol of the server
    #[arg(long, value_enum, value_name = "PROTOCOL", default_value_t = Protocol::Tickcast)]
    protocol: Protocol,
    /// Server to connect to [default: 127.0.0.1 and the protocol's usual port]
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Producers, evenly offset
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    producers: u64,
    /// Ticks per second of each producer
    #[arg(long, value_name = "PER_SECOND", default_value_t = 100)]
    rate: u64,
    /// Size of a payload
    #[arg(long = "size", value_name = "SIZE", default_value = "100B", value_parser = parse_size_bytes)]
    size_bytes: u64,
    /// Topics, sim.0 to sim.(COUNT-1) [default: one per producer]
    #[arg(long, value_name = "COUNT")]
    topics: Option<u64>,
    /// Connections to divide the topics over [default: one per producer, or per topic if there are fewer]
    #[arg(long, value_name = "COUNT")]
    connections: Option<u64>,
    /// Time to publish for [default: until a signal]
    #[arg(long = "duration", value_name = "DURATION", value_parser = parse_duration_ns)]
    duration_ns: Option<u64>,
    /// Old spelling of --duration.
    #[arg(long = "duration-s", hide = true, value_parser = parse_seconds_ns, conflicts_with = "duration_ns")]
    duration_ns_from_s: Option<u64>,
    /// Encrypt every connection; only for tickcast
    #[arg(long)]
    tls: bool,
    /// With --tls: PEM file of the authorities that may sign the server's certificate [default: the system's]
    #[arg(long, value_name = "FILE", requires = "tls", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// With --tls: PEM file of the certificate to show to servers that ask for one
    #[arg(long, value_name = "FILE", requires = "tls")]
    cert: Option<PathBuf>,
    /// With --cert: PEM file of its private key [default: the file of --cert]
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// With --tls: do not verify the server
    #[arg(long, requires = "tls")]
    insecure: bool,
    /// File with the token of every connection; only for tickcast
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Nchan's publisher location, to which ?id=TOPIC is appended
    #[arg(long, value_name = "PATH", default_value = "/pub")]
    path: String,
}

/// Protocol of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    // Plain comments: clap would turn doc comments of values into a paragraph of help each.
    // Native frames.
    Tickcast,
    // PUB of the NATS client protocol.
    Nats,
    // PUBLISH, pipelined.
    Redis,
    // POST over HTTP/1.1, kept alive and pipelined.
    Nchan,
}

impl Protocol {
    /// Name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tickcast => "tickcast",
            Protocol::Nats => "nats",
            Protocol::Redis => "redis",
            Protocol::Nchan => "nchan",
        }
    }

    fn default_server(self) -> &'static str {
        match self {
            Protocol::Tickcast => "127.0.0.1:9400",
            Protocol::Nats => "127.0.0.1:4222",
            Protocol::Redis => "127.0.0.1:6379",
            Protocol::Nchan => "127.0.0.1:8080",
        }
    }
}

/// A feed to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub protocol: Protocol,
    pub server: SocketAddr,
    /// The server as it was typed, for HTTP.
    pub host: String,
    pub path: String,
    pub producers: u64,
    pub rate: u64,
    pub size_bytes: usize,
    pub topics: u32,
    pub connections: usize,
    /// `None` runs until a signal.
    pub duration_ns: Option<u64>,
    pub tls: Option<TlsPlan>,
    pub token: Option<ClientToken>,
}

impl Plan {
    /// Checks the options and fills in defaults.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn new(options: Options) -> Result<Plan, String> {
        within("--producers", options.producers, 1, PRODUCERS_MAX)?;
        within("--rate", options.rate, 1, TICKS_PER_S_MAX)?;
        within("--producers x --rate", options.producers * options.rate, 1, TICKS_PER_S_MAX)?;
        size_within("--size", options.size_bytes, SIM_SIZE_LOWEST as u64, SIZE_HIGHEST)?;
        let topics = options.topics.unwrap_or(options.producers);
        within("--topics", topics, 1, TOPICS_MAX)?;
        let connections = options.connections.unwrap_or(options.producers.min(topics).min(CONNECTIONS_MAX));
        within("--connections", connections, 1, topics.min(CONNECTIONS_MAX))?;
        let duration_ns = options.duration_ns_from_s.or(options.duration_ns);
        if let Some(duration_ns) = duration_ns {
            duration_within("--duration", duration_ns, NS_PER_US, DURATION_NS_MAX)?;
        }
        check_path(&options.path, "/pub")?;
        if options.protocol != Protocol::Tickcast && (options.tls || options.token_file.is_some()) {
            return Err("--tls and --token-file are for tickcast servers".into());
        }
        let token = options.token_file.as_deref().map(|file| {
            ClientToken::read(file).map_err(|text| format!("--token-file {}: {text}", file.display()))
        });
        let token = token.transpose()?;
        let host = options.server.unwrap_or_else(|| options.protocol.default_server().into());
        let (ca, cert, key, insecure) = (options.ca, options.cert, options.key, options.insecure);
        let tls = TlsOptions { ca, cert, key, insecure };
        let tls = options.tls.then(|| TlsPlan::new(&host, &[ALPN_NATIVE], &tls)).transpose()?;
        Ok(Plan {
            protocol: options.protocol,
            server: resolve_server(&host)?,
            host,
            path: options.path,
            producers: options.producers,
            rate: options.rate,
            size_bytes: options.size_bytes as usize,
            topics: topics as u32,
            connections: connections as usize,
            duration_ns,
            tls,
            token,
        })
    }

    /// Ticks per second of all producers.
    pub fn ticks_per_s(&self) -> u64 {
        self.producers * self.rate
    }

    /// Ticks due before the end of the feed.
    pub fn ticks(&self) -> u64 {
        let due = |ns: u64| (u128::from(ns) * u128::from(self.ticks_per_s())).div_ceil(u128::from(NS_PER_S));
        self.duration_ns.map_or(u64::MAX, |ns| u64::try_from(due(ns)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &str) -> Result<Plan, String> {
        let words = std::iter::once("feed").chain(arguments.split_whitespace());
        Options::try_parse_from(words).map_err(|error| error.to_string()).and_then(Plan::new)
    }

    #[test]
    fn topics_and_connections_follow_from_the_producers() {
        let of = |arguments: &str| plan(arguments).map(|plan| (plan.topics, plan.connections)).unwrap();
        assert_eq!(of(""), (50, 50));
        assert_eq!(of("--topics 1"), (1, 1));
        assert_eq!(of("--topics 20000"), (20_000, 50));
        assert_eq!(of("--connections 4"), (50, 4));
        assert_eq!(plan("--protocol redis").unwrap().server.port(), 6379);
    }

    #[test]
    fn durations_and_sizes_take_units_and_the_old_spelling_keeps_its_own() {
        let ticks = |arguments: &str| plan(arguments).unwrap().ticks();
        assert_eq!(ticks("--duration 2s"), 10_000);
        assert_eq!(ticks("--duration 500ms"), 2_500);
        assert_eq!(ticks("--duration-s 2"), 10_000);
        assert_eq!(ticks("--duration 1us"), 1, "the first tick is due at once");
        assert_eq!(ticks(""), u64::MAX);
        assert_eq!(plan("--size 1KiB").unwrap().size_bytes, 1_024);
        assert_eq!(plan("--size 1024").unwrap().size_bytes, 1_024);
        assert!(plan("--duration 2").unwrap_err().contains("2s, 2ms or 2us"));
    }

    #[test]
    fn invalid_values_are_refused() {
        for bad in [
            "--producers 0",
            "--rate 0",
            "--producers 1000000 --rate 11",
            "--size 79",
            "--size 2MiB",
            "--topics 0",
            "--topics 3 --connections 4",
            "--duration-s 0",
            "--duration 1s --duration-s 1",
            "--protocol kafka",
            "--server nowhere",
            "--path pub",
            "--ca a.pem",
            "--insecure",
            "--tls --ca no/such/file",
            "--tls --insecure --cert no/such/file",
            "--tls --insecure --protocol nats",
            "--token-file no/such/file",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }
}
