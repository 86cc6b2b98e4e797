"""The examples against the real server, which replays the synthetic market."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import unittest
from pathlib import Path

from server import GUARD_S, ROOT, Server

import tickcast

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Examples(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        # The test case turns it on, which logs every slow step of a busy machine.
        asyncio.get_running_loop().set_debug(False)

    def replay(self) -> Server:
        market = str(ROOT / "tests/data/market.ndjson")
        # Everything stays in the history, so it does not matter when the example subscribes.
        server = Server("--replay", market, "--speed", "max", "--replay-wait", "1", "--history", "5000:16MiB:0")
        self.addCleanup(server.stop, signal.SIGKILL)
        return server

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=environment
        )
        self.addCleanup(lambda: process.returncode is None and process.kill())
        return process

    async def test_bars_are_made_of_every_tick(self) -> None:
        server = self.replay()
        process = await self.start(str(EXAMPLES / "bars.py"), server.url, "--ticks", "77")
        output, _ = await asyncio.wait_for(process.communicate(), GUARD_S)
        text = output.decode()
        self.assertEqual(process.returncode, 0, text)
        self.assertRegex(text, r"77 ticks of \d+ products, 0 lost")
        if "without pandas" in text:
            ticks = [int(count) for count in re.findall(r" ticks=(\d+)", text)]
            self.assertEqual(sum(ticks), 77, text)
            for line in re.findall(r"open=(\S+) high=(\S+) low=(\S+) close=(\S+)", text):
                opened, high, low, closed = map(float, line)
                self.assertTrue(low <= min(opened, closed) <= max(opened, closed) <= high, line)

    async def test_relay_goes_on_where_the_one_before_was_killed(self) -> None:
        server = self.replay()
        with tempfile.TemporaryDirectory() as folder:
            positions = str(Path(folder) / "positions.json")
            seen: set[tuple[str, int]] = set()
            async with tickcast.Client(server.url) as client:
                spreads = aiter(await client.subscribe("spread.>").ready())

                async def take(count: int) -> None:
                    while len(seen) < count:
                        tick = await asyncio.wait_for(anext(spreads), GUARD_S)
                        seen.add((tick.topic, tick.time_ns))

                first = await self.start(str(EXAMPLES / "relay.py"), server.url, positions)
                await take(20)
                first.kill()
                await first.wait()
                second = await self.start(str(EXAMPLES / "relay.py"), server.url, positions)
                await take(60)
                second.kill()
                await second.wait()
        # Each ticker's spread has its time, and none is missing between the first and the last.
        tickers = await self.tickers(server)
        for topic, times in tickers.items():
            mine = sorted(time for name, time in seen if name == topic)
            self.assertEqual(mine, times[: len(mine)], topic)

    async def tickers(self, server: Server) -> dict[str, list[int]]:
        """The times of all tickers, by the topic of their spreads."""
        found: dict[str, list[int]] = {}
        async with tickcast.Client(server.url) as client:
            subscription = client.subscribe("market.ticker.>", since="oldest")
            subscription.listen(
                lambda event: isinstance(event, tickcast.Tick)
                and found.setdefault(event.topic.replace("market.ticker.", "spread."), []).append(event.time_ns)
            )
            await subscription.ready()
            before = -1
            while before != (count := sum(map(len, found.values()))):
                before = count
                await asyncio.sleep(1)
        return found


if __name__ == "__main__":
    unittest.main()
