//! SIGINT, SIGTERM, SIGHUP and SIGUSR1 as messages: blocked in every thread, so that none is interrupted, and awaited by one.

use std::{io, thread};

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

/// Calls `notify` at the first signal to stop. The second ends the process at once, with 128 + its number. Calls `report`
/// at every SIGUSR1, `reload` at every SIGHUP; where there is nothing to reload, SIGHUP is a signal to stop.
///
/// # Errors
/// The thread cannot be made.
pub fn watch(
    notify: impl FnOnce(&'static str) + Send + 'static,
    report: impl Fn() + Send + 'static,
    reload: Option<Box<dyn Fn() + Send>>,
) -> io::Result<()> {
    let next_to_stop = move || {
        loop {
            match set().wait() {
                Ok(Signal::SIGUSR1) => report(),
                other => match (&reload, other) {
                    (Some(reload), Ok(Signal::SIGHUP)) => reload(),
                    _ => return other,
                },
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

fn set() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGUSR1);
    set.add(Signal::SIGHUP);
    set
}
