//! Feeds: sources, and failover groups of sources, that mark their topics as stale when they fall silent.
//!
//! ```text
//!  source without a group -> one feed        sources of a group -> one feed: only the one that publishes counts
//!
//!  up         the first source publishes, and is not silent
//!  fallback   another one of the group does
//!  down       the one that publishes has been silent for its `stale_after`, or has ended: the topics are stale
//! ```
//!
//! A lost engine is a silent one. So a connection that is back within `stale_after` marks nothing.
//!
//! The main thread calls [`Feeds::turn`] after the turn of the failover groups, and passes the changes to the shards.

use std::sync::Arc;

use super::{common::Common, failover::FAILOVER_TURN_NS, kind::SourceConfig, status::SourceStatus};
use tickcast_core::{config::Feed, ids::FeedId};
use tickcast_proto::reply::SourceState;

/// The feed of each source, in order; [`FeedId::NONE`] for one that marks nothing. All sources of a group belong to its feed if one
/// of them marks.
pub fn assign(sources: &[&Common]) -> Vec<FeedId> {
    let mut feeds: Vec<FeedId> = Vec::with_capacity(sources.len());
    let mut last = 0;
    for (at, source) in sources.iter().enumerate() {
        let is_same = |other: &&Common| source.group.is_some() && other.group == source.group;
        let marks = source.marks_stale || sources.iter().any(|other| is_same(other) && other.marks_stale);
        let known = sources[..at].iter().position(is_same);
        feeds.push(match known {
            Some(known) => feeds[known],
            None if marks => {
                last += 1;
                FeedId(last)
            }
            None => FeedId::NONE,
        });
    }
    feeds
}

/// The feeds of these sources, in the order of their ids.
pub fn list(sources: &[SourceConfig]) -> Arc<[Feed]> {
    let commons: Vec<&Common> = sources.iter().map(SourceConfig::common).collect();
    let mut feeds: Vec<Feed> = Vec::new();
    for (source, feed) in sources.iter().zip(assign(&commons)) {
        if feed.index() == Some(feeds.len()) {
            feeds.push(Feed { name: feed_name(source.common()).into(), tenant: source.tenant() });
        }
    }
    feeds.into()
}

fn feed_name(source: &Common) -> &str {
    source.group.as_deref().unwrap_or(&source.name)
}

/// The states of all feeds of a server.
#[derive(Debug)]
pub struct Feeds {
    /// By id.
    feeds: Vec<Watched>,
    due_ns: u64,
}

#[derive(Debug)]
struct Watched {
    /// In the order of the file.
    members: Vec<SourceStatus>,
    state: SourceState,
    /// Nanoseconds since 1970.
    since_ns: u64,
}

impl Feeds {
    /// Creates the feeds of these sources, all of them up.
    pub fn new(statuses: &[SourceStatus]) -> Feeds {
        let commons: Vec<&Common> = statuses.iter().map(SourceStatus::common).collect();
        let mut feeds: Vec<Watched> = Vec::new();
        for (status, feed) in statuses.iter().zip(assign(&commons)) {
            let Some(at) = feed.index() else { continue };
            if feeds.len() == at {
                feeds.push(Watched { members: Vec::new(), state: SourceState::Up, since_ns: 0 });
            }
            feeds[at].members.push(status.clone());
        }
        Feeds { feeds, due_ns: 0 }
    }

    /// State of a feed, and its start in nanoseconds since 1970.
    pub fn state(&self, feed: FeedId) -> Option<(SourceState, u64)> {
        self.feeds.get(feed.index()?).map(|watched| (watched.state, watched.since_ns))
    }

    /// Checks the feeds, every [`FAILOVER_TURN_NS`]. Adds those whose state has changed to `changed`. Returns the time to the next
    /// turn, in nanoseconds; `None`: there are no feeds. `started_ns`: when the sources were started. `now_ns` and `started_ns` are
    /// of CLOCK_MONOTONIC, `realtime_ns` counts from 1970.
    pub fn turn(
        &mut self,
        (now_ns, realtime_ns): (u64, u64),
        started_ns: u64,
        changed: &mut Vec<FeedId>,
    ) -> Option<u64> {
        if self.feeds.is_empty() {
            return None;
        }
        if now_ns >= self.due_ns {
            self.due_ns = now_ns.saturating_add(FAILOVER_TURN_NS);
            for (watched, feed) in self.feeds.iter_mut().zip(1..) {
                if watched.turn(now_ns, realtime_ns, started_ns) {
                    changed.push(FeedId(feed));
                }
            }
        }
        Some(self.due_ns.saturating_sub(now_ns))
    }
}

