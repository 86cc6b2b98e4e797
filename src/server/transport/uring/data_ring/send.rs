//! Sending: batches of SENDs that complete at once, and one parked SEND for each socket that is full.

use std::io;

use io_uring::{opcode, squeue::Flags, types::Fixed};

use super::{DataRing, Event, SEND, SEND_PARKED, Sent, State, user_data};
use crate::{
    limits::SENDS_PER_SUBMIT,
    transport::uring::shim::{Operation, Shim, Verdict},
};

/// The bytes that a full socket did not accept.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) bytes: Box<[u8]>,
    pub(super) sent: usize,
}

/// A batch whose SENDs may be queued with pointers into its caller's memory. If an error or a panic drops it before
/// [`Batch::complete`], it poisons the ring: those entries must never be submitted.
struct Batch<'a, S: Shim> {
    ring: &'a mut DataRing<S>,
}

impl<S: Shim> Drop for Batch<'_, S> {
    fn drop(&mut self) {
        self.ring.is_poisoned = true;
    }
}

impl<S: Shim> Batch<'_, S> {
    /// Ends the batch after the kernel has handled all of its SENDs.
    fn complete(self) {
        std::mem::forget(self);
    }
}

impl<S: Shim> DataRing<S> {
    /// Sends `bytes` to each slot: at most one SEND per slot, and [`SENDS_PER_SUBMIT`] in all. On return the kernel holds no
    /// pointer into any of them. Calls `outcome` for each, with its index.
    ///
    /// # Errors
    /// Only when the ring has failed for good.
    pub fn send_batch(
        &mut self,
        sends: &[(u32, &[u8])],
        mut outcome: impl FnMut(usize, Sent),
    ) -> io::Result<()> {
        assert!(sends.len() <= SENDS_PER_SUBMIT, "the index fits 24 bits and the batch the queue");
        // By index: the results of SENDs that did not send everything.
        let mut short: [Option<i32>; SENDS_PER_SUBMIT] = [None; SENDS_PER_SUBMIT];
        let batch = Batch { ring: self };
        batch.ring.queue_sends(sends, &mut short)?;
        batch.ring.drive(&mut short)?;
        batch.complete();
        for (index, &(slot, bytes)) in sends.iter().enumerate() {
            let sent = self.sent(slot, bytes, short[index])?;
            outcome(index, sent);
        }
        Ok(())
    }

    fn queue_sends(&mut self, sends: &[(u32, &[u8])], short: &mut [Option<i32>]) -> io::Result<()> {
        for (index, &(slot, bytes)) in sends.iter().enumerate() {
            debug_assert!(self.slots[slot as usize].parked.is_none(), "never two SENDs on one socket");
            let (len, flags) = match self.shim.decide(Operation::Send(bytes.len())) {
                Verdict::Pass => (bytes.len(), Flags::SKIP_SUCCESS),
                // A truncated SEND must report success.
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
        Ok(())
    }

    /// Handles the result of one SEND of a batch; `None` if it sent everything.
    fn sent(&mut self, slot: u32, bytes: &[u8], result: Option<i32>) -> io::Result<Sent> {
        Ok(match result {
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
        })
    }

    fn park(&mut self, slot: u32, rest: &[u8]) -> io::Result<()> {
        self.slots[slot as usize].parked = Some(Box::new(Parked { bytes: rest.into(), sent: 0 }));
        self.send_parked(slot)
    }

    /// Queues one SEND that may wait in the kernel until the socket has taken everything.
    fn send_parked(&mut self, slot: u32) -> io::Result<()> {
        let Some(parked) = &self.slots[slot as usize].parked else {
            debug_assert!(false, "called for a slot with parked bytes");
            return Ok(());
        };
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

    pub(super) fn parked_ended(&mut self, slot: u32, result: i32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        let Some(parked) = &mut entry.parked else {
            debug_assert!(false, "parked bytes stay in their slot until the SEND completes");
            return Ok(());
        };
        if result > 0 {
            parked.sent += result as usize;
        }
        let done = parked.sent == parked.bytes.len();
        match (entry.state, result) {
            (State::Open, 1..) if !done => return self.send_parked(slot),
            (State::Open, result) if result == -libc::EINTR => return self.send_parked(slot),
            (State::Open, 1..) => {
                entry.parked = None;
                self.queue(slot, Event::Writable(slot));
            }
            (State::Open, result) => {
                entry.parked = None;
                let errno = if result == 0 { libc::EPIPE } else { -result };
                self.queue(slot, Event::Failed(slot, errno));
            }
            _ => {
                entry.parked = None;
                return self.vacate_if_quiet(slot);
            }
        }
        Ok(())
    }
}
