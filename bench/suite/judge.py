"""What the figures mean: which aims are reached, and every column in which a peer beats tickcast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable

from figures import Row

MS = 1e3
# Clients of the load "spike".
SPIKE_CLIENTS = 1_500
M = 1e6


# The aim that is of every load.
PER_SEND = "CPU per SEND"
# How a sentence says that no variant of tickcast holds.
EVERY = "every tickcast variant is worse"


@dataclass(frozen=True)
class Verdict:
    """One aim: what was wanted, what came, and whether that is enough. `None`: not measured."""

    load: str
    wanted: str
    found: str
    reached: bool | None


@dataclass(frozen=True)
class Column:
    """A figure in which systems are compared."""

    name: str
    of: Callable[[Row], float | None]
    shown: Callable[[float], str]
    more_is_better: bool = False

    def is_better(self, one: float, other: float) -> bool:
        """Whether `one` beats `other`."""
        return one > other if self.more_is_better else one < other


def ms(us: float) -> str:
    """Microseconds, as milliseconds."""
    return f"{us / MS:.2f} ms"


COLUMNS = (
    Column("deliveries/s", lambda row: row.delivered_per_s, lambda rate: f"{rate:,.0f}", more_is_better=True),
    Column("ticks lost without a word", lambda row: row.lost, lambda lost: f"{lost:,}"),
    Column("p50", lambda row: row.p50_us, ms),
    Column("p90", lambda row: row.p90_us, ms),
    Column("p99", lambda row: row.p99_us, ms),
    Column("p99.9", lambda row: row.p999_us, ms),
    Column("max", lambda row: row.max_us, ms),
    Column("p99 of the uncorrected latency", lambda row: row.uncorrected_p99_us, ms),
    Column("p99 from subscription to first tick", lambda row: row.subscription_p99_us, ms),
    Column("skew p99", lambda row: row.skew_p99_us, ms),
    Column("CPU a delivery", lambda row: row.cpu_us_per_delivery, lambda us: f"{us:.3f} us"),
    Column("server CPU", lambda row: row.server_cpu_share, lambda share: f"{share:.1%} of a core"),
    Column("server memory", lambda row: row.server_rss_bytes, lambda count: f"{count / (1 << 20):.1f} MiB"),
    Column("memory a connection", lambda row: row.rss_bytes_per_connection, lambda count: f"{count:,.0f} bytes"),
)
# Systems that are each at a rate of their own are compared in that rate, and in its cost.
SATURATION_COLUMNS = (
    Column("highest clean step", lambda row: row.clean_per_s, lambda rate: f"{rate:,.0f}/s", more_is_better=True),
    Column("most delivered", lambda row: row.most_per_s, lambda rate: f"{rate:,.0f}/s", more_is_better=True),
    Column("CPU a delivery", lambda row: row.cpu_us_per_delivery, lambda us: f"{us:.3f} us"),
)


def ours(rows: Iterable[Row]) -> list[Row]:
    """tickcast's rows that were measured."""
    return [row for row in rows if row.is_tickcast and not row.failed]


def best(rows: Iterable[Row], of: Callable[[Row], float | None], more: bool = False) -> Row | None:
    """The row with the least (or most) of a figure."""
    having = [row for row in rows if of(row) is not None]
    return (max if more else min)(having, key=of) if having else None


def verdict(load: str, wanted: str, row: Row | None, found: Callable[[Row], str], reached: Callable[[Row], bool]):
    """Judges one row, where there is one."""
    if row is None:
        return Verdict(load, wanted, "not measured", None)
    return Verdict(load, wanted, f"{found(row)} ({row.variant})", reached(row))


def verdicts(loads: dict[str, list[Row]]) -> list[Verdict]:
    """Every aim, from the rows of each load by its name. A load that was not run gives `not measured`."""
    rows = {name: ours(of_load) for name, of_load in loads.items()}
    failed = {name: [row.variant for row in of_load if row.is_tickcast and row.failed] for name, of_load in loads.items()}
    found = [
        *first_load(rows.get("S1", [])),
        *saturation(rows.get("saturation", [])),
        *(bare_rate(name, rows.get(name, [])) for name in ("S2", "S3")),
        *(told(name, rows.get(name, [])) for name in ("S2", "S3")),
        all_delivered("S4", rows.get("S4", [])),
        engine(rows.get("engine", [])),
        idle(rows.get("idle-ws", [])),
        bare_cpu(rows),
        wave(rows.get("wave", [])),
        *spike(rows.get("spike", [])),
    ]
    return [with_failed(one, failed) for one in found]


def with_failed(one: Verdict, failed: dict[str, list[str]]) -> Verdict:
    """An aim of a load in which a variant did not come through is not reached, whatever the others show."""
    names = [variant for name, of_load in failed.items() if name == one.load or one.load == PER_SEND for variant in of_load]
    if not names:
        return one
    return Verdict(one.load, one.wanted, f"{one.found}; failed: {', '.join(names)}", False)


