"""The bare loop: the same bytes in the same sizes to as many sockets, with no broker at all."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import client
from client import Endpoint
from figures import Row
from loads import Load
from processes import Processes, RunFailed
from systems import SERVER_CORE, START_S, addresses_of

if TYPE_CHECKING:
    from measure import Suite

US_PER_S = 1_000_000
# What the bare loop takes: bytes of one SEND, and time between two rounds.
SEND_BYTES_MAX = 1 << 20
INTERVAL_US_MAX = 10_000_000
# Part of its rounds that may begin late before its latency says nothing any more.
LATE_SHARE = 0.01
# Each client is told every topic's name, and gets all ticks: so many say as much as thousands.
TOPICS_MAX = 50


@dataclass(frozen=True)
class BareRun:
    """What the bare loop needed."""

    cpu_us_per_send: float
    bytes_per_send: float
    wire_mb_per_s: float
    # What the load client saw, from the times of the bare loop's rounds: the machine's own tail.
    p50_us: float | None
    p99_us: float | None
    # Its rounds were on time, and no socket was left out of one.
    kept_up: bool
    client_is_bottleneck: bool


def ticks_per_send(row: Row, size: int) -> int:
    """Whole ticks that leave with one SEND, as near as can be to what tickcast sent."""
    return max(1, min(round(row.deliveries_per_send), SEND_BYTES_MAX // max(size, 1)))


def interval_us(row: Row, load: Load) -> int:
    """Time between two SENDs to one connection, so that it gets as many ticks a second as tickcast gave it.

    Where whole ticks are more or less than tickcast sent at once, that is less or more often.
    """
    per_connection = row.delivered_per_s / ticks_per_send(row, load.size) / load.clients
    return min(max(1, round(US_PER_S / per_connection)), INTERVAL_US_MAX)


def run(suite: Suite, load: Load, row: Row, flat_out: bool) -> BareRun:
    """Runs it with the load client at the other end; RunFailed when it is not built or does not end well."""
    program = suite.programs.bare
    if not program.exists():
        raise RunFailed("tickcast-bare is not built")
    is_websocket = row.variant.startswith("ws")
    words = [
        str(program),
        *("--tcp", "127.0.0.1:0"),
        *("--connections", str(load.clients)),
        *("--topics", str(min(load.topic_count, TOPICS_MAX))),
        *("--size", str(load.size)),
        *("--ticks-per-send", str(ticks_per_send(row, load.size))),
        *("--interval-us", "0" if flat_out else str(interval_us(row, load))),
        *(("--websocket",) if is_websocket else ()),
    ]
    transport = ("--transport", "ws", "--encoding", "rkyv") if is_websocket else ("--transport", "native")
    with Processes() as processes:
        server = processes.start(words, SERVER_CORE)
        address, _http = addresses_of(server.line_with("tcp=", START_S))
        endpoint = Endpoint(address, transport, (server.pid,))
        plain = replace(load, client_options=(), subscribe=("sim.>",))
        client_words = client.command(suite.programs.client, plain, endpoint, suite.window, None)
        measured = client.run(processes, client_words, plain, suite.window, [server.pid], lambda: None)
        server.stop(signal.SIGINT)
        report = report_of(server.rest_of_output())
    row.commands = [*row.commands, *processes.commands]
    return BareRun(
        cpu_us_per_send=report["cpu_ns_per_send"] / 1e3,
        bytes_per_send=report["bytes_per_send"],
        wire_mb_per_s=measured.report["received_bytes_per_s"] / 1e6,
        p50_us=measured.report["latency_us"].get("p50"),
        p99_us=measured.report["latency_us"].get("p99"),
        kept_up=not report.get("skipped_sends") and report["late_rounds"] <= LATE_SHARE * max(report["rounds"], 1),
        client_is_bottleneck=measured.report["client_is_bottleneck"],
    )


def report_of(output: str) -> dict:
    """The JSON that the bare loop prints at its end."""
    for line in output.splitlines():
        if line.startswith("{"):
            report = json.loads(line)
            if report.get("sends"):
                return report
    raise RunFailed("the bare loop sent nothing")
