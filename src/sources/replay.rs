//! Replays a capture: NDJSON, one `{"at_ns": N, "topic": "a.b", "data": ...}` per line, in order of `at_ns`, with an optional
//! `"key"`. If a ring is full, the replay waits for room.
//! `at_ns` counts from any point in time, such as 1970. The first tick is due at once; every other tick is due later by the
//! difference between its `at_ns` and the first. A tick whose `at_ns` is smaller than its predecessor's is published at once.

mod capture;

use std::{borrow::Cow, fmt, io, path::PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::capture::{Capture, CaptureKind};
use super::{
    Source, SourceContext, SourceError,
    health::{Health, Waiting},
    kind::{Configured, Flags, OptionChecks, SourceOptions, Starts},
};
use crate::{
    LOG_TARGET_REPLAY,
    limits::{REPLAY_LINE_BYTES_MAX, REPLAY_WAIT_SAID_NS},
};
use tickcast_common::{
    byte_order_mark::{self, UTF16},
    clock,
    values::Speed,
};
use tickcast_core::metrics::counters::Counter;
use tickcast_proto::{
    codec::json::{
        self,
        diagnosis::{self, Form, Shape},
    },
    pattern,
};

/// The name that selects standard input.
const STDIN: &str = "-";
/// Ticks of a replay at full speed between two readings of the clock for its status.
const HEARD_TICKS: u64 = 256;
/// Numbers that many programs write but JSON does not have.
const NOT_NUMBERS: [&str; 4] = ["NaN", "nan", "Infinity", "-Infinity"];

/// A `[[source]]` of kind `replay`.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[group(id = "replay")]
#[command(next_help_heading = "Replay")]
pub struct Options {
    /// Replay a capture: lines of {"at_ns", "topic", "data"}, also gzip, zstd or a pipe; -: standard input
    #[arg(id = "replay_file", long = "replay", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replay this many times as fast as recorded, or max
    #[arg(id = "replay_speed", long = "speed", value_name = "FACTOR", default_value_t = Options::default().speed)]
    speed: Speed,
    /// Start over at the end
    #[arg(id = "replay_loop", long = "loop")]
    #[serde(rename = "loop")]
    again: bool,
    /// Wait for this many clients to subscribe before the first tick
    #[arg(id = "replay_wait", long = "replay-wait", value_name = "N", default_value_t = Options::default().wait)]
    wait: u64,
    /// On a bad line: skip (log and count it) or stop (end the server and name the line)
    #[arg(id = "replay_bad_lines", long = "replay-bad-lines", value_enum, value_name = "ACTION", hide_possible_values = true, default_value_t = Options::default().bad_lines)]
    bad_lines: BadLines,
}

impl Default for Options {
    fn default() -> Options {
        Options { file: None, speed: Speed::Factor(1.0), again: false, wait: 0, bad_lines: BadLines::Skip }
    }
}

/// What to do about a bad line in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadLines {
    /// Stop the server and name the line.
    Stop,
    /// Log and skip the line.
    Skip,
}

impl SourceOptions for Options {
    const KIND: &'static str = "replay";
    const REQUIRED: &'static [&'static str] = &["file"];
    const FLAGS: Option<Flags> = Some(Flags::of::<Options>(Starts::Instead, "replay_"));

    /// Opens the capture if it is a file, so that an unreadable file is reported at the start.
    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        let file = self.file.unwrap_or_default();
        let file = if file.as_os_str() == STDIN { PathBuf::from("/dev/stdin") } else { file };
        match CaptureKind::of(&file) {
            Ok(CaptureKind::Pipe) if self.again => {
                checks.refuse("loop", "a pipe can be read only once: replay a file to repeat it");
            }
            Ok(CaptureKind::Pipe) => {}
            Ok(CaptureKind::File) => checks.readable("file", &file),
            Err(error) => checks.file_error("file", &file, &error),
        }
        let settings = Settings {
            file,
            speed: match self.speed {
                Speed::Factor(factor) => Some(factor),
                Speed::Max => None,
            },
            again: self.again,
            wait_clients: self.wait,
            skip_bad_lines: self.bad_lines == BadLines::Skip,
            payload_bytes_max: checks.bounds.payload_bytes_max,
        };
        Some(Configured::new(">", settings))
    }
}

