//! The report: machine, command, load, and every figure with its unit.

mod json;

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use hdrhistogram::Histogram;
use tickcast_proto::units::format_duration;

use crate::{
    clients::{self, Client},
    plan::Plan,
    process,
    skew::SkewSummary,
    tally::{Loss, Tally},
};

pub use self::json::KEYS as JSON_KEYS;

/// Share of its core above which the busiest thread is the bottleneck.
///
/// Ticks then wait in this client's sockets, and it measures itself.
const BOTTLENECK_SHARE: f64 = 0.85;
/// Columns of the latency table.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// Resources that the server's process used in the measured window.
#[derive(Debug)]
pub struct Server {
    pub cpu_ns: u64,
    pub resident_bytes: Option<u64>,
}

/// Results of a run over all threads.
#[derive(Debug)]
pub struct Report {
    pub tally: Tally,
    pub window_ns: u64,
    /// From the first connect until all connections were acknowledged or the run was interrupted.
    pub subscribe_ns: u64,
    /// Connections acknowledged by then.
    pub acknowledged: usize,
    pub loss: Loss,
    /// Every client, by index.
    pub clients: Vec<Client>,
    /// Skew between subscribers; `None` if no tick had a sequence.
    pub skew: Option<SkewSummary>,
    /// Expected ticks that did not arrive.
    pub short: u64,
    /// Connections that ended before the run did, by reason.
    pub ended: BTreeMap<String, usize>,
    /// Stalled connections that the server was seen to close.
    pub stalled_closed: usize,
    /// Connections that churn reset, and those of them that subscribed again.
    pub left: u64,
    pub came_back: u64,
    pub cpu_ns: u64,
    /// Share of a core that the busiest thread used.
    pub cpu_busiest: f64,
    pub timed_out: bool,
    /// Ended early by a signal.
    pub interrupted: bool,
    pub server: Option<Server>,
    pub resident_bytes: Option<u64>,
    pub resident_before_bytes: Option<u64>,
}

impl Report {
    /// Requirements that the run missed; empty if it passed.
    pub fn failures(&self, plan: &Plan) -> Vec<String> {
        let mut failures = Vec::new();
        if self.interrupted {
            failures.push(format!("interrupted after {:.3} s of measurement", self.window_ns as f64 / 1e9));
        }
        if let (true, Some(wanted)) = (self.timed_out, plan.expect_ticks) {
            failures.push(format!(
                "not every connection received {wanted} ticks within {}: {} are missing",
                format_duration(plan.duration_ns),
                self.short
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
        match plan.max_p99_ns {
            Some(_) if self.tally.latency_ns.is_empty() => {
                failures.push("--max-p99 cannot be checked: no latency was measured".into());
            }
            Some(max_ns) if p99_ns > max_ns => {
                failures.push(format!("p99 is {} us, {} us allowed", us(p99_ns), us(max_ns)));
            }
            _ => {}
        }
        failures
    }

    /// Warning for a run in which this client was the bottleneck.
    pub fn bottleneck_warning(&self) -> Option<String> {
        (self.cpu_busiest > BOTTLENECK_SHARE).then(|| {
            format!(
                "WARNING: this client was the bottleneck (busiest thread above {:.0} % of its core): latency and rate \
                 are the client's, not the server's; add --threads or cores",
                BOTTLENECK_SHARE * 100.0
            )
        })
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 * 1e9 / self.window_ns.max(1) as f64
    }

    /// Growth of this process per connection, in bytes.
    fn connection_bytes(&self, plan: &Plan) -> Option<u64> {
        let grown = self.resident_bytes?.saturating_sub(self.resident_before_bytes?);
        Some(grown / plan.connections as u64)
    }

    /// Server CPU time per delivery, in microseconds.
    fn server_us_per_delivery(&self) -> Option<f64> {
        let server = self.server.as_ref()?;
        (self.tally.deliveries > 0).then(|| server.cpu_ns as f64 / 1e3 / self.tally.deliveries as f64)
    }

    /// The report as text.
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
        let acknowledged_s = self.subscribe_ns as f64 / 1e9;
        match plan.spike {
            true => writeln!(
                out,
                "spike         all at once, at most {} unacknowledged; {} acknowledged after {acknowledged_s:.3} s",
                plan.connecting_max() * plan.threads,
                self.acknowledged
            )?,
            false => writeln!(
                out,
                "ramp          {} connections/s; {} acknowledged after {acknowledged_s:.3} s",
                plan.ramp_per_s, self.acknowledged
            )?,
        }
        match plan.expect_ticks {
            Some(wanted) => {
                writeln!(out, "window        {seconds:.3} s until every connection had {wanted} ticks")?
            }
            None => writeln!(
                out,
                "window        {seconds:.3} s after {} of warm-up",
                format_duration(plan.warmup_ns)
            )?,
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
                loss.dropped
            )?,
            false => writeln!(out, "lost          not measured: raw messages carry no sequences")?,
        }
        if plan.expect_ticks.is_some() {
            writeln!(out, "short         {} expected ticks did not arrive", self.short)?;
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
                "churn         {} connections reset, {} reopened and acknowledged",
                self.left, self.came_back
            )?;
        }
        self.write_clients(plan, out)?;
        self.write_latency(plan, out)?;
        self.write_subscription(plan, out)?;
        self.write_skew(out)?;
        self.write_cost(plan, out)
    }

