"""The client and the real server: restarts, cuts, a slow link, a slow application, tokens that expire."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import tempfile
import unittest
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from server import GUARD_S, ROOT, Account, Link, Server, binary, until

import tickcast

ENCODINGS = ("json", "native")


class Conformance(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        # The test case turns it on, which logs every slow step of a busy machine.
        asyncio.get_running_loop().set_debug(False)

    def serve(self, *options: str, http: str = "127.0.0.1:0") -> Server:
        server = Server(*options, http=http)
        self.addCleanup(server.stop, signal.SIGKILL)
        return server

    async def for_each_encoding(self, run: Callable[[Any], Any]) -> None:
        for encoding in ENCODINGS:
            with self.subTest(encoding):
                await asyncio.wait_for(run(encoding), GUARD_S)

    async def test_ticks_arrive_as_they_were_published(self) -> None:
        async def run(encoding: Any) -> None:
            server = self.serve()
            values = [1, -1.5, "text \u00e9\U0001f980", None, True, {"p": [1, {"q": ""}]}, b"\x00\xff", b""]
            keys = [0, 1, 2**53, 2**64 - 1, 0, 0, 7, 0]
            async with tickcast.Client(server.url, encoding=encoding) as client:
                subscription = await client.subscribe("a.>").ready()
                publishes = [
                    client.publish("a.x", value, key=key, time_ns=123, schema=9) for value, key in zip(values, keys)
                ]
                result = (await asyncio.gather(*publishes))[-1]
                ticks = [await anext(aiter(subscription)) for _ in values]
                self.assertEqual([tick.data for tick in ticks], values)
                self.assertEqual([tick.key for tick in ticks], keys)
                self.assertEqual([tick.sequence for tick in ticks], list(range(1, len(values) + 1)))
                self.assertEqual({tick.epoch for tick in ticks}, {result.epoch})
                self.assertEqual({tick.time_ns for tick in ticks}, {123})
                if encoding == "native":
                    self.assertEqual({tick.schema for tick in ticks}, {9})
                    self.assertTrue(all(tick.ingest_time_ns > 10**18 for tick in ticks))
                with self.assertRaises(tickcast.RefusedError) as refused:
                    await client.publish("a..x", 1)
                self.assertEqual(refused.exception.code, 101)
                with self.assertRaises(tickcast.RefusedError):
                    await client.subscribe("a.>.b").ready()
                await until("a round trip", lambda: client.round_trip_ns is not None)

        await self.for_each_encoding(run)

    async def test_nothing_is_missed_over_cuts(self) -> None:
        async def run(encoding: Any) -> None:
            server = self.serve()
            account = Account()
            async with Link(server.http) as link, tickcast.Client(server.url) as publisher:
                async with tickcast.Client(link.url, encoding=encoding) as client:
                    subscription = await client.subscribe("t.>").ready()
                    recovered: list[tickcast.Recovered] = []
                    subscription.listen(account.handle)
                    subscription.listen(lambda event: is_recovered(event) and recovered.append(event))
                    for round in range(3):
                        for part in range(2):
                            numbers = range(part * 25, part * 25 + 25)
                            await asyncio.gather(*(publisher.publish(f"t.{n % 3}", [round, n]) for n in numbers))
                            if part == 0:
                                link.cut()
                        for topic, count in (("t.0", 17), ("t.1", 17), ("t.2", 16)):
                            await until("all ticks", lambda: reached(account, topic, count * (round + 1)))
                    await until("a connection", lambda: client.state is tickcast.ClientState.CONNECTED)
                    self.assertTrue(recovered)
                    self.assertTrue(all(event.recovered for event in recovered), recovered)
                    self.assertEqual(account.lost, 0)
                    self.assertEqual(sum(map(len, account.delivered.values())), 150)

        await self.for_each_encoding(run)

    async def test_a_live_subscription_without_ticks_resumes_where_it_became_live(self) -> None:
        async def run(encoding: Any) -> None:
            server = self.serve()
            async with Link(server.http) as link, tickcast.Client(server.url) as publisher:
                for topic in ("t.busy", "t.silent"):
                    await publisher.publish(topic, "before")
                # A moment of the same server stands for up to half a second before it.
                await asyncio.sleep(0.6)
                async with tickcast.Client(link.url, encoding=encoding) as client:
                    subscription = await client.subscribe("t.>").ready()
                    received: list[tuple[str, Any]] = []
                    events: list[object] = []
                    subscription.listen(
                        lambda event: isinstance(event, tickcast.Tick) and received.append((event.topic, event.data))
                    )
                    subscription.listen(
                        lambda event: isinstance(event, tickcast.Gap | tickcast.Recovered) and events.append(event)
                    )
                    # These are on their way to the client when its connection is cut.
                    link.hold()
                    for topic in ("t.busy", "t.new"):
                        await publisher.publish(topic, "meanwhile")
                    link.cut()
                    link.release()
                    await until("what was missed", lambda: len(received) >= 2)
                    await publisher.publish("t.silent", "after")
                    await until("the last tick", lambda: len(received) >= 3)
                    meanwhile = [("t.busy", "meanwhile"), ("t.new", "meanwhile")]
                    self.assertEqual((sorted(received[:2]), received[2:]), (meanwhile, [("t.silent", "after")]))
                    self.assertEqual(events, [])

        await self.for_each_encoding(run)

    async def test_every_acknowledged_tick_is_accounted_for_over_restarts(self) -> None:
        async def run(encoding: Any) -> None:
            server = self.serve()
            account = Account()
            acknowledged: dict[int, list[tuple[str, int]]] = {}

            async def everything_has_arrived() -> None:
                for epoch, ticks in acknowledged.items():
                    for topic, sequence in ticks:
                        await until(f"{topic} {epoch}:{sequence}", lambda: account.reached(topic, epoch) >= sequence)

            async with tickcast.Client(server.url, encoding=encoding) as client:
                subscription = await client.subscribe("t.>").ready()
                answers: list[tickcast.Recovered] = []
                subscription.listen(account.handle)
                subscription.listen(lambda event: is_recovered(event) and answers.append(event))
                for by in (signal.SIGTERM, signal.SIGKILL, None):
                    publishes = [client.publish(f"t.{number % 4}", number, timeout=60) for number in range(40)]
                    for result in await asyncio.gather(*publishes):
                        acknowledged.setdefault(result.epoch, []).append((result.topic, result.sequence))
                    if by is None:
                        break
                    # A stop by SIGTERM delivers what was acknowledged. One that is killed keeps nothing: its ticks may come after
                    # their acknowledgements, from another shard.
                    if by is signal.SIGKILL:
                        await everything_has_arrived()
                    server.stop(by)
                    # These wait for the next server.
                    waiting = [asyncio.ensure_future(client.publish("t.0", "early", timeout=60)) for _ in range(5)]
                    await until("a loss", lambda: client.state is tickcast.ClientState.CONNECTING)
                    server = self.serve(http=server.http)
                    for result in await asyncio.gather(*waiting, return_exceptions=True):
                        # Sent just before the server ended, or after its last answer: nobody knows.
                        if isinstance(result, BaseException):
                            self.assertIsInstance(result, tickcast.UnacknowledgedError)
                        else:
                            acknowledged.setdefault(result.epoch, []).append((result.topic, result.sequence))
                await everything_has_arrived()
                self.assertTrue(answers)
                self.assertTrue(all(not answer.recovered for answer in answers), answers)
                self.assertGreaterEqual(len(acknowledged), 3)

        await self.for_each_encoding(run)

    async def test_a_slow_link_is_conflated_and_every_tick_is_accounted_for(self) -> None:
        async def run(encoding: Any) -> None:
            server = self.serve("--behind-size", "32KiB", "--socket-send-buffer", "16KiB")
            account = Account()
            count, pad = 600, "x" * 4_000
            async with Link(server.http) as link, tickcast.Client(server.url) as publisher:
                async with tickcast.Client(link.url, encoding=encoding) as client:
                    subscription = client.subscribe("t.>", policy="conflate")
                    subscription.listen(account.handle)
                    view = subscription.keyed_view()
                    await subscription.ready()
                    link.hold()
                    # Three topics of two keys each.
                    await publish_all(
                        publisher, ((f"t.{n % 3}", {"n": n, "pad": pad}, n % 2) for n in range(count))
                    )
                    link.release()
                    for topic in range(3):
                        await until("the last ticks", lambda: reached(account, f"t.{topic}", count // 3))
                    delivered = sum(map(len, account.delivered.values()))
                    self.assertGreater(account.conflated, 0)
                    self.assertEqual(account.lost, 0)
                    self.assertEqual(delivered + account.conflated, count)
                    self.assertEqual(subscription.ticks, delivered)
                    self.assertEqual(subscription.conflated, account.conflated)
                    newest = {(f"t.{n % 3}", n % 2): n for n in range(count)}
                    self.assertEqual({entry: data["n"] for entry, data in view.items()}, newest)

        await self.for_each_encoding(run)

    async def test_a_slow_application_is_conflated_and_its_memory_is_bounded(self) -> None:
        server = self.serve("--behind-size", "32KiB", "--socket-send-buffer", "16KiB")
        account = Account()
        count, pad = 1_200, "x" * 4_000
        async with tickcast.Client(server.url) as publisher, tickcast.Client(server.url) as client:
            subscription = await client.subscribe("t", policy="conflate").ready()
            events = subscription.events(events_max=10)
            await publish_all(publisher, (("t", {"n": n, "pad": pad}, 0) for n in range(count)))
            # One message of the server may bring more than one tick.
            self.assertLess(subscription._unread, 100)
            async for event in events:
                account.handle(event)
                if reached(account, "t", count):
                    break
            self.assertGreater(account.conflated, 0)
            self.assertEqual(account.lost, 0)

    async def test_a_relay_may_publish_while_its_subscription_is_full(self) -> None:
        server = self.serve()
        count = 200
        async with tickcast.Client(server.url) as client, tickcast.Client(server.url) as other:
            subscription = await client.subscribe("in", events_max=4).ready()
            await other.connected()
            await asyncio.gather(*(other.publish("in", number) for number in range(count)))
            relayed = 0
            async for tick in subscription:
                await client.publish("out", tick.data)
                relayed += 1
                if tick.sequence == count:
                    break
            self.assertEqual(relayed + subscription.lost, count)

    async def test_tokens_are_replaced_in_place_and_after_they_expired(self) -> None:
        key = ROOT / "tests/data/auth/hs256.txt"
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        config = Path(folder.name) / "tickcast.toml"
        config.write_text(f'[auth]\nleeway = "0s"\n\n[[auth.key]]\nalgorithm = "HS256"\nfile = "{key}"\n')
        # The client may wait half a minute before it connects again, and a minute of ticks is kept.
        server = self.serve("--config", str(config), "--history", "10000:4MiB:0")

        def token(ttl: str) -> str:
            words = ["--key", str(key), "--sub", "py", "--allow-sub", ">", "--allow-pub", ">", "--ttl", ttl]
            made = subprocess.run([binary(), "token", *words], check=True, capture_output=True, text=True)
            return made.stdout.strip()

        asked: list[str] = []
        fails = False

        async def get_token(why: str) -> str:
            asked.append(why)
            if fails:
                raise OSError("the issuer is down")
            return token("5s")

        account = Account()
        states: list[tickcast.StateChanged] = []
        async with (
            tickcast.Client(server.url, token=token("1h")) as publisher,
            tickcast.Client(server.url, get_token=get_token) as client,
        ):
            client.listen(lambda event: isinstance(event, tickcast.StateChanged) and states.append(event))
            subscription = await client.subscribe("t").ready()
            subscription.listen(account.handle)
            published = 0

            async def publish_until(what: str, done: Callable[[], bool]) -> None:
                nonlocal published
                while not done():
                    await publisher.publish("t", published)
                    published += 1
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(publish_until("two refreshes", lambda: asked.count("refresh") >= 2), GUARD_S)
            self.assertEqual([each.state.value for each in states], ["connected"])
            self.assertEqual(asked[0], "connect")
            fails = True
            await asyncio.wait_for(publish_until("the end of the token", lambda: any(s.code == 3005 for s in states)), GUARD_S)
            fails = False
            await asyncio.wait_for(publish_until("a new connection", lambda: client.state.value == "connected"), GUARD_S)
            await until("all ticks", lambda: reached(account, "t", published))
            self.assertEqual(account.lost, 0)
            self.assertEqual(subscription.ticks, published)

    async def test_a_refused_client_says_why_and_stays_away(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        key, config = ROOT / "tests/data/auth/hs256.txt", Path(folder.name) / "tickcast.toml"
        config.write_text(f'[auth]\n[[auth.key]]\nalgorithm = "HS256"\nfile = "{key}"\n')
        server = self.serve("--config", str(config))
        async with tickcast.Client(server.url, token="nonsense") as client:
            with self.assertRaises(tickcast.ClosedError) as closed:
                await client.connected()
            self.assertEqual(closed.exception.code, 3500)
            with self.assertRaises(tickcast.ClosedError):
                await client.subscribe("t").ready()
            with self.assertRaises(tickcast.NotPublishedError):
                await client.publish("t", 1)

    async def test_the_server_is_verified_over_tls(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        at = Path(folder.name)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        authority = ["-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign", "-out", "ca.pem", "-keyout", "ca.key"]
        leaf = ["-subj", "/CN=server", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
        leaf += ["-CA", "ca.pem", "-CAkey", "ca.key", "-out", "leaf.pem", "-keyout", "leaf.key"]
        for words in (authority, leaf):
            subprocess.run(["openssl", "req", "-x509", *key, *words], cwd=at, check=True, capture_output=True)
        config = at / "tickcast.toml"
        config.write_text(
            '[[listener]]\nkind = "native"\naddress = "127.0.0.1:0"\n\n[[listener]]\nkind = "http"\naddress = "127.0.0.1:0"\n'
            f'tls = {{ cert = "{at}/leaf.pem", key = "{at}/leaf.key" }}\n'
        )
        server = self.serve("--config", str(config))
        url = server.url.replace("ws://", "wss://")
        async with tickcast.Client(url, ssl=ssl.create_default_context(cafile=str(at / "ca.pem"))) as client:
            subscription = client.subscribe("t", since="oldest")
            await client.publish("t", 1)
            self.assertEqual((await anext(aiter(subscription))).data, 1)
        states: list[tickcast.StateChanged] = []
        distrustful = tickcast.Client(url)
        distrustful.listen(lambda event: isinstance(event, tickcast.StateChanged) and states.append(event))
        async with distrustful:
            await until("a refusal", lambda: len(states) >= 2)
        self.assertIn("certificate", states[1].reason)

    async def test_positions_saved_by_one_process_resume_the_next(self) -> None:
        async def run(encoding: Any) -> None:
            server = self.serve()
            folder = tempfile.TemporaryDirectory()
            self.addCleanup(folder.cleanup)
            store = tickcast.FilePositionStore(Path(folder.name) / "positions.json")
            async with tickcast.Client(server.url) as publisher:
                seen = []
                for part in range(3):
                    await publish_all(publisher, (("t.x", [part, number], 0) for number in range(10)))
                    async with tickcast.Client(server.url, encoding=encoding, store=store) as client:
                        # The last one taken is not finished: it comes again.
                        taken = 0
                        async for tick in client.subscribe("t.>", since="oldest"):
                            if tick.sequence not in seen:
                                seen.append(tick.sequence)
                            taken += 1
                            if taken == 7:
                                break
                # 7, then from 7 on: 7 to 13, then 13 to 19.
                self.assertEqual(seen, list(range(1, 20)))

        await self.for_each_encoding(run)


async def publish_all(publisher: tickcast.Client, ticks: Iterable[tuple[str, Any, int]]) -> None:
    """Publishes in order, up to 50 at a time."""
    waiting = list(ticks)
    for start in range(0, len(waiting), 50):
        part = waiting[start : start + 50]
        await asyncio.gather(*(publisher.publish(topic, data, key=key) for topic, data, key in part))


def is_recovered(event: object) -> bool:
    return isinstance(event, tickcast.Recovered)


def reached(account: Account, topic: str, sequence: int) -> bool:
    """Whether a topic has been received up to a sequence in any of its lives."""
    return any(account.reached(*life) >= sequence for life in account.lives() if life[0] == topic)


if __name__ == "__main__":
    unittest.main()
