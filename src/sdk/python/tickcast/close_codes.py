"""Close codes, which of them allow another attempt, and the error codes that the client acts on (PROTOCOL.md, "Codes")."""

from __future__ import annotations

from .limits import NOT_ADMITTED_DELAY_MS, RECONNECT_AFTER_MS_MAX

CLOSE_NORMAL = 1000
CLOSE_PROTOCOL = 1002
CLOSE_CUT = 1006
"""Nobody sent a code: the connection was cut, or could not be made."""
HANG_UP_MALFORMED = 4002
"""Close code towards the server after bytes that violate the protocol."""
HANG_UP_NO_WELCOME = 4008
"""After a handshake without a welcome in time."""
HANG_UP_SILENT = 4011
"""After a ping without any answer."""
NOT_ADMITTED = 3504
"""Close code with which a server does not admit the client now."""
TOKEN_EXPIRED = 3005
"""Close code after which a client needs another token."""
FORBIDDEN = 3500
"""Close code after which a client does not come back."""

REFUSED_HANDSHAKES = {401: TOKEN_EXPIRED, 403: FORBIDDEN, 404: CLOSE_PROTOCOL, 429: NOT_ADMITTED, 503: NOT_ADMITTED}
"""What the HTTP status of a refused handshake stands for: 404 is no tickcast server, or another path. Any other: `CLOSE_CUT`."""

ERROR_BAD_REQUEST = 100
"""Error code of a request that the server does not understand."""
ERROR_TOO_LARGE = 107
"""Error code of a request that is longer than the server accepts."""
ERROR_RATE_LIMITED = 109
"""Error code of a request that the server accepts later."""

# Proxies send 1012 and 1013 while they restart or are overloaded (IANA, WebSocket Close Code Number Registry).
_RETRYABLE = frozenset({0, 1001, 1005, 1006, 1012, 1013, NOT_ADMITTED})


def may_reconnect(code: int) -> bool:
    """Whether a client may reconnect after this close code. 0: the connection ended without one."""
    return code in _RETRYABLE or 3000 <= code <= 3499


def delay_asked_ms(code: int, reconnect_after_ms: int) -> int:
    """The delay that the server asks for, within bounds. Jitter is added to it."""
    least_ms = NOT_ADMITTED_DELAY_MS if code == NOT_ADMITTED else 0
    return min(max(reconnect_after_ms, least_ms), RECONNECT_AFTER_MS_MAX)
