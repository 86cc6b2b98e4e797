//! `tickcast top`: a live view of a running server in the terminal.
//!
//! [`run`] owns the terminal, the clock and the connection. The other modules are functions of plain values: responses of the
//! admin listener in, text and cells out.
//!
//! ```text
//!  responses --> figures (rates, from two polls) --> grid (columns that fit) --> view (a screen) or text (--once)
//!  keys ------> model (what to show, and whether the server responds) -----------^
//! ```

mod budgets;
mod client;
pub mod figures;
pub mod format;
pub mod grid;
mod job_control;
pub mod keys;
pub mod model;
pub mod responses;
pub mod run;
mod sinks;
mod sources;
mod tenants;
pub mod text;
mod token;
pub mod view;

use std::{fmt, io, path::PathBuf, str::FromStr};

use crate::{
    cli::values::Time,
    commands::TlsArgs,
    config::listener::tcp_address,
    limits::{TOP_INTERVAL_MS_DEFAULT, TOP_INTERVAL_MS_HIGHEST, TOP_INTERVAL_MS_LOWEST},
};
use tickcast_proto::units::UnitError;

/// Options of `tickcast top`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopArgs {
    /// Address of the server's admin listener, which `tickcast serve` prints as admin=; https://HOST:PORT if it has TLS
    #[arg(
        long,
        env = "TICKCAST_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9490",
        value_parser = AdminAddress::from_str
    )]
    pub admin: AdminAddress,
    /// Refresh interval, 100ms to 1m; rates and latencies cover one interval
    #[arg(
        long,
        alias = "interval-ms",
        value_name = "TIME",
        default_value_t = Time::from_ms(TOP_INTERVAL_MS_DEFAULT),
        value_parser = interval
    )]
    pub interval: Time,
    /// Poll twice, one interval apart, print the result as text, and exit; works without a terminal
    #[arg(long)]
    pub once: bool,
    /// File with an operator's token, if the listener needs one [default: the token in TICKCAST_TOKEN]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Where an admin listener is, and whether it has TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAddress {
    /// `HOST:PORT`
    host: String,
    is_tls: bool,
}

impl AdminAddress {
    /// Whether its port is 0, where nothing listens.
    fn is_unset(&self) -> bool {
        self.host.ends_with(":0")
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    /// Parses `IP:PORT`, `localhost:PORT`, and `http://HOST:PORT` or `https://HOST:PORT`, where HOST may be a name.
    fn from_str(text: &str) -> Result<AdminAddress, String> {
        let (is_tls, host) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => {
                let host = tcp_address(text)?.to_string();
                return Ok(AdminAddress { host, is_tls: false });
            }
        };
        let host = host.strip_suffix('/').unwrap_or(host);
        let is_address = host.rsplit_once(':').is_some_and(|(name, port)| {
            let is_clean = |c: char| c.is_alphanumeric() || ".-_[]:%".contains(c);
            !name.is_empty() && name.chars().all(is_clean) && port.parse::<u16>().is_ok()
        });
        match is_address {
            true => Ok(AdminAddress { host: host.into(), is_tls }),
            false => Err("not an address: write IP:PORT, http://HOST:PORT or https://HOST:PORT".into()),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_tls { "https://" } else { "" }, self.host)
    }
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
    Port(AdminAddress),
    /// Standard output is not a terminal.
    NotATerminal,
    /// The terminal has no screen (TERM=dumb).
    DumbTerminal,
    /// The server at this address does not respond, and why.
    Unreachable(AdminAddress, String),
    /// A TLS file cannot be used. Contains the file and the reason.
    Tls(String),
    /// This file or variable has no token. Contains the reason.
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
            TopError::Tls(reason) => write!(f, "{reason}"),
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
