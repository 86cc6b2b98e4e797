//! The ends of topics' lives when their source ends its subscription at the engine, because no client asks for them.
//!
//! Ticks that the engine has from then on do not come here. So a topic that goes on later must not look unbroken: its life ends
//! with the subscription, and its next tick begins another one, with another epoch. A walk ends the lives; it visits a bounded
//! number of topics in each turn. Until it reaches a topic, no place in the topic is recovered.

use std::collections::HashSet;

use super::{FORGET_UNITS, Home, InterestEvent};
use crate::{ids::UpstreamId, limits::LAPSES_MAX};

/// The subscriptions that have ended, and the walk.
///
/// Invariant: each topic of an ended subscription is visited before `left` is 0 and the round's ids are dropped.
#[derive(Debug, Default)]
pub(super) struct Lapses {
    /// Subscriptions whose topics the round under way ends.
    ended: HashSet<UpstreamId, rustc_hash::FxBuildHasher>,
    /// Subscriptions that have ended since the round began. Bound: [`LAPSES_MAX`], as of `ended`.
    waiting: HashSet<UpstreamId, rustc_hash::FxBuildHasher>,
    /// There were more: the next round ends the lives of all topics with a subscription.
    waiting_all: bool,
    /// The same for the round under way.
    ends_all: bool,
    /// The next topic of the walk.
    next: usize,
    /// Topics left of the round.
    left: usize,
}

impl Lapses {
    fn is_ended(&self, upstream: UpstreamId) -> bool {
        upstream != UpstreamId::NONE && (self.ends_all || self.ended.contains(&upstream))
    }

    /// Whether a subscription has ended, and topics of it may be left.
    pub(super) fn has(&self, upstream: UpstreamId) -> bool {
        upstream != UpstreamId::NONE
            && (self.is_ended(upstream) || self.waiting_all || self.waiting.contains(&upstream))
    }

    /// Notes that a topic was appended: the round under way may come to it before topics that it has yet to visit.
    pub(super) fn note_new_topic(&mut self) {
        self.left += usize::from(self.left > 0);
    }

    fn begin_round(&mut self, topics: usize) {
        self.ended = std::mem::take(&mut self.waiting);
        self.ends_all = std::mem::take(&mut self.waiting_all);
        let has_any = self.ends_all || !self.ended.is_empty();
        self.left = if has_any { topics } else { 0 };
        if self.left == 0 {
            (self.ended, self.ends_all) = (HashSet::default(), false);
        }
    }
}

impl Home {
    /// The subscription that the topic at an index gets its ticks from.
    #[inline]
    pub fn upstream(&self, index: u32) -> UpstreamId {
        self.topics[index as usize].upstream
    }

    /// Notes which subscription the topic at an index, which has had no tick yet, gets its ticks from. Ticks before the
    /// subscription are not known here, so no position of an earlier life is recovered.
    pub fn set_upstream(&mut self, index: u32, upstream: UpstreamId) {
        let topic = &mut self.topics[index as usize];
        (topic.upstream, topic.is_first_life) = (upstream, false);
    }

    /// Notes that a subscription has ended. [`Home::advance_lapses`] ends the lives of its topics.
    pub fn lapse(&mut self, upstream: UpstreamId) {
        let lapses = &mut self.lapses;
        match lapses.waiting.len() < LAPSES_MAX {
            true => _ = lapses.waiting.insert(upstream),
            false => lapses.waiting_all = true,
        }
        if lapses.left == 0 {
            lapses.begin_round(self.topics.len());
        }
    }

    /// Whether lives have to end.
    pub fn has_lapses_left(&self) -> bool {
        self.lapses.left > 0
    }

