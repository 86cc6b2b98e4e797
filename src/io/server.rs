//! Starts the shards and the ingests, says where it listens, waits for a reason to stop, and stops in order.

use std::{
    io::{self, Write},
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

use super::{
    checks,
    data_ring::{DataRing, Settings, eventfd},
    executor::{Driver, Pacing},
    gate::{Gate, Shared},
    handover::{Exchange, exchanges},
    listener::listen,
    report::{Reporter, Reports},
    signals,
    stop::Stop,
};
use crate::{
    clock,
    config::{Config, Source},
    counters::{Counter, Counters},
    error::StartupError,
    ingest::{Lanes, StopFlag, ecg, replay, simulator},
    latency::{self, Latency},
    limits::SHARDS_MAX,
    mesh::{Mesh, mesh},
    page,
    ring::{Doorbell, frame_ring},
    shard::{Door, Shard},
    tick::ShardId,
};

/// What the main thread waits for.
enum Happened {
    /// A signal asks the server to stop.
    Signal(&'static str),
    /// A signal asks for a report.
    ReportAsked,
    /// A shard's latencies: it was asked, or it ends.
    Latency(ShardId, Box<Latency>),
    /// A shard's ring and listeners are ready, or are not to be had.
    Started(io::Result<()>),
    /// A shard has ended.
    ShardEnded(io::Result<()>),
    /// An ingest has come to its end.
    IngestEnded(Result<replay::Summary, replay::ReplayError>),
}

/// Memory of glommio's own rings: control plane only. Its default of 10 MiB is registered three times over.
const EXECUTOR_MEMORY_BYTES: usize = 64 << 10;
/// Depth of glommio's own rings.
const EXECUTOR_RING_DEPTH: usize = 256;
/// glommio's preemption timer, as good as never. When it fires between the executor's I/O poll and its look at the run
/// queue, glommio 0.9 goes to sleep on the runnable driver: all it takes is a thread that is off its core for as long
/// (seen at 500 us after 1 to 30 thousand parks, and at 10 ms). The driver is the executor's one task: there is nobody
/// to be fair to.
const PREEMPT_TIMER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Locked memory of a server that has just ended is given back late: attempts to make a data ring, and their pause.
const RING_ATTEMPTS_MAX: u32 = 20;
const RING_RETRY_NS: u64 = 100_000_000;

/// A running server.
struct Server {
    shards: Vec<ExecutorJoinHandle<()>>,
    ingests: Vec<JoinHandle<()>>,
    stop_ingests: StopFlag,
    stop: Arc<Stop>,
    reports: Arc<Reports>,
    /// Of the shards, then of the ingests.
    counters: Vec<Arc<Counters>>,
    happened: Receiver<Happened>,
    happened_in: Sender<Happened>,
}

/// Serves until a signal, or until something that cannot be mended while running. `listening` is told the addresses
/// in use, native and HTTP, once every shard is ready.
///
/// # Errors
/// A [`StartupError`]: what is wrong and how to mend it.
pub fn run(config: &Config, listening: impl FnOnce(SocketAddr, SocketAddr)) -> Result<(), StartupError> {
    signals::block().map_err(|error| StartupError::Executor(error.to_string()))?;
    clock::sleep_precisely();
    // Compressed now, not when the first browser comes: a shard has better things to do.
    page::files();
    let clients_max = checks::check(config.clients_max)?;
    let (tcp, native) = listen("--tcp", config.tcp, config.shards, config.socket)?;
    let (http_address, http) = listen("--http", config.http, config.shards, config.socket)?;
    let (server, lanes) = start(config, clients_max, native, http)?;
    listening(tcp, http_address);
    server.serve(config, lanes)
}

/// Makes and starts the shards, and one set of lanes for each source.
fn start(
    config: &Config,
    clients_max: usize,
    native: Vec<OwnedFd>,
    http: Vec<OwnedFd>,
) -> Result<(Server, Vec<Lanes>), StartupError> {
    assert!((1..=SHARDS_MAX).contains(&usize::from(config.shards)), "config checks the number of shards");
    let refused = |error: io::Error| StartupError::Executor(error.to_string());
    let (happened_in, happened) = channel();
    let (signal, report) = (happened_in.clone(), happened_in.clone());
    signals::watch(
        move |name| drop(signal.send(Happened::Signal(name))),
        move || drop(report.send(Happened::ReportAsked)),
    )
    .map_err(refused)?;

    let eventfds: io::Result<Vec<OwnedFd>> = (0..config.shards).map(|_| eventfd()).collect();
    let eventfds = eventfds.map_err(refused)?;
    let bells: io::Result<Vec<_>> = eventfds.iter().map(|fd| doorbell(fd).map(Arc::new)).collect();
    let bells = bells.map_err(refused)?;
    let mut meshes = mesh(&bells, config.mesh_ring_bytes);
    let lanes = config.sources.iter().map(|_| lanes(&mut meshes, &bells, config.mesh_ring_bytes)).collect();

    let mut server = Server {
        shards: Vec::new(),
        ingests: Vec::new(),
        stop_ingests: StopFlag::default(),
        stop: Arc::new(Stop::new(bells.clone())),
        reports: Arc::new(Reports::new(bells.clone())),
        counters: Vec::new(),
        happened,
        happened_in: happened_in.clone(),
    };
    let shared = Shared::new(clients_max, config.clients_per_source_max);
    let exchanges = exchanges(&bells);
    let epoch = clock::realtime_ns();
    let parts = eventfds.into_iter().zip(native.into_iter().zip(http)).zip(meshes.into_iter().zip(bells));
    for (index, (((eventfd, (native, http)), (mesh, bell)), exchange)) in parts.zip(exchanges).enumerate() {
        let counters = Arc::new(Counters::default());
        server.counters.push(counters.clone());
        let id = ShardId(index as u16);
        let answer = happened_in.clone();
        let reporter = Reporter::new(server.reports.clone(), id, move |latency| {
            drop(answer.send(Happened::Latency(id, latency)));
        });
        let shard = Shard::new(id, config.shards, epoch, config.limits.clone(), counters);
        let parts = Parts {
            shard,
            mesh,
            bell,
            eventfd,
            native,
            http,
            clients_max,
            stop: server.stop.clone(),
            gate: Gate::new(shared.clone(), config.accept_rate, config.shards),
            pacing: Pacing { latency_budget_ns: config.latency_budget_ns, spin_ns: config.spin_ns },
            exchange,
            reporter,
            happened: happened_in.clone(),
        };
        let core = config.cores[index % config.cores.len()];
        let executor = LocalExecutorBuilder::new(Placement::Fixed(core))
            .name("shard")
            .io_memory(EXECUTOR_MEMORY_BYTES)
            .ring_depth(EXECUTOR_RING_DEPTH)
            .preempt_timer(PREEMPT_TIMER)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
            .spawn(move || parts.run());
        server.shards.push(executor.map_err(|error| StartupError::Executor(error.to_string()))?);
    }
    let mut started = 0;
    while started < config.shards {
        match server.happened.recv() {
            Ok(Happened::Started(Ok(()))) => started += 1,
            // There is nothing to report yet.
            Ok(Happened::ReportAsked) => {}
            Ok(Happened::Started(Err(error)) | Happened::ShardEnded(Err(error))) => {
                return Err(StartupError::IoUring(
                    error,
                    "the data ring could not be made (locked memory: LimitMEMLOCK; descriptors: LimitNOFILE)",
                ));
            }
            Ok(Happened::Signal(name)) => {
                return Err(StartupError::Executor(format!("{name} while starting")));
            }
            _ => return Err(StartupError::Executor("a shard ended while starting".into())),
        }
    }
    Ok((server, lanes))
}

/// Everything a shard's thread is given.
struct Parts {
    shard: Shard,
    mesh: Mesh,
    bell: Arc<Doorbell>,
    eventfd: OwnedFd,
    native: OwnedFd,
    http: OwnedFd,
    clients_max: usize,
    stop: Arc<Stop>,
    gate: Gate,
    exchange: Exchange,
    reporter: Reporter,
    pacing: Pacing,
    happened: Sender<Happened>,
}

impl Parts {
    async fn run(self) {
        // Dropped on every way out, a panic's included: the main thread never waits for a shard that is gone.
        let mut ended =
            Ended { happened: self.happened.clone(), result: Err(io::Error::other("it panicked")) };
        let ring = match make_ring(self.clients_max, &self.eventfd, self.native, self.http) {
            Ok(ring) => ring,
            Err(error) => {
                let _ = self.happened.send(Happened::Started(Err(error)));
                return;
            }
        };
        let _ = self.happened.send(Happened::Started(Ok(())));
        let mut driver = Driver::new(
            self.shard,
            ring,
            (self.mesh, self.exchange),
            self.bell,
            self.stop,
            self.gate,
            self.reporter,
        );
        driver.pacing = self.pacing;
        ended.result = driver.run().await;
    }
}

/// A data ring that accepts on both listeners, which it then owns.
fn make_ring(clients_max: usize, doorbell: &OwnedFd, native: OwnedFd, http: OwnedFd) -> io::Result<DataRing> {
    let settings = Settings::for_slots(clients_max as u32);
    let mut attempts = 0;
    let mut ring = loop {
        match DataRing::new(settings, doorbell.try_clone()?) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && attempts < RING_ATTEMPTS_MAX => {
                attempts += 1;
                clock::sleep_ns(RING_RETRY_NS);
            }
            result => break result?,
        }
    };
    ring.accept(Door::Native, native)?;
    ring.accept(Door::Http, http)?;
    Ok(ring)
}

struct Ended {
    happened: Sender<Happened>,
    result: io::Result<()>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        let _ = self.happened.send(Happened::ShardEnded(result));
    }
}

