//! A shard's thread: creates its executor, pins it, creates its rings, runs its driver, and reports how it ended. It also
//! reports a failure or a panic at any point, so that no thread waits for a shard that has ended.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};

use super::{
    admission::Admission,
    control_queue::ControlQueue,
    driver::{ClientListener, Distribution, Driver, Pacing},
    handover::HandoverLanes,
    stop::Stop,
    uring::{
        data_ring::{DataRing, ListenerId, Settings},
        retry::while_out_of_memory,
    },
};
use crate::{
    auth::verifiers::VerifierLane,
    clock,
    process::{
        cores::pin_to,
        fault::{self, Place},
        panics,
    },
    tls::TlsConfigs,
};
use tickcast_core::{
    mesh::{Mesh, ring::Doorbell},
    metrics::latency::Latency,
    shard::Shard,
};

/// Memory of glommio's own rings, which carry no traffic. Its default, 10 MiB, is registered three times.
const EXECUTOR_MEMORY_BYTES: usize = 64 << 10;
/// Depth of glommio's own rings.
const EXECUTOR_RING_DEPTH: usize = 256;
/// glommio's preemption timer, set so that it never fires. If it fired between the executor's I/O poll and its check of the run
/// queue, glommio 0.9 would park although the driver is runnable. For that, the thread need only be off its core for the timer's
/// period (seen at 500 us after 1,000 to 30,000 parks, and at 10 ms). The driver is the executor's only task and needs no
/// preemption.
const PREEMPT_TIMER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a shard retries to create its rings, all of them together, while the kernel is out of memory.
const RING_RETRIES_NS: u64 = 2_000_000_000;

/// Everything that a shard's thread owns.
pub struct ShardParts {
    /// The state machine.
    pub shard: Shard,
    /// The rings to the other shards.
    pub mesh: Mesh,
    /// Wakes the shard.
    pub bell: Arc<Doorbell>,
    /// The eventfd that the doorbell writes to.
    pub eventfd: OwnedFd,
    /// The listening sockets by [`ListenerId`]; `None` where another shard accepts.
    pub sockets: Vec<Option<OwnedFd>>,
    /// The listeners by [`ListenerId`].
    pub listeners: Vec<ClientListener>,
    /// The TLS configurations by [`ListenerId`].
    pub tls: TlsConfigs,
    /// Slots of the data ring.
    pub clients_max: usize,
    /// Coordinates the shutdown.
    pub stop: Arc<Stop>,
    /// Admits or refuses connections.
    pub admission: Admission,
    /// Whether to refuse connections while the shard is overloaded.
    pub overload_refuses: bool,
    /// Connections that move to or from other shards.
    pub handovers: HandoverLanes,
    /// Requests of operators and of the main thread.
    pub control: ControlQueue,
    /// Verifies credentials.
    pub verifiers: Option<VerifierLane>,
    /// Batching and spinning.
    pub pacing: Pacing,
    /// Which shard serves an accepted connection.
    pub distribution: Distribution,
}

/// Why a shard ended before the server stopped it.
#[derive(Debug)]
pub enum ShardFailure {
    /// A ring or a listener could not be created. No client was served.
    Setup(io::Error),
    /// The thread cannot be pinned to its core. No client was served.
    Pinning(io::Error),
    /// A ring or the doorbell has failed for good.
    Transport(io::Error),
    /// A panic, with its message.
    Panic(String),
}

impl fmt::Display for ShardFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShardFailure::Setup(error) => {
                write!(f, "its io_uring rings cannot be created: {error}; {}", remedy(error))
            }
            ShardFailure::Pinning(error) => write!(f, "{error}; choose other cores with --cores"),
            ShardFailure::Transport(error) => write!(f, "its io_uring ring has failed: {error}"),
            ShardFailure::Panic(message) => write!(f, "it panicked: {message}"),
        }
    }
}

/// The remedy for a setup error.
fn remedy(error: &io::Error) -> &'static str {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::OutOfMemory, _) => {
            "raise the limit of locked memory (LimitMEMLOCK=infinity in the unit, `ulimit -l unlimited`), free memory, or \
             lower --shards"
        }
        (_, Some(libc::EMFILE | libc::ENFILE)) => {
            "raise the limit of descriptors (LimitNOFILE, `ulimit -n`), or lower --shards"
        }
        _ => "`tickcast check` says what is missing",
    }
}

/// Starts a shard's thread on a core. The thread calls `on_start` once the shard listens, and `on_end` when it has ended: with
/// its latencies if the server stopped it, otherwise with the failure.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    parts: ShardParts,
    core: usize,
    on_start: impl FnOnce() + Send + 'static,
    on_end: impl FnOnce(Result<Latency, ShardFailure>) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let name = format!("shard-{}", parts.shard.id().0);
    let run = move || {
        // Nothing that the shard owns outlives the panic.
        let ended = catch_unwind(AssertUnwindSafe(|| run(parts, core, on_start)));
        on_end(ended.unwrap_or_else(|panic| Err(ShardFailure::Panic(panics::message(&*panic).to_owned()))));
    };
    thread::Builder::new().name(name).spawn(run)
}

fn run(parts: ShardParts, core: usize, on_start: impl FnOnce() + 'static) -> Result<Latency, ShardFailure> {
    fault::at(Place::Start(parts.shard.id().0));
    let give_up_ns = clock::monotonic_ns() + RING_RETRIES_NS;
    let executor = while_out_of_memory(give_up_ns, executor).map_err(ShardFailure::Setup)?;
    // After the executor, whose helper thread would inherit the core; before the data ring, which belongs on it.
    pin_to(core).map_err(ShardFailure::Pinning)?;
    executor.run(async move {
        let driver = parts.into_driver(give_up_ns).map_err(ShardFailure::Setup)?;
        on_start();
        driver.run().await.map_err(ShardFailure::Transport)
    })
}

/// Creates this thread's executor.
fn executor() -> io::Result<LocalExecutor> {
    let builder = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(EXECUTOR_MEMORY_BYTES)
        .ring_depth(EXECUTOR_RING_DEPTH)
        .preempt_timer(PREEMPT_TIMER)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1));
    Ok(builder.make()?)
}

impl ShardParts {
    /// Creates the data ring and its driver. The ring accepts on the listening sockets and owns them from then on.
    fn into_driver(self, give_up_ns: u64) -> io::Result<Driver> {
        let settings = Settings::for_slots(self.clients_max as u32);
        let mut ring =
            while_out_of_memory(give_up_ns, || DataRing::new(settings, self.eventfd.try_clone()?))?;
        for (id, socket) in self.sockets.into_iter().enumerate() {
            if let Some(socket) = socket {
                ring.accept(ListenerId(id as u32), socket)?;
            }
        }
        let mut driver = Driver::new(
            self.shard,
            ring,
            (self.mesh, self.handovers),
            self.bell,
            self.stop,
            self.admission,
            self.control,
        );
        (driver.listeners, driver.distribution) = (self.listeners, self.distribution);
        driver.tls.set_configs(self.tls);
        driver.verifiers = self.verifiers;
        driver.overload_refuses = self.overload_refuses;
        driver.set_pacing(self.pacing);
        Ok(driver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_remedy() {
        for (errno, part) in
            [(libc::ENOMEM, "LimitMEMLOCK"), (libc::EMFILE, "LimitNOFILE"), (libc::EPERM, "tickcast check")]
        {
            let text = ShardFailure::Setup(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains(part), "{text}");
        }
    }
}
