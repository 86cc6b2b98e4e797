"""Runs a load on a system and returns a row: constant rate, saturation or idle, with the bare loop after it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import bare
import client
from client import Window
from figures import Row, fill_from_client, fill_from_feed, fill_from_totals, latency_curve, median_run, totals
from loads import SATURATION_STEPS_PER_S, SATURATION_TICKCAST_FROM_PER_S, Load, at_total_rate, unthrottled
from processes import Processes, RunFailed, resident_bytes
from systems import Programs

# Memory of the empty server is read this long after it starts to listen.
EMPTY_S = 0.5
# A saturation step fails only after this many attempts, so that noise does not pass for the limit.
STEP_ATTEMPTS = 2


@dataclass
class Suite:
    """Programs, window and progress log that all runs share."""

    programs: Programs
    window: Window
    repeat: int
    # Folder for temporary files.
    scratch: Path
    log: object  # takes one line of progress
    histograms: int = 0

    def measure(self, load: Load, systems: list) -> list[Row]:
        """Runs all systems under one load in turn, `repeat` times; returns the median run of each."""
        runs: list[list[Row]] = [[] for _ in systems]
        for round_number in range(self.repeat):
            for index, system in enumerate(systems):
                named = Row(load.name, system.system, system.label).name
                self.log(f"{load.name}: {named}, run {round_number + 1} of {self.repeat}")
                row = self.one(load, system)
                self.log(f"    {summary(row)}")
                if load.bare and row.is_tickcast and not row.failed and row.deliveries_per_send:
                    # Right after, so that both see the same noise.
                    self.add_bare_loop(load, row)
                runs[index].append(row)
        return [median_run(of_one) for of_one in runs]

    def one(self, load: Load, system) -> Row:
        """One run. Failures are recorded in the row."""
        row = Row(load=load.name, system=system.system, variant=system.label, fed_by=system.fed_by)
        try:
            if load.kind == "saturation":
                return self.saturation(load, system, row)
            self.constant(load, system, row)
        except RunFailed as failure:
            row.failed = str(failure)
        except Exception as error:  # pylint: disable=broad-exception-caught
            # A bug in the suite must not cost the figures of an hour.
            row.failed = f"the suite failed: {type(error).__name__}: {error}"
        return row

    def constant(self, load: Load, system, row: Row) -> None:
        """Starts the server, the clients and the publisher, and fills in the row."""
        self.histograms += 1
        hgrm = self.scratch / f"{load.name}-{system.system}-{self.histograms}.hgrm"
        with Processes() as processes:
            # Set first, so that a failed run has them too.
            row.commands = processes.commands
            endpoint = system.start(processes, load)
            time.sleep(EMPTY_S)
            empty_bytes = resident_bytes(list(endpoint.pids))
            window = replace(self.window, warm_up_s=0) if load.without_warm_up else self.window
            argv = client.command(self.programs.client, load, endpoint, window, hgrm)
            feed = system.feed
            measured = client.run(
                processes, argv, load, window, list(endpoint.pids), feed.start if feed else lambda: None
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
        row.latency_curve = latency_curve(hgrm.read_text()) if hgrm.exists() and row.p99_us is not None else []
        row.steal_percent = measured.noise.get("steal_percent")
        row.others_percent = measured.noise.get("others_percent")
        if row.is_tickcast:
            fill_from_totals(row, totals(log))
        if dropped:
            row.notes.append(f"the server dropped {dropped:,} ticks without announcing them to its clients")
        if feed and feed.report:
            fill_from_feed(row, feed.report, load.ticks_per_s)
        if load.kind == "idle":
            row.rss_bytes_per_connection = (full_bytes - empty_bytes) / load.clients

    def saturation(self, load: Load, system, row: Row) -> Row:
        """Raises the rate until a tick is lost or a client closed. Returns the row of the highest clean step."""
        best, most = None, 0.0
        lowest = SATURATION_TICKCAST_FROM_PER_S if row.is_tickcast else 0
        for step in (step for step in SATURATION_STEPS_PER_S if step >= lowest):
            tried = self.try_step(at_total_rate(load, step), system, row)
            self.log(f"    {step:,}/s offered: {summary(tried)}")
            most = max(most, tried.delivered_per_s or 0.0)
            if not tried.delivered_all:
                row = best or tried
                row.notes.append(f"the next step, {step:,}/s, was not clean: {unclean(tried)}")
                break
            best = row = tried
        row.clean_per_s = best.offered_per_s if best else 0.0
        row.most_per_s = most
        if row.is_tickcast:
            self.add_unthrottled(load, system, row)
        return row

    def try_step(self, load: Load, system, row: Row) -> Row:
        """Runs one step, and again if it was not clean."""
        for _ in range(STEP_ATTEMPTS):
            tried = Row(load=row.load, system=row.system, variant=row.variant, fed_by=row.fed_by)
            try:
                self.constant(load, system, tried)
            except RunFailed as failure:
                tried.failed = str(failure)
            if tried.delivered_all:
                break
        return tried

    def add_unthrottled(self, load: Load, system, row: Row) -> None:
        """Runs the source as fast as it can go and adds the result to the row."""
        ran = Row(load=row.load, system=row.system, variant=row.variant)
        try:
            self.constant(unthrottled(load), system, ran)
        except RunFailed as failure:
            row.notes.append(f"unthrottled: {failure}")
            return
        self.log(f"    unthrottled: {summary(ran)}")
        row.unthrottled_per_s = ran.delivered_per_s
        # Ticks in flight are neither lost nor announced yet.
        row.unthrottled_lost, row.unthrottled_announced = (ran.lost or 0) - ran.lost_tail, ran.announced
        if ran.lost_tail:
            row.notes.append(f"unthrottled: {ran.lost_tail:,} ticks were still in flight two seconds after the window")
        row.unthrottled_cpu_us_per_delivery = ran.cpu_us_per_delivery
        row.unthrottled_ended, row.unthrottled_client_is_bottleneck = ran.ended, ran.client_is_bottleneck
        row.commands = [*row.commands, *ran.commands]
        if ran.client_is_bottleneck:
            row.notes.append("unthrottled: the client was the bottleneck")

    def add_bare_loop(self, load: Load, row: Row) -> None:
        """Runs the bare loop with the sizes and rate of a row, and unthrottled if the load asks for it."""
        try:
            paced = bare.run(self.programs, self.window, load, row, unthrottled=False)
            row.bare_cpu_us_per_send = paced.cpu_us_per_send
            row.bare_bytes_per_send = paced.bytes_per_send
            if paced.kept_up:
                row.bare_p50_us, row.bare_p99_us = paced.p50_us, paced.p99_us
            else:
                row.notes.append("the bare loop did not keep up with this rate, so its latency is omitted")
            if load.bare_unthrottled:
                fastest = bare.run(self.programs, self.window, load, row, unthrottled=True)
                row.bare_wire_mb_per_s = fastest.wire_mb_per_s
                if fastest.client_is_bottleneck:
                    row.notes.append("unthrottled bare loop: the client was the bottleneck")
            self.log(f"    bare loop for {row.name}: {paced.cpu_us_per_send:.2f} us per SEND")
        except RunFailed as failure:
            row.notes.append(f"no bare loop: {failure}")


def unclean(row: Row) -> str:
    """Reason why a step was not clean."""
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
    """One line of progress for a row."""
    if row.failed:
        return f"FAILED: {row.failed}"
    parts = [f"{row.delivered_per_s or 0:,.0f}/s of {row.offered_per_s or 0:,.0f}"]
    if row.p99_us is not None:
        parts.append(f"p50 {row.p50_us / 1e3:.2f} ms, p99 {row.p99_us / 1e3:.2f} ms")
    if row.lost or row.announced:
        parts.append(f"{row.lost or 0} lost, {row.announced or 0} announced")
    if row.cpu_us_per_delivery is not None:
        parts.append(f"{row.cpu_us_per_delivery:.2f} us per delivery")
    if row.rss_bytes_per_connection is not None:
        parts.append(f"{row.rss_bytes_per_connection:,.0f} B per connection")
    if row.client_is_bottleneck:
        parts.append("client was the bottleneck")
    return ", ".join(parts)
