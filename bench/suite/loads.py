"""The loads: what each offers, and which systems it compares.

How a load is run is in measure.py; the targets are in judge.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Names from bench/peers/peers.py.
EVERY_PEER = ("nats", "redis", "nchan", "hub", "bun")
# Latency budgets that tickcast is measured with: one for S1, to save CPU, and one for 5,000 WebSockets that feed
# screens.
BUDGET_US = 1_000
SCREEN_BUDGET_US = 50_000
# In the name of a variant whose clients are encrypted, by the server or by a proxy in front of it, or show a token.
OVER_TLS = " over TLS"
PROXIED = ", TLS by HAProxy"
AUTHENTICATED = ", authenticated"
# In the name of a variant whose messages are compressed, or have one tick each.
DEFLATED = ", deflated"
ONE_TICK = ", one tick a message"


@dataclass(frozen=True)
class Variant:
    """One configuration of tickcast: latency budget, source of ticks, and transport of its clients."""

    budget_us: int | None = 0  # None: the server's default, auto
    fed_by: str = "simulator"  # or "network": an external publisher, as the peers have; or "capture": a replay
    transport: str = "native"  # a key of systems.TRANSPORTS
    tls: bool = False
    # HAProxy does TLS, on the server's core, in front of a plain server.
    tls_proxy: bool = False
    # Each client has a token that permits it to subscribe to the load's topics.
    authenticated: bool = False
    # Clients accept compressed messages.
    deflate: bool = False
    # WebSocket clients ask for all ticks that are sent at a time in one message.
    batches: bool = True

    @property
    def label(self) -> str:
        """Name in the report."""
        budget = "auto budget" if self.budget_us is None else f"budget {self.budget_us} us" if self.budget_us else "no budget"
        marks = OVER_TLS if self.tls else PROXIED if self.tls_proxy else ""
        marks += AUTHENTICATED if self.authenticated else ""
        marks += DEFLATED if self.deflate else ""
        marks += "" if self.batches else ONE_TICK
        return f"{self.transport}{marks}, {self.fed_by}, {budget}"


def variants(transports: tuple[str, ...], fed_by: tuple[str, ...], budgets: tuple[int | None, ...] = (0, BUDGET_US)):
    """Every combination, grouped by transport, then by source."""
    return tuple(
        Variant(budget, source, transport) for transport in transports for source in fed_by for budget in budgets
    )


@dataclass(frozen=True)
class Load:
    """One load. Rates are per second, sizes are payload bytes."""

    name: str
    title: str
    clients: int
    producers: int
    rate: int
    size: int
    kind: str = "constant"  # or "saturation", "idle"
    topics: int = 0  # 0: one per producer
    # Subscribers per tick; 0: every client.
    subscribers: int = 0
    subscribe: tuple[str, ...] = ("sim.>",)
    # Further options of the load client.
    client_options: tuple[str, ...] = ()
    # Replaces them if the load client lacks the first one.
    client_options_fallback: tuple[str, ...] | None = None
    client_ramp_per_s: int = 2_000
    # Measures from the moment all clients have subscribed, to include the effect of their arrival.
    without_warm_up: bool = False
    # Policy that tickcast's clients request for when they lag; empty: the server's default.
    policy: str = ""
    server_options: tuple[str, ...] = ()
    # Capture in tests/data that variants fed by a capture replay `speed` times as fast; empty: one is made of the load's figures.
    capture: str = ""
    speed: float = 1.0
    variants: tuple[Variant, ...] = (Variant(),)
    peers: tuple[str, ...] = ()
    # Also runs the bare loop with tickcast's sizes and rate.
    bare: bool = False
    # Also runs the bare loop unthrottled, to compare MB/s.
    bare_unthrottled: bool = False
    # Shown below the table.
    note: str = ""

    @property
    def topic_count(self) -> int:
        """Number of topics published to."""
        return self.topics or self.producers

    @property
    def fan_out(self) -> int:
        """Deliveries per tick."""
        return self.subscribers or self.clients

    @property
    def ticks_per_s(self) -> int:
        """Ticks of all producers together."""
        return self.producers * self.rate

    @property
    def offered_per_s(self) -> int:
        """Deliveries to all clients together."""
        return self.ticks_per_s * self.fan_out

    def at_rate(self, rate: int) -> Load:
        """The same load at another rate per producer."""
        return replace(self, rate=rate)


def case_study(name: str, clients: int, size: int, text: str, **more) -> Load:
    """One of the case study's loads: 50 producers with 100 ticks/s each."""
    return Load(
        name=name,
        title=f"{name}: {clients} clients, 50 producers x 100/s, {text}",
        clients=clients,
        producers=50,
        rate=100,
        size=size,
        peers=EVERY_PEER,
        bare=True,
        **more,
    )


