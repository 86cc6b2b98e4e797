"""Claims about the figures computed from a run's output."""

import json
import unittest

from figures import (
    Row, fill_from_client, fill_from_feed, fill_from_totals, latency_curve, median_run, ratio, totals,
)

HGRM = """       Value     Percentile TotalCount 1/(1-Percentile)

     250.000 0.000000000000          1           1.00
    1500.000 0.900000000000          9          10.00
    2000.000 1.000000000000         10
#[Mean    =      500.000, StdDeviation   =      100.000]
"""
LOG = """[2026-01-01T00:00:00Z INFO  tickcast::io::server] SIGINT: stopping
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total ticks_delivered 1000 ticks
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total bytes_sent 160000 bytes
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total sends 250 operations
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total source_ticks_dropped 7 ticks
"""


def report(**more) -> dict:
    """The fields of a load client's report that the suite reads."""
    return {
        "window_s": 2.0,
        "deliveries": 1_000,
        "deliveries_per_s": 500.0,
        "payload_bytes_per_s": 50_000.0,
        "received_bytes_per_s": 80_000.0,
        "lost": 0,
        "conflated": 0,
        "dropped": 0,
        "ended_early": {},
        "latency_us": {"count": 1_000, "p50": 10.0, "p90": 20.0, "p99": 30.0, "p99.9": 40.0, "max": 50.0},
        "client_cpu_busiest": 0.5,
        "client_is_bottleneck": False,
        "client_cpu_s": 1.0,
        **more,
    }


def filled(**more) -> Row:
    row = Row("S1", "tickcast")
    fill_from_client(row, report(**more), 500.0, 0.1)
    return row


class Totals(unittest.TestCase):
    def test_counters_are_read_from_the_log(self):
        counted = totals(LOG)
        self.assertEqual((counted["sends"], counted["bytes_sent"]), (250, 160_000))
        self.assertEqual(totals("nothing of the kind"), {})

    def test_figures_per_send_combine_counter_quotients_with_the_window_rate(self):
        row = filled()
        # 160 bytes on the wire per delivery. The tick counter must not matter: it includes conflated ticks.
        fill_from_totals(row, {**totals(LOG), "ticks_delivered": 5_000})
        self.assertAlmostEqual(row.deliveries_per_send, 4.0)
        self.assertAlmostEqual(row.sends_per_s, 125.0)
        self.assertEqual(row.bytes_per_send, 640.0)
        self.assertAlmostEqual(row.cpu_us_per_delivery, 100.0)
        self.assertAlmostEqual(row.cpu_us_per_send, 400.0)
        self.assertIn("7 ticks did not fit the simulator's ring", row.notes)

    def test_a_server_without_counters_has_no_figures_per_send(self):
        row = filled()
        fill_from_totals(row, {})
        self.assertIsNone(row.cpu_us_per_send)


class Client(unittest.TestCase):
    def test_a_complete_run_lost_announced_and_closed_nothing(self):
        self.assertTrue(filled().delivered_all)
        for incomplete in (
            filled(lost=1),
            filled(conflated=1),
            filled(ended_early={"closed": 1}),
            filled(deliveries_per_s=400.0),
        ):
            self.assertFalse(incomplete.delivered_all)

    def test_loss_without_sequence_numbers_is_the_missing_deliveries(self):
        row = filled(lost=None, deliveries=900)
        self.assertEqual((row.lost, row.announced, row.lost_is_estimate), (100, None, True))

    def test_a_run_without_deliveries_has_no_latency_and_no_cost(self):
        row = filled(deliveries=0, latency_us={"count": 0, "p50": 0, "p90": 0, "p99": 0, "p99.9": 0, "max": 0})
        self.assertIsNone(row.p99_us)
        self.assertIsNone(row.cpu_us_per_delivery)

    def test_rows_survive_json(self):
        row = filled()
        row.ranges = {"p99_us": (1.0, 2.0)}
        row.latency_curve = [(0.5, 1.0), (0.9, 2.0)]
        text = json.dumps({**row.to_json(), "of_a_later_version": 1})
        self.assertEqual(Row.from_json(json.loads(text)), row)

    def test_a_curve_has_quantiles_below_one_in_milliseconds(self):
        self.assertEqual(latency_curve(HGRM), [(0.0, 0.25), (0.9, 1.5)])


class Publisher(unittest.TestCase):
    def test_client_and_publisher_together_are_the_bottleneck(self):
        row = filled(client_cpu_busiest=0.6)
        fill_from_feed(row, {"cpu_share": 0.2, "sent": 100, "window_s": 1.0}, 100)
        self.assertFalse(row.client_is_bottleneck)
        fill_from_feed(row, {"cpu_share": 0.3, "sent": 100, "window_s": 1.0}, 100)
        self.assertTrue(row.client_is_bottleneck)
        self.assertEqual(row.notes, [])

    def test_a_publisher_that_fell_behind_is_noted(self):
        row = filled()
        fill_from_feed(row, {"sent": 50, "window_s": 1.0, "late_us": {"p99": 29.0}, "failures": ["no"]}, 100)
        self.assertEqual(len(row.notes), 3)


class Runs(unittest.TestCase):
    def test_the_run_with_the_median_p99_is_chosen_with_the_range_of_all(self):
        rows = [Row("S1", "x", p99_us=value) for value in (30.0, 10.0, 20.0)]
        chosen = median_run(rows)
        self.assertEqual((chosen.p99_us, chosen.runs, chosen.ranges["p99_us"]), (20.0, 3, (10.0, 30.0)))

    def test_a_single_run_has_no_ranges(self):
        self.assertEqual(median_run([Row("S1", "x", p99_us=1.0)]).ranges, {})

    def test_ranges_include_those_of_earlier_medians(self):
        earlier = Row("S1", "x", p99_us=20.0, ranges={"p99_us": (5.0, 40.0)})
        chosen = median_run([Row("S1", "x", p99_us=30.0, p50_us=1.0), earlier])
        self.assertEqual(chosen.ranges, {"p99_us": (5.0, 40.0)})

    def test_a_loss_in_any_run_is_reported(self):
        rows = [Row("S1", "x", p99_us=value, lost=lost) for value, lost in ((1.0, 0), (2.0, 0), (3.0, 7))]
        self.assertEqual(median_run(rows).lost, 7)

    def test_failed_runs_are_noted_but_not_chosen(self):
        chosen = median_run([Row("S1", "x", failed="no"), Row("S1", "x", p99_us=5.0)])
        self.assertEqual((chosen.p99_us, chosen.notes), (5.0, ["1 of 2 runs failed"]))
        self.assertEqual(median_run([Row("S1", "x", failed="no")]).failed, "no")

    def test_saturation_runs_are_chosen_by_their_clean_step(self):
        rows = [Row("s", "x", clean_per_s=value, p99_us=1 / value) for value in (1.0, 3.0, 2.0)]
        self.assertEqual(median_run(rows).clean_per_s, 2.0)

    def test_a_quotient_with_a_missing_or_zero_value_is_none(self):
        self.assertIsNone(ratio(1.0, 0.0))
        self.assertIsNone(ratio(None, 1.0))
        self.assertEqual(ratio(1.0, 4.0), 0.25)


if __name__ == "__main__":
    unittest.main()
