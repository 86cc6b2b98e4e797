//! One client connection's state: what it speaks, what it has sent, what waits to be sent, and why it ends.
mod eviction;
pub mod holders;
pub mod membership;
pub mod table;
#[cfg(test)]
mod tests;

pub use self::eviction::Fate;

use std::{collections::VecDeque, fmt};

use crate::{
    egress_log::{Cut, EgressLog, Mark, Range},
    fanout::Subscription,
    ids::{SessionId, TopicId},
    limits::{OUTBOX_RANGES_MAX, REPLY_BYTES_MAX, SEND_BYTES_MAX, SEND_DIRECT_BYTES},
    metrics::counters::Counter,
    session::membership::{Lag, Membership, Taking, TopicMap},
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

/// How far the heartbeat has got with a peer. Unless unwatched, exactly one heartbeat timer is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pulse {
    /// No heartbeat: the handshake is under way, or heartbeats are off.
    #[default]
    Unwatched,
    /// Heard from within the ping interval, as far as is known.
    Quiet,
    /// Pinged, and silent since.
    Pinged,
    /// Still silent after half the time-out.
    Late,
}

/// Where a session stands on its way to its next SEND.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendState {
    /// Neither queued nor sending.
    #[default]
    Idle,
    /// Queued for a SEND.
    Ready,
    /// Queued to be refilled: its held ticks and pending notices must join the outbox before the next SEND.
    Lagging,
    /// Refilled, and queued for a SEND.
    Refilled,
    /// The transport has a SEND; the next one waits for its outcome.
    Sending,
    /// The socket was full, and the rest of the SEND waits for room in it.
    Parked {
        /// Since when, CLOCK_MONOTONIC nanoseconds.
        since_ns: u64,
    },
}

/// What a session's input waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InputState {
    /// Nothing: every byte received has been processed.
    #[default]
    Open,
    /// The rest of a frame.
    Partial {
        /// When the frame began, or the last message before it completed, CLOCK_MONOTONIC nanoseconds.
        since_ns: u64,
    },
    /// Room for what its requests would add: receiving is paused.
    Paused,
}

/// How many of a session's memberships may lose queued ticks when the session falls behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Yielding {
    /// Memberships whose ticks may be taken out of the outbox again.
    pub memberships: u32,
    /// Those of them that keep the newest tick.
    pub conflating: u32,
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

impl Segment {
    fn len(&self) -> u32 {
        match *self {
            Segment::Log(range) => range.len,
            Segment::Reply(len) | Segment::Own { len, .. } => len,
        }
    }
}

/// Segments of an outbox that debug builds check after each change; longer ones are not checked.
const SEGMENTS_CHECKED_MAX: usize = 64;

