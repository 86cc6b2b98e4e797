//! The admin listener of a real server: every path, while the server serves and drains, under many requests at once, and
//! closing a session.

use std::{fs, net::SocketAddr, path::Path, thread};

use crate::harness::{
    Server, alone, beside_others,
    collector::{Collector, barrier, connect, publish},
    eventually,
    frames::{self, Raw},
    http::{get, get_of_all_shards, request},
    raw::Peer,
    say,
};
use tickcast::limits::ADMIN_ROWS_MAX;
use tickcast_proto::WireFormat;

/// Whether the server knows peers' addresses and round trips: it needs the descriptor of a registered file, which Linux
/// hands out from 6.8 on.
fn kernel_knows_addresses() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>());
    let mut number = || numbers.next().unwrap().unwrap();
    (number(), number()) >= (6, 8)
}

fn admin(server: &Server) -> SocketAddr {
    server.admin.expect("there is an admin listener")
}

/// The value of a sample, found by its name and labels as printed.
pub fn sample(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
}

/// The sum of a family's samples over shards.
pub fn sum(metrics: &str, family: &str) -> f64 {
    let samples =
        metrics.lines().filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{')));
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn metrics_count_what_the_clients_saw() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let admin = admin(&server);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["seen.>"]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    for number in 0..100 {
        publish(&mut publisher, &format!("seen.{}", number % 7), b"[1]");
    }
    barrier(&mut publisher);
    collector.wait_for(100);
    let answer = get_of_all_shards(admin, "/metrics");
    assert!(
        answer.head.to_lowercase().contains("content-type: text/plain; version=0.0.4"),
        "{}",
        answer.head
    );
    let metrics = answer.body;
    assert_eq!(sum(&metrics, "tickcast_ticks_sequenced_total"), 100.0);
    assert_eq!(sum(&metrics, "tickcast_ticks_delivered_total"), 100.0);
    assert_eq!(sum(&metrics, "tickcast_sessions_open"), 2.0);
    assert_eq!(sum(&metrics, "tickcast_topics"), 7.0);
    assert_eq!(sample(&metrics, "tickcast_stage{stage=\"serving\"}"), 1.0);
    assert!(sample(&metrics, "process_resident_memory_bytes") > 1e6);
    assert!(sample(&metrics, "process_open_fds") > 10.0);
    for shard in 0..2 {
        assert_eq!(sample(&metrics, &format!("tickcast_shard_answered{{shard=\"{shard}\"}}")), 1.0);
    }
    let all = "le=\"+Inf\"} ";
    let samples = metrics.lines().filter(|line| line.starts_with("tickcast_latency_seconds_bucket"));
    assert_eq!(samples.filter(|line| line.contains(all)).count(), 4, "two latencies for each of two shards");
    collector.finish();
    drop(publisher);
    server.stop_cleanly();
}

#[test]
fn every_path_answers_with_the_servers_state() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let admin = admin(&server);
    assert_eq!(get(admin, "/healthz").json()["alive"], true);
    assert_eq!(get(admin, "/readyz").json()["ready"], true);
    assert!(get(admin, "/").body.contains("/v1/sessions"));

    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["a.>", "b.x"]);
    let mut peer = Peer::websocket(server.http, "/ws?topics=a.%3E&client=desk%207", "tickcast.v1.rkyv");
    peer.message();
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    for topic in ["a.x", "a.x", "a.y", "b.x", "c.x", "c.x", "c.x"] {
        publish(&mut publisher, topic, b"[1]");
    }
    barrier(&mut publisher);
    collector.wait_for(4);
    eventually("all are sequenced", || {
        sum(&get_of_all_shards(admin, "/metrics").body, "tickcast_ticks_sequenced_total") == 7.0
    });

    let topics = get_of_all_shards(admin, "/v1/topics?limit=2").json();
    assert_eq!(topics["topics"].as_array().unwrap().len(), 2, "{topics}");
    let first = &topics["topics"][0];
    assert_eq!(
        (&first["topic"], &first["sequence"], &first["sessions"]),
        (&"c.x".into(), &3.into(), &0.into())
    );
    assert_eq!(topics["topics"][1]["topic"], "a.x");
    let found = get_of_all_shards(admin, "/v1/topics?prefix=a.&sort=newest").json();
    let mut names: Vec<&str> =
        found["topics"].as_array().unwrap().iter().map(|topic| topic["topic"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a.x", "a.y"]);
    assert!(found["topics"].as_array().unwrap().iter().all(|topic| topic["sessions"] == 2), "{found}");

    let sessions = get_of_all_shards(admin, "/v1/sessions?sort=topics").json();
    let sessions = sessions["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 3, "{sessions:?}");
    assert_eq!(sessions[0]["topics"], 3, "{sessions:?}");
    assert_eq!((&sessions[0]["encoding"], &sessions[0]["subscriptions"]), (&"json".into(), &2.into()));
    let named = sessions.iter().find(|session| session["identity"] == "desk 7").unwrap();
    assert_eq!((&named["encoding"], &named["state"]), (&"rkyv".into(), &"open".into()));
    let address = named["address"].as_str();
    let own = peer.stream.local_addr().unwrap().to_string();
    assert_eq!(address, kernel_knows_addresses().then_some(&*own));
    let has_rtt = |session: &serde_json::Value| session["rtt_us"].is_u64() == kernel_knows_addresses();
    assert!(sessions.iter().all(has_rtt), "{sessions:?}");
    assert_eq!(
        get_of_all_shards(admin, "/v1/sessions?limit=1").json()["sessions"].as_array().unwrap().len(),
        1
    );

    let shards = get_of_all_shards(admin, "/v1/shards").json();
    assert_eq!(shards["stage"], "serving");
    assert!(
        shards["start_seconds"].as_f64().unwrap() > 0.0 && shards["uptime_seconds"].as_f64().unwrap() > 0.0
    );
    // Constant across answers: `tickcast top` identifies a server by it.
    assert_eq!(shards["start_seconds"], get_of_all_shards(admin, "/v1/shards").json()["start_seconds"]);
    assert_eq!(shards["unanswered"], serde_json::json!([]));
    let of_shards = shards["shards"].as_array().unwrap();
    let sequenced = |shard: &serde_json::Value| shard["counters"]["ticks_sequenced"].as_u64().unwrap();
    assert_eq!(of_shards.iter().map(sequenced).sum::<u64>(), 7);
    let topics = |shard: &serde_json::Value| shard["state"]["topics"].as_u64().unwrap();
    assert_eq!(of_shards.iter().map(topics).sum::<u64>(), 4);

    let latency = get_of_all_shards(admin, "/v1/latency").json();
    let samples = latency["all"]["sequenced"]["samples"].as_u64().unwrap();
    assert!((1..=7).contains(&samples), "{latency}");
    let text = get_of_all_shards(admin, "/v1/latency?format=hgrm&until=sequenced").body;
    assert!(text.contains(&format!("Total count    = {samples:>12}")), "{text}");
    collector.finish();
    drop((peer, publisher));
    server.stop_cleanly();
}

#[test]
fn a_session_is_closed_by_its_id_with_3503_and_the_others_stay_open() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let admin = admin(&server);
    let (mut closed, mut other) = (Peer::native(server.tcp), Peer::native(server.tcp));
    let sessions =
        get_of_all_shards(admin, "/v1/sessions?sort=newest").json()["sessions"].as_array().unwrap().clone();
    // Found by address where that is known; otherwise either of the two will do.
    let own = closed.stream.local_addr().unwrap().to_string();
    let found = sessions.iter().find(|session| session["address"] == *own);
    assert_eq!(found.is_some(), kernel_knows_addresses());
    let id = found.unwrap_or(&sessions[0])["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/sessions/{id}");
    assert_eq!(request(admin, "GET", &path).status, 405);
    let answer = request(admin, "DELETE", &path);
    assert_eq!((answer.status, &answer.json()["closed"]), (200, &id.clone().into()));
    if found.is_none() && !closed.has_answer() {
        eventually("one is closed", || closed.has_answer() || other.has_answer());
        if other.has_answer() {
            std::mem::swap(&mut closed, &mut other);
        }
    }
    let closing = closed.frame().unwrap();
    assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3503), "{closing:?}");
    assert!(closed.frame().is_none());
    drop(closed);
    other.send(&Raw::ping(7).bytes());
    assert_eq!(other.frame().unwrap().token(), 7);
    eventually("the session id is unknown", || request(admin, "DELETE", &path).status == 404);
    drop(other);
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("closed_by_operator"), 1);
    assert!(stopped.log.contains(&format!(": close session {id}: closed")), "{}", stopped.log);
}

