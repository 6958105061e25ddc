#!/usr/bin/env python3
"""benchmarks/beside_split.py with stand-ins for both programs: what it starts, keeps, and says of what fails; and the
GGUF files of benchmarks/random_gguf.py."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, BinaryIO

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks/beside_split.py"
MODEL = ROOT / "config/models/bloom-7b1"
sys.path.insert(0, str(ROOT / "benchmarks"))

import random_gguf

_PROGRAM = '#!/bin/sh\necho "$(basename $0) $*" >> {calls}\n'
_OWN = """echo '{"batch": 1, "pass_ms": 125.0}'
echo '{"batch": 8, "pass_ms": 160.0}'
"""
_DEVICES = """case "$*" in
--list-devices) echo "  CUDA0: a GPU"; exit;;
--version) echo "version: 7 (abc)" >&2; exit;;
esac
"""
_LLAMA = """echo some text
echo '{"pl": 1, "speed_tg": 5.0}'
echo '{"pl": 8, "speed_tg": 32.0}'
"""


class BesideSplit(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        (self.root / "benchmarks").mkdir()
        self.program("benchmarks/pass_benchmark", _OWN)
        self.program("llama-batched-bench", _DEVICES + _LLAMA)

    def program(self, name: str, body: str) -> None:
        path = self.root / name
        path.write_text(_PROGRAM.format(calls=self.root / "calls") + body, encoding="utf-8")
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return (self.root / "calls").read_text(encoding="utf-8").splitlines()

    def run_script(self, *flags: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        output = self.root / "results.jsonl"
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(self.root), "--commit", "abc1234", "--machine", "a machine",
             "--output", str(output), "--model", str(MODEL), "--batch", "1,8", "--threads", "16,8", "--rounds", "1",
             "--llama", str(self.root), "--gguf", "a.gguf", *flags],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
        return done, [json.loads(line) for line in lines]

    def test_a_line_is_one_setting_with_all_batches(self) -> None:
        done, lines = self.run_script("--blocks", "0,15")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            [(line["resident_blocks"], line["program"], line["setting"], line["threads"]) for line in lines],
            [
                (0, "zero-infer", "--cpu-share auto", 16),
                (0, "llama.cpp", "-ngl 1", 16),
                (0, "llama.cpp", "-ngl 1 --no-op-offload", 16),
                (0, "llama.cpp", "-ngl 1 --load-mode none", 16),
                (0, "llama.cpp", "-ngl 0", 16),
                (0, "llama.cpp", "-ngl 1", 8),
                (15, "zero-infer", "--cpu-share auto", 16),
                (15, "llama.cpp", "-ngl 16", 16),
                (15, "llama.cpp", "-ngl 16 --no-op-offload", 16),
                (15, "llama.cpp", "-ngl 16 --load-mode none", 16),
                (15, "llama.cpp", "-ngl 16", 8),
            ],
        )
        own, peer = lines[:2]
        self.assertEqual((own["tokens_s"], own["version"]), ({"decode_1": 8.0, "decode_8": 50.0}, "abc1234"))
        self.assertEqual((peer["tokens_s"], peer["version"]), ({"decode_1": 5.0, "decode_8": 32.0}, "7 (abc)"))
        self.assertEqual(peer["rounds"], [peer["tokens_s"]])

    def test_both_hold_as_many_blocks_on_the_gpu(self) -> None:
        self.run_script("--blocks", "15")
        own, plain = [call for call in self.calls() if "16" in call][:2]
        self.assertIn("--backend cuda", own)
        self.assertIn("--tier host --gpu-weight-budget 6039797760 --cpu-share auto", own)  # 15 x 12 x 4096^2 x 2
        self.assertIn("-m a.gguf -t 16 -ngl 16 ", plain)

    def test_programs_take_turns_and_the_middle_round_counts(self) -> None:
        counting = 'n=$(grep -c "^pass" {0}/calls); echo "{{\\"batch\\": 1, \\"pass_ms\\": $((n * n))}}"\n'
        self.program("benchmarks/pass_benchmark", counting.format(self.root))
        self.program("llama-batched-bench", _DEVICES + "echo '{\"pl\": 1, \"speed_tg\": 5.0}'\n")
        _, lines = self.run_script("--rounds", "3", "--batch", "1", "--threads", "16")
        self.assertEqual([call.split()[0][0] for call in self.calls()[2:]], list("pllll" * 3))
        self.assertEqual([round(rates["decode_1"], 1) for rates in lines[0]["rounds"]], [1000.0, 250.0, 111.1])
        self.assertEqual(lines[0]["tokens_s"], {"decode_1": 250.0})

    def test_a_program_that_fails_is_a_line_and_the_next_one_runs(self) -> None:
        self.program("benchmarks/pass_benchmark", "echo no GPU here >&2; exit 3\n")
        done, lines = self.run_script()
        self.assertEqual(done.returncode, 1)
        self.assertEqual([bool(line["tokens_s"]) for line in lines], [False] + [True] * 5)
        self.assertRegex(lines[0]["failed"], r"ended with 3:\nno GPU here$")
        self.assertIn("no GPU here", done.stderr)

    def test_one_that_hangs_or_leaves_a_batch_out_has_failed(self) -> None:
        self.program("benchmarks/pass_benchmark", "exec sleep 50\n")
        self.program("llama-batched-bench", _DEVICES + "echo '{\"pl\": 1, \"speed_tg\": 5.0}'\n")
        done, lines = self.run_script("--limit", "4")
        self.assertEqual(done.returncode, 1)
        self.assertIn("took longer than 4 s", lines[0]["failed"])
        self.assertIn("printed nothing of batch 8", lines[1]["failed"])

    def test_no_round_begins_that_would_end_too_late(self) -> None:
        self.program("benchmarks/pass_benchmark", _OWN + "sleep 1\n")
        done, lines = self.run_script("--rounds", "5", "--seconds", "1")
        self.assertEqual((done.returncode, len(lines[0]["rounds"])), (0, 1), done.stderr)
        self.assertTrue(lines[0]["command"].endswith("--rounds 5 --seconds 1"))
        self.assertIn("1 of 5 rounds: another one would end later than in 1 s", done.stderr)

    def test_a_llama_without_a_gpu_is_refused(self) -> None:
        self.program("llama-batched-bench", 'echo "Available devices:"\n')
        done, lines = self.run_script()
        self.assertEqual((done.returncode, lines), (1, []))
        self.assertIn("sees no GPU through CUDA", done.stderr)


def _read(file: BinaryIO, form: str) -> Any:
    (value,) = struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))
    return value


def _string(file: BinaryIO) -> str:
    return file.read(_read(file, "Q")).decode()


class RandomGguf(unittest.TestCase):
    SHAPES = {
        "bloom": {"model_type": "bloom", "n_embed": 64, "n_layer": 2, "n_head": 4, "seq_length": 128, "vocab_size": 99,
                  "layer_norm_epsilon": 1e-5},
        "llama": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128, "vocab_size": 99,
                  "rms_norm_eps": 1e-6, "rope_theta": 5e5},
    }  # fmt: skip

    def written(self, shape: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[list[int], int, int]], Path]:
        """Its values; its tensors by name: columns first, type and place in the file; the file."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        root = Path(folder.name)
        (root / "config.json").write_text(json.dumps(shape), encoding="utf-8")
        path = root / "a.gguf"
        done = subprocess.run([sys.executable, str(ROOT / "benchmarks/random_gguf.py"), str(root), str(path)],
                              capture_output=True, text=True, check=False)  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        with path.open("rb") as file:
            self.assertEqual((file.read(4), _read(file, "I")), (b"GGUF", 3))
            tensors, pairs = _read(file, "Q"), _read(file, "Q")
            values, found = {}, {}
            for _ in range(pairs):
                key, kind = _string(file), _read(file, "I")
                values[key] = _string(file) if kind == 8 else _read(file, {4: "I", 6: "f"}[kind])
            for _ in range(tensors):
                name, dims = _string(file), _read(file, "I")
                extents = [_read(file, "Q") for _ in range(dims)]
                found[name] = (extents, _read(file, "I"), _read(file, "Q"))
            start = -(-file.tell() // 32) * 32
        return values, {name: (shape, kind, start + at) for name, (shape, kind, at) in found.items()}, path

    def test_tensors_lie_one_after_the_other_to_the_end_of_the_file(self) -> None:
        for family, shape in self.SHAPES.items():
            with self.subTest(family):
                values, tensors, path = self.written(shape)
                self.assertEqual(values["general.architecture"], family)
                self.assertEqual(values[f"{family}.vocab_size"], 99)
                end = 0
                for extents, kind, at in tensors.values():
                    self.assertEqual(kind, 30 if len(extents) > 1 else 0)  # BF16, F32
                    self.assertEqual(at % 32, 0)
                    self.assertTrue(end == 0 or 0 <= at - end < 32)
                    end = at + math.prod(extents) * (2 if kind == 30 else 4)
                self.assertTrue(0 <= path.stat().st_size - end < 32)

    def test_a_family_has_its_own_tensors(self) -> None:
        _, bloom, _ = self.written(self.SHAPES["bloom"])
        self.assertEqual(bloom["blk.1.attn_qkv.weight"][0], [64, 192])
        self.assertEqual(bloom["blk.1.ffn_up.bias"][0], [256])
        self.assertNotIn("output.weight", bloom)  # tied
        values, llama, _ = self.written(self.SHAPES["llama"])
        self.assertEqual(llama["blk.1.attn_k.weight"][0], [64, 32])
        self.assertEqual(llama["blk.1.ffn_down.weight"][0], [96, 64])
        self.assertEqual(llama["output.weight"][0], [64, 99])
        self.assertEqual(values["llama.attention.head_count_kv"], 2)

    def test_weights_are_small_numbers_and_norms_change_nothing(self) -> None:
        _, tensors, path = self.written(self.SHAPES["bloom"])
        data = path.read_bytes()
        _, _, at = tensors["blk.0.attn_output.weight"]
        bits = struct.unpack_from("<4096H", data, at)
        weights = [struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in bits]
        self.assertTrue(all(2**-7 <= abs(w) < 2**-5 for w in weights))
        self.assertLess(abs(sum(weights)) / len(weights), 0.003)
        self.assertEqual(struct.unpack_from("<64f", data, tensors["blk.0.attn_norm.weight"][2]), (1.0,) * 64)
        self.assertEqual(struct.unpack_from("<64f", data, tensors["blk.0.attn_norm.bias"][2]), (0.0,) * 64)

    def test_other_families_are_refused(self) -> None:
        with self.assertRaisesRegex(SystemExit, "not of opt"):
            random_gguf.config_of(ROOT / "config/models/opt-30b")


if __name__ == "__main__":
    unittest.main()
