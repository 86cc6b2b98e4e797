//! Readers slower than a market feed, by circumstance or by choice: they get the last value of each topic, and every tick
//! it replaces is announced.

use std::{collections::BTreeMap, fs, path::Path, time::Instant};

use crate::harness::{
    LOSSLESS, Server,
    account::{Account, Subscriber},
    alone, beside_others,
    collector::{Collector, barrier, connect, publish},
    external::{External, Library},
    frames::{CONFLATE, Options, SUBSCRIBE, UPDATE},
    market_capture,
    raw::Peer,
    say,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use serde_json::value::RawValue;
use tickcast_client::Client;
use tickcast_proto::WireFormat;

/// Ticks published per tick that the slow reader takes.
const SLOWNESS: usize = 100;
/// The capture's 15 seconds in 1.5: some 2,700 ticks a second.
const SPEED: &str = "10";
/// Bytes that may wait in the server before it conflates.
const BEHIND_BYTES: &str = "4096";
/// Send buffer requested on the server's side; the kernel doubles it.
const SOCKET_SEND_BYTES: &str = "4096";
/// Ticks a slow reader may still get after the last publish: one per topic, and what fits both kernel buffers and the last
/// SEND at 400 bytes a tick (measured: about 60).
const REMAINING_MAX: u64 = 28 + 32 * 1024 / 400;

/// Number of ticks and last payload, by topic.
type Last = BTreeMap<String, (u64, Vec<u8>)>;

#[derive(Deserialize)]
struct Line<'a> {
    topic: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

fn last_of_each_topic(capture: &Path) -> (Last, usize) {
    let text = fs::read_to_string(capture).unwrap();
    let (mut last, mut count) = (Last::new(), 0);
    for line in text.lines() {
        let line: Line<'_> = serde_json::from_str(line).unwrap();
        let topic = last.entry(line.topic).or_default();
        *topic = (topic.0 + 1, line.data.get().as_bytes().to_vec());
        count += 1;
    }
    (last, count)
}

fn serve(capture: &Path, speed: &str, subscriptions: usize, more: &[&str]) -> Server {
    let (file, wait) = (capture.to_str().unwrap(), subscriptions.to_string());
    let options = ["--replay", file, "--speed", speed, "--replay-wait", &wait];
    Server::start_logging("info", &[&options, more].concat())
}

const SMALL: [&str; 4] = ["--behind-size", BEHIND_BYTES, "--socket-send-buffer", SOCKET_SEND_BYTES];

fn assert_has_the_last_of_each_topic(name: &str, account: &Account, last: &Last) {
    assert!(account.topics.keys().eq(last.keys()), "{name}: topics");
    for (topic, (published, payload)) in last {
        account.assert_whole(topic, *published);
        assert!(
            account.topics[topic].payload == *payload,
            "{name}: {topic}: not the last payload of the file"
        );
    }
    assert_eq!(account.dropped_ticks(), 0, "{name}: a reader that conflates has no gaps");
}

fn peer(server: &Server, native: bool, small: bool) -> Subscriber {
    let address = if native { server.tcp } else { server.http };
    let peer = if small { Peer::connect_with_small_window(address) } else { Peer::connect(address) };
    match native {
        true => Subscriber::native(peer, Account::from_start()),
        false => Subscriber::json(peer, Account::from_start()),
    }
}

fn a_slow_reader_gets_the_last_values(native: bool) {
    let _machine = alone();
    let capture = market_capture();
    let (last, count) = last_of_each_topic(&capture);
    let server = serve(&capture, SPEED, 2, &[&SMALL[..], &LOSSLESS].concat());
    let mut slow = peer(&server, native, true);
    slow.subscribe("market.>", Options { policy: CONFLATE, ..Options::default() });
    let healthy = Collector::start(&server, WireFormat::TCP_NATIVE, &["market.>"]);
    for published in (SLOWNESS..=count).step_by(SLOWNESS) {
        healthy.wait_for(published);
        let before = slow.account.delivered();
        slow.read_until("a tick", |account| account.delivered() > before);
    }
    healthy.wait_for(count);
    healthy.finish().assert_no_gap("healthy");
    let slowly = slow.account.delivered();
    slow.read_until("the last of each topic", |account| account.reached() == count as u64);
    assert_has_the_last_of_each_topic("slow", &slow.account, &last);
    let (delivered, conflated) = (slow.account.delivered(), slow.account.conflated_ticks());
    let remaining = delivered - slowly;
    say(&format!(
        "native {native}: of {count} ticks {slowly} while they were published, {remaining} after, {conflated} conflated"
    ));
    assert!(conflated > count as u64 / 2, "{conflated} of {count} conflated");
    assert!(remaining <= REMAINING_MAX, "{remaining} ticks still came: more than the last values");
    drop(slow);
    let stopped = server.stop_cleanly();
    assert_eq!((stopped.total("ticks_conflated"), stopped.total("closed_slow_consumer")), (conflated, 0));
}

#[test]
fn a_native_reader_at_a_hundredth_of_the_rate_gets_the_last_value_of_each_topic() {
    a_slow_reader_gets_the_last_values(true);
}

#[test]
fn a_json_reader_at_a_hundredth_of_the_rate_gets_the_last_value_of_each_topic() {
    a_slow_reader_gets_the_last_values(false);
}

#[test]
fn a_third_party_client_at_a_hundredth_of_the_rate_gets_the_last_value_of_each_topic() {
    let _machine = alone();
    let capture = market_capture();
    let (last, count) = last_of_each_topic(&capture);
    let server = serve(&capture, SPEED, 2, &[&SMALL[..], &LOSSLESS].concat());
    let (url, slowness) = (format!("ws://{}/ws", server.http), SLOWNESS.to_string());
    let arguments = [&url, "market.>", &count.to_string(), &slowness];
    let printed = External::run(Library::Websockets, "slow", &arguments).finish();
    let mut account = Account::from_start();
    let mut remaining = 0;
    for line in printed.lines() {
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["conflated", topic, from, to] => {
                account.conflated(topic, from.parse().unwrap(), to.parse().unwrap());
            }
            [topic, sequence, payload] => {
                let payload = BASE64.decode(payload).unwrap();
                account.tick(topic, sequence.parse().unwrap(), 0, false, &payload);
            }
            [word] if word.starts_with("remaining ") => remaining = word[10..].parse().unwrap(),
            _ => assert!(["ready", "end"].contains(&line), "{line:?}"),
        }
    }
    assert_has_the_last_of_each_topic("websockets", &account, &last);
    let (delivered, conflated) = (account.delivered(), account.conflated_ticks());
    say(&format!(
        "websockets: of {count} ticks {} while they were published, {remaining} after, {conflated} conflated",
        delivered - remaining
    ));
    assert!(conflated > count as u64 / 2, "{conflated} of {count} conflated");
    // The library reads ahead; the ticks it has buffered come on top.
    assert!(remaining <= 2 * REMAINING_MAX, "{remaining} ticks still came: more than the last values");
    server.stop_cleanly();
}

