//! How a socket goes to the shard of its client's identity: one bounded SPSC ring for each ordered pair of shards.
//!
//! A client that is to be placed is never served elsewhere instead: that its second connection meets its first is what an
//! identity is for. So where a ring is full the connection waits with the shard that accepted it, nothing having been
//! answered, and is tried again each turn.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst, fence},
    },
};

use crate::{limits::HANDOVERS_PER_LANE, transport::uring::data_ring::ListenerId};
use tickcast_core::{admission::Origin, mesh::ring::Doorbell, shard::DetachedSession};
use tickcast_proto::ids::ShardId;

/// A connection under way between two shards. Dropped, it is closed.
#[derive(Debug)]
pub struct Handover {
    /// The socket, which nothing is under way on.
    pub socket: OwnedFd,
    /// Where it goes, and what it has sent.
    pub departure: DetachedSession,
    /// Where it comes from, if that is counted.
    pub origin: Option<Origin>,
}

/// What goes from one shard to another. Dropped, its socket is closed.
#[derive(Debug)]
pub enum Parcel {
    /// A connection that was admitted, to the shard of its client's identity.
    Placed(Handover),
    /// A connection that was accepted from the one socket of a listener, to the shard whose turn it is: as if accepted there.
    Dealt(ListenerId, OwnedFd),
}

/// The rings between this shard and one other.
#[derive(Debug)]
struct Lane {
    shard: ShardId,
    out: rtrb::Producer<Parcel>,
    /// What found the ring full, in order. Bound: the connections of the server, and what [`Exchange::deal`] adds.
    waiting: VecDeque<Parcel>,
    incoming: rtrb::Consumer<Parcel>,
    /// The other shard has some for us that found our ring full.
    they_wait: Arc<AtomicBool>,
    /// We have some for it.
    we_wait: Arc<AtomicBool>,
    bell: Arc<Doorbell>,
}

/// All of one shard's ends. Moves to the shard's thread and stays there.
#[derive(Debug)]
pub struct Exchange {
    lanes: Vec<Lane>,
}

/// Makes the rings between every two of the shards that `bells` wake.
pub fn exchanges(bells: &[Arc<Doorbell>]) -> Vec<Exchange> {
    let mut exchanges: Vec<Exchange> = bells.iter().map(|_| Exchange { lanes: Vec::new() }).collect();
    for a in 0..bells.len() {
        for b in a + 1..bells.len() {
            let ((out_ab, in_b), (out_ba, in_a)) =
                (rtrb::RingBuffer::new(HANDOVERS_PER_LANE), rtrb::RingBuffer::new(HANDOVERS_PER_LANE));
            let (a_waits, b_waits) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
            let mut add = |at: usize, other: usize, out, incoming, we_wait, they_wait| {
                let bell = bells[other].clone();
                let (shard, waiting) = (ShardId(other as u16), VecDeque::new());
                exchanges[at].lanes.push(Lane { shard, out, waiting, incoming, they_wait, we_wait, bell });
            };
            add(a, b, out_ab, in_a, a_waits.clone(), b_waits.clone());
            add(b, a, out_ba, in_b, b_waits, a_waits);
        }
    }
    exchanges
}

impl Exchange {
    /// Takes a connection for another shard; [`Exchange::push_out`] sends it. One whose shard there is not is dropped.
    pub fn send(&mut self, handover: Handover) {
        let to = handover.departure.to;
        debug_assert!(self.lanes.iter().any(|lane| lane.shard == to), "identities lead to shards there are");
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.shard == to) {
            lane.waiting.push_back(Parcel::Placed(handover));
        }
    }

    /// Takes a connection for another shard, which accepts it; [`Exchange::push_out`] sends it. Gives it back where so many
    /// wait for that shard already that it is better accepted here.
    ///
    /// # Errors
    /// The connection.
    pub fn deal(&mut self, to: ShardId, listener: ListenerId, socket: OwnedFd) -> Result<(), OwnedFd> {
        match self.lanes.iter_mut().find(|lane| lane.shard == to) {
            Some(lane) if lane.waiting.len() < HANDOVERS_PER_LANE => {
                lane.waiting.push_back(Parcel::Dealt(listener, socket));
                Ok(())
            }
            _ => Err(socket),
        }
    }

    /// Moves what waits into the rings, one wake-up each. Returns whether anything moved.
    pub fn push_out(&mut self) -> bool {
        let mut any = false;
        for lane in self.lanes.iter_mut().filter(|lane| !lane.waiting.is_empty()) {
            let mut moved = lane.push_some();
            if !lane.waiting.is_empty() {
                // Say so first, then try again: the reader makes room first, then looks. One of the two sees the other.
                lane.we_wait.store(true, SeqCst);
                fence(SeqCst);
                moved |= lane.push_some();
            }
            if moved {
                lane.bell.ring();
                any = true;
            }
        }
        any
    }

    /// The next connection from another shard. To be called until `None`, at most [`HANDOVERS_PER_LANE`] times a ring.
    pub fn take(&mut self) -> Option<Parcel> {
        for lane in &mut self.lanes {
            if let Ok(parcel) = lane.incoming.pop() {
                fence(SeqCst);
                if lane.they_wait.load(SeqCst) && lane.they_wait.swap(false, SeqCst) {
                    lane.bell.ring();
                }
                return Some(parcel);
            }
        }
        None
    }

    /// Connections that one turn takes in at most.
    pub fn turn_max(&self) -> usize {
        self.lanes.len() * HANDOVERS_PER_LANE
    }

    /// The look before sleep, with the doorbell armed: whether a connection waits to be taken, or one that waited for
    /// room found it. A reader that made room before the doorbell was armed has woken nobody.
    pub fn look_again(&mut self) -> bool {
        self.push_out() | self.has_input()
    }

    /// Whether a connection waits to be taken.
    pub fn has_input(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.incoming.is_empty())
    }

    /// Whether every connection for another shard is in its ring.
    pub fn have_left(&self) -> bool {
        self.lanes.iter().all(|lane| lane.waiting.is_empty())
    }
}

