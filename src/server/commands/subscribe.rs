//! `tickcast sub`: ticks as lines.

use std::{
    io::{self, ErrorKind, Write},
    path::PathBuf,
    time::Duration,
};

use clap::ValueEnum;

use crate::commands::{
    CommandError,
    append::AppendFile,
    lines::{FILE_WRITE_BYTES_MAX, Lines, Notice, PIPE_WRITE_BYTES_MAX, Style},
    session_options,
};
use tickcast_client::{
    Address, Event, Positions, ReconnectOptions, ReconnectingClient, StreamEvent, SubscribeOptions,
};
use tickcast_proto::{
    Encoding,
    subscription::{self, BadOption, Delivery, From, Policy, Position},
};

/// Print the ticks of one or more patterns, a line each: topic, sequence, payload
#[derive(Clone, Debug, clap::Args)]
pub struct SubArgs {
    /// Topics to take: `*` matches one token, `>` the rest
    #[arg(required = true, value_name = "PATTERN")]
    pub patterns: Vec<String>,
    /// Print one JSON object a tick: topic, seq, ts, data (base64 where the payload is not JSON). What was left out
    /// and lost connections are objects with an "op" among them, instead of notices on standard error
    #[arg(long)]
    pub json: bool,
    /// Server: HOST:PORT, or ws://HOST:PORT/ws
    #[arg(long, value_name = "ADDRESS", env = "TICKCAST_SERVER", default_value = "127.0.0.1:9400")]
    pub server: String,
    /// Identity, if this client is to have one: decides which shard serves it, and may replace an older connection
    #[arg(long, value_name = "ID")]
    pub client: Option<String>,
    /// End after this many ticks
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// What becomes of ticks while this client is behind: conflate (the newest survives), drop (the oldest go) or
    /// disconnect (none goes, up to a bound) [default: the topic's]
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<Policy>,
    /// Ticks a second of each topic at most, 0.001 to 1000; the newest stands for the ones between
    #[arg(long = "max-rate", value_name = "RATE", value_parser = interval_us)]
    pub interval_us: Option<u32>,
    /// Where to begin; places in the --append file come before it
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = Beginning::Live)]
    pub from: Beginning,
    /// End when the connection is lost, instead of connecting again and going on after the last tick
    #[arg(long)]
    pub no_reconnect: bool,
    /// Append each tick to FILE instead of printing it, as a JSON line with its epoch. A start with the same FILE
    /// cuts off a torn last line and goes on after the ticks that are in it: each is there once, whenever this
    /// process was killed (a crash of the machine may lose the last ones). Reads the whole file at the start
    #[arg(long, value_name = "FILE")]
    pub append: Option<PathBuf>,
}

impl SubArgs {
    /// The defaults for one pattern: what `tickcast sub PATTERN --server SERVER` says.
    pub fn new(pattern: &str, server: &str) -> SubArgs {
        SubArgs {
            patterns: vec![pattern.into()],
            json: false,
            server: server.into(),
            client: None,
            count: None,
            policy: None,
            interval_us: None,
            from: Beginning::Live,
            no_reconnect: false,
            append: None,
        }
    }

    /// How the patterns are asked for, of a server with this epoch.
    fn options(&self, server_epoch: Option<u64>) -> SubscribeOptions {
        let from = match self.from {
            Beginning::Live => From::Live,
            Beginning::Latest => From::Latest,
            Beginning::Beginning => {
                From::Position(Position { epoch: server_epoch.unwrap_or(0), sequence: 0 })
            }
        };
        let interval_us = self.interval_us.unwrap_or(0);
        SubscribeOptions { delivery: Delivery { policy: self.policy, interval_us }, from }
    }
}

/// Where `tickcast sub` begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Beginning {
    /// With the next tick
    Live,
    /// With the newest tick of every topic and key
    Latest,
    /// With the first tick that the server keeps; what it no longer has is told as a gap
    Beginning,
}

fn interval_us(text: &str) -> Result<u32, BadOption> {
    subscription::interval_us(text.parse().map_err(|_| BadOption::MaxRate(text.into()))?)
}

/// Runs `tickcast sub` on standard output until the count is reached, the reader of the output goes, or the server
/// closes for good.
///
/// # Errors
/// [`CommandError`]; none when the output's reader went away, which is how `| head` ends it.
pub fn subscribe(args: &SubArgs) -> Result<(), CommandError> {
    subscribe_to(args, &mut io::stdout().lock(), &mut io::stderr().lock())
}

