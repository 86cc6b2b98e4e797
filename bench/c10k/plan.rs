//! A checked load: the meaning of [`Options`].

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use tickcast::limits::{LISTEN_BACKLOG, TOPIC_BYTES_MAX};
use tickcast_client::{ClientToken, ConnectOptions, SubscribeOptions, TlsOptions};
use tickcast_proto::{
    WireFormat,
    subscription::Delivery,
    units::{NS_PER_S, NS_PER_US},
};
use tickcast_tls::certificates::{ALPN_HTTP, ALPN_NATIVE};

use crate::{
    common::{
        checks::{check_path, duration_within, resolve_server, within},
        tls::TlsPlan,
    },
    options::{Options, PeerProtocol, Transport, WebSocketEncoding},
    own_topics::OwnTopics,
};

/// Connections per source address: a third of the ephemeral ports stays free for others.
const CONNECTIONS_PER_SOURCE: usize = 20_000;
/// Connections opened per second unless `--ramp` says otherwise.
const RAMP_PER_S_DEFAULT: usize = 2_000;
/// Most unacknowledged connections during a ramp: within any server's backlog, so no SYN is dropped.
const CONNECTING_MAX: usize = 1_024;
/// Most unacknowledged connections during a spike: the backlog of one of tickcast's listeners.
const SPIKE_CONNECTING_MAX: usize = LISTEN_BACKLOG as usize;
/// Most source addresses: 127.0.0.1 to 127.0.3.232.
const SOURCES_MAX: usize = 1_000;
/// Most threads: more than any machine this runs on has cores to spare.
const THREADS_MAX: usize = 64;
/// Highest value of a count or a rate.
const COUNT_MAX: u64 = 1_000_000;
/// Longest window, warm-up and time to settle.
const TIME_NS_MAX: u64 = 1_000_000 * NS_PER_S;
/// Where a session of Socket.IO opens on a WebSocket.
const SOCKET_IO_PATH: &str = "/socket.io/?EIO=4&transport=websocket";

/// A load to run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub server: SocketAddr,
    pub connect_options: ConnectOptions,
    /// Protocol to speak instead of tickcast's; a WebSocket then takes only host and path from `connect_options`.
    pub peer: Option<PeerProtocol>,
    /// `None`: connections are plain.
    pub tls: Option<TlsPlan>,
    /// Whether messages may be compressed.
    pub deflate: bool,
    transport: Transport,
    pub connections: usize,
    /// Patterns of every connection; with `own_topics`, a description of them for the report.
    pub patterns: Vec<String>,
    pub own_topics: Option<OwnTopics>,
    pub subscription: SubscribeOptions,
    /// Connections that never read once they have subscribed.
    pub stalled: usize,
    pub churn_per_s: u32,
    pub sources: usize,
    pub ramp_per_s: usize,
    /// Open all connections at once and ignore the ramp.
    pub spike: bool,
    pub duration_ns: u64,
    pub warmup_ns: u64,
    /// Time allowed for every connection to receive what any had received at the end of the window.
    pub settle_ns: u64,
    pub expect_ticks: Option<u64>,
    pub threads: usize,
    pub pin: Option<usize>,
    pub server_pid: Option<u32>,
    pub json: bool,
    pub hgrm: Option<PathBuf>,
    pub svg: Option<PathBuf>,
    pub clients: Option<PathBuf>,
    pub max_loss: Option<u64>,
    pub max_p99_ns: Option<u64>,
}

