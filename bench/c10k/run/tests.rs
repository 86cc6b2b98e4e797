//! Complete runs against a scripted server on a loopback port.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use clap::Parser;
use tickcast::{limits::FRAME_BYTES_MAX_DEFAULT, sources::payload::Mark};
use tickcast_proto::{
    Step,
    frame::{self, HeaderFields, Kind},
    ids::{Sequence, TopicId},
    records::{Request, Subscribed, TickTimes, Welcome},
};

use super::*;
use crate::options::Options;

const TICKS: u64 = 20;
/// Time from the intended send to the scripted server's receipt: longer than a run takes.
const LATE_NS: u64 = 100_000_000_000;

/// Serves `connections` clients, and sends each its `sequences` once all have subscribed.
fn serve(connections: usize, sequences: fn(usize) -> Vec<u64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut clients: Vec<TcpStream> = (0..connections).map(|_| accept(&listener)).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            let mut bytes = Vec::new();
            for sequence in sequences(index) {
                let now_ns = clock::realtime_ns();
                let times = TickTimes { producer_time_ns: now_ns - LATE_NS, ingest_time_ns: now_ns };
                frame::encode_tick(
                    &mut bytes,
                    TopicId(5),
                    Sequence(sequence),
                    &frame::TickParts { times, payload: b"tick", ..Default::default() },
                );
            }
            client.write_all(&bytes).unwrap();
        }
        // Until the clients disconnect.
        clients.iter_mut().for_each(|client| drop(client.read(&mut [0; 64])));
    });
    address
}

/// Accepts one client and answers its hello and subscribe.
fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    let (mut input, mut replies) = (Vec::new(), Vec::new());
    loop {
        while let Step::Complete(used, frame) = frame::decode(&input, FRAME_BYTES_MAX_DEFAULT).unwrap() {
            let Ok(Request { request, .. }) = frame.record() else { panic!("a request") };
            if frame.kind == Kind::Subscribe {
                let record = Subscribed { request, ..Subscribed::default() };
                frame::encode(&mut replies, Kind::Subscribed, HeaderFields::default(), &record, &[b">"]);
                frame::encode_topic(&mut replies, TopicId(5), 1, "t");
                stream.write_all(&replies).unwrap();
                return stream;
            }
            let welcome = Welcome { frame_bytes_max: 1 << 18, request, ..Welcome::default() };
            frame::encode(&mut replies, Kind::Welcome, HeaderFields::default(), &welcome, &[b"test"]);
            input.drain(..used);
        }
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the client disconnected");
        input.extend_from_slice(&buffer[..read]);
    }
}

/// Serves any number of clients with one tick every 5 ms, numbered by the time.
///
/// A client receives the ticks after its subscription, without the sequences that `skip` divides.
fn serve_flow(skip: u64) -> String {
    const TICK_NS: u64 = 5_000_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let from_ns = clock::monotonic_ns();
    let published = move || (clock::monotonic_ns() - from_ns) / TICK_NS + 1;
    thread::spawn(move || {
        loop {
            let mut client = accept(&listener);
            thread::spawn(move || {
                let mut sent = published();
                loop {
                    while sent < published() {
                        sent += 1;
                        if sent % skip == 0 {
                            continue;
                        }
                        let times = TickTimes { producer_time_ns: clock::realtime_ns(), ingest_time_ns: 0 };
                        let parts = frame::TickParts { times, payload: b"tick", ..Default::default() };
                        let mut bytes = Vec::new();
                        frame::encode_tick(&mut bytes, TopicId(5), Sequence(sent), &parts);
                        if client.write_all(&bytes).is_err() {
                            return;
                        }
                    }
                    clock::sleep_ns(TICK_NS / 5);
                }
            });
        }
    });
    address
}

fn load(server: &str, more: &str) -> (Plan, Result<Report, String>) {
    let line = format!("c10k --server {server} --connections 4 --duration 1s {more}");
    let plan = Plan::new(Options::try_parse_from(line.split_whitespace()).unwrap()).unwrap();
    let report = run(&plan, &AtomicBool::new(false));
    (plan, report)
}

#[test]
fn every_tick_on_every_connection_is_counted_once() {
    for threads in [1, 2] {
        let server = serve(4, |_| (101..=100 + TICKS).collect());
        let (plan, report) =
            load(&server, &format!("--expect-ticks {TICKS} --threads {threads} --sources 2 --max-loss 0"));
        let report = report.unwrap();
        assert_eq!(report.failures(&plan), Vec::<String>::new());
        assert_eq!((report.tally.deliveries, report.tally.payload_bytes), (4 * TICKS, 16 * TICKS));
        assert_eq!(report.tally.latency_ns.len(), 4 * TICKS);
        assert_eq!((report.loss, report.short), (Loss::default(), 0));
        assert!(report.to_text(&plan).contains("lost          0 "));
        assert_eq!(report.to_json(&plan)["deliveries"], 4 * TICKS);
    }
}

