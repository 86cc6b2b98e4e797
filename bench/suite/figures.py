"""One row of a table: what a run showed, computed from the load client's JSON, the server's totals and the kernel.

Everything here is arithmetic on what was measured. `None` stands for what was not measured.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import asdict, dataclass, field, fields

# Share of the offered deliveries from which on a run counts as having delivered all: the rest is rounding at the
# edges of the window.
WHOLE_SHARE = 0.99

# A publisher that came to less of its rate is told of.
FEED_SHARE = 0.99
# Share of their core from which on client and publisher together measure themselves; the load client's own bound.
BOTTLENECK_SHARE = 0.85

# Counters of ticks that never got a number.
REFUSED = ("ticks_simulator_dropped", "ticks_refused", "ticks_refused_rate")
TOTAL_LINE = re.compile(r"\btotal (\w+) (\d+) \w+")


@dataclass
class Row:
    """One system under one load. Latencies are microseconds, corrected: from the intended send time."""

    load: str
    system: str
    variant: str = ""
    # The comparison is between rows that are fed alike: "simulator", "network" or "capture".
    fed_by: str = ""
    failed: str = ""
    offered_per_s: float | None = None
    delivered_per_s: float | None = None
    lost: int | None = None
    # Those of the lost that are the last of their topics: they may still have been under way.
    lost_tail: int = 0
    # Lost by the count of deliveries alone: the system numbers nothing, so a few ticks at the edges are in it.
    lost_is_estimate: bool = False
    announced: int | None = None
    # Ticks that the source could not get in, over the server's whole life: they have no number, so nobody misses them.
    refused: int = 0
    # Clients that had a first tick; None where that was not looked at.
    first_ticks: int | None = None
    # From the first connect of a spike on: of every delivery until the end of the window.
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
    # From the start of a connection's connect to its first tick.
    connect_p99_us: float | None = None
    # From the first to the last client that has a tick.
    skew_p99_us: float | None = None
    cpu_us_per_delivery: float | None = None
    server_cpu_share: float | None = None
    server_rss_bytes: int | None = None
    client_cpu_share: float | None = None
    # Of the publisher, which runs on the client's core.
    feed_cpu_share: float | None = None
    client_is_bottleneck: bool = False
    payload_mb_per_s: float | None = None
    wire_mb_per_s: float | None = None
    deliveries_per_send: float | None = None
    bytes_per_send: float | None = None
    sends_per_s: float | None = None
    cpu_us_per_send: float | None = None
    # The bare loop at the same sizes and rate, and as fast as it goes.
    bare_cpu_us_per_send: float | None = None
    bare_wire_mb_per_s: float | None = None
    bare_bytes_per_send: float | None = None
    bare_p50_us: float | None = None
    bare_p99_us: float | None = None
    # Idle connections: memory beyond the empty server, bytes a connection.
    rss_bytes_per_connection: float | None = None
    # Saturation: deliveries a second of the highest step without loss, and of the unthrottled run.
    clean_per_s: float | None = None
    # The most that was delivered at any step, clean or not.
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
    p99_range_us: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    # File of the percentile text (.hgrm) of the run reported, by its name.
    hgrm: str = ""

    @property
    def name(self) -> str:
        """System and variant, as tables have it."""
        return f"{self.system} ({self.variant})" if self.variant else self.system

    @property
    def is_tickcast(self) -> bool:
        """Whether it is our own."""
        return self.system == "tickcast"

    @property
    def delivered_share(self) -> float | None:
        """Part of what was offered that arrived, at most all: the window's edges can hold a few more."""
        share = ratio(self.delivered_per_s, self.offered_per_s)
        return None if share is None else min(share, 1.0)

    @property
    def delivered_all(self) -> bool:
        """Whether everything arrived, and everybody stayed."""
        share = self.delivered_share
        complete = share is not None and share >= WHOLE_SHARE
        counted = self.lost_is_estimate or not (self.lost or self.announced)
        return not self.failed and complete and counted and self.ended == 0 and self.refused == 0

    @property
    def bare_ratio(self) -> float | None:
        """CPU of one SEND, as a multiple of the bare loop's."""
        return ratio(self.cpu_us_per_send, self.bare_cpu_us_per_send)

    @property
    def bare_rate_share(self) -> float | None:
        """MB/s on the wire, as a share of the bare loop's as fast as it goes."""
        return ratio(self.wire_mb_per_s, self.bare_wire_mb_per_s)

    def to_json(self) -> dict:
        """All fields."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict) -> Row:
        """Back from `to_json`; fields of later versions are left out."""
        known = {one.name for one in fields(Row)}
        row = Row(**{name: of for name, of in value.items() if name in known})
        if row.p99_range_us is not None:
            row.p99_range_us = tuple(row.p99_range_us)
        return row


def ratio(above: float | None, below: float | None) -> float | None:
    """A quotient; `None` where either is missing or nothing is below."""
    if above is None or below is None or below == 0:
        return None
    return above / below


def totals(log: str) -> dict[str, int]:
    """The counters that tickcast prints as `total NAME VALUE unit` when it ends."""
    return {name: int(value) for name, value in TOTAL_LINE.findall(log)}


def fill_from_client(row: Row, client: dict, offered_per_s: float, server_cpu_s: float | None) -> None:
    """Takes over what the load client measured. `server_cpu_s` is the CPU time of all of the server's processes."""
    window_s = client["window_s"]
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
            row.notes.append(f"{latency['untimed']} deliveries carried no time and are in no percentile")
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
        row.notes.append(f"{count} connections ended: {reason}")


