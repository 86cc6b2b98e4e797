//! The Python SDK in `src/sdk/python`: its own test runner runs the transcripts and the rest, here with the binary under test.

use std::{path::Path, process::Command};

use crate::harness::{beside_others, while_waiting};

/// Runs test modules of the SDK in the environment that `scripts/test.sh` installs, and prints their output if one fails.
fn run(modules: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("tests/clients/.venv/bin/python");
    assert!(python.exists(), "the test clients are not installed: run scripts/test.sh once");
    let sdk = root.join("src/sdk/python");
    let output = Command::new(python)
        .args(["-m", "unittest", "-v"])
        .args(modules)
        .current_dir(sdk.join("tests"))
        .env("PYTHONPATH", &sdk)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TICKCAST_BINARY", env!("CARGO_BIN_EXE_tickcast"))
        .env_remove("TICKCAST_TRANSCRIPTS")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    // unittest succeeds with modules without tests, and with skipped ones.
    assert!(!printed.contains("Ran 0 tests") && printed.trim_end().ends_with("\nOK"), "{printed}");
}

#[test]
fn the_python_sdk_does_what_the_transcripts_say() {
    run(&["test_transcripts", "test_units", "test_client"]);
}

#[test]
fn the_python_sdk_loses_nothing_silently_over_restarts_cuts_slow_links_and_expired_tokens() {
    let _machine = while_waiting();
    run(&["test_conformance"]);
}

#[test]
fn the_examples_of_the_python_sdk_run() {
    let _machine = beside_others();
    run(&["test_examples"]);
}

#[test]
fn the_python_sdk_is_typed_and_its_wheel_is_complete() {
    run(&["test_package"]);
}
