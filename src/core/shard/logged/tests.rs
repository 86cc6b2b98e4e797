//! Tests of topics that logs feed, as subscribers see them.

use crate::{
    config::Limits,
    ids::SlotId,
    metrics::counters::Counter,
    shard::ListenerKind,
    testing::{Driver, frame},
};
use tickcast_proto::{
    Step, WireFormat,
    features::Features,
    frame::{self, HeaderFields, HelloParts, Kind},
    logged::{self, LogPosition, log_epoch},
    records::{
        CountedRange, ErrorRecord, LinkedTickTimes, Publish, Recovered, Request, Resume, Subscribe,
        Subscribed, WireRecord,
    },
    subscription::{Policy, Rules},
};

pub(in crate::shard) const LINKED: u32 = 0;
const PLAIN: u32 = 1;

pub(in crate::shard) fn log(position: u64, complete_from: u64) -> LogPosition {
    LogPosition { source: 1, epoch: log_epoch("test", "log", b"1"), position, complete_from }
}

/// A shard with two native clients, one of which has asked for `previous`.
fn driver() -> Driver {
    driver_with(Limits::default())
}

pub(in crate::shard) fn driver_with(limits: Limits) -> Driver {
    let mut driver = Driver::new(Limits { behind_bytes: 2_000, is_fed_by_logs: true, ..limits });
    for (slot, features) in [(LINKED, Features::PREVIOUS.union(Features::COUNTS)), (PLAIN, Features::COUNTS)]
    {
        let mut bytes = Vec::new();
        let hello = HelloParts { request: 1, client: "", name: "test", features };
        frame::encode_hello(&mut bytes, &hello);
        driver.accept(slot, ListenerKind::Native, &bytes);
    }
    driver.sent.clear();
    driver
}

pub(in crate::shard) fn append(driver: &mut Driver, topic: &str, at: LogPosition) {
    let mut bytes = Vec::new();
    logged::encode_append(&mut bytes, at, 0, Publish::default(), topic, b"1");
    let Ok(Step::Complete(_, request)) = frame::decode(&bytes, usize::MAX) else { panic!("a whole frame") };
    driver.shard.handle_request(None, &request, driver.now);
}

/// Appends ticks with these positions, each with the beginning of what its source has read.
pub(in crate::shard) fn append_all(driver: &mut Driver, ticks: &[(u64, u64)]) {
    ticks.iter().for_each(|&(position, from)| append(driver, "t.0", log(position, from)));
}

pub(in crate::shard) fn subscribe(driver: &mut Driver, slot: u32, pattern: &str, record: Subscribe) {
    driver.receive(slot, &frame(Kind::Subscribe, &record, pattern.as_bytes()));
    finish(driver);
}

pub(in crate::shard) fn after(sequence: u64) -> Subscribe {
    Subscribe { from: 2, epoch: log(1, 1).epoch, sequence, ..Subscribe::default() }
}

pub(in crate::shard) fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
}

/// What a client has received since the last call.
pub(in crate::shard) fn received(driver: &mut Driver, slot: u32) -> Vec<String> {
    let (mine, others) = std::mem::take(&mut driver.sent).into_iter().partition(|(to, _)| *to == slot);
    driver.sent = others;
    let mine: Vec<(u32, Vec<u8>)> = mine;
    let bytes: Vec<u8> = mine.into_iter().flat_map(|(_, bytes)| bytes).collect();
    let (mut rest, mut texts) = (&bytes[..], Vec::new());
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        let range = || frame.zero_extended_record::<CountedRange>(16).unwrap();
        texts.extend(match frame.kind {
            Kind::Tick if usize::from(frame.header.record_stride) == LinkedTickTimes::STRIDE => {
                Some(format!("{} after {}", frame.header.sequence, frame.previous()))
            }
            Kind::Tick => Some(frame.header.sequence.to_string()),
            Kind::Gap => Some(format!("gap {} {}: {}", range().from, range().to, range().count)),
            Kind::Conflated => Some(format!("conflated {} {}: {}", range().from, range().to, range().count)),
            Kind::Recovered => {
                let Recovered { sequence, recovered, .. } = frame.record().unwrap();
                Some(format!("recovered {recovered} at {sequence}"))
            }
            Kind::Subscribed if frame.header.topic_id != 0 => {
                let known = frame.record::<Subscribed>().unwrap().epoch == log(1, 1).epoch;
                Some(if known { "topic" } else { "another topic" }.into())
            }
            Kind::Error => Some(format!("error {}", frame.record::<ErrorRecord>().unwrap().code)),
            _ => None,
        });
    }
    assert!(rest.is_empty());
    texts
}

