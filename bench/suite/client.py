"""The load client's command, and what this version of it can do."""

from __future__ import annotations

import functools
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from loads import Load
from machine import CpuTimes, noise
from processes import Process, Processes, RunFailed, cpu_seconds, resident_bytes

# Time, in seconds, beyond ramp, warm-up and window for the client to connect, settle and report.
MARGIN_S = 100
# How often a running client is looked at, in seconds.
LOOK_S = 0.01
# The client pins its first thread to this core, and the publisher runs there too.
CLIENT_CORE = 1


@dataclass(frozen=True)
class Window:
    """How long is measured, in seconds."""

    warm_up_s: int
    duration_s: int


@dataclass(frozen=True)
class Endpoint:
    """Where a started system is reached, and which processes it consists of."""

    address: str
    transport: tuple[str, ...]  # words of the client's options
    pids: tuple[int, ...]
    # Options that this system's clients need beyond the load's.
    options: tuple[str, ...] = ()
    subscribe: tuple[str, ...] | None = None


@functools.cache
def help_of(program: Path) -> str:
    """What a program says to --help; nothing where it is not there."""
    try:
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def has_option(program: Path, option: str) -> bool:
    """Whether --help shows the option."""
    return f"{option} " in help_of(program) or f"{option}\n" in help_of(program)


def speaks(program: Path, transport: str) -> bool:
    """Whether --help shows the value, as of --transport or --protocol."""
    text = help_of(program)
    return any(line.strip().startswith(f"- {transport}:") for line in text.splitlines()) or transport in inline(text)


def inline(text: str) -> set[str]:
    """Values that a short help has on one line: [possible values: a, b]."""
    found: set[str] = set()
    for part in text.split("[possible values:")[1:]:
        found.update(value.strip() for value in part.split("]")[0].split(","))
    return found


def options_of(load: Load, program: Path) -> list[str]:
    """The load's own options; RunFailed when this client does not have them and nothing stands in."""
    wanted = load.client_options
    if wanted and not has_option(program, wanted[0]):
        if load.client_options_otherwise is None:
            raise RunFailed(f"the load client does not have {wanted[0]}")
        wanted = load.client_options_otherwise
    return list(wanted)


def command(program: Path, load: Load, endpoint: Endpoint, window: Window, hgrm: Path | None) -> list[str]:
    """The client's words."""
    words = [str(program), "--server", endpoint.address, *endpoint.transport, "--connections", str(load.clients)]
    patterns = endpoint.subscribe if endpoint.subscribe is not None else load.subscribe
    for pattern in patterns:
        words += ["--subscribe", pattern]
    words += options_of(load, program) if load.client_options else []
    words += [*endpoint.options]
    if "--spike" not in words:
        words += ["--ramp", str(load.client_ramp_per_s)]
    words += ["--warm-up-s", str(window.warm_up_s), "--duration-s", str(window.duration_s)]
    if endpoint.pids:
        words += ["--server-pid", str(endpoint.pids[0])]
    if hgrm is not None:
        words += ["--hgrm", str(hgrm)]
    return [*words, "--json"]


@dataclass
class Measured:
    """What a client's run gave."""

    report: dict
    # CPU time in the window of the server's processes that the client does not look at itself.
    other_cpu_s: float
    # Shares of the machine that others had in the window: see machine.noise.
    noise: dict
    # Resident memory of the server's processes as the window ended, with every client still there.
    server_bytes: int


def run(
    processes: Processes, words: list[str], load: Load, window: Window, server_pids: list[int], when_subscribed
) -> Measured:
    """Runs the client to its end. `when_subscribed()` is called once every connection has been acknowledged.

    Raises RunFailed when the client could not run the load.
    """
    client = processes.start(words, CLIENT_CORE)
    ramp_s = load.clients / load.client_ramp_per_s
    deadline = time.monotonic() + ramp_s + window.warm_up_s + window.duration_s + MARGIN_S
    wait_for(lambda: client.error_seen("subscribed ") or not client.is_running, deadline, client)
    other_cpu_s, heard, server_bytes = 0.0, {}, 0
    if client.is_running:
        subscribed_at = time.monotonic()
        when_subscribed()
        own_pids = [*server_pids, *(one.pid for one in processes.started if one.pid not in server_pids)]
        # Nothing is looked at while the window is measured: the suite's own work is noise.
        sleep_until(subscribed_at + window.warm_up_s)
        times, own_s, other_s = CpuTimes.now(), cpu_seconds(own_pids), cpu_seconds(server_pids[1:])
        sleep_until(subscribed_at + window.warm_up_s + window.duration_s)
        server_bytes = resident_bytes(server_pids)
        other_cpu_s = cpu_seconds(server_pids[1:]) - other_s
        heard = noise(times, CpuTimes.now(), cpu_seconds(own_pids) - own_s)
    wait_for(lambda: not client.is_running, deadline, client)
    text = client.rest_of_output()
    if client.child.returncode not in (0, 1) or not text.strip():
        raise RunFailed(f"the client ended with {client.child.returncode}: {client.error_tail()}")
    try:
        return Measured(json.loads(text), other_cpu_s, heard, server_bytes)
    except json.JSONDecodeError as error:
        raise RunFailed(f"the client's report is not JSON: {error}") from None


def wait_for(done, deadline: float, client: Process) -> None:
    """Waits until `done()`."""
    while not done():
        if time.monotonic() > deadline:
            raise RunFailed(f"{client.name} did not come to its end: {client.error_tail()}")
        time.sleep(LOOK_S)


def sleep_until(at: float) -> None:
    """Sleeps until a monotonic time."""
    time.sleep(max(0.0, at - time.monotonic()))
