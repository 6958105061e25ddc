"""The lines of benchmarks/results: reading them, checking their fields, choosing among them.

benchmarks/results/README.md says what each kind of line and each field means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ReportError(Exception):
    """Something that the report cannot be made from: says what, where, and what to do."""


_RUN = {"machine": str, "commit": str, "command": str, "world": int}
_PASS = _RUN | {
    "backend": str, "model": str, "dtype": str, "tier": str, "batch": int,
    "pass_ms": float, "pass_ms_min": float, "pass_ms_max": float,
    "limit_how": str, "ratio": float, "resident_bytes": int,
}  # fmt: skip

PASS = "pass"
PROMPT_PASS = "prompt pass"
BENCHMARK = "published_bloom_benchmark"
PUBLISHED = "published_row"
LOAD = "load"
LIMITS = "limits"
ATTENTION = "attention"
PRODUCT = "product"
SAMPLE = "sample"
WEIGHT_FORMATS = "weight_formats"
SERVE = "serve"
BESIDE_OTHERS = "beside_others"
BESIDE_SPLIT = "beside_split"
BESIDE_DEEPSPEED = "beside_deepspeed"
EXCHANGE = "exchange"

#: The fields that the report needs, by the `name` of a line; a line may have more.
SCHEMA: dict[str, dict[str, type]] = {
    PASS: _PASS | {"bytes_per_pass": float, "achieved_gb_s": float, "limit_gb_s": float},
    PROMPT_PASS: _PASS
    | {
        "prompt_tokens": int, "operations_per_pass": float,
        "achieved_tflop_s": float, "limit_tflop_s": float,
    },
    BENCHMARK: _RUN | {"backend": str, "model": str, "dtype": str, "batch": int},
    PUBLISHED: {
        "source": str, "machine": str, "model": str, "world": int, "system": str,
        "dtype": str, "cells": list, "source_url": str, "batch_is": str,
    },
    LOAD: _RUN
    | {
        "model": str, "tier": str, "start": str, "checkpoint_bytes": int, "read_bytes": int,
        "load_s": float, "load_s_min": float, "load_s_max": float,
        "achieved_gb_s": float, "limit_gb_s": float, "limit_how": str,
        "ratio": float, "peak_host_bytes": int,
    },
    ATTENTION: _RUN
    | {
        "lanes": int, "rows": int, "context": int, "heads": int, "kv_heads": int, "head_dim": int,
        "us": float, "us_min": float, "us_max": float, "achieved_gb_s": float,
        "limit_gb_s": float, "limit_how": str, "ratio": float, "achieved_tflop_s": float,
    },
    PRODUCT: _RUN
    | {
        "weights": str, "dtype": str, "rows": int, "outputs": int, "columns": int, "us": float,
        "us_min": float, "us_max": float, "achieved_gb_s": float, "limit_gb_s": float,
        "limit_how": str, "ratio": float,
    },
    SAMPLE: _RUN
    | {
        "logits": str, "settings": str, "rows": int, "vocabulary": int, "us": float,
        "us_min": float, "us_max": float, "achieved_gb_s": float, "limit_gb_s": float,
        "limit_how": str, "ratio": float,
    },
    SERVE: _RUN
    | {
        "model": str, "backend": str, "lanes": int, "requests": int, "prompt_tokens": int,
        "new_tokens": int, "offline_tokens_s": float, "server_tokens_s": float,
        "streamed_tokens_s": float, "ratio": float, "ratio_streamed": float, "loads": list,
    },
    BESIDE_OTHERS: _RUN
    | {
        "program": str, "version": str, "model": str, "threads": int, "weights": str,
        "prompt_tokens": int, "tokens_s": dict,
    },
    BESIDE_SPLIT: _RUN
    | {
        "program": str, "version": str, "setting": str, "model": str, "weights": str,
        "resident_blocks": int, "threads": int, "tokens_s": dict,
    },
    BESIDE_DEEPSPEED: _RUN
    | {
        "program": str, "version": str, "setting": str, "model": str, "weights": str, "tier": str,
        "pass_ms": dict,
    },
    EXCHANGE: _RUN
    | {
        "backend": str, "rows": int, "hidden": int, "columns": int, "calls_us": float,
        "received_bytes": int, "limit_us": float, "limit_how": str, "limit_gb_s": float,
    },
    WEIGHT_FORMATS: _RUN
    | {"model": str, "tokens": int, "perplexity": float, "ids_sha256": str, "formats": list},
    LIMITS: {
        "source": str, "backend": str, "device": str, "world": int, "ranks_per_host": int,
        "device_bytes": int, "host_bytes": int, "copy_alone_gb_s": float,
        "copy_together_gb_s": float, "gather": list, "device_memory_gb_s": float,
        "host_memory_gb_s": float, "reads": list, "writes": list, "products": list,
    },
}  # fmt: skip

#: What a cell of the published benchmark has unless it has `out_of_memory`.
BENCHMARK_NUMBERS: dict[str, type] = {"ms_per_token": float, "pass_ms": float, "load_s": float}


@dataclass(frozen=True)
class Result:
    """One line of a results file; `number` counts from 1."""

    fields: dict[str, Any]
    file: str
    number: int

    @property
    def at(self) -> str:
        return f"{self.file}:{self.number}"

    @property
    def name(self) -> str:
        return self["name"]

    def __getitem__(self, field: str) -> Any:
        if field not in self.fields:
            raise ReportError(f"{self.at}: no field `{field}`")
        return self.fields[field]

    def get(self, field: str, default: Any = None) -> Any:
        return self.fields.get(field, default)


def _fits(value: Any, wanted: type) -> bool:
    if isinstance(value, bool):
        return False
    if wanted is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    if wanted is int:
        return isinstance(value, int)
    return isinstance(value, wanted) and value != ""


def _check(result: Result, schema: dict[str, type]) -> None:
    for field, wanted in schema.items():
        if not _fits(result[field], wanted):
            raise ReportError(
                f"{result.at}: `{field}` is {result[field]!r}, wanted a {wanted.__name__}"
            )


def _checked(result: Result) -> Result:
    if result.name not in SCHEMA:
        known = ", ".join(f"`{name}`" for name in SCHEMA)
        raise ReportError(f"{result.at}: `name` is {result.name!r}, known are {known}")
    _check(result, SCHEMA[result.name])
    if result.name == BENCHMARK and "out_of_memory" not in result.fields:
        _check(result, BENCHMARK_NUMBERS)
    return result


def _name_weights(fields: dict[str, Any]) -> None:
    """`dtype` is that of the products. Where weights are packed it says their format too, so that
    these lines are a configuration of their own, in every table and plot."""
    packed = {
        part: fields[key]
        for part, key in (("weights", "weight_format"), ("head", "head_format"))
        if str(fields.get(key, "")).startswith(("int8", "int4", "float8"))
    }
    if packed and isinstance(fields.get("dtype"), str):
        fields["dtype"] += "".join(f", {part} {name}" for part, name in packed.items())


def _parsed(text: str, file: str, number: int) -> Result:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{file}:{number}: no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ReportError(f"{file}:{number}: no JSON object")
    _name_weights(fields)
    return _checked(Result(fields, file, number))


def load_results(folder: Path) -> list[Result]:
    """Every line of *.jsonl and every object of *.json, by file name, then by line."""
    results = []
    for path in sorted(folder.glob("*.json*")):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            results.append(_parsed(text, path.name, 1))
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                results.append(_parsed(line, path.name, number))
    if not results:
        raise ReportError(f"{folder}: no results")
    return results


def of_kind(results: Iterable[Result], *names: str) -> list[Result]:
    return [r for r in results if r.name in names]


def newest(
    results: Iterable[Result], key: Callable[[Result], Any], keep: int = 1
) -> list[list[Result]]:
    """Groups what is of one configuration, in order of first appearance; of each the last `keep`
    lines, newest first. A file grows at its end, so its last line is the newest; two files with one
    configuration have no order and are refused."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        group = groups.setdefault(key(result), [])
        if group and group[0].file != result.file:
            raise ReportError(
                f"{group[0].at} and {result.at} hold the same configuration: "
                "keep its lines in one file, the newest last"
            )
        group.append(result)
    return [group[::-1][:keep] for group in groups.values()]
