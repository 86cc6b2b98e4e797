#!/usr/bin/env python3
"""Runs the code after "After" of the migration pages (docs/FROM-*.md) against a real server.

    scripts/migration.py [BIN_DIR]       BIN_DIR: folder with the built programs, target/debug by default

Every block there is run, or checked if it configures a server; a block in a language that this script does not know fails it.
Where a page names a host, the server that this script started answers, and what belongs to the application (`render`, `token`) is
a stand-in. Needs what scripts/test.sh installs. Exit status 0: each block ran, and those that show ticks showed one.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading

from readme import PYTHON, ROOT, DEADLINE_S, Failed, Server, blocks, require_clients, run, server_program

FOLDER = ROOT / "target/migration"
# What each page's readers find: the last value of each topic.
TICKS = [{"topic": topic, "data": {"bid": 1.0712, "ask": 1.0713}} for topic in ("prices.EURUSD", "quotes.EURUSD", "price.EURUSD")]
# A tick that a snippet has shown. The lines of a failure are indented, or begin otherwise.
SHOWN = r"^(shown: )?\w+\.EURUSD \S|^shown: EURUSD \S"
END = "^the end$"

# The application around a page's snippet. `client` and `socket` are of an earlier snippet of the page.
JS = """
import {{ Client }} from "{sdk}";
import {{ io }} from "{socket_io}";
const token = "token", getToken = async () => token;
const render = (...shown) => console.log("shown:", ...shown);
const reload = (...told) => console.log("told:", ...told);
const warn = reload;
"""
JS_EARLIER = {
    "client": 'const client = new Client("wss://host/ws");\n',
    "socket": 'const socket = io("https://host", { auth: { token } });\n',
}
PY = """
import asyncio, types
import socketio, tickcast

token = "token"

async def feed():
    yield types.SimpleNamespace(name="EURUSD", bid=1.0712, ask=1.0713)

"""


def after(page):
    """The blocks of a page between "After" and "What is not there"."""
    found = re.search(r"^## After$(.*?)^## What is not there$", page.read_text(), re.M | re.S)
    if found is None:
        raise Failed(f"{page.name} has no section After")
    code = blocks(found[1])
    if not code or len(re.findall("^```", found[1], re.M)) != 2 * len(code):
        raise Failed(f"{page.name} has no code after After, or a block without a language")
    return code


def here(text, server):
    """A snippet with this server in place of the page's hosts, and the SDK from this tree."""
    text = re.sub(r'import \{ Client \} from "https://[\w.]+/tickcast\.js";\n', "", text)
    text = re.sub(r"wss?://[\w.]+(:\d+)?/ws", f"ws://{server.addresses['http']}/ws", text)
    return re.sub(r"https://[\w.]+", f"http://{server.addresses['http']}", text)


def until_shown(what, words, wanted, environment):
    """Runs a program until it has printed a line that is wanted; fails if it ends before."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=os.environ | environment
    )
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    printed, is_shown = "", False
    while not is_shown and (line := process.stdout.readline()):
        printed += line
        is_shown = re.search(wanted, line.rstrip("\n")) is not None
    watchdog.cancel()
    process.kill()
    process.wait(DEADLINE_S)
    if not is_shown:
        raise Failed(f"{what} has not shown {wanted!r}:\n{printed}")


def javascript(what, body, server):
    earlier = [text for name, text in JS_EARLIER.items() if f"{name}." in body and f"const {name} =" not in body]
    shows = "render(" in body
    prelude = JS.format(sdk=(ROOT / "src/sdk/js/bundle/tickcast.js").as_uri(),
                        socket_io=(ROOT / "tests/clients/node_modules/socket.io-client/build/esm/index.js").as_uri())
    script = FOLDER / "snippet.mjs"
    script.write_text(prelude + here("".join(earlier) + body, server) + ("" if shows else '\nconsole.log("the end");\n'))
    until_shown(what, ["node", "--experimental-websocket", script], SHOWN if shows else END, {})


def python(what, body, server):
    # Blocks of the SDK stand for the body of a coroutine.
    if "async with" in body:
        body = f"async def main():\n{textwrap.indent(body, '    ')}\nasyncio.run(main())\n"
    script = FOLDER / "snippet.py"
    script.write_text(PY + here(body, server) + '\nprint("the end", flush=True)\n')
    wanted = SHOWN if "async for tick" in body else END
    until_shown(what, [PYTHON, "-u", script], wanted, {"PYTHONPATH": str(ROOT / "src/sdk/python")})


def shell(what, body, server):
    printed = run(what, ["bash", "-euc", here(body, server)], env=os.environ | {"TOKEN": "token"})
    if '"sequence"' not in printed:
        raise Failed(f"{what} has published nothing: {printed}")


def configuration(what, body, program):
    file = FOLDER / "tickcast.toml"
    file.write_text(body)
    run(what, [program, "serve", "--config", file, "--check-config"])


def main():
    require_clients()
    program = server_program()
    FOLDER.mkdir(parents=True, exist_ok=True)
    pages = sorted((ROOT / "docs").glob("FROM-*.md"))
    if not pages:
        raise Failed("docs has no page FROM-*.md")
    server = Server(program, [])
    try:
        url = f"http://{server.addresses['http']}/v1/publish"
        ticks = ["-H", "Content-Type: application/json", "-d", json.dumps(TICKS)]
        run("the ticks for the pages", ["curl", "--fail", "--silent", url, *ticks])
        for page in pages:
            for number, (language, body) in enumerate(after(page), 1):
                what = f"{page.name}, block {number} after After ({language})"
                match language:
                    case "js":
                        javascript(what, body, server)
                    case "python":
                        python(what, body, server)
                    case "bash":
                        shell(what, body, server)
                    case "toml":
                        configuration(what, body, program)
                    case _:
                        raise Failed(f"{what}: this script does not know the language")
                print(f"ok: {what}")
    finally:
        server.stop()


if __name__ == "__main__":
    try:
        main()
    except (Failed, subprocess.SubprocessError) as error:
        sys.exit(f"scripts/migration.py: {error}")
