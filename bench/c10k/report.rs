//! What is reported: machine, command, load, and every number with its unit.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use serde_json::{Value, json};
use tickcast::subscription::Policy;

use crate::{
    options::Plan,
    process,
    tally::{Loss, Tally},
};

/// Share of its core past which the busiest thread measures itself: above it ticks wait for this client in its sockets.
const BOTTLENECK_SHARE: f64 = 0.85;
/// Quantiles of the table.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// What the server's process used in the measured window.
#[derive(Debug)]
pub struct Server {
    pub cpu_ns: u64,
    pub resident_bytes: Option<u64>,
}

/// The outcome of a run, all threads together.
#[derive(Debug)]
pub struct Report {
    pub tally: Tally,
    pub window_ns: u64,
    pub loss: Loss,
    pub short: u64,
    pub ended: BTreeMap<String, usize>,
    /// Stalled connections that the server was seen to close.
    pub stalled_closed: usize,
    /// Connections that left, and those of them that were acknowledged again.
    pub left: u64,
    pub came_back: u64,
    pub cpu_ns: u64,
    /// Share of a core that the busiest thread used.
    pub cpu_busiest: f64,
    pub timed_out: bool,
    pub server: Option<Server>,
    pub resident_bytes: Option<u64>,
    pub resident_before_bytes: Option<u64>,
}

impl Report {
    /// What was asked for and did not hold; empty for a run that passed.
    pub fn failures(&self, plan: &Plan) -> Vec<String> {
        let mut failures = Vec::new();
        if let (true, Some(wanted)) = (self.timed_out, plan.expect_ticks) {
            failures.push(format!(
                "not every connection had {wanted} ticks within {} s: {} are missing",
                plan.duration_s, self.short
            ));
        }
        for (why, count) in &self.ended {
            failures.push(format!("{count} connections ended early: {why}"));
        }
        let lost = self.loss.total().max(self.short);
        if let Some(max) = plan.max_loss.filter(|&max| lost > max) {
            failures.push(format!("{lost} ticks lost, {max} allowed"));
        }
        let p99_ns = self.tally.latency_ns.value_at_quantile(0.99);
        match plan.max_p99_us {
            Some(_) if self.tally.latency_ns.is_empty() => {
                failures.push("no latency was measured: --max-p99-us cannot hold".into());
            }
            Some(max) if p99_ns > max * 1_000 => {
                failures.push(format!("p99 is {} us, {max} us allowed", us(p99_ns)));
            }
            _ => {}
        }
        failures
    }

    /// What to say when this client was itself the bottleneck.
    pub fn bottleneck_warning(&self) -> Option<String> {
        (self.cpu_busiest > BOTTLENECK_SHARE).then(|| {
            format!(
                "WARNING: this client was the bottleneck (busiest thread above {:.0} % of its core): latency and rate \
                 are its own; add --threads or cores",
                BOTTLENECK_SHARE * 100.0
            )
        })
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 * 1e9 / self.window_ns.max(1) as f64
    }

    /// Growth of this process by connection, in bytes.
    fn connection_bytes(&self, plan: &Plan) -> Option<u64> {
        let grown = self.resident_bytes?.saturating_sub(self.resident_before_bytes?);
        Some(grown / plan.connections as u64)
    }

    /// Server CPU microseconds by delivery.
    fn server_us_per_delivery(&self) -> Option<f64> {
        let server = self.server.as_ref()?;
        (self.tally.deliveries > 0).then(|| server.cpu_ns as f64 / 1e3 / self.tally.deliveries as f64)
    }

