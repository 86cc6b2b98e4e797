//! Tests of topics that open while their publishers never stop.

use std::collections::HashMap;

use super::opening_tests::{PUBLISHER, Reader, accept_members, driver, finish, read};
use crate::{
    ids::SlotId,
    metrics::counters::Counter,
    shard::Action,
};
use tickcast_proto::{frame, records::Publish};

#[test]
fn a_topic_whose_publisher_never_stops_opens_without_loss() {
    const MEMBERS: u32 = 3_000;
    /// What the publisher sends in a turn in which the shard reads from it.
    const SENT_BYTES: usize = 64 << 10;
    let mut driver = driver();
    accept_members(&mut driver, 1..=MEMBERS, "n.1");
    finish(&mut driver);
    driver.sent.clear();
    driver.actions.clear();
    let mut readers = HashMap::<u32, Reader>::new();
    let (mut turns, mut is_paused) = (0, false);
    while turns == 0 || driver.shard.fanout.opens_topics() {
        if !is_paused {
            let mut bytes = Vec::new();
            while bytes.len() < SENT_BYTES {
                frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), "n.1", &[b'x'; 100]);
            }
            driver.receive(PUBLISHER, &bytes);
        }
        driver.turn();
        for action in driver.actions.drain(..) {
            match action {
                Action::PauseReceive(SlotId(PUBLISHER)) => is_paused = true,
                Action::ResumeReceive(SlotId(PUBLISHER)) => is_paused = false,
                _ => {}
            }
        }
        read(&mut driver, &mut readers);
        turns += 1;
        assert!(turns < 40, "the topic opens");
    }
    finish(&mut driver);
    read(&mut driver, &mut readers);
    assert!(turns > 1, "it opens in pieces");
    assert_eq!(driver.shard.counters().value(Counter::OpeningTicksLost), 0);
    let sequenced = driver.shard.counters().value(Counter::TicksSequenced);
    for slot in 1..=MEMBERS {
        let reader = &readers[&slot];
        assert_eq!((reader.ticks as u64, reader.lost, reader.last["n.1"]), (sequenced, 0, (1, sequenced)));
    }
}
