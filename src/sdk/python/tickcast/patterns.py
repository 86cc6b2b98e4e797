"""Which topics a pattern matches."""

from __future__ import annotations

from collections.abc import Sequence


class Pattern:
    """A pattern as in NATS: `*` is exactly one token, a last `>` is one or more. It is split once, and compared with many topics."""

    __slots__ = ("_tokens", "_has_rest", "is_exact")

    def __init__(self, pattern: str) -> None:
        self._tokens = pattern.split(".")
        self._has_rest = self._tokens[-1] == ">"
        if self._has_rest:
            self._tokens.pop()
        self.is_exact = not self._has_rest and "*" not in self._tokens
        """Whether it has no wildcard: it matches the topic of its own name only."""

    def matches(self, tokens: Sequence[str]) -> bool:
        """Whether it matches the topic with these tokens."""
        wanted = self._tokens
        if len(tokens) <= len(wanted) if self._has_rest else len(tokens) != len(wanted):
            return False
        return all(want in ("*", token) for want, token in zip(wanted, tokens))


def matches(pattern: str, topic: str) -> bool:
    """Whether a pattern matches a topic."""
    return Pattern(pattern).matches(topic.split("."))
