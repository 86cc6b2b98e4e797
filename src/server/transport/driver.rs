//! A shard's loop, the only task of a pinned glommio executor: drives the data ring, the mesh and the shard in turns, and
//! sleeps in the ring when there is nothing to do.

mod credentials;
mod distribution;
mod egress;
mod pacing;
mod tls;
mod turn_watch;

use std::{io, os::fd::OwnedFd, sync::Arc};

pub use self::{distribution::Distribution, pacing::Pacing};
use self::{pacing::Waits, turn_watch::TurnWatch};
use super::{
    handover::{Handover, HandoverLanes, Transfer},
    stop::{Barrier, Stop},
};
use crate::{
    auth::verifiers::VerifierLane,
    clock,
    limits::{
        ACCEPT_RETRY_MS, GATHER_BYTES, SLEEP_NS_HIGHEST, SLEEP_NS_LOWEST, TURN_ACCEPTS, TURN_EVENTS,
        TURN_RECEIVED_BYTES,
    },
    logging,
    process::fault::{self, Place},
    transport::{
        admission::{Admission, Admitted},
        control_queue::ControlQueue,
        tls::TlsConnections,
        uring::data_ring::{DataRing, Event, ListenerId, Received},
    },
};
use tickcast_core::{
    admission::Refusal,
    flush_wait::LatencyBudget,
    ids::{SlotId, TenantId},
    mesh::{Mesh, ring::Doorbell},
    metrics::{counters::Counter, latency::Latency},
    now::Now,
    shard::{Action, ClientAddress, ListenerKind, Shard},
};

/// Longest sleep while refused sockets linger.
const LINGER_TICK_NS: u64 = 100_000_000;
/// Longest sleep of a stopping shard, so that it notices its deadlines.
const STOP_TICK_NS: u64 = 50_000_000;

/// The phase of a shard's shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Serving.
    Running,
    /// Input from clients is no longer read; requests in flight reach their home shards.
    Requests,
    /// No shard has requests left; deliveries in flight reach the sessions.
    Deliveries,
    /// Sessions are flushed and closed.
    Sessions,
}

/// A shard's view of a listener for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientListener {
    /// The protocol of its connections.
    pub kind: ListenerKind,
    /// How a trusted proxy reports its client's address.
    pub client: ClientAddress,
    /// Its socket is a Unix socket.
    pub is_unix: bool,
    /// The listener has one socket for all shards; the shard that accepts distributes its connections. If false, each shard has
    /// its own socket.
    pub is_distributed: bool,
    /// Its clients may only subscribe.
    pub is_read_only: bool,
    /// Tenant of its clients.
    pub tenant: TenantId,
    /// When to retry after accepting failed.
    retry_ns: Option<u64>,
    /// Whether the last attempt to accept failed; a warning was logged.
    is_failing: bool,
}

impl ClientListener {
    /// Creates a TCP listener that has not failed.
    pub fn new(
        kind: ListenerKind,
        client: ClientAddress,
        is_distributed: bool,
        is_read_only: bool,
        tenant: TenantId,
    ) -> ClientListener {
        let (is_unix, retry_ns, is_failing) = (false, None, false);
        ClientListener { kind, client, is_unix, is_distributed, is_read_only, tenant, retry_ns, is_failing }
    }
}

/// A shard and everything that drives it. Owned by its executor's thread.
pub struct Driver {
    /// The state machine.
    pub shard: Shard,
    /// The sockets.
    pub ring: DataRing,
    /// The rings to the other shards.
    pub mesh: Mesh,
    /// Wakes this shard when something arrives while it sleeps.
    pub bell: Arc<Doorbell>,
    /// Coordinates the shutdown of all shards.
    pub stop: Arc<Stop>,
    /// Admits or refuses connections.
    pub admission: Admission,
    /// Whether connections are refused while the shard is overloaded.
    pub overload_refuses: bool,
    /// Connections that move to or from other shards.
    pub handovers: HandoverLanes,
    /// Batching and spinning; set with [`Driver::set_pacing`].
    pacing: Pacing,
    /// The server's listeners for clients, by [`ListenerId`].
    pub listeners: Vec<ClientListener>,
    /// Which shard serves an accepted connection.
    pub distribution: Distribution,
    /// Requests of operators and of the main thread.
    pub control: ControlQueue,
    /// Verifies credentials; `None`: clients need none.
    pub verifiers: Option<VerifierLane>,
    /// SENDs made so far.
    sends: u64,
    /// When the shard went to sleep in this iteration of its loop; 0: it did not sleep.
    asleep_since_ns: u64,
    watch: TurnWatch,
    waits: Waits,
    /// Start of the current spin; 0: the shard is not spinning.
    spins_since_ns: u64,
    gather: Vec<u8>,
    /// The TLS connections.
    pub tls: TlsConnections,
    /// Encrypted records of a batch of SENDs.
    sealed: Vec<u8>,
    phase: Phase,
}

