use super::*;
use crate::{
    config::{Feed, Limits},
    ids::TenantId,
    limits::TURN_STALE_UNITS,
    mesh::Mesh,
    placement,
    shard::{ListenerKind, ORIGIN_SOURCE},
    testing::{Driver, START, TurnLoop, cluster, frame, masked, messages},
};
use tickcast_proto::{
    Step,
    frame::{self, HelloParts, Kind},
    logged::{self, LogPosition, log_epoch},
    records::{Condition, Publish, Request, Subscribe, Subscribed, WelcomeWithFeatures},
};

const FEED: FeedId = FeedId(1);
const OTHER: FeedId = FeedId(2);
const SINCE: u64 = 1_700_000_000_000_000_000;

/// Has asked for the feature.
const TOLD: SlotId = SlotId(0);
/// Has not.
const PLAIN: SlotId = SlotId(1);
const LATER: SlotId = SlotId(2);

fn limits() -> Limits {
    let feed = |name: &str| Feed { name: name.into(), tenant: TenantId::DEFAULT };
    Limits { feeds: [feed("feed"), feed("other")].into(), ..Limits::default() }
}

fn hello(features: Features) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_hello(&mut bytes, &HelloParts { request: 1, client: "", name: "test", features });
    bytes
}

/// A tick of a feed, as its source stages it.
fn tick(feed: FeedId, topic: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let record = Publish { request: feed.0, ..Publish::default() };
    frame::encode_publish(&mut bytes, ORIGIN_SOURCE, 1, 0, record, topic, b"1");
    bytes
}

fn request(shard: &mut Shard, bytes: &[u8]) {
    let Ok(Step::Complete(_, request)) = frame::decode(bytes, usize::MAX) else { panic!("a whole frame") };
    shard.handle_request(None, &request, START);
}

/// What native frames say: announcements of topics, ticks, and what is about sources.
fn shown(bytes: &[u8]) -> Vec<String> {
    let (mut rest, mut texts) = (bytes, Vec::new());
    let mut names = std::collections::HashMap::new();
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        let id = frame.header.topic_id;
        let condition = || frame.record::<Condition>().unwrap();
        texts.extend(match frame.kind {
            Kind::Subscribed if id != 0 => {
                let name = frame.text().unwrap().to_owned();
                assert!(frame.record::<Subscribed>().unwrap().epoch > 0);
                names.insert(id, name.clone());
                Some(format!("topic {name}"))
            }
            Kind::Tick => Some("tick".to_owned()),
            Kind::Stale => {
                assert!(condition().since_ns >= START.realtime_ns);
                let state = if condition().state != 0 { "stale" } else { "back" };
                Some(names.get(&id).map_or(state.to_owned(), |name| format!("{state} {name}")))
            }
            Kind::Source => Some(format!("{} {}", frame.text().unwrap(), condition().state)),
            _ => None,
        });
    }
    assert!(rest.is_empty());
    texts
}

/// Two shards; all sessions are on the first.
struct Pair {
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    turns: TurnLoop,
    /// By slot.
    sent: Vec<Vec<u8>>,
}

impl Pair {
    fn new() -> Pair {
        let (shards, meshes, _) = cluster(2, &limits(), 64 << 10);
        let mut pair = Pair { shards, meshes, turns: TurnLoop::default(), sent: vec![Vec::new(); 3] };
        pair.accept(TOLD, Features::SOURCES);
        pair.accept(PLAIN, Features::COUNTS);
        pair
    }

    /// Accepts a client. Returns what it gets at once.
    fn accept(&mut self, slot: SlotId, features: Features) -> Vec<String> {
        self.shards[0].handle_accept(slot, ListenerKind::Native, START);
        self.shards[0].handle_bytes(slot, &hello(features), START);
        self.settle();
        self.received(slot)
    }

