//! What Prometheus scrapes: the text format 0.0.4, from counters that are read without asking anybody, and from what the
//! shards said of themselves.
//!
//! Counters are of one shard each and are added up by whoever looks: a query says `sum without (shard)`. What has several
//! reasons or sources is one family with a label for it.

use std::fmt::{Display, Write};

use hdrhistogram::Histogram;

use super::Stage;
use crate::sources::{SourceConfig, SourceStatus, health::Health};
use tickcast_core::{
    metrics::{
        counters::{Counter, Counters},
        latency::Until,
    },
    shard::survey::ShardState,
};

/// The type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the latency histograms' buckets, microseconds. A bound is as sharp as the histogram below it: 1 %.
pub const LATENCY_BOUNDS_US: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// A shard as it is scraped.
#[derive(Clone, Copy, Debug)]
pub struct ShardSample<'a> {
    /// Which.
    pub shard: u16,
    /// Its counters.
    pub counters: &'a Counters,
    /// What it said of itself; `None` if it did not answer in time.
    pub state: Option<&'a ShardState>,
}

/// What the kernel says of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessSample {
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Virtual memory.
    pub virtual_bytes: Option<u64>,
    /// Open descriptors; a served client has none.
    pub descriptors: Option<u64>,
    /// As many as there may be.
    pub descriptors_max: Option<u64>,
    /// CPU time, user and system.
    pub cpu_seconds: Option<f64>,
    /// When it started, seconds since 1970.
    pub start_seconds: f64,
}

/// All that one scrape shows.
#[derive(Clone, Debug)]
pub struct Scrape<'a> {
    /// What the server is at.
    pub stage: Stage,
    /// Its shards.
    pub shards: &'a [ShardSample<'a>],
    /// The server's own sources.
    pub sources: &'a [SourceStatus],
    /// The process.
    pub process: ProcessSample,
}

/// Where a counter is shown: a family, and the label that tells it from the others of the family.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    family: String,
    help: String,
    label: Option<(&'static str, &'static str)>,
    /// Counts in one of what is shown.
    counts: f64,
}

fn shown(counter: Counter) -> Shown {
    let of = |family: &str, help: &str, label| Shown {
        family: format!("tickcast_{family}_total"),
        help: help.to_owned(),
        label: Some(label),
        counts: 1.0,
    };
    let label = counter.label();
    match counter {
        Counter::SessionsRefused => of("sessions_refused", REFUSED_HELP, ("reason", "clients")),
        Counter::SessionsRefusedSource => of("sessions_refused", REFUSED_HELP, ("reason", "source")),
        Counter::SessionsRefusedRate => of("sessions_refused", REFUSED_HELP, ("reason", "rate")),
        Counter::SessionsRefusedDraining => of("sessions_refused", REFUSED_HELP, ("reason", "draining")),
        Counter::SessionsRefusedFailed => of("sessions_refused", REFUSED_HELP, ("reason", "failed")),
        _ => match (label.strip_prefix("closed_"), label.strip_suffix("_ns")) {
            (Some(reason), _) => {
                let reason = reason.strip_prefix("by_").unwrap_or(reason);
                of("sessions_closed", "Sessions ended, by reason.", ("reason", reason))
            }
            (None, seconds) => Shown {
                family: match (counter.is_gauge(), seconds) {
                    (true, _) => format!("tickcast_{label}"),
                    (false, Some(name)) => format!("tickcast_{name}_seconds_total"),
                    (false, None) => format!("tickcast_{label}_total"),
                },
                help: counter.help().trim().to_owned(),
                label: None,
                counts: if seconds.is_some() { 1e9 } else { 1.0 },
            },
        },
    }
}

const REFUSED_HELP: &str = "Connections refused, by reason: a bound (clients, source, rate), a server that stops (draining), or a ring that did not \
     take them (failed).";

/// Whether the sources count it, and not the shards.
fn is_of_sources(counter: Counter) -> bool {
    matches!(counter, Counter::SourceTicksDropped | Counter::SourceWaits)
}

/// A text that grows family by family.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Help is one line; backslashes would have to be doubled, and no help has any.
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

    fn single(&mut self, name: &str, kind: &str, help: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.family(name, kind, help);
            self.sample(name, &[], value);
        }
    }
}

fn sources(scrape: &Scrape<'_>, text: &mut Text) {
    const NAME: &str = "tickcast_sources";
    text.family(NAME, "gauge", "Sources of the server, by kind and state.");
    for kind in SourceConfig::KINDS {
        let of_kind: Vec<Health> =
            scrape.sources.iter().filter(|source| source.kind() == kind).map(SourceStatus::health).collect();
        for state in Health::STATES {
            let count = of_kind.iter().filter(|health| health.state() == state).count();
            text.sample(NAME, &[("source", &kind), ("state", &state)], count);
        }
    }
}

