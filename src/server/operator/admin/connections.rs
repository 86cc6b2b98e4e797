//! The connections of the admin listener: bounds their number, and evicts the oldest without a request.
//! Every connection is accepted at once. If there are too many whose request head has not arrived, the oldest of them is
//! evicted. After its head, a request is answered: at once if it involves no shard, otherwise if at most
//! [`ADMIN_SERVED_MAX`] such requests are open. So neither silent connections nor slow requests block `/healthz`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};

use crate::limits::{ADMIN_HEADLESS_MAX, ADMIN_SERVED_MAX};

/// All connections. Only the admin thread uses it; the locks are never contended.
pub(super) struct Connections {
    headless: Mutex<Headless>,
    served: Arc<Semaphore>,
}

/// Connections whose request head has not arrived.
#[derive(Default)]
struct Headless {
    /// Number of the last connection.
    last: u64,
    /// Number and task of each, oldest first. Bound: [`ADMIN_HEADLESS_MAX`].
    tasks: VecDeque<(u64, AbortHandle)>,
}

impl Connections {
    pub(super) fn new() -> Arc<Connections> {
        Arc::new(Connections {
            headless: Mutex::default(),
            served: Arc::new(Semaphore::new(ADMIN_SERVED_MAX)),
        })
    }

    /// Begins a connection. `spawn` starts its task, which must not run before this returns. Evicts the oldest connection
    /// without a head if there are too many. Returns whether one was evicted.
    pub(super) fn begin(self: &Arc<Self>, spawn: impl FnOnce(Connection) -> AbortHandle) -> bool {
        let number = {
            let mut headless = self.headless();
            headless.last += 1;
            headless.last
        };
        // Not under the lock, which the connection takes when it is dropped.
        let task = spawn(Connection { all: self.clone(), number, permit: Mutex::new(None) });
        let evicted = {
            let mut headless = self.headless();
            headless.tasks.push_back((number, task));
            let is_over = headless.tasks.len() > ADMIN_HEADLESS_MAX;
            if is_over { headless.tasks.pop_front() } else { None }
        };
        evicted.is_some_and(|(_, task)| {
            task.abort();
            true
        })
    }

    fn headless(&self) -> MutexGuard<'_, Headless> {
        self.headless.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, until it is dropped.
pub(super) struct Connection {
    all: Arc<Connections>,
    number: u64,
    /// Held from the arrival of its head, if shards are involved.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Connection {
    /// Its request head has arrived: it is no longer evicted.
    pub(super) fn head_arrived(&self) {
        self.all.headless().tasks.retain(|(number, _)| *number != self.number);
    }

    /// Counts it among the connections that involve shards, until it ends. Returns `false` if there are too many.
    pub(super) fn begin_service(&self) -> bool {
        let permit = self.all.served.clone().try_acquire_owned().ok();
        let is_served = permit.is_some();
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        is_served
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.head_arrived();
    }
}
