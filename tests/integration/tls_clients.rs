//! The commands and the load client of this project over TLS, on every kind of listener.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use tickcast_client::{
    Address, ConnectOptions, ReconnectOptions, ReconnectingClient, StreamEvent, TlsOptions,
};

use crate::harness::{
    Log, Server, beside_others, certificates::Certificates, eventually, load_client::LoadClient,
    processes::Guarded, tickcast, wait_for_exit,
};

/// A server whose listeners all have TLS; `tls`: their `tls` setting.
fn server(certificates: &Certificates, tls: &str) -> Server {
    let listener = |kind| format!("[[listener]]\nkind = \"{kind}\"\naddress = \"127.0.0.1:1\"\n{tls}\n");
    let text = ["native", "http", "admin"].map(listener).concat();
    let path = certificates.file("tickcast.toml");
    fs::write(&path, text).unwrap();
    let options = ["--no-sim", "--shards", "2", "--config", &path];
    Server::start_command(tickcast().env("RUST_LOG", "info"), &options)
}

/// The addresses of its native and its HTTP listener, by a name in its certificate.
fn addresses(server: &Server) -> [String; 2] {
    [format!("tls://localhost:{}", server.tcp.port()), format!("wss://127.0.0.1:{}/ws", server.http.port())]
}

/// Publishes one tick on topic `a`.
fn publish(address: &str, options: &[&str]) -> Output {
    tickcast().args(["pub", "a", "1", "--server", address]).args(options).output().unwrap()
}

#[track_caller]
fn fails(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in {text}"));
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text.into_owned()
}

/// `tickcast sub a` until it has one tick of a client that publishes over the same address.
fn subscribes_and_publishes(address: &str, options: &[&str]) {
    let mut sub = tickcast();
    sub.args(["sub", "a", "--count", "1", "--from", "latest", "--server", address]).args(options);
    let sub = sub.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut sub = Guarded(sub);
    let (out, err) = (Log::collect(sub.stdout.take().unwrap()), Log::collect(sub.stderr.take().unwrap()));
    succeeds(&publish(address, options));
    assert_eq!(wait_for_exit(&mut sub), Some(0), "{}", err.text());
    assert!(out.whole().starts_with("a "), "{}", out.text());
}

#[test]
fn sub_pub_and_top_verify_the_server_by_the_authority_they_are_given() {
    let _machine = beside_others();
    let certificates = Certificates::new("verified");
    let server = server(&certificates, &certificates.listener(""));
    let ca = certificates.ca();
    for address in addresses(&server) {
        subscribes_and_publishes(&address, &["--ca", &ca]);
    }
    let admin = format!("https://localhost:{}", server.admin.unwrap().port());
    let top = ["top", "--once", "--interval", "100ms", "--admin", &admin];
    let output = tickcast().args(top).args(["--ca", &ca]).output().unwrap();
    succeeds(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("at {admin}: serving")), "{output:?}");
    let other = Certificates::new("another");
    let output = tickcast().args(top).args(["--ca", &other.ca()]).output().unwrap();
    fails(&output, &["unknown authority"]);
    let stopped = server.stop_cleanly();
    assert!(stopped.total("tls_handshakes") >= 4, "{}", stopped.log);
}

#[test]
fn a_server_of_another_authority_or_name_is_refused_unless_insecure_is_asked_for() {
    let _machine = beside_others();
    let (certificates, other) = (Certificates::new("trusted"), Certificates::new("other"));
    let trusted = server(&certificates, &certificates.listener(""));
    for address in addresses(&trusted) {
        fails(&publish(&address, &["--ca", &other.ca()]), &["unknown authority", "set ca"]);
        fails(&publish(&address, &["--ca", "no/such/file"]), &["cannot read no/such/file"]);
    }
    trusted.stop_cleanly();
    certificates.sign("server", &["a.test"]);
    let named = server(&certificates, &certificates.listener(""));
    for address in addresses(&named) {
        fails(&publish(&address, &["--ca", &certificates.ca()]), &["another name", "a.test"]);
        let warned = succeeds(&publish(&address, &["--insecure"]));
        assert!(warned.contains("the server is not verified"), "{warned}");
    }
    named.stop_cleanly();
}

#[test]
fn plain_clients_of_tls_ports_and_the_reverse_are_told_what_to_use() {
    let _machine = beside_others();
    let certificates = Certificates::new("mixed");
    let encrypted = server(&certificates, &certificates.listener(""));
    let plain = Server::start(&[]);
    let (tcp, http) = (encrypted.tcp, encrypted.http);
    fails(&publish(&tcp.to_string(), &[]), &["speaks TLS", &format!("use tls://{tcp}")]);
    fails(&publish(&format!("ws://{http}/ws"), &[]), &["speaks TLS", "wss://"]);
    fails(&publish(&format!("tls://{}", plain.tcp), &["--insecure"]), &["does not speak TLS"]);
    fails(&publish(&format!("wss://{}/ws", plain.http), &["--insecure"]), &["does not speak TLS"]);
    // The right kind of port is known by ALPN.
    fails(&publish(&format!("tls://{http}"), &["--insecure"]), &["another protocol", "wss://"]);
    fails(&publish(&format!("wss://{tcp}/ws"), &["--insecure"]), &["another protocol", "tls://"]);
    plain.stop_cleanly();
    encrypted.stop_cleanly();
}

