//! Coordinates the shutdown of all shards, so that no accepted tick is lost on its way between two of them.

use std::sync::Arc;

use crate::mesh::{
    Mesh,
    ring::Doorbell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
use tickcast_proto::ids::ShardId;

/// A point of the shutdown that every shard must reach before any continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The shard's requests to other home shards are in their rings.
    Requests = 0,
    /// The shard's deliveries to other shards are in their rings.
    Deliveries = 1,
}

/// The shutdown's state, shared by all shards and the main thread. Shards read it once per turn; it is written a few times
/// in a server's life.
#[derive(Debug)]
pub struct Stop {
    requested: AtomicBool,
    deadline_ns: AtomicU64,
    mesh_deadline_ns: AtomicU64,
    arrived: [Vec<AtomicBool>; 2],
    bells: Vec<Arc<Doorbell>>,
}

impl Stop {
    /// Creates the state for the shards that `bells` wake, in order.
    pub fn new(bells: Vec<Arc<Doorbell>>) -> Stop {
        let none = || bells.iter().map(|_| AtomicBool::new(false)).collect();
        Stop {
            requested: AtomicBool::new(false),
            deadline_ns: AtomicU64::new(u64::MAX),
            mesh_deadline_ns: AtomicU64::new(u64::MAX),
            arrived: [none(), none()],
            bells,
        }
    }

    /// Requests the shutdown, to be complete within `drain_ns` from `now_ns` (CLOCK_MONOTONIC). Half of that time is for
    /// frames in flight between shards, the rest for sessions. Called by the main thread.
    pub fn request(&self, now_ns: u64, drain_ns: u64) {
        self.deadline_ns.store(now_ns.saturating_add(drain_ns), SeqCst);
        self.mesh_deadline_ns.store(now_ns.saturating_add(drain_ns / 2), SeqCst);
        self.requested.store(true, SeqCst);
        self.ring_all();
    }

    /// Whether the shutdown was requested.
    pub fn is_requested(&self) -> bool {
        self.requested.load(SeqCst)
    }

    /// When the shutdown must be complete; `u64::MAX` until it is requested.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns.load(SeqCst)
    }

    /// When shards stop waiting for each other; `u64::MAX` until the shutdown is requested.
    pub fn mesh_deadline_ns(&self) -> u64 {
        self.mesh_deadline_ns.load(SeqCst)
    }

    /// Records that a shard has reached a barrier. Called by that shard, any number of times, or once it has ended.
    pub fn arrive(&self, shard: ShardId, barrier: Barrier) {
        if !self.arrived[barrier as usize][usize::from(shard.0)].swap(true, SeqCst) {
            self.ring_all();
        }
    }

    /// Lets the others pass every barrier without a shard that has ended, which sends nothing more. Called by the main
    /// thread.
    pub fn shard_ended(&self, shard: ShardId) {
        self.arrive(shard, Barrier::Requests);
        self.arrive(shard, Barrier::Deliveries);
    }

    fn all_arrived(&self, barrier: Barrier) -> bool {
        self.arrived[barrier as usize].iter().all(|arrived| arrived.load(SeqCst))
    }

    /// Whether every shard has reached a barrier, and everything they sent before has been taken from this shard's rings.
    /// Checked in this order, because an empty ring proves nothing while a shard may still push.
    pub fn is_passed(&self, barrier: Barrier, mesh: &mut Mesh) -> bool {
        self.all_arrived(barrier)
            && match barrier {
                Barrier::Requests => mesh.requests_are_empty(),
                Barrier::Deliveries => mesh.deliveries_are_empty(),
            }
    }

    fn ring_all(&self) {
        self.bells.iter().for_each(|bell| bell.ring());
    }
}