#[test]
fn ticks_have_previous_for_clients_that_ask_and_are_as_before_for_others() {
    let mut driver = driver();
    for slot in [LINKED, PLAIN] {
        subscribe(&mut driver, slot, "t.0", Subscribe::default());
    }
    append_all(&mut driver, &[(50, 41), (51, 41), (60, 41)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, LINKED), ["topic", "50 after 40", "51", "60 after 51"]);
    assert_eq!(received(&mut driver, PLAIN), ["topic", "50", "51", "60"]);
}

#[test]
fn a_hole_in_the_log_is_announced_to_every_live_subscriber_before_the_tick_after_it() {
    for pattern in ["t.0", "t.*"] {
        let mut driver = driver();
        for slot in [LINKED, PLAIN] {
            subscribe(&mut driver, slot, pattern, Subscribe::default());
        }
        append_all(&mut driver, &[(50, 41), (90, 80)]);
        // Another pattern of the session matches too: the hole is announced once.
        subscribe(&mut driver, PLAIN, "*.0", Subscribe::default());
        append_all(&mut driver, &[(95, 80), (120, 110)]);
        finish(&mut driver);
        let linked = [
            "topic",
            "50 after 40",
            "gap 51 80: 1",
            "90 after 79",
            "95 after 90",
            "gap 96 110: 1",
            "120 after 109",
        ];
        assert_eq!(received(&mut driver, LINKED), linked, "{pattern}");
        let plain: Vec<_> = received(&mut driver, PLAIN).into_iter().filter(|text| text != "topic").collect();
        assert_eq!(plain, ["50", "gap 51 80: 1", "90", "95", "gap 96 110: 1", "120"], "{pattern}");
        assert_eq!(driver.shard.counters().value(Counter::LogHoles), 2);
    }
}