impl Server {
    /// Starts the ingests, waits for a reason to stop, and stops: the ingests first, then the shards together.
    fn serve(mut self, config: &Config, lanes: Vec<Lanes>) -> Result<(), StartupError> {
        let started = self.start_ingests(config, lanes);
        let outcome = started.and_then(|()| self.wait());
        self.stop_ingests.set();
        for ingest in self.ingests.drain(..) {
            let _ = ingest.join();
        }
        self.stop.request(clock::monotonic_ns(), config.drain_deadline_ns);
        for shard in self.shards.drain(..) {
            if let Err(error) = shard.join() {
                ::log::error!("a shard's thread: {error}");
            }
        }
        self.log_totals();
        if config.report {
            self.print_last_report();
        }
        outcome
    }

    fn start_ingests(&mut self, config: &Config, lanes: Vec<Lanes>) -> Result<(), StartupError> {
        for (source, lanes) in config.sources.iter().cloned().zip(lanes) {
            let (stop, shards, happened) =
                (self.stop_ingests.clone(), self.counters.clone(), self.happened_in.clone());
            let own = Arc::new(Counters::default());
            self.counters.push(own.clone());
            let ingest = move || match source {
                Source::Simulator(settings) => simulator::run(settings, lanes, &own, &stop),
                Source::Ecg(settings) => ecg::run(&settings, lanes, &own, &stop),
                Source::Replay(settings) => {
                    let _ =
                        happened.send(Happened::IngestEnded(replay::run(&settings, lanes, &shards, &stop)));
                }
            };
            let thread = thread::Builder::new().name("ingest".into()).spawn(ingest);
            self.ingests.push(thread.map_err(|error| StartupError::Executor(error.to_string()))?);
        }
        Ok(())
    }

