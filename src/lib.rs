//! tickcast: fans live ticks out to tens of thousands of TCP and WebSocket clients from one pinned thread per core.
//!
//! # The way of a tick
//!
//! ```text
//!  simulator . replay (threads)          clients that publish (sessions of any shard)
//!        |                                        |
//!        |  one SPSC ring for each (source, shard) pair, to the topic's HOME shard
//!        v                                        v
//!  home shard = hash(topic) % shards:   topic::Home gives the sequence, keeps the latest tick
//!        |
//!        |  one SPSC ring for each (shard, shard) pair, only to shards with a subscriber
//!        v
//!  every interested shard:   fanout::Fanout appends the frame once for each encoding in use to its log::EgressLog
//!        |                   and queues the range to the subscribed session::Session s
//!        |  end of turn: one SEND for each ready session, submitted together
//!        v
//!  io::data_ring::DataRing: registered sockets, multishot receive, one parked SEND for a slow one
//! ```
//!
//! # The modules
//!
//! | plane | modules |
//! |---|---|
//! | bytes | [`wire`], [`tick`]; [`page`], what a browser is given |
//! | state machines: no socket, no clock, no runtime | [`admission`], [`identity`], [`router`], [`topic`], [`newest`], [`history`], [`fanout`], [`log`], [`membership`], [`subscription`], [`session`], [`sessions`], [`wheel`], [`shard`] |
//! | between threads | [`ring`], [`mesh`], [`counters`], [`latency`], [`watchdog`]; `sync`, through which loom looks at them |
//! | sources | [`ingest`]; hearts: [`ecg`] |
//! | the kernel | [`io`], and [`clock`], the only reader of time |
//! | the operator | [`cli`], [`config`], [`limits`], [`error`], [`logs`], [`admin`], [`mod@check`], [`top`] |
//! | the other side | [`client`] |
//!
//! # Invariants
//!
//! - Sequences a subscriber sees of a topic strictly increase, and what lies between two was announced as conflated or
//!   lost: a session that cannot be told is closed, with a reason.
//! - A shard touches only what it owns; shards meet in SPSC rings. Deliveries are always taken in, requests only while
//!   there is room for what they add, so no two full shards wait for each other.
//! - Memory is bounded by configuration: logs, rings, sessions.
//! - No peer's bytes panic, hang or allocate what they merely announce.

pub mod admin;
pub mod admission;
pub mod check;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod counters;
pub mod ecg;
pub mod error;
pub mod fanout;
pub mod history;
pub mod identity;
pub mod ingest;
pub mod io;
pub mod latency;
pub mod limits;
pub mod log;
pub mod logs;
pub mod membership;
pub mod mesh;
pub mod newest;
pub mod page;
pub mod ring;
pub mod router;
pub mod session;
pub mod sessions;
pub mod shard;
pub mod subscription;
mod sync;
pub mod tick;
pub mod top;
pub mod topic;
pub mod units;
pub mod watchdog;
pub mod wheel;
pub mod wire;
