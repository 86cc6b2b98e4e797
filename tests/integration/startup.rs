//! A server that cannot start prints the cause and the remedy in one line and exits with an error.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::harness::{
    ENVIRONMENT, FREE_PORTS, Log, Server, beside_others, tickcast, tickcast_without_privileges, wait_for_exit,
};

/// Runs a command to its end; returns exit code and standard error.
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    run_with_input(command, Stdio::null())
}

/// The same with a standard input.
pub fn run_with_input(command: &mut Command, input: Stdio) -> (Option<i32>, String) {
    let mut child = command.stdin(input).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::collect(child.stderr.take().unwrap());
    let code = wait_for_exit(&mut child);
    (code, log.whole())
}

fn serve(options: &[&str]) -> (Option<i32>, String) {
    let mut arguments = vec!["serve"];
    // Options given twice are refused, so a test's own address replaces the default.
    for address in ["--tcp", "--http", "--admin"].into_iter().filter(|address| !options.contains(address)) {
        arguments.extend([address, "127.0.0.1:0"]);
    }
    run(tickcast().args(arguments).args(options))
}

#[test]
fn startup_errors_are_one_line_with_the_remedy() {
    let _machine = beside_others();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    // 2: a restart would not help.
    for (wanted, options, parts) in [
        (1, &["--tcp", &taken][..], &[&*taken, "in use", "--tcp"][..]),
        (1, &["--http", &taken], &[&taken, "in use", "--http"]),
        (1, &["--tcp", "192.0.2.1:9400", "--allow-anonymous"], &["192.0.2.1:9400", "--tcp"]),
        (2, &["--tcp", "192.0.2.1:9400"], &["192.0.2.1:9400", "--tcp", "[auth]", "--allow-anonymous"]),
        (2, &["--tcp", &taken, "--http", &taken], &[&taken, "--http", "--tcp"]),
        (1, &["--admin", &taken], &[&taken, "in use", "--admin"]),
        (1, &["--admin", "192.0.2.1:9490", "--allow-anonymous"], &["192.0.2.1:9490", "--admin"]),
        (2, &["--admin", "192.0.2.1:9490"], &["192.0.2.1:9490", "--admin", "client_ca", "--allow-anonymous"]),
        (2, &["--http", &taken, "--admin", &taken], &[&taken, "--admin", "--http"]),
        (2, &["--cores", "4000"], &["--cores", "core 4000", "allowed", "taskset"]),
        (2, &["--cores", "one"], &["--cores", "one", "0,2-3"]),
        (1, &["--max-clients", "900000"], &["900000", "LimitNOFILE", "--max-clients"]),
        (2, &["--max-clients", "90000000"], &["--max-clients", "90000000", "at most 1048576"]),
        (2, &["--max-clients", "0"], &["--max-clients", "at least 1"]),
        (2, &["--shards", "0"], &["--shards", "1 to 128"]),
        (2, &["--shards", "129"], &["--shards", "1 to 128"]),
        (2, &["--accept-rate", "99999999"], &["--accept-rate", "at most 10000000"]),
        (2, &["--publish-rate", "99999999"], &["--publish-rate", "at most 10000000"]),
        (2, &["--frame-max", "10"], &["--frame-max", "10B", "1KiB"]),
        (2, &["--outbox-max", "10B"], &["--outbox-max", "--egress-log"]),
        (
            2,
            &["--egress-log", "10MiB", "--outbox-max", "11MiB"],
            &["--outbox-max", "11MiB", "10MiB (--egress-log)"],
        ),
        (2, &["--sim-size", "1"], &["--sim-size", "80B"]),
        (2, &["--sim-rate", "0"], &["--sim-rate", "at least 1"]),
        (2, &["--replay", "no/such/file"], &["--replay", "no/such/file", "no such file"]),
        (2, &["--speed", "2"], &["--speed", "no replay source", "--replay"]),
        (2, &["--replay-wait", "1"], &["--replay-wait", "no replay source", "--replay"]),
        (2, &["--ping-interval", "1ms"], &["--ping-interval", "1ms", "100ms"]),
    ] {
        let (code, text) = serve(options);
        assert_eq!(code, Some(wanted), "{options:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{options:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{options:?}: {part:?} is not in {text}");
        }
    }
}

#[test]
fn unparsable_options_are_refused_by_name() {
    let _machine = beside_others();
    for (options, part) in [
        (
            &["--tcp", "nonsense"][..],
            "'--tcp <ADDRESS>': not an address: write IP:PORT, localhost:PORT or unix:/path",
        ),
        (
            &["--http", "example.com:9480"],
            "'--http <ADDRESS>': not an IP address and a port: write 127.0.0.1:9480",
        ),
        (&["--shards", "many"], "'--shards <N>'"),
        (&["--frame-max", "-1"], "-1"),
        (&["--frame-max", "1XB"], "'--frame-max <SIZE>': unknown unit"),
        (
            &["--behind-time", "500"],
            "'--behind-time <TIME>': the unit is missing: write 500s, 500ms or 500us",
        ),
        (&["--replay", "Cargo.toml", "--speed", "0"], "'--speed <FACTOR>': must be a number above 0"),
        (
            &["--replay", "Cargo.toml", "--speed", "fast"],
            "'fast' for '--speed <FACTOR>': must be a number above 0, or max",
        ),
        (&["--identity-conflict", "both"], "'--identity-conflict"),
        (&["--replay-bad-lines", "mend", "--replay", "x"], "'--replay-bad-lines"),
        (&["--unknown"], "'--unknown'"),
    ] {
        let (code, text) = serve(options);
        assert_eq!(code, Some(2), "{options:?}: {text}");
        assert!(text.contains(part), "{options:?}: {text}");
    }
}

