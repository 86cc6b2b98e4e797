//! The command line as clap parses it. [`crate::config`] interprets it.

pub mod old;
pub mod pages;
pub mod serve;
pub mod values;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

pub use self::serve::ServeArgs;
use crate::{
    commands::{ProcessArgs, PubArgs, SubArgs},
    operator::{check::CheckArgs, top::TopArgs},
};

/// Fans live ticks out to tens of thousands of TCP and WebSocket clients, one pinned io_uring thread per core.
#[derive(Clone, Debug, Parser)]
#[command(name = "tickcast", version, propagate_version = true, term_width = 0)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommand.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Start the server: fan out ticks from clients, the simulator, a capture or an ECG
    Serve(Box<ServeArgs>),
    /// Subscribe to topics and print their ticks
    Sub(SubArgs),
    /// Publish one tick, or each line of standard input
    Pub(PubArgs),
    /// Analyse a stream and publish the results
    Process(ProcessArgs),
    /// Check whether this machine can run the server, and suggest settings; changes nothing
    Check(CheckArgs),
    /// Watch a running server: shards, rates, latencies, topics, slow sessions
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
