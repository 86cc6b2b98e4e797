"""Every transcript of tests/transcripts, and that each feature has one."""

from __future__ import annotations

import json
import os
import unittest
from pathlib import Path

from transcript import Script

FOLDER = Path(os.environ.get("TICKCAST_TRANSCRIPTS", Path(__file__).resolve().parents[4] / "tests/transcripts"))


class Transcripts(unittest.TestCase):
    """A test is made for each file below."""


def claim(path: Path):
    def run(self: Transcripts) -> None:
        Script(FOLDER, json.loads(path.read_text())).run()

    run.__doc__ = json.loads(path.read_text())["about"]
    return run


paths = sorted(path for path in FOLDER.glob("*.json") if path.name != "features.json")
for path in paths:
    setattr(Transcripts, f"test_{path.stem.replace('-', '_')}", claim(path))


class Features(unittest.TestCase):
    def test_every_feature_has_a_transcript_and_every_transcript_a_feature(self) -> None:
        features = json.loads((FOLDER / "features.json").read_text())
        shown = {json.loads(path.read_text())["feature"] for path in paths}
        self.assertTrue(shown)
        self.assertEqual(set(features), shown)


if __name__ == "__main__":
    unittest.main()
