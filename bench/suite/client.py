"""The load client: its command line, its run, and which options this version of it has."""

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

# Time for the client to connect, settle and report, beyond ramp, warm-up and window.
MARGIN_S = 100
POLL_INTERVAL_S = 0.01
# The client pins its first thread to this core. The publisher runs there too.
CLIENT_CORE = 1


@dataclass(frozen=True)
class Window:
    """Length of a measurement."""

    warm_up_s: int
    duration_s: int


@dataclass(frozen=True)
class Endpoint:
    """Where a running system is reached, and which processes it consists of."""

    address: str
    transport: tuple[str, ...]  # options of the load client
    pids: tuple[int, ...]
    # Further client options that this system needs.
    options: tuple[str, ...] = ()
    # Replaces the load's subscriptions.
    subscribe: tuple[str, ...] | None = None


@functools.cache
def help_of(program: Path) -> str:
    """Output of `program --help`, or nothing if it cannot be run."""
    try:
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def has_option(program: Path, option: str) -> bool:
    """Whether --help lists the option."""
    return f"{option} " in help_of(program) or f"{option}\n" in help_of(program)


def has_value(program: Path, value: str) -> bool:
    """Whether --help lists the value for some option, such as a transport or a protocol."""
    text = help_of(program)
    return any(line.strip().startswith(f"- {value}:") for line in text.splitlines()) or value in inline_values(text)


def inline_values(text: str) -> set[str]:
    """Values that a short help lists on one line: [possible values: a, b]."""
    found: set[str] = set()
    for part in text.split("[possible values:")[1:]:
        found.update(value.strip() for value in part.split("]")[0].split(","))
    return found


def options_of(load: Load, program: Path) -> list[str]:
    """The load's own client options, or its fallback if this client lacks them; RunFailed if it has no fallback."""
    wanted = load.client_options
    if wanted and not has_option(program, wanted[0]):
        if load.client_options_fallback is None:
            raise RunFailed(f"the load client has no {wanted[0]}")
        wanted = load.client_options_fallback
    return list(wanted)


def command(program: Path, load: Load, endpoint: Endpoint, window: Window, hgrm: Path | None) -> list[str]:
    """The client's command line."""
    argv = [str(program), "--server", endpoint.address, *endpoint.transport, "--connections", str(load.clients)]
    patterns = endpoint.subscribe if endpoint.subscribe is not None else load.subscribe
    for pattern in patterns:
        argv += ["--subscribe", pattern]
    argv += options_of(load, program) if load.client_options else []
    argv += [*endpoint.options]
    if "--spike" not in argv:
        argv += ["--ramp", str(load.client_ramp_per_s)]
    argv += ["--warmup", f"{window.warm_up_s}s", "--duration", f"{window.duration_s}s"]
    if endpoint.pids:
        argv += ["--server-pid", str(endpoint.pids[0])]
    if hgrm is not None:
        argv += ["--hgrm", str(hgrm)]
    return [*argv, "--json"]


@dataclass
class ClientRun:
    """What one run of the client measured."""

    report: dict
    # CPU time, within the window, of the server processes that the client does not observe.
    other_cpu_s: float
    # See machine.noise.
    noise: dict
    # Resident memory of the server's processes at the end of the window, with every client connected.
    server_bytes: int


def run(
    processes: Processes, argv: list[str], load: Load, window: Window, server_pids: list[int], when_subscribed
) -> ClientRun:
    """Runs the client to its end. Calls `when_subscribed()` once the server has acknowledged every connection.

    Raises RunFailed if the client could not run the load.
    """
    client = processes.start(argv, CLIENT_CORE)
    ramp_s = load.clients / load.client_ramp_per_s
    deadline = time.monotonic() + ramp_s + window.warm_up_s + window.duration_s + MARGIN_S
    wait_for(lambda: client.stderr_contains("subscribed ") or not client.is_running, deadline, client)
    other_cpu_s, noise_shares, server_bytes = 0.0, {}, 0
    if client.is_running:
        subscribed_at = time.monotonic()
        when_subscribed()
        own_pids = [*server_pids, *(one.pid for one in processes.started if one.pid not in server_pids)]
        # Sleeps through the window: polling would add noise.
        sleep_until(subscribed_at + window.warm_up_s)
        times, own_s, other_s = CpuTimes.now(), cpu_seconds(own_pids), cpu_seconds(server_pids[1:])
        sleep_until(subscribed_at + window.warm_up_s + window.duration_s)
        server_bytes = resident_bytes(server_pids)
        other_cpu_s = cpu_seconds(server_pids[1:]) - other_s
        noise_shares = noise(times, CpuTimes.now(), cpu_seconds(own_pids) - own_s)
    wait_for(lambda: not client.is_running, deadline, client)
    text = client.rest_of_output()
    if client.child.returncode not in (0, 1) or not text.strip():
        raise RunFailed(f"the client exited with status {client.child.returncode}: {client.stderr_tail()}")
    try:
        return ClientRun(json.loads(text), other_cpu_s, noise_shares, server_bytes)
    except json.JSONDecodeError as error:
        raise RunFailed(f"the client's report is not JSON: {error}") from None


def wait_for(done, deadline: float, client: Process) -> None:
    """Waits until `done()`; RunFailed after the deadline."""
    while not done():
        if time.monotonic() > deadline:
            raise RunFailed(f"{client.name} did not finish in time: {client.stderr_tail()}")
        time.sleep(POLL_INTERVAL_S)


def sleep_until(at: float) -> None:
    """Sleeps until a monotonic time."""
    time.sleep(max(0.0, at - time.monotonic()))
