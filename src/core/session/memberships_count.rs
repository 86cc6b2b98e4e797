//! The number of memberships of all sessions of a shard, and its bound.

use super::{Session, table::Sessions};
use crate::{fanout::Subscription, ids::SlotId, limits::MEMBERSHIPS_OWN_MIN};

/// Memberships of all sessions.
///
/// Each session may have as many as it has subscriptions: that covers exact names, which need one each. Wildcards may need one for
/// each topic. What a session has beyond its subscriptions comes from a pool, and a session may take as much of it as it leaves to
/// all others (dynamic thresholds: Choudhury and Hahne, 1998). So a session that wants all of it gets half, and whoever comes next
/// finds some. With very many greedy sessions, what they leave tends to nothing, so each session may have [`MEMBERSHIPS_OWN_MIN`]
/// whatever the others have.
#[derive(Debug)]
pub(super) struct MembershipsCount {
    len: usize,
    /// Memberships beyond the subscriptions of their sessions.
    pooled: usize,
    /// Bound of the pool, which only the minimum of each session exceeds.
    max: usize,
    /// Memberships refused since they were last taken.
    refused: u64,
}

impl Default for MembershipsCount {
    fn default() -> Self {
        MembershipsCount { len: 0, pooled: 0, max: usize::MAX, refused: 0 }
    }
}

/// Memberships of a session that come from the pool.
fn pooled(session: &Session) -> usize {
    session.memberships.len().saturating_sub(session.subscriptions.len())
}

impl Sessions {
    /// Sets how many memberships the pool has, in a new table.
    pub fn with_memberships_max(mut self, max: usize) -> Sessions {
        self.memberships.max = max;
        self
    }

    /// Sets how many memberships the pool has. More stay until they end.
    pub fn set_memberships_max(&mut self, max: usize) {
        self.memberships.max = max;
    }

    /// Number of memberships.
    pub fn memberships_len(&self) -> usize {
        self.memberships.len
    }

    /// How many more memberships of the pool a session may take now: as long as it has fewer than it leaves to all others, or than
    /// its minimum.
    pub fn memberships_in_pool(&self, slot: SlotId) -> usize {
        let free = self.memberships.max.saturating_sub(self.memberships.pooled);
        let own = self.get(slot).map_or(0, pooled);
        // Each one that it takes is also one less for the others.
        free.saturating_sub(own).div_ceil(2).max(MEMBERSHIPS_OWN_MIN.saturating_sub(own))
    }

    /// How many more memberships a session may have now.
    pub fn memberships_left(&self, slot: SlotId) -> usize {
        let own = self
            .get(slot)
            .map_or(0, |session| session.subscriptions.len().saturating_sub(session.memberships.len()));
        own.saturating_add(self.memberships_in_pool(slot))
    }

    /// Whether a session may have one more membership. If not, it is closed once the others have been served: it would miss ticks
    /// without a word.
    pub fn takes_membership(&mut self, slot: SlotId) -> bool {
        let takes = self.memberships_left(slot) > 0
            && self.any_mut(slot).is_none_or(|session| session.memberships.try_reserve());
        if !takes {
            self.refuse_membership(slot);
        }
        takes
    }

    /// Closes a session that may have no more memberships once the others have been served.
    pub fn refuse_membership(&mut self, slot: SlotId) {
        self.memberships.refused += 1;
        self.mark_too_far_behind(slot);
    }

    /// Takes the number of memberships refused.
    pub fn take_memberships_refused(&mut self) -> u64 {
        std::mem::take(&mut self.memberships.refused)
    }

    /// Counts memberships that were added to a session.
    pub fn count_memberships(&mut self, slot: SlotId, added: usize) {
        self.memberships.len += added;
        self.memberships.pooled += self.get(slot).map_or(0, pooled).min(added);
    }

    /// Counts a membership that was removed from a session.
    pub fn discount_membership(&mut self, slot: SlotId) {
        let was_pooled =
            self.get(slot).is_some_and(|session| session.memberships.len() >= session.subscriptions.len());
        self.memberships.len -= 1;
        self.memberships.pooled -= usize::from(was_pooled);
    }

    /// Adds a subscription to this pattern to a session that is open.
    pub fn subscribe(&mut self, slot: SlotId, subscription: Subscription, pattern: &str) {
        let Some(session) = self.open_mut(slot) else { return };
        let before = pooled(session);
        session.subscriptions.add(subscription);
        session.pattern_bytes += pattern.len() as u32;
        let fewer = before - pooled(session);
        self.memberships.pooled -= fewer;
    }

    /// Removes a session's subscription to an entry's pattern. `pattern` is the pattern's key.
    pub fn unsubscribe(&mut self, slot: SlotId, entry: u32, pattern: &str) -> Option<Subscription> {
        let session = self.open_mut(slot)?;
        let before = pooled(session);
        let held = session.unsubscribe(entry, pattern)?;
        let added = pooled(session) - before;
        self.memberships.pooled += added;
        Some(held)
    }

    /// Checks the counts, in debug builds.
    pub fn check_memberships(&self) {
        let len: usize = self.iter().map(|session| session.memberships.len()).sum();
        debug_assert_eq!(self.memberships.len, len, "each membership is counted once");
        let pooled: usize = self.iter().map(pooled).sum();
        debug_assert_eq!(
            self.memberships.pooled, pooled,
            "what exceeds the subscriptions comes from the pool"
        );
    }
}
