//! The latency budget and its controller: how long a shard waits between rounds of SENDs, so that ticks are sent together.
//!
//! A SEND costs a few microseconds however little it carries, so under load a shard that sends less often does the same work in
//! less time. [`AutoWait`] finds the shortest wait that keeps the shard's busy share below [`BUSY_SHARE_PERMILLE`]. It measures
//! windows of [`WINDOW_NS`]:
//!
//! ```text
//! busy share   wait for the next window
//! > 45 %       longer in proportion, at most twice as long; from 0 to FIRST_WAIT_NS
//! 40 to 45 %   the same
//! < 40 %       shorter in proportion, by an eighth at most; below SHORTEST_WAIT_NS none
//! ```
//! The wait shrinks slowly, so that the shard is prepared for the next burst of a source that paused briefly. A proportional
//! change does not overshoot: with a cost `f` per round and a period `p`, the share is `f/p + c`, and the new period `p * share /
//! aim` gives a share between the old one and the aim for every `c`. So the wait converges and stays within the band.

/// The busy share of a shard above which ticks are batched for longer, in thousandths.
///
/// Measured with S1 (5,000 ticks/s to 100 clients): the share is 98 % without a wait, 66 % with 0.6 ms and 40 to 50 % with 1 ms.
/// p99 is lowest with 1 to 1.2 ms; with shorter waits, ticks queue behind SENDs. 500 ticks/s to 100 clients keep a shard 20 %
/// busy, where a wait would only add latency. Above 50 %, a burst of twice the load queues.
pub const BUSY_SHARE_PERMILLE: u64 = 450;
/// The busy share below which the wait is shortened, in thousandths. The band between the two is wider than a window's noise.
pub const BUSY_SHARE_LOW_PERMILLE: u64 = 400;
/// The busy share that a change aims for: the middle of the band.
const AIM_PERMILLE: u64 = (BUSY_SHARE_PERMILLE + BUSY_SHARE_LOW_PERMILLE) / 2;
/// The busy share below which a wait of [`SHORTEST_WAIT_NS`] ends, in thousandths. A turn with one SEND takes over 2.5 us, so a
/// shard that sends every 10 us is busier than this. Below it, the wait no longer determines how often the shard sends.
const RELEASE_PERMILLE: u64 = 250;
/// The share of elapsed time above which a shard that gets too little of its core counts as busy, in thousandths.
const STARVED_PERMILLE: u64 = 900;
/// Window over which the busy share is measured. The wait grows from 0 to the longest within 7 windows.
pub const WINDOW_NS: u64 = 4_000_000;
/// The first wait of a shard that becomes busy.
const FIRST_WAIT_NS: u64 = 64_000;
/// The shortest wait: falling asleep and waking up take about as long.
pub const SHORTEST_WAIT_NS: u64 = 10_000;
/// The longest wait, unless the operator sets another.
pub const AUTO_WAIT_MAX_NS: u64 = 1_000_000;
/// Maximum windows that one long turn counts for.
const STEPS_MAX: u64 = 16;
/// If a window lasts this long because the shard slept, no wait is needed.
const IDLE_NS: u64 = STEPS_MAX * WINDOW_NS;

const _: () =
    assert!(BUSY_SHARE_LOW_PERMILLE < BUSY_SHARE_PERMILLE && BUSY_SHARE_PERMILLE < STARVED_PERMILLE);
const _: () = assert!(RELEASE_PERMILLE < BUSY_SHARE_LOW_PERMILLE && SHORTEST_WAIT_NS < FIRST_WAIT_NS);

/// How long a tick may be held under load, to be sent together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyBudget {
    /// Always this long, nanoseconds; 0: every turn sends.
    Fixed {
        /// Nanoseconds.
        ns: u64,
    },
    /// As long as the shard's busy share requires.
    Auto {
        /// At most this long, nanoseconds.
        max_ns: u64,
    },
}

impl Default for LatencyBudget {
    fn default() -> LatencyBudget {
        LatencyBudget::Auto { max_ns: AUTO_WAIT_MAX_NS }
    }
}

