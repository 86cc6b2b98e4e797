//! Frames staged for other shards until their rings have room.

use crate::mesh::ring::Stage;
use tickcast_proto::ids::ShardId;

/// The frames staged for one other shard.
#[derive(Debug, Default)]
pub struct PeerStages {
    /// Requests to it as a home: publish, subscribe, unsubscribe, recover.
    pub requests: Stage,
    /// Deliveries from this home to it: ticks, topics, history, readiness, answers to publishes. A shard always accepts deliveries, so
    /// two full shards cannot wait for each other.
    pub deliveries: Stage,
    /// Something other than ticks was staged since the last push: it wakes a shard that waits for its latency budget.
    pub is_urgent: bool,
}

/// A shard's stages, one pair per shard; its own pair stays empty.
///
/// Invariant: `requests_full` and `deliveries_full` count the peers whose stage of that kind has no room, and
/// `deliveries_half` those whose delivery stage is more than half full. They make the check for room, which runs for every
/// message, independent of the number of shards.
#[derive(Debug)]
pub(super) struct Stages {
    peers: Vec<PeerStages>,
    requests_full: usize,
    deliveries_full: usize,
    deliveries_half: usize,
}

impl Stages {
    /// Creates empty stages for `shards` peers.
    pub(super) fn new(shards: u16) -> Stages {
        Stages {
            peers: (0..shards).map(|_| PeerStages::default()).collect(),
            requests_full: 0,
            deliveries_full: 0,
            deliveries_half: 0,
        }
    }

    /// Appends a request to `home`. `write` appends one whole frame.
    pub(super) fn push_request(&mut self, home: ShardId, write: impl FnOnce(&mut Vec<u8>)) {
        self.with(home, |peer| {
            peer.is_urgent = true;
            write(peer.requests.tail());
        });
    }

    /// Like [`Stages::push_request`], for a tick whose answer nobody waits for.
    pub(super) fn push_publish(&mut self, home: ShardId, write: impl FnOnce(&mut Vec<u8>)) {
        self.with(home, |peer| write(peer.requests.tail()));
    }

    /// Appends a delivery to `shard`. `write` appends one whole frame.
    pub(super) fn push_delivery(&mut self, shard: ShardId, write: impl FnOnce(&mut Vec<u8>)) {
        self.with(shard, |peer| {
            peer.is_urgent = true;
            write(peer.deliveries.tail());
        });
    }

    /// Like [`Stages::push_delivery`], for a tick.
    pub(super) fn push_tick(&mut self, shard: ShardId, write: impl FnOnce(&mut Vec<u8>)) {
        self.with(shard, |peer| write(peer.deliveries.tail()));
    }

    /// Changes the frames staged for one peer, and keeps the invariant.
    pub(super) fn with<R>(&mut self, shard: ShardId, change: impl FnOnce(&mut PeerStages) -> R) -> R {
        let peer = &mut self.peers[usize::from(shard.0)];
        let full = |peer: &PeerStages| {
            [!peer.requests.has_room(), !peer.deliveries.has_room(), !peer.deliveries.is_half_empty()]
                .map(usize::from)
        };
        let before = full(peer);
        let changed = change(peer);
        let after = full(peer);
        self.requests_full = self.requests_full + after[0] - before[0];
        self.deliveries_full = self.deliveries_full + after[1] - before[1];
        self.deliveries_half = self.deliveries_half + after[2] - before[2];
        changed
    }

    /// Returns whether every request stage has room for what one more message may add. O(1).
    pub(super) fn requests_have_room(&self) -> bool {
        self.requests_full == 0
    }

    /// Returns whether every delivery stage has room for what one more request may add. O(1).
    pub(super) fn deliveries_have_room(&self) -> bool {
        self.deliveries_full == 0
    }

    /// Returns whether every delivery stage has room for half as much as it may hold. O(1).
    pub(super) fn deliveries_are_half_empty(&self) -> bool {
        self.deliveries_half == 0
    }

    /// Returns whether every request is in its ring. O(peers).
    pub(super) fn requests_flushed(&self) -> bool {
        self.peers.iter().all(|peer| peer.requests.waiting().is_empty())
    }

    /// Returns whether every delivery is in its ring. O(peers).
    pub(super) fn deliveries_flushed(&self) -> bool {
        self.peers.iter().all(|peer| peer.deliveries.waiting().is_empty())
    }

    /// Returns the number of bytes staged for all peers.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.peers.iter().map(|peer| peer.requests.waiting().len() + peer.deliveries.waiting().len()).sum()
    }

    /// Asserts the invariant, in debug builds.
    pub(super) fn invariants(&self) {
        let full =
            |has_room: fn(&PeerStages) -> bool| self.peers.iter().filter(|peer| !has_room(peer)).count();
        debug_assert_eq!(self.requests_full, full(|peer| peer.requests.has_room()));
        debug_assert_eq!(self.deliveries_full, full(|peer| peer.deliveries.has_room()));
        debug_assert_eq!(self.deliveries_half, full(|peer| peer.deliveries.is_half_empty()));
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
        assert!(stages.requests_flushed() && !stages.deliveries_flushed());
        assert_eq!(stages.waiting_bytes(), MESH_STAGE_BYTES - 1);
        stages.invariants();
    }
}
