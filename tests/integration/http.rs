//! HTTP as clients and intermediaries speak it: kept connections, pipelines, half closes, health checks and web pages.

use std::process::Command;

use crate::harness::{
    Server, beside_others, eventually,
    external::{External, Library},
    frames::{self, Raw},
    http::get_of_all_shards,
    raw::{Peer, upgrade_request},
};
use serde_json::Value;

const GET: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// The next response's status line and body.
fn response(peer: &mut Peer) -> (String, String) {
    let head = peer.http_head();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
    let body = String::from_utf8(peer.take(length.parse().unwrap())).unwrap();
    (head.lines().next().unwrap().to_owned(), body)
}

#[test]
fn requests_on_one_connection_are_answered_in_order_and_then_it_may_become_a_websocket() {
    let _machine = beside_others();
    // With two shards, half of the identities move to the other one.
    let server = Server::start(&["--http-health", "--shards", "2"]);
    for client in ["a", "b", "c", "d"] {
        let mut peer = Peer::connect(server.http);
        let page = "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc";
        let posted = "POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
        let upgrade = upgrade_request(&format!("/ws?client={client}"), "");
        peer.send([GET, page, posted, &GET.repeat(100), &upgrade].concat().as_bytes());
        assert_eq!(response(&mut peer), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
        let (status, body) = response(&mut peer);
        assert!(status == "HTTP/1.1 200 OK" && body.contains("</html>"), "{status} {body}");
        assert_eq!(response(&mut peer).0, "HTTP/1.1 404 Not Found");
        for _ in 0..100 {
            assert_eq!(response(&mut peer).1, "ok\n");
        }
        assert!(peer.http_head().starts_with("HTTP/1.1 101 "));
        peer.send_text(r#"{"op":"ping","token":7}"#);
        assert!(peer.text().contains("pong"));
    }
    assert_eq!(server.stop_cleanly().total("http_responses"), 4 * 103);
}

#[test]
fn a_half_closed_client_gets_the_whole_answer_on_both_ports() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    for _ in 0..20 {
        let mut peer = Peer::connect(server.http);
        peer.send(b"GET /page/main.js HTTP/1.1\r\nHost: localhost\r\n\r\nHEAD /ws HTTP/1.1\r\nHost: localhost\r\n\r\n");
        peer.shut_write();
        let (status, body) = response(&mut peer);
        assert!(status == "HTTP/1.1 200 OK" && body.ends_with("\n"), "{status}");
        assert!(peer.http_head().starts_with("HTTP/1.1 426 "));
        assert_eq!(peer.read_to_end(), b"");

        let mut peer = Peer::connect(server.http);
        peer.send(upgrade_request("/ws?topics=a.b,c.%3E&client=x", "").as_bytes());
        peer.shut_write();
        assert!(peer.http_head().starts_with("HTTP/1.1 101 "));
        for _ in 0..2 {
            assert!(peer.text().contains("subscribed"));
        }
        assert!(peer.message().is_none());

        let mut peer = Peer::connect(server.tcp);
        for frame in [
            Raw::request(frames::HELLO, 1, b"half"),
            Raw::request(frames::SUBSCRIBE, 2, b"a.*"),
            Raw::ping(7),
        ] {
            peer.send(&frame.bytes());
        }
        peer.shut_write();
        let mut kinds: Vec<u16> = std::iter::from_fn(|| peer.frame()).map(|frame| frame.kind).collect();
        kinds.sort_unstable();
        let mut expected = [frames::WELCOME, frames::SUBSCRIBED, frames::PONG];
        expected.sort_unstable();
        assert_eq!(kinds, expected);
    }
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("closed_by_peer"), 60);
}

#[test]
fn probes_of_load_balancers_are_answered_and_leave_no_line_in_the_log() {
    let _machine = beside_others();
    let server = Server::start(&["--http-health"]);
    for address in [server.tcp, server.http] {
        drop(Peer::connect(address));
        Peer::connect(address).reset();
        let mut peer = Peer::connect(address);
        peer.shut_write();
        assert_eq!(peer.read_to_end(), b"");
    }
    for (request, body) in [("HEAD /", ""), ("HEAD /healthz", ""), ("GET /healthz", "ok\n")] {
        for version in ["1.0", "1.1"] {
            let mut peer = Peer::connect(server.http);
            peer.send(format!("{request} HTTP/{version}\r\nHost: localhost\r\n\r\n").as_bytes());
            peer.shut_write();
            let head = peer.http_head();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{request}: {head}");
            assert_eq!(String::from_utf8(peer.read_to_end()).unwrap(), body, "{request}");
        }
    }
    // Each of them was a connection to the server, not one that ended before it was accepted.
    let probes = 2 * 3 + 3 * 2;
    eventually("all probes are accepted", || {
        let shards = get_of_all_shards(server.admin.unwrap(), "/v1/shards").json();
        let accepted = |shard: &Value| shard["counters"]["sessions_accepted"].as_u64().unwrap();
        shards["shards"].as_array().unwrap().iter().map(accepted).sum::<u64>() == probes
    });
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("sessions_accepted"), probes);
    let log = &stopped.log;
    assert!(!log.contains("session ") && !log.contains("refused"), "{log}");
}