impl Driver {
    /// Creates a driver; [`Driver::run`] runs it.
    pub fn new(
        shard: Shard,
        ring: DataRing,
        (mesh, handovers): (Mesh, HandoverLanes),
        bell: Arc<Doorbell>,
        stop: Arc<Stop>,
        admission: Admission,
        control: ControlQueue,
    ) -> Driver {
        let gather = Vec::with_capacity(GATHER_BYTES);
        Driver {
            shard,
            ring,
            mesh,
            bell,
            stop,
            admission,
            overload_refuses: false,
            handovers,
            pacing: Pacing::default(),
            listeners: Vec::new(),
            distribution: Distribution::default(),
            control,
            verifiers: None,
            sends: 0,
            asleep_since_ns: 0,
            watch: TurnWatch::default(),
            waits: Waits::new(LatencyBudget::default()),
            spins_since_ns: 0,
            gather,
            tls: TlsConnections::default(),
            sealed: Vec::new(),
            phase: Phase::Running,
        }
    }

    /// Sets how long the shard batches and spins.
    pub fn set_pacing(&mut self, pacing: Pacing) {
        self.shard.release_ticks();
        self.waits = Waits::new(pacing.latency_budget);
        self.shard.counters().set(Counter::FlushWaitNs, self.waits.wait_ns());
        self.pacing = pacing;
    }

    /// Runs turns until the server has stopped, and returns the shard's latencies.
    ///
    /// An idle shard sleeps in the data ring, not in the executor: one `io_uring_enter` is cheaper than glommio's seven and a
    /// membarrier (12.3 us of CPU per delivery against 15.3, at 1,000 ticks/s to 10 clients). The driver, the executor's only
    /// task, never yields: see `PREEMPT_TIMER`.
    ///
    /// # Errors
    /// The data ring or the doorbell has failed for good.
    pub async fn run(mut self) -> io::Result<Latency> {
        let bell = self.bell.clone();
        let mut began_ns = clock::monotonic_ns();
        while !self.stopped() {
            self.shard.counters().add(Counter::Turns, 1);
            self.end_wait(began_ns);
            let (sends, was_holding) = (self.sends, self.waits.is_holding());
            let worked = self.turn()?;
            if was_holding {
                if !worked {
                    self.sleep_within_budget()?;
                }
            } else if !worked && !self.spin(began_ns) {
                bell.sleep(|| self.look_and_wait())?;
            }
            let ended_ns = self.account(began_ns);
            if worked {
                self.spins_since_ns = 0;
                if !was_holding {
                    self.pace(began_ns, ended_ns, self.sends.wrapping_sub(sends) as usize);
                }
            }
            began_ns = ended_ns;
        }
        Ok(std::mem::take(self.shard.latency_mut()))
    }

    /// Sleeps unless something has arrived since the last turn. The doorbell is armed.
    fn look_and_wait(&mut self) -> io::Result<()> {
        if self.may_sleep()? {
            self.shard.counters().add(Counter::Parks, 1);
            self.asleep_since_ns = clock::monotonic_ns();
            self.ring.wait()?;
        }
        Ok(())
    }

    /// Runs one turn. Returns whether it did anything.
    fn turn(&mut self) -> io::Result<bool> {
        let now = clock::now();
        self.ring.poll()?;
        let mut worked = self.events(now)?;
        worked |= self.take_transfers(now)?;
        worked |= self.take_verdicts(now)?;
        worked |= self.mesh.take_in(&mut self.shard, now);
        worked |= self.shard.turn(now);
        let sends = self.sends;
        worked |= self.flush(now)?;
        match self.waits.is_holding() {
            true => self.shard.latency_mut().end_held_turn(),
            false => self.record_latency(self.sends.wrapping_sub(sends) as usize),
        }
        worked |= self.shake_hands(now)?;
        worked |= self.handle_control(now)?;
        worked |= self.actions()?;
        worked |= self.hand_over_credentials(now)?;
        worked |= self.mesh.push_out(&mut self.shard);
        worked |= self.handovers.push_out();
        self.shard.end_turn();
        self.retry_accepts(now)?;
        self.admission.turn(now.monotonic_ns);
        worked |= self.advance_stop(now)?;
        Ok(worked)
    }

