use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
};

use super::*;
use crate::operator::admin::access::{AdminAccess, Rule};
use crate::sources::{SourceStatus, common::Common};
use crate::{
    config::listener::SocketBounds,
    limits::ADMIN_SERVED_MAX,
    operator::{
        control::{Dispatch, ShardRequest},
        tenants::SharedTenants,
    },
    transport::listener::listen,
};
use tickcast_core::metrics::counters::{Counter, Counters};
use tickcast_proto::ids::ShardId;

const SHARDS: u16 = 2;

fn start(dispatch: impl Fn(Dispatch) + Send + Sync + 'static) -> AdminListener {
    start_known_as(None, None, &SourceStatus::new("simulator", Common::named("simulator")), dispatch).1
}

/// A listener that believes it has the address `known_as`, and its real address.
fn start_known_as(
    known_as: Option<SocketAddr>,
    overloaded: Option<(usize, Arc<Counters>)>,
    source: &SourceStatus,
    dispatch: impl Fn(Dispatch) + Send + Sync + 'static,
) -> (SocketAddr, AdminListener) {
    let (address, listeners) =
        listen("--admin", "127.0.0.1:0".parse().unwrap(), 1, SocketBounds::default()).unwrap();
    let handles = ServerHandles {
        tenants: SharedTenants::default(),
        node: "n1".into(),
        shards: (0..SHARDS).map(|shard| (usize::from(shard), Arc::default())).chain(overloaded).collect(),
        sources: vec![source.clone()],
        sinks: Vec::new(),
        access: AdminAccess::new(Rule::Local),
        authority: None,
        overload_is_unready: true,
        certificates: crate::tls::CertificateStatuses::default(),
        dispatch: Box::new(dispatch),
    };
    let listener = listeners.into_iter().next().unwrap();
    let known_as = known_as.unwrap_or(address).into();
    let on_failure = |reason| panic!("the admin thread has ended: {reason}");
    (address, AdminListener::start(known_as, (listener, AdminTls::default()), handles, on_failure).unwrap())
}

/// A listener in stage serving whose shards reply as `reply` does.
fn serving(reply: impl Fn(ShardId, ShardRequest) + Send + Sync + 'static) -> AdminListener {
    let admin = start(move |mut dispatch| {
        for shard in (0..SHARDS).map(ShardId).filter(|shard| dispatch.to.is_none_or(|to| to == *shard)) {
            reply(shard, (dispatch.request)(shard));
        }
    });
    admin.set_stage(Stage::Serving);
    admin
}

fn exchange(admin: &AdminListener, bytes: &[u8]) -> String {
    exchange_with(admin.address().tcp().unwrap(), bytes)
}

