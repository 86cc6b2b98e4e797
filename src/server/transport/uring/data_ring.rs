//! The data plane: a raw io_uring beside the executor's, which holds every socket of a shard.
//!
//! - Sockets are registered files. The process's own descriptor is closed once the handshake is done; until then the
//!   socket may still move to another shard.
//! - Receiving is one multishot RECV per socket into a shared ring of provided buffers.
//! - Sending is `SEND` with `MSG_DONTWAIT | MSG_WAITALL` and skip-success: a SEND is over when `io_uring_enter` returns. If it
//!   sent everything, it leaves no completion, and the kernel keeps no pointer. The bytes that a slow socket did not accept
//!   are copied once and parked: one SEND per socket may wait in the kernel.
//! - An idle shard sleeps in `io_uring_enter` on this ring. Other threads wake it through an eventfd, on which the ring
//!   keeps a READ.
//!
//! The ring handles slots and bytes, and knows nothing about sessions. Only the thread that created it may use it.

mod completion;
mod descriptor;
mod detach;
mod event;
mod send;

use std::{
    collections::VecDeque,
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
};

use io_uring::{
    EnterFlags, IoUring, opcode, squeue,
    types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec},
};

pub use self::event::{Event, ListenerId, Received, Sent, Settings, eventfd};
use self::{descriptor::Installed, send::Parked};
use super::{
    buffer_ring::{BufferRing, GROUP},
    restrictions::restrict_and_enable,
    shim::{Direct, Operation, Shim, Verdict},
};
use crate::{
    clock,
    limits::{DATA_RING_COMPLETIONS, DATA_RING_ENTRIES},
};

/// Attempts of one `io_uring_enter` while the kernel is out of memory (EAGAIN), 1 ms apart.
const ENTER_ATTEMPTS_MAX: u32 = 1_000;
/// Attempts to cancel the last operations at shutdown, up to 50 ms each.
const CANCEL_ATTEMPTS_MAX: u32 = 100;
/// An armed timer is not moved if it fires at most this much later than requested.
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

/// The state of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Vacant,
    Open,
    /// Everything was cancelled; the slot becomes vacant once nothing is in flight.
    Closing,
}

/// One socket. 24 bytes.
///
/// Invariant: `detaching` only while `Open` and `receive_paused`.
/// Invariant: `Closing` only while `receive_armed`, `shutting` or `parked`; a slot is vacated the moment none is.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    state: State,
    receive_armed: bool,
    receive_paused: bool,
    /// The socket leaves the ring once its receive is over.
    detaching: bool,
    /// The process's own descriptor of the socket, until [`DataRing::settle`].
    plain: Option<OwnedFd>,
    /// A SHUTDOWN is in flight. A worker looks up the registered file only when it runs, so the slot must not be reused
    /// before.
    shutting: bool,
    /// The parked SEND, whose bytes the kernel reads until its completion.
    parked: Option<Box<Parked>>,
}

impl Slot {
    /// Whether an operation on the socket is in flight.
    fn is_busy(&self) -> bool {
        self.receive_armed || self.shutting || self.parked.is_some()
    }

    fn invariants(&self) {
        let may_detach = self.state == State::Open && self.receive_paused;
        debug_assert!(!self.detaching || may_detach, "a socket leaves while it is open and paused");
        debug_assert!(self.state != State::Closing || self.is_busy(), "a slot that is quiet is vacant");
    }
}

const _: () = assert!(size_of::<Slot>() == 24, "the docs of Slot say how large it is");

