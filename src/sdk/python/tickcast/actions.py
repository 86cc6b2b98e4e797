"""What a session asks of its driver, and the queue of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .events import Event
from .tick import Position


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a WebSocket; answer with `handle_open` or `handle_closed`."""

    url: str
    protocols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send one message: text for JSON, bytes for native frames."""

    message: str | bytes
    is_optional: bool = False
    """Whether to leave it out while more than `OUTPUT_BYTES_MAX` wait for the socket: the answer to a ping."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the WebSocket, or abandon the attempt to open it, and forget it: no `handle_closed` follows."""

    code: int


@dataclass(frozen=True, slots=True)
class AskToken:
    """Ask the application for a token; answer with `handle_token` or `handle_token_failed`."""

    why: Literal["connect", "refresh"]


@dataclass(frozen=True, slots=True)
class Save:
    """Save the positions, in place of those saved before."""

    positions: Mapping[str, Position]


Action: TypeAlias = Dial | Send | HangUp | AskToken | Save


class Outbox:
    """Actions and events that wait for the driver, each in order. Bound: what one input causes; the driver takes all after each."""

    __slots__ = ("actions", "events")

    def __init__(self) -> None:
        self.actions: deque[Action] = deque()
        self.events: deque[tuple[str | None, Event]] = deque()

    def act(self, action: Action) -> None:
        """Adds an action."""
        self.actions.append(action)

    def emit(self, event: Event, on: str | None = None) -> None:
        """Adds an event; `on` is the pattern of its subscription."""
        self.events.append((on, event))
