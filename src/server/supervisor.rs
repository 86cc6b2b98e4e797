//! Starts the shards and the sources, announces the listeners, waits for a reason to stop, and stops in order.

pub mod listening;
pub mod reload;

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, RecvError, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

use crate::{
    clock,
    config::{
        Config,
        listener::{Address, Kind},
    },
    error::StartupError,
    limits::SHARDS_MAX,
    logging,
    operator::{
        admin::{Stage, context::ServerHandles, listener::AdminListener},
        control::{ControlSender, Dispatch, ReplySender, ShardRequest, control_channels},
    },
    page,
    process::{
        activation::Passed,
        pinning::pin_to,
        rlimits,
        signals::{self, HangUp},
        systemd::{self, Feeder},
    },
    sources::{self, Lanes, RunningSource, SourceContext, SourceError, SourceStatus, StopFlag},
    supervisor::{
        listening::Opened,
        reload::{Reload, Reloader},
    },
    transport::{
        admission::{Admission, ConnectionCounts},
        control_queue::ControlQueue,
        driver::{ClientListener, Driver, Pacing},
        handover::{HandoverLanes, handover_lanes},
        listener::Listening,
        stop::Stop,
        uring::data_ring::{DataRing, ListenerId, Settings, eventfd},
    },
};
use tickcast_core::{
    mesh::{
        Mesh, mesh,
        ring::{Doorbell, frame_ring},
    },
    metrics::{
        counters::{Counter, Counters},
        latency::{self, Latency},
    },
    shard::{Shard, survey::ShardState},
};
use tickcast_proto::ids::ShardId;

