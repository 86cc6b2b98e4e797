//! The mesh: a shard's ends of the rings to and from the other shards, from and to sources, and to and from sinks and readers of logs.

pub mod handover;
pub mod item_ring;
pub mod lanes;
#[cfg(all(test, tickcast_loom))]
mod models;
pub mod ring;
pub mod stop;
pub mod sync;

use std::{fmt, sync::Arc};

use crate::{
    demand::DemandLane,
    limits::{MESH_WAITING_BYTES, TURN_RING_BYTES},
    log_reads::{LogChunk, LogReaderLane},
    mesh::ring::{Doorbell, FrameConsumer, FrameProducer, Stage, frame_ring},
    metrics::counters::Counter,
    now::Now,
    routes::SinkId,
    shard::Shard,
};
use tickcast_proto::ids::ShardId;

/// The rings between this shard and one peer.
#[derive(Debug)]
struct Peer {
    shard: ShardId,
    requests_out: FrameProducer,
    deliveries_out: FrameProducer,
    requests_in: FrameConsumer,
    deliveries_in: FrameConsumer,
    /// Whether the outgoing request ring was full after the last push.
    requests_full: bool,
    /// Whether the outgoing delivery ring was full after the last push.
    deliveries_full: bool,
    bell: Arc<Doorbell>,
}

/// All ring ends of one shard. Owned by the shard's thread.
#[derive(Debug)]
pub struct Mesh {
    peers: Vec<Peer>,
    sources: Vec<FrameConsumer>,
    sinks: Vec<SinkLane>,
    log_readers: Vec<LogReaderLane>,
    demands: Vec<DemandLane>,
    /// Index of the peer whose requests are handled first.
    first: usize,
}

/// The rings between this shard and one sink.
#[derive(Debug)]
pub struct SinkLane {
    /// Ticks to the sink.
    pub ticks_out: FrameProducer,
    /// The sink's answers.
    pub answers_in: FrameConsumer,
    /// Wakes the sink's thread.
    pub wake: SinkWake,
}

/// Wakes a sink's thread. Called after each push, so it must be cheap while that thread is awake.
pub struct SinkWake(pub Box<dyn Fn() + Send>);

impl fmt::Debug for SinkWake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SinkWake")
    }
}

/// Creates the rings between every pair of shards, each of `ring_bytes`; `bells` wake the shards.
pub fn mesh(bells: &[Arc<Doorbell>], ring_bytes: usize) -> Vec<Mesh> {
    let ring = || {
        let (mut producer, consumer) = frame_ring(ring_bytes);
        producer.limit_waiting(MESH_WAITING_BYTES);
        (producer, consumer)
    };
    let mut meshes: Vec<Mesh> = bells
        .iter()
        .map(|_| Mesh {
            peers: Vec::new(),
            sources: Vec::new(),
            sinks: Vec::new(),
            log_readers: Vec::new(),
            demands: Vec::new(),
            first: 0,
        })
        .collect();
    for a in 0..bells.len() {
        for b in a + 1..bells.len() {
            let ((requests_ab, requests_b), (requests_ba, requests_a)) = (ring(), ring());
            let ((deliveries_ab, deliveries_b), (deliveries_ba, deliveries_a)) = (ring(), ring());
            meshes[a].peers.push(Peer {
                shard: ShardId(b as u16),
                requests_out: requests_ab,
                deliveries_out: deliveries_ab,
                requests_in: requests_a,
                deliveries_in: deliveries_a,
                requests_full: false,
                deliveries_full: false,
                bell: bells[b].clone(),
            });
            meshes[b].peers.push(Peer {
                shard: ShardId(a as u16),
                requests_out: requests_ba,
                deliveries_out: deliveries_ba,
                requests_in: requests_b,
                deliveries_in: deliveries_b,
                requests_full: false,
                deliveries_full: false,
                bell: bells[a].clone(),
            });
        }
    }
    meshes
}

impl Mesh {
    /// Adds the consumer end of a source's ring.
    pub fn add_source(&mut self, ring: FrameConsumer) {
        self.sources.push(ring);
    }

    /// Adds the rings to and from the next sink, in the order of [`SinkId`].
    pub fn add_sink(&mut self, lane: SinkLane) {
        self.sinks.push(lane);
    }

    /// Adds the rings to and from the reader of a log.
    pub fn add_log_reader(&mut self, lane: LogReaderLane) {
        self.log_readers.push(lane);
    }

    /// Adds the ring to a source that subscribes on demand.
    pub fn add_demand(&mut self, lane: DemandLane) {
        self.demands.push(lane);
    }

