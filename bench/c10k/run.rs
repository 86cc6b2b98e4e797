//! Leads the threads through the phases.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    options::Plan,
    process,
    progress::Progress,
    report::{Report, Server},
    tally::{self, Loss, Tally},
    worker::{self, Phase, Shared, WorkerReport},
};
use tickcast::clock;

/// How often the phases are looked at.
const LOOK_NS: u64 = 2_000_000;
/// Time beyond the ramp's own length for the last connections to be acknowledged.
const SUBSCRIBE_DEADLINE_NS: u64 = 30_000_000_000;
/// Time for the connections to reach what any of them had seen at the end.
const SETTLE_NS: u64 = 2_000_000_000;
/// Time for all threads to note sequences.
const NOTE_DEADLINE_NS: u64 = 60_000_000_000;
/// Share of the warm-up after which the start is noted: noting stalls a thread, and that must not be measured.
const START_AT_PERCENT: u64 = 80;

/// Runs the load, to its end or until it is `interrupted`: then the report is of what was measured so far.
///
/// # Errors
/// One line for the operator.
pub fn run(plan: &Plan, interrupted: &AtomicBool) -> Result<Report, String> {
    let before_bytes = process::resident_bytes(std::process::id());
    if let Some(pid) = plan.server_pid {
        process::cpu_ns(pid)?;
    }
    let shared = Shared::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|index| {
                let shared = &shared;
                scope.spawn(move || worker::run(plan, shared, index))
            })
            .collect();
        let alive = || !threads.iter().any(thread::ScopedJoinHandle::is_finished);
        let progress = Progress::new(plan.connections);
        let lead = Lead { plan, shared: &shared, alive: &alive, interrupted, progress };
        let outcome = lead.lead();
        lead.progress.clear();
        if let Err(why) = &outcome {
            shared.fail(why.clone());
        }
        let mut reports = Vec::with_capacity(plan.threads);
        for thread in threads {
            reports.push(thread.join().map_err(|_| "a thread panicked".to_owned())??);
        }
        let led = outcome?;
        match shared.failure() {
            Some(why) => Err(why),
            None => merge(plan, reports, led, before_bytes),
        }
    })
}

/// What the leading thread found.
struct Led {
    server: Option<Server>,
    subscribe_ns: u64,
    acknowledged: usize,
    window_ns: u64,
    timed_out: bool,
    interrupted: bool,
    resident_bytes: Option<u64>,
}

struct Lead<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    alive: &'a dyn Fn() -> bool,
    interrupted: &'a AtomicBool,
    progress: Progress,
}

