"""Options of a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .json_codec import JsonCodec
from .limits import OFFLINE_QUEUE_MAX
from .messages import Codec
from .tick import Position


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Options of a session."""

    url: str
    codec: Codec = field(default_factory=JsonCodec)
    name: str = "tickcast-python"
    """Name of the client software, in the server's log and admin pages."""
    token: str | None = field(default=None, repr=False)
    """A token that does not change by itself."""
    asks_token: bool = False
    """Whether the application gives tokens when asked."""
    positions: Mapping[str, Position] = field(default_factory=dict)
    """Positions that an earlier client saved: subscriptions that match their topics resume there."""
    saves_positions: bool = False
    """Whether positions are saved."""
    offline_queue_max: int = OFFLINE_QUEUE_MAX
    """Publishes that wait for a connection."""
