//! TLS on every kind of listener, with clients of other makes: curl, openssl, Python, Node, and rustls in front of the clients that
//! have none.

use std::{
    fs,
    io::{Read, Write},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::harness::{
    LOSSLESS, Server,
    account::{Account, Subscriber},
    beside_others,
    certificates::Certificates,
    eventually,
    external::{External, Library, ticks},
    frames::{self, Options},
    http,
    raw::Peer,
    tickcast,
    tunnel::{Tunnel, client_config, connect},
    wait_for_exit,
};
use crate::page::browser;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A file with a listener for TLS of each kind for clients, and what else is given.
struct File {
    certificates: Certificates,
    path: String,
}

impl File {
    /// `tls`: further settings of the listeners with TLS; `rest`: other tables.
    fn new(name: &str, tls: &str, rest: &str) -> File {
        let certificates = Certificates::new(name);
        let path = certificates.file("tickcast.toml");
        let tls = certificates.listener(tls);
        let listener = |kind: &str, more: &str| {
            format!("[[listener]]\nkind = \"{kind}\"\naddress = \"127.0.0.1:0\"\n{more}\n")
        };
        let text = [listener("native", &tls), listener("http", &tls), listener("admin", ""), rest.to_owned()];
        fs::write(&path, text.concat()).unwrap();
        File { certificates, path }
    }

    /// Starts a server with two shards; `tcp` and `http` are the listeners with TLS.
    fn serve(&self, options: &[&str]) -> Server {
        self.serve_with_shards("2", options)
    }

    fn serve_with_shards(&self, shards: &str, options: &[&str]) -> Server {
        Server::start(&[&["--config", &self.path, "--shards", shards], options].concat())
    }
}

/// A total of all shards.
fn counter(server: &Server, name: &str) -> u64 {
    let metrics = http::get_of_all_shards(server.admin.unwrap(), "/metrics").body;
    let of_name = metrics.lines().filter(|line| line.starts_with(&format!("tickcast_{name}{{")));
    of_name.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

fn run(program: &str, arguments: &[&str]) -> (String, String) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn curl_reads_the_page_over_every_version_and_the_old_ones_are_refused() {
    let _machine = beside_others();
    let file = File::new("curl", "", "");
    let server = file.serve(&[]);
    let url = format!("https://localhost:{}/", server.http.port());
    let get = |more: &[&str]| {
        let ca = file.certificates.ca();
        let always = ["-sS", "--cacert", &ca, "-o", "/dev/null", "-w", "%{http_code}", &url];
        run("curl", &[&always[..], more].concat())
    };
    for version in [&["--tlsv1.3"][..], &["--tls-max", "1.2"]] {
        assert_eq!(get(version).0, "200", "{version:?}");
    }
    let (status, error) = get(&["--tls-max", "1.1"]);
    assert!(status == "000" && error.contains("(35)"), "{status} {error}");
    // Many requests on one connection, and a file of more than one record.
    let (body, _) = run("curl", &["-sS", "--compressed", "--cacert", &file.certificates.ca(), &url, &url]);
    assert_eq!(body.matches("</html>").count(), 2);
    server.stop_cleanly();
}

#[test]
fn plain_http_on_a_port_for_tls_is_answered_in_the_clear() {
    let _machine = beside_others();
    let file = File::new("plain-http", "", "");
    let server = file.serve(&[]);
    for address in [server.http, server.tcp] {
        let answer = http::request(address, "GET", "/");
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains("this port speaks TLS"), "{answer:?}");
    }
    // Neither TLS nor HTTP: an alert, which a native client of ours knows.
    let mut peer = Peer::connect(server.tcp);
    peer.send(b"\x80\x2e\x01\x03\x01");
    assert_eq!(peer.read_to_end(), [21, 3, 3, 0, 2, 2, 10]);
    assert_eq!(counter(&server, "tls_handshakes_failed_total"), 3);
    server.stop_cleanly();
}

#[test]
fn openssl_finds_only_aead_ciphers_and_the_certificate_of_the_name_that_it_asks_for() {
    let _machine = beside_others();
    let file = File::new("openssl", "", "");
    let other = file.certificates.sign("other", &["b.test"]);
    let two = format!(
        "tls = {{ cert = [{:?}, {:?}], key = [{:?}, {:?}] }}",
        file.certificates.file("server.pem"),
        other.cert,
        file.certificates.file("server.key"),
        other.key
    );
    let text = format!(
        "[[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:0\"\n{two}\n[[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:0\"\n"
    );
    fs::write(&file.path, text).unwrap();
    let server = Server::start(&["--config", &file.path]);
    let address = server.tcp.to_string();
    let ca = file.certificates.ca();
    let connect = |more: &[&str]| {
        let always = ["s_client", "-connect", &address, "-CAfile", &ca, "-brief"];
        let (out, error) = run("openssl", &[&always[..], more].concat());
        out + &error
    };
    for (name, shown) in [("a.test", "localhost"), ("b.test", "b.test"), ("unknown.test", "localhost")] {
        let seen = connect(&["-servername", name]);
        assert!(seen.contains(&format!("CN = {shown}")) || seen.contains(&format!("CN={shown}")), "{seen}");
        assert!(seen.contains("TLSv1.3") && seen.contains("TLS_AES_128_GCM_SHA256"), "{seen}");
    }
    assert!(connect(&["-noservername"]).contains("Verification: OK"));
    for (suite, version, is_accepted) in [
        ("TLS_AES_256_GCM_SHA384", "-tls1_3", true),
        ("TLS_CHACHA20_POLY1305_SHA256", "-tls1_3", true),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", "-tls1_2", true),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", "-tls1_2", true),
        ("ECDHE-ECDSA-AES128-SHA", "-tls1_2", false),
        ("ECDHE-ECDSA-AES256-SHA384", "-tls1_2", false),
        ("AES128-GCM-SHA256", "-tls1_2", false),
    ] {
        let kind = if version == "-tls1_3" { "-ciphersuites" } else { "-cipher" };
        let seen = connect(&[version, kind, suite]);
        assert_eq!(seen.contains("CONNECTION ESTABLISHED"), is_accepted, "{suite}: {seen}");
    }
    server.stop_cleanly();
}

