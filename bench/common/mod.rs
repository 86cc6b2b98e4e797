//! What the bench programs share: checks of option values, and calls on their own process.
//!
//! Each program includes this folder by path and uses a part of it.

pub mod checks;
pub mod histogram;
pub mod nats;
pub mod process;
