//! One shard's loop, the one task of a pinned glommio executor: drives the data ring, the mesh and the shard in turns,
//! and sleeps in the ring when there is nothing to do.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use super::{
    data_ring::{DataRing, Event, Sent},
    stop::{Stop, Wait},
};
use crate::{
    clock::{self, Now},
    counters::Counter,
    limits::{ACCEPT_RETRY_MS, GATHER_BYTES, SEND_BYTES_MAX, SENDS_PER_SUBMIT, TURN_EVENTS, TURN_SENDS},
    mesh::Mesh,
    ring::Doorbell,
    shard::{Action, Door, Send, Shard},
};

/// How often deadlines are looked at while any is pending: they are late by at most this.
const TIMER_TICK_NS: u64 = 50_000_000;

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
    /// Connections of the whole server; touched only as they come and go.
    pub connections: Arc<AtomicUsize>,
    /// Most of them.
    pub clients_max: usize,
    gather: Vec<u8>,
    /// When to accept again, by door, after accepting failed.
    accept_again_ns: [Option<u64>; 2],
    /// Accepting failed at the last attempt, and the log says so.
    accept_fails: [bool; 2],
    phase: Phase,
}

impl Driver {
    /// Puts the parts together. [`Driver::run`] does the rest.
    pub fn new(
        shard: Shard,
        ring: DataRing,
        mesh: Mesh,
        bell: Arc<Doorbell>,
        stop: Arc<Stop>,
        connections: Arc<AtomicUsize>,
        clients_max: usize,
    ) -> Driver {
        let gather = Vec::with_capacity(GATHER_BYTES);
        let (accept_again_ns, accept_fails, phase) = ([None; 2], [false; 2], Phase::Running);
        Driver {
            shard,
            ring,
            mesh,
            bell,
            stop,
            connections,
            clients_max,
            gather,
            accept_again_ns,
            accept_fails,
            phase,
        }
    }

    /// Turns until the server has stopped. With nothing to do it sleeps in the data ring: it is the executor's one task,
    /// and one enter is cheaper than glommio's seven and a membarrier (12.3 us of CPU a delivery against 15.3, at 1,000
    /// ticks/s to 10 clients). It never yields either: see `PREEMPT_TIMER`.
    ///
    /// # Errors
    /// When the data ring or the doorbell is beyond use.
    pub async fn run(mut self) -> io::Result<()> {
        let bell = self.bell.clone();
        while !self.stopped() {
            self.shard.counters().add(Counter::Turns, 1);
            if !self.turn()? {
                bell.sleep(|| self.look_and_wait())?;
            }
        }
        Ok(())
    }

    /// After a turn that did nothing, with the doorbell armed.
    fn look_and_wait(&mut self) -> io::Result<()> {
        if self.may_sleep()? {
            self.shard.counters().add(Counter::Parks, 1);
            self.ring.wait()?;
        }
        Ok(())
    }

    /// One turn. Returns whether anything was done.
    fn turn(&mut self) -> io::Result<bool> {
        let now = clock::now();
        self.ring.poll()?;
        let mut worked = self.events(now)?;
        worked |= self.mesh.take_in(&mut self.shard, now);
        worked |= self.shard.turn(now);
        worked |= self.flush(now)?;
        worked |= self.actions()?;
        worked |= self.mesh.push_out(&mut self.shard);
        self.shard.end_turn();
        self.accept_again(now)?;
        worked |= self.advance_stop(now)?;
        Ok(worked)
    }

    /// Whether nothing has come since the turn.
    fn may_sleep(&mut self) -> io::Result<bool> {
        if self.shard.next_deadline().is_some()
            || self.accept_again_ns.iter().any(Option::is_some)
            || self.phase != Phase::Running
        {
            self.ring.arm_timer(TIMER_TICK_NS)?;
        }
        self.ring.poll()?;
        let asked_to_stop = self.phase == Phase::Running && self.stop.is_requested();
        let work_waits =
            self.ring.has_events() || self.mesh.look_again(&mut self.shard) || self.shard.is_busy();
        Ok(!work_waits && !asked_to_stop && !self.stopped())
    }

