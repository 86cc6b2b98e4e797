"""One row of a table, computed from the load client's report, the server's totals and the kernel's counters.

Pure arithmetic on measurements. `None` means not measured.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import asdict, dataclass, field, fields

# A run that delivered this share of the offered load is complete: ticks at the edges of the window fall outside it.
COMPLETE_SHARE_MIN = 0.99

# The report notes a publisher that reached less than this share of its rate.
FEED_SHARE_MIN = 0.99
# Above this share of their core, the client and the publisher measure themselves. The load client uses the same limit.
BOTTLENECK_SHARE = 0.85

# Counters of ticks that were refused before they got a sequence number.
REFUSED = ("source_ticks_dropped", "ticks_simulator_dropped", "ticks_refused", "ticks_refused_rate")
# Figures whose spread over the repeats is kept.
RANGED = (
    "delivered_per_s", "lost", "p50_us", "p90_us", "p99_us", "p999_us", "max_us", "uncorrected_p99_us",
    "subscription_p99_us", "skew_p99_us", "cpu_us_per_delivery", "server_cpu_share", "server_rss_bytes",
    "rss_bytes_per_connection", "clean_per_s", "most_per_s",
)
TOTAL_LINE = re.compile(r"\btotal (\w+) (\d+) \w+")


@dataclass
class Row:
    """One system under one load. Latencies are in microseconds, measured from the intended send time."""

    load: str
    system: str
    variant: str = ""
    # Where ticks come from: "simulator", "network" or "capture". Only rows with the same source are compared.
    fed_by: str = ""
    failed: str = ""
    window_s: float | None = None
    offered_per_s: float | None = None
    delivered_per_s: float | None = None
    lost: int | None = None
    # Lost ticks that are the last of their topic: they may have been in flight when the run ended.
    lost_tail: int = 0
    # Inferred from the number of deliveries, because the system has no sequence numbers. Includes a few ticks at the
    # edges of the window.
    lost_is_estimate: bool = False
    announced: int | None = None
    # Ticks that the server did not accept from the source, over its whole life. They have no sequence number, so no
    # client counts them as lost.
    refused: int = 0
    # Clients that received a first tick.
    first_ticks: int | None = None
    # Over every delivery from the first connect of a spike to the end of the window.
    spike_p99_us: float | None = None
    ended: int = 0
    p50_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    max_us: float | None = None
    uncorrected_p99_us: float | None = None
    subscription_p50_us: float | None = None
    subscription_p99_us: float | None = None
    # From the start of a client's connect to its first tick.
    connect_p99_us: float | None = None
    # From the first client that receives a tick to the last.
    skew_p99_us: float | None = None
    cpu_us_per_delivery: float | None = None
    server_cpu_share: float | None = None
    server_rss_bytes: int | None = None
    client_cpu_share: float | None = None
    # The publisher runs on the client's core.
    feed_cpu_share: float | None = None
    client_is_bottleneck: bool = False
    payload_mb_per_s: float | None = None
    wire_mb_per_s: float | None = None
    deliveries_per_send: float | None = None
    bytes_per_send: float | None = None
    sends_per_s: float | None = None
    cpu_us_per_send: float | None = None
    # The bare loop with the same sizes: at the same rate, and unthrottled (MB/s).
    bare_cpu_us_per_send: float | None = None
    bare_wire_mb_per_s: float | None = None
    bare_bytes_per_send: float | None = None
    bare_p50_us: float | None = None
    bare_p99_us: float | None = None
    # Idle loads: memory above the empty server's.
    rss_bytes_per_connection: float | None = None
    # Saturation: deliveries/s of the highest step without loss.
    clean_per_s: float | None = None
    # Saturation: the most deliveries/s at any step, clean or not.
    most_per_s: float | None = None
    unthrottled_per_s: float | None = None
    unthrottled_lost: int | None = None
    unthrottled_announced: int | None = None
    unthrottled_cpu_us_per_delivery: float | None = None
    unthrottled_ended: int = 0
    unthrottled_client_is_bottleneck: bool = False
    steal_percent: float | None = None
    others_percent: float | None = None
    runs: int = 1
    # Lowest and highest value over the repeats, by field name; only figures with repeats are here.
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    # Quantile (below 1) and latency in milliseconds, both ascending.
    latency_curve: list[tuple[float, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """System and variant, as shown in tables."""
        return f"{self.system} ({self.variant})" if self.variant else self.system

    @property
    def is_tickcast(self) -> bool:
        """Whether the system is tickcast."""
        return self.system == "tickcast"

    @property
    def delivered_share(self) -> float | None:
        """Delivered share of the offered load, capped at 1 because the window can catch a few ticks more."""
        share = ratio(self.delivered_per_s, self.offered_per_s)
        return None if share is None else min(share, 1.0)

    @property
    def delivered_all(self) -> bool:
        """Whether every offered tick arrived and no client was disconnected."""
        share = self.delivered_share
        complete = share is not None and share >= COMPLETE_SHARE_MIN
        counted = self.lost_is_estimate or not (self.lost or self.announced)
        return not self.failed and complete and counted and self.ended == 0 and self.refused == 0

    @property
    def wire_bytes_per_delivery(self) -> float | None:
        """Bytes that a client reads from its socket for each delivery."""
        return ratio((self.wire_mb_per_s or 0.0) * 1e6, self.delivered_per_s)

    @property
    def bare_ratio(self) -> float | None:
        """CPU per SEND as a multiple of the bare loop's."""
        return ratio(self.cpu_us_per_send, self.bare_cpu_us_per_send)

    @property
    def bare_rate_share(self) -> float | None:
        """MB/s on the wire as a share of the unthrottled bare loop's."""
        return ratio(self.wire_mb_per_s, self.bare_wire_mb_per_s)

    def to_json(self) -> dict:
        """All fields, as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict) -> Row:
        """Reads what `to_json` wrote. Ignores unknown fields, which other versions of the suite may write."""
        known = {one.name for one in fields(Row)}
        row = Row(**{name: of for name, of in value.items() if name in known})
        row.ranges = {name: (low, high) for name, (low, high) in row.ranges.items()}
        row.latency_curve = [(quantile, ms) for quantile, ms in row.latency_curve]
        return row


def ratio(above: float | None, below: float | None) -> float | None:
    """Quotient, or `None` if a value is missing or the divisor is 0."""
    if above is None or below is None or below == 0:
        return None
    return above / below


def totals(log: str) -> dict[str, int]:
    """Counters that tickcast logs at exit as `total NAME VALUE unit`."""
    return {name: int(value) for name, value in TOTAL_LINE.findall(log)}


def fill_from_client(row: Row, client: dict, offered_per_s: float, server_cpu_s: float | None) -> None:
    """Fills in the load client's figures. `server_cpu_s` is the CPU time of all server processes."""
    row.window_s = window_s = client["window_s"]
    deliveries = client["deliveries"]
    latency = client["latency_us"]
    row.offered_per_s = offered_per_s
    row.delivered_per_s = client["deliveries_per_s"]
    row.ended = sum(client.get("ended_early", {}).values())
    fill_loss(row, client, offered_per_s * window_s)
    if latency["count"] > 0:
        row.p50_us, row.p90_us, row.p99_us = latency["p50"], latency["p90"], latency["p99"]
        row.p999_us, row.max_us = latency["p99.9"], latency["max"]
        if latency.get("untimed"):
            row.notes.append(f"{latency['untimed']} deliveries carried no send time and count in no percentile")
    row.uncorrected_p99_us = p99_of(client, "latency_uncorrected_us")
    row.connect_p99_us = p99_of(client, "connect_to_first_tick_us")
    row.skew_p99_us = p99_of(client, "skew_us")
    row.spike_p99_us = p99_of(client, "spike_latency_us")
    row.first_ticks = (client.get("subscription_us") or {}).get("count")
    subscription = client.get("subscription_us") or {}
    if subscription.get("count"):
        row.subscription_p50_us, row.subscription_p99_us = subscription["p50"], subscription["p99"]
    cpu_s = server_cpu_s if server_cpu_s is not None else client.get("server_cpu_s")
    if cpu_s is not None:
        row.server_cpu_share = cpu_s / window_s
        row.cpu_us_per_delivery = ratio(cpu_s * 1e6, deliveries)
    row.client_cpu_share = client["client_cpu_busiest"]
    row.client_is_bottleneck = client["client_is_bottleneck"]
    row.payload_mb_per_s = client["payload_bytes_per_s"] / 1e6
    row.wire_mb_per_s = client["received_bytes_per_s"] / 1e6
    for reason, count in client.get("ended_early", {}).items():
        row.notes.append(f"{count} connections closed: {reason}")


