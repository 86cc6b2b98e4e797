//! Fetches issuers' key sets, on its own thread.

use std::time::Duration;

use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{
    authority::Authority,
    key_set::{KeySet, Keys},
};
use crate::{
    clock,
    limits::{JWKS_BYTES_MAX, JWKS_FETCH_MS, JWKS_REFRESH_MS_HIGHEST},
};

/// An HTTP client for issuers. Follows no redirects, which could lead into a private network, and ignores proxies in the
/// environment.
struct Client(Agent);

impl Client {
    /// Creates a client whose fetches take at most `fetch_ms`. It trusts these authorities, DER; if there are none, those of the
    /// system.
    fn new(fetch_ms: u64, authorities: &[Vec<u8>]) -> Client {
        let trusted = match authorities {
            [] => RootCerts::PlatformVerifier,
            own => own.iter().map(|der| Certificate::from_der(der).to_owned()).into(),
        };
        let tls = TlsConfig::builder().root_certs(trusted).build();
        let config = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(fetch_ms)))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("tickcast/", env!("CARGO_PKG_VERSION")))
            .build();
        Client(Agent::new_with_config(config))
    }

    /// Fetches a set. The response must be JSON, whatever its content type says.
    fn fetch(&self, set: &KeySet) -> Result<Keys, String> {
        let mut response = self.0.get(set.url()).call().map_err(|error| error.to_string())?;
        match response.status().as_u16() {
            200 => {}
            status @ 300..400 => {
                return Err(format!("status {status}: redirects are not followed; name the final URL"));
            }
            status => return Err(format!("status {status}")),
        }
        let body = response.body_mut().with_config().limit(JWKS_BYTES_MAX as u64).read_to_vec();
        Keys::parse(set.algorithm(), &body.map_err(|error| error.to_string())?)
    }
}

/// Fetches every set when it is due, for as long as the process runs. Calls `resume` after each attempt, and whenever something
/// has changed.
pub(super) fn run(authority: &Authority, resume: impl Fn()) {
    loop {
        let policy = authority.policy();
        let now_ns = clock::monotonic_ns();
        for set in policy.key_sets().filter(|set| set.due_ns() <= now_ns) {
            fetch(set);
            resume();
        }
        resume();
        let next_ns = policy.key_sets().map(|set| set.due_ns()).min();
        let longest_ns = JWKS_REFRESH_MS_HIGHEST * 1_000_000;
        authority.sleep(next_ns.map_or(longest_ns, |next_ns| next_ns.saturating_sub(clock::monotonic_ns())));
    }
}

/// Fetches a set, with a client of its own: fetches are seconds apart, and a client is a few allocations.
fn fetch(set: &KeySet) {
    set.begin(clock::monotonic_ns());
    let fetched = Client::new(JWKS_FETCH_MS, set.authorities()).fetch(set);
    // Log the issuer, not the URL, which may contain a secret.
    let issuer = set.issuer();
    match (&fetched, set.fetched_ns()) {
        (Ok(_), None) => ::log::info!("auth: fetched the keys of {issuer}"),
        (Ok(_), Some(_)) => ::log::debug!("auth: fetched the keys of {issuer} again"),
        (Err(error), None) => {
            ::log::warn!(
                "auth: cannot fetch the keys of {issuer}: {error}; its tokens are refused until it answers"
            )
        }
        (Err(error), Some(_)) => {
            ::log::warn!("auth: cannot fetch the keys of {issuer}: {error}; the last good keys stay")
        }
    }
    set.finish(fetched.ok(), clock::monotonic_ns());
}

#[cfg(test)]
mod tests;
