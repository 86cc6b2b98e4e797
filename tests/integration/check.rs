//! `tickcast check` on the machine that runs the tests: output and exit status.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::harness::{Server, beside_others, eventually, tickcast};
use tickcast::cli::HELP_WIDTH;

fn tool() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning/tickcast-tune")
}

/// Standard output and standard error.
fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn check(command: &mut Command) -> Output {
    command.env_remove("TICKCAST_TUNE").stdin(Stdio::null()).output().unwrap()
}

/// A table with its wrapped lines joined.
fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The program in a folder of its own, without tickcast-tune beside it.
fn alone(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("check-{name}/bin"));
    fs::create_dir_all(&folder).unwrap();
    let program = folder.join("tickcast");
    let _ = fs::remove_file(&program);
    // Not a symbolic link: that would resolve to the folder with the tool.
    fs::hard_link(env!("CARGO_BIN_EXE_tickcast"), &program)
        .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_tickcast"), &program).map(drop))
        .unwrap();
    program
}

#[test]
fn every_item_is_a_line_of_json_and_the_server_has_what_it_requires() {
    let _machine = beside_others();
    let output = check(tickcast().args(["check", "--json", "--tune"]).arg(tool()));
    let (out, errors) = said(&output);
    assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{out}");
    let mut items = BTreeMap::new();
    for line in out.lines() {
        let item: Value = serde_json::from_str(line).unwrap();
        for key in ["name", "state", "wanted", "reason"] {
            assert!(item[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {line}");
        }
        assert!(["enabled", "supported", "unsupported"].contains(&item["state"].as_str().unwrap()), "{line}");
        assert!(item["now"].is_string() || item["now"].is_null(), "{line}");
        items.insert(item["name"].as_str().unwrap().to_owned(), item);
    }
    for name in ["kernel", "io_uring", "io_uring ring", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "cores"] {
        assert_eq!(
            (&items[name]["required"], &items[name]["state"]),
            (&true.into(), &"enabled".into()),
            "{name}"
        );
    }
    // Items of tickcast-tune are passed on unchanged.
    let somaxconn = &items["net.core.somaxconn"];
    assert_eq!((&somaxconn["required"], &somaxconn["wanted"]), (&false.into(), &"at least 65535".into()));
    assert!(items.len() > 20, "{out}");
}

/// IORING_ENTER_NO_IOWAIT (include/uapi/linux/io_uring.h).
const NO_IOWAIT: u64 = 1 << 7;

/// The flags with which threads of a process wait in io_uring_enter now (proc_pid_syscall(5)).
fn waits_in_rings(pid: u32) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let calls = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("syscall")).ok());
    let waits = calls.filter_map(|call| {
        let mut words = call.split_whitespace();
        let is_enter = words.next()? == SYS_IO_URING_ENTER;
        let mut numbers =
            words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap_or(0));
        let (wanted, flags) = (numbers.nth(2)?, numbers.next()?);
        (is_enter && wanted > 0).then_some(flags)
    });
    waits.collect()
}

/// The number of the system call, the same on every architecture.
const SYS_IO_URING_ENTER: &str = "426";

#[test]
fn cores_of_idle_shards_count_as_idle_where_check_says_so() {
    let _machine = beside_others();
    let output = check(tickcast().args(["check", "--json", "--tune"]).arg(tool()));
    let items = said(&output).0;
    let item = items.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let item = item.into_iter().find(|item| item["name"] == "idle cores").unwrap();
    let server = Server::start(&["--shards", "2"]);
    let mut waits = Vec::new();
    eventually("both shards sleep", || {
        waits = waits_in_rings(server.pid());
        waits.len() == 2
    });
    let flags = if item["state"] == "enabled" { NO_IOWAIT } else { 0 };
    assert!(waits.iter().all(|wait| wait & NO_IOWAIT == flags), "{waits:x?} {item}");
    server.stop_cleanly();
}

#[test]
fn the_default_output_is_a_table() {
    let _machine = beside_others();
    let output = check(tickcast().args(["check", "--tune"]).arg(tool()));
    let (out, errors) = said(&output);
    assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{out}");
    let mut lines = out.lines();
    assert!(out.lines().all(|line| line.chars().count() <= HELP_WIDTH), "{out}");
    let head = lines.next().unwrap();
    let column = head.find("STATE").unwrap();
    assert!(head.starts_with("REQUIRED "), "{head}");
    let rows = lines.by_ref().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with(' '));
    for row in rows {
        // States are aligned, and at least one blank precedes them.
        let state = row[column..].split(' ').next().unwrap();
        assert!(["STATE", "enabled", "supported", "unsupported"].contains(&state), "{row}");
        assert_eq!(row.as_bytes()[column - 1], b' ', "{row}");
    }
    assert_eq!(lines.next(), Some("this machine meets all requirements of tickcast serve"));
}

