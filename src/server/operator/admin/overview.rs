//! The response of `/v1/shards`: the server and all its shards.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{process_sample::ProcessSample, sources::SourceView, stage::Stage};
use crate::sources::sink::SinkStatus;
use tickcast_core::{
    metrics::{
        counters::{Counter, Counters},
        latency,
    },
    shard::survey::ShardState,
};

/// A sink of the server.
#[derive(Debug, Serialize)]
pub struct SinkView {
    /// Its name in the configuration.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// `running`, or `waiting` for its engine.
    pub state: &'static str,
    /// Why it waits.
    pub reason: Option<String>,
    /// Ticks that its engine has confirmed.
    pub ticks: u64,
    /// Ticks that it did not publish.
    pub ticks_refused: u64,
    /// Ticks without a confirmation.
    pub ticks_unconfirmed: u64,
    /// Ticks that wait for a confirmation now.
    pub ticks_waiting: u64,
    /// Times it connected to its engine.
    pub connections: u64,
}

impl From<&SinkStatus> for SinkView {
    fn from(sink: &SinkStatus) -> SinkView {
        let status = sink.status();
        let (health, counters) = (status.health(), status.counters());
        SinkView {
            name: sink.name().to_owned(),
            kind: status.kind(),
            state: health.state(),
            reason: health.reason(),
            ticks: counters.value(Counter::SinkTicks),
            ticks_refused: counters.value(Counter::SinkTicksRefused),
            ticks_unconfirmed: counters.value(Counter::SinkTicksUnconfirmed),
            ticks_waiting: counters.value(Counter::SinkTicksWaiting),
            connections: counters.value(Counter::SinkConnections),
        }
    }
}

/// A shard.
#[derive(Debug, Serialize)]
pub struct ShardView {
    /// Its number.
    pub shard: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// Busy share of its time since the start; `None` before its first turn.
    pub busy_percent: Option<f64>,
    /// Its counters, by [`Counter::label`].
    pub counters: Map<String, Value>,
    /// Its gauges; `None` if it did not reply in time.
    pub state: Option<StateView>,
}

impl ShardView {
    /// Combines a shard's counters with its reply.
    pub fn new(shard: u16, core: usize, counters: &Counters, state: Option<&ShardState>) -> ShardView {
        let value = |&counter: &Counter| (counter.label().to_owned(), counters.value(counter).into());
        ShardView {
            shard,
            core,
            busy_percent: latency::busy_percent(counters),
            counters: Counter::ALL.iter().map(value).collect(),
            state: state.map(StateView::from),
        }
    }
}

/// A shard's gauges: [`ShardState`] without the histograms.
#[derive(Clone, Debug, Serialize)]
pub struct StateView {
    /// Bytes in the rings from other shards that it has not consumed.
    pub mesh_ring_bytes: usize,
    /// Bytes in the rings from the server's own sources that it has not consumed.
    pub source_ring_bytes: usize,
    /// Bytes staged for rings to other shards that are full.
    pub mesh_stage_bytes: usize,
    /// Topics it sequences.
    pub topics: usize,
    /// Topics its sessions are subscribed to.
    pub topics_taken: usize,
    /// Patterns its sessions are subscribed to.
    pub patterns: usize,
    /// Sessions with data to send.
    pub sessions_waiting: usize,
    /// Bytes of its egress logs.
    pub egress_log_bytes: usize,
}

impl From<&ShardState> for StateView {
    fn from(state: &ShardState) -> StateView {
        StateView {
            mesh_ring_bytes: state.mesh_ring_bytes,
            source_ring_bytes: state.source_ring_bytes,
            mesh_stage_bytes: state.mesh_stage_bytes,
            topics: state.topics,
            topics_taken: state.topics_taken,
            patterns: state.patterns,
            sessions_waiting: state.sessions_waiting,
            egress_log_bytes: state.egress_log_bytes,
        }
    }
}

/// The server.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// The program's version.
    pub version: &'static str,
    /// Name of this server among several; empty: none.
    pub node: Box<str>,
    /// [`Stage::name`].
    pub stage: &'static str,
    /// When the process started, seconds since 1970 by the clock at that time. Two responses with different values come
    /// from different processes.
    pub start_seconds: f64,
    /// Seconds since the process started, unaffected by steps of the wall clock.
    pub uptime_seconds: f64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// All shards.
    pub shards: Vec<ShardView>,
    /// Shards that did not reply in time.
    pub unanswered: Vec<u16>,
    /// The server's own sources, in the order of the configuration.
    pub sources: Vec<SourceView>,
    /// Its sinks, in the order of the configuration.
    pub sinks: Vec<SinkView>,
}

impl Overview {
    /// Builds the response, without sources and sinks; shards without a state are listed in `unanswered`.
    pub fn new(
        stage: Stage,
        process: &ProcessSample,
        uptime_seconds: f64,
        shards: Vec<ShardView>,
    ) -> Overview {
        let unanswered = |shard: &ShardView| shard.state.is_none().then_some(shard.shard);
        Overview {
            version: env!("CARGO_PKG_VERSION"),
            node: Box::default(),
            stage: stage.name(),
            start_seconds: process.start_seconds,
            uptime_seconds,
            resident_bytes: process.resident_bytes,
            descriptors: process.descriptors,
            unanswered: shards.iter().filter_map(unanswered).collect(),
            shards,
            sources: Vec::new(),
            sinks: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::{SourceStatus, common::Common};

    #[test]
    fn a_shard_without_a_reply_is_listed_with_its_counters() {
        let counters = Counters::default();
        counters.add(Counter::TicksDelivered, 7);
        let process = ProcessSample { start_seconds: 10.0, ..ProcessSample::default() };
        let mut overview =
            Overview::new(Stage::Draining, &process, 2.5, vec![ShardView::new(3, 1, &counters, None)]);
        overview.sources.push(SourceView::new(&SourceStatus::new("replay", Common::named("replay")), 0, 0));
        let json = serde_json::to_value(&overview).unwrap();
        assert_eq!(json["stage"], "draining");
        assert_eq!((&json["start_seconds"], &json["uptime_seconds"]), (&10.0.into(), &2.5.into()));
        assert_eq!(json["unanswered"], serde_json::json!([3]));
        assert_eq!(json["shards"][0]["counters"]["ticks_delivered"], 7);
        assert!(json["shards"][0]["state"].is_null() && json["shards"][0]["core"] == 1);
        assert_eq!(json["sources"][0]["name"], "replay");
    }
}
