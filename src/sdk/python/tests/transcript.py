"""Runs one transcript of tests/transcripts against a session. See the README there for the format."""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from itertools import chain
from pathlib import Path
from typing import Any

from tickcast.actions import AskToken, Dial, HangUp, Save, Send
from tickcast.book_view import BookView, OrderBook
from tickcast.errors import TickcastError
from tickcast.events import (
    Conflated,
    ErrorEvent,
    Gap,
    Latency,
    Published,
    PublishFailed,
    Recovered,
    SourceChanged,
    Stale,
    StateChanged,
    SubscriptionChanged,
    TokenExpires,
)
from tickcast.json_codec import JsonCodec
from tickcast.keyed_view import KeyedView
from tickcast.native import NativeCodec
from tickcast.options import SessionOptions
from tickcast.session import Session
from tickcast.tick import Position, Tick, dumps

MS_NS = 1_000_000
INPUTS = {
    "call",
    "open",
    "server",
    "server_text",
    "server_frames",
    "closed",
    "token",
    "token_failed",
    "after_ms",
    "late_ms",
    "check",
}
STEP_FIELDS = INPUTS | {"client", "events", "throws", "about"}
NUMBER_TOLERANCE = 0.001


def dump_bytes(lines: list[str]) -> bytes:
    """The bytes of a dump: hexadecimal digits and white space, and text in single quotes."""
    parts = "".join(lines).split("'")
    return b"".join(part.encode() if at % 2 else bytes.fromhex(part) for at, part in enumerate(parts))


