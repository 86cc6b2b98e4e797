#!/usr/bin/env python3
"""Starts and stops the peers that tickcast is compared with, each pinned to a core.

    from peers import PEERS, PeerError

    with PEERS["nats"](core=0, folder="/some/empty/folder") as peer:
        peer.address        # "127.0.0.1:40123": --server of tickcast-c10k and tickcast-feed
        peer.pid            # --server-pid of tickcast-c10k
        peer.subscriber     # arguments of tickcast-c10k: ["--transport", "nats", ...]
        peer.feeder         # arguments of tickcast-feed, or None if the peer has its own producers
        peer.version        # one line for the report
        peer.command        # the server's command line, for the report

When `start` (or `with`) returns, the peer has answered in its own protocol. `stop` stops it and returns its output. A
peer that cannot start raises PeerError, whose text says what to do. The kernel chooses the ports. Peers write only
below `folder`. Needs Python 3.9 and no packages.

By hand: `python3 peers.py nats --core 0` starts a peer, prints the client commands for it, and stops it at Ctrl-C.
"""

import argparse
import json
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
# Time for a server to answer after its start, and to exit after SIGINT.
READY_S = 15
STOP_S = 10
# Another process may take a free port before the server binds it, so the start is repeated with another port.
START_ATTEMPTS = 3
NCHAN_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
# Open files that a server needs besides its connections.
DESCRIPTOR_RESERVE = 64


class PeerError(Exception):
    """A peer that cannot start. The text says why and what to do."""


class Peer:
    """One server. Subclasses define its command and its handshake."""

    name = ""
    package = ""
    binary = ""
    transport = ""
    # Protocol of tickcast-feed; None if the peer has its own producers.
    protocol = None

    def __init__(self, core=0, folder=None, topics=50):
        """`core` is the CPU to pin to, or None. `folder` holds its files; None makes a temporary one. A `subscriber`
        subscribes to the topics sim.0 to sim.`topics - 1`."""
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
        """Starts the server, waits until it answers, and returns itself."""
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
            # To a file: a pipe that nobody reads would block the server once full.
            with open(self.folder / "output", "w", encoding="utf-8") as output:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    cwd=self.folder, env={**os.environ, **self._environment()}, start_new_session=True,
                )
            # taskset replaces itself with the server, so this is the server's pid.
            self.pid = self._process.pid
            try:
                if self._await_ready():
                    return self
            except BaseException:
                self.stop()
                raise
            printed = self.stop()
            if "ddress already in use" not in printed or attempt == START_ATTEMPTS - 1:
                raise PeerError(f"{self.name} did not answer within {READY_S} s: {' '.join(command)}\n{printed}")
        raise AssertionError("the last attempt returns or raises")

    def stop(self):
        """Stops the server with SIGINT, then SIGKILL if it does not exit; returns its output."""
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
        """Arguments of tickcast-c10k, except --server, to subscribe to all topics."""
        return ["--transport", self.transport, "--subscribe", "sim.>"]

    @property
    def feeder(self):
        """Arguments of tickcast-feed, except --server; None if the peer has its own producers."""
        return ["--protocol", self.protocol, "--topics", str(self.topics)] if self.protocol else None

    def _command(self, port):
        raise NotImplementedError

    def _environment(self):
        return {}

    def _version(self):
        return first_line([self.binary, "--version"])

    # Bytes to send once connected, and how the server's answer starts.
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
            raise PeerError(f"this process may not use core {self.core}; choose one of {sorted(allowed)}")

    def _find(self, binary, package):
        # Debian installs servers in folders outside a user's PATH.
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
        found = shutil.which(binary, path=path)
        if found is None:
            raise PeerError(
                f"{self.name} needs {binary}; install it with bench/peers/install.sh or apt-get install {package}")
        return found


class Nats(Peer):
    """nats-server, in its native protocol."""

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
        # One core, so one thread for Go code: more would only compete.
        return {"GOMAXPROCS": "1"}


