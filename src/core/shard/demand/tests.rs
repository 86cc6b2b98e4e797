//! Tests of topics that a source subscribes to on demand, as subscribers see them.

use crate::{
    config::Limits,
    demand::DemandConfig,
    ids::{TenantId, UpstreamId},
    limits::DEMAND_RING,
    metrics::counters::Counter,
    shard::{ListenerKind, ORIGIN_SOURCE},
    testing::{Driver, frame, hello},
};
use tickcast_proto::{
    Step,
    frame::{self, HeaderFields, Kind},
    records::{Publish, Recovered, Request, Subscribe, Subscribed},
};

const SOURCE: u32 = 1;

/// A shard with native clients in these slots.
fn driver(slots: u32) -> Driver {
    let topics = vec!["t.>".into()];
    let on_demand = vec![DemandConfig { source: SOURCE, tenant: TenantId::DEFAULT, topics }];
    let mut driver = Driver::new(Limits { on_demand, ..Limits::default() });
    for slot in 0..slots {
        driver.accept(slot, ListenerKind::Native, &hello());
    }
    driver.sent.clear();
    driver
}

fn finish(driver: &mut Driver) {
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
}

fn request(driver: &mut Driver, bytes: &[u8]) {
    let Ok(Step::Complete(_, request)) = frame::decode(bytes, usize::MAX) else { panic!("a whole frame") };
    driver.shard.handle_request(None, &request, driver.now);
    finish(driver);
}

/// A tick of a source, by this subscription.
fn tick(driver: &mut Driver, topic: &str, UpstreamId(topic_id): UpstreamId) {
    let mut bytes = Vec::new();
    let fields = HeaderFields { sequence: ORIGIN_SOURCE, topic_id, ..HeaderFields::default() };
    frame::encode_publish_with(&mut bytes, fields, Publish::default(), topic, &[], b"1");
    request(driver, &bytes);
}

/// The end of a subscription.
fn lapse(driver: &mut Driver, UpstreamId(topic_id): UpstreamId) {
    let mut bytes = Vec::new();
    let fields = HeaderFields { topic_id, ..HeaderFields::default() };
    frame::encode(&mut bytes, Kind::Forget, fields, &Request::default(), &[]);
    request(driver, &bytes);
}

fn subscribe(driver: &mut Driver, slot: u32, pattern: &str, record: Subscribe) {
    driver.receive(slot, &frame(Kind::Subscribe, &record, pattern.as_bytes()));
    finish(driver);
}

fn unsubscribe(driver: &mut Driver, slot: u32, pattern: &str) {
    driver.receive(
        slot,
        &frame(Kind::Unsubscribe, &Request { request: 9, ..Request::default() }, pattern.as_bytes()),
    );
    finish(driver);
}

fn after(epoch: u64, sequence: u64) -> Subscribe {
    Subscribe { from: 2, epoch, sequence, ..Subscribe::default() }
}

/// What a client has received since the last call, and the epoch of the last topic announced.
fn received(driver: &mut Driver, slot: u32) -> (Vec<String>, u64) {
    let (own, others) = std::mem::take(&mut driver.sent).into_iter().partition(|(to, _)| *to == slot);
    driver.sent = others;
    let own: Vec<(u32, Vec<u8>)> = own;
    let bytes: Vec<u8> = own.into_iter().flat_map(|(_, bytes)| bytes).collect();
    let (mut rest, mut texts, mut epoch) = (&bytes[..], Vec::new(), 0);
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        texts.extend(match frame.kind {
            Kind::Tick => Some(frame.header.sequence.to_string()),
            Kind::Recovered => Some(format!("recovered {}", frame.record::<Recovered>().unwrap().recovered)),
            Kind::Subscribed if frame.header.topic_id != 0 => {
                epoch = frame.record::<Subscribed>().unwrap().epoch;
                Some("topic".into())
            }
            _ => None,
        });
    }
    assert!(rest.is_empty());
    (texts, epoch)
}

