//! Reconnect delays, and which failures are worth a retry. Uses no socket, clock or random source.

use crate::{
    ClientError, ProtocolError, RECONNECT_AFTER_MS_MAX, RECONNECT_BASE_MS, RECONNECT_CAP_MS,
    RECONNECT_STABLE_MS,
};

/// Delays between connection attempts: exponential backoff with full jitter, `random(0, min(cap, base * 2^attempt))`.
///
/// Of the variants compared in "Exponential Backoff And Jitter" (AWS architecture blog), full jitter puts the least load
/// on a server that comes back.
///
/// Invariant: without a delay requested by the server, no delay exceeds `cap_ms`.
#[derive(Clone, Debug)]
pub struct Backoff {
    base_ms: u64,
    cap_ms: u64,
    random: SplitMix,
    attempt: u32,
    connected_since_ns: Option<u64>,
}

impl Backoff {
    /// Delays bounded by [`RECONNECT_BASE_MS`] at first and [`RECONNECT_CAP_MS`] at most. Equal seeds give equal delays, so
    /// pass a random `seed`.
    pub fn new(seed: u64) -> Backoff {
        Backoff::with_bounds(seed, RECONNECT_BASE_MS, RECONNECT_CAP_MS)
    }

    /// Delays with other bounds, in milliseconds.
    pub fn with_bounds(seed: u64, base_ms: u64, cap_ms: u64) -> Backoff {
        Backoff { base_ms, cap_ms, random: SplitMix(seed), attempt: 0, connected_since_ns: None }
    }

    /// Records that the server welcomed the client at `now_ns`, nanoseconds on a monotonic clock.
    pub fn handle_connected(&mut self, now_ns: u64) {
        self.connected_since_ns = Some(now_ns);
    }

    /// Returns the delay before the next attempt, in milliseconds, after the connection was lost at `now_ns` or an
    /// attempt failed.
    ///
    /// Delays start small again once a connection lasted [`RECONNECT_STABLE_MS`]. A welcome alone is not enough: a server
    /// may accept every client and close it at once. `reconnect_after_ms` is the delay the server requested, honoured up
    /// to [`RECONNECT_AFTER_MS_MAX`]; the jitter is added to it, so that clients that were closed together do not return
    /// together.
    pub fn handle_disconnected(&mut self, now_ns: u64, reconnect_after_ms: u32) -> u64 {
        let connected_ns =
            self.connected_since_ns.take().map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        if connected_ns >= RECONNECT_STABLE_MS * 1_000_000 {
            self.attempt = 0;
        }
        let bound_ms = self.base_ms.saturating_mul(1 << self.attempt.min(32)).min(self.cap_ms);
        self.attempt = self.attempt.saturating_add(1);
        u64::from(reconnect_after_ms).min(RECONNECT_AFTER_MS_MAX) + self.random.next() % (bound_ms + 1)
    }