class Redis(Peer):
    """redis-server's publish/subscribe. Clients subscribe by channel name, which costs Redis less than a pattern."""

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
    """nginx with Nchan in one process. Subscribers are WebSockets on /sub?id=CHANNEL,CHANNEL,..."""

    name = "nchan"
    package = "nginx libnginx-mod-nchan"
    binary = "nginx"
    transport = "nchan"
    protocol = "nchan"
    hello = b"GET /nothing HTTP/1.0\r\n\r\n"
    answer = b"HTTP/1.1 404"
    # Channels per subscriber (NCHAN_MULTITAG_MAX).
    CHANNELS_MAX = 255

    @property
    def subscriber(self):
        if self.topics > self.CHANNELS_MAX:
            raise PeerError(f"Nchan allows {self.CHANNELS_MAX} channels per subscriber, not {self.topics}")
        channels = ",".join(f"sim.{topic}" for topic in range(self.topics))
        return ["--transport", "nchan", "--path", f"/sub?id={channels}"]

    def _command(self, port):
        modules = [Path(folder) / "ngx_nchan_module.so" for folder in NCHAN_MODULES]
        module = next((path for path in modules if path.exists()), None)
        if module is None:
            raise PeerError(
                "nchan needs nginx's module ngx_nchan_module.so; install it with bench/peers/install.sh or apt-get "
                "install libnginx-mod-nchan")
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


class OwnProducers(Peer):
    """A server in another language, with its own producers. `stop` returns its counters as JSON."""

    package = "npm"
    hello = b"GET / HTTP/1.0\r\n\r\n"
    answer = b"HTTP/1."

    def __init__(self, core=0, folder=None, topics=50, rate=100, size=100, wait_clients=0):
        """`topics` producers with `rate` ticks/s of `size` bytes each, which start once `wait_clients` are connected."""
        super().__init__(core, folder, topics)
        self.wait_clients = wait_clients
        self.rate = rate
        self.size = size

    def _options(self, port):
        return ["--listen", f"127.0.0.1:{port}", "--producers", str(self.topics), "--rate", str(self.rate), "--size",
                str(self.size), "--wait-clients", str(self.wait_clients)]


class Node(OwnProducers):
    """A server in Node, of a package that bench/peers/install.sh installs."""

    binary = "node"
    FOLDER = HERE / "node"
    # The package, and the program that uses it.
    module = ""
    program = ""

    def _command(self, port):
        # A server that cannot keep up queues more than the default allows.
        return [self._find(self.binary, self.package), "--max-old-space-size=8192", str(self.FOLDER / self.program),
                *self._options(port)]

    def _version(self):
        description = self.FOLDER / "node_modules" / self.module / "package.json"
        if not description.exists():
            raise PeerError(f"{self.name} needs {self.module}; install it with bench/peers/install.sh or npm install --prefix bench/peers/node")
        version = json.loads(description.read_text(encoding="utf-8"))["version"]
        return f"{self.module} {version}, Node {first_line([self._find(self.binary, self.package), '--version'])}"


class SocketIoNode(Node):
    """The Socket.IO server for Node with its defaults (node/socketio.js)."""

    name = "socketio-node"
    module = "socket.io"
    program = "socketio.js"
    transport = "socketio"


class WsNode(Node):
    """`ws` for Node with a deflate for each client (node/ws.js). Publishes a capture `speed` times as fast, if it has one."""

    name = "ws-node"
    module = "ws"
    program = "ws.js"
    transport = "websocket"

    def __init__(self, capture=None, speed=1.0, **more):
        super().__init__(**more)
        self.capture = capture
        self.speed = speed

    @property
    def subscriber(self):
        return ["--transport", "websocket", "--path", "/", "--deflate"]

    def _options(self, port):
        capture = ["--capture", str(self.capture), "--speed", str(self.speed)] if self.capture else []
        return [*super()._options(port), *capture]


