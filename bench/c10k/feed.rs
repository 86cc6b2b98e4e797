//! Where a connection's ticks come from: tickcast, or a peer that is measured beside it.
//!
//! A peer carries bare payloads. What tickcast says in its frames is read from them instead
//! ([`tickcast::sources::payload`]): the intended send time, the topic, and the number of the tick in it. So a tick, a
//! gap and a latency mean the same on every transport, and nothing beyond this file knows which one it is.

mod lines;
mod nats;
mod peer;
mod redis;
mod seen;
mod websocket;

use std::fmt;

use crate::options::Plan;
use tickcast_client::{Connection, Event, ProtocolError, RequestError, TopicStats};
use tickcast_proto::{Encoding, ids::TopicId};

use self::{nats::Nats, peer::Peer, redis::Redis, websocket::WebSocket};

/// Longest payload taken from a peer, in bytes: the largest that tickcast can be told to take.
pub const PAYLOAD_BYTES_MAX: usize = tickcast::limits::FRAME_BYTES_MAX_HIGHEST;
/// Bytes of answers to a peer that may wait for it to read them.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What is spoken to a server that is not tickcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerProtocol {
    /// NATS client protocol.
    Nats,
    /// Redis pub/sub, RESP2.
    Redis,
    /// A WebSocket whose messages are bare payloads.
    WebSocket,
}

/// One connection's protocol: bytes in, events out, as [`Connection`] has it. No socket, no clock.
#[derive(Debug)]
pub enum Feed {
    Tickcast(Box<Connection>),
    Nats(Peer<Nats>),
    Redis(Peer<Redis>),
    WebSocket(Peer<WebSocket>),
}

/// What a server sent cannot be right, or says that it will not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedError {
    /// tickcast's.
    Tickcast(ProtocolError),
    /// Bytes against the protocol: what and where.
    Protocol(&'static str),
    /// A line of this protocol longer than [`lines::LINE_BYTES_MAX`].
    LongLine,
    /// A payload longer than [`PAYLOAD_BYTES_MAX`].
    LongPayload(u64),
    /// The server's own words.
    Refused(String),
    /// A payload that does not say what it is.
    Unmarked,
    /// More topics than [`seen::TOPICS_MAX`] on one connection.
    TooManyTopics,
    /// A tick's number that does not increase.
    OutOfOrder { topic: u32, previous: u64, n: u64 },
    /// The server asks for answers and does not read them.
    Unread,
    /// The connection ended in the middle of a message.
    Truncated,
}

impl fmt::Display for FeedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeedError::Tickcast(error) => write!(f, "{error}"),
            FeedError::Protocol(what) => {
                write!(f, "the server sent {what}: is this the port of that protocol?")
            }
            FeedError::LongLine => {
                write!(f, "the server sent a line of more than {} bytes", lines::LINE_BYTES_MAX)
            }
            FeedError::LongPayload(bytes) => {
                write!(f, "the server sent a payload of {bytes} bytes, {PAYLOAD_BYTES_MAX} are taken")
            }
            FeedError::Refused(text) => write!(f, "the server refused: {text}"),
            FeedError::Unmarked => {
                write!(f, "a payload without time, topic and number: publish with tickcast-feed")
            }
            FeedError::TooManyTopics => write!(f, "more than {} topics on one connection", seen::TOPICS_MAX),
            FeedError::OutOfOrder { topic, previous, n } => {
                write!(f, "topic {topic}: tick {n} after {previous}: does more than one feeder publish?")
            }
            FeedError::Unread => {
                write!(
                    f,
                    "the server does not read the answers that it asks for: {ANSWER_BYTES_MAX} bytes wait"
                )
            }
            FeedError::Truncated => write!(f, "the server ended the connection in the middle of a message"),
        }
    }
}

