//! Checks of io_uring and resource limits before anything starts.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::{
    error::StartupError,
    limits::{DESCRIPTOR_RESERVE, DESCRIPTORS_PER_SHARD, MEMLOCK_BYTES_PER_SHARD, SHARDS_IN_RESERVE},
    transport::uring::probe,
};

/// Checks everything that can be checked without starting, and raises soft limits to the hard ones where needed.
///
/// Returns the most clients to serve: `clients_max`, or as many as the descriptor limit allows.
///
/// # Errors
/// The first problem found.
pub fn check(clients_max: Option<usize>, shards: u16) -> Result<usize, StartupError> {
    io_uring()?;
    memlock(shards)?;
    descriptors(clients_max, shards)
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
    match probe::creates_ring() {
        // The kernel releases the locked memory of an exited server late: creating the real rings retries.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(()),
        result => result.map_err(|error| StartupError::IoUring(error, remedy)),
    }
}

/// The lowest limit of locked memory with which this process can start `shards` shards. A privileged process needs only what
/// glommio checks.
pub(crate) fn memlock_bytes_min(shards: u16) -> u64 {
    // The kernel does not limit the locked memory of a process with this capability (capabilities(7)).
    match capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK)) {
        true => MEMLOCK_BYTES_PER_SHARD,
        false => MEMLOCK_BYTES_PER_SHARD * u64::from(shards),
    }
}

/// Checks the limit of locked memory; raises the soft limit to the hard one if needed.
pub(crate) fn memlock(shards: u16) -> Result<(), StartupError> {
    let need = memlock_bytes_min(shards);
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((u64::MAX, u64::MAX));
    if soft >= need {
        return Ok(());
    }
    match setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard) {
        Ok(()) if hard >= need => Ok(()),
        _ => Err(StartupError::Memlock(hard, need, shards)),
    }
}

/// Descriptors that the process needs besides one per client.
pub(crate) fn descriptor_reserve(shards: u16) -> u64 {
    DESCRIPTOR_RESERVE + DESCRIPTORS_PER_SHARD * u64::from(shards).saturating_sub(SHARDS_IN_RESERVE)
}

/// Raises the soft limit of descriptors to the hard one, and returns the most clients to serve.
pub(crate) fn descriptors(clients_max: Option<usize>, shards: u16) -> Result<usize, StartupError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit =
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    let reserve = descriptor_reserve(shards);
    let room = limit.saturating_sub(reserve) as usize;
    match clients_max {
        None if room == 0 => Err(StartupError::Descriptors(limit, 1, reserve + 1)),
        None => Ok(room.min(crate::limits::CLIENTS_MAX_DEFAULT)),
        Some(clients) if clients > room => {
            Err(StartupError::Descriptors(limit, clients, clients as u64 + reserve))
        }
        Some(clients) => Ok(clients),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_shards_need_more_descriptors() {
        let of_shards = [1, 8, 9, 128].map(descriptor_reserve);
        assert_eq!(of_shards, [DESCRIPTOR_RESERVE, DESCRIPTOR_RESERVE, 138, 1_328]);
    }
}