#[test]
fn without_the_tool_it_reports_its_own_checks_and_how_to_get_it() {
    let _machine = beside_others();
    let output = check(Command::new(alone("without")).arg("check"));
    let (out, _) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(out.contains("\nkernel ") && unwrapped(&out).contains("not found: the package"), "{out}");
}

#[test]
fn a_tool_installed_beside_it_is_found_and_a_failing_one_is_reported() {
    let _machine = beside_others();
    let program = alone("beside");
    let prefix = program.parent().unwrap().parent().unwrap();
    let installed = prefix.join("lib/tickcast/tuning/tickcast-tune");
    fs::create_dir_all(installed.parent().unwrap()).unwrap();
    // Exit status 1 without items: something could be set.
    fs::write(&installed, "#!/bin/sh\nexit 1\n").unwrap();
    // A tool that others can write to is not run.
    for path in installed.ancestors().take_while(|path| path.starts_with(prefix)) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = check(Command::new(&program).arg("check"));
    let (out, errors) = said(&output);
    assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{out}");
    assert!(!out.contains("tickcast-tune"), "{out}");

    fs::set_permissions(&installed, fs::Permissions::from_mode(0o777)).unwrap();
    let output = check(Command::new(&program).arg("check"));
    let (out, _) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(
        unwrapped(&out).contains("was not run because other users may write to it: pass --tune"),
        "{out}"
    );

    let output = check(Command::new(&program).args(["check", "--tune", "/bin/ls"]));
    let (out, _) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(unwrapped(&out).contains("/bin/ls: failed with exit status 2: "), "{out}");
}

#[test]
fn a_missing_requirement_is_named_and_sets_the_exit_status() {
    let _machine = beside_others();
    for (limit, missing) in [("ulimit -l 64", "RLIMIT_MEMLOCK"), ("ulimit -n 100", "RLIMIT_NOFILE")] {
        let script = format!("{limit} && exec \"$0\" check");
        let output = check(Command::new("sh").args(["-c", &script]).arg(alone("limits")));
        let (out, _) = said(&output);
        assert_eq!(output.status.code(), Some(1), "{limit}: {out}");
        let prefix = "tickcast serve cannot run on this machine; missing: ";
        let last = out.lines().find(|line| line.starts_with(prefix)).unwrap();
        assert!(last.contains(missing), "{limit}: {out}");
        let reason = out.split_once(&format!("\n{missing} ")).unwrap().1;
        let reason: Vec<&str> = reason.lines().skip(1).take_while(|line| line.starts_with(' ')).collect();
        let reason = reason.join(" ");
        assert!(reason.contains("limit too low") && reason.contains("ulimit"), "{limit}: {reason}");
    }
}

#[test]
fn a_configuration_is_graded_and_one_that_is_not_valid_sets_the_exit_status() {
    let _machine = beside_others();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("check-security.toml");
    let run = |config: &str, more: &[&str]| {
        fs::write(&file, config).unwrap();
        let output =
            check(tickcast().args(["check", "--tune"]).arg(tool()).arg("--config").arg(&file).args(more));
        (output.status.code(), unwrapped(&said(&output).0))
    };
    let open =
        "[server]\nallow_anonymous = true\n[[listener]]\nkind = \"native\"\naddress = \"0.0.0.0:9400\"\n";
    let (status, out) = run(open, &[]);
    assert_eq!(status, Some(0), "{out}");
    for part in
        ["native 0.0.0.0:9400 supported open to anyone [auth]", "2 items of ", "configuration enabled valid"]
    {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (status, out) = run(&open.replace("true", "false"), &["--json"]);
    assert_eq!(status, Some(1), "{out}");
    assert!(
        out.contains(r#"{"name":"configuration","required":true,"state":"supported","now":"1 error""#),
        "{out}"
    );
}

#[test]
fn usage_errors_exit_with_2() {
    let _machine = beside_others();
    for (arguments, part) in [
        (&["check", "--tune", "/nowhere/tool"][..], "--tune /nowhere/tool: No such file or directory"),
        (&["check", "--tune", "Cargo.toml"], "--tune Cargo.toml: not an executable file"),
        (&["check", "--jsno"], "'--jsno'"),
    ] {
        let output = check(tickcast().args(arguments));
        let (out, errors) = said(&output);
        assert_eq!((output.status.code(), &*out), (Some(2), ""), "{arguments:?}: {errors}");
        assert!(errors.contains(part), "{errors}");
    }
}
