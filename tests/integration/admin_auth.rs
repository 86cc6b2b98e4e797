//! Operators: tokens, certificates and roles on the admin listener, what a reload changes, what a server refuses to start with, and
//! the audit.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Output, Stdio},
};

use crate::harness::{
    GUARD, Server, beside_others, certificates::Certificates, eventually, frames::Raw, raw::Peer, tickcast,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const READER: &str = "reader-0123456789abcdef01234567";
const OPERATOR: &str = "operator-0123456789abcdef012345";

/// The line `sha256 = ...` for a token, by `tickcast token --hash`.
fn hash(token: &str) -> String {
    let mut child =
        tickcast().args(["token", "--hash"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{token}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn operator(name: &str, credentials: &str, role: &str) -> String {
    format!("[[auth.operator]]\nname = {name:?}\n{credentials}\nrole = {role:?}\n")
}

/// A reader and an operator with tokens.
fn both() -> String {
    operator("watcher", &hash(READER), "read") + &operator("alice", &hash(OPERATOR), "operate")
}

/// A configuration file, in a directory that is removed on drop.
struct File(Certificates);

impl File {
    fn new(name: &str, text: &str) -> File {
        let file = File(Certificates::new(&format!("admin-{name}")));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    fn path(&self) -> String {
        self.0.file("tickcast.toml")
    }

    fn serve(&self) -> Server {
        Server::start(&["--shards", "1", "--config", &self.path()])
    }
}

/// The status, the head and the body of an answer to a request with these further header lines.
fn ask(address: SocketAddr, line: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect_timeout(&address, GUARD).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let request = format!("{line} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

fn session(server: &Server) -> (Peer, String) {
    let mut peer = Peer::native(server.tcp);
    peer.send(&Raw::ping(1).bytes());
    peer.frame().unwrap();
    let mut id = String::new();
    eventually("the session is listed", || {
        let (_, answer) = ask(server.admin.unwrap(), "GET /v1/sessions", &bearer(OPERATOR));
        let listed = answer.split_once("\"id\":\"").and_then(|(_, rest)| rest.split_once('"'));
        listed.inspect(|(first, _)| id = (*first).to_owned()).is_some()
    });
    (peer, id)
}

fn hang_up(server: &Server) {
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
}

fn check(words: &[&str]) -> Output {
    let arguments = ["serve", "--no-sim", "--check-config"];
    tickcast().args(arguments).args(words).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn every_path_but_health_needs_credentials_and_changes_need_the_role() {
    let _machine = beside_others();
    let file = File::new("matrix", &both());
    let server = file.serve();
    let admin = server.admin.unwrap();
    let (reader, operator) = (bearer(READER), bearer(OPERATOR));
    let wrong = bearer("wrong-0123456789abcdef0123456789");
    for (line, none, of_wrong, of_reader, of_operator) in [
        ("GET /healthz", 200, 200, 200, 200),
        ("HEAD /readyz", 200, 200, 200, 200),
        ("GET /", 401, 401, 200, 200),
        ("GET /metrics", 401, 401, 200, 200),
        ("HEAD /metrics", 401, 401, 200, 200),
        ("GET /v1/shards", 401, 401, 200, 200),
        ("GET /v1/topics", 401, 401, 200, 200),
        ("GET /v1/sessions", 401, 401, 200, 200),
        ("GET /v1/latency", 401, 401, 200, 200),
        ("GET /nothing", 401, 401, 404, 404),
        ("POST /metrics", 401, 401, 403, 405),
        ("DELETE /v1/sessions/0-77", 401, 401, 403, 404),
        ("POST /v1/revocations?sub=x", 401, 401, 403, 404),
    ] {
        for (headers, expected) in
            [("", none), (&wrong, of_wrong), (&reader, of_reader), (&operator, of_operator)]
        {
            let (status, answer) = ask(admin, line, headers);
            // A shard of a busy machine may be late.
            let is_late = status == 503 && expected == 200 && line.contains("/v1/");
            assert!(status == expected || is_late, "{line} with {headers:?}: {answer}");
            let has_challenge = answer.to_lowercase().contains("\r\nwww-authenticate: bearer realm=");
            assert_eq!(has_challenge, [401, 403].contains(&status), "{line}: {answer}");
        }
    }
    // A page of another site is refused whatever it knows.
    let origin = format!("Origin: http://evil.test\r\n{operator}");
    assert_eq!(ask(admin, "DELETE /v1/sessions/0-77", &origin).0, 403);
    // Clients are as without [auth].
    drop(Peer::native(server.tcp));
    let (_, metrics) = ask(admin, "GET /metrics", &reader);
    for reason in ["missing", "invalid", "role"] {
        let zero = format!("tickcast_admin_refused_total{{reason=\"{reason}\"}} 0\n");
        assert!(!metrics.contains(&zero) && metrics.contains(zero.trim_end_matches("0\n")), "{metrics}");
    }
    server.stop_cleanly();
}

#[test]
fn each_change_is_in_the_log_with_its_operator_and_no_secret_is() {
    let _machine = beside_others();
    let token = "[[auth.token]]\nname = \"bob\"\npermissions = { sub = { allow = [\">\"] } }\n".to_owned();
    let clients = token + &hash("client-0123456789abcdef01234567") + "\n[auth.anonymous]\n";
    let file = File::new("audit", &(both() + &clients));
    let server = file.serve();
    let admin = server.admin.unwrap();
    let (mut peer, id) = session(&server);
    assert_eq!(ask(admin, &format!("DELETE /v1/sessions/{id}"), "").0, 401);
    assert_eq!(ask(admin, &format!("DELETE /v1/sessions/{id}"), &bearer(READER)).0, 403);
    peer.send(&Raw::ping(2).bytes());
    peer.frame().unwrap();
    let close = format!("DELETE /v1/sessions/{id}");
    eventually("the session is closed", || ask(admin, &close, &bearer(OPERATOR)).0 == 200);
    assert_eq!(ask(admin, &close, &bearer(OPERATOR)).0, 404);
    let revoke = "POST /v1/revocations?sub=bob%22%7D:%20forged";
    assert!([200, 503].contains(&ask(admin, revoke, &bearer(OPERATOR)).0));
    let log = server.stop_cleanly().log;
    let start = "tickcast::audit] audit: operator \"alice\" at 127.0.0.1:";
    for what in [
        format!(": close session {id}: closed\n"),
        format!(": close session {id}: no such session\n"),
        ": revoke {\"sub\":\"bob\\\"}: forged\",\"tenant\":\"\"}: revoked, ".into(),
    ] {
        let is_there = log.split_inclusive('\n').any(|line| line.contains(start) && line.contains(&what));
        assert!(is_there, "{start} ... {what} in\n{log}");
    }
    assert!(log.contains("admin request refused: operator \"watcher\" at 127.0.0.1:"), "{log}");
    assert!(!log.contains("audit: operator \"watcher\""), "{log}");
    for token in [READER, OPERATOR] {
        assert!(!log.contains(token) && !log.contains(&hash(token)[10..74]), "{log}");
    }
}

#[test]
fn a_local_listener_without_operators_is_open_and_its_changes_are_audited() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "1"]);
    let admin = server.admin.unwrap();
    assert_eq!(ask(admin, "GET /metrics", "").0, 200);
    assert_eq!(ask(admin, "DELETE /v1/sessions/9-1", "").0, 404);
    let log = server.stop_cleanly().log;
    assert!(
        log.contains("audit: local at 127.0.0.1:") && log.contains(": close session 9-1: no such session")
    );
}

#[test]
fn a_certificate_is_a_credential_with_the_role_of_its_operator() {
    let _machine = beside_others();
    let file = File::new("mtls", "");
    let ca = file.0.ca();
    let tls = file.0.listener(&format!(", client_ca = {ca:?}, client_cert = \"optional\""));
    let listeners = format!(
        "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:0\"\n[[listener]]\nkind = \"http\"\naddress = \
         \"127.0.0.1:0\"\n[[listener]]\nkind = \"admin\"\naddress = \"127.0.0.1:0\"\n{tls}\n"
    );
    let reader = operator("robot", "certificate = \"client.test\"", "read");
    let alice = operator("alice", &format!("certificate = \"alice.test\"\n{}", hash(OPERATOR)), "operate");
    file.write(&(listeners + &reader + &alice));
    file.0.sign("alice", &["alice.test"]);
    file.0.sign("mallory", &["mallory.test", "alice.test"]);
    let server = file.serve();
    let port = server.admin.unwrap().port();
    let curl = |certificate: &str, method: &str, path: &str, headers: &[&str]| -> String {
        let url = format!("https://localhost:{port}{path}");
        let mut command = Command::new("curl");
        command.args(["-sS", "--cacert", &ca, "-o", "/dev/null", "-w", "%{http_code}", "-X", method, &url]);
        if !certificate.is_empty() {
            let of = |kind: &str| file.0.file(&format!("{certificate}.{kind}"));
            command.args(["--cert", &of("pem"), "--key", &of("key")]);
        }
        for header in headers {
            command.args(["-H", header]);
        }
        String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stdout).unwrap()
    };
    let token = format!("Authorization: Bearer {OPERATOR}");
    for (certificate, headers, read, change) in [
        ("", &[][..], "401", "401"),
        ("client", &[], "200", "403"),
        ("alice", &[], "200", "404"),
        // Its first name counts.
        ("mallory", &[], "401", "401"),
        ("", &[&token[..]], "200", "404"),
        ("client", &[&token], "200", "404"),
        ("alice", &["Authorization: Bearer wrong"], "401", "401"),
    ] {
        let of = |method, path| curl(certificate, method, path, headers);
        assert_eq!(of("GET", "/metrics"), read, "{certificate} {headers:?}");
        assert_eq!(of("DELETE", "/v1/sessions/9-1"), change, "{certificate} {headers:?}");
        assert_eq!(of("GET", "/healthz"), "200");
    }
    let log = server.stop_cleanly().log;
    assert!(log.contains("audit: operator \"alice\" at 127.0.0.1:"), "{log}");
}

#[test]
fn a_reload_replaces_operators_and_never_opens_the_listener() {
    let _machine = beside_others();
    let file = File::new("reload", "");
    let server = file.serve();
    let admin = server.admin.unwrap();
    let status = |headers: &str| ask(admin, "GET /metrics", headers).0;
    assert_eq!(status(""), 200);
    file.write(&both());
    hang_up(&server);
    eventually("the listener is guarded", || status("") == 401);
    assert_eq!((status(&bearer(READER)), status(&bearer(OPERATOR))), (200, 200));
    file.write(&operator("watcher", &hash(READER), "operate"));
    hang_up(&server);
    eventually("the other operator is gone", || status(&bearer(OPERATOR)) == 401);
    assert_eq!(ask(admin, "DELETE /v1/sessions/9-1", &bearer(READER)).0, 404, "its role is another");
    file.write("");
    hang_up(&server);
    server.log.wait_for("SIGHUP: [[auth.operator]] is kept: removing it takes effect at the next start");
    assert_eq!((status(""), status(&bearer(READER))), (401, 200));
    file.write("[[auth.operator]]\nname = \"x\"\n");
    hang_up(&server);
    server.log.wait_for("SIGHUP: nothing changed: ");
    assert_eq!((status(""), status(&bearer(READER))), (401, 200));
    server.stop_cleanly();
}

#[test]
fn an_admin_listener_that_anyone_could_reach_does_not_start() {
    let _machine = beside_others();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9490"] {
        let output = check(&["--admin", address]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        for part in ["--admin", address, "[[auth.operator]]", "client_ca", "--allow-anonymous"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(check(&["--admin", address, "--allow-anonymous"]).status.success());
    }
    for local in ["127.0.0.1:0", "[::1]:0", "unix:/run/x.sock"] {
        assert!(check(&["--admin", local]).status.success(), "{local}");
    }
    let file = File::new("open", &both());
    let with_file = ["--config", &file.path()];
    assert!(check(&[&["--admin", "0.0.0.0:0"], &with_file[..]].concat()).status.success());
    // It says nothing about clients.
    let output = check(&[&["--tcp", "0.0.0.0:0"], &with_file[..]].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("configure [auth]"), "{output:?}");
    // What authenticates clients says nothing about operators.
    file.write("[auth.anonymous]\n");
    assert_eq!(check(&[&["--admin", "0.0.0.0:0"], &with_file[..]].concat()).status.code(), Some(2));
    let tls = file.0.listener(&format!(", client_ca = {:?}", file.0.ca()));
    file.write(&format!(
        "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:0\"\n[[listener]]\nkind = \"admin\"\naddress = \
         \"0.0.0.0:0\"\n{tls}\n"
    ));
    assert!(check(&with_file).status.success(), "each certificate of these authorities is an operator");
}

#[test]
fn errors_of_operators_are_reported_with_their_lines_and_no_hash_is_printed() {
    let _machine = beside_others();
    let text = format!(
        "[[auth.operator]]\nname = \"a\"\nsha256 = \"x\"\nrole = \"admin\"\n[[auth.operator]]\nname = \"b\"\n{}\nrole = \
         \"read\"\ncertificate = \"b.test\"\ntoken = \"t\"\n",
        hash(READER)
    );
    let file = File::new("errors", &text);
    let output = check(&["--config", &file.path()]);
    let printed = String::from_utf8(output.stderr).unwrap();
    for (line, part) in [
        (3, "auth.operator.sha256: must be 64 hexadecimal digits"),
        (4, "auth.operator.role: "),
        (9, "auth.operator.certificate: the admin listener asks for no certificates"),
        (10, "auth.operator.token: unknown key"),
    ] {
        let start = format!("line {line}: {part}");
        assert!(printed.contains(&start), "{start} in\n{printed}");
    }
    file.write(&both());
    let output = tickcast().args(["serve", "--print-config", "--config", &file.path()]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains("\n[[auth.operator]]\n") && printed.contains("role = \"operate\" # line 8"),
        "{printed}"
    );
    assert!(
        printed.contains("\n# sha256 = # hidden\n") && !printed.contains(&hash(READER)[10..74]),
        "{printed}"
    );
}

#[test]
fn top_sends_a_token_from_a_file_or_the_environment() {
    let _machine = beside_others();
    let file = File::new("top", &both());
    let server = file.serve();
    let admin = server.admin.unwrap().to_string();
    let path = file.0.file("token.txt");
    fs::write(&path, format!("{READER}\n")).unwrap();
    let top = |words: &[&str], environment: &str| {
        let mut command = tickcast();
        command.args(["top", "--once", "--interval", "100ms", "--admin", &admin]).args(words);
        command.env("TICKCAST_TOKEN", environment).output().unwrap()
    };
    for (words, environment) in
        [(&["--token-file", &path][..], ""), (&[], READER), (&["--token-file", &path], "wrong")]
    {
        let output = top(words, environment);
        assert!(output.status.success(), "{output:?}");
    }
    for (environment, part) in [("", "credentials are missing"), ("wrong", "neither the token")] {
        let output = top(&[], environment);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(part), "{text}");
        assert!(!text.contains("wrong"), "{text}");
    }
    server.stop_cleanly();
}