def fill_from_feed(row: Row, feed: dict, ticks_per_s: float) -> None:
    """Takes over what an outside publisher says: what it used of the client's core, and where it did not keep up."""
    row.feed_cpu_share = feed.get("cpu_share")
    if (row.client_cpu_share or 0.0) + (row.feed_cpu_share or 0.0) > BOTTLENECK_SHARE:
        row.client_is_bottleneck = True
    rate = ratio(feed.get("sent"), feed.get("window_s"))
    if rate is not None and rate < FEED_SHARE * ticks_per_s:
        row.notes.append(f"the publisher came to {rate:,.0f} of {ticks_per_s:,} ticks/s")
    late = (feed.get("late_us") or {}).get("p99")
    if late is not None and row.p99_us is not None and late > row.p99_us / 2:
        row.notes.append(f"the publisher itself was late: p99 {late / 1e3:.2f} ms")
    row.refused += (feed.get("refused") or 0) + (feed.get("failed") or 0)
    row.notes += [f"publisher: {failure}" for failure in feed.get("failures", [])]


def p99_of(client: dict, name: str) -> float | None:
    """The p99 of one of the report's histograms, where it is there and not empty."""
    histogram = client.get(name) or {}
    return histogram.get("p99") if histogram.get("count") else None


def fill_loss(row: Row, client: dict, offered: float) -> None:
    """Ticks that never came, and those of which the client was told that they would not."""
    if client.get("lost") is not None:
        row.lost, row.lost_tail = client["lost"], client.get("lost_tail") or 0
        row.announced = (client.get("conflated") or 0) + (client.get("dropped") or 0)
        return
    row.lost_is_estimate = True
    row.lost = max(0, round(offered - client["deliveries"]))


def fill_from_totals(row: Row, counted: dict[str, int]) -> None:
    """SENDs, from the counters of a tickcast that has ended.

    The counters are of the server's whole life, so only quotients are taken from them; rates are of the window.
    Deliveries of a SEND follow from its bytes: the counter of ticks has those that were conflated or dropped, too.
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
        row.notes.append("the server printed no totals: nothing is known of its SENDs")
    row.refused += sum(counted.get(name, 0) for name in REFUSED)
    for name, text in (
        ("ticks_simulator_dropped", "ticks did not fit the simulator's ring"),
        ("closed_slow_consumer", "clients were closed as slow consumers"),
        ("ticks_refused", "ticks were refused"),
        ("ticks_refused_rate", "ticks were refused for their rate"),
    ):
        if counted.get(name):
            row.notes.append(f"{counted[name]} {text}")


def median_run(rows: list[Row]) -> Row:
    """The run whose p99 is the median (the higher of two), with the range of all, and the worst loss of any. Of saturations it is the run whose
    highest clean step is the median. Failed runs are not chosen if any other is there."""
    measured = [row for row in rows if not row.failed] or rows
    with_p99 = [row for row in measured if row.p99_us is not None]
    if all(row.clean_per_s is not None for row in measured):
        low = statistics.median_low([row.clean_per_s for row in measured])
        chosen = next(row for row in measured if row.clean_per_s == low)
    elif not with_p99:
        chosen = measured[0]
    else:
        high = statistics.median_high([row.p99_us for row in with_p99])
        chosen = next(row for row in with_p99 if row.p99_us == high)
    chosen.runs = len(rows)
    if all(row.clean_per_s is None for row in measured):
        # What went wrong once is not hidden by a median.
        for name in ("lost", "ended", "refused"):
            worst = max((getattr(row, name) or 0) for row in measured)
            if worst > (getattr(chosen, name) or 0):
                chosen.notes.append(f"{name}: {worst} in another run")
                setattr(chosen, name, worst)
    if len(with_p99) > 1:
        p99s = [row.p99_us for row in with_p99]
        chosen.p99_range_us = (min(p99s), max(p99s))
    failed = sum(bool(row.failed) for row in rows)
    if failed and not chosen.failed:
        chosen.notes.append(f"{failed} of {len(rows)} runs failed")
    return chosen
