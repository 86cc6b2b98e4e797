//! How far a connection has come in each topic.

use std::{collections::HashMap, hash::BuildHasherDefault};

use crate::{ReconnectingClient, topics::IdHasher};
use tickcast_proto::{pattern, subscription::Position};

/// Topics whose progress is merged into the positions at a time. The numbers of forgotten topics are never used again.
pub(super) const PROGRESS_MAX: usize = 64 << 10;

impl ReconnectingClient {
    /// Merges this connection's progress into the positions.
    pub(super) fn merge_progress(&mut self) {
        let Some(client) = &self.client else { return };
        for (id, topic) in client.connection().topics() {
            if let Some(&position) = self.progress.get(&id.0) {
                self.positions.advance(&topic.name, position);
            }
        }
    }

    /// Forgets the positions of topics that no subscription matches.
    pub(super) fn forget_unmatched(&mut self) {
        let subscriptions = &self.subscriptions;
        self.positions.retain(|topic| subscriptions.iter().any(|s| pattern::matches(&s.pattern, topic)));
    }
}

#[inline]
pub(super) fn advance(
    progress: &mut HashMap<u32, Position, BuildHasherDefault<IdHasher>>,
    topic_id: u32,
    to: Position,
) {
    let position = progress.entry(topic_id).or_insert(to);
    if position.epoch != to.epoch || position.sequence < to.sequence {
        *position = to;
    }
}
