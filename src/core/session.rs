//! One client connection's state: what it speaks, what it has sent, what waits to be sent, and why it ends.
mod batch;
mod eviction;
pub mod holders;
pub mod membership;
pub mod table;
#[cfg(test)]
mod tests;

pub use self::eviction::Fate;

use std::{collections::VecDeque, fmt};

use crate::{
    egress_log::{EgressLog, Mark, Range},
    fanout::Subscription,
    ids::SessionId,
    limits::{OUTBOX_RANGES_MAX, REPLY_BYTES_MAX, SEND_BYTES_MAX, SEND_DIRECT_BYTES},
    metrics::counters::Counter,
    session::membership::{Lag, Membership, TopicMap},
};
use tickcast_proto::{DecodeError, WireFormat, framing::Decoder, ids::ShardId};

/// Why a session ended. Every session ends with exactly one, and each is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed: FIN, or a WebSocket close.
    Peer,
    /// The peer broke the protocol.
    Protocol(DecodeError),
    /// The handshake was not done in time.
    HandshakeDeadline,
    /// A frame that had begun did not arrive whole in time.
    FrameDeadline,
    /// The peer was silent for too long after a ping.
    HeartbeatTimeout,
    /// The peer reads slower than its outbox allows.
    SlowConsumer,
    /// The server stops.
    Shutdown,
    /// The socket failed, with this errno.
    Transport(i32),
    /// An HTTP request was answered with this status.
    Http(u16),
    /// A request failed on a session that has no way to be told.
    BadRequest(String),
    /// A newer connection of the same identity takes its place.
    Replaced,
    /// The operator closed it.
    Operator,
}

impl CloseReason {
    /// The code in CLOSING.
    pub fn code(&self) -> u16 {
        match self {
            CloseReason::Peer | CloseReason::Transport(_) | CloseReason::Http(_) => 1000,
            CloseReason::Protocol(error) => error.close_code(),
            CloseReason::HandshakeDeadline => 3009,
            CloseReason::FrameDeadline => 3010,
            CloseReason::HeartbeatTimeout => 3011,
            CloseReason::SlowConsumer => 3008,
            CloseReason::Shutdown => 3001,
            CloseReason::BadRequest(_) => 3501,
            CloseReason::Replaced => 3502,
            CloseReason::Operator => 3503,
        }
    }

    /// The code in the WebSocket close frame: where RFC 6455 has one that every client knows, that one.
    pub fn close_frame_code(&self) -> u16 {
        match self {
            CloseReason::Shutdown => 1001,
            _ => self.code(),
        }
    }

    /// Where it is counted.
    pub fn counter(&self) -> Counter {
        match self {
            CloseReason::Peer => Counter::ClosedByPeer,
            CloseReason::Protocol(_) => Counter::ClosedProtocol,
            CloseReason::HandshakeDeadline => Counter::ClosedHandshakeDeadline,
            CloseReason::FrameDeadline => Counter::ClosedFrameDeadline,
            CloseReason::HeartbeatTimeout => Counter::ClosedHeartbeatTimeout,
            CloseReason::SlowConsumer => Counter::ClosedSlowConsumer,
            CloseReason::Shutdown => Counter::ClosedShutdown,
            CloseReason::Transport(_) => Counter::ClosedTransport,
            CloseReason::Http(_) => Counter::ClosedHttp,
            CloseReason::BadRequest(_) => Counter::ClosedBadRequest,
            CloseReason::Replaced => Counter::ClosedReplaced,
            CloseReason::Operator => Counter::ClosedByOperator,
        }
    }

    /// Whether what waits is worth sending before the goodbye.
    pub fn flushes(&self) -> bool {
        matches!(self, CloseReason::Shutdown | CloseReason::Http(_))
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Peer => write!(f, "closed by the peer"),
            CloseReason::Protocol(error) => write!(f, "{error}"),
            CloseReason::HandshakeDeadline => write!(f, "the handshake was not done in time"),
            CloseReason::FrameDeadline => write!(f, "a frame that had begun did not arrive whole in time"),
            CloseReason::HeartbeatTimeout => write!(f, "no answer to a ping in time"),
            CloseReason::SlowConsumer => write!(f, "slow consumer: too far behind"),
            CloseReason::Shutdown => write!(f, "the server stops"),
            CloseReason::Transport(errno) => {
                write!(f, "socket: {}", std::io::Error::from_raw_os_error(*errno))
            }
            CloseReason::Http(status) => write!(f, "HTTP request answered with {status}"),
            CloseReason::BadRequest(text) => write!(f, "bad request: {text}"),
            CloseReason::Replaced => write!(f, "a newer connection of the same identity takes its place"),
            CloseReason::Operator => write!(f, "closed by the operator"),
        }
    }
}

