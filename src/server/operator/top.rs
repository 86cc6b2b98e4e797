//! `tickcast top`: a running server as a terminal shows it, as functions of plain values: answers of the admin listener in,
//! text and cells out. [`run`] has the terminal, the clock and the connection.
//!
//! ```text
//!  answers --> figures (of two answers: rates) --> grid (columns that fit) --> view (a screen) or text (--once)
//!  keys -----> model (what is shown of them, and whether the server still answers) --^
//! ```

pub mod answers;
mod ask;
pub mod figures;
pub mod format;
pub mod grid;
pub mod keys;
pub mod model;
pub mod run;
pub mod text;
pub mod view;

use std::{fmt, io, net::SocketAddr};

use crate::{
    cli::values::Time,
    limits::{TOP_INTERVAL_MS_DEFAULT, TOP_INTERVAL_MS_HIGHEST, TOP_INTERVAL_MS_LOWEST},
};
use tickcast_proto::units::UnitError;

/// Options of `tickcast top`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopArgs {
    /// The server's admin listener: the address that `tickcast serve` prints as admin=
    #[arg(long, env = "TICKCAST_ADMIN", value_name = "ADDR", default_value = "127.0.0.1:9490")]
    pub admin: SocketAddr,
    /// Time between two looks, 100ms to 1m; rates and latencies are of that time
    #[arg(
        long,
        alias = "interval-ms",
        value_name = "TIME",
        default_value_t = Time::from_ms(TOP_INTERVAL_MS_DEFAULT),
        value_parser = interval
    )]
    pub interval: Time,
    /// Look twice, an interval apart, print what there is as text and end: for scripts, and without a terminal
    #[arg(long)]
    pub once: bool,
}

/// Whole milliseconds: what is shown of the interval.
fn interval(text: &str) -> Result<Time, String> {
    let time: Time = text.parse().map_err(|error: UnitError| error.to_string())?;
    let (lowest, highest) = (Time::from_ms(TOP_INTERVAL_MS_LOWEST), Time::from_ms(TOP_INTERVAL_MS_HIGHEST));
    match lowest <= time && time <= highest {
        true => Ok(Time::from_ms(time.ns / 1_000_000)),
        false => Err(format!("must be {lowest} to {highest}")),
    }
}

/// Why `tickcast top` does not start, or does not go on. Its text says what to do.
#[derive(Debug)]
pub enum TopError {
    /// An address that nobody can listen at.
    Port(SocketAddr),
    /// Standard output is no terminal.
    NotATerminal,
    /// The server does not answer: where, and why.
    Unreachable(SocketAddr, String),
    /// The terminal cannot be used.
    Terminal(io::Error),
    /// The signals that end it cannot be awaited.
    Signals(io::Error),
    /// A thread cannot be made, or has ended.
    Thread(&'static str),
    /// The output cannot be written.
    Output(io::Error),
}

impl fmt::Display for TopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopError::Port(address) => write!(
                f,
                "--admin {address}: no server has port 0; give the address that `tickcast serve` prints as admin="
            ),
            TopError::NotATerminal => {
                write!(f, "standard output is no terminal; `tickcast top --once` prints text once")
            }
            TopError::Unreachable(address, reason) => write!(
                f,
                "no answer from an admin listener at {address}: {reason}; start `tickcast serve`, or give the address that \
                 it prints as admin= with --admin"
            ),
            TopError::Terminal(error) => write!(f, "cannot use the terminal: {error}; try --once"),
            TopError::Signals(error) => write!(f, "cannot wait for signals: {error}"),
            TopError::Thread(name) => write!(
                f,
                "the thread {name} has ended, with its reason above, or cannot be made (ulimit -u); start it again"
            ),
            TopError::Output(error) => write!(f, "cannot write the output: {error}"),
        }
    }
}

impl std::error::Error for TopError {}
