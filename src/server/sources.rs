//! Sources of ticks that are not clients: each runs on a thread of its own, with one ring to every shard.
//!
//! What happens when a ring is full is decided by the source: the simulator counts a drop, the replay waits.
//! (A publishing client is a session: the shard stops reading it.)

pub mod ecg;
pub mod payload;
pub mod replay;
pub mod simulator;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::clock;
use tickcast_core::{
    mesh::ring::{Doorbell, FrameProducer, Stage},
    metrics::counters::{Counter, Counters},
    placement,
    shard::ORIGIN_SOURCE,
};
use tickcast_proto::{
    frame::{self, FLAG_PAYLOAD_JSON},
    records::Publish,
};

/// Longest a source sleeps before it looks whether the server stops.
const NAP_NS: u64 = 20_000_000;
/// Pause of a source that found a ring full.
const FULL_NAP_NS: u64 = 200_000;

/// Tells the ingest threads that the server stops.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// From any thread.
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }
    /// Whether it was set.
    pub fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// One ingest's way to one shard.
#[derive(Debug)]
struct Lane {
    ring: FrameProducer,
    stage: Stage,
    bell: Arc<Doorbell>,
}

/// One ingest's ways to all shards.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
}

impl Lanes {
    /// One ring and its shard's doorbell for each shard, in order.
    pub fn new(lanes: impl Iterator<Item = (FrameProducer, Arc<Doorbell>)>) -> Lanes {
        Lanes { lanes: lanes.map(|(ring, bell)| Lane { ring, stage: Stage::default(), bell }).collect() }
    }

    /// Stages one JSON tick for its home. Returns `false`, and stages nothing, when that shard's ring and stage are
    /// full. `topic` is a valid name.
    pub fn publish(
        &mut self,
        topic: &str,
        producer_time_ns: u64,
        ingest_time_ns: u64,
        payload: &[u8],
    ) -> bool {
        self.stage(FLAG_PAYLOAD_JSON, topic, producer_time_ns, ingest_time_ns, payload)
    }

    /// [`Lanes::publish`] with a payload that is not JSON.
    pub fn publish_bytes(
        &mut self,
        topic: &str,
        producer_time_ns: u64,
        ingest_time_ns: u64,
        payload: &[u8],
    ) -> bool {
        self.stage(0, topic, producer_time_ns, ingest_time_ns, payload)
    }

    fn stage(
        &mut self,
        flags: u8,
        topic: &str,
        producer_time_ns: u64,
        ingest_time_ns: u64,
        payload: &[u8],
    ) -> bool {
        let home = placement::home_shard(topic, self.lanes.len() as u16);
        let lane = &mut self.lanes[usize::from(home.0)];
        if !lane.stage.has_room() {
            return false;
        }
        let record = Publish { producer_time_ns, ingest_time_ns, ..Publish::default() };
        frame::encode_publish(lane.stage.tail(), ORIGIN_SOURCE, flags, 0, record, topic, payload);
        true
    }

    /// Pushes what is staged, one wake-up a shard. Returns whether everything went.
    pub fn flush(&mut self) -> bool {
        let mut all = true;
        for lane in &mut self.lanes {
            if !lane.stage.waiting().is_empty() {
                if lane.ring.push(&mut lane.stage) {
                    lane.bell.ring();
                }
                all &= lane.stage.waiting().is_empty();
            }
        }
        all
    }

    /// Flushes until everything went, or the server stops.
    pub fn flush_all(&mut self, stop: &StopFlag) {
        while !self.flush() && !stop.is_set() {
            clock::sleep_ns(FULL_NAP_NS);
        }
    }
}

/// Sleeps until `due_ns` (CLOCK_MONOTONIC as [`clock::monotonic_ns`] has it). Returns `false` when the server stops.
fn sleep_until(due_ns: u64, stop: &StopFlag) -> bool {
    loop {
        if stop.is_set() {
            return false;
        }
        match due_ns.saturating_sub(clock::monotonic_ns()) {
            0 => return true,
            left_ns => clock::sleep_ns(left_ns.min(NAP_NS)),
        }
    }
}

/// Waits until `clients` sessions have a live subscription. Returns `false` when the server stops.
fn wait_for_subscribers(clients: u64, shards: &[Arc<Counters>], stop: &StopFlag) -> bool {
    let subscribed = || shards.iter().map(|shard| shard.value(Counter::SessionsSubscribed)).sum::<u64>();
    while subscribed() < clients {
        if stop.is_set() {
            return false;
        }
        clock::sleep_ns(1_000_000);
    }
    true
}