class Socketioxide(OwnProducers):
    """A Socket.IO server in Rust (socketioxide/), built on start."""

    name = "socketioxide"
    package = "cargo"
    binary = "cargo"
    transport = "socketio"
    FOLDER = HERE / "socketioxide"

    def _command(self, port):
        build = [self._find("cargo", self.package), "build", "--release", "--locked", "--quiet", "--manifest-path",
                 str(self.FOLDER / "Cargo.toml")]
        # The suite's own target folder must not be in the way of that of this project.
        environment = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
        done = subprocess.run(build, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise PeerError(f"socketioxide failed to build: {' '.join(build)}\n{done.stderr}")
        return [str(self.FOLDER / "target" / "release" / "tickcast-bench-socketioxide"), *self._options(port)]

    def _version(self):
        locked = (self.FOLDER / "Cargo.lock").read_text(encoding="utf-8").split('name = "socketioxide"\nversion = "')[1]
        return f"socketioxide {locked.split(chr(34))[0]}, {first_line([self._find('cargo', self.package), '--version'])}"


class Hub(OwnProducers):
    """The Go case study's design (hub/main.go), built on start, with its own producers.

    `stop` returns its counters as JSON."""

    name = "hub"
    package = "golang-go"
    binary = "go"
    transport = "websocket"
    hello = b"GET / HTTP/1.0\r\n\r\n"
    answer = b"HTTP/1.0 400"

    @property
    def subscriber(self):
        return ["--transport", "websocket", "--path", "/"]

    def _command(self, port):
        built = self.folder / "hub"
        if not built.exists():
            build = [self._find("go", self.package), "build", "-o", str(built), str(HERE / "hub" / "main.go")]
            done = subprocess.run(build, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise PeerError(f"the Go hub failed to build: {' '.join(build)}\n{done.stderr}")
        return [str(built), "-listen", f"127.0.0.1:{port}", "-producers", str(self.topics), "-rate", str(self.rate), "-size",
                str(self.size), "-wait-clients", str(self.wait_clients)]

    def _environment(self):
        return {"GOMAXPROCS": "1"}

    def _version(self):
        return first_line([self._find("go", self.package), "version"])


class Bun(OwnProducers):
    """A WebSocket server in Bun (bun/server.js), whose engine is uWebSockets, with its own producers.

    `stop` returns its counters as JSON."""

    name = "bun"
    package = "npm"
    binary = "npm"
    transport = "websocket"
    hello = b"GET / HTTP/1.0\r\n\r\n"
    answer = b"HTTP/1.1 400"
    FOLDER = HERE / "bun"
    # Installed by npm: the package `bun` names one package for each platform.
    PROGRAM = FOLDER / "node_modules" / "bun" / "bin" / "bun.exe"

    @property
    def subscriber(self):
        return ["--transport", "websocket", "--path", "/"]

    def _command(self, port):
        return [str(self.PROGRAM), str(self.FOLDER / "server.js"), *self._options(port)]

    def _find(self, binary, package):
        if binary != self.binary:
            return super()._find(binary, package)
        if not self.PROGRAM.exists():
            raise PeerError("bun is not installed; install it with bench/peers/install.sh or npm install --prefix bench/peers/bun")
        return str(self.PROGRAM)

    def _version(self):
        return f"Bun {first_line([str(self.PROGRAM), '--version'])}"


PEERS = {peer.name: peer for peer in (Nats, Redis, Nchan, Hub, Bun, SocketIoNode, WsNode, Socketioxide)}


def free_port():
    """A port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def split(address):
    """Host and port of an address."""
    host, port = address.rsplit(":", 1)
    return host, int(port)


def first_line(command):
    """First line that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().split("\n")[0]


def main():
    """The command line: starts one peer until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description="Starts a peer of tickcast and prints the client commands for it; stops it at Ctrl-C.")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--core", type=int, default=0, metavar="CORE", help="CPU to pin the peer to [default: 0]")
    parser.add_argument("--topics", type=int, default=50, metavar="N",
                        help="use the topics sim.0 to sim.N-1 [default: 50]")
    options = parser.parse_args()
    try:
        with PEERS[options.peer](core=options.core, topics=options.topics) as peer:
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
