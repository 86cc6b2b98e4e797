//! Why sessions end, and the codes their clients get.

use std::fmt;

use crate::{admission::Refusal, limits::CLOSE_REFUSED, metrics::counters::Counter, principal::AuthRefusal};
use tickcast_proto::{DecodeError, proxy::ProxyError};

/// Why a session ended. Every session ends with exactly one, and each is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed: FIN, or a WebSocket close.
    Peer,
    /// The peer violated the protocol.
    Protocol(DecodeError),
    /// The handshake did not complete in time.
    HandshakeDeadline,
    /// A frame did not arrive completely in time.
    FrameDeadline,
    /// The peer stayed silent for too long after a ping.
    HeartbeatTimeout,
    /// The peer reads more slowly than its outbox allows.
    SlowConsumer,
    /// The server lacks CPU time to send ticks that the policy, `disconnect`, does not allow it to drop.
    Overloaded,
    /// The server is shutting down.
    Shutdown,
    /// The socket failed with this errno.
    Transport(i32),
    /// An HTTP request was answered with this status.
    Http(u16),
    /// An HTTP connection sent no further request in time.
    HttpIdle,
    /// A limit refuses the client's address, which became known only after accepting.
    Refused(Refusal),
    /// The client's credentials were refused or are no longer valid.
    Unauthorized(AuthRefusal),
    /// A trusted proxy did not send a valid PROXY protocol header.
    Proxy(ProxyError),
    /// TLS failed, during the handshake or later.
    Tls(String),
    /// The keys of a TLS 1.2 connection are exhausted and cannot be changed.
    TlsKeysUsedUp,
    /// A request failed, and the session's format has no error reply.
    BadRequest(String),
    /// A newer connection with the same identity took over.
    Replaced,
    /// The operator closed it.
    Operator,
    /// Unfinished messages exceeded their memory bound, and this session's was the oldest or could not grow.
    UnfinishedMemory,
}

impl CloseReason {
    /// The code in CLOSING.
    pub fn code(&self) -> u16 {
        match self {
            CloseReason::Peer
            | CloseReason::Transport(_)
            | CloseReason::Tls(_)
            | CloseReason::Http(_)
            | CloseReason::HttpIdle => 1000,
            CloseReason::Protocol(error) => error.close_code(),
            CloseReason::Proxy(_) => 1002,
            CloseReason::Refused(_) => CLOSE_REFUSED,
            CloseReason::Unauthorized(refusal) => refusal.close_code(),
            CloseReason::HandshakeDeadline => 3009,
            CloseReason::FrameDeadline => 3010,
            CloseReason::HeartbeatTimeout => 3011,
            CloseReason::SlowConsumer => 3008,
            CloseReason::UnfinishedMemory => 3012,
            CloseReason::Overloaded => 3013,
            CloseReason::TlsKeysUsedUp => 3014,
            CloseReason::Shutdown => 3001,
            CloseReason::BadRequest(_) => 3501,
            CloseReason::Replaced => 3502,
            CloseReason::Operator => 3503,
        }
    }

    /// Whether its client should not reconnect.
    pub fn is_final(&self) -> bool {
        !matches!(self.code(), 3000..3500 | CLOSE_REFUSED..)
    }

    /// The code in the WebSocket close frame: RFC 6455's own where it has one, because every client knows those.
    pub fn close_frame_code(&self) -> u16 {
        match self {
            CloseReason::Shutdown => 1001,
            _ => self.code(),
        }
    }

    /// The counter of sessions that ended for this reason.
    pub fn counter(&self) -> Counter {
        match self {
            CloseReason::Peer => Counter::ClosedByPeer,
            CloseReason::Protocol(_) => Counter::ClosedProtocol,
            CloseReason::HandshakeDeadline => Counter::ClosedHandshakeDeadline,
            CloseReason::FrameDeadline => Counter::ClosedFrameDeadline,
            CloseReason::HeartbeatTimeout => Counter::ClosedHeartbeatTimeout,
            CloseReason::SlowConsumer => Counter::ClosedSlowConsumer,
            CloseReason::Overloaded => Counter::ClosedOverloaded,
            CloseReason::Shutdown => Counter::ClosedShutdown,
            CloseReason::Transport(_) => Counter::ClosedTransport,
            CloseReason::Http(_) => Counter::ClosedHttp,
            CloseReason::HttpIdle => Counter::ClosedHttpIdle,
            CloseReason::Refused(refusal) => refusal.counter(),
            CloseReason::Unauthorized(refusal) => refusal.counter(),
            CloseReason::Proxy(_) => Counter::ClosedProxy,
            CloseReason::Tls(_) | CloseReason::TlsKeysUsedUp => Counter::ClosedTls,
            CloseReason::BadRequest(_) => Counter::ClosedBadRequest,
            CloseReason::Replaced => Counter::ClosedReplaced,
            CloseReason::Operator => Counter::ClosedByOperator,
            CloseReason::UnfinishedMemory => Counter::ClosedUnfinishedMemory,
        }
    }

