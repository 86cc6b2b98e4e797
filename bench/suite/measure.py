"""Runs a load on a system and gives a row: constant rate, saturation, idle; and the bare loop beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import bare
import client
from client import Window
from figures import Row, fill_from_client, fill_from_feed, fill_from_totals, median_run, totals
from loads import SATURATION_STEPS_PER_S, SATURATION_TICKCAST_FROM_PER_S, SATURATION_UNTHROTTLED_PER_S, Load
from processes import Processes, RunFailed, resident_bytes
from systems import Programs

# An empty server is looked at so long after it began to listen, in seconds.
EMPTY_S = 0.5
# A step of the saturation that was not clean is tried so often before it counts: noise is not capacity.
STEP_ATTEMPTS = 2


@dataclass
class Suite:
    """What every run needs."""

    programs: Programs
    window: Window
    repeat: int
    # Folder for .hgrm files of the runs.
    scratch: Path
    say: object  # takes one line of progress
    histograms: int = 0

    def measure(self, load: Load, systems: list) -> list[Row]:
        """All systems under one load, in turn, `repeat` times over; the median run of each."""
        runs: list[list[Row]] = [[] for _ in systems]
        for round_number in range(self.repeat):
            for index, system in enumerate(systems):
                named = Row(load.name, system.system, system.label).name
                self.say(f"{load.name}: {named}, run {round_number + 1} of {self.repeat}")
                row = self.one(load, system)
                self.say(f"    {summary(row)}")
                if load.bare and row.is_tickcast and not row.failed and row.deliveries_per_send:
                    # At once, so that both have the same noise.
                    self.beside_bare(load, row)
                runs[index].append(row)
        return [median_run(of_one) for of_one in runs]

    def one(self, load: Load, system) -> Row:
        """One run; what went wrong is in the row."""
        row = Row(load=load.name, system=system.system, variant=system.label, fed_by=system.fed_by)
        try:
            if load.kind == "saturation":
                return self.saturation(load, system, row)
            self.constant(load, system, row)
        except RunFailed as failure:
            row.failed = str(failure)
        except Exception as error:  # pylint: disable=broad-exception-caught
            # An hour of figures is not thrown away for one row; the row says it.
            row.failed = f"the suite itself failed: {type(error).__name__}: {error}"
        return row

    def constant(self, load: Load, system, row: Row) -> None:
        """Server, then clients, then the publisher; fills the row."""
        self.histograms += 1
        hgrm = self.scratch / f"{load.name}-{system.system}-{self.histograms}.hgrm"
        with Processes() as processes:
            # The commands are wanted from a run that failed as well.
            row.commands = processes.commands
            endpoint = system.start(processes, load)
            time.sleep(EMPTY_S)
            empty_bytes = resident_bytes(list(endpoint.pids))
            window = replace(self.window, warm_up_s=0) if load.without_warm_up else self.window
            words = client.command(self.programs.client, load, endpoint, window, hgrm)
            feed = system.feed
            measured = client.run(
                processes, words, load, window, list(endpoint.pids), feed.start if feed else lambda: None
            )
            full_bytes = measured.server_bytes
            if feed:
                feed.stop()
            log = system.stop()
            dropped = None if row.is_tickcast else system.dropped(log)
        report = measured.report
        server_cpu_s = report.get("server_cpu_s")
        if server_cpu_s is not None:
            server_cpu_s += measured.other_cpu_s
        fill_from_client(row, report, load.offered_per_s, server_cpu_s)
        row.server_rss_bytes = full_bytes
        row.hgrm = hgrm.name if hgrm.exists() and row.p99_us is not None else ""
        row.steal_percent = measured.noise.get("steal_percent")
        row.others_percent = measured.noise.get("others_percent")
        if row.is_tickcast:
            fill_from_totals(row, totals(log))
        if dropped:
            row.notes.append(f"the server says that it dropped {dropped:,} ticks, which its clients were not told")
        if feed and feed.report:
            fill_from_feed(row, feed.report, load.ticks_per_s)
        if load.kind == "idle":
            row.rss_bytes_per_connection = (full_bytes - empty_bytes) / load.clients

    def saturation(self, load: Load, system, row: Row) -> Row:
        """More and more, until something is lost or closed. The row is of the highest clean step."""
        best, most = None, 0.0
        lowest = SATURATION_TICKCAST_FROM_PER_S if row.is_tickcast else 0
        for step in (step for step in SATURATION_STEPS_PER_S if step >= lowest):
            at_step = load.at_rate(step // (load.clients * load.producers))
            tried = self.try_step(at_step, system, row)
            self.say(f"    {step:,}/s offered: {summary(tried)}")
            most = max(most, tried.delivered_per_s or 0.0)
            if not tried.delivered_all:
                row = best or tried
                row.notes.append(f"the next step, {step:,}/s, was not clean: {unclean(tried)}")
                break
            best = row = tried
        row.clean_per_s = best.offered_per_s if best else 0.0
        row.most_per_s = most
        if row.is_tickcast:
            self.unthrottled(load, system, row)
        return row

    def try_step(self, load: Load, system, row: Row) -> Row:
        """One step, again when it was not clean."""
        for _ in range(STEP_ATTEMPTS):
            tried = Row(load=row.load, system=row.system, variant=row.variant, fed_by=row.fed_by)
            try:
                self.constant(load, system, tried)
            except RunFailed as failure:
                tried.failed = str(failure)
            if tried.delivered_all:
                break
        return tried

    def unthrottled(self, load: Load, system, row: Row) -> None:
        """As much as the source gives, to clients that agreed to lose the oldest: each loss must be announced."""
        flat_out = replace(
            load.at_rate(SATURATION_UNTHROTTLED_PER_S // (load.clients * load.producers)),
            server_options=("--policy", ">=drop"),
        )
        ran = Row(load=row.load, system=row.system, variant=row.variant)
        try:
            self.constant(flat_out, system, ran)
        except RunFailed as failure:
            row.notes.append(f"unthrottled: {failure}")
            return
        self.say(f"    unthrottled: {summary(ran)}")
        row.unthrottled_per_s = ran.delivered_per_s
        # What is still under way is neither lost nor announced yet.
        row.unthrottled_lost, row.unthrottled_announced = (ran.lost or 0) - ran.lost_tail, ran.announced
        if ran.lost_tail:
            row.notes.append(f"unthrottled: {ran.lost_tail:,} ticks were still to come two seconds after the window")
        row.unthrottled_cpu_us_per_delivery = ran.cpu_us_per_delivery
        row.unthrottled_ended, row.unthrottled_client_is_bottleneck = ran.ended, ran.client_is_bottleneck
        row.commands = [*row.commands, *ran.commands]
        if ran.client_is_bottleneck:
            row.notes.append("unthrottled: the client was the bottleneck")

    def beside_bare(self, load: Load, row: Row) -> None:
        """Runs the bare loop at the sizes and rate of a row, and as fast as it goes where the load asks for it."""
        try:
            paced = bare.run(self, load, row, flat_out=False)
            row.bare_cpu_us_per_send = paced.cpu_us_per_send
            row.bare_bytes_per_send = paced.bytes_per_send
            if paced.kept_up:
                row.bare_p50_us, row.bare_p99_us = paced.p50_us, paced.p99_us
            else:
                row.notes.append("the bare loop did not keep up with this rate: no latency beside it")
            if load.bare_flat_out:
                flat_out = bare.run(self, load, row, flat_out=True)
                row.bare_wire_mb_per_s = flat_out.wire_mb_per_s
                if flat_out.client_is_bottleneck:
                    row.notes.append("the bare loop as fast as it goes: the client was the bottleneck")
            self.say(f"    bare loop beside {row.name}: {paced.cpu_us_per_send:.2f} us a SEND")
        except RunFailed as failure:
            row.notes.append(f"no bare loop: {failure}")


def unclean(row: Row) -> str:
    """Why a step was not clean."""
    if row.failed:
        return row.failed
    reasons = []
    if row.ended:
        reasons.append(f"{row.ended} clients were closed")
    if row.lost or row.announced:
        reasons.append(f"{row.lost or 0} lost, {row.announced or 0} announced")
    share = row.delivered_share
    if share is not None and share < 1:
        reasons.append(f"{share:.1%} arrived in the window")
    return ", ".join(reasons) or "less than offered"


def summary(row: Row) -> str:
    """A row in one line of progress."""
    if row.failed:
        return f"FAILED: {row.failed}"
    parts = [f"{row.delivered_per_s or 0:,.0f}/s of {row.offered_per_s or 0:,.0f}"]
    if row.p99_us is not None:
        parts.append(f"p50 {row.p50_us / 1e3:.2f} ms, p99 {row.p99_us / 1e3:.2f} ms")
    if row.lost or row.announced:
        parts.append(f"{row.lost or 0} lost, {row.announced or 0} announced")
    if row.cpu_us_per_delivery is not None:
        parts.append(f"{row.cpu_us_per_delivery:.2f} us a delivery")
    if row.rss_bytes_per_connection is not None:
        parts.append(f"{row.rss_bytes_per_connection:,.0f} B a connection")
    if row.client_is_bottleneck:
        parts.append("client was the bottleneck")
    return ", ".join(parts)
