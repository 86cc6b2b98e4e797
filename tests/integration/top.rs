//! `tickcast top` against a real server: as text, and on the screen of a real terminal. Needs tmux (`scripts/test.sh`
//! installs it).

use std::{
    net::{SocketAddr, TcpListener},
    process::Output,
};

use crate::harness::{
    Server, beside_others,
    collector::{Collector, barrier, connect, publish},
    eventually,
    http::get,
    processes::{resume, suspend},
    raw::Peer,
    terminal::Terminal,
    tickcast,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tickcast_proto::WireFormat;

fn top(arguments: &[&str]) -> Output {
    tickcast().arg("top").args(arguments).output().unwrap()
}

fn once(admin: SocketAddr) -> String {
    let output = top(&["--once", "--interval", "100ms", "--admin", &admin.to_string()]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The words of the line whose first word is `first`.
fn words<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found = lines.filter(|words| words.first() == Some(&first));
    found.next().unwrap_or_else(|| panic!("no line of {first} in\n{text}"))
}

fn on_screen(admin: SocketAddr) -> String {
    format!("{} top --interval 100ms --admin {admin}", env!("CARGO_BIN_EXE_tickcast"))
}

#[test]
fn once_prints_what_the_server_counted() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let admin = server.admin.unwrap();
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["odds.>"]);
    let mut peer = Peer::websocket(server.http, "/ws?topics=odds.a&client=desk%207", "tickcast.v1.rkyv");
    peer.message();
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    for topic in ["odds.a", "odds.a", "odds.a", "odds.b", "else"] {
        publish(&mut publisher, topic, b"[1]");
    }
    barrier(&mut publisher);
    collector.wait_for(4);
    eventually("all are sequenced", || {
        let shards = get(admin, "/v1/shards").json();
        let of = |shard: &serde_json::Value| shard["counters"]["ticks_sequenced"].as_u64().unwrap();
        shards["shards"].as_array().unwrap().iter().map(of).sum::<u64>() == 5
    });

    let mut text = String::new();
    // On a busy machine a shard may not answer in time: then latencies are since the start, and rows are missing.
    eventually("all shards answer twice in a row", || {
        text = once(admin);
        let header = text.lines().nth(1).unwrap();
        !text.contains("\nno response from ")
            && text.contains("\nlatency, last ")
            && header.contains(" 0 deliveries/s, ")
    });
    assert!(
        text.starts_with(&format!("tickcast {} at {admin}: serving, up ", env!("CARGO_PKG_VERSION"))),
        "{text}"
    );
    let header = text.lines().nth(1).unwrap();
    assert!(header.starts_with("3 sessions, 2 subscribed, 0 ticks/s in, 0 deliveries/s, "), "{header}");
    assert!(text.contains("\nshards: 2\n"), "{text}");
    let sessions: u64 = ["0", "1"].iter().map(|shard| words(&text, shard)[2].parse::<u64>().unwrap()).sum();
    assert_eq!(sessions, 3, "{text}");
    // Name, rate, ticks, sessions.
    assert_eq!(words(&text, "odds.a")[1..4], ["0", "3", "2"], "{text}");
    assert_eq!(words(&text, "odds.b")[1..4], ["0", "1", "1"], "{text}");
    assert_eq!(words(&text, "else")[1..4], ["0", "1", "0"], "{text}");
    assert!(text.contains("\ntopics by rate: 3\n") && text.contains("\nsessions by outbox: 3\n"), "{text}");
    let named = text.lines().find(|line| line.contains("desk 7")).unwrap_or_else(|| panic!("{text}"));
    assert!(named.contains("rkyv") && named.contains("open"), "{named}");
    assert!(!text.contains('\x1b'));
    collector.finish();
    drop((peer, publisher));
    server.stop_cleanly();
}

