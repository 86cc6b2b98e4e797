//! Starts the verifiers of clients' credentials, and sets the access rule of the admin listener.

use std::sync::Arc;

use super::reload::Reloader;
use crate::{
    auth::verifiers::{self, VerifierLane},
    config::{
        Config,
        listener::{Address, Kind, open_to_all},
    },
    error::StartupError,
    operator::admin::access::{AdminAccess, Rule},
};
use tickcast_core::mesh::ring::Doorbell;

/// Returns a lane for each shard; none without `[auth]`. Calls `on_failure` with the reason when a thread ends.
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

/// The access rule of an admin listener at this address, which a service manager may have passed. Warns if others can read its
/// tokens, or if anyone may use it.
///
/// # Errors
/// [`StartupError::Passed`] if the configuration does not define who may use it.
pub(super) fn admin_access(config: &Config, address: &Address) -> Result<AdminAccess, StartupError> {
    let tls = config
        .listeners
        .iter()
        .find(|listener| listener.kind == Kind::Admin)
        .and_then(|admin| admin.tls.as_ref());
    let has_authorities = tls.is_some_and(|tls| tls.client_ca.is_some());
    let rule =
        Rule::new(config.operators.clone(), address.is_local(), has_authorities, config.allow_anonymous)
            .ok_or_else(|| StartupError::Passed(open_to_all(Kind::Admin, address)))?;
    match rule {
        Rule::Anonymous => ::log::warn!(
            "--admin {address} is not a loopback address: anyone who can reach it can list and close sessions without a \
             password"
        ),
        Rule::Operators(_) if tls.is_none() && !address.is_local() => ::log::warn!(
            "--admin {address} has no TLS: anyone on the network path can read the tokens of operators; add tls to the listener"
        ),
        _ => {}
    }
    Ok(AdminAccess::new(rule))
}
