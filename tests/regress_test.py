#!/usr/bin/env python3
"""benchmarks/regress: what it calls slower, and what it does without numbers. Its benchmarks are scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

REGRESS = Path(__file__).resolve().parent.parent / "benchmarks/regress"
CASE = "pass_benchmark --batch 1"


class Regress(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def build(self, name: str, times: list[float], batch: int = 1) -> Path:
        """A build whose benchmark takes these times, one a call."""
        folder = self.folder / name
        (folder / "benchmarks").mkdir(parents=True)
        (folder / "times").write_text("\n".join(map(str, times)) + "\n")
        program = folder / "benchmarks/pass_benchmark"
        program.write_text(
            f"#!/bin/sh\nt=$(head -n 1 {folder}/times)\nsed -i 1d {folder}/times\n[ -n \"$t\" ] || exit 3\n"
            f"echo 'not a line'\necho '{{\"name\":\"pass\",\"batch\":{batch},\"pass_ms\":'$t'}}'\n"
        )
        program.chmod(0o755)
        return folder

    def regress(self, *arguments: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, REGRESS, *arguments, "--case", CASE, "--output", self.folder / "out.json"],
            text=True, capture_output=True,
        )  # fmt: skip

    def line(self) -> dict:
        [line] = json.loads((self.folder / "out.json").read_text())["lines"]
        return line

    def test_what_takes_longer_in_every_round_is_slower(self) -> None:
        old = self.build("old", [100, 101, 99, 100, 102])
        new = self.build("new", [106, 104, 105, 107, 105])
        done = self.regress(old, new, "--rounds", "5")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("slower pass_benchmark --batch 1 [batch 1]", done.stdout)
        self.assertEqual(self.line()["verdict"], "slower")
        self.assertAlmostEqual(self.line()["percent"], 6, delta=0.1)

    def test_what_is_longer_in_most_rounds_alone_is_noise(self) -> None:
        old = self.build("old", [100, 120, 99, 100, 102])
        new = self.build("new", [106, 104, 105, 107, 105])
        self.assertEqual(self.regress(old, new, "--rounds", "5").returncode, 0)
        self.assertEqual(self.line()["verdict"], "")

    def test_what_is_longer_by_less_than_is_worth_a_word_passes(self) -> None:
        old = self.build("old", [100.0] * 7)
        new = self.build("new", [101.0] * 7)
        self.assertEqual(self.regress(old, new).returncode, 0)
        new = self.build("newer", [101.0] * 7)
        old = self.build("older", [100.0] * 7)
        self.assertEqual(self.regress(old, new, "--least", "0.5").returncode, 1)

    def test_what_takes_less_is_faster(self) -> None:
        old, new = self.build("old", [100.0] * 7), self.build("new", [90.0] * 7)
        self.assertEqual(self.regress(old, new).returncode, 0)
        self.assertEqual(self.line()["verdict"], "faster")

    def test_without_numbers_it_says_why(self) -> None:
        old, new = self.build("old", [100.0] * 7), self.build("new", [90.0])
        done = self.regress(old, new)
        self.assertEqual(done.returncode, 2)
        self.assertIn("exit code 3", done.stderr)
        other = self.build("other", [90.0] * 7, batch=2)
        done = self.regress(self.build("again", [1.0] * 7), other)
        self.assertEqual(done.returncode, 2)
        self.assertIn("no line in common", done.stderr)
        self.assertEqual(self.regress(old, new, "--rounds", "4").returncode, 2)
        self.assertEqual(self.regress("no-such-commit", new).returncode, 2)


if __name__ == "__main__":
    unittest.main()
