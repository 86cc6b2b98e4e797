//! The sources in responses: `/v1/sources`, `/v1/shards`, and what readiness depends on.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::sources::{SourceStatus, status::Unfit};
use tickcast_core::metrics::counters::Counter;

const NS_PER_MS: u64 = 1_000_000;

/// A source of the server.
#[derive(Debug, Serialize)]
pub struct SourceView {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// `running`, `waiting`, `ended` or `failed`.
    pub state: &'static str,
    /// What a waiting source waits for, or why a failed one cannot continue.
    pub reason: Option<String>,
    /// Why it cannot be relied on: `down`, `stale` or `late`; `None`: it is fit.
    pub unfit: Option<&'static str>,
    /// Whether its topics are reported as stale to their subscribers while it is silent.
    pub marks_stale: bool,
    /// Since when its topics are stale, seconds since 1970; `None`: they are not.
    pub stale_since_seconds: Option<f64>,
    /// Its failover group.
    pub group: Option<String>,
    /// Whether it publishes, and not another source of its group.
    pub active: bool,
    /// Whether the server is ready only while it is fit.
    pub required: bool,
    /// Ticks published per second, lately.
    pub ticks_per_second: f64,
    /// Messages that its engine holds and it has not taken, where the engine tells.
    pub lag_messages: Option<u64>,
    /// Age of its last message on arrival, by the message's own time.
    pub lag_ms: Option<u64>,
    /// Time since its last message.
    pub silent_ms: Option<u64>,
    /// Ticks that it dropped.
    pub ticks_dropped: u64,
    /// Times it waited for room in a shard's ring.
    pub waits: u64,
    /// How long it waited for room, in all.
    pub wait_ms: u64,
    /// Lines of its input that are not ticks.
    pub lines_skipped: u64,
    /// Ticks published.
    pub ticks: u64,
    /// Messages of its engine that are not ticks.
    pub messages_skipped: u64,
    /// Messages that its engine has lost or withheld, as far as known.
    pub messages_lost: u64,
    /// Messages not published, because another source of its group publishes.
    pub messages_standby: u64,
    /// Messages not published again, because a source of its group had published their id.
    pub messages_repeated: u64,
    /// Times it took over from another source of its group.
    pub activations: u64,
    /// Times it began to read its engine.
    pub connections: u64,
    /// The same without the first.
    pub reconnects: u64,
    /// Subscriptions at its engine that it has because clients ask for them.
    pub subscriptions: u64,
    /// Prefixes that it subscribes to as a whole, because clients ask for too many of their topics.
    pub prefixes_whole: u64,
    /// The last thing that went wrong.
    pub last_error: Option<LastErrorView>,
}

/// What went wrong last.
#[derive(Debug, Serialize)]
pub struct LastErrorView {
    /// What happened.
    pub text: String,
    /// Seconds since 1970.
    pub at_seconds: f64,
}

impl SourceView {
    /// The source at `now_ns`; it has been watched since `since_ns`. Both are of CLOCK_MONOTONIC.
    pub fn new(status: &SourceStatus, now_ns: u64, since_ns: u64) -> SourceView {
        let (health, common) = (status.health(), status.common());
        let count = |counter: Counter| status.counters().value(counter);
        SourceView {
            kind: status.kind(),
            name: status.name().to_owned(),
            state: health.state(),
            reason: health.reason(),
            unfit: status.unfit(now_ns, since_ns).map(Unfit::name),
            marks_stale: common.marks_stale,
            stale_since_seconds: status.stale_since_ns().map(|ns| ns as f64 / 1e9),
            group: common.group.as_deref().map(str::to_owned),
            active: !status.is_standby(),
            required: common.is_required,
            ticks_per_second: status.ticks_per_second(now_ns),
            lag_messages: status.lag_messages(),
            lag_ms: status.lag_ns().map(|ns| ns / NS_PER_MS),
            silent_ms: status.heard_ns().map(|ns| now_ns.saturating_sub(ns) / NS_PER_MS),
            ticks_dropped: count(Counter::SourceTicksDropped),
            waits: count(Counter::SourceWaits),
            wait_ms: count(Counter::SourceWaitNs) / NS_PER_MS,
            lines_skipped: count(Counter::SourceLinesSkipped),
            ticks: count(Counter::SourceTicks),
            messages_skipped: count(Counter::SourceMessagesSkipped),
            messages_lost: count(Counter::SourceMessagesLost),
            messages_standby: count(Counter::SourceMessagesStandby),
            messages_repeated: count(Counter::SourceMessagesRepeated),
            activations: count(Counter::SourceActivations),
            connections: count(Counter::SourceConnections),
            reconnects: count(Counter::SourceConnections).saturating_sub(1),
            subscriptions: count(Counter::SourceSubscriptions),
            prefixes_whole: count(Counter::SourcePrefixesWhole),
            last_error: status
                .last_error()
                .map(|error| LastErrorView { text: error.text, at_seconds: error.at_ns as f64 / 1e9 }),
        }
    }
}