#[test]
fn a_server_that_wants_certificates_takes_those_of_its_authority() {
    let _machine = beside_others();
    let (certificates, other) = (Certificates::new("mutual"), Certificates::new("stranger"));
    let tls = certificates.listener(&format!(", client_ca = {:?}", certificates.ca()));
    let server = server(&certificates, &tls);
    let ca = certificates.ca();
    let shown = |from: &Certificates| [from.file("client.pem"), from.file("client.key")];
    let ([cert, key], [other_cert, other_key]) = (shown(&certificates), shown(&other));
    for address in addresses(&server) {
        subscribes_and_publishes(&address, &["--ca", &ca, "--cert", &cert, "--cert-key", &key]);
        fails(&publish(&address, &["--ca", &ca]), &["asks for a client certificate"]);
        let stranger = ["--ca", &ca, "--cert", &other_cert, "--cert-key", &other_key];
        fails(&publish(&address, &stranger), &["refuses the client's certificate"]);
    }
    let admin = format!("https://localhost:{}", server.admin.unwrap().port());
    let top = ["top", "--once", "--interval", "100ms", "--admin", &admin, "--ca", &ca];
    succeeds(&tickcast().args(top).args(["--cert", &cert, "--key", &key]).output().unwrap());
    fails(&tickcast().args(top).output().unwrap(), &["cannot query"]);
    server.stop_cleanly();
}

#[test]
fn a_reconnecting_client_receives_over_tls() {
    let _machine = beside_others();
    let certificates = Certificates::new("resumed");
    let server = server(&certificates, &certificates.listener(""));
    for address in addresses(&server) {
        let tls = TlsOptions { ca: Some(certificates.ca().into()), ..TlsOptions::default() };
        let parsed = Address::parse(&address).unwrap();
        let options = ConnectOptions { tls, ..parsed.connect_options() };
        let mut client =
            ReconnectingClient::connect_with(&parsed, &options, ReconnectOptions::default()).unwrap();
        client.subscribe("a").unwrap();
        let mut ticks = 0;
        eventually("two ticks", || {
            succeeds(&publish(&address, &["--insecure"]));
            while let Some(event) = client.next_event(Some(std::time::Duration::ZERO)).unwrap() {
                ticks += u32::from(matches!(event, StreamEvent::Event(tickcast_client::Event::Tick(_))));
            }
            ticks >= 2
        });
        client.close().unwrap();
    }
    server.stop_cleanly();
}

#[test]
fn the_load_client_loses_nothing_over_tls() {
    let _machine = beside_others();
    let certificates = Certificates::new("load");
    let server = server(&certificates, &certificates.listener(""));
    let (tcp, http) = (server.tcp.to_string(), server.http.to_string());
    let transports: [&[&str]; 3] = [
        &["--transport", "native", "--server", &tcp],
        &["--transport", "ws", "--encoding", "rkyv", "--server", &http],
        &["--transport", "ws", "--encoding", "json", "--server", &http],
    ];
    for transport in transports {
        let options = ["--tls", "--ca", &certificates.ca(), "--connections", "20", "--expect-ticks", "50"];
        let load = LoadClient::start(&[&options[..], &["--duration", "150s"], transport].concat());
        load.log.wait_for("subscribed 20\n");
        let lines: String = (0..50).map(|n| format!("{{\"tick\":{n}}}\n")).collect();
        let path = certificates.file("ticks");
        fs::write(&path, lines).unwrap();
        let mut publisher = tickcast();
        publisher.args(["pub", "broadcast", "-", "--insecure", "--server", &format!("tls://{tcp}")]);
        succeeds(&publisher.stdin(fs::File::open(&path).unwrap()).output().unwrap());
        let report = load.finish();
        assert_eq!(report["deliveries"], 1_000, "{report}");
        assert!(report["transport"].as_str().unwrap().ends_with("over TLS"), "{report}");
    }
    server.stop_cleanly();
}

#[test]
fn the_feeder_and_the_load_client_show_certificates() {
    let _machine = beside_others();
    let certificates = Certificates::new("bench-clients");
    let mutual = certificates.listener(&format!(", client_ca = {:?}", certificates.ca()));
    let server = server(&certificates, &mutual);
    let (ca, address) = (certificates.ca(), format!("localhost:{}", server.tcp.port()));
    let (cert, key) = (certificates.file("client.pem"), certificates.file("client.key"));
    let shown = ["--server", &address, "--tls", "--ca", &ca, "--cert", &cert, "--key", &key];
    let load = ["--connections", "4", "--threads", "1", "--expect-ticks", "20", "--subscribe", "sim.*"];
    let client = LoadClient::start(&[&load[..], &shown].concat());
    client.log.wait_for("subscribed 4\n");
    let feed = |more: &[&str]| {
        let load = ["--producers", "2", "--rate", "10", "--topics", "2", "--duration", "1s"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_tickcast-feed"));
        command.args(load).args(more).stdin(Stdio::null()).output().unwrap()
    };
    let output = feed(&shown);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && report["sent"] == 20, "{output:?}");
    client.finish();
    let output = feed(&["--server", &address, "--tls", "--ca", &ca]);
    assert!(!output.status.success(), "it has shown no certificate: {output:?}");
    server.stop_cleanly();
}
