//! `tickcast sub`: prints ticks, one line each.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use clap::ValueEnum;

use crate::{
    commands::{
        CommandError, ServerArgs,
        append::AppendFile,
        lines::{FILE_WRITE_BYTES_MAX, Format, LineWriter, Notice, PIPE_WRITE_BYTES_MAX},
    },
    process::reader,
};
use tickcast_client::{
    Event, Positions, ReconnectOptions, ReconnectingClient, StreamEvent, SubscribeOptions,
};
use tickcast_proto::{
    WireFormat,
    subscription::{self, Delivery, OptionError, Policy, Position, StartPosition},
};

/// How long `sub` waits for the first tick before it reports on a terminal that nothing has arrived.
const QUIET_AFTER: Duration = Duration::from_secs(2);

/// Print the ticks of one or more patterns, one line each: topic, sequence, payload
#[derive(Clone, Debug, clap::Args)]
pub struct SubArgs {
    /// Topics to subscribe to; `*` matches one token, `>` all remaining ones
    #[arg(required = true, value_name = "PATTERN")]
    pub patterns: Vec<String>,
    /// Print JSON: one object for each tick, skipped range and lost connection
    #[arg(long)]
    pub json: bool,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Exit after N ticks
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Policy while this client lags: conflate (to the last value), drop (the oldest ticks), keep (all, then close) or
    /// disconnect [default: the server's for the topic]
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<Policy>,
    /// Maximum rate of each topic, 0.001 to 1000; ticks in between are conflated
    #[arg(long = "max-rate", value_name = "TICKS_PER_S", value_parser = interval_us)]
    pub interval_us: Option<u32>,
    /// Start position; positions in the --append file take precedence
    #[arg(long, value_enum, value_name = "START", default_value_t = StartFrom::Live)]
    pub from: StartFrom,
    /// Exit when the connection is lost, instead of reconnecting and resuming
    #[arg(long)]
    pub no_reconnect: bool,
    /// Append ticks to FILE as JSON lines; if FILE exists, resume after its last tick
    #[arg(long, value_name = "FILE")]
    pub append: Option<PathBuf>,
}

impl SubArgs {
    /// The defaults of `tickcast sub PATTERN --server SERVER`.
    pub fn new(pattern: &str, server: &str) -> SubArgs {
        SubArgs {
            patterns: vec![pattern.into()],
            json: false,
            server: ServerArgs::new(server),
            count: None,
            policy: None,
            interval_us: None,
            from: StartFrom::Live,
            no_reconnect: false,
            append: None,
        }
    }

    /// The options of each subscription, for a server with this epoch.
    fn options(&self, server_epoch: Option<u64>) -> SubscribeOptions {
        let from = match self.from {
            StartFrom::Live => StartPosition::Live,
            StartFrom::Latest => StartPosition::Latest,
            StartFrom::Beginning => {
                StartPosition::After(Position { epoch: server_epoch.unwrap_or(0), sequence: 0 })
            }
        };
        let interval_us = self.interval_us.unwrap_or(0);
        SubscribeOptions { delivery: Delivery { policy: self.policy, interval_us }, from }
    }
}

/// Where `tickcast sub` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StartFrom {
    /// With the next tick
    Live,
    /// With the last tick of each topic and key
    Latest,
    /// With the first tick the server retains; older ones are reported as a gap
    Beginning,
}

fn interval_us(text: &str) -> Result<u32, OptionError> {
    subscription::interval_us(text.parse().map_err(|_| OptionError::MaxRate(text.into()))?)
}

/// Runs `tickcast sub` on standard output until the count is reached, the output's reader exits, or the server closes the
/// connection for good.
///
/// # Errors
/// [`CommandError`]. No error if the output's reader exits, as `| head` does.
pub fn subscribe(args: &SubArgs) -> Result<(), CommandError> {
    if args.append.is_none() {
        // Everything printed so far was written whole, so there is nothing to finish.
        reader::when_gone(io::stdout(), || std::process::exit(0)).map_err(CommandError::Output)?;
    }
    let quiet_after = io::stderr().is_terminal().then_some(QUIET_AFTER);
    subscribe_until(args, &mut io::stdout().lock(), &mut io::stderr().lock(), quiet_after)
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
    subscribe_until(args, out, notices, None)
}