impl Lead<'_> {
    fn lead(&self) -> Result<Led, String> {
        let plan = self.plan;
        let began_ns = clock::monotonic_ns();
        self.await_subscribed()?;
        let subscribe_ns = clock::monotonic_ns() - began_ns;
        let acknowledged = self.shared.subscribed.load(Ordering::Acquire);
        self.warm_up()?;
        let cpu_from_ns = self.server_cpu_ns()?;
        self.shared.enter(Phase::Measure);
        let from_ns = clock::monotonic_ns();
        let is_complete = self.measure();
        let window_ns = clock::monotonic_ns() - from_ns;
        let server = match (plan.server_pid, cpu_from_ns, self.server_cpu_ns()?) {
            (Some(pid), Some(from), Some(to)) => {
                Some(Server { cpu_ns: to - from, resident_bytes: process::resident_bytes(pid) })
            }
            _ => None,
        };
        let resident_bytes = process::resident_bytes(std::process::id());
        self.note(Phase::End)?;
        self.shared.enter(Phase::Settle);
        self.progress.times("settling", SETTLE_NS);
        let settles_ns = clock::monotonic_ns();
        self.wait_out(SETTLE_NS, || {
            self.progress.passed(clock::monotonic_ns() - settles_ns);
            self.shared.done.load(Ordering::Acquire) == plan.threads
        });
        self.shared.enter(Phase::Done);
        let interrupted = self.is_interrupted();
        let timed_out = plan.expect_ticks.is_some() && !is_complete && !interrupted;
        Ok(Led { server, subscribe_ns, acknowledged, window_ns, timed_out, interrupted, resident_bytes })
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    /// Lets ticks flow, and has the start noted; an interrupted run goes without.
    fn warm_up(&self) -> Result<(), String> {
        if self.plan.warm_up_s == 0 || self.is_interrupted() {
            return Ok(());
        }
        self.shared.enter(Phase::WarmUp);
        let warm_up_ns = self.plan.warm_up_s * 1_000_000_000;
        self.progress.times("warming up", warm_up_ns);
        let from_ns = clock::monotonic_ns();
        let pass = || {
            self.progress.passed(clock::monotonic_ns() - from_ns);
            false
        };
        self.wait(warm_up_ns / 100 * START_AT_PERCENT, pass);
        if self.is_interrupted() {
            return Ok(());
        }
        self.note(Phase::Start)?;
        self.shared.has_start.store(true, Ordering::Release);
        self.wait((from_ns + warm_up_ns).saturating_sub(clock::monotonic_ns()), pass);
        Ok(())
    }

    /// Waits for the window to pass, or for the ticks that were asked for; whether all came.
    fn measure(&self) -> bool {
        let duration_ns = self.plan.duration_s * 1_000_000_000;
        let from_ns = clock::monotonic_ns();
        if self.plan.expect_ticks.is_none() {
            self.progress.times("measuring", duration_ns);
            return self.wait(duration_ns, || {
                self.progress.passed(clock::monotonic_ns() - from_ns);
                false
            });
        }
        self.progress.counts("complete", self.plan.connections);
        self.wait(duration_ns, || {
            let complete = self.shared.complete.load(Ordering::Acquire);
            self.progress.reached(complete);
            complete >= self.plan.connections
        })
    }

    fn await_subscribed(&self) -> Result<(), String> {
        let connections = self.plan.connections;
        let ramp_ns = match self.plan.spike {
            true => 0,
            false => connections as u64 * 1_000_000_000 / self.plan.ramp_per_s as u64,
        };
        let subscribed = || self.shared.subscribed.load(Ordering::Acquire);
        let all = self.wait(ramp_ns + SUBSCRIBE_DEADLINE_NS, || {
            self.progress.reached(subscribed());
            subscribed() == connections
        });
        if let Some(why) = self.shared.failure() {
            return Err(why);
        }
        if self.is_interrupted() {
            return Ok(());
        }
        if !all {
            return Err(format!(
                "only {} of {connections} connections were acknowledged in time: is the server at its client limit?",
                subscribed()
            ));
        }
        self.progress.say(&format!("subscribed {connections}"));
        Ok(())
    }

    fn note(&self, phase: Phase) -> Result<(), String> {
        self.shared.enter(phase);
        let noted =
            self.wait_out(NOTE_DEADLINE_NS, || self.shared.done.load(Ordering::Acquire) == self.plan.threads);
        match (noted, self.shared.failure()) {
            (_, Some(why)) => Err(why),
            (false, None) => Err("a thread did not come to note its sequences".into()),
            (true, None) => Ok(()),
        }
    }

    /// Waits for `duration_ns`, or until `early`, the end of a thread, or an interruption; whether it was `early`.
    fn wait(&self, duration_ns: u64, mut early: impl FnMut() -> bool) -> bool {
        let mut is_early = false;
        self.wait_out(duration_ns, || {
            is_early = early();
            is_early || self.is_interrupted()
        });
        is_early
    }

    /// The same, whether interrupted or not: for what the report needs.
    fn wait_out(&self, duration_ns: u64, mut early: impl FnMut() -> bool) -> bool {
        let until_ns = clock::monotonic_ns() + duration_ns;
        loop {
            if early() {
                return true;
            }
            let now_ns = clock::monotonic_ns();
            if now_ns >= until_ns || !(self.alive)() {
                return false;
            }
            clock::sleep_ns(LOOK_NS.min(until_ns - now_ns));
        }
    }

    fn server_cpu_ns(&self) -> Result<Option<u64>, String> {
        self.plan.server_pid.map(process::cpu_ns).transpose()
    }
}

fn merge(
    plan: &Plan,
    workers: Vec<WorkerReport>,
    led: Led,
    before_bytes: Option<u64>,
) -> Result<Report, String> {
    let mut report = Report {
        tally: Tally::new()?,
        spread: None,
        clients: Vec::with_capacity(plan.connections),
        subscribe_ns: led.subscribe_ns,
        acknowledged: led.acknowledged,
        window_ns: led.window_ns,
        loss: Loss::default(),
        short: 0,
        ended: BTreeMap::new(),
        stalled_closed: 0,
        left: 0,
        came_back: 0,
        cpu_ns: 0,
        cpu_busiest: 0.0,
        timed_out: led.timed_out,
        interrupted: led.interrupted,
        server: led.server,
        resident_bytes: led.resident_bytes,
        resident_before_bytes: before_bytes,
    };
    for worker in workers {
        report.tally.add(&worker.tally)?;
        report.loss.add(worker.loss);
        report.clients.extend(worker.clients);
        report.short += worker.short;
        report.stalled_closed += worker.stalled_closed;
        report.left += worker.left;
        report.came_back += worker.came_back;
        report.cpu_ns += worker.cpu_ns;
        report.cpu_busiest = report.cpu_busiest.max(worker.cpu_ns as f64 / worker.window_ns.max(1) as f64);
        for (why, count) in worker.ended {
            *report.ended.entry(why).or_insert(0) += count;
        }
    }
    report.clients.sort_unstable_by_key(|client| client.index);
    let readers = plan.connections - plan.stalled;
    report.spread = report.tally.skew.spread(readers as u64, tally::histogram()?);
    Ok(report)
}

#[cfg(test)]
mod tests;
