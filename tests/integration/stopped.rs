//! Half of a thousand clients are suspended for seconds: the others lose nothing, and the suspended ones account for every
//! tick as delivered, conflated or an announced gap.
//!
//! Each half is a process of its own, this test program started again, so that one signal suspends all of it.

use std::{
    env,
    io::{BufRead, Read, Write, stdin, stdout},
    net::SocketAddr,
    os::fd::AsFd,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{
    GUARD, Log, Server,
    account::{Account, Subscriber},
    alone,
    collector::{barrier, connect, publish},
    frames::{CONFLATE, DROP, Options},
    processes::{self, raise_descriptor_limit, resume, suspend},
    raw::Peer,
    say, wait_for_exit,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use tickcast_proto::WireFormat;

/// Environment variable that makes this program one half: native and HTTP address, number of clients, small receive windows.
const CLIENTS: &str = "TICKCAST_TEST_CLIENTS";
/// The test below, which runs as one half if the variable is set.
const HALF_TEST: &str = "stopped::half_of_a_thousand_clients_stopped_for_seconds_costs_the_others_nothing";
const HALF: usize = 500;
const TOPICS: u64 = 8;
/// Ticks per topic published before the test waits for the running half: fewer than a socket holds, so that it never falls
/// behind, however busy the machine is.
const BATCH: u64 = 4;
const PAYLOAD: [u8; 200] = [b'7'; 200];
const STOPPED_FOR: Duration = Duration::from_millis(2_500);
/// Minimum number of batches published meanwhile, however slow the machine is: 200 KB per client.
const BATCHES_WHILE_STOPPED: u64 = 25;
const BATCHES_BEFORE_AND_AFTER: u64 = 3;

/// One half, in its process.
struct Half {
    child: Child,
    commands: ChildStdin,
    out: Log,
    errors: Log,
}

impl Half {
    fn start(server: &Server, small_windows: bool) -> Half {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", HALF_TEST, "--nocapture", "--quiet"])
            .env(CLIENTS, format!("{} {} {HALF} {small_windows}", server.tcp, server.http))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let (out, errors) =
            (Log::collect(child.stdout.take().unwrap()), Log::collect(child.stderr.take().unwrap()));
        Half { child, commands, out, errors }
    }

    /// Waits until each of its clients accounts for this many ticks.
    fn wait_until_all_have(&self, ticks: u64) {
        self.out.wait_for(&format!("all have {ticks}\n"));
    }

    /// Sends it the number of ticks published per topic; returns its report.
    fn finish(mut self, published: u64) -> Value {
        writeln!(self.commands, "{published}").unwrap();
        self.commands.flush().unwrap();
        let code = wait_for_exit(&mut self.child);
        assert_eq!(code, Some(0), "{}\n{}", self.errors.text(), self.out.text());
        let out = self.out.whole();
        let report = out.lines().find_map(|line| line.strip_prefix("report ")).unwrap();
        serde_json::from_str(report).unwrap()
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        processes::end(&mut self.child);
        if std::thread::panicking() {
            eprintln!("a half: {}", self.errors.text());
        }
    }
}

#[test]
fn half_of_a_thousand_clients_stopped_for_seconds_costs_the_others_nothing() {
    if let Ok(settings) = env::var(CLIENTS) {
        return be_one_half(&settings);
    }
    let _machine = alone();
    let options = [
        &["--no-sim", "--ping-interval", "0", "--shards", "2"][..],
        &["--behind-size", "16KiB", "--socket-send-buffer", "8KiB"],
    ];
    let server = Server::start_logging("info", &options.concat());
    let (running, stopped) = (Half::start(&server, false), Half::start(&server, true));
    for half in [&running, &stopped] {
        half.out.wait_for("subscribed\n");
    }
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let mut published = 0;
    let mut publish_batch = || {
        for _ in 0..BATCH {
            for topic in 0..TOPICS {
                publish(&mut publisher, &format!("stop.{topic}"), &PAYLOAD);
            }
        }
        barrier(&mut publisher);
        published += BATCH;
        running.wait_until_all_have(published * TOPICS);
        published
    };
    for _ in 0..BATCHES_BEFORE_AND_AFTER {
        publish_batch();
    }
    suspend(stopped.child.id());
    let (since, mut batches) = (Instant::now(), 0);
    while since.elapsed() < STOPPED_FOR || batches < BATCHES_WHILE_STOPPED {
        publish_batch();
        batches += 1;
    }
    let rss_bytes = server.rss_bytes();
    resume(stopped.child.id());
    for _ in 1..BATCHES_BEFORE_AND_AFTER {
        publish_batch();
    }
    let published = publish_batch();
    drop(publisher);
    let [running, stopped] = [running, stopped].map(|half| half.finish(published));
    let all = HALF as u64 * published * TOPICS;
    say(&format!(
        "{HALF} running clients: {running}; {HALF} stopped ones, {batches} batches of {} ticks meanwhile: {stopped}; \
         RSS {} KiB",
        BATCH * TOPICS,
        rss_bytes >> 10
    ));
    assert_eq!(running, json!({"delivered": all, "conflated": 0, "dropped": 0, "snapshots": 0}));
    let of = |what: &str| stopped[what].as_u64().unwrap();
    assert_eq!(of("delivered") + of("conflated") + of("dropped"), all);
    assert!(
        of("conflated") > all / 20 && of("dropped") > all / 20,
        "the suspension had an effect: {stopped}"
    );
    let ended = server.stop_cleanly();
    assert_eq!(ended.total("closed_slow_consumer"), 0);
    assert_eq!(
        (ended.total("ticks_conflated"), ended.total("ticks_dropped")),
        (of("conflated"), of("dropped"))
    );
}

/// The program of a [`Half`].
fn be_one_half(settings: &str) {
    let [tcp, http, count, small_windows] = settings.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{settings:?}");
    };
    let (tcp, http): (SocketAddr, SocketAddr) = (tcp.parse().unwrap(), http.parse().unwrap());
    raise_descriptor_limit();
    // JSON and native alternate; of each encoding, conflating and dropping clients alternate.
    let connect = |number: usize| {
        let (native, policy) = (number % 2 == 1, [CONFLATE, DROP][number / 2 % 2]);
        let address = if native { tcp } else { http };
        let peer = match small_windows {
            "true" => Peer::connect_with_small_window(address),
            _ => Peer::connect(address),
        };
        let mut client = match native {
            true => Subscriber::native(peer, Account::from_start()),
            false => Subscriber::json(peer, Account::from_start()),
        };
        client.subscribe("stop.*", Options { policy, ..Options::default() });
        client.peer.stream.set_nonblocking(true).unwrap();
        client
    };
    let mut clients: Vec<Subscriber> = (0..count.parse().unwrap()).map(connect).collect();
    tell("subscribed");
    let published = read_on(&mut clients);
    for client in &clients {
        assert_eq!(client.account.topics.len() as u64, TOPICS);
        client.account.topics.keys().for_each(|topic| client.account.assert_whole(topic, published));
    }
    let sum = |of: fn(&Account) -> u64| clients.iter().map(|client| of(&client.account)).sum::<u64>();
    let snapshots = |account: &Account| account.topics.values().map(|t| t.snapshot.len() as u64).sum();
    let report = json!({
        "delivered": sum(Account::delivered),
        "conflated": sum(Account::conflated_ticks),
        "dropped": sum(Account::dropped_ticks),
        "snapshots": sum(snapshots),
    });
    tell(&format!("report {report}"));
}

fn tell(line: &str) {
    // On a line of its own, whatever the test runner has begun to print.
    println!("\n{line}");
    stdout().flush().unwrap();
}

/// Reads and reports progress until the parent has sent the number of ticks and every client accounts for them.
fn read_on(clients: &mut [Subscriber]) -> u64 {
    let (mut reported, mut published) = (0, None);
    let mut progress = Instant::now();
    loop {
        let all_have = clients.iter().map(|client| client.account.reached()).min().unwrap();
        if all_have > reported {
            (reported, progress) = (all_have, Instant::now());
            tell(&format!("all have {reported}"));
        }
        if let Some(published) = published
            && reported == published * TOPICS
        {
            return published;
        }
        assert!(progress.elapsed() < GUARD, "only {reported} ticks reached every client");
        let ready: Vec<bool> = {
            let input = stdin();
            let mut polled = vec![PollFd::new(input.as_fd(), PollFlags::POLLIN)];
            let sockets = clients.iter().map(|client| client.peer.stream.as_fd());
            polled.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
            poll(&mut polled, PollTimeout::from(1_000u16)).unwrap();
            polled.iter().map(|fd| fd.any().unwrap_or_default()).collect()
        };
        if ready[0] && published.is_none() {
            let mut line = String::new();
            stdin().lock().read_line(&mut line).unwrap();
            published = Some(line.trim().parse().expect("a number from the parent"));
        }
        for (client, _) in clients.iter_mut().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            let mut chunk = [0; 16 << 10];
            let len = client.peer.stream.read(&mut chunk).unwrap();
            assert!(len > 0, "the server has closed: {:?}", client.account.closing);
            client.peer.buffer.extend_from_slice(&chunk[..len]);
            while client.take() {}
        }
    }
}
