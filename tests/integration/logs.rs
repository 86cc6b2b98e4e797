//! The log: its format in the journal and elsewhere, and how much of it peers can cause.

use std::{os::unix::net::UnixDatagram, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tickcast_proto::WireFormat;

use crate::harness::{
    FREE_PORTS, GUARD, Server, beside_others,
    collector::{Collector, barrier, connect, publish},
    eventually,
    http::get,
    processes::FullPipe,
    raw::Peer,
    tickcast, tickcast_after, wait_for_exit,
};

/// Sessions that end with an error in a row.
const PEERS: usize = 200;

#[test]
fn log_lines_for_the_journal_have_priorities_and_no_times() {
    let _machine = beside_others();
    let mut command = tickcast_after("export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2); exec");
    let stopped = Server::start_command(command.env("RUST_LOG", "info"), &["--no-sim"]).stop_cleanly();
    assert!(stopped.log.contains("<6>SIGTERM: stopping"), "{}", stopped.log);
    assert!(stopped.log.lines().all(|line| line.starts_with('<')), "{}", stopped.log);
}

#[test]
fn a_server_that_inherits_the_journals_variable_but_not_its_stream_logs_times() {
    let _machine = beside_others();
    let mut command = tickcast_after("export JOURNAL_STREAM=1:1; exec");
    let stopped = Server::start_command(command.env("RUST_LOG", "info"), &["--no-sim"]).stop_cleanly();
    assert!(stopped.log.lines().all(|line| line.starts_with('[')), "{}", stopped.log);
}

#[test]
fn each_peer_error_is_logged_or_counted() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    for _ in 0..PEERS {
        let mut peer = Peer::connect(server.tcp);
        peer.send(&[0xff; 64]);
        while peer.frame().is_some() {}
    }
    eventually("the last session is logged or counted", || server.connections() == 0);
    let stopped = server.stop_cleanly();
    let written = stopped.log.matches(" ends: ").count();
    let counted: usize = stopped
        .log
        .lines()
        .filter_map(|line| line.strip_suffix(" similar messages suppressed"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
        .sum();
    assert!(written > 0, "{}", stopped.log);
    assert_eq!(written + counted, PEERS, "{}", stopped.log);
    assert_eq!(stopped.total("closed_protocol"), PEERS as u64);
}

#[test]
fn a_log_reader_that_stands_still_delays_no_client_and_no_stop() {
    let _machine = beside_others();
    let mut pipe = FullPipe::new("log");
    let mut command = tickcast_after("exec 2> \"$PIPE\"; exec");
    command.env("PIPE", pipe.path()).env("RUST_LOG", "info");
    let server = Server::start_command(&mut command, &["--no-sim", "--shards", "2"]);
    let pid = Pid::from_raw(server.pid() as i32);
    let dropped = || {
        let text = get(server.admin.unwrap(), "/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix("tickcast_log_lines_dropped_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    // A line that a client causes, and as many reports as the queue holds.
    let mut peer = Peer::connect(server.tcp);
    peer.send(&[0xff; 64]);
    while peer.frame().is_some() {}
    pipe.wait_for_a_blocked_writer(server.pid());
    eventually("lines are dropped", || {
        kill(pid, Signal::SIGUSR1).unwrap();
        dropped() > 0
    });
    let subscriber = Collector::start(&server, WireFormat::TCP_NATIVE, &["log.>"]);
    let mut publisher = connect(&server, WireFormat::WEBSOCKET_JSON);
    for _ in 0..20 {
        publish(&mut publisher, "log.t", b"1");
    }
    barrier(&mut publisher);
    subscriber.wait_for(20);
    subscriber.finish();
    drop(publisher);
    // Once somebody reads, the log goes on and says what is missing.
    pipe.wait_for("lines dropped since the start");
    pipe.fill();
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn a_reader_of_standard_output_that_stands_still_delays_neither_start_nor_stop() {
    let _machine = beside_others();
    let pipe = FullPipe::new("announcement");
    let path = std::env::temp_dir().join(format!("tickcast-{}-announced.sock", std::process::id()));
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(GUARD)).unwrap();
    let mut command = tickcast();
    command.args(["serve", "--no-sim"]).args(FREE_PORTS).env("NOTIFY_SOCKET", &path).stdin(Stdio::null());
    let mut server = command.stdout(pipe.writer()).stderr(Stdio::null()).spawn().unwrap();
    let mut buffer = [0; 64];
    let len = manager.recv(&mut buffer).unwrap();
    assert!(buffer[..len].starts_with(b"READY=1\n"));
    pipe.wait_for_a_blocked_writer(server.id());
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait_for_exit(&mut server), Some(0));
    std::fs::remove_file(path).unwrap();
}
