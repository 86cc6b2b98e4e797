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
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    clock,
    config::{
        Config,
        listener::{Address, Kind},
    },
    error::StartupError,
    limits::{FAILED_DRAIN_MS_MAX, SHARDS_LATE_MS_MAX, SHARDS_MAX, SHARDS_START_MS_MAX, SOURCES_STOP_MS_MAX},
    logging,
    operator::{
        admin::{Stage, context::ServerHandles, listener::AdminListener},
        control::{ControlSender, Dispatch, ReplySender, ShardRequest, control_channels},
    },
    page,
    process::{
        activation::Passed,
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
        driver::{ClientListener, Pacing},
        handover::handover_lanes,
        listener::Listening,
        shard_thread::{self, ShardFailure, ShardParts},
        stop::Stop,
        uring::data_ring::eventfd,
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
    /// A shard listens.
    Started(ShardId),
    /// A shard has ended.
    ShardEnded(ShardId, Result<(), ShardFailure>),
    /// A source of this kind has ended, or cannot go on.
    SourceEnded(&'static str, Result<(), SourceError>),
    /// A thread of this name, neither a shard's nor a source's, has ended although nobody stopped it.
    ThreadEnded(&'static str, String),
}

/// How often the log is asked whether it left out lines.
const LOG_TURN_NS: u64 = 1_000_000_000;
/// How often a stopping server looks whether its sources have ended.
const SOURCES_LOOK_NS: u64 = 1_000_000;

/// A running server.
struct Server {
    shards: Vec<JoinHandle<()>>,
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
    /// Whether each shard has ended.
    shards_ended: Vec<bool>,
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
    let clients_max = rlimits::check(config.clients_max, config.shards)?;
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
    let (asked, ended) = (happened_in.clone(), happened_in.clone());
    let handles = ServerHandles {
        shards: shards.iter().cloned().enumerate().map(|(index, counters)| (core(index), counters)).collect(),
        sources: sources.to_vec(),
        dispatch: Box::new(move |dispatch| drop(asked.send(Happened::Asked(dispatch)))),
    };
    let socket = listening.sockets.into_iter().flatten().next().ok_or_else(|| io::Error::other("no socket"));
    socket
        .and_then(|socket| {
            let on_failure = move |reason| drop(ended.send(Happened::ThreadEnded("admin", reason)));
            AdminListener::start(listening.address, socket, handles, on_failure)
        })
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
    let signals_ended = happened_in.clone();
    // A terminal that hangs up ends the server; a service manager's SIGHUP never does.
    let hang_up = match signals::has_a_terminal() && !reloader.has_a_file() {
        true => HangUp::Stops,
        false => HangUp::Does(Box::new(move || drop(reload.send(Happened::ReloadAsked)))),
    };
    signals::watch(
        move |name| drop(signal.send(Happened::Signal(name))),
        move || drop(report.send(Happened::ReportAsked)),
        hang_up,
        move |reason| drop(signals_ended.send(Happened::ThreadEnded("signals", reason))),
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
        shards_ended: vec![false; usize::from(config.shards)],
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
        let parts = ShardParts {
            shard,
            mesh,
            bell,
            eventfd,
            sockets: sockets.iter_mut().map(|of_listener| of_listener.next().flatten()).collect(),
            listeners: accepting.clone(),
            clients_max,
            stop: server.stop.clone(),
            admission: Admission::new(counts.clone(), config.accept_rate, config.shards),
            pacing: Pacing { latency_budget_ns: config.latency_budget_ns, spin_ns: config.spin_ns },
            handovers,
            control: ControlQueue::new(receiver),
        };
        let core = config.cores[index % config.cores.len()];
        let (started, ended) = (happened_in.clone(), happened_in.clone());
        let on_start = move || drop(started.send(Happened::Started(id)));
        let on_end = move |result: Result<Latency, ShardFailure>| {
            let result = result.map(|latency| drop(ended.send(Happened::Latency(id, Box::new(latency)))));
            drop(ended.send(Happened::ShardEnded(id, result)));
        };
        server.shards.push(shard_thread::start(parts, core, on_start, on_end).map_err(refused)?);
    }
    server.wait_for_start()?;
    Ok((server, lanes))
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
        self.stop_sources();
        let drain_ns = match outcome {
            // Without all shards, not everything can be drained: the others get a bounded time for what they can.
            Err(StartupError::Shard(_)) => config.drain_deadline_ns.min(FAILED_DRAIN_MS_MAX * 1_000_000),
            _ => config.drain_deadline_ns,
        };
        self.stop.request(clock::monotonic_ns(), drain_ns);
        let (last, stopped) = self.wait_for_shards();
        for (shard, has_ended) in self.shards.drain(..).zip(&self.shards_ended) {
            // Its panics were caught and reported. A shard that is stuck ends with the process.
            if *has_ended {
                let _ = shard.join();
            }
        }
        logging::turn(u64::MAX);
        self.log_totals();
        if config.report {
            self.print_report(&last);
        }
        outcome.and(stopped)
    }

    /// Waits until every shard listens.
    ///
    /// # Errors
    /// A shard cannot start, or does not within [`SHARDS_START_MS_MAX`]; a signal asks to stop.
    fn wait_for_start(&mut self) -> Result<(), StartupError> {
        let give_up_ns = clock::monotonic_ns() + SHARDS_START_MS_MAX * 1_000_000;
        let mut started = vec![false; self.shards.len()];
        while let Some(missing) = started.iter().position(|started| !started) {
            let left_ns = give_up_ns.saturating_sub(clock::monotonic_ns());
            match self.happened.recv_timeout(Duration::from_nanos(left_ns)) {
                Ok(Happened::Started(shard)) => started[usize::from(shard.0)] = true,
                // There is nothing to report yet, and nobody to ask.
                Ok(Happened::ReportAsked | Happened::Asked(_) | Happened::Latency(..)) => {}
                Ok(Happened::ReloadAsked) => self.reloader.ask(),
                Ok(Happened::ShardEnded(shard, Err(failure))) => {
                    return Err(StartupError::Shard(format!("shard {} cannot start: {failure}", shard.0)));
                }
                Ok(Happened::ShardEnded(shard, Ok(()))) => {
                    return Err(StartupError::Shard(format!("shard {} ended while starting", shard.0)));
                }
                Ok(Happened::ThreadEnded(name, reason)) => return Err(StartupError::Thread(name, reason)),
                Ok(Happened::Signal(name)) => {
                    return Err(StartupError::Executor(format!("{name} while starting")));
                }
                Ok(Happened::SourceEnded(kind, _)) => {
                    debug_assert!(false, "source {kind} has not been started");
                }
                Err(_) => {
                    let seconds = SHARDS_START_MS_MAX / 1_000;
                    return Err(StartupError::Shard(format!(
                        "shard {missing} has not started within {seconds} s"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Stops the sources, and waits for them at most [`SOURCES_STOP_MS_MAX`]: one may be stuck in a system call, such as a
    /// read from a file system that has gone away.
    fn stop_sources(&mut self) {
        self.sources.iter().for_each(RunningSource::stop);
        let give_up_ns = clock::monotonic_ns() + SOURCES_STOP_MS_MAX * 1_000_000;
        while clock::monotonic_ns() < give_up_ns && !self.sources.iter().all(RunningSource::has_ended) {
            clock::sleep_ns(SOURCES_LOOK_NS);
        }
        for source in self.sources.drain(..) {
            match source.has_ended() {
                true => source.join(),
                false => {
                    ::log::warn!("source {} does not end: it ends with the process", source.status().kind())
                }
            }
        }
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
                Ok(Happened::ShardEnded(shard, result)) => {
                    let text = match result {
                        Err(failure) => format!("shard {} has failed: {failure}", shard.0),
                        Ok(()) => format!("shard {} has ended although the server runs", shard.0),
                    };
                    ::log::error!("{text}; the other shards are drained");
                    return Err(StartupError::Shard(text));
                }
                Ok(Happened::ThreadEnded(name, reason)) => return Err(StartupError::Thread(name, reason)),
                Ok(Happened::SourceEnded(_, Err(error))) => {
                    return Err(StartupError::Source(error.to_string()));
                }
                Ok(Happened::SourceEnded(kind, Ok(()))) => ::log::debug!("source {kind} ended"),
                Ok(Happened::Started(_)) => {}
                Err(_) => return Err(StartupError::Shard("every thread has ended".into())),
            }
        }
    }

    /// The next thing that happens. Until then the watchdog is fed, and the log told what it left out.
    fn next(&mut self) -> Result<Happened, RecvError> {
        loop {
            if let Some(happened) = self.next_within(LOG_TURN_NS)? {
                return Ok(happened);
            }
        }
    }

    /// What happens next, if it happens within `wait_ns`.
    fn next_within(&mut self, wait_ns: u64) -> Result<Option<Happened>, RecvError> {
        let now_ns = clock::monotonic_ns();
        logging::turn(now_ns);
        self.reloader.turn(&mut self.control);
        let wait_ns = self.feeder.turn(now_ns).unwrap_or(u64::MAX).min(wait_ns);
        let happened = match self.happened.recv_timeout(Duration::from_nanos(wait_ns)) {
            Ok(happened) => happened,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
        };
        if let Happened::ShardEnded(shard, _) = &happened {
            self.feeder.shard_ended(*shard);
            self.stop.shard_ended(*shard);
            self.shards_ended[usize::from(shard.0)] = true;
        }
        Ok(Some(happened))
    }

    /// Waits until every shard has ended, at most [`SHARDS_LATE_MS_MAX`] past the drain; operators may still ask. Returns the
    /// latencies of those that have ended in order, and an error if one has not.
    fn wait_for_shards(&mut self) -> (Latencies, Result<(), StartupError>) {
        let mut last: Latencies = self.shards.iter().map(|_| None).collect();
        let mut outcome = Ok(());
        // Time past the drain in which this thread waited. A process that was suspended meanwhile has not waited.
        let mut late_ns = 0;
        while let Some(stuck) = self.shards_ended.iter().position(|has_ended| !has_ended) {
            let from_ns = clock::monotonic_ns();
            let happened = match self.next_within(LOG_TURN_NS) {
                Ok(Some(happened)) => happened,
                Ok(None) if late_ns < SHARDS_LATE_MS_MAX * 1_000_000 => {
                    if from_ns >= self.stop.deadline_ns() {
                        late_ns += (clock::monotonic_ns() - from_ns).min(LOG_TURN_NS);
                    }
                    continue;
                }
                Ok(None) | Err(_) => {
                    let text = format!("shard {stuck} does not stop: it is stuck");
                    outcome = outcome.and(Err(StartupError::Shard(text)));
                    break;
                }
            };
            match happened {
                Happened::Asked(dispatch) => drop(self.control.send(dispatch)),
                Happened::Latency(shard, latency) => last[usize::from(shard.0)] = Some(latency),
                Happened::ShardEnded(shard, Err(failure)) => {
                    let text = format!("shard {} has failed while stopping: {failure}", shard.0);
                    ::log::error!("{text}");
                    outcome = outcome.and(Err(StartupError::Shard(text)));
                }
                Happened::ReloadAsked => ::log::info!("SIGHUP: nothing is read again, as the server stops"),
                // It stops as it is.
                Happened::ShardEnded(_, Ok(()))
                | Happened::Signal(_)
                | Happened::ReportAsked
                | Happened::Started(_)
                | Happened::SourceEnded(..)
                | Happened::ThreadEnded(..) => {}
            }
        }
        (last, outcome)
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
