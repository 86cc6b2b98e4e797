//! SIGINT, SIGTERM, SIGHUP and SIGUSR1, blocked in every thread and received by one.
//! So signals interrupt no system calls of other threads, and handlers run as ordinary code.

use std::{
    convert::Infallible,
    fs,
    io::{self, IsTerminal},
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use nix::sys::signal::{SigSet, Signal};

use crate::{
    clock, logging,
    process::{
        fault::{self, Place},
        panics,
    },
};

/// A second signal within this time counts as the first: timeout(1), for example, signals both the process and its group.
const SAME_SIGNAL_NS: u64 = 200_000_000;

/// Time that a command has to end after a signal. A client waits up to 2 s for the server to close its side.
const STUCK_NS: u64 = 4_000_000_000;

/// Blocks these signals in this thread and all threads that it starts. Call it before any other thread exists.
///
/// # Errors
/// Errors of pthread_sigmask(3).
pub fn block() -> io::Result<()> {
    Ok(set().thread_block()?)
}

/// The effect of SIGHUP.
pub enum HangUp {
    /// Stops the process, unless it was started to ignore SIGHUP (nohup(1)).
    Stops,
    /// Calls this function.
    Does(Box<dyn Fn() + Send>),
}

/// Starts the thread that receives the signals.
/// Calls `notify` with the first stop signal, and `report` at every SIGUSR1. A second stop signal exits the process at once,
/// with status 128 + its number. If the thread ends in any other way, it calls `on_failure` with the reason, because no signal
/// would stop the process any more.
///
/// # Errors
/// The thread cannot be started.
pub fn watch(
    notify: impl FnOnce(Signal) + Send + 'static,
    report: impl Fn() + Send + 'static,
    hang_up: HangUp,
    on_failure: impl FnOnce(String) + Send + 'static,
) -> io::Result<()> {
    let hang_up = match hang_up {
        // A blocked signal is received even if it is ignored.
        HangUp::Stops if is_hang_up_ignored() => HangUp::Does(Box::new(|| {})),
        other => other,
    };
    let next_to_stop = move || {
        loop {
            let received = set().wait();
            fault::at(Place::Signals);
            match (received, &hang_up) {
                (Ok(Signal::SIGUSR1), _) => report(),
                (Ok(Signal::SIGHUP), HangUp::Does(action)) => action(),
                (received, _) => {
                    debug_assert!(received.is_ok(), "sigwait(3) fails only for an invalid set");
                    return received;
                }
            }
        }
    };
    let watch = move || -> nix::Result<Infallible> {
        let first = next_to_stop()?;
        let first_ns = clock::monotonic_ns();
        notify(first);
        loop {
            let second = next_to_stop()?;
            if clock::monotonic_ns() - first_ns >= SAME_SIGNAL_NS {
                ::log::warn!("{second} received again: stopping immediately");
                logging::flush();
                std::process::exit(status(second));
            }
        }
    };
    let watcher = move || {
        on_failure(match catch_unwind(AssertUnwindSafe(watch)) {
            Ok(Err(error)) => format!("sigwait: {error}"),
            Err(panic) => format!("it panicked: {}", panics::message(&*panic)),
        });
    };
    thread::Builder::new().name("signals".into()).spawn(watcher)?;
    Ok(())
}

/// Exits 4 s after a stop signal, with status 128 + its number, unless the process ends before: for commands whose main thread
/// may be blocked by a terminal or pipe that nobody reads. Calls `before` first.
pub fn exit_if_stuck(signal: Signal, before: impl FnOnce() + Send + 'static) {
    let exit = move || {
        clock::sleep_ns(STUCK_NS);
        before();
        std::process::exit(status(signal));
    };
    // Without the thread, a second signal still ends the process.
    drop(thread::Builder::new().name("exit".into()).spawn(exit));
}

/// The exit status of a process that a signal has ended, as a shell reports it.
fn status(signal: Signal) -> i32 {
    128 + signal as i32
}

/// Whether this process reads from or writes to a terminal, which may hang up.
pub fn has_a_terminal() -> bool {
    io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal()
}

fn is_hang_up_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, Signal::SIGHUP))
}

/// Whether a signal is set in `SigIgn` of `/proc/self/status` (proc(5)); bit 0 is signal 1.
fn ignores(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal as u32 - 1) & 1 == 1
}

fn set() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGUSR1);
    set.add(Signal::SIGHUP);
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_process_status() {
        let status = |mask: &str| format!("SigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert!(ignores(&status("0000000000001001"), Signal::SIGHUP));
        assert!(!ignores(&status("0000000000001000"), Signal::SIGHUP));
        assert!(ignores(&status("0000000000001000"), Signal::SIGPIPE));
        assert!(!ignores(&status("x"), Signal::SIGHUP) && !ignores("", Signal::SIGHUP));
    }
}
