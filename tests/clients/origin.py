"""origin.py ADDRESS: WebSockets from pages of several origins."""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


async def outcome(address, origin):
    try:
        async with connect(f"ws://{address}/ws", open_timeout=60, origin=origin):
            return "open"
    except InvalidStatus as refusal:
        return refusal.response.status_code


async def main(address):
    print("none:", await outcome(address, None))
    print("own:", await outcome(address, f"http://{address}"))
    print("foreign:", await outcome(address, "https://evil.example"))
    print("end")


asyncio.run(main(sys.argv[1]))
