"""The abuses: what a hostile or unlucky client may do to a server with default limits, without credentials.

Each function prepares, prints "prepared", waits for the window, acts, prints one line that says what it did, and returns
when the window is over. All of them run as a process of their own: see abuse.py.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import struct
import threading
import time
from dataclasses import dataclass

HELLO, SUBSCRIBE, UNSUBSCRIBE, PUBLISH, PING = 1, 2, 3, 4, 5
HEADER = struct.Struct("<IHBBHHIQII")
MAGIC, VERSION = 0x6374, 1
CONFLATE, DROP = 1, 2
TIMEOUT_S = 60.0
# Sent to an abuser that is prepared once the healthy clients have subscribed.
GO = signal.SIGUSR1


@dataclass(frozen=True)
class Target:
    """The server, and the window of the healthy load."""

    tcp: int
    http: int
    admin: int
    pid: int
    warm_up_s: int
    seconds: int
    # The Unix socket of the listener of the tenant "abusive"; empty without tenants.
    tenant_socket: str = ""

    def begin(self) -> float:
        """Says that everything is prepared, and waits for the window to begin; returns when it ends."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
        print("prepared", flush=True)
        signal.sigwait({GO})
        time.sleep(self.warm_up_s)
        return time.monotonic() + self.seconds


def frame(kind: int, record: bytes, payload: bytes = b"") -> bytes:
    """A native frame: see PROTOCOL.md."""
    length = HEADER.size + len(record) + len(payload)
    padded = -(-length // 16) * 16
    header = HEADER.pack(padded, MAGIC, VERSION, 0, kind, len(record), len(payload), 0, 0, 0)
    return header + record + payload + bytes(padded - length)


def hello() -> bytes:
    """HELLO."""
    return frame(HELLO, struct.pack("<IHHQ", 1, 0, 0, 0), b"abuse")


def subscribe(pattern: str, policy: int = 0, max_rate_millihertz: int = 0) -> bytes:
    """SUBSCRIBE."""
    record = struct.pack("<IBBHQQII", 1, 0, policy, 0, 0, 0, max_rate_millihertz, 0)
    return frame(SUBSCRIBE, record, pattern.encode())


def unsubscribe(pattern: str) -> bytes:
    """UNSUBSCRIBE."""
    return frame(UNSUBSCRIBE, struct.pack("<II", 1, 0), pattern.encode())


def publish(topic: str, payload: bytes) -> bytes:
    """PUBLISH."""
    record = struct.pack("<QQIHHQ", 0, 0, 0, len(topic), 0, 0)
    return frame(PUBLISH, record, topic.encode() + payload)


def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    """A connection."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(TIMEOUT_S)
    connection.connect(("127.0.0.1", port))
    return connection


def native(target: Target, receive_buffer: int | None = None) -> socket.socket:
    """A native session."""
    connection = connect(target.tcp, receive_buffer)
    connection.sendall(hello())
    return connection


def unix_connection(target: Target) -> socket.socket:
    """A connection to the listener of the tenant."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    connection.connect(target.tenant_socket)
    return connection


def native_of_tenant(target: Target) -> socket.socket:
    """A connection to the listener of the tenant that has said hello."""
    connection = unix_connection(target)
    connection.sendall(hello())
    return connection


def discard(connection: socket.socket) -> None:
    """Reads and discards everything from now on, in a thread."""

    def read() -> None:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 20):
                pass

    threading.Thread(target=read, daemon=True).start()


def sync(connection: socket.socket, token: int = 7) -> None:
    """Waits until the server has processed everything sent before."""
    connection.sendall(frame(PING, struct.pack("<Q", token)))
    mark, seen = struct.pack("<Q", token), b""
    while True:
        received = connection.recv(1 << 20)
        if not received:
            raise ConnectionError("the server closed the connection")
        seen += received
        if mark in seen:
            return
        seen = seen[-len(mark) :]


