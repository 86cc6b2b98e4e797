"""Claims about the table of abuses."""

import contextlib
import http.server
import io
import json
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

import abuse
import abuses
from processes import RunFailed

METRICS = """\
# HELP tickcast_turns_slow_total Turns over 100 ms.
# TYPE tickcast_turns_slow_total counter
tickcast_turns_slow_total{shard="0"} 2
tickcast_turns_slow_total{shard="1"} 3
tickcast_turn_seconds_bucket{shard="0",le="0.001"} 90
tickcast_turn_seconds_bucket{shard="0",le="0.01"} 100
tickcast_turn_seconds_bucket{shard="0",le="+Inf"} 100
tickcast_turn_seconds_bucket{shard="1",le="0.001"} 40
tickcast_turn_seconds_bucket{shard="1",le="0.01"} 50
tickcast_turn_seconds_bucket{shard="1",le="+Inf"} 50
process_open_fds 31
"""


def row(name, lost=0):
    latency_us = {"p50": 100.0, "p99": 1_234.0, "p99.9": 5_000.0, "max": 1_000_000.0}
    return abuse.Row(name, latency_us, lost, 0, 0, 0, "<= 1", 1.25, 20.4, "nothing")


def buckets(*counts):
    """The histogram of one shard with these cumulative counts for 1 ms, 10 ms and all."""
    bounds = ("0.001", "0.01", "+Inf")
    name = "tickcast_turn_seconds_bucket"
    return [(name, f'shard="0",le="{bound}"', float(count)) for bound, count in zip(bounds, counts, strict=True)]


class Metrics(unittest.TestCase):
    def test_samples_are_read_with_and_without_labels(self):
        class Admin(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(METRICS.encode())

            def log_message(self, *_):
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Admin) as server:
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            metrics = abuse.scrape(server.server_port)
            thread.join()
        self.assertIn(("process_open_fds", "", 31.0), metrics)
        self.assertEqual(abuse.total(metrics, "tickcast_turns_slow_total"), 5)
        self.assertEqual(abuse.total(metrics, "no_such_metric"), 0)
        self.assertEqual(abuse.longest_turn(metrics), "<= 10")

    def test_the_longest_turn_is_the_first_bound_that_all_turns_are_within(self):
        self.assertEqual(abuse.longest_turn(buckets(7, 7, 7)), "<= 1")
        self.assertEqual(abuse.longest_turn(buckets(6, 7, 7)), "<= 10")
        self.assertEqual(abuse.longest_turn(buckets(6, 6, 7)), "over the last bucket")
        self.assertEqual(abuse.longest_turn([]), "unknown")


class Table(unittest.TestCase):
    def test_a_row_has_a_cell_for_each_column(self):
        cells = row("fair", lost=12_345).cells()
        self.assertEqual(len(cells), len(abuse.COLUMNS))
        self.assertEqual(cells[:6], ["fair", "0.10", "1.23", "5.00", "1000.00", "12,345"])

    def test_the_table_is_markdown(self):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            abuse.print_table([row("nobody"), row("fair")])
        lines = out.getvalue().splitlines()
        self.assertEqual(len(lines), 4)
        self.assertEqual({line.count("|") for line in lines}, {len(abuse.COLUMNS) + 1})


class Runs(unittest.TestCase):
    def run_main(self, *words, measure=None):
        """Exit status, standard output and standard error."""
        out, errors = io.StringIO(), io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(abuse, "measure", measure or mock.Mock(side_effect=AssertionError)),
            mock.patch("sys.argv", ["bench/abuse", "--bin", folder, *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            for program in ("tickcast", "tickcast-c10k"):
                (Path(folder) / program).touch()
            try:
                status = abuse.main()
            except SystemExit as ended:
                status = ended.code
        return status, out.getvalue(), errors.getvalue()

    def test_an_unknown_abuse_is_refused_before_anything_runs(self):
        status, _, errors = self.run_main("--only", "no-such-abuse")
        self.assertEqual(status, 2)
        self.assertIn("no abuse named no-such-abuse; see --list", errors)

    def test_every_abuse_is_listed_with_what_it_does(self):
        status, out, _ = self.run_main("--list")
        self.assertEqual(status, 0)
        for name, function in abuses.ABUSES.items():
            self.assertIn(name, out)
            self.assertTrue(function.__doc__, name)

    def test_the_load_alone_comes_first_and_a_failed_run_is_left_out(self):
        name = next(iter(abuses.ABUSES))

        def measure(_, abuser, seconds):
            self.assertEqual(seconds, 3)
            if abuser:
                raise RunFailed("no port")
            return row("nobody")

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            words = ["--only", name, "--seconds", "3", "--json", str(file)]
            status, out, errors = self.run_main(*words, measure=measure)
            rows = json.loads(file.read_text())
        self.assertEqual(status, 1)
        self.assertIn("failed: no port", errors)
        self.assertEqual([row["name"] for row in rows], ["nobody"])
        self.assertNotIn(f"| {name} |", out)


class Frames(unittest.TestCase):
    def test_a_frame_is_padded_and_says_its_length(self):
        frame = abuses.frame(abuses.PING, b"12345678", b"x")
        length, magic, version, _, kind, record, payload, *_ = abuses.HEADER.unpack_from(frame)
        self.assertEqual((length, length % 16), (len(frame), 0))
        self.assertEqual((magic, version, kind, record, payload), (0x6374, 1, abuses.PING, 8, 1))


if __name__ == "__main__":
    unittest.main()