/// What the source has to learn since the last call.
fn changes(driver: &mut Driver) -> Vec<String> {
    let changes: Vec<_> =
        driver.shard.with_demand_changes(SOURCE, |changes| changes.drain(..).collect()).unwrap();
    let text = |is_wanted| if is_wanted { '+' } else { '-' };
    changes
        .iter()
        .map(|change| format!("{}{}", text(change.is_wanted), change.pattern.as_deref().unwrap()))
        .collect()
}

#[test]
fn a_source_learns_of_the_first_subscriber_of_a_pattern_and_of_the_last_ones_end() {
    let mut driver = driver(3);
    subscribe(&mut driver, 0, "t.a", Subscribe::default());
    subscribe(&mut driver, 1, "t.a", Subscribe::default());
    subscribe(&mut driver, 1, "other.a", Subscribe::default());
    assert_eq!(changes(&mut driver), ["+t.a"]);
    subscribe(&mut driver, 2, "t.*", Subscribe::default());
    unsubscribe(&mut driver, 0, "t.a");
    assert_eq!(changes(&mut driver), ["+t.*"]);
    driver.shard.handle_error(crate::ids::SlotId(1), 104, driver.now);
    driver.shard.handle_error(crate::ids::SlotId(2), 104, driver.now);
    finish(&mut driver);
    assert_eq!(changes(&mut driver), ["-t.a", "-t.*"], "an ended session holds nothing");
    assert!(driver.shard.with_demand_changes(SOURCE + 1, |_| ()).is_none());
}

#[test]
fn clients_that_come_and_go_while_the_source_is_stuck_fill_no_queue() {
    let mut driver = driver(1);
    for n in 0..10 * DEMAND_RING {
        subscribe(&mut driver, 0, &format!("t.{}", n % 7), Subscribe::default());
        unsubscribe(&mut driver, 0, &format!("t.{}", n % 7));
    }
    assert!(changes(&mut driver).is_empty());
}

#[test]
fn a_place_is_recovered_while_the_subscription_lives_and_not_after_it() {
    let (first, second) = (UpstreamId(5), UpstreamId(6));
    let mut driver = driver(3);
    subscribe(&mut driver, 0, "t.a", Subscribe::default());
    tick(&mut driver, "t.a", first);
    let (got, epoch) = received(&mut driver, 0);
    assert_eq!(got, ["topic", "1"]);
    unsubscribe(&mut driver, 0, "t.a");
    // It lingers.
    tick(&mut driver, "t.a", first);
    subscribe(&mut driver, 1, "t.a", after(epoch, 1));
    assert_eq!(received(&mut driver, 1).0, ["topic", "recovered 1", "2"]);
    lapse(&mut driver, first);
    assert_eq!(driver.shard.counters().value(Counter::TopicsLapsed), 1);
    subscribe(&mut driver, 0, "t.a", after(epoch, 2));
    assert_eq!(received(&mut driver, 0).0, ["recovered 0"], "ticks may be missing");
    tick(&mut driver, "t.a", second);
    subscribe(&mut driver, 2, "t.a", after(epoch, 2));
    let (got, again) = received(&mut driver, 1);
    assert!(got == ["topic", "1"] && again > epoch, "another life is announced to who has stayed: {got:?}");
    assert_eq!(received(&mut driver, 2).0, ["topic", "recovered 0", "1"]);
}

#[test]
fn ticks_by_another_subscription_begin_another_life() {
    let mut driver = driver(2);
    subscribe(&mut driver, 0, "t.a", Subscribe::default());
    for upstream in [0, 0, 5, 5, 6, 0].map(UpstreamId) {
        tick(&mut driver, "t.a", upstream);
    }
    // Ticks of clients, and of sources that read all the time, say nothing of what is missing.
    assert_eq!(received(&mut driver, 0).0, ["topic", "1", "2", "topic", "1", "2", "topic", "1", "2"]);
    assert_eq!(driver.shard.counters().value(Counter::TopicsLapsed), 2);
}
