//! Child processes: waiting with a guard, killing by pid.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    net::SocketAddr,
    ops::{Deref, DerefMut},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Instant,
};

use nix::{
    libc::O_NONBLOCK,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

use super::{GUARD, LOOK_AGAIN, eventually};

/// A named pipe that is full to its last byte, and whose reader stands still. Writers block, as each opens it anew.
pub struct FullPipe {
    path: PathBuf,
    /// Nonblocking.
    reader: File,
}

impl FullPipe {
    /// Creates it and fills it with empty lines.
    pub fn new(name: &str) -> FullPipe {
        let path = std::env::temp_dir().join(format!("tickcast-{}-{name}.fifo", std::process::id()));
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let reader = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
        let mut pipe = FullPipe { path, reader };
        pipe.fill();
        pipe
    }

    /// Fills it to its last byte.
    pub fn fill(&mut self) {
        for size in [4_096, 1] {
            while self.reader.write(&vec![b'\n'; size]).is_ok() {}
        }
    }

    /// The path of the pipe.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An end for a process to write to.
    pub fn writer(&self) -> File {
        OpenOptions::new().write(true).open(&self.path).unwrap()
    }

    /// Waits until a thread of a process is blocked by the pipe.
    pub fn wait_for_a_blocked_writer(&self, pid: u32) {
        eventually("a write to the full pipe", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let mut waits = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("wchan")).ok());
            waits.any(|wait| wait.contains("pipe_write"))
        });
    }

    /// Reads until the text contains `part`.
    pub fn wait_for(&mut self, part: &str) {
        let mut text = Vec::new();
        eventually(&format!("{part:?} in the pipe"), || {
            let mut chunk = [0; 4_096];
            while let Ok(read) = self.reader.read(&mut chunk) {
                text.extend_from_slice(&chunk[..read]);
            }
            String::from_utf8_lossy(&text).contains(part)
        });
    }
}

impl Drop for FullPipe {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A child that is killed when its test fails before it has ended.
pub struct Guarded(pub Child);

impl Deref for Guarded {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// Waits for a child's exit code; `None` for a signal. Kills a child that does not exit in time, and fails the test.
pub fn wait_for_exit(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > GUARD {
            end(child);
            panic!("process {} did not exit", child.id());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Kills a child that is still running.
pub fn end(child: &mut Child) {
    // Not yet waited for, so the pid cannot have been reused.
    if matches!(child.try_wait(), Ok(None)) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Stops a process in its tracks. Returns when all of its threads stand still: until then a busy one goes on for a while.
pub fn suspend(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGSTOP).unwrap();
    // proc(5): the state comes after the name, which is in parentheses.
    let is_stopped = |task: &Path| {
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 't', 'Z', 'X']))
    };
    eventually("all threads have stopped", || {
        let mut tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        tasks.all(|task| is_stopped(&task.path()))
    });
}

/// Lets a process that was stopped go on.
pub fn resume(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGCONT).unwrap();
}

/// Raises this process's soft descriptor limit to the hard one.
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

/// Address of a process's first listening TCP socket, for programs that do not print their port.
pub fn listens_at(pid: u32) -> Option<SocketAddr> {
    let sockets: HashSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    // proc(5): local_address is the second field, the state the fourth, the inode the tenth; 0A is LISTEN.
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let listening = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields[3] == "0A" && sockets.contains(fields[9])).then(|| fields[1].to_owned())
    })?;
    let (address, port) = listening.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    Some(SocketAddr::from((address, u16::from_str_radix(port, 16).ok()?)))
}
