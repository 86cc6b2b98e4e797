"""Where a client saves its positions, so that the next process resumes from them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from .errors import TickcastError
from .tick import Position


class PositionStore(Protocol):
    """Saves positions. The client calls one method at a time."""

    async def load(self) -> Mapping[str, Position]:
        """The positions saved last; none at first. An exception ends `Client.connect`."""

    async def save(self, positions: Mapping[str, Position]) -> None:
        """Replaces all positions saved before. An exception is logged, and the client goes on."""


class FilePositionStore:
    """Saves positions in a JSON file: `{"a.x": [epoch, sequence]}`. Each save replaces the file as a whole.

    A process that is killed may so read some ticks again, those since the last save, and misses none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path`: the file, which need not exist. Its folder must."""
        self._path = Path(path)

    async def load(self) -> dict[str, Position]:
        """Reads the file. Raises `TickcastError` if it has something else."""
        return await asyncio.to_thread(self._load)

    async def save(self, positions: Mapping[str, Position]) -> None:
        """Writes a new file and renames it."""
        saved = {topic: [position.epoch, position.sequence] for topic, position in positions.items()}
        await asyncio.to_thread(self._save, saved)

    def _load(self) -> dict[str, Position]:
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            return {topic: Position(int(epoch), int(sequence)) for topic, (epoch, sequence) in saved.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            raise TickcastError(f"{self._path} has no positions: {error}; remove it to start without") from error

    def _save(self, saved: dict[str, list[int]]) -> None:
        part = self._path.with_name(self._path.name + ".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(saved, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)
