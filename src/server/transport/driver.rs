//! One shard's loop, the one task of a pinned glommio executor: drives the data ring, the mesh and the shard in turns,
//! and sleeps in the ring when there is nothing to do.

use std::{io, os::fd::OwnedFd, sync::Arc};

use super::{
    handover::{Exchange, Handover, Parcel},
    stop::{Stop, Wait},
};
use crate::{
    clock,
    limits::{
        ACCEPT_RETRY_MS, GATHER_BYTES, SEND_BYTES_MAX, SENDS_PER_SUBMIT, SLEEP_NS_HIGHEST, SLEEP_NS_LOWEST,
        TURN_EVENTS, TURN_SENDS,
    },
    logging,
    transport::desk::Desk,
    transport::{
        admission::Gate,
        uring::data_ring::{DataRing, Event, ListenerId, Sent},
    },
};
use tickcast_core::{
    admission::{Origin, Refusal},
    ids::SlotId,
    mesh::{Mesh, ring::Doorbell},
    metrics::{counters::Counter, latency::Latency},
    now::Now,
    shard::{Action, ListenerKind, Send, Shard},
};
use tickcast_proto::ids::ShardId;

/// How often sockets that linger after a refusal are looked at.
const LINGER_TICK_NS: u64 = 100_000_000;
/// How often a shard that stops looks whether time is up.
const STOP_TICK_NS: u64 = 50_000_000;

/// How far a shard has come in stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Serving.
    Running,
    /// Nothing more is taken from clients; requests under way reach their homes.
    Requests,
    /// No shard has requests left; deliveries under way reach the sessions.
    Deliveries,
    /// Sessions take what waits for them and go.
    Sessions,
}

/// How a shard spends the time when it could sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pacing {
    /// What a tick may wait under load for others to leave with it, nanoseconds; 0: every turn sends.
    pub latency_budget_ns: u64,
    /// How long a shard with nothing to do looks for work before it sleeps, nanoseconds.
    pub spin_ns: u64,
}

/// A listener, as a shard that takes in its connections sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepting {
    /// What its connections speak.
    pub kind: ListenerKind,
    /// It has one socket for this many shards: the shard that accepts deals the connections out. `None`: each shard accepts
    /// its own.
    pub dealt_to: Option<u16>,
    /// When to accept again after accepting failed.
    again_ns: Option<u64>,
    /// Accepting failed at the last attempt, and the log says so.
    fails: bool,
}

impl Accepting {
    /// A listener that has not failed yet.
    pub fn new(kind: ListenerKind, dealt_to: Option<u16>) -> Accepting {
        Accepting { kind, dealt_to, again_ns: None, fails: false }
    }
}

/// Turns that belong together: more sessions stood ready than one turn serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    /// When its first turn began.
    since_ns: u64,
    /// Sessions that stood ready then and still do.
    left: usize,
}

impl Round {
    /// After a turn that began at `began_ns` and made `sends` SENDs, with so many sessions still standing ready: the round
    /// that it belongs to, if there is one, and whether that has come to its end. Who stands ready anew stands behind
    /// those of the round, and is of the next one.
    fn after(round: Option<Round>, began_ns: u64, sends: usize, standing: usize) -> (Option<Round>, bool) {
        let round = match round {
            None if sends == 0 => return (None, false),
            None => Round { since_ns: began_ns, left: standing },
            Some(Round { since_ns, left }) => {
                Round { since_ns, left: left.saturating_sub(sends).min(standing) }
            }
        };
        (Some(round), round.left == 0)
    }
}

/// A shard and everything it is driven with. Lives on its executor's thread.
pub struct Driver {
    /// The state machine.
    pub shard: Shard,
    /// The sockets.
    pub ring: DataRing,
    /// The rings to the other shards.
    pub mesh: Mesh,
    /// Rung when something comes while this shard sleeps.
    pub bell: Arc<Doorbell>,
    /// How the server stops.
    pub stop: Arc<Stop>,
    /// Who is let in.
    pub gate: Gate,
    /// Where connections go to the shard of their identity, and come from.
    pub exchange: Exchange,
    /// What it does when it could sleep.
    pub pacing: Pacing,
    /// The server's listeners for clients, by [`ListenerId`].
    pub listeners: Vec<Accepting>,
    /// The shard that the next connection is dealt to.
    deal_next: u16,
    /// What it is asked.
    pub desk: Desk,
    /// SENDs made.
    sends: u64,
    /// When the shard went to sleep in this round of its loop; 0: it did not.
    asleep_since_ns: u64,
    /// The round of SENDs under way that the latency budget is for.
    round: Option<Round>,
    /// When it last did something, while it spins; 0: it does not.
    spins_since_ns: u64,
    gather: Vec<u8>,
    phase: Phase,
}