def is_equal(expected: Any, actual: Any) -> bool:
    """Whether two JSON values are equal; numbers within a tolerance."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, (int, float)) and isinstance(actual, (int, float)):
        return expected == actual or abs(expected - actual) < NUMBER_TOLERANCE
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(is_equal(expected[key], actual[key]) for key in expected)
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(is_equal, expected, actual))
    return bool(expected == actual)


def repeated(step: dict[str, Any]) -> list[dict[str, Any]]:
    """A step as often as it says, with the number of each repetition in place of its marks."""
    once = json.dumps({name: value for name, value in step.items() if name != "repeat"})
    texts = (
        re.sub(r'"#\+(\d+)"', lambda mark: str(number + int(mark[1])), once).replace('"#"', f'"{number}"')
        for number in range(step.get("repeat", 1))
    )
    return [json.loads(text) for text in texts]


def known(fields: dict[str, Any], names: set[str], what: str) -> None:
    unknown = fields.keys() - names
    assert not unknown, f"this runner does not know {unknown} of {what}"


class Script:
    """A transcript being run."""

    def __init__(self, folder: Path, script: dict[str, Any]) -> None:
        known(script, {"feature", "about", "options", "given", "random", "wall_ms", "steps"}, "a transcript")
        self.folder = folder
        self.script = script
        self.random = deque(script.get("random", []))
        self.now_ns = 1_000_000 * MS_NS
        self.wall_ns = script.get("wall_ms", 1_700_000_000_000) * MS_NS
        self.names: dict[int, str] = {}
        self.views: dict[tuple[str, str], Any] = {}
        self.session = Session(self.options(script["options"]), self.next_random)

    def next_random(self) -> float:
        assert self.random, "the client asks for more random numbers than the script gives"
        return float(self.random.popleft())

    @staticmethod
    def options(options: dict[str, Any]) -> SessionOptions:
        known(
            options,
            {"url", "codec", "name", "token", "get_token", "positions", "many_positions", "save_positions", "offline_queue_max"},
            "options",
        )
        positions = positions_of(options.get("positions", {})) | many_positions(**options.get("many_positions", {"count": 0}))
        codecs = {"json": JsonCodec, "native": NativeCodec}
        return SessionOptions(
            options["url"],
            codecs[options.get("codec", "json")](),
            options.get("name", "app"),
            options.get("token"),
            options.get("get_token", False),
            positions,
            options.get("save_positions", False),
            options.get("offline_queue_max", 64),
        )

    def run(self) -> None:
        for given in self.script.get("given", []):
            self.run_steps(json.loads((self.folder / "given" / f"{given}.json").read_text())["steps"], given)
        self.run_steps(self.script["steps"], "steps")
        assert not self.random, f"the client asked for fewer random numbers: {list(self.random)} are left"

    def run_steps(self, steps: list[dict[str, Any]], name: str) -> None:
        for number, step in enumerate(chain.from_iterable(map(repeated, steps)), 1):
            known(step, STEP_FIELDS, "a step")
            inputs = step.keys() & INPUTS
            assert len(inputs) == 1, f"{name} {number}: one input, not {inputs}"
            kind = inputs.pop()
            what = f"{name} {number}, {kind} {json.dumps(step[kind])}"
            actions: list[Any] = []
            events: list[Any] = []
            self.apply(kind, step, actions, events)
            expected, wanted = step.get("client", []), step.get("events", [])
            expected = [
                {"send_frames": dump_bytes(each["send_frames"]).hex()} if "send_frames" in each else each
                for each in expected
            ]
            assert is_equal(expected, actions), f"{what}:\nexpected {expected}\n     got {actions}"
            shown = "\n".join(map(str, events))
            assert len(wanted) == len(events), f"{what}:\nexpected {len(wanted)} events, got {len(events)}:\n{shown}"
            for want, event in zip(wanted, events):
                for field, value in want.items():
                    assert field in event and is_equal(value, event[field]), (
                        f"{what}:\n{field} of {want}\n got {event}"
                    )

    def drain(self, actions: list[Any], events: list[Any]) -> None:
        while (action := self.session.poll_action()) is not None:
            actions.append(self.action(action))
        while (event := self.session.poll_event()) is not None:
            for (_, pattern), view in self.views.items():
                if event[0] == pattern:
                    view.handle(event[1])
            events.append(self.event(*event))

    @staticmethod
    def action(action: Any) -> dict[str, Any]:
        match action:
            case Dial(url=url, protocols=protocols):
                return {"dial": {"url": url, "protocols": list(protocols)}}
            case Send(message=str(message)):
                return {"send": json.loads(message)}
            case Send(message=bytes(message)):
                return {"send_frames": message.hex()}
            case HangUp(code=code):
                return {"hang_up": code}
            case AskToken(why=why):
                return {"ask_token": why}
            case Save(positions=positions):
                return {"save": script_positions(positions)}
        raise AssertionError(f"this runner does not know {action}")

    def event(self, on: str | None, event: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {} if on is None else {"on": on}
        match event:
            case StateChanged() | SubscriptionChanged():
                fields |= {"type": "state" if isinstance(event, StateChanged) else "subscription"}
                fields |= {"state": event.state.value, "code": event.code, "reason": event.reason}
                if event.retry_in_ms is not None:
                    fields["retry_in_ms"] = event.retry_in_ms
            case Tick():
                key = event.key if event.key < 2**53 else str(event.key)
                fields |= {"type": "tick", "topic": event.topic, "epoch": event.epoch, "sequence": event.sequence}
                fields |= {"ts_ns": event.time_ns, "key": key, "snapshot": event.snapshot, "schema": event.schema}
                fields |= {"ingest_ns": event.ingest_time_ns}
                if isinstance(event.data, bytes):
                    fields["data_base64"] = base64.b64encode(event.data).decode()
                else:
                    fields["data"] = event.data
            case Gap() | Conflated():
                fields |= {"type": "gap" if isinstance(event, Gap) else "conflated", "topic": event.topic}
                fields |= {"epoch": event.epoch, "from": event.from_sequence, "to": event.to_sequence}
                fields |= {"count": event.count}
            case Recovered():
                fields |= {"type": "recovered", "topic": event.topic, "epoch": event.epoch}
                fields |= {"sequence": event.sequence, "recovered": event.recovered, "reason": event.reason}
            case Stale():
                fields |= {"type": "stale", "topic": event.topic, "stale": event.stale, "since_ns": event.since_ns}
            case SourceChanged():
                fields |= {"type": "source", "source": event.source, "state": event.state, "since_ns": event.since_ns}
            case TokenExpires():
                fields |= {"type": "expires", "expires_in_s": event.expires_in_s}
            case Latency():
                offset_ms = None if event.offset_ns is None else event.offset_ns / MS_NS
                fields |= {"type": "latency", "rtt_ms": event.round_trip_ns / MS_NS, "offset_ms": offset_ms}
            case Published():
                fields |= {"type": "published", "name": self.names[event.handle], "topic": event.topic}
                fields |= {"epoch": event.epoch, "sequence": event.sequence, "duplicate": event.duplicate}
            case PublishFailed():
                fields |= {"type": "publish_failed", "name": self.names[event.handle], "outcome": event.outcome.value}
                fields |= {"code": event.code, "reason": event.reason}
            case ErrorEvent():
                fields |= {"type": "error", "code": event.code, "reason": event.reason}
            case _:
                raise AssertionError(f"this runner does not know {event}")
        return fields

    def apply(self, kind: str, step: dict[str, Any], actions: list[Any], events: list[Any]) -> None:
        value, session = step[kind], self.session
        match kind:
            case "call":
                self.call(value, step.get("throws", False))
            case "open":
                session.handle_open(value, self.now_ns)
            case "server":
                session.handle_message(dumps(value).decode(), self.now_ns, self.wall_ns)
            case "server_text":
                session.handle_message(value, self.now_ns, self.wall_ns)
            case "server_frames":
                session.handle_message(dump_bytes(value), self.now_ns, self.wall_ns)
            case "closed":
                session.handle_closed(value[0], value[1], self.now_ns)
            case "token":
                session.handle_token(value, self.now_ns)
            case "token_failed":
                session.handle_token_failed(value, self.now_ns)
            case "after_ms":
                end_ns = self.now_ns + value * MS_NS
                while (at_ns := session.poll_timeout()) is not None and at_ns <= end_ns:
                    self.pass_time(max(at_ns, self.now_ns))
                    session.handle_timeout(self.now_ns)
                    self.drain(actions, events)
                self.pass_time(end_ns)
            case "late_ms":
                self.pass_time(self.now_ns + value * MS_NS)
                session.handle_timeout(self.now_ns)
            case "check":
                self.check(value)
        self.drain(actions, events)

    def pass_time(self, to_ns: int) -> None:
        self.wall_ns += to_ns - self.now_ns
        self.now_ns = to_ns

    def call(self, call: list[Any], throws: bool) -> None:
        try:
            self.make_call(*call)
        except TickcastError:
            assert throws, f"{call} was refused"
        else:
            assert not throws, f"{call} was not refused"

    def make_call(self, name: str, *arguments: Any) -> None:
        session = self.session
        match name, arguments:
            case "connect", ():
                session.connect(self.now_ns)
            case "disconnect", ():
                session.disconnect(self.now_ns)
            case "subscribe", (pattern, options):
                known(options, {"from", "policy", "max_rate"}, "a subscription")
                since = options.get("from", "live")
                if isinstance(since, dict):
                    known(since, {"positions"}, "from")
                    since = positions_of(since["positions"])
                session.subscribe(pattern, since, options.get("policy"), options.get("max_rate"))
            case "unsubscribe", (pattern,):
                session.unsubscribe(pattern)
            case "set_rate", (pattern, rate):
                session.update(pattern, session.delivery(pattern)[0], rate)
            case "set_policy", (pattern, policy):
                session.update(pattern, policy, session.delivery(pattern)[1])
            case "publish", (name, topic, options):
                names = {"data", "data_base64", "key", "schema", "ts_ns", "message_id", "timeout_ms"}
                known(options, names, "a publish")
                is_json = "data" in options
                payload = dumps(options["data"]) if is_json else base64.b64decode(options["data_base64"])
                # The answer may follow at once, so its name is known before.
                self.names[len(self.names) + 1] = name
                handle = session.publish(
                    topic,
                    payload,
                    self.now_ns,
                    is_json=is_json,
                    key=int(options.get("key", 0)),
                    schema=options.get("schema", 0),
                    time_ns=options.get("ts_ns", 0),
                    message_id=options.get("message_id", ""),
                    timeout_ms=options.get("timeout_ms", 10_000),
                )
                assert self.names[handle] == name
            case "keyed_view", (pattern, options):
                known(options, {"entries_max"}, "a keyed view")
                self.views["keyed", pattern] = KeyedView(**options)
            case "book_view", (pattern,):
                self.views["book", pattern] = BookView()
            case "set_token", (token,):
                session.set_token(token)
            case _:
                raise AssertionError(f"this runner does not know the call {name} {arguments}")

    def check(self, check: dict[str, Any]) -> None:
        session = self.session
        known(check, {"state", "subscription", "positions", "keyed", "complete", "book"}, "a check")
        if "state" in check:
            assert session.state.value == check["state"], session.state
        for pattern, state in check.get("subscription", {}).items():
            assert session.subscription_state(pattern).value == state, f"{pattern}: {session.subscription_state(pattern)}"
        for pattern, topics in check.get("keyed", {}).items():
            view = self.views["keyed", pattern]
            keyed = {topic: {str(key): data for key, data in view.topic(topic).items()} for topic in view.topics()}
            assert is_equal(topics, keyed), f"keyed {pattern}: {keyed}"
        for pattern, topics in check.get("complete", {}).items():
            for topic, is_complete in topics.items():
                assert self.views["keyed", pattern].complete(topic) is is_complete, f"complete {pattern}: {topic}"
        for pattern, topics in check.get("book", {}).items():
            view = self.views["book", pattern]
            books = {topic: script_book(view[topic]) for topic in view.topics()}
            assert is_equal(topics, books), f"book {pattern}: {books}"
        if "positions" in check:
            actual = script_positions(session.positions())
            assert is_equal(check["positions"], actual), f"positions: {actual}"


def script_book(book: OrderBook) -> dict[str, Any]:
    return {"live": book.live, "bids": [list(each) for each in book.bids()], "asks": [list(each) for each in book.asks()]}


def positions_of(positions: dict[str, Any]) -> dict[str, Position]:
    return {topic: Position(each["epoch"], each["sequence"]) for topic, each in positions.items()}


def many_positions(count: int, name_bytes: int = 0, epoch: int = 0, sequence: int = 0) -> dict[str, Position]:
    return {f"a.{number:0{name_bytes - 2}}": Position(epoch, sequence) for number in range(count)}


def script_positions(positions: Any) -> dict[str, Any]:
    return {topic: {"epoch": each.epoch, "sequence": each.sequence} for topic, each in positions.items()}
