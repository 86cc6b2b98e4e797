//! The page at `/`: fetched over HTTP, and opened in a real browser while the server restarts.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::harness::{
    Server, beside_others,
    external::{External, Library},
    market_capture,
    raw::Peer,
    tickcast,
};
use flate2::read::GzDecoder;
use tickcast::limits::LINGER_DEADLINE_MS;

/// Sends a request and returns the body of the response and its head, but for the date.
fn request(server: &Server, line: &str, headers: &str) -> (String, Vec<u8>) {
    let mut peer = Peer::connect(server.http);
    peer.send(format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").as_bytes());
    let mut head = peer.http_head();
    let date = head.find("Date: ").unwrap();
    head.drain(date..=date + head[date..].find('\n').unwrap());
    (head, peer.read_to_end())
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn every_file_is_served_plain_and_compressed_and_revalidated_by_entity_tag() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    let mut responses = 0;
    let mut get = |line: &str, headers: &str| {
        responses += 1;
        request(&server, line, headers)
    };
    let (_, index) = get("GET /", "");
    let index = String::from_utf8(index).unwrap();
    let parts = index.split(['"']).filter(|part| part.starts_with("page/"));
    let mut paths: Vec<String> = parts.map(|part| format!("/{part}")).collect();
    paths.extend(["/".into(), "/tickcast.js".into()]);
    assert!(paths.len() > 17, "{paths:?}");
    for path in &paths {
        let (head, plain) = get(&format!("GET {path}?topics=a.b"), "");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}");
        assert_eq!(value(&head, "Content-Length"), Some(&*plain.len().to_string()));
        assert_eq!(value(&head, "Content-Encoding"), None);
        assert!(value(&head, "Content-Security-Policy").unwrap().starts_with("default-src 'none'"));
        assert_eq!(
            (value(&head, "Cache-Control"), value(&head, "Connection")),
            (Some("no-cache"), Some("close"))
        );

        let (zipped_head, zipped) = get(&format!("GET {path}"), "Accept-Encoding: br, gzip\r\n");
        assert_eq!(value(&zipped_head, "Content-Encoding"), Some("gzip"));
        assert_eq!(value(&zipped_head, "Content-Length"), Some(&*zipped.len().to_string()));
        let mut text = Vec::new();
        GzDecoder::new(&*zipped).read_to_end(&mut text).unwrap();
        assert_eq!(text, plain, "{path}");

        let tags = [value(&head, "ETag").unwrap(), value(&zipped_head, "ETag").unwrap()];
        for (coding, current) in [("identity", tags[0]), ("gzip", tags[1])] {
            for tag in tags {
                let headers = format!("Accept-Encoding: {coding}\r\nIf-None-Match: \"other\", {tag}\r\n");
                let (head, body) = get(&format!("GET {path}"), &headers);
                let status = if tag == current { "HTTP/1.1 304 " } else { "HTTP/1.1 200 " };
                assert!(head.starts_with(status) && body.is_empty() == (tag == current), "{path}: {head}");
            }
        }
        let (head_head, body) = get(&format!("HEAD {path}"), "");
        assert!(head_head == head && body.is_empty(), "{path}: {head_head}");
    }
    assert_eq!(server.stop_cleanly().total("closed_http"), responses);
}

#[test]
fn a_client_on_a_slow_link_gets_the_whole_page() {
    let _machine = beside_others();
    let options = ["--socket-send-buffer", "4KiB", "--notsent-lowat", "0", "--handshake-deadline", "1m"];
    let server = Server::start(&options);
    let mut peer = Peer::connect_with_small_window(server.http);
    peer.send(b"GET /page/main.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    // Stall with the socket full for longer than any other response may take.
    std::thread::sleep(Duration::from_millis(LINGER_DEADLINE_MS + 250));
    let head = peer.http_head();
    let body = peer.read_to_end();
    assert_eq!(value(&head, "Content-Length"), Some(&*body.len().to_string()));
    // The client keeps its side open; that must not delay the server's shutdown.
    server.stop_cleanly();
    drop(peer);
}

/// Path of the browser.
pub fn browser() -> String {
    let finder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/find-browser.mjs");
    let found = Command::new("node").arg(finder).output().expect("node: scripts/test.sh installs it");
    let errors = String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success(), "Chromium not found; scripts/test.sh installs it: {errors}");
    String::from_utf8(found.stdout).unwrap().trim_end().to_owned()
}

