//! TLS between the data ring and the shard: which connections have TLS, their state, and the bytes that TLS has yet to send.
//! Plain state, without sockets.
//!
//! ```text
//!  ring --> Received --> TlsConnections::receive --> plaintext --> shard
//!  shard --> SEND ------> TlsConnections::seal ----> records ----> ring
//! ```
//!
//! The shard knows nothing about TLS. It accepts a connection at once, so that its limits and deadlines include handshakes, and
//! receives the first bytes after the handshake. A SEND is encrypted last, when it is certain to be sent, because a sealed record
//! cannot be withdrawn.

use std::{collections::VecDeque, sync::Arc};

use rustls::ServerConfig;

use crate::limits::TLS_HANDSHAKE_WAITING_BYTES;
use tickcast_core::shard::ClientAddress;
use tickcast_proto::{Step, proxy};
use tickcast_tls::{
    handshake::{
        Established, HANDSHAKE_BYTES_MAX, HandshakeError, PeerCertificate, Progress, ServerHandshake,
    },
    opener::Opener,
    record::{Alert, Outcome, RecordLayer},
};

const _: () = assert!(TLS_HANDSHAKE_WAITING_BYTES >= HANDSHAKE_BYTES_MAX);

/// The state of a TLS connection.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is that of a connection for all but its first moments"
)]
enum State {
    /// Waiting for a PROXY protocol header, which precedes the handshake and is not encrypted.
    ProxyHeader(Vec<u8>, Arc<ServerConfig>),
    /// The handshake is under way.
    Handshake(Box<Handshake>),
    /// The connection is established.
    Open {
        records: RecordLayer,
        opener: Opener,
        /// The peer has sent close_notify.
        peer_closed: bool,
    },
    /// Nothing more is encrypted or decrypted.
    Ended,
}

#[derive(Debug)]
struct Handshake {
    inner: ServerHandshake,
    config: Arc<ServerConfig>,
    /// Whether the handshake is waiting in [`TlsConnections::ready`].
    is_queued: bool,
    /// Whether receiving is paused because too many bytes are waiting.
    is_paused: bool,
    /// Whether the peer has sent FIN after the waiting bytes.
    has_eof: bool,
}

/// A connection with TLS. At most 304 bytes once established.
#[derive(Debug)]
pub struct TlsConnection {
    state: State,
    /// Bytes that TLS has yet to send, followed by the shard's own. Usually empty: holds a handshake's flight, or an alert or
    /// close_notify while the socket is full.
    pub waiting: Vec<u8>,
    /// Whose SEND is parked in the ring. [`Event::Writable`](super::uring::data_ring::Event) follows when it is over.
    pub parked: ParkedSend,
    /// Whether the shard's SEND is in `waiting`, or in the ring after it. To the shard, its socket is full.
    pub is_shard_waiting: bool,
    /// The action once nothing is waiting.
    pub then: Then,
}

const _: () = assert!(size_of::<TlsConnection>() <= 304, "the docs say how large it is");

/// Whose SEND is parked in the ring. There is at most one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParkedSend {
    /// None is.
    #[default]
    None,
    /// TLS's own: bytes that were waiting.
    Own,
    /// The shard's.
    Shard,
}

/// The action once everything has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// No action.
    #[default]
    Stay,
    /// Shut down the write side.
    ShutdownWrite,
    /// Take the socket out of the ring.
    Detach,
}

impl TlsConnection {
    /// Whether TLS has yet to send bytes.
    pub fn is_busy(&self) -> bool {
        self.parked == ParkedSend::Own || !self.waiting.is_empty()
    }

    /// Whether the peer has closed its side with close_notify.
    pub fn peer_closed(&self) -> bool {
        matches!(self.state, State::Open { peer_closed: true, .. })
    }