#[test]
fn a_configuration_is_checked_without_looking_at_the_machine() {
    let _machine = beside_others();
    for options in
        ["--check-config --cores 4000", "--print-config --cores 4000", "--check-config --max-clients 900000"]
    {
        let (code, text) = serve_limited("ulimit -n 64; ulimit -l 0", options);
        assert_eq!((code, &*text), (Some(0), ""), "{options}");
    }
    let (code, text) = serve_limited("ulimit -n 64", "--check-config --cores 1-");
    assert_eq!(code, Some(2));
    assert!(text.contains("must be auto, or numbers and ranges"), "{text}");
    Server::start(&["--cores", "auto"]).stop_cleanly();
}

#[test]
fn a_file_that_cannot_be_reached_is_not_called_missing() {
    let _machine = beside_others();
    // Permissions do not stop root, so the path leads through a file.
    let path = "Cargo.toml/x";
    for options in [&["--replay", path][..], &["--ecg", path], &["--config", path]] {
        let (code, text) = serve(&[options, &["--check-config"]].concat());
        assert_eq!(code, Some(2), "{options:?}");
        assert!(text.contains(path) && text.contains("Not a directory"), "{options:?}: {text}");
    }
    let (code, text) = serve(&["--tcp", "unix:/dev/null/x"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("unix:/dev/null/x") && text.contains("Not a directory"), "{text}");
}

#[test]
fn a_file_of_a_source_that_cannot_be_read_is_an_error_of_the_options() {
    let _machine = beside_others();
    let file = std::env::temp_dir().join(format!("tickcast-{}-unreadable.hea", std::process::id()));
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    let program = File::open(env!("CARGO_BIN_EXE_tickcast")).unwrap();
    for (path, reason) in [(&*file.to_string_lossy(), "Permission denied"), ("/no/such.hea", "o such file")] {
        for option in ["--replay", "--ecg"] {
            let serve = |check: Option<&str>| {
                let mut command = tickcast_without_privileges(64_003, &[], &program);
                command.arg("serve").args(FREE_PORTS).args([option, path]).args(check);
                run_with_input(&mut command, program.try_clone().unwrap().into())
            };
            let (code, text) = serve(Some("--check-config"));
            assert_eq!((code, text.lines().count()), (Some(2), 1), "{option}: {text}");
            assert!(text.contains(path) && text.contains(reason), "{option}: {text}");
            // Behind the time of the log's line.
            let said = |text: &str| text.split_once("] ").map(|(_, said)| said.to_owned());
            let (code_at_start, at_start) = serve(None);
            assert_eq!((code_at_start, said(&at_start)), (code, said(&text)), "as at the start");
            assert!(said(&text).is_some(), "{text}");
        }
    }
    fs::remove_file(file).unwrap();
}

#[test]
fn empty_environment_variables_count_as_not_set() {
    let _machine = beside_others();
    let empty = ENVIRONMENT.map(|name| (name, ""));
    let (code, text) = run(tickcast().envs(empty).args(["serve", "--check-config"]));
    assert_eq!((code, text.as_str()), (Some(0), ""));
    let stopped = Server::start_command(tickcast().envs(empty), &["--no-sim"]).stop_cleanly();
    // The default level, not that of an empty filter.
    assert!(stopped.log.contains("SIGTERM: stopping"), "{}", stopped.log);
    assert!(!stopped.log.contains("cannot notify"), "{}", stopped.log);
}

#[test]
fn localhost_is_an_address_to_listen_on() {
    let _machine = beside_others();
    let server = Server::start_on("localhost:0", &mut tickcast(), Stdio::null(), &["--no-sim"]);
    assert!(server.http.ip() == Ipv4Addr::LOCALHOST && server.http.port() != 0, "{}", server.http);
    server.stop_cleanly();
}

#[test]
fn a_second_server_on_the_same_ports_does_not_start() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    for (name, address) in
        [("--tcp", server.tcp), ("--http", server.http), ("--admin", server.admin.unwrap())]
    {
        let (code, text) = serve(&[name, &address.to_string()]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("in use") && text.contains(name), "{text}");
    }
    server.stop_cleanly();
}

/// Runs the server under limits set by a shell, soft and hard.
fn serve_limited(limits: &str, options: &str) -> (Option<i32>, String) {
    let ports = FREE_PORTS.join(" ");
    let script = format!("{limits} && exec \"$0\" serve {ports} {options}");
    run(Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_tickcast")]))
}

#[test]
fn process_limits_that_are_too_low_are_named_with_the_remedy() {
    let _machine = beside_others();
    for (limits, options, parts) in [
        ("ulimit -n 500", "--max-clients 1000", ["descriptor limit too low: 500", "LimitNOFILE", "1128"]),
        ("ulimit -n 100", "", ["descriptor limit too low: 100", "LimitNOFILE", "--max-clients"]),
        ("ulimit -n 1024", "--shards 128", ["descriptor limit too low: 1024", "LimitNOFILE", "1329"]),
        ("ulimit -l 64", "", ["memlock limit too low: 65536", "LimitMEMLOCK", "ulimit -l"]),
    ] {
        let (code, text) = serve_limited(limits, options);
        assert_eq!(code, Some(1), "{limits}: {text}");
        assert_eq!(text.lines().count(), 1, "{limits}: {text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{limits}: {text}");
    }
}
