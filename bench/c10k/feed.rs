//! One connection's feed of ticks, from tickcast or from a peer measured beside it.
//!
//! A peer carries bare payloads, so the intended send time, the topic and the tick's number in it are read from the
//! payload ([`tickcast::sources::payload`]) instead of a frame. A tick, a gap and a latency therefore mean the same on
//! every transport, and no other module knows which one is in use.

mod event_stream;
pub mod lines;
mod nats;
mod peer;
mod protobuf;
mod redis;
mod seen;
mod socket_io;
mod websocket;

use std::fmt;

use tickcast_client::{Connection, Event, ProtocolError, RequestError, TopicStats};
use tickcast_proto::{WireFormat, ids::TopicId};

use self::{
    event_stream::EventStream, nats::Nats, peer::Peer, protobuf::Protobuf, redis::Redis, socket_io::SocketIo,
    websocket::WebSocket,
};
use crate::{options::PeerProtocol, plan::Plan};

/// Longest payload accepted from a peer, in bytes: as configurable for tickcast.
pub const PAYLOAD_BYTES_MAX: usize = tickcast::limits::FRAME_BYTES_MAX_HIGHEST;
/// Most bytes of answers that a peer may leave unread.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Protocol state of one connection: bytes in, events out, like [`Connection`]. No socket, no clock.
#[derive(Debug)]
pub enum Feed {
    Tickcast(Box<Connection>),
    Nats(Peer<Nats>),
    Redis(Peer<Redis>),
    WebSocket(Peer<WebSocket>),
    EventStream(Peer<EventStream>),
    SocketIo(Peer<SocketIo>),
    Protobuf(Peer<Protobuf>),
}

/// Why a connection is over: the server broke the protocol, or refused to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedError {
    /// tickcast's protocol.
    Tickcast(ProtocolError),
    /// Bytes that violate the protocol. Contains their description.
    Protocol(&'static str),
    /// A line longer than [`lines::LINE_BYTES_MAX`].
    LongLine,
    /// A payload longer than [`PAYLOAD_BYTES_MAX`].
    LongPayload(u64),
    /// The server refused. Contains its message.
    Refused(String),
    /// A payload without time, topic and number.
    Unmarked,
    /// More topics than [`seen::TOPICS_MAX`] on one connection.
    TooManyTopics,
    /// A tick whose number does not increase.
    OutOfOrder { topic: u32, previous: u64, n: u64 },
    /// The server asks for answers but does not read them.
    Unread,
    /// The connection ended in the middle of a message.
    Truncated,
}

impl fmt::Display for FeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeedError::Tickcast(error) => write!(f, "{error}"),
            FeedError::Protocol(what) => {
                write!(f, "the server sent {what}: does this port speak that protocol?")
            }
            FeedError::LongLine => {
                write!(f, "the server sent a line of more than {} bytes", lines::LINE_BYTES_MAX)
            }
            FeedError::LongPayload(bytes) => {
                write!(f, "the server sent a payload of {bytes} bytes; the limit is {PAYLOAD_BYTES_MAX}")
            }
            FeedError::Refused(text) => write!(f, "the server refused: {text}"),
            FeedError::Unmarked => {
                write!(f, "a payload carries no time, topic and number: publish with tickcast-feed")
            }
            FeedError::TooManyTopics => write!(f, "the connection has more than {} topics", seen::TOPICS_MAX),
            FeedError::OutOfOrder { topic, previous, n } => {
                write!(
                    f,
                    "topic {topic}: tick {n} came after {previous}: is more than one feeder publishing?"
                )
            }
            FeedError::Unread => {
                write!(
                    f,
                    "the server does not read the answers it asks for: more than {ANSWER_BYTES_MAX} bytes are waiting"
                )
            }
            FeedError::Truncated => write!(f, "the server ended the connection in the middle of a message"),
        }
    }
}

impl Feed {
    /// Opens the `index`-th connection's protocol; handshake and subscriptions are in [`Feed::output`].
    ///
    /// # Errors
    /// A subscription that tickcast's protocol cannot express.
    pub fn open(plan: &Plan, index: usize) -> Result<Feed, RequestError> {
        let patterns = plan.patterns_of(index);
        let options = &plan.connect_options;
        Ok(match plan.peer {
            None => Feed::Tickcast(Box::new(open_connection(plan, &patterns)?)),
            Some(PeerProtocol::Nats) => Feed::Nats(Peer::open(|output| Nats::open(&patterns, output))),
            Some(PeerProtocol::Redis) => Feed::Redis(Peer::open(|output| Redis::open(&patterns, output))),
            Some(PeerProtocol::WebSocket) => Feed::WebSocket(Peer::open(|output| {
                WebSocket::open(&options.host, &options.path, None, output)
            })),
            Some(PeerProtocol::EventStream) => {
                let patterns: Vec<_> = patterns.iter().map(|pattern| pattern.replace('>', "%3E")).collect();
                let path = format!("/sse?topics={}", patterns.join(","));
                Feed::EventStream(Peer::open(|output| EventStream::open(&options.host, &path, output)))
            }
            Some(PeerProtocol::SocketIo) => Feed::SocketIo(Peer::open(|output| {
                SocketIo::open(&options.host, &options.path, &patterns, output)
            })),
            Some(PeerProtocol::Protobuf) => Feed::Protobuf(Peer::open(|output| {
                Protobuf::open(&options.host, &patterns, options.batches, output)
            })),
        })
    }

