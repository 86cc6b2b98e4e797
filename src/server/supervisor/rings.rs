//! The rings from sources to shards, and the doorbells that wake shards.

use std::{io, os::fd::OwnedFd, sync::Arc};

use crate::sources::Lanes;
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
