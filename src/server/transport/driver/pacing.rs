//! Decides when a shard batches, spins and sleeps, and accounts for its time.

use std::io;

use super::{Driver, Phase};
use crate::clock;
use tickcast_core::metrics::counters::Counter;

/// How long a shard batches under load, and spins when idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pacing {
    /// Longest a tick may wait under load to be sent together with others, nanoseconds; 0: every turn sends.
    pub latency_budget_ns: u64,
    /// Busy-polls this long before sleeping, nanoseconds.
    pub spin_ns: u64,
}

/// Consecutive turns that serve one set of ready sessions: several if the set exceeds a turn's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Round {
    /// Start of its first turn.
    since_ns: u64,
    /// Sessions that were ready then and are not served yet.
    left: usize,
}

impl Round {
    /// Advances `round` by a turn that began at `began_ns`, made `sends` SENDs and left `ready` sessions ready. Returns the
    /// round the turn belongs to, if any, and whether it is complete. Sessions that become ready later queue behind those
    /// of the round and belong to the next one.
    fn after(round: Option<Round>, began_ns: u64, sends: usize, ready: usize) -> (Option<Round>, bool) {
        let round = match round {
            None if sends == 0 => return (None, false),
            None => Round { since_ns: began_ns, left: ready },
            Some(Round { since_ns, left }) => Round { since_ns, left: left.saturating_sub(sends).min(ready) },
        };
        (Some(round), round.left == 0)
    }
}

impl Driver {
    /// Adds an iteration of the loop to the shard's busy and idle time, and to the histogram of its turns. Returns its end,
    /// which is the next one's start.
    pub(super) fn account(&mut self, began_ns: u64) -> u64 {
        let now_ns = clock::monotonic_ns();
        let asleep_ns = match std::mem::take(&mut self.asleep_since_ns) {
            0 => 0,
            since_ns => now_ns.saturating_sub(since_ns),
        };
        let counters = self.shard.counters();
        let busy_ns = now_ns.saturating_sub(began_ns).saturating_sub(asleep_ns);
        counters.add(Counter::BusyNs, busy_ns);
        counters.add(Counter::IdleNs, asleep_ns);
        self.watch.end_turn(self.shard.id(), busy_ns, now_ns, counters);
        now_ns
    }

    /// Once a round is complete, sleeps until the latency budget since its start is used up, so that ticks arriving meanwhile
    /// leave together. Handles operators' requests in that time. The first tick after a pause is not delayed. The
    /// doorbell is not armed meanwhile, so producers pay for no wake-up.
    pub(super) fn pace(&mut self, began_ns: u64, sends: usize) -> io::Result<()> {
        let budget_ns = self.pacing.latency_budget_ns;
        if self.phase != Phase::Running || budget_ns == 0 {
            return Ok(());
        }
        let (round, ends) =
            Round::after(self.round.take(), began_ns, sends, self.shard.ready_or_lagging_len());
        let Some(round) = round else { return Ok(()) };
        if !ends {
            self.round = Some(round);
            return Ok(());
        }
        let ends_ns = round.since_ns.saturating_add(budget_ns);
        let mut now_ns = clock::monotonic_ns();
        while now_ns < ends_ns && self.handle_control(clock::now())? {
            now_ns = clock::monotonic_ns();
        }
        if now_ns < ends_ns {
            self.asleep_since_ns = now_ns;
            clock::sleep_ns(ends_ns - now_ns);
        }
        Ok(())
    }

    /// Whether to poll again, after a turn that did nothing, instead of sleeping. Counts as idle time. Such a turn hardly
    /// ever makes a system call, because the kernel announces completions in the ring's memory.
    pub(super) fn spin(&mut self, began_ns: u64) -> bool {
        if self.pacing.spin_ns == 0 || self.phase != Phase::Running {
            return false;
        }
        if self.spins_since_ns == 0 {
            self.spins_since_ns = began_ns;
        }
        let spins = began_ns - self.spins_since_ns < self.pacing.spin_ns;
        if spins {
            self.asleep_since_ns = began_ns;
            std::hint::spin_loop();
        }
        spins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_ends_when_all_sessions_that_were_ready_have_had_a_send() {
        let (round, ends) = Round::after(None, 7, 1_024, 3_976);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 3_976 }), false));
        // Meanwhile all have ticks again: they queue behind the round, which does not wait for them.
        let (round, ends) = Round::after(round, 8, 1_024, 5_000);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 2_952 }), false));
        let (round, ends) = Round::after(round, 9, 2_952, 5_000);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 0 }), true));
    }

    #[test]
    fn a_round_ends_when_the_sessions_that_were_ready_are_gone() {
        let (round, _) = Round::after(None, 7, 1_024, 976);
        let (round, ends) = Round::after(round, 8, 0, 0);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 0 }), true));
    }

    #[test]
    fn a_turn_without_sends_starts_no_round() {
        assert_eq!(Round::after(None, 7, 0, 0), (None, false));
        assert_eq!(Round::after(None, 7, 100, 0), (Some(Round { since_ns: 7, left: 0 }), true));
    }
}
