//! The data plane: one io_uring ring per shard.

pub mod buffer_ring;
pub mod data_ring;
pub mod shim;
