//! What a shard counts and measures.

pub mod counters;
pub mod latency;
pub mod turn_times;