    /// Acknowledgements ([`Event::Subscribed`] or [`Event::Pong`]) after which a connection is subscribed.
    pub fn acknowledgements(plan: &Plan) -> usize {
        match plan.peer {
            None if plan.connect_options.encoding == WireFormat::WEBSOCKET_RAW => 1,
            Some(PeerProtocol::Nats | PeerProtocol::WebSocket) => 1,
            // Redis, event streams, Socket.IO and protobuf acknowledge each subscription, as tickcast's other protocols do.
            _ => plan.subscriptions(),
        }
    }

    /// Bytes to write to the socket.
    #[inline]
    pub fn output(&self) -> &[u8] {
        match self {
            Feed::Tickcast(connection) => connection.poll_transmit(),
            Feed::Nats(peer) => peer.output(),
            Feed::Redis(peer) => peer.output(),
            Feed::WebSocket(peer) => peer.output(),
            Feed::EventStream(peer) => peer.output(),
            Feed::SocketIo(peer) => peer.output(),
            Feed::Protobuf(peer) => peer.output(),
        }
    }

    /// Removes the first `bytes` of [`Feed::output`], which were written.
    pub fn output_written(&mut self, bytes: usize) {
        match self {
            Feed::Tickcast(connection) => connection.handle_transmitted(bytes),
            Feed::Nats(peer) => peer.output_written(bytes),
            Feed::Redis(peer) => peer.output_written(bytes),
            Feed::WebSocket(peer) => peer.output_written(bytes),
            Feed::EventStream(peer) => peer.output_written(bytes),
            Feed::SocketIo(peer) => peer.output_written(bytes),
            Feed::Protobuf(peer) => peer.output_written(bytes),
        }
    }

    /// Adds bytes read from the socket; poll until there are no more events before the next call.
    #[inline]
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        match self {
            Feed::Tickcast(connection) => connection.handle_bytes(bytes),
            Feed::Nats(peer) => peer.handle_bytes(bytes),
            Feed::Redis(peer) => peer.handle_bytes(bytes),
            Feed::WebSocket(peer) => peer.handle_bytes(bytes),
            Feed::EventStream(peer) => peer.handle_bytes(bytes),
            Feed::SocketIo(peer) => peer.handle_bytes(bytes),
            Feed::Protobuf(peer) => peer.handle_bytes(bytes),
        }
    }

    /// Records that the server has closed the connection.
    pub fn handle_end(&mut self) {
        match self {
            Feed::Tickcast(connection) => connection.handle_eof(),
            Feed::Nats(peer) => peer.handle_end(),
            Feed::Redis(peer) => peer.handle_end(),
            Feed::WebSocket(peer) => peer.handle_end(),
            Feed::EventStream(peer) => peer.handle_end(),
            Feed::SocketIo(peer) => peer.handle_end(),
            Feed::Protobuf(peer) => peer.handle_end(),
        }
    }

    /// The next event, or `None` if more bytes are needed. A tick costs no allocation.
    ///
    /// # Errors
    /// [`FeedError`]; drop the connection.
    #[inline]
    pub fn poll_event(&mut self) -> Result<Option<Event<'_>>, FeedError> {
        match self {
            Feed::Tickcast(connection) => connection.poll_event().map_err(FeedError::Tickcast),
            Feed::Nats(peer) => peer.poll_event(),
            Feed::Redis(peer) => peer.poll_event(),
            Feed::WebSocket(peer) => peer.poll_event(),
            Feed::EventStream(peer) => peer.poll_event(),
            Feed::SocketIo(peer) => peer.poll_event(),
            Feed::Protobuf(peer) => peer.poll_event(),
        }
    }

    /// Counts of each topic, in no particular order.
    pub fn topics(&self) -> Box<dyn Iterator<Item = (TopicId, &TopicStats)> + '_> {
        match self {
            Feed::Tickcast(connection) => Box::new(connection.topics()),
            Feed::Nats(peer) => Box::new(peer.topics()),
            Feed::Redis(peer) => Box::new(peer.topics()),
            Feed::WebSocket(peer) => Box::new(peer.topics()),
            Feed::EventStream(peer) => Box::new(peer.topics()),
            Feed::SocketIo(peer) => Box::new(peer.topics()),
            Feed::Protobuf(peer) => Box::new(peer.topics()),
        }
    }
}

fn open_connection(plan: &Plan, patterns: &[String]) -> Result<Connection, RequestError> {
    let mut connection = Connection::new(&plan.connect_options);
    for pattern in patterns {
        connection.subscribe_with(pattern, &plan.subscription)?;
    }
    if plan.connect_options.encoding == WireFormat::WEBSOCKET_RAW {
        // The server acknowledges nothing to a raw client; the pong to a ping after the requests takes its place.
        connection.ping()?;
    }
    Ok(connection)
}

#[cfg(test)]
mod tests;