/// [`subscribe`] with the ticks to `out` and the notices to `notices`.
///
/// # Errors
/// As [`subscribe`].
pub fn subscribe_to(
    args: &SubArgs,
    out: &mut impl Write,
    notices: &mut impl Write,
) -> Result<(), CommandError> {
    if let Some(path) = &args.append {
        let AppendFile { mut file, positions } = AppendFile::open(path)?;
        let mut lines = Lines::new(&mut file, notices, Style::Append, FILE_WRITE_BYTES_MAX);
        return run(args, positions, &mut lines);
    }
    let style = if args.json { Style::Json } else { Style::Text };
    let mut lines = Lines::new(out, notices, style, PIPE_WRITE_BYTES_MAX);
    match run(args, Positions::new(), &mut lines) {
        Err(CommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn run(
    args: &SubArgs,
    positions: Positions,
    lines: &mut Lines<'_, impl Write, impl Write>,
) -> Result<(), CommandError> {
    if args.count == Some(0) {
        return Ok(());
    }
    let address = Address::parse(&args.server)?;
    // Raw carries no topic, and JSON no ingest time: both say less than a line needs.
    debug_assert!(
        matches!(address.encoding, Encoding::Native | Encoding::WebSocketRkyv),
        "what Address gives"
    );
    let options = ReconnectOptions { reconnect: !args.no_reconnect, ..ReconnectOptions::default() };
    let session_options = session_options(&address, &args.client);
    let mut client =
        ReconnectingClient::connect_with(&address, &session_options, options)?.with_positions(positions);
    let mut requests = Vec::with_capacity(args.patterns.len());
    for pattern in &args.patterns {
        let options = args.options(client.server_epoch());
        requests.push((client.subscribe_with(pattern, options)?, pattern));
    }
    let result = print(args.count, &mut client, &requests, lines);
    // What came before the end is written whatever the end was; but what failed half-way would be there twice.
    if !matches!(result, Err(CommandError::Output(_))) {
        lines.flush()?;
    }
    result?;
    // The ticks are printed: how the goodbye goes changes nothing.
    let _ = client.close();
    Ok(())
}

fn print(
    count: Option<u64>,
    client: &mut ReconnectingClient,
    requests: &[(u32, &String)],
    lines: &mut Lines<'_, impl Write, impl Write>,
) -> Result<(), CommandError> {
    let mut printed = 0u64;
    loop {
        // Nothing waits here while there is nothing to read.
        let timeout = if lines.is_empty() { None } else { Some(Duration::ZERO) };
        let event = match client.next_event(timeout)? {
            None => {
                lines.flush()?;
                continue;
            }
            Some(StreamEvent::Disconnected { reason, code, retry_in_ms }) => {
                lines.tell(&Notice::Disconnected { reason, code, retry_in_ms })?;
                lines.flush()?;
                continue;
            }
            Some(StreamEvent::Reconnected) => {
                lines.tell(&Notice::Reconnected)?;
                continue;
            }
            Some(StreamEvent::Event(event)) => event,
        };
        match event {
            Event::Tick(tick) => {
                if tick.missed > 0 {
                    let (from, to) = (tick.sequence.0 - tick.missed, tick.sequence.0);
                    lines.tell(&Notice::Missed { topic: tick.topic, epoch: tick.epoch, from, to })?;
                }
                lines.tick(&tick)?;
                printed += 1;
                if count == Some(printed) {
                    return Ok(());
                }
            }
            Event::Conflated { topic, epoch, from, to, .. } => {
                lines.tell(&Notice::Conflated { topic, epoch, from, to })?;
            }
            Event::Gap { topic, epoch, from, to, .. } => {
                lines.tell(&Notice::Gap { topic, epoch, from, to })?;
            }
            Event::Recovered { topic, topic_id, place, epoch, sequence, recovered } => {
                let exists = topic_id.0 != 0;
                lines.tell(&Notice::Recovered { topic, exists, place, epoch, sequence, recovered })?;
            }
            Event::Error { request, code, text } => {
                let what = requests.iter().find(|(number, _)| *number == request);
                let what = what.map_or_else(|| "a request".into(), |(_, pattern)| format!("{pattern:?}"));
                return Err(CommandError::Refused { what, text: text.to_owned(), code });
            }
            _ => {}
        }
    }
}