/// What is known of a peer's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pulse {
    /// Nothing is being waited for.
    #[default]
    Quiet,
    /// It has been pinged, and was silent since.
    Pinged,
    /// It was still silent when half the time-out was over.
    Late,
}

/// Which kind of listener a connection came through: it decides how the handshake begins, and nothing later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Native TCP: HELLO opens the session.
    Native,
    /// HTTP: an upgrade opens the session.
    Http,
}

/// How far a session is in the protocol: what its input is.
#[derive(Debug)]
pub enum Protocol {
    /// An HTTP request head, not yet whole.
    HttpHead,
    /// Messages, of which the first has to be HELLO.
    Hello(Decoder),
    /// Handshake bytes, kept for the shard that is to serve the session.
    Leaving(ShardId),
    /// Messages of the session's wire format.
    Open(Decoder),
    /// WebSocket messages that are sent back: `/echo`.
    Echo(Decoder),
}

impl Protocol {
    /// Whether the handshake is still to be done, here or elsewhere.
    pub fn is_handshake(&self) -> bool {
        matches!(self, Protocol::Hello(_) | Protocol::HttpHead | Protocol::Leaving(_))
    }

    /// The decoder of its messages; `None` while its input is no message.
    pub fn decoder_mut(&mut self) -> Option<&mut Decoder> {
        match self {
            Protocol::Hello(decoder) | Protocol::Open(decoder) | Protocol::Echo(decoder) => Some(decoder),
            Protocol::HttpHead | Protocol::Leaving(_) => None,
        }
    }
}

/// Something that waits to be sent, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    /// Shared frames in the egress log of the session's wire format.
    Log(Range),
    /// The next bytes of the session's own replies.
    Reply(u32),
    /// The same, one frame of a topic that only this session gets: what it missed, or word of what it will not get.
    Own { sequence: u64, topic: u32, skipped: u32, len: u32 },
}

const _: () = assert!(size_of::<Segment>() == 24, "limits.rs says what a full outbox holds");
const _: () = assert!(size_of::<Session>() <= 352, "the docs of Session say how large it is");

/// Where the bytes of one SEND are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the egress log.
    Log(Range),
    /// In the scratch they were gathered into: start and length.
    Gathered(usize, usize),
}

/// The next SEND, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// These bytes; the session is sending until told otherwise.
    Send(Source),
    /// Nothing waits.
    Idle,
    /// What waited has been overwritten: the session was too slow.
    Lapped,
}

/// A session that is about to end.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Why.
    pub reason: CloseReason,
    /// Its write side has been shut: only the peer's FIN, or the deadline, is awaited.
    pub half_closed: bool,
}

