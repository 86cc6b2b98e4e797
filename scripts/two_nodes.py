"""Two servers, one log, one HAProxy: see two-nodes.sh."""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

TOPICS = 8
# Longest wait for anything.
GUARD_S = 60
# What is read of a client's file to see its last ticks.
TAIL_BYTES = 1 << 16
# Each node keeps what a client misses while it is away, however long a busy machine makes that: ticks, bytes and age, by topic.
HISTORY = "20000:2MiB:10m"
# Lines of each log that are shown if a run fails.
LOG_LINES = 8
# Time under load before, between and after the losses, and of a cut.
PHASE_S = 3


def say(text):
    print(text, flush=True)


def fail(text):
    sys.exit(f"scripts/two-nodes.sh: {text}")


def eventually(what, done, found=lambda: ""):
    """Waits. `found`: what there is instead, if that takes too long."""
    deadline = time.monotonic() + GUARD_S
    while not done():
        if time.monotonic() > deadline:
            fail(f"timed out waiting for: {what}{found()}")
        time.sleep(0.02)


class Processes:
    """The processes that this run has started; it ends no others."""

    def __init__(self):
        self.all = []

    def start(self, log, *words):
        with open(log, "ab") as out:
            process = subprocess.Popen(words, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        self.all.append(process)
        return process

    def end(self):
        for process in self.all:
            if process.poll() is None:
                process.kill()
            process.wait()


class Relay(threading.Thread):
    """The way from one node to the engine, which can be cut."""

    def __init__(self, family, address):
        super().__init__(daemon=True)
        self.family, self.address, self.is_cut, self.pairs = family, address, False, []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.near = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            near, _ = self.listener.accept()
            far = socket.socket(self.family)
            with self.lock:
                if self.is_cut or far.connect_ex(self.address) != 0:
                    near.close()
                    far.close()
                    continue
                self.pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self.pass_on, args=(one, other), daemon=True).start()

    def pass_on(self, one, other):
        try:
            while part := one.recv(1 << 16):
                other.sendall(part)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """Ends all connections, and takes no others until `mend`."""
        with self.lock:
            self.is_cut = True
            for end in self.pairs:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self.pairs = []

    def mend(self):
        self.is_cut = False


class JetStream:
    """A nats-server with one stream, written to without a library."""

    def __init__(self, folder, processes):
        processes.start(folder / "nats.log", "nats-server", "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", str(folder), "--ports_file_dir", str(folder))
        eventually("nats-server", lambda: list(folder.glob("nats-server_*.ports")))
        ports = json.loads(next(folder.glob("nats-server_*.ports")).read_text())
        host, port = ports["nats"][0].removeprefix("nats://").split(":")
        self.address = (host, int(port))
        self.socket = socket.create_connection(self.address)
        self.input = self.socket.makefile("rb")
        self.input.readline()
        stream = json.dumps({"name": "TICKS", "subjects": ["ticks.>"], "storage": "memory", "num_replicas": 1, "retention": "limits"})
        self.socket.sendall(
            b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB answers 1\r\n'
            + f"PUB $JS.API.STREAM.CREATE.TICKS answers {len(stream)}\r\n{stream}\r\n".encode()
        )
        while b'"type"' not in (line := self.input.readline()):
            if not line:
                fail("nats-server has closed the connection")
        if b'"error"' in line:
            fail(f"no stream: {line!r}")

    def relay(self):
        return Relay(socket.AF_INET, self.address)

    def source(self, relay):
        return f'kind = "jetstream"\nservers = ["nats://{relay.near}"]\nstream = "TICKS"\nstart = "all"\nposition = "log"\n'

    def publish(self, ticks):
        self.socket.sendall(b"".join(b"PUB %s %d\r\n%s\r\n" % (topic, len(data), data) for topic, data in ticks))


class Redis:
    """A redis-server with a stream for each topic, written to without a library."""

    def __init__(self, folder, processes):
        path = folder / "redis.sock"
        processes.start(folder / "redis.log", "redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder))
        eventually("redis-server", path.exists)
        self.socket = socket.socket(socket.AF_UNIX)
        eventually("redis-server", lambda: self.socket.connect_ex(str(path)) == 0)
        self.path = path

    def relay(self):
        return Relay(socket.AF_UNIX, str(self.path))

    def source(self, relay):
        streams = json.dumps([f"ticks.{number}" for number in range(TOPICS)])
        return f'kind = "redis-stream"\nserver = "redis://{relay.near}"\nstreams = {streams}\nstart = "all"\nposition = "log"\n'

    def publish(self, ticks):
        words = [[b"XADD", topic, b"*", b"data", data] for topic, data in ticks]
        self.socket.sendall(b"".join(b"*%d\r\n" % len(of_one) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in of_one) for of_one in words))
        answers, wanted = b"", 2 * len(words)
        while answers.count(b"\r\n") < wanted:
            part = self.socket.recv(1 << 16)
            # An id begins with a digit, so a line that begins with - is an error.
            if not part or part.startswith(b"-") or b"\n-" in part:
                fail(f"redis-server: {part!r}")
            answers += part


