"""tickcast as a system under test: how it is started, reached by the load client, and fed."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from client import CLIENT_CORE, Endpoint
from loads import Load, Variant
from processes import Process, Processes, RunFailed

SERVER_CORE = 0
# The publisher spreads its producers over at most this many connections, one per producer of the case study.
FEED_CONNECTIONS_MAX = 50
START_S = 15.0
NS_PER_S = 1_000_000_000
# Length of a capture that is replayed in a loop: long enough that the seam is rare.
CAPTURE_S = 60
# Synthetic captures that the tests use too.
CAPTURES = Path(__file__).resolve().parents[2] / "tests/data"
# The simulator's payload is JSON with a timestamp and cannot be shorter.
SIMULATED_BYTES_MIN = 64


# Options of the load client for each transport of a variant.
TRANSPORTS = {
    "native": ("--transport", "native"),
    "ws": ("--transport", "ws", "--encoding", "rkyv"),
    "ws json": ("--transport", "ws", "--encoding", "json"),
    "ws protobuf": ("--transport", "ws", "--encoding", "protobuf"),
    "sse": ("--transport", "sse"),
    "socketio": ("--transport", "socketio"),
}


@dataclass(frozen=True)
class Programs:
    """The release binaries in one folder."""

    folder: Path
    # Replaces the server in `folder`.
    other_server: Path | None = None

    @property
    def server(self) -> Path:
        """The server."""
        return self.other_server or self.folder / "tickcast"

    @property
    def client(self) -> Path:
        """The load client."""
        return self.folder / "tickcast-c10k"

    @property
    def feed(self) -> Path:
        """The external publisher."""
        return self.folder / "tickcast-feed"

    @property
    def bare(self) -> Path:
        """The bare loop."""
        return self.folder / "tickcast-bare"


class Feed:
    """The external publisher, on the client's core. Started once the clients have subscribed."""

    def __init__(self, processes: Processes, programs: Programs, options: list[str], address: str, load: Load):
        if not programs.feed.exists():
            raise RunFailed("tickcast-feed is not built: no external publisher")
        self.processes = processes
        self.argv = [
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
        """Starts publishing."""
        self.process = self.processes.start(self.argv, CLIENT_CORE)

    def stop(self) -> None:
        """Stops the publisher and reads its report."""
        if self.process is None:
            return
        ended_early = not self.process.is_running
        self.process.stop(signal.SIGINT)
        if ended_early:
            raise RunFailed(f"the publisher exited early: {self.process.stderr_tail()}")
        for line in self.process.rest_of_output().splitlines():
            if line.startswith("{"):
                self.report = json.loads(line)


class Tickcast:
    """tickcast in one variant."""

    system = "tickcast"

    def __init__(self, programs: Programs, variant: Variant):
        self.programs = programs
        self.variant = variant
        self.server: Process | None = None
        self.feed: Feed | None = None
        # With a token that it made, if its clients need one.
        self.token: Path | None = None

    @property
    def label(self) -> str:
        """Label of the variant."""
        return self.variant.label

    @property
    def fed_by(self) -> str:
        """Source of ticks."""
        return self.variant.fed_by

    def start(self, processes: Processes, load: Load) -> Endpoint:
        """Starts the server. The simulator publishes from the start."""
        argv = [
            str(self.programs.server),
            "serve",
            *("--cores", str(SERVER_CORE)),
            *("--tcp", "127.0.0.1:0"),
            *("--http", "127.0.0.1:0"),
            "--no-admin",
            *self.configuration(processes, load),
            *self.source(processes, load),
            *load.server_options,
        ]
        if self.variant.budget_us is not None:
            # The spelling of 0.1, which `--against` an older binary needs.
            argv += ["--latency-budget-us", str(self.variant.budget_us)]
        self.server = processes.start([*argv, "--report"], SERVER_CORE, {"RUST_LOG": "info"})
        native, http = addresses_of(self.server.wait_for_line("tcp=", START_S))
        if self.variant.fed_by == "network" and load.producers:
            options = ["--protocol", "tickcast", "--topics", str(load.topic_count)]
            self.feed = Feed(processes, self.programs, options, native, load)
        policy = ("--policy", load.policy) if load.policy else ()
        # Its certificate is made for this run: nobody has to be convinced by it.
        tls = ("--tls", "--insecure") if self.variant.tls or self.variant.tls_proxy else ()
        token = ("--token-file", str(self.token)) if self.token else ()
        messages = (*(("--deflate",) if self.variant.deflate else ()), *(() if self.variant.batches else ("--no-batches",)))
        address = native if self.variant.transport == "native" else http
        pids = [self.server.pid]
        if self.variant.tls_proxy:
            address, proxy = start_tls_proxy(processes, address)
            pids.append(proxy.pid)
        return Endpoint(address, (*TRANSPORTS[self.variant.transport], *messages, *tls, *token), tuple(pids), policy)

    def configuration(self, processes: Processes, load: Load) -> tuple[str, ...]:
        """The option for a configuration file, if the variant needs one."""
        if self.variant.tls:
            return "--config", str(tls_configuration(processes))
        if self.variant.authenticated:
            configuration, self.token = auth_configuration(processes, self.programs.server, load.subscribe)
            return "--config", str(configuration)
        return ()

    def source(self, processes: Processes, load: Load) -> list[str]:
        """Server options that select the source of ticks."""
        if load.producers == 0:
            return []
        if self.variant.fed_by == "network":
            return ["--no-sim"]
        if self.variant.fed_by == "capture" and load.capture:
            # Once all clients are there, so that nobody has missed the beginning of a topic that ticks rarely.
            wait = ("--replay-wait", str(load.clients))
            return ["--replay", str(CAPTURES / load.capture), "--speed", str(load.speed), "--loop", *wait]
        if self.variant.fed_by == "capture":
            folder = Path(tempfile.mkdtemp(prefix="tickcast-capture-"))
            processes.add_stop(lambda: shutil.rmtree(folder, ignore_errors=True))
            capture = write_capture(load, folder)
            return ["--replay", str(capture), "--loop"]
        if load.size < SIMULATED_BYTES_MIN:
            raise RunFailed(f"the simulator needs payloads of at least {SIMULATED_BYTES_MIN} bytes")
        return [
            *("--sim-producers", str(load.producers)),
            *("--sim-rate", str(load.rate)),
            *("--sim-size", str(load.size)),
            *("--sim-topics", str(load.topic_count)),
            # Above the server's default limit, with room to spare.
            *(("--topics-max", str(2 * load.topic_count)) if load.topic_count > 32_768 else ()),
        ]

    def stop(self) -> str:
        """Stops the server and returns its log."""
        self.server.stop(signal.SIGINT)
        return self.server.stderr_text()


def addresses_of(line: str) -> tuple[str, str]:
    """Native and HTTP addresses in `listening tcp=ADDR http=ADDR`; empty if missing."""
    found = dict(word.split("=", 1) for word in line.split() if "=" in word)
    return found.get("tcp", ""), found.get("http", "")


def auth_configuration(processes: Processes, server: Path, patterns: tuple[str, ...]) -> tuple[Path, Path]:
    """Writes a configuration with authentication, and a token that permits its bearer to subscribe to the patterns."""
    folder = Path(tempfile.mkdtemp(prefix="tickcast-auth-"))
    processes.add_stop(lambda: shutil.rmtree(folder, ignore_errors=True))
    key, token, configuration = folder / "secret", folder / "token", folder / "tickcast.toml"
    key.write_text("a secret of this run, for nobody else\n")
    key.chmod(0o600)
    allowed = [word for pattern in patterns for word in ("--allow-sub", pattern)]
    argv = [str(server), "token", "--key", str(key), "--alg", "HS256", "--sub", "client", "--aud", "bench", *allowed]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S, check=False)
    if done.returncode != 0:
        raise RunFailed(f"tickcast token made none: {done.stderr.strip()}")
    token.write_text(done.stdout)
    token.chmod(0o600)
    configuration.write_text(f'[[auth.key]]\nalgorithm = "HS256"\nfile = "{key}"\naudience = "bench"\n')
    return configuration, token


