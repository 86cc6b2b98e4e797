//! A market capture replayed by the real binary to every kind of client: all ticks, in order, byte-exact.

use std::{
    fmt::Write as _,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use crate::harness::{
    Server, beside_others,
    collector::{ByTopic, Collector, assert_same},
    external::{External, Library, ticks},
    frames::{self, Raw},
    http::get,
    market_capture,
    raw::Peer,
    wait_for_exit,
};
use flate2::{Compression, write::GzEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde::Deserialize;
use serde_json::value::RawValue;
use tickcast_proto::WireFormat;

#[derive(Deserialize)]
struct Line<'a> {
    topic: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// What each subscriber to all topics must receive.
pub fn expected(capture: &Path) -> (ByTopic, usize) {
    let text = fs::read_to_string(capture).unwrap();
    let (mut ticks, mut count) = (ByTopic::new(), 0);
    for line in text.lines() {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        let ticks = ticks.entry(line.topic).or_default();
        ticks.push((ticks.len() as u64 + 1, line.data.get().as_bytes().to_vec()));
        count += 1;
    }
    (ticks, count)
}

fn serve(capture: &Path, clients: usize, more: &[&str]) -> Server {
    let (file, clients) = (capture.to_str().unwrap(), clients.to_string());
    let options = ["--replay", file, "--speed", "max", "--replay-wait", &clients];
    Server::start(&[&options, more].concat())
}

const EXTERNAL: [(Library, &str); 4] = [
    (Library::Ws, "json"),
    (Library::Ws, "rkyv"),
    (Library::Websockets, "json"),
    (Library::Websockets, "rkyv"),
];

fn externals(server: &Server, count: usize) -> Vec<External> {
    EXTERNAL
        .iter()
        .map(|&(library, encoding)| External::subscribe(library, server, encoding, "market.>", count))
        .collect()
}

#[test]
fn a_replay_reaches_every_kind_of_client_whole_in_order_and_byte_exact() {
    let _machine = beside_others();
    let capture = market_capture();
    let (expected, count) = expected(&capture);
    assert_eq!(count, 4_000, "the size of the capture");
    let native = [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];
    let server = serve(&capture, native.len() + EXTERNAL.len(), &[]);
    let collectors = native.map(|encoding| Collector::start(&server, encoding, &["market.>"]));
    let externals = externals(&server, count);
    for external in externals {
        let name = external.name.clone();
        assert_same(&name, &ticks(&external.finish()), &expected);
    }
    for collector in collectors {
        collector.wait_for(count);
        let name = collector.name.clone();
        assert_same(&name, &collector.finish().ticks, &expected);
    }
    assert_eq!(server.stop_cleanly().total("ticks_sequenced"), count as u64);
}

/// A capture of 40 topics whose payloads cover the corners of JSON.
fn made_capture(name: &str) -> PathBuf {
    let payloads = [
        r#"{"price": 1.10, "size":1e400,"depth":[[1,2],[ ]]}"#,
        r#""}{ \\ \"quoted\" \u00e9 é 漢 🦀""#,
        "-0.000",
        r#"{"topic":"not.this","seq":9,"data":[{"}":"]"}]}"#,
        "null",
        "[ true , false ]",
    ];
    let mut text = String::new();
    for tick in 0..10_000 {
        let (topic, payload) = (tick * 7 % 40, payloads[tick % payloads.len()]);
        writeln!(text, r#"{{"at_ns":{tick},"topic":"market.made.{topic}","data":{payload}}}"#).unwrap();
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&file, text).unwrap();
    file
}

/// The kernel's hash spreads 64 connections over 4 shards; one shard stays empty in 4 of 10^8 runs.
#[test]
fn clients_on_every_shard_get_the_same_order_of_each_topic() {
    let _machine = beside_others();
    let capture = made_capture("shards.ndjson");
    let (expected, count) = expected(&capture);
    let encodings = [
        WireFormat::TCP_NATIVE,
        WireFormat::WEBSOCKET_NATIVE,
        WireFormat::WEBSOCKET_JSON,
        WireFormat::TCP_NATIVE,
    ];
    let server = serve(&capture, 64 + EXTERNAL.len(), &["--shards", "4"]);
    let collectors: Vec<Collector> =
        (0..64).map(|client| Collector::start(&server, encodings[client % 4], &["market.>"])).collect();
    for external in externals(&server, count) {
        let name = external.name.clone();
        assert_same(&name, &ticks(&external.finish()), &expected);
    }
    for collector in collectors {
        collector.wait_for(count);
        let name = collector.name.clone();
        assert_same(&name, &collector.finish().ticks, &expected);
    }
    server.stop_cleanly();
}

#[test]
fn a_latency_budget_loses_nothing_and_changes_no_order() {
    let _machine = beside_others();
    let capture = made_capture("budget.ndjson");
    let (expected, count) = expected(&capture);
    let encodings = [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_JSON];
    let server =
        serve(&capture, encodings.len(), &["--shards", "2", "--latency-budget", "20ms", "--spin", "500us"]);
    let collectors = encodings.map(|encoding| Collector::start(&server, encoding, &["market.>"]));
    for collector in collectors {
        collector.wait_for(count);
        let name = collector.name.clone();
        assert_same(&name, &collector.finish().ticks, &expected);
    }
    server.stop_cleanly();
}

/// A capture of three ticks with a bad line 3 in between.
fn capture_with_a_bad_line(name: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let lines = [
        r#"{"at_ns":0,"topic":"a","data":1.10}"#,
        r#"{"at_ns":1,"topic":"a","data":{"b": 2}}"#,
        r#"{"at_ns":2,"topic":"a b","data":3}"#,
        r#"{"at_ns":3,"topic":"a","data":"4"}"#,
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    file
}

#[test]
fn a_bad_replay_line_stops_the_server_on_request_and_is_named_by_its_number() {
    let _machine = beside_others();
    let server = serve(&capture_with_a_bad_line("stop.ndjson"), 1, &["--replay-bad-lines", "stop"]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &[">"]);
    collector.wait_for_end();
    let got = collector.finish();
    assert_eq!(got.ticks["a"], [(1, b"1.10".to_vec()), (2, br#"{"b": 2}"#.to_vec())]);
    assert_eq!(got.closing.unwrap().0, 3001);
    let stopped = server.wait();
    assert_eq!(stopped.code, Some(1), "{}", stopped.log);
    assert!(stopped.log.contains("stop.ndjson line 3:"), "{}", stopped.log);
    assert!(stopped.log.contains("--replay-bad-lines skip"), "{}", stopped.log);
}

#[test]
fn a_bad_replay_line_is_skipped_counted_and_named() {
    let _machine = beside_others();
    let server = serve(&capture_with_a_bad_line("skip.ndjson"), 1, &[]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &[">"]);
    collector.wait_for(3);
    assert_eq!(
        collector.finish().ticks["a"],
        [(1, b"1.10".to_vec()), (2, br#"{"b": 2}"#.to_vec()), (3, br#""4""#.to_vec())]
    );
    server.log.wait_for("skip.ndjson line 3 skipped: topic \"a b\"");
    server.log.wait_for("replay done: 3 ticks, 1 lines skipped");
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    assert!(
        metrics.contains("tickcast_source_lines_skipped_total{source=\"replay\",name=\"replay\"} 1\n"),
        "{metrics}"
    );
    server.stop_cleanly();
}

/// Lines of topic `a`, of which the first is at `first_at_ns`, with payloads from 1.
fn lines(count: u64, first_at_ns: u64, step_ns: u64) -> String {
    let line =
        |n| format!("{{\"at_ns\":{},\"topic\":\"a\",\"data\":{n}}}\n", first_at_ns + (n - 1) * step_ns);
    (1..=count).map(line).collect()
}

fn numbered(count: u64) -> Vec<(u64, Vec<u8>)> {
    (1..=count).map(|n| (n, n.to_string().into_bytes())).collect()
}

/// A new path for a test's file.
fn path(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

fn fifo(name: &str) -> PathBuf {
    let path = path(name);
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

const WALL_CLOCK_NS: u64 = 1_793_322_000_000_000_000;

#[test]
fn a_capture_with_wall_clock_times_starts_at_once_and_a_long_wait_is_logged() {
    let _machine = beside_others();
    let file = path("clock.ndjson");
    let later = lines(1, WALL_CLOCK_NS + 7_200_000_000_000, 0);
    fs::write(&file, lines(20, WALL_CLOCK_NS, 1_000_000) + "\n" + &later).unwrap();
    let server = Server::start(&["--replay", file.to_str().unwrap(), "--replay-wait", "1"]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["a"]);
    collector.wait_for(20);
    server.log.wait_for("clock.ndjson line 22 is due in 1 h 59 min");
    assert_eq!(collector.finish().ticks["a"], numbered(20));
    server.stop_cleanly();
}

#[test]
fn compressed_captures_and_pipes_are_replayed_whole() {
    let _machine = beside_others();
    let text = lines(5_000, WALL_CLOCK_NS, 1);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
    let pipe = fifo("pipe.fifo");
    let (gzip_file, zstd_file) = (path("capture.ndjson.gz"), path("capture.ndjson.zst"));
    fs::write(&gzip_file, &gzip).unwrap();
    fs::write(&zstd_file, &zstd).unwrap();
    for (file, piped) in
        [(&gzip_file, None), (&zstd_file, None), (&pipe, Some(text.as_bytes())), (&pipe, Some(&zstd))]
    {
        let server = serve(file, 1, &[]);
        let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["a"]);
        if let Some(bytes) = piped {
            fs::OpenOptions::new().write(true).open(&pipe).unwrap().write_all(bytes).unwrap();
        }
        collector.wait_for(5_000);
        assert_eq!(collector.finish().ticks["a"], numbered(5_000), "{}", file.display());
        server.log.wait_for("replay done: 5000 ticks, 0 lines skipped");
        server.stop_cleanly();
    }
}

#[test]
fn lines_of_a_pipe_are_published_as_they_come_and_a_silent_pipe_stops_nobody() {
    let _machine = beside_others();
    let pipe = fifo("slow.fifo");
    let server = serve(&pipe, 1, &[]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["a"]);
    let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    let text = lines(3, 0, 0);
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    writer.write_all(&text.as_bytes()[..ends[0] + 9]).unwrap();
    collector.wait_for(1);
    // The third line is incomplete when the server stops, and the writer stays.
    writer.write_all(&text.as_bytes()[ends[0] + 9..ends[2] - 9]).unwrap();
    collector.wait_for(2);
    assert_eq!(collector.finish().ticks["a"], numbered(2));
    assert_eq!(server.stop_cleanly().total("ticks_sequenced"), 2);
    drop(writer);
    // Nobody ever writes to it.
    Server::start(&["--replay", pipe.to_str().unwrap()]).stop_cleanly();
}

#[test]
fn keys_of_a_capture_are_those_of_its_ticks() {
    let _machine = beside_others();
    let file = path("keys.ndjson");
    let keys = ["7", "\"7\"", "9007199254740993", "\"18446744073709551615\"", "0", "\"AAPL\""];
    let line = |(n, key)| format!("{{\"at_ns\":0,\"topic\":\"a\",\"key\":{key},\"data\":{n}}}\n");
    fs::write(&file, keys.iter().enumerate().map(line).collect::<String>()).unwrap();
    let server = serve(&file, 1, &[]);
    let mut peer = Peer::native(server.tcp);
    peer.send(&Raw::request(frames::SUBSCRIBE, 1, b"a").bytes());
    let mut ticks = std::iter::from_fn(|| peer.frame()).filter(|frame| frame.kind == frames::TICK);
    for key in [7, 7, 9_007_199_254_740_993, u64::MAX, 0] {
        let record = ticks.next().unwrap().record;
        let got = record.get(16..24).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()));
        assert_eq!(got, key);
    }
    server.log.wait_for("keys.ndjson line 6 skipped: key \"AAPL\" is not an integer");
    drop(peer);
    server.stop_cleanly();
}

#[test]
fn a_capture_in_utf_16_stops_the_server_and_is_named() {
    let _machine = beside_others();
    let text = lines(2, 0, 0);
    for (name, mark) in [("with.ndjson", "\u{feff}"), ("without.ndjson", "")] {
        let file = path(name);
        let bytes: Vec<u8> = format!("{mark}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(&file, bytes).unwrap();
        let server = serve(&file, 1, &[]);
        Collector::start(&server, WireFormat::TCP_NATIVE, &["a"]).wait_for_end();
        let stopped = server.wait();
        assert_eq!(stopped.code, Some(1), "{}", stopped.log);
        let named = format!("{name}: the text is UTF-16, convert it with iconv -f UTF-16 -t UTF-8");
        assert!(stopped.log.contains(&named), "{}", stopped.log);
    }
}

#[test]
fn a_capture_with_byte_order_marks_and_crlf_is_replayed_whole() {
    let _machine = beside_others();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("marks.ndjson");
    let line = |data: u32| format!("{{\"at_ns\":0,\"topic\":\"a\",\"data\":{data}}}\r\n");
    // Two captures joined, each with a mark, and an empty one.
    let text = ["\u{feff}", &line(1), &line(2), "\u{feff}", &line(3), "\u{feff}\r\n", &line(4)].concat();
    fs::write(&file, text).unwrap();
    let server = serve(&file, 1, &[]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &[">"]);
    collector.wait_for(4);
    let expected: Vec<_> = (1..=4).map(|data| (data, data.to_string().into_bytes())).collect();
    assert_eq!(collector.finish().ticks["a"], expected);
    server.log.wait_for("replay done: 4 ticks, 0 lines skipped");
    server.stop_cleanly();
}

#[test]
fn a_replay_of_a_missing_file_does_not_start() {
    let mut child = crate::harness::tickcast()
        .arg("serve")
        .args(crate::harness::FREE_PORTS)
        .args(["--replay", "no/such.ndjson"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let log = crate::harness::Log::collect(child.stderr.take().unwrap());
    assert_eq!(wait_for_exit(&mut child), Some(2));
    assert!(log.whole().contains("no/such.ndjson: no such file"));
}
