"""A client's positions in its topics, from which it can resume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .limits import POSITIONS_MAX
from .tick import Position


class Positions:
    """The position of each topic: its last tick that was received or announced as skipped.

    Bound: `POSITIONS_MAX` topics; positions of further ones are counted in `not_stored`, and those topics resume as new ones. The same
    bound holds for those that were forgotten with their subscriptions and not taken.
    """

    def __init__(self, positions: Mapping[str, Position] | None = None) -> None:
        self._positions: dict[str, Position] = {}
        self._left: dict[str, Position] = {}
        self.not_stored = 0
        for topic, position in (positions or {}).items():
            self.advance(topic, position.epoch, position.sequence)

    def get(self, topic: str) -> Position | None:
        """The position in a topic; `None` if there is none."""
        return self._positions.get(topic)

    def items(self) -> Iterable[tuple[str, Position]]:
        """All topics with their positions."""
        return self._positions.items()

    def advance(self, topic: str, epoch: int, sequence: int) -> None:
        """Moves to a tick, or to the last one of a skipped range.

        Within an epoch it never moves back, because a snapshot may have older ticks of some keys. A new epoch replaces it.
        """
        known = self._positions.get(topic)
        if known is None:
            if len(self._positions) >= POSITIONS_MAX:
                self.not_stored += 1
            else:
                self._positions[topic] = Position(epoch, sequence)
        elif known.epoch != epoch or known.sequence < sequence:
            self._positions[topic] = Position(epoch, sequence)

    def handle_recovered(self, topic: str, exists: bool, now: Position, recovered: bool) -> None:
        """Applies the answer to a position; `now` is the topic's last tick then.

        In a new epoch the position becomes sequence 0: the answer has reported the loss, and all ticks of the new epoch follow.
        """
        known = self._positions.get(topic)
        if known is None or recovered:
            return
        if not exists:
            del self._positions[topic]
        elif known.epoch != now.epoch:
            self._positions[topic] = Position(now.epoch, 0)
        elif now.sequence > 0:
            # The position may be ahead of the topic; 0 means that nobody looked.
            self._positions[topic] = Position(known.epoch, min(known.sequence, now.sequence))

    def forget(self, topic: str) -> None:
        """Forgets a topic, because its subscription has ended."""
        position = self._positions.pop(topic, None)
        if position is not None and (topic in self._left or len(self._left) < POSITIONS_MAX):
            self._left[topic] = position

    def take_left(self) -> dict[str, Position]:
        """The positions of topics forgotten since the last call."""
        left, self._left = self._left, {}
        return left

    def copy(self) -> dict[str, Position]:
        """A copy of all positions."""
        return self._positions.copy()