/// The ring, its sockets and its buffers.
///
/// Invariant: `in_flight` counts the operations that hold a slot, a listener or memory of ours: multishot receives,
/// parked SENDs, shutdowns, accepts, the timer and the doorbell.
/// Invariant: outside `send_batch` no SEND of a batch is queued or in flight, unless the ring is poisoned.
pub struct DataRing<S: Shim = Direct> {
    // Closed before the buffers are freed. Before both, `Drop` ends the kernel's use of the buffers.
    ring: IoUring,
    buffers: BufferRing,
    doorbell: OwnedFd,
    /// Slots that have been used. At most `slots_max`.
    slots: Vec<Slot>,
    slots_max: u32,
    /// Vacant entries of `slots`.
    free: Vec<u32>,
    /// Slots whose receive ended for lack of buffers; armed again once the waiting events have been handled.
    starved: Vec<u32>,
    /// Events with the generation of their slot. Bound: the completion queue, plus what the shim splits.
    events: VecDeque<(u32, Event)>,
    in_flight: usize,
    /// By [`ListenerId`]; `None` if another ring accepts for it, or once accepting has stopped.
    listeners: Vec<Option<OwnedFd>>,
    timer: Box<Timespec>,
    /// When the timer fires, CLOCK_MONOTONIC nanoseconds; `None` while it is not armed.
    timer_fires_ns: Option<u64>,
    /// The target of the doorbell's READ.
    rung: Box<u64>,
    doorbell_armed: bool,
    /// The response to the last request for a descriptor.
    installed: Option<Installed>,
    /// SENDs so far that found the socket full.
    sends_full: u64,
    /// The ring has failed, or a batch of SENDs was abandoned. Queued entries may point to freed memory, so the ring submits
    /// nothing more.
    is_poisoned: bool,
    /// Flags for waiting: without NO_IOWAIT, the kernel counts the core of an idle shard as waiting for a disk.
    wait_flags: EnterFlags,
    shim: S,
    /// SINGLE_ISSUER: the ring belongs to the thread that created it.
    not_send: PhantomData<Rc<()>>,
}

impl DataRing<Direct> {
    /// Creates a ring that submits every operation as it is.
    ///
    /// # Errors
    /// Those of io_uring_setup(2), io_uring_register(2), eventfd(2) and mmap(2).
    pub fn new(settings: Settings, doorbell: OwnedFd) -> io::Result<DataRing> {
        DataRing::with_shim(settings, doorbell, Direct)
    }
}

