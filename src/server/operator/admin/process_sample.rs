//! Memory, descriptors and CPU time of this process, from `/proc/self` and getrusage(2).

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

use crate::clock;

/// Clock ticks per second in `/proc/self/stat` (USER_HZ, part of the kernel's ABI).
const TICKS_PER_SECOND: f64 = 100.0;

/// The kernel's accounting of the process; `None` where it cannot be read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessSample {
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Virtual memory.
    pub virtual_bytes: Option<u64>,
    /// Open descriptors. Clients have none: their sockets are registered files.
    pub descriptors: Option<u64>,
    /// The descriptor limit.
    pub descriptors_max: Option<u64>,
    /// CPU time, user and system.
    pub cpu_seconds: Option<f64>,
    /// When the process started, seconds since 1970.
    pub start_seconds: f64,
}

/// When this process started, seconds since 1970; the current time if the kernel does not report it.
pub(super) fn start_seconds() -> f64 {
    let now_seconds = || clock::realtime_ns() as f64 / 1e9;
    let started = || {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The process name may contain anything, so count after its closing bracket: field 22 is the 20th there.
        let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        Some(now_seconds() - (uptime - ticks / TICKS_PER_SECOND).max(0.0))
    };
    started().unwrap_or_else(now_seconds)
}

/// Samples the process. Cost: about 50 us; before Linux 6.2 more with very many descriptors.
pub(super) fn sample(start_seconds: f64) -> ProcessSample {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |name: &str| {
        let field = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(field.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    };
    let cpu = getrusage(UsageWho::RUSAGE_SELF).ok().map(|usage| {
        let times = [usage.user_time(), usage.system_time()];
        times.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6).sum()
    });
    ProcessSample {
        resident_bytes: bytes("VmRSS:"),
        virtual_bytes: bytes("VmSize:"),
        descriptors: open_descriptors(),
        descriptors_max: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        cpu_seconds: cpu,
        start_seconds,
    }
}

/// Counts open descriptors. Since Linux 6.2 the size of `/proc/self/fd` is the count.
fn open_descriptors() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        // Without the descriptor that reads the folder.
        0 => fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1)),
        len => Some(len),
    }
}