#[test]
fn a_paced_reader_stays_within_its_rate_and_ends_with_the_last_values() {
    // Low enough to hold back most of the busiest topics' thousand ticks, however slow the machine is.
    const RATE: u64 = 1;
    let _machine = beside_others();
    let capture = market_capture();
    let (last, count) = last_of_each_topic(&capture);
    let server = serve(&capture, SPEED, 2, &[]);
    let start = Instant::now();
    let options = Options { max_rate_millihertz: RATE as u32 * 1_000, ..Options::default() };
    let readers = [true, false].map(|native| {
        let mut reader = peer(&server, native, false);
        reader.subscribe("market.>", options);
        reader
    });
    for mut reader in readers {
        reader.read_until("the last of each topic", |account| account.reached() == count as u64);
        // Counted to now, past the end of the replay, so that the bound holds however slow the machine is.
        let at_most = RATE * (start.elapsed().as_secs() + 1) + 1;
        assert_has_the_last_of_each_topic("paced", &reader.account, &last);
        let (topic, busiest) = reader.account.topics.iter().max_by_key(|(_, taken)| taken.delivered).unwrap();
        say(&format!(
            "paced, native {}: at most {} ticks of a topic ({topic}, of {}), {at_most} allowed; {} in all",
            reader.is_native(),
            busiest.delivered,
            last[topic].0,
            reader.account.delivered()
        ));
        assert!(busiest.delivered <= at_most, "{topic}: {} ticks, {at_most} allowed", busiest.delivered);
        assert!(reader.account.conflated_ticks() > count as u64 / 2);
    }
    server.stop_cleanly();
}