#[test]
fn python_and_node_receive_every_tick_over_wss() {
    let _machine = beside_others();
    let file = File::new("libraries", "", "");
    let server = file.serve(&LOSSLESS);
    let url = format!("wss://localhost:{}/ws", server.http.port());
    let subscribers: Vec<External> = [Library::Ws, Library::Websockets]
        .into_iter()
        .flat_map(|library| ["json", "rkyv", "raw"].map(|encoding| (library, encoding)))
        .map(|(library, encoding)| {
            let arguments = [&url, encoding, "t", "300"];
            External::run_trusting(library, "subscribe", &arguments, &file.certificates.ca())
        })
        .collect();
    subscribers.iter().for_each(External::wait_until_ready);
    let tunnel = Tunnel::to(server.tcp, &file.certificates);
    let mut publisher = Peer::native(tunnel.address);
    for n in 0..300 {
        // Sizes around those of records and SENDs.
        let payload = format!("\"{}\"", "x".repeat([1, 100, 16_379, 16_384, 40_000][n % 5]));
        publisher.send(&frames::Raw::publish(0, b"t", payload.as_bytes()).bytes());
    }
    for subscriber in subscribers {
        let seen: usize = ticks(&subscriber.finish()).values().map(Vec::len).sum();
        assert_eq!(seen, 300);
    }
    server.stop_cleanly();
}

#[test]
fn the_page_in_a_browser_shows_ticks_that_come_over_wss() {
    let _machine = beside_others();
    let file = File::new("page", "", "[[source]]\nkind = \"simulator\"\n");
    let server = Server::start_logging("info", &["--config", &file.path, "--shards", "2"]);
    let url = format!("https://localhost:{}/", server.http.port());
    External::run(Library::Ws, "page-tls", &[&browser(), &url]).finish();
    server.stop_cleanly();
}

#[test]
fn a_client_that_stops_reading_over_tls_loses_nothing_unannounced() {
    let _machine = beside_others();
    let file = File::new("slow", "", "[delivery]\nbehind_size = \"64KiB\"\n");
    let server = file.serve(&["--stall-deadline", "10m"]);
    let native = Tunnel::to(server.tcp, &file.certificates);
    let json = Tunnel::to(server.http, &file.certificates);
    let mut subscribers = [
        Subscriber::native(Peer::connect_with_small_window(native.address), Account::from_start()),
        Subscriber::json(Peer::connect_with_small_window(json.address), Account::from_start()),
    ];
    for subscriber in &mut subscribers {
        subscriber.subscribe("t", Options { policy: 2, ..Options::default() });
    }
    let mut publisher = Peer::native(native.address);
    let payload = format!("\"{}\"", "y".repeat(20_000));
    let mut published = 0;
    eventually("both are behind", || {
        for _ in 0..50 {
            publisher.send(&frames::Raw::publish(0, b"t", payload.as_bytes()).bytes());
            published += 1;
        }
        let sessions = http::get_of_all_shards(server.admin.unwrap(), "/v1/sessions").json();
        let sessions = sessions["sessions"].as_array().unwrap();
        sessions.iter().filter(|session| session["dropped"].as_u64() > Some(0)).count() == 2
    });
    for subscriber in &mut subscribers {
        subscriber.read_until("the last tick", |account| account.reached() == published);
        subscriber.account.assert_whole("t", published);
    }
    server.stop_cleanly();
}

