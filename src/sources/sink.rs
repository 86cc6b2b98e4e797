//! Sinks: engines that take what clients publish to routed topics. Each runs on its own thread, with two rings to every shard.
//!
//! ```text
//!  shards -- ticks --> Outlet::take --> Writer --> engine
//!         <- answers - Outlet::settle <--+
//!                        ^
//!                        | refuses what waits too long while the engine is away
//! ```
//!
//! A tick that has not been passed to the engine by half of its deadline is refused: the engine certainly does not have it, and
//! a tick that is passed on has as much time to be confirmed. Ticks that a writer has taken but not settled when its connection
//! ends are unconfirmed. Nothing is retried: a second attempt could arrive after a later tick of the same topic, or duplicate
//! the tick.

pub mod kind;
mod outlet;
#[cfg(any(feature = "kafka", feature = "nats", feature = "redis"))]
mod template;

#[cfg(feature = "nats")]
pub mod jetstream;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "redis")]
mod redis_batch;
#[cfg(feature = "redis")]
pub mod redis_pubsub;
#[cfg(feature = "redis")]
pub mod redis_stream;

use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, select};

pub use self::outlet::{Confirmed, Outlet, Publish, PublishId, SinkLanes, SinkRings};
use crate::{
    NAP_NS, SourceError, SourceStatus, StopFlag,
    common::Common,
    engine::{EngineError, RETRY_MS, RETRY_MS_MAX, attempt, until_stopped},
    runner::Running,
};
use tickcast_client::Backoff;
use tickcast_common::{clock, panics};
use tickcast_core::routes::Outcome;

/// How often a writer checks its connection and the waiting ticks, if nothing else wakes it.
pub const WATCH: Duration = Duration::from_millis(100);
/// Time between two checks of the waiting ticks while there is no connection.
const NAP: Duration = Duration::from_nanos(NAP_NS);

/// Passes ticks on to an engine.
pub trait Writer: Send {
    /// A connection to the engine.
    type Connection;

    /// Connects once. `ack_timeout`: time from a publish to its answer.
    fn connect(
        &mut self,
        ack_timeout: Duration,
    ) -> impl Future<Output = Result<Self::Connection, EngineError>>;

    /// Passes on the outlet's ticks in the order in which it gives them, and settles each, until an error. Waits with
    /// [`Outlet::ready`] for more.
    fn write(
        &mut self,
        connection: Self::Connection,
        outlet: &mut Outlet,
    ) -> impl Future<Output = Result<Infallible, EngineError>>;
}

/// A configured sink, ready to run on a thread.
pub trait Sink: Send {
    /// Passes ticks on until the server stops. Called once, on the sink's own thread.
    ///
    /// # Errors
    /// Why the sink cannot continue, for the operator. The server then stops.
    fn run(&mut self, outlet: &mut Outlet, stop: &StopFlag) -> Result<(), SourceError>;
}

impl<W: Writer> Sink for W {
    fn run(&mut self, outlet: &mut Outlet, stop: &StopFlag) -> Result<(), SourceError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seed = RandomState::new().hash_one(outlet.name());
        let mut backoff = Backoff::with_bounds(seed, RETRY_MS, RETRY_MS_MAX);
        let attempts = async {
            loop {
                let ack_timeout = outlet.ack_timeout();
                let failure =
                    match refusing_late(outlet, Outcome::Away, attempt(self.connect(ack_timeout))).await {
                        Ok(connection) => {
                            outlet.set_connected();
                            backoff.handle_connected(clock::monotonic_ns());
                            let Err(failure) = attempt(self.write(connection, outlet)).await;
                            failure
                        }
                        Err(failure) => failure,
                    };
                outlet.set_away(&failure.0);
                let wait_ms = backoff.handle_disconnected(clock::monotonic_ns(), 0);
                refusing_late(outlet, Outcome::Away, tokio::time::sleep(Duration::from_millis(wait_ms)))
                    .await;
            }
        };
        runtime.block_on(until_stopped(stop, attempts));
        // Does not wait for a helper thread, which may be in a DNS lookup, for example.
        runtime.shutdown_background();
        Ok(())
    }
}

/// Awaits a future, without which no tick can be passed on. Meanwhile, refuses ticks that have waited too long.
async fn refusing_late<T>(outlet: &mut Outlet, outcome: Outcome, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        outlet.refuse_late(outcome);
        outlet.flush();
        match select(future, pin!(tokio::time::sleep(NAP))).await {
            Either::Left((done, _)) => return done,
            Either::Right((_, rest)) => future = rest,
        }
    }
}

/// An operator's view of a sink. Clones share the state.
#[derive(Clone, Debug)]
pub struct SinkStatus {
    name: Arc<str>,
    status: SourceStatus,
}

impl SinkStatus {
    /// Creates the status of a sink that has not been started.
    pub fn new(name: &str, kind: &'static str) -> SinkStatus {
        SinkStatus { name: name.into(), status: SourceStatus::new(kind, Common::named(name)) }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its kind, its health and its counters. Only its own thread adds to them.
    pub fn status(&self) -> &SourceStatus {
        &self.status
    }
}

/// A sink on its thread.
pub type RunningSink = Running<SinkStatus>;

/// Starts a sink on its own thread. Calls `on_end` from that thread when the sink has failed or panicked.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    mut sink: Box<dyn Sink>,
    lanes: SinkLanes,
    status: SinkStatus,
    ack_timeout_ns: u64,
    on_end: impl FnOnce(Result<(), SourceError>) + Send + 'static,
) -> io::Result<RunningSink> {
    let (stop, shared) = (StopFlag::default(), status.clone());
    let of_thread = stop.clone();
    let run = move || {
        let name = shared.name().to_owned();
        let mut outlet = Outlet::new(lanes, shared, ack_timeout_ns);
        let ended = catch_unwind(AssertUnwindSafe(|| sink.run(&mut outlet, &of_thread)));
        on_end(ended.unwrap_or_else(|panic| {
            Err(format!("sink {name}: panicked: {}", panics::message(&*panic)).into())
        }));
    };
    Running::start(format!("sink {}", status.name()), (status, stop), run)
}

#[cfg(test)]
mod tests;
