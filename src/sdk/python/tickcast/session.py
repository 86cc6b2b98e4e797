"""The protocol of a client that reconnects, without a socket, a clock or a random source.

```text
      connect, subscribe, publish, ...              events
                    |                                 ^
                    v                                 |
              +-------------------------------------------+
              |                  Session                  |
              +-------------------------------------------+
                    |                                 ^
                    v                                 |
     poll_action() -> Dial, Send, ...      handle_open, handle_message, handle_closed,
     poll_timeout() -> deadline            handle_token, handle_timeout
```

Every input takes the time. After each, the driver takes all actions and events, and arms one timer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .actions import Action, Dial, HangUp, Outbox, Save
from .backoff import Backoff
from .checks import check_message_id, check_name, checked_positions
from .close_codes import (
    CLOSE_CUT,
    CLOSE_NORMAL,
    CLOSE_PROTOCOL,
    ERROR_RATE_LIMITED,
    HANG_UP_MALFORMED,
    HANG_UP_NO_WELCOME,
    HANG_UP_SILENT,
    TOKEN_EXPIRED,
    delay_asked_ms,
    may_reconnect,
)
from .connection import Connection, Pending
from .delivery import TopicDelivery
from .errors import ProtocolError, RequestError
from .events import (
    ClientState,
    ErrorEvent,
    Event,
    Outcome,
    SourceChanged,
    StateChanged,
    SubscriptionChanged,
    SubscriptionState,
    TokenExpires,
)
from .limits import (
    ASLEEP_MS,
    PING_INTERVAL_MS,
    PUBLISH_TIMEOUT_MS,
    RECONNECT_STABLE_MS,
    SAVE_DELAY_MS,
    WELCOME_TIMEOUT_MS,
)
from .messages import (
    Closing,
    ErrorMessage,
    Expires,
    Moment,
    Ping,
    Policy,
    Pong,
    Publish,
    PublishedMessage,
    RecoveredMessage,
    ServerMessage,
    Skipped,
    StaleMessage,
    Start,
    Subscribed,
    TopicAnnounced,
    Unsubscribed,
    Welcome,
)
from .options import SessionOptions
from .positions import Positions
from .publishes import Publishes
from .subscriptions import SubscriptionRecord, Subscriptions
from .tick import Position, Tick
from .timers import Timers
from .tokens import Tokens

MS_NS = 1_000_000


class Session:
    """A client's state machine. See the module for how to drive it. Not safe for several threads.

    Times are nanoseconds: `now_ns` of a monotonic clock, `wall_ns` since 1970.
    """

    def __init__(self, options: SessionOptions, random: Callable[[], float]) -> None:
        """`random` returns numbers in [0, 1), for the delays."""
        self._options = options
        self._random = random
        self._outbox = Outbox()
        self._timers = Timers()
        self._backoff = Backoff(random)
        self._tokens = Tokens(options.token, options.asks_token, self._outbox, self._timers, random)
        self._state = ClientState.DISCONNECTED
        self._connection: Connection | None = None
        """The connection, from the dial on."""
        self._subscriptions = Subscriptions()
        self._positions = Positions(options.positions)
        self._publishes = Publishes(options.offline_queue_max, self._outbox, self._timers)
        self._delivery = TopicDelivery(self._subscriptions, self._positions, self._outbox)
        self._is_waiting_for_token = False
        """Whether an attempt waits for the application's token."""
        self._is_unsaved = False
        """Whether positions have changed since they were saved. There is a timer then."""

    # What the application asks for.

    @property
    def state(self) -> ClientState:
        """The client's state."""
        return self._state

    @property
    def connection(self) -> Connection | None:
        """The connection, if the server has welcomed it."""
        return self._connection if self._state is ClientState.CONNECTED else None

    def subscription_state(self, pattern: str) -> SubscriptionState:
        """The state of a pattern's subscription."""
        record = self._subscriptions.get(pattern)
        return SubscriptionState.UNSUBSCRIBED if record is None else record.state

    def positions(self) -> dict[str, Position]:
        """A copy of all positions, as of the events so far."""
        return self._positions.copy()

    def take_left_positions(self) -> dict[str, Position]:
        """The positions forgotten since the last call, because the subscriptions of their topics have ended."""
        return self._positions.take_left()

    def load_positions(self, positions: Mapping[str, Position]) -> None:
        """Adds positions that an earlier client saved, of topics without one: subscriptions made from now on resume there."""
        for topic, position in positions.items():
            if self._positions.get(topic) is None:
                self._positions.advance(topic, position.epoch, position.sequence)

    def connect(self, now_ns: int) -> None:
        """Starts to connect, and keeps trying. Does nothing unless disconnected."""
        if self._state is ClientState.DISCONNECTED:
            self._backoff.reset()
            self._set_state(ClientState.CONNECTING, 0, "")
            self._dial(now_ns)

    def disconnect(self, now_ns: int) -> None:
        """Closes the connection and makes no further attempts."""
        if self._state is not ClientState.DISCONNECTED:
            if self._connection is not None:
                self._outbox.act(HangUp(CLOSE_NORMAL))
            self._lost(CLOSE_NORMAL, "disconnected by the application", now_ns, is_final=True)

    def subscribe(
        self,
        pattern: str,
        since: Start = "live",
        policy: Policy | None = None,
        max_rate: float | None = None,
    ) -> None:
        """Subscribes to a pattern on this and every later connection.

        Raises `RequestError` if the pattern has a subscription already, if there are too many, or for an invalid pattern or position.
        """
        check_name(pattern)
        positions = checked_positions(since) if isinstance(since, Mapping) else {}
        record = SubscriptionRecord(pattern, since, policy, max_rate, self._random)
        self._subscriptions.add(record)
        # A position that this client has reached itself is newer.
        self.load_positions(positions)
        self._set_subscription(record, SubscriptionState.SUBSCRIBING, 0, "")
        if self.connection is not None:
            self._send_subscription(self.connection, record, self._subscriptions.positions_of(record, self._positions))

    def unsubscribe(self, pattern: str) -> None:
        """Ends a subscription. Raises `RequestError` if the pattern has none."""
        record = self._record(pattern)
        self._timers.cancel(("subscribe", pattern))
        if self.connection is not None and record.is_sent:
            self.connection.unsubscribe(pattern)
        self._subscriptions.remove(record, self._positions)
        self._set_subscription(record, SubscriptionState.UNSUBSCRIBED, 0, "")

    def update(self, pattern: str, policy: Policy | None, max_rate: float | None) -> None:
        """Replaces policy and rate of a subscription. Raises `RequestError` if the pattern has none."""
        record = self._record(pattern)
        if self.connection is not None and record.is_sent:
            self.connection.update(record, policy, max_rate)
        record.policy, record.max_rate = policy, max_rate

    def delivery(self, pattern: str) -> tuple[Policy | None, float | None]:
        """Policy and rate of a subscription. Raises `RequestError` if the pattern has none."""
        record = self._record(pattern)
        return record.policy, record.max_rate

    def publish(
        self,
        topic: str,
        payload: bytes,
        now_ns: int,
        *,
        is_json: bool,
        key: int = 0,
        schema: int = 0,
        time_ns: int = 0,
        message_id: str = "",
        timeout_ms: float = PUBLISH_TIMEOUT_MS,
    ) -> int:
        """Publishes a tick, at once or on the next connection; returns its handle.

        Exactly one event with that handle follows, `Published` or `PublishFailed`; at once if it cannot be sent. With a message id, a
        publish whose answer was lost is sent again on the next connection to the same server, which publishes it once. Raises
        `RequestError` for an invalid topic or message id.
        """
        check_name(topic)
        check_message_id(message_id)
        publish = Publish(0, topic, payload, is_json, time_ns, schema, key, message_id)
        handle = self._publishes.submit(now_ns + round(timeout_ms * MS_NS))
        if self._state is ClientState.DISCONNECTED:
            self._publishes.fail(handle, Outcome.NOT_SENT, 0, "the client is disconnected")
        elif self.connection is not None:
            self._publishes.send(self.connection, handle, publish, now_ns)
        else:
            self._publishes.wait(handle, publish)
        return handle

    def withdraw(self, handle: int) -> None:
        """Gives up a publish: one that waits is not sent, and no event follows. One in flight is not sent again."""
        self._publishes.withdraw(handle)

    def set_token(self, token: str) -> None:
        """Replaces the token, on the open connection too."""
        self._tokens.replace(token)
        self._refresh()

    def _refresh(self) -> None:
        """Sends the token on the open connection, if there are both."""
        connection = self.connection
        if connection is not None and (token := self._tokens.use()) is not None:
            connection.refresh(token)

    # What the driver reports.

    def handle_open(self, protocol: str | None, now_ns: int) -> None:
        """The WebSocket is open, with this subprotocol."""
        if self._connection is None:
            return
        codec = self._options.codec
        if protocol != codec.subprotocol:
            self._malformed(f"the server chose the subprotocol {protocol}; check that it is a tickcast server", now_ns)
            return
        self._connection.hello(self._options.name, self._tokens.use(), codec.features)

    def handle_message(self, message: str | bytes, now_ns: int, wall_ns: int) -> None:
        """A message has arrived."""
        connection = self._connection
        if connection is None:
            return
        connection.is_silent = False
        pinged: Ping | None = None
        try:
            for each in self._options.codec.decode(message):
                if isinstance(each, Tick):
                    self._delivery.handle_tick(each, wall_ns)
                elif isinstance(each, Ping):
                    pinged = each
                else:
                    self._answer(connection, each, now_ns)
                if self._connection is not connection:
                    # An answer has ended it.
                    return
        except ProtocolError as error:
            self._malformed(str(error), now_ns)
        else:
            if pinged is not None:
                # One answer a message: a message has room for many more pings than a server needs.
                connection.pong(pinged.token)
        if self._delivery.has_moved:
            self._save_later(now_ns)

    def handle_closed(self, code: int, reason: str, now_ns: int, reconnect_after_ms: int = 0) -> None:
        """The WebSocket was closed by the server or the network, or could not be opened: 1006.

        `reconnect_after_ms`: the delay that an HTTP answer asks for.
        """
        if self._connection is not None:
            if reconnect_after_ms and self._connection.closing is None:
                self._connection.closing = Closing(code, reason, reconnect_after_ms)
            self._lost(code, reason, now_ns)

    def handle_paused(self) -> None:
        """The application has not read the socket: silence says nothing about the server."""
        if self._connection is not None:
            self._connection.is_silent = False

    def handle_token(self, token: str, now_ns: int) -> None:
        """The application has a token."""
        if not token:
            self.handle_token_failed("it is empty", now_ns)
            return
        self._tokens.handle_token(token)
        self._refresh()
        if self._is_waiting_for_token:
            self._dial(now_ns)

    def handle_token_failed(self, reason: str, now_ns: int) -> None:
        """The application has no token. Means nothing if it was not asked, or has not answered in time."""
        if not self._tokens.is_asking:
            return
        if self._state is ClientState.DISCONNECTED:
            self._tokens.handle_unwanted()
            return
        self._no_token(reason, now_ns)

    def handle_timeout(self, now_ns: int) -> None:
        """Runs the timers that are due."""
        while (due := self._timers.pop(now_ns)) is not None:
            key, at_ns = due
            match key:
                case "retry":
                    self._dial(now_ns)
                case "welcome":
                    self._hang_up(HANG_UP_NO_WELCOME, CLOSE_CUT, "no welcome in time", now_ns)
                case "ping":
                    self._ping_due(at_ns, now_ns)
                case "token":
                    self._token_due(now_ns)
                case "token answer":
                    self.handle_token_failed("get_token has not answered in time", now_ns)
                case "save":
                    self._save()
                case ("publish", int(handle)):
                    self._publishes.handle_timeout(handle)
                    self._send_waiting(now_ns)
                case ("subscribe", str(pattern)):
                    self._subscribe_again(pattern)

    # What the driver takes.

    def poll_action(self) -> Action | None:
        """The next action; `None` if there is none."""
        return self._outbox.actions.popleft() if self._outbox.actions else None

    def poll_event(self) -> tuple[str | None, Event] | None:
        """The next event, with the pattern of its subscription if it has one."""
        return self._outbox.events.popleft() if self._outbox.events else None

    def poll_timeout(self) -> int | None:
        """When to call `handle_timeout`, on the monotonic clock; `None`: not until something else happens."""
        return self._timers.next_ns()

    # Answers of the server.

    def _answer(self, connection: Connection, message: ServerMessage, now_ns: int) -> None:
        match message:
            case TopicAnnounced() | Skipped() | RecoveredMessage() | StaleMessage():
                self._delivery.handle(message)
            case PublishedMessage():
                self._publishes.handle_published(message)
                self._send_waiting(now_ns)
            case Pong(token=token):
                latency = connection.handle_pong(token, now_ns)
                if latency is not None:
                    self._outbox.emit(latency)
            case Welcome():
                self._welcomed(connection, message, now_ns)
            case Subscribed(request=request, since_us=since_us):
                epoch = 0 if connection.welcome is None else connection.welcome.epoch
                self._acknowledged(connection.pending.pop(request, None), Moment(epoch, since_us))
            case Unsubscribed(request=request):
                self._unsubscribed(connection, message)
            case ErrorMessage():
                self._refused(connection, message, now_ns)
            case Closing():
                connection.closing = message
            case Expires(request=request, expires_in_s=expires_in_s):
                self._outbox.emit(TokenExpires(expires_in_s))
                connection.pending.pop(request, None)
                self._tokens.handle_expires(expires_in_s, now_ns)
                if request == 0:
                    self._tokens.refresh(now_ns)
            case SourceChanged():
                self._outbox.emit(message)

    def _welcomed(self, connection: Connection, welcome: Welcome, now_ns: int) -> None:
        connection.pending.pop(welcome.request, None)
        if connection.welcome is not None:
            return
        connection.handle_welcome(welcome, now_ns)
        self._timers.cancel("welcome")
        self._set_state(ClientState.CONNECTED, 0, "")
        self._ping(now_ns)
        if self._tokens.unused is not None:
            self._refresh()
        for record, positions in self._subscriptions.to_resume(self._positions):
            self._send_subscription(connection, record, positions)
        self._publishes.handle_welcome(welcome.epoch)
        self._send_waiting(now_ns)

    def _send_waiting(self, now_ns: int) -> None:
        """Sends publishes that wait, as far as more may be in flight."""
        if self.connection is not None:
            self._publishes.send_waiting(self.connection, now_ns)

    def _acknowledged(self, pending: Pending | None, moment: Moment) -> None:
        """A subscription or an update of one is live. The record of one that has ended since is not in use any more."""
        match pending:
            case ("subscribe", record) if self._subscriptions.get(record.pattern) is record:
                record.acknowledged = True
                if record.starts_live and moment.since_us:
                    record.live_since = moment
                record.backoff.reset()
                self._set_subscription(record, SubscriptionState.SUBSCRIBED, 0, "")
            case ("update", record, delivery):
                record.confirmed = delivery

    def _unsubscribed(self, connection: Connection, message: Unsubscribed) -> None:
        self._delivery.topics.interrupt()
        if message.request:
            connection.pending.pop(message.request, None)
            return
        record = self._subscriptions.get(message.pattern)
        if record is not None and record.is_sent:
            self._end_subscription(record, message.code, message.text)

    def _refused(self, connection: Connection, error: ErrorMessage, now_ns: int) -> None:
        if self._publishes.handle_refused(error):
            self._send_waiting(now_ns)
            return
        match connection.pending.pop(error.request, None):
            case ("subscribe", record):
                if self._subscriptions.get(record.pattern) is not record:
                    return
                record.is_sent = False
                self._delivery.handle_refused(record)
                if error.code == ERROR_RATE_LIMITED:
                    retry_in_ms = record.backoff.next_ms()
                    self._timers.set(("subscribe", record.pattern), now_ns + retry_in_ms * MS_NS)
                    state = SubscriptionState.SUBSCRIBING
                    self._set_subscription(record, state, error.code, error.text, retry_in_ms)
                else:
                    self._end_subscription(record, error.code, error.text)
            case ("update", record, _) if not record.is_sent:
                pass  # Its subscription was refused before, for its rate: the next attempt carries the change.
            case ("update", record, delivery):
                if (record.policy, record.max_rate) == delivery:
                    record.policy, record.max_rate = record.confirmed
                self._outbox.emit(ErrorEvent(error.code, error.text), record.pattern)
            case ("refresh",):
                self._no_token(error.text, now_ns, error.code)
            case ("hello",):
                self._hang_up(HANG_UP_MALFORMED, error.code, error.text, now_ns)
            case _:
                self._outbox.emit(ErrorEvent(error.code, error.text))

    # Subscriptions.

    def _record(self, pattern: str) -> SubscriptionRecord:
        record = self._subscriptions.get(pattern)
        if record is None:
            raise RequestError(f"{pattern} is not subscribed")
        return record

    def _send_subscription(
        self, connection: Connection, record: SubscriptionRecord, positions: Mapping[str, Position]
    ) -> None:
        """Sends a subscription that resumes from these positions."""
        start = record.start(positions)
        if not connection.subscribe(record, start):
            start = "latest"
            connection.subscribe(record, start)
        self._delivery.handle_sent(record, positions, has_snapshot=start == "latest")

    def _subscribe_again(self, pattern: str) -> None:
        record = self._subscriptions.get(pattern)
        if record is not None and self.connection is not None:
            positions = self._subscriptions.positions_of(record, self._positions)
            self._send_subscription(self.connection, record, positions)

    def _end_subscription(self, record: SubscriptionRecord, code: int, reason: str) -> None:
        self._subscriptions.remove(record, self._positions)
        self._set_subscription(record, SubscriptionState.UNSUBSCRIBED, code, reason)

    # The connection.

    def _dial(self, now_ns: int) -> None:
        self._is_waiting_for_token = not self._tokens.ready(now_ns)
        if self._is_waiting_for_token:
            return
        self._tokens.use()
        self._connection = Connection(self._options.codec, self._outbox)
        self._delivery.handle_dial(self._connection.clock)
        self._timers.set("welcome", now_ns + WELCOME_TIMEOUT_MS * MS_NS)
        self._outbox.act(Dial(self._options.url, (self._options.codec.subprotocol,)))

    def _ping(self, now_ns: int) -> None:
        if self._connection is not None:
            self._connection.ping(now_ns)
            self._timers.set("ping", now_ns + PING_INTERVAL_MS * MS_NS)

    def _ping_due(self, at_ns: int, now_ns: int) -> None:
        if self._connection is None:
            return
        was_asleep = now_ns - at_ns > ASLEEP_MS * MS_NS
        if self._connection.is_silent and not was_asleep:
            self._hang_up(HANG_UP_SILENT, CLOSE_CUT, "nothing has arrived since the last ping", now_ns)
        else:
            self._ping(now_ns)

    def _token_due(self, now_ns: int) -> None:
        if self.connection is not None:
            self._tokens.refresh(now_ns)
        elif self._is_waiting_for_token:
            self._dial(now_ns)

    def _no_token(self, reason: str, now_ns: int, code: int = 0) -> None:
        self._outbox.emit(ErrorEvent(code, reason))
        if not self._tokens.can_ask:
            return
        retry_in_ms = self._tokens.handle_failed(now_ns)
        if self._is_waiting_for_token:
            self._set_state(ClientState.CONNECTING, code, reason, retry_in_ms)

    def _malformed(self, reason: str, now_ns: int) -> None:
        self._hang_up(HANG_UP_MALFORMED, CLOSE_PROTOCOL, reason, now_ns)

    def _hang_up(self, hang_up_code: int, code: int, reason: str, now_ns: int) -> None:
        self._outbox.act(HangUp(hang_up_code))
        if self._connection is not None:
            # The client has a reason of its own.
            self._connection.closing = None
        self._lost(code, reason, now_ns)

    def _lost(self, code: int, reason: str, now_ns: int, is_final: bool = False) -> None:
        """The connection is lost, or an attempt has failed, or the application ends both."""
        connection, self._connection = self._connection, None
        self._is_waiting_for_token = False
        after_ms = 0
        if connection is not None and connection.closing is not None and not is_final:
            code, reason = connection.closing.code, connection.closing.reason
            after_ms = connection.closing.reconnect_after_ms
        for timer in ("welcome", "ping", "retry"):
            self._timers.cancel(timer)
        self._tokens.handle_lost()
        self._subscriptions.handle_lost()
        lasted_ns = 0 if connection is None or connection.welcomed_ns is None else now_ns - connection.welcomed_ns
        if lasted_ns >= RECONNECT_STABLE_MS * MS_NS:
            self._backoff.reset()
        retries = not is_final and may_reconnect(code)
        if code == TOKEN_EXPIRED and retries:
            retries = self._tokens.reject()
        if retries:
            # The first attempt with another token needs no delay: nothing is wrong with the server.
            is_at_once = code == TOKEN_EXPIRED and self._backoff.attempts == 0
            if is_at_once:
                self._backoff.attempts = 1
            retry_in_ms = 0 if is_at_once else delay_asked_ms(code, after_ms) + self._backoff.next_ms()
            self._set_state(ClientState.CONNECTING, code, reason, retry_in_ms)
        else:
            self._set_state(ClientState.DISCONNECTED, code, reason)
        for record in self._subscriptions:
            self._timers.cancel(("subscribe", record.pattern))
            self._set_subscription(record, SubscriptionState.SUBSCRIBING, code, reason)
        self._publishes.handle_lost(code, reason, is_final=not retries)
        self._save()
        if retries:
            self._timers.set("retry", now_ns + retry_in_ms * MS_NS)

    def _set_state(self, state: ClientState, code: int, reason: str, retry_in_ms: int | None = None) -> None:
        self._state = state
        self._outbox.emit(StateChanged(state, code, reason, retry_in_ms))

    def _set_subscription(
        self,
        record: SubscriptionRecord,
        state: SubscriptionState,
        code: int,
        reason: str,
        retry_in_ms: int | None = None,
    ) -> None:
        record.state = state
        self._outbox.emit(SubscriptionChanged(state, code, reason, retry_in_ms), record.pattern)

    # Saving positions.

    def _save_later(self, now_ns: int) -> None:
        self._delivery.has_moved = False
        if self._options.saves_positions and not self._is_unsaved:
            self._is_unsaved = True
            self._timers.set("save", now_ns + SAVE_DELAY_MS * MS_NS)

    def _save(self) -> None:
        self._timers.cancel("save")
        if self._is_unsaved:
            self._is_unsaved = False
            self._outbox.act(Save(self._positions.copy()))
