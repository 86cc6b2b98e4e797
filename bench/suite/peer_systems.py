"""The peers that tickcast is compared with, started by bench/peers/peers.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import client
from client import Endpoint
from loads import Load
from processes import Processes, RunFailed, readable_command
from systems import CAPTURES, SERVER_CORE, Feed, Programs

PEERS_FOLDER = Path(__file__).resolve().parents[1] / "peers"
sys.path.append(str(PEERS_FOLDER))

try:
    from peers import PEERS, PeerError
except ImportError:  # A checkout without peers measures tickcast alone.
    PEERS, PeerError = {}, RuntimeError


class PeerSystem:
    """One peer, fed by `tickcast-feed` or by its own producers (the Go hub, Bun)."""

    def __init__(self, programs: Programs, name: str, scratch: Path):
        self.programs = programs
        self.system = name
        # Shared by all runs, so that the Go hub is built once.
        self.folder = scratch / f"peer-{name}"
        self.feed: Feed | None = None
        self.peer = None

    @property
    def has_own_producers(self) -> bool:
        """Whether the peer generates its ticks itself, like tickcast's simulator."""
        return PEERS[self.system].protocol is None

    @property
    def label(self) -> str:
        """Marks a peer that generates its ticks itself."""
        return "producers inside" if self.has_own_producers else ""

    @property
    def fed_by(self) -> str:
        """Source of ticks; decides which of tickcast's rows the peer is compared with."""
        return "simulator" if self.has_own_producers else "network"

    def start(self, processes: Processes, load: Load) -> Endpoint:
        """Starts the peer and waits until it answers."""
        kind = PEERS[self.system]
        more = {}
        if self.has_own_producers:
            # The producers start when all clients are connected, like the external publisher of the other peers.
            more = {"rate": max(load.rate, 1), "size": max(load.size, 1), "wait_clients": load.clients}
        if load.capture:
            more |= {"capture": CAPTURES / load.capture, "speed": load.speed}
        # An idle load has one topic and no publisher.
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
            # The load client chooses the topics of each connection.
            options = [*("--transport", kind.transport)]
        self.feed = None
        if feeder is not None and load.producers:
            self.feed = Feed(processes, self.programs, feeder, self.peer.address, load)
        return Endpoint(self.peer.address, tuple(options), (self.peer.pid, *children_of(self.peer.pid)), subscribe=())

    def stop(self) -> str:
        """Stops the peer and returns its output."""
        return self.peer.stop()

    def dropped(self, printed: str) -> int | None:
        """Dropped ticks that the peer reports at exit; some with own producers do. Clients are not informed of them."""
        for line in printed.splitlines():
            if line.startswith("{"):
                return json.loads(line).get("dropped")
        return None


def children_of(pid: int) -> list[int]:
    """Child processes."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def for_load(programs: Programs, load: Load, scratch: Path) -> tuple[list[PeerSystem], list[tuple[str, str]]]:
    """The load's peers that can run, and the names of those that cannot, each with the reason."""
    systems, missing = [], []
    for name in load.peers:
        if name not in PEERS:
            missing.append((name, "bench/peers has no such peer"))
        elif not client.has_value(programs.client, PEERS[name].transport):
            missing.append((name, f"the load client does not speak {PEERS[name].transport}"))
        else:
            systems.append(PeerSystem(programs, name, scratch))
    return systems, missing
