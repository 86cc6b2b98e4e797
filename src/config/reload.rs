//! What of a configuration changes while the server runs, and what waits for a restart.

use super::Limits;

/// Options that change while the server runs, by their long names.
pub const LIVE: [&str; 16] = [
    "log",
    "policy",
    "behind-bytes",
    "behind-ms",
    "stall-deadline-ms",
    "outbox-bytes-max",
    "keys-per-topic-max",
    "history",
    "history-bytes-max",
    "http-head-bytes-max",
    "handshake-deadline-ms",
    "frame-deadline-ms",
    "ping-interval-ms",
    "ping-timeout-ms",
    "subscriptions-per-session-max",
    "publish-rate",
];

/// An option that has another value now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name in a file.
    pub key: String,
    /// What it was; empty for not set.
    pub before: String,
    /// What it is; empty for not set.
    pub after: String,
    /// Whether it takes effect without a restart.
    pub is_live: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |text: &str| if text.is_empty() { "not set".to_owned() } else { text.to_owned() };
        let Change { key, before, after, is_live } = self;
        write!(f, "{key}: {} instead of {}", shown(after), shown(before))?;
        if *is_live { Ok(()) } else { write!(f, ": takes effect at the next start") }
    }
}

impl Limits {
    /// These limits with the live ones of others, as far as they go with the rest, which stays as it is.
    pub fn with_live_of(&self, other: &Limits) -> Limits {
        let outbox_bytes_max = other.outbox_bytes_max.clamp(self.message_bytes_max(), self.egress_log_bytes);
        let mut history = other.history.clone();
        let bounds = history.rules.iter_mut().map(|(_, bounds)| bounds).chain([&mut history.default]);
        bounds.for_each(|bounds| bounds.bytes = bounds.bytes.min(self.egress_log_bytes));
        Limits {
            policies: other.policies.clone(),
            behind_bytes: other.behind_bytes.min(outbox_bytes_max),
            behind_ns: other.behind_ns,
            stall_deadline_ns: other.stall_deadline_ns,
            outbox_bytes_max,
            keys_per_topic_max: other.keys_per_topic_max,
            history,
            history_bytes_max: other.history_bytes_max,
            http_head_bytes_max: other.http_head_bytes_max,
            handshake_deadline_ns: other.handshake_deadline_ns,
            frame_deadline_ns: other.frame_deadline_ns,
            ping_interval_ns: other.ping_interval_ns,
            ping_timeout_ns: other.ping_timeout_ns,
            subscriptions_per_session_max: other.subscriptions_per_session_max,
            publish_rate: other.publish_rate,
            ..self.clone()
        }
    }
}

impl Limits {
    /// What of `new` does not go with the rest, which stays as it is until a restart: lines for the log.
    pub fn held_back_from(&self, new: &Limits) -> Vec<String> {
        let mut lines = Vec::new();
        let mut tell = |key: &str, is: usize, wanted: usize| {
            if is != wanted {
                lines.push(format!(
                    "{key}: {is} until the next start, as frames and logs are as long as they were"
                ));
            }
        };
        tell("outbox_bytes_max", self.outbox_bytes_max, new.outbox_bytes_max);
        tell("behind_bytes", self.behind_bytes, new.behind_bytes);
        let bytes = |limits: &Limits| -> Vec<usize> {
            let rules = limits.history.rules.iter().map(|(_, bounds)| bounds);
            rules.chain([&limits.history.default]).map(|bounds| bounds.bytes).collect()
        };
        for (is, wanted) in bytes(self).into_iter().zip(bytes(new)) {
            tell("history", is, wanted);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_live_changes() {
        let now = Limits::default();
        let other = Limits {
            behind_ns: 7,
            frame_bytes_max: 1 << 20,
            publish_rate: 9,
            topics_max: 1,
            ..Limits::default()
        };
        let live = now.with_live_of(&other);
        assert_eq!((live.behind_ns, live.publish_rate), (7, 9));
        assert_eq!((live.frame_bytes_max, live.topics_max), (now.frame_bytes_max, now.topics_max));
    }

    #[test]
    fn what_cannot_be_had_before_a_restart_is_told() {
        let now = Limits::default();
        let other = Limits {
            egress_log_bytes: 4 * now.egress_log_bytes,
            outbox_bytes_max: 2 * now.egress_log_bytes,
            behind_ns: 7,
            ..Limits::default()
        };
        let live = now.with_live_of(&other);
        assert_eq!(live.outbox_bytes_max, now.egress_log_bytes);
        let told = live.held_back_from(&other);
        assert!(told.len() == 1 && told[0].starts_with("outbox_bytes_max: 16777216 until"), "{told:?}");
        assert!(now.held_back_from(&now).is_empty());
    }

    #[test]
    fn a_change_says_what_it_was_and_whether_it_waits() {
        let change =
            |is_live| Change { key: "behind_ms".into(), before: "500".into(), after: "7".into(), is_live };
        assert_eq!(change(true).to_string(), "behind_ms: 7 instead of 500");
        assert_eq!(change(false).to_string(), "behind_ms: 7 instead of 500: takes effect at the next start");
    }
}
