//! Which pages may use the server, and under which names it answers.

use super::*;

/// The status of a handshake with these headers.
fn from_page(access: &Access, host: &str, origin: Option<&str>) -> u16 {
    let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
    let request = format!("{}{origin}\r\n", REQUEST.replace("Host: x", &format!("Host: {host}")));
    match step(request.as_bytes(), HttpConfig { access, ..CONFIG }) {
        Step::Complete(_, Answer::Upgrade { .. }) => 101,
        Step::Complete(_, Answer::Respond { status, .. }) => status,
        _ => 0,
    }
}

fn access(origins: &[&str], hosts: &[&str], is_local: bool) -> Access {
    Access {
        origins: origins.iter().map(|text| text.parse().unwrap()).collect(),
        hosts: hosts.iter().map(|text| text.parse().unwrap()).collect(),
        tenant_hosts: vec!["tenant.example".parse().unwrap()],
        is_local,
    }
}

#[test]
fn a_page_may_connect_only_to_its_own_host_and_port() {
    let own = access(&[], &[], false);
    for (host, origin) in [
        ("x", None),
        ("x", Some("http://x")),
        ("x", Some("http://X:80")),
        ("x:443", Some("https://x")),
        ("x", Some("https://x")),
        ("ticks.example:9480", Some("http://ticks.example:9480")),
        ("127.0.0.1:9480", Some("http://127.0.0.1:9480")),
        ("[::1]:9480", Some("http://[::1]:9480")),
    ] {
        assert_eq!(from_page(&own, host, origin), 101, "{host} {origin:?}");
    }
    for (host, origin) in [
        ("x", "http://y"),
        ("x", "null"),
        ("x", ""),
        ("x", "x"),
        ("x", "http://"),
        ("x", "http://x.y"),
        ("x", "http://y.x"),
        ("x", "http://x:9480"),
        ("x:9480", "http://x"),
        ("x", "http://x@y"),
        ("x", "http://x http://y"),
        ("127.0.0.1", "http://127.0.0.1.evil.example"),
        ("127.0.0.1", "http://localhost"),
    ] {
        assert_eq!(from_page(&own, host, Some(origin)), 403, "{host} {origin}");
    }
    let twice = format!("{REQUEST}Origin: http://x\r\nOrigin: http://x\r\n\r\n");
    assert_eq!(status(&twice), 400);
}

#[test]
fn listed_origins_may_connect_too() {
    let listed = access(&["https://App.example", "https://*.example.org:8443", "null"], &[], true);
    for origin in
        ["https://app.example", "https://a.example.org:8443", "https://a.b.example.org:8443", "null"]
    {
        assert_eq!(from_page(&listed, "x", Some(origin)), 101, "{origin}");
    }
    for origin in [
        "http://app.example",
        "https://app.example:8443",
        "https://b.app.example",
        "https://example.org:8443",
        "https://evilexample.org:8443",
        "https://a.example.org",
    ] {
        assert_eq!(from_page(&listed, "x", Some(origin)), 403, "{origin}");
    }
    assert_eq!(from_page(&listed, "x", None), 101, "a browser sends an origin with each handshake");
    for origin in ["http://evil.example", "null", "chrome-extension://abcdef"] {
        assert_eq!(from_page(&access(&["*"], &[], true), "x", Some(origin)), 101, "{origin}");
    }
    assert_eq!(from_page(&access(&["*"], &[], true), "evil.example", None), 101, "every page may connect");
    for bad in [
        "",
        "app.example",
        "https://",
        "https://*",
        "https://a.*.example",
        "https://a/b",
        "**",
        "https://a@b",
    ] {
        assert!(bad.parse::<access::OriginPattern>().unwrap_err().contains("is not an origin"), "{bad}");
    }
}

#[test]
fn a_name_made_to_point_to_a_local_server_is_refused() {
    let local = access(&[], &[], true);
    for host in ["localhost:9480", "app.localhost:9480", "127.0.0.1:9480", "[::1]:9480", "192.0.2.1:9480"] {
        assert_eq!(from_page(&local, host, Some(&format!("http://{host}"))), 101, "{host}");
    }
    assert_eq!(from_page(&local, "evil.example:9480", Some("http://evil.example:9480")), 403);
    assert_eq!(
        from_page(&local, "ticks.example", Some("https://ticks.example")),
        101,
        "a TLS proxy is in front"
    );
    assert_eq!(from_page(&local, "tenant.example", None), 101, "the operator has listed the tenant's host");
    assert_eq!(
        from_page(&local, "ticks.example", None),
        101,
        "a browser sends an origin with each handshake"
    );
    let named = access(&[], &["ticks.example", "*.lan"], true);
    for host in ["ticks.example", "TICKS.example:80", "a.lan", "localhost", "10.0.0.1"] {
        assert_eq!(from_page(&named, host, Some(&format!("http://{host}"))), 101, "{host}");
        assert_eq!(from_page(&named, host, None), 101, "{host}");
    }
    for host in ["evil.example", "lan", "xlan"] {
        assert_eq!(from_page(&named, host, Some(&format!("https://{host}"))), 403, "{host}");
        assert_eq!(from_page(&named, host, None), 403, "{host}: the list is complete");
    }
    assert_eq!(from_page(&access(&[], &["*"], true), "evil.example", Some("http://evil.example")), 101);
    for bad in ["", "a:80", "a/b", "*a", "*.", "a b", "http://a"] {
        assert!(bad.parse::<access::HostPattern>().unwrap_err().contains("is not a host"), "{bad}");
    }
}

