//! Sources that fall silent, as the main thread reports them: marks their topics as stale, and tells sessions the states of
//! sources.

use super::Shard;
use crate::{
    home::StaleMark,
    ids::{FeedId, SlotId},
    limits::{TURN_MARK_UNITS, TURN_SOURCE_LOOKS},
    metrics::counters::Counter,
    now::Now,
};
use tickcast_proto::{
    features::Features,
    reply::{Reply, SourceState},
};

/// The states of the feeds, and a walk that tells sessions of changes.
///
/// Bound: one state for each feed in the configuration, which is at most once in either list.
#[derive(Debug, Default)]
pub(super) struct FeedStates {
    /// State and its start, nanoseconds since 1970, by feed.
    states: Vec<(SourceState, u64)>,
    /// Feeds whose states the walk under way tells.
    telling: Vec<FeedId>,
    /// Next slot of the walk.
    next_slot: u32,
    /// Feeds whose states have changed since the walk began.
    changed: Vec<FeedId>,
}

impl FeedStates {
    fn of(&self, feed: FeedId) -> (SourceState, u64) {
        feed.index().and_then(|at| self.states.get(at)).copied().unwrap_or((SourceState::Up, 0))
    }
}

impl Shard {
    /// Sets the state of a source or failover group that marks its topics. While it is [`SourceState::Down`], the topics that it
    /// has published to last are stale. `since_ns`: nanoseconds since 1970.
    pub fn set_feed_state(&mut self, feed: FeedId, state: SourceState, since_ns: u64) {
        let Some(at) = feed.index().filter(|&at| at < self.limits.feeds.len()) else {
            return debug_assert!(false, "the configuration has the feed");
        };
        let states = &mut self.feed_states.states;
        if states.len() <= at {
            states.resize(at + 1, (SourceState::Up, 0));
        }
        if std::mem::replace(&mut states[at], (state, since_ns)).0 == state {
            return;
        }
        if !self.feed_states.changed.contains(&feed) {
            self.feed_states.changed.push(feed);
        }
        self.home.set_mark(feed, StaleMark { is_stale: state == SourceState::Down, since_ns });
    }

    /// Notes which feed a tick of a source comes from, before the tick. `feed`: the number of a [`FeedId`].
    #[inline]
    pub(super) fn note_feed(&mut self, index: u32, feed: u32, now: Now) {
        let feed = FeedId(feed);
        if self.home.feed(index) != feed {
            self.with_home(|home, notify| home.change_feed(index, feed, now.realtime_ns, notify));
        }
    }

    /// Whether topics have to be marked, or sessions told.
    pub(super) fn has_marks_to_make(&self) -> bool {
        (self.home.has_marks_left() && self.stages.deliveries_are_half_empty())
            || self.fanout.has_stale_to_tell()
            || self.tells_feed_states()
    }

    fn tells_feed_states(&self) -> bool {
        !self.feed_states.telling.is_empty() || !self.feed_states.changed.is_empty()
    }

    /// Marks topics whose feeds have fallen silent or are back, and tells sessions. Returns whether there was anything to do.
    pub(super) fn advance_marks(&mut self, now: Now) -> bool {
        if self.limits.feeds.is_empty() {
            return false;
        }
        let worked = self.has_marks_to_make();
        if self.home.has_marks_left() && self.stages.deliveries_are_half_empty() {
            self.with_home(|home, notify| home.advance_marks(TURN_MARK_UNITS, notify));
        }
        let told = self.fanout.tell_stale(&mut self.sessions, &mut self.logs, now.realtime_ns);
        self.counters.add(Counter::StaleNotices, told as u64);
        self.counters.set(Counter::TopicsStale, self.home.stale_len() as u64);
        if self.tells_feed_states() {
            self.tell_feed_states();
        }
        worked
    }

    /// Tells some more sessions of the feeds whose states have changed.
    fn tell_feed_states(&mut self) {
        if self.feed_states.telling.is_empty() {
            self.feed_states.telling = std::mem::take(&mut self.feed_states.changed);
            self.feed_states.next_slot = 0;
        }
        let mut telling = std::mem::take(&mut self.feed_states.telling);
        let (first, end) = (self.feed_states.next_slot, self.sessions.slots_len());
        let next = first.saturating_add(TURN_SOURCE_LOOKS as u32).min(end);
        for slot in (first..next).map(SlotId) {
            telling.iter().for_each(|&feed| self.tell_feed_state(slot, feed));
        }
        if next == end {
            telling.clear();
        }
        (self.feed_states.telling, self.feed_states.next_slot) = (telling, next);
    }

    /// Tells a new client of the feeds that are not up.
    pub(super) fn tell_feeds_not_up(&mut self, slot: SlotId) {
        for feed in (1..=self.feed_states.states.len() as u32).map(FeedId) {
            if self.feed_states.of(feed).0 != SourceState::Up {
                self.tell_feed_state(slot, feed);
            }
        }
    }

    /// Tells a client the state of a feed of its tenant, if it has asked for such messages.
    fn tell_feed_state(&mut self, slot: SlotId, feed: FeedId) {
        let (state, since_ns) = self.feed_states.of(feed);
        let feeds = self.limits.feeds.clone();
        let Some(config) = feed.index().and_then(|at| feeds.get(at)) else {
            return debug_assert!(false, "every feed is configured");
        };
        let is_told = self.sessions.get(slot).is_some_and(|session| {
            session.ending.is_none()
                && session.features.contains(Features::SOURCES)
                && session.tenant == config.tenant
        });
        if is_told {
            self.reply(slot, &Reply::Source { name: &config.name, state, since_ns });
            self.sessions.mark_if_announcements_pile_up(slot);
        }
    }
}

#[cfg(test)]
mod tests;