#[test]
fn uncorrected_latency_starts_at_the_servers_receipt() {
    let server = serve(4, |_| (1..=TICKS).collect());
    let (plan, report) = load(&server, &format!("--expect-ticks {TICKS} --threads 2"));
    let report = report.unwrap();
    let (corrected, uncorrected) = (&report.tally.latency_ns, report.tally.uncorrected().unwrap());
    assert_eq!((corrected.len(), uncorrected.len()), (4 * TICKS, 4 * TICKS));
    assert!(corrected.min() > LATE_NS / 1_000 * 999 && uncorrected.max() < LATE_NS);
    let json = report.to_json(&plan);
    assert_eq!(json["latency_uncorrected_us"]["count"], 4 * TICKS);
    let plot = crate::plot::of_run(&plan, corrected, Some(uncorrected));
    assert_eq!(plot.matches("<polyline").count(), 2);
}

#[test]
fn figures_that_ticks_do_not_carry_are_reported_as_missing() {
    let (plan, report) = load(&serve_flow(u64::MAX), "");
    let report = report.unwrap();
    assert!(report.tally.deliveries > 0 && report.tally.uncorrected().is_none());
    assert!(report.to_text(&plan).contains("uncorrected   not measured"));
    assert!(report.to_json(&plan)["latency_uncorrected_us"].is_null());
}

#[test]
fn skew_covers_the_ticks_that_all_connections_of_all_threads_received() {
    let server = serve(4, |index| (1..=TICKS).filter(|&sequence| index != 3 || sequence != 7).collect());
    let (plan, report) = load(&server, &format!("--expect-ticks {} --threads 2", TICKS - 1));
    let report = report.unwrap();
    let skew = report.skew.as_ref().unwrap();
    assert_eq!((skew.one_in, skew.sampled), (1, TICKS));
    // The run may end between the last tick's first connection and its last.
    assert!((TICKS - 2..TICKS).contains(&skew.skew_ns.len()), "{}", skew.skew_ns.len());
    let json = report.to_json(&plan);
    assert_eq!(
        (&json["skew_us"]["count"], &json["skew_us"]["sampled"]),
        (&skew.skew_ns.len().into(), &TICKS.into())
    );
}

#[test]
fn a_spike_opens_all_at_once_and_is_timed_from_connect_and_request() {
    let server = serve(4, |_| (1..=TICKS).collect());
    let (plan, report) = load(&server, "--spike --threads 2 --warmup 0");
    let report = report.unwrap();
    let (connect, request) = (&report.tally.connect_ns, &report.tally.subscription_ns);
    assert_eq!((connect.len(), request.len()), (4, 4));
    assert!(connect.min() >= request.min() && connect.max() >= request.max());
    let text = report.to_text(&plan);
    assert!(
        ["spike  ", "connect to first tick", "request to first tick"].iter().all(|part| text.contains(part)),
        "{text}"
    );
    let json = report.to_json(&plan);
    assert_eq!(json["connecting"]["spike"], true);
    assert_eq!(json["connect_to_first_tick_us"]["count"], 4);
}

