//! Starts the sinks before the shards, and stops them after the shards: a shard needs them until its last session has its
//! answers.

use std::{
    io,
    sync::{Arc, mpsc::Sender},
};

use super::{Event, Server};
use crate::{
    clock,
    config::Config,
    limits::SOURCES_STOP_MS_MAX,
    sources::sink::{self, RunningSink, SinkRings, SinkStatus, kind::SinkConfig},
};
use tickcast_core::mesh::{Mesh, ring::Doorbell};

/// Interval at which a stopping server checks whether its sinks have ended.
const SINKS_POLL_NS: u64 = 1_000_000;

/// Starts the sinks, and gives each shard its ends of their rings.
pub(super) fn start(
    config: &Config,
    statuses: &[SinkStatus],
    (meshes, bells): (&mut [Mesh], &[Arc<Doorbell>]),
    event_sender: &Sender<Event>,
) -> io::Result<Vec<RunningSink>> {
    let start = |(sink, status): (&SinkConfig, &SinkStatus)| {
        let SinkRings { lanes, shards } = SinkRings::new(bells, config.mesh_ring_bytes);
        meshes.iter_mut().zip(shards).for_each(|(mesh, lane)| mesh.add_sink(lane));
        let ended = event_sender.clone();
        let on_end = move |result: Result<(), _>| {
            if let Err(error) = result {
                drop(ended.send(Event::ThreadEnded("sink", format!("{error}"))));
            }
        };
        sink::start(sink.build(), lanes, status.clone(), sink.ack_timeout_ns(), on_end)
    };
    config.sinks.iter().zip(statuses).map(start).collect()
}

impl Server {
    /// Stops the sinks, once no shard needs them, and waits for them a moment: one may be stuck in a name look-up.
    pub(super) fn stop_sinks(&mut self) {
        self.sinks.iter().for_each(RunningSink::stop);
        let give_up_ns = clock::monotonic_ns() + SOURCES_STOP_MS_MAX * 1_000_000;
        while clock::monotonic_ns() < give_up_ns && !self.sinks.iter().all(RunningSink::has_ended) {
            clock::sleep_ns(SINKS_POLL_NS);
        }
        for sink in self.sinks.drain(..) {
            match sink.has_ended() {
                true => sink.join(),
                false => {
                    ::log::warn!("sink {} does not end: it ends with the process", sink.status().name())
                }
            }
        }
    }
}
