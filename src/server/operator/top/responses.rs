//! The admin listener's responses, limited to the fields that `tickcast top` shows.
//!
//! Separate from the types that the server writes, so that one version can read another's responses.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny},
};

use super::format::reason;
use tickcast_core::shard::survey::SessionSort;

/// The responses of one poll.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When `/v1/shards` was received, CLOCK_MONOTONIC. Rates cover the time between two of these.
    pub received_ns: u64,
    /// The server and its shards.
    pub server: ServerResponse,
    /// The topics with the most ticks, or why there are none, as while the server starts.
    pub topics: Result<TopicsResponse, String>,
    /// The order of `sessions`.
    pub sort: SessionSort,
    /// The first sessions in that order, or why there are none.
    pub sessions: Result<SessionsResponse, String>,
    /// Latencies since the start, or why there are none.
    pub latency: Result<LatencyResponse, String>,
    /// The tenants besides the default; empty from a server without them.
    pub tenants: Vec<TenantEntry>,
}

/// `/v1/shards`.
#[derive(Clone, Debug, Deserialize)]
pub struct ServerResponse {
    /// The server's version.
    pub version: String,
    /// The server's stage.
    pub stage: String,
    /// When the process started; a different value means a different process. `None` from versions without it.
    pub start_seconds: Option<f64>,
    /// Seconds since the process started.
    pub uptime_seconds: f64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// All shards.
    pub shards: Vec<ShardEntry>,
    /// Shards that did not reply in time.
    pub unanswered: Vec<u16>,
    /// The server's sources. Empty from versions that say less of them.
    #[serde(default, deserialize_with = "known_sources")]
    pub sources: Vec<SourceEntry>,
    /// The server's sinks. Empty from versions without them.
    #[serde(default)]
    pub sinks: Vec<SinkEntry>,
}

/// A sink.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SinkEntry {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// Why it does not run.
    pub reason: Option<String>,
    /// Ticks that its engine has not confirmed yet.
    pub ticks_waiting: u64,
}

impl SinkEntry {
    /// Whether it is connected to its engine.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }
}

/// A source.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SourceEntry {
    /// Its name.
    pub name: String,
    /// What it waits for, or why it has failed.
    pub reason: Option<String>,
    /// Why it cannot be relied on.
    pub unfit: Option<String>,
    /// Whether it publishes, and not another one of its group.
    pub active: bool,
    /// Ticks per second.
    pub ticks_per_second: f64,
    /// Messages that its engine holds and it has not taken.
    pub lag_messages: Option<u64>,
    /// Subscriptions at its engine that it has because clients ask for them.
    #[serde(default)]
    pub subscriptions: u64,
    /// Prefixes that it subscribes to as a whole, because clients ask for too many of their topics.
    #[serde(default)]
    pub prefixes_whole: u64,
}

/// The sources with all fields; those of version 0.1 have no name.
fn known_sources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SourceEntry>, D::Error> {
    let sources = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(sources.into_iter().filter_map(|source| serde_json::from_value(source).ok()).collect())
}

/// A shard.
#[derive(Clone, Debug, Deserialize)]
pub struct ShardEntry {
    /// Its number.
    pub shard: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// Its counters.
    pub counters: ShardCounters,
    /// Its gauges; `None` if it did not reply in time.
    pub state: Option<ShardGauges>,
}

/// A shard's counters, by the labels of [`tickcast_core::metrics::counters::Counter`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[expect(missing_docs, reason = "Counter documents them")]
pub struct ShardCounters {
    pub sessions_open: u64,
    pub sessions_subscribed: u64,
    pub ticks_sequenced: u64,
    pub ticks_delivered: u64,
    pub ticks_conflated: u64,
    pub ticks_dropped: u64,
    /// 0 from a server that does not count it.
    #[serde(default)]
    pub topics_refused: u64,
    /// 0 from a server that does not say.
    #[serde(default)]
    pub overloaded: u64,
    #[serde(default)]
    pub ticks_refused_rate: u64,
    #[serde(default)]
    pub ticks_refused_bandwidth: u64,
    #[serde(default)]
    pub ticks_refused_source_rate: u64,
    #[serde(default)]
    pub ticks_refused_source_bandwidth: u64,
    #[serde(default)]
    pub subscriptions_refused_rate: u64,
    #[serde(default)]
    pub subscriptions_refused_source_rate: u64,
    #[serde(default)]
    pub history_refused_rate: u64,
    #[serde(default)]
    pub history_refused_source_rate: u64,
    #[serde(default)]
    pub last_values_refused_rate: u64,
    #[serde(default)]
    pub last_values_refused_source_rate: u64,
    #[serde(default)]
    pub patterns_refused_wildcards: u64,
    #[serde(default)]
    pub patterns_refused_session: u64,
    #[serde(default)]
    pub patterns_refused_source: u64,
    pub bytes_sent: u64,
    pub sends: u64,
    pub sends_parked: u64,
    pub busy_ns: u64,
    pub idle_ns: u64,
}

