//! What an operator sets of the core.

use crate::{home::history::HistoryBounds, limits};
use tickcast_proto::subscription::{Policy, Rules};

/// The bounds that the core works within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame or message from a peer, bytes.
    pub frame_bytes_max: usize,
    /// HTTP request head, bytes.
    pub http_head_bytes_max: usize,
    /// Accept to the end of the handshake, nanoseconds.
    pub handshake_deadline_ns: u64,
    /// From a frame's first bytes to its last, nanoseconds.
    pub frame_deadline_ns: u64,
    /// Silence after which a peer is pinged, nanoseconds; `u64::MAX`: never.
    pub ping_interval_ns: u64,
    /// From the ping to the end of a peer that stays silent, nanoseconds.
    pub ping_timeout_ns: u64,
    /// Clients that are told to come back are spread over so many milliseconds.
    pub reconnect_spread_ms: u32,
    /// Patterns a session may hold.
    pub subscriptions_per_session_max: usize,
    /// Topics of the whole server.
    pub topics_max: usize,
    /// One egress log (shard x wire format in use), bytes.
    pub egress_log_bytes: usize,
    /// Bytes a session may have waiting.
    pub outbox_bytes_max: usize,
    /// Bytes waiting for a session before what yields is taken out of its outbox.
    pub behind_bytes: usize,
    /// Time a socket may take for one SEND before what yields is taken out, nanoseconds.
    pub behind_ns: u64,
    /// Time a socket may take for one SEND before a session that does not yield is closed, nanoseconds.
    pub stall_deadline_ns: u64,
    /// What becomes of a slow subscriber's ticks, by topic, where it has not said.
    pub policies: Rules<Policy>,
    /// Recent ticks kept, by topic.
    pub history: Rules<HistoryBounds>,
    /// Bytes of recent ticks of the whole server.
    pub history_bytes_max: usize,
    /// Keys of one topic whose newest tick is kept.
    pub keys_per_topic_max: usize,
    /// Bytes of the last values by key of the whole server: at their homes, and again on other shards with subscribers.
    pub keys_bytes_max: usize,
    /// Ticks a second that a session may publish; 0: as many as it can.
    pub publish_rate: u32,
    /// Whether a second connection of an identity replaces the first.
    pub identity_replaces: bool,
    /// Whether `/echo` exists.
    pub debug_echo: bool,
}

impl Limits {
    /// Largest WebSocket message, bytes: the longest frame's payload may come as base64, 4 bytes for 3, in JSON.
    pub fn message_bytes_max(&self) -> usize {
        message_bytes_max(self.frame_bytes_max)
    }
}

/// Largest WebSocket message for a `frame_bytes_max`: see [`Limits::message_bytes_max`].
pub fn message_bytes_max(frame_bytes_max: usize) -> usize {
    frame_bytes_max / 3 * 4 + limits::JSON_ENVELOPE_BYTES
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_bytes_max: limits::FRAME_BYTES_MAX_DEFAULT,
            http_head_bytes_max: limits::HTTP_HEAD_BYTES_MAX_DEFAULT,
            handshake_deadline_ns: limits::HANDSHAKE_DEADLINE_MS_DEFAULT * 1_000_000,
            frame_deadline_ns: limits::FRAME_DEADLINE_MS_DEFAULT * 1_000_000,
            ping_interval_ns: limits::PING_INTERVAL_MS_DEFAULT * 1_000_000,
            ping_timeout_ns: limits::PING_TIMEOUT_MS_DEFAULT * 1_000_000,
            reconnect_spread_ms: limits::RECONNECT_SPREAD_MS_DEFAULT,
            subscriptions_per_session_max: limits::SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT,
            topics_max: limits::TOPICS_MAX_DEFAULT,
            egress_log_bytes: limits::EGRESS_LOG_BYTES_DEFAULT,
            outbox_bytes_max: limits::OUTBOX_BYTES_MAX_DEFAULT,
            behind_bytes: limits::BEHIND_BYTES_DEFAULT,
            behind_ns: limits::BEHIND_MS_DEFAULT * 1_000_000,
            stall_deadline_ns: limits::STALL_DEADLINE_MS_DEFAULT * 1_000_000,
            policies: Rules::all(Policy::default()),
            history: Rules::all(HistoryBounds::default()),
            history_bytes_max: limits::HISTORY_BYTES_MAX_DEFAULT,
            keys_per_topic_max: limits::KEYS_PER_TOPIC_MAX_DEFAULT,
            keys_bytes_max: limits::KEYS_BYTES_MAX_DEFAULT,
            publish_rate: 0,
            identity_replaces: false,
            debug_echo: false,
        }
    }
}

impl Limits {
    /// These limits with the live ones of others, as far as they go with the rest, which stays as it is.
    pub fn with_reloadable_from(&self, other: &Limits) -> Limits {
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

    /// What of `new` does not go with the rest, which stays as it is until a restart: lines for the log.
    pub fn changes_needing_restart(&self, new: &Limits) -> Vec<String> {
        let mut lines = Vec::new();
        let mut tell = |key: &str, is: usize, wanted: usize| {
            if is != wanted {
                lines.push(format!(
                    "{key}: {is} until the next start, as frames and logs are as long as they were"
                ));
            }
        };
        tell("limits.outbox_max", self.outbox_bytes_max, new.outbox_bytes_max);
        tell("delivery.behind_size", self.behind_bytes, new.behind_bytes);
        let bytes = |limits: &Limits| -> Vec<usize> {
            let rules = limits.history.rules.iter().map(|(_, bounds)| bounds);
            rules.chain([&limits.history.default]).map(|bounds| bounds.bytes).collect()
        };
        for (is, wanted) in bytes(self).into_iter().zip(bytes(new)) {
            tell("delivery.history", is, wanted);
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
        let live = now.with_reloadable_from(&other);
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
        let live = now.with_reloadable_from(&other);
        assert_eq!(live.outbox_bytes_max, now.egress_log_bytes);
        let told = live.changes_needing_restart(&other);
        assert!(told.len() == 1 && told[0].starts_with("limits.outbox_max: 16777216 until"), "{told:?}");
        assert!(now.changes_needing_restart(&now).is_empty());
    }
}