/// One client connection. At most 352 bytes, and what its fields point to.
///
/// Invariant: `outbox_bytes` is the sum of the segments' lengths.
/// Invariant: the replies' segments add up to the replies not yet taken.
#[derive(Debug)]
pub struct Session {
    /// Unique for the life of the shard.
    pub id: SessionId,
    /// Which kind of listener its connection came through.
    pub listener: ListenerKind,
    /// How its messages look on the wire: that of its listener's default until the handshake has named another.
    pub format: WireFormat,
    /// How far it is in the protocol.
    pub protocol: Protocol,
    /// Received, not yet decoded. Bound: the longest frame and what was in flight when reading was paused.
    pub input: Vec<u8>,
    /// Since when it holds part of a frame and nothing has completed, CLOCK_MONOTONIC nanoseconds.
    pub partial_since_ns: Option<u64>,
    /// A deadline for that is pending: one at a time, however often frames begin.
    pub partial_watched: bool,
    /// What is known of its peer's life.
    pub pulse: Pulse,
    /// When it was last heard, pinged, or found late, as `pulse` has it: CLOCK_MONOTONIC milliseconds, the low 32 bits.
    pub pulse_ms: u32,
    /// A timer for that is pending: one at a time, from the end of the handshake on.
    pub heartbeat_watched: bool,
    /// Its full socket has taken more since the last look: somebody reads.
    pub took_parked: bool,
    /// Its input waits for room somewhere.
    pub paused: bool,
    /// A SEND is with the transport; the next one waits for its outcome.
    pub sending: bool,
    /// Its changes of subscriptions that wait for their turn; later requests wait for them.
    pub walks: u32,
    /// Frames of a WebSocket message that wait for them too.
    pub message_rest: Vec<u8>,
    /// It stands in the shard's queue of sessions with something to send.
    pub queued: bool,
    /// Bytes at the front of the outbox that end a frame whose beginning has been sent.
    pub cut_rest: u32,
    /// It has been given what it was behind with, for its next SEND.
    pub refilled: bool,
    /// It is behind: ticks of memberships that conflate are held back.
    pub behind: bool,
    /// It stands in the queue of sessions that are past `yield_bytes`.
    pub over: bool,
    /// Since when a SEND has been waiting for room in the socket, CLOCK_MONOTONIC nanoseconds; 0: none is.
    pub parked_since_ns: u64,
    /// A deadline for that is pending.
    pub stall_watched: bool,
    /// Past so many bytes waiting, something must yield.
    pub yield_bytes: usize,
    /// Memberships that yield, and those of them that conflate.
    pub yielding: (u32, u32),
    /// What only some sessions need.
    pub lag: Option<Box<Lag>>,
    /// Its subscriptions. Bound: `subscriptions_per_session_max`.
    pub subscriptions: Vec<Subscription>,
    /// It has had a subscription go live, and is counted as subscribed.
    pub subscribed: bool,
    /// The topics these come to.
    pub memberships: TopicMap<Membership>,
    /// Set once it is to end: no more input, no more ticks.
    pub ending: Option<Ending>,
    segments: VecDeque<Segment>,
    outbox_bytes: usize,
    /// What [`Segment::Reply`] and [`Segment::Own`] say the lengths of, in order.
    replies: Vec<u8>,
    replies_start: usize,
    /// Those of it that are [`Segment::Own`].
    own_bytes: usize,
}

impl Session {
    /// A session that has just connected.
    pub fn new(id: SessionId, listener: ListenerKind) -> Session {
        let format = match listener {
            ListenerKind::Native => WireFormat::TCP_NATIVE,
            ListenerKind::Http => WireFormat::WEBSOCKET_JSON,
        };
        let mut session = Session {
            id,
            listener,
            format,
            protocol: Protocol::HttpHead,
            input: Vec::new(),
            partial_since_ns: None,
            partial_watched: false,
            pulse_ms: 0,
            pulse: Pulse::Quiet,
            heartbeat_watched: false,
            took_parked: false,
            paused: false,
            sending: false,
            walks: 0,
            message_rest: Vec::new(),
            queued: false,
            cut_rest: 0,
            refilled: false,
            behind: false,
            over: false,
            parked_since_ns: 0,
            stall_watched: false,
            yield_bytes: usize::MAX,
            yielding: (0, 0),
            lag: None,
            subscriptions: Vec::new(),
            subscribed: false,
            memberships: TopicMap::default(),
            ending: None,
            segments: VecDeque::new(),
            outbox_bytes: 0,
            replies: Vec::new(),
            replies_start: 0,
            own_bytes: 0,
        };
        session.begin_handshake();
        session
    }

    /// Awaits the handshake that the listener's clients begin with.
    pub fn begin_handshake(&mut self) {
        self.protocol = match self.listener {
            ListenerKind::Native => Protocol::Hello(Decoder::new(self.format.framing)),
            ListenerKind::Http => Protocol::HttpHead,
        };
    }

    /// Bytes waiting to be sent.
    pub fn outbox_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// Bytes of topics' frames waiting to be sent, shared or its own: replies have a bound of their own.
    pub fn frame_bytes(&self) -> usize {
        self.outbox_bytes - self.reply_bytes()
    }

    fn reply_bytes(&self) -> usize {
        self.replies.len() - self.replies_start - self.own_bytes
    }

    /// Ranges and replies waiting to be sent.
    pub fn outbox_segments(&self) -> usize {
        self.segments.len()
    }

