"""A relay: takes ticks of one pattern, and publishes what it makes of them. Resumes where it was, also in another process.

    python examples/relay.py [URL] [POSITIONS]

It reads `market.ticker.>` and publishes the spread of each product on `spread.PRODUCT`. It ends with Ctrl-C.
"""

from __future__ import annotations

import asyncio
import sys

import tickcast


async def relay(url: str, positions: str) -> None:
    """Publishes a spread for each ticker. Repeats what may be lost: a spread may come twice, but none is missed."""
    store = tickcast.FilePositionStore(positions)
    async with tickcast.Client(url, store=store) as client:
        async for event in client.subscribe("market.ticker.>", since="oldest").events(tickcast.Tick, tickcast.Gap):
            if isinstance(event, tickcast.Gap):
                print(f"{event.topic}: lost {event.count} ticks", file=sys.stderr)
                continue
            topic = event.topic.replace("market.ticker.", "spread.")
            spread = float(event.data["best_ask"]) - float(event.data["best_bid"])
            while True:
                try:
                    await client.publish(topic, {"spread": spread}, time_ns=event.time_ns)
                    break
                except (tickcast.UnacknowledgedError, tickcast.NotPublishedError) as error:
                    print(f"{topic}: {error}; again", file=sys.stderr)


if __name__ == "__main__":
    words = sys.argv[1:] + ["ws://127.0.0.1:9480/ws", "relay-positions.json"][len(sys.argv) - 1 :]
    try:
        asyncio.run(relay(*words[:2]))
    except KeyboardInterrupt:
        pass
