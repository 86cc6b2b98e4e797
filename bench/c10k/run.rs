//! The run: starts the threads and takes them through the phases.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tickcast::clock;

use crate::{
    common::histogram::histogram,
    plan::Plan,
    process,
    progress::Progress,
    report::{Report, Server},
    tally::{Loss, Tally},
    worker::{self, Phase, Shared, WorkerReport},
};

/// Interval at which the coordinator checks on a phase.
const CHECK_NS: u64 = 2_000_000;
/// Time allowed beyond the ramp for the last connections to be acknowledged.
const SUBSCRIBE_DEADLINE_NS: u64 = 30_000_000_000;
/// Time allowed for all threads to note sequences.
const NOTE_DEADLINE_NS: u64 = 60_000_000_000;
/// Share of the warm-up after which the start is noted.
///
/// Noting stalls a thread, which must not happen in the measured window.
const START_AT_PERCENT: u64 = 80;

/// Runs the load to its end, or until it is `interrupted`; then it reports what was measured so far.
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
        let coordinator = Coordinator { plan, shared: &shared, alive: &alive, interrupted, progress };
        let outcome = coordinator.run();
        coordinator.progress.clear();
        if let Err(why) = &outcome {
            shared.fail(why.clone());
        }
        let mut reports = Vec::with_capacity(plan.threads);
        for thread in threads {
            reports.push(thread.join().map_err(|_| "a thread panicked".to_owned())??);
        }
        let phases = outcome?;
        match shared.failure() {
            Some(why) => Err(why),
            None => merge(plan, reports, phases, before_bytes),
        }
    })
}

/// Results of the coordinator.
struct Phases {
    server: Option<Server>,
    subscribe_ns: u64,
    acknowledged: usize,
    window_ns: u64,
    timed_out: bool,
    interrupted: bool,
    resident_bytes: Option<u64>,
}

/// Takes the threads through the phases.
struct Coordinator<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    alive: &'a dyn Fn() -> bool,
    interrupted: &'a AtomicBool,
    progress: Progress,
}

impl Coordinator<'_> {
    fn run(&self) -> Result<Phases, String> {
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
        self.progress.begin_time("settling", plan.settle_ns);
        let settle_from_ns = clock::monotonic_ns();
        self.wait_uninterrupted(plan.settle_ns, || {
            self.progress.set_elapsed(clock::monotonic_ns() - settle_from_ns);
            self.shared.done.load(Ordering::Acquire) == plan.threads
        });
        self.shared.enter(Phase::Done);
        let interrupted = self.is_interrupted();
        let timed_out = plan.expect_ticks.is_some() && !is_complete && !interrupted;
        Ok(Phases { server, subscribe_ns, acknowledged, window_ns, timed_out, interrupted, resident_bytes })
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    /// Waits for the warm-up and has the threads note the start; an interrupted run skips it.
    fn warm_up(&self) -> Result<(), String> {
        let warmup_ns = self.plan.warmup_ns;
        if warmup_ns == 0 || self.is_interrupted() {
            return Ok(());
        }
        self.shared.enter(Phase::WarmUp);
        self.progress.begin_time("warming up", warmup_ns);
        let from_ns = clock::monotonic_ns();
        let pass = || {
            self.progress.set_elapsed(clock::monotonic_ns() - from_ns);
            false
        };
        self.wait(warmup_ns / 100 * START_AT_PERCENT, pass);
        if self.is_interrupted() {
            return Ok(());
        }
        self.note(Phase::Start)?;
        self.shared.has_start.store(true, Ordering::Release);
        self.wait((from_ns + warmup_ns).saturating_sub(clock::monotonic_ns()), pass);
        Ok(())
    }

    /// Waits for the window to pass or for the expected ticks, and returns whether all of those came.
    fn measure(&self) -> bool {
        let duration_ns = self.plan.duration_ns;
        let from_ns = clock::monotonic_ns();
        if self.plan.expect_ticks.is_none() {
            self.progress.begin_time("measuring", duration_ns);
            return self.wait(duration_ns, || {
                self.progress.set_elapsed(clock::monotonic_ns() - from_ns);
                false
            });
        }
        self.progress.begin_count("complete", self.plan.connections);
        self.wait(duration_ns, || {
            let complete = self.shared.complete.load(Ordering::Acquire);
            self.progress.set_connections(complete);
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
            self.progress.set_connections(subscribed());
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
                "only {} of {connections} connections were acknowledged in time: is the server at its connection limit?",
                subscribed()
            ));
        }
        self.progress.print(&format!("subscribed {connections}"));
        Ok(())
    }

    /// Enters a phase in which the threads note sequences, and waits for them.
    fn note(&self, phase: Phase) -> Result<(), String> {
        self.shared.enter(phase);
        let noted = self.wait_uninterrupted(NOTE_DEADLINE_NS, || {
            self.shared.done.load(Ordering::Acquire) == self.plan.threads
        });
        match (noted, self.shared.failure()) {
            (_, Some(why)) => Err(why),
            (false, None) => Err("a thread did not note its sequences in time".into()),
            (true, None) => Ok(()),
        }
    }

    /// Waits for `duration_ns` at most, and returns whether `is_done` ended the wait.
    ///
    /// The end of a thread and an interruption end it, too.
    fn wait(&self, duration_ns: u64, mut is_done: impl FnMut() -> bool) -> bool {
        let mut done = false;
        self.wait_uninterrupted(duration_ns, || {
            done = is_done();
            done || self.is_interrupted()
        });
        done
    }

    /// Waits like [`Coordinator::wait`], but ignores an interruption, because the report needs these phases.
    fn wait_uninterrupted(&self, duration_ns: u64, mut is_done: impl FnMut() -> bool) -> bool {
        let until_ns = clock::monotonic_ns() + duration_ns;
        loop {
            if is_done() {
                return true;
            }
            let now_ns = clock::monotonic_ns();
            if now_ns >= until_ns || !(self.alive)() {
                return false;
            }
            clock::sleep_ns(CHECK_NS.min(until_ns - now_ns));
        }
    }

    fn server_cpu_ns(&self) -> Result<Option<u64>, String> {
        self.plan.server_pid.map(process::cpu_ns).transpose()
    }
}

/// Combines the results of all threads.
fn merge(
    plan: &Plan,
    workers: Vec<WorkerReport>,
    phases: Phases,
    before_bytes: Option<u64>,
) -> Result<Report, String> {
    let mut report = Report {
        tally: Tally::new()?,
        skew: None,
        clients: Vec::with_capacity(plan.connections),
        subscribe_ns: phases.subscribe_ns,
        acknowledged: phases.acknowledged,
        window_ns: phases.window_ns,
        loss: Loss::default(),
        short: 0,
        ended: BTreeMap::new(),
        stalled_closed: 0,
        left: 0,
        came_back: 0,
        cpu_ns: 0,
        cpu_busiest: 0.0,
        timed_out: phases.timed_out,
        interrupted: phases.interrupted,
        server: phases.server,
        resident_bytes: phases.resident_bytes,
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
    report.skew = report.tally.skew.summary(readers as u64, histogram()?);
    Ok(report)
}

#[cfg(test)]
mod tests;
