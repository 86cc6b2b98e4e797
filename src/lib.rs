//! tickcast.
pub mod clock;
pub mod config;
pub mod counters;
pub mod fanout;
pub mod limits;
pub mod log;
pub mod ring;
pub mod router;
pub mod session;
pub mod sessions;
pub mod shard;
pub mod tick;
pub mod topic;
pub mod wire;
