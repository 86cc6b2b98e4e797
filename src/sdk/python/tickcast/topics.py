"""The topics of one connection, and the sequence accounting of each."""

from __future__ import annotations

from .errors import ProtocolError
from .limits import TOPICS_MAX
from .messages import RecoveredMessage, Skipped, TopicAnnounced
from .tick import Position, Tick


class OpenRange:
    """A skipped range without an end yet: it ends before the next tick."""

    __slots__ = ("is_gap", "from_sequence")

    def __init__(self, is_gap: bool, from_sequence: int) -> None:
        self.is_gap = is_gap
        self.from_sequence = from_sequence


class Topic:
    """What must come next in a topic.

    Invariant: `open_range` exists only until the first message of the topic that does not belong to a snapshot.
    """

    __slots__ = ("name", "topic_id", "epoch", "next_sequence", "open_range", "missed", "repeated_to")

    def __init__(self, name: str, topic_id: int, epoch: int) -> None:
        self.name = name
        self.topic_id = topic_id
        self.epoch = epoch
        self.next_sequence = 0
        """The next sequence, unless another one is announced; 0: any."""
        self.open_range: OpenRange | None = None
        """The position was not recovered: the ticks from here to the next one are skipped."""
        self.missed = 0
        """Ticks missed before an announcement, reported with the next tick."""
        self.repeated_to = 0
        """The server repeats ticks up to this sequence, which the client has had: it did not take the position."""

    def advance(self, tick: Tick) -> OpenRange | None:
        """Counts the next tick, and fills in what is known of it here. Returns a skipped range that ends before it."""
        sequence, snapshot = tick.sequence, tick.snapshot
        tick.topic, tick.topic_id, tick.epoch = self.name, self.topic_id, self.epoch
        missed, self.missed = self.missed, 0
        if self.next_sequence and not snapshot:
            missed += max(sequence - self.next_sequence, 0)
        tick.missed = missed
        skipped, opened = None, self.open_range
        if opened is not None:
            if (snapshot or not self.next_sequence) and sequence > opened.from_sequence:
                skipped = opened
            self.open_range = (
                OpenRange(opened.is_gap, max(opened.from_sequence, sequence + 1)) if snapshot else None
            )
        self.next_sequence = sequence + 1
        return skipped

    def skip(self, skipped: Skipped) -> OpenRange | None:
        """Counts an announced range. Returns an open range that ends before it. Raises `ProtocolError` if the range is empty."""
        first, end = skipped.from_sequence, skipped.to_sequence
        if not 1 <= first < end:
            raise ProtocolError(f"the server announced [{first}, {end}) of topic {self.name} as skipped; the range is empty")
        before, self.open_range = self.open_range, None
        if self.next_sequence:
            self.missed += max(first - self.next_sequence, 0)
            before = None
        self.next_sequence = end
        return before if before is not None and first > before.from_sequence else None

    def apply(self, requested: Position, answer: RecoveredMessage) -> None:
        """Applies the answer to a position, unless another subscription already delivers the topic."""
        if self.next_sequence:
            return
        if answer.recovered:
            # The server's epoch may stand for the topic's, so it does not matter here.
            self.next_sequence = requested.sequence + 1
        elif requested.epoch == answer.epoch:
            # Ahead of the topic: sequences beyond its last belonged to other ticks, or never existed.
            self.open_range = OpenRange(True, min(requested.sequence, answer.sequence) + 1)
        else:
            self.open_range = OpenRange(True, 1)


