"""auth.py ADDRESS GOOD BAD EXPIRED: a token in every place that a WebSocket has for it, and what a wrong one is answered with."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def outcome(address, token, place):
    """What a client with a token sees: the topic of its first tick, or the code that it is closed with."""
    url = f"ws://{address}/ws"
    header, subprotocols = None, ["tickcast.v1.json"]
    if place == "header":
        header = {"Authorization": f"Bearer {token}"}
    if place == "subprotocol":
        subprotocols.append(f"bearer.{token}")
    if place == "query":
        url += f"?token={token}"
    async with connect(url, open_timeout=60, additional_headers=header, subprotocols=subprotocols) as socket:
        assert socket.subprotocol == "tickcast.v1.json", socket.subprotocol
        try:
            if place == "hello":
                await socket.send(json.dumps({"op": "hello", "id": 1, "name": "auth", "token": token}))
            await socket.send(json.dumps({"op": "subscribe", "id": 2, "topics": ["user.alice.in"], "from": "latest"}))
            while True:
                message = json.loads(await socket.recv())
                if message["op"] == "subscribed":
                    return "open"
                if message["op"] == "error":
                    return f"error {message['code']}"
        except ConnectionClosed as closed:
            return f"closed {closed.rcvd.code}"


async def main(address, good, bad, expired):
    for place in ["header", "subprotocol", "hello"]:
        for name, token in [("good", good), ("bad", bad), ("expired", expired)]:
            print(f"{place} {name}:", await outcome(address, token, place))
    print("end")


asyncio.run(main(*sys.argv[1:]))
