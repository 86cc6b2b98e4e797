//! What was typed, made to mean something: every bound derived and checked before anything starts.

use crate::limits;

/// The bounds that the core works within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame or message from a peer, bytes.
    pub frame_bytes_max: usize,
    /// HTTP request head, bytes.
    pub http_head_bytes_max: usize,
    /// Accept to the end of the handshake, nanoseconds.
    pub handshake_deadline_ns: u64,
    /// Patterns a session may hold.
    pub subscriptions_per_session_max: usize,
    /// Topics of the whole server.
    pub topics_max: usize,
    /// One egress log (shard x encoding in use), bytes.
    pub egress_log_bytes: usize,
    /// Bytes a session may have waiting.
    pub outbox_bytes_max: usize,
    /// Whether `/echo` exists.
    pub debug_echo: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_bytes_max: limits::FRAME_BYTES_MAX_DEFAULT,
            http_head_bytes_max: limits::HTTP_HEAD_BYTES_MAX_DEFAULT,
            handshake_deadline_ns: limits::HANDSHAKE_DEADLINE_MS_DEFAULT * 1_000_000,
            subscriptions_per_session_max: limits::SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT,
            topics_max: limits::TOPICS_MAX_DEFAULT,
            egress_log_bytes: limits::EGRESS_LOG_BYTES_DEFAULT,
            outbox_bytes_max: limits::OUTBOX_BYTES_MAX_DEFAULT,
            debug_echo: false,
        }
    }
}
