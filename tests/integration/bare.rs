//! The bare loop against the load client: it speaks enough of the protocol and reports what it sent.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::harness::{
    alone, beside_others, forget, load_client::LoadClient, processes, register, wait_for_exit,
};

const CONNECTIONS: &str = "5";

/// A running bare loop.
struct Bare {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: String,
}

impl Bare {
    fn start(options: &[&str]) -> Bare {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tickcast-bare"))
            .args(["--connections", CONNECTIONS])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        register(child.id());
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening tcp=").unwrap().to_owned();
        Bare { child, stdout, address }
    }

    /// Waits until it ends, by itself or by a signal, and returns its report.
    fn report(mut self) -> Value {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        forget(self.child.id());
        assert_eq!(wait_for_exit(&mut self.child), Some(0), "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        forget(self.child.id());
        processes::end(&mut self.child);
    }
}

fn feed_clients(options: &[&str], transport: &[&str]) {
    let _machine = beside_others();
    let load = ["--topics", "2", "--ticks-per-send", "3", "--size", "50", "--interval", "2ms"];
    let bare = Bare::start(&[&load[..], options].concat());
    let arguments = ["--server", &bare.address, "--connections", CONNECTIONS, "--duration", "1s"];
    // The client fails if a tick is missing.
    let client = LoadClient::start(&[&arguments[..], transport].concat()).finish();
    let report = bare.report();
    let count = |report: &Value, name: &str| report[name].as_u64().unwrap();
    assert!(count(&client, "deliveries") > 0, "{client}");
    assert_eq!(report["connections_ended"], 5, "{report}");
    assert_eq!(count(&report, "skipped_sends"), 0, "{report}");
    assert!(3 * count(&report, "sends") >= count(&client, "deliveries"), "{report} {client}");
}

#[test]
fn the_bare_loop_feeds_native_clients() {
    feed_clients(&[], &[]);
}

#[test]
fn the_bare_loop_feeds_websocket_clients() {
    feed_clients(&["--websocket"], &["--transport", "ws", "--encoding", "rkyv"]);
}

#[test]
fn at_full_speed_no_byte_is_lost_or_repeated() {
    let _machine = alone();
    // A socket accepts less than a round at once; the rest must continue at the exact byte.
    let load = ["--interval", "0", "--size", "30kB", "--ticks-per-send", "20"];
    let bare = Bare::start(&[&load[..], &["--notsent-lowat", "16KiB"]].concat());
    let arguments = ["--server", &bare.address, "--connections", CONNECTIONS, "--duration", "1s"];
    let client = LoadClient::start_lossy(&arguments).finish();
    let report = bare.report();
    assert_eq!(client["ended_early"], serde_json::json!({}), "{client}");
    assert!(report["short_sends"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_signal_before_the_first_connection_ends_it_with_a_report() {
    let _machine = beside_others();
    let bare = Bare::start(&[]);
    kill(Pid::from_raw(bare.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(bare.report()["sends"], 0);
}
