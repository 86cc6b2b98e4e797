//! The server on machines that lack something: a whole CPU, /sys, /proc. As root only: `scripts/test.sh` runs these tests where it can.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::harness::{Server, beside_others, tickcast_after};

/// A control group of the CPU controller, removed when dropped.
struct Group(PathBuf);

impl Group {
    fn below(folder: &Path, name: &str) -> Group {
        let group = Group(folder.join(name));
        fs::create_dir(&group.0).unwrap();
        group
    }

    /// Limits it to half a core.
    fn limit(&self) {
        if self.0.join("cpu.max").exists() {
            return fs::write(self.0.join("cpu.max"), "50000 100000").unwrap();
        }
        fs::write(self.0.join("cpu.cfs_period_us"), "100000").unwrap();
        fs::write(self.0.join("cpu.cfs_quota_us"), "50000").unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs root and the CPU controller of cgroups"]
fn a_cpu_quota_of_the_group_or_of_one_above_limits_the_shards() {
    let _machine = beside_others();
    let v1 = Path::new("/sys/fs/cgroup/cpu");
    let root = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
    let outer = Group::below(root, &format!("tickcast-{}", std::process::id()));
    let inner = Group::below(&outer.0, "inner");
    let started = |options: &[&str]| {
        let mut command = tickcast_after("echo $$ > \"$GROUP/cgroup.procs\"; exec");
        command.env("GROUP", &inner.0).env("RUST_LOG", "info");
        Server::start_command(&mut command, &[&["--no-sim"], options].concat()).stop_cleanly().log
    };
    assert!(!started(&[]).contains("CPU quota"));
    // The group that has the server is not limited itself.
    outer.limit();
    for options in [&[][..], &["--cores", "auto"]] {
        let log = started(options);
        assert!(log.contains("the CPU quota covers 1 of "), "{log}");
        assert!(log.contains(" cores; shards: 1"), "{log}");
    }
    let log = started(&["--shards", "2"]);
    assert!(log.contains("WARN") && log.contains("set --shards 1, or raise the quota"), "{log}");
}

#[test]
#[ignore = "needs root and a mount namespace (unshare -m)"]
fn the_server_needs_neither_sys_nor_proc() {
    let _machine = beside_others();
    for hidden in ["/sys", "/proc", "/sys /proc"] {
        let mounts: String = hidden.split(' ').map(|path| format!("mount -t tmpfs none {path}; ")).collect();
        // The namespace is entered by the shell that becomes the server, so that its pid is the server's.
        let script = format!("exec unshare -m sh -c '{mounts} exec \"$@\"' sh");
        Server::start_command(&mut tickcast_after(&script), &["--no-sim"]).stop_cleanly();
    }
}
