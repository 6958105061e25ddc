#!/usr/bin/env python3
"""benchmarks/report: what it finds, what it refuses, and how its numbers read."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "benchmarks/report"
sys.path.insert(0, str(ROOT / "benchmarks"))

from reporting.benchmark import benchmark_table, split_table
from reporting.exchanges import exchange_table
from reporting.figures import digest, figures, with_digest
from reporting.headline import Headline, headline_table
from reporting.machine import limits_table, loading_table, sampling_table, scaling_rows
from reporting.others import beside_split_table, deepspeed_table, others_table
from reporting.pages import PAGES, rewritten
from reporting.passes import PASS_TABLES, pass_block
from reporting.results import SCHEMA, ReportError, Result, load_results
from reporting.serving import serving_table
from reporting.text import median, shape, significant, size, table

RUN = {"machine": "a machine", "commit": "abc1234", "command": "zero-infer --benchmark", "world": 1}
PASS = RUN | {
    "name": "pass", "backend": "cpu", "model": "config/models/bloom-560m", "dtype": "bfloat16",
    "tier": "host", "batch": 1, "bytes_per_pass": 6e8, "pass_ms": 100.0, "pass_ms_min": 99.0,
    "pass_ms_max": 101.5, "achieved_gb_s": 6.0, "limit_gb_s": 8.0, "limit_how": "bare copies",
    "ratio": 0.75, "resident_bytes": 0,
}  # fmt: skip
CELL = RUN | {
    "name": "published_bloom_benchmark", "backend": "cuda", "model": "config/models/bloom-7b1",
    "dtype": "bfloat16", "tier": "host", "batch": 1, "ms_per_token": 228.4, "pass_ms": 228.4,
    "load_s": 2.5, "split": {"compute_ms": 8.0, "wait_copy_ms": 219.5, "gather_ms": 0},
    "links": [{"link": "copy", "achieved_gb_s": 52.9, "limit_gb_s": 55.1, "ratio": 0.96}],
    "peak_host_bytes": 12532449280, "peak_device_bytes": 0,
}  # fmt: skip
LOAD = RUN | {
    "name": "load", "model": "bloom-3b", "tier": "nvme", "start": "warm",
    "checkpoint_bytes": 6005000000, "read_bytes": 6100000000, "load_s": 3.0, "load_s_min": 2.9,
    "load_s_max": 3.25, "achieved_gb_s": 2.03, "limit_gb_s": 2.1, "limit_how": "bare reads",
    "ratio": 0.97, "peak_host_bytes": 900000000,
}  # fmt: skip
SERVE = RUN | {
    "name": "serve", "model": "tests/data/a-model", "backend": "cpu", "lanes": 32, "requests": 400,
    "prompt_tokens": 64, "new_tokens": 100, "offline_tokens_s": 15490.0, "server_tokens_s": 14952.0,
    "streamed_tokens_s": 13299.0, "ratio": 0.9653, "ratio_streamed": 0.8586,
    "loads": [
        {"load": 0.25, "requests_s": 33.25, "first_token_p50_ms": 3.504, "first_token_p99_ms": 15.54,
         "between_p50_ms": 1.121, "between_p99_ms": 6.355},
    ],
}  # fmt: skip
OTHERS = RUN | {
    "name": "beside_others", "program": "llama.cpp", "version": "b1", "model": "config/models/bloom-560m",
    "threads": 2, "weights": "int8", "prompt_tokens": 512,
    "tokens_s": {"decode_1": 16.345, "decode_8": 56.65, "prompt": 255.8},
}  # fmt: skip
SPLIT = RUN | {
    "name": "beside_split", "program": "llama.cpp", "version": "b1", "setting": "-ngl 1", "threads": 16,
    "model": "config/models/bloom-7b1", "weights": "bfloat16", "resident_blocks": 0,
    "tokens_s": {"decode_1": 5.0, "decode_8": 32.5, "decode_32": 64.0},
}  # fmt: skip
DEEPSPEED = RUN | {
    "name": "beside_deepspeed", "program": "DeepSpeed ZeRO-3", "version": "0.19.8", "setting": "default",
    "model": "config/models/bloom-7b1", "weights": "bfloat16", "tier": "device", "world": 2,
    "pass_ms": {"8": 460.04, "64": 471.8, "1": 452.25},
}  # fmt: skip
SAMPLE = RUN | {
    "name": "sample", "backend": "cuda", "logits": "peaked", "settings": "top-p 0.9", "rows": 1,
    "vocabulary": 250880, "us": 12.34, "us_min": 12.0, "us_max": 13.0, "achieved_gb_s": 81.3,
    "limit_gb_s": 4200.0, "limit_how": "bare copies", "ratio": 0.0194,
}  # fmt: skip
EXCHANGE = RUN | {
    "name": "exchange", "backend": "cuda", "world": 2, "rows": 1, "hidden": 4096, "columns": 12288,
    "calls_us": 35.46, "calls_in_graph_us": 20.47, "peers_us": 10.04, "peers_in_graph_us": 7.2,
    "received_bytes": 32768, "limit_us": 0.0918, "limit_how": "bare gathers", "limit_gb_s": 356.9,
}  # fmt: skip
PUBLISHED = {
    "name": "published_row", "source": "somebody", "source_url": "https://example.org",
    "machine": "8x GPU", "model": "bloom-176b", "world": 8, "system": "other", "dtype": "bf16",
    "batch_is": "of all GPUs", "load_s": 121,
    "cells": [{"batch": 1, "ms_per_token": 230.38}, {"batch": 8, "out_of_memory": "oom"}],
}  # fmt: skip


def results_of(*lines: dict[str, Any], file: str = "some.jsonl") -> list[Result]:
    return [Result(dict(fields), file, number) for number, fields in enumerate(lines, 1)]


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


class Copy:
    """A copy of what the report reads and writes, to change."""

    def __init__(self, folder: str) -> None:
        self.root = Path(folder)
        for part in ("results", "plots", "traces"):
            shutil.copytree(ROOT / "benchmarks" / part, self.root / "benchmarks" / part)
        for page in PAGES:
            shutil.copy(ROOT / page, self.root / page)

    def report(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPORT), "--root", str(self.root), *flags],
            capture_output=True, text=True, check=False,
        )  # fmt: skip


class CheckedTree(unittest.TestCase):
    """--check and --tables-only on a copy of this repository's pages, results and plots."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.copy = Copy(folder.name)

    def test_finds_nothing_in_what_was_just_written(self) -> None:
        self.assertEqual(self.copy.report("--tables-only").returncode, 0)
        checked = self.copy.report("--check")
        self.assertEqual((checked.returncode, checked.stdout), (0, ""))

    def test_finds_a_changed_number_in_each_page(self) -> None:
        for page in PAGES:
            with self.subTest(page):
                path = self.copy.root / page
                text = path.read_text(encoding="utf-8")
                row = re.search(r"(?<=\| )\d+\.\d+(?= )", text[text.index("<!-- report: ") :])
                assert row is not None
                path.write_text(text.replace(f"| {row.group()} ", "| 77.77 ", 1), encoding="utf-8")
                checked = self.copy.report("--check")
                path.write_text(text, encoding="utf-8")
                self.assertEqual(checked.returncode, 1)
                self.assertRegex(checked.stdout, rf"(?m)^--- {page}$")
                self.assertRegex(checked.stdout, r"(?m)^-\|.*\| 77\.77 ")
                self.assertRegex(checked.stdout, rf"(?m)^\+\|.*\| {re.escape(row.group())} ")

    def test_fills_the_blocks_of_both_pages(self) -> None:
        block = r"(?ms)^(<!-- report: [a-z-]+ -->\n)(.*?)(^<!-- end -->$)"
        for page, names in PAGES.items():
            path = self.copy.root / page
            text = path.read_text(encoding="utf-8")
            with_results = {begin for begin, made, _ in re.findall(block, text) if made}
            path.write_text(re.sub(block, r"\1\3", text), encoding="utf-8")
            self.assertEqual(self.copy.report("--tables-only").returncode, 0)
            filled = re.findall(block, path.read_text(encoding="utf-8"))
            self.assertEqual(len(filled), len(names))
            self.assertEqual({begin for begin, made, _ in filled if made}, with_results)
            for begin, made, _ in filled:
                if made:
                    self.assertRegex(made, r"(?m)^\|---", begin)

    def test_finds_a_new_result_missing_in_the_page_and_in_the_plot(self) -> None:
        new = self.copy.root / "benchmarks/results/new.jsonl"
        new.write_text(json.dumps(PASS) + "\n", encoding="utf-8")
        checked = self.copy.report("--check")
        self.assertEqual(checked.returncode, 1)
        self.assertRegex(checked.stdout, r"(?m)^\+.*a machine.* 100\.0 \(99\.0 to 101\.5\)")
        self.assertIn("tiers-cpu.svg: was drawn from other results", checked.stdout)
        self.assertEqual(self.copy.report("--tables-only").returncode, 0)
        checked = self.copy.report("--check")
        self.assertNotIn("a machine", checked.stdout)
        self.assertIn("tiers-cpu.svg: was drawn from other results", checked.stdout)

    def test_finds_missing_and_left_over_plots(self) -> None:
        plots = self.copy.root / "benchmarks/plots"
        (plots / "tiers-cpu.svg").rename(plots / "old.svg")
        checked = self.copy.report("--check")
        self.assertEqual(checked.returncode, 1)
        self.assertIn("tiers-cpu.svg: missing", checked.stdout)
        self.assertIn("old.svg: shows no results", checked.stdout)

    def test_finds_a_picture_that_a_page_shows_and_nobody_has(self) -> None:
        traces = self.copy.root / "benchmarks/traces"
        picture = next(traces.glob("*.svg"))
        picture.unlink()
        checked = self.copy.report("--check")
        self.assertEqual(checked.returncode, 1)
        for page, link in (("README.md", "benchmarks/traces"), ("benchmarks/README.md", "traces")):
            self.assertIn(f"{page} shows {link}/{picture.name}, which is missing", checked.stdout)

    def test_names_the_line_that_it_cannot_use(self) -> None:
        path = self.copy.root / "benchmarks/results/new.jsonl"
        for text, wanted in (
            ("{", "new.jsonl:1: no JSON"),
            ("[1]", "no JSON object"),
            (json.dumps(PASS | {"name": "ride"}), "`name` is 'ride'"),
            (json.dumps(without(PASS, "limit_how")), "new.jsonl:1: no field `limit_how`"),
            (json.dumps(PASS | {"pass_ms": "fast"}), "`pass_ms` is 'fast', wanted a float"),
            (json.dumps(PASS | {"ratio": float("nan")}), "`ratio` is nan"),
            (json.dumps(PASS | {"batch": True}), "`batch` is True"),
            (json.dumps(PASS | {"tier": "tape"}), "`tier` is 'tape'"),
            (json.dumps(PASS | {"backend": "abacus"}), "belongs to no table"),
        ):
            with self.subTest(wanted):
                path.write_text(text + "\n", encoding="utf-8")
                checked = self.copy.report("--check")
                self.assertEqual(checked.returncode, 2)
                self.assertIn(wanted, checked.stderr)


