"""The client around the session, against a scripted server on a real socket."""

from __future__ import annotations

import asyncio
import gc
import http
import importlib
import io
import json
import sys
import time
import unittest
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock

from server import GUARD_S, until
from websockets.asyncio.server import ServerConnection, serve

import tickcast
from tickcast.actions import Send
from tickcast.limits import OUTPUT_BYTES_MAX

FEATURES = ["published", "reasons", "counts", "tokens", "string_keys", "positions"]


def tick(sequence: int) -> dict[str, Any]:
    return {"topic": "a.x", "seq": sequence, "ts": 1, "data": sequence}


class Scripted:
    """A server that welcomes clients, acknowledges subscriptions and announces the topic a.x."""

    def __init__(
        self, connection: ServerConnection, published: list[dict[str, Any]], answers: list[int | None]
    ) -> None:
        """`published` takes publishes; `answers`: error codes of the next ones, `None` to accept one."""
        self.connection = connection
        self.published = published
        self.answers = answers

    async def send(self, *messages: dict[str, Any]) -> None:
        await self.connection.send(json.dumps(messages))

    async def serve(self, subscribed: Callable[[Scripted], Awaitable[None]]) -> None:
        async for text in self.connection:
            request = json.loads(text)
            if request["op"] == "hello":
                welcome = {"op": "welcome", "server": "scripted", "epoch": 9, "session": 1, "frame_bytes_max": 262144}
                await self.send({**welcome, "id": request["id"], "features": FEATURES})
            elif request["op"] == "subscribe":
                (pattern,) = request["topics"]
                await self.send({"op": "subscribed", "id": request["id"], "pattern": pattern, "topics": []})
                await self.send({"op": "subscribed", "topics": [{"topic": "a.x", "topic_id": 5, "epoch": 10}]})
                await subscribed(self)
            elif request["op"] == "publish":
                self.published.append(request)
                code = self.answers.pop(0) if self.answers else None
                if code is None:
                    await self.send({"op": "published", "id": request["id"], "topic": "a.x", "epoch": 10, "sequence": 1})
                else:
                    await self.send({"op": "error", "id": request["id"], "code": code, "text": "refused"})


