//! Starts the shards and the sources, announces the listeners, waits for a reason to stop, and stops in order.

mod feed_reports;
pub mod listening;
mod log_readers;
pub mod reload;
mod report;
mod rings;
mod sinks;
mod sources;
mod verification;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, RecvError, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustls::ServerConfig;

use crate::{
    auth::Authority,
    clock,
    config::{
        Config,
        listener::{Address, Kind},
    },
    error::StartupError,
    limits::{FAILED_DRAIN_MS_MAX, SHARDS_LATE_MS_MAX, SHARDS_MAX, SHARDS_START_MS_MAX},
    logging,
    operator::{
        admin::{
            Stage,
            access::AdminAccess,
            context::ServerHandles,
            listener::{AdminListener, AdminTls},
        },
        control::{ControlSender, Dispatch, control_channels},
        tenants::SharedTenants,
    },
    page,
    process::{
        activation::Passed,
        rlimits,
        signals::{self, HangUp},
        systemd::{self, Feeder},
    },
    sources::{
        Lanes, RunningSource, SourceError, SourceStatus,
        failover::Failover,
        feeds,
        kind::SourceConfig,
        log_reader::RunningLogReader,
        sink::{RunningSink, SinkStatus, kind::SinkConfig},
    },
    supervisor::{
        feed_reports::FeedReports,
        listening::Opened,
        reload::{Reload, Reloader},
        rings::SourceRings,
    },
    tls::{CertificateStatuses, Certificates, TlsConfigs},
    transport::{
        admission::{Admission, ConnectionCounts},
        control_queue::ControlQueue,
        driver::{ClientListener, Distribution, Pacing},
        handover::handover_lanes,
        listener::Listening,
        shard_thread::{self, ShardFailure, ShardParts},
        stop::Stop,
        uring::data_ring::eventfd,
    },
};
use tickcast_core::{
    ids::FeedId,
    mesh::mesh,
    metrics::{counters::Counters, latency::Latency},
    now::LiveClock,
    shard::Shard,
};
use tickcast_proto::ids::ShardId;