/// A shard's gauges.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct ShardGauges {
    /// Bytes in the rings from other shards that it has not consumed.
    pub mesh_ring_bytes: u64,
    /// Bytes in the rings from the server's own sources that it has not consumed.
    pub source_ring_bytes: u64,
    /// Topics it sequences.
    pub topics: u64,
    /// Sessions with data to send.
    pub sessions_waiting: u64,
}

/// `/v1/tenants`.
#[derive(Clone, Debug, Deserialize)]
pub struct TenantsResponse {
    /// The tenants besides the default.
    pub tenants: Vec<TenantEntry>,
}

/// A tenant.
#[derive(Clone, Debug, Deserialize)]
pub struct TenantEntry {
    /// Its name.
    pub tenant: String,
    /// `open` or `removed`.
    pub state: String,
    /// What it may use.
    pub quota: TenantQuota,
    /// What it uses, and how often it was refused more.
    pub figures: TenantFigures,
}

/// A tenant's quota; 0: no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "Quota documents them")]
pub struct TenantQuota {
    pub connections: u64,
    pub subscriptions: u64,
    pub topics: u64,
    pub publish_rate: u64,
    pub egress_rate: u64,
    pub history_bytes: u64,
}

/// A tenant's figures, by the labels of [`tickcast_core::tenants::Figure`].
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "Figure documents them")]
pub struct TenantFigures {
    pub connections: u64,
    pub subscriptions: u64,
    pub topics: u64,
    pub history_bytes: u64,
    pub ticks_published: u64,
    pub egress_bytes: u64,
    pub connections_refused: u64,
    pub subscriptions_refused: u64,
    pub topics_refused: u64,
    pub publishes_refused: u64,
    pub egress_waits: u64,
}

/// `/v1/topics`.
#[derive(Clone, Debug, Deserialize)]
pub struct TopicsResponse {
    /// The topics with the most ticks.
    pub topics: Vec<TopicEntry>,
}

/// A topic.
#[derive(Clone, Debug, Deserialize)]
pub struct TopicEntry {
    /// Its name, chosen by its publisher.
    pub topic: String,
    /// The shard that sequences it.
    pub home: u16,
    /// The number of ticks so far.
    pub sequence: u64,
    /// Ticks in its history.
    pub history_ticks: u64,
    /// Keys that have a last value.
    pub keys: u64,
    /// Bytes of its history.
    pub history_bytes: u64,
    /// Sessions subscribed to it.
    pub sessions: u64,
}

/// `/v1/sessions`.
#[derive(Clone, Debug, Deserialize)]
pub struct SessionsResponse {
    /// The first sessions in the requested order.
    pub sessions: Vec<SessionEntry>,
}

/// A session.
#[derive(Clone, Debug, Deserialize)]
pub struct SessionEntry {
    /// Its ID, as `DELETE /v1/sessions/ID` takes it.
    pub id: String,
    /// The identity its client claims.
    pub identity: Option<String>,
    /// The peer's address, if known.
    pub address: Option<String>,
    /// The encoding of its messages.
    pub encoding: String,
    /// `handshake`, `open` or `ending`.
    pub state: String,
    /// Topics it is subscribed to.
    pub topics: u64,
    /// Bytes queued for it.
    pub outbox_bytes: u64,
    /// How long its current SEND has waited for room in the socket.
    pub lag_ms: u64,
    /// Topics whose ticks are held back.
    pub held_topics: u64,
    /// Ticks announced to it as conflated.
    pub conflated: u64,
    /// Ticks announced to it as lost.
    pub dropped: u64,
    /// The round-trip time, if known.
    pub rtt_us: Option<u64>,
}

/// `/v1/latency?format=counts`: latencies in microseconds, ascending, each with its count since the start.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LatencyResponse {
    /// From receipt until a tick has its sequence number.
    pub sequenced: Vec<(u64, u64)>,
    /// From receipt until the kernel has the SENDs of the tick's turn.
    pub sent: Vec<(u64, u64)>,
    /// Shards that did not reply in time.
    pub unanswered: Vec<u16>,
}

