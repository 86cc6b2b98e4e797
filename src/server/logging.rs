//! Where log lines go and what they look like: for people with time and level, for the journal with its priorities. What
//! peers can cause is kept to a few lines a second.
//!
//! A line about a peer has a target of its own, one of [`peer`]'s; all others are written as they come.

mod limiter;

use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard},
};

use env_logger::{Builder, Logger, fmt::Formatter};
use log::{Level, LevelFilter, Log, Metadata, Record};

pub use self::limiter::RateLimiter;
use crate::{clock, limits::PEER_LINES_PER_SECOND};

/// Targets of lines that peers cause: each is limited by itself, and can be filtered by itself, as in
/// `RUST_LOG=info,tickcast::peer=warn`.
pub mod peer {
    /// Connections that are not taken in.
    pub const ACCEPT: &str = "tickcast::peer::accept";
    /// Sessions that end because of what their client did, or did not.
    pub use tickcast_core::shard::LOG_TARGET_SESSION as SESSION;
    /// Lines of a capture that are not ticks.
    pub const REPLAY: &str = "tickcast::peer::replay";

    /// All of them.
    pub const ALL: [&str; 3] = [ACCEPT, SESSION, REPLAY];
}

/// The process's logger; `None` before [`init`].
static LOGGER: OnceLock<Limited> = OnceLock::new();

/// What is logged where nothing is said.
const FILTER: &str = "info";

/// Sets up the log, on standard error: at the level that RUST_LOG says, info if it says nothing. For the journal if
/// standard error goes there. A second call changes nothing.
pub fn init() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| FILTER.to_owned());
    let logger =
        LOGGER.get_or_init(|| Limited { logger: RwLock::new(logger(&filter)), limiter: Mutex::default() });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(logger.level());
    }
}

/// Logs what this filter says from now on, one that [`checked`] took. Without [`init`] nothing is logged as before.
pub fn set_filter(filter: &str) {
    if let Some(limited) = LOGGER.get() {
        *limited.logger.write().unwrap_or_else(PoisonError::into_inner) = logger(filter);
        log::set_max_level(limited.level());
    }
}

/// A filter as it was given, if it is one: `info`, `debug,tickcast::peer=warn`. A word alone is a level: env_logger would
/// take a misspelt one for a part of the program, and log nothing else.
///
/// # Errors
/// Which part of it cannot be read.
pub fn checked(filter: &str) -> Result<String, String> {
    let words = filter.split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words {
        let level = word.split_once('=').map_or(word, |(_, level)| level);
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!("\"{level}\" is none of error, warn, info, debug, trace and off"));
        }
    }
    Ok(filter.to_owned())
}

fn logger(filter: &str) -> Logger {
    let mut builder = Builder::new();
    builder.parse_filters(filter);
    if std::env::var("JOURNAL_STREAM").is_ok_and(|stream| goes_to(&stream)) {
        builder.format(for_the_journal);
    }
    builder.build()
}

/// Writes how many lines were left out of each kind whose second is over. To be called about once a second; costs nothing
/// where none was.
pub fn turn(now_ns: u64) {
    if let Some(logger) = LOGGER.get() {
        logger.tell_left_out(now_ns);
    }
}

/// Whether standard error is the stream that JOURNAL_STREAM names (`device:inode`, systemd.exec(5)): who inherits the
/// variable may have been given another one.
fn goes_to(stream: &str) -> bool {
    // Follows the link to the socket itself.
    fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| parse_stream(stream) == Some((stderr.dev(), stderr.ino())))
}

fn parse_stream(stream: &str) -> Option<(u64, u64)> {
    let (device, inode) = stream.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

/// sd-daemon(3): `<3>` to `<7>`, and no time, which the journal has itself.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn for_the_journal(line: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    line.write_all(journal_lines(record.level(), record.target(), &record.args().to_string()).as_bytes())
}

/// A message as the journal takes it: every line is an entry of its own there.
fn journal_lines(level: Level, target: &str, message: &str) -> String {
    let priority = priority(level);
    // Who looks for faults wants to know where.
    let from = if level >= Level::Debug { format!("{target}: ") } else { String::new() };
    message.lines().map(|line| format!("<{priority}>{from}{line}\n")).collect()
}

/// A logger that keeps lines about peers to [`PEER_LINES_PER_SECOND`] of each kind.
struct Limited {
    /// Written when the operator changes the filter. Read for each line that is written, which takes standard error's lock
    /// anyway: lines below the level do not come here.
    logger: RwLock<Logger>,
    /// Taken only for lines about peers, which the logger's own lock makes wait anyway.
    limiter: Mutex<RateLimiter<{ peer::ALL.len() }>>,
}

impl Default for RateLimiter<{ peer::ALL.len() }> {
    fn default() -> Self {
        RateLimiter::new(PEER_LINES_PER_SECOND)
    }
}

impl Limited {
    fn logger(&self) -> RwLockReadGuard<'_, Logger> {
        // A logger is replaced in one step.
        self.logger.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn level(&self) -> LevelFilter {
        self.logger().filter()
    }

    fn limiter(&self) -> MutexGuard<'_, RateLimiter<{ peer::ALL.len() }>> {
        // What a panic left is whole: a count is changed in one step.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_left_out(&self, now_ns: u64) {
        loop {
            // Not held while the line is written.
            let Some((kind, lines)) = self.limiter().poll_left_out(now_ns) else { return };
            self.logger().log(
                &Record::builder()
                    .args(format_args!("{lines} more like this"))
                    .level(Level::Info)
                    .target(peer::ALL[kind])
                    .build(),
            );
        }
    }
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(kind) = peer::ALL.iter().position(|target| *target == record.target()) {
            if !self.logger().matches(record) {
                return;
            }
            let now_ns = clock::monotonic_ns();
            self.tell_left_out(now_ns);
            if !self.limiter().admit(kind, now_ns) {
                return;
            }
        }
        self.logger().log(record);
    }

    fn flush(&self) {
        self.logger().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_gets_priorities_and_no_times() {
        for (level, expected) in [
            (Level::Error, "<3>a\n<3>b\n"),
            (Level::Warn, "<4>a\n<4>b\n"),
            (Level::Info, "<6>a\n<6>b\n"),
            (Level::Debug, "<7>here: a\n<7>here: b\n"),
            (Level::Trace, "<7>here: a\n<7>here: b\n"),
        ] {
            assert_eq!(journal_lines(level, "here", "a\nb"), expected);
        }
    }

    #[test]
    fn a_stream_is_a_device_and_an_inode() {
        assert_eq!(parse_stream("9:12345"), Some((9, 12345)));
        for bad in ["", "9", "9:", ":9", "a:b", "9:1:2", "-1:2"] {
            assert_eq!(parse_stream(bad), None, "{bad}");
        }
        assert!(!goes_to("0:0"));
    }

    #[test]
    fn a_filter_is_levels_by_part() {
        for good in ["info", "off", "info,tickcast::peer=warn", "WARN", ""] {
            assert_eq!(checked(good).as_deref(), Ok(good));
        }
        for bad in ["info,,x=y=z", "tickcast=loud", "loud", "info,tickcast="] {
            assert!(checked(bad).unwrap_err().contains("none of error"), "{bad}");
        }
    }

    #[test]
    fn every_kind_is_below_the_one_name_that_filters_all() {
        assert!(peer::ALL.iter().all(|target| target.starts_with("tickcast::peer::")));
    }
}
