//! The state of one client connection: its protocol stage, input, subscriptions, outbox and end.

mod batch;
mod call;
mod close;
mod eviction;
pub mod fullness;
pub mod holders;
mod input;
mod kept_places;
pub mod membership;
pub mod memberships;
mod memberships_count;
pub mod outbox;
pub mod places;
mod protocol;
mod queues;
pub mod saved_positions;
mod shared_messages;
pub mod socket_io;
pub mod subscriptions;
pub mod table;
#[cfg(test)]
mod tests;
mod throttle;
mod tracked;

use std::sync::Arc;

pub use self::{
    call::{Caller, Calls, PendingCall, Publishes, Read, Readable, Summary, Work},
    close::{CloseReason, DepartureState, Ending, KeptOutbox},
    eviction::Verdict,
    input::{InputState, MessageRest, WaitingInput},
    kept_places::KeptPlacesTable,
    outbox::{Content, NextSend, Outbox, SendSource},
    protocol::{HttpSession, Protocol, Stream},
    shared_messages::SharedMessages,
};

use crate::{
    egress_log::{EgressLog, Range},
    fanout::Subscription,
    ids::{SessionId, SourceId, TenantId, TopicId},
    limits::REPLY_BYTES_MAX,
    principal::Principal,
    session::{
        membership::{Lag, Membership, Taking},
        memberships::Memberships,
        subscriptions::Subscriptions,
    },
    topic_key,
};
use tickcast_proto::{
    WireFormat,
    features::Features,
    framing::{Decoder, websocket::Fragments},
};

/// The heartbeat's view of a peer. Unless the peer is unwatched, exactly one heartbeat timer is pending, or the handshake timer
/// in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pulse {
    /// No heartbeat: the handshake is under way, or heartbeats are off.
    #[default]
    Unwatched,
    /// The peer sent something within the ping interval, as far as known.
    Quiet,
    /// Pinged, and silent since then.
    Pinged,
    /// Still silent after half the timeout.
    Late,
}

/// Maximum memberships that debug builds check each turn: each check searches the session's lag lists.
const MEMBERSHIPS_CHECKED_MAX: usize = 64;

/// A session's state on the way to its next SEND.
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
    /// The socket was full, and the rest of the SEND waits for room: see [`Sessions::full_ns`](table::Sessions::full_ns).
    Parked,
    /// Its tenant has used up its egress quota: the session waits for more as it would for a full socket.
    Throttled,
}

/// Whether a session must be settled once its outbox is empty: see [`Fanout::handle_drained`](crate::fanout::Fanout::handle_drained).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Settling {
    /// There is nothing to settle.
    #[default]
    None,
    /// Its bounds were raised, or another session waits for the end of its SENDs.
    Due,
    /// It is behind: ticks of memberships that conflate are held.
    Behind,
}

/// How a session's principal was determined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// The client has given no credentials: it needs none, or may still send them.
    #[default]
    None,
    /// Its credentials await their verdict, and its input waits for that.
    Pending,
    /// The client gave no credentials and has the anonymous principal.
    Anonymous,
    /// By the client's credentials.
    Credentials,
}

/// How many of a session's memberships, and of its subscriptions in wildcard groups, may lose queued ticks when the session
/// falls behind. A subscription whose topics have several policies counts for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Yielding {
    /// Memberships whose ticks may be evicted from the outbox.
    pub memberships: u32,
    /// Of these, the ones that keep the last tick.
    pub conflating: u32,
    /// Memberships that lose no ticks.
    pub keeping: u32,
}

impl Yielding {
    fn add(&mut self, added: Yielding) {
        self.memberships += added.memberships;
        self.conflating += added.conflating;
        self.keeping += added.keeping;
    }

    fn remove(&mut self, removed: Yielding) {
        self.memberships -= removed.memberships;
        self.conflating -= removed.conflating;
        self.keeping -= removed.keeping;
    }
}

/// The kind of listener that accepted a connection. It only determines how the handshake begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Native TCP: HELLO opens a session.
    Native,
    /// HTTP: an upgrade opens a session.
    Http,
}

