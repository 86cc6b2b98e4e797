//! Tenants: the same names by token, host and listener, exports, quotas, and what operators see and change of them.

use std::{
    fs,
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::harness::{
    GUARD, Server, beside_others, data, eventually,
    frames::{self, Raw, Received},
    http::{get, get_of_all_shards},
    raw::{CLOSE, Peer, upgrade_request},
    tickcast,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const TWO: &str =
    "[[tenant]]\nname = \"a\"\nhosts = [\"a.test\"]\n[[tenant]]\nname = \"b\"\nhosts = [\"b.test\"]\n";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tenants-{name}.toml"))
}

/// A path for a socket of this test.
fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tickcast-tenants-{}-{name}.sock", std::process::id()))
}

/// A listener of each kind, and one for native clients of a tenant.
fn listeners(tenant_socket: &Path) -> String {
    format!(
        "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\nkind = \"admin\"\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\nkind = \"native\"\naddress = \"unix:{}\"\ntenant = \"a\"\n",
        tenant_socket.display()
    )
}

fn server(name: &str, text: &str) -> Server {
    fs::write(file(name), text).unwrap();
    Server::start(&["--shards", "2", "--config", file(name).to_str().unwrap()])
}

fn reload(server: &Server, name: &str, text: &str) {
    fs::write(file(name), text).unwrap();
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
}

/// A native client over the Unix socket of a tenant's listener, and the first frame that it gets.
fn of_listener(path: &Path) -> (Peer, Received) {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let mut peer = Peer { stream: TcpStream::from(OwnedFd::from(stream)), buffer: Vec::new() };
    peer.send(&Raw::request(frames::HELLO, 1, b"raw").bytes());
    let first = peer.frame().unwrap();
    (peer, first)
}

/// A WebSocket with native frames whose request is for a host.
fn of_host(server: &Server, host: &str) -> Peer {
    let mut peer = Peer::connect(server.http);
    peer.send(
        upgrade_request("/ws", "tickcast.v1.json")
            .replacen("Host: localhost", &format!("Host: {host}"), 1)
            .as_bytes(),
    );
    assert!(peer.http_head().starts_with("HTTP/1.1 101 "));
    peer
}

/// A client with JSON on a WebSocket.
struct Json(Peer);

impl Json {
    fn request(&mut self, text: &str) -> serde_json::Value {
        self.0.send_text(text);
        self.next()
    }

