//! Admission control: limits on connections, on how fast they are accepted, and on how fast sessions publish.

use std::{collections::HashMap, net::IpAddr};

use crate::ids::SlotId;
use crate::{limits::BURST_NS, metrics::counters::Counter};

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time between two events at the full rate, at least 1 ns.
    interval_ns: u64,
}

impl Pace {
    /// The pace of one of `shares` equal parts of `per_second`; `None` for 0, which means no limit. The interval is rounded
    /// to a whole nanosecond: at a million a second the rate is exact to 0.1 %.
    pub fn new(per_second: u32, shares: u16) -> Option<Pace> {
        let per_second = u64::from(per_second);
        let whole_ns = 1_000_000_000 * u64::from(shares.max(1));
        (per_second > 0).then(|| Pace { interval_ns: ((whole_ns + per_second / 2) / per_second).max(1) })
    }
}

/// A token bucket that holds one second's tokens or as many as its owner says, at least one. 8 bytes, no timer.
///
/// The generic cell rate algorithm (ITU-T I.371, annex A): instead of a number of tokens it stores the time at which the
/// bucket will be full again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    full_again_ns: u64,
}

impl Bucket {
    /// Takes a token, and returns whether there was one. `now_ns`: CLOCK_MONOTONIC.
    pub fn take(&mut self, pace: Pace, now_ns: u64) -> bool {
        let takes = self.has_room(pace, BURST_NS, now_ns);
        if takes {
            self.spend(pace, now_ns);
        }
        takes
    }

    /// Whether a bucket of `burst` tokens has one.
    pub fn has_token(&self, pace: Pace, burst: u32, now_ns: u64) -> bool {
        self.has_room(pace, pace.interval_ns.saturating_mul(u64::from(burst)), now_ns)
    }

    /// Takes a token that is there.
    pub fn spend(&mut self, pace: Pace, now_ns: u64) {
        self.full_again_ns = self.full_again_ns.max(now_ns) + pace.interval_ns;
    }

    fn has_room(&self, pace: Pace, burst_ns: u64, now_ns: u64) -> bool {
        let then_ns = self.full_again_ns.max(now_ns) + pace.interval_ns;
        then_ns - now_ns <= burst_ns.max(pace.interval_ns)
    }
}

/// The publish rate limit of a shard's sessions: one bucket per slot, or none without a limit.
#[derive(Debug)]
pub struct Publishers {
    pace: Option<Pace>,
    /// By slot. Bound: one for each slot ever in use.
    buckets: Vec<Bucket>,
}

impl Publishers {
    /// Limits each session to `per_second` ticks; 0: no limit.
    pub fn new(per_second: u32) -> Publishers {
        Publishers { pace: Pace::new(per_second, 1), buckets: Vec::new() }
    }

    /// Gives a new session in a slot a full bucket.
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

    /// Changes the limit from now on; 0: no limit.
    pub fn set_pace(&mut self, per_second: u32) {
        self.pace = Pace::new(per_second, 1);
    }

    /// Counts one tick of the session in a slot, and returns whether the limit allows it.
    pub fn takes(&mut self, slot: SlotId, now_ns: u64) -> bool {
        let Some(pace) = self.pace else { return true };
        if self.buckets.len() <= slot.index() {
            // The session connected while there was no limit.
            self.buckets.resize(slot.index() + 1, Bucket::default());
        }
        self.buckets[slot.index()].take(pace, now_ns)
    }

    /// Bytes allocated for buckets.
    pub fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }
}

/// The key by which connections are counted: an IPv4 address, or the /64 of an IPv6 address.
///
/// A site gets at least a /64 (RFC 6177) and can use any address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin(u128);

impl Origin {
    /// The origin of an address; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn of(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V4(address) => Origin(address.to_ipv6_mapped().to_bits()),
            IpAddr::V6(address) => Origin(address.to_bits() >> 64 << 64),
        }
    }
}

/// Open connections by origin.
///
/// Invariant: no count is 0. Bound: one entry per connection.
#[derive(Debug)]
pub struct Origins {
    connections_max: u32,
    counts: HashMap<Origin, u32>,
}

