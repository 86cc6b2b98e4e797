//! Replays a capture: NDJSON, one `{"at_ns": N, "topic": "a.b", "data": ...}` per line, in order of `at_ns`. A tick that finds
//! a ring full waits for room.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Source, SourceContext, SourceError,
    kind::{Configured, Flags, OptionChecks, SourceOptions, Starts},
};
use crate::{byte_order_mark, cli::values::Speed, clock, limits::REPLAY_LINE_BYTES_MAX, logging};
use tickcast_proto::pattern;

/// A `[[source]]` of kind `replay`.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[group(id = "replay")]
#[command(next_help_heading = "Replay")]
pub struct Options {
    /// Replay a capture instead of simulating: lines of {"at_ns", "topic", "data"}
    #[arg(id = "replay_file", long = "replay", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Multiple of the capture's own pace, or max
    #[arg(id = "replay_speed", long = "speed", value_name = "FACTOR", default_value_t = Options::default().speed)]
    speed: Speed,
    /// Start again at the end
    #[arg(id = "replay_loop", long = "loop")]
    #[serde(rename = "loop")]
    again: bool,
    /// Wait for this many clients to subscribe before the first tick
    #[arg(id = "replay_wait", long = "replay-wait", value_name = "N", default_value_t = Options::default().wait)]
    wait: u64,
    /// What a bad line does: stop (the server ends and names the line) or skip (it is logged)
    #[arg(id = "replay_bad_lines", long = "replay-bad-lines", value_enum, value_name = "ACTION", hide_possible_values = true, default_value_t = Options::default().bad_lines)]
    bad_lines: BadLines,
}

impl Default for Options {
    fn default() -> Options {
        Options { file: None, speed: Speed::Factor(1.0), again: false, wait: 0, bad_lines: BadLines::Stop }
    }
}

/// What a bad line in a capture does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadLines {
    /// The server ends and names the line.
    Stop,
    /// The line is logged and skipped.
    Skip,
}

impl SourceOptions for Options {
    const KIND: &'static str = "replay";
    const REQUIRED: &'static [&'static str] = &["file"];
    const FLAGS: Option<Flags> = Some(Flags::of::<Options>(Starts::Instead, "replay_"));

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        let file = self.file.unwrap_or_default();
        checks.regular_file("file", &file);
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
    /// Factor of the capture's own speed; `None`: as fast as the shards take the ticks.
    speed: Option<f64>,
    /// Starts again after the end.
    again: bool,
    /// Subscribed sessions to wait for before the first tick.
    wait_clients: u64,
    /// Skips and logs a bad line, instead of stopping the server.
    skip_bad_lines: bool,
    /// Largest payload, bytes, so that a tick fits a frame.
    payload_bytes_max: usize,
}

/// What a replay has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Ticks published.
    ticks: u64,
    /// Bad lines skipped.
    bad_lines: u64,
}

/// Why a replay cannot go on.
#[derive(Debug)]
enum ReplayError {
    /// The file cannot be read.
    Io(PathBuf, io::Error),
    /// A line is not a tick: its number, from 1, and what is wrong with it.
    BadLine(PathBuf, u64, String),
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
        }
    }
}

impl std::error::Error for ReplayError {}

/// One line of a capture.
#[derive(Deserialize)]
struct Line<'a> {
    at_ns: u64,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Source for Settings {
    /// Publishes until the end of the capture. A tick's producer time is when it is due. What was published before an error
    /// stays published.
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
        let mut reader = BufReader::with_capacity(1 << 16, File::open(&self.file).map_err(failed)?);
        let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
        let (mut bytes, mut number) = (Vec::new(), 0);
        while read_line(&mut reader, &mut bytes).map_err(failed)? {
            number += 1;
            // On every line: captures may be concatenated.
            let bytes = byte_order_mark::strip(&bytes);
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let line = match parse(bytes, self.payload_bytes_max) {
                Ok(line) => line,
                Err(text) if self.skip_bad_lines => {
                    let file = self.file.display();
                    ::log::warn!(target: logging::peer::REPLAY, "replay: {file} line {number} skipped: {text}");
                    progress.bad_lines += 1;
                    continue;
                }
                Err(text) => return Err(ReplayError::BadLine(self.file.clone(), number, text)),
            };
            let mut due_realtime_ns = clock::realtime_ns();
            if let Some(speed) = self.speed {
                let after_ns = (line.at_ns as f64 / speed) as u64;
                due_realtime_ns = start_realtime_ns.saturating_add(after_ns);
                if clock::monotonic_ns() < start_ns.saturating_add(after_ns) {
                    context.flush_waiting();
                }
                if !context.sleep_until(start_ns.saturating_add(after_ns)) {
                    return Ok(());
                }
            }
            if !context.publish_waiting(&line.topic, due_realtime_ns, line.data.get()) {
                return Ok(());
            }
            progress.ticks += 1;
        }
        Ok(())
    }
}

