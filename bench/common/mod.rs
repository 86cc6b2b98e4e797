//! Code shared by the bench programs.
//!
//! Each program includes this directory by path and uses a part of it.

pub mod checks;
pub mod histogram;
pub mod nats;
pub mod process;
pub mod tls;