    fn settle(&mut self) {
        for _ in 0..12 {
            for shard in 0..2 {
                let (sent, mesh) = (&mut self.sent, &mut self.meshes[shard]);
                self.turns.turn(&mut self.shards[shard], Some(mesh), START, usize::MAX, |slot, bytes| {
                    sent[slot.index()].extend_from_slice(bytes);
                    false
                });
            }
        }
        assert!(self.shards.iter().all(|shard| !shard.is_busy()));
    }

    fn subscribe(&mut self, slot: SlotId, pattern: &str, record: Subscribe) {
        let bytes = frame(Kind::Subscribe, &record, pattern.as_bytes());
        self.shards[0].handle_bytes(slot, &bytes, START);
        self.settle();
    }

    fn publish(&mut self, feed: FeedId, topic: &str) {
        let home = placement::home_shard(topic, 2);
        request(&mut self.shards[usize::from(home.0)], &tick(feed, topic));
    }

    /// Publishes to topics of either home.
    fn publish_all(&mut self, feed: FeedId) -> [&'static str; 4] {
        let topics = ["t.a", "t.b", "t.c", "t.d"];
        topics.iter().for_each(|topic| self.publish(feed, topic));
        assert!(topics.iter().any(|topic| placement::home_shard(topic, 2).0 == 0));
        assert!(topics.iter().any(|topic| placement::home_shard(topic, 2).0 == 1));
        self.settle();
        topics
    }

    fn set(&mut self, feed: FeedId, state: SourceState) {
        self.shards.iter_mut().for_each(|shard| shard.set_feed_state(feed, state, SINCE));
    }

    fn change(&mut self, feed: FeedId, state: SourceState) {
        self.set(feed, state);
        self.settle();
    }

    fn received(&mut self, slot: SlotId) -> Vec<String> {
        shown(&std::mem::take(&mut self.sent[slot.index()]))
    }

    /// What a session has been told about stale topics, sorted.
    fn marks(&mut self, slot: SlotId) -> Vec<String> {
        let mut marks = self.received(slot);
        marks.retain(|text| text.starts_with("stale") || text.starts_with("back"));
        marks.sort();
        marks
    }

    fn stale_topics(&self) -> u64 {
        self.shards.iter().map(|shard| shard.counters().value(Counter::TopicsStale)).sum()
    }
}

fn paced() -> Subscribe {
    Subscribe { max_rate_millihertz: 1_000_000, ..Subscribe::default() }
}

fn latest() -> Subscribe {
    Subscribe { from: 1, ..Subscribe::default() }
}

#[test]
fn subscribers_learn_once_that_a_topic_is_stale_and_once_that_it_is_back() {
    for (pattern, record) in
        [("t.*", Subscribe::default()), ("t.*", paced()), ("t.*", latest()), (">", Subscribe::default())]
    {
        let mut pair = Pair::new();
        for slot in [TOLD, PLAIN] {
            pair.subscribe(slot, pattern, record);
        }
        let topics = pair.publish_all(FEED);
        pair.publish(OTHER, "t.other");
        pair.settle();
        pair.sent.iter_mut().for_each(Vec::clear);
        for (state, word) in [(SourceState::Down, "stale"), (SourceState::Up, "back")] {
            pair.change(FEED, state);
            pair.change(FEED, state);
            assert_eq!(pair.marks(TOLD).len(), topics.len(), "{pattern} {word}");
            assert!(pair.received(PLAIN).is_empty(), "it has not asked for that");
            assert_eq!(pair.stale_topics(), if word == "stale" { 4 } else { 0 });
        }
        let told: u64 = pair.shards.iter().map(|shard| shard.counters().value(Counter::StaleNotices)).sum();
        assert_eq!(told, 8);
    }
}