impl LatencyBudget {
    /// The longest wait, nanoseconds.
    pub fn max_ns(self) -> u64 {
        match self {
            LatencyBudget::Fixed { ns } => ns,
            LatencyBudget::Auto { max_ns } => max_ns,
        }
    }
}

/// The current window of measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    /// Start, CLOCK_MONOTONIC nanoseconds; 0: no window has begun.
    began_ns: u64,
    /// The thread's CPU time when it began, nanoseconds.
    cpu_began_ns: u64,
    /// Time worked since, nanoseconds.
    busy_ns: u64,
}

/// Controls one shard's wait. The caller reports every turn with [`AutoWait::record`]; if that returns `true`, it reads the
/// thread's CPU time and calls [`AutoWait::end_window`]. Costs a few instructions per turn.
///
/// Invariant: `wait_ns` is 0, or at least the lesser of `SHORTEST_WAIT_NS` and `max_ns`, and at most `max_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoWait {
    max_ns: u64,
    wait_ns: u64,
    window: Window,
    /// The busy share, smoothed over about two windows.
    share_permille: u64,
}

impl AutoWait {
    /// Creates a controller that begins with no wait.
    pub fn new(max_ns: u64) -> AutoWait {
        AutoWait { max_ns, wait_ns: 0, window: Window::default(), share_permille: 0 }
    }

    /// Time from the start of one round of SENDs to the next, in nanoseconds.
    pub fn wait_ns(&self) -> u64 {
        self.wait_ns
    }

    /// Records a turn that worked for `busy_ns`, excluding sleep, and ended at `now_ns` (CLOCK_MONOTONIC). Returns whether the
    /// window is complete.
    pub fn record(&mut self, busy_ns: u64, now_ns: u64) -> bool {
        self.window.busy_ns += busy_ns;
        now_ns.saturating_sub(self.window.began_ns) >= WINDOW_NS
    }

    /// Ends the window and sets the wait. `cpu_ns`: the thread's CPU time so far, nanoseconds.
    /// The share counts CPU time, so that a neighbour on the shard's core does not look like load. But if the shard has hardly
    /// slept, it lacks CPU time, and fewer SENDs help, whatever else uses the core.
    pub fn end_window(&mut self, now_ns: u64, cpu_ns: u64) {
        let next = Window { began_ns: now_ns, cpu_began_ns: cpu_ns, busy_ns: 0 };
        let Window { began_ns, cpu_began_ns, busy_ns } = std::mem::replace(&mut self.window, next);
        let elapsed_ns = now_ns.saturating_sub(began_ns);
        if began_ns == 0 || elapsed_ns == 0 {
            return;
        }
        let permille = |ns: u64| (ns.saturating_mul(1_000) / elapsed_ns).min(1_000);
        let (busy, cpu) = (permille(busy_ns), permille(cpu_ns.saturating_sub(cpu_began_ns)));
        let share = if busy >= STARVED_PERMILLE { busy } else { busy.min(cpu) };
        if elapsed_ns >= IDLE_NS && share < RELEASE_PERMILLE {
            (self.wait_ns, self.share_permille) = (0, share);
        }
        for _ in 0..(elapsed_ns / WINDOW_NS).clamp(1, STEPS_MAX) {
            self.step(share);
        }
        debug_assert!(self.wait_ns <= self.max_ns, "the wait is bounded");
    }

