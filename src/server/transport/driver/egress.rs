//! A turn's SENDs: batches with one SEND per ready session, encrypted last if the connection has TLS.

use std::io;

use super::Driver;
use crate::{
    limits::{GATHER_BYTES, SEND_BYTES_MAX, SENDS_PER_SUBMIT, TLS_SEALED_BYTES, TURN_SEND_BYTES, TURN_SENDS},
    transport::{tls::Sealed, uring::data_ring::Sent},
};
use tickcast_core::{
    metrics::counters::Counter,
    now::Now,
    shard::{Send, Shard},
};

/// Result of sealing a SEND.
#[derive(Clone, Copy, Debug)]
struct Seal {
    sealed: Sealed,
    /// Where the records begin in the buffer.
    start: usize,
    end: usize,
}

impl Default for Seal {
    fn default() -> Seal {
        Seal { sealed: Sealed::Plain, start: 0, end: 0 }
    }
}

impl Driver {
    /// Makes one SEND for every ready session, in batches, within the turn's budget. While ticks are held, only for sessions with
    /// a reply to send.
    pub(super) fn flush(&mut self, now: Now) -> io::Result<bool> {
        let mut sends: [Option<Send>; SENDS_PER_SUBMIT] = [None; SENDS_PER_SUBMIT];
        let mut seals = [Seal::default(); SENDS_PER_SUBMIT];
        let (mut done, mut bytes_sent, full_before) = (0, 0, self.ring.sends_full());
        let poll = if self.waits.is_holding() { Shard::poll_urgent_send } else { Shard::poll_send };
        while done < TURN_SENDS && bytes_sent < TURN_SEND_BYTES {
            self.gather.clear();
            self.sealed.clear();
            self.shard.prepare_sends(now);
            let mut len = 0;
            while len < SENDS_PER_SUBMIT
                && self.gather.len() + SEND_BYTES_MAX <= GATHER_BYTES
                && self.sealed.len() < TLS_SEALED_BYTES
                && let Some(send) = poll(&mut self.shard, &mut self.gather, now)
            {
                if !self.tls.is_empty() {
                    let start = self.sealed.len();
                    let plaintext = self.shard.send_bytes(&send, &self.gather);
                    let sealed = self.tls.seal(send.slot.0, plaintext, &mut self.sealed);
                    seals[len] = Seal { sealed, start, end: self.sealed.len() };
                }
                sends[len] = Some(send);
                len += 1;
            }
            if len == 0 {
                break;
            }
            done += len;
            let mut batch: [(u32, &[u8]); SENDS_PER_SUBMIT] = [(0, &[]); SENDS_PER_SUBMIT];
            // `submitted` maps positions in the batch to SENDs.
            let (mut submitted, mut batched) = ([0; SENDS_PER_SUBMIT], 0);
            let mut outcomes = [(0, Sent::Whole); SENDS_PER_SUBMIT];
            for (at, send) in sends.iter().flatten().take(len).enumerate() {
                let plaintext = self.shard.send_bytes(send, &self.gather);
                outcomes[at].0 = plaintext.len();
                let bytes = match seals[at].sealed {
                    Sealed::Plain => plaintext,
                    Sealed::Appended => &self.sealed[seals[at].start..seals[at].end],
                    Sealed::Discarded => continue,
                    Sealed::Waiting => {
                        outcomes[at].1 = Sent::Parked;
                        continue;
                    }
                };
                (batch[batched], submitted[batched]) = ((send.slot.0, bytes), at);
                batched += 1;
            }
            self.ring.send_batch(&batch[..batched], |index, sent| outcomes[submitted[index]].1 = sent)?;
            for (at, (send, (bytes, sent))) in sends.iter().flatten().zip(outcomes).take(len).enumerate() {
                bytes_sent += bytes;
                match sent {
                    Sent::Whole => self.shard.handle_sent(send.slot, bytes, false, now),
                    Sent::Parked => self.shard.handle_sent(send.slot, bytes, true, now),
                    // An event with the reason follows.
                    Sent::Failed => {}
                }
                if seals[at].sealed == Sealed::Appended {
                    self.sent_sealed(send.slot, sent, now);
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
}
