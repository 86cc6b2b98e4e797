//! Tests of topics that open while their publishers never stop, or while a session walks over them.

use std::collections::HashMap;

use super::opening_tests::{
    FEW, PUBLISHER, Reader, accept_members, driver, driver_with, finish, paced, pass_until_forgotten,
    publish, read, subscribe,
};
use crate::{
    ids::SlotId,
    metrics::counters::Counter,
    shard::{Action, ListenerKind},
    testing::hello,
};
use tickcast_proto::{frame, records::Publish, subscription::Policy};

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

#[test]
fn a_session_whose_walk_passes_over_a_topic_that_is_still_opening_joins_it() {
    const MEMBERS: u32 = 9;
    const WALKER: u32 = MEMBERS + 1;
    const TOPICS: usize = 4_000;
    // A full table: the new topic takes the place of the one that is forgotten, so the walk comes to more topics after it.
    let mut driver = driver_with(TOPICS + 1);
    for slot in 1..=WALKER {
        driver.accept(slot, ListenerKind::Native, &hello());
        if slot < WALKER {
            subscribe(&mut driver, slot, "x.*", paced(Policy::Conflate));
        }
    }
    // So many topics that the walk takes turns, passes over the new one while that opens, and is still under way when its turn to
    // join comes.
    (0..TOPICS / 4).for_each(|topic| publish(&mut driver, &format!("n.{topic}"), b"x"));
    publish(&mut driver, "t.0", b"x");
    (TOPICS / 4..TOPICS).for_each(|topic| publish(&mut driver, &format!("n.{topic}"), b"x"));
    subscribe(&mut driver, 1, "t.*", paced(Policy::Conflate));
    finish(&mut driver);
    pass_until_forgotten(&mut driver);
    finish(&mut driver);
    driver.shard.set_opening_units(FEW);
    subscribe(&mut driver, WALKER, ">", paced(Policy::Conflate));
    let mut turns = 0;
    while driver.shard.fanout.joins_len() == 0 {
        driver.turn();
        turns += 1;
        assert!(turns < 100, "the walk begins");
    }
    driver.sent.clear();
    publish(&mut driver, "x.1", b"x");
    while driver.shard.fanout.opens_topics() {
        driver.turn();
        assert_eq!(driver.shard.fanout.joins_len(), 1, "the walk takes longer");
    }
    finish(&mut driver);
    let mut readers = HashMap::<u32, Reader>::new();
    driver.sent.retain(|(slot, _)| *slot == WALKER);
    read(&mut driver, &mut readers);
    assert_eq!(readers[&WALKER].last.get("x.1"), Some(&(1, 1)));
}
