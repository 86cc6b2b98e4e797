"""Starts, watches and stops the processes of a run: each pinned to a core, each ended by its own pid.

Every process leads a session of its own, so that Ctrl-C reaches only the suite, which then stops them in order.
"""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

# A process that was asked to stop has this long, in seconds, before it is asked harder.
STOP_SECONDS = 8.0
# Lines of a process's standard error that an error message shows.
ERROR_LINES = 5
CPU_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class RunFailed(Exception):
    """A run that could not be made or did not end well: one line for the operator."""


def cpu_seconds_of_stat(stat: str) -> float:
    """User and system time of one /proc/PID/stat; its name may hold blanks and parentheses itself (proc(5))."""
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CPU_TICKS_PER_S


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that the processes have used until now; one that is gone counts nothing."""
    total = 0.0
    for pid in pids:
        try:
            total += cpu_seconds_of_stat(Path(f"/proc/{pid}/stat").read_text())
        except (OSError, IndexError, ValueError):
            pass
    return total


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of the processes together; what they share counts for each of them."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        except (OSError, IndexError, ValueError):
            pass
    return total


class Process:
    """One running process. Its standard output is read line by line, its standard error is kept in a file."""

    def __init__(self, argv: list[str], core: int | None, environment: dict[str, str] | None = None):
        pinned = ["taskset", "-c", str(core), *argv] if core is not None else list(argv)
        self.argv = pinned
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._lines: queue.Queue[str | None] = queue.Queue()
        try:
            self.child = subprocess.Popen(
                pinned,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            self.errors.close()
            raise RunFailed(f"{pinned[0]}: {error.strerror}: is it installed?") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process itself: taskset becomes what it starts."""
        return self.child.pid

    def _read(self) -> None:
        for line in self.child.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line_with(self, mark: str, timeout_s: float) -> str:
        """The next line of standard output that contains `mark`.

        Raises RunFailed when the process ends first, or says nothing of the kind in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise RunFailed(f"{self.name}: no {mark!r} within {timeout_s:.0f} s") from None
            if line is None:
                self.child.wait()
                raise RunFailed(f"{self.name} ended with {self.child.returncode}: {self.error_tail()}")
            if mark in line:
                return line

    def error_seen(self, mark: str) -> bool:
        """Whether standard error has `mark` by now."""
        return mark in self.error_text()

    def wait(self, timeout_s: float) -> int:
        """The exit status; RunFailed when it takes longer."""
        try:
            return self.child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"{self.name} took more than {timeout_s:.0f} s") from None

    def rest_of_output(self) -> str:
        """What a process that has ended printed and nobody read yet."""
        self._reader.join(STOP_SECONDS)
        lines = []
        while not self._lines.empty():
            line = self._lines.get_nowait()
            if line is not None:
                lines.append(line)
        return "\n".join(lines)

    def error_text(self) -> str:
        """All of standard error. The child shares the file's offset, so it is read by position."""
        size = os.fstat(self.errors.fileno()).st_size
        return os.pread(self.errors.fileno(), size, 0).decode("utf-8", "replace")

    def error_tail(self) -> str:
        """The last lines of standard error, as one line."""
        lines = [line for line in self.error_text().splitlines() if line.strip()]
        return " | ".join(lines[-ERROR_LINES:]) or "it said nothing"

    @property
    def name(self) -> str:
        """What it is called in messages."""
        words = self.argv[3:] if self.argv[0] == "taskset" else self.argv
        return Path(words[0]).name

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.child.poll() is None

    def stop(self, first: signal.Signals = signal.SIGINT) -> None:
        """Asks it to stop, then harder; returns when it is gone."""
        for number in (first, signal.SIGTERM, signal.SIGKILL):
            if not self.is_running:
                break
            self.child.send_signal(number)
            try:
                self.child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        self._reader.join(STOP_SECONDS)


    def close(self) -> None:
        """Gives back the files of a process that has ended."""
        self.errors.close()
        self.child.stdout.close()


class Processes:
    """Everything that one run has started; leaving the block stops it, the last first."""

    def __init__(self) -> None:
        self.started: list[Process] = []
        self.commands: list[str] = []
        self._others: list = []

    def start(self, argv: list[str], core: int | None = None, environment: dict[str, str] | None = None) -> Process:
        """Starts a process on `core` and remembers its command."""
        process = Process(argv, core, environment)
        self.started.append(process)
        self.commands.append(readable_command(process.argv))
        return process

    def add_stop(self, stop) -> None:
        """Calls `stop()` when the block is left: for what starts its own processes."""
        self._others.append(stop)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind, *_unused) -> None:
        if kind is KeyboardInterrupt:
            # The whole suite is ending: another Ctrl-C must not leave anything running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.stop_all()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.stop_all()
            raise

    def stop_all(self) -> None:
        """Stops what still runs, the last first; what has ended is left as it is."""
        failures = []
        for process in reversed(self.started):
            try:
                process.stop()
                process.close()
            except (OSError, RunFailed) as failure:
                failures.append(failure)
        for stop in reversed(self._others):
            try:
                stop()
            except (OSError, RunFailed) as failure:
                failures.append(failure)
        if failures:
            # The rest is stopped all the same.
            raise RunFailed(f"could not be stopped: {failures[0]}")


def readable_command(argv: list[str]) -> str:
    """A command as somebody would type it: programs by their names, files of the run without their folders.

    What only looks like a path, as /sub?id=1, has no folder that is there and stays.
    """

    def readable(word: str) -> str:
        path = Path(word)
        is_file = path.is_absolute() and len(path.parents) > 1 and path.parent.is_dir()
        return path.name if is_file else word

    return shlex.join(readable(word) for word in argv)


def descriptor_limit() -> int:
    """Raises this process's limit of descriptors, which its children inherit, to the hard one."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
