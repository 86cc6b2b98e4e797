//! What `tickcast sub` writes: ticks and notices as whole lines.

use std::io::Write;

use crate::commands::CommandError;
use tickcast_client::Tick;
use tickcast_proto::{
    codec::json,
    frame::{FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, TickParts},
    records::TickTimes,
    subscription::Position,
};

/// Bytes of whole lines handed to the kernel in one write: what a pipe takes whole or not at all (pipe(7),
/// PIPE_BUF), so that a signal cuts no line.
pub(super) const PIPE_WRITE_BYTES_MAX: usize = 4_096;
/// The same for a file, whose reader knows what to do about a torn line.
pub(super) const FILE_WRITE_BYTES_MAX: usize = 64 << 10;

/// How ticks are written, and where notices go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// For people; notices go to standard error.
    Text,
    /// One JSON object a tick, notices among them.
    Json,
    /// As JSON with the epoch, so that the file tells where to go on; what is only about the connection goes to
    /// standard error.
    Append,
}

/// What is said besides ticks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notice<'a> {
    Conflated { topic: &'a str, epoch: u64, from: u64, to: u64 },
    Gap { topic: &'a str, epoch: u64, from: u64, to: u64 },
    Missed { topic: &'a str, epoch: u64, from: u64, to: u64 },
    Recovered { topic: &'a str, exists: bool, place: Position, epoch: u64, sequence: u64, recovered: bool },
    Disconnected { reason: &'a str, code: u16, retry_in_ms: u64 },
    Reconnected,
}

/// Whole lines, collected while ticks come in one read.
pub(super) struct Lines<'a, W, N> {
    out: &'a mut W,
    notices: &'a mut N,
    lines: Vec<u8>,
    style: Style,
    write_bytes_max: usize,
}

impl<'a, W: Write, N: Write> Lines<'a, W, N> {
    pub(super) fn new(
        out: &'a mut W,
        notices: &'a mut N,
        style: Style,
        write_bytes_max: usize,
    ) -> Lines<'a, W, N> {
        Lines { out, notices, lines: Vec::new(), style, write_bytes_max }
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn tick(&mut self, tick: &Tick<'_>) -> Result<(), CommandError> {
        let start = self.lines.len();
        match self.style {
            Style::Text => write_text(&mut self.lines, tick),
            Style::Json => write_json(&mut self.lines, tick, &json::tick_prefix(tick.topic)),
            Style::Append => {
                let (topic, epoch) = (json::literal(tick.topic), tick.epoch);
                let prefix = format!("{{\"topic\":{topic},\"epoch\":{epoch},\"seq\":");
                write_json(&mut self.lines, tick, prefix.as_bytes());
            }
        }
        self.end_line(start)
    }

    pub(super) fn tell(&mut self, notice: &Notice<'_>) -> Result<(), CommandError> {
        let is_aside = match (self.style, notice) {
            (Style::Text, Notice::Recovered { recovered: true, .. }) => return Ok(()),
            (Style::Append, Notice::Recovered { recovered: true, .. }) => return Ok(()),
            (Style::Text, _) => true,
            (Style::Append, Notice::Disconnected { .. } | Notice::Reconnected) => true,
            _ => false,
        };
        if is_aside {
            // Where standard error is closed nobody reads notices.
            let _ = writeln!(self.notices, "{}", text(notice));
            return Ok(());
        }
        let start = self.lines.len();
        self.lines.extend_from_slice(object(notice).as_bytes());
        self.end_line(start)
    }

    pub(super) fn flush(&mut self) -> Result<(), CommandError> {
        if self.lines.is_empty() {
            return Ok(());
        }
        self.write_lines(self.lines.len())
    }

    /// Ends the line that begins at `start`, and writes what has become enough.
    fn end_line(&mut self, start: usize) -> Result<(), CommandError> {
        self.lines.push(b'\n');
        if self.lines.len() > self.write_bytes_max && start > 0 {
            self.write_lines(start)?;
        }
        if self.lines.len() > self.write_bytes_max {
            self.write_lines(self.lines.len())?;
        }
        Ok(())
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

/// A notice for a person.
fn text(notice: &Notice<'_>) -> String {
    match *notice {
        Notice::Conflated { topic, from, to, .. } => {
            format!("conflated: {topic} [{from}, {to}): the next tick stands for {}", to - from)
        }
        Notice::Gap { topic, from, to, .. } => {
            format!("gap: {topic} [{from}, {to}): {} ticks lost", to - from)
        }
        Notice::Missed { topic, from, to, .. } => {
            format!(
                "missed: {topic} [{from}, {to}): {} ticks neither came nor were announced as lost",
                to - from
            )
        }
        Notice::Recovered { topic, recovered: true, .. } => format!("recovered: {topic}"),
        Notice::Recovered { topic, place, epoch, .. } if place.epoch == epoch => {
            format!("not recovered: {topic} after {}: the newest ticks follow", place.sequence)
        }
        Notice::Recovered { topic, place, epoch, .. } => format!(
            "not recovered: {topic} after {} of epoch {}: the server counts anew (epoch {epoch}), and how many \
             were lost is not known",
            place.sequence, place.epoch
        ),
        Notice::Disconnected { reason, retry_in_ms, .. } => {
            format!("disconnected: {reason}; next attempt in {retry_in_ms} ms")
        }
        Notice::Reconnected => "reconnected".into(),
    }
}

/// A notice as a JSON object.
fn object(notice: &Notice<'_>) -> String {
    let range = |op: &str, topic: &str, epoch: u64, from: u64, to: u64| {
        let topic = json::literal(topic);
        format!("{{\"op\":\"{op}\",\"topic\":{topic},\"epoch\":{epoch},\"from\":{from},\"to\":{to}}}")
    };
    match *notice {
        Notice::Conflated { topic, epoch, from, to } => range("conflated", topic, epoch, from, to),
        Notice::Gap { topic, epoch, from, to } => range("gap", topic, epoch, from, to),
        Notice::Missed { topic, epoch, from, to } => range("missed", topic, epoch, from, to),
        Notice::Recovered { topic, exists, place, epoch, sequence, recovered } => format!(
            "{{\"op\":\"recovered\",\"topic\":{},\"exists\":{exists},\"epoch\":{epoch},\"sequence\":{sequence},\
             \"recovered\":{recovered},\"from_epoch\":{},\"from_sequence\":{}}}",
            json::literal(topic),
            place.epoch,
            place.sequence
        ),
        Notice::Disconnected { reason, code, retry_in_ms } => format!(
            "{{\"op\":\"disconnected\",\"reason\":{},\"code\":{code},\"retry_in_ms\":{retry_in_ms}}}",
            json::literal(reason)
        ),
        Notice::Reconnected => "{\"op\":\"reconnected\"}".into(),
    }
}

fn write_json(line: &mut Vec<u8>, tick: &Tick<'_>, prefix: &[u8]) {
    let start = line.len();
    let is_json = tick.payload_is_json || json::is_json(tick.payload);
    let times = TickTimes { producer_time_ns: tick.producer_time_ns, ingest_time_ns: tick.ingest_time_ns };
    let flags = if is_json { FLAG_PAYLOAD_JSON } else { 0 } | if tick.snapshot { FLAG_SNAPSHOT } else { 0 };
    let parts = TickParts { flags, times, key: tick.key, payload: tick.payload, ..TickParts::default() };
    json::encode_tick(line, prefix, tick.sequence.0, &parts);
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
