"""One WebSocket, driven by two tasks: one reads, one writes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ssl import SSLContext

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from .close_codes import CLOSE_CUT, NOT_ADMITTED, REFUSED_HANDSHAKES

# Wait for the closing handshake. tickcast waits a second for its part of it.
_CLOSE_TIMEOUT_S = 1.0
_HANG_UP_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Options of every WebSocket of a client."""

    headers: dict[str, str]
    ssl: SSLContext | None
    message_bytes_max: int
    user_agent: str


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the transport reports. None is called after `hang_up`."""

    open: Callable[[str | None], None]
    message: Callable[[str | bytes], None]
    closed: Callable[[int, str, int], None]
    """Code, reason, and the delay that the server asks for, in milliseconds."""
    room: Callable[[], Awaitable[None]]
    """Waits until another message may be read."""


class Transport:
    """A WebSocket from its handshake to its end."""

    def __init__(self, url: str, protocols: tuple[str, ...], options: TransportOptions, handlers: Handlers) -> None:
        self._url = url
        self._protocols = [Subprotocol(protocol) for protocol in protocols]
        self._options = options
        self._handlers: Handlers | None = handlers
        self._output: deque[str | bytes] = deque()
        self._wake = asyncio.Event()
        self._hang_up_code: int | None = None
        self._is_open = False
        self.output_bytes = 0
        """Bytes (of text: characters) that wait for the socket."""
        self.task = asyncio.get_running_loop().create_task(self._run())

    def send(self, message: str | bytes) -> None:
        """Sends a message, after those before it."""
        self._output.append(message)
        self.output_bytes += len(message)
        self._wake.set()

    def hang_up(self, code: int) -> None:
        """Sends what waits, then closes the WebSocket; abandons one that is not open. Nothing is reported any more.

        `task` ends soon, even if the peer is silent or does not read.
        """
        self._handlers = None
        self._hang_up_code = code
        if self._is_open:
            self._wake.set()
            asyncio.get_running_loop().call_later(_HANG_UP_TIMEOUT_S, self.task.cancel)
        else:
            self.task.cancel()

    async def _run(self) -> None:
        try:
            await self._connect()
        except Exception as error:
            # Not one of the network's: without its end, the session would wait for ever.
            self._closed(CLOSE_CUT, f"the client has failed: {error or type(error).__name__}")
            raise

    async def _connect(self) -> None:
        try:
            socket = await self._open()
        except InvalidStatus as refusal:
            status = refusal.response.status_code
            code = REFUSED_HANDSHAKES.get(status, CLOSE_CUT)
            after = refusal.response.headers.get("Retry-After", "") if code == NOT_ADMITTED else ""
            after_ms = int(after) * 1_000 if after.isascii() and after.isdigit() and len(after) < 10 else 0
            self._closed(code, f"the server answered with status {status}", after_ms)
            return
        except (OSError, WebSocketException, EOFError, TimeoutError, asyncio.TimeoutError) as error:
            self._closed(CLOSE_CUT, f"cannot connect to {self._url}: {error or type(error).__name__}")
            return
        self._is_open = True
        await self._serve(socket)

    async def _open(self) -> ClientConnection:
        return await connect(
            self._url,
            subprotocols=self._protocols,
            additional_headers=self._options.headers,
            ssl=self._options.ssl,
            user_agent_header=self._options.user_agent,
            max_size=self._options.message_bytes_max,
            # Offers no compression, so the server selects none. The session has its own pings and time-outs.
            compression=None,
            ping_interval=None,
            open_timeout=None,
            close_timeout=_CLOSE_TIMEOUT_S,
        )

    async def _serve(self, socket: ClientConnection) -> None:
        writer = asyncio.ensure_future(self._write(socket))
        reader = asyncio.ensure_future(self._read(socket))
        try:
            await asyncio.wait([writer, reader], return_when=asyncio.FIRST_COMPLETED)
            if self._hang_up_code is None:
                # A failed write: the reader first has what the server sent before.
                await reader
        finally:
            writer.cancel()
            reader.cancel()
            # Neither the closing handshake nor the reader of a paused socket waits for a silent peer.
            socket.transport.abort()

    async def _read(self, socket: ClientConnection) -> None:
        if self._handlers is not None:
            self._handlers.open(socket.subprotocol)
        try:
            while (handlers := self._handlers) is not None:
                message = await socket.recv()
                if self._handlers is not None:
                    handlers.message(message)
                    await handlers.room()
        except ConnectionClosed as closed:
            # Without a frame of the server, one of this side says what the server did wrong, such as a message too long.
            frame = closed.rcvd or closed.sent
            if frame is None:
                self._closed(CLOSE_CUT, "the connection was cut")
            else:
                self._closed(frame.code, frame.reason)

    async def _write(self, socket: ClientConnection) -> None:
        try:
            while True:
                while self._output:
                    message = self._output.popleft()
                    await socket.send(message)
                    self.output_bytes -= len(message)
                if self._hang_up_code is not None:
                    await socket.close(self._hang_up_code)
                    return
                self._wake.clear()
                await self._wake.wait()
        except ConnectionClosed:
            return

    def _closed(self, code: int, reason: str, after_ms: int = 0) -> None:
        handlers, self._handlers = self._handlers, None
        if handlers is not None:
            handlers.closed(code, reason, after_ms)