    /// The status of the HTTP response that ends the connection, if no answer was sent.
    pub fn http_status(&self) -> Option<u16> {
        match self {
            CloseReason::HandshakeDeadline => Some(408),
            CloseReason::Refused(refusal) => Some(refusal.status()),
            CloseReason::Unauthorized(refusal) => Some(refusal.status()),
            CloseReason::Proxy(_) => Some(400),
            _ => None,
        }
    }

    /// The part of the outbox that is still sent before CLOSING.
    pub fn kept_outbox(&self) -> KeptOutbox {
        match self {
            // After a peer's WebSocket close, the outbox ends with the answer to it.
            CloseReason::Shutdown | CloseReason::Http(_) | CloseReason::Peer => KeptOutbox::Everything,
            // The peer does not read, so only CLOSING has a chance to arrive in time.
            CloseReason::SlowConsumer
            | CloseReason::Transport(_)
            | CloseReason::Tls(_)
            | CloseReason::HttpIdle => KeptOutbox::Nothing,
            CloseReason::Protocol(_)
            | CloseReason::HandshakeDeadline
            | CloseReason::FrameDeadline
            | CloseReason::HeartbeatTimeout
            | CloseReason::BadRequest(_)
            | CloseReason::Refused(_)
            | CloseReason::Unauthorized(_)
            | CloseReason::Proxy(_)
            | CloseReason::Replaced
            | CloseReason::Operator
            | CloseReason::Overloaded
            | CloseReason::TlsKeysUsedUp
            | CloseReason::UnfinishedMemory => KeptOutbox::Replies,
        }
    }

    /// Whether the session ends with CLOSING and the framing's close.
    pub fn has_goodbye(&self) -> bool {
        !matches!(
            self,
            CloseReason::Peer | CloseReason::Http(_) | CloseReason::HttpIdle | CloseReason::Tls(_)
        )
    }
}

impl From<DecodeError> for CloseReason {
    fn from(error: DecodeError) -> CloseReason {
        match error {
            DecodeError::OutOfMemory => CloseReason::UnfinishedMemory,
            error => CloseReason::Protocol(error),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Peer => write!(f, "closed by the peer"),
            CloseReason::Protocol(error) => write!(f, "{error}"),
            CloseReason::HandshakeDeadline => write!(f, "the handshake did not complete in time"),
            CloseReason::FrameDeadline => write!(f, "a frame did not arrive completely in time"),
            CloseReason::HeartbeatTimeout => write!(f, "no answer to a ping in time"),
            CloseReason::SlowConsumer => write!(f, "slow consumer: too far behind"),
            CloseReason::Overloaded => {
                write!(f, "the server is overloaded: it cannot send every tick in time")
            }
            CloseReason::Shutdown => write!(f, "the server is shutting down"),
            CloseReason::Transport(errno) => {
                write!(f, "socket error: {}", std::io::Error::from_raw_os_error(*errno))
            }
            CloseReason::Http(status) => write!(f, "HTTP request answered with {status}"),
            CloseReason::HttpIdle => write!(f, "no further HTTP request in time"),
            CloseReason::Refused(refusal) => f.write_str(refusal.text()),
            CloseReason::Unauthorized(refusal) => write!(f, "{refusal}"),
            CloseReason::Proxy(error) => write!(f, "{error}"),
            CloseReason::Tls(why) => write!(f, "TLS: {why}"),
            CloseReason::TlsKeysUsedUp => {
                write!(f, "the TLS 1.2 keys of this connection are used up: connect again, or use TLS 1.3")
            }
            CloseReason::BadRequest(text) => write!(f, "bad request: {text}"),
            CloseReason::Replaced => write!(f, "a newer connection with the same identity took over"),
            CloseReason::Operator => write!(f, "closed by the operator"),
            CloseReason::UnfinishedMemory => write!(f, "unfinished messages take too much memory"),
        }
    }
}

/// The part of an ending session's outbox that is still sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptOutbox {
    /// Replies and ticks.
    Everything,
    /// Replies to the client's requests, and the rest of a partly sent frame.
    Replies,
    /// Neither.
    Nothing,
}

/// A session's end under way.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Why it ends.
    pub reason: CloseReason,
    /// Whether the write side is shut down: the session then waits for the peer's FIN or the deadline.
    pub half_closed: bool,
    /// Whether the peer will send nothing more: it has sent FIN, or closed the WebSocket.
    pub peer_closed: bool,
    /// Progress of leaving its topics and patterns.
    pub departure: DepartureState,
}

impl Ending {
    /// Begins a session's end.
    pub fn new(reason: CloseReason) -> Ending {
        let peer_closed = reason == CloseReason::Peer;
        Ending { reason, half_closed: false, peer_closed, departure: DepartureState::Done }
    }
}

/// Progress of an ending session in leaving its topics and patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepartureState {
    /// Some topics or patterns still list the session, so it keeps its slot.
    Pending,
    /// Like `Pending`; the session is removed as soon as none lists it.
    RemovedWhenDone,
    /// None lists the session.
    Done,
}