    /// Visits topics for about `units`, and ends the lives of those whose subscription has ended. `notify` receives the messages for
    /// the shards, and returns whether they accept more. Returns the number of lives ended.
    pub fn advance_lapses(
        &mut self,
        units: usize,
        now_ns: u64,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) -> usize {
        let (mut used, mut ended, mut takes_more) = (0, 0, true);
        while used < units && takes_more && self.lapses.left > 0 {
            used += 1;
            self.lapses.left -= 1;
            let at = if self.lapses.next < self.topics.len() { self.lapses.next } else { 0 };
            self.lapses.next = at + 1;
            let is_over = self
                .topics
                .get(at)
                .is_some_and(|topic| topic.is_open() && self.lapses.is_ended(topic.upstream));
            if is_over {
                used += FORGET_UNITS;
                ended += 1;
                takes_more = self.forget(at, now_ns, notify);
            }
            if self.lapses.left == 0 {
                self.lapses.begin_round(self.topics.len());
            }
        }
        if ended > 0 {
            self.invariants();
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::{
        Backfill, CHUNK_NOT_RECOVERED, CHUNK_RECOVERED,
        tests::{chunk, find_or_create, home, text},
    };
    use tickcast_proto::{frame::TickParts, ids::ShardId};

    /// A home of one shard that subscribes to everything, with a tick in each of these topics, by these subscriptions.
    fn fed(topics: &[(&str, u32)]) -> Home {
        let mut home = home(1, 100);
        for &(name, upstream) in topics {
            let index = find_or_create(&mut home, name, 0).unwrap().index;
            if upstream > 0 {
                home.set_upstream(index, UpstreamId(upstream));
            }
            home.sequence(index, &TickParts::default(), 0);
        }
        home.add_interest(ShardId(0), ">", 1, &mut |_| true);
        while home.is_walking() {
            home.advance_walk(100, &mut |_| true);
        }
        home
    }

    /// Runs the walk, `units` at a time. Returns the messages.
    fn walk(home: &mut Home, units: usize) -> Vec<String> {
        let mut events = Vec::new();
        while home.has_lapses_left() {
            home.advance_lapses(units, 0, &mut |event| {
                events.push(text(event));
                true
            });
        }
        events
    }

    #[test]
    fn only_topics_of_an_ended_subscription_end() {
        let mut home = fed(&[("a", 1), ("b", 2), ("c", 1), ("d", 0)]);
        home.lapse(UpstreamId(1));
        assert_eq!(walk(&mut home, 1), ["forget 0 a", "forget 0 c"]);
        assert!(home.topic(1).is_open() && home.topic(3).is_open());
        home.lapse(UpstreamId(7));
        assert!(walk(&mut home, 1).is_empty() && home.lapses.ended.is_empty());
    }

    #[test]
    fn subscriptions_that_end_during_a_round_leave_no_topic_out() {
        let names: Vec<String> = (0..50).map(|n| format!("t.{n}")).collect();
        let topics: Vec<(&str, u32)> = names.iter().zip(1..).map(|(name, id)| (&**name, id)).collect();
        let mut home = fed(&topics);
        // From the last to the first: each is behind the walk.
        for id in (1..=50).rev() {
            home.lapse(UpstreamId(id));
            home.advance_lapses(2, 0, &mut |_| true);
        }
        walk(&mut home, 9);
        assert!(home.is_empty(), "{} are left", home.len());
    }

    #[test]
    fn more_ends_than_are_remembered_end_all_topics_with_a_subscription() {
        let mut home = fed(&[("a", 1), ("b", u32::MAX), ("c", 0)]);
        (2..LAPSES_MAX as u32 + 10).for_each(|id| home.lapse(UpstreamId(id)));
        assert_eq!(walk(&mut home, 9), ["forget 0 a", "forget 0 b"]);
        assert!(!home.lapses.has(UpstreamId(1)));
    }

    #[test]
    fn no_place_in_a_topic_is_recovered_once_its_subscription_has_ended() {
        let mut home = fed(&[("a", 1), ("b", 1)]);
        let id = home.topic(1).id;
        let is_recovered = |home: &mut Home, from| {
            let (_, flags, _) = chunk(home, id, Backfill::Position, from);
            (flags & CHUNK_RECOVERED != 0, flags & CHUNK_NOT_RECOVERED != 0)
        };
        assert_eq!(is_recovered(&mut home, 2), (true, false));
        home.lapse(UpstreamId(1));
        home.advance_lapses(1, 0, &mut |_| true);
        assert!(home.topic(1).is_open(), "the walk has not reached it");
        assert_eq!(is_recovered(&mut home, 2), (false, true));
        assert_eq!(is_recovered(&mut home, 1), (false, true));
    }

    #[test]
    fn the_epoch_of_the_server_is_no_position_in_a_topic_of_a_subscription() {
        let mut home = fed(&[("a", 1), ("b", 0)]);
        for (index, recovered) in [(0, false), (1, true)] {
            let id = home.topic(index).id;
            let (_, flags, _) = chunk(&mut home, id, Backfill::ServerPosition, 1);
            assert_eq!(flags & CHUNK_RECOVERED != 0, recovered, "{index}");
        }
    }
}
