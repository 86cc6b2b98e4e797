//! Each limit refuses with its own code, is counted, and does not affect clients within it.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    thread,
    time::Instant,
};

use crate::harness::{
    GUARD, LOOK_AGAIN, Server, beside_others, eventually,
    frames::{self, Options, Raw, Received},
    raw::{CLOSE, Peer, upgrade_request},
    tickcast,
};
use nix::sys::resource::{Resource, setrlimit};
use socket2::{Domain, Socket, Type};
use tickcast_client::Client;

/// Reads a refusal from either listener: code and text.
fn refusal(peer: &mut Peer, native: bool) -> (u16, String) {
    if native {
        let closing = peer.frame().unwrap();
        assert_eq!(closing.kind, frames::CLOSING);
        let refusal = (closing.code(), closing.text().to_owned());
        assert_eq!(peer.frame(), None);
        return refusal;
    }
    let response = String::from_utf8(peer.read_to_end()).unwrap();
    let (head, text) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nRetry-After: 1"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), text.to_owned())
}

/// Connects from a local address and sends the opening, which a refusal does not wait for.
fn knock(server: &Server, from: &str, native: bool) -> Peer {
    let address: SocketAddr = if native { server.tcp } else { server.http };
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: IpAddr = from.parse().unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect_timeout(&address.into(), GUARD).unwrap();
    socket.set_read_timeout(Some(GUARD)).unwrap();
    let mut peer = Peer { stream: socket.into(), buffer: Vec::new() };
    match native {
        true => peer.send_as_far_as_it_goes(&Raw::request(frames::HELLO, 1, b"knock").bytes()),
        false => peer.send_as_far_as_it_goes(upgrade_request("/ws", "").as_bytes()),
    }
    peer
}

fn assert_served(peer: &mut Peer, native: bool) {
    match native {
        true => assert_eq!(peer.frame().unwrap().kind, frames::WELCOME),
        false => assert!(peer.http_head().starts_with("HTTP/1.1 101 ")),
    }
}

#[test]
fn connections_beyond_max_clients_get_503_or_3504_and_the_others_are_served() {
    let _machine = beside_others();
    let server = Server::start(&["--max-clients", "5", "--shards", "2"]);
    let mut peers: Vec<_> = (0..5).map(|_| Peer::native(server.tcp)).collect();
    for round in 0..20 {
        let native = round % 2 == 0;
        let (code, text) = refusal(&mut knock(&server, "127.0.0.1", native), native);
        assert_eq!(code, if native { 3504 } else { 503 });
        assert!(text.contains("--max-clients"), "{text}");
    }
    let error = Client::connect(&server.tcp.to_string()).unwrap_err().to_string();
    assert!(error.contains("--max-clients"), "{error}");
    for (token, peer) in (0..).zip(&mut peers) {
        peer.send(&Raw::ping(token).bytes());
        assert_eq!(peer.frame().unwrap().token(), token);
    }
    // A slot that is freed goes to the next connection.
    peers.pop();
    eventually("another is served", || {
        knock(&server, "127.0.0.1", true).frame().unwrap().kind == frames::WELCOME
    });
    drop(peers);
    let stopped = server.stop_cleanly();
    assert!(stopped.total("sessions_refused") >= 21);
    assert_eq!(stopped.total("sessions_refused_source") + stopped.total("sessions_refused_rate"), 0);
}

#[test]
fn refused_connections_release_their_descriptors() {
    let _machine = beside_others();
    let server = Server::start(&["--max-clients", "1", "--shards", "2"]);
    let peer = Peer::native(server.tcp);
    let baseline = server.descriptors();
    // These read and close. The silent ones below do neither, and are released all the same.
    for round in 0..100 {
        refusal(&mut knock(&server, "127.0.0.1", round % 2 == 0), round % 2 == 0);
    }
    let silent: Vec<Peer> = (0..100).map(|_| Peer::connect(server.http)).collect();
    eventually("all are refused", || server.descriptors() == baseline);
    drop((silent, peer));
    assert!(server.stop_cleanly().total("sessions_refused") >= 200);
}

