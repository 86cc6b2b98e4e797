"""What happens to a client, its subscriptions and its publishes. `Tick` is an event too."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from .tick import Tick


class ClientState(str, Enum):
    """Whether a client is connected."""

    DISCONNECTED = "disconnected"
    """It makes no attempts: not yet, or not any more."""
    CONNECTING = "connecting"
    """It tries to connect, or waits before the next attempt."""
    CONNECTED = "connected"
    """The server has welcomed it."""


class SubscriptionState(str, Enum):
    """Whether a subscription delivers ticks."""

    UNSUBSCRIBED = "unsubscribed"
    """It has ended, and is not made again."""
    SUBSCRIBING = "subscribing"
    """It is, or will be, sent to the server."""
    SUBSCRIBED = "subscribed"
    """The server has acknowledged it: ticks published from now on are delivered."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The client's state has changed, or another attempt has failed."""

    state: ClientState
    code: int
    """The close code that caused it; 0: none. 1006: the connection was cut, or could not be made."""
    reason: str
    """For a person."""
    retry_in_ms: int | None = None
    """Time until the next attempt, if it waits for one."""


@dataclass(frozen=True, slots=True)
class SubscriptionChanged:
    """A subscription's state has changed."""

    state: SubscriptionState
    code: int
    """The server's error code, or the close code of the connection; 0: none."""
    reason: str
    """For a person."""
    retry_in_ms: int | None = None
    """Time until it is sent again, after the server limited its rate."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Ticks that this client has lost: the server dropped them, no longer has them, or sent a snapshot in their place."""

    topic: str
    epoch: int
    from_sequence: int
    """The first sequence of the range."""
    to_sequence: int
    """The first sequence after the range."""
    count: int
    """The number of ticks in the range."""


@dataclass(frozen=True, slots=True)
class Conflated:
    """Ticks that the topic's next tick replaces."""

    topic: str
    epoch: int
    from_sequence: int
    """The first sequence of the range."""
    to_sequence: int
    """The first sequence after the range."""
    count: int
    """The number of ticks in the range."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The answer to a position from which the client resumes in a topic."""

    topic: str
    epoch: int
    """The topic's epoch now."""
    sequence: int
    """The topic's last sequence when the server looked; 0: it did not look."""
    recovered: bool
    """Whether every tick after the position follows."""
    reason: str
    """Why not: `epoch`, `too_old`, `unknown_topic`, `ahead`, or `too_many` positions for one request; otherwise empty."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The source of a topic fell silent, or is back. A reconnect clears it; the server reports a topic that is still stale again."""

    topic: str
    stale: bool
    since_ns: int
    """Nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class SourceChanged:
    """The state of a source of the server."""

    source: str
    state: str
    """`up`, `fallback` or `down`."""
    since_ns: int
    """Nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class TokenExpires:
    """The server has said when the client's token expires."""

    expires_in_s: int
    """Seconds from now; 0: never."""


@dataclass(frozen=True, slots=True)
class Latency:
    """The answer to a ping."""

    round_trip_ns: int
    offset_ns: int | None
    """This machine's clock minus the server's; `None` if it is not known yet. Half of the shortest round trip is its error."""


@dataclass(frozen=True, slots=True)
class Published:
    """The server has sequenced the tick of a publish and passes it on to subscribers."""

    handle: int
    """What `Session.publish` returned."""
    topic: str
    epoch: int
    sequence: int
    duplicate: bool
    """Whether the server had this tick already, by its message id."""


class Outcome(str, Enum):
    """What became of a publish that failed."""

    REFUSED = "refused"
    """The server refused it: not published."""
    NOT_SENT = "not_sent"
    """It never left this client: not published."""
    UNKNOWN = "unknown"
    """The answer did not arrive: published or not."""


@dataclass(frozen=True, slots=True)
class PublishFailed:
    """A publish has failed."""

    handle: int
    """What `Session.publish` returned."""
    outcome: Outcome
    code: int
    """The server's error code, or the close code of the connection; 0: none."""
    reason: str
    """For a person."""


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """Something failed, and the client goes on."""

    code: int
    """The server's error code; 0: none."""
    reason: str
    """For a person."""


TopicEvent: TypeAlias = Tick | Gap | Conflated | Recovered | Stale
"""What a subscription delivers."""
SubscriptionEvent: TypeAlias = TopicEvent | SubscriptionChanged
"""What happens to a subscription."""
Event: TypeAlias = (
    SubscriptionEvent
    | StateChanged
    | SourceChanged
    | TokenExpires
    | Latency
    | Published
    | PublishFailed
    | ErrorEvent
)
"""All events."""
