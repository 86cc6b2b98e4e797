//! The data plane: one raw io_uring beside the executor, holding every socket of a shard.
//!
//! - Sockets are registered files; the process's descriptor is kept until the handshake is done, for a socket that is
//!   to go to another shard, and closed then.
//! - Receiving is one multishot RECV a socket into a shared ring of provided buffers.
//! - Sending is `SEND` with `MSG_DONTWAIT | MSG_WAITALL` and skip-success: it is over when `io_uring_enter` returns,
//!   a full one leaves no completion, and the kernel keeps no pointer. What a slow socket did not take is copied once
//!   and parked as the one SEND that may wait in the kernel.
//! - A shard with nothing to do sleeps in `io_uring_enter` on this ring; other threads wake it through an eventfd, of
//!   which the ring keeps one READ.
//!
//! It knows slots and bytes, nothing of sessions. One thread: the one that made it.

mod completion;
mod descriptor;
mod detach;
mod event;

use std::{
    collections::VecDeque,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
};

use io_uring::{
    IoUring, opcode,
    squeue::{self, Flags},
    types::{CancelBuilder, Fd, Fixed, Timespec},
};

use self::descriptor::Installed;
pub use self::event::{Event, ListenerId, Received, Sent, Settings, eventfd};
use super::{
    buffer_ring::{BufferRing, GROUP},
    shim::{Direct, Operation, Shim, Verdict},
};
use crate::{
    clock,
    limits::{DATA_RING_COMPLETIONS, DATA_RING_ENTRIES, SENDS_PER_SUBMIT},
};

/// Attempts of one `io_uring_enter` that the kernel has no memory for now (EAGAIN) before giving up, with a pause of
/// 1 ms each.
const ENTER_ATTEMPTS_MAX: u32 = 1_000;
/// Attempts to make the kernel let go of its last operations at shutdown, up to 50 ms each.
const CANCEL_ATTEMPTS_MAX: u32 = 100;
/// An armed timer that rings later than asked for by no more than this is left alone.
const TIMER_SLACK_NS: u64 = 1_000_000;
/// Completions copied out of the ring at a time.
const REAP_BATCH: usize = 256;

// user_data = operation:8 | extra:24 | slot:32; extra is the slot's generation, or the index in a batch of SENDs.
const SEND: u8 = 1;
const SEND_PARKED: u8 = 2;
const RECEIVE: u8 = 3;
const ACCEPT: u8 = 4;
const TIMER: u8 = 5;
const DOORBELL: u8 = 6;
const SHUTDOWN: u8 = 7;
const IGNORED: u8 = 8;
const INSTALL: u8 = 9;

/// What a slot's socket is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Vacant,
    Open,
    /// Everything has been cancelled; vacant once nothing is in flight.
    Closing,
}

/// One socket.
///
/// Invariant: `detaching` only while `Open` and `receive_paused`.
/// Invariant: `Closing` only while `receive_armed`, `shutting` or `parked`; a slot is vacated the moment none is.
#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
    receive_armed: bool,
    receive_paused: bool,
    /// The socket is to be taken out once its receive is over.
    detaching: bool,
    /// The process's own descriptor of the socket, until [`DataRing::settle`].
    plain: Option<OwnedFd>,
    /// A SHUTDOWN is on its way to a worker, which looks the registered file up only then: until it is over, nobody
    /// else may have the slot.
    shutting: bool,
    /// What the parked SEND has yet to send: the kernel reads it until its completion.
    parked: Option<Parked>,
}

#[derive(Debug)]
struct Parked {
    bytes: Box<[u8]>,
    sent: usize,
}

/// The ring, its sockets and its buffers.
///
/// Invariant: `in_flight` counts the operations that hold a slot, a listener or memory of ours: multishot receives,
/// parked SENDs, shutdowns, accepts, the timer and the doorbell.
/// Invariant: outside `send_batch` no SEND of the fast kind is in flight.
pub struct DataRing<S: Shim = Direct> {
    // Closed before the buffers go; `Drop` has quieted the kernel before either.
    ring: IoUring,
    buffers: BufferRing,
    doorbell: OwnedFd,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Receives that ended for want of buffers: armed again once the waiting events are handled.
    starved: Vec<u32>,
    /// With the generation of the slot it is about. Bound: the completion queue and what the shim splits.
    events: VecDeque<(u32, Event)>,
    in_flight: usize,
    /// By [`ListenerId`]; `None` for one that another ring accepts on, and once accepting has stopped.
    listeners: Vec<Option<OwnedFd>>,
    timer: Box<Timespec>,
    /// When it rings, CLOCK_MONOTONIC nanoseconds; `None` while it is not armed.
    timer_rings_ns: Option<u64>,
    /// What the READ of the doorbell writes.
    rung: Box<u64>,
    doorbell_armed: bool,
    /// What became of the last descriptor that was asked for.
    installed: Option<Installed>,
    /// SENDs that found their socket full.
    sends_full: u64,
    /// A batch of SENDs failed halfway: queued entries may point to memory that is gone. Never entered again.
    broken: bool,
    shim: S,
    /// SINGLE_ISSUER: the ring belongs to the thread that made it.
    not_send: PhantomData<Rc<()>>,
}