#[test]
fn an_address_at_its_connection_limit_gets_429_or_3504_and_others_are_served() {
    let _machine = beside_others();
    let limit = ["--max-clients-per-source", "3", "--unlimited-sources", "127.0.0.3,::1"];
    let server = Server::start(&[&limit[..], &["--shards", "4"]].concat());
    let mut held: Vec<Peer> = (0..3)
        .map(|n| {
            let native = n % 2 == 0;
            let mut peer = knock(&server, "127.0.0.1", native);
            assert_served(&mut peer, native);
            peer
        })
        .collect();
    for round in 0..12 {
        let native = round % 2 == 0;
        let (code, text) = refusal(&mut knock(&server, "127.0.0.1", native), native);
        assert_eq!(code, if native { 3504 } else { 429 });
        assert!(text.contains("--max-clients-per-source"), "{text}");
        let mut other = knock(&server, "127.0.0.2", native);
        assert_served(&mut other, native);
        drop(other);
        eventually("the other is gone", || server.connections() == 3);
    }
    let mut proxied: Vec<Peer> = (0..5).map(|_| knock(&server, "127.0.0.3", true)).collect();
    proxied.iter_mut().for_each(|peer| assert_served(peer, true));
    drop(proxied);
    eventually("the proxied are gone", || server.connections() == 3);
    held.pop();
    eventually("another is served", || {
        knock(&server, "127.0.0.1", true).frame().unwrap().kind == frames::WELCOME
    });
    drop(held);
    let stopped = server.stop_cleanly();
    assert!(stopped.total("sessions_refused_source") >= 12);
    assert_eq!(stopped.total("sessions_refused") + stopped.total("sessions_refused_rate"), 0);
}

#[test]
fn connections_beyond_the_accept_rate_get_429_or_3504_and_later_ones_are_served() {
    let _machine = beside_others();
    let server = Server::start(&["--accept-rate", "1", "--shards", "1"]);
    let start = Instant::now();
    let mut served = 0;
    for round in 0..20 {
        let native = round % 2 == 0;
        let mut peer = knock(&server, "127.0.0.1", native);
        let is_served = match native {
            true => {
                let frame = peer.frame().unwrap();
                assert!(frame.kind == frames::WELCOME || frame.code() == 3504, "{frame:?}");
                frame.kind == frames::WELCOME
            }
            false => {
                let head = peer.http_head();
                assert!(["HTTP/1.1 101 ", "HTTP/1.1 429 "].iter().any(|line| head.starts_with(line)));
                head.starts_with("HTTP/1.1 101 ")
            }
        };
        served += u64::from(is_served);
    }
    // One at once, and one for each second that has passed, however long that was.
    assert!((1..=2 + start.elapsed().as_secs()).contains(&served), "{served} served");
    eventually("another is served", || {
        knock(&server, "127.0.0.1", true).frame().unwrap().kind == frames::WELCOME
    });
    let stopped = server.stop_cleanly();
    assert!(stopped.total("sessions_refused_rate") >= 20 - served);
    assert_eq!(stopped.total("sessions_refused") + stopped.total("sessions_refused_source"), 0);
}

