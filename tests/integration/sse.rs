//! Streams and requests over HTTP, as stock clients use them: curl, Python's http.client, Node's fetch, Chromium's EventSource, and
//! nginx between them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    harness::{Log, Server, beside_others, data, eventually, processes, raw::Peer, tickcast, wait_for_exit},
    page::browser,
};

/// Two shards, so that half of the topics are homed on the other one.
const OPTIONS: [&str; 3] = ["--no-sim", "--shards", "2"];

fn server() -> Server {
    Server::start_command(tickcast().env("RUST_LOG", "info"), &OPTIONS)
}

/// What curl prints.
fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "60"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A curl that reads a stream, for at most as long as the others.
struct Curl(Child);

impl Curl {
    fn start(arguments: &[&str]) -> Curl {
        let mut command = Command::new("curl");
        command.args(["-sSN", "--max-time", "60"]).args(arguments).stdout(Stdio::piped());
        Curl(command.spawn().unwrap())
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        processes::end(&mut self.0);
    }
}

fn publish(server: &Server, topic: &str, payload: &str) -> Value {
    let answer = curl(&["--data-binary", payload, &format!("http://{}/v1/publish/{topic}", server.http)]);
    serde_json::from_str(&answer).unwrap()
}

/// A request on a connection of its own: status, head and body.
fn ask(address: SocketAddr, method: &str, target: &str, fields: &str, body: &str) -> (u16, String, String) {
    let mut peer = Peer::connect(address);
    let length = body.len();
    peer.send(
        format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n{body}")
            .as_bytes(),
    );
    let head = peer.http_head();
    let body = String::from_utf8(peer.read_to_end()).unwrap();
    (head[9..12].parse().unwrap(), head, body)
}

/// A client's program in `tests/clients`, whose last line is "end".
pub struct Program {
    /// The process.
    pub child: Child,
    /// What it prints.
    pub out: Log,
    errors: Log,
}

impl Program {
    /// Starts it.
    pub fn start(interpreter: &str, program: &str, arguments: &[&str]) -> Program {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let mut child = Command::new(interpreter)
            .arg(folder.join(program))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Program { child, out: Log::collect(out), errors: Log::collect(errors) }
    }

    /// Waits for its successful end.
    pub fn finish(mut self) {
        let code = wait_for_exit(&mut self.child);
        assert_eq!(code, Some(0), "{}\n{}", self.out.text(), self.errors.text());
        assert!(self.out.whole().ends_with("end\n"), "{}", self.errors.text());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        processes::end(&mut self.child);
    }
}

/// nginx as a reverse proxy of one server, as `docs/OPERATIONS.md` says: an EventSource never comes back after the 502 that nginx
/// answers while the server restarts.
struct Nginx {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
}

