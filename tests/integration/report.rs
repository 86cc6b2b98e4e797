//! SIGUSR1 and `--report`: the latency table of a running server.

use crate::harness::{
    Server, beside_others,
    collector::{Collector, connect, publish},
    eventually,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tickcast_proto::WireFormat;

/// Ticks received before each table.
const TICKS: usize = 20;

fn ask_for_report(server: &Server) {
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGUSR1).unwrap();
}

/// Rows of the last table in a log: shard (or `all`), end point of the latency, samples.
fn last_table(log: &str) -> Vec<(String, String, u64)> {
    let lines: Vec<&str> = log.lines().collect();
    let head = lines.iter().rposition(|line| line.starts_with("shard ")).expect("a table");
    let mut shard = String::new();
    let mut rows = Vec::new();
    for line in &lines[head + 1..] {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let Some(at) = cells.iter().position(|cell| ["sequenced", "sent"].contains(cell)) else { break };
        if at > 0 {
            shard = cells[0].to_owned();
        }
        assert_eq!(cells.len(), at + 7, "{line}");
        rows.push((shard.clone(), cells[at].to_owned(), cells[at + 1].parse().unwrap()));
    }
    rows
}

fn samples(table: &[(String, String, u64)], shard: &str, until: &str) -> u64 {
    let row = table.iter().find(|row| (row.0.as_str(), row.1.as_str()) == (shard, until));
    row.unwrap_or_else(|| panic!("{shard} {until} in {table:?}")).2
}

fn tables(log: &str) -> usize {
    log.matches("latency since the start").count()
}

#[test]
fn sigusr1_and_shutdown_print_the_latencies_of_all_shards() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2", "--report"]);
    let subscriber = Collector::start(&server, WireFormat::TCP_NATIVE, &["report.>"]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let mut exchange = |first: usize| {
        for tick in first..first + TICKS {
            publish(&mut publisher, &format!("report.{tick}"), b"1");
            publisher.flush().unwrap();
            subscriber.wait_for(tick + 1);
        }
    };
    exchange(0);
    ask_for_report(&server);
    server.log.wait_for("\nall ");
    // One more line completes the table.
    eventually("the table's end", || {
        server.log.text().split_once("\nall ").is_some_and(|(_, rest)| rest.matches('\n').count() >= 2)
    });
    let first = last_table(&server.log.text());
    assert_eq!(first.len(), 6, "{first:?}");
    for until in ["sequenced", "sent"] {
        let all = samples(&first, "all", until);
        // Each tick is received before the next is published, so no two share a turn.
        assert_eq!(all, TICKS as u64, "{until}: {first:?}");
        assert_eq!(samples(&first, "0", until) + samples(&first, "1", until), all);
    }
    // The server keeps serving and counting.
    exchange(TICKS);
    subscriber.finish();
    drop(publisher);
    let stopped = server.stop_cleanly();
    assert_eq!(tables(&stopped.log), 2, "{}", stopped.log);
    let last = last_table(&stopped.log);
    for until in ["sequenced", "sent"] {
        assert_eq!(samples(&last, "all", until), 2 * TICKS as u64, "{last:?}");
    }
    assert!(stopped.total("busy_ns") > 0 && stopped.total("idle_ns") > 0);
}

#[test]
fn without_report_no_table_is_printed() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let stopped = server.stop_cleanly();
    assert_eq!(tables(&stopped.log), 0, "{}", stopped.log);
}

#[test]
fn a_stopping_server_survives_sigusr1() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1", "--report"]);
    server.terminate();
    let _ = kill(Pid::from_raw(server.pid() as i32), Signal::SIGUSR1);
    let stopped = server.wait();
    stopped.assert_clean();
    // The kernel hands over pending signals by number, so a busy machine may report before it stops, and once more at exit.
    assert!((1..=2).contains(&tables(&stopped.log)), "{}", stopped.log);
}