#[test]
fn a_session_that_publishes_too_fast_gets_109_and_a_raw_one_is_closed() {
    let _machine = beside_others();
    let server = Server::start(&["--publish-rate", "2", "--shards", "2"]);
    let mut peer = Peer::native(server.tcp);
    let ticks: Vec<u8> = (0..50).flat_map(|n| Raw::publish(n, b"t", b"1").bytes()).collect();
    peer.send(&ticks);
    peer.send(&Raw::ping(1).bytes());
    let mut errors = 0;
    loop {
        let frame = peer.frame().unwrap();
        if frame.kind == frames::PONG {
            break;
        }
        assert_eq!((frame.kind, frame.code()), (frames::ERROR, 109), "{frame:?}");
        assert!(frame.text().contains("2 ticks a second"), "{}", frame.text());
        errors += 1;
    }
    assert!((1..=48).contains(&errors), "{errors}");
    // The limit is per session: another one still publishes.
    let mut json = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    json.send_text(r#"{"op":"publish","topic":"t","data":2}"#);
    json.send_text(r#"{"op":"ping","token":3}"#);
    assert_eq!(json.text(), r#"{"op":"pong","token":3}"#);
    let mut raw = Peer::websocket(server.http, "/ws", "tickcast.v1.raw");
    (0..50).for_each(|n| {
        let tick = format!("{{\"op\":\"publish\",\"topic\":\"t\",\"data\":{n}}}");
        raw.send_as_far_as_it_goes(&crate::harness::raw::masked(0x81, tick.as_bytes()));
    });
    let close = raw.message().unwrap();
    assert_eq!((close.opcode, close.close_code()), (CLOSE, 3501));
    drop((peer, json, raw));
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_refused_rate"), errors + 1);
    assert_eq!(stopped.total("closed_bad_request"), 1);
}

/// Requests that exceed one budget, and how they are refused.
struct Abuse {
    requests: Vec<Raw>,
    code: u16,
    option: &'static str,
    counter: &'static str,
}

/// Sends requests, and returns the answers that are errors.
fn errors(peer: &mut Peer, requests: &[Raw]) -> Vec<Received> {
    let mut bytes: Vec<u8> = requests.iter().flat_map(Raw::bytes).collect();
    bytes.extend(Raw::ping(u64::MAX).bytes());
    peer.send(&bytes);
    let mut errors = Vec::new();
    loop {
        let frame = peer.frame().unwrap();
        match frame.kind {
            frames::PONG if frame.token() == u64::MAX => return errors,
            frames::ERROR => errors.push(frame),
            _ => {}
        }
    }
}

impl Abuse {
    fn publish(payload: &[u8], option: &'static str, counter: &'static str) -> Abuse {
        let requests = (0..60).map(|n| Raw::publish(n, b"t", payload)).collect();
        Abuse { requests, code: 109, option, counter }
    }

    /// Subscribes and unsubscribes again and again.
    fn churn(from: u8, option: &'static str, counter: &'static str) -> Abuse {
        let pair = |n| {
            let options = Options { from, ..Options::default() };
            let subscribe = Raw::with_options(frames::SUBSCRIBE, n, "t", options);
            [subscribe, Raw::request(frames::UNSUBSCRIBE, n, b"t")]
        };
        Abuse { requests: (0..200).flat_map(pair).collect(), code: 109, option, counter }
    }

    fn patterns(
        text: impl Fn(u32) -> String,
        code: u16,
        option: &'static str,
        counter: &'static str,
    ) -> Abuse {
        let subscribe = |n| Raw::with_options(frames::SUBSCRIBE, n, &text(n), Options::default());
        Abuse { requests: (0..20).map(subscribe).collect(), code, option, counter }
    }

    /// Commits it in a session, and returns how many requests were refused for it.
    fn commit(&self, peer: &mut Peer) -> u64 {
        let errors = errors(peer, &self.requests);
        // What a refused request has not subscribed to cannot be unsubscribed.
        let (refused, rest): (Vec<_>, Vec<_>) = errors.iter().partition(|error| error.code() == self.code);
        assert!(rest.iter().all(|error| error.code() == 105), "{}: {rest:?}", self.option);
        let names = |error: &&Received| error.text().contains(&format!("({}", self.option));
        assert!(refused.iter().all(names), "{}: {refused:?}", self.option);
        refused.len() as u64
    }
}

#[test]
fn each_budget_of_a_session_refuses_with_its_code_is_counted_and_spares_others() {
    let _machine = beside_others();
    for (options, abuse) in [
        (&["--publish-rate=5"][..], Abuse::publish(b"1", "--publish-rate", "ticks_refused_rate")),
        (
            &["--frame-max=1KiB", "--publish-bandwidth=1KiB"],
            Abuse::publish(&[b'1'; 500], "--publish-bandwidth", "ticks_refused_bandwidth"),
        ),
        (&["--subscribe-rate=1"], Abuse::churn(0, "--subscribe-rate", "subscriptions_refused_rate")),
        (
            &["--last-values-rate=1"],
            Abuse::churn(frames::FROM_LATEST, "--last-values-rate", "last_values_refused_rate"),
        ),
        (&["--history-rate=1"], Abuse::churn(frames::FROM_RESUMES, "--history-rate", "history_refused_rate")),
        (
            &["--pattern-wildcards-max=1"],
            Abuse::patterns(
                |n| format!("{n}.*.*"),
                102,
                "--pattern-wildcards-max",
                "patterns_refused_wildcards",
            ),
        ),
        (
            &["--patterns-per-session-size=50"],
            Abuse::patterns(
                |n| format!("ten.{n:06}"),
                103,
                "--patterns-per-session-size",
                "patterns_refused_session",
            ),
        ),
    ] {
        let room = if abuse.option == "--patterns-per-session-size" { "20" } else { "2" };
        let common = ["--shards=2", "--subscriptions-per-session-max", room];
        let server = Server::start(&[&common[..], options].concat());
        let (mut abuser, mut other) = (Peer::native(server.tcp), Peer::native(server.tcp));
        let refused = abuse.commit(&mut abuser);
        assert!(refused > 0, "{}: nothing is refused", abuse.option);
        let honest = [
            Raw::publish(1, b"t", b"1"),
            Raw::with_options(
                frames::SUBSCRIBE,
                2,
                "t",
                Options { from: frames::FROM_LATEST, ..Options::default() },
            ),
        ];
        assert_eq!(errors(&mut other, &honest), [], "{}: another session", abuse.option);
        drop((abuser, other));
        assert_eq!(server.stop_cleanly().total(abuse.counter), refused, "{}", abuse.counter);
    }
}

#[test]
fn the_sessions_of_one_address_share_its_budgets_unless_it_has_none() {
    let _machine = beside_others();
    let budgets = || {
        [
            (
                &["--publish-rate-per-source=5"][..],
                Abuse::publish(b"1", "--publish-rate-per-source", "ticks_refused_source_rate"),
            ),
            (
                &["--frame-max=1KiB", "--publish-bandwidth-per-source=1KiB"],
                Abuse::publish(
                    &[b'1'; 500],
                    "--publish-bandwidth-per-source",
                    "ticks_refused_source_bandwidth",
                ),
            ),
            (
                &["--subscribe-rate-per-source=1"],
                Abuse::churn(0, "--subscribe-rate-per-source", "subscriptions_refused_source_rate"),
            ),
            (
                &["--last-values-rate-per-source=1"],
                Abuse::churn(
                    frames::FROM_LATEST,
                    "--last-values-rate-per-source",
                    "last_values_refused_source_rate",
                ),
            ),
            (
                &["--history-rate-per-source=1"],
                Abuse::churn(
                    frames::FROM_RESUMES,
                    "--history-rate-per-source",
                    "history_refused_source_rate",
                ),
            ),
            (
                &["--patterns-per-source-memory=1KiB"],
                Abuse::patterns(
                    |n| format!("own.{n}"),
                    103,
                    "--patterns-per-source-memory",
                    "patterns_refused_source",
                ),
            ),
        ]
    };
    for (options, abuse) in budgets() {
        for unlimited in ["none", "127.0.0.0/8"] {
            let room = if abuse.option == "--patterns-per-source-memory" { "20" } else { "2" };
            let common =
                ["--shards=1", "--unlimited-sources", unlimited, "--subscriptions-per-session-max", room];
            // The rates of a session are not what is met here.
            let rates = ["--subscribe-rate=0", "--last-values-rate=0", "--history-rate=0"];
            let server = Server::start(&[&common[..], &rates, options].concat());
            let mut peers: Vec<Peer> = (0..2).map(|_| Peer::native(server.tcp)).collect();
            let refused: Vec<u64> = peers.iter_mut().map(|peer| abuse.commit(peer)).collect();
            let mut elsewhere = knock(&server, "127.0.0.2", true);
            assert_served(&mut elsewhere, true);
            let honest = [
                Raw::publish(1, b"t", b"1"),
                Raw::with_options(frames::SUBSCRIBE, 2, "other", Options::default()),
            ];
            assert_eq!(errors(&mut elsewhere, &honest), [], "{}: another address", abuse.option);
            drop((peers, elsewhere));
            assert_eq!(refused.iter().all(|refused| *refused > 0), unlimited == "none", "{}", abuse.option);
            let total = server.stop_cleanly().total(abuse.counter);
            assert_eq!(total, refused.iter().sum::<u64>(), "{}", abuse.counter);
        }
    }
}

#[test]
fn a_session_that_floods_beyond_its_budget_is_read_more_slowly_and_each_tick_is_answered_or_accepted() {
    let _machine = beside_others();
    let server = Server::start(&["--publish-rate=10", "--shards=2"]);
    let mut flooder = Peer::native(server.tcp);
    let flood: Vec<Raw> = (0..1_500).map(|n| Raw::publish(n, b"t", b"1")).collect();
    let refused = errors(&mut flooder, &flood);
    assert!(refused.iter().all(|error| error.code() == 109));
    drop(flooder);
    let stopped = server.stop_cleanly();
    assert!(stopped.total("input_throttled") > 0, "{}", stopped.log);
    assert_eq!(stopped.total("ticks_refused_rate"), refused.len() as u64);
    assert_eq!(stopped.total("ticks_sequenced") + refused.len() as u64, 1_500);
}

/// Descriptors already open when the server starts, and its limit: enough for its reserve and 128 clients, but not for both.
const DESCRIPTORS_TAKEN: usize = 150;
const DESCRIPTORS_MAX: u64 = 256;

#[test]
fn a_server_out_of_descriptors_logs_it_does_not_spin_and_recovers() {
    let _machine = beside_others();
    let mut command = tickcast();
    let prepare = || {
        for _ in 0..DESCRIPTORS_TAKEN {
            // SAFETY: standard input is open, and the copies are left to the program that is started.
            nix::errno::Errno::result(unsafe { libc::dup(0) })?;
        }
        Ok(setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX)?)
    };
    // SAFETY: dup(2) and setrlimit(2) may be called between fork and exec, and nothing is allocated.
    unsafe { command.pre_exec(prepare) };
    let options = ["--no-sim", "--shards", "2", "--handshake-deadline", "1h"];
    let start = Instant::now();
    let server = Server::start_command(command.env("RUST_LOG", "info"), &options);
    let mut witness = Peer::native(server.tcp);
    // Each holds a descriptor until its handshake is complete.
    let mut silent: Vec<Peer> = (0..120).map(|_| Peer::connect(server.tcp)).collect();
    server.log.wait_for("raise LimitNOFILE");
    // Without descriptors for a while, the server still serves its sessions.
    for token in 0..50 {
        witness.send(&Raw::ping(token).bytes());
        assert_eq!(witness.frame().unwrap().token(), token);
        thread::sleep(LOOK_AGAIN);
    }
    // Accepted connections release their descriptors as they are served, which makes room for those that wait.
    for peer in &mut silent {
        peer.send(&Raw::request(frames::HELLO, 1, b"").bytes());
    }
    silent.iter_mut().for_each(|peer| assert_served(peer, true));
    let least = silent.len() as u64 + 1;
    drop((silent, witness));
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("sessions_accepted"), least, "no connection was refused");
    // Two listeners per shard, each retried every 100 ms. A busy loop would retry many thousand times.
    let failed = stopped.total("accepts_failed");
    assert!((1..=4 * (10 * start.elapsed().as_secs() + 20)).contains(&failed), "{failed} failed accepts");
    assert!(stopped.total("turns") < 20_000, "{}", stopped.log);
}
