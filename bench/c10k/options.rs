//! What was typed, and what it means.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use crate::{feed::PeerProtocol, own::Own, plot::PlotArgs, report};
use clap::{Parser, Subcommand, ValueEnum};
use tickcast::limits::{LISTEN_BACKLOG, TOPIC_BYTES_MAX};
use tickcast_client::{ConnectOptions, SubscribeOptions};
use tickcast_proto::{
    Encoding,
    subscription::{Delivery, Policy},
};

/// Connections from one source address: a third of the ephemeral ports stays free for others.
const CONNECTIONS_PER_SOURCE: usize = 20_000;
/// Connections opened a second.
const RAMP_PER_S_DEFAULT: usize = 2_000;
/// Connections under way to the listener at once: within any server's backlog, so that no SYN is dropped.
const CONNECTING_MAX: usize = 1_024;
/// The same for a spike: within the backlog of one of tickcast's listeners.
const SPIKE_CONNECTING_MAX: usize = LISTEN_BACKLOG as usize;
/// Most source addresses: 127.0.0.1 to 127.0.3.232.
const SOURCES_MAX: usize = 1_000;
/// Most threads: more than any machine this runs on has cores to spare.
const THREADS_MAX: usize = 64;

/// Load client for tickcast and its peers: many subscribers, with latency, loss and cost
///
/// Exits with 0 when the load ran and nothing that was asked of it failed, 1 when something did, 2 when it could not
/// be run. SIGINT and SIGTERM end it with the report of what was measured so far, and with 1; a second one ends it at
/// once.
#[derive(Debug, Parser)]
#[command(name = "tickcast-c10k", version, args_conflicts_with_subcommands = true)]
#[command(after_long_help = report::JSON_KEYS)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Server, HOST:PORT [default: 127.0.0.1 and the transport's usual port]
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Transport
    #[arg(long, value_enum, default_value_t = Transport::Native)]
    transport: Transport,
    /// Encoding of a WebSocket
    #[arg(long, value_enum)]
    encoding: Option<WebSocketEncoding>,
    /// Connections to open
    #[arg(long, value_name = "N", default_value_t = 100)]
    connections: usize,
    /// Pattern every connection subscribes to; may be given several times. Not for nchan and websocket, whose --path
    /// says it [default: every topic]
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<String>,
    /// Subscribe each connection to N topics of its own instead: the i-th to sim.((i*N + k) mod OF), k from 0 to N-1.
    /// Its loss is then judged by the topics it knows of, by a tick or by name
    #[arg(long, value_name = "N/OF", conflicts_with_all = ["subscribe", "path"])]
    subscribe_own: Option<Own>,
    /// Path and query of the WebSocket's handshake, for nchan and websocket [default: /sub, /ws]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Source addresses to spread over, 127.0.0.1 and up, for a loopback server [default: one for each 20,000]
    #[arg(long, value_name = "N")]
    sources: Option<usize>,
    /// Connections opened a second [default: 2000]
    #[arg(long, value_name = "N", conflicts_with = "spike")]
    ramp: Option<usize>,
    /// Open all connections at once instead, at most 4096 of them not yet acknowledged. The feed must tick while they
    /// subscribe for the time from connect to first tick to say something
    #[arg(long)]
    spike: bool,
    /// Length of the measured window in seconds; with --expect-ticks the time allowed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    duration_s: u64,
    /// Time between the last acknowledgement and the measured window, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    warm_up_s: u64,
    /// End when every connection has had N ticks, and fail when that takes longer than --duration-s. Publish only
    /// after the line "subscribed"
    #[arg(long, value_name = "N")]
    expect_ticks: Option<u64>,
    /// Connections, of those of --connections, that subscribe and then never read; what they lose is not counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    stalled: usize,
    /// Connections a second that leave without a word and come back, during the measured window
    #[arg(long, value_name = "N", default_value_t = 0)]
    churn_per_s: u32,
    /// What every connection asks to become of its ticks while it is behind: conflate, drop or disconnect
    /// [default: what the server has for the topic]
    #[arg(long, value_name = "POLICY")]
    policy: Option<Policy>,
    /// Threads the connections are divided over
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Core of the first thread; the others take the next ones
    #[arg(long, value_name = "CORE")]
    pin: Option<usize>,
    /// Process of the server, for its CPU time and memory
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Print one JSON object; its keys are listed below
    #[arg(long)]
    json: bool,
    /// Write the latency histogram, in microseconds, as the percentile text (.hgrm) that HdrHistogram plotters read
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write a picture of latency by percentile, corrected and uncorrected
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write one JSON object a line and client: index, source, ticks, conflated, dropped, gap, stalled, ended
    #[arg(long, value_name = "FILE")]
    clients: Option<PathBuf>,
    /// Fail when more ticks were lost
    #[arg(long, value_name = "TICKS")]
    max_loss: Option<u64>,
    /// Fail when the 99th percentile of latency is higher, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    max_p99_us: Option<u64>,
}

