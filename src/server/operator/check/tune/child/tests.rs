use std::fs;

use super::{super::tests::Folder, *};

const SECOND_NS: u64 = 1_000_000_000;
/// Nothing here takes as long.
const LONG_NS: u64 = 60 * SECOND_NS;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn said(output: &str, code: Option<i32>) -> Said {
    Said { output: output.into(), errors: b"first\nsecond\n".to_vec(), code }
}

#[test]
fn lines_become_items_that_are_not_required() {
    let items = understood(said(
        "{\"name\":\"a\",\"state\":\"supported\",\"now\":\"1\",\"wanted\":\"2\",\"reason\":\"why \\\"so\\\"\"}\n\
         {\"name\":\"b\",\"state\":\"unsupported\",\"now\":null,\"wanted\":\"x\",\"reason\":\"\",\"new\":7}\n",
        Some(1),
    ))
    .unwrap();
    assert_eq!((items.len(), items[0].state, items[1].state), (2, State::Supported, State::Unsupported));
    assert_eq!((items[0].now.as_deref(), items[1].now.as_deref()), (Some("1"), None));
    assert_eq!(items[0].reason, "why \"so\"");
    assert!(items.iter().all(|item| !item.required));
    assert!(understood(said("", Some(0))).unwrap().is_empty());
}

#[test]
fn what_is_not_understood_is_said_with_its_line_or_its_end() {
    for (said, part) in [
        (
            said("{\"name\":\"a\",\"state\":\"odd\",\"now\":null,\"wanted\":\"\",\"reason\":\"\"}", Some(0)),
            "line 1",
        ),
        (said("enabled kernel\n", Some(1)), "line 1"),
        (said("", Some(2)), "exit status 2: first"),
        (said("", None), "a signal: first"),
    ] {
        let why = understood(said).unwrap_err();
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn a_run_is_heard_to_its_end() {
    let said = run(&mut shell("echo out; echo err >&2; exit 1"), LONG_NS).unwrap();
    assert_eq!(said, Said { output: b"out\n".to_vec(), errors: b"err\n".to_vec(), code: Some(1) });
}

#[test]
fn what_a_run_leaves_behind_is_ended_with_it() {
    let folder = Folder::new("behind");
    let number = folder.0.join("number");
    let said = run(&mut shell(&format!("sleep 1000 & echo $! > {}; echo out", number.display())), LONG_NS);
    assert_eq!(said.unwrap(), Said { output: b"out\n".to_vec(), errors: Vec::new(), code: Some(0) });
    ends(fs::read_to_string(&number).unwrap().trim().parse().unwrap());
}

#[test]
fn a_run_that_does_not_end_is_ended_with_what_it_started() {
    let folder = Folder::new("late");
    let number = folder.0.join("number");
    // The grandchild holds the pipes, and would outlive its parent.
    let script = format!("sleep 1000 & echo $! > {}; wait", number.display());
    // Longer where the machine is too busy for the shell to have come that far.
    let started = (0..6).find_map(|doublings| {
        let why = run(&mut shell(&script), SECOND_NS << doublings).unwrap_err();
        assert_eq!(why, format!("did not end within {} s", 1 << doublings));
        fs::read_to_string(&number).ok()?.trim().parse().ok()
    });
    ends(started.unwrap());
}

#[track_caller]
fn ends(number: u32) {
    let start_ns = clock::monotonic_ns();
    let is_gone = || {
        let state = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        // Whoever adopted it may not have waited for it yet.
        state.is_empty() || state.contains(") Z ")
    };
    while !is_gone() {
        assert!(clock::monotonic_ns() - start_ns < LONG_NS, "{number} is still there");
        clock::sleep_ns(LOOK_AGAIN_NS);
    }
}

#[test]
fn a_run_that_says_too_much_is_ended() {
    let why = run(&mut shell("yes"), LONG_NS).unwrap_err();
    assert!(why.contains("1048576 bytes"), "{why}");
}

#[test]
fn complaints_are_read_up_to_a_bound_and_hold_nothing_up() {
    // More than a pipe holds, after what is read of it: the writer gets SIGPIPE or has it read, and ends.
    let said = run(&mut shell("echo out; head -c 200000 /dev/zero >&2; exit 0"), LONG_NS).unwrap();
    assert_eq!(said.output, b"out\n");
    assert!(said.errors.len() <= ERRORS_BYTES_MAX + 1);
}

#[test]
fn what_cannot_be_started_is_said() {
    let why = run(&mut Command::new("/nowhere/tickcast-tune"), LONG_NS).unwrap_err();
    assert!(why.starts_with("cannot be started: "), "{why}");
    let [item] = &check(Path::new("/nowhere/tickcast-tune"))[..] else { panic!("one item") };
    assert!(
        !item.required && item.state == State::Unsupported && item.reason.contains("/nowhere/"),
        "{item:?}"
    );
}
