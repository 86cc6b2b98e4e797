"""The declared loads: what is offered to whom, and which systems stand beside each other in it.

A load says nothing about how it is run (measure.py) nor what is wanted of it (judge.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Peers by the names of bench/peers/peers.py.
EVERY_PEER = ("nats", "redis", "nchan", "hub")
# The latency budgets that tickcast is shown with, microseconds: what S1 may wait for less CPU, and what 5,000 sockets of a
# human's screen may.
BUDGET_US = 1_000
SCREEN_BUDGET_US = 50_000


@dataclass(frozen=True)
class Variant:
    """One way in which tickcast itself is run: its budget, who feeds it, and what its clients speak."""

    budget_us: int = 0
    fed_by: str = "simulator"  # or "network": a publisher in a process of its own, as the peers have; or "capture"
    transport: str = "native"  # or "ws"

    @property
    def label(self) -> str:
        """How the report names it."""
        budget = f"budget {self.budget_us} us" if self.budget_us else "no budget"
        return f"{self.transport}, {self.fed_by}, {budget}"


def variants(transports: tuple[str, ...], fed_by: tuple[str, ...], budgets: tuple[int, ...] = (0, BUDGET_US)):
    """Every combination, those with the same clients and source side by side."""
    return tuple(
        Variant(budget, source, transport) for transport in transports for source in fed_by for budget in budgets
    )


@dataclass(frozen=True)
class Load:
    """What is offered. Rates are by the second, sizes are bytes of a payload."""

    name: str
    title: str
    clients: int
    producers: int
    rate: int
    size: int
    kind: str = "constant"  # or "saturation", "idle"
    topics: int = 0  # 0: one for each producer
    # Subscribers of each tick; 0: every client.
    subscribers: int = 0
    subscribe: tuple[str, ...] = ("sim.>",)
    # Options of the load client beyond the common ones, each a tuple of words.
    client_options: tuple[str, ...] = ()
    # Used in their place by a load client that does not have the first of them.
    client_options_otherwise: tuple[str, ...] | None = None
    client_ramp_per_s: int = 2_000
    # Measured from the moment on at which all have subscribed: what the crowd does is in it.
    without_warm_up: bool = False
    # What tickcast's clients ask to become of their ticks while they are behind; empty: the server's own.
    policy: str = ""
    server_options: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = (Variant(),)
    peers: tuple[str, ...] = ()
    # Whether the bare loop is run at the sizes and rate that tickcast had.
    bare: bool = False
    # Whether the bare loop is also run as fast as it goes, for the share of its MB/s.
    bare_flat_out: bool = False
    # Shown under the table.
    note: str = ""

    @property
    def topic_count(self) -> int:
        """Topics that are published to."""
        return self.topics or self.producers

    @property
    def fan_out(self) -> int:
        """Deliveries that one tick is worth."""
        return self.subscribers or self.clients

    @property
    def ticks_per_s(self) -> int:
        """Ticks of all producers."""
        return self.producers * self.rate

    @property
    def offered_per_s(self) -> int:
        """Deliveries of all clients."""
        return self.ticks_per_s * self.fan_out

    def at_rate(self, rate: int) -> Load:
        """The same load at another rate of each producer."""
        return replace(self, rate=rate)


def case_study(name: str, clients: int, size: int, text: str, **more) -> Load:
    """One of the case study's loads: 50 producers, 100 ticks a second each."""
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

