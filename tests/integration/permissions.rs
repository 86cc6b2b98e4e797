//! What principals may do, over every transport, and a browser that keeps its session with token after token.

use std::{fs, path::Path, process::Stdio, time::Instant};

use crate::{
    harness::{
        GUARD, LOOK_AGAIN, Server, beside_others,
        certificates::Certificates,
        collector, data,
        external::{External, Library},
        raw::Peer,
        tickcast, while_waiting,
    },
    page::browser,
};
use tickcast_client::{
    Address, Client, ClientToken, ConnectOptions, Event, PublishRequest, SubscribeOptions, TlsOptions,
};
use tickcast_proto::{
    WireFormat,
    subscription::{Position, StartPosition},
};

fn key(name: &str) -> String {
    data(&format!("auth/{name}")).to_str().unwrap().to_owned()
}

fn start(name: &str, config: &str) -> Server {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("permissions-{name}.toml"));
    fs::write(&path, config).unwrap();
    Server::start(&["--shards", "2", "--config", path.to_str().unwrap()])
}

/// What a client presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Anonymous,
    /// A JWT with the permissions of `user.{sub}`.
    Alice,
    /// A static token that may do everything but what is denied to it.
    Collector,
}

/// What it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Subscribe,
    Publish,
}

use Ask::{Publish, Subscribe};
use Who::{Alice, Anonymous, Collector};

/// Who may do what.
const MATRIX: [(Who, Ask, &str, bool); 29] = [
    (Anonymous, Subscribe, "public.a", true),
    (Anonymous, Subscribe, "public.*", true),
    (Anonymous, Subscribe, "public.>", true),
    (Anonymous, Subscribe, "public", false),
    (Anonymous, Subscribe, "*.a", false),
    (Anonymous, Subscribe, ">", false),
    (Anonymous, Subscribe, "user.alice.in", false),
    (Anonymous, Publish, "public.a", false),
    (Anonymous, Publish, "user.alice.out", false),
    (Alice, Subscribe, "user.alice.in", true),
    (Alice, Subscribe, "user.alice.in.>", true),
    (Alice, Subscribe, "user.alice.*", false),
    (Alice, Subscribe, "user.alice.>", false),
    (Alice, Subscribe, "user.alice.secret", false),
    (Alice, Subscribe, "user.alice.secret.a", true),
    (Alice, Subscribe, "user.*.in", false),
    (Alice, Subscribe, "user.bob.in", false),
    (Alice, Subscribe, "public.a", false),
    (Alice, Subscribe, ">", false),
    (Alice, Publish, "user.alice.out", true),
    (Alice, Publish, "user.alice.in", false),
    (Alice, Publish, "user.bob.out", false),
    (Alice, Publish, "public.a", false),
    (Collector, Subscribe, "user.alice.secret", true),
    (Collector, Subscribe, "sealed.a", false),
    (Collector, Subscribe, ">", false),
    (Collector, Publish, "user.alice.in", true),
    (Collector, Publish, "sealed.a", true),
    (Collector, Publish, "frozen.a", false),
];