#[test]
fn a_feed_has_rates() {
    let _machine = beside_others();
    let server = Server::start_logging("info", &["--shards", "2", "--sim-rate", "100"]);
    let collectors = [0, 1].map(|_| Collector::start(&server, WireFormat::TCP_NATIVE, &["sim.>"]));
    collectors.iter().for_each(|collector| collector.wait_for(100));
    let rate = |text: &str, unit: &str| {
        let mut parts = text.lines().nth(1).unwrap().split(", ");
        let part = parts.find_map(|part| part.strip_suffix(unit));
        part.unwrap_or_else(|| panic!("{text}")).replace(',', "").parse::<f64>().unwrap()
    };
    let mut text = String::new();
    // On a busy machine the feed may publish nothing for a whole interval.
    eventually("the feed has a rate", || {
        text = once(server.admin.unwrap());
        [" ticks/s in", " deliveries/s"].iter().all(|unit| rate(&text, unit) > 0.0)
    });
    assert_eq!(rate(&text, " dropped/s"), 0.0, "{text}");
    assert_eq!(words(&text, "sim.0")[3], "2", "both subscribe to it: {text}");
    collectors.into_iter().for_each(|collector| drop(collector.finish()));
    server.stop_cleanly();
}

#[test]
fn an_unreachable_server_is_reported_with_the_remedy() {
    let _machine = beside_others();
    let fails = |arguments: &[&str], parts: &[&str]| {
        let output = top(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)) && output.stdout.is_empty(), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    };
    // Bound and closed again: nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    fails(&["--once", "--admin", &nobody], &[&nobody, "refused", "tickcast serve", "--admin"]);
    fails(&["--admin", &nobody], &["not a terminal", "--once"]);
    fails(&["--once", "--admin", "127.0.0.1:0"], &["port 0"]);
    fails(&["--once", "--interval", "99ms"], &["99ms", "--interval", "must be 100ms to 1m"]);
    fails(&["--once", "--interval", "61s"], &["must be 100ms to 1m"]);
    let server = Server::start(&[]);
    fails(&["--once", "--admin", &server.http.to_string()], &["not a tickcast admin listener"]);
    server.stop_cleanly();
}

#[test]
fn the_screen_follows_the_server_and_the_keys_and_restores_the_terminal() {
    let _machine = beside_others();
    let server = Server::start_logging("info", &["--shards", "2", "--sim-rate", "100"]);
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["sim.>"]);
    collector.wait_for(100);
    let terminal = Terminal::run(&on_screen(server.admin.unwrap()), 120, 40);
    let screen = terminal.wait_until("rates", |screen| {
        screen.contains("serving, up ") && screen.contains(" ticks/s in") && screen.contains("latency, last ")
    });
    for part in ["shards: 2", "topics by rate: 10", "sim.0", "sessions by outbox: 1", "json", "q quit"] {
        assert!(screen.contains(part), "{part}:\n{screen}");
    }
    terminal.press("h");
    terminal.wait_for("sort sessions by the next criterion");
    terminal.press("h");
    terminal.press("s");
    terminal.wait_for("sessions by lag: 1");
    terminal.press("+");
    terminal.wait_for("interval: 250 ms");
    terminal.press("p");
    terminal.wait_for("paused; press p to resume");
    // The escape sequences of arrow keys are not an Escape, which would quit.
    terminal.press("Up");
    terminal.press("Down");
    terminal.press("Tab");
    terminal.press("p");
    terminal.wait_until("no pause", |screen| !screen.contains("paused") && screen.contains("sim.0"));
    terminal.press("q");
    assert_eq!(terminal.exit_code(), 0);
    terminal.assert_as_before();
    collector.finish();
    server.stop_cleanly();
}

#[test]
fn a_hanging_or_stopped_server_does_not_block_the_keys() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let terminal = Terminal::run(&on_screen(server.admin.unwrap()), 120, 40);
    terminal.wait_for("0 ticks/s in");
    suspend(server.pid());
    terminal.press("h");
    terminal.wait_for("sort sessions by the next criterion");
    terminal.wait_for("timed out after 5.0 s");
    resume(server.pid());
    terminal.press("h");
    terminal.wait_until("an answer", |screen| !screen.contains("no response for"));
    server.stop_cleanly();
    let screen = terminal.wait_for("refused");
    assert!(screen.contains("no response for ") && screen.contains("sessions by outbox: 0"), "{screen}");
    terminal.press("C-c");
    assert_eq!(terminal.exit_code(), 0);
    terminal.assert_as_before();
}