#[test]
fn identities_meet_on_one_shard_over_tls() {
    let _machine = beside_others();
    let file = File::new("identity", "", "");
    let server = file.serve_with_shards("4", &["--identity-conflict", "replace"]);
    let tunnel = Tunnel::to(server.http, &file.certificates);
    let mut peers: Vec<Peer> = (0..16)
        .map(|n| {
            let mut peer = Peer::connect(tunnel.address);
            peer.upgrade(&format!("/ws?topics=t&client=c{n}"), "tickcast.v1.json");
            peer
        })
        .collect();
    peers.iter_mut().for_each(|peer| assert!(peer.text().contains("subscribed")));
    assert!(counter(&server, "sessions_handed_over_total") > 0);
    // The second connection of an identity ends the first, wherever it came in.
    let mut again = Peer::connect(tunnel.address);
    again.upgrade("/ws?topics=t&client=c3", "tickcast.v1.json");
    assert!(again.text().contains("subscribed"));
    assert!(peers[3].text().contains("3502"));
    server.stop_cleanly();
}

#[test]
fn a_client_certificate_is_asked_for_where_authorities_are_given() {
    let _machine = beside_others();
    let certificates = Certificates::new("mutual-ca");
    let file = File::new("mutual", &format!(", client_ca = {:?}", certificates.ca()), "");
    // The client knows the server's authority, and has a certificate of the other.
    fs::copy(certificates.file("client.pem"), file.certificates.file("desk.pem")).unwrap();
    fs::copy(certificates.file("client.key"), file.certificates.file("desk.key")).unwrap();
    let server = file.serve(&[]);
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let of = |name| Tunnel::with(server.tcp, client_config(&file.certificates, name, versions));
        let _peer = Peer::native(of(Some("desk")).address);
        for refused in [None, Some("client")] {
            let mut peer = Peer::connect(of(refused).address);
            peer.send_as_far_as_it_goes(&frames::Raw::request(frames::HELLO, 1, b"raw").bytes());
            assert_eq!(peer.read_to_end(), b"", "{refused:?}");
        }
    }
    assert_eq!(counter(&server, "tls_handshakes_failed_total"), 4);
    server.stop_cleanly();
}

#[test]
fn a_certificate_whose_name_is_listed_is_a_principal_and_any_other_is_no_credentials() {
    let _machine = beside_others();
    let clients = Certificates::new("listed-ca");
    clients.sign("other", &["other.test"]);
    let tls = format!(", client_ca = {:?}", clients.ca());
    let listed = "[auth]\n[[auth.certificate]]\nname = \"client.test\"\n\
                  permissions = { sub = { allow = [\">\"] } }\n";
    let anonymous = "[auth.anonymous]\npermissions = { sub = { allow = [\"public.>\"] } }\n";
    for (name, rest, is_open) in
        [("listed", listed.to_owned() + anonymous, true), ("listed-only", listed.to_owned(), false)]
    {
        let file = File::new(name, &tls, &rest);
        for client in ["client", "other"] {
            for extension in ["pem", "key"] {
                let of = |certificates: &Certificates| certificates.file(&format!("{client}.{extension}"));
                fs::copy(of(&clients), of(&file.certificates)).unwrap();
            }
        }
        let server = file.serve(&["--identity-conflict", "replace"]);
        let versions = &[&rustls::version::TLS13][..];
        let tunnel =
            |client| Tunnel::with(server.tcp, client_config(&file.certificates, Some(client), versions));
        let answer = |peer: &mut Peer, topic: &[u8]| {
            peer.send(&frames::Raw::request(frames::SUBSCRIBE, 2, topic).bytes());
            let frame = peer.frame().unwrap();
            if frame.kind == frames::ERROR { frame.code() } else { 0 }
        };
        let mut peer = Peer::native(tunnel("client").address);
        assert_eq!(answer(&mut peer, b"private.x"), 0);
        match is_open {
            // Anonymous clients are not one client, so none replaces another.
            true => {
                let mut peers = [tunnel("other"), tunnel("other")].map(|other| Peer::native(other.address));
                for peer in &mut peers {
                    assert_eq!((answer(peer, b"public.x"), answer(peer, b"private.x")), (0, 108));
                }
            }
            false => {
                let mut peer = Peer::connect(tunnel("other").address);
                peer.send(&frames::Raw::request(frames::HELLO, 1, b"raw").bytes());
                let closing = peer.frame().unwrap();
                assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3500));
            }
        }
        drop(peer);
        server.stop_cleanly();
    }
}

