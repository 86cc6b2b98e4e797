//! State shared by verifiers, the fetcher, operators and reloads: the current policy, the revocations, and the counters.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{policy::Policy, revocations::Revocations};
use tickcast_core::principal::{AuthRefusal, Principal};

/// Number of verification results; see [`RESULTS`].
const RESULT_COUNT: usize = 7;
/// Values of the label `result` in metrics.
pub const RESULTS: [&str; RESULT_COUNT] =
    ["valid", "missing", "invalid", "expired", "not_yet_valid", "revoked", "busy"];

/// The authentication state of a server.
#[derive(Debug)]
pub struct Authority {
    policy: Mutex<Arc<Policy>>,
    /// Revoked subjects and tokens.
    pub revocations: Revocations,
    /// Counts, in the order of [`RESULTS`].
    results: [AtomicU64; RESULT_COUNT],
    /// Credentials handed to the verifiers but not verified yet.
    waiting: AtomicU64,
    /// Verifications that panicked.
    panics: AtomicU64,
    /// Revocations by operators.
    revoked: AtomicU64,
    /// Whether the fetcher must look again: a set is due earlier, or the policy has changed.
    is_changed: Mutex<bool>,
    changed: Condvar,
}

impl Authority {
    /// Starts with a policy.
    pub fn new(policy: Arc<Policy>) -> Authority {
        Authority {
            policy: Mutex::new(policy),
            revocations: Revocations::default(),
            results: Default::default(),
            waiting: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            is_changed: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The current policy.
    pub fn policy(&self) -> Arc<Policy> {
        lock(&self.policy).clone()
    }

    /// Replaces the policy. Key sets that have not changed keep their fetched keys.
    pub fn replace(&self, policy: &Policy) {
        let policy = policy.clone().inheriting(&self.policy());
        *lock(&self.policy) = Arc::new(policy);
        self.wake_fetcher();
    }

    /// Counts a verdict.
    pub fn count(&self, verdict: Result<&Principal, &AuthRefusal>) {
        let at = match verdict {
            Ok(_) => 0,
            Err(AuthRefusal::Missing) => 1,
            // The shards check tenants after the verdict.
            Err(AuthRefusal::Invalid(_) | AuthRefusal::Tenant(_)) => 2,
            Err(AuthRefusal::Expired | AuthRefusal::CertificateExpired) => 3,
            Err(AuthRefusal::NotYetValid) => 4,
            Err(AuthRefusal::Revoked) => 5,
            Err(AuthRefusal::Busy) => 6,
        };
        self.results[at].fetch_add(1, Relaxed);
    }

    /// Counts of verdicts by result; see [`RESULTS`].
    pub fn results(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RESULTS.into_iter().zip(self.results.iter().map(|count| count.load(Relaxed)))
    }

    /// Counts credentials that start to wait.
    pub(super) fn begin_waiting(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// Counts credentials that no longer wait.
    pub(super) fn end_waiting(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// Credentials that wait for a verifier or for their issuer's keys.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// Counts a verification that panicked. It is also counted by its verdict.
    pub(super) fn count_panic(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// Verifications that panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    /// Counts a revocation.
    pub fn count_revocation(&self) {
        self.revoked.fetch_add(1, Relaxed);
    }

    /// Revocations counted.
    pub fn revoked(&self) -> u64 {
        self.revoked.load(Relaxed)
    }

    /// Wakes the fetcher, because a set is due earlier or the policy has changed.
    pub fn wake_fetcher(&self) {
        *lock(&self.is_changed) = true;
        self.changed.notify_all();
    }

    /// Sleeps for this time, or until [`Authority::wake_fetcher`] is called.
    pub(super) fn sleep(&self, duration_ns: u64) {
        let guard = lock(&self.is_changed);
        let waited =
            self.changed.wait_timeout_while(guard, Duration::from_nanos(duration_ns), |changed| !*changed);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// Locks, ignoring poison: each value is replaced in one assignment, so a panicking thread leaves nothing half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
