//! Decides when to notify the service manager's watchdog: once every shard has made a turn since the last notification.
//! From outside, a sleeping idle shard looks like a stuck one. So the main thread rings all doorbells after every check: a
//! healthy shard wakes and makes a turn, which the next check sees. A doorbell that rings between a shard's last turn and its
//! sleep is lost, but the one after the next check is not. Therefore a period has several checks.

/// Checks per period of the watchdog.
/// A healthy shard makes a turn by the second check, so the watchdog is notified at least twice per period, as
/// sd_watchdog_enabled(3) advises.
pub const CHECKS_PER_PERIOD: u64 = 4;
/// Failed checks in a row after which to log it.
const CHECKS_TO_LOG: u32 = 3;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every shard has made a turn or has ended: notify the watchdog.
    Feed,
    /// A shard has not made a turn yet.
    Wait {
        /// The first such shard.
        shard: usize,
        /// Whether to log it: true once per hang.
        log: bool,
    },
}

/// The shards' progress since the watchdog was last fed.
///
/// Invariant: one entry per shard, in a fixed order.
#[derive(Clone, Debug)]
pub struct Watchdog {
    /// Turns of each shard when the watchdog was last fed; `None` if it had ended.
    turns_when_fed: Vec<Option<u64>>,
    failed_checks: u32,
}

impl Watchdog {
    /// Starts from the shards' current turns.
    pub fn new(turns: impl Iterator<Item = u64>) -> Watchdog {
        Watchdog { turns_when_fed: turns.map(Some).collect(), failed_checks: 0 }
    }

    /// Checks the turns of each shard so far, `None` for a shard that has ended. Ring the doorbells after it.
    ///
    /// Cost: one comparison per shard.
    pub fn check(&mut self, turns: impl Iterator<Item = Option<u64>>) -> Verdict {
        let now: Vec<Option<u64>> = turns.collect();
        debug_assert_eq!(now.len(), self.turns_when_fed.len(), "the number of shards is fixed");
        let stuck = now.iter().zip(&self.turns_when_fed).position(|(now, then)| now.is_some() && now == then);
        match stuck {
            None => {
                self.turns_when_fed = now;
                self.failed_checks = 0;
                Verdict::Feed
            }
            Some(shard) => {
                self.failed_checks = self.failed_checks.saturating_add(1);
                Verdict::Wait { shard, log: self.failed_checks == CHECKS_TO_LOG }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(watchdog: &mut Watchdog, turns: [u64; 3]) -> Verdict {
        watchdog.check(turns.into_iter().map(Some))
    }

    #[test]
    fn the_watchdog_is_fed_once_every_shard_has_made_a_turn() {
        let mut watchdog = Watchdog::new([5, 5, 5].into_iter());
        assert_eq!(check(&mut watchdog, [6, 9, 5]), Verdict::Wait { shard: 2, log: false });
        assert_eq!(check(&mut watchdog, [6, 9, 6]), Verdict::Feed);
        assert_eq!(check(&mut watchdog, [6, 10, 7]), Verdict::Wait { shard: 0, log: false });
        assert_eq!(check(&mut watchdog, [7, 10, 7]), Verdict::Feed);
    }

    #[test]
    fn a_stuck_shard_is_logged_once_and_keeps_the_watchdog_unfed() {
        let mut watchdog = Watchdog::new([0; 3].into_iter());
        for (turns, log) in [(1, false), (2, false), (3, true), (4, false)] {
            assert_eq!(check(&mut watchdog, [turns, 0, turns]), Verdict::Wait { shard: 1, log });
        }
        assert_eq!(check(&mut watchdog, [5, 1, 5]), Verdict::Feed);
        for log in [false, false, true] {
            assert_eq!(check(&mut watchdog, [5, 2, 6]), Verdict::Wait { shard: 0, log });
        }
    }

    #[test]
    fn turns_wrap_around() {
        let mut watchdog = Watchdog::new([u64::MAX; 3].into_iter());
        assert_eq!(check(&mut watchdog, [0, 0, 0]), Verdict::Feed);
    }

    #[test]
    fn an_ended_shard_is_not_stuck() {
        let mut watchdog = Watchdog::new([1, 1].into_iter());
        assert_eq!(watchdog.check([Some(2), None].into_iter()), Verdict::Feed);
        assert_eq!(watchdog.check([Some(2), None].into_iter()), Verdict::Wait { shard: 0, log: false });
        assert_eq!(watchdog.check([None, None].into_iter()), Verdict::Feed);
        assert_eq!(watchdog.check([None, None].into_iter()), Verdict::Feed);
    }
}
