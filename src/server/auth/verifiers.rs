//! The threads that verify credentials, and the lanes between them and the shards.
//!
//! ```text
//!  shard --try_send--> one bounded queue --> VERIFIERS threads, at a lower priority
//!    ^                        ^                    |        |
//!    |                        +---- fetched -------|--- tokens that wait for a key set
//!    +---- one SPSC ring per (thread, shard), then its doorbell
//! ```
//!
//! A shard never waits for a lock that a thread of lower priority holds: it sends without blocking, and receives from rings.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use super::{
    authority::Authority,
    fetcher,
    key_set::{KeySet, Request},
    policy::Outcome,
};
use crate::{
    clock,
    limits::{JWKS_TOKENS_WAITING_MAX, VERIFICATIONS_WAITING_MAX, VERIFIER_NICENESS, VERIFIERS},
    logging::peer,
    process::{
        cores::CoreSet,
        fault::{self, Place},
        panics,
    },
};
use tickcast_core::{
    ids::SessionId,
    mesh::ring::Doorbell,
    principal::{AuthRefusal, Credentials, Principal},
};

/// Maximum attempts to verify a token while its issuer's keys change.
const KEY_SET_LOOKS: usize = 3;

/// The result of verifying a client's credentials.
pub type Verdict = Result<Arc<Principal>, AuthRefusal>;

/// Credentials of a session to be verified.
struct Job {
    shard: usize,
    session: SessionId,
    credentials: Credentials,
    /// The key set that the job has already waited for; it does not wait for the same one again. A reload may have replaced it
    /// since.
    waited_for: Option<Arc<KeySet>>,
}

impl Job {
    fn has_waited_for(&self, set: &Arc<KeySet>) -> bool {
        self.waited_for.as_ref().is_some_and(|waited_for| Arc::ptr_eq(waited_for, set))
    }
}

/// A shard's ends of the lanes.
pub struct VerifierLane {
    shard: usize,
    jobs: SyncSender<Job>,
    verdicts: Vec<rtrb::Consumer<(SessionId, Verdict)>>,
    authority: Arc<Authority>,
}

impl VerifierLane {
    /// Hands credentials to the verifiers without blocking.
    ///
    /// # Errors
    /// [`AuthRefusal::Busy`] if too many are waiting.
    pub fn submit(&self, session: SessionId, credentials: Credentials) -> Result<(), AuthRefusal> {
        self.authority.begin_waiting();
        let sent = self.jobs.try_send(Job { shard: self.shard, session, credentials, waited_for: None });
        sent.map_err(|_| {
            self.authority.end_waiting();
            self.authority.count(Err(&AuthRefusal::Busy));
            AuthRefusal::Busy
        })
    }

    /// The next verdict, if there is one.
    pub fn take(&mut self) -> Option<(SessionId, Verdict)> {
        self.verdicts.iter_mut().find_map(|ring| ring.pop().ok())
    }

    /// Whether a verdict is waiting. Cost: one load per verifier.
    pub fn has_verdicts(&self) -> bool {
        self.verdicts.iter().any(|ring| !ring.is_empty())
    }
}

/// State shared by the threads.
struct Shared {
    authority: Arc<Authority>,
    jobs: Mutex<Receiver<Job>>,
    /// Jobs that wait for their set to be fetched. At most [`JWKS_TOKENS_WAITING_MAX`].
    parked: Mutex<Vec<(Arc<KeySet>, Job)>>,
}

/// One thread's ends of the rings to all shards, with their doorbells.
struct Replies(Vec<(VerdictSender, Arc<Doorbell>)>);

type VerdictSender = rtrb::Producer<(SessionId, Verdict)>;

/// Starts the verifiers and the fetcher. They avoid `shard_cores` if the process may use other cores. Calls `on_failure` with the
/// reason when one of the threads ends.
///
/// `waiting_max`: maximum credentials of one shard without a verdict. The shard enforces it, so each of its rings has room for
/// all verdicts.
///
/// # Errors
/// A thread cannot be started.
pub fn start(
    authority: &Arc<Authority>,
    bells: &[Arc<Doorbell>],
    waiting_max: usize,
    shard_cores: &[usize],
    on_failure: impl Fn(String) + Clone + Send + 'static,
) -> io::Result<Vec<VerifierLane>> {
    let (jobs, receiver) = sync_channel(VERIFICATIONS_WAITING_MAX);
    let lane = |shard| VerifierLane {
        shard,
        jobs: jobs.clone(),
        verdicts: Vec::with_capacity(VERIFIERS),
        authority: authority.clone(),
    };
    let mut lanes: Vec<VerifierLane> = (0..bells.len()).map(lane).collect();
    let shared = Arc::new(Shared {
        authority: authority.clone(),
        jobs: Mutex::new(receiver),
        parked: Mutex::default(),
    });
    let cores = spare_cores(shard_cores);
    for at in 0..VERIFIERS {
        let ring = |(lane, bell): (&mut VerifierLane, &Arc<Doorbell>)| {
            let (producer, consumer) = rtrb::RingBuffer::new(waiting_max);
            lane.verdicts.push(consumer);
            (producer, bell.clone())
        };
        let mut replies = Replies(lanes.iter_mut().zip(bells).map(ring).collect());
        let shared = shared.clone();
        let run = move || while shared.verify_next(&mut replies) {};
        spawn(format!("verifier-{at}"), cores.clone(), on_failure.clone(), run)?;
    }
    let run = move || fetcher::run(&shared.authority, || shared.resume(&jobs));
    spawn("jwks".into(), cores, on_failure, run)?;
    Ok(lanes)
}