class Node:
    """One server. Started again, it listens where it did before, so that HAProxy finds it."""

    def __init__(self, name, folder, processes, binary, source):
        self.name, self.processes, self.binary, self.log = name, processes, binary, folder / f"{name}.log"
        self.config = folder / f"{name}.toml"
        self.config.write_text(f'[server]\nnode = "{name}"\n[timeouts]\nreconnect_spread = "500ms"\n[delivery]\nhistory = ["{HISTORY}"]\n[[source]]\n{source}')
        self.addresses = ["127.0.0.1:0"] * 3
        self.start()
        found = re.search(r"listening tcp=(\S+) http=(\S+) admin=(\S+)", self.log.read_text())
        self.addresses = list(found.groups())

    def start(self):
        before = self.log.read_text().count("listening tcp=") if self.log.exists() else 0
        tcp, http, admin = self.addresses
        self.process = self.processes.start(
            self.log, self.binary, "serve", "--config", str(self.config), "--no-sim", "--shards", "2", "--tcp", tcp, "--http", http, "--admin", admin
        )
        eventually(f"node {self.name}", lambda: self.log.read_text().count("listening tcp=") > before or self.ended())

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://{self.addresses[2]}/readyz", timeout=GUARD_S).status == 200
        except urllib.error.HTTPError:
            return False

    def ended(self):
        if self.process.poll() is not None:
            fail(f"node {self.name} has ended:\n{self.log.read_text()}")

    def lose(self, how):
        self.process.send_signal(how)
        self.process.wait()


def haproxy(folder, processes, nodes):
    """Starts HAProxy on a Unix socket. Only nodes that are ready get clients."""
    servers = [
        f"  server {node.name} {node.addresses[0]} check inter 100ms fall 2 rise 1 port {node.addresses[2].rsplit(':', 1)[1]}" for node in nodes
    ]
    text = [
        "defaults",
        "  mode tcp",
        "  timeout connect 2s",
        "  timeout client 1h",
        "  timeout server 1h",
        # Without it, a check must be answered within its interval: on a busy machine, nodes that are ready would seem lost.
        "  timeout check 10s",
        "  retries 5",
        "  option redispatch 1",
        "listen ticks",
        f"  bind unix@{folder}/front.sock",
        "  balance leastconn",
        "  option httpchk GET /readyz",
        *servers,
    ]
    (folder / "haproxy.cfg").write_text("\n".join(text) + "\n")
    processes.start(folder / "haproxy.log", "haproxy", "-db", "-f", str(folder / "haproxy.cfg"))
    eventually("haproxy", (folder / "front.sock").exists)
    return f"unix:{folder}/front.sock"