#[test]
fn a_client_that_comes_from_a_node_that_had_read_more_gets_every_tick_once() {
    let mut driver = driver();
    append_all(&mut driver, &[(50, 41), (60, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(60));
    subscribe(&mut driver, PLAIN, "t.*", after(75));
    assert_eq!(received(&mut driver, LINKED), ["topic", "recovered 1 at 60"]);
    assert_eq!(received(&mut driver, PLAIN), ["topic", "recovered 1 at 60"]);
    append_all(&mut driver, &[(70, 41), (75, 41), (80, 41), (90, 41)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, LINKED), ["70 after 60", "75 after 70", "80 after 75", "90 after 80"]);
    assert_eq!(received(&mut driver, PLAIN), ["80", "90"], "it has had 70 and 75");
    // During the wait, retention overtakes the node.
    let mut driver = self::driver();
    append_all(&mut driver, &[(50, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(75));
    append_all(&mut driver, &[(70, 41), (100, 90)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, LINKED), ["topic", "recovered 1 at 50", "gap 76 90: 1", "100 after 89"]);
}

#[test]
fn a_place_before_what_the_node_has_read_is_not_recovered() {
    let mut driver = driver();
    append_all(&mut driver, &[(50, 41), (60, 41)]);
    subscribe(&mut driver, LINKED, "t.0", after(39));
    assert_eq!(received(&mut driver, LINKED), ["topic", "recovered 0 at 60", "60 after 50"]);
    subscribe(&mut driver, PLAIN, "t.0", after(40));
    assert_eq!(received(&mut driver, PLAIN), ["topic", "recovered 1 at 60", "50", "60"]);
}

#[test]
fn another_life_of_the_log_is_another_topic_and_repeated_ticks_are_dropped() {
    let mut driver = driver();
    subscribe(&mut driver, LINKED, "t.*", Subscribe::default());
    append_all(&mut driver, &[(50, 41), (60, 41), (50, 41), (60, 41), (61, 41)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, LINKED), ["topic", "50 after 40", "60 after 50", "61"]);
    let again = LogPosition { epoch: log_epoch("test", "log", b"2"), ..log(3, 1) };
    append(&mut driver, "t.0", again);
    append(&mut driver, "t.0", LogPosition { source: 2, ..log(70, 41) });
    finish(&mut driver);
    assert_eq!(received(&mut driver, LINKED), ["another topic", "3 after 0"]);
    let counters = driver.shard.counters();
    let counts = [Counter::LogTicksRepeated, Counter::TopicsReplaced, Counter::LogTicksForeign];
    assert_eq!(counts.map(|counter| counters.value(counter)), [2, 1, 1]);
}

#[test]
fn a_publish_to_a_topic_that_a_log_feeds_is_refused_with_a_code_of_its_own() {
    let mut driver = driver();
    append_all(&mut driver, &[(50, 41)]);
    let mut bytes = Vec::new();
    let record = Publish { request: 7, ..Publish::default() };
    frame::encode_publish_with(&mut bytes, HeaderFields::default(), record, "t.0", &[], b"2");
    driver.receive(PLAIN, &bytes);
    finish(&mut driver);
    assert_eq!(received(&mut driver, PLAIN), ["error 110"]);
    let counters = driver.shard.counters();
    let counts = [Counter::TicksRefused, Counter::TicksRefusedFedByLog, Counter::TopicsRefused];
    assert_eq!(counts.map(|counter| counters.value(counter)), [1, 1, 0]);
}

#[test]
fn what_is_conflated_of_a_log_is_counted_in_ticks_and_holes_are_not_conflated() {
    let mut driver = driver();
    let policy = Policy::Conflate as u8;
    subscribe(&mut driver, PLAIN, "t.0", Subscribe { policy, ..Subscribe::default() });
    driver.full.insert(PLAIN);
    append_all(&mut driver, &[(50, 41)]);
    finish(&mut driver);
    (0..40).for_each(|at| append(&mut driver, "t.0", log(60 + 10 * at, 41)));
    finish(&mut driver);
    append_all(&mut driver, &[(1_000, 900)]);
    driver.open();
    finish(&mut driver);
    let texts = received(&mut driver, PLAIN);
    assert_eq!(texts[..2], ["topic", "50"]);
    assert_eq!(texts[2..], ["conflated 60 451: 40", "gap 451 900: 1", "1000"]);
    // The ticks between two holes have been read, so they are replaced.
    driver.full.insert(PLAIN);
    append_all(&mut driver, &[(1_001, 900)]);
    finish(&mut driver);
    (0..40).for_each(|at| append(&mut driver, "t.0", log(1_010 + at, 900)));
    append_all(&mut driver, &[(1_200, 1_100), (1_300, 1_100), (1_500, 1_400), (1_600, 1_400)]);
    driver.open();
    finish(&mut driver);
    let texts = received(&mut driver, PLAIN);
    let gaps = ["gap 1050 1100: 1", "conflated 1100 1301: 2", "gap 1301 1400: 1", "conflated 1400 1600: 1"];
    assert_eq!(texts[texts.len() - 5..], [&gaps[..], &["1600"]].concat());
}

#[test]
fn a_session_keeps_the_format_of_its_first_hello_once_it_has_subscribed() {
    let mut driver = driver();
    subscribe(&mut driver, PLAIN, "t.0", Subscribe::default());
    let mut bytes = Vec::new();
    let hello = HelloParts { request: 2, client: "", name: "test", features: Features::PREVIOUS };
    frame::encode_hello(&mut bytes, &hello);
    driver.receive(PLAIN, &bytes);
    append_all(&mut driver, &[(50, 41)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, PLAIN), ["topic", "50"]);
    assert_eq!(WireFormat::TCP_NATIVE.with(Features::PREVIOUS).name(), "native");
}

fn from_saved() -> Subscribe {
    Subscribe { from: 3, ..Subscribe::default() }
}

/// Saves a position in a topic for the next subscription from saved positions.
fn resume(driver: &mut Driver, slot: u32, topic: &str, sequence: u64) {
    let record = Resume { epoch: log(1, 1).epoch, sequence };
    driver.receive(slot, &frame(Kind::Resume, &record, topic.as_bytes()));
}

#[test]
fn an_unsubscribed_place_is_not_used() {
    let mut driver = driver();
    subscribe(&mut driver, PLAIN, "t.0", after(200));
    resume(&mut driver, LINKED, "t.0", 200);
    for pattern in ["t.*", "*.0"] {
        subscribe(&mut driver, LINKED, pattern, from_saved());
    }
    for (slot, pattern) in [(PLAIN, "t.0"), (LINKED, "t.*")] {
        driver.receive(slot, &frame(Kind::Unsubscribe, &Request::default(), pattern.as_bytes()));
    }
    finish(&mut driver);
    subscribe(&mut driver, PLAIN, "t.0", Subscribe::default());
    append_all(&mut driver, &[(150, 141), (210, 141)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, PLAIN), ["topic", "150", "210"]);
    assert_eq!(received(&mut driver, LINKED), ["topic", "150 after 140", "210 after 150"]);
}

#[test]
fn a_place_waits_while_the_subscription_that_gave_it_lives() {
    let mut driver = driver();
    resume(&mut driver, LINKED, "t.0", 200);
    for pattern in ["*.0", "t.*"] {
        subscribe(&mut driver, LINKED, pattern, from_saved());
    }
    driver.receive(LINKED, &frame(Kind::Unsubscribe, &Request::default(), b"t.*"));
    finish(&mut driver);
    for position in [150, 210] {
        append_all(&mut driver, &[(position, 141)]);
        finish(&mut driver);
    }
    assert_eq!(received(&mut driver, LINKED), ["topic", "recovered 1 at 150", "210 after 150"]);
}

#[test]
fn a_session_ahead_of_an_idle_topic_keeps_its_position_until_the_log_brings_it_back() {
    let idle_ns = 10_000_000;
    let mut driver = driver_with(Limits { topic_idle: Rules::all(idle_ns), ..Limits::default() });
    append_all(&mut driver, &[(150, 141)]);
    for slot in [LINKED, PLAIN] {
        resume(&mut driver, slot, "t.0", 200);
        subscribe(&mut driver, slot, "t.*", from_saved());
    }
    assert_eq!(received(&mut driver, LINKED), ["topic", "recovered 1 at 150"]);
    while driver.shard.counters().value(Counter::TopicsForgotten) == 0 {
        driver.jump(idle_ns / 8);
        finish(&mut driver);
    }
    for position in [180, 210] {
        append_all(&mut driver, &[(position, 141)]);
        finish(&mut driver);
    }
    let texts = received(&mut driver, LINKED);
    assert_eq!(texts[texts.len() - 2..], ["recovered 1 at 180", "210 after 180"], "{texts:?}");
    assert!(!texts.iter().any(|text| text.starts_with("180") || text.starts_with("gap")), "{texts:?}");
}

#[test]
fn a_place_in_a_topic_that_is_created_while_its_session_joins_others_is_used() {
    let mut driver = driver();
    for at in 1..=5_000 {
        append(&mut driver, &format!("t.{at}"), log(at, 1));
        if at.is_multiple_of(500) {
            finish(&mut driver);
        }
    }
    for slot in [LINKED, PLAIN] {
        resume(&mut driver, slot, "t.0", 6_300);
        driver.receive(slot, &frame(Kind::Subscribe, &from_saved(), b"t.*"));
    }
    driver.turn();
    driver.sent.clear();
    append(&mut driver, "t.0", log(6_250, 1));
    assert!(driver.shard.is_busy(), "the sessions still join topics");
    finish(&mut driver);
    append(&mut driver, "t.0", log(6_310, 1));
    finish(&mut driver);
    for (slot, next) in [(LINKED, "6310 after 6250"), (PLAIN, "6310")] {
        let texts = received(&mut driver, slot);
        let of_topic: Vec<&String> =
            texts.iter().filter(|text| text.contains("6250") || text.contains("6310")).collect();
        assert_eq!(of_topic, ["recovered 1 at 6250", next]);
    }
}

#[test]
fn places_beyond_the_memory_for_positions_are_answered_at_once_and_an_ended_session_leaves_room() {
    let mut driver = driver_with(Limits { positions_bytes_max: 400, ..Limits::default() });
    for topic in ["t.0", "t.1", "t.2"] {
        subscribe(&mut driver, LINKED, topic, after(200));
    }
    assert_eq!(received(&mut driver, LINKED), ["recovered 0 at 0"], "there is room for two");
    subscribe(&mut driver, PLAIN, "t.3", after(200));
    assert_eq!(received(&mut driver, PLAIN), ["recovered 0 at 0"]);
    driver.shard.handle_error(SlotId(LINKED), 104, driver.now);
    finish(&mut driver);
    for topic in ["t.4", "t.5"] {
        subscribe(&mut driver, PLAIN, topic, after(200));
    }
    assert!(received(&mut driver, PLAIN).is_empty());
}

#[test]
fn without_a_log_no_place_waits_for_one() {
    let mut driver = Driver::new(Limits::default());
    driver.accept(PLAIN, ListenerKind::Native, &crate::testing::hello());
    subscribe(&mut driver, PLAIN, "t.0", after(200));
    assert!(received(&mut driver, PLAIN).contains(&"recovered 0 at 0".to_owned()));
}

#[test]
fn a_session_that_leaves_a_topic_no_longer_waits_for_it() {
    let mut driver = driver();
    append_all(&mut driver, &[(50, 41)]);
    for sequence in [70, 80, 90] {
        subscribe(&mut driver, PLAIN, "t.0", after(sequence));
        driver.receive(PLAIN, &frame(Kind::Unsubscribe, &Request::default(), b"t.0"));
        finish(&mut driver);
    }
    subscribe(&mut driver, PLAIN, "t.0", after(60));
    driver.sent.clear();
    append_all(&mut driver, &[(60, 41), (65, 41), (75, 41)]);
    finish(&mut driver);
    assert_eq!(received(&mut driver, PLAIN), ["65", "75"]);
}