/// The state of every source by its name, for `/healthz` and `/readyz`: that of its engine, or why a running one is unfit.
pub fn states(sources: &[SourceStatus], now_ns: u64, since_ns: u64) -> Map<String, Value> {
    let state = |source: &SourceStatus| match source.unfit(now_ns, since_ns) {
        Some(unfit @ (Unfit::Silent | Unfit::Late)) => unfit.name(),
        _ => source.health().state(),
    };
    sources.iter().map(|source| (source.name().to_owned(), state(source).into())).collect()
}

/// The names of required sources that are unfit, and have no fit source in their group.
pub fn missing(sources: &[SourceStatus], now_ns: u64, since_ns: u64) -> Vec<&str> {
    let is_fit = |source: &SourceStatus| source.unfit(now_ns, since_ns).is_none();
    let is_replaced = |source: &SourceStatus| {
        let group = &source.common().group;
        group.is_some() && sources.iter().any(|other| other.common().group == *group && is_fit(other))
    };
    let missing = sources
        .iter()
        .filter(|source| source.common().is_required && !is_fit(source) && !is_replaced(source));
    missing.map(SourceStatus::name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::{common::CommonOptions, health::Health};

    fn status(name: &str, group: Option<&str>) -> SourceStatus {
        let options = CommonOptions {
            required: Some(true),
            group: group.map(str::to_owned),
            ..CommonOptions::default()
        };
        SourceStatus::new("nats", options.resolved(name))
    }

    #[test]
    fn a_required_source_is_missing_unless_it_or_another_of_its_group_is_fit() {
        let sources = [status("a", None), status("b", Some("g")), status("c", Some("g"))];
        assert_eq!(missing(&sources, 1, 0), ["a", "b", "c"], "none has started");
        sources[2].set_health(Health::Running);
        assert_eq!(missing(&sources, 1, 0), ["a"]);
        sources[0].set_health(Health::Running);
        assert_eq!(missing(&sources, 1, 0), [""; 0]);
        let hour_ns = 3_600_000_000_000;
        assert_eq!(missing(&sources, hour_ns, 0), ["b", "c"], "c is silent; a has no stale_after");
        let states = states(&sources, hour_ns, 0);
        assert_eq!(
            (&states["a"], &states["b"], &states["c"]),
            (&"running".into(), &"waiting".into(), &"stale".into())
        );
    }

    #[test]
    fn a_source_is_shown_with_what_is_known_of_it() {
        let status = status("a", None);
        let json = serde_json::to_value(SourceView::new(&status, 5, 0)).unwrap();
        assert_eq!(
            (&json["unfit"], &json["lag_ms"], &json["last_error"]),
            (&"down".into(), &Value::Null, &Value::Null)
        );
        status.set_health(Health::Running);
        status.note_heard(5_000_000, Some(7_000_000));
        status.set_lag(3);
        status.set_last_error("refused");
        status.counters().add(Counter::SourceConnections, 2);
        status.counters().add(Counter::SourceWaitNs, 9_000_000);
        let json = serde_json::to_value(SourceView::new(&status, 8_000_000, 0)).unwrap();
        for (key, value) in
            [("lag_ms", 7), ("silent_ms", 3), ("lag_messages", 3), ("reconnects", 1), ("wait_ms", 9)]
        {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!((&json["unfit"], &json["last_error"]["text"]), (&Value::Null, &"refused".into()));
    }
}
