"""Delays with full jitter. Uses no clock and no random source of its own."""

from __future__ import annotations

from collections.abc import Callable
from math import floor

from .limits import RECONNECT_BASE_MS, RECONNECT_CAP_MS


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