impl Driver {
    /// Puts the parts together. [`Driver::run`] does the rest.
    pub fn new(
        shard: Shard,
        ring: DataRing,
        (mesh, exchange): (Mesh, Exchange),
        bell: Arc<Doorbell>,
        stop: Arc<Stop>,
        gate: Gate,
        desk: Desk,
    ) -> Driver {
        let gather = Vec::with_capacity(GATHER_BYTES);
        Driver {
            shard,
            ring,
            mesh,
            bell,
            stop,
            gate,
            exchange,
            pacing: Pacing::default(),
            listeners: Vec::new(),
            deal_next: 0,
            desk,
            sends: 0,
            asleep_since_ns: 0,
            round: None,
            spins_since_ns: 0,
            gather,
            phase: Phase::Running,
        }
    }

    /// Turns until the server has stopped. With nothing to do it sleeps in the data ring: it is the executor's one task,
    /// and one enter is cheaper than glommio's seven and a membarrier (12.3 us of CPU a delivery against 15.3, at 1,000
    /// ticks/s to 10 clients). It never yields either: see `PREEMPT_TIMER`.
    ///
    /// Returns its latencies.
    ///
    /// # Errors
    /// When the data ring or the doorbell is beyond use.
    pub async fn run(mut self) -> io::Result<Latency> {
        let bell = self.bell.clone();
        let mut began_ns = clock::monotonic_ns();
        while !self.stopped() {
            self.shard.counters().add(Counter::Turns, 1);
            let sends = self.sends;
            if self.turn()? {
                self.spins_since_ns = 0;
                self.pace(began_ns, self.sends.wrapping_sub(sends) as usize)?;
            } else if !self.spin(began_ns) {
                bell.sleep(|| self.look_and_wait())?;
            }
            began_ns = self.account(began_ns);
        }
        Ok(std::mem::take(self.shard.latency_mut()))
    }

    /// Adds a round of the loop to the shard's busy and idle time. Returns when it ended and the next one begins.
    fn account(&mut self, began_ns: u64) -> u64 {
        let now_ns = clock::monotonic_ns();
        let asleep_ns = match std::mem::take(&mut self.asleep_since_ns) {
            0 => 0,
            since_ns => now_ns.saturating_sub(since_ns),
        };
        let counters = self.shard.counters();
        counters.add(Counter::BusyNs, now_ns.saturating_sub(began_ns).saturating_sub(asleep_ns));
        counters.add(Counter::IdleNs, asleep_ns);
        now_ns
    }

    /// After a turn that made `sends` SENDs, once every session that stood ready has had its own: leaves the core alone
    /// until the latency budget since the first of these turns began is used up, so that what comes meanwhile leaves
    /// together. What an operator asked is worked on in that time. The first tick after a pause is not delayed. Nobody has to
    /// wake the shard: the doorbell is not armed, and those who bring something go on at once.
    fn pace(&mut self, began_ns: u64, sends: usize) -> io::Result<()> {
        let budget_ns = self.pacing.latency_budget_ns;
        if self.phase != Phase::Running || budget_ns == 0 {
            return Ok(());
        }
        let (round, ends) = Round::after(self.round.take(), began_ns, sends, self.shard.standing_len());
        let Some(round) = round else { return Ok(()) };
        if !ends {
            self.round = Some(round);
            return Ok(());
        }
        let ends_ns = round.since_ns.saturating_add(budget_ns);
        let mut now_ns = clock::monotonic_ns();
        while now_ns < ends_ns && self.answer(clock::now())? {
            now_ns = clock::monotonic_ns();
        }
        if now_ns < ends_ns {
            self.asleep_since_ns = now_ns;
            clock::sleep_ns(ends_ns - now_ns);
        }
        Ok(())
    }

    /// After a turn that did nothing: whether to look again rather than sleep. What is spent so counts as idle. A turn
    /// with nothing to do hardly ever makes a system call: the kernel says in the ring's memory that it has something.
    fn spin(&mut self, began_ns: u64) -> bool {
        if self.pacing.spin_ns == 0 || self.phase != Phase::Running {
            return false;
        }
        if self.spins_since_ns == 0 {
            self.spins_since_ns = began_ns;
        }
        let spins = began_ns - self.spins_since_ns < self.pacing.spin_ns;
        if spins {
            self.asleep_since_ns = began_ns;
            std::hint::spin_loop();
        }
        spins
    }

