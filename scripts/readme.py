#!/usr/bin/env python3
"""Runs the commands and snippets of README.md, and the examples of the Rust client, against a real server, as a reader would.

    scripts/readme.py [BIN_DIR]          BIN_DIR: folder with the built programs, target/debug by default

Where the README says `cargo run --release --` or `target/release/tickcast`, the program from BIN_DIR runs; where it
names a default port, the server that this script started on free ports. Needs what scripts/test.sh installs: the npm
and Python clients below tests/clients, and Chromium. Exit status 0: everything ran and printed what it should.
"""

import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "tests/clients/.venv/bin/python"
# Generous: nothing here is about speed.
DEADLINE_S = 120
# README's default addresses, in the order of the `listening` line.
DEFAULTS = {"tcp": "127.0.0.1:9400", "http": "127.0.0.1:9480", "admin": "127.0.0.1:9490"}


class Failed(Exception):
    """Something is missing, or a command or snippet that did not do what the README says."""


def blocks(text):
    """Fenced blocks as (language, body)."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)


def commands(body):
    """Commands of a console block as (command, expected output lines)."""
    found = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append((line[2:].split("  #")[0].rstrip(), []))
        elif found and line:
            found[-1][1].append(line)
    return found


class Server:
    """`tickcast serve` on free ports, as the README starts it."""

    def __init__(self, program, words):
        words = [program, "serve", *words, "--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        watchdog = threading.Timer(DEADLINE_S, self.process.kill)
        watchdog.start()
        lines = [self.process.stdout.readline().rstrip("\n") for _ in range(3)]
        watchdog.cancel()
        found = dict(re.findall(r"(tcp|http|admin)=(\S+)", lines[0]))
        if set(found) != set(DEFAULTS):
            raise Failed(f"the first line of serve is not `listening ...`: {lines}")
        self.addresses, self.next_step = found, lines[1]

    def here(self, text):
        """README's default addresses replaced by this server's."""
        for kind, address in DEFAULTS.items():
            text = text.replace(address, self.addresses[kind])
        return text

    def stop(self):
        """Drains the server and checks its exit status."""
        self.process.terminate()
        if self.process.wait(DEADLINE_S) != 0:
            raise Failed(f"serve ended with status {self.process.returncode}")


def run(what, words, **options):
    """Runs a program to its end and returns what it printed."""
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S, cwd=ROOT, **options
    )
    if done.returncode != 0:
        raise Failed(f"{what}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def run_for_a_line(what, command):
    """Runs a program that never ends until it has printed a line, then stops it."""
    process = subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    line = process.stdout.readline()
    watchdog.cancel()
    process.terminate()
    process.wait(DEADLINE_S)
    if not line:
        raise Failed(f"{what}: printed nothing")
    return line


def console(body, server, program):
    """Runs the commands of a console block, all but the one that starts the server."""
    for command, expected in commands(body):
        if " serve" in command:
            continue
        command = server.here(command).replace("target/release/tickcast", program)
        # The README's commands rely on the default addresses.
        environment = os.environ | {f"TICKCAST_{key}": value for key, value in (
            ("SERVER", server.addresses["tcp"]), ("ADMIN", server.addresses["admin"]))}
        printed = run(command, shlex.split(command), env=environment).splitlines()
        if len(printed) < len(expected):
            raise Failed(f"{command}: {len(expected)} lines expected, printed {printed}")
        print(f"ok: {command}")


def snippet(language, body, server, folder):
    """Runs a client snippet against the server."""
    body = server.here(body)
    if language == "python":
        script = folder / "snippet.py"
        script.write_text(body)
        printed = run("the Python snippet", [PYTHON, script])
    elif language == "html":
        page = folder / "snippet.html"
        page.write_text(body)
        printed = run("the browser snippet", ["node", "tests/clients/readme-snippet.mjs", page])
    else:
        package = folder / "rust"
        (package / "src").mkdir(parents=True, exist_ok=True)
        (package / "Cargo.toml").write_text(
            '[package]\nname = "readme-snippet"\nedition = "2024"\n\n[workspace]\n\n'
            f'[dependencies]\ntickcast-client = {{ path = "{ROOT / "src/client"}" }}\n'
        )
        (package / "src/main.rs").write_text(body)
        (package / "Cargo.lock").write_text((ROOT / "Cargo.lock").read_text())
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
        manifest = ["--manifest-path", package / "Cargo.toml", "--target-dir", target]
        # No deadline: compiling may take long.
        subprocess.run(["cargo", "build", "--quiet", *manifest], check=True)
        printed = run_for_a_line("the Rust snippet", f"{target}/debug/readme-snippet")
    if not re.search(r"^sim\.\d+ \d+", printed, re.MULTILINE):
        raise Failed(f"the {language} snippet shows no tick: {printed!r}")
    print(f"ok: the {language} snippet")


def examples(server):
    """Runs the examples of the Rust client."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
    names = ("publish", "subscribe", "recover")
    # No deadline: compiling may take long.
    words = ["cargo", "build", "--quiet", "--locked", "--package", "tickcast-client", "--target-dir", target]
    subprocess.run([*words, *(f"--example={name}" for name in names)], check=True, cwd=ROOT)
    programs, address = target / "debug/examples", server.addresses["tcp"]
    printed = run("the example publish", [programs / "publish", address, "readme.example"])
    if not printed.endswith("\n10 ticks published\n"):
        raise Failed(f"the example publish: {printed!r}")
    for name in ("subscribe", "recover"):
        line = run_for_a_line(f"the example {name}", f"{programs / name} {address} sim.0")
        if not re.match(r"sim\.0 \d+", line):
            raise Failed(f"the example {name} shows no tick: {line!r}")
    print(f"ok: the examples {', '.join(names)}")


def require_clients():
    """Fails unless the clients that the snippets need are installed."""
    clients = ROOT / "tests/clients"
    missing = [name for name in ("node_modules/ws", "node_modules/playwright-core", ".venv/bin/python")
               if not (clients / name).exists()]
    if missing:
        install = "run scripts/test.sh --test tidy, which installs all that the tests need"
        raise Failed(f"tests/clients has no {', '.join(missing)}: {install}")


def server_program():
    """The server to run: in the folder that the command line names, target/debug by default."""
    programs = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/debug").resolve()
    program = str(programs / "tickcast")
    if not Path(program).exists():
        raise Failed(f"there is no {program}: run cargo build, or name the folder of the binaries")
    return program


def main():
    require_clients()
    program = server_program()
    folder = ROOT / "target/readme"
    folder.mkdir(parents=True, exist_ok=True)
    found = blocks((ROOT / "README.md").read_text())
    languages = {language for language, _ in found}
    if not {"console", "html", "python", "rust"} <= languages:
        raise Failed(f"README.md lacks a snippet: it has {sorted(languages)}")
    # The page of the snippet has no site: the README names this option for it.
    server = Server(program, ["--allow-origin", "null"])
    try:
        prefix = "next: "
        if not server.next_step.startswith(prefix):
            raise Failed(f"serve prints no next step: {server.next_step!r}")
        run_for_a_line("the printed next step", server.next_step.removeprefix(prefix))
        print(f"ok: {server.next_step}")
        for language, body in found:
            if language == "console":
                console(body, server, program)
            elif language in ("html", "python", "rust"):
                snippet(language, body, server, folder)
        examples(server)
    finally:
        server.stop()


if __name__ == "__main__":
    try:
        main()
    except (Failed, subprocess.SubprocessError) as error:
        sys.exit(f"scripts/readme.py: {error}")
