//! Decides when a shard batches, spins and sleeps, and accounts for its time.

use std::io;

use super::{Driver, Phase};
use crate::clock;
use tickcast_core::{
    flush_wait::{AutoWait, LatencyBudget},
    metrics::counters::Counter,
};

/// Window over which the shard decides whether it is saturated: shorter than a session takes to fall too far behind.
const LOAD_WINDOW_NS: u64 = 50_000_000;
/// Busy share of a saturated shard, in thousandths. Even a saturated shard sleeps a little, when every socket is full for a
/// moment.
const SATURATED_PERMILLE: u64 = 750;
/// How long a shard still counts as saturated afterwards, because backlogs from that time remain.
const SATURATED_NS: u64 = 1_000_000_000;

/// How long a shard batches under load, and spins when idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pacing {
    /// Maximum time that a tick is held under load, to be sent together with others.
    pub latency_budget: LatencyBudget,
    /// Busy-poll this long before sleeping, in nanoseconds.
    pub spin_ns: u64,
}

/// The pauses between a shard's rounds of SENDs.
#[derive(Debug)]
pub(super) struct Waits {
    /// `None`: the wait has a fixed length.
    auto: Option<AutoWait>,
    wait_ns: u64,
    /// The current round of SENDs.
    round: Option<Round>,
    /// Ticks counted as delivered when the last round ended. After a round with only replies, no tick is held.
    delivered: u64,
    /// The wait under way.
    hold: Option<Hold>,
    /// The current measurement of whether the shard is saturated: its start, CLOCK_MONOTONIC nanoseconds, and the time worked since.
    load_since_ns: u64,
    load_busy_ns: u64,
    /// Until when the shard counts as saturated, CLOCK_MONOTONIC nanoseconds.
    saturated_until_ns: u64,
}

/// A wait: ticks are held, everything else continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hold {
    /// CLOCK_MONOTONIC nanoseconds.
    ends_ns: u64,
    /// Bytes of frames appended to the egress logs when the wait began.
    appended: u64,
}

impl Waits {
    pub(super) fn new(budget: LatencyBudget) -> Waits {
        let (auto, wait_ns) = match budget {
            LatencyBudget::Fixed { ns } => (None, ns),
            LatencyBudget::Auto { max_ns } => (Some(AutoWait::new(max_ns)), 0),
        };
        Waits {
            auto,
            wait_ns,
            round: None,
            delivered: 0,
            hold: None,
            load_since_ns: 0,
            load_busy_ns: 0,
            saturated_until_ns: 0,
        }
    }

    /// Time from the start of one round of SENDs to the next, in nanoseconds.
    pub(super) fn wait_ns(&self) -> u64 {
        self.wait_ns
    }

    /// Whether ticks are being held.
    pub(super) fn is_holding(&self) -> bool {
        self.hold.is_some()
    }
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
        self.adapt(busy_ns, now_ns);
        now_ns
    }

    /// Starts a wait once a round is complete, until the latency budget, counted from the round's start, is used up. Ticks that
    /// arrive in the meantime are sent together. Replies, handshakes and everything else continue. The first tick after a pause
    /// is not delayed.
    pub(super) fn pace(&mut self, began_ns: u64, now_ns: u64, sends: usize) {
        if self.phase != Phase::Running || self.waits.wait_ns == 0 {
            self.waits.round = None;
            return;
        }
        let ready = self.shard.ready_or_lagging_len();
        let (round, ends) = Round::after(self.waits.round.take(), began_ns, sends, ready);
        let Some(round) = round else { return };
        if !ends {
            self.waits.round = Some(round);
            return;
        }
        let delivered = self.shard.counters().value(Counter::TicksDelivered);
        let has_ticks = std::mem::replace(&mut self.waits.delivered, delivered) != delivered;
        let ends_ns = round.since_ns.saturating_add(self.waits.wait_ns);
        if has_ticks && now_ns < ends_ns {
            self.waits.hold = Some(Hold { ends_ns, appended: self.shard.appended_bytes() });
            self.shard.hold_ticks();
        }
    }

    /// Ends the wait when its time is up, the server stops, or enough frames for a full SEND have accumulated.
    pub(super) fn end_wait(&mut self, now_ns: u64) {
        if let Some(hold) = self.waits.hold
            && (hold.ends_ns <= now_ns
                || self.shard.appended_bytes() - hold.appended >= self.shard.held_bytes_max()
                || self.shard.must_release_ticks()
                || self.phase != Phase::Running)
        {
            self.waits.hold = None;
            self.shard.release_ticks();
        }
    }

    /// Sleeps until the wait ends, or until something other than ticks arrives. Producers of ticks need no wake-up.
    pub(super) fn sleep_within_budget(&mut self) -> io::Result<()> {
        let bell = self.bell.clone();
        bell.sleep_within_budget(|| {
            self.arm_timers()?;
            self.ring.poll()?;
            let work_waits = self.ring.has_events()
                || self.mesh.push_out(&mut self.shard)
                || self.mesh.has_peer_input(&self.shard)
                || self.handovers.look_again()
                || self.control.has_work()
                || self.tls.has_ready()
                || self.has_verdicts()
                || self.shard.is_busy()
                || self.stop.is_requested();
            let ends_ns = self.waits.hold.map_or(0, |hold| hold.ends_ns);
            let now_ns = clock::monotonic_ns();
            if !work_waits && now_ns < ends_ns {
                self.asleep_since_ns = now_ns;
                self.ring.wait_for(ends_ns - now_ns)?;
            }
            Ok(())
        })
    }

    /// Derives the next wait from the shard's busy share, unless it is fixed. Tells the shard whether it is saturated.
    fn adapt(&mut self, busy_ns: u64, now_ns: u64) {
        self.waits.load_busy_ns += busy_ns;
        let elapsed_ns = now_ns - self.waits.load_since_ns;
        if elapsed_ns >= LOAD_WINDOW_NS {
            if self.waits.load_busy_ns.saturating_mul(1_000) >= elapsed_ns * SATURATED_PERMILLE {
                self.waits.saturated_until_ns = now_ns + SATURATED_NS;
            }
            self.shard.set_saturated(now_ns < self.waits.saturated_until_ns);
            (self.waits.load_since_ns, self.waits.load_busy_ns) = (now_ns, 0);
        }
        let Some(auto) = &mut self.waits.auto else { return };
        if auto.record(busy_ns, now_ns) {
            auto.end_window(now_ns, clock::thread_cpu_ns());
            self.waits.wait_ns = auto.wait_ns();
            self.shard.counters().set(Counter::FlushWaitNs, self.waits.wait_ns);
        }
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
        // By now all sessions have ticks again. They queue behind the round, which does not wait for them.
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