#[test]
fn health_is_served_only_if_the_operator_asks_for_it() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let mut peer = Peer::connect(server.http);
    peer.send(GET.as_bytes());
    assert_eq!(response(&mut peer).0, "HTTP/1.1 404 Not Found");
    server.stop_cleanly();
}

#[test]
fn origins_and_hosts_are_allowed_by_option() {
    let _machine = beside_others();
    let options =
        ["--allow-origin", "https://*.example.com", "--allow-host", "ticks.example", "--http-idle", "0"];
    let server = Server::start(&options);
    let status = |host: &str, origin: &str| {
        let mut peer = Peer::connect(server.http);
        let origin = if origin.is_empty() { String::new() } else { format!("Origin: {origin}\r\n") };
        let own = format!("Host: {host}\r\n{origin}");
        peer.send(upgrade_request("/ws", "").replacen("Host: localhost\r\n", &own, 1).as_bytes());
        peer.http_head()[9..12].parse::<u16>().unwrap()
    };
    let own = server.http.to_string();
    assert_eq!(status(&own, ""), 101);
    assert_eq!(status(&own, &format!("http://{own}")), 101);
    assert_eq!(status(&own, "https://app.example.com"), 101);
    assert_eq!(status("ticks.example", "http://ticks.example"), 101);
    assert_eq!(status("ticks.example", "https://example.com"), 403);
    assert_eq!(status("evil.example", "http://evil.example"), 403);
    assert_eq!(status("evil.example", ""), 403);
    server.stop_cleanly();
}

#[test]
fn a_page_whose_name_was_made_to_point_to_a_local_server_reads_nothing() {
    let _machine = beside_others();
    let server = Server::start(&["--http-health"]);
    let status = |target: &str, host: &str| {
        let mut peer = Peer::connect(server.http);
        // As a browser asks for something of the page's own host: without an origin.
        peer.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        peer.http_head()[9..12].parse::<u16>().unwrap()
    };
    for target in
        ["/sse?topics=a", "/v1/latest?topics=a", "/v1/history?topic=a", "/v1/topics", "/socket.io/?EIO=4"]
    {
        assert_eq!(status(target, "evil.example:9480"), 403, "{target}");
        assert_ne!(status(target, "localhost"), 403, "{target}");
        assert_ne!(status(target, &server.http.to_string()), 403, "{target}");
    }
    // A browser sends an origin with each WebSocket handshake; other clients may use any name.
    for (host, status) in
        [("Host: evil.example\r\nOrigin: http://evil.example\r\n", "403"), ("Host: evil.example\r\n", "101")]
    {
        let mut peer = Peer::connect(server.http);
        peer.send(upgrade_request("/ws", "").replacen("Host: localhost\r\n", host, 1).as_bytes());
        assert_eq!(&peer.http_head()[9..12], status, "{host}");
        if status == "403" {
            peer.shut_write();
            assert!(String::from_utf8(peer.read_to_end()).unwrap().contains("--allow-host evil.example"));
        }
    }
    for target in ["/", "/healthz"] {
        assert_eq!(status(target, "balancer.example"), 200, "{target}");
    }
    server.stop_cleanly();
}

#[test]
fn node_speaks_http_and_websocket_on_kept_connections() {
    let _machine = beside_others();
    let server = Server::start(&["--http-health"]);
    let printed = External::run(Library::Ws, "http", &[&server.http.to_string()]).finish();
    assert_eq!(
        printed,
        "200 ok\n200 ok on the same connection\n200 after a body\n200 after chunks\n405\n404\n100 then 200\nupgraded\n\
         own origin: open\nforeign origin: 403\nend\n"
    );
    server.stop_cleanly();
}

#[test]
fn python_websockets_connects_from_its_own_origin_and_not_from_another() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let printed = External::run(Library::Websockets, "origin", &[&server.http.to_string()]).finish();
    assert_eq!(printed, "none: open\nown: open\nforeign: 403\nend\n");
    server.stop_cleanly();
}

#[test]
fn curl_keeps_its_connection_and_waits_to_send_its_body() {
    let _machine = beside_others();
    let server = Server::start(&["--http-health"]);
    let url = format!("http://{}/healthz", server.http);
    let curl = |arguments: &[&str]| {
        let done = Command::new("curl").args(["-sS", "--max-time", "60"]).args(arguments).output();
        let done = done.expect("curl: scripts/test.sh installs it");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let connects = "%{http_code} %{num_connects}\n";
    assert_eq!(curl(&["-w", connects, &url, &url]), "ok\n200 1\nok\n200 0\n");
    // Without the 100, curl would send the body only after this timeout, and fail before.
    let waits = ["--expect100-timeout", "120", "-H", "Expect: 100-continue"];
    let body = [&waits[..], &["-X", "GET", "-d", "x=y", "-w", connects]].concat();
    assert_eq!(curl(&[&body[..], &[&url, &url]].concat()), "ok\n200 1\nok\n200 0\n");
    assert!(curl(&["-I", &url]).starts_with("HTTP/1.1 200 OK\r\n"));
    server.stop_cleanly();
}
