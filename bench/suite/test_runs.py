"""Claims about starting and stopping processes, commands, and what the machine says."""

import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import bare
import client
import machine
import run
from client import Endpoint, Window
from figures import Row
from loads import Load
from processes import Processes, RunFailed, cpu_seconds_of_stat, readable_command
from systems import addresses_of, capture_lines

LOAD = Load("x", "x", clients=4, producers=2, rate=5, size=40, subscribe=("wave.>",))
CHATTY = "import time; print('tcp=1.2.3.4:5 http=6', flush=True); time.sleep(600)"


class ProcessesEnd(unittest.TestCase):
    def test_leaving_the_block_ends_everything_even_after_an_error(self):
        with self.assertRaises(KeyboardInterrupt):
            with Processes() as processes:
                started = processes.start([sys.executable, "-c", CHATTY])
                self.assertEqual(addresses_of(started.line_with("tcp=", 20.0)), ("1.2.3.4:5", "6"))
                raise KeyboardInterrupt
        self.assertFalse(started.is_running)
        with self.assertRaises(ProcessLookupError):
            os.kill(started.pid, 0)

    def test_a_process_that_ends_first_is_told_with_its_words(self):
        with Processes() as processes:
            started = processes.start([sys.executable, "-c", "import sys; sys.exit('no port')"])
            with self.assertRaisesRegex(RunFailed, "ended with 1: no port"):
                started.line_with("tcp=", 20.0)

    def test_a_program_that_is_not_there_is_named(self):
        with self.assertRaisesRegex(RunFailed, "no-such-program"):
            Processes().start(["no-such-program"])

    def test_cpu_time_is_read_past_any_name(self):
        stat = "7 (a) b) R 1 1 1 0 -1 0 0 0 0 0 12 30 0 0 20 0 1 0"
        self.assertAlmostEqual(cpu_seconds_of_stat(stat), 42 / os.sysconf("SC_CLK_TCK"))

    def test_commands_are_shown_without_folders(self):
        words = [f"{Path(__file__).parent}/tickcast", "--policy", ">=drop", "--path", "/sub?id=1"]
        self.assertEqual(readable_command(words), "tickcast --policy '>=drop' --path '/sub?id=1'")


class Commands(unittest.TestCase):
    def words(self, load: Load, said: str) -> list[str]:
        with mock.patch.object(client, "help_of", return_value=said):
            endpoint = Endpoint("127.0.0.1:1", ("--transport", "native"), (77, 78))
            return client.command(Path("/bin/c10k"), load, endpoint, Window(1, 3), None)

    def test_a_client_asks_for_what_the_load_says(self):
        words = " ".join(self.words(LOAD, ""))
        self.assertIn("--connections 4 --subscribe wave.> --ramp 2000 --warm-up-s 1 --duration-s 3", words)
        self.assertTrue(words.endswith("--server-pid 77 --json"))

    def test_an_option_that_the_client_lacks_is_replaced_or_told(self):
        spike = Load("x", "x", 4, 1, 1, 64, client_options=("--spike",), client_options_otherwise=())
        self.assertNotIn("--spike", self.words(spike, "      --ramp <N>\n"))
        self.assertNotIn("--ramp", self.words(spike, "      --spike\n"))
        own = Load("x", "x", 4, 1, 1, 64, client_options=("--subscribe-own", "1/2"))
        with self.assertRaisesRegex(RunFailed, "--subscribe-own"):
            self.words(own, "")

    def test_values_of_options_are_found_in_both_forms_of_help(self):
        with mock.patch.object(client, "help_of", return_value="- nats: A NATS server\n [possible values: a, b]"):
            self.assertTrue(all(client.speaks(Path("x"), value) for value in ("nats", "a", "b")))
            self.assertFalse(client.speaks(Path("x"), "redis"))


class CommandLine(unittest.TestCase):
    def test_names_that_are_not_there_end_it_before_anything_is_started(self):
        with mock.patch("sys.stderr"):
            self.assertEqual(run.main(["--only", "S9", "--bin", "/nowhere"]), 1)

    def test_the_report_names_what_changes_its_figures(self):
        typed = run.parser().parse_args(["--quick", "--only", "S1", "--repeat", "3", "--out", "x"])
        self.assertEqual(run.arguments_of(typed), ["--quick", "--only", "S1", "--repeat", "3"])

    def test_a_file_is_written_whole_or_not_at_all(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "made" / "README.md"
            run.write_whole(path, "all of it\n")
            self.assertEqual(path.read_text(), "all of it\n")
            self.assertEqual([one.name for one in path.parent.iterdir()], ["README.md"])


class Captures(unittest.TestCase):
    def test_a_capture_has_the_loads_rate_and_exact_payloads(self):
        import json

        lines = [json.loads(line) for line in capture_lines(LOAD, 1)]
        self.assertEqual(len(lines), 10)
        self.assertEqual({line["topic"] for line in lines}, {"wave.0", "wave.1"})
        self.assertEqual([line["at_ns"] for line in lines[:3]], [0, 100_000_000, 200_000_000])
        # The payload is the text between the colon and the brace, quotes included.
        self.assertTrue(all(len(json.dumps(line["data"])) == 40 for line in lines))


class BareLoop(unittest.TestCase):
    def test_the_bare_loop_sends_as_many_ticks_a_second(self):
        row = Row("x", "tickcast", delivered_per_s=4_000.0, deliveries_per_send=1.9)
        self.assertEqual(bare.ticks_per_send(row, 100), 2)
        # Two ticks each 2 ms to each of four connections are 4,000 a second.
        self.assertEqual(bare.interval_us(row, LOAD), 2_000)

    def test_its_report_is_the_line_of_json(self):
        self.assertEqual(bare.report_of('listening tcp=x\n{"sends":3,"bytes":9}')["bytes"], 9)
        with self.assertRaisesRegex(RunFailed, "sent nothing"):
            bare.report_of('{"sends":0}')


class MachineFacts(unittest.TestCase):
    def test_steal_and_other_processes_are_told_from_the_runs_own(self):
        before = machine.CpuTimes.parse("cpu  100 0 100 800 0 0 0 0 0 0\n", 100)
        after = machine.CpuTimes.parse("cpu  200 0 200 890 0 0 0 10 0 0\n", 100)
        heard = machine.noise(before, after, own_cpu_s=1.5)
        self.assertAlmostEqual(heard["steal_percent"], 10 / 3)
        self.assertAlmostEqual(heard["others_percent"], 100 * 0.5 / 3)

    def test_processor_and_memory_are_read(self):
        self.assertEqual(machine.cpu_model("processor : 0\nmodel name\t: A B\n"), "A B")
        self.assertEqual(machine.memory_gib("MemTotal:       2097152 kB\n"), 2.0)


if __name__ == "__main__":
    unittest.main()
