//! What happens to a client, its subscriptions and its publishes.

use std::sync::Arc;

use bytes::Bytes;

use tickcast_proto::subscription::Position;

/// Whether a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// It makes no attempts: not yet, or not any more.
    Disconnected,
    /// It tries to connect, or waits before the next attempt.
    Connecting,
    /// The server has welcomed it.
    Connected,
}

/// Whether a subscription delivers ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionState {
    /// It has ended, and is not made again.
    Unsubscribed,
    /// It is, or will be, sent to the server.
    Subscribing,
    /// The server has acknowledged it: ticks published from now on are delivered.
    Subscribed,
}

/// A state, and what caused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<S> {
    /// The state now.
    pub state: S,
    /// The close code, or the server's error code, that caused it; 0: none. 1006: the connection was cut, or could not be made.
    pub code: u16,
    /// The reason, for a person.
    pub reason: Arc<str>,
    /// Time until the next attempt, if it waits for one, in milliseconds.
    pub retry_in_ms: Option<u64>,
}

/// What happens to a client. Costs no allocation for ticks: clones share topic and payload.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// The client's state has changed, or another attempt has failed.
    State(Change<ClientState>),
    /// Something happened to a subscription. If several match a topic, each has its own event, in the order in which they were made.
    Subscription {
        /// The subscription's pattern.
        on: Arc<str>,
        /// What happened.
        event: SubscriptionEvent,
    },
    /// The state of a source of the server.
    Source {
        /// The source's name.
        source: Box<str>,
        /// Its state.
        state: SourceState,
        /// Since when, in nanoseconds since 1970.
        since_ns: u64,
    },
    /// The server has said when the client's token expires.
    Expires {
        /// Seconds from now; 0: never.
        expires_in_s: u32,
    },
    /// The answer to a ping.
    Latency {
        /// Time until the answer, in nanoseconds.
        round_trip_ns: u64,
        /// This machine's clock minus the server's, in nanoseconds; `None` if it is not known yet. Its error is half of the shortest
        /// round trip.
        offset_ns: Option<i64>,
    },
    /// The server has sequenced the tick of a publish, and passes it on to subscribers.
    Published {
        /// The publish.
        publish: PublishId,
        /// Its place.
        published: PublishedAt,
    },
    /// A publish has failed.
    PublishFailed {
        /// The publish.
        publish: PublishId,
        /// What became of it.
        failure: PublishFailure,
    },
    /// Something failed that is about no subscription, and the client goes on.
    Error {
        /// The server's error code; 0: none.
        code: u16,
        /// The reason, for a person.
        reason: Arc<str>,
    },
}

/// What happens to a subscription.
#[derive(Clone, Debug, PartialEq)]
pub enum SubscriptionEvent {
    /// Its state has changed. After [`SubscriptionState::Unsubscribed`], nothing follows.
    State(Change<SubscriptionState>),
    /// A tick.
    Tick(SharedTick),
    /// Ticks that this client has lost: the server dropped them, no longer has them, or sent a snapshot in their place.
    Gap(SkippedTicks),
    /// Ticks that the topic's next tick replaces.
    Conflated(SkippedTicks),
    /// The answer to a position from which the client resumes in a topic.
    Recovered {
        /// The topic's name.
        topic: Arc<str>,
        /// The topic's epoch now.
        epoch: u64,
        /// The topic's last sequence when the server looked; 0: it did not look.
        sequence: u64,
        /// Why not every tick after the position follows; `None`: every tick follows.
        failure: Option<RecoveryFailure>,
    },
    /// The topic's source fell silent, or is back.
    Stale {
        /// The topic's name.
        topic: Arc<str>,
        /// Whether it is silent.
        is_stale: bool,
        /// Since when, in nanoseconds since 1970.
        since_ns: u64,
    },
    /// A change of its options failed, and the ones before apply again.
    Error {
        /// The server's error code.
        code: u16,
        /// The reason, for a person.
        reason: Arc<str>,
    },
}

impl SubscriptionEvent {
    /// The topic that the event is about.
    pub fn topic(&self) -> Option<&str> {
        match self {
            SubscriptionEvent::Tick(tick) => Some(&tick.topic),
            SubscriptionEvent::Gap(skipped) | SubscriptionEvent::Conflated(skipped) => Some(&skipped.topic),
            SubscriptionEvent::Recovered { topic, .. } | SubscriptionEvent::Stale { topic, .. } => {
                Some(topic)
            }
            SubscriptionEvent::State(_) | SubscriptionEvent::Error { .. } => None,
        }
    }
}