    /// Remembers a FIN if earlier bytes from the peer wait for the handshake's turn. Returns whether it did; if so,
    /// [`HandshakeTurn::has_eof`] repeats the FIN.
    pub fn postpone_eof(&mut self) -> bool {
        match &mut self.state {
            State::Handshake(handshake) if handshake.is_queued => {
                handshake.has_eof = true;
                true
            }
            _ => false,
        }
    }

    /// Whether the socket may leave the ring at once. If not, it leaves once everything has been sent, unless
    /// [`TlsConnection::cancel_detach`] is called first.
    pub fn begin_detach(&mut self) -> bool {
        let is_busy = self.is_busy();
        if is_busy {
            self.then = Then::Detach;
        }
        !is_busy
    }

    /// Keeps the socket in the ring if it has not left yet.
    pub fn cancel_detach(&mut self) {
        if self.then == Then::Detach {
            self.then = Then::Stay;
        }
    }

    /// Ends sending: appends close_notify to `waiting`, unless the connection has failed or was never established.
    pub fn say_goodbye(&mut self) {
        if let State::Open { records, .. } = &mut self.state {
            records.close_notify(&mut self.waiting);
        }
        self.state = State::Ended;
    }
}

/// The result of receiving bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes at the front of [`TlsConnections::opened`] are for the shard.
    Plaintext(usize),
    /// As [`Received::Plaintext`]; then the peer has closed its side.
    Closed(usize),
    /// As [`Received::Plaintext`]; then the connection has failed with this reason. An alert may be waiting to be sent.
    Failed(usize, String),
    /// The handshake waits for its turn. `true`: too many bytes are waiting, so pause receiving.
    Handshake(bool),
}

/// The result of sealing a SEND from the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// The connection has no TLS.
    Plain,
    /// The records were appended to the buffer.
    Appended,
    /// The records wait behind others because the socket is full.
    Waiting,
    /// Dropped: the handshake is incomplete or the connection has failed, so nobody could read it.
    Discarded,
}

/// The result of a handshake step.
#[derive(Debug)]
pub enum Shaken {
    /// Waiting for the peer.
    Waiting,
    /// The handshake is complete. Receive what the peer has sent after it next.
    Done {
        /// Whether the connection resumed a session.
        is_resumed: bool,
        /// The client's certificate.
        peer: Option<PeerCertificate>,
        /// The server name that the client asked for.
        server_name: Option<Box<str>>,
        /// Bytes received but not decrypted yet.
        unopened: Vec<u8>,
    },
    /// The handshake has failed.
    Failed(HandshakeError),
}

/// The result of a handshake's turn.
#[derive(Debug)]
pub struct HandshakeTurn {
    /// The result of the step.
    pub shaken: Shaken,
    /// Whether receiving was paused and may be resumed.
    pub resumes: bool,
    /// Whether the peer has sent FIN after everything that was waiting. Handle it after `shaken`.
    pub has_eof: bool,
}

/// A shard's TLS connections.
#[derive(Debug, Default)]
pub struct TlsConnections {
    /// By listener; `None`: the listener has no TLS. Empty if none has.
    configs: Vec<Option<Arc<ServerConfig>>>,
    /// By slot. Empty if no listener has TLS.
    connections: Vec<Option<Box<TlsConnection>>>,
    /// Slots whose handshake can advance, in the order in which they became able to. The connection in a slot may have ended
    /// since; the next one in the slot then inherits its place. At most one entry per slot.
    ready: VecDeque<u32>,
    /// By slot: whether the slot is in `ready`.
    is_listed: Vec<bool>,
    /// Scratch buffer: plaintext that [`TlsConnections::receive`] has decrypted.
    opened: Vec<u8>,
}

impl TlsConnections {
    /// Sets the listeners' TLS configurations for connections from now on.
    pub fn set_configs(&mut self, configs: Vec<Option<Arc<ServerConfig>>>) {
        self.configs = configs;
    }

    /// Whether no connection has TLS.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether a handshake can advance.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether the connections of a listener have TLS.
    pub fn is_tls(&self, listener: usize) -> bool {
        matches!(self.configs.get(listener), Some(Some(_)))
    }

