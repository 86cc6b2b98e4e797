"""Claims about what is read from runs and computed from it."""

import unittest

from figures import Row, fill_from_client, fill_from_feed, fill_from_totals, median_run, ratio, totals

LOG = """[2026-01-01T00:00:00Z INFO  tickcast::io::server] SIGINT: stopping; again to end at once
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total ticks_delivered 1000 ticks
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total bytes_sent 160000 bytes
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total sends 250 operations
[2026-01-01T00:00:00Z INFO  tickcast::io::server] total ticks_simulator_dropped 7 ticks
"""


def report(**more) -> dict:
    """A load client's report, as little of it as is read."""
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

    def test_sends_follow_from_quotients_and_the_rate_of_the_window(self):
        row = filled()
        # 160 bytes on the wire each: the counter of ticks has some that were conflated.
        fill_from_totals(row, {**totals(LOG), "ticks_delivered": 5_000})
        self.assertAlmostEqual(row.deliveries_per_send, 4.0)
        self.assertAlmostEqual(row.sends_per_s, 125.0)
        self.assertEqual(row.bytes_per_send, 640.0)
        self.assertAlmostEqual(row.cpu_us_per_delivery, 100.0)
        self.assertAlmostEqual(row.cpu_us_per_send, 400.0)
        self.assertIn("7 ticks did not fit the simulator's ring", row.notes)

    def test_a_server_without_counters_has_no_sends(self):
        row = filled()
        fill_from_totals(row, {})
        self.assertIsNone(row.cpu_us_per_send)


class Client(unittest.TestCase):
    def test_a_whole_run_is_told_from_one_that_lost(self):
        self.assertTrue(filled().delivered_all)
        for broken in (
            filled(lost=1),
            filled(conflated=1),
            filled(ended_early={"closed": 1}),
            filled(deliveries_per_s=400.0),
        ):
            self.assertFalse(broken.delivered_all)

    def test_loss_without_sequences_is_what_is_missing(self):
        row = filled(lost=None, deliveries=900)
        self.assertEqual((row.lost, row.announced, row.lost_is_estimate), (100, None, True))

    def test_nothing_delivered_has_no_latency_and_no_cost(self):
        row = filled(deliveries=0, latency_us={"count": 0, "p50": 0, "p90": 0, "p99": 0, "p99.9": 0, "max": 0})
        self.assertIsNone(row.p99_us)
        self.assertIsNone(row.cpu_us_per_delivery)

    def test_rows_survive_json(self):
        row = filled()
        row.p99_range_us = (1.0, 2.0)
        self.assertEqual(Row.from_json({**row.to_json(), "of_a_later_version": 1}), row)


class Publisher(unittest.TestCase):
    def test_client_and_publisher_share_a_core(self):
        row = filled(client_cpu_busiest=0.6)
        fill_from_feed(row, {"cpu_share": 0.2, "sent": 100, "window_s": 1.0}, 100)
        self.assertFalse(row.client_is_bottleneck)
        fill_from_feed(row, {"cpu_share": 0.3, "sent": 100, "window_s": 1.0}, 100)
        self.assertTrue(row.client_is_bottleneck)
        self.assertEqual(row.notes, [])

    def test_a_publisher_that_fell_behind_is_told(self):
        row = filled()
        fill_from_feed(row, {"sent": 50, "window_s": 1.0, "late_us": {"p99": 29.0}, "failures": ["no"]}, 100)
        self.assertEqual(len(row.notes), 3)


class Runs(unittest.TestCase):
    def test_the_median_by_p99_is_chosen_with_the_range_of_all(self):
        rows = [Row("S1", "x", p99_us=value) for value in (30.0, 10.0, 20.0)]
        chosen = median_run(rows)
        self.assertEqual((chosen.p99_us, chosen.runs, chosen.p99_range_us), (20.0, 3, (10.0, 30.0)))

    def test_failed_runs_are_told_but_not_chosen(self):
        chosen = median_run([Row("S1", "x", failed="no"), Row("S1", "x", p99_us=5.0)])
        self.assertEqual((chosen.p99_us, chosen.notes), (5.0, ["1 of 2 runs failed"]))
        self.assertEqual(median_run([Row("S1", "x", failed="no")]).failed, "no")

    def test_saturations_are_chosen_by_their_step(self):
        rows = [Row("s", "x", clean_per_s=value, p99_us=1 / value) for value in (1.0, 3.0, 2.0)]
        self.assertEqual(median_run(rows).clean_per_s, 2.0)

    def test_nothing_is_divided_by_nothing(self):
        self.assertIsNone(ratio(1.0, 0.0))
        self.assertIsNone(ratio(None, 1.0))
        self.assertEqual(ratio(1.0, 4.0), 0.25)


if __name__ == "__main__":
    unittest.main()
