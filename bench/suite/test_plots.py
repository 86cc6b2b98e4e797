"""Claims about the plots."""

import re
import unittest
from xml.etree import ElementTree

import plots
from figures import Row
from plots import Line

FAST = Line("tickcast", [(0.0, 0.3), (0.5, 0.6), (0.9, 1.0), (0.999999, 6.0)])
SLOW = Line("nchan", [(0.0, 400.0), (0.5, 1_676.0), (0.9, 1_734.0), (0.999, 1_778.0)])


def heights(svg: str) -> list[float]:
    """Every y of every line."""
    return [float(y) for points in re.findall(r'points="(.*?)"', svg) for y in re.findall(r",([\d.]+)", points)]


class Axis(unittest.TestCase):
    def test_latencies_that_span_decades_get_a_logarithmic_axis(self):
        axis = plots.axis_of([FAST, SLOW])
        self.assertTrue(axis.is_log)
        self.assertEqual((axis.low_ms, axis.high_ms), (0.2, 2_000.0))
        # Every decade has the same height, and the fast system is not squeezed into the axis.
        self.assertAlmostEqual(axis.y(1.0) - axis.y(10.0), axis.y(10.0) - axis.y(100.0))
        self.assertGreater(axis.y(0.6) - axis.y(1_676.0), 0.8 * (plots.BOTTOM - plots.TOP))

    def test_similar_latencies_get_a_linear_axis_from_zero(self):
        axis = plots.axis_of([FAST])
        self.assertFalse(axis.is_log)
        self.assertEqual((axis.grid_ms[0], axis.grid_ms[-1]), (0.0, 6.0))
        self.assertEqual((axis.y(0.0), axis.y(6.0)), (plots.BOTTOM, plots.TOP))

    def test_one_tiny_latency_does_not_stretch_a_logarithmic_axis(self):
        lowest = Line("x", [(0.0, 0.0001), (0.5, 1.0)])
        self.assertEqual(plots.axis_of([lowest, SLOW]).low_ms, 0.1)

    def test_steps_are_one_two_or_five(self):
        for highest, step in ((8.0, 1.0), (8.1, 2.0), (17.0, 5.0), (41.0, 10.0), (0.03, 0.005)):
            self.assertAlmostEqual(plots.linear_axis(highest).grid_ms[1], step)


class Svg(unittest.TestCase):
    def test_the_legend_covers_no_data(self):
        lines = [Line(f"{line.name} {number}", line.points) for number in range(4) for line in (FAST, SLOW)]
        svg = plots.render("t", lines)
        entries = [int(y) for y in re.findall(r'<path d="M\d+ (\d+)h24"', svg)]
        self.assertEqual(len(entries), len(lines))
        # Axis labels end 40 pixels below the plot.
        self.assertGreater(min(entries), plots.BOTTOM + 40)
        self.assertLessEqual(max(heights(svg)), plots.BOTTOM)
        self.assertGreaterEqual(min(heights(svg)), plots.TOP)
        self.assertLess(max(entries), float(ElementTree.fromstring(svg).get("height")))

    def test_every_nine_takes_the_same_width(self):
        svg = plots.render("t", [Line("a", [(0.0, 1.0), (0.9, 2.0), (0.99, 4.0), (0.9999, 8.0)])])
        self.assertEqual(re.findall(r"([\d.]+),", re.search(r'points="(.*?)"', svg)[1]),
                         ["80.0", "290.0", "500.0", "920.0"])
        self.assertIn(">99.99 %<", svg)
        self.assertNotIn(">99.999 %<", svg)

    def test_names_cannot_break_the_markup(self):
        svg = plots.render("<a & b>", [Line("<c & d>", [(0.5, 1.0)])])
        self.assertIn("<c & d>", [node.text for node in ElementTree.fromstring(svg).iter()])

    def test_nothing_measured_is_a_plot_without_numbers_that_do_not_exist(self):
        svg = plots.render("t", [Line("a", []), Line("b", [(0.0, 0.0)])])
        ElementTree.fromstring(svg)
        self.assertFalse(re.search("nan|inf", svg))


class Draw(unittest.TestCase):
    def test_peers_come_first_and_loads_without_latencies_have_no_plot(self):
        rows = [Row("S1", "tickcast", str(number), latency_curve=FAST.points) for number in range(9)]
        rows.append(Row("S1", "nchan", latency_curve=SLOW.points))
        idle = Row("idle-ws", "tickcast")
        drawn = plots.draw({"loads": [
            {"name": "S1", "rows": [row.to_json() for row in rows]},
            {"name": "idle-ws", "rows": [idle.to_json()]},
        ]})
        self.assertEqual(list(drawn), ["S1.svg"])
        names = re.findall(r'h24".*?/><text.*?>(.*?)</text>', drawn["S1.svg"])
        self.assertEqual((names[0], len(names)), ("nchan", plots.LINES_MAX))


if __name__ == "__main__":
    unittest.main()