class Pages(unittest.TestCase):
    def test_changes_nothing_outside_of_the_blocks(self) -> None:
        text = "a\n<!-- report: one -->\nold\n<!-- end -->\nb\n"
        self.assertEqual(
            rewritten("page.md", text, {"one": "new"}),
            "a\n<!-- report: one -->\n\nnew\n\n<!-- end -->\nb\n",
        )

    def test_empties_a_block_without_results(self) -> None:
        text = "<!-- report: one -->\nold\n<!-- end -->\n"
        self.assertEqual(
            rewritten("page.md", text, {"one": ""}), "<!-- report: one -->\n<!-- end -->\n"
        )

    def test_refuses_blocks_that_it_cannot_place(self) -> None:
        one = "<!-- report: one -->\n<!-- end -->\n"
        for text, wanted in (
            (one + one, "twice"),
            ("<!-- report: two -->\n<!-- end -->\n", "no block `two`"),
            ("<!-- report: one -->\n", "has no `<!-- end -->`"),
            ("<!-- report: one -->\n" + one, "has no `<!-- end -->`"),
            ("<!-- end -->\n", "without a begin"),
            ("", "no block `one`, for which there are results"),
        ):
            with self.subTest(wanted), self.assertRaisesRegex(ReportError, wanted):
                rewritten("page.md", text, {"one": "text"})


