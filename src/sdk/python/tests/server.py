"""The real server, and links to it that can be cut or held up."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

from tickcast import Conflated, Gap, Tick

ROOT = Path(__file__).resolve().parents[4]
GUARD_S = 120
"""Longest wait for anything before a test fails as hung."""

# What waits without that ends the process, with a traceback of every thread.
faulthandler.dump_traceback_later(10 * GUARD_S, exit=True)


def binary() -> str:
    """The server's program. Without it a test fails: it is never skipped."""
    found = os.environ.get("TICKCAST_BINARY") or ROOT / "target/debug/tickcast"
    assert Path(found).exists(), f"{found} does not exist: build it, or set TICKCAST_BINARY"
    return str(found)


class Server:
    """A server on free ports, or again on a known one."""

    def __init__(self, *options: str, http: str = "127.0.0.1:0") -> None:
        self._log = tempfile.TemporaryFile()
        self._last_log = ""
        arguments = [binary(), "serve", "--tcp", "127.0.0.1:0", "--http", http, "--no-admin", "--no-sim", "--shards", "2", *options]
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={name: value for name, value in os.environ.items() if not name.startswith("TICKCAST_")},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        address = re.search(r"http=(\S+)", line)
        if address is None:
            self.stop()
            raise AssertionError(f"the server did not start: {line}{self.log()}")
        self.http = address[1]

    @property
    def url(self) -> str:
        return f"ws://{self.http}/ws"

    def log(self) -> str:
        if self._log.closed:
            return self._last_log
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, and waits until it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(by)
            try:
                self.process.wait(GUARD_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        if self.process.stdout is not None:
            self.process.stdout.close()
        if not self._log.closed:
            self._last_log = self.log()
            self._log.close()


class Link:
    """A TCP proxy to a server. What the server sends can be held up; all connections can be cut."""

    def __init__(self, to: str) -> None:
        self._host, port = to.rsplit(":", 1)
        self._port = int(port)
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"ws://{host}:{port}/ws"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        """Takes nothing from the server any more, so that its socket fills."""
        self._flows.clear()

    def release(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """Resets all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A small buffer here, so that a server whose link is held up notices soon.
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port, limit=4096)
        self._writers |= {writer, up_writer}
        for source, target, is_down in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.create_task(self._copy(source, target, is_down))
            self._tasks.add(task)

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, is_down: bool) -> None:
        try:
            while True:
                if is_down:
                    await self._flows.wait()
                data = await source.read(4096)
                if is_down:
                    await self._flows.wait()
                if not data:
                    break
                target.write(data)
                await target.drain()
        except OSError:
            pass
        target.close()


class Account:
    """What a subscriber has received: sequences must increase, and every one after a topic's first must be delivered or announced."""

    def __init__(self) -> None:
        self.delivered: dict[tuple[str, int], list[int]] = {}
        self.values: dict[tuple[str, int], dict[int, object]] = {}
        self.lost = 0
        self.conflated = 0
        self._next: dict[tuple[str, int], int] = {}

    def handle(self, event: object) -> None:
        if isinstance(event, Tick):
            life = (event.topic, event.epoch)
            following = self._next.get(life)
            assert event.missed == 0, f"{event} was preceded by {event.missed} missed ticks"
            if following is not None:
                assert event.sequence >= following, f"{event} again or out of order: {following} was next"
                assert event.snapshot or event.sequence == following, f"{event} came where {following} was next"
            self._next[life] = event.sequence + 1
            self.delivered.setdefault(life, []).append(event.sequence)
            self.values.setdefault(life, {})[event.sequence] = event.data
        elif isinstance(event, (Gap, Conflated)):
            life = (event.topic, event.epoch)
            following = self._next.get(life)
            assert following is None or event.from_sequence >= following, f"{event} announces what is known: {following} was next"
            self._next[life] = event.to_sequence
            self.lost += event.count if isinstance(event, Gap) else 0
            self.conflated += event.count if isinstance(event, Conflated) else 0

    def lives(self) -> list[tuple[str, int]]:
        """Topics with their epochs."""
        return list(self._next)

    def reached(self, topic: str, epoch: int) -> int:
        """The last sequence of a topic that is accounted for."""
        return self._next.get((topic, epoch), 1) - 1


async def until(what: str, done) -> None:
    """Waits until `done()`, at most `GUARD_S`."""
    try:
        await asyncio.wait_for(_poll(done), GUARD_S)
    except asyncio.TimeoutError:
        raise AssertionError(f"timed out: {what}") from None


async def _poll(done) -> None:
    while not done():
        await asyncio.sleep(0.01)