/// A configured replay.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    /// The capture.
    file: PathBuf,
    /// Factor of the capture's own speed; `None`: as fast as the shards accept ticks.
    speed: Option<f64>,
    /// Whether to start over after the end.
    again: bool,
    /// Subscribed sessions to wait for before the first tick.
    wait_clients: u64,
    /// Whether to skip and log a bad line, instead of stopping the server.
    skip_bad_lines: bool,
    /// Largest payload, in bytes, so that a tick fits into a frame.
    payload_bytes_max: usize,
}

/// Progress of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Ticks published.
    ticks: u64,
    /// Bad lines skipped.
    bad_lines: u64,
}

/// Why a replay cannot continue.
#[derive(Debug)]
enum ReplayError {
    /// The file cannot be read.
    Io(PathBuf, io::Error),
    /// A line is not a tick. Contains its number, from 1, and what is wrong with it.
    BadLine(PathBuf, u64, String),
    /// The file is UTF-16.
    Utf16(PathBuf),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Io(file, error) => write!(f, "replay: {}: {error}", file.display()),
            ReplayError::BadLine(file, line, text) => write!(
                f,
                "replay: {} line {line}: {text} (correct the line, or pass --replay-bad-lines skip)",
                file.display()
            ),
            ReplayError::Utf16(file) => write!(f, "replay: {}: {UTF16}", file.display()),
        }
    }
}

impl std::error::Error for ReplayError {}

/// The fields of a line. Others are ignored.
#[derive(Deserialize)]
struct Fields<'a> {
    // A number, or a string from programs whose numbers are too short for it.
    #[serde(borrow)]
    at_ns: &'a RawValue,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default, borrow)]
    key: Option<&'a RawValue>,
}

/// [`Fields`], for errors.
const LINE: Shape = Shape {
    text: "line",
    object: "line",
    is_line: true,
    fields: &[("at_ns", Form::Any), ("topic", Form::Text), ("data", Form::Any), ("key", Form::Any)],
    required: &[("at_ns", ""), ("topic", ""), ("data", "")],
    has_others: true,
};

/// One line of a capture.
struct Line<'a> {
    at_ns: u64,
    topic: Cow<'a, str>,
    /// 0: none.
    key: u64,
    data: &'a str,
}

impl Source for Settings {
    /// Publishes until the end of the capture. A tick's producer time is when it is due. Ticks published before an error stay
    /// published.
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let mut progress = Progress::default();
        if !context.wait_for_subscribers(self.wait_clients) {
            return Ok(());
        }
        loop {
            let before = progress.ticks;
            let replayed = self.replay_once(context, &mut progress);
            context.flush_waiting();
            replayed?;
            if context.is_stopping() {
                return Ok(());
            }
            // Repeating a file without a tick would spin.
            if !self.again || progress.ticks == before {
                let Progress { ticks, bad_lines } = progress;
                ::log::info!("replay done: {ticks} ticks, {bad_lines} lines skipped");
                return Ok(());
            }
        }
    }
}

