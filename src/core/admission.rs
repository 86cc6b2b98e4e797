//! Who is let in and how fast: the arithmetic of the limits on connections and on publishing. `now` comes in, a yes
//! or no goes out.

use std::{collections::HashMap, net::IpAddr};

use crate::ids::SlotId;
use crate::{limits::BURST_NS, metrics::counters::Counter};

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Nanoseconds that one happening uses up, at least 1.
    interval_ns: u64,
}

impl Pace {
    /// One of `shares` equal parts of `per_second`; `None` for 0, which is no limit. Rounded to a whole nanosecond each:
    /// at a million a second that is exact to 0.1 %.
    pub fn new(per_second: u32, shares: u16) -> Option<Pace> {
        let per_second = u64::from(per_second);
        let whole_ns = 1_000_000_000 * u64::from(shares.max(1));
        (per_second > 0).then(|| Pace { interval_ns: ((whole_ns + per_second / 2) / per_second).max(1) })
    }
}

/// A token bucket that holds one second's worth, at least one token: 8 bytes, no timer. The generic cell rate algorithm
/// (ITU-T I.371, annex A): instead of tokens it keeps the time at which the bucket would be full again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_again_ns: u64,
}

impl Bucket {
    /// Takes a token if there is one. `now_ns`: CLOCK_MONOTONIC.
    pub fn take(&mut self, pace: Pace, now_ns: u64) -> bool {
        let then_ns = self.full_again_ns.max(now_ns) + pace.interval_ns;
        let takes = then_ns - now_ns <= BURST_NS.max(pace.interval_ns);
        if takes {
            self.full_again_ns = then_ns;
        }
        takes
    }
}

/// How fast each session of a shard may publish: a bucket for each slot, none without a limit.
#[derive(Debug)]
pub struct Publishers {
    pace: Option<Pace>,
    /// By slot. Bound: one for each session there was at once.
    buckets: Vec<Bucket>,
}

impl Publishers {
    /// So many ticks a second each; 0: any number.
    pub fn new(per_second: u32) -> Publishers {
        Publishers { pace: Pace::new(per_second, 1), buckets: Vec::new() }
    }

    /// A new session is in a slot: it has published nothing yet.
    pub fn enter(&mut self, slot: SlotId) {
        if self.pace.is_none() {
            return;
        }
        let slot = slot.index();
        if self.buckets.len() <= slot {
            self.buckets.resize(slot + 1, Bucket::default());
        }
        self.buckets[slot] = Bucket::default();
    }

    /// So many ticks a second each from now on; 0: any number.
    pub fn set_pace(&mut self, per_second: u32) {
        self.pace = Pace::new(per_second, 1);
    }

    /// Whether the session in a slot may publish one more tick now, which counts if it may.
    pub fn takes(&mut self, slot: SlotId, now_ns: u64) -> bool {
        let Some(pace) = self.pace else { return true };
        if self.buckets.len() <= slot.index() {
            // It came when there was no limit.
            self.buckets.resize(slot.index() + 1, Bucket::default());
        }
        self.buckets[slot.index()].take(pace, now_ns)
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}

/// Where a connection comes from, as it is counted: an IPv4 address, or the /64 of an IPv6 address, which is what one
/// site is given (RFC 6177): whoever has it can use any address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin(u128);

impl Origin {
    /// Of an address; IPv4 within IPv6 counts as IPv4.
    pub fn of(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V4(address) => Origin(address.to_ipv6_mapped().to_bits()),
            IpAddr::V6(address) => Origin(address.to_bits() >> 64 << 64),
        }
    }
}

/// Connections by where they come from.
///
/// Invariant: no count is 0. Bound: one entry a connection.
#[derive(Debug)]
pub struct Origins {
    connections_max: u32,
    counts: HashMap<Origin, u32>,
}

impl Origins {
    /// At most so many connections each.
    pub fn new(connections_max: u32) -> Origins {
        Origins { connections_max, counts: HashMap::new() }
    }

    /// Counts a connection, unless its origin has as many as it may.
    pub fn enter(&mut self, origin: Origin) -> bool {
        let count = self.counts.entry(origin).or_default();
        // With a maximum of at least 1 a new entry is always counted.
        let enters = *count < self.connections_max.max(1);
        *count += u32::from(enters);
        enters
    }