def topics(target: Target, prefix: str, count: int) -> socket.socket:
    """Creates topics."""
    publisher = native(target)
    for start in range(0, count, 1000):
        names = range(start, min(count, start + 1000))
        publisher.sendall(b"".join(publish(f"{prefix}.{number}", b"1") for number in names))
    sync(publisher)
    return publisher


def sleep_until(end: float) -> None:
    """Sleeps until a time of the monotonic clock."""
    time.sleep(max(0.0, end - time.monotonic()))


def done(text: str, end: float) -> None:
    """Says what was done, and waits for the end of the window."""
    print(text, flush=True)
    sleep_until(end + 1)


def churn(target: Target) -> None:
    """one connection pipelines subscribe > and unsubscribe > without a pause"""
    connection = native(target)
    discard(connection)
    pair = (subscribe(">") + unsubscribe(">")) * 200
    end, rounds = target.begin(), 0
    while time.monotonic() < end:
        connection.sendall(pair)
        rounds += 1
    done(f"{rounds * 200:,} pairs of requests", end)


def overlapping(target: Target) -> None:
    """1,024 patterns that all match 20,000 topics, then UNSUBSCRIBE for 20 of them"""
    prefix = ".".join("a" * 10)
    topics(target, prefix, 20_000)
    connection = native(target)
    discard(connection)
    patterns = [".".join(tokens) + ".>" for tokens in itertools.product("a*", repeat=10)]
    end = target.begin()
    connection.sendall(b"".join(subscribe(pattern) for pattern in patterns))
    time.sleep(target.seconds / 2)
    connection.sendall(b"".join(unsubscribe(pattern) for pattern in patterns[:20]))
    done("1,024 patterns, 20 of them left", end)


def leave(target: Target) -> None:
    """100 connections with 1,024 wildcards each leave at once, beside 20,000 topics"""
    connections = []
    for number in range(100):
        connection = native(target)
        connection.sendall(b"".join(subscribe(f"{number:x}.{at:x}.*") for at in range(1024)))
        sync(connection)
        connections.append(connection)
    dashboard = native(target)
    dashboard.sendall(subscribe(">", CONFLATE))
    discard(dashboard)
    topics(target, "junk", 20_000)
    end = target.begin()
    for connection in connections:
        connection.close()
    done("102,400 subscriptions ended", end)


def crowd(target: Target) -> None:
    """4,000 connections with a wildcard that matches 20,000 topics come, and leave in the middle"""
    topics(target, "junk", 20_000)
    end, connections = target.begin(), []
    half = time.monotonic() + target.seconds / 2
    for _ in range(4_000):
        if time.monotonic() > half:
            break
        connection = native(target, 4096)
        connection.sendall(subscribe("junk.>", CONFLATE))
        connections.append(connection)
    came = len(connections)
    sleep_until(half)
    for connection in connections:
        connection.close()
    done(f"{came:,} came and left", end)


def paced(target: Target) -> None:
    """1,000 connections with a rate-limited wildcard, then 5,000 new topics"""
    for _ in range(1_000):
        connection = native(target)
        connection.sendall(subscribe("paced.>", CONFLATE, 1_000))
        discard(connection)
    publisher = native(target)
    discard(publisher)
    end = target.begin()
    publisher.sendall(b"".join(publish(f"paced.{number}", bytes(100)) for number in range(5_000)))
    done("5,000 topics with 1,000 members each", end)


def flood(target: Target) -> None:
    """8 publishers as fast as they can, and one subscriber that drops"""
    subscriber = native(target)
    subscriber.sendall(subscribe("flood.>", DROP))
    discard(subscriber)
    end, sent = target.begin(), [0] * 8

    def run(number: int) -> None:
        publisher = native(target)
        discard(publisher)
        batch = b"".join(publish(f"flood.{number}.{at % 4}", bytes(100)) for at in range(500))
        while time.monotonic() < end:
            publisher.sendall(batch)
            sent[number] += 500

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done(f"{min(sent):,} to {max(sent):,} ticks each", end)