def fill_from_feed(row: Row, feed: dict, ticks_per_s: float) -> None:
    """Fills in the external publisher's figures: its share of the client's core, and where it fell behind."""
    row.feed_cpu_share = feed.get("cpu_share")
    if (row.client_cpu_share or 0.0) + (row.feed_cpu_share or 0.0) > BOTTLENECK_SHARE:
        row.client_is_bottleneck = True
    rate = ratio(feed.get("sent"), feed.get("window_s"))
    if rate is not None and rate < FEED_SHARE_MIN * ticks_per_s:
        row.notes.append(f"the publisher reached {rate:,.0f} of {ticks_per_s:,} ticks/s")
    late = (feed.get("late_us") or {}).get("p99")
    if late is not None and row.p99_us is not None and late > row.p99_us / 2:
        row.notes.append(f"the publisher was late: p99 {late / 1e3:.2f} ms")
    row.refused += (feed.get("refused") or 0) + (feed.get("failed") or 0)
    row.notes += [f"publisher: {failure}" for failure in feed.get("failures", [])]


def p99_of(client: dict, name: str) -> float | None:
    """p99 of one of the report's histograms, or `None` if it is missing or empty."""
    histogram = client.get(name) or {}
    return histogram.get("p99") if histogram.get("count") else None


def fill_loss(row: Row, client: dict, offered: float) -> None:
    """Fills in the ticks that were lost and those the server announced as lost."""
    if client.get("lost") is not None:
        row.lost, row.lost_tail = client["lost"], client.get("lost_tail") or 0
        row.announced = (client.get("conflated") or 0) + (client.get("dropped") or 0)
        return
    row.lost_is_estimate = True
    row.lost = max(0, round(offered - client["deliveries"]))