impl Feed {
    /// The `index`-th connection's protocol, with its opening and its subscriptions in [`Feed::output`].
    ///
    /// # Errors
    /// A subscription that tickcast's protocol cannot say.
    pub fn open(plan: &Plan, index: usize) -> Result<Feed, RequestError> {
        let patterns = plan.patterns_of(index);
        Ok(match plan.peer {
            None => Feed::Tickcast(Box::new(open_session(plan, &patterns)?)),
            Some(PeerProtocol::Nats) => Feed::Nats(Peer::open(|output| Nats::open(&patterns, output))),
            Some(PeerProtocol::Redis) => Feed::Redis(Peer::open(|output| Redis::open(&patterns, output))),
            Some(PeerProtocol::WebSocket) => {
                let session = &plan.session;
                Feed::WebSocket(Peer::open(|output| WebSocket::open(&session.host, &session.path, output)))
            }
        })
    }

    /// How many acknowledgements ([`Event::Subscribed`] or [`Event::Pong`]) make a connection of `plan` subscribed.
    pub fn acknowledgements(plan: &Plan) -> usize {
        match plan.peer {
            None if plan.session.encoding == Encoding::WebSocketRaw => 1,
            None | Some(PeerProtocol::Redis) => plan.subscriptions(),
            Some(PeerProtocol::Nats | PeerProtocol::WebSocket) => 1,
        }
    }

    /// Bytes to write to the socket.
    #[inline]
    pub fn output(&self) -> &[u8] {
        match self {
            Feed::Tickcast(session) => session.poll_transmit(),
            Feed::Nats(peer) => peer.output(),
            Feed::Redis(peer) => peer.output(),
            Feed::WebSocket(peer) => peer.output(),
        }
    }

    /// Takes note that the first `bytes` of [`Feed::output`] were written.
    pub fn output_written(&mut self, bytes: usize) {
        match self {
            Feed::Tickcast(session) => session.handle_transmitted(bytes),
            Feed::Nats(peer) => peer.output_written(bytes),
            Feed::Redis(peer) => peer.output_written(bytes),
            Feed::WebSocket(peer) => peer.output_written(bytes),
        }
    }

    /// Takes bytes read from the socket; poll events until there are none before the next call.
    #[inline]
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        match self {
            Feed::Tickcast(session) => session.handle_bytes(bytes),
            Feed::Nats(peer) => peer.handle_bytes(bytes),
            Feed::Redis(peer) => peer.handle_bytes(bytes),
            Feed::WebSocket(peer) => peer.handle_bytes(bytes),
        }
    }

    /// The connection gives no more bytes.
    pub fn handle_end(&mut self) {
        match self {
            Feed::Tickcast(session) => session.handle_eof(),
            Feed::Nats(peer) => peer.handle_end(),
            Feed::Redis(peer) => peer.handle_end(),
            Feed::WebSocket(peer) => peer.handle_end(),
        }
    }

    /// The next event, or `None` when more bytes are needed. No allocation for a tick.
    ///
    /// # Errors
    /// [`FeedError`]: drop the connection.
    #[inline]
    pub fn poll_event(&mut self) -> Result<Option<Event<'_>>, FeedError> {
        match self {
            Feed::Tickcast(session) => session.poll_event().map_err(FeedError::Tickcast),
            Feed::Nats(peer) => peer.poll_event(),
            Feed::Redis(peer) => peer.poll_event(),
            Feed::WebSocket(peer) => peer.poll_event(),
        }
    }

    /// What was seen of each topic, in no order.
    pub fn topics(&self) -> Box<dyn Iterator<Item = (TopicId, &TopicStats)> + '_> {
        match self {
            Feed::Tickcast(session) => Box::new(session.topics()),
            Feed::Nats(peer) => Box::new(peer.topics()),
            Feed::Redis(peer) => Box::new(peer.topics()),
            Feed::WebSocket(peer) => Box::new(peer.topics()),
        }
    }
}

fn open_session(plan: &Plan, patterns: &[String]) -> Result<Connection, RequestError> {
    let mut session = Connection::new(&plan.session);
    for pattern in patterns {
        session.subscribe_with(pattern, &plan.subscription)?;
    }
    if plan.session.encoding == Encoding::WebSocketRaw {
        // Nothing is acknowledged to a raw client: the pong to a ping sent after the requests stands for it.
        session.ping()?;
    }
    Ok(session)
}

#[cfg(test)]
mod tests;