#[test]
fn every_client_is_reported_and_the_worst_are_listed() {
    let server = serve(4, |index| (1..=TICKS).filter(|&sequence| index != 2 || sequence % 4 != 0).collect());
    let (plan, report) = load(&server, &format!("--expect-ticks {TICKS} --threads 2"));
    let report = report.unwrap();
    let found: Vec<_> = report.clients.iter().map(|client| (client.index, client.counts)).collect();
    assert_eq!(found.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let gaps: Vec<u64> = found.iter().map(|(_, counts)| counts.gap).collect();
    assert_eq!(gaps.iter().sum::<u64>(), report.loss.gap);
    // The scripted server numbers clients in the order in which it accepts them.
    assert_eq!(crate::clients::worst(&report.clients)[0].counts.gap, 4);
    assert!(report.clients.iter().all(|client| client.source.is_some()));
    let json = report.to_json(&plan);
    assert_eq!((&json["clients"]["gap"]["min"], &json["clients"]["gap"]["max"]), (&0.into(), &4.into()));
    assert_eq!(json["clients"]["delivered"]["max"], TICKS);
}

#[test]
fn ticks_received_before_a_reset_stay_counted_for_the_client() {
    let (_, report) = load(&serve_flow(u64::MAX), "--churn-rate 40");
    let report = report.unwrap();
    assert!(report.left >= 8, "each was reset twice");
    let ticks: u64 = report.clients.iter().map(|client| client.counts.ticks).sum();
    assert!(ticks >= report.tally.deliveries, "{ticks} of {}", report.tally.deliveries);
}

#[test]
fn an_interrupted_run_reports_what_it_measured() {
    for warmup in ["0", "600s"] {
        let server = serve_flow(u64::MAX);
        let line = format!("c10k --server {server} --connections 4 --duration 600s --warmup {warmup}");
        let plan = Plan::new(Options::try_parse_from(line.split_whitespace()).unwrap()).unwrap();
        let interrupted = AtomicBool::new(false);
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                clock::sleep_ns(300_000_000);
                interrupted.store(true, Ordering::Release);
            });
            run(&plan, &interrupted).unwrap()
        });
        assert!(report.interrupted && report.window_ns < 600_000_000_000);
        assert_eq!(report.loss, Loss::default());
        assert_eq!(
            report.clients.len() as u64,
            report.clients.iter().map(|client| client.index as u64 + 1).max().unwrap_or(0)
        );
        assert!(report.failures(&plan)[0].starts_with("interrupted"));
        assert_eq!(report.to_json(&plan)["interrupted"], true);
    }
}

#[test]
fn every_key_of_the_json_is_documented() {
    let (plan, report) = load(&serve_flow(u64::MAX), "--warmup 0");
    let json = report.unwrap().to_json(&plan);
    let keys = json.as_object().unwrap();
    assert!(keys.len() > 40, "{}", keys.len());
    let words: Vec<&str> =
        crate::report::JSON_KEYS.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let missing: Vec<&String> = keys.keys().filter(|key| !words.contains(&key.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn gaps_late_starts_early_ends_and_silent_connections_are_loss() {
    let server = serve(4, |index| match index {
        0 => (1..=TICKS).collect(),
        1 => (1..=TICKS).filter(|&sequence| sequence != 7).collect(),
        2 => (3..=TICKS - 4).collect(),
        _ => Vec::new(),
    });
    let (plan, report) = load(&server, &format!("--expect-ticks {TICKS} --max-loss 26"));
    let report = report.unwrap();
    assert_eq!(report.loss, Loss { gap: 1, head: 2, tail: 4 + TICKS, ..Loss::default() });
    assert_eq!(report.short, 1 + 6 + TICKS);
    let failures = report.failures(&plan);
    assert!(failures.iter().any(|failure| failure.contains("27 ticks lost, 26 allowed")), "{failures:?}");
    assert!(failures.iter().any(|failure| failure.contains("not every connection")), "{failures:?}");
}

#[test]
fn the_first_tick_of_each_connection_is_timed_from_its_subscription() {
    let server = serve(4, |index| if index == 3 { Vec::new() } else { (1..=TICKS).collect() });
    let (plan, report) = load(&server, "--warmup 0");
    let report = report.unwrap();
    let first = &report.tally.subscription_ns;
    assert_eq!(first.len(), 3, "one for each connection that received a tick");
    // Shorter than the run, so the time of the request was noted.
    assert!(first.min() > 0 && first.max() < 60_000_000_000, "{}", first.max());
    assert_eq!(report.to_json(&plan)["subscription_us"]["count"], 3);
    assert!(report.to_text(&plan).contains("(3 connections)"));

    let server = serve(4, |_| (1..=TICKS).collect());
    let (plan, report) = load(&server, &format!("--expect-ticks {TICKS}"));
    assert!(report.unwrap().to_json(&plan)["subscription_us"].is_null());
}

#[test]
fn stalled_connections_never_read_and_their_loss_is_not_counted() {
    let (plan, report) = load(&serve_flow(u64::MAX), "--stalled 1 --policy drop --max-loss 0");
    let report = report.unwrap();
    assert_eq!(report.failures(&plan), Vec::<String>::new());
    assert_eq!(report.loss, Loss::default());
    assert!(report.tally.deliveries > 0);
    assert!(report.to_text(&plan).contains("stalled       1 connections never read"));
    let json = report.to_json(&plan);
    assert_eq!((&json["stalled"]["connections"], &json["policy"]), (&1.into(), &"drop".into()));
}

#[test]
fn churn_alone_loses_nothing() {
    let (plan, report) = load(&serve_flow(u64::MAX), "--churn-rate 20 --threads 2 --max-loss 0");
    let report = report.unwrap();
    assert_eq!(report.failures(&plan), Vec::<String>::new());
    assert_eq!(report.loss, Loss::default());
    assert!((10..=40).contains(&report.left), "{}", report.left);
    assert_eq!(report.came_back, report.left);
    assert!(report.tally.subscription_ns.len() > 4, "a reopened connection waits for a first tick, too");
    assert_eq!(report.to_json(&plan)["churn"]["left"], report.left);
}

#[test]
fn loss_before_a_reset_stays_counted() {
    let (_, report) = load(&serve_flow(10), "--churn-rate 20");
    let report = report.unwrap();
    // One in ten is left out for every connection, and hardly any lives long.
    assert!(report.loss.gap * 18 >= report.tally.deliveries, "{:?}", report.loss);
    assert_eq!((report.loss.head, report.loss.tail), (0, 0));
}

#[test]
fn each_policy_changes_the_subscription() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let requests = |more: &str| {
        let line = format!("c10k --server {} {more}", listener.local_addr().unwrap());
        let plan = Plan::new(Options::try_parse_from(line.split_whitespace()).unwrap()).unwrap();
        crate::connection::Connection::open(&plan, 0).unwrap().feed.output().to_vec()
    };
    let texts = ["", "--policy conflate", "--policy drop", "--policy disconnect"].map(requests);
    for (index, text) in texts.iter().enumerate() {
        assert!(texts[..index].iter().all(|other| other != text), "two policies send the same bytes");
    }
}

/// Speaks NATS to `connections` clients, and sends each its `numbers` once all have subscribed.
fn serve_nats(connections: usize, numbers: fn(usize) -> Vec<u64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let accept = || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"INFO {}\r\n").unwrap();
            let mut received = Vec::new();
            while !received.ends_with(b"PING\r\n") {
                let mut buffer = [0; 512];
                let read = stream.read(&mut buffer).unwrap();
                assert!(read > 0, "the client disconnected");
                received.extend_from_slice(&buffer[..read]);
            }
            stream.write_all(b"PONG\r\n").unwrap();
            stream
        };
        let mut clients: Vec<TcpStream> = (0..connections).map(|_| accept()).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            for n in numbers(index) {
                let (mut payload, mark) = (Vec::new(), Mark { at_ns: clock::realtime_ns(), topic: 3, n });
                mark.write(&mut payload, 100);
                let message = [b"MSG sim.3 1 100\r\n", &payload[..], b"\r\n"].concat();
                client.write_all(&message).unwrap();
            }
        }
        clients.iter_mut().for_each(|client| drop(client.read(&mut [0; 64])));
    });
    address
}

