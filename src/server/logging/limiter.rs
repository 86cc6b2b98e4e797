//! A rate limiter for log lines. It counts the lines beyond the limit, so that peers can neither fill the disk nor hide.

const SECOND_NS: u64 = 1_000_000_000;

/// The lines of one kind in the current second.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began_ns: u64,
    written: u32,
    suppressed: u64,
}

impl Window {
    fn is_over(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.began_ns) >= SECOND_NS
    }
}

/// Limits the lines of each of `KINDS` kinds separately. Memory: 24 bytes per kind.
///
/// Before each line, call [`RateLimiter::poll_suppressed`] until it returns `None`, then [`RateLimiter::admit`].
///
/// Invariant: `suppressed` is 0 unless `written` is at the limit.
#[derive(Clone, Debug)]
pub struct RateLimiter<const KINDS: usize> {
    windows: [Window; KINDS],
    lines_per_second: u32,
}

impl<const KINDS: usize> RateLimiter<KINDS> {
    /// Admits this many lines of each kind per second.
    pub fn new(lines_per_second: u32) -> Self {
        RateLimiter { windows: [Window::default(); KINDS], lines_per_second }
    }

    /// Whether to write a line of this kind; counts it as written or suppressed.
    pub fn admit(&mut self, kind: usize, now_ns: u64) -> bool {
        let window = &mut self.windows[kind];
        if window.suppressed == 0 && (window.written == 0 || window.is_over(now_ns)) {
            *window = Window { began_ns: now_ns, written: 0, suppressed: 0 };
        }
        let admitted = window.written < self.lines_per_second;
        match admitted {
            true => window.written += 1,
            false => window.suppressed += 1,
        }
        debug_assert!(window.suppressed == 0 || window.written == self.lines_per_second);
        admitted
    }

    /// A kind whose second is over and the number of its suppressed lines, which is then reset.
    pub fn poll_suppressed(&mut self, now_ns: u64) -> Option<(usize, u64)> {
        let kind = self.windows.iter().position(|window| window.suppressed > 0 && window.is_over(now_ns))?;
        let window = &mut self.windows[kind];
        let suppressed = window.suppressed;
        *window = Window::default();
        Some((kind, suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 7 * SECOND_NS;

    #[test]
    fn a_burst_is_limited_and_counted_after_its_second() {
        let mut limiter = RateLimiter::<2>::new(3);
        let admitted = (0..100).filter(|n| limiter.admit(0, START + n)).count();
        assert_eq!(admitted, 3);
        assert_eq!(limiter.poll_suppressed(START + SECOND_NS - 1), None);
        assert_eq!(limiter.poll_suppressed(START + SECOND_NS), Some((0, 97)));
        assert_eq!(limiter.poll_suppressed(START + SECOND_NS), None, "reported once");
        assert!(limiter.admit(0, START + SECOND_NS));
    }

    #[test]
    fn a_flood_is_limited_in_each_second() {
        let mut limiter = RateLimiter::<1>::new(2);
        let (mut written, mut reports, mut counted) = (0, 0, 0);
        for n in 0..10_000u64 {
            let now_ns = START + n * 1_000_000;
            while let Some((_, suppressed)) = limiter.poll_suppressed(now_ns) {
                reports += 1;
                counted += suppressed;
            }
            written += u64::from(limiter.admit(0, now_ns));
        }
        assert_eq!((written, reports), (20, 9));
        assert_eq!(limiter.poll_suppressed(u64::MAX), Some((0, 10_000 - written - counted)));
    }

    #[test]
    fn kinds_have_separate_limits() {
        let mut limiter = RateLimiter::<2>::new(1);
        assert!(limiter.admit(0, START) && !limiter.admit(0, START));
        assert!(limiter.admit(1, START) && !limiter.admit(1, START));
        let mut reports: Vec<_> = std::iter::from_fn(|| limiter.poll_suppressed(START + SECOND_NS)).collect();
        reports.sort_unstable();
        assert_eq!(reports, [(0, 1), (1, 1)]);
    }

    #[test]
    fn lines_within_the_limit_are_all_written() {
        let mut limiter = RateLimiter::<1>::new(2);
        for n in 0..100 {
            assert!(limiter.admit(0, START + n * SECOND_NS / 2));
        }
        assert_eq!(limiter.poll_suppressed(u64::MAX), None);
    }

    #[test]
    fn a_clock_that_goes_back_does_not_stop_logging() {
        let mut limiter = RateLimiter::<1>::new(1);
        assert!(limiter.admit(0, START));
        assert!(!limiter.admit(0, START - 1));
        assert_eq!(limiter.poll_suppressed(START - 1), None);
        assert_eq!(limiter.poll_suppressed(START + SECOND_NS), Some((0, 1)));
    }
}
