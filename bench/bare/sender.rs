//! The sending loop: rounds become SENDs in one io_uring.

use std::{
    io,
    net::TcpStream,
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
};

use io_uring::{
    IoUring, SubmissionQueue, opcode,
    squeue::{self, Flags},
    types::{Fixed, SubmitArgs, Timespec},
};
use tickcast::{
    clock,
    limits::{DATA_RING_COMPLETIONS, DATA_RING_ENTRIES},
};

use crate::{common::process::thread_cpu_ns, options::Options, report::Report, rounds::Rounds};

/// Longest wait, which bounds how late a signal is noticed.
const WAIT_NS_MAX: u64 = 50_000_000;
/// Most attempts at an `io_uring_enter`, 1 ms apart, while the kernel is short of memory.
const ENTER_ATTEMPTS_MAX: u32 = 1_000;

/// Completions copied out of the ring at once.
const REAP_BATCH: usize = 64;

// user_data = operation:1 | round:31 | socket:32.
const PARKED: u64 = 1 << 63;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Included in rounds.
    Ready,
    /// The rest of a round waits in the kernel; its length in bytes.
    Parked(u32),
    Ended,
}

/// Sockets, rounds and the ring between them. One thread.
pub struct Sender {
    ring: IoUring,
    rounds: Rounds,
    states: Vec<State>,
    /// Sockets that are [`State::Ready`]; rounds skip the others.
    ready: Vec<u32>,
    /// Index of each socket in `ready`.
    places: Vec<u32>,
    /// SENDs waiting in the kernel.
    parked: u64,
    interval_ns: u64,
    sends_per_submit: usize,
    report: Report,
}

impl Sender {
    /// Takes over the sockets: the registered files become the only references to them.
    ///
    /// # Errors
    /// Those of io_uring_setup(2) and io_uring_register(2).
    pub fn new(options: &Options, rounds: Rounds, sockets: Vec<TcpStream>) -> io::Result<Sender> {
        // Same setup as tickcast's data ring.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(DATA_RING_COMPLETIONS)
            .setup_clamp()
            .build(DATA_RING_ENTRIES)?;
        let descriptors: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        if !descriptors.is_empty() {
            ring.submitter().register_files(&descriptors)?;
        }
        Ok(Sender {
            ring,
            rounds,
            states: vec![State::Ready; sockets.len()],
            ready: (0..sockets.len() as u32).collect(),
            places: (0..sockets.len() as u32).collect(),
            parked: 0,
            interval_ns: options.interval_ns(),
            sends_per_submit: options.sends_per_submit,
            report: Report::default(),
        })
    }

