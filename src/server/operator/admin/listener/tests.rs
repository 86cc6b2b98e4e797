use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
};

use super::*;
use crate::{config::listener::SocketBounds, operator::control::Question, transport::listener::listen};
use tickcast_proto::ids::ShardId;

const SHARDS: u16 = 2;

fn admin(ask: impl Fn(Inquiry) + Send + Sync + 'static) -> Admin {
    admin_known_as(None, ask).1
}

/// One that takes another address for its own, and its address.
fn admin_known_as(
    known_as: Option<SocketAddr>,
    ask: impl Fn(Inquiry) + Send + Sync + 'static,
) -> (SocketAddr, Admin) {
    let (address, listeners) =
        listen("--admin", "127.0.0.1:0".parse().unwrap(), 1, SocketBounds::default()).unwrap();
    let sights = Sights {
        shards: (0..SHARDS).map(|shard| (usize::from(shard), Arc::default())).collect(),
        sources: vec![Arc::default()],
        ask: Box::new(ask),
    };
    let listener = listeners.into_iter().next().unwrap();
    (address, Admin::start(known_as.unwrap_or(address).into(), listener, sights).unwrap())
}

/// A serving one whose shards answer what `answer` does.
fn serving(answer: impl Fn(ShardId, Question) + Send + Sync + 'static) -> Admin {
    let admin = admin(move |mut inquiry| {
        for shard in (0..SHARDS).map(ShardId).filter(|shard| inquiry.to.is_none_or(|to| to == *shard)) {
            answer(shard, (inquiry.question)(shard));
        }
    });
    admin.set_stage(Stage::Serving);
    admin
}

fn say(admin: &Admin, bytes: &[u8]) -> String {
    say_to(admin.address().tcp().unwrap(), bytes)
}

