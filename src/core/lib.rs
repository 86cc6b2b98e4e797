//! The core of tickcast as plain state machines: bytes and the time in, bytes and actions out. It knows no socket, clock, runtime
//! or thread.

pub mod admission;
pub mod budgets;
pub mod config;
pub mod deflate;
pub mod demand;
pub mod egress_log;
pub mod fair_queue;
pub mod fanout;
pub mod flush_wait;
pub mod home;
pub mod ids;
pub mod in_flight;
pub mod limits;
pub mod listed;
pub mod log_reads;
pub mod mesh;
pub mod message_id;
pub mod metrics;
pub mod networks;
pub mod now;
pub mod pattern_trie;
pub mod permission_sets;
pub mod placement;
pub mod principal;
pub mod routes;
pub mod session;
pub mod shard;
pub mod tenants;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timer_wheel;
pub mod token_bucket;
pub mod topic_key;
