//! So many lines a second of each kind, and a count of the rest: what peers cause must not fill the disk, nor be silent.

const SECOND_NS: u64 = 1_000_000_000;

/// What was written of one kind since its second began.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began_ns: u64,
    written: u32,
    left_out: u64,
}

impl Window {
    fn is_over(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.began_ns) >= SECOND_NS
    }
}

/// Limits the lines of `KINDS` kinds, each by itself. Bound: 24 bytes a kind.
///
/// Before each line [`RateLimiter::poll_left_out`] is called until `None`, then [`RateLimiter::admit`].
///
/// Invariant: `left_out` only where `written` is at the limit.
#[derive(Clone, Debug)]
pub struct RateLimiter<const KINDS: usize> {
    windows: [Window; KINDS],
    lines_per_second: u32,
}

impl<const KINDS: usize> RateLimiter<KINDS> {
    /// So many lines of each kind a second.
    pub fn new(lines_per_second: u32) -> Self {
        RateLimiter { windows: [Window::default(); KINDS], lines_per_second }
    }

    /// Whether a line of this kind is to be written. It counts either way.
    pub fn admit(&mut self, kind: usize, now_ns: u64) -> bool {
        let window = &mut self.windows[kind];
        if window.left_out == 0 && (window.written == 0 || window.is_over(now_ns)) {
            *window = Window { began_ns: now_ns, written: 0, left_out: 0 };
        }
        let admitted = window.written < self.lines_per_second;
        match admitted {
            true => window.written += 1,
            false => window.left_out += 1,
        }
        admitted
    }

    /// A kind whose second is over, and how many of its lines were left out: each once.
    pub fn poll_left_out(&mut self, now_ns: u64) -> Option<(usize, u64)> {
        let kind = self.windows.iter().position(|window| window.left_out > 0 && window.is_over(now_ns))?;
        let window = &mut self.windows[kind];
        let left_out = window.left_out;
        *window = Window::default();
        Some((kind, left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 7 * SECOND_NS;

    #[test]
    fn a_burst_is_a_few_lines_and_a_count_once_its_second_is_over() {
        let mut limiter = RateLimiter::<2>::new(3);
        let admitted = (0..100).filter(|n| limiter.admit(0, START + n)).count();
        assert_eq!(admitted, 3);
        assert_eq!(limiter.poll_left_out(START + SECOND_NS - 1), None);
        assert_eq!(limiter.poll_left_out(START + SECOND_NS), Some((0, 97)));
        assert_eq!(limiter.poll_left_out(START + SECOND_NS), None, "told once");
        assert!(limiter.admit(0, START + SECOND_NS));
    }

    #[test]
    fn a_flood_is_the_same_few_lines_each_second() {
        let mut limiter = RateLimiter::<1>::new(2);
        let (mut written, mut told, mut counted) = (0, 0, 0);
        for n in 0..10_000u64 {
            let now_ns = START + n * 1_000_000;
            while let Some((_, left_out)) = limiter.poll_left_out(now_ns) {
                told += 1;
                counted += left_out;
            }
            written += u64::from(limiter.admit(0, now_ns));
        }
        assert_eq!((written, told), (20, 9));
        assert_eq!(limiter.poll_left_out(u64::MAX), Some((0, 10_000 - written - counted)));
    }

    #[test]
    fn kinds_do_not_take_each_others_lines() {
        let mut limiter = RateLimiter::<2>::new(1);
        assert!(limiter.admit(0, START) && !limiter.admit(0, START));
        assert!(limiter.admit(1, START) && !limiter.admit(1, START));
        let mut told: Vec<_> = std::iter::from_fn(|| limiter.poll_left_out(START + SECOND_NS)).collect();
        told.sort_unstable();
        assert_eq!(told, [(0, 1), (1, 1)]);
    }

    #[test]
    fn few_lines_are_all_written_and_none_is_counted() {
        let mut limiter = RateLimiter::<1>::new(2);
        for n in 0..100 {
            assert!(limiter.admit(0, START + n * SECOND_NS / 2));
        }
        assert_eq!(limiter.poll_left_out(u64::MAX), None);
    }

    #[test]
    fn a_clock_that_goes_back_does_not_stop_the_lines() {
        let mut limiter = RateLimiter::<1>::new(1);
        assert!(limiter.admit(0, START));
        assert!(!limiter.admit(0, START - 1));
        assert_eq!(limiter.poll_left_out(START - 1), None);
        assert_eq!(limiter.poll_left_out(START + SECOND_NS), Some((0, 1)));
    }
}