#[test]
fn a_rate_limit_can_be_changed_and_removed_while_subscribed() {
    // One tick in a thousand seconds, and the highest rate.
    const NEVER: Options = Options { from: 0, policy: 0, epoch: 0, sequence: 0, max_rate_millihertz: 1 };
    const FASTEST: Options = Options { max_rate_millihertz: 1_000_000, ..NEVER };
    let _machine = beside_others();
    // The witness's ticks are the reader's only on the same shard.
    let server = Server::start(&["--shards", "1"]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let mut published = 0;
    let mut publish_some = |publisher: &mut Client, ticks: u64| {
        for _ in 0..ticks {
            published += 1;
            publish(publisher, "pace", format!("{published}").as_bytes());
        }
        barrier(publisher);
        published
    };
    for native in [true, false] {
        let mut reader = peer(&server, native, false);
        let witness = Collector::start(&server, WireFormat::TCP_NATIVE, &["pace"]);
        reader.account = Account::default();
        reader.subscribe("pace", NEVER);
        let first = publish_some(&mut publisher, 1);
        let last = publish_some(&mut publisher, 5);
        witness.wait_for(6);
        reader.read_until("the first tick", |account| account.delivered() == 1);
        reader.barrier(1);
        assert_eq!(
            reader.account.topics["pace"].next,
            first + 1,
            "the rate limit holds the second tick back"
        );
        reader.update("pace", FASTEST);
        reader.read_until("the last tick", |account| account.topics["pace"].next == last + 1);
        let taken = reader.account.topics["pace"].clone();
        assert_eq!((taken.delivered, taken.conflated), (2, 4));
        assert_eq!(taken.payload, last.to_string().as_bytes());

        reader.update("pace", NEVER);
        let last = publish_some(&mut publisher, 5);
        witness.wait_for(11);
        reader.barrier(2);
        assert!(reader.account.topics["pace"].delivered <= 3, "the rate limit is low again");
        reader.update("pace", Options::default());
        reader.read_until("the last tick", |account| account.topics["pace"].next == last + 1);
        let before = reader.account.topics["pace"].clone();
        let last = publish_some(&mut publisher, 100);
        reader.read_until("every tick", |account| account.topics["pace"].next == last + 1);
        let after = &reader.account.topics["pace"];
        assert_eq!((after.delivered, after.conflated), (before.delivered + 100, before.conflated));

        // An update without a subscription is an error, and the session stays open.
        reader.ask(UPDATE, 9, "other", FASTEST);
        reader.ask(SUBSCRIBE, 10, "other", FASTEST);
        let acknowledged = reader.account.acknowledged;
        reader.read_until("the acknowledgement", |account| account.acknowledged > acknowledged);
        let (request, text) = &reader.account.errors[0];
        assert!(*request == 9 && text.contains("not subscribed to \"other\""), "{text}");
        witness.finish();
    }
    drop(publisher);
    server.stop_cleanly();
}
