//! `tickcast sub` and `tickcast pub`.

mod append;
mod lines;
mod process;
mod publish;
mod subscribe;

use std::{fmt, io, path::PathBuf};

use tickcast_client::{Address, Client, ClientError, SessionOptions};
use tickcast_ecg::FileError;

pub use self::{
    process::{EcgArgs, ProcessArgs, Processor, process, process_file},
    publish::{PubArgs, publish, publish_from},
    subscribe::{Beginning, SubArgs, subscribe, subscribe_to},
};

/// Why a command failed. Its text says what to do.
#[derive(Debug)]
pub enum CommandError {
    /// The connection, or what came over it.
    Client(ClientError),
    /// The server refused the request: its words.
    Refused {
        /// What was asked for.
        what: String,
        /// The server's words.
        text: String,
        /// A [`tickcast_proto::ErrorCode`].
        code: u16,
    },
    /// Lines that the server refused or that could not be sent; each was reported as it happened.
    LinesRefused {
        /// How many.
        refused: u64,
        /// Lines read in all.
        lines: u64,
    },
    /// Standard input could not be read.
    Input(io::Error),
    /// The output could not be written.
    Output(io::Error),
    /// A file of a record cannot be used.
    File(FileError),
    /// The signals that end the command cannot be awaited.
    Signals(io::Error),
    /// The file to append to cannot be used.
    Append {
        /// The file.
        path: PathBuf,
        /// Why.
        text: String,
    },
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Client(error) => write!(f, "{error}"),
            CommandError::Refused { what, text, code } => {
                write!(f, "the server refuses {what}: {text} (code {code})")
            }
            CommandError::LinesRefused { refused, lines } => {
                write!(f, "{refused} of {lines} lines were not published; the reasons are above")
            }
            CommandError::Input(error) => write!(f, "cannot read standard input: {error}"),
            CommandError::Output(error) => write!(f, "cannot write the output: {error}"),
            CommandError::File(error) => write!(f, "{error}"),
            CommandError::Signals(error) => write!(f, "cannot wait for signals: {error}"),
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

/// Connects, as somebody if an identity is given.
fn connect(address: &Address, client: &Option<String>) -> Result<Client, ClientError> {
    Client::connect_with(address, &session_options(address, client))
}

fn session_options(address: &Address, client: &Option<String>) -> SessionOptions {
    let client = client.clone().unwrap_or_default();
    SessionOptions { client, ..address.session_options() }
}

#[cfg(test)]
mod tests;
