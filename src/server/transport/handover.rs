//! Moves connections between shards: one bounded SPSC ring for each ordered pair of shards.
//! Only the shard of an identity serves its client, so that a second connection meets the first. If the ring is full, a
//! connection therefore waits, unanswered, on the shard that accepted it, which tries again each turn.

use std::{collections::VecDeque, os::fd::OwnedFd, sync::Arc};

use crate::{
    limits::HANDOVERS_PER_LANE,
    transport::{admission::Admitted, tls::TlsConnection, uring::data_ring::ListenerId},
};
use tickcast_core::{
    mesh::{
        item_ring::{ItemConsumer, ItemProducer, item_ring},
        ring::Doorbell,
    },
    shard::DetachedSession,
};
use tickcast_proto::ids::ShardId;

/// An admitted connection on its way to another shard. Dropping it closes the connection.
#[derive(Debug)]
pub struct Handover {
    /// The socket. Nothing is in flight on it.
    pub socket: OwnedFd,
    /// The target shard, and the bytes received so far.
    pub departure: DetachedSession,
    /// The limits that it counts against.
    pub admitted: Admitted,
    /// Its TLS, if it has any. Nothing waits to be sent on its behalf.
    pub tls: Option<Box<TlsConnection>>,
}

/// A transfer from one shard to another. Dropping it closes its socket.
#[derive(Debug)]
pub enum Transfer {
    /// A connection for the shard of its client's identity, already admitted.
    Admitted(Handover),
    /// A connection from a listener with one socket for all shards; the target shard treats it as accepted there.
    Accepted(ListenerId, OwnedFd),
}

/// The rings between this shard and one other.
#[derive(Debug)]
struct Lane {
    shard: ShardId,
    outgoing: ItemProducer<Transfer>,
    /// Transfers that did not fit into the ring, in order. Bound: the server's connections, plus what
    /// [`HandoverLanes::distribute`] adds.
    waiting: VecDeque<Transfer>,
    incoming: ItemConsumer<Transfer>,
    bell: Arc<Doorbell>,
}

/// One shard's ends of the rings to all others. Owned by the shard's thread.
#[derive(Debug)]
pub struct HandoverLanes {
    lanes: Vec<Lane>,
}

/// Creates the rings between every pair of shards; `bells` wake the shards.
pub fn handover_lanes(bells: &[Arc<Doorbell>]) -> Vec<HandoverLanes> {
    lanes_with_capacity(bells, HANDOVERS_PER_LANE)
}

/// [`handover_lanes`] with rings of another capacity, for models.
pub(super) fn lanes_with_capacity(bells: &[Arc<Doorbell>], capacity: usize) -> Vec<HandoverLanes> {
    let mut all: Vec<HandoverLanes> = bells.iter().map(|_| HandoverLanes { lanes: Vec::new() }).collect();
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

impl HandoverLanes {
    /// Queues an admitted connection for another shard; [`HandoverLanes::push_out`] sends it. A connection for a shard
    /// that does not exist is closed.
    pub fn send(&mut self, handover: Handover) {
        let to = handover.departure.to;
        let lane = self.lanes.iter_mut().find(|lane| lane.shard == to);
        debug_assert!(lane.is_some(), "an identity maps to an existing shard other than this one");
        if let Some(lane) = lane {
            lane.waiting.push_back(Transfer::Admitted(handover));
        }
    }

    /// Queues an accepted connection for another shard; [`HandoverLanes::push_out`] sends it. Returns it if `to`
    /// is this shard, or if so many already wait for that shard that this one should keep it.
    ///
    /// # Errors
    /// The connection.
    pub fn distribute(&mut self, to: ShardId, listener: ListenerId, socket: OwnedFd) -> Result<(), OwnedFd> {
        match self.lanes.iter_mut().find(|lane| lane.shard == to) {
            Some(lane) if lane.waiting.len() < HANDOVERS_PER_LANE => {
                lane.waiting.push_back(Transfer::Accepted(listener, socket));
                Ok(())
            }
            _ => Err(socket),
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
    pub fn take(&mut self) -> Option<Transfer> {
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

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::net::UnixStream,
        sync::atomic::{AtomicBool, Ordering::SeqCst},
    };

    use super::*;
    use tickcast_core::{ids::TenantId, shard::ListenerKind};

    fn handover(to: u16, n: usize) -> (Handover, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let departure = DetachedSession {
            to: ShardId(to),
            listener: ListenerKind::Native,
            is_read_only: false,
            tenant: TenantId::DEFAULT,
            principal: None,
            bytes: n.to_le_bytes().to_vec(),
        };
        (Handover { socket: ours.into(), departure, admitted: Admitted::default(), tls: None }, theirs)
    }

    #[test]
    fn more_than_a_ring_holds_arrives_in_order_at_its_shard() {
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let mut shards = handover_lanes(&bells);
        let mut peers = Vec::new();
        for n in 0..3 * HANDOVERS_PER_LANE {
            let (handover, peer) = handover(2, n);
            shards[0].send(handover);
            peers.push(peer);
        }
        let mut got = 0usize;
        for round in 0..3 {
            assert!(shards[0].push_out() && !shards[0].push_out());
            assert_eq!(shards[0].is_flushed(), round == 2);
            assert!(!shards[1].has_input() && shards[2].has_input());
            while let Some(Transfer::Admitted(handover)) = shards[2].take() {
                assert_eq!(handover.departure.bytes, got.to_le_bytes());
                got += 1;
            }
        }
        assert_eq!(got, peers.len());
    }

    #[test]
    fn a_consumer_that_makes_room_wakes_the_shard_that_waits_for_it() {
        let woken = Arc::new(AtomicBool::new(false));
        let wakes = woken.clone();
        let first = Doorbell::new(move || wakes.store(true, SeqCst));
        let bells = [Arc::new(first), Arc::new(Doorbell::new(|| {}))];
        let mut shards = handover_lanes(&bells);
        let peers: Vec<_> = (0..HANDOVERS_PER_LANE + 1)
            .map(|n| {
                let (handover, peer) = handover(1, n);
                shards[0].send(handover);
                peer
            })
            .collect();
        shards[0].push_out();
        let slept: Result<(), ()> = bells[0].clone().sleep(|| {
            assert!(shards[1].take().is_some());
            assert!(woken.load(SeqCst));
            Ok(())
        });
        slept.unwrap();
        drop(peers);
    }

    #[test]
    fn a_distributed_connection_arrives_or_is_returned_when_too_many_wait() {
        let bells: Vec<_> = (0..2).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let mut shards = handover_lanes(&bells);
        let mut peers = Vec::new();
        let mut distribute = |from: &mut HandoverLanes, to: u16| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            peers.push(theirs);
            from.distribute(ShardId(to), ListenerId(1), ours.into())
        };
        assert!(distribute(&mut shards[0], 0).is_err(), "this shard keeps its own");
        for waiting in 0..=HANDOVERS_PER_LANE {
            assert_eq!(distribute(&mut shards[0], 1).is_ok(), waiting < HANDOVERS_PER_LANE);
        }
        assert!(shards[0].push_out());
        for _ in 0..HANDOVERS_PER_LANE {
            assert!(matches!(shards[1].take(), Some(Transfer::Accepted(ListenerId(1), _))));
        }
        assert!(shards[1].take().is_none());
    }

    #[test]
    fn a_transfer_in_flight_when_the_shards_end_is_closed() {
        let bells: Vec<_> = (0..2).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let mut shards = handover_lanes(&bells);
        let (handover, mut peer) = handover(1, 0);
        shards[0].send(handover);
        shards[0].push_out();
        drop(shards);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
