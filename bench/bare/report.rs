//! The report: what a run cost.

/// Figures of a run; the crate's documentation defines each.
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
    /// The report as one line of JSON.
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
