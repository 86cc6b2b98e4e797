//! The client commands: `tickcast sub`, `tickcast pub` and `tickcast process`.

mod append;
mod lines;
mod process;
mod publish;
mod subscribe;
mod tls;
mod token;

use std::{fmt, io, net::IpAddr, path::PathBuf};

use tickcast_client::{Address, ClientError, ClientToken, ConnectOptions};
use tickcast_ecg::FileError;
use tickcast_proto::limits::TOKEN_BYTES_MAX;

pub use self::{
    process::{EcgArgs, ProcessArgs, Processor, process, process_file},
    publish::{PubArgs, publish, publish_from},
    subscribe::{StartFrom, SubArgs, subscribe, subscribe_to},
    tls::TlsArgs,
    token::{TokenArgs, token},
};

/// The server to connect to, and the identity to use.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// Server: HOST:PORT, ws://HOST:PORT/ws or unix:/path; with TLS tls://HOST:PORT or wss://HOST:PORT/ws
    #[arg(long, value_name = "ADDRESS", env = "TICKCAST_SERVER", default_value = "127.0.0.1:9400")]
    pub server: String,
    /// Identity of this client; the server may close an older connection with the same identity
    #[arg(long, value_name = "ID")]
    pub client: Option<String>,
    /// File with this client's token, read again every second: a new one replaces it; without it, the environment variable TICKCAST_TOKEN
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl ServerArgs {
    /// A server, without an identity.
    pub fn new(server: &str) -> ServerArgs {
        ServerArgs { server: server.into(), client: None, token_file: None, tls: TlsArgs::default() }
    }

    /// What to connect to and how. Warns on standard error if anyone on the network path can read the token.
    fn parse(&self) -> Result<(Address, ConnectOptions), CommandError> {
        let address = Address::parse(&self.server)?;
        let client = self.client.clone().unwrap_or_default();
        let (token, token_file) = (token_variable(self.token_file.is_none())?, self.token_file.clone());
        if (token.is_some() || token_file.is_some()) && !address.is_tls && !is_local(&address.host) {
            ::log::warn!(
                "{}: sends the token without TLS: anyone on the network path can read it",
                self.server
            );
        }
        let tls = self.tls.options();
        let options = ConnectOptions { client, token, token_file, tls, ..address.connect_options() };
        Ok((address, options))
    }
}

/// Environment variable with a token. A token is never on the command line, where every user of the machine could read it.
pub const TOKEN_VARIABLE: &str = "TICKCAST_TOKEN";

/// The token of the environment, unless it is not looked for.
///
/// # Errors
/// It is not a token.
pub fn token_variable(is_wanted: bool) -> Result<Option<ClientToken>, CommandError> {
    let text = std::env::var_os(TOKEN_VARIABLE).filter(|text| is_wanted && !text.is_empty());
    let Some(text) = text else { return Ok(None) };
    let token = text.to_str().and_then(ClientToken::new).ok_or_else(|| {
        CommandError::Token(format!(
            "{TOKEN_VARIABLE}: not a token: it must be 1 to {TOKEN_BYTES_MAX} visible ASCII characters"
        ))
    })?;
    Ok(Some(token))
}

/// Whether an address, as [`Address::host`] has it, is on this machine.
fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let is_loopback = |name: &str| name.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    host.starts_with("unix:") || name == "localhost" || is_loopback(name)
}

/// Why a command failed. The text says what to do.
#[derive(Debug)]
pub enum CommandError {
    /// The connection failed, or the server closed it.
    Client(ClientError),
    /// The server rejected the request.
    Refused {
        /// What was requested.
        what: String,
        /// The server's reason.
        text: String,
        /// A [`tickcast_proto::ErrorCode`].
        code: u16,
    },
    /// Some lines were not published; each was reported as it happened.
    LinesRefused {
        /// Lines that were not published.
        refused: u64,
        /// Lines read in all.
        lines: u64,
    },
    /// Some ticks were not published; each was reported as it happened.
    TicksRefused {
        /// Ticks that the server refused.
        refused: u64,
        /// Ticks sent in all.
        sent: u64,
    },
    /// Standard input cannot be read.
    Input(io::Error),
    /// The output cannot be written.
    Output(io::Error),
    /// A file of a record cannot be used.
    File(FileError),
    /// Signals cannot be handled.
    Signals(io::Error),
    /// A token cannot be made or used.
    Token(String),
    /// The file to append to cannot be used.
    Append {
        /// The file.
        path: PathBuf,
        /// The reason.
        text: String,
    },
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Client(ClientError::Connect { address, error }) => write!(
                f,
                "cannot connect to {address}: {error}; start a server with `tickcast serve`, or name another one \
                 with --server"
            ),
            CommandError::Client(error @ ClientError::Closed { code: 1.., .. }) if error.is_retryable() => {
                write!(f, "{error}; try again")
            }
            CommandError::Client(error) => write!(f, "{error}"),
            CommandError::Refused { what, text, code } => {
                write!(f, "the server rejected {what}: {text} (code {code})")
            }
            CommandError::LinesRefused { refused, lines } => {
                write!(f, "{refused} of {lines} lines were not published; see the reasons above")
            }
            CommandError::TicksRefused { refused, sent } => {
                write!(f, "{refused} of {sent} ticks were not published; see the reasons above")
            }
            CommandError::Input(error) => write!(f, "cannot read standard input: {error}"),
            CommandError::Output(error) => write!(f, "cannot write the output: {error}"),
            CommandError::File(error) => write!(f, "{error}"),
            CommandError::Token(text) => write!(f, "{text}"),
            CommandError::Signals(error) => write!(f, "cannot handle signals: {error}"),
            CommandError::Append { path, text } => write!(f, "cannot append to {}: {text}", path.display()),
        }
    }
}

impl std::error::Error for CommandError {}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> CommandError {
        CommandError::Client(error)
    }
}

/// A number with its noun: `1 tick`, `2 ticks`.
fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
