"""What client and server say to each other, whatever the encoding. `native` and `json_codec` turn these into bytes and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from .events import SourceChanged
from .tick import Position, Tick

FEATURES = (
    "published",
    "reasons",
    "previous",
    "counts",
    "tokens",
    "sources",
    "nodes",
    "message_ids",
    "string_keys",
    "positions",
    "batches",
    "since",
)
"""All features, in the order of their bits."""

Policy: TypeAlias = Literal["conflate", "drop", "keep", "disconnect"]
Start: TypeAlias = Literal["live", "latest", "oldest"] | Mapping[str, Position]
"""Where a subscription begins. `live`: the next tick; `latest`: the last tick of each key, then live ticks; `oldest`: every tick
that the server has kept; positions: the tick after each topic's position, and the oldest one of topics without."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a session and asks for features; with a token, says who the client is."""

    request: int
    name: str
    features: tuple[str, ...]
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a subscription became live, by the server with this epoch."""

    epoch: int
    since_us: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribes to a pattern."""

    request: int
    pattern: str
    start: Start = "live"
    policy: Policy | None = None
    max_rate: float | None = None
    moment: Moment | None = None
    """Where topics without a position start, if `start` is positions; `None`: with the oldest tick kept."""


@dataclass(frozen=True, slots=True)
class Update:
    """Replaces policy and rate of a subscription."""

    request: int
    pattern: str
    policy: Policy | None = None
    max_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Ends a subscription."""

    request: int
    pattern: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Publishes a tick. `is_json`: the payload is one JSON text."""

    request: int
    topic: str
    payload: bytes
    is_json: bool
    time_ns: int = 0
    schema: int = 0
    key: int = 0
    message_id: str = ""
    """Empty: none."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a pong; sent by either side."""

    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping."""

    token: int


@dataclass(frozen=True, slots=True)
class Refresh:
    """Replaces the token."""

    request: int
    token: str = field(repr=False)


Request: TypeAlias = Hello | Update | Unsubscribe | Publish | Ping | Pong | Refresh


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server accepted the session."""

    request: int
    server: str
    epoch: int
    session: int
    frame_bytes_max: int
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A pattern is live."""

    request: int
    pattern: str
    since_us: int
    """When it became live; 0: not known."""


@dataclass(frozen=True, slots=True)
class TopicAnnounced:
    """A topic's number and epoch; its ticks follow."""

    topic: str
    topic_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """A subscription has ended; `code` other than 0: the server ended it."""

    request: int
    pattern: str
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Ticks that are not delivered: lost, or conflated. `topic` in JSON, `topic_id` in native frames."""

    topic: str
    topic_id: int
    is_gap: bool
    from_sequence: int
    to_sequence: int
    count: int


@dataclass(frozen=True, slots=True)
class RecoveredMessage:
    """The answer to a position."""

    topic: str
    topic_id: int | None
    """0: the topic does not exist; `None` in JSON."""
    epoch: int
    sequence: int
    recovered: bool
    reason: str

    @property
    def is_gone(self) -> bool:
        """Whether the topic does not exist."""
        return self.topic_id == 0 or self.reason == "unknown_topic"


@dataclass(frozen=True, slots=True)
class PublishedMessage:
    """The tick of a publish is sequenced."""

    request: int
    topic: str
    epoch: int
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """A request failed."""

    request: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Closing:
    """The server's last message."""

    code: int
    reason: str
    reconnect_after_ms: int


@dataclass(frozen=True, slots=True)
class Expires:
    """The token expires in so many seconds; 0: never."""

    request: int
    expires_in_s: int


@dataclass(frozen=True, slots=True)
class StaleMessage:
    """A topic's source fell silent, or is back."""

    topic: str
    topic_id: int
    stale: bool
    since_ns: int


ServerMessage: TypeAlias = (
    Tick
    | Welcome
    | Subscribed
    | TopicAnnounced
    | Unsubscribed
    | Skipped
    | RecoveredMessage
    | PublishedMessage
    | Ping
    | Pong
    | ErrorMessage
    | Closing
    | Expires
    | SourceChanged
    | StaleMessage
)


class Codec(Protocol):
    """An encoding of both directions. Stateless."""

    @property
    def subprotocol(self) -> str:
        """The WebSocket subprotocol."""

    @property
    def features(self) -> tuple[str, ...]:
        """Features that the client asks for, in the order of their bits."""

    def encode(self, request: Request) -> str | bytes:
        """The WebSocket message of a request: text for JSON, bytes for native frames."""

    def encode_subscribe(self, subscribe: Subscribe) -> list[str | bytes]:
        """The messages of a subscription: one, or in native frames with many positions some."""

    def message_bytes_max(self, frame_bytes_max: int) -> int:
        """The longest message that a server accepts whose largest frame this is."""

    def decode(self, message: str | bytes) -> list[ServerMessage]:
        """The messages in a WebSocket message; unknown kinds are left out. Raises `ProtocolError`."""