def deaf(target: Target) -> None:
    """500 subscribers of everything that never read"""
    end = target.begin()
    connections = []
    for _ in range(500):
        connection = native(target, 4096)
        connection.sendall(subscribe(">", CONFLATE))
        connections.append(connection)
    done("500 connections", end)


def unfinished(target: Target) -> None:
    """200 WebSocket messages of 340 KB that never end, and an empty fragment now and then"""
    connections = []
    request = (
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    for _ in range(200):
        connection = connect(target.http)
        connection.sendall(request)
        connection.recv(4096)
        connections.append(connection)
    end = target.begin()

    def fragment(first: int, payload: bytes) -> bytes:
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else bytes([0xFF]) + struct.pack(">Q", length)
        return bytes([first]) + size + bytes(4) + payload

    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(fragment(0x01, b"x" * 180_000) + fragment(0x00, b"x" * 160_000))
    while time.monotonic() < end:
        time.sleep(1)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(fragment(0x00, b""))
    done("200 messages", end)


def patterns(target: Target) -> None:
    """20 connections with 1,024 patterns of 255 bytes each"""
    end, connections = target.begin(), []
    for number in range(20):
        connection = native(target)
        discard(connection)
        requests = []
        for at in range(1024):
            begin = f"{number:x}-{at:x}"
            requests.append(subscribe(begin + ".a" * ((255 - len(begin)) // 2 - 1) + ".*"))
        connection.sendall(b"".join(requests))
        connections.append(connection)
    done("20,480 patterns", end)


def silent_admins(target: Target) -> None:
    """2,000 connections to the admin listener that send nothing"""
    end = target.begin()
    connections = [connect(target.admin) for _ in range(2_000)]
    done(f"{len(connections):,} connections", end)


def tenant(target: Target) -> None:
    """a tenant far over each of its quotas: 8 publishers, 100 subscribers that read, new topics and connections"""
    end, sent, refused = target.begin(), [0] * 8, 0
    readers = [native_of_tenant(target) for _ in range(100)]
    for reader in readers:
        reader.sendall(b"".join(subscribe(pattern, CONFLATE) for pattern in (">", "flood.*", "new.*")))
        discard(reader)

    def run(number: int) -> None:
        publisher = native_of_tenant(target)
        discard(publisher)
        while time.monotonic() < end:
            topic = f"flood.{number}" if sent[number] % 5_000 else f"new.{number}.{sent[number]}"
            publisher.sendall(publish(topic, bytes(1_000)) * 500)
            sent[number] += 500

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    held = []
    while time.monotonic() < end:
        connection = unix_connection(target)
        connection.sendall(hello())
        held.append(connection)
        if len(held) == 500:
            refused += len(held)
            for old in held:
                old.close()
            held.clear()
        time.sleep(0.001)
    for thread in threads:
        thread.join()
    done(f"{sum(sent):,} ticks, {refused + len(held):,} connections", end)


ABUSES = {
    "churn": churn,
    "overlapping": overlapping,
    "leave": leave,
    "crowd": crowd,
    "paced": paced,
    "flood": flood,
    "deaf": deaf,
    "unfinished": unfinished,
    "patterns": patterns,
    "silent-admins": silent_admins,
    "tenant": tenant,
}

# What the server's configuration file adds for an abuse; {socket} is the path of `Target.tenant_socket`.
CONFIGURATIONS = {
    "tenant": """\
[[tenant]]
name = "abusive"
[tenant.quota]
connections = 200
subscriptions = 250
topics = 50
publish_rate = 2000
egress_rate = "5MiB"
history = "4MiB"
[[listener]]
kind = "native"
address = "127.0.0.1:0"
[[listener]]
kind = "http"
address = "127.0.0.1:0"
[[listener]]
kind = "admin"
address = "127.0.0.1:0"
[[listener]]
kind = "native"
address = "unix:{socket}"
tenant = "abusive"
""",
}
