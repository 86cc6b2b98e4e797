//! What was offered, and what became of it.

use hdrhistogram::Histogram;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use serde_json::{Value, json};

use crate::options::Plan;

/// Longest lateness told apart: ten minutes.
const LATE_NS_MAX: u64 = 600_000_000_000;
/// Lateness of the 99th percentile from which on the load was not the one that was asked for: it would show in the
/// subscribers' latencies.
const BEHIND_NS: u64 = 1_000_000;

/// The outcome of a feed.
#[derive(Debug)]
pub struct Report {
    pub offered: u64,
    pub sent: u64,
    pub refused: u64,
    /// Ticks that the server answered with an error, and its first words about it.
    pub failed: u64,
    pub failure: Option<String>,
    /// What no socket took before the end, in bytes.
    pub unwritten_bytes: u64,
    late_ns: Histogram<u64>,
    pub window_ns: u64,
    pub cpu_ns: u64,
    /// Why it ended early.
    pub ended: Option<String>,
}

impl Report {
    /// # Errors
    /// Never in practice: the histogram's bounds are constants.
    pub fn new() -> Result<Report, String> {
        Ok(Report {
            offered: 0,
            sent: 0,
            refused: 0,
            failed: 0,
            failure: None,
            unwritten_bytes: 0,
            late_ns: Histogram::new_with_bounds(1, LATE_NS_MAX, 3)
                .map_err(|error| format!("histogram: {error}"))?,
            window_ns: 0,
            cpu_ns: 0,
            ended: None,
        })
    }

    /// Counts a tick that was written `late_ns` after it was due.
    pub fn late(&mut self, late_ns: u64) {
        self.late_ns.saturating_record(late_ns);
    }

    /// Whether the ticks left later than the subscribers' latencies can hide.
    pub fn is_behind(&self) -> bool {
        self.late_ns.value_at_quantile(0.99) > BEHIND_NS
    }

    /// What was not as asked for; empty for a feed that kept its word. Lateness is told, but is no failure.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.refused > 0 {
            failures.push(format!(
                "{} of {} ticks were not sent: the server does not take what is offered",
                self.refused, self.offered
            ));
        }
        if self.failed > 0 {
            let why = self.failure.as_deref().unwrap_or_default();
            failures.push(format!("the server refused {} ticks: {why}", self.failed));
        }
        if self.unwritten_bytes > 0 {
            failures.push(format!("{} bytes were not taken before the end", self.unwritten_bytes));
        }
        failures.extend(self.ended.iter().cloned());
        failures
    }

    /// What to say when this process itself was too slow.
    pub fn behind_warning(&self) -> Option<String> {
        self.is_behind().then(|| {
            format!(
                "WARNING: this feeder fell behind (99 % of ticks within {:.1} ms of when they were due): give it a core",
                self.late_ns.value_at_quantile(0.99) as f64 / 1e6
            )
        })
    }

    /// The report for programs.
    pub fn to_json(&self, plan: &Plan) -> Value {
        let late = |quantile: f64| self.late_ns.value_at_quantile(quantile) as f64 / 1e3;
        json!({
            "protocol": plan.protocol.name(),
            "server": plan.server.to_string(),
            "producers": plan.producers,
            "rate": plan.rate,
            "size_bytes": plan.size_bytes,
            "topics": plan.topics,
            "connections": plan.connections,
            "window_s": self.window_ns as f64 / 1e9,
            "offered": self.offered,
            "sent": self.sent,
            "refused": self.refused,
            "failed": self.failed,
            "unwritten_bytes": self.unwritten_bytes,
            "late_us": { "p50": late(0.5), "p99": late(0.99), "max": self.late_ns.max() as f64 / 1e3 },
            "is_behind": self.is_behind(),
            "cpu_s": self.cpu_ns as f64 / 1e9,
            "cpu_share": self.cpu_ns as f64 / self.window_ns.max(1) as f64,
            "ended_early": self.ended,
            "failures": self.failures(),
        })
    }
}

/// CPU time this process has used, nanoseconds; 0 where the kernel does not say.
pub fn cpu_ns() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| (usage.user_time() + usage.system_time()).num_nanoseconds().max(0) as u64)
}
