//! How the shards stop together: nothing that was accepted may be lost between two of them.

use std::sync::Arc;

use tickcast_core::mesh::{
    Mesh,
    ring::Doorbell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
use tickcast_proto::ids::ShardId;

/// What every shard must have reached before any goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its requests to other homes are in their rings.
    Requests = 0,
    /// Its deliveries to other shards are in their rings.
    Deliveries = 1,
}

/// Shared by all shards and the main thread; looked at once a turn, written a few times in a server's life.
#[derive(Debug)]
pub struct Stop {
    requested: AtomicBool,
    deadline_ns: AtomicU64,
    mesh_deadline_ns: AtomicU64,
    arrived: [Vec<AtomicBool>; 2],
    bells: Vec<Arc<Doorbell>>,
}

impl Stop {
    /// For the shards that `bells` wake.
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

    /// By the main thread: stop, and be done `drain_ns` from `now_ns` (CLOCK_MONOTONIC). Half of that is for what is
    /// under way between shards, so that there is time left for the sessions.
    pub fn request(&self, now_ns: u64, drain_ns: u64) {
        self.deadline_ns.store(now_ns.saturating_add(drain_ns), SeqCst);
        self.mesh_deadline_ns.store(now_ns.saturating_add(drain_ns / 2), SeqCst);
        self.requested.store(true, SeqCst);
        self.ring_all();
    }

    /// Whether the server is to stop.
    pub fn is_requested(&self) -> bool {
        self.requested.load(SeqCst)
    }

    /// When waiting ends; far away until a stop is requested.
    pub fn deadline_ns(&self) -> u64 {
        self.deadline_ns.load(SeqCst)
    }

    /// When waiting for other shards ends.
    pub fn mesh_deadline_ns(&self) -> u64 {
        self.mesh_deadline_ns.load(SeqCst)
    }

    /// By a shard, as often as it likes: it has reached this.
    pub fn arrive(&self, shard: ShardId, wait: Wait) {
        if !self.arrived[wait as usize][usize::from(shard.0)].swap(true, SeqCst) {
            self.ring_all();
        }
    }

    fn all_arrived(&self, wait: Wait) -> bool {
        self.arrived[wait as usize].iter().all(|arrived| arrived.load(SeqCst))
    }

    /// By a shard: whether every shard has, and what they sent before is no longer under way to this one. Asked in this
    /// order: an empty ring says nothing while somebody may still push.
    pub fn is_over(&self, wait: Wait, mesh: &mut Mesh) -> bool {
        self.all_arrived(wait)
            && match wait {
                Wait::Requests => mesh.requests_are_empty(),
                Wait::Deliveries => mesh.deliveries_are_empty(),
            }
    }

    fn ring_all(&self) {
        self.bells.iter().for_each(|bell| bell.ring());
    }
}