def certificate(processes: Processes) -> tuple[Path, Path]:
    """Makes a certificate of ECDSA and P-256 signed by itself, and its key, in a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="tickcast-tls-"))
    processes.add_stop(lambda: shutil.rmtree(folder, ignore_errors=True))
    cert, key = folder / "server.pem", folder / "server.key"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(cert)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"no certificate without openssl: {error}") from None
    if done.returncode != 0:
        raise RunFailed(f"openssl made no certificate: {done.stderr.strip()}")
    return cert, key


def tls_configuration(processes: Processes) -> Path:
    """Writes a configuration whose listeners have TLS."""
    cert, key = certificate(processes)
    configuration = cert.parent / "tickcast.toml"
    tls = f'tls = {{ cert = "{cert}", key = "{key}", min_version = "1.3" }}'
    # The addresses are those of the command line.
    listeners = (f'[[listener]]\nkind = "{kind}"\naddress = "127.0.0.1:1"\n{tls}\n' for kind in ("native", "http"))
    configuration.write_text("".join(listeners))
    return configuration


def start_tls_proxy(processes: Processes, server: str) -> tuple[str, Process]:
    """Starts HAProxy with TLS 1.3 on the server's core, in front of a plain server. Returns its address."""
    cert, key = certificate(processes)
    both, configuration = cert.parent / "both.pem", cert.parent / "haproxy.cfg"
    both.write_text(cert.read_text() + key.read_text())
    # HAProxy cannot tell which port it was given, so it inherits the socket.
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    configuration.write_text(
        "global\n  nbthread 1\n  maxconn 6000\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
        f"listen ticks\n  bind fd@{listening.fileno()} ssl crt {both} ssl-min-ver TLSv1.3"
        " ciphersuites TLS_AES_128_GCM_SHA256\n"
        f"  server tickcast {server}\n"
    )
    with listening:
        argv = ["haproxy", "-db", "-f", str(configuration)]
        proxy = processes.start(argv, SERVER_CORE, fds=(listening.fileno(),))
        host, port = listening.getsockname()
    return f"{host}:{port}", proxy


def capture_lines(load: Load, seconds: int):
    """Lines of a capture of the load: evenly spaced ticks at the load's rate, payloads of exactly its size."""
    payload = json.dumps("~" * (load.size - 2))
    per_second = load.ticks_per_s
    prefix = load.subscribe[0].split(".")[0]
    for k in range(per_second * seconds):
        topic = f"{prefix}.{k % load.producers}"
        yield f'{{"at_ns":{k * NS_PER_S // per_second},"topic":"{topic}","data":{payload}}}\n'


def write_capture(load: Load, folder: Path) -> Path:
    """Writes the capture into `folder`."""
    path = folder / f"{load.name}.ndjson"
    with path.open("w") as file:
        file.writelines(capture_lines(load, CAPTURE_S))
    return path


def tickcast_systems(programs: Programs, load: Load) -> list[Tickcast]:
    """tickcast in each variant of the load."""
    return [Tickcast(programs, variant) for variant in load.variants]