#[test]
fn a_peers_ticks_and_gaps_are_counted_like_tickcasts() {
    let more = format!("--transport nats --expect-ticks {TICKS} --max-loss 0");
    let (plan, report) = load(&serve_nats(4, |_| (101..=100 + TICKS).collect()), &more);
    let report = report.unwrap();
    assert_eq!(report.failures(&plan), Vec::<String>::new());
    assert_eq!((report.tally.deliveries, report.tally.payload_bytes), (4 * TICKS, 400 * TICKS));
    assert_eq!((report.tally.latency_ns.len(), report.tally.untimed), (4 * TICKS, 0));

    let server = serve_nats(4, |index| match index {
        0 => (1..=TICKS).collect(),
        1 => (1..=TICKS).filter(|&n| n != 7).collect(),
        2 => (3..=TICKS - 4).collect(),
        _ => Vec::new(),
    });
    let (_, report) = load(&server, &more);
    assert_eq!(report.unwrap().loss, Loss { gap: 1, head: 2, tail: 4 + TICKS, ..Loss::default() });
}

#[test]
fn a_client_that_was_the_bottleneck_warns() {
    let server = serve(4, |_| (1..=TICKS).collect());
    let (plan, report) = load(&server, &format!("--expect-ticks {TICKS}"));
    let mut report = report.unwrap();
    for (busiest, warned) in [(0.85, false), (0.86, true)] {
        report.cpu_busiest = busiest;
        assert_eq!(report.to_json(&plan)["client_is_bottleneck"], warned);
        assert_eq!(report.to_text(&plan).contains("WARNING: this client was the bottleneck"), warned);
    }
}

#[test]
fn an_unreachable_server_is_named() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (_, report) = load(&nobody, "");
    let why = report.unwrap_err();
    assert!(why.contains(&nobody) && why.contains("refused"), "{why}");
}
