"""The peers beside tickcast, started by bench/peers/peers.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import client
from client import Endpoint
from loads import Load
from processes import Processes, RunFailed, readable_command
from systems import SERVER_CORE, Feed, Programs

PEERS_FOLDER = Path(__file__).resolve().parents[1] / "peers"
sys.path.append(str(PEERS_FOLDER))

try:
    from peers import PEERS, PeerError
except ImportError:  # A checkout without them measures tickcast alone.
    PEERS, PeerError = {}, RuntimeError


class PeerSystem:
    """One peer. It is fed by `tickcast-feed`, or by producers of its own where it has no publishers (the Go hub)."""

    def __init__(self, programs: Programs, name: str, scratch: Path):
        self.programs = programs
        self.system = name
        # Kept over the runs: what is built there is built once.
        self.folder = scratch / f"peer-{name}"
        self.feed: Feed | None = None
        self.peer = None

    @property
    def has_own_producers(self) -> bool:
        """Whether ticks come from inside, as with tickcast's simulator."""
        return PEERS[self.system].protocol is None

    @property
    def label(self) -> str:
        """How it differs from the other peers."""
        return "producers inside" if self.has_own_producers else ""

    @property
    def fed_by(self) -> str:
        """Which of tickcast's rows it is compared with."""
        return "simulator" if self.has_own_producers else "network"

    def start(self, processes: Processes, load: Load) -> Endpoint:
        """Starts it and waits until it answers."""
        kind = PEERS[self.system]
        more = {}
        if self.has_own_producers:
            # As the others' publisher does, its producers begin when the clients are there.
            more = {"rate": max(load.rate, 1), "size": max(load.size, 1), "wait_clients": load.clients}
        # An idle load has one topic to subscribe to, and nobody who publishes.
        topics = load.producers if self.has_own_producers else load.topic_count or 1
        try:
            self.peer = kind(core=SERVER_CORE, folder=self.folder, topics=topics, **more)
            processes.add_stop(self.peer.stop)
            self.peer.start()
            options, feeder = list(self.peer.subscriber), self.peer.feeder
        except PeerError as error:
            raise RunFailed(" ".join(str(error).split())) from None
        processes.commands.append(readable_command([str(word) for word in self.peer.command]))
        if "--subscribe-own" in load.client_options:
            # Each client says its topics itself.
            options = [*("--transport", kind.transport)]
        self.feed = None
        if feeder is not None and load.producers:
            self.feed = Feed(processes, self.programs, feeder, self.peer.address, load)
        return Endpoint(self.peer.address, tuple(options), (self.peer.pid, *children_of(self.peer.pid)), subscribe=())

    def stop(self) -> str:
        """Ends it; what it printed."""
        return self.peer.stop()

    def dropped(self, printed: str) -> int | None:
        """Ticks that it says it dropped, where it says so: the Go hub does, at its end, but not to the clients."""
        for line in printed.splitlines():
            if line.startswith("{"):
                return json.loads(line).get("dropped")
        return None


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def for_load(programs: Programs, load: Load, scratch: Path) -> tuple[list[PeerSystem], list[tuple[str, str]]]:
    """The load's peers that can be run, and those that cannot, each with the reason."""
    systems, missing = [], []
    for name in load.peers:
        if name not in PEERS:
            missing.append((name, "bench/peers does not have it"))
        elif not client.speaks(programs.client, PEERS[name].transport):
            missing.append((name, f"the load client does not speak {PEERS[name].transport}"))
        else:
            systems.append(PeerSystem(programs, name, scratch))
    return systems, missing
