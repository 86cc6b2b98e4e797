"""Compares tickcast with an older binary: interleaved pairs of runs under the same loads, and ratios new/old.

Both servers face the same load client. Only 0.1's spelling of options is used, which newer servers accept too.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import loads
import report
from figures import Row, ratio
from loads import BUDGET_US, SCREEN_BUDGET_US, Load, Variant
from measure import Suite
from processes import RunFailed
from systems import Programs, Tickcast

PAIRS = 7
# A median ratio up to this much worse counts as unchanged.
TOLERANCE = 0.03
# Fixed rate at which saturated servers are compared; see also the unthrottled case.
SATURATED_PER_S = 8_000_000


@dataclass(frozen=True)
class Figure:
    """A figure to compare."""

    name: str
    field: str
    shown: Callable[[float], str]
    more_is_better: bool = False

    def change(self, new_over_old: float) -> float:
        """How much worse the new figure is, as a share of the old; negative if better."""
        return 1 - new_over_old if self.more_is_better else new_over_old - 1


DELIVERED = Figure("delivered/s", "delivered_per_s", report.count, more_is_better=True)
CPU = Figure("CPU us/delivery", "cpu_us_per_delivery", lambda us: f"{us:.3f}")
P50 = Figure("p50 ms", "p50_us", report.ms)
P99 = Figure("p99 ms", "p99_us", report.ms)
WIRE = Figure("wire bytes/delivery", "wire_bytes_per_delivery", lambda size: f"{size:,.1f}")
RSS = Figure("RSS MiB", "server_rss_bytes", report.mib)
CONSTANT = (DELIVERED, CPU, P50, P99, RSS)
SPIKE = (
    Figure("p99 from the first connect, ms", "spike_p99_us", report.ms),
    Figure("p99 from subscription to first tick, ms", "subscription_p99_us", report.ms),
)
IDLE = (Figure("RSS per connection, bytes", "rss_bytes_per_connection", report.count), RSS)


@dataclass(frozen=True)
class Case:
    """A load, one variant of tickcast, and the figures to compare."""

    title: str
    load: Load
    variant: Variant
    figures: tuple[Figure, ...] = CONSTANT
    # The old server's variant, if it is another.
    old_variant: Variant | None = None

    def variant_of(self, which: str) -> Variant:
        """The variant of the "old" or the "new" server."""
        return self.old_variant if which == "old" and self.old_variant else self.variant

    @property
    def label(self) -> str:
        """Both variants, if they differ."""
        return self.variant.label + (f", old: {self.old_variant.label}" if self.old_variant else "")


def cases() -> list[Case]:
    """All cases. Ticks come from the simulator, so that no publisher adds noise."""
    named = {load.name: load for load in loads.LOADS}
    saturation = replace(named["saturation"], kind="constant")
    native, websocket = Variant(), Variant(transport="ws")
    auto, fixed = replace(native, budget_us=None), replace(native, budget_us=BUDGET_US)
    light = replace(named["S1"], producers=5, variants=())

    def beside_plain(name: str, figures: tuple[Figure, ...] = CONSTANT, at: int = 1, plain_at: int = 0) -> Case:
        plain, other = named[name].variants[plain_at], named[name].variants[at]
        return Case(name, named[name], other, figures, old_variant=plain)

    return [
        Case("S1", named["S1"], native),
        Case("S1", named["S1"], fixed),
        Case("S1", named["S1"], auto, old_variant=fixed),
        Case("500 ticks/s to 100 clients", light, auto, old_variant=native),
        # The clients choose no policy, as most do.
        Case("S3", replace(named["S3"], policy=""), native, (DELIVERED, CPU)),
        Case("S4", named["S4"], native),
        Case(f"saturation at {SATURATED_PER_S / 1e6:.0f} M/s", loads.at_total_rate(saturation, SATURATED_PER_S), native),
        Case("saturation, unthrottled", loads.unthrottled(saturation), native, (DELIVERED, CPU)),
        Case("engine", named["engine"], websocket),
        Case("engine", named["engine"], replace(websocket, budget_us=SCREEN_BUDGET_US)),
        Case("spike", named["spike"], named["spike"].variants[0], SPIKE),
        Case("idle-native", named["idle-native"], named["idle-native"].variants[0], IDLE),
        Case("idle-ws", named["idle-ws"], named["idle-ws"].variants[0], IDLE),
        beside_plain("S1-tls"),
        beside_plain("S1-tls", at=2),
        beside_plain("S3-tls"),
        beside_plain("S3-tls-500"),
        beside_plain("S3-tls-500", at=2),
        beside_plain("idle-tls", IDLE),
        beside_plain("S1-auth"),
        beside_plain("engine-sse"),
        beside_plain("engine-deflate", (*CONSTANT, WIRE)),
        beside_plain("engine-deflate", (*CONSTANT, WIRE), at=3, plain_at=2),
    ]


def chosen(names: str | None) -> list[Case]:
    """The cases of a comma-separated list of loads, or all; ValueError names loads without a case."""
    if not names:
        return cases()
    wanted = {load.name for load in loads.chosen(names)}
    found = [case for case in cases() if case.load.name in wanted]
    without = wanted - {case.load.name for case in found}
    if without:
        raise ValueError(f"--against has no case for {', '.join(sorted(without))}")
    return found


@dataclass
class Compared:
    """All pairs (old, new) of one case."""

    case: Case
    pairs: list[tuple[Row, Row]]

    @property
    def complete(self) -> list[tuple[Row, Row]]:
        """Pairs of which neither run failed."""
        return [pair for pair in self.pairs if not any(row.failed for row in pair)]

    def ratios(self, figure: Figure) -> list[float]:
        """The ratio new/old of each complete pair."""
        quotients = [ratio(getattr(new, figure.field), getattr(old, figure.field)) for old, new in self.complete]
        return [quotient for quotient in quotients if quotient is not None]

    def to_json(self) -> dict:
        """All rows."""
        pairs = [{"old": old.to_json(), "new": new.to_json()} for old, new in self.pairs]
        return {"case": self.case.title, "variant": self.case.label, "pairs": pairs}


def run(suite: Suite, compared_cases: list[Case], old: Path, pair_count: int) -> list[Compared]:
    """Runs `pair_count` rounds of all cases, old and new in turn. Every other round starts with the new binary."""
    systems = {"old": replace(suite.programs, other_server=old), "new": suite.programs}
    compared = [Compared(case, []) for case in compared_cases]
    for number in range(pair_count):
        order = ("old", "new") if number % 2 == 0 else ("new", "old")
        for one in compared:
            rows = {which: run_once(suite, one.case, which, systems[which]) for which in order}
            for which in order:
                if rows[which].failed:
                    suite.log(f"    {which} FAILED: {rows[which].failed}")
            one.pairs.append((rows["old"], rows["new"]))
            suite.log(f"{one.case.title} ({one.case.label}), pair {number + 1} of {pair_count}: {brief(one)}")
    if not any(one.complete for one in compared):
        raise RunFailed(f"every pair failed; the last: {failure_of(compared[-1])}")
    return compared


def run_once(suite: Suite, case: Case, which: str, programs: Programs) -> Row:
    """One run of the "old" or the "new" binary."""
    return suite.one(case.load, Tickcast(programs, case.variant_of(which)))


def failure_of(one: Compared) -> str:
    """Why the last pair of a case failed."""
    return next(row.failed for row in one.pairs[-1] if row.failed)


def brief(one: Compared) -> str:
    """The figures of the last pair, as old -> new."""
    old, new = one.pairs[-1]
    if old.failed or new.failed:
        return "failed"
    return ", ".join(
        f"{figure.name} {figure.shown(getattr(old, figure.field))} -> {figure.shown(getattr(new, figure.field))}"
        for figure in one.case.figures
        if getattr(old, figure.field) is not None and getattr(new, figure.field) is not None
    )


def verdict(figure: Figure, ratios: list[float]) -> str:
    """"worse" if the median ratio is worse by more than the tolerance, with a remark if not every pair agrees."""
    if figure.change(statistics.median(ratios)) <= TOLERANCE:
        return ""
    return "worse" if all(figure.change(one) > 0 for one in ratios) else "worse, but pairs disagree"


def table(compared: list[Compared]) -> str:
    """Medians of old and new, and the median ratio with its range, one line per figure."""
    lines = []
    for one in compared:
        name = f"{one.case.title} ({one.case.label})"
        for figure in one.case.figures:
            ratios = one.ratios(figure)
            if not ratios:
                lines.append([name, figure.name, "-", "-", "-", "-", f"no complete pair: {failure_of(one)}"
                              if not one.complete else "not measured"])
                continue
            olds, news = ([getattr(row, figure.field) for row in rows] for rows in zip(*one.complete))
            lines.append([
                name, figure.name, figure.shown(statistics.median(olds)), figure.shown(statistics.median(news)),
                f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}", verdict(figure, ratios),
            ])
    head = ["load (variant)", "figure", "old", "new", "new/old", "range over pairs", ""]
    text = report.aligned(head, lines, left=(0, 1, 6))
    worse = sum(line[-1].startswith("worse") for line in lines)
    incomplete = sum(len(one.pairs) - len(one.complete) for one in compared)
    text += ["", f"{worse} of {len(lines)} figures are more than {TOLERANCE:.0%} worse (median of pairs)."]
    text += [f"{incomplete} pairs failed and are left out."] if incomplete else []
    return "\n".join(line.rstrip() for line in text)