/// A tick that owns its parts. Clones share them: a clone costs two reference counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedTick {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The topic's number on this server; 0 in JSON, if it is not announced with one.
    pub topic_id: u32,
    /// Epoch of the sequence. Both together are a position to resume after.
    pub epoch: u64,
    /// Position in the topic, from 1; strictly increasing while subscribed.
    pub sequence: u64,
    /// Producer's timestamp, nanoseconds since 1970.
    pub producer_time_ns: u64,
    /// Server's time of receipt, nanoseconds since 1970; 0 in JSON, which does not carry it.
    pub ingest_time_ns: u64,
    /// Application-defined schema number; 0: none, and in JSON, which does not carry it.
    pub schema: u32,
    /// Key within the topic; 0: none.
    pub key: u64,
    /// Whether it is state from before the subscription. Sequences skipped between snapshot ticks are not missing.
    pub snapshot: bool,
    /// Whether the payload is one JSON value.
    pub payload_is_json: bool,
    /// Ticks before this one that were neither delivered nor announced as skipped; 0 unless the server has a bug.
    pub missed: u64,
    /// The producer's bytes. A part of what one read received, up to 64 KiB, which stays in memory as long as any of its ticks.
    pub payload: Bytes,
}

/// A range `[from, to)` of a topic's ticks that are not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedTicks {
    /// The topic's name.
    pub topic: Arc<str>,
    /// Epoch of the range.
    pub epoch: u64,
    /// First sequence of the range.
    pub from: u64,
    /// First sequence after the range.
    pub to: u64,
    /// Ticks in the range.
    pub count: u64,
}

/// Why a position was not recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryFailure {
    /// The position's epoch has passed: the topic has started over.
    Epoch,
    /// The history does not reach back that far.
    TooOld,
    /// The topic does not exist.
    UnknownTopic,
    /// The position is ahead of the topic.
    Ahead,
    /// The client has more positions than fit into a request.
    TooMany,
    /// The server gives no reason, or one that this version does not know.
    Other,
}

impl RecoveryFailure {
    /// The reason's name in the protocol; empty: none.
    pub fn name(self) -> &'static str {
        match self {
            RecoveryFailure::Epoch => "epoch",
            RecoveryFailure::TooOld => "too_old",
            RecoveryFailure::UnknownTopic => "unknown_topic",
            RecoveryFailure::Ahead => "ahead",
            RecoveryFailure::TooMany => "too_many",
            RecoveryFailure::Other => "",
        }
    }

    /// The reason of a name or, in native frames, of its number.
    pub(super) fn from_name(name: &str) -> RecoveryFailure {
        RecoveryFailure::ALL
            .into_iter()
            .find(|reason| reason.name() == name)
            .unwrap_or(RecoveryFailure::Other)
    }

    pub(super) fn from_wire(reason: u16) -> RecoveryFailure {
        let at = usize::from(reason).checked_sub(1);
        at.and_then(|at| RecoveryFailure::ALL.get(at).copied()).unwrap_or(RecoveryFailure::Other)
    }

    /// Those that a server sends, by their numbers from 1.
    const ALL: [RecoveryFailure; 4] = [
        RecoveryFailure::Epoch,
        RecoveryFailure::TooOld,
        RecoveryFailure::UnknownTopic,
        RecoveryFailure::Ahead,
    ];
}

/// The state of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// It delivers.
    Up,
    /// Another one delivers in its place.
    Fallback,
    /// Nothing is delivered.
    Down,
    /// A state that this version does not know.
    Unknown,
}

impl SourceState {
    /// The state's name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            SourceState::Up => "up",
            SourceState::Fallback => "fallback",
            SourceState::Down => "down",
            SourceState::Unknown => "unknown",
        }
    }

    pub(super) fn from_name(name: &str) -> SourceState {
        [SourceState::Up, SourceState::Fallback, SourceState::Down]
            .into_iter()
            .find(|state| state.name() == name)
            .unwrap_or(SourceState::Unknown)
    }

    pub(super) fn from_wire(state: u32) -> SourceState {
        match state {
            1 => SourceState::Up,
            2 => SourceState::Fallback,
            3 => SourceState::Down,
            _ => SourceState::Unknown,
        }
    }
}

/// A publish of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId(pub(super) u64);

/// Where the server has put a published tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedAt {
    /// The topic's name.
    pub topic: Box<str>,
    /// Epoch and sequence of the tick.
    pub position: Position,
    /// Whether the server had this tick already, by its message id.
    pub is_duplicate: bool,
}

/// What became of a publish that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishFailure {
    /// Whether it was published.
    pub outcome: PublishOutcome,
    /// The server's error code, or the close code of the connection; 0: none.
    pub code: u16,
    /// The reason, for a person.
    pub reason: Arc<str>,
}

/// Whether a failed publish was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The server refused it: not published.
    Refused,
    /// It never left this client: not published.
    NotSent,
    /// The answer did not arrive: published or not.
    Unknown,
}