/// What the main thread waits for.
enum Happened {
    /// A signal asks the server to stop.
    Signal(&'static str),
    /// A signal asks for a report.
    ReportAsked,
    /// A signal asks to read the configuration again.
    ReloadAsked,
    /// An operator asks the shards.
    Asked(Dispatch),
    /// A shard's latencies: it was asked, or it ends.
    Latency(ShardId, Box<Latency>),
    /// A shard's ring and listeners are ready, or are not to be had.
    Started(Result<(), StartupError>),
    /// A shard has ended.
    ShardEnded(ShardId, io::Result<()>),
    /// A source of this kind has ended, or cannot go on.
    SourceEnded(&'static str, Result<(), SourceError>),
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
/// How often the log is asked whether it left out lines.
const LOG_TURN_NS: u64 = 1_000_000_000;

/// A running server.
struct Server {
    shards: Vec<ExecutorJoinHandle<()>>,
    sources: Vec<RunningSource>,
    /// The configured sources, running or not.
    source_statuses: Vec<SourceStatus>,
    stop: Arc<Stop>,
    control: ControlSender,
    reloader: Reloader,
    /// By shard.
    counters: Vec<Arc<Counters>>,
    happened: Receiver<Happened>,
    happened_in: Sender<Happened>,
    /// Shows the service manager that the shards are alive.
    feeder: Feeder,
    /// Shards that have ended.
    shards_ended: usize,
}

/// What shards answered, by shard, since the last question.
type Latencies = Vec<Option<Box<Latency>>>;

/// Serves until a signal, or until something that cannot be mended while running. `announce` is called with the listeners'
/// addresses, in the order of the configuration, once every shard is ready. `passed` sockets take precedence over
/// addresses. `reload` is what SIGHUP does; without it SIGHUP from a terminal stops the server, and any other is only
/// logged.
///
/// # Errors
/// A [`StartupError`]: what is wrong and how to mend it.
pub fn run(
    config: &Config,
    passed: Passed,
    announce: impl FnOnce(&[(Kind, Address)]),
    reload: Option<Reload>,
) -> Result<(), StartupError> {
    signals::block().map_err(|error| StartupError::Executor(error.to_string()))?;
    clock::sleep_precisely();
    // Compressed now, not when the first browser comes: a shard has better things to do.
    page::files();
    let clients_max = rlimits::check(config.clients_max)?;
    let counters: Vec<Arc<Counters>> = (0..config.shards).map(|_| Arc::default()).collect();
    let statuses: Vec<SourceStatus> =
        config.sources.iter().map(|source| SourceStatus::new(source.kind().name)).collect();
    let (happened_in, happened) = channel();
    let Opened { admin, clients, files, addresses } = listening::open(config, passed)?;
    let admin =
        admin.map(|opened| start_admin(config, opened, (&counters, &statuses), &happened_in)).transpose()?;
    let set_stage = |stage| {
        if let Some(admin) = &admin {
            admin.set_stage(stage);
        }
    };
    let reloader = Reloader::new(reload, config);
    let (server, lanes) =
        start(config, clients_max, clients, (counters, statuses), (happened_in, happened), reloader)?;
    set_stage(Stage::Serving);
    announce(&addresses);
    // `systemctl status` is for whoever looks for the clients' addresses.
    let of_clients: Vec<_> = addresses.iter().filter(|(kind, _)| *kind != Kind::Admin).cloned().collect();
    let ready = || systemd::ready(&listening::words(&of_clients, config.shards));
    let drains = move || {
        // While they still listen: another server may take the paths from here on.
        drop(files);
        set_stage(Stage::Draining);
        systemd::stopping(config.drain_deadline_ns);
    };
    server.serve(config, lanes, ready, drains)
}

/// The operator's listener, which looks at these counters and asks the shards through the main thread.
fn start_admin(
    config: &Config,
    listening: Listening,
    (shards, sources): (&[Arc<Counters>], &[SourceStatus]),
    happened_in: &Sender<Happened>,
) -> Result<AdminListener, StartupError> {
    let core = |index: usize| config.cores[index % config.cores.len()];
    let asked = happened_in.clone();
    let handles = ServerHandles {
        shards: shards.iter().cloned().enumerate().map(|(index, counters)| (core(index), counters)).collect(),
        sources: sources.to_vec(),
        dispatch: Box::new(move |dispatch| drop(asked.send(Happened::Asked(dispatch)))),
    };
    let socket = listening.sockets.into_iter().flatten().next().ok_or_else(|| io::Error::other("no socket"));
    socket
        .and_then(|socket| AdminListener::start(listening.address, socket, handles))
        .map_err(StartupError::Admin)
}

/// Starts the shards, and creates the lanes of each source.
fn start(
    config: &Config,
    clients_max: usize,
    clients: Vec<Listening>,
    (counters, source_statuses): (Vec<Arc<Counters>>, Vec<SourceStatus>),
    (happened_in, happened): (Sender<Happened>, Receiver<Happened>),
    reloader: Reloader,
) -> Result<(Server, Vec<Lanes>), StartupError> {
    assert!((1..=SHARDS_MAX).contains(&usize::from(config.shards)), "config checks the number of shards");
    let refused = |error: io::Error| StartupError::Executor(error.to_string());
    let (signal, report, reload) = (happened_in.clone(), happened_in.clone(), happened_in.clone());
    // A terminal that hangs up ends the server; a service manager's SIGHUP never does.
    let hang_up = match signals::has_a_terminal() && !reloader.has_a_file() {
        true => HangUp::Stops,
        false => HangUp::Does(Box::new(move || drop(reload.send(Happened::ReloadAsked)))),
    };
    signals::watch(
        move |name| drop(signal.send(Happened::Signal(name))),
        move || drop(report.send(Happened::ReportAsked)),
        hang_up,
    )
    .map_err(refused)?;

    let eventfds: io::Result<Vec<OwnedFd>> = (0..config.shards).map(|_| eventfd()).collect();
    let eventfds = eventfds.map_err(refused)?;
    let bells: io::Result<Vec<_>> = eventfds.iter().map(|fd| doorbell(fd).map(Arc::new)).collect();
    let bells = bells.map_err(refused)?;
    let mut meshes = mesh(&bells, config.mesh_ring_bytes);
    let lanes = config.sources.iter().map(|_| lanes(&mut meshes, &bells, config.mesh_ring_bytes)).collect();

    let (control, receivers) = control_channels(&bells);
    let mut server = Server {
        shards: Vec::new(),
        sources: Vec::new(),
        source_statuses,
        stop: Arc::new(Stop::new(bells.clone())),
        control,
        reloader,
        feeder: Feeder::new(counters.iter().zip(&bells), clock::monotonic_ns()),
        counters,
        happened,
        happened_in: happened_in.clone(),
        shards_ended: 0,
    };
    let counts = ConnectionCounts::new(clients_max, config.clients_per_source_max);
    let handovers = handover_lanes(&bells);
    let epoch = clock::realtime_ns();
    let accepting: Vec<ClientListener> = clients
        .iter()
        .filter_map(|listening| {
            let dealt_to = listening.is_dealt().then_some(config.shards);
            listening.kind.of_clients().map(|kind| ClientListener::new(kind, dealt_to))
        })
        .collect();
    let mut sockets: Vec<_> = clients.into_iter().map(|listening| listening.sockets.into_iter()).collect();
    let parts = eventfds.into_iter().zip(meshes.into_iter().zip(bells));
    let parts = parts.zip(handovers.into_iter().zip(receivers));
    for (index, ((eventfd, (mesh, bell)), (handovers, receiver))) in parts.enumerate() {
        let id = ShardId(index as u16);
        let mut shard =
            Shard::new(id, config.shards, epoch, config.limits.clone(), server.counters[index].clone());
        shard.set_static_files(&page::Page);
        let parts = Parts {
            shard,
            mesh,
            bell,
            eventfd,
            sockets: sockets.iter_mut().map(|of_listener| of_listener.next().flatten()).collect(),
            accepting: accepting.clone(),
            clients_max,
            stop: server.stop.clone(),
            admission: Admission::new(counts.clone(), config.accept_rate, config.shards),
            pacing: Pacing { latency_budget_ns: config.latency_budget_ns, spin_ns: config.spin_ns },
            handovers,
            control: ControlQueue::new(receiver),
            happened: happened_in.clone(),
        };
        let core = config.cores[index % config.cores.len()];
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .name("shard")
            .io_memory(EXECUTOR_MEMORY_BYTES)
            .ring_depth(EXECUTOR_RING_DEPTH)
            .preempt_timer(PREEMPT_TIMER)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
            .spawn(move || parts.run(core));
        server.shards.push(executor.map_err(|error| StartupError::Executor(error.to_string()))?);
    }
    let mut started = 0;
    while started < config.shards {
        match server.happened.recv() {
            Ok(Happened::Started(Ok(()))) => started += 1,
            // There is nothing to report yet, and nobody to ask.
            Ok(Happened::ReportAsked | Happened::Asked(_)) => {}
            Ok(Happened::ReloadAsked) => server.reloader.ask(),
            Ok(Happened::Started(Err(error))) => return Err(error),
            Ok(Happened::ShardEnded(_, Err(error))) => return Err(no_ring(error)),
            Ok(Happened::Signal(name)) => {
                return Err(StartupError::Executor(format!("{name} while starting")));
            }
            _ => return Err(StartupError::Executor("a shard ended while starting".into())),
        }
    }
    Ok((server, lanes))
}

fn no_ring(error: io::Error) -> StartupError {
    StartupError::IoUring(
        error,
        "the data ring could not be made (locked memory: LimitMEMLOCK; descriptors: LimitNOFILE)",
    )
}

/// Everything a shard's thread is given.
struct Parts {
    shard: Shard,
    mesh: Mesh,
    bell: Arc<Doorbell>,
    eventfd: OwnedFd,
    /// By [`ListenerId`]; `None` where another shard accepts.
    sockets: Vec<Option<OwnedFd>>,
    accepting: Vec<ClientListener>,
    clients_max: usize,
    stop: Arc<Stop>,
    admission: Admission,
    handovers: HandoverLanes,
    control: ControlQueue,
    pacing: Pacing,
    happened: Sender<Happened>,
}

impl Parts {
    async fn run(self, core: usize) {
        // Dropped on every way out, a panic's included: the main thread never waits for a shard that is gone.
        let mut ended = Ended {
            shard: self.shard.id(),
            happened: self.happened.clone(),
            result: Err(io::Error::other("it panicked")),
        };
        let pinned = pin_to(core).map_err(|error| StartupError::Executor(error.to_string()));
        let ring =
            pinned.and_then(|()| make_ring(self.clients_max, &self.eventfd, self.sockets).map_err(no_ring));
        let ring = match ring {
            Ok(ring) => ring,
            Err(error) => {
                let _ = self.happened.send(Happened::Started(Err(error)));
                return;
            }
        };
        let _ = self.happened.send(Happened::Started(Ok(())));
        let id = self.shard.id();
        let mut driver = Driver::new(
            self.shard,
            ring,
            (self.mesh, self.handovers),
            self.bell,
            self.stop,
            self.admission,
            self.control,
        );
        (driver.pacing, driver.listeners) = (self.pacing, self.accepting);
        ended.result = driver.run().await.map(|latency| {
            let _ = self.happened.send(Happened::Latency(id, Box::new(latency)));
        });
    }
}

/// A data ring that accepts on these listeners, which it then owns.
fn make_ring(clients_max: usize, doorbell: &OwnedFd, sockets: Vec<Option<OwnedFd>>) -> io::Result<DataRing> {
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
    for (id, socket) in sockets.into_iter().enumerate() {
        if let Some(socket) = socket {
            ring.accept(ListenerId(id as u32), socket)?;
        }
    }
    Ok(ring)
}

struct Ended {
    shard: ShardId,
    happened: Sender<Happened>,
    result: io::Result<()>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        let _ = self.happened.send(Happened::ShardEnded(self.shard, result));
    }
}

impl Server {
    /// Starts the sources, waits for a reason to stop, and stops: the sources first, then all shards together. `ready` is
    /// called once everything runs, `drains` when the server starts to stop.
    fn serve(
        mut self,
        config: &Config,
        lanes: Vec<Lanes>,
        ready: impl FnOnce(),
        drains: impl FnOnce(),
    ) -> Result<(), StartupError> {
        let started = self.start_sources(config, lanes);
        let outcome = started.and_then(|()| {
            ready();
            self.wait()
        });
        drains();
        self.sources.iter().for_each(RunningSource::stop);
        self.sources.drain(..).for_each(RunningSource::join);
        self.stop.request(clock::monotonic_ns(), config.drain_deadline_ns);
        let last = self.wait_for_shards();
        for shard in self.shards.drain(..) {
            if let Err(error) = shard.join() {
                ::log::error!("a shard's thread: {error}");
            }
        }
        logging::turn(u64::MAX);
        self.log_totals();
        if config.report {
            self.print_report(&last);
        }
        outcome
    }

    fn start_sources(&mut self, config: &Config, lanes: Vec<Lanes>) -> Result<(), StartupError> {
        for ((source, lanes), status) in config.sources.iter().zip(lanes).zip(&self.source_statuses) {
            let context =
                SourceContext::new(lanes, status.clone(), self.counters.clone(), StopFlag::default());
            let happened = self.happened_in.clone();
            let on_end = move |kind, result| drop(happened.send(Happened::SourceEnded(kind, result)));
            let running = sources::start(source.build(), context, on_end);
            self.sources.push(running.map_err(|error| StartupError::Executor(error.to_string()))?);
        }
        Ok(())
    }

    /// Until the server is to stop: well for a signal, with an error otherwise.
    fn wait(&mut self) -> Result<(), StartupError> {
        let mut answers: Latencies = self.shards.iter().map(|_| None).collect();
        loop {
            match self.next() {
                Ok(Happened::ReportAsked) => {
                    answers.fill_with(|| None);
                    self.ask_for_report();
                }
                Ok(Happened::Asked(dispatch)) => drop(self.control.send(dispatch)),
                Ok(Happened::ReloadAsked) => self.reloader.ask(),
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
                Ok(Happened::ShardEnded(_, Err(error))) => {
                    return Err(StartupError::Shard(error.to_string()));
                }
                Ok(Happened::SourceEnded(_, Err(error))) => {
                    return Err(StartupError::Source(error.to_string()));
                }
                Ok(Happened::SourceEnded(kind, Ok(()))) => ::log::debug!("source {kind} ended"),
                Ok(Happened::ShardEnded(_, Ok(())) | Happened::Started(_)) => {}
                Err(_) => return Err(StartupError::Shard("every thread has ended".into())),
            }
        }
    }

    /// The next thing that happens. Until then the watchdog is fed, and the log told what it left out.
    fn next(&mut self) -> Result<Happened, RecvError> {
        loop {
            let now_ns = clock::monotonic_ns();
            logging::turn(now_ns);
            self.reloader.turn(&mut self.control);
            let wait_ns = self.feeder.turn(now_ns).unwrap_or(u64::MAX).min(LOG_TURN_NS);
            let happened = match self.happened.recv_timeout(Duration::from_nanos(wait_ns)) {
                Ok(happened) => happened,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
            };
            if let Happened::ShardEnded(shard, _) = &happened {
                self.feeder.shard_ended(*shard);
                self.shards_ended += 1;
            }
            return Ok(happened);
        }
    }

    /// Until every shard has ended; operators may still ask. Returns the latencies of those that have ended in order.
    fn wait_for_shards(&mut self) -> Latencies {
        let mut last: Latencies = self.shards.iter().map(|_| None).collect();
        while self.shards_ended < self.shards.len()
            && let Ok(happened) = self.next()
        {
            match happened {
                Happened::Asked(dispatch) => drop(self.control.send(dispatch)),
                Happened::Latency(shard, latency) => last[usize::from(shard.0)] = Some(latency),
                Happened::ShardEnded(_, Err(error)) => {
                    ::log::error!("a shard has failed while stopping: {error}");
                }
                Happened::ReloadAsked => ::log::info!("SIGHUP: nothing is read again, as the server stops"),
                // It stops as it is.
                Happened::ShardEnded(_, Ok(()))
                | Happened::Signal(_)
                | Happened::ReportAsked
                | Happened::Started(_)
                | Happened::SourceEnded(..) => {}
            }
        }
        last
    }

    /// Asks every shard for its latencies.
    fn ask_for_report(&mut self) {
        let happened_in = self.happened_in.clone();
        let request = move |shard: ShardId| {
            let answer = happened_in.clone();
            ShardRequest::State(ReplySender::always_open(move |state: Box<ShardState>| {
                drop(answer.send(Happened::Latency(shard, Box::new(state.latency))));
            }))
        };
        let left_out = self.control.send(Dispatch { to: None, request: Box::new(request) });
        if let Some(shard) = left_out.first() {
            ::log::warn!("SIGUSR1: shard {} is asked too much: no report; try again", shard.0);
        }
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
            let sources = self.source_statuses.iter().map(SourceStatus::counters);
            let all = self.counters.iter().map(|counters| &**counters).chain(sources);
            let total: u64 = all.map(|counters| counters.value(counter)).fold(0, u64::wrapping_add);
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

/// Creates a source's rings to all shards, and gives the consumer ends to the meshes.
fn lanes(meshes: &mut [Mesh], bells: &[Arc<Doorbell>], ring_bytes: usize) -> Lanes {
    let lanes: Vec<_> = meshes
        .iter_mut()
        .zip(bells)
        .map(|(mesh, bell)| {
            let (producer, consumer) = frame_ring(ring_bytes);
            mesh.add_source(consumer);
            (producer, bell.clone())
        })
        .collect();
    Lanes::new(lanes.into_iter())
}