    /// Records the turn's latencies, after its SENDs. The clock is read only if the turn took in ticks.
    fn record_latency(&mut self, sends: usize) {
        let ready = self.shard.ready_or_lagging_len();
        let latency = self.shard.latency_mut();
        let now_ns = if sends > 0 && latency.wants_time() { clock::realtime_ns() } else { 0 };
        latency.end_turn(sends, ready, now_ns);
    }

    /// Whether nothing has arrived since the last turn. Arms the timer for the next deadline.
    fn may_sleep(&mut self) -> io::Result<bool> {
        self.arm_timers()?;
        self.ring.poll()?;
        let asked_to_stop = self.phase == Phase::Running && self.stop.is_requested();
        let work_waits = self.ring.has_events()
            || self.mesh.look_again(&mut self.shard)
            || self.handovers.look_again()
            || self.control.has_work()
            || self.tls.has_ready()
            || self.has_verdicts()
            || self.shard.is_busy();
        Ok(!work_waits && !asked_to_stop && !self.stopped())
    }

    /// Arms the ring's timer for whatever is due next.
    fn arm_timers(&mut self) -> io::Result<()> {
        let accepts_ns = self.listeners.iter().filter_map(|listener| listener.retry_ns).min();
        if let Some(when_ns) = self.shard.next_deadline().into_iter().chain(accepts_ns).min() {
            let after_ns = when_ns.saturating_sub(clock::monotonic_ns());
            self.ring.arm_timer(after_ns.clamp(SLEEP_NS_LOWEST, SLEEP_NS_HIGHEST))?;
        }
        if self.admission.lingers() {
            self.ring.arm_timer(LINGER_TICK_NS)?;
        }
        if self.phase != Phase::Running {
            self.ring.arm_timer(STOP_TICK_NS)?;
        }
        Ok(())
    }

    fn events(&mut self, now: Now) -> io::Result<bool> {
        let (mut handled, mut accepts, mut bytes) = (0, 0, 0);
        while handled < TURN_EVENTS
            && accepts < TURN_ACCEPTS
            && bytes < TURN_RECEIVED_BYTES
            && let Some(event) = self.ring.next_event()
        {
            handled += 1;
            match event {
                Event::Received(received) => {
                    bytes += self.ring.bytes(&received).len();
                    // A stopping server reads no more input from clients.
                    if self.phase == Phase::Running {
                        self.received(&received, now)?;
                    }
                    self.ring.recycle(received);
                }
                Event::Accepted(listener, socket) => {
                    accepts += 1;
                    if let Some(socket) = self.distribute(listener, socket) {
                        self.accepted(listener, socket, now);
                    }
                }
                Event::AcceptFailed(listener, errno) => {
                    self.shard.counters().add(Counter::AcceptsFailed, 1);
                    let listener = &mut self.listeners[listener.0 as usize];
                    if !std::mem::replace(&mut listener.is_failing, true) {
                        ::log::warn!(
                            "cannot accept connections: {}; retrying every {ACCEPT_RETRY_MS} ms (raise LimitNOFILE if \
                             descriptors ran out)",
                            io::Error::from_raw_os_error(errno)
                        );
                    }
                    listener.retry_ns = Some(now.monotonic_ns + ACCEPT_RETRY_MS * 1_000_000);
                }
                Event::Eof(slot) => self.received_eof(slot, now),
                Event::Failed(slot, errno) => self.shard.handle_error(SlotId(slot), errno, now),
                Event::Writable(slot) => self.writable(slot, now)?,
                Event::Detached(slot) => self.detached(slot)?,
                Event::Timer => {}
            }
            // Before the next event, so that no event of a socket just closed is handled.
            self.actions()?;
        }
        if handled > 0 {
            self.shard.counters().add(Counter::RingEvents, handled as u64);
        }
        Ok(handled > 0)
    }

