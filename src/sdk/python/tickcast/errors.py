"""Errors, one type per party that can act on them. All derive from `TickcastError`."""

from __future__ import annotations


class TickcastError(Exception):
    """The base of all errors of this package."""


class RequestError(TickcastError, ValueError):
    """The request is invalid, or would exceed a bound. Nothing was sent."""


class QueueFullError(RequestError):
    """Too many requests wait: for the connection, for the socket, or for their answers. Try again later."""


class ProtocolError(TickcastError):
    """The server, or what answered in its place, sent bytes that violate the protocol."""


class RefusedError(TickcastError):
    """The server refused a request. The connection stays open."""

    def __init__(self, code: int, text: str) -> None:
        """`code`: see "Errors" in PROTOCOL.md. `text`: the server's reason, for a person."""
        super().__init__(f"the server refused the request: {text} (code {code})")
        self.code = code
        self.text = text


class UnacknowledgedError(TickcastError):
    """The answer to a publish will not arrive: the tick may have been published or not."""


class PublishTimeoutError(UnacknowledgedError, TimeoutError):
    """The answer to a publish did not arrive in time: the tick may have been published or not."""


class NotPublishedError(TickcastError):
    """The tick was never sent: the client closed, its time-out passed, too much waited, or it is too large."""

    def __init__(self, reason: str, code: int = 0) -> None:
        """`code`: 107 if it is too large for the server, 100 if the server does not recognise message ids, a close code, or 0."""
        super().__init__(reason)
        self.code = code


class ClosedError(TickcastError):
    """The client is closed, or the server closed it for good."""

    def __init__(self, code: int, reason: str) -> None:
        """`code`: a close code of PROTOCOL.md; 0: none. `reason`: for a person."""
        super().__init__(f"the client is closed: {reason} (code {code})")
        self.code = code
        self.reason = reason
