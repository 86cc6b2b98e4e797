//! What was typed, and what it means.

use std::net::{SocketAddr, ToSocketAddrs};

use clap::{Parser, ValueEnum};
use tickcast::limits::SIM_SIZE_LOWEST;

/// Ticks a second of all producers: more than one thread can write.
const TICKS_PER_S_MAX: u64 = 10_000_000;
/// Most topics; each takes some 30 bytes.
const TOPICS_MAX: u64 = 1 << 20;
/// Most connections: each is a descriptor and a buffer.
const CONNECTIONS_MAX: u64 = 1_024;

/// Publishes ticks at a constant rate to tickcast or a peer
///
/// The report is one JSON object on standard output, after --duration-s or at SIGINT. Exits with 0 when all that was
/// offered was sent, 1 when not, 2 when it could not be run.
#[derive(Debug, Parser)]
#[command(name = "tickcast-feed", version)]
pub struct Options {
    /// What the server speaks
    #[arg(long, value_enum, default_value_t = Protocol::Tickcast)]
    protocol: Protocol,
    /// Server, HOST:PORT [default: 127.0.0.1 and the protocol's usual port]
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Producers, evenly offset
    #[arg(long, value_name = "N", default_value_t = 50)]
    producers: u64,
    /// Ticks a second of each
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate: u64,
    /// Bytes of a payload
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    size: usize,
    /// Topics sim.0 to sim.N-1 [default: one for each producer]
    #[arg(long, value_name = "N")]
    topics: Option<u64>,
    /// Connections the topics are divided over [default: one for each producer, or topic if those are fewer]
    #[arg(long, value_name = "N")]
    connections: Option<u64>,
    /// Seconds to publish [default: until SIGINT]
    #[arg(long, value_name = "SECONDS")]
    duration_s: Option<u64>,
    /// Nchan's publisher location; ?id=TOPIC is appended
    #[arg(long, value_name = "PATH", default_value = "/pub")]
    path: String,
}

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// tickcast's native frames
    Tickcast,
    /// PUB of the NATS client protocol
    Nats,
    /// PUBLISH, pipelined
    Redis,
    /// POST over HTTP/1.1, kept alive and pipelined
    Nchan,
}

impl Protocol {
    /// How the report names it.
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

/// What to do.
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
    pub duration_s: Option<u64>,
}

impl Plan {
    /// Checks what was typed.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn new(typed: Options) -> Result<Plan, String> {
        within("--producers", typed.producers, 1, 1_000_000)?;
        within("--rate", typed.rate, 1, TICKS_PER_S_MAX)?;
        within("--producers x --rate", typed.producers * typed.rate, 1, TICKS_PER_S_MAX)?;
        within("--size", typed.size as u64, SIM_SIZE_LOWEST as u64, 1 << 20)?;
        let topics = typed.topics.unwrap_or(typed.producers);
        within("--topics", topics, 1, TOPICS_MAX)?;
        let connections = typed.connections.unwrap_or(typed.producers.min(topics).min(CONNECTIONS_MAX));
        within("--connections", connections, 1, topics.min(CONNECTIONS_MAX))?;
        if let Some(duration_s) = typed.duration_s {
            within("--duration-s", duration_s, 1, 1_000_000)?;
        }
        if !typed.path.starts_with('/') || !typed.path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("--path {:?}: a path, percent-encoded, as /pub", typed.path));
        }
        let host = typed.server.unwrap_or_else(|| typed.protocol.default_server().into());
        let mut found =
            host.to_socket_addrs().map_err(|error| format!("--server {host}: {error}: HOST:PORT"))?;
        let server = found.next().ok_or_else(|| format!("--server {host}: no address"))?;
        Ok(Plan {
            protocol: typed.protocol,
            server,
            host,
            path: typed.path,
            producers: typed.producers,
            rate: typed.rate,
            size_bytes: typed.size,
            topics: topics as u32,
            connections: connections as usize,
            duration_s: typed.duration_s,
        })
    }

    /// Ticks a second of all producers.
    pub fn per_second(&self) -> u64 {
        self.producers * self.rate
    }
}

fn within(name: &str, value: u64, lowest: u64, highest: u64) -> Result<(), String> {
    if (lowest..=highest).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} {value}: {lowest} to {highest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &str) -> Result<Plan, String> {
        let typed = std::iter::once("feed").chain(arguments.split_whitespace());
        Options::try_parse_from(typed).map_err(|error| error.to_string()).and_then(Plan::new)
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
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "--producers 0",
            "--rate 0",
            "--producers 1000000 --rate 11",
            "--size 79",
            "--topics 0",
            "--topics 3 --connections 4",
            "--duration-s 0",
            "--protocol kafka",
            "--server nowhere",
            "--path pub",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }
}
