//! Connections that the transport moves between shards.

use std::os::fd::OwnedFd;

use crate::transport::{admission::Admitted, tls::TlsConnection, uring::data_ring::ListenerId};
pub use tickcast_core::mesh::handover::handover_lanes;
use tickcast_core::{mesh::handover, shard::DetachedSession};

/// One shard's ends of the rings to all others.
pub type HandoverLanes = handover::HandoverLanes<Transfer>;

/// An admitted connection on its way to another shard. Dropping it closes the connection.
#[derive(Debug)]
pub struct Handover {
    /// The socket. Nothing is in flight on it.
    pub socket: OwnedFd,
    /// The target shard, and the bytes received so far.
    pub departure: DetachedSession,
    /// The limits that the connection counts towards.
    pub admitted: Admitted,
    /// Its TLS state, if any. No TLS bytes are waiting to be sent.
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

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::net::UnixStream,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::SeqCst},
        },
    };

    use super::*;
    use crate::limits::HANDOVERS_PER_LANE;
    use tickcast_core::{
        ids::TenantId,
        mesh::ring::Doorbell,
        shard::{ClientAddress, ListenerKind},
    };
    use tickcast_proto::ids::ShardId;

    fn handover(to: u16, n: usize) -> (Handover, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let departure = DetachedSession {
            to: ShardId(to),
            listener: ListenerKind::Native,
            is_read_only: false,
            is_forwarded: false,
            client_address: ClientAddress::Peer,
            is_safe_from_rebinding: false,
            tenant: TenantId::DEFAULT,
            principal: None,
            certificate: None,
            bytes: n.to_le_bytes().to_vec(),
        };
        (Handover { socket: ours.into(), departure, admitted: Admitted::default(), tls: None }, theirs)
    }

    #[test]
    fn more_than_a_ring_holds_arrives_in_order_at_its_shard() {
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let mut shards: Vec<HandoverLanes> = handover_lanes(&bells);
        let mut peers = Vec::new();
        for n in 0..3 * HANDOVERS_PER_LANE {
            let (handover, peer) = handover(2, n);
            shards[0].send(handover.departure.to, Transfer::Admitted(handover));
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
        let mut shards: Vec<HandoverLanes> = handover_lanes(&bells);
        let peers: Vec<_> = (0..HANDOVERS_PER_LANE + 1)
            .map(|n| {
                let (handover, peer) = handover(1, n);
                shards[0].send(handover.departure.to, Transfer::Admitted(handover));
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
        let mut shards: Vec<HandoverLanes> = handover_lanes(&bells);
        let mut peers = Vec::new();
        let mut distribute = |from: &mut HandoverLanes, to: u16| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            peers.push(theirs);
            from.offer(ShardId(to), Transfer::Accepted(ListenerId(1), ours.into())).is_ok()
        };
        assert!(!distribute(&mut shards[0], 0), "this shard keeps its own");
        for waiting in 0..=HANDOVERS_PER_LANE {
            assert_eq!(distribute(&mut shards[0], 1), waiting < HANDOVERS_PER_LANE);
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
        let mut shards: Vec<HandoverLanes> = handover_lanes(&bells);
        let (handover, mut peer) = handover(1, 0);
        shards[0].send(handover.departure.to, Transfer::Admitted(handover));
        shards[0].push_out();
        drop(shards);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
