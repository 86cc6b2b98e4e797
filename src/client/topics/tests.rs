use super::*;
use tickcast_proto::logged::log_epoch;

fn topics() -> Topics {
    let mut topics = Topics::new();
    topics.announce(5, "a", 1).unwrap();
    topics
}

/// Topic 5 `a` on a connection that resumes it after sequence 50 of epoch 1.
fn resumed(epoch: u64, sequence: u64, recovered: bool) -> Topics {
    let mut topics = Topics::new();
    topics.add_position("a", Position { epoch: 1, sequence: 50 }, Announcer::Server);
    topics.announce(5, "a", epoch).unwrap();
    let answered = topics.recover(Some(5), "a", epoch, sequence, recovered).unwrap();
    assert_eq!(answered, (5, Position { epoch: 1, sequence: 50 }));
    topics
}

fn tick(topics: &mut Topics, sequence: u64) -> Result<u64, ProtocolError> {
    let advance = topics.advance(5, sequence, sequence.saturating_sub(1), false)?;
    assert_eq!(advance.skipped, None);
    Ok(advance.missed)
}

/// First sequence of the skipped range before a snapshot tick.
fn snapshot(topics: &mut Topics, sequence: u64) -> Option<u64> {
    let advance = topics.advance(5, sequence, sequence - 1, true).unwrap();
    assert_eq!(advance.missed, 0);
    advance.skipped.map(|range| range.from)
}

#[test]
fn jump_after_the_first_tick_counts_as_missed() {
    let mut topics = topics();
    assert_eq!(tick(&mut topics, 10), Ok(0));
    assert_eq!(tick(&mut topics, 11), Ok(0));
    assert_eq!(tick(&mut topics, 15), Ok(3));
    let topic = topics.topic(5).unwrap();
    assert_eq!((topic.first_sequence, topic.last_sequence, topic.ticks, topic.missed), (10, 15, 3, 3));
}

#[test]
fn sequence_that_does_not_increase_is_an_error() {
    for again in [0, 1, 7] {
        let mut topics = topics();
        tick(&mut topics, 7).unwrap();
        assert!(matches!(tick(&mut topics, again), Err(ProtocolError::OutOfOrder { previous: 7, .. })));
    }
    assert!(matches!(tick(&mut topics(), 0), Err(ProtocolError::OutOfOrder { .. })));
    assert!(matches!(tick(&mut topics(), u64::MAX), Err(ProtocolError::OutOfOrder { .. })));
}

#[test]
fn fast_path_takes_only_the_next_tick() {
    let mut topics = topics();
    assert_eq!(
        (topics.advance_in_order(5, 1, 0), topics.advance_in_order(6, 1, 0)),
        (None, None),
        "the first tick, an unknown topic"
    );
    tick(&mut topics, 7).unwrap();
    assert_eq!(
        (
            topics.advance_in_order(5, 7, 6),
            topics.advance_in_order(5, 9, 8),
            topics.advance_in_order(5, 0, 0)
        ),
        (None, None, None)
    );
    assert!(topics.advance_in_order(5, 8, 7).is_some());
    assert!(matches!(tick(&mut topics, 8), Err(ProtocolError::OutOfOrder { previous: 8, .. })));
    assert_eq!(topics.topic(5).map(|topic| (topic.ticks, topic.last_sequence)), Some((2, 8)));
    topics.interrupt();
    assert_eq!(
        (topics.advance_in_order(5, 0, 0), topics.advance_in_order(5, 9, 8)),
        (None, None),
        "any sequence may be next, but 0 is none"
    );
}

#[test]
fn ticks_and_ranges_of_unknown_topics_are_errors() {
    assert_eq!(topics().advance(6, 1, 0, false), Err(ProtocolError::UnknownTopic("6".into())));
    assert_eq!(topics().skip(6, SkipReason::Gap, 1, 2, 1), Err(ProtocolError::UnknownTopic("6".into())));
    assert_eq!((topics().id("a"), topics().id("b")), (Some(5), None));
}

#[test]
fn a_new_life_has_a_new_number_and_starts_over() {
    let mut topics = topics();
    tick(&mut topics, 7).unwrap();
    topics.announce(9, "a", 2).unwrap();
    assert_eq!((topics.id("a"), topics.topic(5)), (Some(9), None));
    assert_eq!(topics.advance(9, 1, 0, false).map(|advance| advance.missed), Ok(0));
    assert_eq!(topics.iter().map(|(id, topic)| (id, topic.epoch)).collect::<Vec<_>>(), [(9, 2)]);
}

