//! Admission control: limits on connections and on the accept rate.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    net::IpAddr,
    sync::Arc,
};

use crate::{ids::SourceId, metrics::counters::Counter, networks::Networks};

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

/// Finds the origins and sources of addresses. Clones find the same ones.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Hashes origins to [`SourceId`]s: the same on all shards, and secret, so that clients cannot choose a collision.
    key: RandomState,
    /// Addresses without a limit, such as those of proxies, which all their clients share.
    unlimited: Arc<Networks>,
    /// Trusted proxies: their own addresses have no limit, and the client addresses that they report are trusted.
    proxies: Arc<Networks>,
}

impl Sources {
    /// Limits all addresses but those in `unlimited` and `proxies`.
    pub fn new(unlimited: Networks, proxies: Networks) -> Sources {
        Sources { key: RandomState::new(), unlimited: Arc::new(unlimited), proxies: Arc::new(proxies) }
    }

    /// Whether an address is that of a trusted proxy.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.contain(address)
    }

    /// The origin and the source of an address; `None` if it has no limits.
    pub fn find(&self, address: IpAddr) -> Option<(Origin, SourceId)> {
        if self.unlimited.contain(address) || self.proxies.contain(address) {
            return None;
        }
        let origin = Origin::of(address);
        // 0 means no limit.
        Some((origin, SourceId(self.key.hash_one(origin) as u32 | 1)))
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
    /// Allows each origin at most `connections_max` connections, and always at least one.
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
    /// The client's origin is at its connection limit.
    Source,
    /// The accept rate limit is exhausted.
    Rate,
    /// The shard is overloaded.
    Overload,
    /// The client's tenant has used up its quota.
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
