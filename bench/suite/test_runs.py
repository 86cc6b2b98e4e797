"""Claims about processes, command lines, where results go, and facts about the machine."""

import ast
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import bare
import client
import loads
import machine
import run
from client import Endpoint, Window
from figures import Row
from loads import Load
from processes import Processes, RunFailed, cpu_seconds_of_stat, readable_command
from systems import Programs, Tickcast, addresses_of, capture_lines

LOAD = Load("x", "x", clients=4, producers=2, rate=5, size=40, subscribe=("wave.>",))
CHATTY = "import time; print('tcp=1.2.3.4:5 http=6', flush=True); time.sleep(600)"


class ProcessesEnd(unittest.TestCase):
    def test_leaving_the_block_stops_everything_even_after_an_error(self):
        with self.assertRaises(KeyboardInterrupt):
            with Processes() as processes:
                started = processes.start([sys.executable, "-c", CHATTY])
                self.assertEqual(addresses_of(started.wait_for_line("tcp=", 20.0)), ("1.2.3.4:5", "6"))
                raise KeyboardInterrupt
        self.assertFalse(started.is_running)
        with self.assertRaises(ProcessLookupError):
            os.kill(started.pid, 0)

    def test_a_process_that_exits_early_is_reported_with_its_last_line(self):
        with Processes() as processes:
            started = processes.start([sys.executable, "-c", "import sys; sys.exit('no port')"])
            with self.assertRaisesRegex(RunFailed, "exited with status 1: no port"):
                started.wait_for_line("tcp=", 20.0)

    def test_a_missing_program_is_named(self):
        with self.assertRaisesRegex(RunFailed, "no-such-program"):
            Processes().start(["no-such-program"])

    def test_cpu_time_is_read_past_any_process_name(self):
        stat = "7 (a) b) R 1 1 1 0 -1 0 0 0 0 0 12 30 0 0 20 0 1 0"
        self.assertAlmostEqual(cpu_seconds_of_stat(stat), 42 / os.sysconf("SC_CLK_TCK"))

    def test_commands_are_shown_without_folders(self):
        argv = [f"{Path(__file__).parent}/tickcast", "--policy", ">=drop", "--path", "/sub?id=1"]
        self.assertEqual(readable_command(argv), "tickcast --policy '>=drop' --path '/sub?id=1'")


class Commands(unittest.TestCase):
    def argv(self, load: Load, help_text: str) -> list[str]:
        with mock.patch.object(client, "help_of", return_value=help_text):
            endpoint = Endpoint("127.0.0.1:1", ("--transport", "native"), (77, 78))
            return client.command(Path("/bin/c10k"), load, endpoint, Window(1, 3), None)

    def test_the_client_gets_the_options_of_the_load(self):
        line = " ".join(self.argv(LOAD, ""))
        self.assertIn("--connections 4 --subscribe wave.> --ramp 2000 --warmup 1s --duration 3s", line)
        self.assertTrue(line.endswith("--server-pid 77 --json"))

    def test_an_option_that_the_client_lacks_is_replaced_or_reported(self):
        spike = Load("x", "x", 4, 1, 1, 64, client_options=("--spike",), client_options_fallback=())
        self.assertNotIn("--spike", self.argv(spike, "      --ramp <N>\n"))
        self.assertNotIn("--ramp", self.argv(spike, "      --spike\n"))
        own = Load("x", "x", 4, 1, 1, 64, client_options=("--subscribe-own", "1/2"))
        with self.assertRaisesRegex(RunFailed, "--subscribe-own"):
            self.argv(own, "")

    def test_option_values_are_found_in_both_forms_of_help(self):
        with mock.patch.object(client, "help_of", return_value="- nats: A NATS server\n [possible values: a, b]"):
            self.assertTrue(all(client.has_value(Path("x"), value) for value in ("nats", "a", "b")))
            self.assertFalse(client.has_value(Path("x"), "redis"))


