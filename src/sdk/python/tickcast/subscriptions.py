"""The subscriptions of a client, and how each resumes on a new connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from .backoff import Backoff
from .errors import RequestError
from .events import SubscriptionState
from .limits import SUBSCRIPTIONS_MAX, TOPICS_MAX
from .messages import Moment, Policy, Start
from .patterns import Pattern
from .positions import Positions
from .tick import Position


class SubscriptionRecord:
    """What the session knows of one subscription.

    Invariant: `state` is `SUBSCRIBED` only while `is_sent`.
    """

    __slots__ = (
        "pattern",
        "matcher",
        "since",
        "policy",
        "max_rate",
        "confirmed",
        "state",
        "acknowledged",
        "starts_live",
        "live_since",
        "is_sent",
        "request",
        "backoff",
    )

    def __init__(
        self,
        pattern: str,
        since: Start,
        policy: Policy | None,
        max_rate: float | None,
        random: Callable[[], float],
    ) -> None:
        self.pattern = pattern
        self.matcher = Pattern(pattern)
        self.since = since
        self.policy = policy
        self.max_rate = max_rate
        self.confirmed = (policy, max_rate)
        """Policy and rate that the server last acknowledged: those to return to if it refuses others."""
        self.state = SubscriptionState.SUBSCRIBING
        self.acknowledged = False
        """Whether any connection has acknowledged it."""
        self.starts_live = False
        """Whether it was last sent to start with the next tick of each topic."""
        self.live_since: Moment | None = None
        """When it became live, if a server has said so: where it resumes topics that had no tick since."""
        self.is_sent = False
        """Whether it was sent on this connection."""
        self.request = 0
        """The number of the request that sent it last."""
        self.backoff = Backoff(random)
        """Delays after the server limited its rate."""

    @property
    def conflates(self) -> bool:
        """Whether it receives the last values rather than all ticks, and so starts with them after a lost connection."""
        is_thinned = self.policy == "conflate" or self.max_rate is not None
        return is_thinned and self.since in ("live", "latest")

    def start(self, positions: Mapping[str, Position]) -> Start:
        """Where it starts on a connection, if it resumes from these positions."""
        if not positions and not self.acknowledged:
            return {} if isinstance(self.since, Mapping) else self.since
        return "latest" if self.conflates else positions


class Subscriptions:
    """All subscriptions, in the order in which they were made. Bound: `SUBSCRIPTIONS_MAX`."""

    def __init__(self) -> None:
        self._by_pattern: dict[str, SubscriptionRecord] = {}
        self._finder = _Finder()
        # The subscriptions of each topic that had an event. Bound: `TOPICS_MAX`.
        self._matching: dict[str, tuple[SubscriptionRecord, ...]] = {}

    def __iter__(self) -> Iterator[SubscriptionRecord]:
        return iter(tuple(self._by_pattern.values()))

    def get(self, pattern: str) -> SubscriptionRecord | None:
        """The subscription of a pattern."""
        return self._by_pattern.get(pattern)

    def add(self, record: SubscriptionRecord) -> None:
        """Adds a subscription. Raises `RequestError` for a pattern that has one, and beyond the bound."""
        if record.pattern in self._by_pattern:
            raise RequestError(f"{record.pattern} is already subscribed; use set_rate or set_policy to change it")
        if len(self._by_pattern) >= SUBSCRIPTIONS_MAX:
            raise RequestError(f"more than {SUBSCRIPTIONS_MAX} subscriptions")
        self._by_pattern[record.pattern] = record
        self._finder.add(record)
        self._matching.clear()

    def remove(self, record: SubscriptionRecord, positions: Positions) -> None:
        """Removes a subscription, and the positions of topics that only this one matched."""
        del self._by_pattern[record.pattern]
        self._finder.remove(record)
        self._matching.clear()
        for topic in _matched(record, positions):
            if self._finder.first(topic) is None:
                positions.forget(topic)

    def matching(self, topic: str) -> tuple[SubscriptionRecord, ...]:
        """The subscriptions that match a topic. Costs a look-up after the first time."""
        found = self._matching.get(topic)
        if found is None:
            if len(self._matching) >= TOPICS_MAX:
                self._matching.clear()
            found = self._matching[topic] = tuple(self._finder.all(topic))
        return found

    def handle_lost(self) -> None:
        """The connection is lost, and with it its topics and what was sent."""
        self._matching.clear()
        for record in self._by_pattern.values():
            record.is_sent = False

    def to_resume(self, positions: Positions) -> list[tuple[SubscriptionRecord, dict[str, Position]]]:
        """All subscriptions in the order to send them, each with the positions of the topics that none before it delivers.

        Those that resume come first, so that a topic that a conflating one matches too is resumed.
        """
        order = sorted(self._by_pattern.values(), key=lambda record: record.conflates)
        planned: dict[str, tuple[SubscriptionRecord, dict[str, Position]]] = {
            record.pattern: (record, {}) for record in order
        }
        finder = _Finder(order)
        for topic, position in positions.items():
            if (first := finder.first(topic)) is not None:
                planned[first.pattern][1][topic] = position
        return list(planned.values())

    def positions_of(self, record: SubscriptionRecord, positions: Positions) -> dict[str, Position]:
        """The positions from which a subscription starts on an open connection: of topics that no older one delivers."""
        return {
            topic: position
            for topic, position in _matched(record, positions).items()
            if not any(each.is_sent for each in self._finder.all(topic))
        }


    def left_by(self, record: SubscriptionRecord, positions: Positions) -> dict[str, Position]:
        """The positions that a subscription carried which was refused, in topics that others receive which were sent after it."""
        left = {}
        for topic, position in _matched(record, positions).items():
            requests = [each.request for each in self._finder.all(topic) if each.is_sent]
            if requests and min(requests) > record.request:
                left[topic] = position
        return left


def _matched(record: SubscriptionRecord, positions: Positions) -> dict[str, Position]:
    """The positions of the topics that one subscription matches."""
    if record.matcher.is_exact:
        position = positions.get(record.pattern)
        return {} if position is None else {record.pattern: position}
    matches = record.matcher.matches
    return {topic: position for topic, position in positions.items() if matches(topic.split("."))}


class _Finder:
    """Subscriptions by the topics that they match: a look-up, and a comparison for each pattern with a wildcard."""

    def __init__(self, records: Iterable[SubscriptionRecord] = ()) -> None:
        self._added = 0
        self._exact: dict[str, tuple[int, SubscriptionRecord]] = {}
        """By pattern, each with its place in the order."""
        self._wild: dict[str, tuple[int, SubscriptionRecord]] = {}
        for record in records:
            self.add(record)

    def add(self, record: SubscriptionRecord) -> None:
        """Adds a subscription after all others."""
        self._added += 1
        self._with(record)[record.pattern] = (self._added, record)

    def remove(self, record: SubscriptionRecord) -> None:
        """Removes a subscription."""
        del self._with(record)[record.pattern]

    def all(self, topic: str) -> Iterator[SubscriptionRecord]:
        """The subscriptions that match a topic, in their order."""
        exact_at, exact = self._exact.get(topic, (self._added, None))
        tokens = topic.split(".")
        for at, record in self._wild.values():
            if exact is not None and exact_at < at:
                yield exact
                exact = None
            if record.matcher.matches(tokens):
                yield record
        if exact is not None:
            yield exact

    def first(self, topic: str) -> SubscriptionRecord | None:
        """The first subscription that matches a topic; `None` if none does."""
        return next(self.all(topic), None)

    def _with(self, record: SubscriptionRecord) -> dict[str, tuple[int, SubscriptionRecord]]:
        """Those of the same kind."""
        return self._exact if record.matcher.is_exact else self._wild
