//! Tests of subscriptions that resume topics without a position from when they became live.

use crate::{
    config::Limits,
    session::ListenerKind,
    testing::{Driver, frame, hello},
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

fn accept(driver: &mut Driver, slot: u32) {
    let mut bytes = Vec::new();
    let hello = HelloParts { request: 1, client: "", name: "", features: Features::SINCE };
    frame::encode_hello(&mut bytes, &hello);
    driver.accept(slot, ListenerKind::Native, &bytes);
}

/// Publishes a tick, and lets a millisecond pass before and after.
fn publish(driver: &mut Driver, topic: &str) {
    let mut bytes = Vec::new();
    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, b"1");
    driver.jump(1_000_000);
    driver.now.realtime_ns += 1_000_000;
    driver.receive(PUBLISHER, &bytes);
    driver.turn();
    driver.jump(1_000_000);
    driver.now.realtime_ns += 1_000_000;
}

/// The ticks that a new client receives that subscribes like this, as topic number and sequence, and its acknowledgement.
fn subscribed(driver: &mut Driver, slot: u32, record: Subscribe) -> (Vec<(u32, u64)>, SubscribedSince) {
    driver.sent.clear();
    driver.receive(slot, &frame(Kind::Subscribe, &record, b"t.>"));
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
    let bytes = driver.take_sent(slot);
    let (mut rest, mut ticks, mut acknowledged) = (&bytes[..], Vec::new(), SubscribedSince::default());
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        rest = &rest[used..];
        match frame.kind {
            Kind::Tick => ticks.push((frame.header.topic_id, frame.header.sequence)),
            Kind::Subscribed if frame.header.topic_id == 0 => {
                acknowledged = frame.zero_extended_record(16).unwrap();
                let is_long = usize::from(frame.header.record_stride) == SubscribedSince::STRIDE;
                assert_eq!(is_long, acknowledged.since_us != 0, "sent to those who know it");
            }
            Kind::Subscribed => {}
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
    for slot in [SUBSCRIBER, RESUMED, OF_OTHER_NODE] {
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
    let (ticks, acknowledged) = subscribed(&mut driver, WITHOUT_FEATURE, Subscribe::default());
    assert_eq!((ticks, acknowledged.since_us), (vec![], 0));
}
