//! Authentication: tokens in every place, refusals with their codes, key sets, revocation, and what a server without it refuses.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::harness::{
    Server, beside_others,
    certificates::Certificates,
    data, eventually,
    external::{External, Library},
    frames::{self, Raw},
    http::{get, request},
    idp::{Answer, Idp},
    raw::{CLOSE, Peer, TEXT, upgrade_request},
    tickcast,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub const MACHINE_TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("auth-{name}"))
}

fn key(name: &str) -> String {
    data(&format!("auth/{name}")).to_str().unwrap().to_owned()
}

fn ran(command: &mut std::process::Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// What `tickcast token` prints, without the newline.
pub fn token(words: &[&str]) -> String {
    let output = ran(tickcast().args(["token", "--key", &key("ed25519.pem")]).args(words));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn alice(words: &[&str]) -> String {
    token(
        &[&["--sub", "alice", "--allow-sub", "user.{sub}.>", "--allow-pub", "user.{sub}.out"], words]
            .concat(),
    )
}

/// The hash of [`MACHINE_TOKEN`], made by `tickcast token --hash`: a line of the file.
fn machine_hash() -> String {
    let mut child =
        tickcast().args(["token", "--hash"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{MACHINE_TOKEN}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub fn config(more: &str) -> String {
    format!(
        "[auth]\nleeway = \"0s\"\n{more}\n\
         [[auth.key]]\nalgorithm = \"EdDSA\"\nfile = {:?}\n\
         [[auth.token]]\nname = \"collector\"\n{}\npermissions = {{ sub = {{ allow = [\">\"] }}, pub = {{ allow = [\">\"] }} }}\n",
        key("ed25519.pub.pem"),
        machine_hash()
    )
}

pub fn server(name: &str, config: &str) -> Server {
    let path = file(&format!("{name}.toml"));
    fs::write(&path, config).unwrap();
    Server::start(&["--shards", "2", "--config", path.to_str().unwrap()])
}

/// A HELLO with a token, and the first frame of the answer.
pub fn native(server: &Server, token: &str) -> (Peer, frames::Received) {
    let record = [&1u32.to_le_bytes()[..], &[0; 2], &(token.len() as u16).to_le_bytes(), &[0; 8]].concat();
    let mut peer = Peer::connect(server.tcp);
    peer.send(&Raw::new(frames::HELLO, &record, &[b"raw", token.as_bytes()].concat()).bytes());
    let first = peer.frame().unwrap();
    (peer, first)
}

/// Opens a WebSocket with a token in its header.
fn websocket(server: &Server, token: &str) -> Peer {
    let mut peer = Peer::connect(server.http);
    let request = upgrade_request("/ws", "tickcast.v1.json");
    let with_token = format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n");
    peer.send(request.replacen("Host: localhost\r\n", &with_token, 1).as_bytes());
    let head = peer.http_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    peer
}

/// The code that a WebSocket is closed with.
fn close_code(mut peer: Peer) -> u16 {
    loop {
        let message = peer.message().unwrap();
        match message.opcode {
            CLOSE => return message.close_code(),
            opcode => assert_eq!(opcode, TEXT),
        }
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn expired() -> String {
    alice(&["--ttl", "0"])
}

pub fn metric(server: &Server, name: &str) -> f64 {
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
}

#[test]
fn a_native_client_enters_with_its_token_and_may_do_what_it_says() {
    let _machine = beside_others();
    let server = server("native", &config(""));
    let (mut peer, first) = native(&server, &alice(&[]));
    assert_eq!(first.kind, frames::WELCOME);
    peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"user.alice.>").bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    peer.send(&Raw::request(frames::SUBSCRIBE, 3, b"user.>").bytes());
    let error = peer.frame().unwrap();
    assert_eq!((error.kind, error.code()), (frames::ERROR, 108));
    peer.send(&Raw::publish(4, b"user.alice.out", b"1").bytes());
    while peer.frame().unwrap().kind != frames::TICK {}
    peer.send(&Raw::publish(5, b"user.bob.out", b"1").bytes());
    let error = peer.frame().unwrap();
    assert_eq!((error.kind, error.code()), (frames::ERROR, 108));
    let (_machine_peer, first) = native(&server, MACHINE_TOKEN);
    assert_eq!(first.kind, frames::WELCOME);
    drop(peer);
    server.stop_cleanly();
}

#[test]
fn a_bad_token_is_refused_with_3500_and_an_expired_one_with_3005() {
    let _machine = beside_others();
    let server = server("refused", &config(""));
    let forged = {
        let good = alice(&[]);
        let (message, signature) = good.rsplit_once('.').unwrap();
        format!("{message}.{}", signature.chars().rev().collect::<String>())
    };
    for (token, code) in [(forged.as_str(), 3500), ("nonsense", 3500), (&expired(), 3005)] {
        let (_, first) = native(&server, token);
        assert_eq!((first.kind, first.code()), (frames::CLOSING, code));
        assert_eq!(close_code(websocket(&server, token)), code);
    }
    let (_, first) = native(&server, "");
    assert_eq!((first.kind, first.code()), (frames::CLOSING, 3500), "a token is required");
    assert_eq!(metric(&server, "tickcast_auth_verifications_total{result=\"invalid\"}"), 4.0);
    assert_eq!(metric(&server, "tickcast_auth_verifications_total{result=\"expired\"}"), 2.0);
    eventually("nothing waits", || metric(&server, "tickcast_auth_waiting") == 0.0);
    let admin = server.admin.unwrap();
    let shown = ["/metrics", "/v1/sessions", "/v1/shards"].map(|path| get(admin, path).body).concat();
    let stopped = server.stop_cleanly();
    for secret in [&forged[..20], MACHINE_TOKEN, &expired()[..20], &machine_hash()[12..40]] {
        assert!(!shown.contains(secret) && !stopped.log.contains(secret), "{secret}");
    }
}

#[test]
fn websockets_give_their_token_in_a_header_a_subprotocol_or_a_hello() {
    let _machine = beside_others();
    let server = server("places", &config(""));
    let address = server.http.to_string();
    let printed =
        External::run(Library::Websockets, "auth", &[&address, &alice(&[]), "nonsense", &expired()]).finish();
    for place in ["header", "subprotocol", "hello"] {
        for line in [
            format!("{place} good: open"),
            format!("{place} bad: closed 3500"),
            format!("{place} expired: closed 3005"),
        ] {
            assert!(printed.contains(&format!("{line}\n")), "{line} in\n{printed}");
        }
    }
    server.stop_cleanly();
}

#[test]
fn anonymous_clients_may_do_what_the_file_says() {
    let _machine = beside_others();
    let anonymous = "[auth.anonymous]\npermissions = { sub = { allow = [\"public.>\"] } }\n";
    let server = server("anonymous", &config(anonymous));
    let mut peer = Peer::native(server.tcp);
    peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"public.x").bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    for bytes in [
        Raw::request(frames::SUBSCRIBE, 3, b"user.alice.in").bytes(),
        Raw::publish(4, b"public.x", b"1").bytes(),
    ] {
        peer.send(&bytes);
        let error = peer.frame().unwrap();
        assert_eq!((error.kind, error.code()), (frames::ERROR, 108));
    }
    drop(peer);
    server.stop_cleanly();
}

#[test]
fn a_revoked_subject_or_token_is_closed_and_refused() {
    let _machine = beside_others();
    let server = server("revoked", &config(""));
    let admin = server.admin.unwrap();
    let (first, other) = (alice(&["--jti", "7"]), token(&["--sub", "bob", "--jti", "8"]));
    let (mut alice_peer, welcome) = native(&server, &first);
    assert_eq!(welcome.kind, frames::WELCOME);
    let (mut bob_peer, welcome) = native(&server, &other);
    assert_eq!(welcome.kind, frames::WELCOME);
    let answer = request(admin, "POST", "/v1/revocations?sub=alice&keep=1h");
    assert_eq!((answer.status, answer.json()["closed"].as_u64()), (200, Some(1)), "{answer:?}");
    let closing = alice_peer.frame().unwrap();
    assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3500));
    assert_eq!(native(&server, &first).1.code(), 3500);
    let revoked_s = now_s();
    eventually("the second of the revocation is over", || now_s() > revoked_s);
    let (_later_peer, later) = native(&server, &alice(&["--jti", "7"]));
    assert_eq!(later.kind, frames::WELCOME, "a token issued later is valid at once");
    bob_peer.send(&Raw::ping(1).bytes());
    assert_eq!(bob_peer.frame().unwrap().kind, frames::PONG, "bob does not notice");
    let until = answer.json()["until"].as_u64().unwrap();
    assert!((revoked_s + 3_590..=revoked_s + 3_600).contains(&until), "{until}: an hour");
    let answer = request(admin, "POST", "/v1/revocations?jti=8");
    assert_eq!(answer.json()["closed"].as_u64(), Some(1), "{answer:?}");
    let until = answer.json()["until"].as_u64().unwrap();
    assert!(until > now_s() + 365 * 86_400, "{until}: the default");
    assert_eq!(bob_peer.frame().unwrap().code(), 3500);
    assert_eq!(native(&server, &other).1.code(), 3500);
    assert_eq!(native(&server, &token(&["--sub", "bob", "--jti", "9"])).1.kind, frames::WELCOME);
    assert_eq!(metric(&server, "tickcast_auth_revocations_total"), 2.0);
    assert_eq!(metric(&server, "tickcast_auth_verifications_total{result=\"revoked\"}"), 2.0);
    for (method, path, status) in [
        ("GET", "/v1/revocations", 405),
        ("POST", "/v1/revocations", 400),
        ("POST", "/v1/revocations?sub=a&jti=b", 400),
        ("POST", "/v1/revocations?sub=a&keep=0", 400),
    ] {
        assert_eq!(request(admin, method, path).status, status, "{path}");
    }
    server.stop_cleanly();
}

#[test]
fn a_reload_replaces_keys_and_tokens() {
    let _machine = beside_others();
    let server = server("reload", &config(""));
    assert_eq!(native(&server, &alice(&[])).1.kind, frames::WELCOME);
    let other = format!(
        "[auth]\n[[auth.key]]\nalgorithm = \"ES256\"\nfile = {:?}\n\
         permissions = {{ sub = {{ allow = [\"{{sub}}.>\"] }} }}\n",
        key("p256.pub.pem")
    );
    fs::write(file("reload.toml"), other).unwrap();
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
    server.log.wait_for("SIGHUP: auth.key: ");
    eventually("the old key is refused", || native(&server, &alice(&[])).1.kind == frames::CLOSING);
    assert_eq!(native(&server, MACHINE_TOKEN).1.code(), 3500);
    let output = ran(tickcast().args(["token", "--key", &key("p256.pem"), "--sub", "carol"]));
    let (mut carol, first) = native(&server, String::from_utf8(output.stdout).unwrap().trim_end());
    assert_eq!(first.kind, frames::WELCOME);
    carol.send(&Raw::request(frames::SUBSCRIBE, 2, b"carol.x").bytes());
    assert_eq!(carol.frame().unwrap().kind, frames::SUBSCRIBED, "the permissions of the key");
    let hash = &machine_hash()[10..74];
    assert!(!server.log.text().contains(hash));
    drop(carol);
    server.stop_cleanly();
}

/// The configuration of a server whose keys come from an issuer. `more`: further lines of its table.
fn jwks(idp: &Idp, more: &str) -> String {
    format!(
        "[auth]\n[[auth.key]]\nalgorithm = \"EdDSA\"\njwks = {:?}\nissuer = \"https://id.example\"\n\
         refresh = \"10s\"\n{more}\n",
        idp.url
    )
}

fn enters(server: &Server, kid: &str) -> bool {
    let token = token(&["--sub", "alice", "--iss", "https://id.example", "--kid", kid]);
    native(server, &token).1.kind == frames::WELCOME
}

/// A metric of the issuer's key set.
fn of_issuer(server: &Server, name: &str) -> f64 {
    metric(server, &format!("{name}{{issuer=\"https://id.example\",algorithm=\"EdDSA\"}}"))
}

#[test]
fn keys_of_an_issuer_are_fetched_rotated_and_kept_while_it_fails() {
    let _machine = beside_others();
    let idp = Idp::start("first", None);
    let server = server("jwks", &jwks(&idp, ""));
    eventually("the first key is known", || enters(&server, "first"));
    idp.set(Answer::Key("second".into()));
    eventually("the second key is known", || enters(&server, "second"));
    assert!(!enters(&server, "first"), "the first was withdrawn");
    idp.set(Answer::Failure);
    eventually("the issuer fails", || of_issuer(&server, "tickcast_auth_jwks_failures_total") > 0.0);
    assert!(enters(&server, "second"), "the last good keys stay");
    assert!(of_issuer(&server, "tickcast_auth_jwks_age_seconds") > 0.0);
    let third = token(&["--sub", "alice", "--iss", "https://id.example", "--kid", "third"]);
    let (_, refused) = native(&server, &third);
    assert_eq!((refused.kind, refused.code()), (frames::CLOSING, 3504), "the client should come back");
    server.stop_cleanly();
}

#[test]
fn keys_come_over_https_from_an_issuer_of_an_own_authority_through_rotation_and_outage() {
    let _machine = beside_others();
    let (own, foreign) = (Certificates::new("idp"), Certificates::new("idp-foreign"));
    let certificate = own.sign("idp", &["127.0.0.1"]);
    let idp = Idp::start("first", Some(&certificate));
    let server = server("jwks-https", &jwks(&idp, &format!("ca = {:?}", own.ca())));
    eventually("the first key is known", || enters(&server, "first"));
    server.log.wait_for("auth: fetched the keys of https://id.example");
    // The issuer rotates its key and its certificate, which the same authority has signed.
    idp.show(&own.sign("idp", &["127.0.0.1"]));
    idp.set(Answer::Key("second".into()));
    eventually("the second key is known", || enters(&server, "second"));
    assert!(!enters(&server, "first"), "the first was withdrawn");
    // Somebody on the way shows a certificate of another authority, and other keys.
    let served = idp.served();
    idp.show(&foreign.sign("idp", &["127.0.0.1"]));
    idp.set(Answer::Key("forged".into()));
    let failures = || of_issuer(&server, "tickcast_auth_jwks_failures_total");
    eventually("the fetch fails", || failures() > 0.0);
    server.log.wait_for("the last good keys stay");
    assert_eq!(idp.served(), served, "nothing was asked of it");
    assert!(enters(&server, "second") && !enters(&server, "forged"));
    // Then the issuer is out of order, within TLS.
    idp.show(&own.sign("idp", &["127.0.0.1"]));
    idp.set(Answer::Nothing);
    let before = failures();
    eventually("the fetch fails again", || failures() > before);
    assert!(enters(&server, "second"), "the last good keys stay");
    idp.set(Answer::Key("third".into()));
    eventually("the third key is known", || enters(&server, "third"));
    server.stop_cleanly();
}

#[test]
fn an_issuer_of_an_unknown_authority_is_asked_for_nothing() {
    let _machine = beside_others();
    let (own, foreign) = (Certificates::new("idp-unknown"), Certificates::new("idp-other"));
    let idp = Idp::start("first", Some(&own.sign("idp", &["127.0.0.1"])));
    let misnamed = Idp::start("first", Some(&own.sign("misnamed", &["id.example"])));
    let cases = [
        ("system", &idp, String::new()),
        ("foreign", &idp, format!("ca = {:?}", foreign.ca())),
        ("misnamed", &misnamed, format!("ca = {:?}", own.ca())),
    ];
    for (name, idp, ca) in cases {
        let server = server(&format!("jwks-{name}"), &jwks(idp, &ca));
        server.log.wait_for("auth: cannot fetch the keys of https://id.example");
        assert_eq!(idp.served(), 0, "{name}");
        server.stop_cleanly();
    }
}

#[test]
fn a_read_only_listener_refuses_every_publish() {
    let _machine = beside_others();
    let listeners = "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:1\"\npublish = false\n\
                     [[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:1\"\n";
    let server = server("read-only", listeners);
    let mut peer = Peer::native(server.tcp);
    peer.send(&Raw::publish(2, b"t", b"1").bytes());
    let error = peer.frame().unwrap();
    assert_eq!((error.kind, error.code()), (frames::ERROR, 108));
    let mut other = Peer::websocket(server.http, "/ws", "tickcast.v1.json");
    other.send_text("{\"op\":\"publish\",\"id\":3,\"topic\":\"t\",\"data\":1}");
    other.send_text("{\"op\":\"ping\",\"id\":4}");
    assert!(other.text().contains("pong"), "the other listener takes it");
    drop((peer, other));
    server.stop_cleanly();
}

#[test]
fn a_server_that_anyone_could_reach_does_not_start_without_authentication() {
    let _machine = beside_others();
    let start = |words: &[&str]| ran(tickcast().args(["serve", "--no-sim", "--check-config"]).args(words));
    for words in [&["--tcp", "0.0.0.0:0"][..], &["--http", "[::]:0"], &["--tcp", "192.0.2.1:9400"]] {
        let output = start(words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        for part in [words[0], "configure [auth]", "--allow-anonymous"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(start(&[words, &["--allow-anonymous"]].concat()).status.success());
    }
    for local in ["127.0.0.1:0", "[::1]:0", "127.1.2.3:0", "unix:/run/x.sock"] {
        assert!(start(&["--tcp", local]).status.success(), "{local}");
    }
    let path = file("open.toml");
    fs::write(&path, config("")).unwrap();
    let output = start(&["--tcp", "0.0.0.0:0", "--config", path.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn errors_in_the_file_are_reported_at_once_with_their_lines_and_no_secret_is_printed() {
    let _machine = beside_others();
    let path = file("wrong.toml");
    let wrong = "[auth]\nleway = \"1s\"\nclaim = 7\n[[auth.key]]\nalgorithm = \"none\"\nfile = \"/nowhere\"\n\
                 [[auth.tokn]]\n[[auth.token]]\nname = \"a\"\nsha256 = \"x\"\n[[auth.key]]\nalgorithm = \"HS256\"\n\
                 secret = \"s\"\n[auth.anonymous]\npermissions = { sub = { alow = [] } }\n";
    fs::write(&path, wrong).unwrap();
    let arguments = ["serve", "--no-sim", "--config", path.to_str().unwrap()];
    let output = ran(tickcast().args(arguments).arg("--check-config"));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for (line, part) in [
        (2, "auth.leway: unknown key; did you mean leeway?"),
        (5, "auth.key.algorithm: "),
        (7, "auth.tokn: unknown key; did you mean token?"),
        (10, "auth.token.sha256: must be 64 hexadecimal digits"),
        (13, "auth.key.secret: unknown key"),
        (15, "auth.anonymous.permissions: "),
    ] {
        let start = format!("line {line}: {part}");
        assert!(text.contains(&start), "{start} in\n{text}");
    }
    fs::write(&path, config("")).unwrap();
    let output = ran(tickcast().args(arguments).arg("--print-config"));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains("\n[[auth.key]]\n") && printed.contains("algorithm = \"EdDSA\" # line 5"),
        "{printed}"
    );
    assert!(printed.contains("\n# sha256 = # hidden\n"), "{printed}");
    assert!(!printed.contains(&machine_hash()[10..74]));
}

#[test]
fn the_commands_send_the_token_of_a_file_or_of_the_environment() {
    let _machine = beside_others();
    let server = server("commands", &config(""));
    let path = file("commands.token");
    fs::write(&path, format!("{}\n", alice(&[]))).unwrap();
    let path = path.to_str().unwrap();
    let (tcp, http) = (server.tcp.to_string(), format!("ws://{}/ws", server.http));
    let publish =
        |more: &[&str]| ran(tickcast().args(["pub", "user.alice.out", "7", "--server", &tcp]).args(more));
    let refused = publish(&[]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && text.contains("a token is required"), "{text}");
    let output = publish(&["--token-file", path]);
    assert!(output.status.success(), "{output:?}");
    for address in [&tcp, &http] {
        let subscribe = ["sub", "user.alice.out", "--from", "latest", "--count", "1", "--server", address];
        let output = ran(tickcast().args(subscribe).env("TICKCAST_TOKEN", alice(&[])));
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8(output.stdout).unwrap().starts_with("user.alice.out "), "{address}");
        // The file goes before the environment.
        let output =
            ran(tickcast().args(subscribe).args(["--token-file", path]).env("TICKCAST_TOKEN", "wrong"));
        assert!(output.status.success(), "{output:?}");
        let output = ran(tickcast().args(subscribe).arg("--no-reconnect").env("TICKCAST_TOKEN", "wrong"));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains("(code 3500)"), "{text}");
    }
    let machine = file("feed.token");
    fs::write(&machine, format!("{MACHINE_TOKEN}\n")).unwrap();
    let feed = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tickcast-feed"));
        let load = ["--producers", "1", "--rate", "10", "--duration", "1s", "--server", &tcp];
        ran(command.args(load).args(more))
    };
    let output = feed(&["--token-file", machine.to_str().unwrap()]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && report["sent"] == 10, "{output:?}");
    let text = String::from_utf8(feed(&[]).stderr).unwrap();
    assert!(text.contains("a token is required (code 3500)"), "{text}");
    for (arguments, variable, part) in [
        (&["--token-file", "/nowhere/token"][..], "", "/nowhere/token: No such file"),
        (&["--token-file", "/dev/null"], "", "/dev/null: not a token"),
        (&[], "two words", "TICKCAST_TOKEN: not a token"),
    ] {
        let mut command = tickcast();
        command.args(["process", "ecg", "--server", &tcp]).args(arguments).env("TICKCAST_TOKEN", variable);
        let output = ran(&mut command);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(part), "{text}");
    }
    server.stop_cleanly();
}

#[test]
fn a_pattern_that_is_partly_allowed_is_delivered_in_part_if_the_file_says_so() {
    let _machine = beside_others();
    let server = server("partly", &config("partial_patterns = \"filter\"\n"));
    let (mut machine, _) = native(&server, MACHINE_TOKEN);
    let (mut peer, _) = native(&server, &alice(&[]));
    peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"user.>").bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    for topic in [&b"user.bob.x"[..], b"user.alice.x", b"other.x", b"user.bob.x", b"user.alice.y"] {
        machine.send(&Raw::publish(0, topic, b"1").bytes());
    }
    let mut names = Vec::new();
    let mut ticks = 0;
    while ticks < 2 {
        let frame = peer.frame().unwrap();
        match frame.kind {
            frames::TICK => ticks += 1,
            kind => {
                assert_eq!(kind, frames::SUBSCRIBED, "the announcement of a topic");
                names.push(String::from_utf8_lossy(&frame.payload).into_owned());
            }
        }
    }
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().all(|name| name.contains("user.alice.")), "{names:?}");
    peer.send(&Raw::request(frames::SUBSCRIBE, 3, b"user.bob.>").bytes());
    let error = peer.frame().unwrap();
    assert_eq!((error.kind, error.code()), (frames::ERROR, 108));
    drop((peer, machine));
    server.stop_cleanly();
}

#[test]
fn a_secret_that_others_can_read_is_a_warning_at_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let _machine = beside_others();
    let secret = file("secret.txt");
    fs::write(&secret, "x".repeat(64)).unwrap();
    let config = format!("[auth]\n[[auth.key]]\nalgorithm = \"HS256\"\nfile = {secret:?}\n");
    for (mode, warns) in [(0o644, true), (0o600, false)] {
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
        let server = server("secret", &config);
        let said = format!(
            "{} has the secret of tokens and is open to every user of this machine: chmod o=",
            secret.display()
        );
        assert_eq!(server.log.text().contains(&said), warns, "{mode:o}");
        server.stop();
    }
}