const MACHINE_TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn printed(command: &mut std::process::Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The hash of [`MACHINE_TOKEN`]: a line of the file.
fn machine_hash(name: &str) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("permissions-{name}-token"));
    fs::write(&file, format!("{MACHINE_TOKEN}\n")).unwrap();
    let output = tickcast().args(["token", "--hash"]).stdin(fs::File::open(file).unwrap()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn matrix_config(tls: &str) -> String {
    let listener =
        |kind: &str, tls: &str| format!("[[listener]]\nkind = {kind:?}\naddress = \"127.0.0.1:1\"\n{tls}\n");
    let listeners =
        [("native", tls), ("http", tls), ("admin", "")].map(|(kind, tls)| listener(kind, tls)).concat();
    format!(
        "{listeners}\n[auth]\n[auth.anonymous]\npermissions = {{ sub = {{ allow = ['public.>'] }} }}\n\
         [[auth.key]]\nalgorithm = 'EdDSA'\nfile = {:?}\n\
         [[auth.token]]\nname = 'collector'\n{}\n\
         permissions = {{ sub = {{ allow = ['>'], deny = ['sealed.>'] }}, pub = {{ allow = ['>'], deny = ['frozen.>'] }} }}\n",
        key("ed25519.pub.pem"),
        machine_hash("matrix"),
    )
}

/// The request's error; `None` if it is acknowledged.
fn answer(client: &mut Client, request: u32) -> Option<u16> {
    loop {
        match client.next_event(Some(GUARD)).unwrap().expect("an answer") {
            Event::Subscribed { request: answered, .. } if answered == request => return None,
            Event::Published { request: answered, .. } if answered == request => return None,
            Event::Error { request: answered, code, .. } if answered == request => return Some(code),
            Event::Closing { code, text, .. } => panic!("closed with {code}: {text}"),
            _ => {}
        }
    }
}

/// The token of [`Who::Alice`].
fn token_of_alice() -> String {
    let mut token = tickcast();
    token.args(["token", "--key", &key("ed25519.pem"), "--sub", "alice"]);
    token.args([
        "--allow-sub",
        "user.{sub}.>",
        "--deny-sub",
        "user.{sub}.secret",
        "--allow-pub",
        "user.{sub}.out",
    ]);
    printed(&mut token)
}

/// The status of an answer, without its body, which may never end.
fn status(server: &Server, method: &str, target: &str, token: &str, body: &str) -> u16 {
    let mut peer = Peer::connect(server.http);
    let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let length = body.len();
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{bearer}Content-Length: {length}\r\n\r\n");
    peer.send((head + body).as_bytes());
    peer.http_head()[9..12].parse().unwrap()
}

/// The error of a Socket.IO event over WebSocket; `None` if it is acknowledged.
fn socket_io_answer(server: &Server, token: &str, event: &str) -> Option<u64> {
    let mut peer = Peer::connect(server.http);
    peer.upgrade("/socket.io/?EIO=4&transport=websocket", "");
    assert!(peer.text().starts_with("0{"));
    let auth = if token.is_empty() { String::new() } else { format!("{{\"token\":{token:?}}}") };
    peer.send_text(&format!("40{auth}"));
    let connected = peer.text();
    assert!(connected.starts_with("40{"), "{connected}");
    peer.send_text(&format!("427{event}"));
    loop {
        if let Some(answer) = peer.text().strip_prefix("437") {
            let answers: serde_json::Value = serde_json::from_str(answer).unwrap();
            return (answers[0]["op"] == "error").then(|| answers[0]["code"].as_u64().unwrap());
        }
    }
}

#[test]
fn who_may_do_what_is_the_same_over_http_streams_and_socket_io() {
    let _machine = beside_others();
    let alice = token_of_alice();
    let server = start("http", &matrix_config(""));
    for (who, ask, topic, is_allowed) in MATRIX {
        let token = match who {
            Anonymous => "",
            Alice => &*alice,
            Collector => MACHINE_TOKEN,
        };
        let named = topic.replace('>', "%3E").replace('*', "%2A");
        let requests = match ask {
            Subscribe => vec![
                ("GET", format!("/sse?topics={named}"), ""),
                ("GET", format!("/v1/latest?topics={named}"), ""),
                ("GET", format!("/v1/topics?pattern={named}"), ""),
            ],
            Publish => vec![("POST", format!("/v1/publish/{named}"), "1")],
        };
        for (method, target, body) in requests {
            let expected = if is_allowed { 200 } else { 403 };
            assert_eq!(status(&server, method, &target, token, body), expected, "{who:?} {method} {target}");
        }
        if ask == Subscribe && named == topic {
            // A topic that nobody has published has no history.
            let got = status(&server, "GET", &format!("/v1/history?topic={topic}"), token, "");
            assert!(if is_allowed { matches!(got, 200 | 404) } else { got == 403 }, "{who:?} {topic}: {got}");
        }
        let event = match ask {
            Subscribe => format!("[\"subscribe\",{topic:?}]"),
            Publish => format!("[\"publish\",{topic:?},1]"),
        };
        let expected = (!is_allowed).then_some(108);
        assert_eq!(socket_io_answer(&server, token, &event), expected, "{who:?} {event}");
    }
    server.stop_cleanly();
}

#[test]
fn who_may_do_what_is_the_same_over_every_transport_and_from_every_start() {
    let _machine = beside_others();
    let certificates = Certificates::new("matrix");
    let alice = token_of_alice();
    for (name, tls) in [("plain", String::new()), ("tls", certificates.listener(""))] {
        let server = start(name, &matrix_config(&tls));
        for encoding in [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON] {
            for (who, token) in [(Anonymous, ""), (Alice, &*alice), (Collector, MACHINE_TOKEN)] {
                let address = Address { is_tls: !tls.is_empty(), ..collector::address(&server, encoding) };
                let options = ConnectOptions {
                    acknowledgements: true,
                    token: ClientToken::new(token),
                    tls: TlsOptions { ca: Some(certificates.ca().into()), ..TlsOptions::default() },
                    ..address.connect_options()
                };
                for &(_, ask, topic, is_allowed) in MATRIX.iter().filter(|row| row.0 == who) {
                    // A past that is not to be read is refused like the future.
                    let starts = [
                        StartPosition::Live,
                        StartPosition::Latest,
                        StartPosition::After(Position::default()),
                    ];
                    let starts = if ask == Subscribe { &starts[..] } else { &starts[..1] };
                    for from in starts {
                        let mut client = Client::connect_with(&address, &options).unwrap();
                        let request = match ask {
                            Subscribe => {
                                let start =
                                    SubscribeOptions { from: from.clone(), ..SubscribeOptions::default() };
                                client.subscribe_with(topic, &start).unwrap()
                            }
                            Publish => {
                                let tick =
                                    PublishRequest { topic, payload: b"1", ..PublishRequest::default() };
                                client.publish(tick).unwrap()
                            }
                        };
                        let expected = (!is_allowed).then_some(108);
                        let got = answer(&mut client, request);
                        assert_eq!(
                            got, expected,
                            "{name} {encoding:?} {who:?} {ask:?} {topic} from {from:?}"
                        );
                    }
                }
            }
        }
        server.stop_cleanly();
    }
}

#[test]
fn a_browser_keeps_its_session_for_a_minute_of_tokens_that_last_five_seconds() {
    let _machine = while_waiting();
    let config = format!(
        "[auth]\nleeway = '0s'\nwarning = '2s'\n[[auth.key]]\nalgorithm = 'HS256'\nfile = {:?}\n[[auth.token]]\nname = 'feed'\n{}\npermissions = {{ pub = {{ allow = ['>'] }} }}\n",
        key("hs256.txt"),
        machine_hash("browser")
    );
    let server = start("browser", &config);
    let url = format!("http://{}/", server.http);
    let page = External::run(Library::Ws, "refresh", &[&browser(), &url, &key("hs256.txt"), "5", "20"]);
    page.wait_for("subscribed");
    let address = collector::address(&server, WireFormat::TCP_NATIVE);
    let options = ConnectOptions { token: ClientToken::new(MACHINE_TOKEN), ..address.connect_options() };
    let mut feed = Client::connect_with(&address, &options).unwrap();
    let (mut published, start) = (0, Instant::now());
    while !page.printed().contains("refreshed 20\n") {
        collector::publish(&mut feed, "t", b"1");
        collector::barrier(&mut feed);
        published += 1;
        assert!(start.elapsed() < GUARD, "the page has ended: {}", page.printed());
        std::thread::sleep(LOOK_AGAIN);
    }
    let printed = page.finish();
    let whole = printed.lines().find_map(|line| line.strip_prefix("whole from 1 to ")).expect(&printed);
    assert!(whole.parse::<u64>().unwrap() <= published, "{printed}");
    server.stop_cleanly();
}