BOTH_SOURCES = ("simulator", "network")
PLAIN_AND_TLS = (Variant(None), Variant(None, tls=True), Variant(None, tls_proxy=True))

LOADS = (
    case_study("S1", 100, 100, "100 B",
               variants=(*variants(("native", "ws"), BOTH_SOURCES, (None, 0, BUDGET_US)),
                         *variants(("native",), ("simulator",), (600, 1_200)))),
    Load("S1-500", "A tenth of S1: 100 clients, 50 producers x 10/s, 100 B",
         clients=100, producers=50, rate=10, size=100, peers=EVERY_PEER,
         variants=variants(("native", "ws"), BOTH_SOURCES, (None, 0))),
    case_study("S2", 100, 1_024, "1 KB", variants=variants(("native",), BOTH_SOURCES, (0,)),
               policy="conflate", bare_unthrottled=True),
    case_study("S3", 100, 10_240, "10 KB", variants=variants(("native",), BOTH_SOURCES, (0,)),
               policy="conflate", bare_unthrottled=True,
               note="The load offers 5 GB/s, more than one core can move. tickcast's clients request `conflate`, so "
                    "the server announces what they cannot take."),
    case_study("S4", 500, 100, "100 B", variants=variants(("native",), BOTH_SOURCES, (0,))),
    Load("S1-tls", "S1 over TLS 1.3 beside plain: 100 clients, 50 producers x 100/s, 100 B",
         clients=100, producers=50, rate=100, size=100, variants=PLAIN_AND_TLS),
    Load("S3-tls", "S3 over TLS 1.3 beside plain: 100 clients, 50 producers x 100/s, 10 KB",
         clients=100, producers=50, rate=100, size=10_240, policy="conflate", variants=PLAIN_AND_TLS,
         note="AES-128-GCM. The load client opens records with tickcast's own record layer. The load offers more than "
              "any variant can deliver: what is conflated costs time too, and costs more of it per delivery over TLS."),
    Load("S3-tls-500", "A tenth of S3 over TLS 1.3 beside plain: 100 clients, 50 producers x 10/s, 10 KB",
         clients=100, producers=50, rate=10, size=10_240, variants=PLAIN_AND_TLS,
         note="AES-128-GCM. A load that every variant delivers whole."),
    Load("S1-auth", "S1 with tokens and permissions beside S1 without: 100 clients, 50 producers x 100/s, 100 B",
         clients=100, producers=50, rate=100, size=100,
         variants=(Variant(None), Variant(None, authenticated=True))),
    Load("engine", "Engine, capacity: 5,000 WebSocket clients, 500,000 deliveries/s",
         clients=5_000, producers=10, rate=10, size=100, peers=("nchan", "hub", "nats", "bun"), bare=True,
         variants=variants(("ws",), BOTH_SOURCES, (0, SCREEN_BUDGET_US))),
    Load("engine-sse", "Engine, capacity: 5,000 clients of Server-Sent Events beside WebSockets with JSON, 500,000 deliveries/s",
         clients=5_000, producers=10, rate=10, size=100,
         variants=(Variant(None, transport="ws json"), Variant(None, transport="sse"))),
    Load("engine-socketio", "Engine, capacity: 5,000 clients of Socket.IO, 500,000 deliveries/s",
         clients=5_000, producers=10, rate=10, size=100, peers=("socketio-node", "socketioxide"),
         variants=(Variant(None, transport="socketio"), Variant(SCREEN_BUDGET_US, transport="socketio")),
         note="Over its websocket transport, each tick an event to a room. tickcast's event has the topic, sequence and time "
              "beside the payload; that of the Node server and of socketioxide is the payload alone."),
    Load("engine-protobuf", "Engine, capacity: 5,000 WebSocket clients with protobuf beside JSON and rkyv, 500,000 deliveries/s",
         clients=5_000, producers=10, rate=10, size=100,
         variants=tuple(Variant(None, transport=transport) for transport in ("ws json", "ws", "ws protobuf"))),
    Load("engine-deflate", "Engine, capacity: a market feed to 5,000 WebSocket clients with JSON, compressed and plain, 500,000 deliveries/s",
         clients=5_000, producers=1, rate=100, size=136, subscribe=("market.>",), capture="market.ndjson", speed=0.373,
         server_options=("--deflate", "on"), peers=("ws-node",),
         variants=tuple(Variant(None, "capture", "ws json", deflate=deflate, batches=batches)
                        for batches in (True, False) for deflate in (False, True)),
         note="The capture has 4,000 ticks in 15 s and is replayed at 0.373 times its speed; its rate varies by some 5 %. The server is "
              "the same in every variant: the clients ask for compression, and for one tick in each message. The load client "
              "inflates a message once for all connections that receive the same bytes. The Node server (`ws`) compresses each "
              "message for each client, without context takeover, and drops what a client has no room for."),
    Load("engine-433k", "Engine, capacity: 5,000 WebSocket clients, the published 433,000 deliveries/s",
         clients=5_000, producers=29, rate=3, size=100,
         variants=variants(("ws",), ("simulator",), (0, SCREEN_BUDGET_US)),
         note="29 producers x 3/s x 5,000 clients = 435,000 deliveries/s, just above the published figure."),
    Load("spike", "Engine, spike: 1,500 WebSocket clients connect at once",
         clients=1_500, producers=10, rate=10, size=100, variants=variants(("ws",), ("simulator",), (0,)),
         client_options=("--spike",), client_options_fallback=(), client_ramp_per_s=100_000,
         without_warm_up=True,
         note="The window starts when all clients have subscribed, without warm-up. *First tick* is the time from "
              "a connection's subscription to its first tick."),
    Load("wave", "250 Hz waves: 20 waves in batches of 10 samples (40 B), 500 clients",
         clients=500, producers=20, rate=25, size=40, subscribe=("wave.>",),
         variants=variants(("native", "ws"), ("capture",), (0,)),
         note="Latency runs from the time a batch of 10 samples is complete to the client's read."),
    Load("saturation", "Saturation: 100 clients x 100 B, rate raised until a tick is lost or a client closed",
         kind="saturation", clients=100, producers=50, rate=50, size=100, peers=EVERY_PEER, bare=True,
         bare_unthrottled=True, variants=variants(("native",), BOTH_SOURCES, (0,))),
    Load("broadcast", "Broadcast: 10 ticks/s to each of 10,000 WebSocket clients",
         clients=10_000, producers=1, rate=10, size=100, peers=("nchan", "hub", "nats", "bun"), bare=True,
         client_ramp_per_s=4_000, variants=variants(("ws",), BOTH_SOURCES, (0,))),
    Load("own-topics", "Own topics: 10,000 WebSocket clients, each subscribed to 20 of 20,000 topics",
         clients=10_000, producers=20_000, rate=1, size=100, subscribers=10, subscribe=(),
         client_options=("--subscribe-own", "20/20000"), client_ramp_per_s=1_000, peers=("nats",), bare=True,
         variants=variants(("ws",), BOTH_SOURCES, (0,))),
    Load("round-trip", "Round trip: 1 producer, 1 client, 100 ticks/s",
         clients=1, producers=1, rate=100, size=100, peers=EVERY_PEER,
         variants=variants(("native", "ws"), BOTH_SOURCES, (0,)),
         note="With the external publisher, a tick crosses loopback twice: publisher to server, server to client."),
    Load("idle-native", "Idle: 10,000 native clients with one topic each, no ticks",
         kind="idle", clients=10_000, producers=0, rate=0, size=0, subscribe=("sim.0",), client_ramp_per_s=4_000,
         server_options=("--no-sim",), peers=("nats", "redis"), variants=(Variant(0, "network", "native"),)),
    Load("idle-ws", "Idle: 10,000 WebSocket clients with one topic each, no ticks",
         kind="idle", clients=10_000, producers=0, rate=0, size=0, subscribe=("sim.0",), client_ramp_per_s=4_000,
         server_options=("--no-sim",), peers=("nchan", "hub", "bun"), variants=(Variant(0, "network", "ws"),)),
    Load("idle-tls", "Idle: 10,000 WebSocket clients over TLS beside plain ones, one topic each, no ticks",
         kind="idle", clients=10_000, producers=0, rate=0, size=0, subscribe=("sim.0",), client_ramp_per_s=1_000,
         server_options=("--no-sim",),
         variants=(Variant(0, "network", "ws"), Variant(0, "network", "ws", tls=True))),
)

# Deliveries/s that the saturation load offers, step by step, until a step is not clean.
SATURATION_STEPS_PER_S = (
    100_000, 250_000, 500_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 6_000_000, 8_000_000, 10_000_000,
    12_000_000, 16_000_000, 20_000_000,
)
# tickcast starts at this step, the peers at the first.
SATURATION_TICKCAST_FROM_PER_S = 1_000_000
# The unthrottled run offers more than any step.
SATURATION_UNTHROTTLED_PER_S = 50_000_000


def at_total_rate(load: Load, deliveries_per_s: int) -> Load:
    """A load at another total rate."""
    return load.at_rate(deliveries_per_s // (load.fan_out * load.producers))


def unthrottled(load: Load) -> Load:
    """The saturation load as fast as the source can go. Clients accept drops, so every loss must be announced."""
    return replace(at_total_rate(load, SATURATION_UNTHROTTLED_PER_S), server_options=("--policy", ">=drop"))


def chosen(names: str | None) -> list[Load]:
    """The loads in a comma-separated list, or all; ValueError names unknown ones."""
    if not names:
        return list(LOADS)
    known = {load.name: load for load in LOADS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"no load {', '.join(unknown)}; choose from {', '.join(known)}")
    return [known[name] for name in wanted]
