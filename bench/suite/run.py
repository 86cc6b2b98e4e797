"""The suite's command line: builds, runs the loads one after the other, and writes one report at the end."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import loads
import machine
import peer_systems
import plots
import report
from client import CLIENT_CORE, Window
from figures import Row
from measure import Suite
from processes import RunFailed, descriptor_limit
from systems import SERVER_CORE, Programs, tickcast_systems

REPOSITORY = Path(__file__).resolve().parents[2]
# Connections that the largest load opens, and what else a process has open.
DESCRIPTORS_MIN = 10_200
FULL = Window(warm_up_s=1, duration_s=8)
QUICK = Window(warm_up_s=1, duration_s=3)


def parser() -> argparse.ArgumentParser:
    """What may be typed."""
    it = argparse.ArgumentParser(
        prog="bench/run", description="Runs tickcast's loads beside its peers and writes one Markdown report."
    )
    it.add_argument("--quick", action="store_true",
                    help=f"windows of {QUICK.duration_s} s instead of {FULL.duration_s}")
    it.add_argument("--only", metavar="NAME[,NAME]", help="these loads alone")
    it.add_argument("--out", metavar="FILE", type=Path, default=REPOSITORY / "bench/README.md",
                    help="where the report goes (bench/README.md); plots go into plots/ beside it")
    it.add_argument("--json", metavar="FILE", type=Path, help="write the figures of all rows, as JSON")
    it.add_argument("--repeat", metavar="N", type=int, default=1, help="runs of each row; the median by p99 is shown")
    it.add_argument("--bin", metavar="DIR", type=Path, help="use the binaries there instead of building them")
    it.add_argument("--no-peers", action="store_true", help="tickcast alone")
    it.add_argument("--from-json", metavar="FILE", type=Path, help="run nothing: write the report of such a file")
    it.add_argument("--list", action="store_true", help="print the loads and end")
    return it


def say(text: str) -> None:
    """One line of progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def build() -> Path:
    """Builds the release binaries; the folder they are in."""
    say("building the release binaries")
    words = ["cargo", "build", "--release", "--locked", "--bins", "--message-format=json"]
    done = subprocess.run(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RunFailed("cargo build failed")
    for line in done.stdout.splitlines():
        built = json.loads(line).get("executable")
        if built:
            return Path(built).parent
    raise RunFailed("cargo named no binaries")


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once: whoever looks sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(text)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def list_loads() -> None:
    """What --list prints."""
    for load in loads.LOADS:
        print(f"{load.name:12} {load.title}")
        print(f"{'':12} beside: {', '.join(load.peers) or 'no peer'}{'; the bare loop' if load.bare else ''}")


def arguments_of(typed: argparse.Namespace) -> list[str]:
    """What was asked for, of what changes the figures."""
    words = ["--quick"] if typed.quick else []
    words += ["--only", typed.only] if typed.only else []
    words += ["--repeat", str(typed.repeat)] if typed.repeat > 1 else []
    return [*words, *(["--no-peers"] if typed.no_peers else [])]


def check_programs(programs: Programs) -> None:
    """Refuses a folder without the binaries that every load needs."""
    for program in (programs.server, programs.client):
        if not program.exists():
            raise RunFailed(f"{program} is not there: build the release binaries, or leave --bin away")


def check_machine() -> None:
    """Refuses a machine that cannot run the loads, and says what to do."""
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        raise RunFailed(f"cores {SERVER_CORE} (server) and {CLIENT_CORE} (load) are needed, and not allowed here")
    limit = descriptor_limit()
    if limit < DESCRIPTORS_MIN:
        raise RunFailed(f"{DESCRIPTORS_MIN} descriptors a process are needed, the limit is {limit} (ulimit -Hn)")


def run_loads(typed: argparse.Namespace, programs: Programs, scratch: Path) -> dict:
    """Runs everything that was asked for; what the report is made of."""
    chosen = loads.chosen(typed.only)
    suite = Suite(programs, QUICK if typed.quick else FULL, typed.repeat, scratch, say)
    result = {
        "machine": machine.facts(REPOSITORY),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "window_s": suite.window.duration_s,
        "warm_up_s": suite.window.warm_up_s,
        "repeat": typed.repeat,
        "arguments": arguments_of(typed),
        "loads": [],
    }
    before = machine.CpuTimes.now()
    for load in chosen:
        say(f"== {load.title}")
        systems = tickcast_systems(programs, load)
        missing = []
        if not typed.no_peers:
            peers, missing = peer_systems.for_load(programs, load, scratch)
            systems += peers
        rows = suite.measure(load, systems)
        rows += [Row(load=load.name, system=name, fed_by="network", failed=why) for name, why in missing]
        result["loads"].append({"name": load.name, "rows": [row.to_json() for row in rows]})
        if typed.json:
            # After each load: hours of figures outlive whatever goes wrong later.
            write_whole(typed.json, json.dumps(result, indent=1) + "\n")
    result["steal_percent"] = machine.noise(before, machine.CpuTimes.now(), 0.0)["steal_percent"]
    return result


def main(arguments: list[str]) -> int:
    """Runs; the exit status: 0 done, 1 could not be run, 130 interrupted."""
    typed = parser().parse_args(arguments)
    if typed.repeat < 1:
        parser().error("--repeat: 1 or more")
    if typed.list:
        list_loads()
        return 0
    # A polite end is an end like Ctrl-C: everything that was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    # A shell that starts it in the background has it ignore Ctrl-C; whoever sends it means it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="tickcast-bench-") as scratch:
            if typed.from_json:
                result, drawn = json.loads(typed.from_json.read_text()), {}
            else:
                loads.chosen(typed.only)
                check_machine()
                programs = Programs(typed.bin.resolve() if typed.bin else build())
                check_programs(programs)
                result = run_loads(typed, programs, Path(scratch))
                drawn = plots.draw(result, Path(scratch), programs)
            if typed.json and not typed.from_json:
                # First, so that hours of figures outlive whatever goes wrong with their report.
                write_whole(typed.json, json.dumps(result, indent=1) + "\n")
            pictures = plots.already_there(typed.out.parent) if typed.from_json else sorted(drawn)
            text = report.markdown(result, pictures)
            for name, svg in drawn.items():
                write_whole(typed.out.parent / "plots" / name, svg)
            write_whole(typed.out, text)
    except KeyboardInterrupt:
        say("interrupted: everything is stopped, nothing is written")
        return 130
    except (RunFailed, ValueError, OSError) as error:
        print(f"bench/run: {error}", file=sys.stderr)
        return 1
    say(f"wrote {typed.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
