//! Marks of stale topics: a feed that falls silent leaves a mark on every topic that it has published to last.
//!
//! Ticks only note which feed they come from: one comparison for each tick of a source. When a feed's state changes, a walk
//! compares all topics with the states of their feeds. It visits a bounded number in each turn.

use super::{Home, HomeTopic, InterestEvent};
use crate::ids::FeedId;

/// Whether a feed, or a topic, is stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StaleMark {
    /// Whether it is.
    pub is_stale: bool,
    /// Since when it is, or is not any more: nanoseconds since 1970.
    pub since_ns: u64,
}

/// The marks of the feeds, and the walk that passes them on to topics.
///
/// Bound: one mark for each feed in the configuration.
/// Invariant: while `left` is 0, a topic is stale only if its feed is. `stale` counts the stale topics.
#[derive(Debug, Default)]
pub(super) struct FeedMarks {
    /// By feed.
    marks: Vec<StaleMark>,
    /// The next topic of the walk. A change begins a new round here, so that frequent changes leave no topic out.
    next: usize,
    /// Topics left of the round.
    left: usize,
    /// Number of stale topics.
    stale: usize,
}

impl FeedMarks {
    /// Lengthens the round by a topic that is appended: the walk may come to it before topics that it has yet to visit.
    pub(super) fn note_new_topic(&mut self) {
        self.left += usize::from(self.left > 0);
    }

    fn of(&self, feed: FeedId) -> StaleMark {
        feed.index().and_then(|at| self.marks.get(at)).copied().unwrap_or_default()
    }
}

impl Home {
    /// Changes the mark of a feed. [`Home::advance_marks`] passes it on to the feed's topics.
    pub fn set_mark(&mut self, feed: FeedId, mark: StaleMark) {
        let Some(at) = feed.index() else { return debug_assert!(false, "only a feed has a mark") };
        let marks = &mut self.marks.marks;
        if marks.len() <= at {
            marks.resize(at + 1, StaleMark::default());
        }
        if std::mem::replace(&mut marks[at], mark).is_stale != mark.is_stale {
            self.marks.left = self.topics.len();
        }
    }

    /// Whether topics have yet to be compared with the marks of their feeds.
    pub fn has_marks_left(&self) -> bool {
        self.marks.left > 0
    }

    /// Compares about `units` topics with the marks of their feeds, and changes theirs. `notify` receives the messages for the
    /// shards, and returns whether they accept more. Returns the number of topics visited.
    pub fn advance_marks(
        &mut self,
        units: usize,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) -> usize {
        let (mut used, mut takes_more) = (0, true);
        while used < units && takes_more && self.marks.left > 0 {
            used += 1;
            self.marks.left -= 1;
            self.marks.next = if self.marks.next < self.topics.len() { self.marks.next } else { 0 };
            let at = self.marks.next;
            self.marks.next += 1;
            let mark = self.topics.get(at).map(|topic| self.marks.of(topic.feed)).unwrap_or_default();
            takes_more = self.mark(at, mark, notify);
        }
        used
    }

    /// Notes that a feed publishes to the topic at an index now, and no other. A tick has come, so the topic is not stale.
    /// `now_ns`: nanoseconds since 1970.
    #[cold]
    pub fn change_feed(
        &mut self,
        index: u32,
        feed: FeedId,
        now_ns: u64,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) {
        self.topics[index as usize].feed = feed;
        self.mark(index as usize, StaleMark { is_stale: false, since_ns: now_ns }, notify);
    }

    /// Number of stale topics.
    pub fn stale_len(&self) -> usize {
        self.marks.stale
    }

    /// Removes the mark of a topic whose life ends.
    pub(super) fn unmark(&mut self, at: usize) {
        if std::mem::take(&mut self.topics[at].mark).is_stale {
            self.marks.stale -= 1;
        }
    }

    /// Checks the marks of the first topics. `checked`: how many.
    pub(super) fn mark_invariants(&self, checked: usize) {
        let is_stale = |topic: &HomeTopic| topic.mark.is_stale;
        let first = self.topics.iter().take(checked);
        let stale = first.clone().filter(|topic| is_stale(topic)).count();
        let rest = self.topics.len().saturating_sub(checked);
        assert!((stale..=stale + rest).contains(&self.marks.stale), "stale topics are counted");
        assert!(
            self.marks.left > 0
                || first.clone().all(|topic| !is_stale(topic) || self.marks.of(topic.feed).is_stale),
            "a topic is stale because its feed is"
        );
    }

    /// The feed of the topic at an index.
    #[inline]
    pub fn feed(&self, index: u32) -> FeedId {
        self.topics[index as usize].feed
    }

