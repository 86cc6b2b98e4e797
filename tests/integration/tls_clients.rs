//! Clients of this project over TLS.

use std::fs;

use crate::harness::{Server, beside_others, certificates::Certificates, tickcast};

/// A server whose listeners all have TLS; `tls`: their `tls` setting.
fn server(certificates: &Certificates, tls: &str) -> Server {
    let listener = |kind| format!("[[listener]]\nkind = \"{kind}\"\naddress = \"127.0.0.1:1\"\n{tls}\n");
    let text = ["native", "http", "admin"].map(listener).concat();
    let path = certificates.file("tickcast.toml");
    fs::write(&path, text).unwrap();
    let options = ["--no-sim", "--shards", "2", "--config", &path];
    Server::start_command(tickcast().env("RUST_LOG", "info"), &options)
}

#[test]
fn all_listeners_can_have_tls() {
    let _machine = beside_others();
    let certificates = Certificates::new("all");
    let tls = certificates.listener(&format!(", client_ca = {:?}", certificates.ca()));
    server(&certificates, &tls).stop_cleanly();
}