/// What to do instead of a load.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw several latency histograms (.hgrm) as lines of one picture
    Plot(PlotArgs),
    /// Write the man pages into a folder, for packages
    #[command(hide = true)]
    Man {
        /// Where to
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// Frames over TCP
    Native,
    /// A WebSocket
    Ws,
    /// A NATS server; the feed is tickcast-feed's
    Nats,
    /// Redis pub/sub; > is said as *, which stands for any number of tokens there
    Redis,
    /// Nchan's WebSocket subscriber; the feed is tickcast-feed's
    Nchan,
    /// Any WebSocket whose messages are payloads as tickcast-feed writes them
    Websocket,
}

impl Transport {
    /// Where its server is, unless said.
    fn default_server(self) -> &'static str {
        match self {
            Transport::Native => "127.0.0.1:9400",
            Transport::Ws => "127.0.0.1:9480",
            Transport::Nats => "127.0.0.1:4222",
            Transport::Redis => "127.0.0.1:6379",
            Transport::Nchan | Transport::Websocket => "127.0.0.1:8080",
        }
    }

    /// What is spoken, where it is not tickcast's protocol.
    fn peer(self) -> Option<PeerProtocol> {
        match self {
            Transport::Native | Transport::Ws => None,
            Transport::Nats => Some(PeerProtocol::Nats),
            Transport::Redis => Some(PeerProtocol::Redis),
            Transport::Nchan | Transport::Websocket => Some(PeerProtocol::WebSocket),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WebSocketEncoding {
    /// Frames in binary messages
    Rkyv,
    /// One JSON object a tick
    Json,
    /// The payload alone; latency is read from the simulator's payload
    Raw,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub server: SocketAddr,
    pub session: ConnectOptions,
    /// What is spoken instead of `session`'s encoding; its host and path serve a WebSocket all the same.
    pub peer: Option<PeerProtocol>,
    transport: Transport,
    pub connections: usize,
    pub patterns: Vec<String>,
    /// Topics of each connection's own; then `patterns` says them for people.
    pub own: Option<Own>,
    /// What each connection asks for with its patterns.
    pub subscription: SubscribeOptions,
    /// Connections that never read once they have subscribed.
    pub stalled: usize,
    pub churn_per_s: u32,
    pub sources: usize,
    pub ramp_per_s: usize,
    /// All connections at once; the ramp is not looked at.
    pub spike: bool,
    pub duration_s: u64,
    pub warm_up_s: u64,
    pub expect_ticks: Option<u64>,
    pub threads: usize,
    pub pin: Option<usize>,
    pub server_pid: Option<u32>,
    pub json: bool,
    pub hgrm: Option<PathBuf>,
    pub svg: Option<PathBuf>,
    pub clients: Option<PathBuf>,
    pub max_loss: Option<u64>,
    pub max_p99_us: Option<u64>,
}

impl Plan {
    /// Checks what was typed.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn new(typed: Options) -> Result<Plan, String> {
        let encoding = match (typed.transport, typed.encoding) {
            (Transport::Native | Transport::Nats | Transport::Redis, None) => Encoding::Native,
            (Transport::Nchan | Transport::Websocket, None) => Encoding::WebSocketRaw,
            (Transport::Ws, None | Some(WebSocketEncoding::Rkyv)) => Encoding::WebSocketRkyv,
            (Transport::Ws, Some(WebSocketEncoding::Json)) => Encoding::WebSocketJson,
            (Transport::Ws, Some(WebSocketEncoding::Raw)) => Encoding::WebSocketRaw,
            (_, Some(_)) => {
                return Err("--encoding is for --transport ws: the others have one encoding".into());
            }
        };
        let peer = typed.transport.peer();
        let (path, patterns) = subscriptions(peer, &typed)?;
        if peer.is_some() && typed.policy.is_some() {
            return Err("--policy is tickcast's: --transport native or ws".into());
        }
        within("--connections", typed.connections, 1, 1_000_000)?;
        within("--threads", typed.threads, 1, THREADS_MAX)?;
        let ramp_per_s = typed.ramp.unwrap_or(RAMP_PER_S_DEFAULT);
        within("--ramp", ramp_per_s, 1, 1_000_000)?;
        within("--duration-s", typed.duration_s as usize, 1, 1_000_000)?;
        within("--warm-up-s", typed.warm_up_s as usize, 0, 1_000_000)?;
        within("--stalled", typed.stalled, 0, typed.connections)?;
        if typed.stalled > 0 && typed.expect_ticks.is_some() {
            return Err(
                "--stalled does not go with --expect-ticks: who never reads never has its ticks".into()
            );
        }
        within("--churn-per-s", typed.churn_per_s as usize, 0, 1_000_000)?;
        if typed.churn_per_s > 0 && typed.expect_ticks.is_some() {
            return Err("--churn-per-s does not go with --expect-ticks: who comes back begins anew".into());
        }
        if typed.churn_per_s > 0 && typed.stalled == typed.connections {
            return Err("--churn-per-s needs connections that are not stalled".into());
        }
        for (name, path) in [("--hgrm", &typed.hgrm), ("--svg", &typed.svg), ("--clients", &typed.clients)] {
            path.as_deref().map_or(Ok(()), |path| has_folder(name, path))?;
        }
        let sources = typed.sources.unwrap_or(typed.connections.div_ceil(CONNECTIONS_PER_SOURCE));
        within("--sources", sources, 1, SOURCES_MAX)?;
        let has_sequences = peer.is_some() || encoding != Encoding::WebSocketRaw;
        if !has_sequences && typed.max_loss.is_some() && typed.expect_ticks.is_none() {
            return Err("--max-loss needs sequences, which raw does not carry: add --expect-ticks".into());
        }
        let host = typed.server.unwrap_or_else(|| typed.transport.default_server().into());
        let server = resolve(&host)?;
        if typed.sources.is_some() && !is_loopback_v4(server) {
            return Err(format!("--sources is for a server on 127.0.0.0/8, not {server}"));
        }
        Ok(Plan {
            server,
            session: ConnectOptions { host, path, ..ConnectOptions::new(encoding) },
            peer,
            transport: typed.transport,
            connections: typed.connections,
            patterns,
            own: typed.subscribe_own,
            subscription: SubscribeOptions {
                delivery: Delivery { policy: typed.policy, ..Delivery::default() },
                ..SubscribeOptions::default()
            },
            stalled: typed.stalled,
            churn_per_s: typed.churn_per_s,
            sources,
            ramp_per_s,
            spike: typed.spike,
            duration_s: typed.duration_s,
            warm_up_s: if typed.expect_ticks.is_some() { 0 } else { typed.warm_up_s },
            expect_ticks: typed.expect_ticks,
            threads: typed.threads.min(typed.connections),
            pin: typed.pin,
            server_pid: typed.server_pid,
            json: typed.json,
            hgrm: typed.hgrm,
            svg: typed.svg,
            clients: typed.clients,
            max_loss: typed.max_loss,
            max_p99_us: typed.max_p99_us,
        })
    }

    /// What the `index`-th connection subscribes to.
    pub fn patterns_of(&self, index: usize) -> Cow<'_, [String]> {
        self.own.map_or(Cow::Borrowed(&self.patterns), |own| Cow::Owned(own.patterns(index)))
    }

    /// Subscriptions of each connection.
    pub fn subscriptions(&self) -> usize {
        self.own.map_or(self.patterns.len(), |own| own.each)
    }

    /// How the report names transport and encoding.
    pub fn transport_name(&self) -> &'static str {
        match (self.transport, self.session.encoding) {
            (Transport::Nats, _) => "nats",
            (Transport::Redis, _) => "redis",
            (Transport::Nchan, _) => "nchan",
            (Transport::Websocket, _) => "websocket",
            (_, Encoding::Native) => "native",
            (_, Encoding::WebSocketRkyv) => "ws rkyv",
            (_, Encoding::WebSocketJson) => "ws json",
            (_, Encoding::WebSocketRaw) => "ws raw",
        }
    }

    /// Whether ticks carry sequences, so that a loss shows.
    pub fn has_sequences(&self) -> bool {
        self.peer.is_some() || self.session.encoding != Encoding::WebSocketRaw
    }

    /// Connections of one thread that may be on their way to an acknowledgement at once.
    pub fn connecting_max(&self) -> usize {
        let all = if self.spike { SPIKE_CONNECTING_MAX } else { CONNECTING_MAX };
        (all / self.threads).max(1)
    }

    /// Whether the `index`-th connection never reads once it has subscribed: the first ones, over all threads.
    pub fn is_stalled(&self, index: usize) -> bool {
        index < self.stalled
    }

    /// The address the `index`-th connection comes from; `None` leaves it to the kernel.
    pub fn source(&self, index: usize) -> Option<SocketAddr> {
        let first = u32::from(std::net::Ipv4Addr::LOCALHOST);
        let source = std::net::Ipv4Addr::from(first + (index % self.sources) as u32);
        is_loopback_v4(self.server).then_some(SocketAddr::new(IpAddr::V4(source), 0))
    }
}

