//! A tick that is sent again with its message id is published once: over every transport, for each client by itself, and through
//! engines that recognise ids.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use crate::harness::{
    GUARD, Server, beside_others,
    collector::{Collector, address},
    engines::{Nats, Redis},
    eventually,
    http::get_of_all_shards,
    raw::Peer,
    tickcast,
};
use serde_json::{Value, json};
use tickcast_client::{
    Client, ClientError, ClientToken, ConnectOptions, Event, PublishRequest, RequestError,
};
use tickcast_proto::{ErrorCode, WireFormat};

const ENCODINGS: [WireFormat; 3] =
    [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON];

fn publisher(server: &Server, encoding: WireFormat, token: &str) -> Client {
    let address = address(server, encoding);
    let options = ConnectOptions {
        acknowledgements: true,
        token: ClientToken::new(token),
        ..address.connect_options()
    };
    Client::connect_with(&address, &options).unwrap()
}

/// Epoch and sequence of a tick, and whether it is a duplicate; or the code of its error.
fn publish(client: &mut Client, topic: &str, message_id: &str) -> Result<(u64, u64, bool), u16> {
    let publish = PublishRequest { topic, payload: b"1", message_id, ..PublishRequest::default() };
    let sent = client.publish(publish).unwrap();
    loop {
        match client.next_event(Some(GUARD)).unwrap().expect("an answer") {
            Event::Published { request, epoch, sequence, is_duplicate, .. } if request == sent => {
                return Ok((epoch, sequence, is_duplicate));
            }
            Event::Error { request, code, .. } if request == sent => return Err(code),
            _ => {}
        }
    }
}

/// Publishes over HTTP. Returns the status and the answer.
fn post(http: SocketAddr, topic: &str, fields: &str) -> (u16, Value) {
    let mut peer = Peer::connect(http);
    let head = format!("POST /v1/publish/{topic} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    peer.send(format!("{head}{fields}Content-Length: 1\r\n\r\n1").as_bytes());
    let head = peer.http_head();
    let body = String::from_utf8(peer.read_to_end()).unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

#[test]
fn a_tick_sent_again_over_any_transport_is_published_once() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "4"]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &[">"]);
    for round in 0..20 {
        let (topic, id) = (format!("t.{}", round % 5), format!("id-{round}"));
        let mut first = publisher(&server, ENCODINGS[round % 3], "");
        let (epoch, sequence, is_duplicate) = publish(&mut first, &topic, &id).unwrap();
        assert!(!is_duplicate);
        // The connection breaks, and the client does not know.
        drop(first);
        for encoding in ENCODINGS {
            let mut again = publisher(&server, encoding, "");
            assert_eq!(publish(&mut again, &topic, &id), Ok((epoch, sequence, true)), "{encoding:?}");
        }
        let answer = json!({"topic": topic, "epoch": epoch, "sequence": sequence, "duplicate": true});
        assert_eq!(post(server.http, &topic, &format!("Idempotency-Key: \"{id}\"\r\n")), (200, answer));
    }
    collector.wait_for(20);
    let got = collector.finish();
    for ticks in got.ticks.values() {
        let sequences: Vec<u64> = ticks.iter().map(|(sequence, _)| *sequence).collect();
        assert_eq!(sequences, [1, 2, 3, 4]);
    }
    let stopped = server.stop_cleanly();
    assert_eq!((stopped.total("ticks_sequenced"), stopped.total("ticks_duplicate")), (20, 80));
}

/// Runs `tickcast pub` with these arguments and this input.
fn tickcast_pub(server: &Server, arguments: &[&str], input: &str) -> Output {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("message-ids-lines");
    fs::write(&file, input).unwrap();
    let mut command = tickcast();
    command.arg("pub").args(arguments).args(["--server", &server.tcp.to_string()]);
    command.stdin(fs::File::open(file).unwrap()).output().unwrap()
}

#[test]
fn pub_may_be_run_again_with_its_message_id() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2"]);
    for _ in 0..2 {
        assert!(tickcast_pub(&server, &["a", "1", "--message-id", "m"], "").status.success());
        // The second time, the file has one more line.
        assert!(tickcast_pub(&server, &["b", "-", "--message-id", "n"], "1\n2\n3\n").status.success());
    }
    assert!(tickcast_pub(&server, &["b", "-", "--message-id", "n"], "1\n2\n3\n4\n").status.success());
    let mut client = publisher(&server, WireFormat::TCP_NATIVE, "");
    assert_eq!(publish(&mut client, "a", "").unwrap().1, 2);
    assert_eq!(publish(&mut client, "b", "").unwrap().1, 5);
    assert!(publish(&mut client, "b", "n:4").unwrap().2);
    assert_eq!(tickcast_pub(&server, &["a", "1", "--message-id", ""], "").status.code(), Some(2));
    drop(client);
    server.stop_cleanly();
}

#[test]
fn a_server_without_message_ids_refuses_them() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2", "--message-id-window", "0"]);
    let mut client = publisher(&server, WireFormat::WEBSOCKET_JSON, "");
    assert!(!client.connection().recognises_message_ids());
    let publish = PublishRequest { topic: "a", payload: b"1", message_id: "m", ..PublishRequest::default() };
    let refused = client.publish(publish);
    assert!(matches!(refused, Err(ClientError::Request(RequestError::MessageIdsNotGranted))), "{refused:?}");
    let output = tickcast_pub(&server, &["a", "1", "--message-id", "m"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no message ids"), "{output:?}");
    assert_eq!(post(server.http, "a", "Idempotency-Key: m\r\n").0, 501);
    assert_eq!(post(server.http, "a", "").0, 200);
    drop(client);
    server.stop_cleanly();
}

/// A configuration file.
fn config(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("message-ids-{name}.toml"));
    fs::write(&path, text).unwrap();
    path
}

