//! Clients behind proxies: the PROXY protocol and `X-Forwarded-For`.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
};

use crate::harness::{
    Server, beside_others,
    certificates::Certificates,
    eventually,
    frames::{self, Raw},
    http,
    raw::{Peer, upgrade_request},
    tickcast, tunnel,
};

/// A server whose listeners have these keys, with one connection per address, and the address of its admin listener.
fn server(name: &str, trusted: &str, keys: &str) -> (Server, SocketAddr) {
    let path = std::env::temp_dir().join(format!("tickcast-{}-{name}.toml", std::process::id()));
    let http_keys = keys;
    let native_keys = if keys.contains("proxy_protocol") { keys } else { "" };
    let text = format!(
        "[server]\ntrusted_proxies = \"{trusted}\"\n[limits]\nmax_clients_per_source = 1\nunlimited_sources = \"none\"\n\
         [web]\nhttp_health = true\n[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:1\"\n{native_keys}\n\
         [[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:1\"\n{http_keys}\n"
    );
    fs::write(&path, text).unwrap();
    let options = ["--no-sim", "--shards", "2", "--config", path.to_str().unwrap()];
    let server = Server::start_command(tickcast().env("RUST_LOG", "info"), &options);
    fs::remove_file(&path).unwrap();
    let admin = server.admin.unwrap();
    (server, admin)
}

fn line(address: &str) -> Vec<u8> {
    format!("PROXY TCP4 {address} 127.0.0.1 5 80\r\n").into_bytes()
}

/// A header of version 2. `command`: 0x20 for LOCAL, 0x21 for PROXY.
fn binary(command: u8, address: [u8; 4]) -> Vec<u8> {
    let addresses = [&address[..], &[127, 0, 0, 1], &[0, 5, 0, 80]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, 0x11, 0, 12][..], &addresses].concat()
}

/// Opens a WebSocket after these bytes; the status.
fn upgrade(server: &Server, before: &[u8], fields: &str) -> (Peer, u16) {
    let mut peer = Peer::connect(server.http);
    let host = format!("Host: localhost\r\n{fields}");
    let request = upgrade_request("/ws?client=x", "").replacen("Host: localhost\r\n", &host, 1);
    peer.send(&[before, request.as_bytes()].concat());
    let status = peer.http_head()[9..12].parse().unwrap();
    (peer, status)
}

fn addresses(admin: SocketAddr) -> Vec<String> {
    let sessions = http::get_of_all_shards(admin, "/v1/sessions").json();
    let sessions = sessions["sessions"].as_array().unwrap();
    let open = sessions.iter().filter(|session| session["state"] == "open");
    let mut addresses: Vec<String> =
        open.map(|session| session["address"].as_str().unwrap().to_owned()).collect();
    addresses.sort_unstable();
    addresses
}

#[test]
fn the_address_in_a_proxy_header_is_the_clients_for_limits_and_views() {
    let _machine = beside_others();
    let (server, admin) = server("header", "127.0.0.1", "proxy_protocol = true");
    let (mut first, status) = upgrade(&server, &line("198.51.100.1"), "");
    assert_eq!(status, 101);
    let (_second, status) = upgrade(&server, &binary(0x21, [198, 51, 100, 2]), "");
    assert_eq!(status, 101);
    let (mut refused, status) = upgrade(&server, &binary(0x21, [198, 51, 100, 1]), "");
    assert_eq!(status, 429);
    assert!(String::from_utf8(refused.read_to_end()).unwrap().contains("--max-clients-per-source"));
    let mut native = Peer::connect(server.tcp);
    for byte in line("198.51.100.3").chunks(1) {
        native.send(byte);
    }
    native.send(&Raw::request(frames::HELLO, 1, b"proxied").bytes());
    assert_eq!(native.frame().unwrap().kind, frames::WELCOME);
    let mut other = Peer::connect(server.tcp);
    other.send(&[line("198.51.100.3"), Raw::request(frames::HELLO, 1, b"proxied").bytes()].concat());
    let closing = other.frame().unwrap();
    assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3504));
    assert_eq!(addresses(admin), ["198.51.100.1:5", "198.51.100.2:5", "198.51.100.3:5"]);
    // Its place is free again once it has gone, on whichever shard it was.
    first.shut_write();
    while first.message().is_some() {}
    drop(first);
    eventually("the address is free", || upgrade(&server, &line("198.51.100.1"), "").1 == 101);
    server.stop_cleanly();
}