impl<S: Shim> DataRing<S> {
    /// Creates a ring whose operations pass through `shim`. `doorbell` is an eventfd.
    ///
    /// # Errors
    /// As [`DataRing::new`].
    pub fn with_shim(settings: Settings, doorbell: OwnedFd, shim: S) -> io::Result<DataRing<S>> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Without it submit() never asks for deferred completions.
            .setup_taskrun_flag()
            .setup_submit_all()
            // Disabled until it is restricted.
            .setup_r_disabled()
            .setup_cqsize(DATA_RING_COMPLETIONS)
            .setup_clamp()
            .build(DATA_RING_ENTRIES)?;
        ring.submitter().register_files_sparse(settings.slots)?;
        // SHUTDOWN always runs on a worker; two are enough.
        ring.submitter().register_iowq_max_workers(&mut [2, 2])?;
        // SAFETY: `Drop` unregisters the group before the buffers are dropped, or leaks them.
        let buffers =
            unsafe { BufferRing::new(&ring, settings.receive_buffers, settings.receive_buffer_bytes)? };
        restrict_and_enable(&ring)?;
        let mut wait_flags = EnterFlags::GETEVENTS;
        wait_flags.set(EnterFlags::NO_IOWAIT, ring.params().is_feature_no_iowait());
        Ok(DataRing {
            ring,
            buffers,
            doorbell,
            slots: Vec::new(),
            slots_max: settings.slots,
            free: Vec::new(),
            starved: Vec::new(),
            events: VecDeque::new(),
            in_flight: 0,
            listeners: Vec::new(),
            timer: Box::new(Timespec::new()),
            timer_fires_ns: None,
            rung: Box::new(0),
            doorbell_armed: false,
            installed: None,
            sends_full: 0,
            is_poisoned: false,
            wait_flags,
            shim,
            not_send: PhantomData,
        })
    }

    /// The shim, for tests to configure.
    pub fn shim_mut(&mut self) -> &mut S {
        &mut self.shim
    }

    /// Whether the core of a shard that sleeps here counts as idle, not as waiting for a disk.
    pub fn waits_as_idle(&self) -> bool {
        self.wait_flags.contains(EnterFlags::NO_IOWAIT)
    }

    /// Slots in use, including closing ones.
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

    /// Resumes accepting after [`Event::AcceptFailed`]. Call it after a pause: at EMFILE the kernel responds at once.
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

    /// Closes the listeners. Events for connections already accepted still follow.
    pub fn stop_accepting(&mut self) -> io::Result<()> {
        for id in 0..self.listeners.len() {
            if self.listeners[id].take().is_some() {
                self.cancel(user_data(ACCEPT, 0, id as u32))?;
            }
        }
        Ok(())
    }

    /// Adds a socket and starts receiving from it. After [`DataRing::settle`] the registered file is the only reference to
    /// it.
    ///
    /// # Errors
    /// ENFILE if every slot is taken, or an error of the registration. The socket is closed.
    pub fn add(&mut self, socket: OwnedFd) -> io::Result<u32> {
        if !self.has_room() {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let slot = self.free.last().copied().unwrap_or(self.slots.len() as u32);
        self.ring.submitter().register_files_update(slot, &[socket.as_raw_fd()])?;
        if self.free.pop().is_none() {
            self.slots.push(Slot::default());
        }
        let entry = &mut self.slots[slot as usize];
        debug_assert!(entry.state == State::Vacant && !entry.receive_armed && entry.parked.is_none());
        entry.generation = (entry.generation + 1) & 0xff_ffff;
        entry.state = State::Open;
        (entry.receive_paused, entry.detaching, entry.plain) = (false, false, Some(socket));
        self.arm_receive(slot)?;
        Ok(slot)
    }

    /// Stops receiving from a slot. Events for bytes already received still follow.
    pub fn pause_receive(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        entry.receive_paused = true;
        match entry.receive_armed {
            true => self.cancel(self.of_slot(RECEIVE, slot)),
            false => Ok(()),
        }
    }

    /// Resumes receiving from a slot.
    pub fn resume_receive(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        (entry.receive_paused, entry.detaching) = (false, false);
        // If the cancellation is still in flight, its completion arms the receive again.
        match entry.state == State::Open && !entry.receive_armed {
            true => self.arm_receive(slot),
            false => Ok(()),
        }
    }

    /// Shuts down the write side: the peer gets FIN after the bytes sent before.
    pub fn shutdown_write(&mut self, slot: u32) -> io::Result<()> {
        let shutdown = opcode::Shutdown::new(Fixed(slot), libc::SHUT_WR).build();
        self.slots[slot as usize].shutting = true;
        self.in_flight += 1;
        self.push(shutdown.user_data(self.of_slot(SHUTDOWN, slot)))
    }

    /// Closes a socket, which causes no further events. The slot becomes vacant once none of its operations is in flight.
    pub fn close(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        if entry.state != State::Open {
            return Ok(());
        }
        (entry.state, entry.detaching, entry.plain) = (State::Closing, false, None);
        let (receiving, sending) = (entry.receive_armed, entry.parked.is_some());
        // An operation in flight holds the socket open: the peer gets no FIN until it is cancelled.
        if receiving {
            self.cancel(self.of_slot(RECEIVE, slot))?;
        }
        if sending {
            self.cancel(self.of_slot(SEND_PARKED, slot))?;
        }
        self.vacate_if_quiet(slot)
    }

    /// Requests an [`Event::Timer`] at most `after_ns` from now. There is one timer, which moves to an earlier time if
    /// needed and never to a later one: a caller woken early arms it again.
    pub fn arm_timer(&mut self, after_ns: u64) -> io::Result<()> {
        let fires_ns = clock::monotonic_ns().saturating_add(after_ns);
        let armed_ns = self.timer_fires_ns;
        if armed_ns.is_some_and(|armed_ns| armed_ns <= fires_ns.saturating_add(TIMER_SLACK_NS)) {
            return Ok(());
        }
        // Both operations copy the timespec when they are submitted, in this order.
        *self.timer = Timespec::new().sec(after_ns / 1_000_000_000).nsec((after_ns % 1_000_000_000) as u32);
        self.timer_fires_ns = Some(fires_ns);
        let (timer, name) = (&raw const *self.timer, user_data(TIMER, 0, 0));
        if armed_ns.is_some() {
            // If it has just fired, the update fails and its completion, already on the way, wakes the caller.
            let update = opcode::TimeoutUpdate::new(name, timer).build();
            return self.push(update.user_data(user_data(IGNORED, 0, 0)));
        }
        self.in_flight += 1;
        self.push(opcode::Timeout::new(timer).build().user_data(name))
    }

    /// Submits queued operations and handles completions, until there are none left.
    ///
    /// # Errors
    /// Only when the ring has failed for good.
    pub fn poll(&mut self) -> io::Result<()> {
        for slot in std::mem::take(&mut self.starved) {
            let entry = &self.slots[slot as usize];
            if entry.state == State::Open && !entry.receive_armed && !entry.receive_paused {
                self.arm_receive(slot)?;
            }
        }
        self.drive(&mut [])
    }

    /// Sleeps until an operation completes or another thread writes to the doorbell's eventfd. Call it from
    /// `Doorbell::sleep`, after the last check for work. One `io_uring_enter`.
    ///
    /// # Errors
    /// Only when the ring has failed for good.
    pub fn wait(&mut self) -> io::Result<()> {
        self.arm_doorbell()?;
        self.enter(1, None)?;
        self.poll()
    }

    /// As [`DataRing::wait`], for at most `ns`. Precise to the thread's timer slack.
    ///
    /// # Errors
    /// Only when the ring has failed for good.
    pub fn wait_for(&mut self, ns: u64) -> io::Result<()> {
        self.arm_doorbell()?;
        let timeout = Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32);
        self.enter(1, Some(&timeout))?;
        self.poll()
    }

    fn arm_doorbell(&mut self) -> io::Result<()> {
        if !self.doorbell_armed {
            self.doorbell_armed = true;
            self.in_flight += 1;
            let read =
                opcode::Read::new(Fd(self.doorbell.as_raw_fd()), (&raw mut *self.rung).cast(), 8).build();
            self.push(read.user_data(user_data(DOORBELL, 0, 0)))?;
        }
        Ok(())
    }

    /// The next event. Skips events of sockets closed in the meantime, even if their slot is in use again.
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

    /// Whether events are waiting.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty() || !self.starved.is_empty()
    }

    /// The bytes of an [`Event::Received`].
    pub fn bytes(&self, received: &Received) -> &[u8] {
        &self.buffers.bytes(&received.hold, (received.start + received.len) as usize)
            [received.start as usize..]
    }

    /// Returns the buffer of an [`Event::Received`] to the kernel.
    pub fn recycle(&mut self, received: Received) {
        self.buffers.release(received.hold);
    }

    /// Submits and reaps until nothing is left.
    ///
    /// The kernel's task-run flag is only a hint. It is set after work was queued. So a thread that ran the work in between finds
    /// the flag set but nothing to run, until more work is queued (on Linux 6.18 a shard looped here forever). Therefore an enter
    /// that yields nothing ends the loop. If work is queued after it, [`DataRing::wait`] returns at once.
    fn drive(&mut self, short: &mut [Option<i32>]) -> io::Result<()> {
        let mut batch = [(0u64, 0i32, 0u32); REAP_BATCH];
        loop {
            let queue = self.ring.submission();
            let asks = queue.taskrun() || queue.cq_overflow();
            let enter = asks || !queue.is_empty();
            drop(queue);
            if enter {
                self.enter(0, None)?;
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

    /// Submits, runs deferred work, and waits for `wanted` completions, or until the time is up.
    fn enter(&mut self, wanted: usize, timeout: Option<&Timespec>) -> io::Result<()> {
        if self.is_poisoned {
            return Err(io::Error::other("the data ring has failed and submits nothing more"));
        }
        for _ in 0..ENTER_ATTEMPTS_MAX {
            let entered = match wanted {
                0 => self.ring.submit(),
                _ => self.submit_and_wait(wanted, timeout),
            };
            match entered {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    // Interrupted, or the completion queue has overflowed and needs reaping: the caller checks the queues and
                    // enters again if anything is left.
                    // The time is up.
                    Some(libc::EINTR | libc::EBUSY | libc::ETIME) => return Ok(()),
                    Some(libc::EAGAIN) => clock::sleep_ns(1_000_000),
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Like the crate's function of this name, which cannot pass flags. (No SQ_WAKEUP: this ring has no SQPOLL thread.)
    fn submit_and_wait(&mut self, wanted: usize, timeout: Option<&Timespec>) -> io::Result<usize> {
        let (queued, flags) = (self.ring.submission().len(), self.wait_flags.bits());
        if let Some(timeout) = timeout {
            let arguments = SubmitArgs::new().timespec(timeout);
            let flags = flags | EnterFlags::EXT_ARG.bits();
            // SAFETY: `SubmitArgs` is a transparent io_uring_getevents_arg, as EXT_ARG wants it, and borrows the timespec. What
            // the queued entries point to is valid, as [`DataRing::push`] says.
            return unsafe {
                self.ring.submitter().enter(queued as u32, wanted as u32, flags, Some(&arguments))
            };
        }
        // SAFETY: without EXT_ARG the kernel reads a signal set, of which there is none. What the queued entries point to is
        // valid, as [`DataRing::push`] says.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued as u32, wanted as u32, flags, None) }
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what entries point to outlives the kernel's use of it. SENDs of a batch are over before `send_batch` returns
        // its borrow; if it is abandoned before, the ring is poisoned and never submits what is still queued. Parked
        // bytes stay boxed in their slot, and the timespec and the doorbell's word in the ring, until their completion;
        // `Drop` cancels and reaps before any of them is freed.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.enter(0, None)?;
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

    fn of_slot(&self, operation: u8, slot: u32) -> u64 {
        user_data(operation, self.slots[slot as usize].generation, slot)
    }
}

impl<S: Shim> Drop for DataRing<S> {
    /// Cancels every operation, then frees. If that takes more than seconds, or the ring is poisoned, the memory that the
    /// kernel may still use is leaked.
    fn drop(&mut self) {
        let _ = self.stop_accepting();
        let _ = self.cancel(user_data(DOORBELL, 0, 0));
        for slot in 0..self.slots.len() as u32 {
            let _ = self.close(slot);
        }
        for _ in 0..CANCEL_ATTEMPTS_MAX {
            let _ = self.drive(&mut []);
            if self.in_flight == 0 || self.is_poisoned {
                break;
            }
            let timeout = Some(Timespec::new().nsec(50_000_000));
            let _ = self.ring.submitter().register_sync_cancel(timeout, CancelBuilder::any());
        }
        let unregistered = self.ring.submitter().unregister_buf_ring(GROUP);
        if self.in_flight > 0 || unregistered.is_err() {
            ::log::error!("data ring: {} operations did not end; their memory is leaked", self.in_flight);
            self.buffers.leak();
            for slot in &mut self.slots {
                std::mem::forget(slot.parked.take());
            }
            std::mem::forget(std::mem::replace(&mut self.timer, Box::new(Timespec::new())));
            std::mem::forget(std::mem::take(&mut self.rung));
        }
        // Closes sockets that were accepted and never added.
        self.events.clear();
    }
}

fn user_data(operation: u8, extra: u32, slot: u32) -> u64 {
    u64::from(operation) << 56 | u64::from(extra) << 32 | u64::from(slot)
}