    /// Adds a connection accepted by a listener, if the listener has TLS.
    pub fn accept(&mut self, slot: u32, listener: usize, client: ClientAddress) {
        let Some(Some(config)) = self.configs.get(listener) else { return };
        let config = config.clone();
        let state = match client {
            ClientAddress::ProxyHeader => State::ProxyHeader(Vec::new(), config),
            ClientAddress::Peer | ClientAddress::ForwardedFor => {
                State::Handshake(Box::new(Handshake::new(config)))
            }
        };
        self.insert(slot, Box::new(TlsConnection::new(state)));
    }

    /// Adds a connection from another shard.
    pub fn insert(&mut self, slot: u32, connection: Box<TlsConnection>) {
        let at = slot as usize;
        if self.connections.len() <= at {
            self.connections.resize_with(at + 1, || None);
            self.is_listed.resize(at + 1, false);
        }
        self.connections[at] = Some(connection);
    }

    /// The connection in a slot; `None` if it has no TLS.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut TlsConnection> {
        self.connections.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Removes the connection in a slot.
    pub fn remove(&mut self, slot: u32) -> Option<Box<TlsConnection>> {
        self.connections.get_mut(slot as usize)?.take()
    }

    /// The plaintext that [`TlsConnections::receive`] has decrypted.
    pub fn opened(&self) -> &[u8] {
        &self.opened
    }

    /// Processes bytes from the peer of a slot that has TLS.
    pub fn receive(&mut self, slot: u32, bytes: &[u8]) -> Received {
        self.opened.clear();
        let Some(connection) = self.connections.get_mut(slot as usize).and_then(Option::as_deref_mut) else {
            debug_assert!(false, "only called for a slot that has TLS");
            return Received::Plaintext(0);
        };
        match &mut connection.state {
            State::Ended | State::Open { peer_closed: true, .. } => Received::Plaintext(0),
            State::ProxyHeader(header, config) => {
                header.extend_from_slice(bytes);
                let used = match proxy::step(header) {
                    Ok(Step::Partial) => return Received::Plaintext(0),
                    Ok(Step::Complete(used, _)) => used,
                    // The shard will find the same error.
                    Err(_) => header.len(),
                };
                let mut handshake = Handshake::new(config.clone());
                handshake.inner.push(&header[used..]);
                self.opened.extend_from_slice(&header[..used]);
                connection.state = State::Handshake(Box::new(handshake));
                self.queue(slot);
                Received::Plaintext(used)
            }
            State::Handshake(handshake) => {
                handshake.inner.push(bytes);
                let is_full = handshake.inner.waiting_bytes() > TLS_HANDSHAKE_WAITING_BYTES;
                handshake.is_paused |= is_full;
                self.queue(slot);
                Received::Handshake(is_full)
            }
            State::Open { records, opener, peer_closed } => {
                self.opened.extend_from_slice(bytes);
                match opener.open(records, &mut self.opened) {
                    Outcome::Open => Received::Plaintext(self.opened.len()),
                    Outcome::Closed => {
                        *peer_closed = true;
                        Received::Closed(self.opened.len())
                    }
                    Outcome::Failed(alert) => {
                        connection.state = State::Ended;
                        Received::Failed(self.opened.len(), format!("the peer sent {}", alert.name()))
                    }
                    Outcome::Broken(alert) => {
                        let why = connection.refuse(alert);
                        Received::Failed(self.opened.len(), why)
                    }
                }
            }
        }
    }

    /// Queues the slot if its handshake can advance.
    fn queue(&mut self, slot: u32) {
        if let Some(TlsConnection { state: State::Handshake(handshake), .. }) = self.get_mut(slot)
            && (handshake.is_paused || handshake.inner.can_advance())
        {
            handshake.is_queued = true;
            if !std::mem::replace(&mut self.is_listed[slot as usize], true) {
                self.ready.push_back(slot);
            }
        }
    }

