//! The JavaScript SDK: the transcripts that every SDK runs, its package, and its programs against the real server.
//!
//! The tests are Node's, in `src/sdk/js/test`. `scripts/test.sh` installs what they need.

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::{
    harness::{beside_others, while_waiting},
    page::browser,
};

/// Runs a file of `src/sdk/js/test`. `passed_min`: so many tests must have run.
fn run(file: &str, environment: &[(&str, &str)], passed_min: u32) {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sdk/js");
    let ran = Command::new("node")
        // For Node 20; later versions have WebSocket without it.
        .args(["--experimental-websocket", "--test", &format!("test/{file}.test.mjs")])
        .envs(environment.iter().copied())
        .current_dir(&sdk)
        .output()
        .expect("node: scripts/test.sh installs it");
    let Output { status, stdout, stderr } = ran;
    let report = String::from_utf8_lossy(&stdout);
    assert!(status.success(), "{report}{}", String::from_utf8_lossy(&stderr));
    let passed = report.lines().find_map(|line| line.split_once("pass ")?.1.trim().parse::<u32>().ok());
    assert!(passed.is_some_and(|passed| passed >= passed_min), "{report}");
}

const SERVER: (&str, &str) = ("TICKCAST_BINARY", env!("CARGO_BIN_EXE_tickcast"));

#[test]
fn the_javascript_sdk_does_what_the_transcripts_say() {
    let _machine = beside_others();
    run("transcripts", &[], 69);
}

#[test]
fn the_javascript_sdk_survives_wrong_values_of_servers_and_applications() {
    let _machine = beside_others();
    run("units", &[], 23);
}

#[test]
fn the_javascript_package_and_the_served_bundle_are_what_the_build_makes() {
    let _machine = beside_others();
    let compiler = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sdk/js/node_modules/typescript");
    assert!(compiler.exists(), "the compiler is not installed: run scripts/test.sh once");
    run("package", &[], 7);
}

#[test]
fn the_javascript_sdk_survives_cuts_restarts_slow_links_and_expiring_tokens() {
    let _machine = while_waiting();
    run("conformance", &[SERVER], 11);
}

#[test]
fn the_javascript_examples_run() {
    let _machine = beside_others();
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("board");
    let browser = browser();
    let environment = [("TICKCAST_BROWSER", &*browser), ("TICKCAST_SHOTS", shots.to_str().unwrap()), SERVER];
    run("examples", &environment, 4);
}

#[test]
fn the_javascript_sdk_runs_in_bun_and_deno() {
    let _machine = while_waiting();
    run("runtimes", &[SERVER], 2);
}