    /// Changes the mark of an open topic, and tells the shards if it is now stale, or no longer. Returns whether they accept more
    /// messages.
    fn mark(
        &mut self,
        at: usize,
        mark: StaleMark,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) -> bool {
        let Some(topic) = self.topics.get_mut(at).filter(|topic| topic.is_open()) else { return true };
        if topic.mark.is_stale == mark.is_stale {
            return true;
        }
        topic.mark = mark;
        match mark.is_stale {
            true => self.marks.stale += 1,
            false => self.marks.stale -= 1,
        }
        let mut takes_more = true;
        for shard in topic.interested.iter() {
            takes_more &= notify(InterestEvent::Mark(shard, topic));
        }
        takes_more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::tests::{find_or_create, home, text};

    const FEED: FeedId = FeedId(1);
    const OTHER: FeedId = FeedId(2);
    const STALE: StaleMark = StaleMark { is_stale: true, since_ns: 7 };
    const FRESH: StaleMark = StaleMark { is_stale: false, since_ns: 9 };

    /// A home of one shard that subscribes to everything, with topics that have these feeds.
    fn fed(topics: &[(&str, FeedId)]) -> Home {
        let mut home = home(1, 100);
        for &(name, feed) in topics {
            let index = find_or_create(&mut home, name, 0).unwrap().index;
            home.change_feed(index, feed, 0, &mut |_| panic!("a new topic is not stale"));
        }
        home.add_interest(tickcast_proto::ids::ShardId(0), ">", 1, &mut |_| true);
        while home.is_walking() {
            home.advance_walk(100, &mut |_| true);
        }
        home
    }

    /// Runs the walk, `units` at a time. Returns the messages.
    fn walk(home: &mut Home, units: usize) -> Vec<String> {
        let mut events = Vec::new();
        while home.has_marks_left() {
            let mut notify = |event: InterestEvent<'_>| {
                events.push(text(event));
                true
            };
            assert!((1..=units).contains(&home.advance_marks(units, &mut notify)));
        }
        events
    }

    #[test]
    fn only_the_topics_of_a_silent_feed_are_marked_and_each_once() {
        let mut home = fed(&[("a", FEED), ("b", OTHER), ("c", FEED), ("d", FeedId::NONE)]);
        home.set_mark(FEED, STALE);
        assert_eq!(walk(&mut home, 1), ["mark 0 a true", "mark 0 c true"]);
        home.set_mark(FEED, STALE);
        assert!(!home.has_marks_left(), "nothing has changed");
        home.set_mark(FEED, FRESH);
        assert_eq!(walk(&mut home, 3), ["mark 0 a false", "mark 0 c false"]);
    }

    #[test]
    fn a_topic_that_another_feed_takes_over_is_not_stale_any_more() {
        let mut home = fed(&[("a", FEED)]);
        home.set_mark(FEED, STALE);
        walk(&mut home, 9);
        let mut events = Vec::new();
        home.change_feed(0, OTHER, 8, &mut |event| {
            events.push(text(event));
            true
        });
        assert_eq!(events, ["mark 0 a false"]);
        assert_eq!(home.topic(0).mark, StaleMark { is_stale: false, since_ns: 8 });
        home.set_mark(FEED, FRESH);
        assert!(walk(&mut home, 9).is_empty());
    }

    #[test]
    fn feeds_that_change_all_the_time_leave_no_topic_out() {
        let names: Vec<String> = (0..50).map(|n| format!("t.{n}")).collect();
        let topics: Vec<(&str, FeedId)> = names.iter().map(|name| (&**name, FEED)).collect();
        let mut home = fed(&topics);
        home.set_mark(FEED, STALE);
        for turn in 0..25 {
            home.advance_marks(2, &mut |_| true);
            home.set_mark(OTHER, if turn % 2 == 0 { STALE } else { FRESH });
        }
        assert!((0..50).all(|index| home.topic(index).mark.is_stale), "one round has visited all");
    }

    #[test]
    fn topics_created_during_a_walk_leave_no_other_out() {
        let mut home = fed(&[("a", FEED), ("b", FEED), ("c", FEED), ("d", FEED)]);
        home.set_mark(OTHER, STALE);
        home.advance_marks(2, &mut |_| true);
        // This round begins at the third topic.
        home.set_mark(FEED, STALE);
        home.advance_marks(1, &mut |_| true);
        for name in ["e", "f", "g"] {
            find_or_create(&mut home, name, 0).unwrap();
        }
        walk(&mut home, 1);
        assert!((0..4).all(|index| home.topic(index).mark.is_stale), "the round has visited all");
    }

    #[test]
    fn a_walk_pauses_while_the_shards_have_no_room() {
        let mut home = fed(&[("a", FEED), ("b", FEED)]);
        home.set_mark(FEED, STALE);
        assert_eq!(home.advance_marks(9, &mut |_| false), 1);
        assert!(home.has_marks_left() && !home.topic(1).mark.is_stale);
        assert_eq!(walk(&mut home, 9), ["mark 0 b true"]);
    }
}
