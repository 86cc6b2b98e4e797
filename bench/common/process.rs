//! Calls on this process: its signals, its descriptor limit, its threads' cores and CPU time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit},
    time::TimeValLike,
};
use tickcast::process::signals;

/// Descriptors needed besides the connections': standard streams, a ring or epoll, a listener, `/proc`.
const DESCRIPTOR_RESERVE: u64 = 64;

/// A flag that the first SIGINT, SIGTERM or SIGHUP sets; the second ends the process at once.
///
/// Call it before any other thread exists: threads inherit the blocked signals.
///
/// # Errors
/// One line for the operator.
pub fn stop_on_signal() -> Result<Arc<AtomicBool>, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let (set, failed) = (Arc::clone(&stop), Arc::clone(&stop));
    let notify = move |_| set.store(true, Ordering::Release);
    let on_failure = move |_| failed.store(true, Ordering::Release);
    signals::block()
        .and_then(|()| signals::watch(notify, || {}, signals::HangUp::Stops, on_failure))
        .map_err(|error| format!("cannot handle signals: {error}"))?;
    Ok(stop)
}

/// Raises the soft descriptor limit to the hard one if the connections need it.
///
/// # Errors
/// One line for the operator if even the hard limit is too low.
pub fn raise_descriptor_limit(connections: usize) -> Result<(), String> {
    let needed = connections as u64 + DESCRIPTOR_RESERVE;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| format!("getrlimit: {errno}"))?;
    if needed > hard {
        return Err(format!(
            "{connections} connections need {needed} descriptors, but the hard limit is {hard}: raise it (ulimit -Hn, \
             LimitNOFILE=) or run several processes"
        ));
    }
    if needed > soft {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|errno| format!("cannot raise the descriptor limit to {hard}: {errno}"))?;
    }
    Ok(())
}

/// Pins the calling thread to a core.
///
/// # Errors
/// One line that names the option, if the process may not use the core.
pub fn pin_thread(option: &str, core: usize) -> Result<(), String> {
    match core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        true => Ok(()),
        false => Err(format!("{option}: this process may not run on core {core}")),
    }
}

/// CPU time (user and system) of the calling thread, in nanoseconds; 0 if the kernel does not report it.
pub fn thread_cpu_ns() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(0, |usage| (usage.user_time() + usage.system_time()).num_nanoseconds().max(0) as u64)
}
