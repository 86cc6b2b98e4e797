"""Round trips, and the offset between this machine's clock and the server's."""

from __future__ import annotations

from collections import deque

from .limits import PINGS_REMEMBERED


class ClockEstimate:
    """How far this machine's clock is ahead of the server's.

    A tick says when the server received it. The least of (arrival - receipt) is the offset plus the fastest delivery, which
    took between nothing and the fastest round trip. So half of that round trip is subtracted, and is also the error. Both
    least values are over the last `PINGS_REMEMBERED` pings; memory is constant.
    """

    def __init__(self) -> None:
        self._round_trips_ns: deque[int] = deque(maxlen=PINGS_REMEMBERED)
        # The least difference since each ping; `None`: no tick since.
        self._differences_ns: deque[int | None] = deque(maxlen=PINGS_REMEMBERED)

    def handle_ping(self) -> None:
        """A ping was sent."""
        self._differences_ns.append(None)

    def handle_pong(self, round_trip_ns: int) -> None:
        """A pong has answered."""
        self._round_trips_ns.append(round_trip_ns)

    def handle_tick(self, difference_ns: int) -> None:
        """Adds a tick that is not of a snapshot: its arrival by this machine's clock minus its receipt by the server's."""
        differences = self._differences_ns
        if differences:
            least = differences[-1]
            differences[-1] = difference_ns if least is None or difference_ns < least else least

    @property
    def round_trip_ns(self) -> int | None:
        """The shortest round trip; `None` before the first."""
        return min(self._round_trips_ns, default=None)

    @property
    def offset_ns(self) -> int | None:
        """This machine's clock minus the server's; `None` until a round trip and a tick are known."""
        least = min((each for each in self._differences_ns if each is not None), default=None)
        round_trip_ns = self.round_trip_ns
        return None if least is None or round_trip_ns is None else least - round_trip_ns // 2
