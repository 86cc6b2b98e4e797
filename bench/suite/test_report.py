"""Claims about targets, losses and the report's text."""

import unittest

import figures
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
    """A row that delivered everything."""
    figures = {
        "window_s": 8.0,
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


def met(load: str, rows: list[Row]) -> list[bool | None]:
    return [one.met for one in judge.verdicts({load: rows}) if one.load == load]


class Targets(unittest.TestCase):
    def test_low_cpu_and_a_short_tail_must_come_from_the_same_variant(self):
        self.assertEqual(met("S1", [row()]), [True, True, True])
        cheap, fast = row(cpu_us_per_delivery=0.5, p99_us=9_000.0), row(cpu_us_per_delivery=2.0)
        self.assertEqual(met("S1", [cheap, fast]), [True, False, True])

    def test_a_load_that_was_not_run_is_not_judged(self):
        self.assertTrue(all(one.met is None for one in judge.verdicts({})))
        self.assertEqual(met("S1", [row(system="nats")]), [None, None, None])

    def test_a_row_that_lost_ticks_misses_the_target(self):
        self.assertEqual(met("S4", [row(lost=5)]), [False])

    def test_the_unthrottled_rate_counts_only_if_every_loss_was_announced(self):
        saturated = row(clean_per_s=2e6, unthrottled_per_s=9e6, unthrottled_lost=0)
        saturated.unthrottled_cpu_us_per_delivery = 0.09
        saturated.unthrottled_announced = 5
        self.assertEqual(met("saturation", [saturated]), [True, True, True])
        saturated.unthrottled_lost = 1
        self.assertEqual(met("saturation", [saturated]), [False, False, False])

    def test_the_worst_ratio_to_the_bare_loop_decides(self):
        rows = {"S1": [row(cpu_us_per_send=1.1, bare_cpu_us_per_send=1.0)]}
        self.assertIs(judge.bare_cpu(rows).met, True)
        rows["S4"] = [row(cpu_us_per_send=1.3, bare_cpu_us_per_send=1.0)]
        self.assertIs(judge.bare_cpu(rows).met, False)


    def test_socket_io_delivers_all_at_half_of_the_better_peers_cpu(self):
        peers = [row(system="socketio-node", cpu_us_per_delivery=4.0), row(system="socketioxide", cpu_us_per_delivery=3.0)]
        for us, share, is_met in ((1.5, 1.0, True), (1.6, 1.0, False), (1.5, 0.9, False)):
            own = row(cpu_us_per_delivery=us, delivered_per_s=share * 500.0)
            self.assertEqual(met("engine-socketio", [own, *peers]), [is_met], (us, share))
        self.assertEqual(met("engine-socketio", [row()]), [None])

    def test_compression_is_judged_by_the_plain_variant_with_the_same_messages(self):
        def rows(cpu: float, batch: float, one_tick: float, **more) -> list[Row]:
            return [
                row(variant=f"ws json{mark}, capture, auto budget", cpu_us_per_delivery=us, wire_mb_per_s=size * 500.0 / 1e6, **more)
                for mark, us, size in (
                    ("", 1.0, 200.0), (loads.DEFLATED, 1.0, batch),
                    (loads.ONE_TICK, 2.0, 210.0), (loads.DEFLATED + loads.ONE_TICK, cpu, one_tick),
                )
            ]

        self.assertEqual(met("engine-deflate", rows(2.59, 109.0, 167.0)), [True, True, True])
        self.assertEqual(met("engine-deflate", rows(2.7, 111.0, 169.0)), [False, False, False])
        self.assertEqual(met("engine-deflate", rows(2.59, 109.0, 167.0, lost=1)), [False, False, False])
        self.assertEqual(met("engine-deflate", rows(2.59, 109.0, 167.0)[:3]), [None, None, True])

    def test_tls_is_judged_by_the_plain_variant_beside_it(self):
        plain = row(variant="native, simulator, auto budget", wire_mb_per_s=50.0, rss_bytes_per_connection=700.0)
        tls = row(variant="native over TLS, simulator, auto budget", wire_mb_per_s=50.0, cpu_us_per_delivery=1.0,
                  p99_us=1_300.0, server_cpu_share=0.6, rss_bytes_per_connection=1_050.0)
        self.assertEqual(met("S1-tls", [plain, tls]), [True, False])
        self.assertEqual(met("S3-tls", [plain, tls]), [True])
        self.assertEqual(met("idle-tls", [plain, tls]), [True])
        self.assertEqual(met("S1-tls", [plain]), [None, None])


def sentences(rows: list[Row], is_beyond_noise: bool = True) -> list[str]:
    return [loss.sentence for loss in judge.losses(rows) if loss.is_beyond_noise is is_beyond_noise]


class Losses(unittest.TestCase):
    def test_each_column_in_which_a_peer_is_better_is_a_sentence(self):
        slow = row(variant="slow", p99_us=3_000.0)
        self.assertEqual(
            sentences([row(), slow, row(system="nats", p99_us=2_000.0, cpu_us_per_delivery=0.8)]),
            [
                "CPU per delivery: nats 0.800 us; every tickcast variant is worse, the best at 0.900 us (native, network, "
                "no budget).",
                "p99: nats 2.00 ms; tickcast 3.00 ms (slow); its best is 1.00 ms (native, network, no budget).",
            ],
        )

    def test_a_peer_that_lost_is_said_to_have(self):
        found = sentences([row(), row(system="redis", delivered_per_s=50.0, lost=450, p50_us=1.0)])
        self.assertEqual(len(found), 1)
        self.assertIn("redis delivered 10.0% of the load.", found[0])

    def test_rows_are_compared_with_rows_of_the_same_source(self):
        simulated = row(variant="native, simulator, no budget", p99_us=9_000.0)
        simulated.fed_by = "simulator"
        self.assertEqual(judge.losses([row(), simulated, row(system="nats", p99_us=5_000.0)]), [])

    def test_saturated_systems_are_compared_in_rate_and_cost_only(self):
        own = row(clean_per_s=2e6, most_per_s=2e6, p50_us=9_000.0)
        found = sentences([own, row(system="nats", clean_per_s=1e6, most_per_s=3e6, p50_us=1.0)])
        self.assertEqual(len(found), 1)
        self.assertTrue(found[0].startswith("most delivered: nats 3,000,000/s"))

    def test_the_edges_of_the_window_are_no_loss(self):
        self.assertEqual(judge.losses([row(delivered_per_s=499.9), row(system="nats", delivered_per_s=500.1)]), [])

    def test_a_failed_row_of_ours_is_a_loss(self):
        failed = row()
        failed.failed = "it crashed"
        self.assertIn("it crashed", sentences([failed, row(system="nats")])[-1])


class Noise(unittest.TestCase):
    """Which losses a reader should act on."""

    def sides(self, own: Row, peer: Row) -> tuple[int, int]:
        """Losses beyond noise and within it."""
        return len(sentences([own, peer])), len(sentences([own, peer], is_beyond_noise=False))

    def test_a_loss_of_up_to_ten_percent_is_noise(self):
        peer = row(system="nats", p99_us=1_000.0)
        self.assertEqual(self.sides(row(p99_us=1_100.0), peer), (0, 1))
        self.assertEqual(self.sides(row(p99_us=1_101.0), peer), (1, 0))

    def test_the_ten_percent_hold_for_rates_too(self):
        peer = row(system="nats", clean_per_s=1.1e6)
        self.assertEqual(self.sides(row(clean_per_s=1.0e6), peer), (0, 1))
        self.assertEqual(self.sides(row(clean_per_s=0.99e6), peer), (1, 0))

    def test_a_loss_is_noise_if_the_repeats_overlap(self):
        own, peer = row(p99_us=2_000.0), row(system="nats", p99_us=1_000.0)
        own.ranges, peer.ranges = {"p99_us": (1_500.0, 3_000.0)}, {"p99_us": (900.0, 1_600.0)}
        self.assertEqual(self.sides(own, peer), (0, 1))
        peer.ranges = {"p99_us": (900.0, 1_499.0)}
        self.assertEqual(self.sides(own, peer), (1, 0))

    def test_repeats_that_agree_do_not_make_a_small_loss_matter(self):
        own, peer = row(p99_us=1_050.0), row(system="nats", p99_us=1_000.0)
        own.ranges, peer.ranges = {"p99_us": (1_049.0, 1_051.0)}, {"p99_us": (999.0, 1_001.0)}
        self.assertEqual(self.sides(own, peer), (0, 1))

    def test_cpu_below_the_resolution_of_the_kernel_is_noise(self):
        # In 8 s, two steps of 10 ms are 0.25 % of a core.
        own, peer = row(server_cpu_share=0.0025), row(system="nats", server_cpu_share=0.0)
        self.assertEqual(self.sides(own, peer), (0, 1))
        self.assertEqual(self.sides(row(server_cpu_share=0.0026), peer), (1, 0))
        # 1 of 10 steps: CPU per delivery is as coarse as the CPU time it comes from.
        own, peer = (row(system=system, cpu_us_per_delivery=us, server_cpu_share=share)
                     for system, us, share in (("tickcast", 125.0, 0.0125), ("nats", 112.5, 0.01125)))
        self.assertEqual(sentences([own, peer]), [])

    def test_unannounced_losses_are_never_noise(self):
        own, peer = row(lost=1), row(system="nats")
        own.ranges = {"lost": (0, 1)}
        self.assertEqual(self.sides(own, peer), (1, 0))

    def test_variants_beaten_within_noise_do_not_join_those_beaten_beyond_it(self):
        close, far = row(variant="close", p99_us=1_050.0), row(variant="far", p99_us=2_000.0)
        rows = [close, far, row(system="nats", p99_us=1_000.0)]
        [beyond], [within] = sentences(rows), sentences(rows, is_beyond_noise=False)
        self.assertIn("tickcast 2.00 ms (far); its best is 1.05 ms (close)", beyond)
        self.assertIn("tickcast 1.05 ms (close)", within)

    def test_every_compared_figure_keeps_its_range(self):
        for column in (*judge.COLUMNS, *judge.SATURATION_COLUMNS):
            self.assertIn(column.field, figures.RANGED)


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
        for part in ("## Machine", "## Targets", "## Where we lose", "None.", "### S1", "<details>",
                     "plots/S1.svg", "nchan: it did not start.", "For comparison, the Go case study", "| nchan | failed |"):
            self.assertIn(part, text)

    def test_losses_within_noise_are_in_a_fold(self):
        rows = [row(p50_us=520.0, p90_us=1_800.0), row(system="nats")]
        section = report.markdown(self.result(rows), []).split("## Where we lose")[1].split("## Loads")[0]
        listed, folded = section.split("<details><summary>Within noise (1)")
        self.assertIn("- p90: nats", listed)
        self.assertNotIn("- p50: nats", listed)
        self.assertIn("- p50: nats", folded)

    def test_a_run_without_peers_claims_no_win(self):
        self.assertIn("No peer was measured.", report.markdown(self.result([row()]), []))

    def test_the_terminal_shows_every_system_in_aligned_columns(self):
        failed = Row("S1", "nchan", failed="it did not start")
        lines = report.terminal(self.result([row(), row(system="nats"), failed])).splitlines()
        self.assertEqual(lines[0], next(load.title for load in loads.LOADS if load.name == "S1"))
        self.assertEqual(lines[-1], "nchan: it did not start")
        self.assertEqual(len({len(line) for line in lines[2:-1]}), 1)
        for part in ("p99.9 ms", "tickcast (native, network, no budget)", "nats", "failed"):
            self.assertTrue(any(part in line for line in lines), part)

    def test_every_line_of_a_table_has_as_many_cells(self):
        text = report.markdown(self.result([row(), Row("S1", "nchan", failed="no")]), [])
        widths = {line.count("|") for line in text.split("### S1")[1].splitlines() if line.startswith("|")}
        self.assertEqual(len(widths), 1)

    def test_rows_distorted_by_the_client_or_by_noise_are_marked(self):
        self.assertIn(report.DISTORTED_MARK, report.client_cpu(row(client_cpu_share=0.9, client_is_bottleneck=True)))
        self.assertIn(report.DISTORTED_MARK, report.noise(row(steal_percent=3.0, others_percent=3.0)))
        self.assertNotIn(report.DISTORTED_MARK, report.noise(row(steal_percent=1.0, others_percent=1.0)))

    def test_numbers_keep_three_significant_digits(self):
        self.assertEqual([report.ms(us) for us in (None, 512.3, 1_234.0, 45_678.0)], ["-", "0.512", "1.23", "45.7"])
        self.assertEqual([report.count(n) for n in (999, 1_260_000, 25e6)], ["999", "1.26 M", "25.0 M"])


class Loads(unittest.TestCase):
    def test_loads_are_chosen_by_name_and_unknown_names_are_reported(self):
        self.assertEqual([load.name for load in loads.chosen("S2,S1")], ["S2", "S1"])
        self.assertEqual(len(loads.chosen(None)), len(loads.LOADS))
        with self.assertRaisesRegex(ValueError, "S9.*choose from S1"):
            loads.chosen("S9")

    def test_every_peer_of_a_load_exists(self):
        for load in loads.LOADS:
            self.assertLessEqual(set(load.peers), set(peer_systems.PEERS), load.name)

    def test_names_are_unique_and_offered_rates_add_up(self):
        names = [load.name for load in loads.LOADS]
        self.assertEqual(len(names), len(set(names)))
        offered = {load.name: load.offered_per_s for load in loads.LOADS}
        self.assertEqual((offered["S1"], offered["S4"], offered["engine"]), (500_000, 2_500_000, 500_000))
        self.assertEqual((offered["wave"], offered["own-topics"]), (250_000, 200_000))

    def test_saturation_steps_divide_into_whole_rates(self):
        load = next(load for load in loads.LOADS if load.kind == "saturation")
        for step in (*loads.SATURATION_STEPS_PER_S, loads.SATURATION_UNTHROTTLED_PER_S):
            self.assertEqual(loads.at_total_rate(load, step).offered_per_s, step)


if __name__ == "__main__":
    unittest.main()
