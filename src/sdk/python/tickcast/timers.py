"""Deadlines by key."""

from __future__ import annotations

import heapq
from collections.abc import Hashable


class Timers:
    """Deadlines, one for each key, in nanoseconds of a monotonic clock.

    Setting, cancelling and popping cost O(log n). A cancelled deadline stays in the heap until it is popped or until the
    heap is rebuilt, which keeps the heap below twice the live deadlines plus `_SPARE`.
    """

    _SPARE = 64

    def __init__(self) -> None:
        self._live: dict[Hashable, tuple[int, int]] = {}
        self._heap: list[tuple[int, int, Hashable]] = []
        # Keeps equal deadlines in the order in which they were set, and keys from being compared.
        self._count = 0

    def set(self, key: Hashable, at_ns: int) -> None:
        """Sets or replaces a deadline."""
        self._count += 1
        self._live[key] = (at_ns, self._count)
        heapq.heappush(self._heap, (at_ns, self._count, key))
        if len(self._heap) > 2 * len(self._live) + self._SPARE:
            self._heap = [(at, count, live) for live, (at, count) in self._live.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: Hashable) -> None:
        """Removes a deadline, if there is one."""
        self._live.pop(key, None)

    def next_ns(self) -> int | None:
        """The next deadline."""
        while self._heap:
            at_ns, count, key = self._heap[0]
            if self._live.get(key) == (at_ns, count):
                return at_ns
            heapq.heappop(self._heap)
        return None

    def pop(self, now_ns: int) -> tuple[Hashable, int] | None:
        """Removes the next deadline if it is due; returns its key and its time."""
        at_ns = self.next_ns()
        if at_ns is None or at_ns > now_ns:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._live[key]
        return key, at_ns