    fn write_clients(&self, plan: &Plan, out: &mut String) -> fmt::Result {
        let Some(delivered) = clients::distribution(&self.clients, |counts| counts.ticks) else {
            return Ok(());
        };
        writeln!(
            out,
            "clients       ticks per client since it subscribed: min {}, p50 {}, p99 {}, max {}",
            delivered.min, delivered.p50, delivered.p99, delivered.max
        )?;
        // Without any loss, the worst client would only be the last one to subscribe.
        let has_loss =
            |client: &&Client| client.counts.conflated + client.counts.dropped + client.counts.gap > 0;
        let worst: Vec<&Client> = clients::worst(&self.clients).into_iter().filter(has_loss).collect();
        if worst.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "              {:>7} {:>21} {:>12} {:>12} {:>12} {:>12}",
            "index", "source", "ticks", "conflated", "dropped", "gap"
        )?;
        for Client { index, source, counts, .. } in worst {
            let source = source.map_or_else(|| "-".into(), |source| source.to_string());
            write!(out, "              {index:>7} {source:>21} {:>12}", counts.ticks)?;
            match plan.has_sequences() {
                true => writeln!(out, " {:>12} {:>12} {:>12}", counts.conflated, counts.dropped, counts.gap)?,
                false => writeln!(out, " {:>12} {:>12} {:>12}", "-", "-", "-")?,
            }
        }
        Ok(())
    }

    fn write_latency(&self, plan: &Plan, out: &mut String) -> fmt::Result {
        writeln!(
            out,
            "latency       microseconds to the read that returned the tick; corrected: from the intended send time, \
             uncorrected: from the server's receipt"
        )?;
        write!(out, "              {:>12}", "count")?;
        QUANTILES.iter().try_for_each(|(name, _)| write!(out, " {name:>12}"))?;
        writeln!(out, " {:>12}", "max")?;
        write_quantiles("corrected", &self.tally.latency_ns, out)?;
        match self.tally.uncorrected() {
            Some(uncorrected) => write_quantiles("uncorrected", uncorrected, out)?,
            None => writeln!(
                out,
                "uncorrected   not measured: {} ticks do not carry the server's time of receipt",
                plan.transport_name()
            )?,
        }
        if self.tally.untimed > 0 {
            writeln!(
                out,
                "              {} ticks carried no send time and are not counted",
                self.tally.untimed
            )?;
        }
        if self.tally.early > 0 {
            writeln!(
                out,
                "              {} ticks arrived before their send time and count as 0",
                self.tally.early
            )?;
        }
        Ok(())
    }

    fn write_subscription(&self, plan: &Plan, out: &mut String) -> fmt::Result {
        if !has_subscription_latency(plan) {
            return writeln!(
                out,
                "first tick    not measured: nothing is published until all have subscribed"
            );
        }
        let Tally { connect_ns, subscription_ns, .. } = &self.tally;
        for (from, after_ns) in [("connect", connect_ns), ("request", subscription_ns)] {
            writeln!(
                out,
                "first tick    {from} to first tick, microseconds: {} ({} connections)",
                p50_p99_max(after_ns),
                after_ns.len()
            )?;
        }
        Ok(())
    }

    fn write_skew(&self, out: &mut String) -> fmt::Result {
        let Some(SkewSummary { one_in, sampled, skew_ns }) = &self.skew else {
            return writeln!(out, "skew          not measured: no tick had a sequence");
        };
        writeln!(
            out,
            "skew          first to last connection to receive a tick, microseconds: {} ({} ticks that all received, of \
             {sampled} sampled, one in {one_in})",
            p50_p99_max(skew_ns),
            skew_ns.len()
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
            writeln!(out, "client memory {:.1} MiB, {each} bytes per connection", mib(resident))?;
        }
        if let Some(server) = &self.server {
            let each = self.server_us_per_delivery().map_or("-".into(), |each| format!("{each:.3}"));
            writeln!(out, "server CPU    {:.3} s, {each} us per delivery", server.cpu_ns as f64 / 1e9)?;
            if let Some(resident) = server.resident_bytes {
                writeln!(out, "server memory {:.1} MiB", mib(resident))?;
            }
        }
        Ok(())
    }
}

/// Whether ticks flow while connections subscribe.
///
/// If not, the wait for the first tick says nothing about the server.
fn has_subscription_latency(plan: &Plan) -> bool {
    plan.expect_ticks.is_none()
}

fn write_quantiles(name: &str, of_ns: &Histogram<u64>, out: &mut String) -> fmt::Result {
    write!(out, "{name:13} {:>12}", of_ns.len())?;
    QUANTILES
        .iter()
        .try_for_each(|(_, quantile)| write!(out, " {:>12}", us(of_ns.value_at_quantile(*quantile))))?;
    writeln!(out, " {:>12}", us(of_ns.max()))
}

fn p50_p99_max(of_ns: &Histogram<u64>) -> String {
    let at = |quantile| us(of_ns.value_at_quantile(quantile));
    format!("p50 {}, p99 {}, max {}", at(0.5), at(0.99), us(of_ns.max()))
}

fn us(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
