//! `tickcast-tune check --json` as a child: found, run within bounds, understood.

use std::{
    env,
    io::Read,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{self, Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;

use super::{Item, State};
use crate::clock;

const NAME: &str = "tickcast-tune";
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

/// The tool that was `named`, else the one that belongs to this program, if it is there.
///
/// # Errors
/// What was named is no program: what to do about it.
pub fn find(named: Option<&Path>) -> Result<Option<PathBuf>, String> {
    match named {
        // Absolute: a bare name would be looked for among the programs of PATH.
        Some(path) if is_program(path) => path::absolute(path).map(Some).map_err(|error| error.to_string()),
        Some(path) => Err(format!("--tune {}: there is no program of that name", path.display())),
        None => Ok(env::current_exe().ok().and_then(|program| find_beside(&program))),
    }
}

/// The tool that belongs to a program at `program`. Only where whoever put the program there put the tool too: a working
/// folder may be anybody's.
fn find_beside(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?;
    let installed = folder.parent().map(|prefix| prefix.join("lib/tickcast/tuning"));
    // target/PROFILE/tickcast of the source tree; tests lie one deeper.
    let source = folder.ancestors().skip(2).take(2).map(|root| root.join("tuning"));
    installed.into_iter().chain(source).map(|folder| folder.join(NAME)).find(|tool| is_program(tool))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
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

fn itself(reason: String) -> Item {
    let wanted = "says what is worth setting".to_owned();
    Item { name: NAME.to_owned(), required: false, state: State::Unsupported, now: None, wanted, reason }
}

/// Runs a command to its end, or to the end of its time or of what it may say: then it is ended, with all that it has
/// started.
///
/// # Errors
/// It could not be started, or was ended: why.
pub(super) fn run(command: &mut Command, run_ns_max: u64) -> Result<Said, String> {
    let deadline_ns = clock::monotonic_ns() + run_ns_max;
    // A process group of its own, so that what it waits for can be ended with it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let said = listen(&mut child, deadline_ns);
    if said.is_err() {
        // Not yet waited for, so the number is still this child's.
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        let _ = child.wait();
    }
    said.map_err(|why| match why {
        Ended::Late => format!("did not end within {} s", run_ns_max / 1_000_000_000),
        Ended::Loud => format!("says more than {OUTPUT_BYTES_MAX} bytes"),
    })
}

/// Why a run is ended before it has ended.
enum Ended {
    Late,
    Loud,
}

fn listen(child: &mut Child, deadline_ns: u64) -> Result<Said, Ended> {
    let output = read(child.stdout.take(), OUTPUT_BYTES_MAX);
    let errors = read(child.stderr.take(), ERRORS_BYTES_MAX);
    let left = || Duration::from_nanos(deadline_ns.saturating_sub(clock::monotonic_ns()));
    let output = output.recv_timeout(left()).map_err(|_| Ended::Late)?;
    if output.len() > OUTPUT_BYTES_MAX {
        return Err(Ended::Loud);
    }
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                // Who still holds standard error may say more; what it complained of is there.
                let errors = errors.recv_timeout(left()).unwrap_or_default();
                return Ok(Said { output, errors, code: status.code() });
            }
            Ok(None) if clock::monotonic_ns() < deadline_ns => clock::sleep_ns(LOOK_AGAIN_NS),
            _ => return Err(Ended::Late),
        }
    }
}

/// Reads to the end, or one byte past the bound, on a thread: what is left of a process that holds the pipe must not hold
/// this one.
fn read(pipe: Option<impl Read + Send + 'static>, bytes_max: usize) -> Receiver<Vec<u8>> {
    let (said, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What was read before an error counts.
            let _ = pipe.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
        }
        let _ = said.send(bytes);
    });
    receiver
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