#[test]
fn a_thousand_requests_at_once_are_all_answered_or_refused_and_a_subscriber_gets_every_tick() {
    const REQUESTS: usize = 1_000;
    let _machine = alone();
    let server = Server::start(&["--shards", "2"]);
    let admin = admin(&server);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["while.asked"]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let paths = ["/metrics", "/v1/sessions", "/healthz", "/v1/topics", "/v1/latency", "/v1/shards"];
    let (mut answered, mut refused) = (0, 0);
    thread::scope(|scope| {
        let askers: Vec<_> = (0..REQUESTS)
            .map(|number| scope.spawn(move || request(admin, "GET", paths[number % paths.len()]).status))
            .collect();
        for number in 0..100 {
            publish(&mut publisher, "while.asked", b"[1]");
            barrier(&mut publisher);
            collector.wait_for(number + 1);
        }
        for asker in askers {
            match asker.join().unwrap() {
                200 => answered += 1,
                503 => refused += 1,
                other => panic!("{other}"),
            }
        }
    });
    say(&format!("{REQUESTS} requests at once: {answered} answered, {refused} refused"));
    assert_eq!(answered + refused, REQUESTS);
    assert!(answered >= REQUESTS / 6, "requests that ask no shard are always answered");
    assert_eq!(get(admin, "/readyz").status, 200);
    collector.finish().assert_no_gap("while asked");
    drop(publisher);
    server.stop_cleanly();
}

