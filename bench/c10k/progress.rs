//! The progress bar: on standard error, and only where that is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Milliseconds are the units of a bar that runs with the time.
const NS_PER_MS: u64 = 1_000_000;

/// What a bar counts.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Connections,
    Time,
}

/// A bar for one phase after the other. Cost: nothing is drawn more than 20 times a second.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar that begins with the ramp.
    pub fn new(connections: usize) -> Progress {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let progress = Progress(bar);
        progress.counts("connecting", connections);
        progress
    }

    /// From now on connections are counted: [`Progress::reached`].
    pub fn counts(&self, what: &'static str, connections: usize) {
        self.begin(what, connections as u64, Unit::Connections);
    }

    /// From now on time passes: [`Progress::passed`].
    pub fn times(&self, what: &'static str, duration_ns: u64) {
        self.begin(what, duration_ns / NS_PER_MS, Unit::Time);
    }

    fn begin(&self, what: &'static str, length: u64, unit: Unit) {
        let rest = match unit {
            Unit::Connections => "{pos}/{len} connections {elapsed}",
            Unit::Time => "{percent:>3} % {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(&format!("{{msg:14}} {{wide_bar}} {rest}")) {
            self.0.set_style(style);
        }
        self.0.set_length(length);
        self.0.set_position(0);
        self.0.set_message(what);
    }

    /// So many connections are where they are to be.
    pub fn reached(&self, connections: usize) {
        self.0.set_position(connections as u64);
    }

    /// So much of the time has passed.
    pub fn passed(&self, elapsed_ns: u64) {
        self.0.set_position(elapsed_ns / NS_PER_MS);
    }

    /// Writes a line on standard error, whether it is a terminal or not.
    pub fn say(&self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
