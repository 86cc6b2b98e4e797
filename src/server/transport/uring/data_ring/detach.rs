//! How a socket leaves a ring alive, for another shard's.
//!
//! io_uring gives a registered file back as a descriptor only from Linux 6.8 on (IORING_OP_FIXED_FD_INSTALL). So the
//! descriptor that the accept gave is kept while the socket may still go elsewhere, which is for the handshake: a process
//! has that many descriptors anyway, and a served client costs none.

use std::{io, os::fd::OwnedFd};

use super::{DataRing, Event, RECEIVE, State};
use crate::transport::uring::shim::Shim;

impl<S: Shim> DataRing<S> {
    /// The socket stays in this ring: its plain descriptor is closed.
    pub fn settle(&mut self, slot: u32) {
        self.slots[slot as usize].plain = None;
    }

    /// Stops receiving, so that the socket can be taken out. What has already come is still handed over;
    /// [`Event::Detached`] follows it. [`DataRing::resume_receive`] makes the socket stay after all.
    pub fn detach(&mut self, slot: u32) -> io::Result<()> {
        let entry = &mut self.slots[slot as usize];
        if entry.state != State::Open {
            return Ok(());
        }
        (entry.receive_paused, entry.detaching) = (true, true);
        match entry.receive_armed {
            true => self.cancel(self.of_slot(RECEIVE, slot)),
            false => {
                self.queue(slot, Event::Detached(slot));
                Ok(())
            }
        }
    }

    /// Takes a socket out after [`Event::Detached`]: the slot is vacant, and nothing of the socket is in flight here.
    /// `None` for one that was settled or never detached; it stays.
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
