//! Client library for tickcast servers: subscribe to ticks and publish them.
//!
//! | type | use it when |
//! |---|---|
//! | `AsyncClient` (feature `tokio`) | you are on tokio |
//! | [`SessionClient`] | a thread may block |
//! | [`ReconnectingClient`] | the same; fewer features, and events that cost no copy |
//! | [`Client`] | the same for one connection, without reconnects |
//! | [`Session`], [`Connection`] | you drive the socket: an event loop, another runtime, a simulation |
//!
//! [`Session`] and [`Connection`] are the protocol without a socket, a clock or a thread. A session reconnects, resumes, refreshes its
//! token and keeps publishes until they are answered. `AsyncClient` and [`SessionClient`] wrap it; what it does is the same in all SDKs.
//! A connection is less: requests and received bytes go in, events and bytes to send come out. The other two wrap it:
//!
//! ```text
//!                 requests                      events
//!   subscribe, publish, ping, close       poll_event() -> Event
//!                    |                           ^
//!                    v                           |
//!           +--------------------------------------------+
//!           |                 Connection                 |
//!           +--------------------------------------------+
//!                    |                           ^
//!                    v                           |
//!        poll_transmit() -> bytes       handle_bytes(bytes)
//! ```
//!
//! [`Event`]s borrow from the receive buffer: a native tick costs no allocation.
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
//! Addresses with `tls://` and `wss://` use TLS; [`TlsOptions`] defines which servers the client trusts.
//!
//! Only `AsyncClient` publishes through `&self`. The blocking clients read and write in the calls of the thread that owns them, so
//! another thread could only leave a tick in a queue that nobody sends before the owner's next call. To publish from several
//! threads, give each a client of its own, or send ticks to the owner by a channel.
//!
//! [`KeyedView`] and [`BookView`] keep the last values, or the order books, of a subscription.
//!
//! `src/client/examples/` has complete programs: `subscribe`, `publish`, `recover` (gaps, conflation, reconnects), and `service` (on
//! tokio).

mod acknowledgements;
mod address;
mod addresses;
#[cfg(feature = "tokio")]
mod asynchronous;
mod backoff;
mod blocking;
mod client_options;
mod clock;
mod connection;
mod error;
mod handshake;
mod link;
mod positions;
mod reconnecting;
mod reply;
mod request;
#[cfg(any(test, feature = "scripted-server"))]
pub mod scripted_server;
mod session;
mod tls;
mod token;
mod topics;
mod views;

use std::path::PathBuf;

use tickcast_proto::{
    WireFormat,
    ids::{Sequence, TopicId},
    limits::FRAME_BYTES_MAX_DEFAULT,
    subscription::{Delivery, Position, StartPosition},
};

#[cfg(feature = "tokio")]
pub use self::asynchronous::{
    AsyncClient, AsyncOptions, CLIENT_EVENTS_MAX, ClientEvents, EVENTS_MAX, GetToken, PUBLISH_TIMEOUT,
    SavePositions, SubscribeError, Subscription, TokenFuture,
};
pub use self::{
    address::Address,
    backoff::{Backoff, is_retryable_close},
    blocking::{Client, GetTokenBlocking, SavePositionsBlocking, SessionClient, SessionClientOptions},
    client_options::ClientOptions,
    connection::Connection,
    error::{ClientError, ProtocolError, PublishError},
    positions::Positions,
    reconnecting::{ReconnectOptions, ReconnectingClient, StreamEvent},
    request::{PublishRequest, RequestError},
    session::{
        Action, Change, ClientEvent, ClientState, Message, PublishFailure, PublishId, PublishOutcome,
        PublishedAt, Random, RecoveryFailure, Session, SessionOptions, SharedTick, SkippedTicks, SourceState,
        SubscriptionEvent, SubscriptionState, TokenPurpose,
    },
    tls::{TlsError, TlsOptions, server_name},
    token::ClientToken,
    topics::TopicStats,
    views::{BookView, KeyedView, Level, OrderBook},
};

