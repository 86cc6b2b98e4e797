//! Chooses the shard that serves an accepted connection.
//! The kernel spreads connections over the shards' listening sockets by hash, which is uneven: one shard may get six of eight
//! connections, so that each of these clients gets a sixth of that shard. Therefore a shard with clearly more sessions than
//! another passes new connections on. That costs a wake-up of the other shard. Sessions do not move later.

use std::sync::Arc;

use tickcast_core::metrics::counters::{Counter, Counters};
use tickcast_proto::ids::ShardId;

/// A shard passes a connection on only if it has over 1/8 more sessions than the shard with the fewest. With many clients, the
/// kernel's distribution is about as even as that, so few connections move.
const SURPLUS_DIVISOR: u64 = 8;

/// Distributes the connections that one shard accepts.
#[derive(Debug, Default)]
pub struct Distribution {
    own: usize,
    shards: Vec<Arc<Counters>>,
    /// The next shard in round-robin order, for listeners with one socket for all shards.
    next: usize,
}

impl Distribution {
    /// `shards`: the counters of all shards, in shard order.
    pub fn new(own: ShardId, shards: Vec<Arc<Counters>>) -> Distribution {
        Distribution { own: usize::from(own.0), shards, next: 0 }
    }

    /// The shard for a connection from a listener with one socket for all shards, such as a passed one: round-robin.
    pub(super) fn next_in_turn(&mut self) -> ShardId {
        let shard = self.next;
        self.next = (shard + 1) % self.shards.len().max(1);
        ShardId(shard as u16)
    }

    /// The shard for a connection that this shard's own socket accepted: this shard, unless another has clearly fewer sessions.
    ///
    /// `under_way`: how many connections this shard has passed to another that does not count them yet. Called O(shards) times.
    pub(super) fn least_loaded(&self, under_way: impl Fn(ShardId) -> usize) -> ShardId {
        let id = |shard: usize| ShardId(shard as u16);
        let sessions = |shard: usize| {
            let open = self.shards.get(shard).map_or(0, |counters| counters.value(Counter::SessionsOpen));
            open + under_way(id(shard)) as u64
        };
        let own = sessions(self.own);
        let least = (0..self.shards.len()).min_by_key(|&shard| (sessions(shard), shard != self.own));
        match least {
            Some(shard) if own > sessions(shard) + sessions(shard) / SURPLUS_DIVISOR => id(shard),
            _ => id(self.own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(sessions: &[u64]) -> (Distribution, Vec<Arc<Counters>>) {
        let counters: Vec<Arc<Counters>> = sessions.iter().map(|_| Arc::default()).collect();
        for (counters, &sessions) in counters.iter().zip(sessions) {
            counters.add(Counter::SessionsOpen, sessions);
        }
        (Distribution::new(ShardId(0), counters.clone()), counters)
    }

    #[test]
    fn the_first_connections_are_shared_equally_whichever_shard_accepts_them() {
        let (distribution, counters) = shards(&[0, 0, 0]);
        let mut given = [0; 3];
        for _ in 0..9 {
            // The other shards do not count theirs yet.
            let shard =
                distribution.least_loaded(|shard| if shard.0 == 0 { 0 } else { given[usize::from(shard.0)] });
            given[usize::from(shard.0)] += 1;
            if shard == ShardId(0) {
                counters[0].add(Counter::SessionsOpen, 1);
            }
        }
        assert_eq!(given, [3; 3], "connections under way count too");
    }

    #[test]
    fn a_connection_is_passed_on_only_beyond_an_eighth_more_sessions() {
        for (own, expected) in [(900, 0), (901, 1)] {
            let (distribution, _) = shards(&[own, 800]);
            assert_eq!(distribution.least_loaded(|_| 0), ShardId(expected));
        }
    }

    #[test]
    fn a_shard_that_accepts_none_of_them_is_passed_no_more_than_its_share() {
        let (distribution, _) = shards(&[10, 0]);
        let mut under_way = 0;
        while distribution.least_loaded(|shard| if shard.0 == 1 { under_way } else { 0 }) == ShardId(1) {
            under_way += 1;
        }
        assert_eq!(under_way, 9);
    }
}
