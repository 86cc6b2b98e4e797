//! Moves connections between shards: one bounded SPSC ring for each ordered pair of shards.
//! Only the shard of an identity serves its client, so that a second connection meets the first. If the ring is full, a
//! connection therefore waits, unanswered, on the shard that accepted it, which tries again each turn.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    limits::HANDOVERS_PER_LANE,
    mesh::{
        item_ring::{ItemConsumer, ItemProducer, item_ring},
        ring::Doorbell,
    },
};
use tickcast_proto::ids::ShardId;

/// The rings between this shard and one other.
#[derive(Debug)]
struct Lane<T> {
    shard: ShardId,
    outgoing: ItemProducer<T>,
    /// Transfers that did not fit into the ring, in order. Bound: what the shard sends (its connections), plus what
    /// [`HandoverLanes::offer`] adds.
    waiting: VecDeque<T>,
    incoming: ItemConsumer<T>,
    bell: Arc<Doorbell>,
}

/// One shard's ends of the rings to all others. Owned by the shard's thread.
#[derive(Debug)]
pub struct HandoverLanes<T> {
    lanes: Vec<Lane<T>>,
}

/// Creates the rings between every pair of shards; `bells` wake the shards.
pub fn handover_lanes<T>(bells: &[Arc<Doorbell>]) -> Vec<HandoverLanes<T>> {
    lanes_with_capacity(bells, HANDOVERS_PER_LANE)
}

/// [`handover_lanes`] with rings of another capacity, for models.
pub(super) fn lanes_with_capacity<T>(bells: &[Arc<Doorbell>], capacity: usize) -> Vec<HandoverLanes<T>> {
    let mut all: Vec<HandoverLanes<T>> = bells.iter().map(|_| HandoverLanes { lanes: Vec::new() }).collect();
    for a in 0..bells.len() {
        for b in a + 1..bells.len() {
            let ((a_out, b_in), (b_out, a_in)) = (item_ring(capacity), item_ring(capacity));
            for (at, other, outgoing, incoming) in [(a, b, a_out, a_in), (b, a, b_out, b_in)] {
                let (shard, bell) = (ShardId(other as u16), bells[other].clone());
                all[at].lanes.push(Lane { shard, outgoing, waiting: VecDeque::new(), incoming, bell });
            }
        }
    }
    all
}

impl<T> HandoverLanes<T> {
    /// Queues a transfer to another shard; [`HandoverLanes::push_out`] sends it. One to a shard that does not exist is dropped.
    pub fn send(&mut self, to: ShardId, transfer: T) {
        let lane = self.lanes.iter_mut().find(|lane| lane.shard == to);
        debug_assert!(lane.is_some(), "an identity maps to an existing shard other than this one");
        if let Some(lane) = lane {
            lane.waiting.push_back(transfer);
        }
    }

    /// Queues a transfer to another shard; [`HandoverLanes::push_out`] sends it. Returns it if `to` is this shard, or if so many
    /// already wait for that shard that this one should keep it.
    ///
    /// # Errors
    /// The transfer.
    pub fn offer(&mut self, to: ShardId, transfer: T) -> Result<(), T> {
        match self.lanes.iter_mut().find(|lane| lane.shard == to) {
            Some(lane) if lane.waiting.len() < HANDOVERS_PER_LANE => {
                lane.waiting.push_back(transfer);
                Ok(())
            }
            _ => Err(transfer),
        }
    }

    /// Transfers to another shard that it has not taken in yet. O(shards).
    pub fn under_way(&self, to: ShardId) -> usize {
        let lane = self.lanes.iter().find(|lane| lane.shard == to);
        lane.map_or(0, |lane| lane.waiting.len() + lane.outgoing.len())
    }

    /// Moves waiting transfers into the rings, with one wake-up per shard. Returns whether any moved.
    pub fn push_out(&mut self) -> bool {
        let mut any = false;
        for lane in self.lanes.iter_mut().filter(|lane| !lane.waiting.is_empty()) {
            if lane.outgoing.push(&mut lane.waiting) {
                lane.bell.ring();
                any = true;
            }
        }
        any
    }

    /// The next transfer from another shard. Call until `None`, at most [`HandoverLanes::turn_max`] times a turn.
    pub fn take(&mut self) -> Option<T> {
        for lane in &mut self.lanes {
            if let Some(transfer) = lane.incoming.pop() {
                if lane.incoming.producer_waits() {
                    lane.bell.ring();
                }
                return Some(transfer);
            }
        }
        None
    }

    /// Most transfers that one turn takes in.
    pub fn turn_max(&self) -> usize {
        self.lanes.len() * HANDOVERS_PER_LANE
    }

    /// The last check before sleep, with the doorbell armed: whether a transfer arrived, or a waiting one now fits. (A consumer
    /// that made room before the doorbell was armed did not wake this shard.)
    pub fn look_again(&mut self) -> bool {
        self.push_out() | self.has_input()
    }

    /// Whether a transfer waits to be taken.
    pub fn has_input(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.incoming.is_empty())
    }

    /// Whether every outgoing transfer is in its ring.
    pub fn is_flushed(&self) -> bool {
        self.lanes.iter().all(|lane| lane.waiting.is_empty())
    }
}
