"""Claims about aims, lost columns and the report's text."""

import unittest

import judge
import loads
import peer_systems
import report
from figures import Row

MACHINE = {
    "cpu": "a CPU",
    "cores": 2,
    "memory_gib": 1.0,
    "kernel": "6.1",
    "hypervisor": True,
    "commit": "abc",
    "sysctls": {"net.ipv4.tcp_congestion_control": "cubic"},
    "versions": {"go": "go1"},
}


def row(system: str = "tickcast", variant: str = "native, network, no budget", **more) -> Row:
    """A measured row that delivered everything."""
    figures = {
        "offered_per_s": 500.0,
        "delivered_per_s": 500.0,
        "lost": 0,
        "announced": 0,
        "p50_us": 500.0,
        "p90_us": 800.0,
        "p99_us": 1_000.0,
        "p999_us": 1_500.0,
        "max_us": 2_000.0,
        "cpu_us_per_delivery": 0.9,
        "server_cpu_share": 0.5,
        "server_rss_bytes": 1 << 20,
        **more,
    }
    return Row("S1", system, "" if system != "tickcast" else variant, "network", **figures)


def reached(load: str, rows: list[Row]) -> list[bool | None]:
    return [one.reached for one in judge.verdicts({load: rows}) if one.load == load]


class Aims(unittest.TestCase):
    def test_the_first_load_is_reached_by_one_row_that_is_cheap_with_its_tail(self):
        self.assertEqual(reached("S1", [row()]), [True, True, True])
        # Cheap in one variant, with a tail in another, is neither.
        cheap, swift = row(cpu_us_per_delivery=0.5, p99_us=9_000.0), row(cpu_us_per_delivery=2.0)
        self.assertEqual(reached("S1", [cheap, swift]), [True, False, True])

    def test_what_was_not_run_is_not_judged(self):
        self.assertTrue(all(one.reached is None for one in judge.verdicts({})))
        self.assertEqual(reached("S1", [row(system="nats")]), [None, None, None])

    def test_lost_deliveries_reach_nothing(self):
        self.assertEqual(reached("S4", [row(lost=5)]), [False])

    def test_unthrottled_counts_only_where_each_loss_was_announced(self):
        saturated = row(clean_per_s=2e6, unthrottled_per_s=9e6, unthrottled_lost=0)
        saturated.unthrottled_cpu_us_per_delivery = 0.09
        saturated.unthrottled_announced = 5
        self.assertEqual(reached("saturation", [saturated]), [True, True, True])
        saturated.unthrottled_lost = 1
        self.assertEqual(reached("saturation", [saturated]), [False, False, False])

    def test_the_worst_ratio_to_the_bare_loop_counts(self):
        rows = {"S1": [row(cpu_us_per_send=1.1, bare_cpu_us_per_send=1.0)]}
        self.assertIs(judge.bare_cpu(rows).reached, True)
        rows["S4"] = [row(cpu_us_per_send=1.3, bare_cpu_us_per_send=1.0)]
        self.assertIs(judge.bare_cpu(rows).reached, False)


class Losses(unittest.TestCase):
    def test_each_column_in_which_a_peer_is_better_is_a_sentence(self):
        slow = row(variant="slow", p99_us=3_000.0)
        sentences = judge.losses([row(), slow, row(system="nats", p99_us=2_000.0, cpu_us_per_delivery=0.8)])
        self.assertEqual(
            sentences,
            [
                "CPU a delivery: nats 0.800 us; every tickcast variant is worse, the best with 0.900 us (native, network, "
                "no budget).",
                "p99: nats 2.00 ms; tickcast is worse with 3.00 ms (slow), its best is 1.00 ms (native, network, no "
                "budget).",
            ],
        )

    def test_a_peer_that_lost_is_said_to_have(self):
        sentences = judge.losses([row(), row(system="redis", delivered_per_s=50.0, lost=450, p50_us=1.0)])
        self.assertEqual(len(sentences), 1)
        self.assertIn("(redis delivered 10.0% of what was offered)", sentences[0])

    def test_rows_are_compared_with_rows_that_are_fed_alike(self):
        simulated = row(variant="native, simulator, no budget", p99_us=9_000.0)
        simulated.fed_by = "simulator"
        self.assertEqual(judge.losses([row(), simulated, row(system="nats", p99_us=5_000.0)]), [])

    def test_saturated_systems_are_compared_in_their_rates_alone(self):
        mine = row(clean_per_s=2e6, most_per_s=2e6, p50_us=9_000.0)
        theirs = row(system="nats", clean_per_s=1e6, most_per_s=3e6, p50_us=1.0)
        sentences = judge.losses([mine, theirs])
        self.assertEqual(len(sentences), 1)
        self.assertTrue(sentences[0].startswith("most delivered: nats 3,000,000/s"))

    def test_the_edges_of_the_window_are_no_loss(self):
        self.assertEqual(judge.losses([row(delivered_per_s=499.9), row(system="nats", delivered_per_s=500.1)]), [])


