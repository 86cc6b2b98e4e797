//! The Prometheus endpoint, in text format 0.0.4. Counters are exported per shard; queries add them up with `sum without (shard)`.
//! Counters that differ only in a reason or a source share a family and have a label for it.

mod auth;
mod sinks;
mod sources;
mod tenants;

use std::fmt::{Display, Write};

use hdrhistogram::Histogram;

use super::{process_sample::ProcessSample, stage::Stage};
use crate::{
    auth::Authority,
    sources::{SourceStatus, sink::SinkStatus},
    tls::CertificateStatus,
};
use tickcast_core::{
    metrics::{
        counters::{Counter, Counters},
        latency::Until,
        turn_times::{self, TurnTimes},
    },
    shard::survey::ShardState,
    tenants::Tenants,
};

/// The content type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the latency buckets, microseconds. Exact to the histogram's precision, 1 %.
pub const LATENCY_BOUNDS_US: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// A shard's part of a scrape.
#[derive(Clone, Copy, Debug)]
pub struct ShardSample<'a> {
    /// Its number.
    pub shard: u16,
    /// Its counters.
    pub counters: &'a Counters,
    /// Its state; `None` if it did not reply in time.
    pub state: Option<&'a ShardState>,
}

/// Everything that a scrape reports.
#[derive(Clone, Debug)]
pub struct Scrape<'a> {
    /// The server's stage.
    pub stage: Stage,
    /// Its shards.
    pub shards: &'a [ShardSample<'a>],
    /// The server's own sources.
    pub sources: &'a [SourceStatus],
    /// Its sinks.
    pub sinks: &'a [SinkStatus],
    /// When they began to be watched, CLOCK_MONOTONIC.
    pub watched_since_ns: u64,
    /// When the certificates in use expire.
    pub certificates: &'a [CertificateStatus],
    /// The process.
    pub process: ProcessSample,
    /// Log lines dropped so far.
    pub log_lines_dropped: u64,
    /// The credential verifiers.
    pub authority: Option<&'a Authority>,
    /// The tenants.
    pub tenants: &'a Tenants,
    /// Name of this server among several; empty: none.
    pub node: &'a str,
    /// Requests to the admin listener that were refused, by reason.
    pub admin_refused: &'a [(&'static str, u64)],
    /// CLOCK_MONOTONIC.
    pub now_ns: u64,
}

/// How a counter is exported: its family, and the label that distinguishes it within the family.
#[derive(Clone, Debug, PartialEq)]
struct Series {
    family: String,
    help: String,
    label: Option<(&'static str, &'static str)>,
    /// Counts per exported unit: 1e9 for nanoseconds exported as seconds.
    divisor: f64,
}

fn series(counter: Counter) -> Series {
    let labeled = |family: &str, help: &str, label| Series {
        family: format!("tickcast_{family}_total"),
        help: help.to_owned(),
        label: Some(label),
        divisor: 1.0,
    };
    let label = counter.label();
    match counter {
        Counter::SessionsRefused => labeled("sessions_refused", REFUSED_HELP, ("reason", "clients")),
        Counter::SessionsRefusedSource => labeled("sessions_refused", REFUSED_HELP, ("reason", "source")),
        Counter::SessionsRefusedRate => labeled("sessions_refused", REFUSED_HELP, ("reason", "rate")),
        Counter::SessionsRefusedOverload => labeled("sessions_refused", REFUSED_HELP, ("reason", "overload")),
        Counter::SessionsRefusedTenant => labeled("sessions_refused", REFUSED_HELP, ("reason", "tenant")),
        Counter::SessionsRefusedDraining => labeled("sessions_refused", REFUSED_HELP, ("reason", "draining")),
        Counter::SessionsRefusedFailed => labeled("sessions_refused", REFUSED_HELP, ("reason", "failed")),
        _ => match (label.strip_prefix("closed_"), label.strip_suffix("_ns")) {
            (Some(reason), _) => {
                let reason = reason.strip_prefix("by_").unwrap_or(reason);
                labeled("sessions_closed", "Sessions ended, by reason.", ("reason", reason))
            }
            (None, seconds) => Series {
                family: match (counter.is_gauge(), seconds) {
                    (true, Some(name)) => format!("tickcast_{name}_seconds"),
                    (true, None) => format!("tickcast_{label}"),
                    (false, Some(name)) => format!("tickcast_{name}_seconds_total"),
                    (false, None) => format!("tickcast_{label}_total"),
                },
                help: counter.help().trim().to_owned(),
                label: None,
                divisor: if seconds.is_some() { 1e9 } else { 1.0 },
            },
        },
    }
}