#[test]
fn a_server_that_hangs_from_the_start_does_not_block_signals() {
    let _machine = beside_others();
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let terminal = Terminal::run(&on_screen(hanging.local_addr().unwrap()), 80, 24);
    // The request is never answered.
    let asked = hanging.accept().unwrap();
    kill(Pid::from_raw(terminal.pid()), Signal::SIGINT).unwrap();
    assert_eq!(
        terminal.exit_code(),
        128 + Signal::SIGINT as i32,
        "ended by the signal, not by a late answer"
    );
    terminal.assert_as_before();
    drop(asked);
}

#[test]
fn a_signal_ends_it_and_restores_the_terminal() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let terminal = Terminal::run(&on_screen(server.admin.unwrap()), 80, 24);
        terminal.wait_for("serving, up ");
        kill(Pid::from_raw(terminal.pid()), signal).unwrap();
        assert_eq!(terminal.exit_code(), 0, "{signal}");
        terminal.assert_as_before();
    }
    server.stop_cleanly();
}

#[test]
fn small_and_resized_terminals_are_drawn() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let terminal = Terminal::run(&on_screen(server.admin.unwrap()), 20, 5);
    terminal.wait_for("sessions by outbox");
    terminal.resize(120, 30);
    terminal.wait_for("shards: ");
    terminal.press("Escape");
    assert_eq!(terminal.exit_code(), 0);
    server.stop_cleanly();
}

#[test]
fn ctrl_z_gives_the_terminal_back_and_fg_takes_it_again() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let top = on_screen(server.admin.unwrap());
    let stopped = Terminal::run(&format!("set -m; {top}"), 80, 24);
    stopped.wait_for("serving, up ");
    stopped.press("C-z");
    assert_eq!(stopped.exit_code(), 128 + Signal::SIGTSTP as i32);
    stopped.assert_as_before();

    for signal in [Signal::SIGTSTP, Signal::SIGSTOP] {
        // The shell waits for a line, so that the screen of before the stop is not taken for that of after the resume.
        let between = format!("set -m; {top}; echo between; read line; fg >/dev/null");
        let resumed = Terminal::run(&between, 80, 24);
        resumed.wait_for("serving, up ");
        kill(Pid::from_raw(resumed.pid()), signal).unwrap();
        resumed.wait_for("between");
        // A line feed: after a SIGSTOP the terminal is still raw.
        resumed.press("C-j");
        resumed.wait_until("it is drawn again", |screen| {
            screen.contains("serving, up ") && screen.contains("q quit") && !screen.contains("between")
        });
        resumed.press("q");
        assert_eq!(resumed.exit_code(), 0, "{signal}");
        // SIGSTOP cannot be received: what the shell wrote in between is on the other screen.
        if signal == Signal::SIGTSTP {
            resumed.assert_as_before();
        }
    }
    server.stop_cleanly();
}

#[test]
fn a_dumb_terminal_is_refused_with_the_remedy() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let terminal = Terminal::run(&format!("TERM=dumb {}", on_screen(server.admin.unwrap())), 120, 24);
    assert_eq!(terminal.exit_code(), 1);
    assert!(terminal.screen().contains("TERM=dumb); use `tickcast top --once`"), "{}", terminal.screen());
    server.stop_cleanly();
}

#[test]
fn localhost_is_an_address_to_query() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let output = top(&[
        "--once",
        "--interval",
        "100ms",
        "--admin",
        &format!("localhost:{}", server.admin.unwrap().port()),
    ]);
    assert!(output.status.success(), "{output:?}");
    server.stop_cleanly();
}