#[test]
fn new_epoch_restarts_counting_and_new_name_is_an_error() {
    let mut topics = topics();
    tick(&mut topics, 7).unwrap();
    topics.announce(5, "a", 1).unwrap();
    assert_eq!(tick(&mut topics, 8), Ok(0));
    topics.announce(5, "a", 2).unwrap();
    assert_eq!(tick(&mut topics, 1), Ok(0));
    assert!(matches!(topics.announce(5, "b", 2), Err(ProtocolError::TopicRenamed { topic_id: 5, .. })));
}

#[test]
fn ticks_while_unsubscribed_are_not_missed_and_sequences_may_repeat() {
    let mut topics = topics();
    tick(&mut topics, 1).unwrap();
    topics.interrupt();
    assert_eq!(tick(&mut topics, 100), Ok(0));
    assert_eq!(tick(&mut topics, 102), Ok(1));
    topics.interrupt();
    assert_eq!(tick(&mut topics, 50), Ok(0));
    assert!(tick(&mut topics, 50).is_err());
}

#[test]
fn announced_ranges_are_not_missed() {
    let mut topics = topics();
    tick(&mut topics, 1).unwrap();
    assert_eq!(topics.skip(5, SkipReason::Conflated, 2, 5, 3), Ok(None));
    assert_eq!(tick(&mut topics, 5), Ok(0));
    assert_eq!(topics.skip(5, SkipReason::Gap, 6, 8, 2), Ok(None));
    assert_eq!(topics.skip(5, SkipReason::Conflated, 8, 9, 1), Ok(None));
    assert_eq!(tick(&mut topics, 9), Ok(0));
    // 10 and 13 were neither delivered nor announced.
    assert_eq!(topics.skip(5, SkipReason::Gap, 11, 13, 2), Ok(None));
    assert_eq!(tick(&mut topics, 14), Ok(2));
    let topic = topics.topic(5).unwrap();
    assert_eq!((topic.ticks, topic.missed, topic.conflated, topic.gap), (4, 2, 4, 4));
    assert_eq!(topic.ticks + topic.missed + topic.conflated + topic.gap, topic.last_sequence);
}

#[test]
fn empty_ranges_and_ranges_already_received_are_errors() {
    for (from, to) in [(7, 9), (8, 8), (9, 8), (0, 1)] {
        let mut topics = topics();
        tick(&mut topics, 7).unwrap();
        let rejected = topics.skip(5, SkipReason::Gap, from, to, 1);
        assert!(matches!(rejected, Err(ProtocolError::BadRange { .. })), "{from} {to}");
    }
    let mut topics = topics();
    topics.skip(5, SkipReason::Gap, 1, 9, 8).unwrap();
    assert!(tick(&mut topics, 8).is_err(), "it was announced as lost");
}

#[test]
fn recovered_topic_continues_after_the_position() {
    let mut topics = resumed(1, 53, true);
    assert_eq!((tick(&mut topics, 51), tick(&mut topics, 52)), (Ok(0), Ok(0)));
    assert_eq!(tick(&mut resumed(1, 53, true), 53), Ok(2), "ticks after the position are missing");
    let overlap = tick(&mut resumed(1, 53, true), 50);
    assert!(matches!(overlap, Err(ProtocolError::OutOfOrder { previous: 50, sequence: 50, .. })));
}

#[test]
fn snapshot_instead_of_history_announces_exactly_what_it_lacks() {
    let mut topics = resumed(1, 60, false);
    // A key whose last tick is older than the position, then newer ones.
    assert_eq!(snapshot(&mut topics, 30), None);
    assert_eq!(snapshot(&mut topics, 55), Some(51));
    assert_eq!(snapshot(&mut topics, 56), None);
    assert_eq!(snapshot(&mut topics, 60), Some(57));
    assert_eq!(tick(&mut topics, 61), Ok(0));
    assert_eq!(topics.topic(5).unwrap().gap, 4 + 3);
    assert_eq!(tick(&mut topics, 63), Ok(1), "after the snapshot, jumps count as missed again");
}

