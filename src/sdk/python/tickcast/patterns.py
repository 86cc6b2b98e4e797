"""Which topics a pattern matches."""

from __future__ import annotations


def matches(pattern: str, topic: str) -> bool:
    """Whether a pattern matches a topic, as in NATS: `*` is exactly one token, a last `>` is one or more."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(w in ("*", t) for w, t in zip(wanted, tokens))
