//! Moves an open socket out of a ring, to another shard's ring.
//! Only since Linux 6.8 can io_uring turn a registered file back into a descriptor (IORING_OP_FIXED_FD_INSTALL). Therefore the
//! ring keeps the descriptor from the accept while the socket may still move, that is, during the handshake. A process has
//! enough descriptors for that, and a client costs none afterwards.

use std::{io, os::fd::OwnedFd};

use super::{DataRing, Event, RECEIVE, State};
use crate::transport::uring::shim::Shim;

impl<S: Shim> DataRing<S> {
    /// Closes the plain descriptor of a socket that stays in this ring.
    pub fn settle(&mut self, slot: u32) {
        self.slots[slot as usize].plain = None;
    }

    /// Stops receiving, so that the socket can be taken out: [`Event::Detached`] follows the events of bytes received before.
    /// [`DataRing::resume_receive`] undoes it.
    pub fn detach(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        debug_assert!(entry.state == State::Open, "the shard closes a socket or hands it over, not both");
        if entry.state != State::Open {
            return Ok(());
        }
        (entry.receive_paused, entry.detaching) = (true, true);
        entry.invariants();
        match entry.receive_armed {
            true => self.cancel(self.of_slot(RECEIVE, slot)),
            false => {
                self.queue(slot, Event::Detached(slot));
                Ok(())
            }
        }
    }

    /// Takes a socket out after [`Event::Detached`]. None of its operations is in flight, and the slot becomes vacant. Returns
    /// `None`, and keeps the socket, if it was settled or never detached.
    pub fn take(&mut self, slot: u32) -> io::Result<Option<OwnedFd>> {
        let entry = &mut self.slots[slot as usize];
        if !entry.detaching || entry.receive_armed || entry.parked.is_some() {
            return Ok(None);
        }
        let Some(socket) = entry.plain.take() else { return Ok(None) };
        self.close(slot)?;
        Ok(Some(socket))
    }
}
