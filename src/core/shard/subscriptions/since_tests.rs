//! Tests of subscriptions that resume topics without a position from when they became live.

use crate::{
    config::Limits,
    ids::SlotId,
    limits::LIVE_SLACK_MS,
    mesh::Mesh,
    now::Now,
    placement,
    session::ListenerKind,
    shard::Shard,
    testing::{Driver, START, TurnLoop, cluster, frame, hello, masked, messages, upgrade_request},
};
use tickcast_proto::{
    Step,
    features::Features,
    frame::{self, HelloParts, Kind},
    records::{Publish, Subscribe, SubscribedSince, WireRecord},
};

const PUBLISHER: u32 = 0;
const SUBSCRIBER: u32 = 1;
const RESUMED: u32 = 2;
const OF_OTHER_NODE: u32 = 3;
const WITHOUT_FEATURE: u32 = 4;
const AHEAD: u32 = 5;

const SLACK_NS: u64 = LIVE_SLACK_MS * 1_000_000;

fn accept(driver: &mut Driver, slot: u32) {
    driver.accept(slot, ListenerKind::Native, &hello_with_since());
}

fn hello_with_since() -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = HelloParts { request: 1, client: "", name: "", features: Features::SINCE };
    frame::encode_hello(&mut bytes, &hello);
    bytes
}

fn tick(topic: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, b"1");
    bytes
}

/// Publishes a tick, and lets slightly more than the slack pass before and after.
fn publish(driver: &mut Driver, topic: &str) {
    let pass = |driver: &mut Driver| {
        driver.jump(SLACK_NS + 1_000);
        driver.now.realtime_ns += SLACK_NS + 1_000;
    };
    pass(driver);
    driver.receive(PUBLISHER, &tick(topic));
    driver.turn();
    pass(driver);
}

/// The ticks that a new client receives that subscribes like this, as topic number and sequence, and its acknowledgement.
fn subscribed(driver: &mut Driver, slot: u32, record: Subscribe) -> (Vec<(u32, u64)>, SubscribedSince) {
    driver.sent.clear();
    driver.receive(slot, &frame(Kind::Subscribe, &record, b"t.>"));
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
    received(&driver.take_sent(slot))
}

/// The ticks and the acknowledgement in these bytes.
fn received(bytes: &[u8]) -> (Vec<(u32, u64)>, SubscribedSince) {
    let (mut rest, mut ticks, mut acknowledged) = (bytes, Vec::new(), SubscribedSince::default());
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        match frame.kind {
            Kind::Tick => ticks.push((frame.header.topic_id, frame.header.sequence)),
            Kind::Subscribed if frame.header.topic_id == 0 => {
                acknowledged = frame.zero_extended_record(16).unwrap();
                let is_long = usize::from(frame.header.record_stride) == SubscribedSince::STRIDE;
                assert_eq!(is_long, acknowledged.since_us != 0, "sent to those who know it");
            }
            Kind::Subscribed | Kind::Welcome => {}
            other => panic!("{other:?}: nothing was lost"),
        }
    }
    (ticks, acknowledged)
}

#[test]
fn a_live_subscription_resumes_with_the_first_tick_after_it_became_live() {
    let mut driver = Driver::new(Limits::default());
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver.accept(WITHOUT_FEATURE, ListenerKind::Native, &hello());
    for slot in [SUBSCRIBER, RESUMED, OF_OTHER_NODE, AHEAD] {
        accept(&mut driver, slot);
    }
    publish(&mut driver, "t.a");
    publish(&mut driver, "t.silent");
    let (ticks, SubscribedSince { epoch, since_us, .. }) =
        subscribed(&mut driver, SUBSCRIBER, Subscribe::default());
    assert!(ticks.is_empty() && since_us != 0);
    publish(&mut driver, "t.a");
    publish(&mut driver, "t.new");

    let resume = |epoch| Subscribe { from: 3, epoch, sequence: since_us, ..Subscribe::default() };
    let sequences = |(mut ticks, _): (Vec<(u32, u64)>, SubscribedSince)| {
        ticks.sort_unstable();
        ticks.into_iter().map(|(_, sequence)| sequence).collect::<Vec<_>>()
    };
    let resumed = subscribed(&mut driver, RESUMED, resume(epoch));
    assert_eq!(sequences(resumed), [2, 1], "of t.a and t.new, nothing of t.silent");
    let of_other = subscribed(&mut driver, OF_OTHER_NODE, resume(epoch + 1));
    assert_eq!(sequences(of_other), [1, 2, 1, 1], "another node's clock may differ");
    // Two seconds cover a clock that is ahead, too: nothing older comes than from another node whose clock is right.
    driver.jump(10_000_000_000);
    driver.now.realtime_ns += 10_000_000_000;
    let ahead_us = driver.now.realtime_ns / 1_000 + 1_000_000;
    let ahead = Subscribe { from: 3, epoch: epoch + 1, sequence: ahead_us, ..Subscribe::default() };
    assert!(sequences(subscribed(&mut driver, AHEAD, ahead)).is_empty());
    let (ticks, acknowledged) = subscribed(&mut driver, WITHOUT_FEATURE, Subscribe::default());
    assert_eq!((ticks, acknowledged.since_us), (vec![], 0));
}

