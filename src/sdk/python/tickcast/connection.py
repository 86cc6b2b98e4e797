"""One connection of a session: what was sent on it, and what the server has said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from .actions import Outbox, Send
from .clock import ClockEstimate
from .errors import QueueFullError
from .events import Latency
from .limits import FRAME_BYTES_MAX_DEFAULT, REQUESTS_MAX, RESUME_NAMES_BYTES_MAX, RESUME_POSITIONS_MAX
from .messages import (
    Closing,
    Codec,
    Hello,
    Ping,
    Policy,
    Pong,
    Publish,
    Refresh,
    Request,
    Start,
    Subscribe,
    Unsubscribe,
    Update,
    Welcome,
)
from .subscriptions import SubscriptionRecord

Delivery: TypeAlias = tuple[Policy | None, float | None]
Pending: TypeAlias = (
    tuple[Literal["hello", "unsubscribe", "refresh"]]
    | tuple[Literal["subscribe"], SubscriptionRecord]
    | tuple[Literal["update"], SubscriptionRecord, Delivery]
)
"""A request that the server has not answered yet."""


class Connection:
    """The requests of one connection. Publishes are kept apart, in `Publishes`."""

    def __init__(self, codec: Codec, outbox: Outbox) -> None:
        self._codec = codec
        self._outbox = outbox
        self._request = 0
        self.pending: dict[int, Pending] = {}
        """By request number. Bound: `REQUESTS_MAX`, and the subscriptions."""
        self.closing: Closing | None = None
        """The server's last message."""
        self.welcomed_ns: int | None = None
        """When the server welcomed the client; `None`: it has not."""
        self.welcome: Welcome | None = None
        self._frame_bytes_max = FRAME_BYTES_MAX_DEFAULT
        self.clock = ClockEstimate()
        self._pings = 0
        self._pinged_ns: dict[int, int] = {}
        self.is_silent = False
        """Whether nothing has arrived since the last ping."""

    @property
    def message_bytes_max(self) -> int:
        """The longest message that the server accepts."""
        return self._codec.message_bytes_max(self._frame_bytes_max)

    @property
    def _next_request(self) -> int:
        # After 2^32 - 1 comes 1 again: 0 stands for no request.
        return self._request % 0xFFFF_FFFF + 1

    def _next(self, pending: Pending | None) -> int:
        if len(self.pending) >= REQUESTS_MAX:
            raise QueueFullError(f"{REQUESTS_MAX} requests wait for their answers; try again later")
        self._request = self._next_request
        if pending is not None:
            self.pending[self._request] = pending
        return self._request

    def _send(self, request: Request) -> None:
        self._outbox.act(Send(self._codec.encode(request)))

    def hello(self, name: str, token: str | None, features: tuple[str, ...]) -> None:
        """Opens the session."""
        self._send(Hello(self._next(("hello",)), name, features, token))

    def handle_welcome(self, welcome: Welcome, now_ns: int) -> None:
        """The server has accepted the session."""
        self.welcome = welcome
        self.welcomed_ns = now_ns
        self._frame_bytes_max = welcome.frame_bytes_max

    def ping(self, now_ns: int) -> None:
        """Sends a ping."""
        self._pings += 1
        # Only the last one counts: an older pong comes before it, or the connection is dead.
        self._pinged_ns = {self._pings: now_ns}
        self.is_silent = True
        self.clock.handle_ping()
        self._send(Ping(self._pings))

    def pong(self, token: int) -> None:
        """Answers a ping of the server."""
        self._outbox.act(Send(self._codec.encode(Pong(token)), is_optional=True))

    def handle_pong(self, token: int, now_ns: int) -> Latency | None:
        """The server has answered a ping; returns what that says."""
        pinged_ns = self._pinged_ns.pop(token, None)
        if pinged_ns is None:
            return None
        self.clock.handle_pong(now_ns - pinged_ns)
        return Latency(now_ns - pinged_ns, self.clock.offset_ns)

    def subscribe(self, record: SubscriptionRecord, start: Start) -> bool:
        """Sends a subscription; returns false, and sends nothing, if it has more positions than the server accepts."""
        if isinstance(start, Mapping):
            names_bytes = sum(len(topic.encode()) for topic in start)
            if len(start) > RESUME_POSITIONS_MAX or names_bytes > RESUME_NAMES_BYTES_MAX:
                return False
        moment = record.live_since if isinstance(start, Mapping) and self.grants("since") else None
        subscribe = Subscribe(self._next_request, record.pattern, start, record.policy, record.max_rate, moment)
        messages = self._codec.encode_subscribe(subscribe)
        if isinstance(start, Mapping) and start and self._length(messages[0]) > self.message_bytes_max:
            return False
        record.request = self._next(("subscribe", record))
        for message in messages:
            self._outbox.act(Send(message))
        record.is_sent = True
        record.starts_live = start == "live"
        record.confirmed = (record.policy, record.max_rate)
        return True

    def update(self, record: SubscriptionRecord, policy: Policy | None, max_rate: float | None) -> None:
        """Sends another policy and rate of a subscription."""
        request = self._next(("update", record, (policy, max_rate)))
        self._send(Update(request, record.pattern, policy, max_rate))

    def unsubscribe(self, pattern: str) -> None:
        """Ends a subscription."""
        self._send(Unsubscribe(self._next(("unsubscribe",)), pattern))

    def refresh(self, token: str) -> None:
        """Replaces the token. Only a server with the feature `tokens` answers."""
        is_answered = self.grants("tokens")
        self._send(Refresh(self._next(("refresh",) if is_answered else None), token))

    def grants(self, feature: str) -> bool:
        """Whether the server has granted a feature."""
        return self.welcome is not None and feature in self.welcome.features

    def publish(self, publish: Publish) -> int | None:
        """Sends a publish; returns its request number, or `None` if it is longer than the server accepts."""
        message = self._codec.encode(replace(publish, request=self._next_request))
        if self._length(message) > self.message_bytes_max:
            return None
        request = self._next(None)
        self._outbox.act(Send(message))
        return request

    @staticmethod
    def _length(message: str | bytes) -> int:
        return len(message.encode()) if isinstance(message, str) else len(message)
