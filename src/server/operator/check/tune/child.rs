//! A child process with a deadline and bounded output.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{SigSet, Signal, killpg, raise},
        signalfd::{SfdFlags, SignalFd},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use crate::clock;

/// Bound of standard output. A line has about 250 bytes, and a NIC with 128 queues has 400 lines.
const STDOUT_BYTES_MAX: usize = 1 << 20;
/// Standard error is truncated to this.
const STDERR_BYTES_MAX: usize = 4 << 10;
/// Pause between two polls of the child.
const POLL_NS: u64 = 2_000_000;

/// A child's output, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// Exit status; `None` if a signal killed it.
    pub(super) code: Option<i32>,
}

/// Runs a command to its end.
/// Kills it at the deadline, when it writes too much, or when a signal is about to end this process. Always kills processes
/// that it leaves behind.
///
/// # Errors
/// Why it could not start or was killed.
pub(super) fn run(command: &mut Command, run_ns_max: u64) -> Result<Output, String> {
    let deadline_ns = clock::monotonic_ns() + run_ns_max;
    // In a process group of its own, so that its children can be killed with it. Ctrl-C does not reach that group, so signals
    // to this process are held back until the child is killed. (A child starts with no signal blocked.)
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let signals = HeldSignals::hold().map_err(|error| format!("cannot hold back signals: {error}"))?;
    let mut child = command.spawn().map_err(|error| format!("cannot start: {error}"))?;
    let output = collect(&mut child, &signals, deadline_ns);
    if output.is_err() {
        kill_group(&child);
        let _ = child.wait();
    }
    output.map_err(|abort| match abort {
        Abort::Deadline => format!("did not finish within {} s", run_ns_max / 1_000_000_000),
        Abort::TooMuchOutput => format!("wrote more than {STDOUT_BYTES_MAX} bytes"),
        Abort::Io(error) => format!("cannot read its output: {error}"),
        Abort::Signal(signal) => {
            drop(signals);
            // Let the signal take its usual effect: it ends this process unless it is ignored.
            let _ = raise(signal);
            format!("was interrupted by {signal}")
        }
    })
}

/// Kills a child and its process group. Must run before the child is reaped: after that its pid may be another process's.
fn kill_group(child: &Child) {
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
}

/// Blocks the signals that usually end a process on this thread, until dropped.
struct HeldSignals {
    fd: SignalFd,
    mask_before: SigSet,
}

impl HeldSignals {
    fn hold() -> nix::Result<HeldSignals> {
        let held = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
        let fd = SignalFd::with_flags(&held, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mask_before = SigSet::thread_get_mask()?;
        held.thread_block()?;
        Ok(HeldSignals { fd, mask_before })
    }

    fn received(&self) -> Option<Signal> {
        let signal = self.fd.read_signal().ok()??;
        Signal::try_from(signal.ssi_signo as i32).ok()
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        let _ = self.mask_before.thread_set_mask();
    }
}

/// Why a run is killed.
enum Abort {
    Deadline,
    TooMuchOutput,
    Io(io::Error),
    Signal(Signal),
}

fn collect(child: &mut Child, signals: &HeldSignals, deadline_ns: u64) -> Result<Output, Abort> {
    let stdout_read = read_in_thread(child.stdout.take(), STDOUT_BYTES_MAX).map_err(Abort::Io)?;
    let stderr_read = read_in_thread(child.stderr.take(), STDERR_BYTES_MAX).map_err(Abort::Io)?;
    let mut stdout = None;
    while !has_exited(child) {
        if let Some(signal) = signals.received() {
            return Err(Abort::Signal(signal));
        }
        stdout = stdout.or_else(|| stdout_read.try_recv().ok());
        if stdout.as_deref().is_some_and(is_too_much) {
            return Err(Abort::TooMuchOutput);
        }
        if clock::monotonic_ns() >= deadline_ns {
            return Err(Abort::Deadline);
        }
        clock::sleep_ns(POLL_NS);
    }
    // Processes it left behind would keep the pipes open.
    kill_group(child);
    let status = child.wait().map_err(Abort::Io)?;
    let time_left = || Duration::from_nanos(deadline_ns.saturating_sub(clock::monotonic_ns()));
    let stdout = match stdout {
        Some(stdout) => stdout,
        None => stdout_read.recv_timeout(time_left()).map_err(|_| Abort::Deadline)?,
    };
    if is_too_much(&stdout) {
        return Err(Abort::TooMuchOutput);
    }
    let stderr = stderr_read.recv_timeout(time_left()).unwrap_or_default();
    Ok(Output { stdout, stderr, code: status.code() })
}

fn is_too_much(stdout: &[u8]) -> bool {
    stdout.len() > STDOUT_BYTES_MAX
}

/// Whether the child has exited, without reaping it. Treats an error as an exit: reaping then reports it.
fn has_exited(child: &Child) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags), Ok(WaitStatus::StillAlive))
}

/// Reads a pipe to its end, or one byte past the bound, on a thread: a leftover process that holds the pipe must not block
/// this one.
fn read_in_thread(
    pipe: Option<impl Read + Send + 'static>,
    bytes_max: usize,
) -> io::Result<Receiver<Vec<u8>>> {
    let (sender, receiver) = channel();
    thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error still counts.
            let _ = pipe.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests;
