"""The encoding `tickcast.v1.rkyv`: native frames in binary messages (PROTOCOL.md, "Native frames").

```
     0       2       4       6   7   8      10      12              16
   0 | frame_len     | magic |ver|flg| kind  |stride | payload_len   |
  16 | sequence                      | topic_id      | schema        |
  32 | record (stride bytes), payload (payload_len bytes), padding   |
```
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from .errors import ProtocolError
from .events import SourceChanged
from .limits import RESUME_MESSAGE_BYTES
from .messages import (
    FEATURES,
    Closing,
    ErrorMessage,
    Expires,
    Hello,
    Moment,
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
from .tick import Tick

_HEADER = Struct("<IHBBHHIQII")
_MAGIC, _VERSION, _ALIGN = 0x6374, 1, 16
_FLAG_JSON, _FLAG_SNAPSHOT = 1, 2

_HELLO, _SUBSCRIBE, _UNSUBSCRIBE, _PUBLISH, _PING, _UPDATE, _RESUME, _REFRESH = range(1, 9)
_WELCOME, _SUBSCRIBED, _UNSUBSCRIBED, _TICK, _PONG, _ERROR, _CLOSING, _CONFLATED, _GAP, _RECOVERED = range(64, 74)
_PUBLISHED, _EXPIRES, _SOURCE, _STALE = range(74, 78)
# A client skips kinds in this range that it does not know.
_SERVER_KINDS = range(64, 128)

_POLICIES = {None: 0, "conflate": 1, "drop": 2, "disconnect": 3, "keep": 4}
_REASONS = {0: "", 1: "epoch", 2: "too_old", 3: "unknown_topic", 4: "ahead"}
_STATES = {1: "up", 2: "fallback", 3: "down"}

_U64 = Struct("<Q")
_PAIR = Struct("<QQ")
_REQUEST = Struct("<II")
_HELLO_RECORD = Struct("<IHHQ")
_SUBSCRIBE_RECORD = Struct("<IBBHQQII")
_PUBLISH_RECORD = Struct("<QQIHHQ")
_WELCOME_RECORD = Struct("<QQII")
_SUBSCRIBED_RECORD = Struct("<QI")
_CODE_RECORD = Struct("<IH")
_RECOVERED_RECORD = Struct("<QQI")
_PUBLISHED_RECORD = Struct("<QII")
_SINCE_RECORD = Struct("<QI")


class NativeCodec:
    """Encodes requests and decodes messages as native frames."""

    subprotocol = "tickcast.v1.rkyv"
    features: tuple[str, ...] = ("published", "reasons", "counts", "tokens", "sources", "message_ids", "batches", "since")

    def encode(self, request: Request) -> bytes:
        """The frame of a request."""
        match request:
            case Hello(request=number, name=name, features=features, token=token):
                bits = sum(1 << FEATURES.index(feature) for feature in features)
                secret = (token or "").encode()
                record = _HELLO_RECORD.pack(number, 0, len(secret), bits)
                return _frame(_HELLO, record, name.encode() + secret)
            case Update(request=number, pattern=pattern, policy=policy, max_rate=max_rate):
                return _frame(_UPDATE, _options(number, 0, policy, max_rate), pattern.encode())
            case Unsubscribe(request=number, pattern=pattern):
                return _frame(_UNSUBSCRIBE, _REQUEST.pack(number, 0), pattern.encode())
            case Publish(request=number, topic=topic, payload=payload, time_ns=time_ns, schema=schema, key=key):
                name_bytes, id_bytes = topic.encode(), request.message_id.encode()
                record = _PUBLISH_RECORD.pack(time_ns, 0, number, len(name_bytes), len(id_bytes), key)
                return _frame(_PUBLISH, record, name_bytes + id_bytes + payload, schema)
            case Ping(token=token_number):
                return _frame(_PING, _U64.pack(token_number), b"")
            case Pong(token=token_number):
                return _frame(_PONG, _U64.pack(token_number), b"")
            case Refresh(request=number, token=text):
                return _frame(_REFRESH, _REQUEST.pack(number, 0), text.encode())

    def encode_subscribe(self, subscribe: Subscribe) -> list[str | bytes]:
        """A frame for each position, then that of the subscription, in messages of at most 64 KiB."""
        positions = subscribe.start.items() if isinstance(subscribe.start, Mapping) else ()
        frames = [
            _frame(_RESUME, _PAIR.pack(position.epoch, position.sequence), topic.encode())
            for topic, position in positions
        ]
        start = _start(subscribe.start)
        record = _options(subscribe.request, start, subscribe.policy, subscribe.max_rate, subscribe.moment)
        frames.append(_frame(_SUBSCRIBE, record, subscribe.pattern.encode()))
        messages: list[str | bytes] = []
        message = b""
        for frame in frames:
            if message and len(message) + len(frame) > RESUME_MESSAGE_BYTES:
                messages.append(message)
                message = b""
            message += frame
        messages.append(message)
        return messages

    def message_bytes_max(self, frame_bytes_max: int) -> int:
        """The largest frame."""
        return frame_bytes_max

    def decode(self, message: str | bytes) -> list[ServerMessage]:
        """The messages of the frames in a binary message."""
        if isinstance(message, str):
            raise ProtocolError("the server sent a text message in the native encoding")
        view, decoded, at = memoryview(message), list[ServerMessage](), 0
        while at < len(message):
            if len(message) - at < _HEADER.size:
                raise ProtocolError("the server's message ends within a frame's header")
            header = _HEADER.unpack_from(message, at)
            frame_len, magic, version, flags, kind, stride, payload_len, sequence, topic_id, schema = header
            if magic != _MAGIC or version != _VERSION:
                raise ProtocolError("the server's frame has another magic number or version")
            record_at = at + _HEADER.size
            payload_at = record_at + stride
            end = payload_at + payload_len
            if frame_len != _aligned(end - at) or at + frame_len > len(message):
                raise ProtocolError("the lengths in the server's frame contradict each other, or exceed its message")
            if kind == _TICK:
                # The most frequent kind: no slices but the payload, which must not keep the whole message alive.
                if stride < _PAIR.size:
                    raise ProtocolError(f"the record of the server's tick has {stride} bytes")
                time_ns, ingest_time_ns = _PAIR.unpack_from(message, record_at)
                key = _U64.unpack_from(message, record_at + 16)[0] if stride >= 24 else 0
                is_json, snapshot = flags & _FLAG_JSON != 0, flags & _FLAG_SNAPSHOT != 0
                payload = message[payload_at:end]
                decoded.append(
                    Tick("", topic_id, sequence, time_ns, ingest_time_ns, schema, key, snapshot, is_json, payload)
                )
            elif kind == _PING:
                decoded.append(Ping(_u64(view[record_at:payload_at], 0)))
            elif kind not in _SERVER_KINDS:
                raise ProtocolError(f"the server sent a frame of kind {kind}")
            else:
                record, text = view[record_at:payload_at], view[payload_at:end]
                other = _message(kind, record, text, sequence, topic_id)
                if other is not None:
                    decoded.append(other)
            at += frame_len
        return decoded


def _aligned(length: int) -> int:
    return (length + _ALIGN - 1) // _ALIGN * _ALIGN


def _frame(kind: int, record: bytes, payload: bytes, schema: int = 0) -> bytes:
    length = _aligned(_HEADER.size + len(record) + len(payload))
    header = _HEADER.pack(length, _MAGIC, _VERSION, 0, kind, len(record), len(payload), 0, 0, schema)
    return (header + record + payload).ljust(length, b"\0")


def _options(
    request: int, start: int, policy: str | None, max_rate: float | None, moment: Moment | None = None
) -> bytes:
    epoch, since_us = (0, 0) if moment is None else (moment.epoch, moment.since_us)
    return _SUBSCRIBE_RECORD.pack(
        request, start, _POLICIES[policy], 0, epoch, since_us, round((max_rate or 0) * 1_000), 0
    )


def _start(start: Start) -> int:
    # 2 is one position for all topics, which this client does not use. 3 follows RESUME, of which there may be none.
    return 3 if isinstance(start, Mapping) else {"live": 0, "latest": 1, "oldest": 3}[start]


def _need(record: memoryview, length: int) -> memoryview:
    """The record, if it has the fields up to `length`. Later versions may append more."""
    if len(record) < length:
        raise ProtocolError(f"the record in the server's frame has {len(record)} bytes; {length} are needed")
    return record


def _u64(record: memoryview, at: int) -> int:
    value: int = _U64.unpack_from(_need(record, at + 8), at)[0]
    return value


def _text(payload: memoryview) -> str:
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError:
        raise ProtocolError("text in the server's frame is not UTF-8") from None


def _message(
    kind: int, record: memoryview, payload: memoryview, sequence: int, topic_id: int
) -> ServerMessage | None:
    """The message of a frame other than TICK and PING; `None` for a kind that this client does not know."""
    if kind == _WELCOME:
        epoch, session, frame_bytes_max, request = _WELCOME_RECORD.unpack_from(_need(record, _WELCOME_RECORD.size))
        bits = _u64(record, 24) if len(record) >= 32 else 0
        features = frozenset(name for bit, name in enumerate(FEATURES) if bits >> bit & 1)
        return Welcome(request, _text(payload), epoch, session, frame_bytes_max, features)
    if kind == _SUBSCRIBED:
        epoch, request = _SUBSCRIBED_RECORD.unpack_from(_need(record, _SUBSCRIBED_RECORD.size))
        text = _text(payload)
        if topic_id:
            return TopicAnnounced(text, topic_id, epoch)
        return Subscribed(request, text, _u64(record, 16) if len(record) >= 24 else 0)
    if kind == _UNSUBSCRIBED:
        # Without the feature `reasons` the code's bytes are reserved, and zero.
        request, code = _CODE_RECORD.unpack_from(_need(record, 8))
        return Unsubscribed(request, _text(payload), code, "")
    if kind == _PONG:
        return Pong(_u64(record, 0))
    if kind == _ERROR:
        request, code = _CODE_RECORD.unpack_from(_need(record, _CODE_RECORD.size))
        return ErrorMessage(request, code, _text(payload))
    if kind == _CLOSING:
        after_ms, code = _CODE_RECORD.unpack_from(_need(record, _CODE_RECORD.size))
        return Closing(code, _text(payload), after_ms)
    if kind in (_CONFLATED, _GAP):
        first, end = _PAIR.unpack_from(_need(record, _PAIR.size))
        count = _u64(record, 16) if len(record) >= 24 else max(end - first, 0)
        return Skipped("", topic_id, kind == _GAP, first, end, count)
    if kind == _RECOVERED:
        epoch, last, recovered = _RECOVERED_RECORD.unpack_from(_need(record, _RECOVERED_RECORD.size))
        code = int.from_bytes(record[20:22], "little")
        reason = _REASONS.get(code, "unknown")
        return RecoveredMessage(_text(payload), topic_id, epoch, last, recovered != 0, reason)
    if kind == _PUBLISHED:
        epoch, request, duplicate = _PUBLISHED_RECORD.unpack_from(_need(record, _PUBLISHED_RECORD.size))
        return PublishedMessage(request, _text(payload), epoch, sequence, duplicate != 0)
    if kind == _EXPIRES:
        request, expires_in_s = _REQUEST.unpack_from(_need(record, _REQUEST.size))
        return Expires(request, expires_in_s)
    if kind == _SOURCE:
        since_ns, state = _SINCE_RECORD.unpack_from(_need(record, _SINCE_RECORD.size))
        return SourceChanged(_text(payload), _STATES.get(state, "unknown"), since_ns)
    if kind == _STALE:
        since_ns, stale = _SINCE_RECORD.unpack_from(_need(record, _SINCE_RECORD.size))
        return StaleMessage("", topic_id, stale != 0, since_ns)
    return None
