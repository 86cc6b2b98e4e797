//! What the server says to one session: the same replies in every wire format. What it says to many (ticks, topic
//! announcements) is encoded once in the egress logs instead.

use crate::{ErrorCode, WireFormat, ids::TopicId};

/// One reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To hello.
    Welcome {
        /// The hello's.
        request: u32,
        /// The server's life.
        epoch: u64,
        /// This session.
        session: u64,
        /// Largest frame taken, in bytes.
        frame_bytes_max: usize,
    },
    /// A subscription is live.
    Subscribed {
        /// The subscribe's.
        request: u32,
        /// What was subscribed.
        pattern: &'a str,
        /// The server's life.
        epoch: u64,
    },
    /// What became of a place that was named.
    Recovered {
        /// 0 for a topic that does not exist.
        topic_id: u32,
        /// The topic.
        name: &'a str,
        /// The server's life.
        epoch: u64,
        /// The topic's last sequence.
        sequence: u64,
        /// Whether every tick after the place follows; else the newest do.
        recovered: bool,
    },
    /// Ticks that a newer one stands for.
    Conflated {
        /// The topic.
        topic: TopicId,
        /// The topic.
        name: &'a str,
        /// The first of them.
        from: u64,
        /// The one after the last.
        to: u64,
    },
    /// Ticks that are lost to this session.
    Gap {
        /// The topic.
        topic: TopicId,
        /// The topic.
        name: &'a str,
        /// The first of them.
        from: u64,
        /// The one after the last.
        to: u64,
    },
    /// A subscription has ended.
    Unsubscribed {
        /// The unsubscribe's.
        request: u32,
        /// What was unsubscribed.
        pattern: &'a str,
    },
    /// To a ping.
    Pong {
        /// As it came.
        token: u64,
    },
    /// A request failed.
    Error {
        /// The request's; 0 where it named none.
        request: u32,
        /// Which rule it broke.
        code: ErrorCode,
        /// For a person.
        text: &'a str,
    },
    /// The last message; on a WebSocket the close frame follows by itself.
    Closing {
        /// As in the close frame.
        code: u16,
        /// For a person.
        reason: &'a str,
        /// When to come back, milliseconds from now; 0: at the client's own pace.
        reconnect_after_ms: u32,
    },
}

/// Who the server says it is.
pub const SERVER: &str = concat!("tickcast/", env!("CARGO_PKG_VERSION"));

impl Reply<'_> {
    /// Appends the reply, as a whole message; nothing where the codec has no replies.
    pub fn encode(&self, format: WireFormat, out: &mut Vec<u8>) {
        let WireFormat { codec, framing } = format;
        framing.write_with(codec.message_type(), out, |body| codec.encode_reply(self, body));
    }

    /// Appends the reply as it waits among the frames of its topic: without a header where headers are written as a SEND is
    /// gathered.
    pub fn encode_queued(&self, format: WireFormat, out: &mut Vec<u8>) {
        match format.framing.has_send_headers() {
            true => format.codec.encode_reply(self, out),
            false => self.encode(format, out),
        }
    }
}
