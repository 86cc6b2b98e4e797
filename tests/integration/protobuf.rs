//! `tickcast.proto` as its users meet it: compiled by protoc for Python, and loaded by protobufjs.

use std::path::{Path, PathBuf};

use crate::{
    harness::{Server, beside_others, tickcast},
    sse::Program,
};

const MISSING: &str = "the test clients are not installed: run scripts/test.sh once";

fn path(below_root: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below_root)
}

/// Two shards, so that half of the topics are homed on the other one. Each topic keeps four ticks, however old.
fn server() -> Server {
    let options = ["--no-sim", "--shards", "2", "--history", "4:64KiB:0"];
    Server::start_command(tickcast().env("RUST_LOG", "info"), &options)
}

#[test]
fn client_generated_by_protoc_subscribes_publishes_and_recovers() {
    let _machine = beside_others();
    let (server, python) = (server(), path("tests/clients/.venv/bin/python"));
    assert!(python.exists(), "{MISSING}");
    let (http, folder) = (server.http.to_string(), path("src/proto"));
    let arguments = [&*http, folder.to_str().unwrap()];
    Program::start(python.to_str().unwrap(), "protobuf_generated.py", &arguments).finish();
    server.stop_cleanly();
}

#[test]
fn client_of_protobufjs_subscribes_publishes_and_recovers() {
    let _machine = beside_others();
    let server = server();
    assert!(path("tests/clients/node_modules/protobufjs").exists(), "{MISSING}");
    let (http, file) = (server.http.to_string(), path("src/proto/tickcast.proto"));
    Program::start("node", "protobuf.mjs", &[&http, file.to_str().unwrap()]).finish();
    server.stop_cleanly();
}
