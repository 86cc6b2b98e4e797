#!/usr/bin/env python3
"""The servers that tickcast is measured beside: start one, pinned to a core, and stop it.

    from peers import PEERS, PeerError

    with PEERS["nats"](core=0, folder="/some/empty/folder") as peer:
        peer.address        # "127.0.0.1:40123": what tickcast-c10k and tickcast-feed get as --server
        peer.pid            # for tickcast-c10k --server-pid
        peer.subscriber     # arguments of tickcast-c10k: ["--transport", "nats", ...]
        peer.feeder         # arguments of tickcast-feed, or None: the peer has producers of its own
        peer.version        # one line for the report
        peer.command        # what was run, for the report

A peer is ready when `start` (or `with`) returns: it has answered in its own protocol. `stop` ends it and gives what it
printed. What cannot be started raises PeerError, whose text says what to do. Ports are the kernel's choice; nothing is
written but below `folder`. Needs Python 3.9 and nothing else.

By hand: `python3 peers.py nats --core 0` starts one, says what to run beside it, and stops it at Ctrl-C.
"""

import argparse
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Time for a server to answer after its start, and to end after being asked.
READY_S = 15
STOP_S = 10
# The server's port is free when it is chosen, not when it is bound: another may take it meanwhile.
START_ATTEMPTS = 3
NCHAN_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
# Descriptors a connection's server needs besides its connections.
DESCRIPTOR_RESERVE = 64


class PeerError(Exception):
    """A peer that cannot be started, and what to do about it."""


class Peer:
    """One server. Subclasses say what to run and how it answers."""

    name = ""
    package = ""
    binary = ""
    transport = ""
    # What tickcast-feed calls its protocol; None: the peer has producers of its own.
    protocol = None

    def __init__(self, core=0, folder=None, topics=50):
        """`core`: where it runs, or None: anywhere. `folder`: for its files; None: a temporary one. `topics`: how many,
        sim.0 and up, a subscriber of `subscriber` takes."""
        self.core = core
        self.topics = topics
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix=f"peer-{self.name}-") if folder is None else folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.address = None
        self.pid = None
        self.command = None
        self.version = None
        self._process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Starts it and waits until it answers; gives itself."""
        self._check_core()
        self._find(self.binary, self.package)
        self.version = self._version()
        for attempt in range(START_ATTEMPTS):
            port = free_port()
            self.address = f"127.0.0.1:{port}"
            command = self._command(port)
            if self.core is not None:
                command = ["taskset", "-c", str(self.core), *command]
            self.command = command
            # Output goes to a file: a pipe that nobody reads would stop the server when it is full.
            with open(self.folder / "output", "w", encoding="utf-8") as output:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    cwd=self.folder, env={**os.environ, **self._environment()}, start_new_session=True,
                )
            # taskset becomes the server: same process.
            self.pid = self._process.pid
            try:
                if self._await_ready():
                    return self
            except BaseException:
                self.stop()
                raise
            printed = self.stop()
            if "ddress already in use" not in printed or attempt == START_ATTEMPTS - 1:
                raise PeerError(f"{self.name} did not come up within {READY_S} s: {' '.join(command)}\n{printed}")
        raise AssertionError("the last attempt returns or raises")

    def stop(self):
        """Ends it if it runs (SIGINT, after a while SIGKILL); gives what it printed."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        self.pid = None
        path = self.folder / "output"
        printed = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        return printed

    @property
    def subscriber(self):
        """Arguments of tickcast-c10k that take all topics, --server excepted."""
        return ["--transport", self.transport, "--subscribe", "sim.>"]

    @property
    def feeder(self):
        """Arguments of tickcast-feed for these topics, --server excepted; None where the peer feeds itself."""
        return ["--protocol", self.protocol, "--topics", str(self.topics)] if self.protocol else None

    def _command(self, port):
        raise NotImplementedError

    def _environment(self):
        return {}

    def _version(self):
        return first_line([self.binary, "--version"])

    # What to say to the server, and how its answer begins.
    hello = b""
    answer = b""

    def _await_ready(self):
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(split(self.address), timeout=1) as connection:
                    connection.sendall(self.hello)
                    if connection.recv(4096).startswith(self.answer):
                        return True
            except OSError:
                pass
            time.sleep(0.02)
        return False

    def _check_core(self):
        if self.core is None:
            return
        self._find("taskset", "util-linux")
        allowed = os.sched_getaffinity(0)
        if self.core not in allowed:
            raise PeerError(f"core {self.core} is not allowed to this process: {sorted(allowed)} are")

    def _find(self, binary, package):
        # Debian has servers where a user's PATH does not look.
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
        found = shutil.which(binary, path=path)
        if found is None:
            raise PeerError(f"{self.name} needs {binary}: install it with bench/peers/install.sh, or apt-get install {package}")
        return found


class Nats(Peer):
    """nats-server, from its own client protocol's port."""

    name = "nats"
    package = "nats-server"
    binary = "nats-server"
    transport = "nats"
    protocol = "nats"
    answer = b"INFO "

    def _command(self, port):
        return [self._find(self.binary, self.package), "--config", str(HERE / "nats.conf"), "--addr", "127.0.0.1", "--port",
                str(port)]

    def _environment(self):
        # One thread runs Go code on its one core: more would only take it from each other.
        return {"GOMAXPROCS": "1"}