class Passes(unittest.TestCase):
    def block(self, *lines: dict[str, Any]) -> str:
        return pass_block(results_of(*lines), PASS_TABLES[1])

    def test_lines_of_several_ranks_say_what_travelled(self) -> None:
        gathered = PASS | {"tier": "device", "world": 2}
        named = gathered | {"travel": "weights", "staying_share": 0.0}
        stays = gathered | {"travel": "activations", "staying_share": 1.0}
        either = gathered | {"travel": "auto", "staying_share": 0.25}
        block = pass_block(results_of(gathered, stays, either), PASS_TABLES[1])
        for where in (
            "gathered from 2 ranks |", "gathered from 2 ranks, weights or activations travel |",
            "resident on 2 ranks, activations travel |",
        ):  # fmt: skip
            self.assertEqual(block.count(where), 1, where)
        # A line without `travel` is of weights: a newer one that names them replaces it.
        newer = pass_block(results_of(gathered, named), PASS_TABLES[1])
        self.assertEqual(newer.count("gathered from 2 ranks |"), 1)
        self.assertNotIn("earlier run", newer)

    def test_a_row_holds_the_lines_numbers(self) -> None:
        self.assertIn(
            "| a machine | 560m | host memory | 1 | 600 MB copied | 100.0 (99.0 to 101.5) "
            "| 6.00 GB/s | 8.00 GB/s (a) | 0.75 | 1 |",
            self.block(PASS),
        )

    def test_the_last_line_of_a_configuration_counts(self) -> None:
        old, new = (
            PASS | {"tier": "nvme"},
            PASS | {"tier": "nvme", "pass_ms": 50.0, "commit": "new"},
        )
        block = self.block(old, new)
        self.assertIn("50.00 (", block)
        self.assertNotIn("100.0 (", block)

    def test_a_section_may_keep_the_run_before(self) -> None:
        block = self.block(PASS | {"pass_ms": 90.0}, PASS | {"pass_ms": 80.0}, PASS)
        self.assertIn("host memory | 1 | 600 MB copied | 100.0 (", block)
        self.assertIn("host memory, an earlier run | 1 | 600 MB copied | 80.00 (", block)
        self.assertNotIn("90.00 (", block)

    def test_one_configuration_in_two_files_is_refused(self) -> None:
        lines = results_of(PASS, file="a.jsonl") + results_of(PASS, file="b.jsonl")
        with self.assertRaisesRegex(ReportError, "a.jsonl:1 and b.jsonl:1 hold the same"):
            pass_block(lines, PASS_TABLES[1])

    def test_a_field_that_no_line_has_is_named(self) -> None:
        with self.assertRaisesRegex(ReportError, "some.jsonl:1: no field `colour`"):
            results_of(PASS)[0]["colour"]

    def test_fields_that_are_not_known_do_no_harm(self) -> None:
        self.assertEqual(self.block(PASS | {"colour": "blue"}), self.block(PASS))

    def test_packed_weights_are_a_configuration_of_their_own(self) -> None:
        lines = (
            PASS | {"weight_format": "bfloat16", "head_format": "bfloat16"},
            PASS | {"weight_format": "int4g16f8", "head_format": "int8g32f8", "pass_ms": 30.0},
        )
        with tempfile.TemporaryDirectory() as folder:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (Path(folder) / "some.jsonl").write_text(text, encoding="utf-8")
            block = pass_block(load_results(Path(folder)), PASS_TABLES[1])
        self.assertIn("| 560m | host memory | 1 | 600 MB copied | 100.0 (", block)
        self.assertIn("| 560m, int4, head int8 | host memory", block)
        self.assertIn("30.00 (", block)

    def test_the_resident_share_is_of_all_blocks(self) -> None:
        self.assertIn("host memory, 25% resident", self.block(PASS | {"resident_bytes": 200000000}))


