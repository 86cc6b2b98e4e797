//! Invalid options are answered by name and the session stays open; excessive requests do not affect others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use crate::harness::{
    Server,
    account::{Account, Subscriber},
    beside_others,
    collector::{Collector, barrier, connect, publish},
    frames::{self, CONFLATE, FROM_LATEST, FROM_PLACE, FROM_RESUMES, Options, Raw, Received},
    raw::{Peer, upgrade_request},
    say,
};
use tickcast::limits::RESUME_POSITIONS_MAX;
use tickcast_proto::WireFormat;

/// An invalid option, and the field that the answer must name.
const BAD_JSON: [(&str, &str); 22] = [
    (r#""policy":"fast""#, "policy"),
    (r#""policy":"Conflate""#, "policy"),
    (r#""policy":"""#, "policy"),
    (r#""policy":1"#, "policy"),
    (r#""max_rate":0"#, "max_rate"),
    (r#""max_rate":-1"#, "max_rate"),
    (r#""max_rate":1e9"#, "max_rate"),
    (r#""max_rate":1e-9"#, "max_rate"),
    (r#""max_rate":1e999"#, "max_rate"),
    (r#""max_rate":"10""#, "max_rate"),
    (r#""max_rate":[10]"#, "max_rate"),
    (r#""from":"yesterday""#, "from"),
    (r#""from":7"#, "from"),
    (r#""from":[]"#, "from"),
    (r#""from":{}"#, "from"),
    (r#""from":{"epoch":1}"#, "from"),
    (r#""from":{"sequence":1}"#, "from"),
    (r#""from":{"epoch":-1,"sequence":1}"#, "from"),
    (r#""from":{"epoch":1,"sequence":1.5}"#, "from"),
    (r#""from":{"epoch":1,"sequence":1,"sequences":{}}"#, "from"),
    (r#""from":{"epoch":1,"sequences":["a"]}"#, "from"),
    (r#""from":{"epoch":1,"sequence":1,"more":1}"#, "from"),
];

/// Asserts that the session accepts a subscription and receives a tick.
fn assert_lives_on(client: &mut Subscriber, server: &Server, topic: &str) {
    client.subscribe(topic, Options::default());
    let mut publisher = connect(server, WireFormat::TCP_NATIVE);
    publish(&mut publisher, topic, b"[1]");
    barrier(&mut publisher);
    client.read_until("a tick", |account| account.topics.contains_key(topic));
    assert_eq!(client.account.closing, None);
}

#[test]
fn bad_json_options_are_answered_by_name_and_the_session_stays_open() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let mut client = Subscriber::json(Peer::connect(server.http), Account::default());
    let mut request = 0;
    for (option, field) in BAD_JSON {
        for op in ["subscribe", "update"] {
            request += 1;
            let text = format!(r#"{{"op":"{op}","id":{request},"topics":["a"],{option}}}"#);
            client.peer.send_text(&text);
            client.read_until("an error", |account| account.errors.len() == request);
            let (id, error) = client.account.errors.last().unwrap();
            assert_eq!(*id as usize, request, "{text}: {error}");
            assert!(error.starts_with(op) && error.contains(field), "{text}: {error}");
        }
    }
    // Not JSON at all.
    for option in [r#""max_rate":NaN"#, r#""max_rate":Infinity"#, r#""from":"#] {
        client.peer.send_text(&format!(r#"{{"op":"subscribe","topics":["a"],{option}}}"#));
        request += 1;
        client.read_until("an error", |account| account.errors.len() == request);
        assert!(client.account.errors.last().unwrap().1.starts_with("the message is not JSON: "));
    }
    assert_eq!(client.account.acknowledged, 0);
    assert_lives_on(&mut client, &server, "a");
    drop(client);
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("closed_protocol"), 0);
}

#[test]
fn bad_native_options_are_answered_by_name_and_the_session_stays_open() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let mut client = Subscriber::native(Peer::connect(server.tcp), Account::default());
    let none = Options::default();
    let mut request = 0;
    for (options, field) in [
        (Options { policy: 5, ..none }, "policy"),
        (Options { policy: 255, ..none }, "policy"),
        (Options { from: 4, ..none }, "from"),
        (Options { from: 255, ..none }, "from"),
        (Options { max_rate_millihertz: 1_000_001, ..none }, "max_rate"),
        (Options { max_rate_millihertz: u32::MAX, ..none }, "max_rate"),
    ] {
        for kind in [frames::SUBSCRIBE, frames::UPDATE] {
            request += 1;
            client.ask(kind, request, "a", options);
            client.read_until("an error", |account| account.errors.len() == request as usize);
            let (id, error) = client.account.errors.last().unwrap();
            assert_eq!(*id, request, "{options:?}: {error}");
            assert!(error.contains(field), "{options:?}: {error}");
        }
    }
    client.ask(frames::UPDATE, 77, "a", none);
    client.read_until("an error", |account| account.errors.last().is_some_and(|(id, _)| *id == 77));
    assert!(client.account.errors.last().unwrap().1.contains("not subscribed"));
    assert_eq!(client.account.acknowledged, 0);
    assert_lives_on(&mut client, &server, "a");
    drop(client);
    assert_eq!(server.stop_cleanly().total("closed_protocol"), 0);
}

#[test]
fn bad_options_of_a_path_are_answered_with_400_by_name() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    for (query, field) in [
        ("policy=fast", "policy"),
        ("policy=", "policy"),
        ("policy=1", "policy"),
        ("max_rate=0", "max_rate"),
        ("max_rate=NaN", "max_rate"),
        ("max_rate=-1", "max_rate"),
        ("max_rate=1e9", "max_rate"),
        ("max_rate=inf", "max_rate"),
        ("max_rate=", "max_rate"),
        ("max_rate=ten", "max_rate"),
        ("from=yesterday", "from"),
        ("from=", "from"),
        ("from=7", "from"),
        ("form=latest", "form"),
    ] {
        let mut peer = Peer::connect(server.http);
        peer.send(upgrade_request(&format!("/ws?topics=a&{query}"), "").as_bytes());
        let response = String::from_utf8(peer.read_to_end()).unwrap();
        assert!(response.starts_with("HTTP/1.1 400 "), "{query}: {response}");
        let body = response.split_once("\r\n\r\n").unwrap().1;
        assert!(body.contains(field), "{query}: {body}");
    }
    server.stop_cleanly();
}

#[test]
fn more_positions_than_a_session_may_name_are_refused_and_it_stays_open() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let count = RESUME_POSITIONS_MAX as u64 + 5;
    let mut native = Subscriber::native(Peer::connect(server.tcp), Account::default());
    for number in 0..count {
        native.peer.send(&Raw::resume(&format!("p.{number}"), 1, 1).bytes());
    }
    native.barrier(1);
    assert_eq!(native.account.errors.len(), 5);
    assert!(native.account.errors.iter().all(|(_, text)| text.starts_with("from: ")));
    // The accepted positions are answered as not recovered, because of their epoch.
    native.ask(frames::SUBSCRIBE, 2, "p.*", Options { from: FROM_RESUMES, epoch: 1, ..Options::default() });
    native.read_until("the answers to the positions", |account| {
        account.recovered.len() == RESUME_POSITIONS_MAX
    });
    assert!(native.account.recovered.iter().all(|answer| !answer.recovered));
    assert_lives_on(&mut native, &server, "after.native");

    let mut json = Subscriber::json(Peer::connect(server.http), Account::default());
    let places = |from: u64, to: u64| -> String {
        let places: Vec<String> = (from..to).map(|number| format!(r#""p.{number}":1"#)).collect();
        format!(
            r#"{{"op":"subscribe","id":9,"topics":["q.*"],"from":{{"epoch":1,"sequences":{{{}}}}}}}"#,
            places.join(",")
        )
    };
    json.peer.send_text(&places(0, count));
    json.read_until("an error", |account| !account.errors.is_empty());
    let (id, text) = &json.account.errors[0];
    assert!(*id == 9 && text.starts_with("from: "), "{text}");
    assert_eq!(json.account.acknowledged, 0);
    // Positions wait for their topics, so the second request has only what the first left over.
    json.peer.send_text(&places(0, count - 10));
    json.read_until("the acknowledgement", |account| account.acknowledged == 1);
    json.peer.send_text(&places(count, count + 10).replace("q.*", "r.*"));
    json.read_until("an error", |account| account.errors.len() == 2);
    assert_lives_on(&mut json, &server, "after.json");
    drop((native, json));
    server.stop_cleanly();
}

/// No budget for subscriptions: what protects others here is the turns.
const UNLIMITED: [&str; 3] = ["--subscribe-rate=0", "--history-rate=0", "--last-values-rate=0"];

/// A session that must get every tick in order while others misbehave.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<usize>>,
}

impl Bystander {
    fn start(server: &Server) -> Bystander {
        let stop = Arc::<AtomicBool>::default();
        let collector = Collector::start(server, WireFormat::WEBSOCKET_JSON, &["by.>"]);
        let mut publisher = connect(server, WireFormat::TCP_NATIVE);
        let thread_stop = stop.clone();
        let thread = thread::spawn(move || {
            let mut published = 0;
            while !thread_stop.load(Relaxed) {
                publish(&mut publisher, "by.stander", b"[7]");
                barrier(&mut publisher);
                published += 1;
                collector.wait_for(published);
            }
            let got = collector.finish();
            got.assert_no_gap("bystander");
            assert_eq!((got.count, got.closing), (published, None));
            published
        });
        Bystander { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> usize {
        self.stop.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

#[test]
fn a_hundred_thousand_subscriptions_are_answered_and_a_bystander_gets_every_tick() {
    const REQUESTS: u32 = 100_000;
    const HELD_MAX: usize = 1_024;
    let _machine = beside_others();
    let server = Server::start(&[&["--shards", "2"][..], &UNLIMITED].concat());
    let bystander = Bystander::start(&server);
    let mut client = Subscriber::native(Peer::connect(server.tcp), Account::default());
    let mut writer = Peer { stream: client.peer.stream.try_clone().unwrap(), buffer: Vec::new() };
    let writing = thread::spawn(move || {
        for request in 0..REQUESTS {
            let pattern = format!("many.{request}.*");
            let options = Options { from: FROM_LATEST, policy: CONFLATE, ..Options::default() };
            writer.send(&Raw::with_options(frames::SUBSCRIBE, request, &pattern, options).bytes());
        }
    });
    client.read_until("an answer to each", |account| {
        account.acknowledged + account.errors.len() == REQUESTS as usize
    });
    writing.join().unwrap();
    assert_eq!(client.account.acknowledged, HELD_MAX);
    assert!(client.account.errors.iter().all(|(_, text)| text.contains("1024 subscriptions")));
    let one_of_them = "many.7.x";
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    publish(&mut publisher, one_of_them, b"[1]");
    barrier(&mut publisher);
    client.read_until("a tick of one", |account| account.topics.contains_key(one_of_them));
    drop((client, publisher));
    say(&format!(
        "{REQUESTS} subscriptions asked for, {HELD_MAX} held; a bystander got {} ticks",
        bystander.finish()
    ));
    server.stop_cleanly();
}

/// The next frame of a kind. Fails on an error or a close before it.
fn until(peer: &mut Peer, kind: u16) -> Received {
    loop {
        let frame = peer.frame().unwrap();
        if frame.kind == kind {
            return frame;
        }
        assert!(![frames::ERROR, frames::CLOSING].contains(&frame.kind), "{frame:?}");
    }
}

#[test]
fn subscriptions_that_come_and_go_disturb_nobody() {
    const ROUNDS: u32 = 50;
    const PAIRS: u32 = 100;
    /// Subscriptions per round that last until they have received a tick.
    const PAIRS_WITH_TICKS: u32 = 5;
    let _machine = beside_others();
    let server = Server::start(&[&["--shards", "2", "--history", "100"][..], &UNLIMITED].concat());
    let bystander = Bystander::start(&server);
    let churner = || {
        let mut peer = Peer::native(server.tcp);
        let mut ticks = 0;
        for number in 0..ROUNDS * PAIRS {
            let (round, pair) = (number / PAIRS, number % PAIRS);
            let pattern = ["by.>", "by.stander", "*.stander"][(number / 3 % 3) as usize];
            let options = Options {
                // The wrong epoch, so a snapshot follows.
                from: [0, FROM_LATEST, FROM_PLACE][(number % 3) as usize],
                policy: (number % 4) as u8,
                epoch: 1,
                sequence: 1,
                max_rate_millihertz: number % 2 * 1_000,
            };
            let faster = Options { max_rate_millihertz: 5_000, from: 0, ..options };
            let come = Raw::with_options(frames::SUBSCRIBE, number, pattern, options).bytes();
            let change = Raw::with_options(frames::UPDATE, number, pattern, faster).bytes();
            let go = Raw::request(frames::UNSUBSCRIBE, number, pattern.as_bytes()).bytes();
            peer.send(&[&come[..], &change, &go].concat());
            if pair < PAIRS_WITH_TICKS {
                peer.send(&come);
                until(&mut peer, frames::TICK);
                ticks += 1;
                peer.send(&[change, go].concat());
            }
            if pair == PAIRS - 1 {
                peer.send(&Raw::ping(round.into()).bytes());
                assert_eq!(until(&mut peer, frames::PONG).token(), u64::from(round));
            }
        }
        // No trace is left: a new subscription starts like any other.
        peer.send(&Raw::request(frames::SUBSCRIBE, 7, b"by.stander").bytes());
        let mut last = 0;
        for _ in 0..20 {
            let frame = until(&mut peer, frames::TICK);
            assert!(last == 0 || frame.sequence == last + 1, "a gap after {last}: {frame:?}");
            last = frame.sequence;
        }
        ticks
    };
    let ticks: u32 = thread::scope(|scope| {
        let churners: Vec<_> = (0..4).map(|_| scope.spawn(churner)).collect();
        churners.into_iter().map(|churner| churner.join().unwrap()).sum()
    });
    let published = bystander.finish();
    let pairs = 4 * ROUNDS * (PAIRS + PAIRS_WITH_TICKS);
    say(&format!(
        "{pairs} subscriptions came and went, {ticks} ticks awaited on them; a bystander got {published}"
    ));
    server.stop_cleanly();
}