fn hash_of(token: &str) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("message-ids-{}", &token[..3]));
    fs::write(&file, token).unwrap();
    let output = tickcast().args(["token", "--hash"]).stdin(fs::File::open(file).unwrap()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn no_client_suppresses_the_publish_of_another_by_its_message_id() {
    let _machine = beside_others();
    let (ann, bob) = ("ann-0123456789abcdef0123456789abcdef", "bob-0123456789abcdef0123456789abcdef");
    let token = |name: &str, token: &str| {
        format!(
            "[[auth.token]]\nname = '{name}'\n{}\npermissions = {{ pub = {{ allow = ['>'] }} }}\n",
            hash_of(token)
        )
    };
    let text = format!(
        "[auth]\n[auth.anonymous]\npermissions = {{ pub = {{ allow = ['>'] }} }}\n{}{}",
        token("ann", ann),
        token("bob", bob)
    );
    let path = config("auth", &text);
    let server = Server::start(&["--shards", "2", "--config", path.to_str().unwrap()]);
    for (number, token) in ["", bob, ann].into_iter().enumerate() {
        let mut client = publisher(&server, ENCODINGS[number], token);
        let (_, sequence, is_duplicate) = publish(&mut client, "a", "guessed").unwrap();
        assert_eq!((sequence, is_duplicate), (number as u64 + 1, false));
    }
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\nIdempotency-Key: guessed\r\n");
    assert_eq!(post(server.http, "a", &bearer(ann)).1["sequence"], 3, "the same client over HTTP");
    assert_eq!(post(server.http, "a", &bearer(bob)).1["sequence"], 2);
    assert_eq!(post(server.http, "a", "Idempotency-Key: guessed\r\n").1["sequence"], 1);
    let stopped = server.stop_cleanly();
    assert_eq!((stopped.total("ticks_sequenced"), stopped.total("ticks_duplicate")), (3, 3));
}

/// Starts a server whose topics `orders.>` go to an engine, and waits for the engine.
fn serve_with_sink(name: &str, sink: &str) -> Server {
    let route = "[[route]]\ntopics = 'orders.>'\nto = 'engine'\n";
    let path = config(name, &format!("source = []\n[[sink]]\nname = 'engine'\n{sink}\n{route}"));
    let options = ["--shards", "2", "--config", path.to_str().unwrap()];
    let server = Server::start_with_input(&mut tickcast(), Stdio::null(), &options);
    eventually("the engine", || {
        let sinks = get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sinks"].clone();
        sinks[0]["state"] == "running"
    });
    server
}

#[test]
fn jetstream_recognises_the_ids_of_routed_publishes_from_any_server() {
    let _machine = beside_others();
    let nats = Nats::start("ids-jetstream", &[]);
    nats.make_stream("ORDERS", "orders.>");
    let sink = format!("kind = 'jetstream'\n{}", nats.servers());
    let servers = ["one", "two"].map(|name| serve_with_sink(&format!("jetstream-{name}"), &sink));
    let mut client = publisher(&servers[0], WireFormat::TCP_NATIVE, "");
    let (epoch, sequence, is_duplicate) = publish(&mut client, "orders.a", "m").unwrap();
    assert_eq!((sequence, is_duplicate), (1, false));
    assert_eq!(publish(&mut client, "orders.a", "m"), Ok((epoch, 1, true)));
    assert_eq!(publish(&mut client, "orders.b", "m").unwrap().1, 2, "another topic");
    let mut other = publisher(&servers[1], WireFormat::WEBSOCKET_JSON, "");
    assert_eq!(publish(&mut other, "orders.a", "m"), Ok((epoch, 1, true)), "after a failover");
    assert_eq!(post(servers[1].http, "orders.a", "Idempotency-Key: m\r\n").1["duplicate"], true);
    // Topics without a route have their homes here, each server by itself.
    for server in &servers {
        let mut client = publisher(server, WireFormat::WEBSOCKET_NATIVE, "");
        assert_eq!(publish(&mut client, "prices", "m").unwrap().1, 1);
        assert!(publish(&mut client, "prices", "m").unwrap().2);
    }
    drop((client, other));
    servers.into_iter().for_each(|server| drop(server.stop_cleanly()));
}

#[test]
fn engines_that_recognise_no_ids_refuse_publishes_with_one() {
    let _machine = beside_others();
    let (nats, redis) = (Nats::start("ids-nats", &[]), Redis::start("ids-redis", &[]));
    for (name, sink) in [
        ("nats", format!("kind = 'nats'\n{}", nats.servers())),
        ("redis-pubsub", format!("kind = 'redis-pubsub'\n{}", redis.server())),
        ("redis-stream", format!("kind = 'redis-stream'\nstream = 'orders'\n{}", redis.server())),
    ] {
        let server = serve_with_sink(name, &sink);
        let mut client = publisher(&server, WireFormat::WEBSOCKET_JSON, "");
        assert_eq!(publish(&mut client, "orders.a", "m"), Err(ErrorCode::BadRequest as u16), "{name}");
        assert!(publish(&mut client, "orders.a", "").is_ok(), "{name}");
        let (status, answer) = post(server.http, "orders.a", "Idempotency-Key: m\r\n");
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(100)), "{name}");
        drop(client);
        server.stop_cleanly();
    }
}