    /// The next slot whose handshake can advance. Call it at most [`TURN_TLS_HANDSHAKES`](crate::limits::TURN_TLS_HANDSHAKES)
    /// times a turn. Skips any number of connections that have ended: skipping one costs less than it cost to queue it.
    pub fn next_ready(&mut self) -> Option<u32> {
        while let Some(slot) = self.ready.pop_front() {
            self.is_listed[slot as usize] = false;
            if let Some(TlsConnection { state: State::Handshake(handshake), .. }) = self.get_mut(slot)
                && std::mem::take(&mut handshake.is_queued)
            {
                return Some(slot);
            }
        }
        None
    }

    /// Advances a handshake by one step. Bytes to send are appended to the connection's `waiting`.
    pub fn shake_hands(&mut self, slot: u32) -> HandshakeTurn {
        let Some(connection) = self.get_mut(slot) else { return HandshakeTurn::NONE };
        let TlsConnection { state: State::Handshake(handshake), waiting, .. } = connection else {
            return HandshakeTurn::NONE;
        };
        let progress = handshake.inner.advance(&handshake.config, waiting);
        let (resumes, has_eof) =
            (std::mem::take(&mut handshake.is_paused), std::mem::take(&mut handshake.has_eof));
        let shaken = match progress {
            Ok(Progress::Waiting) => Shaken::Waiting,
            Ok(Progress::Done(mut established)) => {
                let (records, opener) = (RecordLayer::VACANT, Opener::default());
                connection.state = State::Open { records, opener, peer_closed: false };
                if let State::Open { records, .. } = &mut connection.state {
                    established.records.take_into(records);
                }
                let Established { unopened, is_resumed, peer, server_name, .. } = *established;
                Shaken::Done { is_resumed, peer, server_name, unopened }
            }
            Err(error) => {
                connection.state = State::Ended;
                Shaken::Failed(error)
            }
        };
        HandshakeTurn { shaken, resumes, has_eof }
    }

    /// Seals a SEND from the shard and appends it to `out`. [`Sealed`] lists the other outcomes.
    pub fn seal(&mut self, slot: u32, plaintext: &[u8], out: &mut Vec<u8>) -> Sealed {
        let Some(connection) = self.get_mut(slot) else { return Sealed::Plain };
        let is_busy = connection.is_busy();
        let State::Open { records, .. } = &mut connection.state else { return Sealed::Discarded };
        if is_busy {
            records.seal(plaintext, &mut connection.waiting);
            connection.is_shard_waiting = true;
            return Sealed::Waiting;
        }
        records.seal(plaintext, out);
        Sealed::Appended
    }

    /// Whether the connection in a slot must end because its keys have sealed their maximum.
    pub fn is_used_up(&mut self, slot: u32) -> bool {
        self.get_mut(slot).is_some_and(
            |connection| matches!(&connection.state, State::Open { records, .. } if records.is_used_up()),
        )
    }
}

impl HandshakeTurn {
    const NONE: HandshakeTurn = HandshakeTurn { shaken: Shaken::Waiting, resumes: false, has_eof: false };
}

impl Handshake {
    fn new(config: Arc<ServerConfig>) -> Handshake {
        Handshake {
            inner: ServerHandshake::default(),
            config,
            is_queued: false,
            is_paused: false,
            has_eof: false,
        }
    }
}

impl TlsConnection {
    fn new(state: State) -> TlsConnection {
        TlsConnection {
            state,
            waiting: Vec::new(),
            parked: ParkedSend::None,
            is_shard_waiting: false,
            then: Then::Stay,
        }
    }

    /// Ends a connection with an alert to the peer. Returns the reason.
    fn refuse(&mut self, alert: Alert) -> String {
        if let State::Open { records, .. } = &mut self.state {
            records.fatal_alert(alert, &mut self.waiting);
        }
        self.state = State::Ended;
        format!("a TLS record is refused with {}", alert.name())
    }
}

#[cfg(test)]
mod tests;