impl DataRing<Direct> {
    /// A ring that talks to the kernel directly.
    ///
    /// # Errors
    /// What io_uring_setup(2), io_uring_register(2), eventfd(2) and mmap(2) say.
    pub fn new(settings: Settings, doorbell: OwnedFd) -> io::Result<DataRing> {
        DataRing::with_shim(settings, doorbell, Direct)
    }
}

impl<S: Shim> DataRing<S> {
    /// A ring whose operations `shim` decides about. `doorbell` is an eventfd.
    ///
    /// # Errors
    /// As [`DataRing::new`].
    pub fn with_shim(settings: Settings, doorbell: OwnedFd, shim: S) -> io::Result<DataRing<S>> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Else submit() never asks for the completions that were deferred.
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(DATA_RING_COMPLETIONS)
            .setup_clamp()
            .build(DATA_RING_ENTRIES)?;
        ring.submitter().register_files_sparse(settings.slots)?;
        // SHUTDOWN always runs on a worker; two are plenty for goodbyes.
        ring.submitter().register_iowq_max_workers(&mut [2, 2])?;
        let buffers = BufferRing::new(&ring, settings.receive_buffers, settings.receive_buffer_bytes)?;
        let vacant = |_| Slot {
            generation: 0,
            state: State::Vacant,
            receive_armed: false,
            receive_paused: false,
            detaching: false,
            plain: None,
            shutting: false,
            parked: None,
        };
        Ok(DataRing {
            ring,
            buffers,
            doorbell,
            slots: (0..settings.slots).map(vacant).collect(),
            free: (0..settings.slots).rev().collect(),
            starved: Vec::new(),
            events: VecDeque::new(),
            in_flight: 0,
            listeners: Vec::new(),
            timer: Box::new(Timespec::new()),
            timer_rings_ns: None,
            rung: Box::new(0),
            doorbell_armed: false,
            installed: None,
            sends_full: 0,
            broken: false,
            shim,
            not_send: PhantomData,
        })
    }

    /// The shim, for tests to set.
    pub fn shim_mut(&mut self) -> &mut S {
        &mut self.shim
    }

    /// Slots in use, closing ones included.
    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Accepts connections on a listening socket until [`DataRing::stop_accepting`].
    pub fn accept(&mut self, id: ListenerId, listener: OwnedFd) -> io::Result<()> {
        let at = id.0 as usize;
        if self.listeners.len() <= at {
            self.listeners.resize_with(at + 1, || None);
        }
        self.listeners[at] = Some(listener);
        self.rearm_accept(id)
    }

    /// Accepts again after [`Event::AcceptFailed`]. Call it after a pause: at EMFILE the kernel answers at once.
    pub fn rearm_accept(&mut self, id: ListenerId) -> io::Result<()> {
        let Some(Some(listener)) = self.listeners.get(id.0 as usize) else { return Ok(()) };
        if let Verdict::Fail(errno) = self.shim.decide(Operation::Accept) {
            self.events.push_back((0, Event::AcceptFailed(id, errno)));
            return Ok(());
        }
        let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(user_data(ACCEPT, 0, id.0));
        self.in_flight += 1;
        self.push(accept)
    }

    /// Closes the listeners. Connections already accepted still come as events.
    pub fn stop_accepting(&mut self) -> io::Result<()> {
        for id in 0..self.listeners.len() {
            if self.listeners[id].take().is_some() {
                self.cancel(user_data(ACCEPT, 0, id as u32))?;
            }
        }
        Ok(())
    }

    /// Takes a socket and starts receiving from it. From [`DataRing::settle`] on the registered file is the only
    /// reference to it.
    ///
    /// # Errors
    /// ENFILE when every slot is taken; the registration's. The socket is closed then.
    pub fn add(&mut self, socket: OwnedFd) -> io::Result<u32> {
        let slot = *self.free.last().ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
        self.ring.submitter().register_files_update(slot, &[socket.as_raw_fd()])?;
        self.free.pop();
        let entry = &mut self.slots[slot as usize];
        debug_assert!(entry.state == State::Vacant && !entry.receive_armed && entry.parked.is_none());
        entry.generation = (entry.generation + 1) & 0xff_ffff;
        entry.state = State::Open;
        (entry.receive_paused, entry.detaching, entry.plain) = (false, false, Some(socket));
        self.arm_receive(slot)?;
        Ok(slot)
    }

    /// Stops receiving from a slot; what has already come is still handed over.
    pub fn pause_receive(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        entry.receive_paused = true;
        match entry.receive_armed {
            true => self.cancel(self.of_slot(RECEIVE, slot)),
            false => Ok(()),
        }
    }

    /// Receives again.
    pub fn resume_receive(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        (entry.receive_paused, entry.detaching) = (false, false);
        // If the cancellation is still under way, its completion finds the slot willing and arms it.
        match entry.state == State::Open && !entry.receive_armed {
            true => self.arm_receive(slot),
            false => Ok(()),
        }
    }

    /// Shuts the write side: the peer gets FIN after what was sent.
    pub fn shutdown_write(&mut self, slot: u32) -> io::Result<()> {
        let shutdown = opcode::Shutdown::new(Fixed(slot), libc::SHUT_WR).build();
        self.slots[slot as usize].shutting = true;
        self.in_flight += 1;
        self.push(shutdown.user_data(self.of_slot(SHUTDOWN, slot)))
    }

    /// Closes a socket: no event of it follows. The slot is vacant once the kernel has let go.
    pub fn close(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        if entry.state != State::Open {
            return Ok(());
        }
        (entry.state, entry.detaching, entry.plain) = (State::Closing, false, None);
        let (receiving, sending) = (entry.receive_armed, entry.parked.is_some());
        // A parked operation holds the socket: the peer sees no FIN until it is cancelled.
        if receiving {
            self.cancel(self.of_slot(RECEIVE, slot))?;
        }
        if sending {
            self.cancel(self.of_slot(SEND_PARKED, slot))?;
        }
        self.vacate_if_quiet(slot)
    }

    /// Rings once, at the latest so long from now. There is one timer: an armed one is set earlier if need be, never
    /// later, so who is woken early arms it again.
    pub fn arm_timer(&mut self, after_ns: u64) -> io::Result<()> {
        let rings_ns = clock::monotonic_ns().saturating_add(after_ns);
        let armed_ns = self.timer_rings_ns;
        if armed_ns.is_some_and(|armed_ns| armed_ns <= rings_ns.saturating_add(TIMER_SLACK_NS)) {
            return Ok(());
        }
        // Both operations copy it as they are submitted, in this order.
        *self.timer = Timespec::new().sec(after_ns / 1_000_000_000).nsec((after_ns % 1_000_000_000) as u32);
        self.timer_rings_ns = Some(rings_ns);
        let (timer, name) = (&raw const *self.timer, user_data(TIMER, 0, 0));
        if armed_ns.is_some() {
            // If it has just rung there is nothing to set, and its completion is on the way: that wakes as well.
            let update = opcode::TimeoutUpdate::new(name, timer).build();
            return self.push(update.user_data(user_data(IGNORED, 0, 0)));
        }
        self.in_flight += 1;
        self.push(opcode::Timeout::new(timer).build().user_data(name))
    }

    /// Sends `bytes` to each slot, at most one SEND a slot and [`SENDS_PER_SUBMIT`] in all. On return the kernel
    /// holds no pointer into any of them; `outcome` has been told of each, by its index.
    ///
    /// # Errors
    /// Only when the ring itself is beyond use.
    pub fn send_batch(&mut self, sends: &[(u32, &[u8])], outcome: impl FnMut(usize, Sent)) -> io::Result<()> {
        let result = self.try_send_batch(sends, outcome);
        self.broken |= result.is_err();
        result
    }

    fn try_send_batch(
        &mut self,
        sends: &[(u32, &[u8])],
        mut outcome: impl FnMut(usize, Sent),
    ) -> io::Result<()> {
        assert!(sends.len() <= SENDS_PER_SUBMIT, "the index goes into 24 bits and the batch into the queue");
        let mut short: [Option<i32>; SENDS_PER_SUBMIT] = [None; SENDS_PER_SUBMIT];
        for (index, &(slot, bytes)) in sends.iter().enumerate() {
            debug_assert!(self.slots[slot as usize].parked.is_none(), "never two SENDs on one socket");
            let (len, flags) = match self.shim.decide(Operation::Send(bytes.len())) {
                Verdict::Pass => (bytes.len(), Flags::SKIP_SUCCESS),
                // A truncated SEND that succeeds must say so.
                Verdict::Truncate(len) => (len.clamp(1, bytes.len()), Flags::empty()),
                Verdict::Fail(errno) => {
                    short[index] = Some(-errno);
                    continue;
                }
            };
            let send = opcode::Send::new(Fixed(slot), bytes.as_ptr(), len as u32)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL)
                .build()
                .flags(flags)
                .user_data(user_data(SEND, index as u32, slot));
            self.push(send)?;
        }
        self.drive(&mut short)?;
        for (index, &(slot, bytes)) in sends.iter().enumerate() {
            let sent = match short[index] {
                None => Sent::Whole,
                Some(sent) if sent >= 0 && sent as usize >= bytes.len() => Sent::Whole,
                Some(sent) if sent >= 0 || sent == -libc::EAGAIN => {
                    self.sends_full += u64::from(sent <= 0);
                    self.park(slot, &bytes[sent.max(0) as usize..])?;
                    Sent::Parked
                }
                Some(error) => {
                    self.queue(slot, Event::Failed(slot, -error));
                    Sent::Failed
                }
            };
            outcome(index, sent);
        }
        Ok(())
    }

    /// Submits what is queued and takes in what has completed, until the kernel is quiet.
    ///
    /// # Errors
    /// Only when the ring itself is beyond use.
    pub fn poll(&mut self) -> io::Result<()> {
        for slot in std::mem::take(&mut self.starved) {
            let entry = &self.slots[slot as usize];
            if entry.state == State::Open && !entry.receive_armed && !entry.receive_paused {
                self.arm_receive(slot)?;
            }
        }
        self.drive(&mut [])
    }

    /// Sleeps until something completes or another thread writes to the doorbell's eventfd. To be called after the
    /// sleep was announced there and everything was looked at once more; one `io_uring_enter`.
    ///
    /// # Errors
    /// Only when the ring itself is beyond use.
    pub fn wait(&mut self) -> io::Result<()> {
        if !self.doorbell_armed {
            self.doorbell_armed = true;
            self.in_flight += 1;
            let read =
                opcode::Read::new(Fd(self.doorbell.as_raw_fd()), (&raw mut *self.rung).cast(), 8).build();
            self.push(read.user_data(user_data(DOORBELL, 0, 0)))?;
        }
        self.enter(1)?;
        self.poll()
    }

    /// The next event. Those of sockets that have been closed since are skipped, even if their slot is in use again.
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some((generation, event)) = self.events.pop_front() {
            let (Event::Received(Received { slot, .. })
            | Event::Eof(slot)
            | Event::Failed(slot, _)
            | Event::Writable(slot)
            | Event::Detached(slot)) = event
            else {
                return Some(event);
            };
            let entry = &self.slots[slot as usize];
            if entry.state == State::Open && entry.generation == generation {
                return Some(event);
            }
            if let Event::Received(received) = event {
                self.recycle(received);
            }
        }
        None
    }

    fn queue(&mut self, slot: u32, event: Event) {
        self.events.push_back((self.slots[slot as usize].generation, event));
    }

    /// Whether events wait.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty() || !self.starved.is_empty()
    }

    /// The bytes of a [`Event::Received`].
    pub fn bytes(&self, received: &Received) -> &[u8] {
        &self.buffers.bytes(received.buffer, (received.start + received.len) as usize)
            [received.start as usize..]
    }

    /// Gives the buffer back to the kernel.
    pub fn recycle(&mut self, received: Received) {
        if received.last {
            self.buffers.put(received.buffer);
        }
    }

    /// Enters the kernel and reaps until nothing is left to do.
    ///
    /// The kernel's task-run flag is a hint: it is set after the work was queued, and a thread that ran the work in
    /// between finds it set with nothing to run, until the next work comes (seen on Linux 6.18: a shard turned here for
    /// good). So once the kernel was asked and gave nothing, it is quiet; for what it queued since, [`DataRing::wait`]
    /// returns at once.
    fn drive(&mut self, short: &mut [Option<i32>]) -> io::Result<()> {
        let mut batch = [(0u64, 0i32, 0u32); REAP_BATCH];
        loop {
            let queue = self.ring.submission();
            let asks = queue.taskrun() || queue.cq_overflow();
            let enter = asks || !queue.is_empty();
            drop(queue);
            if enter {
                self.enter(0)?;
            }
            let mut len = 0;
            for entry in self.ring.completion().take(REAP_BATCH) {
                batch[len] = (entry.user_data(), entry.result(), entry.flags());
                len += 1;
            }
            for &(data, result, flags) in &batch[..len] {
                self.complete(data, result, flags, short)?;
            }
            let queue = self.ring.submission();
            let asks_again = !asks && (queue.taskrun() || queue.cq_overflow());
            if len == 0 && queue.is_empty() && !asks_again {
                return Ok(());
            }
        }
    }

    /// Submits, runs deferred work, and waits for `wanted` completions.
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the data ring has failed before"));
        }
        for _ in 0..ENTER_ATTEMPTS_MAX {
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    // Interrupted, or the completion queue has overflowed and reaping makes room: the caller looks at
                    // the queues, and comes again if anything is left.
                    Some(libc::EINTR | libc::EBUSY) => return Ok(()),
                    Some(libc::EAGAIN) => clock::sleep_ns(1_000_000),
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what entries point to outlives their use by the kernel: fast SENDs are over before `send_batch`
        // returns its borrow (or the ring is broken, and what is still queued is never submitted), parked bytes stay boxed in their slot and the timespec and the doorbell's word until their
        // completion, and `Drop` cancels and reaps before any of it is freed.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.enter(0)?;
        }
        Ok(())
    }

    fn cancel(&mut self, target: u64) -> io::Result<()> {
        self.push(opcode::AsyncCancel::new(target).build().user_data(user_data(IGNORED, 0, 0)))
    }

    fn arm_receive(&mut self, slot: u32) -> io::Result<()> {
        if let Verdict::Fail(errno) = self.shim.decide(Operation::Receive) {
            return self.receive_ended(slot, -errno);
        }
        let receive =
            opcode::RecvMulti::new(Fixed(slot), GROUP).build().user_data(self.of_slot(RECEIVE, slot));
        self.slots[slot as usize].receive_armed = true;
        self.in_flight += 1;
        self.push(receive)
    }

    fn park(&mut self, slot: u32, rest: &[u8]) -> io::Result<()> {
        self.slots[slot as usize].parked = Some(Parked { bytes: rest.into(), sent: 0 });
        self.send_parked(slot)
    }

    /// One SEND that may wait in the kernel until the socket has taken everything.
    fn send_parked(&mut self, slot: u32) -> io::Result<()> {
        let Some(parked) = &self.slots[slot as usize].parked else { return Ok(()) };
        let rest = &parked.bytes[parked.sent..];
        let len = match self.shim.decide(Operation::SendParked(rest.len())) {
            Verdict::Pass => rest.len(),
            Verdict::Truncate(len) => len.clamp(1, rest.len()),
            Verdict::Fail(errno) => return self.parked_ended(slot, -errno),
        };
        let send = opcode::Send::new(Fixed(slot), rest.as_ptr(), len as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .user_data(self.of_slot(SEND_PARKED, slot));
        self.in_flight += 1;
        self.push(send)
    }

    fn of_slot(&self, operation: u8, slot: u32) -> u64 {
        user_data(operation, self.slots[slot as usize].generation, slot)
    }
}

