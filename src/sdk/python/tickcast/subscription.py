"""A subscription, as the application sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .book_view import BookView
from .errors import ClosedError, RefusedError
from .events import ClientState, Conflated, Gap, SubscriptionChanged, SubscriptionEvent, SubscriptionState
from .keyed_view import KeyedView
from .limits import VIEW_ENTRIES_MAX
from .messages import Policy
from .reader import Iteration, Reader
from .tick import Position, Tick

if TYPE_CHECKING:
    from .client import Client

logger = logging.getLogger("tickcast")

T = TypeVar("T", bound=SubscriptionEvent)
U = TypeVar("U", bound=SubscriptionEvent)
V = TypeVar("V", bound=SubscriptionEvent)


class Subscription:
    """One subscription: `async for tick in subscription`, or its events, callbacks and views.

    From the first tick on, ticks wait for `async for`; a loop that was left continues with the next one. Until then up to twice
    `events_max` ticks wait, and older ones are dropped and counted in `lost`: the client does not stop for a loop that may not come
    back. If the application reads the subscription only by `events`, `listen` or views, no ticks wait.
    """

    def __init__(self, client: Client, pattern: str, events_max: int) -> None:
        """Made by `Client.subscribe`."""
        self._client = client
        self._events_max = events_max
        self._callbacks: list[Callable[[SubscriptionEvent], None]] = []
        self._own: Reader[Tick] | None = self._reader((Tick,), events_max)
        """What `async for` reads; `None`: the application reads in another way."""
        self._is_own_read = False
        """Whether there was an `async for`."""
        self._change: SubscriptionChanged | None = None
        self._changed = asyncio.Event()
        self._lost = 0
        self._detached_lost = 0
        self.pattern = pattern
        """The pattern."""
        self.ticks = 0
        """Ticks received."""
        self.conflated = 0
        """Ticks that newer ones replaced."""
        self._readers: list[Reader[Any]] = [self._own]

    @property
    def state(self) -> SubscriptionState:
        """Whether it delivers ticks."""
        return SubscriptionState.SUBSCRIBING if self._change is None else self._change.state

    @property
    def code(self) -> int:
        """The error code or close code that caused the state; 0: none."""
        return 0 if self._change is None else self._change.code

    @property
    def reason(self) -> str:
        """The reason for the state, for a person."""
        return "" if self._change is None else self._change.reason

    @property
    def lost(self) -> int:
        """Ticks lost: announced by the server as gaps, or dropped here because a reader was too slow."""
        return self._lost + self._detached_lost + sum(reader.lost for reader in self._readers)

    async def ready(self) -> Subscription:
        """Waits until the server has acknowledged the subscription: ticks published from then on are delivered.

        Raises `RefusedError` if the server refuses it, `ClosedError` if the client is closed.
        """
        with self._client._answer_awaited():
            while self.state is SubscriptionState.SUBSCRIBING:
                self._client._raise_if_closed()
                self._changed.clear()
                await self._changed.wait()
        if self.state is SubscriptionState.UNSUBSCRIBED:
            raise self._end_error() or ClosedError(self.code, "the application unsubscribed")
        return self

    def set_rate(self, max_rate: float | None) -> None:
        """Changes the most ticks per second of each topic, live and for later connections; `None`: no limit.

        If the server refuses, an `ErrorEvent` says so, and the rate stays as it was.
        """
        policy, _ = self._client._session.delivery(self.pattern)
        self._client._update(self.pattern, policy, max_rate)

    def set_policy(self, policy: Policy | None) -> None:
        """Changes the policy for a slow client, live and for later connections; `None`: the server's default. Errors as `set_rate`."""
        _, max_rate = self._client._session.delivery(self.pattern)
        self._client._update(self.pattern, policy, max_rate)

    def unsubscribe(self) -> None:
        """Ends the subscription and its iterators. Does nothing if it has ended."""
        if self._client._subscriptions.get(self.pattern) is self:
            self._client._unsubscribe(self.pattern)

    @overload
    def events(self, *, events_max: int | None = None) -> AsyncIterator[SubscriptionEvent]: ...

    @overload
    def events(self, first: type[T], /, *, events_max: int | None = None) -> AsyncIterator[T]: ...

    @overload
    def events(self, first: type[T], second: type[U], /, *, events_max: int | None = None) -> AsyncIterator[T | U]: ...

    @overload
    def events(
        self, first: type[T], second: type[U], third: type[V], /, *, events_max: int | None = None
    ) -> AsyncIterator[T | U | V]: ...

    @overload
    def events(self, *types: type[Any], events_max: int | None = None) -> AsyncIterator[Any]: ...

    def events(self, *types: type[Any], events_max: int | None = None) -> AsyncIterator[Any]:
        """An iterator over the events of these types from now on, such as `events(Tick, Gap)`; without types over all.

        `events_max`: how many may wait before the client stops reading its socket; see `Reader`. Events wait until the iterator is
        deleted, as that of `async for event in subscription.events()` is when the loop is left. If the subscription or the client has
        ended, the iterator ends, with the error of that end.
        """
        self._drop_unread()
        reader: Reader[Any] = self._reader(types, events_max or self._events_max)
        self._readers.append(reader)
        self._end_if_over(reader)
        return Iteration(reader, self._detach)

    def listen(self, callback: Callable[[SubscriptionEvent], None]) -> Callable[[], None]:
        """Calls `callback` with every event, in order and before the next message is read; returns what stops that.

        It must not block. An exception in it is logged.
        """
        self._drop_unread()
        # Always another list: a callback may stop itself, or add one, while the list is run through.
        self._callbacks = [*self._callbacks, callback]

        def stop() -> None:
            if callback in self._callbacks:
                at = self._callbacks.index(callback)
                self._callbacks = [*self._callbacks[:at], *self._callbacks[at + 1 :]]

        return stop

    def keyed_view(self, entries_max: int = VIEW_ENTRIES_MAX) -> KeyedView:
        """A view of the last value of each topic and key, kept up to date until it is closed or the subscription ends.

        Subscribe with `since="latest"` for the values from before.
        """
        view = KeyedView(entries_max)
        view._stop = self.listen(view.handle)
        return view

    def book_view(self) -> BookView:
        """A view of order books, kept up to date until it is closed or the subscription ends: see `BookView` for the payloads."""
        view = BookView()
        view._stop = self.listen(view.handle)
        return view

    def __aiter__(self) -> AsyncIterator[Tick]:
        """The ticks. What was lost is counted in `lost`; `events(Tick, Gap)` has it in order.

        Raises the error of a subscription or client that has ended, once the ticks from before are read.
        """
        if self._own is not None and self._own.has_ended and not len(self._own) and self._is_alive:
            # The client was closed, and has connected again.
            self._detach(self._own)
            self._own = None
        if self._own is None:
            self._own = self._reader((Tick,), self._events_max)
            self._readers.append(self._own)
        self._end_if_over(self._own)
        self._is_own_read = True
        self._own.handle_loop()
        return Iteration(self._own, Reader.handle_left)

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.unsubscribe()

    # What the client calls.

    def _handle(self, event: SubscriptionEvent) -> None:
        if isinstance(event, Tick):
            self.ticks += 1
        elif isinstance(event, Gap):
            self._lost += event.count
        elif isinstance(event, Conflated):
            self.conflated += event.count
        elif isinstance(event, SubscriptionChanged):
            self._change = event
            self._changed.set()
        for reader in self._readers:
            reader.put(event)
        for callback in self._callbacks:
            try:
                callback(event)
            except Exception:
                logger.exception("a callback of the subscription %s failed", self.pattern)
        if self.state is SubscriptionState.UNSUBSCRIBED:
            self._end(self._end_error())

    @property
    def _unread(self) -> int:
        """Events that wait for the slowest reader."""
        return max((len(reader) for reader in self._readers), default=0)

    def _end_error(self) -> RefusedError | None:
        return RefusedError(self.code, self.reason) if self.code else None

    def _end_if_over(self, reader: Reader[Any]) -> None:
        """Ends a reader that was made when nothing could follow any more."""
        if self.state is SubscriptionState.UNSUBSCRIBED:
            reader.end(self._end_error())
        elif self._client._has_ended:
            reader.end(self._client._end_error)

    def _end(self, error: Exception | None) -> None:
        self._changed.set()
        for reader in self._readers:
            reader.end(error)

    @property
    def _is_alive(self) -> bool:
        """Whether events may still come."""
        is_closed = self._client.state is ClientState.DISCONNECTED
        return self.state is not SubscriptionState.UNSUBSCRIBED and not is_closed

    @property
    def _is_full(self) -> bool:
        return any(reader.is_full for reader in self._readers)

    def _lags(self, topic: str) -> list[Position | None]:
        """For each reader that has not finished a topic's events: the position that it has finished."""
        return [position for is_behind, position in (reader.lags(topic) for reader in self._readers) if is_behind]

    def _reader(self, types: tuple[type, ...], events_max: int) -> Reader[Any]:
        return Reader(types, events_max, self._client._handle_room)

    def _drop_unread(self) -> None:
        """The application reads the subscription in another way than by `async for`."""
        if self._own is not None and not self._is_own_read:
            self._detach(self._own)
            self._own = None

    def _detach(self, reader: Reader[Any]) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            self._detached_lost += reader.lost
            self._client._handle_room()