    /// A connection that was counted has ended.
    pub fn leave(&mut self, origin: Origin) {
        if let Some(count) = self.counts.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&origin);
            }
        }
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

/// Why a connection is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server serves as many as it may.
    Clients,
    /// The address it comes from has as many as it may.
    Source,
    /// More come than may in a second.
    Rate,
}

impl Refusal {
    /// The HTTP status that says so (RFC 9110, section 15.6.4; RFC 6585, section 4).
    pub fn status(self) -> u16 {
        match self {
            Refusal::Clients => 503,
            Refusal::Source | Refusal::Rate => 429,
        }
    }

    /// For a person.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Clients => "the server has as many connections as it may (--max-clients)",
            Refusal::Source => "your address has as many connections as it may (--max-clients-per-source)",
            Refusal::Rate => "more connections come than may in a second (--accept-rate)",
        }
    }

    /// Where it is counted.
    pub fn counter(self) -> Counter {
        match self {
            Refusal::Clients => Counter::SessionsRefused,
            Refusal::Source => Counter::SessionsRefusedSource,
            Refusal::Rate => Counter::SessionsRefusedRate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_bucket_gives_a_seconds_worth_at_once_and_then_its_pace() {
        for (per_second, shares, burst) in [(10, 1, 10), (10, 4, 2), (1, 1, 1), (1, 4, 1), (1_000, 1, 1_000)]
        {
            let (pace, mut bucket) = (Pace::new(per_second, shares).unwrap(), Bucket::default());
            let start = 5 * SECOND;
            assert_eq!((0..2_000).filter(|_| bucket.take(pace, start)).count(), burst, "{per_second}");
            // Ten seconds on, asked a thousand times a second: the pace, no more.
            let taken = (1..=10_000).filter(|n| bucket.take(pace, start + n * SECOND / 1_000)).count() as u64;
            let expected = 10 * u64::from(per_second) / u64::from(shares);
            assert!((expected.saturating_sub(1)..=expected + 1).contains(&taken), "{taken} of {expected}");
        }
    }

    #[test]
    fn a_bucket_that_was_left_alone_is_full_and_no_fuller() {
        let (pace, mut bucket) = (Pace::new(5, 1).unwrap(), Bucket::default());
        for round in 1..4 {
            let now = round * 1_000 * SECOND;
            assert_eq!((0..20).filter(|_| bucket.take(pace, now)).count(), 5);
        }
    }

    #[test]
    fn each_session_has_its_own_pace_and_a_new_one_starts_afresh() {
        let mut publishers = Publishers::new(1);
        publishers.enter(SlotId(0));
        publishers.enter(SlotId(5));
        assert!(
            publishers.takes(SlotId(0), SECOND)
                && !publishers.takes(SlotId(0), SECOND)
                && publishers.takes(SlotId(5), SECOND)
        );
        publishers.enter(SlotId(0));
        assert!(publishers.takes(SlotId(0), SECOND));
        let mut free = Publishers::new(0);
        free.enter(SlotId(0));
        assert!((0..1_000).all(|_| free.takes(SlotId(0), SECOND)));
        assert_eq!(free.bytes(), 0);
    }

    #[test]
    fn no_rate_is_no_limit_and_the_highest_is_exact() {
        assert_eq!(Pace::new(0, 1), None);
        let pace = Pace::new(crate::limits::RATE_HIGHEST, 1).unwrap();
        assert_eq!(SECOND / pace.interval_ns, u64::from(crate::limits::RATE_HIGHEST));
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_site() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_ne!(of("::1"), of("0.0.0.1"));
    }

    #[test]
    fn each_source_has_its_own_count_and_nothing_is_left_of_it() {
        let (a, b) = (Origin(1), Origin(2));
        let mut origins = Origins::new(2);
        assert!(origins.enter(a) && origins.enter(a) && !origins.enter(a) && origins.enter(b));
        origins.leave(a);
        assert!(origins.enter(a) && !origins.enter(a));
        (0..2).for_each(|_| origins.leave(a));
        origins.leave(b);
        origins.leave(b);
        assert!(origins.is_empty());
    }
}
