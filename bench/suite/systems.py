"""The systems under test: how each is started on its core, reached by the load client, and fed."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from client import CLIENT_CORE, Endpoint
from loads import Load, Variant
from processes import Process, Processes, RunFailed

SERVER_CORE = 0
# Connections that the publisher divides its producers over: as many as the case study has producers.
FEED_CONNECTIONS_MAX = 50
START_S = 15.0
NS_PER_S = 1_000_000_000
# Seconds of a capture that is replayed in a loop: long enough that its seam is rare.
CAPTURE_S = 60
# The simulator's payload is JSON with a time in it, and cannot be shorter.
SIMULATED_BYTES_MIN = 64


@dataclass(frozen=True)
class Programs:
    """The release binaries, in one folder."""

    folder: Path

    @property
    def server(self) -> Path:
        """tickcast itself."""
        return self.folder / "tickcast"

    @property
    def client(self) -> Path:
        """The load client."""
        return self.folder / "tickcast-c10k"

    @property
    def feed(self) -> Path:
        """The publisher in a process of its own."""
        return self.folder / "tickcast-feed"

    @property
    def bare(self) -> Path:
        """SENDs with no broker at all."""
        return self.folder / "tickcast-bare"


class Feed:
    """A publisher in a process of its own, on the client's core. It starts when the clients have subscribed."""

    def __init__(self, processes: Processes, programs: Programs, options: list[str], address: str, load: Load):
        if not programs.feed.exists():
            raise RunFailed("tickcast-feed is not built: nothing can publish from outside")
        self.processes = processes
        self.words = [
            str(programs.feed),
            *options,
            *("--server", address),
            *("--producers", str(load.producers)),
            *("--rate", str(load.rate)),
            *("--size", str(load.size)),
            *("--connections", str(min(load.producers, FEED_CONNECTIONS_MAX))),
        ]
        self.process: Process | None = None
        self.report: dict = {}

    def start(self) -> None:
        """Begins to publish."""
        self.process = self.processes.start(self.words, CLIENT_CORE)

    def stop(self) -> None:
        """Ends it and takes its report."""
        if self.process is None:
            return
        ended_early = not self.process.is_running
        self.process.stop(signal.SIGINT)
        if ended_early:
            raise RunFailed(f"the publisher ended by itself: {self.process.error_tail()}")
        for line in self.process.rest_of_output().splitlines():
            if line.startswith("{"):
                self.report = json.loads(line)


class Tickcast:
    """Our own server."""

    system = "tickcast"

    def __init__(self, programs: Programs, variant: Variant):
        self.programs = programs
        self.variant = variant
        self.server: Process | None = None
        self.feed: Feed | None = None

    @property
    def label(self) -> str:
        """The variant."""
        return self.variant.label

    @property
    def fed_by(self) -> str:
        """Who publishes."""
        return self.variant.fed_by

    def start(self, processes: Processes, load: Load) -> Endpoint:
        """Starts it; the simulator publishes from the start on."""
        words = [
            str(self.programs.server),
            "serve",
            *("--cores", str(SERVER_CORE)),
            *("--tcp", "127.0.0.1:0"),
            *("--http", "127.0.0.1:0"),
            "--no-admin",
            *self.source(processes, load),
            *load.server_options,
        ]
        if self.variant.budget_us:
            words += ["--latency-budget-us", str(self.variant.budget_us)]
        self.server = processes.start([*words, "--report"], SERVER_CORE, {"RUST_LOG": "info"})
        native, http = addresses_of(self.server.line_with("tcp=", START_S))
        if self.variant.fed_by == "network" and load.producers:
            options = ["--protocol", "tickcast", "--topics", str(load.topic_count)]
            self.feed = Feed(processes, self.programs, options, native, load)
        policy = ("--policy", load.policy) if load.policy else ()
        if self.variant.transport == "ws":
            return Endpoint(http, ("--transport", "ws", "--encoding", "rkyv"), (self.server.pid,), policy)
        return Endpoint(native, ("--transport", "native"), (self.server.pid,), policy)

    def source(self, processes: Processes, load: Load) -> list[str]:
        """Options that say where ticks come from."""
        if load.producers == 0:
            return []
        if self.variant.fed_by == "network":
            return ["--no-sim"]
        if self.variant.fed_by == "capture":
            folder = Path(tempfile.mkdtemp(prefix="tickcast-capture-"))
            processes.add_stop(lambda: shutil.rmtree(folder, ignore_errors=True))
            capture = write_capture(load, folder)
            return ["--replay", str(capture), "--loop"]
        if load.size < SIMULATED_BYTES_MIN:
            raise RunFailed(f"the simulator's payloads have {SIMULATED_BYTES_MIN} bytes at least")
        return [
            *("--sim-producers", str(load.producers)),
            *("--sim-rate", str(load.rate)),
            *("--sim-size", str(load.size)),
            *("--sim-topics", str(load.topic_count)),
            # As many topics as are offered, and some to spare.
            *(("--topics-max", str(2 * load.topic_count)) if load.topic_count > 32_768 else ()),
        ]

    def stop(self) -> str:
        """Ends it; what it logged."""
        self.server.stop(signal.SIGINT)
        return self.server.error_text()


def addresses_of(line: str) -> tuple[str, str]:
    """Native and HTTP address in `listening tcp=ADDR http=ADDR`; one that is missing is empty."""
    found = dict(word.split("=", 1) for word in line.split() if "=" in word)
    return found.get("tcp", ""), found.get("http", "")


def capture_lines(load: Load, seconds: int):
    """A capture of the load: each producer at its rate, all evenly spaced, payloads of exactly the size."""
    payload = json.dumps("~" * (load.size - 2))
    per_second = load.ticks_per_s
    prefix = load.subscribe[0].split(".")[0]
    for k in range(per_second * seconds):
        topic = f"{prefix}.{k % load.producers}"
        yield f'{{"at_ns":{k * NS_PER_S // per_second},"topic":"{topic}","data":{payload}}}\n'


def write_capture(load: Load, folder: Path) -> Path:
    """The capture, in a folder that the caller removes."""
    path = folder / f"{load.name}.ndjson"
    with path.open("w") as file:
        file.writelines(capture_lines(load, CAPTURE_S))
    return path


def tickcast_systems(programs: Programs, load: Load) -> list[Tickcast]:
    """tickcast in each of the load's variants."""
    return [Tickcast(programs, variant) for variant in load.variants]
