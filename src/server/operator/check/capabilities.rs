//! What this binary checks itself: the kernel, io_uring, the limits of this process and its cores.

use std::{fs, io};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use rustix::system::uname;

use crate::{
    limits::{CLIENTS_MAX_DEFAULT, SHARDS_MAX},
    operator::check::item::{CheckItem, ItemState},
    process::{cores::Cores, rlimits},
    transport::uring::probe,
};

/// The first kernel with everything the rings use; DEFER_TASKRUN came last.
const KERNEL_FIRST: (u32, u32) = (6, 1);
/// The first kernel with IORING_OP_FIXED_FD_INSTALL.
const FIXED_FD_INSTALL_FIRST: &str = "6.8";
/// The first kernel with IORING_ENTER_NO_IOWAIT.
const NO_IOWAIT_FIRST: &str = "6.15";

/// Checks everything. Creates and drops three small rings, and raises this process's soft limits as the server does.
pub fn check() -> Vec<CheckItem> {
    let release = uname().release().to_string_lossy().into_owned();
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let ring = probe::shard_ring();
    let waits_as_idle = matches!(ring, Ok(true));
    let kernel = kernel(release.trim(), ring.is_ok());
    let error = rlimits::io_uring().err().map(|error| error.to_string());
    let io_uring = io_uring(disabled.trim(), error);
    let cores = Cores::of_process().unwrap_or_else(|_| Cores { allowed: Vec::new(), quota: None });
    let shards = cores.shards_default().clamp(1, SHARDS_MAX) as u16;
    vec![
        kernel,
        io_uring,
        ring_item(ring.err()),
        memlock(shards),
        descriptors(shards),
        clients(shards),
        cores_item(cores.allowed.clone()),
        quota_item(&cores),
        session_addresses(),
        idle_cores(waits_as_idle),
    ]
}

/// A working ring outweighs the version number: distributions backport features to older kernels.
fn kernel(release: &str, has_ring: bool) -> CheckItem {
    let (major, minor) = KERNEL_FIRST;
    let is_new = version(release) >= Some(KERNEL_FIRST);
    let reason = match is_new || !has_ring {
        true => "The first kernel with rings that do their work when the shard asks (DEFER_TASKRUN).",
        false => "This kernel is older, but has every feature that a shard's ring uses.",
    };
    CheckItem {
        name: "kernel".to_owned(),
        required: true,
        state: if is_new || has_ring { ItemState::Enabled } else { ItemState::Unsupported },
        now: Some(release.to_owned()).filter(|release| !release.is_empty()),
        wanted: format!("at least {major}.{minor}"),
        reason: reason.to_owned(),
    }
}

/// Parses major and minor version of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `error`: why this process cannot use io_uring.
fn io_uring(disabled: &str, error: Option<String>) -> CheckItem {
    let is_disabled = matches!(disabled, "1" | "2");
    CheckItem {
        name: "io_uring".to_owned(),
        required: true,
        state: match error {
            None => ItemState::Enabled,
            Some(_) if is_disabled => ItemState::Supported,
            Some(_) => ItemState::Unsupported,
        },
        now: Some(if is_disabled { format!("io_uring_disabled={disabled}") } else { "on".to_owned() })
            .filter(|_| is_disabled || error.is_none()),
        wanted: "on".to_owned(),
        reason: error.unwrap_or_else(|| match disabled {
            // This process has CAP_SYS_ADMIN or is in that group.
            "1" => "This process may use it, but a service without capabilities, such as the shipped unit, may not: run `sysctl -w \
                    kernel.io_uring_disabled=0`, or run the service in kernel.io_uring_group."
                .to_owned(),
            _ => "Shards serve all their sockets through it.".to_owned(),
        }),
    }
}

/// `error`: why a shard's ring cannot be created.
fn ring_item(error: Option<io::Error>) -> CheckItem {
    CheckItem {
        name: "io_uring ring".to_owned(),
        required: true,
        state: if error.is_none() { ItemState::Enabled } else { ItemState::Unsupported },
        now: None,
        wanted: "registered files, provided buffers".to_owned(),
        reason: match error {
            None => {
                "Each shard has one: multishot receive needs the buffers, SENDs need the files.".to_owned()
            }
            Some(error) => format!("Cannot create a shard's ring: {error}"),
        },
    }
}