#[test]
fn a_session_that_subscribes_while_topics_are_stale_is_told_once_with_their_names() {
    let all = ["stale t.a", "stale t.b", "stale t.c", "stale t.d"];
    for (pattern, record, expected) in [
        ("t.*", Subscribe::default(), &all[..]),
        ("t.*", paced(), &all),
        ("t.*", latest(), &all),
        ("t.b", Subscribe::default(), &all[1..2]),
        ("t.b", latest(), &all[1..2]),
        ("x.*", Subscribe::default(), &[]),
    ] {
        let mut pair = Pair::new();
        // Without another subscriber, this shard learns of the topics only with the subscription.
        for has_other in [false, true] {
            if has_other {
                pair.accept(LATER, Features::SOURCES);
                pair.subscribe(LATER, ">", Subscribe::default());
            }
            pair.publish_all(FEED);
            pair.change(FEED, SourceState::Down);
            for slot in [TOLD, PLAIN] {
                pair.subscribe(slot, pattern, record);
            }
            assert_eq!(pair.marks(TOLD), expected, "{pattern} {has_other}");
            assert!(pair.marks(PLAIN).is_empty());
            // Another subscription to the same topics changes nothing.
            for (other, record) in [(">", Subscribe::default()), ("t.b", Subscribe::default())] {
                pair.subscribe(TOLD, other, record);
            }
            let told_now = pair.marks(TOLD);
            assert!(expected.iter().all(|text| !told_now.contains(&(*text).to_owned())), "{told_now:?}");
            pair.change(FEED, SourceState::Up);
            assert_eq!(pair.marks(TOLD).len(), 4, "it is subscribed to all of them by now");
            for other in [pattern, ">", "t.b"] {
                let bytes = frame(Kind::Unsubscribe, &Request::default(), other.as_bytes());
                [TOLD, PLAIN].iter().for_each(|&slot| pair.shards[0].handle_bytes(slot, &bytes, START));
            }
            pair.settle();
            pair.sent.iter_mut().for_each(Vec::clear);
        }
    }
}

#[test]
fn overlapping_subscriptions_in_one_batch_tell_a_session_once() {
    for patterns in [[">", "t.*"], ["t.*", ">"], ["t.*", "t.b"], ["t.b", "t.*"]] {
        let mut pair = Pair::new();
        pair.accept(LATER, Features::SOURCES);
        pair.subscribe(LATER, ">", Subscribe::default());
        pair.subscribe(LATER, "t.*", Subscribe::default());
        pair.subscribe(LATER, "t.b", Subscribe::default());
        pair.publish_all(FEED);
        pair.change(FEED, SourceState::Down);
        let batch: Vec<u8> = patterns
            .iter()
            .flat_map(|pattern| frame(Kind::Subscribe, &Subscribe::default(), pattern.as_bytes()))
            .collect();
        pair.shards[0].handle_bytes(TOLD, &batch, START);
        pair.settle();
        assert_eq!(pair.marks(TOLD), ["stale t.a", "stale t.b", "stale t.c", "stale t.d"], "{patterns:?}");
    }
}

#[test]
fn a_wildcard_that_comes_and_goes_is_listed_once() {
    let mut pair = Pair::new();
    pair.subscribe(PLAIN, ">", Subscribe::default());
    pair.publish_all(FEED);
    pair.change(FEED, SourceState::Down);
    let mut batch = Vec::new();
    let before = pair.shards[0].fanout.stale_bytes();
    for _ in 0..200 {
        batch.extend(frame(Kind::Subscribe, &Subscribe::default(), b">"));
        batch.extend(frame(Kind::Unsubscribe, &Request::default(), b">"));
    }
    pair.shards[0].handle_bytes(TOLD, &batch, START);
    pair.shards[0].turn(START);
    let bytes = pair.shards[0].fanout.stale_bytes() - before;
    assert!(bytes < 1_000, "{bytes} bytes");
    pair.settle();
}

#[test]
fn a_session_that_has_unsubscribed_is_not_told() {
    let mut pair = Pair::new();
    pair.subscribe(TOLD, "t.*", Subscribe::default());
    pair.publish_all(FEED);
    pair.change(FEED, SourceState::Down);
    pair.received(TOLD);
    pair.set(FEED, SourceState::Up);
    let bytes = frame(Kind::Unsubscribe, &Request::default(), b"t.*");
    pair.shards[0].handle_bytes(TOLD, &bytes, START);
    pair.settle();
    assert!(pair.marks(TOLD).is_empty());
}