#[test]
fn a_proxy_header_comes_before_the_tls_of_its_client() {
    let _machine = beside_others();
    let certificates = Certificates::new("proxied");
    let keys = format!("proxy_protocol = true\n{}", certificates.listener(""));
    let (server, admin) = server("tls", "127.0.0.1", &keys);
    let config = tunnel::client_config(&certificates, None, rustls::DEFAULT_VERSIONS);
    let upgrade = |header: &[u8]| {
        let mut stream = tunnel::connect(server.http, config.clone());
        stream.sock.write_all(header).unwrap();
        let mut status = [0; 12];
        let request = upgrade_request("/ws?client=x", "");
        let read = stream.write_all(request.as_bytes()).and_then(|()| stream.read_exact(&mut status));
        (stream, read.map(|()| String::from_utf8(status.to_vec()).unwrap()))
    };
    let (_first, status) = upgrade(&line("198.51.100.1"));
    assert_eq!(status.unwrap(), "HTTP/1.1 101");
    let (_second, status) = upgrade(&binary(0x21, [198, 51, 100, 2]));
    assert_eq!(status.unwrap(), "HTTP/1.1 101");
    let (_refused, status) = upgrade(&line("198.51.100.1"));
    assert!(
        status.is_err(),
        "the limits of the client's own address apply, before its handshake: {status:?}"
    );
    let mut native = tunnel::connect(server.tcp, config.clone());
    native.sock.write_all(&line("198.51.100.3")).unwrap();
    native.write_all(&Raw::request(frames::HELLO, 1, b"proxied").bytes()).unwrap();
    let mut head = [0; 10];
    native.read_exact(&mut head).unwrap();
    assert_eq!(u16::from_le_bytes([head[8], head[9]]), frames::WELCOME);
    assert_eq!(addresses(admin), ["198.51.100.1:5", "198.51.100.2:5", "198.51.100.3:5"]);
    server.stop_cleanly();
}

#[test]
fn probes_of_a_proxy_without_a_header_leave_no_line_in_the_log() {
    let _machine = beside_others();
    let (server, admin) = server("probes", "127.0.0.1", "proxy_protocol = true");
    for address in [server.tcp, server.http] {
        drop(Peer::connect(address));
        Peer::connect(address).reset();
        let mut peer = Peer::connect(address);
        peer.shut_write();
        assert_eq!(peer.read_to_end(), b"");
        let mut peer = Peer::connect(address);
        peer.send(&binary(0x20, [0; 4]));
        peer.shut_write();
        assert_eq!(peer.read_to_end(), b"");
    }
    eventually("all probes are accepted", || {
        let shards = http::get_of_all_shards(admin, "/v1/shards").json();
        let accepted = |shard: &serde_json::Value| shard["counters"]["sessions_accepted"].as_u64().unwrap();
        shards["shards"].as_array().unwrap().iter().map(accepted).sum::<u64>() == 8
    });
    let log = server.stop_cleanly().log;
    assert!(!log.contains("session ") && !log.contains("refused") && !log.contains("PROXY"), "{log}");
}

#[test]
fn a_trusted_proxy_must_send_a_header_and_others_are_not_believed() {
    let _machine = beside_others();
    let (trusting, _) = server("trusting", "127.0.0.0/8", "proxy_protocol = true");
    let (mut peer, status) = upgrade(&trusting, b"", "");
    assert_eq!(status, 400);
    assert!(String::from_utf8(peer.read_to_end()).unwrap().contains("no PROXY protocol header"));
    for (header, part) in
        [(&b"PROXY TCP4 x\r\n"[..], "malformed"), (&[b'P'; 3000], "no PROXY"), (b"GET", "no PROXY")]
    {
        let mut native = Peer::connect(trusting.tcp);
        native.send_as_far_as_it_goes(header);
        let closing = native.frame().unwrap();
        assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 1002));
        assert!(closing.text().contains(part), "{}", closing.text());
    }
    // Health checks of the proxy itself, any number at once.
    let checks: Vec<Peer> = (0..5)
        .map(|n| {
            let mut peer = Peer::connect(trusting.http);
            let header = if n % 2 == 0 { binary(0x20, [0; 4]) } else { b"PROXY UNKNOWN\r\n".to_vec() };
            peer.send(&[&header[..], b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat());
            assert!(peer.http_head().starts_with("HTTP/1.1 200 "));
            peer
        })
        .collect();
    drop(checks);
    let stopped = trusting.stop_cleanly();
    assert_eq!(stopped.total("closed_proxy"), 4);
    assert_eq!(stopped.log.matches("PROXY protocol header").count(), 4, "the operator learns what to mend");

    let (others, admin) = server("others", "192.0.2.0/24", "proxy_protocol = true");
    assert_eq!(upgrade(&others, &line("198.51.100.1"), "").1, 400);
    let mut own = None;
    eventually("the place of the connection before is free", || {
        let (peer, status) = upgrade(&others, b"", "");
        own = (status == 101).then_some(peer);
        own.is_some()
    });
    assert!(addresses(admin)[0].starts_with("127.0.0.1:"));
    others.stop_cleanly();
}

