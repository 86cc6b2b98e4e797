"""The peers beside tickcast, as bench/peers/ starts them."""

from __future__ import annotations

from systems import Programs
from loads import Load


def for_load(programs: Programs, load: Load) -> tuple[list, list[tuple[str, str]]]:
    """The load's peers that can be run, and those that cannot, each with the reason."""
    return [], [(name, "not built in yet") for name in load.peers]