#[test]
fn a_session_by_certificate_ends_with_the_certificate_and_is_not_resumed_after_it() {
    let _machine = beside_others();
    let clients = Certificates::new("ending-ca");
    let tls = format!(", client_ca = {:?}", clients.ca());
    let rest = "[auth]\nwarning = \"0s\"\ngrace = \"0s\"\n[[auth.certificate]]\nname = \"desk.test\"\n\
                permissions = { sub = { allow = [\">\"] } }\n";
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let file = File::new("ending", &tls, rest);
        let server = file.serve(&[]);
        // Both handshakes must be over before.
        let ends_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 8;
        let desk = clients.sign_until("desk", &["desk.test"], ends_s);
        fs::copy(desk.cert, file.certificates.file("desk.pem")).unwrap();
        fs::copy(desk.key, file.certificates.file("desk.key")).unwrap();
        let tunnel = Tunnel::with(server.tcp, client_config(&file.certificates, Some("desk"), versions));
        let mut peers = [(); 2].map(|()| Peer::native(tunnel.address));
        for peer in &mut peers {
            let closing = peer.frame().unwrap();
            assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3005));
        }
        let resumed = counter(&server, "tls_handshakes_resumed_total");
        eventually("the last second of the certificate is over", || {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() > ends_s
        });
        let mut peer = Peer::connect(tunnel.address);
        peer.send_as_far_as_it_goes(&frames::Raw::request(frames::HELLO, 1, b"raw").bytes());
        assert_eq!(peer.read_to_end(), b"");
        assert_eq!(counter(&server, "tls_handshakes_failed_total"), 1);
        assert_eq!(counter(&server, "tls_handshakes_resumed_total"), resumed);
        server.stop_cleanly();
    }
}