/// How the client's address is determined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAddress {
    /// It is the peer's address.
    #[default]
    Peer,
    /// The peer is a proxy, which sends the address in a PROXY protocol header before anything else.
    ProxyHeader,
    /// The peer is a proxy, which appends the address to `X-Forwarded-For`.
    ForwardedFor,
}

const _: () = assert!(size_of::<Session>() <= 240, "the docs of Session say how large it is");

/// One client connection. At most 240 bytes, plus what its fields point to: for an idle session with one subscription nothing, or
/// 64 bytes if the topic has ticks. State that few sessions need is boxed.
///
/// Invariant, between turns: `yielding` counts the memberships, and the subscriptions in wildcard groups.
/// Invariant, between turns: a membership that is held, recovering or unannounced is on the matching list of `lag`.
#[derive(Debug)]
pub struct Session {
    /// Unique for the life of the shard.
    pub id: SessionId,
    /// Its address, for limits by source.
    pub source: SourceId,
    /// The kind of listener that accepted it.
    pub listener: ListenerKind,
    /// How a proxy has told its address, if its peer is a trusted proxy.
    pub client_address: ClientAddress,
    /// Whether no DNS rebinding attack can have made the connection: it is over TLS or a Unix socket.
    pub is_safe_from_rebinding: bool,
    /// Its wire format: the listener's default until the handshake negotiates another.
    pub format: WireFormat,
    /// Protocol features granted to the client.
    pub features: Features,
    /// Who the client is and what it may do. `None`: not known yet or, without authentication, everything is allowed.
    pub principal: Option<Arc<Principal>>,
    /// How its principal is known.
    pub proof: Proof,
    /// The tenant whose topics it uses. Fixed before it may subscribe or publish.
    pub tenant: TenantId,
    /// Whether it counts as a connection of its tenant.
    pub is_counted: bool,
    /// Whether its listener accepts no ticks.
    pub is_read_only: bool,
    /// Its stage in the protocol.
    pub protocol: Protocol,
    /// Received input that has not been processed.
    input: Option<Box<WaitingInput>>,
    /// What its input waits for.
    pub input_state: InputState,
    /// Whether too many of its requests were refused. Its input then waits until a timer expires.
    pub is_throttled: bool,
    /// Whether a frame deadline is pending. There is at most one, however often frames begin.
    pub frame_timer_pending: bool,
    /// Whether it is on the shard's list of unfinished messages. It is listed once, however often messages begin.
    pub is_unfinished_listed: bool,
    /// Bytes of its unfinished message that count towards the shard's bound.
    pub unfinished_bytes: u32,
    /// The heartbeat's view of its peer.
    pub pulse: Pulse,
    /// Whether its handshake timer is pending. When it fires after the handshake, it starts the heartbeat.
    pub handshake_timer_pending: bool,
    /// When `pulse` last changed or the peer last sent something: the low 32 bits of CLOCK_MONOTONIC milliseconds.
    pub pulse_ms: u32,
    /// Whether its full socket has drained since the last heartbeat, which shows that the peer reads.
    pub drained_since_heartbeat: bool,
    /// Its state on the way to its next SEND.
    pub send_state: SendState,
    /// Pending subscription changes. Later requests wait for them.
    pub changes_pending: u32,
    /// Maximum bytes of answers that other shards still owe it for its publishes. They count as waiting replies: see
    /// [`Session::takes_requests`].
    pub answers_bytes: u32,
    /// Whether it must be settled once its outbox is empty.
    pub settling: Settling,
    /// Whether it is queued for eviction because more than `yield_bytes` waits.
    pub is_over_queued: bool,
    /// Whether a stall deadline is pending. There is at most one, however often the socket fills.
    pub stall_timer_pending: bool,
    /// Frame bytes that may wait before the session must yield.
    pub yield_bytes: usize,
    /// How many of its memberships may yield.
    pub yielding: Yielding,
    /// State that only sessions need that are behind, paced or recovering.
    pub lag: Option<Box<Lag>>,
    /// Its subscriptions. Bound: `subscriptions_per_session_max`.
    pub subscriptions: Subscriptions,
    /// Bytes of its patterns' text.
    pub pattern_bytes: u32,
    /// Whether a subscription has gone live, so that the session is counted as subscribed.
    pub has_subscribed: bool,
    /// Topics for which it has state: all that its subscriptions match, except those served by wildcard groups.
    pub memberships: Memberships,
    /// Memberships that wildcard groups will serve again.
    pub shared_memberships: u32,
    /// Number of the last tick that several of its patterns have offered to it; 0: none.
    pub tick_offered: u32,
    /// Set once the session is ending: it accepts no more input and receives no more ticks.
    pub ending: Option<Box<Ending>>,
    /// Its outbox. Change it with [`Sessions::with_outbox`](table::Sessions::with_outbox), which keeps the shard's queues
    /// consistent.
    pub outbox: Outbox,
}