#[test]
fn a_mark_that_comes_and_goes_before_anybody_was_told_is_not_told() {
    let mut pair = Pair::new();
    pair.subscribe(TOLD, "t.*", Subscribe::default());
    pair.publish_all(FEED);
    pair.set(FEED, SourceState::Down);
    pair.change(FEED, SourceState::Fallback);
    assert!(pair.marks(TOLD).is_empty());
}

#[test]
fn a_topic_that_another_source_feeds_is_back() {
    let mut pair = Pair::new();
    pair.subscribe(TOLD, "t.*", Subscribe::default());
    pair.publish_all(FEED);
    pair.change(FEED, SourceState::Down);
    assert_eq!(pair.marks(TOLD).len(), 4);
    pair.publish(OTHER, "t.b");
    pair.settle();
    // The tick waits in the outbox, as an announcement might: so the topic is named again.
    assert_eq!(pair.received(TOLD), ["tick", "topic t.b", "back t.b"]);
    // A client's tick proves nothing about the source.
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), "t.a", b"1");
    pair.shards[0].handle_bytes(PLAIN, &bytes, START);
    pair.settle();
    assert!(pair.marks(TOLD).is_empty());
    pair.change(FEED, SourceState::Up);
    assert_eq!(pair.marks(TOLD).len(), 3);
}

#[test]
fn the_next_life_of_a_stale_topic_is_back() {
    let mut pair = Pair::new();
    pair.subscribe(TOLD, "t.*", Subscribe::default());
    pair.subscribe(PLAIN, "t.a", Subscribe::default());
    let append = |pair: &mut Pair, life: &[u8]| {
        let at =
            LogPosition { source: 1, epoch: log_epoch("test", "log", life), position: 5, complete_from: 1 };
        let mut bytes = Vec::new();
        let record = Publish { request: FEED.0, ..Publish::default() };
        logged::encode_append(&mut bytes, at, 0, record, "t.a", b"1");
        request(&mut pair.shards[usize::from(placement::home_shard("t.a", 2).0)], &bytes);
        pair.settle();
    };
    append(&mut pair, b"1");
    pair.change(FEED, SourceState::Down);
    assert_eq!(pair.marks(TOLD), ["stale t.a"]);
    append(&mut pair, b"2");
    assert_eq!(pair.received(TOLD), ["topic t.a", "tick", "topic t.a", "back t.a"]);
    assert_eq!(pair.stale_topics(), 0);
    pair.change(FEED, SourceState::Up);
    assert!(pair.marks(TOLD).is_empty());
}

#[test]
fn clients_that_ask_learn_the_state_of_a_source_and_new_ones_only_if_it_is_not_up() {
    let mut pair = Pair::new();
    for (state, expected) in
        [(SourceState::Fallback, "feed 2"), (SourceState::Down, "feed 3"), (SourceState::Up, "feed 1")]
    {
        pair.change(FEED, state);
        assert_eq!(pair.received(TOLD), [expected]);
        assert!(pair.received(PLAIN).is_empty());
        let told = pair.accept(LATER, Features::SOURCES);
        assert_eq!(told, if state == SourceState::Up { vec![] } else { vec![expected.to_owned()] });
        pair.shards[0].handle_eof(LATER, START);
        pair.settle();
    }
}

#[test]
fn the_feature_is_granted_only_if_a_source_marks_its_topics() {
    for (limits, granted) in [(limits(), Features::SOURCES), (Limits::default(), Features::NONE)] {
        let mut driver = Driver::new(limits);
        driver.accept(0, ListenerKind::Native, &hello(Features::SOURCES));
        let sent = driver.take_sent(0);
        let Ok(Step::Complete(_, welcome)) = frame::decode(&sent, usize::MAX) else { panic!("WELCOME") };
        let record = welcome.record::<WelcomeWithFeatures>().unwrap();
        assert_eq!(Features::from_wire(record.features), granted);
    }
}

