//! What the server says to one session: the same replies in every encoding. What it says to many (ticks, topic
//! announcements) is encoded once in the egress logs instead.

use crate::{
    Encoding, ErrorCode,
    codec::json,
    frame::{self, Kind, Meta},
    framing::websocket::{self, DataType},
    ids::TopicId,
    records::{Closing, ErrorRecord, Recovered, Request, Subscribed, Token, Welcome},
};

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
    /// Appends the reply as its encoding has it: nothing for raw, which carries payloads only.
    pub fn encode(&self, encoding: Encoding, out: &mut Vec<u8>) {
        match encoding {
            Encoding::Native => self.encode_frame(out),
            Encoding::WebSocketRkyv => {
                let mut body = Vec::with_capacity(128);
                self.encode_frame(&mut body);
                websocket::encode(out, DataType::Binary, &body);
            }
            Encoding::WebSocketJson => {
                let mut body = Vec::with_capacity(128);
                self.encode_json(&mut body);
                websocket::encode(out, DataType::Text, &body);
            }
            Encoding::WebSocketRaw => {}
        }
    }

    fn encode_frame(&self, out: &mut Vec<u8>) {
        let meta = Meta::default();
        match *self {
            Reply::Welcome { request, epoch, session, frame_bytes_max } => {
                let record = Welcome { epoch, session, frame_bytes_max: frame_bytes_max as u32, request };
                frame::encode(out, Kind::Welcome, meta, &record, &[SERVER.as_bytes()]);
            }
            Reply::Subscribed { request, pattern, epoch } => {
                let record = Subscribed { epoch, request, reserved: 0 };
                frame::encode(out, Kind::Subscribed, meta, &record, &[pattern.as_bytes()]);
            }
            Reply::Unsubscribed { request, pattern } => {
                let record = Request { request, reserved: 0 };
                frame::encode(out, Kind::Unsubscribed, meta, &record, &[pattern.as_bytes()]);
            }
            Reply::Recovered { topic_id, name, epoch, sequence, recovered } => {
                let meta = Meta { topic_id, ..meta };
                let record = Recovered { epoch, sequence, recovered: recovered.into(), reserved: 0 };
                frame::encode(out, Kind::Recovered, meta, &record, &[name.as_bytes()]);
            }
            Reply::Conflated { topic, from, to, .. } => {
                frame::encode_skipped(out, Kind::Conflated, topic, from, to);
            }
            Reply::Gap { topic, from, to, .. } => frame::encode_skipped(out, Kind::Gap, topic, from, to),
            Reply::Pong { token } => {
                frame::encode(out, Kind::Pong, meta, &Token { token }, &[]);
            }
            Reply::Error { request, code, text } => {
                let record = ErrorRecord { request, code: code as u16, reserved: 0 };
                frame::encode(out, Kind::Error, meta, &record, &[text.as_bytes()]);
            }
            Reply::Closing { code, reason, reconnect_after_ms } => {
                let record = Closing { reconnect_after_ms, code, reserved: 0 };
                frame::encode(out, Kind::Closing, meta, &record, &[reason.as_bytes()]);
            }
        }
    }

    fn encode_json(&self, out: &mut Vec<u8>) {
        match *self {
            Reply::Welcome { request, epoch, session, frame_bytes_max } => {
                json::encode_welcome(out, request, SERVER, epoch, session, frame_bytes_max);
            }
            Reply::Subscribed { request, pattern, .. } => json::encode_subscribed(out, request, pattern),
            Reply::Unsubscribed { request, pattern } => json::encode_unsubscribed(out, request, pattern),
            Reply::Recovered { name, epoch, sequence, recovered, .. } => {
                json::encode_recovered(out, name, epoch, sequence, recovered);
            }
            Reply::Conflated { name, from, to, .. } => json::encode_skipped(out, "conflated", name, from, to),
            Reply::Gap { name, from, to, .. } => json::encode_skipped(out, "gap", name, from, to),
            Reply::Pong { token } => json::encode_pong(out, token),
            Reply::Error { request, code, text } => json::encode_error(out, request, code, text),
            Reply::Closing { code, reason, reconnect_after_ms } => {
                json::encode_closing(out, code, reason, reconnect_after_ms);
            }
        }
    }
}