const _: () = assert!(size_of::<Segment>() == 24, "limits.rs says what a full outbox holds");
const _: () = assert!(size_of::<SendState>() == 16 && size_of::<InputState>() == 16, "a tag and a time");
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
/// Invariant: `outbox_bytes` is the sum of the segments' lengths, none of which is 0.
/// Invariant: the segments of its own bytes add up to `replies` from `replies_start` on; `own_bytes` of them are frames.
/// Invariant: `cut_rest` is at most the length of the first segment.
/// Invariant, between turns: `yielding` counts the memberships that yield.
/// Invariant, between turns: a membership that is held, recovering or untold is on the list of `lag` that says so.
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
    /// What its input waits for.
    pub input_state: InputState,
    /// A frame deadline is pending: one at a time, however often frames begin.
    pub frame_timer_pending: bool,
    /// How far the heartbeat has got with its peer.
    pub pulse: Pulse,
    /// When `pulse` last changed or the peer was last heard: the low 32 bits of CLOCK_MONOTONIC milliseconds.
    pub pulse_ms: u32,
    /// Its full socket has drained since the last heartbeat: the peer reads.
    pub drained_since_heartbeat: bool,
    /// Where it stands on its way to its next SEND.
    pub send_state: SendState,
    /// Its changes of subscriptions that wait for their turn; later requests wait for them.
    pub walks: u32,
    /// Frames of a WebSocket message that wait for them too.
    pub message_rest: Vec<u8>,
    /// Bytes at the front of the outbox that end a frame whose beginning has been sent.
    pub cut_rest: u32,
    /// Behind: ticks of memberships that conflate are held back.
    pub behind: bool,
    /// Queued for eviction: more than `yield_bytes` waits.
    pub over_queued: bool,
    /// A deadline for the full socket is pending.
    pub stall_timer_pending: bool,
    /// Frame bytes that may wait before something must yield.
    pub yield_bytes: usize,
    /// How many of its memberships yield.
    pub yielding: Yielding,
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
            input_state: InputState::Open,
            frame_timer_pending: false,
            pulse: Pulse::Unwatched,
            pulse_ms: 0,
            drained_since_heartbeat: false,
            send_state: SendState::Idle,
            walks: 0,
            message_rest: Vec::new(),
            cut_rest: 0,
            behind: false,
            over_queued: false,
            stall_timer_pending: false,
            yield_bytes: usize::MAX,
            yielding: Yielding::default(),
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

    /// Whether the transport has a SEND of it.
    pub fn is_sending(&self) -> bool {
        matches!(self.send_state, SendState::Sending | SendState::Parked { .. })
    }

    /// Whether its input waits for room.
    pub fn is_paused(&self) -> bool {
        self.input_state == InputState::Paused
    }

    /// Whether any of its memberships yields.
    pub fn yields(&self) -> bool {
        self.yielding.memberships > 0
    }

    /// Counts a membership that comes, goes or changes. Returns whether [`Session::yields`] has changed.
    pub fn count_yielding(&mut self, before: Option<&Membership>, after: Option<&Membership>) -> bool {
        let yielded = self.yields();
        if let Some(after) = after {
            self.yielding.memberships += u32::from(after.yields());
            self.yielding.conflating += u32::from(after.conflates());
        }
        if let Some(before) = before {
            self.yielding.memberships -= u32::from(before.yields());
            self.yielding.conflating -= u32::from(before.conflates());
        }
        yielded != self.yields()
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
        self.outbox_invariants();
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
        self.outbox_invariants();
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
        self.outbox_invariants();
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
        self.cut_rest = 0;
        self.lag = None;
        self.outbox_invariants();
    }

    /// Takes the next SEND: a long range straight from the log, else as many segments as fit, gathered into
    /// `gather` (which must have room for [`SEND_BYTES_MAX`]). Cuts fall between frames where there is a boundary.
    pub fn take_send(&mut self, log: Option<&EgressLog>, gather: &mut Vec<u8>) -> Next {
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
                    let Cut { len, frame_rest } = match range.len as usize {
                        len if len <= left => Cut { len: range.len, frame_rest: 0 },
                        // Not worth a cut: what is gathered leaves, this comes next.
                        _ if gather.len() > start => break,
                        _ => log.cut(range, left),
                    };
                    self.advance_front(len, frame_rest);
                    if alone {
                        return self.sends(Source::Log(Range { start: range.start, len }));
                    }
                    gather.extend_from_slice(log.bytes(Range { start: range.start, len }));
                    left -= len as usize;
                }
            }
        }
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
        match gather.len() - start {
            0 => Next::Idle,
            len => self.sends(Source::Gathered(start, len)),
        }
    }

    fn sends(&mut self, source: Source) -> Next {
        self.send_state = SendState::Sending;
        self.outbox_invariants();
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

    /// Checks the outbox in debug builds, unless it is so long that tests would crawl.
    fn outbox_invariants(&self) {
        if !cfg!(debug_assertions) || self.segments.len() >= SEGMENTS_CHECKED_MAX {
            return;
        }
        let (mut shared, mut replies, mut own) = (0, 0, 0);
        for segment in &self.segments {
            match segment {
                Segment::Log(range) => shared += range.len as usize,
                Segment::Reply(len) => replies += *len as usize,
                Segment::Own { len, .. } => own += *len as usize,
            }
            assert!(segment.len() > 0, "a segment goes with its last byte");
        }
        assert_eq!(self.outbox_bytes, shared + replies + own, "the outbox is the sum of its segments");
        assert_eq!(self.replies.len() - self.replies_start, replies + own, "every own byte has its segment");
        assert_eq!(self.own_bytes, own, "own_bytes counts the frames among the own bytes");
        let first = self.segments.front().map_or(0, |segment| segment.len());
        assert!(self.cut_rest <= first, "a frame that was begun ends in the first segment");
    }

    /// Checks the session between turns in debug builds, a look at each membership.
    fn invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.outbox_invariants();
        if self.ending.is_some() {
            return;
        }
        let partial = matches!(self.input_state, InputState::Partial { .. });
        assert!(!partial || !self.input.is_empty(), "a partial frame is kept");
        let mut yielding = Yielding::default();
        for (id, membership) in &self.memberships {
            yielding.memberships += u32::from(membership.yields());
            yielding.conflating += u32::from(membership.conflates());
            let lists =
                |list: fn(&Lag, &TopicId) -> bool| self.lag.as_deref().is_some_and(|lag| list(lag, id));
            match membership.taking {
                Taking::Held => assert!(lists(|lag, id| lag.held.contains(id)), "held topics are released"),
                Taking::Recovering => assert!(
                    lists(|lag, id| lag.pieces_in_flight > 0 || lag.recovering.contains(id)),
                    "history is asked for until it is complete"
                ),
                Taking::Live | Taking::Paced => {}
            }
            assert!(
                !membership.is_untold() || lists(|lag, id| lag.untold.contains(id)),
                "gaps are announced before the next frame"
            );
        }
        assert_eq!(self.yielding, yielding, "yielding counts the memberships");
    }
}
