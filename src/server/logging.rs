//! The logger: timestamps for people, priorities for the journal, and a rate limit on lines that peers cause.
//! Lines about peers use the targets in [`peer`] and are rate-limited; all others are not. A server writes its log from a
//! separate thread ([`write_in_background`]), so that a stuck reader of standard error delays nothing: lines are dropped and
//! counted.

mod background;
mod limiter;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write},
    panic::{self, PanicHookInfo},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard},
    thread,
    time::Duration,
};

use env_logger::{Builder, Logger, Target, WriteStyle, fmt::Formatter};
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::sys::stat::fstat;

use self::background::BackgroundWriter;
pub use self::limiter::RateLimiter;
use crate::{
    clock,
    limits::{LOG_FLUSH_MS_MAX, PEER_LINES_PER_SECOND},
    process::panics,
};

/// Targets of lines that peers cause. Each has its own rate limit and can be filtered, as in
/// `RUST_LOG=info,tickcast::peer=warn`.
pub mod peer {
    /// Refused connections.
    pub const ACCEPT: &str = "tickcast::peer::accept";
    /// Sessions that ended because of something that their client did or failed to do.
    pub use tickcast_core::shard::LOG_TARGET_SESSION as SESSION;
    /// Ticks refused because a limit on topics was reached.
    pub use tickcast_core::shard::LOG_TARGET_TOPIC as TOPIC;
    /// Lines of a replay file that are not ticks.
    pub use tickcast_sources::LOG_TARGET_REPLAY as REPLAY;
    /// Faults of other engines that sinks pass ticks to, and ticks that they refuse.
    pub use tickcast_sources::LOG_TARGET_SINK as SINK;
    /// Faults of other engines that sources read, and messages of them that are skipped.
    pub use tickcast_sources::LOG_TARGET_SOURCE as SOURCE;
    /// Requests to the admin listener without credentials, or with wrong ones.
    pub const ADMIN: &str = "tickcast::peer::admin";

    /// Credentials on which the server fails.
    pub const AUTH: &str = "tickcast::peer::auth";

    /// All of these targets.
    pub const ALL: [&str; 8] = [ACCEPT, SESSION, TOPIC, REPLAY, SOURCE, SINK, ADMIN, AUTH];
}

/// Target of the lines about operators' changes, at level info, not rate-limited. `warn,tickcast::audit=info` keeps these lines
/// while hiding others.
pub const AUDIT: &str = "tickcast::audit";

/// The process's logger; `None` before [`init`].
static LOGGER: OnceLock<RateLimitedLogger> = OnceLock::new();

/// The writer of a server's log; `None` in other commands, and until [`write_in_background`].
static BACKGROUND: OnceLock<BackgroundWriter> = OnceLock::new();

/// The filter without RUST_LOG.
const FILTER_DEFAULT: &str = "info";

/// Starts logging to standard error, filtered by RUST_LOG. Later calls have no effect.
///
/// Uses the journal's format if standard error goes to the journal.
pub fn init() {
    let filter = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = filter.unwrap_or_else(|| FILTER_DEFAULT.to_owned());
    let logger = LOGGER.get_or_init(|| RateLimitedLogger {
        logger: RwLock::new(logger(&filter)),
        limiter: Mutex::default(),
    });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(logger.level());
    }
}

/// Replaces the filter by one that passed [`checked`]. No effect before [`init`].
pub fn set_filter(filter: &str) {
    if let Some(current) = LOGGER.get() {
        *current.logger.write().unwrap_or_else(PoisonError::into_inner) = logger(filter);
        log::set_max_level(current.level());
    }
}

/// Validates a filter such as `info` or `debug,tickcast::peer=warn`, and returns it unchanged.
/// A word without `=` must be a level: env_logger would treat a misspelt level as a module name and log nothing else.
///
/// # Errors
/// The level that is invalid.
pub fn checked(filter: &str) -> Result<String, String> {
    let words = filter.split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words {
        let level = word.split_once('=').map_or(word, |(_, level)| level);
        if level.parse::<LevelFilter>().is_err() {
            return Err(format!("invalid level \"{level}\"; use error, warn, info, debug, trace or off"));
        }
    }
    Ok(filter.to_owned())
}

/// From now on, a separate thread writes the log, reports and panic messages. Call it after the signals are blocked, because
/// the thread inherits that; later calls have no effect.
///
/// # Errors
/// The thread cannot be started.
pub fn write_in_background() -> io::Result<()> {
    let on_loss =
        |lines| log::warn!("nobody read standard error in time: {lines} lines dropped since the start");
    let writer = BackgroundWriter::start(io::stderr(), on_loss)?;
    if BACKGROUND.set(writer).is_ok() {
        panic::set_hook(Box::new(print_panic));
    }
    Ok(())
}

/// Prints text of whole lines to standard error, whatever the log level.
pub fn print(text: &str) {
    match BACKGROUND.get() {
        Some(writer) => writer.write(text.as_bytes()),
        // A closed standard error must not stop anything.
        None => drop(io::stderr().lock().write_all(text.as_bytes())),
    }
}

/// Waits until the log is written, at most [`LOG_FLUSH_MS_MAX`]. Call it before the process exits.
pub fn flush() {
    if let Some(writer) = BACKGROUND.get() {
        writer.flush(Duration::from_millis(LOG_FLUSH_MS_MAX));
    }
}

/// Lines that were dropped because nobody read standard error, or that could not be written.
pub fn lines_dropped() -> u64 {
    BACKGROUND.get().map_or(0, BackgroundWriter::lines_dropped)
}

/// Calls [`flush`] when dropped, even if the main thread panics.
pub struct FlushAtExit;

