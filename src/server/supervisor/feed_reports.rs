//! Tells the shards which sources have fallen silent.

use crate::{
    clock,
    operator::control::{ControlSender, Dispatch, ShardRequest},
    sources::{SourceStatus, feeds::Feeds},
};
use tickcast_core::ids::FeedId;
use tickcast_proto::ids::ShardId;

/// The feeds, and the shards that have yet to learn of a change because their control ring was full.
///
/// Bound: each shard once for each feed.
pub(super) struct FeedReports {
    feeds: Feeds,
    pending: Vec<(FeedId, ShardId)>,
    has_stopped: bool,
}

impl FeedReports {
    /// Watches these sources.
    pub(super) fn new(statuses: &[SourceStatus]) -> FeedReports {
        FeedReports { feeds: Feeds::new(statuses), pending: Vec::new(), has_stopped: false }
    }

    /// Stops watching: the server stops its sources.
    pub(super) fn stop(&mut self) {
        self.has_stopped = true;
    }

    /// Checks the sources, and sends changes to the shards. Returns the time to the next turn, in nanoseconds; `None`: nothing is to
    /// be watched. Call it after the turn of the failover groups.
    pub(super) fn turn(&mut self, now_ns: u64, started_ns: u64, control: &mut ControlSender) -> Option<u64> {
        if self.has_stopped {
            return None;
        }
        let mut changed = Vec::new();
        let wait_ns = self.feeds.turn((now_ns, clock::realtime_ns()), started_ns, &mut changed)?;
        for (feed, shard) in std::mem::take(&mut self.pending) {
            if !changed.contains(&feed) {
                self.send(feed, Some(shard), control);
            }
        }
        for feed in changed {
            self.send(feed, None, control);
        }
        Some(wait_ns)
    }

    fn send(&mut self, feed: FeedId, to: Option<ShardId>, control: &mut ControlSender) {
        let Some((state, since_ns)) = self.feeds.state(feed) else { return };
        let request = Box::new(move |_| ShardRequest::FeedState(feed, state, since_ns));
        let full = control.send(Dispatch { to, request });
        self.pending.extend(full.into_iter().map(|shard| (feed, shard)));
    }
}