/// The text of a scrape. Label values are this crate's own words and numbers: none has to be escaped.
///
/// Cost: some 150 lines and 8 KiB a shard.
pub fn text(scrape: &Scrape<'_>) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    counters(scrape, &mut text);
    sources(scrape, &mut text);
    states(scrape, &mut text);
    latencies(scrape, &mut text);
    server(scrape, &mut text);
    text.0
}

fn counters(scrape: &Scrape<'_>, text: &mut Text) {
    let all: Vec<(Counter, Shown)> = Counter::ALL.iter().map(|&counter| (counter, shown(counter))).collect();
    for (at, (first, Shown { family, help, .. })) in all.iter().enumerate() {
        if all[..at].iter().any(|(_, before)| before.family == *family) {
            continue;
        }
        text.family(family, if first.is_gauge() { "gauge" } else { "counter" }, help);
        for (counter, shown) in all.iter().filter(|(_, shown)| shown.family == *family) {
            let label = shown.label.as_ref().map(|(name, value)| (*name, value as &dyn Display));
            let value = |count: u64| count as f64 / shown.counts;
            if is_of_sources(*counter) {
                for kind in SourceConfig::KINDS {
                    let of_kind = scrape.sources.iter().filter(|source| source.kind() == kind);
                    let sum: u64 = of_kind.map(|source| source.counters().value(*counter)).sum();
                    text.sample(family, &[("source", &kind)], value(sum));
                }
                continue;
            }
            for shard in scrape.shards {
                let labels: Vec<(&str, &dyn Display)> =
                    std::iter::once(("shard", &shard.shard as &dyn Display)).chain(label).collect();
                text.sample(family, &labels, value(shard.counters.value(*counter)));
            }
        }
    }
}

type Gauge = (&'static str, &'static str, fn(&ShardState) -> usize);

const GAUGES: [Gauge; 8] = [
    ("tickcast_mesh_ring_bytes", "Bytes in the rings from other shards, not yet taken in.", |state| {
        state.mesh_ring_bytes
    }),
    (
        "tickcast_source_ring_bytes",
        "Bytes in the rings from the server's own sources, not yet taken in.",
        |state| state.source_ring_bytes,
    ),
    ("tickcast_mesh_stage_bytes", "Bytes that wait for room in the rings to other shards.", |state| {
        state.mesh_stage_bytes
    }),
    ("tickcast_topics", "Topics that the shard sequences.", |state| state.topics),
    ("tickcast_topics_taken", "Topics that the shard's sessions take.", |state| state.topics_taken),
    ("tickcast_patterns", "Patterns that the shard's sessions hold.", |state| state.patterns),
    ("tickcast_sessions_waiting", "Sessions with something to send.", |state| state.sessions_waiting),
    ("tickcast_egress_log_bytes", "Memory of the shard's egress logs.", |state| state.egress_log_bytes),
];

fn states(scrape: &Scrape<'_>, text: &mut Text) {
    text.family(
        "tickcast_shard_answered",
        "gauge",
        "Whether the shard answered this scrape in time: 1; if it did not, 0, and what it would have said is missing.",
    );
    for shard in scrape.shards {
        text.sample("tickcast_shard_answered", &[("shard", &shard.shard)], u8::from(shard.state.is_some()));
    }
    for (name, help, value) in GAUGES {
        text.family(name, "gauge", help);
        for (shard, state) in answered(scrape) {
            text.sample(name, &[("shard", &shard)], value(state));
        }
    }
}

fn answered<'a>(scrape: &'a Scrape<'_>) -> impl Iterator<Item = (u16, &'a ShardState)> {
    scrape.shards.iter().filter_map(|shard| Some((shard.shard, shard.state?)))
}

fn latencies(scrape: &Scrape<'_>, text: &mut Text) {
    const NAME: &str = "tickcast_latency_seconds";
    text.family(
        NAME,
        "histogram",
        "From a tick's receipt until it had its sequence, or until its turn's SENDs were with the kernel: one tick a turn.",
    );
    for (shard, state) in answered(scrape) {
        for until in Until::ALL {
            let histogram = state.latency.histogram(until);
            let until = until.name();
            let (bucket, sum, count) =
                (format!("{NAME}_bucket"), format!("{NAME}_sum"), format!("{NAME}_count"));
            let labels: [(&str, &dyn Display); 2] = [("shard", &shard), ("until", &until)];
            for (bound_us, cumulated) in LATENCY_BOUNDS_US.iter().zip(cumulated(histogram)) {
                let bound = *bound_us as f64 / 1e6;
                text.sample(&bucket, &[labels[0], labels[1], ("le", &bound)], cumulated);
            }
            text.sample(&bucket, &[labels[0], labels[1], ("le", &"+Inf")], histogram.len());
            text.sample(&sum, &labels, sum_us(histogram) as f64 / 1e6);
            text.sample(&count, &labels, histogram.len());
        }
    }
}

