//! Handles completions: updates slots, emits events, and arms operations again.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use io_uring::cqueue;

use super::{
    ACCEPT, DOORBELL, DataRing, Event, IGNORED, INSTALL, Installed, ListenerId, RECEIVE, Received, SEND,
    SEND_PARKED, SHUTDOWN, State, TIMER,
};
use crate::transport::uring::shim::{Operation, Shim, Verdict};

impl<S: Shim> DataRing<S> {
    pub(super) fn complete(
        &mut self,
        data: u64,
        result: i32,
        flags: u32,
        short: &mut [Option<i32>],
    ) -> io::Result<()> {
        let (operation, extra, slot) = ((data >> 56) as u8, (data >> 32 & 0xff_ffff) as u32, data as u32);
        match operation {
            SEND => short[extra as usize] = Some(result),
            SEND_PARKED => {
                self.in_flight -= 1;
                debug_assert!(
                    self.slots[slot as usize].generation == extra,
                    "a slot is vacated only when nothing of it is in flight"
                );
                self.parked_ended(slot, result)?;
            }
            RECEIVE => {
                debug_assert!(
                    self.slots[slot as usize].generation == extra,
                    "a slot is vacated only when nothing of it is in flight"
                );
                if let Some(buffer) = cqueue::buffer_select(flags) {
                    self.received(slot, buffer, result.max(0) as u32);
                }
                if !cqueue::more(flags) {
                    self.in_flight -= 1;
                    self.slots[slot as usize].receive_armed = false;
                    self.receive_ended(slot, result)?;
                }
            }
            ACCEPT => self.accepted(ListenerId(slot), result, flags)?,
            TIMER => {
                self.in_flight -= 1;
                self.timer_fires_ns = None;
                self.events.push_back((0, Event::Timer));
            }
            SHUTDOWN => {
                self.in_flight -= 1;
                self.slots[slot as usize].shutting = false;
                self.vacate_if_quiet(slot)?;
            }
            INSTALL => {
                self.in_flight -= 1;
                // SAFETY: a successful installation returns a new descriptor, whose only owner this is.
                let socket = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) });
                self.installed = Some(Installed { slot, generation: extra, socket });
            }
            DOORBELL => {
                self.in_flight -= 1;
                self.doorbell_armed = false;
            }
            IGNORED => {}
            _ => debug_assert!(false, "user_data names one of the operations above"),
        }
        Ok(())
    }

    fn accepted(&mut self, id: ListenerId, result: i32, flags: u32) -> io::Result<()> {
        let more = cqueue::more(flags);
        self.in_flight -= usize::from(!more);
        if result >= 0 {
            // SAFETY: a successful accept returns a new descriptor, whose only owner this is.
            let socket = unsafe { OwnedFd::from_raw_fd(result) };
            self.events.push_back((0, Event::Accepted(id, socket)));
            // Multishot may end after a success too (a full completion queue).
            return if more { Ok(()) } else { self.rearm_accept(id) };
        }
        if let Some(Some(_)) = self.listeners.get(id.0 as usize) {
            self.events.push_back((0, Event::AcceptFailed(id, -result)));
        }
        Ok(())
    }

    fn received(&mut self, slot: u32, buffer: u16, len: u32) {
        let hold = self.buffers.take(buffer);
        if self.slots[slot as usize].state != State::Open || len == 0 {
            self.buffers.release(hold);
            return;
        }
        let mut start = 0;
        loop {
            let rest = len - start;
            let piece = match self.shim.decide(Operation::Received(rest as usize)) {
                Verdict::Truncate(piece) => (piece.max(1) as u32).min(rest),
                _ => rest,
            };
            if piece == rest {
                self.queue(slot, Event::Received(Received { slot, hold, start, len: piece }));
                return;
            }
            let again = self.buffers.hold_again(&hold);
            self.queue(slot, Event::Received(Received { slot, hold: again, start, len: piece }));
            start += piece;
        }
    }

    pub(super) fn receive_ended(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let entry = &self.slots[slot as usize];
        match (entry.state, result) {
            (State::Open, _) if entry.detaching => self.queue(slot, Event::Detached(slot)),
            (State::Open, _) if entry.receive_paused => {}
            // A multishot receive may end after it delivered bytes. A resume may have overtaken the cancellation.
            (State::Open, 1..) => return self.arm_receive(slot),
            (State::Open, result) if result == -libc::ECANCELED => return self.arm_receive(slot),
            // Out of buffers: the next poll arms it again, after the waiting events have returned their buffers.
            (State::Open, result) if result == -libc::ENOBUFS => self.starved.push(slot),
            (State::Open, 0) => self.queue(slot, Event::Eof(slot)),
            (State::Open, result) => self.queue(slot, Event::Failed(slot, -result)),
            (State::Closing, _) => return self.vacate_if_quiet(slot),
            (State::Vacant, _) => {
                debug_assert!(false, "a slot is vacated only when nothing of it is in flight")
            }
        }
        Ok(())
    }

    pub(super) fn vacate_if_quiet(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        if entry.state == State::Closing && !entry.is_busy() {
            entry.state = State::Vacant;
            // The last reference: the kernel closes the socket.
            self.ring.submitter().register_files_update(slot, &[-1])?;
            self.free.push(slot);
        }
        self.slots[slot as usize].invariants();
        Ok(())
    }
}