/// Runs a Node program with the path of the browser, `arguments`, and a folder for screenshots.
fn browse(program: &str, arguments: &[&str]) -> External {
    let browser = browser();
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    fs::create_dir_all(&shots).unwrap();
    let arguments = [&[&*browser], arguments, &[shots.to_str().unwrap()]].concat();
    External::run(Library::Ws, program, &arguments)
}

/// Options of the server before and after its restart.
fn sources(capture: &Path) -> Vec<String> {
    let options = ["--ecg", "synthetic", "--shards", "2", "--replay", capture.to_str().unwrap(), "--loop"];
    options.map(String::from).into()
}

#[test]
fn the_page_updates_live_and_reconnects_after_the_server_was_killed() {
    let _machine = beside_others();
    let options = sources(&market_capture());
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = Server::start_logging("info", &options);
    let url = format!("http://{}/", server.http);
    let browser = browse("page", &[&url]);
    browser.wait_for("live");
    let http = server.http.to_string();
    // SIGKILL: the server closes without a CLOSING frame.
    drop(server);
    browser.wait_for("lost");
    let server = Server::start_on(&http, tickcast().env("RUST_LOG", "info"), Stdio::null(), &options);
    browser.wait_for("back");
    browser.finish();
    server.stop_cleanly();
}

#[test]
fn a_page_disconnected_while_asleep_reconnects_and_reports_what_it_missed() {
    let _machine = beside_others();
    // Shorter than the 10 s after which the page itself would disconnect.
    let heartbeat = ["--ping-interval", "1s", "--ping-timeout", "4s"];
    let options = ["--ecg", "synthetic", "--sim-producers", "40", "--shards", "2"];
    let server = Server::start_logging("info", &[&options[..], &heartbeat].concat());
    browse("page-asleep", &[&server.http.to_string()]).finish();
    assert!(server.stop_cleanly().total("closed_heartbeat_timeout") >= 1);
}

#[test]
fn the_page_obeys_close_codes_counts_lost_batches_and_lists_thousands_of_topics() {
    let _machine = beside_others();
    let browser = browse("page-edges", &[]);
    for edge in ["closes", "lostBatches", "asleep", "closedWhileAsleep", "hidden", "thousands"] {
        browser.wait_for(&format!("{edge} holds"));
    }
    browser.finish();
}

#[test]
fn the_page_survives_silent_servers_suspended_machines_malformed_payloads_and_gaps() {
    let _machine = beside_others();
    let browser = browse("page-faults", &[]);
    for fault in [
        "neverWelcomed",
        "suspended",
        "malformedPayloads",
        "longBatches",
        "unannouncedGaps",
        "absences",
        "probes",
        "reconnectStorms",
        "selection",
        "brokenLoad",
    ] {
        browser.wait_for(&format!("{fault} holds"));
    }
    browser.finish();
}

#[test]
fn the_page_shows_fields_deltas_and_whole_payloads_of_feeds_in_several_shapes() {
    let _machine = beside_others();
    let browser = browse("page-feeds", &[]);
    for feed in ["shapes", "opens", "choices", "warns", "hostile"] {
        browser.wait_for(&format!("{feed} holds"));
    }
    browser.finish();
}

#[test]
fn the_page_finds_fields_scales_and_deltas_without_a_browser() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/page-units.test.mjs");
    let ran =
        Command::new("node").arg("--test").arg(units).output().expect("node: scripts/test.sh installs it");
    let report = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{report}{}", String::from_utf8_lossy(&ran.stderr));
    let passed = report.lines().find_map(|line| line.split_once("pass ")?.1.trim().parse::<u32>().ok());
    assert!(passed.is_some_and(|passed| passed >= 20), "{report}");
}
