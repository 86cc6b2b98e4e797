//! The driver's part of TLS: passes received plaintext to the shard, runs handshakes within a turn's budget, and sends TLS's own
//! bytes.

use std::io;

use super::Driver;
use crate::{
    clock,
    limits::{TURN_TLS_HANDSHAKES, TURN_TLS_HANDSHAKES_NS},
    transport::{
        tls::{ParkedSend, Received, Shaken, Then},
        uring::data_ring::Sent,
    },
};
use tickcast_core::{ids::SlotId, metrics::counters::Counter, now::Now, principal::ClientCertificate};
use tickcast_proto::http;
use tickcast_tls::handshake::{HandshakeError, PeerCertificate};

/// Response to a client that speaks plain HTTP on a TLS port.
const PLAIN_HTTP_TEXT: &str = "this port speaks TLS: use https:// or wss://";

impl Driver {
    /// Passes on the result of receiving bytes on a TLS connection.
    pub(super) fn received_tls(&mut self, slot: u32, received: Received, now: Now) -> io::Result<()> {
        let (plaintext, is_closed, failure) = match received {
            Received::Handshake(false) => return Ok(()),
            Received::Handshake(true) => return self.ring.pause_receive(slot),
            Received::Plaintext(len) => (len, false, None),
            Received::Closed(len) => (len, true, None),
            Received::Failed(len, why) => (len, false, Some(why)),
        };
        if plaintext > 0 {
            self.shard.handle_bytes(SlotId(slot), &self.tls.opened()[..plaintext], now);
        }
        if is_closed {
            self.shard.handle_eof(SlotId(slot), now);
        }
        if let Some(why) = failure {
            self.shard.handle_tls_failure(SlotId(slot), why, now);
            self.send_waiting(slot, now)?;
        }
        Ok(())
    }

    /// Handles a peer's FIN after everything that the peer sent before it.
    pub(super) fn received_eof(&mut self, slot: u32, now: Now) {
        if let Some(connection) = self.tls.get_mut(slot)
            // The peer may have announced it with close_notify.
            && (connection.peer_closed() || connection.postpone_eof())
        {
            return;
        }
        self.shard.handle_eof(SlotId(slot), now);
    }

    /// Advances the handshakes that can advance, after the SENDs to open connections: at most [`TURN_TLS_HANDSHAKES`] of them,
    /// and none after [`TURN_TLS_HANDSHAKES_NS`]. Returns whether there were any.
    pub(super) fn shake_hands(&mut self, now: Now) -> io::Result<bool> {
        if !self.tls.has_ready() {
            return Ok(false);
        }
        let until_ns = clock::monotonic_ns() + TURN_TLS_HANDSHAKES_NS;
        for _ in 0..TURN_TLS_HANDSHAKES {
            let Some(slot) = self.tls.next_ready() else { break };
            let step = self.tls.shake_hands(slot);
            self.shaken(slot, step.shaken, now)?;
            if step.has_eof {
                self.received_eof(slot, now);
            } else if step.resumes {
                self.ring.resume_receive(slot)?;
            }
            self.actions()?;
            if clock::monotonic_ns() >= until_ns {
                break;
            }
        }
        Ok(true)
    }

    fn shaken(&mut self, slot: u32, shaken: Shaken, now: Now) -> io::Result<()> {
        match shaken {
            Shaken::Waiting => self.send_waiting(slot, now),
            Shaken::Done { is_resumed, peer, server_name, unopened } => {
                if let Some(name) = server_name {
                    self.shard.set_server_name(SlotId(slot), &name, now);
                }
                if let Some(PeerCertificate { name: Some(name), ends_s }) = peer {
                    self.shard.set_certificate(SlotId(slot), &ClientCertificate { name, ends_s });
                }
                self.shard.counters().add(Counter::TlsHandshakes, 1);
                self.shard.counters().add(Counter::TlsHandshakesResumed, u64::from(is_resumed));
                self.send_waiting(slot, now)?;
                if unopened.is_empty() {
                    return Ok(());
                }
                let received = self.tls.receive(slot, &unopened);
                self.received_tls(slot, received, now)
            }
            Shaken::Failed(error) => {
                self.shard.counters().add(Counter::TlsHandshakesFailed, 1);
                if error == HandshakeError::PlainHttp
                    && let Some(connection) = self.tls.get_mut(slot)
                {
                    connection.waiting.extend(http::refused(400, PLAIN_HTTP_TEXT, now.realtime_ns));
                }
                self.send_waiting(slot, now)?;
                self.shard.handle_tls_failure(SlotId(slot), error.to_string(), now);
                Ok(())
            }
        }
    }

