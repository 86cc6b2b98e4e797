//! `tickcast check`: whether the server can run on this machine, and what of the machine is worth setting for it.
//!
//! Two sources, one table: what only this binary knows (the kernel, its io_uring, the limits of this process:
//! [`crate::operator::check::capabilities`]), and what `tickcast-tune check` says, which is read only. The first decides the exit status:
//! the server runs on an untuned machine.

pub mod capabilities;
mod place;
mod table;
mod tool;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde::{Deserialize, Serialize};

use self::place::Found;

/// Exit status where something that the server needs is missing.
const EXIT_MISSING: u8 = 1;
/// Exit status where what was typed cannot be done, as clap's.
const EXIT_USAGE: u8 = 2;

/// Options of `tickcast check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Enabled: it is as it should be. Supported: it could be, and the reason says how or why. Neither: this machine lacks it, and the \
reason says what. Limits are those of this process; a service has its unit's.

Exit status: 0 all that tickcast serve requires is here; 1 something required is missing; 2 the command line is wrong.")]
pub struct CheckArgs {
    /// One JSON object a line: name, required, state (enabled, supported or unsupported), now, wanted, reason
    #[arg(long)]
    pub json: bool,
    /// The tickcast-tune to ask what is worth setting [default: the one installed with this program, or in its source
    /// tree, if nobody else may write to it]
    #[arg(long, env = "TICKCAST_TUNE", value_name = "PATH")]
    pub tune: Option<PathBuf>,
}

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is.
    Enabled,
    /// It could be.
    Supported,
    /// This machine lacks it.
    Unsupported,
}

/// Something looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What is looked at.
    pub name: String,
    /// Whether the server cannot do without it.
    pub required: bool,
    /// Whether it is as it should be.
    pub state: State,
    /// What it is now, if that is known.
    pub now: Option<String>,
    /// What it should be.
    pub wanted: String,
    /// Why it should be so, or what is in the way.
    pub reason: String,
}

/// Looks at this machine, prints what it sees on standard output, and says how the process ends. Changes nothing. Takes as
/// long as `tickcast-tune check` does, 20 s at most: then that is ended, and told.
pub fn run(args: &CheckArgs) -> ExitCode {
    let found = match place::find(args.tune.as_deref()) {
        Ok(found) => found,
        Err(text) => {
            log::error!("{text}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let own = capabilities::look();
    let (tool, machine) = match &found {
        Found::Tool(path) => (Some(&**path), tool::check(path)),
        Found::Open(path) => (None, vec![tool::open_to_others(path)]),
        Found::None => (None, vec![tool::absent()]),
    };
    let summary = table::summary(&own, &machine, tool);
    let items = [own, machine].concat();
    let said = match args.json {
        true => json(&items),
        false => table::table(&items) + "\n" + &summary,
    };
    // A closed standard output is no news about the machine.
    let _ = io::stdout().lock().write_all(said.as_bytes());
    match items.iter().any(Item::is_missing) {
        true => ExitCode::from(EXIT_MISSING),
        false => ExitCode::SUCCESS,
    }
}

impl Item {
    /// Whether the server cannot run for want of it.
    pub fn is_missing(&self) -> bool {
        self.required && self.state != State::Enabled
    }
}

/// One object a line.
fn json(items: &[Item]) -> String {
    // Strings, a flag and a name: nothing in them that JSON could not say.
    items.iter().filter_map(|item| serde_json::to_string(item).ok()).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests;
