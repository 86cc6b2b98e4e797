//! A server that loses a part of itself, at its start or later, ends with the reason and an exit status that is not 0. It never
//! hangs, and never serves half.
//!
//! Needs strace, prlimit and setpriv (`scripts/test.sh` installs them).

use std::{
    fs::File,
    net::TcpStream,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tickcast_client::{Address, Client, Event};
use tickcast_core::placement::{home_shard, serving_shard};
use tickcast_proto::WireFormat;

use crate::{
    harness::{
        FREE_PORTS, GUARD, Log, Server, Stopped, beside_others, collector::publish, eventually,
        http::get_of_all_shards, tickcast, tickcast_without_privileges, wait_for_exit,
    },
    startup::run,
};

const TWO_SHARDS: [&str; 3] = ["--no-sim", "--shards", "2"];

/// Runs the server under strace, which makes system calls fail and prints nothing of its own.
fn serve_under_strace(options: &[&str]) -> (Option<i32>, String) {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null"]).args(options).arg(env!("CARGO_BIN_EXE_tickcast"));
    for (name, _) in tickcast().get_envs() {
        strace.env_remove(name);
    }
    run(strace.arg("serve").args(FREE_PORTS).args(TWO_SHARDS))
}

#[test]
fn a_shard_without_its_rings_ends_the_start_with_the_reason() {
    let _machine = beside_others();
    // Counted by thread: the main thread creates one ring to try it, each shard three of its executor's and its data ring.
    let rings = "anon_inode:[io_uring]";
    for (options, reason, remedy) in [
        (&["-e", "inject=io_uring_setup:error=ENOMEM:when=2+"][..], "Cannot allocate memory", "LimitMEMLOCK"),
        (&["-e", "inject=io_uring_setup:error=ENOMEM:when=4+"], "Cannot allocate memory", "LimitMEMLOCK"),
        (&["-e", "inject=io_uring_setup:error=EMFILE:when=2+"], "Too many open files", "LimitNOFILE"),
        (&["-P", rings, "-e", "inject=mmap:error=ENOMEM:when=4+"], "Cannot allocate memory", "LimitMEMLOCK"),
    ] {
        let (code, text) = serve_under_strace(options);
        assert_eq!(code, Some(1), "{options:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{options:?}: {text}");
        let first = "cannot start: its io_uring rings cannot be created: ";
        assert!([first, reason, remedy].iter().all(|part| text.contains(part)), "{options:?}: {text}");
    }
}

/// The server with an effective limit of locked memory: if the tests run as root, it runs as a user without privileges. Each
/// test has a user of its own, because the kernel adds up all locked memory of a user.
fn serve_with_memlock(user: u32, bytes: u64, file: &File) -> Command {
    tickcast_without_privileges(user, &["prlimit", &format!("--memlock={bytes}")], file)
}

#[test]
fn the_limit_of_locked_memory_is_checked_for_all_shards() {
    let _machine = beside_others();
    let program = File::open(env!("CARGO_BIN_EXE_tickcast")).unwrap();
    let serve = |shards: &str| {
        let mut command = serve_with_memlock(64_001, 2 << 20, &program);
        command.arg("serve").args(FREE_PORTS).args(["--no-sim", "--shards", shards]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut refused = serve("64");
    let log = Log::collect(refused.stderr.take().unwrap());
    assert_eq!(wait_for_exit(&mut refused), Some(1), "{}", log.whole());
    for part in ["memlock limit too low: 2097152 bytes", "at least 33554432", "shards: 64", "LimitMEMLOCK"] {
        assert!(log.whole().contains(part), "{part:?} is not in {}", log.whole());
    }
    // What the check demands is enough.
    let mut enough = serve("4");
    let (out, log) =
        (Log::collect(enough.stdout.take().unwrap()), Log::collect(enough.stderr.take().unwrap()));
    out.wait_for("shards=4");
    kill(Pid::from_raw(enough.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait_for_exit(&mut enough), Some(0), "{}", log.whole());
}

#[test]
fn tickcast_check_demands_locked_memory_for_all_shards() {
    let _machine = beside_others();
    let program = File::open(env!("CARGO_BIN_EXE_tickcast")).unwrap();
    let mut command = serve_with_memlock(64_002, 600 << 10, &program);
    let output = command.args(["check", "--tune", "/bin/true"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // The tests need two cores.
    assert_eq!(output.status.code(), Some(1), "{text}");
    let (_, reason) = text.split_once("\nRLIMIT_MEMLOCK ").unwrap();
    assert!(reason.contains("memlock limit too low: 614400 bytes"), "{text}");
}

/// A server with an injected fault, which only a debug build has.
#[cfg(debug_assertions)]
fn faulty(fault: &str, options: &[&str]) -> Server {
    let mut command = tickcast();
    command.env("TICKCAST_FAULT", fault).env("RUST_LOG", "info");
    Server::start_command(&mut command, &[&TWO_SHARDS[..], options].concat())
}

/// Asserts that the server exited with status 1 and logged the reason.
#[cfg(debug_assertions)]
#[track_caller]
fn assert_failed(stopped: &Stopped, reason: &str) {
    assert_eq!(stopped.code, Some(1), "{}", stopped.log);
    assert!(stopped.log.contains(reason), "{}", stopped.log);
}

/// Asks all shards; the answer may be partial, or none if the server ends.
#[cfg(debug_assertions)]
fn ask_shards(server: &Server) {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(server.admin.unwrap()).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
#[cfg(debug_assertions)]
fn a_shard_that_does_not_start_ends_the_start_with_the_reason() {
    let _machine = beside_others();
    for (fault, reason) in [
        ("start 1 panic", "shard 1 cannot start: it panicked: injected fault"),
        ("start 1 hang", "shard 1 has not started within 30 s"),
    ] {
        let mut command = tickcast();
        command.env("TICKCAST_FAULT", fault).arg("serve").args(FREE_PORTS).args(TWO_SHARDS);
        let (code, text) = run(&mut command);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
#[cfg(debug_assertions)]
fn a_shard_that_panics_ends_the_server_and_the_others_are_drained() {
    let _machine = beside_others();
    let server = faulty("control 1 panic", &["--drain-deadline", "1h"]);
    let of_shard_0 = |named: &str, shard: fn(&str, u16) -> tickcast_proto::ids::ShardId| {
        (0..).map(|n| format!("{named}{n}")).find(|name| shard(name, 2).0 == 0).unwrap()
    };
    let (client, topic) = (of_shard_0("client-", serving_shard), of_shard_0("topic.", home_shard));
    let path = format!("/ws?client={client}");
    let address = Address {
        host: server.http.to_string(),
        path,
        encoding: WireFormat::WEBSOCKET_NATIVE,
        is_tls: false,
    };
    let mut client = Client::connect_to(&address).unwrap();
    client.subscribe(&topic).unwrap();
    while !matches!(client.next_event(Some(GUARD)).unwrap(), Some(Event::Subscribed { .. })) {}
    (0..100).for_each(|_| publish(&mut client, &topic, b"tick"));
    expect_all_ticks(&mut client, &server, &topic);
    let stopped = server.wait();
    assert_failed(&stopped, "shard 1 has failed: it panicked: injected fault");
    assert!(!stopped.log.contains("shard 0 has"), "{}", stopped.log);
}

/// Triggers the fault once all ticks are accepted; expects every one of them and a CLOSING.
#[cfg(debug_assertions)]
fn expect_all_ticks(client: &mut Client, server: &Server, topic: &str) {
    let mut last = 0;
    let mut take = |event: Event<'_>| match event {
        Event::Tick(tick) => {
            assert_eq!((tick.topic, tick.sequence.0), (topic, last + 1));
            last += 1;
            None
        }
        Event::Closing { code, .. } => Some(code),
        _ => None,
    };
    client.barrier(GUARD, |event| assert_eq!(take(event), None)).unwrap();
    ask_shards(server);
    let code = loop {
        let event = client.next_event(Some(GUARD)).unwrap().expect("the server ends");
        if let Some(code) = take(event) {
            break code;
        }
    };
    assert_eq!((code, last), (3001, 100));
}

#[test]
#[cfg(debug_assertions)]
fn a_shard_that_panics_while_the_server_stops_is_not_waited_for() {
    let _machine = beside_others();
    // If shard 0 did not notice the end of shard 1, it would wait for it for half of this time.
    let server = faulty("stop 1 panic", &["--drain-deadline", "1h"]);
    assert_failed(&server.stop(), "shard 1 has failed while stopping: it panicked");
}

#[test]
#[cfg(debug_assertions)]
fn a_shard_that_is_stuck_does_not_keep_a_server_that_stops() {
    let _machine = beside_others();
    let server = faulty("control 1 hang", &["--drain-deadline", "0"]);
    ask_shards(&server);
    assert_failed(&server.stop(), "shard 1 does not stop: it is stuck");
}

#[test]
#[cfg(debug_assertions)]
fn an_admin_or_a_signals_thread_that_panics_ends_the_server() {
    let _machine = beside_others();
    let server = faulty("admin 0 panic", &[]);
    drop(TcpStream::connect(server.admin.unwrap()).unwrap());
    assert_failed(&server.wait(), "the admin thread has ended: it panicked: injected fault");

    let server = faulty("signals 0 panic", &[]);
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGUSR1).unwrap();
    assert_failed(&server.wait(), "the signals thread has ended: it panicked");
}

#[test]
#[cfg(debug_assertions)]
fn a_source_that_panics_ends_the_server_and_one_that_is_stuck_does_not_keep_it() {
    let _machine = beside_others();
    let start = |fault: &str| {
        let mut command = tickcast();
        Server::start_command(
            command.env("TICKCAST_FAULT", fault).env("RUST_LOG", "info"),
            &["--shards", "2"],
        )
    };
    assert_failed(&start("source 0 panic").wait(), "simulator: panicked: injected fault");

    let stopped = start("source 0 hang").stop_cleanly();
    assert!(stopped.log.contains("source simulator did not stop in time"), "{}", stopped.log);
}

#[test]
#[cfg(debug_assertions)]
fn a_slow_turn_is_counted_and_logged_with_what_it_did() {
    let _machine = beside_others();
    let server = faulty("control 0 slow", &[]);
    let metric = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    let mut metrics = String::new();
    eventually("a slow turn is counted", || {
        metrics = get_of_all_shards(server.admin.unwrap(), "/metrics").body;
        metric(&metrics, "tickcast_turns_slow_total{shard=\"0\"}") > 0
    });
    let bucket = |bound: &str| {
        metric(&metrics, &format!("tickcast_turn_seconds_bucket{{shard=\"0\",le=\"{bound}\"}}"))
    };
    assert!(bucket("0.1") < bucket("+Inf"), "{metrics}");
    assert_eq!(bucket("+Inf"), metric(&metrics, "tickcast_turn_seconds_count{shard=\"0\"}"));
    server.log.wait_for("shard 0: a turn took 1");
    server.log.wait_for(" ms of CPU time: ");
    server.log.wait_for("control_requests ");
    server.stop_cleanly();
}
