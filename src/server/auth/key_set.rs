//! A JSON Web Key Set (RFC 7517, section 5): one issuer's last good keys, and when to fetch them again.
//!
//! ```text
//!  verifiers --keys()--> the last good set     unknown key id --request()--> fetched sooner, at a bounded rate
//!  fetcher   --due(), begin(), finish()
//! ```

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Deserialize;
use serde_json::Value;

use super::key::{Algorithm, Jwk, VerifyingKey};
use crate::limits::{JWKS_KEYS_MAX, JWKS_REQUESTED_MS_LOWEST, JWKS_RETRY_MS, KEYS_TRIED_MAX};

/// Keys with their ids, at most [`JWKS_KEYS_MAX`]. Always replaced as a whole.
#[derive(Debug, Default)]
pub struct Keys(Vec<(Option<Box<str>>, VerifyingKey)>);

impl Keys {
    /// The keys with this key id. Without an id: all keys, if they are few enough to try each.
    pub fn with_id<'a>(&'a self, kid: Option<&'a str>) -> impl Iterator<Item = &'a VerifyingKey> {
        let all_fit = self.0.len() <= KEYS_TRIED_MAX;
        let fits = move |has: &Option<Box<str>>| match kid {
            Some(kid) => has.as_deref() == Some(kid),
            None => all_fit,
        };
        self.0.iter().filter(move |(has, _)| fits(has)).map(|(_, key)| key)
    }

    /// Reads a set. Skips keys that do not fit the algorithm, because sets may contain keys of several kinds.
    ///
    /// # Errors
    /// The text is not a set, or the set has too many keys, or none that fits.
    pub fn parse(algorithm: Algorithm, json: &[u8]) -> Result<Keys, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| "it is not a JSON Web Key Set".to_owned())?;
        if set.keys.len() > JWKS_KEYS_MAX {
            return Err(format!("it has {} keys, the limit is {JWKS_KEYS_MAX}", set.keys.len()));
        }
        let key = |value: &Value| {
            let jwk = Jwk::deserialize(value).ok()?;
            Some((jwk.kid.as_deref().map(Into::into), VerifyingKey::from_jwk(algorithm, &jwk)?))
        };
        let keys: Vec<_> = set.keys.iter().filter_map(key).collect();
        if keys.is_empty() {
            return Err(format!("none of its {} keys is for {algorithm}", set.keys.len()));
        }
        Ok(Keys(keys))
    }
}

/// When the set was last fetched and will be fetched next, CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default)]
struct Schedule {
    /// When the last attempt began; 0: never.
    attempted_ns: u64,
    /// When the next attempt is due.
    due_ns: u64,
    /// Whether the last attempt succeeded.
    has_succeeded: bool,
    /// Whether an attempt is under way.
    is_under_way: bool,
    /// Failed attempts since the last success.
    failed: u32,
}

/// What a verifier does when a token names an unknown key id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Wait for the fetch that is due or under way.
    Wait,
    /// Refuse: the set has just been fetched and does not contain the key.
    Unknown,
    /// Refuse for now: the issuer does not respond.
    Unreachable,
}

