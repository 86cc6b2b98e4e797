"""Where the server's CPU time goes under a load: perf(1) beside the load client, summed up in a text a load.

Shares are of the samples of all of the server's threads, ingest included. perf costs the server some percent itself.
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
from run import REPOSITORY, build, say, write_whole
from systems import Programs, Tickcast

WINDOW = Window(warm_up_s=1, duration_s=7)
# perf begins so long after the clients have subscribed and records for so long, in seconds: within the window.
RECORD_AFTER_S, RECORD_S = 2, 4
FREQUENCY_HZ = 999
# Symbols below this share are left out, in percent.
SYMBOL_PERCENT_MIN = 1.0

# What the kernel does for a SEND over loopback, by functions that stand above all the work: with what they call.
STAGES = (
    ("io_uring_enter, everything below it", "__do_sys_io_uring_enter"),
    ("a SEND: TCP's output, and over loopback the peer's input too", "tcp_sendmsg"),
    ("  copying the bytes in", "_copy_from_iter"),
    ("  handing segments to IP", "__tcp_transmit_skb"),
    ("  the peer's side: softirq, on the sender's core", "net_rx_action"),
    ("  the peer's socket takes the segment", "tcp_v4_rcv"),
    ("  waking the peer", "sock_def_readable"),
    ("acknowledgements of the peer", "tcp_ack"),
    ("sleeping and switching between threads", "schedule"),
)
LOADS = ("S1", "S3", "S4", "engine", "saturation")


def parser() -> argparse.ArgumentParser:
    """What may be typed."""
    it = argparse.ArgumentParser(prog="bench/profile", description="Profiles tickcast under loads of the suite.")
    it.add_argument("loads", nargs="*", metavar="LOAD[:BUDGET_US][@DELIVERIES_PER_S]", default=list(LOADS),
                    help=f"loads of bench/run --list ({' '.join(LOADS)})")
    it.add_argument("--bin", metavar="DIR", type=Path, help="use the binaries there instead of building them")
    it.add_argument("--out", metavar="DIR", type=Path, default=REPOSITORY / "bench/profiles", help="where texts go")
    return it


def parsed(text: str) -> tuple[loads.Load, loads.Variant]:
    """A load with its first variant, at another budget or rate where the text asks for it."""
    text, _, rate = text.partition("@")
    name, _, budget = text.partition(":")
    [load] = loads.chosen(name)
    variant = load.variants[0]
    if budget:
        variant = replace(variant, budget_us=int(budget))
    if rate:
        load = load.at_rate(int(rate) // (load.fan_out * load.producers))
    return load, variant


def perf(*words: str) -> str:
    """What perf prints."""
    done = subprocess.run(["perf", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunFailed(f"perf {words[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return "\n".join(line.rstrip() for line in done.stdout.splitlines() if line.strip() and not line.startswith("#"))


def recorded(programs: Programs, load: loads.Load, variant: loads.Variant, data: Path) -> dict:
    """Runs the load with perf on the server; the client's report."""
    with Processes() as processes:
        system = Tickcast(programs, variant)
        endpoint = system.start(processes, load)
        words = client.command(programs.client, load, endpoint, WINDOW, None)
        record = ["perf", "record", "-q", "-g", "-F", str(FREQUENCY_HZ), "-p", str(endpoint.pids[0]), "-o", str(data)]
        begin = ["sh", "-c", f"sleep {RECORD_AFTER_S} && exec \"$@\"", "sh", *record, "--", "sleep", str(RECORD_S)]
        measured = client.run(
            processes, words, load, WINDOW, list(endpoint.pids), lambda: processes.start(begin, client.CLIENT_CORE)
        )
        system.stop()
        return measured.report


def shares(text: str) -> dict[str, float]:
    """`12.34%  [k] symbol` lines, by symbol."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        words = line.split()
        percents = [word for word in words if word.endswith("%")]
        if percents:
            found.setdefault(words[-1], float(percents[0].rstrip("%")))
    return found


def summed_up(load: loads.Load, variant: loads.Variant, report: dict, data: Path) -> str:
    """The text of one load."""
    base = ("report", "-i", str(data), "-g", "none", "--stdio")
    with_callees = shares(perf(*base, "--children", "--sort", "sym"))
    cpu = report["server_cpu_s"] * 1e6 / max(report["deliveries"], 1)
    lines = [
        f"{load.title}; tickcast ({variant.label})",
        f"{report['deliveries_per_s']:,.0f} deliveries/s, {cpu:.3f} us of CPU a delivery, perf included",
        "",
        "Share of samples, by thread and object:",
        perf(*base, "--no-children", "--sort", "comm,dso", "--percent-limit", "0.5"),
        "",
        "Stages, each with all that it calls (they contain each other):",
        *(f"{with_callees.get(symbol, 0.0):9.2f}%  {what} ({symbol})" for what, symbol in STAGES),
        "",
        f"Symbols of {SYMBOL_PERCENT_MIN:.0f} % and more, without what they call:",
        perf(*base, "--no-children", "--sort", "comm,sym", "--percent-limit", str(SYMBOL_PERCENT_MIN)),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Profiles what was asked for."""
    options = parser().parse_args()
    for polite in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(polite, signal.default_int_handler)
    if shutil.which("perf") is None:
        print("bench/profile: perf is not installed (Debian: linux-perf)", file=sys.stderr)
        return 2
    try:
        wanted = [(text, *parsed(text)) for text in options.loads]
        programs = Programs(options.bin.resolve() if options.bin else build())
        for text, load, variant in wanted:
            say(f"profiling {text}")
            with tempfile.TemporaryDirectory(prefix="tickcast-profile-") as folder:
                data = Path(folder) / "perf.data"
                report = recorded(programs, load, variant, data)
                write_whole(options.out / f"{text.replace(':', '-').replace('@', '-')}.txt", summed_up(load, variant, report, data))
    except (RunFailed, ValueError) as failure:
        print(f"bench/profile: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
