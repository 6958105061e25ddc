"""The tables of other programs on the same CPU or GPUs and the same shape."""

from __future__ import annotations

from reporting.results import (
    BESIDE_DEEPSPEED,
    BESIDE_OTHERS,
    BESIDE_SPLIT,
    ReportError,
    Result,
    newest,
    of_kind,
)
from reporting.text import Notes, run_note, runs_below, shape, significant, table


def _name(r: Result) -> str:
    return f"{r['program']} ({r['version']})"


def _without_number(line: Result) -> str:
    return "failed" if "failed" in line.fields else ""


def others_table(results: list[Result]) -> str:
    fields = ("machine", "model", "threads", "prompt_tokens", "weights", "program")
    lines = [g[0] for g in newest(of_kind(results, BESIDE_OTHERS), lambda r: tuple(r[f] for f in fields))]
    if not lines:
        return ""
    machines = list(dict.fromkeys(r["machine"] for r in lines))
    formats = list(dict.fromkeys(r["weights"] for r in lines))
    lines.sort(key=lambda r: (machines.index(r["machine"]), formats.index(r["weights"])))
    measured = list(dict.fromkeys(what for r in lines for what in r["tokens_s"] if what != "prompt"))
    heads = [f"batch {what.removeprefix('decode_')}" for what in measured]
    runs = Notes()
    rows = [
        [
            r["machine"], shape(r["model"]), str(r["threads"]), r["weights"], _name(r),
            *(significant(r["tokens_s"][what]) if what in r["tokens_s"] else "" for what in measured),
            f"{significant(r['tokens_s']['prompt'])} ({r['prompt_tokens']})",
            runs.mark(run_note(r)),
        ]
        for r in lines
    ]  # fmt: skip
    header = ("machine", "model", "threads", "weights", "tokens/s of", *heads, "a prompt (of tokens)", "run")
    return f"{table(header, rows, labels=4)}\n\n{runs_below(runs)}"


def _split_cell(line: Result, batch: int) -> str:
    if (rate := line["tokens_s"].get(f"decode_{batch}")) is not None:
        return f"{significant(rate)} ({significant(batch / rate * 1e3)})"
    return _without_number(line)


def beside_split_table(results: list[Result]) -> str:
    fields = ("machine", "model", "weights", "resident_blocks", "program", "setting", "threads")
    lines = [g[0] for g in newest(of_kind(results, BESIDE_SPLIT), lambda r: tuple(r[f] for f in fields))]
    if not lines:
        return ""
    lines.sort(key=lambda r: (r["machine"], r["model"], r["resident_blocks"]))
    batches = sorted({int(what.removeprefix("decode_")) for r in lines for what in r["tokens_s"]})
    runs = Notes()
    rows = [
        [
            r["machine"], shape(r["model"]), str(r["resident_blocks"]), _name(r), r["setting"], str(r["threads"]),
            *(_split_cell(r, batch) for batch in batches), runs.mark(run_note(r)),
        ]
        for r in lines
    ]  # fmt: skip
    header = (
        "machine", "model", "blocks on the GPU", "tokens/s (ms a pass) of", "setting", "threads",
        *(f"batch {batch}" for batch in batches), "run",
    )  # fmt: skip
    return f"{table(header, rows, labels=4)}\n\n{runs_below(runs)}"


_TIERS = {"device": "GPUs", "host": "pinned host memory"}


def _pass_cell(line: Result, batch: str) -> str:
    if batch in line["pass_ms"]:
        return significant(line["pass_ms"][batch])
    return _without_number(line)


def deepspeed_table(results: list[Result]) -> str:
    fields = ("machine", "model", "weights", "tier", "world", "program", "setting")
    key = lambda r: tuple(r[f] for f in fields)  # noqa: E731
    lines = [g[0] for g in newest(of_kind(results, BESIDE_DEEPSPEED), key)]
    if not lines:
        return ""
    for line in lines:
        if line["tier"] not in _TIERS:
            raise ReportError(f"{line.at}: `tier` is {line['tier']!r}: device and host are known")
    lines.sort(key=lambda r: (r["machine"], r["model"], list(_TIERS).index(r["tier"]), r["world"]))
    batches = sorted({batch for r in lines for batch in r["pass_ms"]}, key=int)
    runs = Notes()
    rows = [
        [
            r["machine"], shape(r["model"]), _TIERS[r["tier"]], str(r["world"]), _name(r), r["setting"],
            *(_pass_cell(r, batch) for batch in batches), runs.mark(run_note(r)),
        ]
        for r in lines
    ]  # fmt: skip
    header = (
        "machine", "model", "weights rest in", "ranks", "ms a pass of", "setting",
        *(f"batch {batch}" for batch in batches), "run",
    )  # fmt: skip
    return f"{table(header, rows, labels=5)}\n\n{runs_below(runs)}"