    fn next(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.0.text()).unwrap()
    }

    fn subscribe(&mut self, pattern: &str) {
        let answer = self.request(&format!(r#"{{"op":"subscribe","topics":["{pattern}"]}}"#));
        assert_eq!((&answer["op"], &answer["pattern"]), (&"subscribed".into(), &pattern.into()), "{answer}");
    }

    fn publish(&mut self, topic: &str, data: u32) {
        self.0.send_text(&format!(r#"{{"op":"publish","topic":"{topic}","data":{data}}}"#));
    }

    /// The topic and the data of the next tick.
    fn tick(&mut self) -> (String, u64) {
        loop {
            let message = self.next();
            if message["op"].is_null() {
                return (message["topic"].as_str().unwrap().into(), message["data"].as_u64().unwrap_or(0));
            }
            assert_eq!(message["op"], "subscribed", "{message}");
        }
    }
}

fn metric(server: &Server, name: &str) -> f64 {
    let metrics = get_of_all_shards(server.admin.unwrap(), "/metrics").body;
    let of = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.split(' ').next_back()?.parse::<f64>().ok());
    of.sum()
}

#[test]
fn tenants_by_host_and_by_listener_use_the_same_names_and_see_nothing_of_each_other() {
    let _machine = beside_others();
    let path = socket("names");
    let server = server("names", &format!("{TWO}{}", listeners(&path)));
    let mut none = Json(of_host(&server, "elsewhere.localhost"));
    let (mut a, mut b) = (Json(of_host(&server, "a.test")), Json(of_host(&server, "b.test:80")));
    let (mut also_a, welcome) = of_listener(&path);
    assert_eq!(welcome.kind, frames::WELCOME);
    none.subscribe(">");
    a.subscribe("*.x");
    b.subscribe("t.x");
    also_a.send(&Raw::request(frames::SUBSCRIBE, 2, b"t.x").bytes());
    assert_eq!(also_a.frame().unwrap().kind, frames::SUBSCRIBED);
    none.publish("t.x", 1);
    b.publish("t.x", 3);
    a.publish("t.x", 2);
    assert_eq!([none.tick(), a.tick(), b.tick()], [1, 2, 3].map(|data| ("t.x".to_owned(), data)));
    assert_eq!(
        (also_a.frame().unwrap().text().to_owned(), also_a.frame().unwrap().text().to_owned()),
        ("t.x".into(), "2".into())
    );

    let topics = |query: &str| {
        let answer = get_of_all_shards(server.admin.unwrap(), &format!("/v1/topics{query}")).json();
        let topics = answer["topics"].as_array().unwrap().clone();
        topics
            .iter()
            .map(|topic| {
                format!("{}:{}", topic["tenant"].as_str().unwrap_or(""), topic["topic"].as_str().unwrap())
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(topics("").len(), 3);
    assert_eq!(
        (topics("?tenant=a"), topics("?tenant=")),
        (vec!["a:t.x".to_owned()], vec![":t.x".to_owned()])
    );
    let sessions = get_of_all_shards(server.admin.unwrap(), "/v1/sessions?tenant=a").json();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 2, "{sessions}");
    assert_eq!(metric(&server, "tickcast_tenant_connections{tenant=\"a\"}"), 2.0);
    assert_eq!(metric(&server, "tickcast_tenant_ticks_published_total{tenant=\"b\"}"), 1.0);
    drop((none, a, b, also_a));
    server.stop_cleanly();
}

/// Sends a request for a host, and returns the answer's head. The connection stays open.
fn ask_host(server: &Server, host: &str, request: &str, body: &str) -> (Peer, String) {
    let mut peer = Peer::connect(server.http);
    let length = body.len();
    peer.send(
        format!("{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes(),
    );
    let head = peer.http_head();
    (peer, head)
}

/// The body of an answer with a length.
fn body(server: &Server, host: &str, request: &str, body: &str) -> String {
    let (mut peer, head) = ask_host(server, host, request, body);
    assert!(head.starts_with("HTTP/1.1 200 "), "{request}: {head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    String::from_utf8(peer.take(length.parse().unwrap())).unwrap()
}

#[test]
fn tenants_see_nothing_of_each_other_over_http() {
    let _machine = beside_others();
    let path = socket("http");
    let server = server("http", &format!("{TWO}{}", listeners(&path)));
    let hosts = ["a.test", "b.test"];
    let mut streams = hosts.map(|host| {
        let (peer, head) = ask_host(&server, host, "GET /sse?topics=%3E", "");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        peer
    });
    for (host, topic, data) in [("a.test", "only.a", "\"of a\""), ("b.test", "only.b", "\"of b\"")] {
        for topic in [topic, "both"] {
            body(&server, host, &format!("POST /v1/publish/{topic}"), data);
        }
    }
    for (host, own, other) in [("a.test", "a", "b"), ("b.test", "b", "a")] {
        let names = body(&server, host, "GET /v1/topics?pattern=%3E", "");
        assert!(names.contains(&format!("only.{own}")) && names.contains("both"), "{names}");
        assert!(!names.contains(&format!("only.{other}")), "{names}");
        let latest = body(&server, host, "GET /v1/latest?topics=%3E", "");
        let history = body(&server, host, "GET /v1/history?topic=both", "");
        for read in [latest, history] {
            assert!(read.contains(&format!("of {own}")) && !read.contains(&format!("of {other}")), "{read}");
        }
        let (_, head) = ask_host(&server, host, &format!("GET /v1/history?topic=only.{other}"), "");
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    }
    for (stream, (own, other)) in streams.iter_mut().zip([("a", "b"), ("b", "a")]) {
        let mut read = String::new();
        while read.matches(&format!("of {own}")).count() < 2 {
            read.push_str(&String::from_utf8(stream.take(1)).unwrap());
        }
        assert!(!read.contains(&format!("of {other}")) && !read.contains(&format!("only.{other}")), "{read}");
    }
    drop(streams);
    server.stop_cleanly();
}

#[test]
fn a_token_names_the_tenant_and_is_refused_for_another_host_or_listener() {
    let _machine = beside_others();
    let key = |name: &str| data(&format!("auth/{name}")).to_str().unwrap().to_owned();
    let token = |tenant: &str| {
        let of_tenant: &[&str] = if tenant.is_empty() { &[] } else { &["--tenant", tenant] };
        let mut command = tickcast();
        command.args([
            "token",
            "--key",
            &key("ed25519.pem"),
            "--sub",
            "s",
            "--allow-sub",
            ">",
            "--allow-pub",
            ">",
        ]);
        let output = command.args(of_tenant).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let path = socket("tokens");
    let auth = format!("[[auth.key]]\nalgorithm = \"EdDSA\"\nfile = {:?}\n", key("ed25519.pub.pem"));
    let server = server("tokens", &format!("{TWO}{}{auth}", listeners(&path)));
    let websocket = |host: &str, tenant: &str| {
        let mut peer = of_host(&server, host);
        peer.send_text(&format!(r#"{{"op":"hello","token":"{}"}}"#, token(tenant)));
        peer
    };
    let mut clients =
        [("", ""), ("elsewhere.localhost", "a"), ("b.test", "b"), ("b.test", "")].map(|(host, tenant)| {
            let mut client = Json(websocket(if host.is_empty() { "localhost" } else { host }, tenant));
            assert_eq!(client.next()["op"], "welcome");
            client.subscribe("t.x");
            client
        });
    for (at, client) in clients.iter_mut().enumerate().take(3) {
        client.publish("t.x", at as u32);
    }
    let received = clients.each_mut().map(|client| client.tick().1);
    assert_eq!(received, [0, 1, 2, 2]);
    for (host, tenant) in [("a.test", "b"), ("localhost", "unknown")] {
        let mut peer = websocket(host, tenant);
        let code = loop {
            let message = peer.message().unwrap();
            if message.opcode == CLOSE {
                break message.close_code();
            }
        };
        assert_eq!(code, 3500, "{host} {tenant}");
    }
    for (tenant, kind) in [("a", frames::WELCOME), ("", frames::WELCOME), ("b", frames::CLOSING)] {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        let mut peer = Peer { stream: TcpStream::from(OwnedFd::from(stream)), buffer: Vec::new() };
        let token = token(tenant);
        let record =
            [&1u32.to_le_bytes()[..], &[0; 2], &(token.len() as u16).to_le_bytes(), &[0; 8]].concat();
        peer.send(&Raw::new(frames::HELLO, &record, token.as_bytes()).bytes());
        let first = peer.frame().unwrap();
        assert_eq!(first.kind, kind, "{tenant}");
        if kind == frames::CLOSING {
            assert_eq!(first.code(), 3500);
        }
    }
    drop(clients);
    server.stop_cleanly();
}

#[test]
fn importers_receive_what_a_tenant_exports_from_a_source_of_its_own() {
    let _machine = beside_others();
    let text = "[[tenant]]\nname = \"exchange\"\nexports = [{ topics = \"sim.>\", to = [\"a\"] }]\n\
                [[tenant]]\nname = \"a\"\nhosts = [\"a.test\"]\n[[tenant]]\nname = \"b\"\nhosts = [\"b.test\"]\n\
                [[source]]\nkind = \"simulator\"\ntenant = \"exchange\"\ntopics = 3\nrate = 1000\n";
    fs::write(file("exports"), text).unwrap();
    let path = file("exports");
    let options = ["--shards", "2", "--config", path.to_str().unwrap()];
    let server = Server::start_command(&mut tickcast(), &options);
    let (mut a, mut also_a) = (Json(of_host(&server, "a.test")), Json(of_host(&server, "a.test")));
    let mut b = Json(of_host(&server, "b.test"));
    a.subscribe("sim.*");
    also_a.subscribe("sim.1");
    b.subscribe(">");
    assert!(a.tick().0.starts_with("sim.") && also_a.tick().0 == "sim.1");
    also_a.0.send_text(r#"{"op":"publish","id":5,"topic":"sim.1","data":1}"#);
    let refused = loop {
        let message = also_a.next();
        if message["op"] == "error" {
            break message;
        }
    };
    assert_eq!(
        (&refused["id"], &refused["code"]),
        (&5.into(), &(tickcast_proto::ErrorCode::NotAllowed as u16).into())
    );
    b.publish("mine", 7);
    assert_eq!(b.tick(), ("mine".into(), 7), "nothing is exported to it");
    drop((a, also_a, b));
    server.stop_cleanly();
}

#[test]
fn each_quota_is_refused_with_its_code_counted_and_changed_by_a_reload() {
    let _machine = beside_others();
    let path = socket("quotas");
    let with = |quota: &str| {
        format!(
            "[[tenant]]\nname = \"a\"\nhosts = [\"a.test\"]\nquota = {{ {quota} }}\n\
             [[tenant]]\nname = \"b\"\nhosts = [\"b.test\"]\n{}",
            listeners(&path)
        )
    };
    let quota = "connections = 2, subscriptions = 3, topics = 2, publish_rate = 8";
    let server = server("quotas", &with(quota));
    let (mut one, mut two) = (Json(of_host(&server, "a.test")), Json(of_host(&server, "a.test")));
    // It answers, so both are counted.
    one.subscribe("t.0");
    two.subscribe("t.0");
    two.subscribe("t.1");
    let (_, closing) = of_listener(&path);
    assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3504));
    let error = one.request(r#"{"op":"subscribe","id":4,"topics":["t.9"]}"#);
    let code = |code: tickcast_proto::ErrorCode| serde_json::Value::from(code as u16);
    assert_eq!(
        (&error["op"], &error["code"]),
        (&"error".into(), &code(tickcast_proto::ErrorCode::TooManySubscriptions))
    );
    for topic in ["u.0", "u.1", "u.2"] {
        one.0.send_text(&format!(r#"{{"op":"publish","id":5,"topic":"{topic}","data":1}}"#));
    }
    let error = one.next();
    assert_eq!(
        (&error["op"], &error["code"]),
        (&"error".into(), &code(tickcast_proto::ErrorCode::TooManyTopics))
    );
    for n in 0..20 {
        one.0.send_text(&format!(r#"{{"op":"publish","id":{n},"topic":"u.0","data":1}}"#));
    }
    let error = one.next();
    assert_eq!(
        (&error["op"], &error["code"]),
        (&"error".into(), &code(tickcast_proto::ErrorCode::RateLimited))
    );
    let mut other = Json(of_host(&server, "b.test"));
    for n in 0..20 {
        other.subscribe(&format!("u.{n}"));
        other.publish(&format!("u.{n}"), n);
        assert_eq!(other.tick().1, u64::from(n));
    }
    for (name, at_least) in [
        ("tickcast_tenant_connections_refused_total{tenant=\"a\"}", 1.0),
        ("tickcast_tenant_subscriptions_refused_total{tenant=\"a\"}", 1.0),
        ("tickcast_tenant_topics_refused_total{tenant=\"a\"}", 1.0),
        ("tickcast_tenant_publishes_refused_total{tenant=\"a\"}", 1.0),
        ("tickcast_ticks_refused_tenant_total", 1.0),
        ("tickcast_tenant_quota{tenant=\"a\",resource=\"topics\"}", 2.0),
    ] {
        assert!(metric(&server, name) >= at_least, "{name}");
    }
    let of_b = metric(&server, "tickcast_tenant_publishes_refused_total{tenant=\"b\"}");
    assert_eq!(of_b, 0.0);

    reload(&server, "quotas", &with("connections = 3, topics = 2"));
    server.log.wait_for("SIGHUP: tenant[0].quota: ");
    eventually("one more connection is accepted", || of_listener(&path).1.kind == frames::WELCOME);
    let tenants = get(server.admin.unwrap(), "/v1/tenants").json();
    assert_eq!(tenants["tenants"][0]["quota"]["connections"], 3, "{tenants}");
    assert_eq!(tenants["tenants"][0]["quota"]["subscriptions"], 0, "{tenants}");

    reload(
        &server,
        "quotas",
        &with("topics = 2").replacen("name = \"b\"", "name = \"c\"", 1).replacen("b.test", "c.test", 1),
    );
    let closed = loop {
        let message = other.0.message().unwrap();
        if message.opcode == CLOSE {
            break message.close_code();
        }
    };
    assert_eq!(closed, 3500, "its tenant is no longer configured");
    let mut new = Json(of_host(&server, "c.test"));
    new.subscribe("u.0");
    two.subscribe("u.9");
    drop((one, two, new));
    server.stop_cleanly();
}

#[test]
fn a_tenant_over_its_egress_quota_conflates_and_another_receives_everything() {
    let _machine = beside_others();
    let text = "[[tenant]]\nname = \"a\"\nhosts = [\"a.test\"]\nquota = { egress_rate = \"20kB\" }\n\
                [[tenant]]\nname = \"b\"\nhosts = [\"b.test\"]\n[delivery]\nbehind_size = \"64KiB\"\n";
    let server = server("egress", text);
    let (mut a, mut b) = (Json(of_host(&server, "a.test")), Json(of_host(&server, "b.test")));
    // Everything that is published fits the outbox of b, who keeps every tick.
    let answer = a.request(r#"{"op":"subscribe","topics":["t.x"],"policy":"conflate"}"#);
    assert_eq!(answer["op"], "subscribed");
    b.subscribe("t.x");
    let mut publishers = ["a.test", "b.test"].map(|host| Json(of_host(&server, host)));
    let data = "x".repeat(1_000);
    for _ in 0..1_000 {
        for client in &mut publishers {
            client.0.send_text(&format!(r#"{{"op":"publish","topic":"t.x","data":"{data}"}}"#));
        }
    }
    let last_of = |client: &mut Json| {
        let mut sequences = Vec::new();
        while sequences.last() != Some(&1_000) {
            let message = client.next();
            sequences.extend(message["seq"].as_u64());
        }
        sequences.len()
    };
    assert_eq!(last_of(&mut b), 1_000);
    let of_a = last_of(&mut a);
    assert!(of_a < 1_000, "{of_a}");
    assert!(metric(&server, "tickcast_tenant_egress_waits_total{tenant=\"a\"}") >= 1.0);
    assert_eq!(metric(&server, "tickcast_tenant_egress_waits_total{tenant=\"b\"}"), 0.0);
    drop((a, b, publishers));
    server.stop_cleanly();
}

#[test]
fn a_configuration_with_tenants_that_do_not_fit_is_refused_with_lines() {
    let _machine = beside_others();
    let checked = |text: &str| {
        fs::write(file("wrong"), text).unwrap();
        let mut command = tickcast();
        command.args(["serve", "--check-config", "--config", file("wrong").to_str().unwrap()]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(checked(TWO).0);
    for (text, part) in [
        ("[[tenant]]\nname = \"a\"\nquota = { conections = 1 }\n", "line 3: tenant.quota: "),
        ("[[tenant]]\nname = \"a\"\n[[tenant]]\nname = \"a\"\n", "line 4: tenant.name: two tenants"),
        (
            "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:0\"\ntenant = \"z\"\n",
            "line 4: listener.tenant: \"z\"",
        ),
        ("[[source]]\nkind = \"simulator\"\ntenant = \"z\"\n", "line 3: source.tenant: \"z\""),
        (
            "[[tenant]]\nname = \"a\"\nexports = [{ topics = \"p.>\", to = [\"c\"] }]\n[[tenant]]\nname = \"b\"\n\
             exports = [{ topics = \"p.x\", to = [\"*\"] }]\n[[tenant]]\nname = \"c\"\n",
            "topics in common",
        ),
    ] {
        let (is_valid, error) = checked(text);
        assert!(!is_valid && error.contains(part), "{text}\n{error}");
    }
}
