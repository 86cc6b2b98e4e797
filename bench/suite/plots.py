"""Latency by percentile as pictures: one a load, drawn by the load client from what its runs wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path

import client
from systems import Programs

# Lines that one picture can hold and still be read; the load client refuses more.
LINES_MAX = 8


def can_draw(program: Path) -> bool:
    """Whether this load client draws."""
    return any(line.split()[:1] == ["plot"] for line in client.help_of(program).splitlines())


def draw(result: dict, scratch: Path, programs: Programs) -> dict[str, str]:
    """The pictures of all loads by file name; none where the load client does not draw."""
    if not can_draw(programs.client):
        return {}
    pictures = {}
    for load in result["loads"]:
        # Peers first: a picture without them would be of no use. Of ours as many as fit.
        rows = sorted(load["rows"], key=lambda row: row["system"] == "tickcast")
        lines = [
            f"{label(row)}={scratch / row['hgrm']}"
            for row in rows
            if row["hgrm"] and (scratch / row["hgrm"]).exists()
        ][:LINES_MAX]
        if not lines:
            continue
        name = f"{load['name']}.svg"
        title = f"{load['name']}: latency by percentile"
        words = [programs.client, "plot", "--out", scratch / name, "--title", title, *lines]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            pictures[name] = (scratch / name).read_text()
    return pictures


def label(row: dict) -> str:
    """A line's name: without what separates it from its file."""
    text = f"{row['system']} ({row['variant']})" if row["variant"] else row["system"]
    return text.replace("=", " ")


def already_there(folder: Path) -> list[str]:
    """Names of the pictures beside a report that is written again from its figures."""
    return sorted(path.name for path in (folder / "plots").glob("*.svg"))
