"""The command line of bench/run: builds, runs the loads one after the other, and writes one report."""

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

import against
import loads
import machine
import peer_systems
import plots
import report
from client import CLIENT_CORE, Window
from figures import Row, median_run
from measure import Suite
from processes import RunFailed, descriptor_limit
from systems import SERVER_CORE, Programs, tickcast_systems

REPOSITORY = Path(__file__).resolve().parents[2]
# Committed report, updated only with --write.
COMMITTED_REPORT = REPOSITORY / "bench/README.md"
SCRATCH_REPORT = REPOSITORY / "target/bench/README.md"
# Raw results, beside the report.
RESULTS_NAME = "results.json"
# The largest load opens 10,000 connections; the rest is for other files.
DESCRIPTORS_MIN = 10_200
FULL = Window(warm_up_s=1, duration_s=8)
QUICK = Window(warm_up_s=1, duration_s=3)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(
        prog="bench/run",
        description="Runs tickcast and its peers under the same loads. Prints the main figures and writes a Markdown "
                    "report with plots and raw results to target/bench/. The committed report changes only with --write.",
    )
    run = cli.add_argument_group("what to run")
    run.add_argument("--only", metavar="NAME[,NAME]", help="run these loads only [default: all]")
    run.add_argument("--list", action="store_true", help="list the loads and exit")
    run.add_argument("--quick", action="store_true",
                     help=f"measure {QUICK.duration_s} s instead of {FULL.duration_s} s per row")
    run.add_argument("--repeat", metavar="N", type=int, default=1,
                     help="run each row N times and report the median by p99 [default: 1]")
    run.add_argument("--no-peers", action="store_true", help="run tickcast only")
    run.add_argument("--bin", metavar="DIR", type=Path, help="use the binaries in DIR [default: build them]")
    output = cli.add_argument_group("where results go")
    output.add_argument("--write", action="store_true",
                        help=f"update the committed report: bench/README.md, bench/plots/ and bench/{RESULTS_NAME}; "
                             f"with --only, the other loads come from bench/{RESULTS_NAME}, if it exists")
    output.add_argument("--out", metavar="FILE", type=Path,
                        help="report file; plots go to plots/ beside it [default: target/bench/README.md]")
    output.add_argument("--json", metavar="FILE", type=Path,
                        help=f"file for raw results [default: {RESULTS_NAME} beside the report]")
    reuse = cli.add_argument_group("earlier results")
    reuse.add_argument("--from-json", metavar="FILE", type=Path, help="run nothing; render the raw results in FILE")
    reuse.add_argument("--keep", metavar="FILE", type=Path, action="append", default=[],
                       help="merge raw results of an earlier run: loads not run now come from the first FILE; loads run "
                            "now count each FILE as one more repeat; repeatable")
    compare = cli.add_argument_group("old binary against new")
    compare.add_argument("--against", metavar="BINARY", type=Path,
                         help="compare with an older tickcast in interleaved pairs and print the ratios new/old; "
                              "writes no report. Combines with --only, --quick, --bin and --json")
    compare.add_argument("--pairs", metavar="N", type=int, default=against.PAIRS,
                         help=f"pairs per load [default: {against.PAIRS}]")
    return cli