    /// Until the server is to stop: well for a signal, with an error otherwise.
    fn wait(&self) -> Result<(), StartupError> {
        // By shard, since the last question.
        let mut answers: Vec<Option<Box<Latency>>> = self.shards.iter().map(|_| None).collect();
        loop {
            match self.happened.recv() {
                Ok(Happened::ReportAsked) => self.reports.ask(),
                Ok(Happened::Latency(shard, latency)) => {
                    answers[usize::from(shard.0)] = Some(latency);
                    if answers.iter().all(Option::is_some) {
                        self.print_report(&answers);
                        answers.fill_with(|| None);
                    }
                }
                Ok(Happened::Signal(name)) => {
                    ::log::info!("{name}: stopping; again to end at once");
                    return Ok(());
                }
                Ok(Happened::ShardEnded(Err(error))) => return Err(StartupError::Shard(error.to_string())),
                Ok(Happened::IngestEnded(Err(error))) => return Err(StartupError::Ingest(error.to_string())),
                Ok(Happened::IngestEnded(Ok(summary))) => {
                    ::log::info!("replay done: {} ticks, {} lines skipped", summary.ticks, summary.bad_lines);
                }
                Ok(Happened::ShardEnded(Ok(())) | Happened::Started(_)) => {}
                Err(_) => return Err(StartupError::Shard("every thread has ended".into())),
            }
        }
    }

    /// What the shards that have ended in order handed over.
    fn print_last_report(&self) {
        let mut answers: Vec<Option<Box<Latency>>> = self.counters.iter().map(|_| None).collect();
        for happened in self.happened.try_iter() {
            if let Happened::Latency(shard, latency) = happened {
                answers[usize::from(shard.0)] = Some(latency);
            }
        }
        self.print_report(&answers);
    }

    /// On standard error, whatever the log's level: somebody asked for it.
    fn print_report(&self, answers: &[Option<Box<Latency>>]) {
        let answers: Vec<_> = answers
            .iter()
            .zip(&self.counters)
            .enumerate()
            .filter_map(|(shard, (latency, counters))| {
                latency.as_deref().map(|latency| (shard, latency::busy_percent(counters), latency))
            })
            .collect();
        // A closed standard error must not end a server.
        let _ = io::stderr().lock().write_all(latency::table(&answers).as_bytes());
    }

    fn log_totals(&self) {
        for &counter in Counter::ALL {
            let total: u64 =
                self.counters.iter().map(|counters| counters.value(counter)).fold(0, u64::wrapping_add);
            if total > 0 {
                ::log::info!("total {} {total} {}", counter.label(), counter.unit());
            }
        }
    }
}

/// A doorbell that writes to a shard's eventfd.
fn doorbell(eventfd: &OwnedFd) -> io::Result<Doorbell> {
    let eventfd = eventfd.try_clone()?;
    Ok(Doorbell::new(move || {
        // Fails only when 2^64 - 2 rings are unread, and then the shard wakes anyway.
        let _ = nix::unistd::write(&eventfd, &1u64.to_ne_bytes());
    }))
}

/// One ingest's rings to all shards: the reading ends go into the meshes.
fn lanes(meshes: &mut [Mesh], bells: &[Arc<Doorbell>], ring_bytes: usize) -> Lanes {
    let lanes: Vec<_> = meshes
        .iter_mut()
        .zip(bells)
        .map(|(mesh, bell)| {
            let (producer, consumer) = frame_ring(ring_bytes);
            mesh.add_ingest(consumer);
            (producer, bell.clone())
        })
        .collect();
    Lanes::new(lanes.into_iter())
}
