"""Judges the figures: which targets are met, and in which columns a peer beats tickcast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable

from figures import Row, ratio
from loads import AUTHENTICATED, DEFLATED, ONE_TICK, OVER_TLS, PROXIED

MS = 1e3
M = 1e6
# Clients of the load "spike".
SPIKE_CLIENTS = 1_500
# A difference up to this share is within noise, even if repeats agree better.
NOISE_SHARE = 0.10
# The kernel counts CPU time in steps of this length; a difference of two figures can be off by two steps.
CPU_STEP_S = 0.01
# Name of the target that spans all loads.
PER_SEND = "CPU per SEND"


@dataclass(frozen=True)
class Verdict:
    """One target with the measured figure. `met` is `None` if the load was not measured."""

    load: str
    target: str
    measured: str
    met: bool | None


def no_resolution(_row: Row) -> float:
    """Resolution of a figure that is exact."""
    return 0.0


def cpu_share_resolution(row: Row) -> float:
    """Smallest difference in CPU share that two counter readings can show."""
    return 2 * (ratio(CPU_STEP_S, row.window_s) or 0.0)


def cpu_per_delivery_resolution(row: Row) -> float:
    """The same, in microseconds per delivery."""
    return (row.cpu_us_per_delivery or 0.0) * (ratio(cpu_share_resolution(row), row.server_cpu_share) or 0.0)


@dataclass(frozen=True)
class Column:
    """A figure in which systems are compared."""

    name: str
    field: str
    shown: Callable[[float], str]
    more_is_better: bool = False
    # Smallest difference that the measurement can show.
    resolution: Callable[[Row], float] = no_resolution
    # Counts faults, which are never noise.
    is_fault: bool = False

    def of(self, row: Row) -> float | None:
        """The row's figure."""
        return getattr(row, self.field)

    def range(self, row: Row) -> tuple[float, float]:
        """Lowest and highest value over the repeats; both are the figure itself if the row was measured once."""
        return row.ranges.get(self.field) or (self.of(row), self.of(row))

    def is_better(self, one: float, other: float) -> bool:
        """Whether `one` beats `other`."""
        return one > other if self.more_is_better else one < other

    def is_beyond_noise(self, one: Row, other: Row) -> bool:
        """Whether two rows differ by more than noise.

        They do if the larger figure exceeds the smaller by more than `NOISE_SHARE` and by more than the measurement's
        resolution, and the repeats of the two rows do not overlap.
        """
        if self.is_fault:
            return True
        smaller, larger = sorted((self.of(one), self.of(other)))
        if larger <= smaller * (1 + NOISE_SHARE):
            return False
        if larger - smaller <= max(self.resolution(one), self.resolution(other)):
            return False
        (one_low, one_high), (other_low, other_high) = self.range(one), self.range(other)
        return one_high < other_low or other_high < one_low


def ms(us: float) -> str:
    """Microseconds shown as milliseconds."""
    return f"{us / MS:.2f} ms"


CPU_PER_DELIVERY = Column("CPU per delivery", "cpu_us_per_delivery", lambda us: f"{us:.3f} us",
                          resolution=cpu_per_delivery_resolution)
DELIVERED = Column("deliveries/s", "delivered_per_s", lambda rate: f"{rate:,.0f}", more_is_better=True)
COLUMNS = (
    DELIVERED,
    Column("ticks lost unannounced", "lost", lambda lost: f"{lost:,}", is_fault=True),
    Column("p50", "p50_us", ms),
    Column("p90", "p90_us", ms),
    Column("p99", "p99_us", ms),
    Column("p99.9", "p999_us", ms),
    Column("max", "max_us", ms),
    Column("uncorrected p99", "uncorrected_p99_us", ms),
    Column("p99 from subscription to first tick", "subscription_p99_us", ms),
    Column("skew p99", "skew_p99_us", ms),
    CPU_PER_DELIVERY,
    Column("server CPU", "server_cpu_share", lambda share: f"{share:.1%} of a core", resolution=cpu_share_resolution),
    Column("server memory", "server_rss_bytes", lambda count: f"{count / (1 << 20):.1f} MiB"),
    Column("memory per connection", "rss_bytes_per_connection", lambda count: f"{count:,.0f} bytes"),
)
# Saturated systems each run at their own rate, so only rate and cost compare.
SATURATION_COLUMNS = (
    Column("highest clean step", "clean_per_s", lambda rate: f"{rate:,.0f}/s", more_is_better=True),
    Column("most delivered", "most_per_s", lambda rate: f"{rate:,.0f}/s", more_is_better=True),
    CPU_PER_DELIVERY,
)