    /// Passes incoming frames to the shard, at most [`TURN_RING_BYTES`] per ring: deliveries always and first, requests
    /// only while the shard has room for what they add. Returns whether there were any.
    pub fn take_in(&mut self, shard: &mut Shard, now: Now) -> bool {
        let mut bytes = 0;
        // The first peer finds the most room, so peers take turns at being first.
        self.first = (self.first + 1) % self.peers.len().max(1);
        let (last, first) = self.peers.split_at_mut(self.first);
        for peer in first.iter_mut().chain(last) {
            let deliveries = peer.deliveries_in.drain(TURN_RING_BYTES, |frame| {
                let takes = shard.takes_deliveries();
                if takes {
                    shard.handle_delivery(frame, now);
                }
                takes
            });
            let requests = requests(&mut peer.requests_in, shard, Some(peer.shard), now);
            let made_room = (deliveries > 0 && peer.deliveries_in.producer_waits())
                | (requests > 0 && peer.requests_in.producer_waits());
            if made_room {
                peer.bell.ring();
            }
            bytes += deliveries + requests;
        }
        for source in &mut self.sources {
            bytes += requests(source, shard, None, now);
        }
        for (sink, lane) in (0..).map(SinkId).zip(&mut self.sinks) {
            let answers = lane.answers_in.drain(TURN_RING_BYTES, |frame| {
                shard.handle_settled(sink, frame, now);
                true
            });
            if answers > 0 && lane.answers_in.producer_waits() {
                (lane.wake.0)();
            }
            bytes += answers;
        }
        for lane in &mut self.log_readers {
            let mut chunks = 0;
            while shard.takes_deliveries()
                && let Some(chunk) = lane.chunks_in.pop()
            {
                shard.handle_log_chunk(lane.source, &chunk, now);
                bytes += chunk.frames.len() + size_of::<LogChunk>();
                chunks += 1;
            }
            if chunks > 0 && lane.chunks_in.producer_waits() {
                (lane.wake.0)();
            }
        }
        if bytes > 0 {
            shard.counters().add(Counter::MeshBytes, bytes as u64);
        }
        bytes > 0
    }

    /// Pushes staged frames into the peers' rings, with one wake-up per peer. Returns whether anything moved.
    pub fn push_out(&mut self, shard: &mut Shard) -> bool {
        let (mut any, mut filled) = (false, 0);
        for peer in &mut self.peers {
            let (pushed, wakes) = shard.with_stages(peer.shard, |stages| {
                let mut push = |ring: &mut FrameProducer, stage: &mut Stage, full: &mut bool| {
                    let pushed = !stage.waiting().is_empty() && ring.push(stage);
                    let was_full = std::mem::replace(full, !stage.waiting().is_empty());
                    filled += u64::from(*full && !was_full);
                    pushed
                };
                let pushed = push(&mut peer.requests_out, &mut stages.requests, &mut peer.requests_full)
                    | push(&mut peer.deliveries_out, &mut stages.deliveries, &mut peer.deliveries_full);
                // Urgent frames may be among those that did not fit.
                let is_rest =
                    !stages.requests.waiting().is_empty() || !stages.deliveries.waiting().is_empty();
                let is_urgent = stages.is_urgent;
                stages.is_urgent = is_urgent && is_rest;
                // A full ring delays later frames, so it also ends a wait for the latency budget.
                (pushed, is_urgent || is_rest)
            });
            match wakes {
                true => peer.bell.ring(),
                false if pushed => peer.bell.ring_for_ticks(),
                false => {}
            }
            any |= pushed;
        }
        for (sink, lane) in (0..).map(SinkId).zip(&mut self.sinks) {
            let pushed = shard
                .with_sink_stage(sink, |stage| !stage.waiting().is_empty() && lane.ticks_out.push(stage));
            if pushed == Some(true) {
                (lane.wake.0)();
                any = true;
            }
        }
        for lane in &mut self.log_readers {
            let pushed =
                shard.with_log_reads(lane.source, |queue| !queue.is_empty() && lane.reads_out.push(queue));
            if pushed == Some(true) {
                (lane.wake.0)();
                any = true;
            }
        }
        for lane in &mut self.demands {
            let pushed = shard.with_demand_changes(lane.source, |changes| {
                !changes.is_empty() && lane.changes_out.push(changes)
            });
            if pushed == Some(true) {
                (lane.wake.0)();
                any = true;
            }
        }
        if filled > 0 {
            shard.counters().add(Counter::MeshRingFull, filled);
        }
        any
    }

    /// Checks for work once more before sleeping, with the doorbell armed. Pushes staged frames again, because a consumer that
    /// made room earlier rang while this shard was still awake.
    pub fn look_again(&mut self, shard: &mut Shard) -> bool {
        self.push_out(shard) || self.has_input(shard)
    }

    /// Returns whether there is input that the shard would accept. If so, it must not sleep.
    pub fn has_input(&mut self, shard: &Shard) -> bool {
        !self.deliveries_are_empty()
            || self.has_answers()
            || (shard.takes_requests() && !self.requests_are_empty())
    }

