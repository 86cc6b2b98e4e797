//! What `tickcast check` knows by itself: the kernel, the rings that the shards need, and the limits of this process.

use std::fs;

use io_uring::{IoUring, Probe, opcode};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::{
    clock,
    limits::{CLIENTS_MAX_DEFAULT, DESCRIPTOR_RESERVE},
    operator::check::{Item, State},
    process::rlimits::{self, MEMLOCK_BYTES_MIN},
    transport::uring::data_ring::{DataRing, Settings, eventfd},
};

/// The first kernel that has all that the rings ask for, DEFER_TASKRUN last.
const KERNEL_FIRST: (u32, u32) = (6, 1);
/// The same for IORING_OP_FIXED_FD_INSTALL.
const INSTALL_FIRST: &str = "6.8";
/// The least ring that has all that a shard's has. Nothing is received with it.
const RING: Settings = Settings { slots: 1, receive_buffers: 1, receive_buffer_bytes: 4096 };
/// Locked memory of a server that has just ended is given back late: attempts, and their pause.
const RING_ATTEMPTS_MAX: u32 = 10;
const RING_RETRY_NS: u64 = 100_000_000;

/// Looks at all of it. Makes two small rings and ends them; raises this process's soft limits, as the server does.
pub fn look() -> Vec<Item> {
    let asked = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let (release, disabled) = (asked("osrelease"), asked("io_uring_disabled"));
    let ring = ring();
    let kernel = kernel(release.trim(), ring.state == State::Enabled);
    let failed = rlimits::io_uring().err().map(|error| error.to_string());
    let io_uring = io_uring(disabled.trim(), failed);
    vec![kernel, io_uring, ring, memlock(), descriptors(), clients(), cores(), install()]
}

/// The number does not decide: distributions bring back to older kernels what is new, and the server asks for the rings.
fn kernel(release: &str, has_ring: bool) -> Item {
    let (major, minor) = KERNEL_FIRST;
    let is_new = version(release) >= Some(KERNEL_FIRST);
    let reason = match is_new || !has_ring {
        true => "The first with rings that do their work when the shard asks (DEFER_TASKRUN).",
        false => "It is older, but has all that a shard's ring asks for.",
    };
    Item {
        name: "kernel".to_owned(),
        required: true,
        state: if is_new || has_ring { State::Enabled } else { State::Unsupported },
        now: Some(release.to_owned()).filter(|release| !release.is_empty()),
        wanted: format!("at least {major}.{minor}"),
        reason: reason.to_owned(),
    }
}

/// Major and minor of a kernel release; `None` for what is none.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// `failed`: why this process has none.
fn io_uring(disabled: &str, failed: Option<String>) -> Item {
    let could_be = matches!(disabled, "1" | "2");
    Item {
        name: "io_uring".to_owned(),
        required: true,
        state: match failed {
            None => State::Enabled,
            Some(_) if could_be => State::Supported,
            Some(_) => State::Unsupported,
        },
        now: Some(if could_be { format!("io_uring_disabled={disabled}") } else { "on".to_owned() })
            .filter(|_| could_be || failed.is_none()),
        wanted: "on".to_owned(),
        reason: failed.unwrap_or_else(|| match disabled {
            // Only who has CAP_SYS_ADMIN, or is of that group, comes here.
            "1" => "This process may use it; a service without capabilities, as the shipped unit's, may not: `sysctl -w \
                    kernel.io_uring_disabled=0`, or run it in kernel.io_uring_group."
                .to_owned(),
            _ => "All of a shard's sockets are served through it.".to_owned(),
        }),
    }
}

/// The ring that each shard has, with the least it may hold.
fn ring() -> Item {
    let mut attempts = 0;
    let made = loop {
        match eventfd().and_then(|doorbell| DataRing::new(RING, doorbell)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && attempts < RING_ATTEMPTS_MAX => {
                attempts += 1;
                clock::sleep_ns(RING_RETRY_NS);
            }
            made => break made.map(drop),
        }
    };
    let (state, reason) = match made {
        Ok(()) => (
            State::Enabled,
            "One for each shard: multishot receive needs the buffers, SENDs the files.".to_owned(),
        ),
        Err(error) => (State::Unsupported, format!("A shard's ring cannot be made: {error}")),
    };
    Item {
        name: "io_uring ring".to_owned(),
        required: true,
        state,
        now: None,
        wanted: "registered files, provided buffers".to_owned(),
        reason,
    }
}