/// The cores that this process may use and that have no shard; `None` if there are none.
fn spare_cores(shard_cores: &[usize]) -> Option<CoreSet> {
    let allowed = CoreSet::allowed().ok()?;
    let spare: Vec<usize> = allowed.cores().filter(|core| !shard_cores.contains(core)).collect();
    (!spare.is_empty()).then(|| spare.into_iter().collect())
}

fn spawn(
    name: String,
    cores: Option<CoreSet>,
    on_failure: impl Fn(String) + Send + 'static,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        let placed = cores.map_or(Ok(()), |cores| cores.apply());
        // 0 means the calling thread (setpriority(2), "C library/kernel differences").
        let nice = rustix::process::setpriority_process(None, VERIFIER_NICENESS);
        if let Some(error) = placed.err().or(nice.err().map(Into::into)) {
            ::log::debug!("auth: cannot place a verifier: {error}");
        }
        let ended = catch_unwind(AssertUnwindSafe(run));
        on_failure(match ended {
            Ok(()) => "it has nothing to do any longer".into(),
            Err(panic) => format!("it panicked: {}", panics::message(&*panic)),
        });
    };
    thread::Builder::new().name(name).spawn(run).map(drop)
}

impl Shared {
    /// Waits for credentials and verifies them. Returns whether there may be more.
    fn verify_next(&self, replies: &mut Replies) -> bool {
        let Ok(job) = lock(&self.jobs).recv() else { return false };
        let now_s = clock::realtime_ns() / 1_000_000_000;
        let mut verdict = Err(AuthRefusal::Busy);
        // The set may be fetched between trying its keys and waiting for it. Then try its new keys.
        for _ in 0..KEY_SET_LOOKS {
            let outcome = self.guarded(|| {
                fault::at(Place::Verifier);
                self.authority.policy().verify(&job.credentials, now_s, &self.authority.revocations)
            });
            let (set, tried) = match outcome {
                Outcome::Verdict(decided) => {
                    verdict = decided;
                    break;
                }
                Outcome::UnknownKey(set, tried) => (set, tried),
            };
            let request = set.request(clock::monotonic_ns());
            if !set.has_keys(&tried) {
                continue;
            }
            match request {
                Request::Wait if !job.has_waited_for(&set) => {
                    let mut parked = lock(&self.parked);
                    if parked.len() < JWKS_TOKENS_WAITING_MAX {
                        parked.push((set, job));
                        drop(parked);
                        self.authority.wake_fetcher();
                        return true;
                    }
                }
                Request::Unknown => verdict = Err(AuthRefusal::Invalid("its issuer has no such key".into())),
                // The issuer may have the key, so the client should retry.
                Request::Wait | Request::Unreachable => {}
            }
            break;
        }
        self.authority.count(verdict.as_ref().map(|principal| &**principal));
        self.authority.end_waiting();
        replies.send(&job, verdict);
        true
    }

    /// The outcome of a verification. A panic, which is a mistake in the server, refuses these credentials and no others. Its
    /// message may quote them, so only its place is logged.
    fn guarded(&self, verify: impl FnOnce() -> Outcome) -> Outcome {
        panics::catch_hidden(verify).unwrap_or_else(|place| {
            self.authority.count_panic();
            ::log::error!(
                target: peer::AUTH,
                "auth: the verification of a client's credentials panicked at {place}; they are refused. Please report it"
            );
            Outcome::Verdict(Err(AuthRefusal::Invalid("the server cannot verify it".into())))
        })
    }

    /// Verifies credentials again if their set has been fetched, could not be fetched, or is no longer used.
    fn resume(&self, jobs: &SyncSender<Job>) {
        let policy = self.authority.policy();
        let now_ns = clock::monotonic_ns();
        let is_pending = |set: &Arc<KeySet>| {
            set.is_pending(now_ns) && policy.key_sets().any(|other| Arc::ptr_eq(other, set))
        };
        let ready: Vec<_> = {
            let mut parked = lock(&self.parked);
            let (others, ready) = parked.drain(..).partition(|(set, _)| is_pending(set));
            *parked = others;
            ready
        };
        for (set, job) in ready {
            // Blocks while the queue is full. Only the fetcher waits.
            let _ = jobs.send(Job { waited_for: Some(set), ..job });
        }
    }
}

impl Replies {
    fn send(&mut self, job: &Job, verdict: Verdict) {
        let Some((ring, bell)) = self.0.get_mut(job.shard) else { return };
        let pushed = ring.push((job.session, verdict));
        // Fails only once the shard has ended.
        debug_assert!(
            pushed.is_ok() || ring.is_abandoned(),
            "a shard has at most so many credentials without a verdict"
        );
        bell.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
