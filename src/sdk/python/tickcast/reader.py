"""Events that wait for one `async for`: a bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from .events import Conflated, Event, Gap
from .tick import Position, Tick

E = TypeVar("E", bound=Event)

_EPOCHS_MAX = 16


class Reader(Generic[E]):
    """An async iterator over events. One task reads it.

    With `events_max` events it is full, and the client stops reading its socket: the server then sees a slow client, and applies
    the subscription's policy. But while the application awaits an answer of the server, the client must read on. A reader with
    twice `events_max` then drops its oldest tick, and yields a `Gap` in its place: before the topic's next event, or when no other
    event waits. The same holds for a reader whose loop was left: nobody may come back, so the client does not wait for it.
    """

    def __init__(self, types: tuple[type, ...], events_max: int, on_room: Callable[[], None]) -> None:
        """`types`: those to keep; none: all. `on_room` is called when the reader is no longer full."""
        self._types = types
        self._events_max = events_max
        self._on_room = on_room
        self._events: deque[E] = deque()
        self._kept: deque[E] = deque(maxlen=events_max)
        """Events other than ticks and ranges that were the oldest when one had to be dropped."""
        self._lost: dict[str, list[Gap]] = {}
        """Dropped ranges by topic, one for each epoch, until they are announced. Each counts as one unread event."""
        self.lost = 0
        """Ticks that were dropped because the application was too slow."""
        self._wake = asyncio.Event()
        self._error: Exception | None = None
        self.has_ended = False
        """Whether no more events follow those that wait."""
        self._loops = 0
        """Iterators of loops over it."""
        self._is_left = False
        """Whether there was a loop, and there is none now."""
        self._current: E | None = None
        self._unread: dict[str, int] = {}
        """Events by topic that the application has not finished."""
        self._read: dict[str, Position] = {}
        """Position of the last event that the application has finished, by topic, while others are unread."""

    @property
    def is_full(self) -> bool:
        """Whether the client should stop reading."""
        return len(self._events) >= self._events_max and not self.has_ended and not self._is_left

    def handle_loop(self) -> None:
        """A loop over it begins."""
        self._loops += 1
        self._is_left = False

    def handle_left(self) -> None:
        """A loop over it was left, or has ended."""
        was_full = self.is_full
        self._loops -= 1
        self._is_left = self._loops == 0
        if was_full and not self.is_full:
            self._on_room()

    def __len__(self) -> int:
        """Events that wait."""
        return len(self._kept) + len(self._events)

    def put(self, event: E) -> None:
        """Adds an event, unless its type is not wanted or the reader has ended."""
        if self.has_ended or (self._types and not isinstance(event, self._types)):
            return
        if len(self._events) >= 2 * self._events_max:
            self._drop()
        self._events.append(event)
        if isinstance(event, (Tick, Gap, Conflated)):
            self._unread[event.topic] = self._unread.get(event.topic, 0) + 1
        self._wake.set()

    def end(self, error: Exception | None = None) -> None:
        """No more events follow. What waits is still read; then `error` is raised, if there is one."""
        if not self.has_ended:
            self.has_ended = True
            self._error = error
            self._wake.set()

    def lags(self, topic: str) -> tuple[bool, Position | None]:
        """Whether the application has not finished all events of a topic; and the last position that it has finished."""
        return topic in self._unread, self._read.get(topic)

    def __aiter__(self) -> Reader[E]:
        return self

    async def __anext__(self) -> E:
        self._finish()
        while True:
            if (gap := self._next_lost()) is not None:
                self._current = gap  # type: ignore[assignment]
                return gap  # type: ignore[return-value]
            if self._kept or self._events:
                return self._next()
            if self.has_ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> E:
        was_full = self.is_full
        self._current = (self._kept or self._events).popleft()
        if was_full and not self.is_full:
            self._on_room()
        return self._current

    def _next_lost(self) -> Gap | None:
        """The dropped range to announce now: one of the next event's topic, or any if no event waits."""
        while self._lost:
            waiting = self._kept or self._events
            topic = getattr(waiting[0], "topic", "") if waiting else next(iter(self._lost))
            lost = self._lost.get(topic)
            if lost is None:
                return None
            gap = lost.pop(0)
            if not lost:
                del self._lost[topic]
            if not self._types or Gap in self._types:
                return gap
            self._advance(gap.topic, gap.epoch, gap.to_sequence - 1)
        return None

    def _drop(self) -> None:
        event = self._events.popleft()
        if isinstance(event, Tick):
            gap = Gap(event.topic, event.epoch, event.sequence, event.sequence + 1, 1)
        elif isinstance(event, (Gap, Conflated)):
            gap = Gap(event.topic, event.epoch, event.from_sequence, event.to_sequence, event.count)
        else:
            self._kept.append(event)
            return
        self.lost += gap.count
        ranges = self._lost.setdefault(gap.topic, [])
        if ranges and ranges[-1].epoch == gap.epoch:
            self._count_down(gap.topic)
            last = ranges.pop()
            first, end = min(last.from_sequence, gap.from_sequence), max(last.to_sequence, gap.to_sequence)
            gap = Gap(gap.topic, gap.epoch, first, end, last.count + gap.count)
        ranges.append(gap)
        if len(ranges) > _EPOCHS_MAX:
            # Only a topic that starts over again and again has so many; `lost` has counted them.
            self._count_down(ranges.pop(0).topic)

    def _finish(self) -> None:
        """The application has finished the event before, because it asks for the next one."""
        event, self._current = self._current, None
        if isinstance(event, Tick):
            self._advance(event.topic, event.epoch, event.sequence)
        elif isinstance(event, (Gap, Conflated)):
            self._advance(event.topic, event.epoch, event.to_sequence - 1)

    def _advance(self, topic: str, epoch: int, sequence: int) -> None:
        self._read[topic] = Position(epoch, sequence)
        self._count_down(topic)

    def _count_down(self, topic: str) -> None:
        unread = self._unread.get(topic, 0) - 1
        if unread > 0:
            self._unread[topic] = unread
        else:
            self._unread.pop(topic, None)
            self._read.pop(topic, None)


class Iteration(Generic[E]):
    """An async iterator over a reader, which learns when it is deleted: as that of `async for` is when the loop is left."""

    def __init__(self, reader: Reader[E], on_deleted: Callable[[Reader[E]], None]) -> None:
        self._reader = reader
        self._on_deleted = on_deleted

    def __aiter__(self) -> Iteration[E]:
        return self

    async def __anext__(self) -> E:
        return await self._reader.__anext__()

    def __del__(self) -> None:
        self._on_deleted(self._reader)
