//! Metrics of authentication. None contains a token, a subject or a key.

use std::fmt::Display;

use super::{Scrape, Writer};

/// If clients are not authenticated, writes only the metrics of the admin listener.
pub(super) fn auth(scrape: &Scrape<'_>, writer: &mut Writer) {
    const REFUSED: &str = "tickcast_admin_refused_total";
    let help = "Requests to the admin listener refused, by reason: no credentials (missing), not an operator's (invalid), not allowed \
                by the role (role); TLS handshakes that failed (handshake).";
    writer.family(REFUSED, "counter", help);
    for (reason, count) in scrape.admin_refused {
        writer.sample(REFUSED, &[("reason", reason)], count);
    }
    let Some(authority) = scrape.authority else { return };
    const RESULTS: &str = "tickcast_auth_verifications_total";
    writer.family(RESULTS, "counter", "Credentials verified, by result; busy ones were not.");
    for (result, count) in authority.results() {
        writer.sample(RESULTS, &[("result", &result)], count);
    }
    let waiting = Some(authority.waiting());
    writer.single(
        "tickcast_auth_waiting",
        "gauge",
        "Credentials that wait for a verifier or for the keys of their issuer.",
        waiting,
    );
    let panics = Some(authority.panics());
    writer.single(
        "tickcast_auth_panics_total",
        "counter",
        "Verifications that failed because of a mistake in the server; the credentials were refused.",
        panics,
    );
    let revoked = Some(authority.revoked());
    writer.single("tickcast_auth_revocations_total", "counter", "Revocations by the operator.", revoked);
    let held = Some(authority.revocations.len());
    writer.single("tickcast_auth_revocations", "gauge", "Revocations in memory.", held);
    let policy = authority.policy();
    let mut sets = policy.key_sets().peekable();
    if sets.peek().is_none() {
        return;
    }
    let sets: Vec<_> = sets.map(|set| (escaped(set.issuer()), set.algorithm().name(), set)).collect();
    type Value = fn(&crate::auth::key_set::KeySet, u64) -> Option<f64>;
    const FAMILIES: [(&str, &str, &str, Value); 3] = [
        (
            "tickcast_auth_jwks_age_seconds",
            "gauge",
            "Time since the keys of an issuer were fetched; missing until they are.",
            |set, now_ns| Some(now_ns.saturating_sub(set.fetched_ns()?) as f64 / 1e9),
        ),
        (
            "tickcast_auth_jwks_fetches_total",
            "counter",
            "Attempts to fetch the keys of an issuer.",
            |set, _| Some(set.attempts().0 as f64),
        ),
        (
            "tickcast_auth_jwks_failures_total",
            "counter",
            "Failed attempts to fetch the keys of an issuer; the last good keys stay.",
            |set, _| Some(set.attempts().1 as f64),
        ),
    ];
    for (name, kind, help, value) in FAMILIES {
        writer.family(name, kind, help);
        for (issuer, algorithm, set) in &sets {
            let labels: [(&str, &dyn Display); 2] = [("issuer", issuer), ("algorithm", algorithm)];
            if let Some(value) = value(set, scrape.now_ns) {
                writer.sample(name, &labels, value);
            }
        }
    }
}

/// The operator's text as a label value (text format 0.0.4).
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
