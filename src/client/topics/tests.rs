use super::*;

fn topics() -> Topics {
    let mut topics = Topics::new(true);
    topics.announce(5, "a", 1).unwrap();
    topics
}

/// Topic 5 `a` of epoch 1 on a session that has it up to 50 from before.
fn resumed(epoch: u64, sequence: u64, recovered: bool) -> Topics {
    let mut topics = Topics::new(false);
    topics.place("a", Position { epoch: 1, sequence: 50 }, Teller::Server);
    topics.announce(5, "a", epoch).unwrap();
    let told = topics.recover(Some(5), "a", epoch, sequence, recovered).unwrap();
    assert_eq!(told, (5, Position { epoch: 1, sequence: 50 }));
    topics
}

fn tick(topics: &mut Topics, sequence: u64) -> Result<u64, SessionError> {
    let advanced = topics.advance(5, sequence, false)?;
    assert_eq!(advanced.left_out, None);
    Ok(advanced.missed)
}

/// Where what is left out before a snapshot tick begins.
fn snapshot(topics: &mut Topics, sequence: u64) -> Option<u64> {
    let advanced = topics.advance(5, sequence, true).unwrap();
    assert_eq!(advanced.missed, 0);
    advanced.left_out.map(|(_, from)| from)
}

#[test]
fn a_jump_after_the_first_tick_is_missed_to_its_length() {
    let mut topics = topics();
    assert_eq!(tick(&mut topics, 10), Ok(0));
    assert_eq!(tick(&mut topics, 11), Ok(0));
    assert_eq!(tick(&mut topics, 15), Ok(3));
    let topic = topics.topic(5).unwrap();
    assert_eq!((topic.first_sequence, topic.last_sequence, topic.ticks, topic.missed), (10, 15, 3, 3));
}

#[test]
fn a_sequence_that_does_not_increase_is_an_error() {
    for again in [0, 1, 7] {
        let mut topics = topics();
        tick(&mut topics, 7).unwrap();
        assert!(matches!(tick(&mut topics, again), Err(SessionError::OutOfOrder { previous: 7, .. })));
    }
    assert!(matches!(tick(&mut topics(), 0), Err(SessionError::OutOfOrder { .. })));
    assert!(matches!(tick(&mut topics(), u64::MAX), Err(SessionError::OutOfOrder { .. })));
}

#[test]
fn the_short_way_takes_the_expected_tick_and_leaves_all_else_to_the_long_one() {
    let mut topics = topics();
    assert_eq!((topics.step(5, 1), topics.step(6, 1)), (None, None), "the first tick, an unknown topic");
    tick(&mut topics, 7).unwrap();
    assert_eq!((topics.step(5, 7), topics.step(5, 9), topics.step(5, 0)), (None, None, None));
    assert!(topics.step(5, 8).is_some());
    assert!(matches!(tick(&mut topics, 8), Err(SessionError::OutOfOrder { previous: 8, .. })));
    assert_eq!(topics.topic(5).map(|topic| (topic.ticks, topic.last_sequence)), Some((2, 8)));
    topics.interrupt();
    assert_eq!((topics.step(5, 0), topics.step(5, 9)), (None, None), "any may be next, but not none");
}

#[test]
fn a_topic_that_was_not_announced_has_no_ticks() {
    assert_eq!(topics().advance(6, 1, false), Err(SessionError::UnknownTopic("6".into())));
    assert_eq!(topics().skip(6, Skip::Gap, 1, 2), Err(SessionError::UnknownTopic("6".into())));
    assert_eq!((topics().id("a"), topics().id("b")), (Some(5), None));
}

#[test]
fn a_new_epoch_counts_from_the_start_and_a_new_name_is_refused() {
    let mut topics = topics();
    tick(&mut topics, 7).unwrap();
    topics.announce(5, "a", 1).unwrap();
    assert_eq!(tick(&mut topics, 8), Ok(0));
    topics.announce(5, "a", 2).unwrap();
    assert_eq!(tick(&mut topics, 1), Ok(0));
    assert!(matches!(topics.announce(5, "b", 2), Err(SessionError::TopicRenamed { topic_id: 5, .. })));
}