/// Parses the body of a response. A 503 may still have the data of the shards that replied.
///
/// # Errors
/// The server's error message, or that the response is from another version of tickcast or from another program.
pub fn parse<T: DeserializeOwned>(status: u16, body: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        error: String,
    }
    let has_data = matches!(status, 200 | 503);
    let parse_error = match serde_json::from_slice(body) {
        Ok(parsed) if has_data => return Ok(parsed),
        parsed => parsed.err(),
    };
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(body) {
        return Err(reason(&body.error));
    }
    // A JSON object with other fields: most likely from an admin listener of another version.
    let is_object =
        body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(body).is_ok();
    Err(match parse_error {
        Some(error) if has_data && is_object => format!(
            "the server runs another version of tickcast (this is {}): {}",
            env!("CARGO_PKG_VERSION"),
            reason(&error.to_string())
        ),
        _ => format!("the server is not a tickcast admin listener (HTTP status {status})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::{
        admin::{
            Stage,
            metrics::tests::shard_state,
            overview::{Overview, ShardView},
            process_sample::ProcessSample,
        },
        tenants::views,
        views::{TopicView, tests::session_view},
    };
    use tickcast_core::{
        metrics::{
            counters::{Counter, Counters},
            latency::Latency,
        },
        tenants::{Exports, Figure, Quota, TenantConfig, Tenants},
    };

    #[test]
    fn shards_as_the_server_writes_them_are_parsed() {
        let counters = Counters::default();
        (1..).zip(Counter::ALL).for_each(|(n, &counter)| counters.add(counter, n));
        let state = shard_state(Latency::default());
        let shards =
            vec![ShardView::new(0, 3, &counters, Some(&state)), ShardView::new(1, 4, &counters, None)];
        let process = ProcessSample { start_seconds: 1_793_322_000.13, ..ProcessSample::default() };
        let overview = Overview::new(Stage::Serving, &process, 9.5, shards);
        let server: ServerResponse = parse(503, &serde_json::to_vec(&overview).unwrap()).unwrap();
        assert_eq!((&*server.stage, server.uptime_seconds, server.unanswered), ("serving", 9.5, vec![1]));
        assert_eq!(server.start_seconds, Some(1_793_322_000.13));
        let (entry, state) = (server.shards[0].counters, server.shards[0].state.unwrap());
        for (counter, value) in [
            (Counter::SessionsOpen, entry.sessions_open),
            (Counter::SessionsSubscribed, entry.sessions_subscribed),
            (Counter::TicksSequenced, entry.ticks_sequenced),
            (Counter::TicksDelivered, entry.ticks_delivered),
            (Counter::TicksConflated, entry.ticks_conflated),
            (Counter::TicksDropped, entry.ticks_dropped),
            (Counter::TopicsRefused, entry.topics_refused),
            (Counter::Overloaded, entry.overloaded),
            (Counter::BytesSent, entry.bytes_sent),
            (Counter::Sends, entry.sends),
            (Counter::SendsParked, entry.sends_parked),
            (Counter::TicksRefusedRate, entry.ticks_refused_rate),
            (Counter::TicksRefusedBandwidth, entry.ticks_refused_bandwidth),
            (Counter::TicksRefusedSourceRate, entry.ticks_refused_source_rate),
            (Counter::TicksRefusedSourceBandwidth, entry.ticks_refused_source_bandwidth),
            (Counter::SubscriptionsRefusedRate, entry.subscriptions_refused_rate),
            (Counter::SubscriptionsRefusedSourceRate, entry.subscriptions_refused_source_rate),
            (Counter::HistoryRefusedRate, entry.history_refused_rate),
            (Counter::HistoryRefusedSourceRate, entry.history_refused_source_rate),
            (Counter::LastValuesRefusedRate, entry.last_values_refused_rate),
            (Counter::LastValuesRefusedSourceRate, entry.last_values_refused_source_rate),
            (Counter::PatternsRefusedWildcards, entry.patterns_refused_wildcards),
            (Counter::PatternsRefusedSession, entry.patterns_refused_session),
            (Counter::PatternsRefusedSource, entry.patterns_refused_source),
            (Counter::BusyNs, entry.busy_ns),
            (Counter::IdleNs, entry.idle_ns),
        ] {
            assert_eq!(counters.value(counter), value, "{counter:?}");
        }
        assert_eq!(
            (state.mesh_ring_bytes, state.source_ring_bytes, state.topics, state.sessions_waiting),
            (1, 2, 4, 7)
        );
        assert!(server.shards[1].state.is_none() && server.shards[1].core == 4);
    }

    #[test]
    fn topics_sessions_and_latencies_as_the_server_writes_them_are_parsed() {
        let topic = TopicView {
            topic: "a.b".into(),
            tenant: String::new(),
            id: 1,
            home: 2,
            sequence: 3,
            history_ticks: 4,
            keys: 5,
            history_bytes: 6,
            sessions: 7,
            rank: 8,
        };
        let body = serde_json::json!({ "topics": [topic], "unanswered": [] }).to_string();
        let topics: TopicsResponse = parse(200, body.as_bytes()).unwrap();
        assert_eq!((topics.topics[0].sequence, topics.topics[0].sessions), (3, 7));
        let body = serde_json::json!({ "sessions": [session_view()], "unanswered": [] }).to_string();
        let session = parse::<SessionsResponse>(200, body.as_bytes()).unwrap().sessions.remove(0);
        assert_eq!(
            (session.address.as_deref(), session.lag_ms, session.rtt_us),
            (Some("127.0.0.1:9"), 4, Some(8))
        );
        let body = br#"{"unit":"microseconds","sequenced":[[1,2]],"sent":[],"unanswered":[]}"#;
        assert_eq!(parse::<LatencyResponse>(200, body).unwrap().sequenced, [(1, 2)]);
    }

    #[test]
    fn tenants_as_the_server_writes_them_are_parsed() {
        let quota = Quota {
            connections: 1,
            subscriptions: 2,
            topics: 3,
            publish_rate: 4,
            egress_rate: 5,
            history_bytes: 6,
        };
        let config = TenantConfig { name: "acme".into(), quota, ..TenantConfig::default() };
        let tenants = Tenants::new(vec![config], Exports::default(), 1).unwrap();
        let body = serde_json::json!({ "tenants": views(&tenants) });
        let mut parsed: TenantsResponse = parse(200, body.to_string().as_bytes()).unwrap();
        let TenantEntry { tenant, state, quota, .. } = parsed.tenants.remove(0);
        assert_eq!((&*tenant, &*state), ("acme", "open"));
        let TenantQuota { connections, subscriptions, topics, publish_rate, egress_rate, history_bytes } =
            quota;
        let read = [connections, subscriptions, topics, publish_rate, egress_rate, history_bytes];
        assert_eq!(read, [1, 2, 3, 4, 5, 6]);
        let numbered: serde_json::Map<_, _> =
            (1u64..).zip(Figure::ALL).map(|(n, figure)| (figure.label().into(), n.into())).collect();
        let has: TenantFigures = serde_json::from_value(numbered.into()).unwrap();
        for (figure, value) in [
            (Figure::Connections, has.connections),
            (Figure::Subscriptions, has.subscriptions),
            (Figure::Topics, has.topics),
            (Figure::HistoryBytes, has.history_bytes),
            (Figure::Published, has.ticks_published),
            (Figure::EgressBytes, has.egress_bytes),
            (Figure::ConnectionsRefused, has.connections_refused),
            (Figure::SubscriptionsRefused, has.subscriptions_refused),
            (Figure::TopicsRefused, has.topics_refused),
            (Figure::PublishesRefused, has.publishes_refused),
            (Figure::EgressWaits, has.egress_waits),
        ] {
            assert_eq!(value, figure as u64 + 1, "{figure:?}");
        }
    }

    #[test]
    fn errors_and_foreign_responses_are_reported() {
        let error = |status, body: &str| parse::<TopicsResponse>(status, body.as_bytes()).unwrap_err();
        assert_eq!(error(503, r#"{"error":"starting"}"#), "starting");
        let long = format!(r#"{{"error":"{}"}}"#, "\\u001b".repeat(1_000));
        assert!(error(400, &long).starts_with(r"\u{1b}\u{1b}") && error(400, &long).len() <= 603);
        for (status, body) in
            [(200, "<html>"), (404, ""), (200, "[]"), (200, "ok"), (404, r#"{"topics":[]}"#)]
        {
            assert!(error(status, body).contains("not a tickcast admin listener"), "{status} {body}");
        }
    }

    #[test]
    fn a_response_of_another_version_is_reported_with_the_field_that_differs() {
        let mismatch = |body: &str| parse::<TopicsResponse>(200, body.as_bytes()).unwrap_err();
        let renamed = mismatch(r#"{"subjects":[],"unanswered":[]}"#);
        assert!(renamed.contains("another version of tickcast") && renamed.contains("`topics`"), "{renamed}");
        let hostile = mismatch(&format!(r#"{{"topics":"{}"}}"#, "\\u001b]0;x".repeat(1_000)));
        assert!(hostile.contains("another version"), "{hostile}");
        assert!(!hostile.contains('\x1b') && hostile.len() < 1_200, "{hostile}");
        // Fields that older versions lack are optional.
        let overview = Overview::new(Stage::Serving, &ProcessSample::default(), 9.5, Vec::new());
        let mut older = serde_json::to_value(&overview).unwrap();
        older.as_object_mut().unwrap().remove("start_seconds").unwrap();
        older.as_object_mut().unwrap().remove("sinks").unwrap();
        older["sources"] = serde_json::json!([{ "kind": "replay", "state": "running" }]);
        let server: ServerResponse = parse(200, older.to_string().as_bytes()).unwrap();
        assert_eq!((server.start_seconds, server.sources, server.sinks), (None, Vec::new(), Vec::new()));
    }
}