impl<S: Shim> Drop for DataRing<S> {
    /// Makes the kernel let go of every pointer, then frees. If it will not within seconds, the memory is leaked
    /// rather than freed under the kernel's hands.
    fn drop(&mut self) {
        let _ = self.stop_accepting();
        let _ = self.cancel(user_data(DOORBELL, 0, 0));
        for slot in 0..self.slots.len() as u32 {
            let _ = self.close(slot);
        }
        for _ in 0..CANCEL_ATTEMPTS_MAX {
            let _ = self.drive(&mut []);
            if self.in_flight == 0 || self.broken {
                break;
            }
            let timeout = Some(Timespec::new().nsec(50_000_000));
            let _ = self.ring.submitter().register_sync_cancel(timeout, CancelBuilder::any());
        }
        let _ = self.ring.submitter().unregister_buf_ring(GROUP);
        if self.in_flight > 0 {
            ::log::error!("data ring: {} operations did not end; their memory is leaked", self.in_flight);
            for slot in &mut self.slots {
                std::mem::forget(slot.parked.take());
            }
            std::mem::forget(std::mem::replace(&mut self.timer, Box::new(Timespec::new())));
            std::mem::forget(std::mem::take(&mut self.rung));
        }
        // Sockets that were accepted and never taken are closed with their events.
        self.events.clear();
    }
}

fn user_data(operation: u8, extra: u32, slot: u32) -> u64 {
    u64::from(operation) << 56 | u64::from(extra) << 32 | u64::from(slot)
}