/// The path to upgrade at, and the patterns to ask for or, where the path says it, to report.
fn subscriptions(peer: Option<PeerProtocol>, typed: &Options) -> Result<(String, Vec<String>), String> {
    if peer == Some(PeerProtocol::WebSocket) {
        if !typed.subscribe.is_empty() || typed.subscribe_own.is_some() {
            return Err(
                "--subscribe is not for --transport nchan and websocket: --path says what they get".into()
            );
        }
        let default = if typed.transport == Transport::Nchan { "/sub" } else { "/ws" };
        let path = typed.path.clone().unwrap_or_else(|| default.into());
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("--path {path:?}: a path and query, percent-encoded, as /sub?id=sim.0"));
        }
        return Ok((path.clone(), vec![path]));
    }
    if typed.path.is_some() {
        return Err("--path is for --transport nchan and websocket".into());
    }
    if let Some(own) = typed.subscribe_own {
        return Ok(("/ws".into(), vec![own.to_string()]));
    }
    let patterns = if typed.subscribe.is_empty() { vec![">".into()] } else { typed.subscribe.clone() };
    if let Some(pattern) = patterns.iter().find(|p| p.is_empty() || p.len() > TOPIC_BYTES_MAX) {
        return Err(format!("--subscribe {pattern:?}: 1 to {TOPIC_BYTES_MAX} bytes"));
    }
    // Neither blanks nor control characters: in a peer's protocol they end a name, or a line.
    if let Some(pattern) =
        patterns.iter().find(|p| peer.is_some() && !p.bytes().all(|b| b > b' ' && b != 0x7f))
    {
        return Err(format!("--subscribe {pattern:?}: no blanks and no control characters"));
    }
    Ok(("/ws".into(), patterns))
}

