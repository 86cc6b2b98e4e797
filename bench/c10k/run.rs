//! Leads the threads through the phases.

use std::{collections::BTreeMap, io::IsTerminal, sync::atomic::Ordering, thread};

use indicatif::{ProgressBar, ProgressStyle};
use tickcast::clock;

use crate::{
    options::Plan,
    process,
    report::{Report, Server},
    tally::{Loss, Tally},
    worker::{self, Phase, Shared, WorkerReport},
};

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

/// Runs the load.
///
/// # Errors
/// One line for the operator.
pub fn run(plan: &Plan) -> Result<Report, String> {
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
        let mut lead = Lead { plan, shared: &shared, alive: &alive, progress: progress(plan) };
        let outcome = lead.lead();
        lead.progress.finish_and_clear();
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
            None => merge(reports, led, before_bytes),
        }
    })
}

/// What the leading thread found.
struct Led {
    server: Option<Server>,
    window_ns: u64,
    timed_out: bool,
    resident_bytes: Option<u64>,
}

struct Lead<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    alive: &'a dyn Fn() -> bool,
    progress: ProgressBar,
}

impl Lead<'_> {
    fn lead(&mut self) -> Result<Led, String> {
        let plan = self.plan;
        self.await_subscribed()?;
        if plan.warm_up_s > 0 {
            self.shared.enter(Phase::WarmUp);
            self.progress.set_message("warming up");
            let warm_up_ns = plan.warm_up_s * 1_000_000_000;
            let until_ns = clock::monotonic_ns() + warm_up_ns;
            self.wait(warm_up_ns / 100 * START_AT_PERCENT, || false);
            self.note(Phase::Start)?;
            self.wait(until_ns.saturating_sub(clock::monotonic_ns()), || false);
        }
        let cpu_from_ns = self.server_cpu_ns()?;
        self.shared.enter(Phase::Measure);
        self.progress.set_message("measuring");
        let complete = || self.shared.complete.load(Ordering::Acquire) >= plan.connections;
        let from_ns = clock::monotonic_ns();
        let ended_early =
            self.wait(plan.duration_s * 1_000_000_000, || plan.expect_ticks.is_some() && complete());
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
        self.progress.set_message("settling");
        self.wait(SETTLE_NS, || self.shared.done.load(Ordering::Acquire) == plan.threads);
        self.shared.enter(Phase::Done);
        Ok(Led { server, window_ns, timed_out: plan.expect_ticks.is_some() && !ended_early, resident_bytes })
    }

    fn await_subscribed(&self) -> Result<(), String> {
        let connections = self.plan.connections;
        let ramp_ns = connections as u64 * 1_000_000_000 / self.plan.ramp_per_s as u64;
        let subscribed = || self.shared.subscribed.load(Ordering::Acquire);
        let all = self.wait(ramp_ns + SUBSCRIBE_DEADLINE_NS, || {
            self.progress.set_position(subscribed() as u64);
            subscribed() == connections
        });
        if let Some(why) = self.shared.failure() {
            return Err(why);
        }
        if !all {
            return Err(format!(
                "only {} of {connections} connections were acknowledged in time: is the server at its client limit?",
                subscribed()
            ));
        }
        self.progress.suspend(|| eprintln!("subscribed {connections}"));
        Ok(())
    }

    fn note(&self, phase: Phase) -> Result<(), String> {
        self.shared.enter(phase);
        let noted =
            self.wait(NOTE_DEADLINE_NS, || self.shared.done.load(Ordering::Acquire) == self.plan.threads);
        match (noted, self.shared.failure()) {
            (_, Some(why)) => Err(why),
            (false, None) => Err("a thread did not come to note its sequences".into()),
            (true, None) => Ok(()),
        }
    }

    /// Waits for `duration_ns`, or until `early` or the end of a thread; whether it was `early`.
    fn wait(&self, duration_ns: u64, mut early: impl FnMut() -> bool) -> bool {
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

fn progress(plan: &Plan) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} connections {elapsed}");
    let bar = ProgressBar::new(plan.connections as u64).with_message("connecting");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn merge(workers: Vec<WorkerReport>, led: Led, before_bytes: Option<u64>) -> Result<Report, String> {
    let mut report = Report {
        tally: Tally::new()?,
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
        server: led.server,
        resident_bytes: led.resident_bytes,
        resident_before_bytes: before_bytes,
    };
    for worker in workers {
        report.tally.add(&worker.tally)?;
        report.loss.add(worker.loss);
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
    Ok(report)
}

#[cfg(test)]
mod tests;
