"""Saving positions as of the events that the application has finished."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from .limits import POSITIONS_MAX
from .session import Session
from .store import PositionStore
from .tick import Position

if TYPE_CHECKING:
    from .subscription import Subscription

logger = logging.getLogger("tickcast")


class PositionSaver:
    """Loads and saves the positions of a session. Asks the store for one thing at a time.

    A program that ends leaves its subscriptions before its client, so positions in topics of ended subscriptions are kept: at most
    `POSITIONS_MAX`.
    """

    def __init__(
        self, store: PositionStore, session: Session, subscriptions: Callable[[], Iterable[Subscription]]
    ) -> None:
        self._store = store
        self._session = session
        self._subscriptions = subscriptions
        self._is_loaded = False
        self._loading = asyncio.Lock()
        self._unsaved: Mapping[str, Position] | None = None
        self._saved: dict[str, Position] = {}
        """What the store has."""
        self._left: dict[str, Position] = {}
        """Positions in topics that no subscription matches any more."""
        self._saving: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Gives the session what was saved last, once. An exception of the store goes to the caller."""
        async with self._loading:
            if not self._is_loaded:
                self._saved = dict(await self._store.load())
                self._session.load_positions(self._saved)
                # Set last: positions are saved only if they were loaded, so a failed load leaves the store as it is.
                self._is_loaded = True

    def save(self, positions: Mapping[str, Position]) -> asyncio.Task[None] | None:
        """Saves positions, after what is being saved; returns the task if it is a new one."""
        self._unsaved = positions
        if self._saving is not None and not self._saving.done():
            return None
        self._saving = asyncio.get_running_loop().create_task(self._save_all())
        return self._saving

    async def save_last(self) -> None:
        """Saves the session's positions. Nothing else is being saved."""
        if self._is_loaded:
            await self._save(self._session.positions())

    def handle_ended(self, subscription: Subscription) -> None:
        """A subscription has ended, and the session has forgotten the positions of its topics."""
        for topic, position in self._session.take_left_positions().items():
            finished = self._finished(topic, position, [subscription, *self._subscriptions()])
            if finished is not None and (topic in self._left or len(self._left) < POSITIONS_MAX):
                self._left[topic] = finished

    async def _save_all(self) -> None:
        while (positions := self._unsaved) is not None:
            self._unsaved = None
            await self._save(positions)

    async def _save(self, positions: Mapping[str, Position]) -> None:
        subscriptions = list(self._subscriptions())
        for topic in [topic for topic in self._left if topic in positions]:
            # Another subscription has taken it up.
            del self._left[topic]
        finished = self._left.copy()
        for topic, position in positions.items():
            reached = self._finished(topic, position, subscriptions)
            if reached is not None:
                finished[topic] = reached
        self._saved = finished
        try:
            await self._store.save(finished)
        except Exception:
            logger.exception("cannot save the positions")

    def _finished(self, topic: str, position: Position, subscriptions: Iterable[Subscription]) -> Position | None:
        """How far the application has come in a topic; `None`: it has finished nothing yet."""
        lagging = [each for subscription in subscriptions for each in subscription._lags(topic)]
        # A reader that has finished none yet is where the last save, or the last process, was.
        known = [each or self._saved.get(topic) for each in lagging]
        if not known:
            return position
        return None if None in known else min(each for each in known if each)
