//! Starts the readers of the sources' logs before the shards, and stops them after the shards: sessions may wait for them until the
//! end.

use std::{
    io,
    sync::{Arc, mpsc::Sender},
};

use super::{Event, Server, sources::stop_all};
use crate::{
    config::Config,
    sources::{
        SourceStatus,
        log_reader::{self, LogReaderLanes, RunningLogReader},
    },
};
use tickcast_core::mesh::{Mesh, ring::Doorbell};

/// Starts the readers, and gives each shard its ends of their rings. Sources are numbered from 1.
pub(super) fn start(
    config: &Config,
    statuses: &[SourceStatus],
    (meshes, bells): (&mut [Mesh], &[Arc<Doorbell>]),
    event_sender: &Sender<Event>,
) -> io::Result<Vec<RunningLogReader>> {
    let mut readers = Vec::new();
    for ((source, status), number) in config.sources.iter().zip(statuses).zip(1..) {
        let Some(reader) = source.build_log_reader() else { continue };
        let (lanes, shards) = LogReaderLanes::new(number, bells);
        meshes.iter_mut().zip(shards).for_each(|(mesh, lane)| mesh.add_log_reader(lane));
        let ended = event_sender.clone();
        let on_end = move |result: Result<(), _>| {
            if let Err(error) = result {
                drop(ended.send(Event::ThreadEnded("log reader", format!("{error}"))));
            }
        };
        readers.push(log_reader::start(reader, lanes, status.clone(), on_end)?);
    }
    Ok(readers)
}

impl Server {
    /// Stops the readers once no shard needs them. One may be stuck in a DNS lookup.
    pub(super) fn stop_log_readers(&mut self) {
        stop_all(&mut self.log_readers, |source| format!("log reader of {}", source.name()));
    }
}