/// Bytes of waiting requests at which a [`Connection`] rejects further ones. One request may exceed it.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Publishes that may wait for their answers if the server acknowledges publishes. A [`Connection`] rejects further ones.
pub const PUBLISHES_UNACKNOWLEDGED_MAX: usize = 1_024;
/// Bytes of publishes with message ids that a [`ReconnectingClient`] or [`Session`] keeps until they are answered.
pub const RETRIED_BYTES_MAX: usize = 8 << 20;
/// Time for which a [`ReconnectingClient`] or [`Session`] sends a publish with a message id again, in milliseconds: half of the time for
/// which a server remembers ids by default.
pub const RETRIED_AGE_MS_MAX: u64 = 60_000;
/// Topics a server may announce on one connection, about 170 bytes each.
pub const CONNECTION_TOPICS_MAX: usize = 1 << 20;
/// Buffer capacity that an idle connection keeps, in bytes; it frees larger buffers after a burst.
pub const IDLE_BUFFER_BYTES_MAX: usize = 4 << 10;
/// Bytes a WebSocket message may have beyond the largest payload: its envelope and a batch of ticks.
pub const MESSAGE_OVERHEAD_BYTES: usize = 256 << 10;

/// Upper bound of the first reconnect delay, in milliseconds; it doubles with each attempt.
pub const RECONNECT_BASE_MS: u64 = 500;
/// Upper bound of every reconnect delay, in milliseconds.
pub const RECONNECT_CAP_MS: u64 = 20_000;
/// Time a connection must last before reconnect delays start small again, in milliseconds.
pub const RECONNECT_STABLE_MS: u64 = 10_000;
/// Longest reconnect delay that a server can request, in milliseconds.
pub const RECONNECT_AFTER_MS_MAX: u64 = 900_000;
/// Subscriptions that a [`ReconnectingClient`] can hold.
pub const REMEMBERED_SUBSCRIPTIONS_MAX: usize = 65_536;

/// Requests of a [`Session`]'s connection, other than publishes, that may wait for their answers.
pub const REQUESTS_UNANSWERED_MAX: usize = REMEMBERED_SUBSCRIPTIONS_MAX + 4_096;
/// Bytes of the topics' names in one subscription of a [`Session`] that resumes. With more, it starts with the last values.
pub const RESUME_NAMES_BYTES_MAX: usize = 1 << 20;
/// Publishes that a [`Session`] keeps while there is no connection, or too many others have no answer, by default.
pub const OFFLINE_QUEUE_MAX: usize = 64;
/// Bytes of their payloads.
pub const OFFLINE_QUEUE_BYTES_MAX: usize = 256 << 10;
/// Entries of a [`KeyedView`] by default, all topics together.
pub const VIEW_ENTRIES_MAX: usize = 65_536;
/// Books of a [`BookView`].
pub const BOOKS_MAX: usize = 65_536;
/// Price levels of one side of an [`OrderBook`].
pub const BOOK_LEVELS_MAX: usize = 65_536;

/// Longest name of a client, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 255;

