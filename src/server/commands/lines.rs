//! The output of `tickcast sub`: ticks and notices as whole lines.

use std::io::Write;

use crate::commands::{CommandError, counted};
use tickcast_client::Tick;
use tickcast_proto::{
    codec::json,
    frame::{FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, TickParts},
    records::TickTimes,
    subscription::Position,
};

/// Bytes of whole lines in one write: PIPE_BUF, which a pipe accepts entirely or not at all (pipe(7)), so that a signal
/// cuts no line.
pub(super) const PIPE_WRITE_BYTES_MAX: usize = 4_096;
/// Bytes in one write to a file, whose reader handles an incomplete line.
pub(super) const FILE_WRITE_BYTES_MAX: usize = 64 << 10;

/// How ticks are written, and where notices go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// For people; notices go to standard error.
    Text,
    /// JSON objects, one for each tick or notice.
    Json,
    /// As JSON, with the epoch that a resume needs. Notices about the connection alone go to standard error.
    Append,
}

/// A report about something other than a tick.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notice<'a> {
    Conflated {
        topic: &'a str,
        epoch: u64,
        from: u64,
        to: u64,
        count: u64,
    },
    Gap {
        topic: &'a str,
        epoch: u64,
        from: u64,
        to: u64,
        count: u64,
    },
    Missed {
        topic: &'a str,
        epoch: u64,
        from: u64,
        to: u64,
    },
    Recovered {
        topic: &'a str,
        exists: bool,
        requested: Position,
        epoch: u64,
        sequence: u64,
        recovered: bool,
    },
    Disconnected {
        reason: &'a str,
        code: u16,
        retry_in_ms: u64,
    },
    Reconnected,
}

/// Collects the lines of one read and writes them together.
pub(super) struct LineWriter<'a, W, N> {
    out: &'a mut W,
    notices: &'a mut N,
    lines: Vec<u8>,
    format: Format,
    write_bytes_max: usize,
}

impl<'a, W: Write, N: Write> LineWriter<'a, W, N> {
    pub(super) fn new(
        out: &'a mut W,
        notices: &'a mut N,
        format: Format,
        write_bytes_max: usize,
    ) -> LineWriter<'a, W, N> {
        LineWriter { out, notices, lines: Vec::new(), format, write_bytes_max }
    }

    /// Whether no line is waiting to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn tick(&mut self, tick: &Tick<'_>) -> Result<(), CommandError> {
        let start = self.lines.len();
        match self.format {
            Format::Text => write_text(&mut self.lines, tick),
            Format::Json => write_json(&mut self.lines, tick, &json::tick_prefix(tick.topic)),
            Format::Append => {
                let (topic, epoch) = (json::literal(tick.topic), tick.epoch);
                let prefix = format!("{{\"topic\":{topic},\"epoch\":{epoch},\"seq\":");
                write_json(&mut self.lines, tick, prefix.as_bytes());
            }
        }
        self.end_line(start)
    }

    pub(super) fn notice(&mut self, notice: &Notice<'_>) -> Result<(), CommandError> {
        let is_aside = match (self.format, notice) {
            (Format::Text, Notice::Recovered { recovered: true, .. }) => return Ok(()),
            (Format::Append, Notice::Recovered { recovered: true, .. }) => return Ok(()),
            (Format::Text, _) => true,
            (Format::Append, Notice::Disconnected { .. } | Notice::Reconnected) => true,
            _ => false,
        };
        if is_aside {
            self.aside(&notice_text(notice));
            return Ok(());
        }
        let start = self.lines.len();
        self.lines.extend_from_slice(notice_json(notice).as_bytes());
        self.end_line(start)
    }

    /// Writes a line that is not part of the output.
    pub(super) fn aside(&mut self, text: &str) {
        // If standard error is closed, nobody reads notices.
        let _ = writeln!(self.notices, "{text}");
    }

    pub(super) fn flush(&mut self) -> Result<(), CommandError> {
        if self.lines.is_empty() {
            return Ok(());
        }
        self.write_lines(self.lines.len())
    }

    /// Ends the line that starts at `start`, and writes once enough bytes are waiting.
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

/// A notice for people.
fn notice_text(notice: &Notice<'_>) -> String {
    match *notice {
        Notice::Conflated { topic, from, to, count, .. } => {
            format!("conflated: {topic} [{from}, {to}): {} replaced by the next one", counted(count, "tick"))
        }
        Notice::Gap { topic, from, to, count, .. } => {
            format!("gap: {topic} [{from}, {to}): {} lost", counted(count, "tick"))
        }
        Notice::Missed { topic, from, to, .. } => {
            let ticks = counted(to - from, "tick");
            format!("missed: {topic} [{from}, {to}): {ticks} neither delivered nor announced as lost")
        }
        Notice::Recovered { topic, recovered: true, .. } => format!("recovered: {topic}"),
        Notice::Recovered { topic, requested, epoch, .. } if requested.epoch == epoch => {
            format!("not recovered: {topic} after {}: the last ticks follow", requested.sequence)
        }
        Notice::Recovered { topic, requested, epoch, .. } => format!(
            "not recovered: {topic} after {} of epoch {}: sequences restarted in epoch {epoch}; how many ticks were \
             lost is unknown",
            requested.sequence, requested.epoch
        ),
        Notice::Disconnected { reason, retry_in_ms, .. } => {
            format!("disconnected: {reason}; reconnecting in {retry_in_ms} ms")
        }
        Notice::Reconnected => "reconnected".into(),
    }
}

/// A notice as a JSON object.
fn notice_json(notice: &Notice<'_>) -> String {
    let range = |op: &str, topic: &str, epoch: u64, from: u64, to: u64| {
        let topic = json::literal(topic);
        format!("{{\"op\":\"{op}\",\"topic\":{topic},\"epoch\":{epoch},\"from\":{from},\"to\":{to}}}")
    };
    match *notice {
        Notice::Conflated { topic, epoch, from, to, .. } => range("conflated", topic, epoch, from, to),
        Notice::Gap { topic, epoch, from, to, .. } => range("gap", topic, epoch, from, to),
        Notice::Missed { topic, epoch, from, to } => range("missed", topic, epoch, from, to),
        Notice::Recovered { topic, exists, requested, epoch, sequence, recovered } => format!(
            "{{\"op\":\"recovered\",\"topic\":{},\"exists\":{exists},\"epoch\":{epoch},\"sequence\":{sequence},\
             \"recovered\":{recovered},\"from_epoch\":{},\"from_sequence\":{}}}",
            json::literal(topic),
            requested.epoch,
            requested.sequence
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
    // A JSON payload may span several lines. JSON strings contain no raw line breaks, so these are white space.
    for byte in &mut line[start..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// Writes a tick for people. Control characters are escaped, so that a payload can neither break its line nor control the
/// terminal.
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
