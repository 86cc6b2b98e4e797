//! Subscribers that start with the last values, and those that reconnect: they get what they missed, on any shard, without
//! gaps or duplicates, while a publisher goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use crate::harness::{
    LOOK_AGAIN, LOSSLESS, Server,
    account::{Account, Recovered, Subscriber},
    beside_others,
    collector::{barrier, connect, publish},
    eventually,
    frames::{self, FROM_LATEST, FROM_PLACE, FROM_RESUMES, Options, Raw},
    raw::Peer,
    say,
};
use tickcast_proto::WireFormat;

/// A publisher that waits for the test does not answer pings.
const PATIENT: [&str; 2] = ["--ping-interval", "0"];
const TOPICS: u64 = 4;
/// More keys than fit one piece of history.
const KEYS: u64 = 150;

/// The key of each tick of a topic.
fn key_of(sequence: u64) -> u64 {
    1 + (sequence * sequence / 3 + sequence / 7) % KEYS
}

/// How far the publisher may run ahead, in ticks per topic: it goes on while a client reconnects, and does not overflow the
/// history when a busy machine delays the test.
const AHEAD: u64 = 1_000;

/// Publishes continuously, one tick of each topic in turn.
struct Publisher {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    allowed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    fn start(server: &Server) -> Publisher {
        let (stop, published) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let allowed = Arc::new(AtomicU64::new(AHEAD));
        let (thread_stop, thread_published, thread_allowed) =
            (stop.clone(), published.clone(), allowed.clone());
        let mut peer = Subscriber::native(Peer::connect(server.tcp), Account::default());
        let thread = thread::spawn(move || {
            for sequence in 1.. {
                while sequence > thread_allowed.load(Relaxed) && !thread_stop.load(Relaxed) {
                    thread::sleep(LOOK_AGAIN);
                }
                let payload = format!("{{\"n\":{sequence},\"pad\":\"{}\"}}", "x".repeat(400));
                for topic in 0..TOPICS {
                    let topic = format!("snap.{topic}");
                    let frame = Raw::publish_key(topic.as_bytes(), key_of(sequence), payload.as_bytes());
                    peer.peer.send(&frame.bytes());
                }
                // No faster than the server accepts it.
                peer.barrier(sequence);
                thread_published.store(sequence, Relaxed);
                if thread_stop.load(Relaxed) {
                    return;
                }
            }
        });
        Publisher { stop, published, allowed, thread: Some(thread) }
    }

    /// Allows this many more ticks of each topic, and [`AHEAD`] on top. A test calls it after a subscription is
    /// acknowledged: before, all of them may be published while the client still connects, and then no live tick comes.
    fn allow_more(&self, ticks: u64) {
        self.allowed.store(self.published.load(Relaxed) + ticks + AHEAD, Relaxed);
    }

