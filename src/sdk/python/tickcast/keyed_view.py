"""The last value of each topic and key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .errors import ProtocolError
from .events import Gap, Recovered, SubscriptionEvent
from .limits import VIEW_ENTRIES_MAX
from .tick import Tick


class KeyedView:
    """The last payload of each topic and key: the snapshot, kept up to date by live ticks.

    A payload that is `null`, empty or does not parse removes its key. A new epoch, or a position that was not recovered, clears the
    topic: what the server has of it follows. Beyond `entries_max` the entry that was set least recently goes, and is counted in `evicted`.

    Ticks that the server drops may have had other values: after a gap the view keeps the last ones known, and the topic is not
    `complete`. Conflated ticks leave nothing out, because each key's last tick follows.
    """

    def __init__(self, entries_max: int = VIEW_ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._stop: Callable[[], None] = lambda: None
        """Removes it from its subscription."""
        # In the order in which they were set.
        self._entries: dict[tuple[str, int], Tick] = {}
        self._topics: dict[str, dict[int, Tick]] = {}
        # Topics with the epoch in which they are complete. Bound: `entries_max`.
        self._complete: dict[str, int] = {}
        self.evicted = 0
        """Entries that did not fit the bound."""

    def close(self) -> None:
        """Stops following the subscription. What the view has, it keeps."""
        self._stop()

    def handle(self, event: SubscriptionEvent) -> None:
        """Applies an event of the subscription."""
        if isinstance(event, Tick):
            self._set(event)
        elif isinstance(event, Gap):
            self._complete.pop(event.topic, None)
        elif isinstance(event, Recovered) and not event.recovered:
            self._clear(event.topic)
            self._complete.pop(event.topic, None)

    def _set(self, tick: Tick) -> None:
        keys = self._topics.get(tick.topic)
        if keys and next(iter(keys.values())).epoch != tick.epoch:
            self._clear(tick.topic)
        if tick.snapshot or tick.sequence == 1:
            if tick.topic in self._complete or len(self._complete) < self._entries_max:
                self._complete[tick.topic] = tick.epoch
        elif self._complete.get(tick.topic, tick.epoch) != tick.epoch:
            del self._complete[tick.topic]
        self._remove(tick.topic, tick.key)
        try:
            data = tick.data
        except ProtocolError:
            # Whatever the value is now, it is not the one before.
            return
        if data is None or data == b"":
            return
        if len(self._entries) >= self._entries_max:
            self.evicted += 1
            topic, key = next(iter(self._entries))
            self._complete.pop(topic, None)
            self._remove(topic, key)
        self._entries[tick.topic, tick.key] = tick
        self._topics.setdefault(tick.topic, {})[tick.key] = tick

    def _remove(self, topic: str, key: int) -> None:
        if self._entries.pop((topic, key), None) is not None:
            keys = self._topics[topic]
            del keys[key]
            if not keys:
                del self._topics[topic]

    def _clear(self, topic: str) -> None:
        for key in self._topics.pop(topic, {}):
            del self._entries[topic, key]

    def complete(self, topic: str) -> bool:
        """Whether the view has followed all keys of a topic: from a snapshot, or from the topic's first tick on, without a gap.

        If not, or if a key was evicted, the server may have other values of some keys, and more keys. To make a topic complete again,
        subscribe anew with `since="latest"`; with `policy="conflate"`, the server drops nothing.
        """
        return topic in self._complete

    def get(self, topic: str, key: int = 0, default: Any = None) -> Any:
        """The last payload of a topic and key: its JSON value, or bytes."""
        tick = self._entries.get((topic, key))
        return default if tick is None else tick.data

    def tick(self, topic: str, key: int = 0) -> Tick | None:
        """The last tick of a topic and key, with its times."""
        return self._entries.get((topic, key))

    def topic(self, topic: str) -> dict[int, Any]:
        """A copy of a topic's keys and their last payloads."""
        return {key: tick.data for key, tick in self._topics.get(topic, {}).items()}

    def topics(self) -> list[str]:
        """The topics that have entries."""
        return list(self._topics)

    def items(self) -> Iterator[tuple[tuple[str, int], Any]]:
        """All topics and keys with their payloads, the one set least recently first. Do not await while iterating."""
        return ((entry, tick.data) for entry, tick in self._entries.items())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each entry, as `pandas.DataFrame` takes them: topic, key, time, and the fields of a JSON object or `value`."""
        rows = []
        for (topic, key), tick in self._entries.items():
            fields = tick.data if isinstance(tick.data, dict) else {"value": tick.data}
            rows.append({**fields, "topic": topic, "key": key, "time_ns": tick.time_ns})
        return rows

    def __getitem__(self, entry: str | tuple[str, int]) -> Any:
        """`view["a.x"]`, or with a key `view["a.x", 7]`. Raises `KeyError`."""
        return self._entries[(entry, 0) if isinstance(entry, str) else entry].data

    def __contains__(self, entry: object) -> bool:
        """Whether there is a value of a topic, or of a topic and key."""
        return ((entry, 0) if isinstance(entry, str) else entry) in self._entries

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._entries)