/// Options of a [`Connection`]: its encoding, the client's identity, and what the client accepts.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The encoding: [`WireFormat::TCP_NATIVE`], [`WireFormat::WEBSOCKET_NATIVE`], [`WireFormat::WEBSOCKET_JSON`] or
    /// [`WireFormat::WEBSOCKET_RAW`].
    pub encoding: WireFormat,
    /// `Host` header of the WebSocket handshake; not used by native connections.
    pub host: String,
    /// Path and query of the WebSocket handshake, such as `/ws` or `/ws?topics=a.%3E`; not used by native connections.
    pub path: String,
    /// The client's identity, 1 to 255 bytes of UTF-8 without control characters; empty: none. It decides which shard
    /// serves the client. With `--identity-conflict replace`, a new connection closes an older one of the same identity.
    pub client: String,
    /// The client's name in the server's log and admin pages. Not sent if longer than [`CLIENT_NAME_BYTES_MAX`].
    pub name: String,
    /// Whether to ask the server to acknowledge each publish: [`Event::Published`] or [`Event::Error`] answers it. Read the
    /// events, or no more than [`PUBLISHES_UNACKNOWLEDGED_MAX`] publishes are accepted. A server of version 0.1 does not know
    /// acknowledgements: see [`Connection::acknowledges`]. Not used by raw connections, which have no replies.
    pub acknowledgements: bool,
    /// Whether to ask the server to put the ticks that it sends at a time into one WebSocket message, which costs both sides less.
    /// The default is `true`. Not used by native and raw connections.
    pub batches: bool,
    /// The client's token: in HELLO, or in the `Authorization` of a WebSocket. It is sent on plain connections too.
    pub token: Option<ClientToken>,
    /// File whose first line is the token, in place of `token`. Read for each connection, and once a second while the client reads
    /// events: a new token in it replaces the one of the living connection. Only for [`Client`] and [`ReconnectingClient`].
    pub token_file: Option<PathBuf>,
    /// How a server that speaks TLS is verified. Only for [`Client`] and [`ReconnectingClient`].
    pub tls: TlsOptions,
    /// Largest frame accepted from the server, in bytes; a WebSocket message may be a third longer, plus
    /// [`MESSAGE_OVERHEAD_BYTES`]. Must be at least the server's `frame_bytes_max`.
    pub frame_bytes_max: usize,
}

impl ConnectOptions {
    /// The default options for an encoding.
    pub fn new(encoding: WireFormat) -> ConnectOptions {
        ConnectOptions {
            encoding,
            host: "localhost".into(),
            path: "/ws".into(),
            client: String::new(),
            name: concat!("tickcast-client/", env!("CARGO_PKG_VERSION")).into(),
            acknowledgements: false,
            batches: true,
            token: None,
            token_file: None,
            tls: TlsOptions::default(),
            frame_bytes_max: FRAME_BYTES_MAX_DEFAULT,
        }
    }
}

/// Delivery and start of a subscription. The default: the topic's configured policy, starting with the next tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Policy while the client lags, and maximum rate.
    pub delivery: Delivery,
    /// Where the subscription starts. [`StartPosition::Resume`] means after the positions passed to [`Connection::resume`]. A raw
    /// connection has no sequences: every position means [`StartPosition::Latest`] there.
    pub from: StartPosition,
}