impl Watched {
    /// Returns whether the state has changed.
    fn turn(&mut self, now_ns: u64, realtime_ns: u64, started_ns: u64) -> bool {
        let active = self.members.iter().position(|member| !member.is_standby()).unwrap_or(0);
        let Some(source) = self.members.get(active) else {
            debug_assert!(false, "a feed has members");
            return false;
        };
        let state = match source.is_silent(now_ns, started_ns) {
            true => SourceState::Down,
            false if active == 0 => SourceState::Up,
            false => SourceState::Fallback,
        };
        let before = std::mem::replace(&mut self.state, state);
        if before == state {
            return false;
        }
        self.since_ns = realtime_ns;
        let name = feed_name(source.common());
        match (before, state) {
            (_, SourceState::Down) => ::log::warn!("{name}: silent; its topics are stale"),
            (SourceState::Down, _) => ::log::info!("{name}: back; its topics are not stale any more"),
            _ => {}
        }
        let stale_since_ns = (state == SourceState::Down).then_some(realtime_ns);
        self.members.iter().for_each(|member| member.set_stale_since(stale_since_ns));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        common::CommonOptions,
        failover::Failover,
        health::{Health, Waiting},
    };
    use tickcast_common::values::Time;

    const MS: u64 = 1_000_000;

    fn options(group: Option<&str>, mark_stale: Option<bool>) -> CommonOptions {
        CommonOptions {
            group: group.map(str::to_owned),
            stale_after: Some(Time::from_ms(1_000)),
            mark_stale,
            ..CommonOptions::default()
        }
    }

    fn status(name: &str, options: &CommonOptions) -> SourceStatus {
        let status = SourceStatus::new("nats", options.resolved(name));
        status.set_health(Health::Running);
        status
    }

    fn turn(feeds: &mut Feeds, ms: u64) -> Vec<FeedId> {
        let mut changed = Vec::new();
        feeds.turn((ms * MS, ms), 0, &mut changed);
        changed
    }

    #[test]
    fn a_group_is_one_feed_and_a_source_that_marks_nothing_is_none() {
        let marks = options(None, Some(true)).resolved("a");
        let plain = options(None, None).resolved("b");
        let of_group = options(Some("g"), None).resolved("c");
        let marks_in_group = options(Some("g"), Some(true)).resolved("d");
        let feeds = assign(&[&plain, &of_group, &marks, &marks_in_group, &plain]);
        assert_eq!(feeds, [0, 1, 2, 1, 0].map(FeedId));
    }

    #[test]
    fn a_source_is_down_once_it_has_been_silent_for_stale_after_whether_connected_or_not() {
        for health in [
            Health::Running,
            Health::Waiting(Waiting::Engine("refused".into())),
            Health::Waiting(Waiting::Connecting),
        ] {
            let source = status("a", &options(None, Some(true)));
            let mut feeds = Feeds::new(std::slice::from_ref(&source));
            source.note_heard(500 * MS, None);
            source.set_health(health);
            assert!(turn(&mut feeds, 1_400).is_empty());
            assert_eq!(turn(&mut feeds, 1_500), [FeedId(1)]);
            assert_eq!(feeds.state(FeedId(1)), Some((SourceState::Down, 1_500)));
            assert_eq!(source.stale_since_ns(), Some(1_500));
            assert!(turn(&mut feeds, 1_600).is_empty());
            source.note_heard(1_650 * MS, None);
            assert!(turn(&mut feeds, 1_650).is_empty(), "the next turn is not due");
            assert_eq!(turn(&mut feeds, 1_700), [FeedId(1)]);
            assert_eq!(
                (feeds.state(FeedId(1)), source.stale_since_ns()),
                (Some((SourceState::Up, 1_700)), None)
            );
        }
    }

    #[test]
    fn a_source_that_has_ended_is_down_and_one_that_the_server_holds_up_is_not() {
        let source = status("a", &options(None, Some(true)));
        let mut feeds = Feeds::new(std::slice::from_ref(&source));
        source.note_heard(MS, None);
        source.set_health(Health::Waiting(Waiting::Room(tickcast_proto::ids::ShardId(0))));
        assert!(turn(&mut feeds, 9_000).is_empty());
        source.set_health(Health::Ended);
        assert_eq!(turn(&mut feeds, 9_100), [FeedId(1)]);
    }

    #[test]
    fn a_group_is_down_only_while_none_of_its_sources_is_heard() {
        let options = options(Some("g"), Some(true));
        let sources = [status("a", &options), status("b", &options)];
        let (mut failover, mut feeds) = (Failover::new(&sources), Feeds::new(&sources));
        let [a, b] = &sources;
        let mut run = |from: u64, to: u64, heard: &[&SourceStatus]| {
            let mut states = Vec::new();
            for ms in (from..to).step_by(100) {
                heard.iter().for_each(|status| status.note_heard(ms * MS, None));
                failover.turn(ms * MS, 0);
                if !turn(&mut feeds, ms).is_empty() {
                    states.extend(feeds.state(FeedId(1)).map(|(state, _)| state));
                }
            }
            states
        };
        assert!(run(100, 2_000, &[a, b]).is_empty());
        assert_eq!(run(2_000, 4_000, &[b]), [SourceState::Fallback], "the fallback takes over at once");
        assert_eq!(run(4_000, 6_000, &[]), [SourceState::Down]);
        assert_eq!(run(6_000, 6_500, &[a]), [SourceState::Up]);
        assert!(a.stale_since_ns().is_none() && b.stale_since_ns().is_none());
    }
}
