//! The command line as clap parses it. [`crate::config`] interprets it.

pub mod notes;
pub mod old;
pub mod pages;
pub mod serve;

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub use self::serve::ServeArgs;
use crate::{
    commands::{ProcessArgs, PubArgs, SubArgs, TokenArgs},
    operator::{check::CheckArgs, top::TopArgs},
};
pub use tickcast_common::values;

/// Maximum width of help texts and check results, in columns.
pub const HELP_WIDTH: usize = 100;

/// Fans live ticks out to tens of thousands of TCP and WebSocket clients, one pinned io_uring thread per core.
#[derive(Clone, Debug, Parser)]
#[command(name = "tickcast", version, propagate_version = true, max_term_width = HELP_WIDTH)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses a command line, which may use old option names, and the environment. An empty variable counts as not set, because
    /// compose files and CI pass unset variables as empty text.
    ///
    /// # Errors
    /// Clap's error. `--help` and `--version` are errors too; print their text.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<(Cli, ArgMatches), clap::Error> {
        let mut command = without_empty_variables(notes::in_help(Cli::command(), &notes::NOTES));
        let matches = command.try_get_matches_from_mut(old::words(words))?;
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok((cli, matches))
    }
}

/// The command and its subcommands, without the environment variables that are empty.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_env().and_then(std::env::var_os) {
        Some(value) if value.is_empty() => arg.env(None),
        _ => arg,
    });
    command.mut_subcommands(without_empty_variables)
}

/// The subcommand.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start the server: fan out ticks from clients and sources (NATS, Kafka, Redis, WebSocket feeds, captures)
    Serve(Box<ServeArgs>),
    /// Subscribe to topics and print their ticks
    #[command(mut_arg("cert_key", |arg| arg.visible_alias("key")))]
    Sub(SubArgs),
    /// Publish one tick, or each line of standard input
    Pub(PubArgs),
    /// Analyse a stream and publish the results
    Process(ProcessArgs),
    /// Make a token for clients of a server with authentication
    Token(Box<TokenArgs>),
    /// Check whether this machine can run the server, and suggest settings; changes nothing
    Check(CheckArgs),
    /// Watch a running server: shards, rates, latencies, topics, slow sessions
    #[command(mut_arg("cert_key", |arg| arg.visible_alias("key")))]
    Top(TopArgs),
    /// Print a completion script: tickcast completions bash > ~/.local/share/bash-completion/completions/tickcast
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
    /// Write the man pages to a folder, for packages
    #[command(hide = true)]
    Man {
        /// Folder to write to
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}
