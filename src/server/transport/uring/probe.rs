//! What the kernel's io_uring can do for this process, without a shard.

use std::io;

use io_uring::{IoUring, Probe, opcode};

/// Creates and drops a small ring with the flags of a shard's.
///
/// # Errors
/// Those of io_uring_setup(2) and mmap(2).
pub fn creates_ring() -> io::Result<()> {
    let ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
    drop(ring);
    Ok(())
}

/// Whether a registered file can be turned back into a descriptor, to ask the kernel about its socket.
pub fn installs_descriptors() -> bool {
    let mut probe = Probe::new();
    let probed = IoUring::new(1).and_then(|ring| ring.submitter().register_probe(&mut probe));
    probed.is_ok() && probe.is_supported(opcode::FixedFdInstall::CODE)
}