impl Settings {
    fn replay_once(&self, context: &mut SourceContext, progress: &mut Progress) -> Result<(), ReplayError> {
        let failed = |error| ReplayError::Io(self.file.clone(), error);
        let mut capture = Capture::open(&self.file, context).map_err(failed)?;
        let (mut bytes, mut number) = (Vec::new(), 0);
        let mut pace = None;
        loop {
            if capture.may_wait() {
                context.flush_waiting();
            }
            match capture.read_line(&mut bytes) {
                // When the server stops, the data read from a pipe may end within a line.
                _ if context.is_stopping() => return Ok(()),
                Ok(true) => number += 1,
                Ok(false) => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
            if number == 1 && is_utf16(&bytes) {
                return Err(ReplayError::Utf16(self.file.clone()));
            }
            // On every line: captures may be concatenated.
            let bytes = byte_order_mark::strip(&bytes);
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let line = match parse(bytes, self.payload_bytes_max) {
                Ok(line) => line,
                Err(text) if self.skip_bad_lines => {
                    let file = self.file.display();
                    ::log::warn!(target: LOG_TARGET_REPLAY, "replay: {file} line {number} skipped: {text}");
                    context.status.counters().add(Counter::SourceLinesSkipped, 1);
                    progress.bad_lines += 1;
                    continue;
                }
                Err(text) => return Err(ReplayError::BadLine(self.file.clone(), number, text)),
            };
            let mut due_realtime_ns = clock::realtime_ns();
            if let Some(speed) = self.speed {
                let pace = pace.get_or_insert_with(|| Pace::start(line.at_ns, speed));
                due_realtime_ns = pace.due_ns(pace.start_realtime_ns, line.at_ns);
                let due_ns = pace.due_ns(pace.start_ns, line.at_ns);
                if !self.wait_until(due_ns, number, context) {
                    return Ok(());
                }
            }
            if !context.publish_waiting(&line.topic, line.key, due_realtime_ns, line.data.as_bytes()) {
                return Ok(());
            }
            progress.ticks += 1;
            if progress.ticks.is_multiple_of(HEARD_TICKS) || self.speed.is_some() {
                context.note_heard();
            }
        }
    }

    /// Waits until a line is due. Returns `false` if the server stops.
    fn wait_until(&self, due_ns: u64, number: u64, context: &mut SourceContext) -> bool {
        let wait_ns = due_ns.saturating_sub(clock::monotonic_ns());
        if wait_ns > 0 {
            context.flush_waiting();
        }
        let is_said = wait_ns > REPLAY_WAIT_SAID_NS;
        if is_said {
            let minutes = wait_ns / 60_000_000_000;
            let (file, hours, minutes) = (self.file.display(), minutes / 60, minutes % 60);
            ::log::info!("replay: {file} line {number} is due in {hours} h {minutes} min, by its at_ns");
            context.set_health(Health::Waiting(Waiting::Line));
        }
        let is_due = context.sleep_until(due_ns);
        if is_said {
            context.set_health(Health::Running);
        }
        is_due
    }
}

/// When ticks are due: the first at the start.
struct Pace {
    first_at_ns: u64,
    speed: f64,
    start_ns: u64,
    start_realtime_ns: u64,
}

impl Pace {
    fn start(first_at_ns: u64, speed: f64) -> Pace {
        let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
        Pace { first_at_ns, speed, start_ns, start_realtime_ns }
    }

    /// When a tick is due, by the clock that read `start_ns` at the start.
    fn due_ns(&self, start_ns: u64, at_ns: u64) -> u64 {
        let after_ns = at_ns.saturating_sub(self.first_at_ns);
        start_ns.saturating_add((after_ns as f64 / self.speed) as u64)
    }
}

/// Whether a capture's first line is UTF-16, with or without a byte order mark.
fn is_utf16(line: &[u8]) -> bool {
    byte_order_mark::is_utf16(line) || line.starts_with(b"{\0") || line.starts_with(b"\0{")
}

fn parse(bytes: &[u8], payload_bytes_max: usize) -> Result<Line<'_>, String> {
    if bytes.len() > REPLAY_LINE_BYTES_MAX {
        return Err(format!("longer than {REPLAY_LINE_BYTES_MAX} bytes"));
    }
    if is_utf16(bytes) {
        return Err(UTF16.to_owned());
    }
    let fields: Fields<'_> = serde_json::from_slice(bytes).map_err(|error| described(bytes, &error))?;
    let topic = fields.topic;
    pattern::check_topic(topic.as_bytes()).map_err(|error| format!("topic {topic:?} {error}"))?;
    let data = fields.data.get();
    if data.len() > payload_bytes_max {
        return Err(format!("data of {} bytes, {payload_bytes_max} allowed", data.len()));
    }
    let at_ns = time_ns(fields.at_ns.get())
        .ok_or_else(|| format!("at_ns {:.40} is not a number of nanoseconds", fields.at_ns.get()))?;
    let key = match fields.key.map(RawValue::get) {
        None => 0,
        Some(key) => json::whole_number(key)
            .ok_or_else(|| format!("key {key:.40} is not an integer from 0 to 2^64 - 1"))?,
    };
    Ok(Line { at_ns, topic, key, data })
}

/// Parses a time: programs that compute it in floating point write 1.7e18.
fn time_ns(text: &str) -> Option<u64> {
    let unquoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let fits = |ns: &f64| (0.0..u64::MAX as f64).contains(ns);
    json::whole_number(text).or_else(|| unquoted.parse().ok().filter(fits).map(|ns: f64| ns as u64))
}

