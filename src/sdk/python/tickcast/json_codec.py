"""The encoding `tickcast.v1.json`: JSON objects in text messages (PROTOCOL.md, "JSON messages")."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from .errors import ProtocolError
from .events import SourceChanged
from .limits import JSON_ENVELOPE_BYTES
from .messages import (
    Closing,
    ErrorMessage,
    Expires,
    Hello,
    Ping,
    Pong,
    Publish,
    PublishedMessage,
    RecoveredMessage,
    Refresh,
    Request,
    ServerMessage,
    Skipped,
    StaleMessage,
    Start,
    Subscribe,
    Subscribed,
    TopicAnnounced,
    Unsubscribe,
    Unsubscribed,
    Update,
    Welcome,
)
from .tick import Position, Tick, dumps, loads

_EXACT_MAX = 2**53 - 1
_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1


class JsonCodec:
    """Encodes requests and decodes messages as JSON. Unknown operations and fields are skipped."""

    subprotocol = "tickcast.v1.json"
    features: tuple[str, ...] = (
        "published",
        "reasons",
        "counts",
        "tokens",
        "sources",
        "message_ids",
        "string_keys",
        "positions",
        "batches",
        "since",
    )

    def encode(self, request: Request) -> str:
        """The text of a request."""
        match request:
            case Publish():
                return _publish(request)
        return dumps(_fields(request)).decode()

    def encode_subscribe(self, subscribe: Subscribe) -> list[str | bytes]:
        """The text of a subscription, with all its positions."""
        fields: dict[str, Any] = {"op": "subscribe", "id": subscribe.request, "topics": [subscribe.pattern]}
        if subscribe.start != "live":
            fields["from"] = _start(subscribe.start)
        if (moment := subscribe.moment) is not None:
            fields["from"] |= {"epoch": moment.epoch, "since": moment.since_us}
        _add_delivery(fields, subscribe.policy, subscribe.max_rate)
        return [dumps(fields).decode()]

    def message_bytes_max(self, frame_bytes_max: int) -> int:
        """The base64 of the largest frame, and an envelope."""
        return frame_bytes_max * 4 // 3 + JSON_ENVELOPE_BYTES

    def decode(self, message: str | bytes) -> list[ServerMessage]:
        """The messages in a text: one object, or an array of objects."""
        if not isinstance(message, str):
            raise ProtocolError("the server sent a binary message in the JSON encoding")
        parsed = loads(message)
        decoded: list[ServerMessage] = []
        for item in parsed if isinstance(parsed, list) else [parsed]:
            if not isinstance(item, dict):
                raise ProtocolError("the server sent JSON that is not an object")
            if "op" in item:
                _operation(item, decoded)
            else:
                decoded.append(_tick(item))
        return decoded


def _fields(request: Request) -> dict[str, Any]:
    match request:
        case Hello(request=number, name=name, features=features, token=token):
            fields: dict[str, Any] = {"op": "hello", "id": number, "name": name}
            if features:
                fields["features"] = features
            if token is not None:
                fields["token"] = token
        case Update(request=number, pattern=pattern, policy=policy, max_rate=max_rate):
            fields = {"op": "update", "id": number, "topics": [pattern]}
            _add_delivery(fields, policy, max_rate)
        case Unsubscribe(request=number, pattern=pattern):
            fields = {"op": "unsubscribe", "id": number, "topics": [pattern]}
        case Ping(token=token_number):
            fields = {"op": "ping", "token": token_number}
        case Refresh(request=number, token=text):
            fields = {"op": "refresh", "id": number, "token": text}
        case _:
            raise AssertionError(f"{request} has no fields: a publish has a payload, and JSON has no pong of the client")
    return fields


def _add_delivery(fields: dict[str, Any], policy: str | None, max_rate: float | None) -> None:
    if policy is not None:
        fields["policy"] = policy
    if max_rate is not None:
        fields["max_rate"] = max_rate


def _start(start: Start) -> Any:
    if start == "oldest":
        return {"positions": {}}
    if isinstance(start, Mapping):
        return {"positions": {topic: _position(each) for topic, each in start.items()}}
    return start


def _position(position: Position) -> dict[str, int]:
    return {"epoch": position.epoch, "sequence": position.sequence}


def _publish(publish: Publish) -> str:
    # `id` before `data`, whose text may be invalid: the server reads no further then. Bytes that are JSON go in as they are.
    fields: dict[str, Any] = {"op": "publish", "id": publish.request, "topic": publish.topic}
    if publish.time_ns:
        fields["ts"] = publish.time_ns
    if publish.schema:
        fields["schema"] = publish.schema
    if publish.key:
        # A larger number loses digits in readers whose numbers are doubles.
        fields["key"] = publish.key if publish.key <= _EXACT_MAX else str(publish.key)
    if publish.message_id:
        fields["message_id"] = publish.message_id
    if not publish.is_json:
        fields["encoding"] = "base64"
        fields["data"] = base64.b64encode(publish.payload).decode()
        return dumps(fields).decode()
    return f'{dumps(fields).decode()[:-1]},"data":{publish.payload.decode()}}}'


def _integer(fields: dict[str, Any], name: str, default: int | None = None, most: int = _U64_MAX) -> int:
    """An unsigned integer up to `most`. Without a default, the field must be there."""
    value = fields.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise ProtocolError(f"{name} of the server's message is not an unsigned integer up to {most}")
    return value


def _text(fields: dict[str, Any], name: str, default: str | None = None) -> str:
    """A string. Without a default, the field must be there."""
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} of the server's message is not a string")
    return value


def _boolean(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} of the server's message is not a boolean")
    return value


def _key(fields: dict[str, Any]) -> int:
    value = fields.get("key", 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return _integer({"key": int(value)}, "key")
    return _integer(fields, "key", 0)


def _tick(fields: dict[str, Any]) -> Tick:
    topic, sequence = _text(fields, "topic"), _integer(fields, "seq")
    if not topic or sequence == 0 or "data" not in fields:
        raise ProtocolError("the server sent a tick without topic, sequence or data")
    data = fields["data"]
    encoding = fields.get("encoding")
    if encoding == "base64":
        try:
            data = base64.b64decode(_text(fields, "data"), validate=True)
        except binascii.Error as error:
            raise ProtocolError(f"the server sent a tick whose data is not base64: {error}") from None
    elif encoding is not None:
        raise ProtocolError(f"the server sent a tick of an unknown encoding: {encoding!r}")
    # Neither a number of the topic, nor a time of receipt, nor a schema.
    time_ns, key, snapshot = _integer(fields, "ts"), _key(fields), _boolean(fields, "snapshot")
    return Tick(topic, 0, sequence, time_ns, 0, 0, key, snapshot, encoding is None, None, data)


def _operation(fields: dict[str, Any], decoded: list[ServerMessage]) -> None:
    """Appends the messages of one object: an acknowledgement may also announce topics."""
    number = _integer(fields, "id", 0)
    match _text(fields, "op"):
        case "welcome":
            features = fields.get("features", [])
            if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
                raise ProtocolError("features of the server's welcome are not strings")
            decoded.append(
                Welcome(
                    number,
                    _text(fields, "server", ""),
                    _integer(fields, "epoch"),
                    _integer(fields, "session"),
                    _integer(fields, "frame_bytes_max"),
                    frozenset(features),
                )
            )
        case "subscribed":
            topics = fields.get("topics", [])
            if not isinstance(topics, list) or not all(isinstance(topic, dict) for topic in topics):
                raise ProtocolError("topics of the server's announcement are not objects")
            if "pattern" in fields:
                decoded.append(Subscribed(number, _text(fields, "pattern"), _integer(fields, "since", 0)))
            decoded.extend(
                TopicAnnounced(_text(topic, "topic"), _integer(topic, "topic_id"), _integer(topic, "epoch"))
                for topic in topics
            )
        case "unsubscribed":
            code, text = _integer(fields, "code", 0), _text(fields, "text", "")
            decoded.append(Unsubscribed(number, _text(fields, "pattern"), code, text))
        case "conflated" | "gap" as op:
            first, end = _integer(fields, "from"), _integer(fields, "to")
            count = _integer(fields, "count", max(end - first, 0))
            decoded.append(Skipped(_text(fields, "topic"), 0, op == "gap", first, end, count))
        case "recovered":
            decoded.append(
                RecoveredMessage(
                    _text(fields, "topic"),
                    None,
                    _integer(fields, "epoch"),
                    _integer(fields, "sequence"),
                    _boolean(fields, "recovered"),
                    _text(fields, "reason", ""),
                )
            )
        case "published":
            topic, epoch, sequence = _text(fields, "topic"), _integer(fields, "epoch"), _integer(fields, "sequence")
            decoded.append(PublishedMessage(number, topic, epoch, sequence, _boolean(fields, "duplicate")))
        case "pong":
            decoded.append(Pong(_integer(fields, "token")))
        case "error":
            decoded.append(ErrorMessage(number, _integer(fields, "code"), _text(fields, "text", "")))
        case "closing":
            after_ms = _integer(fields, "reconnect_after_ms", 0)
            decoded.append(Closing(_integer(fields, "code"), _text(fields, "reason", ""), after_ms))
        case "expires":
            decoded.append(Expires(number, _integer(fields, "expires_in", most=_U32_MAX)))
        case "source":
            decoded.append(SourceChanged(_text(fields, "source"), _text(fields, "state"), _integer(fields, "since", 0)))
        case "stale":
            topic, stale = _text(fields, "topic"), _boolean(fields, "stale")
            decoded.append(StaleMessage(topic, 0, stale, _integer(fields, "since", 0)))
