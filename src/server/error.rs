//! Errors that prevent the server from starting or stop it. Each is one line: the cause and the remedy.

use std::{fmt, io, path::PathBuf};

use crate::config::listener::Address;

/// Why the server cannot start or continue, for the operator.
#[derive(Debug)]
pub enum StartupError {
    /// io_uring cannot be used, with the kernel's answer.
    IoUring(io::Error, &'static str),
    /// RLIMIT_MEMLOCK is too low. Contains the limit and the requirement, in bytes, and the number of shards.
    Memlock(u64, u64, u16),
    /// RLIMIT_NOFILE is too low. Contains the limit, the configured clients, and the descriptors that they need.
    Descriptors(u64, usize, u64),
    /// Listening on an address fails. Contains the listener's name, the address and the cause.
    Listen(String, Address, io::Error),
    /// A socket passed by the service manager cannot be used. Contains the socket and the reason.
    Passed(String),
    /// The cores available to this process cannot be determined.
    NoCores,
    /// All errors in the options and the file; at least one.
    Configuration(Vec<Problem>),
    /// Certificates or keys of listeners cannot be used. Contains what is wrong with each; at least one.
    Tls(Vec<String>),
    /// The admin listener cannot be started.
    Admin(io::Error),
    /// A thread or executor cannot be created.
    Executor(String),
    /// A signal stopped the server while it was starting. Contains its name.
    StoppedAtStart(&'static str),
    /// A source cannot continue.
    Source(String),
    /// Shards have failed. Contains which ones, and why.
    Shard(String),
    /// A thread other than a shard's or a source's has ended. Contains which one, and why.
    Thread(&'static str, String),
}

/// An error in one option or one line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, if the error is in it.
    pub file: Option<PathBuf>,
    /// Line number, if the error is in one line.
    pub line: Option<usize>,
    /// The option as the operator wrote it: a flag, a variable or a key; empty for the whole file.
    pub named: String,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}, line {line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, _) => {}
        }
        match self.named.is_empty() {
            true => write!(f, "{}", self.text),
            false => write!(f, "{}: {}", self.named, self.text),
        }
    }
}

/// Exit status if something on the machine prevented serving: another start may succeed.
const EXIT_FAILED: u8 = 1;
/// Exit status if every start would fail until the options or the file are corrected; the same as clap's. The unit lists it in
/// RestartPreventExitStatus=.
const EXIT_CONFIGURATION: u8 = 2;

impl StartupError {
    /// Exit status of the process.
    pub fn exit_status(&self) -> u8 {
        match self {
            StartupError::Configuration(_) => EXIT_CONFIGURATION,
            // Stopped on request: for a service manager, this is not a failure.
            StartupError::StoppedAtStart(_) => 0,
            _ => EXIT_FAILED,
        }
    }
}

impl fmt::Display for StartupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartupError::IoUring(error, remedy) => write!(f, "io_uring cannot be used: {error}; {remedy}"),
            StartupError::Memlock(have, need, shards) => write!(
                f,
                "memlock limit too low: {have} bytes, at least {need} needed (shards: {shards}); set LimitMEMLOCK=infinity in \
                 the unit or `ulimit -l unlimited`, or lower --shards"
            ),
            StartupError::Descriptors(have, clients, need) => write!(
                f,
                "descriptor limit too low: {have}, but {clients} clients need {need}; raise LimitNOFILE (`ulimit -n`) or \
                 lower --max-clients"
            ),
            StartupError::Listen(named, address, error) if error.kind() == io::ErrorKind::AddrInUse => {
                let list = if address.tcp().is_some() { "ss -ltnp" } else { "ss -lxp" };
                write!(
                    f,
                    "{address} is in use ({named}); stop the program that listens there (`{list}` lists it), or choose another address"
                )
            }
            StartupError::Listen(named, address, error) => {
                write!(f, "cannot listen on {address} ({named}): {error}")
            }
            StartupError::Passed(text) => {
                write!(f, "a socket that the service manager passed cannot be used: {text}")
            }
            StartupError::NoCores => {
                write!(f, "cannot determine the cores available to this process; set them with --cores")
            }
            StartupError::Configuration(problems) => {
                let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
            StartupError::Tls(problems) => f.write_str(&problems.join("\n")),
            StartupError::Admin(error) => {
                write!(f, "cannot start the admin listener: {error}; --no-admin starts the server without it")
            }
            StartupError::StoppedAtStart(signal) => {
                write!(f, "{signal}: stopped before the start was complete")
            }
            StartupError::Executor(text) => write!(f, "cannot start a shard: {text}"),
            StartupError::Source(text) => write!(f, "{text}"),
            StartupError::Shard(text) => write!(f, "{text}"),
            StartupError::Thread(name, text) => write!(f, "the {name} thread has ended: {text}"),
        }
    }
}

impl std::error::Error for StartupError {}