const REFUSED_HELP: &str = "Connections refused, by reason: a limit (clients, source, rate), an overloaded shard (overload), a tenant's quota (tenant), a stopping server \
     (draining), or an io_uring ring out of memory (failed).";

/// Writes the text format, family by family.
struct Writer(String);

impl Writer {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Help must be one line. Backslashes would need escaping, but no help text has any.
        let _ = writeln!(self.0, "# HELP {name} {}\n# TYPE {name} {kind}", help.replace('\n', " "));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    /// Writes one histogram of a family. `buckets` are upper bounds in microseconds with their cumulative counts.
    fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &dyn Display)],
        buckets: impl Iterator<Item = (u64, u64)>,
        sum_seconds: f64,
        total: u64,
    ) {
        let bucket_name = format!("{name}_bucket");
        let mut bucket = |bound: &dyn Display, count: u64| {
            self.sample(&bucket_name, &[labels, &[("le", bound)]].concat(), count);
        };
        for (bound_us, count) in buckets {
            bucket(&(bound_us as f64 / 1e6), count);
        }
        bucket(&"+Inf", total);
        self.sample(&format!("{name}_sum"), labels, sum_seconds);
        self.sample(&format!("{name}_count"), labels, total);
    }

    /// A family with one sample; nothing if the value is unknown.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.family(name, kind, help);
            self.sample(name, &[], value);
        }
    }
}

fn certificates(scrape: &Scrape<'_>, writer: &mut Writer) {
    const NAME: &str = "tickcast_certificate_expiry_timestamp_seconds";
    if scrape.certificates.is_empty() {
        return;
    }
    writer.family(NAME, "gauge", "Expiry of the listeners' certificates, in seconds since 1970.");
    for CertificateStatus { listener, name, ends_s } in scrape.certificates {
        writer.sample(NAME, &[("listener", listener), ("name", &escaped(name))], ends_s);
    }
}

/// A label value from outside, such as a certificate's name, escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Formats a scrape. Label values are this crate's own words and numbers and need no escaping.
///
/// Cost: about 150 lines and 8 KiB per shard.
pub fn text(scrape: &Scrape<'_>) -> String {
    let mut writer = Writer(String::with_capacity(16 << 10));
    counters(scrape, &mut writer);
    sources::sources(scrape, &mut writer);
    sinks::sinks(scrape, &mut writer);
    certificates(scrape, &mut writer);
    turns(scrape, &mut writer);
    states(scrape, &mut writer);
    latencies(scrape, &mut writer);
    auth::auth(scrape, &mut writer);
    tenants::tenants(scrape, &mut writer);
    server(scrape, &mut writer);
    writer.0
}

fn counters(scrape: &Scrape<'_>, writer: &mut Writer) {
    let all: Vec<(Counter, Series)> =
        Counter::ALL.iter().map(|&counter| (counter, series(counter))).collect();
    for (at, (first, Series { family, help, .. })) in all.iter().enumerate() {
        if sinks::are_counted(*first) || all[..at].iter().any(|(_, before)| before.family == *family) {
            continue;
        }
        writer.family(family, if first.is_gauge() { "gauge" } else { "counter" }, help);
        for (counter, series) in all.iter().filter(|(_, series)| series.family == *family) {
            let label = series.label.as_ref().map(|(name, value)| (*name, value as &dyn Display));
            let value = |count: u64| count as f64 / series.divisor;
            if sources::count(*counter) {
                sources::counter(scrape, writer, family, |source| value(source.counters().value(*counter)));
                continue;
            }
            for shard in scrape.shards {
                let labels: Vec<(&str, &dyn Display)> =
                    std::iter::once(("shard", &shard.shard as &dyn Display)).chain(label).collect();
                writer.sample(family, &labels, value(shard.counters.value(*counter)));
            }
        }
    }
}

