use std::{fs, net::TcpStream, path::Path, thread};

use super::*;
use tickcast_client::scripted_server::{Peer, serve};
use tickcast_ecg::{info::Info, synthetic::Synthetic};
use tickcast_proto::{
    features::Features,
    frame::{self, Kind, TickParts},
    ids::{Sequence, TopicId},
    records::TickTimes,
};

fn args(server: &str, json: bool) -> EcgArgs {
    EcgArgs { server: ServerArgs::new(server), json, file: None, signal: 0, annotations: None }
}

fn file_args(file: &Path, annotations: Option<PathBuf>, json: bool) -> EcgArgs {
    EcgArgs { file: Some(file.into()), annotations, ..args("", json) }
}

fn run(args: &EcgArgs) -> Result<String, CommandError> {
    let mut out = Vec::new();
    process_file(args, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// Scores a record against its annotations; `first` is how the output begins.
fn assert_scored(file: &Path, beats: usize, first: &str) {
    let annotations = file.with_extension("atr");
    let text = run(&file_args(file, Some(annotations.clone()), false)).unwrap();
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("sensitivity ") && last.ends_with(&format!("expert's {beats} beats")), "{last}");
    assert!(text.starts_with(first), "{text:.200}");
    let json = run(&file_args(file, Some(annotations), true)).unwrap();
    let score: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!(score["op"], "score");
    assert!(score["sensitivity_percent"].as_f64().unwrap() >= 99.5, "{score}");
    assert!(score["positive_predictivity_percent"].as_f64().unwrap() >= 99.5, "{score}");
    assert!(json.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn record_is_scored_against_its_annotations() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ecg/made.hea");
    assert_scored(&file, 369, "beat: sample 151\nbeat: sample 465, 872.2 ms after the last\n");
}

#[test]
#[ignore = "needs TICKCAST_RECORD=path/to/100.hea"]
fn record_100_is_scored_against_its_annotations() {
    let file = std::env::var_os("TICKCAST_RECORD").expect("TICKCAST_RECORD=path/to/100.hea");
    assert_scored(Path::new(&file), 2_273, "beat: sample 77\nbeat: sample 370, 813.9 ms after the last\n");
}

#[test]
fn own_record_is_analysed_without_annotations() {
    let folder = std::env::temp_dir().join(format!("tickcast-process-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let header = folder.join("own.hea");
    fs::write(&header, "own 1 250\nown.dat 16 1000/mV\n").unwrap();
    let mut wave = Synthetic::new(250.0, 60.0);
    let data: Vec<u8> = (0..2_500).flat_map(|_| ((wave.next_mv() * 1e3) as i16).to_le_bytes()).collect();
    fs::write(folder.join("own.dat"), data).unwrap();
    let text = run(&file_args(&header, None, false)).unwrap();
    assert_eq!(text.lines().last().unwrap(), "10 beats: signal 0 of record own, 10.0 s");
    assert_eq!(text.lines().count(), 11);
    let error = run(&file_args(&header, Some(folder.join("own.atr")), false)).unwrap_err().to_string();
    assert!(error.contains("own.atr"), "{error}");
    let error = run(&EcgArgs { signal: 1, ..file_args(&header, None, false) }).unwrap_err().to_string();
    assert!(error.contains("own.hea: there is no signal 1"), "{error}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn gaps_between_segments_are_reported_and_no_interval_spans_them() {
    let folder = std::env::temp_dir().join(format!("tickcast-process-gaps-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let header = folder.join("own.hea");
    fs::write(&header, "own/5 1 250 7000\n~ 500\nown_1 2500\n~ 1000\nown_1 2500\n~ 500\n").unwrap();
    fs::write(folder.join("own_1.hea"), "own_1 1 250 2500\nown.dat 16 1000/mV\n").unwrap();
    let mut wave = Synthetic::new(250.0, 60.0);
    let data: Vec<u8> = (0..2_500).flat_map(|_| ((wave.next_mv() * 1e3) as i16).to_le_bytes()).collect();
    fs::write(folder.join("own.dat"), data).unwrap();
    let text = run(&file_args(&header, None, true)).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let gaps: Vec<_> = lines
        .iter()
        .filter(|line| line["op"] == "gap")
        .map(|gap| (gap["from"].as_u64(), gap["to"].as_u64()))
        .collect();
    assert_eq!(
        gaps,
        [(Some(0), Some(500)), (Some(3_000), Some(4_000)), (Some(6_500), Some(7_000))],
        "{text}"
    );
    let firsts = lines.iter().filter(|line| line["op"] == "beat" && line["rr_ms"].is_null()).count();
    assert_eq!(firsts, 2, "{text}");
    assert!(lines.iter().all(|line| !line["rr_ms"].as_f64().is_some_and(|rr_ms| rr_ms > 1_100.0)), "{text}");
    fs::remove_dir_all(folder).unwrap();
}

const EPOCH: u64 = 3;
const BATCH: u64 = 25;

fn tick(stream: &mut TcpStream, topic: u32, sequence: u64, time_ns: u64, payload: &[u8]) {
    let times = TickTimes { producer_time_ns: time_ns, ingest_time_ns: 1 };
    let mut bytes = Vec::new();
    let parts = TickParts { times, payload, ..TickParts::default() };
    frame::encode_tick(&mut bytes, TopicId(topic), Sequence(sequence), &parts);
    // A client that has received what it waits for may be gone.
    let _ = stream.write_all(&bytes);
}

/// Serves half a minute of a wave without batch 150, and with a malformed tick after batch 160; returns what the client
/// publishes.
fn heart(peer: &mut Peer) -> Vec<String> {
    peer.welcome();
    beat(peer, |_, _| {})
}

/// As [`heart`], by a server that acknowledges publishes and refuses the third.
fn refusing_heart(peer: &mut Peer) -> Vec<String> {
    peer.welcome_with(EPOCH, Some(Features::PUBLISHED));
    let mut publishes = 0;
    beat(peer, move |peer, request| {
        publishes += 1;
        match publishes {
            3 => peer.error(request, "not this one"),
            _ => peer.published(request, publishes),
        }
    })
}

fn beat(peer: &mut Peer, mut answer: impl FnMut(&mut Peer, u64)) -> Vec<String> {
    peer.subscribed();
    peer.subscribed();
    let mut bytes = Vec::new();
    frame::encode_topic(&mut bytes, TopicId(8), EPOCH, INFO_TOPIC);
    frame::encode_topic(&mut bytes, TopicId(9), EPOCH, WAVE_TOPIC);
    peer.stream.write_all(&bytes).unwrap();
    let info = Info {
        fs: 250.0,
        units: "mV".into(),
        signal: "MLII".into(),
        record: "100".into(),
        batch: BATCH as usize,
        start_ns: 1_000,
    };
    let mut stream = peer.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            tick(&mut stream, 8, 1, 1_000, &info.to_json());
            tick(&mut stream, 8, 2, 1_000, b"[]");
            let mut wave = Synthetic::new(250.0, 60.0);
            let mut sequence = 0;
            for k in 0..300 {
                let payload: Vec<u8> = (0..BATCH).flat_map(|_| wave.next_mv().to_le_bytes()).collect();
                if k != 150 {
                    sequence += 1;
                    tick(&mut stream, 9, sequence, info.time_ns((k + 1) * BATCH - 1), &payload);
                }
                if k == 160 {
                    sequence += 1;
                    tick(&mut stream, 9, sequence, info.time_ns(k * BATCH), b"not four");
                }
            }
        });
        // At the same time, as a server does.
        let mut published = Vec::new();
        while let Some((kind, request, payload)) = peer.next_frame() {
            if kind == Kind::Publish {
                answer(peer, request);
                published.push(String::from_utf8(payload).unwrap());
            }
        }
        published
    })
}

/// An output that stops the command once it has received a number of lines.
struct StopAfter {
    text: String,
    lines: usize,
    stop: StopFlag,
}

impl Write for StopAfter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.push_str(std::str::from_utf8(bytes).unwrap());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.text.lines().count() >= self.lines {
            self.stop.set();
        }
        Ok(())
    }
}

#[test]
fn beats_are_published_and_lost_or_malformed_batches_are_reported() {
    let (address, server) = serve(heart);
    let mut out = StopAfter { text: String::new(), lines: 55, stop: StopFlag::default() };
    let stop = out.stop.clone();
    process_stream(&args(&address, true), &mut out, &stop).unwrap();
    let published = server.join().unwrap();
    let lines: Vec<&str> = out.text.lines().collect();
    assert!(lines[0].starts_with(r#"{"op":"wave","info":{"fs":250.0,"#), "{}", lines[0]);
    assert!(lines[1].starts_with(r#"{"op":"bad","topic":"ecg.info","seq":2,"#), "{}", lines[1]);
    let gap = lines.iter().position(|line| *line == r#"{"op":"gap","from":3750,"to":3775}"#).unwrap();
    let beat_after = lines[gap..].iter().find(|line| line.contains("beat")).unwrap();
    assert!(beat_after.ends_with(r#""rr_ms":null}"#), "{beat_after}");
    assert!(out.text.contains(r#"{"op":"bad","topic":"ecg.wave","seq":161,"#), "{}", out.text);
    let reported: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            let fields = line.strip_prefix(r#"{"op":"beat","#).or(line.strip_prefix(r#"{"op":"rate","#))?;
            Some(format!("{{{fields}"))
        })
        .collect();
    assert_eq!(reported, published, "every reported finding is published");
    assert!(published.len() > 50 && published[1..].iter().any(|tick| tick.starts_with(r#"{"bpm":6"#)));
}

#[test]
fn refused_findings_are_reported_and_fail_the_command() {
    let (address, server) = serve(refusing_heart);
    let mut out = StopAfter { text: String::new(), lines: 55, stop: StopFlag::default() };
    let stop = out.stop.clone();
    let result = process_stream(&args(&address, true), &mut out, &stop);
    let published = server.join().unwrap().len() as u64;
    assert!(
        matches!(result, Err(CommandError::TicksRefused { refused: 1, sent }) if sent == published),
        "{result:?}, {published} published"
    );
    let refusals = out.text.lines().filter(|line| line.contains("not published: not this one (code 101)"));
    assert_eq!(refusals.count(), 1, "{}", out.text);
}
