"""Claims about the comparison with an older binary."""

import unittest
from pathlib import Path
from unittest import mock

import against
from figures import Row
from measure import Suite
from processes import RunFailed
from systems import Programs

OLD = Path("/old/tickcast")


class FakeSuite(Suite):
    """Starts nothing: `figures` makes up the row of each run from its number."""

    def __init__(self, figures):
        super().__init__(Programs(Path("/new")), None, 1, Path("/"), mock.Mock())
        self.figures = figures
        self.servers = []

    def one(self, load, system):
        self.servers.append(str(system.programs.server))
        row = Row(load.name, "tickcast", system.label)
        for name, value in self.figures(system.programs.server == OLD, len(self.servers)).items():
            setattr(row, name, value)
        return row


def compare(figures, pair_count: int = 3):
    suite = FakeSuite(figures)
    return suite, against.run(suite, against.chosen("S4"), OLD, pair_count)


class Pairs(unittest.TestCase):
    def test_runs_alternate_and_neither_binary_always_goes_first(self):
        suite, _ = compare(lambda is_old, number: {"p99_us": 1.0}, pair_count=2)
        self.assertEqual(suite.servers, ["/old/tickcast", "/new/tickcast", "/new/tickcast", "/old/tickcast"])

    def test_the_median_of_the_ratios_of_pairs_is_shown_with_its_range(self):
        # The machine slows down from pair to pair; the ratios do not notice.
        factors = {"old": iter((1.0, 2.0, 4.0)), "new": iter((1.1, 2.4, 4.4))}
        _, compared = compare(lambda is_old, _: {"cpu_us_per_delivery": next(factors["old" if is_old else "new"])})
        line = next(line for line in against.table(compared).splitlines() if "CPU" in line)
        self.assertRegex(line, r"2\.000 +2\.400 +1\.100 +1\.100 to 1\.200 +worse$")

    def test_a_change_within_the_tolerance_is_not_worse(self):
        self.assertEqual(against.verdict(against.CPU, [1.01, 1.02, 1.5]), "")
        self.assertEqual(against.verdict(against.CPU, [1.01, 1.04, 1.5]), "worse")
        self.assertEqual(against.verdict(against.CPU, [0.99, 1.04, 1.5]), "worse, but pairs disagree")

    def test_fewer_deliveries_are_worse_and_less_cpu_is_better(self):
        self.assertEqual(against.verdict(against.DELIVERED, [0.5]), "worse")
        self.assertEqual(against.verdict(against.DELIVERED, [2.0]), "")
        self.assertEqual(against.verdict(against.CPU, [0.5]), "")

    def test_a_pair_with_a_failed_run_is_left_out(self):
        _, compared = compare(lambda is_old, number: {"p99_us": 1.0, "failed": "no port" if number == 3 else ""})
        self.assertEqual(len(compared[0].complete), 2)
        self.assertIn("1 pairs failed", against.table(compared))

    def test_a_comparison_without_any_complete_pair_fails(self):
        with self.assertRaisesRegex(RunFailed, "no port"):
            compare(lambda is_old, number: {"failed": "no port"})

    def test_cases_are_chosen_by_load_and_unknown_ones_reported(self):
        self.assertEqual({case.load.name for case in against.chosen("S1,idle-ws")}, {"S1", "idle-ws"})
        with self.assertRaisesRegex(ValueError, "no case for wave"):
            against.chosen("S1,wave")

    def test_saturation_is_one_run_each_at_its_rate(self):
        [fixed, unthrottled] = against.chosen("saturation")
        self.assertEqual({fixed.load.kind, unthrottled.load.kind}, {"constant"})
        self.assertEqual(fixed.load.offered_per_s, against.SATURATED_PER_S)
        self.assertIn("--policy", unthrottled.load.server_options)


if __name__ == "__main__":
    unittest.main()