def first_load(rows: list[Row]) -> list[Verdict]:
    """S1: cheap enough with a good tail, and a better tail at any price."""
    whole = [row for row in rows if row.delivered_all]
    within = [row for row in whole if row.p99_us is not None and row.p99_us <= 2 * MS]
    cheap = best(within or whole or rows, lambda row: row.cpu_us_per_delivery)
    swift = best(whole or rows, lambda row: row.p99_us)
    return [
        all_delivered("S1", rows),
        verdict(
            "S1", "<= 1.0 us of CPU a delivery with p99 <= 2 ms", cheap,
            lambda row: f"{row.cpu_us_per_delivery:.2f} us with p99 {ms(row.p99_us)}",
            lambda row: row in within and row.cpu_us_per_delivery <= 1.0,
        ),
        verdict(
            "S1", "p99 <= 1.2 ms at any CPU", swift,
            lambda row: f"{ms(row.p99_us)} at {row.cpu_us_per_delivery:.2f} us",
            lambda row: row.delivered_all and row.p99_us <= 1.2 * MS,
        ),
    ]


def all_delivered(load: str, rows: list[Row]) -> Verdict:
    """Nothing lost, nobody closed, in the best of the variants."""
    whole = [row for row in rows if row.delivered_all]
    row = best(whole or rows, lambda row: row.delivered_share, more=True)
    return verdict(load, "all delivered", row, lambda row: f"{row.delivered_share:.1%}", lambda row: row.delivered_all)


def most_saturated(row: Row) -> float:
    """Deliveries a second: of the highest clean step, or unthrottled where each loss was announced."""
    announced_all = row.unthrottled_per_s is not None and row.unthrottled_lost == 0 and row.unthrottled_ended == 0
    return max(row.clean_per_s or 0.0, row.unthrottled_per_s if announced_all else 0.0)


def cpu_saturated(row: Row) -> float | None:
    """CPU a delivery of the run that `most_saturated` is from."""
    if most_saturated(row) > (row.clean_per_s or 0.0):
        return row.unthrottled_cpu_us_per_delivery
    return row.cpu_us_per_delivery


def saturation(rows: list[Row]) -> list[Verdict]:
    """As many as go, and what one costs then."""
    row = best(rows, most_saturated, more=True)
    return [
        verdict(
            "saturation", ">= 8 M deliveries/s", row, lambda row: f"{most_saturated(row) / M:.2f} M/s" + bottleneck(row),
            lambda row: most_saturated(row) >= 8 * M,
        ),
        verdict(
            "saturation", "<= 0.1 us of CPU a delivery, in the same run", row,
            lambda row: f"{cpu_saturated(row):.3f} us", lambda row: cpu_saturated(row) <= 0.1,
        ),
        verdict(
            "saturation", "unthrottled, with `--policy '>=drop'`: every lost tick is announced, nobody is closed",
            best(rows, lambda row: None if row.unthrottled_lost is None else row.unthrottled_lost + row.unthrottled_ended,
                 more=True),
            lambda row: f"{row.unthrottled_lost:,} lost without a word, {row.unthrottled_announced:,} announced, "
            f"{row.unthrottled_ended} closed",
            lambda row: row.unthrottled_lost == 0 and row.unthrottled_ended == 0,
        ),
    ]


def bottleneck(row: Row) -> str:
    """What to say where the figure is the client's."""
    return ", the client was the bottleneck" if row.client_is_bottleneck else ""


def bare_rate(load: str, rows: list[Row]) -> Verdict:
    """MB/s beside those of the bare loop. A load that was delivered whole asked for no more than it got."""
    row = best(rows, lambda row: row.bare_rate_share, more=True)
    return verdict(
        load, ">= 85 % of the bare loop's MB/s", row,
        lambda row: f"{row.wire_mb_per_s:,.0f} of {row.bare_wire_mb_per_s:,.0f} MB/s, {row.bare_rate_share:.0%}"
        + (", all that was offered: no more was asked for" if row.delivered_all else ""),
        lambda row: row.bare_rate_share >= 0.85 or row.delivered_all,
    )


def told(load: str, rows: list[Row]) -> Verdict:
    """What cannot be delivered is announced: nothing is lost in silence, nobody is closed."""
    row = best(rows, lambda row: (row.lost or 0) + row.ended, more=True)
    return verdict(
        load, "what cannot be delivered is conflated or announced", row,
        lambda row: f"{row.lost or 0:,} lost without a word, {row.announced or 0:,} announced, {row.ended} closed",
        lambda row: not row.lost and row.ended == 0,
    )