impl Lane {
    fn push_some(&mut self) -> bool {
        let mut moved = false;
        while let Some(next) = self.waiting.pop_front() {
            if let Err(rtrb::PushError::Full(back)) = self.out.push(next) {
                self.waiting.push_front(back);
                break;
            }
            moved = true;
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;
    use tickcast_core::shard::ListenerKind;

    fn handover(to: u16, n: usize) -> (Handover, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let departure = DetachedSession {
            to: ShardId(to),
            listener: ListenerKind::Native,
            bytes: n.to_le_bytes().to_vec(),
        };
        (Handover { socket: ours.into(), departure, origin: None }, theirs)
    }

    #[test]
    fn more_than_a_ring_holds_arrives_in_order_and_to_whom_it_was_sent() {
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let mut exchanges = exchanges(&bells);
        let mut peers = Vec::new();
        for n in 0..3 * HANDOVERS_PER_LANE {
            let (handover, peer) = handover(2, n);
            exchanges[0].send(handover);
            peers.push(peer);
        }
        let mut got = 0usize;
        for round in 0..3 {
            assert!(exchanges[0].push_out() && !exchanges[0].push_out());
            assert_eq!(exchanges[0].have_left(), round == 2);
            assert!(!exchanges[1].has_input() && exchanges[2].has_input());
            while let Some(Parcel::Placed(handover)) = exchanges[2].take() {
                assert_eq!(handover.departure.bytes, got.to_le_bytes());
                got += 1;
            }
        }
        assert_eq!(got, peers.len());
    }

    #[test]
    fn a_reader_that_makes_room_wakes_the_shard_that_waits_for_it() {
        let woken = Arc::new(AtomicBool::new(false));
        let wakes = woken.clone();
        let first = Doorbell::new(move || wakes.store(true, SeqCst));
        let bells = [Arc::new(first), Arc::new(Doorbell::new(|| {}))];
        let mut exchanges = exchanges(&bells);
        let peers: Vec<_> = (0..HANDOVERS_PER_LANE + 1)
            .map(|n| {
                let (handover, peer) = handover(1, n);
                exchanges[0].send(handover);
                peer
            })
            .collect();
        exchanges[0].push_out();
        let slept: Result<(), ()> = bells[0].clone().sleep(|| {
            assert!(exchanges[1].take().is_some());
            assert!(woken.load(SeqCst));
            Ok(())
        });
        slept.unwrap();
        drop(peers);
    }

    #[test]
    fn what_is_dealt_arrives_and_is_given_back_where_too_much_waits() {
        let bells: Vec<_> = (0..2).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let mut exchanges = exchanges(&bells);
        let mut peers = Vec::new();
        let mut deal = |exchange: &mut Exchange, to: u16| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            peers.push(theirs);
            exchange.deal(ShardId(to), ListenerId(1), ours.into())
        };
        assert!(deal(&mut exchanges[0], 0).is_err(), "it is this shard's own");
        for waiting in 0..=HANDOVERS_PER_LANE {
            assert_eq!(deal(&mut exchanges[0], 1).is_ok(), waiting < HANDOVERS_PER_LANE);
        }
        assert!(exchanges[0].push_out());
        for _ in 0..HANDOVERS_PER_LANE {
            assert!(matches!(exchanges[1].take(), Some(Parcel::Dealt(ListenerId(1), _))));
        }
        assert!(exchanges[1].take().is_none());
    }

    #[test]
    fn what_is_under_way_when_the_shards_end_is_closed() {
        let bells: Vec<_> = (0..2).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let mut exchanges = exchanges(&bells);
        let (handover, mut peer) = handover(1, 0);
        exchanges[0].send(handover);
        exchanges[0].push_out();
        drop(exchanges);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
