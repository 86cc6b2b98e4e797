//! The data plane: one io_uring per shard.

mod buffer_ring;
pub mod data_ring;
pub mod probe;
mod restrictions;
pub(super) mod retry;
pub mod shim;
