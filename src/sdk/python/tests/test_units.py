"""Parts that no transcript reaches: decoders under garbage, readers, views, timers, positions in a file."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from tickcast import (
    BookView,
    Conflated,
    FilePositionStore,
    Gap,
    KeyedView,
    Position,
    ProtocolError,
    Recovered,
    Tick,
    TickcastError,
)
from tickcast.actions import Send
from tickcast.errors import RequestError
from tickcast.events import Outcome, Published, PublishFailed
from tickcast.json_codec import JsonCodec
from tickcast.limits import UNACKNOWLEDGED_MAX
from tickcast.messages import Codec, Hello, Ping, Pong, Publish, Subscribe
from tickcast.native import NativeCodec
from tickcast.options import SessionOptions
from tickcast.patterns import Pattern, matches
from tickcast.reader import Reader
from tickcast.positions import Positions
from tickcast.session import Session
from tickcast.subscriptions import SubscriptionRecord, Subscriptions
from tickcast.timers import Timers


def tick(topic: str, sequence: int, data: Any = 0, *, epoch: int = 1, key: int = 0, snapshot: bool = False) -> Tick:
    made = Tick(
        topic=topic,
        topic_id=1,
        sequence=sequence,
        time_ns=0,
        ingest_time_ns=0,
        schema=0,
        key=key,
        snapshot=snapshot,
        is_json=True,
        data=data,
    )
    made.epoch = epoch
    return made


class Decoders(unittest.TestCase):
    def messages(self) -> list[tuple[Codec, str | bytes]]:
        native, text = NativeCodec(), JsonCodec()
        requests = [Hello(1, "app", ()), Publish(2, "a.b", b'{"p":1}', True, 5, 6, 7), Ping(9)]
        positions = Subscribe(3, "a.>", {"a.b": Position(10, 11)})
        found: list[tuple[Codec, str | bytes]] = [(native, native.encode(request)) for request in requests]
        found += [(native, message) for message in native.encode_subscribe(positions)]
        found += [
            (text, '{"topic":"a.x","seq":1,"ts":1,"key":7,"snapshot":true,"encoding":"base64","data":"AP8="}'),
            (text, '[{"op":"gap","topic":"a.x","from":1,"to":2,"count":1},{"op":"pong","token":1}]'),
            (text, '{"op":"subscribed","id":1,"pattern":"a","topics":[{"topic":"a","topic_id":1,"epoch":2}]}'),
        ]
        return found

    def test_garbage_is_a_protocol_error_and_nothing_else(self) -> None:
        chance = random.Random(7)
        for codec, message in self.messages():
            # As the server would send it: kinds of the server begin at 64.
            raw = bytearray(message.encode() if isinstance(message, str) else message)
            if isinstance(message, bytes):
                raw[8] = 64 + chance.randrange(16)
            for _ in range(300):
                changed = bytearray(raw)
                for _ in range(chance.randrange(1, 4)):
                    changed[chance.randrange(len(changed))] = chance.randrange(256)
                cut = bytes(changed[: chance.randrange(len(changed) + 1)])
                session = Session(SessionOptions("ws://host/ws", codec), lambda: 0.5)
                session.connect(0)
                session.handle_open(codec.subprotocol, 0)
                try:
                    codec.decode(cut if isinstance(message, bytes) else cut.decode(errors="replace"))
                except ProtocolError:
                    pass
                session.handle_message(cut if isinstance(message, bytes) else cut.decode(errors="replace"), 0, 0)

    def test_json_that_python_would_take_and_rfc_8259_does_not_is_refused(self) -> None:
        for data in ("NaN", "Infinity", "-Infinity", "[" * 100_000):
            with self.assertRaises(ProtocolError):
                JsonCodec().decode(f'{{"topic":"a","seq":1,"ts":1,"data":{data}}}')

    def test_numbers_that_do_not_fit_their_type_are_refused(self) -> None:
        too_large, codec = 2**64, JsonCodec()
        tick_fields = '"topic":"a","seq":1,"ts":1,"data":1'
        for message in (
            f'{{"topic":"a","seq":{too_large},"ts":1,"data":1}}',
            f'{{{tick_fields},"key":{too_large}}}',
            f'{{{tick_fields},"key":"{too_large}"}}',
            f'{{"op":"stale","topic":"a","stale":true,"since":{too_large}}}',
            f'{{"op":"expires","id":0,"expires_in":{2**32}}}',
        ):
            with self.assertRaises(ProtocolError, msg=message):
                codec.decode(message)
        (largest,) = codec.decode(f'{{{tick_fields},"key":"{too_large - 1}"}}')
        self.assertEqual(largest.key, too_large - 1)  # type: ignore[union-attr]

    def test_messages_of_the_other_type_are_refused(self) -> None:
        with self.assertRaises(ProtocolError):
            JsonCodec().decode(b"{}")
        with self.assertRaises(ProtocolError):
            NativeCodec().decode("{}")

    def test_many_positions_are_split_into_messages_of_64_kib(self) -> None:
        positions = {f"topic.{number:0200}": Position(1, number) for number in range(1_000)}
        messages = NativeCodec().encode_subscribe(Subscribe(1, ">", positions))
        self.assertGreater(len(messages), 3)
        self.assertTrue(all(len(message) <= 64 << 10 for message in messages))


class Patterns(unittest.TestCase):
    def test_wildcards_match_as_in_nats(self) -> None:
        for pattern, topic, expected in [
            ("a.b", "a.b", True),
            ("a.b", "a.b.c", False),
            ("a.*", "a.b", True),
            ("a.*", "a", False),
            ("*.b", "a.b", True),
            ("a.>", "a.b.c", True),
            ("a.>", "a", False),
            (">", "a", True),
            ("a*", "ab", False),
            ("a*", "a*", True),
            ("a.*.c", "a.b.c", True),
            ("a.*.c", "a.b.d", False),
        ]:
            self.assertEqual(matches(pattern, topic), expected, (pattern, topic))


class SubscriptionsTest(unittest.TestCase):
    @staticmethod
    def made(*patterns: str) -> tuple[Subscriptions, list[SubscriptionRecord]]:
        subscriptions = Subscriptions()
        records = [SubscriptionRecord(pattern, "live", None, None, random.random) for pattern in patterns]
        for record in records:
            subscriptions.add(record)
        return subscriptions, records

    def test_subscriptions_match_in_the_order_in_which_they_were_made(self) -> None:
        subscriptions, records = self.made("a.>", "a.b", "b.c", "*.b", "a.*")
        for topic, expected in [("a.b", ["a.>", "a.b", "*.b", "a.*"]), ("b.c", ["b.c"]), ("c.b", ["*.b"]), ("c", [])]:
            self.assertEqual([each.pattern for each in subscriptions.matching(topic)], expected)
        subscriptions.remove(records[0], Positions())
        self.assertEqual([each.pattern for each in subscriptions.matching("a.b")], ["a.b", "*.b", "a.*"])

    def test_removal_forgets_the_positions_that_only_its_pattern_matched(self) -> None:
        topics = ("a.b", "a.c", "b.b", "c.c")
        for ended, kept in [("a.*", ["a.b", "b.b", "c.c"]), ("*.b", ["a.b", "a.c", "c.c"]), ("a.b", list(topics))]:
            subscriptions, records = self.made("a.b", "a.*", "*.b")
            positions = Positions({topic: Position(1, 1) for topic in topics})
            subscriptions.remove(next(each for each in records if each.pattern == ended), positions)
            self.assertEqual(list(positions.copy()), kept, ended)

    def test_a_pattern_without_wildcards_is_compared_with_its_own_topic_only(self) -> None:
        count = 1_000
        names = [f"a.{number}" for number in range(count)]
        subscriptions, records = self.made(*names)
        positions = Positions({name: Position(1, 1) for name in names})
        compared = 0

        def matches(_: Pattern, __: Any) -> bool:
            nonlocal compared
            compared += 1
            return False

        with mock.patch.object(Pattern, "matches", matches):
            for record in records:
                self.assertEqual(subscriptions.matching(record.pattern), (record,))
                self.assertEqual(list(subscriptions.positions_of(record, positions)), [record.pattern])
            self.assertEqual(len(subscriptions.to_resume(positions)), count)
            for record in records:
                subscriptions.remove(record, positions)
        self.assertEqual((compared, positions.copy()), (0, {}))


class RateLimited(unittest.TestCase):
    """After a lost connection, the subscription that carries a position is refused for its rate, and another one receives the topic."""

    def resumed(self, policy: Any = None) -> Session:
        """A session with a position in a.x (10:17), whose subscription of `a.>` is refused, and that of `a.*` not answered yet."""
        session = Session(SessionOptions("ws://host/ws", JsonCodec(), positions={"a.x": Position(10, 17)}), lambda: 0.5)
        session.subscribe("a.>", "oldest")
        session.subscribe("a.*", "latest" if policy else "oldest", policy)
        session.connect(0)
        session.handle_open(JsonCodec.subprotocol, 0)
        welcome = {"op": "welcome", "id": 1, "server": "s", "epoch": 9, "session": 1, "frame_bytes_max": 262144}
        self.receive(session, {**welcome, "features": []})
        starts = [json.loads(action.message).get("from") for action in iter(session.poll_action, None) if isinstance(action, Send)]
        position = {"positions": {"a.x": {"epoch": 10, "sequence": 17}}}
        self.assertEqual(starts[2:], [position, "latest" if policy else {"positions": {}}])
        self.receive(session, {"op": "error", "id": 2, "code": 109, "text": "too fast"})
        return session

    def receive(self, session: Session, *messages: dict[str, Any]) -> list[tuple[Any, ...]]:
        session.handle_message(json.dumps(messages), 0, 0)
        shown: list[tuple[Any, ...]] = []
        for on, event in iter(session.poll_event, None):
            if on != "a.*":
                continue
            if isinstance(event, Tick):
                shown.append(("tick", event.sequence))
            elif isinstance(event, (Gap, Conflated)):
                shown.append((type(event).__name__, event.from_sequence, event.to_sequence, event.count))
            elif isinstance(event, Recovered):
                shown.append(("recovered", event.recovered, event.reason))
        return shown

    def announced(self, epoch: int) -> dict[str, Any]:
        return {"op": "subscribed", "topics": [{"topic": "a.x", "topic_id": 5, "epoch": epoch}]}

    def message(self, sequence: int, **more: Any) -> dict[str, Any]:
        return {"topic": "a.x", "seq": sequence, "ts": 1, "data": sequence, **more}

    def gap(self, first: int, end: int) -> dict[str, Any]:
        return {"op": "gap", "topic": "a.x", "from": first, "to": end, "count": end - first}

    def test_ticks_before_the_position_are_not_delivered_again(self) -> None:
        session = self.resumed()
        self.receive(session, {"op": "subscribed", "id": 3, "pattern": "a.*", "topics": []})
        seen = self.receive(session, self.announced(10), self.gap(1, 15), *(self.message(at) for at in range(15, 20)))
        self.assertEqual(seen, [("tick", 18), ("tick", 19)])
        # The retry: the server repeats nothing, because the topic is received.
        session.handle_timeout(250_000_000)
        self.assertEqual(self.receive(session, {"op": "subscribed", "id": 4, "pattern": "a.>", "topics": []}), [])
        self.assertEqual(self.receive(session, self.message(20)), [("tick", 20)])

    def test_what_is_lost_after_the_position_is_announced(self) -> None:
        session = self.resumed()
        self.assertEqual(self.receive(session, self.announced(10), self.gap(1, 20), self.message(20)), [("Gap", 18, 20, 2), ("tick", 20)])
        session = self.resumed("conflate")
        seen = self.receive(session, self.announced(10), self.message(30, snapshot=True), self.message(31))
        self.assertEqual(seen, [("Gap", 18, 30, 12), ("tick", 30), ("tick", 31)])
        session = self.resumed()
        self.assertEqual(self.receive(session, self.announced(20), self.message(1)), [("recovered", False, "epoch"), ("tick", 1)])

    def test_the_retry_carries_the_position_if_no_other_subscription_was_accepted(self) -> None:
        session = self.resumed()
        self.receive(session, {"op": "error", "id": 3, "code": 109, "text": "too fast"})
        session.handle_timeout(250_000_000)
        (sent, *_) = [json.loads(action.message) for action in iter(session.poll_action, None) if isinstance(action, Send)]
        self.assertEqual(sent["from"], {"positions": {"a.x": {"epoch": 10, "sequence": 17}}})
        recovered = {"op": "recovered", "topic": "a.x", "epoch": 10, "sequence": 19, "recovered": True}
        seen = self.receive(session, recovered, self.announced(10), self.message(18), self.message(19))
        self.assertEqual(seen, [("recovered", True, ""), ("tick", 18), ("tick", 19)])


class Pings(unittest.TestCase):
    def test_answers_to_pings_are_optional(self) -> None:
        session = Session(SessionOptions("ws://host/ws", NativeCodec()), random.random)
        session.connect(0)
        session.handle_open(NativeCodec.subprotocol, 0)
        while session.poll_action() is not None:
            pass
        codec = NativeCodec()
        session.handle_message(codec.encode(Ping(7)) + codec.encode(Ping(8)), 0, 0)
        self.assertEqual(session.poll_action(), Send(codec.encode(Pong(8)), is_optional=True))
        self.assertIsNone(session.poll_action())


class MessageIds(unittest.TestCase):
    def test_an_id_is_not_sent_to_a_server_that_would_not_recognise_it(self) -> None:
        for granted, sent in (([], []), (["message_ids"], ["publish"])):
            session = Session(SessionOptions("ws://host/ws", JsonCodec()), random.random)
            session.connect(0)
            session.handle_open(JsonCodec.subprotocol, 0)
            welcome = {"op": "welcome", "id": 1, "server": "s", "epoch": 9, "session": 1, "frame_bytes_max": 262144}
            session.handle_message(json.dumps({**welcome, "features": granted}), 0, 0)
            while session.poll_action() is not None:
                pass
            session.publish("t", b"1", 0, is_json=True, message_id="m1")
            actions = [action for action in iter(session.poll_action, None) if isinstance(action, Send)]
            self.assertEqual([json.loads(action.message)["op"] for action in actions], sent)
            events = [event for _, event in iter(session.poll_event, None) if isinstance(event, PublishFailed)]
            failures = [(event.outcome, event.code) for event in events]
            self.assertEqual(failures, [] if granted else [(Outcome.NOT_SENT, 100)])


class ManyPublishes(unittest.TestCase):
    def connected(self, codec: Codec, offline_queue_max: int) -> Session:
        session = Session(SessionOptions("ws://host/ws", codec, offline_queue_max=offline_queue_max), random.random)
        session.connect(0)
        return session

    def welcome(self, session: Session) -> None:
        session.handle_open("tickcast.v1.json", 0)
        welcome = {"op": "welcome", "id": 1, "server": "s", "epoch": 9, "session": 1, "frame_bytes_max": 262144}
        session.handle_message(json.dumps({**welcome, "features": ["message_ids"]}), 0, 0)

    def sent(self, session: Session) -> list[dict[str, Any]]:
        actions = [action for action in iter(session.poll_action, None) if isinstance(action, Send)]
        messages = [json.loads(action.message) for action in actions]
        return [message for message in messages if message["op"] == "publish"]

    def test_publishes_beyond_those_in_flight_follow_as_answers_arrive(self) -> None:
        count = UNACKNOWLEDGED_MAX + 3
        session = self.connected(JsonCodec(), count)
        handles = [session.publish("t", b"%d" % number, 0, is_json=True) for number in range(count)]
        self.welcome(session)
        sent = self.sent(session)
        self.assertEqual([message["data"] for message in sent], list(range(UNACKNOWLEDGED_MAX)))
        late = session.publish("t", b"-1", 0, is_json=True, timeout_ms=20_000)
        self.assertEqual(self.sent(session), [], "it does not overtake")
        published = {"op": "published", "topic": "t", "epoch": 10}
        answers = [{**published, "id": message["id"], "sequence": at} for at, message in enumerate(sent[:2], 1)]
        session.handle_message(json.dumps([*answers, {"op": "error", "id": sent[2]["id"], "code": 109, "text": ""}]), 0, 0)
        self.assertEqual([message["data"] for message in self.sent(session)], [*range(UNACKNOWLEDGED_MAX, count)])
        # A time-out makes room too.
        session.handle_timeout(10_000_000_000)
        self.assertEqual([message["data"] for message in self.sent(session)], [-1])
        ended = [event.handle for _, event in iter(session.poll_event, None) if isinstance(event, (Published, PublishFailed))]
        self.assertEqual((sorted(ended), len(set(ended))), ([handle for handle in handles], count))
        self.assertNotIn(late, ended)

    def test_what_is_sent_again_comes_before_what_still_waited(self) -> None:
        session = self.connected(JsonCodec(), UNACKNOWLEDGED_MAX + 1)
        for number in range(UNACKNOWLEDGED_MAX + 1):
            session.publish("t", b"%d" % number, 0, is_json=True, message_id=str(number))
        self.welcome(session)
        first = self.sent(session)
        session.handle_closed(1006, "", 0)
        session.handle_timeout(500_000_000)
        self.welcome(session)
        self.assertEqual([message["data"] for message in self.sent(session)], [message["data"] for message in first])

    def test_a_withdrawn_publish_is_not_sent(self) -> None:
        session = self.connected(JsonCodec(), 64)
        one = session.publish("t", b"1", 0, is_json=True)
        session.publish("t", b"2", 0, is_json=True)
        session.withdraw(one)
        self.welcome(session)
        self.assertEqual([message["data"] for message in self.sent(session)], [2])

    def test_a_name_that_does_not_fit_its_field_is_refused(self) -> None:
        for codec in (JsonCodec(), NativeCodec()):
            session = self.connected(codec, 64)
            for name in ("", "x" * 256, "x" * 70_000, "\udc80"):
                with self.assertRaises(RequestError):
                    session.publish(name, b"1", 0, is_json=True)
                with self.assertRaises(RequestError):
                    session.subscribe(name)
            with self.assertRaises(RequestError):
                session.publish("t", b"1", 0, is_json=True, message_id="x" * 256)
            session.publish("x" * 255, b"1", 0, is_json=True)

    def test_positions_of_a_start_are_checked_before_anything_changes(self) -> None:
        session = self.connected(JsonCodec(), 64)
        for wrong in (7, (1,), ("1", 2), (1, -1), (1, 2**64), None):
            with self.assertRaises(RequestError, msg=wrong):
                session.subscribe("a", {"a": wrong})  # type: ignore[dict-item]
        session.subscribe("a", {"a": (5, 7)})  # type: ignore[dict-item]
        self.assertEqual(session.positions(), {"a": Position(5, 7)})


class TimersTest(unittest.TestCase):
    def test_timers_run_in_order_and_cancelled_ones_do_not_pile_up(self) -> None:
        timers = Timers()
        for number in range(10_000):
            timers.set("publish", number)
            timers.cancel("publish")
        self.assertIsNone(timers.next_ns())
        self.assertLess(len(timers._heap), 200)
        timers.set("late", 30)
        timers.set("b", 10)
        timers.set("a", 10)
        timers.set("late", 20)
        popped = [timers.pop(25) for _ in range(4)]
        self.assertEqual(popped, [("b", 10), ("a", 10), ("late", 20), None])


class Readers(unittest.IsolatedAsyncioTestCase):
    async def test_reader_beyond_twice_its_bound_announces_what_it_dropped(self) -> None:
        room = []
        reader: Reader[Any] = Reader((), 3, lambda: room.append(1))
        for sequence in range(1, 10):
            reader.put(tick("a", sequence))
            reader.put(tick("b", sequence))
        self.assertEqual((len(reader), reader.lost, reader.is_full, room), (6, 12, True, []))
        # A gap for each topic, and what is left.
        seen = [await anext(reader) for _ in range(8)]
        self.assertIn(Gap("a", 1, 1, 7, 6), seen)
        self.assertIn(Gap("b", 1, 1, 7, 6), seen)
        for topic in ("a", "b"):
            mine = [event for event in seen if event.topic == topic]
            self.assertEqual(mine[0], Gap(topic, 1, 1, 7, 6))
            self.assertEqual([event.sequence for event in mine[1:]], [7, 8, 9])
        self.assertEqual((reader.is_full, room), (False, [1]))

    async def test_dropped_ranges_of_two_lives_are_two_gaps(self) -> None:
        reader: Reader[Any] = Reader((), 1, lambda: None)
        for event in (tick("a", 8), tick("a", 1, epoch=2), tick("a", 2, epoch=2), tick("a", 3, epoch=2)):
            reader.put(event)
        reader.end()
        seen = [event async for event in reader]
        self.assertEqual(seen[:2], [Gap("a", 1, 8, 9, 1), Gap("a", 2, 1, 2, 1)])

    async def test_dropped_range_of_a_topic_without_another_event_is_announced_before_waiting_or_ending(self) -> None:
        for types in ((), (Tick,)):
            reader: Reader[Any] = Reader(types, 1, lambda: None)
            for event in (tick("a", 7), tick("a", 8), tick("b", 1), tick("b", 2)):
                reader.put(event)
            self.assertEqual((reader.lost, len(reader)), (2, 2))
            seen = [await anext(reader), await anext(reader)]
            self.assertEqual([event.topic for event in seen], ["b", "b"])
            self.assertEqual(reader.lags("a"), (True, None))
            if not types:
                self.assertEqual(await anext(reader), Gap("a", 1, 7, 9, 2))
                self.assertEqual(reader.lags("a"), (True, None))
            reader.end()
            with self.assertRaises(StopAsyncIteration):
                await anext(reader)
            self.assertEqual((reader.lags("a"), reader.lags("b")), ((False, None), (False, None)))

    async def test_reader_whose_loop_was_left_is_never_full_and_drops_its_oldest(self) -> None:
        room = []
        reader: Reader[Any] = Reader((Tick,), 2, lambda: room.append(1))
        reader.put(tick("a", 1))
        reader.put(tick("a", 2))
        self.assertTrue(reader.is_full, "a loop may still begin")
        for _ in range(2):
            reader.handle_loop()
        reader.handle_left()
        self.assertEqual((reader.is_full, room), (True, []))
        reader.handle_left()
        self.assertEqual((reader.is_full, room), (False, [1]))
        for sequence in range(3, 8):
            reader.put(tick("a", sequence))
        self.assertEqual((len(reader), reader.lost, reader.is_full), (4, 3, False))
        reader.handle_loop()
        self.assertTrue(reader.is_full)
        self.assertEqual((await anext(reader)).sequence, 4)

    async def test_reader_ends_with_its_error_after_what_waits(self) -> None:
        reader: Reader[Any] = Reader((Tick,), 10, lambda: None)
        reader.put(tick("a", 1))
        reader.put(Gap("a", 1, 2, 3, 1))
        reader.end(TickcastError("why"))
        reader.put(tick("a", 3))
        self.assertEqual((await anext(reader)).sequence, 1)
        with self.assertRaisesRegex(TickcastError, "why"):
            await anext(reader)

    async def test_position_is_finished_when_the_next_event_is_asked_for(self) -> None:
        reader: Reader[Any] = Reader((), 10, lambda: None)
        reader.put(tick("a", 1))
        reader.put(tick("a", 2))
        self.assertEqual(reader.lags("a"), (True, None))
        await anext(reader)
        self.assertEqual(reader.lags("a"), (True, None))
        await anext(reader)
        self.assertEqual(reader.lags("a"), (True, Position(1, 1)))
        last = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        self.assertEqual(reader.lags("a"), (False, None))
        last.cancel()


class Views(unittest.TestCase):
    def test_keyed_view_is_bounded_and_gives_rows(self) -> None:
        view = KeyedView(entries_max=2)
        view.handle(tick("a", 1, {"p": 1}, key=1))
        view.handle(tick("a", 2, {"p": 2}, key=2))
        view.handle(tick("a", 3, {"p": 3}, key=1))
        view.handle(tick("b", 1, 9))
        self.assertEqual((len(view), view.evicted), (2, 1))
        self.assertEqual((view["a", 1], view["b"], view.get("a", 2), "b" in view), ({"p": 3}, 9, None, True))
        self.assertEqual([row.get("p", row.get("value")) for row in view.rows()], [3, 9])
        view.handle(tick("b", 1, 10, epoch=2))
        view.handle(Recovered("a", 2, 0, False, "epoch"))
        self.assertEqual(dict(view.items()), {("b", 0): 10})
        view.handle(Tick("b", 1, 2, 0, 0, 0, 0, False, True, payload=b"{"))
        self.assertEqual(len(view), 0)

    def test_book_is_live_only_between_a_snapshot_and_a_loss(self) -> None:
        view = BookView()
        view.handle(tick("a", 1, {"bids": [["1", "5"]]}))
        self.assertFalse(view["a"].live)
        view.handle(tick("a", 2, {"type": "snapshot", "bids": [["1.5", "5"], [1, 2]], "asks": [[2, 1]]}))
        view.handle(tick("a", 3, {"type": "l2update", "bids": [["1.50", "0"]], "asks": [["1.9", "3"]]}))
        book = view["a"]
        self.assertEqual((book.live, book.bids(), book.asks(), book.best_ask), (True, [(1, 2)], [(1.9, 3), (2, 1)], (1.9, 3)))
        view.handle(Gap("a", 1, 4, 5, 1))
        view.handle(tick("a", 5, {"bids": [[1, 9]]}))
        self.assertEqual((book.live, book.bids()), (False, [(1, 2)]))
        for wrong in ({"bids": 5}, {"bids": [[1]]}, {"asks": [["x", 1]]}, {"asks": [[1, -1]]}, {"asks": [[1, "NaN"]]}, 7):
            view.handle(tick("a", 6, {"type": "snapshot"}))
            self.assertTrue(book.live)
            view.handle(tick("a", 7, wrong))
            self.assertFalse(book.live, wrong)
        view.handle(tick("a", 8, {"type": "snapshot"}))
        view.handle(Tick("a", 1, 9, 0, 0, 0, 0, False, True, payload=b"{"))
        self.assertFalse(book.live)


    def test_only_so_many_topics_are_complete_as_the_view_has_entries(self) -> None:
        view = KeyedView(entries_max=2)
        for topic in ("a", "b", "c"):
            view.handle(tick(topic, 1, None))
        self.assertEqual([view.complete(topic) for topic in ("a", "b", "c")], [True, True, False])
        view.handle(tick("a", 5, None, epoch=2))
        view.handle(tick("c", 9, None, snapshot=True))
        self.assertEqual([view.complete(topic) for topic in ("a", "b", "c")], [False, True, True])


class Store(unittest.IsolatedAsyncioTestCase):
    async def test_positions_survive_in_a_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "positions.json"
            store = FilePositionStore(path)
            self.assertEqual(await store.load(), {})
            await store.save({"a.\u00e9": Position(2**53 - 1, 7)})
            self.assertEqual(await FilePositionStore(path).load(), {"a.\u00e9": Position(2**53 - 1, 7)})
            path.write_text('{"a": 5}')
            with self.assertRaisesRegex(TickcastError, "positions"):
                await store.load()


if __name__ == "__main__":
    unittest.main()
