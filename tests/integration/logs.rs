//! The log: its format in the journal and elsewhere, and how much of it peers can cause.

use crate::harness::{Server, beside_others, eventually, raw::Peer, tickcast_after};

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
