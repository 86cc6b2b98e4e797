//! Ctrl-Z and `fg`: a separate thread receives SIGTSTP and SIGCONT, so that the program restores the terminal before the process
//! stops, and takes it again afterwards.

use std::{io, thread};

use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

/// Blocks both signals in this thread and all it starts. Call it before any other thread exists.
///
/// # Errors
/// Errors of pthread_sigmask(3).
pub(super) fn block() -> io::Result<()> {
    Ok(set([Signal::SIGTSTP, Signal::SIGCONT]).thread_block()?)
}

/// Starts the thread that receives them. It calls `on_suspend` when the process is asked to stop, and `on_resume` when the
/// process continues, even after a SIGSTOP, which no process can receive.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn watch(
    on_suspend: impl Fn() + Send + 'static,
    on_resume: impl Fn() + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        loop {
            match set([Signal::SIGTSTP, Signal::SIGCONT]).wait() {
                Ok(Signal::SIGTSTP) => on_suspend(),
                Ok(_) => on_resume(),
                // Fails only for an invalid set (sigwait(3)).
                Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("jobs".into()).spawn(run)?;
    Ok(())
}

/// Asks the kernel to stop this process and its group, as the terminal does for Ctrl-Z. Normally returns once somebody resumes
/// the process. But it may not stop at all:
///
/// - Without a shell that could resume it, the kernel ignores SIGTSTP: in an orphaned process group, and in the first process of a
///   container.
/// - The thread of [`watch`] waits for the same signal. Linux prefers the main thread for a signal to the process, so call this there;
///   if the other thread receives it after all, `on_suspend` is called once more.
///
/// # Errors
/// Errors of pthread_sigmask(3) and kill(2).
pub(super) fn stop() -> io::Result<()> {
    let stop = set([Signal::SIGTSTP]);
    stop.thread_unblock()?;
    // 0 is the process group.
    let sent = kill(Pid::from_raw(0), Signal::SIGTSTP);
    stop.thread_block()?;
    Ok(sent?)
}

fn set<const N: usize>(signals: [Signal; N]) -> SigSet {
    signals.into_iter().collect()
}
