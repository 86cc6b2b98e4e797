"""Publishes without an answer: those that wait for a connection, and those in flight."""

from __future__ import annotations

from dataclasses import dataclass

from .limits import OFFLINE_QUEUE_BYTES_MAX, UNACKNOWLEDGED_MAX
from .messages import Publish


@dataclass(frozen=True, slots=True)
class Waiting:
    """A publish that waits. Its request has no number yet."""

    handle: int
    publish: Publish


class Publishes:
    """Publishes by handle.

    Invariant: at most `waiting_max` wait, with `OFFLINE_QUEUE_BYTES_MAX` of payloads, and at most `UNACKNOWLEDGED_MAX` are in
    flight; a handle is in one of the two.
    """

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._waiting: dict[int, Waiting] = {}
        self._waiting_bytes = 0
        # Handle by request number of this connection, and the other way round.
        self._handles: dict[int, int] = {}
        self._requests: dict[int, int] = {}

    def wait(self, handle: int, publish: Publish) -> bool:
        """Keeps a publish for the next connection; returns false beyond the bounds."""
        waiting_bytes = self._waiting_bytes + len(publish.payload)
        if len(self._waiting) >= self._waiting_max or waiting_bytes > OFFLINE_QUEUE_BYTES_MAX:
            return False
        self._waiting_bytes = waiting_bytes
        self._waiting[handle] = Waiting(handle, publish)
        return True

    def take_waiting(self) -> list[Waiting]:
        """Removes and returns all publishes that wait, oldest first."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._waiting_bytes = 0
        return waiting

    def cancel(self, handle: int) -> Waiting | None:
        """Removes a publish that waits; `None` if it does not."""
        waiting = self._waiting.pop(handle, None)
        if waiting is not None:
            self._waiting_bytes -= len(waiting.publish.payload)
        return waiting

    @property
    def is_full(self) -> bool:
        """Whether no further publish may be in flight."""
        return len(self._handles) >= UNACKNOWLEDGED_MAX

    def handle_sent(self, handle: int, request: int) -> None:
        """A publish was sent."""
        self._handles[request] = handle
        self._requests[handle] = request

    def handle_answer(self, request: int) -> int | None:
        """A request was answered; returns the handle of its publish, `None` if it was none, or is not awaited any more."""
        handle = self._handles.pop(request, None)
        if handle is not None:
            del self._requests[handle]
        return handle

    def abandon(self, handle: int) -> bool:
        """Stops awaiting an answer; returns whether it was awaited."""
        request = self._requests.pop(handle, None)
        if request is not None:
            del self._handles[request]
        return request is not None

    def handle_lost(self) -> list[int]:
        """The connection is lost; returns the handles of those in flight, oldest first."""
        handles = list(self._requests)
        self._handles.clear()
        self._requests.clear()
        return handles