    /// The report for people.
    pub fn to_text(&self, plan: &Plan) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(plan, &mut out);
        out
    }

    fn write_text(&self, plan: &Plan, out: &mut String) -> fmt::Result {
        let Report { tally, loss, .. } = self;
        let seconds = self.window_ns as f64 / 1e9;
        writeln!(out, "machine       {}", process::machine())?;
        writeln!(out, "command       {}", process::command())?;
        writeln!(
            out,
            "load          {} connections ({}) to {}, {} source addresses, {} threads, patterns {}",
            plan.connections,
            plan.transport_name(),
            plan.server,
            plan.sources,
            plan.threads,
            plan.patterns.join(" ")
        )?;
        match plan.expect_ticks {
            Some(wanted) => writeln!(out, "window        {seconds:.3} s until each had {wanted} ticks")?,
            None => writeln!(out, "window        {seconds:.3} s after {} s of warm-up", plan.warm_up_s)?,
        }
        writeln!(
            out,
            "deliveries    {}, {:.0}/s; payload {:.3} MB/s, received {:.3} MB/s",
            tally.deliveries,
            self.per_second(tally.deliveries),
            self.per_second(tally.payload_bytes) / 1e6,
            self.per_second(tally.wire_bytes) / 1e6
        )?;
        match plan.has_sequences() {
            true => writeln!(
                out,
                "lost          {} (gap {}, head {}, tail {}); announced: {} conflated, {} dropped",
                loss.total(),
                loss.gap,
                loss.head,
                loss.tail,
                loss.conflated,
                loss.announced
            )?,
            false => writeln!(out, "lost          not measured: raw carries no sequences")?,
        }
        if plan.expect_ticks.is_some() {
            writeln!(out, "short         {} ticks", self.short)?;
        }
        writeln!(out, "ended early   {}", self.ended.values().sum::<usize>())?;
        if plan.stalled > 0 {
            writeln!(
                out,
                "stalled       {} connections never read, their loss is not counted; {} were reset or closed",
                plan.stalled, self.stalled_closed
            )?;
        }
        if plan.churn_per_s > 0 {
            writeln!(
                out,
                "churn         {} connections left without a word, {} were back and acknowledged",
                self.left, self.came_back
            )?;
        }
        self.write_latency(out)?;
        self.write_subscription(plan, out)?;
        self.write_cost(plan, out)
    }

    fn write_latency(&self, out: &mut String) -> fmt::Result {
        let latency = &self.tally.latency_ns;
        writeln!(out, "latency       from the intended send time to the read that brought it, microseconds")?;
        write!(out, "              {:>12}", "count")?;
        QUANTILES.iter().try_for_each(|(name, _)| write!(out, " {name:>12}"))?;
        writeln!(out, " {:>12}", "max")?;
        write!(out, "              {:>12}", latency.len())?;
        QUANTILES
            .iter()
            .try_for_each(|(_, quantile)| write!(out, " {:>12}", us(latency.value_at_quantile(*quantile))))?;
        writeln!(out, " {:>12}", us(latency.max()))?;
        if self.tally.untimed > 0 {
            writeln!(out, "              {} ticks carried no time and are not in it", self.tally.untimed)?;
        }
        if self.tally.early > 0 {
            writeln!(
                out,
                "              {} ticks came before they were sent and count as 0",
                self.tally.early
            )?;
        }
        Ok(())
    }

    fn write_subscription(&self, plan: &Plan, out: &mut String) -> fmt::Result {
        let first = &self.tally.subscription_ns;
        if !has_subscription_latency(plan) {
            return writeln!(
                out,
                "first tick    not measured: nothing is published until all have subscribed"
            );
        }
        writeln!(
            out,
            "first tick    after a connection's subscription was sent, microseconds: p50 {}, p99 {}, max {} ({} \
             connections)",
            us(first.value_at_quantile(0.5)),
            us(first.value_at_quantile(0.99)),
            us(first.max()),
            first.len()
        )
    }

    fn write_cost(&self, plan: &Plan, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "client CPU    {:.3} s; busiest thread {:.1} % of a core",
            self.cpu_ns as f64 / 1e9,
            self.cpu_busiest * 100.0
        )?;
        if let Some(warning) = self.bottleneck_warning() {
            writeln!(out, "              {warning}")?;
        }
        if let (Some(resident), Some(each)) = (self.resident_bytes, self.connection_bytes(plan)) {
            writeln!(out, "client memory {:.1} MiB, {each} bytes a connection", mib(resident))?;
        }
        if let Some(server) = &self.server {
            let each = self.server_us_per_delivery().map_or("-".into(), |each| format!("{each:.3}"));
            writeln!(out, "server CPU    {:.3} s, {each} us a delivery", server.cpu_ns as f64 / 1e9)?;
            if let Some(resident) = server.resident_bytes {
                writeln!(out, "server memory {:.1} MiB", mib(resident))?;
            }
        }
        Ok(())
    }

    /// The report for programs. What was not measured is `null`.
    pub fn to_json(&self, plan: &Plan) -> Value {
        let Report { tally, loss, .. } = self;
        let latency = &tally.latency_ns;
        let quantile = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
        let sequences = plan.has_sequences();
        json!({
            "machine": process::machine(),
            "command": process::command(),
            "transport": plan.transport_name(),
            "server": plan.server.to_string(),
            "patterns": plan.patterns,
            "connections": plan.connections,
            "threads": plan.threads,
            "policy": plan.subscription.delivery.policy.map(Policy::name),
            "churn": { "per_s": plan.churn_per_s, "left": self.left, "came_back": self.came_back },
            "stalled": { "connections": plan.stalled, "closed": self.stalled_closed },
            "sources": plan.sources,
            "warm_up_s": plan.warm_up_s,
            "window_s": self.window_ns as f64 / 1e9,
            "deliveries": tally.deliveries,
            "deliveries_per_s": self.per_second(tally.deliveries),
            "payload_bytes_per_s": self.per_second(tally.payload_bytes),
            "received_bytes_per_s": self.per_second(tally.wire_bytes),
            "lost": sequences.then(|| loss.total()),
            "lost_gap": sequences.then_some(loss.gap),
            "lost_head": sequences.then_some(loss.head),
            "lost_tail": sequences.then_some(loss.tail),
            "conflated": sequences.then_some(loss.conflated),
            "dropped": sequences.then_some(loss.announced),
            "expect_ticks": plan.expect_ticks,
            "short": plan.expect_ticks.map(|_| self.short),
            "timed_out": self.timed_out,
            "ended_early": self.ended,
            "latency_us": {
                "count": latency.len(),
                "p50": quantile(0.5),
                "p90": quantile(0.9),
                "p99": quantile(0.99),
                "p99.9": quantile(0.999),
                "max": latency.max() as f64 / 1e3,
                "untimed": tally.untimed,
                "early": tally.early,
            },
            "subscription_us": has_subscription_latency(plan).then(|| {
                let first = &tally.subscription_ns;
                json!({
                    "count": first.len(),
                    "p50": first.value_at_quantile(0.5) as f64 / 1e3,
                    "p99": first.value_at_quantile(0.99) as f64 / 1e3,
                    "max": first.max() as f64 / 1e3,
                })
            }),
            "client_cpu_s": self.cpu_ns as f64 / 1e9,
            "client_cpu_busiest": self.cpu_busiest,
            "client_is_bottleneck": self.bottleneck_warning().is_some(),
            "client_bottleneck_share": BOTTLENECK_SHARE,
            "client_resident_bytes": self.resident_bytes,
            "client_connection_bytes": self.connection_bytes(plan),
            "server_cpu_s": self.server.as_ref().map(|server| server.cpu_ns as f64 / 1e9),
            "server_cpu_us_per_delivery": self.server_us_per_delivery(),
            "server_resident_bytes": self.server.as_ref().and_then(|server| server.resident_bytes),
            "failures": self.failures(plan),
        })
    }
}

/// Whether ticks flow while connections subscribe: else the wait for the first one says nothing about the server.
fn has_subscription_latency(plan: &Plan) -> bool {
    plan.expect_ticks.is_none()
}

fn us(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
