//! Progress bar on standard error, shown only if that is a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that follows the time counts milliseconds.
const NS_PER_MS: u64 = 1_000_000;

/// Unit that a bar counts.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Connections,
    Time,
}

/// One bar, reused for each phase. It is drawn at most 20 times a second.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar for the ramp.
    pub fn new(connections: usize) -> Progress {
        let bar = match std::io::stderr().is_terminal() {
            true => ProgressBar::new(0),
            false => ProgressBar::hidden(),
        };
        let progress = Progress(bar);
        progress.begin_count("connecting", connections);
        progress
    }

    /// Begins a phase that counts connections; report them with [`Progress::set_connections`].
    pub fn begin_count(&self, what: &'static str, connections: usize) {
        self.begin(what, connections as u64, Unit::Connections);
    }

    /// Begins a phase of a given length; report the time with [`Progress::set_elapsed`].
    pub fn begin_time(&self, what: &'static str, duration_ns: u64) {
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

    /// Sets how many connections have completed the phase.
    pub fn set_connections(&self, connections: usize) {
        self.0.set_position(connections as u64);
    }

    /// Sets how much of the phase has passed.
    pub fn set_elapsed(&self, elapsed_ns: u64) {
        self.0.set_position(elapsed_ns / NS_PER_MS);
    }

    /// Prints a line on standard error, whether it is a terminal or not.
    pub fn print(&self, text: &str) {
        self.0.suspend(|| eprintln!("{text}"));
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
