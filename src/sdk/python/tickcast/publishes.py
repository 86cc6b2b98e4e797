"""Publishes without an answer: those that wait for a connection, and those in flight."""

from __future__ import annotations

from collections import OrderedDict

from .actions import Outbox
from .close_codes import ERROR_BAD_REQUEST, ERROR_TOO_LARGE
from .connection import Connection
from .events import Outcome, Published, PublishFailed
from .limits import MESSAGE_ID_NS, OFFLINE_QUEUE_BYTES_MAX, RETRIED_BYTES_MAX, UNACKNOWLEDGED_MAX
from .messages import ErrorMessage, Publish, PublishedMessage
from .timers import Timers


class Publishes:
    """Publishes by handle. Each gets exactly one event, `Published` or `PublishFailed`.

    Invariant: of those that have not been sent, at most `queued_max` wait, with `OFFLINE_QUEUE_BYTES_MAX` of payloads. At most
    `UNACKNOWLEDGED_MAX` are in flight, or wait to be sent again; of these, those with a message id have `RETRIED_BYTES_MAX` of
    payloads. A handle waits or is in flight, and has a timer. One with a message id whose answer was lost waits again: the server
    publishes it once.
    """

    def __init__(self, queued_max: int, outbox: Outbox, timers: Timers) -> None:
        self._queued_max = queued_max
        self._outbox = outbox
        self._timers = timers
        self._last_handle = 0
        # Not a dict: its first entry costs a pass over all that were removed before it.
        self._waiting: OrderedDict[int, Publish] = OrderedDict()
        """By handle, oldest first. Their requests have no number yet."""
        self._queued = 0
        """Those that wait and have not been sent."""
        self._queued_bytes = 0
        self._handles: dict[int, int] = {}
        """Handles of those in flight by request number of this connection."""
        self._requests: dict[int, int] = {}
        """The same the other way round, oldest first."""
        self._sent: dict[int, Publish] = {}
        """Publishes with a message id that are in flight, by handle."""
        self._sent_bytes = 0
        self._known_until_ns: dict[int, int] = {}
        """By handle of those that have been sent with a message id: until when that server knows it."""
        self._epoch = 0
        """Epoch of the server of the last connection."""
        self._is_same_server = False
        """Whether it is that of the connection before, and may know the message ids that were sent there."""

    def submit(self, deadline_ns: int) -> int:
        """Takes a publish until a deadline; returns its handle. The caller sends it, lets it wait, or fails it."""
        self._last_handle += 1
        self._timers.set(("publish", self._last_handle), deadline_ns)
        return self._last_handle

    def wait(self, handle: int, publish: Publish) -> None:
        """Keeps a publish that has not been sent until there is a connection with room for it, within the bounds."""
        queued_bytes = self._queued_bytes + len(publish.payload)
        if self._queued >= self._queued_max or queued_bytes > OFFLINE_QUEUE_BYTES_MAX:
            self.fail(handle, Outcome.NOT_SENT, 0, "too many publishes wait to be sent")
            return
        self._queued += 1
        self._queued_bytes = queued_bytes
        self._waiting[handle] = publish

    def send(self, connection: Connection, handle: int, publish: Publish, now_ns: int) -> None:
        """Sends a publish, if another one may be in flight and it fits into a message; else lets it wait. It does not overtake others."""
        if self._waiting or not self._has_room(publish):
            self.wait(handle, publish)
        else:
            self._send(connection, handle, publish, now_ns)

    def _has_room(self, publish: Publish) -> bool:
        """Whether another publish may be in flight."""
        kept_bytes = len(publish.payload) if publish.message_id else 0
        return len(self._handles) < UNACKNOWLEDGED_MAX and self._sent_bytes + kept_bytes <= RETRIED_BYTES_MAX

    def _send(self, connection: Connection, handle: int, publish: Publish, now_ns: int) -> None:
        if not self._has_room(publish):
            self.fail(handle, self._outcome(handle), 0, "too many publishes wait for their answers")
            return
        if publish.message_id and not connection.grants("message_ids"):
            # A server of version 0.1 would take the id of a native frame for a part of the payload.
            self.fail(handle, self._outcome(handle), ERROR_BAD_REQUEST, "the server does not recognise message ids")
            return
        request = connection.publish(publish)
        if request is None:
            reason = f"it does not fit into a message; the server accepts {connection.message_bytes_max} bytes"
            self.fail(handle, self._outcome(handle), ERROR_TOO_LARGE, reason)
            return
        if publish.message_id:
            self._sent[handle] = publish
            self._sent_bytes += len(publish.payload)
            self._known_until_ns.setdefault(handle, now_ns + MESSAGE_ID_NS)
        self._handles[request] = handle
        self._requests[handle] = request

    def handle_welcome(self, epoch: int) -> None:
        """A server with this epoch has welcomed the client."""
        self._is_same_server, self._epoch = epoch == self._epoch, epoch

    def send_waiting(self, connection: Connection, now_ns: int) -> None:
        """Sends those that wait, in order, as far as more may be in flight. Fails those sent to another server, or too long ago."""
        while self._waiting:
            handle, publish = next(iter(self._waiting.items()))
            known_until_ns = self._known_until_ns.get(handle)
            is_known = known_until_ns is None or (self._is_same_server and now_ns < known_until_ns)
            # With none in flight no answer would make room.
            if is_known and self._handles and not self._has_room(publish):
                return
            self._remove_waiting(handle)
            if is_known:
                self._send(connection, handle, publish, now_ns)
            else:
                self.fail(handle, Outcome.UNKNOWN, 0, "the server does not know its message id any more")

    def _remove_waiting(self, handle: int) -> Publish | None:
        """Removes a publish from the queue, if it waits there."""
        publish = self._waiting.pop(handle, None)
        if publish is not None and handle not in self._known_until_ns:
            self._queued -= 1
            self._queued_bytes -= len(publish.payload)
        return publish

    def withdraw(self, handle: int) -> None:
        """The application does not want an answer any more: what waits is not sent, and what is in flight is not sent again."""
        if self._remove_waiting(handle) is not None:
            self._timers.cancel(("publish", handle))
            self._known_until_ns.pop(handle, None)
        elif (sent := self._sent.pop(handle, None)) is not None:
            self._sent_bytes -= len(sent.payload)

    def fail(self, handle: int, outcome: Outcome, code: int, reason: str) -> None:
        """Reports that a publish has failed."""
        self._timers.cancel(("publish", handle))
        self._known_until_ns.pop(handle, None)
        self._outbox.emit(PublishFailed(handle, outcome, code, reason))

    def _outcome(self, handle: int) -> Outcome:
        """What is known of a publish that is not in flight."""
        return Outcome.UNKNOWN if handle in self._known_until_ns else Outcome.NOT_SENT

    def handle_published(self, message: PublishedMessage) -> None:
        """The server has sequenced a tick. An answer that is not awaited any more means nothing."""
        handle = self._answered(message.request)
        if handle is not None:
            self._timers.cancel(("publish", handle))
            self._known_until_ns.pop(handle, None)
            where = (message.topic, message.epoch, message.sequence)
            self._outbox.emit(Published(handle, *where, message.duplicate))

    def handle_refused(self, error: ErrorMessage) -> bool:
        """The server has refused a request; returns whether it was a publish."""
        handle = self._answered(error.request)
        if handle is not None:
            self.fail(handle, Outcome.REFUSED, error.code, error.text)
        return handle is not None

    def handle_timeout(self, handle: int) -> None:
        """A publish has waited for long enough."""
        if self._remove_waiting(handle) is not None:
            self.fail(handle, self._outcome(handle), 0, "it could not be sent in time")
        elif (request := self._requests.get(handle)) is not None:
            self._answered(request)
            self.fail(handle, Outcome.UNKNOWN, 0, "no answer in time")

    def handle_lost(self, code: int, reason: str, is_final: bool) -> None:
        """The connection is lost: nobody knows what became of those in flight. If it is final, the others are not sent either."""
        in_flight, sent, self._sent, self._sent_bytes = list(self._requests), self._sent, {}, 0
        resent: OrderedDict[int, Publish] = OrderedDict()
        self._handles.clear()
        self._requests.clear()
        for handle in in_flight:
            publish = sent.get(handle)
            if publish is None:
                self.fail(handle, Outcome.UNKNOWN, code, reason)
            else:
                # It was within the bounds of those in flight, so it will be again.
                resent[handle] = publish
        self._waiting = resent | self._waiting
        if is_final:
            for handle in list(self._waiting):
                self._remove_waiting(handle)
                self.fail(handle, self._outcome(handle), code, reason)

    def _answered(self, request: int) -> int | None:
        """Removes a publish in flight; returns its handle."""
        handle = self._handles.pop(request, None)
        if handle is not None:
            del self._requests[handle]
            sent = self._sent.pop(handle, None)
            self._sent_bytes -= 0 if sent is None else len(sent.payload)
        return handle
