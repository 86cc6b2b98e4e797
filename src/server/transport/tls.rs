//! TLS between the data ring and the shard: which connections have it, how far they are, and the bytes that wait on its behalf.
//! Plain state, without sockets.
//!
//! ```text
//!  ring --> Received --> TlsConnections::receive --> plaintext --> shard
//!  shard --> SEND ------> TlsConnections::seal ----> records ----> ring
//! ```
//!
//! The shard knows nothing of it: it accepts a connection at once, so that its limits and deadlines count handshakes too, and
//! receives the first bytes once the handshake is over. A SEND is sealed last, when it is certain to leave: a sealed record cannot
//! be taken back.

use std::{collections::VecDeque, sync::Arc};

use rustls::ServerConfig;

use crate::limits::TLS_HANDSHAKE_WAITING_BYTES;
use tickcast_core::shard::ClientAddress;
use tickcast_proto::{Step, proxy};
use tickcast_tls::{
    handshake::{Established, HANDSHAKE_BYTES_MAX, HandshakeError, Progress, ServerHandshake},
    opener::Opener,
    record::{Alert, Outcome, RecordLayer},
};

const _: () = assert!(TLS_HANDSHAKE_WAITING_BYTES >= HANDSHAKE_BYTES_MAX);

/// How far a connection is.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is that of a connection for all but its first moments"
)]
enum State {
    /// A PROXY protocol header comes before the handshake, in the clear.
    ProxyHeader(Vec<u8>, Arc<ServerConfig>),
    /// The handshake is under way.
    Handshake(Box<Handshake>),
    /// Established.
    Open {
        records: RecordLayer,
        opener: Opener,
        /// The peer has sent close_notify.
        peer_closed: bool,
    },
    /// Nothing more is opened or sealed.
    Ended,
}

#[derive(Debug)]
struct Handshake {
    inner: ServerHandshake,
    config: Arc<ServerConfig>,
    /// It waits for its turn in [`TlsConnections::ready`].
    is_queued: bool,
    /// Receiving is paused, because so much waits.
    is_paused: bool,
    /// The peer has sent FIN behind what waits.
    has_eof: bool,
}

/// A connection with TLS. At most 304 bytes once it is established.
#[derive(Debug)]
pub struct TlsConnection {
    state: State,
    /// What is to be sent on behalf of TLS, and what the shard has sent behind it. Empty but for moments: a handshake's flight, an
    /// alert or close_notify that finds the socket full.
    pub waiting: Vec<u8>,
    /// The ring sends bytes that came from `waiting`; [`Event::Writable`](super::uring::data_ring::Event) tells when it has.
    pub is_sending_own: bool,
    /// The shard's SEND is parked in the ring.
    pub is_shard_parked: bool,
    /// The shard's SEND is in `waiting` or in the ring behind it: it learns that its socket is full.
    pub is_shard_waiting: bool,
    /// What follows once nothing waits any more.
    pub then: Then,
}

const _: () = assert!(size_of::<TlsConnection>() <= 304, "the docs say how large it is");

/// What follows when everything has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    #[default]
    Stay,
    /// The write side is shut down.
    ShutdownWrite,
    /// The socket leaves the ring.
    Detach,
}

impl TlsConnection {
    /// Whether bytes wait on behalf of TLS.
    pub fn is_busy(&self) -> bool {
        self.is_sending_own || !self.waiting.is_empty()
    }

    /// Whether the peer has closed its side with close_notify.
    pub fn peer_closed(&self) -> bool {
        matches!(self.state, State::Open { peer_closed: true, .. })
    }

    /// Remembers a FIN, if what the peer has sent before waits for the handshake's turn. Returns whether it does; if so,
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
    /// [`TlsConnection::cancel_detach`] comes before.
    pub fn begin_detach(&mut self) -> bool {
        let is_busy = self.is_busy();
        if is_busy {
            self.then = Then::Detach;
        }
        !is_busy
    }

    /// Keeps the socket in the ring, if it has not left yet.
    pub fn cancel_detach(&mut self) {
        if self.then == Then::Detach {
            self.then = Then::Stay;
        }
    }

    /// Ends the sending: close_notify goes to `waiting`, unless the connection has failed or was never established.
    pub fn say_goodbye(&mut self) {
        if let State::Open { records, .. } = &mut self.state {
            records.close_notify(&mut self.waiting);
        }
        self.state = State::Ended;
    }
}

/// What received bytes have come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes at the front of [`TlsConnections::opened`] are for the shard.
    Plaintext(usize),
    /// As above, and the peer has closed its side.
    Closed(usize),
    /// As the first, then the connection has failed: why. An alert may wait.
    Failed(usize, String),
    /// The handshake waits for its turn. `true`: so much waits that receiving must be paused.
    Handshake(bool),
}