LOADS = (
    case_study("S1", 100, 100, "100 B",
               variants=(*variants(("native", "ws"), BOTH_SOURCES), *variants(("native",), ("simulator",), (600, 1_200)))),
    case_study("S2", 100, 1_024, "1 KB", variants=variants(("native",), BOTH_SOURCES, (0,)),
               policy="conflate", bare_flat_out=True),
    case_study("S3", 100, 10_240, "10 KB", variants=variants(("native",), BOTH_SOURCES, (0,)),
               policy="conflate", bare_flat_out=True,
               note="5 GB/s are offered, more than one core moves: tickcast's clients ask for `conflate`, so what "
                    "they cannot take is announced."),
    case_study("S4", 500, 100, "100 B", variants=variants(("native",), BOTH_SOURCES, (0,))),
    Load("engine", "Engine, capacity: 5,000 WebSocket clients, 500,000 deliveries/s",
         clients=5_000, producers=10, rate=10, size=100, peers=("nchan", "hub", "nats"), bare=True,
         variants=variants(("ws",), BOTH_SOURCES, (0, SCREEN_BUDGET_US))),
    Load("engine-433k", "Engine, capacity: 5,000 WebSocket clients, the published 433,000 deliveries/s",
         clients=5_000, producers=29, rate=3, size=100,
         variants=variants(("ws",), ("simulator",), (0, SCREEN_BUDGET_US)),
         note="29 producers x 3/s x 5,000 clients are 435,000 deliveries/s, the least above the published figure."),
    Load("spike", "Engine, spike: 1,500 WebSocket clients at once",
         clients=1_500, producers=10, rate=10, size=100, variants=variants(("ws",), ("simulator",), (0,)),
         client_options=("--spike",), client_options_otherwise=(), client_ramp_per_s=100_000,
         without_warm_up=True,
         note="The window begins when all have subscribed, without warm-up. First tick: from a connection's "
              "subscription to its first tick."),
    Load("wave", "250 Hz waves: 20 waves, 10 samples (40 B) a batch, 500 clients",
         clients=500, producers=20, rate=25, size=40, subscribe=("wave.>",),
         variants=variants(("native", "ws"), ("capture",), (0,)),
         note="Latency is from the time at which a batch of 10 samples is complete, to the read that brought it."),
    Load("saturation", "Saturation: 100 clients x 100 B, more and more until something is lost or closed",
         kind="saturation", clients=100, producers=50, rate=50, size=100, peers=EVERY_PEER, bare=True,
         bare_flat_out=True, variants=variants(("native",), BOTH_SOURCES, (0,))),
    Load("broadcast", "Broadcast: 10,000 WebSocket clients, 10 ticks/s to all of them",
         clients=10_000, producers=1, rate=10, size=100, peers=("nchan", "hub", "nats"), bare=True,
         client_ramp_per_s=4_000, variants=variants(("ws",), BOTH_SOURCES, (0,))),
    Load("own-topics", "Own topics: 10,000 WebSocket clients, each with its own 20 of 20,000 topics",
         clients=10_000, producers=20_000, rate=1, size=100, subscribers=10, subscribe=(),
         client_options=("--subscribe-own", "20/20000"), client_ramp_per_s=1_000, peers=("nats",), bare=True,
         variants=variants(("ws",), BOTH_SOURCES, (0,))),
    Load("round-trip", "One to one: 1 producer, 1 client, 100 ticks/s",
         clients=1, producers=1, rate=100, size=100, peers=EVERY_PEER,
         variants=variants(("native", "ws"), BOTH_SOURCES, (0,)),
         note="With the publisher in a process of its own a tick goes over the network twice: publisher, server, "
              "client."),
    Load("idle-native", "Idle: 10,000 native clients, one topic each, no ticks",
         kind="idle", clients=10_000, producers=0, rate=0, size=0, subscribe=("sim.0",), client_ramp_per_s=4_000,
         server_options=("--no-sim",), peers=("nats", "redis"), variants=(Variant(0, "network", "native"),)),
    Load("idle-ws", "Idle: 10,000 WebSocket clients, one topic each, no ticks",
         kind="idle", clients=10_000, producers=0, rate=0, size=0, subscribe=("sim.0",), client_ramp_per_s=4_000,
         server_options=("--no-sim",), peers=("nchan", "hub"), variants=(Variant(0, "network", "ws"),)),
)

# Deliveries a second that the saturation load offers, step by step, until one is not clean.
SATURATION_STEPS_PER_S = (
    100_000, 250_000, 500_000, 1_000_000, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 6_000_000, 8_000_000, 10_000_000,
    12_000_000, 16_000_000, 20_000_000,
)
# tickcast begins there, the peers at the first step.
SATURATION_TICKCAST_FROM_PER_S = 1_000_000
# What "as fast as it goes" offers: more than any step.
SATURATION_UNTHROTTLED_PER_S = 50_000_000


def chosen(names: str | None) -> list[Load]:
    """The loads of a comma-separated list, or all; ValueError names what there is not."""
    if not names:
        return list(LOADS)
    known = {load.name: load for load in LOADS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"--only {','.join(unknown)}: no such load; there are {', '.join(known)}")
    return [known[name] for name in wanted]
