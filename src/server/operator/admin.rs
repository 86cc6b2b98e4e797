//! The admin listener: metrics, health and the state of a running server over HTTP.
//! [`listener`] owns the socket and the thread, `connections` bounds its connections, [`access`] decides who may send which
//! request, `handlers` answers requests, `audit` logs changes, `shard_replies` collects the shards' replies. The other modules
//! are functions of plain values: they parse requests and format responses.

pub mod access;
mod affinity;
mod audit;
mod connections;
pub mod context;
mod handlers;
mod host;
pub mod latency;
pub mod listener;
pub mod metrics;
pub mod overview;
pub mod process_sample;
pub mod query;
pub mod route;
mod shard_replies;
mod sources;
mod stage;

pub use self::stage::Stage;