/// Covers every shard: the histograms are read like counters, so a shard that hangs still shows its earlier turns.
fn turns(scrape: &Scrape<'_>, writer: &mut Writer) {
    type Family = (&'static str, &'static str, fn(&Counters) -> &TurnTimes);
    const FAMILIES: [Family; 2] = [
        (
            "tickcast_turn_seconds",
            "Length of the shard's turns: the time it worked, without the time it slept.",
            Counters::turn_times,
        ),
        (
            "tickcast_turn_cpu_seconds",
            "Upper bound of the CPU time of the shard's turns: a short turn counts with its length, a longer one with up to 1 ms of those before it.",
            Counters::turn_cpu_times,
        ),
    ];
    for (name, help, times) in FAMILIES {
        writer.family(name, "histogram", help);
        for ShardSample { shard, counters, .. } in scrape.shards {
            let times = times(counters);
            let (counts, turns) = times.cumulative();
            let buckets = turn_times::BOUNDS_US.into_iter().zip(counts);
            writer.histogram(name, &[("shard", shard)], buckets, times.sum_ns() as f64 / 1e9, turns);
        }
    }
}

type Gauge = (&'static str, &'static str, fn(&ShardState) -> usize);

const GAUGES: [Gauge; 8] = [
    ("tickcast_mesh_ring_bytes", "Bytes in the rings from other shards, not yet consumed.", |state| {
        state.mesh_ring_bytes
    }),
    (
        "tickcast_source_ring_bytes",
        "Bytes in the rings from the server's own sources, not yet consumed.",
        |state| state.source_ring_bytes,
    ),
    ("tickcast_mesh_stage_bytes", "Bytes staged for rings to other shards that are full.", |state| {
        state.mesh_stage_bytes
    }),
    ("tickcast_topics", "Topics sequenced by the shard.", |state| state.topics),
    ("tickcast_topics_taken", "Topics that the shard's sessions are subscribed to.", |state| {
        state.topics_taken
    }),
    ("tickcast_patterns", "Patterns that the shard's sessions are subscribed to.", |state| state.patterns),
    ("tickcast_sessions_waiting", "Sessions with data to send.", |state| state.sessions_waiting),
    ("tickcast_egress_log_bytes", "Bytes of the shard's egress logs.", |state| state.egress_log_bytes),
];

fn states(scrape: &Scrape<'_>, writer: &mut Writer) {
    writer.family(
        "tickcast_shard_answered",
        "gauge",
        "1 if the shard replied to this scrape in time; 0 if not, and its gauges and histograms are missing.",
    );
    for shard in scrape.shards {
        writer.sample("tickcast_shard_answered", &[("shard", &shard.shard)], u8::from(shard.state.is_some()));
    }
    for (name, help, value) in GAUGES {
        writer.family(name, "gauge", help);
        for (shard, state) in shard_states(scrape) {
            writer.sample(name, &[("shard", &shard)], value(state));
        }
    }
}

fn shard_states<'a>(scrape: &'a Scrape<'_>) -> impl Iterator<Item = (u16, &'a ShardState)> {
    scrape.shards.iter().filter_map(|shard| Some((shard.shard, shard.state?)))
}

