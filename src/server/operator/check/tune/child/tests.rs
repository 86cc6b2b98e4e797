use std::fs;

use super::*;
use crate::operator::check::tests::TestFolder;

const SECOND_NS: u64 = 1_000_000_000;
/// Longer than anything here takes.
const LONG_NS: u64 = 60 * SECOND_NS;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn the_whole_output_is_collected() {
    let output = run(&mut shell("echo out; echo err >&2; exit 1"), LONG_NS).unwrap();
    assert_eq!(output, Output { stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec(), code: Some(1) });
}

#[test]
fn background_processes_are_killed_when_the_run_ends() {
    let folder = TestFolder::new("behind");
    let pid_file = folder.0.join("number");
    let output =
        run(&mut shell(&format!("sleep 1000 & echo $! > {}; echo out", pid_file.display())), LONG_NS);
    assert_eq!(output.unwrap(), Output { stdout: b"out\n".to_vec(), stderr: Vec::new(), code: Some(0) });
    assert_ends(fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap());
}

#[test]
fn a_run_past_its_deadline_is_killed_with_its_children() {
    let folder = TestFolder::new("late");
    let pid_file = folder.0.join("number");
    // The grandchild holds the pipes and would outlive its parent.
    let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
    // Try again with more time where the machine was too busy for the shell to write the pid.
    let pid = (0..6).find_map(|doublings| {
        let error = run(&mut shell(&script), SECOND_NS << doublings).unwrap_err();
        assert_eq!(error, format!("did not finish within {} s", 1 << doublings));
        fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
    });
    assert_ends(pid.unwrap());
}

#[track_caller]
fn assert_ends(pid: u32) {
    let start_ns = clock::monotonic_ns();
    let is_gone = || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Its new parent may not have reaped it yet.
        state.is_empty() || state.contains(") Z ")
    };
    while !is_gone() {
        assert!(clock::monotonic_ns() - start_ns < LONG_NS, "process {pid} is still running");
        clock::sleep_ns(POLL_NS);
    }
}

#[test]
fn a_run_that_writes_too_much_is_killed() {
    let error = run(&mut shell("yes"), LONG_NS).unwrap_err();
    assert!(error.contains("1048576 bytes"), "{error}");
}

#[test]
fn standard_error_is_truncated_and_blocks_nothing() {
    // More than the reader takes plus what a pipe holds: the writer gets SIGPIPE and ends.
    let output = run(&mut shell("echo out; head -c 200000 /dev/zero >&2; exit 0"), LONG_NS).unwrap();
    assert_eq!(output.stdout, b"out\n");
    assert!(output.stderr.len() <= STDERR_BYTES_MAX + 1);
}

#[test]
fn a_command_that_cannot_start_is_an_error() {
    let error = run(&mut Command::new("/nowhere/tickcast-tune"), LONG_NS).unwrap_err();
    assert!(error.starts_with("cannot start: "), "{error}");
}