    /// Records the outcome of an encrypted SEND. Ends a session whose keys are exhausted, while its closing messages still fit.
    pub(super) fn sent_sealed(&mut self, slot: SlotId, sent: Sent, now: Now) {
        let Some(connection) = self.tls.get_mut(slot.0) else { return };
        debug_assert_eq!(connection.parked, ParkedSend::None, "the shard's SEND waits for a parked one");
        connection.parked = if sent == Sent::Parked { ParkedSend::Shard } else { ParkedSend::None };
        if self.tls.is_used_up(slot.0) {
            self.shard.handle_tls_used_up(slot, now);
        }
    }

    /// Sends the bytes that TLS has waiting, unless another SEND occupies the socket. Then performs the connection's pending
    /// action.
    fn send_waiting(&mut self, slot: u32, now: Now) -> io::Result<()> {
        let Some(connection) = self.tls.get_mut(slot) else { return Ok(()) };
        if connection.parked != ParkedSend::None {
            return Ok(());
        }
        let waiting = std::mem::take(&mut connection.waiting);
        if !waiting.is_empty() {
            let mut outcome = Sent::Failed;
            self.ring.send_batch(&[(slot, &waiting)], |_, sent| outcome = sent)?;
            match outcome {
                Sent::Whole => {}
                Sent::Parked => {
                    if let Some(connection) = self.tls.get_mut(slot) {
                        connection.parked = ParkedSend::Own;
                    }
                    return Ok(());
                }
                // An event with the reason follows.
                Sent::Failed => return Ok(()),
            }
        }
        self.all_sent(slot, now)
    }

    /// Called once TLS has nothing left to send.
    fn all_sent(&mut self, slot: u32, now: Now) -> io::Result<()> {
        let Some(connection) = self.tls.get_mut(slot) else { return Ok(()) };
        let was_waiting = std::mem::take(&mut connection.is_shard_waiting);
        let then = std::mem::take(&mut connection.then);
        if was_waiting {
            self.shard.handle_writable(SlotId(slot), now);
        }
        match then {
            Then::Stay => Ok(()),
            Then::ShutdownWrite => self.ring.shutdown_write(slot),
            Then::Detach => self.ring.detach(slot),
        }
    }

    /// Handles the completion of a slot's parked SEND.
    pub(super) fn writable(&mut self, slot: u32, now: Now) -> io::Result<()> {
        let Some(connection) = self.tls.get_mut(slot) else {
            self.shard.handle_writable(SlotId(slot), now);
            return Ok(());
        };
        if std::mem::take(&mut connection.parked) == ParkedSend::Shard {
            self.shard.handle_writable(SlotId(slot), now);
        }
        self.send_waiting(slot, now)
    }

    /// Shuts down the write side once everything, including close_notify, has been sent.
    pub(super) fn shutdown_write(&mut self, slot: u32) -> io::Result<()> {
        let Some(connection) = self.tls.get_mut(slot) else { return self.ring.shutdown_write(slot) };
        connection.say_goodbye();
        connection.then = Then::ShutdownWrite;
        self.send_waiting(slot, clock::now())
    }

    /// Stops I/O on a socket that another shard will serve: receiving at once, sending once everything has been sent.
    pub(super) fn hand_over(&mut self, slot: u32) -> io::Result<()> {
        let leaves = self.tls.get_mut(slot).is_none_or(|connection| connection.begin_detach());
        match leaves {
            true => self.ring.detach(slot),
            // The shard keeps all received bytes for the other shard, so nothing more may arrive.
            false => self.ring.pause_receive(slot),
        }
    }

    /// Sends close_notify on a socket that is about to be closed, if the socket takes it at once.
    pub(super) fn close_tls(&mut self, slot: u32) -> io::Result<()> {
        if let Some(mut connection) = self.tls.remove(slot)
            && connection.parked == ParkedSend::None
            && !connection.is_busy()
        {
            connection.say_goodbye();
            if !connection.waiting.is_empty() {
                self.ring.send_batch(&[(slot, &connection.waiting)], |_, _| {})?;
            }
        }
        Ok(())
    }

    /// Resumes receiving from a slot, which therefore stays on this shard.
    pub(super) fn resume_receive(&mut self, slot: SlotId) -> io::Result<()> {
        if let Some(connection) = self.tls.get_mut(slot.0) {
            connection.cancel_detach();
        }
        self.ring.resume_receive(slot.0)?;
        // The shard forgets a FIN while it is paused, and TLS reports it only once.
        if self.tls.get_mut(slot.0).is_some_and(|connection| connection.peer_closed()) {
            self.shard.handle_eof(slot, clock::now());
        }
        Ok(())
    }
}
