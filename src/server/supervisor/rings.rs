//! The rings from sources to shards, and the doorbells that wake shards.

use std::{io, os::fd::OwnedFd, sync::Arc};

use crate::{
    config::Config,
    sources::{Lanes, kind::SourceConfig, on_demand::DemandLanes},
};
use tickcast_core::mesh::{
    Mesh,
    ring::{Doorbell, frame_ring},
};

/// A doorbell that writes to a shard's eventfd.
pub(super) fn doorbell(eventfd: &OwnedFd) -> io::Result<Doorbell> {
    let eventfd = eventfd.try_clone()?;
    Ok(Doorbell::new(move || {
        // Fails only when 2^64 - 2 rings are unread, and then the shard wakes anyway.
        let _ = nix::unistd::write(&eventfd, &1u64.to_ne_bytes());
    }))
}

/// Creates a source's rings to all shards, and gives the consumer ends to the meshes.
pub(super) fn lanes(meshes: &mut [Mesh], bells: &[Arc<Doorbell>], ring_bytes: usize) -> Lanes {
    let lanes: Vec<_> = meshes
        .iter_mut()
        .zip(bells)
        .map(|(mesh, bell)| {
            let (producer, consumer) = frame_ring(ring_bytes);
            mesh.add_source(consumer);
            (producer, bell.clone())
        })
        .collect();
    Lanes::new(lanes.into_iter())
}

/// A source's ends of its rings: to the shards, and from them if it subscribes on demand.
pub(super) type SourceRings = (Lanes, Option<DemandLanes>);

/// Creates the rings from the shards to each source that subscribes on demand, and gives the producer ends to the meshes. Sources
/// are numbered from 1.
pub(super) fn demand(
    config: &Config,
    meshes: &mut [Mesh],
    bells: &[Arc<Doorbell>],
) -> Vec<Option<DemandLanes>> {
    let mut of_source = |(source, number): (&SourceConfig, u32)| {
        let is_on_demand = !source.on_demand_topics().is_empty();
        let (lanes, shards) = is_on_demand.then(|| DemandLanes::new(number, bells))?;
        meshes.iter_mut().zip(shards).for_each(|(mesh, lane)| mesh.add_demand(lane));
        Some(lanes)
    };
    config.sources.iter().zip(1..).map(&mut of_source).collect()
}
