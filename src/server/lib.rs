//! tickcast: fans live ticks out to tens of thousands of TCP and WebSocket clients from one pinned thread per core.
//!
//! # The way of a tick
//!
//! ```text
//!  simulator . replay (threads)          clients that publish (sessions of any shard)
//!        |                                        |
//!        |  one SPSC ring for each (source, shard) pair, to the topic's HOME shard
//!        v                                        v
//!  home shard = hash(topic) % shards:   home::Home gives the sequence, keeps the latest tick
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
//! | this one | [`transport`] (glommio, io_uring, sockets), [`sources`], [`operator`], [`config`], [`cli`], [`page`] |
//!
//! # Invariants
//!
//! - Sequences a subscriber sees of a topic strictly increase, and what lies between two was announced as conflated or
//!   lost: a session that cannot be told is closed, with a reason.
//! - A shard touches only what it owns; shards meet in SPSC rings. Deliveries are always taken in, requests only while
//!   there is room for what they add, so no two full shards wait for each other.
//! - Memory is bounded by configuration: logs, rings, sessions.
//! - No peer's bytes panic, hang or allocate what they merely announce.

pub mod byte_order_mark;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod error;
pub mod limits;
pub mod logging;
pub mod operator;
pub mod page;
pub mod process;
pub mod sources;
pub mod supervisor;
pub mod transport;
