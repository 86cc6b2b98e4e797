//! Engines that stop and go on, and engines that are reached over TLS.

use std::net::TcpListener;

use crate::{
    harness::{
        GUARD, Server, beside_others,
        certificates::Certificates,
        collector::{self, Collector, assert_same},
        engines::{Nats, Redis},
        eventually,
        http::get_of_all_shards,
    },
    sources::{numbers, payloads, serve, source, ticks, wait_for_state},
};
use tickcast_client::{Client, ConnectOptions, PublishRequest};
use tickcast_proto::WireFormat;

#[test]
fn a_stopped_redis_is_missed_and_a_stream_loses_nothing_when_it_goes_on() {
    let _machine = beside_others();
    let redis = Redis::start("redis-stopped-stream", &[]);
    let server = serve(
        "redis-stopped-stream",
        &format!("[[source]]\nkind = 'redis-stream'\nstreams = ['t.a']\n{}\n", redis.server()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.a"]);
    redis.add("t.a", numbers(0..500));
    collector.wait_for(500);
    let (mut connection, mut pipe) = (redis.connect(), redis::pipe());
    redis.engine().stop();
    numbers(500..600).for_each(|number| {
        pipe.cmd("XADD").arg("t.a").arg("*").arg("data").arg(number).ignore();
    });
    // It lies in the socket until Redis goes on.
    connection.send_packed_command(&pipe.get_packed_pipeline()).unwrap();
    wait_for_state(&server, "waiting");
    let reason = source(&server)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("redis-stopped-stream"), "{reason}");
    redis.engine().go_on();
    wait_for_state(&server, "running");
    redis.add("t.a", numbers(600..700));
    collector.wait_for(700);
    assert_same("a stream", &collector.finish().ticks, &ticks("t.a", numbers(0..700)));
    assert_eq!(source(&server)["messages_lost"], 0);
    server.stop_cleanly();
}

#[test]
fn a_stopped_redis_is_missed_and_the_loss_of_its_channels_is_counted_once() {
    let _machine = beside_others();
    let redis = Redis::start("redis-stopped-channel", &[]);
    let server = serve(
        "redis-stopped-channel",
        &format!("[[source]]\nkind = 'redis-pubsub'\nchannels = ['t.a']\n{}\n", redis.server()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.a"]);
    let mut connection = redis.connect();
    let mut publish = |range: std::ops::Range<u32>| {
        let mut pipe = redis::pipe();
        range.for_each(|number| {
            pipe.cmd("PUBLISH").arg("t.a").arg(number).ignore();
        });
        pipe.exec(&mut connection).unwrap();
    };
    publish(0..100);
    collector.wait_for(100);
    redis.engine().stop();
    wait_for_state(&server, "waiting");
    redis.engine().go_on();
    wait_for_state(&server, "running");
    assert_eq!(source(&server)["messages_lost"], 1);
    publish(100..200);
    collector.wait_for(200);
    assert!(payloads(&collector.finish(), "t.a").into_iter().eq(0..200));
    server.stop_cleanly();
}

/// A source and a sink of one engine, in its own lines of the configuration.
struct Pair {
    name: &'static str,
    /// The lines that reach it.
    address: String,
    source: &'static str,
    sink: &'static str,
}

impl Pair {
    /// Starts a server with both, which trust this authority.
    fn serve(&self, ca: &str) -> Server {
        let Pair { name, address, source, sink } = self;
        let reach = format!("{address}\ntls = {{ ca = '{ca}' }}");
        let text = format!(
            "[[source]]\n{source}\n{reach}\n\n[[sink]]\nname = 'engine'\n{sink}\n{reach}\n\n\
             [[route]]\ntopics = 'orders.>'\nto = 'engine'\n"
        );
        serve(name, &text)
    }

    /// Passes ticks through the sink to the engine, and back through the source.
    fn passes(&self, ca: &str) {
        let server = self.serve(ca);
        wait_for_state(&server, "running");
        eventually("the sink", || sink(&server)["state"] == "running");
        let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["orders.a"]);
        let address = collector::address(&server, WireFormat::TCP_NATIVE);
        let options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
        let mut client = Client::connect_with(&address, &options).unwrap();
        for number in numbers(0..50) {
            let publish =
                PublishRequest { topic: "orders.a", payload: number.as_bytes(), ..PublishRequest::default() };
            client.publish_acknowledged(publish, GUARD, |_| {}).unwrap();
        }
        collector.wait_for(50);
        assert!(payloads(&collector.finish(), "orders.a").into_iter().eq(0..50), "{}", self.name);
        server.stop_cleanly();
    }

    /// Refuses the engine because another authority has signed its certificate, and says what to do.
    fn refuses(&self, ca: &str) {
        let server = self.serve(ca);
        for state in [source, sink] {
            eventually("a reason", || {
                state(&server)["reason"].as_str().is_some_and(|why| why.contains("tls.ca"))
            });
            let state = state(&server);
            assert_eq!(state["state"], "waiting", "{state}");
            let reason = state["reason"].as_str().unwrap();
            assert!(reason.contains("127.0.0.1") && reason.contains("UnknownIssuer"), "{reason}");
        }
        server.stop_cleanly();
    }
}

/// What the admin listener says of the only sink.
fn sink(server: &Server) -> serde_json::Value {
    get_of_all_shards(server.admin.unwrap(), "/v1/shards").json()["sinks"][0].clone()
}

#[test]
fn nats_is_reached_over_tls_if_the_right_authority_is_named() {
    let _machine = beside_others();
    let (right, wrong) = (Certificates::new("nats-right"), Certificates::new("nats-wrong"));
    let (cert, key) = (right.file("server.pem"), right.file("server.key"));
    let nats = Nats::start("nats-tls", &["--tls", "--tlscert", &cert, "--tlskey", &key]);
    let pair = Pair {
        name: "nats-tls",
        address: format!("servers = ['tls://127.0.0.1:{}']", nats.port),
        source: "kind = 'nats'\nsubjects = ['orders.>']",
        sink: "kind = 'nats'",
    };
    pair.passes(&right.ca());
    pair.refuses(&wrong.ca());
}

#[test]
fn redis_is_reached_over_tls_if_the_right_authority_is_named() {
    let _machine = beside_others();
    let (right, wrong) = (Certificates::new("redis-right"), Certificates::new("redis-wrong"));
    let (cert, key, ca) = (right.file("server.pem"), right.file("server.key"), right.ca());
    // Redis takes no 0 for a free port.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = [
        "--bind",
        "127.0.0.1",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ];
    let _redis = Redis::start("redis-tls", &options);
    let address = format!("server = 'rediss://127.0.0.1:{port}'");
    for (source, sink) in [
        ("kind = 'redis-pubsub'\nchannels = ['orders.*']", "kind = 'redis-pubsub'"),
        ("kind = 'redis-stream'\nstreams = ['orders.a']", "kind = 'redis-stream'\nstream = '{topic}'"),
    ] {
        let pair = Pair { name: "redis-tls", address: address.clone(), source, sink };
        pair.passes(&right.ca());
        pair.refuses(&wrong.ca());
    }
}