    fn received(&mut self, received: &Received, now: Now) -> io::Result<()> {
        let bytes = self.ring.bytes(received);
        match self.tls.get_mut(received.slot) {
            None => self.shard.handle_bytes(SlotId(received.slot), bytes, now),
            Some(_) => {
                let opened = self.tls.receive(received.slot, bytes);
                self.received_tls(received.slot, opened, now)?;
            }
        }
        Ok(())
    }

    /// Passes a connection on to the shard that should admit and serve it. Returns the connection if that is this shard.
    fn distribute(&mut self, listener: ListenerId, socket: OwnedFd) -> Option<OwnedFd> {
        if self.phase != Phase::Running {
            return Some(socket);
        }
        let to = match self.listeners[listener.0 as usize].is_distributed {
            true => self.distribution.next_in_turn(),
            false => self.distribution.least_loaded(|shard| self.handovers.under_way(shard)),
        };
        match to == self.shard.id() {
            true => Some(socket),
            false => match self.handovers.offer(to, Transfer::Accepted(listener, socket)) {
                Err(Transfer::Accepted(_, socket)) => Some(socket),
                Ok(()) | Err(Transfer::Admitted(_)) => None,
            },
        }
    }

    fn accepted(&mut self, listener: ListenerId, socket: OwnedFd, now: Now) {
        let id = listener.0 as usize;
        let listener = &mut self.listeners[id];
        listener.is_failing = false;
        let ClientListener { kind, mut client, is_unix, is_read_only, tenant, .. } = *listener;
        if self.phase != Phase::Running {
            self.shard.counters().add(Counter::SessionsRefusedDraining, 1);
            return;
        }
        let is_refused = self.overload_refuses && self.shard.counters().value(Counter::Overloaded) > 0;
        let mut admitted = match is_refused {
            true => Err(Refusal::Overload),
            false => self.admission.admit(&socket, now.monotonic_ns),
        };
        if let Ok(admission) = admitted
            && !self.ring.has_room()
        {
            self.admission.release_without_slot(admission);
            admitted = Err(Refusal::Clients);
        }
        match admitted {
            Ok(admitted) => {
                let is_safe_from_rebinding = is_unix || self.tls.is_tls(id);
                if client != ClientAddress::Peer && !self.admission.is_proxy(&socket) {
                    client = ClientAddress::Peer;
                }
                if let Some(slot) = self.add(socket, admitted) {
                    self.shard.handle_accept_proxied(SlotId(slot), kind, client, now);
                    self.shard.set_source(SlotId(slot), admitted.source);
                    self.tls.accept(slot, id, client);
                    self.shard.set_tenant(SlotId(slot), tenant);
                    if is_safe_from_rebinding {
                        self.shard.set_safe_from_rebinding(SlotId(slot));
                    }
                    if is_read_only {
                        self.shard.set_read_only(SlotId(slot));
                    }
                }
            }
            Err(refusal) => {
                ::log::info!(target: logging::peer::ACCEPT, "connection refused: {}", refusal.text());
                self.shard.counters().add(refusal.counter(), 1);
                let kind = (!self.tls.is_tls(id)).then_some(kind);
                self.admission.refuse(socket, kind, refusal, now.monotonic_ns);
            }
        }
    }

    /// Gives an admitted connection a slot. Returns `None` if the ring refuses the socket.
    fn add(&mut self, socket: OwnedFd, admitted: Admitted) -> Option<u32> {
        match self.ring.add(socket) {
            Ok(slot) => {
                self.admission.assign(slot, admitted);
                Some(slot)
            }
            Err(error) => {
                ::log::warn!(target: logging::peer::ACCEPT, "connection refused: {error}");
                self.admission.release_without_slot(admitted);
                self.shard.counters().add(Counter::SessionsRefusedFailed, 1);
                None
            }
        }
    }

    /// Hands over a detached socket to its shard. A stopping server keeps it, to close it with the rest.
    fn detached(&mut self, slot: u32) -> io::Result<()> {
        if self.phase == Phase::Running
            && let Some(departure) = self.shard.handle_detached(SlotId(slot))
        {
            match self.ring.take(slot)? {
                Some(socket) => {
                    let admitted = self.admission.hand_over(slot);
                    let tls = self.tls.remove(slot);
                    let to = departure.to;
                    self.handovers
                        .send(to, Transfer::Admitted(Handover { socket, departure, admitted, tls }));
                }
                None => {
                    debug_assert!(
                        false,
                        "a detached socket is neither settled nor closed, so it can be taken"
                    );
                    self.admission.release(slot);
                    self.tls.remove(slot);
                    self.ring.close(slot)?;
                }
            }
        }
        Ok(())
    }