class Headlines(unittest.TestCase):
    WANTED = (Headline("a machine", "560m", "host", 8),)

    def test_a_row_is_the_newest_line_that_fits(self) -> None:
        lines = results_of(
            PASS | {"batch": 8, "pass_ms": 90.0},
            PASS | {"batch": 8, "world": 2, "tier": "device"},
            PASS | {"batch": 8},
            PASS,
        )
        self.assertEqual(
            headline_table(lines, self.WANTED).splitlines()[2:],
            [
                "| 560m | host memory | a machine | 8 | 600 MB copied | 100.0 | 80.0 "
                "| 6.00 of 8.00 GB/s | 0.75 |"
            ],
        )

    def test_a_row_without_a_line_is_an_error(self) -> None:
        with self.assertRaisesRegex(ReportError, "wants a line of .*560m.*HEADLINES"):
            headline_table(results_of(PASS), self.WANTED)


class Benchmark(unittest.TestCase):
    def test_a_cell_out_of_memory_reads_oom_with_its_reason(self) -> None:
        oom = without(CELL, "ms_per_token", "pass_ms", "load_s", "split") | {
            "batch": 8, "out_of_memory": "the KV cache wants 9 GiB",
        }  # fmt: skip
        text = benchmark_table(results_of(CELL, oom, PUBLISHED))
        self.assertIn("| 228 | oom | | | | | 2.50 | 1 |", text)
        self.assertIn("batch 8: the KV cache wants 9 GiB", text)
        self.assertIn("| 230.38 | oom | | | | | 121 | [published](https://example.org) |", text)

    def test_says_that_other_models_do_not_compare(self) -> None:
        text = benchmark_table(results_of(CELL, PUBLISHED))
        self.assertIn("of another model and do not compare", text)
        same = CELL | {"model": "bigscience/bloom", "world": 8}
        text = benchmark_table(results_of(same, PUBLISHED))
        self.assertNotIn("another model", text)
        self.assertIn("The hardware differs", text)

    def test_shows_published_rows_only_with_rows_of_our_own(self) -> None:
        self.assertEqual(benchmark_table(results_of(PUBLISHED)), "")
        self.assertEqual(figures(results_of(PUBLISHED)), {})

    def test_the_split_leaves_out_what_no_pass_did(self) -> None:
        text = split_table(results_of(CELL))
        self.assertIn("| pass | compute | wait copy | links and their limits |", text)
        self.assertIn("| 228.4 | 8.00 | 220 | copy 52.9 of 55.1 GB/s: 0.96 | | 12.5 GB |", text)

    def test_an_incomplete_cell_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "benchmark-x.jsonl"
            path.write_text(json.dumps(without(CELL, "ms_per_token")), encoding="utf-8")
            with self.assertRaisesRegex(ReportError, "no field `ms_per_token`"):
                load_results(Path(folder))


