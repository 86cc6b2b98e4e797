//! Clients that are killed and come back: what they missed is given exactly once, or said to be lost.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use crate::harness::{
    Server, beside_others, collector::Collector, eventually, market_capture, processes::end, tickcast,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tickcast_proto::Encoding;

const KILLS: usize = 50;
const PATTERN: &str = "coinbase.>";

/// A line of the capture, or of what `tickcast sub --append` wrote.
#[derive(Deserialize)]
struct Line<'a> {
    op: Option<String>,
    #[serde(default)]
    topic: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    from: u64,
    #[serde(default)]
    to: u64,
    #[serde(default)]
    recovered: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// A subscriber that is killed and started again with the same file.
struct Subscriber {
    child: Child,
    file: PathBuf,
    address: String,
}

impl Subscriber {
    fn start(address: String, file: PathBuf) -> Subscriber {
        Subscriber { child: spawn(&address, &file), file, address }
    }

    fn lines(&self) -> usize {
        fs::read(&self.file).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count()
    }

    /// Waits for so many more lines; then kills it wherever it is.
    fn kill_after(&mut self, lines: usize, what: &str) {
        let before = self.lines();
        eventually(what, || self.lines() >= before + lines);
        end(&mut self.child);
    }

    fn start_again(&mut self) {
        self.child = spawn(&self.address, &self.file);
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        end(&mut self.child);
        let _ = fs::remove_file(&self.file);
    }
}

fn spawn(address: &str, file: &Path) -> Child {
    let mut command = tickcast();
    command.args(["sub", PATTERN, "--from", "beginning", "--policy", "disconnect", "--server", address]);
    command.arg("--append").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn file(name: &str) -> PathBuf {
    let file = std::env::temp_dir().join(format!("tickcast-{name}-{}.ndjson", std::process::id()));
    let _ = fs::remove_file(&file);
    file
}

/// The capture's payloads, by topic.
fn capture() -> Option<(PathBuf, BTreeMap<String, Vec<String>>)> {
    let capture = market_capture()?;
    let mut ticks = BTreeMap::<String, Vec<String>>::new();
    for line in fs::read_to_string(&capture).unwrap().lines() {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        ticks.entry(line.topic).or_default().push(line.data.unwrap().get().to_owned());
    }
    Some((capture, ticks))
}

fn serve(capture: &Path, history: &str, clients: usize) -> Server {
    let clients = clients.to_string();
    let file = capture.to_str().unwrap();
    // Four times the capture's pace: eight seconds.
    Server::start(&[
        "--shards",
        "4",
        "--replay",
        file,
        "--speed",
        "4",
        "--replay-wait",
        &clients,
        "--history",
        history,
    ])
}

/// Every tick of the capture, once, in order, and nothing else.
fn assert_whole(text: &str, truth: &BTreeMap<String, Vec<String>>) {
    let mut next = BTreeMap::<String, usize>::new();
    for line in text.lines() {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        assert_eq!(line.op, None, "{}", line.topic);
        let at = next.entry(line.topic.clone()).or_default();
        assert_eq!(line.seq as usize, *at + 1, "{}: exactly once, in order", line.topic);
        assert_eq!(line.data.unwrap().get(), truth[&line.topic][*at], "{} {}", line.topic, line.seq);
        *at += 1;
    }
    assert!(truth.iter().all(|(topic, ticks)| next.get(topic) == Some(&ticks.len())));
}

#[test]
fn a_client_killed_fifty_times_during_a_replay_has_every_tick_exactly_once() {
    let _machine = beside_others();
    let Some((capture, truth)) = capture() else { return };
    let total: usize = truth.values().map(Vec::len).sum();
    let server = serve(&capture, "20000:4194304:0", 3);
    // The replay waits for three: those that are killed, and one that sees when it is over.
    let witness = Collector::start(&server, Encoding::Native, &[PATTERN]);
    let mut subscribers = [
        Subscriber::start(server.tcp.to_string(), file("killed-native")),
        Subscriber::start(format!("ws://{}/ws", server.http), file("killed-json")),
    ];
    let mut random = fastrand::Rng::with_seed(50);
    for kill in 0..KILLS {
        for subscriber in &mut subscribers {
            subscriber.kill_after(random.usize(1..150), "lines before a kill");
        }
        if kill % 10 == 0 {
            thread::sleep(Duration::from_millis(random.u64(1..300)));
        }
        subscribers.iter_mut().for_each(Subscriber::start_again);
    }
    witness.wait_for(total);
    for subscriber in &mut subscribers {
        eventually("every tick in the file", || subscriber.lines() >= total);
        end(&mut subscriber.child);
        assert_whole(&fs::read_to_string(&subscriber.file).unwrap(), &truth);
    }
    println!("{KILLS} kills each, native and JSON: {total} ticks, each exactly once");
    witness.finish();
    server.stop_cleanly();
}

#[test]
fn a_client_whose_history_is_too_short_is_told_what_it_lost() {
    let _machine = beside_others();
    let Some((capture, truth)) = capture() else { return };
    let total: usize = truth.values().map(Vec::len).sum();
    let server = serve(&capture, "3", 2);
    let witness = Collector::start(&server, Encoding::Native, &[PATTERN]);
    let mut subscriber = Subscriber::start(server.tcp.to_string(), file("short"));
    for absence in 1..=5 {
        subscriber.kill_after(100, "lines before a kill");
        // Away for so long that three ticks a topic are not enough.
        let seen = witness.so_far().count;
        witness.wait_until("ticks while the client is away", |got| got.count >= (seen + 600).min(total));
        subscriber.start_again();
        if absence == 5 {
            witness.wait_for(total);
        }
    }
    // Every topic's stream is told to its end: ticks and lost ranges leave no hole.
    let account = |text: &str| {
        let (mut next, mut lost, mut not_recovered) = (BTreeMap::<String, u64>::new(), 0, 0);
        for line in text.lines() {
            let line: Line<'_> = serde_json::from_str(line).unwrap();
            let at = next.entry(line.topic.clone()).or_insert(1);
            match line.op.as_deref() {
                None => {
                    assert_eq!(line.seq, *at, "{}: delivered or told", line.topic);
                    let truth = &truth[&line.topic][line.seq as usize - 1];
                    assert_eq!(line.data.unwrap().get(), truth);
                    *at += 1;
                }
                Some("gap") => {
                    assert_eq!(line.from, *at, "{}: delivered or told", line.topic);
                    (*at, lost) = (line.to, lost + line.to - line.from);
                }
                Some("recovered") => not_recovered += u32::from(!line.recovered),
                Some(op) => panic!("{op}: {}", line.topic),
            }
        }
        let accounted: u64 = next.values().map(|next| next - 1).sum();
        (accounted, lost, not_recovered)
    };
    let told = || {
        let text = fs::read_to_string(&subscriber.file).unwrap();
        account(&text[..text.rfind('\n').map_or(0, |end| end + 1)])
    };
    eventually("every tick delivered or told as lost", || told().0 >= total as u64);
    let (accounted, lost, not_recovered) = told();
    assert_eq!(accounted, total as u64);
    assert!(lost > 100 && not_recovered > 10, "{lost} lost, {not_recovered} topics not recovered");
    println!("{total} ticks: {lost} told as lost, {not_recovered} times recovered:false");
    witness.finish();
    server.stop_cleanly();
}