    /// Takes in connections that other shards have transferred.
    fn take_transfers(&mut self, now: Now) -> io::Result<bool> {
        for taken in 0..self.handovers.turn_max() {
            let Some(transfer) = self.handovers.take() else { return Ok(taken > 0) };
            let Handover { socket, departure, admitted, tls } = match transfer {
                Transfer::Admitted(handover) => handover,
                Transfer::Accepted(listener, socket) => {
                    self.accepted(listener, socket, now);
                    self.actions()?;
                    continue;
                }
            };
            if let Some(slot) = self.add(socket, admitted) {
                let peer_closed = tls.as_ref().is_some_and(|connection| connection.peer_closed());
                if let Some(connection) = tls {
                    self.tls.insert(slot, connection);
                }
                self.shard.handle_attached(SlotId(slot), admitted.source, &departure, now);
                if peer_closed {
                    self.shard.handle_eof(SlotId(slot), now);
                }
                self.actions()?;
            }
        }
        Ok(self.handovers.turn_max() > 0)
    }

    fn retry_accepts(&mut self, now: Now) -> io::Result<()> {
        for (id, listener) in self.listeners.iter_mut().enumerate() {
            if listener.retry_ns.is_some_and(|when| when <= now.monotonic_ns) {
                listener.retry_ns = None;
                self.ring.rearm_accept(ListenerId(id as u32))?;
            }
        }
        Ok(())
    }

    fn actions(&mut self) -> io::Result<bool> {
        let mut any = false;
        while let Some(action) = self.shard.poll_action() {
            any = true;
            match action {
                Action::PauseReceive(slot) => self.ring.pause_receive(slot.0)?,
                Action::ResumeReceive(slot) => self.resume_receive(slot)?,
                Action::ShutdownWrite(slot) => self.shutdown_write(slot.0)?,
                Action::HandshakeDone(slot) => self.ring.settle(slot.0),
                Action::Admit(slot, client) => match self.admission.admit_client(slot.0, client) {
                    Ok(source) => self.shard.handle_admitted(slot, source, clock::now()),
                    Err(refusal) => self.shard.handle_refused(slot, refusal, clock::now()),
                },
                Action::HandOver(slot) => self.hand_over(slot.0)?,
                Action::Close(slot) => {
                    self.admission.release(slot.0);
                    self.close_tls(slot.0)?;
                    self.ring.close(slot.0)?;
                }
            }
        }
        Ok(any)
    }

    /// Whether the shutdown is complete.
    fn stopped(&self) -> bool {
        self.phase == Phase::Sessions && self.shard.sessions_len() == 0 && self.ring.in_use() == 0
    }

    /// Enters the next phase of the shutdown once every shard has passed the current one's barrier, or its time is up.
    fn advance_stop(&mut self, now: Now) -> io::Result<bool> {
        let before = self.phase;
        let late = self.stop.mesh_deadline_ns() <= now.monotonic_ns;
        match self.phase {
            Phase::Running if self.stop.is_requested() => {
                fault::at(Place::Stop(self.shard.id().0));
                self.ring.stop_accepting()?;
                self.shard.stop_input();
                self.phase = Phase::Requests;
            }
            Phase::Running => {}
            Phase::Requests => {
                if self.shard.requests_flushed() && self.handovers.is_flushed() {
                    self.stop.arrive(self.shard.id(), Barrier::Requests);
                }
                let is_passed = self.stop.is_passed(Barrier::Requests, &mut self.mesh);
                if late || is_passed && !self.handovers.has_input() {
                    self.phase = Phase::Deliveries;
                }
            }
            Phase::Deliveries => {
                if self.shard.deliveries_flushed() {
                    self.stop.arrive(self.shard.id(), Barrier::Deliveries);
                }
                // While time remains, wait for the answer to every publish given to a sink.
                let is_settled = self.shard.routed_are_settled();
                if late || is_settled && self.stop.is_passed(Barrier::Deliveries, &mut self.mesh) {
                    self.phase = Phase::Sessions;
                    self.shard.begin_drain(self.stop.deadline_ns(), now);
                }
            }
            Phase::Sessions => {}
        }
        Ok(self.phase != before)
    }
}

#[cfg(test)]
mod tests;
