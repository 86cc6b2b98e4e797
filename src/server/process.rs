//! The process and its host: signals, resource limits and the service manager.

pub mod activation;
pub mod cores;
pub mod reader;
pub mod rlimits;
pub mod signals;
pub mod systemd;
pub mod watchdog;

pub use tickcast_common::{fault, panics};
