//! Child processes: waited for with a guard, ended by pid.

use std::{fs, process::Child, thread, time::Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{GUARD, LOOK_AGAIN};

/// Waits for a child's exit code; `None` for a signal. A child that does not end in time is ended and fails the test.
pub fn wait_for_exit(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > GUARD {
            end(child);
            panic!("process {} did not end", child.id());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Ends a child that has not ended by itself.
pub fn end(child: &mut Child) {
    // Not yet waited for, so the pid is still this child's.
    if matches!(child.try_wait(), Ok(None)) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Raises this process's soft limit of descriptors to the hard one.
pub fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// A process's resident memory.
pub fn rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}