class Machine(unittest.TestCase):
    def test_a_server_stands_beside_the_job_and_says_how_long_its_clients_wait(self) -> None:
        rates, waits, _ = serving_table(results_of(SERVE)).split("\n\n", 2)
        self.assertIn("| 32 | 64, 100 | 15,490 | 14,952 | 0.97 | 13,299 | 0.86 | 1 |", rates)
        self.assertIn("| 25% | 33.2 | 3.50, 15.5 | 1.12, 6.36 | 1 |", waits)

    def test_other_programs_stand_below_each_other(self) -> None:
        own = OTHERS | {"program": "zero-infer", "version": "abc1234", "tokens_s": {"decode_1": 30.1, "prompt": 900.5}}
        text = others_table(results_of(own, OTHERS))
        self.assertIn("| batch 1 | batch 8 | a prompt (of tokens) | run |", text)
        self.assertIn("| a machine | 560m | 2 | int8 | zero-infer (abc1234) | 30.1 | | 900 (512) | 1 |", text)
        self.assertIn("| | | | | llama.cpp (b1) | 16.3 | 56.6 | 256 (512) | 1 |", text)

    def test_programs_with_the_same_weights_stand_together(self) -> None:
        own = [OTHERS | {"program": "zero-infer", "weights": weights} for weights in ("int8", "int4")]
        rows = others_table(results_of(*own, OTHERS)).splitlines()[2:5]
        self.assertEqual([row.split("|")[4].strip() for row in rows], ["int8", "", "int4"])

    def test_machines_stand_below_each_other_with_all_their_weights(self) -> None:
        lines = [OTHERS | {"machine": m, "weights": weights} for weights in ("int8", "int4") for m in ("one", "two")]
        rows = others_table(results_of(*lines)).splitlines()[2:6]
        cells = [[row.split("|")[column].strip() for column in (1, 4)] for row in rows]
        self.assertEqual(cells, [["one", "int8"], ["", "int4"], ["two", "int8"], ["", "int4"]])

    def test_a_split_stands_below_this_program_with_as_many_blocks_on_the_gpu(self) -> None:
        own = {"program": "zero-infer", "version": "abc1234", "setting": "--cpu-share auto"}
        half = SPLIT | {"resident_blocks": 15, "setting": "-ngl 16"}
        text = beside_split_table(results_of(half, SPLIT | own | {"tokens_s": {"decode_1": 8.0}}, SPLIT))
        self.assertEqual(
            text.splitlines()[:1] + text.splitlines()[2:5],
            [
                "| machine | model | blocks on the GPU | tokens/s (ms a pass) of | setting | threads "
                "| batch 1 | batch 8 | batch 32 | run |",
                "| a machine | 7b1 | 0 | zero-infer (abc1234) | --cpu-share auto | 16 | 8.00 (125) | | | 1 |",
                "| | | | llama.cpp (b1) | -ngl 1 | 16 | 5.00 (200) | 32.5 (246) | 64.0 (500) | 1 |",
                "| | | 15 | llama.cpp (b1) | -ngl 16 | 16 | 5.00 (200) | 32.5 (246) | 64.0 (500) | 1 |",
            ],
        )

    def test_settings_of_a_split_differ_by_threads_and_the_newest_line_of_each_counts(self) -> None:
        lines = [SPLIT, SPLIT | {"threads": 8}, SPLIT | {"tokens_s": {"decode_1": 4.0}}]
        rows = beside_split_table(results_of(*lines)).splitlines()[2:4]
        self.assertEqual([row.split("|")[6:8] for row in rows], [[" 16 ", " 4.00 (250) "], [" 8 ", " 5.00 (200) "]])

    def test_a_setting_of_a_split_that_failed_reads_failed(self) -> None:
        failed = SPLIT | {"setting": "-ngl 0", "tokens_s": {}, "failed": "took longer than 120 s"}
        self.assertIn("| -ngl 0 | 16 | failed | failed | failed | 1 |", beside_split_table(results_of(SPLIT, failed)))

    def test_without_lines_there_is_no_table_of_splits(self) -> None:
        self.assertEqual(beside_split_table(results_of(OTHERS, PASS)), "")

    def test_deepspeed_stands_below_this_program_with_the_same_weights_and_ranks(self) -> None:
        own = {"program": "zero-infer", "version": "abc1234", "setting": "--travel auto", "pass_ms": {"1": 4.04, "8": 4.3}}
        host = DEEPSPEED | {"tier": "host", "world": 1, "pass_ms": {"1": 514}}
        text = deepspeed_table(results_of(host, DEEPSPEED | own, DEEPSPEED))
        self.assertEqual(
            text.splitlines()[:1] + text.splitlines()[2:5],
            [
                "| machine | model | weights rest in | ranks | ms a pass of | setting "
                "| batch 1 | batch 8 | batch 64 | run |",
                "| a machine | 7b1 | GPUs | 2 | zero-infer (abc1234) | --travel auto | 4.04 | 4.30 | | 1 |",
                "| | | | | DeepSpeed ZeRO-3 (0.19.8) | default | 452 | 460 | 472 | 1 |",
                "| | | pinned host memory | 1 | DeepSpeed ZeRO-3 (0.19.8) | default | 514 | | | 1 |",
            ],
        )

    def test_a_batch_that_a_program_did_not_finish_reads_failed(self) -> None:
        hung = DEEPSPEED | {"pass_ms": {"1": 315.0}, "failed": "took longer than 120 s"}
        other = DEEPSPEED | {"setting": "prefetch"}
        text = deepspeed_table(results_of(hung, other))
        self.assertIn("| default | 315 | failed | failed | 1 |", text)
        again = deepspeed_table(results_of(hung, other, DEEPSPEED))
        self.assertNotIn("failed", again)

    def test_without_lines_there_is_no_table_of_deepspeed(self) -> None:
        self.assertEqual(deepspeed_table(results_of(OTHERS, PASS)), "")

    def test_a_tier_that_the_table_of_deepspeed_does_not_know_is_refused(self) -> None:
        with self.assertRaisesRegex(ReportError, "some.jsonl:1: `tier` is 'tape'"):
            deepspeed_table(results_of(DEEPSPEED | {"tier": "tape"}))

    def test_loading_has_its_limit_in_its_row(self) -> None:
        self.assertIn(
            "| a machine | 3b | 1 | nvme | warm | 6.00 GB | 6.10 GB | 3.00 (2.90 to 3.25) "
            "| 2.03 GB/s | 2.10 GB/s (a) | 0.97 | 900 MB | 1 |",
            loading_table(results_of(LOAD)),
        )

    def test_sampling_has_a_column_for_each_number_of_rows(self) -> None:
        text = sampling_table(results_of(SAMPLE, SAMPLE | {"rows": 8, "us": 15.0, "ratio": 0.5}))
        self.assertIn("| ids | logits | settings | us, 1 row | us, 8 rows | limit | run |", text)
        self.assertIn(
            "| a machine | 250,880 | peaked | top-p 0.9 | 12.3 (0.02) | 15.0 (0.50) "
            "| 4200 GB/s (a) | 1 |",
            text,
        )

    def test_a_way_of_exchanges_that_is_not_there_is_blank(self) -> None:
        row = "| a machine | 2 | 4,096 to 12,288 | 1 | 35.5 | 20.5 {} 10.0 | 7.20 | 0.0918 | 1 |"
        device_api = {
            "device_api_us": 14.51, "device_api_in_graph_us": 11.26, "device_api_in_turn_us": 12.34,
            "device_api_in_turn_in_graph_us": None,
        }  # fmt: skip
        text = exchange_table(results_of(EXCHANGE | device_api))
        self.assertIn(row.format("| 14.5 | 11.3 | 12.3 | |"), text)
        self.assertIn(row.format("| | | | |"), exchange_table(results_of(EXCHANGE)))

    def test_limits_that_were_not_measured_are_left_out(self) -> None:
        limits = {field: 0 for field in SCHEMA["limits"]} | {
            "name": "limits", "source": "a machine", "backend": "cpu", "device": "CPU",
            "host_bytes": 24000000000,
            "gather": [], "writes": [], "copy_alone_gb_s": 12.25, "products": [],
            "reads": [{"depth": 4, "bytes": 1 << 20, "gb_s": 3.0}],
        }  # fmt: skip
        text = limits_table(results_of(limits))
        self.assertIn("one rank alone | 12.2 GB/s |", text)
        self.assertIn("3.00 GB/s, 4 blocks of 1 MiB in flight", text)
        self.assertNotIn("at once", text)
        self.assertNotIn("write", text)

    def test_scaling_wants_two_worlds(self) -> None:
        gathered = PASS | {"tier": "device", "world": 2}
        alone = gathered | {"world": 1}
        self.assertEqual(scaling_rows(results_of(gathered)), [])
        rows = scaling_rows(results_of(gathered, alone, alone | {"batch": 8}))
        self.assertEqual([[line["world"] for line in row] for row in rows], [[1, 2]])