fn say_to(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is the end as well.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn ask(admin: &Admin, request: &str) -> (u16, String) {
    let answer = say(admin, format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    (status(&answer), answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

fn status(answer: &str) -> u16 {
    let status = answer.strip_prefix("HTTP/1.1 ").or(answer.strip_prefix("HTTP/1.0 "));
    status.map_or(0, |rest| rest[..3].parse().unwrap())
}

#[test]
fn during_the_start_it_lives_is_not_ready_and_asks_nobody() {
    let admin = admin(|_| panic!("there is nobody to be asked"));
    for (request, expected, part) in [
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
        let (status, body) = ask(&admin, request);
        assert_eq!(status, expected, "{request}: {body}");
        assert!(body.contains(part), "{request}: {body}");
    }
}

#[test]
fn at_each_stage_readiness_says_which() {
    let admin = serving(|_, _| {});
    assert_eq!(ask(&admin, "GET /readyz"), (200, "{\"ready\":true}\n".into()));
    admin.set_stage(Stage::Draining);
    let (status, body) = ask(&admin, "GET /readyz");
    assert_eq!(status, 503);
    assert!(body.contains("\"reason\":\"draining\""), "{body}");
    assert_eq!(ask(&admin, "GET /healthz").0, 200);
    // A scrape shows what there is, whichever shards have ended.
    let (status, metrics) = ask(&admin, "GET /metrics");
    assert_eq!(status, 200);
    for line in ["tickcast_stage{stage=\"draining\"} 1\n", "tickcast_shard_answered{shard=\"1\"} 0\n"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert_eq!(ask(&admin, "GET /v1/shards").0, 200);
}

#[test]
fn a_shard_that_is_not_asked_or_never_answers_is_left_out_and_named() {
    let kept = Mutex::new(Vec::new());
    let admin = serving(move |shard, question| match question {
        Question::Close(7, answer) if shard == ShardId(0) => answer.give(true),
        Question::Close(_, answer) if shard == ShardId(0) => answer.give(false),
        Question::Sessions(_, answer) if shard == ShardId(0) => answer.give(Vec::new()),
        // Held for ever: given up after a while.
        Question::Sessions(..) => kept.lock().unwrap().push(question),
        // Dropped: known at once.
        _ => {}
    });
    assert_eq!(ask(&admin, "GET /v1/sessions"), (503, "{\"sessions\":[],\"unanswered\":[1]}\n".into()));
    assert_eq!(ask(&admin, "GET /v1/topics"), (503, "{\"topics\":[],\"unanswered\":[0,1]}\n".into()));
    assert_eq!(ask(&admin, "DELETE /v1/sessions/0-7"), (200, "{\"closed\":\"0-7\"}\n".into()));
    assert_eq!(ask(&admin, "DELETE /v1/sessions/0-8").0, 404);
    assert_eq!(ask(&admin, "DELETE /v1/sessions/1-7").0, 503);
    assert_eq!(ask(&admin, "DELETE /v1/sessions/2-7").0, 404, "there is no such shard");
    assert_eq!(ask(&admin, "GET /metrics").0, 200, "counters need no answer");
    assert_eq!(ask(&admin, "GET /v1/latency?format=hgrm").0, 503);
}

#[test]
fn what_is_no_request_for_this_listener_is_refused() {
    let admin = serving(|_, _| {});
    for (request, expected) in [
        (&b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], 404),
        (b"PUT /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET /v1/sessions?limit=0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /healthz HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", 200),
        (b"GET http://[::1]:9490/healthz HTTP/1.1\r\nHost: [::1]:9490\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: rebound.example\r\n\r\n", 403),
        (b"GET http://rebound.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        (b"DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: rebound.example:9490\r\n\r\n", 403),
        (b"DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n", 403),
        (b"DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n", 200),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n", 400),
    ] {
        let answer = say(&admin, request);
        assert_eq!(status(&answer), expected, "{}: {answer}", String::from_utf8_lossy(request));
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(2 * ADMIN_HEAD_BYTES_MAX));
    assert!([414, 431].contains(&status(&say(&admin, long.as_bytes()))));
    let answer = say(&admin, b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert!(answer.to_lowercase().contains("allow: get, head\r\n"), "{answer}");
    let head = say(&admin, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(head.ends_with("\r\n\r\n") && head.to_lowercase().contains("connection: close"), "{head}");
}

#[test]
fn on_another_address_than_loopback_any_name_will_do_but_no_page_closes_a_session() {
    let known_as = Some("192.0.2.1:9490".parse().unwrap());
    let (address, admin) = admin_known_as(known_as, |mut inquiry| {
        if let Question::Close(7, answer) = (inquiry.question)(ShardId(0)) {
            answer.give(true);
        }
    });
    admin.set_stage(Stage::Serving);
    let close = "DELETE /v1/sessions/0-7 HTTP/1.1\r\nHost: monitor.example\r\n";
    let answer = |request: String| status(&say_to(address, request.as_bytes()));
    assert_eq!(answer("GET /healthz HTTP/1.1\r\nHost: monitor.example\r\n\r\n".into()), 200);
    assert_eq!(answer(format!("{close}Origin: http://monitor.example\r\n\r\n")), 403);
    assert_eq!(answer(format!("{close}\r\n")), 200);
}

#[test]
fn a_loopback_address_is_one_in_ipv6_too() {
    for (address, local) in [
        ("127.0.0.1:1", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("192.0.2.1:1", false),
        ("[::ffff:192.0.2.1]:1", false),
    ] {
        assert_eq!(is_local(&address.parse().unwrap()), local, "{address}");
    }
}

#[test]
fn connections_that_say_nothing_or_half_a_head_keep_nobody_out_for_long() {
    let admin = serving(|_, _| {});
    let silent: Vec<TcpStream> = (0..2 * ADMIN_CONNECTIONS_MAX)
        .map(|number| {
            let mut stream = TcpStream::connect(admin.address().tcp().unwrap()).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /metr").unwrap();
            }
            stream
        })
        .collect();
    assert_eq!(ask(&admin, "GET /healthz").0, 200);
    for mut stream in silent {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&rest));
    }
}

#[test]
fn dropped_it_ends_with_connections_open() {
    let admin = serving(|_, _| {});
    let address = admin.address().tcp().unwrap();
    let mut open = TcpStream::connect(address).unwrap();
    drop(admin);
    assert!(matches!(open.read(&mut [0]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).is_err());
}
