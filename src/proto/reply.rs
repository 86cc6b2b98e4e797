//! Replies: messages to one session, the same in every wire format. Messages that sessions share (ticks and topic
//! announcements) are encoded once, in the egress logs.

use crate::{ErrorCode, WireFormat, ids::TopicId};

/// A message to one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Answers HELLO.
    Welcome {
        /// Request id of the HELLO.
        request: u32,
        /// Epoch of the server's topics.
        epoch: u64,
        /// Session id.
        session: u64,
        /// Largest frame that the server accepts, in bytes.
        frame_bytes_max: usize,
    },
    /// A subscription is live, or was updated.
    Subscribed {
        /// Request id of the SUBSCRIBE or UPDATE.
        request: u32,
        /// The pattern subscribed.
        pattern: &'a str,
        /// Epoch of the server's topics.
        epoch: u64,
    },
    /// Whether the ticks after a given position follow.
    Recovered {
        /// Topic id; 0: the topic does not exist.
        topic_id: u32,
        /// Topic name.
        name: &'a str,
        /// Epoch of the server's topics.
        epoch: u64,
        /// Last sequence of the topic.
        sequence: u64,
        /// Whether every tick after the position follows. If not, a snapshot does.
        recovered: bool,
    },
    /// Ticks that the next one replaces.
    Conflated {
        /// Topic id.
        topic: TopicId,
        /// Topic name.
        name: &'a str,
        /// First sequence of the range.
        from: u64,
        /// First sequence after the range.
        to: u64,
    },
    /// Ticks that this session has lost.
    Gap {
        /// Topic id.
        topic: TopicId,
        /// Topic name.
        name: &'a str,
        /// First sequence of the range.
        from: u64,
        /// First sequence after the range.
        to: u64,
    },
    /// A subscription has ended.
    Unsubscribed {
        /// Request id of the UNSUBSCRIBE.
        request: u32,
        /// The pattern unsubscribed.
        pattern: &'a str,
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

/// The server's name and version, in WELCOME.
pub const SERVER: &str = concat!("tickcast/", env!("CARGO_PKG_VERSION"));

impl Reply<'_> {
    /// Appends the reply as a complete message, or nothing if the codec has no replies.
    pub fn encode(&self, format: WireFormat, out: &mut Vec<u8>) {
        let WireFormat { codec, framing } = format;
        framing.write_with(codec.message_type(), out, |body| codec.encode_reply(self, body));
    }

    /// Appends the reply for queueing among the frames of its topic: without a header if headers are written when a
    /// SEND is gathered.
    pub fn encode_queued(&self, format: WireFormat, out: &mut Vec<u8>) {
        match format.framing.has_send_headers() {
            true => format.codec.encode_reply(self, out),
            false => self.encode(format, out),
        }
    }
}
