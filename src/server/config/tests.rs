use std::ffi::OsString;

use super::*;

fn settings(options: &str) -> Settings {
    let words = ["tickcast", "serve"].into_iter().chain(options.split_whitespace());
    Settings::read(&words.map(OsString::from).collect::<Vec<_>>()).unwrap()
}

fn four_cores() -> Cores {
    Cores { allowed: vec![0, 1, 2, 3], quota: None }
}

fn config(options: &str) -> Result<Config, StartupError> {
    Config::new(&settings(options), Some(&four_cores()))
}

/// The names in the errors.
fn refused(config: Result<Config, StartupError>) -> Vec<String> {
    match config {
        Err(StartupError::Configuration(problems)) => {
            problems.into_iter().map(|problem| problem.named).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults_serve_the_simulator_on_every_core() {
    let config = config("").unwrap();
    assert_eq!((config.shards, config.cores.as_slice()), (4, &[0, 1, 2, 3][..]));
    assert!(matches!(&config.sources[..], [source] if source.kind().name == "simulator"));
    assert!(config.mesh_ring_bytes >= 2 * config.limits.frame_bytes_max);
    let listeners: Vec<String> =
        config.listeners.iter().map(|listener| format!("{} {}", listener.named, listener.address)).collect();
    assert_eq!(listeners, ["--tcp 127.0.0.1:9400", "--http 127.0.0.1:9480", "--admin 127.0.0.1:9490"]);
}

#[test]
fn defaults_are_those_of_the_core() {
    assert_eq!(config("").unwrap().limits, Limits::default());
}

#[test]
fn what_changes_while_it_runs_is_checked_like_the_rest_but_no_record_is_read() {
    let reload = |options| Config::without_sources(&settings(options), Some(&four_cores()));
    for bad in ["--sim-size 1", "--replay /missing", "--ecg /missing.hea", "--ecg synthetic --ecg-batch 0"] {
        assert_eq!(refused(reload(bad)).len(), 1, "{bad}");
    }
    // Not the header of a record: only the next start would report it.
    assert!(reload("--ecg Cargo.toml").unwrap().sources.is_empty());
    assert_eq!(refused(config("--ecg Cargo.toml")), ["--ecg"]);
}

#[test]
fn cores_are_lists_and_ranges_of_allowed_ones() {
    assert_eq!(config("--cores 3,0-1").unwrap().cores, [3, 0, 1]);
    assert_eq!(config("--cores 0-2,1").unwrap().cores, [0, 1, 2]);
    for bad in ["x", "2-1", "", "0,,1", "0-99999999"] {
        assert_eq!(refused(config(&format!("--cores={bad}"))), ["--cores"], "{bad}");
    }
    assert!(config("--cores 7").unwrap_err().to_string().contains("core 7; allowed: [0, 1, 2, 3]"));
}

#[test]
fn a_ping_interval_of_0_is_none() {
    assert_eq!(config("--ping-interval 0").unwrap().limits.ping_interval_ns, u64::MAX);
    assert_eq!(config("--ping-interval 100ms").unwrap().limits.ping_interval_ns, 100_000_000);
}

#[test]
fn old_names_keep_their_units() {
    let old = config(
        "--latency-budget-us 1000 --behind-ms 7 --outbox-bytes-max 1048576 --ping-interval-ms=200 --history 9:100:5",
    );
    let new = config(
        "--latency-budget 1ms --behind-time 7ms --outbox-max 1MiB --ping-interval 200ms --history 9:100B:5ms",
    );
    assert_eq!(old.unwrap(), new.unwrap());
}

#[test]
fn sources_are_what_was_asked_for() {
    let kinds = |options: &str| -> Vec<&'static str> {
        let sources = config(options).unwrap().sources;
        sources.iter().map(|source| source.kind().name).collect()
    };
    assert_eq!(kinds("--no-sim --sim-rate 7"), Vec::<&str>::new());
    assert_eq!(kinds("--replay Cargo.toml"), ["replay"]);
    assert_eq!(kinds("--replay Cargo.toml --sim-rate 7"), ["replay", "simulator"]);
    assert_eq!(kinds("--ecg synthetic"), ["simulator", "ecg"]);
    assert_eq!(kinds("--ecg synthetic --no-sim"), ["ecg"]);
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    for (options, name) in [
        ("--shards 0", "--shards"),
        ("--shards 500", "--shards"),
        ("--frame-max 10", "--frame-max"),
        ("--outbox-max 100", "--outbox-max"),
        ("--frame-max 1KiB --outbox-max 32KiB", "--outbox-max"),
        ("--egress-log 9MiB --outbox-max 10MiB", "--outbox-max"),
        ("--ping-interval 99ms", "--ping-interval"),
        ("--ping-interval 86400001ms", "--ping-interval"),
        ("--ping-timeout 0", "--ping-timeout"),
        ("--reconnect-spread 365d", "--reconnect-spread"),
        ("--sim-size 10", "--sim-size"),
        ("--sim-rate 0", "--sim-rate"),
        ("--replay /nonexistent", "--replay"),
        ("--replay /dev/null", "--replay"),
        ("--speed 2", "--speed"),
        ("--replay-wait 1", "--replay-wait"),
        ("--ecg /nonexistent.hea", "--ecg"),
        ("--ecg /dev/zero", "--ecg"),
        ("--ecg synthetic --ecg-batch 0", "--ecg-batch"),
        ("--ecg synthetic --ecg-batch 300 --frame-max 1024", "--ecg-batch"),
        ("--ecg synthetic --ecg-bpm 19", "--ecg-bpm"),
        ("--ecg synthetic --ecg-bpm NaN", "--ecg-bpm"),
        ("--ecg synthetic --ecg-signal 1", "--ecg-signal"),
        ("--ecg-batch 5", "--ecg-batch"),
        ("--max-clients 0", "--max-clients"),
        ("--behind-size 0", "--behind-size"),
        ("--behind-size 99999999", "--behind-size"),
        ("--policy never", "--policy"),
        ("--latency-budget 60001ms", "--latency-budget"),
        ("--latency-budget auto:60001ms", "--latency-budget"),
        ("--spin 1000001us", "--spin"),
        ("--history 1:2:3:4", "--history"),
        ("--keys-per-topic-max 0", "--keys-per-topic-max"),
        ("--socket-send-buffer 1", "--socket-send-buffer"),
        ("--notsent-lowat 4GiB", "--notsent-lowat"),
        ("--accept-rate 10000001", "--accept-rate"),
        ("--publish-rate 4000000000", "--publish-rate"),
        ("--sim-topics 3 --sim-producers 2", "--sim-topics"),
        ("--tcp 127.0.0.1:9480", "--http"),
        ("--admin 127.0.0.1:9480", "--admin"),
        ("--tcp 127.0.0.1:9490", "--admin"),
        ("--tcp unix:/run/x.sock --http unix:/run/x.sock", "--http"),
    ] {
        let mut names = refused(config(options));
        names.dedup();
        assert_eq!(names, [name], "{options}");
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let names = refused(config("--shards 0 --sim-rate 0 --policy never --policy ever --ping-timeout 1ms"));
    assert_eq!(names, ["--shards", "--ping-timeout", "--policy", "--policy", "--sim-rate"]);
    assert_eq!(refused(config("--ecg /nonexistent.hea --ecg-bpm 60")), ["--ecg-bpm", "--ecg"]);
}