#[test]
fn two_thousand_silent_connections_do_not_delay_a_health_check() {
    const SILENT: usize = 2_000;
    let _machine = alone();
    crate::harness::processes::raise_descriptor_limit();
    // Its handshake deadline is the clock: one at a time, the silent connections would take twice as long.
    let server = Server::start(&["--shards", "1", "--handshake-deadline", "30s"]);
    let admin = admin(&server);
    let silent: Vec<Peer> = (0..SILENT)
        .map(|number| {
            let mut peer = Peer::connect(admin);
            if number % 2 == 0 {
                peer.send_as_far_as_it_goes(b"GET /healthz HTTP/1.1\r\n");
            }
            peer
        })
        .collect();
    let clock = Peer::connect(server.http);
    assert_eq!(get(admin, "/healthz").json()["alive"], true);
    assert!(!clock.has_answer(), "it waited for the others");
    drop((silent, clock));
    server.stop_cleanly();
}

#[test]
fn the_listener_reports_a_drain_and_still_answers() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2", "--drain-deadline", "1m"]);
    let admin = admin(&server);
    // The peer never closes its side, so the drain waits for it.
    let peer = Peer::native(server.tcp);
    server.terminate();
    eventually("the server drains", || request(admin, "GET", "/readyz").status == 503);
    let ready = request(admin, "GET", "/readyz").json();
    assert_eq!(ready["reason"], "draining");
    assert_eq!(get(admin, "/healthz").json()["alive"], true);
    let metrics = get(admin, "/metrics").body;
    assert_eq!(sample(&metrics, "tickcast_stage{stage=\"draining\"}"), 1.0);
    eventually("its session ends", || {
        let sessions = request(admin, "GET", "/v1/sessions").json();
        sessions["sessions"].as_array().unwrap().iter().any(|session| session["state"] == "ending")
    });
    let shards = request(admin, "GET", "/v1/shards").json();
    assert_eq!(shards["stage"], "draining");
    drop(peer);
    server.wait().assert_clean();
}

