"""The client's token: asking the application for one, and replacing it before it expires."""

from __future__ import annotations

from collections.abc import Callable

from .actions import AskToken, Outbox
from .backoff import Backoff
from .limits import TOKEN_TIMEOUT_MS
from .timers import Timers

_MS_NS = 1_000_000
_TIMER = "token"
"""Asks for a token."""
_ANSWER_TIMER = "token answer"
"""Gives up waiting for the application's answer."""
# The part of a token's time after which it is replaced, in quarters.
_QUARTERS = 3


class Tokens:
    """The token, when to replace it, and whether the application has been asked.

    Invariant: the application is asked for at most one token at a time, and there is a timer until it answers.
    """

    def __init__(
        self, token: str | None, is_asked: bool, outbox: Outbox, timers: Timers, random: Callable[[], float]
    ) -> None:
        """`token`: one that does not change by itself. `is_asked`: whether the application gives tokens when asked."""
        self.token = token
        self._is_asked = is_asked
        self._outbox = outbox
        self._timers = timers
        self._backoff = Backoff(random)
        self._asking = False
        self._due_ns: int | None = None
        """When to replace the token; `None`: never, or unknown."""
        self._used: str | None = None
        self._is_rejected = False
        """Whether the server has closed the connection because this token expired."""

    @property
    def can_ask(self) -> bool:
        """Whether the application gives tokens."""
        return self._is_asked

    @property
    def is_asking(self) -> bool:
        """Whether the application has been asked and has not answered."""
        return self._asking

    def ready(self, now_ns: int) -> bool:
        """Whether there is a token for a new connection, or none is needed. If not, asks for one."""
        if not self._is_asked:
            return True
        is_due = self._due_ns is not None and now_ns >= self._due_ns
        if self.token is not None and not is_due and not self._is_rejected:
            return True
        self._ask(now_ns, is_connected=False)
        return False

    def _ask(self, now_ns: int, is_connected: bool) -> None:
        self._timers.cancel(_TIMER)
        if not self._asking:
            self._asking = True
            self._timers.set(_ANSWER_TIMER, now_ns + TOKEN_TIMEOUT_MS * _MS_NS)
            self._outbox.act(AskToken("refresh" if is_connected else "connect"))

    def refresh(self, now_ns: int) -> None:
        """Asks for a new token on an open connection, if the application gives tokens."""
        if self._is_asked:
            self._ask(now_ns, is_connected=True)

    def _answered(self) -> None:
        self._asking = False
        self._timers.cancel(_ANSWER_TIMER)

    def replace(self, token: str) -> None:
        """Takes a token for which the application was not asked. An answer or a delay under way goes on."""
        self.token = token
        self._due_ns = None
        self._is_rejected = False

    def handle_token(self, token: str) -> None:
        """Takes the token for which the application was asked."""
        self.replace(token)
        self._backoff.reset()
        self._answered()
        self._timers.cancel(_TIMER)

    def handle_failed(self, now_ns: int) -> int:
        """The application has none, or the server could not take it; returns the delay before asking again, in milliseconds."""
        self._answered()
        delay_ms = self._backoff.next_ms()
        self._timers.set(_TIMER, now_ns + delay_ms * _MS_NS)
        return delay_ms

    def use(self) -> str | None:
        """The token, which goes into a hello or a refresh now."""
        self._used = self.token
        return self.token

    @property
    def unused(self) -> str | None:
        """The token, if it has replaced the one that was used last."""
        return None if self.token == self._used else self.token

    def reject(self) -> bool:
        """The server does not take the token any more that was used last; returns whether there is, or can be, another one."""
        self._is_rejected = self.unused is None
        return self._is_asked or not self._is_rejected

    def handle_expires(self, expires_in_s: int, now_ns: int) -> None:
        """The server has said when the token expires: it is in force."""
        self._due_ns = None
        self._timers.cancel(_TIMER)
        if expires_in_s and self._is_asked:
            self._due_ns = now_ns + expires_in_s * 1_000_000_000 * _QUARTERS // 4
            self._timers.set(_TIMER, self._due_ns)

    def handle_unwanted(self) -> None:
        """The application has answered, but the client does not connect any more."""
        self._answered()

    def handle_lost(self) -> None:
        """The connection is lost: `ready` decides before the next one."""
        self._timers.cancel(_TIMER)