def ours(rows: Iterable[Row]) -> list[Row]:
    """tickcast's rows that did not fail."""
    return [row for row in rows if row.is_tickcast and not row.failed]


def best(rows: Iterable[Row], of: Callable[[Row], float | None], more: bool = False) -> Row | None:
    """The row with the smallest (or, with `more`, the largest) figure."""
    having = [row for row in rows if of(row) is not None]
    return (max if more else min)(having, key=of) if having else None


def verdict(load: str, target: str, row: Row | None, measured: Callable[[Row], str], met: Callable[[Row], bool]):
    """Verdict on one row, or on a load without one."""
    if row is None:
        return Verdict(load, target, "not measured", None)
    return Verdict(load, target, f"{measured(row)} ({row.variant})", met(row))


def verdicts(loads: dict[str, list[Row]]) -> list[Verdict]:
    """All targets, from the rows of each load by its name."""
    rows = {name: ours(of_load) for name, of_load in loads.items()}
    failed = {
        name: [row.variant for row in of_load if row.is_tickcast and row.failed] for name, of_load in loads.items()
    }
    judged = [
        *s1(rows.get("S1", [])),
        *saturation(rows.get("saturation", [])),
        *(bare_rate(name, rows.get(name, [])) for name in ("S2", "S3")),
        *(losses_announced(name, rows.get(name, [])) for name in ("S2", "S3")),
        all_delivered("S4", rows.get("S4", [])),
        engine(rows.get("engine", [])),
        idle(rows.get("idle-ws", [])),
        tls_cpu("S1-tls", "CPU per delivery", 1.15, rows.get("S1-tls", []), lambda row: row.cpu_us_per_delivery),
        tls_cpu("S1-tls", "p99", 1.2, rows.get("S1-tls", []), lambda row: row.p99_us),
        tls_cpu("S3-tls", "server CPU per MB", 1.5, rows.get("S3-tls", []), cpu_us_per_mb),
        tls_cpu("S3-tls-500", "server CPU per MB", 1.5, rows.get("S3-tls-500", []), cpu_us_per_mb),
        tls_memory(rows.get("idle-tls", [])),
        cpu_beside("S1-auth", "with tokens", 1.03, AUTHENTICATED, rows.get("S1-auth", [])),
        cpu_beside("engine-sse", "of Server-Sent Events", 1.1, "sse", rows.get("engine-sse", [])),
        cpu_beside_peers("engine-socketio", 0.5, loads.get("engine-socketio", [])),
        *deflate("engine-deflate", rows.get("engine-deflate", [])),
        bare_cpu(rows),
        wave(rows.get("wave", [])),
        *spike(rows.get("spike", [])),
    ]
    return [with_failed(one, failed) for one in judged]


def with_failed(one: Verdict, failed: dict[str, list[str]]) -> Verdict:
    """The same verdict, but not met if a variant failed under the load."""
    names = [variant for name, of_load in failed.items() if one.load in (name, PER_SEND) for variant in of_load]
    if not names:
        return one
    return Verdict(one.load, one.target, f"{one.measured}; failed: {', '.join(names)}", False)


def s1(rows: list[Row]) -> list[Verdict]:
    """S1: low CPU with a good tail, and a better tail at any CPU."""
    complete = [row for row in rows if row.delivered_all]
    good_tail = [row for row in complete if row.p99_us is not None and row.p99_us <= 2 * MS]
    cheapest = best(good_tail or complete or rows, lambda row: row.cpu_us_per_delivery)
    fastest = best(complete or rows, lambda row: row.p99_us)
    return [
        all_delivered("S1", rows),
        verdict(
            "S1", "<= 1.0 us CPU per delivery with p99 <= 2 ms", cheapest,
            lambda row: f"{row.cpu_us_per_delivery:.2f} us with p99 {ms(row.p99_us)}",
            lambda row: row in good_tail and row.cpu_us_per_delivery <= 1.0,
        ),
        verdict(
            "S1", "p99 <= 1.2 ms at any CPU", fastest,
            lambda row: f"{ms(row.p99_us)} at {row.cpu_us_per_delivery:.2f} us",
            lambda row: row.delivered_all and row.p99_us <= 1.2 * MS,
        ),
    ]


def all_delivered(load: str, rows: list[Row]) -> Verdict:
    """The best variant loses nothing and closes no client."""
    complete = [row for row in rows if row.delivered_all]
    row = best(complete or rows, lambda row: row.delivered_share, more=True)
    return verdict(load, "all delivered", row, lambda row: f"{row.delivered_share:.1%}", lambda row: row.delivered_all)