    /// Waits for this many more ticks of each topic.
    fn wait_for_more(&self, ticks: u64) {
        let goal = self.published.load(Relaxed) + ticks;
        self.allow_more(ticks);
        eventually("more ticks are published", || self.published.load(Relaxed) >= goal);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn client(server: &Server, native: bool) -> Subscriber {
    match native {
        true => Subscriber::native(Peer::connect(server.tcp), Account::default()),
        false => Subscriber::json(Peer::connect(server.http), Account::default()),
    }
}

fn starts_with_the_last_value_of_each_key(shards: &str) {
    let _machine = beside_others();
    let server = Server::start(&[&["--shards", shards], &PATIENT[..], &LOSSLESS].concat());
    let publisher = Publisher::start(&server);
    publisher.wait_for_more(3 * KEYS);
    let mut snapshots = 0;
    for number in 0..8 {
        let mut client = client(&server, number % 2 == 0);
        client.subscribe("snap.*", Options { from: FROM_LATEST, ..Options::default() });
        publisher.allow_more(300);
        client.read_until("live ticks", |account| {
            account.topics.len() as u64 == TOPICS
                && account.topics.values().all(|taken| taken.delivered > 300)
        });
        for (topic, taken) in &client.account.topics {
            let last = taken.first_live - 1;
            let expected: BTreeMap<u64, u64> =
                (1..=last).map(|sequence| (key_of(sequence), sequence)).collect();
            assert!(taken.snapshot.iter().all(|&(sequence, key)| key == key_of(sequence)), "{topic}: a key");
            let given: BTreeMap<u64, u64> =
                taken.snapshot.iter().map(|&(sequence, key)| (key, sequence)).collect();
            assert!(given == expected, "{topic}: {given:?} is not the last value of each key: {expected:?}");
            assert_eq!(taken.snapshot.last().unwrap().0, last, "{topic}: live ticks join the snapshot");
            snapshots += taken.snapshot.len();
        }
    }
    say(&format!("{shards} shards: {snapshots} snapshot ticks in 32 snapshots of live topics"));
    drop(publisher);
    server.stop_cleanly();
}

#[test]
fn from_latest_starts_with_the_last_value_of_each_key_and_continues_live_on_one_shard() {
    starts_with_the_last_value_of_each_key("1");
}

#[test]
fn from_latest_starts_with_the_last_value_of_each_key_and_continues_live_on_four_shards() {
    starts_with_the_last_value_of_each_key("4");
}

/// Subscribes to all topics, resuming after the given positions. In JSON they have the form of PROTOCOL.md with one epoch for all of
/// them, which is WELCOME's, or the one with an epoch for each.
fn come_back(
    client: &mut Subscriber,
    epoch_of_all: Option<u64>,
    epochs: &BTreeMap<String, u64>,
    places: &BTreeMap<String, u64>,
) {
    for (topic, &sequence) in places {
        client.account.has(topic, sequence);
    }
    let before = client.account.acknowledged;
    if client.is_native() {
        for (topic, &sequence) in places {
            client.peer.send(&Raw::resume(topic, epochs[topic], sequence).bytes());
        }
        client.ask(frames::SUBSCRIBE, 2, "snap.*", Options { from: FROM_RESUMES, ..Options::default() });
    } else {
        let position = |(topic, sequence): (&String, &u64)| {
            (topic.clone(), serde_json::json!({"epoch": epochs[topic], "sequence": sequence}))
        };
        let positions: BTreeMap<_, _> = places.iter().map(position).collect();
        let from = match epoch_of_all {
            Some(epoch) => serde_json::json!({ "epoch": epoch, "sequences": places }),
            None => serde_json::json!({ "positions": positions }),
        };
        client.peer.send_text(&format!(r#"{{"op":"subscribe","id":2,"topics":["snap.*"],"from":{from}}}"#));
    }
    client.read_until("the acknowledgement", |account| account.acknowledged > before);
}

#[test]
fn clients_that_reconnect_get_exactly_what_they_missed_on_any_shard() {
    let _machine = beside_others();
    // The history keeps every tick.
    let history = ["--shards", "4", "--history", "1000000:16777216:0"];
    let server = Server::start(&[&history[..], &PATIENT, &LOSSLESS].concat());
    let publisher = Publisher::start(&server);
    publisher.wait_for_more(50);
    let welcome_epoch = client(&server, true).account.epoch;
    let mut recovered_ticks = 0;
    for number in 0..16 {
        let native = number % 2 == 0;
        let epoch_of_all = (number % 4 == 1).then_some(welcome_epoch);
        let mut first = client(&server, native);
        first.subscribe("snap.*", Options::default());
        publisher.allow_more(10);
        first.read_until("a few ticks", |account| {
            account.topics.len() as u64 == TOPICS && account.topics.values().all(|taken| taken.delivered > 5)
        });
        let epochs = first.account.epochs.clone();
        let place = |(topic, taken): (&String, &_)| {
            let taken: &crate::harness::account::Taken = taken;
            (topic.clone(), taken.next - 1)
        };
        let mut places: BTreeMap<String, u64> = first.account.topics.iter().map(place).collect();
        // Reset with ticks on their way.
        first.peer.reset();
        publisher.wait_for_more(60);
        // A topic without a position starts with its first tick.
        let without = format!("snap.{}", number % TOPICS);
        places.remove(&without);
        let mut second = client(&server, native);
        // The second connection may land on another shard.
        second.account.has(&without, 0);
        come_back(&mut second, epoch_of_all, &epochs, &places);
        publisher.allow_more(20);
        let now = publisher.published.load(Relaxed);
        second.read_until("the live ticks", |account| {
            account.topics.len() as u64 == TOPICS
                && account.topics.values().all(|taken| taken.next > now + 10)
        });
        let answered: BTreeSet<&String> =
            second.account.recovered.iter().map(|answer| &answer.topic).collect();
        assert!(answered.into_iter().eq(places.keys()), "{:?}", second.account.recovered);
        assert!(
            second
                .account
                .recovered
                .iter()
                .all(|answer| answer.recovered && answer.epoch == epochs[&answer.topic])
        );
        assert_eq!(second.account.dropped_ticks() + second.account.conflated_ticks(), 0);
        assert!(second.account.topics.values().all(|taken| taken.snapshot.is_empty()));
        recovered_ticks += second.account.delivered();
    }
    say(&format!("16 clients that reconnected got {recovered_ticks} ticks without a gap or a duplicate"));
    drop(publisher);
    server.stop_cleanly();
}

/// What a client that resumes `topic` after a position has received once the topic's next tick has arrived.
fn after_a_place(server: &Server, native: bool, topic: &str, epoch: u64, sequence: u64) -> Account {
    let mut client = client(server, native);
    client.account.has(topic, sequence);
    client.subscribe(topic, Options { from: FROM_PLACE, epoch, sequence, ..Options::default() });
    client.read_until("the answer to the position", |account| !account.recovered.is_empty());
    let mut publisher = connect(server, WireFormat::TCP_NATIVE);
    publish(&mut publisher, topic, b"[7]");
    barrier(&mut publisher);
    client.read_until("the next tick", |account| account.topics[topic].payload == b"[7]");
    client.account
}

/// An answer to the position in a topic, with the epoch that the topic has.
fn answer(account: &Account, topic: &str, sequence: u64, recovered: bool) -> Recovered {
    let epoch = account.epochs.get(topic).copied().unwrap_or_default();
    Recovered { topic: topic.to_owned(), epoch, sequence, recovered }
}

#[test]
fn invalid_positions_are_answered_and_the_last_value_follows() {
    const PUBLISHED: u64 = 30;
    const KEPT: u64 = 10;
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2", "--history", &KEPT.to_string()]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let mut topics = 0;
    let mut topic_of_thirty = || {
        topics += 1;
        let topic = format!("t.{topics}");
        (1..=PUBLISHED).for_each(|n| publish(&mut publisher, &topic, n.to_string().as_bytes()));
        barrier(&mut publisher);
        // A barrier does not cover the topic's home on another shard: wait until the last tick has its sequence.
        let mut witness = client(&server, true);
        witness.subscribe(&topic, Options { from: FROM_LATEST, ..Options::default() });
        let last = PUBLISHED.to_string();
        witness.read_until("the last tick", |account| {
            account.topics.get(&topic).is_some_and(|taken| taken.payload == last.as_bytes())
        });
        topic
    };
    let mut reader = client(&server, true);
    reader.read_until("the epoch", |account| account.epoch != 0);
    let epoch = reader.account.epoch;
    drop(reader);
    for native in [true, false] {
        for (what, epoch_named, sequence) in [
            ("a position ahead of the topic", epoch, PUBLISHED + 1),
            ("a position far ahead", epoch, 1 << 50),
            ("another epoch", epoch + 1, PUBLISHED - 1),
            ("a position older than the history", epoch, PUBLISHED - KEPT - 1),
        ] {
            let topic = topic_of_thirty();
            let account = after_a_place(&server, native, &topic, epoch_named, sequence);
            let answer = answer(&account, &topic, PUBLISHED, false);
            assert_eq!(account.recovered, [answer], "native {native}: {what}");
            let taken = &account.topics[&topic];
            if epoch_named != epoch {
                // All that is kept of another life is new.
                assert_eq!((taken.dropped, taken.delivered), (PUBLISHED - KEPT, KEPT + 1), "{account:?}");
                continue;
            }
            assert_eq!(taken.snapshot, [(PUBLISHED, 0)], "native {native}: {what}");
            assert_eq!((taken.first_live, taken.delivered), (PUBLISHED + 1, 2), "native {native}: {what}");
        }
        for sequence in [PUBLISHED, PUBLISHED - 1, PUBLISHED - KEPT] {
            let topic = topic_of_thirty();
            let account = after_a_place(&server, native, &topic, epoch, sequence);
            let answer = answer(&account, &topic, PUBLISHED, true);
            assert_eq!(account.recovered, [answer], "native {native}: after {sequence}");
            let taken = &account.topics[&topic];
            assert_eq!((taken.snapshot.len(), taken.first_live), (0, sequence + 1));
            assert_eq!(taken.delivered, PUBLISHED - sequence + 1);
        }
        // 0 asks for the whole history; what is no longer kept is announced as a gap.
        let topic = topic_of_thirty();
        let account = after_a_place(&server, native, &topic, epoch, 0);
        let answer = answer(&account, &topic, PUBLISHED, true);
        assert_eq!(account.recovered, [answer], "native {native}: from the start");
        let taken = &account.topics[&topic];
        assert_eq!((taken.dropped, taken.delivered), (PUBLISHED - KEPT, KEPT + 1), "{account:?}");

        let topic = format!("never.{native}");
        let account = after_a_place(&server, native, &topic, epoch, 17);
        let answer = Recovered { topic: topic.clone(), epoch, sequence: 0, recovered: false };
        assert_eq!(account.recovered, [answer], "native {native}: a topic that never existed");
        assert_eq!((account.topics[&topic].first_live, account.topics[&topic].delivered), (1, 1));
    }
    drop(publisher);
    server.stop_cleanly();
}
