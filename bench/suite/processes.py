"""Starts, watches and stops the processes of a run. Each is pinned to a core and stopped by its own pid.

Each process leads its own session, so that Ctrl-C reaches only the suite, which then stops them in order.
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

# Time a process has to stop before the next, harsher signal.
STOP_TIMEOUT_S = 8.0
# Lines of standard error that an error message quotes.
ERROR_LINES = 5
CPU_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class RunFailed(Exception):
    """A run that could not start or did not finish; the text is one line for the operator."""


def cpu_seconds_of_stat(stat: str) -> float:
    """User and system time from /proc/PID/stat. The process name may contain blanks and parentheses (proc(5))."""
    fields = stat.rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CPU_TICKS_PER_S


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that the processes have used so far; processes that have exited count as 0."""
    total = 0.0
    for pid in pids:
        try:
            total += cpu_seconds_of_stat(Path(f"/proc/{pid}/stat").read_text())
        except (OSError, IndexError, ValueError):
            pass
    return total


def resident_bytes(pids: list[int]) -> int:
    """Total resident memory of the processes; shared pages count once per process."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        except (OSError, IndexError, ValueError):
            pass
    return total


class Process:
    """One child process. Standard output is read line by line; standard error goes to a file."""

    def __init__(
        self, argv: list[str], core: int | None, environment: dict[str, str] | None = None, fds: tuple[int, ...] = ()
    ):
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
                pass_fds=fds,
            )
        except OSError as error:
            self.errors.close()
            raise RunFailed(f"cannot start {pinned[0]}: {error.strerror}; is it installed?") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id. taskset replaces itself with the program, so it is the program's own."""
        return self.child.pid

    def _read(self) -> None:
        for line in self.child.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for_line(self, mark: str, timeout_s: float) -> str:
        """Waits for the next line of standard output that contains `mark`.

        Raises RunFailed if the process exits first or the time runs out.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise RunFailed(f"{self.name} did not print {mark!r} within {timeout_s:.0f} s") from None
            if line is None:
                self.child.wait()
                raise RunFailed(f"{self.name} exited with status {self.child.returncode}: {self.stderr_tail()}")
            if mark in line:
                return line

    def stderr_contains(self, mark: str) -> bool:
        """Whether standard error contains `mark` so far."""
        return mark in self.stderr_text()

    def wait(self, timeout_s: float) -> int:
        """Waits for the process and returns its exit status; RunFailed if it takes longer."""
        try:
            return self.child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"{self.name} took more than {timeout_s:.0f} s") from None

    def rest_of_output(self) -> str:
        """Unread standard output of a process that has exited."""
        self._reader.join(STOP_TIMEOUT_S)
        lines = []
        while not self._lines.empty():
            line = self._lines.get_nowait()
            if line is not None:
                lines.append(line)
        return "\n".join(lines)

    def stderr_text(self) -> str:
        """All of standard error. Reads by position, because the child shares the file's offset."""
        size = os.fstat(self.errors.fileno()).st_size
        return os.pread(self.errors.fileno(), size, 0).decode("utf-8", "replace")

    def stderr_tail(self) -> str:
        """Last lines of standard error, joined into one."""
        lines = [line for line in self.stderr_text().splitlines() if line.strip()]
        return " | ".join(lines[-ERROR_LINES:]) or "no error output"

    @property
    def name(self) -> str:
        """Name of the program, for messages."""
        argv = self.argv[3:] if self.argv[0] == "taskset" else self.argv
        return Path(argv[0]).name

    @property
    def is_running(self) -> bool:
        """Whether the process has not exited."""
        return self.child.poll() is None

    def stop(self, first: signal.Signals = signal.SIGINT) -> None:
        """Sends `first`, then SIGTERM, then SIGKILL, until the process exits."""
        for number in (first, signal.SIGTERM, signal.SIGKILL):
            if not self.is_running:
                break
            self.child.send_signal(number)
            try:
                self.child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
        self._reader.join(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Closes the files of a process that has exited."""
        self.errors.close()
        self.child.stdout.close()


class Processes:
    """All processes of one run. Leaving the `with` block stops them, last started first."""

    def __init__(self) -> None:
        self.started: list[Process] = []
        self.commands: list[str] = []
        self._others: list = []

    def start(
        self,
        argv: list[str],
        core: int | None = None,
        environment: dict[str, str] | None = None,
        fds: tuple[int, ...] = (),
    ) -> Process:
        """Starts a process on `core`, which inherits the descriptors `fds`, and records its command."""
        process = Process(argv, core, environment, fds)
        self.started.append(process)
        self.commands.append(readable_command(process.argv))
        return process

    def add_stop(self, stop) -> None:
        """Calls `stop()` when the block is left; for systems that start their own processes."""
        self._others.append(stop)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind, *_unused) -> None:
        if kind is KeyboardInterrupt:
            # A second Ctrl-C must not interrupt the clean-up.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.stop_all()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.stop_all()
            raise

    def stop_all(self) -> None:
        """Stops all processes, last started first."""
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
            # Raised last, so that one failure does not leave the others running.
            raise RunFailed(f"a process could not be stopped: {failures[0]}")


def readable_command(argv: list[str]) -> str:
    """A command as a person would type it: programs and files without their folders.

    Words that only look like paths, such as /sub?id=1, stay: their folder does not exist.
    """

    def readable(word: str) -> str:
        path = Path(word)
        is_file = path.is_absolute() and len(path.parents) > 1 and path.parent.is_dir()
        return path.name if is_file else word

    return shlex.join(readable(word) for word in argv)


def descriptor_limit() -> int:
    """Raises the soft limit of open files, which children inherit, to the hard limit; returns it."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