class Clients(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)
        self.refusals = 0
        self.status = http.HTTPStatus.SERVICE_UNAVAILABLE
        self.published: list[dict[str, Any]] = []
        self.answers: list[int | None] = []

    async def script(self, subscribed: Callable[[Scripted], Awaitable[None]]) -> str:
        def refuse(connection: ServerConnection, _: object) -> Any:
            if self.refusals == 0:
                return None
            self.refusals -= 1
            response = connection.respond(self.status, "no\n")
            response.headers["Retry-After"] = "2"
            return response

        server = await serve(
            lambda connection: Scripted(connection, self.published, self.answers).serve(subscribed),
            "127.0.0.1",
            0,
            subprotocols=["tickcast.v1.json"],  # type: ignore[list-item]
            process_request=refuse,
        )
        self.addAsyncCleanup(server.wait_closed)
        self.addCleanup(server.close)
        return f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"

    async def test_ticks_before_the_end_of_a_subscription_in_one_message_are_delivered(self) -> None:
        async def subscribed(server: Scripted) -> None:
            await server.send(tick(1), tick(2), {"op": "unsubscribed", "pattern": "a.>", "code": 108, "text": "no"})

        async with tickcast.Client(await self.script(subscribed)) as client:
            seen = []
            with self.assertRaises(tickcast.RefusedError) as refused:
                async for each in client.subscribe("a.>"):
                    seen.append(each.sequence)
            self.assertEqual((seen, refused.exception.code), ([1, 2], 108))
            again = client.subscribe("a.>")
            self.assertEqual((await anext(aiter(again))).sequence, 1)

    async def test_a_loop_that_was_left_continues_and_a_deleted_iterator_holds_nothing_up(self) -> None:
        async def subscribed(server: Scripted) -> None:
            for sequence in range(1, 31):
                await server.send(tick(sequence))

        async with tickcast.Client(await self.script(subscribed)) as client:
            subscription = client.subscribe("a.>", events_max=5)
            seen = []
            for _ in range(3):
                async for each in subscription:
                    seen.append(each.sequence)
                    if len(seen) % 3 == 0:
                        break
            self.assertEqual(seen, list(range(1, 10)))
            # Unread it would fill, and stop the client.
            iterator = subscription.events(tickcast.Tick)
            del iterator
            gc.collect()
            async for each in subscription:
                seen.append(each.sequence)
                if each.sequence == 30:
                    break
            self.assertEqual(seen, list(range(1, 31)))

    async def test_a_closed_client_ends_loops_and_connects_again(self) -> None:
        connections = 0

        async def subscribed(server: Scripted) -> None:
            nonlocal connections
            connections += 1
            await server.send(tick(connections))

        client = tickcast.Client(await self.script(subscribed))
        subscription = client.subscribe("a.>")
        for expected in (1, 2):
            await client.connect()
            ticks = aiter(subscription)
            self.assertEqual((await asyncio.wait_for(anext(ticks), GUARD_S)).sequence, expected)
            await client.close()
            with self.assertRaises(StopAsyncIteration):
                await anext(ticks)
        self.assertEqual((client.state.value, client.code), ("disconnected", 1000))

    async def test_a_server_that_is_full_is_asked_again_after_the_time_that_it_names(self) -> None:
        async def subscribed(server: Scripted) -> None:
            await server.send(tick(1))

        url = await self.script(subscribed)
        self.refusals = 1
        states: list[Any] = []
        client = tickcast.Client(url)
        client.listen(states.append)
        async with client:
            self.assertEqual((await asyncio.wait_for(anext(aiter(client.subscribe("a.>"))), GUARD_S)).sequence, 1)
        waited = next(each for each in states if each.code == 3504)
        self.assertIn("503", waited.reason)
        self.assertGreaterEqual(waited.retry_in_ms, 2_000)

    async def test_a_handshake_that_is_refused_for_good_ends_the_client(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        url = await self.script(subscribed)
        asked = 0

        async def get_token(_: str) -> str:
            nonlocal asked
            asked += 1
            self.refusals = 1 if asked == 1 else 0
            return f"token{asked}"

        for status, code in ((401, 3005), (403, 3500), (404, 1002)):
            self.refusals, self.status = 1, http.HTTPStatus(status)
            async with tickcast.Client(url) as client:
                with self.assertRaisesRegex(tickcast.ClosedError, f"status {status}") as closed:
                    await asyncio.wait_for(client.connected(), GUARD_S)
            self.assertEqual(closed.exception.code, code)
        # Another token may help.
        self.status = http.HTTPStatus.UNAUTHORIZED
        async with tickcast.Client(url, get_token=get_token) as client:
            await asyncio.wait_for(client.connected(), GUARD_S)
        self.assertEqual(asked, 2)

    async def test_positions_of_a_subscription_that_ended_before_its_client_are_saved(self) -> None:
        async def subscribed(server: Scripted) -> None:
            await server.send(tick(1), tick(2), tick(3))

        class Store:
            saved = {"a.x": tickcast.Position(10, 0), "b": tickcast.Position(11, 7)}

            async def load(self) -> dict[str, tickcast.Position]:
                return self.saved

            async def save(self, positions: Any) -> None:
                self.saved = dict(positions)

        store, url = Store(), await self.script(subscribed)
        async with tickcast.Client(url, store=store) as client, client.subscribe("a.>") as ticks:
            async for each in ticks:
                if each.sequence == 3:
                    break
        # The loop was left in the third one: only the two before are finished.
        self.assertEqual(store.saved, {"a.x": tickcast.Position(10, 2), "b": tickcast.Position(11, 7)})
        async with tickcast.Client(url, store=store) as client:
            ended = client.subscribe("a.>")
            ended.listen(lambda _: None)
            await until("all ticks", lambda: ended.ticks == 3)
            ended.unsubscribe()
            self.assertEqual(client.positions(), {"b": tickcast.Position(11, 7)})
        self.assertEqual(store.saved, {"a.x": tickcast.Position(10, 3), "b": tickcast.Position(11, 7)})

    async def test_readers_of_what_has_ended_end_at_once(self) -> None:
        subscriptions = 0

        async def subscribed(server: Scripted) -> None:
            nonlocal subscriptions
            subscriptions += 1
            if subscriptions == 1:
                await server.send({"op": "unsubscribed", "pattern": "a.>", "code": 108, "text": "no"})
            else:
                await server.connection.close(3500, "no token")

        client = tickcast.Client(await self.script(subscribed))
        early = client.subscribe("a.>")
        reading = asyncio.ensure_future(anext(aiter(early)))
        await asyncio.sleep(0)
        self.assertFalse(reading.done(), "a client that has not connected yet has not ended")
        await client.connect()
        with self.assertRaises(tickcast.RefusedError):
            await asyncio.wait_for(reading, GUARD_S)
        for opened in (early.events(), early.events(tickcast.Gap), aiter(early)):
            with self.assertRaises(tickcast.RefusedError):
                await asyncio.wait_for(anext(opened), GUARD_S)
        with self.assertRaises(tickcast.ClosedError):
            await asyncio.wait_for(anext(aiter(client.subscribe("a"))), GUARD_S)
        late = client.subscribe("b")
        for opened in (late.events(), aiter(late)):
            with self.assertRaises(tickcast.ClosedError) as closed:
                await asyncio.wait_for(anext(opened), GUARD_S)
            self.assertEqual(closed.exception.code, 3500)
        await client.close()

    async def test_a_loop_that_was_left_does_not_stop_the_client(self) -> None:
        async def subscribed(server: Scripted) -> None:
            for sequence in range(1, 31):
                await server.send(tick(sequence))

        async with tickcast.Client(await self.script(subscribed)) as client:
            left = client.subscribe("a.>", events_max=5)
            async for each in left:
                if each.sequence == 3:
                    break
            await until("all ticks", lambda: left.ticks == 30)
            self.assertEqual((await anext(aiter(left))).sequence, 21)
            self.assertEqual(left.lost, 17)

    async def test_a_closed_view_follows_its_subscription_no_more(self) -> None:
        async def subscribed(server: Scripted) -> None:
            await server.send(tick(1))
            await server.send(tick(2))

        async with tickcast.Client(await self.script(subscribed)) as client:
            subscription = client.subscribe("a.>")
            views = [subscription.keyed_view(), subscription.keyed_view()]
            books = subscription.book_view()
            subscription.listen(lambda event: views[0].close() or books.close() if isinstance(event, tickcast.Tick) else None)
            await until("both ticks", lambda: subscription.ticks == 2)
            self.assertEqual([view["a.x"] for view in views], [1, 2])
            self.assertEqual((books["a.x"].sequence, len(subscription._callbacks)), (1, 2))

    async def test_a_cancelled_publish_is_not_sent_later(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        url = await self.script(subscribed)
        async with tickcast.Client(url) as client:
            publishing = asyncio.ensure_future(client.publish("a.x", 1))
            await asyncio.sleep(0)
            self.assertEqual(client._session._publishes._queued, 1)
            publishing.cancel()
            await asyncio.wait([publishing])
            self.assertEqual((client._publishes, client._session._publishes._queued), ({}, 0))
            await asyncio.wait_for(client.connected(), GUARD_S)
        self.assertEqual(self.published, [])

    async def test_an_exception_while_a_message_is_handled_ends_the_connection(self) -> None:
        async def subscribed(server: Scripted) -> None:
            await server.send(tick(1))

        states: list[Any] = []
        async with tickcast.Client(await self.script(subscribed)) as client:
            client.listen(states.append)
            await asyncio.wait_for(client.connected(), GUARD_S)
            with (
                self.assertLogs("tickcast", "ERROR") as logs,
                mock.patch.object(client._session, "handle_message", side_effect=KeyError("a bug")),
            ):
                subscription = client.subscribe("a.>")
                await until("the end of the connection", lambda: logs.records and any(getattr(each, "code", 0) == 1006 for each in states))
            await until("a tick of the next one", lambda: subscription.ticks > 0)

    async def test_a_token_function_that_hangs_is_cancelled_and_called_again(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        asked: list[str] = []
        cancelled = 0

        async def get_token(why: str) -> str:
            nonlocal cancelled
            asked.append(why)
            if len(asked) == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled += 1
                    raise
            return "token"

        states: list[Any] = []
        client = tickcast.Client(await self.script(subscribed), get_token=get_token)
        client.listen(states.append)
        await client.connect()
        await until("the first call", lambda: len(asked) == 1)
        # As after 30 s, and after the delay of at most half a second.
        for later_s in (31, 32):
            client._session.handle_timeout(time.monotonic_ns() + later_s * 1_000_000_000)
        client._pump()
        await asyncio.wait_for(client.connected(), GUARD_S)
        # By the second call, not by the end of the client.
        self.assertEqual(cancelled, 1)
        await client.close()
        failures = [each for each in states if isinstance(each, tickcast.ErrorEvent)]
        self.assertEqual((asked, len(failures)), (["connect", "connect"], 1))

    async def test_the_relay_retries_what_may_succeed_and_ends_otherwise(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        path = Path(__file__).resolve().parent.parent / "examples"
        with mock.patch.object(sys, "path", [str(path), *sys.path]):
            relay = importlib.import_module("relay")
        self.answers = [109, None, 108]
        with mock.patch.object(relay, "RETRY_S", 0), mock.patch.object(sys, "stderr", io.StringIO()):
            async with tickcast.Client(await self.script(subscribed)) as client:
                await asyncio.wait_for(relay.publish(client, "a.x", 1), GUARD_S)
                self.assertEqual(len(self.published), 2)
                with self.assertRaises(tickcast.RefusedError):
                    await asyncio.wait_for(relay.publish(client, "a.x", 1), GUARD_S)
                with self.assertRaises(tickcast.NotPublishedError):
                    await asyncio.wait_for(relay.publish(client, "a.x", "x" * 400_000), GUARD_S)
            with self.assertRaises(tickcast.NotPublishedError):
                await asyncio.wait_for(relay.publish(client, "a.x", 1), GUARD_S)

    async def test_positions_that_could_not_be_loaded_are_not_saved_over(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        class Store:
            saved = {"a.x": tickcast.Position(10, 7)}
            failures = 1
            loads = 0

            async def load(self) -> dict[str, tickcast.Position]:
                self.loads += 1
                await asyncio.sleep(0)
                if self.failures:
                    self.failures -= 1
                    raise OSError("the disk is gone")
                return self.saved

            async def save(self, positions: Any) -> None:
                self.saved = dict(positions)

        store = Store()
        client = tickcast.Client(await self.script(subscribed), store=store)
        with self.assertRaises(OSError):
            await client.connect()
        await client.close()
        self.assertEqual(store.saved, {"a.x": tickcast.Position(10, 7)})
        await asyncio.gather(client.connect(), client.connect())
        self.assertEqual((store.loads, client.positions()), (2, store.saved))
        await client.close()

    async def test_a_client_that_was_closed_while_it_asked_for_a_token_asks_again(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        asked = 0

        async def get_token(_: str) -> str:
            nonlocal asked
            asked += 1
            if asked == 1:
                await asyncio.Event().wait()
            return "token"

        url = await self.script(subscribed)
        for steps in (0, 3):
            asked = 1 if steps == 0 else 0
            client = tickcast.Client(url, get_token=get_token)
            await client.connect()
            for _ in range(steps):
                await asyncio.sleep(0)
            await asyncio.wait_for(client.close(), GUARD_S)
            await client.connect()
            await asyncio.wait_for(client.connected(), GUARD_S)
            await client.close()
            self.assertEqual(asked, 2)

    async def test_events_of_the_client_end_when_it_is_disconnected(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        client = tickcast.Client(await self.script(subscribed))
        both: list[list[Any]] = [[], []]

        async def read(seen: list[Any], *types: Any) -> None:
            async for event in client.events(*types):
                seen.append(event)

        readers = [asyncio.ensure_future(each) for each in (read(both[0]), read(both[1], tickcast.Latency))]
        await asyncio.sleep(0)
        await client.connect()
        await asyncio.wait_for(client.connected(), GUARD_S)
        await client.close()
        await asyncio.wait_for(asyncio.gather(*readers), GUARD_S)
        self.assertEqual(both[0][-1].state.value, "disconnected")
        self.assertFalse([event for event in both[1] if not isinstance(event, tickcast.Latency)])
        self.assertEqual(client._event_callbacks, [])

    async def test_optional_messages_are_left_out_while_too_much_waits_for_the_socket(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        async with tickcast.Client(await self.script(subscribed)) as client:
            await asyncio.wait_for(client.connected(), GUARD_S)
            transport = client._transport
            assert transport is not None
            for waiting, sent in ((OUTPUT_BYTES_MAX + 1, 0), (OUTPUT_BYTES_MAX, 1)):
                transport.output_bytes = waiting
                with mock.patch.object(transport, "send") as send:
                    client._session._outbox.act(Send("pong", is_optional=True))
                    client._pump()
                self.assertEqual(send.call_count, sent)
            transport.output_bytes = 0

    async def test_a_callback_that_fails_does_not_cost_the_connection(self) -> None:
        async def subscribed(server: Scripted) -> None:
            await server.send(tick(1), tick(2))

        def fail(_: object) -> None:
            raise ValueError("a bug of the application")

        async with tickcast.Client(await self.script(subscribed)) as client:
            subscription = client.subscribe("a.>")
            with self.assertLogs("tickcast", "ERROR"):
                subscription.listen(fail)
                client.listen(fail)
                await until("both ticks", lambda: subscription.ticks == 2)
            self.assertEqual(client.state.value, "connected")

    async def test_a_connection_that_cannot_be_made_is_tried_again(self) -> None:
        async def subscribed(server: Scripted) -> None:
            pass

        url = await self.script(subscribed)
        for wrong in ("ws://127.0.0.1:1/ws", url.replace("ws://", "wss://")):
            states: list[Any] = []
            client = tickcast.Client(wrong)
            client.listen(states.append)
            async with client:
                await until("a second attempt", lambda: sum(each.code == 1006 for each in states) >= 2)
            self.assertIn("cannot connect to", states[1].reason)
        with self.assertRaises(tickcast.RequestError):
            tickcast.Client("http://127.0.0.1/ws")


if __name__ == "__main__":
    unittest.main()