    /// Attempts since the last connection that lasted [`RECONNECT_STABLE_MS`].
    pub fn attempts(&self) -> u32 {
        self.attempt
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): delays must differ between clients, but need not be secret.
#[derive(Clone, Debug)]
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Whether a client may reconnect after the server closed with this code. 0 and 1005 mean that no code was given.
pub fn is_retryable_close(close_code: u16) -> bool {
    // Proxies send 1012 and 1013 while they restart or are overloaded (IANA, WebSocket Close Code Number Registry). The
    // other codes below 3000 say that this client broke the protocol, which it would do again.
    matches!(close_code, 0 | 1001 | 1005 | 1006 | 1012 | 1013 | 3000..=3499 | CLOSE_NOT_ADMITTED)
}

/// Close code with which a server refuses to admit the client now.
const CLOSE_NOT_ADMITTED: u16 = 3504;
/// Shortest delay after [`CLOSE_NOT_ADMITTED`], in milliseconds.
const NOT_ADMITTED_DELAY_MS: u32 = 1_000;

/// The delay that a close code and the server's request imply, in milliseconds; the jitter is added to it.
pub(super) fn delay_ms_min(close_code: u16, reconnect_after_ms: u32) -> u32 {
    match close_code {
        CLOSE_NOT_ADMITTED => reconnect_after_ms.max(NOT_ADMITTED_DELAY_MS),
        _ => reconnect_after_ms,
    }
}

impl ClientError {
    /// Whether a new connection may succeed after this error.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Closed { code, .. } => is_retryable_close(*code),
            ClientError::Io(_) | ClientError::Connect { .. } | ClientError::TimedOut { .. } => true,
            // Certificates expire and are renewed, on both sides. So do tokens, whose file may be between two of them.
            ClientError::Tls { .. } | ClientError::TokenFile(_) => true,
            // The connection was cut, or a proxy answered for a server that is down.
            ClientError::Protocol(ProtocolError::Truncated | ProtocolError::Handshake(_)) => true,
            ClientError::Protocol(_)
            | ClientError::Address(_)
            | ClientError::TlsSettings(_)
            | ClientError::Refused { .. }
            | ClientError::Request(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn each_delay_is_within_a_bound_that_doubles_up_to_the_cap() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(seed);
            for bound_ms in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000] {
                assert!(backoff.handle_disconnected(0, 0) <= bound_ms, "seed {seed}");
            }
            for _ in 0..100 {
                assert!(backoff.handle_disconnected(0, 0) <= 20_000);
            }
        }
    }

    #[test]
    fn delays_spread_over_the_whole_bound() {
        let mut delays: Vec<u64> =
            (0..1_000).map(|seed| Backoff::new(seed).handle_disconnected(0, 0)).collect();
        delays.sort_unstable();
        assert!(delays[0] < 10 && delays[999] > 490);
        assert!((200..300).contains(&delays[500]), "{}", delays[500]);
        delays.dedup();
        assert!(delays.len() > 300, "clients do not return together");
    }

    #[test]
    fn equal_seeds_give_equal_delays() {
        let delays = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..10).map(|_| backoff.handle_disconnected(0, 0)).collect::<Vec<_>>()
        };
        assert_eq!(delays(7), delays(7));
        assert_ne!(delays(7), delays(8));
    }

    #[test]
    fn only_a_connection_that_lasted_resets_the_delays() {
        let mut backoff = Backoff::new(1);
        for _ in 0..10 {
            backoff.handle_disconnected(0, 0);
        }
        backoff.handle_connected(SECOND_NS);
        backoff.handle_disconnected(SECOND_NS + RECONNECT_STABLE_MS * 1_000_000 - 1, 0);
        assert_eq!(backoff.attempts(), 11);
        backoff.handle_connected(100 * SECOND_NS);
        assert!(backoff.handle_disconnected(100 * SECOND_NS + RECONNECT_STABLE_MS * 1_000_000, 0) <= 500);
        assert_eq!(backoff.attempts(), 1);
        // A failed attempt does not count as a connection.
        backoff.handle_disconnected(1_000 * SECOND_NS, 0);
        assert_eq!(backoff.attempts(), 2);
    }

    #[test]
    fn requested_delay_is_the_minimum_and_is_capped() {
        for seed in 0..100 {
            let delay_ms = Backoff::new(seed).handle_disconnected(0, 5_000);
            assert!((5_000..=5_500).contains(&delay_ms));
            assert!(Backoff::new(seed).handle_disconnected(0, u32::MAX) <= RECONNECT_AFTER_MS_MAX + 500);
        }
    }

    #[test]
    fn close_codes_tell_whether_to_reconnect() {
        for code in [0, 1001, 1005, 1006, 1012, 1013, 3000, 3008, 3499, 3504] {
            assert!(is_retryable_close(code), "{code}");
        }
        for code in [1000, 1002, 1003, 1007, 1009, 3500, 3501, 3502, 3999, 4000] {
            assert!(!is_retryable_close(code), "{code}");
        }
    }
}
