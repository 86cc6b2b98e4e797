//! `tickcast sub`: ticks as lines.

use std::{
    io::{self, ErrorKind, Write},
    time::Duration,
};

use crate::{
    client::{
        Address, ClientError, Event, Tick,
        commands::{CommandError, connect},
    },
    tick::TickTimes,
    wire::{
        Encoding,
        frame::{FLAG_PAYLOAD_JSON, TickParts},
        json,
    },
};

/// Bytes of whole lines handed to the kernel in one write: what a pipe takes whole or not at all (pipe(7),
/// PIPE_BUF), so that a signal cuts no line.
const WRITE_BYTES_MAX: usize = 4_096;

/// Print the ticks of one or more patterns, a line each: topic, sequence, payload
#[derive(Clone, Debug, clap::Args)]
pub struct SubArgs {
    /// Topics to take: `*` matches one token, `>` the rest
    #[arg(required = true, value_name = "PATTERN")]
    pub patterns: Vec<String>,
    /// Print one JSON object a tick: topic, seq, ts, data (base64 where the payload is not JSON)
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
}

/// Runs `tickcast sub` on standard output until the count is reached, the reader of the output goes, or the server
/// closes.
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
    let mut printer = Printer { out, lines: Vec::new(), json: args.json };
    match run(args, &mut printer, notices) {
        Err(CommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn run(
    args: &SubArgs,
    printer: &mut Printer<'_, impl Write>,
    notices: &mut impl Write,
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
    let mut client = connect(&address, &args.client)?;
    let mut requests = Vec::with_capacity(args.patterns.len());
    for pattern in &args.patterns {
        requests.push((client.subscribe(pattern)?, pattern));
    }
    let mut printed = 0u64;
    let (mut close_code, mut close_text) = (0, String::new());
    loop {
        let event = match client.next_event(Some(Duration::ZERO))? {
            Some(event) => event,
            None => {
                printer.flush()?;
                // Waits without taking: the next turn of the loop takes.
                client.wait_readable()?;
                continue;
            }
        };
        match event {
            Event::Tick(tick) => {
                if tick.missed > 0 {
                    let (from, to) = (tick.sequence.0 - tick.missed, tick.sequence.0);
                    let _ =
                        writeln!(notices, "gap: {} [{from}, {to}): {} ticks lost", tick.topic, tick.missed);
                }
                printer.print(&tick)?;
                printed += 1;
                if args.count == Some(printed) {
                    break;
                }
            }
            Event::Error { request, code, text } => {
                let what = requests.iter().find(|(number, _)| *number == request);
                let what = what.map_or_else(|| "a request".into(), |(_, pattern)| format!("{pattern:?}"));
                return Err(CommandError::Refused { what, text: text.to_owned(), code });
            }
            Event::Closing { code, text, .. } => (close_code, close_text) = (code, text.to_owned()),
            Event::Closed => {
                printer.flush()?;
                return Err(ClientError::Closed { code: close_code, text: close_text }.into());
            }
            _ => {}
        }
    }
    printer.flush()?;
    // The ticks are printed: how the goodbye goes changes nothing.
    let _ = client.close();
    Ok(())
}

/// Whole lines, collected while ticks come in one read.
struct Printer<'a, W> {
    out: &'a mut W,
    lines: Vec<u8>,
    json: bool,
}

impl<W: Write> Printer<'_, W> {
    fn print(&mut self, tick: &Tick<'_>) -> Result<(), CommandError> {
        let start = self.lines.len();
        if self.json {
            write_json(&mut self.lines, tick);
        } else {
            write_text(&mut self.lines, tick);
        }
        self.lines.push(b'\n');
        if self.lines.len() > WRITE_BYTES_MAX && start > 0 {
            self.write_lines(start)?;
        }
        if self.lines.len() > WRITE_BYTES_MAX {
            self.write_lines(self.lines.len())?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CommandError> {
        if self.lines.is_empty() {
            return Ok(());
        }
        self.write_lines(self.lines.len())
    }

    fn write_lines(&mut self, end: usize) -> Result<(), CommandError> {
        self.out
            .write_all(&self.lines[..end])
            .and_then(|()| self.out.flush())
            .map_err(CommandError::Output)?;
        self.lines.drain(..end);
        Ok(())
    }
}

fn write_json(line: &mut Vec<u8>, tick: &Tick<'_>) {
    let start = line.len();
    let is_json = tick.payload_is_json || json::is_json(tick.payload);
    let prefix = json::tick_prefix(tick.topic);
    let times = TickTimes { producer_time_ns: tick.producer_time_ns, ingest_time_ns: tick.ingest_time_ns };
    let flags = if is_json { FLAG_PAYLOAD_JSON } else { 0 };
    let parts = TickParts { flags, times, payload: tick.payload, ..TickParts::default() };
    json::encode_tick(line, &prefix, tick.sequence.0, &parts);
    // A JSON payload may stand over several lines; its line breaks are blanks between tokens and nothing else.
    for byte in &mut line[start..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// Control characters are escaped: a payload neither breaks its line nor commands the terminal.
fn write_text(line: &mut Vec<u8>, tick: &Tick<'_>) {
    // Writing to a Vec cannot fail.
    let _ = write!(line, "{} {} ", tick.topic, tick.sequence.0);
    for chunk in tick.payload.utf8_chunks() {
        for character in chunk.valid().chars() {
            let _ = match character {
                '\t' => write!(line, "\t"),
                c if c.is_control() => write!(line, "{}", c.escape_default()),
                c => write!(line, "{c}"),
            };
        }
        if !chunk.invalid().is_empty() {
            let _ = write!(line, "{}", char::REPLACEMENT_CHARACTER);
        }
    }
}
