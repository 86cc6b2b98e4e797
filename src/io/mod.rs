//! Everything that knows glommio, io_uring and sockets. The rest of the crate is state machines.

pub mod activation;
pub mod admin;
pub mod buffer_ring;
pub mod capabilities;
pub mod checks;
pub mod control;
pub mod data_ring;
pub mod desk;
pub mod executor;
pub mod gate;
pub mod handover;
pub mod listener;
pub mod reload;
pub mod server;
pub mod shim;
pub mod signals;
pub mod stop;
pub mod systemd;
pub mod top;