/// Whether monitoring shows the cores of idle shards as idle.
fn idle_cores(waits_as_idle: bool) -> CheckItem {
    CheckItem {
        name: "idle cores".to_owned(),
        required: false,
        state: if waits_as_idle { ItemState::Enabled } else { ItemState::Unsupported },
        now: None,
        wanted: format!("Linux {NO_IOWAIT_FIRST}"),
        reason: "Without IORING_ENTER_NO_IOWAIT the kernel counts the core of an idle shard as waiting for a disk (100 % iowait)."
            .to_owned(),
    }
}

fn memlock(shards: u16) -> CheckItem {
    let error = rlimits::memlock(shards).err().map(|error| error.to_string());
    CheckItem {
        name: "RLIMIT_MEMLOCK".to_owned(),
        required: true,
        state: if error.is_none() { ItemState::Enabled } else { ItemState::Supported },
        now: hard(Resource::RLIMIT_MEMLOCK).map(limit),
        wanted: format!("at least {}", rlimits::memlock_bytes_min(shards)),
        reason: error.unwrap_or_else(|| {
            "In bytes, for one shard per core: the rings of each lock 512 KiB of memory, unless the process has \
             CAP_IPC_LOCK."
                .to_owned()
        }),
    }
}

fn descriptors(shards: u16) -> CheckItem {
    let reserve = rlimits::descriptor_reserve(shards);
    let error = rlimits::descriptors(None, shards).err().map(|error| error.to_string());
    CheckItem {
        name: "RLIMIT_NOFILE".to_owned(),
        required: true,
        state: if error.is_none() { ItemState::Enabled } else { ItemState::Supported },
        now: hard(Resource::RLIMIT_NOFILE).map(limit),
        wanted: format!("at least {}", reserve + 1),
        reason: error
            .unwrap_or_else(|| format!("One descriptor for each client as it is accepted, plus {reserve}.")),
    }
}

/// Whether the descriptor limit allows the default number of clients.
fn clients(shards: u16) -> CheckItem {
    let clients = rlimits::descriptors(None, shards).unwrap_or(0);
    CheckItem {
        name: "clients at once".to_owned(),
        required: false,
        state: if clients >= CLIENTS_MAX_DEFAULT { ItemState::Enabled } else { ItemState::Supported },
        now: Some(clients.to_string()),
        wanted: format!("at least {CLIENTS_MAX_DEFAULT}"),
        reason: "As many as the descriptor limit allows, unless --max-clients is lower; raise LimitNOFILE= in the unit, or `ulimit -n`."
            .to_owned(),
    }
}

fn cores_item(cores: Vec<usize>) -> CheckItem {
    CheckItem {
        name: "cores".to_owned(),
        required: true,
        state: if cores.is_empty() { ItemState::Unsupported } else { ItemState::Enabled },
        now: Some(ranges(cores)).filter(|cores| !cores.is_empty()),
        wanted: "at least one".to_owned(),
        reason: "The cores this process may use: one shard is pinned to each, or to each of --cores."
            .to_owned(),
    }
}

/// Whether a CPU quota keeps shards from running on all cores at once.
fn quota_item(cores: &Cores) -> CheckItem {
    CheckItem {
        name: "CPU quota".to_owned(),
        required: false,
        state: if cores.quota.is_none() { ItemState::Enabled } else { ItemState::Supported },
        now: Some(cores.quota.map_or("none".to_owned(), |quota| format!("{quota} of {} cores", cores.allowed.len()))),
        wanted: "none".to_owned(),
        reason: "One shard runs for each whole core of the cgroup's quota (cpu.max, cpu.cfs_quota_us): the kernel throttles more for \
                 tens of milliseconds."
            .to_owned(),
    }
}