#[test]
fn new_epoch_starts_over_and_announces_its_own_gap() {
    let mut topics = resumed(2, 9, false);
    assert_eq!(snapshot(&mut topics, 9), Some(1));
    assert_eq!(tick(&mut topics, 10), Ok(0));
    assert_eq!(topics.topic(5).unwrap().gap, 8);
}

#[test]
fn position_ahead_of_the_topic_does_not_block_its_ticks() {
    let mut topics = resumed(1, 20, false);
    assert_eq!(snapshot(&mut topics, 20), None);
    assert_eq!(tick(&mut topics, 21), Ok(0));
}

#[test]
fn announcement_after_the_answer_applies_it() {
    for by_name in [false, true] {
        let mut topics = Topics::new();
        topics.add_position("a", Position { epoch: 1, sequence: 50 }, Announcer::Server);
        let id = if by_name { None } else { Some(5) };
        topics.recover(id, "a", 1, 60, true).unwrap();
        topics.announce(5, "a", 1).unwrap();
        assert_eq!(tick(&mut topics, 53), Ok(2));
    }
}

#[test]
fn pattern_position_holds_for_all_its_topics() {
    let mut topics = topics();
    topics.add_pattern_position("*", Position { epoch: 1, sequence: 4 });
    assert_eq!(topics.recover(Some(5), "a", 1, 9, true), Ok((5, Position { epoch: 1, sequence: 4 })));
    assert_eq!(tick(&mut topics, 6), Ok(1));
}

#[test]
fn position_not_sent_to_the_server_is_reported_by_the_connection() {
    let position = Position { epoch: 1, sequence: 50 };
    let announced = |epoch, reason| {
        let mut topics = Topics::new();
        topics.add_position("a", position, Announcer::Client(reason));
        let not_recovered = topics.announce(5, "a", epoch).unwrap();
        (topics, not_recovered)
    };
    let range = |reason, from| Some(OpenRange { reason, from });
    let (mut topics, not_recovered) = announced(1, SkipReason::Conflated);
    assert_eq!(not_recovered, None, "the last tick replaces the others: nothing is lost");
    assert_eq!(topics.advance(5, 60, 59, true).unwrap().skipped, range(SkipReason::Conflated, 51));
    assert_eq!(topics.topic(5).unwrap().conflated, 9);

    let (mut topics, not_recovered) = announced(1, SkipReason::Gap);
    assert_eq!(not_recovered, Some(position));
    assert_eq!(topics.skip(5, SkipReason::Conflated, 55, 60, 5), Ok(range(SkipReason::Gap, 51)));
    assert_eq!(tick(&mut topics, 60), Ok(0));

    let (mut topics, not_recovered) = announced(2, SkipReason::Conflated);
    assert_eq!(not_recovered, Some(position), "another epoch is always reported");
    assert_eq!(tick(&mut topics, 3), Ok(0));
}

/// Topic 5 `a`, which a log feeds, after its tick at position 100.
fn of_log() -> Topics {
    let mut topics = Topics::new();
    topics.announce(5, "a", log_epoch("test", "log", b"")).unwrap();
    assert_eq!(topics.advance(5, 100, 70, false).unwrap().missed, 0, "the first tick");
    topics
}

#[test]
fn numbers_that_a_log_gives_to_other_topics_are_not_missed() {
    let mut topics = of_log();
    assert!(topics.advance_in_order(5, 120, 100).is_some());
    assert_eq!(topics.advance_in_order(5, 140, 121), None, "tick 121, or one before it");
    assert_eq!(topics.advance(5, 140, 121, false).unwrap().missed, 1);
    assert_eq!(topics.advance(5, 150, 140, false).unwrap().missed, 0);
    assert!(topics.advance(5, 150, 140, false).is_err(), "positions increase all the same");
}

#[test]
fn a_range_of_a_log_counts_what_the_server_says_and_ends_where_the_next_tick_may_begin() {
    let mut topics = of_log();
    assert_eq!(topics.skip(5, SkipReason::Gap, 120, 131, 3), Ok(None));
    assert_eq!(topics.advance(5, 140, 130, false).unwrap().missed, 0);
    assert_eq!(topics.skip(5, SkipReason::Conflated, 150, 160, 2), Ok(None));
    assert_eq!(topics.advance(5, 170, 165, false).unwrap().missed, 1, "one after the range");
    let TopicStats { gap, conflated, missed, ticks, .. } = topics.topic(5).unwrap();
    assert_eq!((*gap, *conflated, *missed, *ticks), (3, 2, 1, 3));
}
