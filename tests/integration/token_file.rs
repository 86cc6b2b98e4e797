//! `--token-file` of the client commands: a new token in the file reaches the server on the living connection.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{Server, beside_others, data, http::get, tickcast};

/// How long the tokens are valid.
const TTL: &str = "5s";
/// Time after which the test writes the next one.
const RENEWED_AFTER: Duration = Duration::from_secs(2);
/// Ticks per second of the simulator: the test's clock.
const RATE: u32 = 20;
/// Three times as long as a token is valid.
const TICKS: u32 = 15 * RATE;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("token-file-{name}"))
}

/// Puts a new token into the file, as a program that renews tokens does.
fn renew(file: &Path) {
    let key = data("auth/ed25519.pem");
    let mut command = tickcast();
    command.args([
        "token",
        "--sub",
        "alice",
        "--allow-sub",
        ">",
        "--allow-pub",
        "mine",
        "--ttl",
        TTL,
        "--key",
    ]);
    let output = command.arg(key).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let new = file.with_extension("new");
    fs::write(&new, output.stdout).unwrap();
    fs::rename(new, file).unwrap();
}

fn server(name: &str) -> Server {
    let config = format!(
        "[auth]\nleeway = \"0s\"\ngrace = \"3s\"\nwarning = \"2s\"\n[[auth.key]]\nalgorithm = \"EdDSA\"\nfile = {:?}\n",
        data("auth/ed25519.pub.pem")
    );
    let path = file(&format!("{name}.toml"));
    fs::write(&path, config).unwrap();
    let rate = RATE.to_string();
    let simulator = ["--sim-producers", "1", "--sim-rate", &rate, "--config", path.to_str().unwrap()];
    Server::start_logging("info", &[&["--shards", "1"], &simulator[..]].concat())
}

fn client(words: &[&str], server: &Server, token: &Path) -> Command {
    let mut command = tickcast();
    command.args(words).args(["--server", &server.tcp.to_string(), "--token-file"]).arg(token);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn new_tokens_in_the_file_keep_connections_alive_beyond_the_life_of_each() {
    let _machine = beside_others();
    let server = server("renewed");
    let token = file("renewed.token");
    renew(&token);
    let count = TICKS.to_string();
    let words = ["sub", "sim.0", "--json", "--policy", "keep", "--no-reconnect", "--count", &count];
    let mut sub = client(&words, &server, &token).spawn().unwrap();
    let mut publisher = client(&["pub", "mine", "-"], &server, &token).spawn().unwrap();
    let mut input = publisher.stdin.take().unwrap();
    let (mut renewed, mut last) = (Instant::now(), 0);
    for line in BufReader::new(sub.stdout.take().unwrap()).lines() {
        let tick: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let sequence = tick["seq"].as_u64().unwrap_or_else(|| panic!("{tick}"));
        assert!(last == 0 || sequence == last + 1, "{sequence} after {last}");
        last = sequence;
        if sequence.is_multiple_of(u64::from(RATE)) {
            writeln!(input, "{sequence}").unwrap();
        }
        if renewed.elapsed() > RENEWED_AFTER {
            renew(&token);
            renewed = Instant::now();
        }
    }
    drop(input);
    let (sub, publisher) = (sub.wait_with_output().unwrap(), publisher.wait_with_output().unwrap());
    for (name, output) in [("sub", &sub), ("pub", &publisher)] {
        assert!(output.status.success() && output.stderr.is_empty(), "{name}: {output:?}");
    }
    let metrics = get(server.admin.unwrap(), "/metrics").body;
    let accepted = "tickcast_auth_verifications_total{result=\"valid\"} ";
    let verified =
        metrics.lines().find_map(|line| line.strip_prefix(accepted)).unwrap_or_else(|| panic!("{metrics}"));
    assert!(verified.parse::<f64>().unwrap() > 8.0, "two clients, at least four tokens each: {verified}");
    server.stop_cleanly();
}

#[test]
fn a_token_that_nobody_renews_ends_the_connection() {
    let _machine = beside_others();
    let server = server("expired");
    let token = file("expired.token");
    renew(&token);
    let mut sub = client(&["sub", "sim.0", "--no-reconnect"], &server, &token).spawn().unwrap();
    // Its output ends with the connection.
    let mut ticks = Vec::new();
    sub.stdout.take().unwrap().read_to_end(&mut ticks).unwrap();
    assert!(!ticks.is_empty());
    let output = sub.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("expired"), "{text}");
    server.stop_cleanly();
}
