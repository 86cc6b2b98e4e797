//! The primitives threads share: std's atomics and rtrb's ring, or loom's counterparts in model-checking builds
//! (`--cfg tickcast_loom`, `scripts/loom.sh`).

#[cfg(not(tickcast_loom))]
pub use std::sync::atomic;

#[cfg(tickcast_loom)]
pub use loom::sync::atomic;
#[cfg(not(tickcast_loom))]
pub use rtrb;

#[cfg(tickcast_loom)]
#[path = "sync/ring.rs"]
pub mod rtrb;
