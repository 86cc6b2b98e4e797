"""What the server says about topics, turned into the events of the subscriptions that match them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .actions import Outbox
from .clock import ClockEstimate
from .events import Conflated, Gap, Recovered, Stale
from .messages import RecoveredMessage, Skipped, StaleMessage, TopicAnnounced
from .positions import Positions
from .subscriptions import SubscriptionRecord, Subscriptions
from .tick import Position, Tick
from .topics import OpenRange, Topic, Topics


class TopicDelivery:
    """Ticks and announcements of one connection at a time. They raise `ProtocolError` for a topic that was not announced."""

    def __init__(self, subscriptions: Subscriptions, positions: Positions, outbox: Outbox) -> None:
        self._subscriptions = subscriptions
        self._positions = positions
        self._outbox = outbox
        self._clock = ClockEstimate()
        self.topics = Topics()
        self.has_moved = False
        """Whether a position has changed; whoever saves them resets it."""

    def handle_dial(self, clock: ClockEstimate) -> None:
        """Starts over for a new connection, with its clock estimate."""
        self.topics = Topics()
        self._clock = clock

    def handle_sent(self, record: SubscriptionRecord, positions: Mapping[str, Position], has_snapshot: bool) -> None:
        """A subscription was sent that resumes from these positions, or from a snapshot in their place."""
        for topic, position in positions.items():
            if has_snapshot:
                self.topics.expect_snapshot(topic, position, is_gap=not record.conflates)
            else:
                self.topics.request(topic, position)

    def handle_refused(self, record: SubscriptionRecord) -> None:
        """A subscription was refused. Overlapping ones were sent without its positions, and start elsewhere."""
        for topic, position in self._subscriptions.left_by(record, self._positions).items():
            # One that is announced has been received by another subscription before.
            if self.topics.named(topic) is None:
                self.topics.leave(topic, position)

    def handle_tick(self, tick: Tick, wall_ns: int) -> None:
        """A tick has arrived at `wall_ns`."""
        topic = self.topics.of(tick.topic, tick.topic_id)
        if tick.sequence <= topic.repeated_to and not tick.snapshot:
            return
        skipped = topic.advance(tick)
        if skipped is not None:
            self._announce(topic, skipped, tick.sequence)
        self._move(topic, tick.sequence)
        emit = self._outbox.emit
        for record in self._subscriptions.matching(topic.name):
            emit(tick, record.pattern)
        if not tick.snapshot:
            self._clock.handle_tick(wall_ns - (tick.ingest_time_ns or tick.time_ns))

    def handle(self, message: TopicAnnounced | Skipped | RecoveredMessage | StaleMessage) -> None:
        """Handles what is not a tick."""
        match message:
            case TopicAnnounced():
                answer = self.topics.announce(message)
                if answer is not None:
                    self._recovered(answer)
            case RecoveredMessage():
                self.topics.recover(message)
                self._recovered(message)
            case Skipped():
                topic = self.topics.of(message.topic, message.topic_id)
                if message.from_sequence <= topic.repeated_to:
                    first = topic.repeated_to + 1
                    if message.to_sequence <= first:
                        return
                    # In a log, sequences are sparse: the rest may span many more numbers than ticks.
                    count = min(message.count, message.to_sequence - first)
                    message = replace(message, from_sequence=first, count=count)
                before = topic.skip(message)
                if before is not None:
                    self._announce(topic, before, message.from_sequence)
                self._skipped(topic, message.is_gap, message.from_sequence, message.to_sequence, message.count)
            case StaleMessage():
                topic = self.topics.of(message.topic, message.topic_id)
                for record in self._subscriptions.matching(topic.name):
                    self._outbox.emit(Stale(topic.name, message.stale, message.since_ns), record.pattern)

    def _announce(self, topic: Topic, opened: OpenRange, end: int) -> None:
        """Announces a range that the server could not: it did not know the client's position, or could not recover it."""
        self._skipped(topic, opened.is_gap, opened.from_sequence, end, end - opened.from_sequence)

    def _skipped(self, topic: Topic, is_gap: bool, first: int, end: int, count: int) -> None:
        self._move(topic, end - 1)
        event = (Gap if is_gap else Conflated)(topic.name, topic.epoch, first, end, count)
        for record in self._subscriptions.matching(topic.name):
            self._outbox.emit(event, record.pattern)

    def _recovered(self, answer: RecoveredMessage) -> None:
        now = Position(answer.epoch, answer.sequence)
        self._positions.handle_recovered(answer.topic, not answer.is_gone, now, answer.recovered)
        self.has_moved = self.has_moved or not answer.recovered
        event = Recovered(answer.topic, answer.epoch, answer.sequence, answer.recovered, answer.reason)
        for record in self._subscriptions.matching(answer.topic):
            self._outbox.emit(event, record.pattern)

    def _move(self, topic: Topic, sequence: int) -> None:
        if self._subscriptions.matching(topic.name):
            self._positions.advance(topic.name, topic.epoch, sequence)
            self.has_moved = True