impl Origins {
    /// Allows each origin at most `connections_max` connections, and always one.
    pub fn new(connections_max: u32) -> Origins {
        Origins { connections_max, counts: HashMap::new() }
    }

    /// Counts a connection, unless its origin is at the limit. Returns whether it was counted.
    pub fn enter(&mut self, origin: Origin) -> bool {
        let count = self.counts.entry(origin).or_default();
        // The limit is at least 1, so a new entry never stays at 0.
        let enters = *count < self.connections_max.max(1);
        *count += u32::from(enters);
        enters
    }

    /// Subtracts a connection that has ended.
    pub fn leave(&mut self, origin: Origin) {
        let Some(count) = self.counts.get_mut(&origin) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&origin);
        }
    }

    /// Whether no connection is counted.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server is at its connection limit.
    Clients,
    /// Its origin is at its connection limit.
    Source,
    /// The accept rate limit is used up.
    Rate,
    /// The shard is overloaded.
    Overload,
    /// Its tenant has used up its quota.
    Tenant,
}

impl Refusal {
    /// The HTTP status of the refusal (RFC 9110, section 15.6.4; RFC 6585, section 4).
    pub fn status(self) -> u16 {
        match self {
            Refusal::Clients | Refusal::Overload => 503,
            Refusal::Source | Refusal::Rate | Refusal::Tenant => 429,
        }
    }

    /// The message for the client.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Clients => "the server is at its connection limit (--max-clients)",
            Refusal::Source => "too many connections from your address (--max-clients-per-source)",
            Refusal::Overload => "the server is overloaded (--overload-refuse)",
            Refusal::Tenant => "the tenant has as many connections as it may have (quota of its [[tenant]])",
            Refusal::Rate => "connections arrive faster than the server accepts them (--accept-rate)",
        }
    }

    /// The counter of connections refused for this reason.
    pub fn counter(self) -> Counter {
        match self {
            Refusal::Clients => Counter::SessionsRefused,
            Refusal::Source => Counter::SessionsRefusedSource,
            Refusal::Rate => Counter::SessionsRefusedRate,
            Refusal::Overload => Counter::SessionsRefusedOverload,
            Refusal::Tenant => Counter::SessionsRefusedTenant,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_bucket_gives_one_second_of_tokens_at_once_and_then_its_rate() {
        for (per_second, shares, burst) in [(10, 1, 10), (10, 4, 2), (1, 1, 1), (1, 4, 1), (1_000, 1, 1_000)]
        {
            let (pace, mut bucket) = (Pace::new(per_second, shares).unwrap(), Bucket::default());
            let start = 5 * SECOND;
            assert_eq!((0..2_000).filter(|_| bucket.take(pace, start)).count(), burst, "{per_second}");
            // Asked a thousand times a second for ten seconds, it gives its rate and no more.
            let taken = (1..=10_000).filter(|n| bucket.take(pace, start + n * SECOND / 1_000)).count() as u64;
            let expected = 10 * u64::from(per_second) / u64::from(shares);
            assert!((expected.saturating_sub(1)..=expected + 1).contains(&taken), "{taken} of {expected}");
        }
    }

    #[test]
    fn an_unused_bucket_never_holds_more_than_one_second_of_tokens() {
        let (pace, mut bucket) = (Pace::new(5, 1).unwrap(), Bucket::default());
        for round in 1..4 {
            let now = round * 1_000 * SECOND;
            assert_eq!((0..20).filter(|_| bucket.take(pace, now)).count(), 5);
        }
    }

    #[test]
    fn each_session_has_its_own_bucket_and_a_new_one_starts_full() {
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
    fn a_rate_of_0_is_no_limit_and_the_highest_rate_is_exact() {
        assert_eq!(Pace::new(0, 1), None);
        let pace = Pace::new(crate::limits::RATE_HIGHEST, 1).unwrap();
        assert_eq!(SECOND / pace.interval_ns, u64::from(crate::limits::RATE_HIGHEST));
    }

    #[test]
    fn an_origin_is_an_ipv4_address_or_an_ipv6_site() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_ne!(of("::1"), of("0.0.0.1"));
    }

    #[test]
    fn each_origin_has_its_own_count_and_an_unused_one_leaves_no_entry() {
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
