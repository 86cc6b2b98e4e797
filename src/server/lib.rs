//! tickcast: fans out live ticks to tens of thousands of TCP and WebSocket clients, with one pinned thread per core.
//!
//! # The path of a tick
//!
//! ```text
//!  sources (a thread each)               clients that publish (sessions of any shard)
//!        |                                        |
//!        |  one SPSC ring for each (source, shard) pair, to the topic's HOME shard
//!        v                                        v
//!  home shard = hash(topic) % shards:   home::Home assigns the sequence, keeps the last value
//!        |
//!        |  one SPSC ring for each (shard, shard) pair, only to shards with a subscriber
//!        v
//!  every interested shard:   fanout::Fanout appends the frame once for each encoding in use to its egress_log::EgressLog
//!        |                   and queues the range to the subscribed session::Session s
//!        |  end of turn: one SEND for each ready session, submitted together
//!        v
//!  transport::uring::data_ring::DataRing: registered sockets, multishot receive, one parked SEND for a slow one
//! ```
//!
//! # The crates
//!
//! | crate | holds |
//! |---|---|
//! | [`tickcast_proto`] | the wire: ids, records, frames, codecs, framings, topic names and patterns |
//! | [`tickcast_core`] | the state machines: homes, fan-out, sessions, shards, the mesh between shards; no socket, no clock, no runtime |
//! | [`tickcast_client`] | the client library that `tickcast sub`, the load client and users share |
//! | [`tickcast_ecg`] | WFDB records and a beat detector |
//! | [`tickcast_tls`] | TLS without sockets: handshakes, and a record layer of plain data |
//! | [`tickcast_sources`] | sources of ticks other than clients |
//! | [`tickcast_common`] | the clocks, types of option values, panics |
//! | this one | [`transport`] (glommio, io_uring, sockets), [`auth`], [`operator`], [`config`], [`cli`], [`page`] |
//!
//! # Invariants
//!
//! - The sequences that a subscriber sees of a topic strictly increase, and the ranges between them are announced as
//!   conflated or lost. A session that cannot receive an announcement is closed, with a reason.
//! - A shard touches only what it owns; shards communicate through SPSC rings. They always accept deliveries, but requests
//!   only while there is room for what they add, so no two full shards wait for each other.
//! - Memory is bounded by configuration: logs, rings, sessions.
//! - A peer's bytes never cause a panic, a hang, or an allocation of a size that they merely announce.

pub mod auth;
pub mod cli;
pub mod commands;
pub mod config;
pub mod error;
pub mod limits;
pub mod logging;
pub mod operator;
pub mod page;
pub mod process;
pub mod supervisor;
pub mod tls;
pub mod transport;

pub use tickcast_common::{byte_order_mark, clock};
pub use tickcast_sources as sources;
