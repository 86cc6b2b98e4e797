//! The client library: what users, `tickcast sub`, `tickcast pub` and the load client share.
//!
//! ```text
//!                 requests                     events
//!   subscribe, publish, ping, close      poll_event() -> Event
//!                    |                          ^
//!                    v                          |
//!              +------------------------------------------+
//!              | Session: no socket, no clock, no thread  |
//!              +------------------------------------------+
//!                    |                          ^
//!                    v                          |
//!            output() -> bytes          handle_bytes(bytes)
//! ```
//!
//! [`Session`] is the protocol over bytes, for whoever drives sockets of their own; [`Client`] is a session on a
//! blocking `std::net` socket. Both give [`Event`]s that borrow from what was received: a native tick costs no
//! allocation.
//!
//! ```no_run
//! use tickcast::client::{Client, Event};
//!
//! let mut client = Client::connect("127.0.0.1:9400")?;
//! client.subscribe("coinbase.>")?;
//! while let Some(event) = client.next_event(None)? {
//!     match event {
//!         Event::Tick(tick) => println!("{} {}", tick.topic, tick.sequence.0),
//!         Event::Closed => break,
//!         _ => {}
//!     }
//! }
//! # Ok::<(), tickcast::client::ClientError>(())
//! ```

pub mod commands;

mod blocking;
mod error;
mod handshake;
mod reply;
mod request;
#[cfg(test)]
mod script;
mod session;
mod topics;

use crate::{
    limits::FRAME_BYTES_MAX_DEFAULT,
    tick::{Sequence, TopicId},
    wire::Encoding,
};

pub use self::{
    blocking::{Address, Client},
    error::{ClientError, SessionError},
    request::{PublishRequest, RequestError},
    session::Session,
    topics::TopicStats,
};

/// Requests waiting to be written before [`Session`] refuses more, in bytes. One request may go past it.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Topics a server may announce on one session: about 120 bytes each.
pub const SESSION_TOPICS_MAX: usize = 1 << 20;
/// Capacity an idle session keeps for the next bytes; what a burst needed beyond it is given back.
pub const SESSION_BUFFER_KEEP_BYTES: usize = 4 << 10;
/// What a WebSocket message may be longer than the largest payload: base64 and a batch of ticks around it.
pub const MESSAGE_OVERHEAD_BYTES: usize = 256 << 10;

/// Longest name a client gives itself, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 255;

/// How a [`Session`] speaks and what it accepts.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The encoding; all but [`Encoding::Native`] are WebSockets.
    pub encoding: Encoding,
    /// The `Host` of the WebSocket handshake; unused for native.
    pub host: String,
    /// The path and query of the WebSocket handshake, `/ws` or `/ws?topics=a.%3E`; unused for native.
    pub path: String,
    /// Who the client is to the server, 1 to 255 bytes: the shard that serves it follows from that, and with
    /// `--identity-conflict replace` a newer connection ends an older one. Empty: nobody.
    pub client: String,
    /// What the client calls itself, for the operator's eyes; longer than [`CLIENT_NAME_BYTES_MAX`] it is not sent.
    pub name: String,
    /// Largest frame accepted from the server, in bytes; a WebSocket message may be [`MESSAGE_OVERHEAD_BYTES`] plus
    /// a third longer. Raise it where the server's `frame_bytes_max` was raised.
    pub frame_bytes_max: usize,
}

impl SessionOptions {
    /// The defaults for an encoding.
    pub fn new(encoding: Encoding) -> SessionOptions {
        SessionOptions {
            encoding,
            host: "localhost".into(),
            path: "/ws".into(),
            client: String::new(),
            name: concat!("tickcast-client/", env!("CARGO_PKG_VERSION")).into(),
            frame_bytes_max: FRAME_BYTES_MAX_DEFAULT,
        }
    }
}

/// What a server said. Borrows from the session until the next event is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The server answers the hello that the session opens with. Never on [`Encoding::WebSocketRaw`].
    Welcome {
        /// The server's name and version.
        server: &'a str,
        /// The server's life: nanoseconds since 1970 at its start.
        epoch: u64,
        /// This connection's number, for logs.
        session: u64,
        /// Largest frame the server accepts, in bytes.
        frame_bytes_max: u32,
    },
    /// A subscription holds: ticks published after this was read are delivered.
    Subscribed {
        /// What [`Session::subscribe`] returned; 0 for the patterns of the path.
        request: u32,
        /// The pattern.
        pattern: &'a str,
    },
    /// A topic that ticks may follow of.
    Topic {
        /// Its number in native frames.
        id: TopicId,
        /// Its name.
        name: &'a str,
        /// The life of the sequencer that counts it.
        epoch: u64,
    },
    /// A subscription has ended.
    Unsubscribed {
        /// What [`Session::unsubscribe`] returned.
        request: u32,
        /// The pattern.
        pattern: &'a str,
    },
    /// A tick.
    Tick(Tick<'a>),
    /// A tick on [`Encoding::WebSocketRaw`]: the payload is all that travels.
    Payload(&'a [u8]),
    /// The answer to a ping: the server has taken in all that was sent before it.
    Pong {
        /// What [`Session::ping`] returned.
        token: u64,
    },
    /// A request failed; the session lives on.
    Error {
        /// The request's number; 0 where the server could not read it.
        request: u32,
        /// A [`crate::wire::ErrorCode`], or a newer one.
        code: u16,
        /// What is wrong.
        text: &'a str,
    },
    /// The server is about to close, and says why. [`Event::Closed`] follows.
    Closing {
        /// A close code of the protocol.
        code: u16,
        /// Why.
        text: &'a str,
        /// When to come back, milliseconds from now; 0: at the client's own pace.
        reconnect_after_ms: u32,
    },
    /// Nothing more will come.
    Closed,
}

/// One tick, with its place in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The topic's number.
    pub topic_id: TopicId,
    /// Position in the topic, from 1; strictly increasing on a session.
    pub sequence: Sequence,
    /// Ticks of this topic between the previous one seen and this one that did not come. 0 for a topic's first.
    pub missed: u64,
    /// Producer's time, nanoseconds since 1970.
    pub producer_time_ns: u64,
    /// The server's time of receipt, nanoseconds since 1970; 0 in JSON, which does not carry it.
    pub ingest_time_ns: u64,
    /// The producer's mark; 0 for none, and in JSON, which does not carry it.
    pub schema: u32,
    /// The server vouches that the payload is one JSON value.
    pub payload_is_json: bool,
    /// The producer's bytes.
    pub payload: &'a [u8],
}