#[test]
fn a_trusted_proxy_may_forward_any_name_and_a_browser_may_not_come_directly() {
    let _machine = beside_others();
    let ask = |server: &Server, before: &[u8], fields: &str| {
        let mut peer = Peer::connect(server.http);
        // Half of these identities are served by the shard that did not accept the connection.
        let statuses = ["/ws?client=a", "/ws?client=b", "/ws?client=c"].map(|path| {
            let host = format!("Host: ticks.example\r\n{fields}");
            let request = upgrade_request(path, "").replacen("Host: localhost\r\n", &host, 1);
            let mut peer = Peer::connect(server.http);
            peer.send(&[before, request.as_bytes()].concat());
            peer.http_head()[9..12].parse::<u16>().unwrap()
        });
        let request = format!("GET /v1/topics HTTP/1.1\r\nHost: ticks.example\r\n{fields}\r\n");
        peer.send(&[before, request.as_bytes()].concat());
        let status: u16 = peer.http_head()[9..12].parse().unwrap();
        (statuses, status)
    };
    let (header, _) = server("names-header", "127.0.0.1", "proxy_protocol = true");
    let (statuses, call) = ask(&header, &binary(0x20, [0; 4]), "");
    assert_eq!((statuses, call), ([101; 3], 200));
    header.stop_cleanly();
    let (forwarded, _) = server("names-forwarded", "127.0.0.1", "forwarded_for = true");
    let (statuses, call) = ask(&forwarded, b"", "X-Forwarded-For: 127.0.0.1\r\n");
    assert_eq!((statuses, call), ([101; 3], 200));
    let (statuses, call) = ask(&forwarded, b"", "Origin: http://ticks.example\r\n");
    assert_eq!((statuses, call), ([403; 3], 403));
    forwarded.stop_cleanly();
}

#[test]
fn forwarded_addresses_count_when_a_client_asks_for_a_websocket() {
    let _machine = beside_others();
    let (server, admin) = server("forwarded", "127.0.0.1,192.0.2.0/24", "forwarded_for = true");
    let page = b"HEAD / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n".repeat(3);
    let mut kept = Peer::connect(server.http);
    kept.send(&page);
    for _ in 0..3 {
        assert!(kept.http_head().starts_with("HTTP/1.1 200 "));
    }
    // What the client itself wrote into the header does not count, nor do further proxies.
    let fields = "X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\nX-Forwarded-For: 192.0.2.8\r\n";
    let (_first, status) = upgrade(&server, b"", fields);
    assert_eq!(status, 101);
    let (_refused, status) = upgrade(&server, b"", "X-Forwarded-For: 198.51.100.1:77\r\n");
    assert_eq!(status, 429);
    kept.send(
        upgrade_request("/ws", "")
            .replacen("Host: localhost\r\n", "Host: localhost\r\nX-Forwarded-For: [2001:db8::7]\r\n", 1)
            .as_bytes(),
    );
    assert!(kept.http_head().starts_with("HTTP/1.1 101 "));
    // Without a header it is the proxy's own connection, of which there may be several.
    let own = [(); 3].map(|()| upgrade(&server, b"", ""));
    assert_eq!(own.each_ref().map(|(_, status)| *status), [101; 3]);
    let seen = addresses(admin);
    assert!(
        seen.contains(&"198.51.100.1:0".to_owned()) && seen.contains(&"[2001:db8::7]:0".to_owned()),
        "{seen:?}"
    );
    server.stop_cleanly();
}
