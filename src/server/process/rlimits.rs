//! Checks of io_uring and resource limits before anything starts.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{error::StartupError, limits::DESCRIPTOR_RESERVE};

/// The least locked memory that the executor's own rings need (measured: glommio 0.9 needs 512 KiB).
pub(crate) const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Checks everything that can be checked without starting, and raises soft limits to the hard ones where needed.
///
/// Returns the most clients to serve: `clients_max`, or as many as the descriptor limit allows.
///
/// # Errors
/// The first problem found.
pub fn check(clients_max: Option<usize>) -> Result<usize, StartupError> {
    io_uring()?;
    memlock()?;
    descriptors(clients_max)
}

/// Checks that this process can create rings like the shards'.
pub(crate) fn io_uring() -> Result<(), StartupError> {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let remedy = match disabled.trim() {
        "1" => {
            "kernel.io_uring_disabled is 1: run `sysctl -w kernel.io_uring_disabled=0`, or join kernel.io_uring_group"
        }
        "2" => "kernel.io_uring_disabled is 2: run `sysctl -w kernel.io_uring_disabled=0`",
        _ => {
            "Linux 6.1 or later with io_uring is required; a container must allow its system calls (seccomp)"
        }
    };
    let probe = || -> io::Result<()> {
        let mut builder: io_uring::Builder = io_uring::IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().build(8)?;
        Ok(())
    };
    match probe() {
        // The kernel releases the locked memory of an exited server late: creating the real rings retries.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(()),
        result => result.map_err(|error| StartupError::IoUring(error, remedy)),
    }
}

/// Checks the limit of locked memory; raises the soft limit to the hard one if needed.
pub(crate) fn memlock() -> Result<(), StartupError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((u64::MAX, u64::MAX));
    if soft >= MEMLOCK_BYTES_MIN {
        return Ok(());
    }
    match setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard) {
        Ok(()) if hard >= MEMLOCK_BYTES_MIN => Ok(()),
        _ => Err(StartupError::Memlock(soft, MEMLOCK_BYTES_MIN)),
    }
}

/// Raises the soft limit of descriptors to the hard one, and returns the most clients to serve.
pub(crate) fn descriptors(clients_max: Option<usize>) -> Result<usize, StartupError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit =
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let room = limit.saturating_sub(DESCRIPTOR_RESERVE) as usize;
    match clients_max {
        None if room == 0 => Err(StartupError::Descriptors(limit, 1, DESCRIPTOR_RESERVE + 1)),
        None => Ok(room.min(crate::limits::CLIENTS_MAX_DEFAULT)),
        Some(clients) if clients > room => {
            Err(StartupError::Descriptors(limit, clients, clients as u64 + DESCRIPTOR_RESERVE))
        }
        Some(clients) => Ok(clients),
    }
}