#[test]
fn what_passed_while_unsubscribed_is_not_missed_and_may_come_again() {
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
fn what_is_announced_as_left_out_is_not_missed() {
    let mut topics = topics();
    tick(&mut topics, 1).unwrap();
    assert_eq!(topics.skip(5, Skip::Conflated, 2, 5), Ok(None));
    assert_eq!(tick(&mut topics, 5), Ok(0));
    assert_eq!(topics.skip(5, Skip::Gap, 6, 8), Ok(None));
    assert_eq!(topics.skip(5, Skip::Conflated, 8, 9), Ok(None));
    assert_eq!(tick(&mut topics, 9), Ok(0));
    // 10 neither came nor was announced; neither was 13.
    assert_eq!(topics.skip(5, Skip::Gap, 11, 13), Ok(None));
    assert_eq!(tick(&mut topics, 14), Ok(2));
    let topic = topics.topic(5).unwrap();
    assert_eq!((topic.ticks, topic.missed, topic.conflated, topic.gap), (4, 2, 4, 4));
    assert_eq!(topic.ticks + topic.missed + topic.conflated + topic.gap, topic.last_sequence);
}

#[test]
fn ranges_of_what_came_or_of_nothing_are_refused() {
    for (from, to) in [(7, 9), (8, 8), (9, 8), (0, 1)] {
        let mut topics = topics();
        tick(&mut topics, 7).unwrap();
        let refused = topics.skip(5, Skip::Gap, from, to);
        assert!(matches!(refused, Err(SessionError::BadRange { .. })), "{from} {to}");
    }
    let mut topics = topics();
    topics.skip(5, Skip::Gap, 1, 9).unwrap();
    assert!(tick(&mut topics, 8).is_err(), "announced as lost, and yet it came");
}

#[test]
fn after_a_recovery_the_next_tick_is_the_one_after_the_place() {
    let mut topics = resumed(1, 53, true);
    assert_eq!((tick(&mut topics, 51), tick(&mut topics, 52)), (Ok(0), Ok(0)));
    assert_eq!(tick(&mut resumed(1, 53, true), 53), Ok(2), "a tick after the place that did not come");
    let overlap = tick(&mut resumed(1, 53, true), 50);
    assert!(matches!(overlap, Err(SessionError::OutOfOrder { previous: 50, sequence: 50, .. })));
}

#[test]
fn a_snapshot_instead_of_the_history_leaves_out_exactly_what_it_has_not() {
    let mut topics = resumed(1, 60, false);
    // A key whose newest tick is older than the place; then the ones after it.
    assert_eq!(snapshot(&mut topics, 30), None);
    assert_eq!(snapshot(&mut topics, 55), Some(51));
    assert_eq!(snapshot(&mut topics, 56), None);
    assert_eq!(snapshot(&mut topics, 60), Some(57));
    assert_eq!(tick(&mut topics, 61), Ok(0));
    assert_eq!(topics.topic(5).unwrap().gap, 4 + 3);
    assert_eq!(tick(&mut topics, 63), Ok(1), "the promise holds again");
}

#[test]
fn another_epoch_begins_anew_and_its_own_ticks_are_told() {
    let mut topics = resumed(2, 9, false);
    assert_eq!(snapshot(&mut topics, 9), Some(1));
    assert_eq!(tick(&mut topics, 10), Ok(0));
    assert_eq!(topics.topic(5).unwrap().gap, 8);
}

#[test]
fn a_place_ahead_of_the_topic_does_not_stop_its_ticks() {
    let mut topics = resumed(1, 20, false);
    assert_eq!(snapshot(&mut topics, 20), None);
    assert_eq!(tick(&mut topics, 21), Ok(0));
}

#[test]
fn an_announcement_after_the_answer_takes_it_up() {
    for by_name in [false, true] {
        let mut topics = Topics::new(by_name);
        topics.place("a", Position { epoch: 1, sequence: 50 }, Teller::Server);
        let id = if by_name { None } else { Some(5) };
        topics.recover(id, "a", 1, 60, true).unwrap();
        topics.announce(5, "a", 1).unwrap();
        assert_eq!(tick(&mut topics, 53), Ok(2));
    }
}

#[test]
fn one_place_holds_for_all_topics_of_its_pattern() {
    let mut topics = topics();
    topics.place_pattern("*", Position { epoch: 1, sequence: 4 });
    assert_eq!(topics.recover(Some(5), "a", 1, 9, true), Ok((5, Position { epoch: 1, sequence: 4 })));
    assert_eq!(tick(&mut topics, 6), Ok(1));
}

#[test]
fn a_place_the_server_was_not_asked_for_is_told_by_the_session() {
    let place = Position { epoch: 1, sequence: 50 };
    let announced = |epoch, skip| {
        let mut topics = Topics::new(false);
        topics.place("a", place, Teller::Client(skip));
        let told = topics.announce(5, "a", epoch).unwrap();
        (topics, told)
    };
    let (mut topics, told) = announced(1, Skip::Conflated);
    assert_eq!(told, None, "the newest stands for the ones between: nothing is lost");
    assert_eq!(topics.advance(5, 60, true).unwrap().left_out, Some((Skip::Conflated, 51)));
    assert_eq!(topics.topic(5).unwrap().conflated, 9);

    let (mut topics, told) = announced(1, Skip::Gap);
    assert_eq!(told, Some(Unrecovered { place }));
    assert_eq!(topics.skip(5, Skip::Conflated, 55, 60), Ok(Some((Skip::Gap, 51))));
    assert_eq!(tick(&mut topics, 60), Ok(0));

    let (mut topics, told) = announced(2, Skip::Conflated);
    assert_eq!(told, Some(Unrecovered { place }), "another epoch is always told");
    assert_eq!(tick(&mut topics, 3), Ok(0));
}
