//! The whole server in one answer: `/v1/shards`.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Stage, metrics::ProcessSample, views::StateView};
use tickcast_core::{
    metrics::{
        counters::{Counter, Counters},
        latency,
    },
    shard::survey::ShardState,
};

/// A shard.
#[derive(Debug, Serialize)]
pub struct ShardView {
    /// Which.
    pub shard: u16,
    /// The core it is pinned to.
    pub core: usize,
    /// The share of its time since the start that it was at work; `None` before its first turn.
    pub busy_percent: Option<f64>,
    /// What it counts, by the names that the log has.
    pub counters: Map<String, Value>,
    /// What it says of itself; `None` if it did not answer in time.
    pub state: Option<StateView>,
}

impl ShardView {
    /// A shard by its counters and its answer.
    pub fn new(shard: u16, core: usize, counters: &Counters, state: Option<&ShardState>) -> ShardView {
        let busy_percent = latency::busy_percent(counters);
        ShardView {
            shard,
            core,
            busy_percent,
            counters: counted(counters),
            state: state.map(StateView::from),
        }
    }
}

fn counted(counters: &Counters) -> Map<String, Value> {
    Counter::ALL.iter().map(|&counter| (counter.label().to_owned(), counters.value(counter).into())).collect()
}

/// The server.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// Of the program.
    pub version: &'static str,
    /// What the server is at.
    pub stage: &'static str,
    /// When the process started, seconds since 1970 as the clock had it then: of two answers with different ones, the
    /// server was started anew between.
    pub start_seconds: f64,
    /// Since the process started, seconds, whatever was done to the clock meanwhile.
    pub uptime_seconds: f64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// Each shard.
    pub shards: Vec<ShardView>,
    /// Shards that did not answer in time.
    pub unanswered: Vec<u16>,
}

impl Overview {
    /// Of these shards, so long after the start.
    pub fn new(
        stage: Stage,
        process: &ProcessSample,
        uptime_seconds: f64,
        shards: Vec<ShardView>,
    ) -> Overview {
        let silent = |shard: &ShardView| shard.state.is_none().then_some(shard.shard);
        Overview {
            version: env!("CARGO_PKG_VERSION"),
            stage: stage.name(),
            start_seconds: process.start_seconds,
            uptime_seconds,
            resident_bytes: process.resident_bytes,
            descriptors: process.descriptors,
            unanswered: shards.iter().filter_map(silent).collect(),
            shards,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_did_not_answer_is_there_with_its_counters() {
        let counters = Counters::default();
        counters.add(Counter::TicksDelivered, 7);
        let process = ProcessSample { start_seconds: 10.0, ..ProcessSample::default() };
        let overview =
            Overview::new(Stage::Draining, &process, 2.5, vec![ShardView::new(3, 1, &counters, None)]);
        let json = serde_json::to_value(&overview).unwrap();
        assert_eq!(json["stage"], "draining");
        assert_eq!((&json["start_seconds"], &json["uptime_seconds"]), (&10.0.into(), &2.5.into()));
        assert_eq!(json["unanswered"], serde_json::json!([3]));
        assert_eq!(json["shards"][0]["counters"]["ticks_delivered"], 7);
        assert!(json["shards"][0]["state"].is_null() && json["shards"][0]["core"] == 1);
    }
}