def engine(rows: list[Row]) -> Verdict:
    """5,000 WebSocket clients."""
    frugal = [row for row in rows if row.server_cpu_share is not None and row.server_cpu_share <= 0.64]
    row = best(frugal, lambda row: row.p99_us) or best(rows, lambda row: row.p99_us)
    return verdict(
        "engine", "p99 <= 90 ms at no more than 0.64 core", row,
        lambda row: f"p99 {ms(row.p99_us)} at {row.server_cpu_share:.2f} core" + bottleneck(row),
        lambda row: row.delivered_all and row.p99_us <= 90 * MS and row.server_cpu_share <= 0.64,
    )


def idle(rows: list[Row]) -> Verdict:
    """Memory of a WebSocket that does nothing."""
    row = best(rows, lambda row: row.rss_bytes_per_connection)
    return verdict(
        "idle-ws", "<= 1 KB of RSS a connection beyond the empty server", row,
        lambda row: f"{row.rss_bytes_per_connection:,.0f} bytes",
        lambda row: row.rss_bytes_per_connection <= 1024 and row.ended == 0,
    )


def bare_cpu(rows: dict[str, list[Row]]) -> Verdict:
    """CPU of a SEND beside the bare loop's: the worst of all loads."""
    row = best((row for of_load in rows.values() for row in of_load), lambda row: row.bare_ratio, more=True)
    return verdict(
        PER_SEND, "<= 1.2x of the bare io_uring loop, in every load", row,
        lambda row: f"at worst {row.bare_ratio:.2f}x, in {row.load}", lambda row: row.bare_ratio <= 1.2,
    )


def wave(rows: list[Row]) -> Verdict:
    """Waves arrive before the eye notices."""
    row = best(rows, lambda row: row.p99_us, more=True)
    return verdict(
        "wave", "p99 < 15 ms end to end, in every variant", row,
        lambda row: ms(row.p99_us), lambda row: row.delivered_all and row.p99_us < 15 * MS,
    )


def spike(rows: list[Row]) -> list[Verdict]:
    """The published spike: no slower than that, from the first connect on, and nobody left out."""
    row = best(rows, lambda row: row.spike_p99_us)
    return [
        verdict(
            "spike", "p99 <= 600 ms from the first connect on (published)", row,
            lambda row: ms(row.spike_p99_us), lambda row: row.delivered_all and row.spike_p99_us <= 600 * MS,
        ),
        verdict(
            "spike", "p99 from subscription to first tick <= 320 ms (published), every client",
            best(rows, lambda row: row.subscription_p99_us),
            lambda row: f"{ms(row.subscription_p99_us)}, {row.first_ticks:,} clients",
            lambda row: row.ended == 0 and row.first_ticks == SPIKE_CLIENTS and row.subscription_p99_us <= 320 * MS,
        ),
    ]


def losses(rows: list[Row]) -> list[str]:
    """One plain sentence for each peer and column in which it beats tickcast, in any variant that is fed alike.

    Those in which it beats every variant come first.
    """
    peers = [row for row in rows if not row.is_tickcast and not row.failed]
    sentences = []
    for peer in peers:
        mine = [row for row in ours(rows) if row.fed_by == peer.fed_by] or ours(rows)
        for column in COLUMNS if peer.clean_per_s is None else SATURATION_COLUMNS:
            sentence = loss(peer, mine, column)
            if sentence:
                sentences.append(sentence)
    sentences.sort(key=lambda sentence: EVERY not in sentence)
    failed = [row for row in rows if row.is_tickcast and row.failed]
    sentences += [f"tickcast ({row.variant}) did not come through this load: {row.failed}." for row in failed]
    return sentences


def loss(peer: Row, mine: list[Row], column: Column) -> str:
    """The sentence for one peer and column, or nothing."""
    theirs = column.of(peer)
    if theirs is None:
        return ""
    compared = [(row, column.of(row)) for row in mine if column.of(row) is not None]
    if column.name == "deliveries/s":
        # Who delivered everything cannot deliver more: the rest is the edges of the window.
        compared = [(row, value) for row, value in compared if not row.delivered_all]
    beaten = [(row, value) for row, value in compared if column.is_better(theirs, value)]
    if not beaten:
        return ""
    text = f"{column.name}: {peer.name} {column.shown(theirs)}; "
    order = sorted(compared, key=lambda pair: pair[1], reverse=column.more_is_better)
    best_row, best_value = order[0]
    if len(beaten) == len(compared):
        text += f"{EVERY}, the best with {column.shown(best_value)} ({best_row.variant})"
    else:
        text += "tickcast is worse with "
        text += " and ".join(f"{column.shown(value)} ({row.variant})" for row, value in beaten)
        text += f", its best is {column.shown(best_value)} ({best_row.variant})"
    share = peer.delivered_share
    if share is not None and not peer.delivered_all and column.name != "deliveries/s":
        text += f" ({peer.name} delivered {share:.1%} of what was offered)"
    return text + "."