    fn step(&mut self, share_permille: u64) {
        self.share_permille = (self.share_permille + share_permille) / 2;
        let share = self.share_permille;
        let scaled_ns = self.wait_ns * share.clamp(AIM_PERMILLE * 7 / 8, 2 * AIM_PERMILLE) / AIM_PERMILLE;
        let wait_ns = match share {
            _ if share > BUSY_SHARE_PERMILLE => scaled_ns.max(FIRST_WAIT_NS),
            _ if share >= BUSY_SHARE_LOW_PERMILLE || self.wait_ns == 0 => self.wait_ns,
            _ if scaled_ns >= SHORTEST_WAIT_NS => scaled_ns,
            _ if share < RELEASE_PERMILLE => 0,
            _ => SHORTEST_WAIT_NS,
        };
        self.wait_ns = wait_ns.min(self.max_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS_NS: u64 = 1_000_000;

    /// A shard whose rounds of SENDs cost `round_ns` each and whose ticks cost `tick_ns` each, in simulated time.
    struct Load {
        ticks_per_s: u64,
        tick_ns: u64,
        round_ns: u64,
    }

    /// 5,000 ticks/s to 100 clients: 500,000 SENDs/s would take two cores.
    const S1: Load = Load { ticks_per_s: 5_000, tick_ns: 10_000, round_ns: 380_000 };
    /// 500 ticks/s to 100 clients: 20 % busy.
    const LIGHT: Load = Load { ticks_per_s: 500, tick_ns: 10_000, round_ns: 390_000 };

    struct Simulated {
        auto: AutoWait,
        now_ns: u64,
        cpu_ns: u64,
        /// The wait at the end of each round.
        waits_ns: Vec<u64>,
    }

    impl Simulated {
        fn new() -> Simulated {
            Simulated {
                auto: AutoWait::new(AUTO_WAIT_MAX_NS),
                now_ns: MS_NS,
                cpu_ns: 0,
                waits_ns: Vec::new(),
            }
        }

        /// One turn that works for `busy_ns` of wall time, of which it gets `cpu_permille` of the core.
        fn work(&mut self, busy_ns: u64, cpu_permille: u64, slept_ns: u64) {
            self.now_ns += busy_ns + slept_ns;
            self.cpu_ns += busy_ns * cpu_permille / 1_000;
            if self.auto.record(busy_ns, self.now_ns) {
                self.auto.end_window(self.now_ns, self.cpu_ns);
            }
            self.waits_ns.push(self.auto.wait_ns());
        }

        /// Serves a load for a time. A round begins when a tick has arrived and the wait since the last round is over.
        fn serve(&mut self, load: &Load, for_ns: u64, mut jitter: impl FnMut(u64) -> u64) {
            let (ends_ns, interval_ns) = (self.now_ns + for_ns, 1_000_000_000 / load.ticks_per_s);
            let mut last_tick_ns = self.now_ns;
            while self.now_ns < ends_ns {
                let waits_ns = self.auto.wait_ns();
                let began_ns = self.now_ns;
                let due_ns = last_tick_ns + interval_ns;
                let starts_ns = due_ns.max(began_ns);
                let ticks = (starts_ns - last_tick_ns) / interval_ns;
                last_tick_ns += ticks * interval_ns;
                let busy_ns = jitter(load.round_ns + ticks * load.tick_ns);
                let slept_ns = (starts_ns - began_ns) + waits_ns.saturating_sub(busy_ns);
                self.work(busy_ns, 1_000, slept_ns);
            }
        }

        fn idle(&mut self, for_ns: u64) {
            self.work(0, 0, for_ns);
        }
    }

    fn exact(ns: u64) -> u64 {
        ns
    }

    #[test]
    fn a_step_from_idle_to_load_adapts_within_50_ms() {
        let mut shard = Simulated::new();
        shard.idle(10_000 * MS_NS);
        assert_eq!(shard.auto.wait_ns(), 0);
        shard.serve(&S1, 50 * MS_NS, exact);
        let adapted_ns = shard.auto.wait_ns();
        shard.serve(&S1, 1_000 * MS_NS, exact);
        let settled_ns = shard.auto.wait_ns();
        assert!(settled_ns > 800_000, "{settled_ns}");
        assert!(adapted_ns.abs_diff(settled_ns) <= settled_ns / 10, "{adapted_ns} {settled_ns}");
    }

    #[test]
    fn the_wait_settles_where_the_share_is_in_the_band_and_does_not_oscillate() {
        for round_ns in [50_000, 100_000, 200_000, 300_000, 350_000] {
            let mut shard = Simulated::new();
            let load = Load { ticks_per_s: 10_000, tick_ns: 5_000, round_ns };
            shard.serve(&load, 500 * MS_NS, exact);
            shard.waits_ns.clear();
            let (began_ns, cpu_began_ns) = (shard.now_ns, shard.cpu_ns);
            shard.serve(&load, 2_000 * MS_NS, exact);
            let share = (shard.cpu_ns - cpu_began_ns) * 1_000 / (shard.now_ns - began_ns);
            assert!((390..=460).contains(&share), "{round_ns}: {share}");
            let (low, high) = (shard.waits_ns.iter().min().unwrap(), shard.waits_ns.iter().max().unwrap());
            assert!(high - low <= high / 8, "{round_ns}: {low} to {high}");
        }
    }

    #[test]
    fn a_noisy_load_moves_the_wait_little() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut shard = Simulated::new();
        let load = Load { ticks_per_s: 10_000, tick_ns: 5_000, round_ns: 300_000 };
        let mut noisy = |ns: u64| ns * random.u64(700..=1_300) / 1_000;
        shard.serve(&load, 500 * MS_NS, &mut noisy);
        shard.waits_ns.clear();
        shard.serve(&load, 5_000 * MS_NS, &mut noisy);
        let (low, high) = (shard.waits_ns.iter().min().unwrap(), shard.waits_ns.iter().max().unwrap());
        assert!(high - low <= high / 3, "{low} to {high}");
    }

    #[test]
    fn a_load_below_the_share_never_waits() {
        let mut shard = Simulated::new();
        shard.serve(&LIGHT, 10_000 * MS_NS, exact);
        assert_eq!(shard.waits_ns.iter().max(), Some(&0));
    }

    #[test]
    fn the_wait_ends_when_the_load_does() {
        for quiet in [true, false] {
            let mut shard = Simulated::new();
            shard.serve(&S1, 1_000 * MS_NS, exact);
            assert!(shard.auto.wait_ns() > 0);
            match quiet {
                true => shard.idle(100 * MS_NS),
                false => shard.serve(&LIGHT, 250 * MS_NS, exact),
            }
            assert_eq!(shard.auto.wait_ns(), 0, "quiet: {quiet}");
        }
    }

    #[test]
    fn each_window_doubles_the_wait_or_shortens_it_by_an_eighth_at_most() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut auto = AutoWait::new(AUTO_WAIT_MAX_NS);
        let (mut now_ns, mut cpu_ns) = (MS_NS, 0);
        auto.end_window(now_ns, cpu_ns);
        for _ in 0..10_000 {
            let before_ns = auto.wait_ns();
            let busy_ns = random.u64(..=WINDOW_NS);
            now_ns += WINDOW_NS;
            cpu_ns += busy_ns;
            assert!(auto.record(busy_ns, now_ns));
            auto.end_window(now_ns, cpu_ns);
            let after_ns = auto.wait_ns();
            assert!(after_ns <= (2 * before_ns).max(FIRST_WAIT_NS) && after_ns <= AUTO_WAIT_MAX_NS);
            assert!(after_ns >= before_ns * 6 / 7 || before_ns <= 2 * SHORTEST_WAIT_NS);
            assert!(after_ns == 0 || after_ns >= SHORTEST_WAIT_NS);
        }
    }

    #[test]
    fn a_neighbour_on_the_core_is_not_load_unless_the_shard_starves() {
        let mut shard = Simulated::new();
        // 60 % of the time passes in turns, which get a third of the core.
        (0..1_000).for_each(|_| shard.work(600_000, 333, 400_000));
        assert_eq!(shard.auto.wait_ns(), 0);
        // The shard never sleeps, and gets a fifth of the core, as under a CPU quota.
        (0..1_000).for_each(|_| shard.work(1_000_000, 200, 0));
        assert_eq!(shard.auto.wait_ns(), AUTO_WAIT_MAX_NS);
    }

    #[test]
    fn the_operators_maximum_holds() {
        for max_ns in [0, 5_000, 30_000, 200_000] {
            let mut auto = AutoWait::new(max_ns);
            for window in 1..100 {
                let now_ns = window * WINDOW_NS;
                auto.record(WINDOW_NS, now_ns);
                auto.end_window(now_ns, now_ns);
            }
            assert_eq!(auto.wait_ns(), max_ns);
        }
    }
}
