//! What threads meet in: std's atomics and rtrb's ring, and what loom can look into in builds that try every order in
//! which two threads may go (`--cfg loom`, `scripts/loom.sh`).

#[cfg(not(loom))]
pub use std::sync::atomic;

#[cfg(loom)]
pub use loom::sync::atomic;
#[cfg(not(loom))]
pub use rtrb;

#[cfg(loom)]
#[path = "sync/ring.rs"]
pub mod rtrb;
#[cfg(all(test, loom))]
mod tests;
