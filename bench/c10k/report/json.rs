//! The report as one JSON object. Its keys are stable.

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use tickcast_proto::subscription::Policy;

use super::{BOTTLENECK_SHARE, Report, has_subscription_latency};
use crate::{clients, plan::Plan, process};

/// Meaning of the keys, for `--help`. A test compares it with the object.
pub const KEYS: &str = "\
Keys of --json (latencies in microseconds; null if not measured or not carried by the encoding):
  machine, command                where and how it ran
  transport, server, patterns, connections, threads, sources, policy, warm_up_s, expect_ticks
                                  the load
  connecting                      spike, ramp_per_s, under_way_max; acknowledged, and
                                  acknowledged_s from the first connect
  stalled, churn                  connections, closed; per_s, left, came_back
  window_s, timed_out, interrupted, failures, ended_early
                                  how the run ended; ended_early counts connections by reason
  deliveries, deliveries_per_s, payload_bytes_per_s, received_bytes_per_s
                                  in the measured window
  lost, lost_gap, lost_head, lost_tail, conflated, dropped, short
                                  ticks; conflated and dropped are announced, so not lost; short:
                                  expected ticks that did not arrive
  clients                         over the clients that are not stalled: delivered, conflated,
                                  dropped, gap, each min, p50, p99, max
  latency_us                      corrected, from the intended send time: count, p50, p90, p99,
                                  p99.9, max; untimed, early
  latency_uncorrected_us          from the server's time of receipt: count, p50, p90, p99, p99.9,
                                  max
  spike_latency_us                with --spike: corrected, from the first connect on; otherwise null
  subscription_us                 request to first tick: count, p50, p99, max
  connect_to_first_tick_us        start of connect to first tick: count, p50, p99, max
  skew_us                         first to last connection to receive a tick: one_in, sampled,
                                  count (received by all), p50, p99, max
  client_cpu_s, client_cpu_busiest, client_is_bottleneck, client_bottleneck_share,
  client_resident_bytes, client_connection_bytes
                                  what this client used
  server_cpu_s, server_cpu_us_per_delivery, server_resident_bytes
                                  what the process given by --server-pid used";

impl Report {
    /// The report as JSON; figures that were not measured are `null`.
    pub fn to_json(&self, plan: &Plan) -> Value {
        let parts =
            [self.load(plan), self.outcome(plan), self.ticks(plan), self.times(plan), self.cost(plan)];
        let fields = parts.into_iter().flat_map(|part| match part {
            Value::Object(fields) => fields,
            _ => Map::new(),
        });
        Value::Object(fields.collect())
    }

    fn load(&self, plan: &Plan) -> Value {
        json!({
            "machine": process::machine(),
            "command": process::command(),
            "transport": plan.transport_name(),
            "server": plan.server.to_string(),
            "patterns": plan.patterns,
            "connections": plan.connections,
            "threads": plan.threads,
            "policy": plan.subscription.delivery.policy.map(Policy::name),
            "sources": plan.sources,
            "warm_up_s": plan.warmup_ns as f64 / 1e9,
            "expect_ticks": plan.expect_ticks,
            "connecting": {
                "spike": plan.spike,
                "ramp_per_s": (!plan.spike).then_some(plan.ramp_per_s),
                "under_way_max": plan.connecting_max() * plan.threads,
                "acknowledged": self.acknowledged,
                "acknowledged_s": self.subscribe_ns as f64 / 1e9,
            },
        })
    }

    fn outcome(&self, plan: &Plan) -> Value {
        json!({
            "churn": { "per_s": plan.churn_per_s, "left": self.left, "came_back": self.came_back },
            "stalled": { "connections": plan.stalled, "closed": self.stalled_closed },
            "window_s": self.window_ns as f64 / 1e9,
            "timed_out": self.timed_out,
            "interrupted": self.interrupted,
            "ended_early": self.ended,
            "failures": self.failures(plan),
        })
    }

