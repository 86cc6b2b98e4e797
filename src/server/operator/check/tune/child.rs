//! `tickcast-tune check --json` as a child: run within bounds, understood.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    path::Path,
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
use serde::Deserialize;

use super::{Item, State};
use crate::clock;

pub(super) const NAME: &str = "tickcast-tune";
/// How long it may take: it takes a quarter of a second on two cores with one NIC, and a call of ethtool for each NIC
/// more.
pub const RUN_NS_MAX: u64 = 20_000_000_000;
/// What it may say: a line is some 250 bytes, and a NIC of 128 queues has 400.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// What of its complaints is read.
const ERRORS_BYTES_MAX: usize = 4 << 10;
/// Between two looks at whether it has ended.
const LOOK_AGAIN_NS: u64 = 2_000_000;

/// A line of its output.
#[derive(Debug, Deserialize)]
struct Line {
    name: String,
    state: State,
    now: Option<String>,
    wanted: String,
    reason: String,
}

/// What a run said, and its exit status.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) output: Vec<u8>,
    pub(super) errors: Vec<u8>,
    /// `None`: a signal ended it.
    pub(super) code: Option<i32>,
}

/// What the tool says of this machine. Where it cannot say it, an item that says why.
pub fn check(tool: &Path) -> Vec<Item> {
    run(Command::new(tool).args(["check", "--json"]), RUN_NS_MAX)
        .and_then(understood)
        .unwrap_or_else(|why| vec![itself(format!("{}: {why}", tool.display()))])
}

/// Said where there is no tool.
pub fn absent() -> Item {
    itself(format!(
        "not found: it comes with the package, and with scripts/install.sh, in lib/tickcast/tuning; or name it with --tune \
         PATH ({NAME} of the source tree is in tuning/)"
    ))
}

/// Said where there is one that others may have put there.
pub fn open_to_others(tool: &Path) -> Item {
    itself(format!(
        "{}: found, but others may write to it: name it with --tune PATH if it is the one you mean (it, and the folders \
         that it shares with this program, belong to root or to you, and only their owner may write)",
        tool.display()
    ))
}

fn itself(reason: String) -> Item {
    let wanted = "says what is worth setting".to_owned();
    Item { name: NAME.to_owned(), required: false, state: State::Unsupported, now: None, wanted, reason }
}

/// Runs a command to its end, or to the end of its time or of what it may say, or until a signal ends this process: then it
/// is ended. What it has started and left behind is ended in any case.
///
/// # Errors
/// It could not be started, or was ended: why.
pub(super) fn run(command: &mut Command, run_ns_max: u64) -> Result<Said, String> {
    let deadline_ns = clock::monotonic_ns() + run_ns_max;
    // A process group of its own, so that what it starts can be ended with it. So Ctrl-C does not reach it, and what ends this
    // process is held back until that one is ended. (A child starts with no signal held back.)
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let signals = Signals::hold_back().map_err(|error| format!("signals cannot be waited for: {error}"))?;
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let said = listen(&mut child, &signals, deadline_ns);
    if said.is_err() {
        end(&child);
        let _ = child.wait();
    }
    said.map_err(|why| match why {
        Ended::Late => format!("did not end within {} s", run_ns_max / 1_000_000_000),
        Ended::Loud => format!("says more than {OUTPUT_BYTES_MAX} bytes"),
        Ended::Deaf(error) => format!("cannot be listened to: {error}"),
        Ended::Signal(signal) => {
            drop(signals);
            // What it does by itself: it ends this process, unless whoever started it has seen to something else.
            let _ = raise(signal);
            format!("was ended by {signal}")
        }
    })
}

/// Ends a child with all that is in its group. Only while it has not been waited for: until then the number is this child's.
fn end(child: &Child) {
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
}

/// The signals by which people and service managers end a process, held back on this thread while it lives.
struct Signals {
    held: SignalFd,
    before: SigSet,
}

impl Signals {
    fn hold_back() -> nix::Result<Signals> {
        let ours = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
        let held = SignalFd::with_flags(&ours, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let before = SigSet::thread_get_mask()?;
        ours.thread_block()?;
        Ok(Signals { held, before })
    }

    fn came(&self) -> Option<Signal> {
        let signal = self.held.read_signal().ok()??;
        Signal::try_from(signal.ssi_signo as i32).ok()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// Why a run is ended before it has ended.
enum Ended {
    Late,
    Loud,
    Deaf(io::Error),
    Signal(Signal),
}

fn listen(child: &mut Child, signals: &Signals, deadline_ns: u64) -> Result<Said, Ended> {
    let heard = read(child.stdout.take(), OUTPUT_BYTES_MAX).map_err(Ended::Deaf)?;
    let errors = read(child.stderr.take(), ERRORS_BYTES_MAX).map_err(Ended::Deaf)?;
    let mut output = None;
    while !has_ended(child) {
        if let Some(signal) = signals.came() {
            return Err(Ended::Signal(signal));
        }
        output = output.or_else(|| heard.try_recv().ok());
        if output.as_deref().is_some_and(is_loud) {
            return Err(Ended::Loud);
        }
        if clock::monotonic_ns() >= deadline_ns {
            return Err(Ended::Late);
        }
        clock::sleep_ns(LOOK_AGAIN_NS);
    }
    // What it has left behind would hold the pipes.
    end(child);
    let status = child.wait().map_err(Ended::Deaf)?;
    let left = || Duration::from_nanos(deadline_ns.saturating_sub(clock::monotonic_ns()));
    let output = match output {
        Some(output) => output,
        None => heard.recv_timeout(left()).map_err(|_| Ended::Late)?,
    };
    if is_loud(&output) {
        return Err(Ended::Loud);
    }
    let errors = errors.recv_timeout(left()).unwrap_or_default();
    Ok(Said { output, errors, code: status.code() })
}

fn is_loud(output: &[u8]) -> bool {
    output.len() > OUTPUT_BYTES_MAX
}

/// Whether it has ended; it is not waited for. What cannot be known is found out by waiting.
fn has_ended(child: &Child) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(Pid::from_raw(child.id() as i32)), flags), Ok(WaitStatus::StillAlive))
}

/// Reads to the end, or one byte past the bound, on a thread: what is left of a process that holds the pipe must not hold
/// this one.
fn read(pipe: Option<impl Read + Send + 'static>, bytes_max: usize) -> io::Result<Receiver<Vec<u8>>> {
    let (said, receiver) = channel();
    thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error counts.
            let _ = pipe.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
        }
        let _ = said.send(bytes);
    })?;
    Ok(receiver)
}

/// The items of a run.
///
/// # Errors
/// It failed, or said what is no item: what.
pub(super) fn understood(said: Said) -> Result<Vec<Item>, String> {
    // 1: something could be set.
    if !matches!(said.code, Some(0 | 1)) {
        let errors = String::from_utf8_lossy(&said.errors);
        let first = errors.lines().next().unwrap_or("it does not say why").to_owned();
        let how = said.code.map_or("a signal".to_owned(), |code| format!("exit status {code}"));
        return Err(format!("ended with {how}: {first}"));
    }
    let text = String::from_utf8_lossy(&said.output);
    let item = |(at, line): (usize, &str)| {
        let Line { name, state, now, wanted, reason } = serde_json::from_str(line)
            .map_err(|error| format!("line {} of its answer is not understood: {error}", at + 1))?;
        Ok(Item { name, required: false, state, now, wanted, reason })
    };
    text.lines().enumerate().map(item).collect()
}

#[cfg(test)]
mod tests;
