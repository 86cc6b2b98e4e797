//! A market capture replayed by the real binary to every kind of client: all ticks, in order, byte-exact.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use crate::harness::{
    Server, beside_others,
    collector::{ByTopic, Collector, assert_same},
    external::{External, Library, ticks},
    market_capture, wait_for_exit,
};
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
fn expected(capture: &Path) -> (ByTopic, usize) {
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
fn a_bad_replay_line_stops_the_server_and_is_named_by_its_number() {
    let _machine = beside_others();
    let server = serve(&capture_with_a_bad_line("stop.ndjson"), 1, &[]);
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
fn a_bad_replay_line_is_skipped_and_logged_on_request() {
    let _machine = beside_others();
    let server = serve(&capture_with_a_bad_line("skip.ndjson"), 1, &["--replay-bad-lines", "skip"]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &[">"]);
    collector.wait_for(3);
    assert_eq!(
        collector.finish().ticks["a"],
        [(1, b"1.10".to_vec()), (2, br#"{"b": 2}"#.to_vec()), (3, br#""4""#.to_vec())]
    );
    server.log.wait_for("skip.ndjson line 3 skipped:");
    server.log.wait_for("replay done: 3 ticks, 1 lines skipped");
    server.stop_cleanly();
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
