//! Frames that wait for room in the rings to the other shards.

use crate::mesh::ring::Stage;
use tickcast_proto::ids::ShardId;

/// What waits for one other shard.
#[derive(Debug, Default)]
pub struct PeerStages {
    /// Requests to it as a home: publish, subscribe, unsubscribe.
    pub requests: Stage,
    /// Deliveries from this home to it: ticks, topics, readiness, refusals. It always takes them in, so two full shards
    /// cannot wait for each other.
    pub deliveries: Stage,
}

/// The stages of a shard, one pair for each other shard; its own pair stays empty.
///
/// Invariant: `requests_full` and `deliveries_full` count the peers whose stage of that kind has no room. So whether
/// there is room everywhere, which is asked for each message, does not depend on the number of shards.
#[derive(Debug)]
pub(super) struct Stages {
    peers: Vec<PeerStages>,
    requests_full: usize,
    deliveries_full: usize,
}

impl Stages {
    /// Empty stages for `shards` peers.
    pub(super) fn new(shards: u16) -> Stages {
        Stages {
            peers: (0..shards).map(|_| PeerStages::default()).collect(),
            requests_full: 0,
            deliveries_full: 0,
        }
    }

    /// Appends a request to `home`: `write` appends one whole frame.
    pub(super) fn push_request(&mut self, home: ShardId, write: impl FnOnce(&mut Vec<u8>)) {
        self.with(home, |peer| write(peer.requests.tail()));
    }

    /// Appends a delivery to `shard`: `write` appends one whole frame.
    pub(super) fn push_delivery(&mut self, shard: ShardId, write: impl FnOnce(&mut Vec<u8>)) {
        self.with(shard, |peer| write(peer.deliveries.tail()));
    }

    /// Changes what waits for one peer.
    pub(super) fn with<R>(&mut self, shard: ShardId, change: impl FnOnce(&mut PeerStages) -> R) -> R {
        let peer = &mut self.peers[usize::from(shard.0)];
        let full = |peer: &PeerStages| {
            (usize::from(!peer.requests.has_room()), usize::from(!peer.deliveries.has_room()))
        };
        let before = full(peer);
        let changed = change(peer);
        let after = full(peer);
        self.requests_full = self.requests_full + after.0 - before.0;
        self.deliveries_full = self.deliveries_full + after.1 - before.1;
        changed
    }

    /// Whether every stage of requests has room for what one more message may add. O(1).
    pub(super) fn requests_have_room(&self) -> bool {
        self.requests_full == 0
    }

    /// Whether every stage of deliveries has room for what one more request may add. O(1).
    pub(super) fn deliveries_have_room(&self) -> bool {
        self.deliveries_full == 0
    }

    /// Whether every request has left for its ring. A look at each peer.
    pub(super) fn requests_have_left(&self) -> bool {
        self.peers.iter().all(|peer| peer.requests.waiting().is_empty())
    }

    /// Whether every delivery has left for its ring. A look at each peer.
    pub(super) fn deliveries_have_left(&self) -> bool {
        self.peers.iter().all(|peer| peer.deliveries.waiting().is_empty())
    }

    /// Bytes that wait for all peers.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.peers.iter().map(|peer| peer.requests.waiting().len() + peer.deliveries.waiting().len()).sum()
    }

    /// Asserts the invariant; in debug builds, once a turn.
    pub(super) fn invariants(&self) {
        let full =
            |has_room: fn(&PeerStages) -> bool| self.peers.iter().filter(|peer| !has_room(peer)).count();
        debug_assert_eq!(self.requests_full, full(|peer| peer.requests.has_room()));
        debug_assert_eq!(self.deliveries_full, full(|peer| peer.deliveries.has_room()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MESH_STAGE_BYTES;

    #[test]
    fn room_is_counted_as_stages_fill_and_drain() {
        let mut stages = Stages::new(3);
        assert!(stages.requests_have_room() && stages.deliveries_have_room());
        stages.push_request(ShardId(1), |out| out.resize(MESH_STAGE_BYTES, 0));
        stages.push_delivery(ShardId(2), |out| out.resize(MESH_STAGE_BYTES - 1, 0));
        assert!(!stages.requests_have_room() && stages.deliveries_have_room());
        stages.push_delivery(ShardId(2), |out| out.push(0));
        stages.push_delivery(ShardId(2), |out| out.push(0));
        assert!(!stages.deliveries_have_room());
        stages.invariants();
        stages.with(ShardId(2), |peer| peer.deliveries.consume(2));
        assert!(stages.deliveries_have_room() && !stages.requests_have_room());
        stages.with(ShardId(1), |peer| peer.requests.consume(MESH_STAGE_BYTES));
        assert!(stages.requests_have_left() && !stages.deliveries_have_left());
        assert_eq!(stages.waiting_bytes(), MESH_STAGE_BYTES - 1);
        stages.invariants();
    }
}
