//! Socket.IO as its stock clients speak it: socket.io-client under Node and in Chromium, and python-socketio.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::{
    harness::{Server, beside_others, eventually, raw::Peer, tickcast},
    page::browser,
    sse::{Program, server_with_tokens},
};

/// Two shards, so that half of the topics are homed on the other one.
const OPTIONS: [&str; 3] = ["--no-sim", "--shards", "2"];

fn server() -> Server {
    Server::start_command(tickcast().env("RUST_LOG", "info"), &OPTIONS)
}

fn node(program: &str, arguments: &[&str]) -> Program {
    assert!(clients().join("node_modules/socket.io-client").exists(), "{MISSING}");
    Program::start("node", program, arguments)
}

fn python(program: &str, arguments: &[&str]) -> Program {
    let python = clients().join(".venv/bin/python");
    assert!(python.exists(), "{MISSING}");
    Program::start(python.to_str().unwrap(), program, arguments)
}

const MISSING: &str = "the test clients are not installed: run scripts/test.sh once";

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Runs the stock client with these transports through a restart of the server.
fn node_through_a_restart(transports: &str) {
    let server = server();
    let http = server.http.to_string();
    let mut program = node("socketio.mjs", &[&http, transports]);
    program.out.wait_for("restart\n");
    server.stop_cleanly();
    let server = Server::start_on(&http, tickcast().env("RUST_LOG", "info"), Stdio::null(), &OPTIONS);
    writeln!(program.child.stdin.as_mut().unwrap(), "go").unwrap();
    program.finish();
    server.stop_cleanly();
}

#[test]
fn socket_io_client_subscribes_publishes_and_comes_back_over_websocket() {
    let _machine = beside_others();
    node_through_a_restart("websocket");
}

#[test]
fn socket_io_client_with_its_defaults_polls_and_upgrades() {
    let _machine = beside_others();
    node_through_a_restart("polling,websocket");
}

#[test]
fn socket_io_client_subscribes_publishes_and_comes_back_by_polling_alone() {
    let _machine = beside_others();
    node_through_a_restart("polling");
}

#[test]
fn socket_io_client_in_chromium_upgrades_subscribes_and_publishes() {
    let _machine = beside_others();
    let server = server();
    node("socketio-browser.mjs", &[&server.http.to_string(), &browser()]).finish();
    server.stop_cleanly();
}

#[test]
fn python_socketio_subscribes_and_publishes_over_each_transport() {
    let _machine = beside_others();
    let server = server();
    for transports in ["websocket", "polling,websocket", "polling"] {
        python("socket_io_python.py", &[&server.http.to_string(), transports]).finish();
    }
    server.stop_cleanly();
}

#[test]
fn tokens_in_auth_are_verified_and_refusals_reach_the_application() {
    let _machine = beside_others();
    let (server, token) = server_with_tokens();
    for transports in ["websocket", "polling"] {
        node("socketio-auth.mjs", &[&server.http.to_string(), &token("alice"), transports]).finish();
    }
    server.stop_cleanly();
}

/// The answer to a request on a connection of its own: its first line and its body.
fn ask(server: &Server, target: &str, fields: &str) -> (String, String) {
    let mut peer = Peer::connect(server.http);
    peer.send(
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n").as_bytes(),
    );
    let head = peer.http_head();
    let body = String::from_utf8(peer.read_to_end()).unwrap();
    (head.lines().next().unwrap().to_owned(), body)
}

#[test]
fn requests_that_open_no_session_get_the_errors_of_engine_io() {
    let _machine = beside_others();
    let server = server();
    for (target, error) in [
        ("?EIO=3&transport=polling", r#"{"code":5,"message":"Unsupported protocol version"}"#),
        ("?EIO=3&transport=websocket", r#"{"code":5,"message":"Unsupported protocol version"}"#),
        ("?transport=websocket", r#"{"code":5,"message":"Unsupported protocol version"}"#),
        ("?EIO=4&transport=webtransport", r#"{"code":0,"message":"Transport unknown"}"#),
        ("?EIO=4", r#"{"code":0,"message":"Transport unknown"}"#),
        ("?EIO=4&transport=websocket&sid=0.00", r#"{"code":1,"message":"Session ID unknown"}"#),
    ] {
        let (status, body) = ask(&server, &format!("/socket.io/{target}"), "");
        assert_eq!((&*status, &*body), ("HTTP/1.1 400 Bad Request", error), "{target}");
    }
    let (status, _) = ask(&server, "/socket.io/?EIO=4&transport=websocket", "");
    assert_eq!(status, "HTTP/1.1 426 Upgrade Required");
    let (status, _) =
        ask(&server, "/socket.io/?EIO=4&transport=websocket", "Origin: http://elsewhere.example\r\n");
    assert_eq!(status, "HTTP/1.1 403 Forbidden");
    server.stop_cleanly();
}

#[test]
fn a_client_that_does_not_connect_in_time_is_closed_and_others_go_on() {
    let _machine = beside_others();
    let server = Server::start_command(
        tickcast().env("RUST_LOG", "info"),
        &[&OPTIONS[..], &["--handshake-deadline", "500ms"]].concat(),
    );
    let mut silent = Peer::connect(server.http);
    silent.upgrade("/socket.io/?EIO=4&transport=websocket", "");
    assert!(silent.text().starts_with("0{\"sid\":"));
    let mut other = Peer::connect(server.http);
    other.upgrade("/socket.io/?EIO=4&transport=websocket", "");
    assert!(other.text().starts_with("0{\"sid\":"));
    other.send_text("40");
    assert!(other.text().starts_with("40{\"sid\":"));
    eventually("the silent client is closed", || !silent.take(1).is_empty());
    other.send_text("420[\"subscribe\",\"a\"]");
    assert!(other.text().starts_with("430[{\"op\":\"subscribed\""));
    server.stop_cleanly();
}
