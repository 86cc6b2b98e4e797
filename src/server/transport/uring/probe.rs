//! Probes of what io_uring can do for this process. They need no shard.

use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::{
    data_ring::{DataRing, Settings, eventfd},
    retry,
};
use crate::clock;

/// The smallest data ring with all features of a shard's. It receives nothing.
const SMALLEST: Settings = Settings { slots: 1, receive_buffers: 1, receive_buffer_bytes: 4096 };
/// How long [`shard_ring`] retries while the kernel is out of memory.
const RETRIES_NS: u64 = 1_000_000_000;

/// Creates and drops a small ring with the flags of a shard's.
///
/// # Errors
/// Those of io_uring_setup(2) and mmap(2).
pub fn creates_ring() -> io::Result<()> {
    let ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
    drop(ring);
    Ok(())
}

/// Creates and drops a shard's data ring at its smallest size. Retries for 1 s while the kernel is out of memory.
///
/// Returns whether a core whose shard sleeps in the ring counts as idle.
///
/// # Errors
/// Those of [`DataRing::new`].
pub fn shard_ring() -> io::Result<bool> {
    let give_up_ns = clock::monotonic_ns() + RETRIES_NS;
    let ring = retry::while_out_of_memory(give_up_ns, || DataRing::new(SMALLEST, eventfd()?))?;
    Ok(ring.waits_as_idle())
}

/// Whether the kernel can turn a registered file back into a descriptor, to query its socket.
pub fn installs_descriptors() -> bool {
    let mut probe = Probe::new();
    let probed = IoUring::new(1).and_then(|ring| ring.submitter().register_probe(&mut probe));
    probed.is_ok() && probe.is_supported(opcode::FixedFdInstall::CODE)
}