class Text(unittest.TestCase):
    def result(self, rows: list[Row]) -> dict:
        return {
            "machine": MACHINE,
            "started": "today",
            "window_s": 3,
            "warm_up_s": 1,
            "repeat": 1,
            "steal_percent": 0.5,
            "loads": [{"name": "S1", "rows": [one.to_json() for one in rows]}],
        }

    def test_the_report_has_every_part(self):
        failed = Row("S1", "nchan", failed="it did not start")
        text = report.markdown(self.result([row(commands=["a | b"]), row(system="nats"), failed]), ["S1.svg"])
        for part in ("## Machine", "## Aims", "## Where we lose", "In no column of any load.", "### S1", "<details>",
                     "plots/S1.svg", "nchan: it did not start.", "Published, the Go case study", "| nchan | failed |"):
            self.assertIn(part, text)

    def test_every_line_of_a_table_has_as_many_cells(self):
        text = report.markdown(self.result([row(), Row("S1", "nchan", failed="no")]), [])
        widths = {line.count("|") for line in text.split("### S1")[1].splitlines() if line.startswith("|")}
        self.assertEqual(len(widths), 1)

    def test_a_client_at_its_limit_and_noise_are_marked(self):
        self.assertIn(report.BOTTLENECK_MARK, report.client_cpu(row(client_cpu_share=0.9, client_is_bottleneck=True)))
        self.assertIn(report.BOTTLENECK_MARK, report.noise(row(steal_percent=3.0, others_percent=3.0)))
        self.assertNotIn(report.BOTTLENECK_MARK, report.noise(row(steal_percent=1.0, others_percent=1.0)))

    def test_numbers_keep_the_digits_that_mean_something(self):
        self.assertEqual([report.ms(us) for us in (None, 512.3, 1_234.0, 45_678.0)], ["-", "0.512", "1.23", "45.7"])
        self.assertEqual([report.count(n) for n in (999, 1_260_000, 25e6)], ["999", "1.26 M", "25.0 M"])


class Loads(unittest.TestCase):
    def test_loads_are_chosen_by_name_and_wrong_names_are_told(self):
        self.assertEqual([load.name for load in loads.chosen("S2,S1")], ["S2", "S1"])
        self.assertEqual(len(loads.chosen(None)), len(loads.LOADS))
        with self.assertRaisesRegex(ValueError, "S9.*there are S1"):
            loads.chosen("S9")

    def test_every_peer_of_a_load_is_one_that_can_be_started(self):
        for load in loads.LOADS:
            self.assertLessEqual(set(load.peers), set(peer_systems.PEERS), load.name)

    def test_names_are_unique_and_offers_add_up(self):
        names = [load.name for load in loads.LOADS]
        self.assertEqual(len(names), len(set(names)))
        offered = {load.name: load.offered_per_s for load in loads.LOADS}
        self.assertEqual((offered["S1"], offered["S4"], offered["engine"]), (500_000, 2_500_000, 500_000))
        self.assertEqual((offered["wave"], offered["own-topics"]), (250_000, 200_000))

    def test_steps_of_the_saturation_are_whole_rates(self):
        load = next(load for load in loads.LOADS if load.kind == "saturation")
        for step in (*loads.SATURATION_STEPS_PER_S, loads.SATURATION_UNTHROTTLED_PER_S):
            self.assertEqual(load.at_rate(step // (load.clients * load.producers)).offered_per_s, step)


if __name__ == "__main__":
    unittest.main()