/// How many samples are at most each of [`LATENCY_BOUNDS_US`].
fn cumulated(histogram: &Histogram<u64>) -> [u64; LATENCY_BOUNDS_US.len()] {
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

/// As good as the histogram: 1 %. It never falls from one scrape to the next, as each part of it never does.
fn sum_us(histogram: &Histogram<u64>) -> u64 {
    let each = histogram.iter_recorded().map(|step| {
        histogram.median_equivalent(step.value_iterated_to()).saturating_mul(step.count_at_value())
    });
    each.fold(0, u64::saturating_add)
}

fn server(scrape: &Scrape<'_>, text: &mut Text) {
    text.family("tickcast_stage", "gauge", "1 for what the server is at: starting, serving or draining.");
    for stage in [Stage::Starting, Stage::Serving, Stage::Draining] {
        let is = u8::from(stage == scrape.stage);
        text.sample("tickcast_stage", &[("stage", &stage.name())], is);
    }
    text.family("tickcast_build_info", "gauge", "1, with the version.");
    text.sample("tickcast_build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1);
    let process = &scrape.process;
    text.single(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        process.resident_bytes,
    );
    text.single(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        process.virtual_bytes,
    );
    text.single(
        "process_open_fds",
        "gauge",
        "Number of open file descriptors. A served client has none: its socket is a registered file.",
        process.descriptors,
    );
    text.single(
        "process_max_fds",
        "gauge",
        "Maximum number of open file descriptors.",
        process.descriptors_max,
    );
    text.single(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        process.cpu_seconds,
    );
    text.single(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        Some(process.start_seconds),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_core::metrics::latency::Latency;

    fn state(latency: Latency) -> ShardState {
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
        let (one, two, source) = (Counters::default(), Counters::default(), SourceStatus::new("simulator"));
        change(&one);
        source.counters().add(Counter::SourceTicksDropped, 5);
        source.set_health(Health::Running);
        let mut latency = Latency::default();
        for us in [5, 1_000, 1_001, 20_000_000] {
            latency.sequenced(1_000_000_000, 1_000_000_000 + us * 1_000);
            latency.end_turn(0, 0, 0);
        }
        let state = state(latency);
        let shards = [
            ShardSample { shard: 0, counters: &one, state: Some(&state) },
            ShardSample { shard: 1, counters: &two, state: None },
        ];
        let process = ProcessSample { resident_bytes: Some(4_096), ..ProcessSample::default() };
        text(&Scrape { stage: Stage::Serving, shards: &shards, sources: &[source], process })
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|known| known == line), "{line:?} is not in\n{text}");
    }

    #[test]
    fn counters_are_shown_by_shard_in_base_units_and_by_reason() {
        let text = scraped(|counters| {
            counters.add(Counter::TicksDelivered, 3);
            counters.add(Counter::BusyNs, 1_500_000_000);
            counters.add(Counter::ClosedSlowConsumer, 2);
            counters.add(Counter::ClosedByPeer, 4);
            counters.add(Counter::SessionsRefusedRate, 6);
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
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"draining\"} 7");
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"failed\"} 8");
        has(&text, "tickcast_sessions_refused_total{shard=\"0\",reason=\"clients\"} 0");
        has(&text, "tickcast_source_waits_total{source=\"replay\"} 0");
        has(&text, "tickcast_source_ticks_dropped_total{source=\"simulator\"} 5");
        has(&text, "tickcast_source_ticks_dropped_total{source=\"ecg\"} 0");
        has(&text, "tickcast_source_waits_total{source=\"replay\"} 0");
        has(&text, "tickcast_sources{source=\"simulator\",state=\"running\"} 1");
        has(&text, "tickcast_sources{source=\"simulator\",state=\"waiting\"} 0");
        has(&text, "process_resident_memory_bytes 4096");
        assert!(!text.contains("process_open_fds"));
    }

    #[test]
    fn a_shard_that_did_not_answer_has_counters_and_says_so() {
        let text = scraped(|_| {});
        has(&text, "tickcast_shard_answered{shard=\"0\"} 1");
        has(&text, "tickcast_shard_answered{shard=\"1\"} 0");
        has(&text, "tickcast_mesh_ring_bytes{shard=\"0\"} 1");
        assert!(!text.contains("tickcast_mesh_ring_bytes{shard=\"1\"}"));
        has(&text, "tickcast_stage{stage=\"serving\"} 1");
        has(&text, "tickcast_stage{stage=\"draining\"} 0");
    }

    #[test]
    fn histograms_are_cumulative_and_end_with_all_samples() {
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
    fn every_family_has_one_head_before_all_of_its_samples() {
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
