//! Measures how much of the time a session's socket is full, to distinguish a slow client from a server that lacks CPU time.

use crate::limits::{FULLNESS_MS, OVERLOAD_WAIT_MS, STUCK_MS};

/// While the shard is saturated, a session is slow only if its socket was full this many times as long as it had room.
const SATURATED_FULL_SHARE: u32 = 9;

/// How long a socket was full and how long it had room, since it first became full. Older times count less. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fullness {
    full_ms: u32,
    free_ms: u32,
    /// When the socket last changed: the low 32 bits of CLOCK_MONOTONIC milliseconds.
    changed_ms: u32,
    is_full: bool,
    has_been_full: bool,
}

impl Fullness {
    /// Records that the socket became full, or took everything again, at `now_ms` (the low 32 bits).
    pub fn change(&mut self, is_full: bool, now_ms: u32) {
        if self.has_been_full {
            (self.full_ms, self.free_ms) = self.times(now_ms);
            while self.full_ms + self.free_ms > FULLNESS_MS {
                (self.full_ms, self.free_ms) = (self.full_ms / 2, self.free_ms / 2);
            }
        }
        self.has_been_full |= is_full;
        (self.is_full, self.changed_ms) = (is_full, now_ms);
    }

    /// Milliseconds since the socket became full; 0 if it has room.
    pub fn full_ms(&self, now_ms: u32) -> u32 {
        if self.is_full { now_ms.wrapping_sub(self.changed_ms) } else { 0 }
    }

    /// Whether the socket was full for most of the time up to `now_ms`, or has been full for as long as a tick may wait before
    /// its loss is blamed on overload. `is_saturated`: the shard is so busy that even a fast client may not keep up. Then a
    /// session is slow only if its socket has not taken all of one SEND for [`STUCK_MS`], or was full nearly all the time.
    pub fn is_slow(&self, now_ms: u32, is_saturated: bool) -> bool {
        if !self.has_been_full {
            return false;
        }
        let (full_ms, free_ms) = self.times(now_ms);
        let is_full_for = |ms: u32| self.is_full && now_ms.wrapping_sub(self.changed_ms) >= ms;
        match is_saturated {
            true => {
                is_full_for(STUCK_MS)
                    || (full_ms >= STUCK_MS && full_ms >= free_ms.saturating_mul(SATURATED_FULL_SHARE))
            }
            false => {
                full_ms > free_ms
                    || (self.is_full && full_ms == free_ms)
                    || is_full_for(OVERLOAD_WAIT_MS as u32)
            }
        }
    }

    fn times(&self, now_ms: u32) -> (u32, u32) {
        // A long time in one state outweighs everything before it.
        let since_ms = now_ms.wrapping_sub(self.changed_ms).min(2 * FULLNESS_MS);
        match self.is_full {
            true => (self.full_ms + since_ms, self.free_ms),
            false => (self.full_ms, self.free_ms + since_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_never_full_is_not_slow() {
        assert!(!Fullness::default().is_slow(0, false) && !Fullness::default().is_slow(u32::MAX, false));
    }

    #[test]
    fn a_socket_that_fills_and_stays_full_is_slow_at_once() {
        let mut fullness = Fullness::default();
        fullness.change(true, 5_000);
        assert!(fullness.is_slow(5_000, false) && fullness.is_slow(9_000_000, false));
    }

    #[test]
    fn a_socket_that_has_just_become_full_after_a_long_time_is_slow_before_its_ticks_wait_for_long() {
        let mut fullness = Fullness::default();
        fullness.change(true, 1_000);
        fullness.change(false, 1_001);
        fullness.change(true, 60_000);
        assert!(!fullness.is_slow(60_000 + OVERLOAD_WAIT_MS as u32 - 1, false));
        assert!(fullness.is_slow(60_000 + OVERLOAD_WAIT_MS as u32, false));
        assert!(!fullness.is_slow(60_000 + STUCK_MS - 1, true) && fullness.is_slow(60_000 + STUCK_MS, true));
    }

    #[test]
    fn a_client_that_takes_a_send_now_and_then_is_slow_on_a_saturated_shard_too() {
        let mut fullness = Fullness::default();
        for now_ms in (0..9_000).step_by(900) {
            fullness.change(true, now_ms);
            fullness.change(false, now_ms + 899);
        }
        assert!(fullness.is_slow(9_000, true));
    }

    #[test]
    fn a_client_that_reads_a_little_at_a_time_stays_slow_in_between() {
        let mut fullness = Fullness::default();
        for now_ms in (0..10_000).step_by(10) {
            fullness.change(true, now_ms);
            fullness.change(false, now_ms + 9);
            assert!(fullness.is_slow(now_ms + 9, false) && fullness.is_slow(now_ms + 10, false));
        }
    }

    #[test]
    fn a_socket_that_is_full_for_a_moment_now_and_then_is_not_slow() {
        let mut fullness = Fullness::default();
        fullness.change(true, 0);
        fullness.change(false, 1);
        for now_ms in (10..10_000).step_by(10) {
            fullness.change(true, now_ms);
            assert!(!fullness.is_slow(now_ms, false));
            fullness.change(false, now_ms + 2);
        }
    }

    #[test]
    fn a_socket_that_is_full_for_a_while_is_not_slow_while_the_server_has_no_time() {
        let mut fullness = Fullness::default();
        fullness.change(true, 0);
        assert!(fullness.is_slow(500, false) && !fullness.is_slow(500, true));
        assert!(fullness.is_slow(STUCK_MS, true), "one that stays full is, whatever the server does");
        fullness.change(false, 500);
        assert!(!fullness.is_slow(500, true) && !fullness.is_slow(5_000, true));
        assert!(!Fullness::default().is_slow(9_000, true));
    }

    #[test]
    fn a_client_that_was_slow_and_reads_again_is_forgiven_within_the_window() {
        let mut fullness = Fullness::default();
        fullness.change(true, 0);
        fullness.change(false, 60_000);
        assert!(fullness.is_slow(60_000, false) && !fullness.is_slow(60_000 + FULLNESS_MS, false));
    }
}