impl Drop for FlushAtExit {
    fn drop(&mut self) {
        flush();
    }
}

/// The panic hook: like the standard library's, but waits for standard error no longer than [`LOG_FLUSH_MS_MAX`]. The process
/// may be about to abort.
fn print_panic(panic: &PanicHookInfo<'_>) {
    if panics::hides(panic) {
        return;
    }
    let current = thread::current();
    let (name, message) = (current.name().unwrap_or("<unnamed>"), panics::message(panic.payload()));
    let place = panic.location().map_or(String::new(), |location| format!(" at {location}"));
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("stack backtrace:\n{backtrace}"),
        _ => "note: RUST_BACKTRACE=1 shows a backtrace\n".to_owned(),
    };
    print(&format!("thread '{name}' panicked{place}:\n{message}\n{backtrace}"));
    flush();
}

/// The logger's output: one call for each record, with whole lines.
struct Output;

impl Write for Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match BACKGROUND.get() {
            Some(writer) => writer.write(lines),
            None => io::stderr().lock().write_all(lines)?,
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logger(filter: &str) -> Logger {
    let mut builder = Builder::new();
    builder.parse_filters(filter);
    builder.target(Target::Pipe(Box::new(Output))).write_style(match has_colours() {
        true => WriteStyle::Always,
        false => WriteStyle::Never,
    });
    if std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stderr_is(&stream)) {
        builder.format(write_journal_lines);
    }
    builder.build()
}

/// Whether standard error is a terminal that shows colours, and colours are not turned off.
fn has_colours() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    io::stderr().is_terminal() && !is_dumb && !no_colour
}

/// Reports suppressed lines. Call it about once a second; it is almost free if there were none.
pub fn turn(now_ns: u64) {
    if let Some(logger) = LOGGER.get() {
        logger.report_suppressed(now_ns);
    }
}

/// Whether standard error is the stream that JOURNAL_STREAM names (`device:inode`, systemd.exec(5)).
///
/// A child that inherits the variable may have its standard error redirected.
fn stderr_is(stream: &str) -> bool {
    fstat(io::stderr()).is_ok_and(|stderr| parse_stream(stream) == Some((stderr.st_dev, stderr.st_ino)))
}

fn parse_stream(stream: &str) -> Option<(u64, u64)> {
    let (device, inode) = stream.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

/// The priority of sd-daemon(3), written as `<3>` to `<7>`.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn write_journal_lines(out: &mut Formatter, record: &Record<'_>) -> std::io::Result<()> {
    out.write_all(journal_lines(record.level(), record.target(), &record.args().to_string()).as_bytes())
}

/// A message in the journal's format, which has a priority per line and no time, as the journal adds its own.
fn journal_lines(level: Level, target: &str, message: &str) -> String {
    let priority = priority(level);
    // The target helps when debugging.
    let target = if level >= Level::Debug { format!("{target}: ") } else { String::new() };
    message.lines().map(|line| format!("<{priority}>{target}{line}\n")).collect()
}

/// A logger that limits lines about peers to [`PEER_LINES_PER_SECOND`] of each kind.
struct RateLimitedLogger {
    /// Write-locked to change the filter, read-locked for each line. Lines below the maximum level never get here, and written
    /// lines take standard error's lock anyway.
    logger: RwLock<Logger>,
    /// Locked only for lines about peers, which wait for standard error's lock anyway.
    limiter: Mutex<RateLimiter<{ peer::ALL.len() }>>,
}

impl Default for RateLimiter<{ peer::ALL.len() }> {
    fn default() -> Self {
        RateLimiter::new(PEER_LINES_PER_SECOND)
    }
}

impl RateLimitedLogger {
    fn logger(&self) -> RwLockReadGuard<'_, Logger> {
        // A panic cannot leave it half-replaced.
        self.logger.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn level(&self) -> LevelFilter {
        self.logger().filter()
    }

    fn limiter(&self) -> MutexGuard<'_, RateLimiter<{ peer::ALL.len() }>> {
        // A panic cannot leave it inconsistent: each change is a single assignment.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report_suppressed(&self, now_ns: u64) {
        loop {
            // The limiter's lock is released before the line is written.
            let Some((kind, lines)) = self.limiter().poll_suppressed(now_ns) else { return };
            self.logger().log(
                &Record::builder()
                    .args(format_args!("{lines} similar messages suppressed"))
                    .level(Level::Info)
                    .target(peer::ALL[kind])
                    .build(),
            );
        }
    }
}

impl Log for RateLimitedLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(kind) = peer::ALL.iter().position(|target| *target == record.target()) {
            if !self.logger().matches(record) {
                return;
            }
            let now_ns = clock::monotonic_ns();
            self.report_suppressed(now_ns);
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
    fn journal_lines_have_priorities_and_no_times() {
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
    fn a_journal_stream_is_a_device_and_an_inode() {
        assert_eq!(parse_stream("9:12345"), Some((9, 12345)));
        for bad in ["", "9", "9:", ":9", "a:b", "9:1:2", "-1:2"] {
            assert_eq!(parse_stream(bad), None, "{bad}");
        }
        assert!(!stderr_is("0:0"));
    }

    #[test]
    fn a_filter_is_a_level_by_target() {
        for good in ["info", "off", "info,tickcast::peer=warn", "WARN", ""] {
            assert_eq!(checked(good).as_deref(), Ok(good));
        }
        for bad in ["info,,x=y=z", "tickcast=loud", "loud", "info,tickcast="] {
            assert!(checked(bad).unwrap_err().contains("use error"), "{bad}");
        }
    }

    #[test]
    fn every_peer_target_is_below_the_common_prefix() {
        assert!(peer::ALL.iter().all(|target| target.starts_with("tickcast::peer::")));
    }
}