#[derive(Debug)]
struct OnePage;

impl StaticFiles for OnePage {
    fn contains(&self, path: &str) -> bool {
        path == "/"
    }

    fn respond(&self, path: &str, _headers: &::http::HeaderMap) -> Option<Response> {
        self.contains(path).then(|| Response {
            status: StatusCode::OK,
            fields: String::new(),
            body: Cow::Borrowed(b"page"),
        })
    }
}

#[test]
fn a_page_whose_name_was_made_to_point_here_reads_nothing() {
    let local = access(&[], &[], true);
    let asked = |sender: Sender, target: &str, fields: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: evil.example:9480\r\n{fields}\r\n");
        let config = HttpConfig { access: &local, health: true, files: &OnePage, sender, ..CONFIG };
        match step(request.as_bytes(), config) {
            Step::Complete(_, Answer::Respond { status, response, .. }) => {
                (status, String::from_utf8(response).unwrap())
            }
            Step::Complete(_, Answer::Upgrade { .. } | Answer::Call { .. } | Answer::Poll { .. }) => {
                (200, String::new())
            }
            other => panic!("{target}: {other:?}"),
        }
    };
    let forwarded = "X-Forwarded-For: 192.0.2.1\r\n";
    for target in [
        "/sse?topics=a",
        "/v1/latest?topics=a",
        "/v1/history?topic=a",
        "/v1/topics",
        "/socket.io/?EIO=4&transport=polling",
    ] {
        let (status, response) = asked(Sender::Anyone, target, forwarded);
        assert!(
            status == 403 && response.contains("--allow-host evil.example allows it"),
            "{target}: {response}"
        );
        assert_eq!(asked(Sender::ForwardingProxy, target, "").0, 403, "{target}: not forwarded");
        assert_eq!(asked(Sender::ForwardingProxy, target, forwarded).0, 200, "{target}");
        assert_eq!(asked(Sender::Proxy, target, "").0, 200, "{target}");
    }
    assert_eq!(asked(Sender::Anyone, "/nothing", "").0, 403);
    assert_eq!(asked(Sender::Anyone, "/", "").0, 200, "everyone has the server's own page");
    assert_eq!(asked(Sender::Anyone, "/healthz", "").0, 200, "load balancers probe by any name");
}

#[test]
fn a_page_that_may_use_a_resource_may_read_its_errors_too() {
    let access = access(&["https://app.example"], &[], false);
    let answer = |line: &str, rest: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\n{rest}");
        match step(request.as_bytes(), HttpConfig { access: &access, ..CONFIG }) {
            Step::Complete(_, Answer::Respond { response, status, .. }) => {
                (status, String::from_utf8(response).unwrap())
            }
            other => panic!("{request}: {other:?}"),
        }
    };
    for (line, rest, status) in [
        ("OPTIONS /sse", "\r\n", 204),
        ("GET /sse", "\r\n", 400),
        ("POST /sse", "\r\n", 405),
        ("GET /v1/publish", "\r\n", 405),
        ("GET /v1/latest", "\r\n", 400),
        ("POST /v1/publish/a", "Idempotency-Key: \r\nContent-Length: 1\r\n\r\n1", 400),
        ("POST /v1/publish", "Content-Length: 70000\r\n\r\n", 413),
        ("POST /v1/publish", "Transfer-Encoding: chunked\r\n\r\n10001\r\n", 413),
    ] {
        let (found, response) = answer(line, rest);
        assert_eq!(found, status, "{line}: {response}");
        let lines = response.matches("Access-Control-Allow-Origin: https://app.example\r\n").count();
        assert_eq!(lines, 1, "{line}: {response}");
        assert!(
            response.contains("\r\nAccess-Control-Expose-Headers: Retry-After\r\n"),
            "{line}: {response}"
        );
        assert!(response.contains("\r\nAccess-Control-Allow-Credentials: true\r\n"), "{line}: {response}");
    }
    assert!(!answer("GET /nothing", "\r\n").1.contains("Access-Control"));
}
