//! Which shard serves an accepted connection.
//!
//! The kernel spreads connections over the listening sockets of the shards by hash: of eight, one shard may get six. What a
//! client gets of its shard would then depend on luck, so a shard that has more sessions than another passes a new connection
//! on. It costs a wake-up of that shard; sessions never move later.

use std::sync::Arc;

use tickcast_core::metrics::counters::{Counter, Counters};
use tickcast_proto::ids::ShardId;

/// A shard keeps a connection while it has at most this part more sessions than the shard with the fewest, so that a crowd is
/// hardly passed on.
const SURPLUS_DIVISOR: u64 = 8;

/// The distribution of one shard's accepted connections.
#[derive(Debug, Default)]
pub struct Distribution {
    own: usize,
    shards: Vec<Arc<Counters>>,
    /// Connections passed on in this turn, which their shards have not counted yet.
    passed_on: Vec<u64>,
    /// The shard that gets the next connection of a listener with one socket for all shards.
    next: usize,
}

impl Distribution {
    /// `shards` are the counters of all shards.
    pub fn new(own: ShardId, shards: Vec<Arc<Counters>>) -> Distribution {
        let passed_on = vec![0; shards.len()];
        Distribution { own: usize::from(own.0), shards, passed_on, next: 0 }
    }

    /// Forgets what was passed on in the last turn.
    pub(super) fn begin_turn(&mut self) {
        self.passed_on.fill(0);
    }

    /// The shard for a connection of a listener with one socket for all shards: each in turn.
    pub(super) fn next_in_turn(&mut self) -> ShardId {
        let shard = self.next;
        self.next = (shard + 1) % self.shards.len().max(1);
        ShardId(shard as u16)
    }

    /// The shard for a connection of this shard's own socket: the one with the fewest sessions, or this one if it has hardly
    /// more. O(shards).
    pub(super) fn least_loaded(&mut self) -> ShardId {
        let sessions = |shard: usize| {
            self.shards.get(shard).map_or(0, |counters| counters.value(Counter::SessionsOpen))
                + self.passed_on.get(shard).copied().unwrap_or_default()
        };
        let own = sessions(self.own);
        let least = (0..self.shards.len()).min_by_key(|&shard| (sessions(shard), shard != self.own));
        match least {
            Some(shard) if own > sessions(shard) + sessions(shard) / SURPLUS_DIVISOR => {
                self.passed_on[shard] += 1;
                ShardId(shard as u16)
            }
            _ => ShardId(self.own as u16),
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
        let (mut distribution, counters) = shards(&[0, 0, 0]);
        let mut given = [0; 3];
        for _ in 0..9 {
            let shard = distribution.least_loaded();
            given[usize::from(shard.0)] += 1;
            if shard == ShardId(0) {
                counters[0].add(Counter::SessionsOpen, 1);
            }
        }
        assert_eq!(given, [3; 3], "connections under way count too");
    }

    #[test]
    fn a_crowd_is_passed_on_only_beyond_an_eighth_more() {
        for (own, expected) in [(900, 0), (901, 1)] {
            let (mut distribution, _) = shards(&[own, 800]);
            assert_eq!(distribution.least_loaded(), ShardId(expected));
        }
    }

    #[test]
    fn what_was_passed_on_counts_until_the_next_turn() {
        let (mut distribution, _) = shards(&[2, 0]);
        let mut turn = |_| {
            distribution.begin_turn();
            [(); 3].map(|()| distribution.least_loaded().0)
        };
        assert_eq!([(), ()].map(&mut turn), [[1, 1, 0]; 2]);
    }
}