impl Nginx {
    fn start(name: &str, upstream: SocketAddr) -> Nginx {
        let folder = std::env::temp_dir().join(format!("tickcast-nginx-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // Freed at once, for nginx to bind.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr warn;\nevents {{}}\n\
             http {{\naccess_log off;\nclient_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\n\
             server {{\nlisten {address};\nlocation / {{\nproxy_pass http://{upstream};\n}}\n\
             location /sse {{\nproxy_pass http://{upstream};\nerror_page 502 504 =200 @later;\n}}\n\
             location @later {{\ndefault_type text/event-stream;\nreturn 200 \"retry: 1000\\n\\n\";\n}}\n}}\n}}\n"
        );
        fs::write(folder.join("nginx.conf"), config).unwrap();
        let child = Command::new("nginx")
            .args(["-p", folder.to_str().unwrap(), "-c", "nginx.conf", "-e", "stderr"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx: scripts/test.sh installs it");
        eventually("nginx listens", || std::net::TcpStream::connect(address).is_ok());
        Nginx { child, folder, address }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        processes::end(&mut self.child);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Runs `sse.mjs` through cuts and a restart of the server. `address`: where it reads.
fn survives_cuts_and_a_restart(browser: Option<&str>, through: impl FnOnce(SocketAddr) -> Option<Nginx>) {
    let server = server();
    let http = server.http;
    let proxy = through(http);
    let address = proxy.as_ref().map_or(http, |proxy| proxy.address).to_string();
    let mut program =
        Program::start("node", "sse.mjs", &[&[&*address, &http.to_string()], browser.as_slice()].concat());
    program.out.wait_for("restart\n");
    server.stop_cleanly();
    let server =
        Server::start_on(&http.to_string(), tickcast().env("RUST_LOG", "info"), Stdio::null(), &OPTIONS);
    writeln!(program.child.stdin.as_mut().unwrap(), "go").unwrap();
    program.finish();
    drop(proxy);
    server.stop_cleanly();
}

#[test]
fn a_reader_in_node_misses_nothing_through_cuts_and_is_told_of_a_restart() {
    let _machine = beside_others();
    survives_cuts_and_a_restart(None, |_| None);
}

#[test]
fn an_eventsource_of_chromium_misses_nothing_through_cuts_and_is_told_of_a_restart() {
    let _machine = beside_others();
    survives_cuts_and_a_restart(Some(&browser()), |_| None);
}

#[test]
fn an_eventsource_of_chromium_behind_nginx_misses_nothing_through_cuts_and_is_told_of_a_restart() {
    let _machine = beside_others();
    survives_cuts_and_a_restart(Some(&browser()), |upstream| Some(Nginx::start("browser", upstream)));
}

#[test]
fn python_reads_a_stream_publishes_and_reads_what_is_kept() {
    let _machine = beside_others();
    let server = server();
    Program::start("python3", "sse.py", &[&server.http.to_string()]).finish();
    server.stop_cleanly();
}

#[test]
fn curl_reads_lines_and_events_as_they_come() {
    let _machine = beside_others();
    let server = server();
    publish(&server, "line.a", "{\"n\":0}");
    for accept in ["application/x-ndjson", "text/event-stream"] {
        let url = format!("http://{}/sse?topics=line.*&from=latest", server.http);
        let mut curl = Curl::start(&["-H", &format!("Accept: {accept}"), &url]);
        let lines = BufReader::new(curl.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut data = lines.filter_map(|line| {
            let json = line.strip_prefix("data: ").unwrap_or(&line);
            let message: Value = serde_json::from_str(json).ok()?;
            message.get("data").cloned()
        });
        assert!(data.next().unwrap()["n"].is_u64());
        let answer = publish(&server, "line.b", "{\"n\":1}");
        assert!(answer["sequence"].is_u64(), "{answer}");
        while data.next().unwrap() != json!({"n":1}) {}
    }
    server.stop_cleanly();
}

#[test]
fn a_stopping_server_tells_streams_when_to_come_back_and_ends_them() {
    let _machine = beside_others();
    let server = server();
    let mut peer = Peer::connect(server.http);
    peer.send(b"GET /sse?topics=a HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(peer.http_head().starts_with("HTTP/1.1 200 OK"));
    publish(&server, "a", "1");
    let mut rest = String::new();
    eventually("the tick", || {
        rest += &String::from_utf8_lossy(&peer.take(1));
        rest.contains("event: tick")
    });
    server.terminate();
    rest += &String::from_utf8(peer.read_to_end()).unwrap();
    drop(peer);
    assert!(rest.contains("event: closing\ndata: {\"op\":\"closing\",\"code\":3001"), "{rest}");
    assert!(rest.contains(";a="), "{rest}");
    server.wait().assert_clean();
}

/// A server with an HMAC key, whose tokens `tickcast token` makes.
pub fn server_with_tokens() -> (Server, impl Fn(&str) -> String) {
    let key = |name: &str| data(&format!("auth/{name}")).to_str().unwrap().to_owned();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sse-auth.toml");
    let config = format!(
        "[auth]\nquery_token = true\n[[auth.key]]\nalgorithm = \"EdDSA\"\nfile = {:?}\n",
        key("ed25519.pub.pem")
    );
    fs::write(&path, config).unwrap();
    let server = Server::start_command(
        tickcast().env("RUST_LOG", "info"),
        &[&OPTIONS[..], &["--config", path.to_str().unwrap()]].concat(),
    );
    let token = move |subject: &str| {
        let allowed = format!("{subject}.>");
        let words = [
            "token",
            "--key",
            &key("ed25519.pem"),
            "--sub",
            subject,
            "--allow-sub",
            &allowed,
            "--allow-pub",
            &allowed,
        ];
        let output = tickcast().args(words).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    (server, token)
}

#[test]
fn each_request_has_the_permissions_of_its_own_token() {
    let _machine = beside_others();
    let (server, token) = server_with_tokens();
    let (alice, bob) = (token("alice"), token("bob"));
    let http = server.http;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    for (target, fields, status) in [
        ("/sse?topics=alice.x", String::new(), 401),
        ("/sse?topics=alice.x", bearer("nonsense"), 401),
        ("/sse?topics=alice.x", bearer(&bob), 403),
        ("/sse?topics=alice.x,bob.x", bearer(&alice), 403),
        ("/v1/latest?topics=alice.x", String::new(), 401),
        ("/v1/latest?topics=alice.x", bearer(&bob), 403),
        ("/v1/latest?topics=alice.x", bearer(&alice), 200),
        ("/v1/history?topic=bob.x", bearer(&alice), 403),
        ("/v1/topics?pattern=%3E", bearer(&alice), 403),
        ("/v1/topics?pattern=alice.%3E", bearer(&alice), 200),
    ] {
        let (found, head, body) = ask(http, "GET", target, &fields, "");
        assert_eq!(found, status, "{target}: {body}");
        assert_eq!(head.contains("WWW-Authenticate: Bearer"), status == 401, "{head}");
    }
    let (status, _, body) = ask(http, "POST", "/v1/publish/bob.x", &bearer(&alice), "1");
    assert_eq!(status, 403, "{body}");
    let (status, _, body) = ask(http, "POST", &format!("/v1/publish/bob.x?token={bob}"), "", "1");
    assert_eq!(status, 200, "{body}");

    // One connection, as proxies use them: each request counts by its own token, and none by that of the request before.
    let mut peer = Peer::connect(http);
    let mut on_one = |target: &str, fields: &str| {
        peer.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").as_bytes());
        let head = peer.http_head();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        peer.take(length.parse().unwrap());
        head[9..12].to_owned()
    };
    assert_eq!(on_one("/v1/latest?topics=alice.x", &bearer(&alice)), "200");
    assert_eq!(on_one("/v1/latest?topics=alice.x", &bearer(&bob)), "403");
    assert_eq!(on_one("/v1/latest?topics=bob.x", &bearer(&bob)), "200");
    assert_eq!(on_one("/v1/latest?topics=alice.x", &bearer(&alice)), "200");
    assert_eq!(on_one("/v1/latest?topics=alice.x", ""), "401");

    // A WebSocket after them has its own token too, or none.
    let mut peer = Peer::connect(http);
    peer.send(
        format!("GET /v1/latest?topics=alice.x HTTP/1.1\r\nHost: localhost\r\n{}\r\n", bearer(&alice))
            .as_bytes(),
    );
    let head = peer.http_head();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    peer.take(length.parse().unwrap());
    peer.upgrade("/ws?topics=alice.x", "");
    assert!(peer.text().contains("\"code\":3500"));
    server.stop_cleanly();
}

/// Checks a value against a schema of `docs/openapi.json`, as far as that uses JSON Schema.
fn conforms(value: &Value, schema: &Value, document: &Value, path: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        return conforms(value, target, document, path);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = choices.iter().filter(|choice| conforms(value, choice, document, path).is_ok()).count();
        return if fits == 1 { Ok(()) } else { Err(format!("{path}: {fits} choices fit {value}")) };
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    let has_type = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the test knows no type {other}"),
    };
    if !types.is_empty() && !types.iter().any(has_type) {
        return Err(format!("{path}: {value} is not {types:?}"));
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        for (at, item) in items.iter().enumerate() {
            conforms(item, schema, document, &format!("{path}/{at}"))?;
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            return Err(format!("{path}: {name} is missing in {value}"));
        }
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(schema) => conforms(member, schema, document, &format!("{path}/{name}"))?,
            None if schema["additionalProperties"] == json!(false) => {
                return Err(format!("{path}: {name} is not described"));
            }
            None => {}
        }
    }
    Ok(())
}

#[test]
fn answers_are_those_that_the_openapi_file_describes() {
    let _machine = beside_others();
    let server = server();
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let json_type = "Content-Type: application/json\r\n";
    let mut seen = std::collections::HashSet::new();
    let mut check = |method: &str, path: &str, target: &str, fields: &str, body: &str, status: u16| {
        let (found, head, answer) = ask(server.http, method, target, fields, body);
        assert_eq!(found, status, "{method} {target}: {answer}");
        let operation = &document["paths"][path][method.to_lowercase()];
        let described = &operation["responses"][status.to_string()];
        let described = match described["$ref"].as_str() {
            Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
            None => described,
        };
        assert!(described.is_object(), "{method} {path}: {status} is not described");
        seen.insert((path.to_owned(), method.to_lowercase(), found.to_string()));
        if head.contains("Content-Type: application/json") {
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let schema = &described["content"]["application/json"]["schema"];
            conforms(&answer, schema, &document, target).unwrap();
        } else {
            assert!(described["content"].get("text/plain").is_some(), "{method} {target}: {head}");
        }
    };
    let one = r#"{"topic":"a.b","data":{"x":1},"key":7}"#;
    let several = r#"[{"topic":"a.b","data":1},{"topic":"a..b","data":1}]"#;
    check("POST", "/v1/publish", "/v1/publish", json_type, one, 200);
    check("POST", "/v1/publish", "/v1/publish", json_type, several, 200);
    let lines_type = "Content-Type: application/x-ndjson\r\n";
    let lines = "{\"topic\":\"a.b\",\"data\":1}\n{\"topic\":\"a..b\",\"data\":1}\n";
    check("POST", "/v1/publish", "/v1/publish?answer=summary", lines_type, lines, 200);
    check("POST", "/v1/publish", "/v1/publish?answer=summary", lines_type, "{}", 400);
    check("POST", "/v1/publish", "/v1/publish?answer=summary", json_type, one, 400);
    check("POST", "/v1/publish", "/v1/publish", json_type, "{}", 400);
    check("POST", "/v1/publish", "/v1/publish", "Content-Type: text/html\r\n", "x", 415);
    let keyed = format!("{json_type}Idempotency-Key: \"x\"\r\n");
    (0..2).for_each(|_| check("POST", "/v1/publish", "/v1/publish", &keyed, one, 200));
    (0..2).for_each(|_| check("POST", "/v1/publish", "/v1/publish", &keyed, several, 200));
    let long = format!("{{\"topic\":\"a.b\",\"data\":\"{}\"}}", "x".repeat(64 << 10));
    check("POST", "/v1/publish", "/v1/publish", json_type, &long, 413);
    check("POST", "/v1/publish/{topic}", "/v1/publish/a.c?key=1&ts=2&schema=3", "", "\u{1}", 200);
    check("POST", "/v1/publish/{topic}", "/v1/publish/a..c", "", "1", 400);
    check("POST", "/v1/publish/{topic}", "/v1/publish/a.c", "", &long, 413);
    (0..2).for_each(|_| {
        check("POST", "/v1/publish/{topic}", "/v1/publish/a.c", "Idempotency-Key: x\r\n", "1", 200);
    });
    check("POST", "/v1/publish/{topic}", "/v1/publish/a.c", "Idempotency-Key: \"\r\n", "1", 400);
    check("GET", "/v1/latest", "/v1/latest?topics=a.*&limit=1", "", "", 200);
    check("GET", "/v1/latest", "/v1/latest?topics=a.*", "", "", 200);
    check("GET", "/v1/latest", "/v1/latest", "", "", 400);
    let many = vec!["a.b"; 65].join(",");
    check("GET", "/v1/latest", &format!("/v1/latest?topics={many}"), "", "", 413);
    check("GET", "/v1/history", "/v1/history?topic=a.b", "", "", 200);
    check("GET", "/v1/history", "/v1/history?topic=a.b&from=1&epoch=1&limit=1", "", "", 200);
    check("GET", "/v1/history", "/v1/history?topic=nothing", "", "", 404);
    check("GET", "/v1/topics", "/v1/topics", "", "", 200);
    check("GET", "/v1/topics", "/v1/topics?pattern=a.*&limit=1", "", "", 200);
    check("GET", "/v1/topics", "/v1/topics?limit=0", "", "", 400);
    let long_head = format!("X: {}\r\n", "x".repeat(16 << 10));
    let foreign = "Origin: http://elsewhere.example\r\n";
    for (method, path, target) in [
        ("POST", "/v1/publish", "/v1/publish"),
        ("POST", "/v1/publish/{topic}", "/v1/publish/a.c"),
        ("GET", "/v1/latest", "/v1/latest?topics=a.b"),
        ("GET", "/v1/history", "/v1/history?topic=a.b"),
        ("GET", "/v1/topics", "/v1/topics"),
        ("GET", "/sse", "/sse?topics=a.b"),
    ] {
        check(method, path, target, foreign, "", 403);
        check(method, path, target, &long_head, "", 431);
        check(
            method,
            path,
            &format!("{target}{}token=x", if target.contains('?') { '&' } else { '?' }),
            "",
            "",
            400,
        );
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                let is_tried = seen.contains(&(path.clone(), method.clone(), status.clone()));
                // A stream does not end. It is read by the tests above.
                let is_stream = path == "/sse" && status == "200";
                // They need tokens, limits, engines or options, which other tests have.
                let is_elsewhere = ["401", "409", "429", "501", "503", "504"].contains(&status.as_str());
                assert!(is_tried || is_stream || is_elsewhere, "{method} {path}: {status} was not tried");
            }
        }
    }
    server.stop_cleanly();
}
