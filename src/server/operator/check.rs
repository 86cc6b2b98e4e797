//! `tickcast check`: whether the server can run on this machine, and which settings are worth changing.
//!
//! The table has three sources: what this binary checks itself (the kernel, io_uring, the limits of this process), the read-only
//! report of `tickcast-tune check`, and how safe a configuration is. Only what the server cannot run without decides the exit
//! status, as it runs on an untuned machine too.

mod capabilities;
mod item;
mod security;
mod table;
mod tune;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;

use self::item::CheckItem;
use crate::clock;

const NS_PER_S: u64 = 1_000_000_000;
/// Exit status when something required is missing.
const EXIT_MISSING: u8 = 1;
/// Exit status for an invalid command line, the same as clap's.
const EXIT_USAGE: u8 = 2;

/// Options of `tickcast check`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Enabled: already as wanted. Supported: not as wanted, but possible on this machine; the reason says how or why. Unsupported: \
not possible here. Limits are those of this process; a service has the limits of its unit. With --config, run it as a user who \
may read the server's files.")]
pub struct CheckArgs {
    /// Print one JSON object per line: name, required, state (enabled, supported or unsupported), now, wanted, reason
    #[arg(long)]
    pub json: bool,
    /// Also grade this configuration file: who reaches the listeners, what protects them, and which secrets others can read
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The tickcast-tune to run [default: the one installed with this program or in its source tree, unless others may
    /// write to it]
    #[arg(long, env = "TICKCAST_TUNE", value_name = "PATH")]
    pub tune: Option<PathBuf>,
}

/// Checks this machine, prints the result on standard output and returns the exit status. Changes no setting.
///
/// Takes as long as `tickcast-tune check`, which is killed and reported after 20 s.
pub fn run(args: &CheckArgs) -> ExitCode {
    let tune = match tune::locate(args.tune.as_deref()) {
        Ok(tune) => tune,
        Err(text) => {
            log::error!("{text}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let security =
        match args.config.as_deref().map(|file| security::check(file, clock::realtime_ns() / NS_PER_S)) {
            None => Vec::new(),
            Some(Ok(items)) => items,
            Some(Err(text)) => {
                log::error!("{text}");
                return ExitCode::from(EXIT_USAGE);
            }
        };
    let own = capabilities::check();
    let tuning = tune::check(&tune);
    let mut summary = table::summary(&[own.clone(), security.clone()].concat(), &tuning, tune.trusted());
    summary += &args.config.as_deref().map(|file| table::security(&security, file)).unwrap_or_default();
    let items = [security, own, tuning].concat();
    let output = match args.json {
        true => json(&items),
        false => table::table(&items) + "\n" + &summary,
    };
    // A closed standard output does not change the result.
    let _ = io::stdout().lock().write_all(output.as_bytes());
    match items.iter().any(CheckItem::is_missing) {
        true => ExitCode::from(EXIT_MISSING),
        false => ExitCode::SUCCESS,
    }
}

/// One object per line.
fn json(items: &[CheckItem]) -> String {
    let line = |item: &CheckItem| {
        let line = serde_json::to_string(item);
        debug_assert!(line.is_ok(), "strings and flags can always be serialized");
        line.ok().map(|line| line + "\n")
    };
    items.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests;