def most_saturated(row: Row) -> float:
    """Deliveries/s of the highest clean step, or of the unthrottled run if every loss was announced."""
    announced_all = row.unthrottled_per_s is not None and row.unthrottled_lost == 0 and row.unthrottled_ended == 0
    return max(row.clean_per_s or 0.0, row.unthrottled_per_s if announced_all else 0.0)


def cpu_saturated(row: Row) -> float | None:
    """CPU per delivery of the run that `most_saturated` reports."""
    if most_saturated(row) > (row.clean_per_s or 0.0):
        return row.unthrottled_cpu_us_per_delivery
    return row.cpu_us_per_delivery


def unthrottled_faults(row: Row) -> int | None:
    """Unannounced losses and closed clients of the unthrottled run."""
    return None if row.unthrottled_lost is None else row.unthrottled_lost + row.unthrottled_ended


def saturation(rows: list[Row]) -> list[Verdict]:
    """Saturation: deliveries/s, and the CPU of each."""
    row = best(rows, most_saturated, more=True)
    return [
        verdict(
            "saturation", ">= 8 M deliveries/s", row, lambda row: f"{most_saturated(row) / M:.2f} M/s" + bottleneck(row),
            lambda row: most_saturated(row) >= 8 * M,
        ),
        verdict(
            "saturation", "<= 0.1 us CPU per delivery in the same run", row,
            lambda row: f"{cpu_saturated(row):.3f} us", lambda row: cpu_saturated(row) <= 0.1,
        ),
        verdict(
            "saturation", "unthrottled with `--policy '>=drop'`: every lost tick is announced, no client is closed",
            best(rows, unthrottled_faults, more=True),
            lambda row: f"{row.unthrottled_lost:,} lost unannounced, {row.unthrottled_announced:,} announced, "
            f"{row.unthrottled_ended} closed",
            lambda row: row.unthrottled_lost == 0 and row.unthrottled_ended == 0,
        ),
    ]


def bottleneck(row: Row) -> str:
    """Remark for a figure that the client limited."""
    return ", the client was the bottleneck" if row.client_is_bottleneck else ""


def bare_rate(load: str, rows: list[Row]) -> Verdict:
    """MB/s compared with the bare loop's. A load that was fully delivered offered no more."""
    row = best(rows, lambda row: row.bare_rate_share, more=True)
    return verdict(
        load, ">= 85 % of the bare loop's MB/s", row,
        lambda row: f"{row.wire_mb_per_s:,.0f} of {row.bare_wire_mb_per_s:,.0f} MB/s, {row.bare_rate_share:.0%}"
        + (", the whole offered load" if row.delivered_all else ""),
        lambda row: row.bare_rate_share >= 0.85 or row.delivered_all,
    )


def losses_announced(load: str, rows: list[Row]) -> Verdict:
    """Every tick that cannot be delivered is announced, and no client is closed."""
    row = best(rows, lambda row: (row.lost or 0) + row.ended, more=True)
    return verdict(
        load, "every tick is delivered, conflated or announced as lost", row,
        lambda row: f"{row.lost or 0:,} lost unannounced, {row.announced or 0:,} announced, {row.ended} closed",
        lambda row: not row.lost and row.ended == 0,
    )


def engine(rows: list[Row]) -> Verdict:
    """5,000 WebSocket clients: tail at limited CPU."""
    within_cpu = [row for row in rows if row.server_cpu_share is not None and row.server_cpu_share <= 0.64]
    row = best(within_cpu, lambda row: row.p99_us) or best(rows, lambda row: row.p99_us)
    return verdict(
        "engine", "p99 <= 90 ms at <= 0.64 core", row,
        lambda row: f"p99 {ms(row.p99_us)} at {row.server_cpu_share:.2f} core" + bottleneck(row),
        lambda row: row.delivered_all and row.p99_us <= 90 * MS and row.server_cpu_share <= 0.64,
    )


def idle(rows: list[Row]) -> Verdict:
    """Memory per idle WebSocket."""
    row = best(rows, lambda row: row.rss_bytes_per_connection)
    return verdict(
        "idle-ws", "<= 1 KB of RSS per connection above the empty server", row,
        lambda row: f"{row.rss_bytes_per_connection:,.0f} bytes",
        lambda row: row.rss_bytes_per_connection <= 1024 and row.ended == 0,
    )


def plain_and_tls(rows: list[Row], of: Callable[[Row], float | None]) -> tuple[float | None, Row | None]:
    """The figure of the plain variant, and the row of the one over TLS."""
    plain = best((row for row in rows if OVER_TLS not in row.variant and PROXIED not in row.variant), of)
    return plain and of(plain), best((row for row in rows if OVER_TLS in row.variant), of)


