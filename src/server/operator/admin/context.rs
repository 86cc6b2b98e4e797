//! Shared context of all requests: handles to the server, its stage and its start time.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use tokio::sync::Semaphore;

use super::{access::AdminAccess, process_sample, stage::Stage};
use crate::{
    auth::Authority,
    clock,
    limits::ADMIN_QUERIES_MAX,
    operator::{control::Dispatch, tenants::SharedTenants},
    sources::{SourceStatus, sink::SinkStatus},
    tls::CertificateStatuses,
};
use tickcast_core::metrics::counters::{Counter, Counters};

/// The admin thread's handles to the rest of the server.
pub struct ServerHandles {
    /// The core and the counters of each shard, in shard order.
    pub shards: Vec<(usize, Arc<Counters>)>,
    /// The server's own sources.
    pub sources: Vec<SourceStatus>,
    /// Its sinks.
    pub sinks: Vec<SinkStatus>,
    /// Who may use the listener.
    pub access: AdminAccess,
    /// Verifies clients' credentials; `None`: clients are not authenticated.
    pub authority: Option<Arc<Authority>>,
    /// The tenants.
    pub tenants: SharedTenants,
    /// Name of this server among several; empty: none.
    pub node: Box<str>,
    /// Whether the server is not ready while a shard is overloaded.
    pub overload_is_unready: bool,
    /// When the certificates in use expire.
    pub certificates: CertificateStatuses,
    /// Passes a request on to the shards without blocking. Drops it if the main thread has ended.
    pub dispatch: Box<dyn Fn(Dispatch) + Send + Sync>,
}

/// State shared by all requests.
pub(super) struct AdminContext {
    pub(super) handles: ServerHandles,
    stage: AtomicU8,
    /// One permit for each request that may query shards at the same time.
    pub(super) shard_requests: Semaphore,
    /// Whether only this machine can reach the listener, which then refuses foreign Host headers.
    pub(super) is_local: bool,
    /// When the process started, by the wall clock; computed once, so that all responses agree.
    pub(super) start_seconds: f64,
    /// When the context was created, CLOCK_MONOTONIC, so that steps of the wall clock do not change the uptime.
    pub(super) created_ns: u64,
}

impl AdminContext {
    pub(super) fn new(handles: ServerHandles, is_local: bool) -> AdminContext {
        AdminContext {
            handles,
            stage: AtomicU8::new(Stage::Starting as u8),
            shard_requests: Semaphore::new(ADMIN_QUERIES_MAX),
            is_local,
            start_seconds: process_sample::start_seconds(),
            created_ns: clock::monotonic_ns(),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        Stage::from_number(self.stage.load(Relaxed))
    }

    /// Whether a shard is overloaded, and the server therefore not ready.
    pub(super) fn is_overloaded(&self) -> bool {
        self.handles.overload_is_unready
            && self.handles.shards.iter().any(|(_, counters)| counters.value(Counter::Overloaded) > 0)
    }

    /// Whether a source has yet to read back the part of its log that clients may resume from.
    pub(super) fn is_reading_back(&self) -> bool {
        self.handles.sources.iter().any(SourceStatus::is_reading_back)
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
    }

    /// Seconds since the context was created, which is one of the first things a server does.
    pub(super) fn uptime_seconds(&self) -> f64 {
        clock::monotonic_ns().saturating_sub(self.created_ns) as f64 / 1e9
    }
}
