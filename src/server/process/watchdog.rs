//! Whether the service manager's watchdog is to be fed: only when every shard has turned since it was fed last.
//!
//! A shard with nothing to do sleeps, and a sleeping shard looks like one that hangs. So each look goes with a ring of
//! every shard's doorbell: a shard that is well wakes, turns once, and is seen by the next look. A ring that comes between a
//! shard's last turn and its sleep wakes nobody; the ring of the next look does. So there are several looks in a period.

/// Looks in one period of the watchdog. A shard that is well is seen by the second look at the latest, so it is fed twice a
/// period or more, as sd_watchdog_enabled(3) asks for.
pub const LOOKS_PER_PERIOD: u64 = 4;
/// Looks in vain after which somebody should be told.
const LOOKS_TO_TELL: u32 = 3;

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Every shard has turned, or has ended: feed it.
    Feed,
    /// This shard has not turned yet. `tell`: this is the look from which on it is worth a line in the log.
    Wait {
        /// The first of them.
        shard: usize,
        /// Once for each time that shards stand still.
        tell: bool,
    },
}

/// What was seen when the watchdog was fed last.
///
/// Invariant: one entry a shard, from the first look to the last.
#[derive(Clone, Debug)]
pub struct Watchdog {
    /// Turns of each shard at that time; `None`: it had ended.
    fed_at: Vec<Option<u64>>,
    in_vain: u32,
}

impl Watchdog {
    /// For shards that have made so many turns by now.
    pub fn new(turns: impl Iterator<Item = u64>) -> Watchdog {
        Watchdog { fed_at: turns.map(Some).collect(), in_vain: 0 }
    }

    /// One look: the turns of each shard so far, `None` for one that has ended, and so does not hang. The doorbells are to
    /// be rung after it. Cost: one comparison a shard.
    pub fn look(&mut self, turns: impl Iterator<Item = Option<u64>>) -> Look {
        let now: Vec<Option<u64>> = turns.collect();
        debug_assert_eq!(now.len(), self.fed_at.len(), "shards neither come nor go");
        let stands = now.iter().zip(&self.fed_at).position(|(now, then)| now.is_some() && now == then);
        match stands {
            None => {
                self.fed_at = now;
                self.in_vain = 0;
                Look::Feed
            }
            Some(shard) => {
                self.in_vain = self.in_vain.saturating_add(1);
                Look::Wait { shard, tell: self.in_vain == LOOKS_TO_TELL }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(watchdog: &mut Watchdog, turns: [u64; 3]) -> Look {
        watchdog.look(turns.into_iter().map(Some))
    }

    #[test]
    fn it_is_fed_only_when_every_shard_has_turned_since_it_was_fed_last() {
        let mut watchdog = Watchdog::new([5, 5, 5].into_iter());
        assert_eq!(look(&mut watchdog, [6, 9, 5]), Look::Wait { shard: 2, tell: false });
        assert_eq!(look(&mut watchdog, [6, 9, 6]), Look::Feed);
        assert_eq!(look(&mut watchdog, [6, 10, 7]), Look::Wait { shard: 0, tell: false });
        assert_eq!(look(&mut watchdog, [7, 10, 7]), Look::Feed);
    }

    #[test]
    fn a_stuck_shard_is_told_of_once_and_never_fed_for() {
        let mut watchdog = Watchdog::new([0; 3].into_iter());
        for (turns, tell) in [(1, false), (2, false), (3, true), (4, false)] {
            assert_eq!(look(&mut watchdog, [turns, 0, turns]), Look::Wait { shard: 1, tell });
        }
        assert_eq!(look(&mut watchdog, [5, 1, 5]), Look::Feed);
        for tell in [false, false, true] {
            assert_eq!(look(&mut watchdog, [5, 2, 6]), Look::Wait { shard: 0, tell });
        }
    }

    #[test]
    fn turns_wrap_around() {
        let mut watchdog = Watchdog::new([u64::MAX; 3].into_iter());
        assert_eq!(look(&mut watchdog, [0, 0, 0]), Look::Feed);
    }

    #[test]
    fn a_shard_that_has_ended_does_not_hang() {
        let mut watchdog = Watchdog::new([1, 1].into_iter());
        assert_eq!(watchdog.look([Some(2), None].into_iter()), Look::Feed);
        assert_eq!(watchdog.look([Some(2), None].into_iter()), Look::Wait { shard: 0, tell: false });
        assert_eq!(watchdog.look([None, None].into_iter()), Look::Feed);
        assert_eq!(watchdog.look([None, None].into_iter()), Look::Feed);
    }
}