fn exchange_with(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset after the response is an end too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(admin: &AdminListener, request: &str) -> (u16, String) {
    let answer = exchange(admin, format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    (status(&answer), answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn status(answer: &str) -> u16 {
    let status = answer.strip_prefix("HTTP/1.1 ").or(answer.strip_prefix("HTTP/1.0 "));
    status.map_or(0, |rest| rest[..3].parse().unwrap())
}

#[test]
fn while_starting_it_is_alive_but_not_ready_and_queries_no_shard() {
    let admin = start(|_| panic!("there are no shards to query"));
    for (line, expected, part) in [
        ("GET /", 200, "/metrics"),
        ("GET /healthz", 200, "true"),
        ("GET /readyz", 503, "\"reason\":\"starting\""),
        ("GET /metrics", 200, "tickcast_shard_answered{shard=\"1\"} 0\n"),
        ("GET /metrics", 200, "tickcast_stage{stage=\"starting\"} 1\n"),
        ("GET /v1/shards", 503, "\"unanswered\":[0,1]"),
        ("GET /v1/sessions", 503, "starting"),
        ("GET /v1/topics", 503, "starting"),
        ("GET /v1/latency", 503, "starting"),
        ("DELETE /v1/sessions/0-1", 503, "starting"),
    ] {
        let (status, body) = request(&admin, line);
        assert_eq!(status, expected, "{line}: {body}");
        assert!(body.contains(part), "{line}: {body}");
    }
}

#[test]
fn a_server_is_not_ready_while_a_shard_is_overloaded_if_the_option_says_so() {
    let counters = Arc::new(Counters::default());
    let (_, admin) = start_known_as(
        None,
        Some((7, counters.clone())),
        &SourceStatus::new("simulator", Common::named("simulator")),
        |_| {},
    );
    admin.set_stage(Stage::Serving);
    assert_eq!(request(&admin, "GET /readyz").0, 200);
    counters.set(Counter::Overloaded, 1);
    let (status, body) = request(&admin, "GET /readyz");
    assert_eq!(status, 503);
    assert!(body.contains("\"reason\":\"overloaded\""), "{body}");
    counters.set(Counter::Overloaded, 0);
    assert_eq!(request(&admin, "GET /readyz").0, 200);
}

#[test]
fn a_server_is_not_ready_while_a_source_reads_back_its_log() {
    let source = SourceStatus::new("jetstream", Common::named("jetstream"));
    source.set_reading_back(true);
    let (_, admin) = start_known_as(None, None, &source, |_| {});
    admin.set_stage(Stage::Serving);
    let (status, body) = request(&admin, "GET /readyz");
    assert_eq!(status, 503);
    assert!(body.contains("\"reason\":\"a source reads back its log\""), "{body}");
    source.set_reading_back(false);
    assert_eq!(request(&admin, "GET /readyz").0, 200);
}

#[test]
fn readiness_reports_the_stage() {
    let admin = serving(|_, _| {});
    assert_eq!(
        request(&admin, "GET /readyz"),
        (200, "{\"ready\":true,\"sources\":{\"simulator\":\"waiting\"}}\n".into())
    );
    admin.set_stage(Stage::Draining);
    let (status, body) = request(&admin, "GET /readyz");
    assert_eq!(status, 503);
    assert!(body.contains("\"reason\":\"draining\""), "{body}");
    assert_eq!(request(&admin, "GET /healthz").0, 200);
    // A scrape succeeds even if shards have ended.
    let (status, metrics) = request(&admin, "GET /metrics");
    assert_eq!(status, 200);
    for line in ["tickcast_stage{stage=\"draining\"} 1\n", "tickcast_shard_answered{shard=\"1\"} 0\n"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert_eq!(request(&admin, "GET /v1/shards").0, 200);
}

#[test]
fn a_shard_that_never_replies_is_listed_as_unanswered() {
    let held = Mutex::new(Vec::new());
    let admin = serving(move |shard, request| match request {
        ShardRequest::Close(7, reply) if shard == ShardId(0) => reply.send(true),
        ShardRequest::Close(_, reply) if shard == ShardId(0) => reply.send(false),
        ShardRequest::Sessions(_, reply) if shard == ShardId(0) => reply.send(Vec::new()),
        // Held forever: runs into the timeout.
        ShardRequest::Sessions(..) => held.lock().unwrap().push(request),
        // Dropped: noticed immediately.
        _ => {}
    });
    assert_eq!(request(&admin, "GET /v1/sessions"), (503, "{\"sessions\":[],\"unanswered\":[1]}\n".into()));
    assert_eq!(request(&admin, "GET /v1/topics"), (503, "{\"topics\":[],\"unanswered\":[0,1]}\n".into()));
    assert_eq!(request(&admin, "DELETE /v1/sessions/0-7"), (200, "{\"closed\":\"0-7\"}\n".into()));
    assert_eq!(request(&admin, "DELETE /v1/sessions/0-8").0, 404);
    assert_eq!(request(&admin, "DELETE /v1/sessions/1-7").0, 503);
    assert_eq!(request(&admin, "DELETE /v1/sessions/2-7").0, 404, "there is no such shard");
    assert_eq!(request(&admin, "GET /metrics").0, 200, "counters need no answer");
    assert_eq!(request(&admin, "GET /v1/latency?format=hgrm").0, 503);
}

#[test]
fn foreign_and_malformed_requests_are_refused() {
    let admin = serving(|_, _| {});
    for (bytes, expected) in [
        (&b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], 404),
        (b"PUT /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /v1/sessions?limit=0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /healthz HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", 200),
        (b"GET http://[::1]:9490/healthz HTTP/1.1\r\nHost: [::1]:9490\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: rebound.example\r\n\r\n", 403),
        (b"GET http://rebound.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost:port\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: rebound.example@localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: local\xff\r\n\r\n", 400),
        (b"GET http://rebound@localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://127.0.0.1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: rebound.example:9490\r\n\r\n", 403),
        (b"DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n", 403),
        (b"DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n", 200),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n", 400),
    ] {
        let answer = exchange(&admin, bytes);
        assert_eq!(status(&answer), expected, "{}: {answer}", String::from_utf8_lossy(bytes));
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(2 * ADMIN_HEAD_BYTES_MAX));
    assert!([414, 431].contains(&status(&exchange(&admin, long.as_bytes()))));
    let answer = exchange(&admin, b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert!(answer.to_lowercase().contains("allow: get, head\r\n"), "{answer}");
    let head = exchange(&admin, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.ends_with("\r\n\r\n") && head.to_lowercase().contains("connection: close"), "{head}");
}

#[test]
fn off_loopback_any_host_is_accepted_but_no_web_page_closes_a_session() {
    let known_as = Some("192.0.2.1:9490".parse().unwrap());
    let (address, admin) = start_known_as(
        known_as,
        None,
        &SourceStatus::new("simulator", Common::named("simulator")),
        |mut dispatch| {
            if let ShardRequest::Close(7, reply) = (dispatch.request)(ShardId(0)) {
                reply.send(true);
            }
        },
    );
    admin.set_stage(Stage::Serving);
    let close = "DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: monitor.example\r\n";
    let answer = |request: String| status(&exchange_with(address, request.as_bytes()));
    assert_eq!(answer("GET /healthz HTTP/1.1\r\nHost: monitor.example\r\n\r\n".into()), 200);
    assert_eq!(answer(format!("{close}Origin: http://monitor.example\r\n\r\n")), 403);
    assert_eq!(answer(format!("{close}\r\n")), 200);
}

#[test]
fn loopback_addresses_are_recognized_in_ipv4_ipv6_and_mapped_form() {
    for (address, expected) in [
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("192.0.2.1:1", false),
        ("[::ffff:192.0.2.1]:1", false),
    ] {
        assert_eq!(address.parse::<Address>().unwrap().is_local(), expected, "{address}");
    }
}

#[test]
fn requests_that_wait_for_shards_do_not_delay_those_that_need_none() {
    // Held: every request to the shards runs into its time-out.
    let held = Mutex::new(Vec::new());
    let admin = serving(move |_, request| held.lock().unwrap().push(request));
    let address = admin.address().tcp().unwrap();
    let waiting: Vec<TcpStream> = (0..2 * ADMIN_SERVED_MAX)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /v1/sessions HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for path in ["/healthz", "/readyz", "/"] {
        assert_eq!(request(&admin, &format!("GET {path}")).0, 200, "{path}");
    }
    // Some wait for their time-out, the others are refused: how many depends on how fast they came.
    for mut stream in waiting {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(status(&answer), 503, "{answer}");
    }
}

#[test]
fn no_more_requests_than_the_bound_are_served_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let connections = Connections::new();
    let mut begun = Vec::new();
    for _ in 0..=ADMIN_SERVED_MAX {
        connections.begin(|connection| {
            begun.push(connection);
            tokio::spawn(async {}).abort_handle()
        });
    }
    let last = begun.pop().unwrap();
    assert!(begun.iter().all(Connection::begin_service));
    assert!(!last.begin_service());
    begun.pop();
    assert!(last.begin_service(), "one has ended");
}

#[test]
fn dropping_it_closes_open_connections() {
    let admin = serving(|_, _| {});
    let address = admin.address().tcp().unwrap();
    let mut open = TcpStream::connect(address).unwrap();
    drop(admin);
    assert!(matches!(open.read(&mut [0]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).is_err());
}
