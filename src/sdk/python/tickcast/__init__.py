"""tickcast: subscribe to live ticks, recover what was missed, publish.

```python
import asyncio
import tickcast

async def main():
    async with tickcast.Client("ws://127.0.0.1:9480/ws") as client:
        async for tick in client.subscribe("sim.>"):
            print(tick.topic, tick.sequence, tick.data)

asyncio.run(main())
```

`Client` and `Subscription` need an event loop. `Session` is the same protocol without one: bytes and the time in, bytes and events out.
"""

from .book_view import BookView, OrderBook
from .client import Client, PublishResult
from .errors import (
    ClosedError,
    NotPublishedError,
    ProtocolError,
    PublishTimeoutError,
    QueueFullError,
    RefusedError,
    RequestError,
    TickcastError,
    UnacknowledgedError,
)
from .events import (
    ClientState,
    Conflated,
    ErrorEvent,
    Event,
    Gap,
    Latency,
    Recovered,
    SourceChanged,
    Stale,
    StateChanged,
    SubscriptionChanged,
    SubscriptionEvent,
    SubscriptionState,
    TokenExpires,
)
from .keyed_view import KeyedView
from .options import SessionOptions
from .session import Session
from .store import FilePositionStore, PositionStore
from .subscription import Subscription
from .tick import Position, Tick

__all__ = [
    "BookView",
    "Client",
    "ClientState",
    "ClosedError",
    "Conflated",
    "ErrorEvent",
    "Event",
    "FilePositionStore",
    "Gap",
    "KeyedView",
    "Latency",
    "NotPublishedError",
    "OrderBook",
    "Position",
    "PositionStore",
    "ProtocolError",
    "PublishResult",
    "PublishTimeoutError",
    "QueueFullError",
    "Recovered",
    "RefusedError",
    "RequestError",
    "Session",
    "SessionOptions",
    "SourceChanged",
    "Stale",
    "StateChanged",
    "Subscription",
    "SubscriptionChanged",
    "SubscriptionEvent",
    "SubscriptionState",
    "Tick",
    "TickcastError",
    "TokenExpires",
    "UnacknowledgedError",
]
