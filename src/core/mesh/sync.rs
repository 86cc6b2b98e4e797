//! What threads meet in: std's atomics and rtrb's ring, and what loom can look into in builds that try every order in
//! which two threads may go (`--cfg tickcast_loom`, `scripts/loom.sh`).

#[cfg(not(tickcast_loom))]
pub use std::sync::atomic;

#[cfg(tickcast_loom)]
pub use loom::sync::atomic;
#[cfg(not(tickcast_loom))]
pub use rtrb;

#[cfg(tickcast_loom)]
#[path = "sync/ring.rs"]
pub mod rtrb;
