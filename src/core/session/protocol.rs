//! The stages of a session in the protocol.

use super::{
    call::{Calls, PendingCall, Summary},
    places::Places,
    socket_io::{Carrier, SocketIo},
};
use tickcast_proto::{
    framing::{Decoder, websocket::Fragments},
    http,
    ids::ShardId,
};

/// A session's stage in the protocol, which decides how its input is parsed.
#[derive(Debug)]
pub enum Protocol {
    /// The input begins with a PROXY protocol header.
    ProxyHeader,
    /// The transport is deciding whether to admit the client, whose address has just become known. Its input is kept.
    Admitting,
    /// The input is HTTP requests.
    Http(HttpSession),
    /// The input is messages; the first must be HELLO.
    Hello(Decoder),
    /// The handshake bytes are kept for the shard that will serve the session.
    Leaving {
        /// That shard.
        to: ShardId,
        /// As [`HttpSession::is_forwarded`].
        is_forwarded: bool,
    },
    /// The input is messages in the session's wire format.
    Open(Decoder),
    /// The input is WebSocket messages to be echoed: `/echo`.
    Echo(Decoder),
    /// No input: the client of `/sse` only reads.
    Streaming(Box<Stream>),
    /// The input is packets of Socket.IO.
    SocketIo(Box<SocketIo>),
    /// The input is that of a Socket.IO session in another slot, or probes whether it may be.
    Carrier(Box<Carrier>),
}

/// A one-way stream.
#[derive(Debug)]
pub struct Stream {
    /// The stream's decoder, which accepts only line breaks.
    pub decoder: Decoder,
    /// What the client has received, if its framing reports that.
    pub places: Option<Places>,
}

/// An HTTP connection that has not become a WebSocket.
#[derive(Debug, Default)]
pub struct HttpSession {
    /// Decodes requests.
    pub connection: http::Connection,
    /// Whether a request on it has been answered before, or its first request is a `/v1` request. It may then stay idle, and
    /// its next request waits for room, and until the last answer is sent.
    pub is_kept: bool,
    /// Whether the idle deadline is pending. There is at most one.
    pub idle_timer_pending: bool,
    /// Whether the client's address is in `X-Forwarded-For` and the client has not been admitted by it yet.
    pub is_forwarded: bool,
    /// State of `/v1` requests; `None` before the first.
    pub calls: Option<Box<Calls>>,
}

impl Protocol {
    /// Begins to leave for another shard, which goes on with the bytes that are kept.
    pub fn leave(&mut self, to: ShardId) {
        let is_forwarded = matches!(self, Protocol::Http(http) if http.is_forwarded);
        *self = Protocol::Leaving { to, is_forwarded };
    }

    /// Whether the handshake is not complete yet, here or on another shard.
    pub fn is_handshake(&self) -> bool {
        match self {
            Protocol::ProxyHeader | Protocol::Admitting | Protocol::Leaving { .. } => true,
            Protocol::Hello(_) | Protocol::Http(_) => true,
            Protocol::Open(_) | Protocol::Echo(_) | Protocol::Streaming(_) => false,
            Protocol::SocketIo(_) | Protocol::Carrier(_) => false,
        }
    }

    /// Whether the input is HTTP requests.
    pub fn is_http(&self) -> bool {
        matches!(self, Protocol::Http(_))
    }

    /// Whether the connection is new. Its first request, unless it is a `/v1` request, is processed under any load, so that no
    /// flood locks new clients out.
    pub fn is_new(&self) -> bool {
        self.is_handshake() && !self.is_kept_http()
    }

    /// Whether this is an HTTP connection that has been answered and stays open.
    pub fn is_kept_http(&self) -> bool {
        matches!(self, Protocol::Http(http) if http.is_kept)
    }

    /// The message decoder; `None` while the input is not messages.
    pub fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        match self {
            Protocol::Hello(decoder) | Protocol::Open(decoder) | Protocol::Echo(decoder) => Some(decoder),
            Protocol::Streaming(stream) => Some(&mut stream.decoder),
            Protocol::SocketIo(state) => Some(&mut state.decoder),
            Protocol::Carrier(carrier) => Some(&mut carrier.decoder),
            Protocol::ProxyHeader | Protocol::Admitting | Protocol::Http(_) | Protocol::Leaving { .. } => {
                None
            }
        }
    }

    /// The unfinished WebSocket message, if some of its fragments have arrived.
    pub fn fragments(&self) -> Option<&Fragments> {
        match self {
            Protocol::Hello(decoder) | Protocol::Open(decoder) | Protocol::Echo(decoder) => {
                decoder.fragments()
            }
            Protocol::ProxyHeader | Protocol::Admitting | Protocol::Http(_) | Protocol::Leaving { .. } => {
                None
            }
            Protocol::Streaming(_) => None,
            Protocol::SocketIo(state) => state.decoder.fragments(),
            Protocol::Carrier(carrier) => carrier.decoder.fragments(),
        }
    }

    /// State of a WebSocket that carries, or may come to carry, a session that began by polling.
    pub fn carrier_mut(&mut self) -> Option<&mut Carrier> {
        match self {
            Protocol::Carrier(carrier) => Some(carrier),
            _ => None,
        }
    }

    /// What the client of an event stream has received.
    pub fn places_mut(&mut self) -> Option<&mut Places> {
        match self {
            Protocol::Streaming(stream) => stream.places.as_mut(),
            _ => None,
        }
    }

    /// The `/v1` request in progress.
    pub fn call_mut(&mut self) -> Option<&mut PendingCall> {
        match self {
            Protocol::Http(http) => http.calls.as_deref_mut()?.pending.as_mut(),
            _ => None,
        }
    }

    /// Whether a `/v1` request is in progress.
    #[inline]
    pub fn has_call(&self) -> bool {
        matches!(self, Protocol::Http(http) if http.calls.as_deref().is_some_and(|calls| calls.pending.is_some()))
    }

    /// Whether it is a request with a body of lines, more of which may come.
    pub fn takes_lines(&self) -> bool {
        matches!(self, Protocol::Http(http) if http.connection.takes_lines())
    }

    /// Heap bytes of a stream's places, a `/v1` request or a Socket.IO session's state.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Protocol::Streaming(stream) => {
                size_of::<Stream>() + stream.places.as_ref().map_or(0, Places::memory_bytes)
            }
            Protocol::Http(http) => http.calls.as_deref().map_or(0, |calls| {
                size_of::<Calls>()
                    + calls.pending.as_ref().map_or(0, PendingCall::memory_bytes)
                    + calls.summary.as_deref().map_or(0, Summary::memory_bytes)
            }),
            Protocol::SocketIo(state) => state.heap_bytes(),
            Protocol::Carrier(_) => size_of::<Carrier>(),
            _ => 0,
        }
    }

    /// Whether the client only reads.
    pub fn is_streaming(&self) -> bool {
        matches!(self, Protocol::Streaming(_))
    }
}
