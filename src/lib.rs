//! tickcast.
pub mod clock;
pub mod limits;
pub mod tick;
pub mod wire;
