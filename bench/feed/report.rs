//! The report: ticks offered, sent, refused and failed, and how late they left.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::{common::histogram::histogram, options::Plan};

/// 99th percentile of lateness above which the feeder did not produce the requested load.
///
/// A longer delay shows in the subscribers' latencies.
const BEHIND_NS: u64 = 1_000_000;

/// Results of a feed.
#[derive(Debug)]
pub struct Report {
    pub offered: u64,
    pub sent: u64,
    pub refused: u64,
    /// Ticks that the server answered with an error.
    pub failed: u64,
    /// The first of these errors.
    pub failure: Option<String>,
    /// Bytes still queued at the end.
    pub unwritten_bytes: u64,
    late_ns: Histogram<u64>,
    pub window_ns: u64,
    pub cpu_ns: u64,
    /// Why the feed ended early.
    pub ended: Option<String>,
}

impl Report {
    /// An empty report.
    ///
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
            late_ns: histogram()?,
            window_ns: 0,
            cpu_ns: 0,
            ended: None,
        })
    }

    /// Records that a tick was written `late_ns` after it was due.
    pub fn record_late(&mut self, late_ns: u64) {
        self.late_ns.saturating_record(late_ns);
    }

    /// Whether ticks left so late that it shows in the subscribers' latencies.
    pub fn is_behind(&self) -> bool {
        self.late_ns.value_at_quantile(0.99) > BEHIND_NS
    }

    /// The ticks that were not sent as requested; empty if all were. Lateness is a warning, not a failure.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.refused > 0 {
            failures.push(format!(
                "{} of {} ticks were not sent: the server does not keep up",
                self.refused, self.offered
            ));
        }
        if self.failed > 0 {
            let why = self.failure.as_deref().unwrap_or_default();
            failures.push(format!("the server refused {} ticks: {why}", self.failed));
        }
        if self.unwritten_bytes > 0 {
            failures.push(format!("{} bytes were still queued at the end", self.unwritten_bytes));
        }
        failures.extend(self.ended.iter().cloned());
        failures
    }

    /// Warning for a feed in which this process was too slow.
    pub fn behind_warning(&self) -> Option<String> {
        self.is_behind().then(|| {
            format!(
                "WARNING: this feeder fell behind (p99 of lateness {:.1} ms): give it a core of its own",
                self.late_ns.value_at_quantile(0.99) as f64 / 1e6
            )
        })
    }

    /// The report as JSON.
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
