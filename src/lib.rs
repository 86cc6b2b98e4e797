//! tickcast.
pub mod client;
pub mod clock;
pub mod limits;
pub mod tick;
pub mod wire;