def cpu_us_per_mb(row: Row) -> float | None:
    """CPU time of the server for one megabyte that its clients received."""
    return ratio((row.server_cpu_share or 0.0) * 1e6, row.wire_mb_per_s)


def tls_cpu(load: str, what: str, most: float, rows: list[Row], of: Callable[[Row], float | None]) -> Verdict:
    """A figure over TLS as a multiple of the plain one, measured beside it."""
    plain, row = plain_and_tls(rows, of)
    return verdict(
        load, f"{what} over TLS <= {most}x plain", row if plain else None,
        lambda row: f"{of(row) / plain:.2f}x, {of(row):,.3f} us beside {plain:,.3f} us" + bottleneck(row),
        lambda row: of(row) <= most * plain,
    )


def cpu_beside(load: str, whose: str, most: float, mark: str, rows: list[Row]) -> Verdict:
    """CPU per delivery of the variant whose name has a mark, as a multiple of the one beside it."""
    plain = best((row for row in rows if mark not in row.variant), lambda row: row.cpu_us_per_delivery)
    row = best((row for row in rows if mark in row.variant), lambda row: row.cpu_us_per_delivery)
    return verdict(
        load, f"CPU per delivery {whose} <= {most}x the other's", row if plain else None,
        lambda row: f"{row.cpu_us_per_delivery / plain.cpu_us_per_delivery:.2f}x" + bottleneck(row),
        lambda row: row.cpu_us_per_delivery <= most * plain.cpu_us_per_delivery,
    )


def cpu_beside_peers(load: str, most: float, of_load: list[Row]) -> Verdict:
    """All delivered at a share of the CPU per delivery of the better peer."""
    peer = best((row for row in of_load if not row.is_tickcast and not row.failed), lambda row: row.cpu_us_per_delivery)
    rows = ours(of_load)
    row = best([row for row in rows if row.delivered_all] or rows, lambda row: row.cpu_us_per_delivery)
    return verdict(
        load, f"all delivered, at <= {most}x the CPU per delivery of the better peer", row if peer else None,
        lambda row: f"{row.cpu_us_per_delivery / peer.cpu_us_per_delivery:.2f}x of {peer.name}, {row.delivered_share:.1%} delivered"
        + bottleneck(row),
        lambda row: row.delivered_all and row.cpu_us_per_delivery <= most * peer.cpu_us_per_delivery,
    )


def deflate(load: str, rows: list[Row]) -> list[Verdict]:
    """Compression, each variant beside the plain one: its CPU, the worse of both, and the bytes that it saves of each."""
    pairs = {
        mark: [next((row for row in rows if (ONE_TICK in row.variant, DEFLATED in row.variant) == (mark, on)), None)
               for on in (False, True)]
        for mark in (False, True)
    }
    complete = {mark: pair for mark, pair in pairs.items() if None not in pair}

    def more(field: str, row: Row) -> float | None:
        plain, _ = complete[ONE_TICK in row.variant]
        return ratio(getattr(row, field), getattr(plain, field))

    def cpu(row: Row) -> float | None:
        return more("cpu_us_per_delivery", row)

    def saved(text: str, mark: bool, least: float) -> Verdict:
        plain, row = complete.get(mark, (None, None))
        return verdict(
            load, f">= {least:.0%} fewer bytes with {text}", row,
            lambda row: f"{1 - more('wire_bytes_per_delivery', row):.1%} fewer, {row.wire_bytes_per_delivery:,.0f} instead of "
            f"{plain.wire_bytes_per_delivery:,.0f} bytes per delivery",
            lambda row: not row.lost and 1 - more("wire_bytes_per_delivery", row) >= least,
        )

    worst = best((row for _, row in complete.values()), cpu, more=True)
    return [
        verdict(load, "CPU per delivery compressed <= 1.3x plain, in both variants", worst if len(complete) == 2 else None,
                lambda row: f"{cpu(row):.2f}x at worst" + bottleneck(row),
                lambda row: cpu(row) <= 1.3 and not any(row.lost or row.ended for pair in complete.values() for row in pair)),
        saved("one tick a message", True, 0.2),
        saved("a turn's ticks in one message", False, 0.45),
    ]


def tls_memory(rows: list[Row]) -> Verdict:
    """Memory of an idle WebSocket over TLS beyond that of a plain one."""
    plain, row = plain_and_tls(rows, lambda row: row.rss_bytes_per_connection)
    return verdict(
        "idle-tls", "<= 400 bytes of RSS beyond a plain WebSocket", row if plain else None,
        lambda row: f"{row.rss_bytes_per_connection - plain:,.0f} bytes",
        lambda row: row.rss_bytes_per_connection - plain <= 400 and row.ended == 0,
    )