/// What is wrong with a line that is not JSON with the right fields.
fn described(line: &[u8], error: &serde_json::Error) -> String {
    // The column is that of the first unexpected byte, or of the byte before.
    let near = |number: &&&str| {
        let from = error.column().saturating_sub(number.len() + 1);
        let to = (error.column() + number.len()).min(line.len());
        line.get(from..to)
            .is_some_and(|part| part.windows(number.len()).any(|part| part == number.as_bytes()))
    };
    if error.is_syntax()
        && let Some(number) = NOT_NUMBERS.iter().rev().find(near)
    {
        return format!("{number} at column {} is not JSON: write null", error.column());
    }
    match std::str::from_utf8(line) {
        Ok(text) => diagnosis::explain(text, &LINE),
        Err(error) => format!("the line is not UTF-8 at column {}", error.valid_up_to() + 1),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::common::Common;
    use crate::{
        Lanes, SourceStatus, StopFlag,
        health::{Health, Waiting},
        waits::{eventually, joined},
    };
    use tickcast_core::{
        mesh::ring::{Doorbell, frame_ring},
        metrics::counters::Counter,
    };
    use tickcast_proto::ids::ShardId;

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, part) in [
            (&b"{"[..], "the line is not JSON: it ends too early"),
            (b"[1]", "a line is one JSON object, not [1]"),
            (br#"{"at_ns":1,"topic":"a"}"#, "\"data\" is missing"),
            (br#"{"at_ns":1,"topic":7,"data":1}"#, "\"topic\" must be a string, not 7"),
            (br#"{"at_ns":1,"topic":"a","data":1,"data":2}"#, "\"data\" is given twice"),
            (br#"{"at_ns":1,"topic":"a","data":1} 2"#, "something follows it"),
            (br#"{"at_ns":-1,"topic":"a","data":1}"#, "at_ns -1 is not a number of nanoseconds"),
            (br#"{"at_ns":1,"topic":"a","data":tru}"#, "the line is not JSON at column 34: \"}\""),
            (br#"{"at_ns":1,"topic":"a b","data":1}"#, "whitespace"),
            (br#"{"at_ns":1,"topic":"a","data":"xxxxxxxx"}"#, "allowed"),
            (b"\xff", "the line is not UTF-8 at column 1"),
            (b"\xff\xfe{\0", "UTF-16, convert it with iconv -f UTF-16 -t UTF-8"),
            (b"{\0\"\0", "UTF-16"),
            (b"\0{\0\"", "UTF-16"),
        ] {
            let error = parse(line, 8).err().expect("an error");
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn keys_and_times_are_numbers_or_strings_of_them() {
        let line = |fields: &str| format!(r#"{{"topic":"a","data":[1, 2],{fields}}}"#);
        for (fields, at_ns, key) in [
            (r#""at_ns":0"#, 0, 0),
            (r#""at_ns":0,"key":null"#, 0, 0),
            (r#""at_ns":1793322000000000001,"key":7"#, 1_793_322_000_000_000_001, 7),
            (r#""at_ns":"1793322000000000001","key":"7""#, 1_793_322_000_000_000_001, 7),
            (r#""at_ns":1.5e3,"key":9007199254740993"#, 1_500, 9_007_199_254_740_993),
            (r#""at_ns":2.0,"key":"18446744073709551615","more":[]"#, 2, u64::MAX),
        ] {
            let line = line(fields);
            let parsed = parse(line.as_bytes(), 8).map_err(|error| format!("{fields}: {error}")).unwrap();
            assert_eq!((parsed.at_ns, parsed.key, parsed.data), (at_ns, key, "[1, 2]"), "{fields}");
        }
        for (fields, part) in [
            (r#""at_ns":1,"key":-1"#, "key -1 is not"),
            (r#""at_ns":1,"key":1.5"#, "key 1.5 is not"),
            (r#""at_ns":1,"key":"AAPL""#, "key \"AAPL\" is not"),
            (r#""at_ns":1,"key":"+7""#, "key \"+7\" is not"),
            (r#""at_ns":1,"key":"""#, "key \"\" is not"),
            (r#""at_ns":1,"key":18446744073709551616"#, "key 18446744073709551616 is not"),
            (r#""at_ns":"2026-01-01T00:00:00Z""#, "at_ns \"2026-01-01T00:00:00Z\" is not"),
            (r#""at_ns":1e99"#, "at_ns 1e99 is not"),
            (r#""at_ns":null"#, "at_ns null is not"),
        ] {
            let error = parse(line(fields).as_bytes(), 8).err().expect("an error");
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_many_programs_write_for_no_number_is_named() {
        for number in ["NaN", "-NaN", "nan", "Infinity", "-Infinity"] {
            for data in [number.to_owned(), format!("{{\"p\":{number}}}"), format!("[1, {number} ]")] {
                let line = format!(r#"{{"at_ns":1,"topic":"a","data":{data}}}"#);
                let error = parse(line.as_bytes(), 100).err().expect("an error");
                let name = number.strip_prefix("-N").map_or(number, |_| "NaN");
                assert!(error.starts_with(&format!("{name} at column ")), "{data}: {error}");
                assert!(error.ends_with("is not JSON: write null"), "{data}: {error}");
            }
        }
        let other = parse(br#"{"at_ns":1,"topic":"NaN","data":{"NaN":"NaN","x":x}}"#, 100).err().unwrap();
        assert!(other.contains("at column") && !other.contains("write null"), "{other}");
    }

    #[test]
    fn times_count_from_the_first_line_at_the_speed_asked_for() {
        const FIRST: u64 = 1_793_322_000_000_000_000;
        let pace = Pace { first_at_ns: FIRST, speed: 2.0, start_ns: 500, start_realtime_ns: 70 };
        for (at_ns, due_ns) in
            [(FIRST, 500), (FIRST + 1_000, 1_000), (FIRST - 1, 500), (0, 500), (FIRST + 2, 501)]
        {
            assert_eq!(pace.due_ns(pace.start_ns, at_ns), due_ns, "{at_ns}");
        }
        let slow = Pace { speed: 1e-300, ..pace };
        assert_eq!(slow.due_ns(slow.start_ns, u64::MAX), u64::MAX);
    }

    /// Replays a file of `lines` ticks to a full ring that nobody reads, and stops the replay once it waits. Returns its
    /// progress.
    fn replay_until_it_waits(lines: usize) -> Progress {
        let file = std::env::temp_dir().join(format!("tickcast-waits-{}-{lines}.ndjson", std::process::id()));
        std::fs::write(&file, "{\"at_ns\":0,\"topic\":\"a\",\"data\":1}\n".repeat(lines)).unwrap();
        let settings = Settings {
            file: file.clone(),
            speed: None,
            again: true,
            wait_clients: 0,
            skip_bad_lines: false,
            payload_bytes_max: 8,
        };
        let (producer, _consumer) = frame_ring(1 << 12);
        let mut lanes = Lanes::new([(producer, Arc::new(Doorbell::new(|| {})))].into_iter());
        // The ring is full from the start: otherwise a first wait would end once a flush has moved what fits.
        (0..100).for_each(|_| lanes.publish("a", 0, 0, b"1").unwrap());
        assert!(lanes.flush().is_err());
        let (status, stop) = (SourceStatus::new("replay", Common::named("replay")), StopFlag::default());
        let mut context = SourceContext::new(lanes, status.clone(), Vec::new(), stop.clone());
        let mut progress = Progress::default();
        let replay = std::thread::spawn(move || {
            let replayed = settings.replay_once(&mut context, &mut progress);
            context.flush_waiting();
            replayed.unwrap();
            progress
        });
        eventually("a wait for room", || status.health() == Health::Waiting(Waiting::Room(ShardId(0))));
        stop.set();
        let progress = joined("the replay", replay);
        assert_eq!(status.counters().value(Counter::SourceWaits), 1, "a wait is counted once");
        std::fs::remove_file(&file).unwrap();
        progress
    }

    #[test]
    fn waiting_for_a_ring_that_nobody_reads_is_counted_once() {
        assert_eq!(replay_until_it_waits(100).ticks, 100, "all are staged; it waits at the end of the file");
        let ticks = replay_until_it_waits(10_000).ticks;
        assert!((100..10_000).contains(&ticks), "it waits before a tick that finds no room: {ticks}");
    }
}
