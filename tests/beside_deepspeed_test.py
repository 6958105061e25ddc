#!/usr/bin/env python3
"""benchmarks/beside_deepspeed.py with stand-ins for both programs: what it starts, keeps, and says of what fails."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks/beside_deepspeed.py"

#: Each writes down how it was called, and has the file of --output, the last argument, as $last.
_PROGRAM = '#!/bin/sh\nfor last; do :; done\necho "$0 $*" >> {calls}\n'
_MEASURES = """echo '{"batch": 1, "pass_ms": 2.5}' >> $last
echo '{"batch": 8, "pass_ms": 3.5, "peak_device_bytes": 7}' >> $last
"""
_PEER = """for setting in default prefetch blocks; do for batch in 1 8; do
echo "{\\"setting\\": \\"$setting\\", \\"batch\\": $batch, \\"version\\": \\"0.1\\", \\"pass_ms\\": 99.5}" >> $last
done; done
"""
_PEER_CELL = """echo '{"setting": "default", "batch": 1, "version": "0.1", "pass_ms": 99.5}' >> $last
"""


class BesideDeepSpeed(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.program("mpirun", 'shift 2; exec "$@"\n')
        self.program("zero-infer", _MEASURES)
        self.program("python", _PEER)

    def program(self, name: str, body: str) -> None:
        path = self.root / name
        path.write_text(_PROGRAM.format(calls=self.root / "calls") + body, encoding="utf-8")
        path.chmod(0o755)

    def run_script(self, *flags: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
        output = self.root / "results.jsonl"
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(self.root), "--commit", "abc1234", "--machine", "a machine",
             "--output", str(output), "--model", "a-model", "--batch", "1,8", "--python", str(self.root / "python"),
             "--mpirun", str(self.root / "mpirun"), *flags],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
        return done, [json.loads(line) for line in lines]

    def test_a_line_is_one_setting_with_all_batches(self) -> None:
        done, lines = self.run_script()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            [(line["tier"], line["world"], line["program"], line["setting"]) for line in lines],
            [
                *(("device", 2, "zero-infer", f"--travel {t}") for t in ("weights", "activations", "auto")),
                *(("device", 2, "DeepSpeed ZeRO-3", s) for s in ("default", "prefetch", "blocks")),
                *(("host", n, "zero-infer", f"{travel}--cpu-share {s}")
                  for n, travel in ((1, ""), (2, "--travel auto ")) for s in ("0", "auto")),
                *(("host", n, "DeepSpeed ZeRO-3", s) for n in (1, 2) for s in ("default", "prefetch")),
            ],
        )
        own, peer = lines[0], lines[3]
        self.assertEqual((own["pass_ms"], own["version"]), ({"1": 2.5, "8": 3.5}, "abc1234"))
        self.assertEqual(own["peak_device_bytes"], {"8": 7})
        self.assertEqual((peer["pass_ms"], peer["version"]), ({"1": 99.5, "8": 99.5}, "0.1"))
        self.assertFalse([line for line in lines if "failed" in line])

    def test_only_jobs_of_several_ranks_need_mpirun(self) -> None:
        self.run_script("--tiers", "host", "--programs", "zero-infer")
        calls = (self.root / "calls").read_text(encoding="utf-8")
        self.assertEqual(calls.count("mpirun -np 2"), 2)
        self.assertEqual(calls.count("zero-infer --benchmark"), 4 + 2)  # those of mpirun name it once more

    def test_a_program_that_fails_is_a_line_and_the_next_one_runs(self) -> None:
        self.program("zero-infer", "echo no GPU here >&2; exit 3\n")
        done, lines = self.run_script("--tiers", "device")
        self.assertEqual(done.returncode, 1)
        self.assertEqual([bool(line["pass_ms"]) for line in lines], [False] * 3 + [True] * 3)
        self.assertEqual(lines[0]["failed"], "ended with 3\nno GPU here")
        self.assertIn("no GPU here", done.stderr)

    def test_a_program_that_is_not_there_is_a_line(self) -> None:
        (self.root / "python").unlink()
        done, lines = self.run_script("--tiers", "device", "--programs", "deepspeed")
        self.assertEqual(done.returncode, 1)
        self.assertEqual([line["version"] for line in lines], ["unknown"] * 3)
        self.assertIn("No such file", lines[0]["failed"])

    def test_one_that_hangs_is_ended_and_what_it_measured_is_kept(self) -> None:
        self.program("python", f"{_PEER_CELL}(sleep 2; echo late > {self.root}/late) &\nsleep 50\n")
        begin = time.monotonic()
        done, lines = self.run_script("--tiers", "device", "--programs", "deepspeed", "--limit", "1")
        self.assertLess(time.monotonic() - begin, 20)
        self.assertEqual(done.returncode, 1)
        self.assertEqual([line["pass_ms"] for line in lines], [{"1": 99.5}, {}, {}])
        self.assertEqual({line["failed"] for line in lines}, {"took longer than 1 s"})
        time.sleep(2)
        self.assertFalse((self.root / "late").exists())

    def test_a_batch_out_of_memory_says_why(self) -> None:
        cells = """echo '{"batch": 1, "pass_ms": 2.5}' >> $last
echo '{"batch": 8, "out_of_memory": "the KV cache wants 9 GiB"}' >> $last
"""
        self.program("zero-infer", cells)
        _, lines = self.run_script("--tiers", "device", "--programs", "zero-infer")
        self.assertEqual(lines[0]["pass_ms"], {"1": 2.5})
        self.assertEqual(lines[0]["failed"], "batch 8: the KV cache wants 9 GiB")

    def test_words_that_it_does_not_know_are_refused(self) -> None:
        for flags in (("--tiers", "device,tape"), ("--programs", "vllm")):
            with self.subTest(flags):
                done, lines = self.run_script(*flags)
                self.assertEqual((done.returncode, lines), (2, []))
                self.assertIn(f"{flags[0]} are of", done.stderr)


if __name__ == "__main__":
    unittest.main()
