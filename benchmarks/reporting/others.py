"""The table of other programs on the same CPU and the same shape."""

from __future__ import annotations

from reporting.results import BESIDE_OTHERS, Result, newest, of_kind
from reporting.text import Notes, run_note, runs_below, shape, significant, table


def _name(r: Result) -> str:
    return f"{r['program']} {r['version']}".strip()


def others_table(results: list[Result]) -> str:
    fields = ("machine", "model", "threads", "weights", "program")
    lines = [g[0] for g in newest(of_kind(results, BESIDE_OTHERS), lambda r: tuple(r[f] for f in fields))]
    if not lines:
        return ""
    measured = list(dict.fromkeys(what for r in lines for what in r["tokens_s"]))
    heads = [
        f"prompt of {lines[0]['prompt_tokens']}" if what == "prompt" else f"batch {what.removeprefix('decode_')}"
        for what in measured
    ]
    runs = Notes()
    rows = [
        [
            r["machine"], shape(r["model"]), str(r["threads"]), r["weights"], _name(r),
            *(significant(r["tokens_s"][what]) if what in r["tokens_s"] else "" for what in measured),
            runs.mark(run_note(r)),
        ]
        for r in lines
    ]  # fmt: skip
    header = ("machine", "model", "threads", "weights", "tokens/s of", *heads, "run")
    return f"{table(header, rows, labels=4)}\n\n{runs_below(runs)}"
