"""feed.py: a feed that a server reads over an outgoing WebSocket. Prints "port N", then a line for each connection and text.

It sends an answer to the subscription and a hundred messages of three ticks to each connection, and closes the first one with 1012.
"""

import asyncio
import itertools
import json

from websockets.asyncio.server import serve

connections = itertools.count()
# A key 0 would be a text, not a number.
numbers = itertools.count(1)


async def feed(client):
    first = next(connections) == 0
    print("connection", client.request.headers.get("Authorization"), flush=True)
    print("text", await client.recv(), flush=True)
    await client.send(json.dumps({"ok": True}))
    for _ in range(100):
        items = [{"s": f"x{number % 2}", "n": number, "t": 1793322000000 + number} for number in itertools.islice(numbers, 3)]
        await client.send(json.dumps({"data": items}, separators=(",", ":")))
    if first:
        await client.close(1012, "restarting")
    async for text in client:
        print("text", text, flush=True)


async def main():
    async with serve(feed, "127.0.0.1", 0) as server:
        print("port", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