/// An event that the main thread handles.
enum Event {
    /// A signal of this name asks the server to stop.
    StopRequested(&'static str),
    /// A signal requests a report.
    ReportRequested,
    /// A signal requests a reload of the configuration.
    ReloadRequested,
    /// A request to the shards from the admin listener.
    AdminRequest(Dispatch),
    /// A shard's latencies, for a report or at its end.
    Latency(ShardId, Box<Latency>),
    /// A shard listens.
    Started(ShardId),
    /// A shard has ended.
    ShardEnded(ShardId, Result<(), ShardFailure>),
    /// A source of this kind has ended, or cannot continue.
    SourceEnded(&'static str, Result<(), SourceError>),
    /// The admin, signal or a verifier thread has ended unexpectedly. Contains its name and the reason.
    ThreadEnded(&'static str, String),
}

/// Interval between reports of suppressed log lines.
const LOG_TURN_NS: u64 = 1_000_000_000;

/// A running server.
struct Server {
    shards: Vec<JoinHandle<()>>,
    sources: Vec<RunningSource>,
    /// The configured sources, running or not.
    source_statuses: Vec<SourceStatus>,
    log_readers: Vec<RunningLogReader>,
    sinks: Vec<RunningSink>,
    sink_statuses: Vec<SinkStatus>,
    failover: Failover,
    feeds: FeedReports,
    /// When the sources were started, CLOCK_MONOTONIC.
    sources_started_ns: u64,
    stop: Arc<Stop>,
    control: ControlSender,
    reloader: Reloader,
    /// By shard.
    counters: Vec<Arc<Counters>>,
    events: Receiver<Event>,
    event_sender: Sender<Event>,
    /// Shows the service manager that the shards are alive.
    feeder: Feeder,
    /// Whether each shard has ended.
    shards_ended: Vec<bool>,
}

/// The latencies of each shard; `None` until they arrive.
type Latencies = Vec<Option<Box<Latency>>>;

/// Serves until a signal stops the server or a part of it fails.
///
/// Calls `announce` with the listeners' addresses, in the order of the configuration, once every shard is ready. `passed`
/// sockets take precedence over addresses. SIGHUP calls `reload`; without it, SIGHUP stops a server that has a terminal and
/// is only logged by any other.
///
/// # Errors
/// A [`StartupError`]: what is wrong and what to do.
pub fn run(
    config: &Config,
    passed: Passed,
    announce: impl FnOnce(&[(Kind, Address)]),
    reload: Option<Reload>,
) -> Result<(), StartupError> {
    let failed = |error: io::Error| StartupError::Executor(error.to_string());
    signals::block().map_err(failed)?;
    logging::write_in_background().map_err(failed)?;
    clock::sleep_precisely();
    // Compress the page now, so that the first browser does not delay a shard.
    page::files();
    let clients_max = rlimits::check(config.clients_max, config.shards)?;
    let counters: Vec<Arc<Counters>> = (0..config.shards).map(|_| Arc::default()).collect();
    let status = |source: &SourceConfig| {
        let status = SourceStatus::new(source.kind().name, source.common().clone());
        status.set_reading_back(source.reads_back());
        status
    };
    let statuses: Vec<SourceStatus> = config.sources.iter().map(status).collect();
    let sink_status = |sink: &SinkConfig| SinkStatus::new(sink.name(), sink.kind().name);
    let sinks: Vec<SinkStatus> = config.sinks.iter().map(sink_status).collect();
    let (event_sender, events) = channel();
    // Before opening any socket, so that a bad certificate leaves nothing behind.
    let listeners = listening::with_passed(&config.listeners, &passed)?;
    let (certificates, configs) = Certificates::load(&listeners, times()).map_err(StartupError::Tls)?;
    let (admin_tls, client_tls) = certificates.by_use(configs);
    let Opened { admin, clients, files, addresses } =
        listening::open(&listeners, listeners.len() - config.listeners.len(), config.shards, passed)?;
    let authority = config.auth.as_ref().map(|auth| Arc::new(Authority::new(auth.policy.clone())));
    let admin_tls = AdminTls::new(admin_tls);
    let tenants = SharedTenants::new(config.limits.tenants.clone());
    let access =
        admin.as_ref().map(|admin| verification::admin_access(config, &admin.address)).transpose()?;
    let admin = admin.zip(access.clone()).map(|(opened, access)| {
        let tls = (admin_tls.clone(), certificates.statuses());
        let who = (access, authority.clone(), tenants.clone());
        start_admin(config, opened, (&counters, &statuses, &sinks), tls, who, &event_sender)
    });
    let admin = admin.transpose()?;
    let set_stage = |stage| {
        if let Some(admin) = &admin {
            admin.set_stage(stage);
        }
    };
    let is_local = |(kind, address): &(Kind, Address)| *kind != Kind::Http || address.is_local();
    let mut limits = config.limits.clone();
    // Use the sockets' addresses: the service manager may have passed others than the configuration names.
    limits.http_access.is_local = addresses.iter().all(is_local);
    let reloader = Reloader::new(reload, limits, authority.clone(), config.log.clone())
        .with_tls(certificates, admin_tls)
        .with_access(access)
        .with_tenants(tenants);
    let clients = clients.into_iter().zip(client_tls).collect();
    let (server, lanes) =
        start(config, clients_max, clients, (counters, statuses, sinks), (event_sender, events), reloader)?;
    set_stage(Stage::Serving);
    announce(&addresses);
    // `systemctl status` shows only the clients' addresses.
    let client_addresses: Vec<_> =
        addresses.iter().filter(|(kind, _)| *kind != Kind::Admin).cloned().collect();
    let on_ready = || systemd::ready(&listening::words(&client_addresses, config.shards));
    let on_drain = move || {
        // While the sockets still listen: afterwards, another server may take their paths.
        drop(files);
        set_stage(Stage::Draining);
        systemd::stopping(config.drain_deadline_ns);
    };
    server.serve(config, lanes, on_ready, on_drain)
}

/// Starts the admin listener. It reads these counters and sends requests to the shards through the main thread.
fn start_admin(
    config: &Config,
    listening: Listening,
    (shards, sources, sinks): (&[Arc<Counters>], &[SourceStatus], &[SinkStatus]),
    (tls, certificates): (AdminTls, CertificateStatuses),
    (access, authority, tenants): (AdminAccess, Option<Arc<Authority>>, SharedTenants),
    event_sender: &Sender<Event>,
) -> Result<AdminListener, StartupError> {
    let core = |index: usize| config.cores[index % config.cores.len()];
    let (requests, ended) = (event_sender.clone(), event_sender.clone());
    let handles = ServerHandles {
        shards: shards.iter().cloned().enumerate().map(|(index, counters)| (core(index), counters)).collect(),
        sources: sources.to_vec(),
        sinks: sinks.to_vec(),
        access,
        authority,
        tenants,
        node: config.limits.nodes.id.clone(),
        overload_is_unready: config.overload_is_unready,
        certificates,
        dispatch: Box::new(move |dispatch| drop(requests.send(Event::AdminRequest(dispatch)))),
    };
    let socket = listening.sockets.into_iter().flatten().next().ok_or_else(|| io::Error::other("no socket"));
    socket
        .and_then(|socket| {
            let on_failure = move |reason| drop(ended.send(Event::ThreadEnded("admin", reason)));
            AdminListener::start(listening.address, (socket, tls), handles, on_failure)
        })
        .map_err(StartupError::Admin)
}

/// Starts the shards, and creates the lanes of each source.
fn start(
    config: &Config,
    clients_max: usize,
    clients: Vec<(Listening, Option<Arc<ServerConfig>>)>,
    (counters, source_statuses, sink_statuses): (Vec<Arc<Counters>>, Vec<SourceStatus>, Vec<SinkStatus>),
    (event_sender, events): (Sender<Event>, Receiver<Event>),
    reloader: Reloader,
) -> Result<(Server, Vec<SourceRings>), StartupError> {
    assert!((1..=SHARDS_MAX).contains(&usize::from(config.shards)), "config checks the number of shards");
    let failed = |error: io::Error| StartupError::Executor(error.to_string());
    let (signal, report, reload) = (event_sender.clone(), event_sender.clone(), event_sender.clone());
    let signals_ended = event_sender.clone();
    // A terminal that hangs up stops the server; a service manager's SIGHUP never does.
    let hang_up = match signals::has_a_terminal() && !reloader.has_a_file() {
        true => HangUp::Stops,
        false => HangUp::Does(Box::new(move || drop(reload.send(Event::ReloadRequested)))),
    };
    signals::watch(
        move |received| drop(signal.send(Event::StopRequested(received.as_str()))),
        move || drop(report.send(Event::ReportRequested)),
        hang_up,
        move |reason| drop(signals_ended.send(Event::ThreadEnded("signals", reason))),
    )
    .map_err(failed)?;

    let eventfds: io::Result<Vec<OwnedFd>> = (0..config.shards).map(|_| eventfd()).collect();
    let eventfds = eventfds.map_err(failed)?;
    let bells: io::Result<Vec<_>> = eventfds.iter().map(|fd| rings::doorbell(fd).map(Arc::new)).collect();
    let bells = bells.map_err(failed)?;
    let mut meshes = mesh(&bells, config.mesh_ring_bytes);
    let commons: Vec<_> = config.sources.iter().map(SourceConfig::common).collect();
    let of_source = |((source, number), feed): ((&SourceConfig, u32), FeedId)| {
        let mut lanes = rings::lanes(&mut meshes, &bells, config.mesh_ring_bytes);
        lanes.set_tenant(source.tenant());
        lanes.set_source(number);
        lanes.set_feed(feed);
        lanes
    };
    let lanes: Vec<Lanes> =
        config.sources.iter().zip(1..).zip(feeds::assign(&commons)).map(of_source).collect();
    let lanes = lanes.into_iter().zip(rings::demand(config, &mut meshes, &bells)).collect();
    let log_readers =
        log_readers::start(config, &source_statuses, (&mut meshes, &bells), &event_sender).map_err(failed)?;
    let sinks = sinks::start(config, &sink_statuses, (&mut meshes, &bells), &event_sender).map_err(failed)?;

    let verifiers_ended = event_sender.clone();
    let on_failure = move |reason| drop(verifiers_ended.send(Event::ThreadEnded("verifier", reason)));
    let mut verifiers = verification::start(config, &reloader, &bells, on_failure)?;
    let (control, receivers) = control_channels(&bells);
    let mut server = Server {
        shards: Vec::new(),
        sources: Vec::new(),
        failover: Failover::new(&source_statuses),
        feeds: FeedReports::new(&source_statuses),
        source_statuses,
        log_readers,
        sinks,
        sink_statuses,
        sources_started_ns: 0,
        stop: Arc::new(Stop::new(bells.clone())),
        control,
        reloader,
        feeder: Feeder::new(counters.iter().zip(&bells), clock::monotonic_ns()),
        counters,
        events,
        event_sender: event_sender.clone(),
        shards_ended: vec![false; usize::from(config.shards)],
    };
    let counts = ConnectionCounts::new(
        clients_max,
        config.clients_per_source_max,
        config.unlimited_sources.clone(),
        config.limits.trusted_proxies.clone(),
    );
    let handovers = handover_lanes(&bells);
    let started = clock::now();
    let epoch = started.realtime_ns / 1_000;
    let (clients, tls): (Vec<Listening>, TlsConfigs) = clients.into_iter().unzip();
    let accepting: Vec<ClientListener> = clients
        .iter()
        .filter_map(|listening| {
            let kind = listening.kind.of_clients();
            let (is_dealt, is_read_only, tenant) =
                (listening.is_dealt(), listening.is_read_only, listening.tenant);
            let is_unix = listening.address.tcp().is_none();
            kind.map(|kind| {
                let mut listener =
                    ClientListener::new(kind, listening.client, is_dealt, is_read_only, tenant);
                listener.is_unix = is_unix;
                listener
            })
        })
        .collect();
    let mut sockets: Vec<_> = clients.into_iter().map(|listening| listening.sockets.into_iter()).collect();
    let parts = eventfds.into_iter().zip(meshes.into_iter().zip(bells));
    let parts = parts.zip(handovers.into_iter().zip(receivers));
    for (index, ((eventfd, (mesh, bell)), (handovers, receiver))) in parts.enumerate() {
        let id = ShardId(index as u16);
        let mut shard = Shard::new(
            id,
            config.shards,
            epoch,
            server.reloader.limits().clone(),
            server.counters[index].clone(),
        );
        shard.set_live_clock(LiveClock::starting(started));
        shard.set_static_files(&page::Page);
        shard.set_slots_end(clients_max as u32);
        shard.set_sources(counts.sources());
        let parts = ShardParts {
            shard,
            mesh,
            bell,
            eventfd,
            sockets: sockets.iter_mut().map(|sockets| sockets.next().flatten()).collect(),
            listeners: accepting.clone(),
            tls: tls.clone(),
            clients_max,
            stop: server.stop.clone(),
            admission: Admission::new(counts.clone(), config.accept_rate, config.shards),
            overload_refuses: config.overload_refuses,
            pacing: Pacing { latency_budget: config.latency_budget, spin_ns: config.spin_ns },
            handovers,
            control: ControlQueue::new(receiver),
            verifiers: verifiers.next(),
            distribution: Distribution::new(id, server.counters.clone()),
        };
        let core = config.cores[index % config.cores.len()];
        let (started, ended) = (event_sender.clone(), event_sender.clone());
        let on_start = move || drop(started.send(Event::Started(id)));
        let on_end = move |result: Result<Latency, ShardFailure>| {
            let result = result.map(|latency| drop(ended.send(Event::Latency(id, Box::new(latency)))));
            drop(ended.send(Event::ShardEnded(id, result)));
        };
        server.shards.push(shard_thread::start(parts, core, on_start, on_end).map_err(failed)?);
    }
    server.wait_for_start()?;
    Ok((server, lanes))
}

impl Server {
    /// Starts the sources, waits for a reason to stop, and stops: the sources first, then all shards together. Calls
    /// `on_ready` once everything runs, and `on_drain` when the server begins to stop.
    fn serve(
        mut self,
        config: &Config,
        lanes: Vec<SourceRings>,
        on_ready: impl FnOnce(),
        on_drain: impl FnOnce(),
    ) -> Result<(), StartupError> {
        let started = self.start_sources(config, lanes);
        let outcome = started.and_then(|()| {
            on_ready();
            self.wait()
        });
        on_drain();
        self.feeds.stop();
        self.stop_sources();
        let drain_ns = match outcome {
            // Without all shards, the drain cannot complete: bound the others' time.
            Err(StartupError::Shard(_)) => config.drain_deadline_ns.min(FAILED_DRAIN_MS_MAX * 1_000_000),
            _ => config.drain_deadline_ns,
        };
        self.stop.request(clock::monotonic_ns(), drain_ns);
        let (last, stopped) = self.wait_for_shards();
        self.stop_log_readers();
        self.stop_sinks();
        for (shard, has_ended) in self.shards.drain(..).zip(&self.shards_ended) {
            // Its panics were caught and reported. A stuck shard ends with the process.
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
    /// A shard fails to start, or takes longer than [`SHARDS_START_MS_MAX`]; another thread ends; a signal asks to stop.
    fn wait_for_start(&mut self) -> Result<(), StartupError> {
        let give_up_ns = clock::monotonic_ns() + SHARDS_START_MS_MAX * 1_000_000;
        let mut started = vec![false; self.shards.len()];
        while let Some(missing) = started.iter().position(|started| !started) {
            let left_ns = give_up_ns.saturating_sub(clock::monotonic_ns());
            match self.events.recv_timeout(Duration::from_nanos(left_ns)) {
                Ok(Event::Started(shard)) => started[usize::from(shard.0)] = true,
                // Not all shards can answer yet.
                Ok(Event::ReportRequested | Event::AdminRequest(_) | Event::Latency(..)) => {}
                Ok(Event::ReloadRequested) => self.reloader.request(),
                Ok(Event::ShardEnded(shard, Err(failure))) => {
                    return Err(StartupError::Shard(format!("shard {} cannot start: {failure}", shard.0)));
                }
                Ok(Event::ShardEnded(shard, Ok(()))) => {
                    return Err(StartupError::Shard(format!("shard {} ended while starting", shard.0)));
                }
                Ok(Event::ThreadEnded(name, reason)) => return Err(StartupError::Thread(name, reason)),
                Ok(Event::StopRequested(name)) => {
                    return Err(StartupError::StoppedAtStart(name));
                }
                Ok(Event::SourceEnded(kind, _)) => {
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

    /// Handles events until the server must stop: `Ok` for a signal, an error for a failure.
    fn wait(&mut self) -> Result<(), StartupError> {
        let mut latencies: Latencies = self.shards.iter().map(|_| None).collect();
        loop {
            match self.next() {
                Ok(Event::ReportRequested) => {
                    latencies.fill_with(|| None);
                    self.request_report();
                }
                Ok(Event::AdminRequest(dispatch)) => drop(self.control.send(dispatch)),
                Ok(Event::ReloadRequested) => self.reloader.request(),
                Ok(Event::Latency(shard, latency)) => {
                    latencies[usize::from(shard.0)] = Some(latency);
                    if latencies.iter().all(Option::is_some) {
                        self.print_report(&latencies);
                        latencies.fill_with(|| None);
                    }
                }
                Ok(Event::StopRequested(name)) => {
                    ::log::info!("{name}: stopping; send the signal again to stop immediately");
                    return Ok(());
                }
                Ok(Event::ShardEnded(shard, result)) => {
                    let text = match result {
                        Err(failure) => format!("shard {} has failed: {failure}", shard.0),
                        Ok(()) => format!("shard {} has ended while the server runs", shard.0),
                    };
                    ::log::error!("{text}; draining the other shards");
                    return Err(StartupError::Shard(text));
                }
                Ok(Event::ThreadEnded(name, reason)) => return Err(StartupError::Thread(name, reason)),
                Ok(Event::SourceEnded(_, Err(error))) => {
                    return Err(StartupError::Source(error.to_string()));
                }
                Ok(Event::SourceEnded(kind, Ok(()))) => ::log::debug!("source {kind} ended"),
                Ok(Event::Started(_)) => {}
                Err(_) => return Err(StartupError::Shard("every thread has ended".into())),
            }
        }
    }

    /// The next event. Feeds the watchdog and reports suppressed log lines until then.
    fn next(&mut self) -> Result<Event, RecvError> {
        loop {
            if let Some(event) = self.next_within(LOG_TURN_NS)? {
                return Ok(event);
            }
        }
    }

    /// The next event, if one arrives within `wait_ns`.
    fn next_within(&mut self, wait_ns: u64) -> Result<Option<Event>, RecvError> {
        let now_ns = clock::monotonic_ns();
        logging::turn(now_ns);
        self.reloader.turn(&mut self.control);
        let failover_ns = self.failover.turn(now_ns, self.sources_started_ns).unwrap_or(u64::MAX);
        let feeds_ns = self.feeds.turn(now_ns, self.sources_started_ns, &mut self.control);
        let wait_ns = feeds_ns.unwrap_or(u64::MAX).min(failover_ns).min(wait_ns);
        let wait_ns = self.feeder.turn(now_ns).unwrap_or(u64::MAX).min(wait_ns);
        let event = match self.events.recv_timeout(Duration::from_nanos(wait_ns)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
        };
        if let Event::ShardEnded(shard, _) = &event {
            self.feeder.shard_ended(*shard);
            self.stop.shard_ended(*shard);
            self.shards_ended[usize::from(shard.0)] = true;
        }
        Ok(Some(event))
    }

    /// Waits until every shard has ended, at most [`SHARDS_LATE_MS_MAX`] past the drain. Still passes on admin requests.
    /// Returns the latencies of the shards that stopped in order, and an error if a shard failed or is stuck.
    fn wait_for_shards(&mut self) -> (Latencies, Result<(), StartupError>) {
        let mut last: Latencies = self.shards.iter().map(|_| None).collect();
        let mut outcome = Ok(());
        // Time past the drain that this thread spent waiting. Excludes time while the process was suspended.
        let mut late_ns = 0;
        while let Some(stuck) = self.shards_ended.iter().position(|has_ended| !has_ended) {
            let from_ns = clock::monotonic_ns();
            let event = match self.next_within(LOG_TURN_NS) {
                Ok(Some(event)) => event,
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
            match event {
                Event::AdminRequest(dispatch) => drop(self.control.send(dispatch)),
                Event::Latency(shard, latency) => last[usize::from(shard.0)] = Some(latency),
                Event::ShardEnded(shard, Err(failure)) => {
                    let text = format!("shard {} has failed while stopping: {failure}", shard.0);
                    ::log::error!("{text}");
                    outcome = outcome.and(Err(StartupError::Shard(text)));
                }
                Event::ReloadRequested => ::log::info!("SIGHUP: ignored, because the server is stopping"),
                // The server is already stopping.
                Event::ShardEnded(_, Ok(()))
                | Event::StopRequested(_)
                | Event::ReportRequested
                | Event::Started(_)
                | Event::SourceEnded(..)
                | Event::ThreadEnded(..) => {}
            }
        }
        (last, outcome)
    }
}

/// CLOCK_MONOTONIC nanoseconds, and seconds since 1970.
fn times() -> (u64, u64) {
    (clock::monotonic_ns(), clock::realtime_s())
}
