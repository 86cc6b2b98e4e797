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
//! blocking `std::net` socket; [`ReconnectingClient`] is one that comes back and goes on where it was. All give [`Event`]s
//! that borrow from what was received: a native tick costs no allocation.
//!
//! ```no_run
//! use tickcast_client::{Client, Event};
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
//! # Ok::<(), tickcast_client::ClientError>(())
//! ```

mod blocking;
pub mod clock;
mod error;
mod handshake;
mod positions;
mod reconnect;
mod reconnecting;
mod reply;
mod request;
#[cfg(any(test, feature = "script"))]
pub mod script;
mod session;
mod topics;

use tickcast_proto::{
    Encoding,
    ids::{Sequence, TopicId},
    limits::FRAME_BYTES_MAX_DEFAULT,
    subscription::{Delivery, From, Position},
};

pub use self::{
    blocking::{Address, Client},
    error::{ClientError, SessionError},
    positions::Positions,
    reconnect::{Backoff, is_welcome_back},
    reconnecting::{ReconnectOptions, ReconnectingClient, StreamEvent},
    request::{PublishRequest, RequestError},
    session::Session,
    topics::TopicStats,
};

/// Requests waiting to be written before [`Session`] refuses more, in bytes. One request may go past it.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Topics a server may announce on one session: about 170 bytes each.
pub const SESSION_TOPICS_MAX: usize = 1 << 20;
/// Capacity an idle session keeps for the next bytes; what a burst needed beyond it is given back.
pub const SESSION_BUFFER_KEEP_BYTES: usize = 4 << 10;
/// What a WebSocket message may be longer than the largest payload: base64 and a batch of ticks around it.
pub const MESSAGE_OVERHEAD_BYTES: usize = 256 << 10;

/// Upper bound of the first pause before connecting again, in milliseconds; it doubles with each attempt.
pub const RECONNECT_BASE_MS: u64 = 500;
/// Upper bound of every pause before connecting again, in milliseconds.
pub const RECONNECT_CAP_MS: u64 = 20_000;
/// How long a session must stay up before the next pause is a first one again, in milliseconds.
pub const RECONNECT_STABLE_MS: u64 = 10_000;
/// Longest time a server may send its clients away for, in milliseconds: a quarter of an hour.
pub const RECONNECT_AFTER_MS_MAX: u64 = 900_000;
/// Subscriptions a [`ReconnectingClient`] remembers.
pub const REMEMBERED_SUBSCRIPTIONS_MAX: usize = 65_536;

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

/// How a subscription is to be delivered and where it begins. The default: as the topic is configured, with the next
/// tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// What becomes of its ticks while the session is behind, and their highest rate.
    pub delivery: Delivery,
    /// Where it begins. [`From::Resume`]: after the places that [`Session::resume`] named. A raw session has no
    /// sequences: for it every place stands for [`From::Latest`].
    pub from: From,
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
    /// Ticks of a topic that a newer one stands for; that one follows.
    Conflated {
        /// The topic's name.
        topic: &'a str,
        /// The topic's number.
        topic_id: TopicId,
        /// The life of the sequencer that counted them.
        epoch: u64,
        /// Sequence of the first of them.
        from: u64,
        /// Sequence after the last of them.
        to: u64,
    },
    /// Ticks of a topic that are lost to this session: the server dropped them or no longer has them, or a snapshot
    /// came instead of them.
    Gap {
        /// The topic's name.
        topic: &'a str,
        /// The topic's number.
        topic_id: TopicId,
        /// The life of the sequencer that counted them.
        epoch: u64,
        /// Sequence of the first of them.
        from: u64,
        /// Sequence after the last of them.
        to: u64,
    },
    /// What became of a place that the client had in a topic. Not recovered in the same epoch: the newest follow as
    /// a snapshot, each with an [`Event::Gap`] before it that says exactly what is lost. Not recovered with another
    /// epoch than the place's: how much of the old one was lost nobody knows; sequences start anew.
    Recovered {
        /// The topic's name.
        topic: &'a str,
        /// The topic's number; 0 where it does not exist, or was not announced yet.
        topic_id: TopicId,
        /// The place; 0 and 0 where this session does not know which.
        place: Position,
        /// The life of the sequencer that counts now.
        epoch: u64,
        /// The topic's last sequence when the server looked it up; 0 where it was not asked.
        sequence: u64,
        /// Every tick after the place follows.
        recovered: bool,
    },
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
        /// A [`tickcast_proto::ErrorCode`], or a newer one.
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
    /// The life of the sequencer that counted it. With the sequence, a place to resume after.
    pub epoch: u64,
    /// Position in the topic, from 1; strictly increasing while subscribed.
    pub sequence: Sequence,
    /// Ticks of this topic between the previous one seen and this one that neither came nor were announced as left
    /// out: 0 unless the server broke its word. 0 for a topic's first, and for a snapshot.
    pub missed: u64,
    /// Producer's time, nanoseconds since 1970.
    pub producer_time_ns: u64,
    /// The server's time of receipt, nanoseconds since 1970; 0 in JSON, which does not carry it.
    pub ingest_time_ns: u64,
    /// The producer's mark; 0 for none, and in JSON, which does not carry it.
    pub schema: u32,
    /// What the tick is about within its topic; 0: none.
    pub key: u64,
    /// State to begin with, from before the subscription: the ticks between it and the one before are not missing.
    pub snapshot: bool,
    /// The server vouches that the payload is one JSON value.
    pub payload_is_json: bool,
    /// The producer's bytes.
    pub payload: &'a [u8],
}
