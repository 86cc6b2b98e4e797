//! What a reader knows of its stream if the server filters by subject: the sequences of the messages that it gets do not show what
//! is missing.
//!
//! ```text
//!  fewer others wait after a message than after the one before, less this one                  a hole: one is counted
//!  last message said that others wait, and the next one is beyond what the stream still has    a hole: one is counted
//!  no message waits at a check                          all wanted messages before the check before have been read
//!  after a fault, the stream begins after these         messages in between may have been wanted: one is counted
//! ```
//!
//! The number of messages that wait is of the moment when the server sends a message, so a hole shows at the next message, unless as many
//! others came meanwhile. Then it shows only if a check has seen that the stream begins later: a second after the hole, at most. A message
//! that replaces another (`max_msgs_per_subject`) comes with the deletion of that one, often in the middle of the stream: nothing shows it.

/// Knowledge of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filtered {
    /// Wanted messages in the stream after the last one read.
    pending: u64,
    /// The first and last sequence of the stream at the last check.
    first: u64,
    last: u64,
    /// All wanted messages before this sequence have been read.
    read_to: u64,
}

impl Filtered {
    /// Notes a new consumer: the stream's first and last sequence before it was created, and the wanted messages that it found.
    pub(super) fn handle_connected(&mut self, (first, last): (u64, u64), pending: u64) {
        (self.first, self.last, self.pending) = (first, last, pending);
        if pending == 0 {
            self.read_to = last.saturating_add(1);
        }
    }

    /// Notes the stream's first and last sequence at a check. Everything that came before it has been taken.
    pub(super) fn handle_check(&mut self, (first, last): (u64, u64)) {
        // What the stream has got since the check before may be on its way.
        if self.pending == 0 {
            self.read_to = self.read_to.max(self.last.saturating_add(1));
        }
        (self.first, self.last) = (first, last);
    }

    /// Notes a message, after which `pending` others wait. Returns whether messages before it, from `expected` on, were deleted.
    pub(super) fn handle_message(&mut self, expected: u64, sequence: u64, pending: u64) -> bool {
        let is_fewer = pending.saturating_add(1) < self.pending;
        let is_beyond = self.pending > 0 && expected < self.first && sequence >= self.first;
        let is_hole = is_fewer || is_beyond;
        self.pending = pending;
        is_hole
    }

    /// Whether messages before `first`, the stream's first sequence, may have been wanted and not read.
    pub(super) fn may_have_lost_before(&self, first: u64) -> bool {
        self.read_to < first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_other_subjects_are_no_loss() {
        let mut filtered = Filtered::default();
        filtered.handle_connected((1, 0), 0);
        assert!(!filtered.handle_message(1, 1, 0));
        // 10,000 others come, and the stream keeps 1,000.
        filtered.handle_check((9_002, 10_001));
        filtered.handle_check((9_002, 10_001));
        assert!(!filtered.may_have_lost_before(9_002) && !filtered.may_have_lost_before(10_002));
        assert!(filtered.may_have_lost_before(10_003), "it came and went while nobody read");
        assert!(!filtered.handle_message(2, 10_002, 0), "the next wanted one");
        filtered.handle_connected((10_500, 11_000), 0);
        assert!(!filtered.may_have_lost_before(11_001));
    }

    #[test]
    fn a_hole_shows_before_the_next_check_if_fewer_messages_wait_than_before() {
        let mut filtered = Filtered::default();
        filtered.handle_connected((1, 100), 100);
        assert!(!filtered.handle_message(1, 1, 99));
        assert!(!filtered.handle_message(2, 2, 103), "five have come");
        assert!(filtered.handle_message(3, 60, 45), "no check has seen that the stream begins at 60");
        assert!(!filtered.handle_message(61, 61, 44), "counted once");
        // All that waited are purged; what comes then has none behind it.
        assert!(filtered.handle_message(62, 201, 0));
        assert!(!filtered.handle_message(202, 250, 0), "the last one, and others between");
    }

    #[test]
    fn retention_that_passes_a_reader_which_is_behind_is_a_hole() {
        let mut filtered = Filtered::default();
        filtered.handle_connected((1, 100), 100);
        assert!(!filtered.handle_message(1, 1, 99));
        filtered.handle_check((60, 160));
        assert!(!filtered.handle_message(2, 2, 98), "it was on its way");
        assert!(filtered.handle_message(3, 60, 90));
        assert!(!filtered.handle_message(61, 61, 89), "counted once");
        filtered.handle_check((200, 300));
        assert!(filtered.may_have_lost_before(200), "89 were waiting");
    }
}
