//! SIGINT, SIGTERM, SIGHUP and SIGUSR1 as messages: blocked in every thread, so that none is interrupted, and awaited by one.

use std::{
    fs,
    io::{self, IsTerminal},
    thread,
};

use nix::sys::signal::{SigSet, Signal};

use crate::clock;

/// A second signal this soon is the same one: timeout(1), for one, signals the process and its group.
const SAME_SIGNAL_NS: u64 = 200_000_000;

/// Blocks these signals in this thread and all it starts. To be called before any other thread exists.
///
/// # Errors
/// pthread_sigmask(3)'s.
pub fn block() -> io::Result<()> {
    Ok(set().thread_block()?)
}

/// What SIGHUP does.
pub enum HangUp {
    /// It is a signal to stop, unless the process was started to ignore it (nohup(1)).
    Stops,
    /// This.
    Does(Box<dyn Fn() + Send>),
}

/// Calls `notify` at the first signal to stop. The second ends the process at once, with 128 + its number. Calls `report`
/// at every SIGUSR1.
///
/// # Errors
/// The thread cannot be made.
pub fn watch(
    notify: impl FnOnce(&'static str) + Send + 'static,
    report: impl Fn() + Send + 'static,
    hang_up: HangUp,
) -> io::Result<()> {
    let hang_up = match hang_up {
        // A blocked signal comes even where it is ignored.
        HangUp::Stops if is_hang_up_ignored() => HangUp::Does(Box::new(|| {})),
        other => other,
    };
    let next_to_stop = move || {
        loop {
            match (set().wait(), &hang_up) {
                (Ok(Signal::SIGUSR1), _) => report(),
                (Ok(Signal::SIGHUP), HangUp::Does(what)) => what(),
                (other, _) => return other,
            }
        }
    };
    let watcher = move || {
        let Ok(first) = next_to_stop() else { return };
        let first_ns = clock::monotonic_ns();
        notify(first.as_str());
        while let Ok(second) = next_to_stop() {
            if clock::monotonic_ns() - first_ns >= SAME_SIGNAL_NS {
                ::log::warn!("{second} again: ending at once");
                std::process::exit(128 + second as i32);
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watcher)?;
    Ok(())
}

/// Whether a terminal may hang up on this process: it reads from one or writes to one.
pub fn has_a_terminal() -> bool {
    io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal()
}

fn is_hang_up_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, Signal::SIGHUP))
}

/// Whether `SigIgn` of proc(5)'s status has a signal: bit 0 is signal 1.
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
    fn an_ignored_signal_is_a_bit_in_the_process_status() {
        let status = |mask: &str| format!("SigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert!(ignores(&status("0000000000001001"), Signal::SIGHUP));
        assert!(!ignores(&status("0000000000001000"), Signal::SIGHUP));
        assert!(ignores(&status("0000000000001000"), Signal::SIGPIPE));
        assert!(!ignores(&status("x"), Signal::SIGHUP) && !ignores("", Signal::SIGHUP));
    }
}