impl Session {
    /// Grants the features that the client requests in its hello; `None`: it requests none. `previous` and batches have
    /// their own wire formats, and the format must not change once topics may list the session by it.
    pub fn grant(&mut self, asked: Option<Features>) -> Option<Features> {
        let granted = asked.map(|asked| asked.intersection(Features::GRANTED));
        self.features = granted.unwrap_or_default();
        let has_subscribed =
            self.has_subscribed || !self.subscriptions.is_empty() || self.changes_pending > 0;
        if !has_subscribed {
            self.format = self.format.with(self.features);
        }
        // Features that another wire format of the same messages has, and batches where none has them.
        let possible = self.format.with(Features::GRANTED).features().union(Features::BATCHES);
        self.features = self.features.without(possible.without(self.format.features()));
        granted.map(|_| self.features)
    }

    /// Creates the session of a new connection. The caller sets its handshake timer.
    pub fn new(id: SessionId, listener: ListenerKind) -> Session {
        let format = match listener {
            ListenerKind::Native => WireFormat::TCP_NATIVE,
            ListenerKind::Http => WireFormat::WEBSOCKET_JSON,
        };
        let mut session = Session {
            id,
            source: SourceId::default(),
            listener,
            client_address: ClientAddress::Peer,
            is_safe_from_rebinding: false,
            format,
            features: Features::NONE,
            principal: None,
            proof: Proof::None,
            tenant: TenantId::DEFAULT,
            is_counted: false,
            is_read_only: false,
            protocol: Protocol::Http(HttpSession::default()),
            input: None,
            input_state: InputState::Open,
            is_throttled: false,
            frame_timer_pending: false,
            is_unfinished_listed: false,
            unfinished_bytes: 0,
            pulse: Pulse::Unwatched,
            handshake_timer_pending: true,
            pulse_ms: 0,
            drained_since_heartbeat: false,
            send_state: SendState::Idle,
            changes_pending: 0,
            answers_bytes: 0,
            settling: Settling::None,
            is_over_queued: false,
            stall_timer_pending: false,
            yield_bytes: usize::MAX,
            yielding: Yielding::default(),
            lag: None,
            subscriptions: Subscriptions::default(),
            pattern_bytes: 0,
            has_subscribed: false,
            memberships: Memberships::default(),
            shared_memberships: 0,
            tick_offered: 0,
            ending: None,
            outbox: Outbox::default(),
        };
        session.begin_handshake();
        session
    }

    /// Starts the handshake that its kind of listener expects.
    pub fn begin_handshake(&mut self) {
        self.protocol = match self.listener {
            ListenerKind::Native => Protocol::Hello(Decoder::new(self.format.framing)),
            ListenerKind::Http => Protocol::Http(HttpSession::default()),
        };
    }

    /// Bytes waiting to be sent.
    #[inline]
    pub fn outbox_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Bytes of topics' frames waiting to be sent, shared and private.
    pub fn frame_bytes(&self) -> usize {
        self.outbox.frame_bytes()
    }

    /// Heap bytes of its input, output and lag.
    pub fn buffer_bytes(&self) -> usize {
        let lag = self.lag.as_deref().map_or(0, Lag::memory_bytes);
        let fragments = self.protocol.fragments().map_or(0, Fragments::heap_bytes);
        self.input_bytes() + fragments + self.outbox.heap_bytes() + lag + self.protocol.heap_bytes()
    }

    /// Whether ticks of its memberships that conflate are held.
    #[inline]
    pub fn is_behind(&self) -> bool {
        self.settling == Settling::Behind
    }

    /// Has it settled once its outbox is empty.
    pub fn settle_once_empty(&mut self) {
        if self.settling == Settling::None {
            self.settling = Settling::Due;
        }
    }