    /// Bytes it holds on the heap for input and output, and for what it is behind with.
    pub fn buffer_bytes(&self) -> usize {
        let lag = self.lag.as_deref().map_or(0, Lag::memory_bytes);
        self.input.capacity()
            + self.message_rest.capacity()
            + self.replies.capacity()
            + self.segments.capacity() * size_of::<Segment>()
            + lag
    }

    fn has_untold(&self) -> bool {
        self.lag.as_deref().is_some_and(|lag| !lag.untold.is_empty())
    }

    /// What it is behind with; made when first needed.
    pub fn lag_mut(&mut self) -> &mut Lag {
        self.lag.get_or_insert_default()
    }

    /// Whether anything waits for it that a SEND, once there is room, will carry.
    pub fn has_work(&self) -> bool {
        self.outbox_bytes > 0
            || self.lag.as_deref().is_some_and(|lag| !lag.held.is_empty() || !lag.untold.is_empty())
    }

    /// Counts a membership that comes, goes or changes. Returns whether the session now has the first that yields, or
    /// none any more.
    pub fn count_yielding(&mut self, before: Option<&Membership>, after: Option<&Membership>) -> bool {
        let counts = |membership: Option<&Membership>| {
            let of = |yes: bool| u32::from(yes);
            membership.map_or((0, 0), |membership| (of(membership.yields()), of(membership.conflates())))
        };
        let (before, after, yielded) = (counts(before), counts(after), self.yielding.0 > 0);
        self.yielding.0 = self.yielding.0 + after.0 - before.0;
        self.yielding.1 = self.yielding.1 + after.1 - before.1;
        yielded != (self.yielding.0 > 0)
    }

    /// Whether it has room for more replies; if not, its requests wait.
    pub fn takes_requests(&self) -> bool {
        self.reply_bytes() <= REPLY_BYTES_MAX
    }

    /// Queues shared frames. Returns `false` when so much waits that something must yield. 24 bytes at most, none when
    /// the range continues the one before.
    pub fn push_range(&mut self, log: &EgressLog, range: Range) -> bool {
        self.outbox_bytes += range.len as usize;
        self.append_segment(log, range);
        self.frame_bytes() <= self.yield_bytes && self.segments.len() <= OUTBOX_RANGES_MAX
    }

    fn append_segment(&mut self, log: &EgressLog, range: Range) {
        match self.segments.back_mut() {
            Some(Segment::Log(last)) if log.continues(*last, range) => last.len += range.len,
            _ => self.segments.push_back(Segment::Log(range)),
        }
    }