impl Plan {
    /// Checks the options and fills in defaults.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn new(options: Options) -> Result<Plan, String> {
        let encoding = match (options.transport, options.encoding) {
            (Transport::Native | Transport::Nats | Transport::Redis, None) => WireFormat::TCP_NATIVE,
            (Transport::Sse, None) => WireFormat::EVENTS_JSON,
            (Transport::SocketIo, None) => WireFormat::SOCKET_IO,
            (Transport::Nchan | Transport::Websocket, None) => WireFormat::WEBSOCKET_RAW,
            (Transport::Ws, None | Some(WebSocketEncoding::Rkyv)) => WireFormat::WEBSOCKET_NATIVE,
            (Transport::Ws, Some(WebSocketEncoding::Json)) => WireFormat::WEBSOCKET_JSON,
            (Transport::Ws, Some(WebSocketEncoding::Raw)) => WireFormat::WEBSOCKET_RAW,
            (Transport::Ws, Some(WebSocketEncoding::Protobuf)) => WireFormat::WEBSOCKET_PROTOBUF,
            (_, Some(_)) => {
                return Err(
                    "--encoding needs --transport ws: the other transports have only one encoding".into()
                );
            }
        };
        let peer = match options.encoding {
            Some(WebSocketEncoding::Protobuf) => Some(PeerProtocol::Protobuf),
            _ => options.transport.peer(),
        };
        if options.no_batches && options.transport != Transport::Ws {
            return Err("--no-batches needs --transport ws".into());
        }
        if options.deflate && !options.transport.is_websocket() {
            return Err("--deflate needs a WebSocket: --transport ws, socketio, nchan or websocket".into());
        }
        let (path, patterns) = path_and_patterns(peer, &options)?;
        if peer.is_some() && options.policy.is_some() {
            return Err(
                "--policy needs --transport native or ws, with an encoding other than protobuf".into()
            );
        }
        let old = &options.old_spellings;
        let duration_ns = old.duration_ns_from_s.unwrap_or(options.duration_ns);
        let warmup_ns = old.warmup_ns_from_s.unwrap_or(options.warmup_ns);
        let max_p99_ns = old.max_p99_ns_from_us.or(options.max_p99_ns);
        within("--connections", options.connections as u64, 1, COUNT_MAX)?;
        within("--threads", options.threads as u64, 1, THREADS_MAX as u64)?;
        let ramp_per_s = options.ramp.unwrap_or(RAMP_PER_S_DEFAULT);
        within("--ramp", ramp_per_s as u64, 1, COUNT_MAX)?;
        duration_within("--duration", duration_ns, NS_PER_US, TIME_NS_MAX)?;
        duration_within("--warmup", warmup_ns, 0, TIME_NS_MAX)?;
        duration_within("--settle", options.settle_ns, 0, TIME_NS_MAX)?;
        within("--stalled", options.stalled as u64, 0, options.connections as u64)?;
        if options.stalled > 0 && options.expect_ticks.is_some() {
            return Err(
                "--stalled cannot be used with --expect-ticks: a stalled connection never has its ticks"
                    .into(),
            );
        }
        within("--churn-rate", options.churn_per_s.into(), 0, COUNT_MAX)?;
        if options.churn_per_s > 0 && options.expect_ticks.is_some() {
            return Err(
                "--churn-rate cannot be used with --expect-ticks: a reopened connection counts from 0".into(),
            );
        }
        if options.churn_per_s > 0 && options.stalled == options.connections {
            return Err("--churn-rate needs connections that are not stalled".into());
        }
        for (name, path) in
            [("--hgrm", &options.hgrm), ("--svg", &options.svg), ("--clients", &options.clients)]
        {
            path.as_deref().map_or(Ok(()), |path| check_directory(name, path))?;
        }
        let sources = options.sources.unwrap_or(options.connections.div_ceil(CONNECTIONS_PER_SOURCE));
        within("--sources", sources as u64, 1, SOURCES_MAX as u64)?;
        let has_sequences = peer.is_some() || encoding != WireFormat::WEBSOCKET_RAW;
        if !has_sequences && options.max_loss.is_some() && options.expect_ticks.is_none() {
            return Err("--max-loss needs --expect-ticks here: raw messages carry no sequences".into());
        }
        let token = match &options.token_file {
            Some(_) if peer.is_some() => return Err("--token-file is for tickcast servers".into()),
            Some(file) => Some(
                ClientToken::read(file).map_err(|text| format!("--token-file {}: {text}", file.display()))?,
            ),
            None => None,
        };
        let host = options.server.unwrap_or_else(|| options.transport.default_server().into());
        let server = resolve_server(&host)?;
        let tls = match options.tls {
            false => None,
            true => {
                let Options { ca, cert, key, insecure, .. } = options;
                Some(tls_plan(&host, encoding, peer, &TlsOptions { ca, cert, key, insecure })?)
            }
        };
        if options.sources.is_some() && !is_loopback_v4(server) {
            return Err(format!("--sources needs a server on 127.0.0.0/8, not {server}"));
        }
        Ok(Plan {
            server,
            connect_options: ConnectOptions {
                host,
                path,
                token,
                batches: !options.no_batches,
                ..ConnectOptions::new(encoding)
            },
            deflate: options.deflate,
            peer,
            tls,
            transport: options.transport,
            connections: options.connections,
            patterns,
            own_topics: options.subscribe_own,
            subscription: SubscribeOptions {
                delivery: Delivery { policy: options.policy, ..Delivery::default() },
                ..SubscribeOptions::default()
            },
            stalled: options.stalled,
            churn_per_s: options.churn_per_s,
            sources,
            ramp_per_s,
            spike: options.spike,
            duration_ns,
            warmup_ns: if options.expect_ticks.is_some() { 0 } else { warmup_ns },
            settle_ns: options.settle_ns,
            expect_ticks: options.expect_ticks,
            threads: options.threads.min(options.connections),
            pin: options.pin,
            server_pid: options.server_pid,
            json: options.json,
            hgrm: options.hgrm,
            svg: options.svg,
            clients: options.clients,
            max_loss: options.max_loss,
            max_p99_ns,
        })
    }

    /// Patterns that the `index`-th connection subscribes to.
    pub fn patterns_of(&self, index: usize) -> Cow<'_, [String]> {
        self.own_topics.map_or(Cow::Borrowed(&self.patterns), |own| Cow::Owned(own.topics(index)))
    }

    /// Subscriptions per connection.
    pub fn subscriptions(&self) -> usize {
        self.own_topics.map_or(self.patterns.len(), |own| own.each)
    }

    /// Name of transport and encoding in the report.
    pub fn transport_name(&self) -> Cow<'static, str> {
        let name = match (self.transport, self.connect_options.encoding) {
            (Transport::Nats, _) => "nats",
            (Transport::Redis, _) => "redis",
            (Transport::Sse, _) => "sse",
            (Transport::SocketIo, _) => "socketio",
            (Transport::Nchan, _) => "nchan",
            (Transport::Websocket, _) => "websocket",
            (_, WireFormat::WEBSOCKET_NATIVE) => "ws rkyv",
            (_, WireFormat::WEBSOCKET_JSON) => "ws json",
            (_, WireFormat::WEBSOCKET_RAW) => "ws raw",
            (_, WireFormat::WEBSOCKET_PROTOBUF) => "ws protobuf",
            (_, other) => other.name(),
        };
        let marks = [
            (self.deflate, ", deflated"),
            (!self.connect_options.batches, ", one tick a message"),
            (self.tls.is_some(), " over TLS"),
        ];
        let marks: String = marks.iter().filter(|(is_so, _)| *is_so).map(|(_, mark)| *mark).collect();
        if marks.is_empty() { name.into() } else { format!("{name}{marks}").into() }
    }

    /// Whether ticks carry sequences, which loss is computed from.
    pub fn has_sequences(&self) -> bool {
        self.peer.is_some() || self.connect_options.encoding != WireFormat::WEBSOCKET_RAW
    }

    /// Connections of one thread that may be unacknowledged at once.
    pub fn connecting_max(&self) -> usize {
        let all = if self.spike { SPIKE_CONNECTING_MAX } else { CONNECTING_MAX };
        (all / self.threads).max(1)
    }

    /// Whether the `index`-th connection, over all threads, never reads: the first ones do not.
    pub fn is_stalled(&self, index: usize) -> bool {
        index < self.stalled
    }

    /// Source address of the `index`-th connection; `None` leaves it to the kernel.
    pub fn source(&self, index: usize) -> Option<SocketAddr> {
        let first = u32::from(Ipv4Addr::LOCALHOST);
        let source = Ipv4Addr::from(first + (index % self.sources) as u32);
        is_loopback_v4(self.server).then_some(SocketAddr::new(IpAddr::V4(source), 0))
    }
}