#[test]
fn a_tick_published_in_the_turn_in_which_its_subscription_became_live_is_resumed() {
    let mut driver = Driver::new(Limits::default());
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    for slot in [SUBSCRIBER, RESUMED] {
        accept(&mut driver, slot);
    }
    let (_, SubscribedSince { epoch, since_us, .. }) =
        subscribed(&mut driver, SUBSCRIBER, Subscribe::default());
    // It waits for a socket that is full when the connection ends.
    driver.full.insert(SUBSCRIBER);
    driver.receive(PUBLISHER, &tick("t.a"));
    driver.turn();
    driver.jump(SLACK_NS);
    let resume = Subscribe { from: 3, epoch, sequence: since_us, ..Subscribe::default() };
    assert_eq!(subscribed(&mut driver, RESUMED, resume).0, [(1, 1)]);
}

#[test]
fn a_refused_moment_does_not_apply_to_the_next_subscription() {
    let mut driver = Driver::new(Limits::default());
    driver.accept(PUBLISHER, ListenerKind::Native, &hello());
    driver.accept(SUBSCRIBER, ListenerKind::Http, &upgrade_request("/ws", "tickcast.v1.json"));
    publish(&mut driver, "t.a");
    let since = driver.now.realtime_ns / 1_000;
    let request = |id: u32, from: &str| {
        let subscribe = format!(r#"{{"op":"subscribe","id":{id},"topics":["t.>"],"from":{{{from}}}}}"#);
        masked(0x81, subscribe.as_bytes())
    };
    let refused = format!(r#""positions":{{"t.*":{{"epoch":9,"sequence":1}}}},"epoch":9,"since":{since}"#);
    driver.sent.clear();
    // Both at once: between two turns, the session's state may be dropped.
    driver.receive(SUBSCRIBER, &[request(1, &refused), request(2, r#""positions":{}"#)].concat());
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
    let sent = messages(&driver.take_sent(SUBSCRIBER));
    let answers: String = sent.into_iter().map(|(_, text)| String::from_utf8(text).unwrap()).collect();
    assert!(answers.contains(r#""op":"error","id":1,"code":101,"#), "{answers}");
    assert!(answers.contains(r#""topic":"t.a","seq":1,"#), "the oldest tick kept: {answers}");
}

/// Two shards, each with a clock of its own.
struct Pair {
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    turns: TurnLoop,
    now: [Now; 2],
    /// Bytes sent to the sessions, by slot.
    sent: Vec<Vec<u8>>,
}

impl Pair {
    /// On the first shard is the subscriber; on the second, the client that resumes, and the publisher.
    fn new(now: [Now; 2]) -> Pair {
        let (shards, meshes, _) = cluster(2, &Limits::default(), 64 << 10);
        let mut pair = Pair { shards, meshes, turns: TurnLoop::default(), now, sent: vec![Vec::new(); 3] };
        for (shard, slot) in [(0, SUBSCRIBER), (1, RESUMED), (1, PUBLISHER)] {
            pair.shards[shard].handle_accept(SlotId(slot), ListenerKind::Native, now[shard]);
            pair.receive(shard, slot, &hello_with_since());
        }
        pair
    }

    /// Passes bytes to a session, runs turns until nothing moves, and returns the ticks and the acknowledgement sent to it.
    fn receive(&mut self, shard: usize, slot: u32, bytes: &[u8]) -> (Vec<(u32, u64)>, SubscribedSince) {
        self.shards[shard].handle_bytes(SlotId(slot), bytes, self.now[shard]);
        for at in (0..16).map(|turn| turn % 2) {
            let (sent, mesh) = (&mut self.sent, &mut self.meshes[at]);
            self.turns.turn(&mut self.shards[at], Some(mesh), self.now[at], usize::MAX, |slot, bytes| {
                sent[slot.index()].extend_from_slice(bytes);
                false
            });
        }
        received(&std::mem::take(&mut self.sent[slot as usize]))
    }

    /// Subscribes at the first shard, publishes at the second, and resumes there later. Returns what came live and what was resumed.
    fn publish_and_resume(mut self) -> [Vec<(u32, u64)>; 2] {
        let subscribe = |record| frame(Kind::Subscribe, &record, b"t.>");
        let (_, live) = self.receive(0, SUBSCRIBER, &subscribe(Subscribe::default()));
        let of_second = |topic: &String| placement::home_shard(topic, 2).0 == 1;
        let topic = (0..).map(|n| format!("t.{n}")).find(of_second).unwrap();
        self.receive(1, PUBLISHER, &tick(&topic));
        let (ticks, _) = received(&std::mem::take(&mut self.sent[SUBSCRIBER as usize]));
        self.now.iter_mut().for_each(|now| now.monotonic_ns += 10 * SLACK_NS);
        let SubscribedSince { epoch, since_us, .. } = live;
        let resume = Subscribe { from: 3, epoch, sequence: since_us, ..Subscribe::default() };
        let (resumed, _) = self.receive(1, RESUMED, &subscribe(resume));
        [ticks, resumed]
    }
}

#[test]
fn a_tick_of_a_turn_that_began_before_its_subscription_became_live_is_resumed() {
    let later = Now { monotonic_ns: START.monotonic_ns + SLACK_NS, ..START };
    let [live, resumed] = Pair::new([later, START]).publish_and_resume();
    assert_eq!((live.len(), &resumed), (1, &live), "the client may not have got it before");
}

#[test]
fn a_moment_means_the_same_on_each_shard_though_the_real_time_is_set_while_they_start() {
    for set_ns in [0, 10_000_000_000] {
        let set = Now { realtime_ns: START.realtime_ns - set_ns, ..START };
        for now in [[START, set], [set, START]] {
            let [live, resumed] = Pair::new(now).publish_and_resume();
            assert_eq!((live.len(), &resumed), (1, &live), "set by {set_ns} ns");
        }
    }
}
