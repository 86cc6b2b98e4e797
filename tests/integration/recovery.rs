//! Clients that are killed and restarted: they get each missed tick exactly once, or an announcement that it is lost.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
};

use crate::harness::{
    Server, beside_others,
    collector::{Collector, barrier, connect, publish},
    eventually, market_capture,
    processes::end,
    tickcast,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tickcast_proto::WireFormat;

const KILLS: usize = 50;
const PATTERN: &str = "market.>";

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

/// A subscriber that is killed and restarted with the same file.
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

    /// Waits until the file has this many lines, then kills the process wherever it is.
    fn kill_at(&mut self, lines: usize) {
        eventually("lines before a kill", || self.lines() >= lines);
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

/// Topic and payload of each line, and each topic's payloads in order.
type Capture = (Vec<(String, String)>, BTreeMap<String, Vec<String>>);

/// The capture's ticks in order, and its payloads by topic.
fn capture() -> Capture {
    let (mut ticks, mut by_topic) = (Vec::new(), BTreeMap::<String, Vec<String>>::new());
    for line in fs::read_to_string(market_capture()).unwrap().lines() {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        let payload = line.data.unwrap().get().to_owned();
        by_topic.entry(line.topic.clone()).or_default().push(payload.clone());
        ticks.push((line.topic, payload));
    }
    (ticks, by_topic)
}

/// Publishes the capture on a thread of its own, as far as the test allows: clients are killed while ticks flow, and ticks
/// remain for every kill, however slow the machine is.
struct Publisher {
    allow: mpsc::Sender<usize>,
}

impl Publisher {
    fn start(server: &Server, ticks: Vec<(String, String)>) -> Publisher {
        let (allow, allowed) = mpsc::channel();
        let mut client = connect(server, WireFormat::WEBSOCKET_JSON);
        thread::spawn(move || {
            let mut ticks = ticks.iter();
            for count in allowed {
                for (topic, payload) in ticks.by_ref().take(count) {
                    publish(&mut client, topic, payload.as_bytes());
                    client.flush().unwrap();
                }
                barrier(&mut client);
            }
        });
        Publisher { allow }
    }

    /// Allows this many more ticks.
    fn allow(&self, ticks: usize) {
        self.allow.send(ticks).unwrap();
    }
}

fn serve(history: &str) -> Server {
    // The publisher does not answer pings while it waits.
    Server::start(&["--shards", "4", "--history", history, "--ping-interval", "0"])
}

/// Asserts that the text has every tick of the capture once, in order, and nothing else.
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
fn a_client_killed_fifty_times_has_every_tick_exactly_once() {
    let _machine = beside_others();
    let (ticks, truth) = capture();
    let (total, round) = (ticks.len(), ticks.len() / KILLS);
    let server = serve("20000:4194304:0");
    let witness = Collector::start(&server, WireFormat::TCP_NATIVE, &[PATTERN]);
    let publisher = Publisher::start(&server, ticks);
    let mut subscribers = [
        Subscriber::start(server.tcp.to_string(), file("killed-native")),
        Subscriber::start(format!("ws://{}/ws", server.http), file("killed-json")),
    ];
    let mut random = fastrand::Rng::with_seed(50);
    for kill in 0..KILLS {
        publisher.allow(round);
        for subscriber in &mut subscribers {
            subscriber.kill_at(kill * round + random.usize(1..=round));
        }
        if kill % 10 == 0 {
            // Restarted only when all allowed ticks are published: the whole round comes from the history.
            witness.wait_for((kill + 1) * round);
        }
        subscribers.iter_mut().for_each(Subscriber::start_again);
    }
    publisher.allow(total);
    witness.wait_for(total);
    for subscriber in &mut subscribers {
        eventually("every tick in the file", || subscriber.lines() >= total);
        end(&mut subscriber.child);
        assert_whole(&fs::read_to_string(&subscriber.file).unwrap(), &truth);
    }
    println!("{KILLS} kills each, native and JSON: {total} ticks, each exactly once");
    witness.finish();
    drop(publisher);
    server.stop_cleanly();
}

#[test]
fn a_client_that_missed_more_than_the_history_learns_what_it_lost() {
    const ABSENCES: usize = 5;
    const BEFORE_EACH: usize = 100;
    let _machine = beside_others();
    let (ticks, truth) = capture();
    let (total, round) = (ticks.len(), ticks.len() / ABSENCES);
    let server = serve("3");
    let witness = Collector::start(&server, WireFormat::TCP_NATIVE, &[PATTERN]);
    let publisher = Publisher::start(&server, ticks);
    let mut subscriber = Subscriber::start(server.tcp.to_string(), file("short"));
    // Ticks and gaps of each topic together leave no hole.
    let account = |text: &str| {
        let (mut next, mut lost, mut not_recovered) = (BTreeMap::<String, u64>::new(), 0, 0);
        for line in text.lines() {
            let line: Line<'_> = serde_json::from_str(line).unwrap();
            let at = next.entry(line.topic.clone()).or_insert(1);
            match line.op.as_deref() {
                None => {
                    assert_eq!(line.seq, *at, "{}: delivered or announced", line.topic);
                    let truth = &truth[&line.topic][line.seq as usize - 1];
                    assert_eq!(line.data.unwrap().get(), truth);
                    *at += 1;
                }
                Some("gap") => {
                    assert_eq!(line.from, *at, "{}: delivered or announced", line.topic);
                    (*at, lost) = (line.to, lost + line.to - line.from);
                }
                Some("recovered") => not_recovered += u32::from(!line.recovered),
                Some(op) => panic!("{op}: {}", line.topic),
            }
        }
        let accounted: u64 = next.values().map(|next| next - 1).sum();
        (accounted, lost, not_recovered)
    };
    let account_of = |subscriber: &Subscriber| {
        let text = fs::read_to_string(&subscriber.file).unwrap_or_default();
        account(&text[..text.rfind('\n').map_or(0, |end| end + 1)])
    };
    for absence in 0..ABSENCES {
        let published = absence * round + BEFORE_EACH;
        publisher.allow(BEFORE_EACH);
        eventually("every tick before a kill", || account_of(&subscriber).0 >= published as u64);
        end(&mut subscriber.child);
        // Away for longer than three ticks per topic cover.
        publisher.allow(round - BEFORE_EACH);
        witness.wait_for((absence + 1) * round);
        subscriber.start_again();
    }
    eventually("every tick delivered or announced as lost", || account_of(&subscriber).0 >= total as u64);
    let (accounted, lost, not_recovered) = account_of(&subscriber);
    assert_eq!(accounted, total as u64);
    assert!(lost > 100 && not_recovered > 10, "{lost} lost, {not_recovered} topics not recovered");
    println!("{total} ticks: {lost} announced as lost, {not_recovered} times recovered:false");
    witness.finish();
    drop(publisher);
    server.stop_cleanly();
}