class Topics:
    """All topics of one connection, by name and by number. Bound: `TOPICS_MAX`, also for positions without an answer."""

    def __init__(self) -> None:
        self._by_name: dict[str, Topic] = {}
        self._by_id: dict[int, Topic] = {}
        self._requested: dict[str, Position] = {}
        """Positions sent to the server, until its answer."""
        self._answers: dict[str, tuple[Position, RecoveredMessage]] = {}
        """Answers about topics that are not announced yet."""
        self._expected: dict[str, tuple[Position, bool]] = {}
        """Positions not sent, because their subscription starts with the last values; and whether ticks are lost by that."""
        self._left: dict[str, Position] = {}
        """Positions that the server has not taken with their subscription, of topics that another subscription receives."""

    def request(self, topic: str, position: Position) -> None:
        """Records a position that the server will answer."""
        if len(self._requested) < TOPICS_MAX:
            self._requested[topic] = position
            self._left.pop(topic, None)

    def expect_snapshot(self, topic: str, position: Position, is_gap: bool) -> None:
        """Records a position that is not sent: the ticks after it, up to the snapshot, are conflated or lost."""
        if len(self._expected) < TOPICS_MAX:
            self._expected[topic] = (position, is_gap)
            self._left.pop(topic, None)

    def leave(self, topic: str, position: Position) -> None:
        """Records a position whose subscription was refused, while another one receives the topic from where it happens to start."""
        self._requested.pop(topic, None)
        self._expected.pop(topic, None)
        if len(self._left) < TOPICS_MAX:
            self._left[topic] = position

    def announce(self, announced: TopicAnnounced) -> RecoveredMessage | None:
        """Handles a topic's announcement. With another epoch the topic starts over.

        Returns the answer to the topic's position, if it was not sent and is not recovered.
        """
        known = self._by_name.get(announced.topic)
        if known is not None and (known.topic_id, known.epoch) == (announced.topic_id, announced.epoch):
            return None
        owner = self._by_id.get(announced.topic_id)
        if owner is not None and owner.name != announced.topic:
            raise ProtocolError(f"the server renamed topic {owner.name} to {announced.topic}")
        if known is not None:
            self._by_id.pop(known.topic_id, None)
        elif len(self._by_name) >= TOPICS_MAX:
            raise ProtocolError(f"the server announced more than {TOPICS_MAX} topics on one connection")
        topic = Topic(announced.topic, announced.topic_id, announced.epoch)
        self._by_name[topic.name] = self._by_id[topic.topic_id] = topic
        if (answered := self._answers.pop(topic.name, None)) is not None:
            topic.apply(*answered)
        left, expected = self._left.pop(topic.name, None), self._expected.pop(topic.name, None)
        if left is not None and left.epoch == topic.epoch:
            topic.repeated_to = left.sequence
            topic.open_range = OpenRange(True, left.sequence + 1)
            return None
        if left is not None:
            expected = (left, True)
        if expected is None:
            return None
        position, is_gap = expected
        if position.epoch != topic.epoch:
            return RecoveredMessage(topic.name, topic.topic_id, topic.epoch, 0, False, "epoch")
        topic.open_range = OpenRange(is_gap, position.sequence + 1)
        return RecoveredMessage(topic.name, topic.topic_id, topic.epoch, 0, False, "too_many") if is_gap else None

    def recover(self, answer: RecoveredMessage) -> None:
        """Handles the answer to a position."""
        requested = self._requested.pop(answer.topic, None) or Position(0, 0)
        topic = self._by_name.get(answer.topic)
        if topic is not None:
            topic.apply(requested, answer)
        elif not answer.is_gone:
            if len(self._answers) >= TOPICS_MAX:
                raise ProtocolError(f"the server recovered more than {TOPICS_MAX} topics on one connection")
            self._answers[answer.topic] = (requested, answer)

    def named(self, name: str) -> Topic | None:
        """The topic of a name, if it was announced."""
        return self._by_name.get(name)

    def of(self, name: str, topic_id: int) -> Topic:
        """The topic of a message: by name in JSON, by number in native frames. Raises `ProtocolError` if it is unknown."""
        topic = self._by_name.get(name) if name else self._by_id.get(topic_id)
        if topic is None:
            raise ProtocolError(f"the server sent a message about topic {name or topic_id}, which it had not announced")
        return topic

    def interrupt(self) -> None:
        """After a subscription ended, any topic may have paused, and only the server knows which."""
        for topic in self._by_name.values():
            topic.next_sequence, topic.open_range, topic.missed, topic.repeated_to = 0, None, 0, 0