class CommandLine(unittest.TestCase):
    def test_unknown_loads_are_refused_before_anything_starts(self):
        with mock.patch("sys.stderr"):
            self.assertEqual(run.main(["--only", "S9", "--bin", "/nowhere"]), 1)

    def test_the_report_names_what_changes_its_figures(self):
        options = run.parser().parse_args(["--quick", "--only", "S1", "--repeat", "3", "--out", "x"])
        self.assertEqual(run.arguments_of(options), ["--quick", "--only", "S1", "--repeat", "3"])

    def test_options_that_contradict_each_other_are_refused(self):
        for argv in (["--write", "--out", "x"], ["--against", "x", "--write"], ["--repeat", "0"], ["--pairs", "0"]):
            with mock.patch("sys.stderr"), self.assertRaises(SystemExit):
                run.main(argv)

    def test_an_old_binary_that_is_missing_is_named_before_anything_starts(self):
        with mock.patch("sys.stderr") as stderr:
            self.assertEqual(run.main(["--against", "/nowhere/tickcast", "--bin", "/nowhere"]), 1)
        self.assertIn("/nowhere/tickcast", "".join(call.args[0] for call in stderr.write.call_args_list))

    def test_a_file_is_written_completely_or_not_at_all(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "made" / "README.md"
            run.write_atomically(path, "all of it\n")
            self.assertEqual(path.read_text(), "all of it\n")
            self.assertEqual([one.name for one in path.parent.iterdir()], ["README.md"])


class Reports(unittest.TestCase):
    """Where a run writes to. Nothing is started: the loads' rows are made up."""

    def run_suite(self, *argv: str) -> tuple[dict[str, str], str]:
        """Runs the suite in an empty repository that has a committed report; its files and standard output."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            committed = {"bench/README.md": "committed\n", "bench/plots/S1.svg": "committed\n"}
            for name, text in committed.items():
                run.write_atomically(root / name, text)
            with (
                mock.patch.multiple(
                    run, COMMITTED_REPORT=root / "bench/README.md", SCRATCH_REPORT=root / "target/bench/README.md",
                    check_machine=mock.DEFAULT, programs_of=mock.DEFAULT, log=mock.DEFAULT,
                ),
                mock.patch.object(run.Suite, "measure", measured_rows),
                mock.patch("builtins.print") as printed,
            ):
                self.assertEqual(run.main([*argv, "--no-peers"]), 0)
            files = {str(one.relative_to(root)): one.read_text() for one in root.rglob("*") if one.is_file()}
            return files, "\n".join(str(call.args[0]) for call in printed.call_args_list)

    def test_a_run_leaves_the_committed_report_alone(self):
        for argv in ([], ["--only", "S1"]):
            files, _ = self.run_suite(*argv)
            self.assertEqual({files["bench/README.md"], files["bench/plots/S1.svg"]}, {"committed\n"})
            self.assertNotIn("bench/results.json", files)
            self.assertIn("# Benchmark results", files["target/bench/README.md"])
            self.assertIn("<svg", files["target/bench/plots/S1.svg"])

    def test_write_updates_the_committed_report(self):
        files, _ = self.run_suite("--only", "S1", "--write")
        self.assertIn("--only S1 --no-peers --write", files["bench/README.md"])
        self.assertIn("<svg", files["bench/plots/S1.svg"])
        self.assertEqual([load["name"] for load in json.loads(files["bench/results.json"])["loads"]], ["S1"])
        self.assertFalse(any(name.startswith("target/") for name in files))

    def test_the_table_goes_to_standard_output(self):
        _, printed = self.run_suite("--only", "S1")
        self.assertIn("S1: 100 clients", printed)
        self.assertIn("CPU us/delivery", printed)

    def test_raw_results_render_the_same_report_again(self):
        files, _ = self.run_suite("--only", "S1,S4")
        with tempfile.TemporaryDirectory() as folder:
            results, out = Path(folder) / "results.json", Path(folder) / "again" / "README.md"
            results.write_text(files["target/bench/results.json"])
            with mock.patch("builtins.print"), mock.patch.object(run, "log"):
                self.assertEqual(run.main(["--from-json", str(results), "--out", str(out)]), 0)
            self.assertEqual(out.read_text(), files["target/bench/README.md"])
            self.assertEqual((out.parent / "plots/S1.svg").read_text(), files["target/bench/plots/S1.svg"])
            self.assertFalse((out.parent / "results.json").exists())


def measured_rows(_suite, load: Load, _systems) -> list[Row]:
    """One made-up row of a load."""
    return [Row(load.name, "tickcast", "native, simulator, no budget", "simulator", offered_per_s=1.0,
                delivered_per_s=1.0, p50_us=1.0, p99_us=2.0, cpu_us_per_delivery=1.0, wire_mb_per_s=1.0,
                server_cpu_share=0.1, clean_per_s=1.0 if load.kind == "saturation" else None,
                latency_curve=[(0.0, 0.001), (0.9, 0.002)])]


class Structure(unittest.TestCase):
    def test_modules_do_not_import_each_other_in_a_circle(self):
        folder = Path(run.__file__).parent
        imports = {
            path.stem: {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
            }
            for path in folder.glob("*.py")
        }
        remaining = {name: used & imports.keys() for name, used in imports.items()}
        while leaves := [name for name, used in remaining.items() if not used & remaining.keys()]:
            for name in leaves:
                del remaining[name]
        self.assertEqual(remaining, {}, "these modules import each other in a circle")


class Captures(unittest.TestCase):
    def test_a_capture_has_the_loads_rate_and_exact_payloads(self):
        lines = [json.loads(line) for line in capture_lines(LOAD, 1)]
        self.assertEqual(len(lines), 10)
        self.assertEqual({line["topic"] for line in lines}, {"wave.0", "wave.1"})
        self.assertEqual([line["at_ns"] for line in lines[:3]], [0, 100_000_000, 200_000_000])
        # The payload is the JSON string, quotes included.
        self.assertTrue(all(len(json.dumps(line["data"])) == 40 for line in lines))


    def test_a_variant_replays_the_capture_of_its_load_and_its_clients_ask_for_its_messages(self):
        load = next(load for load in loads.LOADS if load.capture)
        system = Tickcast(Programs(Path("/nowhere")), load.variants[-1])
        replay, path, *rest = system.source(Processes(), load)
        self.assertEqual((replay, rest), ("--replay", ["--speed", str(load.speed), "--loop", "--replay-wait", str(load.clients)]))
        lines = Path(path).read_text().splitlines()
        seconds = json.loads(lines[-1])["at_ns"] / 1e9 / load.speed
        self.assertAlmostEqual(len(lines) / seconds, load.ticks_per_s, delta=0.01 * load.ticks_per_s)
        server = mock.Mock(pid=7)
        server.wait_for_line.return_value = "listening tcp=a http=b"
        processes = mock.Mock(start=mock.Mock(return_value=server))
        self.assertEqual(system.start(processes, load).transport[-2:], ("--deflate", "--no-batches"))


class BareLoop(unittest.TestCase):
    def test_the_bare_loop_sends_as_many_ticks_per_second(self):
        row = Row("x", "tickcast", delivered_per_s=4_000.0, deliveries_per_send=1.9)
        self.assertEqual(bare.ticks_per_send(row, 100), 2)
        # Two ticks every 2 ms to each of four connections are 4,000 ticks/s.
        self.assertEqual(bare.interval_us(row, LOAD), 2_000)

    def test_its_report_is_its_line_of_json(self):
        self.assertEqual(bare.report_of('listening tcp=x\n{"sends":3,"bytes":9}')["bytes"], 9)
        with self.assertRaisesRegex(RunFailed, "sent nothing"):
            bare.report_of('{"sends":0}')


class MachineFacts(unittest.TestCase):
    def test_steal_and_other_processes_are_separated_from_the_run(self):
        before = machine.CpuTimes.parse("cpu  100 0 100 800 0 0 0 0 0 0\n", 100)
        after = machine.CpuTimes.parse("cpu  200 0 200 890 0 0 0 10 0 0\n", 100)
        noise = machine.noise(before, after, own_cpu_s=1.5)
        self.assertAlmostEqual(noise["steal_percent"], 10 / 3)
        self.assertAlmostEqual(noise["others_percent"], 100 * 0.5 / 3)

    def test_processor_and_memory_are_read(self):
        self.assertEqual(machine.cpu_model("processor : 0\nmodel name\t: A B\n"), "A B")
        self.assertEqual(machine.memory_gib("MemTotal:       2097152 kB\n"), 2.0)


if __name__ == "__main__":
    unittest.main()
