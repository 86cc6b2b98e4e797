//! When to connect again: no socket, no clock, no source of chance of its own.

use crate::{
    ClientError, RECONNECT_AFTER_MS_MAX, RECONNECT_BASE_MS, RECONNECT_CAP_MS, RECONNECT_STABLE_MS,
    SessionError,
};

/// Pauses between attempts: full jitter, as in "Exponential Backoff And Jitter" of the AWS architecture blog:
/// `random(0, min(cap, base * 2^attempt))`. Of the ways compared there it loads a server that returns the least.
///
/// Invariant: a pause without the server's wish is at most `cap_ms`.
#[derive(Clone, Debug)]
pub struct Backoff {
    base_ms: u64,
    cap_ms: u64,
    /// State of SplitMix64 (Steele, Lea, Flood 2014): pauses need to differ, not to be secret.
    random: u64,
    attempt: u32,
    up_since_ns: Option<u64>,
}

impl Backoff {
    /// Pauses from [`RECONNECT_BASE_MS`] to [`RECONNECT_CAP_MS`]. Clients with one `seed` wait alike: take a random one.
    pub fn new(seed: u64) -> Backoff {
        Backoff::with_bounds(seed, RECONNECT_BASE_MS, RECONNECT_CAP_MS)
    }

    /// Pauses with other bounds, in milliseconds.
    pub fn with_bounds(seed: u64, base_ms: u64, cap_ms: u64) -> Backoff {
        Backoff { base_ms, cap_ms, random: seed, attempt: 0, up_since_ns: None }
    }

    /// The server has welcomed at `now_ns`.
    pub fn handle_connected(&mut self, now_ns: u64) {
        self.up_since_ns = Some(now_ns);
    }

    /// The connection was lost at `now_ns`, or could not be made: milliseconds to wait before the next attempt.
    ///
    /// Pauses begin small again once a session stayed up for [`RECONNECT_STABLE_MS`]. A welcome alone does not do
    /// it: a server that takes every client and closes it at once is one to be careful with.
    /// `reconnect_after_ms` is the server's wish, up to [`RECONNECT_AFTER_MS_MAX`]; the jitter comes on top, so
    /// that those who were sent away together do not return together.
    pub fn handle_lost(&mut self, now_ns: u64, reconnect_after_ms: u32) -> u64 {
        let up_ns = self.up_since_ns.take().map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        if up_ns >= RECONNECT_STABLE_MS * 1_000_000 {
            self.attempt = 0;
        }
        let bound_ms = self.base_ms.saturating_mul(1 << self.attempt.min(32)).min(self.cap_ms);
        self.attempt = self.attempt.saturating_add(1);
        u64::from(reconnect_after_ms).min(RECONNECT_AFTER_MS_MAX) + self.next_random() % (bound_ms + 1)
    }

    /// Attempts since the last session that stayed up.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Whether a server that closed with this code wants its clients back. 0 and 1005: it said nothing.
pub fn is_welcome_back(close_code: u16) -> bool {
    // 1012 and 1013 are what proxies say while they restart or are full (IANA, WebSocket Close Code Number Registry).
    // The rest below 3000 says that this client broke the protocol: it would again.
    matches!(close_code, 0 | 1001 | 1005 | 1006 | 1012 | 1013 | 3000..=3499 | CLOSE_NOT_LET_IN)
}

/// The close code of a server that has no room now: it asks for a pause of a second or more.
const CLOSE_NOT_LET_IN: u16 = 3504;
/// That pause, in milliseconds.
const NOT_LET_IN_PAUSE_MS: u32 = 1_000;

/// The least pause before the next attempt, of what the server wished with a close code.
pub(super) fn pause_ms_min(close_code: u16, reconnect_after_ms: u32) -> u32 {
    match close_code {
        CLOSE_NOT_LET_IN => reconnect_after_ms.max(NOT_LET_IN_PAUSE_MS),
        _ => reconnect_after_ms,
    }
}

/// Whether another attempt may fare better than the one that ended so.
pub(super) fn is_worth_another_try(error: &ClientError) -> bool {
    match error {
        ClientError::Closed { code, .. } => is_welcome_back(*code),
        ClientError::Io(_) | ClientError::Connect { .. } | ClientError::TimedOut { .. } => true,
        // A connection that was cut, and a proxy whose server is away.
        ClientError::Session(SessionError::Truncated | SessionError::Handshake(_)) => true,
        ClientError::Session(_) | ClientError::Address(_) | ClientError::Request(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn every_pause_is_within_a_bound_that_doubles_up_to_the_cap() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(seed);
            for bound_ms in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000] {
                assert!(backoff.handle_lost(0, 0) <= bound_ms, "seed {seed}");
            }
            for _ in 0..100 {
                assert!(backoff.handle_lost(0, 0) <= 20_000);
            }
        }
    }

    #[test]
    fn pauses_are_spread_over_the_whole_bound() {
        let mut pauses: Vec<u64> = (0..1_000).map(|seed| Backoff::new(seed).handle_lost(0, 0)).collect();
        pauses.sort_unstable();
        assert!(pauses[0] < 10 && pauses[999] > 490);
        assert!((200..300).contains(&pauses[500]), "{}", pauses[500]);
        pauses.dedup();
        assert!(pauses.len() > 300, "clients do not return together");
    }

    #[test]
    fn one_seed_gives_one_row_of_pauses() {
        let row = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..10).map(|_| backoff.handle_lost(0, 0)).collect::<Vec<_>>()
        };
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
    }

    #[test]
    fn only_a_session_that_stayed_up_makes_pauses_small_again() {
        let mut backoff = Backoff::new(1);
        for _ in 0..10 {
            backoff.handle_lost(0, 0);
        }
        backoff.handle_connected(SECOND_NS);
        backoff.handle_lost(SECOND_NS + RECONNECT_STABLE_MS * 1_000_000 - 1, 0);
        assert_eq!(backoff.attempts(), 11);
        backoff.handle_connected(100 * SECOND_NS);
        assert!(backoff.handle_lost(100 * SECOND_NS + RECONNECT_STABLE_MS * 1_000_000, 0) <= 500);
        assert_eq!(backoff.attempts(), 1);
        // An attempt that failed is no session.
        backoff.handle_lost(1_000 * SECOND_NS, 0);
        assert_eq!(backoff.attempts(), 2);
    }

    #[test]
    fn the_servers_wish_is_the_least_and_a_wish_for_ever_is_not_granted() {
        for seed in 0..100 {
            let pause_ms = Backoff::new(seed).handle_lost(0, 5_000);
            assert!((5_000..=5_500).contains(&pause_ms));
            assert!(Backoff::new(seed).handle_lost(0, u32::MAX) <= RECONNECT_AFTER_MS_MAX + 500);
        }
    }

    #[test]
    fn close_codes_say_who_may_return() {
        for code in [0, 1001, 1005, 1006, 1012, 1013, 3000, 3008, 3499, 3504] {
            assert!(is_welcome_back(code), "{code}");
        }
        for code in [1000, 1002, 1003, 1007, 1009, 3500, 3501, 3502, 3999, 4000] {
            assert!(!is_welcome_back(code), "{code}");
        }
    }
}
