//! Starts what verifies credentials.

use std::sync::Arc;

use super::reload::Reloader;
use crate::{
    auth::verifiers::{self, VerifierLane},
    config::Config,
    error::StartupError,
};
use tickcast_core::mesh::ring::Doorbell;

/// Returns a lane for each shard; none without `[auth]`. `on_failure` is called with the reason when a thread ends.
pub(super) fn start(
    config: &Config,
    reloader: &Reloader,
    bells: &[Arc<Doorbell>],
    on_failure: impl Fn(String) + Clone + Send + 'static,
) -> Result<std::vec::IntoIter<VerifierLane>, StartupError> {
    let (Some(authority), Some(limits)) = (reloader.authority(), &reloader.limits().auth) else {
        return Ok(Vec::new().into_iter());
    };
    let shard_cores = &config.cores[..config.cores.len().min(config.shards.into())];
    let lanes = verifiers::start(authority, bells, limits.waiting_max, shard_cores, on_failure);
    Ok(lanes.map_err(|error| StartupError::Executor(error.to_string()))?.into_iter())
}
