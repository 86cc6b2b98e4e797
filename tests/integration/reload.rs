//! SIGHUP: the server reloads its configuration while it serves.

use std::{fs, path::Path};

use crate::harness::{
    Server, beside_others,
    collector::{barrier, connect, publish},
    eventually,
    http::get,
    raw::Peer,
    terminal::Terminal,
    tickcast,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tickcast_proto::WireFormat;

fn refused(server: &Server) -> bool {
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    metrics
        .lines()
        .any(|line| line.starts_with("tickcast_ticks_refused_rate_total{") && !line.ends_with(" 0"))
}

/// Changes a live option and one that needs a restart.
const CHANGED: &str = "[delivery]\nbehind_time = \"400ms\"\n[limits]\npublish_rate = 1\ntopics_max = 10\n";

#[test]
fn live_options_change_at_once_others_wait_and_errors_change_nothing() {
    let _machine = beside_others();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reload.toml");
    fs::write(&file, "[delivery]\nbehind_time = \"400ms\"\n").unwrap();
    let server = Server::start(&["--shards", "2", "--config", file.to_str().unwrap()]);
    let send_sighup = || kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    (0..20).for_each(|_| publish(&mut publisher, "a", b"[1]"));
    barrier(&mut publisher);
    assert!(!refused(&server));

    fs::write(&file, CHANGED).unwrap();
    send_sighup();
    server.log.wait_for("SIGHUP: limits.publish_rate: 1 instead of 0\n");
    server.log.wait_for("SIGHUP: limits.topics_max: 10 instead of 65536: takes effect at the next start\n");
    assert!(!server.log.text().contains("behind_time"));

    fs::write(&file, "[limits]\npublish_rat = 0\ntopics_max = -1\n").unwrap();
    send_sighup();
    server.log.wait_for("SIGHUP: nothing changed: ");
    server.log.wait_for("line 2: limits.publish_rat: unknown key; did you mean publish_rate?");
    server.log.wait_for("line 3: limits.topics_max: ");
    eventually("the publish rate is enforced", || {
        publish(&mut publisher, "a", b"[1]");
        publisher.flush().unwrap();
        refused(&server)
    });

    fs::write(&file, CHANGED).unwrap();
    send_sighup();
    server.log.wait_for("SIGHUP: nothing has changed");
    drop(publisher);
    server.stop_cleanly();
    fs::remove_file(&file).unwrap();
}

#[test]
fn without_a_file_sighup_is_logged_and_changes_nothing() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
    server.log.wait_for("SIGHUP: nothing to reload: the server was started without --config");
    server.stop_cleanly();
}

#[test]
fn without_a_file_a_terminal_hangup_ends_the_server() {
    let _machine = beside_others();
    let options = "serve --no-sim --shards 1 --tcp 127.0.0.1:0 --http 127.0.0.1:0 --no-admin";
    let terminal = Terminal::run(&format!("{} {options}", env!("CARGO_BIN_EXE_tickcast")), 100, 10);
    terminal.wait_for("listening tcp=");
    let pid = terminal.pid();
    drop(terminal);
    let has_ended = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    eventually("the server ends", has_ended);
}

#[test]
fn the_log_level_changes_from_the_next_line_on() {
    let _machine = beside_others();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reload-log.toml");
    fs::write(&file, "[server]\nlog = \"info\"\n").unwrap();
    let mut command = tickcast();
    let options = ["--no-sim", "--config", file.to_str().unwrap()];
    let server = Server::start_command(&mut command, &options);
    let send_sighup = || kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
    let goes = || {
        let peer = Peer::native(server.tcp);
        drop(peer);
        eventually("the peer is gone", || server.connections() == 0);
    };
    goes();
    fs::write(&file, "[server]\nlog = \"debug\"\n").unwrap();
    send_sighup();
    server.log.wait_for("SIGHUP: server.log: debug instead of info\n");
    let is_close_line = |line: &&str| line.contains("DEBUG") && line.contains(" ends: ");
    assert_eq!(server.log.text().lines().filter(is_close_line).count(), 0, "{}", server.log.text());
    goes();
    server.log.wait_for(" ends: ");
    fs::write(&file, "[server]\nlog = \"loud\"\n").unwrap();
    send_sighup();
    server.log.wait_for("invalid level \"loud\"");
    fs::write(&file, "[server]\nlog = \"info\"\n").unwrap();
    send_sighup();
    server.log.wait_for("SIGHUP: server.log: info instead of debug\n");
    let before = server.log.text().lines().filter(is_close_line).count();
    goes();
    assert_eq!(server.log.text().lines().filter(is_close_line).count(), before, "{}", server.log.text());
    server.stop_cleanly();
    fs::remove_file(&file).unwrap();
}