    /// Sends rounds until it is stopped or no connection is left.
    ///
    /// # Errors
    /// An error of the ring that makes it unusable.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<Report> {
        let (from, cpu_from_ns) = (clock::now(), thread_cpu_ns());
        let mut due_ns = 0u64;
        while !stop.load(Ordering::Relaxed) && (self.parked > 0 || !self.ready.is_empty()) {
            let now_ns = clock::monotonic_ns() - from.monotonic_ns;
            let wait_ns = match self.interval_ns {
                0 if self.ready.is_empty() => WAIT_NS_MAX,
                0 => 0,
                _ => due_ns.saturating_sub(now_ns),
            };
            if wait_ns > 0 {
                self.wait(wait_ns.min(WAIT_NS_MAX))?;
                self.reap()?;
                continue;
            }
            let intended_ns = if self.interval_ns == 0 { now_ns } else { due_ns };
            let Some(round) = self.rounds.begin(from.realtime_ns + intended_ns) else {
                // Parked SENDs need every round.
                self.wait(WAIT_NS_MAX)?;
                self.reap()?;
                continue;
            };
            self.send(round)?;
            self.report.rounds += 1;
            if self.interval_ns > 0 {
                self.report.late_rounds += u64::from(now_ns - due_ns >= self.interval_ns);
                due_ns += self.interval_ns;
            }
        }
        self.report.elapsed_ns = clock::monotonic_ns() - from.monotonic_ns;
        self.report.cpu_ns = thread_cpu_ns() - cpu_from_ns;
        Ok(self.report)
    }

    /// Sends one round to every ready socket.
    fn send(&mut self, round: u32) -> io::Result<()> {
        let bytes = self.rounds.bytes(round);
        let (start, len) = (bytes.as_ptr(), bytes.len() as u32);
        self.report.skipped_sends += self.parked;
        // From the end: a socket that is parked is replaced by one that has had its SEND, and one that is ready again is
        // appended.
        let mut left = self.ready.len();
        while left > 0 {
            let batch = left.min(self.sends_per_submit);
            let mut queue = self.ring.submission();
            for &socket in &self.ready[left - batch..left] {
                let send = opcode::Send::new(Fixed(socket), start, len)
                    .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL)
                    .build()
                    .flags(Flags::SKIP_SUCCESS)
                    .user_data(u64::from(round) << 32 | u64::from(socket));
                // Cannot happen: `reap` leaves the queue empty, and it is longer than a batch.
                if push(&mut queue, &send).is_err() {
                    return Err(io::Error::other("the submission queue is full"));
                }
            }
            drop(queue);
            left -= batch;
            self.report.sends += batch as u64;
            self.report.bytes += batch as u64 * u64::from(len);
            self.enter(0)?;
            self.reap()?;
        }
        Ok(())
    }

    /// Handles completions and submits what follows from them, until neither is left.
    fn reap(&mut self) -> io::Result<()> {
        let mut asked = false;
        loop {
            let queue = self.ring.submission();
            // The kernel's flag is a hint that may stay set with nothing to run, so it is not followed twice in a row.
            let asks = !asked && (queue.taskrun() || queue.cq_overflow());
            let enter = asks || !queue.is_empty();
            drop(queue);
            if enter {
                self.enter(0)?;
                asked = asks;
            }
            let mut batch = [(0, 0); REAP_BATCH];
            let mut len = 0;
            for entry in self.ring.completion().take(REAP_BATCH) {
                batch[len] = (entry.user_data(), entry.result());
                len += 1;
            }
            for &(data, result) in &batch[..len] {
                self.complete(data, result)?;
            }
            if len == 0 && self.ring.submission().is_empty() {
                return Ok(());
            }
        }
    }

    /// Handles a SEND that was short or failed, or a parked one that completed.
    fn complete(&mut self, data: u64, result: i32) -> io::Result<()> {
        let (round, socket) = ((data >> 32 & 0x7fff_ffff) as u32, data as u32);
        let len = self.rounds.bytes(round).len() as u32;
        let was_parked = data & PARKED != 0;
        let left = match self.states[socket as usize] {
            State::Parked(left) if was_parked => left,
            _ => len,
        };
        let taken = result.max(0) as u32;
        let now_left = left - taken;
        let goes_on = result > 0 || (!was_parked && result == -libc::EAGAIN) || result == -libc::EINTR;
        if was_parked {
            self.parked -= 1;
            self.rounds.unpin(round);
            self.report.bytes += u64::from(taken);
        } else {
            self.report.short_sends += u64::from(goes_on);
            self.report.sends -= u64::from(!goes_on);
            self.report.bytes -= u64::from(now_left);
            self.leave(socket);
        }
        let state = match (goes_on, now_left) {
            (true, 0) => State::Ready,
            (true, now_left) => State::Parked(now_left),
            (false, _) => State::Ended,
        };
        self.states[socket as usize] = state;
        match state {
            State::Ready => {
                self.places[socket as usize] = self.ready.len() as u32;
                self.ready.push(socket);
            }
            State::Parked(now_left) => self.park(round, socket, now_left)?,
            State::Ended => self.report.connections_ended += 1,
        }
        Ok(())
    }

    /// Removes a socket from the rounds; the last ready one takes its place.
    fn leave(&mut self, socket: u32) {
        let place = self.places[socket as usize];
        self.ready.swap_remove(place as usize);
        if let Some(&moved) = self.ready.get(place as usize) {
            self.places[moved as usize] = place;
        }
    }

    /// Queues a SEND that may wait in the kernel, of the last `left` bytes of a round.
    fn park(&mut self, round: u32, socket: u32, left: u32) -> io::Result<()> {
        self.rounds.pin(round);
        self.parked += 1;
        let bytes = self.rounds.bytes(round);
        let rest = &bytes[bytes.len() - left as usize..];
        let send = opcode::Send::new(Fixed(socket), rest.as_ptr(), left)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .user_data(PARKED | u64::from(round) << 32 | u64::from(socket));
        while push(&mut self.ring.submission(), &send).is_err() {
            self.enter(0)?;
        }
        Ok(())
    }

    /// Waits for a completion, at most `wait_ns`.
    fn wait(&mut self, wait_ns: u64) -> io::Result<()> {
        let timeout = Timespec::new().sec(wait_ns / 1_000_000_000).nsec((wait_ns % 1_000_000_000) as u32);
        match self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout)) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Submits, runs deferred work and waits for `wanted` completions.
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        for _ in 0..ENTER_ATTEMPTS_MAX {
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EBUSY) => return Ok(()),
                    Some(libc::EAGAIN) => clock::sleep_ns(1_000_000),
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

/// Queues a SEND of a round's bytes.
fn push(queue: &mut SubmissionQueue<'_>, send: &squeue::Entry) -> Result<(), squeue::PushError> {
    // SAFETY: the entry points into a round's bytes, which are never freed. Only `Rounds::begin` writes them, and only while
    // no SEND can read them: a non-blocking SEND is over when the enter that submits it returns, and a parked one pins its
    // round until it completes.
    unsafe { queue.push(send) }
}