    fn events(&mut self, now: Now) -> io::Result<bool> {
        for handled in 0..TURN_EVENTS {
            let Some(event) = self.ring.next_event() else { return Ok(handled > 0) };
            match event {
                Event::Received(received) => {
                    // Once the server stops, nothing more is taken from clients.
                    if self.phase == Phase::Running {
                        self.shard.handle_bytes(received.slot, self.ring.bytes(&received), now);
                    }
                    self.ring.recycle(received);
                }
                Event::Accepted(door, socket) => self.accepted(door, socket, now),
                Event::AcceptFailed(door, errno) => {
                    if !std::mem::replace(&mut self.accept_fails[door as usize], true) {
                        ::log::warn!(
                            "accept: {}: trying again every {ACCEPT_RETRY_MS} ms (raise LimitNOFILE if descriptors ran out)",
                            io::Error::from_raw_os_error(errno)
                        );
                    }
                    self.accept_again_ns[door as usize] =
                        Some(now.monotonic_ns + ACCEPT_RETRY_MS * 1_000_000);
                }
                Event::Eof(slot) => self.shard.handle_eof(slot, now),
                Event::Failed(slot, errno) => self.shard.handle_error(slot, errno, now),
                Event::Writable(slot) => self.shard.handle_writable(slot),
                Event::Timer => {}
            }
            // Closes come before the next event, so that none of a closed socket's is handled.
            self.actions()?;
        }
        Ok(true)
    }

    fn accepted(&mut self, door: Door, socket: OwnedFd, now: Now) {
        self.accept_fails[door as usize] = false;
        let taken =
            if self.connections.fetch_add(1, SeqCst) < self.clients_max && self.phase == Phase::Running {
                self.ring.add(socket).map_err(|error| ::log::warn!("a connection is refused: {error}")).ok()
            } else {
                None
            };
        match taken {
            Some(slot) => self.shard.handle_accept(slot, door, now),
            None => {
                self.connections.fetch_sub(1, SeqCst);
                self.shard.counters().add(Counter::SessionsRefused, 1);
            }
        }
    }

    fn accept_again(&mut self, now: Now) -> io::Result<()> {
        for door in [Door::Native, Door::Http] {
            if self.accept_again_ns[door as usize].is_some_and(|when| when <= now.monotonic_ns) {
                self.accept_again_ns[door as usize] = None;
                self.ring.rearm_accept(door)?;
            }
        }
        Ok(())
    }

    /// One SEND for every ready session, in batches, within the turn's budget.
    fn flush(&mut self, now: Now) -> io::Result<bool> {
        let mut sends: [Option<Send>; SENDS_PER_SUBMIT] = [None; SENDS_PER_SUBMIT];
        let mut done = 0;
        while done < TURN_SENDS {
            self.gather.clear();
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
                *entry = (send.slot, self.shard.send_bytes(send, &self.gather));
            }
            let mut outcomes = [(0, Sent::Whole); SENDS_PER_SUBMIT];
            self.ring
                .send_batch(&batch[..len], |index, sent| outcomes[index] = (batch[index].1.len(), sent))?;
            for (send, (bytes, sent)) in sends.iter().flatten().zip(outcomes).take(len) {
                match sent {
                    Sent::Whole => self.shard.handle_sent(send.slot, bytes, false),
                    Sent::Parked => self.shard.handle_sent(send.slot, bytes, true),
                    // The event that says why is on its way.
                    Sent::Failed => {}
                }
            }
        }
        Ok(done > 0)
    }

    fn actions(&mut self) -> io::Result<bool> {
        let mut any = false;
        while let Some(action) = self.shard.poll_action() {
            any = true;
            match action {
                Action::PauseReceive(slot) => self.ring.pause_receive(slot)?,
                Action::ResumeReceive(slot) => self.ring.resume_receive(slot)?,
                Action::ShutdownWrite(slot) => self.ring.shutdown_write(slot)?,
                Action::Close(slot) => {
                    self.connections.fetch_sub(1, SeqCst);
                    self.ring.close(slot)?;
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
                self.shard.stop_taking_input();
                self.phase = Phase::Requests;
            }
            Phase::Running => {}
            Phase::Requests => {
                if self.shard.requests_have_left() {
                    self.stop.arrive(self.shard.id(), Wait::Requests);
                }
                if late || self.stop.is_over(Wait::Requests, &mut self.mesh) {
                    self.phase = Phase::Deliveries;
                }
            }
            Phase::Deliveries => {
                if self.shard.deliveries_have_left() {
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
