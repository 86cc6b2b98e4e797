//! Replays a capture: NDJSON, one `{"at_ns": N, "topic": "a.b", "data": ...}` a line, in order of `at_ns`.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::PathBuf,
    sync::Arc,
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{FULL_NAP_NS, Lanes, StopFlag, sleep_until, wait_for_subscribers};
use crate::{clock, limits::REPLAY_LINE_BYTES_MAX, logging};
use tickcast_core::metrics::counters::{Counter, Counters};
use tickcast_proto::pattern;

/// What is replayed, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The capture.
    pub file: PathBuf,
    /// Times the capture's own pace; `None`: as fast as the shards take it.
    pub speed: Option<f64>,
    /// From the start again after the end.
    pub again: bool,
    /// Sessions that must have subscribed before the first tick.
    pub wait_clients: u64,
    /// Whether a bad line is skipped (and logged) or ends the server.
    pub skip_bad_lines: bool,
    /// Largest payload, bytes: a tick must fit a frame.
    pub payload_bytes_max: usize,
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Ticks published.
    pub ticks: u64,
    /// Lines skipped.
    pub bad_lines: u64,
}

/// Why a replay cannot go on.
#[derive(Debug)]
pub enum ReplayError {
    /// The file cannot be read.
    Io(PathBuf, io::Error),
    /// A line is not a tick: its number, from 1, and what is wrong.
    BadLine(PathBuf, u64, String),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Io(file, error) => write!(f, "replay: {}: {error}", file.display()),
            ReplayError::BadLine(file, line, text) => write!(
                f,
                "replay: {} line {line}: {text} (mend the line, or pass --replay-bad-lines skip)",
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

/// Replays until the end, or until the server stops. Ticks carry the time they are due; a full ring is waited for, which
/// `own` counts.
///
/// # Errors
/// [`ReplayError`]; what was published before it stays published.
pub fn run(
    settings: &Settings,
    mut lanes: Lanes,
    own: &Counters,
    shards: &[Arc<Counters>],
    stop: &StopFlag,
) -> Result<Summary, ReplayError> {
    let mut summary = Summary::default();
    if !wait_for_subscribers(settings.wait_clients, shards, stop) {
        return Ok(summary);
    }
    loop {
        let before = summary.ticks;
        replay_once(settings, &mut lanes, own, stop, &mut summary)?;
        flush_all(&mut lanes, own, stop);
        // A file without a single tick would spin.
        if !settings.again || stop.is_set() || summary.ticks == before {
            return Ok(summary);
        }
    }
}

fn replay_once(
    settings: &Settings,
    lanes: &mut Lanes,
    own: &Counters,
    stop: &StopFlag,
    summary: &mut Summary,
) -> Result<(), ReplayError> {
    let failed = |error| ReplayError::Io(settings.file.clone(), error);
    let mut reader = BufReader::with_capacity(1 << 16, File::open(&settings.file).map_err(failed)?);
    let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
    let (mut bytes, mut number) = (Vec::new(), 0);
    while read_line(&mut reader, &mut bytes).map_err(failed)? {
        number += 1;
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let line = match parse(&bytes, settings.payload_bytes_max) {
            Ok(line) => line,
            Err(text) if settings.skip_bad_lines => {
                let file = settings.file.display();
                ::log::warn!(target: logging::peer::REPLAY, "replay: {file} line {number} skipped: {text}");
                summary.bad_lines += 1;
                continue;
            }
            Err(text) => {
                flush_all(lanes, own, stop);
                return Err(ReplayError::BadLine(settings.file.clone(), number, text));
            }
        };
        let mut due_realtime_ns = clock::realtime_ns();
        if let Some(speed) = settings.speed {
            let after_ns = (line.at_ns as f64 / speed) as u64;
            due_realtime_ns = start_realtime_ns.saturating_add(after_ns);
            if clock::monotonic_ns() < start_ns.saturating_add(after_ns) {
                flush_all(lanes, own, stop);
            }
            if !sleep_until(start_ns.saturating_add(after_ns), stop) {
                return Ok(());
            }
        }
        let payload = line.data.get().as_bytes();
        let mut waits = false;
        while !lanes.publish(&line.topic, due_realtime_ns, clock::realtime_ns(), payload) {
            if stop.is_set() {
                return Ok(());
            }
            if !lanes.flush() {
                if !std::mem::replace(&mut waits, true) {
                    own.add(Counter::ReplayWaits, 1);
                }
                clock::sleep_ns(FULL_NAP_NS);
            }
        }
        summary.ticks += 1;
    }
    Ok(())
}

/// Flushes until everything went, or the server stops.
fn flush_all(lanes: &mut Lanes, own: &Counters, stop: &StopFlag) {
    if !lanes.flush() && !stop.is_set() {
        own.add(Counter::ReplayWaits, 1);
        lanes.flush_all(stop);
    }
}

/// Reads one line into `bytes`, at most one byte more than a line may have. Returns `false` at the end.
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
    let line: Line<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    pattern::check_topic(line.topic.as_bytes()).map_err(|error| format!("topic {:?} {error}", line.topic))?;
    if line.data.get().len() > payload_bytes_max {
        return Err(format!("data of {} bytes, {payload_bytes_max} allowed", line.data.get().len()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, part) in [
            (&b"{"[..], "EOF"),
            (br#"{"at_ns":1,"topic":"a"}"#, "data"),
            (br#"{"at_ns":-1,"topic":"a","data":1}"#, "invalid"),
            (br#"{"at_ns":1,"topic":"a b","data":1}"#, "blank"),
            (br#"{"at_ns":1,"topic":"a","data":"xxxxxxxx"}"#, "allowed"),
            (b"\xff", "expected"),
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

    #[test]
    fn waiting_for_a_ring_that_nobody_reads_is_counted_once() {
        let file = std::env::temp_dir().join(format!("tickcast-waits-{}.ndjson", std::process::id()));
        // The first waits at its end, the second before a tick.
        for lines in [100, 10_000] {
            std::fs::write(&file, "{\"at_ns\":0,\"topic\":\"a\",\"data\":1}\n".repeat(lines)).unwrap();
            let settings = Settings {
                file: file.clone(),
                speed: None,
                again: true,
                wait_clients: 0,
                skip_bad_lines: false,
                payload_bytes_max: 8,
            };
            let (producer, _consumer) = tickcast_core::mesh::ring::frame_ring(1 << 12);
            let bell = Arc::new(tickcast_core::mesh::ring::Doorbell::new(|| {}));
            let mut lanes = Lanes::new([(producer, bell)].into_iter());
            // The ring is full from the start: a flush that moved a part of the stage would make room for another wait.
            (0..100).for_each(|_| assert!(lanes.publish("a", 0, 0, b"1")));
            assert!(!lanes.flush());
            let (own, stop) = (Counters::default(), StopFlag::default());
            let summary = std::thread::scope(|scope| {
                let replay = scope.spawn(|| run(&settings, lanes, &own, &[], &stop).unwrap());
                while own.value(Counter::ReplayWaits) == 0 {
                    std::thread::yield_now();
                }
                stop.set();
                replay.join().unwrap()
            });
            assert!((100..10_000).contains(&summary.ticks), "{summary:?}");
            assert_eq!(own.value(Counter::ReplayWaits), 1);
        }
        std::fs::remove_file(&file).unwrap();
    }
}
