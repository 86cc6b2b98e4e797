"""Delays with full jitter, and which close codes allow another attempt. Uses no clock and no random source of its own."""

from __future__ import annotations

from collections.abc import Callable
from math import floor

from .limits import NOT_ADMITTED_DELAY_MS, RECONNECT_AFTER_MS_MAX, RECONNECT_BASE_MS, RECONNECT_CAP_MS

NOT_ADMITTED = 3504
"""Close code with which a server does not admit the client now."""
TOKEN_EXPIRED = 3005
"""Close code after which a client needs another token."""

# Proxies send 1012 and 1013 while they restart or are overloaded (IANA, WebSocket Close Code Number Registry).
_RETRYABLE = frozenset({0, 1001, 1005, 1006, 1012, 1013, NOT_ADMITTED})


def may_reconnect(code: int) -> bool:
    """Whether a client may reconnect after this close code. 0: the connection ended without one."""
    return code in _RETRYABLE or 3000 <= code <= 3499


def delay_asked_ms(code: int, reconnect_after_ms: int) -> int:
    """The delay that the server asks for, within bounds. Jitter is added to it."""
    least_ms = NOT_ADMITTED_DELAY_MS if code == NOT_ADMITTED else 0
    return min(max(reconnect_after_ms, least_ms), RECONNECT_AFTER_MS_MAX)


class Backoff:
    """Exponential back-off with full jitter: a random delay up to a bound that doubles with each attempt.

    Full jitter puts the least load on a server that comes back ("Exponential Backoff And Jitter", AWS architecture blog).
    """

    __slots__ = ("_random", "attempts")

    def __init__(self, random: Callable[[], float]) -> None:
        """`random` returns numbers in [0, 1)."""
        self._random = random
        self.attempts = 0

    def next_ms(self) -> int:
        """The next delay, in milliseconds."""
        # 2^16 exceeds the ratio of the bounds; without it the number would grow for ever.
        bound_ms = min(RECONNECT_BASE_MS << min(self.attempts, 16), RECONNECT_CAP_MS)
        self.attempts += 1
        return floor(self._random() * (bound_ms + 1))

    def reset(self) -> None:
        """Starts with small delays again."""
        self.attempts = 0
