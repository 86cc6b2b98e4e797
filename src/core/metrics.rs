//! Counters and latency histograms of a shard.

pub mod counters;
pub mod latency;
pub mod turn_times;