fn is_loopback_v4(server: SocketAddr) -> bool {
    server.is_ipv4() && server.ip().is_loopback()
}

fn within(name: &str, value: usize, lowest: usize, highest: usize) -> Result<(), String> {
    if (lowest..=highest).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} {value}: {lowest} to {highest}"))
}

/// Said before the run rather than after it.
fn has_folder(name: &str, path: &Path) -> Result<(), String> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        Some(folder) => Err(format!("{name} {}: there is no folder {}", path.display(), folder.display())),
        None => Ok(()),
    }
}

fn resolve(host: &str) -> Result<SocketAddr, String> {
    let mut found = host.to_socket_addrs().map_err(|error| format!("--server {host}: {error}: HOST:PORT"))?;
    found.next().ok_or_else(|| format!("--server {host}: no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &str) -> Result<Plan, String> {
        let typed = std::iter::once("c10k").chain(arguments.split_whitespace());
        Options::try_parse_from(typed).map_err(|error| error.to_string()).and_then(Plan::new)
    }

    #[test]
    fn defaults_follow_from_the_transport_and_the_connections() {
        let native = plan("").unwrap();
        assert_eq!((native.server.port(), native.sources, native.threads), (9400, 1, 1));
        let ws = plan("--transport ws --connections 50000").unwrap();
        assert_eq!((ws.server.port(), ws.sources, ws.transport_name()), (9480, 3, "ws rkyv"));
        assert_eq!(ws.source(4), Some("127.0.0.2:0".parse().unwrap()));
        let nchan = plan("--transport nchan").unwrap();
        assert_eq!((nchan.session.path.as_str(), nchan.transport_name()), ("/sub", "nchan"));
        assert!(plan("--transport websocket --path /a?b=c --max-loss 0").unwrap().has_sequences());
        assert_eq!(plan("--transport redis").unwrap().patterns, [">"]);
    }

    #[test]
    fn a_spike_stays_within_the_listeners_backlog_over_all_threads() {
        for (arguments, most) in [("--spike", LISTEN_BACKLOG as usize), ("--threads 3", 1_024)] {
            let plan = plan(arguments).unwrap();
            let all = plan.threads * plan.connecting_max();
            assert!(all <= most && all + plan.threads > most, "{arguments}: {all}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "--encoding json",
            "--connections 0",
            "--threads 0",
            "--sources 0",
            "--server nowhere",
            "--server 192.0.2.1:1 --sources 2",
            "--transport ws --encoding raw --max-loss 0",
            "--transport nats --encoding raw",
            "--transport redis --policy drop",
            "--transport nats --path /ws",
            "--transport nchan --subscribe a",
            "--transport nchan --path sub",
            "--transport websocket --path /\u{e4}",
            "--subscribe-own 20/2",
            "--subscribe-own 1/2 --subscribe a",
            "--transport nchan --subscribe-own 1/2",
            "--connections 4 --stalled 5",
            "--stalled 1 --expect-ticks 9",
            "--policy patience",
            "--churn-per-s 1 --expect-ticks 9",
            "--churn-per-s 1 --connections 4 --stalled 4",
            "--spike --ramp 100",
            "--svg /no/such/folder/a.svg",
            "--connections 4 plot --out a.svg a=b.hgrm",
            "plot --out a.svg",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }
}
