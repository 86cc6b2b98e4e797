//! What the kernel says of this process: `/proc/self`, and getrusage(2).

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

use crate::{clock, operator::admin::metrics::ProcessSample};

/// Clock ticks in `/proc/self/stat`, a second: the kernel's ABI (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Now, seconds since 1970.
fn now_seconds() -> f64 {
    clock::realtime_ns() as f64 / 1e9
}

/// When this process started, seconds since 1970; now, if the kernel does not say.
pub(super) fn start_seconds() -> f64 {
    let started = || {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The program's name may hold anything, so fields are counted behind its closing bracket: the 22nd is the 20th.
        let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        Some(now_seconds() - (uptime - ticks / TICKS_PER_SECOND).max(0.0))
    };
    started().unwrap_or_else(now_seconds)
}

/// A sample of the process that started then. Some 50 us, and more with very many descriptors before Linux 6.2.
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
        descriptors: descriptors(),
        descriptors_max: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        cpu_seconds: cpu,
        start_seconds,
    }
}

/// Open descriptors. From Linux 6.2 on the folder's size is their number.
fn descriptors() -> Option<u64> {
    match fs::metadata("/proc/self/fd").ok()?.len() {
        // The one that the folder is read through is not counted.
        0 => fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1)),
        len => Some(len),
    }
}