class Feed(threading.Thread):
    """Publishes numbered ticks at a steady rate until it is stopped."""

    def __init__(self, engine, rate):
        super().__init__(daemon=True)
        self.engine, self.rate, self.stopped = engine, rate, False
        # Ticks of which the engine may have some already, and those that it has.
        self.begun, self.published = 0, 0
        # What has ended it, if not stop(). SystemExit, which fail() raises, would end only this thread.
        self.error = None

    def run(self):
        try:
            self.feed()
        except (Exception, SystemExit) as error:
            self.error = error

    def feed(self):
        start = time.monotonic()
        while not self.stopped:
            due = int((time.monotonic() - start) * self.rate)
            ticks = [(b"ticks.%d" % (number % TOPICS), b"%d" % (number // TOPICS)) for number in range(self.published, due)]
            if ticks:
                self.begun = due
                self.engine.publish(ticks)
                self.published = due
            time.sleep(0.005)

    def check(self):
        if self.error:
            raise self.error

    def stop(self):
        self.stopped = True
        self.join()
        self.check()
        return self.published


def account(file):
    """What a client has collected: its ticks, and what is wrong with them."""
    expected, ticks, faults = {}, 0, []
    whole, _, _ = file.read_text().rpartition("\n")
    for text in whole.splitlines():
        line = json.loads(text)
        if "seq" not in line:
            if line.get("op") in ("gap", "conflated") or line.get("recovered") is False:
                faults.append(text)
            continue
        ticks += 1
        topic, number = line["topic"], line["data"]
        if number != expected.get(topic, 0):
            faults.append(f"{topic}: {number} instead of {expected.get(topic, 0)}")
        expected[topic] = number + 1
    return ticks, faults


def described(files, nodes):
    """What each client has collected so far, and what it and the nodes have logged last."""
    lines = []
    for file in files:
        ticks, faults = account(file)
        lines.append(f"{file.name}: {ticks} ticks, {len(faults)} faults {faults[:2]} {faults[-2:]}")
    for log in [*(pathlib.Path(f"{file}.log") for file in files), *(node.log for node in nodes)]:
        lines += [f"{log.name}: {line}" for line in log.read_text().splitlines()[-LOG_LINES:]]
    return "".join(f"\n  {line}" for line in lines)


def has_later(file, wanted):
    """Whether a client has a tick that was published after so many others, within the end of its file."""
    with open(file, "rb") as input:
        input.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = input.read().splitlines()
    # The first and the last may be parts of lines.
    ticks = [json.loads(line) for line in lines[1:-1]]
    numbers = [tick["data"] * TOPICS + int(tick["topic"].split(".")[1]) for tick in ticks if "seq" in tick]
    return max(numbers, default=0) >= wanted


def run(options, folder, processes):
    engine = {"jetstream": JetStream, "redis": Redis}[options.engine](folder, processes)
    relays = [engine.relay() for _ in range(2)]
    nodes = [Node(name, folder, processes, options.binary, engine.source(relay)) for name, relay in zip(("a", "b"), relays)]
    eventually("the nodes to be ready", lambda: all(node.is_ready() for node in nodes))
    front = haproxy(folder, processes, nodes)
    files = [folder / f"client-{number}.ndjson" for number in range(options.clients)]
    def check(clients):
        if any(client.poll() is not None for client in clients):
            fail(f"a client has ended:{described(files, nodes)}")

    words = [options.binary, "sub", "ticks.>", "--server", front, "--from", "beginning", "--append"]
    clients = [processes.start(f"{file}.log", *words, str(file)) for file in files]
    feed = Feed(engine, options.rate)
    feed.start()
    for node, how in zip(nodes, (signal.SIGTERM, signal.SIGKILL)):
        time.sleep(PHASE_S)
        lost = time.monotonic()
        node.lose(how)
        wanted = feed.begun
        # The lost node cannot have sent what is published from here on.
        eventually(
            "ticks at the other node",
            lambda: feed.check() or check(clients) or all(has_later(file, wanted) for file in files),
            lambda: described(files, nodes),
        )
        say(f"node {node.name} lost by {how.name}: every client has ticks of the other {time.monotonic() - lost:.2f} s later")
        node.start()
    for node, relay in zip(nodes, relays):
        time.sleep(PHASE_S)
        relay.cut()
        time.sleep(PHASE_S)
        relay.mend()
        mended, wanted = time.monotonic(), feed.begun
        eventually(
            "ticks after the cut",
            lambda: feed.check() or check(clients) or all(has_later(file, wanted) for file in files),
            lambda: described(files, nodes),
        )
        say(f"node {node.name} cut off from its engine for {PHASE_S} s: every client has all ticks {time.monotonic() - mended:.2f} s later")
    time.sleep(PHASE_S)
    published = feed.stop()
    # A third of what is due.
    if published < options.rate * PHASE_S:
        fail(f"only {published} ticks were published")
    eventually(
        f"each of {published} ticks at every client",
        lambda: check(clients) or all(account(file)[0] >= published for file in files),
        lambda: described(files, nodes),
    )
    faults = [fault for file in files for fault in account(file)[1]]
    if faults:
        fail(f"{len(faults)} faults, such as {faults[:3]}")
    say(f"{options.engine}: {options.clients} clients have each of {published} ticks exactly once")


def main():
    parser = argparse.ArgumentParser(prog="scripts/two-nodes.sh")
    parser.add_argument("engine", choices=["jetstream", "redis"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--binary", default="target/release/tickcast")
    options = parser.parse_args()
    if not os.access(options.binary, os.X_OK):
        fail(f"{options.binary} not found: cargo build --release, or --binary FILE")
    processes = Processes()
    with tempfile.TemporaryDirectory(prefix="tickcast-two-nodes-") as folder:
        try:
            run(options, pathlib.Path(folder), processes)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            processes.end()


main()