def checked(cli: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exits with a message if options contradict each other."""
    if options.repeat < 1:
        cli.error("--repeat must be at least 1")
    if options.pairs < 1:
        cli.error("--pairs must be at least 1")
    if options.write and options.out:
        cli.error("--write and --out both name the report; use one")
    if options.against and (options.write or options.out or options.from_json or options.keep):
        cli.error("--against writes no report; remove --write, --out, --from-json and --keep")


def report_path(options: argparse.Namespace) -> Path:
    """Where the report goes. The committed report must be asked for."""
    return COMMITTED_REPORT if options.write else options.out or SCRATCH_REPORT


def results_path(options: argparse.Namespace) -> Path:
    """Where raw results go."""
    return options.json or report_path(options).parent / RESULTS_NAME


def log(text: str) -> None:
    """Prints one line of progress with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def build() -> Path:
    """Builds the release binaries and returns their folder."""
    log("building the release binaries")
    argv = ["cargo", "build", "--release", "--locked", "--bins", "--message-format=json"]
    done = subprocess.run(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RunFailed("cargo build failed")
    for line in done.stdout.splitlines():
        built = json.loads(line).get("executable")
        if built:
            return Path(built).parent
    raise RunFailed("cargo build reported no binaries")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that readers see either the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def results_text(result: dict) -> str:
    """Raw results as JSON, with one row per line so that versions compare."""
    head = json.dumps({name: value for name, value in result.items() if name != "loads"}, indent=1)
    texts = []
    for load in result["loads"]:
        rows = ",\n".join(f"   {json.dumps(row)}" for row in load["rows"])
        own = json.dumps({name: value for name, value in load.items() if name != "rows"})
        texts.append(f'  {own.removesuffix("}")}, "rows": [\n{rows}\n  ]}}')
    return head.removesuffix("\n}") + ',\n "loads": [\n' + ",\n".join(texts) + "\n ]\n}\n"


def list_loads() -> None:
    """Prints the loads, for --list."""
    for load in loads.LOADS:
        print(f"{load.name:12} {load.title}")
        print(f"{'':12} compared with: {', '.join(load.peers) or 'no peer'}{', the bare loop' if load.bare else ''}")


def arguments_of(options: argparse.Namespace) -> list[str]:
    """The arguments that change the report, for its header."""
    argv = ["--quick"] if options.quick else []
    argv += ["--only", options.only] if options.only else []
    argv += [word for path in options.keep for word in ("--keep", path.name)]
    argv += ["--repeat", str(options.repeat)] if options.repeat > 1 else []
    argv += ["--no-peers"] if options.no_peers else []
    return [*argv, *(["--write"] if options.write else [])]


def programs_of(options: argparse.Namespace) -> Programs:
    """The binaries to measure; RunFailed if one that every load needs is missing."""
    programs = Programs(options.bin.resolve() if options.bin else build())
    for program in (programs.server, programs.client):
        if not program.exists():
            raise RunFailed(f"{program} does not exist; build the release binaries or omit --bin")
    return programs


def check_machine() -> None:
    """Refuses a machine that cannot run the loads."""
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        raise RunFailed(f"this process may not use core {SERVER_CORE} (server) and core {CLIENT_CORE} (load client)")
    limit = descriptor_limit()
    if limit < DESCRIPTORS_MIN:
        raise RunFailed(f"the limit of open files is {limit}; raise it to {DESCRIPTORS_MIN} (ulimit -Hn)")


def kept_loads(earlier: list[dict], chosen: set[str]) -> list[dict]:
    """Loads of earlier runs that are not run now, each with the time of its run."""
    known = {load.name for load in loads.LOADS}
    return [
        {"started": result["started"], **load}
        for result in earlier
        for load in result["loads"]
        if load["name"] not in chosen and load["name"] in known
    ]


def with_earlier(name: str, rows: list[Row], earlier: list[dict]) -> list[Row]:
    """Each row as the median of this run and the earlier runs of the same load, system and variant."""

    def runs_of(row: Row) -> list[Row]:
        found = [
            Row.from_json(one)
            for result in earlier
            for load in result["loads"]
            if load["name"] == name
            for one in load["rows"]
            if (one["system"], one["variant"]) == (row.system, row.variant)
        ]
        return [row, *found]

    return [median_run(runs_of(row)) for row in rows] if earlier else rows


def run_loads(options: argparse.Namespace, programs: Programs, scratch: Path) -> dict:
    """Runs the chosen loads and returns the raw results."""
    chosen = loads.chosen(options.only)
    suite = Suite(programs, QUICK if options.quick else FULL, options.repeat, scratch, log)
    result = {
        "machine": machine.facts(REPOSITORY),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "window_s": suite.window.duration_s,
        "warm_up_s": suite.window.warm_up_s,
        "repeat": options.repeat,
        "arguments": arguments_of(options),
        "steal_percent": 0.0,
        "loads": [],
    }
    earlier = [json.loads(path.read_text()) for path in options.keep]
    before = machine.CpuTimes.now()
    for load in chosen:
        log(f"== {load.title}")
        systems = tickcast_systems(programs, load)
        missing = []
        if not options.no_peers:
            peers, missing = peer_systems.for_load(programs, load, scratch)
            systems += peers
        started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        rows = with_earlier(load.name, suite.measure(load, systems), earlier)
        rows += [Row(load=load.name, system=name, fed_by="network", failed=why) for name, why in missing]
        result["loads"].append({"name": load.name, "started": started, "rows": [row.to_json() for row in rows]})
        result["steal_percent"] = machine.noise(before, machine.CpuTimes.now(), 0.0)["steal_percent"]
        if not options.write or options.json:
            # After each load, so that a later failure does not cost these figures. The committed results are
            # written at the end only: an interrupted run must not change them.
            write_atomically(results_path(options), results_text(result))
    order = [load.name for load in loads.LOADS]
    committed_results = COMMITTED_REPORT.parent / RESULTS_NAME
    if options.write and not earlier and committed_results.exists():
        earlier = [json.loads(committed_results.read_text())]
    kept = kept_loads(earlier[:1], {load.name for load in chosen})
    result["loads"] = sorted([*result["loads"], *kept], key=lambda load: order.index(load["name"]))
    return result


def run_report(options: argparse.Namespace, scratch: Path) -> Path:
    """Runs the loads, or reads earlier results; writes the report and prints the main figures."""
    if options.from_json:
        result = json.loads(options.from_json.read_text())
    else:
        loads.chosen(options.only)
        check_machine()
        result = run_loads(options, programs_of(options), scratch)
        # First, so that a failure to render does not cost the figures.
        write_atomically(results_path(options), results_text(result))
    path = report_path(options)
    drawn = plots.draw(result)
    # Kept results of older versions have no curves; their plots may still be beside the report.
    present = plots.existing(path.parent) if options.from_json or options.keep else []
    text = report.markdown(result, sorted({*present, *drawn}))
    for name, svg in drawn.items():
        write_atomically(path.parent / "plots" / name, svg)
    write_atomically(path, text)
    print(report.terminal(result))
    return path


def run_against(options: argparse.Namespace, scratch: Path) -> None:
    """Compares with an older binary and prints the ratios."""
    cases = against.chosen(options.only)
    old = options.against.resolve()
    if not os.access(old, os.X_OK) or old.is_dir():
        raise RunFailed(f"--against {options.against}: not an executable file; name an older tickcast binary")
    check_machine()
    programs = programs_of(options)
    suite = Suite(programs, QUICK if options.quick else FULL, 1, scratch, log)
    compared = against.run(suite, cases, old, options.pairs)
    if options.json:
        write_atomically(options.json, json.dumps([one.to_json() for one in compared], indent=1) + "\n")
    print(against.table(compared))


def main(arguments: list[str]) -> int:
    """Runs the suite. Exit status: 0 done, 1 failed, 130 interrupted."""
    cli = parser()
    options = cli.parse_args(arguments)
    checked(cli, options)
    if options.list:
        list_loads()
        return 0
    # All three interrupt like Ctrl-C, so that every process is stopped. SIGINT too: a shell ignores it for
    # background jobs.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="tickcast-bench-") as scratch:
            if options.against:
                run_against(options, Path(scratch))
                return 0
            path = run_report(options, Path(scratch))
    except KeyboardInterrupt:
        log("interrupted: all processes are stopped; no report is written")
        return 130
    except (RunFailed, ValueError, OSError) as error:
        print(f"bench/run: {error}", file=sys.stderr)
        return 1
    log(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
