"""Publishes without an answer: those that wait for a connection, and those in flight."""

from __future__ import annotations

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
        self._waiting: dict[int, Publish] = {}
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

    def submit(self, deadline_ns: int) -> int:
        """Takes a publish until a deadline; returns its handle. The caller sends it, lets it wait, or fails it."""
        self._last_handle += 1
        self._timers.set(("publish", self._last_handle), deadline_ns)
        return self._last_handle

    def wait(self, handle: int, publish: Publish) -> None:
        """Keeps a publish that has not been sent for the next connection, within the bounds."""
        queued_bytes = self._queued_bytes + len(publish.payload)
        if self._queued >= self._queued_max or queued_bytes > OFFLINE_QUEUE_BYTES_MAX:
            self.fail(handle, Outcome.NOT_SENT, 0, "too many publishes wait for a connection")
            return
        self._queued += 1
        self._queued_bytes = queued_bytes
        self._waiting[handle] = publish

    def send(self, connection: Connection, handle: int, publish: Publish, now_ns: int) -> None:
        """Sends a publish, if another one may be in flight and it fits into a message."""
        kept_bytes = len(publish.payload) if publish.message_id else 0
        if len(self._handles) >= UNACKNOWLEDGED_MAX or self._sent_bytes + kept_bytes > RETRIED_BYTES_MAX:
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
            self._sent_bytes += kept_bytes
            self._known_until_ns.setdefault(handle, now_ns + MESSAGE_ID_NS)
        self._handles[request] = handle
        self._requests[handle] = request

    def send_waiting(self, connection: Connection, epoch: int, now_ns: int) -> None:
        """Sends all that wait, to the server with this epoch. Fails those sent to another server, or too long ago."""
        is_same, self._epoch = epoch == self._epoch, epoch
        for handle, publish in self._take_waiting().items():
            known_until_ns = self._known_until_ns.get(handle)
            if known_until_ns is None or (is_same and now_ns < known_until_ns):
                self.send(connection, handle, publish, now_ns)
            else:
                self.fail(handle, Outcome.UNKNOWN, 0, "the server does not know its message id any more")

    def _take_waiting(self) -> dict[int, Publish]:
        """Empties the queue."""
        waiting, self._waiting, self._queued, self._queued_bytes = self._waiting, {}, 0, 0
        return waiting

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
        publish = self._waiting.pop(handle, None)
        if publish is not None:
            if handle not in self._known_until_ns:
                self._queued -= 1
                self._queued_bytes -= len(publish.payload)
            self.fail(handle, self._outcome(handle), 0, "no connection in time")
        elif (request := self._requests.get(handle)) is not None:
            self._answered(request)
            self.fail(handle, Outcome.UNKNOWN, 0, "no answer in time")

    def handle_lost(self, code: int, reason: str, is_final: bool) -> None:
        """The connection is lost: nobody knows what became of those in flight. If it is final, the others are not sent either."""
        in_flight, sent, self._sent, self._sent_bytes = list(self._requests), self._sent, {}, 0
        self._handles.clear()
        self._requests.clear()
        for handle in in_flight:
            publish = sent.get(handle)
            if publish is None:
                self.fail(handle, Outcome.UNKNOWN, code, reason)
            else:
                # It was within the bounds of those in flight, so it will be again.
                self._waiting[handle] = publish
        if is_final:
            for handle in self._take_waiting():
                self.fail(handle, self._outcome(handle), code, reason)

    def _answered(self, request: int) -> int | None:
        """Removes a publish in flight; returns its handle."""
        handle = self._handles.pop(request, None)
        if handle is not None:
            del self._requests[handle]
            sent = self._sent.pop(handle, None)
            self._sent_bytes -= 0 if sent is None else len(sent.payload)
        return handle