fn latencies(scrape: &Scrape<'_>, writer: &mut Writer) {
    const NAME: &str = "tickcast_latency_seconds";
    writer.family(
        NAME,
        "histogram",
        "Time from the receipt of a tick until it has its sequence number (sequenced) or the kernel has its SENDs (sent); one tick per turn.",
    );
    for (shard, state) in shard_states(scrape) {
        for until in Until::ALL {
            let histogram = state.latency.histogram(until);
            let labels: [(&str, &dyn Display); 2] = [("shard", &shard), ("until", &until.name())];
            let buckets = LATENCY_BOUNDS_US.into_iter().zip(cumulative_counts(histogram));
            writer.histogram(NAME, &labels, buckets, sum_us(histogram) as f64 / 1e6, histogram.len());
        }
    }
}

/// The number of samples at or below each of [`LATENCY_BOUNDS_US`].
fn cumulative_counts(histogram: &Histogram<u64>) -> [u64; LATENCY_BOUNDS_US.len()] {
    let mut counts = [0; LATENCY_BOUNDS_US.len()];
    for step in histogram.iter_recorded() {
        let us = histogram.lowest_equivalent(step.value_iterated_to());
        let at = LATENCY_BOUNDS_US.partition_point(|&bound_us| bound_us < us);
        if let Some(count) = counts.get_mut(at) {
            *count += step.count_at_value();
        }
    }
    let mut sum = 0;
    counts.map(|count| {
        sum += count;
        sum
    })
}

/// The sum of all samples, exact to the histogram's precision, 1 %. Never decreases between scrapes, as no term does.
fn sum_us(histogram: &Histogram<u64>) -> u64 {
    let each = histogram.iter_recorded().map(|step| {
        histogram.median_equivalent(step.value_iterated_to()).saturating_mul(step.count_at_value())
    });
    each.fold(0, u64::saturating_add)
}

fn server(scrape: &Scrape<'_>, writer: &mut Writer) {
    writer.family(
        "tickcast_stage",
        "gauge",
        "1 for the server's current stage (starting, serving or draining), 0 for the others.",
    );
    for stage in Stage::ALL {
        let is_current = u8::from(stage == scrape.stage);
        writer.sample("tickcast_stage", &[("stage", &stage.name())], is_current);
    }
    writer.family("tickcast_build_info", "gauge", "Always 1; the label has the version.");
    writer.sample("tickcast_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    if !scrape.node.is_empty() {
        writer.family("tickcast_node_info", "gauge", "Always 1; the label has the option --node.");
        writer.sample("tickcast_node_info", &[("node", &scrape.node)], 1);
    }
    writer.single(
        "tickcast_log_lines_dropped_total",
        "counter",
        "Log lines dropped because nobody read standard error, or it could not be written.",
        Some(scrape.log_lines_dropped),
    );
    let process = &scrape.process;
    writer.single(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        process.resident_bytes,
    );
    writer.single(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        process.virtual_bytes,
    );
    writer.single(
        "process_open_fds",
        "gauge",
        "Number of open file descriptors. Clients use none: their sockets are registered files.",
        process.descriptors,
    );
    writer.single(
        "process_max_fds",
        "gauge",
        "Maximum number of open file descriptors.",
        process.descriptors_max,
    );
    writer.single(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        process.cpu_seconds,
    );
    writer.single(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since the Unix epoch in seconds.",
        Some(process.start_seconds),
    );
}

#[cfg(test)]
pub(in crate::operator) mod tests {
    use super::*;
    use crate::sources::{common::CommonOptions, health::Health};
    use tickcast_core::metrics::latency::Latency;

    /// A state with a different value in each gauge.
    pub fn shard_state(latency: Latency) -> ShardState {
        ShardState {
            mesh_ring_bytes: 1,
            source_ring_bytes: 2,
            mesh_stage_bytes: 3,
            topics: 4,
            topics_taken: 5,
            patterns: 6,
            sessions_waiting: 7,
            egress_log_bytes: 8,
            latency,
        }
    }