/// A message from the server. Borrows from the connection until the next poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The server accepted the connection. Never on [`WireFormat::WEBSOCKET_RAW`].
    Welcome {
        /// The server's name and version.
        server: &'a str,
        /// The server's epoch: its start time, nanoseconds since 1970.
        epoch: u64,
        /// The server's number for this connection, as in its log.
        session: u64,
        /// Largest frame the server accepts, in bytes.
        frame_bytes_max: u32,
    },
    /// A subscription is active: ticks published from now on are delivered.
    Subscribed {
        /// Request number returned by [`Connection::subscribe`]; 0 for patterns in the path.
        request: u32,
        /// The pattern.
        pattern: &'a str,
    },
    /// A topic that matches a subscription; its ticks follow.
    Topic {
        /// The topic's number in native frames.
        id: TopicId,
        /// The topic's name.
        name: &'a str,
        /// Epoch of the topic's sequences.
        epoch: u64,
    },
    /// A subscription has ended.
    Unsubscribed {
        /// Request number returned by [`Connection::unsubscribe`].
        request: u32,
        /// The pattern.
        pattern: &'a str,
    },
    /// A tick.
    Tick(Tick<'a>),
    /// A range of ticks that a newer one replaces; the newer one follows.
    Conflated {
        /// The topic's name.
        topic: &'a str,
        /// The topic's number.
        topic_id: TopicId,
        /// Epoch of the range.
        epoch: u64,
        /// First sequence of the range.
        from: u64,
        /// First sequence after the range.
        to: u64,
        /// Ticks in the range.
        count: u64,
    },
    /// A range of ticks that this client has lost: the server dropped them, no longer has them, or sent a snapshot instead.
    Gap {
        /// The topic's name.
        topic: &'a str,
        /// The topic's number.
        topic_id: TopicId,
        /// Epoch of the range.
        epoch: u64,
        /// First sequence of the range.
        from: u64,
        /// First sequence after the range.
        to: u64,
        /// Ticks in the range.
        count: u64,
    },
    /// The answer to a resume position.
    /// If it was not recovered in the same epoch, a snapshot of the last ticks follows, and an [`Event::Gap`] before
    /// each of its ticks says exactly what was lost. In another epoch, sequences start over, and it is unknown how many
    /// ticks of the old epoch were lost.
    Recovered {
        /// The topic's name.
        topic: &'a str,
        /// The topic's number; 0 if the topic does not exist or is not announced yet.
        topic_id: TopicId,
        /// The requested position; (0, 0) if this connection does not know it.
        requested: Position,
        /// The topic's epoch now.
        epoch: u64,
        /// The topic's last sequence when the server looked it up; 0 if the server was not asked.
        sequence: u64,
        /// Whether every tick after the position follows.
        recovered: bool,
    },
    /// A tick on [`WireFormat::WEBSOCKET_RAW`], which carries payloads only.
    Payload(&'a [u8]),
    /// A publish was accepted: the topic's home has sequenced the tick and passes it on to subscribers. Only if
    /// [`ConnectOptions::acknowledgements`] asks for it and the server grants it. Answers to publishes on different topics come
    /// in any order.
    Published {
        /// Request number returned by [`Connection::publish`].
        request: u32,
        /// The topic's name.
        topic: &'a str,
        /// Epoch of the sequence.
        epoch: u64,
        /// The tick's sequence.
        sequence: u64,
        /// Whether the server had a tick with this message id before. Epoch and sequence are that tick's.
        is_duplicate: bool,
    },
    /// Which of several servers this connection has reached, and the addresses of all. Follows the welcome, if the server has been
    /// given a name or addresses.
    Nodes {
        /// The server's name among them; empty: none.
        node: &'a str,
        /// Addresses as clients connect to them, separated by spaces.
        addresses: &'a str,
    },
    /// The answer to a ping: the shard that serves this connection has processed everything sent before it. Publishes to topics
    /// of other shards may still be on their way, and may be refused.
    Pong {
        /// Token returned by [`Connection::ping`].
        token: u64,
    },
    /// A request failed. The connection stays open.
    Error {
        /// The request's number; 0 if the server could not read it.
        request: u32,
        /// A [`tickcast_proto::ErrorCode`], or one of a newer server.
        code: u16,
        /// The reason, for a person.
        text: &'a str,
    },
    /// The server is about to close the connection. [`Event::Closed`] follows.
    Closing {
        /// A close code of the protocol.
        code: u16,
        /// The reason, for a person.
        text: &'a str,
        /// Delay before reconnecting that the server requests, in milliseconds; 0: none.
        reconnect_after_ms: u32,
    },
    /// The connection has ended: the last event.
    Closed,
}

/// One tick and its position in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The topic's number.
    pub topic_id: TopicId,
    /// Epoch of the sequence. Both together are a position to resume after.
    pub epoch: u64,
    /// Position in the topic, from 1; strictly increasing while subscribed.
    pub sequence: Sequence,
    /// Ticks between the topic's previous tick and this one that were neither delivered nor announced as skipped.
    /// 0 unless the server has a bug. A topic's first tick and snapshots count nothing before them as missed.
    pub missed: u64,
    /// Producer's timestamp, nanoseconds since 1970.
    pub producer_time_ns: u64,
    /// Server's time of receipt, nanoseconds since 1970; 0 in JSON, which does not carry it.
    pub ingest_time_ns: u64,
    /// Application-defined schema number; 0: none, and in JSON, which does not carry it.
    pub schema: u32,
    /// Key within the topic; 0: none.
    pub key: u64,
    /// Whether it is part of a snapshot: state from before the subscription. Sequences between snapshot ticks are not missing.
    pub snapshot: bool,
    /// Whether the server guarantees that the payload is one JSON value.
    pub payload_is_json: bool,
    /// The producer's bytes, unchanged.
    pub payload: &'a [u8],
}
