//! The only module that uses glommio, io_uring and sockets. The rest of the server is plain state machines and threads.

pub mod admission;
pub mod control_queue;
pub mod driver;
pub mod handover;
pub mod listener;
pub mod shard_thread;
pub mod tls;
pub mod uring;

pub use tickcast_core::mesh::stop;
