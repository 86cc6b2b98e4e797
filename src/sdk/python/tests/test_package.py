"""What is published: types that mypy accepts, and the contents of the wheel. Needs the packages of tests/clients/requirements.txt."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unittest
import zipfile
from email.parser import Parser
from pathlib import Path

import reference

PACKAGE = Path(__file__).resolve().parent.parent


class Package(unittest.TestCase):
    def run_module(self, *arguments: str) -> str:
        ran = subprocess.run([sys.executable, "-m", *arguments], cwd=PACKAGE, capture_output=True, text=True)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        return ran.stdout

    def test_types_are_strict(self) -> None:
        with tempfile.TemporaryDirectory() as cache:
            self.assertIn("Success", self.run_module("mypy", "--strict", "--cache-dir", cache))

    def test_api_md_is_what_the_docstrings_say(self) -> None:
        self.assertEqual((PACKAGE / "API.md").read_text(), reference.render(), "run python reference.py and commit API.md")

    def test_wheel_has_the_package_and_nothing_else(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            # Without isolation: the backend is installed, and nothing is fetched.
            self.run_module("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ".")
            (wheel,) = Path(folder).iterdir()
            self.assertRegex(wheel.name, r"^tickcast-[0-9.]+-py3-none-any\.whl$")
            with zipfile.ZipFile(wheel) as archive:
                names = set(archive.namelist())
                metadata = Parser().parsestr(
                    archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
                )
            modules = {f"tickcast/{path.name}" for path in (PACKAGE / "tickcast").glob("*.py")} | {"tickcast/py.typed"}
            self.assertEqual({name for name in names if not ".dist-info/" in name}, modules)
            self.assertEqual(metadata["Requires-Python"], ">=3.10")
            self.assertEqual(metadata.get_all("Requires-Dist"), ["websockets>=14"])
            # The wheel works without the sources beside it.
            code = (
                f"import sys; sys.path.insert(0, {str(wheel)!r}); import tickcast; "
                f"assert tickcast.__file__.startswith({str(wheel)!r}); print(tickcast.Client('ws://h/ws').state.value)"
            )
            ran = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
            self.assertEqual((ran.returncode, ran.stdout.strip()), (0, "disconnected"), ran.stderr)


if __name__ == "__main__":
    unittest.main()
