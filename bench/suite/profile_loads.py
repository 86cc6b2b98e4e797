"""Profiles the server under a load with perf(1) and writes one summary per load.

Percentages are shares of the samples of all server threads, including the sources. perf itself costs the server a few
percent.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import client
import loads
from client import Window
from processes import Processes, RunFailed
from run import REPOSITORY, build, log, write_atomically
from systems import Programs, Tickcast

WINDOW = Window(warm_up_s=1, duration_s=7)
# When perf starts after the clients have subscribed, and how long it records; both lie within the window.
RECORD_AFTER_S, RECORD_S = 2, 4
FREQUENCY_HZ = 999
# Symbols below this percentage are omitted.
SYMBOL_PERCENT_MIN = 1.0

# Stages of a SEND over loopback, each with the kernel function that contains it.
STAGES = (
    ("io_uring_enter and everything it calls", "__do_sys_io_uring_enter"),
    ("SEND: TCP output and, over loopback, the peer's input", "tcp_sendmsg"),
    ("  copying the payload in", "_copy_from_iter"),
    ("  handing segments to IP", "__tcp_transmit_skb"),
    ("  the peer's side, in softirq on the sender's core", "net_rx_action"),
    ("  the peer's socket receives the segment", "tcp_v4_rcv"),
    ("  waking the peer", "sock_def_readable"),
    ("processing the peer's acknowledgements", "tcp_ack"),
    ("sleeping and switching between threads", "schedule"),
)
LOADS = ("S1", "S3", "S4", "engine", "saturation")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(prog="bench/profile", description="Profiles tickcast under the suite's loads with perf.")
    cli.add_argument("loads", nargs="*", metavar="LOAD[:BUDGET_US][@DELIVERIES_PER_S]", default=list(LOADS),
                    help=f"loads from bench/run --list, optionally with a latency budget and a rate "
                         f"[default: {' '.join(LOADS)}]")
    cli.add_argument("--bin", metavar="DIR", type=Path, help="use the binaries in DIR [default: build them]")
    cli.add_argument("--out", metavar="DIR", type=Path, default=REPOSITORY / "bench/profiles",
                    help="folder for the summaries [default: bench/profiles]")
    return cli


def parsed(text: str) -> tuple[loads.Load, loads.Variant]:
    """The load and its first variant, with the budget and rate that the text names."""
    text, _, rate = text.partition("@")
    name, _, budget = text.partition(":")
    [load] = loads.chosen(name)
    variant = load.variants[0]
    if budget:
        variant = replace(variant, budget_us=int(budget))
    if rate:
        load = loads.at_total_rate(load, int(rate))
    return load, variant


def perf(*argv: str) -> str:
    """Runs perf and returns its output without comments and blank lines."""
    done = subprocess.run(["perf", *argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunFailed(f"perf {argv[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return "\n".join(line.rstrip() for line in done.stdout.splitlines() if line.strip() and not line.startswith("#"))


def recorded(programs: Programs, load: loads.Load, variant: loads.Variant, data: Path) -> dict:
    """Runs the load with perf on the server and returns the client's report."""
    with Processes() as processes:
        system = Tickcast(programs, variant)
        endpoint = system.start(processes, load)
        argv = client.command(programs.client, load, endpoint, WINDOW, None)
        record = ["perf", "record", "-q", "-g", "-F", str(FREQUENCY_HZ), "-p", str(endpoint.pids[0]), "-o", str(data)]
        begin = ["sh", "-c", f"sleep {RECORD_AFTER_S} && exec \"$@\"", "sh", *record, "--", "sleep", str(RECORD_S)]
        measured = client.run(
            processes, argv, load, WINDOW, list(endpoint.pids), lambda: processes.start(begin, client.CLIENT_CORE)
        )
        system.stop()
        return measured.report


def shares(text: str) -> dict[str, float]:
    """Percentages by symbol, from lines like `12.34%  [k] symbol`."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        words = line.split()
        percents = [word for word in words if word.endswith("%")]
        if percents:
            found.setdefault(words[-1], float(percents[0].rstrip("%")))
    return found


def summary(load: loads.Load, variant: loads.Variant, report: dict, data: Path) -> str:
    """The summary of one load."""
    base = ("report", "-i", str(data), "-g", "none", "--stdio")
    with_callees = shares(perf(*base, "--children", "--sort", "sym"))
    cpu = report["server_cpu_s"] * 1e6 / max(report["deliveries"], 1)
    lines = [
        f"{load.title}; tickcast ({variant.label})",
        f"{report['deliveries_per_s']:,.0f} deliveries/s, {cpu:.3f} us CPU per delivery, perf included",
        "",
        "Share of samples by thread and object:",
        perf(*base, "--no-children", "--sort", "comm,dso", "--percent-limit", "0.5"),
        "",
        "Stages, each including everything it calls (so they overlap):",
        *(f"{with_callees.get(symbol, 0.0):9.2f}%  {what} ({symbol})" for what, symbol in STAGES),
        "",
        f"Symbols with at least {SYMBOL_PERCENT_MIN:.0f} %, without what they call:",
        perf(*base, "--no-children", "--sort", "comm,sym", "--percent-limit", str(SYMBOL_PERCENT_MIN)),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Profiles the loads on the command line. Exit status: 0 done, 1 failed, 2 no perf, 130 interrupted."""
    options = parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    if shutil.which("perf") is None:
        print("bench/profile: perf is not installed (Debian: linux-perf)", file=sys.stderr)
        return 2
    try:
        wanted = [(text, *parsed(text)) for text in options.loads]
        programs = Programs(options.bin.resolve() if options.bin else build())
        for text, load, variant in wanted:
            log(f"profiling {text}")
            with tempfile.TemporaryDirectory(prefix="tickcast-profile-") as folder:
                data = Path(folder) / "perf.data"
                report = recorded(programs, load, variant, data)
                name = text.replace(":", "-").replace("@", "-")
                write_atomically(options.out / f"{name}.txt", summary(load, variant, report, data))
    except KeyboardInterrupt:
        log("interrupted: all processes are stopped")
        return 130
    except (RunFailed, ValueError) as failure:
        print(f"bench/profile: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
