//! Delays with full jitter, from random numbers of the caller.

use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
};

use crate::{RECONNECT_BASE_MS, RECONNECT_CAP_MS, backoff::SplitMix};

/// A source of numbers in [0, 1).
pub struct Random(Box<dyn FnMut() -> f64 + Send>);

impl Random {
    /// Numbers of the caller, such as those of a test.
    pub fn new(next: impl FnMut() -> f64 + Send + 'static) -> Random {
        Random(Box::new(next))
    }

    /// Numbers that differ between clients.
    pub fn from_system() -> Random {
        // The standard library seeds its hashers with the system's randomness.
        Random::seeded(RandomState::new().build_hasher().finish())
    }

    /// Equal seeds give equal numbers, so pass a random `seed`.
    pub fn seeded(seed: u64) -> Random {
        let mut random = SplitMix(seed);
        // The 53 bits that a double holds exactly.
        Random::new(move || (random.next() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}

/// Exponential back-off with full jitter, like [`crate::Backoff`]: a random delay up to a bound that doubles with each attempt.
#[derive(Debug, Default)]
pub(super) struct Jitter {
    pub(super) attempts: u32,
}

impl Jitter {
    /// The next delay, in milliseconds.
    pub(super) fn next_ms(&mut self, random: &mut Random) -> u64 {
        // 2^16 exceeds the ratio of the bounds; without it the shift would overflow.
        let bound_ms = (RECONNECT_BASE_MS << self.attempts.min(16)).min(RECONNECT_CAP_MS);
        self.attempts = self.attempts.saturating_add(1);
        let random = (random.0)();
        debug_assert!((0.0..1.0).contains(&random), "a random number is in [0, 1): {random}");
        (random * (bound_ms + 1) as f64) as u64
    }

    /// Starts with small delays again.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}
