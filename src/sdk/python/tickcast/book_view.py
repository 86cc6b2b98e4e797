"""Order books of feeds that publish a snapshot and then changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from .errors import ProtocolError
from .events import Conflated, Gap, Recovered, SubscriptionEvent
from .limits import BOOK_LEVELS_MAX, BOOKS_MAX
from .tick import Tick


class OrderBook:
    """One book. It is `live` after a snapshot, until ticks are missing; then its levels are the last ones known.

    Bound: `BOOK_LEVELS_MAX` levels a side. A book with more is not live: it waits for a snapshot that fits.
    """

    def __init__(self) -> None:
        self.live = False
        """Whether the levels are those of the feed."""
        self.epoch = 0
        self.sequence = 0
        """The last tick applied."""
        self._bids: dict[float, float] = {}
        self._asks: dict[float, float] = {}

    def bids(self, depth: int | None = None) -> list[tuple[float, float]]:
        """Price and size of the bids, highest price first. Sorts them: O(n log n)."""
        return sorted(self._bids.items(), reverse=True)[:depth]

    def asks(self, depth: int | None = None) -> list[tuple[float, float]]:
        """Price and size of the asks, lowest price first. Sorts them: O(n log n)."""
        return sorted(self._asks.items())[:depth]

    @property
    def best_bid(self) -> tuple[float, float] | None:
        """Price and size of the highest bid."""
        return max(self._bids.items(), default=None)

    @property
    def best_ask(self) -> tuple[float, float] | None:
        """Price and size of the lowest ask."""
        return min(self._asks.items(), default=None)

    def handle(self, tick: Tick) -> None:
        """Applies a snapshot, or a change to a live book. A payload that is neither makes the book wait for a snapshot."""
        is_new_life = tick.epoch != self.epoch
        self.epoch, self.sequence = tick.epoch, tick.sequence
        self.live = self.live and not is_new_life
        try:
            message = tick.data
        except ProtocolError:
            message = None
        if not isinstance(message, dict):
            self.live = False
            return
        if message.get("type") == "snapshot":
            self._bids.clear()
            self._asks.clear()
            self.live = True
        elif not self.live:
            return
        self.live = _apply(self._bids, message.get("bids", [])) and _apply(self._asks, message.get("asks", []))


def _apply(side: dict[float, float], levels: object) -> bool:
    """Applies changes to one side; returns whether they are valid and fit."""
    if not isinstance(levels, list):
        return False
    for level in levels:
        if not isinstance(level, list) or len(level) < 2:
            return False
        price, size = _number(level[0]), _number(level[1])
        if price is None or size is None or size < 0:
            return False
        if size == 0:
            side.pop(price, None)
        else:
            side[price] = size
    return len(side) <= BOOK_LEVELS_MAX


def _number(value: Any) -> float | None:
    """A finite number, or one in a string, as feeds have them to keep their digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class BookView:
    """The order book of each topic, for feeds of snapshots and changes.

    A payload is `{"type": "snapshot", "bids": [[price, size], ...], "asks": [...]}`, or a change with another `type` or none.
    Prices and sizes are numbers, or strings of them; size 0 removes a level. A book stops being live at a gap, a conflated range,
    a position that was not recovered, or a new epoch; changes are ignored then, until the next snapshot replaces its levels.
    So subscribe without `policy="conflate"` and without a rate, and best with `policy="disconnect"`.
    """

    def __init__(self) -> None:
        self._books: dict[str, OrderBook] = {}
        self._stop: Callable[[], None] = lambda: None
        """Removes it from its subscription."""
        self.not_stored = 0
        """Ticks of topics beyond `BOOKS_MAX`."""

    def close(self) -> None:
        """Stops following the subscription. What the view has, it keeps."""
        self._stop()

    def handle(self, event: SubscriptionEvent) -> None:
        """Applies an event of the subscription."""
        if isinstance(event, Tick):
            book = self._books.get(event.topic)
            if book is None:
                if len(self._books) >= BOOKS_MAX:
                    self.not_stored += 1
                    return
                book = self._books[event.topic] = OrderBook()
            book.handle(event)
        elif isinstance(event, (Gap, Conflated)) or (isinstance(event, Recovered) and not event.recovered):
            if (book := self._books.get(event.topic)) is not None:
                book.live = False

    def topics(self) -> Iterable[str]:
        """The topics that have a book."""
        return self._books.keys()

    def get(self, topic: str) -> OrderBook | None:
        """The book of a topic, live or not; `None` before its first tick."""
        return self._books.get(topic)

    def __getitem__(self, topic: str) -> OrderBook:
        """The book of a topic. Raises `KeyError` before its first tick."""
        return self._books[topic]
