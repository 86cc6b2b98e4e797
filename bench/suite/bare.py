"""The bare loop, `tickcast-bare`: sends the same bytes in the same sizes to as many sockets, without a broker."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, replace

import client
from client import Endpoint, Window
from figures import Row
from loads import Load
from processes import Processes, RunFailed
from systems import SERVER_CORE, START_S, Programs, addresses_of

US_PER_S = 1_000_000
# Limits of the bare loop: bytes per SEND, and time between two rounds.
SEND_BYTES_MAX = 1 << 20
INTERVAL_US_MAX = 10_000_000
# If more rounds than this share start late, the loop's latency is meaningless.
LATE_SHARE_MAX = 0.01
# Each client receives every topic's name and all ticks, so more topics would not change the load.
TOPICS_MAX = 50


@dataclass(frozen=True)
class BareRun:
    """Figures of one run of the bare loop."""

    cpu_us_per_send: float
    bytes_per_send: float
    wire_mb_per_s: float
    # Measured by the load client from the time each round was due: the machine's own tail.
    p50_us: float | None
    p99_us: float | None
    # Whether rounds started on time and every round sent to every socket.
    kept_up: bool
    client_is_bottleneck: bool


def ticks_per_send(row: Row, size: int) -> int:
    """Whole ticks per SEND, as close as possible to tickcast's."""
    return max(1, min(round(row.deliveries_per_send), SEND_BYTES_MAX // max(size, 1)))


def interval_us(row: Row, load: Load) -> int:
    """Time between two SENDs to one connection that gives it tickcast's tick rate.

    Rounding to whole ticks per SEND makes SENDs less or more frequent than tickcast's.
    """
    per_connection = row.delivered_per_s / ticks_per_send(row, load.size) / load.clients
    return min(max(1, round(US_PER_S / per_connection)), INTERVAL_US_MAX)


def run(programs: Programs, window: Window, load: Load, row: Row, unthrottled: bool) -> BareRun:
    """Runs the bare loop against the load client with the sizes and rate of `row`, and adds its commands to `row`.

    Raises RunFailed if the loop is not built or fails.
    """
    program = programs.bare
    if not program.exists():
        raise RunFailed("tickcast-bare is not built")
    is_websocket = row.variant.startswith("ws")
    argv = [
        str(program),
        *("--tcp", "127.0.0.1:0"),
        *("--connections", str(load.clients)),
        *("--topics", str(min(load.topic_count, TOPICS_MAX))),
        *("--size", str(load.size)),
        *("--ticks-per-send", str(ticks_per_send(row, load.size))),
        *("--interval", "0" if unthrottled else f"{interval_us(row, load)}us"),
        *(("--websocket",) if is_websocket else ()),
    ]
    transport = ("--transport", "ws", "--encoding", "rkyv") if is_websocket else ("--transport", "native")
    with Processes() as processes:
        server = processes.start(argv, SERVER_CORE)
        address, _http = addresses_of(server.wait_for_line("tcp=", START_S))
        endpoint = Endpoint(address, transport, (server.pid,))
        plain = replace(load, client_options=(), subscribe=("sim.>",))
        client_argv = client.command(programs.client, plain, endpoint, window, None)
        measured = client.run(processes, client_argv, plain, window, [server.pid], lambda: None)
        server.stop(signal.SIGINT)
        report = report_of(server.rest_of_output())
    row.commands = [*row.commands, *processes.commands]
    return BareRun(
        cpu_us_per_send=report["cpu_ns_per_send"] / 1e3,
        bytes_per_send=report["bytes_per_send"],
        wire_mb_per_s=measured.report["received_bytes_per_s"] / 1e6,
        p50_us=measured.report["latency_us"].get("p50"),
        p99_us=measured.report["latency_us"].get("p99"),
        kept_up=not report.get("skipped_sends") and report["late_rounds"] <= LATE_SHARE_MAX * max(report["rounds"], 1),
        client_is_bottleneck=measured.report["client_is_bottleneck"],
    )


def report_of(output: str) -> dict:
    """The JSON report that the bare loop prints when it ends."""
    for line in output.splitlines():
        if line.startswith("{"):
            report = json.loads(line)
            if report.get("sends"):
                return report
    raise RunFailed("the bare loop sent nothing")