/// Whether a registered file can be turned back into a descriptor, to ask the kernel about its socket.
fn session_addresses() -> CheckItem {
    CheckItem {
        name: "addresses of sessions".to_owned(),
        required: false,
        state: if probe::installs_descriptors() { ItemState::Enabled } else { ItemState::Unsupported },
        now: None,
        wanted: format!("Linux {FIXED_FD_INSTALL_FIRST}"),
        reason: "Without FIXED_FD_INSTALL, /v1/sessions has no addresses and round-trip times.".to_owned(),
    }
}

/// The hard limit; the server raises its soft limit to it.
fn hard(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(_, hard)| hard)
}

fn limit(value: u64) -> String {
    if value == RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() }
}

/// Formats cores in the syntax of --cores: 0-3,8.
fn ranges(mut cores: Vec<usize>) -> String {
    cores.sort_unstable();
    cores.dedup();
    let runs = cores.chunk_by(|before, after| before + 1 == *after);
    let texts: Vec<String> = runs
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            run => run.iter().map(usize::to_string).collect(),
        })
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_compared_by_major_and_minor() {
        for (release, wanted) in [
            ("6.18.44-fc-v669\n", Some((6, 18))),
            ("6.1.0-13-amd64", Some((6, 1))),
            ("5.19", Some((5, 19))),
            ("10.0.0", Some((10, 0))),
            ("", None),
            ("6", None),
            ("linux", None),
        ] {
            assert_eq!(version(release), wanted, "{release:?}");
        }
        assert!(version("5.19") < Some(KERNEL_FIRST) && version("linux") < Some(KERNEL_FIRST));
        assert!(version("6.1.0") >= Some(KERNEL_FIRST) && version("10.0") >= Some(KERNEL_FIRST));
    }

    #[test]
    fn an_older_kernel_with_a_working_ring_is_enabled() {
        for (release, has_ring, state) in [
            ("6.1.0", true, ItemState::Enabled),
            ("6.1.0", false, ItemState::Enabled),
            ("5.14.0-503.el9", true, ItemState::Enabled),
            ("5.14.0-503.el9", false, ItemState::Unsupported),
        ] {
            assert_eq!(kernel(release, has_ring).state, state, "{release}, {has_ring}");
        }
    }

    #[test]
    fn io_uring_for_privileged_processes_only_is_reported() {
        let privileged = io_uring("1", None);
        assert_eq!(privileged.state, ItemState::Enabled);
        assert!(privileged.reason.contains("a service without capabilities"), "{privileged:?}");
        for (disabled, error, state) in [
            ("0", None, ItemState::Enabled),
            ("1", Some("x"), ItemState::Supported),
            ("", Some("x"), ItemState::Unsupported),
        ] {
            let item = io_uring(disabled, error.map(str::to_owned));
            assert_eq!(item.state, state, "{item:?}");
            assert!(!item.reason.contains("a service"), "{item:?}");
        }
    }

    #[test]
    fn an_idle_shard_that_counts_as_waiting_for_a_disk_is_reported() {
        let items = check();
        let item = items.iter().find(|item| item.name == "idle cores").unwrap();
        let is_new = version(&uname().release().to_string_lossy()) >= Some((6, 15));
        assert!(!is_new || *item == idle_cores(true), "{item:?}");
        let lacking = idle_cores(false);
        assert_eq!((lacking.state, lacking.is_missing()), (ItemState::Unsupported, false));
        assert_eq!(lacking.wanted, "Linux 6.15");
    }

    #[test]
    fn cores_are_formatted_as_ranges() {
        for (cores, wanted) in
            [(&[][..], ""), (&[3], "3"), (&[0, 1], "0-1"), (&[8, 0, 1, 2, 5], "0-2,5,8"), (&[4, 4, 5], "4-5")]
        {
            assert_eq!(ranges(cores.to_vec()), wanted);
        }
    }

    #[test]
    fn the_test_machine_meets_all_requirements() {
        let items = check();
        let missing: Vec<_> = items.iter().filter(|item| item.is_missing()).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(items.iter().filter(|item| item.required).count() >= 6);
    }
}
