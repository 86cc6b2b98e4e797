//! Starts the sinks before the shards, and stops them after the shards: a shard needs them until its last session has received
//! its answers.

use std::{
    io,
    sync::{Arc, mpsc::Sender},
};

use super::{Event, Server, sources::stop_all};
use crate::{
    config::Config,
    sources::sink::{self, RunningSink, SinkRings, SinkStatus, kind::SinkConfig},
};
use tickcast_core::mesh::{Mesh, ring::Doorbell};

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
    /// Stops the sinks once no shard needs them. One may be stuck in a DNS lookup.
    pub(super) fn stop_sinks(&mut self) {
        stop_all(&mut self.sinks, |sink| format!("sink {}", sink.name()));
    }
}
