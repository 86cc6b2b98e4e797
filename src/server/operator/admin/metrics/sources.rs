//! Metrics of sources: counters by kind and name, states by kind, and gauges of each source.

use std::fmt::Display;

use super::{Scrape, Writer};
use crate::sources::{KINDS, SourceStatus, health::Health};
use tickcast_core::metrics::counters::Counter;

/// Whether sources count it, not shards.
pub(super) fn count(counter: Counter) -> bool {
    matches!(
        counter,
        Counter::SourceTicksDropped
            | Counter::SourceWaits
            | Counter::SourceWaitNs
            | Counter::SourceLinesSkipped
            | Counter::SourceTicks
            | Counter::SourceMessagesSkipped
            | Counter::SourceMessagesLost
            | Counter::SourceConnections
            | Counter::SourceMessagesStandby
            | Counter::SourceMessagesRepeated
            | Counter::SourceActivations
            | Counter::SourceMessagesReadBack
            | Counter::SourceSubscriptions
            | Counter::SourceSubscriptionChanges
            | Counter::SourcePrefixesWhole
    )
}

/// Writes a counter of every source. A kind without sources has one sample, 0, so that a query finds it.
pub(super) fn counter(
    scrape: &Scrape<'_>,
    writer: &mut Writer,
    family: &str,
    value: impl Fn(&SourceStatus) -> f64,
) {
    for kind in KINDS.iter().map(|kind| kind.name) {
        let of_kind = || scrape.sources.iter().filter(|source| source.kind() == kind);
        if of_kind().next().is_none() {
            writer.sample(family, &[("source", &kind)], 0);
        }
        for source in of_kind() {
            writer.sample(family, &[("source", &kind), ("name", &source.name())], value(source));
        }
    }
}

type Gauge = (&'static str, &'static str, fn(&SourceStatus, &Scrape<'_>) -> Option<f64>);

/// A source has no sample where the value is not known.
const GAUGES: [Gauge; 6] = [
    (
        "tickcast_source_fit",
        "1 if the source can be relied on; 0 if it is down, silent for longer than stale_after, or its messages are older than lag_max.",
        |source, scrape| Some(source.unfit(scrape.now_ns, scrape.watched_since_ns).map_or(1.0, |_| 0.0)),
    ),
    (
        "tickcast_source_active",
        "1 if the source publishes; 0 if another one of its failover group does.",
        |source, _| Some(if source.is_standby() { 0.0 } else { 1.0 }),
    ),
    (
        "tickcast_source_topics_stale",
        "1 while the topics of the source, or of its failover group, are marked as stale; only for sources that mark them.",
        |source, _| {
            let is_stale = source.stale_since_ns().is_some();
            (source.common().marks_stale || is_stale).then_some(if is_stale { 1.0 } else { 0.0 })
        },
    ),
    (
        "tickcast_source_lag_messages",
        "Messages that the engine holds and the source has not taken, where the engine tells.",
        |source, _| source.lag_messages().map(|messages| messages as f64),
    ),
    (
        "tickcast_source_lag_seconds",
        "Age of the source's last message on arrival, by the message's own time.",
        |source, _| source.lag_ns().map(|ns| ns as f64 / 1e9),
    ),
    ("tickcast_source_silence_seconds", "Time since the source's last message.", |source, scrape| {
        source.heard_ns().map(|ns| scrape.now_ns.saturating_sub(ns) as f64 / 1e9)
    }),
];

/// Writes the states and the gauges. Bound: six samples for each source. Names of sources need no escaping.
pub(super) fn sources(scrape: &Scrape<'_>, writer: &mut Writer) {
    const NAME: &str = "tickcast_sources";
    writer.family(NAME, "gauge", "Sources of the server, by kind and state.");
    for kind in KINDS.iter().map(|kind| kind.name) {
        let of_kind: Vec<Health> =
            scrape.sources.iter().filter(|source| source.kind() == kind).map(SourceStatus::health).collect();
        for state in Health::STATES {
            let count = of_kind.iter().filter(|health| health.state() == state).count();
            writer.sample(NAME, &[("source", &kind), ("state", &state)], count);
        }
    }
    for (family, help, value) in GAUGES {
        let known = scrape.sources.iter().filter_map(|source| Some((source, value(source, scrape)?)));
        for (at, (source, value)) in known.enumerate() {
            // A family without samples would be a header alone.
            if at == 0 {
                writer.family(family, "gauge", help);
            }
            let (kind, name, group) = (source.kind(), source.name(), source.common().group.as_deref());
            let mut labels: Vec<(&str, &dyn Display)> = vec![("source", &kind), ("name", &name)];
            labels.extend(group.as_ref().map(|group| ("group", group as &dyn Display)));
            writer.sample(family, &labels, value);
        }
    }
}