def fill_from_totals(row: Row, counted: dict[str, int]) -> None:
    """Fills in the figures per SEND from tickcast's counters at exit.

    The counters cover the server's whole life, so only quotients are taken from them; rates come from the window.
    Deliveries per SEND are derived from bytes, because the tick counter includes conflated and dropped ticks.
    """
    sends = counted.get("sends", 0)
    row.bytes_per_send = ratio(counted.get("bytes_sent"), sends)
    bytes_per_delivery = ratio((row.wire_mb_per_s or 0.0) * 1e6, row.delivered_per_s)
    row.deliveries_per_send = ratio(row.bytes_per_send, bytes_per_delivery)
    if row.deliveries_per_send:
        row.sends_per_s = ratio(row.delivered_per_s, row.deliveries_per_send)
        if row.cpu_us_per_delivery is not None:
            row.cpu_us_per_send = row.cpu_us_per_delivery * row.deliveries_per_send
    if not counted:
        row.notes.append("the server logged no totals: its SENDs are unknown")
    row.refused += sum(counted.get(name, 0) for name in REFUSED)
    for name, text in (
        ("source_ticks_dropped", "ticks did not fit the simulator's ring"),
        # The name in 0.1.
        ("ticks_simulator_dropped", "ticks did not fit the simulator's ring"),
        ("closed_slow_consumer", "clients were closed as slow consumers"),
        ("ticks_refused", "ticks were refused"),
        ("ticks_refused_rate", "ticks were refused by the rate limit"),
    ):
        if counted.get(name):
            row.notes.append(f"{counted[name]} {text}")


def latency_curve(hgrm: str) -> list[tuple[float, float]]:
    """Quantiles and milliseconds in HdrHistogram's percentile text, whose values are microseconds.

    Omits the last line: quantile 1 has no place on a logarithmic axis.
    """
    points = []
    for line in hgrm.splitlines():
        fields_of_line = line.split()
        if len(fields_of_line) >= 3 and fields_of_line[0] != "Value" and not line.startswith("#"):
            value_us, quantile = float(fields_of_line[0]), float(fields_of_line[1])
            if quantile < 1.0:
                points.append((round(quantile, 9), round(value_us / 1e3, 6)))
    return points


def ranges(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each figure over several runs."""
    found = {}
    for name in RANGED:
        spans = [row.ranges.get(name) or (getattr(row, name),) * 2 for row in rows if getattr(row, name) is not None]
        if len(spans) > 1 or any(row.ranges.get(name) for row in rows):
            found[name] = (min(low for low, _ in spans), max(high for _, high in spans))
    return found


def median_run(rows: list[Row]) -> Row:
    """The run with the median p99 (the higher of two), with the ranges and the worst losses over all runs.

    For saturation, the run with the median of the highest clean steps. Failed runs are chosen only if all failed.
    """
    measured = [row for row in rows if not row.failed] or rows
    with_p99 = [row for row in measured if row.p99_us is not None]
    ranges_of_all = ranges(measured)
    if all(row.clean_per_s is not None for row in measured):
        low = statistics.median_low([row.clean_per_s for row in measured])
        chosen = next(row for row in measured if row.clean_per_s == low)
    elif not with_p99:
        chosen = measured[0]
    else:
        high = statistics.median_high([row.p99_us for row in with_p99])
        chosen = next(row for row in with_p99 if row.p99_us == high)
    chosen.runs = len(rows)
    chosen.ranges = ranges_of_all
    if all(row.clean_per_s is None for row in measured):
        # A median must not hide a fault that occurred once.
        for name in ("lost", "ended", "refused"):
            worst = max((getattr(row, name) or 0) for row in measured)
            if worst > (getattr(chosen, name) or 0):
                chosen.notes.append(f"{name}: {worst} in another run")
                setattr(chosen, name, worst)
    failed = sum(bool(row.failed) for row in rows)
    if failed and not chosen.failed:
        chosen.notes.append(f"{failed} of {len(rows)} runs failed")
    return chosen