#[test]
fn sighup_replaces_certificates_and_a_bad_file_changes_nothing() {
    let _machine = beside_others();
    let file = File::new("reload", "", "");
    let server = file.serve(&[]);
    let send_sighup = || kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
    let address = server.tcp.to_string();
    let shown = || {
        let ca = file.certificates.ca();
        let (out, _) = run("openssl", &["s_client", "-connect", &address, "-CAfile", &ca]);
        let start = out.find("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("{out}"));
        out[start..out.find("-----END CERTIFICATE-----").unwrap()].to_owned()
    };
    let tunnel = Tunnel::to(server.tcp, &file.certificates);
    let mut open = Peer::native(tunnel.address);
    let first = shown();
    fs::write(file.certificates.file("server.pem"), "no certificate").unwrap();
    send_sighup();
    server.log.wait_for("SIGHUP: every listener keeps its certificates: ");
    server.log.wait_for("no certificate in it");
    assert_eq!(shown(), first);
    file.certificates.sign("server", &["localhost", "127.0.0.1", "a.test"]);
    send_sighup();
    server.log.wait_for("SIGHUP: the certificates have been read again");
    eventually("new connections get the new certificate", || shown() != first);
    // Those that are open do not notice.
    open.send(&frames::Raw::ping(7).bytes());
    assert_eq!(open.frame().unwrap().kind, frames::PONG);
    server.stop_cleanly();
}

#[test]
fn sessions_are_resumed_across_a_restart_with_a_file_of_ticket_keys_and_not_without() {
    let _machine = beside_others();
    let keys = Certificates::new("ticket-keys");
    let path = keys.file("tickets.key");
    fs::write(&path, [7; 48]).unwrap();
    for (name, tls, is_resumed) in
        [("tickets", format!(", ticket_keys = {path:?}"), true), ("no-tickets", String::new(), false)]
    {
        let file = File::new(name, &tls, "");
        let session = file.certificates.file("session");
        let connect = |server: &Server, version: &str, with: &str| {
            let mut child = Command::new("openssl")
                .args(["s_client", "-connect", &server.http.to_string(), "-CAfile", &file.certificates.ca()])
                .args([version, with, &session, "-ign_eof"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            // The answer ends the connection; the ticket has come before.
            let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            child.stdin.take().unwrap().write_all(request).unwrap();
            let mut out = Vec::new();
            child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
            wait_for_exit(&mut child);
            String::from_utf8_lossy(&out).into_owned()
        };
        for version in ["-tls1_3", "-tls1_2"] {
            let server = file.serve(&[]);
            assert!(connect(&server, version, "-sess_out").contains("New, TLSv1."), "{version}");
            assert!(connect(&server, version, "-sess_in").contains("Reused, TLSv1."), "{version}");
            server.stop_cleanly();
            let server = file.serve(&[]);
            let seen = connect(&server, version, "-sess_in");
            assert_eq!(seen.contains("Reused, TLSv1."), is_resumed, "{version}: {seen}");
            assert_eq!(counter(&server, "tls_handshakes_resumed_total"), u64::from(is_resumed));
            server.stop_cleanly();
        }
    }
}

#[test]
fn a_handshake_that_does_not_complete_ends_at_its_deadline() {
    let _machine = beside_others();
    let file = File::new("unfinished", "", "");
    let server = file.serve(&["--handshake-deadline", "300ms"]);
    let mut silent = Peer::connect(server.tcp);
    let mut half = Peer::connect(server.http);
    half.send(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc]);
    assert_eq!((silent.read_to_end(), half.read_to_end()), (vec![], vec![]));
    drop((silent, half));
    eventually("both are gone", || counter(&server, "sessions_closed_total") == 2);
    server.stop_cleanly();
}

#[test]
fn a_handshake_that_is_wrong_ends_at_once_with_an_alert() {
    let _machine = beside_others();
    let file = File::new("wrong", "", "");
    let server = file.serve(&[]);
    let mut wrong = Peer::connect(server.tcp);
    wrong.send(&[22, 3, 1, 0, 6, 1, 0, 0, 2, 9, 9]);
    let alert = wrong.read_to_end();
    assert_eq!(alert[..5], [21, 3, 3, 0, 2], "an alert: {alert:?}");
    drop(wrong);
    eventually("it is gone", || counter(&server, "sessions_closed_total") == 1);
    // A good one is served as ever.
    let tunnel = Tunnel::to(server.tcp, &file.certificates);
    Peer::native(tunnel.address);
    server.stop_cleanly();
}

#[test]
fn a_connection_beyond_the_limit_is_refused_with_an_alert_and_no_handshake() {
    let _machine = beside_others();
    let file = File::new("full", "", "");
    let server = file.serve(&["--max-clients", "1"]);
    let tunnel = Tunnel::to(server.tcp, &file.certificates);
    let _first = Peer::native(tunnel.address);
    for address in [server.tcp, server.http] {
        assert_eq!(Peer::connect(address).read_to_end(), [21, 3, 3, 0, 2, 2, 80]);
    }
    assert_eq!(counter(&server, "sessions_refused_total"), 2);
    server.stop_cleanly();
}

#[test]
fn a_certificate_that_cannot_be_used_ends_the_start_with_its_file_and_reason() {
    let _machine = beside_others();
    let file = File::new("start", "", "");
    let fails = |why: &str| {
        let mut command = tickcast();
        command.args(["serve", "--config", &file.path]).stdin(Stdio::null());
        let output = command.output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(why), "{why}: {log}");
    };
    let (cert, key) = (file.certificates.file("server.pem"), file.certificates.file("server.key"));
    let before = fs::read_to_string(&key).unwrap();
    fs::write(&key, fs::read_to_string(file.certificates.file("client.key")).unwrap()).unwrap();
    fails("server.pem with ");
    fails("the key does not belong to the first certificate");
    fs::write(&key, before.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")).unwrap();
    fails("no private key in it");
    fs::remove_file(&cert).unwrap();
    fails("server.pem: No such file");
}

#[test]
fn a_stopping_server_says_goodbye_in_both_protocols() {
    let _machine = beside_others();
    let file = File::new("goodbye", "", "");
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let server = file.serve(&[]);
        let mut stream = connect(server.tcp, client_config(&file.certificates, None, &[version]));
        stream.write_all(&frames::Raw::request(frames::HELLO, 1, b"raw").bytes()).unwrap();
        let mut received = Vec::new();
        let mut chunk = [0; 4 << 10];
        let welcome = loop {
            match frames::Received::take(&mut received) {
                Some(frame) => break frame,
                None => {
                    let len = stream.read(&mut chunk).unwrap();
                    assert!(len > 0, "the server ends the connection");
                    received.extend_from_slice(&chunk[..len]);
                }
            }
        };
        assert_eq!(welcome.kind, frames::WELCOME);
        server.terminate();
        // An end without close_notify would be an error.
        stream.read_to_end(&mut received).unwrap();
        assert_eq!(frames::Received::take(&mut received).unwrap().code(), 3001);
        assert!(received.is_empty(), "nothing follows CLOSING");
        drop(stream);
        server.wait().assert_clean();
    }
}
