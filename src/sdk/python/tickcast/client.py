"""The client: a session, a WebSocket and a clock."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ssl import SSLContext, create_default_context
from typing import Any, Literal, TypeVar, overload
from urllib.parse import urlsplit

from .actions import AskToken, Dial, HangUp, Save, Send
from .checks import check_policy, check_rate, check_token
from .close_codes import CLOSE_NORMAL
from .errors import (
    ClosedError,
    NotPublishedError,
    PublishTimeoutError,
    QueueFullError,
    RefusedError,
    RequestError,
    UnacknowledgedError,
)
from .events import (
    ClientState,
    ErrorEvent,
    Event,
    Outcome,
    Published,
    PublishFailed,
    StateChanged,
    SubscriptionChanged,
    SubscriptionState,
)
from .json_codec import JsonCodec
from .limits import (
    CLIENT_EVENTS_MAX,
    EVENTS_MAX,
    MESSAGE_BYTES_MAX,
    OFFLINE_QUEUE_MAX,
    OUTPUT_BYTES_MAX,
    U64_MAX,
)
from .messages import Policy, Start
from .native import NativeCodec
from .options import SessionOptions
from .saver import PositionSaver
from .session import Session
from .store import PositionStore
from .subscription import Subscription
from .tick import Position, dumps
from .transport import Handlers, Transport, TransportOptions

logger = logging.getLogger("tickcast")

VERSION = "0.1.0"
ClientEvent = Event
_NOT_CONNECTED = StateChanged(ClientState.DISCONNECTED, 0, "not connected yet")
T = TypeVar("T", bound=Event)


@dataclass(frozen=True, slots=True)
class PublishResult:
    """Where the server has put a published tick."""

    topic: str
    epoch: int
    sequence: int
    duplicate: bool
    """Whether the server had this tick already."""


class Client:
    """A client that connects, reconnects and resumes by itself. Use it from one event loop.

    ```python
    async with tickcast.Client("ws://127.0.0.1:9480/ws") as client:
        async for tick in client.subscribe("prices.>"):
            print(tick.topic, tick.data)
    ```

    A slow application slows down its socket: with `EVENTS_MAX` events unread, the client stops reading, and the server applies the
    subscription's policy. Memory is bounded by these events, by the positions and topics of the server, and by `message_bytes_max`.
    """

    def __init__(
        self,
        url: str,
        *,
        encoding: Literal["json", "native"] = "json",
        token: str | None = None,
        get_token: Callable[[Literal["connect", "refresh"]], Awaitable[str]] | None = None,
        store: PositionStore | None = None,
        name: str = f"tickcast-python/{VERSION}",
        offline_queue_max: int = OFFLINE_QUEUE_MAX,
        headers: Mapping[str, str] | None = None,
        ssl: SSLContext | None = None,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        """Makes a client; `connect`, or `async with`, starts it.

        - `url`: `ws://` or `wss://`, with the path `/ws`.
        - `encoding`: `native` frames also have the time of receipt and the schema of ticks, and their payloads' exact bytes.
        - `token`: a token that does not change by itself; see `set_token`. `get_token`: called for a token before the first
          connection, and whenever the one in force is about to expire, with `connect` or `refresh`. If it raises, or has not
          returned after 30 s, it is cancelled and called again after a delay. Tokens go into the hello; `headers` can have an
          `Authorization` of its own.
        - `store`: loads the positions to resume from, and saves them as the application finishes events.
        - `name`: of the client software, in the server's log.
        - `offline_queue_max`: publishes that wait for a connection, or while 1,024 others wait for their answers; they follow as the answers
          arrive.
        - `ssl`: of `wss://`, to trust other authorities or to present a certificate.
        - `message_bytes_max`: the longest message accepted from the server.

        Raises `RequestError` for an unknown form of URL or encoding.
        """
        scheme = urlsplit(url).scheme
        if scheme not in ("ws", "wss"):
            raise RequestError(f"{url} is not a URL of a WebSocket, such as ws://127.0.0.1:9480/ws")
        if encoding not in ("json", "native"):
            raise RequestError(f"unknown encoding {encoding!r}: json or native")
        check_token(token)
        self._get_token = get_token
        self._session = Session(
            SessionOptions(
                url,
                JsonCodec() if encoding == "json" else NativeCodec(),
                name,
                token,
                get_token is not None,
                saves_positions=store is not None,
                offline_queue_max=offline_queue_max,
            ),
            random.random,
        )
        tls = (ssl or create_default_context()) if scheme == "wss" else None
        self._transport_options = TransportOptions(dict(headers or {}), tls, message_bytes_max, name)
        self._transport: Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._saver = None if store is None else PositionSaver(store, self._session, self._subscriptions.values)
        self._publishes: dict[int, asyncio.Future[PublishResult]] = {}
        self._event_callbacks: list[Callable[[ClientEvent], None]] = []
        self._change = _NOT_CONNECTED
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._answers_awaited = 0

    # State.

    @property
    def state(self) -> ClientState:
        """Whether the client is connected."""
        return self._session.state

    @property
    def code(self) -> int:
        """The close code that caused the state; 0: none."""
        return self._change.code

    @property
    def reason(self) -> str:
        """The reason for the state, for a person."""
        return self._change.reason

    @property
    def round_trip_ns(self) -> int | None:
        """The shortest of the last round trips on this connection; `None` before the first."""
        connection = self._session.connection
        return None if connection is None else connection.clock.round_trip_ns

    @property
    def clock_offset_ns(self) -> int | None:
        """This machine's clock minus the server's, by the last pings and ticks; `None` if unknown. Half a round trip is its error.

        In the JSON encoding it takes the ticks' own times for the server's, which is right unless publishers give times.
        """
        connection = self._session.connection
        return None if connection is None else connection.clock.offset_ns

    def positions(self) -> dict[str, Position]:
        """A copy of the positions of all topics, as of the events received. `store` saves them as of the events finished."""
        return self._session.positions()

    async def connect(self) -> None:
        """Loads the positions and starts to connect; does not wait until connected. Does nothing if it has been called."""
        if self._saver is not None:
            await self._saver.load()
        self._session.connect(time.monotonic_ns())
        self._pump()

    async def connected(self) -> None:
        """Waits until the server has welcomed the client. Raises `ClosedError` if the client is closed, also for good by the server."""
        with self._answer_awaited():
            while self.state is not ClientState.CONNECTED:
                self._raise_if_closed()
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        """Closes the connection, ends iterators and saves the positions. The client can connect again."""
        self._session.disconnect(time.monotonic_ns())
        self._pump()
        tasks = [*self._tasks]
        for task in tasks:
            # Closing has a time-out of its own; what else runs only asks for tokens.
            if task.get_name() == "token":
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._saver is not None:
            await self._saver.save_last()

    async def __aenter__(self) -> Client:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Subscribing and publishing.

    def subscribe(
        self,
        pattern: str,
        *,
        since: Start = "live",
        policy: Policy | None = None,
        max_rate: float | None = None,
        events_max: int = EVENTS_MAX,
    ) -> Subscription:
        """Subscribes to a pattern on this and every later connection.

        - `since`: `live`, the next tick; `latest`, the last tick of each key, then live ticks; `oldest`, everything that the server
          has kept; or positions: the tick after each.
        - `policy`: what the server does while this client is slow: `conflate`, `drop`, `keep`, `disconnect`; `None`: its default.
        - `max_rate`: the most ticks per second of each topic, 0.001 to 1,000; the ticks between are conflated.
        - `events_max`: events that may wait for each reader.

        Raises `RequestError` if the pattern has a subscription already, or for an unknown option.
        """
        check_policy(policy)
        if not isinstance(since, Mapping) and since not in ("live", "latest", "oldest"):
            raise RequestError(f"unknown start {since!r}: live, latest, oldest or positions")
        check_rate(max_rate)
        self._session.subscribe(pattern, since, policy, max_rate)
        subscription = Subscription(self, pattern, events_max)
        self._subscriptions[pattern] = subscription
        self._pump()
        return subscription

    async def publish(
        self,
        topic: str,
        data: Any,
        *,
        key: int = 0,
        schema: int = 0,
        time_ns: int = 0,
        message_id: str = "",
        timeout: float = 10.0,
    ) -> PublishResult:
        """Publishes one tick and waits for the server's answer, `timeout` seconds at most.

        `data`: bytes are published as they are, everything else as JSON. `key`: the part of the topic that it updates. `time_ns`: the
        tick's time in nanoseconds since 1970; 0: the server's. `message_id`: by which the server recognises the publish if it is sent
        again, so that it is published once; at most 255 bytes, different for each publish to a topic, such as `str(uuid.uuid4())`. A
        publish whose answer was lost is then sent again on the next connection. If the server does not recognise ids, it fails with
        code 100. While the client connects, a bounded number of publishes wait.

        Raises `RefusedError` if the server refuses it; `NotPublishedError` if it was not sent; `UnacknowledgedError`, and its kind
        `PublishTimeoutError`, if nobody knows; `RequestError` if `data` is not JSON, or if the topic or a number is out of range. Only the
        application knows whether publishing again is safe. If the call is cancelled, as `asyncio.wait_for` does, a tick that has not been
        sent is not published; for one that has been sent, nobody knows.
        """
        if not 0 <= key <= U64_MAX or not 0 <= schema < 1 << 32 or not 0 <= time_ns <= U64_MAX:
            raise RequestError("key and time_ns are unsigned integers of 64 bits, schema of 32")
        is_json = not isinstance(data, (bytes, bytearray, memoryview))
        try:
            payload = dumps(data) if is_json else bytes(data)
        except (ValueError, TypeError, RecursionError) as error:
            raise RequestError(f"the data is not JSON: {error}") from error
        if self._transport is not None and self._transport.output_bytes > OUTPUT_BYTES_MAX:
            raise QueueFullError("too many requests wait for the socket; await the publishes before")
        now_ns = time.monotonic_ns()
        handle = self._session.publish(
            topic,
            payload,
            now_ns,
            is_json=is_json,
            key=key,
            schema=schema,
            time_ns=time_ns,
            message_id=message_id,
            timeout_ms=timeout * 1_000,
        )
        answer: asyncio.Future[PublishResult] = asyncio.get_running_loop().create_future()
        self._publishes[handle] = answer
        self._pump()
        try:
            with self._answer_awaited():
                return await answer
        except asyncio.CancelledError:
            self._publishes.pop(handle, None)
            self._session.withdraw(handle)
            raise

    def set_token(self, token: str) -> None:
        """Replaces the token: on the open connection at once, and for later ones. Raises `RequestError` if it is none."""
        check_token(token)
        self._session.set_token(token)
        self._pump()

    # Events.

    @overload
    def events(self) -> AsyncIterator[ClientEvent]: ...

    @overload
    def events(self, *types: type[T]) -> AsyncIterator[T]: ...

    async def events(self, *types: type[Any]) -> AsyncIterator[Any]:
        """An iterator over events of the client of these types, from its first step on; without types, over all.

        They are `StateChanged`, `ErrorEvent`, `Latency`, `SourceChanged`, `TokenExpires`. Beyond `CLIENT_EVENTS_MAX` unread ones, the oldest
        are dropped and logged. It ends when the client is disconnected: by `close`, or for good by the server.
        """
        waiting: asyncio.Queue[ClientEvent] = asyncio.Queue()

        def is_wanted(event: ClientEvent) -> bool:
            return not types or isinstance(event, types)

        def is_last(event: ClientEvent) -> bool:
            return isinstance(event, StateChanged) and event.state is ClientState.DISCONNECTED

        def put(event: ClientEvent) -> None:
            if is_wanted(event) or is_last(event):
                if waiting.qsize() >= CLIENT_EVENTS_MAX:
                    logger.warning("an event of the client is dropped unread: %s", waiting.get_nowait())
                waiting.put_nowait(event)

        stop = self.listen(put)
        try:
            while True:
                event = await waiting.get()
                if is_wanted(event):
                    yield event
                if is_last(event):
                    return
        finally:
            stop()

    def listen(self, callback: Callable[[ClientEvent], None]) -> Callable[[], None]:
        """Calls `callback` with every event of the client; returns what stops that. It must not block. An exception in it is logged."""
        self._event_callbacks.append(callback)
        return lambda: self._event_callbacks.remove(callback) if callback in self._event_callbacks else None

    # What subscriptions call.

    def _update(self, pattern: str, policy: Policy | None, max_rate: float | None) -> None:
        check_policy(policy)
        check_rate(max_rate)
        self._session.update(pattern, policy, max_rate)
        self._pump()

    def _unsubscribe(self, pattern: str) -> None:
        self._session.unsubscribe(pattern)
        self._pump()

    def _handle_room(self) -> None:
        self._room.set()

    @contextmanager
    def _answer_awaited(self) -> Iterator[None]:
        """While the application awaits an answer, the client reads on even if subscriptions are full: the answer is behind ticks."""
        self._answers_awaited += 1
        self._room.set()
        try:
            yield
        finally:
            self._answers_awaited -= 1

    def _raise_if_closed(self) -> None:
        if self.state is ClientState.DISCONNECTED:
            raise ClosedError(self.code, self.reason)

    @property
    def _has_ended(self) -> bool:
        """Whether no events follow: the client is closed, also for good by the server. One that has not connected yet has not ended."""
        return self._change.state is ClientState.DISCONNECTED and self._change is not _NOT_CONNECTED

    @property
    def _end_error(self) -> ClosedError | None:
        """What iterators raise at the end of the client; `None` if the application has closed it."""
        return None if self.code == CLOSE_NORMAL else ClosedError(self.code, self.reason)

    # Driving the session.

    def _pump(self) -> None:
        """Does what the session asks for, hands out its events, and arms its timer."""
        while (action := self._session.poll_action()) is not None:
            match action:
                case Send(message=message, is_optional=is_optional):
                    if self._transport is not None:
                        is_busy = self._transport.output_bytes > OUTPUT_BYTES_MAX
                        if not (is_optional and is_busy):
                            self._transport.send(message)
                case Dial(url=url, protocols=protocols):
                    handlers = Handlers(self._handle_open, self._handle_message, self._handle_closed, self._wait_for_room)
                    self._transport = Transport(url, protocols, self._transport_options, handlers)
                    self._keep(self._transport.task)
                case HangUp(code=code):
                    if self._transport is not None:
                        self._transport.hang_up(code)
                        self._transport = None
                case AskToken(why=why):
                    # One that has not answered in time is not waited for any more.
                    before = self._asking
                    self._asking = asyncio.get_running_loop().create_task(self._ask_token(why), name="token")
                    if before is not None:
                        before.cancel()
                    self._asking.add_done_callback(self._handle_asked)
                    self._keep(self._asking)
                case Save(positions=positions):
                    if self._saver is not None and (saving := self._saver.save(positions)) is not None:
                        self._keep(saving)
        while (polled := self._session.poll_event()) is not None:
            self._dispatch(*polled)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at_ns = self._session.poll_timeout()
        if at_ns is not None:
            delay_s = max(at_ns - time.monotonic_ns(), 0) / 1e9
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._handle_timeout)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the client failed", exc_info=error)

    def _dispatch(self, on: str | None, event: Event) -> None:
        if on is not None and not isinstance(event, ErrorEvent):
            subscription = self._subscriptions.get(on)
            if isinstance(event, SubscriptionChanged) and event.state is SubscriptionState.UNSUBSCRIBED:
                # Before its callbacks: one of them may subscribe to the pattern again.
                self._subscriptions.pop(on, None)
                if subscription is not None and self._saver is not None:
                    self._saver.handle_ended(subscription)
            if subscription is not None:
                # The session gives subscriptions nothing else.
                subscription._handle(event)  # type: ignore[arg-type]
            return
        match event:
            case Published(handle=handle):
                answer = self._publishes.pop(handle, None)
                if answer is not None and not answer.done():
                    answer.set_result(PublishResult(event.topic, event.epoch, event.sequence, event.duplicate))
                return
            case PublishFailed(handle=handle):
                answer = self._publishes.pop(handle, None)
                if answer is not None and not answer.done():
                    answer.set_exception(_publish_error(event))
                return
            case StateChanged():
                self._handle_state(event)
            case ErrorEvent(code=code, reason=reason):
                logger.warning("%s%s (code %d)", f"{on}: " if on else "", reason, code)
        for callback in self._event_callbacks:
            try:
                callback(event)
            except Exception:
                logger.exception("a callback of the client failed")

    def _handle_state(self, change: StateChanged) -> None:
        self._change = change
        self._changed.set()
        if change.state is ClientState.CONNECTING and change.retry_in_ms is not None:
            why = change.reason or "no reason given"
            logger.warning("disconnected: %s (code %d); next attempt in %d ms", why, change.code, change.retry_in_ms)
        elif change.state is ClientState.DISCONNECTED:
            for subscription in self._subscriptions.values():
                subscription._end(self._end_error)

    def _handle_open(self, protocol: str | None) -> None:
        self._session.handle_open(protocol, time.monotonic_ns())
        self._pump()

    def _handle_message(self, message: str | bytes) -> None:
        self._session.handle_message(message, time.monotonic_ns(), time.time_ns())
        self._pump()

    def _handle_closed(self, code: int, reason: str, after_ms: int) -> None:
        self._transport = None
        self._session.handle_closed(code, reason, time.monotonic_ns(), after_ms)
        self._pump()

    def _handle_timeout(self) -> None:
        self._timer = None
        if self._is_paused:
            # The silence is the application's own.
            self._session.handle_paused()
            self._warn_paused()
        self._session.handle_timeout(time.monotonic_ns())
        self._pump()

    @property
    def _is_paused(self) -> bool:
        """Whether the socket is not read, because the application is too slow."""
        return self._answers_awaited == 0 and any(each._is_full for each in self._subscriptions.values())

    def _warn_paused(self) -> None:
        """Says which subscription is in the way: timers are rare while nothing is read."""
        for pattern, subscription in self._subscriptions.items():
            if subscription._is_full:
                unread = subscription._unread
                logger.warning("%s has %d unread events, so nothing is read: read it or unsubscribe", pattern, unread)

    async def _wait_for_room(self) -> None:
        while self._is_paused:
            self._room.clear()
            await self._room.wait()

    async def _ask_token(self, why: Literal["connect", "refresh"]) -> None:
        if self._get_token is None:
            return
        try:
            token = await self._get_token(why)
            check_token(token)
        except Exception as error:
            if asyncio.current_task() is not self._asking:
                return
            self._session.handle_token_failed(str(error) or type(error).__name__, time.monotonic_ns())
        else:
            self._session.handle_token(token, time.monotonic_ns())
        self._pump()

    def _handle_asked(self, asking: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step does nothing, and the session would wait for its answer for ever.
        if asking.cancelled() and asking is self._asking:
            self._session.handle_token_failed("get_token was cancelled", time.monotonic_ns())
            self._pump()


def _publish_error(failed: PublishFailed) -> Exception:
    match failed.outcome:
        case Outcome.REFUSED:
            return RefusedError(failed.code, failed.reason)
        case Outcome.NOT_SENT:
            return NotPublishedError(failed.reason, failed.code)
        case Outcome.UNKNOWN:
            # A lost connection has a code.
            return UnacknowledgedError(failed.reason) if failed.code else PublishTimeoutError(failed.reason)
