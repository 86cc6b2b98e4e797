//! Feeds to a listener on a loopback port.

use std::{net::TcpListener, thread};

use clap::Parser;

use super::*;
use crate::options::Options;

fn plan(server: &str, more: &str) -> Plan {
    let line = format!("feed --server {server} {more}");
    Plan::new(Options::try_parse_from(line.split_whitespace()).unwrap()).unwrap()
}

/// Accepts one connection, answers each PING, and returns everything received once it ends.
fn nats_sink() -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let sink = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = String::new();
        let mut buffer = [0; 4096];
        while let Ok(read) = stream.read(&mut buffer) {
            if read == 0 {
                break;
            }
            all.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            if all.ends_with("PING\r\n") {
                stream.write_all(b"PONG\r\n").unwrap();
            }
        }
        all
    });
    (address, sink)
}

#[test]
fn every_tick_is_sent_once_with_its_time_and_number() {
    let (server, sink) = nats_sink();
    let plan =
        plan(&server, "--protocol nats --producers 2 --rate 20 --topics 2 --connections 1 --duration 1s");
    let report = run(&plan, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.offered, report.sent, report.refused), (40, 40, 0));
    assert_eq!(report.failures(), Vec::<String>::new());
    let all = sink.join().unwrap();
    let marks: Vec<Mark> = all.lines().filter_map(|line| Mark::read(line.as_bytes())).collect();
    let numbers: Vec<_> = marks.iter().map(|mark| (mark.topic, mark.n)).collect();
    assert_eq!(numbers, (0..40).map(|k| (k % 2, u64::from(k / 2) + 1)).collect::<Vec<_>>());
    // 1/40 s apart, no matter when they left.
    assert!(marks.windows(2).all(|two| two[1].at_ns - two[0].at_ns == 25_000_000));
    assert_eq!(all.matches("PUB sim.1 100\r\n").count(), 20);
    assert_eq!(report.to_json(&plan)["sent"], 40);
}

#[test]
fn a_stopped_feed_reports_what_it_did() {
    let (server, sink) = nats_sink();
    let plan = plan(&server, "--protocol nats --topics 1");
    let report = run(&plan, &AtomicBool::new(true)).unwrap();
    assert_eq!((report.offered, report.ended), (0, None));
    assert!(sink.join().unwrap().ends_with("PING\r\n"));
}

#[test]
fn a_server_that_disconnects_ends_the_feed_and_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let gone = thread::spawn(move || drop(listener.accept()));
    let report = run(&plan(&server, "--protocol redis --topics 1"), &AtomicBool::new(false)).unwrap();
    gone.join().unwrap();
    let ended = report.ended.clone().unwrap();
    assert!(ended.starts_with("connection 0: "), "{ended}");
    assert!(report.failures().contains(&ended));
}

#[test]
fn an_unreachable_server_is_named() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let why = run(&plan(&nobody, "--topics 1"), &AtomicBool::new(false)).unwrap_err();
    assert!(why.contains(&nobody), "{why}");
}