    /// After a turn that did nothing, with the doorbell armed.
    fn look_and_wait(&mut self) -> io::Result<()> {
        if self.may_sleep()? {
            self.shard.counters().add(Counter::Parks, 1);
            self.asleep_since_ns = clock::monotonic_ns();
            self.ring.wait()?;
        }
        Ok(())
    }

    /// One turn. Returns whether anything was done.
    fn turn(&mut self) -> io::Result<bool> {
        let now = clock::now();
        self.ring.poll()?;
        let mut worked = self.events(now)?;
        worked |= self.take_placed(now)?;
        worked |= self.mesh.take_in(&mut self.shard, now);
        worked |= self.shard.turn(now);
        let sends = self.sends;
        worked |= self.flush(now)?;
        self.note_latency(self.sends.wrapping_sub(sends) as usize);
        worked |= self.answer(now)?;
        worked |= self.actions()?;
        worked |= self.mesh.push_out(&mut self.shard);
        worked |= self.exchange.push_out();
        self.shard.end_turn();
        self.accept_again(now)?;
        self.gate.turn(now.monotonic_ns);
        worked |= self.advance_stop(now)?;
        Ok(worked)
    }

    /// After the turn's SENDs. The clock is read only for a turn that took ticks.
    fn note_latency(&mut self, sends: usize) {
        let ready = self.shard.standing_len();
        let latency = self.shard.latency_mut();
        let now_ns = if sends > 0 && latency.wants_time() { clock::realtime_ns() } else { 0 };
        latency.end_turn(sends, ready, now_ns);
    }

    /// Whether nothing has come since the turn.
    fn may_sleep(&mut self) -> io::Result<bool> {
        let accepts_ns = self.listeners.iter().filter_map(|listener| listener.again_ns).min();
        if let Some(when_ns) = self.shard.next_deadline().into_iter().chain(accepts_ns).min() {
            let after_ns = when_ns.saturating_sub(clock::monotonic_ns());
            self.ring.arm_timer(after_ns.clamp(SLEEP_NS_LOWEST, SLEEP_NS_HIGHEST))?;
        }
        if self.gate.lingers() {
            self.ring.arm_timer(LINGER_TICK_NS)?;
        }
        if self.phase != Phase::Running {
            self.ring.arm_timer(STOP_TICK_NS)?;
        }
        self.ring.poll()?;
        let asked_to_stop = self.phase == Phase::Running && self.stop.is_requested();
        let work_waits = self.ring.has_events()
            || self.mesh.look_again(&mut self.shard)
            || self.exchange.look_again()
            || self.desk.has_work()
            || self.shard.is_busy();
        Ok(!work_waits && !asked_to_stop && !self.stopped())
    }

    fn events(&mut self, now: Now) -> io::Result<bool> {
        for handled in 0..TURN_EVENTS {
            let Some(event) = self.ring.next_event() else { return Ok(handled > 0) };
            match event {
                Event::Received(received) => {
                    // Once the server stops, nothing more is taken from clients.
                    if self.phase == Phase::Running {
                        self.shard.handle_bytes(SlotId(received.slot), self.ring.bytes(&received), now);
                    }
                    self.ring.recycle(received);
                }
                Event::Accepted(listener, socket) => {
                    if let Some(socket) = self.deal(listener, socket) {
                        self.accepted(listener, socket, now);
                    }
                }
                Event::AcceptFailed(listener, errno) => {
                    self.shard.counters().add(Counter::AcceptsFailed, 1);
                    let listener = &mut self.listeners[listener.0 as usize];
                    if !std::mem::replace(&mut listener.fails, true) {
                        ::log::warn!(
                            "accept: {}: trying again every {ACCEPT_RETRY_MS} ms (raise LimitNOFILE if descriptors ran out)",
                            io::Error::from_raw_os_error(errno)
                        );
                    }
                    listener.again_ns = Some(now.monotonic_ns + ACCEPT_RETRY_MS * 1_000_000);
                }
                Event::Eof(slot) => self.shard.handle_eof(SlotId(slot), now),
                Event::Failed(slot, errno) => self.shard.handle_error(SlotId(slot), errno, now),
                Event::Writable(slot) => self.shard.handle_writable(SlotId(slot), now),
                Event::Detached(slot) => self.detached(slot)?,
                Event::Timer => {}
            }
            // Closes come before the next event, so that none of a closed socket's is handled.
            self.actions()?;
        }
        Ok(true)
    }

