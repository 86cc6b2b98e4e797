"""Runs a healthy load beside each abuse, and prints what it cost: latency, loss and the longest turn, in one table.

The server has two shards on two cores and its default limits. The healthy load is S1 at a fifth of its rate: 100 clients
that receive 1,000 ticks/s, so that the load client and the abuser fit on the same two cores. Each abuse runs in a process
of its own, beside a server of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from abuses import ABUSES, CONFIGURATIONS, GO, Target
from processes import Processes, RunFailed, cpu_seconds, descriptor_limit, resident_bytes

START_S = 15.0
WARM_UP_S = 1
CLIENTS = 100
MARGIN_S = 60.0
# Time that an abuser has to prepare.
PREPARE_S = 120.0


@dataclass
class Row:
    """What was measured beside one abuse."""

    name: str
    latency_us: dict
    lost: int
    announced: int
    closed: int
    slow_turns: int
    longest_turn_ms: str
    cpu_s: float
    rss_mib: float
    did: str

    def cells(self) -> list[str]:
        """The cells of the table."""
        milliseconds = [f"{self.latency_us[key] / 1e3:.2f}" for key in ("p50", "p99", "p99.9", "max")]
        counts = [self.lost, self.announced, self.closed, self.slow_turns]
        return [
            self.name,
            *milliseconds,
            *(f"{count:,}" for count in counts),
            self.longest_turn_ms,
            f"{self.cpu_s:.1f}",
            f"{self.rss_mib:.0f}",
            self.did,
        ]


COLUMNS = [
    "beside",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "max ms",
    "lost",
    "announced",
    "closed",
    "turns > 100 ms",
    "longest turn, CPU ms",
    "server CPU s",
    "RSS MiB",
    "what the abuser did",
]


def main() -> int:
    """Runs the abuses that were asked for."""
    parser = argparse.ArgumentParser(prog="bench/abuse", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bin", type=Path, default=Path("target/release"), metavar="DIR", help="the binaries")
    parser.add_argument("--only", metavar="NAME[,NAME]", help="these abuses only [default: all]")
    parser.add_argument("--list", action="store_true", help="list the abuses and exit")
    parser.add_argument("--seconds", type=int, default=10, metavar="N", help="length of each window [default: 10]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--abuse", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.abuse:
        # The process of an abuser. It prints one line, and holds its connections until it is stopped.
        # Real ones run on other machines, so they do not compete for the server's cores.
        os.nice(19)
        target = Target(**json.loads(options.target))
        ABUSES[options.abuse](target)
        return 0
    if options.list:
        for name, abuse in ABUSES.items():
            print(f"{name:24} {abuse.__doc__}")
        return 0
    names = options.only.split(",") if options.only else list(ABUSES)
    unknown = [name for name in names if name not in ABUSES]
    if unknown:
        parser.error(f"no abuse named {', '.join(unknown)}; see --list")
    for program in ("tickcast", "tickcast-c10k"):
        if not (options.bin / program).exists():
            parser.error(f"{options.bin / program} does not exist: run cargo build --release")
    descriptor_limit()
    rows = []
    for name in [None, *names]:
        print(f"{time.strftime('%H:%M:%S')} {name or 'nobody'} ...", file=sys.stderr, flush=True)
        try:
            rows.append(measure(options.bin, name, options.seconds))
        except RunFailed as failure:
            print(f"  failed: {failure}", file=sys.stderr)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps([row.__dict__ for row in rows], indent=1) + "\n")
    return 0 if len(rows) == len(names) + 1 else 1


def measure(folder: Path, name: str | None, seconds: int) -> Row:
    """The healthy load beside an abuse, or alone."""
    with Processes() as processes, tempfile.TemporaryDirectory() as scratch:
        configuration, tenant_socket = [], ""
        if name in CONFIGURATIONS:
            file, tenant_socket = Path(scratch, "tickcast.toml"), str(Path(scratch, "tenant.sock"))
            file.write_text(CONFIGURATIONS[name].format(socket=tenant_socket))
            configuration = ["--config", str(file)]
        server = processes.start(
            [
                str(folder / "tickcast"),
                "serve",
                *configuration,
                *("--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
                *("--shards", "2", "--sim-producers", "50", "--sim-rate", "20", "--sim-size", "100"),
            ]
        )
        line = server.wait_for_line("listening ", START_S)
        tcp, http, admin = (int(re.search(rf"{key}=127\.0\.0\.1:(\d+)", line)[1]) for key in ("tcp", "http", "admin"))
        abuser, did = None, "nothing"
        if name:
            target = Target(tcp, http, admin, server.pid, WARM_UP_S, seconds, tenant_socket)
            abuser = processes.start(
                [sys.executable, __file__, "--abuse", name, "--target", json.dumps(target.__dict__)]
            )
            abuser.wait_for_line("prepared", PREPARE_S)
        client = processes.start(
            [
                str(folder / "tickcast-c10k"),
                *("--server", f"127.0.0.1:{tcp}", "--transport", "native", "--connections", str(CLIENTS)),
                *("--subscribe", "sim.>", "--warmup", f"{WARM_UP_S}s", "--duration", f"{seconds}s"),
                *("--server-pid", str(server.pid), "--json"),
            ]
        )
        deadline = time.monotonic() + START_S
        while not client.stderr_contains("subscribed "):
            if time.monotonic() > deadline or not client.is_running:
                raise RunFailed(f"the healthy clients could not subscribe: {client.stderr_tail()}")
            time.sleep(0.01)
        cpu_before = cpu_seconds([server.pid])
        if abuser:
            abuser.child.send_signal(GO)
        client.wait(seconds + MARGIN_S)
        if abuser:
            try:
                did = abuser.wait_for_line("", MARGIN_S)
            except RunFailed as failure:
                did = f"failed: {failure}"
        report = json.loads(client.rest_of_output())
        if not server.is_running:
            raise RunFailed(f"the server has ended: {server.stderr_tail()}")
        metrics = scrape(admin)
        for line in server.stderr_text().splitlines():
            if "turn" in line:
                print(f"  {line}", file=sys.stderr)
        return Row(
            name=name or "nobody",
            latency_us=report["latency_us"],
            lost=report["lost"] or 0,
            announced=(report["conflated"] or 0) + (report["dropped"] or 0),
            closed=sum(report["ended_early"].values()),
            slow_turns=int(total(metrics, "tickcast_turns_slow_total")),
            longest_turn_ms=longest_turn(metrics),
            cpu_s=cpu_seconds([server.pid]) - cpu_before,
            rss_mib=resident_bytes([server.pid]) / 2**20,
            did=did,
        )


def scrape(admin: int) -> list[tuple[str, str, float]]:
    """Name, labels and value of each sample of /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    samples = []
    for line in lines:
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found:
            samples.append((found[1], found[2] or "", float(found[3])))
    return samples


def total(metrics: list[tuple[str, str, float]], name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(value for sample, _, value in metrics if sample == name)


def longest_turn(metrics: list[tuple[str, str, float]]) -> str:
    """The bound of the histogram that the CPU time of all turns of all shards is within."""
    buckets: dict[float, float] = {}
    for name, labels, value in metrics:
        if name == "tickcast_turn_cpu_seconds_bucket":
            bound = float(re.search(r'le="([^"]+)"', labels)[1].replace("+Inf", "inf"))
            buckets[bound] = buckets.get(bound, 0) + value
    turns = buckets.get(float("inf"), 0)
    for bound in sorted(buckets):
        if buckets[bound] >= turns:
            return "over the last bucket" if bound == float("inf") else f"<= {bound * 1e3:g}"
    return "unknown"


def print_table(rows: list[Row]) -> None:
    """Prints a Markdown table."""
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(row.cells()) + " |")


if __name__ == "__main__":
    sys.exit(main())
