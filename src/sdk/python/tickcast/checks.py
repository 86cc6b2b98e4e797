"""Arguments of the application, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import RequestError
from .limits import (
    MAX_RATE_HIGHEST,
    MAX_RATE_LOWEST,
    MESSAGE_ID_BYTES_MAX,
    TOKEN_BYTES_MAX,
    TOPIC_BYTES_MAX,
    U64_MAX,
)
from .tick import Position


def check_token(token: object) -> None:
    """A token, or none. Raises `RequestError` if the server would not take it."""
    if token is None:
        return
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise RequestError("a token is a string of visible ASCII characters")
    if not 1 <= len(token) <= TOKEN_BYTES_MAX:
        raise RequestError(f"the token has {len(token)} characters; 1 to {TOKEN_BYTES_MAX} are allowed")


def check_policy(policy: object) -> None:
    """A policy, or none. Raises `RequestError` for another one."""
    if policy not in (None, "conflate", "drop", "keep", "disconnect"):
        raise RequestError(f"unknown policy {policy!r}: conflate, drop, keep or disconnect")


def check_rate(max_rate: float | None) -> None:
    """A rate, or none. Raises `RequestError` if it is out of range."""
    if max_rate is not None and not MAX_RATE_LOWEST <= max_rate <= MAX_RATE_HIGHEST:
        raise RequestError(f"max_rate {max_rate} is not between {MAX_RATE_LOWEST} and {MAX_RATE_HIGHEST:.0f} per second")


def check_name(name: str) -> None:
    """The name of a topic, or a pattern. Raises `RequestError` if no server accepts it, so that its length fits its field."""
    count = _bytes(name)
    if not 1 <= count <= TOPIC_BYTES_MAX:
        raise RequestError(f"a topic or pattern has 1 to {TOPIC_BYTES_MAX} bytes, not {count}")


def check_message_id(message_id: str) -> None:
    """A message id, or an empty string. Raises `RequestError` if it is too long."""
    if _bytes(message_id) > MESSAGE_ID_BYTES_MAX:
        raise RequestError(f"a message id has at most {MESSAGE_ID_BYTES_MAX} bytes")


def checked_positions(positions: Mapping[str, object]) -> dict[str, Position]:
    """Positions of an application: each a `Position`, or a pair of epoch and sequence. Raises `RequestError` for anything else."""
    checked = {}
    for topic, position in positions.items():
        match position:
            case (int(epoch), int(sequence)) if 0 <= epoch <= U64_MAX and 0 <= sequence <= U64_MAX:
                check_name(topic)
                checked[topic] = Position(epoch, sequence)
            case _:
                raise RequestError(f"{position!r} is no position in {topic}: it has an epoch and a sequence")
    return checked


def _bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise RequestError(f"{text!r} is not valid Unicode") from None
    except AttributeError:
        raise RequestError(f"{text!r} is not a string") from None