    fn has_unannounced(&self) -> bool {
        self.lag.as_deref().is_some_and(|lag| !lag.unannounced.is_empty())
    }

    /// Its lag state, created when first needed.
    pub fn lag_mut(&mut self) -> &mut Lag {
        self.lag.get_or_insert_default()
    }

    /// Whether a SEND would carry anything: queued bytes, held ticks or notices.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.outbox.bytes() > 0
            || self.lag.as_deref().is_some_and(|lag| !lag.held.is_empty() || !lag.unannounced.is_empty())
    }

    /// Whether replies have not been sent, or replies or requested history have not arrived from the topics' homes.
    pub fn awaits_answers(&self) -> bool {
        let recovers = |lag: &Lag| lag.chunks_in_flight > 0 || !lag.recovering.is_empty();
        self.outbox.reply_bytes() > 0
            || self.awaits_verdict()
            || self.answers_bytes > 0
            || self.protocol.has_call()
            || self.is_sending()
            || self.lag.as_deref().is_some_and(recovers)
    }

    /// Whether a SEND is under way.
    #[inline]
    pub fn is_sending(&self) -> bool {
        matches!(self.send_state, SendState::Sending | SendState::Parked)
    }

    /// Whether receiving is paused.
    pub fn is_paused(&self) -> bool {
        self.input_state == InputState::Paused
    }

    /// Whether its handshake is complete but the credentials it needs may still arrive.
    pub fn lacks_credentials(&self) -> bool {
        self.proof == Proof::None && matches!(self.protocol, Protocol::Open(_))
    }

    /// Whether it may still do nothing but say who it is: in a hello, or by entering the namespace of Socket.IO.
    pub fn awaits_hello(&self) -> bool {
        match &self.protocol {
            Protocol::SocketIo(state) => !state.is_connected && !self.awaits_verdict(),
            Protocol::Carrier(carrier) => !carrier.is_upgraded,
            _ => self.lacks_credentials(),
        }
    }

    /// Whether its credentials are being verified. Its requests wait until then.
    pub fn awaits_verdict(&self) -> bool {
        self.proof == Proof::Pending
    }

    /// Whether any of its memberships yields.
    pub fn yields(&self) -> bool {
        self.yielding.memberships > 0
    }

    /// Updates the counts for a membership that was added, removed or changed. Returns whether [`Session::yields`] has changed.
    pub fn count_membership(&mut self, before: Option<&Membership>, after: Option<&Membership>) -> bool {
        self.shared_memberships += u32::from(after.is_some_and(|after| after.is_shared));
        self.shared_memberships -= u32::from(before.is_some_and(|before| before.is_shared));
        let yielding =
            |membership: Option<&Membership>| membership.map(Membership::yielding).unwrap_or_default();
        self.count_yielding(yielding(after), yielding(before))
    }

    /// Adds and subtracts counts of memberships and subscriptions that yield. Returns whether [`Session::yields`] has changed.
    pub fn count_yielding(&mut self, added: Yielding, removed: Yielding) -> bool {
        let yielded = self.yields();
        self.yielding.add(added);
        self.yielding.remove(removed);
        yielded != self.yields()
    }

    /// Whether there is room for more replies. If not, the peer is not reading.
    pub fn replies_have_room(&self) -> bool {
        self.outbox.reply_bytes() <= REPLY_BYTES_MAX
    }

    /// Whether there is room for more replies, including those that other shards owe it. If not, its requests wait.
    pub fn takes_requests(&self) -> bool {
        self.outbox.reply_bytes() + self.answers_bytes as usize <= REPLY_BYTES_MAX
    }

    /// Whether its own state allows more of its input to be processed. If not, receiving is paused.
    pub fn takes_input(&self) -> bool {
        // Answer one HTTP request at a time, however many a client sends at once.
        let is_answering = self.protocol.is_kept_http() && (self.has_work() || self.is_sending());
        self.takes_requests() && !self.must_wait() && !is_answering
    }

    /// Whether later requests wait for earlier ones: for subscription changes, a new token, a request of `/v1`, or the penalty
    /// for too many refused requests.
    pub fn must_wait(&self) -> bool {
        self.changes_pending > 0 || self.awaits_verdict() || self.is_throttled || self.protocol.has_call()
    }

    /// Removes the subscription to an entry's pattern. `pattern` is the pattern's key.
    pub fn unsubscribe(&mut self, entry: u32, pattern: &str) -> Option<Subscription> {
        let held = self.subscriptions.take(entry)?;
        self.pattern_bytes -= topic_key::name(pattern).len() as u32;
        Some(held)
    }

    /// Queues shared frames. Returns `false` when so much is waiting that the session must yield.
    #[inline]
    pub fn push_range(&mut self, log: &EgressLog, range: Range) -> bool {
        self.outbox.push_range(log, range);
        self.is_within_bounds()
    }

    /// Queues a frame of a topic for this session only. Returns `false` when so much is waiting that the session must yield.
    pub fn push_private(&mut self, content: Content, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.outbox.push_private(content, write);
        self.is_within_bounds()
    }

    #[inline]
    fn is_within_bounds(&self) -> bool {
        self.outbox.frame_bytes() <= self.yield_bytes && !self.outbox.has_too_many_ranges()
    }

    /// Drops everything that is waiting. Call it only between frames, unless nothing will be sent afterwards.
    pub fn clear_outbox(&mut self) {
        self.outbox = Outbox::default();
        self.lag = None;
    }

    /// Takes the next SEND; see [`Outbox::take_send`].
    #[inline]
    pub fn take_send(
        &mut self,
        log: Option<&EgressLog>,
        gather: &mut Vec<u8>,
        messages: &mut SharedMessages,
    ) -> NextSend {
        let next = match self.format.framing.has_places() {
            false => self.outbox.take_send(log, self.format, self.has_unannounced(), gather, messages),
            true => self.take_tracked_send(log, gather),
        };
        if let NextSend::Send(_) = next {
            self.send_state = SendState::Sending;
        }
        next
    }

    fn take_tracked_send(&mut self, log: Option<&EgressLog>, gather: &mut Vec<u8>) -> NextSend {
        let notices_pending = self.has_unannounced();
        let mut places = self.protocol.places_mut();
        self.outbox.take_tracked(log, notices_pending, gather, |content| {
            if let (Some(places), Some(sequence)) = (&mut places, content.last_sequence()) {
                places.advance(TopicId(content.topic()), sequence);
            }
        })
    }

    /// Checks the session and its memberships between turns in debug builds.
    fn invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.outbox.invariants();
        if self.ending.is_some() || self.memberships.len() > MEMBERSHIPS_CHECKED_MAX {
            return;
        }
        let partial = self.input_state == InputState::Partial;
        let fragments = self.protocol.fragments();
        assert!(!partial || !self.input().is_empty() || fragments.is_some(), "a partial frame is kept");
        assert!(
            fragments.is_none_or(|fragments| fragments.since_ns.is_some()),
            "each message has a deadline"
        );
        assert_eq!(self.unfinished_bytes as usize, self.held_unfinished_bytes(), "each kept byte is counted");
        let mut yielding = Yielding::default();
        let in_groups = self.subscriptions.iter().filter(|held| held.position.is_some());
        in_groups.for_each(|held| yielding.add(held.possible.count()));
        let shared = self.memberships.iter().filter(|(_, membership)| membership.is_shared).count();
        assert_eq!(self.shared_memberships as usize, shared, "shared_memberships counts the memberships");
        for (id, membership) in self.memberships.iter() {
            yielding.add(membership.yielding());
            let lists =
                |list: fn(&Lag, &TopicId) -> bool| self.lag.as_deref().is_some_and(|lag| list(lag, &id));
            match membership.taking {
                Taking::Held => assert!(lists(|lag, id| lag.held.contains(id)), "held topics are released"),
                Taking::Recovering => assert!(
                    lists(|lag, id| lag.chunks_in_flight > 0 || lag.recovering.contains(id)),
                    "history is asked for until it is complete"
                ),
                Taking::Live | Taking::Paced | Taking::Ahead => {}
            }
            assert!(
                !membership.is_unannounced() || lists(|lag, id| lag.unannounced.contains(id)),
                "gaps are announced before the next frame"
            );
        }
        assert_eq!(self.yielding, yielding, "yielding counts memberships and subscriptions");
    }
}