    /// Deals a connection to the next shard if its listener has one socket for all: it is admitted there, as if accepted
    /// there. Returns it if it is this shard's own.
    fn deal(&mut self, listener: ListenerId, socket: OwnedFd) -> Option<OwnedFd> {
        let dealt_to = self.listeners[listener.0 as usize].dealt_to;
        let Some(shards) = dealt_to.filter(|_| self.phase == Phase::Running) else {
            return Some(socket);
        };
        let to = ShardId(self.deal_next);
        self.deal_next = (self.deal_next + 1) % shards;
        match to == self.shard.id() {
            true => Some(socket),
            false => self.exchange.deal(to, listener, socket).err(),
        }
    }

    fn accepted(&mut self, listener: ListenerId, socket: OwnedFd, now: Now) {
        let listener = &mut self.listeners[listener.0 as usize];
        listener.fails = false;
        let kind = listener.kind;
        if self.phase != Phase::Running {
            self.shard.counters().add(Counter::SessionsRefusedDraining, 1);
            return;
        }
        let mut admitted = self.gate.admit(&socket, now.monotonic_ns);
        if let Ok(origin) = admitted
            && !self.ring.has_room()
        {
            self.gate.forget(origin);
            admitted = Err(Refusal::Clients);
        }
        match admitted {
            Ok(origin) => {
                if let Some(slot) = self.add(socket, origin) {
                    self.shard.handle_accept(SlotId(slot), kind, now);
                }
            }
            Err(refusal) => {
                ::log::info!(target: logging::peer::ACCEPT, "a connection is refused: {}", refusal.text());
                self.shard.counters().add(refusal.counter(), 1);
                self.gate.refuse(socket, kind, refusal, now.monotonic_ns);
            }
        }
    }

    /// Puts a connection that was admitted into a slot.
    fn add(&mut self, socket: OwnedFd, origin: Option<Origin>) -> Option<u32> {
        match self.ring.add(socket) {
            Ok(slot) => {
                self.gate.enter(slot, origin);
                Some(slot)
            }
            Err(error) => {
                ::log::warn!(target: logging::peer::ACCEPT, "a connection is refused: {error}");
                self.gate.forget(origin);
                self.shard.counters().add(Counter::SessionsRefusedFailed, 1);
                None
            }
        }
    }

    /// A socket of this shard is quiet, to go to another. Once the server stops it stays, and ends with the rest.
    fn detached(&mut self, slot: u32) -> io::Result<()> {
        if self.phase == Phase::Running
            && let Some(departure) = self.shard.handle_detached(SlotId(slot))
        {
            match self.ring.take(slot)? {
                Some(socket) => {
                    let origin = self.gate.hand_over(slot);
                    self.exchange.send(Handover { socket, departure, origin });
                }
                // Not to be: a socket that is detached is neither settled nor closed.
                None => {
                    debug_assert!(false, "what is detached can be taken");
                    self.gate.leave(slot);
                    self.ring.close(slot)?;
                }
            }
        }
        Ok(())
    }

    /// Connections from other shards: their identities belong here, or it is this shard's turn.
    fn take_placed(&mut self, now: Now) -> io::Result<bool> {
        for taken in 0..self.exchange.turn_max() {
            let Some(parcel) = self.exchange.take() else { return Ok(taken > 0) };
            let Handover { socket, departure, origin } = match parcel {
                Parcel::Placed(handover) => handover,
                Parcel::Dealt(listener, socket) => {
                    self.accepted(listener, socket, now);
                    self.actions()?;
                    continue;
                }
            };
            if let Some(slot) = self.add(socket, origin) {
                self.shard.handle_attached(SlotId(slot), departure.listener, &departure.bytes, now);
                self.actions()?;
            }
        }
        Ok(self.exchange.turn_max() > 0)
    }

    fn accept_again(&mut self, now: Now) -> io::Result<()> {
        for (id, listener) in self.listeners.iter_mut().enumerate() {
            if listener.again_ns.is_some_and(|when| when <= now.monotonic_ns) {
                listener.again_ns = None;
                self.ring.rearm_accept(ListenerId(id as u32))?;
            }
        }
        Ok(())
    }

