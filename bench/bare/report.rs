//! What a run cost.

use nix::sys::{
    resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit},
    time::TimeValLike,
};

/// Descriptors besides those of the connections: ring, listener, a second one of the connection that is greeted.
const DESCRIPTOR_RESERVE: u64 = 64;

/// The figures of a run; the crate's documentation says what each counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub sends: u64,
    pub bytes: u64,
    pub short_sends: u64,
    pub skipped_sends: u64,
    pub rounds: u64,
    pub late_rounds: u64,
    pub connections_ended: u64,
    pub elapsed_ns: u64,
    pub cpu_ns: u64,
}

impl Report {
    /// One JSON object on one line.
    pub fn to_json(self) -> String {
        let per_send = |value: u64| if self.sends == 0 { 0.0 } else { value as f64 / self.sends as f64 };
        serde_json::json!({
            "sends": self.sends,
            "bytes": self.bytes,
            "short_sends": self.short_sends,
            "skipped_sends": self.skipped_sends,
            "rounds": self.rounds,
            "late_rounds": self.late_rounds,
            "connections_ended": self.connections_ended,
            "elapsed_ns": self.elapsed_ns,
            "cpu_ns": self.cpu_ns,
            "cpu_ns_per_send": per_send(self.cpu_ns),
            "bytes_per_send": per_send(self.bytes),
        })
        .to_string()
    }
}

/// User and system time of this thread, nanoseconds; 0 where the kernel does not say.
pub fn thread_cpu_ns() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(0, |usage| (usage.user_time() + usage.system_time()).num_nanoseconds().max(0) as u64)
}

/// Raises the soft limit of descriptors to the hard one where the connections need it.
///
/// # Errors
/// One line for the operator when even the hard limit is too low.
pub fn raise_descriptor_limit(connections: usize) -> Result<(), String> {
    let needed = connections as u64 + DESCRIPTOR_RESERVE;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| format!("getrlimit: {errno}"))?;
    if needed > hard {
        return Err(format!(
            "{connections} connections need {needed} descriptors, the hard limit is {hard}: raise it (ulimit -Hn)"
        ));
    }
    if needed > soft {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(|errno| format!("raising the descriptor limit to {hard}: {errno}"))?;
    }
    Ok(())
}
