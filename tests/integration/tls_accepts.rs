//! What a listener with TLS accepts and refuses, as OpenSSL finds it.

use std::{
    fs,
    io::{Read, Write},
    process::{Command, Stdio},
};

use crate::harness::{Server, beside_others, certificates::Certificates, wait_for_exit};

/// Runs `openssl s_client`, which gets this input and ends when the server closes the connection, and returns what it prints.
fn s_client(certificates: &Certificates, port: u16, more: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-CAfile", &certificates.ca()])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended without reading.
    let _ = stdin.write_all(input);
    let stdin = (!input.is_empty()).then_some(stdin);
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut errors).unwrap();
    drop(stdin);
    wait_for_exit(&mut child);
    String::from_utf8_lossy(&[out, errors].concat()).into_owned()
}

#[test]
fn openssl_finds_no_weak_group_signature_or_version() {
    let _machine = beside_others();
    let certificates = Certificates::new("accepts");
    let path = certificates.file("tickcast.toml");
    let tls = certificates.listener("");
    let listener = |kind: &str| format!("[[listener]]\nkind = {kind:?}\naddress = \"127.0.0.1:0\"\n{tls}\n");
    fs::write(&path, ["native", "http"].map(listener).concat()).unwrap();
    let server = Server::start(&["--config", &path, "--shards", "1"]);
    let weak = "DEFAULT@SECLEVEL=0";
    for (offered, is_accepted) in [
        (&["-tls1_3", "-groups", "X25519"][..], true),
        (&["-tls1_3", "-groups", "P-256"], true),
        (&["-tls1_3", "-groups", "P-384"], true),
        (&["-tls1_2", "-groups", "P-256"], true),
        (&["-tls1_3", "-groups", "P-521"], false),
        (&["-tls1_2", "-groups", "P-521"], false),
        (&["-tls1_3", "-groups", "X448"], false),
        (&["-tls1_3", "-groups", "ffdhe2048"], false),
        (&["-tls1_3", "-groups", "ffdhe4096"], false),
        (&["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"], false),
        (&["-tls1_2", "-sigalgs", "ECDSA+SHA256"], true),
        (&["-tls1_2", "-sigalgs", "ECDSA+SHA1", "-cipher", weak], false),
        (&["-tls1_1", "-cipher", weak], false),
        (&["-tls1", "-cipher", weak], false),
    ] {
        let seen = s_client(&certificates, server.tcp.port(), &[offered, &["-brief"]].concat(), b"");
        assert_eq!(seen.contains("CONNECTION ESTABLISHED"), is_accepted, "{offered:?}: {seen}");
        assert!(is_accepted || seen.contains("alert"), "{offered:?}: {seen}");
    }
    server.stop_cleanly();
}

#[test]
fn openssl_gets_no_renegotiation_no_compression_and_no_early_data() {
    let _machine = beside_others();
    let certificates = Certificates::new("features");
    let path = certificates.file("tickcast.toml");
    let tls = certificates.listener("");
    let listener = |kind: &str| format!("[[listener]]\nkind = {kind:?}\naddress = \"127.0.0.1:0\"\n{tls}\n");
    fs::write(&path, ["native", "http"].map(listener).concat()).unwrap();
    let server = Server::start(&["--config", &path, "--shards", "1"]);
    // A line with R alone has s_client ask for a renegotiation.
    let seen = s_client(&certificates, server.tcp.port(), &["-tls1_2"], b"R\n");
    let (before, after) = seen.split_once("RENEGOTIATING").unwrap_or_else(|| panic!("{seen}"));
    assert!(before.contains("Compression: NONE") && !after.contains("Cipher is"), "{seen}");
    assert!(seen.contains(":SSL alert number "), "{seen}");
    // The ticket of TLS 1.3 says how much early data it allows.
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let seen = s_client(&certificates, server.http.port(), &["-tls1_3", "-ign_eof"], request);
    assert!(seen.contains("Compression: NONE") && seen.contains("Max Early Data: 0"), "{seen}");
    server.stop_cleanly();
}