    /// One SEND for every ready session, in batches, within the turn's budget of SENDs.
    fn flush(&mut self, now: Now) -> io::Result<bool> {
        let mut sends: [Option<Send>; SENDS_PER_SUBMIT] = [None; SENDS_PER_SUBMIT];
        let (mut done, full_before) = (0, self.ring.sends_full());
        while done < TURN_SENDS {
            self.gather.clear();
            self.shard.prepare_sends(now);
            let mut len = 0;
            while len < SENDS_PER_SUBMIT
                && self.gather.len() + SEND_BYTES_MAX <= GATHER_BYTES
                && let Some(send) = self.shard.poll_send(&mut self.gather, now)
            {
                sends[len] = Some(send);
                len += 1;
            }
            if len == 0 {
                break;
            }
            done += len;
            let mut batch: [(u32, &[u8]); SENDS_PER_SUBMIT] = [(0, &[]); SENDS_PER_SUBMIT];
            for (entry, send) in batch.iter_mut().zip(sends.iter().flatten()).take(len) {
                *entry = (send.slot.0, self.shard.send_bytes(send, &self.gather));
            }
            let mut outcomes = [(0, Sent::Whole); SENDS_PER_SUBMIT];
            self.ring
                .send_batch(&batch[..len], |index, sent| outcomes[index] = (batch[index].1.len(), sent))?;
            for (send, (bytes, sent)) in sends.iter().flatten().zip(outcomes).take(len) {
                match sent {
                    Sent::Whole => self.shard.handle_sent(send.slot, bytes, false, now),
                    Sent::Parked => self.shard.handle_sent(send.slot, bytes, true, now),
                    // The event that says why is on its way.
                    Sent::Failed => {}
                }
            }
        }
        self.sends = self.sends.wrapping_add(done as u64);
        let full = self.ring.sends_full() - full_before;
        if full > 0 {
            self.shard.counters().add(Counter::SendsFull, full);
        }
        Ok(done > 0)
    }

    fn actions(&mut self) -> io::Result<bool> {
        let mut any = false;
        while let Some(action) = self.shard.poll_action() {
            any = true;
            match action {
                Action::PauseReceive(slot) => self.ring.pause_receive(slot.0)?,
                Action::ResumeReceive(slot) => self.ring.resume_receive(slot.0)?,
                Action::ShutdownWrite(slot) => self.ring.shutdown_write(slot.0)?,
                Action::HandshakeDone(slot) => self.ring.settle(slot.0),
                Action::HandOver(slot) => self.ring.detach(slot.0)?,
                Action::Close(slot) => {
                    self.gate.leave(slot.0);
                    self.ring.close(slot.0)?;
                }
            }
        }
        Ok(any)
    }

    /// Whether everything that stopping takes has been done.
    fn stopped(&self) -> bool {
        self.phase == Phase::Sessions && self.shard.sessions_len() == 0 && self.ring.in_use() == 0
    }

    /// The next phase of stopping, once what it waits for holds on every shard, or time is up.
    fn advance_stop(&mut self, now: Now) -> io::Result<bool> {
        let before = self.phase;
        let late = self.stop.mesh_deadline_ns() <= now.monotonic_ns;
        match self.phase {
            Phase::Running if self.stop.is_requested() => {
                self.ring.stop_accepting()?;
                self.shard.stop_input();
                self.phase = Phase::Requests;
            }
            Phase::Running => {}
            Phase::Requests => {
                if self.shard.requests_flushed() && self.exchange.have_left() {
                    self.stop.arrive(self.shard.id(), Wait::Requests);
                }
                let nothing_comes = !self.exchange.has_input();
                if late || (self.stop.is_over(Wait::Requests, &mut self.mesh) && nothing_comes) {
                    self.phase = Phase::Deliveries;
                }
            }
            Phase::Deliveries => {
                if self.shard.deliveries_flushed() {
                    self.stop.arrive(self.shard.id(), Wait::Deliveries);
                }
                if late || self.stop.is_over(Wait::Deliveries, &mut self.mesh) {
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
mod tests {
    use super::*;

    #[test]
    fn a_round_ends_when_all_that_stood_ready_have_had_a_send() {
        let (round, ends) = Round::after(None, 7, 1_024, 3_976);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 3_976 }), false));
        // Meanwhile all have ticks again: they stand behind, and are not waited for.
        let (round, ends) = Round::after(round, 8, 1_024, 5_000);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 2_952 }), false));
        let (round, ends) = Round::after(round, 9, 2_952, 5_000);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 0 }), true));
    }

    #[test]
    fn a_round_ends_when_those_who_stood_ready_are_gone() {
        let (round, _) = Round::after(None, 7, 1_024, 976);
        let (round, ends) = Round::after(round, 8, 0, 0);
        assert_eq!((round, ends), (Some(Round { since_ns: 7, left: 0 }), true));
    }

    #[test]
    fn a_turn_without_sends_begins_no_round() {
        assert_eq!(Round::after(None, 7, 0, 0), (None, false));
        assert_eq!(Round::after(None, 7, 100, 0), (Some(Round { since_ns: 7, left: 0 }), true));
    }
}
