//! Command line of the load client, as typed; the plan checks and interprets it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tickcast_proto::{
    subscription::Policy,
    units::{parse_duration_ns, parse_microseconds_ns, parse_seconds_ns},
};

use crate::own_topics::OwnTopics;

/// Load client for tickcast and its peers: opens many subscribers and measures latency, loss and cost
#[derive(Debug, Parser)]
#[command(name = "tickcast-c10k", version, args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Server to connect to [default: 127.0.0.1 and the transport's usual port]
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<String>,
    /// Protocol to speak; socketio also for other servers, the last four for peers fed by tickcast-feed
    #[arg(long, value_enum, value_name = "TRANSPORT", default_value_t = Transport::Native)]
    pub transport: Transport,
    /// Encoding for --transport ws [default: rkyv]
    #[arg(long, value_enum, value_name = "ENCODING")]
    pub encoding: Option<WebSocketEncoding>,
    /// With --transport ws: ask for one tick in each message, not for all that are sent at a time
    #[arg(long)]
    pub no_batches: bool,
    /// Over a WebSocket: accept compressed messages (permessage-deflate), and fail if the server offers none
    #[arg(long)]
    pub deflate: bool,
    /// Encrypt every connection
    #[arg(long)]
    pub tls: bool,
    /// With --tls: PEM file of the authorities that may sign the server's certificate [default: the system's]
    #[arg(long, value_name = "FILE", requires = "tls", conflicts_with = "insecure")]
    pub ca: Option<PathBuf>,
    /// With --tls: do not verify the server
    #[arg(long, requires = "tls")]
    pub insecure: bool,
    /// With --tls: PEM file of the certificate to show to servers that ask for one
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub cert: Option<PathBuf>,
    /// With --cert: PEM file of its private key [default: the file of --cert]
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// File with the token of every connection
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Connections to open
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub connections: usize,
    /// Pattern that every connection subscribes to, repeatable; not for nchan and websocket [default: every topic]
    #[arg(long, value_name = "PATTERN")]
    pub subscribe: Vec<String>,
    /// Subscribe each connection to N topics of its own out of sim.0 to sim.(OF-1) instead
    #[arg(long, value_name = "N/OF", conflicts_with_all = ["subscribe", "path"])]
    pub subscribe_own: Option<OwnTopics>,
    /// Path and query of the WebSocket handshake, for nchan and websocket [default: /sub, /ws]
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Loopback source addresses to connect from, 127.0.0.1 and up [default: one per 20000 connections]
    #[arg(long, value_name = "COUNT")]
    pub sources: Option<usize>,
    /// Connections to open per second [default: 2000]
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "spike")]
    pub ramp: Option<usize>,
    /// Open all connections at once, with at most 4096 of them not yet acknowledged
    #[arg(long)]
    pub spike: bool,
    /// Length of the measured window; with --expect-ticks, the time allowed
    #[arg(long = "duration", value_name = "DURATION", default_value = "10s", value_parser = parse_duration_ns)]
    pub duration_ns: u64,
    /// Time between the last acknowledgement and the measured window
    #[arg(
        long = "warmup",
        alias = "warm-up",
        value_name = "DURATION",
        default_value = "1s",
        value_parser = parse_duration_ns
    )]
    pub warmup_ns: u64,
    /// Longest wait after the window for every connection to receive what any had received
    #[arg(long = "settle", value_name = "DURATION", default_value = "2s", value_parser = parse_duration_ns)]
    pub settle_ns: u64,
    /// End once every connection has received N ticks; publish only after the line "subscribed"
    #[arg(long, value_name = "N")]
    pub expect_ticks: Option<u64>,
    /// Connections that subscribe and then never read; their loss is not counted
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub stalled: usize,
    /// Connections to reset and reopen per second during the measured window
    #[arg(long = "churn-rate", alias = "churn-per-s", value_name = "PER_SECOND", default_value_t = 0)]
    pub churn_per_s: u32,
    /// Slow-consumer policy to ask for: conflate, drop or disconnect [default: the server's, per topic]
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<Policy>,
    /// Threads to divide the connections over
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub threads: usize,
    /// Pin the first thread to this core and the others to those that follow [default: not pinned]
    #[arg(long, value_name = "CORE")]
    pub pin: Option<usize>,
    /// Server process whose CPU time and memory to measure
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Print the report as one JSON object; the keys are listed below
    #[arg(long)]
    pub json: bool,
    /// Write the latency histogram in microseconds as percentile text, for HdrHistogram plotters
    #[arg(long, value_name = "FILE.hgrm")]
    pub hgrm: Option<PathBuf>,
    /// Write a plot of latency by percentile, corrected and uncorrected
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
    /// Write one JSON line per client: index, source, ticks, conflated, dropped, gap, stalled, ended
    #[arg(long, value_name = "FILE")]
    pub clients: Option<PathBuf>,
    /// Fail if more ticks than this are lost
    #[arg(long, value_name = "TICKS")]
    pub max_loss: Option<u64>,
    /// Fail if the 99th percentile of latency is higher than this
    #[arg(long = "max-p99", value_name = "DURATION", value_parser = parse_duration_ns)]
    pub max_p99_ns: Option<u64>,
    #[command(flatten)]
    pub old_spellings: OldSpellings,
}

