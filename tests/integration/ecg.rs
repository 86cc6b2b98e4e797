//! An ECG served by the real binary, its beats detected by the real processor and read by a subscriber.

use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use crate::harness::{
    FREE_PORTS, Log, Server, beside_others, collector::Collector, data, processes::end, tickcast,
    wait_for_exit,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tickcast_ecg::{annotation, info::Info};
use tickcast_proto::WireFormat;

/// A running `tickcast process ecg --json`, killed on drop.
struct Processor {
    child: Child,
    log: Log,
}

impl Processor {
    fn start(server: SocketAddr) -> Processor {
        let mut command = tickcast();
        command.args(["process", "ecg", "--json", "--server", &server.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let log = Log::collect(child.stdout.take().unwrap());
        Processor { child, log }
    }

    /// Sends SIGINT and returns its output.
    fn interrupt(mut self) -> Vec<Value> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(wait_for_exit(&mut self.child), Some(0), "{}", self.log.text());
        self.log.whole().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn of<'a>(lines: &'a [Value], op: &'a str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["op"] == op)
}

/// Ticks of a topic as JSON.
fn json(collector: &Collector, topic: &str) -> Vec<Value> {
    let ticks = collector.so_far().ticks.get(topic).cloned().unwrap_or_default();
    ticks.iter().map(|(_, payload)| serde_json::from_slice(payload).unwrap()).collect()
}

#[test]
fn beats_of_a_served_record_arrive_on_ecg_params() {
    let _machine = beside_others();
    let record = data("ecg/made.hea");
    let server = Server::start(&["--shards", "2", "--ecg", record.to_str().unwrap()]);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["ecg.*"]);
    let processor = Processor::start(server.tcp);
    collector.wait_until("five beats and a rate", |got| {
        let params = got.ticks.get("ecg.params");
        let count = |field: &[u8]| {
            let has = |payload: &[u8]| payload.windows(field.len()).any(|part| part == field);
            params.map_or(0, |ticks| ticks.iter().filter(|(_, payload)| has(payload)).count())
        };
        count(b"\"at_sample\"") >= 5 && count(b"\"bpm\":") >= 1
    });
    let info = json(&collector, "ecg.info");
    let info = Info::from_json(info[0].to_string().as_bytes()).unwrap();
    assert_eq!((&*info.units, info.batch), ("mV", 10));
    let waves = &collector.so_far().ticks["ecg.wave"];
    let is_wave = |payload: &[u8]| {
        let (samples, rest) = payload.as_chunks::<4>();
        samples.len() == 10
            && rest.is_empty()
            && samples.iter().all(|sample| f32::from_le_bytes(*sample).abs() < 10.0)
    };
    assert!(waves.iter().all(|(_, payload)| is_wave(payload)));

    let params = json(&collector, "ecg.params");
    let beats: Vec<&Value> = params.iter().filter(|tick| tick["at_sample"].is_u64()).collect();
    let at: Vec<u64> = beats.iter().map(|beat| beat["at_sample"].as_u64().unwrap()).collect();
    for (beat, &at_sample) in beats.iter().zip(&at) {
        assert_eq!(beat["time_ns"], info.time_ns(at_sample));
    }
    for (pair, beat) in at.windows(2).zip(&beats[1..]) {
        let rr_ms = (pair[1] - pair[0]) as f64 * 1e3 / info.fs;
        assert!((beat["rr_ms"].as_f64().unwrap() - rr_ms).abs() < 0.1, "{beat}");
    }
    let bpm = params.iter().find_map(|tick| tick["bpm"].as_f64()).unwrap();
    assert!((60.0..90.0).contains(&bpm), "{bpm}");
    let annotations = annotation::load(&record.with_extension("atr")).unwrap().all;
    let is_annotated = |at: &u64| annotations.iter().any(|a| a.is_beat() && a.at.abs_diff(*at) <= 10);
    assert!(at.iter().all(is_annotated), "not an annotated beat: {at:?}");

    let said = processor.interrupt();
    assert_eq!(of(&said, "wave").count(), 1);
    assert_eq!(of(&said, "gap").count() + of(&said, "bad").count(), 0, "{said:?}");
    assert!(of(&said, "beat").count() >= beats.len());
    drop(collector);
    server.stop_cleanly();
}

/// A proxy in front of a server, whose connections can be cut.
struct Way {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    fn to(server: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = Way { address: listener.local_addr().unwrap(), open: Arc::default() };
        let open = way.open.clone();
        // Runs until the test process ends.
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, Ok(far)) = (near.unwrap(), TcpStream::connect(server)) else { return };
                let clone = |stream: &TcpStream| stream.try_clone().unwrap();
                open.lock().unwrap().extend([clone(&near), clone(&far)]);
                for (mut from, mut to) in [(clone(&near), clone(&far)), (far, near)] {
                    thread::spawn(move || io::copy(&mut from, &mut to));
                }
            }
        });
        way
    }

    fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

#[test]
fn a_processor_reconnects_after_a_cut_and_misses_no_sample() {
    let _machine = beside_others();
    let server = Server::start(&["--ecg", "synthetic", "--ecg-bpm", "200"]);
    let way = Way::to(server.tcp);
    let processor = Processor::start(way.address);
    processor.log.wait_for("\"op\":\"beat\"");
    way.cut();
    processor.log.wait_for("\"op\":\"reconnected\"");
    let beats = |text: &str| text.matches("\"op\":\"beat\"").count();
    let before = beats(&processor.log.text());
    crate::harness::eventually("beats after the cut", || beats(&processor.log.text()) >= before + 5);
    let said = processor.interrupt();
    assert_eq!(of(&said, "disconnected").count(), 1, "{said:?}");
    assert_eq!(of(&said, "gap").count() + of(&said, "lost").count(), 0, "{said:?}");
    // Nothing was missed: every beat but the first has an interval to the one before.
    assert_eq!(of(&said, "beat").filter(|beat| beat["rr_ms"].is_null()).count(), 1, "{said:?}");
    server.stop_cleanly();
}

/// Exit code and standard error.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::collect(child.stderr.take().unwrap());
    (wait_for_exit(&mut child), log.whole())
}

#[test]
fn an_unreadable_record_fails_the_start_with_file_line_and_remedy() {
    let _machine = beside_others();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ecg");
    fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    write("short.dat", "abc");
    let malformed = write("malformed.hea", "# comment\nmalformed 1 fast\n");
    let short = write("short.hea", "short 1 360 9\nshort.dat 16\n");
    for (file, parts) in [
        ("no/such.hea", &["no/such.hea", "No such file"][..]),
        (&*malformed, &["malformed.hea line 2", "\"fast\"", "360"]),
        (&*short, &["short.dat", "ends at sample 1 of the 9", "download the complete file"]),
        (folder.to_str().unwrap(), &["not a regular file"]),
    ] {
        let (code, text) = run(tickcast().arg("serve").args(FREE_PORTS).args(["--ecg", file]));
        assert!(text.contains("--ecg: ") && text.contains("or synthetic"), "{file}: {text}");
        let batch = run(tickcast().args(["process", "ecg", "--file", file]));
        for (wanted, (code, text)) in [(2, (code, text)), (1, batch)] {
            assert_eq!(code, Some(wanted), "{file}: {text}");
            assert_eq!(text.lines().count(), 1, "{file}: {text}");
            assert!(parts.iter().all(|part| text.contains(part)), "{file}: {text}");
        }
    }
}