    fn ticks(&self, plan: &Plan) -> Value {
        let Report { tally, loss, .. } = self;
        let sequences = plan.has_sequences();
        let clients = |of| clients::distribution(&self.clients, of);
        json!({
            "deliveries": tally.deliveries,
            "deliveries_per_s": self.per_second(tally.deliveries),
            "payload_bytes_per_s": self.per_second(tally.payload_bytes),
            "received_bytes_per_s": self.per_second(tally.wire_bytes),
            "lost": sequences.then(|| loss.total()),
            "lost_gap": sequences.then_some(loss.gap),
            "lost_head": sequences.then_some(loss.head),
            "lost_tail": sequences.then_some(loss.tail),
            "conflated": sequences.then_some(loss.conflated),
            "dropped": sequences.then_some(loss.dropped),
            "short": plan.expect_ticks.map(|_| self.short),
            "clients": {
                "delivered": clients(|counts| counts.ticks),
                "conflated": clients(|counts| counts.conflated).filter(|_| sequences),
                "dropped": clients(|counts| counts.dropped).filter(|_| sequences),
                "gap": clients(|counts| counts.gap).filter(|_| sequences),
            },
        })
    }

    fn times(&self, plan: &Plan) -> Value {
        let tally = &self.tally;
        let mut corrected = latency(&tally.latency_ns);
        corrected["untimed"] = tally.untimed.into();
        corrected["early"] = tally.early.into();
        let is_measured = has_subscription_latency(plan);
        let skew = self.skew.as_ref().map(|skew| {
            let mut fields = p50_p99_max(&skew.skew_ns);
            fields["one_in"] = skew.one_in.into();
            fields["sampled"] = skew.sampled.into();
            fields
        });
        json!({
            "latency_us": corrected,
            "latency_uncorrected_us": tally.uncorrected().map(latency),
            "spike_latency_us": (!tally.spike_ns.is_empty()).then(|| latency(&tally.spike_ns)),
            "subscription_us": is_measured.then(|| p50_p99_max(&tally.subscription_ns)),
            "connect_to_first_tick_us": is_measured.then(|| p50_p99_max(&tally.connect_ns)),
            "skew_us": skew,
        })
    }

    fn cost(&self, plan: &Plan) -> Value {
        json!({
            "client_cpu_s": self.cpu_ns as f64 / 1e9,
            "client_cpu_busiest": self.cpu_busiest,
            "client_is_bottleneck": self.bottleneck_warning().is_some(),
            "client_bottleneck_share": BOTTLENECK_SHARE,
            "client_resident_bytes": self.resident_bytes,
            "client_connection_bytes": self.connection_bytes(plan),
            "server_cpu_s": self.server.as_ref().map(|server| server.cpu_ns as f64 / 1e9),
            "server_cpu_us_per_delivery": self.server_us_per_delivery(),
            "server_resident_bytes": self.server.as_ref().and_then(|server| server.resident_bytes),
        })
    }
}

/// A quantile of nanoseconds, in microseconds.
fn quantile(of_ns: &Histogram<u64>, quantile: f64) -> f64 {
    of_ns.value_at_quantile(quantile) as f64 / 1e3
}

fn latency(of_ns: &Histogram<u64>) -> Value {
    json!({
        "count": of_ns.len(),
        "p50": quantile(of_ns, 0.5),
        "p90": quantile(of_ns, 0.9),
        "p99": quantile(of_ns, 0.99),
        "p99.9": quantile(of_ns, 0.999),
        "max": of_ns.max() as f64 / 1e3,
    })
}

fn p50_p99_max(of_ns: &Histogram<u64>) -> Value {
    json!({
        "count": of_ns.len(),
        "p50": quantile(of_ns, 0.5),
        "p99": quantile(of_ns, 0.99),
        "max": of_ns.max() as f64 / 1e3,
    })
}