class Redis(Peer):
    """redis-server's publish/subscribe; each subscriber takes its channels by name, which costs Redis less than a pattern."""

    name = "redis"
    package = "redis-server"
    binary = "redis-server"
    transport = "redis"
    protocol = "redis"
    hello = b"PING\r\n"
    answer = b"+PONG"

    @property
    def subscriber(self):
        channels = [part for topic in range(self.topics) for part in ("--subscribe", f"sim.{topic}")]
        return ["--transport", "redis", *channels]

    def _command(self, port):
        return [self._find(self.binary, self.package), str(HERE / "redis.conf"), "--bind", "127.0.0.1", "--port", str(port),
                "--dir", str(self.folder)]


class Nchan(Peer):
    """nginx with Nchan, one worker; a subscriber is a WebSocket on /sub?id=CHANNEL,CHANNEL,..."""

    name = "nchan"
    package = "nginx libnginx-mod-nchan"
    binary = "nginx"
    transport = "nchan"
    protocol = "nchan"
    hello = b"GET /nothing HTTP/1.0\r\n\r\n"
    answer = b"HTTP/1.1 404"
    # Channels one subscriber may name (NCHAN_MULTITAG_MAX).
    CHANNELS_MAX = 255

    @property
    def subscriber(self):
        if self.topics > self.CHANNELS_MAX:
            raise PeerError(f"a subscriber of Nchan takes {self.CHANNELS_MAX} channels at most, not {self.topics}")
        channels = ",".join(f"sim.{topic}" for topic in range(self.topics))
        return ["--transport", "nchan", "--path", f"/sub?id={channels}"]

    def _command(self, port):
        modules = [Path(folder) / "ngx_nchan_module.so" for folder in NCHAN_MODULES]
        module = next((path for path in modules if path.exists()), None)
        if module is None:
            raise PeerError(
                "nchan needs nginx's module ngx_nchan_module.so: install it with bench/peers/install.sh, or apt-get install "
                "libnginx-mod-nchan")
        _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = min(descriptors, 65536) if descriptors != resource.RLIM_INFINITY else 65536
        places = {"MODULE": module, "FOLDER": self.folder, "PORT": port, "DESCRIPTORS": descriptors,
                  "CONNECTIONS": descriptors - DESCRIPTOR_RESERVE}
        text = (HERE / "nginx.conf").read_text(encoding="utf-8")
        for place, value in places.items():
            text = text.replace(f"@{place}@", str(value))
        (self.folder / "nginx.conf").write_text(text, encoding="utf-8")
        return [self._find(self.binary, self.package), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def _version(self):
        return first_line([self._find(self.binary, self.package), "-v"])


class Hub(Peer):
    """The Go case study's design (hub/main.go), built here; its producers are its own. `stop` gives its counts as JSON."""

    name = "hub"
    package = "golang-go"
    binary = "go"
    transport = "websocket"
    hello = b"GET / HTTP/1.0\r\n\r\n"
    answer = b"HTTP/1.0 400"

    def __init__(self, core=0, folder=None, topics=50, rate=100, size=100, wait_clients=0):
        """`topics` producers, each with `rate` ticks a second of `size` bytes, from when `wait_clients` are there."""
        super().__init__(core, folder, topics)
        self.wait_clients = wait_clients
        self.rate = rate
        self.size = size

    @property
    def subscriber(self):
        return ["--transport", "websocket", "--path", "/"]

    def _command(self, port):
        built = self.folder / "hub"
        if not built.exists():
            build = [self._find("go", self.package), "build", "-o", str(built), str(HERE / "hub" / "main.go")]
            done = subprocess.run(build, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise PeerError(f"the Go hub does not build: {' '.join(build)}\n{done.stderr}")
        return [str(built), "-listen", f"127.0.0.1:{port}", "-producers", str(self.topics), "-rate", str(self.rate), "-size",
                str(self.size), "-wait-clients", str(self.wait_clients)]

    def _environment(self):
        return {"GOMAXPROCS": "1"}

    def _version(self):
        return first_line([self._find("go", self.package), "version"])


PEERS = {peer.name: peer for peer in (Nats, Redis, Nchan, Hub)}


def free_port():
    """A port that the kernel has just given, and nobody has."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def first_line(command):
    """What a program says of itself."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().split("\n")[0]


def main():
    """Starts one peer by hand."""
    parser = argparse.ArgumentParser(description="Start a server that tickcast is measured beside, until Ctrl-C.")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--core", type=int, default=0, help="core to pin it to (default 0)")
    parser.add_argument("--topics", type=int, default=50, help="topics sim.0 to sim.N-1 (default 50)")
    typed = parser.parse_args()
    try:
        with PEERS[typed.peer](core=typed.core, topics=typed.topics) as peer:
            print(peer.version)
            print("runs     ", " ".join(peer.command))
            print("subscribe", "tickcast-c10k --server", peer.address, "--server-pid", peer.pid, *peer.subscriber)
            if peer.feeder:
                print("feed     ", "tickcast-feed --server", peer.address, *peer.feeder, flush=True)
            signal.sigwait([signal.SIGINT, signal.SIGTERM])
            print(peer.stop())
    except PeerError as error:
        sys.exit(f"peers.py: {error}")


if __name__ == "__main__":
    main()