/// How the connections to this host shake hands.
fn tls_plan(
    host: &str,
    encoding: WireFormat,
    peer: Option<PeerProtocol>,
    options: &TlsOptions,
) -> Result<TlsPlan, String> {
    let protocols: &[&[u8]] = match (peer, encoding) {
        (None, WireFormat::TCP_NATIVE) => &[ALPN_NATIVE],
        (None, _) => &[ALPN_HTTP],
        (Some(_), _) => &[],
    };
    TlsPlan::new(host, protocols, options)
}

/// The path to upgrade at, and the patterns to subscribe to.
///
/// Where the path selects the topics, it takes the place of a pattern in the report.
fn path_and_patterns(peer: Option<PeerProtocol>, options: &Options) -> Result<(String, Vec<String>), String> {
    if peer == Some(PeerProtocol::WebSocket) {
        if !options.subscribe.is_empty() || options.subscribe_own.is_some() {
            return Err(
                "--subscribe cannot be used with --transport nchan or websocket: select topics with --path"
                    .into(),
            );
        }
        let default = if options.transport == Transport::Nchan { "/sub" } else { "/ws" };
        let path = options.path.clone().unwrap_or_else(|| default.into());
        check_path(&path, "/sub?id=sim.0")?;
        return Ok((path.clone(), vec![path]));
    }
    let default = if peer == Some(PeerProtocol::SocketIo) { SOCKET_IO_PATH } else { "/ws" };
    if options.path.is_some() {
        return Err("--path needs --transport nchan or websocket".into());
    }
    if let Some(own) = options.subscribe_own {
        return Ok((default.into(), vec![own.to_string()]));
    }
    let patterns = if options.subscribe.is_empty() { vec![">".into()] } else { options.subscribe.clone() };
    if let Some(pattern) = patterns.iter().find(|p| p.is_empty() || p.len() > TOPIC_BYTES_MAX) {
        return Err(format!("--subscribe {pattern:?}: must have 1 to {TOPIC_BYTES_MAX} bytes"));
    }
    // In a peer's protocol a blank ends a name, and a control character may end the line.
    if let Some(pattern) =
        patterns.iter().find(|p| peer.is_some() && !p.bytes().all(|b| b > b' ' && b != 0x7f))
    {
        return Err(format!("--subscribe {pattern:?}: blanks and control characters are not allowed"));
    }
    Ok((default.into(), patterns))
}

