//! The number of memberships of all sessions of a shard, and its bound.

use super::table::Sessions;
use crate::ids::SlotId;

/// Memberships of all sessions.
///
/// Each session may have as many as it has subscriptions: that covers exact names, which need one each. Beyond that, the bound
/// applies, because wildcards may need one for each topic.
#[derive(Debug)]
pub(super) struct MembershipsCount {
    len: usize,
    max: usize,
    /// Memberships refused since they were last taken.
    refused: u64,
}

impl Default for MembershipsCount {
    fn default() -> Self {
        MembershipsCount { len: 0, max: usize::MAX, refused: 0 }
    }
}

impl Sessions {
    /// Sets how many memberships there may be, in a new table.
    pub fn with_memberships_max(mut self, max: usize) -> Sessions {
        self.memberships.max = max;
        self
    }

    /// Sets how many memberships there may be. More stay until they end.
    pub fn set_memberships_max(&mut self, max: usize) {
        self.memberships.max = max;
    }

    /// Number of memberships.
    pub fn memberships_len(&self) -> usize {
        self.memberships.len
    }

    /// Whether there is no room for memberships beyond one for each subscription.
    pub fn memberships_are_full(&self) -> bool {
        self.memberships.len >= self.memberships.max
    }

    /// How many more memberships a session may have now.
    pub fn memberships_left(&self, slot: SlotId) -> usize {
        let own = self
            .get(slot)
            .map_or(0, |session| session.subscriptions.len().saturating_sub(session.memberships.len()));
        own.max(self.memberships.max.saturating_sub(self.memberships.len))
    }

    /// Whether a session may have one more membership. If not, it is closed once the others have been served: it would miss ticks
    /// without a word.
    pub fn takes_membership(&mut self, slot: SlotId) -> bool {
        let takes = self.memberships_left(slot) > 0;
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

    /// Counts memberships that were added to sessions.
    pub fn count_memberships(&mut self, added: usize) {
        self.memberships.len += added;
    }

    /// Counts a membership that was removed from its session.
    pub fn discount_membership(&mut self) {
        self.memberships.len -= 1;
    }

    /// Checks the count, in debug builds.
    pub fn check_memberships(&self) {
        let len: usize = self.iter().map(|session| session.memberships.len()).sum();
        debug_assert_eq!(self.memberships.len, len, "each membership is counted once");
    }
}