/// Options of version 0.1 whose names carry the unit.
#[derive(Debug, Args)]
pub struct OldSpellings {
    #[arg(long = "duration-s", hide = true, value_parser = parse_seconds_ns, conflicts_with = "duration_ns")]
    pub duration_ns_from_s: Option<u64>,
    #[arg(long = "warm-up-s", hide = true, value_parser = parse_seconds_ns, conflicts_with = "warmup_ns")]
    pub warmup_ns_from_s: Option<u64>,
    #[arg(long = "max-p99-us", hide = true, value_parser = parse_microseconds_ns, conflicts_with = "max_p99_ns")]
    pub max_p99_ns_from_us: Option<u64>,
}

/// Subcommands, which run instead of a load.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Plot several latency histograms (.hgrm) in one SVG file
    Plot(PlotArgs),
    /// Write the man pages into a directory, for packages
    #[command(hide = true)]
    Man {
        /// Directory to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Arguments of `plot`.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// File to write
    #[arg(long, value_name = "FILE.svg")]
    pub out: PathBuf,
    /// Title of the plot
    #[arg(long, value_name = "TEXT", default_value = "Latency by percentile")]
    pub title: String,
    /// Text below the title, such as the load and its command; repeatable, the first 3 lines are shown
    #[arg(long, value_name = "TEXT")]
    pub note: Vec<String>,
    /// Histograms to plot, at most 8: the name in the legend, and a file written by --hgrm
    #[arg(value_name = "NAME=FILE.hgrm", required = true)]
    pub lines: Vec<String>,
}

// Plain comments from here on: clap would turn doc comments of values into a paragraph of help each.

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    // tickcast's frames over TCP.
    Native,
    // tickcast's WebSocket.
    Ws,
    // tickcast's event stream. The ticks must have payloads as the simulator and tickcast-feed write them.
    Sse,
    // Socket.IO over a WebSocket: tickcast's, or a server whose event "tick" has payloads as tickcast-feed writes them.
    #[value(name = "socketio")]
    SocketIo,
    Nats,
    // Pub/sub. A `>` in a pattern becomes `*`, which stands for any number of tokens there.
    Redis,
    // Nchan's WebSocket subscriber.
    Nchan,
    // Any WebSocket whose messages are payloads as tickcast-feed writes them.
    Websocket,
}

impl Transport {
    /// The server to connect to if none is given.
    pub fn default_server(self) -> &'static str {
        match self {
            Transport::Native => "127.0.0.1:9400",
            Transport::Ws | Transport::Sse | Transport::SocketIo => "127.0.0.1:9480",
            Transport::Nats => "127.0.0.1:4222",
            Transport::Redis => "127.0.0.1:6379",
            Transport::Nchan | Transport::Websocket => "127.0.0.1:8080",
        }
    }

    /// Whether messages may be compressed.
    pub fn is_websocket(self) -> bool {
        matches!(self, Transport::Ws | Transport::SocketIo | Transport::Nchan | Transport::Websocket)
    }

    /// The protocol of a transport that has no client of tickcast's own.
    pub fn peer(self) -> Option<PeerProtocol> {
        match self {
            Transport::Native | Transport::Ws => None,
            Transport::Sse => Some(PeerProtocol::EventStream),
            Transport::SocketIo => Some(PeerProtocol::SocketIo),
            Transport::Nats => Some(PeerProtocol::Nats),
            Transport::Redis => Some(PeerProtocol::Redis),
            Transport::Nchan | Transport::Websocket => Some(PeerProtocol::WebSocket),
        }
    }
}

/// Protocol that has no client of tickcast's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerProtocol {
    /// NATS client protocol.
    Nats,
    /// Redis pub/sub, RESP2.
    Redis,
    /// A WebSocket whose messages are bare payloads.
    WebSocket,
    /// tickcast's Server-Sent Events.
    EventStream,
    /// Socket.IO over a WebSocket.
    SocketIo,
    /// tickcast's protobuf messages.
    Protobuf,
}

/// Encoding of a tickcast WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WebSocketEncoding {
    // Native frames in binary messages.
    Rkyv,
    // One JSON object per tick.
    Json,
    // The payload alone; latency is read from the simulator's payload.
    Raw,
    // Messages of tickcast.proto. The ticks must have payloads as the simulator and tickcast-feed write them.
    Protobuf,
}