    fn scraped(change: impl FnOnce(&Counters)) -> String {
        let (one, two) = (Counters::default(), Counters::default());
        let grouped = CommonOptions { group: Some("g".into()), ..CommonOptions::default() };
        let source = SourceStatus::new("simulator", grouped.resolved("sim"));
        change(&one);
        source.counters().add(Counter::SourceTicksDropped, 5);
        source.set_health(Health::Running);
        let sink = SinkStatus::new("orders", "jetstream");
        sink.status().counters().add(Counter::SinkTicks, 6);
        source.note_heard(1, Some(2_000_000_000));
        let mut latency = Latency::default();
        for us in [5, 1_000, 1_001, 20_000_000] {
            latency.sequenced(1_000_000_000, 1_000_000_000 + us * 1_000);
            latency.end_turn(0, 0, 0);
        }
        let state = shard_state(latency);
        let shards = [
            ShardSample { shard: 0, counters: &one, state: Some(&state) },
            ShardSample { shard: 1, counters: &two, state: None },
        ];
        let process = ProcessSample { resident_bytes: Some(4_096), ..ProcessSample::default() };
        text(&Scrape {
            stage: Stage::Serving,
            shards: &shards,
            sources: &[source],
            sinks: &[sink],
            watched_since_ns: 0,
            certificates: &[],
            process,
            log_lines_dropped: 3,
            authority: None,
            tenants: &Tenants::default(),
            node: "n1",
            admin_refused: &[("missing", 2)],
            now_ns: 0,
        })
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|known| known == line), "{line:?} is not in\n{text}");
    }

    #[test]
    fn turns_are_a_histogram_of_each_shard_whether_it_answered_or_not() {
        let text = scraped(|counters| {
            for turn_ns in [100_000, 3_000_000, 2_000_000_000] {
                counters.turn_times().record(turn_ns);
                counters.turn_cpu_times().record(turn_ns / 2);
            }
        });
        has(&text, "# TYPE tickcast_turn_seconds histogram");
        for (bound, count) in [("0.0001", 1), ("0.001", 1), ("0.005", 2), ("0.1", 2), ("1", 2), ("+Inf", 3)] {
            has(&text, &format!("tickcast_turn_seconds_bucket{{shard=\"0\",le=\"{bound}\"}} {count}"));
        }
        has(&text, "tickcast_turn_seconds_sum{shard=\"0\"} 2.0031");
        has(&text, "tickcast_turn_seconds_count{shard=\"0\"} 3");
        has(&text, "tickcast_turn_seconds_count{shard=\"1\"} 0");
        has(&text, "tickcast_turn_cpu_seconds_bucket{shard=\"0\",le=\"1\"} 3");
        has(&text, "tickcast_turn_cpu_seconds_sum{shard=\"0\"} 1.00155");
    }

    #[test]
    fn counters_are_exported_per_shard_in_base_units_and_by_reason() {
        let text = scraped(|counters| {
            counters.add(Counter::TicksDelivered, 3);
            counters.add(Counter::BusyNs, 1_500_000_000);
            counters.add(Counter::ClosedSlowConsumer, 2);
            counters.add(Counter::ClosedByPeer, 4);
            counters.add(Counter::SessionsRefusedRate, 6);
            counters.add(Counter::SessionsRefusedTenant, 10);
            counters.add(Counter::SessionsRefusedDraining, 7);
            counters.add(Counter::SessionsRefusedFailed, 8);
            counters.add(Counter::SessionsOpen, 9);
        });
        has(&text, "# HELP tickcast_ticks_delivered_total Ticks queued to subscribers.");
        has(&text, "# TYPE tickcast_ticks_delivered_total counter");
        has(&text, "tickcast_ticks_delivered_total{shard=\"0\"} 3");
        has(&text, "tickcast_ticks_delivered_total{shard=\"1\"} 0");
        has(&text, "tickcast_busy_seconds_total{shard=\"0\"} 1.5");
        has(&text, "# TYPE tickcast_sessions_open gauge");
        has(&text, "tickcast_sessions_open{shard=\"0\"} 9");
        has(&text, "tickcast_sessions_closed_total{shard=\"0\",reason=\"slow_consumer\"} 2");
        has(&text, "tickcast_sessions_closed_total{shard=\"0\",reason=\"peer\"} 4");
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"rate\"} 6");
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"tenant\"} 10");
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"draining\"} 7");
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"failed\"} 8");
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"clients\"} 0");
        has(&text, "tickcast_source_waits_total{source=\"replay\"} 0");
        has(&text, "tickcast_source_lines_skipped_total{source=\"replay\"} 0");
        has(&text, "tickcast_source_ticks_dropped_total{source=\"simulator\",name=\"sim\"} 5");
        has(&text, "tickcast_source_ticks_dropped_total{source=\"ecg\"} 0");
        has(&text, "tickcast_source_waits_total{source=\"replay\"} 0");
        has(&text, "tickcast_sources{source=\"simulator\",state=\"running\"} 1");
        has(&text, "tickcast_source_active{source=\"simulator\",name=\"sim\",group=\"g\"} 1");
        has(&text, "tickcast_source_fit{source=\"simulator\",name=\"sim\",group=\"g\"} 1");
        has(&text, "tickcast_source_lag_seconds{source=\"simulator\",name=\"sim\",group=\"g\"} 2");
        assert!(!text.contains("tickcast_source_lag_messages{"), "not known");
        has(&text, "tickcast_sources{source=\"simulator\",state=\"waiting\"} 0");
        has(&text, "tickcast_sink_ticks_total{sink=\"orders\"} 6");
        has(&text, "tickcast_sink_ticks_waiting{sink=\"orders\"} 0");
        has(&text, "tickcast_sink_state{sink=\"orders\",state=\"waiting\"} 1");
        has(&text, "process_resident_memory_bytes 4096");
        has(&text, "tickcast_log_lines_dropped_total 3");
        assert!(!text.contains("process_open_fds"));
    }

    #[test]
    fn a_shard_without_a_reply_is_exported_with_its_counters_only() {
        let text = scraped(|_| {});
        has(&text, "tickcast_shard_answered{shard=\"0\"} 1");
        has(&text, "tickcast_shard_answered{shard=\"1\"} 0");
        has(&text, "tickcast_mesh_ring_bytes{shard=\"0\"} 1");
        assert!(!text.contains("tickcast_mesh_ring_bytes{shard=\"1\"}"));
        has(&text, "tickcast_stage{stage=\"serving\"} 1");
        has(&text, "tickcast_stage{stage=\"draining\"} 0");
    }

    #[test]
    fn histograms_are_cumulative_up_to_all_samples() {
        let text = scraped(|_| {});
        let bucket = |bound: &str| {
            format!("tickcast_latency_seconds_bucket{{shard=\"0\",until=\"sequenced\",le=\"{bound}\"}} ")
        };
        for (bound, count) in [("0.00001", 1), ("0.0005", 1), ("0.001", 3), ("10", 3), ("+Inf", 4)] {
            has(&text, &format!("{}{count}", bucket(bound)));
        }
        has(&text, "tickcast_latency_seconds_count{shard=\"0\",until=\"sequenced\"} 4");
        has(&text, "tickcast_latency_seconds_count{shard=\"0\",until=\"sent\"} 0");
        let sum = text.lines().find_map(|line| {
            line.strip_prefix("tickcast_latency_seconds_sum{shard=\"0\",until=\"sequenced\"} ")
        });
        assert!((sum.unwrap().parse::<f64>().unwrap() - 20.002).abs() < 0.2, "{sum:?}");
    }

    #[test]
    fn every_family_has_one_header_before_its_samples() {
        let text = scraped(|_| {});
        let mut families: Vec<&str> = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!families.contains(&name), "{name} twice");
                assert!(help.ends_with('.') && !help.starts_with(' '), "{line}");
                families.push(name);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let family = families.last().unwrap();
                let rest = name.strip_prefix(family);
                assert!(rest.is_some_and(|rest| ["", "_bucket", "_sum", "_count"].contains(&rest)), "{line}");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(families.len() > 40, "{families:?}");
    }
}