#[test]
fn telling_many_takes_several_turns_each_within_its_budget() {
    const TOPICS: usize = TURN_STALE_UNITS;
    let mut driver = Driver::new(limits());
    for slot in 0..2 {
        driver.accept(slot, ListenerKind::Native, &hello(Features::SOURCES));
        driver.receive(slot, &frame(Kind::Subscribe, &Subscribe::default(), b">"));
    }
    let finish = |driver: &mut Driver| {
        driver.turn();
        while driver.shard.is_busy() {
            driver.turn();
        }
    };
    finish(&mut driver);
    for topic in 0..TOPICS {
        request(&mut driver.shard, &tick(FEED, &format!("t.{topic}")));
        if topic % 64 == 0 {
            finish(&mut driver);
        }
    }
    finish(&mut driver);
    driver.sent.clear();
    driver.shard.set_feed_state(FEED, SourceState::Down, SINCE);
    let (mut turns, mut told) = (0, 0);
    while driver.shard.is_busy() {
        driver.turn();
        let now = driver.shard.counters().value(Counter::StaleNotices);
        assert!(now - told <= TURN_STALE_UNITS as u64);
        (turns, told) = (turns + 1, now);
    }
    assert_eq!(told, 2 * TOPICS as u64);
    assert!(turns > 2, "{turns}");
    driver.receive(0, &frame(Kind::Unsubscribe, &Request::default(), b">"));
    finish(&mut driver);
    driver.receive(0, &frame(Kind::Subscribe, &Subscribe::default(), b">"));
    finish(&mut driver);
    assert_eq!(driver.shard.counters().value(Counter::StaleNotices), told + TOPICS as u64);
}

#[test]
fn event_streams_and_socket_io_have_events_for_it() {
    let mut driver = Driver::new(limits());
    let stream = "GET /sse?topics=t.* HTTP/1.1\r\nHost: x\r\n\r\n";
    let upgrade = "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    driver.shard.set_feed_state(FEED, SourceState::Fallback, SINCE);
    driver.accept(0, ListenerKind::Http, stream.as_bytes());
    driver.accept(1, ListenerKind::Http, upgrade.as_bytes());
    driver.turn();
    let text = String::from_utf8(driver.take_sent(0)).unwrap();
    let source = "event: source\ndata: {\"op\":\"source\",\"source\":\"feed\",\"state\":\"fallback\",\
         \"since\":1700000000000000000}\n\n";
    assert!(text.contains(source), "{text}");
    driver.sent.clear();
    let messages_of = |driver: &mut Driver| {
        driver.turn();
        let sent = driver.take_sent(1);
        let texts = messages(&sent).into_iter().map(|(_, bytes)| String::from_utf8(bytes).unwrap());
        texts.collect::<Vec<String>>()
    };
    driver.receive(1, &masked(0x81, b"40"));
    let told = messages_of(&mut driver);
    assert!(told[0].starts_with("40") && told[1].starts_with("42[\"source\",{\"op\":\"source\""), "{told:?}");
    driver.receive(1, &masked(0x81, b"42[\"subscribe\",\"t.a\"]"));
    driver.turn();
    request(&mut driver.shard, &tick(FEED, "t.a"));
    driver.turn();
    driver.sent.clear();
    driver.shard.set_feed_state(FEED, SourceState::Down, SINCE);
    driver.turn();
    let sent = std::mem::take(&mut driver.sent);
    driver.sent = sent.clone();
    let text = String::from_utf8(driver.take_sent(0)).unwrap();
    let stale = "{\"op\":\"stale\",\"topic\":\"t.a\",\"stale\":true,\"since\":1700000000000000000}";
    assert!(text.contains(&format!("event: stale\ndata: {stale}\n\n")), "{text}");
    driver.sent = sent;
    let told = messages_of(&mut driver);
    assert!(told.contains(&format!("42[\"stale\",{stale}]")), "{told:?}");
}