class Numbers(unittest.TestCase):
    def test_digits(self) -> None:
        for value, digits, text in (
            (0, 3, "0"), (0.001234, 3, "0.00123"), (0.0999, 2, "0.10"), (5.634, 3, "5.63"),
            (9.996, 3, "10.0"), (99.96, 3, "100"), (53.0, 3, "53.0"), (2508.8, 3, "2509"),
            (228.0, 4, "228.0"), (7372.5, 4, "7372"), (999.96, 4, "1000"),
        ):  # fmt: skip
            with self.subTest(value):
                self.assertEqual(significant(value, digits), text)

    def test_spread_has_the_medians_decimals(self) -> None:
        self.assertEqual(median(99.94, 9.5, 1000.26, 4), "99.94 (9.50 to 1000.26)")

    def test_sizes(self) -> None:
        self.assertEqual([size(12.08e9), size(604e6), size(28e3)], ["12.1 GB", "604 MB", "28.0 kB"])

    def test_models(self) -> None:
        self.assertEqual(
            shape("config/models/bloom-176b with n_layer 28 of 70"), "176b, 28 of its 70 blocks"
        )
        self.assertEqual(shape("bigscience/bloom"), "176b")
        self.assertEqual(shape("/models/bloom-7b1/"), "7b1")

    def test_tables_blank_what_repeats_and_escape_bars(self) -> None:
        text = table(
            ("a", "b", "c"), (("1", "x", "y"), ("1", "x", "y|z"), ("2", "x", "")), labels=2
        )
        self.assertEqual(text.splitlines()[2:], ["| 1 | x | y |", "| | | y\\|z |", "| 2 | x | |"])

    def test_a_plots_digest_follows_its_data(self) -> None:
        one, other = figures(results_of(PASS)), figures(results_of(PASS | {"achieved_gb_s": 6.1}))
        name = "tiers-cpu.svg"
        self.assertNotEqual(digest(one[name]), digest(other[name]))
        self.assertIn(digest(one[name]), with_digest("<?xml?>\n<svg/>\n", one[name]))