fn memlock() -> Item {
    let failed = rlimits::memlock().err().map(|error| error.to_string());
    Item {
        name: "RLIMIT_MEMLOCK".to_owned(),
        required: true,
        state: if failed.is_none() { State::Enabled } else { State::Supported },
        now: hard(Resource::RLIMIT_MEMLOCK).map(limit),
        wanted: format!("at least {MEMLOCK_BYTES_MIN}"),
        reason: failed
            .unwrap_or_else(|| "Bytes: ring memory is charged to the user as locked memory.".to_owned()),
    }
}

fn descriptors() -> Item {
    let failed = rlimits::descriptors(None).err().map(|error| error.to_string());
    Item {
        name: "RLIMIT_NOFILE".to_owned(),
        required: true,
        state: if failed.is_none() { State::Enabled } else { State::Supported },
        now: hard(Resource::RLIMIT_NOFILE).map(limit),
        wanted: format!("at least {}", DESCRIPTOR_RESERVE + 1),
        reason: failed.unwrap_or_else(|| {
            format!("A descriptor for each client as it comes in, and {DESCRIPTOR_RESERVE} besides.")
        }),
    }
}

/// Whether the descriptors are enough for as many clients as are served unless fewer are asked for.
fn clients() -> Item {
    let clients = rlimits::descriptors(None).unwrap_or(0);
    Item {
        name: "clients at once".to_owned(),
        required: false,
        state: if clients >= CLIENTS_MAX_DEFAULT { State::Enabled } else { State::Supported },
        now: Some(clients.to_string()),
        wanted: format!("at least {CLIENTS_MAX_DEFAULT}"),
        reason: "As many as the descriptor limit allows, or --max-clients: LimitNOFILE= in the unit, or `ulimit -n`."
            .to_owned(),
    }
}

fn cores() -> Item {
    let cores: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    Item {
        name: "cores".to_owned(),
        required: true,
        state: if cores.is_empty() { State::Unsupported } else { State::Enabled },
        now: Some(ranges(cores)).filter(|cores| !cores.is_empty()),
        wanted: "at least one".to_owned(),
        reason: "Those this process may use: a shard is pinned to each, or to those of --cores.".to_owned(),
    }
}

/// What the kernel has from 6.8 on.
fn install() -> Item {
    let mut probe = Probe::new();
    let probed = IoUring::new(1).and_then(|ring| ring.submitter().register_probe(&mut probe));
    let is_there = probed.is_ok() && probe.is_supported(opcode::FixedFdInstall::CODE);
    Item {
        name: "addresses of sessions".to_owned(),
        required: false,
        state: if is_there { State::Enabled } else { State::Unsupported },
        now: None,
        wanted: format!("Linux {INSTALL_FIRST}"),
        reason: "/v1/sessions has address and round trip only where the ring gives a descriptor back (FIXED_FD_INSTALL)."
            .to_owned(),
    }
}

/// The hard limit, up to which the server raises its own.
fn hard(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(_, hard)| hard)
}

fn limit(value: u64) -> String {
    if value == RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() }
}

/// As --cores takes them: 0-3,8.
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
    fn a_kernel_is_judged_by_its_first_two_numbers() {
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
    fn an_older_kernel_that_has_the_ring_is_good() {
        for (release, has_ring, state) in [
            ("6.1.0", true, State::Enabled),
            ("6.1.0", false, State::Enabled),
            ("5.14.0-503.el9", true, State::Enabled),
            ("5.14.0-503.el9", false, State::Unsupported),
        ] {
            assert_eq!(kernel(release, has_ring).state, state, "{release}, {has_ring}");
        }
    }

    #[test]
    fn io_uring_for_the_privileged_is_told() {
        let privileged = io_uring("1", None);
        assert_eq!(privileged.state, State::Enabled);
        assert!(privileged.reason.contains("a service without capabilities"), "{privileged:?}");
        for (disabled, failed, state) in [
            ("0", None, State::Enabled),
            ("1", Some("x"), State::Supported),
            ("", Some("x"), State::Unsupported),
        ] {
            let item = io_uring(disabled, failed.map(str::to_owned));
            assert_eq!(item.state, state, "{item:?}");
            assert!(!item.reason.contains("a service"), "{item:?}");
        }
    }

    #[test]
    fn cores_are_written_as_they_are_typed() {
        for (cores, wanted) in
            [(&[][..], ""), (&[3], "3"), (&[0, 1], "0-1"), (&[8, 0, 1, 2, 5], "0-2,5,8"), (&[4, 4, 5], "4-5")]
        {
            assert_eq!(ranges(cores.to_vec()), wanted);
        }
    }

    #[test]
    fn where_the_tests_run_the_server_runs() {
        let items = look();
        let missing: Vec<_> = items.iter().filter(|item| item.is_missing()).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(items.iter().filter(|item| item.required).count() >= 6);
    }
}
