//! Starts the shards and the ingests, says where it listens, waits for a reason to stop, and stops in order.

pub mod listening;
pub mod reload;

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, RecvError, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

use crate::{
    clock,
    config::{
        Config, Source,
        listener::{Address, Kind},
    },
    error::StartupError,
    limits::SHARDS_MAX,
    logging,
    operator::{
        admin::{
            Stage,
            listener::{Admin, Sights},
        },
        control::{Answer, Control, Inquiry, Question, control},
    },
    page,
    process::{
        activation::Passed,
        rlimits,
        signals::{self, HangUp},
        systemd::{self, Feeder},
    },
    sources::{Lanes, StopFlag, ecg, replay, simulator},
    supervisor::{
        listening::Opened,
        reload::{Reload, Reloader},
    },
    transport::desk::Desk,
    transport::{
        admission::{Gate, Shared},
        driver::{Accepting, Driver, Pacing},
        handover::{Exchange, exchanges},
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
    Asked(Inquiry),
    /// A shard's latencies: it was asked, or it ends.
    Latency(ShardId, Box<Latency>),
    /// A shard's ring and listeners are ready, or are not to be had.
    Started(io::Result<()>),
    /// A shard has ended.
    ShardEnded(ShardId, io::Result<()>),
    /// An ingest's thread has panicked.
    IngestPanicked,
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
/// How often the log is asked whether it left out lines.
const LOG_TURN_NS: u64 = 1_000_000_000;

/// A running server.
struct Server {
    shards: Vec<ExecutorJoinHandle<()>>,
    ingests: Vec<JoinHandle<()>>,
    stop_ingests: StopFlag,
    stop: Arc<Stop>,
    control: Control,
    reloader: Reloader,
    /// Of the shards, then of the ingests.
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
    let count = usize::from(config.shards) + config.sources.len();
    let counters: Vec<Arc<Counters>> = (0..count).map(|_| Arc::default()).collect();
    let (happened_in, happened) = channel();
    let Opened { admin, clients, files, addresses } = listening::open(config, passed)?;
    let admin = admin.map(|opened| start_admin(config, opened, &counters, &happened_in)).transpose()?;
    let set_stage = |stage| {
        if let Some(admin) = &admin {
            admin.set_stage(stage);
        }
    };
    let reloader = Reloader::new(reload, config);
    let (server, lanes) = start(config, clients_max, clients, counters, (happened_in, happened), reloader)?;
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
    counters: &[Arc<Counters>],
    happened_in: &Sender<Happened>,
) -> Result<Admin, StartupError> {
    let of_shards = usize::from(config.shards);
    let core = |index: usize| config.cores[index % config.cores.len()];
    let (shards, sources) = counters.split_at(of_shards);
    let asked = happened_in.clone();
    let sights = Sights {
        shards: shards.iter().cloned().enumerate().map(|(index, counters)| (core(index), counters)).collect(),
        sources: sources.to_vec(),
        ask: Box::new(move |inquiry| drop(asked.send(Happened::Asked(inquiry)))),
    };
    let socket = listening.sockets.into_iter().flatten().next().ok_or_else(|| io::Error::other("no socket"));
    socket.and_then(|socket| Admin::start(listening.address, socket, sights)).map_err(StartupError::Admin)
}

/// Makes and starts the shards, and one set of lanes for each source.
fn start(
    config: &Config,
    clients_max: usize,
    clients: Vec<Listening>,
    counters: Vec<Arc<Counters>>,
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

    let (control, inboxes) = control(&bells);
    let mut server = Server {
        shards: Vec::new(),
        ingests: Vec::new(),
        stop_ingests: StopFlag::default(),
        stop: Arc::new(Stop::new(bells.clone())),
        control,
        reloader,
        feeder: Feeder::new(counters.iter().zip(&bells), clock::monotonic_ns()),
        counters,
        happened,
        happened_in: happened_in.clone(),
        shards_ended: 0,
    };
    let shared = Shared::new(clients_max, config.clients_per_source_max);
    let exchanges = exchanges(&bells);
    let epoch = clock::realtime_ns();
    let accepting: Vec<Accepting> = clients
        .iter()
        .filter_map(|listening| {
            let dealt_to = listening.is_dealt().then_some(config.shards);
            listening.kind.of_clients().map(|kind| Accepting::new(kind, dealt_to))
        })
        .collect();
    let mut sockets: Vec<_> = clients.into_iter().map(|listening| listening.sockets.into_iter()).collect();
    let parts = eventfds.into_iter().zip(meshes.into_iter().zip(bells));
    let parts = parts.zip(exchanges.into_iter().zip(inboxes));
    for (index, ((eventfd, (mesh, bell)), (exchange, inbox))) in parts.enumerate() {
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
            gate: Gate::new(shared.clone(), config.accept_rate, config.shards),
            pacing: Pacing { latency_budget_ns: config.latency_budget_ns, spin_ns: config.spin_ns },
            exchange,
            desk: Desk::new(inbox),
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
            // There is nothing to report yet, and nobody to ask.
            Ok(Happened::ReportAsked | Happened::Asked(_)) => {}
            Ok(Happened::ReloadAsked) => server.reloader.ask(),
            Ok(Happened::Started(Err(error)) | Happened::ShardEnded(_, Err(error))) => {
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
    /// By [`ListenerId`]; `None` where another shard accepts.
    sockets: Vec<Option<OwnedFd>>,
    accepting: Vec<Accepting>,
    clients_max: usize,
    stop: Arc<Stop>,
    gate: Gate,
    exchange: Exchange,
    desk: Desk,
    pacing: Pacing,
    happened: Sender<Happened>,
}

impl Parts {
    async fn run(self) {
        // Dropped on every way out, a panic's included: the main thread never waits for a shard that is gone.
        let mut ended = Ended {
            shard: self.shard.id(),
            happened: self.happened.clone(),
            result: Err(io::Error::other("it panicked")),
        };
        let ring = match make_ring(self.clients_max, &self.eventfd, self.sockets) {
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
            (self.mesh, self.exchange),
            self.bell,
            self.stop,
            self.gate,
            self.desk,
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
    /// Starts the ingests, waits for a reason to stop, and stops: the ingests first, then the shards together. `ready` is
    /// called once everything runs, `drains` when it is to end.
    fn serve(
        mut self,
        config: &Config,
        lanes: Vec<Lanes>,
        ready: impl FnOnce(),
        drains: impl FnOnce(),
    ) -> Result<(), StartupError> {
        let started = self.start_ingests(config, lanes);
        let outcome = started.and_then(|()| {
            ready();
            self.wait()
        });
        drains();
        self.stop_ingests.set();
        for ingest in self.ingests.drain(..) {
            let _ = ingest.join();
        }
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

    fn start_ingests(&mut self, config: &Config, lanes: Vec<Lanes>) -> Result<(), StartupError> {
        let (of_shards, of_ingests) = self.counters.split_at(usize::from(config.shards));
        for ((source, lanes), own) in config.sources.iter().cloned().zip(lanes).zip(of_ingests) {
            let (stop, shards, own, happened) =
                (self.stop_ingests.clone(), of_shards.to_vec(), own.clone(), self.happened_in.clone());
            let ingest = move || match source {
                Source::Simulator(settings) => simulator::run(settings, lanes, &own, &stop),
                Source::Ecg(settings) => ecg::run(&settings, lanes, &own, &stop),
                Source::Replay(settings) => {
                    let ended = replay::run(&settings, lanes, &own, &shards, &stop);
                    let _ = happened.send(Happened::IngestEnded(ended));
                }
            };
            let thread = thread::Builder::new().name("ingest".into()).spawn(ingest);
            self.ingests.push(thread.map_err(|error| StartupError::Executor(error.to_string()))?);
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
                Ok(Happened::Asked(inquiry)) => drop(self.control.ask(inquiry)),
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
                Ok(Happened::IngestPanicked) => {
                    return Err(StartupError::Ingest("a source has panicked; the server stops".into()));
                }
                Ok(Happened::IngestEnded(Err(error))) => return Err(StartupError::Ingest(error.to_string())),
                Ok(Happened::IngestEnded(Ok(summary))) => {
                    ::log::info!("replay done: {} ticks, {} lines skipped", summary.ticks, summary.bad_lines);
                }
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
            if self.ingests.iter().any(JoinHandle::is_finished) && self.an_ingest_panicked() {
                return Ok(Happened::IngestPanicked);
            }
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

    /// Whether one of those that have ended did so in disorder.
    fn an_ingest_panicked(&mut self) -> bool {
        let mut panicked = false;
        for ingest in self.ingests.extract_if(.., |ingest| ingest.is_finished()) {
            panicked |= ingest.join().is_err();
        }
        panicked
    }

    /// Until every shard has ended; operators may still ask. Returns the latencies of those that have ended in order.
    fn wait_for_shards(&mut self) -> Latencies {
        let mut last: Latencies = self.shards.iter().map(|_| None).collect();
        while self.shards_ended < self.shards.len()
            && let Ok(happened) = self.next()
        {
            match happened {
                Happened::Asked(inquiry) => drop(self.control.ask(inquiry)),
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
                | Happened::IngestPanicked
                | Happened::IngestEnded(_) => {}
            }
        }
        last
    }

    /// Asks every shard for its latencies.
    fn ask_for_report(&mut self) {
        let happened_in = self.happened_in.clone();
        let question = move |shard: ShardId| {
            let answer = happened_in.clone();
            Question::State(Answer::awaited(move |state: Box<ShardState>| {
                drop(answer.send(Happened::Latency(shard, Box::new(state.latency))));
            }))
        };
        let left_out = self.control.ask(Inquiry { to: None, question: Box::new(question) });
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
            mesh.add_source(consumer);
            (producer, bell.clone())
        })
        .collect();
    Lanes::new(lanes.into_iter())
}
