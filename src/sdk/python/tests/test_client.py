"""The client around the session, against a scripted server on a real socket."""

from __future__ import annotations

import asyncio
import gc
import http
import json
import unittest
from collections.abc import Awaitable, Callable
from typing import Any

from server import GUARD_S, until
from websockets.asyncio.server import ServerConnection, serve

import tickcast

FEATURES = ["published", "reasons", "counts", "tokens", "string_keys", "positions"]


def tick(sequence: int) -> dict[str, Any]:
    return {"topic": "a.x", "seq": sequence, "ts": 1, "data": sequence}


class Scripted:
    """A server that welcomes clients, acknowledges subscriptions and announces the topic a.x."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

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


class Clients(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)
        self.refusals = 0

    async def script(self, subscribed: Callable[[Scripted], Awaitable[None]]) -> str:
        def refuse(connection: ServerConnection, _: object) -> Any:
            if self.refusals == 0:
                return None
            self.refusals -= 1
            response = connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "full\n")
            response.headers["Retry-After"] = "2"
            return response

        server = await serve(
            lambda connection: Scripted(connection).serve(subscribed),
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
