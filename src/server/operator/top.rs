//! `tickcast top`: a live view of a running server in the terminal.
//!
//! [`run`] owns the terminal, the clock and the connection. The other modules are functions of plain values: responses of the
//! admin listener in, text and cells out.
//!
//! ```text
//!  responses --> figures (rates, from two polls) --> grid (columns that fit) --> view (a screen) or text (--once)
//!  keys ------> model (what to show, and whether the server responds) -----------^
//! ```

mod client;
pub mod figures;
pub mod format;
pub mod grid;
mod job_control;
pub mod keys;
pub mod model;
pub mod responses;
pub mod run;
pub mod text;
mod token;
pub mod view;

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use crate::{
    cli::values::Time,
    config::listener::tcp_address,
    limits::{TOP_INTERVAL_MS_DEFAULT, TOP_INTERVAL_MS_HIGHEST, TOP_INTERVAL_MS_LOWEST},
};
use tickcast_proto::units::UnitError;

/// Options of `tickcast top`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopArgs {
    /// Address of the server's admin listener, which `tickcast serve` prints as admin=
    #[arg(long, env = "TICKCAST_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:9490", value_parser = tcp_address)]
    pub admin: SocketAddr,
    /// Refresh interval, 100ms to 1m; rates and latencies cover one interval
    #[arg(
        long,
        alias = "interval-ms",
        value_name = "TIME",
        default_value_t = Time::from_ms(TOP_INTERVAL_MS_DEFAULT),
        value_parser = interval
    )]
    pub interval: Time,
    /// Poll twice, one interval apart, print the result as text and exit; needs no terminal
    #[arg(long)]
    pub once: bool,
    /// File with the token of an operator, if the listener needs one; without it, the environment variable TICKCAST_TOKEN
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Parses an interval, in whole milliseconds as they are shown.
fn interval(text: &str) -> Result<Time, String> {
    let time: Time = text.parse().map_err(|error: UnitError| error.to_string())?;
    let (lowest, highest) = (Time::from_ms(TOP_INTERVAL_MS_LOWEST), Time::from_ms(TOP_INTERVAL_MS_HIGHEST));
    match lowest <= time && time <= highest {
        true => Ok(Time::from_ms(time.ns / 1_000_000)),
        false => Err(format!("must be {lowest} to {highest}")),
    }
}

/// Why `tickcast top` cannot start or continue. The message says what to do.
#[derive(Debug)]
pub enum TopError {
    /// The address has port 0.
    Port(SocketAddr),
    /// Standard output is not a terminal.
    NotATerminal,
    /// The terminal has no screen (TERM=dumb).
    DumbTerminal,
    /// The server at this address does not respond, and why.
    Unreachable(SocketAddr, String),
    /// There is no token in this file or variable, and why.
    Token(String),
    /// The terminal cannot be used.
    Terminal(io::Error),
    /// Signals cannot be handled.
    Signals(io::Error),
    /// This thread cannot be started, or has panicked.
    Thread(&'static str),
    /// Standard output cannot be written.
    Output(io::Error),
}

impl fmt::Display for TopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopError::Port(address) => write!(
                f,
                "--admin {address}: no server listens on port 0; use the address that `tickcast serve` prints as admin="
            ),
            TopError::NotATerminal => {
                write!(f, "standard output is not a terminal; use `tickcast top --once` to print text")
            }
            TopError::DumbTerminal => {
                write!(f, "the terminal has no screen (TERM=dumb); use `tickcast top --once` to print text")
            }
            TopError::Unreachable(address, reason) => write!(
                f,
                "cannot query the admin listener at {address}: {reason}; start `tickcast serve`, or set --admin to the \
                 address that it prints as admin="
            ),
            TopError::Token(reason) => write!(f, "{reason}"),
            TopError::Terminal(error) => write!(f, "cannot use the terminal: {error}; try --once"),
            TopError::Signals(error) => write!(f, "cannot handle signals: {error}"),
            TopError::Thread(name) => write!(
                f,
                "thread {name} panicked (see the message above) or cannot start (see ulimit -u); run tickcast top again"
            ),
            TopError::Output(error) => write!(f, "cannot write to standard output: {error}"),
        }
    }
}

impl std::error::Error for TopError {}