fn is_loopback_v4(server: SocketAddr) -> bool {
    server.is_ipv4() && server.ip().is_loopback()
}

/// Checks a file's directory before the run rather than after it.
fn check_directory(option: &str, path: &Path) -> Result<(), String> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        Some(parent) => {
            Err(format!("{option} {}: the directory {} does not exist", path.display(), parent.display()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn plan(arguments: &str) -> Result<Plan, String> {
        let words = std::iter::once("c10k").chain(arguments.split_whitespace());
        Options::try_parse_from(words).map_err(|error| error.to_string()).and_then(Plan::new)
    }

    #[test]
    fn defaults_follow_from_the_transport_and_the_connections() {
        let native = plan("").unwrap();
        assert_eq!((native.server.port(), native.sources, native.threads), (9400, 1, 1));
        let ws = plan("--transport ws --connections 50000").unwrap();
        assert_eq!((ws.server.port(), ws.sources, ws.transport_name().as_ref()), (9480, 3, "ws rkyv"));
        assert_eq!(ws.source(4), Some("127.0.0.2:0".parse().unwrap()));
        let nchan = plan("--transport nchan").unwrap();
        assert_eq!((nchan.connect_options.path.as_str(), nchan.transport_name().as_ref()), ("/sub", "nchan"));
        let tls = plan("--tls --insecure").unwrap();
        assert_eq!(tls.transport_name(), "native over TLS");
        let socket_io = plan("--transport socketio --deflate").unwrap();
        assert_eq!(socket_io.connect_options.path, "/socket.io/?EIO=4&transport=websocket");
        assert_eq!(socket_io.transport_name(), "socketio, deflated");
        let protobuf = plan("--transport ws --encoding protobuf --no-batches").unwrap();
        assert_eq!(protobuf.transport_name(), "ws protobuf, one tick a message");
        assert!(plan("--transport websocket --path /a?b=c --max-loss 0").unwrap().has_sequences());
        assert_eq!(plan("--transport redis").unwrap().patterns, [">"]);
    }

    #[test]
    fn durations_take_units_and_old_spellings_keep_theirs() {
        let times = |arguments: &str| {
            let plan = plan(arguments).unwrap();
            (plan.duration_ns, plan.warmup_ns, plan.max_p99_ns)
        };
        assert_eq!(times(""), (10 * NS_PER_S, NS_PER_S, None));
        assert_eq!(
            times("--duration 1.5s --warmup 500ms --max-p99 2ms"),
            (1_500_000_000, 500_000_000, Some(2_000_000))
        );
        assert_eq!(
            times("--duration-s 8 --warm-up-s 0 --max-p99-us 250"),
            (8 * NS_PER_S, 0, Some(250_000)),
            "the units of version 0.1"
        );
        assert_eq!(times("--warm-up 2s").1, 2 * NS_PER_S);
        assert_eq!(plan("--churn-per-s 7").unwrap().churn_per_s, 7);
        let error = plan("--duration 10").unwrap_err();
        assert!(error.contains("--duration <DURATION>") && error.contains("10s"), "{error}");
    }

    #[test]
    fn old_spellings_are_not_in_the_help() {
        use clap::CommandFactory;
        let help = Options::command().render_long_help().to_string();
        for old in ["--duration-s", "--warm-up", "--max-p99-us", "--churn-per-s"] {
            assert!(!help.contains(old), "{old}");
        }
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
    fn invalid_combinations_are_refused() {
        for bad in [
            "--encoding json",
            "--connections 0",
            "--threads 0",
            "--sources 0",
            "--server nowhere",
            "--server 192.0.2.1:1 --sources 2",
            "--transport ws --encoding raw --max-loss 0",
            "--transport nats --encoding raw",
            "--transport ws --encoding protobuf --policy drop",
            "--no-batches",
            "--deflate",
            "--transport sse --deflate",
            "--transport socketio --path /a",
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
            "--ca a.pem",
            "--cert a.pem",
            "--tls --key a.pem",
            "--tls --cert no/such/file",
            "--insecure",
            "--tls --insecure --ca a.pem",
            "--tls --ca no/such/file",
            "--policy patience",
            "--churn-rate 1 --expect-ticks 9",
            "--churn-rate 1 --connections 4 --stalled 4",
            "--spike --ramp 100",
            "--duration 0",
            "--duration 12d",
            "--duration 1s --duration-s 1",
            "--svg /no/such/folder/a.svg",
            "--connections 4 plot --out a.svg a=b.hgrm",
            "plot --out a.svg",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }
}