/// One issuer's keys.
pub struct KeySet {
    url: Box<str>,
    /// Authorities trusted for this URL, DER; empty: those of the system.
    authorities: Box<[Vec<u8>]>,
    issuer: Box<str>,
    algorithm: Algorithm,
    refresh_ns: u64,
    keys: Mutex<Arc<Keys>>,
    schedule: Mutex<Schedule>,
    /// When the keys were fetched, CLOCK_MONOTONIC; 0: never.
    fetched_ns: AtomicU64,
    fetches: AtomicU64,
    failures: AtomicU64,
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet")
            .field("url", &self.url)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl KeySet {
    /// Creates a set that has not been fetched.
    pub fn new(url: &str, issuer: &str, algorithm: Algorithm, refresh_ns: u64) -> KeySet {
        KeySet {
            url: url.into(),
            authorities: Box::default(),
            issuer: issuer.into(),
            algorithm,
            refresh_ns,
            keys: Mutex::default(),
            schedule: Mutex::default(),
            fetched_ns: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Trusts only these authorities, DER, for the certificate of the set's server, instead of those of the system.
    pub fn with_authorities(self, authorities: Vec<Vec<u8>>) -> KeySet {
        KeySet { authorities: authorities.into(), ..self }
    }

    /// The authorities to trust, DER; empty: those of the system.
    pub fn authorities(&self) -> &[Vec<u8>] {
        &self.authorities
    }

    /// Where the set is fetched from.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The issuer that the keys belong to.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The algorithm of the keys.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// When the keys were last fetched, CLOCK_MONOTONIC; `None`: never.
    pub fn fetched_ns(&self) -> Option<u64> {
        Some(self.fetched_ns.load(Relaxed)).filter(|ns| *ns > 0)
    }

    /// Attempts to fetch the set, and how many of them failed.
    pub fn attempts(&self) -> (u64, u64) {
        (self.fetches.load(Relaxed), self.failures.load(Relaxed))
    }

    /// Whether another set comes from the same URL, issuer and algorithm.
    pub fn is_same_source(&self, other: &KeySet) -> bool {
        (&self.url, &self.issuer, self.algorithm) == (&other.url, &other.issuer, other.algorithm)
    }

    /// Whether another set has the same configuration.
    pub fn is_same(&self, other: &KeySet) -> bool {
        self.is_same_source(other)
            && (&self.authorities, self.refresh_ns) == (&other.authorities, other.refresh_ns)
    }

    /// Takes over the keys of a set from the same source. They are fetched again at the time already scheduled, or after this
    /// set's own interval if that is sooner.
    pub fn inherit(&self, other: &KeySet) {
        *lock(&self.keys) = other.keys();
        let inherited = *lock(&other.schedule);
        let due_ns = inherited.due_ns.min(inherited.attempted_ns.saturating_add(self.refresh_ns));
        *lock(&self.schedule) = Schedule { is_under_way: false, due_ns, ..inherited };
        self.fetched_ns.store(other.fetched_ns.load(Relaxed), Relaxed);
        let (fetches, failures) = other.attempts();
        self.fetches.store(fetches, Relaxed);
        self.failures.store(failures, Relaxed);
    }

    /// The last good keys; empty before the first fetch.
    pub fn keys(&self) -> Arc<Keys> {
        lock(&self.keys).clone()
    }

    /// Whether the keys are still the ones that a verifier has tried.
    pub fn has_keys(&self, tried: &Arc<Keys>) -> bool {
        Arc::ptr_eq(&*lock(&self.keys), tried)
    }

    /// Requests a fetch because a token names an unknown key id. Such fetches are at least [`JWKS_REQUESTED_MS_LOWEST`] apart.
    pub fn request(&self, now_ns: u64) -> Request {
        let mut schedule = lock(&self.schedule);
        let again_ns = schedule.attempted_ns + JWKS_REQUESTED_MS_LOWEST * 1_000_000;
        if schedule.is_under_way || schedule.due_ns <= now_ns {
            Request::Wait
        } else if now_ns >= again_ns {
            schedule.due_ns = now_ns;
            Request::Wait
        } else if schedule.has_succeeded {
            Request::Unknown
        } else {
            Request::Unreachable
        }
    }

    /// When the next fetch is due, CLOCK_MONOTONIC.
    pub fn due_ns(&self) -> u64 {
        lock(&self.schedule).due_ns
    }

    /// Whether a fetch is due or under way.
    pub fn is_pending(&self, now_ns: u64) -> bool {
        let schedule = lock(&self.schedule);
        schedule.is_under_way || schedule.due_ns <= now_ns
    }

    /// Marks a fetch as begun.
    pub fn begin(&self, now_ns: u64) {
        let mut schedule = lock(&self.schedule);
        (schedule.attempted_ns, schedule.is_under_way) = (now_ns, true);
        self.fetches.fetch_add(1, Relaxed);
    }

    /// Ends a fetch. Replaces the keys; after a failure, keeps the last good ones and retries sooner than usual.
    pub fn finish(&self, fetched: Option<Keys>, now_ns: u64) {
        let mut schedule = lock(&self.schedule);
        (schedule.is_under_way, schedule.has_succeeded) = (false, fetched.is_some());
        schedule.due_ns = now_ns
            + match fetched.is_some() {
                true => self.refresh_ns,
                // The delay doubles after each failure.
                false => ((JWKS_RETRY_MS * 1_000_000) << schedule.failed.min(16)).min(self.refresh_ns),
            };
        match fetched {
            Some(keys) => {
                schedule.failed = 0;
                *lock(&self.keys) = Arc::new(keys);
                self.fetched_ns.store(now_ns, Relaxed);
            }
            None => {
                schedule.failed = schedule.failed.saturating_add(1);
                self.failures.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Locks, ignoring poison: each value is replaced in one assignment, so a panicking thread leaves nothing half-changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::tests::{ed25519_jwk as ed, ed25519_keys as keys};

    const SECOND_NS: u64 = 1_000_000_000;
    const REFRESH_NS: u64 = 600 * SECOND_NS;

    fn has(set: &KeySet, kid: &str) -> bool {
        set.keys().with_id(Some(kid)).next().is_some()
    }

    #[test]
    fn the_last_good_keys_stay_while_the_issuer_fails() {
        let set = KeySet::new("https://id.example/jwks", "id", Algorithm::EdDsa, REFRESH_NS);
        let mut now_ns = SECOND_NS;
        assert!(set.due_ns() <= now_ns, "at once");
        set.begin(now_ns);
        set.finish(Some(keys(&["a"])), now_ns);
        assert_eq!(set.due_ns(), now_ns + REFRESH_NS);
        let mut waits_s = Vec::new();
        for _ in 0..8 {
            now_ns = set.due_ns();
            set.begin(now_ns);
            set.finish(None, now_ns);
            waits_s.push((set.due_ns() - now_ns) / SECOND_NS);
        }
        assert!(has(&set, "a"));
        assert_eq!(waits_s, [5, 10, 20, 40, 80, 160, 320, 600], "never later than the usual refresh");
        assert_eq!((set.attempts(), set.fetched_ns()), ((9, 8), Some(SECOND_NS)));
        set.begin(now_ns);
        set.finish(Some(keys(&["b"])), now_ns);
        assert!(has(&set, "b") && !has(&set, "a"), "a key that was withdrawn is gone");
    }

    #[test]
    fn a_flood_of_unknown_key_ids_fetches_at_a_bounded_rate() {
        let set = KeySet::new("https://id.example/jwks", "id", Algorithm::EdDsa, REFRESH_NS);
        let mut now_ns = SECOND_NS;
        assert_eq!(set.request(now_ns), Request::Wait, "the first fetch is due");
        set.begin(now_ns);
        assert_eq!(set.request(now_ns), Request::Wait);
        set.finish(Some(keys(&["a"])), now_ns);
        let mut fetches = 0;
        for _ in 0..10_000 {
            now_ns += SECOND_NS / 100;
            match set.request(now_ns) {
                Request::Wait => {
                    fetches += 1;
                    set.begin(now_ns);
                    set.finish(Some(keys(&["a"])), now_ns);
                }
                refused => assert_eq!(refused, Request::Unknown),
            }
        }
        assert_eq!(fetches, 100 * 1_000 / JWKS_REQUESTED_MS_LOWEST, "in 100 seconds");
        now_ns += 2 * JWKS_REQUESTED_MS_LOWEST * 1_000_000;
        assert_eq!(set.request(now_ns), Request::Wait);
        set.begin(now_ns);
        set.finish(None, now_ns);
        assert_eq!(set.request(now_ns + 1), Request::Unreachable, "it may know the key once it answers");
    }

    #[test]
    fn keys_of_other_kinds_are_skipped_and_sets_without_any_refused() {
        let rsa_of_512_bits = json!({"kty": "RSA", "kid": "a", "n": "q".repeat(86), "e": "AQAB"});
        let wrong = [
            json!({"kty": "EC", "crv": "P-256", "kid": "a", "x": "AA", "y": "AA"}),
            json!({"kty": "oct", "kid": "a", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"}),
            rsa_of_512_bits,
            json!({"kty": "OKP", "crv": "Ed25519", "use": "enc", "x": ed("a")["x"]}),
            json!({"kty": "OKP", "crv": "Ed25519", "alg": "ES256", "x": ed("a")["x"]}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": 7}),
            json!({"kty": "OKP", "crv": "X25519", "x": ed("a")["x"]}),
            json!("key"),
        ];
        let parse = |keys: &[Value], algorithm| {
            Keys::parse(algorithm, json!({ "keys": keys }).to_string().as_bytes())
        };
        for algorithm in [Algorithm::EdDsa, Algorithm::Rs256, Algorithm::Es256, Algorithm::Hs256] {
            let refused = parse(&wrong, algorithm).unwrap_err();
            assert!(refused.contains("none of its 8 keys"), "{refused}");
        }
        let mixed = [&wrong[..], &[ed("good")]].concat();
        assert_eq!(parse(&mixed, Algorithm::EdDsa).unwrap().0.len(), 1);
        let many: Vec<Value> = (0..=JWKS_KEYS_MAX).map(|at| ed(&at.to_string())).collect();
        assert!(parse(&many, Algorithm::EdDsa).unwrap_err().contains("limit"));
        for bad in ["", "{}", "[]", "{\"keys\":{}}", "<html>", &"[".repeat(100_000)] {
            assert!(Keys::parse(Algorithm::EdDsa, bad.as_bytes()).is_err());
        }
    }

    #[test]
    fn without_a_key_id_only_a_few_keys_are_tried() {
        assert_eq!(keys(&["a", "b"]).with_id(None).count(), 2);
        assert_eq!(keys(&["a", "b", "c", "d", "e"]).with_id(None).count(), 0);
        assert_eq!(keys(&["a", "b", "c", "d", "e"]).with_id(Some("e")).count(), 1);
        assert_eq!(keys(&["a"]).with_id(Some("b")).count(), 0);
    }
}