/// What a SEND of the shard has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// The connection has no TLS.
    Plain,
    /// Its records were appended to the buffer.
    Appended,
    /// They wait behind others: the socket is full.
    Waiting,
    /// Nobody can read it: the handshake is not over, or the connection has failed.
    Discarded,
}

/// What a step of a handshake has come to.
#[derive(Debug)]
pub enum Shaken {
    /// The peer has to go on.
    Waiting,
    /// The handshake is over. What the peer has sent behind it is to be received next.
    Done {
        /// Whether a ticket replaced most of it.
        is_resumed: bool,
        /// The name in the client's certificate.
        peer_name: Option<Box<str>>,
        /// The name of the server that the client has asked for.
        server_name: Option<Box<str>>,
        /// Received, not opened yet.
        unopened: Vec<u8>,
    },
    /// It has failed.
    Failed(HandshakeError),
}

/// A turn of a handshake.
#[derive(Debug)]
pub struct HandshakeTurn {
    /// What it has come to.
    pub shaken: Shaken,
    /// Receiving was paused, and may be resumed.
    pub resumes: bool,
    /// The peer has sent FIN behind everything that waited: it is to be handled after `shaken`.
    pub has_eof: bool,
}

/// The connections of a shard that have TLS.
#[derive(Debug, Default)]
pub struct TlsConnections {
    /// By listener; `None`: it is plain. Empty if all are.
    configs: Vec<Option<Arc<ServerConfig>>>,
    /// By slot. Empty if no listener has TLS.
    connections: Vec<Option<Box<TlsConnection>>>,
    /// Slots whose handshake can go on, in the order in which they could. A slot may have ended since, and serve another connection,
    /// which then has its place. Bound: one entry for each slot.
    ready: VecDeque<u32>,
    /// By slot: whether it is in `ready`.
    is_listed: Vec<bool>,
    /// Scratch buffer: what [`TlsConnections::receive`] has opened.
    opened: Vec<u8>,
}

impl TlsConnections {
    /// Sets how each listener shakes hands, for connections from now on.
    pub fn set_configs(&mut self, configs: Vec<Option<Arc<ServerConfig>>>) {
        self.configs = configs;
    }

    /// Whether no connection has TLS.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether a handshake can go on.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether the connections of a listener have TLS.
    pub fn is_tls(&self, listener: usize) -> bool {
        matches!(self.configs.get(listener), Some(Some(_)))
    }

    /// Begins a connection of a listener, unless that is plain.
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

    /// Takes in a connection of another shard.
    pub fn insert(&mut self, slot: u32, connection: Box<TlsConnection>) {
        let at = slot as usize;
        if self.connections.len() <= at {
            self.connections.resize_with(at + 1, || None);
            self.is_listed.resize(at + 1, false);
        }
        self.connections[at] = Some(connection);
    }

    /// The connection in a slot; `None`: it has no TLS.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut TlsConnection> {
        self.connections.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Removes the connection in a slot.
    pub fn remove(&mut self, slot: u32) -> Option<Box<TlsConnection>> {
        self.connections.get_mut(slot as usize)?.take()
    }

    /// The plaintext that [`TlsConnections::receive`] has opened.
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
                    // The shard finds the same error.
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

    /// Queues a handshake that can go on.
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

    /// The next slot whose handshake can go on. Call it at most [`TURN_TLS_HANDSHAKES`](crate::limits::TURN_TLS_HANDSHAKES) times a
    /// turn. Skips those that have ended, however many: each has cost the turn in which it came more than this.
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

    /// Takes the next step of a handshake. What is to be sent goes to its connection's `waiting`.
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
            Ok(Progress::Done(established)) => {
                let Established { records, unopened, is_resumed, peer_name, server_name, .. } = *established;
                connection.state = State::Open { records, opener: Opener::default(), peer_closed: false };
                Shaken::Done { is_resumed, peer_name, server_name, unopened }
            }
            Err(error) => {
                connection.state = State::Ended;
                Shaken::Failed(error)
            }
        };
        HandshakeTurn { shaken, resumes, has_eof }
    }

    /// Seals a SEND of the shard and appends it to `out`, or does with it what [`Sealed`] says.
    pub fn seal(&mut self, slot: u32, plaintext: &[u8], out: &mut Vec<u8>) -> Sealed {
        let Some(connection) = self.get_mut(slot) else { return Sealed::Plain };
        let State::Open { records, .. } = &mut connection.state else { return Sealed::Discarded };
        if connection.is_sending_own || !connection.waiting.is_empty() {
            records.seal(plaintext, &mut connection.waiting);
            connection.is_shard_waiting = true;
            return Sealed::Waiting;
        }
        records.seal(plaintext, out);
        Sealed::Appended
    }

    /// Whether the connection in a slot has to end, because its keys have sealed as much as they may.
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
            is_sending_own: false,
            is_shard_parked: false,
            is_shard_waiting: false,
            then: Then::Stay,
        }
    }

    /// Ends a connection with an alert to the peer. Returns why.
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