    /// Returns whether there is input from other shards or sinks that the shard would accept: ticks, answers, or frames that
    /// ticks must not delay.
    pub fn has_peer_input(&mut self, shard: &Shard) -> bool {
        let takes = shard.takes_requests();
        self.peers
            .iter_mut()
            .any(|peer| !peer.deliveries_in.is_empty() || (takes && !peer.requests_in.is_empty()))
            || self.has_answers()
    }

    fn has_answers(&mut self) -> bool {
        self.sinks.iter_mut().any(|lane| !lane.answers_in.is_empty())
            || self.log_readers.iter().any(|lane| !lane.chunks_in.is_empty())
    }

    /// Returns the unread bytes in the rings from other shards, and in those from sources.
    pub fn waiting_bytes(&self) -> (usize, usize) {
        let of_peer = |peer: &Peer| peer.requests_in.waiting_bytes() + peer.deliveries_in.waiting_bytes();
        let sources = self.sources.iter().map(FrameConsumer::waiting_bytes).sum();
        (self.peers.iter().map(of_peer).sum(), sources)
    }

    /// Returns whether no request is waiting for this shard.
    pub fn requests_are_empty(&mut self) -> bool {
        self.peers.iter_mut().all(|peer| peer.requests_in.is_empty())
            && self.sources.iter_mut().all(FrameConsumer::is_empty)
    }

    /// Returns whether no delivery is waiting for this shard.
    pub fn deliveries_are_empty(&mut self) -> bool {
        self.peers.iter_mut().all(|peer| peer.deliveries_in.is_empty())
    }
}

fn requests(ring: &mut FrameConsumer, shard: &mut Shard, from: Option<ShardId>, now: Now) -> usize {
    if !ring.is_empty() {
        shard.begin_requests(from);
    }
    ring.drain(TURN_RING_BYTES, |frame| {
        let takes = shard.admits_request(from);
        if takes {
            shard.handle_request(from, frame, now);
        }
        takes
    })
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;
    use crate::{config::Limits, metrics::counters::Counters};
    use tickcast_proto::{
        command::encode_request,
        frame::{self, Kind},
        records::Publish,
    };

    const RING_BYTES: usize = 256;

    #[test]
    fn a_full_ring_is_counted_once_and_not_every_turn() {
        let bells = [0, 1].map(|_| Arc::new(Doorbell::new(|| {})));
        let mut meshes = mesh(&bells, RING_BYTES);
        let (mut other, mut own) = (meshes.remove(1), meshes.remove(0));
        let mut shard = Shard::new(ShardId(0), 2, 1, Limits::default(), Arc::new(Counters::default()));
        let full = |shard: &Shard| shard.counters().value(Counter::MeshRingFull);
        let fill = |shard: &mut Shard| {
            shard.with_stages(ShardId(1), |stages| {
                let tail = stages.requests.tail();
                (0..20).for_each(|request| encode_request(tail, Kind::Subscribe, request, "some.topic"));
            });
        };
        for times in 1..3 {
            fill(&mut shard);
            own.push_out(&mut shard);
            assert_eq!(full(&shard), times);
            // The ring has room now and then, and fills up again at once.
            while !shard.requests_flushed() {
                own.push_out(&mut shard);
                assert_eq!(full(&shard), times);
                other.peers[0].requests_in.drain(usize::MAX, |_| true);
            }
        }
    }

    #[test]
    fn a_full_ring_ends_a_wait_for_the_latency_budget_and_ticks_alone_do_not() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let bell = || {
            let wakes = wakes.clone();
            Arc::new(Doorbell::new(move || {
                wakes.fetch_add(1, SeqCst);
            }))
        };
        let bells = [bell(), bell()];
        let mut from = mesh(&bells, 2 * MESH_WAITING_BYTES).remove(0);
        let mut shard = Shard::new(ShardId(0), 2, 1, Limits::default(), Arc::new(Counters::default()));
        let to = ShardId(1);
        let mut push = |payload: &[u8]| {
            shard.with_stages(to, |stages| {
                frame::encode_publish(stages.requests.tail(), 0, 0, 0, Publish::default(), "t", payload);
            });
            from.push_out(&mut shard);
            shard.with_stages(to, |stages| stages.requests.waiting().is_empty())
        };
        let Ok(()) = bells[1].sleep_within_budget(|| {
            while push(&[0; 4_000]) {
                assert_eq!(wakes.load(SeqCst), 0);
            }
            assert_eq!(wakes.load(SeqCst), 1);
            assert!(!push(b"1") && wakes.load(SeqCst) == 1, "once for each sleep");
            Ok::<(), Infallible>(())
        });
    }
}
