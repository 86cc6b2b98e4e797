"""A tick, and strict JSON for its payload."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, NoReturn

from .errors import ProtocolError

_UNSET = object()


class Position(NamedTuple):
    """A position in a topic."""

    epoch: int
    """One life of the topic, within which sequences increase: when it began, in microseconds since 1970."""
    sequence: int
    """The last sequence that the client has; 0: none."""


class Tick:
    """One tick and its position in its topic. Do not change it: all subscriptions that match it share it.

    A plain class with slots, not a dataclass: it is made for every tick, and its topic is known only after its frame is decoded.
    """

    __slots__ = (
        "topic",
        "topic_id",
        "epoch",
        "sequence",
        "time_ns",
        "ingest_time_ns",
        "schema",
        "key",
        "snapshot",
        "missed",
        "_data",
        "_payload",
        "_is_json",
    )

    topic: str
    """The topic's name."""
    topic_id: int
    """The topic's number on this server; 0 in JSON, which does not have it."""
    epoch: int
    """Epoch of the sequence; 0: the server has not announced the topic."""
    sequence: int
    """Position in the topic, from 1; strictly increasing while subscribed."""
    time_ns: int
    """The producer's timestamp, nanoseconds since 1970."""
    ingest_time_ns: int
    """When the server received the tick, nanoseconds since 1970; 0 in JSON, which does not have it."""
    schema: int
    """The producer's number for the payload's type; 0: none, and in JSON."""
    key: int
    """The part of the topic that the tick updates; 0: none."""
    snapshot: bool
    """Whether it is state from before the subscription. Sequences skipped between snapshot ticks are not missing."""
    missed: int
    """Ticks before this one that were neither delivered nor announced: 0, unless the server has a bug."""

    def __init__(
        self,
        topic: str,
        topic_id: int,
        sequence: int,
        time_ns: int,
        ingest_time_ns: int,
        schema: int,
        key: int,
        snapshot: bool,
        is_json: bool,
        payload: bytes | None = None,
        data: Any = _UNSET,
    ) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.epoch = 0
        self.sequence = sequence
        self.time_ns = time_ns
        self.ingest_time_ns = ingest_time_ns
        self.schema = schema
        self.key = key
        self.snapshot = snapshot
        self.missed = 0
        self._is_json = is_json
        self._payload = payload
        self._data = data

    @property
    def data(self) -> Any:
        """The payload: its JSON value, or bytes if it is not JSON. Native frames decode it on first use.

        Raises `ProtocolError` if the server marked a payload as JSON that is not.
        """
        if self._data is _UNSET:
            payload = self._payload or b""
            self._data = loads(payload) if self._is_json else payload
        return self._data

    @property
    def payload(self) -> bytes:
        """The payload's bytes, exactly as published. In the JSON encoding a JSON value is encoded again, without white space."""
        if self._payload is None:
            self._payload = self._data if isinstance(self._data, bytes) else dumps(self._data)
        return self._payload

    @property
    def position(self) -> Position:
        """Where to resume after this tick."""
        return Position(self.epoch, self.sequence)

    def __repr__(self) -> str:
        key = f", key={self.key}" if self.key else ""
        snapshot = ", snapshot=True" if self.snapshot else ""
        return f"Tick({self.topic!r}, {self.sequence}{key}{snapshot}, {self.data!r})"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# `json.loads` would make a decoder for each call, which took longer than a small payload.
_decode = json.JSONDecoder(parse_constant=_refuse).decode


def loads(text: str | bytes) -> Any:
    """Parses JSON as RFC 8259 has it: without NaN and Infinity. Raises `ProtocolError`, also for text nested too deeply."""
    try:
        return _decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"cannot decode the server's JSON: {error}") from None


def dumps(value: Any) -> bytes:
    """The shortest JSON text of a value. Raises `ValueError` or `TypeError` if it has none."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