/// Allowed cores and nice value of each thread of the server whose name starts with `name`.
fn threads(server: &Server, name: &str) -> Vec<(String, i32)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    // A thread may end meanwhile.
    let read = |folder: &Path, file: &str| fs::read_to_string(folder.join(file)).ok();
    let is_named = |task: &Path| read(task, "comm").is_some_and(|found| found.starts_with(name));
    let named = tasks.flatten().map(|task| task.path()).filter(|task| is_named(task));
    let seen = named.map(|task| {
        let read = |file| read(&task, file).expect("the threads that are looked for stay");
        let status = read("status");
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        // proc(5): nice is the 19th field, the 17th after the name.
        let stat = read("stat");
        let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap();
        (cores.trim().to_owned(), nice)
    });
    seen.collect()
}

/// Core and nice value of each shard's thread. Each shard has a second thread, for blocking calls, which is not pinned.
fn pinned(server: &Server) -> Vec<(usize, i32)> {
    let of_shards = threads(server, "shard").into_iter();
    of_shards.filter_map(|(cores, nice)| Some((cores.parse().ok()?, nice))).collect()
}

#[test]
fn the_listener_gives_way_where_every_core_has_a_shard() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    // The listener has set its nice value before it answers.
    get(admin(&server), "/healthz");
    let of_shards = pinned(&server);
    assert_eq!(threads(&server, "admin").iter().map(|thread| thread.1).collect::<Vec<_>>(), [19]);
    assert!(of_shards.iter().all(|thread| thread.1 == of_shards[0].1), "{of_shards:?}");
    server.stop_cleanly();
}

#[test]
fn the_listener_keeps_off_the_shards_cores_where_others_are_free() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    get(admin(&server), "/healthz");
    let of_shards = pinned(&server);
    let (first, nice) = of_shards[0];
    server.stop_cleanly();
    assert!(of_shards.len() > 1, "this test needs two cores");
    let server = Server::start(&["--cores", &first.to_string()]);
    get(admin(&server), "/healthz");
    assert_eq!(pinned(&server), [(first, nice)]);
    let of_listener = threads(&server, "admin");
    assert_eq!((of_listener.len(), of_listener[0].1), (1, nice));
    let has_first = of_listener[0].0.split(',').any(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        (from.parse().unwrap()..=to.parse().unwrap()).contains(&first)
    });
    assert!(!has_first, "{of_listener:?}");
    server.stop_cleanly();
}

#[test]
fn a_server_without_the_listener_announces_none() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1", "--no-admin"]);
    assert_eq!(server.admin, None);
    server.stop_cleanly();
}

#[test]
fn rows_come_from_all_sessions_and_never_exceed_a_thousand() {
    const PEERS: usize = ADMIN_ROWS_MAX + 200;
    let _machine = alone();
    crate::harness::processes::raise_descriptor_limit();
    let server = Server::start(&["--shards", "2"]);
    let admin = admin(&server);
    let peers: Vec<Peer> = (0..PEERS).map(|_| Peer::native(server.tcp)).collect();
    let sessions =
        get_of_all_shards(admin, &format!("/v1/sessions?limit={ADMIN_ROWS_MAX}&sort=newest")).json();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), ADMIN_ROWS_MAX);
    assert_eq!(request(admin, "GET", "/v1/sessions?limit=1001").status, 400);
    drop(peers);
    server.stop_cleanly();
}
