"""A relay: takes ticks of one pattern, and publishes what it makes of them. Resumes where it was, also in another process.

    python examples/relay.py [URL] [POSITIONS]

It reads `market.ticker.>` and publishes the spread of each product on `spread.PRODUCT`. It ends with Ctrl-C, and if the server
refuses it for good.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import tickcast

RETRY_S = 1.0
RATE_LIMITED = 109


async def relay(url: str, positions: str) -> None:
    """Publishes a spread for each ticker. None is missed. One may come twice only if the server restarts in between."""
    store = tickcast.FilePositionStore(positions)
    async with tickcast.Client(url, store=store) as client:
        async for event in client.subscribe("market.ticker.>", since="oldest").events(tickcast.Tick, tickcast.Gap):
            if isinstance(event, tickcast.Gap):
                print(f"{event.topic}: lost {event.count} ticks", file=sys.stderr)
                continue
            topic = event.topic.replace("market.ticker.", "spread.")
            spread = float(event.data["best_ask"]) - float(event.data["best_bid"])
            # The same id whenever this ticker's spread is published, so that the server recognises it.
            message_id = f"{event.epoch}.{event.sequence}"
            await publish(client, topic, {"spread": spread}, time_ns=event.time_ns, message_id=message_id)


async def publish(client: tickcast.Client, topic: str, data: Any, **options: Any) -> None:
    """Publishes until the server has the tick. Raises what no further attempt can change."""
    while True:
        try:
            await client.publish(topic, data, **options)
            return
        except (tickcast.UnacknowledgedError, tickcast.NotPublishedError, tickcast.RefusedError) as error:
            code = getattr(error, "code", 0)
            if client.state is tickcast.ClientState.DISCONNECTED or code not in (0, RATE_LIMITED):
                raise
            print(f"{topic}: {error}; again", file=sys.stderr)
        await asyncio.sleep(RETRY_S)


if __name__ == "__main__":
    words = sys.argv[1:] + ["ws://127.0.0.1:9480/ws", "relay-positions.json"][len(sys.argv) - 1 :]
    try:
        asyncio.run(relay(*words[:2]))
    except KeyboardInterrupt:
        pass
    except tickcast.TickcastError as error:
        sys.exit(f"relay: {error}")
