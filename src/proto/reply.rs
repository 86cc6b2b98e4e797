//! Replies: messages to one session, the same in every wire format. Messages that sessions share (ticks and topic
//! announcements) are encoded once, in the egress logs.

use crate::{ErrorCode, WireFormat, features::Features, ids::TopicId};

/// A message to one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Answers HELLO.
    Welcome {
        /// Request id of the HELLO.
        request: u32,
        /// Epoch of the server.
        epoch: u64,
        /// Session id. Below 2^53.
        session: u64,
        /// Largest frame that the server accepts, in bytes.
        frame_bytes_max: usize,
        /// Features granted. `None`: the client asked for none.
        features: Option<Features>,
    },
    /// Addresses of the nodes, after WELCOME. Feature `nodes`.
    Nodes {
        /// This node's id.
        node: &'a str,
        /// Addresses of nodes, as clients connect to them.
        addresses: &'a [&'a str],
    },
    /// When the client's token expires. Feature `tokens`.
    Expires {
        /// Request id of the HELLO or REFRESH; 0: a reminder.
        request: u32,
        /// Time until then, seconds; 0: never.
        expires_in_s: u32,
    },
    /// A subscription is live, or was updated.
    Subscribed {
        /// Request id of the SUBSCRIBE or UPDATE.
        request: u32,
        /// The pattern subscribed.
        pattern: &'a str,
        /// Epoch of the server.
        epoch: u64,
        /// When it became live: [`Moment::since_us`](crate::subscription::Moment). Feature `since`.
        since_us: Option<u64>,
    },
    /// Whether the ticks after a given position follow.
    Recovered {
        /// Topic id; 0: the topic does not exist.
        topic_id: u32,
        /// Topic name.
        name: &'a str,
        /// Epoch of the topic, or of the server if there is no such topic.
        epoch: u64,
        /// Last sequence of the topic.
        sequence: u64,
        /// Whether every tick after the position follows. If not, a snapshot does.
        recovered: bool,
        /// Why it was not recovered. Feature `reasons`.
        reason: Option<NotRecovered>,
    },
    /// Ticks that the next one replaces.
    Conflated(Skipped<'a>),
    /// Ticks that this session has lost.
    Gap(Skipped<'a>),
    /// A subscription has ended.
    Unsubscribed {
        /// Request id of the UNSUBSCRIBE.
        request: u32,
        /// The pattern unsubscribed.
        pattern: &'a str,
    },
    /// The server has ended a subscription. Feature `reasons`.
    Removed {
        /// The pattern.
        pattern: &'a str,
        /// Why.
        code: ErrorCode,
        /// Text for people; not sent in native frames.
        text: &'a str,
    },
    /// A tick has been sequenced. Feature `published`.
    Published {
        /// Request id of the PUBLISH.
        request: u32,
        /// Topic id.
        topic: TopicId,
        /// Topic name.
        name: &'a str,
        /// Epoch of the sequence.
        epoch: u64,
        /// The tick's sequence.
        sequence: u64,
        /// Whether its message id is a duplicate. If so, the sequence is that of the first tick with it.
        is_duplicate: bool,
    },
    /// The state of a source. Feature `sources`.
    Source {
        /// Its name in the configuration.
        name: &'a str,
        /// Its state.
        state: SourceState,
        /// Start of the state, nanoseconds since 1970.
        since_ns: u64,
    },
    /// Whether a topic's source has fallen silent. Feature `sources`.
    Stale {
        /// Topic id.
        topic: TopicId,
        /// Topic name.
        name: &'a str,
        /// Whether it is stale now.
        is_stale: bool,
        /// Since when, nanoseconds since 1970.
        since_ns: u64,
    },
    /// Answers PING.
    Pong {
        /// Token of the PING.
        token: u64,
    },
    /// A request failed.
    Error {
        /// Request id of the failed request; 0 if it had none.
        request: u32,
        /// Why it failed.
        code: ErrorCode,
        /// Text for people.
        text: &'a str,
    },
    /// The last message. Over WebSocket, a close frame follows it.
    Closing {
        /// Close code.
        code: u16,
        /// Text for people.
        reason: &'a str,
        /// Delay before reconnecting, milliseconds; 0: the client decides.
        reconnect_after_ms: u32,
    },
}

/// A range of ticks that are not delivered to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped<'a> {
    /// Topic id.
    pub topic: TopicId,
    /// Topic name.
    pub name: &'a str,
    /// First sequence of the range.
    pub from: u64,
    /// First sequence after the range.
    pub to: u64,
    /// Ticks in the range. `None`: the client does not have the feature `counts`.
    pub count: Option<u64>,
}

/// Why a position was not recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRecovered {
    /// The epoch of the position has passed.
    Epoch = 1,
    /// The history does not reach back that far.
    TooOld = 2,
    /// There is no such topic.
    UnknownTopic = 3,
    /// The position is ahead of the topic.
    Ahead = 4,
}

impl NotRecovered {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            NotRecovered::Epoch => "epoch",
            NotRecovered::TooOld => "too_old",
            NotRecovered::UnknownTopic => "unknown_topic",
            NotRecovered::Ahead => "ahead",
        }
    }
}

/// The state of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// It delivers.
    Up = 1,
    /// A fallback delivers in its place.
    Fallback = 2,
    /// Nothing delivers.
    Down = 3,
}

impl SourceState {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            SourceState::Up => "up",
            SourceState::Fallback => "fallback",
            SourceState::Down => "down",
        }
    }
}

/// The server's name and version, in WELCOME.
pub const SERVER: &str = concat!("tickcast/", env!("CARGO_PKG_VERSION"));

impl Reply<'_> {
    /// The id of the request that it answers; `None` if such replies answer none.
    pub fn request_mut(&mut self) -> Option<&mut u32> {
        match self {
            Reply::Welcome { request, .. }
            | Reply::Expires { request, .. }
            | Reply::Subscribed { request, .. }
            | Reply::Unsubscribed { request, .. }
            | Reply::Published { request, .. }
            | Reply::Error { request, .. } => Some(request),
            Reply::Nodes { .. }
            | Reply::Recovered { .. }
            | Reply::Conflated(_)
            | Reply::Gap(_)
            | Reply::Removed { .. }
            | Reply::Source { .. }
            | Reply::Stale { .. }
            | Reply::Pong { .. }
            | Reply::Closing { .. } => None,
        }
    }

    /// Appends the reply as a complete message, or nothing if the codec has no replies.
    pub fn encode(&self, format: WireFormat, out: &mut Vec<u8>) {
        let WireFormat { codec, framing } = format;
        framing.write_with(codec.message_type(), out, |body| codec.encode_reply(self, body));
    }

    /// Appends the reply for queueing among the frames of its topic: without a header if headers are written when a
    /// SEND is gathered.
    pub fn encode_queued(&self, format: WireFormat, out: &mut Vec<u8>) {
        let WireFormat { codec, framing } = format;
        match framing.has_send_headers() {
            true => framing.queue_with(codec.message_type(), out, |body| codec.encode_reply(self, body)),
            false => self.encode(format, out),
        }
    }
}