/// Reads one line into `bytes`, truncated to one byte more than a line may have. Returns `false` at the end.
fn read_line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.clear();
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Ok(!bytes.is_empty());
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        let room = (REPLAY_LINE_BYTES_MAX + 1).saturating_sub(bytes.len());
        bytes.extend_from_slice(&available[..taken.min(room)]);
        reader.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn parse(bytes: &[u8], payload_bytes_max: usize) -> Result<Line<'_>, String> {
    if bytes.len() > REPLAY_LINE_BYTES_MAX {
        return Err(format!("longer than {REPLAY_LINE_BYTES_MAX} bytes"));
    }
    if byte_order_mark::is_utf16(bytes) {
        return Err(
            "the text is UTF-16; convert the capture to UTF-8, with iconv -f UTF-16 -t UTF-8".to_owned()
        );
    }
    let line: Line<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    pattern::check_topic(line.topic.as_bytes()).map_err(|error| format!("topic {:?} {error}", line.topic))?;
    if line.data.get().len() > payload_bytes_max {
        return Err(format!("data of {} bytes, {payload_bytes_max} allowed", line.data.get().len()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sources::{
        Lanes, SourceStatus, StopFlag,
        health::{Health, Waiting},
    };
    use tickcast_core::{
        mesh::ring::{Doorbell, frame_ring},
        metrics::counters::Counter,
    };
    use tickcast_proto::ids::ShardId;

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, part) in [
            (&b"{"[..], "EOF"),
            (br#"{"at_ns":1,"topic":"a"}"#, "data"),
            (br#"{"at_ns":-1,"topic":"a","data":1}"#, "invalid"),
            (br#"{"at_ns":1,"topic":"a b","data":1}"#, "whitespace"),
            (br#"{"at_ns":1,"topic":"a","data":"xxxxxxxx"}"#, "allowed"),
            (b"\xff", "expected"),
            (b"\xff\xfe{\0", "UTF-16"),
        ] {
            let error = parse(line, 8).err().expect("an error");
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn lines_are_read_whole_and_overlong_ones_are_cut_and_refused() {
        let long = vec![b'x'; REPLAY_LINE_BYTES_MAX * 2];
        let input = [b"one\n", &long[..], b"\nlast"].concat();
        let mut reader = BufReader::with_capacity(64, &input[..]);
        let mut bytes = Vec::new();
        assert!(read_line(&mut reader, &mut bytes).unwrap() && bytes == b"one\n");
        assert!(read_line(&mut reader, &mut bytes).unwrap() && bytes.len() == REPLAY_LINE_BYTES_MAX + 1);
        assert!(parse(&bytes, 10).err().expect("an error").contains("longer"));
        assert!(read_line(&mut reader, &mut bytes).unwrap() && bytes == b"last");
        assert!(!read_line(&mut reader, &mut bytes).unwrap());
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
        // The ring is full from the start: else a first wait would end once a flush has moved what fits.
        (0..100).for_each(|_| lanes.publish("a", 0, 0, b"1").unwrap());
        assert!(lanes.flush().is_err());
        let (status, stop) = (SourceStatus::new("replay"), StopFlag::default());
        let mut context = SourceContext::new(lanes, status.clone(), Vec::new(), stop.clone());
        let mut progress = Progress::default();
        std::thread::scope(|scope| {
            let replay = scope.spawn(|| {
                let replayed = settings.replay_once(&mut context, &mut progress);
                context.flush_waiting();
                replayed.unwrap();
            });
            while status.health() != Health::Waiting(Waiting::Room(ShardId(0))) {
                std::thread::yield_now();
            }
            stop.set();
            replay.join().unwrap();
        });
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