@unittest.skipUnless(importlib.util.find_spec("matplotlib"), "matplotlib is not installed")
class Drawing(unittest.TestCase):
    def test_the_same_data_gives_the_same_file(self) -> None:
        from reporting.plots import draw_svg

        for name, figure in figures(load_results(ROOT / "benchmarks/results")).items():
            with self.subTest(name):
                svg = draw_svg(figure)
                self.assertEqual(svg, draw_svg(figure))
                self.assertIn(figure["title"], svg)  # text stays text

    def test_a_trace_is_cut_to_the_span_that_was_asked_for(self) -> None:
        from reporting.trace import Trace, picture_of

        bars = [
            {"ph": "X", "name": f"block {i}", "cat": "copy", "pid": 0, "tid": 2,
             "ts": 5000 + 1000 * i, "dur": 1000}
            for i in range(4)
        ]  # fmt: skip
        names = [
            {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "rank 0"}},
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": 2, "args": {"name": "copy"}},
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.json"
            content = {"traceEvents": names + bars, "otherData": {"commit": "abc1234"}}
            path.write_text(json.dumps(content), encoding="utf-8")
            spans = [(b["begin_ms"], b["length_ms"]) for b in Trace(path).within(1.5, 3)]
            self.assertEqual(spans, [(1.5, 0.5), (2.0, 1.0)])
            svg = picture_of(path, 1.5, 3)
            self.assertIn("trace run.json, commit abc1234", svg)
            self.assertIn("rank 0: copy", svg)
            with self.assertRaisesRegex(ReportError, "no events between 9 and 10 ms"):
                picture_of(path, 9, 10)


class Documentation(unittest.TestCase):
    def test_the_results_readme_names_every_field(self) -> None:
        text = (ROOT / "benchmarks/results/README.md").read_text(encoding="utf-8")
        missing = [f for fields in SCHEMA.values() for f in fields if f"`{f}`" not in text]
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