    /// Queues bytes of the session's own: whole frames.
    pub fn push_reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.replies.len();
        write(&mut self.replies);
        let len = self.replies.len() - before;
        self.outbox_bytes += len;
        match self.segments.back_mut() {
            _ if len == 0 => {}
            Some(Segment::Reply(last)) => *last += len as u32,
            _ => self.segments.push_back(Segment::Reply(len as u32)),
        }
        self.invariants();
    }

    /// Queues a frame of a topic that only this session gets. Bound: what is asked for at once, and one SEND. Returns
    /// `false` when so much waits that something must yield.
    pub fn push_own(&mut self, mark: Mark, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let before = self.replies.len();
        write(&mut self.replies);
        let len = self.replies.len() - before;
        if len > 0 {
            let Mark { topic, sequence, skipped } = mark;
            self.outbox_bytes += len;
            self.own_bytes += len;
            self.segments.push_back(Segment::Own { sequence, topic, skipped, len: len as u32 });
        }
        self.invariants();
        self.frame_bytes() <= self.yield_bytes && self.segments.len() <= OUTBOX_RANGES_MAX
    }

    /// Where the oldest shared frames that wait begin in the log.
    pub fn oldest_shared(&self) -> Option<u64> {
        self.segments.iter().find_map(|segment| match segment {
            Segment::Log(range) => Some(range.start),
            Segment::Reply(_) | Segment::Own { .. } => None,
        })
    }

    /// Drops everything that waits. Only between frames, unless nothing is to follow.
    pub fn clear_outbox(&mut self) {
        self.segments = VecDeque::new();
        self.outbox_bytes = 0;
        self.replies = Vec::new();
        self.replies_start = 0;
        self.own_bytes = 0;
        self.lag = None;
    }

    /// Takes the next SEND: a long range straight from the log, else as many segments as fit, gathered into
    /// `gather` (which must have room for [`SEND_BYTES_MAX`]). Cuts fall between frames where there is a boundary.
    pub fn take_send(&mut self, log: Option<&EgressLog>, gather: &mut Vec<u8>) -> Next {
        if self.format.framing.has_send_headers() {
            return self.take_batch(log, gather);
        }
        let start = gather.len();
        let mut left = SEND_BYTES_MAX;
        while left > 0
            && let Some(segment) = self.segments.front().copied()
        {
            match (segment, log) {
                // What is still to be told comes before any frame that was not begun.
                (Segment::Log(_) | Segment::Own { .. }, _) if self.cut_rest == 0 && self.has_untold() => {
                    break;
                }
                (Segment::Reply(len) | Segment::Own { len, .. }, _) => {
                    let taken = (len as usize).min(left);
                    self.own_bytes -= if let Segment::Own { .. } = segment { taken } else { 0 };
                    gather.extend_from_slice(&self.replies[self.replies_start..self.replies_start + taken]);
                    self.replies_start += taken;
                    // Where in the replies a frame ends is not known: all that are queued together end one.
                    self.advance_front(taken as u32, len - taken as u32);
                    left -= taken;
                }
                (Segment::Log(_), None) => return Next::Lapped,
                // What was gathered before it leaves first: it may end a frame that was cut.
                (Segment::Log(range), Some(log)) if log.is_lapped(range.start) => {
                    match gather.len() > start {
                        true => break,
                        false => return Next::Lapped,
                    }
                }
                (Segment::Log(range), Some(log)) => {
                    let alone = gather.len() == start
                        && (range.len as usize >= SEND_DIRECT_BYTES || self.segments.len() == 1);
                    let (len, rest) = match range.len as usize {
                        len if len <= left => (range.len, 0),
                        // Not worth a cut: what is gathered leaves, this comes next.
                        _ if gather.len() > start => break,
                        _ => log.cut(range, left),
                    };
                    self.advance_front(len, rest);
                    if alone {
                        return self.sends(Source::Log(Range { start: range.start, len }));
                    }
                    gather.extend_from_slice(log.bytes(Range { start: range.start, len }));
                    left -= len as usize;
                }
            }
        }
        self.trim_replies();
        match gather.len() - start {
            0 => Next::Idle,
            len => self.sends(Source::Gathered(start, len)),
        }
    }

    /// Gives back the memory of replies that have been taken.
    fn trim_replies(&mut self) {
        // A peer that always leaves some unread would keep everything it was ever sent.
        if self.replies_start > REPLY_BYTES_MAX {
            self.replies.drain(..self.replies_start);
            self.replies_start = 0;
        }
        if self.replies_start == self.replies.len() {
            // Most sessions are answered once in their life: 10,000 of them would keep what a handshake took.
            self.replies = Vec::new();
            self.replies_start = 0;
        }
    }

    fn sends(&mut self, source: Source) -> Next {
        self.sending = true;
        self.invariants();
        Next::Send(source)
    }

    fn advance_front(&mut self, len: u32, cut_rest: u32) {
        self.outbox_bytes -= len as usize;
        self.cut_rest = cut_rest;
        let done = match self.segments.front_mut() {
            Some(Segment::Reply(left) | Segment::Own { len: left, .. }) => {
                *left -= len;
                *left == 0
            }
            Some(Segment::Log(range)) => {
                *range = Range { start: range.start + u64::from(len), len: range.len - len };
                range.len == 0
            }
            None => false,
        };
        if done {
            self.segments.pop_front();
        }
    }

    fn invariants(&self) {
        if cfg!(debug_assertions) && self.segments.len() < 64 {
            let (mut bytes, mut replies) = (0, 0);
            for segment in &self.segments {
                match segment {
                    Segment::Log(range) => bytes += range.len as usize,
                    Segment::Reply(len) | Segment::Own { len, .. } => replies += *len as usize,
                }
            }
            assert_eq!(self.outbox_bytes, bytes + replies, "the outbox is the sum of its segments");
            assert_eq!(self.replies.len() - self.replies_start, replies, "every reply byte has its segment");
        }
    }
}