def bare_cpu(rows: dict[str, list[Row]]) -> Verdict:
    """CPU per SEND compared with the bare loop's, the worst of all loads."""
    row = best((row for of_load in rows.values() for row in of_load), lambda row: row.bare_ratio, more=True)
    return verdict(
        PER_SEND, "<= 1.2x the bare io_uring loop under every load", row,
        lambda row: f"{row.bare_ratio:.2f}x at worst, under {row.load}", lambda row: row.bare_ratio <= 1.2,
    )


def wave(rows: list[Row]) -> Verdict:
    """Waves: latency that the eye does not notice, in every variant."""
    row = best(rows, lambda row: row.p99_us, more=True)
    return verdict(
        "wave", "p99 < 15 ms end to end, in every variant", row,
        lambda row: ms(row.p99_us), lambda row: row.delivered_all and row.p99_us < 15 * MS,
    )


def spike(rows: list[Row]) -> list[Verdict]:
    """Spike: no slower than published, and every client gets a tick."""
    row = best(rows, lambda row: row.spike_p99_us)
    return [
        verdict(
            "spike", "p99 <= 600 ms from the first connect (published)", row,
            lambda row: ms(row.spike_p99_us), lambda row: row.delivered_all and row.spike_p99_us <= 600 * MS,
        ),
        verdict(
            "spike", "p99 from subscription to first tick <= 320 ms (published), for every client",
            best(rows, lambda row: row.subscription_p99_us),
            lambda row: f"{ms(row.subscription_p99_us)}, {row.first_ticks or 0:,} clients",
            lambda row: row.ended == 0 and row.first_ticks == SPIKE_CLIENTS and row.subscription_p99_us <= 320 * MS,
        ),
    ]


@dataclass(frozen=True)
class Loss:
    """A column in which a peer beats tickcast, as a sentence."""

    sentence: str
    is_beyond_noise: bool
    # Whether the peer beats every variant of tickcast.
    is_every_variant: bool


def losses(rows: list[Row]) -> list[Loss]:
    """All columns in which a peer beats a tickcast row with the same source of ticks.

    Variants that are beaten beyond noise and variants that are beaten within it make two losses. Those of every variant
    come first.
    """
    peers = [row for row in rows if not row.is_tickcast and not row.failed]
    found = []
    for peer in peers:
        own = [row for row in ours(rows) if row.fed_by == peer.fed_by] or ours(rows)
        for column in COLUMNS if peer.clean_per_s is None else SATURATION_COLUMNS:
            found += losses_in(column, peer, own)
    found.sort(key=lambda loss: not loss.is_every_variant)
    failed = [row for row in rows if row.is_tickcast and row.failed]
    found += [Loss(f"tickcast ({row.variant}) failed under this load: {row.failed}.", True, False) for row in failed]
    return found


def losses_in(column: Column, peer: Row, own: list[Row]) -> list[Loss]:
    """The losses to one peer in one column."""
    if column.of(peer) is None:
        return []
    compared = [row for row in own if column.of(row) is not None]
    if column is DELIVERED:
        # A row that delivered everything cannot deliver more; differences come from the edges of the window.
        compared = [row for row in compared if not row.delivered_all]
    beaten = [row for row in compared if column.is_better(column.of(peer), column.of(row))]
    found = []
    for beyond in (True, False):
        group = [row for row in beaten if column.is_beyond_noise(peer, row) is beyond]
        if group:
            sentence = loss_sentence(column, peer, group, compared)
            found.append(Loss(sentence, beyond, len(group) == len(compared)))
    return found


def loss_sentence(column: Column, peer: Row, beaten: list[Row], compared: list[Row]) -> str:
    """Names the peer's figure and those of the beaten rows; the best of all compared rows for context."""

    def figure(row: Row) -> str:
        return f"{column.shown(column.of(row))} ({row.variant})"

    best_row = best(compared, column.of, column.more_is_better)
    text = f"{column.name}: {peer.name} {column.shown(column.of(peer))}; "
    if len(beaten) == len(compared):
        text += f"every tickcast variant is worse, the best at {figure(best_row)}."
    else:
        text += f"tickcast {', '.join(figure(row) for row in beaten)}; its best is {figure(best_row)}."
    share = peer.delivered_share
    if share is not None and not peer.delivered_all and column is not DELIVERED:
        text += f" {peer.name} delivered {share:.1%} of the load."
    return text