/// [`subscribe_to`] with a notice if nothing arrives for `quiet_after`: the pattern may be misspelt.
pub(super) fn subscribe_until(
    args: &SubArgs,
    out: &mut impl Write,
    notices: &mut impl Write,
    quiet_after: Option<Duration>,
) -> Result<(), CommandError> {
    if let Some(path) = &args.append {
        let AppendFile { mut file, positions } = AppendFile::open(path)?;
        let mut lines = LineWriter::new(&mut file, notices, Format::Append, FILE_WRITE_BYTES_MAX);
        return run(args, positions, quiet_after, &mut lines);
    }
    let format = if args.json { Format::Json } else { Format::Text };
    let mut lines = LineWriter::new(out, notices, format, PIPE_WRITE_BYTES_MAX);
    match run(args, Positions::new(), quiet_after, &mut lines) {
        Err(CommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn run(
    args: &SubArgs,
    positions: Positions,
    quiet_after: Option<Duration>,
    lines: &mut LineWriter<'_, impl Write, impl Write>,
) -> Result<(), CommandError> {
    if args.count == Some(0) {
        return Ok(());
    }
    let (address, options) = args.server.parse()?;
    debug_assert!(
        matches!(address.encoding, WireFormat::TCP_NATIVE | WireFormat::WEBSOCKET_NATIVE),
        "Address gives these two; raw carries no topic for a line"
    );
    let reconnect = ReconnectOptions { reconnect: !args.no_reconnect, ..ReconnectOptions::default() };
    let mut client =
        ReconnectingClient::connect_with(&address, &options, reconnect)?.with_positions(positions);
    let mut requests = Vec::with_capacity(args.patterns.len());
    for pattern in &args.patterns {
        let options = args.options(client.server_epoch());
        requests.push((client.subscribe_with(pattern, options)?, pattern));
    }
    let result = print(args.count, quiet_after, &mut client, &requests, lines);
    // Write the remaining lines whatever ended the loop, except after a failed write, which would write lines twice.
    if !matches!(result, Err(CommandError::Output(_))) {
        lines.flush()?;
    }
    result?;
    // The ticks are printed, so a failed close changes nothing.
    let _ = client.close();
    Ok(())
}

fn print(
    count: Option<u64>,
    mut quiet_after: Option<Duration>,
    client: &mut ReconnectingClient,
    requests: &[(u32, &String)],
    lines: &mut LineWriter<'_, impl Write, impl Write>,
) -> Result<(), CommandError> {
    let (mut printed, mut is_connected) = (0u64, true);
    loop {
        // Before blocking, write the lines of all that was received.
        let timeout = if lines.is_empty() { quiet_after } else { Some(Duration::ZERO) };
        let event = match client.next_event(timeout)? {
            None if lines.is_empty() && !is_connected => continue,
            None if lines.is_empty() => {
                let patterns: Vec<&str> = requests.iter().map(|(_, pattern)| pattern.as_str()).collect();
                let patterns = patterns.join(" or ");
                lines.aside(&format!(
                    "no tick yet: no topic matches {patterns}, or nothing is published on it"
                ));
                quiet_after = None;
                continue;
            }
            None => {
                lines.flush()?;
                continue;
            }
            Some(StreamEvent::Disconnected { reason, code, retry_in_ms, .. }) => {
                is_connected = false;
                lines.notice(&Notice::Disconnected { reason, code, retry_in_ms })?;
                lines.flush()?;
                continue;
            }
            Some(StreamEvent::Reconnected) => {
                is_connected = true;
                lines.notice(&Notice::Reconnected)?;
                continue;
            }
            Some(StreamEvent::Event(event)) => event,
        };
        match event {
            Event::Tick(tick) => {
                quiet_after = None;
                if tick.missed > 0 {
                    let (from, to) = (tick.sequence.0 - tick.missed, tick.sequence.0);
                    lines.notice(&Notice::Missed { topic: tick.topic, epoch: tick.epoch, from, to })?;
                }
                lines.tick(&tick)?;
                printed += 1;
                if count == Some(printed) {
                    return Ok(());
                }
            }
            Event::Conflated { topic, epoch, from, to, count, .. } => {
                lines.notice(&Notice::Conflated { topic, epoch, from, to, count })?;
            }
            Event::Gap { topic, epoch, from, to, count, .. } => {
                lines.notice(&Notice::Gap { topic, epoch, from, to, count })?;
            }
            Event::Recovered { topic, topic_id, requested, epoch, sequence, recovered } => {
                let exists = topic_id.0 != 0;
                lines.notice(&Notice::Recovered { topic, exists, requested, epoch, sequence, recovered })?;
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
